"""Which regions of two crops make them similar: Grad-CAM towards the cosine similarity of their features."""

from contextlib import contextmanager, nullcontext

import numpy as np
from matplotlib.cm import ScalarMappable

from reid_utils.data.images import normalise
from reid_utils.views.style import COLUMN_WIDTH, blank_figure, finish

_CELLS = 32  # a coarser map (the last one of a small encoder may be 2 × 1) tells no region from another
_MAP = "inferno"


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


def saliency_pairs(pairs, note=None):
    """Pairs of crops with the regions that make them similar, a pair in a row: query, its map, gallery, its map.

    pairs: list of (title, query image, gallery image, (query map, gallery map, similarity)) as `match_saliency` gives
    them. Returns a column-width Figure with a colour bar.
    """
    crop = max(image.shape[0] / image.shape[1] for _, image, _, _ in pairs) * COLUMN_WIDTH / 4.6
    heights = [crop + 0.6] * len(pairs) + [0.62]
    figure = blank_figure(COLUMN_WIDTH, sum(heights))
    *parts, bottom = figure.subfigures(len(heights), 1, height_ratios=heights)
    for part, pair in zip(parts, pairs, strict=True):
        _draw_pair(part, *pair)
    bar = bottom.colorbar(ScalarMappable(cmap=_MAP), cax=bottom.subplots(), orientation="horizontal", ticks=(0, 1))
    bar.set_label("share of the map's maximum")
    return finish(figure, note)


def _draw_pair(figure, title, query, gallery, found):
    """One pair in a SubFigure."""
    axes = figure.subplots(1, 4)
    figure.suptitle(f"{title}\ncosine {found[2]:.2f}", fontsize="medium", x=0.02, ha="left")
    shown = (("query", query), ("its map", query), ("gallery", gallery), ("its map", gallery))
    for ax, (name, image) in zip(axes, shown, strict=True):
        ax.imshow(image)
        ax.set_title(name, fontsize="small", pad=2)
        ax.axis("off")
    for ax, heat in zip(axes[1::2], found[:2], strict=True):
        ax.imshow(heat, cmap=_MAP, alpha=0.6, vmin=0, vmax=1)
