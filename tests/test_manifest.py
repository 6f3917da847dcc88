"""A folder in the Synergy layout: manifest, folds, counts, image checks, fingerprint, challenge truth."""

import io
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_utils.data import integrity
from reid_utils.data import manifest as manifests

PKU = Path(__file__).resolve().parents[2] / "shared" / "data" / "pku_reid" / "data_reid"
JPEG = cv2.imencode(".jpeg", np.random.default_rng(0).integers(0, 255, (24, 12, 3), np.uint8))[1].tobytes()


def put(root, *names, data=JPEG):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)


@pytest.fixture
def data(tmp_path):
    """Two training players a sequence over ten sequences, two test players, three challenge images."""
    root = tmp_path / "set"
    put(root, *(f"reid_training/{p:03d}_{p // 2:03d}_{f:02d}.jpeg" for p in range(20) for f in range(3)))
    put(root, *(f"reid_test/query/{p}_050_00.jpeg" for p in (101, 102)))
    put(root, *(f"reid_test/gallery/{p}_050_{f:02d}.jpeg" for p in (102, 101) for f in (2, 1)))
    put(
        root, "reid_challenge/query/00007.jpeg", "reid_challenge/gallery/00012.jpeg", "reid_challenge/gallery/00003.jpg"
    )
    return root


def test_manifest_has_a_sorted_row_for_every_image(data):
    manifest = manifests.load_manifest(data)
    assert list(manifest.columns) == manifests.COLUMNS
    assert manifest["path"].tolist()[-9:] == [
        "reid_test/query/101_050_00.jpeg", "reid_test/query/102_050_00.jpeg",
        "reid_test/gallery/101_050_01.jpeg", "reid_test/gallery/101_050_02.jpeg",
        "reid_test/gallery/102_050_01.jpeg", "reid_test/gallery/102_050_02.jpeg",
        "reid_challenge/query/00007.jpeg", "reid_challenge/gallery/00003.jpg", "reid_challenge/gallery/00012.jpeg",
    ]  # fmt: skip
    row = manifest.iloc[7].to_dict()
    assert (row["image_id"], row["split"], row["role"]) == ("002_001_01", "train", "train")
    assert (row["player"], row["sequence"], row["frame"], row["camera"]) == (2, 1, 1, 0)
    hidden = manifest[manifest["split"] == "challenge"]
    assert (hidden[["player", "sequence", "frame", "fold"]] == -1).all(axis=None)
    assert hidden["camera"].tolist() == [0, 1, 1]
    for column in ("player", "sequence", "frame", "fold", "camera"):
        assert manifest[column].dtype == np.int64


def test_images_are_ordered_by_the_numbers_in_their_names(data):
    """As published code and toolkit do; `hard in place` depends on it."""
    shutil.rmtree(data / "reid_challenge")
    put(data, *(f"reid_challenge/{role}/{k}.jpeg" for role in ("query", "gallery") for k in (10, 100, 2, 862)))
    put(data, *(f"reid_test/{role}/{p}_{s}_{f}.jpeg" for p in (3000, 200) for s in (50, 6)
                for role, f in (("query", 0), ("gallery", 10), ("gallery", 9))))  # fmt: skip
    manifest = manifests.load_manifest(data)
    for role in ("query", "gallery"):
        rows = manifest[(manifest["split"] == "challenge") & (manifest["role"] == role)]
        assert rows["image_id"].tolist() == ["2", "10", "100", "862"]
    gallery = manifest[(manifest["split"] == "test") & (manifest["role"] == "gallery")]
    assert gallery["image_id"].tolist()[4:] == [
        "200_6_9", "200_6_10", "200_50_9", "200_50_10", "3000_6_9", "3000_6_10", "3000_50_9", "3000_50_10",
    ]  # fmt: skip
    ids = [(role, k) for role in ("query", "gallery") for k in (862, 2, 100, 10)]
    (data / "challenge_truth.csv").write_text("split,id,pid\n" + "".join(f"{r},{k},{k + 1}\n" for r, k in ids))
    assert manifests.challenge_truth(data)["player"].tolist() == [3, 11, 101, 863] * 2


def test_manifest_does_not_depend_on_file_system_order(data, monkeypatch):
    expected = manifests.load_manifest(data)
    walk = os.walk

    def backwards(*given, **settings):
        for place, folders, names in walk(*given, **settings):
            folders.reverse()
            yield place, folders, names[::-1]

    monkeypatch.setattr(os, "walk", backwards)
    pd.testing.assert_frame_equal(manifests.load_manifest(data), expected)


