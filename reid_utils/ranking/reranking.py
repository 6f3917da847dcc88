"""k-reciprocal re-ranking in three variants: from features or from given distances.

Every variant takes the steps of Zhong et al. 2017, a function each here, their loops in `_kernels`: neighbour lists,
reciprocal sets R(p, k1) and expanded sets R*(p, k1) (section 3.2), rows of weights (3.3), query expansion over k2
neighbours (3.4), Jaccard distance (3.3), and the weighted mean with the original distance (3.5). `jaccard_weight` w
means final = w · Jaccard + (1 − w) · original; the paper's λ is 1 − w.

- `gaussian`, the 2022 winning entry's code: distances squared a second time; weights exp(−d).
- `hard`, the 2023 winning entry's code: binary membership; gallery images ranked among the gallery only.
- `kreciprocal`, the text of that paper (arXiv:1701.08398): as `gaussian`, distances squared once.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from reid_utils.ranking import neighbours as nb
from reid_utils.ranking.distances import check_count, check_features, check_matrix, check_number, is_tensor

VARIANTS = ("hard", "gaussian", "kreciprocal")


class Problem(NamedTuple):
    """Distances as a variant wants them: neighbour lists of scaled values, and a way to look more values up."""

    joint: nb.Lists  # nearest images of queries and gallery together, of all N images
    alone: np.ndarray  # (G, k) nearest gallery images of the gallery images, counted from 0
    original: np.ndarray  # (Q, G) float32, the original term
    fill: Callable  # fill(indptr, members, values, start, stop) replaces the values that are NaN


class Rows(NamedTuple):
    """A sparse matrix, one row an image, and whose rows query expansion averages for each."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    width: int
    neighbours: np.ndarray  # (N, ...) int32, -1 where there are no more


def _check_settings(variant: str, k1s: Iterable, k2s: Iterable, weights: Iterable, in_place: bool) -> tuple:
    """The lists of k1, k2 and weights as Python's own numbers."""
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    if in_place and variant != "hard":
        raise ValueError(f"in_place=True exists for the hard variant only, not for {variant}")
    weights = [check_number(weight, "jaccard_weight", 1) for weight in weights]
    checked = [check_count(k, "k1") for k in k1s], [check_count(k, "k2") for k in k2s], weights
    for name, values in zip(("k1", "k2", "jaccard_weight"), checked, strict=True):
        if not values:
            raise ValueError(f"no {name} is given; name at least one")
    return checked


def _warn_if_clipped(k1: int, gallery: int) -> None:
    if k1 > gallery:
        warnings.warn(f"k1={k1} exceeds the gallery; all its {gallery} images are used", stacklevel=3)


def _scale(largest: np.ndarray, variant: str) -> np.ndarray:
    """What each image's distances are divided by: their maximum; 1 for `hard`, which ranks raw distances."""
    if variant == "hard":
        return np.ones_like(largest)
    with np.errstate(over="ignore"):
        largest = largest * largest if variant == "gaussian" else largest
    if not np.isfinite(largest).all():
        raise ValueError("the distances are too large to be squared in float32; L2-normalise the features")
    return np.where(largest > 0, largest, np.float32(1))


def _original_term(distances: np.ndarray, scale: np.ndarray, variant: str) -> np.ndarray:
    """Turn (Q, G) distances, in place, into the original term: shares of the maximum, or unit rows (`hard`)."""
    for row, divisor in zip(distances, scale, strict=False):
        if variant == "gaussian":
            np.multiply(row, row, out=row)
        elif variant == "hard":
            divisor = np.linalg.norm(row) or np.float32(1)
        np.divide(row, divisor, out=row)
    return distances


def _hide_other_queries(nearest: nb.Lists, queries: int) -> nb.Lists:
    """The nearest queries of every image, with a query's distances to other queries made infinite."""
    values, indices = nearest.values.copy(), nearest.indices.copy()
    own = np.arange(queries, dtype=np.int32)[:, None]
    others = np.arange(indices.shape[1] - 1, dtype=np.int32)  # of infinite distances the lower index comes first
    indices[:queries] = np.concatenate([own, others + (others >= own)], axis=1)
    values[:queries, 0], values[:queries, 1:] = 0, np.inf
    return nb.Lists(values, indices)


