"""One seed of one training run, from images to scores: what notebook 02 repeats for each seed."""

import hashlib
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reid_utils.data.images import load_images
from reid_utils.data.integrity import data_fingerprint
from reid_utils.data.sources import prepare_data
from reid_utils.data.synergy import load_manifest, training_and_validation
from reid_utils.learning.features import extract_features, extract_sets, file_hash
from reid_utils.learning.models import build_encoder, find_weights, load_weights
from reid_utils.learning.processes import default_device, launch, on_main, precision_in_force
from reid_utils.learning.training import check_share, determining, train
from reid_utils.ranking.distances import squared_euclidean
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.methods import POST_PROCESSINGS, post_process, score, score_features


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
    challenge = manifest[manifest["split"] == "challenge"]
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


def train_seed(
    sets,
    recipe,
    folder,
    encoder_settings,
    start_weights="",
    flip=False,
    every_post_processing=False,
    report=print,
    processes=1,
):
    """Train, extract and score one seed; a folder that already holds the same run is not trained again.

    `encoder_settings`: keyword arguments of `build_encoder`; `start_weights` as `start_weights_file` takes it, loaded
    before training in place of pretrained weights. `flip` averages features with those of the mirrored image;
    `every_post_processing` validates each epoch under all of them, not on plain distances alone. `folder` receives
    weights, checkpoint, `test.npz` (the validation rows) and `challenge.npz`; one left by other settings is emptied
    first. `processes`: how many share the training (see `launch`). Returns (history, scores): `scores` maps each
    post-processing, "untrained" and "best" (the best epoch in validation) to a dict as `score` gives it. Raises
    ValueError where the processes cannot share a batch alike.
    """
    folder, start = Path(folder), start_weights_file(start_weights, recipe.seed)
    recipe = replace(recipe, precision=precision_in_force(recipe.precision))
    check_share(recipe, processes)
    names = POST_PROCESSINGS if every_post_processing else ("none",)
    described = _describe_run(sets, encoder_settings, start, flip)
    evaluation = {"post_processings": names, "processes": processes, "source": _source_hash()}
    _empty_unless_same_run(folder, {**described, **determining(recipe), **evaluation})
    given = sets, recipe, folder, encoder_settings, start, flip, names, described, report
    history = launch(_train_and_extract, given, processes)
    test = load_features(folder / "test.npz")
    scores = {name: score_features(test, name) for name in POST_PROCESSINGS}
    best = max(history[1:] or history, key=lambda row: row["mAP"])
    return history, {**scores, "untrained": history[0], "best": best}


def _train_and_extract(sets, recipe, folder, encoder_settings, start, flip, names, described, report):
    """What each process of a run does -> history."""
    torch.manual_seed(recipe.seed)
    encoder = _start(encoder_settings, start).to(default_device())

    def validate(encoder):
        return _validation_scores(encoder, sets, flip, names)

    history = train(encoder, *sets.training, recipe, folder, validate, report, described)
    on_main(extract_sets)(encoder, folder / "weights.safetensors", sets.images, sets.evaluated, folder, flip)
    return history


def _describe_run(sets, encoder_settings, start, flip):
    """What determines a run's weights and features beside its recipe: contents, not places."""
    settings = {name: value for name, value in encoder_settings.items() if name not in _HOW}
    local = find_weights(encoder_settings["backbone"], encoder_settings.get("weights_dir"))
    if start is not None:
        settings |= {"pretrained": False, "start_weights": file_hash(start)}
    elif settings.get("pretrained") and local is not None:
        settings["pretrained"] = file_hash(local)
    return {**settings, **sets.described, "flip_features": flip}


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


def _validation_scores(encoder, sets, flip, names):
    """Scores of plain distances as `score` gives them, and "mAP <name>" under each other post-processing."""
    rows, features, sides = sets.evaluated["test"], {}, {}
    for role in ("query", "gallery"):
        of_role = rows[rows["role"] == role]
        features[role] = extract_features(encoder, sets.images, flip=flip, rows=of_role.index.to_numpy())
        sides[role] = of_role[["player", "camera"]].to_numpy(np.int64)
    query, gallery = sides["query"], sides["gallery"]
    given = query[:, 0], gallery[:, 0], query[:, 1], gallery[:, 1]
    scores = score(squared_euclidean(features["query"], features["gallery"]), *given)
    for name in names:
        if name != "none":
            scores[f"mAP {name}"] = score(post_process(features["query"], features["gallery"], name), *given)["mAP"]
    return scores


def _source_hash():
    # Edited losses must not find the weights of the old ones.
    package = Path(__file__).resolve().parents[1]
    files = [*sorted((package / "learning").glob("*.py")), *(package / "data" / name for name in _PIPELINE)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_HOW = ("weights_dir", "gradient_checkpointing")  # where the weights lie and how gradients are computed, not which
_PIPELINE = ("augmentation.py", "batches.py", "images.py", "synergy.py")


def _empty_unless_same_run(folder, described):
    record = folder / "run.json"
    text = json.dumps(described, sort_keys=True)
    if not record.exists() or record.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(text)
