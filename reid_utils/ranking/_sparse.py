"""Compiled steps of k-reciprocal re-ranking on sparse rows; imported by `reranking` when first needed.

A sparse matrix is (indptr, indices, data) as in scipy's CSR, its rows in no particular order. Kernels that
take `start, stop` work on that block of rows and may run side by side.
"""

import numpy as np

from reid_utils.ranking._compiled import compiled


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
