"""Whether the images of a data set are whole, and which data set they are: decoding checks and a fingerprint."""

import hashlib
import os
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reid_utils.data.layouts import beside, find_root, layout_rows
from reid_utils.files import digest, file_hash, read_json, write_json

MAX_PIXELS = 64 * 2**20
# A file written again within a clock tick keeps its size and time, so hashes of files this young are not kept.
_SETTLED_NS = 2 * 10**9


def validate_images(data_dir, manifest, workers=1) -> None:
    """Decode every image of the manifest on `workers` threads; returns nothing.

    Raises ValueError naming the first file, in the manifest's order, that is not a whole 8-bit JPEG or PNG with three
    channels and at most 64 Mpixel.
    """
    paths = [Path(data_dir) / path for path in manifest["path"]]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for path, fault in zip(paths, pool.map(_fault, paths), strict=True):
            if fault:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"{path} {fault}")


def _fault(path):
    """What is wrong with an image file and how to fix it, or None."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"has {image.width} × {image.height} pixels, above 64 Mpixel: give a crop of one player"
            if image.mode != "RGB":
                return f"has the colour mode {image.mode}: convert it to 8-bit RGB"
            image.load()
    except UnidentifiedImageError:
        return "is not a JPEG or PNG file: fetch it again or convert it"
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({error}): fetch it again or remove it"
    return None


def data_fingerprint(data_dir, cache=None) -> str:
    """SHA-256 (hex) over the sorted (relative path, SHA-256 of the content) of all images, lists and cameras.csv.

    Paths are relative to the folder that has the layout, so a moved copy has the same fingerprint; the challenge truth
    is no part of it. Content hashes are kept in the JSON file `cache` by size and modification time; without it under
    the user's cache folder, or a temporary one where that cannot be written, never in `data_dir`.
    """
    root = find_root(data_dir).resolve()
    cache = Path(cache) if cache else _default_cache(root)
    known = _read_cache(cache)
    files = {row.path: root / row.path for row in layout_rows(root)}
    files |= {path.name: path for path in root.glob("list_*.txt")}
    cameras = beside(root, "cameras.csv")
    if cameras:
        files["cameras.csv"] = cameras
    started = time.time_ns()
    states = {name: _file_state(file, known.get(name)) for name, file in sorted(files.items())}
    settled = {name: state for name, state in states.items() if state[1] < started - _SETTLED_NS}
    if settled != known:
        _write_cache(cache, settled)
    lines = "".join(f"{name}\0{content}\n" for name, (_, _, content) in states.items())
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _file_state(file, known):
    """[size, mtime_ns, SHA-256] of a file; the known hash where size and time are unchanged."""
    stat = file.stat()
    if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
        return known
    return [stat.st_size, stat.st_mtime_ns, file_hash(file)]


def _default_cache(root):
    """A cache is a convenience: where the home is missing or cannot be written, it lies in a temporary folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/dev/null"), ".cache")
    name = Path("reid_study", "fingerprints", f"{digest(os.fsencode(root))[:20]}.json")
    for folder in (Path(home), Path(tempfile.gettempdir(), f"reid_study-{os.getuid()}")):
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access((folder / name).parent, os.W_OK):
            return folder / name
    return Path(tempfile.mkdtemp()) / name


def _write_cache(cache, states):
    try:
        write_json(cache, states)
    except (OSError, UnicodeEncodeError) as error:  # a name may hold bytes that are no UTF-8
        warnings.warn(
            f"the fingerprint cache {cache} cannot be written ({error}): hashing again next time", stacklevel=3
        )


def _read_cache(cache):
    try:
        known = read_json(cache)
    except ValueError:
        return {}  # a cache: what is damaged is computed anew
    well_formed = isinstance(known, dict) and all(isinstance(s, list) and len(s) == 3 for s in known.values())
    return known if well_formed else {}
