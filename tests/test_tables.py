"""Rows, baselines and claims of the paper's tables, on made-up scores whose truth is known."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from notebook_study.plan import expand
from notebook_study.study_file import declared_in, read_study
from reid_utils.paper import statements
from reid_utils.paper.claims import finding, paper_claims, verdict
from reid_utils.paper.lengths import lengths_of
from reid_utils.paper.results import start_run
from reid_utils.paper.rows import PUBLISHED, fusion_table, published_rows, training_history
from reid_utils.paper.statements import make_table
from reid_utils.paper.tables import ALIKE, SCORES, Table, pool_folds, show
from reid_utils.ranking.feature_files import Features, read_distance_csv, save
from reid_utils.ranking.methods import FUSIONS
from reid_utils.ranking.metrics import average_precisions
from reid_utils.ranking.statistics import paired_difference
from tools.publish import read_findings

STUDIES = Path(__file__).resolve().parents[1] / "studies"
SETTINGS = {
    "backbone": "a",
    "loss": "infonce",
    "augmentation": "none",
    "seeds": [0, 1, 2],
    "learning_rate": 0.01,
    "head_rate": 1.0,
    "margin": 0.3,
    "epochs": 10,
    "batch_pairs": 32,
    "pretrained": False,
    "start_weights": "",
    "pool": {},
    "train_on": "train",
    "image_size": [64, 32],
}
AGAIN = {"entry": {"again": " again (other seeds)"}}
T1 = {
    "question": "does that augmentation, alone, help?",
    "notebook": "02_training",
    "where": {"entry": ["", "again"], "loss": "infonce", "score": "none"},
    "row": "{augmentation}{entry}",
    "words": AGAIN,
    "against": [{"entry": ""}, {"augmentation": "none"}],
    "controls": {"entry": "again"},
    "claims": [{"claim": "augmentation helps", "rows": {"entry": ""}, "against": {"augmentation": "none"}}],
}
LOSS = {"rows": {"loss": "infonce", "entry": ""}, "against": {"loss": "id"}, "compared": "{backbone}"}
T2 = {
    "question": "does that loss beat InfoNCE?",
    "notebook": "02_training",
    "where": {"entry": ["", "again"], "augmentation": "none", "score": "none"},
    "row": "{backbone}: {loss}{entry}",
    "words": AGAIN,
    "against": [{"entry": ""}, {"loss": "infonce"}],
    "columns": ["between/within", "images"],
    "claims": [{"claim": "InfoNCE beats", **LOSS}],
}
T3 = read_study(STUDIES / "quick.yaml").tables["T3"]


def scores_of(levels, seeds=3, queries=40):
    """scores.npz of rows whose average precisions lie around a level each."""
    found = {}
    for name, level in levels.items():
        rng = np.random.default_rng(round(1000 * abs(level)))
        aps = np.clip(level + rng.normal(0, 0.02, (seeds, queries)), 0, 1)
        found |= {f"{name}|aps": aps, f"{name}|firsts": np.ones_like(aps)}
        found |= {f"{name}|{key}": aps.mean(axis=1) for key in SCORES if key not in ("aps", "firsts")}
    return found


def trained(level=0.5, entry="", **settings):
    """A run of notebook 02 as `gather` gives it."""
    settings = {**SETTINGS, **settings}
    name = "_".join(str(settings[key]) for key in ("backbone", "loss", "augmentation"))
    name += "_pretrained" * settings["pretrained"]
    levels = {"untrained": 0.2, "none": level, "gaussian": level + 0.1, "hard": level + 0.09, "best": level + 0.01}
    levels |= {"hard in place": level + 0.08, "kreciprocal": level + 0.1}
    values = {"cost": {"parameters": 1e6, "gflops": 0.5}, "note": "rendered data"}
    values["images_seen"] = 1000 * settings["epochs"]
    scores = scores_of(levels, len(settings["seeds"]))
    run = f"02_training__{entry}{name}"
    return {"run": run, "entry": entry, "settings": settings, "values": values, "scores": scores}


def fused(levels, models, entry="", **settings):
    """A run of notebook 04 as `gather` gives it."""
    settings = {"models": models, "post_processing": "hard", "challenge_fusion": "two-stage", **settings}
    values, scores = {"challenge": {}}, scores_of(levels)
    return {"run": f"04_fusion__{entry}", "entry": entry, "settings": settings, "values": values, "scores": scores}


def reranked(levels, backbone="a"):
    """A run of notebook 03 as `gather` gives it."""
    return {**trained(backbone=backbone), "run": f"03_post_processing__{backbone}", "scores": scores_of(levels)}


def t1(*runs):
    return make_table("T1", T1, {"02_training": list(runs)})


def t3(*runs):
    return make_table("T3", T3, {"03_post_processing": list(runs)})


def table_rows(table):
    """{row: baseline} of a table, None where the row has none."""
    return {name: base if base != name else None for name, base in table.baselines.items()}


def test_a_table_says_which_rows_to_compare_and_how_to_make_them_again(tmp_path):
    names = ("none", "flip", "jitter")
    table = t1(*(trained(0.5 + 0.1 * k, augmentation=name) for k, name in enumerate(names)))
    run = start_run(tmp_path, "06", "06")
    text, shown = show(run, table, "python run_all.py quick").data, table.printable
    assert (tmp_path / "tables" / "T1.md").read_text() == text
    assert "Compared: 2, 3 with row 1, to answer: does that augmentation, alone, help?" in text
    assert "Row 2: `python run_all.py quick --only '02_training__a_infonce_flip'`" in text
    assert shown["difference"][2] == pytest.approx(20, abs=1) and np.isnan(shown["difference"][0])
    assert shown["differ"][2] == shown["queries"][2] == 40
    empty = show(run, Table("T5", "does that fusion help?"), "python run_all.py quick")
    assert "No two rows here answer: does that fusion help?" in empty.data


def test_queries_of_one_sequence_are_one_draw_in_tables_and_claims_where_there_are_five(tmp_path):
    runs = [trained(level, augmentation=name) for level, name in ((0.5, "none"), (0.52, "flip"))]
    apart, groups = t1(*runs), np.arange(40) // 5
    for run in runs:
        run["scores"]["groups"] = groups
    together = t1(*runs)
    aps = [run["scores"]["none|aps"] for run in reversed(runs)]
    expected = paired_difference(*aps, groups=groups)
    assert together.comparison["diff_low"][1] == expected["low"] != apart.comparison["diff_low"][1]
    assert paper_claims({"T1": together})["diff low"][0] == pytest.approx(100 * expected["low"], abs=0.006)
    assert (
        "Standard errors are clustered by gallery or sequence (8 clusters)."
        in show(start_run(tmp_path, "06", "06"), together, "").data
    )
    for run in runs:
        run["scores"]["groups"] = groups // 2  # four say nothing of their spread
    assert t1(*runs).comparison.equals(apart.comparison)


def test_a_statement_names_rows_their_baselines_and_the_claims_they_decide(without_features):
    kinds = ("none", "flip", "flip+jitter")
    runs = [*(trained(augmentation=kind) for kind in kinds), trained(loss="id"), trained(loss="triplet")]
    runs += [trained(backbone="b"), trained(entry="again", seeds=[8, 9])]
    own = [run for run in runs if run["settings"]["backbone"] == "a"]
    table = t1(*own)
    again = "none again (other seeds)"
    assert table_rows(table) == {"none": None, "flip": "none", "flip+jitter": "none", again: "none"}
    assert [each.compared for each in table.claims] == ["flip against none", "flip+jitter against none"]
    losses = make_table("T2", T2, {"02_training": runs})
    assert table_rows(losses) == {
        "a: infonce": None,
        "a: id": "a: infonce",
        "a: triplet": "a: infonce",
        "b: infonce": None,
        "a: infonce again (other seeds)": "a: infonce",
    }
    assert list(paper_claims({"T2": losses})["compared"]) == ["a"]
    assert losses.printable["between/within"].tolist() == [2.0, 2.0, 2.0, 2.0, 1.5]
    assert losses.printable["images (1000)"].tolist() == [10.0] * 5
    assert (losses.question, losses.notebook) == ("does that loss beat InfoNCE?", "02_training")


def test_a_new_family_of_trainings_is_a_row_of_the_tables_that_name_it_alone(without_features):
    """T9 as docs/extending.md adds it, six lines of YAML; T1 to T4 of the quick study do not move."""
    text = (STUDIES.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    _, stated, claims = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)  # the first is the entry of the trainings
    stated, claims = yaml.safe_load(stated)["tables"]["T9"], yaml.safe_load(claims)["claims"]
    assert len(stated) == 5  # and the line with its name: six
    quick = read_study(STUDIES / "quick.yaml").tables
    recipe = {"backbone": "test_byobnet", "augmentation": "erasing+sharpen"}
    entries = ("", "again", "pool", "pretrained")
    runs = [trained(0.5, entry, **recipe) for entry in entries] + [trained(0.4, loss="id", **recipe)]
    more = [trained(level, "image size", **recipe | {"image_size": [h, 32]}) for level, h in ((0.5, 64), (0.7, 128))]
    more[1]["run"] += "_128"
    before = {name: make_table(name, quick[name], {"02_training": runs}) for name in quick}
    after = {name: make_table(name, quick[name], {"02_training": [*runs, *more]}) for name in quick}
    for name in quick:
        assert after[name].printable.equals(before[name].printable) and after[name].claims == before[name].claims
    assert len(before["T1"].rows) == 2 and len(before["T2"].rows) == 3 and len(before["T4"].rows) == 4
    table = make_table("T9", {**stated, "claims": claims}, {"02_training": [*runs, *more]})
    assert table_rows(table) == {"[64, 32]": None, "[128, 32]": "[64, 32]"}
    (line,) = paper_claims({"T9": table}).to_dict("records")
    assert line["compared"] == "[128, 32] against [64, 32]" and line["rerun low"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agianst": []}, "table T1: Object contains unknown field `agianst`"),
        (
            {"where": {"los": "id"}},
            "table T1: 'los' is neither a column nor a setting of 02_training; its results.json",
        ),
        ({"row": "{augmentaton}"}, "'augmentaton' is neither"),
        ({"against": [{"recipe": "none"}]}, "'recipe' is neither"),
        ({"columns": ["milliseconds"]}, "'milliseconds' is neither"),
        (
            {"row": "all"},
            r"02_training__a_infonce_none and 02_training__a_infonce_flip are both 'all'.*\(augmentation\)",
        ),
    ],
)
def test_a_mistaken_statement_is_told_in_one_line(change, message):
    runs = {"02_training": [trained(), trained(augmentation="flip")]}
    with pytest.raises(ValueError, match=message) as caught:
        make_table("T1", {**T1, **change}, runs)
    assert "\n" not in str(caught.value)


def test_a_statement_that_no_run_answers_says_so():
    table = make_table("T1", {**T1, "where": {"backbone": "z"}}, {"02_training": [trained()]})
    assert not table.rows and table.notes[-1] == 'No run of 02_training has {"backbone": "z"}.'
    assert training_history({"02_training": [trained()]}, table) is None


def test_pre_trained_rows_are_compared_with_the_same_backbone_from_scratch_and_no_pair_twice():
    stated = read_study(STUDIES / "people_folds.yaml").tables["T4"]
    names, starts = ("mobilenetv2_100", "tf_efficientnet_lite0"), (True, False)
    runs = [trained(0.5 + 0.2 * start, "folds", backbone=b, pretrained=start) for b in names for start in starts]
    table = make_table("T4", stated, {"02_training": runs})
    mobile, lite = names
    assert table_rows(table) == {
        f"{mobile}, plain": f"{mobile} from scratch, plain",
        f"{mobile}, re-ranked (hard)": f"{mobile}, plain",
        f"{mobile} from scratch, plain": None,
        f"{mobile} from scratch, re-ranked (hard)": f"{mobile} from scratch, plain",
        f"{lite}, plain": f"{lite} from scratch, plain",
        f"{lite}, re-ranked (hard)": f"{lite}, plain",
        f"{lite} from scratch, plain": f"{mobile}, plain",
        f"{lite} from scratch, re-ranked (hard)": f"{lite} from scratch, plain",
    }
    assert table.shared == {name for name in table.rows if "re-ranked" in name} | {f"{mobile} from scratch, plain"}
    assert table.extra[f"{mobile}, plain"]["zero-shot"] == pytest.approx(20, abs=1)
    assert list(paper_claims({"T4": table})["compared"]) == [
        f"{b}, plain against {b} from scratch, plain" for b in names
    ]


def pairs_of(text, rows):
    """The (row, baseline) numbers that a published table says it compares, in the words of either form."""
    former = re.findall(r"(\d+) and (\d+)", next((line for line in text if line.startswith("Compare rows")), ""))
    line = next((line for line in text if line.startswith("Compared: ")), "").partition(", to answer")[0]
    parts = re.findall(r"([\d, ]+|each row) with row (\d+)", line.removeprefix("Compared: "))
    found = {(int(row), int(base)) for base, row in former}
    for named, base in parts:
        numbers = range(1, rows + 1) if named == "each row" else map(int, named.replace(",", " ").split())
        found |= {(row, int(base)) for row in numbers if row != int(base)}
    return found


def made_up(study):
    """What `gather` would give of a study's runs, all of one score, with the images that each training shows."""
    declared, runs = declared_in(study, STUDIES.parent / "notebooks"), {}
    for run in expand(study, declared):
        settings = {**SETTINGS, **declared[run.notebook], **run.parameters}
        settings |= settings.pop("extra", {})
        of = next((other for other in runs.get("02_training", []) if other["run"] in run.inputs), None)
        seen = settings["epochs"] * {**study.rendering, **settings["pool"]}.get("train_players", 1) if of is None else 0
        if of and run.notebook == "02_training" and settings["learning_rate"]:  # it starts from the other
            seen = of["values"]["images_seen"] + settings["epochs"] * study.rendering["train_players"]
            settings["start_weights"] = of["run"]
        elif of and run.notebook == "02_training":
            seen = settings["epochs"]
        if run.notebook == "03_post_processing":
            settings["backbone"] = of["settings"]["backbone"]
        levels = ["none", "gaussian", "hard in place", "hard", "kreciprocal"]
        values = trained()["values"] | {"images_seen": seen}
        made = {"run": run.id, "entry": run.group, "settings": settings, "folder": "", "values": values}
        runs.setdefault(run.notebook, []).append(made | {"scores": scores_of(dict.fromkeys(levels, 0.5), 2)})
    return runs | {"02_training": pool_folds(runs["02_training"])}


