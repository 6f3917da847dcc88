"""The paper's claims, each put to the test on the tables of a study.

A comparison is a pair of rows over the same queries; p-values are Holm-corrected over the comparisons of one family, as
all augmentations against none are.
"""

from itertools import product

import pandas as pd

from reid_utils.ranking.statistics import holm, paired_difference

COLUMNS = ["claim", "compared", "verdict", "difference", "diff low", "diff high", "p (Holm)"]


def paper_claims(tables):
    """Every claim of the paper that the tables T1 to T5 can test, one line a comparison.

    tables: {name: Table}. Returns a DataFrame with claim, compared ("ours against theirs"), verdict (supported / not
    supported / cannot be told), difference and its 95 % interval in points of mAP, and the corrected p; blank where the
    claim is not about mAP.
    """
    lines = [
        *_tested(_augmentations(tables["T1"])),
        *_tested(_losses(tables["T2"])),
        *_spread(tables["T2"]),
        *_tested(_post_processings(tables["T3"].rows)),
        *_tested(_fusions(tables["T5"])),
        *_tested(_pretraining(tables["T4"])),
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _tested(family):
    """The lines of a family of comparisons {(claim, compared): (row, row it should beat)}."""
    found = {key: paired_difference(ours["aps"], theirs["aps"]) for key, (ours, theirs) in family.items()}
    corrected = holm([each["p"] for each in found.values()])
    lines = []
    for ((claim, compared), each), p in zip(found.items(), corrected, strict=True):
        points = [round(100 * each[key], 2) for key in ("difference", "low", "high")]
        told = verdict(each["low"], each["high"], p)
        lines.append(dict(zip(COLUMNS, [claim, compared, told, *points, round(p, 4)], strict=True)))
    return lines


def _augmentations(table):
    return {
        ("augmentation helps", f"{name} against {base}"): (table.rows[name], table.rows[base])
        for name, base in table.baselines.items()
        if name != base == "none"
    }


def _losses(table):
    return {
        ("InfoNCE beats the ID loss", name.removesuffix(": id")): (table.rows[base], table.rows[name])
        for name, base in table.baselines.items()
        if name.endswith(": id") and base != name
    }


def _post_processings(rows):
    backbones = list(dict.fromkeys(name.rpartition(": ")[0] for name in rows))
    claims = {"re-ranking with hard weights helps": "none", "hard weights beat Gaussian ones": "gaussian"}
    return {
        (claim, f"{backbone}: hard against {other}"): (rows[f"{backbone}: hard"], rows[f"{backbone}: {other}"])
        for (claim, other), backbone in product(claims.items(), backbones)
    }


def _fusions(table):
    rows, models = table.rows, [name for name in table.rows if ": " not in name]
    whole = " + ".join(models)
    if f"{whole}: two-stage" not in rows:
        return {}
    single = ("two-stage fusion beats the best single model", "two-stage against the best single")
    family = {single: (rows[f"{whole}: two-stage"], rows[table.baselines[f"{whole}: two-stage"]])}
    if len(models) > 2:  # with two, the three fusions are equal
        for claim, ours, theirs in _FUSION_CLAIMS:
            family[claim, f"{ours} against {theirs}"] = rows[f"{whole}: {ours}"], rows[f"{whole}: {theirs}"]
    return family


_FUSION_CLAIMS = (
    ("dissimilarity beats similarity fusion", "dissimilarity", "similarity"),
    ("two-stage fusion beats both", "two-stage", "similarity"),
    ("two-stage fusion beats both", "two-stage", "dissimilarity"),
)


def _pretraining(table):
    return {
        ("pre-training on a larger pool helps", f"{name} against {base}"): (table.rows[name], table.rows[base])
        for name, base in table.baselines.items()
        if "pre-trained" in name and "plain" in name
    }


def _spread(table):
    """Why InfoNCE should win, as the paper explains it: the lines of the dispersion of its features."""
    claim, lines = "InfoNCE spreads the players more (its advantage, says the paper)", []
    for name, base in table.baselines.items():
        if name.endswith(": id") and base != name:
            more = table.rows[base]["dispersion"] > table.rows[name]["dispersion"]
            told = "cannot be told" if more.any() else "not supported, the opposite holds"
            seeds = f"({more.sum()} of {len(more)} seeds)"
            lines.append((claim, name.removesuffix(": id"), f"{'supported' if more.all() else told} {seeds}"))
    return [dict(zip(COLUMNS, line, strict=False)) for line in lines]


def verdict(low, high, p):
    """What a paired difference says of the claim that it is positive, from its interval and (corrected) p, as text."""
    told = "supported" if low > 0 else "not supported, the opposite holds" if high < 0 else "cannot be told"
    if told != "cannot be told" and not p < 0.05:
        return "cannot be told after correction for the number of rows"
    return told


def finding(claim, difference, sign=1):
    """One sentence in Markdown: the claim, supported / not supported / cannot be told, and the figures.

    `difference`: mapping with difference, diff_low, diff_high, p_holm (a row of `compare_rows`) or low, high, p (as
    `paired_difference` gives it), fractions of mAP; `sign` −1 where the claim says that the row is the worse one. A
    verdict needs both the interval and the (corrected) p below 0.05.
    """
    low = difference["diff_low"] if "diff_low" in difference else difference["low"]
    high = difference["diff_high"] if "diff_high" in difference else difference["high"]
    low, high, value = (low, high, difference["difference"]) if sign > 0 else (-high, -low, -difference["difference"])
    p = difference["p_holm"] if "p_holm" in difference else difference["p"]
    shown = f"{value:+.2%} mAP, 95 % interval {low:+.2%} to {high:+.2%}"
    return f"{claim}: **{verdict(low, high, p)}** ({shown}, {'corrected p' if 'p_holm' in difference else 'p'} {p:.4f})"
