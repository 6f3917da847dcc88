"""Uncertainty of retrieval scores: means and differences of rows over queries and seeds, both drawn at random.

Scores are arrays (seeds, queries) of per-query values in [0, 1] (average precision, or 0/1 hits for rank-1), NaN where
a query has no match. A claim on a method must hold for other queries and for other seeds, so both vary: a two-way
layout without replicates (Clark, Journal of Verbal Learning and Verbal Behavior, 1973). The squared standard error has
two parts: that of the queries, with the seeds at hand held fixed ("for these trained networks"), and what the seeds
add to it. The interval's half is √(t₁²·queries + t₂²·seeds), each t with its part's own degrees of freedom
(Welch-Satterthwaite where two rows have unpaired seeds); `python -m benchmarks.coverage` shows that it covers.
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betaincinv, stdtrit

_CONFIDENCE = 0.95  # of the intervals of a difference
_POWER = 0.8  # to show the smallest difference
P_FLOOR = 1e-4  # below this the tails of t are no longer to be believed
_FEW = 30  # informative queries; below this (and half of all) they are too few to know their spread as all n would
_FEWEST_GROUPS = 5  # with fewer, Student's quantile alone is above 3 and the interval says nothing
_SKEW = 2.25  # 1.5 for gamma distributions; as much more as `benchmarks.coverage` needs at 50 queries
_ROUNDING = 1e-9  # scores closer than this are equal


class _Spread(NamedTuple):
    """Squared standard error of a mean or difference: its two parts, and what they are made of."""

    queries: float  # with the seeds at hand held fixed
    queries_df: float
    seeds: float  # what drawing the seeds anew adds; 0 where a row has one seed
    seeds_df: float
    informative: int  # queries that say something: the rows differ, or the score is not perfect
    count: int  # all queries

    def half(self, alpha, power=0.5, seeds=True):
        """Half of the 1 − alpha interval; with a power, the difference that a test at alpha finds so often."""
        if self.informative < 2 and self.queries_df > 0:  # no spread to go by: a bound on the share that may differ
            return betaincinv(self.informative + 1, self.count - self.informative, 1 - alpha / 2)
        total = _t(alpha, power, self.queries_df) ** 2 * self.queries
        if seeds and self.seeds > 0:
            total = total + _t(alpha, power, self.seeds_df) ** 2 * self.seeds
        return np.sqrt(total)


def _t(alpha, power, df):
    """Sum of Student's quantiles at 1 − alpha/2 and at `power`; NaN without degrees of freedom."""
    return stdtrit(df, 1 - alpha / 2) + stdtrit(df, power) if df > 0 else np.nan


def _scores(aps):
    """Checked scores (seeds, queries) float64 of (seeds, queries) or, for one seed, (queries,)."""
    scores = np.atleast_2d(np.asarray(aps, dtype=np.float64))
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores have shape {np.shape(aps)}; give (seeds, queries) with at least one of each")
    if np.any((scores < 0) | (scores > 1 + _ROUNDING)):
        raise ValueError("scores lie outside [0, 1]; give fractions, not per cent")
    missing = np.isnan(scores)
    mixed = np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0))
    if len(mixed):
        raise ValueError(f"query {mixed[0]} has a score in some seeds only; rank the same set with every seed")
    if missing.all():
        raise ValueError("no query has a match; check that query and gallery share players")
    return scores


def _matched(scores, groups):
    """Scores and groups of the queries that have a match; groups are numbered from 0, None stays None."""
    kept = ~np.isnan(scores[0])
    if groups is None:
        return scores[:, kept], None
    if len(groups) != scores.shape[1]:
        raise ValueError(f"{len(groups)} groups for {scores.shape[1]} queries; give each query its group")
    return scores[:, kept], np.unique(np.asarray(groups)[kept], return_inverse=True)[1]


def _units(scores, groups):
    """What is drawn at random: the queries, or groups of them, whose plain mean is the mean over queries.

    A group's value is its queries' summed deviation from the mean, scaled: the linearised ratio estimator, whose
    variance is the cluster-robust one. scores: (seeds, queries); returns (seeds, units).
    """
    if groups is None:
        return scores
    count, mean = groups.max() + 1, scores.mean()
    sums = np.array([np.bincount(groups, line - mean, minlength=count) for line in scores])
    return mean + sums * count / scores.shape[1]


def _spread(parts, per_query, groups):
    """The squared standard error of a sum of means.

    parts: arrays (seeds, queries), one a set of networks, a baseline's negated; per_query (queries,): their sum over
    the parts, averaged over each part's seeds, shifted so that 0 marks an uninformative query (both rows equal, or a
    perfect score).
    """
    informative = int(np.sum(np.abs(per_query) > _ROUNDING))
    units = _units(per_query[None], groups)[0]
    n, count = len(units), len(per_query)
    squares, df = np.sum((units - units.mean()) ** 2), _df(units)
    if informative < min(_FEW, count / 2):
        df = min(df, max(1, informative - 1))
    queries = squares / (n * (n - 1)) if n > 1 else np.nan
    return _Spread(queries, df, *_added_by_seeds([_units(part, groups) for part in parts]), informative, count)


