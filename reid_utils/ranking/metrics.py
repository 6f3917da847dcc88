"""Retrieval metrics from a distance matrix: mAP, CMC under three protocols, mINP; and who matches whom.

A gallery image of the query's own player and camera is junk and left out of its ranking. Player -1 is nobody: such a
gallery image (Market-1501's junk) is left out of every ranking, and such a query (the hidden challenge split) is never
scored. Player 0, Market-1501's distractors, needs no rule: no query is of that player, so its images count as wrong.
Camera -1 is unknown and never the same as another. An image at distance +inf is not in that query's gallery (it is of
another group, as in SoccerNet, where a query is ranked within its action): it counts nowhere.

Hits are marked once (`rank_matches`), and every score follows from them. A query without any match is skipped, with one
warning that counts them.
"""

import warnings
from typing import NamedTuple

import numpy as np

from reid_utils.ranking.distances import as_array, check_count, check_ranked

PROTOCOLS = ("allshots", "cuhk03", "market1501")
_REPEATS = 10  # draws of the cuhk03 protocol, as in the challenge toolkit


class Labels(NamedTuple):
    """Players (Q,) and (G,), whole numbers or text, and cameras alike; without cameras nothing is junk."""

    query_players: np.ndarray
    gallery_players: np.ndarray
    query_cameras: np.ndarray | None = None
    gallery_cameras: np.ndarray | None = None


def labels_of(model):
    """The labels of `Features`, or of a mapping of its fields, for `score(distances, *labels_of(model))`."""
    given = model if isinstance(model, dict) else vars(model)
    return Labels(*map(given.get, Labels._fields))


def as_ids(values, name):
    """Ids (n,) as int64 or text, from whole numbers or text of shape (n,), (1, n) or (n, 1).

    Raises ValueError naming them for fractions, floats too large to be exact, and mixed types.
    """
    ids = as_array(values)
    if ids.dtype.kind in "OU":  # numpy makes text of a mixture, so look at each
        ids = np.asarray(values, object)
        texts = {isinstance(value, str) for value in ids.flat}
        ids = ids if len(texts) > 1 else np.array(ids.tolist())
    ids = np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids  # as HDF5 keeps text
    ids = ids.ravel() if ids.ndim == 2 and 1 in ids.shape else ids  # MATLAB has no (n,)
    if ids.dtype.kind == "U":
        return ids
    limit = 2.0 ** (np.finfo(ids.dtype).nmant + 1) if ids.dtype.kind == "f" else 2**63
    if ids.dtype.kind not in "iufb" or (np.abs(ids) >= limit).any() or (np.mod(ids, 1) != 0).any():
        raise ValueError(f"{name} must be whole numbers or text throughout, exact in their type {ids.dtype}")
    return ids.astype(np.int64)


def check_same_kind(first, other, names):
    """Raise ValueError where one of two arrays from `as_ids` is text and the other is numbers: 7 is not '7'."""
    kinds = ["text" if ids.dtype.kind == "U" else "whole numbers" for ids in (first, other)]
    if kinds[0] != kinds[1]:
        raise ValueError(f"{names[0]} are {kinds[0]}, {names[1]} {kinds[1]}; write both as the same kind")


def known(ids):
    """Mask of ids that are neither -1 nor, of text, empty or "-1"."""
    return ~np.isin(ids, ("", "-1")) if ids.dtype.kind == "U" else ids != -1


def coded(shape, query_ids, gallery_ids, query_cams=None, gallery_cams=None):
    """Labels of a (Q, G) matrix as int64 codes, -1 for unknown; cameras 0 for queries and 1 for the gallery where None.

    Raises ValueError for labels of the wrong length or kind, and where only one side has cameras.
    """
    if (query_cams is None) != (gallery_cams is None):
        raise ValueError("one of query_cams and gallery_cams is given, the other is not; give both or neither")
    if query_cams is None:
        query_cams, gallery_cams = np.zeros(shape[0]), np.ones(shape[1])
    labels = []
    for kind, *sides in (("ids", query_ids, gallery_ids), ("cams", query_cams, gallery_cams)):
        names = f"query_{kind}", f"gallery_{kind}"
        sides = [as_ids(*named) for named in zip(sides, names, strict=True)]
        for ids, name, count in zip(sides, names, shape, strict=True):
            if ids.shape != (count,):
                raise ValueError(f"{name} has shape {ids.shape}, but distances of shape {shape} need {count}")
        check_same_kind(*sides, names)
        both = np.concatenate(sides)
        codes = np.where(known(both), np.unique(both, return_inverse=True)[1], -1)
        labels += codes[: shape[0]], codes[shape[0] :]
    labels[3] = np.where(labels[3] == -1, -2, labels[3])  # an unknown camera is never the same as another
    return Labels(*labels)


def matches(query_ids, gallery_ids, *cameras):
    """Masks (Q, G) of the matches and of the junk; arguments and errors as in `average_precisions`."""
    shape = tuple(as_array(ids).size for ids in (query_ids, gallery_ids))
    labels = coded(shape, query_ids, gallery_ids, *cameras)
    unknown = labels.gallery_players == -1
    own = labels.gallery_players == labels.query_players[:, None]
    hits = own & ~unknown & (labels.gallery_cameras != labels.query_cameras[:, None])
    return hits, (own | unknown) & ~hits


