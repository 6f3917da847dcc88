"""The folders of the Synergy Re-ID layout and the two side files beside them: cameras and challenge truth."""

import os
import re
import warnings
from pathlib import Path

import pandas as pd

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
