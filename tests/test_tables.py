"""Rows, baselines and claims of the paper's tables, on made-up scores whose truth is known."""

import numpy as np
import pytest

from reid_utils.paper import rows
from reid_utils.paper.claims import finding, paper_claims, verdict
from reid_utils.paper.results import start_run
from reid_utils.paper.rows import (
    augmentation_table,
    backbone_table,
    fusion_table,
    loss_table,
    post_processing_table,
    published_rows,
)
from reid_utils.paper.tables import SCORES, Table, show
from reid_utils.ranking.methods import FUSIONS
from reid_utils.ranking.statistics import paired_difference

SETTINGS = {
    "backbone": "a",
    "loss": "infonce",
    "augmentation": "none",
    "seeds": [0, 1, 2],
    "learning_rate": 0.01,
    "pretrained": False,
    "start_weights": "",
    "pool": {},
    "train_on": "train",
    "keep_epochs": False,
}


def scores_of(levels, seeds=3, queries=40):
    """scores.npz of rows whose average precisions lie around a level each."""
    found = {}
    for name, level in levels.items():
        rng = np.random.default_rng(round(1000 * abs(level)))
        aps = np.clip(level + rng.normal(0, 0.02, (seeds, queries)), 0, 1)
        found |= {f"{name}|aps": aps, f"{name}|firsts": np.ones_like(aps)}
        found |= {f"{name}|{key}": aps.mean(axis=1) for key in SCORES if key not in ("aps", "firsts")}
    return found


def trained(level=0.5, **settings):
    """A run of notebook 02 as `gather` gives it."""
    settings = {**SETTINGS, **settings}
    name = "_".join(str(settings[key]) for key in ("backbone", "loss", "augmentation"))
    levels = {"untrained": 0.2, "none": level, "gaussian": level + 0.1, "hard": level + 0.09, "best": level + 0.01}
    levels |= {"hard in place": level + 0.08, "kreciprocal": level + 0.1}
    values = {"cost": {"parameters": 1e6, "gflops": 0.5}, "note": "rendered data"}
    scores = scores_of(levels, len(settings["seeds"]))
    return {"run": f"02_training__{name}", "settings": settings, "values": values, "scores": scores}


def fused(levels, models, **settings):
    """A run of notebook 04 as `gather` gives it."""
    settings = {"models": models, "post_processing": "hard", "challenge_fusion": "two-stage", **settings}
    return {"run": "04_fusion__all", "settings": settings, "values": {"challenge": {}}, "scores": scores_of(levels)}


def test_a_table_says_which_rows_to_compare_and_how_to_make_them_again(tmp_path):
    names = ("none", "flip", "jitter")
    runs = {"02_training": [trained(0.5 + 0.1 * k, augmentation=name) for k, name in enumerate(names)]}
    run = start_run(tmp_path, "06", "06")
    table = augmentation_table(runs)
    text, shown = show(run, table, "python run_all.py quick").data, table.printable
    assert (tmp_path / "tables" / "T1.md").read_text() == text
    assert "Compared: each row with row 1, to answer: does that augmentation, alone, help?" in text
    assert "Row 2: `python run_all.py quick --only '02_training__a_infonce_flip'`" in text
    assert shown["difference"][2] == pytest.approx(20, abs=1) and np.isnan(shown["difference"][0])
    assert shown["differ"][2] == shown["queries"][2] == 40
    empty = show(run, Table("T5", "does that fusion help?"), "python run_all.py quick")
    assert "No two rows here answer: does that fusion help?" in empty.data


def test_queries_of_one_sequence_are_one_draw_in_tables_and_claims_where_there_are_five(tmp_path):
    runs = {"02_training": [trained(level, augmentation=name) for level, name in ((0.5, "none"), (0.52, "flip"))]}
    apart, groups = augmentation_table(runs), np.arange(40) // 5
    for run in runs["02_training"]:
        run["scores"]["groups"] = groups
    together = augmentation_table(runs)
    aps = [run["scores"]["none|aps"] for run in reversed(runs["02_training"])]
    expected = paired_difference(*aps, groups=groups)
    assert together.comparison["diff_low"][1] == expected["low"] != apart.comparison["diff_low"][1]
    others = {name: Table(name, "") for name in ("T2", "T3", "T4", "T5")}
    assert paper_claims({"T1": together, **others})["diff low"][0] == pytest.approx(100 * expected["low"], abs=0.006)
    assert "Queries of one sequence are one draw (8)." in show(start_run(tmp_path, "06", "06"), together, "").data
    for run in runs["02_training"]:
        run["scores"]["groups"] = groups // 2  # four say nothing of their spread
    assert augmentation_table(runs).comparison.equals(apart.comparison)


