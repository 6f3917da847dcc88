"""What a trial costs and gives: settings that were tuned, and effects at several lengths of training."""

import textwrap

from matplotlib.ticker import NullLocator

from reid_utils.views.style import BLACK, TEXT_WIDTH, finish, legend_above, looks, new_figure


def budget_map(frame, note=None):
    """Each claim's effect at every length of training: a panel a claim, a line a comparison, 95 % intervals.

    frame: T8, from `paper.lengths.lengths_of` or its csv. Returns a text-width Figure.
    """
    claims = frame.groupby("claim", sort=False)
    figure, (axes,) = new_figure(TEXT_WIDTH, 2.7, 1, len(claims), squeeze=False)
    for ax, (claim, lines) in zip(axes, claims, strict=True):
        styles = looks(lines["compared"])
        for k, (compared, line) in enumerate(lines.groupby("compared", sort=False)):
            ends = line["difference"] - line["diff low"], line["diff high"] - line["difference"]
            beside = line["epochs"] * 1.04**k  # so that intervals do not hide each other
            look = {"linestyle": "-", "capsize": 2, "elinewidth": 0.8, **styles[compared]}
            ax.errorbar(beside, line["difference"], ends, label=textwrap.shorten(compared, 40), **look)
        ax.axhline(0, color=BLACK, linewidth=0.8)
        _log_axis(ax, lines["epochs"].unique())
        ax.set(title=textwrap.fill(claim, 34), xlabel="epochs, each length with its own schedule")
        ax.legend()
    axes[0].set_ylabel("effect (mAP points)")
    return finish(figure, note)


def tuning_curves(frame, note=None):
    """mAP over the learning rates that were tried: a panel a backbone, a line for each loss, head rate and margin.

    frame: from `paper.rows.tuning_runs`. Returns a text-width Figure.
    """
    names = frame["loss"].copy()
    for setting, losses in (("head_rate", "id"), ("margin", "triplet")):
        named = frame["loss"].str.contains(losses) & (frame.groupby("loss")[setting].transform("nunique") > 1)
        names = names.where(~named, names + f", {setting.replace('_', ' ')} " + frame[setting].astype(str))
    frame = frame.assign(line=names)
    backbones, styles = frame.groupby("backbone", sort=False), looks(frame["line"])
    figure, (axes,) = new_figure(TEXT_WIDTH, 2.7, 1, len(backbones), squeeze=False, sharey=True)
    for ax, (backbone, lines) in zip(axes, backbones, strict=True):
        for name, line in lines.sort_values("learning_rate").groupby("line", sort=False):
            ax.plot(line["learning_rate"], line["mAP"], label=name, linestyle="-", **styles[name])
        _log_axis(ax, sorted(lines["learning_rate"].unique()))
        ax.set(title=backbone, xlabel="peak learning rate")
    axes[0].set_ylabel("mAP (%)")
    legend_above(figure, axes[0])
    return finish(figure, note)


def _log_axis(ax, values):
    ax.set_xscale("log")
    ax.set_xticks(values, [f"{value:g}" for value in values])
    ax.xaxis.set_minor_locator(NullLocator())
