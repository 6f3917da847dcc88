"""`python -m benchmarks.gpu`: training steps beside the bare model's, and the neighbour search, on a GPU.

A step of the training loop draws, augments and moves its images; the bare model goes forward and backward over the same
tensors again and again. --tiny goes through the same code with a small encoder, on a CPU where there is no GPU.
"""

import argparse
import itertools
import statistics
import sys
import time

import numpy as np
import torch

from benchmarks.__main__ import synthetic_features
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.models import build_encoder
from reid_utils.learning.processes import default_device, peak_gib
from reid_utils.learning.training import Recipe, prepare, take_step
from reid_utils.ranking.neighbours import search_features, search_tensors

LARGE = {"backbone": "ViT-L-14-quickgelu/openai", "size": (224, 224), "precisions": ("fp16", "bf16"), "pairs": 32}
TINY = {"backbone": "test_vit", "size": (32, 32), "precisions": ("float32", "bf16"), "pairs": 4}
SEARCHES = {"large": ((618, 9505), (5000, 100_000)), "tiny": ((20, 200),)}


def synchronised_seconds(function, device):
    """Seconds of a call, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else time.perf_counter
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def bare_loop(taken, parts, steps, half):
    """Forward and backward passes and optimiser steps over one batch that lies ready."""
    encoder, objective, optimiser, scaler = parts
    (images, players), device = taken[0], taken[0][0].device
    for _ in range(steps):
        with torch.autocast(device.type, half, enabled=half is not None):
            loss = objective(encoder(images), players)
        optimiser.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()


def measure_steps(shape, precision, steps, rounds, workers, **settings):
    """(bare steps a second, ours, peak GiB) of an encoder of `shape` at a precision, run in turns.

    One loader serves all rounds, and the first is not counted; `settings`: more of the recipe, such as `compile`.
    """
    device = default_device()
    recipe = Recipe(batch_pairs=shape["pairs"], precision=precision, workers=workers, epochs=rounds + 1, **settings)
    count = 2 * shape["pairs"] * (steps + 1)
    images = np.random.default_rng(0).integers(0, 255, (count, *shape["size"], 3), dtype=np.uint8)
    labels = np.arange(count) // 2
    encoder = build_encoder(shape["backbone"], shape["size"]).to(device).train()
    named, shared, half = prepare(encoder, recipe, labels.max() + 1)
    parts = shared, named["objective"], named["optimiser"], named["scaler"]
    loaded = batches_of_steps(RunBatches(images, labels, encoder, recipe), 1, 0, recipe, device)
    ready = [tuple(tensor.clone() for tensor in next(loaded)[0])]

    def ours():
        for taken in itertools.islice(loaded, steps):
            take_step(taken, *parts, half=half)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = {"bare": [], "ours": []}
    for turn in range(rounds + 1):
        for name, function in (("bare", lambda: bare_loop(ready, parts, steps, half)), ("ours", ours)):
            seconds = synchronised_seconds(function, device)
            found[name] += [steps / seconds] if turn else []
    return statistics.median(found["bare"]), statistics.median(found["ours"]), peak_gib()


def measure_search(queries, images, k=21, rounds=3):
    """(seconds on the device, share of the lists that equal the CPU's, or None where those would take minutes)."""
    query, gallery, *_ = synthetic_features(queries, images, 1024)
    device = default_device()
    tensors = [torch.from_numpy(side).to(device) for side in (query, gallery)]
    times = [synchronised_seconds(lambda: search_tensors(*tensors, k), device) for _ in range(rounds + 1)]
    if queries + images > 25_000:
        return statistics.median(times[1:]), None
    found, expected = search_tensors(*tensors, k)[:2], search_features(query, gallery, k)[:2]
    equal = [np.mean(ours.indices == theirs.indices) for ours, theirs in zip(found, expected, strict=True)]
    return statistics.median(times[1:]), float(np.mean(equal))


def main(arguments=None):
    """Parse the command line and print the tables as Markdown -> exit status, 1 where a GPU is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--steps", type=int, default=50, help="training steps a round (50)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first (3)")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare batches (8)")
    parser.add_argument(
        "--settings", nargs="*", default=[], help="compile, cudnn_benchmark, deterministic: switched on"
    )
    parser.add_argument("--tiny", action="store_true", help="a small encoder and search, on a CPU too")
    given = parser.parse_args(arguments)
    if not given.tiny and not torch.cuda.is_available():
        print(
            "benchmarks.gpu needs a CUDA GPU, and torch sees none here; --tiny tries the code without", file=sys.stderr
        )
        return 1
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    shape = TINY if given.tiny else LARGE
    print(f"{name}, torch {torch.__version__}; {shape['backbone']}, {shape['pairs']} pairs of {shape['size']}\n")
    print("| precision | bare model: steps a second | ours | ratio | peak GiB |\n|---|---|---|---|---|", flush=True)
    for precision in shape["precisions"]:
        extra = dict.fromkeys(given.settings, True)
        bare, ours, peak = measure_steps(shape, precision, given.steps, given.rounds, given.workers, **extra)
        print(f"| {precision} | {bare:.2f} | {ours:.2f} | {ours / bare:.3f} | {peak:.1f} |", flush=True)
    print("\n| neighbour search | seconds | lists as on the CPU |\n|---|---|---|", flush=True)
    for queries, images in SEARCHES["tiny" if given.tiny else "large"]:
        seconds, equal = measure_search(queries, images)
        print(f"| {queries}×{images} | {seconds:.3f} | {'–' if equal is None else f'{equal:.4f}'} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
