"""The manifest of a data set in any layout: its players, folds, counts and name, cameras and the challenge's truth."""

import re
import warnings

import numpy as np
import pandas as pd

from reid_utils.data.layouts import LAYOUTS, SETS, beside, find_layout, find_root, layout_rows, refuse_repeats

COLUMNS = ["image_id", "path", "split", "role", "player", "sequence", "frame", "fold", "camera", "group"]
_SETS = ["training", "test query", "test gallery", "challenge query", "challenge gallery"]
_PUBLISHED = {  # identities (None where hidden) and images; source: the challenge toolkit's README and code
    2023: dict(zip(_SETS, [(436, 8569), (50, 50), (50, 910), (None, 618), (None, 9505)], strict=True)),
    2022: dict(zip(_SETS, [(436, 8569), (50, 50), (50, 910), (None, 468), (None, 8703)], strict=True)),
}


def load_manifest(data_dir) -> pd.DataFrame:
    """One row an image, with the columns COLUMNS; by split, role and the numbers in the file name, never as listed.

    image_id (the file's stem), path (posix, relative to `data_dir`), split, role: str; player, sequence, frame, fold,
    camera: int, −1 where hidden, for `fold` outside training, and for `player` where the benchmark's gallery has junk.
    A query is ranked against the gallery of its `group` (int) alone, where that is not 0. `layouts` says what each
    layout makes of its names. A `cameras.csv` with the columns path (relative to the folder that has the layout) and
    camera, there or beside that folder, replaces the cameras. The challenge split may be absent; files that operating
    systems leave behind are passed over. Warns about a test query without a gallery image and about fewer than ten
    sequences.

    Raises FileNotFoundError for a missing folder; ValueError for an empty one, a file name off the pattern, a
    duplicate, a player both in training and test, and a training player with one image: no pair can be drawn for it,
    the published code fails there too, and leaving it out unasked would change the set (SoccerNet's are left out, with
    a warning).
    """
    layout, root = find_layout(data_dir)
    manifest = layout_rows(data_dir)
    if LAYOUTS[layout].seen_once:
        manifest = _without_single_images(manifest)
    _check_players(manifest)
    prefix = root.relative_to(data_dir)
    manifest = manifest.assign(
        camera=read_cameras(root, manifest), path=[(prefix / path).as_posix() for path in manifest["path"]]
    )
    return assign_folds(manifest)[COLUMNS]


def _without_single_images(manifest):
    """A manifest without training persons of one image."""
    single = (manifest["split"] == "train") & ~manifest.duplicated(["split", "player"], keep=False)
    if single.any():
        warnings.warn(f"{single.sum()} training persons of a single image make no pair and are left out", stacklevel=3)
    return manifest[~single].reset_index(drop=True)


def _check_players(manifest):
    """Raise ValueError for what no study can use, naming an image; warn of queries without a match."""
    sets = {labels: rows.groupby("player")["path"].first() for labels, rows in manifest.groupby(["split", "role"])}
    train, query, gallery = (sets.get(labels, pd.Series(dtype=object)) for labels in SETS[:3])
    for role, paths in (("query", query), ("gallery", gallery)):
        if paths.empty:
            raise ValueError(f"there are no {role} images: put images to test on into folders query and gallery")
    if -1 in train or (-1 in query and len(query) > 1):
        junk = (train if -1 in train else query)[-1]
        raise ValueError(f"{junk} shows junk or no known player (-1), which the gallery alone may: move or rename it")
    for player, path in pd.concat([query, gallery]).items():
        if player in train:
            raise ValueError(
                f"player {player} is in both {train[player]} and {path}: the two sets must share no player"
            )
    images = manifest.loc[manifest["split"] == "train", "player"].value_counts()
    single = sorted(images.index[images == 1])
    if single:
        raise ValueError(
            f"player {single[0]} has a single training image, {train[single[0]]} ({len(single)} such players), which "
            "makes no pair: add another image or remove it"
        )
    lonely = sorted(set(query.index) - set(gallery.index))
    if lonely:
        warnings.warn(
            f"{len(lonely)} test queries have no gallery image of their player (first: player {lonely[0]}); "
            "scores leave them out",
            stacklevel=3,
        )


