"""The floor, and what one would write in a few lines instead of the ranking core."""

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from reid_utils.ranking import neighbours as nb

_WHOLE = 25_000  # up to so many images the floor holds the whole N × N product


def floor(query: np.ndarray, gallery: np.ndarray, k: int = 21) -> None:
    """One product of all images with all, and the k nearest of each: the least that re-ranking can start from."""
    images = torch.from_numpy(np.concatenate([query, gallery]))
    norms = (images * images).sum(dim=1)
    step = len(images) if len(images) <= _WHOLE else 4096
    for rows in torch.arange(len(images)).split(step):
        distances = torch.addmm(norms[rows, None] + norms, images[rows], images.T, alpha=-2)
        torch.topk(distances, k, dim=1, largest=False)


def limit(query: np.ndarray, gallery: np.ndarray) -> None:
    """Half of the N²·d multiply-adds, in the search's own tiles and threads: no exact search can take less.

    Half, because distances are symmetric. Nothing is done with the products.
    """
    images = np.concatenate([query, gallery])
    tiles = [images[start : start + nb.TILE] for start in range(0, len(images) - nb.TILE + 1, nb.TILE)]
    pairs = round(len(images) ** 2 / 2 / nb.TILE**2)

    def multiply(start: int, stop: int) -> None:
        for pair in range(start, stop):
            tiles[pair % len(tiles)] @ tiles[pair // len(tiles) % len(tiles)].T

    with threadpool_limits(1, "blas"):
        nb.each_block(multiply, pairs, block=16)


def dense_reranking(query: np.ndarray, gallery: np.ndarray, k1: int = 20, k2: int = 6, weight: float = 0.7):
    """k-reciprocal re-ranking in NumPy with N × N matrices, as the paper writes it."""
    images, queries = np.concatenate([query, gallery]), len(query)
    norms = (images * images).sum(axis=1)
    distances = np.maximum(norms[:, None] + norms - 2 * images @ images.T, 0)
    distances /= distances.max(axis=1, keepdims=True)
    ranks = np.argsort(distances, axis=1)
    half = round(k1 / 2) + 1
    reciprocal = [row[(ranks[row, : k1 + 1] == i).any(axis=1)] for i, row in enumerate(ranks[:, : k1 + 1])]
    halves = [row[(ranks[row, :half] == i).any(axis=1)] for i, row in enumerate(ranks[:, :half])]
    rows = np.zeros_like(distances)
    for i, members in enumerate(reciprocal):
        added = [halves[c] for c in members if np.isin(halves[c], members).sum() > 2 / 3 * len(halves[c])]
        members = np.unique(np.concatenate([members, *added]))
        rows[i, members] = np.exp(-distances[i, members])
        rows[i] /= rows[i].sum()
    rows = np.stack([rows[near].mean(axis=0) for near in ranks[:, :k2]])
    out = np.empty((queries, len(gallery)), np.float32)
    for i in range(queries):
        shared = np.flatnonzero(rows[i])
        smaller = np.minimum(rows[i, shared], rows[queries:, shared]).sum(axis=1)
        out[i] = weight * (1 - smaller / (2 - smaller)) + (1 - weight) * distances[i, queries:]
    return out


def precision_loop(distances: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> float:
    """mAP by scikit-learn, one query after the other."""
    return np.mean(
        [average_precision_score(gallery_ids == player, -row) for player, row in zip(query_ids, distances, strict=True)]
    )


def sorted_metrics(distances: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> tuple[float, np.ndarray]:
    """mAP and market1501's CMC by one argsort of the whole matrix; ties by position."""
    matches = gallery_ids[np.argsort(distances, axis=1)] == query_ids[:, None]
    precisions = matches.cumsum(axis=1) / np.arange(1, matches.shape[1] + 1)
    mean_precision = ((precisions * matches).sum(axis=1) / matches.sum(axis=1)).mean()
    return mean_precision, np.bincount(matches.argmax(axis=1), minlength=100)[:100].cumsum() / len(matches)


def fusion_loop(matrices: list[np.ndarray], top_k: int = 15) -> np.ndarray:
    """Dissimilarity fusion with one argsort a row."""
    out = np.empty_like(matrices[0])
    for i in range(len(out)):
        lists = [set(np.argsort(matrix[i])[:top_k].tolist()) for matrix in matrices]
        agreed = {c for near in lists for c in near if sum(c in other for other in lists) > len(lists) // 2}
        shares = np.array([len(near & agreed) for near in lists]) / max(1, sum(len(near & agreed) for near in lists))
        inverse = 1 / np.where(shares > 0, shares, 0.1)
        out[i] = sum(w * matrix[i] for w, matrix in zip(inverse / inverse.sum(), matrices, strict=True))
    return out


def savetxt(path, distances: np.ndarray, query_ids: np.ndarray, gallery_ids: np.ndarray) -> None:
    """The challenge CSV by numpy.savetxt, as the toolkit writes it."""
    with path.open("w") as file:
        np.savetxt(file, np.concatenate([[0], gallery_ids])[None], fmt="%i", delimiter=",")
        table = np.concatenate([query_ids[:, None].astype(distances.dtype), distances], axis=1)
        np.savetxt(file, table, fmt=["%i"] + ["%10.5f"] * len(gallery_ids), delimiter=",")
