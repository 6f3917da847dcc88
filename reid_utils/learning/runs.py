"""One seed of one training run, from images to scores: what notebook 02 repeats for each seed."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import torch

from reid_utils.learning.features import extract_features, save_features
from reid_utils.learning.models import build_encoder, load_weights
from reid_utils.learning.training import determining, train
from reid_utils.ranking.distances import squared_euclidean
from reid_utils.ranking.inputs import load_features
from reid_utils.ranking.post_processing import POST_PROCESSINGS, score, score_features


def default_device():
    """The device that training uses: the first GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def train_seed(manifest, images, recipe, folder, encoder_settings, data_fingerprint, report=print):
    """Train, extract and score one seed; a folder that already holds the same run is not trained again.

    `manifest` (load_manifest) and `images` (N, h, w, 3) uint8 in its order; `encoder_settings`: keyword arguments of
    `build_encoder`. `folder` receives weights, checkpoint, `test.npz` and `challenge.npz`. A folder left by other
    settings is emptied first. Returns (history, scores): `scores` maps each post-processing, "untrained" and "best"
    (the best epoch on test) to a dict as `score` gives it.
    """
    folder = Path(folder)
    described = {**encoder_settings, "data": data_fingerprint}
    _empty_unless_same_run(folder, {**described, **determining(recipe), "source": _source_hash()})
    torch.manual_seed(recipe.seed)
    encoder = build_encoder(**encoder_settings).to(default_device())
    is_training = (manifest["split"] == "train").to_numpy()
    labels = np.unique(manifest.loc[is_training, "player"], return_inverse=True)[1].astype(np.int64)

    def validate(encoder):
        return _plain_scores(encoder, manifest, images)

    history = train(encoder, images[is_training], labels, recipe, folder, validate, report, described)
    load_weights(folder / "weights.safetensors", encoder)
    for split in ("test", "challenge"):
        rows = (manifest["split"] == split).to_numpy()
        if rows.any():
            features = extract_features(encoder, images[rows])
            save_features(folder / f"{split}.npz", manifest[rows], features, folder / "weights.safetensors")
    test = load_features(folder / "test.npz")
    scores = {name: score_features(test, name) for name in POST_PROCESSINGS}
    best = max(history[1:] or history, key=lambda row: row["mAP"])
    return history, {**scores, "untrained": history[0], "best": best}


def _plain_scores(encoder, manifest, images):
    sides, features = {}, {}
    for role in ("query", "gallery"):
        rows = ((manifest["split"] == "test") & (manifest["role"] == role)).to_numpy()
        features[role] = extract_features(encoder, images[rows])
        sides[role] = manifest.loc[rows, ["player", "camera"]].to_numpy(np.int64)
    query, gallery = sides["query"], sides["gallery"]
    distances = squared_euclidean(features["query"], features["gallery"])
    return score(distances, query[:, 0], gallery[:, 0], query[:, 1], gallery[:, 1])


def _source_hash():
    # Edited losses must not find the weights of the old ones.
    package = Path(__file__).resolve().parents[1]
    files = [*sorted((package / "learning").glob("*.py")), *(package / "data" / name for name in _PIPELINE)]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


_PIPELINE = ("augmentation.py", "batches.py", "images.py")


def _empty_unless_same_run(folder, described):
    record = folder / "run.json"
    text = json.dumps(described, sort_keys=True)
    if not record.exists() or record.read_text() != text:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        record.write_text(text)
