"""`python -m benchmarks.training_step`: what a training step of the smallest encoder costs, change by change.

32 pairs of 64×32 pixels through test_byobnet, forward, backward and optimiser, on one thread; contenders run in turns,
and processor time is counted, which other work on the machine changes less than the clock's.
"""

import argparse
import statistics
import time
from functools import partial

import numpy as np
import torch

from benchmarks.measure import machine
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.losses import Objective
from reid_utils.learning.models import build_encoder
from reid_utils.learning.training import Recipe, build_optimiser, parameter_groups, take_step

RECIPE = Recipe(augmentation="erasing+sharpen", learning_rate=2e-2, epochs=1000)
CONTENDERS = {  # what the encoder's memory format is, and how the optimiser goes over the parameters
    "plain memory format, one parameter after the other": (torch.contiguous_format, {"foreach": False}),
    "channels last": (torch.channels_last, {"foreach": False}),
    "channels last, parameters in lists": (torch.channels_last, {"foreach": True}),
    "channels last, fused AdamW (as trained)": (torch.channels_last, None),
}


def contender(images, labels, memory_format, optimiser_settings, steps, loading):
    """A function that takes `steps` steps: on batches from the loader, or on one that lies ready."""
    torch.manual_seed(0)
    encoder = build_encoder("test_byobnet", images.shape[1:3]).train().to(memory_format=memory_format)
    objective = Objective("infonce", labels.max() + 1, encoder.dim)
    if optimiser_settings is None:
        optimiser = build_optimiser(encoder, objective, RECIPE)
    else:
        optimiser = torch.optim.AdamW(parameter_groups(encoder, objective, RECIPE), lr=1e-3, **optimiser_settings)
    parts = encoder, objective, optimiser, torch.amp.GradScaler("cpu", enabled=False)
    loaded = batches_of_steps(RunBatches(images, labels, encoder, RECIPE), 1, 0, RECIPE, torch.device("cpu"))
    (pixels, players) = next(loaded)[0]
    ready = [(pixels.clone(memory_format=memory_format), players)]

    def run():
        for _ in range(steps):
            take_step(next(loaded) if loading else ready, *parts)

    return run


def main(arguments=None):
    """Parse the command line and print the table as Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="steps a round (20)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds after the first (7)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (6000, 64, 32, 3), dtype=np.uint8), np.arange(6000) // 20
    make = partial(contender, images, labels, steps=given.steps)
    contenders = {name: make(*settings, loading=False) for name, settings in CONTENDERS.items()}
    contenders["the same, batches loaded and augmented"] = make(torch.channels_last, None, loading=True)
    found = {name: [] for name in contenders}
    for turn in range(given.rounds + 1):
        for name, run in contenders.items():
            started = time.process_time()
            run()
            found[name] += [1000 * (time.process_time() - started) / given.steps] if turn else []
    print(f"{machine()}; one thread, smallest and median of {given.rounds} rounds of {given.steps} steps\n")
    print("| step | smallest ms | median ms |\n|---|---|---|")
    for name, times in found.items():
        print(f"| {name} | {min(times):.1f} | {statistics.median(times):.1f} |")


if __name__ == "__main__":
    main()
