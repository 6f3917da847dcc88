"""Where a data set has groups (the actions of SoccerNet) a query is ranked, fused and shown within its own alone."""

import json
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from IPython.display import HTML

from reid_utils.ranking import cmc, rerank
from reid_utils.ranking.attribution import lost_precision
from reid_utils.ranking.feature_files import Features, save
from reid_utils.ranking.fusion import FUSIONS, dissimilarity_weights
from reid_utils.ranking.methods import (
    POST_PROCESSINGS,
    distances_of,
    fuse,
    groups_of,
    pairs_of,
    score,
    score_features,
    sweep_of,
    weights_of,
    within_groups,
    write_entry,
    write_predictions,
)
from reid_utils.ranking.metrics import labels_of, mean_average_precision
from reid_utils.ranking.regimes import effects_at, points_in_set
from reid_utils.views.explorer import explore, ranked_query

ACTIONS, PERSONS, IMAGES = 12, 5, 3
PLAYERS = np.arange(ACTIONS * PERSONS)
GALLERY = np.repeat(PLAYERS, IMAGES)


def simulated():
    """Two models of 12 actions; in the second one actions lie far apart, so padding would move averages."""
    rng = np.random.default_rng(3)
    centres, shift = rng.normal(size=(len(PLAYERS), 16)), rng.normal(size=(ACTIONS, 16)) * 6

    def model(spread):
        def made(ids):
            noise = 1.2 * rng.normal(size=(len(ids), 16))
            return (centres[ids] + noise + spread * shift[ids // PERSONS]).astype(np.float32)

        sides = {"query": made(PLAYERS), "gallery": made(GALLERY), "query_players": PLAYERS, "gallery_players": GALLERY}
        groups = {"query_groups": PLAYERS // PERSONS + 1, "gallery_groups": GALLERY // PERSONS + 1}
        images = {"query_images": PLAYERS.astype(str), "gallery_images": np.arange(len(GALLERY)).astype(str)}
        return Features(**sides, **groups, **images)

    return [model(0.0), model(4.0)]


MODELS = simulated()
PARTS = [[replace(model.subset(*group), query_groups=None, gallery_groups=None) for group in groups_of(model)]
         for model in MODELS]  # fmt: skip
LABELS = labels_of(MODELS[0])
QUIET = pytest.mark.filterwarnings("ignore:k1=.* exceeds the gallery")


def apart(distances):
    """A matrix cut into its actions, each checked to hold numbers alone, and to be all that does."""
    cut = [distances[np.ix_(*group)] for group in groups_of(MODELS[0])]
    assert all(np.isfinite(part).all() for part in cut)
    assert np.isposinf(distances).sum() == distances.size - sum(part.size for part in cut)
    return cut


@QUIET
@pytest.mark.parametrize("name", POST_PROCESSINGS)
def test_each_group_is_re_ranked_on_its_own(name):
    for found, part in zip(apart(distances_of(MODELS[1], name)), PARTS[1], strict=True):
        np.testing.assert_array_equal(found, distances_of(part, name))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *(dict.fromkeys(("similarity", "dissimilarity", "two-stage"), 87.96)).items(),
        ("rank average", 85.32),
        ("reciprocal rank", 86.57),
        ("min-max", 88.00),
        ("z-score", 87.82),
    ],
)
def test_a_fusion_depends_on_the_own_group_alone(name, expected):
    matrices = [distances_of(model) for model in MODELS]
    fused = fuse(matrices, name)
    assert 100 * score(fused, *LABELS)["mAP"] == pytest.approx(expected, abs=0.005)
    for found, *parts in zip(apart(fused), *PARTS, strict=True):
        np.testing.assert_array_equal(found, FUSIONS[name]([distances_of(part) for part in parts]))


def test_weights_are_those_of_the_own_group():
    weights = weights_of([distances_of(model) for model in MODELS], 3)
    parts = [dissimilarity_weights([distances_of(part) for part in parts], 3) for parts in zip(*PARTS, strict=True)]
    np.testing.assert_array_equal(weights, np.concatenate(parts))


def test_matrices_of_different_groups_are_not_fused():
    whole = distances_of(replace(MODELS[1], query_groups=None, gallery_groups=None))
    with pytest.raises(ValueError, match="distance matrix 1 ranks other images than matrix 0; give all"):
        fuse([distances_of(MODELS[0]), whole], "min-max")


def test_nan_is_refused_with_groups_and_without():
    for matrix in (distances_of(MODELS[0]), np.ones((2, 3))):
        wrong = matrix.copy()
        wrong[0, 0] = np.nan
        with pytest.raises(ValueError, match=r"row 0 holds|infinity that marks no group"):
            fuse([wrong, wrong], "similarity")


@QUIET
def test_a_sweep_and_any_other_ranking_keep_to_the_groups():
    swept = dict(sweep_of(MODELS[0], "hard", [4, 20], [2], [0.3, 0.7]))
    assert list(swept) == [(4, 2, 0.3), (4, 2, 0.7), (20, 2, 0.3), (20, 2, 0.7)]
    for (k1, k2, weight), distances in swept.items():
        np.testing.assert_allclose(distances, distances_of(MODELS[0], "hard", k1, k2, weight), atol=1e-6)
    alone = partial(rerank, variant="hard", query_query=False)
    found = within_groups(MODELS[0], alone)
    for cut, part in zip(apart(found), PARTS[0], strict=True):
        np.testing.assert_array_equal(cut, alone(part.query, part.gallery))


def test_no_score_counts_an_image_of_another_group():
    """A player who is in two groups is looked for in the query's own alone."""
    ids = {"query_players": np.array([1, 2]), "gallery_players": np.array([1, 3, 1, 2])}
    groups = {"query_groups": np.array([1, 2]), "gallery_groups": np.array([1, 1, 2, 2])}
    features = Features(distances=np.array([[0.3, 0.2, 0.1, 0.0], [0.0, 0.0, 0.4, 0.5]]), **ids, **groups)
    found = score_features(features)
    assert found["aps"].tolist() == [0.5, 0.5] and found["firsts"].tolist() == [2, 2] and found["mINP"] == 0.5
    distances, labels = distances_of(features), labels_of(features)
    assert cmc(distances, *labels, topk=3).tolist() == [0, 1, 1]
    assert cmc(distances, *labels, protocol="cuhk03", topk=3).tolist() == [0, 1, 1]
    genuine, impostor = pairs_of(features)
    assert genuine.tolist() == [[True, False, False, False], [False, False, False, True]]
    assert impostor.tolist() == [[False, True, False, False], [False, False, True, False]]
    lost = lost_precision(distances, *labels)
    assert lost.tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    missing = replace(features, gallery_groups=np.array([1, 1, 3, 3]))
    with pytest.warns(UserWarning, match="1 of 2 queries have no match"):
        assert score_features(missing)["aps"].tolist()[0] == 0.5


@pytest.mark.parametrize("row", [[0.1, np.inf, 0.3], [0.1, np.nan, 0.3], [-np.inf, 0.2, 0.3]])
def test_infinity_that_marks_no_group_is_refused(row):
    with pytest.raises(ValueError, match=r"row 1 holds (NaN or )?infinity"):
        mean_average_precision([[0.1, 0.2, 0.3], row], [1, 2], [1, 2, 2])


@QUIET
def test_an_unknown_group_is_no_group_and_one_side_alone_is_refused():
    model = MODELS[1]
    unknown = replace(model, query_groups=np.where(PLAYERS < 5, -1, model.query_groups), gallery_groups=np.where(
        GALLERY < 10, -1, model.gallery_groups))  # fmt: skip
    distances = distances_of(unknown)
    assert np.isinf(distances[:10]).all() and np.isfinite(distances[10]).any()
    assert not pairs_of(unknown)[0][:10].any()
    given = Features(**vars(unknown) | {"query": None, "gallery": None, "distances": np.ones(distances.shape)})
    assert np.isinf(distances_of(given)[:10]).all()
    fields = {name: value for name, value in vars(unknown).items() if value is not None}  # a plain dict will do
    np.testing.assert_array_equal(distances_of(fields), distances)
    assert labels_of(fields).query_players is unknown.query_players
    with pytest.raises(ValueError, match="go together"):
        distances_of(replace(model, query_groups=None))


def test_an_operating_point_ranks_within_groups():
    (single, effect) = next(each[1:] for each in effects_at(MODELS) if each[0] == "hard − none")
    parts = [
        next(each[1:] for each in effects_at(parts) if each[0] == "hard − none") for parts in zip(*PARTS, strict=True)
    ]
    np.testing.assert_allclose([single, effect], np.concatenate(parts, axis=1))
    roles = ["query"] * len(PLAYERS) + ["gallery"] * len(GALLERY)
    players = np.concatenate([PLAYERS, GALLERY])
    test = pd.DataFrame({"role": roles, "player": players, "group": players // PERSONS + 1, "frame": range(len(roles))})
    test = test.assign(camera=(test["role"] == "gallery").astype(int), image_id=test.index.astype(str))
    features = [np.concatenate([model.query, model.gallery]) for model in MODELS]
    points = [point for point in points_in_set(features, test) if point["claim"] == "hard − none"]
    np.testing.assert_allclose(points[0]["effect"], effect)


@QUIET
def test_the_explorer_shows_the_own_group_alone():
    before, after = (distances_of(MODELS[0], name) for name in ("none", "hard"))
    shown = ranked_query(before, after, MODELS[0], 7)
    assert sorted(shown["image"]) == np.flatnonzero(GALLERY // PERSONS == 7 // PERSONS).tolist()
    assert shown["rank"].max() == PERSONS * IMAGES and shown["is_match"].sum() == IMAGES
    view = explore({"first": MODELS[0]}, lambda role, image: np.full((32, 16, 3), 99, np.uint8), top=100, live=False)
    worst = np.argmin(score(after, *LABELS)["aps"])
    assert isinstance(view, HTML) and re.search(rf"query {worst};", view.data)
    assert view.data.count("<img") == 1 + PERSONS * IMAGES


@QUIET
def test_predictions_and_entries_are_ranked_within_groups(tmp_path):
    for name, model in zip("ab", MODELS, strict=True):
        save(tmp_path / name / "test.npz", model)
    scores = write_predictions(tmp_path, [tmp_path / "a"], ["test"])
    assert scores["test_reranked"]["mAP"] == score_features(MODELS[0], "hard")["mAP"]
    assert not [*tmp_path.glob("*.csv")]  # the challenge's form knows one gallery
    entries = write_entry(tmp_path, {"test": [dict(zip("ab", MODELS, strict=True))]}, "none", "min-max")
    assert 100 * score(entries["test"], *LABELS)["mAP"] == pytest.approx(88.00, abs=0.005)


@pytest.mark.parametrize(("notebook", "row"), [("03_post_processing", "hard"), ("04_fusion", "a + b: min-max")])
def test_notebooks_on_files_with_groups_keep_to_them(tmp_path, notebook, row):
    for name, model in zip("ab", MODELS, strict=True):
        bare = replace(model, query_groups=None, gallery_groups=None, query_images=None, gallery_images=None)
        save(tmp_path / "features" / f"{name}.npz", bare if notebook[:2] == "04" and name == "b" else model)
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        f"{notebook}.ipynb",
        str(tmp_path / "done.ipynb"),
    ]
    command += ["-p", "features", str(tmp_path / "features"), "-p", "out", str(tmp_path / "out")]
    command += ["-p", "post_processing", "none"] if notebook[:2] == "04" else []
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "results" / notebook / "results.json").read_text())["values"]["comparison"]
    means = {(line["row"], line.get("group", "a")): line["mAP"] for line in found}
    with warnings.catch_warnings(action="ignore"):
        expected = 0.88 if notebook[:2] == "04" else score_features(MODELS[0], "hard")["mAP"]
    assert means[row, "a"] == pytest.approx(expected, abs=5e-5)
