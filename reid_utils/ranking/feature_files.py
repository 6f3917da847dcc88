"""Files of what is ranked: feature files, the challenge's distance CSV, and folders of either.

A distance CSV is written as the challenge's toolkit writes it. First row: 0, then the gallery ids. Every further row: a
query id, then its distances as `%10.5f`.
"""

import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from reid_utils.files import is_clutter, replacing, save_arrays
from reid_utils.ranking.distances import as_array, check_matrix, first_bad_row
from reid_utils.ranking.metrics import EXACT, as_ids, check_same_kind, known

REQUIRED = ("query", "gallery", "query_players", "gallery_players")


@dataclass(frozen=True, eq=False, kw_only=True)
class Features:
    """What is ranked: the features of a query and a gallery (or their distances alone) and who is on each image.

    query (Q, d), gallery (G, d) float32, or None with `distances` (Q, G); players (Q,), (G,) int64 or text, -1 for an
    unknown one. None where nobody has said: cameras (then nothing is junk), groups (then a query is ranked against the
    whole gallery, else within its own group), images (their names). weights_sha256: of the encoder's file, or "".
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
    weights_sha256: str = ""


def features_of(manifest, features, weights_sha256="") -> Features:
    """`Features` of a split: its rows of the manifest (roles query and gallery) in the order of `features` (N, d).

    Players, cameras and, where a query is ranked within its group alone, groups int64; names of the images text.
    """
    sides = {}
    for role in ("query", "gallery"):
        rows = (manifest["role"] == role).to_numpy()
        sides[role] = features[rows].astype(np.float32)
        sides[f"{role}_players"] = manifest.loc[rows, "player"].to_numpy(np.int64)
        sides[f"{role}_cameras"] = manifest.loc[rows, "camera"].to_numpy(np.int64)
        sides[f"{role}_images"] = manifest.loc[rows, "image_id"].to_numpy().astype(np.str_)
        if "group" in manifest and manifest["group"].any():
            sides[f"{role}_groups"] = manifest.loc[rows, "group"].to_numpy(np.int64)
    return Features(**sides, weights_sha256=weights_sha256)


def save(path, features: Features) -> None:
    """Write a feature file, an npz without pickles with a key a field (what is None has none), atomically."""
    given = {field.name: getattr(features, field.name) for field in fields(features)}
    save_arrays(path, **{name: np.asarray(value) for name, value in given.items() if value is not None})


def _read_npz(path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        return found | {role: as_array(found[role]).astype(np.float32) for role in REQUIRED[:2] if role in found}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise ValueError(
            f"{path} is no readable npz without pickles ({error}); save ids as int or astype(str)"
        ) from error


def _check_features(path, role: str, features: np.ndarray, players: np.ndarray) -> None:
    if features.ndim != 2 or features.shape[:1] != players.shape:
        raise ValueError(f"{path}: {role} has shape {features.shape}; it needs one row per player id in {role}_players")
    row = first_bad_row(features)
    if row is not None:
        raise ValueError(f"{path}: {role} row {row} holds NaN or infinity; extract that image's features again")


def load_features(path) -> Features:
    """Read one feature file (npz without pickles).

    Required keys: query (Q, d), gallery (G, d) float, query_players (Q,), gallery_players (G,) int or text, -1 for an
    unknown player. Optional, see `Features`: {query,gallery}_{cameras,groups,images}. Raises ValueError naming the
    file and what is wrong with it.
    """
    found = _read_npz(path)
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise ValueError(f"{path}: key {missing[0]!r} is missing; a feature file needs {', '.join(REQUIRED)}")
    for kind in ("cameras", "groups"):
        sides = [role for role in ("query", "gallery") if f"{role}_{kind}" in found]
        if len(sides) == 1:
            raise ValueError(f"{path} has {sides[0]}_{kind} only; give the {kind} of both sides or of none")
    for role in ("query", "gallery"):
        features = found[role]
        _check_features(path, role, features, found[f"{role}_players"])
        labels = [f"{role}_{kind}" for kind in ("players", "groups") if f"{role}_{kind}" in found]
        for name in labels:
            found[name] = as_ids(found[name], f"{path}: {name}")
        for name in [f"{role}_{kind}" for kind in ("players", "groups", "cameras", "images")]:
            if name in found and found[name].shape != features.shape[:1]:
                raise ValueError(f"{path}: {name} has shape {found[name].shape}; it needs an entry a row of {role}")
    for kind in ("players", "groups") if "query_groups" in found else ("players",):
        names = (f"{path}: query_{kind}", f"gallery_{kind}")
        check_same_kind(found[f"query_{kind}"], found[f"gallery_{kind}"], names)
    if found["query"].shape[1] != found["gallery"].shape[1]:
        raise ValueError(f"{path}: query has {found['query'].shape[1]} columns, gallery {found['gallery'].shape[1]}")
    found["weights_sha256"] = str(found.get("weights_sha256", ""))
    return Features(**{field.name: found.get(field.name) for field in fields(Features)})


def write_distance_csv(path, distances, query_ids, gallery_ids) -> None:
    """Write the challenge CSV, byte for byte what the toolkit's `numpy.savetxt` writes; atomically.

    `distances` (Q, G); ids (Q,) and (G,) whole numbers. Raises ValueError naming the row for NaN, and for ids of
    another kind or number.
    """
    distances = check_matrix(distances, "distances")
    query_ids, gallery_ids = as_ids(query_ids, "query_ids"), as_ids(gallery_ids, "gallery_ids")
    for name, ids in (("query_ids", query_ids), ("gallery_ids", gallery_ids)):
        if ids.dtype.kind == "U":
            raise ValueError(f"{name} must be whole numbers for the challenge CSV, not text")
    if distances.shape != (len(query_ids), len(gallery_ids)):
        raise ValueError(
            f"distances of shape {distances.shape} do not fit {len(query_ids)} query and {len(gallery_ids)} gallery ids"
        )
    template = ",%10.5f" * len(gallery_ids) + "\n"
    if not Path(path).parent.is_dir():
        raise FileNotFoundError(f"{Path(path).parent} is no folder; make it first, or name another place for the CSV")
    with replacing(path) as temporary, temporary.open("w", encoding="ascii", newline="") as file:
        file.write("0" + "".join(f",{gallery_id}" for gallery_id in gallery_ids.tolist()) + "\n")
        for query_id, row in zip(query_ids.tolist(), distances, strict=True):
            file.write(str(query_id) + template % tuple(row.tolist()))


def _id_column(values: np.ndarray, path: Path, name: str) -> np.ndarray:
    bad = np.flatnonzero((values != np.trunc(values)) | (np.abs(values) >= EXACT))
    if bad.size:
        raise ValueError(f"{path}: {name} id at position {bad[0]} is {values[bad[0]]}, not a whole number below 2^53")
    return values.astype(np.int64)


def _read_table(path: Path) -> np.ndarray:
    """The numbers of a CSV; with semicolons, as spreadsheets write, a comma is the decimal sign."""
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    if lines and ";" in lines[0]:
        lines = [line.replace(",", ".").replace(";", ",") for line in lines]
    return np.loadtxt(lines, delimiter=",", ndmin=2)


def read_distance_csv(path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read a challenge CSV: (distances (Q, G) float64, query_ids (Q,) int64, gallery_ids (G,) int64).

    A byte order mark and semicolons are understood. Raises FileNotFoundError, or ValueError naming the file and the
    row, for ragged rows, words, NaN, a first cell other than 0, ids that are not whole numbers, or no data.
    """
    path = Path(path)
    try:
        table = _read_table(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a distance CSV: {error}") from error
    if min(table.shape) < 2:
        raise ValueError(f"{path} holds {table.shape} values; it needs a row of gallery ids and a row for each query")
    if table[0, 0] != 0:
        raise ValueError(
            f"{path}: the first cell is {table[0, 0]:g}, not 0; the first row must be 0 and the gallery ids"
        )
    distances = check_matrix(table[1:, 1:], f"{path}: distances")
    return distances, _id_column(table[1:, 0], path, "query"), _id_column(table[0, 1:], path, "gallery")


def _read_model(path: Path) -> Features:
    if path.suffix.lower() == ".npz":
        return load_features(path)
    distances, query_ids, gallery_ids = read_distance_csv(path)
    return Features(distances=distances, query_players=query_ids, gallery_players=gallery_ids)


def load_folder(folder):
    """Read a folder of feature files (*.npz) or distance CSVs (*.csv), one per model.

    Returns {name: Features}, feature files first, sorted by file name; the ids of a distance CSV are taken for player
    ids. Files that systems leave behind (`._a.npz`)
    are passed over. Raises FileNotFoundError for an empty or missing folder.
    """
    models, folder = {}, Path(folder)
    for suffix in (".npz", ".csv"):
        for path in sorted(folder.iterdir() if folder.is_dir() else []):
            if path.suffix.lower() != suffix or is_clutter(path.name):
                continue
            if not path.is_file():
                raise ValueError(f"{path} is no regular file: remove or rename it")  # a pipe would be waited for
            if path.stem in models:
                raise ValueError(f"{path} and another file there share the name {path.stem}; rename one of them")
            models[path.stem] = _read_model(path)
    if not models:
        raise FileNotFoundError(
            f"{folder} holds no *.npz feature files and no *.csv distance matrices; name another folder"
        )
    return models


def scorable(models: Mapping) -> dict:
    """Those of `load_folder`'s models whose query players are known: a hidden challenge split has -1 throughout.

    Warns of those left out; raises ValueError where none remains.
    """
    hidden = [name for name, model in models.items() if not known(model.query_players).any()]
    message = f"all query players of {', '.join(hidden)} are unknown (-1), a hidden split: it is not scored"
    if len(hidden) == len(models):
        raise ValueError(f"{message}; give a set with known players")
    if hidden:
        warnings.warn(message, stacklevel=2)
    return {name: model for name, model in models.items() if name not in hidden}


def load_models(folders: Mapping, seeds) -> dict[str, list[dict[str, Features]]]:
    """Feature files of several models and seeds.

    folders: {model name: result folder with seed<s>/<set>.npz} -> {set: [{model name: Features} a seed]}, for the sets
    that every model and seed has.
    """
    read = [{name: load_folder(Path(folder) / f"seed{seed}") for name, folder in folders.items()} for seed in seeds]
    shared = [
        name for name in next(iter(read[0].values())) if all(name in sets for row in read for sets in row.values())
    ]
    return {name: [{model: sets[name] for model, sets in row.items()} for row in read] for name in shared}
