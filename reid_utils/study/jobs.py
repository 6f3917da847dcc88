"""What is left to do: the state of each run, the choice of runs, their order, their jobs."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from reid_utils.files import read_json
from reid_utils.study.keys import changes
from reid_utils.study.notebooks import declared_parameters
from reid_utils.study.study_file import StudyError


@dataclass(frozen=True)
class State:
    """Where a run stands: name "done", "stale" or "to do"; why; seconds it took or is thought to take."""

    name: str
    reason: str
    seconds: float


def run_states(runs, root, keys):
    """{run id: State}; `keys` as from keys.run_keys, or None where the data do not exist yet."""
    return {run.id: _state(run, Path(root), keys and keys[run.id]) for run in runs}


def _state(run, root, key):
    record = read_json(root / "state" / f"{run.id}.json")
    if record is None:
        failed = (root / "state" / f"{run.id}.failed.json").exists()
        return State("to do", "failed last time" if failed else "", 60 * run.minutes)
    if key is None:
        return State("to do", "the data are not made yet", record["seconds"])
    if record["key"] != key[0]:
        return State("stale", ", ".join(changes(record["parts"], key[1])), record["seconds"])
    lost = [name for name in record["files"] if not (root / name).exists()]
    if lost:
        return State("stale", f"{lost[0]} is gone", record["seconds"])
    return State("done", "", record["seconds"])


def pick(runs, only=None):
    """The ids (set) that match the pattern `only` (fnmatch; None: all). Raises StudyError listing all ids otherwise."""
    picked = {run.id for run in runs if only is None or fnmatchcase(run.id, only)}
    if not picked:
        raise StudyError(f"--only {only} matches no run; runs: {', '.join(run.id for run in runs)}")
    return picked


def choose(runs, states, picked, force=False):
    """The runs to execute, in plan order, and the set of ids to be redone from nothing.

    picked: ids asked for; what they read comes along where it is not done. force: redo picked runs that are done.
    """
    wanted = {name for name in picked if force or states[name].name != "done"}
    for run in reversed(runs):
        if run.id in wanted:
            wanted |= {name for name in run.inputs if states[name].name != "done"}
    return [run for run in runs if run.id in wanted], picked & wanted if force else set()


def make_job(run, runs, keys, *, root, notebooks, data, features=None, fresh=False):
    """The job of a run, as plain values that a worker reads from JSON; every path in it is absolute.

    data, features: folders; features is passed to notebooks that declare it. fresh: start from nothing.
    """
    root, notebooks = Path(root).resolve(), Path(notebooks).resolve()
    source = notebooks / f"{run.notebook}.ipynb"
    given = {
        "data": str(data),
        "out": str(root),
        "run_id": run.id,
        "inputs": [str(root / "results" / name) for name in run.inputs],
    }
    if features and "features" in declared_parameters(source):
        given["features"] = str(Path(features).resolve())
    return {
        "run": run.id,
        "inputs": list(run.inputs),
        "notebook": str(source),
        "cwd": str(notebooks),
        "root": str(root),
        "parameters": {**run.parameters, **given},
        "key": keys[run.id][0],
        "parts": keys[run.id][1],
        "gpus": run.gpus,
        "fresh": fresh,
        "longer_ids": [other.id for other in runs if other.id.startswith(f"{run.id}_")],
    }


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
