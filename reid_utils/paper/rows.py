"""What no study file states: the training history, T5 (fusions) and T6 (published figures)."""

import numpy as np
import pandas as pd

from reid_utils.paper.statements import SELECTION
from reid_utils.paper.tables import Comparison, Table, row, scored

PUBLISHED_COLUMNS = ["entry", "test mAP", "challenge 2022 mAP", "challenge 2022 rank-1", "challenge 2022 rank-5"]
PUBLISHED_COLUMNS += ["challenge 2023 mAP", "queries", "source"]
PUBLISHED = (
    ("toolkit baseline", 72.7, None, None, None, 61.1, "50; 618", "challenge toolkit, about"),
    ("2023 participant's distance matrix", 96.15, None, None, None, None, "50", "its file, MIT licence, scored here"),
    ("2022 winner, ViT-B/16", None, 97.56, 98.72, 99.36, None, "468", "2022 winning entry, as published"),
    ("2022 winner, ViT-L/14", None, 98.44, 99.15, 99.79, None, "468", "2022 winning entry, as published"),
    ("2022 winner, two ViT-L/14", None, 98.18, 99.36, 99.57, None, "468", "2022 winning entry, as published"),
    ("2023 winner, fused", None, None, None, None, 98.81, "618", "doi 10.1145/3606038.3616168"),
)


def training_history(runs, *tables):
    """Histories of the trainings that are rows of these Tables, `label` being the name of the first such row.

    Returns a DataFrame, None where there is no such row.
    """
    names = {arrays["run"]: name for table in reversed(tables) for name, arrays in reversed(table.rows.items())}
    shown = [run for run in runs.get("02_training", []) if run["run"] in names]
    histories = [pd.read_csv(run["folder"] / "history.csv").assign(label=names[run["run"]]) for run in shown]
    return pd.concat(histories, ignore_index=True) if histories else None


def fusion_table(runs, of_single):
    """T5: singles, pairs and all models under each fusion, against the best single model of the same run.

    The first run's rows carry the plain names, rows of another entry of the study file its name too. of_single: T3,
    which holds the plain distances of the best single model. Raises ValueError where two runs give one row two scores.
    """
    question, notebook = "does that fusion beat the best single model?", "04_fusion"
    fusions = runs.get(notebook, [])
    if not fusions:
        return Table("T5", question, notebook, notes=["this study runs no fusion"])
    rows, baselines, shared = {}, {}, set()
    for run in fusions:
        suffix = f", {run['entry']}" if run["entry"] != fusions[0]["entry"] else ""
        own = {name: row(run, name) for name in scored(run)}
        best = max(run["settings"]["models"], key=lambda name: own[name]["mAP"].mean())
        for name, arrays in own.items():
            label = name + suffix
            if not np.array_equal(rows.setdefault(label, arrays)["aps"], arrays["aps"], equal_nan=True):
                raise ValueError(f"{run['run']} and {rows[label]['run']} both have the row {label!r}")
            baselines.setdefault(label, best + suffix)
            # Seed s of a fusion holds seed s of its models: with the best among them, the two rows are paired.
            if best in name.partition(": ")[0].removesuffix(", plain").split(" + "):
                shared.add(label)
    first = fusions[0]
    notes = [
        SELECTION,
        f"Baseline: {', '.join(dict.fromkeys(baselines.values()))}, the best single model.",
        "With two models, every agreed item is in both lists, so both models weigh the same. Dissimilarity and "
        "two-stage fusion then equal similarity fusion, and are not listed for pairs of a larger set.",
        f"The post-processing of all distances is {first['settings']['post_processing']!r}"
        f"{' unless a row says otherwise' if len(fusions) > 1 else ''}.",
        "Rows called plain fuse the distances before any post-processing.",
        *_by_top_k(first["values"].get("by_top_k")),
    ]
    claims = list(_fusion_claims(first["settings"]["models"], rows, baselines, of_single))
    return Table("T5", question, notebook, rows, baselines, frozenset(shared), claims=claims, notes=notes)


