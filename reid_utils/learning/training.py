"""The training loop: read `train` from top to bottom.

A run is a pure function of its recipe: batches, partners and augmentations follow from (seed, epoch, image), so a run
that was killed goes on from its last checkpoint to the same weights, bit for bit on a CPU with as many threads.
"""

import math
import time
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch

from reid_utils.data.images import parse_augmentation
from reid_utils.learning.checkpoints import finish_checkpoint, read_checkpoint, restore, save_checkpoint
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.losses import Objective, parse_loss, takes_pairs
from reid_utils.learning.models import load_weights, save_weights
from reid_utils.learning.processes import (
    distribute,
    gather_features,
    half_precision,
    on_main,
    peak_gib,
    process_index,
    set_backends,
)

SCHEDULES = {  # share of the way from the final to the peak rate, by progress after the warm-up
    "polynomial": lambda progress: (1 - progress) ** 2,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
    "constant": lambda progress: 1.0,
}

_LEAST = {"batch_pairs": 2, "accumulation": 1, "validate_every": 1, "check_steps": 1}  # of other numbers 0
_IN_WORDS = {int: "a whole number of at least {}", float: "a number of at least {}", bool: "true or false", str: "text"}
HOW = ("workers", "checkpoint_minutes", "check_steps")  # settings that change neither weights nor scores
BESIDE = ("every_post_processing", "validate_every", "feature_precision", "keep_epochs")  # that change no weights


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run; the defaults are the paper's for a vision transformer.

    Learning rates are per step; `warmup_epochs` of linear warm-up come first, then `schedule` ("polynomial" of power 2,
    "cosine", "linear" or "constant") down to `final_learning_rate`; the ID loss's classifier learns at `head_rate`
    times the encoder's rate. `margin` is the triplet loss's. A step takes the gradient of `accumulation`
    batches, and each batch finds its negatives among itself alone: accumulating makes a step steadier, it does not give
    InfoNCE the negatives of a larger batch. `clip_norm`: largest norm of a step's gradient (0: not clipped).
    `decay_all`: weight decay on every parameter, as the paper; else none on norms, biases and the logit scale.
    `precision` as `half_precision` takes it; `compile`, `cudnn_benchmark` and `deterministic` as torch has them.
    `flip_features`: features are averaged with the mirrored image's.

    Validation: every `validate_every` epochs and after the last, on features of `feature_precision` (what is written to
    files is always float32), under every post-processing with `every_post_processing`. `keep_epochs` keeps the weights
    of each epoch. `workers` processes prepare batches; every `check_steps` steps the loss is looked at, and a
    checkpoint written when the last one is `checkpoint_minutes` old.
    """

    loss: str = "infonce"
    augmentation: str = "flip+erasing+sharpen"
    seed: int = 0
    epochs: int = 8
    batch_pairs: int = 32
    accumulation: int = 1
    learning_rate: float = 4e-5
    head_rate: float = 10.0
    final_learning_rate: float = 1e-5
    warmup_epochs: float = 1.0
    schedule: str = "polynomial"
    weight_decay: float = 0.01
    decay_all: bool = True
    clip_norm: float = 0.0
    label_smoothing: float = 0.1
    margin: float = 0.3
    precision: str = "auto"
    compile: bool = False
    cudnn_benchmark: bool = False
    deterministic: bool = False
    flip_features: bool = False
    every_post_processing: bool = False
    validate_every: int = 1
    feature_precision: str = "float32"
    keep_epochs: bool = False
    workers: int = 0
    check_steps: int = 10
    checkpoint_minutes: float = 10.0

    def __post_init__(self):
        """Raises ValueError naming a setting that cannot be, before anything is computed."""
        for field in fields(self):
            name, value, kind = field.name, getattr(self, field.name), type(field.default)
            least, right = _LEAST.get(name, 0), type(value) is kind or (kind is float and type(value) is int)
            if not right or (kind in (int, float) and not value >= least):  # nor is NaN
                raise ValueError(f"{name} is {value!r}; give {_IN_WORDS[kind].format(least)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown; known: {', '.join(SCHEDULES)}")
        parse_loss(self.loss)
        parse_augmentation(self.augmentation)


def determining(recipe):
    """The settings that determine the weights: all but those that only say how the work is done."""
    return {name: value for name, value in vars(recipe).items() if name not in (*HOW, *BESIDE)}


def learning_rate_at(step, total_steps, warmup_steps, recipe):
    """Learning rate of a step (0-based); the first of a warm-up is at rate 0. Source: report, code."""
    peak, final = recipe.learning_rate, recipe.final_learning_rate
    if step < warmup_steps:
        return peak * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (peak - final) * SCHEDULES[recipe.schedule](progress)


def parameter_groups(encoder, objective, recipe):
    """Parameter groups for the optimiser, each with its weight decay and `rate`, a multiple of the learning rate.

    Unless `decay_all`, what has one dimension or none does not decay: norms, biases and the logit scale.
    """
    head = {id(p) for p in objective.head()}
    groups = {}
    for parameter in (*encoder.parameters(), *objective.parameters()):
        if parameter.requires_grad:
            decay = recipe.weight_decay if recipe.decay_all or parameter.ndim > 1 else 0.0
            rate = recipe.head_rate if id(parameter) in head else 1.0
            groups.setdefault((decay, rate), []).append(parameter)
    return [{"params": found, "weight_decay": decay, "rate": rate} for (decay, rate), found in groups.items()]


def set_rate(optimiser, rate):
    """Set the learning rate of every group, each by its own multiple; returns the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["rate"]
    return rate


