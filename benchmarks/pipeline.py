"""`python -m benchmarks.pipeline`: crops per second of the input pipeline, and what a training step pays for it."""

import argparse
import itertools
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import torch

from benchmarks.measure import in_turns, machine
from reid_utils.data.images import decode, draw_erasing, draw_sharpen, letterbox, load_images, normalise, sharpen
from reid_utils.data.manifest import load_manifest
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.losses import Objective
from reid_utils.learning.models import build_encoder
from reid_utils.learning.training import Recipe, build_optimiser, take_step
from rendered_players.dataset import render_dataset

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE = ((np.arange(256)[None, :, None] / 255 - MEAN) / STD).astype(np.float32)
AUGMENTATION, BATCH = "sharpen+erasing", 64
STEPS = (("test_byobnet", (64, 32), 20), ("resnet18", (128, 64), 2))  # encoder, image size, steps a round


class ItemWise(torch.utils.data.Dataset):
    """What one would write with OpenCV: one crop an item, decoded, letterboxed, augmented and normalised each time."""

    def __init__(self, paths, size):
        self.paths, self.size, self.rng = paths, size, np.random.default_rng(0)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        image = letterbox(decode(self.paths[index]), self.size, self.size)
        if drawn := draw_sharpen(self.rng):
            image = sharpen(image, *drawn)
        pixels = normalise_one(image)
        if box := draw_erasing(self.rng, self.size, self.size):
            pixels[box[0] : box[1], box[2] : box[3]] = 0
        return torch.from_numpy(pixels.transpose(2, 0, 1))


def normalise_one(image):
    """(x / 255 − mean) / std of one crop (h, w, 3) uint8 by OpenCV's fastest route, a table of the 256 values."""
    return cv2.LUT(image, TABLE)


def pass_item_wise(paths, size, workers):
    """One pass over the crops in batches, as a DataLoader makes them of single items."""
    loader = torch.utils.data.DataLoader(ItemWise(paths, size), BATCH, drop_last=True, num_workers=workers)
    for batch in loader:
        batch[0, 0, 0, 0].item()


