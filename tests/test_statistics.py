"""Intervals, paired differences and corrected p-values: hand-worked cases, scipy as oracle, edges."""

import numpy as np
import pytest
from scipy import stats

from reid_utils.ranking.statistics import (
    bootstrap_interval,
    compare_rows,
    holm,
    mean_over_seeds,
    paired_difference,
    smallest_detectable_difference,
)


@pytest.fixture
def aps():
    """Scores (3 seeds, 60 queries) with a query effect that the seeds share."""
    rng = np.random.default_rng(7)
    return 1 / (1 + np.exp(-(rng.normal(1, 1.5, 60) + rng.normal(0, 0.5, (3, 60)))))


def test_seeds_are_averaged_per_query_and_matchless_queries_stay_nan():
    scores = mean_over_seeds([[0.2, np.nan, 1.0], [0.4, np.nan, 0.5]])
    np.testing.assert_allclose(scores, [0.3, np.nan, 0.75])


def test_query_missing_in_one_seed_is_an_error_that_names_it():
    with pytest.raises(ValueError, match="query 1 has a score in some seeds only"):
        mean_over_seeds([[0.2, np.nan], [0.4, 0.5]])


def test_percentages_are_refused():
    with pytest.raises(ValueError, match="fractions"):
        mean_over_seeds([[97.0, 98.0]])


def test_no_query_with_a_match_is_an_error():
    with pytest.raises(ValueError, match="no query has a match"):
        bootstrap_interval([[np.nan, np.nan]])


def test_interval_agrees_with_the_normal_one(aps):
    values = aps.mean(axis=0)
    low, high = bootstrap_interval(aps)
    half = 1.96 * values.std() / np.sqrt(len(values))
    np.testing.assert_allclose([low, high], [values.mean() - half, values.mean() + half], atol=0.1 * half)


def test_interval_grows_with_confidence_and_repeats_exactly(aps):
    widths = [np.diff(bootstrap_interval(aps, confidence=c))[0] for c in (0.5, 0.8, 0.9, 0.95, 0.99)]
    assert np.all(np.diff(widths) > 0)
    assert bootstrap_interval(aps, seed=3) == bootstrap_interval(aps, seed=3)
    assert bootstrap_interval(aps, seed=3) != bootstrap_interval(aps, seed=4)


def test_repeating_a_seed_adds_no_certainty(aps):
    once = bootstrap_interval(aps[:1])
    np.testing.assert_allclose(bootstrap_interval(np.repeat(aps[:1], 5, axis=0)), once, rtol=1e-12)


def test_matchless_queries_change_nothing(aps):
    with_gaps = np.insert(aps, [0, 10, 60], np.nan, axis=1)
    assert bootstrap_interval(with_gaps) == bootstrap_interval(aps)
    shifted = np.clip(aps + 0.02, 0, 1)
    expected = paired_difference(shifted, aps)
    assert paired_difference(np.insert(shifted, [0, 10, 60], np.nan, axis=1), with_gaps) == expected


def test_single_query_has_no_interval():
    assert np.isnan(bootstrap_interval([[0.5]])).all()
    result = paired_difference([[0.75]], [[0.5]])
    assert result["difference"] == 0.25
    assert result["p"] == 1.0
    assert np.isnan([result["low"], result["high"], smallest_detectable_difference([[0.75]], [[0.5]])]).all()


def test_sign_flip_p_by_full_enumeration():
    # Differences 3, 2, 1: of the 8 sign patterns, the sums are ±6, ±4, ±2, 0, 0.
    baseline = np.zeros(3)
    assert paired_difference([0.3, 0.2, 0.1], baseline)["p"] == 2 / 8
    # 3, 2, −1: the sum 4 is reached or passed by ±6 and ±4.
    assert paired_difference([0.3, 0.2, 0.0], [0.0, 0.0, 0.1])["p"] == 4 / 8


