"""Retrieval metrics from a distance matrix: mAP, CMC under three protocols, mINP.

Hits are marked once (`rank_matches`), and every score follows from them. `labels` says what is junk and left out; a
query without any match is skipped, with one warning that counts them.
"""

import warnings
from typing import NamedTuple

import numpy as np

from reid_utils.ranking.distances import check_count, check_matrix
from reid_utils.ranking.labels import Labels, coded, matches_of, others_of

PROTOCOLS = ("allshots", "cuhk03", "market1501")
_REPEATS = 10  # draws of the cuhk03 protocol, as in the challenge toolkit


class RankedMatches(NamedTuple):
    """What all scores follow from, one entry a query."""

    precisions: np.ndarray  # (Q,) average precision, NaN without a match
    before: list[np.ndarray]  # other players' images before each match, in rank order, ties by gallery index

    @property
    def firsts(self) -> np.ndarray:
        """Rank of each query's first match, (Q,) float64 from 1, NaN where there is none."""
        return np.array([before[0] + 1 if before.size else np.nan for before in self.before])

    @property
    def penalty(self) -> float:
        """mINP: mean over queries of matches / rank of the last match."""
        return float(np.mean([before.size / (before.size + before[-1]) for before in self.before if before.size]))


def _rank_row(row: np.ndarray, labels: Labels, query: int) -> tuple[float, np.ndarray]:
    """Average precision, ties counted together, and how many images of others stand before each match."""
    places = matches_of(labels, query)
    if not places.size:
        return np.nan, places
    places = places[np.argsort(row[places], kind="stable")]
    distances = row[places]
    others = others_of(labels, query, np.flatnonzero(row <= distances[-1]))
    sorted_others = np.sort(row[others])
    before, no_farther = (np.searchsorted(sorted_others, distances, side) for side in ("left", "right"))
    level = np.searchsorted(distances, distances, "right")
    for m in np.flatnonzero(no_farther > before):  # of equal distances the lower index stands first
        before[m] += np.count_nonzero(row[others[: np.searchsorted(others, places[m])]] == distances[m])
    return (level / (level + no_farther)).mean(), before


def rank_matches(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> RankedMatches:
    """Mark each query's matches in its ranking; arguments and errors as in `average_precisions`."""
    distances = check_matrix(distances, "distances")
    labels = coded(distances.shape, query_ids, gallery_ids, query_cams, gallery_cams)
    ranked = [_rank_row(row, labels, query) for query, row in enumerate(distances)]
    precisions, before = zip(*ranked, strict=True)
    _report_skipped([not matches.size for matches in before], labels)
    return RankedMatches(np.array(precisions), list(before))


def _report_skipped(skipped, labels: Labels) -> None:
    """Warn of queries without a match, once; ValueError where no query has one."""
    skipped, unknown = np.count_nonzero(skipped), np.count_nonzero(labels.query_players == -1)
    queries = len(labels.query_players)
    if unknown == queries:
        raise ValueError("all queries are of unknown players (-1), as in a hidden challenge split: nothing to score")
    if skipped == queries:
        raise ValueError("no query has a match in the gallery; check that ids and cameras belong to the distances")
    if skipped:
        of_unknown = f" ({unknown} of them of unknown players, -1)" if unknown else ""
        warnings.warn(
            f"{skipped} of {queries} queries have no match in the gallery{of_unknown} and are skipped", stacklevel=4
        )


def average_precisions(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> np.ndarray:
    """Average precision of each query, (Q,) float64, NaN where a query has no match.

    `distances` (Q, G); ids (Q,) and (G,), whole numbers or text, -1 for unknown; cameras default to 0 for queries and
    1 for gallery images, so that nothing is junk. Ties count together, as in scikit-learn's
    `average_precision_score`. Raises ValueError for NaN, for labels of the wrong length, for text against numbers,
    for cameras of one side only, and where no query has a match.
    """
    return rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).precisions


def mean_average_precision(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> float:
    """Mean of the average precisions over the queries that have a match, in [0, 1]; see `average_precisions`."""
    return float(np.nanmean(rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).precisions))


def first_match_ranks(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> np.ndarray:
    """Rank of each query's first match, (Q,) float64 from 1, NaN where there is none; ties by gallery index."""
    return rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).firsts


def mean_inverse_negative_penalty(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None) -> float:
    """mINP (Ye et al. 2021): mean over queries of matches / rank of the last match, in (0, 1]; ties by index."""
    return rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).penalty


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
    check_count(topk, "topk")
    if rng is not None and protocol != "cuhk03":
        raise ValueError(f"protocol {protocol!r} draws nothing; rng belongs to 'cuhk03' only")
    labels = (query_ids, gallery_ids, query_cams, gallery_cams)
    if protocol == "cuhk03":
        return _single_shot_curve(distances, labels, topk, rng)
    before = [matches for matches in rank_matches(distances, *labels).before if matches.size]
    if protocol == "market1501":
        before = [matches[:1] for matches in before]
    steps = np.concatenate(before)
    shares = np.concatenate([np.full(matches.size, 1 / matches.size) for matches in before])
    return np.bincount(steps[steps < topk], shares[steps < topk], topk).cumsum() / len(before)


