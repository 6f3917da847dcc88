"""Which layout a folder of crops has, and a row for each of its images.

Synergy, Market-1501 (DukeMTMC and CUHK03 in its form too), MSMT17 with its lists, SoccerNet ReID, folders per player.
One function each returns the rows of a manifest (see `synergy.load_manifest`), ordered by the numbers in file names.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

from reid_utils.files import is_clutter
from rendered_players import FOLDERS

_IMAGE = r"\.(?:jpe?g|png)"
_SYNERGY = re.compile(rf"([0-9]{{1,9}})_([0-9]{{1,9}})_([0-9]{{1,9}}){_IMAGE}", re.IGNORECASE)
_HIDDEN = re.compile(rf"([0-9]{{1,9}}){_IMAGE}", re.IGNORECASE)
_MARKET = re.compile(rf"(-1|[0-9]{{1,9}})_c([0-9]{{1,4}}).*{_IMAGE}", re.IGNORECASE)
_MSMT = re.compile(rf"[0-9]+_[0-9]+_([0-9]{{1,4}})_.*{_IMAGE}", re.IGNORECASE)
_SOCCER = re.compile(
    rf"[0-9]+-([0-9]{{1,9}})-([^-]+)-([0-9]{{1,9}})-[^-]*-[^-]*-[^-]*-[0-9]+x[0-9]+{_IMAGE}", re.IGNORECASE
)
_SOCCER_HIDDEN = re.compile(rf"[0-9]+-([0-9]{{1,9}})-[0-9]+x[0-9]+{_IMAGE}", re.IGNORECASE)
_TRAIN, _QUERY, _GALLERY = ("train", "train"), ("test", "query"), ("test", "gallery")
_CHALLENGE = (("challenge", "query"), ("challenge", "gallery"))
SETS = (_TRAIN, _QUERY, _GALLERY, *_CHALLENGE)  # (split, role), in the manifest's order


class Row(NamedTuple):
    """One image: `path` is relative to the data's folder, numbers are −1 where hidden.

    A query is ranked against the gallery of its `group` alone, where that is not 0.
    """

    image_id: str
    path: str
    split: str
    role: str
    player: int
    sequence: int
    frame: int
    camera: int
    group: int = 0


def by_numbers(name):
    """Key that orders file names by the numbers in them, as published code and toolkit do, then as text."""
    return [int(number) for number in re.findall("[0-9]+", name)], name


def image_names(folder):
    """Names of the files of a folder, ordered by numbers; what operating systems leave behind is passed over.

    Raises FileNotFoundError for a missing folder, ValueError for an empty one and for what is no regular file.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the layout needs this folder with images in it")
    entries = [entry for entry in os.scandir(folder) if not is_clutter(entry.name)]
    if not entries:
        raise ValueError(f"{folder} is empty: put its images there")
    return sorted((_regular(entry).name for entry in entries), key=by_numbers)


def _regular(entry):
    if re.search(_IMAGE + "$", entry.name, re.IGNORECASE) and not entry.is_file():
        raise ValueError(f"{os.fspath(entry)} is named like an image but is no regular file: remove it")
    return entry


def refuse_repeats(keys, paths, what):
    """Raise ValueError naming two paths whose keys are equal; `what` says what they share."""
    seen = {}
    for key, path in zip(keys, paths, strict=True):
        if key in seen:
            raise ValueError(f"{seen[key]} and {path} have {what}: remove or rename one of them")
        seen[key] = path


def _match(pattern, path, form):
    match = pattern.fullmatch(path.name)
    if not match:
        raise ValueError(f"{path} is not named {form}: rename or remove it")
    return match


def synergy_rows(root):
    """Rows of reid_training, reid_test and, where it is there, reid_challenge: {player}_{sequence}_{frame}.jpeg.

    Camera: query 0, gallery 1, training 0, so that nothing counts as junk, as in the published code. Raises ValueError
    for a name off the pattern and for two files of equal numbers.
    """
    rows = []
    for folder, labels in zip(FOLDERS, SETS, strict=True):
        if labels in _CHALLENGE and not (root / "reid_challenge").is_dir():
            continue
        for name in image_names(root / folder):
            numbers = _synergy_numbers(root / folder / name, labels)
            rows.append(Row(Path(name).stem, f"{folder}/{name}", *labels, *numbers, int("gallery" in labels)))
    labelled = [row for row in rows if row.split != "challenge"]
    shared = [(row.split, row.player, row.sequence, row.frame) for row in labelled]
    refuse_repeats(shared, [row.path for row in labelled], "the same player, sequence and frame")
    hidden = [row for row in rows if row.split == "challenge"]
    refuse_repeats([(row.role, int(row.image_id)) for row in hidden], [row.path for row in hidden], "the same image id")
    return rows


