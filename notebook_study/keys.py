"""The key of a run: a hash of everything that decides its result; whether a run is done, and if not, why not."""

import functools
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from notebook_study.study_file import StudyError, read_cells
from reid_utils.code import code_digest, imported_code, imported_names, installed_versions
from reid_utils.files import altered, digest, file_hash, read_json

PACKAGE = Path(__file__).resolve().parent


def key_parts(run, notebook, lock, threads, upstream, data, portable=False, contents=()):
    """Everything that decides a run's result, by name, with no absolute path in it but what parameters say.

    A parameter that names a file (start weights) counts by what the file holds, too. On which processor or GPU a run
    was made is no part: a study finished on one machine is read on another, and the results themselves say where.

    run: Run; notebook: its file; lock: requirements.lock, which names the libraries whose installed versions count (a
    missing one names none); threads: int; upstream: {run id: key}; data: fingerprint of the data (str); portable: as
    the study file has it; contents: {name: hash} of what the run reads beside all this.
    """
    named = {name: Path(notebook).parent / value for name, value in run.parameters.items() if isinstance(value, str)}
    files = {name: file_hash(path) for name, path in named.items() if os.path.isfile(path)} | dict(contents)  # noqa: PTH113
    return {
        "parameters": run.parameters,
        "modules": imported_modules(notebook),  # names a broken cell
        "notebook": digest([code_digest(source) for source in _python_of(notebook).values()]),
        "packages": installed_versions(*_libraries(notebook, Path(lock))),
        "threads": threads,
        "upstream": upstream,
        "data": data,
        "portable": portable,
        "files": files,
    }


def _libraries(notebook, lock):
    """Names (sorted) of what a lock pins, and of whatever else the notebook itself imports."""
    text = lock.read_text(encoding="utf-8-sig") if lock.exists() else ""
    named = {*re.findall(r"^[A-Za-z0-9][\w.-]*", text, re.MULTILINE)}
    named |= {name.partition(".")[0] for name in _notebook_imports(notebook)}
    return sorted(named - {*_rules()["packages"]})


def _rules():
    """The table [tool.notebook_study] of the repository's pyproject.toml: which modules decide a run's result."""
    return tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8-sig"))["tool"]["notebook_study"]


def run_keys(runs, notebooks, lock, threads, data, portable=False, contents=lambda run: ()):
    """{run id: (key, parts)} for runs in plan order; None where the data's fingerprint `data` is not known yet.

    contents: function of a run; the other arguments as in `key_parts`.
    """
    if data is None:
        return None
    keys = {}
    for run in runs:
        notebook, upstream = Path(notebooks) / f"{run.notebook}.ipynb", {name: keys[name][0] for name in run.inputs}
        parts = key_parts(run, notebook, lock, threads, upstream, data, portable, contents(run))
        keys[run.id] = (digest(parts), parts)
    return keys


def changes(old, new):
    """What differs between two sets of key parts, in words; empty where nothing does."""
    before, after = _named(old), _named(new)
    return [f"{name} changed" for name in sorted(before.keys() | after.keys()) if before.get(name) != after.get(name)]


def _named(parts):
    """Key parts as one mapping, what they are called in words -> value."""
    kinds = {"parameters": "parameter ", "upstream": "upstream ", "packages": "package ", "files": "content of "}
    items = [(part, value.items() if isinstance(value, dict) else [(part, value)]) for part, value in parts.items()]
    return {f"{kinds.get(part, '')}{name}": value for part, values in items for name, value in values}


@functools.cache
def imported_modules(notebook):
    """{module: code_digest} of the repository's modules that decide a notebook's results, imported in any way.

    These are modules of the rules' `packages`, imports inside functions too; where one of the `costly` is among them,
    not those that only draw or print (`drawing`, but for `records`): another colour must not cost a training. Read
    once a process.
    """
    rules = _rules()
    given = _notebook_imports(notebook), rules["packages"], PACKAGE.parent
    computing = imported_code(*given, rules["drawing"], rules["records"])
    return computing if computing.keys() & {*rules["costly"]} else imported_code(*given)


@functools.cache
def _notebook_imports(notebook):
    """The module names that a notebook's code cells may import. Raises StudyError naming a cell that is not Python."""
    names = set()
    for number, source in _python_of(notebook).items():
        try:
            names |= imported_names(source)
        except SyntaxError as error:
            raise StudyError(f"{notebook}: cell {number} has a syntax error in line {error.lineno}") from None
    return names


def _python_of(notebook):
    """The Python of each code cell of a notebook, IPython's own lines (%magic, !command) as calls, by its number."""
    from IPython.core.inputtransformer2 import TransformerManager  # 0.2 s

    cells = enumerate(read_cells(notebook), 1)
    return {number: TransformerManager().transform_cell(text) for number, (kind, text, _) in cells if kind == "code"}


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
    gone = [f"{name} is gone" for name in record["files"] if not (folders.root / name).exists()]
    faults = gone or [f"{name} was changed by hand" for name in altered(folders.root, record.get("contents", {}))]
    return State("stale" if faults else "done", "".join(faults[:1]), record["seconds"])
