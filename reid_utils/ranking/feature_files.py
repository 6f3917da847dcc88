"""What is ranked, and its files: feature files, the challenge's distance CSV, and folders of either.

A distance CSV is written as the challenge's toolkit writes it. First row: 0, then the gallery ids. Every further row: a
query id, then its distances as `%10.5f`.
"""

import pickle
import re
import warnings
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from reid_utils.files import is_clutter, load_arrays, replacing, save_arrays
from reid_utils.ranking.distances import check_matrix, check_ranked
from reid_utils.ranking.fusion import check_same_ids
from reid_utils.ranking.metrics import as_ids, check_same_kind, known

SIDES = ("query", "gallery")
KINDS = ("players", "images", "cameras", "groups")
REQUIRED = (*SIDES, "query_players", "gallery_players")
FORMS = (".npz", ".npy", ".pt", ".pth", ".mat")  # of feature files
_LABELS = {"player": "players", "camera": "cameras", "group": "groups", "image_id": "images"}  # of a csv beside .npy
# What re-ID toolkits call the same.
_ALIASES = dict(zip(("qf", "gf", "q_pids", "g_pids", "q_camids", "g_camids"),
                    (*REQUIRED, "query_cameras", "gallery_cameras"), strict=True))  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """What is ranked: features of queries and gallery, or the distances between them alone, and who is on each image.

    query (Q, d), gallery (G, d) float32, or None with `distances` (Q, G); players (Q,) and (G,) int64 or text, -1 for
    an unknown one. None where not known: cameras (then nothing is junk), groups (then a query is ranked against the
    whole gallery, else within its own group), images (their names).
    """

    query_players: np.ndarray
    gallery_players: np.ndarray
    query: np.ndarray | None = None
    gallery: np.ndarray | None = None
    distances: np.ndarray | None = None
    query_cameras: np.ndarray | None = None
    gallery_cameras: np.ndarray | None = None
    query_groups: np.ndarray | None = None
    gallery_groups: np.ndarray | None = None
    query_images: np.ndarray | None = None
    gallery_images: np.ndarray | None = None

    def subset(self, queries, gallery):
        """The same of some queries and gallery images; indices, masks or slices of each."""
        chosen = {"query": queries, "gallery": gallery}
        parts = {name: value[chosen[name.partition("_")[0]]] for name, value in self.arrays().items()}
        distances = None if self.distances is None else self.distances[queries][:, gallery]
        return replace(self, **parts, distances=distances)

    def arrays(self):
        """{field: array} of what is known about the images, one entry each."""
        return {name: value for name, value in vars(self).items() if value is not None and name.startswith(SIDES)}


def features_of(manifest, features):
    """`Features` of a split: its rows of the manifest (roles query and gallery) in the order of `features` (N, d).

    Players, cameras and, where a query is ranked within its group alone, groups int64; names of the images text.
    """
    columns = {"players": "player", "cameras": "camera", "images": "image_id"}
    if "group" in manifest and manifest["group"].any():
        columns["groups"] = "group"
    sides = {}
    for role in SIDES:
        rows = (manifest["role"] == role).to_numpy()
        sides[role] = features[rows].astype(np.float32)
        for kind, column in columns.items():
            dtype = np.str_ if kind == "images" else np.int64
            sides[f"{role}_{kind}"] = manifest.loc[rows, column].to_numpy().astype(dtype)
    return Features(**sides)


def save(path, features):
    """Write a feature file, an npz without pickles with a key a field (none for what is not known), atomically."""
    save_arrays(path, **features.arrays())


def load_features(path):
    """Read one feature file: npz without pickles, a dict of tensors or lists by torch.save (.pt, .pth), .mat, or .npy.

    Required keys: query (Q, d), gallery (G, d) float, query_players (Q,), gallery_players (G,) int or text, -1 for an
    unknown player. Optional, see `Features`: {query,gallery}_{cameras,groups,images}. qf, gf, q_pids, g_pids, q_camids
    and g_camids are understood. Labels of shape (1, N) or (N, 1), as MATLAB writes them, are taken too. An .npy holds
    features (N, d); beside it lies a csv of that name, a line a row: role (query or gallery), player and, where known,
    camera, group, image_id. Raises ValueError naming the file and what is wrong with it.
    """
    found = {_ALIASES.get(name, name): array for name, array in _read_arrays(Path(path)).items()}
    if missing := [name for name in REQUIRED if name not in found]:
        raise ValueError(f"{path}: key {missing[0]!r} is missing; a feature file needs {', '.join(REQUIRED)}")
    for role in SIDES:
        found[role] = check_matrix(found[role], f"{path}: {role}").astype(np.float32)
    for kind in KINDS:
        _check_labels(path, kind, found)
    if found["query"].shape[1] != found["gallery"].shape[1]:
        raise ValueError(f"{path}: query has {found['query'].shape[1]} columns, gallery {found['gallery'].shape[1]}")
    return Features(**{field.name: found[field.name] for field in fields(Features) if field.name in found})


