"""Compiled inner loops of the neighbour search and of re-ranking; imported when first needed, as numba takes a while.

A neighbour list is a row of ascending values beside a row of indices, ordered by (value, index); unfilled places hold
infinity and the largest index. Lists hold the k smallest of whatever was offered to them, in any order. A sparse matrix
is (indptr, indices, data) as in scipy's CSR, its rows in no particular order. Kernels that take `start, stop` work on
that block of rows and may run side by side.
"""

from functools import partial

import numpy as np
from numba import njit

_STRIDE = 16  # columns looked at together before any is offered to a list


def compiled(function=None, **options):
    """numba's njit without the interpreter lock, cached on disk where the checkout or the home can be written."""
    if function is None:
        return partial(compiled, **options)
    try:
        return njit(cache=True, nogil=True, **options)(function)
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return njit(nogil=True, **options)(function)  # compiled anew in every process


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


@compiled
def reciprocal_sets(ranks, k, shift, sizes, members, start, stop):
    """R(i, k): which of image i's k nearest have i among their own k nearest, in rank order.

    Members below `shift` are dropped and the rest counted from there.
    """
    for i in range(start, stop):
        size = 0
        for p in range(k):
            candidate = ranks[i, p]
            if candidate < shift:
                continue
            for q in range(k):
                if ranks[candidate, q] == i:
                    members[i, size] = candidate - shift
                    size += 1
                    break
        sizes[i] = size


@compiled
def _shares_enough(half, tested, stamp, strict):
    """Whether two thirds of the candidate's half-size set lie in the tested set."""
    shared = 0
    for member in half:
        shared += tested[member] == stamp
    return 3 * shared > 2 * half.size or (not strict and 3 * shared == 2 * half.size)


@compiled
def _expand(base, skip, half_sizes, half_members, strict, walk, stamp, tested, seen, out):
    """One image's expanded set, written to `out`; returns its size."""
    size = base.size
    for p in range(size):
        out[p] = base[p]
        seen[base[p]] = stamp
        if p >= skip:
            tested[base[p]] = stamp
    limit, merged, p = size, False, 0
    while p < limit:
        half = half_members[out[p], : half_sizes[out[p]]]
        if _shares_enough(half, tested, stamp, strict):
            for member in half:
                if seen[member] != stamp:
                    seen[member] = stamp
                    out[size] = member
                    size += 1
            if walk and not merged:
                limit = size
            merged = True
        p += 1
    return size


@compiled
def expanded_sets(sets, half_sets, strict, walkers, first_skipping, start, stop):
    """The sets R*: each R with the half-size sets of those members that share enough with it.

    `sets`, `half_sets`: pairs (sizes, members). `strict`: more than two thirds, else at least. Images below
    `walkers` also try the members that their first merge added. From image `first_skipping` on, the first
    member is left out of the set that candidates are tested against. Returns (sizes, members) of the block.
    """
    sizes, members = sets
    half_sizes, half_members = half_sets
    half = half_members.shape[1]
    room = members.shape[1] + (members.shape[1] + half) * half
    tested = np.full(half_members.shape[0], -1, np.int32)
    seen = tested.copy()
    found = np.empty(stop - start, np.int64)
    out = np.empty((stop - start) * room, np.int32)
    total = 0
    for i in range(start, stop):
        skip = 1 if i >= first_skipping else 0
        walk = i < walkers
        base = members[i, : sizes[i]]
        size = _expand(base, skip, half_sizes, half_members, strict, walk, i, tested, seen, out[total:])
        found[i - start] = size
        total += size
    return found, out[:total].copy()


@compiled
def gaussian_weights(indptr, values, start, stop):
    """Turn each row's distances into weights exp(-d) that sum to 1, in place."""
    for i in range(start, stop):
        row = values[indptr[i] : indptr[i + 1]]
        for p in range(row.size):
            row[p] = np.exp(-row[p])
        total = row.sum()
        for p in range(row.size):
            row[p] /= total