def _search(query, gallery, k: int) -> tuple[nb.Search, np.ndarray, np.ndarray]:
    """Check the features and search on the device where they are; the features come back as arrays."""
    device = query.device if is_tensor(query) else "cpu"
    query, gallery = check_features(query, gallery)
    if str(device) == "cpu":
        return nb.search_features(query, gallery, k), query, gallery
    import torch

    return nb.search_tensors(*(torch.from_numpy(side).to(device) for side in (query, gallery)), k), query, gallery


def _problem(search: nb.Search, query, gallery, variant: str, k: int, query_query: bool = True) -> Problem:
    """The variant's problem from a search over features; its `query_gallery` becomes the original term."""
    from reid_utils.ranking._kernels import fill_from_features

    square, queries = variant == "gaussian", len(query)
    hidden = 0 if query_query else queries
    nearest_queries, nearest_gallery, largest, distances = search
    if hidden:
        nearest_queries, largest = _hide_other_queries(nearest_queries, queries), largest.copy()
        largest[:queries, 0] = 0
    scale = _scale(largest.max(axis=1), variant)
    scaled = [
        nb.Lists((values * values if square else values) / scale[:, None], indices)
        for values, indices in (nearest_queries, nearest_gallery)
    ]
    joint = nb.joint_lists(*scaled, k)
    alone = nearest_gallery.indices[queries:] - np.int32(queries)
    fill = partial(fill_from_features, query, gallery, hidden, square, scale)
    return Problem(joint, alone, _original_term(distances, scale, variant), fill)


def _one_matrix(query_gallery, query_query, gallery_gallery) -> np.ndarray:
    """Distances of all N images as one float32 matrix; infinite between queries where their block is None."""
    query_gallery = check_matrix(query_gallery, "query-gallery distances")
    gallery_gallery = check_matrix(gallery_gallery, "gallery-gallery distances")
    queries, gallery = query_gallery.shape
    if query_query is None:
        query_query = np.where(np.eye(queries), np.float32(0), np.float32(np.inf))
    else:
        query_query = check_matrix(query_query, "query-query distances")
    for name, matrix, size in (("query-query", query_query, queries), ("gallery-gallery", gallery_gallery, gallery)):
        if matrix.shape != (size, size):
            raise ValueError(f"{name} distances must be of shape {(size, size)}, not {matrix.shape}")
    return np.block([[query_query, query_gallery], [query_gallery.T, gallery_gallery]]).astype(np.float32, copy=False)


