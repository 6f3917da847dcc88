"""Rows of the paper tables T1–T6 from the results of the earlier notebooks.

A row is {name: arrays}, the arrays those of `stack_scores`: aps (S, Q), mAP, rank1, rank5, mINP (S,), and `run`, the id
of the run that made it. Row functions return the rows and the notes that stand below the table.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from reid_utils.ranking.post_processing import POST_PROCESSINGS
from reid_utils.ranking.statistics import compare_rows, holm
from reid_utils.study.results import load_arrays, load_results

SCORES = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
PUBLISHED = (
    # entry, mAP on test, on challenge 2022, on challenge 2023, source
    ("toolkit baseline", 72.7, None, 61.1, "challenge toolkit's README"),
    ("2022 winner, ViT-B/16", None, 97.56, None, "2022 winner's report"),
    ("2022 winner, ViT-L/14", None, 98.44, None, "2022 winner's report"),
    ("2023 winner, fused", None, None, 98.81, "doi 10.1145/3606038.3616168"),
)


def gather(folders):
    """Results of earlier runs by notebook: {stem: [results with "scores", the content of scores.npz]}, in plan order.

    Raises FileNotFoundError naming the run that has no results yet.
    """
    found = {}
    for folder in map(Path, folders):
        result = load_results(folder)
        scores = folder / "scores.npz"
        result["scores"] = load_arrays(scores) if scores.exists() else {}
        found.setdefault(result["notebook"], []).append(result)
    return found


def row(result, name):
    """One row's arrays: what a run's scores hold under `name`."""
    return {key: result["scores"][f"{name}|{key}"] for key in SCORES} | {"run": result["run"]}


def training_runs(runs, **settings):
    """Runs of notebook 02 whose settings have these values."""
    trained = runs.get("02_training", [])
    return [run for run in trained if all(run["settings"][key] == value for key, value in settings.items())]


def main_backbone(runs):
    """The backbone that most runs of notebook 02 train: the one on which T1 varies the augmentation."""
    names = [run["settings"]["backbone"] for run in training_runs(runs)]
    return max(dict.fromkeys(names), key=names.count)


def augmentation_rows(runs):
    """T1: the main backbone under InfoNCE with each augmentation."""
    found = training_runs(runs, backbone=main_backbone(runs), loss="infonce")
    rows = {run["settings"]["augmentation"]: row(run, "none") for run in found}
    return rows, ["compare row 1 with any other to see what that augmentation adds alone"]


def loss_rows(runs, recipe):
    """T2: each backbone under each loss, all with the augmentation `recipe`; returns rows, notes, baselines."""
    rows, baselines = {}, {}
    for run in training_runs(runs, augmentation=recipe):
        backbone, loss = run["settings"]["backbone"], run["settings"]["loss"]
        rows[f"{backbone}: {loss}"] = row(run, "none")
        baselines[f"{backbone}: {loss}"] = f"{backbone}: infonce"
    return rows, ["compare the rows of one backbone to see which loss is better"], baselines


def post_processing_rows(runs):
    """T3: each backbone under each post-processing; returns rows, notes, baselines."""
    rows, baselines = {}, {}
    for run in runs.get("03_post_processing", []):
        for name in POST_PROCESSINGS:
            label = f"{run['settings']['backbone']}: {name}"
            rows[label], baselines[label] = row(run, name), f"{run['settings']['backbone']}: none"
    note = "'hard in place' is the 2023 code as published (depends on image order), 'hard' its order-free form"
    return rows, ["compare the rows of one backbone with its 'none' row", note], baselines


def backbone_rows(runs, recipe):
    """T4: each backbone with InfoNCE, plain and re-ranked; returns rows, notes and {row: cost columns}."""
    rows, costs = {}, {}
    for run in training_runs(runs, augmentation=recipe, loss="infonce"):
        for name in ("none", "hard"):
            label = f"{run['settings']['backbone']}, {'plain' if name == 'none' else 're-ranked (hard)'}"
            rows[label], cost = row(run, name), run["values"]["cost"]
            costs[label] = {"parameters (M)": cost["parameters"] / 1e6, "GFLOPs": cost["gflops"]}
    return rows, ["compare the plain rows for the backbones, and each pair for what re-ranking adds"], costs


def fusion_rows(runs):
    """T5: singles, pairs and all models under each fusion; returns rows, notes and the best single model (baseline)."""
    run = runs["04_fusion"][0]
    names = [key.removesuffix("|aps") for key in run["scores"] if key.endswith("|aps")]
    rows = {name: row(run, name) for name in names}
    best = max(run["settings"]["models"], key=lambda name: rows[name]["mAP"].mean())
    return rows, [f"baseline: {best}, the best single model; compare the fusions of the same models"], best


def published_rows(runs, note):
    """T6: what is published beside what this study measured; blanks stay blank."""
    columns = ["entry", "test mAP", "challenge 2022 mAP", "challenge 2023 mAP", "source"]
    lines = [dict(zip(columns, published, strict=True)) for published in PUBLISHED]
    own = "synergy" in note
    for run in runs.get("04_fusion", []):
        name = f"{' + '.join(run['settings']['models'])}: two-stage"
        ours = {"entry": f"ours, {name}", "test mAP": round(100 * float(run["scores"][f"{name}|mAP"].mean()), 2)}
        challenge = run["values"]["challenge"].get("mAP")
        lines.append(ours | {"source": note, f"{note} challenge mAP": challenge and round(100 * challenge, 2)})
    notes = [] if own else [f"our rows are measured on {note}: they stand beside the published ones, not against them"]
    return pd.DataFrame(lines), notes


def best_on_test(runs, recipe):
    """How many points of mAP choosing the best epoch on the test split would have added, a row a backbone and loss."""
    lines = [
        {
            "run": f"{run['settings']['backbone']}: {run['settings']['loss']}",
            "last epoch": 100 * run["scores"]["none|mAP"].mean(),
            "best on test": 100 * run["scores"]["best|mAP"].mean(),
        }
        for run in training_runs(runs, augmentation=recipe)
    ]
    return pd.DataFrame(lines).eval("flattery = `best on test` - `last epoch`").round(2)


def compare(rows, baseline):
    """`compare_rows` of a table; `baseline` is one name, or {row: its baseline}. Holm corrects over the whole table."""
    baselines = baseline if isinstance(baseline, dict) else dict.fromkeys(rows, baseline)
    parts = []
    for base in dict.fromkeys(baselines.values()):
        members = [name for name in rows if baselines[name] == base]
        if base not in rows:
            base = members[0]
        parts.append(compare_rows({name: rows[name]["aps"] for name in members}, baseline=base))
    table = pd.concat(parts, ignore_index=True)
    return table.assign(p_holm=holm(table["p"]))


def printable(comparison, rows, extra=None):
    """A table as it is written: row numbers, per cent with two decimals, `extra` columns last."""
    lines = []
    for number, line in enumerate(comparison.to_dict("records"), start=1):
        arrays = rows[line["row"]]
        percent = {f"{key}": 100 * float(np.mean(arrays[column])) for key, column in _PRINTED.items()}
        interval = {"mAP low": 100 * line["low"], "mAP high": 100 * line["high"]}
        change = {key: 100 * line[column] for key, column in _CHANGES.items()}
        shown = {k: round(v, 2) for k, v in {**percent, **interval, **change}.items()}
        shown |= {"p (Holm)": round(line["p_holm"], 4), "seeds": line["seeds"], "queries": line["queries"]}
        more = {key: round(value, 3) for key, value in (extra or {}).get(line["row"], {}).items()}
        lines.append({"no.": number, "row": line["row"], **shown, **more})
    return pd.DataFrame(lines)


_PRINTED = {"mAP": "mAP", "rank-1": "rank1", "rank-5": "rank5", "mINP": "mINP"}
_CHANGES = {"difference": "difference", "diff low": "diff_low", "diff high": "diff_high", "seed sd": "seed_sd"}


def row_commands(study, comparison, rows):
    """The command that makes each row again, a line a row."""
    return [
        f"Row {number}: `python run_all.py {study} --only '{rows[name]['run']}'`"
        for number, name in enumerate(comparison["row"], start=1)
    ]