def build_optimiser(encoder, objective, recipe):
    """AdamW over all parameters, one fused pass a step."""
    return torch.optim.AdamW(parameter_groups(encoder, objective, recipe), lr=recipe.learning_rate, fused=True)


def fit_to_players(recipe, labels):
    """The recipe with `batch_pairs` lowered to what so few training players allow, and a warning where it is.

    labels (N,) int64, −1 where not trained on. Raises ValueError below two players.
    """
    players = len(np.unique(labels[labels >= 0]))
    most = players if takes_pairs(recipe.loss) else 4 * players
    if players < 2:
        raise ValueError(f"there are {players} training players; a loss needs at least 2 to tell apart")
    if recipe.batch_pairs <= most:
        return recipe
    warnings.warn(f"batch_pairs is {most} instead of {recipe.batch_pairs}: {players} training players", stacklevel=2)
    return replace(recipe, batch_pairs=most)


def take_step(batches, encoder, objective, optimiser, scaler, clip_norm=0.0, half=None):
    """One step of the optimiser on a list of batches, each with its own negatives -> their mean loss, 0-d tensor.

    A batch is (images (n, 3, h, w) float32, players (N,) int64) on the encoder's device: this process's share of the
    images and the players of all. `half`: number type of mixed precision, None for float32. Nothing waits for the
    device here; `finite` looks at the losses every few steps.
    """
    device, losses = batches[0][0].device, []
    for images, players in batches:
        with torch.autocast(device.type, half, enabled=half is not None):
            features = gather_features(encoder(images), objective.sides)
        loss = objective(features, players) / len(batches)
        scaler.scale(loss).backward()
        losses.append(loss.detach())
    if clip_norm:
        scaler.unscale_(optimiser)
        trained = [p for group in optimiser.param_groups for p in group["params"]]
        torch.nn.utils.clip_grad_norm_(trained, clip_norm)
    scaler.step(optimiser)
    scaler.update()
    optimiser.zero_grad()
    return sum(losses)


