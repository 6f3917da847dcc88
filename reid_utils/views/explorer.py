"""A view of single queries that can be touched: what a run ranks first, and what a post-processing changes."""

import base64
import html
import io
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from reid_utils.data.images import decode
from reid_utils.ranking.methods import POST_PROCESSINGS, distances_of
from reid_utils.ranking.metrics import average_precisions, labels_of
from reid_utils.views.galleries import MARKS, image_names, ranking_of, scaled
from reid_utils.views.style import BLACK

_THUMBNAIL = 128  # pixels of height; crops are small, and each reaction sends a dozen of them


def crop_reader(data_dir, paths):
    """A function (role, image id) -> RGB uint8 (h, w, 3); paths: Series by (role, image_id), relative to data_dir."""
    return lambda role, image: decode(Path(data_dir) / paths[role, image])


def named_reader(folder):
    """A function (role, image name) -> RGB uint8 (h, w, 3) for images anywhere in a folder.

    An image is named by its path in the folder, by its file name, or by that without its suffix; where several have
    that name, by the one in a folder called as the role. Raises ValueError for a name that no image or several have.
    """
    places = {}
    for path in sorted(Path(folder).rglob("*.*")):
        for name in {path.relative_to(folder).as_posix(), path.name, path.stem}:
            places.setdefault(name, []).append(path)

    def read(role, image):
        found = places.get(str(image), [])
        found = [path for path in found if role in path.parts] if len(found) > 1 else found
        if len(found) != 1:
            raise ValueError(f"{len(found)} images of {folder} are called {image}; name each by its path in there")
        return decode(found[0])

    return read


def worst_first(aps):
    """Queries by average precision, worst first: aps (Q,) -> indices; a query without a match (NaN) is left out."""
    return np.argsort(aps, kind="stable")[: np.isfinite(aps).sum()].tolist()  # NaN comes last


def ranked_query(before, after, features, q):
    """The whole ranking of one query and where each image stood before.

    before, after: (Q, G) distances, without and with a post-processing; features: `Features`. Returns a DataFrame in
    rank order: image (gallery index), rank, was (rank by `before`), distance, is_match. What `ranking_of` leaves out
    (junk, unknown players, other groups) has no rank.
    """
    (order, is_match), (former, _) = ranking_of(features, after, q), ranking_of(features, before, q)
    ranks = np.arange(1, len(order) + 1)
    was = pd.Series(ranks, former)[order].to_numpy()
    return pd.DataFrame({"image": order, "rank": ranks, "was": was, "distance": after[q, order], "is_match": is_match})


def moved(rank, was):
    """A rank's change as text: ▲ 3 (three ranks better than before), ▼ 2, or = where it stayed."""
    return "=" if rank == was else f"{'▲' if rank < was else '▼'} {abs(rank - was)}"


def thumbnail(image):
    """An RGB uint8 crop (h, w, 3) as the text of a data URI (JPEG, 128 pixels high), for an <img> in HTML."""
    packed = io.BytesIO()
    scaled(image, _THUMBNAIL).save(packed, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}"


def _card(image, colour, heading, text):
    """One framed crop with its caption, as HTML."""
    return (
        '<figure style="margin:0;width:76px;text-align:center;font:12px sans-serif">'
        f'<img src="{thumbnail(image)}" alt="{heading}" '
        f'style="box-sizing:border-box;width:100%;border:3px solid {colour}">'
        f'<figcaption><b style="color:{colour};background:white">{heading}</b><br>{text}</figcaption></figure>'
    )


