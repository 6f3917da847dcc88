"""Does the 95 % interval hold the truth 95 times in 100 with seeds and queries drawn anew?

Simulates pairs of trainings from variance components and counts how often the interval of `paired_difference` holds the
true difference, how often its p falls below 0.05 where nothing differs, and how often a row's own interval holds its
true mAP; beside them the former method, a percentile bootstrap over queries alone. Scenarios: "study", normal effects,
the components as estimated; "equal seeds", no seed better than another; "skewed", exponential query effects and Laplace
residuals; "games", queries in eights that share 0.1 of the variances by queries, drawn and compared by eights; "few",
average precision 1 on all but some 15 queries, and a true difference.

Then: does a rerun agree? Pairs of studies with new seeds and new queries, over wide and over modest true differences:
how often the 95 % interval holds the true difference, how often the prediction interval holds the second study's, how
many verdicts the first study gives (p below 0.05 after Bonferroni's correction for COMPARISONS, and the prediction
interval on one side of 0), and how many of these the second study does not find again, or contradicts.

`python -m benchmarks.coverage RUNS` estimates the components from the trainings below a runs folder (runs/quick, say);
without it those of COMPONENTS are used. `… > benchmarks/coverage.txt` recorded the table, in 10 minutes.
"""

import argparse
from itertools import combinations, product
from pathlib import Path

import numpy as np

from reid_utils.files import load_arrays
from reid_utils.paper.claims import verdict
from reid_utils.ranking.statistics import mean_interval, paired_difference
from tools.publish import sign

# Standard deviations in points of mAP, of the quick study with eight seeds: a difference over queries; a row over
# queries, over seeds, seeds × queries.
COMPONENTS = {"difference": 9.2, "queries": 20.4, "seeds": 1.2, "residual": 10.2}
SCENARIOS = ("study", "equal seeds", "skewed", "games", "few")
GAME, SHARED = 8, 0.1  # queries of a game, and what they share of the variances by queries
SEEDS, QUERIES, RESAMPLES, BLOCK = (3, 5, 8, 12), (50, 150), 2000, 250
TRUTHS = {"wide": 6.0, "modest": 2.0}  # standard deviation of the true differences, in points of mAP
RERUN_SEEDS, RERUN_QUERIES, COMPARISONS = (3, 5, 8), (44, 150, 400), 6
RERUNS = """\
Verdicts: of all pairs. Not found: p >= 0.05 in the rerun, or another sign. Contradicted: a verdict the other way round.
                         95 % interval  prediction   verdicts   of them in a rerun of equal size (per cent)
true differences  S    Q   holds truth holds rerun      given   not found   open in the rerun         contradicted"""
HARD = 15  # queries, on the average, that are not perfect in scenario "few"


def row_components(scores):
    """Variances of one training's scores (S, Q) by queries, seeds and seeds × queries, unbiased (may be negative)."""
    seeds, queries = scores.shape
    left = scores - scores.mean(axis=0) - scores.mean(axis=1, keepdims=True) + scores.mean()
    residual = np.sum(left**2) / ((seeds - 1) * (queries - 1))
    of_queries = scores.mean(axis=0).var(ddof=1) - residual / seeds
    return np.array([of_queries, scores.mean(axis=1).var(ddof=1) - residual / queries, residual])


def estimate(folder):
    """Components, as COMPONENTS, pooled over the trainings below a folder and over those that differ in one thing."""
    files = sorted(Path(folder).rglob("02_training__*/scores.npz"))
    scores = {file.parent.name: 100 * load_arrays(file)["none|aps"] for file in files}
    rows = {name: row_components(each[:, ~np.isnan(each[0])]) for name, each in scores.items()}
    pairs = [(a, b) for a, b in combinations(scores, 2) if _differ_in_one(a, b)]
    if not pairs:
        raise SystemExit(f"{folder} holds no two trainings that differ in one thing; give the folder of a study's runs")
    changes = [_difference_component(scores[a], scores[b], rows[a][2], rows[b][2]) for a, b in pairs]
    variances = [np.mean(changes), *np.mean(list(rows.values()), axis=0)]
    found = [round(float(np.sqrt(max(0, each))), 1) for each in variances]
    return dict(zip(COMPONENTS, found, strict=True))


