"""Does the band of the regime map hold the truth 95 times in 100 with test sets, seeds and queries drawn anew?

Simulates the operating points of one level of difficulty: sets, training seeds and queries shift the effect of all that
they touch. Beside the band of `effect_curve` stands the plain percentile bootstrap over the same draws.

`python -m benchmarks.curves > benchmarks/curves.txt` recorded the table, in two minutes.
"""

from itertools import product

import numpy as np

from reid_utils.ranking import regimes

SETS, SEEDS, STAGES, QUERIES, SIMULATIONS, RESAMPLES = (3, 8, 12), 3, 3, 48, 300, 600
SPREAD = {"seeds": 0.005, "queries": 0.1, "residual": 0.1}  # standard deviations, fractions of mAP
SPREADS = (0.02, 0.06)  # of sets: about what their queries' spread makes, and three times that
AT, SLOPE = 0.6, -0.2  # where the effect is told, and how it goes with mAP


def draw(rng, sets, spread):
    """(single, effect, sets, seeds) of all points; the true effect is SLOPE · (mAP − AT)."""
    of_sets, of_seeds = rng.normal(0, spread, sets), rng.normal(0, SPREAD["seeds"], SEEDS)
    single, effect, labels = [], [], []
    for number in range(sets):
        of_queries = rng.normal(0, SPREAD["queries"], QUERIES)
        for seed in range(SEEDS):
            for level in AT + 0.1 * (np.arange(STAGES) - 1):
                single.append(np.clip(level + rng.normal(0, 0.1, QUERIES), 0, 1))
                noise = of_queries + rng.normal(0, SPREAD["residual"], QUERIES)
                effect.append(SLOPE * (level - AT) + of_sets[number] + of_seeds[seed] + noise)
                labels.append((number, seed))
    return np.array(single), np.array(effect), *np.array(labels).T


def covers(points):
    """Whether the band holds the truth at AT, 0."""
    curve = regimes.effect_curve(*points, [AT], n_resamples=RESAMPLES).iloc[0]
    return curve["low"] <= 0 <= curve["high"]


def main():
    """Prints the coverage by the spread and the number of sets."""
    print(f"{SIMULATIONS} simulations a line; Monte Carlo standard error 1.3 points")
    print("spread of sets  sets  percentiles  band of the map")
    widened = regimes._tails
    for spread, sets in product(SPREADS, SETS):
        drawn = [draw(np.random.default_rng([sets, k]), sets, spread) for k in range(SIMULATIONS)]
        held = []
        for tails in (lambda count: (0.025, 0.975), widened):
            regimes._tails = tails
            held.append(100 * np.mean([covers(points) for points in drawn]))
        print(f"{spread:14.2f} {sets:5d} {held[0]:12.1f} {held[1]:16.1f}", flush=True)


if __name__ == "__main__":
    main()
