"""Which regions of two crops make them similar: Grad-CAM towards the cosine similarity of their features."""

from contextlib import contextmanager, nullcontext

import numpy as np

from reid_utils.data.images import normalise

_CELLS = 32  # a coarser map (the last one of a small encoder may be 2 × 1) tells no region from another


def match_saliency(encoder, query_image, gallery_image, layer=None):
    """Grad-CAM of a pair: what in each crop raises the cosine similarity to the other.

    encoder: module with mean, std, (N, 3, h, w) -> (N, d) of unit length (`build_encoder`); the images: letterboxed RGB
    uint8 (h, w, 3) of its size. layer: the module whose output is weighed; None takes, for a convolutional trunk of
    timm, the last stage with a map of at least 32 cells, for a ViT the patch tokens before the last attention (behind
    it the class token no longer sees them). Returns (query map, gallery map, similarity): maps (h, w) float32 with
    maximum 1, or all 0 where nothing raises the similarity. The encoder's mode and weights stay as they were.
    Selvaraju et al. 2017, with the similarity in place of a class score; through captum.
    """
    import torch

    device = next(encoder.parameters()).device
    inputs = normalise(np.stack([query_image, gallery_image]), encoder.mean, encoder.std).to(device)
    was_training = encoder.training
    encoder.eval()
    try:
        with torch.no_grad():
            query, gallery = encoder(inputs)
        with _map_of(encoder, layer, inputs.shape[2:]) as watched:
            maps = [_grad_cam(encoder, watched, inputs[i : i + 1], other) for i, other in enumerate((gallery, query))]
    finally:
        encoder.train(was_training)
    return (*maps, float(query @ gallery))


def _grad_cam(encoder, layer, image, other):
    """One side's map (h, w), scaled to a maximum of 1: image (1, 3, h, w), other (d,)."""
    from captum.attr import LayerAttribution, LayerGradCam

    found = LayerGradCam(lambda pixels: encoder(pixels) @ other, layer).attribute(image, relu_attributions=True)
    found = LayerAttribution.interpolate(found, tuple(image.shape[2:]), "bilinear")[0, 0].detach().cpu().numpy()
    return (found / found.max() if found.max() > 0 else found).astype(np.float32)


def _map_of(encoder, layer, size):
    """A context that gives the module whose output is an (N, C, h, w) map."""
    if layer is not None:
        return nullcontext(layer)
    trunk = encoder.trunk
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "blocks"):  # timm: ViT, EVA, BEiT
        return _token_map(trunk.blocks[-1].norm1, trunk.num_prefix_tokens, trunk.patch_embed.grid_size)
    if hasattr(trunk, "transformer"):  # open_clip
        return _token_map(trunk.transformer.resblocks[-1].ln_1, 1, trunk.grid_size)
    return nullcontext(_last_map(trunk, *size))


@contextmanager
def _token_map(norm, prefix, grid):
    """Lead the patch tokens of a module's output (N, tokens, C) through an identity as a map (N, C, h, w)."""
    import torch

    as_map = torch.nn.Identity()

    def through_map(module, given, tokens):
        patches = as_map(tokens[:, prefix:].transpose(1, 2).unflatten(2, tuple(grid)))
        return torch.cat([tokens[:, :prefix], patches.flatten(2).transpose(1, 2)], dim=1)

    with norm.register_forward_hook(through_map):
        yield as_map


def _last_map(trunk, height, width):
    """The last stage of a convolutional trunk of timm whose output (N, C, h, w) has enough cells."""
    stages = [stage["module"] for stage in getattr(trunk, "feature_info", [])
              if height * width >= _CELLS * stage["reduction"] ** 2]  # fmt: skip
    if not stages:
        raise ValueError(f"no layer of the encoder has a map of {_CELLS} cells or more; name one as layer")
    return trunk.get_submodule(stages[-1])
