"""Exact nearest neighbours of every query and gallery image, in memory that grows with N·k.

Images are numbered queries first, then gallery. Both are cut into tiles of 256 images. The distances between two tiles
come from one matrix product, |x|² + |y|² − 2 x·y, always of the same size, so that they do not depend on neighbouring
rows or on the number of threads. Every two tiles are multiplied once, and each distance is offered to the lists of both
its images. Threads work in rounds in which no tile is in two pairs.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

TILE = 256


def indices_of(keys):
    """The images, int32, in ascending keys, int64: the bits of a distance (float32) above those of an image."""
    return (keys & 0xFFFFFFFF).astype(np.int32)


def thread_count():
    """Threads to use: OMP_NUM_THREADS, else the cores this process may run on."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(given)) if given.isdigit() else cores


def each_block(function, rows, block=512):
    """Call `function(start, stop)` for consecutive blocks of rows on several threads; results in row order."""
    starts = range(0, rows, block)
    stops = [min(start + block, rows) for start in starts]
    with ThreadPoolExecutor(thread_count()) as pool:
        return list(pool.map(function, starts, stops))


def _tiles(features, first):
    """Tiles (TILE, d) of (n, d) features with the numbers of their images, the last filled up with zero rows."""
    for start in range(0, len(features), TILE):
        rows = features[start : start + TILE]
        images = slice(first + start, first + start + len(rows))
        yield images, rows if len(rows) == TILE else np.pad(rows, ((0, TILE - len(rows)), (0, 0)))


def _rounds(tiles):
    """Every tile with itself, then every two tiles once, in rounds that have no tile twice (the circle method)."""
    yield [(tile, tile) for tile in range(tiles)]
    circle = tiles - 1 + tiles % 2
    for turn in range(circle):
        pairs = [(turn, circle), *(((turn + i) % circle, (turn - i) % circle) for i in range(1, (circle + 1) // 2))]
        yield [(min(pair), max(pair)) for pair in pairs if max(pair) < tiles]


def search(query, gallery, k, query_query=True):
    """Exact k nearest images of every image, by squared Euclidean distance; ties go to the lower index.

    Of `query` (Q, d) and `gallery` (G, d), float32: the nearest of all images (N, k) and of the gallery (N, k), both as
    keys (see `indices_of`); each image's largest distance (N,); the distances (Q, G), float32, 0 between equal images.
    Without `query_query` two queries are infinitely far apart, which the largest distances leave out.
    """
    from threadpoolctl import threadpool_limits

    from reid_utils.ranking._kernels import offer_tile

    queries, total = len(query), len(query) + len(gallery)
    tiles = [*_tiles(query, 0), *_tiles(gallery, queries)]
    lists = [np.full((total, min(k, len(part))), np.iinfo(np.int64).max) for part in (query, gallery)]
    norms, largest = np.zeros((2, total), np.float32)
    query_gallery = np.empty((queries, len(gallery)), np.float32)

    def take(pair):
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

    # BLAS threads would spin beside ours
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(thread_count()) as pool:
        for pairs in _rounds(len(tiles)):
            list(pool.map(take, pairs))
    if not query_query:
        largest[:queries] = query_gallery.max(axis=1)
    return np.sort(np.concatenate(lists, axis=1), axis=1)[:, :k], lists[1], largest, query_gallery


def nearest_columns(matrix, k):
    """Column indices (n, k) int32 of each row's k smallest values, ties to the lower column."""
    from reid_utils.ranking._kernels import nearest_in_rows

    indices = np.empty((len(matrix), k), np.int32)
    each_block(partial(nearest_in_rows, matrix, indices), len(matrix), block=16)
    return indices
