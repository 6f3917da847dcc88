"""The training loop: read `train` from top to bottom.

A run is a pure function of its recipe: batches, partners and augmentations follow from (seed, epoch, image), so a run
that was killed goes on from its last checkpoint to the same weights, bit for bit on a CPU with as many threads.
"""

import itertools
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from reid_utils.data.augmentation import parse_augmentation
from reid_utils.data.batches import EpochBatches, pk_batches, unique_player_batches
from reid_utils.learning.checkpoints import load_checkpoint, save_checkpoint
from reid_utils.learning.losses import Objective, parse_loss, takes_pairs
from reid_utils.learning.models import save_weights
from reid_utils.learning.processes import (
    distribute,
    gather_features,
    half_precision,
    on_main,
    process_count,
    process_index,
)

SCHEDULES = {  # share of the way from the final to the peak rate, by progress after the warm-up
    "polynomial": lambda progress: (1 - progress) ** 2,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}

HOW = ("workers", "checkpoint_steps", "every_post_processing")  # settings that change no weight and no feature


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the defaults are the paper's for a vision transformer.

    Learning rates are per step; `warmup_epochs` of linear warm-up come first, then `schedule` ("polynomial" of power 2,
    "cosine", "linear" or "constant") down to `final_learning_rate`. A step takes the gradient of `accumulation`
    batches, and each batch finds its negatives among itself alone: accumulating makes a step steadier, it does not give
    InfoNCE the negatives of a larger batch. `clip_norm`: largest norm of a step's gradient (0: not clipped).
    `decay_all`: weight decay on every parameter, as the paper; else none on norms, biases and the logit scale.
    `precision` as `half_precision` takes it; `checkpoint_steps` steps lie between checkpoints; `workers` processes
    prepare batches. `flip_features`: features are averaged with the mirrored image's; `every_post_processing`: each
    epoch is validated under every one, not on plain distances alone.
    """

    loss: str = "infonce"
    augmentation: str = "flip+erasing+sharpen"
    seed: int = 0
    epochs: int = 8
    batch_pairs: int = 32
    accumulation: int = 1
    learning_rate: float = 4e-5
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 1.0
    schedule: str = "polynomial"
    weight_decay: float = 0.01
    decay_all: bool = True
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    precision: str = "auto"
    checkpoint_steps: int = 200
    workers: int = 0
    flip_features: bool = False
    every_post_processing: bool = False

    def __post_init__(self):
        """Raises ValueError naming a setting that cannot be, before anything is computed."""
        least = {"epochs": 0, "batch_pairs": 2, "accumulation": 1, "checkpoint_steps": 1, "workers": 0, "clip_norm": 0}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {bound}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        parse_loss(self.loss)
        parse_augmentation(self.augmentation)


def determining(recipe):
    """The settings that determine the weights: all but those that only say how the work is done."""
    return {name: value for name, value in asdict(recipe).items() if name not in HOW}


def best_learning_rate(results):
    """The learning rate with the best mAP (plain distances, last epoch) of several runs; the smaller of two equals.

    `results`: contents of results.json, one a tuning run. Raises ValueError where there is none, or where they differ
    in more than the learning rate.
    """
    if not results:
        raise ValueError("learning_rate is 0, the best of tuning runs: name those runs as inputs, or give a rate")
    settings = [{**result["settings"], "learning_rate": 0} for result in results]
    other = next((key for key in settings[0] for own in settings if own.get(key) != settings[0][key]), None)
    if other:
        raise ValueError(f"the tuning runs differ in {other}; name runs that differ in their learning rate alone")
    scores = [(-result["values"]["scores"]["none"]["mAP"], result["settings"]["learning_rate"]) for result in results]
    return min(scores)[1]


def learning_rate_at(step, total_steps, warmup_steps, recipe):
    """Learning rate of a step (0-based). Source: report, code."""
    peak, final = recipe.learning_rate, recipe.final_learning_rate
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * SCHEDULES[recipe.schedule](progress)


def parameter_groups(encoder, objective, recipe):
    """Parameter groups for the optimiser: one that decays, and unless `decay_all` one that does not.

    What has one dimension or none does not decay then: norms, biases and the logit scale.
    """
    parameters = [p for p in (*encoder.parameters(), *objective.parameters()) if p.requires_grad]
    kept = [p for p in parameters if not recipe.decay_all and p.ndim <= 1]
    decayed = [p for p in parameters if recipe.decay_all or p.ndim > 1]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def check_share(recipe, processes):
    """Raise ValueError unless this many processes can share a batch alike."""
    draws = recipe.batch_pairs if takes_pairs(recipe.loss) else math.prod(_players_and_images(recipe))
    if processes < 1 or draws % processes:
        raise ValueError(
            f"processes is {processes}; give a number that divides the {draws} draws of a batch (batch_pairs)"
        )


def _players_and_images(recipe):
    """Players of a batch without pairs, and images of each."""
    return max(2, recipe.batch_pairs // 4), 4


def epoch_batches(images, labels, encoder, recipe, epoch):
    """The batches of one epoch: pairs of unique players, or players × images for triplet losses without InfoNCE.

    Images whose label is −1 are not trained on.
    """
    rows, pairs = np.flatnonzero(labels >= 0), takes_pairs(recipe.loss)
    if pairs:
        batches = unique_player_batches(labels[rows], recipe.batch_pairs, recipe.seed, epoch)
    else:
        batches = pk_batches(labels[rows], *_players_and_images(recipe), recipe.seed, epoch)
    return EpochBatches(
        images,
        labels,
        rows[batches],
        seed=recipe.seed,
        epoch=epoch,
        augmentation=recipe.augmentation,
        mean=encoder.mean,
        std=encoder.std,
        pairs=pairs,
        share=(process_index(), process_count()),
    )


def batches_of_steps(batches, first_step, recipe, device):
    """Yield the batches of each step of an epoch, from `first_step` on: a list of `accumulation` (images, players).

    They lie ready on the device until the next step's are asked for, which take their memory. The last step may have
    fewer.
    """
    rest = torch.utils.data.Subset(batches, range(first_step * recipe.accumulation, len(batches)))
    # A generator of its own: the loader's draw must not move the one that dropout uses.
    loader = torch.utils.data.DataLoader(
        rest,
        batch_size=None,
        num_workers=recipe.workers,
        generator=torch.Generator(),
        pin_memory=device.type == "cuda",
    )
    loaded, memory = iter(loader), [None] * recipe.accumulation
    while items := list(itertools.islice(loaded, recipe.accumulation)):
        taken = [batches.ready(item, device, out) for item, out in zip(items, memory, strict=False)]
        memory[: len(taken)] = [images for images, _ in taken]
        yield taken


def take_step(batches, encoder, objective, optimiser, scaler, clip_norm=0.0, half=None):
    """One step of the optimiser on a list of batches, each with its own negatives; returns their mean loss (float).

    A batch is (images (n, 3, h, w) float32, players (N,) int64) on the encoder's device: this process's share of the
    images and the players of all. `half`: number type of mixed precision, None for float32. Raises FloatingPointError,
    before the parameters move, when the loss is not finite.
    """
    device, total = next(encoder.parameters()).device, 0.0
    for images, players in batches:
        with torch.autocast(device.type, half, enabled=half is not None):
            features = gather_features(encoder(images), objective.sides)
        loss = objective(features, players) / len(batches)
        scaler.scale(loss).backward()
        total += loss.item()
    if not math.isfinite(total):
        raise FloatingPointError(f"the loss became {total}; lower learning_rate, or set clip_norm to 1.0")
    if clip_norm:
        scaler.unscale_(optimiser)
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    return total


def train(encoder, images, labels, recipe, folder, validate, report=print, described=None):
    """Train an encoder, or go on with a run that was cut off; returns the history, one dict an epoch.

    `images` (N, h, w, 3) uint8 and `labels` (N,) int64, a player 0…P−1 or −1 where not trained on, are the training
    set; `validate(encoder)` gives a dict with at least "mAP" (one number) and "aps" (one AP a query). Row 0 of the
    history is the encoder before training. `folder` gets `weights.safetensors` (last epoch), `best.safetensors` (best
    epoch by mAP) and `checkpoint.pt`. `described`: plain JSON that goes into the weights files with the recipe.
    """
    folder, described = Path(folder), {**(described or {}), **determining(recipe)}
    device = next(encoder.parameters()).device
    objective = Objective(recipe.loss, int(labels.max()) + 1, encoder.dim, recipe.label_smoothing).to(device)
    optimiser = torch.optim.AdamW(parameter_groups(encoder, objective, recipe), lr=recipe.learning_rate)
    half = half_precision(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    shared, validate, report = distribute(encoder), on_main(validate), on_main(report)
    parts = {"encoder": encoder, "objective": objective, "optimiser": optimiser, "scaler": scaler}

    state = load_checkpoint(folder, described, parts)
    if state is None:
        before = {"epoch": 0, "loss": math.nan, "learning_rate": math.nan, **validate(encoder)}
        state = {"epoch": 1, "step": 0, "loss_sum": 0.0, "history": [before]}
    first, started = state["epoch"], time.monotonic()
    for epoch in range(first, recipe.epochs + 1):
        batches = epoch_batches(images, labels, encoder, recipe, epoch)
        steps = math.ceil(len(batches) / recipe.accumulation)
        total, warmup = recipe.epochs * steps, round(recipe.warmup_epochs * steps)
        encoder.train()
        for step, taken in enumerate(batches_of_steps(batches, state["step"], recipe, device), state["step"]):
            rate = learning_rate_at((epoch - 1) * steps + step, total, warmup, recipe)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = take_step(taken, shared, objective, optimiser, scaler, recipe.clip_norm, half)
            state = {**state, "epoch": epoch, "step": step + 1, "loss_sum": state["loss_sum"] + loss}
            if (step + 1) % recipe.checkpoint_steps == 0:
                on_main(save_checkpoint)(folder, described, parts, state)
        rate = optimiser.param_groups[0]["lr"]
        row = {"epoch": epoch, "loss": state["loss_sum"] / steps, "learning_rate": rate, **validate(encoder)}
        if row["mAP"] > max((past["mAP"] for past in state["history"][1:]), default=-1.0):
            on_main(save_weights)(folder / "best.safetensors", encoder, {**described, "epoch": epoch})
        state = {"epoch": epoch + 1, "step": 0, "loss_sum": 0.0, "history": [*state["history"], row]}
        on_main(save_checkpoint)(folder, described, parts, state)
        to_go = (time.monotonic() - started) / (epoch + 1 - first) * (recipe.epochs - epoch)
        report(
            f"seed {recipe.seed}  epoch {epoch}/{recipe.epochs}  loss {row['loss']:.3f}  mAP {row['mAP']:.3f}  "
            f"{to_go / 60:.1f} minutes to go"
        )
    on_main(save_weights)(folder / "weights.safetensors", encoder, {**described, "epoch": recipe.epochs})
    return state["history"]
