"""k-reciprocal re-ranking in three variants: from features or from given distances.

The steps of Zhong et al. 2017 (arXiv:1701.08398): reciprocal sets R(i, k1), expanded sets R*(i, k1), a row of weights
an image, query expansion over k2 neighbours, Jaccard distance, weighted mean with the original distance. The weight w
means w · Jaccard + (1 − w) · original; the paper's λ is 1 − w. Sets are sparse, so memory grows with N · k.

- `gaussian`, the 2022 winning entry's code: distances squared a second time; weights exp(−d).
- `hard`, the 2023 winning entry's code: binary membership; gallery images ranked among the gallery only.
- `kreciprocal`, the text of that paper: as `gaussian`, distances squared once.
"""

import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from reid_utils.ranking.distances import check_count, check_features, check_matrix, check_number
from reid_utils.ranking.neighbours import each_block, indices_of, nearest_columns, search

VARIANTS = ("hard", "gaussian", "kreciprocal")


class Neighbours(NamedTuple):
    """What a variant needs to know of the distances between N = Q + G images."""

    joint: np.ndarray  # (N, k) int32, the nearest images of all, nearest first
    alone: np.ndarray  # (G, k) int32, the nearest gallery images of the gallery images, counted from 0
    original: np.ndarray  # (Q, G) float32, the original term
    between: Callable  # (rows, columns) -> distances of these pairs of images, in the variant's scale


def _check_settings(variant, k1s, k2s, weights, in_place, gallery):
    """The lists of k1, k2 and weights as Python's own numbers; warns where a k1 exceeds the gallery."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    if in_place and variant != "hard":
        raise ValueError(f"in_place=True exists for the hard variant only, not for {variant}")
    for name, values in {"k1": k1s, "k2": k2s, "jaccard_weight": weights}.items():
        if not len(values):
            raise ValueError(f"no {name} is given; name at least one")
    weights = [check_number(weight, "jaccard_weight", 1) for weight in weights]
    checked = [check_count(k, "k1") for k in k1s], [check_count(k, "k2") for k in k2s], weights
    if max(checked[0]) > gallery:
        warnings.warn(f"k1={max(checked[0])} exceeds the gallery; all its {gallery} images are used", stacklevel=3)
    return checked


def _scale(largest, variant):
    """What each image's distances are divided by: their maximum; 1 for `hard`, which ranks raw distances."""
    if variant == "gaussian" and largest.max() > 1e19:
        raise ValueError("the distances are too large to be squared in float32; L2-normalise the features")
    scale = _scaled(largest.copy(), 1, variant)
    return np.where((scale > 0) & (variant != "hard"), scale, np.float32(1))


def _scaled(distances, scale, variant):
    """Squared distances, in place, in the variant's own scale."""
    if variant == "gaussian":
        np.multiply(distances, distances, out=distances)
    return np.divide(distances, scale, out=distances)


def _original_term(distances, scale, variant):
    """Turn (Q, G) distances, in place, into the original term: shares of the maximum, or unit rows (`hard`)."""
    if variant == "hard":
        scale = np.sqrt(np.vecdot(distances, distances))
        scale[scale == 0] = 1
    return _scaled(distances, scale[: len(distances), None], variant)


def _neighbours(query, gallery, variant, k, query_query=True):
    """The neighbours by features."""
    from reid_utils.ranking._kernels import pair_distances

    joint, alone, largest, distances = search(query, gallery, k, query_query)
    queries, scale = len(query), _scale(largest, variant)

    def between(rows, columns):
        found = np.empty(len(rows), np.float32)
        each_block(partial(pair_distances, query, gallery, rows, columns, found), len(rows), block=1 << 14)
        if not query_query:
            found[(rows < queries) & (columns < queries) & (rows != columns)] = np.inf
        return _scaled(found, scale[rows], variant)

    original = _original_term(distances, scale, variant)
    return Neighbours(indices_of(joint), indices_of(alone[queries:] - queries), original, between)


def _square(matrix, name, size):
    matrix = check_matrix(matrix, f"{name} distances")
    if matrix.shape != (size, size):
        raise ValueError(f"{name} distances must be of shape {(size, size)}, not {matrix.shape}")
    return matrix


