"""Exact nearest neighbours of every query and gallery image, in memory that grows with N·k.

Images are counted queries first: image i < Q is query i, image Q + j is gallery image j. Every image has
two lists, its nearest queries and its nearest gallery images, so that the joint and the gallery-only
ranking both follow from one pass. Order is by (distance, index).
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

TILE = 256  # one fixed size and padded edges: the product of two images never depends on its surroundings
_UNFILLED = np.iinfo(np.int32).max


class Lists(NamedTuple):
    """The k nearest of one kind: `values` (N, k) float32 ascending, `indices` (N, k) int32."""

    values: np.ndarray
    indices: np.ndarray


class Search(NamedTuple):
    """What re-ranking needs to know of all pairwise distances.

    `nearest_queries`, `nearest_gallery`: `Lists` of all N = Q + G images, self included. `largest`: (N, 2)
    float32, each image's largest distance to a query and to a gallery image. `query_gallery`: (Q, G) float32.
    """

    nearest_queries: Lists
    nearest_gallery: Lists
    largest: np.ndarray
    query_gallery: np.ndarray


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
    threads = min(thread_count(), len(stops))
    if threads <= 1:
        return [function(start, stop) for start, stop in zip(starts, stops, strict=True)]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, starts, stops))


def _empty_lists(rows: int, k: int) -> Lists:
    return Lists(np.full((rows, k), np.inf, np.float32), np.full((rows, k), _UNFILLED, np.int32))


def _tiles(features: np.ndarray) -> list[np.ndarray]:
    """Cut (n, d) features into pieces of exactly TILE rows, the last filled up with zero rows."""
    pieces = [features[start : start + TILE] for start in range(0, len(features), TILE)]
    last = np.zeros((TILE, features.shape[1]), np.float32)
    last[: len(pieces[-1])] = pieces[-1]
    return [*pieces[:-1], last]


class _TileSearch:
    """The state that the threads of one search share: the lists, and a lock for each tile of rows."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray, k: int):
        sizes = (len(query), len(gallery))
        total = sum(sizes)
        self.queries = len(query)
        self.lists = tuple(_empty_lists(total, min(k, size)) for size in sizes)
        self.largest = np.zeros((2, total), np.float32)
        self.query_gallery = np.empty(sizes, np.float32)
        self.norms = np.empty(total, np.float32)
        self.tiles = [*_tiles(query), *_tiles(gallery)]
        self.locks = [threading.Lock() for _ in self.tiles]
        starts = [[*range(0, sizes[0], TILE)], [*range(self.queries, total, TILE)]]
        self.spans = [(0, start, min(start + TILE, self.queries)) for start in starts[0]]
        self.spans += [(1, start, min(start + TILE, total)) for start in starts[1]]

    def _views(self, part: int, start: int, stop: int) -> tuple[np.ndarray, ...]:
        values, indices = self.lists[part]
        return values[start:stop], indices[start:stop], self.largest[part, start:stop]

    def take(self, pair: tuple[int, int], products: np.ndarray) -> None:
        """Multiply two tiles of images and offer every distance to the lists of both its images."""
        from reid_utils.ranking._search_kernels import offer_tile

        row, column = pair
        row_part, row_start, row_stop = self.spans[row]
        column_part, column_start, column_stop = self.spans[column]
        np.matmul(self.tiles[row], self.tiles[column].T, out=products)
        if row == column:
            self.norms[row_start:row_stop] = products.diagonal()[: row_stop - row_start]
        norms = (self.norms[row_start:row_stop], self.norms[column_start:column_stop])
        with self.locks[row], self.locks[column] if row != column else threading.Lock():
            row_lists = self._views(column_part, row_start, row_stop)
            column_lists = self._views(row_part, column_start, column_stop)
            offer_tile(products, norms, (row_start, column_start), row == column, row_lists, column_lists)
        if row_part < column_part:
            columns = slice(column_start - self.queries, column_stop - self.queries)
            here = products[: row_stop - row_start, : column_stop - column_start]
            self.query_gallery[row_start:row_stop, columns] = here


def _run(task: Callable, items: Iterable) -> None:
    """Call `task(item, buffer)` for every item on several threads, each with a tile of its own as buffer."""
    pending, lock, threads = iter(items), threading.Lock(), thread_count()

    def work() -> None:
        buffer = np.empty((TILE, TILE), np.float32)
        while True:
            with lock:
                item = next(pending, None)
            if item is None:
                return
            task(item, buffer)

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work) for _ in range(threads)]:
            future.result()


