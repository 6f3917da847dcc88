"""Does a comparison of trainings hold for longer training? Two recipes at every length that a study ran (T8)."""

import pandas as pd

from reid_utils.paper.tables import Comparison, row
from reid_utils.ranking.statistics import paired_difference

COLUMNS = ["claim", "compared", "times", "epochs", "images (1000)", "difference", "diff low", "diff high"]
NOTE = (
    "Differences are points of mAP with 95 % intervals over seeds and queries; images in thousands, repeats counted. "
    "Each length is a training of its own, with its own schedule; times: the length as a multiple of the table's."
)
# Settings that may differ between two lengths of one recipe: tuned anew, or of no effect on what is compared.
_FREE = {"epochs", "seeds", "entry", "score", "learning_rate", "head_rate", "margin", "validate_every"}
_FREE |= {"keep_epochs", "every_post_processing", "workers", "checkpoint_minutes", "check_steps", "processes"}


def lengths_of(tables, runs):
    """T8: every comparison of trainings, at each length that both rows were trained for.

    tables: {name: Table}, runs: as `gather` gives them. Returns a DataFrame with COLUMNS, by comparison and length, for
    comparisons with two lengths or more. times: the length in multiples of the table's; epochs and images are those of
    the row that should win. Differences and 95 % intervals in points of mAP.
    """
    lines = []
    for table in tables.values():
        for claim in table.claims:
            if is_of_trainings(table, claim):
                lines += _lines(table, claim, runs["02_training"])
    frame = pd.DataFrame(lines, columns=COLUMNS).drop_duplicates(["claim", "compared", "times"])
    return frame.groupby(["claim", "compared"], sort=False).filter(lambda lengths: len(lengths) > 1)


def is_of_trainings(table, claim: Comparison):
    """Whether a comparison is one of two trainings, not of two rankings by the same networks."""
    return table.notebook == "02_training" and table.rows[claim.ours]["run"] != table.rows[claim.theirs]["run"]


def _lines(table, claim, trainings):
    ours, theirs = (_lengths(table.rows[name], table.fields[name], trainings) for name in (claim.ours, claim.theirs))
    for times in sorted(ours.keys() & theirs.keys()):
        pair = ours[times], theirs[times]
        found = paired_difference(*(each["aps"] for each in pair), groups=pair[0]["groups"])
        points = [round(100 * found[name], 2) for name in ("difference", "low", "high")]
        length = pair[0]["settings"]["epochs"], round(pair[0]["images"] / 1000, 1)
        yield (claim.claim, claim.compared, times, *length, *points)


def _lengths(own, fields, trainings):
    """{length in multiples of the row's: row} of the trainings that share its recipe but for the length."""
    recipe, alike = _recipe(fields), {1.0: own}
    for run in trainings:
        settings = run["settings"]
        if _recipe(settings) == recipe and f"{fields['score']}|aps" in run["scores"]:
            alike.setdefault(settings["epochs"] / fields["epochs"], row(run, fields["score"]))
    return alike


def _recipe(settings):
    return {name: value for name, value in settings.items() if name not in _FREE} | {
        "start_weights": bool(settings["start_weights"])
    }
