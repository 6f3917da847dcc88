"""The Synergy Re-ID layout: manifest, folds, counts, image checks, fingerprint, challenge truth."""

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

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


FOLDERS = {
    "reid_training": ("train", "train"),
    "reid_test/query": ("test", "query"),
    "reid_test/gallery": ("test", "gallery"),
    "reid_challenge/query": ("challenge", "query"),
    "reid_challenge/gallery": ("challenge", "gallery"),
}


def find_root(data_dir) -> Path:
    """The folder that holds reid_training: `data_dir` itself, or the data_reid folder directly inside it.

    Raises FileNotFoundError where neither is one.
    """
    data_dir = Path(data_dir)
    for folder in (data_dir, data_dir / "data_reid"):
        if (folder / "reid_training").is_dir():
            return folder
    raise FileNotFoundError(
        f"{data_dir} holds no reid_training folder: give the folder that holds reid_training and reid_test"
    )


def file_names(root, folder):
    """Sorted names of the files of a folder of the layout; raises FileNotFoundError where it is missing."""
    if not (root / folder).is_dir():
        raise FileNotFoundError(f"{root / folder} is missing: the layout needs this folder with JPEG files in it")
    return sorted(entry.name for entry in os.scandir(root / folder) if not entry.name.startswith("."))


def beside(root, name):
    """The file `name` in the folder that holds reid_training or the folder around it, None where neither has it."""
    return next((file for file in (root / name, root.resolve().parent / name) if file.is_file()), None)


def refuse_repeats(keys, paths, what):
    """Raise ValueError naming two paths whose keys are equal; `what` says what they share."""
    repeated = keys.duplicated()
    if repeated.any():
        second = repeated.idxmax()
        first = keys[keys == keys[second]].index[0]
        raise ValueError(f"{paths[first]} and {paths[second]} have {what}: remove or rename one of them")


def _read_table(source):
    """A side file as text cells; raises ValueError naming a file that is empty, ragged or not UTF-8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than the header
            return pd.read_csv(source, dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{source} is no readable CSV ({' '.join(str(error).split())}): mend or remove it") from error


def read_cameras(root, manifest):
    """The camera of each row (int Series): from cameras.csv where it lies there, else as the manifest has it."""
    source = beside(root, "cameras.csv")
    if source is None:
        return manifest["camera"]
    table = _read_table(source)
    if not {"path", "camera"} <= set(table.columns):
        raise ValueError(f"{source} has the columns {list(table.columns)}: it needs path and camera")
    refuse_repeats(table["path"], str(source) + ": " + table["path"], "two rows")
    for path, camera in zip(table["path"], table["camera"], strict=True):
        if not re.fullmatch("[0-9]{1,9}", camera):
            raise ValueError(f"{source} gives {path} the camera {camera!r}: give a whole number from 0 up")
    unknown = sorted(set(table["path"]) - set(manifest["path"]))
    if unknown:
        raise ValueError(f"{source} names {unknown[0]}, which is no image here: write paths as reid_test/query/NAME")
    # A split that the file leaves out whole keeps the convention; half a split would mix two meanings.
    given = manifest["path"].map(table.set_index("path")["camera"].astype(int))
    named = manifest["split"].isin(manifest.loc[given.notna(), "split"])
    if (given.isna() & named).any():
        path = manifest.loc[given.isna() & named, "path"].iloc[0]
        raise ValueError(f"{source} gives no camera for {path}: add its row")
    return given.fillna(manifest["camera"]).astype(int)


def challenge_truth(data_dir) -> pd.DataFrame | None:
    """The challenge set's identities from `challenge_truth.csv`; None where there is no such file.

    The file lies in the folder that holds reid_training or beside that folder, and has the columns path and player
    (as rendered) or split (query or gallery), id and pid. Returns image_id (str, as in the manifest), player (int)
    and role, in the manifest's order. Raises ValueError for other columns, repeated or unreadable rows, and where
    the file and the challenge images are not the same.
    """
    root = find_root(data_dir)
    source = beside(root, "challenge_truth.csv")
    if source is None:
        return None
    table = _truth_rows(source)
    keys = table["role"] + "/" + table["number"].astype(str)
    refuse_repeats(keys, str(source) + ": " + keys, "two rows")
    stems = {
        f"{role}/{int(stem)}": (stem, role)
        for role in ("query", "gallery")
        for stem in (name.rpartition(".")[0] for name in file_names(root, f"reid_challenge/{role}"))
    }
    different = sorted(set(keys) ^ set(stems))
    if different:
        lacking = "has no row for" if different[0] in stems else "names an image that is not there:"
        raise ValueError(f"{source} {lacking} reid_challenge/{different[0]}: give the truth of these very images")
    players = dict(zip(keys, table["player"].astype(int), strict=True))
    rows = [(stem, players[key], role) for key, (stem, role) in stems.items()]
    return pd.DataFrame(rows, columns=["image_id", "player", "role"])


def _truth_rows(source):
    """role, number (int) and player of each row of a truth file, whichever of the two forms it has."""
    table = _read_table(source)
    if {"path", "player"} <= set(table.columns):
        paths = table["path"].str.extract(r"reid_challenge/(query|gallery)/([0-9]{1,9})\.jpe?g$", flags=re.IGNORECASE)
        table = pd.DataFrame({"role": paths[0], "number": paths[1], "player": table["player"]})
    elif {"split", "id", "pid"} <= set(table.columns):
        table = pd.DataFrame({"role": table["split"], "number": table["id"], "player": table["pid"]})
    else:
        raise ValueError(f"{source} has the columns {list(table.columns)}: it needs path, player or split, id, pid")
    numeric = [table[name].str.fullmatch("[0-9]{1,9}").fillna(False).astype(bool) for name in ("number", "player")]
    good = table["role"].isin(["query", "gallery"]) & numeric[0] & numeric[1]
    if not good.all():
        raise ValueError(
            f"{source} row {int((~good).to_numpy().argmax()) + 2} gives no challenge image and player: mend it"
        )
    return table.assign(number=table["number"].astype(int))
