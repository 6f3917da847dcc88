"""The runs that a study asks for: grids, one run per upstream run, named sets."""

import itertools
import json
import math
import re
from dataclasses import dataclass

from reid_utils.study.study_file import GIVEN, StudyError, check_plain, unknown


@dataclass(frozen=True)
class Run:
    """One execution of one notebook: `inputs` are the ids of the runs it reads, `label` the readable end of its id.

    gpus: what it asks of a cluster; the results' key does not hold it.
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


MANY = 1000  # runs of a grid beyond which run_all asks first


def grid_size(study):
    """How many runs the grids of a study span at most (equal ones counted twice), without expanding them."""
    blocks = [block for entry in study.entries for block in entry.get("grid", [])]
    return sum(math.prod(len(v) if isinstance(v, list) else 1 for v in block.values()) for block in blocks)


def expand(study, declared, own_features=False):
    """The runs of a study in plan order.

    declared: notebook -> {parameter: default}. own_features: only notebooks that declare `features` run, once each and
    without inputs. Raises StudyError for undeclared parameters, empty selections and equal run ids.
    """
    runs = []
    for entry in study.entries:
        if own_features:
            if "features" not in declared[entry["notebook"]]:
                continue
            entry = {key: value for key, value in entry.items() if key not in ("each", "sets", "after")}
        runs += _entry_runs(entry, declared, runs)
    if not runs:
        raise StudyError(f"study {study.name} has no notebook that declares the parameter 'features'")
    seen = {}
    for run in runs:
        if run.id in seen:
            raise StudyError(f"two runs are called {run.id}: {_difference(seen[run.id], run)}")
        seen[run.id] = run
    return runs


def _difference(first, second):
    """Why two runs of one id differ, and the mend."""
    names = sorted(first.parameters.keys() | second.parameters.keys())
    differ = [name for name in names if first.parameters.get(name) != second.parameters.get(name)]
    return f"add {differ[0]!r} to named_by" if differ else "the notebook is listed twice"


def _entry_runs(entry, declared, earlier):
    """The runs of one entry; equal ones are merged."""
    stem, group, runs = entry["notebook"], entry.get("name", ""), {}
    for label, parameters, inputs in _variants(entry, declared, earlier):
        _check_parameters(stem, parameters, declared[stem])
        parts = [part for part in (_readable(group), label) if part]
        run_id = f"{stem}__{'_'.join(parts)}" if parts else stem
        given = float(entry.get("minutes", 1)), entry.get("gpus", 0), group
        run = Run(run_id, stem, label, parameters, tuple(inputs), *given)
        runs.setdefault(json.dumps([run_id, {**declared[stem], **parameters}, run.inputs], sort_keys=True), run)
    return list(runs.values())


def _variants(entry, declared, earlier):
    """(label, parameters, input ids) of every run of an entry, equal ones not yet merged."""
    common = entry.get("parameters", {})
    where = entry["notebook"]
    if "grid" in entry:
        defaults = declared[where]
        for block in entry["grid"]:
            for values in itertools.product(*(v if isinstance(v, list) else [v] for v in block.values())):
                parameters = {**common, **dict(zip(block, values, strict=True))}
                settings = {**defaults, **parameters}
                inputs = _alike(where, entry["reads"], settings, declared, earlier) if "reads" in entry else ()
                yield _label(where, entry.get("named_by", list(block)), settings), parameters, inputs
    elif "each" in entry:
        for upstream in _select(where, entry["each"], declared, earlier):
            yield upstream.label, common, (upstream.id,)
    elif "sets" in entry:
        for name, selection in entry["sets"].items():
            chosen = _select(f"{where}: set {name}", selection, declared, earlier)
            yield _readable(str(name)), common, [run.id for run in chosen]
    elif "after" in entry:
        yield "", common, [run.id for run in _after(where, entry["after"], earlier)]
    else:
        yield "", common, ()


def _select(where, selection, declared, earlier):
    """The earlier runs of a notebook whose settings in force match `where` (a value, or a list of accepted values).

    Only runs of the entry called `name`; without it, of entries that have no name.
    """
    stem, wanted, name = selection["notebook"], selection.get("where", {}), selection.get("name", "")
    of_stem = [run for run in earlier if run.notebook == stem]
    if not of_stem:
        raise unknown(f"{where} reads a notebook that no earlier entry runs:", stem, {run.notebook for run in earlier})
    candidates = [run for run in of_stem if run.group == name]
    if not candidates:
        raise unknown(f"{where} reads {stem} of the entry", name, {run.group for run in of_stem})
    for key in wanted:
        if key not in declared[stem]:
            raise unknown(f"{where}: where: parameter", key, declared[stem])
    accepted = {key: value if isinstance(value, list) else [value] for key, value in wanted.items()}
    chosen = [
        run for run in candidates if all({**declared[stem], **run.parameters}[key] in accepted[key] for key in accepted)
    ]
    if not chosen:
        raise StudyError(f"{where}: no run of {stem} matches where {json.dumps(wanted)}")
    return chosen


def _alike(where, reads, settings, declared, earlier):
    """Ids of the earlier runs that a run of a grid reads: those with its own values of the parameters `same`."""
    for name in reads.get("same", []):
        if name not in settings:
            raise unknown(f"{where}: reads: parameter", name, settings)
    wanted = {"notebook": reads["notebook"], "name": reads.get("name", "")}
    wanted["where"] = {name: [settings[name]] for name in reads.get("same", [])}
    return [run.id for run in _select(where, wanted, declared, earlier)]


def _after(where, after, earlier):
    """The earlier runs named by `after`: "all", or notebooks."""
    if after == "all":
        return earlier
    stems = after if isinstance(after, list) else [after]
    for stem in stems:
        if stem not in {run.notebook for run in earlier}:
            raise unknown(f"{where}: after:", stem, {run.notebook for run in earlier} | {"all"})
    return [run for run in earlier if run.notebook in stems]


def _label(where, named_by, settings):
    """The readable end of a run id from the values of `named_by`."""
    for name in named_by:
        if name not in settings:
            raise unknown(f"{where}: named_by: parameter", name, settings)
    return "_".join(_short(name, settings[name]) for name in named_by)


def _short(name, value):
    """A parameter as it stands in a run id: a word stands alone, anything else carries its name."""
    if isinstance(value, str) and value:
        return _readable(value)
    values = value if isinstance(value, list) else [value]
    return _readable("-".join([name, *(json.dumps(item).strip('"') or "none" for item in values)]))


def _readable(text):
    """Text with everything outside letters, digits and . + - turned into a dash."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text)


def _check_parameters(stem, parameters, defaults):
    """Raise StudyError for a parameter that is undeclared, passed by the engine, or of another type."""
    for name, value in parameters.items():
        if name in GIVEN:
            raise StudyError(f"{stem}: parameter {name!r} is passed by run_all itself; remove it from the study file")
        if name not in defaults:
            raise unknown(f"{stem}: parameter", name, set(defaults) - set(GIVEN))
        check_plain(value, f"{stem}: parameter {name}")
        default = defaults[name]
        kinds = (int, float) if type(default) is float else type(default)
        fits = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
        if default is not None and value is not None and not fits:
            raise StudyError(
                f"{stem}: parameter {name} must be {type(default).__name__} like {default!r}, not {value!r}"
            )
