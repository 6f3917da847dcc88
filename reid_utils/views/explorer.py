"""A view of single queries that can be touched: what a run ranks first, and what a post-processing changes."""

import base64
import html
from functools import lru_cache, partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from reid_utils.data.images import decode
from reid_utils.ranking.methods import POST_PROCESSINGS, SCORED_BY, post_process
from reid_utils.ranking.metrics import average_precisions
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
    DataFrame in rank order: image (gallery index), rank, was (rank by `before`), distance, is_match. Images of the
    query's own player and camera are left out; ties by gallery index, as in the metrics.
    """
    same = features["gallery_players"] == features["query_players"][q]
    kept = np.flatnonzero(~(same & (features["gallery_cameras"] == features["query_cameras"][q])))
    order, former = (kept[np.argsort(distances[q, kept], kind="stable")] for distances in (after, before))
    ranks = np.arange(1, len(kept) + 1)
    was = np.empty(len(same), np.int64)
    was[former] = ranks
    return pd.DataFrame(
        {"image": order, "rank": ranks, "was": was[order], "distance": after[q, order], "is_match": same[order]}
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


def query_html(query_picture, pictures, ranking, aps, title):
    """One query's view as HTML without scripts: the query, the nearest images in frames, the rank of every match.

    query_picture, pictures: data URIs of the query and of the first ranks; ranking: from `ranked_query`; aps: average
    precision before and after. Green frames with ✓ are matches, red ones with ✗ are not.
    """
    cards = [_card(query_picture, BLACK, "query", f"AP {aps[0]:.2f} → {aps[1]:.2f}")]
    for picture, row in zip(pictures, ranking.itertuples(), strict=False):
        sign, colour = ("✓", MATCH) if row.is_match else ("✗", MISMATCH)
        cards.append(_card(picture, colour, f"{sign} rank {row.rank}", f"d {row.distance:.3f}<br>{moved(*row[2:4])}"))
    hits = ranking[ranking.is_match]
    ranks = ", ".join(f"{row.rank}&nbsp;({moved(*row[2:4])})" for row in hits.itertuples())
    return (
        f'<div style="font:13px sans-serif"><b>{html.escape(title)}</b>'
        f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:6px 0">{"".join(cards)}</div>'
        f"All {len(hits)} true matches stand at rank (▲ ▼ against plain distances): {ranks}</div>"
    )


def _card(picture, colour, heading, text):
    """One framed crop with its caption."""
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
    shows the worst query of the first run where nobody can touch controls. Raises ValueError for an unknown name.
    """
    from IPython.display import HTML

    start = (next(iter(runs)), post_processing, k1, k2, jaccard_weight)
    rank = lru_cache(maxsize=8)(partial(_distances_and_aps, runs))
    picture = lru_cache(maxsize=4096)(lambda role, image: thumbnail(read_image(role, image)))

    def view(settings, q):
        plain = rank((settings[0], "none", 1, 1, 0.0))
        return _view(runs[settings[0]], plain, rank(settings), q, picture, top, _described(*settings))

    _, aps = rank(start)
    if np.isnan(aps).all():
        raise ValueError("no query has a match; check that query and gallery share players")
    if not (is_live() if live is None else live):
        return HTML(view(start, worst_first(aps)[0]))
    return _live_view(runs, start, rank, view)


def _distances_and_aps(runs, settings):
    """Distances (Q, G) and average precisions (Q,) under (run, post-processing, k1, k2, weight)."""
    run, *processing = settings
    features = runs[run]
    distances = post_process(features["query"], features["gallery"], *processing)
    return distances, average_precisions(distances, *(features[key] for key in SCORED_BY))


def _described(run, processing, k1, k2, weight):
    """A run and its post-processing in words."""
    return f"{run}, {processing}" if processing == "none" else f"{run}, {processing} (k1 {k1}, k2 {k2}, w {weight:g})"


def _view(features, plain, processed, q, picture, top, described):
    """HTML of query q; plain, processed: (distances, average precisions)."""
    ranking = ranked_query(plain[0], processed[0], features, q)
    pictures = [picture("gallery", features["gallery_images"][g]) for g in ranking["image"][:top]]
    image = features["query_images"][q]
    title = f"player {features['query_players'][q]}, query {image}; {described}"
    return query_html(picture("query", image), pictures, ranking, (plain[1][q], processed[1][q]), title)


def _controls(runs, start):
    """The widgets by name, in the order of the settings."""
    import ipywidgets as widgets

    style = {"style": {"description_width": "initial"}, "layout": {"width": "auto"}}
    whole, quiet = {"min": 1, "max": 100}, {"continuous_update": False}
    return {
        "run": widgets.Dropdown(options=list(runs), value=start[0], description="run", **style),
        "processing": widgets.Dropdown(
            options=POST_PROCESSINGS, value=start[1], description="post-processing", **style
        ),
        "k1": widgets.IntSlider(value=start[2], description="k1", **whole, **quiet),
        "k2": widgets.IntSlider(value=start[3], description="k2", **whole, **quiet),
        "weight": widgets.FloatSlider(value=start[4], min=0, max=1, step=0.05, description="weight", **quiet),
    }


def _live_view(runs, start, rank, view):
    """Controls above the view, tied together -> ipywidgets.VBox."""
    import ipywidgets as widgets

    controls = _controls(runs, start)
    query = widgets.Dropdown(description="query", layout={"width": "auto"})
    shown = widgets.HTML()

    def settings():
        return tuple(control.value for control in controls.values())

    def show(_=None):
        shown.value = view(settings(), query.value)

    def renew(_=None):
        features, aps = runs[settings()[0]], rank(settings())[1]
        order, former = worst_first(aps), query.value
        query.unobserve(show, "value")  # new options pick the first one: not a choice of the user's
        query.options = [(f"AP {aps[q]:.2f} · player {features['query_players'][q]}", q) for q in order]
        query.value = former if former in order else order[0]
        query.observe(show, "value")
        for name in ("k1", "k2", "weight"):
            controls[name].disabled = controls["processing"].value == "none"
        show()

    query.observe(show, "value")
    for control in controls.values():
        control.observe(renew, "value")
    renew()
    names = ("run", "processing", "k1", "k2", "weight")
    rows = [widgets.HBox([query, *(controls[n] for n in names[:2])]), widgets.HBox([controls[n] for n in names[2:]])]
    for row in rows:
        row.layout.flex_flow = "row wrap"
    return widgets.VBox([*rows, shown])
