"""Crops: decoded, letterboxed and cached as a memory map; augmented as in Table 1 and normalised.

An augmentation is named by its parts joined with "+", for example "erasing+sharpen"; "none" is the empty one. Every
random number of an image comes from that image's own generator. Parts work on (height, width, 3) uint8 crops, except
cut-out and erasing, which fill a box of the normalised image with 0, the mean colour: a box is (top, bottom, left,
right) in pixels, bottom and right excluded.
"""

import functools
import math
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from PIL import Image, UnidentifiedImageError

from reid_utils.files import digest, replacing

MAX_PIXELS = 64 * 2**20
_PNG_DEPTH = 24  # where a PNG file says how many bits a channel has


def decode(path):
    """Read one image file as RGB: the one way in for crops, whoever reads them.

    Returns a (height, width, 3) uint8 array. Raises ValueError naming a file that is not a whole 8-bit JPEG, PNG, BMP
    or WebP image with three channels and at most 64 Mpixel: what another reader would make of it is not known.
    """
    data = Path(path).read_bytes()
    try:
        with Image.open(BytesIO(data), formats=("JPEG", "PNG", "BMP", "WEBP")) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} × {image.height} pixels"
                raise ValueError(f"{path} has {size}, above 64 Mpixel: give a crop of one player")
            deep = image.format == "PNG" and data[_PNG_DEPTH] == 16
            if image.mode != "RGB" or deep:
                raise ValueError(f"{path} has the colour mode {'16-bit ' * deep}{image.mode}: convert it to 8-bit RGB")
            image.load()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is not a JPEG, PNG, BMP or WebP file: fetch it again or convert it") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be decoded ({error}): fetch it again or remove it") from None
    # The pixels are OpenCV's, as in the published code.
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def letterbox(image, height, width):
    """Fit an image into height × width pixels, aspect ratio kept, bilinear, centred on zeros.

    (h, w, 3) uint8 -> (height, width, 3) uint8. Source: the published code's resizing, which pads with zeros and takes
    OpenCV's exact form of bilinear, the same bits on every processor.
    """
    scale = min(height / image.shape[0], width / image.shape[1])
    inner_height = min(height, max(1, round(image.shape[0] * scale)))
    inner_width = min(width, max(1, round(image.shape[1] * scale)))
    inner = cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR_EXACT)
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = inner
    return canvas


def load_images(data_dir, paths, height, width, cache_dir, fingerprint):
    """Letterboxed images of a data set, decoded once and memory-mapped from then on.

    `paths` are relative to `data_dir`; returns a read-only (N, height, width, 3) uint8 array in their order. The cache
    file's name is a hash of the data fingerprint, the size and the paths, so changed data never meets an old cache.
    Raises ValueError naming the first unreadable image; a killed run leaves no file under the final name.
    """
    name = digest(["letterbox, exact", fingerprint, height, width, list(paths)])[:20]
    cache_dir = Path(cache_dir)
    target = cache_dir / f"{name}.npy"
    if not target.exists():  # what is there is whole, and may lie in a folder that cannot be written
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{name}.lock"):
            if not target.exists():
                with replacing(target) as part, ThreadPoolExecutor() as pool:
                    cache = np.lib.format.open_memmap(part, "w+", np.uint8, (len(paths), height, width, 3))

                    def fill(i):
                        cache[i] = letterbox(decode(Path(data_dir, paths[i])), height, width)

                    list(pool.map(fill, range(len(paths))))
                    cache.flush()
    return np.load(target, mmap_mode="r")


def parse_augmentation(name):
    """Parts of an augmentation's name, a frozenset; raises ValueError naming an unknown part."""
    parts = [] if name in ("none", "") else name.split("+")
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"augmentation {name!r}: unknown part {part!r}; known: none, {', '.join(PARTS)}")
    return frozenset(parts)


def draw_sharpen(rng):
    """(alpha, lightness) of a sharpening, or None: p 0.5, alpha 0.2–0.5, lightness 0.5–1.0 (albumentations)."""
    apply, alpha, lightness = rng.random(), rng.uniform(0.2, 0.5), rng.uniform(0.5, 1.0)
    return (alpha, lightness) if apply < 0.5 else None


def sharpen(image, alpha, lightness):
    """Blend a uint8 image with its 3×3 sharpened self; alpha is the share of the sharpened one."""
    kernel = np.full((3, 3), -alpha, np.float32)
    kernel[1, 1] = (1 - alpha) + alpha * (8 + lightness)
    return cv2.filter2D(image, -1, kernel)


def draw_jitter(rng):
    """Brightness, contrast, saturation factors, hue shift (turns) and their order, or None: p 0.5, all 0.2."""
    apply, factors = rng.random(), rng.uniform(0.8, 1.2, 3)
    hue, order = rng.uniform(-0.2, 0.2), rng.permutation(4)
    return (*factors, hue, order) if apply < 0.5 else None


