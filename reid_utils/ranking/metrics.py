"""Retrieval metrics from a distance matrix: mAP, CMC under three protocols, mINP.

An image of the query's own player and camera is junk and left out. A query without any match is skipped,
with one warning that counts them. Only the true matches are sorted; everything else is counted.
"""

import warnings
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np

from reid_utils.ranking.distances import check_matrix
from reid_utils.ranking.neighbours import each_block

PROTOCOLS = ("allshots", "cuhk03", "market1501")
_REPEATS = 10  # draws of the cuhk03 protocol, as in the challenge toolkit


class _Labels(NamedTuple):
    """Players and cameras as int64 codes."""

    query_players: np.ndarray
    gallery_players: np.ndarray
    query_cameras: np.ndarray
    gallery_cameras: np.ndarray


class _Matches(NamedTuple):
    """Each query's matches in rank order: images of other players before each (by distance and index), and no
    farther than each (by distance alone), and matches no farther than each, itself among them."""

    indptr: np.ndarray
    before: np.ndarray
    tied: np.ndarray
    level: np.ndarray


def _codes(query, gallery) -> tuple[np.ndarray, np.ndarray]:
    """Number the values of both arrays alike, so that any kind of label becomes int64."""
    _, codes = np.unique(np.concatenate([query, gallery]), return_inverse=True)
    return codes[: len(query)], codes[len(query) :]


def _checked(distances, query_ids, gallery_ids, query_cams, gallery_cams) -> tuple[np.ndarray, _Labels]:
    distances = check_matrix(distances, "distances")
    shape = distances.shape
    query_cams = np.zeros(shape[0], np.int64) if query_cams is None else query_cams
    gallery_cams = np.ones(shape[1], np.int64) if gallery_cams is None else gallery_cams
    given = {"query_ids": (query_ids, 0), "gallery_ids": (gallery_ids, 1)}
    given |= {"query_cams": (query_cams, 0), "gallery_cams": (gallery_cams, 1)}
    for name, (labels, axis) in given.items():
        if np.shape(labels) != (shape[axis],):
            raise ValueError(
                f"{name} has shape {np.shape(labels)}, but distances of shape {shape} need {shape[axis]} of them"
            )
    return distances, _Labels(*_codes(query_ids, gallery_ids), *_codes(query_cams, gallery_cams))


def _by_player(labels: _Labels) -> tuple[np.ndarray, np.ndarray]:
    """(starts, images): player p's gallery images are images[starts[p]:starts[p + 1]]."""
    counted = max(labels.query_players.max(), labels.gallery_players.max()) + 1
    starts = np.concatenate([[0], np.bincount(labels.gallery_players, minlength=counted).cumsum()])
    return starts, np.argsort(labels.gallery_players, kind="stable")


def _report_without_match(without: int, queries: int) -> None:
    if without == queries:
        raise ValueError("no query has a match in the gallery; check that ids and cameras belong to the distances")
    if without:
        warnings.warn(f"{without} of {queries} queries have no match in the gallery and are skipped", stacklevel=4)


def _matches(distances, *labels) -> _Matches:
    """Count what stands before each true match; raises ValueError where no query has one."""
    from reid_utils.ranking._counting import count_before_matches, count_matches

    distances, labels = _checked(distances, *labels)
    queries = len(distances)
    sizes, by_player = np.empty(queries, np.int64), _by_player(labels)
    count_matches(labels.query_players, labels.query_cameras, labels.gallery_cameras, *by_player, sizes)
    _report_without_match(int((sizes == 0).sum()), queries)
    indptr = np.concatenate([[0], sizes.cumsum()])
    counts = [np.zeros(indptr[-1], np.int64) for _ in range(3)]
    each_block(partial(count_before_matches, distances, tuple(labels), *by_player, indptr, *counts), queries, block=16)
    return _Matches(indptr, *counts)