def _sparse(lists, width, data=1):
    """Lists (n, k) of columns as a sparse matrix (n, width) of int32."""
    from scipy.sparse import csr_array

    data = np.broadcast_to(np.asarray(data, np.int32), lists.shape).ravel()
    return csr_array((data, lists.ravel(), np.arange(len(lists) + 1) * lists.shape[1]), (len(lists), width))


def _reciprocal(lists, k, rows=None):
    """R(i, k) of the first `rows` images: which of the k nearest have i among theirs; k for the nearest, then less."""
    lists = lists[:, :k]
    near = _sparse(lists, len(lists), np.arange(lists.shape[1], 0, -1))
    return near[:rows].multiply(_sparse(lists, len(lists))[:, :rows].T).tocsr()


def _nearest(sets):
    """The nearest member of each set, as 0/1."""
    return _sparse(sets.argmax(axis=1)[:, None], sets.shape[1]).multiply(sets).sign()


def _agreeing(candidates, tested, halves, strict):
    """The candidates, as 0/1, whose half-size set lies by (`strict`: more than) two thirds in the image's `tested`."""
    shared = candidates.multiply(3 * (tested @ halves.T))
    surplus = shared - candidates.multiply(2 * halves.sum(axis=1))
    return ((surplus > 0) if strict else candidates - (surplus < 0)).astype(np.int32)


def _weighted_rows(neighbours, k1, k2):
    """`gaussian` and `kreciprocal`: k1 + 1 neighbours with the image itself, weights exp(−d) of sum 1."""
    sets = _reciprocal(neighbours.joint, k1 + 1).sign()
    halves = _reciprocal(neighbours.joint, round(k1 / 2) + 1).sign()  # rounds halves to even, as the published code
    rows = (sets + _agreeing(sets, sets, halves, True) @ halves).astype(np.float32)
    images = np.repeat(np.arange(len(neighbours.joint), dtype=np.int32), np.diff(rows.indptr))
    weights = np.exp(-neighbours.between(images, rows.indices))
    rows.data = weights / np.bincount(images, weights, len(neighbours.joint)).astype(np.float32)[images]
    return rows, neighbours.joint[:, :k2]


