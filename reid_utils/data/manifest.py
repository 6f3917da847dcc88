"""The manifest of a data set in any layout: its players, folds, counts and name, cameras and the challenge's truth."""

import re
import warnings

import numpy as np
import pandas as pd

from reid_utils.data.layouts import LAYOUTS, SETS, beside, find_layout, find_root, layout_rows, refuse_repeats

COLUMNS = ["image_id", "path", "split", "role", "player", "sequence", "frame", "fold", "camera", "group"]
_SETS = ["training", "test query", "test gallery", "challenge query", "challenge gallery"]
# Identities and images of the published sets, images alone of the challenge's; source: the toolkit's README and code.
_LABELLED = ("8569 images of 436 players", "50 images of 50 players", "910 images of 50 players")
_PUBLISHED = {2023: ("618 images", "9505 images"), 2022: ("468 images", "8703 images")}


def load_manifest(data_dir):
    """One row an image, with the columns COLUMNS; by split, role and the numbers in the file name, never as listed.

    image_id (the file's stem), path (posix, relative to `data_dir`), split, role: str; player, sequence, frame, fold,
    camera: int, −1 where hidden, for `fold` outside training, and for `player` where the benchmark's gallery has junk.
    A query is ranked against the gallery of its `group` (int) alone, where that is not 0. `layouts` says what each
    layout makes of its names. A `cameras.csv` with the columns path (relative to the folder that has the layout) and
    camera, there or beside that folder, replaces the cameras; a `groups.csv` the groups. The challenge split may be
    absent; files that operating systems leave behind are passed over. Warns about a test query without a gallery image
    and about fewer than ten sequences.

    Raises FileNotFoundError for a missing or empty folder; ValueError for a file name off the pattern, a
    duplicate, a player both in training and test, and a training player with one image: no pair can be drawn for it,
    the published code fails there too, and leaving it out unasked would change the set (SoccerNet's are left out, with
    a warning).
    """
    layout, root = find_layout(data_dir)
    manifest = layout_rows(data_dir)
    _check_players(manifest)
    manifest = _with_pairs(manifest, LAYOUTS[layout].seen_once)
    prefix = root.relative_to(data_dir)
    given = {column: _given(root, manifest, column) for column in ("camera", "group")}
    manifest = manifest.assign(**given, path=[(prefix / path).as_posix() for path in manifest["path"]])
    return assign_folds(manifest)[COLUMNS]


def _with_pairs(manifest, seen_once):
    """A manifest whose training players have two images: others raise ValueError, or are left out if `seen_once`."""
    alone = (manifest["split"] == "train") & ~manifest.duplicated(["split", "player"], keep=False)
    if not alone.any():
        return manifest
    if not seen_once:
        player, path = manifest.loc[alone.idxmax(), ["player", "path"]]
        raise ValueError(
            f"player {player} has a single training image, {path} ({alone.sum()} such players), which makes no pair: "
            "add another image or remove it"
        )
    warnings.warn(f"{alone.sum()} training persons of a single image make no pair and are left out", stacklevel=3)
    return manifest[~alone].reset_index(drop=True)


def _check_players(manifest):
    """Raise ValueError for what no study can use, naming an image; warn of queries without a match."""
    train, query, gallery = (
        manifest.query(f"split == '{split}' and role == '{role}'").groupby("player")["path"].first()
        for split, role in SETS[:3]
    )
    if query.empty or gallery.empty:
        raise ValueError(
            "there are no query or no gallery images: put images to test on into folders query and gallery"
        )
    if -1 in train or (-1 in query and len(query) > 1):
        junk = (train if -1 in train else query)[-1]
        raise ValueError(f"{junk} shows junk or no known player (-1), which the gallery alone may: move or rename it")
    for player, path in pd.concat([query, gallery]).items():
        if player in train:
            raise ValueError(
                f"player {player} is in both {train[player]} and {path}: the two sets must share no player"
            )
    lonely = query.index.difference(gallery.index)
    if len(lonely):
        warnings.warn(
            f"{len(lonely)} test queries have no gallery image of their player (first: player {lonely[0]}); "
            "scores leave them out",
            stacklevel=3,
        )


