"""What Python code does and what it stands on, told by content: modules that are imported, libraries installed."""

import ast
import functools
import json
import re
from importlib import metadata
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from reid_utils.files import digest, file_hash, is_clutter


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


def imported_code(names, packages, root, left_out=(), kept=()):
    """{module: code_digest} of the modules of `packages` (names) under the folder `root` that importing `names` reads.

    Imports inside functions count, and every module's own package. left_out: packages and modules that are passed
    over, and with them what only they import, but for the modules `kept`. Files are read once a process.
    """
    waiting, found = set(names), {}
    while waiting:
        module = waiting.pop()
        passed_over = module not in kept and any(f"{module}.".startswith(f"{other}.") for other in left_out)
        if module.partition(".")[0] not in packages or module in found or passed_over:
            continue
        path = Path(root).joinpath(*module.split("."))
        path = next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
        if path is not None:
            found[module], more = _read_module(module, path)
            waiting |= more
    return dict(sorted(found.items()))


@functools.cache
def _read_module(module, path):
    """The code_digest of a module and the names that it may import, its package among them."""
    source, parent = path.read_text(encoding="utf-8-sig"), module.rpartition(".")[0]
    return code_digest(source), imported_names(source, module if path.name == "__init__.py" else parent) | {parent}


@functools.cache
def installed_versions(*names):
    """{normalised name: version} of the distributions `names` (str) that this interpreter would import.

    Where a distribution was installed from a folder or a repository, its version is followed by a digest of its Python
    files. Read once a process.
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
        return [[str(name), file_hash(folder / name)] for name in names if not any(map(is_clutter, name.parts))]
    return [[str(file), file.hash.value] for file in distribution.files or () if origin and file.suffix == ".py"]
