"""Features of a folder of crops, or the encoder as ONNX for other programs, from the weights of a run of notebook 02.

`python tools/features.py WEIGHTS FOLDER OUT.npz`; `python tools/features.py WEIGHTS --onnx OUT.onnx`.
"""

import argparse
import json
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from reid_utils.data.images import decode, letterbox
from reid_utils.data.integrity import validate_images
from reid_utils.data.layouts import find_layout
from reid_utils.data.manifest import load_manifest
from reid_utils.files import replacing
from reid_utils.learning.features import extract_features, trained_encoder
from reid_utils.learning.processes import default_device
from reid_utils.ranking.feature_files import features_of, save


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


def crops_of(folder, split="test"):
    """The crops of a folder in any layout as rows of its manifest: those of `split`, "test" or "challenge".

    They are what a study would rank, in its order. Raises what `load_manifest` raises, and ValueError where there are
    none.
    """
    manifest = load_manifest(folder)
    rows = manifest[manifest["split"] == split].reset_index(drop=True)
    if rows.empty:
        raise ValueError(f"{folder} has no {split} images: take the split {manifest['split'].iloc[-1]}")
    return rows


_AT_ONCE = 1024  # crops in memory at a time


def features_of_files(encoder, folder, paths, flip=False):
    """Unit-length features (n, d) float32 of image files, decoded and letterboxed as in training.

    Raises what `decode` raises for a file that a study refuses too.
    """
    parts = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _AT_ONCE):
            chosen = paths[start : start + _AT_ONCE]
            crops = pool.map(lambda path: letterbox(decode(Path(folder) / path), *encoder.image_size), chosen)
            parts.append(extract_features(encoder, np.stack(list(crops)), flip=flip))
    return np.concatenate(parts)


def _check_other_splits(folder, split):
    """Raise for an image that a study of the folder refuses, where there are splits besides the one to be decoded."""
    with warnings.catch_warnings(action="ignore"):  # `crops_of` gave them
        manifest = load_manifest(folder)
    if (manifest["split"] != split).any():
        validate_images(folder, manifest, os.cpu_count() or 1)


def main(arguments=None):
    """The command line: features of a folder of crops, or an ONNX file, from the weights of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", help="weights.safetensors of a seed of notebook 02")
    parser.add_argument("folder", nargs="?", help="folder of crops in any layout of docs/data.md")
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
            _check_other_splits(given.folder, given.split)
            encoder = encoder.to(default_device())
            features = features_of_files(encoder, given.folder, rows["path"].tolist(), run.get("flip_features", False))
            save(given.out, features_of(rows, features))
            print(f"layout: {find_layout(given.folder)[0]}")
            print(rows.groupby("role", sort=False)["player"].agg(images="size", players="nunique").to_string())
    except (OSError, ValueError, ImportError) as error:
        parser.exit(1, " ".join(str(error).splitlines()) + "\n")


if __name__ == "__main__":
    main()
