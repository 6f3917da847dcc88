"""Damage done to crops on purpose, to see how much of it a ranking stands; pure and deterministic.

Each function takes an RGB image (h, w, 3) uint8 and returns one of the same shape and type; level 0 changes nothing.
Levels are relative to the crop, so that they mean the same for players near and far.
"""

import cv2
import numpy as np


def blur(image, level):
    """Gaussian blur; level: its standard deviation in per cent of the crop's height."""
    sigma = level / 100 * image.shape[0]
    return cv2.GaussianBlur(image, (0, 0), sigma) if sigma > 0 else image.copy()


def occlude(image, level, seed=0):
    """A grey block over part of the crop, in its proportions, somewhere inside; level: covered area in per cent.

    The place follows from `seed` alone, so that a growing level grows the same block's area around one point.
    """
    height, width = image.shape[:2]
    side = np.sqrt(level / 100)
    block = round(height * side), round(width * side)
    share = np.random.default_rng(seed).random(2)
    top, left = round((height - block[0]) * share[0]), round((width - block[1]) * share[1])
    damaged = image.copy()
    damaged[top : top + block[0], left : left + block[1]] = 127
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
    if level == 0:
        return image.copy()
    written, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 100 - level]
    )
    if not written:
        raise ValueError(f"an image of shape {image.shape} cannot be stored as JPEG")
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


DEGRADATIONS = {  # axis label: function
    "blur (sd, % of height)": blur,
    "occlusion (% of area)": occlude,
    "down-scaling (% of size lost)": downscale,
    "JPEG (100 − quality)": compress,
}


def degrade(images, name, level):
    """A list of images damaged by a function of `DEGRADATIONS`; each has its own place of occlusion."""
    if DEGRADATIONS[name] is occlude:
        return [occlude(image, level, seed) for seed, image in enumerate(images)]
    return [DEGRADATIONS[name](image, level) for image in images]
