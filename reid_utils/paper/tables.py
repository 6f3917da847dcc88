"""A table of the paper: rows over the same queries, gathered from runs, named, compared and written."""

import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd

from notebook_study.folders import StudyFolders
from reid_utils.files import load_arrays, read_json
from reid_utils.paper.results import in_code, load_results, write_table
from reid_utils.ranking.statistics import compare_rows, enough_groups, holm, p_text

SCORES = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
ALL_FOLDS = "every fold"  # train_on of what `pool_folds` puts together
AGAIN = " again (other seeds)"
# Settings that make no other row: which models and seeds, how a training is run, what it keeps and writes.
UNNAMED = ("seeds", "models", "workers", "checkpoint_steps", "checkpoint_minutes", "validate_every", "keep_epochs")
UNNAMED += ("check_steps", "predict_from", "reranking", "every_post_processing")


@dataclass(frozen=True)
class Table:
    """Rows over the same queries, each set beside its baseline.

    question: what comparing a row with its baseline answers. rows: {name: arrays}, the arrays those of `stack_scores`
    (aps (S, Q), mAP, rank1, rank5, mINP (S,)), `groups` (see `row`) and `run`, the id of the run that made the row.
    baselines: {row: the row it is compared with, itself for none}. shared: the rows that rank with the networks of
    their baseline, so that their seeds are paired. extra: {row: {column: number}}, columns put last. notes: lines
    below it.
    """

    name: str
    question: str
    rows: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    shared: frozenset = frozenset()
    extra: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    @cached_property
    def comparison(self):
        """`compare_rows` of every row against its baseline, Holm's correction over the whole table (DataFrame)."""
        if not self.rows:
            return pd.DataFrame(columns=["row", "mAP", "difference", "p", "p_holm", "queries"])
        parts, shared = [], dict.fromkeys(self.shared, True)
        comparisons = sum(base != name for name, base in self.baselines.items())
        for base in dict.fromkeys(self.baselines.values()):
            members = dict.fromkeys([base, *(name for name in self.rows if self.baselines[name] == base)])
            aps = {name: self.rows[name]["aps"] for name in members}
            alpha = 0.05 * (len(members) - 1) / max(1, comparisons)  # compare_rows divides by its own comparisons
            part = compare_rows(aps, base, shared, alpha=alpha, groups=self.groups)
            parts.append(part[part["row"].map(self.baselines) == base])
        table = pd.concat(parts).set_index("row").loc[list(self.rows)].reset_index()
        return table.assign(p_holm=holm(table["p"]))

    @property
    def groups(self):
        """The sequence of each query, None where they are drawn one by one."""
        return next((row.get("groups") for row in self.rows.values()), None)

    @property
    def printable(self):
        """The table as it is written (DataFrame): row numbers, per cent with two decimals, `extra` columns last."""
        lines = []
        for number, line in enumerate(self.comparison.to_dict("records"), start=1):
            arrays = self.rows[line["row"]]
            percent = {key: 100 * float(np.mean(arrays[column])) for key, column in _PRINTED.items()}
            interval = {"mAP low": 100 * line["low"], "mAP high": 100 * line["high"]}
            change = {key: 100 * line[column] for key, column in _CHANGES.items()}
            shown = {k: round(v, 2) for k, v in {**percent, **interval, **change}.items()}
            p = p_text(line["p_holm"], line["p"] <= line["p_floor"])
            shown |= {"p (Holm)": p, "seeds": line["seeds"], "queries": line["queries"], "differ": line["informative"]}
            more = {key: round(value, 3) for key, value in self.extra.get(line["row"], {}).items()}
            lines.append({"no.": number, "row": line["row"], **shown, **more})
        frame = pd.DataFrame(lines)
        return frame.astype({"differ": "Int64"}) if lines else frame

    @property
    def compared(self):
        """Which rows are compared with which, to answer the question, as a sentence."""
        numbers = {name: number for number, name in enumerate(self.rows, start=1)}
        of = {}
        for name, base in self.baselines.items():
            if base != name:
                of.setdefault(numbers[base], []).append(str(numbers[name]))
        if not of:
            return f"No two rows here answer: {self.question}"
        whole = len(of) == 1 and len(next(iter(of.values()))) == len(self.rows) - 1
        each = [f"{'each row' if whole else ', '.join(rows)} with row {base}" for base, rows in sorted(of.items())]
        return f"Compared: {'; '.join(each)}, to answer: {self.question}"

    @property
    def about(self):
        """What the README says of the table: its question and the number of the notebook that makes its rows."""
        return {"question": self.question, "notebook": next((row["run"][:2] for row in self.rows.values()), "")}

    def commands(self, command):
        """The commands that make the rows again, a line for each stretch of rows of one run."""
        lines, start = [], 0
        for run, members in groupby(row["run"] for row in self.rows.values()):
            stop = start + len(list(members))
            numbers = f"Row {stop}" if stop == start + 1 else f"Rows {start + 1}–{stop}"
            make = in_code(f"{command} --only '{run}'")
            lines.append(f"{numbers}: {make}")
            start = stop
        return lines