def jitter(image, brightness, contrast, saturation, hue, order):
    """Colour jitter of a uint8 image by torchvision's functions, in the given order of the four."""
    import torch
    from torchvision.transforms.v2 import functional

    steps = (
        functional.adjust_brightness,
        functional.adjust_contrast,
        functional.adjust_saturation,
        functional.adjust_hue,
    )
    factors = brightness, contrast, saturation, hue
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    for k in order:
        pixels = steps[k](pixels, factors[k])
    return pixels.numpy().transpose(1, 2, 0)


def draw_cutout(rng, height, width, size=16):
    """(top, bottom, left, right) of one hole of size × size pixels cut by the border, or None: p 0.5."""
    apply, row, column = rng.random(), rng.integers(height), rng.integers(width)
    if apply >= 0.5:
        return None
    top, left = max(0, row - size // 2), max(0, column - size // 2)
    return top, min(height, row + size // 2), left, min(width, column + size // 2)


def draw_erasing(rng, height, width):
    """(top, bottom, left, right) of an erased box, or None: p 0.5, area 0.02–0.33, ratio 0.3–3.3.

    Source: torchvision's RandomErasing, which gives up after ten boxes that do not fit.
    """
    if rng.random() >= 0.5:
        return None
    for _ in range(10):
        area = height * width * rng.uniform(0.02, 0.33)
        ratio = math.exp(rng.uniform(math.log(0.3), math.log(3.3)))
        box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box_height < height and box_width < width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return top, top + box_height, left, left + box_width
    return None


# An augmentation is one entry: what draws its numbers, for a change of the crop with what makes it.
CHANGES = {"jitter": (draw_jitter, jitter), "sharpen": (draw_sharpen, sharpen)}
BOXES = {"cutout": draw_cutout, "erasing": draw_erasing}
PARTS = ("flip", *CHANGES, *BOXES)


def augment(image, parts, rng, flip=False):
    """Augment one crop.

    `image` (h, w, 3) uint8 is left as it is; `parts` from `parse_augmentation`; `flip` is decided by the caller, since
    the images of a pair flip together. Returns the uint8 image and the boxes to fill after normalisation, a list.
    """
    height, width = image.shape[:2]
    if flip:
        image = np.ascontiguousarray(image[:, ::-1])
    for part, (draw, change) in CHANGES.items():
        if part in parts and (drawn := draw(rng)):
            image = change(image, *drawn)
    drawn = [draw(rng, height, width) for part, draw in BOXES.items() if part in parts]
    return image, [box for box in drawn if box]


def normalise(images, mean, std, boxes=None, out=None):
    """(x / 255 − mean) / std of uint8 images, on the device where they are.

    `images` (N, h, w, 3) uint8, tensor or array -> (N, 3, h, w) float32 tensor with channels last in memory; `boxes`
    (N, k, 4) int64 (top, bottom, left, right; zeros for none) become 0. `out`: a former result of the same shape and
    device to write into, which saves the allocation, the dearest part of a large batch on a CPU.
    """
    import torch

    images = torch.as_tensor(images)
    n, height, width, _ = images.shape
    scale, shift = _constants(tuple(mean), tuple(std), width, images.device)
    # Whole rows of pixels, so that the loops below run along w · 3 values and not along 3.
    pixels = torch.empty(images.shape, device=images.device) if out is None else out.permute(0, 2, 3, 1)
    pixels.view(n * height, 3 * width).copy_(images.reshape(n * height, 3 * width)).mul_(scale).sub_(shift)
    if boxes is not None:
        fill_boxes(pixels, torch.as_tensor(boxes), pixels.is_cuda)
    return pixels.permute(0, 3, 1, 2)


def fill_boxes(pixels, boxes, at_once):
    """Set boxes (N, k, 4) of pixels (N, h, w, 3) to 0, one after the other: on a CPU the work of the boxes alone.

    `at_once`: in one masked operation, since a GPU then starts a handful of kernels instead of one a box.
    """
    import torch

    if not at_once:
        for image, of_image in zip(pixels, boxes.tolist(), strict=True):
            for top, bottom, left, right in of_image:
                image[top:bottom, left:right] = 0
        return
    rows, columns = (torch.arange(size, device=pixels.device) for size in pixels.shape[1:3])
    top, bottom, left, right = boxes.to(pixels.device, non_blocking=True)[..., None].unbind(2)
    down, across = (rows >= top) & (rows < bottom), (columns >= left) & (columns < right)
    pixels.masked_fill_((down[..., None] & across[:, :, None]).any(1)[..., None], 0)


@functools.cache
def _constants(mean, std, width, device):
    """What `normalise` multiplies a row of pixels by and takes off it, kept on the device."""
    import torch

    mean, std = (torch.tensor(values, dtype=torch.float32, device=device) for values in (mean, std))
    return (1 / (255 * std)).repeat(width), (mean / std).repeat(width)
