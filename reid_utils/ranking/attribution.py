"""Which images cost average precision: the loss of a query, shared out over matches and intruders, and its causes."""

import numpy as np
import pandas as pd
from scipy import stats

from reid_utils.ranking.metrics import average_precisions, matches


def lost_precision(distances, query_ids, gallery_ids, query_cams=None, gallery_cams=None):
    """Each query's lost AP, shared out over the gallery images that cost it.

    A query's 1 − AP is the mean over its matches of the share of other players among the images no farther than the
    match. That share, over the number of matches, is charged to the match; and once more, in equal parts, to those
    other players' images, the intruders. Distances (Q, G), labels as in `average_precisions` -> (Q, G) float64: a
    row's matches sum to 1 − AP, and so do its other images; junk, images of other groups (at +inf) and rows without a
    match hold 0. Errors as in `average_precisions`.
    """
    distances = np.asarray(distances)
    aps = average_precisions(distances, query_ids, gallery_ids, query_cams, gallery_cams)
    hits, junk = matches(query_ids, gallery_ids, query_cams, gallery_cams)
    lost = np.zeros(distances.shape)
    for q in np.flatnonzero(~np.isnan(aps)):
        ranked = distances[q] < np.inf  # images of other groups are not
        own, others = np.flatnonzero(hits[q] & ranked), np.flatnonzero(~hits[q] & ~junk[q] & ranked)
        lost[q, own], lost[q, others] = _charged(distances[q, own], distances[q, others])
    return lost


def _charged(hits, others):
    """Losses of one query's matches (n,) and of other players' images (m,), from their distances."""
    level = np.searchsorted(np.sort(hits), hits, side="right")
    above = np.searchsorted(np.sort(others), hits, side="right")
    parts = 1 / ((level + above) * len(hits))
    order = np.argsort(hits)
    from_here = np.append(np.cumsum(parts[order][::-1])[::-1], 0)  # what the matches from this one on charge to each
    return above * parts, from_here[np.searchsorted(hits[order], others, side="left")]


def explained_shares(lost, causes, n_resamples=10000, seed=0):
    """What share of the lost AP each cause explains, with 95 % intervals over queries.

    lost: (Q, G) as from `lost_precision`; causes: {name: (pairs, affected)}, masks (Q, G): the pairs on which the loss
    is looked at (all matches, or all other images) and those of them that the cause affects. A cause that affects the
    share p of the pairs and bears the share s of the lost AP explains (s − p) / (1 − p) of it: what would go if the
    affected pairs lost no more than the others do. 0: no more than its due; below 0: less. Every query counts alike.
    Causes overlap, so the shares need not sum to 1. Returns a DataFrame: cause, pairs (p), lost (s), explained, low,
    high (percentile bootstrap over queries; NaN for a single one).
    """
    found = [{"cause": name, **_explained(lost, *masks, n_resamples, seed)} for name, masks in causes.items()]
    return pd.DataFrame(found, columns=["cause", "pairs", "lost", "explained", "low", "high"])


def _explained(lost, pairs, affected, n_resamples, seed):
    """One cause's figures: sums a query first, so that queries can be drawn."""
    kept = pairs.any(axis=1)
    if not (lost[kept] * pairs[kept]).sum() > 0:
        return dict.fromkeys(("pairs", "lost", "explained", "low", "high"), float("nan"))
    hit, pairs, lost = (pairs & affected)[kept], pairs[kept], lost[kept]
    affected_share = hit.sum(axis=1) / pairs.sum(axis=1)
    sums = affected_share, (lost * hit).sum(axis=1), (lost * pairs).sum(axis=1)
    low = high = float("nan")
    if kept.sum() > 1:
        drawn = stats.bootstrap(
            sums, _share, paired=True, n_resamples=n_resamples, method="percentile", rng=np.random.default_rng(seed)
        )
        low, high = map(float, drawn.confidence_interval)
    p, s = float(affected_share.mean()), float(sums[1].sum() / sums[2].sum())
    return {"pairs": p, "lost": s, "explained": float(_share(*sums)), "low": low, "high": high}


def _share(affected_share, lost_there, lost, axis=-1):
    """(s − p) / (1 − p) of sums a query."""
    p, s = affected_share.mean(axis=axis), lost_there.sum(axis=axis) / lost.sum(axis=axis)
    return (s - p) / (1 - p)
