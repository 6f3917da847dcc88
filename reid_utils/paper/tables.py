"""A table of the paper: rows over the same queries, gathered from runs, compared and written."""

import re
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pandas as pd

from notebook_study.folders import StudyFolders
from reid_utils.files import load_arrays, read_json
from reid_utils.paper.results import load_results, write_table
from reid_utils.ranking.statistics import compare_rows, enough_groups, holm, p_text

SCORES = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
ALIKE = 1.01  # numbers of images in training that differ by no more than this factor are equal
ALL_FOLDS = "every fold"  # train_on of what `pool_folds` puts together


class Comparison(NamedTuple):
    """Two rows of a table that decide a claim: `ours` should beat `theirs`.

    single: mAP of the single model by which the claim's regime is judged. family: comparisons that share Holm's
    correction ("": those of the table).
    """

    claim: str
    compared: str
    ours: str
    theirs: str
    single: float
    family: str = ""


class Table(msgspec.Struct, frozen=True, dict=True):
    """Rows over the same queries, each compared with its baseline.

    question: what comparing a row with its baseline answers. notebook: the one that measures the rows. rows: {name:
    arrays}, the arrays those of `stack_scores` (aps (S, Q), mAP, rank1, rank5, mINP (S,)), `groups` (see `row`) and
    `run`, the id of the run that made the row. baselines: {row: the row it is compared with, itself for none}. shared:
    the rows that rank with the networks of their baseline, so that their seeds are paired. fields: {row: {field:
    value}} (see `statements`). claims: list of Comparison. extra: {row: {column: number}}, columns put last. notes:
    lines below it. controls: rows that repeat their baseline with other seeds; they stay out of Holm's correction.
    """

    name: str
    question: str
    notebook: str = ""
    rows: dict = {}
    baselines: dict = {}
    shared: frozenset = frozenset()
    fields: dict = {}
    claims: list = []
    extra: dict = {}
    notes: list = []
    controls: set = set()

    @cached_property
    def comparison(self):
        """`compare_rows` of every row against its baseline, Holm's correction over all but the controls (DataFrame)."""
        if not self.rows:
            return pd.DataFrame(columns=["row", "mAP", "difference", "p", "p_holm", "queries"])
        tests = sum(base != name and name not in self.controls for name, base in self.baselines.items())
        parts = []
        for name, base in self.baselines.items():
            aps = {each: self.rows[each]["aps"] for each in (base, name)}
            parts.append(
                compare_rows(aps, base, name in self.shared, alpha=0.05 / max(1, tests), groups=self.groups).tail(1)
            )
        table = pd.concat(parts, ignore_index=True)
        corrected = holm(table["p"].where(~table["row"].isin(self.controls)))
        return table.assign(p_holm=np.where(np.isnan(corrected), table["p"], corrected))

    @property
    def groups(self):
        """The sequence of each query, None where they are drawn one by one."""
        return next((row.get("groups") for row in self.rows.values()), None)

    @property
    def printable(self):
        """The table as it is written (DataFrame): row numbers, per cent with two decimals, `extra` columns last."""
        lines = []
        for number, line in enumerate(self.comparison.to_dict("records"), start=1):
            name = line["row"]
            line |= {column: float(np.mean(self.rows[name][column])) for column in ("mAP", "rank1", "rank5", "mINP")}
            shown = {"no.": number, "row": name}
            shown |= {column: round(100 * line[key], 2) for column, key in _PER_CENT.items()}
            shown["p (Holm)"] = p_text(line["p_holm"], line["p"] <= line["p_floor"])
            shown |= {"seeds": line["seeds"], "queries": line["queries"], "differ": line["informative"]}
            lines.append(shown | {key: round(value, 3) for key, value in self.extra.get(name, {}).items()})
        return pd.DataFrame(lines).astype({"differ": "Int64"} if lines else {})

    @property
    def compared(self):
        """Which rows are compared with which, to answer the question, as a sentence."""
        numbers = {name: number for number, name in enumerate(self.rows, start=1)}
        compared = {}
        for name, base in self.baselines.items():
            if base != name:
                compared.setdefault(numbers[base], []).append(str(numbers[name]))
        if not compared:
            return f"No two rows here answer: {self.question}"
        each = [f"{', '.join(of)} with row {number}" for number, of in sorted(compared.items())]
        return f"Compared: {'; '.join(each)}, to answer: {self.question}"

    def commands(self, command):
        """The commands that make the rows again, a line for each stretch of rows of one run."""
        lines, stop = [], 0
        for run, members in groupby(row["run"] for row in self.rows.values()):
            start, stop = stop + 1, stop + len(list(members))
            numbers = f"Row {stop}" if stop == start else f"Rows {start}–{stop}"
            lines.append(f"{numbers}: `{command} --only '{run}'`")
        return lines


