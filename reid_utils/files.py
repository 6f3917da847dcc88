"""Files written whole or not at all (text, JSON, arrays), and hashes of what they hold."""

import hashlib
import json
import os
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path):
    """Yield a temporary name beside `path` that takes its place at the end, or goes where the block fails.

    The folder is made if need be. An interrupted write leaves the former file untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write text (str, UTF-8) to a file, atomically. Raises OSError (disk full, read-only folder).

    A byte of a file name that is no UTF-8 is written as \\udcff, which JSON reads back as it was.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n", errors="backslashreplace")


def write_json(path, value):
    """Write a plain value as indented JSON, atomically. Raises ValueError for NaN, TypeError for objects."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path):
    """The value of a JSON file, or None where there is no such file. Raises ValueError naming a damaged file."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON ({error}); delete it and run again") from None


_CLUTTER = ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "__macosx", "icon\r")
_CLUTTER += ("@eadir", "$recycle.bin", "system volume information", "lost+found")


def is_clutter(name):
    """Whether a file or folder of this name is hidden, or one that an operating system leaves behind."""
    return name.startswith(".") or name.casefold() in _CLUTTER


def save_arrays(path, **arrays):
    """Write arrays to an npz file, atomically and without pickles; equal arrays give equal bytes.

    Raises ValueError naming an array of Python objects.
    """
    import numpy as np

    path = Path(path)
    for name, array in arrays.items():
        if np.asarray(array).dtype.hasobject:
            raise ValueError(f"array {name!r} for {path.name} holds Python objects; convert it to numbers or text")
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def load_arrays(path):
    """The arrays of an npz file -> {name: array}; pickles are refused.

    Raises FileNotFoundError, or ValueError naming a damaged file.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or holds pickles ({error}); make it again of numbers and text") from None


def file_hash(path):
    """SHA-256 (hex) of a file."""
    with Path(path).open("rb") as file:  # weights may be larger than the memory that is left
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path):
    """[size in bytes, time of the last change in ns] of a file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def altered(root, contents):
    """Names of the files below `root` (Path) that no longer hold what they held; one that is gone is not among them.

    contents: {name: [*stamp, file_hash]} of then. A file is read only where its stamp is another.
    """
    there = {root / name: kept for name, kept in contents.items() if (root / name).exists()}
    changed = [path for path, kept in there.items() if stamp(path) != kept[:2] and file_hash(path) != kept[2]]
    return [path.relative_to(root).as_posix() for path in changed]


def digest(value):
    """SHA-256 (32 hex digits) of bytes, text or a plain value."""
    if not isinstance(value, bytes | str):
        value = json.dumps(value, sort_keys=True)
    return hashlib.sha256(value.encode() if isinstance(value, str) else value).hexdigest()[:32]


def folder_fingerprint(folder):
    """Content hash (32 hex digits) of a folder's files by relative name, but for clutter; raises FileNotFoundError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [name for name in names if not any(map(is_clutter, name.parts))]
    lines = "".join(f"{name.as_posix()}\0{file_hash(folder / name)}\n" for name in kept)
    return digest(os.fsencode(lines))
