"""Post-processings (T3) and fusions (T5) by the names that table rows carry, and the scores of a distance matrix.

What is ranked is always `Features`, so that the rule of groups (a query is ranked among its own) holds everywhere.
"""

from functools import partial
from inspect import signature
from pathlib import Path

import numpy as np

from reid_utils.ranking.distances import shared_galleries, squared_euclidean
from reid_utils.ranking.feature_files import Features, csv_ids, load_features, write_distance_csv
from reid_utils.ranking.fusion import FUSIONS, dissimilarity_weights
from reid_utils.ranking.metrics import known, labels_of, matches, rank_matches
from reid_utils.ranking.reranking import rerank, rerank_sweep

# Each a function of (query, gallery) and, by name, k1, k2 and jaccard_weight -> distances (Q, G) float32. "hard in
# place" is the 2023 code as published, "hard" its order-free form; the last two average features with k2 neighbours.
POST_PROCESSINGS = {
    "none": lambda query, gallery, **_: squared_euclidean(query, gallery),
    "gaussian": partial(rerank, variant="gaussian"),
    "hard in place": partial(rerank, variant="hard", in_place=True),
    "hard": partial(rerank, variant="hard"),
    "kreciprocal": partial(rerank, variant="kreciprocal"),
}


def post_processings_of(features):
    """The names of the post-processings that features can go through: a distance matrix cannot be re-ranked."""
    return ("none",) if features.query is None else tuple(POST_PROCESSINGS)


def groups_of(features):
    """The queries and gallery images of each group that has both: pairs of index arrays; of slices without groups.

    A query or image of an unknown group is in none. Raises ValueError where no group has both, or one side has groups.
    """
    sides = features.query_groups, features.gallery_groups
    if any(side is None for side in sides):
        if sides[0] is not sides[1]:
            raise ValueError("query_groups and gallery_groups go together; give both or none")
        return [(slice(None), slice(None))]
    groups = np.intersect1d(*(side[known(side)] for side in sides))
    if not len(groups):
        raise ValueError("no group has both queries and gallery images; check query_groups and gallery_groups")
    return [tuple(np.flatnonzero(side == group) for side in sides) for group in groups]


def _sweep_groups(features, rank):
    """Yield (setting, distances) as `rank(query, gallery)` does, the distances of all groups in one matrix (Q, G)."""
    groups = groups_of(features)
    ranked = [rank(features.query[queries], features.gallery[gallery]) for queries, gallery in groups]
    for parts in zip(*ranked, strict=True):
        setting, distances = parts[0]
        if features.query_groups is not None:
            distances = np.full((len(features.query), len(features.gallery)), np.inf, np.float32)
            for (queries, gallery), (_, part) in zip(groups, parts, strict=True):
                distances[np.ix_(queries, gallery)] = part
        yield setting, distances


def within_groups(features, rank):
    """Distances (Q, G) float32 where a query is ranked among its own group alone, +inf elsewhere.

    rank: function of (query, gallery) features of a group -> (q, g). Fusion and metrics leave out what is at +inf.
    """
    ((_, distances),) = _sweep_groups(features, lambda query, gallery: [(None, rank(query, gallery))])
    return distances


def sweep_of(features, variant, k1s, k2s, jaccard_weights):
    """`rerank_sweep` of `Features`, each group on its own: yields ((k1, k2, weight), distances (Q, G))."""
    rank = partial(rerank_sweep, variant=variant, k1s=k1s, k2s=k2s, jaccard_weights=jaccard_weights)
    return _sweep_groups(features, rank)


def distances_of(features, name="none", k1=20, k2=6, jaccard_weight=0.7):
    """Distances (Q, G) of `Features`, or a mapping of its fields: those given, else the features' after `name`.

    With groups each is re-ranked on its own, since a query is ranked within its group; the rest is at +inf. Raises
    ValueError for a name that is not in `POST_PROCESSINGS`.
    """
    if name not in POST_PROCESSINGS:
        raise ValueError(f"post-processing {name!r} is unknown; known: {', '.join(POST_PROCESSINGS)}")
    features = Features(**features) if isinstance(features, dict) else features
    if features.query is not None:
        rank = partial(POST_PROCESSINGS[name], k1=k1, k2=k2, jaccard_weight=jaccard_weight)
        return within_groups(features, rank)
    if features.query_groups is None:
        return features.distances
    return np.where(_same_group(features), features.distances, np.inf)


def _same_group(features):
    groups = features.query_groups[:, None]
    return (groups == features.gallery_groups) & known(groups)


def pairs_of(features):
    """Masks (Q, G) of the genuine pairs (matches) and the impostors (images of others) that a ranking holds.

    Junk and images of other groups are neither.
    """
    genuine, junk = matches(*labels_of(features))
    ranked = ~junk
    if features.query_groups is not None:
        ranked &= _same_group(features)
    return genuine & ranked, ~genuine & ranked


