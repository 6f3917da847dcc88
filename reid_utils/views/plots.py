"""Figures of data and of what the models do with it; each function takes data and returns a Matplotlib Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from reid_utils.views import style
from reid_utils.views.style import BLACK, BLUE, COLUMN_WIDTH, GREY, TEXT_WIDTH, finish, new_figure, printable

_MANY_POINTS = 2000  # more than these are stored as pixels inside an SVG


def set_statistics(manifest, sizes, note=None):
    """Images per player, and the aspect ratios, heights and widths of the crops, by split.

    manifest: DataFrame with split and player (hidden players, missing or negative, are left out of the first panel);
    sizes: (images, 2) of height and width in pixels, in manifest order. Returns a text-width Figure with four axes.
    """
    sizes = np.asarray(sizes).astype(int)
    if sizes.shape != (len(manifest), 2):
        raise ValueError(f"sizes have shape {sizes.shape}; give (height, width) of all {len(manifest)} images")
    hidden = manifest.player.isna() | manifest.player.isin([-1, "-1", ""])
    counts = manifest[~hidden].groupby(["split", "player"], sort=False, observed=True).size().reset_index(name="images")
    height, width = sizes.T
    table = manifest[["split"]].assign(height=height, width=width, aspect=height / width)
    figure, axes = new_figure(TEXT_WIDTH, 3.8, 2, 2)
    colours = dict(zip(table.split.unique(), style.PALETTE * len(table), strict=False))
    _by_split(axes[0, 0], counts, "images", "images per player", "players", colours)
    if len(counts) and (missing := [split for split in colours if split not in set(counts.split)]):
        axes[0, 0].set_title(f"{', '.join(map(str, missing))}: players hidden", fontsize=7, loc="right")
    for ax, column in zip(axes.flat[1:], ("aspect", "height", "width"), strict=True):
        unit = "height / width" if column == "aspect" else f"{column} (pixels)"
        _by_split(ax, table, column, unit, "images", colours)
    handles = [Line2D([], [], color=colour, linestyle="-", label=printable(split)) for split, colour in colours.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(colours))
    return finish(figure, note)


def _by_split(ax, table, column, x_label, counted, colours):
    """A column in each split: step histograms, or bars where every split has one value throughout."""
    import seaborn as sns

    ax.set(xlabel=x_label)
    if table.empty:
        ax.text(0.5, 0.5, "players are hidden", transform=ax.transAxes, ha="center")
        return
    values = table.groupby("split", sort=False, observed=True)[column]
    if (values.nunique() == 1).all():
        each = [f"each of {n:,} {counted}: {value:.4g}" for n, value in zip(values.size(), values.first(), strict=True)]
        bars = ax.barh(list(map(printable, values.groups)), values.first(), color=[colours[s] for s in values.groups])
        ax.bar_label(bars, each, label_type="center", fontsize=7, color="white", weight="bold")
        ax.invert_yaxis()
        ax.xaxis.get_major_locator().set_params(integer=True)
        return
    # Whole numbers get bins of a whole width: other bins would hold two of them here and three there.
    is_count = pd.api.types.is_integer_dtype(table[column])
    low, high = table[column].min(), table[column].max()
    bins = np.arange(low, high + 2 * (step := max(1, int((high - low) // 25))), step) - 0.5 if is_count else 30
    sns.histplot(table, x=column, hue="split", palette=colours, bins=bins, stat="percent", common_norm=False,
                 element="step", fill=False, legend=False, ax=ax)  # fmt: skip
    ax.set(xlabel=x_label, ylabel=f"share of {counted} (%)")
    ax.xaxis.get_major_locator().set_params(integer=is_count)


def training_curves(history, note=None):
    """Loss, mAP and rank-1 over the epochs: a thin line for each seed, a thick one for their mean.

    history: DataFrame with seed, epoch, loss, mAP and rank1 (fractions, NaN where not measured) and optionally label,
    one for each series. Dotted lines lead over epochs without a measurement. Returns a text-width Figure with three
    axes.
    """
    table = history if "label" in history else history.assign(label="")
    percent = table.assign(mAP=100 * table.mAP, rank1=100 * table.rank1)
    figure, axes = new_figure(TEXT_WIDTH, 2.3, 1, 3)
    looks = style.looks(table.label)
    titles = {"loss": "training loss (nats)", "mAP": "mAP (%)", "rank1": "rank-1 (%)"}
    for ax, (column, title) in zip(axes[0], titles.items(), strict=True):
        for label, lines in percent.dropna(subset=[column]).groupby("label", sort=False):
            look = {"color": looks["palette"][label], "marker": looks["markers"][label], "markeredgewidth": 0}
            _over_epochs(ax, lines.pivot_table(index="epoch", columns="seed", values=column), label, look)
        ax.set(xlabel="epoch", ylabel=title)
        ax.xaxis.get_major_locator().set_params(integer=True)
    if "label" in history:
        if any(line.get_linestyle() == ":" for line in axes[0, 1].lines):
            axes[0, 0].plot([], [], color=GREY, linestyle=":", label="epochs between not validated")
        axes[0, 0].legend()
        style.legend_above(figure, axes[0, 0])
    return finish(figure, note)


def _over_epochs(ax, measured, label, look):
    """One series, measured (epochs × seeds, DataFrame): solid lines only between epochs that follow each other."""
    mean, epochs = measured.mean(axis=1), np.arange(measured.index.min(), measured.index.max() + 1)
    for values, line in ((measured, {"linewidth": 0.5, "alpha": 0.5}), (mean, {"linewidth": 1.2})):
        if len(epochs) > len(measured):
            ax.plot(measured.index, values, color=look["color"], linestyle=":", **line)
        ax.plot(epochs, values.reindex(epochs), color=look["color"], linestyle="-", **line)
    ax.plot(measured.index, mean, linestyle="none", **look)
    ax.plot([], [], linestyle="-", label=label, **look)


def _heat_map(ax, percent, x_labels, y_labels, label, digits, **limits):
    """A heat map with its colour bar, and with its values written in the cells where they fit."""
    import seaborn as sns

    few = percent.shape[1] <= 8 and percent.shape[0] <= 10
    frame = pd.DataFrame(percent, list(map(printable, y_labels)), list(map(printable, x_labels)))
    sns.heatmap(frame, annot=few, fmt=f".{digits}f", annot_kws={"size": 7}, cmap="cividis", ax=ax,
                cbar_kws={"label": label}, **limits)  # fmt: skip
    ax.tick_params(axis="y", rotation=0)


def sensitivity_map(values, x_values, y_values, x_label, y_label, mark=None, note=None):
    """How mAP depends on two settings, such as k1 and k2.

    values: (y_values, x_values) fractions, NaN where not measured; mark: the (x, y) setting to outline, such as the
    published one. Returns a column-width Figure: one map and its colour bar. Raises ValueError for a wrong shape or a
    mark that is off the map.
    """
    values, x_values, y_values = np.asarray(values, dtype=float), list(x_values), list(y_values)
    if values.shape != (len(y_values), len(x_values)):
        raise ValueError(
            f"values have shape {values.shape}; give {(len(y_values), len(x_values))}, one row per {y_label}"
        )
    if mark is not None and (mark[0] not in x_values or mark[1] not in y_values):
        raise ValueError(f"mark {mark} is off the map; give one of its ({x_label}, {y_label}) pairs")
    figure, axes = new_figure(COLUMN_WIDTH, 0.9 + 0.25 * len(y_values))
    _heat_map(axes[0, 0], 100 * values, x_values, y_values, "mAP (%)", digits=1)
    axes[0, 0].set(xlabel=x_label, ylabel=y_label)
    axes[0, 0].invert_yaxis()
    if mark is not None:
        corner, look = (x_values.index(mark[0]), y_values.index(mark[1])), {"edgecolor": style.VERMILLION}
        axes[0, 0].add_patch(Rectangle(corner, 1, 1, fill=False, linewidth=2, clip_on=False, **look))
    return finish(figure, note)


def error_overlap(matrix, names, note=None):
    """Share of the queries failed by one model that another fails too.

    matrix: (models, models) fractions; entry (i, j) is the share of the queries failed by i that j fails as well, NaN
    where i fails none. Returns a column-width Figure with one map and its colour bar.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 1.3 + 0.3 * len(names))
    _heat_map(axes[0, 0], 100 * np.asarray(matrix, dtype=float), names, names, "share (%)", digits=0, vmin=0, vmax=100)
    axes[0, 0].set(xlabel="also failed by", ylabel="queries failed by")
    axes[0, 0].tick_params(axis="x", rotation=30)
    return finish(figure, note)


