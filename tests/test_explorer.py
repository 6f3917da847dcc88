"""What the explorer shows, with controls and without."""

import re

import numpy as np
import pytest
from IPython.display import HTML

from reid_utils.ranking.feature_files import Features
from reid_utils.views.explorer import explore, is_live, moved, ranked_query, thumbnail, worst_first


def run(seed=0, queries=6, images=5):
    """Features of players whose images lie about a centre of their own, the last one's far from it."""
    rng = np.random.default_rng(seed)
    players = np.arange(queries)
    centres = rng.normal(size=(queries, 8))
    of_gallery = np.repeat(players, images)
    spread = np.where(of_gallery == queries - 1, 3.0, 0.4)[:, None]
    return Features(**{
        "query": centres.astype(np.float32),
        "gallery": (centres[of_gallery] + spread * rng.normal(size=(len(of_gallery), 8))).astype(np.float32),
        "query_players": players, "gallery_players": of_gallery,
        "query_cameras": np.zeros(queries, int), "gallery_cameras": np.ones(len(of_gallery), int),
        "query_images": players.astype(str), "gallery_images": np.arange(len(of_gallery)).astype(str),
    })  # fmt: skip


def read_image(role, image):
    return np.full((32, 16, 3), int(image), np.uint8)


def test_a_ranking_says_where_each_image_stood_before_and_leaves_junk_out():
    features = Features(**{
        "query_players": np.array([7]), "gallery_players": np.array([7, 8, 7, 9, -1]),
        "query_cameras": np.array([0]), "gallery_cameras": np.array([1, 1, 0, 1, 1]),
    })  # fmt: skip
    before, after = np.array([[0.5, 0.2, 0.1, 0.3, 0.0]]), np.array([[0.2, 0.4, 0.1, 0.4, 0.0]])
    shown = ranked_query(before, after, features, 0)
    assert shown["image"].tolist() == [0, 1, 3] and shown["rank"].tolist() == [1, 2, 3]
    assert shown["was"].tolist() == [3, 1, 2] and shown["is_match"].tolist() == [True, False, False]
    assert shown["distance"].tolist() == [0.2, 0.4, 0.4]
    assert [moved(row.rank, row.was) for row in shown.itertuples()] == ["▲ 2", "▼ 1", "▼ 1"] and moved(4, 4) == "="


def test_queries_come_worst_first_without_those_that_have_no_match():
    assert worst_first(np.array([0.5, np.nan, 0.1, 1.0])) == [2, 0, 3]


def test_a_thumbnail_is_a_small_jpeg_of_the_crop():
    import base64

    import cv2

    uri = thumbnail(np.dstack([np.full((256, 64), value, np.uint8) for value in (200, 100, 0)]))
    image = cv2.imdecode(np.frombuffer(base64.b64decode(uri.split(",")[1]), np.uint8), cv2.IMREAD_COLOR)
    assert uri.startswith("data:image/jpeg;base64,") and image.shape == (128, 32, 3)
    assert np.abs(image[64, 16].astype(int) - (0, 100, 200)).max() < 12


def test_where_nobody_sits_the_worst_query_is_shown_without_scripts():
    assert not is_live()
    shown = explore({"first": run()}, read_image, top=4, k1=5, k2=2)
    assert isinstance(shown, HTML) and shown.data.count("<img") == 5 and "<script" not in shown.data
    assert "player 5, query 5; first, hard (k1 5, k2 2, w 0.7)" in shown.data
    assert "All 5 true matches" in shown.data and {"✓", "✗"} & set(shown.data)


def shown_ap(view):
    """The average precision after post-processing that a view tells."""
    return float(re.search(r"→ ([0-9.]+)", view.value)[1])


def test_controls_change_what_is_shown():
    box = explore({"first": run(), "second": run(1)}, read_image, k1=5, k2=2, live=True)
    (query, chosen, processing), (k1, _, weight) = box.children[0].children, box.children[1].children
    view = box.children[2]
    aps = [float(re.search(r"AP ([0-9.]+)", label)[1]) for label, _ in query.options]
    assert aps == sorted(aps) and aps[0] < aps[-1] and query.value == query.options[0][1] == 5
    seen = {view.value}
    for control, value in ((query, 2), (k1, 9), (weight, 0.2), (processing, "none"), (chosen, "second")):
        control.value = value
        seen.add(view.value)
        assert query.value == query.options[query.index][1] == 2  # the query stays, wherever it now stands in the list
        assert query.label == f"AP {shown_ap(view):.2f} · player 2"
    assert len(seen) == 6
    assert not re.search(r"[▲▼] \d", view.value) and k1.disabled


def test_an_unknown_post_processing_is_named():
    with pytest.raises(ValueError, match="'harder' is unknown"):
        explore({"first": run()}, read_image, "harder")
