"""The paper's claims, each put to the test on the tables of a study.

A comparison is a pair of rows over the same queries; p-values are Holm-corrected over the comparisons of one family, as
all augmentations against none are.
"""

from itertools import product
from math import isnan

import pandas as pd

from reid_utils.paper.results import markdown_table
from reid_utils.paper.tables import p_text
from reid_utils.ranking.regimes import outside_regime
from reid_utils.ranking.statistics import holm, paired_difference

LEVEL, SURE = 0.05, 0.95  # of the corrected p, and of the chance that a rerun with other seeds comes below it
COLUMNS = ["claim", "compared", "verdict", "difference", "diff low", "diff high", "p (Holm)"]
COLUMNS += ["found again (%)", "smallest", "regime"]


def paper_claims(tables):
    """Every claim of the paper that the tables T1 to T5 can test, one line a comparison.

    tables: {name: Table}. Returns a DataFrame with claim, compared ("ours against theirs"), verdict (supported / not
    supported / suggested / cannot be told), difference and its 95 % interval in points of mAP, the corrected p, the
    chance that a rerun with other seeds finds it, the smallest difference that would be found, and regime: what to say
    where a single model's plain mAP lies below what the paper speaks of. Blank where the claim is not about that.
    """
    lines = [
        *_tested(_augmentations(tables["T1"])),
        *_tested(_losses(tables["T2"])),
        *_spread(tables["T2"]),
        *_tested(_post_processings(tables["T3"].rows)),
        *_tested(_fusions(tables["T5"], tables["T3"].rows)),
        *_tested(_pretraining(tables["T4"]) | _pretraining_of_losses(tables["T2"])),
    ]
    return pd.DataFrame(lines, columns=COLUMNS)


def _tested(family):
    """The lines of a family of comparisons {(claim, compared): (row, row it should beat, same networks or not)}.

    A fourth item is the row of the single model by which the claim's regime is judged.
    """
    alpha = LEVEL / max(1, len(family))
    found = {
        key: paired_difference(ours["aps"], theirs["aps"], shared, alpha=alpha, groups=ours["groups"])
        for key, (ours, theirs, shared, *_) in family.items()
    }
    corrected = holm([each["p"] for each in found.values()])
    lines = []
    for (key, each), p in zip(found.items(), corrected, strict=True):
        points = [round(100 * each[name], 2) for name in ("difference", "low", "high")]
        shown = p_text(p, each["p"] <= each["p_floor"])
        regimes = [outside_regime(single["mAP"].mean()) for single in family[key][3:]]
        again = "" if isnan(each["found_again"]) else str(min(99, int(100 * each["found_again"])))
        line = [*key, verdict(each, p), *points, shown, again, round(100 * each["smallest"], 2), "".join(regimes)]
        lines.append(dict(zip(COLUMNS, line, strict=True)))
    return lines


def _augmentations(table):
    family, claim = {}, "augmentation helps"
    for name, base in table.baselines.items():
        ours, theirs = (set(table.rows[each]["settings"]["augmentation"].split("+")) for each in (name, base))
        if theirs < ours or (theirs == {"none"} != ours):
            family[claim, f"{name} against {base}"] = table.rows[name], table.rows[base], False
        elif ours == {"none"} != theirs:
            family[claim, f"{base} against {name}"] = table.rows[base], table.rows[name], False
    return family


def _id_losses(table):
    """(name, row of an ID loss, its InfoNCE row) of table T2."""
    for name, base in table.baselines.items():
        settings = table.rows[name]["settings"]
        if settings["loss"].partition("+")[0] in ("id", "id-cosine") and base != name:
            yield name.removesuffix(": id"), table.rows[name], table.rows[base]


def _losses(table):
    claim = "InfoNCE beats the ID loss"
    return {(claim, name): (infonce, other, False) for name, other, infonce in _id_losses(table)}


def _post_processings(rows):
    backbones = list(dict.fromkeys(name.rpartition(": ")[0] for name in rows))
    claims = {"re-ranking with hard weights helps": "none", "hard weights beat Gaussian ones": "gaussian"}
    family = {}
    for (claim, other), backbone in product(claims.items(), backbones):
        hard, against, plain = (rows.get(f"{backbone}: {name}") for name in ("hard", other, "none"))
        if hard and against:
            family[claim, f"{backbone}: hard against {other}"] = hard, against, True, plain
    return family