def _synergy_numbers(path, labels):
    if labels in _CHALLENGE:
        _match(_HIDDEN, path, "{image_id}.jpeg (a whole number)")
        return -1, -1, -1
    return tuple(map(int, _match(_SYNERGY, path, "{player}_{sequence}_{frame}.jpeg (whole numbers)").groups()))


def market_rows(root):
    """Rows of bounding_box_train, query and bounding_box_test: {player}_c{camera}….jpg, as 0002_c1s1_000451_03.jpg.

    Player −1 is junk and 0 a distractor, in bounding_box_test alone. Folds keep a player whole (`sequence`), and take
    a player's first image as query (`frame` 0).
    """
    rows = []
    for folder, labels in (("bounding_box_train", _TRAIN), ("query", _QUERY), ("bounding_box_test", _GALLERY)):
        for name in image_names(root / folder):
            match = _match(_MARKET, root / folder / name, "{player}_c{camera}….jpg, as 0002_c1s1_000451_03.jpg")
            player = int(match[1])
            if player < 0 and labels != _GALLERY:
                raise ValueError(
                    f"{root / folder / name} is junk (-1), which belongs into bounding_box_test: move it there"
                )
            rows.append(Row(Path(name).stem, f"{folder}/{name}", *labels, player, player, 0, int(match[2])))
    return _numbered(rows)


def msmt_rows(root):
    """Rows of list_train, list_val, list_query and list_gallery.txt: lines of a path and a player's number.

    Paths lie below mask_train_v2 and mask_test_v2 (version 2) or train and test; the third number of a file's name is
    its camera. The lists number training and test players apart: test players go on where training players end.
    """
    lists = (("list_train", _TRAIN), ("list_val", _TRAIN), ("list_query", _QUERY), ("list_gallery", _GALLERY))
    rows = [row for name, labels in lists for row in _listed(root, root / f"{name}.txt", labels)]
    rows.sort(key=lambda row: (SETS.index(row[2:4]), by_numbers(row.path)))
    return _numbered(_after_training(rows))


def _listed(root, source, labels):
    folder = next((name for name in (f"mask_{labels[0]}_v2", labels[0]) if (root / name).is_dir()), labels[0])
    if not source.is_file():
        raise FileNotFoundError(f"{source} is missing: the layout of MSMT17 needs it")
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), 1):
        name, _, player = line.strip().rpartition(" ")
        path = root / folder / name
        if not re.fullmatch("[0-9]{1,9}", player) or not path.is_file():
            raise ValueError(
                f"{source} line {number} ({line!r}) is not an image of {root / folder} and a player's number"
            )
        camera = int(_match(_MSMT, path, "{player}_{image}_{camera}_….jpg")[1])
        yield Row(path.stem, f"{folder}/{name}", *labels, int(player), int(player), 0, camera)


def soccernet_rows(root):
    """Rows of train, test (else valid) and challenge: {box}-{action}-{person}-{frame}-{class}-{id}-{uai}-{h}x{w}.png.

    `sequence` is the action, and so is `group`, counted from 1: SoccerNet retrieves within an action alone. Persons are
    numbered from 1, test persons after those of training. Cameras as in the Synergy layout. A hidden image's id is its
    box, as SoccerNet takes it.
    """
    test = "test" if (root / "test" / "query").is_dir() else "valid"
    folders = {"train": _TRAIN, f"{test}/query": _QUERY, f"{test}/gallery": _GALLERY}
    if (root / "challenge").is_dir():
        folders |= {"challenge/query": _CHALLENGE[0], "challenge/gallery": _CHALLENGE[1]}
    return _after_training([row for folder, labels in folders.items() for row in _actions(root, folder, labels)])


def _actions(root, folder, labels):
    if not (root / folder).is_dir():
        raise FileNotFoundError(f"{root / folder} is missing: the layout of SoccerNet needs it")
    found = [Path(top) / name for top, _, names in os.walk(root / folder) for name in names]
    found = [_regular(path) for path in found if not any(map(is_clutter, path.relative_to(root).parts))]
    if not found:
        raise ValueError(f"{root / folder} is empty: put its images there")
    for path in sorted(found, key=lambda path: (by_numbers(path.name), path)):
        if labels in _CHALLENGE:
            numbers = (-1, int(_match(_SOCCER_HIDDEN, path, "{box}-{action}-{height}x{width}.png")[1]), -1)
        else:
            form = "{box}-{action}-{person}-{frame}-{class}-{id}-{uai}-{height}x{width}.png"
            action, person, frame = _match(_SOCCER, path, form).groups()
            numbers = (person, int(action), int(frame))
        name = path.relative_to(root).as_posix()
        image_id = path.stem.partition("-")[0] if labels in _CHALLENGE else path.stem
        yield Row(image_id, name, *labels, *numbers, int("gallery" in labels), numbers[1] + 1)


