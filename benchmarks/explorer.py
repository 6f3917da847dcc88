"""`python -m benchmarks.explorer`: how long the retrieval explorer takes to react, control by control."""

import io
import statistics
import time
from contextlib import redirect_stdout

import numpy as np

from benchmarks.__main__ import synthetic_features
from benchmarks.measure import machine
from reid_utils.ranking.feature_files import Features
from reid_utils.views.explorer import explore

ROUNDS = 20


def made_up_run(queries, gallery, seed=0):
    """Features as `load_features` gives them, of random players."""
    query, images, query_players, gallery_players = synthetic_features(queries, gallery, 1024, seed)
    return Features(**{
        "query": query, "gallery": images, "query_players": query_players, "gallery_players": gallery_players,
        "query_cameras": np.zeros(queries, int), "gallery_cameras": np.ones(gallery, int),
        "query_images": np.arange(queries).astype(str), "gallery_images": np.arange(gallery).astype(str),
    })  # fmt: skip


def crop(role, image):
    """A crop of 128 × 64 noise pixels, another one for each image: noise makes the longest JPEG."""
    seed = [int(image), role == "query"]
    return np.random.default_rng(seed).integers(0, 256, (128, 64, 3), np.uint8)


def reactions(control, values):
    """Milliseconds from setting a control to a finished view, for each of the values."""
    taken = []
    for value in values:
        began = time.perf_counter()
        with redirect_stdout(io.StringIO()):  # where no kernel listens, a cleared output is written as control codes
            control.value = value
        taken.append(1000 * (time.perf_counter() - began))
    return taken


def main():
    """Print the table as Markdown."""
    runs = {name: made_up_run(50, 910, seed) for seed, name in enumerate(("first", "second"))}
    began = time.perf_counter()
    query_row, settings_row, *_ = explore(runs, crop, live=True).children
    query, run, processing = query_row.children
    k1, k2, weight = settings_row.children
    queries = [value for _, value in query.options]
    changes = {
        "query": (query, queries[1 : ROUNDS + 1]),
        "run": (run, ["second", "first"] * (ROUNDS // 2)),
        "post-processing": (processing, ["gaussian", "kreciprocal", "hard in place", "hard", "none"] * (ROUNDS // 5)),
        "k1": (k1, range(10, 10 + ROUNDS)),
        "k2": (k2, range(2, 2 + ROUNDS)),
        "weight": (weight, np.linspace(0, 0.65, ROUNDS)),
    }
    print(f"{machine()}; 50×910, 1024 columns; opened after {time.perf_counter() - began:.2f} s\n")
    print(f"| control | reaction in ms: median of {ROUNDS} | slowest |\n|---|---|---|")
    for name, (control, values) in changes.items():
        if name == "k1":
            processing.value = "hard"
        taken = reactions(control, values)
        print(f"| {name} | {statistics.median(taken):.0f} | {max(taken):.0f} |", flush=True)


if __name__ == "__main__":
    main()
