"""Figures made of player crops: sequences, augmentations and ranked lists."""

import textwrap

import numpy as np
from PIL import Image

from reid_utils.views.style import BLACK, MATCH, MISMATCH, TEXT_WIDTH, blank_figure, finish, new_figure

_STRIP_PIXELS = 160  # height of a crop in a strip
_GAP_PIXELS = 8
_TITLE_INCHES = 0.22


def _checked(image):
    """The image as an array, if it is (height, width, 3) uint8."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image is {image.dtype} {image.shape}; give RGB uint8 of shape (height, width, 3)")
    return image


def _strip(images):
    """Crops side by side at one height, white between them: (160, width, 3) uint8."""
    parts = []
    for image in map(_checked, images):
        width = max(1, round(image.shape[1] * _STRIP_PIXELS / image.shape[0]))
        parts.append(np.asarray(Image.fromarray(image).resize((width, _STRIP_PIXELS), Image.Resampling.BICUBIC)))
        parts.append(np.full((_STRIP_PIXELS, _GAP_PIXELS, 3), 255, np.uint8))
    return np.concatenate(parts[:-1], axis=1)


def sequence_samples(rows, note=None):
    """Crops of several sequences, one per row, each row scaled to one height.

    rows: list of (title, list of RGB uint8 images of any size). Returns a text-width Figure with one axes per row.
    Raises ValueError for an empty row or an image of another kind.
    """
    empty = [title for title, images in rows if not len(images)]
    if empty or not rows:
        raise ValueError(f"row {empty[0]!r} has no image" if empty else "no rows to show; give at least one")
    strips = [_strip(images) for _, images in rows]
    widest = max(strip.shape[1] for strip in strips)
    # Rows share one scale; a long row may not make the crops tower over the page.
    height = min(TEXT_WIDTH * _STRIP_PIXELS / widest, 1.6) + _TITLE_INCHES
    figure, axes = new_figure(TEXT_WIDTH, len(rows) * height + 0.2, len(rows))
    for ax, strip, (title, _) in zip(axes[:, 0], strips, rows, strict=True):
        ax.imshow(np.pad(strip, ((0, 0), (0, widest - strip.shape[1]), (0, 0)), constant_values=255))
        ax.set_title(title, loc="left", pad=3)
        ax.axis("off")
    return finish(figure, note)


def augmentation_grid(images_by_name, note=None):
    """Augmentations side by side, one per column, an example per row.

    images_by_name: dict of augmentation name → list of RGB uint8 images, the same examples in each. Returns a
    text-width Figure with examples × names axes. Raises ValueError if the lists differ in length.
    """
    counts = {name: len(images) for name, images in images_by_name.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"examples per augmentation: {counts}; give the same number, at least one, for each")
    rows, columns = next(iter(counts.values())), len(counts)
    first = _checked(next(iter(images_by_name.values()))[0])
    width = min(TEXT_WIDTH / columns, 1.4)
    height = rows * width * first.shape[0] / first.shape[1] + 2 * _TITLE_INCHES
    figure, axes = new_figure(max(columns * width, 2), height, rows, columns)
    for column, (name, images) in zip(axes.T, images_by_name.items(), strict=True):
        column[0].set_title(textwrap.fill(name.replace("+", "+ "), 12), pad=3)
        for ax, image in zip(column, images, strict=True):
            ax.imshow(_checked(image))
            ax.axis("off")
    return finish(figure, note)


def _show_framed(ax, image, caption, colour, width=2.5):
    """One crop with a coloured frame and a caption above it."""
    ax.imshow(_checked(image))
    ax.set_title(caption, color=colour, fontsize=8, pad=2)
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)


def _draw_ranked_lists(figure, query_image, lists, title):
    """Query and ranked crops of each method in a row; `figure` is a Figure or SubFigure."""
    longest = max(len(ranked) for ranked in lists.values())
    if not longest:
        raise ValueError(f"the ranked lists of {title!r} are empty; give at least one gallery image")
    axes = figure.subplots(len(lists), 1 + longest, squeeze=False)
    figure.suptitle(title, fontsize=8, x=0.01, ha="left")
    for row, (method, ranked) in zip(axes, lists.items(), strict=True):
        _show_framed(row[0], query_image, "query", BLACK, width=1)
        row[0].set_ylabel(textwrap.fill(method, 14), fontsize=8)
        for ax, (image, is_match, distance) in zip(row[1:], ranked, strict=False):
            sign, colour = ("✓", MATCH) if is_match else ("✗", MISMATCH)
            _show_framed(ax, image, f"{sign} d = {distance:.2f}", colour)
        for ax in row[1 + len(ranked) :]:
            ax.axis("off")


def _ranked_height(lists, query_image):
    """Inches that the ranked lists of one query need at text width."""
    columns = 1 + max(len(ranked) for ranked in lists.values())
    images = [query_image, *(image for ranked in lists.values() for image, _, _ in ranked)]
    tallest = float(np.median([image.shape[0] / image.shape[1] for image in images]))
    return _TITLE_INCHES + len(lists) * (tallest * (TEXT_WIDTH - 0.3) / columns + _TITLE_INCHES)


def ranked_list_page(entries, note=None):
    """The nearest gallery crops of queries under each method, a query below the other; frames and signs tell hits.

    entries: list of (RGB uint8 query image, lists, title); lists: dict of method → list of (RGB uint8 image, is_match,
    distance), nearest first. Returns a text-width Figure: a row per method, captions ✓ or ✗ with the distance d. Raises
    ValueError if there is no query, no method or an empty list.
    """
    if not entries or not all(lists for _, lists, _ in entries):
        raise ValueError("no ranked lists to show; give at least one query with one method")
    heights = [_ranked_height(lists, query_image) for query_image, lists, _ in entries]
    figure = blank_figure(TEXT_WIDTH, sum(heights) + 0.1)
    parts = figure.subfigures(len(entries), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (query_image, lists, title) in zip(parts, entries, strict=True):
        _draw_ranked_lists(part, query_image, lists, title)
    return finish(figure, note)