STATED = sorted(path for path in STUDIES.glob("*.yaml") if "tuning" not in path.stem)


@pytest.mark.parametrize("path", STATED, ids=lambda path: path.stem)
def test_every_table_that_a_study_file_states_has_rows_and_claims_of_its_runs(without_features, path):
    study = read_study(path)
    runs = made_up(study)
    made = {name: make_table(name, stated, runs) for name, stated in study.tables.items()}
    assert list(made) == ["T1", "T2", "T3", "T4"][path.stem == "people" :]
    assert [name for name, table in made.items() if not table.rows] == (["T3"] if path.stem == "micro" else [])
    assert all(base in table.rows for table in made.values() for base in table.baselines.values())
    found = paper_claims(made)
    # comparisons, without fusions
    counts = {"full": 17, "lab": 5, "micro": 1, "paper": 31, "people": 3, "people_folds": 7, "quick": 9, "smoke": 4}
    assert len(found) == counts[path.stem]


@pytest.mark.parametrize("path", STATED, ids=lambda path: path.stem)
def test_every_comparison_of_trainings_in_every_study_is_one_of_equal_images(without_features, path):
    study = read_study(path)
    runs = made_up(study)
    for name, stated in study.tables.items():
        table = make_table(name, stated, runs)
        if name in ("T1", "T2") and path.stem != "paper":  # there backbones have schedules of their own
            assert len({row["images"] for row in table.rows.values()}) == 1
        for each in table.claims:
            seen = [table.rows[row]["images"] for row in (each.ours, each.theirs)]
            assert max(seen) <= ALIKE * min(seen), each


