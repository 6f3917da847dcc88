"""The paper's tables T1–T6 from the results of the earlier notebooks."""

from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from reid_utils.files import load_arrays, read_json
from reid_utils.paper.folds import ALL_FOLDS, pool_folds
from reid_utils.paper.results import load_results, write_table
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.methods import POST_PROCESSINGS
from reid_utils.ranking.statistics import compare_rows, holm

SCORES = ("aps", "firsts", "mAP", "rank1", "rank5", "mINP")
SELECTION = "Selection of the epoch: the last one."
PUBLISHED = (
    # entry, mAP on test, on challenge 2022, on challenge 2023, source
    ("toolkit baseline", 72.7, None, 61.1, "challenge toolkit, about"),
    ("2022 winner, ViT-B/16", None, 97.56, None, "2022 winning entry, as published"),
    ("2022 winner, ViT-L/14", None, 98.44, None, "2022 winning entry, as published"),
    ("2023 winner, fused", None, None, 98.81, "doi 10.1145/3606038.3616168"),
)


@dataclass(frozen=True)
class Table:
    """Rows over the same queries, each set beside its baseline.

    question: what comparing a row with its baseline answers. rows: {name: arrays}, the arrays those of `stack_scores`
    (aps (S, Q), mAP, rank1, rank5, mINP (S,)) and `run`, the id of the run that made the row. baselines: {row: the row
    it is compared with, itself for none}. extra: {row: {column: number}}, columns put last. notes: lines below it.
    """

    name: str
    question: str
    rows: dict = field(default_factory=dict)
    baselines: dict = field(default_factory=dict)
    extra: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)

    @cached_property
    def comparison(self):
        """`compare_rows` of every row against its baseline, Holm's correction over the whole table (DataFrame)."""
        if not self.rows:
            return pd.DataFrame(columns=["row", "mAP", "difference", "p", "p_holm", "queries"])
        parts = []
        for base in dict.fromkeys(self.baselines.values()):
            members = dict.fromkeys([base, *(name for name in self.rows if self.baselines[name] == base)])
            part = compare_rows({name: self.rows[name]["aps"] for name in members}, baseline=base)
            parts.append(part[part["row"].map(self.baselines) == base])
        table = pd.concat(parts).set_index("row").loc[list(self.rows)].reset_index()
        return table.assign(p_holm=holm(table["p"]))

    @property
    def printable(self):
        """The table as it is written (DataFrame): row numbers, per cent with two decimals, `extra` columns last."""
        lines = []
        for number, line in enumerate(self.comparison.to_dict("records"), start=1):
            arrays = self.rows[line["row"]]
            percent = {key: 100 * float(np.mean(arrays[column])) for key, column in _PRINTED.items()}
            interval = {"mAP low": 100 * line["low"], "mAP high": 100 * line["high"]}
            change = {key: 100 * line[column] for key, column in _CHANGES.items()}
            shown = {k: round(v, 2) for k, v in {**percent, **interval, **change}.items()}
            shown |= {"p (Holm)": round(line["p_holm"], 4), "seeds": line["seeds"], "queries": line["queries"]}
            more = {key: round(value, 3) for key, value in self.extra.get(line["row"], {}).items()}
            lines.append({"no.": number, "row": line["row"], **shown, **more})
        return pd.DataFrame(lines)

    @property
    def compared(self):
        """The line "Compare rows i and j, … to answer: question", over the rows that have another as baseline."""
        numbers = {name: number for number, name in enumerate(self.rows, start=1)}
        pairs = [f"{numbers[base]} and {numbers[name]}" for name, base in self.baselines.items() if base != name]
        to_answer = f"Compare rows {', '.join(pairs)} to answer" if pairs else "No two rows here answer"
        return f"{to_answer}: {self.question}"

    @property
    def about(self):
        """What the README says of the table: its question and the number of the notebook that makes its rows."""
        return {"question": self.question, "notebook": next((row["run"][:2] for row in self.rows.values()), "")}

    def commands(self, command):
        """The commands that make the rows again, a line for each stretch of rows of one run."""
        lines, start = [], 0
        for run, members in groupby(row["run"] for row in self.rows.values()):
            stop = start + len(list(members))
            numbers = f"Row {stop}" if stop == start + 1 else f"Rows {start + 1}–{stop}"
            lines.append(f"{numbers}: `{command} --only '{run}'`")
            start = stop
        return lines


_PRINTED = {"mAP": "mAP", "rank-1": "rank1", "rank-5": "rank5", "mINP": "mINP"}
_CHANGES = {"difference": "difference", "diff low": "diff_low", "diff high": "diff_high", "seed sd": "seed_sd"}


def show(run, table, command):
    """Write a Table as tables/<name>.csv and .md, with its notes and the commands of its rows -> what was written."""
    notes = [*table.notes, table.compared, *table.commands(command)]
    write_table(run, table.name, table.printable, notes)
    return table.printable


