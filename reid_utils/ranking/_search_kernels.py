"""Compiled inner loops of the neighbour search; imported by `neighbours` when first needed.

A neighbour list is a row of ascending values beside a row of indices, ordered by (value, index); unfilled
places hold infinity and the largest index. Lists hold the k smallest of whatever was offered to them, so
the order of the offers does not matter.
"""

import numpy as np

from reid_utils.ranking._compiled import compiled

_STRIDE = 16  # columns looked at together before any is offered to a list


@compiled
def _offer(values, indices, value, index):
    """Put (value, index) into one list if it belongs there."""
    place = values.size - 1
    if value > values[place] or (value == values[place] and index >= indices[place]):
        return
    while place > 0 and (value < values[place - 1] or (value == values[place - 1] and index < indices[place - 1])):
        values[place] = values[place - 1]
        indices[place] = indices[place - 1]
        place -= 1
    values[place] = value
    indices[place] = index


@compiled
def _row_distances(products, row_norm, column_norms, first, column_largest):
    """Turn one row of inner products into squared distances; return its maximum, update the columns'."""
    largest = np.float32(0)
    for j in range(first, products.size):
        distance = max(row_norm + column_norms[j] - np.float32(2) * products[j], np.float32(0))
        products[j] = distance
        largest = max(largest, distance)
        column_largest[j] = max(column_largest[j], distance)
    return largest


@compiled
def _any_close(distances, start, stop, row_bound, column_bounds):
    """Whether a distance of this stretch belongs into its row's or its column's list."""
    hits = 0
    for j in range(start, stop):
        hits += (distances[j] <= row_bound) | (distances[j] <= column_bounds[j])
    return hits > 0


@compiled
def offer_tile(products, norms, starts, diagonal, row_lists, column_lists):
    """Turn a tile of inner products into squared distances, offering each to both of its lists.

    `norms` and `starts` are pairs (rows, columns); a list triple is (values, indices, largest) of the tile's
    rows or columns. On the diagonal only the upper triangle is read, and the self distance is 0.
    """
    row_norms, column_norms = norms
    row_start, column_start = starts
    row_values, row_indices, row_largest = row_lists
    column_values, column_indices, column_largest = column_lists
    columns = column_norms.size
    bounds = column_values[:, -1].copy()
    for i in range(row_norms.size):
        first = 0
        if diagonal:
            products[i, i] = 0
            _offer(row_values[i], row_indices[i], np.float32(0), row_start + i)
            first = i + 1
        distances = products[i, :columns]
        largest = _row_distances(distances, row_norms[i], column_norms, first, column_largest)
        row_largest[i] = max(row_largest[i], largest)
        for start in range(first, columns, _STRIDE):
            stop = min(start + _STRIDE, columns)
            if not _any_close(distances, start, stop, row_values[i, -1], bounds):
                continue
            for j in range(start, stop):
                _offer(row_values[i], row_indices[i], distances[j], column_start + j)
                _offer(column_values[j], column_indices[j], distances[j], row_start + i)
                bounds[j] = column_values[j, -1]


@compiled
def listed_values(indices, values, indptr, members, found, start, stop):
    """Value of each member that stands in image i's own list; NaN where it does not."""
    place = np.full(indices.shape[0], -1, np.int32)
    for i in range(start, stop):
        for p in range(indices.shape[1]):
            place[indices[i, p]] = p
        for entry in range(indptr[i], indptr[i + 1]):
            p = place[members[entry]]
            found[entry] = values[i, p] if p >= 0 else np.float32(np.nan)
        for p in range(indices.shape[1]):
            place[indices[i, p]] = -1


@compiled(fastmath={"reassoc", "contract"})
def _squared_distance(x, y):
    total = np.float32(0)
    for c in range(x.size):
        total += (x[c] - y[c]) * (x[c] - y[c])
    return total


@compiled
def fill_from_features(query, gallery, hidden, square, scale, indptr, members, values, start, stop):
    """Compute the values still NaN, from the features; the first `hidden` images are infinitely far apart."""
    queries = query.shape[0]
    for i in range(start, stop):
        x = query[i] if i < queries else gallery[i - queries]
        for entry in range(indptr[i], indptr[i + 1]):
            if np.isnan(values[entry]):
                j = members[entry]
                if i < hidden and j < hidden:
                    values[entry] = np.inf
                    continue
                y = query[j] if j < queries else gallery[j - queries]
                distance = _squared_distance(x, y)
                values[entry] = (distance * distance if square else distance) / scale[i]


@compiled
def nearest_in_rows(matrix, indices, start, stop):
    """Write the columns of each row's smallest values, in order of (value, column)."""
    values = np.empty(indices.shape[1], matrix.dtype)
    for i in range(start, stop):
        values[:] = np.inf
        indices[i] = matrix.shape[1]
        for j in range(matrix.shape[1]):
            if matrix[i, j] <= values[-1]:  # equal at infinity, where a list may still have room
                _offer(values, indices[i], matrix[i, j], j)