def distance_histograms(groups, note=None):
    """Squared Euclidean distances of genuine pairs (same player) and impostor pairs, each as a density.

    groups: dict of name → 1-D distances, such as {"genuine": …, "impostor": …}. Returns a column-width Figure.
    """
    figure, ax = _pair_histogram(groups, bins=60, stat="density", common_norm=False)
    ax.set(xlabel="squared Euclidean distance", ylabel="density")
    return finish(figure, note)


def jaccard_histogram(groups, note=None):
    """Jaccard distances of genuine and impostor pairs on a logarithmic count axis, as most pairs share no neighbour.

    groups: dict of name → 1-D distances in [0, 1]. Returns a column-width Figure.
    """
    figure, ax = _pair_histogram(groups, bins=40, binrange=(0, 1))
    ax.set(xlabel="Jaccard distance", ylabel="number of pairs", yscale="log")
    ax.yaxis.set_major_formatter("{x:,.0f}")
    return finish(figure, note)


def _pair_histogram(groups, **settings):
    """Filled steps over shared bins, told apart by colour."""
    import seaborn as sns

    groups = {f"{printable(name)} ({np.size(values):,} pairs)": np.ravel(values) for name, values in groups.items()}
    figure, axes = new_figure(COLUMN_WIDTH, 2.2)
    colours = dict(zip(groups, style.PALETTE, strict=False))
    sns.histplot(groups, element="step", palette=colours, alpha=0.4, ax=axes[0, 0], **settings)
    sns.move_legend(axes[0, 0], "lower center", bbox_to_anchor=(0.5, 1), ncols=2)
    return figure, axes[0, 0]


