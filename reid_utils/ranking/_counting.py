"""Compiled inner loops of metrics, fusion and the CSV writer; imported where first needed."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def count_matches(query_players, query_cameras, cameras, starts, images, sizes):
    """Matches of each query; player p's gallery images are images[starts[p]:starts[p + 1]], own cameras left out."""
    for i in range(query_players.size):
        sizes[i] = 0
        for place in range(starts[query_players[i]], starts[query_players[i] + 1]):
            sizes[i] += cameras[images[place]] != query_cameras[i]


@njit(cache=True, nogil=True)
def _sorted_matches(row, candidates, cameras, camera):
    """The candidates of other cameras, in order of (distance, index)."""
    found = np.empty(candidates.size, np.int64)
    count = 0
    for j in candidates:
        if cameras[j] == camera:
            continue
        place = count
        while place > 0 and row[found[place - 1]] > row[j]:
            found[place] = found[place - 1]
            place -= 1
        found[place] = j
        count += 1
    return found[:count]


@njit(cache=True, nogil=True)
def _matches_below(matches, distances, distance):
    """How many of the sorted matches are strictly nearer than `distance`."""
    low, high = 0, matches.size
    while low < high:
        middle = (low + high) // 2
        if distances[matches[middle]] < distance:
            low = middle + 1
        else:
            high = middle
    return low


@njit(cache=True, nogil=True)
def _count_row(row, players, player, matches, before, tied, level):
    """`count_before_matches` for one query with at least one match."""
    farthest = row[matches[-1]]
    for j in range(row.size):
        if row[j] > farthest or players[j] == player:
            continue
        place = _matches_below(matches, row, row[j])
        tied[place] += 1
        while place < matches.size and row[matches[place]] == row[j] and matches[place] < j:
            place += 1
        if place < matches.size:
            before[place] += 1
    for m in range(1, matches.size):
        before[m] += before[m - 1]
        tied[m] += tied[m - 1]
    for m in range(matches.size - 1, -1, -1):
        tie = m + 1 < matches.size and row[matches[m]] == row[matches[m + 1]]
        level[m] = level[m + 1] if tie else m + 1


@njit(cache=True, nogil=True)
def count_before_matches(distances, labels, starts, images, indptr, before, tied, level, start, stop):
    """For each match, in rank order: other players' images before it, those no farther, and matches no farther.

    `before` goes by (distance, index), `tied` and `level` by distance alone; all three come as zeros, and row i's
    matches fill indptr[i]:indptr[i + 1]. `labels`: players and cameras of the queries, then of the gallery.
    """
    query_players, players, query_cameras, cameras = labels
    for i in range(start, stop):
        if indptr[i] == indptr[i + 1]:
            continue
        player, filled = query_players[i], slice(indptr[i], indptr[i + 1])
        candidates = images[starts[player] : starts[player + 1]]
        matches = _sorted_matches(distances[i], candidates, cameras, query_cameras[i])
        _count_row(distances[i], players, player, matches, before[filled], tied[filled], level[filled])


@njit(cache=True, nogil=True)
def count_by_player(row, players, player, cameras, camera, starts, images):
    """For one query: how many images of each player stand before each of the query's matches.

    Images of the query's own camera are left out. Returns (total, before): images a player, and before[p, m] by
    (distance, index) for the query's m-th match.
    """
    matches = _sorted_matches(row, images[starts[player] : starts[player + 1]], cameras, camera)
    total = np.zeros(starts.size - 1, np.int64)
    before = np.zeros((starts.size - 1, matches.size), np.int32)
    if matches.size == 0:
        return total, before
    for j in range(row.size):
        if cameras[j] == camera:
            continue
        total[players[j]] += 1
        if row[j] > row[matches[-1]]:
            continue
        place = _matches_below(matches, row, row[j])
        while place < matches.size and row[matches[place]] == row[j] and matches[place] <= j:
            place += 1
        if place < matches.size:
            before[players[j], place] += 1
    for owner in range(total.size):
        for place in range(1, matches.size):
            before[owner, place] += before[owner, place - 1]
    return total, before


@njit(cache=True, nogil=True)
def order_of_appearance(row, players, cameras, camera, counted):
    """Players in the order in which their nearest images of other cameras come, by (distance, index)."""
    nearest = np.full(counted, -1, np.int64)
    for j in range(row.size):
        owner = players[j]
        if cameras[j] != camera and (nearest[owner] < 0 or row[j] < row[nearest[owner]]):
            nearest[owner] = j
    images = np.sort(nearest[nearest >= 0])
    return players[images[np.argsort(row[images], kind="mergesort")]]


@njit(cache=True, nogil=True)
def count_drawn_before(before, order, own, draws):
    """How many of the drawn images stand before the drawn match, for each row of draws (repeats, players)."""
    result = np.zeros(draws.shape[0], np.int64)
    for repeat in range(draws.shape[0]):
        match = draws[repeat, own]
        for p in range(order.size):
            result[repeat] += p != own and draws[repeat, p] < before[order[p], match]
    return result


@njit(cache=True, nogil=True)
def expected_curve(total, before, player, topk):
    """Chance that exactly r of the other players' randomly drawn images stand before the drawn match, r < topk."""
    curve = np.zeros(topk)
    for match in range(before.shape[1]):
        chance, certain, largest = np.zeros(topk), 0, 0
        chance[0] = 1
        for other in range(total.size):
            if other == player or before[other, match] == 0:
                continue
            if before[other, match] == total[other]:
                certain += 1
                continue
            share = before[other, match] / total[other]
            largest = min(largest + 1, topk - 1)
            for r in range(largest, 0, -1):
                chance[r] = chance[r] * (1 - share) + chance[r - 1] * share
            chance[0] *= 1 - share
        for r in range(topk - certain):
            curve[r + certain] += chance[r] / before.shape[1]
    return curve