@pytest.mark.parametrize("name", ["quick", "full"])
def test_every_comparison_of_trainings_is_made_at_twice_the_length_too(without_features, name):
    study = read_study(STUDIES / f"{name}.yaml")
    runs = made_up(study)
    made = {table: make_table(table, stated, runs) for table, stated in study.tables.items()}
    found = lengths_of(made, runs)
    asked = {(each.claim, each.compared) for key in ("T1", "T2", "T4") for each in made[key].claims}
    assert asked == set(found[found["times"] == 2][["claim", "compared"]].itertuples(index=False, name=None))
    chief = found.groupby(["claim", "compared"])["times"].nunique()
    assert (chief >= 3).sum() >= 2


@pytest.mark.parametrize("name", ["quick", "people"])
def test_the_study_files_state_the_published_rows_and_baselines(without_features, name):
    figures, study = STUDIES.parent / "figures", read_study(STUDIES / f"{name}.yaml")
    runs = made_up(study)
    made = {table: make_table(table, study.tables[table], runs) for table in study.tables}
    for table, own in made.items():
        folder = figures / ("people/tables" if name == "people" else "tables")
        text = (folder / f"{table}.md").read_text(encoding="utf-8").splitlines()
        assert list(own.rows) == list(pd.read_csv(folder / f"{table}.csv")["row"])
        number = {row: k for k, row in enumerate(own.rows, start=1)}
        pairs = {(number[row], number[base]) for row, base in own.baselines.items() if base != row}
        assert pairs == pairs_of(text, len(number))
    findings = read_findings(figures / ("people" if name == "people" else ""))
    asked = {(each.claim, each.compared) for table in made.values() for each in table.claims}
    known = set(zip(findings["claim"], findings["compared"], strict=True))
    assert {each for each in known if "fusion" not in each[0]} <= asked