_PRINTED = {"mAP": "mAP", "rank-1": "rank1", "rank-5": "rank5", "mINP": "mINP"}
_CHANGES = {"difference": "difference", "diff low": "diff_low", "diff high": "diff_high"}
_CHANGES |= {"queries low": "queries_low", "queries high": "queries_high", "smallest": "smallest", "seed sd": "seed_sd"}
INTERVALS = (
    "diff low, diff high: 95 % interval of the difference over queries and, where both rows have several seeds, over "
    "seeds; queries low, queries high: over queries alone, for these trained networks. smallest: the difference that "
    "this comparison finds with a power of 80 %, after correction for the number of rows. differ: "
    "queries on which the two rows differ at all."
)


def show(run, table, command):
    """Write a Table as tables/<name>.csv and .md, with its notes and the commands of its rows -> what a cell shows."""
    drawn = [] if table.groups is None else [f"Queries of one sequence are one draw ({len(np.unique(table.groups))})."]
    notes = [*table.notes, INTERVALS, *drawn, table.compared, *table.commands(command)]
    return write_table(run, table.name, table.printable, notes)


def gather(folders):
    """Results of earlier runs by notebook: {stem: [results with "scores", the content of scores.npz]}, in plan order.

    Trainings on every fold count as one (see `pool_folds`).

    Raises FileNotFoundError naming the run that has no results yet.
    """
    found = {}
    for folder in map(Path, folders):
        result = load_results(folder)
        scores = folder / "scores.npz"
        result["scores"] = load_arrays(scores) if scores.exists() else {}
        found.setdefault(result["notebook"], []).append(result | {"folder": folder})
    return {stem: pool_folds(results) if stem == "02_training" else results for stem, results in found.items()}


def pool_folds(runs):
    """Runs whose ids differ in their fold alone as one: `train_on` "every fold", scores over all their queries.

    `runs`: results as `gather` gives them, each with id (`run`), settings, scores ({"name|aps": (S, Q) …}) and folder.
    A group keeps the place, values (but the note) and folder of its first run; `run` is a pattern of their ids,
    `folders` are all of theirs. Runs on a single fold (a search for settings) are left out; all others stay as they
    are. Raises ValueError where a fold is missing or there twice.
    """
    groups = {}
    for run in runs:
        groups.setdefault(_pattern(run) if _fold(run) else run["run"], []).append(run)
    kept = (members for members in groups.values() if len(members) > 1 or not _fold(members[0]))
    return [_pooled(members) if _fold(members[0]) else members[0] for members in kept]


def _pattern(run):
    """The run's id with any fold in it: what --only takes for all of them."""
    return re.sub("(fold.)[0-9]+", r"\1*", run["run"])


def _fold(run):
    return re.fullmatch(r"fold ([0-9]+)(?: of ([0-9]+))?", run["settings"]["train_on"])


