"""How difficult a set is: what colour alone reaches, what damage on purpose costs, and what lies behind errors."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from reid_utils.data.images import decode
from reid_utils.data.layouts import beside, find_root


def _histogram(image, bands):
    """Square roots of 8×8×8 histograms of equal horizontal bands, float32 (bands × 512,), of length 1."""
    parts = []
    for band in np.array_split(image // 32, bands):
        codes = band.reshape(-1, 3).astype(np.intp) @ (64, 8, 1)
        parts.append(np.bincount(codes, minlength=512) / len(codes))
    # Dot products of square roots are Bhattacharyya coefficients, the usual likeness of histograms.
    return np.sqrt(np.concatenate(parts) / bands).astype(np.float32)


def _describe(path):
    """{kind: histogram} of an image file."""
    image = cv2.cvtColor(decode(path), cv2.COLOR_RGB2BGR)
    hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV_FULL)
    return {
        f"{name}, {bands} bands": _histogram(pixels, bands)
        for name, pixels in (("RGB", image), ("HSV", hsv))
        for bands in (1, 6)
    }


def colour_distances(data_dir, manifest):
    """{kind: distances (Q, G) float32} of the test split by colour histograms: what needs no training.

    Kinds: 8×8×8 RGB and HSV histograms of the whole crop and of six horizontal bands; the distance is the negated
    Bhattacharyya coefficient. `manifest`: as from `load_manifest`. A gallery image of another group than the query's is
    at 1, behind all of its own.
    """
    sets = [manifest.query(f"split == 'test' and role == '{role}'") for role in ("query", "gallery")]
    apart = np.not_equal.outer(*(rows["group"].to_numpy() for rows in sets))
    described = [[_describe(Path(data_dir) / path) for path in rows["path"]] for rows in sets]
    query, gallery = ({kind: np.stack([row[kind] for row in rows]) for kind in rows[0]} for rows in described)
    return {kind: np.where(apart, np.float32(1), -query[kind] @ gallery[kind].T) for kind in query}


# Damage: pure functions of an RGB image (h, w, 3) uint8, which return one of the same shape and type; level 0 changes
# nothing. Levels are relative to the crop, so that they mean the same for players near and far.


def blur(image, level):
    """Gaussian blur; level: its standard deviation in per cent of the crop's height."""
    return cv2.GaussianBlur(image, (0, 0), level / 100 * image.shape[0]) if level else image


def occlude(image, level, seed=0):
    """A grey block over part of the crop, in its proportions, somewhere inside; level: covered area in per cent.

    The place follows from `seed` alone, so that a growing level grows the same block's area around one point.
    """
    height, width = block = [round(length * np.sqrt(level / 100)) for length in image.shape[:2]]
    free = np.subtract(image.shape[:2], block)
    top, left = map(round, free * np.random.default_rng(seed).random(2))
    damaged = image.copy()
    damaged[top : top + height, left : left + width] = 127
    return damaged


def downscale(image, level):
    """Fewer pixels, then the old size again; level: per cent of the height and width that is lost, below 100."""
    height, width = image.shape[:2]
    kept = 1 - level / 100
    small = max(1, round(width * kept)), max(1, round(height * kept))
    reduced = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    return cv2.resize(reduced, (width, height), interpolation=cv2.INTER_LINEAR)


def compress(image, level):
    """JPEG artefacts; level: 100 − quality, so 0 leaves the image as it is and 95 is quality 5."""
    if not level:
        return image
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 100 - level])
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


DEGRADATIONS = {  # axis label: function
    "blur (sd, % of height)": blur,
    "occlusion (% of area)": occlude,
    "down-scaling (% of size lost)": downscale,
    "JPEG compression (100 − quality)": compress,
}


def degrade(images, name, level):
    """A list of images damaged by a function of `DEGRADATIONS`; each has its own place of occlusion."""
    if DEGRADATIONS[name] is occlude:
        return [occlude(image, level, seed) for seed, image in enumerate(images)]
    return [DEGRADATIONS[name](image, level) for image in images]


_HARD = 0.25  # the worst quarter of the gallery images counts as affected
_TURNED = 90  # degrees between two views from which on they show different sides


def read_nuisances(data_dir, paths):
    """Rows of `nuisances.csv` (see `render_dataset`) in the order of a manifest's paths (Series of text).

    Returns a DataFrame, or None where the data have no such file: then nothing is known. Raises ValueError naming an
    image without a row.
    """
    source = beside(find_root(data_dir), "nuisances.csv")
    if source is None:
        return None
    table = pd.read_csv(source).set_index("path")
    paths = paths.str.removeprefix("data_reid/")
    missing = paths[~paths.isin(table.index)]
    if len(missing):
        raise ValueError(f"{source} has no row for {missing.iloc[0]}; render the set again into an empty folder")
    return table.loc[paths].reset_index()


def causes_of_error(query, gallery, is_match, is_other):
    """Pairs of query and gallery image that a cause concerns, for `ranking.attribution.explained_shares`.

    query, gallery: rows of `read_nuisances`; is_match, is_other: (Q, G) masks of the true matches and of other players'
    images. Returns {cause: (pairs, affected)}. A match is affected where its image is in the worst quarter of the
    gallery (or occluded at all, where less than a quarter is), or turned by 90° and more against the query;
    an intruder, where it is of the query's team.
    """
    turn = np.abs(np.subtract.outer(query["view"].to_numpy(), gallery["view"].to_numpy())) % 360
    query_team, team = ((rows["sequence"].astype(str) + rows["team"]).to_numpy(str) for rows in (query, gallery))
    worse = {
        "motion blur": gallery["blur"],
        "occluded": gallery["occluded"],
        "small": -gallery["scale"],
        "low resolution": -gallery["resolution"],
    }
    of_match = {name: values > values.quantile(1 - _HARD) for name, values in worse.items()}
    of_match["turned away"] = np.minimum(turn, 360 - turn) >= _TURNED
    causes = {f"match: {name}": (is_match, np.broadcast_to(mask, is_match.shape)) for name, mask in of_match.items()}
    return causes | {"intruder: team mate": (is_other, np.equal.outer(query_team, team))}