def test_a_folder_around_data_reid_is_taken_and_paths_still_open(data, tmp_path):
    data.rename(tmp_path / "data_reid")
    manifest = manifests.load_manifest(tmp_path)
    assert all((tmp_path / path).is_file() for path in manifest["path"])
    integrity.validate_images(tmp_path, manifest)


def test_challenge_is_optional_and_files_of_operating_systems_are_passed_over(data, tmp_path):
    shutil.rmtree(data / "reid_challenge")
    before = integrity.data_fingerprint(data)
    for name in (".DS_Store", "._001_000_02.jpeg", "Thumbs.db", "Desktop.ini"):
        (data / "reid_training" / name).write_bytes(b"x")
    (data / "reid_test/query/__MACOSX").mkdir()
    assert integrity.data_fingerprint(data) == before
    manifest = manifests.load_manifest(data)
    assert set(manifest["split"]) == {"train", "test"} and len(manifest) == 66


@pytest.mark.parametrize("folder", ["reid_training", "reid_test", "reid_test/gallery", "reid_challenge/query"])
def test_a_missing_folder_is_named(data, folder):
    shutil.rmtree(data / folder)
    with pytest.raises(FileNotFoundError, match=folder):
        manifests.load_manifest(data)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reid_training/7_1.jpeg", r"7_1\.jpeg is not named \{player\}_\{sequence\}_\{frame\}\.jpeg"),
        ("reid_training/7 _1_2.jpeg", r"7 _1_2\.jpeg is not named"),
        ("reid_training/٧_1_2.jpeg", r"٧_1_2\.jpeg is not named"),
        ("reid_training/1_0_3.jpeg\u2028", r"1_0_3\.jpeg.* is not named"),
        ("reid_training/1234567890_0_2.jpeg", r"1234567890_0_2\.jpeg is not named"),
        ("reid_training/001_000_03.tif", r"001_000_03\.tif is not named"),
        ("reid_training/001_000_02.png", r"001_000_02\.jpeg and .*001_000_02\.png have the same player"),
        ("reid_challenge/query/a1.jpeg", r"a1\.jpeg is not named \{image_id\}\.jpeg"),
        ("reid_training/1_0_2.jpeg", r"001_000_02\.jpeg and .*1_0_2\.jpeg have the same player, sequence and frame"),
        ("reid_test/gallery/101_50_0.jpg", "have the same player, sequence and frame"),
        ("reid_challenge/gallery/12.jpeg", r"00012\.jpeg and .*12\.jpeg have the same image id"),
        ("reid_test/gallery/005_050_01.jpeg", r"player 5 is in both reid_training/\S+ and reid_test/"),
        ("reid_training/200_000_00.jpeg", "player 200 has a single training image"),
    ],
)
def test_a_wrong_file_is_named(data, name, message):
    put(data, name)
    with pytest.raises(ValueError, match=message) as caught:
        manifests.load_manifest(data)
    assert "\n" not in str(caught.value)


def test_png_and_upper_case_endings_are_taken(data):
    put(data, "reid_training/001_000_07.JPG", "reid_training/001_000_08.PNG", data=JPEG)
    put(data, "reid_training/001_000_09.webp", data=_encoded("RGB", "WEBP"))
    (data / "reid_training/001_000_08.PNG").write_bytes(_encoded("RGB", "PNG"))
    manifest = manifests.load_manifest(data)
    integrity.validate_images(data, manifest)
    assert {"001_000_07", "001_000_08"} <= set(manifest["image_id"])


def test_an_empty_folder_is_an_error(data):
    shutil.rmtree(data / "reid_test/query")
    (data / "reid_test/query").mkdir()
    with pytest.raises(FileNotFoundError, match=r"reid_test/query is missing or empty"):
        manifests.load_manifest(data)


def test_a_query_without_gallery_is_kept_with_a_warning(data):
    put(data, "reid_test/query/103_050_00.jpeg")
    with pytest.warns(UserWarning, match="first: player 103"):
        manifest = manifests.load_manifest(data)
    assert 103 in set(manifest["player"])


