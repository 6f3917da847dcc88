"""Figures of data and of what the models do with it; each function takes data and returns a Matplotlib Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from reid_utils.views.style import (
    BLACK,
    BLUE,
    COLUMN_WIDTH,
    GREY,
    MARKERS,
    MATCH,
    MISMATCH,
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


_LEVEL = 0.05  # of the Holm-corrected p that fills a dot
_MANY_ROWS = 45  # of a forest plot; more are set closer


def forest_plot(frame, groups=None, metric="mAP", note=None):
    """Every row with its interval and, beside it, its paired difference to the baseline row.

    frame: from `compare_rows`, or several of them concatenated; groups: a heading a row, equal ones adjacent, such as
    the table's name. A diamond is a baseline, a filled dot differs from it (Holm-corrected p < 0.05), an open dot
    cannot be told from it. Returns a text-width Figure with two axes: scores in per cent, differences in points.
    """
    headings = [""] * len(frame) if groups is None else list(groups)
    if len(headings) != len(frame):
        raise ValueError(f"{len(headings)} groups for {len(frame)} rows; give one a row")
    positions, starts = _forest_positions(headings)
    last = positions[-1]
    step = 0.19 if last < _MANY_ROWS else 0.14  # inches; a page is 10 high
    figure, axes = new_figure(TEXT_WIDTH, 0.9 + step * (last + 1), 1, 2, sharey=True, width_ratios=(1.2, 1))
    scores, changes = axes[0]
    for y, line in zip(positions, frame.to_dict("records"), strict=True):
        _forest_row(scores, changes, y, line, metric)
    for heading, y in starts.items():
        scores.text(
            0, y, f"{heading}  ", transform=scores.get_yaxis_transform(), ha="right", va="center", weight="bold"
        )
    scores.set(yticks=positions, yticklabels=frame.row, xlabel=f"{metric} (%)", ylim=(last + 0.7, -0.7))
    changes.set(xlabel=f"difference to the baseline ({metric} points)")
    changes.text(1.02, 1, "corrected p", transform=changes.transAxes, ha="left", va="bottom", fontsize=7)
    changes.axvline(0, color=BLACK, linewidth=0.8)
    for ax in axes[0]:
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", visible=False)
    figure.legend(handles=_forest_legend(), loc="outside upper center", ncols=3)
    return finish(figure, note)


def _forest_positions(headings):
    """Heights of the rows, counted from the top, and of each heading above its group."""
    positions, starts, y = [], {}, -1
    for heading in headings:
        if heading and heading not in starts:
            y += 1.4 if starts else 1
            starts[heading] = y
        y += 1
        positions.append(y)
    return positions, starts


def _forest_row(scores, changes, y, line, metric):
    """Draws one row of the forest plot on both axes."""
    is_baseline = np.isnan(line["difference"])
    told_apart = line["p_holm"] < _LEVEL
    style = {"color": BLACK if is_baseline else BLUE, "marker": "D" if is_baseline else "o", "markersize": 4}
    style |= {"markerfacecolor": style["color"] if is_baseline or told_apart else "white", "linestyle": ""}
    for ax, value, low, high in (
        (scores, line[metric], line["low"], line["high"]),
        (changes, line["difference"], line["diff_low"], line["diff_high"]),
    ):
        ax.plot([100 * low, 100 * high], [y, y], color=style["color"], linestyle="-", linewidth=1)
        ax.plot(100 * value, y, **style)
    if not is_baseline:
        text = "< 0.001" if line["p_holm"] < 0.001 else f"{line['p_holm']:.3f}"
        changes.text(1.02, y, text, transform=changes.get_yaxis_transform(), va="center", fontsize=7)


def _forest_legend():
    """The three signs of the forest plot."""
    styles = {"baseline": (BLACK, BLACK, "D"), "differs (corrected p < 0.05)": (BLUE, BLUE, "o")}
    styles["cannot be told from the baseline"] = (BLUE, "white", "o")
    return [
        Line2D([], [], color=colour, markerfacecolor=face, marker=marker, linestyle="-", linewidth=1, label=label)
        for label, (colour, face, marker) in styles.items()
    ]


def bar_with_intervals(frame, value="mAP", label="mAP (%)", note=None):
    """A horizontal bar a row, from zero, with its interval and number.

    frame: DataFrame with row, low, high and the column named `value` (fractions; NaN intervals are not drawn).
    Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 0.6 + 0.25 * len(frame))
    ax, y, percent = axes[0, 0], np.arange(len(frame)), 100 * frame[value].to_numpy(float)
    margins = np.stack([percent - 100 * frame.low, 100 * frame.high - percent])
    ax.barh(y, percent, xerr=margins, color=BLUE, alpha=0.8, height=0.65, ecolor=BLACK, capsize=2)
    for height, number, end in zip(y, percent, np.fmax(percent, 100 * frame.high), strict=True):
        shown = f"{number:.1f}".replace("-", "−")
        ax.annotate(shown, (end, height), (4, 0), textcoords="offset points", va="center", fontsize=7)
    ax.set(yticks=y, yticklabels=frame.row, xlabel=label, ylim=(len(frame) - 0.5, -0.5))
    ax.grid(axis="y", visible=False)
    return finish(figure, note)


def robustness_curves(frame, note=None):
    """mAP under growing damage of the gallery images: a panel a kind of damage, a line and band a label.

    frame: DataFrame with knob (name and unit of the damage), level, label, mAP, low, high (fractions). Returns a
    text-width Figure with an axes a knob.
    """
    knobs = frame.knob.unique()
    columns = min(len(knobs), 4)
    rows = -(-len(knobs) // columns)
    figure, axes = new_figure(TEXT_WIDTH, 0.3 + 1.9 * rows, rows, columns, sharey=True)
    for ax, knob in zip(axes.flat, knobs, strict=False):
        for k, (label, line) in enumerate(frame[frame.knob == knob].groupby("label", sort=False)):
            line, colour = line.sort_values("level"), PALETTE[k % 7]
            ax.plot(line.level, 100 * line.mAP, color=colour, linestyle="-", marker=MARKERS[k % 7], label=label)
            ax.fill_between(line.level, 100 * line.low, 100 * line.high, color=colour, alpha=0.15, linewidth=0)
        ax.set_xlabel(knob)
    for ax in axes.flat[len(knobs) :]:
        ax.axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel("mAP (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return finish(figure, note)


def repaired_queries(before, after, labels=("AP before fusion", "AP after fusion"), note=None):
    """Each query's AP before and after a step, such as fusion: points above the diagonal are repaired.

    before, after: (queries,) fractions, NaN where a query has no match (left out); labels: names of the two axes.
    Returns a column-width Figure. Raises ValueError if the lengths differ.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} values before and {after.shape} after; give the same queries in both")
    change = after - before
    figure, axes = new_figure(COLUMN_WIDTH, 3.3)
    ax = axes[0, 0]
    ax.plot([0, 100], [0, 100], color=GREY, linestyle="-", linewidth=0.8, zorder=0)
    groups = {
        "better": (change > 0, MATCH, "^"),
        "worse": (change < 0, MISMATCH, "v"),
        "same": (change == 0, GREY, "o"),
    }
    for name, (chosen, colour, marker) in groups.items():
        label = f"{name} ({chosen.sum()})"
        ax.scatter(100 * before[chosen], 100 * after[chosen], s=14, color=colour, marker=marker, alpha=0.7, label=label)
    ax.set(xlabel=f"{labels[0]} (%)", ylabel=f"{labels[1]} (%)", aspect="equal")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3, handletextpad=0.2)
    return finish(figure, note)