def _fusion_claims(models, rows, baselines, of_single):
    """What the fusion of all models decides."""
    whole = " + ".join(models)
    if f"{whole}: two-stage" not in rows:
        return
    best = baselines[f"{whole}: two-stage"]
    wanted = {"backbone": best, "score": "none"}  # before its re-ranking, where T3 has that
    plain = [of_single.rows[name] for name, own in of_single.fields.items() if wanted.items() <= own.items()]
    single = float([*plain, rows[best]][0]["mAP"].mean())
    pairs = [("two-stage fusion beats the best single model", "two-stage", "the best single")]
    if len(models) > 2:  # with two, the three fusions are equal
        pairs += [
            ("dissimilarity beats similarity fusion", "dissimilarity", "similarity"),
            ("two-stage fusion beats both", "two-stage", "similarity"),
            ("two-stage fusion beats both", "two-stage", "dissimilarity"),
        ]
    for claim, ours, theirs in pairs:
        other = best if theirs == "the best single" else f"{whole}: {theirs}"
        yield Comparison(claim, f"{ours} against {theirs}", f"{whole}: {ours}", other, single)


def _by_top_k(sweep):
    """A note on the length of the lists, where the run swept it: [text] or []."""
    if not sweep:
        return []
    maps = pd.DataFrame(sweep).set_index("top_k").mul(100)
    of = (f"{name} {', '.join(f'{value:.2f} at {k}' for k, value in maps[name].items())}" for name in maps)
    return [f"mAP of all models by the length of the lists (top_k): {'; '.join(of)}."]


def published_rows(runs, command):
    """T6: what is published beside what this study measured, made by `command`; blanks stay blank.

    A score stands in a published column only where the data are the official set (`year` in the trainings' values, by
    the set's counts) and no test player was trained on. Returns the table (DataFrame) and the notes below it.
    """
    lines, commands = [dict(zip(PUBLISHED_COLUMNS, published, strict=True)) for published in PUBLISHED], []
    data = runs["02_training"][0]["values"]["note"]
    year = next((run["values"]["year"] for run in runs["02_training"] if run["values"].get("year")), None)
    for run in runs.get("04_fusion", []):
        settings, values = run["settings"], run["values"]
        models, fusion, data = " + ".join(settings["models"]), settings["challenge_fusion"], values["note"]
        tested = "train+test" not in values["trained_on"]
        own = f"ours: {models}, {settings['post_processing']}, {fusion}"
        line = {"entry": own if tested else f"{own}, trained on train+test", "source": data}
        line["queries"] = str(next(iter(run["scores"].values())).shape[-1])
        if tested and f"{models}: {fusion}|mAP" in run["scores"]:
            mean = float(run["scores"][f"{models}: {fusion}|mAP"].mean())
            line["test mAP" if year else f"{data} test mAP"] = round(100 * mean, 2)
        for key, score in {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5"}.items():
            column = f"challenge {year} {score}" if year else f"{data} challenge {score}"
            if values["challenge"].get(key) is not None and (score == "mAP" or column in PUBLISHED_COLUMNS):
                line[column] = round(100 * values["challenge"][key], 2)
        lines.append(line)
        commands.append(f"Row {len(lines)}: `{command} --only '{run['run']}'`")
    notes = [
        "The 2023 winners saw up to 0.3 mAP between seeds on the challenge: smaller differences from a published "
        "figure are not meaningful.",
        "Of the participant's 50 test queries 21 are imperfect, and the standard error of its mAP is 1.6 points: 50 "
        "queries cannot resolve the tenths that separate the published entries.",
    ]
    if commands:
        notes.append(
            "Ours on test: the mean of the seeds' scores, last epoch; on the challenge split: one entry, each model's "
            "distances averaged over its seeds."
        )
        notes += [] if year else [f"Ours is measured on {data}, so it is not comparable with the published figures."]
    frame = pd.DataFrame(lines)
    frame.insert(0, "no.", range(1, len(frame) + 1))
    return frame, notes + commands
