"""One seed of one training run, from images to scores: what notebook 02 repeats for each seed."""

import functools
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reid_utils.data.images import load_images
from reid_utils.data.integrity import data_fingerprint
from reid_utils.data.sources import prepare_data
from reid_utils.data.synergy import load_manifest, training_and_validation
from reid_utils.files import code_digest, digest, file_hash, write_text
from reid_utils.learning.features import extract_features, extract_sets
from reid_utils.learning.models import build_encoder, find_weights, load_weights
from reid_utils.learning.processes import default_device, launch, on_main, precision_in_force
from reid_utils.learning.training import BESIDE, Recipe, check_share, determining, train
from reid_utils.ranking.feature_files import features_of, load_features
from reid_utils.ranking.methods import POST_PROCESSINGS, score_features


@dataclass(frozen=True)
class Sets:
    """What a run trains on and what it is scored on.

    `training`: images (n, h, w, 3) uint8 and labels (n,) int64, −1 where an image is not trained on. `images`
    (N, h, w, 3) uint8 are those of the manifest; `evaluated`: {"test": rows to validate on, "challenge": rows}, each
    with roles query and gallery and its manifest index. `described`: plain JSON that tells these sets from others.
    """

    training: tuple[np.ndarray, np.ndarray]
    images: np.ndarray
    evaluated: dict[str, pd.DataFrame]
    described: dict


@dataclass(frozen=True)
class Training:
    """One seed's training: its sets and recipe, what it starts from and who works on it.

    `encoder`: keyword arguments of `build_encoder`; `start_weights` as `start_weights_file` takes it, loaded before
    training in place of pretrained weights; `processes`: how many share the training (see `launch`).
    """

    sets: Sets
    recipe: Recipe
    encoder: dict
    start_weights: str | Path = ""
    processes: int = 1
    report: Callable = print


def choose_sets(manifest, images, fingerprint, train_on="train", pool=None):
    """The sets of a run: `train_on` as `training_and_validation` takes it, or training images from elsewhere.

    `images` (N, h, w, 3) uint8 in the order of `manifest` (load_manifest), `fingerprint` of their data; `pool`: what
    `load_pool` returns, trained on instead of the manifest's own players. Raises ValueError where both are asked for.
    """
    labels, validation = training_and_validation(manifest, train_on)
    described = {"data": fingerprint, "train_on": train_on}
    training = images, labels
    if pool is not None:
        if train_on != "train":
            raise ValueError(f'train_on is {train_on!r} with a pool: leave train_on "train", or pool empty')
        *training, described["pool"] = pool
    challenge = manifest[(manifest["split"] == "challenge") & (not train_on.startswith("fold"))]
    evaluated = {"test": validation, "challenge": challenge} if len(challenge) else {"test": validation}
    return Sets(tuple(training), images, evaluated, described)


def load_pool(rendering, size, runs):
    """Training images of another rendered set: (images, labels, fingerprint), for `choose_sets`.

    `rendering`: settings of `render_dataset`; `size` (height, width) pixels; sets and caches lie in the folder `runs`.
    Players of training and test splits differ whatever the settings, so none of them is in another set's test split.
    """
    data_dir = prepare_data("rendered", root=Path(runs) / "data", rendering=rendering)
    manifest, fingerprint = load_manifest(data_dir), data_fingerprint(data_dir)
    images = load_images(data_dir, manifest["path"].tolist(), *size, Path(runs) / "cache", fingerprint)
    return images, training_and_validation(manifest)[0], fingerprint


def start_weights_file(start_weights, seed):
    """The weights file that a seed starts from: the file itself, or that of the same seed in a run's results folder.

    Returns None for ""; raises FileNotFoundError naming what is missing.
    """
    if not start_weights:
        return None
    path = Path(start_weights).expanduser()
    path = path / f"seed{seed}" / "weights.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"start_weights: {path} is missing; give a .safetensors file, or the results folder of a run of notebook "
            f"02 that has trained seed {seed}"
        )
    return path


def settings_in_extra(extra):
    """(fields of the recipe, keyword arguments of `build_encoder`) named in one mapping.

    Raises ValueError naming a setting that neither has.
    """
    known, of_encoder = {field.name for field in fields(Recipe)} - {"seed"}, {"projection", "normalisation"}
    for name in extra:
        if name not in known | of_encoder:
            raise ValueError(f"extra: unknown setting {name!r}; known: {', '.join(sorted(known | of_encoder))}")
    return tuple({name: extra[name] for name in extra if name in names} for names in (known, of_encoder))