def _sets(ranks: np.ndarray, k: int, shift: int = 0, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal sets R(i, k) of the first `rows` images, as (sizes, members)."""
    from reid_utils.ranking._kernels import reciprocal_sets

    rows, k = len(ranks) if rows is None else rows, min(k, ranks.shape[1])
    sizes, members = np.empty(rows, np.int64), np.empty((rows, k), np.int32)
    nb.each_block(partial(reciprocal_sets, ranks, k, shift, sizes, members), rows)
    return sizes, members


def _pointers(sizes: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], *sizes]).cumsum(dtype=np.int64)


def _expanded(sets: tuple, half_sets: tuple, strict: bool, walkers: int, first_skipping: int) -> tuple:
    """Expanded sets R*(i, k) as (indptr, members); the arguments are those of the kernel."""
    from reid_utils.ranking._kernels import expanded_sets

    expand = partial(expanded_sets, sets, half_sets, strict, walkers, first_skipping)
    sizes, members = zip(*nb.each_block(expand, len(sets[0])), strict=True)
    return _pointers(sizes), np.concatenate(members)


def _weighted_rows(problem: Problem, k1: int, k2: int) -> Rows:
    """`gaussian` and `kreciprocal`: k1 + 1 neighbours with the image itself, weights exp(−d) of sum 1."""
    from reid_utils.ranking._kernels import gaussian_weights, listed_values

    listed, ranks = problem.joint
    total = len(ranks)
    sets = _sets(ranks, k1 + 1)
    half_sets = _sets(ranks, round(k1 / 2) + 1)  # Python rounds halves to even, as the published code
    indptr, members = _expanded(sets, half_sets, True, 0, total)
    values = np.empty(len(members), np.float32)
    nb.each_block(partial(listed_values, ranks, listed, indptr, members, values), total)
    nb.each_block(partial(problem.fill, indptr, members, values), total)
    nb.each_block(partial(gaussian_weights, indptr, values), total)
    return Rows(indptr, members, values, total, np.ascontiguousarray(ranks[:, :k2]))


def _binary_rows(problem: Problem, k1: int, k2: int) -> Rows:
    """`hard`: membership among the gallery; queries rank everything, gallery images the gallery only."""
    queries, gallery = problem.original.shape
    of_queries, of_gallery = _sets(problem.joint.indices, k1, queries, queries), _sets(problem.alone, k1)
    members = np.full((queries + gallery, k1), -1, np.int32)
    members[:queries, : of_queries[1].shape[1]] = of_queries[1]
    members[queries:, : of_gallery[1].shape[1]] = of_gallery[1]
    sets = (np.concatenate([of_queries[0], of_gallery[0]]), members)
    indptr, indices = _expanded(sets, _sets(problem.alone, k1 // 2), False, queries, queries)
    joint, alone = problem.joint.indices[:, :k1], problem.alone[:, :k1]
    neighbours = np.full((queries + gallery, min(k2, k1)), -1, np.int32)
    neighbours[:queries, : joint.shape[1]] = joint[:queries, :k2]
    others = alone[:, 1 : k2 + 1] + np.int32(queries)
    neighbours[queries:, : others.shape[1]] = others
    neighbours[:, 0] = np.where(neighbours[:, 0] < 0, np.arange(queries + gallery), neighbours[:, 0])
    return Rows(indptr, indices, np.ones(len(indices), np.float32), gallery, neighbours)


def _query_expanded(rows: Rows, in_place: bool) -> Rows:
    """Each row becomes the mean of its neighbours' rows, simultaneously or (`in_place`) one after the other."""
    from reid_utils.ranking._kernels import mean_rows, mean_rows_in_place

    matrix = rows[:3]
    if in_place:
        blocks = [mean_rows_in_place(matrix, rows.neighbours, rows.width)]
    else:
        blocks = nb.each_block(partial(mean_rows, matrix, rows.neighbours, rows.width), len(rows.neighbours))
    sizes, indices, data = zip(*blocks, strict=True)
    return rows._replace(indptr=_pointers(sizes), indices=np.concatenate(indices), data=np.concatenate(data))


def _blended(problem: Problem, variant: str, k1: int, k2: int, weight: float, in_place: bool, out) -> np.ndarray:
    """Rows, query expansion, Jaccard distance and the weighted mean, written to `out` (Q, G)."""
    from scipy.sparse import csr_array

    from reid_utils.ranking._kernels import jaccard_rows

    rows = (_binary_rows if variant == "hard" else _weighted_rows)(problem, k1, k2)
    if variant == "hard" or rows.neighbours.shape[1] > 1:
        rows = _query_expanded(rows, in_place)
    queries, total = len(out), len(rows.neighbours)
    sums = np.ones(total, np.float32)
    if variant == "hard":
        sums = np.bincount(np.repeat(np.arange(total), np.diff(rows.indptr)), rows.data, total).astype(np.float32)
    matrix = csr_array((rows.data, rows.indices, rows.indptr), shape=(len(sums), rows.width))
    columns = matrix[queries:].tocsc()
    by_column = (columns.indptr, columns.indices, columns.data)
    weights = (np.float32(weight), np.float32(1 - weight))
    nb.each_block(partial(jaccard_rows, rows[:3], by_column, sums, weights, problem.original, out), queries, block=16)
    return out


def rerank(
    query,
    gallery,
    variant: str = "hard",
    k1: int = 20,
    k2: int = 6,
    jaccard_weight: float = 0.7,
    in_place: bool = False,
    *,
    query_query: bool = True,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 from query (Q, d) and gallery (G, d) features.

    Exact, in memory of N·k plus the result. Tensors are searched on their own device; the result is an array.
    `in_place` (`hard` only) repeats the published code's order-dependent query expansion; without it the
    result does not depend on the images' order. `query_query=False` leaves out distances between queries.
    Warns where k1 exceeds the gallery; raises ValueError for NaN, unequal widths or impossible settings.
    """
    (k1,), (k2,), (jaccard_weight,) = _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    k = max(k1 + 1, k2)
    search, query, gallery = _search(query, gallery, k)
    _warn_if_clipped(k1, len(gallery))
    problem = _problem(search, query, gallery, variant, k, query_query)
    return _blended(problem, variant, k1, k2, jaccard_weight, in_place, problem.original)


def rerank_distances(
    query_gallery,
    query_query,
    gallery_gallery,
    variant: str = "hard",
    k1: int = 20,
    k2: int = 6,
    jaccard_weight: float = 0.7,
    in_place: bool = False,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 from squared Euclidean distances (Q, G), (Q, Q) and (G, G).

    Settings and errors as in `rerank`. `query_query=None` leaves out distances between queries. Given what the
    published codes were given, `gaussian` and `hard` with `in_place` return what they return. Memory: N × N.
    """
    (k1,), (k2,), (jaccard_weight,) = _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    distances, queries = _one_matrix(query_gallery, query_query, gallery_gallery), len(query_gallery)
    _warn_if_clipped(k1, len(distances) - queries)
    scale = _scale(distances.max(axis=1, where=np.isfinite(distances), initial=0), variant)
    original = _original_term(distances[:queries, queries:].copy(), scale, variant)
    distances = (distances * distances if variant == "gaussian" else distances) / scale[:, None]
    k, within = max(k1 + 1, k2), np.ascontiguousarray(distances[queries:, queries:])
    joint, alone = (nb.nearest_columns(matrix, min(k, len(matrix))) for matrix in (distances, within))

    def fill(indptr, members, values, start: int, stop: int) -> None:
        images, block = np.arange(start, stop), slice(indptr[start], indptr[stop])
        values[block] = distances[np.repeat(images, np.diff(indptr[start : stop + 1])), members[block]]

    listed = nb.Lists(np.take_along_axis(distances, joint, axis=1), joint)
    problem = Problem(listed, alone, original, fill)
    return _blended(problem, variant, k1, k2, jaccard_weight, in_place, original)


def rerank_sweep(
    query,
    gallery,
    variant: str = "hard",
    k1s: Iterable[int] = (20,),
    k2s: Iterable[int] = (6,),
    jaccard_weights: Iterable[float] = (0.7,),
    in_place: bool = False,
) -> Iterator[tuple[tuple[int, int, float], np.ndarray]]:
    """Yield ((k1, k2, jaccard_weight), distances) for every combination, from one neighbour search.

    Arguments and errors as in `rerank`, with which each yielded (Q, G) array agrees.
    """
    k1s, k2s, weights = _check_settings(variant, k1s, k2s, jaccard_weights, in_place)
    k = max(*k1s, *k2s) + 1
    search, query, gallery = _search(query, gallery, k)
    _warn_if_clipped(max(k1s), len(gallery))
    problem = _problem(search, query, gallery, variant, k)
    for k1, k2 in product(k1s, k2s):
        jaccard = _blended(problem, variant, k1, k2, 1.0, in_place, np.empty_like(problem.original))
        for weight in weights:
            yield (k1, k2, weight), np.float32(weight) * jaccard + np.float32(1 - weight) * problem.original
