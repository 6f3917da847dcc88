"""The regime map: what each post-processing and fusion does, against the accuracy of the single model."""

import numpy as np
from matplotlib.patches import Patch

from reid_utils.ranking.regimes import LEAST, PUBLISHED
from reid_utils.views.style import BLACK, GREY, TEXT_WIDTH, VERMILLION, blank_figure, finish, looks

_TICKS = (0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
_CELLS = ("abcd", "efg.", "hij.")  # re-rankings in the first row, fusions below


def regime_map(curves, note=None):
    """A panel per claim: the effect in points of mAP over the single model's mAP, on a logit axis.

    curves: DataFrame from `ranking.regimes.curves_of` (fractions): one line and 95 % band per number of gallery images
    of a player, the first one thick. Dotted lines mark published models, the shade what the paper's claims are about.
    The y axes are fitted to the lines and the first one's band; other bands may be cut. Returns a text-width Figure.
    """
    curves = curves.assign(**100 * curves[["effect", "low", "high"]])
    panels, styles = curves.groupby("claim", sort=False), looks(curves["images"])
    cells = _CELLS[: -(-(len(panels) - 1) // 3)]
    figure = blank_figure(TEXT_WIDTH, 0.9 + 1.6 * len(cells))
    axes = list(figure.subplot_mosaic("\n".join(cells)).values())
    for ax, (claim, of_claim) in zip(axes, panels, strict=False):
        _panel(ax, of_claim, styles, claim)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.supxlabel("mAP of the single model (%)", fontsize="medium")
    figure.supylabel("effect (mAP points)", fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    bands = Patch(color=GREY, alpha=0.3, linewidth=0, label="95 % bands; those of thin lines may be cut")
    figure.legend([*handles, bands], [*labels, bands.get_label()], loc="outside upper center", ncols=2)
    return finish(figure, note)


def _panel(ax, curves, styles, claim):
    """One claim's curves, with the y axis fitted to all lines and the first one's band."""
    for width, (images, curve) in zip((1.8, 0.9, 0.9, 0.9), curves.groupby("images", sort=False), strict=False):
        look = {"color": styles[images]["color"], "linestyle": "-"}
        ax.plot(curve.mAP, curve.effect, linewidth=width, label=f"{images} gallery images per player", **look)
        ax.fill_between(curve.mAP, curve.low, curve.high, alpha=0.15, linewidth=0, **look)
    first = curves[curves.images == curves.images.iloc[0]]
    low, high = np.nanmin([*first.low, *curves.effect, 0]), np.nanmax([*first.high, *curves.effect, 0])
    margin = 0.08 * (high - low) + 0.1
    ax.set(xscale="logit", xlim=(0.27, 0.988), ylim=(low - margin, high + margin), title=claim)
    ax.axvspan(LEAST, 0.988, color=GREY, alpha=0.12, linewidth=0, label=f"paper's range (≥ {100 * LEAST:.0f} mAP)")
    baseline, *others = (f"{100 * mark:.1f}" for mark in PUBLISHED)
    published = f"published: toolkit baseline {baseline}; models and entries {', '.join(others)}"
    for number, mark in enumerate(PUBLISHED):
        ax.axvline(mark, color=VERMILLION, linestyle=":", linewidth=0.8, label=None if number else published)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set_xticks(_TICKS, [f"{100 * tick:.0f}" for tick in _TICKS])
    ax.set_xticks([], minor=True)