def _fusions(table, of_single):
    rows = table.rows
    models = next(iter(rows.values()))["settings"]["models"] if rows else []
    whole = " + ".join(models)
    if f"{whole}: two-stage" not in rows:
        return {}
    best = table.baselines[f"{whole}: two-stage"]
    plain = of_single.get(f"{best}: none", rows[best])  # before its re-ranking, where T3 has that
    claim = ("two-stage fusion beats the best single model", "two-stage against the best single")
    family = {claim: (rows[f"{whole}: two-stage"], rows[best], True, plain)}
    if len(models) > 2:  # with two, the three fusions are equal
        for claim, *pair in _FUSION_CLAIMS:
            ours, theirs = (rows[f"{whole}: {name}"] for name in pair)
            family[claim, " against ".join(pair)] = ours, theirs, True, plain
    return family


_FUSION_CLAIMS = (
    ("dissimilarity beats similarity fusion", "dissimilarity", "similarity"),
    ("two-stage fusion beats both", "two-stage", "similarity"),
    ("two-stage fusion beats both", "two-stage", "dissimilarity"),
)


def _pretraining(table):
    """Rows of T4 beside the same backbone from scratch, or without the pool."""
    family = {}
    for name, base in table.baselines.items():
        ours, theirs = table.rows[name]["settings"], table.rows[base]["settings"]
        starts = [each["start_weights"] or each["pretrained"] for each in (ours, theirs)]
        if name not in table.shared and ours["backbone"] == theirs["backbone"] and starts[0] != starts[1]:
            claim = f"pre-training{' on a larger pool' if ours['start_weights'] else ''} helps"
            family[claim, f"{name} against {base}"] = table.rows[name], table.rows[base], False
    return family


def _pretraining_of_losses(table):
    """Rows of T2 that start from pre-trained weights beside the same loss from scratch; T4 has those of InfoNCE."""
    family, scratch = {}, {}
    for name, row in table.rows.items():
        kind = row["settings"]["backbone"], row["settings"]["loss"]
        scratch |= {} if row["settings"]["pretrained"] else {kind: name}
    for name, row in table.rows.items():
        base = scratch.get((row["settings"]["backbone"], row["settings"]["loss"]))
        if row["settings"]["pretrained"] and base and row["settings"]["loss"] != "infonce":
            family["pre-training helps", f"{name} against {base}"] = row, table.rows[base], False
    return family


_ENOUGH_SEEDS = 5  # a side, for a claim on the dispersion over seeds


def _spread(table):
    """Why InfoNCE should win, as the paper explains it: the lines of the dispersion of its features, seed by seed."""
    claim, lines = "InfoNCE spreads the players more (its advantage, says the paper)", []
    for name, other, infonce in _id_losses(table):
        more = infonce["dispersion"][:, None] > other["dispersion"][None, :]  # the seeds of two rows are not paired
        few = min(more.shape) < _ENOUGH_SEEDS
        if more.all():
            decided = "supported, holds for these networks" if few else "supported"
        elif more.any():
            decided = "cannot be told"
        else:
            decided = "not supported, the opposite holds" + " for these networks" * few
        lines.append((claim, name, f"{decided} ({more.sum()} of {more.size} pairs of seeds)"))
    return [dict(zip(COLUMNS, line, strict=False)) | {"regime": ""} for line in lines]


def verdict(difference, p):
    """What a difference says of the claim that it is positive, as text.

    difference: as `paired_difference` gives it; p: its (corrected) p-value. A verdict needs the interval on one side of
    zero, p below LEVEL, and, over seeds, a chance of SURE that a rerun finds the same; without it it is suggested.
    """
    scope = "over seeds and queries" if difference["over"] == "queries and seeds" else "for these networks"
    for apart, certain, suggested in (
        (difference["low"] > 0, f"supported, holds {scope}", "suggested"),
        (difference["high"] < 0, f"not supported, the opposite holds {scope}", "the opposite is suggested"),
    ):
        if apart and p < LEVEL:
            return f"{suggested}, a rerun may not find it" if difference["found_again"] < SURE else certain
    if not difference["informative"]:
        return "cannot be told (no query differs)"
    seeds = difference["seeds_needed"]
    more = "several seeds" if "seeds" not in scope else "more queries" if isnan(seeds) else f"about {seeds:.0f} seeds"
    return f"cannot be told (would need {more})"


