"""Rows of the paper tables T1–T6 from the results of the earlier notebooks.

A row is {name: arrays}, the arrays those of `stack_scores`: aps (S, Q), mAP, rank1, rank5, mINP (S,), and `run`, the id
of the run that made it. Row functions return the rows and the notes that stand below the table.
"""

from pathlib import Path

import pandas as pd

from reid_utils.ranking.post_processing import POST_PROCESSINGS
from reid_utils.study.results import load_arrays, load_results

SCORES = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
PUBLISHED = (
    # entry, mAP on test, on challenge 2022, on challenge 2023, source
    ("toolkit baseline", 72.7, None, 61.1, "challenge toolkit, about"),
    ("2022 winner, ViT-B/16", None, 97.56, None, "2022 winning entry, as published"),
    ("2022 winner, ViT-L/14", None, 98.44, None, "2022 winning entry, as published"),
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
        found.setdefault(result["notebook"], []).append(result | {"folder": folder})
    return found


def training_history(runs, recipes):
    """Histories of the runs that use an augmentation of `recipes`, with a column `label` (backbone and loss)."""
    parts = [
        pd.read_csv(run["folder"] / "history.csv").assign(
            label=f"{run['settings']['backbone']}, {run['settings']['loss']}"
        )
        for run in training_runs(runs, recipes)
    ]
    return pd.concat(parts, ignore_index=True)


def row(result, name):
    """One row's arrays: what a run's scores hold under `name`."""
    return {key: result["scores"][f"{name}|{key}"] for key in SCORES} | {"run": result["run"]}


def training_runs(runs, recipes=None, **settings):
    """Runs of notebook 02 whose settings have these values, and whose augmentation is one of `recipes` where given."""
    return [
        run
        for run in runs.get("02_training", [])
        if all(run["settings"][key] == value for key, value in settings.items())
        and (recipes is None or run["settings"]["augmentation"] in recipes)
    ]


def main_backbone(runs):
    """The backbone that most runs of notebook 02 train: the one on which T1 varies the augmentation."""
    names = [run["settings"]["backbone"] for run in training_runs(runs)]
    return max(dict.fromkeys(names), key=names.count)


def augmentation_rows(runs):
    """T1: the main backbone under InfoNCE with each augmentation; returns rows, notes, the baseline."""
    found = training_runs(runs, backbone=main_backbone(runs), loss="infonce")
    rows = {run["settings"]["augmentation"]: row(run, "none") for run in found}
    base = "none" if "none" in rows else next(iter(rows), None)
    order = [base, *(name for name in rows if name != base)] if rows else []
    return {name: rows[name] for name in order}, [], base


def loss_rows(runs, recipes):
    """T2: each backbone under each loss, all with an augmentation of `recipes`; returns rows, notes, baselines."""
    rows, baselines = {}, {}
    for run in training_runs(runs, recipes):
        backbone, loss = run["settings"]["backbone"], run["settings"]["loss"]
        rows[f"{backbone}: {loss}"] = row(run, "none")
        baselines[f"{backbone}: {loss}"] = f"{backbone}: infonce"
    return rows, [], {name: base if base in rows else name for name, base in baselines.items()}


def post_processing_rows(runs):
    """T3: each backbone under each post-processing; returns rows, notes, baselines."""
    rows, baselines = {}, {}
    for run in runs.get("03_post_processing", []):
        backbone = run["settings"]["backbone"]
        if f"{backbone}: none" in rows:
            raise ValueError(f"T3 has {backbone} twice; let notebook 03 run for one training a backbone")
        for name in POST_PROCESSINGS:
            rows[f"{backbone}: {name}"], baselines[f"{backbone}: {name}"] = row(run, name), f"{backbone}: none"
    note = "'hard in place' is the 2023 code as published (depends on image order), 'hard' its order-free form"
    return rows, [note], baselines


def backbone_rows(runs, recipes):
    """T4: each backbone with InfoNCE, plain and re-ranked; returns rows, notes, baselines and {row: cost columns}."""
    rows, costs, baselines = {}, {}, {}
    for run in training_runs(runs, recipes, loss="infonce"):
        for name in ("none", "hard"):
            label = f"{run['settings']['backbone']}, {'plain' if name == 'none' else 're-ranked (hard)'}"
            rows[label], cost = row(run, name), run["values"]["cost"]
            baselines[label] = f"{run['settings']['backbone']}, plain" if name == "hard" else next(iter(rows))
            costs[label] = {"parameters (M)": cost["parameters"] / 1e6, "GFLOPs": cost["gflops"]}
    return rows, [], baselines, costs


def fusion_rows(runs):
    """T5: singles, pairs and all models under each fusion; returns rows, notes and the best single model (baseline)."""
    if "04_fusion" not in runs:
        return {}, ["this study runs no fusion"], None
    run = runs["04_fusion"][0]
    names = [key.removesuffix("|aps") for key in run["scores"] if key.endswith("|aps")]
    rows = {name: row(run, name) for name in names}
    best = max(run["settings"]["models"], key=lambda name: rows[name]["mAP"].mean())
    notes = [
        f"Baseline: {best}, the best single model.",
        "With two models every agreed item is in both lists, both weigh alike, and dissimilarity and two-stage equal "
        "similarity: pairs of a larger set leave them out.",
        f"Every matrix went through {run['settings']['post_processing']!r} first.",
    ]
    return rows, notes, best


def published_rows(runs, note):
    """T6: what is published beside what this study measured; blanks stay blank."""
    columns = ["entry", "test mAP", "challenge 2022 mAP", "challenge 2023 mAP", "source"]
    lines = [dict(zip(columns, published, strict=True)) for published in PUBLISHED]
    own = note.startswith("Synergy")
    column = f"{note.removeprefix('Synergy, ') if own else note} mAP"
    for run in runs.get("04_fusion", []):
        settings = run["settings"]
        fusion = settings["challenge_fusion"]
        test = run["scores"][f"{' + '.join(settings['models'])}: {fusion}|mAP"]
        challenge = run["values"]["challenge"].get("mAP")
        line = {
            "entry": f"ours: {' + '.join(settings['models'])}, {settings['post_processing']}, {fusion}",
            "source": note,
        }
        line["test mAP" if own else f"{note} test mAP"] = round(100 * float(test.mean()), 2)
        line[column if own else f"{note} challenge mAP"] = challenge and round(100 * challenge, 2)
        lines.append(line)
    notes = ["Ours on test: the mean over seeds, last epoch; on the challenge split: the first seed, as one entry."]
    if not own:
        notes.append(f"Ours is measured on {note}: it stands beside the published figures, not against them.")
    return pd.DataFrame(lines), notes
