"""The key of a run: a hash of everything that decides its result; whether a run is done, and if not, why not."""

import ast
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from notebook_study.study_file import StudyError, read_cells
from reid_utils.code import code_digest
from reid_utils.files import digest, file_hash, is_clutter, read_json

PACKAGE = Path(__file__).resolve().parent
TRAINS = "reid_utils.learning.training"  # what a notebook imports that trains
DRAW_OR_PRINT = ("reid_utils.views", "reid_utils.paper")  # except for what the next run reads:
RECORDS = ("reid_utils.paper", "reid_utils.paper.results")


def key_parts(run, notebook, lock, threads, upstream, data, portable=False):
    """Everything that decides a run's result, by name, with no absolute path in it.

    run: Run; notebook: its file; lock: requirements.lock (a missing one counts as empty); threads: int;
    upstream: {run id: key}; data: fingerprint of the data (str); portable: as the study
    file has it, named only where it is on.
    """
    lock = Path(lock)
    return {
        "parameters": run.parameters,
        "modules": imported_modules(notebook),  # names a broken cell
        "notebook": digest([_cell_digest(source) for kind, source, _ in read_cells(notebook) if kind == "code"]),
        "requirements": digest(lock.read_bytes() if lock.exists() else b""),
        "threads": threads,
        "upstream": upstream,
        "data": data,
        **({"portable": True} if portable else {}),
    }


def run_keys(runs, notebooks, lock, threads, data, portable=False):
    """{run id: (key, parts)} for runs in plan order; None where the data's fingerprint `data` is not known yet."""
    if data is None:
        return None
    keys = {}
    for run in runs:
        upstream = {name: keys[name][0] for name in run.inputs}
        parts = key_parts(run, Path(notebooks) / f"{run.notebook}.ipynb", lock, threads, upstream, data, portable)
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
    """{module: code_digest} of the package's modules that decide a notebook's results, imported in any way.

    Imports inside functions count; the engine's own modules do not, nor, where the notebook trains, those that only
    draw or print: another colour must not cost a training. Read anew once a process.
    """
    waiting, found = _notebook_imports(notebook), {}
    left_out = DRAW_OR_PRINT if TRAINS in waiting else ()
    while waiting:
        module = waiting.pop()
        path, house = _source(module), ".".join(module.split(".")[:2])
        if module not in found and path is not None and (house not in left_out or module in RECORDS):
            found[module], names = _read_module(module, path)
            waiting |= names
    return dict(sorted(found.items()))


@functools.cache
def _read_module(module, path):
    """The code_digest of a module and the names that it may import, its package among them."""
    source, parent = path.read_text(encoding="utf-8"), module.rpartition(".")[0]
    return code_digest(source), _imports(source, module if path.name == "__init__.py" else parent) | {parent}


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
    return "\n".join("" if _is_magic(line) else line for line in source.splitlines() if not source.startswith("%%"))


def _is_magic(line):
    return line.lstrip().startswith(("%", "!"))


def _cell_digest(source):
    """What a cell does: its code and IPython's own lines, without comments, docstrings and layout."""
    magics = source if source.startswith("%%") else [line for line in source.splitlines() if _is_magic(line)]
    return [code_digest(_without_magics(source)), magics]


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
    if module.partition(".")[0] not in ("reid_utils", "rendered_players"):
        return None
    path = PACKAGE.parent.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def folder_fingerprint(folder):
    """Content hash (32 hex digits) of a folder's files by relative name, but for clutter; raises FileNotFoundError."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [name for name in names if not any(map(is_clutter, name.parts))]
    lines = "".join(f"{name.as_posix()}\0{file_hash(folder / name)}\n" for name in kept)
    return digest(os.fsencode(lines))


@dataclass(frozen=True)
class State:
    """Where a run stands: name "done", "stale" or "to do"; why; seconds it took or is thought to take."""

    name: str
    reason: str
    seconds: float


def run_states(runs, folders, keys):
    """{run id: State}; `keys` as from run_keys, or None where the data do not exist yet."""
    return {run.id: _state(run, folders, keys and keys[run.id]) for run in runs}


def _state(run, folders, key):
    record = read_json(folders.record(run.id))
    if record is None:
        failed = folders.failure(run.id).exists()
        return State("to do", "failed last time" if failed else "", 60 * run.minutes)
    if key is None:
        return State("to do", "the data are not made yet", record["seconds"])
    if record["key"] != key[0]:
        return State("stale", ", ".join(changes(record["parts"], key[1])), record["seconds"])
    lost = [name for name in record["files"] if not (folders.root / name).exists()]
    if lost:
        return State("stale", f"{lost[0]} is gone", record["seconds"])
    return State("done", "", record["seconds"])
