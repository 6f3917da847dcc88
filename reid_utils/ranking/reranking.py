"""k-reciprocal re-ranking in three variants: from features or from given distances.

Every variant takes the same steps: neighbour lists, reciprocal sets R(p, k1), expanded sets R*(p, k1), sparse
rows of weights, query expansion over k2 neighbours, Jaccard distance, and the weighted mean with the original
distance. `jaccard_weight` w means final = w · Jaccard + (1 − w) · original; the literature's λ is 1 − w.

- `gaussian`, the 2022 winning entry's code: distances squared a second time; weights exp(−d).
- `hard`, the 2023 winning entry's code: binary membership; gallery images ranked among the gallery only.
- `kreciprocal`, the text of Zhong et al. 2017 (arXiv:1701.08398): as `gaussian`, distances squared once.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

import numpy as np

from reid_utils.ranking import neighbours as nb
from reid_utils.ranking.distances import check_features, check_matrix, is_tensor

VARIANTS = ("hard", "gaussian", "kreciprocal")


class _Problem(NamedTuple):
    """Distances as a variant wants them: neighbour lists of scaled values, and a way to look more values up."""

    nearest_queries: nb.Lists
    nearest_gallery: nb.Lists
    original: np.ndarray  # (Q, G) float32, the original term
    fill: Callable  # fill(indptr, members, values, start, stop) replaces the values that are NaN


class _Rows(NamedTuple):
    """A sparse matrix, one row an image, and whose rows query expansion averages for each."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    width: int
    neighbours: np.ndarray  # (N, ...) int32, -1 where there are no more


