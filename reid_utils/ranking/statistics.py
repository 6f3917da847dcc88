"""Uncertainty of retrieval scores: intervals, paired differences and corrected p-values over queries.

Scores are arrays (seeds, queries) of per-query values in [0, 1] (average precision, or 0/1 hits for rank-1),
NaN where a query has no match. A query recurs in every seed, so it is one unit: its scores are averaged over
the seeds first, and queries are resampled after that. Resampling within seeds would count a query once a seed
and give intervals far too narrow (`python -m benchmarks.coverage` shows both). Intervals are conditional on the
trained seeds.
"""

from itertools import pairwise, product

import numpy as np
import pandas as pd
from scipy import stats

_EXACT_QUERIES = 13  # up to here the 2^n sign patterns are fewer than 10,000 random ones
_BLOCK = 1000  # sign patterns held in memory at a time
_ROUNDING = 1e-9  # scores closer than this are equal


def mean_over_seeds(aps):
    """Each query's score averaged over the seeds.

    aps: (seeds, queries), or (queries,) for one seed; values in [0, 1], NaN where a query has no match.
    Returns (queries,) float64, NaN where the query has no match. Raises ValueError if a query is NaN in some
    seeds only (then the seeds did not rank the same set) or if a value is outside [0, 1].
    """
    scores = np.atleast_2d(np.asarray(aps, dtype=np.float64))
    if scores.ndim != 2 or scores.size == 0:
        raise ValueError(f"scores have shape {np.shape(aps)}; give (seeds, queries) with at least one of each")
    if np.any((scores < 0) | (scores > 1 + _ROUNDING)):
        raise ValueError("scores lie outside [0, 1]; give fractions, not per cent")
    missing = np.isnan(scores)
    mixed = np.flatnonzero(missing.any(axis=0) & ~missing.all(axis=0))
    if len(mixed):
        raise ValueError(f"query {mixed[0]} has a score in some seeds only; rank the same set with every seed")
    return scores.mean(axis=0)


def _mean_interval(values, n_resamples, confidence, seed):
    """Percentile bootstrap interval of the mean of `values` (n,); equal n and seed draw equal queries."""
    if len(values) < 2:
        return float("nan"), float("nan")
    drawn = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=n_resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def bootstrap_interval(aps, n_resamples=10000, confidence=0.95, seed=0):
    """Percentile bootstrap interval of the mean score (mAP; rank-1 for 0/1 scores), queries drawn jointly.

    aps: (seeds, queries) in [0, 1], NaN where a query has no match; those are left out. confidence in (0, 1).
    Returns (low, high), the same for the same seed; (nan, nan) for a single query, which tells nothing of the
    spread. Raises ValueError if no query has a match. Efron and Tibshirani 1993, chapter 13.
    """
    return _mean_interval(_matched(mean_over_seeds(aps)), n_resamples, confidence, seed)


def _matched(scores):
    """The scores (n,) of the queries that have a match, of (queries,)."""
    kept = scores[~np.isnan(scores)]
    if not len(kept):
        raise ValueError("no query has a match; check that query and gallery share players")
    return kept


def _paired(aps, baseline_aps):
    """Per-query differences (n,) of two rows over the queries that have a match."""
    ours, theirs = mean_over_seeds(aps), mean_over_seeds(baseline_aps)
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} queries against {len(theirs)} in the baseline; rank the same queries in both")
    unequal = np.flatnonzero(np.isnan(ours) != np.isnan(theirs))
    if len(unequal):
        raise ValueError(f"query {unequal[0]} has a match in one row only; rank the same set in both")
    return _matched(ours - theirs)


def _sign_flip_p(differences, n_resamples, seed):
    """Two-sided p of the mean of `differences` (n,) under random signs; exact up to 13 queries, never 0.

    scipy.stats.permutation_test gives the same but is too slow for a table; it is the oracle of the tests.
    """
    n = len(differences)
    reached = abs(differences.sum()) - _ROUNDING
    if n <= _EXACT_QUERIES:
        sums = np.array(list(product((-1.0, 1.0), repeat=n))) @ differences
        return float(np.mean(np.abs(sums) >= reached))
    rng = np.random.default_rng(seed)
    starts = [*range(0, n_resamples, _BLOCK), n_resamples]
    signs = (2.0 * rng.integers(0, 2, (stop - start, n)) - 1 for start, stop in pairwise(starts))
    as_large = sum(int(np.sum(np.abs(block @ differences) >= reached)) for block in signs)
    return (as_large + 1) / (n_resamples + 1)