def test_t3_has_the_rows_that_its_runs_hold():
    names = {"none": 0.5, "hard": 0.6, "one more": 0.55, "another": 0.4}
    table = t3(reranked(names))
    assert table_rows(table) == {f"a: {name}": None if name == "none" else "a: none" for name in names}
    assert table.shared == set(table.rows)
    assert list(paper_claims({"T3": table})["compared"]) == ["a: hard against none"]


def test_t5_holds_several_fusion_runs_and_says_of_which_entry_they_are():
    levels = {"a": 0.5, "b": 0.4, "a + b: similarity": 0.6, "a + b: two-stage": 0.62}
    wider = {**levels, "c": 0.7, "a + c: similarity": 0.6}
    plain = fused({name: level - 0.3 for name, level in levels.items()}, ["a", "b"], "not re-ranked")
    table = fusion_table({"04_fusion": [fused(levels, ["a", "b"]), fused(wider, ["a", "b", "c"]), plain]}, t3())
    own = ", not re-ranked"
    assert table_rows(table) == {
        "a": None,
        "b": "a",
        "a + b: similarity": "a",
        "a + b: two-stage": "a",
        "c": None,
        "a + c: similarity": "c",
        f"a{own}": None,
        f"b{own}": f"a{own}",
        f"a + b: similarity{own}": f"a{own}",
        f"a + b: two-stage{own}": f"a{own}",
    }
    assert "b" not in table.shared and "a + b: two-stage" in table.shared
    with pytest.raises(ValueError, match="both have the row 'a'"):
        fusion_table({"04_fusion": [fused(levels, ["a", "b"]), fused({"a": 0.7}, ["a"])]}, t3())