def _query_means(values: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Mean of each query's values; NaN where it has none."""
    sizes = np.diff(indptr)
    sums = np.bincount(np.repeat(np.arange(len(sizes)), sizes), values, len(sizes))
    return np.divide(sums, sizes, out=np.full(len(sizes), np.nan), where=sizes > 0)


def average_precisions(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> np.ndarray:
    """Average precision of each query, (Q,) float64, NaN where a query has no match.

    `distances` (Q, G); ids (Q,) and (G,), of any type; cameras default to 0 for queries and 1 for gallery images,
    so that nothing is junk. Ties count together, as in scikit-learn's `average_precision_score`. Raises
    ValueError for NaN, for labels of the wrong length, and where no query has a match.
    """
    found = _matches(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    return _query_means(found.level / (found.level + found.tied), found.indptr)


def mean_average_precision(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> float:
    """Mean of the average precisions over the queries that have a match, in [0, 1]; see `average_precisions`."""
    return float(np.nanmean(average_precisions(distances, query_ids, gallery_ids, query_cams, gallery_cams)))


def first_match_ranks(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> np.ndarray:
    """Rank of each query's first match, (Q,) float64 from 1, NaN where there is none; ties by gallery index."""
    found = _matches(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    has_match = np.diff(found.indptr) > 0
    ranks = np.full(len(has_match), np.nan)
    ranks[has_match] = found.before[found.indptr[:-1][has_match]] + 1
    return ranks


def mean_inverse_negative_penalty(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> float:
    """mINP (Ye et al. 2021): mean over queries of matches / rank of the last match, in (0, 1]; ties by index."""
    found = _matches(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    sizes = np.diff(found.indptr)
    sizes, last = sizes[sizes > 0], found.indptr[1:][sizes > 0] - 1
    return float((sizes / (sizes + found.before[last])).mean())


def cmc(
    distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None, protocol="allshots", topk=100, rng=None
) -> np.ndarray:
    """Cumulative matching characteristic, (topk,) float64: entry r is the score within rank r + 1.

    The protocols are those of the challenge toolkit (open-reid's). `market1501`: the first match decides.
    `allshots`: each of a query's n matches adds 1/n at the number of other players' images before it.
    `cuhk03`: the gallery of other cameras, one random image a player, 10 draws a query from `rng`, a
    numpy RandomState (with seed s it repeats the toolkit after `numpy.random.seed(s)`) or Generator; without
    `rng` the exact expectation of that draw. Ties by gallery index. Errors as in `average_precisions`.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol {protocol!r} is unknown; choose one of {', '.join(PROTOCOLS)}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, not {topk}")
    if rng is not None and protocol != "cuhk03":
        raise ValueError(f"protocol {protocol!r} draws nothing; rng belongs to 'cuhk03' only")
    labels = (query_ids, gallery_ids, query_cams, gallery_cams)
    if protocol == "cuhk03":
        return _single_shot_curve(*_checked(distances, *labels), topk, rng)
    found = _matches(distances, *labels)
    sizes = np.diff(found.indptr)
    if protocol == "market1501":
        steps, shares = found.before[found.indptr[:-1][sizes > 0]], None
    else:
        steps, shares = found.before, np.repeat(1 / np.maximum(sizes, 1), sizes)
        shares = shares[steps < topk]
    return np.bincount(steps[steps < topk], shares, topk).cumsum() / (sizes > 0).sum()


def _single_shot_curve(distances: np.ndarray, labels: _Labels, topk: int, rng) -> np.ndarray:
    """The cuhk03 protocol: expectation of, or a mean over, random single-image galleries."""
    from reid_utils.ranking._counting import count_by_player, count_drawn_before, expected_curve

    query_players, players, query_cameras, cameras = labels
    by_player = _by_player(labels)

    def counts(start: int, stop: int) -> list:
        return [
            count_by_player(distances[i], players, query_players[i], cameras, query_cameras[i], *by_player)
            for i in range(start, stop)
        ]

    curve, scored = np.zeros(topk), 0
    for query, (total, before) in enumerate(chain(*each_block(counts, len(distances), block=16))):
        player = query_players[query]
        if before.shape[1] == 0:
            continue
        scored += 1
        if rng is None:
            curve += expected_curve(total, before, player, topk)
            continue
        order = _drawn_players(rng, before, player, distances[query], players, cameras, query_cameras[query])
        draw = rng.integers if hasattr(rng, "integers") else rng.randint
        draws = draw(0, np.tile(total[order], (_REPEATS, 1)))
        ranks = count_drawn_before(before, order, int(np.flatnonzero(order == player)[0]), draws)
        curve += np.bincount(ranks[ranks < topk], minlength=topk) / _REPEATS
    _report_without_match(len(distances) - scored, len(distances))
    return curve.cumsum() / scored


def _drawn_players(rng, before: np.ndarray, player: int, *ranking) -> np.ndarray:
    """The players of whom an image is drawn, in the order of the draws.

    A RandomState draws as the toolkit does: for every player, in order of appearance in the ranking. A Generator
    draws for those only that can matter: the query's own player and those with an image before its last match.
    """
    from reid_utils.ranking._counting import order_of_appearance

    if not hasattr(rng, "integers"):
        return order_of_appearance(*ranking, len(before))
    matters = before[:, -1] > 0
    matters[player] = True
    return np.flatnonzero(matters)
