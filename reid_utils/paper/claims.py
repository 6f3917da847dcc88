"""The paper's claims, each put to the test on the tables of a study.

A comparison is a pair of rows over the same queries; p-values are Holm-corrected over the comparisons of one family,
those of one table unless the study file names another.
"""

from math import inf, isnan

import pandas as pd

from reid_utils.paper.lengths import is_of_trainings
from reid_utils.paper.tables import ALIKE
from reid_utils.ranking.regimes import outside_regime
from reid_utils.ranking.statistics import holm, p_text, paired_difference

LEVEL = 0.05  # of the corrected p
UNEQUAL = "open (unequal numbers of images)"
ONE_LENGTH = "open (one length of training)"  # trainings may change places with longer training
TURNS = "open (depends on training length)"
COLUMNS = ["claim", "compared", "verdict", "difference", "diff low", "diff high", "rerun low", "rerun high"]
COLUMNS += ["at twice the length", "p (Holm)", "smallest", "regime"]


def paper_claims(tables, lengths=None):
    """Every claim that the tables of a study test, one line a comparison.

    tables: {name: Table}; lengths: as `lengths_of` gives them. Returns a DataFrame with claim, compared, verdict
    (supported, contradicted, open), difference and its 95 % interval in points of mAP, the 95 % prediction interval of
    a rerun with new seeds and new players, the difference at twice the length of training, the corrected p, the
    smallest difference that would be found, and regime: what to say where the models' plain mAP lies below what the
    paper speaks of. Blank where there is none.
    """
    longer = {} if lengths is None else lengths.set_index(["claim", "compared", "times"])["difference"]
    families = {}
    for table in tables.values():
        for each in table.claims:
            pair = table.rows[each.ours], table.rows[each.theirs]
            families.setdefault(each.family or table.name, []).append((each, *pair, is_of_trainings(table, each)))
    lines = []
    for name in sorted(families, key=lambda name: name not in tables):  # those over several tables last
        lines += _tested(families[name], longer)
    return pd.DataFrame(lines, columns=COLUMNS)


def _tested(family, longer):
    """The lines of a family: a list of (Comparison, row, row that it should beat, whether trainings differ)."""
    alpha = LEVEL / len(family)
    found = [
        paired_difference(ours["aps"], theirs["aps"], ours["run"] == theirs["run"], alpha=alpha, groups=ours["groups"])
        for _, ours, theirs, _ in family
    ]
    lines = []
    for (of, ours, theirs, trainings), each, p in zip(family, found, holm([each["p"] for each in found]), strict=True):
        points = [round(100 * each[name], 2) for name in ("difference", "low", "high", "rerun_low", "rerun_high")]
        shown = p_text(p, each["p"] <= each["p_floor"])
        end = shown, round(100 * each["smallest"], 2), outside_regime(of.single)
        decided, twice = verdict(each, p), None
        if trainings:
            twice = longer.get((of.claim, of.compared, 2.0))
            decided = _of_trainings(decided, each["difference"], twice, ours["images"] / theirs["images"])
        lines.append((of.claim, of.compared, decided, *points, twice, *end))
    return lines


def _of_trainings(decided, difference, twice, images):
    """A verdict on two trainings: it needs equal images, and the same sign at twice the length."""
    if not 1 / ALIKE <= images <= ALIKE:
        return UNEQUAL
    if decided == "open":
        return decided
    if twice is None:
        return ONE_LENGTH
    return decided if twice * difference > 0 else TURNS


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
    "with new seeds and new players lies on one side of zero. Otherwise, and with one seed, it is open. A comparison "
    "of trainings needs equal numbers of images too, and the same sign at twice the length of training."
)
