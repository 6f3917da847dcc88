"""Post-processings (T3) and fusions (T5) by the names that table rows carry, and the scores of a distance matrix."""

from pathlib import Path

import numpy as np

from reid_utils.ranking import fusion as fusions
from reid_utils.ranking.distances import check_count, check_features, check_number, squared_euclidean
from reid_utils.ranking.feature_files import load_features, write_distance_csv
from reid_utils.ranking.metrics import labels_of, rank_matches
from reid_utils.ranking.neighbours import nearest_columns
from reid_utils.ranking.reranking import rerank

POST_PROCESSINGS = ("none", "gaussian", "hard in place", "hard", "kreciprocal", "alpha-QE", "DBA")
_FUSIONS = {
    "similarity": fusions.similarity_fusion,
    "dissimilarity": fusions.dissimilarity_fusion,
    "two-stage": fusions.two_stage_fusion,
    "rank average": fusions.rank_average,
    "reciprocal rank": fusions.reciprocal_rank_fusion,
    "min-max": fusions.min_max_fusion,
    "z-score": fusions.z_score_fusion,
}
FUSIONS = tuple(_FUSIONS)
_BLOCK = 512  # images whose distances to the gallery stand in memory at a time


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, np.float32(1))


def _neighbour_means(features: np.ndarray, gallery: np.ndarray, k: int, alpha: float, first: int) -> np.ndarray:
    """Each image's mean with its nearest `first` to `first` + k of the gallery; all of unit length."""
    blocks = []
    for start in range(0, len(features), _BLOCK):
        images = features[start : start + _BLOCK]
        distances = squared_euclidean(images, gallery)
        if first:  # the image is in the gallery: it is its own nearest, and not among its neighbours
            distances[np.arange(len(images)), start + np.arange(len(images))] = -1
        near = gallery[nearest_columns(distances, min(first + k, len(gallery)))[:, first:]]
        similarities = np.einsum("nd,nkd->nk", images, near)
        blocks.append(images + np.einsum("nk,nkd->nd", np.maximum(similarities, 0) ** np.float32(alpha), near))
    return _unit(np.concatenate(blocks))


def _checked(query, gallery, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray, int, float]:
    query, gallery = (_unit(side) for side in check_features(query, gallery))
    return query, gallery, check_count(k, "k"), check_number(alpha, "alpha")


