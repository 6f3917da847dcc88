"""Intervals over queries and seeds, p-values, what could be told: hand-worked cases, scipy as oracle, edges."""

import numpy as np
import pytest
from scipy import stats

from benchmarks import coverage
from reid_utils.ranking.statistics import P_FLOOR, compare_rows, holm, mean_interval, paired_difference


@pytest.fixture
def aps():
    """Scores (3 seeds, 60 queries) with a query effect that the seeds share."""
    rng = np.random.default_rng(7)
    return 1 / (1 + np.exp(-(rng.normal(1, 1.5, 60) + rng.normal(0, 0.5, (3, 60)))))


def drawn(rng, seeds, queries, mean=0.5, seed_sd=0.02, change=0.0):
    """Scores with a query effect, seed effects and a residual, all normal; `change` (queries,) is added."""
    effects = rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, 0.05, (seeds, queries))
    return np.clip(mean + change + effects, 0, 1)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.2, np.nan], [0.4, 0.5]], "query 1 has a score in some seeds only"),
        ([[97.0, 98.0]], "fractions"),
        ([[np.nan, np.nan]], "no query has a match"),
        ([[]], "at least one of each"),
    ],
)
def test_scores_that_are_none_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(scores)
    with pytest.raises(ValueError, match=message):
        paired_difference(scores, scores)


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


def test_two_way_interval_by_hand():
    # Differences by seed: 0, 20, 10 and 20, 20, 50 points. Query means 10, 20, 30: variance 100 / 3 queries. Seed means
    # 10, 30: variance 200 / 2 seeds, of which the residual (0, 10, -10; 0, -10, 10: mean square 400 / 2) is 200 / 6.
    ours = np.array([[0.5, 0.7, 0.6], [0.7, 0.7, 1.0]])
    found = paired_difference(ours, np.full((2, 3), 0.5), shared_weights=True)
    of_queries, of_seeds = 0.01 / 3, 0.02 / 2 - 0.02 / 6
    assert found["difference"] == pytest.approx(0.2)
    assert found["high"] - 0.2 == pytest.approx(np.sqrt(4.30265**2 * of_queries + 12.7062**2 * of_seeds), rel=1e-5)
    assert found["queries_high"] - 0.2 == pytest.approx(4.30265 * np.sqrt(of_queries), rel=1e-5)
    assert found["informative"] == 3


def test_seeds_alone_give_welchs_t_test():
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(0.52, 0.03, 5), rng.normal(0.5, 0.01, 8)
    oracle = stats.ttest_ind(ours, theirs, equal_var=False)
    found = paired_difference(np.tile(ours[:, None], 20), np.tile(theirs[:, None], 20))
    assert [found["low"], found["high"]] == pytest.approx(list(oracle.confidence_interval()))
    assert found["p"] == pytest.approx(oracle.pvalue)


def test_seeds_of_shared_weights_give_the_paired_t_test():
    rng = np.random.default_rng(3)
    theirs = rng.normal(0.5, 0.1, 6)
    ours = theirs + rng.normal(0.01, 0.01, 6)
    oracle = stats.ttest_rel(ours, theirs)
    found = paired_difference(np.tile(ours[:, None], 20), np.tile(theirs[:, None], 20), shared_weights=True)
    assert [found["low"], found["high"]] == pytest.approx(list(oracle.confidence_interval()))
    assert found["p"] == pytest.approx(oracle.pvalue)


def test_one_seed_gives_the_paired_t_test_over_queries(aps):
    better = np.minimum(aps.mean(axis=0), 0.9) + np.linspace(-0.02, 0.06, 60)
    theirs = np.minimum(aps, 0.9)
    theirs += np.minimum(aps.mean(axis=0), 0.9) - theirs.mean(axis=0)  # differences without heavy tails
    oracle = stats.ttest_rel(better, theirs.mean(axis=0))
    found = paired_difference(better, theirs)
    assert [found["low"], found["high"]] == pytest.approx(list(oracle.confidence_interval()))
    assert (found["low"], found["high"]) == (found["queries_low"], found["queries_high"])
    assert found["p"] == pytest.approx(max(oracle.pvalue, P_FLOOR))


def test_heavy_tails_take_degrees_of_freedom():
    # One outlier of eight has an excess kurtosis of 8, so that 2 / (2 / 7 + 8 / 8) degrees are left.
    values = np.repeat([0.1, 0.5], [7, 1])
    found = paired_difference(values, np.zeros(8))
    half = stats.t.ppf(0.975, 2 / (2 / 7 + 1)) * values.std(ddof=1) / np.sqrt(8)
    assert found["high"] - found["difference"] == pytest.approx(half)


