"""Whether the images of a data set are whole, and which data set they are: decoding checks and a fingerprint."""

import hashlib
import io
import json
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from reid_utils.data.synergy import FOLDERS, beside, file_names, find_root

MAX_PIXELS = 64 * 2**20
# A file written again within a clock tick keeps its size and time, so hashes of files this young are not kept.
_SETTLED_NS = 2 * 10**9


def validate_images(data_dir, manifest, workers=1) -> None:
    """Decode every image of the manifest on `workers` threads; returns nothing.

    Raises ValueError naming the first file, in the manifest's order, that is not a whole 8-bit JPEG with three
    channels and at most 64 Mpixel.
    """
    paths = [Path(data_dir) / path for path in manifest["path"]]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        for path, fault in zip(paths, pool.map(_fault, paths), strict=True):
            if fault:
                pool.shutdown(cancel_futures=True)
                raise ValueError(f"{path} {fault}")


def _fault(path):
    """What is wrong with an image file and the mend, or None."""
    data = path.read_bytes()
    if not data.startswith(b"\xff\xd8\xff"):
        return "is not a JPEG file: fetch it again or convert it to JPEG"
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                return f"has {image.width} × {image.height} pixels, above 64 Mpixel: give a crop of one player"
            if image.mode != "RGB":
                return f"has the colour mode {image.mode}: convert it to 8-bit RGB"
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({error}): fetch it again or remove it"
    return _decoding_fault(data)


def _decoding_fault(data):
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        return "cannot be decoded to three 8-bit channels: convert it to 8-bit RGB JPEG or remove it"
    return None


def data_fingerprint(data_dir, cache=None) -> str:
    """SHA-256 (hex) over the sorted (relative path, SHA-256 of the content) of all images and cameras.csv.

    Paths are relative to the folder that holds reid_training, so a moved copy has the same fingerprint; the challenge
    truth is no part of it. Content hashes are kept in the JSON file `cache` by size and modification time; without
    it under the user's cache folder, never in `data_dir`. A cache that cannot be written gives a warning.
    """
    root = find_root(data_dir).resolve()
    cache = Path(cache) if cache else _default_cache(root)
    known = _read_cache(cache)
    files = {f"{folder}/{name}": root / folder / name for folder in FOLDERS for name in _names(root, folder)}
    cameras = beside(root, "cameras.csv")
    if cameras:
        files["cameras.csv"] = cameras
    started = time.time_ns()
    states = {name: _file_state(file, known.get(name)) for name, file in sorted(files.items())}
    settled = {name: state for name, state in states.items() if state[1] < started - _SETTLED_NS}
    if settled != known:
        _write_cache(cache, settled)
    lines = "".join(f"{name}\0{digest}\n" for name, (_, _, digest) in states.items())
    return hashlib.sha256(lines.encode()).hexdigest()


def _names(root, folder):
    return file_names(root, folder) if (root / folder).is_dir() else []


def _file_state(file, known):
    """[size, mtime_ns, SHA-256] of a file; the known hash where size and time are unchanged."""
    stat = file.stat()
    if known and known[:2] == [stat.st_size, stat.st_mtime_ns]:
        return known
    with file.open("rb") as opened:
        return [stat.st_size, stat.st_mtime_ns, hashlib.file_digest(opened, "sha256").hexdigest()]


def _default_cache(root):
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reid_study" / "fingerprints"
    return folder / f"{hashlib.sha256(str(root).encode()).hexdigest()[:20]}.json"


def _read_cache(cache):
    try:
        known = json.loads(cache.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # a cache: what is absent or damaged is computed anew
    well_formed = isinstance(known, dict) and all(isinstance(s, list) and len(s) == 3 for s in known.values())
    return known if well_formed else {}


def _write_cache(cache, states):
    part = cache.with_name(f"{cache.name}.{os.getpid()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(states), encoding="utf-8")
        part.replace(cache)
    except OSError as error:
        warnings.warn(
            f"the fingerprint cache {cache} cannot be written ({error}): hashing again next time", stacklevel=3
        )
