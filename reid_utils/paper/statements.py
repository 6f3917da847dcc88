"""Tables as a study file states them: which runs, how a row is named, what it is compared with, what that decides.

A row is one score of one run. What it is known by are its fields: the settings of its run, `entry` (the name of the
run's entry in the study file) and `score` (such as none, hard). docs/extending.md shows a table being added.
"""

import json
from string import Formatter
from typing import Any

import msgspec
import numpy as np
from scipy.special import stdtrit

from reid_utils.paper.tables import ALIKE, Comparison, Table, row, scored
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.methods import distances_of, pairs_of

SELECTION = "All scores are of the last epoch."


class Claim(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A claim of the paper: that each of the chosen rows beats those that differ from it in `against` alone.

    rows: the fields of the rows that should win. compared: what a comparison is called, from the losing row's fields
    ("row against row" where empty). single: replaced fields, which give the row by whose mAP the regime is judged.
    family: comparisons that share Holm's correction, over tables too (empty: those of the table). of: the arrays to
    compare: average precisions, or a column with a value a seed.
    """

    claim: str
    against: dict[str, Any]
    rows: dict[str, Any] = {}
    compared: str = ""
    single: dict[str, Any] | None = None
    family: str = ""


class Statement(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A table as stated.

    where: the fields of its rows, a value each or a list of those accepted; without `entry`, runs of entries without a
    name. row: a row's name as a format of fields; words: {field: {value: what the name says}}. against: a row's
    baseline is the row that has the same fields in its name but for the first of these replacements that gives another
    row. controls: the fields of negative controls, which repeat another row with other seeds and are not corrected for.
    columns: further ones, of COLUMNS.
    """

    question: str
    notebook: str
    row: str
    where: dict[str, Any] = {}
    words: dict[str, dict[str, str]] = {}
    against: list[dict[str, Any]] = []
    controls: dict[str, Any] | None = None
    columns: list[str] = []
    claims: list[Claim] = []
    notes: list[str] = []


def make_table(name, stated, runs):
    """The Table that a study file states.

    stated: the mapping below `tables: name:`; runs: as `gather` gives them. Raises ValueError for an unknown or missing
    key, field or column, and for two rows of one name.
    """
    try:
        stated = msgspec.convert(stated, Statement)
        fields, rows, extra = _rows(name, stated, runs.get(stated.notebook, []))
        named_by = _named_by(stated.row)
        baselines = {}
        for label in rows:
            others = (_others(fields, label, named_by, rule) for rule in stated.against)
            found = (other for each in others for other in each[:1] if baselines.get(other) != label)
            baselines[label] = next(found, label)  # no pair is compared twice
        notes = [SELECTION, *filter(None, (COLUMNS[column][1] for column in stated.columns)), *stated.notes]
        claims = [line for claim in stated.claims for line in _comparisons(claim, stated, rows, fields, named_by)]
        controls = {label for label in rows if stated.controls and _has(fields[label], stated.controls)}
    except msgspec.ValidationError as error:
        raise ValueError(f"table {name}: {error}") from None
    except KeyError as error:
        raise ValueError(
            f"table {name}: {error} is neither a column nor a setting of {stated.notebook}; its results.json lists them"
        ) from None
    shared = frozenset(label for label, base in baselines.items() if rows[label]["run"] == rows[base]["run"])
    notes += [] if rows else [f"No run of {stated.notebook} has {json.dumps(stated.where)}."]
    seen = [row["images"] for row in rows.values()]
    if seen and max(seen) > ALIKE * min(seen):
        notes.append("Rows saw unequal numbers of images in training: compare only rows with equal numbers.")
    return Table(
        name, stated.question, stated.notebook, rows, baselines, shared, fields, claims, extra, notes, controls
    )


def _rows(name, stated, runs):
    """({row: fields}, {row: arrays}, {row: further columns}) of a table."""
    fields, rows, extra = {}, {}, {}
    for run in runs:
        for score in scored(run):
            own = {**run["settings"], "entry": run["entry"], "score": score}
            if not _has(own, {"entry": "", **stated.where}):
                continue
            label = _text(stated.row, own, stated.words)
            if label in rows:
                first = fields[label]
                differ = [key for key in own if own[key] != first.get(key) and key != "seeds"]
                raise ValueError(
                    f"table {name}: {rows[label]['run']} and {run['run']} are both {label!r}; name in `row` or `where` "
                    f"what distinguishes them ({', '.join(differ) or 'nothing does'})"
                )
            fields[label], rows[label], extra[label] = own, row(run, score), {}
            for column in stated.columns:
                values = COLUMNS[column][0](run, score)
                rows[label] |= values
                extra[label] |= {key: np.mean(value) for key, value in values.items()}
    return fields, rows, extra


def _has(fields, where):
    """Whether a row has these fields: a value each, or a list of those accepted. KeyError for an unknown field."""
    own = [(fields[key], value) for key, value in where.items()]  # each is looked up, also after one that differs
    return all(found in value if isinstance(value, list) else found == value for found, value in own)


def _others(fields, label, named_by, replaced):
    """The other rows whose fields in their names are those of a row, but for the replaced ones."""
    wanted = {**{key: [fields[label][key]] for key in named_by}, **replaced}
    return [other for other, own in fields.items() if other != label and _has(own, wanted)]


def _text(template, fields, words):
    """A name made of fields, in the words that the statement has for their values."""
    texts = {}
    for name in _named_by(template):
        text = fields[name] if isinstance(fields[name], str) else json.dumps(fields[name])
        texts[name] = words.get(name, {}).get(text, text)
    return template.format(**texts)


def _named_by(template):
    return [field for _, field, _, _ in Formatter().parse(template) if field]


def _comparisons(claim, stated, rows, fields, named_by):
    """The comparisons of rows that decide a claim."""
    for ours in rows:
        if not _has(fields[ours], claim.rows):
            continue
        of_single = [] if claim.single is None else [*_others(fields, ours, named_by, claim.single), ours][:1]
        for theirs in _others(fields, ours, named_by, claim.against):
            named = _text(claim.compared, fields[theirs], stated.words) or f"{ours} against {theirs}"
            single = max(float(rows[label]["mAP"].mean()) for label in of_single or (ours, theirs))
            yield Comparison(claim.claim, named, ours, theirs, single, claim.family)


def between_within(run, score):
    """Mean distance between images of different players over that of one player's, a seed each, with its interval."""
    folders, seeds = run.get("folders", [run["folder"]]), run["settings"]["seeds"]
    ratios = []
    for seed in seeds:
        models = [load_features(folder / f"seed{seed}" / "test.npz") for folder in folders]
        distances = [np.sqrt(np.maximum(distances_of(model), 0)) for model in models]
        masks = zip(*(pairs_of(model) for model in models), strict=True)
        same, other = (np.concatenate([of[m] for of, m in zip(distances, side, strict=True)]).mean() for side in masks)
        ratios.append(other / same)
    half = stdtrit(len(seeds) - 1, 0.975) * np.std(ratios, ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else np.nan
    mean = np.mean(ratios)
    return {"between/within": np.array(ratios), "ratio low": mean - half, "ratio high": mean + half}


def _images(run, score):
    """Thousands of images that the training showed, repetitions counted, those of its start included."""
    return {"images (1000)": run["values"]["images_seen"] / 1000}


def _cost(run, score):
    """Millions of parameters and GFLOPs of the encoder."""
    cost = run["values"]["cost"]
    return {"parameters (M)": cost["parameters"] / 1e6, "GFLOPs": cost["gflops"]}


def _epochs(run, score):
    """mAP (per cent) before the first epoch and of the best one on test, for plain rows."""
    if score != "none":
        return {}
    start, best, last = (
        100 * np.mean(run["scores"].get(f"{name}|mAP", np.nan)) for name in ("untrained", "best", score)
    )
    return {"zero-shot": start, "best on test": best, "gain by choice": best - last}


COLUMNS = {  # name in a statement: (values of a run's score, {column: number or (S,)}; what to say below the table)
    "between/within": (
        between_within,
        "between/within: mean distance between images of different players over that between images of one player, "
        "with a 95 % interval over seeds",
    ),
    "images": (_images, ""),
    "cost": (_cost, ""),
    "epochs": (
        _epochs,
        "'zero-shot': mAP of the encoder before this training. 'best on test': mAP if each seed's best epoch on test "
        "were chosen, as in the paper. 'gain by choice': how much mAP rises by choosing the best epoch on test.",
    ),
}
