"""Figures of data and of what the models do with it; each function takes data and returns a Matplotlib Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import numpy as np
import pandas as pd
from matplotlib.patches import Rectangle

from reid_utils.views.style import (
    BLUE,
    COLUMN_WIDTH,
    GREY,
    MARKERS,
    PALETTE,
    TEXT_WIDTH,
    VERMILLION,
    finish,
    new_figure,
)

_MANY_POINTS = 2000  # more than these are stored as pixels inside an SVG


def set_statistics(manifest, sizes, note=None):
    """Images a player, and the aspect ratios, heights and widths of the crops, by split.

    manifest: DataFrame with split and player (hidden players, missing or negative, are left out of the first panel);
    sizes: (images, 2) of height and width in pixels, in manifest order. Returns a text-width Figure with four axes.
    """
    sizes = np.asarray(sizes).astype(int)
    if sizes.shape != (len(manifest), 2):
        raise ValueError(f"sizes have shape {sizes.shape}; give (height, width) of all {len(manifest)} images")
    known = manifest[manifest.player.notna() & ~manifest.player.isin([-1, "-1", ""])]
    counts = known.groupby(["split", "player"], sort=False, observed=True).size().reset_index(name="images")
    height, width = sizes.T
    table = manifest[["split"]].assign(height=height, width=width, aspect=height / width)
    figure, axes = new_figure(TEXT_WIDTH, 3.8, 2, 2)
    colours = dict(zip(table.split.unique(), PALETTE * len(table), strict=False))
    _split_histogram(axes[0, 0], counts, "images", "images a player", "share of players (%)", colours)
    _split_histogram(axes[0, 1], table, "aspect", "height / width", "share of images (%)", colours)
    _split_histogram(axes[1, 0], table, "height", "height (pixels)", "share of images (%)", colours)
    _split_histogram(axes[1, 1], table, "width", "width (pixels)", "share of images (%)", colours)
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=len(colours))
    return finish(figure, note)


def _split_histogram(ax, table, column, x_label, y_label, colours):
    """Step histograms of one column, one a split, in per cent of the split."""
    ax.set(xlabel=x_label, ylabel=y_label)
    if table.empty:
        ax.text(0.5, 0.5, "players are hidden", transform=ax.transAxes, ha="center")
        return
    # Whole numbers get bins of a whole width: other bins would hold two of them here and three there.
    is_count = pd.api.types.is_integer_dtype(table[column])
    step = max(1, int(np.ptp(table[column]) // 25)) if is_count else 0
    bins = np.arange(table[column].min(), table[column].max() + 1 + step, step) - 0.5 if is_count else 30
    edges = np.histogram_bin_edges(table[column], bins)
    for split, part in table.groupby("split", sort=False, observed=True):
        weights = np.full(len(part), 100 / len(part))
        ax.hist(part[column], edges, weights=weights, histtype="step", color=colours[split], label=split)
    if np.ptp(table[column]) == 0:
        ax.set_xticks([table[column].iloc[0]])
        return
    ax.xaxis.get_major_locator().set_params(integer=is_count)


def training_curves(history, note=None):
    """Loss, mAP and rank-1 over the epochs: a thin line a seed, a thick one for their mean.

    history: DataFrame with seed, epoch, loss, mAP and rank1 (fractions, NaN where not measured) and optionally label, a
    series each. Returns a text-width Figure with three axes.
    """
    table = history if "label" in history else history.assign(label="")
    percent = table.assign(mAP=100 * table.mAP, rank1=100 * table.rank1)
    figure, axes = new_figure(TEXT_WIDTH, 2.3, 1, 3)
    columns = {"loss": "training loss (nats)", "mAP": "mAP (%)", "rank1": "rank-1 (%)"}
    for ax, (column, y_label) in zip(axes[0], columns.items(), strict=True):
        measured = percent.dropna(subset=[column])
        for k, (label, series) in enumerate(measured.groupby("label", sort=False)):
            colour = PALETTE[k % len(PALETTE)]
            for _, run in series.groupby("seed"):
                ax.plot(run.epoch, run[column], color=colour, linestyle="-", linewidth=0.5, alpha=0.5)
            mean = series.groupby("epoch")[column].mean()
            ax.plot(mean.index, mean, color=colour, linestyle="-", marker=MARKERS[k % 7], label=label)
        ax.set(xlabel="epoch", ylabel=y_label)
        ax.xaxis.get_major_locator().set_params(integer=True)
    if "label" in history:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return finish(figure, note)


def _annotated_map(ax, percent, x_labels, y_labels, digits=1, **settings):
    """A heat map with its values written in the cells where they fit; `settings` go to imshow. Returns the image."""
    image = ax.imshow(percent, aspect="auto", **settings)
    ax.set(xticks=range(len(x_labels)), yticks=range(len(y_labels)), xticklabels=x_labels, yticklabels=y_labels)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    if percent.shape[1] <= 8 and percent.shape[0] <= 10:
        for (y, x), value in np.ndenumerate(percent):
            if np.isfinite(value):
                colour = "white" if image.norm(value) < 0.5 else "black"
                ax.text(x, y, f"{value:.{digits}f}", ha="center", va="center", color=colour, fontsize=7)
    return image


def sensitivity_map(values, x_values, y_values, x_label, y_label, mark=None, value_label="mAP (%)", note=None):
    """How a score depends on two settings, such as k1 and k2.

    values: (y_values, x_values) fractions, NaN where not measured; mark: the (x, y) setting to outline, such as the
    published one. Returns a column-width Figure: one map and its colour bar. Raises ValueError for a wrong shape or a
    mark that is off the map.
    """
    values, x_values, y_values = np.asarray(values, dtype=float), list(x_values), list(y_values)
    if values.shape != (len(y_values), len(x_values)):
        raise ValueError(
            f"values have shape {values.shape}; give ({len(y_values)}, {len(x_values)}), a row a {y_label}"
        )
    if mark is not None and (mark[0] not in x_values or mark[1] not in y_values):
        raise ValueError(f"mark {mark} is off the map; give one of its ({x_label}, {y_label}) pairs")
    figure, axes = new_figure(COLUMN_WIDTH, 0.9 + 0.25 * len(y_values))
    image = _annotated_map(axes[0, 0], 100 * values, x_values, y_values, origin="lower")
    axes[0, 0].set(xlabel=x_label, ylabel=y_label)
    if mark is not None:
        x, y = x_values.index(mark[0]) - 0.5, y_values.index(mark[1]) - 0.5
        frame = axes[0, 0].add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=VERMILLION, linewidth=2))
        frame.set_clip_on(False)
    figure.colorbar(image, ax=axes[0, 0], label=value_label)
    return finish(figure, note)


def error_overlap(matrix, names, note=None):
    """Share of the queries failed by one model that another fails too.

    matrix: (models, models) fractions; entry (i, j) is the share of the queries failed by i that j fails as well, NaN
    where i fails none. Returns a column-width Figure with one map and its colour bar.
    """
    matrix = np.asarray(matrix, dtype=float)
    if matrix.shape != (len(names), len(names)):
        raise ValueError(f"matrix has shape {matrix.shape} for {len(names)} names; give (models, models)")
    figure, axes = new_figure(COLUMN_WIDTH, 1.3 + 0.3 * len(names))
    image = _annotated_map(axes[0, 0], 100 * matrix, names, names, digits=0, vmin=0, vmax=100)
    axes[0, 0].set(xlabel="also failed by", ylabel="queries failed by")
    axes[0, 0].tick_params(axis="x", rotation=30)
    figure.colorbar(image, ax=axes[0, 0], label="share (%)")
    return finish(figure, note)


def distance_histograms(groups, x_label="squared Euclidean distance", note=None):
    """Distances of genuine pairs (same player) and impostor pairs, each as a density.

    groups: dict of name → 1-D distances, such as {"genuine": …, "impostor": …}. Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 2.2)
    _overlaid(axes[0, 0], groups, 60, x_label, "density", density=True)
    return finish(figure, note)