def _binary_rows(neighbours, k1, k2):
    """`hard`: membership among the gallery; queries rank everything, gallery images the gallery only."""
    from scipy.sparse import vstack

    queries, gallery = neighbours.original.shape
    halves = _reciprocal(neighbours.alone, k1 // 2).sign()
    ranked = _reciprocal(neighbours.joint, k1, queries)[:, queries:]
    sets = ranked.sign()
    first = _nearest(ranked.multiply(_agreeing(sets, sets, halves, False)).tocsr())
    tried = (sets + first @ halves).sign()  # a query also tries the members that its first merge adds
    of_queries = sets + _agreeing(tried, sets, halves, False) @ halves
    ranked = _reciprocal(neighbours.alone, k1)
    sets = ranked.sign()
    tested = sets - _nearest(ranked)  # as published, the nearest member is not tested against
    of_gallery = sets + _agreeing(sets, tested, halves, False) @ halves
    averaged = np.full((queries + gallery, min(k1, k2, queries + gallery)), -1, np.int32)
    averaged[:queries] = neighbours.joint[:queries, : averaged.shape[1]]
    others = neighbours.alone[:, 1 : min(k1, k2 + 1)] if min(k1, gallery) > 1 else np.arange(gallery)[:, None]
    averaged[queries:, : others.shape[1]] = others + queries
    return vstack([of_queries, of_gallery]).sign().astype(np.float32), averaged


def _blended(neighbours, variant, k1, k2, weight, in_place, out):
    """Rows, query expansion and Jaccard distance, blended with the original distances that `out` (Q, G) holds."""
    from scipy.sparse import csr_array

    from reid_utils.ranking._kernels import jaccard_rows, mean_rows

    rows, averaged = (_binary_rows if variant == "hard" else _weighted_rows)(neighbours, k1, k2)
    if variant == "hard" or averaged.shape[1] > 1:
        rows = csr_array(
            mean_rows((rows.data, rows.indices, rows.indptr), rows.shape[1], averaged, in_place), rows.shape
        )
    sums = rows.sum(axis=1) if variant == "hard" else np.ones(len(averaged), np.float32)  # 1 for empty rows too
    parts = [(matrix.data, matrix.indices, matrix.indptr) for matrix in (rows, rows[len(out) :].tocsc())]
    each_block(partial(jaccard_rows, *parts, sums, np.float32(weight), out), len(out), block=16)
    return out


def rerank(query, gallery, variant="hard", k1=20, k2=6, jaccard_weight=0.7, in_place=False, *, query_query=True):
    """Re-ranked distances (Q, G) float32 from query (Q, d) and gallery (G, d) features, arrays or tensors.

    `variant`: "hard" (the 2023 winning entry), "gaussian" (the 2022 one) or "kreciprocal" (Zhong et al. 2017).
    Exact, in memory of N·k plus the result. `in_place` (`hard` only) repeats the published query expansion, which
    depends on the images' order. `query_query=False` leaves out distances between queries. Warns where k1 exceeds the
    gallery; raises ValueError for NaN, unequal widths or impossible settings.
    """
    query, gallery = check_features(query, gallery)
    (k1,), (k2,), (jaccard_weight,) = _check_settings(variant, [k1], [k2], [jaccard_weight], in_place, len(gallery))
    neighbours = _neighbours(query, gallery, variant, max(k1 + 1, k2), query_query)
    return _blended(neighbours, variant, k1, k2, jaccard_weight, in_place, neighbours.original)


def rerank_distances(
    query_gallery, query_query, gallery_gallery, variant="hard", k1=20, k2=6, jaccard_weight=0.7, in_place=False
):
    """Re-ranked distances (Q, G) float32 from squared Euclidean distances (Q, G), (Q, Q) and (G, G).

    Settings and errors as in `rerank`. `query_query=None` leaves out distances between queries. Given what the
    published codes were given, `gaussian` and `hard` with `in_place` return what they return. Memory: N × N.
    """
    query_gallery = check_matrix(query_gallery, "query-gallery distances")
    queries, gallery = query_gallery.shape
    hidden = np.where(np.eye(queries), np.float32(0), np.float32(np.inf))
    within = hidden if query_query is None else _square(query_query, "query-query", queries)
    gallery_gallery = _square(gallery_gallery, "gallery-gallery", gallery)
    distances = np.block([[within, query_gallery], [query_gallery.T, gallery_gallery]]).astype(np.float32, copy=False)
    (k1,), (k2,), (jaccard_weight,) = _check_settings(variant, [k1], [k2], [jaccard_weight], in_place, gallery)
    scale = _scale(distances.max(axis=1, where=np.isfinite(distances), initial=0), variant)
    original = _original_term(distances[:queries, queries:].copy(), scale, variant)
    parts = _scaled(distances, scale[:, None], variant), distances[queries:, queries:]
    nearest = (nearest_columns(part, min(max(k1 + 1, k2), len(part))) for part in parts)
    neighbours = Neighbours(*nearest, original, lambda rows, columns: distances[rows, columns])
    return _blended(neighbours, variant, k1, k2, jaccard_weight, in_place, original)


def rerank_sweep(query, gallery, variant="hard", k1s=(20,), k2s=(6,), jaccard_weights=(0.7,), in_place=False):
    """Yield ((k1, k2, jaccard_weight), distances) for every combination, from one neighbour search.

    Arguments and errors as in `rerank`, with which each yielded (Q, G) array agrees.
    """
    query, gallery = check_features(query, gallery)
    k1s, k2s, weights = _check_settings(variant, k1s, k2s, jaccard_weights, in_place, len(gallery))
    neighbours = _neighbours(query, gallery, variant, max(*k1s, *k2s) + 1)
    for k1, k2 in product(k1s, k2s):
        jaccard = _blended(neighbours, variant, k1, k2, 1.0, in_place, np.zeros_like(neighbours.original))
        for weight in weights:
            yield (k1, k2, weight), np.float32(weight) * jaccard + np.float32(1 - weight) * neighbours.original
