"""Notebook 08: what an encoder trained on one set is worth on another."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import papermill
import pytest
import torch

from reid_utils.data.integrity import data_fingerprint
from reid_utils.files import read_json, write_json
from reid_utils.learning.features import extract_features
from reid_utils.learning.models import build_encoder, save_weights, starting_encoder
from reid_utils.ranking import statistics
from rendered_players.dataset import render_dataset

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "08_transfer.ipynb"
SIZE = (32, 16)
ENCODER = {"backbone": "test_byobnet", "image_size": SIZE, "projection": False, "normalisation": "weights"}


def _trained_on(folder, number, seeds=(0, 1)):
    """A result folder of notebook 02, trained on a set of its own."""
    data = render_dataset(folder / "set", seed=number, train_players=2, test_players=5, challenge_players=1, frames=3)
    for seed in seeds:
        torch.manual_seed(100 * number + seed)
        save_weights(folder / "run" / f"seed{seed}" / "weights.safetensors", build_encoder(**ENCODER), ENCODER)
    settings = {**ENCODER, "loss": "id", "augmentation": "none", "flip_features": False, "pretrained": False}
    result = {"notebook": "02_training", "settings": {**settings, "seeds": list(seeds)}, "run": f"run{number}"}
    result |= {"values": {"note": f"set {number}", "data_dir": str(data)}, "data_fingerprint": data_fingerprint(data)}
    write_json(folder / "run" / "results.json", result)
    return str(folder / "run")


def _execute(out, inputs):
    parameters = {"out": str(out), "inputs": inputs, "unseen": []}
    papermill.execute_notebook(
        NOTEBOOK, out / "08.ipynb", parameters, cwd=ROOT / "notebooks", kernel_name="python3", progress_bar=False
    )
    return pd.read_csv(out / "results" / "08_transfer" / "transfer.csv").set_index(["trained on", "tested on"])


def test_each_of_two_sets_is_searched_by_what_was_trained_on_either_and_by_nothing(tmp_path):
    from reid_utils.data.images import load_images
    from reid_utils.data.manifest import load_manifest
    from reid_utils.ranking.feature_files import features_of
    from reid_utils.ranking.methods import score_features

    runs = [_trained_on(tmp_path / str(number), number) for number in (1, 2)]
    (tmp_path / "out").mkdir()
    table = _execute(tmp_path / "out", runs)
    pairs = [(name, on) for on in ("set 1", "set 2") for name in ("nothing", "set 1", "set 2")]
    assert list(table.index) == pairs
    data = Path(read_json(Path(runs[1]) / "results.json")["values"]["data_dir"])
    manifest = load_manifest(data)
    rows = manifest[manifest["split"] == "test"]
    images = load_images(data, rows["path"].tolist(), *SIZE, tmp_path / "cache", "two")

    def mean_ap(encoder):
        return score_features(features_of(rows, extract_features(encoder, images)))["mAP"]

    untrained = [mean_ap(starting_encoder(ENCODER, seed)) for seed in (0, 1)]
    trained = []
    for seed in (0, 1):
        torch.manual_seed(100 + seed)
        trained.append(mean_ap(build_encoder(**ENCODER)))
    there, before = table.loc["set 1", "set 2"], table.loc["nothing", "set 2"]
    assert there["mAP"] == pytest.approx(100 * np.mean(trained), abs=0.01) and there["low"] <= there["mAP"]
    assert before["mAP"] == pytest.approx(100 * np.mean(untrained), abs=0.01) and np.isnan(before["gain"])
    assert there["gain"] == pytest.approx(there["mAP"] - before["mAP"], abs=0.02)


@pytest.mark.parametrize("second", ["the same", "other seeds"])
def test_runs_that_cannot_be_set_side_by_side_are_refused(tmp_path, second):
    run = _trained_on(tmp_path / "a", 1)
    other = run if second == "the same" else _trained_on(tmp_path / "b", 2, seeds=[0])
    told = "were trained on one set" if second == "the same" else r"seeds is \[0\] on set 2, \[0, 1\] on the first"
    with pytest.raises(papermill.PapermillExecutionError, match=told):
        _execute(tmp_path, [run, other])


@pytest.mark.parametrize("state", ["gone", "another"])
def test_a_set_that_is_no_longer_what_was_trained_on_is_refused(tmp_path, state):
    run = _trained_on(tmp_path / "a", 1, seeds=[0])
    data = Path(read_json(Path(run) / "results.json")["values"]["data_dir"])
    told = "differs from what" if state == "another" else "is gone, on which"
    if state == "gone":
        data.rename(tmp_path / "moved")
    else:
        next(data.rglob("*.jpeg")).write_bytes(b"another")
    with pytest.raises(papermill.PapermillExecutionError, match=f"{told} .*run was trained on; put the set back there"):
        _execute(tmp_path, [run])


def test_queries_of_one_sequence_are_one_draw(tmp_path):
    cells = ("".join(cell["source"]) for cell in read_json(NOTEBOOK)["cells"])
    (source,) = (source for source in cells if "statistics.mean_interval(" in source)
    sequences, rng = np.repeat(np.arange(6), 4), np.random.default_rng(0)
    rows = pd.DataFrame({"role": ["gallery"] * 3 + ["query"] * 24, "sequence": [9, 9, 9, *sequences]})
    aps = {("set", on): np.repeat(rng.random((2, 6)), 4, axis=1) for on in ("nothing", "set")}
    names = {"np": np, "pd": pd, "statistics": statistics, "aps": aps, "rows": {"set": rows}}
    names |= {"run": SimpleNamespace(folder=tmp_path), "scores": {pair: [{"rank1": 1.0}] for pair in aps}}
    exec(source, names)
    line = names["table"].set_index("trained on").loc["set"]
    gain = statistics.paired_difference(aps["set", "set"], aps["set", "nothing"], True, groups=sequences)
    wanted = *statistics.mean_interval(aps["set", "set"], groups=sequences), gain["low"], gain["high"]
    assert list(line[["low", "high", "gain low", "gain high"]]) == [round(100 * value, 2) for value in wanted]