def _pooled(members):
    """One run of those of several folds."""
    runs, values = sorted(members, key=lambda run: int(_fold(run)[1])), members[0]["values"]
    folds = [int(_fold(run)[1]) for run in runs]
    if folds != list(range(int(_fold(runs[0])[2] or len(folds)))):
        raise ValueError(f"{runs[0]['run']} and its like cover the folds {folds}; run each fold once")
    return {
        **members[0],
        "run": _pattern(runs[0]),
        "settings": {**members[0]["settings"], "train_on": ALL_FOLDS},
        "values": {**values, "note": values["note"].replace(members[0]["settings"]["train_on"], ALL_FOLDS)},
        "scores": concatenate_scores([run["scores"] for run in runs]),
        "folders": [run["folder"] for run in runs],
    }


def concatenate_scores(parts):
    """Scores of the same seeds over several sets of queries as scores over all of them.

    `parts`: contents of scores.npz, {"name|aps": (S, Q_k), "name|firsts": (S, Q_k), "name|mAP": (S,) …, "groups":
    (Q_k,)} each. Per-query arrays are put side by side; means over queries are weighted by the number of queries with a
    match.
    """
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if values[0].ndim > 1 or key == "groups":
            joined[key] = np.concatenate(values, axis=-1)
            continue
        aps = f"{key.partition('|')[0]}|aps"
        matched = np.array([np.isfinite(part[aps]).sum(axis=1) for part in parts])
        joined[key] = (np.array(values) * matched).sum(axis=0) / matched.sum(axis=0)
    return joined


def is_again(run):
    """Whether a run repeats another with other seeds: the noise floor, a run of the study file's group `again`."""
    return run["run"].partition("__")[2].partition("_")[0] == "again"


def named(runs, label):
    """{row name: run}: what `label` makes of each run, then the settings in which runs of equal label differ.

    Raises ValueError naming two runs that differ in nothing but their seeds.
    """
    groups, found = {}, {}
    for run in runs:
        groups.setdefault(label(run) + AGAIN * is_again(run), []).append(run)
    for name, members in groups.items():
        for run in members:
            own = ", ".join([name, *differences(run, members)])
            if own in found:
                raise ValueError(
                    f"{found[own]['run']} and {run['run']} would be one row, {own!r}: their settings are equal; leave "
                    "one out, or call its entry in the study file `again`"
                )
            found[own] = run
    return found


def differences(run, others):
    """The settings in which a run differs from some of the others, as texts such as "learning rate 0.01"."""
    settings = run["settings"]
    differ = (key for key in settings if any(settings[key] != other["settings"].get(key) for other in others))
    return [f"{key.replace('_', ' ')} {settings[key]}" for key in differ if key not in UNNAMED]


def closest(run, others):
    """The name among {name: run} whose run shares most settings with this one; the first of several."""
    return max(others, key=lambda name: sum(run["settings"].get(k) == v for k, v in others[name]["settings"].items()))


def row(result, name):
    """One row's arrays: what a run's scores hold under `name`; and the run's id, settings and queries' `groups`.

    groups (Q,): the sequences that queries belong to, None where the run knows none or too few.
    """
    arrays = {key: result["scores"][f"{name}|{key}"] for key in SCORES}
    groups = enough_groups(result["scores"].get("groups"))
    return arrays | {"groups": groups, "run": result["run"], "settings": result["settings"]}


def training_runs(runs, recipes=None, pretrained=False, **settings):
    """Runs of notebook 02 on the training split whose settings have these values, augmentation one of `recipes`.

    Those on every fold where the study has such runs. pretrained: those that start from another run's weights; else
    those that do not. Runs on a pool or on test players are rows of no table.
    """
    folds = any(run["settings"]["train_on"] == ALL_FOLDS for run in runs.get("02_training", []))
    return [
        run
        for run in runs.get("02_training", [])
        if all(run["settings"][key] == value for key, value in settings.items())
        and (recipes is None or run["settings"]["augmentation"] in recipes)
        and bool(run["settings"]["start_weights"]) == pretrained
        and not run["settings"]["pool"]
        and run["settings"]["train_on"] == (ALL_FOLDS if folds else "train")
    ]


def study_command(folder):
    """`python run_all.py …` as the study in `folder` was started (see study.json)."""
    return (read_json(StudyFolders(folder).study) or {}).get("command", f"python run_all.py {folder.name}")