def _single_shot_curve(distances, labels, topk: int, rng) -> np.ndarray:
    """The cuhk03 protocol: expectation of, or a mean over, random single-image galleries."""
    distances = check_matrix(distances, "distances")
    labels = coded(distances.shape, *labels)
    chances = []
    for query, row in enumerate(distances):
        player, others = labels.query_players[query], labels.gallery_cameras != labels.query_cameras[query]
        kept = np.flatnonzero(others & (labels.gallery_players != -1))
        ranking = labels.gallery_players[kept[np.argsort(row[kept], kind="stable")]]
        if player != -1 and (ranking == player).any():
            chances.append(_expected(ranking, player, topk) if rng is None else _drawn(ranking, player, topk, rng))
    skipped = np.arange(len(distances)) >= len(chances)
    _report_skipped(skipped, labels)
    return np.sum(chances, axis=0).cumsum() / len(chances)


def _drawn(ranking: np.ndarray, player: int, topk: int, rng) -> np.ndarray:
    """Share of draws in which r images of others stand before the match, (topk,), from the players in rank order.

    Players are drawn in the order in which they appear in the ranking, which repeats the toolkit's random stream.
    """
    counts, first = np.bincount(ranking), np.full(ranking.max() + 1, len(ranking))
    first[ranking[::-1]] = np.arange(len(ranking))[::-1]  # the last one written stays
    order = np.argsort(first, kind="stable")[: np.count_nonzero(counts)]
    of_player = np.argsort(ranking.astype(np.min_scalar_type(ranking.max())), kind="stable")  # short integers sort fast
    draw = rng.integers if hasattr(rng, "integers") else rng.randint
    drawn = of_player[(counts.cumsum() - counts)[order] + draw(0, np.tile(counts[order], (_REPEATS, 1)))]
    ranks = (drawn < drawn[:, order == player]).sum(axis=1)
    return np.bincount(ranks[ranks < topk], minlength=topk) / _REPEATS


def _expected(ranking: np.ndarray, player: int, topk: int) -> np.ndarray:
    """Chance that the drawn images of exactly r other players stand before the drawn match, (topk,)."""
    counts, matches = np.bincount(ranking), np.flatnonzero(ranking == player)
    next_match = np.searchsorted(matches, np.arange(len(ranking)))
    until = np.bincount(ranking * (len(matches) + 1) + next_match, minlength=len(counts) * (len(matches) + 1))
    until = until.reshape(len(counts), -1)[:, :-1].cumsum(axis=1)  # each player's images before each match
    shares = np.delete(until / np.maximum(counts, 1)[:, None], player, axis=0)
    chance = np.zeros((topk, len(matches)))
    chance[0] = 1
    for share in shares[shares.any(axis=1)]:  # convolve with (1 - share, share), all matches at once
        chance[1:] = chance[1:] * (1 - share) + chance[:-1] * share
        chance[0] *= 1 - share
    return chance.mean(axis=1)
