"""The rows of the paper's tables T1–T6, each from the runs that its question needs."""

import numpy as np
import pandas as pd
from scipy.spatial.distance import pdist

from reid_utils.paper.results import in_code
from reid_utils.paper.tables import ALL_FOLDS, Table, closest, differences, is_again, named, row, training_runs
from reid_utils.ranking.feature_files import load_features

SELECTION = "Selection of the epoch: the last one."
PUBLISHED_COLUMNS = ["entry", "test mAP", *(f"challenge 2022 {score}" for score in ("mAP", "rank-1", "rank-5"))]
PUBLISHED_COLUMNS += ["challenge 2023 mAP", "source"]
PUBLISHED = (
    ("toolkit baseline", 72.7, None, None, None, 61.1, "challenge toolkit, about"),
    ("2022 winner, ViT-B/16", None, 97.56, 98.72, 99.36, None, "2022 winning entry, as published"),
    ("2022 winner, ViT-L/14", None, 98.44, 99.15, 99.79, None, "2022 winning entry, as published"),
    ("2022 winner, two ViT-L/14", None, 98.18, 99.36, 99.57, None, "2022 winning entry, as published"),
    ("2023 winner, fused", None, None, None, None, 98.81, "doi 10.1145/3606038.3616168"),
)


def training_history(runs, recipes):
    """Histories of the runs that use an augmentation of `recipes`, with a column `label` (backbone, start and loss).

    Raises ValueError where there is none from scratch on the training split.
    """
    chosen = training_runs(runs, recipes), training_runs(runs, recipes, pretrained=True)
    if not chosen[0]:
        raise ValueError(
            "no run of notebook 02 trains from scratch on the training split with an augmentation of `recipes`, and "
            "the tables hold such runs alone; give other settings with --only '02*' (or '04*' for a challenge entry)"
        )
    labels = named([*chosen[0], *chosen[1]], lambda run: f"{_encoder(run, runs)}, {run['settings']['loss']}")
    return pd.concat(
        [pd.read_csv(run["folder"] / "history.csv").assign(label=name) for name, run in labels.items()],
        ignore_index=True,
    )


def _encoder(run, runs):
    """What a row calls a run's backbone: its name and, where the study has both, how it started."""
    backbone, settings = run["settings"]["backbone"], run["settings"]
    if settings["start_weights"]:
        return f"{backbone} pre-trained"
    starts = {other["settings"].get("pretrained") for other in training_runs(runs, backbone=backbone)}
    return f"{backbone} from scratch" if len(starts) > 1 and not settings["pretrained"] else backbone


def augmentation_table(runs):
    """T1: each augmentation under InfoNCE on the backbones that vary it, against what the others have in common."""
    found = training_runs(runs, loss="infonce")
    kinds = {}
    for run in found:
        kinds.setdefault(_encoder(run, runs), set()).add(run["settings"]["augmentation"])
    varied = [encoder for encoder in kinds if len(kinds[encoder]) > 1] or list(kinds)[:1]
    rows, baselines, common = {}, {}, {}
    for encoder in varied:
        common[encoder] = common_augmentation(kinds[encoder])
        members = [run for run in found if _encoder(run, runs) == encoder]
        prefix = f"{encoder}: " if len(varied) > 1 else ""
        members = named(members, lambda run, prefix=prefix: prefix + run["settings"]["augmentation"])
        bases = _of(members, augmentation=common[encoder]) or dict(list(members.items())[:1])
        for name in sorted(members, key=lambda name: name not in bases):
            rows[name] = row(members[name], "none")
            baselines[name] = name if name in bases else _twin(name, members) or closest(members[name], bases)
    alone = set(common.values()) <= {"none"}
    question = f"does {'that augmentation, alone,' if alone else 'what that augmentation adds to the baseline'} help?"
    return Table("T1", question, rows, baselines, notes=[SELECTION])