def search_features(query: np.ndarray, gallery: np.ndarray, k: int) -> Search:
    """Exact k nearest queries and gallery images of every image, by squared Euclidean distance.

    `query` (Q, d), `gallery` (G, d): float32, finite. Each pair of tiles is multiplied once and serves both
    sides. Distances are at least 0, and 0 to itself and between equal rows; the result is the same for any
    number of threads. Memory: N·k lists, the (Q, G) result and one tile a thread.
    """
    from threadpoolctl import threadpool_limits

    state = _TileSearch(query, gallery, k)
    count = len(state.tiles)
    with threadpool_limits(1, "blas"):  # BLAS threads beside ours would spin against them
        _run(state.take, [(tile, tile) for tile in range(count)])  # gives the norms
        # by distance from the diagonal, so that threads seldom want the same rows at once
        _run(state.take, ((i, i + step) for step in range(1, count) for i in range(count - step)))
    return Search(*state.lists, state.largest.T, state.query_gallery)


def _nearest_by_key(distances, k: int, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """The k smallest of each row of a tensor by (distance, column), through keys that hold both."""
    import torch

    columns = torch.arange(offset, offset + distances.shape[1], device=distances.device)
    keys = (distances.contiguous().view(torch.int32).long() << 32) | columns  # bits of floats >= 0 sort as they do
    keys = keys.topk(min(k, distances.shape[1]), dim=1, largest=False).values
    values, indices = (keys >> 32).int().view(torch.float32), (keys & 0xFFFFFFFF).int()
    return values.cpu().numpy(), indices.cpu().numpy()


def search_tensors(query, gallery, k: int, entries: int = 1 << 26) -> Search:
    """The same for torch tensors on their own device, in chunks of about `entries` distances, without TF32."""
    import torch

    queries, images = len(query), torch.cat([query, gallery.to(query.device)]).float()
    norms, parts = (images * images).sum(dim=1), (slice(0, queries), slice(queries, None))
    found, largest, query_gallery = ([], []), [], []
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        for rows in torch.arange(len(images), device=images.device).split(max(1, entries // len(images))):
            distances = norms[rows, None] + norms - 2 * images[rows] @ images.T
            distances.clamp_(min=0).abs_()
            distances[rows - rows[0], rows] = 0
            for part, columns in enumerate(parts):
                found[part].append(_nearest_by_key(distances[:, columns], k, columns.start))
            largest.append(torch.stack([distances[:, columns].amax(dim=1) for columns in parts], dim=1))
            query_gallery.append(distances[rows < queries, queries:].cpu().numpy())
    finally:
        torch.set_float32_matmul_precision(precision)
    lists = [Lists(*map(np.concatenate, zip(*part, strict=True))) for part in found]
    return Search(*lists, torch.cat(largest).cpu().numpy(), np.concatenate(query_gallery))


def search_blocks(
    blocks: tuple[np.ndarray, np.ndarray, np.ndarray], k: int, square: bool, scale: np.ndarray
) -> tuple[Lists, Lists]:
    """Nearest queries and nearest gallery images from given matrices (Q, Q), (Q, G), (G, G), float32.

    Each value is first squared if so asked and divided by its row's entry of `scale` (N,).
    """
    from reid_utils.ranking._search_kernels import offer_rows

    query_query, query_gallery, gallery_gallery = blocks
    queries, gallery = query_gallery.shape
    lists = tuple(_empty_lists(queries + gallery, min(k, size)) for size in (queries, gallery))
    spans = (slice(0, queries), slice(queries, queries + gallery))
    lines = ((query_query, query_gallery), (query_gallery.T, gallery_gallery))
    for rows, line in zip(spans, lines, strict=True):
        for part, columns, matrix in zip(lists, spans, line, strict=True):
            target = (part.values[rows], part.indices[rows])
            each_block(partial(offer_rows, matrix, square, scale[rows], columns.start, *target), len(matrix))
    return lists


def joint_lists(nearest_queries: Lists, nearest_gallery: Lists, k: int) -> Lists:
    """The k nearest of queries and gallery together."""
    from reid_utils.ranking._search_kernels import merge_lists

    total = len(nearest_gallery.values)
    joint = _empty_lists(total, min(k, nearest_queries.values.shape[1] + nearest_gallery.values.shape[1]))
    parts = (tuple(nearest_queries), tuple(nearest_gallery))
    each_block(partial(merge_lists, *parts, joint.values, joint.indices), total)
    return joint


def nearest_columns(matrix: np.ndarray, k: int) -> np.ndarray:
    """Column indices (n, k) int32 of each row's k smallest values, ties to the lower column."""
    from reid_utils.ranking._search_kernels import nearest_in_rows

    indices = np.empty((len(matrix), k), np.int32)
    each_block(partial(nearest_in_rows, matrix, indices), len(matrix), block=16)
    return indices
