"""Where in accuracy a post-processing or a fusion helps: its effect as a curve over the single model's mAP.

Accuracy may come from better models or from easier sets, and the two are not the same: curves are drawn within a level
of difficulty, where models alone differ.

An operating point is a model (or several, fused) over one test set. What a claim compares there is known a query; the
curve smooths the points' mean effects over the logit of the single model's mAP. Its interval must hold for other test
sets, other training seeds and other queries: all three are drawn anew together, each with random weights of mean 1
whose products weigh a query at a point (the Bayesian pigeonhole bootstrap; Owen and Eckles, Annals of Applied
Statistics, 2012).
"""

import numpy as np
import pandas as pd
from scipy.special import ndtr, stdtrit

from reid_utils.ranking.feature_files import features_of
from reid_utils.ranking.fusion import PAPER_FUSIONS
from reid_utils.ranking.methods import distances_of, fuse
from reid_utils.ranking.metrics import average_precisions, labels_of

CLAIMS = {  # name: (ours, theirs)
    claim: claim.split(" − ")
    for claim in (
        "hard − none",
        "gaussian − none",
        "kreciprocal − none",
        "hard − gaussian",
        "similarity − best single",
        "dissimilarity − best single",
        "two-stage − best single",
        "dissimilarity − similarity",
        "two-stage − similarity",
        "two-stage − dissimilarity",
    )
}
PUBLISHED = (0.727, 0.961, 0.976, 0.984)  # toolkit baseline; single models and entries of 2022 and 2023
LEAST = 0.95  # mAP of a single model from which on the paper's claims are meant
_RE_RANKINGS = ("none", "gaussian", "hard", "kreciprocal")
_SCORES = ("single", "effect")
_WORDS = {1: "helps", -1: "harms", 0: "open"}  # by the sign of an effect
_WIDTH = 0.35  # of the smoothing, in logits: 93.3 to 96.3 mAP about 95, 61.5 to 76.9 about 70
_FEWEST_SETS = 3  # within the smoothing's reach; with fewer the curve would be a matter of one set's teams and scenes


def outside_regime(single):
    """What to say of a finding at a single model's mAP (a fraction); empty where the paper's claims are meant."""
    return "" if single >= LEAST else f"outside the regime that the paper speaks of ({100 * single:.1f} mAP here)"


def effects_at(models, post_processing="hard"):
    """What every claim compares at one operating point.

    models: list of `Features` of single models over the same images. Returns a list of (claim, single (Q,), effect
    (Q,)): the plain average precisions of the single model, and ours minus theirs. Each re-ranking is compared for each
    model, the fusions (of `post_processing` distances) once, with the best model of them as the single one.
    """
    labels = labels_of(models[0])
    matrices = [{name: distances_of(model, name) for name in _RE_RANKINGS} for model in models]
    rows = [{name: average_precisions(matrix, *labels) for name, matrix in of_model.items()} for of_model in matrices]
    compared = [(row["none"], row) for row in rows]
    if len(models) > 1:
        best = max(rows, key=lambda row: np.nanmean(row[post_processing]))
        processed = [of_model[post_processing] for of_model in matrices]
        fusions = PAPER_FUSIONS if len(models) > 2 else ["similarity"]  # of two models all three are the same
        fused = {name: average_precisions(fuse(processed, name), *labels) for name in fusions}
        compared.append((best["none"], {"best single": best[post_processing], **fused}))
    return [
        (claim, single, row[ours] - row[theirs])
        for single, row in compared
        for claim, (ours, theirs) in CLAIMS.items()
        if ours in row and theirs in row
    ]


def points_in_set(features, test, post_processing="hard"):
    """The operating points of some models in one test set.

    features: one (N, d) array a model; test: the set's rows of the manifest, (N,). Returns a list of dicts: claim,
    single and effect, (Q,).
    """
    models = [features_of(test, of_model) for of_model in features]
    names = "claim", "single", "effect"
    return [dict(zip(names, point, strict=True)) for point in effects_at(models, post_processing)]


def curves_of(points, grid):
    """The curve of each claim and level.

    points: dicts as `points_in_set` gives them, with level, set and seed besides; sets of unequal size are filled up.
    Returns a DataFrame: claim, level and the columns of `effect_curve`.
    """
    curves, most = [], max(len(point["single"]) for point in points)
    for (claim, level), group in pd.DataFrame(points).groupby(["claim", "level"], sort=False):
        scores = ([np.pad(a, (0, most - len(a)), constant_values=np.nan) for a in group[name]] for name in _SCORES)
        curve = effect_curve(*map(np.stack, scores), group["set"], group["seed"], grid)
        curves.append(pd.DataFrame({"claim": claim, "level": level, **curve}))
    return pd.concat(curves, ignore_index=True)


