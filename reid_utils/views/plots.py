"""Figures of what the models do with the data; each function takes data and returns a Matplotlib Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import numpy as np

from reid_utils.views import style
from reid_utils.views.style import COLUMN_WIDTH, TEXT_WIDTH, band, finish, new_figure


def training_curves(history, note=None):
    """Loss, mAP and rank-1 over the epochs: thin lines and small points for the seeds, thick lines for their mean.

    history: DataFrame with seed, epoch, loss, mAP and rank1 (fractions, NaN where not measured) and optionally label,
    one for each series. Lines join epochs that follow each other, never over one without a measurement. Returns a
    text-width Figure with three axes.
    """
    percent = history.assign(mAP=100 * history.mAP, rank1=100 * history.rank1, label=history.get("label", ""))
    figure, axes = new_figure(TEXT_WIDTH, 2.3, 1, 3)
    looks = style.looks(percent.label)
    titles = {"loss": "training loss (nats)", "mAP": "mAP (%)", "rank1": "rank-1 (%)"}
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        for label, lines in percent.dropna(subset=[column]).groupby("label", sort=False):
            measured = lines.pivot_table(index="epoch", columns="seed", values=column)
            measured = measured.reindex(range(measured.index.min(), measured.index.max() + 1))
            look = {"linestyle": "-", "markeredgewidth": 0, **looks[label]}
            ax.plot(measured, linewidth=0.5, alpha=0.5, markersize=3, **{**look, "marker": "."})
            ax.plot(measured.mean(axis=1), label=label, **look)
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
    if "label" in history:
        style.legend_above(figure, axes[0])
    return finish(figure, note)


def pair_histogram(groups, label, note=None, log=False, **settings):
    """Distances of genuine pairs (same player) and impostor pairs as filled steps over shared bins, told by colour.

    groups: dict of name → distances of any shape; label: what they are; log: whether the counts' axis is logarithmic;
    `settings` go to seaborn's histplot. Returns a column-width Figure.
    """
    import seaborn as sns

    groups = {f"{name} ({np.size(values):,} pairs)": np.ravel(values) for name, values in groups.items()}
    figure, ax = new_figure(COLUMN_WIDTH, 2.2)
    sns.histplot(groups, element="step", palette=style.PALETTE[: len(groups)], alpha=0.4, ax=ax, **settings)
    sns.move_legend(ax, "lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    ax.set(xlabel=label, yscale="log" if log else "linear")
    ax.yaxis.set_major_formatter("{x:,g}")
    ax.yaxis.set_minor_formatter("")  # matplotlib's own, within a decade, is in math
    return finish(figure, note)


def cmc_curves(curves, note=None):
    """Share of queries with a match among the first r gallery images, over the rank r: the mean, a band over the seeds.

    curves: dict of name → (ranks,) fractions from rank 1 on, or (seeds, ranks), whose band goes from the lowest to the
    highest. Returns a column-width Figure.
    """
    figure, ax = new_figure(COLUMN_WIDTH, 2.4)
    for (name, curve), look in zip(curves.items(), style.looks(curves).values(), strict=True):
        percent = 100 * np.atleast_2d(curve)
        ranks = range(1, percent.shape[1] + 1)
        ends = percent.min(axis=0), percent.max(axis=0)
        band(ax, ranks, percent.mean(axis=0), *ends, markevery=0.15, label=name, **look)
    ax.set(xlabel="rank", ylabel="queries matched (%)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="lower right")
    return finish(figure, note)
