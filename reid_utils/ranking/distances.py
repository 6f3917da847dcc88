"""Squared Euclidean distances, and the checks that features and distance matrices pass first."""

from numbers import Integral, Real

import numpy as np

_LARGEST_NORM = 1e18  # of a squared norm: distances reach four times that, and the gaussian variant squares them


def is_tensor(array):
    """Whether this is a torch tensor, without importing torch."""
    return type(array).__module__.partition(".")[0] == "torch"


def as_array(values):
    """Arrays and tensors as a numpy array; a tensor's bfloat16, which numpy does not know, becomes float32."""
    if is_tensor(values):
        values = values.detach().cpu()
        values = values.float() if str(values.dtype) == "torch.bfloat16" else values
        return values.numpy()
    return np.asarray(values)


def check_matrix(matrix, name):
    """`matrix` as a contiguous 2-D numpy array of float32 or float64.

    Raises ValueError naming the matrix, and the first row that holds NaN or infinity.
    """
    matrix = as_array(matrix)
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must be a matrix with at least one row and column, not of shape {matrix.shape}")
    if matrix.dtype.kind not in "fiub":
        raise ValueError(f"{name} must hold numbers, not {matrix.dtype}")
    if matrix.dtype not in (np.float32, np.float64):
        matrix = matrix.astype(np.float32 if matrix.dtype == np.float16 else np.float64)
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if bad.size:
        raise ValueError(f"{name} row {bad[0]} holds NaN or infinity; remove or recompute that image")
    return np.ascontiguousarray(matrix)


def check_count(value, name):
    """The value as Python's int (numpy's short ones overflow); ValueError unless it is whole, at least 1, not True."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value}")
    return int(value)


def check_number(value, name, most=np.inf):
    """The value as Python's float. Raises ValueError naming it unless it is a finite number from 0 to `most`."""
    if not isinstance(value, Real) or not 0 <= value <= most or value == np.inf:
        bounds = "be at least 0" if most == np.inf else f"lie in [0, {most:g}]"
        raise ValueError(f"{name} must {bounds}, not {value!r}")
    return float(value)


def check_features(query, gallery):
    """Query (Q, d) and gallery (G, d) features as contiguous float32 arrays of equal width.

    Raises ValueError for NaN or infinity (naming the row), for different widths, and for values whose distances would
    not fit into float32.
    """
    query, gallery = check_matrix(query, "query features"), check_matrix(gallery, "gallery features")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query features have {query.shape[1]} dimensions, gallery features {gallery.shape[1]}; "
            "use features of one model"
        )
    for name, features in (("query", query), ("gallery", gallery)):
        largest = float(np.abs(features).max())
        if largest * largest * features.shape[1] > _LARGEST_NORM:
            raise ValueError(f"{name} features reach {largest:g}, too large for float32 distances; L2-normalise them")
    return query.astype(np.float32, copy=False), gallery.astype(np.float32, copy=False)


def squared_euclidean(query, gallery):
    """Squared Euclidean distances, (Q, G) float32, never negative.

    `query` (Q, d) and `gallery` (G, d): arrays or tensors; tensors are multiplied on the query's device, and the
    result is an array all the same. Raises ValueError for NaN, infinity or different widths. For L2-normalised
    features this is 2 − 2·cosine, the distance that the published code ranks by.
    """
    device = query.device if is_tensor(query) else "cpu"
    query, gallery = check_features(query, gallery)
    if str(device) != "cpu":
        import torch

        sides = (torch.from_numpy(side).to(device) for side in (query, gallery))
        return torch.cdist(*sides).square().cpu().numpy()
    distances = query @ gallery.T
    distances *= -2
    distances += np.einsum("id,id->i", query, query)[:, None]
    distances += np.einsum("id,id->i", gallery, gallery)
    return np.maximum(distances, 0, out=distances)


def check_ranked(distances, name):
    """A matrix as `check_matrix` gives it, in which +inf keeps an image out of a query's gallery.

    Raises ValueError as there, and for infinity that is no such mark; see `shared_galleries`.
    """
    array = as_array(distances)
    if array.dtype.kind != "f" or array.ndim != 2 or array.max(initial=0) != np.inf:
        return check_matrix(array, name)
    outside = np.isposinf(array)
    checked = check_matrix(np.where(outside, 0, array), name)
    checked[outside] = np.inf
    shared_galleries(checked, name)
    return checked


def shared_galleries(distances, name="distances"):
    """The galleries of a matrix (Q, G) whose +inf lies outside a row's gallery: (rows, columns) indices of each.

    Raises ValueError where galleries overlap, as those of groups never do: that infinity is a fault.
    """
    inside = distances < np.inf
    queries = {}
    for row, gallery in enumerate(inside):
        queries.setdefault(gallery.tobytes(), []).append(row)
    galleries = [(np.array(rows), np.flatnonzero(inside[rows[0]])) for rows in queries.values()]
    if sum(len(columns) for _, columns in galleries) > inside.any(axis=0).sum():
        row = np.flatnonzero(~inside.all(axis=1))[0]
        raise ValueError(f"{name} row {row} holds infinity that marks no group; remove or recompute that image")
    return [gallery for gallery in galleries if gallery[1].size]