def assign_folds(manifest, n_folds=None):
    """The manifest with `fold` 0 … n_folds − 1 for training rows, GroupKFold grouped by sequence.

    `n_folds` None: as many as there are sequences, ten at most; a number above that is lowered to it with a warning.
    With one sequence every fold is −1, and `fold_split` raises. Warns where a player has several sequences and so may
    stand on both sides of a fold. Source: the published code's preprocessing (there over training and test together).
    """
    from sklearn.model_selection import GroupKFold

    train = manifest.query("split == 'train'")
    possible = train["sequence"].nunique()
    if n_folds and possible < n_folds:
        warnings.warn(f"{possible} sequences, so {possible} folds instead of {n_folds}", stacklevel=2)
    count = min(n_folds or 10, possible)
    folds = np.full(len(manifest), -1)
    if count > 1:
        for k, (_, held_out) in enumerate(GroupKFold(count).split(train, groups=train["sequence"])):
            folds[train.index[held_out]] = k
    manifest = manifest.assign(fold=folds)
    split_players = manifest.loc[train.index].groupby("player")["fold"].nunique()
    if (split_players > 1).any():
        warnings.warn(f"player {split_players.idxmax()} falls into more than one fold", stacklevel=2)
    return manifest


def fold_split(manifest, k):
    """(training rows, query rows, gallery rows) of fold `k`: the held-out query is frame 00, its gallery the rest.

    Rows keep their manifest index; held-out rows get the role query or gallery, and camera 0 or 1 where all training
    rows have one camera (else nothing would match). Raises ValueError for a fold that is not there or has no frame 00.
    """
    train = manifest.query("split == 'train'")
    folds = sorted(set(train["fold"]) - {-1})
    if k not in folds:
        raise ValueError(
            f"there is no fold {k}: the folds are {folds}, which need at least 2 sequences in training; else "
            "use the test split instead"
        )
    query = train.query(f"fold == {k} and frame == 0").assign(role="query")
    gallery = train.query(f"fold == {k} and frame != 0").assign(role="gallery")
    if query.empty:
        raise ValueError(f"fold {k} has no image of frame 00 to be a query: take another fold")
    if train["camera"].nunique() == 1:
        query["camera"], gallery["camera"] = 0, 1
    return train[train["fold"] != k], query, gallery


def training_and_validation(manifest, train_on="train"):
    """(labels of all images, validation rows) of a manifest: what a training learns from and what it is scored on.

    `train_on`: "train" (the official split), "train+test" (every labelled image: the challenge entry), "fold K" (the
    training images but fold K, which is validated in place of the test split) or "fold K of N", where N folds are made
    whatever the manifest holds. Labels (N,) int64 in the manifest's
    order: the player 0…P−1, or −1 where an image is not trained on. Validation rows have the roles query and gallery
    and keep their manifest index. Raises ValueError for any other `train_on` and for a fold that is not there.
    """
    training = manifest.query("split == 'train'")
    validation = manifest.query("split == 'test'")
    fold = re.fullmatch(r"fold ([0-9]+)(?: of ([2-9]|[1-9][0-9]+))?", train_on)
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


def is_nobody(manifest):
    """Which images (bool) show no player that is known: hidden ones and junk (−1), distractors (0 that no query is)."""
    asked = manifest.query("role != 'gallery'")["player"]
    return (manifest["player"] == -1) | (manifest["player"] == 0) & (0 not in set(asked))


def _sizes(manifest):
    """Yield (identities or None where hidden, images) of each of SETS."""
    known = set(manifest.loc[~is_nobody(manifest), "player"])
    for split, role in SETS:
        players = manifest.query(f"split == '{split}' and role == '{role}'")["player"]
        yield None if split == "challenge" else len(known & set(players)), len(players)


