"""Where a study's data come from: rendered here, a folder of the user's, or the Synergy Re-ID zip, downloaded.

The download is resumable, checked by MD5, and extracted safely and atomically.
"""

import hashlib
import inspect
import re
import shutil
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from filelock import FileLock

from reid_utils.data.layouts import SIGNS, find_layout, layout_rows
from reid_utils.files import digest, is_clutter, write_text

# 2022: published in the challenge toolkit; 2023: from a participant's fork, not confirmed.
KNOWN_MD5 = {2022: "05715857791e2e88b2f11e4037fbec7d", 2023: "98fe8b85c154923742b7c14418f2b2d7"}
URL = (
    "https://github.com/DeepSportradar/player-reidentification-challenge/raw/master/"
    "baseline/data/synergyreid/raw/synergyreid_data.zip"
)
ZIP_NAME = "synergyreid_data.zip"
RETRIES = 3
TIMEOUTS_S = (10, 60)


def prepare_data(data="rendered", root="runs/data", rendering=None, accept_md5=None):
    """The absolute folder that has one of the layouts, made first where `data` asks for it.

    "rendered": renders with the keyword arguments `rendering` into a folder of `root` named after them, where
    `gallery_players` puts that many test players each into a gallery of their own (see `groups.csv`); "synergy":
    downloads into root/synergy (see `download_synergy` for `accept_md5`); anything else is a folder in one of the
    layouts and is only looked for. Several processes may call it at once: one does the work, the others wait. Raises
    FileNotFoundError for a folder that is missing or in no layout, ValueError for wrong rendering settings, and what
    `download_synergy` raises.
    """
    folder = planned_data_dir(data, root, rendering)
    if str(data) == "rendered":
        from rendered_players.dataset import render_dataset

        settings = dict(rendering or {})
        each = settings.pop("gallery_players", 0)
        render_dataset(out_dir=folder, **settings)
        if each and not (folder / "groups.csv").exists():
            _part_galleries(folder, each)
    elif str(data) == "synergy":
        download_synergy(folder.parent, accept_md5=accept_md5)
    return folder


def _part_galleries(folder, each):
    """Write groups.csv: test players in order, `each` to a gallery. A multiple of 8 keeps games whole."""
    test = layout_rows(folder).query("split == 'test'")
    group = test["player"].rank(method="dense").sub(1) // each + 1
    text = test[["path"]].assign(group=group.astype(int)).to_csv(index=False, lineterminator="\n")
    write_text(folder / "groups.csv", text)


def planned_data_dir(data="rendered", root="runs/data", rendering=None):
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
    layout, root = find_layout(folder)
    if layout == "crops":
        raise FileNotFoundError(f"{data} holds no {SIGNS}: a study needs crops to train on")
    return root.absolute()


def _rendered_name(rendering):
    """A name for all settings in force, defaults too, that do change the images (`workers` does not)."""
    from rendered_players.dataset import RENDERER_VERSION, render_dataset

    parameters = inspect.signature(render_dataset).parameters
    settings = {name: parameter.default for name, parameter in parameters.items() if name != "out_dir"}
    settings["gallery_players"] = 0
    unknown = sorted(set(rendering) - set(settings))
    if unknown:
        raise ValueError(f"rendering has no setting {unknown[0]}: it has {', '.join(settings)}")
    settings |= rendering
    del settings["workers"]
    if settings["difficulty"] == parameters["difficulty"].default:
        del settings["difficulty"]  # sets of the default are older than the setting, and keep their name
    if not settings["gallery_players"]:
        del settings["gallery_players"]
    return f"rendered-{digest([RENDERER_VERSION, settings])[:10]}"


def download_synergy(target_dir, accept_md5=None, url=URL):
    """The data_reid folder of the Synergy Re-ID set under `target_dir`, downloaded and extracted where it is not there.

    A zip that lies at target_dir/synergyreid_data.zip is used without network. Zip and folder take their names only
    when whole. `accept_md5` lets one more MD5 (32 hex digits) pass; `url` replaces the toolkit's address.

    Raises ConnectionError saying what to put where when the download fails; ValueError for an unknown MD5, and for a
    zip that is damaged or not in the layout.
    """
    if accept_md5 is not None and not re.fullmatch("[0-9a-fA-F]{32}", accept_md5):
        raise ValueError(f"--accept-md5 {accept_md5!r} is no MD5: give 32 hexadecimal digits")
    target_dir = Path(target_dir).absolute()
    data_dir, zip_path = target_dir / "data_reid", target_dir / ZIP_NAME
    if data_dir.is_dir():  # it is whole, and may lie in a folder that cannot be written
        return data_dir
    target_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(target_dir / ".download.lock"):
        if not data_dir.is_dir():
            if not zip_path.is_file():
                _download(url, zip_path)
            _check_md5(zip_path, {*KNOWN_MD5.values(), (accept_md5 or "").lower()})
            extract_data(zip_path, data_dir)
    return data_dir


def _download(url, zip_path):
    """Download to `zip_path`, which takes its name when it is whole, with progress on a terminal."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    partial_dir = zip_path.with_name(".download")
    shutil.rmtree(partial_dir, ignore_errors=True)
    files = pooch.create(partial_dir, "", registry={ZIP_NAME: None}, urls={ZIP_NAME: url}, retry_if_failed=RETRIES)
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUTS_S)
    try:
        Path(files.fetch(ZIP_NAME, downloader=downloader)).replace(zip_path)
    except OSError as error:  # those of requests are OSErrors too
        by_hand = f"fetch it by hand, put it at {zip_path}, and run again"
        raise ConnectionError(f"{url} cannot be downloaded ({error}): {by_hand}") from None
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)


def _check_md5(path, accepted):
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found not in accepted:
        sums = ", ".join(f"{known} ({year})" for year, known in KNOWN_MD5.items())
        raise ValueError(
            f"{path} has the MD5 {found}; known are {sums}: delete it to download again, "
            f"or accept it with --accept-md5 {found}"
        )


def extract_data(zip_path, data_dir):
    """Extract the one data set in `zip_path` as `data_dir`, whole or not at all; returns `data_dir`.

    Nothing leaves the folder: zipfile drops what leads out of it and writes links as plain files. Raises ValueError
    where the zip is damaged, encrypted or holds not exactly one reid_training folder.
    """
    partial_dir = data_dir.with_name(f".{data_dir.name}.partial")
    shutil.rmtree(partial_dir, ignore_errors=True)
    try:
        with zipfile.ZipFile(zip_path) as archive:
            for member in archive.infolist():
                member.filename = member.filename.replace("\\", "/")  # as some programs on Windows write them
                if not any(map(is_clutter, PurePosixPath(member.filename).parts)):
                    archive.extract(member, partial_dir)
        roots = [folder.parent for folder in partial_dir.rglob("reid_training") if folder.is_dir()]
        if len(roots) != 1:
            raise ValueError(f"{zip_path} holds {len(roots)} reid_training folders, not one: give the challenge's zip")
        roots[0].replace(data_dir)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise ValueError(f"{zip_path} cannot be extracted ({error}): delete it and fetch it again") from error
    finally:
        shutil.rmtree(partial_dir, ignore_errors=True)
    return data_dir
