import ast
import json
import os
import subprocess
import symtable
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("0*.ipynb"))
SHARED_CROPS = ROOT.parent / "shared" / "data" / "pku_reid" / "data_reid"


def _content(path):
    return json.loads(path.read_text())


def _code(path):
    return [cell for cell in _content(path)["cells"] if cell["cell_type"] == "code"]


def _run(command, cwd=ROOT, **environment):
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def _errors_of(path):
    outputs = [output for cell in _code(path) for output in cell["outputs"]]
    return [output for output in outputs if output["output_type"] == "error"]


def test_the_notebooks_are_there():
    assert [path.stem.split("_")[0] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "05b", "06", "07", "08"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_clean_and_short(path):
    content = _content(path)
    code = _code(path)
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code)
    assert 12 <= len(code) <= 30
    # The parameters are a table, a line each.
    assert max(len(cell["source"]) for cell in code if "parameters" not in cell["metadata"].get("tags", [])) <= 30
    assert 2 * (len(content["cells"]) - len(code)) >= len(code)
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code))
    kinds = [type(node) for node in ast.walk(tree)]
    assert kinds.count(ast.FunctionDef) <= 1 and ast.ClassDef not in kinds
    assert "sys.path" not in ast.unparse(tree)
    last = content["cells"][-2]
    assert "".join(last["source"]).startswith("## What we see")


def test_the_imports_of_the_tables_notebook_are_at_most_12_lines():
    (path,) = (path for path in NOTEBOOKS if path.stem == "06_paper_tables")
    assert len(_code(path)[0]["source"]) <= 12


@pytest.mark.parametrize("stem", ["01", "03", "04", "05", "05b", "08"])
def test_imports_are_collapsed(stem):
    (path,) = (path for path in NOTEBOOKS if path.stem.startswith(f"{stem}_"))
    assert "import" in "".join(_code(path)[0]["source"]) and _code(path)[0]["metadata"]["jupyter"]["source_hidden"]


