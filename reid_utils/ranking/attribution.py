"""Which images cost average precision: the loss of a query, shared out over matches and intruders, and its causes."""

import numpy as np
import pandas as pd
from scipy import stats

from reid_utils.ranking.distances import check_ranked
from reid_utils.ranking.metrics import matches


def lost_precision(distances, *labels):
    """Each query's lost AP, shared out over the gallery images that cost it.

    A query's 1 − AP is the mean over its matches of the share of other players among the images no farther than the
    match. That share, over the number of matches, is charged to the match; and once more, in equal parts, to those
    other players' images, the intruders. Distances (Q, G), labels as in `average_precisions` -> (Q, G) float64: a
    row's matches sum to 1 − AP, and so do its other images; junk, images of other groups (at +inf) and rows without a
    match hold 0. Raises ValueError for NaN and for labels that do not fit.
    """
    distances = check_ranked(distances, "distances")
    hits, junk = matches(*labels)
    ranked = (distances < np.inf) & ~junk  # images of other groups are not
    lost = np.zeros(distances.shape)
    for row, loss, own, others in zip(distances, lost, hits & ranked, ~hits & ranked, strict=True):
        loss[own], loss[others] = _charged(row[own], row[others])
    return lost


def _charged(hits, others):
    """Losses of one query's matches (n,) and of other players' images (m,), from their distances."""
    level = np.searchsorted(np.sort(hits), hits, side="right")
    above = np.searchsorted(np.sort(others), hits, side="right")
    parts = 1 / ((level + above) * len(hits))
    order = np.argsort(hits)
    from_here = np.append(np.cumsum(parts[order][::-1])[::-1], 0)  # what the matches from this one on charge to each
    return above * parts, from_here[np.searchsorted(hits[order], others, side="left")]


def explained_shares(lost, causes, n_resamples=10000):
    """What share of the lost AP each cause explains, with 95 % intervals over queries.

    lost: (Q, G) as from `lost_precision`; causes: {name: (pairs, affected)}, masks (Q, G): the pairs on which the loss
    is looked at (all matches, or all other images) and those of them that the cause affects. A cause that affects the
    share p of the pairs and bears the share s of the lost AP explains (s − p) / (1 − p) of it: what would go if the
    affected pairs lost no more than the others do. 0: no more than its due; below 0: less. Every query counts alike.
    Causes overlap, so the shares need not sum to 1. Returns a DataFrame: cause, pairs (p), lost (s), explained, low,
    high (percentile bootstrap over queries; NaN for a single one).
    """
    found = {cause: _explained(lost, *masks, n_resamples) for cause, masks in causes.items()}
    table = pd.DataFrame.from_dict(found, orient="index", columns=["pairs", "lost", "explained", "low", "high"])
    return table.rename_axis("cause").reset_index()


def _explained(lost, pairs, affected, n_resamples):
    """One cause's figures: sums a query first, so that queries can be drawn; none where no AP is lost."""
    kept = pairs.any(axis=1)
    hit, pairs, lost = (pairs & affected)[kept], pairs[kept], lost[kept]
    shares, sums = hit.sum(axis=1) / pairs.sum(axis=1), ((lost * hit).sum(axis=1), (lost * pairs).sum(axis=1))
    if not sums[1].sum() > 0:
        return [np.nan] * 5
    low = high = np.nan
    if len(shares) > 1:
        rng = np.random.default_rng(0)
        drawn = stats.bootstrap(
            (shares, *sums), _share, paired=True, n_resamples=n_resamples, method="percentile", rng=rng
        )
        low, high = drawn.confidence_interval
    return [shares.mean(), sums[0].sum() / sums[1].sum(), _share(shares, *sums), low, high]


def _share(affected_share, lost_there, lost, axis=-1):
    """(s − p) / (1 − p) of sums a query."""
    p, s = affected_share.mean(axis=axis), lost_there.sum(axis=axis) / lost.sum(axis=axis)
    return (s - p) / (1 - p)
