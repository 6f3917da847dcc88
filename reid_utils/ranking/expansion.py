"""Two controls for re-ranking that change the features, not the distances: query expansion and database augmentation.

In both an image becomes the mean of itself and its k nearest gallery images, weighted by their cosine similarity to the
power of alpha (itself: 1; negative similarities: 0), of unit length again.
"""

import numpy as np

from reid_utils.ranking.distances import check_count, check_features, squared_euclidean
from reid_utils.ranking.neighbours import nearest_columns

_BLOCK = 512  # images whose distances to the gallery stand in memory at a time


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, np.float32(1))


def _means(features: np.ndarray, gallery: np.ndarray, k: int, alpha: float, first: int) -> np.ndarray:
    """Each image's mean with its nearest `first` to `first` + k of the gallery; all of unit length."""
    blocks = []
    for start in range(0, len(features), _BLOCK):
        images = features[start : start + _BLOCK]
        distances = squared_euclidean(images, gallery)
        if first:  # the image is in the gallery: it is its own nearest, and not among its neighbours
            distances[np.arange(len(images)), start + np.arange(len(images))] = -1
        near = gallery[nearest_columns(distances, min(first + k, len(gallery)))[:, first:]]
        similarities = np.einsum("nd,nkd->nk", images, near)
        blocks.append(images + np.einsum("nk,nkd->nd", np.maximum(similarities, 0) ** np.float32(alpha), near))
    return _unit(np.concatenate(blocks))


def _checked(query, gallery, k: int, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    check_count(k, "k")
    if not 0 <= alpha < np.inf:
        raise ValueError(f"alpha must be at least 0, not {alpha}")
    return tuple(_unit(side) for side in check_features(query, gallery))


def alpha_query_expansion(query, gallery, k: int = 6, alpha: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Expand the queries (αQE, Radenović et al. 2018): query (Q, d), gallery (G, d) -> both, float32 of unit length.

    alpha 0 is average query expansion. Raises ValueError for NaN, unequal widths, and k or alpha out of range.
    """
    query, gallery = _checked(query, gallery, k, alpha)
    return _means(query, gallery, k, alpha, first=0), gallery


def database_augmentation(query, gallery, k: int = 6, alpha: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Augment the gallery (DBA, Turcot and Lowe 2009), weighted as in αQE; shapes and errors as there."""
    query, gallery = _checked(query, gallery, k, alpha)
    return query, _means(gallery, gallery, k, alpha, first=1)