def test_t5_has_rows_without_re_ranking_and_says_what_the_length_of_the_lists_does():
    levels = {"a": 0.5, "b": 0.4, "a + b: two-stage": 0.62, "a + b, plain: two-stage": 0.45}
    run = fused(levels, ["a", "b"])
    run["values"]["by_top_k"] = [{"top_k": 5, "two-stage": 0.61}, {"top_k": 15, "two-stage": 0.62}]
    table = fusion_table({"04_fusion": [run]}, t3())
    assert table_rows(table) == {"a": None, **dict.fromkeys([*levels][1:], "a")}
    assert table.shared == {"a", "a + b: two-stage", "a + b, plain: two-stage"}
    assert "mAP of all models by the length of the lists (top_k): two-stage 61.00 at 5, 62.00 at 15." in table.notes
    assert "Rows called plain fuse the distances before any post-processing." in table.notes


def test_t6_keeps_unofficial_sets_and_entries_trained_on_test_out_of_the_published_columns():
    levels = {"a": 0.5, "b": 0.4, "a + b: two-stage": 0.6}
    entries = [
        ({"mAP": 0.9, "rank1": 0.95}, "train"),
        ({"mAP": 0.91}, "train+test"),
        ({"mAP": 0.3, "rank1": 0.4}, "train"),
    ]
    found = []
    for (scores, trained_on), year in zip(entries, (2022, 2023, None), strict=True):
        runs = {"02_training": [trained()], "04_fusion": [fused(levels, ["a", "b"])]}
        runs["02_training"][0]["values"] |= {"note": "Synergy-like crops", "year": year}
        runs["04_fusion"][0]["values"] = {"challenge": scores, "note": "Synergy-like crops", "trained_on": [trained_on]}
        frame, notes = published_rows(runs, "python run_all.py paper")
        found.append(frame.iloc[-1].dropna())
    official, own, other = found
    assert official["challenge 2022 mAP"] == 90 and official["challenge 2022 rank-1"] == 95
    assert official["test mAP"] == pytest.approx(60, abs=1)
    assert own["challenge 2023 mAP"] == 91 and "test mAP" not in own and own["entry"].endswith("trained on train+test")
    assert other["Synergy-like crops challenge mAP"] == 30 and "test mAP" not in other
    assert official["queries"] == "40"
    winner = frame.set_index("entry").loc["2022 winner, two ViT-L/14"].dropna()
    assert list(winner)[1:4] == [98.18, 99.36, 99.57] and any("0.3 mAP" in note for note in notes)


