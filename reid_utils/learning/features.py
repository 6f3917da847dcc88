"""Extract features and keep them in files that notebooks 03–05 and other people's code can read."""

from pathlib import Path

import numpy as np
import torch

from reid_utils.data.augmentation import normalise
from reid_utils.files import file_hash, save_arrays
from reid_utils.learning.models import load_weights
from reid_utils.learning.processes import half_precision


def extract_features(encoder, images, batch_size=128, flip=False, rows=None, precision="float32"):
    """Unit-length features of letterboxed images, without augmentation.

    images (N, h, w, 3) uint8 -> (N, d) float32, or (n, d) for the indices `rows` (n,) alone; computed in evaluation
    mode on the encoder's device. `flip` averages with the mirrored image (off in the paper); `precision` as
    `half_precision` takes it. The encoder's mode is left as it was.
    """
    taken = np.arange(len(images)) if rows is None else rows
    device = next(encoder.parameters()).device
    half = half_precision(precision, device)
    was_training = encoder.training
    encoder.eval()
    found = []
    with torch.inference_mode(), torch.autocast(device.type, half, enabled=half is not None):
        for start in range(0, len(taken), batch_size):
            chosen = torch.from_numpy(images[taken[start : start + batch_size]]).to(device)
            batch = normalise(chosen, encoder.mean, encoder.std)
            features = encoder(batch)
            if flip:
                features = torch.nn.functional.normalize(features + encoder(batch.flip(3)), dim=1)
            found.append(features.cpu())
    encoder.train(was_training)
    return torch.cat(found).numpy()


def extract_sets(encoder, weights, images, evaluated, folder, flip=False):
    """Load a weights file into an encoder and write the features of every set: `folder`/<set>.npz.

    `images` (N, h, w, 3) uint8; `evaluated`: {set: its rows of the manifest, index kept}; `flip` averages with the
    mirrored image. Raises ValueError where the weights are of another encoder.
    """
    load_weights(weights, encoder)
    for name, rows in evaluated.items():
        features = extract_features(encoder, images, flip=flip, rows=rows.index.to_numpy())
        save_features(Path(folder) / f"{name}.npz", rows, features, weights)


def save_features(path, manifest, features, weights_file=None):
    """Write the features of one split as npz without pickles, atomically.

    `manifest`: the split's rows (roles query and gallery) in the order of `features` (N, d). Keys of the file: query,
    gallery (float32), {query,gallery}_{players,cameras} (int64), {query,gallery}_images (text), weights_sha256 (text),
    and {query,gallery}_groups (int64) where a query is ranked within its group alone.
    """
    arrays = {"weights_sha256": np.array(file_hash(weights_file) if weights_file else "")}
    for role in ("query", "gallery"):
        rows = (manifest["role"] == role).to_numpy()
        arrays[role] = features[rows].astype(np.float32)
        arrays[f"{role}_players"] = manifest.loc[rows, "player"].to_numpy(np.int64)
        arrays[f"{role}_cameras"] = manifest.loc[rows, "camera"].to_numpy(np.int64)
        arrays[f"{role}_images"] = manifest.loc[rows, "image_id"].to_numpy().astype(np.str_)
        if "group" in manifest and manifest["group"].any():
            arrays[f"{role}_groups"] = manifest.loc[rows, "group"].to_numpy(np.int64)
    save_arrays(path, **arrays)