def table_rows(table):
    """{row: baseline} of a table, None where the row has none."""
    return {name: base if base != name else None for name, base in table.baselines.items()}


@pytest.mark.parametrize(
    ("augmentations", "base"),
    [
        (["none", "flip", "jitter", "erasing+sharpen"], "none"),
        (["none", "flip", "flip+jitter", "flip+erasing", "flip+erasing+sharpen"], "flip"),
        (["flip+jitter", "flip", "flip+erasing"], "flip"),
        (["none", "erasing+sharpen"], "none"),
        (["flip"], "flip"),
    ],
)
def test_t1_compares_with_the_augmentation_that_the_others_share(augmentations, base):
    runs = {"02_training": [trained(augmentation=name) for name in augmentations]}
    table = augmentation_table(runs)
    assert table_rows(table) == {name: None if name == base else base for name in augmentations}
    assert next(iter(table.rows)) == base


def test_findings_say_which_augmentation_was_compared_with_which():
    levels = {"none": 0.3, "flip": 0.5, "flip+jitter": 0.4}
    runs = {"02_training": [trained(level, augmentation=name) for name, level in levels.items()]}
    runs["02_training"].append(trained(augmentation="flip+erasing"))
    tables = {name: Table(name, "") for name in ("T2", "T3", "T4", "T5")} | {"T1": augmentation_table(runs)}
    found = paper_claims(tables).set_index("compared")["verdict"]
    assert found["flip against none"].startswith("supported")
    assert found["flip+jitter against flip"].startswith("not supported, the opposite holds")
    assert len(found) == 3


def test_several_backbones_with_several_augmentations_are_all_in_t1():
    kinds = {"a": ["none", "flip"], "b": ["none", "flip"], "c": ["flip"]}
    runs = {"02_training": [trained(backbone=b, augmentation=name) for b in kinds for name in kinds[b]]}
    assert table_rows(augmentation_table(runs)) == {
        "a: none": None, "a: flip": "a: none", "b: none": None, "b: flip": "b: none",
    }  # fmt: skip


def test_t1_leaves_out_an_encoder_from_scratch_that_varies_nothing():
    runs = {"02_training": [trained(augmentation=name, pretrained=True) for name in ("flip", "flip+jitter", "none")]}
    runs["02_training"].append(trained(augmentation="flip+jitter", pretrained=False))
    assert set(augmentation_table(runs).rows) == {"flip", "flip+jitter", "none"}


def test_trainings_that_differ_in_another_setting_are_rows_of_their_own(without_features):
    rates = {"infonce": (0.01, 0.02), "id": (0.01, 0.02)}
    runs = {"02_training": [trained(loss=loss, learning_rate=rate) for loss in rates for rate in rates[loss]]}
    assert table_rows(loss_table(runs, ["none"])) == {
        "a: infonce, learning rate 0.01": None,
        "a: infonce, learning rate 0.02": None,
        "a: id, learning rate 0.01": "a: infonce, learning rate 0.01",
        "a: id, learning rate 0.02": "a: infonce, learning rate 0.02",
    }
    assert list(augmentation_table(runs).rows) == ["none, learning rate 0.01", "none, learning rate 0.02"]
    assert len(backbone_table(runs, ["none"]).rows) == 4


def test_trainings_that_differ_in_nothing_are_an_error_that_names_both(without_features):
    one, two = trained(), trained(seeds=[3, 4, 5])
    two["run"] = "02_training__other"
    with pytest.raises(ValueError, match=r"02_training__a_infonce_none and 02_training__other would be one row"):
        loss_table({"02_training": [one, two]}, ["none"])
    two["run"] = "03_post_processing__other"
    with pytest.raises(ValueError, match=r"and 03_post_processing__other would be one row"):
        post_processing_table({"03_post_processing": [one, two]})


def test_the_baseline_again_is_a_row_of_every_table_of_trainings_beside_its_twin(without_features):
    again = trained(0.5, augmentation="flip", seeds=[100, 101], keep_epochs=True)
    again["run"] = "02_training__again_a_infonce_flip"
    runs = {"02_training": [trained(augmentation="none"), trained(augmentation="flip"), trained(loss="id"), again]}
    row = "again (other seeds)"
    assert table_rows(augmentation_table(runs)) == {"none": None, "flip": "none", f"flip {row}": "flip"}
    assert table_rows(loss_table(runs, ["flip"])) == {"a: infonce": None, f"a: infonce {row}": "a: infonce"}
    table = backbone_table(runs, ["flip"])
    assert table.baselines[f"a {row}, plain"] == "a, plain" and f"a {row}, plain" not in table.shared
    tables = {name: Table(name, "") for name in ("T2", "T3", "T4", "T5")} | {"T1": augmentation_table(runs)}
    assert list(paper_claims(tables)["compared"]) == ["flip against none"]