def is_live():
    """Whether somebody can use controls here: JupyterLab lets the kernel ask questions (`allow_stdin` of Jupyter's
    messages), papermill and nbconvert do not."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent("shell").get("content", {}).get("allow_stdin"))


def explore(runs, read_image, post_processing="hard", k1=20, k2=6, jaccard_weight=0.7, top=10, live=None):
    """The retrieval explorer: pick a run, a query (worst average precision first), a post-processing and its settings.

    runs: {name: `Features`}; read_image: function (role, image name) -> RGB uint8 (h, w, 3), asked for row numbers
    where the features have no names; top: ranks shown. `live`: whether to give controls; None finds out (`is_live`).
    Returns an ipywidgets box, or HTML that shows the worst query of the first run where nobody can touch controls:
    frames green with ✓ round matches, orange with ✗ round others. Raises ValueError for an unknown name, and for a
    post-processing of a run that has distances alone.
    """
    from IPython.display import HTML

    @lru_cache(maxsize=8)
    def rank(run, processing, *settings):
        if runs[run].query is None and processing != "none":
            raise ValueError(f"{run} has distances alone, which cannot be re-ranked; choose the post-processing 'none'")
        distances = distances_of(runs[run], processing, *settings)
        return distances, average_precisions(distances, *labels_of(runs[run]))

    def view(settings, q):
        run, processing, k1, k2, weight = settings
        features, (before, old), (after, new) = runs[run], rank(run, "none"), rank(*settings)
        names, image = image_names(features, "gallery"), image_names(features, "query")[q]
        ranking = list(ranked_query(before, after, features, q).itertuples())
        cards = [_card(read_image("query", image), BLACK, "query", f"AP {old[q]:.2f} → {new[q]:.2f}")]
        for row in ranking[:top]:
            sign, colour = MARKS[row.is_match]
            text = f"d {row.distance:.3f}<br>{moved(row.rank, row.was)}"
            cards.append(_card(read_image("gallery", names[row.image]), colour, f"{sign} rank {row.rank}", text))
        ranks = [f"{row.rank}&nbsp;({moved(row.rank, row.was)})" for row in ranking if row.is_match]
        how = processing if processing == "none" else f"{processing} (k1 {k1}, k2 {k2}, w {weight:g})"
        title = f"player {features.query_players[q]}, query {image}; {run}, {how}"
        return (
            f'<div style="font:13px sans-serif"><b>{html.escape(title)}</b>'
            f'<div style="display:flex;flex-wrap:wrap;gap:8px;margin:6px 0">{"".join(cards)}</div>'
            f"All {len(ranks)} matches, by rank (▲ ▼ against plain distances): {', '.join(ranks)}</div>"
        )

    start = (next(iter(runs)), post_processing, k1, k2, jaccard_weight)
    if not (is_live() if live is None else live):
        return HTML(view(start, worst_first(rank(*start)[1])[0]))
    return _with_controls(runs, start, rank, view)


def _with_controls(runs, start, rank, view):
    """Controls above the view, tied together -> ipywidgets.VBox."""
    import ipywidgets as widgets

    wide = {"layout": {"width": "auto"}, "style": {"description_width": "initial"}}
    whole = {"min": 1, "max": 100, "continuous_update": False}
    query, shown = widgets.Dropdown(description="query", **wide), widgets.HTML()
    run = widgets.Dropdown(description="run", options=list(runs), **wide)
    processing = widgets.Dropdown(description="post-processing", options=list(POST_PROCESSINGS), value=start[1], **wide)
    sliders = [
        widgets.IntSlider(start[2], description="k1", **whole),
        widgets.IntSlider(start[3], description="k2", **whole),
        widgets.FloatSlider(start[4], min=0, max=1, step=0.05, description="weight", continuous_update=False),
    ]
    controls = {control.description: control for control in (run, processing, *sliders)}

    def show(_=None):
        shown.value = view(tuple(control.value for control in controls.values()), query.value)

    def renew(**settings):
        aps, former = rank(*settings.values())[1], query.value
        players, order = runs[run.value].query_players, worst_first(aps)
        query.unobserve(show, "value")  # new options pick the first one: not a choice of the user's
        query.options = [(f"AP {aps[q]:.2f} · player {players[q]}", q) for q in order]
        query.value = former if former in order else order[0]
        query.observe(show, "value")
        for slider in sliders:
            slider.disabled = processing.value == "none"
        show()

    query.observe(show, "value")
    faults = widgets.interactive_output(renew, controls)  # what a wrong setting raises is read below the view
    rows = [widgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in ([query, run, processing], sliders)]
    return widgets.VBox([*rows, shown, faults])