@pytest.fixture
def without_features(monkeypatch):
    """Features need files; here every seed spreads its players by as much."""

    def spread(run, score):
        return {"between/within": np.arange(1.0, 1 + len(run["settings"]["seeds"]))}

    monkeypatch.setitem(statements.COLUMNS, "between/within", (spread, ""))


def test_players_far_apart_and_images_of_one_close_give_a_high_ratio(tmp_path):
    rng, players = np.random.default_rng(0), np.arange(6)
    for seed in range(3):
        centres = rng.normal(size=(6, 8))
        images = np.concatenate([centres, centres + 0.1 * rng.normal(size=(6, 8))]).astype(np.float32)
        of = Features(query=images[:6], gallery=images[6:], query_players=players, gallery_players=players)
        save(tmp_path / f"seed{seed}" / "test.npz", of)
    run = {**trained(), "folder": tmp_path}
    found = statements.between_within(run, "none")
    distances = np.linalg.norm(images[:6, None] - images[6:], axis=2)  # of the last seed
    same = np.eye(6, dtype=bool)
    assert found["between/within"][2] == pytest.approx(distances[~same].mean() / distances[same].mean(), rel=1e-4)
    assert found["ratio low"] < found["between/within"].mean() < found["ratio high"]


def test_a_negative_control_is_shown_with_its_own_p_and_corrects_no_other():
    runs = [trained(), trained(0.51, augmentation="flip"), trained(0.505, augmentation="jitter")]
    again = trained(0.503, entry="again", seeds=[8, 9])
    alone, table = t1(*runs), t1(*runs, again)
    assert table.comparison["p_holm"][:3].equals(alone.comparison["p_holm"])
    control = table.comparison.iloc[3]
    assert control["p_holm"] == control["p"] and control["smallest"] > 0
    assert len(paper_claims({"T1": table})) == 2