def effect_curve(single, effect, sets, seeds, grid, n_resamples=2000):
    """A claim's effect against the single model's mAP, with 95 % intervals.

    single, effect: (P, Q) a point and query, fractions, NaN where a query is not in the point; the columns of points of
    one set are the same queries. sets, seeds: (P,) which test set and which training seed a point belongs to; grid:
    (K,) mAP to give the effect at. Returns a DataFrame with mAP, effect, low, high and sets (how many lie within reach;
    below three the effect is NaN). So few sets show too little of their spread: the percentiles are those that make
    the bootstrap of as many normal draws as wide as Student's interval (Hesterberg, The American Statistician, 2015).
    """
    sets, seeds = (pd.factorize(labels, sort=True)[0] for labels in (sets, seeds))
    rng = np.random.default_rng(0)
    shape = n_resamples, sets.max() + 1
    of_queries = rng.exponential(size=(*shape, single.shape[1]))
    weight = rng.exponential(size=shape)[:, sets] * rng.exponential(size=(n_resamples, seeds.max() + 1))[:, seeds]
    means = [_means(values, of_queries, sets) for values in (single, effect)]
    seen = [np.nanmean(values, axis=1) for values in (single, effect)]
    reach = np.abs(_logit(seen[0])[:, None] - _logit(grid)) <= 2 * _WIDTH
    counts = [len(np.unique(sets[near])) for near in reach.T]
    center = _smooth(seen[0][None], seen[1][None], np.ones((1, len(sets))), grid)[0]
    drawn = _smooth(*means, weight, grid)
    ends = [np.quantile(of, _tails(count)) for of, count in zip(drawn.T, counts, strict=True)]
    curve = pd.DataFrame({"mAP": grid, "effect": center, "sets": counts})
    curve[["low", "high"]] = ends
    curve.loc[curve["sets"] < _FEWEST_SETS, ["effect", "low", "high"]] = np.nan
    return curve


def _tails(count):
    """The two quantiles of a bootstrap over `count` sets that make a 95 % interval; see `effect_curve`."""
    if count < _FEWEST_SETS:
        return 0.0, 1.0
    tail = ndtr(-np.sqrt(count / (count - 1)) * stdtrit(count - 1, 0.975))
    return tail, 1 - tail


def ranges_told(curve):
    """In words, between which mAP of the single model a curve of `effect_curve` tells what: "helps 30–94, … mAP"."""
    curve = curve[curve["effect"].notna()]
    sign = (curve["low"] > 0).astype(int) - (curve["high"] < 0).astype(int)
    parts = [(_WORDS[part.iloc[0]], curve["mAP"][part.index]) for _, part in sign.groupby(sign.diff().ne(0).cumsum())]
    told = ", ".join(f"{word} {100 * at.iloc[0]:.3g}–{100 * at.iloc[-1]:.3g}" for word, at in parts)
    return f"{told} mAP" if told else "no three sets have such single models"


def sign_changes(curve):
    """Where a curve of `effect_curve` changes its sign: a list of dicts, one a crossing that both sides confirm.

    Each has `at` (mAP of the single model), `low` and `high`, the last mAP before and the first after it at which the
    effect's interval leaves out zero, and `told`, all that in words. A crossing without such an mAP on both sides is
    none, nor are crossings within one interval that undo each other.
    """
    curve = curve[curve["effect"].notna()]
    at, effect = curve["mAP"].to_numpy(), curve["effect"].to_numpy()
    certain = at[(curve["low"] > 0) | (curve["high"] < 0)]
    found = {}
    for k in np.flatnonzero(effect[:-1] * effect[1:] < 0):
        limits = max(certain[certain <= at[k]], default=None), min(certain[certain > at[k]], default=None)
        zero = at[k] + (at[k + 1] - at[k]) * effect[k] / (effect[k] - effect[k + 1])
        found.setdefault(limits, []).append((zero, np.sign(effect[k + 1])))
    crossings = []
    for (low, high), zeros in found.items():
        if low is not None and high is not None and len(zeros) % 2:
            zero, sign = zeros[-1]
            told = f"turns from {_WORDS[-sign]} to {_WORDS[sign]} at {100 * zero:.1f} mAP"
            told += f" (95 % interval: {100 * low:.1f} to {100 * high:.1f})"
            crossings.append({"at": zero, "low": low, "high": high, "told": told})
    return crossings


def _logit(share):
    """log(p / (1 − p)), held finite at 0 and 1."""
    share = np.clip(share, 1e-3, 1 - 1e-3)
    return np.log(share / (1 - share))


def _means(values, weights, sets):
    """Means over queries under random weights: (P, Q), (B, sets, Q), (P,) -> (B, P)."""
    there = ~np.isnan(values)
    filled, means = np.where(there, values, 0.0), np.empty((len(weights), len(values)))
    for number in np.unique(sets):
        rows = sets == number
        means[:, rows] = weights[:, number] @ filled[rows].T / (weights[:, number] @ there[rows].T)
    return means


def _smooth(single, effect, weight, grid):
    """Local linear fit of effects (B, P) over the logit of mAP (B, P), points weighed by (B, P) -> (B, K)."""
    fitted = np.empty((len(single), len(grid)))
    for column, at in enumerate(_logit(grid)):
        away = _logit(single) - at
        near = weight * np.exp(-0.5 * (away / _WIDTH) ** 2)
        total, first, second = near.sum(1), (near * away).sum(1), (near * away**2).sum(1)
        slope_weight = second[:, None] - first[:, None] * away
        scale = total * second - first**2 + 1e-3 * total**2 * _WIDTH**2  # a little towards the local mean
        local = near * (slope_weight + 1e-3 * total[:, None] * _WIDTH**2)
        with np.errstate(invalid="ignore", divide="ignore"):
            fitted[:, column] = (local * effect).sum(1) / scale
    return fitted