@compiled
def _mean_row(begins, sizes, indices, data, neighbours, total, seen, stamp, touched):
    """Sum the neighbours' rows into `total`, noting the columns reached; returns (columns, neighbours).

    `seen` marks a column by `stamp`, this row's number: a weight may be 0, so the sum cannot tell what was reached.
    """
    reached, count = 0, 0
    for neighbour in neighbours:
        if neighbour < 0:
            break
        count += 1
        for entry in range(begins[neighbour], begins[neighbour] + sizes[neighbour]):
            column = indices[entry]
            if seen[column] != stamp:
                seen[column] = stamp
                touched[reached] = column
                reached += 1
            total[column] += data[entry]
    return reached, count


@compiled
def mean_rows(matrix, neighbours, width, start, stop):
    """Query expansion: each row the mean of its neighbours' rows.

    `neighbours` (N, k2) int32, -1 from where there are no more. Returns (sizes, indices, data) of the block.
    """
    indptr, indices, data = matrix
    sizes = indptr[1:] - indptr[:-1]
    room = 0
    for i in range(start, stop):
        for neighbour in neighbours[i]:
            room += sizes[neighbour] if neighbour >= 0 else 0
    out_indices, out_data = np.empty(room, np.int32), np.empty(room, np.float32)
    out_sizes = np.empty(stop - start, np.int64)
    total, touched = np.zeros(width, np.float32), np.empty(width, np.int32)
    seen = np.full(width, -1, np.int32)
    place = 0
    for i in range(start, stop):
        reached, count = _mean_row(indptr, sizes, indices, data, neighbours[i], total, seen, i, touched)
        out_sizes[i - start] = reached
        for column in touched[:reached]:
            out_indices[place] = column
            out_data[place] = total[column] / np.float32(count)
            total[column] = 0
            place += 1
    return out_sizes, out_indices[:place].copy(), out_data[:place].copy()


@compiled
def mean_rows_in_place(matrix, neighbours, width):
    """The same one row after the other, each reading the rows before it as already averaged."""
    indptr, indices, data = matrix
    begins, sizes = indptr[:-1].copy(), indptr[1:] - indptr[:-1]
    place = original = indices.size
    total, touched = np.zeros(width, np.float32), np.empty(width, np.int32)
    seen = np.full(width, -1, np.int32)
    for i in range(neighbours.shape[0]):
        reached, count = _mean_row(begins, sizes, indices, data, neighbours[i], total, seen, i, touched)
        if place + reached > indices.size:
            room = np.empty(indices.size + max(indices.size, reached), np.int32)
            room[:place] = indices[:place]
            more = np.empty(room.size, np.float32)
            more[:place] = data[:place]
            indices, data = room, more
        begins[i], sizes[i] = place, reached
        for column in touched[:reached]:
            indices[place] = column
            data[place] = total[column] / np.float32(count)
            total[column] = 0
            place += 1
    return sizes, indices[original:place].copy(), data[original:place].copy()


@compiled
def jaccard_rows(matrix, by_column, sums, weights, original, out, start, stop):
    """Jaccard distance of each query to every gallery image, blended with the original distance.

    Only pairs that share a neighbour are visited, through the gallery's columns. Σmax is the two rows' sums
    less Σmin; two empty rows are at distance 1. `weights`: (of Jaccard, of the original), float32.
    """
    indptr, indices, data = matrix
    columns, rows, values = by_column
    queries, gallery = out.shape
    for i in range(start, stop):
        smaller = np.zeros(gallery, np.float32)
        for entry in range(indptr[i], indptr[i + 1]):
            value = data[entry]
            for other in range(columns[indices[entry]], columns[indices[entry] + 1]):
                smaller[rows[other]] += min(value, values[other])
        for j in range(gallery):
            larger = sums[i] + sums[queries + j] - smaller[j]
            jaccard = np.float32(1)
            if smaller[j] > 0:
                jaccard = max(np.float32(1) - smaller[j] / larger, np.float32(0))
            out[i, j] = weights[0] * jaccard + weights[1] * original[i, j]
