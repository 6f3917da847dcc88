"""Forest plots: every row of a table, or of several, with its interval and its difference from the baseline."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.lines import Line2D

from reid_utils.paper.results import cell_text
from reid_utils.ranking.statistics import p_text
from reid_utils.views.style import BLACK, BLUE, COLUMN_WIDTH, TEXT_WIDTH, finish, new_figure, printable

_LEVEL = 0.05  # of the Holm-corrected p that fills a dot
_MANY_ROWS = 45  # more are set closer
_PALE = "#99C7E0"  # a shade of BLUE on which a thin line of it can be seen
_SIGNS = {
    "baseline": {"marker": "D", "color": BLACK},
    "differs (Holm's p < 0.05)": {"marker": "o", "color": BLUE},
    "no significant difference": {"marker": "o", "color": BLUE, "markerfacecolor": "white"},
}
_PER_CENT = ["mAP", "low", "high", "difference", "diff_low", "diff_high", "queries_low", "queries_high"]


def forest_plot(frame, groups=None, note=None):
    """Every row's mAP with its interval and, in a second panel, its difference from the baseline row.

    frame: from `compare_rows`, or a table's csv as `pd.read_csv` gives it, or several of one kind concatenated; groups:
    a heading per row, equal ones adjacent, such as the table's name. A diamond is a baseline, a filled dot differs from
    it (Holm-corrected p < 0.05), an open dot does not. Thin lines are the full intervals of differences (over seeds and
    queries), thick pale ones hold the trained networks fixed (columns queries_low, queries_high, where present). p is
    shown as in the tables. Returns a text-width Figure with two axes: scores in per cent, differences in points.
    """
    frame = _in_per_cent(frame)
    figure, (scores, changes) = new_figure(TEXT_WIDTH, 1, 1, 2, sharey=True, width_ratios=(1.2, 1))
    step = 0.19 if len(frame) < _MANY_ROWS else 0.14  # inches; a page is 10 high
    heights = _lay_out(scores, [""] * len(frame) if groups is None else groups, map(printable, frame.row), step)
    _draw(scores, heights, frame, "mAP", "low", "high")
    _draw_differences(changes, heights, frame)
    p_values = zip(frame.p_holm, frame.at_floor, strict=True)
    _write_beside(changes, "corrected p", heights, [cell_text(p_text(p, at_floor)) for p, at_floor in p_values])
    scores.set_xlabel("mAP (%)")
    figure.legend(handles=_legend("queries_low" in frame), loc="outside upper center", ncols=3)
    return finish(figure, note)


def table_plot(frame, note=None):
    """A table at column width: each row's difference from its baseline with its intervals, its mAP at the right.

    frame: as `forest_plot` takes it, signs as there. Rows called "models: fusion" stand below their models. Returns a
    column-width Figure with one axes, in points of mAP.
    """
    frame = _in_per_cent(frame)
    parts = frame.row.map(printable).str.rpartition(": ")
    labels = [textwrap.fill(name, 24, break_on_hyphens=False) for name in parts[2]]
    step = 0.05 + 0.11 * max(label.count("\n") + 1 for label in labels)  # inches, for the label with most lines
    figure, ax = new_figure(COLUMN_WIDTH, 1)
    heights = _lay_out(ax, parts[0], labels, step)
    _draw_differences(ax, heights, frame)
    _write_beside(ax, "mAP (%)", heights, frame.mAP.map("{:.1f}".format))
    ax.spines["left"].set_visible(False)
    figure.legend(handles=_legend("queries_low" in frame), loc="outside upper left", ncols=2, handlelength=1.4)
    return finish(figure, note)


def _lay_out(ax, headings, labels, step):
    """Label rows `step` inches apart, each run of equal headings below a line that names it -> their heights (n,)."""
    headings = pd.Series(list(headings), dtype=object)
    begins = (headings != headings.shift()) & (headings != "")
    heights = np.arange(len(headings)) + begins.cumsum().to_numpy()
    look = {"va": "center", "fontsize": "small", "style": "italic", "bbox": {"color": "white", "pad": 0}}
    for y, heading in zip(heights[begins] - 1, headings[begins], strict=True):  # over the panel, no part of the layout
        text, place = textwrap.shorten(heading, 55, placeholder=" …"), ("figure fraction", "data")
        ax.annotate(text, (0.01, y), xycoords=place, in_layout=False, **look)
    ax.set(yticks=heights, yticklabels=labels, ylim=(heights[-1] + 0.6, -0.6))
    ax.figure.set_figheight(1.45 + step * (heights[-1] + 1))
    return heights


def _in_per_cent(frame):
    """A comparison, or a table's csv, in one form: scores in per cent, p as a number and whether it is a floor."""
    if "p (Holm)" in frame:
        frame = frame.rename(columns=lambda name: name.removeprefix("mAP ").replace(" ", "_"))
        p = frame["p_(Holm)"].astype(str)
        return frame.assign(p_holm=pd.to_numeric(p.str.removeprefix("< ")), at_floor=p.str.startswith("<"))
    return frame.assign(at_floor=frame.p <= frame.p_floor, **100 * frame.filter(items=_PER_CENT))


def _draw(ax, heights, frame, value, low, high):
    """Points with their intervals, a row at each of `heights`; a baseline differs from itself by 0."""
    is_baseline, differs = frame.difference.isna(), frame.p_holm < _LEVEL
    ax.hlines(heights, frame[low], frame[high], colors=np.where(is_baseline, BLACK, BLUE), linewidth=1)
    for rows, sign in zip((is_baseline, differs, ~(is_baseline | differs)), _SIGNS.values(), strict=True):
        ax.plot(frame[value].fillna(0)[rows], heights[rows], linestyle="none", zorder=3, **sign)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="y", visible=False)


def _draw_differences(ax, heights, frame):
    """The differences from the baseline, which is a line at 0."""
    if "queries_low" in frame:
        ax.hlines(heights, frame.queries_low, frame.queries_high, colors=_PALE, linewidth=4)
    ax.axvline(0, color=BLACK, linewidth=0.8)
    ax.set_xlabel("difference (mAP points)")
    _draw(ax, heights, frame, "difference", "diff_low", "diff_high")


def _write_beside(ax, title, heights, texts):
    """A column of texts, a title above, right of a panel."""
    ax.text(1.02, 1, title, transform=ax.transAxes, va="bottom", fontsize="small")
    for y, text in zip(heights, texts, strict=True):
        ax.text(1.02, y, text, transform=ax.get_yaxis_transform(), va="center", fontsize="small")


def _legend(with_thick):
    """The signs of the forest plot."""
    signs = {name: {"linewidth": 1, **sign} for name, sign in _SIGNS.items()}
    if with_thick:
        signs["95 %, seeds and queries"] = {"color": BLUE, "linewidth": 1}
        signs["95 %, queries alone"] = {"color": _PALE, "linewidth": 4}
    return [Line2D([], [], linestyle="-", label=label, **sign) for label, sign in signs.items()]
