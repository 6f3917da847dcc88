"""CUHK03 in each of its forms becomes two data sets of people apart, with galleries of equally many people."""

import re
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reid_utils.data.images import decode
from reid_utils.data.integrity import data_fingerprint
from reid_utils.data.manifest import fold_split, load_manifest
from reid_utils.ranking.feature_files import features_of
from reid_utils.ranking.methods import distances_of, score
from reid_utils.ranking.metrics import labels_of
from tools.cuhk03 import NAMES, main, people_of_release, split_people

PEOPLE, IMAGES = 24, 3
SMALL = ["--tested", "8", "--tuning", "4", "--gallery", "4"]


def crop(person, image):
    """Noise that tells which image of whom it is."""
    return np.random.default_rng([person, image]).integers(0, 255, (12, 8, 3), np.uint8)


def put(root, named):
    """Lossless crops by name: {path: (person, image)}."""
    for name, key in named.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(crop(*key)).save(root / name)
    return root


def release(root):
    """A cuhk-03.mat as MATLAB 7.3 lays it out: references to 10 × M references, images with their axes turned."""
    root.mkdir()
    with h5py.File(root / "cuhk-03.mat", "w") as file:

        def stored(value):
            name = f"#refs#/{len(file.get('#refs#', ()))}"
            file[name] = value
            return file[name].ref

        def matrix(references):
            return np.array(references, h5py.ref_dtype)

        seen = {0: 0, 3: 1, 7: 2}  # the other seven are missing
        pairs = []
        for people in np.split(np.arange(PEOPLE), [12, 18, 20, 23]):
            cells = [
                [stored(crop(p, seen[row]).T if row in seen else np.zeros(2, np.uint64)) for p in people]
                for row in range(10)
            ]
            pairs.append(stored(matrix(cells)))
        file["labeled"] = matrix([pairs])
        file["detected"] = matrix([[stored(matrix([[cells[0][0]] * 40] * 10))]])
    return root / "cuhk-03.mat"


def new_protocol(root):
    """CUHK03-NP: its test people lie in two folders, and are people like the others here."""
    named = {f"bounding_box_train/{p + 1:04d}_c{1 + k % 2}_{k}.png": (p, k) for p in range(14) for k in range(IMAGES)}
    named |= {f"query/{p + 1:04d}_c1_0.png": (p, 0) for p in range(14, PEOPLE)}
    named |= {f"bounding_box_test/{p + 1:04d}_c2_{k}.png": (p, k) for p in range(14, PEOPLE) for k in (1, 2)}
    return put(root, named)


def folders(root):
    return put(root, {f"person {p}/{k}.png": (p, k) for p in range(PEOPLE) for k in range(IMAGES)})


def flat(root):
    return put(root, {f"{p:04d}_{k:02d}.png": (p, k) for p in range(PEOPLE) for k in range(IMAGES)})


def flat_in_parts(root):
    """The public copy's form: numbers begin anew in val, and other folders lie beside."""
    named = {f"train/{p:04d}_{k:02d}.png": (p, k) for p in range(14) for k in range(IMAGES)}
    named |= {f"val/{p - 14:04d}_{k:02d}.png": (p, k) for p in range(14, PEOPLE) for k in range(IMAGES)}
    return put(root, named | {"train_resized/0000_00.png": (99, 0)})


FORMS = [release, new_protocol, folders, flat, flat_in_parts]


def make(source, folder, *options):
    main([str(source), str(folder), *SMALL, *options])
    return {name: load_manifest(folder / place) for name, place in NAMES.items()}


def people_in(manifest, split):
    return set(manifest.loc[manifest["split"] == split, "player"])


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_people_whole_in_three_sets_apart(form, tmp_path):
    made = make(form(tmp_path / "source"), tmp_path / "made")
    known = {crop(person, image).tobytes(): person for person in range(PEOPLE) for image in range(IMAGES)}
    sets = {name: people_in(manifest, "test") for name, manifest in made.items()}
    sets["training"] = people_in(made["tested"], "train")
    assert {name: len(people) for name, people in sets.items()} == {"tested": 8, "tuning": 4, "training": 12}
    assert len(set().union(*sets.values())) == PEOPLE and people_in(made["tuning"], "train") == sets["training"]
    for name, manifest in made.items():
        person = [known[decode(tmp_path / "made" / NAMES[name] / path).tobytes()] for path in manifest["path"]]
        seen = manifest.assign(person=person).groupby("player")["person"].agg(["nunique", "size"])
        assert (seen == [1, IMAGES]).all(axis=None)
    about = pd.read_csv(tmp_path / "made" / "people.csv", index_col="player")
    assert {name: set(rows.index) for name, rows in about.groupby("set")} == sets
    assert about["source"].nunique() == PEOPLE and about["images"].eq(IMAGES).all()


def test_the_first_image_is_the_query_and_training_players_make_folds(tmp_path):
    made = make(flat(tmp_path / "source"), tmp_path / "made")["tested"]
    query = made.query("role == 'query'")
    first = {crop(person, 0).tobytes() for person in range(PEOPLE)}
    assert all(decode(tmp_path / "made/CUHK03" / path).tobytes() in first for path in query["path"])
    training, *held_out = fold_split(made, 0)
    assert not set(training["player"]) & set(pd.concat(held_out)["player"])


def test_people_csv_says_who_is_who_in_the_source(tmp_path):
    source = folders(tmp_path / "source")
    made = make(source, tmp_path / "made")["tested"].query("role == 'query'").set_index("player")["path"]
    about = pd.read_csv(tmp_path / "made" / "people.csv", index_col="player")["source"]
    for player, path in made.items():
        assert (source / about[player]).read_bytes() == (tmp_path / "made/CUHK03" / path).read_bytes()