def alpha_query_expansion(query, gallery, k: int = 6, alpha: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Expand the queries (αQE, Radenović et al. 2018): query (Q, d), gallery (G, d) -> both, float32 of unit length.

    An image becomes the mean of itself and its k nearest gallery images, weighted by their cosine similarity to the
    power of alpha (itself: 1; negative similarities: 0). alpha 0 is average query expansion. Raises ValueError for NaN,
    unequal widths, and k or alpha out of range.
    """
    query, gallery, k, alpha = _checked(query, gallery, k, alpha)
    return _neighbour_means(query, gallery, k, alpha, first=0), gallery


def database_augmentation(query, gallery, k: int = 6, alpha: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Augment the gallery (DBA, Turcot and Lowe 2009), weighted as in αQE; shapes and errors as there."""
    query, gallery, k, alpha = _checked(query, gallery, k, alpha)
    return query, _neighbour_means(gallery, gallery, k, alpha, first=1)


def post_process(query, gallery, name, k1=20, k2=6, jaccard_weight=0.7):
    """Distances after a post-processing of `POST_PROCESSINGS`.

    query (Q, d), gallery (G, d) float32 -> (Q, G) float32. "none" is the squared Euclidean distance; "hard in place" is
    the 2023 code as published, "hard" its order-free form; "alpha-QE" and "DBA" are squared Euclidean distances of
    features averaged with their k2 nearest gallery images. Raises ValueError for an unknown name.
    """
    if name not in POST_PROCESSINGS:
        raise ValueError(f"post-processing {name!r} is unknown; known: {', '.join(POST_PROCESSINGS)}")
    if name == "none":
        return squared_euclidean(query, gallery)
    if name == "alpha-QE":
        return squared_euclidean(*alpha_query_expansion(query, gallery, k2))
    if name == "DBA":
        return squared_euclidean(*database_augmentation(query, gallery, k2))
    variant = name.removesuffix(" in place")
    return rerank(query, gallery, variant, k1, k2, jaccard_weight, in_place=name.endswith(" in place"))


def post_processings_of(model):
    """The post-processings that a model of `load_folder` can go through: a distance matrix cannot be re-ranked."""
    return ("none",) if model.query is None else POST_PROCESSINGS


def distances_of(model, name="none", k1=20, k2=6, jaccard_weight=0.7):
    """Distances (Q, G) of a model of `load_folder`: the matrix that was given, else its features' after `name`.

    Where the model has query_groups (Q,) and gallery_groups (G,), images of other groups lie behind all of the query's.
    """
    if model.query is None:
        return model.distances
    distances = post_process(model.query, model.gallery, name, k1, k2, jaccard_weight)
    if model.query_groups is None:
        return distances
    apart = model.query_groups[:, None] != model.gallery_groups
    return np.where(apart, distances + np.ptp(distances) + 1, distances)


def check_same_images(tested):
    """Raise ValueError naming the first difference unless all models are over the same queries and gallery.

    `tested`: one {model name: as from `load_folder`} a seed; players and, where known, images must agree.
    """
    for models in tested:
        for kind in ("players", "images"):
            names = f"query_{kind}", f"gallery_{kind}"
            ids = {name: [getattr(model, side) for side in names] for name, model in models.items()}
            known = {name: sides for name, sides in ids.items() if all(side is not None for side in sides)}
            if known:
                fusions.check_same_ids(list(known.values()), list(known))


def fuse(matrices, name, top_k=15):
    """Fused distances (Q, G) of two or more matrices by a fusion of `FUSIONS`; `top_k` is for the weighted ones.

    Raises ValueError for an unknown name.
    """
    if name not in FUSIONS:
        raise ValueError(f"fusion {name!r} is unknown; known: {', '.join(FUSIONS)}")
    weighted = name in ("dissimilarity", "two-stage")
    return _FUSIONS[name](matrices, top_k) if weighted else _FUSIONS[name](matrices)


def score(distances, query_players, gallery_players, query_cameras=None, gallery_cameras=None):
    """All scores of one distance matrix, from one pass over it; with a model's labels `score(d, *labels_of(model))`.

    Returns a dict: "aps" (Q,) float64 with NaN where a query has no match, "firsts" (Q,) rank of the first match, and
    "mAP", "rank1", "rank5", "mINP", fractions of 1.
    """
    found = rank_matches(distances, query_players, gallery_players, query_cameras, gallery_cameras)
    firsts = found.firsts
    ranks = firsts[~np.isnan(firsts)]
    return {
        "aps": found.precisions,
        "firsts": firsts,
        "mAP": float(np.nanmean(found.precisions)),
        **{f"rank{k}": float((ranks <= k).mean()) for k in (1, 5)},
        "mINP": found.penalty,
    }


def score_features(features, name="none", k1=20, k2=6, jaccard_weight=0.7):
    """Scores of one feature file's content (see `load_features`) after a post-processing."""
    return score(distances_of(features, name, k1, k2, jaccard_weight), *labels_of(features))


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
                scores[stem] = score(distances, *labels_of(models[0]))
    return scores


def write_entry(folder, models, post_processing, fusion, top_k=15):
    """Write a fused entry's distance CSVs: <set>.csv through the post-processing, <set>_plain.csv without.

    `models`: as from `load_models`; each model is the mean over its seeds. Returns {file stem: distances (Q, G)}.
    """
    entries = {}
    for name, seeds in models.items():
        for stem, processing in ((name, post_processing), (f"{name}_plain", "none")):
            averaged = [mean_distances([seed[model] for seed in seeds], processing) for model in seeds[0]]
            entries[stem] = fuse(averaged, fusion, top_k)
            ids = csv_ids(next(iter(seeds[0].values())), name)
            write_distance_csv(Path(folder) / f"{stem}.csv", entries[stem], *ids)
    return entries


def mean_distances(models, processing):
    """Mean over models of their distances after a post-processing: features as `load_features` gives -> (Q, G)."""
    return sum(distances_of(model, processing) for model in models) / len(models)


def csv_ids(model, name):
    """Query and gallery ids of a set's distance CSV (int64): image ids in the challenge set, players elsewhere.

    With players in header and first column, notebooks 03 and 04 can score the file.
    """
    kind = "images" if name == "challenge" else "players"
    if getattr(model, f"query_{kind}") is None:
        raise ValueError(f"the features of the {name} set name no images, which are the ids of its distance CSV")
    try:
        return [getattr(model, f"{role}_{kind}").astype(np.int64) for role in ("query", "gallery")]
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{kind} of the {name} set must be whole numbers for the distance CSV ({error})") from None
