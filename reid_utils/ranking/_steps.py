"""The steps of k-reciprocal re-ranking, from neighbour lists to the blended distance.

`reranking` holds the public functions and says what the variants are; the compiled loops are in `_sparse`.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import numpy as np

from reid_utils.ranking import neighbours as nb


class Problem(NamedTuple):
    """Distances as a variant wants them: neighbour lists of scaled values, and a way to look more values up."""

    nearest_queries: nb.Lists
    nearest_gallery: nb.Lists
    original: np.ndarray  # (Q, G) float32, the original term
    fill: Callable  # fill(indptr, members, values, start, stop) replaces the values that are NaN


class Rows(NamedTuple):
    """A sparse matrix, one row an image, and whose rows query expansion averages for each."""

    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray
    width: int
    neighbours: np.ndarray  # (N, ...) int32, -1 where there are no more


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


def _weighted_rows(problem: Problem, k1: int, k2: int) -> Rows:
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
    return Rows(indptr, members, values, total, np.ascontiguousarray(ranks.indices[:, :k2]))


def _binary_rows(problem: Problem, k1: int, k2: int) -> Rows:
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
    return Rows(indptr, indices, np.ones(len(indices), np.float32), gallery, neighbours)


def _query_expanded(rows: Rows, in_place: bool) -> Rows:
    """Each row becomes the mean of its neighbours' rows, simultaneously or (`in_place`) one after the other."""
    from reid_utils.ranking._sparse import mean_rows, mean_rows_in_place

    matrix = rows[:3]
    if in_place:
        blocks = [mean_rows_in_place(matrix, rows.neighbours, rows.width)]
    else:
        blocks = nb.each_block(partial(mean_rows, matrix, rows.neighbours, rows.width), len(rows.neighbours))
    sizes, indices, data = zip(*blocks, strict=True)
    return rows._replace(indptr=_pointers(sizes), indices=np.concatenate(indices), data=np.concatenate(data))


def _row_sums(rows: Rows) -> np.ndarray:
    count = len(rows.indptr) - 1
    owners = np.repeat(np.arange(count), np.diff(rows.indptr))
    return np.bincount(owners, rows.data, count).astype(np.float32)


def sparse_rows(problem: Problem, variant: str, k1: int, k2: int) -> Rows:
    """The variant's rows before query expansion."""
    return (_binary_rows if variant == "hard" else _weighted_rows)(problem, k1, k2)


def blended(problem: Problem, rows: Rows, variant: str, weight: float, in_place: bool, out: np.ndarray) -> np.ndarray:
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