def pass_ours(images, workers):
    """One pass over the crops in batches, as the training loop gets them."""
    recipe = Recipe(augmentation=AUGMENTATION, batch_pairs=BATCH // 2, epochs=1, workers=workers)
    batches = RunBatches(images, np.arange(len(images)) // 2, SimpleNamespace(mean=MEAN, std=STD), recipe)
    steps = batches_of_steps(batches, 1, 0, recipe, torch.device("cpu"))
    for [(batch, _)] in itertools.islice(steps, len(images) // BATCH):
        batch[0, 0, 0, 0].item()


def operations(paths, images, size):
    """Operations of both pipelines on one batch of crops: {name: function}."""
    paths, images = paths[:BATCH], images[:BATCH]
    decoded, letterboxed = [decode(path) for path in paths], np.array(images)
    items = [torch.from_numpy(normalise_one(image).transpose(2, 0, 1)) for image in letterboxed]
    out = normalise(letterboxed, MEAN, STD)

    def draws():
        for index in range(BATCH):
            rng = np.random.default_rng([2, 0, 1, index])
            draw_sharpen(rng), draw_erasing(rng, size, size)

    return {
        "decode (item-wise)": lambda: [decode(path) for path in paths],
        "letterbox (item-wise)": lambda: [letterbox(image, size, size) for image in decoded],
        "normalise one by one (item-wise)": lambda: [normalise_one(image) for image in letterboxed],
        "collate floats (item-wise)": lambda: torch.stack(items),
        "random parameters (ours: a generator per image)": draws,
        "sharpen every crop (both; applied to half)": lambda: [sharpen(image, 0.35, 0.75) for image in letterboxed],
        "read from the cache and collate bytes (ours)": lambda: np.stack([images[i] for i in range(BATCH)]),
        "normalise the batch in place (ours)": lambda: normalise(letterboxed, MEAN, STD, out=out),
    }


def step_contenders(images, labels, backbone, steps):
    """The training loop's steps, and a bare loop over ready tensors: {name: function}."""
    recipe, device = Recipe(augmentation=AUGMENTATION, learning_rate=1e-3), torch.device("cpu")
    encoder = build_encoder(backbone, images.shape[1:3]).train()
    objective = Objective("infonce", int(labels.max()) + 1, encoder.dim)
    optimiser = build_optimiser(encoder, objective, recipe)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    batches = RunBatches(images, labels, encoder, recipe)
    ready, players = next(batches_of_steps(batches, 1, 0, recipe, device))[0]

    def bare():
        for _ in range(steps):
            loss = objective(encoder(ready), players)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    def ours():
        for taken in itertools.islice(batches_of_steps(batches, 1, 0, recipe, device), steps):
            take_step(taken, encoder, objective, optimiser, scaler)

    return {"bare": bare, "ours": ours}


def crops(folder, count):
    """`count` crops: (data folder, paths, labels) of a rendered set of 40 players, repeated as often as it takes."""
    data = render_dataset(folder / "set", train_players=40, test_players=1, challenge_players=1)
    manifest = load_manifest(data)
    training = manifest[manifest["split"] == "train"]
    repeated = np.arange(count) % len(training)
    return data, training["path"].to_numpy()[repeated].tolist(), training["player"].to_numpy()[repeated] - 1


def print_table(title, header, rows):
    """A Markdown table with a title."""
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def measure_passes(paths, images, size, rounds):
    """Rows of crops per second: ours and item-wise, in this process and with two workers."""
    count = len(images) // BATCH * BATCH
    for workers in (0, 2):
        contenders = {
            "ours": partial(pass_ours, images, workers),
            "item": partial(pass_item_wise, paths, size, workers),
        }
        found = in_turns(contenders, rounds)
        ours, item = (count / found[name].median for name in ("ours", "item"))
        yield str(workers), f"{ours:.0f}", f"{item:.0f}", f"{ours / item:.2f}"


def measure_operations(contenders, rounds):
    """Rows of milliseconds a crop, each operation alone."""
    for name, found in in_turns(contenders, rounds).items():
        yield name, f"{1000 * min(found.seconds) / BATCH:.3f}"


def measure_steps(data, paths, labels, folder, rounds):
    """Rows of milliseconds a step: a bare loop and ours, an encoder each."""
    for backbone, size, steps in STEPS:
        images = load_images(data, paths, *size, folder / "cache", "steps")
        found = in_turns(step_contenders(images, labels, backbone, steps), rounds)
        bare, ours = (1000 * min(found[name].seconds) / steps for name in ("bare", "ours"))
        yield backbone, f"{size[0]}×{size[1]}", f"{bare:.1f}", f"{ours:.1f}", f"{ours / bare:.3f}"


def main():
    """Parse the command line and print the tables as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=__doc__)
    parser.add_argument("--crops", type=int, default=8569, help="crops a pass (8569, the training set's)")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels (224)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each contender after its first (3)")
    arguments = parser.parse_args()
    count, size, rounds = arguments.crops, arguments.size, arguments.rounds
    print(f"{machine()}; {count} crops to {size}×{size}, {AUGMENTATION}, warm; {rounds} rounds in turns")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, paths, labels = crops(folder, count)
        started = time.perf_counter()
        images = load_images(data, paths, size, size, folder / "cache", "pass")
        print(f"the cache is filled once, in {time.perf_counter() - started:.1f} s")
        files = [data / path for path in paths]
        header = ("workers", "ours: crops per second", "item-wise: crops per second", "ratio")
        print_table("Whole pipeline", header, measure_passes(files, images, size, rounds))
        rows = measure_operations(operations(files, images, size), 10 * rounds)
        print_table("Each operation alone", ("operation", "ms per crop"), rows)
        header = ("encoder", "size", "bare loop over ready tensors: ms per step", "ours: ms per step", "ratio")
        rows = measure_steps(data, paths[:800], labels[:800], folder, rounds)
        print_table("A training step of 32 pairs", header, rows)


if __name__ == "__main__":
    main()