def test_repeating_a_seed_adds_no_certainty(aps):
    once = mean_interval(aps[:1])
    np.testing.assert_allclose(mean_interval(np.repeat(aps[:1], 5, axis=0)), once, rtol=1e-12)


@pytest.mark.parametrize("case", range(20))
def test_seeds_only_widen_and_p_agrees_with_the_interval(case):
    rng = np.random.default_rng(case)
    change = rng.normal(0.01, 0.04, 40)
    ours, theirs = drawn(rng, 2 + case % 5, 40, change=change), drawn(rng, 3, 40)
    found, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert found["low"] <= found["queries_low"] <= found["difference"] <= found["queries_high"] <= found["high"]
    assert (found["p"] < 0.05) == (found["low"] > 0 or found["high"] < 0)
    assert (found["low"], found["high"], found["p"]) == pytest.approx((-back["high"], -back["low"], back["p"]))


def test_order_of_unpaired_seeds_and_of_queries_changes_nothing_and_that_of_shared_ones_does():
    rng = np.random.default_rng(1)
    theirs = drawn(rng, 4, 40, seed_sd=0.1)
    ours = np.clip(theirs + rng.normal(0.01, 0.02, (4, 40)), 0, 1)
    keys = ("low", "high", "p")
    expected, shared = (paired_difference(ours, theirs, shared_weights=both) for both in (False, True))
    turned = paired_difference(ours[::-1, ::-1], theirs[[1, 0, 2, 3], ::-1])
    assert [turned[key] for key in keys] == pytest.approx([expected[key] for key in keys])
    assert shared["high"] - shared["low"] < 0.5 * (expected["high"] - expected["low"])
    assert paired_difference(ours[::-1], theirs, shared_weights=True)["low"] < shared["low"]


def test_shared_weights_need_the_same_seeds(aps):
    with pytest.raises(ValueError, match="3 seeds against 2 in the baseline"):
        paired_difference(aps, aps[:2], shared_weights=True)


def test_interval_grows_with_confidence(aps):
    widths = [np.diff(mean_interval(aps, confidence=c))[0] for c in (0.5, 0.8, 0.9, 0.95, 0.99)]
    assert np.all(np.diff(widths) > 0)


def test_matchless_queries_change_nothing(aps):
    with_gaps = np.insert(aps, [0, 10, 60], np.nan, axis=1)
    assert mean_interval(with_gaps) == mean_interval(aps)
    shifted = np.clip(aps + 0.02, 0, 1)
    expected = paired_difference(shifted, aps)
    assert paired_difference(np.insert(shifted, [0, 10, 60], np.nan, axis=1), with_gaps) == expected


def test_single_query_has_no_interval():
    assert np.isnan(mean_interval([[0.5]])).all()
    result = paired_difference([[0.75]], [[0.5]])
    assert result["difference"] == 0.25
    assert result["p"] == 1.0
    assert np.isnan([result["low"], result["high"], result["smallest"]]).all()


def test_few_queries_that_differ_cannot_tell_what_a_plain_t_test_would():
    # Five of 50 queries lose 10 points: random signs reach that in 2 of 32 cases, the t-test says 0.02.
    row = np.repeat([0.9, 1.0], [5, 45])
    found = paired_difference(np.ones(50), row)
    assert found["informative"] == 5
    assert found["p"] > 2 / 32
    assert found["low"] < 0 < found["high"]
    twelve = paired_difference(np.ones(50), np.repeat([0.9, 1.0], [12, 38]))
    assert 2 / 2**12 < twelve["p"] < 0.05


def test_no_query_that_differs_bounds_the_share_that_could(aps):
    # Where a share s of all queries differs, 60 drawn ones show none with probability (1 - s)^60 = 0.025.
    same = paired_difference(aps, aps)
    assert (same["difference"], same["p"], same["informative"]) == (0, 1, 0)
    assert (same["low"], same["high"]) == pytest.approx((0.025 ** (1 / 60) - 1, 1 - 0.025 ** (1 / 60)))
    assert mean_interval(np.ones(60)) == pytest.approx((0.025 ** (1 / 60), 1))


def test_interval_of_a_nearly_perfect_row_stays_within_one():
    low, high = mean_interval(np.repeat([0.5, 1.0], [4, 46]))
    assert high == 1
    assert low < 0.92  # the mean is 0.96, the plain t interval begins at 0.921


def test_p_is_never_below_its_floor(aps):
    assert paired_difference(np.ones(200), np.zeros(200))["p"] == P_FLOOR
    assert paired_difference(np.clip(aps + 0.3, 0, 1), aps, shared_weights=True)["p_floor"] == P_FLOOR


