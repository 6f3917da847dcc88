"""Encoders by name, timm's and open_clip's vision transformers: built, written, read back, and what they cost."""

import _codecs
import json
import pickle
import statistics
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reid_utils.files import replacing
from reid_utils.learning.losses import INITIAL_LOGIT_SCALE

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"  # what `make weights` writes


class Encoder(nn.Module):
    """An image encoder with what its inputs need: `mean`, `std` (of pixels in 0–1), `image_size` (height, width).

    `logit_scale`: log of the inverse temperature that its weights were trained with, where a contrastive loss starts.
    forward: (N, 3, h, w) float32 -> (N, d) features of unit length.
    """

    def __init__(self, trunk, dim, mean, std, image_size, logit_scale=INITIAL_LOGIT_SCALE):
        super().__init__()
        self.trunk, self.dim, self.logit_scale = trunk, dim, logit_scale
        self.mean, self.std, self.image_size = tuple(mean), tuple(std), tuple(image_size)

    def forward(self, images):
        return nn.functional.normalize(self.trunk(images).float(), dim=1)


def build_encoder(
    backbone,
    image_size=None,
    pretrained=False,
    weights_dir=None,
    projection=False,
    gradient_checkpointing=False,
    weights_file=None,
    normalisation="weights",
):
    """Build an encoder by name, on torch's default device.

    `backbone` is a timm name ("resnet50") or an open_clip pair "model/weights" ("ViT-L-14-quickgelu/openai"), whose
    projection is removed as the paper does unless `projection`; `image_size` (height, width) or None for the model's
    own. With `pretrained` the weights come from `weights_file` where given (as `read_state` takes it), from
    `weights_dir` or the repository's own folder weights as `<backbone with / as _>.safetensors` (the file that the hub
    keeps; the classifier may be missing), or else by name from the hub; position embeddings are resampled.
    `gradient_checkpointing` computes activations again in the backward pass: less memory, a third more work, the same
    gradients. `normalisation` of pixels: "weights" for the mean and deviation that the weights were trained with,
    "imagenet" for ImageNet's in every timm model, as published (open_clip's towers keep their own).
    Raises ValueError for an unknown name, and FileNotFoundError naming the file to fetch where weights cannot be had.
    """
    if normalisation not in ("weights", "imagenet"):
        raise ValueError(f"normalisation {normalisation!r} is unknown; known: weights, imagenet")
    backbone = full_name(backbone)
    local = (weights_file or find_weights(backbone, weights_dir)) if pretrained else None
    if "/" in backbone:
        encoder = _open_clip_encoder(backbone, image_size, pretrained, local, projection)
    else:
        encoder = _timm_encoder(backbone, image_size, pretrained, local)
        if normalisation == "imagenet":
            encoder.mean, encoder.std = IMAGENET_MEAN, IMAGENET_STD
    if gradient_checkpointing:
        try:
            encoder.trunk.set_grad_checkpointing(True)
        except (AssertionError, AttributeError):
            raise ValueError(f"{backbone} must keep its activations; set gradient_checkpointing to false") from None
    # A quarter faster for small CNNs on a CPU, and what tensor cores want.
    return encoder.to(memory_format=torch.channels_last)


def weights_file_name(backbone):
    """Name under which a backbone's weights are looked for in `weights_dir`."""
    return full_name(backbone).replace("/", "_") + ".safetensors"


def find_weights(backbone, weights_dir):
    """Path of a backbone's weights in `weights_dir` (None: the folder that `make weights` fills), or None."""
    path = Path(weights_dir or WEIGHTS) / weights_file_name(backbone)
    return path if path.exists() else None


def read_state(path):
    """{name: tensor} of a weights file: safetensors, or a state_dict that torch.save wrote, as toolkits wrap it.

    It may lie under "state_dict" or "model". Nothing is unpickled but tensors and numbers; raises ValueError where a
    file holds anything else, and says how to convert it.
    """
    if Path(path).suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        raise ValueError(
            f"{path} is damaged or holds Python objects; write it again where it was made, with "
            'torch.save(model.state_dict(), "weights.pth")'
        ) from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, torch.Tensor)}


