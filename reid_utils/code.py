"""What Python code does and what it stands on, told by content: modules that are imported, libraries installed."""

import ast
import base64
import functools
import hashlib
import json
import os
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from reid_utils.files import digest, is_clutter


def code_digest(source):
    """SHA-256 (32 hex digits) of what Python source (str) does: comments, docstrings and layout do not count.

    Raises SyntaxError.
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return digest(ast.unparse(tree))  # unlike ast.dump, alike under every version of Python


def imported_names(source, package=""):
    """Every module name (set) that source in `package` may import; names taken from a module count as modules too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def imported_code(names, packages, root, left_out=()):
    """{module: code_digest} of the modules of `packages` (names) under the folder `root` that importing `names` reads.

    Imports inside functions count, and every module's own package. left_out: modules that are passed over, as is what
    only they import. Files are read once a process.
    """
    waiting, found = set(names), {}
    while waiting:
        module = waiting.pop()
        if module.partition(".")[0] not in packages or module in found or _within(module, left_out):
            continue
        path = Path(root).joinpath(*module.split("."))
        path = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
        if path is not None:
            found[module], more = _read_module(module, path)
            waiting |= more
    return dict(sorted(found.items()))


def _within(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


@functools.cache
def _read_module(module, path):
    """The code_digest of a module and the names that it may import, its package among them."""
    source, parent = path.read_text(encoding="utf-8"), module.rpartition(".")[0]
    return code_digest(source), imported_names(source, module if path.name == "__init__.py" else parent) | {parent}


@functools.cache
def installed_versions(*names):
    """{normalised name: version} of the distributions `names` (str) that this interpreter would import.

    A version is followed by a digest of what it does not tell: the Python files of a distribution that was installed
    from a folder or a repository, and those that were edited since. Read once a process (0.2 s for 200 names).
    """
    found = {}
    for name in names:
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        own = _own_files(distribution)
        plain = re.sub(r"[-_.]+", "-", name).lower()
        found[plain] = f"{distribution.version}+{digest(own)[:8]}" if own else distribution.version
    return dict(sorted(found.items()))


def _own_files(distribution):
    """[name, hash] of a distribution's Python files that its version says nothing about."""
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")  # written unless it is from an index
    if origin.get("dir_info", {}).get("editable"):
        folder = Path(url2pathname(urlparse(origin["url"]).path))
        names = [path.relative_to(folder) for path in sorted(folder.rglob("*.py"))]
        return [[str(name), _hash(folder / name)] for name in names if not any(map(is_clutter, name.parts))]
    lines = [line.split(",") for line in (distribution.read_text("RECORD") or "").splitlines()]
    folder = distribution.locate_file("")
    written = max((_changed(folder / name) for name, *_ in lines if name.endswith(".dist-info/RECORD")), default=0.0)
    files = [[name, kept] for name, kept, *_ in lines if name.endswith(".py")]
    newer = [(name, kept) for name, kept in files if _changed(f"{folder}/{name}") > written]
    edited = [[name, now] for name, kept in newer if (now := f"sha256={_hash(folder / name)}") != kept]
    return [*(files if origin else ()), *edited]


def _changed(path):
    """When a file was written last (s), 0 where it is gone."""
    try:
        return os.stat(path).st_mtime  # noqa: PTH116 (a quarter of a Path's seconds)
    except FileNotFoundError:
        return 0.0


def _hash(path):
    """SHA-256 of a file as a wheel's RECORD writes it."""
    return base64.urlsafe_b64encode(hashlib.sha256(path.read_bytes()).digest()).rstrip(b"=").decode()
