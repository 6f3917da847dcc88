"""The regime map: effects of post-processings and fusions as curves over accuracy, with honest intervals."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from reid_utils.ranking.feature_files import Features
from reid_utils.ranking.methods import distances_of, fuse
from reid_utils.ranking.metrics import average_precisions
from reid_utils.ranking.regimes import (
    CLAIMS,
    curves_of,
    effect_curve,
    effects_at,
    outside_regime,
    points_in_set,
    ranges_told,
    sign_changes,
)
from reid_utils.views.regime_map import CHIEF, regime_map
from reid_utils.views.style import use_style


def simulated(noise, seed, models=3, players=40, images=12):
    """Features of models over the same images: a player's direction, what all models share, and own noise."""
    rng = np.random.default_rng(seed)
    of_gallery = np.repeat(np.arange(players), images)
    of_all = np.concatenate([np.arange(players), of_gallery])
    shared = rng.normal(size=(len(of_all), 32))
    found = []
    for _ in range(models):
        features = rng.normal(size=(players, 32))[of_all] + noise * (shared + rng.normal(size=shared.shape))
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
        ids = {"query_players": np.arange(players), "gallery_players": of_gallery}
        found.append(Features(query=features[:players], gallery=features[players:], **ids))
    return found


def test_each_claim_compares_what_it_names():
    models = simulated(1.2, 0)
    query, gallery = models[0].query_players, models[0].gallery_players
    found = effects_at(models, "hard")
    names = [claim for claim, _, _ in found]
    assert set(names) == set(CLAIMS) and names.count("hard − none") == 3 and names.count("two-stage − similarity") == 1
    rows = {name: average_precisions(distances_of(models[1], name), query, gallery) for name in ("none", "hard")}
    claim, single, effect = found[4]
    assert claim == "hard − none" and np.allclose(single, rows["none"])
    assert np.allclose(effect, rows["hard"] - rows["none"])
    processed = [distances_of(model, "hard") for model in models]
    aps = [average_precisions(matrix, query, gallery) for matrix in processed]
    best = int(np.argmax([values.mean() for values in aps]))
    of_fusion = {claim: (single, effect) for claim, single, effect in found}["similarity − best single"]
    fused = average_precisions(fuse(processed, "similarity"), query, gallery)
    assert np.allclose(of_fusion[1], fused - aps[best])
    assert np.allclose(of_fusion[0], average_precisions(distances_of(models[best]), query, gallery))
    assert {claim for claim, _, _ in effects_at(models[:1])} == set(list(CLAIMS)[:4])


def test_strong_and_weak_simulated_models_differ_in_what_helps_them():
    points = []
    for number, noise in enumerate((0.52, 0.53, 0.54, 0.9, 0.95, 1.0)):
        found = effects_at(simulated(noise, number))
        points += [
            {"claim": c, "level": "one", "single": s, "effect": e, "set": number, "seed": 0} for c, s, e in found
        ]
    curves = curves_of(points, [0.5, 0.97]).set_index(["mAP", "claim"])
    assert curves.loc[0.5, "hard − none"]["low"] > 0.02 and curves.loc[0.5, "similarity − best single"]["low"] > 0.02
    assert curves.loc[0.5, "dissimilarity − similarity"]["effect"] < -0.02
    assert abs(curves.loc[0.97, "hard − none"]["effect"]) < 0.03


def test_sets_of_unequal_size_share_a_curve():
    points = []
    for number, players in enumerate((20, 12, 16)):
        models = simulated(0.9, number, players=players, images=6)
        features = [np.concatenate([model.query, model.gallery]) for model in models]
        roles = ["query"] * players + ["gallery"] * 6 * players
        test = pd.DataFrame({"role": roles, "player": [*models[0].query_players, *models[0].gallery_players]})
        test = test.assign(camera=(test["role"] == "gallery").astype(int), image_id=test.index.astype(str))
        found = points_in_set(features, test)
        assert {len(point["single"]) for point in found} == {players}
        points += [{"level": "one", "set": number, "seed": 0, **point} for point in found]
    curve = curves_of(points, [0.6]).set_index("claim")
    assert curve.loc["hard − none", "sets"] == 3 and np.isfinite(curve.loc["hard − none", "effect"])


def drawn(rng, set_sd, seed_sd, sets=9, seeds=3, stages=4, queries=40):
    """Points whose true effect is 0.1 − 0.2 (mAP − 0.5), with sets and seeds that shift all they touch."""
    of_sets, of_seeds = rng.normal(0, set_sd, sets), rng.normal(0, seed_sd, seeds)
    single, effect, labels = [], [], []
    for s in range(sets):
        of_queries = rng.normal(0, 0.1, queries)
        for r in range(seeds):
            for stage in range(stages):
                level = 0.4 + 0.1 * stage + 0.15 * (s % 3)
                single.append(np.clip(level + rng.normal(0, 0.1, queries), 0, 1))
                effect.append(0.1 - 0.2 * (level - 0.5) + of_sets[s] + of_seeds[r] + of_queries
                              + rng.normal(0, 0.1, queries))  # fmt: skip
                labels.append((s, r))
    return np.array(single), np.array(effect), *np.array(labels).T


