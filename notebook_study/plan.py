"""The runs that a study asks for (grids, one run per upstream run, named sets), their choice and their order."""

import itertools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from msgspec.structs import astuple, replace

from notebook_study.folders import StudyFolders
from notebook_study.study_file import GIVEN, Selection, StudyError, check_known, check_plain, declared_in, read_study
from reid_utils.files import read_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Run:
    """One execution of one notebook: `inputs` are the ids of the runs it reads, `label` the readable end of its id.

    gpus: how many it asks for; the results' key does not hold it.
    group: the name of its entry, "" for an entry without one; selections keep to one group.
    """

    id: str
    notebook: str
    label: str
    parameters: dict
    inputs: tuple
    minutes: float
    gpus: int = 0
    group: str = ""


def expand(study, declared, own_features=False):
    """The runs of a study in plan order.

    declared: notebook -> {parameter: default}. own_features: only notebooks that declare `features` run, once each and
    without inputs. Raises StudyError for undeclared parameters, empty selections and equal run ids.
    """
    runs = []
    for entry in study.entries:
        if own_features:
            if "features" not in declared[entry.notebook]:
                continue
            entry = replace(entry, each=None, sets=None, after=None)
        if study.tables and "tables" in declared[entry.notebook]:
            entry = replace(entry, parameters={"tables": study.tables, **entry.parameters})
        runs += _entry_runs(entry, declared, runs)
    if not runs:
        raise StudyError(f"study {study.name} has no notebook that declares the parameter 'features'")
    first = {}
    for run in runs:
        other = first.setdefault(run.id, run)
        if other is not run:
            ours, theirs = run.parameters, other.parameters
            differs = min((n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)), default=None)
            how = f"add {differs!r} to named_by" if differs else "the notebook is listed twice"
            raise StudyError(f"two runs are called {run.id}: {how}")
    return runs


def _entry_runs(entry, declared, earlier):
    """The runs of one entry; equal ones are merged."""
    stem, runs = entry.notebook, {}
    for label, parameters, read in _variants(entry, declared, earlier):
        _check_parameters(stem, parameters, declared[stem])
        parts = [part for part in (_readable(entry.name), label) if part]
        run_id = f"{stem}__{'_'.join(parts)}" if parts else stem
        settings, inputs = {**declared[stem], **parameters}, tuple(run.id for run in read)
        gpus = entry.gpus and max(entry.gpus, settings.get("processes", 1))  # that share a training want a GPU each
        run = Run(run_id, stem, label, parameters, inputs, entry.minutes, gpus, entry.name)
        runs.setdefault(json.dumps([run_id, settings, inputs], sort_keys=True), run)
    return list(runs.values())


def _variants(entry, declared, earlier):
    """(label, parameters, runs that it reads) of every run of an entry, equal ones not yet merged."""
    where, common = entry.notebook, entry.parameters
    if entry.grid:
        for block in entry.grid:
            for values in itertools.product(*map(_listed, block.values())):
                parameters = {**common, **dict(zip(block, values, strict=True))}
                names = list(block) if entry.named_by is None else entry.named_by
                settings = {**declared[where], **parameters}
                read = _alike(where, entry.reads, settings, declared, earlier) if entry.reads else ()
                yield _label(where, names, settings), parameters, read
    elif entry.each:
        for upstream in _select(where, entry.each, declared, earlier):
            yield upstream.label, common, [upstream]
    elif entry.sets:
        for name, selection in entry.sets.items():
            yield _readable(name), common, _select(f"{where}: set {name}", selection, declared, earlier)
    else:
        yield "", common, _after(where, entry.after, earlier)


def _select(where, selection, declared, earlier):
    """The earlier runs of a notebook whose settings in force match `where` (a value, or a list of accepted values).

    Only runs of the entry called `name`; without it, of entries that have no name.
    """
    stem, name, wanted = astuple(selection)
    check_known(f"{where} reads a notebook that no earlier entry runs:", [stem], {run.notebook for run in earlier})
    check_known(f"{where} reads {stem} of the entry", [name], {run.group for run in earlier if run.notebook == stem})
    check_known(f"{where}: where: parameter", wanted, declared[stem])
    accepted = {key: _listed(value) for key, value in wanted.items()}
    chosen = [
        run
        for run in earlier
        if (run.notebook, run.group) == (stem, name)
        and all({**declared[stem], **run.parameters}[key] in values for key, values in accepted.items())
    ]
    if not chosen:
        raise StudyError(f"{where}: no run of {stem} matches where {json.dumps(wanted)}")
    return chosen


def _alike(where, reads, settings, declared, earlier):
    """The earlier runs that a run of a grid with these settings reads (see `Reads`)."""
    check_known(f"{where}: reads: parameter", reads.same, settings)
    wanted = Selection(reads.notebook, reads.name, {name: [settings[name]] for name in reads.same})
    return _select(where, wanted, declared, earlier)