def paired_difference(aps, baseline_aps, n_resamples=10000, confidence=0.95, seed=0):
    """Mean score minus the baseline's over the same queries, with interval and sign-flip permutation p-value.

    aps, baseline_aps: (seeds, queries) in [0, 1] over the same queries in the same order; the numbers of seeds
    may differ. Queries without a match are left out. Returns a dict of floats: difference, low, high (percentile
    bootstrap; NaN for a single query) and p (two-sided, exact up to 13 queries, else from `n_resamples` draws,
    never 0). Raises ValueError if the two rows differ in their queries.
    """
    differences = _paired(aps, baseline_aps)
    low, high = _mean_interval(differences, n_resamples, confidence, seed)
    p = _sign_flip_p(differences, n_resamples, seed)
    return {"difference": float(differences.mean()), "low": low, "high": high, "p": p}


def holm(p_values):
    """Holm's step-down correction of p-values, in the given order; NaN entries count as no test and stay NaN.

    p_values: (n,) in [0, 1]. Returns (n,) float64, at most 1. Holm, Scandinavian Journal of Statistics, 1979.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(p_values))
    order = tested[np.argsort(p_values[tested], kind="stable")]
    corrected = np.full(len(p_values), np.nan)
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected


def _describe(name, aps, metric, settings):
    """One row's own figures: mean score, interval, standard deviation of the seeds' means, counts."""
    scores = np.atleast_2d(np.asarray(aps, dtype=np.float64))
    kept = _matched(mean_over_seeds(scores))
    low, high = _mean_interval(kept, *settings)
    of_seeds = np.nanmean(scores, axis=1)
    seed_sd = float(of_seeds.std(ddof=1)) if len(scores) > 1 else float("nan")
    figures = {"row": name, metric: float(kept.mean()), "low": low, "high": high}
    return figures | {"seed_sd": seed_sd, "seeds": len(scores), "queries": len(kept)}


def compare_rows(rows, baseline, n_resamples=10000, confidence=0.95, seed=0, metric="mAP"):
    """A table's rows with their intervals, and each one's paired difference to the baseline row.

    rows: dict of name → scores (seeds, queries) in [0, 1], all over the same queries; baseline: one of the names.
    Returns a DataFrame in the order of `rows`: row, mAP (named `metric`), low, high, difference, diff_low,
    diff_high, p, p_holm (over the table), seed_sd (NaN for one seed), seeds, queries (with a match). All scores
    are fractions; the baseline's difference columns are NaN. Raises ValueError for an unknown baseline or rows
    over different queries.
    """
    if baseline not in rows:
        raise ValueError(f"baseline {baseline!r} is not a row; the rows are {', '.join(map(str, rows))}")
    settings = (n_resamples, confidence, seed)
    lines = []
    for name, aps in rows.items():
        line = _describe(name, aps, metric, settings)
        if name != baseline:
            against = paired_difference(aps, rows[baseline], *settings)
            line |= {"diff_low": against["low"], "diff_high": against["high"]}
            line |= {"difference": against["difference"], "p": against["p"]}
        lines.append(line)
    columns = ["row", metric, "low", "high", "difference", "diff_low", "diff_high", "p", "p_holm"]
    table = pd.DataFrame(lines).reindex(columns=[*columns, "seed_sd", "seeds", "queries"])
    return table.assign(p_holm=holm(table["p"]))


def smallest_detectable_difference(aps, baseline_aps, power=0.8, alpha=0.05):
    """The smallest true difference of two rows that a two-sided test over these queries would find.

    aps, baseline_aps: as in `paired_difference`; the spread of their differences over queries is taken as given.
    power: wanted chance to find it; alpha: level of the test (divide it by the number of comparisons for a
    Holm-corrected table). Returns a fraction, (t(1 − alpha/2) + t(power)) · sd / √queries; NaN for a single
    query. Cohen 1988, chapter 2.
    """
    differences = _paired(aps, baseline_aps)
    n = len(differences)
    if n < 2:
        return float("nan")
    quantiles = stats.t.ppf([1 - alpha / 2, power], df=n - 1)
    return float(quantiles.sum() * differences.std(ddof=1) / np.sqrt(n))