def _names_read(source):
    """Names that a cell, or a function or comprehension in it, takes from earlier cells."""
    whole = symtable.symtable(source, "cell", "exec")
    bound = {symbol.get_name() for symbol in whole.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    waiting, read = [whole], set()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        free = (s for s in table.get_symbols() if s.is_referenced() and (table is whole or s.is_global()))
        read |= {symbol.get_name() for symbol in free}
    return read - bound


def _loop_names(source):
    """Names that the loops of a cell leave behind."""
    tree = ast.parse(source)
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For)]
    within = {node for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
    targets = (node.target for node in loops if node not in within)
    return {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}


def _leaks(sources):
    """(cell, name) of loop names that a later cell reads: run again in another order, it would mean something else."""
    left, found = set(), []
    for number, source in enumerate(sources):
        found += [(number, name) for name in sorted(left & _names_read(source))]
        left |= _loop_names(source)
    return found


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_name_of_a_loop_is_read_in_a_later_cell(path):
    assert _leaks(["".join(cell["source"]) for cell in _code(path)]) == []


def test_a_loop_name_that_lives_on_is_found():
    loop = "for loss, f in features.items():\n    plot(f)"
    assert _leaks([loop, "print(f)"]) == [(1, "f")]
    assert _leaks([loop, "def g():\n    return f"]) == _leaks([loop, "[f(x) for x in y]"]) == [(1, "f")]
    assert _leaks([loop, "[f for f in y]", "f = 1", "for f in y:\n    print(f)"]) == []
    assert _leaks(["def g():\n    for f in y:\n        print(f)", "print(f)"]) == []


@pytest.mark.parametrize("images", [1, 2, 3, 4, 9])
def test_the_smallest_sets_have_a_map(images):
    from sklearn.manifold import TSNE

    from reid_utils.ranking.feature_files import Features

    (cell,) = (
        cell for cell in _code(ROOT / "notebooks" / "05_embedding_analysis.ipynb") if "def map_of" in cell["source"][0]
    )
    names = {"np": np, "TSNE": TSNE, "map_players": 14, "perplexity": 15.0}
    exec("".join(cell["source"]), names)
    gallery = np.random.default_rng(0).normal(size=(images, 8)).astype(np.float32)
    found = Features(gallery=gallery, gallery_players=np.arange(images) % 2, query_players=np.arange(2))
    points, players = names["map_of"](found)
    assert points.shape == (images, 2) and np.isfinite(points).all() and len(players) == images


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_with_a_comment_or_a_plain_name(path):
    (cell,) = (cell for cell in _code(path) if "parameters" in cell["metadata"].get("tags", []))
    tree = ast.parse("".join(cell["source"]))
    values = {node.targets[0].id: ast.literal_eval(node.value) for node in tree.body}
    assert values.keys() >= {"out", "run_id", "inputs"}
    for line in cell["source"]:
        name = line.split(" = ")[0]
        assert "  # " in line or name == "epochs"


def test_every_notebook_runs_and_every_table_and_figure_is_there(small_study):
    executed = sorted((small_study / "notebooks").glob("*.ipynb"))
    assert {path.stem.split("_")[0] for path in executed} == {"02", "03", "04", "05", "05b", "07"}
    assert not any(_errors_of(path) for path in executed)
    for k in range(1, 9):
        table = pd.read_csv(small_study / "tables" / f"T{k}.csv")
        assert len(table) and (small_study / "tables" / f"T{k}.md").stat().st_size > 100
    figures = {path.stem for path in (small_study / "figures").glob("*.png")}
    of_crops = "_sequences", "_augmentations", "_ranked_lists", "_saliency"  # PNG alone
    drawn = {name for name in figures if not name.endswith(of_crops)}
    assert len(figures) >= 15
    assert all({path.stem for path in (small_study / "figures").glob(f"*.{kind}")} == drawn for kind in ("svg", "pdf"))
    assert {name[:2] for name in figures} == {"01", "03", "04", "05", "06", "07"}
    assert all(path.stat().st_size <= 300_000 for path in (small_study / "figures").glob("*.png"))


def test_tables_agree_with_each_other_and_with_the_features(small_study):
    from reid_utils.ranking.feature_files import load_features
    from reid_utils.ranking.methods import score_features

    tables = {k: pd.read_csv(small_study / "tables" / f"T{k}.csv").set_index("row") for k in (1, 2, 3, 4)}
    values = {
        tables[1].loc["erasing+sharpen", "mAP"],
        tables[2].loc["test_byobnet: infonce", "mAP"],
        tables[3].loc["test_byobnet: none", "mAP"],
        tables[4].loc["test_byobnet, plain", "mAP"],
    }
    folder = small_study / "results" / "02_training__test-byobnet_infonce_erasing+sharpen"
    scores = [score_features(load_features(folder / f"seed{seed}" / "test.npz"))["mAP"] for seed in (0, 1)]
    assert values == {round(100 * float(np.mean(scores)), 2)}
    assert (tables[1]["mAP low"] <= tables[1]["mAP"]).all() and (tables[1]["mAP"] <= tables[1]["mAP high"]).all()
    assert set(tables[1]["seeds"]) == {2} and set(tables[1]["queries"]) == {24}
    assert (tables[4]["gain by choice"].dropna() >= 0).all()
    seen = pd.read_csv(small_study / "tables" / "T2.csv")["images (1000)"]
    assert seen.nunique() == 1 and seen[0] > 0


def test_comparisons_of_trainings_are_shown_at_both_lengths(small_study):
    lengths = pd.read_csv(small_study / "tables" / "T8.csv").set_index("times")
    assert lengths["claim"].unique() == ["InfoNCE beats the ID loss"] and list(lengths.index) == [1, 2]
    assert lengths.loc[2, "images (1000)"] == 2 * lengths.loc[1, "images (1000)"]
    findings = pd.read_csv(small_study / "tables" / "findings.csv").set_index("claim")
    line = findings.loc["InfoNCE beats the ID loss"]
    assert line["difference"] == lengths.loc[1, "difference"]
    assert line["at twice the length"] == lengths.loc[2, "difference"]


def test_a_pretrained_encoder_starts_from_the_pool_and_is_a_row_of_no_table_but_t4(small_study):
    tables = {k: pd.read_csv(small_study / "tables" / f"T{k}.csv") for k in (1, 2, 3, 4)}
    assert sorted(tables[1]["row"]) == ["erasing+sharpen"] and len(tables[2]) == 3 and len(tables[3]) == 10
    t4 = tables[4].set_index("row")
    assert list(t4.index[-2:]) == ["test_byobnet pre-trained, plain", "test_byobnet pre-trained, re-ranked (hard)"]
    pool, pretrained = (
        pd.read_csv(small_study / "results" / f"02_training__{name}_test-byobnet" / "history.csv")
        for name in ("pool", "pretrained")
    )
    assert list(pretrained.query("epoch == 0")["mAP"]) == list(pool.query("epoch == 1")["mAP"])
    base, row = t4.loc["test_byobnet, plain"], t4.loc["test_byobnet pre-trained, plain"]
    assert row["difference"] == pytest.approx(row["mAP"] - base["mAP"], abs=0.011)


def test_every_claim_of_the_paper_gets_a_verdict(small_study):
    findings = pd.read_csv(small_study / "tables" / "findings.csv")
    told = findings.set_index("claim")["verdict"]
    known = ("supported", "contradicted", "open")
    assert told.str.startswith(known).all()
    words = ("InfoNCE beats", "hard weights help", "Gaussian", "best single", "pre-training")
    assert [word for word in words if not any(word in claim for claim in told.index)] == []


def test_the_challenge_file_has_the_ids_of_the_challenge(small_study):
    path = small_study / "results" / "04_fusion__all" / "challenge.csv"
    header = path.read_text().splitlines()[0].split(",")
    data = Path(json.loads((small_study / "study.json").read_text())["data folder"])
    gallery = sorted(int(image.stem) for image in (data / "reid_challenge" / "gallery").iterdir())
    assert sorted(map(int, header[1:])) == gallery
    assert {"challenge_plain.csv", "test.csv", "test_plain.csv"} <= {file.name for file in path.parent.iterdir()}


SHARED_STUDY = """
study: shared
data: rendered
rendering: {train_players: 12, test_players: 8, challenge_players: 4, frames: 6}
notebooks:
  - notebook: 02_training
    parameters: {seeds: [0], epochs: 1, batch_pairs: 8, image_height: 32, image_width: 32, learning_rate: 1.0e-3}
    grid:
      - {backbone: test_vit, processes: [1, 2]}
    named_by: [processes]
"""


def test_two_processes_share_a_training_under_papermill_and_given_weights_are_averaged(tmp_path):
    from reid_utils.learning.models import build_encoder, save_weights
    from reid_utils.ranking import squared_euclidean
    from reid_utils.ranking.feature_files import load_features, read_distance_csv

    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    for file in files:
        save_weights(file, build_encoder("test_vit", (32, 32)), {})
    (tmp_path / "shared.yaml").write_text(SHARED_STUDY)
    given = ["--set", f"predict_from={json.dumps([str(file) for file in files])}", "--jobs", "2"]
    _run(["run_all.py", str(tmp_path / "shared.yaml"), "--runs", str(tmp_path / "runs"), *given])
    one, two = (tmp_path / "runs" / "shared" / "results" / f"02_training__processes-{n}" for n in (1, 2))
    losses = [pd.read_csv(folder / "history.csv")["loss"].iloc[-1] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, ids in (("test", "players"), ("challenge", "images")):
        models = [load_features(two / f"predicted{k}" / f"{name}.npz") for k in range(2)]
        distances, query_ids, gallery_ids = read_distance_csv(two / f"{name}.csv")
        expected = np.mean([squared_euclidean(model.query, model.gallery) for model in models], axis=0)
        assert np.allclose(distances, expected, atol=1e-5) and expected.std() > 0
        assert query_ids.tolist() == getattr(models[0], f"query_{ids}").astype(int).tolist()
        assert gallery_ids.tolist() == getattr(models[0], f"gallery_{ids}").astype(int).tolist()
        reranked = read_distance_csv(two / f"{name}_reranked.csv")[0]
        assert reranked.shape == distances.shape and not np.allclose(reranked, distances)


def test_own_feature_files_and_distance_csvs_go_through_03_and_04_and_their_images_through_05b(tmp_path):
    from PIL import Image

    from reid_utils.ranking import write_distance_csv

    rng = np.random.default_rng(0)
    players = {"query_players": np.arange(12), "gallery_players": np.repeat(np.arange(12), 4)}
    images = {"query_images": [f"q{n}" for n in range(12)], "gallery_images": [f"g{n}" for n in range(48)]}
    (tmp_path / "crops").mkdir()
    for number, name in enumerate([*images["query_images"], *images["gallery_images"]]):
        Image.new("RGB", (16, 32), (4 * number, 0, 0)).save(tmp_path / "crops" / f"{name}.png")
    centres = rng.normal(size=(12, 16))
    for kind in ("npz", "csv"):
        folder = tmp_path / kind
        folder.mkdir()
        for model in ("first", "second"):
            query, gallery = (centres[ids] + rng.normal(size=(len(ids), 16)) for ids in players.values())
            if kind == "npz":
                np.savez(folder / f"{model}.npz", query=query, gallery=gallery, **players, **images)
            else:
                distances = ((query[:, None] - gallery[None]) ** 2).sum(axis=2)
                write_distance_csv(folder / f"{model}.csv", distances, *players.values())
        crops = ["--images", str(tmp_path / "crops")] if kind == "npz" else []
        command = ["run_all.py", "smoke", "--features", str(folder), "--runs", str(tmp_path / f"runs-{kind}"), *crops]
        told = _run(command)
        (root,) = (tmp_path / f"runs-{kind}").glob("smoke-*")
        three, four = (
            json.loads((root / "results" / name / "results.json").read_text())
            for name in ("03_post_processing", "04_fusion")
        )
        assert {line["row"] for line in three["values"]["comparison"]} >= {"none"}
        assert ("hard" in {line["row"] for line in three["values"]["comparison"]}) == (kind == "npz")
        assert "first + second: two-stage" in {line["row"] for line in four["values"]["comparison"]}
        scores = pd.read_csv(root / "tables" / "scores.csv")
        (plain,) = scores.loc[scores["row"] == "first: none", "mAP"]
        assert plain == pytest.approx(100 * three["values"]["comparison"][0]["mAP"]) and plain > 20
        assert f"first: none {plain:.2f}" in " ".join(told.split())
        assert len(list((root / "figures").glob("05b*ranked_lists.png"))) == (kind == "npz")
        assert f"first: none {plain:.2f}" in " ".join(_run(command).split())  # said again where all is done


def _tables(runs):
    return {path.name: path.read_bytes() for path in (runs / "micro" / "tables").iterdir()}


def test_a_killed_study_started_again_ends_with_the_same_tables_whatever_the_jobs(tmp_path):
    _run(["run_all.py", "micro", "--runs", str(tmp_path / "whole"), "--jobs", "2"])
    again = ["run_all.py", "micro", "--runs", str(tmp_path / "killed"), "--jobs", "1"]
    started = subprocess.Popen([sys.executable, *again], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("micro/results/02*/seed0/checkpoint.pt")):
        assert started.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    started.kill()
    started.wait()
    assert not (tmp_path / "killed" / "micro" / "tables" / "T1.csv").exists()
    assert "3 of 3 runs to execute" in _run(again)
    assert _tables(tmp_path / "whole") == _tables(tmp_path / "killed")
    assert len(_tables(tmp_path / "whole")) == 24  # T1 to T6, T8 and the findings; csv, md and tex


@pytest.mark.skipif(not SHARED_CROPS.is_dir(), reason="the real crops in ../shared are not here")
def test_training_beats_no_training_on_real_crops(tmp_path):
    pattern = "02*byobnet_infonce_erasing*"
    command = ["run_all.py", "smoke", "--data", str(SHARED_CROPS), "--only", pattern, "--runs", str(tmp_path)]
    _run(command)
    (results,) = tmp_path.glob("smoke-*/results/02*/results.json")
    gain = json.loads(results.read_text())["values"]["gain"]
    assert gain["low"] > 0


def _cell_with(stem, text):
    (cell,) = (cell for cell in _code(ROOT / "notebooks" / f"{stem}.ipynb") if text in "".join(cell["source"]))
    return "".join(cell["source"])


@pytest.mark.parametrize("stem", ["05b_errors", "07_regime_map"])
def test_an_encoder_is_rebuilt_with_the_normalisation_of_its_training(tmp_path, stem):
    import torch

    from reid_utils.learning import features, processes
    from reid_utils.learning.models import IMAGENET_MEAN, build_encoder, save_weights

    settings = {"backbone": "test_resnet", "image_size": [32, 16], "projection": False, "normalisation": "imagenet"}
    built = build_encoder(**settings)
    next(built.parameters()).data.fill_(0.25)
    save_weights(tmp_path / "weights.safetensors", built, settings | {"flip_features": True})
    names = {"features": features, "processes": processes, "settings": settings, "places": {"id": tmp_path}}
    names["trained_encoder"] = features.trained_encoder
    names |= {"folders": [tmp_path], "seeds": [0], "kept_stages": 1, "upstream": [{"settings": settings}]}
    names["files"] = {(0, tmp_path): [tmp_path / "weights.safetensors"]}
    exec(_cell_with(stem, "encoders = {"), names)
    encoder, run = names["trained"]["id"] if stem == "05b_errors" else names["encoders"][0, 0][0]
    assert tuple(encoder.mean) == tuple(IMAGENET_MEAN) != tuple(build_encoder("test_resnet").mean)
    assert torch.all(next(encoder.parameters()) == 0.25) and run["flip_features"]


@pytest.mark.parametrize("stem", ["05b_errors", "07_regime_map"])
def test_features_are_extracted_as_the_training_extracts_them(stem):
    calls = [
        node
        for cell in _code(ROOT / "notebooks" / f"{stem}.ipynb")
        for node in ast.walk(ast.parse("".join(cell["source"])))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("extract_features")
    ]
    assert calls and all("['flip_features']" in ast.unparse(call.keywords[0]) for call in calls)
