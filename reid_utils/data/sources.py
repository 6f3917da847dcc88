"""Where a study's data come from: rendered here, a folder of the user's, or the Synergy Re-ID zip, downloaded.

The download is resumable, checked by MD5, and extracted safely and atomically.
"""

import hashlib
import inspect
import re
import shutil
import stat
import time
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from filelock import FileLock

from reid_utils.data.layouts import find_root
from reid_utils.files import digest, is_clutter

# 2022: published in the challenge toolkit; 2023: from a participant's fork, not confirmed.
KNOWN_MD5 = {2022: "05715857791e2e88b2f11e4037fbec7d", 2023: "98fe8b85c154923742b7c14418f2b2d7"}
URL = (
    "https://github.com/DeepSportradar/player-reidentification-challenge/raw/master/"
    "baseline/data/synergyreid/raw/synergyreid_data.zip"
)
ZIP_NAME = "synergyreid_data.zip"
WAITS_S = (1, 2, 4)
TIMEOUTS_S = (10, 60)
MAX_FILES = 200_000
MAX_BYTES = 8 * 2**30
# JPEG files hardly shrink in a zip; a high ratio over megabytes means a decompression bomb.
MAX_RATIO = 50
_CHUNK = 2**16


def prepare_data(data="rendered", root=Path("runs/data"), rendering=None, accept_md5=None) -> Path:
    """The absolute folder that has one of the layouts, made first where `data` asks for it.

    "rendered": renders with the keyword arguments `rendering` into a folder of `root` named after them; "synergy":
    downloads into root/synergy (see `download_synergy` for `accept_md5`); anything else is a folder in one of the
    layouts and is only looked for. Several processes may call it at once: one does the work, the others wait. Raises
    FileNotFoundError for a folder that is missing or in no layout, ValueError for wrong rendering settings, and what
    `download_synergy` raises.
    """
    folder = planned_data_dir(data, root, rendering)
    if str(data) == "rendered":
        from rendered_players.dataset import render_dataset

        render_dataset(out_dir=folder, **(rendering or {}))
    elif str(data) == "synergy":
        download_synergy(folder.parent, accept_md5=accept_md5)
    return folder


def planned_data_dir(data="rendered", root=Path("runs/data"), rendering=None) -> Path:
    """The absolute folder that `prepare_data` returns for the same arguments, without making anything.

    Raises FileNotFoundError for a user's folder that is missing or in no layout.
    """
    root = Path(root).absolute()
    if str(data) == "rendered":
        return root / _rendered_name(rendering or {})
    if str(data) == "synergy":
        return root / "synergy" / "data_reid"
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {data} is missing: give rendered, synergy or a folder of crops")
    return find_root(folder).absolute()


def _rendered_name(rendering):
    """A name for all settings in force, defaults too, that do change the images (`workers` does not)."""
    from rendered_players.dataset import RENDERER_VERSION, render_dataset

    parameters = inspect.signature(render_dataset).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("out_dir", "workers")}
    unknown = sorted(set(rendering) - set(defaults) - {"workers"})
    if unknown:
        raise ValueError(f"rendering has no setting {unknown[0]}: it has {', '.join(defaults)}, workers")
    settings = defaults | {name: value for name, value in rendering.items() if name != "workers"}
    if settings["difficulty"] == defaults["difficulty"]:
        del settings["difficulty"]  # sets of the default are older than the setting, and keep their name
    return f"rendered-{digest([RENDERER_VERSION, settings])[:10]}"


def download_synergy(target_dir, accept_md5=None, url=URL) -> Path:
    """The data_reid folder of the Synergy Re-ID set under `target_dir`, downloaded and extracted where it is not there.

    A zip that lies at target_dir/synergyreid_data.zip is used without network. An interrupted download leaves a
    `.part` file that the next call resumes; the zip and the folder take their names only when whole and checked.
    `accept_md5` lets one more MD5 (32 hex digits) pass. `url` replaces the toolkit's address.

    Raises ConnectionError saying what to put where when the download fails; ValueError for an unknown MD5, a zip that
    is damaged, hostile (paths outside the target, links, decompression bomb) or not in the layout.
    """
    if accept_md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", accept_md5):
        raise ValueError(f"--accept-md5 {accept_md5!r} is no MD5: give 32 hexadecimal digits")
    accepted = {*KNOWN_MD5.values(), (accept_md5 or "").lower()}
    target_dir = Path(target_dir).absolute()
    data_dir, zip_path = target_dir / "data_reid", target_dir / ZIP_NAME
    if data_dir.is_dir():  # it is whole, and may lie in a folder that cannot be written
        return data_dir
    target_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(target_dir / ".download.lock"):
        if data_dir.is_dir():
            return data_dir
        if zip_path.is_file():
            _check_md5(zip_path, accepted)
        else:
            part = zip_path.with_name(zip_path.name + ".part")
            whole = part.exists() and _md5(part) in accepted  # it was refused before, and is accepted now
            if not whole and _download(url, part) and _md5(part) not in accepted:
                part.unlink()  # what was resumed may be halves of two files
                _download(url, part)
            _check_md5(part, accepted)
            part.replace(zip_path)
        extract_data(zip_path, data_dir)
    return data_dir


