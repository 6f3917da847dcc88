"""Does the 95 % interval hold the true mAP 95 times in 100? `python -m benchmarks.coverage`

Simulates studies of 3 seeds whose queries have a difficulty that the seeds share, and counts how often the interval
of `statistics.bootstrap_interval` covers the true mean, beside the wrong interval that resamples within seeds.
`python -m benchmarks.coverage > benchmarks/coverage.txt` recorded what it printed, in 2 minutes.
"""

import argparse

import numpy as np
from scipy.special import expit

from reid_utils.ranking.statistics import bootstrap_interval, paired_difference

SEEDS = 3
QUERY_SD, SEED_SD = 1.5, 0.7  # logits: spread of the queries' difficulty, and of one query over seeds
BASELINE_LOGIT, ROW_LOGIT = 1.5, 1.7


def draw_pair(queries, rng):
    """Scores of a baseline and a better row over the same queries: two arrays (SEEDS, queries) in (0, 1)."""
    difficulty = rng.normal(0, QUERY_SD, queries)
    noise = rng.normal(0, SEED_SD, (2, SEEDS, queries))
    return expit(BASELINE_LOGIT + difficulty + noise[0]), expit(ROW_LOGIT + difficulty + noise[1])


def within_seeds_interval(aps, n_resamples, rng):
    """The wrong 95 % interval: each seed's queries resampled apart, as if they were new ones. aps: (seeds, queries)."""
    seeds, queries = aps.shape
    chosen = rng.integers(0, queries, (n_resamples, seeds, queries))
    return np.quantile(aps[np.arange(seeds)[:, None], chosen].mean(axis=(1, 2)), [0.025, 0.975])


def coverage(queries, simulations, n_resamples, seed=0):
    """Shares of simulations whose interval holds the truth: of mAP, of the difference, and of mAP done wrongly."""
    rng = np.random.default_rng(seed)
    true_map, true_row = (scores.mean() for scores in draw_pair(2_000_000, rng))
    held = np.zeros(3)
    for _ in range(simulations):
        baseline, row = draw_pair(queries, rng)
        # A new resampling seed each time: a fixed one would carry its own error through all simulations.
        settings = {"n_resamples": n_resamples, "seed": int(rng.integers(2**31))}
        change = paired_difference(row, baseline, **settings)
        wrong = within_seeds_interval(baseline, n_resamples, rng)
        intervals = (bootstrap_interval(baseline, **settings), (change["low"], change["high"]), wrong)
        truths = (true_map, true_row - true_map, true_map)
        held += [low <= truth <= high for (low, high), truth in zip(intervals, truths, strict=True)]
    return held / simulations


def main():
    """Prints the coverage at 50 and 200 queries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=4000)
    parser.add_argument("--resamples", type=int, default=2000)
    options = parser.parse_args()
    error = 100 * np.sqrt(0.95 * 0.05 / options.simulations)
    print(f"$ python -m benchmarks.coverage --simulations {options.simulations} --resamples {options.resamples}")
    print(f"{options.simulations} simulations of {SEEDS} seeds; standard error {error:.1f} points")
    print("queries  mAP, queries jointly  difference, paired  mAP, within seeds (wrong)")
    for queries in (50, 200):
        joint, paired, wrong = 100 * coverage(queries, options.simulations, options.resamples)
        print(f"{queries:7d}  {joint:18.1f} %  {paired:16.1f} %  {wrong:23.1f} %")


if __name__ == "__main__":
    main()