def _read_arrays(path):
    """{key: array} of a feature file in any of the `FORMS`."""
    suffix = path.suffix.lower()
    try:
        if suffix in (".pt", ".pth"):
            import torch  # not of the core

            return dict(torch.load(path, map_location="cpu", weights_only=True))
        if suffix == ".mat":
            from scipy.io import loadmat  # heavy, as pandas is below

            return loadmat(path)
        return _rows_beside(path) if suffix == ".npy" else load_arrays(path)
    except (pickle.UnpicklingError, RuntimeError, EOFError, NotImplementedError, TypeError):
        raise ValueError(f"{path} is damaged or holds more than a dict of tensors, numbers and text") from None


def _rows_beside(path):
    """{key: array} of an .npy and of the csv beside it."""
    from pandas import read_csv

    features, labels = np.load(path), path.with_suffix(".csv")
    rows = read_csv(labels)
    if "role" not in rows or len(rows) != len(features):
        raise ValueError(f"{labels} needs a column role and a line for each of the {len(features)} rows of {path}")
    found = {}
    for role, of in rows.groupby("role"):
        found[role] = features[of.index]
        found |= {f"{role}_{kind}": np.array(of[name].tolist()) for name, kind in _LABELS.items() if name in of}
    return found


def _check_labels(path, kind, found):
    """Check the labels of one kind and bring them into the form of `Features`, in place."""
    names = [f"{role}_{kind}" for role in SIDES if f"{role}_{kind}" in found]
    for name in names:
        labels, features = as_ids(found[name], f"{path}: {name}"), found[name.removesuffix(f"_{kind}")]
        if labels.shape != features.shape[:1]:
            needed = f"it needs an entry a row of features, of shape {features.shape}"
            raise ValueError(f"{path}: {name} has shape {labels.shape}; {needed}")
        found[name] = labels
    if len(names) == 2:
        check_same_kind(found[names[0]], found[names[1]], (f"{path}: {names[0]}", names[1]))
    elif names and kind != "images":
        raise ValueError(f"{path} has {names[0]} only; give the {kind} of both sides or of none")


def write_distance_csv(path, distances, query_ids, gallery_ids):
    """Write the challenge CSV, byte for byte what the toolkit's `numpy.savetxt` writes; atomically.

    `distances` (Q, G), in which +inf, for images of other groups, is written as 1 more than the largest number; ids
    (Q,) and (G,) whole numbers. Raises ValueError naming the row for NaN, and for ids of another kind or number.
    """
    distances = check_ranked(distances, "distances")
    inside = distances < np.inf
    distances = np.where(inside, distances, distances.max(where=inside, initial=0) + 1)
    queries, gallery = _whole(query_ids, "query_ids"), _whole(gallery_ids, "gallery_ids")
    if distances.shape != (len(queries), len(gallery)):
        counts = f"{len(queries)} query and {len(gallery)} gallery ids"
        raise ValueError(f"distances of shape {distances.shape} do not fit {counts}")
    template = "%d" + ",%10.5f" * len(gallery) + "\n"
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        file.write(",".join(map(str, [0, *gallery])) + "\n")
        for query, row in zip(queries, distances.tolist(), strict=True):
            file.write(template % (query, *row))


def _whole(ids, name):
    ids = as_ids(ids, name)
    if ids.dtype.kind == "U":
        raise ValueError(f"{name} must be whole numbers for the challenge CSV, not text")
    return ids.tolist()


_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234 is a thousand and more, or a little more than one


