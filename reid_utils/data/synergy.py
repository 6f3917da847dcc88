"""The Synergy Re-ID layout: manifest, folds, counts, image checks, fingerprint, challenge truth."""

import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from reid_utils.data.integrity import data_fingerprint, validate_images
from reid_utils.data.layout import FOLDERS, challenge_truth, file_names, find_root, read_cameras, refuse_repeats

__all__ = [
    "COLUMNS", "assign_folds", "challenge_truth", "check_counts", "counts", "data_fingerprint", "find_root",
    "fold_split", "load_manifest", "training_and_validation", "validate_images",
]  # fmt: skip

COLUMNS = ["image_id", "path", "split", "role", "player", "sequence", "frame", "fold", "camera"]
_LABELLED = re.compile(r"([0-9]{1,9})_([0-9]{1,9})_([0-9]{1,9})\.jpe?g", re.IGNORECASE)
_HIDDEN = re.compile(r"([0-9]{1,9})\.jpe?g", re.IGNORECASE)
_SETS = ["training", "test query", "test gallery", "challenge query", "challenge gallery"]
_PUBLISHED = {
    2023: dict(zip(_SETS, [(436, 8569), (50, 50), (50, 910), (None, 618), (None, 9505)], strict=True)),
    2022: dict(zip(_SETS, [(436, 8569), (50, 50), (50, 910), (None, 468), (None, 8703)], strict=True)),
}


def load_manifest(data_dir) -> pd.DataFrame:
    """One row an image, with the columns COLUMNS; sorted by split, role and file name, never by file system.

    image_id (the file's stem), path (posix, relative to `data_dir`), split, role: str; player, sequence, frame, fold,
    camera: int, −1 where hidden, and for `fold` outside training. Camera: query 0, gallery 1, training 0 (so nothing
    counts as junk, as in the published code), unless a `cameras.csv` with the columns path (relative to the folder
    that holds reid_training) and camera lies there or beside that folder. The challenge split may be absent; hidden
    files are passed over. Warns about a test query without a gallery image and about fewer than ten sequences.

    Raises FileNotFoundError for a missing folder; ValueError for an empty one, a file name off the pattern, a
    duplicate (player, sequence, frame), a player both in training and test, and a training player with one image:
    no pair can be drawn for it, the published code fails there too, and leaving it out unasked would change the set.
    """
    base, root = Path(data_dir), find_root(data_dir)
    parts = {folder: labels for folder, labels in FOLDERS.items() if _expected(root, folder)}
    rows = [row for folder, (split, role) in parts.items() for row in _rows(root, folder, split, role)]
    manifest = pd.DataFrame(rows, columns=COLUMNS)
    _check_duplicates(manifest)
    _check_players(manifest)
    manifest = manifest.assign(camera=read_cameras(root, manifest))
    prefix = "" if root == base else "data_reid/"
    return assign_folds(manifest.assign(path=prefix + manifest["path"]))


def _expected(root, folder):
    return not folder.startswith("reid_challenge") or (root / "reid_challenge").is_dir()


def _rows(root, folder, split, role):
    labelled = split != "challenge"
    pattern = _LABELLED if labelled else _HIDDEN
    names = file_names(root, folder)
    if not names:
        raise ValueError(f"{root / folder} is empty: put its images there")
    for name in names:
        match = pattern.fullmatch(name)
        if not match:
            form = "{player}_{sequence}_{frame}.jpeg" if labelled else "{image_id}.jpeg"
            raise ValueError(f"{root / folder / name} is not named {form} (whole numbers): rename or remove it")
        numbers = [int(group) for group in match.groups()] if labelled else [-1, -1, -1]
        yield [name.rpartition(".")[0], f"{folder}/{name}", split, role, *numbers, -1, int(role == "gallery")]


def _check_duplicates(manifest):
    hidden = manifest["split"] == "challenge"
    labelled, hidden = manifest[~hidden], manifest[hidden]
    keys = labelled["split"] + labelled[["player", "sequence", "frame"]].astype(str).agg("_".join, axis=1)
    refuse_repeats(keys, labelled["path"], "the same player, sequence and frame")
    refuse_repeats(hidden["role"] + hidden["image_id"].str.lstrip("0"), hidden["path"], "the same image id")


def _check_players(manifest):
    train = manifest.loc[manifest["split"] == "train", "player"]
    test = manifest[manifest["split"] == "test"]
    both = sorted(set(train) & set(test["player"]))
    if both:
        raise ValueError(f"player {both[0]} is in both reid_training and reid_test: the two sets must share no player")
    images = train.value_counts()
    single = sorted(images[images == 1].index)
    if single:
        raise ValueError(
            f"player {single[0]} has a single training image ({len(single)} such players), which makes no pair: "
            "add another image or remove it"
        )
    roles = {role: set(test.loc[test["role"] == role, "player"]) for role in ("query", "gallery")}
    lonely = sorted(roles["query"] - roles["gallery"])
    if lonely:
        warnings.warn(
            f"{len(lonely)} test queries have no gallery image of their player (first: player {lonely[0]}); "
            "scores leave them out",
            stacklevel=3,
        )