def assign_folds(manifest, n_folds=None) -> pd.DataFrame:
    """The manifest with `fold` 0 … n_folds − 1 for training rows, GroupKFold grouped by sequence.

    `n_folds` None: as many as there are sequences, ten at most; a number above that is lowered to it with a warning.
    With one sequence every fold is −1, and `fold_split` raises. Warns where a player has several sequences and so may
    stand on both sides of a fold. Raises ValueError for `n_folds` below 2. Source: the published code's preprocessing
    (there over training and test together).
    """
    from sklearn.model_selection import GroupKFold

    rows = np.flatnonzero(manifest["split"] == "train")
    groups = manifest["sequence"].to_numpy()[rows]
    possible = len(np.unique(groups))
    if n_folds is not None and n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}: give at least 2")
    if n_folds and possible < n_folds:
        warnings.warn(f"{possible} sequences, so {possible} folds instead of {n_folds}", stacklevel=2)
    count = min(n_folds or 10, possible)
    folds = np.full(len(manifest), -1)
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

    `train_on`: "train" (the official split), "train+test" (every labelled image: the challenge entry), "fold K" (the
    training images but fold K, which is validated in place of the test split) or "fold K of N", where N folds are made
    whatever the manifest holds. Labels (N,) int64 in the manifest's
    order: the player 0…P−1, or −1 where an image is not trained on. Validation rows have the roles query and gallery
    and keep their manifest index. Raises ValueError for any other `train_on` and for a fold that is not there.
    """
    training = manifest[manifest["split"] == "train"]
    validation = manifest[manifest["split"] == "test"]
    fold = re.fullmatch(r"fold ([0-9]+)(?: of ([0-9]+))?", train_on)
    if fold:
        folded = assign_folds(manifest, int(fold[2])) if fold[2] else manifest
        training, *held_out = fold_split(folded, int(fold[1]))
        validation = pd.concat(held_out)
    elif train_on == "train+test":
        training = pd.concat([training, validation[~is_nobody(validation)]])
    elif train_on != "train":
        raise ValueError(f'train_on is {train_on!r}: give "train", "train+test", "fold 0" or "fold 0 of 4"')
    labels = np.full(len(manifest), -1, np.int64)
    labels[training.index] = np.unique(training["player"], return_inverse=True)[1]
    return labels, validation


def is_nobody(manifest) -> pd.Series:
    """Which images (bool) show no player that is known: hidden ones and junk (−1), distractors (0 that no query is)."""
    asked = manifest.loc[manifest["role"] != "gallery", "player"]
    return (manifest["player"] == -1) | (manifest["player"] == 0) & (0 not in set(asked))


def counts(manifest) -> pd.DataFrame:
    """Identities and images of each set: columns set, identities (Int64, missing where hidden), images."""
    known = set(manifest.loc[~is_nobody(manifest), "player"])
    rows = []
    for name, (split, role) in zip(_SETS, SETS, strict=True):
        part = manifest[(manifest["split"] == split) & (manifest["role"] == role)]
        if len(part):
            rows.append((name, pd.NA if split == "challenge" else len(known & set(part["player"])), len(part)))
    return pd.DataFrame(rows, columns=["set", "identities", "images"]).astype({"identities": "Int64"})


def _differences(manifest, year):
    own = counts(manifest).astype(object).where(lambda table: table.notna(), None).set_index("set").T.to_dict("list")
    found = [(name, tuple(own.get(name, (None, 0))), known) for name, known in _PUBLISHED[year].items()]
    return [f"{name} {_in_words(*mine)} instead of {_in_words(*known)}" for name, mine, known in found if mine != known]


def _in_words(identities, images):
    return f"{images} images" if identities is None else f"{images} images of {identities} players"


def published_year(manifest) -> int | None:
    """The year of the challenge (2022 or 2023) whose published Synergy Re-ID set has these very counts, or None."""
    return next((year for year in _PUBLISHED if not _differences(manifest, year)), None)


def check_counts(manifest) -> str:
    """One line: which published Synergy Re-ID set the counts equal, or what differs from the nearer one."""
    year = min(_PUBLISHED, key=lambda year: len(_differences(manifest, year)))
    differences = "; ".join(_differences(manifest, year))
    name = f"Synergy Re-ID with the {year} challenge"
    return f"counts differ from {name}: {differences}" if differences else f"counts equal those of {name}"


def set_name(data_dir, manifest) -> str:
    """What figures and tables call a set: "rendered data", "Synergy, challenge 2023", else the folder's name.

    A folder that only calls itself so is shown as "folder NAME": a set is known by its counts, not by its name.
    """
    root = find_root(data_dir)
    if (root / "rendering.json").exists():
        return "rendered data"
    if year := published_year(manifest):
        return f"Synergy, challenge {year}"
    name = (root.resolve().parent.name if root.name == "data_reid" else root.resolve().name) or "data"
    return f"folder {name}" if name.casefold().startswith(("synergy", "rendered data")) else name


def _read_table(source):
    """A side file as text cells, commas or semicolons between them; raises ValueError naming one that is no CSV."""
    try:
        header = source.read_text(encoding="utf-8-sig").partition("\n")[0]
        separator = ";" if ";" in header and "," not in header else ","
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # a row with more cells than the header
            return pd.read_csv(
                source, sep=separator, encoding="utf-8-sig", dtype=str, keep_default_na=False, index_col=False
            )
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(
            f"{source} is no readable CSV ({' '.join(str(error).split())}): correct or remove it"
        ) from error


def read_cameras(root, manifest):
    """The camera of each row (list of int): from cameras.csv where it lies there, else as the manifest has it."""
    source = beside(root, "cameras.csv")
    if source is None:
        return manifest["camera"]
    table = _read_table(source)
    if not {"path", "camera"} <= set(table.columns):
        raise ValueError(f"{source} has the columns {list(table.columns)}: it needs path and camera")
    refuse_repeats(table["path"], str(source) + ": " + table["path"], "two rows")
    cameras = dict(zip(table["path"], table["camera"], strict=True))
    # A split that the file leaves out whole keeps the convention; half a split would mix two meanings.
    named = manifest["path"].isin(cameras)
    lacking = manifest["path"][~named & manifest["split"].isin(manifest["split"][named])]
    faults = [
        f"gives {path} the camera {camera!r}: give a whole number from 0 up"
        for path, camera in cameras.items()
        if not re.fullmatch("[0-9]{1,9}", camera)
    ]
    faults += [
        f"names {path}, which is no image here: write paths as reid_test/query/NAME"
        for path in sorted(cameras.keys() - set(manifest["path"]))
    ]
    faults += [f"gives no camera for {path}: add its row" for path in lacking]
    if faults:
        raise ValueError(f"{source} {faults[0]}")
    given = zip(manifest["path"], manifest["camera"], strict=True)
    return [int(cameras.get(path, camera)) for path, camera in given]


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
    table = _read_table(source).rename(columns={"pid": "player"})
    if {"split", "id", "player"} <= set(table.columns):
        keys = table["split"] + "/" + table["id"]
    elif {"path", "player"} <= set(table.columns):
        keys = table["path"].str.removeprefix("reid_challenge/").str.rpartition(".")[0]
    else:
        raise ValueError(f"{source} has the columns {list(table.columns)}: it needs path, player or split, id, pid")
    parts = keys.str.extract("^(query|gallery)/0*([0-9]{1,9})$")
    good = parts.notna().all(axis=1) & table["player"].str.fullmatch("[0-9]{1,9}").astype(bool)
    if not good.all():
        raise ValueError(f"{source} row {good.argmin() + 2} gives no challenge image and player: correct it")
    keys = parts[0] + "/" + parts[1]
    refuse_repeats(keys, str(source) + ": " + keys, "two rows")
    hidden = layout_rows(root).query("split == 'challenge'")[["image_id", "role"]]
    images = hidden["role"] + "/" + hidden["image_id"].str.lstrip("0").replace("", "0")
    different = sorted(set(keys) ^ set(images))
    if different:
        lacking = "names an image that is not there:" if different[0] in set(keys) else "has no row for"
        raise ValueError(f"{source} {lacking} reid_challenge/{different[0]}: give the truth of these very images")
    players = images.map(dict(zip(keys, table["player"].astype(int), strict=True)))
    return hidden.assign(player=players)[["image_id", "player", "role"]].reset_index(drop=True)