@pytest.mark.parametrize("queries", [10, 40])
def test_sign_flip_p_agrees_with_scipy(queries):
    rng = np.random.default_rng(queries)
    ours, theirs = rng.uniform(0, 1, (2, queries))
    ours = np.clip(ours + 0.15, 0, 1)
    resamples = np.inf if queries == 10 else 20000
    oracle = stats.permutation_test(
        (ours - theirs,), np.mean, permutation_type="samples", n_resamples=resamples, rng=rng
    ).pvalue
    tolerance = 1e-12 if queries == 10 else 0.02
    assert paired_difference(ours, theirs, n_resamples=20000)["p"] == pytest.approx(oracle, abs=tolerance)


def test_p_is_never_zero_and_is_one_for_equal_rows(aps):
    assert paired_difference(np.ones(200), np.zeros(200), n_resamples=999)["p"] == 1 / 1000
    same = paired_difference(aps, aps)
    assert (same["difference"], same["low"], same["high"], same["p"]) == (0, 0, 0, 1)


def test_paired_difference_is_antisymmetric(aps):
    better = np.clip(aps + np.linspace(-0.02, 0.06, 60), 0, 1)
    forward, back = paired_difference(better, aps), paired_difference(aps, better)
    assert forward["difference"] == -back["difference"]
    assert forward["p"] == back["p"]
    np.testing.assert_allclose([forward["low"], forward["high"]], [-back["high"], -back["low"]], atol=1e-3)


def test_pairing_sees_what_separate_intervals_hide(aps):
    table = compare_rows({"plain": aps, "better": np.clip(aps + 0.02, 0, 1)}, "plain")
    assert table.low[1] < table.high[0]  # the two intervals overlap …
    assert table.diff_low[1] > 0  # … yet every query gains


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([0.5, 0.6], [0.5], "2 queries against 1"),
        ([0.5, np.nan], [0.5, 0.6], "query 1 has a match in one row only"),
    ],
)
def test_rows_over_different_queries_are_refused(ours, theirs, message):
    with pytest.raises(ValueError, match=message):
        paired_difference(ours, theirs)


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; never falling: the last becomes 0.06.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.9]), [np.nan, 0.04, 0.9])
    np.testing.assert_allclose(holm([0.7, 0.8]), [1.0, 1.0])
    assert len(holm([])) == 0


def test_table_of_rows(aps):
    rows = {"b": np.clip(aps + 0.03, 0, 1), "a": aps, "one seed": aps[0]}
    before = {name: scores.copy() for name, scores in rows.items()}
    table = compare_rows(rows, "a")
    expected = "row mAP low high difference diff_low diff_high p p_holm seed_sd seeds queries"
    assert table.columns.tolist() == expected.split()
    assert table.row.tolist() == ["b", "a", "one seed"]
    assert table.seeds.tolist() == [3, 3, 1]
    assert table.queries.tolist() == [60, 60, 60]
    assert table.loc[1, ["difference", "p", "p_holm"]].isna().all()
    np.testing.assert_allclose(table.mAP[0] - table.mAP[1], table.difference[0])
    np.testing.assert_allclose(table.seed_sd[1], aps.mean(axis=1).std(ddof=1))
    assert np.isnan(table.seed_sd[2])
    assert table.p_holm[0] == pytest.approx(2 * table.p[0])
    for name, scores in rows.items():
        np.testing.assert_array_equal(scores, before[name])


def test_table_of_the_baseline_alone_and_of_hits():
    hits = np.array([[0, 1, 1, 1], [1, 1, 1, 0]])
    table = compare_rows({"none": hits}, "none", metric="rank1")
    assert table.rank1[0] == 0.75
    assert 0 <= table.low[0] <= 0.75 <= table.high[0] <= 1
    assert np.isnan(table.p_holm[0])


def test_unknown_baseline_names_the_rows(aps):
    with pytest.raises(ValueError, match="'none' is not a row; the rows are a, b"):
        compare_rows({"a": aps, "b": aps}, "none")


def test_smallest_detectable_difference_is_found_at_the_stated_power():
    rng = np.random.default_rng(1)
    spread, queries = 0.1, 50
    sample = 0.5 + np.resize([spread, -spread], queries)
    smallest = smallest_detectable_difference(sample, np.full(queries, 0.5), power=0.8)
    assert smallest == pytest.approx((2.0096 + 0.849) * spread * np.sqrt(50 / 49) / np.sqrt(50), rel=1e-3)
    drawn = rng.normal(smallest, spread, (2000, queries))
    found = np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.03)
