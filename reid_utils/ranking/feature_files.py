"""Read what is ranked: feature files, and folders of feature files or distance CSVs."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from reid_utils.ranking.submission import read_distance_csv

REQUIRED = ("query", "gallery", "query_players", "gallery_players")


def load_features(path):
    """Read one feature file (npz without pickles).

    Required keys: query (Q, d), gallery (G, d) float, query_players (Q,), gallery_players (G,) int or text. Optional:
    query_cameras, gallery_cameras (0 and 1 where absent, so nothing counts as junk), query_images, gallery_images.
    Returns a dict with all of these, features float32. Raises ValueError naming the file and what is wrong with it.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
        found |= {role: np.asarray(found[role], np.float32) for role in ("query", "gallery") if role in found}
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} is no readable npz without pickles ({error}); save ids as int or astype(str)"
        ) from error
    missing = [name for name in REQUIRED if name not in found]
    if missing:
        raise ValueError(f"{path}: key {missing[0]!r} is missing; a feature file needs {', '.join(REQUIRED)}")
    for camera, role in enumerate(("query", "gallery")):
        features = found[role]
        if features.ndim != 2 or features.shape[:1] != found[f"{role}_players"].shape:
            raise ValueError(
                f"{path}: {role} has shape {features.shape}; it needs one row a player id in {role}_players"
            )
        if not np.isfinite(features).all():
            row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
            raise ValueError(f"{path}: {role} row {row} holds NaN or infinity; extract that image's features again")
        found.setdefault(f"{role}_cameras", np.full(len(features), camera))
        found.setdefault(f"{role}_images", np.arange(len(features)).astype(np.str_))
        for name in (f"{role}_cameras", f"{role}_images"):
            if found[name].shape != features.shape[:1]:
                raise ValueError(f"{path}: {name} has shape {found[name].shape}; it needs an entry a row of {role}")
    if found["query"].shape[1] != found["gallery"].shape[1]:
        raise ValueError(f"{path}: query has {found['query'].shape[1]} columns, gallery {found['gallery'].shape[1]}")
    return found


def load_folder(folder):
    """Read a folder of feature files (*.npz) or distance CSVs (*.csv), one a model.

    Returns {name: features dict} or {name: {"distances", "query_players", "gallery_players"}}, sorted by file name; the
    ids of a distance CSV are taken for player ids. Raises FileNotFoundError for an empty or missing folder.
    """
    folder = Path(folder)
    models = {path.stem: load_features(path) for path in sorted(folder.glob("*.npz"))}
    for path in sorted(folder.glob("*.csv")):
        if path.stem in models:
            raise ValueError(f"{path} and {path.stem}.npz share a name; rename one of them")
        distances, query_ids, gallery_ids = read_distance_csv(path)
        models[path.stem] = {"distances": distances, "query_players": query_ids, "gallery_players": gallery_ids}
    if not models:
        raise FileNotFoundError(
            f"{folder} holds no *.npz feature files and no *.csv distance matrices; name another folder"
        )
    return models