def folder_rows(root):
    """Rows of one folder per player: of `train` and `test` where both are there, else the first half of players trains.

    Players are numbered from 1, in the order of their names. A test player's first image is the query, the others are
    the gallery; cameras as in the Synergy layout. Folds keep a player whole (`sequence`).
    """
    if (root / "train").is_dir() and (root / "test").is_dir():
        players = {"train": _people(root / "train"), "test": _people(root / "test")}
    else:
        people = _people(root)
        players = {"train": people[: len(people) // 2], "test": people[len(people) // 2 :]}
    both = sorted({folder.name for folder in players["train"]} & {folder.name for folder in players["test"]})
    if both:
        raise ValueError(f"player {both[0]} is in both {root / 'train'} and {root / 'test'}: they must share no player")
    rows = []
    for player, (split, folder) in enumerate(((s, f) for s, found in players.items() for f in found), 1):
        for frame, name in enumerate(image_names(folder)):
            _match(re.compile(rf".*{_IMAGE}", re.IGNORECASE), folder / name, "as a .jpg, .jpeg or .png image")
            role = "train" if split == "train" else "gallery" if frame else "query"
            path = (folder / name).relative_to(root).as_posix()
            stem = f"{folder.name}_{Path(name).stem}"
            rows.append(Row(stem, path, split, role, player, player, frame, int(role == "gallery")))
    return sorted(rows, key=lambda row: SETS.index(row[2:4]))


def _people(root):
    """The folders of a folder, ordered by numbers."""
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not is_clutter(entry.name)]
    return [root / name for name in sorted(folders, key=by_numbers)]


def _numbered(rows):
    """Rows with `frame` counting the images of a player, within split and role."""
    counted = {}
    for k, row in enumerate(rows):
        key = row.split, row.role, row.player
        counted[key] = counted.get(key, -1) + 1
        rows[k] = row._replace(frame=counted[key])
    return rows


def _after_training(rows):
    """Rows with players numbered from 1, training players first: their own numbers count within a split only."""
    known = {(row.split, row.player) for row in rows if row.player != -1}
    order = sorted(known, key=lambda key: (key[0] != "train", by_numbers(str(key[1]))))
    numbers = {key: number for number, key in enumerate(order, 1)}
    return [row._replace(player=numbers.get((row.split, row.player), -1)) for row in rows]


def _is_folder_a_player(root):
    folders = [folder for half in ("train", "test") if (root / half).is_dir() for folder in _people(root / half)]
    folders = folders or (_people(root) if root.is_dir() else [])
    parts = {part for folder in (*FOLDERS, "query", "gallery") for part in folder.split("/")}
    if len(folders) < 4 or parts & {folder.name for folder in folders}:
        return False
    return any(re.search(_IMAGE + "$", file.name, re.IGNORECASE) for file in folders[0].iterdir())


LAYOUTS = {  # name: (whether a folder has this layout, its rows)
    "Synergy": (lambda root: (root / "reid_training").is_dir(), synergy_rows),
    "Market-1501": (lambda root: (root / "bounding_box_train").is_dir(), market_rows),
    "MSMT17": (lambda root: (root / "list_train.txt").is_file(), msmt_rows),
    "SoccerNet ReID": (
        lambda root: any((root / part / "query").is_dir() for part in ("test", "valid")),
        soccernet_rows,
    ),
    "a folder a player": (_is_folder_a_player, folder_rows),
}


def find_layout(data_dir) -> tuple[str, Path]:
    """(name of the layout, the folder that has it): `data_dir` itself, or the data_reid folder directly inside it.

    Raises FileNotFoundError where neither has a layout of `LAYOUTS`.
    """
    data_dir = Path(data_dir)
    for folder in (data_dir, data_dir / "data_reid"):
        for name, (has, _) in LAYOUTS.items():
            if has(folder):
                return name, folder
    raise FileNotFoundError(
        f"{data_dir} holds no reid_training (Synergy), bounding_box_train (Market-1501), list_train.txt (MSMT17), "
        "test/query (SoccerNet), nor four or more folders of a player's images: give the folder that holds them"
    )


def find_root(data_dir) -> Path:
    """The folder of `find_layout` alone."""
    return find_layout(data_dir)[1]


def layout_rows(data_dir) -> list[Row]:
    """The rows of a folder's images, whichever layout it has; two of equal split, role and image id are refused."""
    name, root = find_layout(data_dir)
    rows = LAYOUTS[name][1](root)
    refuse_repeats(
        [(row.split, row.role, row.image_id) for row in rows], [row.path for row in rows], "the same image id"
    )
    return rows


def beside(root, name):
    """The file `name` in a data set's folder or in the folder around it, None where neither has it."""
    return next((file for file in (root / name, root.resolve().parent / name) if file.is_file()), None)
