"""Figures that compare the rows of a table, or a method with itself; each takes data and returns a Figure.

Scores come in as fractions and are shown in per cent. `note` is printed small in the lower right corner.
"""

import numpy as np
from matplotlib.lines import Line2D

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
    finish,
    new_figure,
)

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