def _differ_in_one(a, b):
    a, b = a.split("_"), b.split("_")
    return len(a) == len(b) and sum(x != y for x, y in zip(a, b, strict=True)) == 1


def _difference_component(ours, theirs, residual, other):
    """Variance over queries of the difference of two trainings, their residuals taken off."""
    change = np.nanmean(ours, axis=0) - np.nanmean(theirs, axis=0)
    return np.nanvar(change, ddof=1) - residual / len(ours) - other / len(theirs)


def draw_effects(components, seeds, queries, rng, skewed=False, shared=0.0):
    """A difference's two rows and a row with its own queries' spread, (S, Q) each around 0.5; every true mean is 0.5.

    Effects are halved, which no coverage feels, so that no score leaves [0, 1].
    """

    def residual():
        sd = components["residual"]
        drawn = rng.laplace(0, sd / np.sqrt(2), (seeds, queries)) if skewed else rng.normal(0, sd, (seeds, queries))
        return rng.normal(0, components["seeds"], (seeds, 1)) + drawn

    spread = (rng.exponential(1, (2, queries)) - 1) if skewed else rng.normal(0, 1, (2, queries))
    if shared:
        of_games = rng.normal(0, 1, (2, -(-queries // GAME))).repeat(GAME, axis=1)[:, :queries]
        spread = np.sqrt(shared) * of_games + np.sqrt(1 - shared) * spread
    change, own = spread[0] * components["difference"], spread[1] * components["queries"]
    ours, theirs, row = change / 2 + residual(), -change / 2 + residual(), own + residual()
    return tuple(np.clip(0.5 + each / 200, 0, 1) for each in (ours, theirs, row))


def draw_few(seeds, queries, rng, alike=False):
    """Two rows (S, Q) that lose average precision on HARD queries alone, on the average; ours half as much, or alike.

    How much of the loss a query keeps differs between queries, so that the differences are skewed.
    """
    hard = np.where(rng.random(queries) < HARD / queries, rng.beta(1, 4, queries), 0)
    kept = rng.uniform(0, 1, (2, queries)) if alike else np.stack([rng.uniform(0, 1, queries), np.ones(queries)])
    noise = rng.uniform(0.8, 1, (2, seeds, 1)) * rng.uniform(0.4, 1, (2, seeds, queries))
    ours, theirs = 1 - hard * kept[:, None] * noise
    return ours, theirs


FEW_LOSS = 0.2 * 0.9 * 0.7  # mean loss of a hard query: beta, seed, residual


def draw(scenario, components, seeds, queries, rng):
    """One simulated study: (ours, theirs, true difference), (two rows alike), (a row, its true mean)."""
    if scenario == "few":
        ours, theirs = draw_few(seeds, queries, rng)
        loss = FEW_LOSS * HARD / queries
        return (ours, theirs, loss / 2), draw_few(seeds, queries, rng, alike=True), (theirs, 1 - loss)
    components = components | ({"seeds": 0.0} if scenario == "equal seeds" else {})
    shared = SHARED * (scenario == "games")
    ours, theirs, row = draw_effects(components, seeds, queries, rng, scenario == "skewed", shared)
    return (ours, theirs, 0.0), (ours, theirs), (row, 0.5)


def former_intervals(differences, rng):
    """The former method: percentile bootstrap over queries, for many simulations (N, Q) at once -> (2, N)."""
    queries = differences.shape[1]
    counts = rng.multinomial(queries, np.full(queries, 1 / queries), RESAMPLES) / queries
    return np.quantile(differences @ counts.T, [0.025, 0.975], axis=1)


def simulate(scenario, components, seeds, queries, rng):
    """A block of simulations -> (BLOCK, 5): former, new interval holds, p below 0.05, row's interval holds, width."""
    lines, differences = [], []
    groups = np.arange(queries) // GAME if scenario == "games" else None
    for _ in range(BLOCK):
        (ours, theirs, truth), null, (row, mean) = draw(scenario, components, seeds, queries, rng)
        found, (low, high) = paired_difference(ours, theirs, groups=groups), mean_interval(row, groups=groups)
        size = (found if null[0] is ours else paired_difference(*null))["p"] < 0.05
        held = found["low"] <= truth <= found["high"]
        lines.append((held, size, low <= mean <= high, found["high"] - found["low"]))
        differences.append(ours.mean(axis=0) - theirs.mean(axis=0))
    low, high = former_intervals(np.array(differences), rng)
    former = (low <= truth) & (truth <= high)
    wider = np.array(lines)[:, 3] / np.maximum(high - low, 1e-9)
    return np.column_stack([former, np.array(lines)[:, :3], np.minimum(wider, 10)])


def draw_study(components, seeds, queries, truth, rng):
    """One study (ours, theirs), (S, Q) each, over queries and seeds of its own; effects halved as above."""
    change = truth + rng.normal(0, components["difference"], queries)

    def trained(effect):
        of_seeds = rng.normal(0, components["seeds"], (seeds, 1))
        return np.clip(0.5 + (effect + of_seeds + rng.normal(0, components["residual"], (seeds, queries))) / 200, 0, 1)

    return trained(change / 2), trained(-change / 2)


def rerun(components, seeds, queries, spread, rng, pairs):
    """Pairs of studies -> (pairs, 6) bool: truth held, rerun held; a verdict, not found, lost, contradicted again."""
    lines = []
    for truth in rng.normal(0, spread, pairs):
        first, second = (
            paired_difference(*draw_study(components, seeds, queries, truth, rng), alpha=0.05 / COMPARISONS)
            for _ in range(2)
        )
        said, again = (sign(verdict(each, COMPARISONS * each["p"])) for each in (first, second))
        lines.append(
            (
                first["low"] <= truth / 200 <= first["high"],
                first["rerun_low"] <= second["difference"] <= first["rerun_high"],
                said != 0,
                said != 0 and (second["p"] >= 0.05 or second["difference"] * said < 0),
                said != 0 and again == 0,
                said * again < 0,
            )
        )
    return np.array(lines)


def print_reruns(components, pairs):
    """Prints, by true differences, seeds and queries, what both intervals hold and what becomes of verdicts."""
    print(
        f"\n{pairs} pairs of studies a line; true differences normal, standard deviation 6 (wide) or 2 (modest) points."
    )
    print(RERUNS)
    for (name, spread), queries, seeds in product(TRUTHS.items(), RERUN_QUERIES, RERUN_SEEDS):
        found = rerun(components, seeds, queries, spread, np.random.default_rng([seeds, queries, len(name)]), pairs)
        held, again, given = 100 * found[:, :3].mean(axis=0)
        weak, lost, turned = 100 * found[:, 3:].sum(axis=0) / max(1, found[:, 2].sum())
        figures = f"{held:13.1f} {again:11.1f} {given:10.1f} {weak:11.1f} {lost:26.1f} {turned:14.1f}"
        print(f"{name:16s} {seeds:2d} {queries:4d} {figures}", flush=True)


def main():
    """Prints coverage, size and width by scenario, seeds and queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", help="folder of a study's runs, whose components are used")
    parser.add_argument("--simulations", type=int, default=5_000)
    options = parser.parse_args()
    components = estimate(options.runs) if options.runs else COMPONENTS
    error = 100 * np.sqrt(0.95 * 0.05 / options.simulations)  # Monte Carlo's, of a figure near 95 or 5
    print("standard deviations in points:", ", ".join(f"{name} {sd}" for name, sd in components.items()))
    print(f"{options.simulations} simulations a line; Monte Carlo standard error {error:.1f} points")
    print("                        difference            test         row")
    print("scenario     S    Q  former  new  width  size at 5 %  its mAP")
    for scenario, queries, seeds in product(SCENARIOS, QUERIES, SEEDS):
        rng = np.random.default_rng([seeds, queries, SCENARIOS.index(scenario)])
        blocks = [simulate(scenario, components, seeds, queries, rng) for _ in range(options.simulations // BLOCK)]
        former, new, size, row, wider = np.mean(np.concatenate(blocks), axis=0) * [100, 100, 100, 100, 1]
        figures = f"{former:6.1f} {new:5.1f} {wider:5.2f}× {size:10.1f} {row:10.1f}"
        print(f"{scenario:11s} {seeds:2d} {queries:4d} {figures}", flush=True)
    print_reruns(components, max(1, options.simulations // 5))


if __name__ == "__main__":
    main()
