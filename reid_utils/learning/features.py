"""Extract features and keep them in files that notebooks 03–05 and other people's code can read.

`python tools/features.py WEIGHTS FOLDER OUT.npz` does so for any folder of crops with the weights of a run.
"""

import inspect
import json
import runpy
from pathlib import Path

import numpy as np
import torch

from reid_utils.data.images import normalise
from reid_utils.learning.models import build_encoder, load_weights
from reid_utils.learning.processes import half_precision, without_tf32
from reid_utils.ranking.feature_files import features_of, save


def extract_features(encoder, images, batch_size=128, flip=False, rows=None, precision="float32"):
    """Unit-length features of letterboxed images, without augmentation.

    images (N, h, w, 3) uint8 -> (N, d) float32, or (n, d) for the indices `rows` (n,) alone; computed in evaluation
    mode on the encoder's device. `flip` averages with the mirrored image (off in the paper); `precision` as
    `half_precision` takes it, convolutions without TF32 from here on. The encoder's mode is left as it was.
    """
    taken = np.arange(len(images)) if rows is None else rows
    device = next(encoder.parameters()).device
    half = half_precision(precision, device)
    without_tf32()
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

    `evaluated`: {set: its rows of the manifest, index kept}; `images` and `flip` as `extract_features` takes them.
    Raises ValueError where the weights are of another encoder.
    """
    load_weights(weights, encoder)
    for name, rows in evaluated.items():
        features = extract_features(encoder, images, flip=flip, rows=rows.index.to_numpy())
        save(Path(folder) / f"{name}.npz", features_of(rows, features))


def trained_encoder(weights):
    """The encoder of a weights file of notebook 02, in evaluation mode, and the run that its metadata describe.

    Returns (Encoder on the CPU, dict). Raises ValueError for a file that `save_weights` did not write.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(weights, "pt") as file:
            run = json.loads((file.metadata() or {})["run"])
        known = inspect.signature(build_encoder).parameters
        settings = {name: value for name, value in run.items() if name in known}
        encoder = build_encoder(**{**settings, "pretrained": False})
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"{weights} does not say what it was trained with ({error}); give the weights.safetensors of a seed of "
            "notebook 02"
        ) from None
    return load_weights(weights, encoder).eval(), run


if __name__ == "__main__":  # what the command was called before it moved to tools/
    runpy.run_path(str(Path(__file__).parents[2] / "tools" / "features.py"), run_name="__main__")