def _after(where, after, earlier):
    """The earlier runs named by `after`: "all", notebooks, or None."""
    stems = _listed(after or [])
    check_known(f"{where}: after:", stems, {run.notebook for run in earlier} | {"all"})
    return [run for run in earlier if run.notebook in stems or "all" in stems]


def _listed(value):
    return value if isinstance(value, list) else [value]


def _label(where, named_by, settings):
    """The readable end of a run id from the values of `named_by`."""
    check_known(f"{where}: named_by: parameter", named_by, settings)
    return "_".join(_short(name, settings[name]) for name in named_by)


def _short(name, value):
    """A parameter as it stands in a run id: a word stands alone, anything else carries its name."""
    words = [name, *(json.dumps(item).strip('"') or "none" for item in _listed(value))]
    return _readable(value if isinstance(value, str) and value else "-".join(words))


def _readable(text):
    """Text with everything outside letters (of any script), digits and . + - turned into a dash."""
    return re.sub(r"(?:[^\w.+-]|_)+", "-", text)


def _check_parameters(stem, parameters, defaults):
    """Raise StudyError for a parameter that is undeclared, passed by the engine, or of another type."""
    for name, value in parameters.items():
        if name in GIVEN:
            raise StudyError(f"{stem}: parameter {name!r} is passed by run_all itself; remove it from the study file")
        check_known(f"{stem}: parameter", [name], defaults.keys() - GIVEN)
        check_plain(value, f"{stem}: parameter {name}")
        default = defaults[name]
        kinds = {type(default), int if type(default) is float else None, type(None)}
        if default is not None and type(value) not in kinds:
            raise StudyError(
                f"{stem}: parameter {name} must be {type(default).__name__} like {default!r}, not {value!r}"
            )


def pick(runs, only=None):
    """The ids (set) that match the pattern `only` (fnmatch; None: all). Raises StudyError listing all ids otherwise."""
    picked = {run.id for run in runs if only is None or fnmatchcase(run.id, only)}
    if not picked:
        raise StudyError(f"--only {only} matches no run; runs: {', '.join(run.id for run in runs)}")
    return picked


def choose(runs, states, picked, force=False):
    """The runs to execute, in plan order, and the set of ids to be redone from nothing.

    states: {run id: keys.State}; picked: ids asked for; what they read comes along where it is not done. force: redo
    picked runs that are done.
    """
    wanted = {name for name in picked if force or states[name].name != "done"}
    for run in reversed(runs):
        if run.id in wanted:
            wanted |= {name for name in run.inputs if states[name].name != "done"}
    return [run for run in runs if run.id in wanted], picked & wanted if force else set()


def urgency(runs, states):
    """{run id: estimated seconds from its start to the end of the longest chain that hangs on it}."""
    longest = {}
    for run in reversed(runs):
        after = [longest[other.id] for other in runs if run.id in other.inputs]
        longest[run.id] = states[run.id].seconds + max(after, default=0)
    return longest


def in_order(runs, states):
    """Runs with the longest chain behind them first, in plan order where equal."""
    longest = urgency(runs, states)
    return sorted(runs, key=lambda run: -longest[run.id])


def find_inputs(notebook, only):
    """Result folders that `notebook` (its stem) reads, as texts.

    Those of a study that has finished them: `quick`, else the one started last, else `lab`, whose runs matching the
    glob `only` are made where no study has them (about a minute, once). Raises RuntimeError naming the logs when one
    of them fails.
    """
    if not any(_finished(notebook)):
        print(f"no finished study has what {notebook} reads: making the small runs of the lab study, about a minute")
        made = subprocess.run(
            [sys.executable, "run_all.py", "lab", "--only", only], cwd=ROOT
        )  # Jupyter shows its lines
        if made.returncode:
            raise RuntimeError(f"the lab study did not end well; the lines above and {ROOT}/runs/lab/logs say why")
    found = next(_finished(notebook))
    print("reading", *found, sep="\n")
    return found


def _finished(notebook):
    """Yield what runs of a notebook read, as texts, wherever it is done: of `quick` first, of `lab` last."""
    rank = {"quick": 0, "lab": 2}
    studies = ROOT.glob("runs/*/study.json")
    for described in sorted(studies, key=lambda path: (rank.get(path.parent.name, 1), -path.stat().st_mtime)):
        folders = StudyFolders(described.parent)
        for path in ROOT.glob(f"studies/{read_json(described)['name']}.yaml"):
            study = read_study(path)
            for run in expand(study, declared_in(study, ROOT / "notebooks")):
                if run.notebook == notebook and all(folders.record(name).exists() for name in run.inputs):
                    yield [str(folders.results(name)) for name in run.inputs]
