"""The error atlas: lost AP booked on images, and what its causes explain."""

import numpy as np
import pandas as pd
import pytest

from reid_utils.data.difficulty import causes_of_error, read_nuisances
from reid_utils.ranking.attribution import explained_shares, lost_precision
from reid_utils.ranking.metrics import average_precisions


def test_a_hand_worked_query():
    # rank:            1     2       3     4       5
    # image:           other match   other other   match
    distances = np.array([[0.2, 0.1, 0.9, 0.3, 0.4]])
    players = np.array([7, 8, 7, 8, 9])
    lost = lost_precision(distances, [7], players)
    # the match at rank 2 has 1 intruder of 2 images, the one at rank 5 has 3 of 5; two matches, so half of each
    np.testing.assert_allclose(lost[0, [0, 2]], [1 / 4, 3 / 10])
    # the nearest intruder stands above both matches, the others above the last alone
    np.testing.assert_allclose(lost[0, [1, 3, 4]], [1 / 4 + 1 / 10, 1 / 10, 1 / 10])
    assert 1 - average_precisions(distances, [7], players)[0] == pytest.approx(0.55)


def test_both_sides_of_the_book_sum_to_what_is_lost_with_ties_and_junk_too():
    rng = np.random.default_rng(0)
    distances = rng.integers(0, 12, (20, 90)) / 4
    players, others = rng.integers(0, 8, 20), rng.integers(0, 8, 90)
    cameras = rng.integers(0, 2, 20), rng.integers(0, 2, 90)
    players[0] = 99  # has no match
    lost = lost_precision(distances, players, others, *cameras)
    with pytest.warns(UserWarning, match="no match"):
        aps = average_precisions(distances, players, others, *cameras)
    own = players[:, None] == others[None, :]
    np.testing.assert_allclose((lost * own).sum(axis=1), np.nan_to_num(1 - aps), atol=1e-12)
    np.testing.assert_allclose((lost * ~own).sum(axis=1), np.nan_to_num(1 - aps), atol=1e-12)
    assert (lost[own & (cameras[0][:, None] == cameras[1][None, :])] == 0).all()


def test_unknown_gallery_players_cost_nothing():
    lost = lost_precision(np.array([[0.2, 0.1, 0.3]]), [7], np.array([-1, 8, 7]))
    np.testing.assert_allclose(lost, [[0, 1 / 2, 1 / 2]])


def test_a_cause_explains_what_would_go_if_the_affected_lost_no_more_than_the_others():
    # a quarter of the pairs is affected and loses three times as much: half of the loss, a third of which is excess
    lost = np.tile([0.3, 0.1, 0.1, 0.1], (30, 1))
    pairs, affected = np.ones((30, 4), bool), np.tile([True, False, False, False], (30, 1))
    blind = np.tile([False, True, False, False], (30, 1))
    found = explained_shares(lost, {"blur": (pairs, affected), "calm": (pairs, blind)}, n_resamples=200)
    assert found["cause"].tolist() == ["blur", "calm"]
    blur, calm = found.to_dict("records")
    assert (blur["pairs"], blur["lost"], blur["explained"]) == pytest.approx((1 / 4, 1 / 2, 1 / 3))
    assert 1 - (30 * 4 * 0.1) / lost.sum() == pytest.approx(1 / 3)
    assert calm["explained"] < 0 and blur["low"] == pytest.approx(blur["high"])


def test_intervals_are_over_queries_and_nothing_lost_explains_nothing():
    rng = np.random.default_rng(1)
    lost, affected = rng.random((40, 10)), rng.random((40, 10)) < 0.4
    pairs = np.ones_like(affected)
    found = explained_shares(lost, {"noise": (pairs, affected)}).iloc[0]
    assert found["low"] < 0 < found["high"] and found["low"] < found["explained"] < found["high"]
    assert np.isnan(explained_shares(0 * lost, {"noise": (pairs, affected)}).iloc[0]["explained"])


def nuisances(**columns):
    quiet = {"blur": 0.0, "occluded": 0.0, "scale": 1.0, "resolution": 1.0, "view": 0, "sequence": 1, "team": "A"}
    return pd.DataFrame({**{name: [value] * 4 for name, value in quiet.items()}, **columns})


def test_pairs_are_affected_by_the_worst_quarter_a_turned_view_and_the_team():
    query = nuisances().iloc[:1].assign(view=350)
    gallery = nuisances(
        blur=[0, 0, 0, 3.0], occluded=[0.2, 0, 0, 0], scale=[1, 0.8, 1, 1], view=[10, 80, 81, 260],
        team=["A", "A", "B", "A"], sequence=[1, 2, 1, 1],
    )  # fmt: skip
    masks = np.ones((1, 4), bool), np.zeros((1, 4), bool)
    found = {cause: affected[0].tolist() for cause, (_, affected) in causes_of_error(query, gallery, *masks).items()}
    assert found == {
        "match: motion blur": [False, False, False, True],
        "match: occluded": [True, False, False, False],
        "match: small": [False, True, False, False],
        "match: low resolution": [False] * 4,
        "match: turned away": [False, True, True, True],
        "intruder: team mate": [True, False, False, True],
    }


def test_nuisances_follow_the_images_and_real_data_have_none(tmp_path):
    (tmp_path / "reid_training").mkdir()
    paths = pd.Series(["reid_test/query/2_1_00.jpeg", "reid_test/query/1_1_00.jpeg"])
    assert read_nuisances(tmp_path, paths) is None
    rows = pd.DataFrame({"path": sorted(paths), "blur": [1.0, 2.0]})
    rows.to_csv(tmp_path / "nuisances.csv", index=False)
    assert read_nuisances(tmp_path, paths)["blur"].tolist() == [2.0, 1.0]
    with pytest.raises(ValueError, match="no row for reid_test/query/9"):
        read_nuisances(tmp_path, pd.Series(["reid_test/query/9_1_00.jpeg"]))
