"""The key of a run: a hash of everything that decides its result, and the reasons why one differs from another."""

import ast
import functools
import hashlib
from pathlib import Path

from reid_utils.files import digest
from reid_utils.study.notebooks import read_cells
from reid_utils.study.study_file import StudyError

PACKAGE = Path(__file__).resolve().parents[1]


def key_parts(run, notebook, lock, threads, upstream, data):
    """Everything that decides a run's result, by name, with no absolute path in it.

    run: Run; notebook: its file; lock: requirements.lock (a missing one counts as empty); threads: int;
    upstream: {run id: key}; data: fingerprint of the data (str).
    """
    lock = Path(lock)
    return {
        "notebook": digest([cell[:2] for cell in read_cells(notebook)]),
        "parameters": run.parameters,
        "modules": imported_modules(notebook),
        "requirements": digest(lock.read_bytes() if lock.exists() else b""),
        "threads": threads,
        "upstream": upstream,
        "data": data,
    }


def run_keys(runs, notebooks, lock, threads, data):
    """{run id: (key, parts)} for runs in plan order; None where the data's fingerprint `data` is not known yet."""
    if data is None:
        return None
    keys = {}
    for run in runs:
        upstream = {name: keys[name][0] for name in run.inputs}
        parts = key_parts(run, Path(notebooks) / f"{run.notebook}.ipynb", lock, threads, upstream, data)
        keys[run.id] = (digest(parts), parts)
    return keys


def changes(old, new):
    """What differs between two sets of key parts, in words; empty where nothing does."""
    found = []
    for part in sorted(old.keys() | new.keys()):
        before, after = old.get(part), new.get(part)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            names = [name for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]
            kind = {"parameters": "parameter ", "upstream": "upstream "}.get(part, "")
            found += [f"{kind}{name} changed" for name in names]
        else:
            found.append(f"{part} changed")
    return found


@functools.cache
def imported_modules(notebook):
    """{module: hash of its source} of the package's modules that a notebook imports, directly or through others.

    Imports inside functions count. Read anew once a process.
    """
    waiting, found = _notebook_imports(notebook), {}
    while waiting:
        module = waiting.pop()
        path = _source(module)
        if module not in found and path is not None:
            source = path.read_text(encoding="utf-8")
            found[module] = digest(source)
            parent = module.rpartition(".")[0]
            waiting |= _imports(source, module if path.name == "__init__.py" else parent) | {parent}
    return dict(sorted(found.items()))


def _notebook_imports(notebook):
    """The module names that a notebook's code cells may import. Raises StudyError naming a cell that is not Python."""
    names = set()
    for number, (kind, source, _) in enumerate(read_cells(notebook), 1):
        if kind == "code":
            try:
                names |= _imports(_without_magics(source), "")
            except SyntaxError as error:
                raise StudyError(f"{notebook}: cell {number} has a syntax error in line {error.lineno}") from None
    return names


def _without_magics(source):
    """Cell source with IPython's own lines (%magic, !command) blanked, so that it is Python."""
    if source.startswith("%%"):
        return ""
    return "\n".join("" if line.lstrip().startswith(("%", "!")) else line for line in source.splitlines())


def _imports(source, package):
    """Every module name that a source may import; names taken from a module are tried as modules too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names


def _source(module):
    """The file of a module of this package or of the renderer, or None for anything else."""
    if module.partition(".")[0] not in (PACKAGE.name, "rendered_players"):
        return None
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def folder_fingerprint(folder):
    """Content hash (32 hex digits) of all files below a folder, by relative name. Raises FileNotFoundError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder).as_posix()}\0{content}\n".encode())
    return total.hexdigest()[:32]