def test_cameras_csv_replaces_the_convention_for_the_splits_it_covers(data):
    names = [f"reid_test/{r}/{p}_050_{f:02d}.jpeg" for p in (101, 102) for r, f in [("query", 0), ("gallery", 1)]]
    rows = [f"{name},{i + 3}" for i, name in enumerate(names)]
    (data / "cameras.csv").write_text("\n".join(["path,camera", *rows]))
    with pytest.raises(ValueError, match=r"no camera for reid_test/gallery/101_050_02\.jpeg"):
        manifests.load_manifest(data)
    rows += [f"reid_test/gallery/{p}_050_02.jpeg,9" for p in (101, 102)]
    (data / "cameras.csv").write_text("\n".join(["path,camera", *rows]))
    manifest = manifests.load_manifest(data)
    assert manifest.loc[manifest["split"] == "test", "camera"].tolist() == [3, 5, 4, 9, 6, 9]
    assert manifest.loc[manifest["split"] == "challenge", "camera"].tolist() == [0, 1, 1]
    (data / "cameras.csv").write_bytes("\ufeff".encode() + "\n".join(["path;camera", *rows]).replace(",", ";").encode())
    pd.testing.assert_frame_equal(manifests.load_manifest(data), manifest)
    (data / "cameras.csv").write_text("\n".join(["path,camera", *rows, "reid_test/query/nobody.jpeg,1"]))
    with pytest.raises(ValueError, match="nobody"):
        manifests.load_manifest(data)


@pytest.mark.parametrize("beside", [False, True])
def test_groups_csv_gives_test_images_their_gallery(data, beside):
    source = (data.parent if beside else data) / "groups.csv"
    names = [f"reid_test/{r}_050_{f:02d}.jpeg" for r, f in [("query/101", 0), ("gallery/101", 1), ("gallery/101", 2)]]
    names += [name.replace("/101", "/102") for name in names]
    rows = [f"{name},{1 if '/101' in name else 7}" for name in names]
    source.write_text("\n".join(["path,group", *rows]))
    manifest = manifests.load_manifest(data)
    assert manifest.loc[manifest["split"] == "test", "group"].tolist() == [1, 7, 1, 1, 7, 7]
    assert not manifest.loc[manifest["split"] != "test", "group"].any()
    source.write_text("\n".join(["path,group", *rows[1:]]))
    with pytest.raises(ValueError, match=r"groups\.csv gives no group for reid_test/query/101_050_00\.jpeg"):
        manifests.load_manifest(data)
    source.write_text("\n".join(["path,camera", *rows]))
    with pytest.raises(ValueError, match="needs path and group"):
        manifests.load_manifest(data)


