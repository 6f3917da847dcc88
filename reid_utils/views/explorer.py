"""A view of single queries that can be touched: what a run ranks first, and what a post-processing changes."""

import base64
import html
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from reid_utils.data.images import decode
from reid_utils.ranking.methods import POST_PROCESSINGS, distances_of, pairs_of
from reid_utils.ranking.metrics import average_precisions, labels_of
from reid_utils.views.style import BLACK, MATCH, MISMATCH

_THUMBNAIL = 128  # pixels of height; crops are small, and each reaction sends a dozen of them


def crop_reader(data_dir, paths):
    """A function (role, image id) -> RGB uint8 (h, w, 3); paths: Series by (role, image_id), relative to data_dir."""
    return lambda role, image: decode(Path(data_dir) / paths[role, image])


def worst_first(aps):
    """Queries by average precision, worst first: aps (Q,) -> indices; a query without a match (NaN) is left out."""
    return [int(q) for q in np.argsort(aps, kind="stable") if not np.isnan(aps[q])]


def ranked_query(before, after, features, q):
    """The whole ranking of one query and where each image stood before.

    before, after: (Q, G) distances, without and with a post-processing; features: as from `load_features`. Returns a
    DataFrame in rank order: image (gallery index), rank, was (rank by `before`), distance, is_match. Junk (images of
    the query's own player and camera, or of nobody) and other groups are left out; ties by gallery index, as in the
    metrics.
    """
    (genuine,), (impostor,) = pairs_of(features.subset(slice(q, q + 1), slice(None)))
    kept = np.flatnonzero(genuine | impostor)
    order, former = (kept[np.argsort(distances[q, kept], kind="stable")] for distances in (after, before))
    ranks = np.arange(1, len(kept) + 1)
    was = np.empty(len(genuine), np.int64)
    was[former] = ranks
    return pd.DataFrame(
        {"image": order, "rank": ranks, "was": was[order], "distance": after[q, order], "is_match": genuine[order]}
    )


def moved(rank, was):
    """A rank's change as text: ▲ 3 (three ranks better than before), ▼ 2, or = where it stayed."""
    return "=" if rank == was else f"{'▲' if rank < was else '▼'} {abs(rank - was)}"


