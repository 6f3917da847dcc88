"""Does a comparison of trainings hold for longer training? The same two recipes at every length that a study ran (T8)."""

import pandas as pd

from reid_utils.paper.tables import Comparison, row
from reid_utils.ranking.statistics import paired_difference

COLUMNS = ["claim", "compared", "epochs", "images (1000)", "difference", "diff low", "diff high"]
# Settings that may differ between two lengths of one recipe: tuned anew, or of no effect on what is compared.
_FREE = {"epochs", "seeds", "entry", "start_weights", "learning_rate", "head_rate", "margin", "validate_every"}
_FREE |= {"keep_epochs", "every_post_processing", "workers", "checkpoint_minutes", "check_steps", "processes"}


def lengths_of(tables, runs):
    """T8: every comparison of trainings, at each length that both rows were trained for.

    tables: {name: Table}, runs: as `gather` gives them. Returns a DataFrame with COLUMNS, by comparison and length;
    each length is a training of its own, with its own schedule. Differences and 95 % intervals in points of mAP.
    """
    lines = []
    for table in tables.values():
        for claim in table.claims:
            if is_of_trainings(table, claim):
                lines += _lines(table, claim, runs["02_training"])
    frame = pd.DataFrame(lines, columns=COLUMNS).drop_duplicates(["claim", "compared", "epochs"])
    return frame.groupby(["claim", "compared"], sort=False).filter(lambda lengths: len(lengths) > 1)


def is_of_trainings(table, claim: Comparison):
    """Whether a comparison is one of two trainings, not of two rankings by the same networks."""
    return table.notebook == "02_training" and table.rows[claim.ours]["run"] != table.rows[claim.theirs]["run"]


def _lines(table, claim, trainings):
    ours, theirs = (_lengths(table.rows[name], table.fields[name], trainings) for name in (claim.ours, claim.theirs))
    for epochs in sorted(ours.keys() & theirs.keys()):
        pair = ours[epochs], theirs[epochs]
        found = paired_difference(*(each["aps"] for each in pair), groups=pair[0]["groups"])
        points = [round(100 * found[name], 2) for name in ("difference", "low", "high")]
        yield (claim.claim, claim.compared, epochs, round(pair[0]["images"] / 1000, 1), *points)


def _lengths(own, fields, trainings):
    """{epochs: row} of the trainings that share a row's recipe but for its length, the row itself first."""
    recipe = _recipe(fields)
    alike = {fields["epochs"]: own}
    for run in trainings:
        settings = run["settings"]
        if _recipe(settings) == recipe and f"{fields['score']}|aps" in run["scores"]:
            alike.setdefault(settings["epochs"], row(run, fields["score"]))
    return alike


def _recipe(settings):
    kept = {name: value for name, value in settings.items() if name not in _FREE | {"score"}}
    return kept | {"started": bool(settings["start_weights"])}
