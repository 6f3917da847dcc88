"""Whether the images of a data set are whole, and which data set they are: decoding checks and a fingerprint."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from reid_utils.data.images import decode
from reid_utils.data.layouts import beside, find_root, layout_rows
from reid_utils.files import file_hash


def validate_images(data_dir, manifest, workers=1):
    """Decode every image of the manifest on `workers` threads; returns nothing.

    Raises what `images.decode` raises for the first file, in the manifest's order, that it refuses.
    """
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda path: decode(Path(data_dir) / path).shape, manifest["path"]))


def data_fingerprint(data_dir):
    """SHA-256 (hex) over the sorted (relative path, SHA-256 of the content) of all images, lists, cameras and groups.

    Paths are relative to the folder that has the layout, so a moved copy has the same fingerprint; the challenge truth
    is no part of it.
    """
    root = find_root(data_dir)
    files = {path: root / path for path in layout_rows(root)["path"]}
    files |= {path.name: path for path in root.glob("list_*.txt")}
    given = (beside(root, name) for name in ("cameras.csv", "groups.csv"))
    files |= {file.name: file for file in given if file}
    lines = "".join(f"{name}\0{file_hash(file)}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()