def thumbnail(image):
    """An RGB uint8 crop (h, w, 3) as the text of a data URI (JPEG, 128 pixels high), for an <img> in HTML."""
    size = max(1, round(image.shape[1] * _THUMBNAIL / image.shape[0])), _THUMBNAIL
    pixels = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
    encoded = cv2.imencode(".jpeg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
    return f"data:image/jpeg;base64,{base64.b64encode(encoded).decode()}"


def _card(picture, colour, heading, text):
    """One framed crop with its caption, as HTML."""
    return (
        '<figure style="margin:0;width:76px;text-align:center;font:12px sans-serif">'
        f'<img src="{picture}" alt="{heading}" style="box-sizing:border-box;width:100%;border:3px solid {colour}">'
        f'<figcaption><b style="color:{colour};background:white">{heading}</b><br>{text}</figcaption></figure>'
    )


def is_live():
    """Whether this runs in a notebook that somebody sits at: papermill and nbconvert tell the kernel that nobody can
    answer its questions (`allow_stdin` of Jupyter's messages), JupyterLab tells it that somebody can."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def explore(runs, read_image, post_processing="hard", k1=20, k2=6, jaccard_weight=0.7, top=10, live=None):
    """The retrieval explorer: pick a run, a query (worst average precision first), a post-processing and its settings.

    runs: {name: features as from `load_features`}; read_image: function (role, image id) -> RGB uint8 (h, w, 3); top:
    ranks shown. `live`: whether to give controls; None finds out (`is_live`). Returns an ipywidgets box, or HTML that
    shows the worst query of the first run where nobody can touch controls: frames green with ✓ round matches, orange
    with ✗ round others. Raises ValueError for an unknown name.
    """
    from IPython.display import HTML

    @lru_cache(maxsize=8)
    def rank(run, *processing):
        distances = distances_of(runs[run], *processing)
        return distances, average_precisions(distances, *labels_of(runs[run]))

    @lru_cache(maxsize=4096)
    def picture(role, image):
        return thumbnail(read_image(role, image))

    def view(settings, q):
        features, (before, old), (after, new) = runs[settings[0]], rank(settings[0], "none"), rank(*settings)
        ranking, image = ranked_query(before, after, features, q), features.query_images[q]
        cards = [_card(picture("query", image), BLACK, "query", f"AP {old[q]:.2f} → {new[q]:.2f}")]
        for row in ranking[:top].itertuples():
            sign, colour = ("✓", MATCH) if row.is_match else ("✗", MISMATCH)
            text = f"d {row.distance:.3f}<br>{moved(row.rank, row.was)}"
            cards.append(_card(picture("gallery", features.gallery_images[row.image]), colour,
                               f"{sign} rank {row.rank}", text))  # fmt: skip
        ranks = [f"{row.rank}&nbsp;({moved(row.rank, row.was)})" for row in ranking[ranking.is_match].itertuples()]
        title = f"player {features.query_players[q]}, query {image}; {settings[0]}, {_described(*settings[1:])}"
        return (
            f'<div style="font:13px sans-serif"><b>{html.escape(title)}</b>'
            f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:6px 0">{"".join(cards)}</div>'
            f"All {len(ranks)} true matches stand at rank (▲ ▼ against plain distances): {', '.join(ranks)}</div>"
        )

    start = (next(iter(runs)), post_processing, k1, k2, jaccard_weight)
    if np.isnan(rank(*start)[1]).all():
        raise ValueError("no query has a match; check that query and gallery share players")
    if not (is_live() if live is None else live):
        return HTML(view(start, worst_first(rank(*start)[1])[0]))
    return _with_controls(runs, start, rank, view)


def _described(processing, k1, k2, weight):
    """A post-processing in words."""
    return processing if processing == "none" else f"{processing} (k1 {k1}, k2 {k2}, w {weight:g})"


def _with_controls(runs, start, rank, view):
    """Controls above the view, tied together -> ipywidgets.VBox."""
    import ipywidgets as widgets

    wide = {"layout": {"width": "auto"}, "style": {"description_width": "initial"}}
    whole = {"min": 1, "max": 100, "continuous_update": False}
    query, shown = widgets.Dropdown(description="query", **wide), widgets.HTML()
    names = list(POST_PROCESSINGS)
    controls = {
        "run": widgets.Dropdown(options=list(runs), value=start[0], description="run", **wide),
        "processing": widgets.Dropdown(options=names, value=start[1], description="post-processing", **wide),
        "k1": widgets.IntSlider(start[2], description="k1", **whole),
        "k2": widgets.IntSlider(start[3], description="k2", **whole),
        "weight": widgets.FloatSlider(start[4], min=0, max=1, step=0.05, description="weight", continuous_update=False),
    }

    def show(_=None):
        shown.value = view(tuple(control.value for control in controls.values()), query.value)

    def renew(**settings):
        aps, former = rank(*settings.values())[1], query.value
        players, order = runs[settings["run"]].query_players, worst_first(aps)
        query.unobserve(show, "value")  # new options pick the first one: not a choice of the user's
        query.options = [(f"AP {aps[q]:.2f} · player {players[q]}", q) for q in order]
        query.value = former if former in order else order[0]
        query.observe(show, "value")
        for name in ("k1", "k2", "weight"):
            controls[name].disabled = settings["processing"] == "none"
        show()

    query.observe(show, "value")
    faults = widgets.interactive_output(renew, controls)  # what a wrong setting raises is read below the view
    run, processing, *sliders = controls.values()
    rows = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in ([query, run, processing], sliders)]
    return widgets.VBox([*rows, shown, faults])
