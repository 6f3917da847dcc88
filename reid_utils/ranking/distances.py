"""Squared Euclidean distances, and the checks that features and distance matrices pass first."""

import numpy as np


def is_tensor(array) -> bool:
    """Whether this is a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch"


def _on_host(array) -> np.ndarray:
    return array.detach().cpu().numpy() if is_tensor(array) else np.asarray(array)


def _first_bad_row(matrix: np.ndarray) -> int | None:
    """Index of the first row with a value that is not finite; None where all are finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(matrix.sum()):  # one fast pass; an overflow is only looked at more closely
            return None
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    return int(bad[0]) if bad.size else None


def check_matrix(matrix, name: str) -> np.ndarray:
    """`matrix` as a contiguous 2-D numpy array of float32 or float64.

    Raises ValueError naming the matrix, and the first row that holds NaN or infinity.
    """
    matrix = _on_host(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix with at least one row and column, not of shape {matrix.shape}")
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float32 if matrix.dtype == np.float16 else np.float64)
    row = _first_bad_row(matrix)
    if row is not None:
        raise ValueError(f"{name} row {row} holds NaN or infinity; remove or recompute that image")
    return np.ascontiguousarray(matrix)


def check_features(query, gallery) -> tuple[np.ndarray, np.ndarray]:
    """Query (Q, d) and gallery (G, d) features as contiguous float32 arrays of equal width.

    Raises ValueError for NaN or infinity (naming the row) and for different widths.
    """
    query, gallery = check_matrix(query, "query features"), check_matrix(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}; "
            "use features of one model"
        )
    return query.astype(np.float32, copy=False), gallery.astype(np.float32, copy=False)


def squared_euclidean(query, gallery) -> np.ndarray:
    """Squared Euclidean distances, (Q, G) float32, never negative.

    `query` (Q, d) and `gallery` (G, d): arrays or tensors; tensors are multiplied on their own device, and the
    result is an array all the same. Raises ValueError for NaN, infinity or different widths. For L2-normalised
    features this is 2 − 2·cosine, the distance that the published code ranks by.
    """
    if is_tensor(query) and query.device.type != "cpu":
        import torch

        return torch.cdist(query.float(), gallery.float()).square().cpu().numpy()
    query, gallery = check_features(query, gallery)
    distances = query @ gallery.T
    distances *= -2
    distances += np.einsum("id,id->i", query, query)[:, None]
    distances += np.einsum("id,id->i", gallery, gallery)
    return np.maximum(distances, 0, out=distances)