# What a number of NumPy is pickled as: toolkits keep the score of a checkpoint so.
_NUMBERS = [(np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
_NUMBERS += [np.dtype, *(type(np.dtype(name)) for name in ("float32", "float64", "int64")), _codecs.encode]


def starting_encoder(settings, seed, start=None):
    """The encoder that a training starts from, torch's generator seeded first.

    `settings`: keyword arguments of `build_encoder`; `start`: a weights file of this backbone, taken in place of
    pretrained weights, or None. Raises ValueError where it is of another backbone.
    """
    torch.manual_seed(seed)
    if start is None:
        return build_encoder(**settings)
    from safetensors import SafetensorError

    try:
        if any(name.startswith("trunk.") for name in read_state(start)):  # as `save_weights` wrote it
            return load_weights(start, build_encoder(**{**settings, "pretrained": False}))
        return build_encoder(**{**settings, "pretrained": True, "weights_file": start})
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"start_weights: {start} does not fit {settings['backbone']} ({_reason(error.__cause__ or error)}); "
            "give weights of this very backbone, as .safetensors or as torch.save writes a state_dict"
        ) from error


def _reason(error):
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")


def _unavailable(backbone, repository, error):
    return FileNotFoundError(
        f"no pretrained weights for {backbone} ({_reason(error)}); run `make weights` (it has mobilenetv2_100 and "
        f"tf_efficientnet_lite0 to 2), or put the safetensors file of the hub's {repository} as "
        f"{weights_file_name(backbone)} into the folder named by weights_dir, or set pretrained to false"
    )


def _does_not_fit(path, error):
    return ValueError(f"{path} does not fit the backbone ({_reason(error)}); fetch the file of this very backbone")


def _timm_encoder(backbone, image_size, pretrained, local):
    import timm
    from safetensors import SafetensorError

    if not timm.is_model(backbone):
        close = timm.list_models(f"*{backbone.split('.')[0][:8]}*")[:3]
        raise ValueError(f"timm has no model {backbone!r}; perhaps one of {close or timm.list_models()[:3]}")
    try:
        given = {"pretrained_cfg_overlay": {"state_dict": _timm_state(backbone, local)}} if local else {}
        given |= {} if pretrained else {"num_classes": 0}
        trunk = timm.create_model(backbone, pretrained=pretrained, **given)
    except (OSError, RuntimeError, SafetensorError) as error:
        if local is not None:
            raise _does_not_fit(local, error) from error
        raise _unavailable(backbone, timm.get_pretrained_cfg(backbone).hf_hub_id or "timm", error) from error
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

    The classifier is taken off later, so one that is missing or of another size may be zeros. A prefix ("module.") is
    removed and, where the whole trunk is there, so are modules that timm's network lacks (a classifier or neck).
    """
    import timm

    with torch.device("meta"):
        whole = timm.create_model(backbone).state_dict()
        trunk = timm.create_model(backbone, num_classes=0).state_dict()
    state, first = read_state(path), next(iter(trunk))
    prefixes = sorted({name.removesuffix(first) for name in state if name.endswith(first)})
    prefix = max(prefixes, default="", key=lambda prefix: sum(prefix + name in state for name in trunk))
    state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    if trunk.keys() <= state.keys():
        modules = {name.partition(".")[0] for name in trunk}
        state = {name: state[name] for name in state if name in whole or name.partition(".")[0] in modules}
    for name in whole.keys() - trunk.keys():
        if name not in state or state[name].shape != whole[name].shape:
            state[name] = torch.zeros(whole[name].shape, device="cpu")
    return state


def full_name(backbone):
    """A backbone's name with OpenAI's CLIP weights put under the QuickGELU models that they were trained with."""
    name, _, tag = backbone.partition("/")
    return f"{name}-quickgelu/{tag}" if tag == "openai" and not name.endswith("-quickgelu") else backbone


def _open_clip_config(backbone):
    """(model name, open_clip's entry for the weights); ValueError for unknown names, other towers and activations."""
    import open_clip

    name, tag = backbone.split("/", 1)
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() names them")
    config, model = open_clip.get_pretrained_cfg(name, tag), open_clip.get_model_config(name)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"open_clip has no weights {tag!r} for {name}; known: {known}")
    if not isinstance(model["vision_cfg"].get("layers"), int):
        raise ValueError(
            f"{backbone} is no vision transformer of open_clip; name timm's, such as resnet50_clip.openai or "
            "convnext_base.clip_laion2b"
        )
    if bool(config.get("quick_gelu")) != bool(model.get("quick_gelu")):
        trained = "with" if config.get("quick_gelu") else "without"
        other = f"{name}-quickgelu" if trained == "with" else name.removesuffix("-quickgelu")
        raise ValueError(f"{backbone}: these weights were trained {trained} QuickGELU; write {other}/{tag}")
    return name, config


def _open_clip_encoder(backbone, image_size, pretrained, local, projection):
    import open_clip
    from safetensors import SafetensorError

    name, config = _open_clip_config(backbone)
    path = (local or _download_clip(backbone, config)) if pretrained else None
    try:
        clip = open_clip.create_model(name, pretrained=path and str(path), device=torch.get_default_device())
    except (RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise _does_not_fit(path, error) from error
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


def _download_clip(backbone, config):
    import open_clip

    try:
        return open_clip.download_pretrained(config)
    except (OSError, RuntimeError) as error:
        raise _unavailable(backbone, config.get("hf_hub", "").rstrip("/") or "open_clip", error) from error


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
    from safetensors.torch import save_file

    with replacing(path) as part:
        part.touch()
        mode = part.stat().st_mode  # the library's own files are for their owner alone
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, part, metadata)
        part.chmod(mode)


def load_weights(path, encoder):
    """Load what `save_weights` wrote into an encoder; raises ValueError where the file is cut or of another shape."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        encoder.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{path} cannot be loaded into this encoder ({_reason(error)}); delete it and run again"
        ) from error
    return encoder


def count_parameters(encoder):
    """Number of trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def count_gflops(encoder):
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the size of an encoder on the meta device.

    There nothing is computed, and no device's fused kernel escapes the count; the encoder is in evaluation mode after.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, *encoder.image_size, device="meta"))
    return counter.get_total_flops() / 1e9


def milliseconds_an_image(encoder):
    """Milliseconds that an image's forward pass takes on this device, in evaluation mode from here on.

    Median of 5 batches of 16, after a warm-up.
    """
    encoder.eval()
    batch = torch.zeros(16, 3, *encoder.image_size, device=next(encoder.parameters()).device)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            start = time.perf_counter()
            encoder(batch).sum().item()
            times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[1:]) / len(batch)