_PER_CENT = {"mAP": "mAP", "rank-1": "rank1", "rank-5": "rank5", "mINP": "mINP", "mAP low": "low", "mAP high": "high"}
_ALONE = "difference diff_low diff_high queries_low queries_high smallest seed_sd"
_PER_CENT |= {name.replace("_", " "): name for name in _ALONE.split()}
INTERVALS = (
    "diff low, diff high: 95 % interval of the difference over queries and, where both rows have several seeds, over "
    "seeds; queries low, queries high: over queries alone, for these trained networks. smallest: the difference that "
    "this comparison finds with a power of 80 %, after correction for the number of rows. p (Holm): corrected over all "
    "comparisons of this table except the control, if it has one: the row again against the row that it repeats. "
    "differ: queries on which the two rows differ at all."
)


def show(run, table, command):
    """Write a Table as tables/<name>.csv and .md, with its notes and the commands of its rows -> what a cell shows."""
    clusters = 0 if table.groups is None else len(np.unique(table.groups))
    drawn = [f"Standard errors are clustered by gallery or sequence ({clusters} clusters)."] if clusters else []
    notes = [*table.notes, INTERVALS, *drawn, table.compared, *table.commands(command)]
    return write_table(run, table.name, table.printable, notes)


def gather(folders):
    """Results of earlier runs by notebook: {stem: [results with "scores", the content of scores.npz]}, in plan order.

    Trainings on every fold count as one (see `pool_folds`).

    Raises FileNotFoundError naming the run that has no results yet.
    """
    found = {}
    for folder in map(Path, folders):
        scores = folder / "scores.npz"
        result = load_results(folder)
        result |= {"folder": folder, "scores": load_arrays(scores) if scores.exists() else {}}
        found.setdefault(result["notebook"], []).append(result)
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
        fold = re.fullmatch(r"fold ([0-9]+)(?: of [0-9]+)?", run["settings"]["train_on"])
        name = re.sub("(fold.)[0-9]+", r"\1*", run["run"]) if fold else run["run"]  # what --only takes for all folds
        groups.setdefault((name, bool(fold)), []).append((fold and int(fold[1]), run))
    return [
        _pooled(name, of) if folds else of[0][1] for (name, folds), of in groups.items() if len(of) > 1 or not folds
    ]


def _pooled(name, members):
    """One run of those of several folds, a list of (fold, run)."""
    (_, first), members = members[0], sorted(members, key=lambda member: member[0])
    folds, runs = zip(*members, strict=True)
    train_on = first["settings"]["train_on"]
    if folds != tuple(range(int(train_on.partition(" of ")[2] or len(folds)))):
        raise ValueError(f"{runs[0]['run']} and its like cover the folds {[*folds]}; run each fold once")
    return {
        **first,
        "run": name,
        "settings": {**first["settings"], "train_on": ALL_FOLDS},
        "values": {**first["values"], "note": first["values"]["note"].replace(train_on, ALL_FOLDS)},
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


def scored(run):
    """The names under which a run holds scores, in its order."""
    return [key.removesuffix("|aps") for key in run["scores"] if key.endswith("|aps")]


def row(result, name):
    """One row's arrays: what a run's scores hold under `name`; the run's id, settings, images and queries' `groups`.

    groups (Q,): the galleries or sequences that queries belong to, None where the run knows none or too few.
    """
    arrays = {key: result["scores"][f"{name}|{key}"] for key in SCORES}
    groups = enough_groups(result["scores"].get("groups"))
    images = result["values"].get("images_seen", 1)  # 1: nothing is trained by this run
    return arrays | {"groups": groups, "run": result["run"], "settings": result["settings"], "images": images}


def study_command(folder):
    """`python run_all.py …` as the study in `folder` was started (see study.json)."""
    return (read_json(StudyFolders(folder).study) or {}).get("command", f"python run_all.py {folder.name}")


def statements_of(folder):
    """The statements of tables of the study in `folder`: {name: mapping}."""
    return (read_json(StudyFolders(folder).study) or {}).get("tables", {})