class RankedMatches(NamedTuple):
    """What all scores follow from, one entry a query."""

    precisions: np.ndarray  # (Q,) average precision, NaN without a match
    before: list[np.ndarray]  # other players' images before each match, in rank order, ties by gallery index

    @property
    def firsts(self):
        """Rank of each query's first match, (Q,) float64 from 1, NaN where there is none."""
        return np.array([before[0] + 1 if before.size else np.nan for before in self.before])

    @property
    def penalty(self):
        """mINP: mean over queries of matches / rank of the last match."""
        return float(np.mean([before.size / (before.size + before[-1]) for before in self.before if before.size]))


def _rank_row(row, labels, query):
    """Average precision, ties counted together, and how many images of others stand before each match."""
    player, players = labels.query_players[query], labels.gallery_players
    places = np.flatnonzero((players == player) & (player != -1))
    places = places[labels.gallery_cameras[places] != labels.query_cameras[query]]
    places = places[row[places] < np.inf]
    if not places.size:
        return np.nan, places
    places = places[np.argsort(row[places], kind="stable")]
    distances = row[places]
    others = np.flatnonzero(row <= distances[-1])
    others = others[(players[others] != player) & (players[others] != -1)]
    sorted_others = np.sort(row[others])
    before, no_farther = (np.searchsorted(sorted_others, distances, side) for side in ("left", "right"))
    level = np.searchsorted(distances, distances, "right")
    for m in np.flatnonzero(no_farther > before):  # of equal distances the lower index stands first
        before[m] += np.count_nonzero(row[others[: np.searchsorted(others, places[m])]] == distances[m])
    return (level / (level + no_farther)).mean(), before


def rank_matches(distances, *labels):
    """Mark each query's matches in its ranking; arguments and errors as in `average_precisions`."""
    distances = check_ranked(distances, "distances")
    labels = coded(distances.shape, *labels)
    ranked = [_rank_row(row, labels, query) for query, row in enumerate(distances)]
    precisions, before = zip(*ranked, strict=True)
    _report_skipped(sum(not matches.size for matches in before), labels)
    return RankedMatches(np.array(precisions), list(before))


def _report_skipped(skipped, labels):
    """Warn of queries without a match, once; ValueError where no query has one."""
    queries, unknown = len(labels.query_players), np.count_nonzero(labels.query_players == -1)
    if unknown == queries:
        raise ValueError("all queries are of unknown players (-1), as in a hidden challenge split: nothing to score")
    if skipped == queries:
        raise ValueError("no query has a match in the gallery; check that ids and cameras belong to the distances")
    if skipped:
        of_unknown = f" ({unknown} of them of unknown players, -1)" if unknown else ""
        warnings.warn(
            f"{skipped} of {queries} queries have no match in the gallery{of_unknown} and are skipped", stacklevel=4
        )


def average_precisions(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None):
    """Average precision of each query, (Q,) float64, NaN where a query has no match.

    `distances` (Q, G); ids (Q,) and (G,), whole numbers or text, -1 for unknown; cameras default to 0 for queries and
    1 for gallery images, so that nothing is junk. Ties count together, as in scikit-learn's
    `average_precision_score`. Raises ValueError for NaN, for labels of the wrong length, for text against numbers,
    for cameras of one side only, and where no query has a match.
    """
    return rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).precisions


def mean_average_precision(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None):
    """Mean of the average precisions over the queries that have a match, in [0, 1]; see `average_precisions`."""
    return float(np.nanmean(rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).precisions))


def mean_inverse_negative_penalty(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None):
    """mINP (Ye et al. 2021): mean over queries of matches / rank of the last match, in (0, 1]; ties by index."""
    return rank_matches(distances, query_ids, gallery_ids, query_cams, gallery_cams).penalty


def cmc(
    distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None, protocol="market1501", topk=100, rng=None
):
    """Cumulative matching characteristic, (topk,) float64: entry r is the score within rank r + 1.

    The challenge toolkit's (open-reid's) protocols. `market1501`, the default: the first match decides.
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
    return np.bincount(steps, shares, topk)[:topk].cumsum() / len(before)


def _single_shot_curve(distances, labels, topk, rng):
    """The cuhk03 protocol: expectation of, or a mean over, random single-image galleries."""
    distances = check_ranked(distances, "distances")
    labels = coded(distances.shape, *labels)
    chances = []
    for query, row in enumerate(distances):
        player, others = labels.query_players[query], labels.gallery_cameras != labels.query_cameras[query]
        kept = np.flatnonzero(others & (labels.gallery_players != -1) & (row < np.inf))
        ranking = labels.gallery_players[kept[np.argsort(row[kept], kind="stable")]]
        if player != -1 and (ranking == player).any():
            chances.append(_expected(ranking, player, topk) if rng is None else _drawn(ranking, player, topk, rng))
    _report_skipped(len(distances) - len(chances), labels)
    return np.sum(chances, axis=0).cumsum() / len(chances)


def _drawn(ranking, player, topk, rng):
    """Share of draws in which r images of others stand before the match, (topk,), from the players in rank order.

    Players are drawn in the order in which they appear in the ranking, which repeats the toolkit's random stream.
    """
    ranking = ranking.astype(np.min_scalar_type(ranking.max()))  # short integers sort fast
    players, first, counts = np.unique(ranking, return_index=True, return_counts=True)
    order, of_player = np.argsort(first), np.argsort(ranking, kind="stable")
    draw = rng.integers if hasattr(rng, "integers") else rng.randint
    drawn = of_player[(counts.cumsum() - counts)[order] + draw(0, np.tile(counts[order], (_REPEATS, 1)))]
    ranks = (drawn < drawn[:, players[order] == player]).sum(axis=1)
    return np.bincount(ranks, minlength=topk)[:topk] / _REPEATS


def _expected(ranking, player, topk):
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