def finding(claim, difference, single=None):
    """One sentence in Markdown: the claim, its verdict, and the figures.

    difference: a row of `compare_rows`, or what `paired_difference` gives, in fractions of mAP; `single`: plain mAP of
    the single model, for claims that the paper makes of strong ones (elsewhere the sentence says so).
    """
    where = outside_regime(single) if single is not None else ""
    of_table = "diff_" if "diff_low" in difference else ""  # there low and high are of the row's own mAP
    low, high = difference[f"{of_table}low"], difference[f"{of_table}high"]
    figures = [f"{difference['difference']:+.2%} mAP"]
    if isnan(low):
        decided, figures = "cannot be told", [f"{figures[0]}; one query: no interval"]
    else:
        p = difference["p_holm"] if "p_holm" in difference else difference["p"]
        decided = verdict({**difference, "low": low, "high": high}, p)
        name = "corrected p" if "p_holm" in difference else "p"
        figures.append(f"95 % interval {low:+.2%} to {high:+.2%}")
        figures.append(f"{name} {p_text(p, difference['p'] <= difference['p_floor'])}")
    return f"{claim}: **{decided}** ({', '.join(figures)}{f'; {where}' if where else ''})"


def read_findings(folder):
    """The findings below a study's folder, or figures: tables/findings.csv with every cell as text."""
    return pd.read_csv(folder / "tables" / "findings.csv", dtype=str, keep_default_na=False)


RULE = (
    "A verdict needs a p below 5 % and, over seeds, an estimated chance of at least 95 % that a rerun with other seeds "
    "finds the same (found again); else it is only suggested."
)
FORMER_RULE = "A verdict needed a p below 1 %; up to 5 % it is only suggested."  # of findings without that chance


def findings_text(findings):
    """Findings (rows as `read_findings` gives them) as the README has them: Markdown, the difference in one column."""
    numbers = findings[["difference", "diff low", "diff high"]].to_numpy()
    difference = ["{:.2f} ({:.2f} to {:.2f})".format(*map(float, line)) if all(line) else "" for line in numbers]
    mark = findings["regime"].ne("").map({True: " †", False: ""})
    shown = findings[["claim", "compared"]].assign(verdict=findings["verdict"] + mark)
    shown = shown.assign(
        **{
            "difference (95 %)": difference,
            "p (Holm)": [float(p) if p[:1].isdigit() else p for p in findings["p (Holm)"]],
        }
    )
    here = findings["regime"].str.extract(r"\((.*) mAP here\)")[0].dropna().unique()
    outside = f" †: outside the regime that the paper speaks of (single models of {', '.join(here)} mAP here)."
    chances = findings.get("found again (%)")
    shown = shown if chances is None else shown.assign(**{"found again (%)": chances})
    return (
        f"{markdown_table(shown)}\nDifferences are points of mAP, ours minus theirs, with their 95 % interval over "
        "queries and, where both sides have several, over seeds; p is corrected over the comparisons of one claim, in "
        f"the tables over all rows of a table. {FORMER_RULE if chances is None else RULE}"
        f"{outside if len(here) else ''}\n"
    )


def sign(verdict):
    """1 where a verdict says supported, −1 where it says the opposite, half of that where it is suggested, else 0."""
    if "suggested" in verdict:
        return -0.5 if "opposite" in verdict else 0.5
    return 1 if verdict.startswith("supported") else -int("the opposite holds" in verdict)


def verdicts_beside(folder, other):
    """The findings of two folders that hold tables/findings.csv, each once, with what became of the first's verdict.

    Returns a DataFrame with claim, compared, first, second and became: "" (as it was), "contradicted", "lost" (certain
    in the first folder, cannot be told in the second), "weaker" (any other loss of certainty), "stronger" or "missing"
    (one folder has no such finding).
    """
    keys = ["claim", "compared"]
    first, second = (read_findings(each).set_index(keys)["verdict"] for each in (folder, other))
    frame = pd.concat({"first": first, "second": second}, axis=1, sort=False).reset_index()
    return frame.assign(became=[_became(*pair) for pair in zip(frame["first"], frame["second"], strict=True)])


def _became(first, second):
    if not isinstance(first, str) or not isinstance(second, str):
        return "missing"
    was, now = sign(first), sign(second)
    if was * now < 0:
        return "contradicted"
    lost = "lost" if abs(was) == 1 and now == 0 else "weaker"
    return lost if abs(was) > abs(now) else "stronger" if was != now else ""


def compare_verdicts(folder, other):
    """Print two studies' findings beside each other -> whether none is contradicted and at most one is lost."""
    frame = verdicts_beside(folder, other)
    print(frame.to_string(index=False, na_rep="no such finding"))
    certain = sum(abs(sign(text)) == 1 for text in frame["first"].dropna())
    counts, kinds = frame["became"].value_counts(), ("contradicted", "lost", "weaker", "stronger", "missing")
    of_all = ", ".join(f"{counts.get(each, 0)} {each}" for each in kinds)
    print(f"{len(frame)} findings, {certain} of them certain in {folder}; in {other}: {of_all}")
    return not counts.get("contradicted", 0) and counts.get("lost", 0) <= 1