def counts(manifest):
    """Identities and images of each set: columns set, identities (Int64, missing where hidden), images."""
    table = pd.DataFrame(_sizes(manifest), columns=["identities", "images"], dtype="Int64")
    table.insert(0, "set", _SETS)
    return table[table["images"] > 0]


def _differences(manifest, year):
    """What is other than in the published set of a year, as texts."""
    sizes = _sizes(manifest)
    own = [f"{count} images" + (f" of {players} players" if players is not None else "") for players, count in sizes]
    sets = zip(_SETS, own, _LABELLED + _PUBLISHED[year], strict=True)
    return [f"{name} {found} instead of {known}" for name, found, known in sets if found != known]


def published_year(manifest):
    """The year of the challenge (2022 or 2023) whose published Synergy Re-ID set has these very counts, or None."""
    return next((year for year in _PUBLISHED if not _differences(manifest, year)), None)


def check_counts(manifest):
    """One line: which published Synergy Re-ID set the counts equal, or what differs from the nearer one."""
    year = min(_PUBLISHED, key=lambda year: len(_differences(manifest, year)))
    differences = "; ".join(_differences(manifest, year))
    name = f"Synergy Re-ID with the {year} challenge"
    return f"counts differ from {name}: {differences}" if differences else f"counts equal those of {name}"


def set_name(data_dir, manifest):
    """What figures and tables call a set: "rendered data", "Synergy, challenge 2023", else the folder's name."""
    root = find_root(data_dir)
    if (root / "rendering.json").exists():
        return "rendered data"
    if year := published_year(manifest):
        return f"Synergy, challenge {year}"
    place = root.resolve()
    return (place.parent if root.name == "data_reid" else place).name or "data"


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


def _numbers(source, table, column, images):
    """The numbers (Series) that a side file gives `images`, by their names in its column path.

    Raises ValueError naming an image that is not there, has no row or two, and what is no whole number.
    """
    if not {"path", column} <= set(table.columns):
        raise ValueError(
            f"{source} has the columns {list(table.columns)}: it needs path and {column} (see docs/data.md)"
        )
    refuse_repeats(table["path"], f"{source}: " + table["path"], "two rows")
    numbers = table.set_index("path")[column]
    wanted = numbers.reindex(images, fill_value="")
    missing = wanted.index[~wanted.str.fullmatch("[0-9]{1,9}")]
    faults = [f"names {path}, which is no image here: correct it" for path in numbers.index.difference(images)]
    faults += [f"gives no {column} for {path}, a whole number from 0 up: correct or add its row" for path in missing]
    if faults:
        raise ValueError(f"{source} {faults[0]}")
    return numbers.astype(int)


def _given(root, manifest, column):
    """The camera or group of each row (Series of int): from its side file where there is one, else the manifest's."""
    source = beside(root, f"{column}s.csv")
    if source is None:
        return manifest[column]
    table = _read_table(source)
    # A split that the file leaves out whole keeps the convention; half a split would mix two meanings.
    named = manifest["path"].isin(table.get("path", []))
    covered = manifest["split"].isin(manifest["split"][named])
    numbers = _numbers(source, table, column, manifest["path"][covered])
    return manifest["path"].map(numbers).fillna(manifest[column]).astype(int)


def challenge_truth(data_dir):
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
    if {"split", "id"} <= set(table.columns):
        table["path"] = table["split"] + "/" + table["id"]
    if "path" in table:
        table["path"] = _challenge_names(table["path"])
    hidden = layout_rows(root).query("split == 'challenge'").reset_index(drop=True)
    names = _challenge_names(hidden["role"] + "/" + hidden["image_id"])
    return hidden.assign(player=names.map(_numbers(source, table, "player", names)))[["image_id", "player", "role"]]


def _challenge_names(paths):
    """query/7 of reid_challenge/query/0007.jpeg and query/0007."""
    return paths.str.replace(r"^(?:reid_challenge/)?(\w+/)0*([0-9]+)(?:\.\w+)?$", r"\1\2", regex=True)
