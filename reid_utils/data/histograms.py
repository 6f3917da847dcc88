"""How far colour alone goes: retrieval by the nearest colour histogram, which bounds a data set's difficulty."""

from pathlib import Path

import cv2
import numpy as np

from reid_utils.data.layouts import find_root, layout_rows


def _histogram(image: np.ndarray, bands: int) -> np.ndarray:
    """Square roots of 8×8×8 histograms of equal horizontal bands, float32 (bands × 512,), of length 1."""
    parts = []
    for band in np.array_split(image // 32, bands):
        codes = band.reshape(-1, 3).astype(np.intp) @ (64, 8, 1)
        parts.append(np.bincount(codes, minlength=512) / len(codes))
    # Dot products of square roots are Bhattacharyya coefficients, the usual likeness of histograms.
    return np.sqrt(np.concatenate(parts) / bands).astype(np.float32)


def _describe(path: Path) -> dict[str, np.ndarray]:
    image = cv2.imread(str(path))
    if image is None:
        raise ValueError(f"{path} is not a readable image: render or download it again")
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    return {
        f"{name}{bands}": _histogram(pixels, bands)
        for name, pixels in (("rgb", image), ("hsv", hsv))
        for bands in (1, 6)
    }


def _mean_average_precision(likeness: np.ndarray, matches: np.ndarray, junk: np.ndarray) -> float:
    """Mean over the queries (rows) that have a match; junk is left out, ties go by index."""
    precisions = []
    for row, hits, left_out in zip(likeness, matches, junk, strict=True):
        ranked = hits[~left_out][np.argsort(-row[~left_out], kind="stable")]
        places = np.flatnonzero(ranked) + 1
        if len(places):
            precisions.append(np.mean(np.arange(1, len(places) + 1) / places))
    return float(np.mean(precisions))


def histogram_bound(data_dir: str | Path) -> float:
    """The mAP (0-1) of the test split when ranked by colour histograms, the best of four kinds.

    Kinds: 8×8×8 RGB and HSV histograms of the whole crop and of six horizontal bands, compared by the Bhattacharyya
    coefficient. `data_dir` is a folder in one of the layouts. The gallery's junk (player −1), images of the query's
    player in the query's camera, and other groups, are left out. NaN where no query has a match.
    """
    root = find_root(data_dir)
    test = [row for row in layout_rows(root) if row.split == "test"]
    query, gallery = ([row for row in test if row.role == role] for role in ("query", "gallery"))
    players, cameras, groups = (
        [np.array([getattr(row, name) for row in rows]) for rows in (query, gallery)]
        for name in ("player", "camera", "group")
    )
    matches = players[0][:, None] == players[1]
    junk = matches & (cameras[0][:, None] == cameras[1]) | (players[1] == -1) | (groups[0][:, None] != groups[1])
    if not (matches & ~junk).any():
        return float("nan")
    described = [[_describe(root / row.path) for row in rows] for rows in (query, gallery)]
    scores = []
    for kind in described[0][0]:
        asked, given = (np.stack([row[kind] for row in rows]) for rows in described)
        scores.append(_mean_average_precision(asked @ given.T, matches, junk))
    return max(scores)