def jaccard_histogram(groups, note=None):
    """Jaccard distances of genuine and impostor pairs on a logarithmic count axis, as most pairs share no neighbour.

    groups: dict of name → 1-D distances in [0, 1]. Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 2.2)
    _overlaid(axes[0, 0], groups, np.linspace(0, 1, 41), "Jaccard distance", "number of pairs", log=True)
    return finish(figure, note)


def _overlaid(ax, groups, bins, x_label, y_label, **settings):
    """Filled step histograms of 1-D distances over shared bins, told apart by colour and hatching."""
    groups = {name: np.asarray(values, dtype=float).ravel() for name, values in groups.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=bins)
    for k, (name, values) in enumerate(groups.items()):
        style = {"color": PALETTE[k % 7], "hatch": ("", "////", "....")[k % 3], "alpha": 0.55}
        ax.hist(values, edges, histtype="stepfilled", label=f"{name} ({len(values):,} pairs)", **style, **settings)
    ax.set(xlabel=x_label, ylabel=y_label)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)


def cmc_curves(curves, note=None):
    """Share of queries with a match among the first r gallery images, over the rank r.

    curves: dict of name → (ranks,) fractions from rank 1 on. Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 2.4)
    for k, (name, curve) in enumerate(curves.items()):
        ranks = np.arange(1, len(curve) + 1)
        axes[0, 0].plot(ranks, 100 * np.asarray(curve), marker=MARKERS[k % 7], markevery=0.15, label=name)
    axes[0, 0].set(xlabel="rank", ylabel="queries matched (%)")
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(loc="lower right")
    return finish(figure, note)


