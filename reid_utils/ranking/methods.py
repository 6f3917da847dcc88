"""Post-processings (T3) and fusions (T5) by the names that table rows carry, and the scores of a distance matrix."""

from functools import partial
from pathlib import Path

import numpy as np

from reid_utils.ranking import fusion as fusions
from reid_utils.ranking.distances import squared_euclidean
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.metrics import average_precisions, cmc, first_match_ranks, mean_inverse_negative_penalty
from reid_utils.ranking.reranking import rerank
from reid_utils.ranking.submission import write_distance_csv

POST_PROCESSINGS = ("none", "gaussian", "hard in place", "hard", "kreciprocal")
FUSIONS = ("similarity", "dissimilarity", "two-stage", "rank average", "reciprocal rank", "min-max", "z-score")
SCORED_BY = ("query_players", "gallery_players", "query_cameras", "gallery_cameras")


def post_process(query, gallery, name, k1=20, k2=6, jaccard_weight=0.7):
    """Distances after a post-processing of `POST_PROCESSINGS`.

    query (Q, d), gallery (G, d) float32 -> (Q, G) float32. "none" is the squared Euclidean distance; "hard in place" is
    the 2023 code as published, "hard" its order-free form. Raises ValueError for an unknown name.
    """
    if name not in POST_PROCESSINGS:
        raise ValueError(f"post-processing {name!r} is unknown; known: {', '.join(POST_PROCESSINGS)}")
    if name == "none":
        return squared_euclidean(query, gallery)
    variant = name.removesuffix(" in place")
    return rerank(query, gallery, variant, k1, k2, jaccard_weight, in_place=name.endswith(" in place"))


def fuse(matrices, name, top_k=15):
    """Fused distances (Q, G) of two or more matrices by a fusion of `FUSIONS`; `top_k` is for the weighted ones.

    Raises ValueError for an unknown name.
    """
    functions = {
        "similarity": fusions.similarity_fusion,
        "dissimilarity": partial(fusions.dissimilarity_fusion, top_k=top_k),
        "two-stage": partial(fusions.two_stage_fusion, top_k=top_k),
        "rank average": fusions.rank_average,
        "reciprocal rank": fusions.reciprocal_rank_fusion,
        "min-max": fusions.min_max_fusion,
        "z-score": fusions.z_score_fusion,
    }
    if name not in functions:
        raise ValueError(f"fusion {name!r} is unknown; known: {', '.join(FUSIONS)}")
    return functions[name](matrices)


def score(distances, query_players, gallery_players, query_cameras=None, gallery_cameras=None):
    """All scores of one distance matrix.

    Returns a dict: "aps" (Q,) float64 with NaN where a query has no match, "firsts" (Q,) rank of the first match, and
    "mAP", "rank1", "rank5", "mINP", fractions of 1.
    """
    given = (distances, query_players, gallery_players, query_cameras, gallery_cameras)
    aps = average_precisions(*given)
    curve = cmc(*given, protocol="market1501", topk=5)
    return {
        "aps": aps,
        "firsts": first_match_ranks(*given),
        "mAP": float(np.nanmean(aps)),
        "rank1": float(curve[0]),
        "rank5": float(curve[min(4, len(curve) - 1)]),
        "mINP": float(mean_inverse_negative_penalty(*given)),
    }


def score_features(features, name="none", k1=20, k2=6, jaccard_weight=0.7):
    """Scores of one feature file's content (see `load_features`) after a post-processing."""
    distances = post_process(features["query"], features["gallery"], name, k1, k2, jaccard_weight)
    return score(distances, *(features[key] for key in SCORED_BY))


def stack_scores(scores):
    """Scores of several seeds as arrays.

    `scores`: one mapping {row name: dict from `score`} a seed -> {"name|aps": (S, Q), "name|firsts": (S, Q),
    "name|mAP": (S,), …rank1, rank5, mINP}, the form in which notebooks 02–04 hand their rows to notebook 06.
    """
    keys = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
    return {f"{name}|{key}": np.stack([seed[name][key] for seed in scores]) for name in scores[0] for key in keys}


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