def test_a_group_counts_as_one_draw():
    rng = np.random.default_rng(5)
    theirs = drawn(rng, 3, 40)
    ours = drawn(rng, 3, 40, change=rng.normal(0.01, 0.05, 40))
    groups, keys = np.repeat(np.arange(40), 3), ("low", "high", "queries_low", "queries_high", "p")
    once, thrice = paired_difference(ours, theirs), (np.repeat(each, 3, axis=1) for each in (ours, theirs))
    ours3, theirs3 = thrice
    grouped, apart = paired_difference(ours3, theirs3, groups=groups), paired_difference(ours3, theirs3)
    assert [grouped[key] for key in keys] == pytest.approx([once[key] for key in keys])
    assert apart["queries_high"] - apart["queries_low"] < 0.6 * (once["queries_high"] - once["queries_low"])
    assert mean_interval(ours3, groups=groups) == pytest.approx(mean_interval(ours))
    names = [f"team {n}" for n in range(40)]
    assert paired_difference(ours, theirs, groups=names) == pytest.approx(once, nan_ok=True)


def test_unequal_groups_give_the_cluster_robust_interval():
    values, groups = np.array([0.1, 0.3, 0.2, 0.6, 0.5, 0.4]), np.array([0, 0, 0, 1, 1, 2])
    # Summed deviations from 0.35: -0.45, 0.40, 0.05; squares 0.365; variance 3 / 2 · 0.365 / 6².
    half = stats.t.ppf(0.975, 2) * np.sqrt(1.5 * 0.365 / 36)
    found = paired_difference(values, np.zeros(6), groups=groups)
    assert found["high"] == pytest.approx(0.35 + half)


def test_skewed_differences_take_degrees_of_freedom():
    # Eight queries of 40 gain 0.4: skewness 1.56 (corrected) counts for more than the kurtosis of 0.46.
    values = np.repeat([0.4, 0.0], [8, 32]) + np.resize([0.05, -0.05], 40)
    excess = 2.25 * (stats.skew(values, bias=False) ** 2 - 6 / 40)
    assert excess > stats.kurtosis(values, bias=False)
    half = stats.t.ppf(0.975, 2 / (2 / 39 + excess / 40)) * values.std(ddof=1) / np.sqrt(40)
    assert paired_difference(values + 0.1, np.full(40, 0.1))["high"] - values.mean() == pytest.approx(half)


def test_groups_must_match_the_queries(aps):
    with pytest.raises(ValueError, match="2 groups for 60 queries"):
        mean_interval(aps, groups=[0, 1])


def test_pairing_sees_what_separate_intervals_hide(aps):
    table = compare_rows({"plain": aps, "better": np.clip(aps + 0.02, 0, 1)}, "plain", shared_weights=True)
    assert table.low[1] < table.high[0]  # the two intervals overlap …
    assert table.diff_low[1] > 0  # … yet every query gains


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04; never falling: the last becomes 0.06.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([np.nan, 0.02, 0.9]), [np.nan, 0.04, 0.9])
    np.testing.assert_allclose(holm([0.7, 0.8]), [1.0, 1.0])
    assert len(holm([])) == 0


def test_table_of_rows(aps):
    rows = {"b": np.clip(aps + 0.03, 0, 1), "a": aps, "one seed": aps[0]}
    before = {name: scores.copy() for name, scores in rows.items()}
    table = compare_rows(rows, "a", shared_weights={"b": True})
    expected = "row mAP low high difference diff_low diff_high queries_low queries_high rerun_low rerun_high"
    expected += " p p_holm smallest informative seed_sd seeds queries p_floor"
    assert table.columns.tolist() == expected.split()
    assert table.row.tolist() == ["b", "a", "one seed"]
    assert table.seeds.tolist() == [3, 3, 1]
    assert table.queries.tolist() == [60, 60, 60]
    assert table.loc[1, ["difference", "p", "p_holm", "smallest"]].isna().all()
    np.testing.assert_allclose(table.mAP[0] - table.mAP[1], table.difference[0])
    np.testing.assert_allclose(table.seed_sd[1], aps.mean(axis=1).std(ddof=1))
    assert np.isnan(table.seed_sd[2])
    assert table.rerun_low.isna().tolist() == [False, True, True]
    assert table.p_holm[0] == pytest.approx(2 * table.p[0])
    pair = paired_difference(rows["b"], aps, shared_weights=True, alpha=0.025)
    for column, key in {"diff_low": "low", "queries_high": "queries_high", "smallest": "smallest", "p": "p"}.items():
        assert table[column][0] == pair[key]
    for name, scores in rows.items():
        np.testing.assert_array_equal(scores, before[name])


