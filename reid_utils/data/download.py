"""Fetch the Synergy Re-ID zip: resumable download, MD5 check, safe and atomic extraction."""

import hashlib
import json
import re
import shutil
import stat
import time
import warnings
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from filelock import FileLock

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


class _Unfinished(Exception):
    """A try that broke off and may succeed when made again."""


def download_synergy(target_dir, year=2023, accept_md5=None, url=None) -> Path:
    """The data_reid folder of the Synergy Re-ID set under `target_dir`, downloaded and extracted where it is not there.

    A zip that lies at target_dir/synergyreid_data.zip is used without network. An interrupted download leaves a
    `.part` file that the next call resumes; the zip and the folder take their names only when whole and checked.
    `year` (2022 or 2023) is the challenge set expected: the other year's zip is taken with a warning. `accept_md5`
    lets one more MD5 (32 hex digits) pass. `url` replaces the toolkit's address.

    Raises ConnectionError saying what to put where when the download fails; ValueError for an unknown MD5, a zip that
    is damaged, hostile (paths outside the target, links, decompression bomb) or not in the layout.
    """
    if year not in KNOWN_MD5:
        raise ValueError(f"year is {year!r}: give {' or '.join(map(str, KNOWN_MD5))}")
    if accept_md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", accept_md5):
        raise ValueError(f"--accept-md5 {accept_md5!r} is no MD5: give 32 hexadecimal digits")
    target_dir = Path(target_dir).absolute()
    target_dir.mkdir(parents=True, exist_ok=True)
    data_dir, zip_path = target_dir / "data_reid", target_dir / ZIP_NAME
    with FileLock(target_dir / ".download.lock"):
        if data_dir.is_dir():
            return data_dir
        if zip_path.is_file():
            check_md5(zip_path, year, accept_md5)
        else:
            part = fetch(url or URL, zip_path)
            check_md5(part, year, accept_md5)
            part.replace(zip_path)
            _state_path(part).unlink(missing_ok=True)
        extract_data(zip_path, data_dir)
    return data_dir


def check_md5(path, year, accept_md5=None) -> str:
    """The file's MD5 where it is a known one or `accept_md5`; warns for the other year's; else raises ValueError."""
    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found == KNOWN_MD5[year] or (accept_md5 and found == accept_md5.lower()):
        return found
    for other, known in KNOWN_MD5.items():
        if found == known:
            warnings.warn(f"{path} is the {other} challenge zip, not {year}'s: its challenge set differs", stacklevel=3)
            return found
    sums = ", ".join(f"{known} ({other})" for other, known in KNOWN_MD5.items())
    raise ValueError(
        f"{path} has the MD5 {found}; known are {sums}: delete it to download again, "
        f"or accept it with --accept-md5 {found}"
    )


def fetch(url, zip_path) -> Path:
    """Download `url` to `zip_path` + ".part", resuming what is there; returns the whole .part file.

    Retries broken connections and server errors after WAITS_S seconds; progress is drawn on a terminal only.
    Raises ConnectionError, in one line, with what to do by hand.
    """
    part = zip_path.with_name(zip_path.name + ".part")
    if part.exists() and part.stat().st_size == _read_state(part).get("size"):
        return part  # whole, but its MD5 was refused before
    for wait in (*WAITS_S, None):
        try:
            _fetch_once(url, part)
            return part
        except _Unfinished as error:
            reason = error
        if wait is not None:
            time.sleep(wait)
    raise ConnectionError(f"{url} cannot be downloaded ({reason}): {_by_hand(zip_path)}")


def _by_hand(zip_path):
    return f"fetch it by hand, put it at {zip_path}, and run again"


def _state_path(part):
    return part.with_name(part.name + ".json")


def _fetch_once(url, part):
    import requests

    have = part.stat().st_size if part.exists() else 0
    state = _read_state(part)
    headers = {"Accept-Encoding": "identity"}
    if have and state.get("url") == url:
        headers["Range"] = f"bytes={have}-"
        if state.get("validator"):
            headers["If-Range"] = state["validator"]
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
            _receive(response, url, part, have if "Range" in headers else 0, state)
    except requests.RequestException as error:
        raise _Unfinished(type(error).__name__) from error


def _receive(response, url, part, have, state):
    """Write a response to the .part file, appending where it continues the `have` bytes that are there."""
    if response.status_code == 416:
        part.unlink(missing_ok=True)
        raise _Unfinished("the unfinished file does not fit the one on the server")
    if response.status_code >= 500 or response.status_code == 429:
        raise _Unfinished(f"HTTP status {response.status_code}")
    if response.status_code not in (200, 206):
        raise ConnectionError(
            f"{url} cannot be downloaded (HTTP status {response.status_code}): {_by_hand(part.with_suffix(''))}"
        )
    start = have if response.status_code == 206 else 0
    size = _whole_size(response, start)
    if response.status_code == 206 and (size is None or size != state.get("size")):
        part.unlink(missing_ok=True)
        raise _Unfinished("the file on the server has changed")
    _write_state(part, {"url": url, "size": size, "validator": _validator(response)})
    _write_body(response, part, start, size)
    if size is not None and part.stat().st_size != size:
        raise _Unfinished(f"{part.stat().st_size} of {size} bytes came")


def _whole_size(response, start):
    """Bytes of the whole file; None where the server does not say, or where a 206 starts elsewhere than asked."""
    if response.status_code == 206:
        match = re.fullmatch(rf"bytes {start}-[0-9]+/([0-9]+)", response.headers.get("Content-Range", ""))
        return int(match[1]) if match else None
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _validator(response):
    """What If-Range may compare: a strong ETag, else the date of change, else None."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified")


def _write_body(response, part, start, size):
    from tqdm import tqdm

    # disable=None: a bar on a terminal, nothing in a log.
    bar = tqdm(total=size, initial=start, unit="B", unit_scale=True, desc=ZIP_NAME, disable=None)
    with bar, part.open("ab" if start else "wb") as file:
        for chunk in response.iter_content(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))


def _read_state(part):
    try:
        return json.loads(_state_path(part).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # without its state an unfinished download starts anew


def _write_state(part, state):
    temporary = _state_path(part).with_suffix(".tmp")
    temporary.write_text(json.dumps(state), encoding="utf-8")
    temporary.replace(_state_path(part))


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
        fault = _member_fault(member)
        if fault:
            raise ValueError(f"{zip_path} is not safe: {member.filename!r} {fault}; fetch the challenge's own zip")
    unpacked, packed = (sum(getattr(m, name) for m in members) for name in ("file_size", "compress_size"))
    if len(members) > MAX_FILES or unpacked > MAX_BYTES or (unpacked > 2**24 and unpacked > MAX_RATIO * packed):
        raise ValueError(
            f"{zip_path} is not safe: {len(members)} files of {unpacked} bytes packed into {packed} look like "
            "a decompression bomb; fetch the challenge's own zip"
        )
    return [member for member in members if not member.filename.startswith("__MACOSX/")]


def _member_fault(member):
    name = PurePosixPath(member.orig_filename)
    if name.is_absolute() or ".." in name.parts or re.search(r"[\\:\0]", member.orig_filename):
        return "leads out of the target folder"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
        return "is a link or special file"
    return None
