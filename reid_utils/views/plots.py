"""Figures of data and of what the models do with it; each function takes data and returns a Matplotlib Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import textwrap
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator

from reid_utils.views import style
from reid_utils.views.style import BLACK, BLUE, COLUMN_WIDTH, GREY, TEXT_WIDTH, finish, new_figure, printable

_MANY_POINTS = 2000  # more than these are stored as pixels inside an SVG


def set_statistics(manifest, sizes, note=None):
    """Images per player, and the aspect ratios, heights and widths of the crops: a cumulative curve for each split.

    manifest: DataFrame with split and player (hidden players, missing or negative, are left out of the first panel);
    sizes: (images, 2) of height and width in pixels, in manifest order. Returns a text-width Figure with four axes.
    """
    import seaborn as sns

    height, width = np.asarray(sizes).T
    images = manifest[["split", "player"]].assign(height=height, width=width, aspect=height / width)
    players = images[images.player >= 0].groupby(["split", "player"], sort=False).size().reset_index(name="count")
    figure, axes = new_figure(TEXT_WIDTH, 3.6, 2, 2)
    looks = style.looks(images.split)
    titles = {"count": "images per player", "aspect": "height / width"}
    titles |= {"height": "height (pixels)", "width": "width (pixels)"}
    for ax, (column, title) in zip(axes.flat, titles.items(), strict=True):
        counted, table = ("players", players) if column == "count" else ("images", images)
        for split, look in looks.items():
            values = table.loc[table.split == split, column]
            sns.ecdfplot(values, stat="percent", ax=ax, color=look["color"], linestyle="-", label=split)
        ax.set(xlabel=title, ylabel=f"{counted} ≤ x (%)")
        ax.set_xlim(0)
    if absent := [split for split in looks if split not in set(players.split)]:
        axes[0, 0].set_title(f"{', '.join(absent)}: players hidden", fontsize="small", loc="right")
    style.legend_above(figure, axes[0, 1])
    return finish(figure, note)


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


def _heat_map(ax, percent, x_labels, y_labels, label, digits, extend="neither", **limits):
    """A heat map with its colour bar, and with its values written in the cells where they fit."""
    import seaborn as sns

    few = percent.shape[1] <= 8 and percent.shape[0] <= 10
    frame = pd.DataFrame(percent, list(map(printable, y_labels)), list(map(printable, x_labels)))
    sns.heatmap(frame, annot=few, fmt=f".{digits}f", annot_kws={"size": "small"}, cmap="cividis", ax=ax,
                cbar_kws={"label": label, "extend": extend}, **limits)  # fmt: skip
    ax.tick_params(axis="y", rotation=0)
    ax.grid(False)


def sensitivity_map(values, x_values, y_values, x_label, y_label, mark=None, note=None):
    """How mAP depends on two settings, such as k1 and k2.

    values: (y_values, x_values) fractions, NaN where not measured; mark: the (x, y) setting to outline, such as the
    published one. Colours begin at the second lowest value or, of more than 51, above the lowest 2 %: one outlier does
    not flatten the rest. Returns a column-width Figure: one map and its colour bar. Raises ValueError for a wrong shape
    or a mark that is off the map.
    """
    values, x_values, y_values = 100 * np.asarray(values, dtype=float), list(x_values), list(y_values)
    figure, ax = new_figure(COLUMN_WIDTH, 0.9 + 0.25 * len(y_values))
    least = np.nanpercentile(values, 2, method="higher")
    _heat_map(ax, values, x_values, y_values, "mAP (%)", digits=1, vmin=least, extend="min")
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.invert_yaxis()
    if mark is not None:
        corner = x_values.index(mark[0]), y_values.index(mark[1])
        ax.add_patch(Rectangle(corner, 1, 1, fill=False, linewidth=2, clip_on=False, edgecolor=style.VERMILLION))
    return finish(figure, note)


def error_overlap(matrix, names, note=None):
    """Share of the queries failed by one model that another fails too.

    matrix: (models, models) fractions; entry (i, j) is the share of the queries failed by i that j fails as well, NaN
    where i fails none. The diagonal, 1 by definition, is left blank. Returns a column-width Figure with one map.
    """
    names = [textwrap.fill(name, 18) for name in names]
    shares = np.where(np.eye(len(names), dtype=bool), np.nan, 100 * np.asarray(matrix, dtype=float))
    figure, ax = new_figure(COLUMN_WIDTH, 1.6 + 0.42 * len(names))
    _heat_map(ax, shares, names, names, "share (%)", digits=0, vmin=0, vmax=np.nan_to_num(shares).max() or 100)
    ax.set(xlabel="also failed by", ylabel="failed by")
    ax.tick_params(axis="x", rotation=90)
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
        ranks = np.arange(1, percent.shape[1] + 1)
        ax.plot(ranks, percent.mean(axis=0), linestyle="-", markevery=0.15, label=name, **look)
        ax.fill_between(ranks, percent.min(axis=0), percent.max(axis=0), color=look["color"], alpha=0.15, linewidth=0)
    ax.set(xlabel="rank", ylabel="queries matched (%)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend(loc="lower right")
    return finish(figure, note)


def embedding_map(maps, dispersion, note=None):
    """Two-dimensional maps (t-SNE) of features, one per model; a player has one colour and marker in all of them.

    maps: dict of title → (points (images, 2), players (images,)); dispersion: dict of title → mean pairwise distance
    of the query features, printed above the map. Returns a text-width Figure with one axes per map.
    """
    names, columns = np.unique(np.concatenate([players for _, players in maps.values()])), len(style.PALETTE)
    looks = style.looks(names)
    height = min(TEXT_WIDTH / len(maps), COLUMN_WIDTH) + 0.7 + 0.15 * -(-len(names) // columns)
    figure, axes = new_figure(TEXT_WIDTH, height, 1, len(maps), squeeze=False)
    for ax, (title, (points, players)) in zip(axes[0], maps.items(), strict=True):
        for name in names:
            of_player = np.asarray(points)[np.asarray(players) == name].T
            many = len(points) > _MANY_POINTS
            ax.scatter(*of_player, s=9, alpha=0.7, linewidths=0, rasterized=many, label=name, **looks[name])
        ax.set_title(f"{title}\nmean query distance {dispersion[title]:.2f}")
        ax.set(xticks=[], yticks=[], xlabel="t-SNE axis 1", ylabel="t-SNE axis 2", box_aspect=1)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns, title="colour and marker: player")
    return finish(figure, note)


def fusion_weights(weights, models, note=None):
    """Weights that the models get over the queries, a box per model; a line marks equal weights.

    weights: (queries, models), rows summing to 1; models: their names. Returns a column-width Figure.
    """
    figure, ax = new_figure(COLUMN_WIDTH, 2.4)
    look = {"flierprops": {"markersize": 2}, "medianprops": {"color": BLUE, "linewidth": 2}}
    labels = [textwrap.fill(printable(name), max(1, 45 // len(models))) for name in models]
    ax.boxplot(np.asarray(weights), tick_labels=labels, widths=0.5, **look)
    ax.axhline(1 / len(models), color=GREY, linestyle=":", linewidth=1, zorder=0)
    ax.set(ylabel="weight of the model")
    return finish(figure, note)


def bar_with_intervals(frame, value="mAP", label="mAP (%)", note=None):
    """A horizontal bar per row, from zero, with its interval and number.

    frame: DataFrame with row, low, high and the column named `value` (fractions; NaN intervals are not drawn).
    Returns a column-width Figure.
    """
    figure, ax = new_figure(COLUMN_WIDTH, 0.6 + 0.25 * len(frame))
    percent = 100 * frame[value].to_numpy(float)
    margins = np.nan_to_num([percent - 100 * frame.low, 100 * frame.high - percent])
    bars = ax.barh(
        np.arange(len(frame)), percent, xerr=margins, tick_label=list(map(printable, frame.row)),
        color=BLUE, alpha=0.8, height=0.65, ecolor=BLACK, capsize=2,
    )  # fmt: skip
    ax.bar_label(bars, fmt="{:.1f}", padding=4, fontsize="small")
    ax.set(xlabel=label, ylim=(len(frame) - 0.5, -0.5), xmargin=0.22)  # room for the numbers
    ax.grid(axis="y", visible=False)
    return finish(figure, note)


def flow_chart(stages, note=None):
    """Steps of a method as boxes, from left to right: arrows join like to like, or all to all where numbers differ.

    stages: list of lists of text, a box each. Returns a text-width Figure with one axes.
    """
    most, former = max(map(len, stages)), []
    figure, ax = new_figure(TEXT_WIDTH, 0.3 + 0.5 * most)
    look = {
        "fontsize": "small",
        "ha": "center",
        "va": "center",
        "bbox": {"boxstyle": "round", "fc": "white", "ec": BLUE},
    }
    for x, texts in enumerate(stages):
        top = (most - len(texts)) / 2
        boxes = [ax.text(x, top + y, textwrap.fill(text, 18), **look) for y, text in enumerate(texts)]
        for one, other in (zip if len(former) == len(boxes) else product)(former, boxes):
            ends = {"patchA": one.get_bbox_patch(), "patchB": other.get_bbox_patch()}
            ax.annotate("", other.get_position(), one.get_position(), arrowprops={"arrowstyle": "-|>", **ends})
        former = boxes
    ax.set(xlim=(-0.5, len(stages) - 0.5), ylim=(most - 0.5, -0.5))
    ax.axis("off")
    return finish(figure, note)


def cost_plot(frame, note=None):
    """Accuracy against cost: mAP with its interval over GFLOPs, filled for plain distances, open for re-ranked ones.

    frame: T4's csv as `pd.read_csv` gives it, rows called "model, plain" or "model, re-ranked (…)"; those of equal cost
    stand side by side. Returns a column-width Figure.
    """
    aside = (frame.GFLOPs.max() / frame.GFLOPs.min()) ** (0.015 * frame.groupby("GFLOPs").cumcount())
    frame = frame.assign(
        x=frame.GFLOPs * aside, below=frame.mAP - frame["mAP low"], above=frame["mAP high"] - frame.mAP
    )
    names = frame.row.str.rpartition(", ")
    looks = style.looks(names[0])
    figure, ax = new_figure(COLUMN_WIDTH, 2.6)
    for (model, plain), rows in frame.groupby([names[0], names[2] == "plain"], sort=False):
        look = {"label": model, **looks[model]} if plain else {"markerfacecolor": "white", **looks[model]}
        ax.errorbar(rows.x, rows.mAP, rows[["below", "above"]].T, linestyle="none", **look)
    ax.set(xlabel="GFLOPs an image", ylabel="mAP (%)", xscale="log")
    ax.set_title("filled: plain distances, open: re-ranked", fontsize="small")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    style.legend_above(figure, ax)
    return finish(figure, note)


def robustness_curves(frame, note=None):
    """mAP under growing damage of the gallery images: a panel per kind of damage, a line and band per label.

    frame: DataFrame with damage (its name and unit), level, label, mAP, low, high (fractions). Returns a text-width
    Figure with one axes per kind of damage.
    """
    figure, (axes,) = new_figure(TEXT_WIDTH, 2.3, 1, frame.damage.nunique(), sharey=True, squeeze=False)
    looks = style.looks(frame.label)
    for ax, (kind, of_kind) in zip(axes, frame.groupby("damage", sort=False), strict=True):
        for label, line in of_kind.sort_values("level").groupby("label", sort=False):
            ax.plot(line.level, 100 * line.mAP, linestyle="-", label=label, **looks[label])
            low, high = 100 * line.low, 100 * line.high
            ax.fill_between(line.level, low, high, color=looks[label]["color"], alpha=0.15, linewidth=0)
        ax.set(xlabel=textwrap.fill(kind, 20), ylabel="mAP (%)")
    style.legend_above(figure, axes[0])
    return finish(figure, note)


def repaired_queries(before, after, labels, note=None):
    """Each query's AP before and after a step, such as fusion: points above the diagonal are repaired.

    before, after: (queries,) fractions, NaN where a query has no match (left out); labels: names of the two axes.
    Returns a column-width Figure.
    """
    percent = 100 * np.asarray([before, after], dtype=float)
    figure, ax = new_figure(COLUMN_WIDTH, 3.3)
    signs = {"better": (1, style.MATCH, "^"), "worse": (-1, style.MISMATCH, "v"), "same": (0, GREY, "o")}
    for name, (sign, colour, marker) in signs.items():
        chosen = np.sign(np.subtract(after, before)) == sign
        label = f"{name} ({chosen.sum()})"
        ax.scatter(*percent[:, chosen], s=14, color=colour, marker=marker, alpha=0.7, label=label)
    ax.axline((0, 0), slope=1, color=GREY, linestyle="-", linewidth=0.8, zorder=0)
    ax.set(xlabel=f"{labels[0]} (%)", ylabel=f"{labels[1]} (%)", aspect="equal")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, handletextpad=0.2)
    return finish(figure, note)
