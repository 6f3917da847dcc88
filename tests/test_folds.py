"""Trainings on every fold, pooled, and the rate that tuning runs choose."""

from pathlib import Path

import numpy as np
import pytest
from test_tables import trained

from notebook_study.study_file import read_study
from reid_utils.learning.seeds import best_settings
from reid_utils.paper import statements
from reid_utils.paper.claims import paper_claims
from reid_utils.paper.statements import make_table
from reid_utils.paper.tables import pool_folds
from reid_utils.ranking.methods import score, stack_scores

ROOT = Path(__file__).resolve().parents[1]


def _scores(queries, seeds=2, start=0):
    """Scores of random rankings, and what they were made from."""
    players, made = np.arange(queries), []
    gallery = np.tile(players, 3)
    for seed in range(seeds):
        rng = np.random.default_rng([start, seed])
        made.append({"none": score(rng.random((queries, 3 * queries)), players, gallery)})
    return stack_scores(made)


def _run(train_on, loss="id", seeds=(0, 1), queries=4, start=0):
    settings = {"loss": loss, "train_on": train_on, "seeds": list(seeds)}
    scores = _scores(queries, len(seeds), start)
    run = {"run": f"{loss} {train_on}", "settings": settings, "scores": scores, "folder": f"{loss}/{train_on}"}
    return run | {"values": {"note": f"people, {train_on} of training"}}


def test_folds_that_differ_in_nothing_else_become_one_run_over_all_their_queries():
    runs = [_run("fold 1 of 2", queries=3, start=1), _run("train", "id"), _run("fold 0 of 2", queries=5, start=2)]
    runs += [_run("fold 0 of 2", "infonce"), _run("fold 1 of 2", "infonce")]
    for run in runs:
        run["scores"]["groups"] = np.arange(run["scores"]["none|aps"].shape[1])
    pooled = pool_folds(runs)
    assert [(run["settings"]["loss"], run["settings"]["train_on"]) for run in pooled] == [
        ("id", "every fold"),
        ("id", "train"),
        ("infonce", "every fold"),
    ]
    found, parts = pooled[0]["scores"], [runs[2]["scores"], runs[0]["scores"]]
    assert pooled[0]["run"] == "id fold * of 2"
    assert pooled[0]["values"]["note"] == "people, every fold of training"
    assert pooled[0]["folders"] == ["id/fold 0 of 2", "id/fold 1 of 2"]
    assert np.array_equal(found["none|aps"], np.concatenate([part["none|aps"] for part in parts], axis=1))
    assert found["groups"].tolist() == [*range(5), *range(3)]
    assert found["none|mAP"] == pytest.approx(found["none|aps"].mean(axis=1))
    assert found["none|rank1"] == pytest.approx((found["none|firsts"] == 1).mean(axis=1))
    assert found["none|mINP"] == pytest.approx((5 * parts[0]["none|mINP"] + 3 * parts[1]["none|mINP"]) / 8)


def test_queries_without_a_match_have_no_weight():
    runs = [_run("fold 0", queries=2), _run("fold 1", queries=3)]
    runs[1]["scores"]["none|aps"][:, 0] = np.nan
    runs[1]["scores"]["none|mAP"] = np.nanmean(runs[1]["scores"]["none|aps"], axis=1)
    (pooled,) = pool_folds(runs)
    assert pooled["scores"]["none|mAP"] == pytest.approx(np.nanmean(pooled["scores"]["none|aps"], axis=1))


def test_a_single_fold_is_no_row_and_a_missing_one_is_named():
    tuning = _run("fold 0 of 2", seeds=(0,))
    assert pool_folds([tuning]) == []
    with pytest.raises(ValueError, match=r"id fold 0 of 3 and its like cover the folds \[0, 2\]; run each fold once"):
        pool_folds([tuning, _run("fold 0 of 3"), _run("fold 2 of 3")])


def test_tables_of_real_people_set_every_row_beside_its_own_start(monkeypatch):
    monkeypatch.setitem(statements.COLUMNS, "between/within", (lambda run, score: {}, ""))
    runs = [trained(0.3, "tuning", train_on="fold 0 of 2", augmentation="tuning"), trained(0.9, train_on="train")]
    for pretrained in (True, False):
        for loss, rate in (("infonce", 0.003 if pretrained else 0.001), ("id+triplet", 0.003)):
            settings = {"pretrained": pretrained, "loss": loss, "learning_rate": rate}
            for fold in (0, 1):
                # few players: a fold may hold fewer than a batch of the others does
                settings |= {"train_on": f"fold {fold} of 2", "batch_pairs": 20 + fold}
                runs.append(trained(0.7 if pretrained else 0.4, "folds", **settings))
    for run in runs:
        run.update(run=f"{run['run']}_{run['settings']['pretrained']}_{run['settings']['train_on']}", folder="")
    pooled = {"02_training": pool_folds(runs)}
    stated = read_study(ROOT / "studies" / "people_folds.yaml").tables
    losses, backbones = (make_table(name, stated[name], pooled) for name in ("T2", "T4"))
    assert losses.baselines["a from scratch: id+triplet"] == "a from scratch: infonce"
    assert losses.baselines["a: id+triplet"] == "a: infonce"
    assert set(losses.comparison["queries"]) == {80} and len(losses.rows) == 4
    assert backbones.baselines["a, plain"] == "a from scratch, plain"
    claims = paper_claims({"T2": losses, "T4": backbones}).set_index("claim").loc["pre-training helps"]
    assert claims["compared"] == "a, plain against a from scratch, plain" and claims["diff low"] > 0


def _tuned(rate, score, loss="id", head_rate=1.0):
    settings = {"learning_rate": rate, "head_rate": head_rate, "loss": loss}
    return {"settings": settings, "values": {"scores": {"none": {"mAP": score}}}}


def test_the_best_of_the_tuned_settings_wins_and_of_equals_the_smaller_rate():
    tried = [_tuned(1e-4, 0.2), _tuned(3e-3, 0.5), _tuned(1e-3, 0.5, head_rate=0.1), _tuned(3e-3, 0.4, head_rate=0.1)]
    assert best_settings(tried) == {"learning_rate": 1e-3, "head_rate": 0.1}


def test_a_best_rate_at_the_rim_of_those_tried_is_told():
    with pytest.warns(UserWarning, match="the best learning rate, 0.01, is at the rim"):
        best_settings([_tuned(1e-4, 0.2), _tuned(1e-3, 0.4), _tuned(1e-2, 0.5)])


def test_tuning_runs_of_two_kinds_and_none_at_all_are_refused():
    with pytest.raises(ValueError, match="differ in more than learning_rate, head_rate, margin"):
        best_settings([_tuned(1e-4, 0.2), _tuned(1e-3, 0.2, "infonce")])
    with pytest.raises(ValueError, match=r"learning_rate is 0, .* name those runs as inputs"):
        best_settings([])
