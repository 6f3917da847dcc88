"""Fusion: equal to the published scripts, worked examples, and refusal of inputs that do not belong together."""

from pathlib import Path

import numpy as np
import pytest

from reid_utils.ranking import (
    check_same_ids,
    dissimilarity_fusion,
    dissimilarity_weights,
    min_max_fusion,
    rank_average,
    reciprocal_rank_fusion,
    similarity_fusion,
    two_stage_fusion,
    z_score_fusion,
)

GOLDEN = sorted((Path(__file__).parent / "golden").glob("*.npz"))
CONTROLS = [rank_average, reciprocal_rank_fusion, min_max_fusion, z_score_fusion]
ALL = [similarity_fusion, dissimilarity_fusion, two_stage_fusion, *CONTROLS]


def matrices(count=3, seed=0, shape=(6, 40)):
    return list(np.random.default_rng(seed).random((count, *shape)).astype(np.float32))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem[:2])
def test_published_scripts(path):
    case = np.load(path, allow_pickle=False)
    given = list(case["fuse_in"].astype(np.float64).round(5))  # the scripts read CSVs of 5 decimals
    np.testing.assert_allclose(similarity_fusion(given).round(5), case["sim_fused"], atol=1.1e-5)
    for top_k in (15, 5):
        np.testing.assert_allclose(dissimilarity_weights(given, top_k), case[f"dissim_top{top_k}_weights"], atol=1e-12)
        fused = dissimilarity_fusion(given, top_k).round(5)
        np.testing.assert_allclose(fused, case[f"dissim_top{top_k}_fused"], atol=1.1e-5)


def near(*columns):
    """One row of ten distances with these columns nearest, in this order."""
    row = np.ones(10)
    row[list(columns)] = np.linspace(0.1, 0.5, len(columns))
    return row[None]


def test_models_that_agree_least_weigh_most():
    # agreed: 0, 1 (three lists) and 2 (two lists); overlaps 3, 3, 2 of 8
    weights = dissimilarity_weights([near(0, 1, 2), near(0, 1, 2), near(0, 1, 9)], top_k=3)
    np.testing.assert_allclose(weights, [[2 / 7, 2 / 7, 3 / 7]])
    # the third shares nothing: overlaps 2, 2, 0, shares 1/2, 1/2 and 0.1 instead of 0
    weights = dissimilarity_weights([near(0, 1), near(1, 0), near(8, 9)], top_k=2)
    np.testing.assert_allclose(weights, [[2 / 14, 2 / 14, 10 / 14]])
    # no agreement at all
    np.testing.assert_allclose(dissimilarity_weights([near(0), near(1), near(2)], top_k=1), [[1 / 3] * 3])
    # of two models both must have it
    np.testing.assert_allclose(dissimilarity_weights([near(0, 1), near(0, 2)], top_k=2), [[0.5, 0.5]])


def test_ties_in_the_top_list_go_to_the_lower_index():
    tied = np.zeros((1, 10))
    weights = dissimilarity_weights([tied, near(0, 1), near(0, 9)], top_k=2)
    np.testing.assert_allclose(weights, dissimilarity_weights([near(0, 1), near(0, 1), near(0, 9)], top_k=2))


def test_two_stages_are_the_mean_of_both():
    given = matrices()
    expected = (similarity_fusion(given) + dissimilarity_fusion(given)) / 2
    np.testing.assert_allclose(two_stage_fusion(given), expected, atol=1e-6)
    np.testing.assert_allclose(similarity_fusion(given), np.mean(given, axis=0), atol=1e-6)


def test_controls_by_hand():
    given = [np.array([[1.0, 2.0, 4.0]]), np.array([[30.0, 10.0, 10.0]])]
    np.testing.assert_allclose(rank_average(given), [[2, 1.75, 2.25]])
    expected = 1 - (61 / 61 + 61 / 63) / 2, 1 - (61 / 62 + 61 / 61.5) / 2, 1 - (61 / 63 + 61 / 61.5) / 2
    np.testing.assert_allclose(reciprocal_rank_fusion(given), [expected])
    np.testing.assert_allclose(min_max_fusion(given), [[0.5, 1 / 6, 0.5]])
    low, high = (np.array([-4, -1, 5]) / 3) / np.sqrt(14 / 9), np.array([2, -1, -1]) / np.sqrt(2)
    np.testing.assert_allclose(z_score_fusion(given), [(low + high) / 2])


@pytest.mark.parametrize("fuse", ALL)
def test_every_fusion_keeps_what_all_models_say(fuse):
    given = [matrix.copy() for matrix in [matrices(1)[0]] * 3]
    before = given[0].copy()
    found = fuse(given)
    np.testing.assert_array_equal(np.argsort(found, axis=1), np.argsort(before, axis=1))
    np.testing.assert_array_equal(given[0], before)


@pytest.mark.parametrize("fuse", [min_max_fusion, z_score_fusion])
def test_constant_rows_stay_finite(fuse):
    assert np.isfinite(fuse([np.full((2, 5), 0.3, np.float32), matrices(1, shape=(2, 5))[0]])).all()


@pytest.mark.parametrize("fuse", ALL)
def test_bad_matrices_are_named(fuse):
    given = matrices()
    with pytest.raises(ValueError, match="at least two distance matrices, not 1"):
        fuse(given[:1])
    with pytest.raises(ValueError, match=r"distance matrix 2 has shape \(6, 39\), matrix 0 \(6, 40\)"):
        fuse([*given[:2], given[2][:, 1:]])
    given[1][4, 2] = np.nan
    with pytest.raises(ValueError, match="distance matrix 1 row 4 holds NaN"):
        fuse(given)


def test_ids_must_agree():
    check_same_ids([([1, 2], [3, 4, 5]), (np.array([1, 2]), [3, 4, 5])])
    with pytest.raises(ValueError, match=r"b.csv has gallery id 9 at position 1, a.csv has 4"):
        check_same_ids([([1, 2], [3, 4, 5]), ([1, 2], [3, 9, 5])], ["a.csv", "b.csv"])
    with pytest.raises(ValueError, match="input 2 has query id 1 at position 0, input 0 has 2"):
        check_same_ids([([2, 1], [3]), ([2, 1], [3]), ([1, 2], [3])])
    with pytest.raises(ValueError, match="input 1 has 2 gallery images, input 0 has 1"):
        check_same_ids([([1], [3]), ([1], [3, 4])])
    with pytest.raises(ValueError, match=r"query ids of a.csv are whole numbers, of b.npz text; write both"):
        check_same_ids([([1], [3]), (["1"], ["3"])], ["a.csv", "b.npz"])
    with pytest.raises(ValueError, match=f"input 1 has query id {2**53 + 1} at position 0, input 0 has {2**53}"):
        check_same_ids([(np.array([2**53], np.uint64), [3]), (np.array([2**53 + 1], np.int64), [3])])


@pytest.mark.parametrize("top_k", [0, 1.5, True, "15"])
def test_the_length_of_top_lists_is_a_whole_number(top_k):
    with pytest.raises(ValueError, match=f"top_k must be a whole number of at least 1, not {top_k}"):
        dissimilarity_fusion(matrices(), top_k)