def fuse(matrices, name, top_k=15):
    """Fused distances (Q, G) of two or more matrices by a fusion of `FUSIONS`; `top_k` is for the weighted ones.

    Where images of other groups are at +inf (see `distances_of`) the queries of a group are fused alone. Raises
    ValueError for an unknown name, and for matrices of different groups.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion {name!r} is unknown; known: {', '.join(FUSIONS)}")
    settings = {"top_k": top_k} if "top_k" in signature(FUSIONS[name]).parameters else {}
    fused = np.full(np.shape(matrices[0]), np.inf)
    for _, place, parts in _galleries(matrices):
        fused[place] = FUSIONS[name](parts, **settings)
    return fused


def weights_of(matrices, top_k=15):
    """`dissimilarity_weights` (Q, M) of the matrices that `fuse` takes; equal ones for a query without a gallery."""
    weights = np.full((len(matrices[0]), len(matrices)), 1 / len(matrices))
    for queries, _, parts in _galleries(matrices):
        weights[queries] = dissimilarity_weights(parts, top_k)
    return weights


def _galleries(matrices):
    """The queries and the place of each gallery in the matrices, and what they hold there; see `shared_galleries`.

    Raises ValueError where the matrices differ in what is at +inf.
    """
    outside = [np.isposinf(matrix) for matrix in matrices]
    if not any(mask.any() for mask in outside):
        return [(..., ..., matrices)]
    for number, mask in enumerate(outside):
        if not np.array_equal(mask, outside[0]):
            raise ValueError(f"distance matrix {number} ranks other images than matrix 0; give all the same groups")
    galleries = [(rows, np.ix_(rows, columns)) for rows, columns in shared_galleries(matrices[0], "distance matrix 0")]
    return [(rows, place, [matrix[place] for matrix in matrices]) for rows, place in galleries]


def score(distances, *labels):
    """All scores of one distance matrix, from one pass over it; with a model's labels `score(d, *labels_of(model))`.

    Returns a dict: "aps" (Q,) float64 with NaN where a query has no match, "firsts" (Q,) rank of the first match, and
    "mAP", "rank1", "rank5", "mINP", fractions of 1.
    """
    found = rank_matches(distances, *labels)
    firsts = found.firsts
    ranks = firsts[~np.isnan(firsts)]
    return {
        "aps": found.precisions,
        "firsts": firsts,
        "mAP": float(np.nanmean(found.precisions)),
        "rank1": float((ranks <= 1).mean()),
        "rank5": float((ranks <= 5).mean()),
        "mINP": found.penalty,
    }


def score_features(features, name="none"):
    """Scores, as `score` gives them, of `Features` after a post-processing with the paper's settings."""
    return score(distances_of(features, name), *labels_of(features))


def stack_scores(scores):
    """Scores of several seeds as arrays.

    `scores`: one mapping {row name: dict from `score`} per seed -> {"name|aps": (S, Q), "name|firsts": (S, Q),
    "name|mAP": (S,), …rank1, rank5, mINP}, the form in which notebooks 02–04 hand their rows to notebook 06.
    """
    keys = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
    return {f"{name}|{key}": np.stack([seed[name][key] for seed in scores]) for name in scores[0] for key in keys}


def write_predictions(folder, feature_folders, sets=("test", "challenge"), reranking="hard"):
    """Write the distance CSVs of one model or of several averaged: <set>.csv and <set>_reranked.csv for each set.

    `feature_folders`: one per model, with <set>.npz for each of `sets`. The mean of their distance matrices is written,
    as the published code predicts; a test split in several galleries is scored alone. Returns {file stem: scores as
    `score` gives them} of the sets whose players are known.
    """
    scores = {}
    for name in sets:
        models = [load_features(Path(given) / f"{name}.npz") for given in feature_folders]
        for stem, processing in ((name, "none"), (f"{name}_reranked", reranking)):
            distances = mean_distances(models, processing)
            _write(Path(folder) / f"{stem}.csv", distances, models[0], name)
            if name != "challenge":
                scores[stem] = score(distances, *labels_of(models[0]))
    return scores


def write_entry(folder, models, post_processing, fusion, top_k=15):
    """Write a fused entry's distance CSVs: <set>.csv through the post-processing, <set>_plain.csv without.

    `models`: as from `load_models`; each model is the mean over its seeds. Returns {file stem: distances (Q, G)}.
    """
    entries = {}
    for name, seeds in models.items():
        of_models = [[seed[model] for seed in seeds] for model in seeds[0]]
        for stem, processing in ((name, post_processing), (f"{name}_plain", "none")):
            entries[stem] = fuse([mean_distances(of_model, processing) for of_model in of_models], fusion, top_k)
            _write(Path(folder) / f"{stem}.csv", entries[stem], of_models[0][0], name)
    return entries


def _write(path, distances, features, name):
    """The distance CSV of a set, but for a test split in several galleries: the form knows one gallery alone."""
    if name == "challenge" or features.query_groups is None:
        write_distance_csv(path, distances, *csv_ids(features, name))


def mean_distances(models, processing):
    """Mean over models of their distances after a post-processing: `Features` of the same images -> (Q, G)."""
    return sum(distances_of(model, processing) for model in models) / len(models)