def _df(values):
    """Degrees of freedom of the variance of (n,) values: n − 1, or fewer where they are heavy-tailed or skewed.

    By Satterthwaite's rule from Var(s²) = σ⁴(2 / (n − 1) + excess kurtosis / n). A sample of skewed values shows too
    little of its kurtosis, and its mean goes with its spread: the kurtosis counts as _SKEW · skewness² at least (less
    6 / n, the normal's by chance), and as n at most, which one outlier of n has.
    """
    n, left = len(values), values - values.mean()
    if n < 4 or not np.any(left):
        return n - 1
    squares, cubes, fourths = (np.sum(left**power) for power in (2, 3, 4))
    kurtosis = (n - 1) / ((n - 2) * (n - 3)) * ((n + 1) * (n * fourths / squares**2 - 3) + 6)
    skewness2 = n**2 * (n - 1) / (n - 2) ** 2 * cubes**2 / squares**3
    excess = max(kurtosis, _SKEW * (skewness2 - 6 / n), 0.0)
    return 2 / (2 / (n - 1) + min(excess, n) / n)


def _added_by_seeds(parts):
    """Variance that seeds add to the mean over queries, and its degrees of freedom.

    The seeds' means vary by what a seed does to all queries and by the residual (seeds × queries); the spread over
    queries holds the residual already, so it is taken off here. Zero where a part has one seed: then only queries vary.
    """
    if min(len(part) for part in parts) < 2 or parts[0].shape[1] < 2:
        return 0.0, np.nan
    seen = np.array([part.mean(axis=1).var(ddof=1) / len(part) for part in parts])
    rests = [part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean() for part in parts]
    residual = np.array([np.sum(rest**2) / np.prod(np.subtract(rest.shape, 1)) / rest.shape[1] for rest in rests])
    df = np.array([len(part) - 1 for part in parts])
    added = max(0.0, float(np.sum(seen - residual / (df + 1))))
    welch = np.sum(seen) ** 2 / np.sum(seen**2 / df) if seen.any() else np.nan
    return added, float(welch)


def _p_value(value, spread):
    """The alpha whose interval just reaches 0, two-sided; at least P_FLOOR, 1 where nothing can be told."""
    if not abs(value) > 0 or np.isnan(spread.half(0.5)) or spread.informative < 2:
        return 1.0
    if abs(value) >= spread.half(P_FLOOR):
        return P_FLOOR
    return float(np.exp(brentq(lambda log: spread.half(np.exp(log)) - abs(value), np.log(P_FLOOR), 0.0)))


def mean_interval(aps, confidence=0.95, groups=None):
    """Interval of the mean score (mAP; rank-1 for 0/1 scores) over queries and, with several seeds, over seeds.

    aps: (seeds, queries) in [0, 1], NaN where a query has no match; those are left out. groups (queries,): the team or
    game of each query, where queries of one share distractors; they are drawn together then. confidence in (0, 1).
    Returns (low, high) within [0, 1]; (nan, nan) for a single query, which tells nothing of the spread. Raises
    ValueError if no query has a match.
    """
    scores, groups = _matched(_scores(aps), groups)
    below, above = scores.mean(axis=0) - 1, scores.mean(axis=0)
    per_query = min(below, above, key=lambda values: np.sum(np.abs(values) > _ROUNDING))  # perfect: says nothing
    half = _spread([scores], per_query, groups).half(1 - confidence)
    return float(np.maximum(scores.mean() - half, 0)), float(np.minimum(scores.mean() + half, 1))


def _parts(aps, baseline_aps, shared_weights):
    """The independent sets of networks in a comparison, (seeds, queries) each; their sum of means is the difference."""
    ours, theirs = _scores(aps), _scores(baseline_aps)
    if ours.shape[1] != theirs.shape[1]:
        counts = f"{ours.shape[1]} queries against {theirs.shape[1]} in the baseline"
        raise ValueError(f"{counts}; rank the same queries in both")
    unequal = np.flatnonzero(np.isnan(ours[0]) != np.isnan(theirs[0]))
    if len(unequal):
        raise ValueError(f"query {unequal[0]} has a match in one row only; rank the same set in both")
    if not shared_weights:
        return [ours, -theirs]
    if len(ours) != len(theirs):
        counts = f"{len(ours)} seeds against {len(theirs)} in the baseline"
        raise ValueError(f"{counts}; rows over the same networks have the same seeds")
    return [ours - theirs]