def assign_folds(manifest, n_folds=10) -> pd.DataFrame:
    """The manifest with `fold` 0 … min(n_folds, sequences) − 1 for training rows, GroupKFold grouped by sequence.

    Warns where there are fewer sequences than folds; with one sequence every fold is −1, and `fold_split` raises.
    Warns too where a player has several sequences and so may stand on both sides of a fold. Raises ValueError for
    `n_folds` below 2. Source: the published code's preprocessing (there over training and test together).
    """
    from sklearn.model_selection import GroupKFold

    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}: give at least 2")
    rows = np.flatnonzero(manifest["split"] == "train")
    groups = manifest["sequence"].to_numpy()[rows]
    count = min(n_folds, len(np.unique(groups)))
    folds = np.full(len(manifest), -1)
    if count < n_folds:
        made = f"{count} folds" if count > 1 else "no folds"
        warnings.warn(f"the training set has {count} sequences, so {made} instead of {n_folds}", stacklevel=2)
    if count > 1:
        for k, (_, held_out) in enumerate(GroupKFold(count).split(rows, groups=groups)):
            folds[rows[held_out]] = k
    split_players = manifest.assign(fold=folds).iloc[rows].groupby("player")["fold"].nunique()
    if (split_players > 1).any():
        warnings.warn(f"player {split_players.idxmax()} falls into more than one fold", stacklevel=2)
    return manifest.assign(fold=folds)


def fold_split(manifest, k) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """(training rows, query rows, gallery rows) of fold `k`: the held-out query is frame 00, its gallery the rest.

    Rows keep their manifest index; held-out rows get the role query or gallery, and camera 0 or 1 where all training
    rows have one camera (else nothing would match). Raises ValueError for a fold that is not there or has no frame 00.
    """
    train = manifest[manifest["split"] == "train"]
    folds = sorted(set(train["fold"]) - {-1})
    if not folds:
        raise ValueError("folds need training images of at least 2 sequences: use the test split instead")
    if k not in folds:
        raise ValueError(f"there is no fold {k}: the folds are {folds[0]} to {folds[-1]}")
    held_out = train[train["fold"] == k]
    is_gallery = (held_out["frame"] > 0).astype(int)
    held_out = held_out.assign(role=is_gallery.map({0: "query", 1: "gallery"}))
    if train["camera"].nunique() == 1:
        held_out = held_out.assign(camera=is_gallery)
    if is_gallery.all():
        raise ValueError(f"fold {k} has no image of frame 00 to be a query: take another fold")
    return train[train["fold"] != k], held_out[is_gallery == 0], held_out[is_gallery == 1]


def training_and_validation(manifest, train_on="train") -> tuple[np.ndarray, pd.DataFrame]:
    """(labels of all images, validation rows) of a manifest: what a training learns from and what it is scored on.

    `train_on`: "train" (the official split), "train+test" (every labelled image: the challenge entry) or "fold K" (the
    training images but fold K, which is validated in place of the test split). Labels (N,) int64 in the manifest's
    order: the player 0…P−1, or −1 where an image is not trained on. Validation rows have the roles query and gallery
    and keep their manifest index. Raises ValueError for any other `train_on` and for a fold that is not there.
    """
    training = manifest[manifest["split"] == "train"]
    validation = manifest[manifest["split"] == "test"]
    fold = re.fullmatch(r"fold ([0-9]+)", train_on)
    if fold:
        training, *held_out = fold_split(manifest, int(fold[1]))
        validation = pd.concat(held_out)
    elif train_on == "train+test":
        training = pd.concat([training, validation])
    elif train_on != "train":
        raise ValueError(f'train_on is {train_on!r}: give "train", "train+test" or "fold K", as in "fold 0"')
    labels = np.full(len(manifest), -1, np.int64)
    labels[training.index] = np.unique(training["player"], return_inverse=True)[1]
    return labels, validation


def counts(manifest) -> pd.DataFrame:
    """Identities and images of each set: columns set, identities (Int64, missing where hidden), images."""
    rows = []
    for name, (split, role) in zip(_SETS, FOLDERS.values(), strict=True):
        part = manifest[(manifest["split"] == split) & (manifest["role"] == role)]
        if len(part):
            rows.append((name, pd.NA if split == "challenge" else part["player"].nunique(), len(part)))
    return pd.DataFrame(rows, columns=["set", "identities", "images"]).astype({"identities": "Int64"})


def check_counts(manifest) -> str:
    """One line: which published Synergy Re-ID set (challenge 2022 or 2023) the counts equal, or what differs.

    Source of the published counts: the challenge toolkit's README and code. Compared with the year that is nearer.
    """
    own = {
        name: (None if ids is pd.NA else ids, images) for name, ids, images in counts(manifest).itertuples(index=False)
    }
    differences = {}
    for year, published in _PUBLISHED.items():
        pairs = [(name, own.get(name, (None, 0)), known) for name, known in published.items()]
        differences[year] = [
            f"{name} {_count_text(*mine)} instead of {_count_text(*known)}"
            for name, mine, known in pairs
            if mine != known
        ]
    year = min(differences, key=lambda year: len(differences[year]))
    if not differences[year]:
        return f"counts equal those of Synergy Re-ID with the {year} challenge"
    return f"counts differ from Synergy Re-ID with the {year} challenge: {'; '.join(differences[year])}"


def set_name(data_dir, manifest) -> str:
    """What figures and tables call a set: "rendered data", "Synergy, challenge 2023", else the folder's name."""
    root = find_root(data_dir)
    if (root / "rendering.json").exists():
        return "rendered data"
    told = check_counts(manifest)
    if told.startswith("counts equal"):
        return f"Synergy, challenge {told.split()[-2]}"
    return root.resolve().parent.name if root.name == "data_reid" else root.name


def _count_text(identities, images):
    return f"{images} images" if identities is None else f"{images} images of {identities} players"