def test_t2_has_a_row_for_every_loss_and_t4_sets_pre_trained_beside_from_scratch(without_features):
    losses = ["infonce", "id", "id-cosine", "triplet", "id+triplet"]
    runs = {"02_training": [trained(loss=loss) for loss in losses]}
    assert table_rows(loss_table(runs, ["none"])) == {f"a: {loss}": None for loss in losses[:1]} | {
        f"a: {loss}": "a: infonce" for loss in losses[1:]
    }
    pairs = {"b": (True, False), "c": (True,)}
    runs = {"02_training": [trained(backbone=b, pretrained=start) for b in pairs for start in pairs[b]]}
    for run in runs["02_training"]:
        run["settings"]["reranking"] = "hard in place"
    table = backbone_table(runs, ["none"])
    assert table_rows(table) == {
        "b, plain": "b from scratch, plain",
        "b, re-ranked (hard in place)": "b, plain",
        "b from scratch, plain": None,
        "b from scratch, re-ranked (hard in place)": "b from scratch, plain",
        "c, plain": "b, plain",
        "c, re-ranked (hard in place)": "c, plain",
    }
    assert table.extra["c, plain"]["zero-shot"] == pytest.approx(20, abs=1)
    tables = {name: Table(name, "") for name in ("T1", "T2", "T3", "T5")} | {"T4": table}
    assert list(paper_claims(tables)["compared"]) == ["b, plain against b from scratch, plain"]


def test_t3_has_the_rows_that_its_runs_hold():
    names = {"none": 0.5, "hard": 0.6, "alpha query expansion": 0.55, "database augmentation": 0.4}
    run = {**trained(), "run": "03_post_processing__a", "scores": scores_of(names)}
    table = post_processing_table({"03_post_processing": [run]})
    assert table_rows(table) == {f"a: {name}": None if name == "none" else "a: none" for name in names}
    assert table.shared == set(table.rows)
    tables = {name: Table(name, "") for name in ("T1", "T2", "T4", "T5")} | {"T3": table}
    assert list(paper_claims(tables)["compared"]) == ["a: hard against none"]


def test_t5_holds_several_fusion_runs_and_says_in_what_they_differ():
    levels = {"a": 0.5, "b": 0.4, "a + b: similarity": 0.6, "a + b: two-stage": 0.62}
    first, swept = fused(levels, ["a", "b"], top_k=15), fused(levels, ["a", "b"], top_k=30)
    swept["scores"] = {**swept["scores"], "a + b: two-stage|aps": swept["scores"]["a + b: two-stage|aps"] - 0.1}
    plain = fused({name: level - 0.3 for name, level in levels.items()}, ["a", "b"], post_processing="none", top_k=15)
    table = fusion_table({"04_fusion": [first, swept, plain]})
    own = ", post processing none"
    assert table_rows(table) == {
        "a": None,
        "b": "a",
        "a + b: similarity": "a",
        "a + b: two-stage": "a",
        "a + b: two-stage, top k 30": "a",
        f"a{own}": None,
        f"b{own}": f"a{own}",
        f"a + b: similarity{own}": f"a{own}",
        f"a + b: two-stage{own}": f"a{own}",
    }
    assert "b" not in table.shared and "a + b: two-stage" in table.shared


def test_t5_has_rows_without_re_ranking_and_says_what_the_length_of_the_lists_does():
    levels = {"a": 0.5, "b": 0.4, "a + b: two-stage": 0.62, "a + b, plain: two-stage": 0.45}
    run = fused(levels, ["a", "b"])
    run["values"]["by_top_k"] = [{"top_k": 5, "two-stage": 0.61}, {"top_k": 15, "two-stage": 0.62}]
    table = fusion_table({"04_fusion": [run]})
    assert table_rows(table) == {"a": None, **dict.fromkeys([*levels][1:], "a")}
    assert table.shared == {"a", "a + b: two-stage", "a + b, plain: two-stage"}
    assert "mAP of all models by the length of the lists (top_k): two-stage 61.00 at 5, 62.00 at 15." in table.notes
    assert "Rows called plain fuse the distances before any post-processing." in table.notes