def test_training_images_lie_on_the_disk_once_where_it_has_hard_links(tmp_path, monkeypatch):
    make(flat(tmp_path / "source"), tmp_path / "made")
    one, other = (sorted((tmp_path / "made" / name / "reid_training").iterdir()) for name in NAMES.values())
    assert len(one) == 12 * IMAGES and all(map(lambda a, b: a.samefile(b), one, other))

    def refuse(source, target):
        raise PermissionError("no hard links")

    monkeypatch.setattr("os.link", refuse)
    make(tmp_path / "source", tmp_path / "copied")
    copied = sorted((tmp_path / "copied/CUHK03-tuning/reid_training").iterdir())
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in other]


def test_the_detectors_crops_are_another_set_of_the_release(tmp_path):
    source = release(tmp_path / "source")
    assert sorted(map(len, people_of_release(source).values())) == [IMAGES] * PEOPLE
    assert sorted(map(len, people_of_release(source, "detected").values())) == [10] * 40


def test_the_split_is_the_seeds_and_the_tested_people_stay_whoever_else_is_taken():
    first = split_people(900)
    assert {name: people.tolist() for name, people in split_people(900).items()} == {
        name: people.tolist() for name, people in first.items()
    }
    assert first["tested"][:5].tolist() == [578, 713, 771, 799, 37]
    assert set(split_people(900, seed=1)["tested"]) != set(first["tested"])
    fewer = split_people(900, tuning=50, train=200)
    assert fewer["tested"].tolist() == first["tested"].tolist()
    assert [len(people) for people in fewer.values()] == [300, 50, 200]
    assert sorted(np.concatenate(list(first.values()))) == list(range(1, 901))


def test_a_query_is_ranked_among_the_people_of_its_gallery_alone(tmp_path):
    source = flat(tmp_path / "source")
    grouped = make(source, tmp_path / "made")["tested"].query("split == 'test'")
    sizes = grouped.groupby(["group", "role"])["player"].nunique()
    assert sizes.to_dict() == {(group, role): 4 for group in (1, 2) for role in ("gallery", "query")}
    whole = make(source, tmp_path / "whole", "--gallery", "0")["tested"].query("split == 'test'")
    assert whole["path"].tolist() == grouped["path"].tolist() and not whole["group"].any()
    place = grouped["player"].map(dict(zip(grouped["player"].unique(), range(8), strict=True)))
    # People of two galleries look alike: who is ranked among all loses to the double of the other gallery.
    double = grouped.groupby("group")["player"].rank("dense").to_numpy(int) - 1
    features = np.eye(4)[double] + 1e-3 * np.random.default_rng(0).normal(size=(len(place), 4))
    means = []
    for rows in (grouped, whole):
        model = features_of(rows, features.astype(np.float32))
        means.append(score(distances_of(model), *labels_of(model))["mAP"])
    assert means[0] == 1 and means[1] < 0.95


def test_groups_are_part_of_the_data_sets_identity(tmp_path):
    source = flat(tmp_path / "source")
    make(source, tmp_path / "made")
    make(source, tmp_path / "whole", "--gallery", "0")
    assert data_fingerprint(tmp_path / "made/CUHK03") != data_fingerprint(tmp_path / "whole/CUHK03")


def test_people_of_one_image_are_left_out_with_a_line(tmp_path, capsys):
    source = put(flat(tmp_path / "source"), {"0100_00.png": (100, 0)})
    made = make(source, tmp_path / "made")
    assert "fewer than two images: 1 people (first: 0100_00.png)" in capsys.readouterr().out
    assert len(people_in(made["tested"], "train")) == 12


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "flat",
            ["--tested", "20"],
            "24 people do not part into 20 tested, 4 tuning, 0 training: change",
        ),
        ("flat", ["--train", "13"], "24 people do not part into 8 tested, 4 tuning, 13 training"),
        ("flat", ["--gallery", "3"], "8 people tested do not part into galleries of 3"),
        ("flat", ["--gallery", "-4"], "galleries of -4"),
        ("nobody", [], "no name in .*nobody tells a person: name crops person_image"),
        ("old.mat", [], "old.mat is no MATLAB 7.3 file: give cuhk-03.mat"),
        ("other.mat", [], "other.mat holds no 'labeled', only ..x..: give cuhk-03.mat"),
        ("nowhere", [], "nowhere holds no "),
    ],
)
def test_what_cannot_be_split_is_one_line_and_leaves_nothing(tmp_path, capsys, source, options, message):
    flat(tmp_path / "flat")
    put(tmp_path / "nobody", {"a.png": (0, 0), "b.png": (0, 1)})
    (tmp_path / "old.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["x"] = 1
    with pytest.raises(SystemExit) as stopped:
        main([str(tmp_path / source), str(tmp_path / "made"), *SMALL, *options])
    found = capsys.readouterr().err
    assert stopped.value.code == 1 and re.search(message, found) and found.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, capsys):
    source = flat(tmp_path / "source")
    make(source, tmp_path / "made")
    before = sorted((tmp_path / "made").rglob("*"))
    with pytest.raises(SystemExit):
        main([str(source), str(tmp_path / "made"), *SMALL])
    assert "made is not empty: give a new folder or remove it" in capsys.readouterr().err
    assert sorted((tmp_path / "made").rglob("*")) == before


def test_only_the_release_needs_h5py(tmp_path, monkeypatch, capsys):
    source = release(tmp_path / "source")
    monkeypatch.setitem(sys.modules, "h5py", None)
    make(flat(tmp_path / "flat"), tmp_path / "made")
    with pytest.raises(SystemExit):
        main([str(source), str(tmp_path / "other")])
    assert "read with h5py, which is not installed: pip install h5py" in capsys.readouterr().err
