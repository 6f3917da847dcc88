"""Fusion of the distance matrices of several models over the same queries and gallery.

All take M ≥ 2 matrices (Q, G) and return one; smaller stays nearer. Nothing is changed in place.
"""

import numpy as np

from reid_utils.ranking.distances import check_count, check_matrix, check_number
from reid_utils.ranking.metrics import as_ids, check_same_kind
from reid_utils.ranking.neighbours import each_block, nearest_columns

_NO_OVERLAP_SHARE = 0.1  # the published scripts' stand-in for a model that shares no agreed item


def _checked(matrices):
    if len(matrices) < 2:
        raise ValueError(f"fusion needs at least two distance matrices, not {len(matrices)}")
    matrices = [check_matrix(matrix, f"distance matrix {number}") for number, matrix in enumerate(matrices)]
    for number, matrix in enumerate(matrices):
        if matrix.shape != matrices[0].shape:
            raise ValueError(
                f"distance matrix {number} has shape {matrix.shape}, matrix 0 {matrices[0].shape}; "
                "all must cover the same queries and gallery"
            )
    return matrices


def check_same_ids(ids, names=None):
    """Before a fusion: raise ValueError unless all models' (query_ids, gallery_ids) are the same in the same order.

    It names the first difference; `names` says in the message where each pair comes from (file or model names).
    """
    names = names or [f"input {number}" for number in range(len(ids))]
    for name, pair in zip(names[1:], ids[1:], strict=True):
        for kind, first, other in zip(("query", "gallery"), ids[0], pair, strict=True):
            if len(first) != len(other):
                raise ValueError(f"{name} has {len(other)} {kind} images, {names[0]} has {len(first)}")
            first, other = as_ids(first, f"{kind} ids of {names[0]}"), as_ids(other, f"{kind} ids of {name}")
            check_same_kind(first, other, (f"{kind} ids of {names[0]}", f"of {name}"))
            different = np.flatnonzero(first != other)
            if different.size:
                place = different[0]
                raise ValueError(
                    f"{name} has {kind} id {other[place]} at position {place}, {names[0]} has {first[place]}; "
                    "write all with the same images in the same order"
                )


def _weighted_mean(matrices, weights):
    """Σ weights[q, m] · matrices[m][q], block by block so that temporaries stay small."""
    out = np.empty(matrices[0].shape, np.result_type(*matrices))

    def fuse(start, stop):
        total = out[start:stop]
        np.multiply(matrices[0][start:stop], weights[start:stop, :1], out=total, casting="same_kind")
        for number, matrix in enumerate(matrices[1:], 1):
            total += (matrix[start:stop] * weights[start:stop, number : number + 1]).astype(out.dtype, copy=False)

    each_block(fuse, len(out), block=16)
    return out


def similarity_fusion(matrices):
    """The mean of the matrices, (Q, G); the first of the paper's two fusions."""
    matrices = _checked(matrices)
    return _weighted_mean(matrices, np.full((len(matrices[0]), len(matrices)), 1 / len(matrices)))


def dissimilarity_weights(matrices, top_k=15):
    """Weights of `dissimilarity_fusion`, (Q, M) float64, each row of sum 1.

    A gallery image is agreed on where at least ⌊M/2⌋ + 1 models have it among their `top_k` nearest (ties to the
    lower index). A model's share is its part of all (model, agreed image) pairs, 0.1 where it has none; its weight
    is the normalised inverse, so that the models that agree least weigh most. Without any agreement all weigh
    alike. Follows the published dissimilarity script.
    """
    matrices = _checked(matrices)
    check_count(top_k, "top_k")
    nearest = np.stack([nearest_columns(matrix, min(top_k, matrix.shape[1])) for matrix in matrices], axis=1)
    votes = np.zeros(matrices[0].shape, np.uint16)
    queries = np.arange(len(votes))
    for model in range(len(matrices)):
        votes[queries[:, None], nearest[:, model]] += 1
    agreed = votes[queries[:, None, None], nearest] >= len(matrices) // 2 + 1
    overlap = agreed.sum(axis=2).astype(np.float64)
    total = overlap.sum(axis=1, keepdims=True)
    shares = np.where(overlap > 0, overlap / np.maximum(total, 1), _NO_OVERLAP_SHARE)
    inverse = np.where(total > 0, 1 / shares, 1.0)
    return inverse / inverse.sum(axis=1, keepdims=True)


def dissimilarity_fusion(matrices, top_k=15):
    """Mean of the matrices, (Q, G), each query's row weighted by `dissimilarity_weights`."""
    return _weighted_mean(_checked(matrices), dissimilarity_weights(matrices, top_k))


def two_stage_fusion(matrices, top_k=15):
    """The paper's entry: the mean of `similarity_fusion` and `dissimilarity_fusion`, (Q, G)."""
    return _weighted_mean(_checked(matrices), (dissimilarity_weights(matrices, top_k) + 1 / len(matrices)) / 2)


def _ranks(matrix):
    """Ranks from 1 along each row, ties sharing their mean rank, float64."""
    from scipy.stats import rankdata

    return np.concatenate(each_block(lambda start, stop: rankdata(matrix[start:stop], axis=1), len(matrix), block=16))


def _mean(matrices, transform):
    return sum(transform(matrix) for matrix in _checked(matrices)) / len(matrices)


def rank_average(matrices):
    """Control: mean rank of each gallery image, (Q, G) float64 from 1."""
    return _mean(matrices, _ranks)


def reciprocal_rank_fusion(matrices, smoothing=60.0):
    """Control (Cormack et al. 2009): 1 − mean of (smoothing + 1) / (smoothing + rank), (Q, G) float64 in [0, 1)."""
    smoothing = check_number(smoothing, "smoothing")
    return 1 - _mean(matrices, lambda matrix: (smoothing + 1) / (smoothing + _ranks(matrix)))


def min_max_fusion(matrices):
    """Control: mean of the matrices, each row brought to [0, 1] first (a constant row to 0), (Q, G) float64."""

    def normalised(matrix):
        low, high = (np.asarray(f(matrix, axis=1, keepdims=True), np.float64) for f in (np.min, np.max))
        return (matrix - low) / np.where(high > low, high - low, 1)

    return _mean(matrices, normalised)


def z_score_fusion(matrices):
    """Control: mean of the matrices, each row of mean 0 and deviation 1 first (a constant row 0), (Q, G) float64."""

    def normalised(matrix):
        deviation = matrix.std(axis=1, keepdims=True, dtype=np.float64)
        centred = matrix - matrix.mean(axis=1, keepdims=True, dtype=np.float64)
        return centred / np.where(deviation > 0, deviation, 1)

    return _mean(matrices, normalised)


FUSIONS = {
    "similarity": similarity_fusion,
    "dissimilarity": dissimilarity_fusion,
    "two-stage": two_stage_fusion,
    "rank average": rank_average,
    "reciprocal rank": reciprocal_rank_fusion,
    "min-max": min_max_fusion,
    "z-score": z_score_fusion,
}
PAPER_FUSIONS = ("similarity", "dissimilarity", "two-stage")