def train_seed(training, folder):
    """Train, extract and score one seed; a folder that already holds the same run is not trained again.

    `folder` (results/<run>/<seed>) receives weights, checkpoint, `test.npz` (the validation rows) and `challenge.npz`;
    one left by other settings or other code is moved to results/superseded first. Returns (history, scores): `scores`
    maps each post-processing, "untrained" and "best" (the best epoch in validation) to a dict as `score` gives it.
    Raises ValueError where the processes cannot share a batch alike.
    """
    folder, recipe = Path(folder), training.recipe
    training = replace(training, recipe=replace(recipe, precision=precision_in_force(recipe.precision)))
    check_share(training.recipe, training.processes)
    start = start_weights_file(training.start_weights, recipe.seed)
    described = _describe_run(training, start)
    beside = {name: getattr(recipe, name) for name in BESIDE}
    beside |= {"processes": training.processes, "source": _source_digest()}
    _set_aside_unless_same_run(folder, {**described, **determining(training.recipe), **beside})
    history = launch(_train_and_extract, (training, folder, start, described), training.processes)
    test = load_features(folder / "test.npz")
    scores = {name: score_features(test, name) for name in POST_PROCESSINGS}
    best = max([row for row in history[1:] if "mAP" in row] or history, key=lambda row: row["mAP"])
    return history, {**scores, "untrained": history[0], "best": best}


def _train_and_extract(training, folder, start, described):
    """What each process of a run does -> history."""
    sets, recipe = training.sets, training.recipe
    torch.manual_seed(recipe.seed)
    encoder = _start(training.encoder, start).to(default_device())

    def validate(encoder):
        return _validation_scores(encoder, sets, recipe)

    history = train(encoder, *sets.training, recipe, folder, validate, training.report, described)
    weights = folder / "weights.safetensors"
    on_main(extract_sets)(encoder, weights, sets.images, sets.evaluated, folder, recipe.flip_features)
    return history


def _describe_run(training, start):
    """What determines a run's weights and features beside its recipe: contents, not places."""
    settings = {name: value for name, value in training.encoder.items() if name not in _HOW}
    local = find_weights(settings["backbone"], training.encoder.get("weights_dir"))
    if start is not None:
        settings |= {"pretrained": False, "start_weights": file_hash(start)}
    elif settings.get("pretrained") and local is not None:
        settings["pretrained"] = file_hash(local)
    return {**settings, **training.sets.described}


def _start(encoder_settings, start):
    """The encoder before training, with the weights of the file `start` where that is not None."""
    if start is None:
        return build_encoder(**encoder_settings)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(start, "pt") as file:
            whole = any(name.startswith("trunk.") for name in file.keys())  # noqa: SIM118
        if whole:
            return load_weights(start, build_encoder(**{**encoder_settings, "pretrained": False}))
        return build_encoder(**{**encoder_settings, "pretrained": True, "weights_file": start})
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"start_weights: {start} does not fit {encoder_settings['backbone']}; give weights of this very backbone, "
            "as notebook 02 or its library wrote them"
        ) from error


def _validation_scores(encoder, sets, recipe):
    """Scores of plain distances as `score` gives them, and "mAP <name>" under each other post-processing."""
    rows = sets.evaluated["test"]
    sides = [rows[rows["role"] == role] for role in ("query", "gallery")]
    how = {"flip": recipe.flip_features, "precision": recipe.feature_precision}
    query, gallery = (extract_features(encoder, sets.images, rows=side.index.to_numpy(), **how) for side in sides)
    features = features_of(pd.concat(sides), np.concatenate([query, gallery]))
    scores = score_features(features)
    others = [name for name in POST_PROCESSINGS if recipe.every_post_processing and name != "none"]
    return scores | {f"mAP {name}": score_features(features, name)["mAP"] for name in others}


def _source_digest():
    """Hash of the code that decides weights and scores: edited losses must not find the weights of the old ones."""
    package = Path(__file__).resolve().parents[1]
    return digest([_code_digest((package / f"{name}.py").read_text(encoding="utf-8")) for name in _DECIDING])


_code_digest = functools.cache(code_digest)  # a third of a second for all modules, otherwise each seed's


_HOW = ("weights_dir", "gradient_checkpointing")  # where the weights lie and how gradients are computed, not which
_DECIDING = (
    *(f"learning/{name}" for name in ("features", "loading", "losses", "models", "processes", "seeds", "training")),
    *(f"data/{name}" for name in ("batches", "images", "layouts", "synergy")),
)


def _set_aside_unless_same_run(folder, described):
    """Leave a folder as it is where its record says the same, else move it aside and begin a new one."""
    record = folder / "run.json"
    text = json.dumps(described, sort_keys=True)
    if record.exists() and record.read_text(encoding="utf-8") == text:
        return
    if any(folder.glob("*")):
        run, aside = folder.parent, folder.parents[1] / "superseded"
        places = (aside / run.name / f"{folder.name}.{number}" for number in itertools.count(1))
        place = next(place for place in places if not place.exists())
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
        print(f"{run.name}/{folder.name} is of other settings or other code; it was moved to {place}")
    write_text(record, text)


def check_seeds(seeds):
    """The seeds as they are; raises ValueError for none, one given twice, or what is no whole number from 0 on."""
    if not seeds:
        raise ValueError("seeds is empty; give at least one, as in seeds: [0]")
    for seed in seeds:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seeds holds {seed!r}; give whole numbers from 0 on")
        if seeds.count(seed) > 1:
            raise ValueError(f"seeds names {seed} twice, which would count one training twice; give each once")
    return seeds