def embedding_map(maps, dispersion, note=None):
    """Two-dimensional maps (t-SNE) of features, one a model; a player has one colour and sign in all of them.

    maps: dict of title → (points (images, 2), players (images,)); dispersion: dict of title → mean pairwise distance
    of the query features, printed above the map. Returns a text-width Figure with an axes a map.
    """
    figure, axes = new_figure(TEXT_WIDTH, min(TEXT_WIDTH / len(maps), 3.4) + 0.8, 1, len(maps))
    names = np.unique(np.concatenate([np.asarray(players) for _, players in maps.values()]))
    for ax, (title, (points, players)) in zip(axes[0], maps.items(), strict=True):
        points, players = np.asarray(points), np.asarray(players)
        for k, name in enumerate(names):
            style = {"color": PALETTE[k % 7], "marker": MARKERS[k // 7 % 7], "s": 9, "linewidths": 0}
            ax.scatter(*points[players == name].T, **style, alpha=0.7, rasterized=len(points) > _MANY_POINTS)
        ax.set_title(f"{title}\nmean pairwise distance\nof queries {dispersion[title]:.2f}")
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", box_aspect=1)
    return finish(figure, note)


def fusion_weights(weights, models, note=None):
    """Weights that the models get over the queries: a box a model, a panel a fusion; a line marks equal weights.

    weights: dict of name → (queries, models), rows summing to 1; models: their names. Returns a text-width Figure.
    """
    figure, axes = new_figure(TEXT_WIDTH, 2.4, 1, len(weights), sharey=True)
    for ax, (name, values) in zip(axes[0], weights.items(), strict=True):
        values = np.asarray(values)
        if values.shape[1:] != (len(models),):
            raise ValueError(f"weights of {name!r} have shape {values.shape}; give (queries, {len(models)})")
        ax.boxplot(
            values, tick_labels=models, flierprops={"markersize": 2}, medianprops={"color": BLUE, "linewidth": 2}
        )
        ax.axhline(1 / len(models), color=GREY, linestyle=":", linewidth=1, zorder=0)
        ax.set_title(name)
        ax.tick_params(axis="x", rotation=20)
    axes[0, 0].set_ylabel("weight in a query's mean")
    return finish(figure, note)