def lengths(levels):
    """Verdict and T8 of flip against none, whose mAP is 0.5 more by so much at each number of epochs."""
    runs = [trained(epochs=epochs) for epochs in levels]
    runs += [trained(0.5 + more, augmentation="flip", epochs=epochs) for epochs, more in levels.items()]
    for run in runs:
        run["entry"] = "" if run["settings"]["epochs"] == 10 else "lengths"
    made = {"T1": t1(*runs)}
    found = lengths_of(made, {"02_training": runs})
    (line,) = paper_claims(made, found).to_dict("records")
    return line, found


def test_a_verdict_on_trainings_needs_the_same_sign_at_twice_the_length():
    line, found = lengths({10: 0.3, 20: 0.1, 5: -0.1})
    assert line["verdict"] == "supported" and line["at twice the length"] == pytest.approx(10, abs=1.5)
    assert found["times"].tolist() == [0.5, 1, 2] and found["epochs"].tolist() == [5, 10, 20]
    assert found["images (1000)"].tolist() == [5, 10, 20] and found["difference"][0] < 0
    line, _ = lengths({10: 0.3, 20: -0.05})
    assert line["verdict"] == "open (depends on training length)"
    line, found = lengths({10: 0.3})
    assert line["verdict"] == "open (one length of training)" and found.empty


def test_trainings_of_another_recipe_or_of_unequal_images_decide_nothing():
    runs = [trained(), trained(0.8, augmentation="flip")]
    runs += [
        trained(level, "lengths", epochs=20, batch_pairs=16, augmentation=name)
        for level, name in ((0.5, "none"), (0.8, "flip"))
    ]
    assert lengths_of({"T1": t1(*runs)}, {"02_training": runs}).empty
    pair = [trained(), trained(0.8, augmentation="flip")]
    pair[1]["values"]["images_seen"] *= 2
    table = t1(*pair)
    assert paper_claims({"T1": table})["verdict"][0] == "open (unequal numbers of images)"
    assert "Rows saw unequal numbers of images" in table.notes[-1]


def test_a_p_value_at_its_floor_says_so_and_a_comparison_of_trainings_of_one_length_is_open():
    far = t1(trained(), trained(0.9, augmentation="flip"))
    assert far.printable["p (Holm)"][1] == "< 0.0001"
    (line,) = paper_claims({"T1": far}).to_dict("records")
    assert line["verdict"] == "open (one length of training)" and line["p (Holm)"] == "< 0.0001"
    assert line["smallest"] > 0 and line["rerun low"] > 0


def test_a_verdict_needs_a_small_p_and_a_rerun_on_one_side_of_zero():
    above, below, across = ({"rerun_low": low, "rerun_high": low + 0.02} for low in (0.01, -0.03, -0.01))
    assert [verdict(each, 0.04) for each in (above, below, across)] == ["supported", "contradicted", "open"]
    assert [verdict(each, 0.05) for each in (above, below)] == ["open", "open"]
    assert verdict({"rerun_low": np.nan, "rerun_high": np.nan}, 1e-4) == "open"


def test_equal_rows_say_that_no_query_differs():
    levels = {"a": 0.5, "b": 0.4, "a + b: similarity": 0.6, "a + b: two-stage": 0.5}
    table = fusion_table({"04_fusion": [fused(levels, ["a", "b"])]}, t3())
    assert list(paper_claims({"T5": table})["verdict"]) == ["open"]


