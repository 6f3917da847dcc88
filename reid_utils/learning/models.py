"""Encoders by name, timm's and open_clip's vision transformers: built, written, read back, and what they cost."""

import _codecs
import json
import pickle
import textwrap
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from reid_utils.files import replacing
from reid_utils.learning.losses import INITIAL_LOGIT_SCALE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"  # what `make weights` writes


class Encoder(nn.Module):
    """An image encoder with what its inputs need: `mean`, `std` (of pixels in 0–1), `image_size` (height, width).

    `logit_scale`: log of the inverse temperature that its weights were trained with, where a contrastive loss starts.
    `neck`: None, or the ID loss's batch normalisation, which features go through in evaluation mode.
    forward: (N, 3, h, w) float32 -> (N, d) features of unit length.
    """

    def __init__(self, trunk, dim, mean, std, image_size, logit_scale=INITIAL_LOGIT_SCALE):
        super().__init__()
        self.trunk, self.dim, self.logit_scale = trunk, dim, logit_scale
        self.mean, self.std, self.image_size, self.neck = tuple(mean), tuple(std), tuple(image_size), None

    def forward(self, images):
        features = nn.functional.normalize(self.trunk(images).float(), dim=1)
        before = self.neck is None or self.training  # losses take features before the neck
        return features if before else nn.functional.normalize(self.neck(features), dim=1)


def build_encoder(
    backbone,
    image_size=None,
    pretrained=False,
    weights_dir=None,
    projection=False,
    gradient_checkpointing=False,
    weights_file=None,
    normalisation="weights",
    neck=False,
):
    """Build an encoder by name, on torch's default device.

    `backbone` is a timm name ("resnet50") or an open_clip pair "model/weights" ("ViT-L-14-quickgelu/openai"), whose
    projection is removed as the paper does unless `projection`; `image_size` (height, width) or None for the model's
    own. With `pretrained` the weights come from `weights_file` where given (as `read_state` takes it), from
    `weights_dir` or the repository's own folder weights as `<backbone with / as _>.safetensors` (the file that the hub
    keeps; the classifier may be missing), or else by name from the hub; position embeddings are resampled.
    `gradient_checkpointing` computes activations again in the backward pass: less memory, a third more work, the same
    gradients. `normalisation` of pixels: "weights" for the mean and deviation that the weights were trained with,
    "imagenet" for ImageNet's in every timm model, as published (open_clip's towers keep their own). `neck`: players are
    retrieved by the features after the ID loss's neck, as reid-strong-baseline does.
    Raises what the library raises for an unknown name, ValueError where weights do not fit, and FileNotFoundError
    naming the file to fetch where they cannot be had.
    """
    if normalisation not in ("weights", "imagenet"):
        raise ValueError(f"normalisation {normalisation!r} is unknown; known: weights, imagenet")
    local = (weights_file or find_weights(backbone, weights_dir)) if pretrained else None
    build = _open_clip_encoder if "/" in backbone else _timm_encoder
    try:
        encoder = build(backbone, image_size, pretrained, local, projection)
    except (OSError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        if not pretrained:
            raise
        raise _no_weights(backbone, local, error) from error
    if normalisation == "imagenet" and build is _timm_encoder:
        encoder.mean, encoder.std = IMAGENET_MEAN, IMAGENET_STD
    if gradient_checkpointing:
        encoder.trunk.set_grad_checkpointing(True)
    if neck:
        encoder.neck = nn.BatchNorm1d(encoder.dim)
    # A quarter faster for small CNNs on a CPU, and what tensor cores want.
    return encoder.to(memory_format=torch.channels_last)


def weights_file_name(backbone):
    """Name under which a backbone's weights are looked for in `weights_dir`."""
    return backbone.replace("/", "_") + ".safetensors"


def find_weights(backbone, weights_dir):
    """Path of a backbone's weights in `weights_dir` (None: the folder that `make weights` fills), or None."""
    path = Path(weights_dir or WEIGHTS) / weights_file_name(backbone)
    return path if path.exists() else None


def read_state(path):
    """{name: tensor} of a weights file: safetensors, or a state_dict that torch.save wrote, as toolkits wrap it.

    It may lie under "state_dict" or "model". Nothing is unpickled but tensors and numbers; raises ValueError where a
    file holds anything else, and says how to convert it.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(PLAIN):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError):
        raise ValueError(
            f"{path} is damaged or holds Python objects; write it again where it was made, with "
            'torch.save(model.state_dict(), "weights.pth")'
        ) from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


# What numbers and arrays of NumPy are pickled as: toolkits keep the score of a checkpoint so.
PLAIN = [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
PLAIN += [np._core.multiarray._reconstruct, np.ndarray, np.dtype, _codecs.encode]
PLAIN += [type(np.dtype(name)) for name in ("float32", "float64", "int64", "bool")]


def starting_encoder(settings, seed, start=None):
    """The encoder that a training starts from, torch's generator seeded first.

    `settings`: keyword arguments of `build_encoder`; `start`: a weights file of this backbone, taken in place of
    pretrained weights, or None. Raises ValueError where it is damaged or of another backbone.
    """
    torch.manual_seed(seed)
    if start is None:
        return build_encoder(**settings)
    if any(name.startswith("trunk.") for name in read_state(start)):  # as `save_weights` wrote it
        return load_weights(start, build_encoder(**{**settings, "pretrained": False}))
    return build_encoder(**{**settings, "pretrained": True, "weights_file": start})


def _reason(error):
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")


def _no_weights(backbone, local, error):
    import timm

    if local is not None:
        return ValueError(
            f"{local} does not fit the backbone ({_reason(error)}); give the file of this very backbone, as "
            ".safetensors or as torch.save writes a state_dict"
        )
    if "/" in backbone:
        repository = _open_clip_weights(backbone).get("hf_hub", "").rstrip("/")
    else:
        repository = getattr(timm.get_pretrained_cfg(backbone), "hf_hub_id", None)
    return FileNotFoundError(
        f"no pretrained weights for {backbone} ({_reason(error)}); run `make weights` (it has mobilenetv2_100 and "
        f"tf_efficientnet_lite0 to 2), or put the safetensors file of the hub's {repository or backbone} as "
        f"{weights_file_name(backbone)} into the folder named by weights_dir, or set pretrained to false"
    )


def _timm_encoder(backbone, image_size, pretrained, local, _):
    import timm

    given = {"pretrained_cfg_overlay": {"state_dict": _timm_state(backbone, local)}} if local else {}
    given |= {} if pretrained else {"num_classes": 0}
    trunk = timm.create_model(backbone, pretrained=pretrained, **given)
    trunk.reset_classifier(0)
    config = trunk.pretrained_cfg
    config.pop("state_dict", None)  # else it keeps the tensors alive
    own = tuple(config["input_size"][1:])
    image_size = tuple(image_size or own)
    if image_size != own and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=image_size)
    dim = getattr(trunk, "head_hidden_size", trunk.num_features)
    return Encoder(trunk, dim, config["mean"], config["std"], image_size)


def _timm_state(backbone, path):
    """The tensors of a weights file as timm's strict check wants them: its names, a classifier of its size.

    The classifier is taken off later, so it may be zeros. A prefix ("module.") is removed and, where the whole trunk is
    there, so are modules that timm's network lacks (a neck).
    """
    import timm

    with torch.device("meta"):
        whole = timm.create_model(backbone).state_dict()
        trunk = timm.create_model(backbone, num_classes=0).state_dict()
    state, first = read_state(path), next(iter(trunk))
    prefix = min((name.removesuffix(first) for name in state if name.endswith(first)), default="", key=len)
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if trunk.keys() <= state.keys():
        modules = {name.partition(".")[0] for name in trunk}
        state = {name: state[name] for name in state if name.partition(".")[0] in modules}
    return state | {name: torch.zeros(whole[name].shape, device="cpu") for name in whole.keys() - trunk.keys()}


def _open_clip_weights(backbone):
    """open_clip's entry for the weights of a "model/weights" pair (dict); ValueError where it has none."""
    import open_clip

    name, tag = backbone.split("/", 1)
    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"open_clip has no weights {tag!r} for {name}; known: {known}")
    return config