def gather(folders):
    """Results of earlier runs by notebook: {stem: [results with "scores", the content of scores.npz]}, in plan order.

    Trainings on every fold count as one (see `pool_folds`).

    Raises FileNotFoundError naming the run that has no results yet.
    """
    found = {}
    for folder in map(Path, folders):
        result = load_results(folder)
        scores = folder / "scores.npz"
        result["scores"] = load_arrays(scores) if scores.exists() else {}
        found.setdefault(result["notebook"], []).append(result | {"folder": folder})
    return {stem: pool_folds(results) if stem == "02_training" else results for stem, results in found.items()}


def training_history(runs, recipes):
    """Histories of the runs that use an augmentation of `recipes`, with a column `label` (backbone, start and loss).

    Raises ValueError where there is none from scratch on the training split.
    """
    chosen = {"": training_runs(runs, recipes), " pre-trained": training_runs(runs, recipes, pretrained=True)}
    parts = [
        pd.read_csv(run["folder"] / "history.csv").assign(
            label=f"{run['settings']['backbone']}{start}, {run['settings']['loss']}"
        )
        for start, found in chosen.items()
        for run in found
    ]
    if not chosen[""]:
        raise ValueError(
            "no run of notebook 02 trains from scratch on the training split with an augmentation of `recipes`, and "
            "the tables hold such runs alone; give other settings with --only '02*' (or '04*' for a challenge entry)"
        )
    return pd.concat(parts, ignore_index=True)


def row(result, name):
    """One row's arrays: what a run's scores hold under `name`."""
    return {key: result["scores"][f"{name}|{key}"] for key in SCORES} | {"run": result["run"]}


def training_runs(runs, recipes=None, pretrained=False, **settings):
    """Runs of notebook 02 on the training split whose settings have these values, augmentation one of `recipes`.

    Those on every fold where the study has such runs. pretrained: those that start from another run's weights; else
    those that do not. Runs on a pool or on test players are rows of no table.
    """
    folds = any(run["settings"]["train_on"] == ALL_FOLDS for run in runs.get("02_training", []))
    return [
        run
        for run in runs.get("02_training", [])
        if all(run["settings"][key] == value for key, value in settings.items())
        and (recipes is None or run["settings"]["augmentation"] in recipes)
        and bool(run["settings"]["start_weights"]) == pretrained
        and not run["settings"]["pool"]
        and run["settings"]["train_on"] == (ALL_FOLDS if folds else "train")
    ]


def main_backbone(runs):
    """The backbone that most runs of notebook 02 train: the one on which T1 varies the augmentation."""
    names = [run["settings"]["backbone"] for run in training_runs(runs)]
    return max(dict.fromkeys(names), key=names.count)


def augmentation_table(runs):
    """T1: the main backbone under InfoNCE with each augmentation, against none."""
    found = training_runs(runs, backbone=main_backbone(runs), loss="infonce")
    rows = {run["settings"]["augmentation"]: row(run, "none") for run in found}
    base = "none" if "none" in rows else next(iter(rows), None)
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: name != base)}
    question = "does that augmentation, alone, help?"
    return Table("T1", question, rows, dict.fromkeys(rows, base), notes=[SELECTION])


def loss_table(runs, recipes):
    """T2: each backbone under each loss, one augmentation, against InfoNCE; and the dispersion of its features."""
    rows, baselines = {}, {}
    for run in training_runs(runs, recipes):
        backbone, loss = run["settings"]["backbone"], run["settings"]["loss"]
        rows[f"{backbone}: {loss}"] = row(run, "none") | {"dispersion": dispersion(run)}
        baselines[f"{backbone}: {loss}"] = f"{backbone}: infonce"
    baselines = {name: base if base in rows else name for name, base in baselines.items()}
    note = "dispersion: mean pairwise distance of the query features, every query another player; 2 is opposite"
    extra = {name: {"dispersion": arrays["dispersion"].mean()} for name, arrays in rows.items()}
    return Table("T2", "does the ID loss beat InfoNCE?", rows, baselines, extra, [SELECTION, note])


def dispersion(run):
    """Mean pairwise distance of the query features, a seed each (S,): how far apart a training puts the players."""
    folders, seeds = run.get("folders", [run["folder"]]), run["settings"]["seeds"]
    files = [[folder / f"seed{seed}" / "test.npz" for folder in folders] for seed in seeds]
    return np.array([np.mean([pdist(load_features(file)["query"]).mean() for file in of_seed]) for of_seed in files])


def post_processing_table(runs):
    """T3: each backbone under each post-processing, against its plain distances."""
    rows, baselines = {}, {}
    for run in runs.get("03_post_processing", []):
        backbone = run["settings"]["backbone"]
        if f"{backbone}: none" in rows:
            raise ValueError(f"T3 has {backbone} twice; let notebook 03 run for one training a backbone")
        for name in POST_PROCESSINGS:
            rows[f"{backbone}: {name}"], baselines[f"{backbone}: {name}"] = row(run, name), f"{backbone}: none"
    note = "'hard in place' is the 2023 code as published (depends on image order), 'hard' its order-free form"
    return Table("T3", "does that re-ranking beat plain distances?", rows, baselines, notes=[SELECTION, note])


