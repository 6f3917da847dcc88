"""Which layout a folder of crops has, and a row for each of its images.

A layout is a row of `LAYOUTS`: the folders that hold the images of each set, and how their names are read. Only where
names do not say enough (MSMT17's lists, a folder per player, plain crops) a function of its own reads them.
"""

import os
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from reid_utils.files import is_clutter
from rendered_players import FOLDERS

SETS = [("train", "train"), ("test", "query"), ("test", "gallery"), ("challenge", "query"), ("challenge", "gallery")]
COLUMNS = ["image_id", "path", "split", "role", "player", "sequence", "frame", "camera", "group"]
SIGNS = (
    "reid_training (Synergy), bounding_box_train (Market-1501), list_train.txt (MSMT17), test/query (SoccerNet), "
    "train and test/A (PRCC), train, nor four or more folders of a player's images"
)
_IMAGE = r"\.(?i:jpe?g|png|bmp|webp)"
_PARTS = {"train": "train", "val": "train", "test": "test", "query": "test", "gallery": "test"}  # folder: split
_ASKED = ("query", "gallery")
_NOTES = (".csv", ".json", ".md", ".npz", ".txt")  # what may lie beside plain crops


def by_numbers(name):
    """Key that orders file names by the numbers in them, as published code and toolkit do, then as text."""
    return [int(number) for number in re.findall("[0-9]+", name)], name


def _by_parts(path):
    return [by_numbers(part) for part in Path(path).parts]


def _files(folder):
    """The files in a folder and below, without what operating systems leave behind."""
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not is_clutter(name)]
        yield from (Path(place, name) for name in files if not is_clutter(name))


def _folders(place):
    return [path for path in place.glob("*") if path.is_dir() and not is_clutter(path.name)]


def _is_image(path):
    return re.search(_IMAGE + "$", path.name) is not None


def _row(root, place, path, labels, pattern, form):
    """One image of a folder `place` as a dict. Raises ValueError for what is off the pattern."""
    below = path.relative_to(place)
    match = re.fullmatch(pattern + _IMAGE, below.as_posix())
    if not match:
        raise ValueError(f"{path} is not named {form}: rename or remove it")
    split, role = labels
    row = {"image_id": "_".join(below.with_suffix("").parts), "path": path.relative_to(root).as_posix()}
    return row | {"split": split, "role": role} | match.groupdict()


def _places(layout):
    """Pairs of a folder, or list, and its (split, role)."""
    return [(name, labels) for names, labels in zip(layout.folders, SETS, strict=False) for name in names.split()]


def _by_names(root, layout):
    """Rows of the layout's folders, ordered by the numbers in file names."""
    for folder, labels in _places(layout):
        place = root / folder.lstrip("?")
        if folder.startswith("?") and not (root / folder[1:].partition("/")[0]).is_dir():
            continue
        found = sorted(_files(place), key=lambda path: (by_numbers(path.name), path))
        if not found:
            raise FileNotFoundError(f"{place} is missing or empty: the layout needs this folder with images in it")
        rule = layout.hidden if labels[0] == "challenge" else layout.rule
        yield from (_row(root, place, path, labels, *rule) for path in found)


def _by_lists(root, layout):
    """Rows of MSMT17's lists: lines of a path and a player's number; the third number of a name is its camera."""
    rows = []
    for name, labels in _places(layout):
        source = root / name
        place = next((root / part for part in (f"mask_{labels[0]}_v2", labels[0]) if (root / part).is_dir()), root)
        if not source.is_file():
            raise FileNotFoundError(f"{source} is missing: the layout of MSMT17 needs it")
        for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
            path, _, player = line.strip().rpartition(" ")
            if not re.fullmatch("[0-9]{1,9}", player) or not (place / path).is_file():
                where = f"{source} line {number} ({line!r})"
                raise ValueError(f"{where} is not an image of {place} and a player's number: correct it")
            rows.append(_row(root, place, place / path, labels, *layout.rule) | {"player": player})
    return sorted(rows, key=lambda row: _by_parts(row["path"]))