def test_the_curve_finds_the_effect_and_its_interval_covers_other_sets_and_seeds():
    grid, covered = np.array([0.5, 0.6, 0.7]), []
    truth = 0.1 - 0.2 * (grid - 0.5)
    for k in range(40):
        curve = effect_curve(*drawn(np.random.default_rng(k), 0.03, 0.01), grid, n_resamples=300)
        covered.append((curve["low"] <= truth) & (truth <= curve["high"]))
    assert np.mean(covered) > 0.85
    clean = effect_curve(*drawn(np.random.default_rng(0), 0, 0), grid)
    assert np.abs(clean["effect"] - truth).max() < 0.03


def test_intervals_widen_with_what_differs_between_sets():
    grid = [0.6]
    narrow, wide = (effect_curve(*drawn(np.random.default_rng(1), sd, 0), grid).iloc[0] for sd in (0, 0.1))
    assert wide["high"] - wide["low"] > 1.5 * (narrow["high"] - narrow["low"])


def test_nothing_is_told_where_fewer_than_three_sets_lie():
    curve = effect_curve(*drawn(np.random.default_rng(0), 0.01, 0), [0.6, 0.995])
    assert curve["effect"].notna().tolist() == [True, False] and curve["low"].isna().tolist() == [False, True]
    again = effect_curve(*drawn(np.random.default_rng(0), 0.01, 0), [0.6, 0.995])
    assert again.equals(curve)


def test_queries_that_a_point_lacks_are_left_out():
    single, effect, sets, seeds = drawn(np.random.default_rng(0), 0.01, 0)
    single[::2, 20:] = effect[::2, 20:] = np.nan
    assert effect_curve(single, effect, sets, seeds, [0.6]).notna().all(axis=None)


@pytest.mark.parametrize(("single", "said"), [(0.5, "50.0 mAP"), (0.949, "94.9 mAP"), (0.95, ""), (0.99, "")])
def test_a_finding_outside_the_regime_says_so(single, said):
    assert said in outside_regime(single) and bool(outside_regime(single)) == bool(said)


def test_ranges_are_told_in_words():
    curve = pd.DataFrame({"mAP": [0.3, 0.5, 0.7, 0.9, 0.98], "low": [0.1, 0.1, -0.1, -0.2, np.nan]})
    curve = curve.assign(effect=[0.2, 0.2, 0.0, -0.1, np.nan], high=[0.3, 0.3, 0.1, -0.05, np.nan])
    assert ranges_told(curve) == "helps 30–50, open 70–70, harms 90–90 mAP"
    assert ranges_told(curve.iloc[4:]).startswith("no three sets")


def test_no_curve_of_the_map_is_cut():
    curve = pd.DataFrame({"mAP": [0.4, 0.9], "low": [0.0, 0.0], "high": [0.1, 0.1]})
    curves = pd.concat([curve.assign(effect=0.05, level="1"), curve.assign(low=-0.3, effect=0.1, high=0.4, level="2")])
    low, high = regime_map(pd.concat(curves.assign(claim=claim) for claim in list(CLAIMS)[:4])).axes[0].get_ylim()
    assert low < -30 and high > 40


def test_a_change_of_sign_has_an_interval_and_a_wiggle_about_zero_is_none():
    curve = pd.DataFrame({"mAP": [0.3, 0.5, 0.7, 0.9, 0.95], "effect": [0.2, 0.1, 0.02, -0.06, np.nan]})
    certain = curve.assign(low=[0.1, 0.05, -0.1, -0.1, np.nan], high=[0.3, 0.2, 0.1, -0.01, np.nan])
    (change,) = sign_changes(certain)
    assert change["at"] == pytest.approx(0.75) and (change["low"], change["high"]) == (0.5, 0.9)
    assert change["told"] == "turns from helps to harms at 75.0 mAP (95 % interval: 50.0 to 90.0)"
    assert sign_changes(certain.assign(high=0.3)) == []  # nowhere is it significant that it harms
    assert sign_changes(certain.assign(effect=[0.2, 0.1, -0.02, 0.06, np.nan], high=0.3)) == []


def test_the_map_has_a_panel_a_claim_and_marks_what_is_published():
    grid = np.array([0.4, 0.6, 0.8, 0.9])
    parts = [
        pd.DataFrame({"mAP": grid, "effect": 0.1, "low": 0.05, "high": 0.15}).assign(claim=claim, level=level)
        for claim in CLAIMS
        for level in ("CUHK03", "rendered, level 2")
    ]
    curves = pd.concat(parts)
    for shown, panels in ((curves, list(CLAIMS)), (curves[curves["claim"].isin(CHIEF)], list(CHIEF))):
        with plt.rc_context():
            use_style()
            figure = regime_map(shown, note="rendered data")
        drawn = [ax for ax in figure.axes if ax.has_data()]
        assert [ax.get_title() for ax in drawn] == panels
        marked = {float(x) for line in drawn[0].lines for x in line.get_xdata() if line.get_linestyle() == ":"}
        assert marked == {0.727, 0.961, 0.976, 0.984}
        assert [line.get_linestyle() for line in drawn[0].lines[:2]] == ["-", "--"]  # real, rendered
        assert [text.get_text() for text in figure.legends[0].texts][:2] == ["CUHK03", "rendered, level 2"]
        assert "baseline 72.7; entries 96.1, 97.6, 98.4" in figure.legends[0].texts[3].get_text()
        figure.draw_without_rendering()
        bounds = figure.get_tightbbox()
        assert bounds.x0 >= -0.01 and bounds.x1 <= figure.get_figwidth() + 0.01
