"""The budget map: effects at several lengths of training."""

import textwrap

from reid_utils.views.style import BLACK, TEXT_WIDTH, finish, looks, new_figure


def budget_map(frame, note=None):
    """Each claim's effect at every length of training: a panel a claim, a line a comparison, 95 % intervals.

    frame: T8, from `paper.lengths.lengths_of` or its csv. Returns a text-width Figure.
    """
    claims = frame.groupby("claim", sort=False)
    figure, (axes,) = new_figure(TEXT_WIDTH, 3, 1, len(claims), squeeze=False)
    for ax, (claim, lines) in zip(axes, claims, strict=True):
        styles = looks(lines["compared"])
        for k, (compared, line) in enumerate(lines.groupby("compared", sort=False)):
            ends = line["difference"] - line["diff low"], line["diff high"] - line["difference"]
            beside = line["epochs"] * 1.04**k  # so that intervals do not hide each other
            look = {"linestyle": "-", "capsize": 2, "elinewidth": 0.8, **styles[compared]}
            ax.errorbar(beside, line["difference"], ends, label=textwrap.shorten(compared, 40), **look)
        ax.axhline(0, color=BLACK, linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xticks(lines["epochs"].unique(), lines["epochs"].unique())
        ax.minorticks_off()
        ax.set(title=textwrap.fill(claim, 34), xlabel="epochs, each length with its own schedule")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.25))
    axes[0].set_ylabel("effect (mAP points)")
    return finish(figure, note)
