"""Encoders by name: timm's, and the image towers of open_clip."""

import json
import statistics
import time
import warnings
from pathlib import Path

import torch
from torch import nn


class Encoder(nn.Module):
    """An image encoder with what its inputs need: `mean`, `std` (of pixels in 0–1), `image_size` (height, width).

    forward: (N, 3, h, w) float32 -> (N, d) features of unit length.
    """

    def __init__(self, trunk, dim, mean, std, image_size):
        super().__init__()
        self.trunk, self.dim = trunk, dim
        self.mean, self.std, self.image_size = tuple(mean), tuple(std), tuple(image_size)

    def forward(self, images):
        return nn.functional.normalize(self.trunk(images).float(), dim=1)


def build_encoder(backbone, image_size=None, pretrained=False, weights_dir=None):
    """Build an encoder by name.

    `backbone` is a timm name ("resnet50") or an open_clip pair "model/weights" ("ViT-L-14-quickgelu/openai"), whose
    projection is removed as the paper does; `image_size` (height, width) or None for the model's own. With `pretrained`
    the weights come from `weights_dir` (`<backbone with / as _>.safetensors`) or else by name from the library's hub.
    Raises ValueError for an unknown name and FileNotFoundError, naming the file to fetch, when weights cannot be had.
    """
    build = _open_clip_encoder if "/" in backbone else _timm_encoder
    local = find_weights(backbone, weights_dir) if pretrained else None
    try:
        encoder = build(backbone, image_size, pretrained and local is None, local)
    except (OSError, RuntimeError) as error:
        if not pretrained or local is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"no pretrained weights for {backbone} ({reason}); put {weights_file_name(backbone)} into the folder "
            "named by weights_dir, or set pretrained to false"
        ) from error
    # A quarter faster for small CNNs on a CPU, and what tensor cores want.
    return encoder.to(memory_format=torch.channels_last)


def weights_file_name(backbone):
    """Name under which a backbone's weights are looked for in `weights_dir`."""
    return backbone.replace("/", "_") + ".safetensors"


def find_weights(backbone, weights_dir):
    """Path of a backbone's local weights, or None where no folder or no such file is given."""
    path = Path(weights_dir) / weights_file_name(backbone) if weights_dir else None
    return path if path is not None and path.exists() else None


def load_trunk(trunk, path):
    """Load a safetensors file of the bare backbone, as timm or open_clip names its tensors."""
    from safetensors.torch import load_file

    tensors = load_file(path)
    visual = {name.removeprefix("visual."): value for name, value in tensors.items() if name.startswith("visual.")}
    result = trunk.load_state_dict(visual or tensors, strict=False)
    if result.missing_keys:
        raise ValueError(
            f"{path} does not fit the backbone: tensor {result.missing_keys[0]!r} is missing; fetch the file "
            "of this very backbone"
        )


def _timm_encoder(backbone, image_size, pretrained, local):
    import timm

    if not timm.is_model(backbone):
        close = timm.list_models(f"*{backbone.split('.')[0][:8]}*")[:3]
        raise ValueError(f"timm has no model {backbone!r}; perhaps one of {close or timm.list_models()[:3]}")
    trunk = timm.create_model(backbone, pretrained=pretrained, num_classes=0)
    if local is not None:
        load_trunk(trunk, local)  # before resizing, which resamples the position embeddings
    config = trunk.pretrained_cfg
    own = config["input_size"][1:]
    if image_size is not None and hasattr(trunk, "set_input_size"):
        trunk.set_input_size(img_size=tuple(image_size))
    dim = getattr(trunk, "head_hidden_size", trunk.num_features)
    return Encoder(trunk, dim, config["mean"], config["std"], image_size or own)


def _open_clip_encoder(backbone, image_size, pretrained, local):
    import open_clip

    name, tag = backbone.split("/")
    if tag == "openai" and not name.endswith("-quickgelu"):
        raise ValueError(f"OpenAI's weights were trained with QuickGELU; write {name}-quickgelu/openai")
    if name not in open_clip.list_models():
        raise ValueError(f"open_clip has no model {name!r}; open_clip.list_models() names them")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*QuickGELU mismatch.*")
        clip = open_clip.create_model(name, pretrained=tag if pretrained else None, force_image_size=image_size)
    trunk = clip.visual
    if local is not None:
        load_trunk(trunk, local)
    trunk.proj = None
    mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
    size = trunk.image_size if isinstance(trunk.image_size, tuple) else (trunk.image_size,) * 2
    return Encoder(trunk, trunk.ln_post.normalized_shape[0], mean, std, size)


def save_weights(path, encoder, described):
    """Write an encoder's weights as safetensors; equal runs give equal bytes.

    `described`: plain JSON that determines the run, kept as the file's one metadata key. The file takes its name only
    when it is whole.
    """
    from safetensors.torch import save_file

    part = Path(path).with_suffix(".part")
    tensors = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    save_file(tensors, part, metadata={"run": json.dumps(described, sort_keys=True)})
    part.replace(path)


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
    """GFLOPs (multiply and add counted apart) of one image's forward pass at the encoder's size."""
    from torch.utils.flop_counter import FlopCounterMode

    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        encoder(torch.zeros(1, 3, *encoder.image_size, device=device))
    encoder.train(was_training)
    return counter.get_total_flops() / 1e9


def milliseconds_an_image(encoder, batch_size=16, repeats=5):
    """Milliseconds that an image's forward pass takes on this device: median of `repeats` batches, after a warm-up."""
    device = next(encoder.parameters()).device
    was_training = encoder.training
    encoder.eval()
    batch = torch.zeros(batch_size, 3, *encoder.image_size, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            start = time.perf_counter()
            encoder(batch).sum().item()
            times.append(time.perf_counter() - start)
    encoder.train(was_training)
    return 1000 * statistics.median(times[1:]) / batch_size