@pytest.mark.parametrize("name", ["cameras.csv", "challenge_truth.csv", "groups.csv"])
@pytest.mark.parametrize(
    "content",
    [b"", b"path,camera\n\xe9,1\n", b'path,player\n"a,1\n', b"path,camera\nx,1,2\n", b"path,player\nx,1\ny,2,3\n"],
)
def test_side_files_that_are_no_csv_are_named(data, name, content):
    (data / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is no readable CSV") as caught:
        manifests.challenge_truth(data) if name == "challenge_truth.csv" else manifests.load_manifest(data)
    assert "\n" not in str(caught.value)


def test_folders_with_spaces_and_other_letters_are_nothing_special(data, tmp_path):
    moved = data.rename(tmp_path / "set ü {0} 球员")
    manifest = manifests.load_manifest(moved)
    integrity.validate_images(moved, manifest)
    assert len(manifest) == 69


def test_folds_never_split_a_sequence_and_cover_training(data):
    manifest = manifests.load_manifest(data)
    train = manifest[manifest["split"] == "train"]
    assert (train.groupby("sequence")["fold"].nunique() == 1).all()
    assert sorted(set(train["fold"])) == list(range(10))
    before = manifest.copy()
    assert set(manifests.assign_folds(manifest, 2)["fold"]) == {-1, 0, 1}
    pd.testing.assert_frame_equal(manifest, before)


def test_held_out_fold_has_frame_00_as_query_and_a_matchable_gallery(data):
    manifest = manifests.load_manifest(data)
    train, query, gallery = manifests.fold_split(manifest, 4)
    assert len(train) == 54 and len(query) == 2 and len(gallery) == 4
    assert not set(train["sequence"]) & set(query["sequence"])
    assert set(query["frame"]) == {0} and set(gallery["frame"]) == {1, 2}
    assert set(query["role"]) == {"query"} and set(gallery["role"]) == {"gallery"}
    # Equal cameras would make every match junk.
    assert set(query["camera"]).isdisjoint(gallery["camera"])
    with pytest.raises(ValueError, match=r"no fold 10: the folds are \[0, 1, .* 9\]"):
        manifests.fold_split(manifest, 10)


def test_few_sequences_warn_and_one_fails_only_when_a_fold_is_asked_for(data):
    manifest = manifests.load_manifest(data)
    few = manifest[~manifest["sequence"].isin(range(3, 10))]
    with pytest.warns(UserWarning, match="3 sequences, so 3 folds instead of 4"):
        assert set(manifests.assign_folds(few, 4)["fold"]) == {-1, 0, 1, 2}
    for file in (data / "reid_training").iterdir():
        file.rename(file.with_name(file.name[:4] + "000" + file.name[7:]))
    one = manifests.load_manifest(data)
    with pytest.raises(ValueError, match="at least 2 sequences"):
        manifests.fold_split(one, 0)


def test_a_player_on_both_sides_of_a_fold_is_reported(data):
    put(data, "reid_training/003_007_00.jpeg")
    with pytest.warns(UserWarning, match="player 3 falls into more than one fold"):
        manifests.load_manifest(data)


def published_manifest(query=618, gallery=9505):
    sizes = [("train", "train", 8569, 436), ("test", "query", 50, 50), ("test", "gallery", 910, 50),
             ("challenge", "query", query, 0), ("challenge", "gallery", gallery, 0)]  # fmt: skip
    parts = [{"split": s, "role": r, "player": i % n if n else -1} for s, r, size, n in sizes for i in range(size)]
    return pd.DataFrame(parts)


def test_counts_are_compared_with_both_published_years():
    assert manifests.check_counts(published_manifest()).endswith("equal those of Synergy Re-ID with the 2023 challenge")
    assert "2022" in manifests.check_counts(published_manifest(468, 8703))
    line = manifests.check_counts(published_manifest().iloc[1:])
    assert "differ" in line and "training 8568 images of 436 players instead of 8569" in line and ";" not in line
    table = manifests.counts(published_manifest())
    assert table["images"].tolist() == [8569, 50, 910, 618, 9505]
    assert table["identities"].tolist()[:3] == [436, 50, 50] and table["identities"][3:].isna().all()


def test_a_set_is_the_published_one_by_its_counts_and_not_by_its_folders_name(data):
    assert manifests.published_year(published_manifest()) == 2023
    assert manifests.published_year(published_manifest(468, 8703)) == 2022
    manifest = manifests.load_manifest(data)
    assert manifests.published_year(manifest) is None and manifests.set_name(data, manifest) == "set"
    assert manifests.set_name(data, published_manifest()) == "Synergy, challenge 2023"


def test_notebook_01_copes_with_the_smallest_set(tmp_path):
    put(tmp_path / "set", *(f"reid_training/1_0_{f}.jpeg" for f in range(2)))
    put(tmp_path / "set", "reid_test/query/2_1_0.jpeg", "reid_test/gallery/2_1_1.jpeg")
    notebooks = Path(__file__).resolve().parents[1] / "notebooks"
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--no-progress-bar",
        "01_data_exploration.ipynb",
        tmp_path / "o.ipynb",
    ]
    command += ["-p", "data", tmp_path / "set", "-p", "out", tmp_path / "out"]
    done = subprocess.run(command, cwd=notebooks, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(list((tmp_path / "out/figures").glob("*.png"))) == 3


def _encoded(mode, kind):
    content = io.BytesIO()
    Image.new(mode, (8, 8)).save(content, kind)
    return content.getvalue()


BAD_IMAGES = {
    "colour mode CMYK": _encoded("CMYK", "JPEG"),
    "colour mode 16-bit I;16": _encoded("I;16", "PNG"),
    "colour mode RGBA": _encoded("RGBA", "PNG"),
    "is not a JPEG, PNG, BMP or WebP file: fetch": _encoded("RGB", "TIFF"),
    "colour mode 16-bit RGB": cv2.imencode(".png", np.zeros((8, 8, 3), np.uint16))[1].tobytes(),
    "truncated": JPEG[:-40],
    "colour mode L": cv2.imencode(".jpeg", np.zeros((8, 8), np.uint8))[1].tobytes(),
    "is not a JPEG, PNG, BMP or WebP file": b"",
    "is not a JPEG": JPEG[:4] + bytes(60),
}


@pytest.mark.parametrize("message", BAD_IMAGES)
@pytest.mark.parametrize("workers", [1, 3])
def test_the_first_bad_image_is_named(data, message, workers):
    put(data, "reid_training/004_002_01.jpeg", "reid_test/query/101_050_00.jpeg", data=BAD_IMAGES[message])
    with pytest.raises(ValueError, match=rf"004_002_01\.jpeg.*{message}"):
        integrity.validate_images(data, manifests.load_manifest(data), workers)


def test_an_enormous_image_is_refused_before_it_is_decoded(data):
    at = JPEG.index(b"\xff\xc0") + 5
    put(data, "reid_training/000_000_00.jpeg", data=JPEG[:at] + b"\x2f\xff\x2f\xff" + JPEG[at + 4 :])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=r"000_000_00.*64 Mpixel"):
            integrity.validate_images(data, manifests.load_manifest(data))


