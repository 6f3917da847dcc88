"""Decode crops, letterbox them, and keep the result in a memory-mapped cache."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock

from reid_utils.files import digest, replacing


def decode(path):
    """Read one image file as RGB.

    Returns a (height, width, 3) uint8 array. Raises ValueError that names a file which is no readable image.
    """
    data = np.fromfile(path, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ValueError(f"{path} is not a readable image; fetch it again or take it out of the data folder")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def letterbox(image, height, width):
    """Fit an image into height × width pixels, aspect ratio kept, bilinear, centred on zeros.

    (h, w, 3) uint8 -> (height, width, 3) uint8. Source: the published code's resizing, which pads with zeros and takes
    OpenCV's exact form of bilinear, the same bits on every processor.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = min(height, max(1, round(image.shape[0] * scale)))
    inner_width = min(width, max(1, round(image.shape[1] * scale)))
    inner = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR_EXACT)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def load_images(data_dir, paths, height, width, cache_dir, fingerprint):
    """Letterboxed images of a data set, decoded once and memory-mapped from then on.

    `paths` are relative to `data_dir`; returns a read-only (N, height, width, 3) uint8 array in their order. The cache
    file's name is a hash of the data fingerprint, the size and the paths, so changed data never meets an old cache.
    Raises ValueError naming the first unreadable image; a killed run leaves no file under the final name.
    """
    name = digest(["letterbox, exact", fingerprint, height, width, list(paths)])[:20]
    cache_dir = Path(cache_dir)
    target = cache_dir / f"{name}.npy"
    if not target.exists():  # what is there is whole, and may lie in a folder that cannot be written
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{name}.lock"):
            if not target.exists():
                _write_cache(target, Path(data_dir), paths, height, width)
    return np.load(target, mmap_mode="r")


def _write_cache(target, data_dir, paths, height, width):
    with replacing(target) as part:
        cache = np.lib.format.open_memmap(part, mode="w+", dtype=np.uint8, shape=(len(paths), height, width, 3))

        def fill(i):
            cache[i] = letterbox(decode(data_dir / paths[i]), height, width)

        with ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(len(paths))))
        cache.flush()