def test_table_of_the_baseline_alone_and_of_hits():
    hits = np.array([[0, 1, 1, 1], [1, 1, 1, 0]])
    table = compare_rows({"none": hits}, "none")
    assert table.mAP[0] == 0.75
    assert 0 <= table.low[0] <= 0.75 <= table.high[0] <= 1
    assert np.isnan(table.p_holm[0])


def test_unknown_baseline_names_the_rows(aps):
    with pytest.raises(ValueError, match="'none' is not a row; the rows are a, b"):
        compare_rows({"a": aps, "b": aps}, "none")


def test_smallest_detectable_difference_is_found_at_the_stated_power():
    rng = np.random.default_rng(1)
    spread, queries = 0.1, 50
    sample = 0.5 + np.resize([spread, -spread], queries)
    smallest = paired_difference(sample, np.full(queries, 0.5))["smallest"]
    assert smallest == pytest.approx((2.0096 + 0.849) * spread * np.sqrt(50 / 49) / np.sqrt(50), rel=1e-3)
    found = np.mean(stats.ttest_1samp(rng.normal(smallest, spread, (2000, queries)), 0, axis=1).pvalue < 0.05)
    assert found == pytest.approx(0.8, abs=0.03)


def test_smallest_difference_of_trainings_is_found_at_about_the_stated_power():
    rng = np.random.default_rng(2)
    pairs = [(drawn(rng, 8, 60), drawn(rng, 8, 60)) for _ in range(400)]
    smallest = np.mean([paired_difference(*pair)["smallest"] for pair in pairs])
    found = np.mean([paired_difference(ours + smallest, theirs)["p"] < 0.05 for ours, theirs in pairs])
    assert found == pytest.approx(0.8, abs=0.08)


def test_a_rerun_with_new_seeds_and_queries_lies_in_its_prediction_interval():
    rng = np.random.default_rng(3)

    def study():
        return paired_difference(drawn(rng, 5, 80, change=rng.normal(0.06, 0.1, 80)), drawn(rng, 5, 80))

    pairs = [(study(), study()) for _ in range(400)]
    held = [first["rerun_low"] <= second["difference"] <= first["rerun_high"] for first, second in pairs]
    narrow = [first["low"] <= second["difference"] <= first["high"] for first, second in pairs]
    assert np.mean(held) == pytest.approx(0.95, abs=0.03)
    assert np.mean(narrow) < 0.9  # the interval of the difference is none for the next study's


def test_prediction_interval_by_hand():
    # One informative spread over queries, none over seeds: 2.0096 is Student's quantile at 49 degrees of freedom.
    change = 0.1 + np.resize([0.05, -0.05], 50)
    found = paired_difference(np.tile(0.5 + change, (3, 1)), np.full((3, 50), 0.5), shared_weights=True)
    half = 2.0096 * 0.05 * np.sqrt(50 / 49) / np.sqrt(50) * np.sqrt(2)
    assert (found["rerun_low"], found["rerun_high"]) == pytest.approx((0.1 - half, 0.1 + half), abs=1e-5)


def test_with_one_seed_nothing_predicts_a_rerun():
    rng = np.random.default_rng(4)
    far, near = rng.uniform(0.5, 1, 60), rng.uniform(0.4, 0.9, 60)
    assert np.isnan(paired_difference(far, near)["rerun_low"])
    assert np.isnan(paired_difference(np.tile(far, (3, 1)), near)["rerun_high"])


def test_components_of_the_coverage_study_are_found_again(tmp_path):
    rng, components = np.random.default_rng(6), {"difference": 8.0, "queries": 20.0, "seeds": 2.0, "residual": 10.0}
    queries = rng.normal(50, 20, 400)
    for loss in ("infonce", "id"):  # the change's variance of 8² is shared by both
        change, seeds = rng.normal(0, 8 / np.sqrt(2), 400), rng.normal(0, 2, (12, 1))
        points = queries + change + seeds + rng.normal(0, 10, (12, 400))
        (tmp_path / f"02_training__net_{loss}_none").mkdir()
        np.savez(tmp_path / f"02_training__net_{loss}_none" / "scores.npz", **{"none|aps": points / 100})
    found = coverage.estimate(tmp_path)
    assert found == pytest.approx(components, rel=0.35)
    with pytest.raises(SystemExit, match="no two trainings"):
        coverage.estimate(tmp_path / "02_training__net_id_none")


def test_reruns_of_large_differences_find_them_and_of_none_give_no_verdicts():
    none, large = (
        coverage.rerun(coverage.COMPONENTS, 5, 60, spread, np.random.default_rng(0), pairs=12) for spread in (0.0, 90.0)
    )
    assert none[:, 2].sum() <= 1 and none[:, 0].mean() > 0.7
    assert large[:, 2].sum() >= 9 and not large[:, 5].any()