def _read_table(path):
    """The numbers of a CSV, cells quoted or not; where semicolons part the cells, a comma is the decimal sign."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    first = lines[0].strip('"') if lines else ""
    delimiter = ";" if ";" in first else ","
    if first.lower().startswith("sep="):  # a spreadsheet's own line
        delimiter, lines = first[4:5] or ",", lines[1:]
    mark = re.escape(delimiter)
    text = re.sub(rf'^(""|)(?={mark})', "0", "\n".join(lines))  # the corner that pandas and R leave empty
    if delimiter != "," and "," in text:
        cells = re.findall(rf'[^\s"{mark}]*,[^\s"{mark}]*', text)
        if "." in text or all(_GROUPED.fullmatch(cell) for cell in cells):
            raise ValueError(f"is {cells[0]} a thousand or a fraction? write a point as the decimal sign throughout")
        text = text.replace(",", ".")
    return np.loadtxt(text.splitlines(), delimiter=delimiter, ndmin=2, quotechar='"')


def read_distance_csv(path):
    """Read a challenge CSV: (distances (Q, G) float64, query_ids (Q,) int64, gallery_ids (G,) int64).

    A byte order mark, semicolons, quoted cells, a `sep=` line and an empty corner are understood. Raises
    FileNotFoundError, or ValueError naming the file for ragged rows, words, NaN, commas that may be thousands or
    fractions, a first cell other than 0, ids that are not whole numbers, or no data.
    """
    try:
        table = _read_table(Path(path))
    except ValueError as error:
        raise ValueError(f"{path} is not a distance CSV: {error}") from error
    if min(table.shape) < 2 or table[0, 0] != 0:
        raise ValueError(f"{path} needs a first row of 0 and the gallery ids, and then a row for each query")
    distances = check_matrix(table[1:, 1:], f"{path}: distances")
    return distances, as_ids(table[1:, 0], f"{path}: query ids"), as_ids(table[0, 1:], f"{path}: gallery ids")


def _features_of_csv(path):
    distances, query_ids, gallery_ids = read_distance_csv(path)
    return Features(distances=distances, query_players=query_ids, gallery_players=gallery_ids)


def load_folder(folder):
    """Read a folder of feature files (`load_features`) or distance CSVs (*.csv), one per model.

    Returns {name: Features}, feature files first, sorted by file name; the ids of a distance CSV are taken for player
    ids. Files that systems leave behind (`._a.npz`) and a training's checkpoint.pt are passed over. Raises
    FileNotFoundError for an empty or missing folder.
    """
    models, folder = {}, Path(folder)
    for suffixes, read in ((FORMS, load_features), ((".csv",), _features_of_csv)):
        for path in sorted(folder.glob("*")):
            is_labels = read is _features_of_csv and path.with_suffix(".npy").exists()
            passed_over = is_labels or is_clutter(path.name) or path.name.startswith("checkpoint.")
            if path.suffix.lower() not in suffixes or passed_over:
                continue
            if path.stem in models:
                raise ValueError(f"{path} and another file there share the name {path.stem}; rename one of them")
            models[path.stem] = read(path)
    if not models:
        raise FileNotFoundError(
            f"{folder} holds no feature files (*{', *'.join(FORMS)}) and no distance matrices (*.csv)"
        )
    return models


def scorable(models):
    """Those of `load_folder`'s models whose query players are known: a hidden challenge split has -1 throughout.

    Warns of those left out; raises ValueError where none remains.
    """
    kept = {name: model for name, model in models.items() if known(model.query_players).any()}
    hidden = ", ".join(name for name in models if name not in kept)
    message = f"all query players of {hidden} are unknown (-1), a hidden split: it is not scored"
    if not kept:
        raise ValueError(f"{message}; give a set with known players")
    if hidden:
        warnings.warn(message, stacklevel=2)
    return kept


def load_models(folders, seeds):
    """Feature files of several models and seeds.

    folders: {model name: result folder with seed<s>/<set>.npz} -> {set: [{model name: Features} a seed]}, for the sets
    that every model and seed has.
    """
    read = [{model: load_folder(Path(folder) / f"seed{seed}") for model, folder in folders.items()} for seed in seeds]
    shared = set.intersection(*(set(sets) for of_seed in read for sets in of_seed.values()))
    return {name: [{model: of_seed[model][name] for model in folders} for of_seed in read] for name in sorted(shared)}


def csv_ids(features, name):
    """Query and gallery ids of a set's distance CSV (int64): image ids in the challenge set, players elsewhere.

    With players in header and first column, notebooks 03 and 04 can score the file. Raises ValueError.
    """
    kind = "images" if name == "challenge" else "players"
    try:
        return [np.asarray(getattr(features, f"{role}_{kind}")).astype(np.int64) for role in SIDES]
    except (ValueError, OverflowError, TypeError) as error:
        raise ValueError(f"{kind} of the {name} set must be whole numbers for the distance CSV ({error})") from None


def same_images(models):
    """Models of the same queries and gallery, each with the cameras, groups and names that one of them knows.

    models: {name: Features}, players known. Raises ValueError naming the first difference in what several know.
    """
    shared = {}
    for kind in KINDS:
        names = [f"{role}_{kind}" for role in SIDES]
        ids = {
            f"{kind} of {model}": [getattr(features, name) for name in names]
            for model, features in models.items()
            if all(name in features.arrays() for name in names)
        }
        if ids:
            check_same_ids(list(ids.values()), list(ids))
            shared |= zip(names, next(iter(ids.values())), strict=True)
    return {model: replace(features, **shared) for model, features in models.items()}
