"""Exact nearest neighbours of every query and gallery image, in memory that grows with N·k.

Images are numbered queries first: image i < Q is query i, image Q + j is gallery image j. Queries and gallery are cut
into tiles of 256 images, the last filled up with zero rows. The distances between two tiles come from one matrix
product, |x|² + |y|² − 2 x·y; all products have the same size, so that the product of two images does not depend on
what surrounds them, nor on the number of threads. Distances are symmetric, so every two tiles are multiplied once, and
each distance is offered to the lists of both its images. Threads work in rounds in which no tile is in two pairs.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

TILE = 256


class Search(NamedTuple):
    """Neighbour lists as keys, int64 and ascending: see `indices_of` and `distances_of`."""

    joint: np.ndarray  # (N, k) the nearest images of all, the image itself included
    alone: np.ndarray  # (N, k) the nearest gallery images
    largest: np.ndarray  # (N,) float32, each image's largest distance
    query_gallery: np.ndarray  # (Q, G) float32


def indices_of(keys: np.ndarray) -> np.ndarray:
    """The images in lists of neighbours, int32."""
    return (keys & 0xFFFFFFFF).astype(np.int32)


def distances_of(keys: np.ndarray) -> np.ndarray:
    """The squared distances in lists of neighbours, float32."""
    return (keys >> 32).astype(np.int32).view(np.float32)


def thread_count() -> int:
    """Threads to use: NUMBA_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may run on."""
    for name in ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS"):
        if os.environ.get(name, "").isdigit():
            return max(1, int(os.environ[name]))
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def each_block(function: Callable, rows: int, block: int = 512) -> list:
    """Call `function(start, stop)` for consecutive blocks of rows on several threads; results in row order."""
    starts = range(0, rows, block)
    stops = [min(start + block, rows) for start in starts]
    with ThreadPoolExecutor(thread_count()) as pool:
        return list(pool.map(function, starts, stops))


def _tiles(features: np.ndarray, first: int) -> Iterable[tuple[slice, np.ndarray]]:
    """Tiles (TILE, d) of (n, d) features with the numbers of their images, the last filled up with zero rows."""
    for start in range(0, len(features), TILE):
        rows = features[start : start + TILE]
        images = slice(first + start, first + start + len(rows))
        yield images, rows if len(rows) == TILE else np.pad(rows, ((0, TILE - len(rows)), (0, 0)))


def _rounds(tiles: int) -> Iterator[list[tuple[int, int]]]:
    """Every tile with itself, then every two tiles once, in rounds that have no tile twice (the circle method)."""
    yield [(tile, tile) for tile in range(tiles)]
    circle = tiles - 1 + tiles % 2
    for turn in range(circle):
        pairs = [(turn, circle), *(((turn + i) % circle, (turn - i) % circle) for i in range(1, (circle + 1) // 2))]
        yield [(min(pair), max(pair)) for pair in pairs if max(pair) < tiles]


def search(query: np.ndarray, gallery: np.ndarray, k: int, query_query: bool = True) -> Search:
    """Exact k nearest images of every image, by squared Euclidean distance; ties go to the lower index.

    `query` (Q, d), `gallery` (G, d): float32, finite. Distances are at least 0, and 0 to itself and between equal
    rows. Without `query_query` two queries are infinitely far apart, which `largest` leaves out.
    """
    from threadpoolctl import threadpool_limits

    from reid_utils.ranking._kernels import offer_tile

    queries, total = len(query), len(query) + len(gallery)
    tiles = [*_tiles(query, 0), *_tiles(gallery, queries)]
    lists = [np.full((total, min(k, len(part))), np.iinfo(np.int64).max) for part in (query, gallery)]
    norms, largest = np.empty((2, total), np.float32)
    largest[:], query_gallery = 0, np.empty((queries, len(gallery)), np.float32)

    def take(pair: tuple[int, int]) -> None:
        (rows, left), (columns, right) = (tiles[number] for number in pair)
        products = left @ right.T
        if rows == columns:
            norms[rows] = products.diagonal()[: rows.stop - rows.start]
        if columns.start < queries and not query_query:
            products[:] = -np.inf
        sides = [
            (images.start, norms[images], largest[images], lists[others.start >= queries][images])
            for images, others in ((rows, columns), (columns, rows))
        ]
        offer_tile(products, rows == columns, *sides)
        if rows.start < queries <= columns.start:
            found = products[: rows.stop - rows.start, : columns.stop - columns.start]
            query_gallery[rows, columns.start - queries : columns.stop - queries] = found

    with threadpool_limits(1, "blas"), ThreadPoolExecutor(thread_count()) as pool:  # BLAS threads would spin beside ours
        for pairs in _rounds(len(tiles)):
            list(pool.map(take, pairs))
    if not query_query:
        largest[:queries] = query_gallery.max(axis=1)
    return Search(np.sort(np.concatenate(lists, axis=1), axis=1)[:, :k], lists[1], largest, query_gallery)


def nearest_columns(matrix: np.ndarray, k: int) -> np.ndarray:
    """Column indices (n, k) int32 of each row's k smallest values, ties to the lower column."""
    indices = np.empty((len(matrix), k), np.int32)

    def fill(start: int, stop: int) -> None:
        for row, found in zip(matrix[start:stop], indices[start:stop], strict=True):
            near = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1])
            found[:] = near[np.argsort(row[near], kind="stable")[:k]]

    each_block(fill, len(matrix), block=64)
    return indices