def _crop(path):
    """What a path (str) says: id, path, split and role by folders named so, the other folders, the name's number."""
    *folders, name = path.split("/")
    words = [folder.casefold() for folder in folders if folder.casefold() in _PARTS]
    others = [folder for folder in folders if folder.casefold() not in _PARTS]
    split = _PARTS[words[0]] if words else ""
    role = "train" if split == "train" else next((word for word in words if word in _ASKED), "")
    number = re.match("(?:-?[0-9]+(?=_))?", name)[0]
    return "_".join([*others, name.rpartition(".")[0]]), path, split, role, "/".join(others), number


def _refuse(root, table, wrong, what):
    """Raise ValueError naming the first row that is wrong, where there is one."""
    if wrong.any():
        raise ValueError(f"{root / table['path'][wrong.argmax()]} {what}: move, rename or remove it")


def _by_folders(root, layout, halved=False):
    """Rows of any folder of crops: of its folders train, val, test, query and gallery, where it has them.

    A crop's player is the folder around it, where there are several, else the number before the first "_" of its name,
    else unknown (−1); a folder -1 holds junk. Without query and gallery a player's first image is the query, and
    unknown ones are both.
    `halved`: the first half of the players trains where no folder says who does.
    """
    found = [path for path in _files(root) if path.parent != root or path.suffix.lower() not in _NOTES]
    paths = sorted((_row(root, root, path, SETS[0], *layout.rule)["path"] for path in found), key=_by_parts)
    table = pd.DataFrame(map(_crop, paths), columns=[*COLUMNS[:5], "number"], dtype=object)
    folder, number, placed = table["player"], table["number"], table["split"] != ""
    _refuse(root, table, placed.any() & ~placed, "lies in none of the folders train, val, test, query and gallery")
    asked = table["role"].isin(_ASKED)
    _refuse(root, table, asked.any() & (table["role"] == ""), "lies in neither query nor gallery")
    if folder.nunique() > 1:
        wrong = ~placed & folder.str.contains(rf"(?i)(?:^|[-_ /])(?:{'|'.join(_PARTS)})(?:$|[-_ /])")
        _refuse(root, table, wrong, "lies in a folder named as a set is, but not train, val, test, query or gallery")
        _refuse(root, table, folder == "", "lies in no player's folder, as others do")
        if len(set(zip(folder, number, strict=True))) > max(folder.nunique(), number.nunique()):
            warnings.warn(f"{root}: players are the folders around crops, not the numbers in names", stacklevel=4)
        if folder.map(os.path.basename).nunique() < folder.nunique():
            nested = next(name for name in folder if "/" in name)
            warnings.warn(f"{root}: {nested} is taken as a player: move crops up if a part of it is none", stacklevel=4)
    else:
        wrong = (number != "").any() & ~number.str.fullmatch("-1|[0-9]{1,9}").astype(bool)
        _refuse(root, table, wrong, "does not begin with a player's number of at most nine digits and _")
        table["player"] = number.replace("", "-1").astype(int)
    junk = table["player"].isin([-1, "-1"])
    if halved and not placed.any():
        people = table["player"][~junk].unique()
        table.loc[table["player"].isin(people[: len(people) // 2]), ["split", "role"]] = "train"
    table["split"] = table["split"].replace("", "test")
    if not asked.any():
        later = table.duplicated(["split", "player"]) | junk
        table["role"] = table["role"].mask(table["split"] == "test", np.where(later, "gallery", "query"))
        if (table["player"] == -1).all():
            return pd.concat([table.assign(role="query"), table])
    return table


class Layout(NamedTuple):
    """How a layout is known, and how its images are found and named.

    has: whether a folder has it; folders: those of each of SETS, or its lists, with a space between two, and with "?"
    before one that may be missing; rule: the pattern of names below these folders, whose named groups are columns, and
    the same as messages show it; hidden: both where identities are hidden; read: a function (root, layout) that gives
    the rows; named: players have names, or numbers that count within a "split" only, and are numbered anew; seen_once:
    persons of one image are usual in training; grouped: a query is ranked within its sequence alone; single: no two
    labelled images agree in player, sequence and frame.
    """

    has: Callable
    folders: tuple = ()
    rule: tuple = (".*", "as a JPEG, PNG, BMP or WebP image")
    hidden: tuple = ()
    read: Callable = _by_names
    named: str = ""
    seen_once: bool = False
    grouped: bool = False
    single: bool = False


def _with(*names):
    return lambda root: any((root / name).exists() for name in names)


def _has_players(root):
    """Whether a folder has a folder train or val, or four and more of a player's images."""
    folders = _folders(root)
    words = {folder.name.casefold() for folder in folders} & set(_PARTS)
    of_players = len(folders) >= 4 and not words and any(map(_is_image, folders[0].glob("*")))
    return bool(words & {"train", "val"}) or of_players


def _soccernet(test):
    """SoccerNet ReID, tested on its folder `test`. It is known by its names: others have a folder test/query too."""
    pattern = (
        "(?:.*/)?(?P<image_id>[0-9]+-(?P<sequence>[0-9]{1,9})-(?P<player>[^-/]+)-(?P<frame>[0-9]{1,9})-"
        "[^-/]*-[^-/]*-[^-/]*-[0-9]+x[0-9]+)"
    )
    hidden = "(?:.*/)?(?P<image_id>[0-9]+)-(?P<sequence>[0-9]{1,9})-[0-9]+x[0-9]+"
    return Layout(
        lambda root: any(re.fullmatch(pattern + _IMAGE, path.name) for path in _files(root / test / "query")),
        ("train", f"{test}/query", f"{test}/gallery", "?challenge/query", "?challenge/gallery"),
        (pattern, "{box}-{action}-{person}-{frame}-{class}-{id}-{uai}-{height}x{width}.png"),
        (hidden, "{box}-{action}-{height}x{width}.png"),
        named="split",
        seen_once=True,
        grouped=True,
    )


LAYOUTS = {
    "Synergy": Layout(
        _with("reid_training", "reid_test"),
        tuple(folder.replace("reid_ch", "?reid_ch") for folder in FOLDERS),
        (
            "(?P<player>[0-9]{1,9})_(?P<sequence>[0-9]{1,9})_(?P<frame>[0-9]{1,9})",
            "{player}_{sequence}_{frame}.jpeg (whole numbers)",
        ),
        ("[0-9]{1,9}", "{image_id}.jpeg (a whole number)"),
        single=True,
    ),
    # DukeMTMC and CUHK03 come in its form too. Player −1 is junk and 0 a distractor, in bounding_box_test alone.
    "Market-1501": Layout(
        _with("bounding_box_train", "bounding_box_test"),
        ("bounding_box_train", "query", "bounding_box_test"),
        (
            "(?P<player>-1|[0-9]{1,9})_c(?P<camera>[0-9]{1,4})[^/]*",
            "{player}_c{camera}….jpg, as 0002_c1s1_000451_03.jpg",
        ),
    ),
    "MSMT17": Layout(
        _with("list_train.txt"),
        ("list_train.txt list_val.txt", "list_query.txt", "list_gallery.txt"),
        ("(?:.*/)?(?P<image_id>[0-9]+_[0-9]+_(?P<camera>[0-9]{1,4})_[^/]*)", "{player}_{image}_{camera}_….jpg"),
        read=_by_lists,
        named="split",
    ),
    "SoccerNet ReID": _soccernet("test"),
    "SoccerNet ReID, valid": _soccernet("valid"),
    # Players who changed clothes: C is looked for in A. B, the clothes of A again, is left out.
    "PRCC": Layout(
        lambda root: bool(_folders(root / "test" / "C")),
        ("train ?val", "test/C", "test/A"),
        ("(?P<player>[^/]+)/.+", "{player}/….jpg"),
        named="set",
    ),
    "a folder a player": Layout(_has_players, read=partial(_by_folders, halved=True), named="set"),
    "crops": Layout(lambda root: any(map(_is_image, _files(root))), read=_by_folders, named="set"),
}


def find_layout(data_dir):
    """(name of the layout, the folder that has it): `data_dir` itself, or the data_reid folder directly inside it.

    Raises FileNotFoundError where there is no image in a layout of `LAYOUTS`.
    """
    for name, layout in LAYOUTS.items():
        for folder in (Path(data_dir), Path(data_dir) / "data_reid"):
            if layout.has(folder):
                return name, folder
    raise FileNotFoundError(f"{data_dir} holds no {SIGNS}: give the folder that holds them")


def find_root(data_dir):
    """The folder of `find_layout` alone."""
    return find_layout(data_dir)[1]


def _numbered(table, within):
    """Players numbered from 1 (Series), training first, then by the numbers in names; NaN stays, "-1" becomes NaN."""
    keys = within + "/" + table["player"]
    known = table.assign(key=keys, later=table["split"] != "train")[table["player"].fillna("-1") != "-1"]
    known = known.drop_duplicates("key")
    order = sorted(zip(known["later"], known["player"].map(by_numbers), known["key"], strict=True))
    return keys.map({key: number for number, (*_, key) in enumerate(order, 1)})


def refuse_repeats(keys, paths, what):
    """Raise ValueError naming two paths whose keys are equal; `what` says what they share."""
    seen = {}
    for key, path in zip(keys, paths, strict=True):
        if key in seen:
            raise ValueError(f"{seen[key]} and {path} have {what}: remove or rename one of them")
        seen[key] = path


def layout_rows(data_dir):
    """COLUMNS of each image of a folder, whichever layout it has, by split and role; numbers are −1 where hidden.

    Paths are relative to the folder that has the layout. Where names do not say it, the sequence is the player (folds
    keep it whole), the frame counts a player's images, and the camera is 1 in the gallery, else 0, so that nothing is
    junk, as in the published code. Raises ValueError for a name off the layout's pattern and for two images of one id;
    FileNotFoundError for a missing or empty folder.
    """
    name, root = find_layout(data_dir)
    layout = LAYOUTS[name]
    table = pd.DataFrame(layout.read(root, layout), dtype=object)
    table["set"] = [SETS.index(labels) for labels in zip(table["split"], table["role"], strict=True)]
    table = table.sort_values("set", kind="stable", ignore_index=True)
    if layout.named and isinstance(table["player"][0], str):
        table["player"] = _numbered(table, table["split"] if layout.named == "split" else "")
    defaults = {
        "sequence": table["player"],
        "frame": table.groupby(["split", "role", "player"]).cumcount(),
        "camera": (table["role"] == "gallery").astype(int),
    }
    table = pd.DataFrame({**defaults, **table})
    numbers = ["player", "sequence", "frame", "camera"]
    table[numbers] = table[numbers].apply(pd.to_numeric).fillna(-1).astype(int)
    table["group"] = table["sequence"] + 1 if layout.grouped else 0
    if layout.single:
        labelled = table.query("split != 'challenge'")
        keys = labelled[["split", *numbers[:3]]].itertuples(index=False)
        refuse_repeats(keys, labelled["path"], "the same player, sequence and frame")
    ranked = table.query("split != 'train'")
    ids = ranked["image_id"].mask(ranked["split"] == "challenge", ranked["image_id"].str.lstrip("0"))
    refuse_repeats(zip(ranked["split"], ranked["role"], ids, strict=True), ranked["path"], "the same image id")
    return table[COLUMNS]


def beside(root, name):
    """The file `name` in a data set's folder or in the folder around it, None where neither has it."""
    return next((file for file in (root / name, root.resolve().parent / name) if file.is_file()), None)
