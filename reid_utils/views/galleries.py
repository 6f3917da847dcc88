"""Ranked lists of player crops, and what a view may show of a ranking."""

import textwrap

import numpy as np
from PIL import Image

from reid_utils.ranking.methods import pairs_of
from reid_utils.ranking.metrics import known
from reid_utils.views.style import BLACK, GREY, MATCH, MISMATCH, TEXT_WIDTH, finish, new_figure

# How a ranked image is marked: a match, another player's, or one of a query whose player is unknown.
MARKS = {True: ("✓", MATCH), False: ("✗", MISMATCH), None: ("", GREY)}
_CROP_PIXELS = 96  # height of a crop: more would not fit into 300 KB with the text at 300 dpi


def scaled(image, height=_CROP_PIXELS):
    """A crop, RGB uint8 (h, w, 3), at a height in pixels -> PIL image of the same aspect ratio."""
    return Image.fromarray(image).resize((max(1, round(image.shape[1] * height / image.shape[0])), height))


def ranking_of(features, distances, q):
    """One query's ranking as the metrics see it: what a view may show of query q, and what counts as right.

    features: `Features`; distances (Q, G) from `distances_of`. Left out are images of other groups, of the query's own
    player and camera (junk) and of unknown players. Returns gallery indices (n,), nearest first, ties by index, and
    (n,) whether each is a match: None throughout where the query's player is unknown.
    """
    (is_match,), (is_other,) = pairs_of(features.subset(slice(q, q + 1), slice(None)))
    kept = np.flatnonzero(is_match | is_other)
    order = kept[np.argsort(distances[q, kept], kind="stable")]
    is_known = known(features.query_players[q : q + 1])[0]
    return order, is_match[order] if is_known else np.full(len(order), None)


def image_names(features, role):
    """What `read_image(role, name)` is asked for: the images' names, or their row numbers where there are none."""
    names = getattr(features, f"{role}_images")
    return np.arange(len(getattr(features, f"{role}_players"))) if names is None else names


def ranked_crops(features, distances, q, read_image, top=8):
    """One method's list for `ranked_list_page`: the nearest `top` gallery crops that `ranking_of` leaves query q.

    read_image: function (role, image name) -> RGB uint8 (h, w, 3). Returns a list of (image, is_match, distance).
    """
    names, (order, is_match) = image_names(features, "gallery"), ranking_of(features, distances, q)
    ranked = zip(order[:top], is_match[:top], strict=True)
    return [(read_image("gallery", names[g]), hit, float(distances[q, g])) for g, hit in ranked]


def ranked_list_page(entries, note=None):
    """The nearest gallery crops of queries under each method, a query below the other; frames and signs mark matches.

    entries: list of (RGB uint8 query image, lists, title); lists: dict of method → list of (RGB uint8 image, is_match,
    distance), nearest first, as from `ranked_crops`. Returns a text-width Figure: a row per method, captions ✓ or ✗
    (neither for an unknown player) with the distance d. Raises ValueError where no query has a ranked image.
    """
    rows = [(query, title, *line) for query, lists, title in entries for line in lists.items()]
    columns = 1 + max((len(ranked) for *_, ranked in rows), default=0)
    if columns == 1:
        raise ValueError("no ranked lists to show; give at least one query with one gallery image")
    aspect = np.median([query.shape[0] / query.shape[1] for query, *_ in rows])
    height = len(rows) * (aspect * (TEXT_WIDTH - 0.3) / columns + 0.3) + 0.3 * len(entries)
    figure, axes = new_figure(TEXT_WIDTH, height, len(rows), columns, squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    shown = None
    for row, (query, title, method, ranked) in zip(axes, rows, strict=True):
        _show_framed(row[0], query, "query", BLACK, width=1)
        row[0].set_ylabel(textwrap.fill(method, 14))
        if title != shown:
            row[0].set_title(f"{title}\n", loc="left", pad=6)
        shown = title
        for ax, (image, is_match, distance) in zip(row[1:], ranked, strict=False):
            sign, colour = MARKS[is_match]
            _show_framed(ax, image, f"{sign} d = {distance:.2f}".strip(), colour)
    return finish(figure, note)


def _show_framed(ax, image, caption, colour, width=2.5):
    """One crop with a coloured frame and a caption above it."""
    ax.imshow(scaled(image), interpolation="nearest")
    ax.set_title(caption, color=colour, pad=2)
    ax.axis("on")
    ax.set(xticks=[], yticks=[], anchor="N")
    for spine in ax.spines.values():
        spine.set(visible=True, color=colour, linewidth=width)