def test_claims_are_decided_by_the_rows_they_compare():
    levels = {"a": 0.5, "b": 0.4, "c": 0.3}
    levels |= {f"a + b + c: {name}": level for name, level in zip(FUSIONS, np.linspace(0.9, 0.3, 7), strict=True)}
    table = fusion_table({"04_fusion": [fused(levels, list("abc"))]}, t3())
    verdicts = paper_claims({"T5": table}).set_index("compared")["verdict"]
    assert verdicts["two-stage against the best single"] == "supported"
    for pair in ("dissimilarity against similarity", "two-stage against similarity", "two-stage against dissimilarity"):
        assert verdicts[pair] == "contradicted"


def test_comparisons_of_one_family_share_the_correction_over_tables_and_come_last():
    pair = [trained(), trained(0.52, augmentation="flip")]
    alone, apart = t1(*pair), {**T1, "claims": [{**T1["claims"][0], "family": "both"}]}
    both = [make_table(name, apart, {"02_training": pair}) for name in ("T1", "T4")]
    found = paper_claims({"T1": both[0], "T2": t1(*pair), "T4": both[1]})
    assert found["p (Holm)"][1] == found["p (Holm)"][2] == pytest.approx(2 * found["p (Holm)"][0], abs=2e-4)
    assert paper_claims({"T1": alone})["p (Holm)"][0] == found["p (Holm)"][0]


def test_findings_say_where_the_single_model_lies_below_what_the_paper_speaks_of():
    levels = {"a": {"none": 0.5, "hard": 0.6}, "b": {"none": 0.97, "hard": 0.98}}
    table = t3(*(reranked(levels[name], name) for name in "ab"))
    for plain, singles in ((0.97, {"a": 0.6, "b": 0.98}), (0.5, {"a": 0.98, "b": 0.6})):
        fusion = fusion_table({"04_fusion": [fused(singles | {"a + b: two-stage": 0.99}, ["a", "b"])]}, table)
        found = paper_claims({"T3": table, "T5": fusion}).set_index("compared")["regime"]
        assert found["a: hard against none"].startswith("outside the regime that the paper speaks of (")
        assert found["b: hard against none"] == ""
        assert bool(found["two-stage against the best single"]) == (plain < 0.95)  # by its plain distances, from T3
    for level, outside in ((0.5, True), (0.96, False)):  # trainings, by the better of the two
        found = paper_claims({"T1": t1(trained(), trained(level, augmentation="flip"))})["regime"][0]
        assert bool(found) == outside


def test_one_query_gives_a_finding_without_an_interval():
    found = finding("a beats b", paired_difference(np.full((3, 1), 0.6), np.full((3, 1), 0.5)))
    assert found == "a beats b: **open** (+10.00% mAP; one query: no interval)"


def test_a_finding_on_a_single_model_weaker_than_the_papers_says_so():
    better = paired_difference(*(trained(level)["scores"]["none|aps"] for level in (0.9, 0.5)))
    strong, weak = (finding("re-ranking helps", better, single=single) for single in (0.96, 0.5))
    assert strong.startswith("re-ranking helps: **supported") and "outside" not in strong
    assert weak == f"{strong[:-1]}; outside the regime that the paper speaks of (50.0 mAP here))"


def test_the_participants_row_of_t6_is_what_the_matrix_gives():
    source = STUDIES.parents[1] / "shared" / "golden" / "synergy2023_test_dmat.csv"
    if not source.exists():
        pytest.skip(f"{source} is not here")
    distances, query, gallery = read_distance_csv(source)
    aps = average_precisions(distances, query, gallery)
    own = next(row for row in PUBLISHED if "participant" in row[0])
    assert round(100 * aps.mean(), 2) == own[1] and str(len(aps)) == own[-2]
    _, notes = published_rows({"02_training": [trained()]}, "")
    error = 100 * aps.std(ddof=1) / len(aps) ** 0.5
    assert any(f"{(aps < 1).sum()} are imperfect" in note and f"mAP is {error:.1f} points" in note for note in notes)