def _check_settings(variant: str, k1s: Iterable, k2s: Iterable, weights: Iterable, in_place: bool) -> None:
    if variant not in VARIANTS:
        raise ValueError(f"variant {variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
    if in_place and variant != "hard":
        raise ValueError(f"in_place=True exists for the hard variant only, not for {variant}")
    for name, value in [*(("k1", k) for k in k1s), *(("k2", k) for k in k2s)]:
        if value < 1 or value != int(value):
            raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
    for weight in weights:
        if not 0 <= weight <= 1:
            raise ValueError(f"jaccard_weight must lie in [0, 1], not {weight}")


def _warn_if_clipped(k1s: Iterable[int], gallery: int) -> None:
    if max(k1s) > gallery:
        warnings.warn(f"k1={max(k1s)} exceeds the gallery; all its {gallery} images are used", stacklevel=3)


def _scale(largest: np.ndarray, variant: str) -> np.ndarray:
    """What each image's distances are divided by: their maximum; 1 for `hard`, which ranks raw distances."""
    if variant == "hard":
        return np.ones_like(largest)
    largest = largest * largest if variant == "gaussian" else largest
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
    own = np.arange(queries, dtype=np.int32)
    others = np.sort(np.where(indices[:queries] == own[:, None], -1, indices[:queries]), axis=1)
    indices[:queries] = np.where(others < 0, own[:, None], others)
    values[:queries] = np.where(others < 0, np.float32(0), np.float32(np.inf))
    return nb.Lists(values, indices)


def _problem(search: nb.Search, query, gallery, variant: str, query_query: bool = True) -> _Problem:
    """The variant's problem from a search over features; its `query_gallery` becomes the original term."""
    from reid_utils.ranking._search_kernels import fill_from_features

    queries, square = len(query), variant == "gaussian"
    nearest_queries, largest = search.nearest_queries, search.largest.copy()
    if not query_query:
        nearest_queries = _hide_other_queries(nearest_queries, queries)
        largest[:queries, 0] = 0
    scale = _scale(largest.max(axis=1), variant)
    lists = []
    for part in (nearest_queries, search.nearest_gallery):
        values = part.values * part.values if square else part.values
        lists.append(nb.Lists(values / scale[:, None], part.indices))
    original = _original_term(search.query_gallery, scale, variant)
    return _Problem(*lists, original, partial(fill_from_features, query, gallery, square, scale))


def _search(query, gallery, k: int, threads: int | None) -> tuple[nb.Search, np.ndarray, np.ndarray]:
    on_device = is_tensor(query) and query.device.type != "cpu"
    tensors = (query, gallery)
    query, gallery = check_features(query, gallery)
    if on_device:
        return nb.search_tensors(*tensors, k), query, gallery
    return nb.search_features(query, gallery, k, threads), query, gallery


def _sets(ranks: np.ndarray, k: int, shift: int = 0, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Reciprocal sets R(i, k) of the first `rows` images, as (sizes, members)."""
    from reid_utils.ranking._sparse import reciprocal_sets

    rows, k = len(ranks) if rows is None else rows, min(k, ranks.shape[1])
    sizes, members = np.empty(rows, np.int64), np.empty((rows, k), np.int32)
    nb.each_block(partial(reciprocal_sets, ranks, k, shift, sizes, members), rows)
    return sizes, members


def _pointers(sizes: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([[0], *sizes]).cumsum(dtype=np.int64)


def _expanded(sets: tuple, half_sets: tuple, strict: bool, walkers: int, first_skipping: int) -> tuple:
    """Expanded sets R*(i, k) as (indptr, members); the arguments are those of the kernel."""
    from reid_utils.ranking._sparse import expanded_sets

    expand = partial(expanded_sets, sets, half_sets, strict, walkers, first_skipping)
    sizes, members = zip(*nb.each_block(expand, len(sets[0])), strict=True)
    return _pointers(sizes), np.concatenate(members)


def _weighted_rows(problem: _Problem, k1: int, k2: int) -> _Rows:
    """`gaussian` and `kreciprocal`: k1 + 1 neighbours with the image itself, weights exp(−d) of sum 1."""
    from reid_utils.ranking._search_kernels import listed_values
    from reid_utils.ranking._sparse import gaussian_weights

    ranks = nb.joint_lists(problem.nearest_queries, problem.nearest_gallery, max(k1 + 1, k2))
    total = len(ranks.indices)
    sets = _sets(ranks.indices, k1 + 1)
    half_sets = _sets(ranks.indices, round(k1 / 2) + 1)  # Python rounds halves to even, as the published code
    indptr, members = _expanded(sets, half_sets, True, 0, total)
    values = np.empty(len(members), np.float32)
    nb.each_block(partial(listed_values, *ranks[::-1], indptr, members, values), total)
    nb.each_block(partial(problem.fill, indptr, members, values), total)
    nb.each_block(partial(gaussian_weights, indptr, values), total)
    return _Rows(indptr, members, values, total, np.ascontiguousarray(ranks.indices[:, :k2]))


def _binary_rows(problem: _Problem, k1: int, k2: int) -> _Rows:
    """`hard`: membership among the gallery; queries rank everything, gallery images the gallery only."""
    queries, gallery = problem.original.shape
    joint = nb.joint_lists(problem.nearest_queries, problem.nearest_gallery, k1).indices
    alone = np.ascontiguousarray(problem.nearest_gallery.indices[queries:, :k1]) - np.int32(queries)
    of_queries, of_gallery = _sets(joint, k1, queries, queries), _sets(alone, k1)
    members = np.full((queries + gallery, k1), -1, np.int32)
    members[:queries, : of_queries[1].shape[1]] = of_queries[1]
    members[queries:, : of_gallery[1].shape[1]] = of_gallery[1]
    sets = (np.concatenate([of_queries[0], of_gallery[0]]), members)
    indptr, indices = _expanded(sets, _sets(alone, k1 // 2), False, queries, queries)
    neighbours = np.full((queries + gallery, min(k2, k1)), -1, np.int32)
    neighbours[:queries, : joint.shape[1]] = joint[:queries, :k2]
    others = alone[:, 1 : k2 + 1] + np.int32(queries)
    neighbours[queries:, : others.shape[1]] = others
    neighbours[:, 0] = np.where(neighbours[:, 0] < 0, np.arange(queries + gallery), neighbours[:, 0])
    return _Rows(indptr, indices, np.ones(len(indices), np.float32), gallery, neighbours)


def _query_expanded(rows: _Rows, in_place: bool) -> _Rows:
    """Each row becomes the mean of its neighbours' rows, simultaneously or (`in_place`) one after the other."""
    from reid_utils.ranking._sparse import mean_rows, mean_rows_in_place

    matrix = rows[:3]
    if in_place:
        blocks = [mean_rows_in_place(matrix, rows.neighbours, rows.width)]
    else:
        blocks = nb.each_block(partial(mean_rows, matrix, rows.neighbours, rows.width), len(rows.neighbours))
    sizes, indices, data = zip(*blocks, strict=True)
    return rows._replace(indptr=_pointers(sizes), indices=np.concatenate(indices), data=np.concatenate(data))


def _row_sums(rows: _Rows) -> np.ndarray:
    return np.bincount(
        np.repeat(np.arange(len(rows.indptr) - 1), np.diff(rows.indptr)), rows.data, len(rows.indptr) - 1
    ).astype(np.float32)


def _sparse_rows(problem: _Problem, variant: str, k1: int, k2: int) -> _Rows:
    return (_binary_rows if variant == "hard" else _weighted_rows)(problem, k1, k2)


def _blended(problem: _Problem, rows: _Rows, variant: str, weight: float, in_place: bool, out: np.ndarray) -> np.ndarray:
    """Query expansion, Jaccard distance and the weighted mean, written to `out` (Q, G)."""
    from reid_utils.ranking._sparse import jaccard_rows, transposed

    if variant == "hard" or rows.neighbours.shape[1] > 1:
        rows = _query_expanded(rows, in_place)
    queries = len(out)
    sums = _row_sums(rows) if variant == "hard" else np.ones(len(rows.indptr) - 1, np.float32)
    by_column = transposed(*rows[:3], queries, rows.width)
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
    threads: int | None = None,
) -> np.ndarray:
    """Re-ranked distances (Q, G) float32 from query (Q, d) and gallery (G, d) features.

    Exact, in memory of N·k plus the result. Tensors are searched on their own device; the result is an array.
    `in_place` (`hard` only) repeats the published code's order-dependent query expansion; without it the
    result does not depend on the images' order. `query_query=False` leaves out distances between queries.
    Warns where k1 exceeds the gallery; raises ValueError for NaN, unequal widths or impossible settings.
    """
    _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    _warn_if_clipped([k1], len(gallery))
    search, query, gallery = _search(query, gallery, max(k1 + 1, k2), threads)
    problem = _problem(search, query, gallery, variant, query_query)
    rows = _sparse_rows(problem, variant, k1, k2)
    return _blended(problem, rows, variant, jaccard_weight, in_place, problem.original)


def _check_blocks(query_gallery, query_query, gallery_gallery) -> tuple[np.ndarray, ...]:
    """The three matrices as float32 in the order (Q, Q), (Q, G), (G, G); an infinite (Q, Q) where None."""
    query_gallery = check_matrix(query_gallery, "query-gallery distances").astype(np.float32, copy=False)
    gallery_gallery = check_matrix(gallery_gallery, "gallery-gallery distances").astype(np.float32, copy=False)
    queries, gallery = query_gallery.shape
    if query_query is None:
        query_query = np.full((queries, queries), np.inf, np.float32)
        np.fill_diagonal(query_query, 0)
    else:
        query_query = check_matrix(query_query, "query-query distances").astype(np.float32, copy=False)
    for name, matrix, size in (("query-query", query_query, queries), ("gallery-gallery", gallery_gallery, gallery)):
        if matrix.shape != (size, size):
            raise ValueError(f"{name} distances must be of shape {(size, size)}, not {matrix.shape}")
    return query_query, query_gallery, gallery_gallery


def _problem_from_blocks(blocks: tuple[np.ndarray, ...], variant: str, k: int) -> _Problem:
    from reid_utils.ranking._search_kernels import fill_from_blocks

    query_query, query_gallery, gallery_gallery = blocks
    square = variant == "gaussian"
    between = np.where(np.isinf(query_query), 0, np.abs(query_query)).max(axis=1)
    largest = np.concatenate([
        np.maximum(between, query_gallery.max(axis=1)),
        np.maximum(query_gallery.max(axis=0), gallery_gallery.max(axis=1)),
    ])
    scale = _scale(largest, variant)
    lists = nb.search_blocks(blocks, k, square, scale)
    original = _original_term(query_gallery.copy(), scale, variant)
    return _Problem(*lists, original, partial(fill_from_blocks, *blocks, square, scale))


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
    published codes were given, `gaussian` and `hard` with `in_place` return what they return.
    """
    _check_settings(variant, [k1], [k2], [jaccard_weight], in_place)
    blocks = _check_blocks(query_gallery, query_query, gallery_gallery)
    _warn_if_clipped([k1], len(blocks[2]))
    problem = _problem_from_blocks(blocks, variant, max(k1 + 1, k2))
    rows = _sparse_rows(problem, variant, k1, k2)
    return _blended(problem, rows, variant, jaccard_weight, in_place, problem.original)


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
    k1s, k2s, weights = list(k1s), list(k2s), list(jaccard_weights)
    _check_settings(variant, k1s, k2s, weights, in_place)
    _warn_if_clipped(k1s, len(gallery))
    search, query, gallery = _search(query, gallery, max(max(k1s) + 1, *k2s), None)
    problem = _problem(search, query, gallery, variant)
    for k1, k2 in product(k1s, k2s):
        rows = _sparse_rows(problem, variant, k1, k2)
        jaccard = _blended(problem, rows, variant, 1.0, in_place, np.empty_like(problem.original))
        for weight in weights:
            yield (k1, k2, weight), np.float32(weight) * jaccard + np.float32(1 - weight) * problem.original
