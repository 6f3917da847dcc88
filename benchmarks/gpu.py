"""`python -m benchmarks.gpu`: training steps, the paper's encoders and features, on a GPU.

A step of the training loop draws, augments and moves its images; the bare model goes forward and backward over the same
tensors again and again. --tiny goes through the same code with small encoders, on a CPU where there is no GPU.
"""

import argparse
import gc
import statistics
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch

from notebook_study.plan import ROOT, expand
from notebook_study.study_file import declared_in, read_study
from reid_utils.data.images import decode, letterbox
from reid_utils.data.manifest import load_manifest
from reid_utils.learning.features import extract_features, trained_encoder
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.models import build_encoder
from reid_utils.learning.processes import default_device, peak_gib
from reid_utils.learning.training import Recipe, prepare, set_rate, take_step
from reid_utils.ranking.distances import squared_euclidean
from reid_utils.ranking.methods import score

STUDIES = {"large": "paper", "tiny": "micro"}
HALVES = {"large": ("fp16", "bf16"), "tiny": ("float32", "bf16")}
SETTINGS = ("cudnn_benchmark", "deterministic", "compile")


def synchronised_seconds(function, device):
    """Seconds of a call, the device's queue emptied before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else time.perf_counter
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def encoders_of(study):
    """The encoders that a study trains, each once: dicts of backbone, size, pairs and gradient_checkpointing."""
    asked = read_study(ROOT / "studies" / f"{study}.yaml")
    declared, found = declared_in(asked, ROOT / "notebooks"), {}
    for run in expand(asked, declared):
        if run.notebook == "02_training":
            given = {**declared[run.notebook], **run.parameters}
            size = given["image_height"], given["image_width"]
            wanted = {"size": size, "pairs": given["batch_pairs"]}
            wanted |= {name: given[name] for name in ("backbone", "gradient_checkpointing")}
            found.setdefault((given["backbone"], size), wanted)
    return list(found.values())


def build(shape, device):
    """An encoder of random weights, made on the device."""
    with torch.device(device):
        return build_encoder(shape["backbone"], shape["size"], gradient_checkpointing=shape["gradient_checkpointing"])


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
    """(bare steps a second, ours, ms a step waiting for a batch, peak GiB) of an encoder of `shape`, run in turns.

    One loader serves all rounds, and the first is not counted; `settings`: more of the recipe, such as `compile`. The
    rate is 0, since a model that has learnt the one batch of the bare loop would move zeros, for which a GPU takes less
    power and time.
    """
    device = default_device()
    recipe = Recipe(batch_pairs=shape["pairs"], precision=precision, workers=workers, epochs=rounds + 1, **settings)
    count = 2 * shape["pairs"] * (steps + 1)
    images = np.random.default_rng(0).integers(0, 255, (count, *shape["size"], 3), dtype=np.uint8)
    labels = np.arange(count) // 2
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    encoder = build(shape, device).train()
    named, shared, half = prepare(encoder, recipe, labels.max() + 1)
    parts = shared, named["objective"], named["optimiser"], named["scaler"]
    set_rate(named["optimiser"], 0.0)
    loaded = batches_of_steps(RunBatches(images, labels, encoder, recipe), 1, 0, recipe, device)
    ready = [tuple(tensor.clone() for tensor in next(loaded)[0])]

    def ours():
        for _ in range(steps):
            start = time.perf_counter()
            taken = next(loaded)
            waited.append(time.perf_counter() - start)
            take_step(taken, *parts, half=half)

    found, waited = {"bare": [], "ours": []}, []
    for turn in range(rounds + 1):
        for name, function in (("bare", lambda: bare_loop(ready, parts, steps, half)), ("ours", ours)):
            seconds = synchronised_seconds(function, device)
            found[name] += [steps / seconds] if turn else []
    bare, own = (statistics.median(rates) for rates in found.values())
    return bare, own, 1000 * statistics.median(waited), peak_gib()


def timed_features(encoder, images, precision, batch_size=128):
    """(features, images a second) of a second extraction, the first being the warm-up."""
    kept = []

    def extract():
        kept.append(extract_features(encoder, images, batch_size, precision=precision))

    _, seconds = (synchronised_seconds(extract, default_device()) for _ in range(2))
    return kept[-1], len(images) / seconds


def measure_extraction(shape, precisions, batch_size=64):
    """Images a second of feature extraction, one figure a precision."""
    encoder = build(shape, default_device())
    images = np.random.default_rng(0).integers(0, 255, (2 * batch_size, *shape["size"], 3), dtype=np.uint8)
    return [timed_features(encoder, images, precision, batch_size)[1] for precision in precisions]


def measure_half_features(weights, folder, precisions):
    """[(precision, mAP in %, images a second)] of trained weights over the test split of a data set."""
    encoder, _ = trained_encoder(weights)
    rows = load_manifest(folder).query("split == 'test'")
    images = np.stack([letterbox(decode(Path(folder) / path), *encoder.image_size) for path in rows["path"]])
    encoder, sides = encoder.to(default_device()), [(rows["role"] == role).to_numpy() for role in ("query", "gallery")]
    labels = [rows.loc[side, name].to_numpy(np.int64) for name in ("player", "camera") for side in sides]
    found = []
    for precision in precisions:
        features, speed = timed_features(encoder, images, precision)
        distances = squared_euclidean(*(features[side] for side in sides))
        found.append((precision, 100 * score(distances, *labels)["mAP"], speed))
    return found


def write_header(*names):
    """The head of a Markdown table."""
    print("\n| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|", flush=True)


def write_row(*cells):
    """A row of a Markdown table, at once; floats with four significant digits."""
    texts = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in cells]
    print("| " + " | ".join(texts) + " |", flush=True)
    gc.collect()
    torch.cuda.empty_cache()


def write_steps(size, given):
    """The training loop beside the bare model: both half precisions, then each setting at the first of them."""
    first, *_ = encoders_of(STUDIES[size])
    precisions = HALVES[size]
    print(f"\n{first['backbone']}, {first['pairs']} pairs of {first['size']}, {given.workers} workers")
    write_header("precision", "setting", "bare model: steps a second", "ours", "ratio", "ms for a batch", "peak GiB")
    for precision, setting in [*((p, "") for p in precisions), *((precisions[0], name) for name in given.settings)]:
        settings = {setting: True} if setting else {}
        bare, *rest = measure_steps(first, precision, given.steps, given.rounds, given.workers, **settings)
        write_row(precision, setting or "–", bare, rest[0], rest[0] / bare, *rest[1:])


def write_encoders(size, given):
    """Every encoder of the study: its training steps and its feature extraction."""
    half = HALVES[size][-1]
    head = ("backbone", "size", "pairs", "ms a step", "of the bare model's rate", "peak GiB")
    write_header(*head, "features: images a second, float32", half)
    for shape in encoders_of(STUDIES[size]):
        if not fnmatchcase(shape["backbone"], given.backbones):
            continue
        steps = max(2, given.steps // 5)
        bare, ours, _, peak = measure_steps(shape, half, steps, 1, given.workers)
        speeds = measure_extraction(shape, ("float32", half))
        side = "×".join(map(str, shape["size"]))
        write_row(shape["backbone"], side, shape["pairs"], 1000 / ours, ours / bare, peak, *speeds)


def main(arguments=None):
    """Parse the command line and print the tables as Markdown -> exit status, 1 where a GPU is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parts = ("steps", "encoders")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts, help="tables to make (all)")
    parser.add_argument("--steps", type=int, default=50, help="training steps a round (50)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first (3)")
    parser.add_argument("--workers", type=int, default=8, help="processes that prepare batches (8)")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, default=SETTINGS, help="measured one by one (all)")
    parser.add_argument("--backbones", default="*", metavar="GLOB", help="encoders of that table (all)")
    parser.add_argument("--weights", nargs="*", default=[], help="weights of runs, whose features are scored over DATA")
    parser.add_argument("--data", help="a data set, for --weights")
    parser.add_argument("--tiny", action="store_true", help="small encoders, on a CPU too")
    given = parser.parse_args(arguments)
    if bool(given.weights) != bool(given.data):
        parser.error("--weights and --data belong together")
    if not given.tiny and not torch.cuda.is_available():
        print(
            "benchmarks.gpu needs a CUDA GPU, and torch sees none here; --tiny tries the code without", file=sys.stderr
        )
        return 1
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}", flush=True)
    size = "tiny" if given.tiny else "large"
    if given.weights:
        precisions = dict.fromkeys(("float32", *HALVES[size]))
        write_header("weights", "precision", "mAP, %", "images a second")
        for weights in given.weights:
            for row in measure_half_features(weights, given.data, precisions):
                write_row(Path(weights).parents[1].name, row[0], f"{row[1]:.3f}", row[2])
    if "encoders" in given.only:
        write_encoders(size, given)
    if "steps" in given.only:
        write_steps(size, given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