def _of(members, **settings):
    """The runs of {row name: run} with these settings, rows `again` left out."""
    chosen = {name: run for name, run in members.items() if not is_again(run)}
    return {name: run for name, run in chosen.items() if settings.items() <= run["settings"].items()}


def common_augmentation(augmentations):
    """The augmentation that most of the others contain, the one of most parts among these; "none" where there is none.

    flip of none, flip, flip+jitter, flip+erasing; none of none, flip, jitter.
    """
    parts = {name: set(name.split("+")) - {"none"} for name in sorted(augmentations)}
    inside = {name: sum(own <= other for other in parts.values()) - 1 for name, own in parts.items()}
    common = [name for name in parts if 2 * inside[name] > len(parts) - 1]
    return max(common, key=lambda name: len(parts[name]), default="none")


def _twin(name, members):
    """The row that a row `again` repeats; None for other rows."""
    others = (other for other, run in _of(members).items() if not differences(run, [members[name]]))
    return next(others, None) if is_again(members[name]) else None


def loss_table(runs, recipes):
    """T2: each backbone under each loss, one augmentation, against InfoNCE; and the dispersion of its features."""
    found = training_runs(runs, recipes)
    members = named(found, lambda run: f"{_encoder(run, runs)}: {run['settings']['loss']}")
    rows = {name: row(run, "none") | {"dispersion": dispersion(run)} for name, run in members.items()}
    baselines = {}
    for name, run in members.items():
        alike = {key: run["settings"].get(key) for key in ("backbone", "pretrained")}
        bases = _of(members, loss="infonce", **alike)
        own = run["settings"]["loss"] == "infonce" or not bases
        baselines[name] = _twin(name, members) or (name if own else closest(run, bases))
    note = "dispersion: mean pairwise distance of the query features, every query another player; 2 is opposite"
    extra = {name: {"dispersion": arrays["dispersion"].mean()} for name, arrays in rows.items()}
    return Table("T2", "does that loss beat InfoNCE?", rows, baselines, extra=extra, notes=[SELECTION, note])


def dispersion(run):
    """Mean pairwise distance of the query features, a seed each (S,): how far apart a training puts the players."""
    folders, seeds = run.get("folders", [run["folder"]]), run["settings"]["seeds"]
    files = [[folder / f"seed{seed}" / "test.npz" for folder in folders] for seed in seeds]
    return np.array([np.mean([pdist(load_features(file).query).mean() for file in of_seed]) for of_seed in files])


def post_processing_table(runs):
    """T3: each backbone under every post-processing that its run of notebook 03 holds, against its plain distances."""
    rows, baselines = {}, {}
    for name, run in named(runs.get("03_post_processing", []), lambda run: run["settings"]["backbone"]).items():
        for processing in _scored(run):
            rows[f"{name}: {processing}"], baselines[f"{name}: {processing}"] = row(run, processing), f"{name}: none"
    note = "'hard in place' is the 2023 code as published (depends on image order), 'hard' its order-free form"
    question, shared = "does that re-ranking beat plain distances?", frozenset(rows)
    return Table("T3", question, rows, baselines, shared, notes=[SELECTION, note])


def _scored(run):
    """The names under which a run holds scores, in its order."""
    return [key.removesuffix("|aps") for key in run["scores"] if key.endswith("|aps")]


