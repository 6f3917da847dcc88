"""How far colour alone goes: retrieval by the nearest colour histogram, which bounds a data set's difficulty."""

from pathlib import Path

import cv2
import numpy as np


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


def _mean_average_precision(likeness: np.ndarray, matches: np.ndarray) -> float:
    order = np.argsort(-likeness, axis=1, kind="stable")
    hits = np.take_along_axis(matches, order, axis=1)
    precision = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return float(((precision * hits).sum(axis=1) / hits.sum(axis=1)).mean())


def histogram_bound(data_dir: str | Path) -> float:
    """The mAP (0-1) of the test split when ranked by colour histograms, the best of four kinds.

    Kinds: 8×8×8 RGB and HSV histograms of the whole crop and of six horizontal bands, compared by the Bhattacharyya
    coefficient. `data_dir` is a folder in the Synergy layout; FileNotFoundError where its test split is missing.
    """
    files = {
        role: sorted((Path(data_dir) / "reid_test" / role).glob("*.[jJ][pP]*[gG]")) for role in ("query", "gallery")
    }
    for role, paths in files.items():
        if not paths:
            raise FileNotFoundError(f"{data_dir} has no reid_test/{role}/*.jpeg: give a folder in the Synergy layout")
    players = {role: np.array([path.name.split("_")[0] for path in paths]) for role, paths in files.items()}
    matches = players["query"][:, None] == players["gallery"]
    described = {role: [_describe(path) for path in paths] for role, paths in files.items()}
    scores = []
    for kind in described["query"][0]:
        query, gallery = (np.stack([row[kind] for row in described[role]]) for role in ("query", "gallery"))
        scores.append(_mean_average_precision(query @ gallery.T, matches))
    return max(scores)