def test_t6_keeps_unofficial_sets_and_entries_trained_on_test_out_of_the_published_columns():
    levels = {"a": 0.5, "b": 0.4, "a + b: two-stage": 0.6}
    fusions = [fused(levels, ["a", "b"]) for _ in range(3)]
    fusions[0]["values"] = {"challenge": {"mAP": 0.9, "rank1": 0.95}, "year": 2022}
    fusions[1]["values"] = {"challenge": {"mAP": 0.91}, "year": 2023, "trained_on": ["train+test"]}
    fusions[2]["values"] = {"challenge": {"mAP": 0.3, "rank1": 0.4}, "year": None}
    runs = {"02_training": [trained()], "04_fusion": fusions}
    runs["02_training"][0]["values"] = {"note": "Synergy-like crops", "year": 2023}
    frame, notes = published_rows(runs, "python run_all.py paper")
    official, own, other = (frame.iloc[k].dropna() for k in (-3, -2, -1))
    assert official["challenge 2022 mAP"] == 90 and official["challenge 2022 rank-1"] == 95
    assert official["test mAP"] == pytest.approx(60, abs=1)
    assert own["challenge 2023 mAP"] == 91 and "test mAP" not in own and own["entry"].endswith("trained on train+test")
    assert other["Synergy-like crops challenge mAP"] == 30 and "test mAP" not in other
    winner = frame.set_index("entry").loc["2022 winner, two ViT-L/14"].dropna()
    assert list(winner)[1:4] == [98.18, 99.36, 99.57] and any("0.3 mAP" in note for note in notes)


@pytest.fixture
def without_features(monkeypatch):
    """Features need files; here every seed spreads its players by as much."""
    monkeypatch.setattr(rows, "dispersion", lambda run: np.arange(1.0, 1 + len(run["settings"]["seeds"])))


def test_dispersion_is_compared_with_unequal_numbers_of_seeds(without_features):
    runs = {"02_training": [trained(), trained(loss="id", seeds=[0, 1])]}
    tables = {name: Table(name, "") for name in ("T1", "T3", "T4", "T5")} | {"T2": loss_table(runs, ["none"])}
    found = paper_claims(tables).set_index("claim")["verdict"]
    assert found.iloc[1] == "cannot be told (3 of 6 pairs of seeds)"


def test_a_p_value_at_its_floor_and_a_verdict_of_one_seed_say_so():
    far = {"02_training": [trained(), trained(0.9, augmentation="flip")]}
    table = augmentation_table(far)
    assert table.printable["p (Holm)"][1] == "< 0.0001"
    tables = {name: Table(name, "") for name in ("T2", "T3", "T4", "T5")}
    for seeds, scope in (([0, 1, 2], "over seeds and queries"), ([0], "for these networks")):
        runs = {"02_training": [trained(seeds=seeds), trained(0.9, augmentation="flip", seeds=seeds)]}
        (line,) = paper_claims({**tables, "T1": augmentation_table(runs)}).to_dict("records")
        assert line["verdict"] == f"supported, holds {scope}" and line["smallest"] > 0
        assert line["found again (%)"] == ("" if scope == "for these networks" else "99")
    (line,) = paper_claims({**tables, "T1": augmentation_table({"02_training": [
        trained(seeds=[0]), trained(0.501, augmentation="flip", seeds=[0]),
    ]})}).to_dict("records")  # fmt: skip
    assert line["verdict"] == "cannot be told (would need several seeds)"


def test_a_verdict_over_seeds_needs_a_rerun_to_find_it_and_one_of_these_networks_does_not():
    found = {"difference": 0.03, "low": 0.01, "high": 0.05, "over": "queries and seeds", "informative": 9}
    told = [verdict({**found, "found_again": chance}, 0.001) for chance in (0.96, 0.94)]
    assert told == ["supported, holds over seeds and queries", "suggested, a rerun may not find it"]
    opposite = {**found, "low": -0.05, "high": -0.01, "seeds_needed": 9}
    assert verdict({**opposite, "found_again": 0.94}, 0.001) == "the opposite is suggested, a rerun may not find it"
    assert verdict({**opposite, "found_again": 0.99}, 0.06) == "cannot be told (would need about 9 seeds)"
    alone = {**found, "over": "queries", "found_again": np.nan}
    assert verdict(alone, 0.04) == "supported, holds for these networks"


def test_equal_rows_say_that_no_query_differs():
    levels = {"a": 0.5, "b": 0.4, "a + b: similarity": 0.6, "a + b: two-stage": 0.5}
    tables = {name: Table(name, "") for name in ("T1", "T2", "T3", "T4")}
    tables["T5"] = fusion_table({"04_fusion": [fused(levels, ["a", "b"])]})
    assert list(paper_claims(tables)["verdict"]) == ["cannot be told (no query differs)"]


