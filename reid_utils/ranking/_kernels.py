"""Compiled inner loops of the search and of re-ranking; imported when first needed, as numba takes a while.

A list of neighbours is a row of ascending keys: the bits of a distance, which sort as the distance does, above those
of an index. A sparse matrix is (data, indices, indptr). Kernels that take `start, stop` may run side by side.
"""

from functools import partial

import numpy as np
from numba import njit

_STRIDE = 16  # columns looked at together before any is offered to a list


def compiled(function, **options):
    """numba's njit without the interpreter lock, cached on disk where the checkout or the home can be written."""
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(nogil=True, **options)(function)  # compiled anew in every process


@compiled
def _offer(keys, bits, index):
    """Put an image into a list if it belongs there; return the bits of the list's last distance."""
    key = (np.int64(bits) << 32) | index
    place = keys.size - 1
    if key < keys[place]:
        while place > 0 and key < keys[place - 1]:
            keys[place] = keys[place - 1]
            place -= 1
        keys[place] = key
    return np.int32(keys[-1] >> 32)


@compiled
def offer_tile(products, diagonal, rows, columns):
    """Turn a tile of inner products into squared distances, offering each to the lists of both its images.

    `rows` and `columns`: (number of the first image, squared norms, largest distances, lists) of the tile's images. On
    the diagonal only the upper triangle is read, and the distance of an image to itself is 0.
    """
    row_start, row_norms, row_largest, row_lists = rows
    column_start, norms, largest, lists = columns
    bounds = (lists[:, -1] >> 32).astype(np.int32)
    for i in range(row_norms.size):
        bound, first = np.int32(row_lists[i, -1] >> 32), 0
        if diagonal:
            bound, first = _offer(row_lists[i], 0, row_start + i), i + 1
        most = np.float32(0)
        for j in range(first, norms.size):
            distance = max(row_norms[i] + norms[j] - np.float32(2) * products[i, j], np.float32(0))
            products[i, j] = distance
            most = max(most, distance)
            largest[j] = max(largest[j], distance)
        row_largest[i] = max(row_largest[i], most)
        bits = products[i].view(np.int32)
        for start in range(first, norms.size, _STRIDE):
            stop, close = min(start + _STRIDE, norms.size), 0
            for j in range(start, stop):
                close += (bits[j] <= bound) | (bits[j] <= bounds[j])
            if close:
                for j in range(start, stop):
                    bound = _offer(row_lists[i], bits[j], column_start + j)
                    bounds[j] = _offer(lists[j], bits[j], row_start + i)


@partial(compiled, fastmath={"reassoc", "contract"})
def pair_distances(query, gallery, rows, columns, found, start, stop):
    """Squared distances of the pairs (rows[p], columns[p]) of images, numbered queries first."""
    queries = query.shape[0]
    for p in range(start, stop):
        i, j = rows[p], columns[p]
        x = query[i] if i < queries else gallery[i - queries]
        y = query[j] if j < queries else gallery[j - queries]
        total = np.float32(0)
        for c in range(x.size):
            total += (x[c] - y[c]) * (x[c] - y[c])
        found[p] = total


@compiled
def nearest_in_rows(matrix, nearest, start, stop):
    """Write the columns of each row's smallest values, ascending, ties to the lower column."""
    for i in range(start, stop):
        row, found = matrix[i], nearest[i]
        for j in range(row.size):
            if j < found.size or row[j] < row[found[-1]]:
                place = min(j, found.size - 1)
                while place > 0 and row[j] < row[found[place - 1]]:
                    found[place] = found[place - 1]
                    place -= 1
                found[place] = j


@compiled
def mean_rows(rows, width, neighbours, in_place):
    """The sparse rows, each the mean of its neighbours' rows; neighbours (N, k2), -1 where there are no more.

    With `in_place` one after the other, each reading the rows before it as already averaged.
    """
    data, indices, indptr = rows
    begins, ends, given = indptr[:-1].copy(), indptr[1:].copy(), indices.size
    total, touched, seen = np.zeros(width, np.float32), np.empty(width, np.int32), np.full(width, -1)
    averaged, place = np.zeros(indptr.size, np.int64), given
    for i in range(neighbours.shape[0]):
        reached, count = 0, np.float32(0)
        for neighbour in neighbours[i]:
            if neighbour < 0:
                break
            count += 1
            for entry in range(begins[neighbour], ends[neighbour]):
                column = indices[entry]
                if seen[column] != i:  # the total cannot tell, as weights may be 0
                    seen[column] = i
                    touched[reached] = column
                    reached += 1
                total[column] += data[entry]
        if place + reached > indices.size:
            more = indices.size + reached
            indices, data = np.append(indices, np.empty(more, np.int32)), np.append(data, np.empty(more, np.float32))
        if in_place:
            begins[i], ends[i] = place, place + reached
        for column in touched[:reached]:
            indices[place], data[place] = column, total[column] / count
            total[column] = 0
            place += 1
        averaged[i + 1] = place - given
    return data[given:place], indices[given:place], averaged


@compiled
def jaccard_rows(rows, columns, sums, weight, out, start, stop):
    """Blend the original distances `out` (Q, G), in place, with Jaccard distances 1 − Σmin / Σmax.

    `rows` of all images, `columns` of the gallery's rows; Σmax is the rows' `sums` less Σmin.
    """
    data, indices, indptr = rows
    values, images, column_indptr = columns
    queries, gallery = out.shape
    for i in range(start, stop):
        smaller = np.zeros(gallery, np.float32)
        for entry in range(indptr[i], indptr[i + 1]):
            for other in range(column_indptr[indices[entry]], column_indptr[indices[entry] + 1]):
                smaller[images[other]] += min(data[entry], values[other])
        for j in range(gallery):
            share = smaller[j] / (sums[i] + sums[queries + j] - smaller[j]) if smaller[j] > 0 else np.float32(0)
            jaccard = max(np.float32(1) - share, np.float32(0))
            out[i, j] = weight * jaccard + (np.float32(1) - weight) * out[i, j]
