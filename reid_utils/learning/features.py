"""Extract features and keep them in files that notebooks 03–05 and other people's code can read.

`python -m reid_utils.learning.features WEIGHTS FOLDER OUT.npz` does so for any folder of crops with the weights of a
run of notebook 02; `--onnx OUT.onnx` writes the encoder for other programs.
"""

import argparse
import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from reid_utils.data.images import decode, letterbox, normalise
from reid_utils.data.layouts import find_layout
from reid_utils.data.synergy import load_manifest
from reid_utils.files import file_hash, is_clutter, replacing
from reid_utils.learning.models import build_encoder, load_weights
from reid_utils.learning.processes import default_device, half_precision, without_tf32
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
        save_features(Path(folder) / f"{name}.npz", rows, features, weights)


def save_features(path, manifest, features, weights_file=None):
    """Write the features of one split (see `features_of`) as npz without pickles, atomically; see `load_features`."""
    save(path, features_of(manifest, features, file_hash(weights_file) if weights_file else ""))


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


def crops_of(folder, split="test"):
    """The crops of a folder as manifest rows: path (relative), image_id, role (query or gallery), player, camera.

    Of a data set with a test split the rows of `split` ("test" or "challenge"). Of any other folder each JPEG, PNG, BMP
    or WebP file in it and below: player is the whole number before the first "_" of the name, else the folder around
    it, else −1 (unknown); role is "query" or "gallery" where folders of these names hold the files, else a player's
    first image is its query and the others its gallery (with unknown players every image is both). Raises ValueError
    where there is nothing to rank.
    """
    try:
        layout, _ = find_layout(folder)
    except FileNotFoundError:
        layout = "none"
    if layout in ("none", "a folder a player"):
        rows = _plain_crops(Path(folder))
    else:
        manifest = load_manifest(folder)
        rows = manifest[manifest["split"] == split]
    for role in ("query", "gallery"):
        if not (rows["role"] == role).any():
            raise ValueError(f"{folder} has no {role} images; put crops into its folders query and gallery")
    return rows.reset_index(drop=True)


def _plain_crops(folder):
    """The rows of a folder in no known layout; see `crops_of`."""
    found = sorted(
        path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES and path.is_file()
    )
    paths = [path for path in found if not any(map(is_clutter, path.parts))]
    rows = pd.DataFrame({"path": [path.as_posix() for path in paths], "image_id": [path.stem for path in paths]})
    role = [next((part for part in path.parts[:-1] if part in ("query", "gallery")), "") for path in paths]
    numbers = [path.name.partition("_")[0] for path in paths]
    around = ["/".join(part for part in path.parts[:-1] if part not in ("query", "gallery")) for path in paths]
    if all(number.isdecimal() for number in numbers):
        rows["player"] = np.array(numbers, dtype=np.int64)
    else:
        rows["player"] = np.unique(around, return_inverse=True)[1] if all(around) else -1
    if any(role):
        rows = rows.assign(role=role)
    elif (rows["player"] < 0).all():
        rows = pd.concat([rows.assign(role="query"), rows.assign(role="gallery")], ignore_index=True)
    else:
        rows["role"] = np.where(rows.duplicated("player"), "gallery", "query")
    return rows.assign(camera=(rows["role"] == "gallery").astype(int))


_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_AT_ONCE = 1024  # crops in memory at a time


def features_of_files(encoder, folder, paths, flip=False):
    """Unit-length features (n, d) float32 of image files, decoded and letterboxed as in training.

    Raises ValueError naming a file that is no image.
    """
    parts = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _AT_ONCE):
            chosen = paths[start : start + _AT_ONCE]
            crops = pool.map(lambda path: letterbox(decode(Path(folder) / path), *encoder.image_size), chosen)
            parts.append(extract_features(encoder, np.stack(list(crops)), flip=flip))
    return np.concatenate(parts)


class _FromBytes(torch.nn.Module):
    """An encoder that takes letterboxed bytes: what is exported."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("scale", 1 / (255 * torch.tensor(encoder.std)))
        self.register_buffer("shift", torch.tensor(encoder.mean) / torch.tensor(encoder.std))

    def forward(self, images):
        return self.encoder((images.float() * self.scale - self.shift).permute(0, 3, 1, 2))


def export_onnx(encoder, path, described=None):
    """Write an encoder as ONNX: `images` (N, h, w, 3) uint8, RGB and letterboxed -> `features` (N, d) of unit length.

    Normalisation is part of the graph; the metadata hold `preprocessing`, in words, and `run`, the JSON `described`.
    Raises ImportError where the packages onnx and onnxscript are missing.
    """
    import onnx

    height, width = encoder.image_size
    encoder = encoder.cpu().eval()
    example = torch.zeros(2, height, width, 3, dtype=torch.uint8)
    program = torch.onnx.export(
        _FromBytes(encoder).eval(),
        (example,),
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: torch.export.Dim("images", min=1)},),
        dynamo=True,
        verbose=False,
    )
    model = program.model_proto
    notes = {
        "preprocessing": f"decode as RGB; scale to fit {height} x {width} pixels (height x width), aspect ratio kept, "
        "bilinear; centre on zeros; uint8, NHWC",
        "run": json.dumps(described or {}, sort_keys=True),
    }
    onnx.helper.set_model_props(model, notes)
    with replacing(path) as temporary:
        onnx.save(model, temporary)


def main(arguments=None):
    """The command line: features of a folder of crops, or an ONNX file, from the weights of a run."""
    parser = argparse.ArgumentParser(prog="python -m reid_utils.learning.features", description=main.__doc__)
    parser.add_argument("weights", help="weights.safetensors of a seed of notebook 02")
    parser.add_argument("folder", nargs="?", help="folder of crops, or a data set in a known layout")
    parser.add_argument("out", nargs="?", help="feature file to write; notebooks 03 and 04 take its folder as features")
    parser.add_argument("--split", choices=("test", "challenge"), default="test", help="of a data set (test)")
    parser.add_argument("--onnx", metavar="OUT.onnx", help="write the encoder, its normalisation included")
    given = parser.parse_args(arguments)
    if not (given.folder or given.onnx) or bool(given.folder) != bool(given.out):
        parser.error("give FOLDER and OUT.npz, or --onnx OUT.onnx")
    if given.out and not given.out.endswith(".npz"):
        parser.error(f"{given.out} must end with .npz")
    try:
        encoder, run = trained_encoder(given.weights)
        if given.onnx:
            export_onnx(encoder, given.onnx, run)
        if given.folder:
            rows = crops_of(given.folder, given.split)
            encoder = encoder.to(default_device())
            features = features_of_files(encoder, given.folder, rows["path"].tolist(), run.get("flip_features", False))
            save_features(given.out, rows, features, given.weights)
            print(rows.groupby("role", sort=False)["player"].agg(images="size", players="nunique").to_string())
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