def cmc_curves(curves, note=None):
    """Share of queries with a match among the first r gallery images, over the rank r.

    curves: dict of name → (ranks,) fractions from rank 1 on. Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 2.4)
    for (name, curve), marker in zip(curves.items(), style.MARKERS * len(curves), strict=False):
        ranks = np.arange(1, len(curve) + 1)
        axes[0, 0].plot(ranks, 100 * np.asarray(curve), marker=marker, markevery=0.15, label=name)
    axes[0, 0].set(xlabel="rank", ylabel="queries matched (%)")
    axes[0, 0].xaxis.get_major_locator().set_params(integer=True)
    axes[0, 0].legend(loc="lower right")
    return finish(figure, note)


def embedding_map(maps, dispersion, note=None):
    """Two-dimensional maps (t-SNE) of features, one per model; a player has one colour and marker in all of them.

    maps: dict of title → (points (images, 2), players (images,)); dispersion: dict of title → mean pairwise distance
    of the query features, printed above the map. Returns a text-width Figure with one axes per map.
    """
    names = np.unique(np.concatenate([np.asarray(players) for _, players in maps.values()]))
    height = min(TEXT_WIDTH / len(maps), 3.4) + 1.2 + 0.15 * -(-len(names) // 7)
    figure, axes = new_figure(TEXT_WIDTH, height, 1, len(maps))
    for ax, (title, (points, players)) in zip(axes[0], maps.items(), strict=True):
        points, players = np.asarray(points), np.asarray(players)
        for k, name in enumerate(names):
            look = {"color": style.PALETTE[k % 7], "marker": style.MARKERS[k // 7 % 7], "s": 9, "linewidths": 0}
            look |= {"alpha": 0.7, "rasterized": len(points) > _MANY_POINTS}
            ax.scatter(*points[players == name].T, **look, label=printable(name))
        ax.set_title(f"{title}\nmean pairwise distance\nof queries {dispersion[title]:.2f}")
        ax.set(xticks=[], yticks=[], xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)", box_aspect=1)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=7, title="colour and marker = player", title_fontsize=7)
    return finish(figure, note)


def fusion_weights(weights, models, note=None):
    """Weights that the models get over the queries: a box per model, a panel per fusion; a line marks equal weights.

    weights: dict of name → (queries, models), rows summing to 1; models: their names. Returns a Figure.
    """
    figure, axes = new_figure(min(COLUMN_WIDTH * len(weights), TEXT_WIDTH), 2.4, 1, len(weights), sharey=True)
    names, median = list(map(printable, models)), {"color": BLUE, "linewidth": 2}
    for ax, (name, values) in zip(axes[0], weights.items(), strict=True):
        if np.shape(values)[1:] != (len(models),):
            raise ValueError(f"weights of {name!r} have shape {np.shape(values)}; give (queries, {len(models)})")
        ax.boxplot(np.asarray(values), tick_labels=names, widths=0.5, flierprops={"markersize": 2}, medianprops=median)
        ax.axhline(1 / len(models), color=GREY, linestyle=":", linewidth=1, zorder=0)
        ax.set(title=name, ylabel="weight in a query's mean")
        ax.label_outer()
    return finish(figure, note)


def bar_with_intervals(frame, value="mAP", label="mAP (%)", note=None):
    """A horizontal bar per row, from zero, with its interval and number.

    frame: DataFrame with row, low, high and the column named `value` (fractions; NaN intervals are not drawn).
    Returns a column-width Figure.
    """
    figure, axes = new_figure(COLUMN_WIDTH, 0.6 + 0.25 * len(frame))
    ax, percent = axes[0, 0], 100 * frame[value].to_numpy(float)
    margins = np.stack([percent - 100 * frame.low, 100 * frame.high - percent])
    style = {"color": BLUE, "alpha": 0.8, "height": 0.65, "ecolor": BLACK, "capsize": 2}
    ax.barh(np.arange(len(frame)), percent, xerr=margins, tick_label=list(map(printable, frame.row)), **style)
    for y, (number, end) in enumerate(zip(percent, np.fmax(percent, 100 * frame.high), strict=True)):
        shown = f"{number:.1f}".replace("-", "−")
        ax.annotate(shown, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=7)
    left, right = ax.get_xlim()
    ax.set(xlabel=label, ylim=(len(frame) - 0.5, -0.5), xlim=(left, right + 0.16 * (right - left)))  # room for numbers
    ax.grid(axis="y", visible=False)
    return finish(figure, note)


def robustness_curves(frame, note=None):
    """mAP under growing damage of the gallery images: a panel per kind of damage, a line and band per label.

    frame: DataFrame with damage (its name and unit), level, label, mAP, low, high (fractions). Returns a text-width
    Figure with one axes per kind of damage.
    """
    import seaborn as sns

    kinds = frame.damage.unique()
    columns = min(len(kinds), 4)
    rows = -(-len(kinds) // columns)
    figure, axes = new_figure(TEXT_WIDTH, 0.3 + 1.9 * rows, rows, columns, sharey=True)
    looks, percent = style.looks(frame.label), frame.assign(mAP=100 * frame.mAP)
    for ax, kind in zip(axes.flat, kinds, strict=False):
        lines = percent[percent.damage == kind].sort_values("level")
        sns.lineplot(lines, x="level", y="mAP", hue="label", style="label", ax=ax,
                     legend=ax is axes[0, 0], dashes=False, **looks)  # fmt: skip
        for label, line in lines.groupby("label", sort=False):
            band = {"color": looks["palette"][label], "alpha": 0.15, "linewidth": 0}
            ax.fill_between(line.level, 100 * line.low, 100 * line.high, **band)
        ax.set(xlabel=kind, ylabel="mAP (%)")
    for ax in axes.flat[len(kinds) :]:
        ax.axis("off")
    style.legend_above(figure, axes[0, 0])
    return finish(figure, note)


def repaired_queries(before, after, labels=("AP before fusion", "AP after fusion"), note=None):
    """Each query's AP before and after a step, such as fusion: points above the diagonal are repaired.

    before, after: (queries,) fractions, NaN where a query has no match (left out); labels: names of the two axes.
    Returns a column-width Figure. Raises ValueError if the lengths differ.
    """
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if before.shape != after.shape:
        raise ValueError(f"{before.shape} values before and {after.shape} after; give the same queries in both")
    frame = pd.DataFrame(100 * np.stack([before, after]).T, columns=[f"{printable(label)} (%)" for label in labels])
    change = np.sign(after - before)
    signs = {"better": (1, style.MATCH, "^"), "worse": (-1, style.MISMATCH, "v"), "same": (0, GREY, "o")}
    figure, axes = new_figure(COLUMN_WIDTH, 3.3)
    for name, (sign, colour, marker) in signs.items():
        chosen = change == sign
        look = {"s": 14, "color": colour, "marker": marker, "alpha": 0.7, "label": f"{name} ({chosen.sum()})"}
        axes[0, 0].scatter(*frame[chosen].to_numpy().T, **look)
    axes[0, 0].axline((0, 0), slope=1, color=GREY, linestyle="-", linewidth=0.8, zorder=0)
    axes[0, 0].set(xlabel=frame.columns[0], ylabel=frame.columns[1], aspect="equal")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, handletextpad=0.2)
    return finish(figure, note)