def paired_difference(aps, baseline_aps, shared_weights=False, alpha=0.05, groups=None):
    """Mean score minus the baseline's over the same queries, with intervals, p-value and what could have been told.

    aps, baseline_aps: (seeds, queries) in [0, 1] over the same queries in the same order, NaN (left out) where one has
    no match. shared_weights: both rows rank with the same networks (re-rankings, fusions), so that seed s of one
    belongs to seed s of the other; else the seeds are unpaired and their numbers may differ. groups: see
    `mean_interval`. alpha: level of `smallest` (divide it by the number of comparisons for a Holm-corrected table).

    Returns a dict: difference; low, high, its 95 % interval over queries and seeds; queries_low, queries_high over
    queries alone ("for these trained networks"); p of the wider interval and p_floor, the least that p can be; smallest
    difference that this comparison could have shown with a power of 80 %; rerun_low, rerun_high: 95 % prediction
    interval of the difference that a rerun of equal size finds with new seeds and new queries, √2 times as wide because
    both studies draw theirs (Patil, Peng and Leek 2016), NaN where a row has one seed; informative, the number of
    queries that differ. Raises ValueError if the rows differ in their queries.
    """
    parts = _parts(aps, baseline_aps, shared_weights)
    kept = [_matched(part, groups) for part in parts]
    parts, groups = [part for part, _ in kept], kept[0][1]
    per_query = sum(part.mean(axis=0) for part in parts)
    spread, value = _spread(parts, per_query, groups), float(per_query.mean())
    half, of_queries = (float(spread.half(1 - _CONFIDENCE, seeds=both)) for both in (True, False))
    rerun = np.sqrt(2) * half if min(map(len, parts)) > 1 else np.nan
    return {
        "difference": value,
        "low": value - half,
        "high": value + half,
        "queries_low": value - of_queries,
        "queries_high": value + of_queries,
        "p": _p_value(value, spread),
        "p_floor": P_FLOOR,
        "smallest": float(spread.half(alpha, _POWER)),
        "rerun_low": value - rerun,
        "rerun_high": value + rerun,
        "informative": spread.informative,
    }


def enough_groups(groups):
    """Groups (Q,), as the functions here take them; None where there are none or fewer than five.

    So few say nothing of their spread, and queries are then drawn one by one.
    """
    return groups if groups is not None and len(np.unique(groups)) >= _FEWEST_GROUPS else None


def holm(p_values):
    """Holm's step-down correction of p-values, in the given order; NaN entries count as no test and stay NaN.

    p_values: (n,) in [0, 1]. Returns (n,) float64, at most 1. Holm, Scandinavian Journal of Statistics, 1979.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p_values, kind="stable")  # NaN last
    tests_left = np.count_nonzero(~np.isnan(p_values)) - np.arange(len(order))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * tests_left), 1.0)
    return corrected


def compare_rows(rows, baseline, shared_weights=False, alpha=0.05, groups=None):
    """A table's rows with their intervals, and each one's difference to the baseline row.

    rows: dict of name → scores (seeds, queries) in [0, 1], all over the same queries; baseline: one of the names;
    shared_weights: whether a row ranks with the baseline's networks, one bool or {row: bool}; the rest as in
    `paired_difference`. Returns a DataFrame in the order of `rows`: row, mAP, low, high (its own),
    difference, diff_low, diff_high (over queries and seeds), queries_low, queries_high (of the difference, over
    queries), rerun_low, rerun_high (of a rerun's difference), p, p_holm (over the table), smallest (at alpha over the
    number of comparisons), informative, seed_sd (NaN for one seed), seeds, queries (with a match), p_floor. All scores
    are fractions; the baseline's difference columns are NaN. Raises ValueError for an unknown baseline or rows
    over different queries.
    """
    if baseline not in rows:
        raise ValueError(f"baseline {baseline!r} is not a row; the rows are {', '.join(map(str, rows))}")
    alpha = alpha / max(1, len(rows) - 1)
    lines = []
    for name, aps in rows.items():
        low, high = mean_interval(aps, groups=groups)
        of_seeds = np.nanmean(_scores(aps), axis=1)
        line = {"row": name, "mAP": float(of_seeds.mean()), "low": low, "high": high, "seeds": len(of_seeds)}
        line["seed_sd"] = float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan
        line["queries"] = int(np.sum(~np.isnan(np.atleast_2d(aps)[0])))
        if name != baseline:
            shared = shared_weights if isinstance(shared_weights, bool) else shared_weights.get(name, False)
            against = paired_difference(aps, rows[baseline], shared, alpha=alpha, groups=groups)
            line |= {"diff_low": against.pop("low"), "diff_high": against.pop("high")} | against
        lines.append(line)
    columns = ["row", "mAP", "low", "high", "difference", "diff_low", "diff_high", "queries_low", "queries_high"]
    columns += ["rerun_low", "rerun_high", "p", "p_holm", "smallest", "informative", "seed_sd", "seeds", "queries"]
    table = pd.DataFrame(lines).reindex(columns=[*columns, "p_floor"])
    return table.assign(p_holm=holm(table["p"]))


def p_text(p, at_floor=False):
    """A p-value as tables show it: four decimals, "< x" where the method cannot tell how far below x it is."""
    return f"< {max(p, 1e-4):.4f}" if at_floor else round(p, 4)
