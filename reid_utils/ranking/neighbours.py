"""Exact nearest neighbours of every query and gallery image, in memory that grows with N·k.

Images are numbered queries first: image i < Q is query i, image Q + j is gallery image j. Every image has two lists,
its k nearest queries and its k nearest gallery images, so that the joint and the gallery-only ranking both follow
from one pass. Lists are in order of (distance, index), so ties go to the lower index.

How the search works (`search_features`):

1. *Tiles.* Queries and gallery are each cut into tiles of 256 images, the last filled up with zero rows. The distances
   between two tiles come from one matrix product, |x|² + |y|² − 2 x·y. All products have the same size, so that the
   product of two images does not depend on what stands around them, and the result not on the number of threads.
2. *Pairs.* Distances are symmetric, so each unordered pair of tiles is multiplied once (half the work of an N × N
   product). First every tile with itself, which also gives the norms; then the others. The N × N matrix is never held.
3. *Lists.* Each distance of a pair is offered to two lists: the column image to the row image's list, and the reverse
   (`offer_tile`). A list keeps the k smallest of what it was offered, whatever the order of the offers.
   Nearly every offer is refused by one comparison with the list's last entry.
4. *Locks.* Threads take pairs from one queue. A pair changes the lists of its two tiles only, so each tile has a lock,
   and a pair takes both, the lower number first, so that no two threads wait for each other. Products are made outside.
   The queue goes by distance from the diagonal, so neighbouring entries seldom want the same tile at once.

`joint_lists` merges the two lists of an image. `search_tensors` is the same search on a GPU, where it is a product and
a top-k in chunks.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import numpy as np

TILE = 256
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


class _Tile(NamedTuple):
    features: np.ndarray  # (TILE, d)
    part: int  # 0: queries, 1: gallery
    start: int  # numbers of its images
    stop: int
    lock: threading.Lock


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


def _tiles(features: np.ndarray, part: int, first: int) -> list[_Tile]:
    """Cut (n, d) features, numbered from `first`, into tiles; the last is filled up with zero rows."""
    tiles = []
    for start in range(0, len(features), TILE):
        rows = features[start : start + TILE]
        filled = rows if len(rows) == TILE else np.pad(rows, ((0, TILE - len(rows)), (0, 0)))
        tiles.append(_Tile(filled, part, first + start, first + start + len(rows), threading.Lock()))
    return tiles


class _TileSearch:
    """The state that the threads of one search share."""

    def __init__(self, query: np.ndarray, gallery: np.ndarray, k: int):
        self.queries, total = len(query), len(query) + len(gallery)
        self.tiles = [*_tiles(query, 0, 0), *_tiles(gallery, 1, self.queries)]
        self.lists = tuple(_empty_lists(total, min(k, len(part))) for part in (query, gallery))
        self.largest = np.zeros((2, total), np.float32)
        self.query_gallery = np.empty((len(query), len(gallery)), np.float32)
        self.norms = np.empty(total, np.float32)

    def _lists_of(self, tile: _Tile, part: int) -> tuple[np.ndarray, ...]:
        """(values, indices, largest) of the tile's images, for their neighbours of one part."""
        images = slice(tile.start, tile.stop)
        return self.lists[part].values[images], self.lists[part].indices[images], self.largest[part, images]

    def take(self, pair: tuple[int, int], products: np.ndarray) -> None:
        """Multiply two tiles and offer every distance to the lists of both its images."""
        from reid_utils.ranking._kernels import offer_tile

        row, column = (self.tiles[number] for number in pair)
        np.matmul(row.features, column.features.T, out=products)
        if row is column:
            self.norms[row.start : row.stop] = products.diagonal()[: row.stop - row.start]
        norms = (self.norms[row.start : row.stop], self.norms[column.start : column.stop])
        with ExitStack() as held:
            for tile in (row,) if row is column else (row, column):
                held.enter_context(tile.lock)
            to_rows, to_columns = self._lists_of(row, column.part), self._lists_of(column, row.part)
            offer_tile(products, norms, (row.start, column.start), row is column, to_rows, to_columns)
        if row.part < column.part:
            columns = slice(column.start - self.queries, column.stop - self.queries)
            distances = products[: row.stop - row.start, : column.stop - column.start]
            self.query_gallery[row.start : row.stop, columns] = distances


def on_threads(task: Callable, items: Iterable) -> None:
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

    `query` (Q, d), `gallery` (G, d): float32, finite. Distances are at least 0, and 0 to itself and between equal
    rows; the result is the same for any number of threads. Memory: N·k lists, the (Q, G) result and one tile a thread.
    """
    from threadpoolctl import threadpool_limits

    state = _TileSearch(query, gallery, k)
    count = len(state.tiles)
    with threadpool_limits(1, "blas"):  # BLAS threads beside ours would spin against them
        on_threads(state.take, [(tile, tile) for tile in range(count)])
        on_threads(state.take, ((i, i + step) for step in range(1, count) for i in range(count - step)))
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


def joint_lists(nearest_queries: Lists, nearest_gallery: Lists, k: int) -> Lists:
    """The k nearest of queries and gallery together."""
    values, indices = (np.concatenate(both, axis=1) for both in zip(nearest_queries, nearest_gallery, strict=True))
    order = np.argsort(values, axis=1, kind="stable")[:, :k]  # queries come first and have the lower indices
    return Lists(np.take_along_axis(values, order, axis=1), np.take_along_axis(indices, order, axis=1))


def nearest_columns(matrix: np.ndarray, k: int) -> np.ndarray:
    """Column indices (n, k) int32 of each row's k smallest values, ties to the lower column."""
    from reid_utils.ranking._kernels import nearest_in_rows

    indices = np.empty((len(matrix), k), np.int32)
    each_block(partial(nearest_in_rows, matrix, indices), len(matrix), block=16)
    return indices
