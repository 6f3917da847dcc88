"""What the seeds of a run share: what they train on and are scored on, and whether a folder holds the same training."""

import itertools
import json
import warnings
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd

from reid_utils.code import imported_code, installed_versions
from reid_utils.data.images import load_images
from reid_utils.data.integrity import data_fingerprint
from reid_utils.data.manifest import load_manifest, training_and_validation
from reid_utils.data.sources import prepare_data
from reid_utils.files import digest, file_hash, read_json, write_text
from reid_utils.learning.features import extract_features
from reid_utils.learning.models import find_weights
from reid_utils.learning.training import HOW, Recipe
from reid_utils.ranking.feature_files import features_of
from reid_utils.ranking.methods import POST_PROCESSINGS, score_features

PACKAGE = Path(__file__).resolve().parents[1]
LIBRARIES = ("numpy", "open_clip_torch", "opencv-python-headless", "timm", "torch")  # that compute the weights
TUNED = ("learning_rate", "head_rate", "margin")  # settings that tuning runs may differ in
_HOW = ("weights_dir", "gradient_checkpointing")  # where the weights lie and how gradients are computed, not which


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

    @property
    def query_groups(self):
        """What queries share their distractors by, (Q,) int64: a gallery where they have one, else their sequence."""
        queries = self.evaluated["test"].query("role == 'query'")
        return queries["group" if queries["group"].any() else "sequence"].to_numpy()


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


def images_seen(recipe, batches, start=""):
    """How many images, repeats counted, a training shows its encoder.

    batches: an epoch's; start: a run's results folder that the training starts from, whose images count too.
    """
    before = (read_json(Path(start) / "results.json") if start else None) or {"values": {}}
    return recipe.epochs * len(batches) * len(batches[0][2]) + before["values"].get("images_seen", 0)


def load_pool(rendering, size, runs):
    """Training images of another rendered set: (images, labels, fingerprint), for `choose_sets`; None for no settings.

    `rendering`: settings of `render_dataset`; `size` (height, width) pixels; sets and caches lie in the folder `runs`.
    Players of training and test splits differ whatever the settings, so none of them is in another set's test split.
    """
    if not rendering:
        return None
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
            f"start_weights: {path} is missing; give a .safetensors or .pth file, or the results folder of a run of "
            f"notebook 02 that has trained seed {seed}"
        )
    return path


def settings_in_extra(extra):
    """(fields of the recipe, keyword arguments of `build_encoder`) named in one mapping.

    Raises ValueError naming a setting that neither has.
    """
    known, of_encoder = {field.name for field in fields(Recipe)} - {"seed"}, {"projection", "normalisation", "neck"}
    for name in extra:
        if name not in known | of_encoder:
            raise ValueError(f"extra: unknown setting {name!r}; known: {', '.join(sorted(known | of_encoder))}")
    return tuple({name: extra[name] for name in extra if name in names} for names in (known, of_encoder))


def check_seeds(seeds):
    """The seeds as they are; raises ValueError for none, one given twice, or what is no whole number from 0 on."""
    whole = all(type(seed) is int and seed >= 0 for seed in seeds)
    if not (seeds and whole and len({*seeds}) == len(seeds)):
        raise ValueError(f"seeds is {seeds!r}; give whole numbers from 0 on, each once, as in [0, 1, 2]")
    return seeds


def best_settings(results):
    """{setting: value} of TUNED of the tuning run with the best mAP (plain distances, last epoch).

    `results`: contents of results.json, one a tuning run. Warns where the best learning rate is the smallest or largest
    that was tried: a better one may lie beyond. Raises ValueError where there is no run, or where they differ in more
    than TUNED.
    """
    if not results:
        raise ValueError("learning_rate is 0, the best of tuning runs: name those runs as inputs, or give a rate")
    settings = [{**result["settings"], **dict.fromkeys(TUNED)} for result in results]
    if any(own != settings[0] for own in settings):
        raise ValueError(
            f"the tuning runs differ in more than {', '.join(TUNED)}; name runs that differ in these alone"
        )
    best = min(
        results, key=lambda result: (-result["values"]["scores"]["none"]["mAP"], result["settings"]["learning_rate"])
    )["settings"]
    rates = sorted({result["settings"]["learning_rate"] for result in results})
    if len(rates) > 2 and best["learning_rate"] in (rates[0], rates[-1]):
        warnings.warn(f"the best learning rate, {best['learning_rate']:g}, is at the rim of those tried", stacklevel=2)
    return {name: best[name] for name in TUNED if name in best}


def validation_scores(encoder, sets, recipe):
    """Scores of plain distances as `score_features` gives them, and "mAP <name>" under each other post-processing."""
    rows = sets.evaluated["test"]
    sides = [rows[rows["role"] == role] for role in ("query", "gallery")]
    how = {"flip": recipe.flip_features, "precision": recipe.feature_precision}
    features = [extract_features(encoder, sets.images, rows=side.index.to_numpy(), **how) for side in sides]
    found = features_of(pd.concat(sides), np.concatenate(features))
    others = [name for name in POST_PROCESSINGS if recipe.every_post_processing and name != "none"]
    return score_features(found) | {f"mAP {name}": score_features(found, name)["mAP"] for name in others}


def describe_start(sets, encoder, start):
    """What determines a run's weights and features beside its recipe (plain JSON): contents, not places.

    `encoder`: keyword arguments of `build_encoder`; `start`: as `start_weights_file` returns it.
    """
    settings = {name: value for name, value in encoder.items() if name not in _HOW}
    local = find_weights(settings["backbone"], encoder.get("weights_dir"))
    if start is not None:
        settings |= {"pretrained": False, "start_weights": file_hash(start)}
    elif settings.get("pretrained") and local is not None:
        settings["pretrained"] = file_hash(local)
    return {**settings, **sets.described}


def scoring_code():
    """A digest of all code that a score in validation stands on."""
    return digest(imported_code([__name__], [PACKAGE.name], PACKAGE.parent))


def keep_same_training(folder, described, recipe, labels, processes=1):
    """Leave a seed's folder as it is where its record, run.json, says the same training; else move it aside, and begin.

    The same are `described` (see `describe_start`), the recipe, who is trained on (`labels`) and by how many processes,
    and the code and libraries that weights follow from; code that only scores is not among them. The folder goes to
    results/superseded, and a line says why.
    """
    settings = {**described, **{name: value for name, value in vars(recipe).items() if name not in HOW}}
    settings |= {"labels": digest(labels.tobytes()), "processes": processes}
    code = imported_code(
        ["reid_utils.learning.training"], [PACKAGE.name], PACKAGE.parent, left_out=[f"{PACKAGE.name}.files"]
    )
    text = json.dumps({**settings, "code": code, "libraries": installed_versions(*LIBRARIES)}, sort_keys=True)
    record = folder / "run.json"
    former = record.read_text(encoding="utf-8") if record.exists() else ""
    if former == text:
        return
    if any(folder.glob("*")):
        aside = folder.parents[1] / "superseded" / folder.parent.name
        place = next(place for k in itertools.count(1) if not (place := aside / f"{folder.name}.{k}").exists())
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)
        print(f"{folder.parent.name}/{folder.name} is of other settings or other code; it was moved to {place}")
    write_text(record, text)