def test_fingerprint_follows_content_names_and_cameras_alone(data, tmp_path):
    def fingerprint(folder=data):
        return integrity.data_fingerprint(folder)

    first = fingerprint()
    shutil.copytree(data, tmp_path / "moved" / "data_reid")
    assert fingerprint(tmp_path / "moved") == first
    (data / "challenge_truth.csv").write_text("path,image_id,player\n")
    assert fingerprint() == first
    (data / "cameras.csv").write_text("path,camera\n")
    with_cameras = fingerprint()
    assert with_cameras != first
    (data.parent / "groups.csv").write_text("path,group\n")
    with_groups = fingerprint()
    assert with_groups not in (first, with_cameras)
    (data.parent / "groups.csv").unlink()
    put(data, "reid_training/004_002_01.jpeg", data=JPEG[:-3] + b"a" + JPEG[-2:])
    changed = fingerprint()
    assert changed not in (first, with_cameras)
    (data / "reid_challenge/query/00007.jpeg").rename(data / "reid_challenge/query/00008.jpeg")
    assert fingerprint() not in (first, with_cameras, changed)


def test_a_folder_whose_name_is_no_utf_8_has_the_fingerprint_of_its_content(data, tmp_path):
    shutil.copytree(data, tmp_path / "\udcff" / "data_reid")
    assert integrity.data_fingerprint(tmp_path / "\udcff") == integrity.data_fingerprint(data)


TRUTHS = {
    "as rendered": (
        "path,image_id,player\nreid_challenge/gallery/00003.jpg,00003,6\n"
        "reid_challenge/gallery/00012.jpeg,00012,5\nreid_challenge/query/00007.jpeg,00007,5\n"
    ),
    "by ids": "split,id,pid,frame\nquery,7,5,0\ngallery,3,6,1\ngallery,12,5,2\n",
}


@pytest.mark.parametrize("form", TRUTHS)
@pytest.mark.parametrize("beside", [False, True])
def test_challenge_truth_reads_both_forms_in_manifest_order(data, form, beside):
    assert manifests.challenge_truth(data) is None
    (data.parent if beside else data).joinpath("challenge_truth.csv").write_text(TRUTHS[form])
    truth = manifests.challenge_truth(data)
    assert truth.to_dict("list") == {
        "image_id": ["00007", "00003", "00012"], "player": [5, 6, 5], "role": ["query", "gallery", "gallery"],
    }  # fmt: skip
    manifest = manifests.load_manifest(data)
    assert truth["image_id"].tolist() == manifest.loc[manifest["split"] == "challenge", "image_id"].tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "needs path and player"),
        (TRUTHS["by ids"] + "gallery,13,5,1\n", "names gallery/13, which is no image here"),
        (TRUTHS["by ids"][:-15], "gives no player for gallery/12"),
        (TRUTHS["by ids"] + "query,7,6,0\n", "two rows"),
        (TRUTHS["by ids"] + "train,8,6,0\n", "names train/8, which"),
        (TRUTHS["by ids"].replace("7,5", "7,x"), "gives no player for query/7"),
    ],
)
def test_wrong_challenge_truth_is_an_error(data, text, message):
    (data / "challenge_truth.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        manifests.challenge_truth(data)


@pytest.mark.skipif(not PKU.is_dir(), reason="the real crops of ../shared are absent")
def test_real_crops_load_whole(tmp_path):
    manifest = manifests.load_manifest(PKU)
    assert len(manifest) == 1184 and manifest.loc[manifest["split"] == "train", "player"].nunique() == 44
    integrity.validate_images(PKU, manifest, workers=2)
    assert len(manifests.challenge_truth(PKU)) == 240
