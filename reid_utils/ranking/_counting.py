"""Compiled inner loops of metrics, fusion and the CSV writer; imported where first needed."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _sorted_matches(distances, kinds, found):
    """Positions of the true matches (kind 2), written to `found` in order of (distance, position)."""
    count = 0
    for j in range(distances.size):
        if kinds[j] != 2:
            continue
        place = count
        while place > 0 and distances[found[place - 1]] > distances[j]:
            found[place] = found[place - 1]
            place -= 1
        found[place] = j
        count += 1
    return count


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
def _kinds(players, query_player, cameras, query_camera, same_camera_out, kinds):
    """0 for what is left out, 1 for an image of another player, 2 for a match."""
    for j in range(players.size):
        match = players[j] == query_player
        left_out = cameras[j] == query_camera and (match or same_camera_out)
        kinds[j] = 0 if left_out else (2 if match else 1)


@njit(cache=True, nogil=True)
def count_matches(query_players, gallery_players, query_cameras, gallery_cameras, sizes, start, stop):
    """Matches of each query; a match of the query's own camera is left out."""
    for i in range(start, stop):
        sizes[i] = 0
        for j in range(gallery_players.size):
            sizes[i] += gallery_players[j] == query_players[i] and gallery_cameras[j] != query_cameras[i]


@njit(cache=True, nogil=True)
def count_before_matches(
    distances, query_players, gallery_players, query_cameras, gallery_cameras, indptr, before, tied, level, start, stop
):
    """For each match, in rank order: other players' images before it, those no farther, and matches no farther.

    `before` goes by (distance, index), `tied` and `level` by distance alone; all three come as zeros, and row i's
    matches fill indptr[i]:indptr[i + 1].
    """
    width = distances.shape[1]
    kinds, found = np.empty(width, np.uint8), np.empty(width, np.int64)
    for i in range(start, stop):
        row = distances[i]
        _kinds(gallery_players, query_players[i], gallery_cameras, query_cameras[i], False, kinds)
        count = _sorted_matches(row, kinds, found)
        if count == 0:
            continue
        matches = found[:count]
        first, last = before[indptr[i] : indptr[i + 1]], tied[indptr[i] : indptr[i + 1]]
        for j in range(width):
            if kinds[j] != 1 or row[j] > row[matches[-1]]:
                continue
            place = _matches_below(matches, row, row[j])
            last[place] += 1
            while place < count and row[matches[place]] == row[j] and matches[place] < j:
                place += 1
            if place < count:
                first[place] += 1
        for m in range(1, count):
            first[m] += first[m - 1]
            last[m] += last[m - 1]
        for m in range(count - 1, -1, -1):
            tie = m + 1 < count and row[matches[m]] == row[matches[m + 1]]
            level[indptr[i] + m] = level[indptr[i] + m + 1] if tie else m + 1


@njit(cache=True, nogil=True)
def count_by_player(row, players, player, cameras, camera, counted):
    """For one query: how many images of each player stand before each of the query's matches.

    `players` number the gallery images' players from 0 to `counted` - 1; images of the query's own camera are
    left out. Returns (total, nearest, before): images a player, its nearest one's index (-1: none), and
    before[p, m] by (distance, index) for the query's m-th match.
    """
    kinds, found = np.empty(row.size, np.uint8), np.empty(row.size, np.int64)
    _kinds(players, player, cameras, camera, True, kinds)
    matches = found[: _sorted_matches(row, kinds, found)]
    total, nearest = np.zeros(counted, np.int64), np.full(counted, -1, np.int64)
    before = np.zeros((counted, matches.size), np.int32)
    for j in range(row.size):
        if kinds[j] == 0:
            continue
        owner = players[j]
        total[owner] += 1
        if nearest[owner] < 0 or row[j] < row[nearest[owner]]:
            nearest[owner] = j
        if matches.size == 0 or row[j] > row[matches[-1]]:
            continue
        place = _matches_below(matches, row, row[j])
        while place < matches.size and row[matches[place]] == row[j] and matches[place] <= j:
            place += 1
        if place < matches.size:
            before[owner, place] += 1
    for owner in range(counted):
        for place in range(1, matches.size):
            before[owner, place] += before[owner, place - 1]
    return total, nearest, before


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
