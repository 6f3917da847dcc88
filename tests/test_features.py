"""Trained weights put to use: features of any folder of crops, and the encoder as ONNX."""

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from reid_utils.data.integrity import validate_images
from reid_utils.data.manifest import load_manifest
from reid_utils.learning.features import extract_features, trained_encoder
from reid_utils.learning.models import build_encoder, save_weights
from reid_utils.ranking.feature_files import load_features, load_folder

SIZE = (32, 16)
TOOL = runpy.run_path(str(Path(__file__).parents[1] / "tools" / "features.py"))
main, export_onnx, crops_of, features_of_files = (
    TOOL[name] for name in ("main", "export_onnx", "crops_of", "features_of_files")
)


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
    _write(tmp_path, "0007_b.jpg", "0007_a.PNG", "12_x.jpeg", "12_y.webp")
    (tmp_path / "._0007_a.PNG").write_bytes(b"left behind by a file manager")
    rows = [("0007_a.PNG", "query", 7, 0), ("12_x.jpeg", "query", 12, 0)]
    rows += [("0007_b.jpg", "gallery", 7, 1), ("12_y.webp", "gallery", 12, 1)]
    assert _table(crops_of(tmp_path)) == rows


def test_folders_query_and_gallery_decide_and_a_folder_may_be_a_player(tmp_path):
    _write(tmp_path, "gallery/ann/1.jpg", "gallery/bob/1.jpg", "query/bob/2.jpg")
    expected = [("gallery/ann/1.jpg", "gallery", 1, 1), ("gallery/bob/1.jpg", "gallery", 2, 1)]
    assert _table(crops_of(tmp_path)) == [("query/bob/2.jpg", "query", 2, 0), *expected]


def test_numbers_in_names_that_other_folders_hold_too_are_no_players_and_that_is_told(tmp_path):
    _write(tmp_path, *(f"{name}/{k}_x.jpg" for name in ("ann", "bob") for k in (1, 2)))
    with pytest.warns(UserWarning, match="players are the folders around crops, not the numbers in names"):
        rows = crops_of(tmp_path)
    assert rows["player"].tolist() == [1, 2, 1, 2]


def test_crops_without_any_player_are_query_and_gallery_and_unknown(tmp_path):
    _write(tmp_path, "x.jpg", "y.jpg")
    rows = crops_of(tmp_path)
    assert rows["role"].tolist() == ["query", "query", "gallery", "gallery"] and set(rows["player"]) == {-1}


def test_an_empty_folder_says_what_it_lacks(tmp_path):
    with pytest.raises(FileNotFoundError, match="nor four or more folders of a player's images"):
        crops_of(tmp_path)
    _write(tmp_path, "query/1_a.jpg")
    with pytest.raises(ValueError, match="no gallery images"):
        crops_of(tmp_path)
    _write(tmp_path, "gallery/1_b.jpg")
    with pytest.raises(ValueError, match="has no challenge images"):
        crops_of(tmp_path, "challenge")


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
        (weights, tmp_path / "crops"): "1_c.jpg is not a JPEG, PNG, BMP or WebP file",
        (weights, tmp_path / "nowhere"): "nowhere",
    }
    for (file, folder), message in cases.items():
        with pytest.raises(SystemExit) as stopped:
            main([str(file), str(folder), str(tmp_path / "out.npz")])
        told = capsys.readouterr().err
        assert stopped.value.code == 1 and message in told and told.count("\n") == 1
    assert not (tmp_path / "out.npz").exists()


