"""Small files written whole or not at all: text and JSON."""

import json
import os
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
    """Write text (str, UTF-8) to a file, atomically. Raises OSError (disk full, read-only folder)."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


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