def backbone_table(runs, recipes):
    """T4: each backbone with InfoNCE, from scratch and pre-trained on a pool, plain and re-ranked.

    Further columns: parameters, GFLOPs, and for plain rows what choosing the best epoch on test would have given.
    """
    rows, more, baselines = {}, {}, {}
    trained = [(run, "") for run in training_runs(runs, recipes, loss="infonce")]
    trained += [(run, " pre-trained") for run in training_runs(runs, recipes, pretrained=True, loss="infonce")]
    for run, start in trained:
        backbone, cost = run["settings"]["backbone"], run["values"]["cost"]
        plain, reranked = f"{backbone}{start}, plain", f"{backbone}{start}, re-ranked (hard)"
        rows[plain], rows[reranked] = row(run, "none"), row(run, "hard")
        baselines |= {plain: f"{backbone}, plain" if start else next(iter(rows)), reranked: plain}
        size = {"parameters (M)": cost["parameters"] / 1e6, "GFLOPs": cost["gflops"]}
        best, last = (100 * run["scores"][f"{epoch}|mAP"].mean() for epoch in ("best", "none"))
        more |= {plain: size | {"best on test": best, "flattery": best - last}, reranked: size}
    notes = [f"{SELECTION} 'best on test': mAP had each seed's best epoch on test been chosen, as in the paper."]
    question = "is that backbone better than the first, what do re-ranking and pre-training add?"
    return Table("T4", question, rows, baselines, more, [*notes, *_pools(runs, trained)])


def _pools(runs, trained):
    """A note on what the pre-trained rows started from."""
    starts = {run["settings"]["start_weights"] for run, start in trained if start}
    pools = [run["settings"] for run in runs.get("02_training", []) if run["run"] in starts]
    return [
        f"pre-trained: {pool['epochs']} epochs on a rendered pool of {pool['pool']['train_players']} other players "
        "(other teams), then the same training as from scratch."
        for pool in pools
    ]


def fusion_table(runs):
    """T5: singles, pairs and all models under each fusion, against the best single model."""
    question = "does that fusion beat the best single model?"
    if "04_fusion" not in runs:
        return Table("T5", question, notes=["this study runs no fusion"])
    run = runs["04_fusion"][0]
    names = [key.removesuffix("|aps") for key in run["scores"] if key.endswith("|aps")]
    rows = {name: row(run, name) for name in names}
    best = max(run["settings"]["models"], key=lambda name: rows[name]["mAP"].mean())
    notes = [
        SELECTION,
        f"Baseline: {best}, the best single model.",
        "With two models every agreed item is in both lists, both weigh alike, and dissimilarity and two-stage equal "
        "similarity: pairs of a larger set leave them out.",
        f"Every matrix went through {run['settings']['post_processing']!r} first.",
    ]
    return Table("T5", question, rows, dict.fromkeys(rows, best), notes=notes)


def published_rows(runs, note, command):
    """T6: what is published beside what this study measured, made by `command`; blanks stay blank.

    Returns the table (DataFrame) and the notes below it.
    """
    columns = ["entry", "test mAP", "challenge 2022 mAP", "challenge 2023 mAP", "source"]
    lines = [dict(zip(columns, published, strict=True)) for published in PUBLISHED]
    own, commands = note.startswith("Synergy"), []
    column = f"{note.removeprefix('Synergy, ') if own else note} mAP"
    for run in runs.get("04_fusion", []):
        settings = run["settings"]
        fusion = settings["challenge_fusion"]
        test = run["scores"][f"{' + '.join(settings['models'])}: {fusion}|mAP"]
        challenge = run["values"]["challenge"].get("mAP")
        line = {
            "entry": f"ours: {' + '.join(settings['models'])}, {settings['post_processing']}, {fusion}",
            "source": note,
        }
        line["test mAP" if own else f"{note} test mAP"] = round(100 * float(test.mean()), 2)
        line[column if own else f"{note} challenge mAP"] = challenge and round(100 * challenge, 2)
        lines.append(line)
        commands.append(f"Row {len(lines)}: `{command} --only '{run['run']}'`")
    notes = [
        "Ours on test: the mean of the seeds' scores, last epoch; on the challenge split: one entry, each model's "
        "distances averaged over its seeds."
    ]
    if not own:
        notes.append(f"Ours is measured on {note}: it stands beside the published figures, not against them.")
    frame = pd.DataFrame(lines)
    frame.insert(0, "no.", range(1, len(frame) + 1))
    return frame, notes + commands


def study_command(folder):
    """`python run_all.py …` as the study in `folder` was started (see study.json)."""
    record = read_json(folder / "study.json") or {}
    command = record.get("command")
    return command if isinstance(command, str) else f"python run_all.py {record.get('name', folder.name)}"
