"""The training loop: read `train` from top to bottom.

A run is a pure function of its recipe: batches, partners and augmentations follow from (seed, epoch, image), so a run
that was killed goes on from its last checkpoint to the same weights, bit for bit on a CPU with as many threads.
"""

import math
import pickle
import zipfile
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from reid_utils.data.batches import EpochBatches, pk_batches, unique_player_batches
from reid_utils.learning.losses import Objective
from reid_utils.learning.models import save_weights

# What reading a checkpoint with spoilt bytes raises.
DAMAGED = (RuntimeError, ValueError, EOFError, OverflowError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error)
SCHEDULES = {  # share of the way from the final to the peak rate, by progress after the warm-up
    "polynomial": lambda progress: (1 - progress) ** 2,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the defaults are the paper's for a vision transformer.

    Learning rates are per step; `warmup_epochs` of linear warm-up come first, then `schedule` ("polynomial" of power 2,
    "cosine", "linear" or "constant") down to `final_learning_rate`. `checkpoint_steps` steps lie between checkpoints.
    """

    loss: str = "infonce"
    augmentation: str = "flip+erasing+sharpen"
    seed: int = 0
    epochs: int = 8
    batch_pairs: int = 32
    learning_rate: float = 4e-5
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 1.0
    schedule: str = "polynomial"
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    checkpoint_steps: int = 200
    workers: int = 0


def determining(recipe):
    """The settings that determine the weights: all but those that only say how the work is done."""
    return {name: value for name, value in asdict(recipe).items() if name not in ("workers", "checkpoint_steps")}


def learning_rate_at(step, total_steps, warmup_steps, recipe):
    """Learning rate of a step (0-based); raises ValueError for an unknown schedule. Source: report, code."""
    peak, final = recipe.learning_rate, recipe.final_learning_rate
    if recipe.schedule not in SCHEDULES:
        raise ValueError(f"schedule {recipe.schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * SCHEDULES[recipe.schedule](progress)


def epoch_batches(images, labels, encoder, recipe, epoch):
    """The batches of one epoch: pairs of unique players, or players × images for the triplet loss alone."""
    pairs = recipe.loss != "triplet"
    if pairs:
        batches = unique_player_batches(labels, recipe.batch_pairs, recipe.seed, epoch)
    else:
        batches = pk_batches(labels, max(2, recipe.batch_pairs // 4), 4, recipe.seed, epoch)
    return EpochBatches(
        images,
        labels,
        batches,
        seed=recipe.seed,
        epoch=epoch,
        augmentation=recipe.augmentation,
        mean=encoder.mean,
        std=encoder.std,
        pairs=pairs,
    )


def train(encoder, images, labels, recipe, folder, validate, report=print, described=None):
    """Train an encoder, or go on with a run that was cut off; returns the history, one dict an epoch.

    `images` (N, h, w, 3) uint8 and `labels` (N,) int64 in 0…P−1 are the training set; `validate(encoder)` gives a
    dict with at least "mAP" and "aps" (one AP a query). Row 0 of the history is the encoder before training. `folder`
    gets `weights.safetensors` (last epoch), `best.safetensors` (best epoch by mAP) and `checkpoint.pt`.
    `described`: plain JSON that goes into the weights files with the recipe.
    """
    folder, described = Path(folder), {**(described or {}), **determining(recipe)}
    device = next(encoder.parameters()).device
    objective = Objective(recipe.loss, int(labels.max()) + 1, encoder.dim, recipe.label_smoothing).to(device)
    parameters = [*encoder.parameters(), *objective.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    parts = {"encoder": encoder, "objective": objective, "optimiser": optimiser, "scaler": scaler}

    state = load_checkpoint(folder, recipe, parts)
    if state is None:
        state = {"epoch": 1, "step": 0, "loss_sum": 0.0, "history": [{"epoch": 0, **validate(encoder)}]}
    for epoch in range(state["epoch"], recipe.epochs + 1):
        batches = epoch_batches(images, labels, encoder, recipe, epoch)
        total, warmup = recipe.epochs * len(batches), round(recipe.warmup_epochs * len(batches))
        done = state["step"]
        remaining = torch.utils.data.Subset(batches, range(done, len(batches)))
        # A generator of its own: the loader's draw must not move the one that dropout uses.
        loader = torch.utils.data.DataLoader(
            remaining, batch_size=None, num_workers=recipe.workers, generator=torch.Generator()
        )
        encoder.train()
        for step, (batch, players) in enumerate(loader, start=done):
            rate = learning_rate_at((epoch - 1) * len(batches) + step, total, warmup, recipe)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.autocast(device.type, torch.float16, enabled=device.type == "cuda"):
                loss = objective(encoder(batch.to(device)), players.to(device))
            optimiser.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            state = {**state, "epoch": epoch, "step": step + 1, "loss_sum": state["loss_sum"] + loss.item()}
            if (step + 1) % recipe.checkpoint_steps == 0:
                save_checkpoint(folder, recipe, parts, state)
        row = {
            "epoch": epoch,
            "loss": state["loss_sum"] / len(batches),
            "learning_rate": optimiser.param_groups[0]["lr"],
            **validate(encoder),
        }
        if row["mAP"] > max((past["mAP"] for past in state["history"][1:]), default=-1.0):
            save_weights(folder / "best.safetensors", encoder, {**described, "epoch": epoch})
        state = {"epoch": epoch + 1, "step": 0, "loss_sum": 0.0, "history": [*state["history"], row]}
        save_checkpoint(folder, recipe, parts, state)
        report(f"seed {recipe.seed}  epoch {epoch}/{recipe.epochs}  loss {row['loss']:.3f}  mAP {row['mAP']:.3f}")
    save_weights(folder / "weights.safetensors", encoder, {**described, "epoch": recipe.epochs})
    return state["history"]


def save_checkpoint(folder, recipe, parts, state):
    """Write all that a run needs to go on; the checkpoint before it is kept as `checkpoint.previous.pt`."""
    history = [_convert(row, np.ndarray, torch.from_numpy) for row in state["history"]]
    content = {name: part.state_dict() for name, part in parts.items()}
    content |= {
        "recipe": determining(recipe),
        "generator": torch.get_rng_state(),
        "state": {**state, "history": history},
    }
    target, part_file = folder / "checkpoint.pt", folder / "checkpoint.part"
    torch.save(content, part_file)
    if target.exists():
        target.replace(folder / "checkpoint.previous.pt")
    part_file.replace(target)


def load_checkpoint(folder, recipe, parts):
    """Put the newest readable checkpoint of a folder into `parts`; returns its state, or None where there is none.

    Raises ValueError when the only checkpoints are unreadable or belong to another recipe.
    """
    paths = [p for p in (folder / "checkpoint.pt", folder / "checkpoint.previous.pt") if p.exists()]
    for path in paths:
        try:
            spoilt = zipfile.ZipFile(path).testzip()  # torch.load compares no checksums
            if spoilt:
                raise zipfile.BadZipFile(f"{spoilt} has another checksum than when it was written")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except DAMAGED as error:
            print(f"{path} is damaged ({str(error).split('. ')[0].splitlines()[0]}); trying the one before it")
            continue
        if content["recipe"] != determining(recipe):
            raise ValueError(f"{path} belongs to other settings; delete the folder {folder} or restore the settings")
        for name, part in parts.items():
            part.load_state_dict(content[name])
        torch.set_rng_state(content["generator"])
        state = content["state"]
        history = [_convert(row, torch.Tensor, torch.Tensor.numpy) for row in state["history"]]
        return {**state, "history": history}
    if paths:
        raise ValueError(f"no checkpoint in {folder} can be read; delete checkpoint*.pt there to start again")
    return None


def _convert(row, kind, convert):
    return {key: convert(value) if isinstance(value, kind) else value for key, value in row.items()}
