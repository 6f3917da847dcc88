"""The paper's claims, each put to the test on the tables of a study.

A comparison is a pair of rows over the same queries; p-values are Holm-corrected over the comparisons of one family, as
all augmentations against none are.
"""

from math import inf, isnan

import pandas as pd

from reid_utils.ranking.regimes import outside_regime
from reid_utils.ranking.statistics import holm, p_text, paired_difference

LEVEL = 0.05  # of the corrected p
ONE_LENGTH = "open (one length of training)"  # trainings may change places with longer training
COLUMNS = ["claim", "compared", "verdict", "difference", "diff low", "diff high", "rerun low", "rerun high"]
COLUMNS += ["p (Holm)", "smallest", "regime"]


def paper_claims(tables):
    """Every claim that the tables of a study test, one line a comparison.

    tables: {name: Table}. Returns a DataFrame with claim, compared, verdict (supported, contradicted, open),
    difference and its 95 % interval in points of mAP, the 95 % prediction interval of a rerun with new seeds and new
    players, the corrected p, the smallest difference that would be found, and regime: what to say where a single
    model's plain mAP lies below what the paper speaks of. Blank where the claim is not about that.
    """
    families = {}
    for table in tables.values():
        for each in table.claims:
            pair = table.rows[each.ours], table.rows[each.theirs]
            families.setdefault((each.family or table.name, each.of), []).append((each, *pair))
    lines = []
    for name, of in sorted(families, key=lambda key: key[0] not in tables):  # those over several tables last
        family = families[name, of]
        lines += _tested(family) if of == "aps" else [_by_seed(of, *pair) for pair in family]
    return pd.DataFrame(lines, columns=COLUMNS)


def _tested(family):
    """The lines of a family of comparisons, a list of (Comparison, row, row that it should beat)."""
    alpha = LEVEL / len(family)
    same = [ours["run"] == theirs["run"] for _, ours, theirs in family]  # networks, ranked in two ways
    found = [
        paired_difference(ours["aps"], theirs["aps"], shared, alpha=alpha, groups=ours["groups"])
        for (_, ours, theirs), shared in zip(family, same, strict=True)
    ]
    lines = []
    for (of, *_), shared, each, p in zip(family, same, found, holm([each["p"] for each in found]), strict=True):
        points = [round(100 * each[name], 2) for name in ("difference", "low", "high", "rerun_low", "rerun_high")]
        shown = p_text(p, each["p"] <= each["p_floor"])
        end = round(100 * each["smallest"], 2), outside_regime(of.single)
        decided = verdict(each, p) if shared else ONE_LENGTH
        lines.append((of.claim, of.compared, decided, *points, shown, *end))
    return lines


def _by_seed(name, of, ours, theirs):
    """The line of a comparison of arrays with one value a seed, such as the dispersion of features."""
    more = ours[name][:, None] > theirs[name][None, :]  # the seeds of two rows are not paired
    decided = f"{ONE_LENGTH[:-1]}; {more.sum()} of {more.size} pairs of seeds)"
    return of.claim, of.compared, decided, *[None] * 7, ""


def verdict(difference, p):
    """What a difference says of the claim that it is positive: "supported", "contradicted" or "open".

    difference: as `paired_difference` gives it; p: its (corrected) p-value. A verdict needs p below LEVEL and the
    prediction interval of a rerun on one side of zero; with one seed there is none, and the claim is open.
    """
    if p < LEVEL and difference["rerun_low"] > 0:
        return "supported"
    return "contradicted" if p < LEVEL and difference["rerun_high"] < 0 else "open"


def finding(claim, difference, single=inf):
    """One sentence in Markdown: the claim, its verdict, and the figures.

    difference: a row of `compare_rows`, or what `paired_difference` gives, in fractions of mAP; `single`: plain mAP of
    the single model, for claims that the paper makes of strong ones (elsewhere the sentence says so).
    """
    where = outside_regime(single)
    of_table = "diff_" if "diff_low" in difference else ""  # there low and high are of the row's own mAP
    low, high = difference[f"{of_table}low"], difference[f"{of_table}high"]
    rerun = difference["rerun_low"], difference["rerun_high"]
    figures = [f"{difference['difference']:+.2%} mAP"]
    if isnan(low):
        decided, figures = "open", [f"{figures[0]}; one query: no interval"]
    else:
        p = difference["p_holm"] if "p_holm" in difference else difference["p"]
        decided = verdict(difference, p)
        name = "corrected p" if "p_holm" in difference else "p"
        figures.append(f"95 % interval {low:+.2%} to {high:+.2%}")
        figures.append("one seed" if isnan(rerun[0]) else "a rerun {:+.2%} to {:+.2%}".format(*rerun))
        figures.append(f"{name} {p_text(p, difference['p'] <= difference['p_floor'])}")
    return f"{claim}: **{decided}** ({', '.join(figures)}{f'; {where}' if where else ''})"


RULE = (
    "A claim is supported or contradicted if the corrected p is below 5 % and the 95 % prediction interval of a rerun "
    "with new seeds and new players lies on one side of zero. Otherwise, and with one seed, it is open; so is a "
    "comparison of trainings, which would have to hold at twice the length too."
)