def backbone_table(runs, recipes):
    """T4: each backbone with InfoNCE, from scratch and pre-trained, plain and re-ranked in its run's own form.

    Further columns: parameters, GFLOPs, and for plain rows the encoder before training and what choosing the best epoch
    on test would have given.
    """
    rows, baselines, extra, shared = {}, {}, {}, set()
    found = [each for pool in (False, True) for each in training_runs(runs, recipes, pool, loss="infonce")]
    members = named(found, lambda run: _encoder(run, runs))
    for name, run in members.items():
        plain, reranking = f"{name}, plain", run["settings"].get("reranking", "hard")
        rows[plain], first = row(run, "none"), next(iter(rows), plain)
        base = _twin(name, members) or _from_scratch(run, members)
        other = first if baselines.get(first) != plain else plain  # no pair is compared twice
        baselines[plain] = f"{base}, plain" if base else other
        cost = run["values"]["cost"]
        size = {"parameters (M)": cost["parameters"] / 1e6, "GFLOPs": cost["gflops"]}
        extra[plain] = size | _other_epochs(run)
        if reranking in _scored(run):
            reranked = f"{name}, re-ranked ({reranking})"
            rows[reranked], baselines[reranked], extra[reranked] = row(run, reranking), plain, size
            shared.add(reranked)
    notes = [
        f"{SELECTION} 'zero-shot': mAP of the encoder before this training. 'best on test': mAP had each seed's best "
        "epoch on test been chosen, as in the paper."
    ]
    question = "is that backbone better than the first, what do re-ranking and pre-training add?"
    return Table("T4", question, rows, baselines, frozenset(shared), extra, [*notes, *_pools(runs, found)])


def _other_epochs(run):
    """mAP (per cent) before the first epoch and of the best one on test, as further columns of T4."""
    start, best, last = (
        100 * np.mean(run["scores"].get(f"{each}|mAP", np.nan)) for each in ("untrained", "best", "none")
    )
    return {"zero-shot": start, "best on test": best, "flattery": best - last}


def _from_scratch(run, members):
    """The row of the same backbone that a pre-trained one is set beside: from random weights, or without the pool."""
    pool, pretrained = bool(run["settings"]["start_weights"]), run["settings"]["pretrained"]
    same = _of(members, backbone=run["settings"]["backbone"], start_weights="")
    same = same if pool else _of(same, pretrained=False)
    return closest(run, same) if same and (pool or pretrained) else None


def _pools(runs, trained):
    """A note on what the pre-trained rows started from."""
    starts = {run["settings"]["start_weights"] for run in trained}
    pools = [run["settings"] for run in runs.get("02_training", []) if run["run"] in starts]
    return [
        f"pre-trained: {pool['epochs']} epochs on a rendered pool of {pool['pool']['train_players']} other players "
        "(other teams), then the same training as from scratch."
        for pool in pools
    ]


def fusion_table(runs):
    """T5: singles, pairs and all models under each fusion, against the best single model of the same run.

    The first run's rows carry the plain names; another run's say in what it differs, and equal ones are left out.
    """
    question = "does that fusion beat the best single model?"
    fusions = runs.get("04_fusion", [])
    if not fusions:
        return Table("T5", question, notes=["this study runs no fusion"])
    rows, baselines, bests = {}, {}, []
    for run in fusions:
        suffix = ", ".join(differences(run, fusions[:1]))
        shown = {}  # the row that each of this run's names has in the table
        for name in _scored(run):
            own = row(run, name)
            same = [other for other in rows if other == name or other.startswith(f"{name}, ")]
            equal = (other for other in same if _equal(rows[other], own))
            shown[name] = next(equal, f"{name}, {suffix}" if suffix else name)
            if shown[name] in rows and not _equal(rows[shown[name]], own):
                raise ValueError(f"{run['run']} and {rows[shown[name]]['run']} both have the row {shown[name]!r}")
            rows.setdefault(shown[name], own)
        best = max(run["settings"]["models"], key=lambda name: rows[shown[name]]["mAP"].mean())
        baselines = dict.fromkeys(shown.values(), shown[best]) | baselines
        bests.append(shown[best])
    first = fusions[0]["settings"]
    notes = [
        SELECTION,
        f"Baseline: {', '.join(dict.fromkeys(bests))}, the best single model.",
        "With two models every agreed item is in both lists, both weigh alike, and dissimilarity and two-stage equal "
        "similarity: pairs of a larger set leave them out.",
        f"Every matrix went through {first['post_processing']!r} first"
        f"{', where a row says no other' if len(fusions) > 1 else ''}.",
        *_plain_and_top_k(fusions[0]),
    ]
    # Seed s of a fusion holds seed s of its models: with the best among them, the two rows are paired.
    shared = frozenset(name for name, best in baselines.items() if set(_models(best)) <= set(_models(name)))
    return Table("T5", question, rows, baselines, shared, notes=notes)