def finite(losses, epoch, step, half=None):
    """The losses (0-d tensors) of the steps before `step` of an epoch as floats; FloatingPointError names a bad one."""
    values = torch.stack(losses).tolist()
    for number, value in enumerate(values, step - len(values) + 1):
        if not math.isfinite(value):
            cure = "lower learning_rate, or set clip_norm to 1.0"
            cure = "fp16 may have overflowed: set precision to bf16" if half is torch.float16 else cure
            raise FloatingPointError(f"the loss became {value} at step {number} of epoch {epoch}; {cure}")
    return values


def prepare(encoder, recipe, players):
    """What a run trains beside its encoder -> (parts with a state, the encoder as the processes share it, half).

    Raises ValueError where the encoder has a neck and the loss has none.
    """
    set_backends(recipe.cudnn_benchmark, recipe.deterministic)
    device = next(encoder.parameters()).device
    objective = Objective(
        recipe.loss, players, encoder.dim, recipe.label_smoothing, recipe.margin, logit_scale=encoder.logit_scale
    )
    neck, encoder.neck = encoder.neck, None  # trained as the loss's own, which the processes need not share
    if neck is not None:
        if not objective.head():
            raise ValueError(f"neck is true, but the loss {recipe.loss!r} has no neck: take id, or set neck to false")
        objective.neck.load_state_dict(neck.state_dict())
    optimiser = build_optimiser(encoder, objective.to(device), recipe)
    half = half_precision(recipe.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=half is torch.float16)
    shared = distribute(encoder)
    if neck is not None:
        encoder.neck = objective.neck
    if process_index():  # the start is the same in all processes, dropout's masks are not
        torch.manual_seed(recipe.seed + process_index() * 2**32)
    parts = {"encoder": encoder, "objective": objective, "optimiser": optimiser, "scaler": scaler}
    return parts, torch.compile(shared) if recipe.compile else shared, half


def resume(encoder, folder, described, parts, validate, scored_by):
    """Put the checkpoint of a folder into the `parts` of its run -> the run's state (dict), None without a checkpoint.

    What other code than `scored_by` has scored is scored again first, while `encoder` is the start.
    """
    content = read_checkpoint(folder, described)
    if content is None:
        return None
    state = content["state"]
    if state["scored_by"] != scored_by:
        history = score_again(state["history"], encoder, folder, validate)
        state = {**state, "history": history, "scored_by": scored_by}
        if state.get("finished"):
            on_main(finish_checkpoint)(folder, described, state)
    if not state.get("finished"):
        restore(content, parts)
    return state


def score_again(history, encoder, folder, validate):
    """A history whose scores other code made, scored anew; `encoder` is the start, and holds other weights afterwards.

    An epoch is scored where its weights lie in the folder: the start, the best, the last and those that were kept. The
    others lose their scores.
    """
    names = {len(history) - 1: "weights", best_epoch(history)["epoch"]: "best"}
    anew = []
    for epoch, row in enumerate(history):
        files = [folder / f"{name}.safetensors" for name in (f"epoch{epoch}", names.get(epoch))]
        file = next((file for file in files if file.exists()), None)
        found = {name: row[name] for name in ("epoch", "loss", "learning_rate")}
        if "mAP" in row and (epoch == 0 or file):
            found |= validate(load_weights(file, encoder) if epoch else encoder)
        anew.append(found)
    return anew


def best_epoch(history):
    """The row of a history with the best mAP in validation, the first of equals; row 0 where nothing was trained."""
    return max([row for row in history[1:] if "mAP" in row] or history[:1], key=lambda row: row["mAP"])


def _progress(recipe, row, pace, left):
    """What an epoch's row of the history says, with the seconds of a step and those `left`, as a line."""
    mean_ap = f"  mAP {row['mAP']:.3f}" if "mAP" in row else ""
    epoch = f"seed {recipe.seed}  epoch {row['epoch']}/{recipe.epochs}  loss {row['loss']:.3f}{mean_ap}"
    return f"{epoch}  {1000 * pace:.0f} ms a step  {left / 60:.1f} minutes to go  {peak_gib():.1f} GiB on a GPU"