def _md5(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _check_md5(path, accepted):
    found = _md5(path)
    if found not in accepted:
        sums = ", ".join(f"{known} ({year})" for year, known in KNOWN_MD5.items())
        raise ValueError(
            f"{path} has the MD5 {found}; known are {sums}: delete it to download again, "
            f"or accept it with --accept-md5 {found}"
        )


def _download(url, part) -> bool:
    """Download to the .part file, going on behind what is there; returns whether anything was there.

    Repeats broken connections and server errors after WAITS_S seconds. Raises ConnectionError, in one line, with what
    to do by hand.
    """
    import requests

    resumed = False
    for wait in (*WAITS_S, None):
        have = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        again = True
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
                status = response.status_code
                resumed |= status == 206
                if status in (200, 206):
                    _write_body(response, part, have if status == 206 else 0)
                    return resumed
                if status == 416:  # nothing lies behind what is there
                    if response.headers.get("Content-Range", "").endswith(f"/{have}"):
                        return resumed
                    part.unlink()
                reason, again = f"HTTP status {status}", status >= 500 or status in (416, 429)
        except requests.RequestException as error:
            reason = type(error).__name__
        if not again or wait is None:
            break
        time.sleep(wait)
    by_hand = f"fetch it by hand, put it at {part.with_suffix('')}, and run again"
    raise ConnectionError(f"{url} cannot be downloaded ({reason}): {by_hand}")


def _write_body(response, part, start):
    from tqdm import tqdm

    length = response.headers.get("Content-Length", "")
    size = start + int(length) if length.isdigit() else None
    # disable=None: a bar on a terminal, nothing in a log.
    bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=ZIP_NAME, disable=None)
    with bar, part.open("ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def extract_data(zip_path, data_dir) -> Path:
    """Extract the one data set in `zip_path` as `data_dir`, whole or not at all; returns `data_dir`.

    Raises ValueError, before or without leaving anything, where the zip is damaged, encrypted, hostile or holds not
    exactly one reid_training folder.
    """
    partial_dir = data_dir.with_name(f".{data_dir.name}.partial")
    _remove(partial_dir)
    try:
        with zipfile.ZipFile(zip_path) as archive:
            for member in _safe_members(archive, zip_path):
                archive.extract(member, partial_dir)
        roots = [folder.parent for folder in partial_dir.rglob("reid_training") if folder.is_dir()]
        if len(roots) != 1:
            raise ValueError(f"{zip_path} holds {len(roots)} reid_training folders, not one: give the challenge's zip")
        roots[0].replace(data_dir)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{zip_path} cannot be extracted ({error}): delete it and fetch it again") from error
    finally:
        _remove(partial_dir)
    return data_dir


def _remove(folder):
    if folder.exists():
        shutil.rmtree(folder)


def _safe_members(archive, zip_path):
    """The members worth extracting; raises ValueError naming the first that must not be."""
    members = archive.infolist()
    for member in members:
        member.filename = member.filename.replace("\\", "/")  # as some programs on Windows write them
        name = PurePosixPath(member.filename)
        kind = stat.S_IFMT(member.external_attr >> 16)
        fault = None
        if name.is_absolute() or ".." in name.parts or re.search(r"[:\0]", member.orig_filename):
            fault = "leads out of the target folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "is a link or special file"
        if fault:
            raise ValueError(f"{zip_path} is not safe: {member.filename!r} {fault}; fetch the challenge's own zip")
    unpacked, packed = (sum(getattr(m, name) for m in members) for name in ("file_size", "compress_size"))
    if len(members) > MAX_FILES or unpacked > MAX_BYTES or (unpacked > 2**24 and unpacked > MAX_RATIO * packed):
        raise ValueError(
            f"{zip_path} is not safe: {len(members)} files of {unpacked} bytes packed into {packed} look like "
            "a decompression bomb; fetch the challenge's own zip"
        )
    return [member for member in members if not any(map(is_clutter, PurePosixPath(member.filename).parts))]
