"""The regime map: what each post-processing and fusion does, against the accuracy of the single model."""

import numpy as np
from matplotlib.patches import Patch

from reid_utils.ranking.regimes import LEAST, PUBLISHED
from reid_utils.views.style import (
    BLACK,
    COLUMN_WIDTH,
    GREY,
    PALETTE,
    TEXT_WIDTH,
    VERMILLION,
    band,
    blank_figure,
    finish,
)

_TICKS = (0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
_CELLS = ("abcd", "efg.", "hij.")  # re-rankings in the first row, fusions below
CHIEF = ("hard − none", "hard − gaussian", "two-stage − best single")  # what the paper claims


def regime_map(curves, note=None):
    """A panel per claim: the effect in points of mAP over the single model's mAP, on a logit axis.

    curves: DataFrame from `ranking.regimes.curves_of` (fractions): one line and 95 % band per level; a level whose name
    begins with "rendered" is dashed where others do not. Dotted lines mark published models, the shade what the paper's
    claims are about. Returns a text-width Figure; a column-width one of panels below each other for `CHIEF` claims.
    """
    curves = curves.assign(**100 * curves[["effect", "low", "high"]])
    panels, colours = curves.groupby("claim", sort=False), dict(zip(curves["level"].unique(), PALETTE, strict=False))
    few = len(panels) <= len(CHIEF)
    cells = "abc"[: len(panels)] if few else _CELLS[: -(-(len(panels) - 1) // 3)]
    figure = blank_figure(COLUMN_WIDTH if few else TEXT_WIDTH, 1.1 + 1.6 * len(cells))
    axes = list(figure.subplot_mosaic("\n".join(cells)).values())
    for ax, (claim, of_claim) in zip(axes, panels, strict=False):
        _panel(ax, of_claim, colours, claim)
    for ax in axes[len(panels) :]:
        ax.remove()
    figure.supxlabel("mAP of the single model (%)", fontsize="medium")
    figure.supylabel("effect (mAP points)", fontsize="medium")
    handles, labels = axes[0].get_legend_handles_labels()
    bands = Patch(color=GREY, alpha=0.3, linewidth=0, label="95 % bands")
    columns = 1 if few else 2
    figure.legend([*handles, bands], [*labels, bands.get_label()], loc="outside upper center", ncols=columns)
    return finish(figure, note)


def _panel(ax, curves, colours, claim):
    """One claim's curves."""
    real = not all(level.startswith("rendered") for level in colours)
    for level, curve in curves.groupby("level", sort=False):
        dashes = "--" if real and level.startswith("rendered") else "-"
        band(ax, *curve[["mAP", "effect", "low", "high"]].T.to_numpy(), colours[level], label=level, linestyle=dashes)
    low, high = np.nanmin([*curves.low, 0]), np.nanmax([*curves.high, 0])
    margin = 0.08 * (high - low) + 0.1
    ax.set(xscale="logit", xlim=(0.27, 0.988), ylim=(low - margin, high + margin), title=claim)
    ax.axvspan(LEAST, 0.988, color=GREY, alpha=0.12, linewidth=0, label=f"paper's range (≥ {100 * LEAST:.0f} mAP)")
    baseline, *others = (f"{100 * mark:.1f}" for mark in PUBLISHED)
    published = f"published: baseline {baseline}; entries {', '.join(others)}"
    for number, mark in enumerate(PUBLISHED):
        ax.axvline(mark, color=VERMILLION, linestyle=":", linewidth=0.8, label=None if number else published)
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set_xticks(_TICKS, [f"{100 * tick:.0f}" for tick in _TICKS])
    ax.set_xticks([], minor=True)