def train(encoder, images, labels, recipe, folder, validate, report=print, described=None, scored_by=""):
    """Train an encoder, or go on with a run that was cut off; returns the history, one dict an epoch.

    `images` (N, h, w, 3) uint8 and `labels` (N,) int64, a player 0…P−1 or −1 where not trained on, are the training
    set; `validate(encoder)` gives a dict with at least "mAP" (one number) and "aps" (one AP a query), which an epoch
    without validation lacks. Row 0 of the history is the encoder before training. `folder` gets `weights.safetensors`
    (last epoch), `best.safetensors` (best epoch by mAP), `checkpoint.pt`, and with `keep_epochs` `epoch0.safetensors`
    and so on. `described`: plain JSON that goes into the weights files with the recipe; `scored_by`: a text that names
    the code of `validate`: what other code has scored is scored again.
    """
    folder, described = Path(folder), {**(described or {}), **determining(recipe)}
    device, validate = next(encoder.parameters()).device, on_main(validate)
    parts, shared, half = prepare(encoder, recipe, int(labels.max()) + 1)
    learners = shared, *(parts[name] for name in ("objective", "optimiser", "scaler"))

    def keep(name, epoch):
        on_main(save_weights)(folder / f"{name}.safetensors", encoder, {**described, "epoch": epoch})

    state = resume(encoder, folder, described, parts, validate, scored_by)
    if state is None:
        before = {"epoch": 0, "loss": math.nan, "learning_rate": math.nan, **validate(encoder)}
        state = {"epoch": 1, "step": 0, "losses": [], "history": [before], "scored_by": scored_by}
        if recipe.keep_epochs:
            keep("epoch0", 0)
    if state.get("finished"):
        return state["history"]
    batches, clock = RunBatches(images, labels, encoder, recipe), on_main(time.monotonic)
    steps = math.ceil(len(batches.of_epoch(1)) / recipe.accumulation)
    total, warmup = recipe.epochs * steps, round(recipe.warmup_epochs * steps)
    loaded = batches_of_steps(batches, state["epoch"], state["step"], recipe, device)
    saved = clock()
    for epoch in range(state["epoch"], recipe.epochs + 1):
        encoder.train()
        losses, first, begun = [], state["step"], time.monotonic()
        for step in range(state["step"], steps):
            done = (epoch - 1) * steps + step
            rate = set_rate(parts["optimiser"], learning_rate_at(done, total, warmup, recipe))
            losses.append(take_step(next(loaded), *learners, recipe.clip_norm, half))
            if (step + 1) % recipe.check_steps == 0 or step + 1 == steps:
                found = [*state["losses"], *finite(losses, epoch, step + 1, half)]
                state, losses = {**state, "epoch": epoch, "step": step + 1, "losses": found}, []
                if step + 1 < steps and (now := clock()) - saved >= 60 * recipe.checkpoint_minutes:
                    save_checkpoint(folder, described, parts, state)
                    saved = now
        pace = (time.monotonic() - begun) / (steps - first)
        row = {"epoch": epoch, "loss": float(np.mean(state["losses"])), "learning_rate": rate}
        history = [*state["history"], row]
        if epoch % recipe.validate_every == 0 or epoch == recipe.epochs:
            row |= validate(encoder)
            if best_epoch(history) is row:
                keep("best", epoch)
        if recipe.keep_epochs:
            keep(f"epoch{epoch}", epoch)
        state = {**state, "epoch": epoch + 1, "step": 0, "losses": [], "history": history}
        save_checkpoint(folder, described, parts, state)
        on_main(report)(_progress(recipe, row, pace, (time.monotonic() - begun) * (recipe.epochs - epoch)))
    keep("weights", recipe.epochs)
    on_main(finish_checkpoint)(folder, described, state)
    return state["history"]
