"""Runs of notebook 02 on the folds of a training set, put together into one run over all their queries."""

import re

import numpy as np

ALL_FOLDS = "every fold"  # train_on of what is put together


def pool_folds(runs):
    """Runs whose ids differ in their fold alone as one: `train_on` "every fold", scores over all their queries.

    `runs`: results as `gather` gives them, each with id (`run`), settings, scores ({"name|aps": (S, Q) …}) and folder.
    A group keeps the place, values and folder of its first run; `run` is a pattern of their ids, `folders` are all of
    theirs. Runs on a single fold (a search for settings) are left out; all others stay as they are. Raises ValueError
    where a fold is missing or there twice.
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
    runs = sorted(members, key=lambda run: int(_fold(run)[1]))
    folds = [int(_fold(run)[1]) for run in runs]
    if folds != list(range(int(_fold(runs[0])[2] or len(folds)))):
        raise ValueError(f"{runs[0]['run']} and its like cover the folds {folds}; run each fold once")
    return {
        **members[0],
        "run": _pattern(runs[0]),
        "settings": {**members[0]["settings"], "train_on": ALL_FOLDS},
        "scores": concatenate_scores([run["scores"] for run in runs]),
        "folders": [run["folder"] for run in runs],
    }


def concatenate_scores(parts):
    """Scores of the same seeds over several sets of queries as scores over all of them.

    `parts`: contents of scores.npz, {"name|aps": (S, Q_k), "name|firsts": (S, Q_k), "name|mAP": (S,) …} each. Per-query
    arrays are put side by side; means over queries are weighted by the number of queries with a match.
    """
    joined = {}
    for key in parts[0]:
        values = [part[key] for part in parts]
        if values[0].ndim > 1:
            joined[key] = np.concatenate(values, axis=1)
            continue
        aps = f"{key.partition('|')[0]}|aps"
        matched = np.array([np.isfinite(part[aps]).sum(axis=1) for part in parts])
        joined[key] = (np.array(values) * matched).sum(axis=0) / matched.sum(axis=0)
    return joined