def _plain_and_top_k(run):
    """Notes on the rows without re-ranking, and on the length of the lists where a run swept it."""
    bare = any(", plain: " in name for name in _scored(run))
    notes = ["Rows called plain fuse the distances before any post-processing."] if bare else []
    sweep = run["values"].get("by_top_k", [])
    fusions = [key for key in (sweep[0] if sweep else {}) if key != "top_k"]
    lines = (", ".join(f"{100 * line[name]:.2f} at {line['top_k']}" for line in sweep) for name in fusions)
    of_fusions = "; ".join(f"{name} {line}" for name, line in zip(fusions, lines, strict=True))
    return [*notes, *([f"mAP of all models by the length of the lists (top_k): {of_fusions}."] if sweep else [])]


def _models(name):
    """The models of a row of T5, from its name."""
    return name.partition(", ")[0].partition(": ")[0].split(" + ")


def _equal(row, other):
    return np.array_equal(row["aps"], other["aps"], equal_nan=True)


def data_note(runs):
    """What the tables call the data: the note of a run on the training split, where there is one."""
    run = (training_runs(runs) or runs["02_training"])[0]
    ranked = [table for table, stem in _RANKED.items() if stem in runs and run["settings"]["train_on"] == ALL_FOLDS]
    return run["values"]["note"] + (f" ({', '.join(ranked)}: the test split)" if ranked else "")


_RANKED = {"T3": "03_post_processing", "T5": "04_fusion"}  # on the trainings of the whole training split alone


def published_rows(runs, command):
    """T6: what is published beside what this study measured, made by `command`; blanks stay blank.

    A score stands in a published column only where the data are the official set (`year` in its run's values) and no
    test player was trained on. Returns the table (DataFrame) and the notes below it.
    """
    lines = [dict(zip(PUBLISHED_COLUMNS, published, strict=True)) for published in PUBLISHED]
    data, official, commands = data_note(runs), False, []
    years = (run["values"].get("year") for run in runs["02_training"])  # of the published set, by its counts
    year_of_training = next(filter(None, years), None)
    for run in runs.get("04_fusion", []):
        settings, values = run["settings"], run["values"]
        data = values.get("note", data)
        year, fusion = values.get("year", year_of_training), settings["challenge_fusion"]
        tested = "train+test" not in (values.get("trained_on") or ["train"])
        own = f"ours: {' + '.join(settings['models'])}, {settings['post_processing']}, {fusion}"
        line = {"entry": own if tested else f"{own}, trained on train+test", "source": data}
        test = run["scores"].get(f"{' + '.join(settings['models'])}: {fusion}|mAP")
        if tested and test is not None:
            line["test mAP" if year else f"{data} test mAP"] = round(100 * float(test.mean()), 2)
        for key, score in {"mAP": "mAP", "rank1": "rank-1", "rank5": "rank-5"}.items():
            column = f"challenge {year} {score}" if year else f"{data} challenge {score}"
            if values["challenge"].get(key) is not None and (score == "mAP" or column in PUBLISHED_COLUMNS):
                line[column] = round(100 * values["challenge"][key], 2)
        lines.append(line)
        make = in_code(f"{command} --only '{run['run']}'")
        commands.append(f"Row {len(lines)}: {make}")
        official = official or bool(year)
    notes = [
        "Ours on test: the mean of the seeds' scores, last epoch; on the challenge split: one entry, each model's "
        "distances averaged over its seeds.",
        "The 2023 winners saw up to 0.3 mAP between seeds on the challenge: smaller distances from a published figure "
        "say nothing.",
    ]
    if not official:
        notes.append(f"Ours is measured on {data}: it stands beside the published figures, not against them.")
    frame = pd.DataFrame(lines)
    frame.insert(0, "no.", range(1, len(frame) + 1))
    return frame, notes + commands