PLAYERS = ("1", "2", "10", "20", "100")
FEW = [f"{p}_{k}.jpg" for p in (2, 1) for k in (10, 2)]
ODD = {  # files of a folder: what a study and the command must both take or both refuse
    "numbers in names": FEW,
    "natural order": [f"{p}_{k}.jpg" for p in (10, 9) for k in (100, 20, 3)],
    "a folder a player": [f"p{p}/{k}.jpg" for p in PLAYERS for k in (10, 2)],
    "train and test": [f"{'train' if p in PLAYERS[:3] else 'test'}/{p}/{k}.jpg" for p in PLAYERS for k in (10, 2)],
    "train, val, query, gallery": [
        f"{part}/{p}/{k}.jpg"
        for part, of in {"train": PLAYERS[:2], "val": PLAYERS[:2], "query": PLAYERS[2:], "gallery": PLAYERS[2:]}.items()
        for p in of
        for k in (10, 2)
    ],
    "PRCC": [f"{part}/{k}.jpg" for part in ("train/1", "test/A/2", "test/B/2", "test/C/2") for k in "ab"],
    "train in names": ["train/1_a.jpg", "train/1_b.jpg", "test/2_a.jpg", "test/2_b.jpg"],
    "upper case": ["TRAIN/1_a.JPG", "train/1_b.JPEG", "Query/2_a.PNG", "GALLERY/2_b.Png"],
    "Synergy": [
        "reid_training/1_0_0.jpeg",
        "reid_training/1_0_1.jpeg",
        "reid_test/query/2_1_0.jpeg",
        "reid_test/gallery/2_1_10.jpeg",
        "reid_test/gallery/2_1_9.jpeg",
    ],
    "Synergy without training": ["reid_test/query/2_1_0.jpeg", "reid_test/gallery/2_1_10.jpeg"],
    "a Market gallery": [f"{p}_c{k}s1_00000{k}_00.jpg" for p in ("-1", "0000", "0002") for k in (1, 2)],
    "junk in the query": ["query/-1_a.jpg", "query/1_a.jpg", "gallery/1_b.jpg"],
    "junk in training": ["train/-1_a.jpg", "train/-1_b.jpg", "query/1_a.jpg", "gallery/1_b.jpg"],
    "nested": [f"team {t}/{p}/{k}.jpg" for t in "ab" for p in (1, 2) for k in (2, 10)],
    "one folder of numbers": [f"images/{name}" for name in FEW],
    "data_reid around": [
        "data_reid/reid_training/1_0_0.jpeg",
        "data_reid/reid_training/1_0_1.jpeg",
        "data_reid/reid_test/query/2_0_0.jpeg",
        "data_reid/reid_test/gallery/2_0_1.jpeg",
    ],
    "unknown players": ["b.jpg", "a10.jpg", "a9.jpg"],
    "letters before the number": ["ann_1.jpg", "bob_2.jpg"],
    "a name without a number": [*FEW, "cover.jpg"],
    "a number of 22 digits": ["2023010112000012345678_1.jpg", "2023010112000012345678_2.jpg"],
    "a number below -1": ["-2_a.jpg", "-2_b.jpg"],
    "a crop outside the players": [*(f"p{p}/{k}.jpg" for p in PLAYERS for k in (1, 2)), "cover.jpg"],
    "a crop outside the sets": ["query/1_a.jpg", "gallery/1_b.jpg", "extra/1_c.jpg"],
    "a query alone": ["query/1_a.jpg"],
    "a single image": [*(f"p{p}/{k}.jpg" for p in PLAYERS for k in (1, 2)), "p3/1.jpg", "p4/1.jpg"],
    "a player on both sides": ["train/1_a.jpg", "train/1_b.jpg", "test/1_a.jpg", "test/1_b.jpg"],
    "notes and clutter": [*FEW, "notes.txt", ".hidden.jpg", "Thumbs.db", "@eaDir/1_9.jpg"],
    "a GIF": [*FEW, "1_x.gif"],
    "no ending": [*FEW, "1_x"],
    "one id twice": [*FEW, "1_10.png"],
    "other letters": [f"{p} ü 球员/{k} {{0}}.jpg" for p in (1, 2) for k in (1, 2)],
    "Arabic digits": ["١_1.jpg", "١_2.jpg"],
    "alpha": [*FEW, "3_RGBA.png", "3_b.jpg"],
    "16 bit": [*FEW, "3_I;16.png", "3_b.jpg"],
    "CMYK": [*FEW, "3_CMYK.jpg", "3_b.jpg"],
    "grey": [*FEW, "3_L.jpg", "3_b.jpg"],
    "palette": [*FEW, "3_P.png", "3_b.jpg"],
    "another format's ending": [*FEW, "3_TIFF.jpg", "3_b.jpg"],
    "16 bit in training": ["train/3_I;16.png", "train/3_b.jpg", *(f"test/{name}" for name in FEW)],
    "a gallery folder of junk": ["query/1/a.jpg", "gallery/1/b.jpg", "gallery/-1/c.jpg"],
    "sets of an unknown layout": [f"image_{part}/{name}" for part in ("query", "test") for name in FEW],
    "nothing": [],
}
REFUSED = {
    "Synergy without training", "junk in the query", "junk in training", "a name without a number",
    "a number of 22 digits", "a number below -1", "a crop outside the players", "a crop outside the sets",
    "a query alone", "a single image", "a player on both sides", "a GIF", "no ending", "one id twice", "alpha",
    "16 bit", "16 bit in training", "sets of an unknown layout", "CMYK", "grey", "palette",
    "another format's ending", "nothing",
}  # fmt: skip


def _study_takes(folder):
    """What a study ranks of a folder, after its checks of names and images."""
    manifest = load_manifest(folder)
    validate_images(folder, manifest)
    return manifest[manifest["split"] == "test"]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore")
def test_a_study_and_the_command_take_the_same_crops_in_the_same_order_or_refuse_both(weights, tmp_path, name, capsys):
    for number, file in enumerate(ODD[name]):
        path = tmp_path / "set" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = path.stem.partition("_")[2]
        image = Image.fromarray(np.random.default_rng(number).integers(0, 255, (32, 16, 3), dtype=np.uint8))
        mode = kind if kind in ("RGBA", "CMYK", "L", "P") else "RGB"
        image = Image.new("I;16", (16, 32)) if kind == "I;16" else image.convert(mode)
        endings = {".png": "PNG", ".gif": "GIF", ".webp": "WEBP"}
        image.save(path, "TIFF" if kind == "TIFF" else endings.get(path.suffix.lower(), "JPEG"))
    (tmp_path / "set").mkdir(exist_ok=True)
    told = None
    try:
        wanted = _study_takes(tmp_path / "set")
    except (OSError, ValueError) as error:
        told = str(error)
    assert (told is not None) == (name in REFUSED), told
    out = tmp_path / "features.npz"
    if told:
        with pytest.raises(SystemExit) as stopped:
            main([str(weights), str(tmp_path / "set"), str(out)])
        assert stopped.value.code == 1 and capsys.readouterr().err == told + "\n" and not out.exists()
        return
    main([str(weights), str(tmp_path / "set"), str(out)])
    found = load_features(out)
    for role in ("query", "gallery"):
        rows = wanted[wanted["role"] == role]
        assert getattr(found, f"{role}_images").tolist() == rows["image_id"].tolist()
        assert getattr(found, f"{role}_players").tolist() == rows["player"].tolist()
        assert getattr(found, f"{role}_cameras").tolist() == rows["camera"].tolist()
    encoder, _ = trained_encoder(weights)
    first = wanted[wanted["role"] == "query"]["path"].iloc[0]
    features = features_of_files(encoder, tmp_path / "set", [first], flip=True)
    assert found.query[:1] == pytest.approx(features, abs=1e-5)


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
