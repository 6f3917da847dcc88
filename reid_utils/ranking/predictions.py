"""Distance files of trained models: the mean of several, with and without re-ranking, and the challenge's CSV."""

from pathlib import Path

import numpy as np

from reid_utils.ranking.inputs import load_features
from reid_utils.ranking.post_processing import SCORED_BY, post_process, score
from reid_utils.ranking.submission import write_distance_csv


def write_predictions(folder, feature_folders, sets=("test", "challenge"), reranking="hard"):
    """Write the distance CSVs of one model or of several averaged: <set>.csv and <set>_reranked.csv for each set.

    `feature_folders`: one a model, with <set>.npz for each of `sets`. The mean of their distance matrices is written,
    as the published code predicts. Returns {file stem: scores as `score` gives them} of the sets whose players are
    known.
    """
    scores = {}
    for name in sets:
        models = [load_features(Path(given) / f"{name}.npz") for given in feature_folders]
        for stem, processing in ((name, "none"), (f"{name}_reranked", reranking)):
            distances = mean_distances(models, processing)
            write_distance_csv(Path(folder) / f"{stem}.csv", distances, *csv_ids(models[0], name))
            if name != "challenge":
                scores[stem] = score(distances, *(models[0][key] for key in SCORED_BY))
    return scores


def mean_distances(models, processing):
    """Mean over models of their distances after a post-processing: features as `load_features` gives -> (Q, G)."""
    total = 0
    for model in models:
        total = total + post_process(model["query"], model["gallery"], processing)
    return total / len(models)


def csv_ids(model, name):
    """Query and gallery ids of a set's distance CSV (int64): image ids in the challenge set, players elsewhere.

    With players in header and first column, notebooks 03 and 04 can score the file.
    """
    kind = "images" if name == "challenge" else "players"
    return [model[f"{role}_{kind}"].astype(np.int64) for role in ("query", "gallery")]