def _open_clip_encoder(backbone, image_size, pretrained, local, projection):
    import open_clip

    config, name = _open_clip_weights(backbone), backbone.partition("/")[0].removesuffix("-quickgelu")
    if not isinstance(open_clip.get_model_config(name)["vision_cfg"].get("layers"), int):
        raise ValueError(
            f"{backbone} is no vision transformer of open_clip; name timm's, such as resnet50_clip.openai or "
            "convnext_base.clip_laion2b"
        )
    path = str(local or open_clip.download_pretrained(config)) if pretrained else None
    # The activation is the one that the weights were trained with, whichever the name says.
    quick = bool(config.get("quick_gelu"))
    clip = open_clip.create_model(name, path, device=torch.get_default_device(), force_quick_gelu=quick)
    trunk = clip.visual
    image_size = tuple(image_size or trunk.image_size)
    if image_size != trunk.image_size:
        _resize_tower(trunk, image_size)
    dim = trunk.output_dim
    if not projection:
        trunk.proj, dim = None, trunk.ln_post.normalized_shape[0]
    mean, std = config.get("mean") or open_clip.OPENAI_DATASET_MEAN, config.get("std") or open_clip.OPENAI_DATASET_STD
    scale = INITIAL_LOGIT_SCALE if clip.logit_scale.is_meta else clip.logit_scale.item()
    return Encoder(trunk, dim, mean, std, image_size, scale)


def _resize_tower(trunk, image_size):
    """Make a vision transformer of open_clip take images of another size, its position embeddings resampled."""
    from timm.layers import resample_abs_pos_embed

    grid = tuple(side // patch for side, patch in zip(image_size, trunk.patch_size, strict=True))
    old, table = trunk.grid_size, trunk.positional_embedding
    table = resample_abs_pos_embed(table.detach()[None], grid, old, len(table) - old[0] * old[1])[0]
    trunk.positional_embedding = nn.Parameter(table, trunk.positional_embedding.requires_grad)
    trunk.grid_size, trunk.image_size = grid, image_size


def save_weights(path, encoder, described):
    """Write an encoder's weights as safetensors; equal runs give equal bytes.

    `described`: plain JSON that determines the run, kept as the file's one metadata key.
    """
    save_tensors(path, encoder.state_dict(), {"run": json.dumps(described, sort_keys=True)})


def save_tensors(path, tensors, metadata):
    """Write {name: tensor} and the texts `metadata` as safetensors. Atomic; file permissions follow the umask."""
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as part:
        part.write_bytes(save(kept, metadata))


def load_weights(path, encoder):
    """Load what `save_weights` wrote into an encoder; raises ValueError where the file is cut or of another shape."""
    try:
        encoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} does not fit the encoder ({_reason(error)}); give weights of this very backbone, or train again"
        ) from error
    return encoder


def count_parameters(encoder):
    """Number of trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def count_gflops(encoder):
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the size of an encoder on the meta device.

    There nothing is computed, and no device's fused kernel escapes the count; the encoder is in evaluation mode after.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, *encoder.image_size, device="meta"))
    return counter.get_total_flops() / 1e9