def test_claims_are_decided_by_the_rows_they_compare():
    levels = {"a": 0.5, "b": 0.4, "c": 0.3}
    levels |= {f"a + b + c: {name}": level for name, level in zip(FUSIONS, np.linspace(0.9, 0.3, 7), strict=True)}
    tables = {name: Table(name, "") for name in ("T1", "T2", "T3", "T4")}
    tables["T5"] = fusion_table({"04_fusion": [fused(levels, list("abc"))]})
    verdicts = paper_claims(tables).set_index("compared")["verdict"]
    assert verdicts["two-stage against the best single"] == "supported, holds over seeds and queries"
    for pair in ("dissimilarity against similarity", "two-stage against similarity", "two-stage against dissimilarity"):
        assert verdicts[pair] == "not supported, the opposite holds over seeds and queries"


def test_findings_say_where_the_single_model_lies_below_what_the_paper_speaks_of():
    tables = {name: Table(name, "") for name in ("T1", "T2", "T4")}
    reranked = [{**trained(backbone=name), "run": f"03__{name}"} for name in "ab"]
    for run, levels in zip(reranked, ({"none": 0.5, "hard": 0.6}, {"none": 0.97, "hard": 0.98}), strict=True):
        run["scores"] = scores_of(levels)
    tables["T3"] = post_processing_table({"03_post_processing": reranked})
    for plain, singles in ((0.97, {"a": 0.6, "b": 0.98}), (0.5, {"a": 0.98, "b": 0.6})):
        tables["T5"] = fusion_table({"04_fusion": [fused(singles | {"a + b: two-stage": 0.99}, ["a", "b"])]})
        found = paper_claims(tables).set_index("compared")["regime"]
        assert found["a: hard against none"].startswith("outside the regime that the paper speaks of (")
        assert found["b: hard against none"] == ""
        assert bool(found["two-stage against the best single"]) == (plain < 0.95)  # by its plain distances, from T3
    runs = {"02_training": [trained(), trained(augmentation="flip")]}
    tables = {name: Table(name, "") for name in ("T2", "T3", "T4", "T5")} | {"T1": augmentation_table(runs)}
    assert list(paper_claims(tables)["regime"]) == [""]


def test_one_query_gives_a_finding_without_an_interval():
    found = finding("a beats b", paired_difference(np.full((3, 1), 0.6), np.full((3, 1), 0.5)))
    assert found == "a beats b: **cannot be told** (+10.00% mAP; one query: no interval)"


def test_a_finding_on_a_single_model_weaker_than_the_papers_says_so():
    better = paired_difference(*(trained(level)["scores"]["none|aps"] for level in (0.9, 0.5)))
    strong, weak = (finding("re-ranking helps", better, single=single) for single in (0.96, 0.5))
    assert strong.startswith("re-ranking helps: **supported") and "outside" not in strong
    assert weak == f"{strong[:-1]}; outside the regime that the paper speaks of (50.0 mAP here))"


def test_several_rows_again_are_each_compared_with_their_twin(without_features):
    kinds = [(name, loss, recipe) for name in "ab" for loss in ("infonce", "id") for recipe in ("none", "flip")]
    trainings = [trained(backbone=name, loss=loss, augmentation=recipe) for name, loss, recipe in kinds]
    for name, loss, recipe in kinds:
        again = trained(backbone=name, loss=loss, augmentation=recipe, seeds=[100, 101])
        trainings.append(again | {"run": again["run"].replace("__", "__again_")})
    runs = {"02_training": trainings}
    for table in (augmentation_table(runs), loss_table(runs, ["flip"]), backbone_table(runs, ["flip"])):
        pairs = {name: base for name, base in table.baselines.items() if "again" in name and "re-ranked" not in name}
        assert len(pairs) >= 2
        assert all(base == name.replace(" again (other seeds)", "") for name, base in pairs.items())


@pytest.mark.parametrize(("seeds", "scope"), [(3, ", holds for these networks"), (5, "")])
def test_a_dispersion_that_few_seeds_decide_holds_for_these_networks(monkeypatch, seeds, scope):
    monkeypatch.setattr(
        rows, "dispersion", lambda run: np.arange(seeds) + (100 if run["settings"]["loss"] == "infonce" else 0)
    )
    runs = {"02_training": [trained(loss=loss, seeds=list(range(seeds))) for loss in ("infonce", "id")]}
    tables = {name: Table(name, "") for name in ("T1", "T3", "T4", "T5")} | {"T2": loss_table(runs, ["none"])}
    line = paper_claims(tables).iloc[1]
    assert line["regime"] == "" and line["verdict"] == f"supported{scope} ({seeds**2} of {seeds**2} pairs of seeds)"
