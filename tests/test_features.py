"""Trained weights put to use: features of any folder of crops, and the encoder as ONNX."""

import json

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reid_utils.files import write_json
from reid_utils.learning.features import crops_of, export_onnx, extract_features, main, trained_encoder
from reid_utils.learning.models import build_encoder, save_weights
from reid_utils.learning.transfer import compared_runs, transfer_table
from reid_utils.ranking.feature_files import load_features, load_folder
from reid_utils.ranking.methods import score_features

SIZE = (32, 16)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A weights file as a run of notebook 02 leaves it."""
    path = tmp_path_factory.mktemp("seed0") / "weights.safetensors"
    run = {"backbone": "test_byobnet", "image_size": SIZE, "pretrained": True, "flip_features": True, "loss": "id"}
    save_weights(path, build_encoder("test_byobnet", SIZE), run)
    return path


def _write(folder, *names):
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 256, (40, 20, 3), dtype=np.uint8))


def _table(rows):
    return [tuple(row) for row in rows[["path", "role", "player", "camera"]].to_numpy().tolist()]


def test_numbers_before_the_underscore_are_players_and_first_images_are_queries(tmp_path):
    _write(tmp_path, "0007_b.jpg", "0007_a.PNG", "12_x.jpeg")
    (tmp_path / "._0007_a.PNG").write_bytes(b"left behind by a file manager")
    assert _table(crops_of(tmp_path).iloc[:2]) == [("0007_a.PNG", "query", 7, 0), ("0007_b.jpg", "gallery", 7, 1)]


def test_folders_query_and_gallery_decide_and_a_folder_may_be_a_player(tmp_path):
    _write(tmp_path, "gallery/ann/1.jpg", "gallery/bob/1.jpg", "query/bob/2.jpg")
    expected = [("gallery/ann/1.jpg", "gallery", 0, 1), ("gallery/bob/1.jpg", "gallery", 1, 1)]
    assert _table(crops_of(tmp_path)) == [*expected, ("query/bob/2.jpg", "query", 1, 0)]


def test_crops_without_any_player_are_query_and_gallery_and_unknown(tmp_path):
    _write(tmp_path, "x.jpg", "y.jpg")
    rows = crops_of(tmp_path)
    assert rows["role"].tolist() == ["query", "query", "gallery", "gallery"] and set(rows["player"]) == {-1}


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match="has no query images"):
        crops_of(tmp_path)


def test_the_command_writes_what_the_notebooks_read(weights, tmp_path, capsys):
    _write(tmp_path / "crops", "1_a.jpg", "1_b.jpg", "2_a.jpg", "2_b.jpg", "2_c.jpg")
    main([str(weights), str(tmp_path / "crops"), str(tmp_path / "mine" / "model.npz")])
    found = load_folder(tmp_path / "mine")["model"]
    assert found.query_players.tolist() == [1, 2] and found.gallery_images.tolist() == ["1_b", "2_b", "2_c"]
    assert "gallery" in capsys.readouterr().out
    # flip_features of the run holds here too
    encoder, _ = trained_encoder(weights)
    pixels = cv2.cvtColor(cv2.imread(str(tmp_path / "crops" / "1_a.jpg")), cv2.COLOR_BGR2RGB)
    small = cv2.resize(pixels, (16, 32), interpolation=cv2.INTER_LINEAR)
    assert found.query[:1] == pytest.approx(extract_features(encoder, small[None], flip=True), abs=0.02)


def test_a_data_set_gives_the_split_that_is_asked_for(weights, tmp_path):
    from reid_utils.data.sources import prepare_data

    rendering = {"train_players": 4, "test_players": 3, "challenge_players": 2, "frames": 3}
    folder = prepare_data("rendered", root=tmp_path / "data", rendering=rendering)
    for split, players in (("test", 3), ("challenge", 2)):
        main([str(weights), str(folder), str(tmp_path / f"{split}.npz"), "--split", split])
        assert len(load_features(tmp_path / f"{split}.npz").query) == players


def test_mistakes_end_with_one_line(weights, tmp_path, capsys):
    save_file({"weight": torch.zeros(1)}, tmp_path / "bare.safetensors")
    _write(tmp_path / "crops", "1_a.jpg", "1_b.jpg")
    (tmp_path / "crops" / "1_c.jpg").write_bytes(b"no image")
    cases = {
        (tmp_path / "bare.safetensors", tmp_path / "crops"): "does not say what it was trained with",
        (weights, tmp_path / "crops"): "1_c.jpg is not a readable image",
        (weights, tmp_path / "nowhere"): "nowhere",
    }
    for (file, folder), message in cases.items():
        with pytest.raises(SystemExit) as stopped:
            main([str(file), str(folder), str(tmp_path / "out.npz")])
        told = capsys.readouterr().err
        assert stopped.value.code == 1 and message in told and told.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


def test_onnx_gives_the_features_of_torch_from_letterboxed_bytes(weights, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder, run = trained_encoder(weights)
    export_onnx(encoder, tmp_path / "encoder.onnx", run)
    session = onnxruntime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)
    (features,) = session.run(None, {"images": images})
    assert features == pytest.approx(extract_features(encoder, images), abs=1e-5)
    notes = session.get_modelmeta().custom_metadata_map
    assert "RGB; scale to fit 32 x 16 pixels" in notes["preprocessing"] and json.loads(notes["run"])["loss"] == "id"


def _trained_on(folder, name, seeds=(0, 1)):
    """A result folder of notebook 02 as transfer reads it, on a set of its own of five players."""
    data = folder / name
    _write(data, *(f"{player}_{frame}.png" for player in range(5) for frame in range(3)))
    encoder = {"backbone": "test_byobnet", "image_size": SIZE, "projection": False, "normalisation": "weights"}
    for seed in seeds:
        torch.manual_seed(100 * len(name) + seed)
        save_weights(
            folder / "run" / f"seed{seed}" / "weights.safetensors",
            build_encoder(**encoder),
            {**encoder, "flip_features": False},
        )
    settings = {"backbone": "test_byobnet", "image_size": SIZE, "loss": "id", "augmentation": "none"}
    values = {"note": name, "data_dir": str(data)}
    result = {"notebook": "02_training", "settings": {**settings, "seeds": list(seeds)}, "values": values}
    write_json(folder / "run" / "results.json", result)
    return folder / "run"


def test_each_of_two_sets_is_searched_by_what_was_trained_on_either_and_by_nothing(tmp_path):
    runs = [_trained_on(tmp_path / name, name) for name in ("drawn", "people")]
    table = transfer_table(compared_runs(runs)).set_index(["trained on", "tested on"])
    pairs = [(name, on) for on in ("drawn", "people") for name in ("nothing", "drawn", "people")]
    assert list(table.index) == pairs
    scores = []
    for seed in (0, 1):
        out = tmp_path / f"{seed}.npz"
        main([str(runs[0] / f"seed{seed}" / "weights.safetensors"), str(tmp_path / "people" / "people"), str(out)])
        scores.append(score_features(load_features(out))["mAP"])
    there = table.loc["drawn", "people"]
    assert there["mAP"] == pytest.approx(100 * np.mean(scores), abs=0.01) and there["low"] <= there["mAP"]
    assert there["gain"] == pytest.approx(there["mAP"] - table.loc["nothing", "people"]["mAP"], abs=0.02)
    assert np.isnan(table.loc["nothing", "drawn"]["gain"])


def test_runs_that_cannot_be_set_side_by_side_are_refused(tmp_path):
    run = _trained_on(tmp_path / "a", "drawn")
    with pytest.raises(ValueError, match="was trained on drawn as"):
        compared_runs([run, run])
    with pytest.raises(ValueError, match=r"seeds is \[0\] in .* and \[0, 1\] in the first run"):
        compared_runs([run, _trained_on(tmp_path / "b", "people", seeds=[0])])
