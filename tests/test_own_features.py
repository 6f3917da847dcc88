"""Feature files and distance CSVs of one's own: what is read, what is left out, and notebooks 03 and 04 on them."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io
import torch
from conftest import ROOT
from PIL import Image

from reid_utils.ranking import write_distance_csv
from reid_utils.ranking.feature_files import load_features, load_folder, load_models, same_images, scorable
from reid_utils.ranking.methods import score_features, write_entry
from reid_utils.ranking.statistics import mean_interval
from reid_utils.views.explorer import named_reader

QUERY, GALLERY = np.array([0, 1]), np.array([0, 1, 1])


def save(path, query=QUERY, gallery=GALLERY, **changes):
    rng = np.random.default_rng(len(path.stem))
    sides = {"query": rng.normal(size=(len(query), 4)), "gallery": rng.normal(size=(len(gallery), 4))}
    np.savez(path, **(sides | {"query_players": query, "gallery_players": gallery} | changes))
    return path


def test_what_file_managers_leave_behind_is_passed_over(tmp_path):
    save(tmp_path / "b.npz")
    save(tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    for name in ("._b.npz", "._c.csv", ".DS_Store", "Thumbs.db", "desktop.ini", "checkpoint.pt"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    for name in ("@eaDir", "__MACOSX"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "b.npz")
    write_distance_csv(tmp_path / "c.csv", np.ones((2, 3)), QUERY, GALLERY)
    (tmp_path / "c.csv").rename(tmp_path / "c.CSV")
    assert list(load_folder(tmp_path)) == ["a", "b", "c"]
    save(tmp_path / "c.npz")
    with pytest.raises(ValueError, match=r"c\.CSV and another file there share the name c; rename"):
        load_folder(tmp_path)


@pytest.mark.parametrize("kind", ["cameras", "groups"])
def test_cameras_and_groups_are_of_both_sides_and_of_each_image(tmp_path, kind):
    sides = {f"query_{kind}": np.array([1, 2]), f"gallery_{kind}": np.array([1, 2, 2])}
    read = load_features(save(tmp_path / "mine.npz", **sides))
    assert all((getattr(read, name) == labels).all() for name, labels in sides.items())
    for name, labels in sides.items():
        with pytest.raises(ValueError, match=rf"mine\.npz has {name} only; give the {kind} of both sides or of none"):
            load_features(save(tmp_path / "mine.npz", **{name: labels}))
        with pytest.raises(ValueError, match=rf"mine\.npz: {name} has shape \(1,\); it needs an entry a row"):
            load_features(save(tmp_path / "mine.npz", **sides | {name: labels[:1]}))


def test_groups_of_two_kinds_are_refused(tmp_path):
    groups = {"query_groups": np.array(["1", "2"]), "gallery_groups": np.array([1, 2, 2])}
    with pytest.raises(ValueError, match=r"mine\.npz: query_groups are text, gallery_groups whole numbers"):
        load_features(save(tmp_path / "mine.npz", **groups))


def test_players_of_two_kinds_are_refused_by_file(tmp_path):
    with pytest.raises(ValueError, match=r"mine\.npz: query_players are text, gallery_players whole numbers"):
        load_features(save(tmp_path / "mine.npz", query_players=np.array(["0", "1"])))
    numbers, names = (load_features(save(tmp_path / f"{name}.npz")) for name in ("numbers", "names"))
    names = replace(names, **{side: getattr(names, side).astype(str) for side in ("query_players", "gallery_players")})
    with pytest.raises(ValueError, match="query ids of players of numbers are whole numbers, of players of names text"):
        same_images({"numbers": numbers, "names": names})


def test_what_one_file_knows_about_the_images_holds_for_the_others(tmp_path):
    sides = {"query_images": ["q0", "q1"], "gallery_images": ["g0", "g1", "g2"]}
    sides |= {"query_groups": [1, 2], "gallery_groups": [1, 2, 2]}
    bare = load_features(save(tmp_path / "bare.npz"))
    named = load_features(save(tmp_path / "named.npz", **{name: np.array(of) for name, of in sides.items()}))
    for models in ({"bare": bare, "named": named}, {"named": named, "bare": bare}):
        found = same_images(models)
        assert all(np.array_equal(getattr(model, name), of) for model in found.values() for name, of in sides.items())
        assert found["bare"].query_cameras is None and found["bare"].query is bare.query
    other = replace(named, gallery_images=np.array(["g0", "g9", "g2"]))
    with pytest.raises(ValueError, match="images of other has gallery id g9 at position 1, images of named has g1"):
        same_images({"bare": bare, "named": named, "other": other})
    other = replace(named, query_groups=np.array([1, 1]))
    with pytest.raises(ValueError, match="groups of other has query id 1 at position 1, groups of named has 2"):
        same_images({"named": named, "other": other})


def test_labels_as_matlab_writes_them_are_taken(tmp_path):
    labels = {"query_players": QUERY[None], "gallery_players": GALLERY[None]}
    read = load_features(save(tmp_path / "mine.npz", **labels, gallery_images=np.array([["a", "b", "c"]])))
    assert read.query_players.tolist() == [0, 1] and read.gallery_images.tolist() == ["a", "b", "c"]
    assert load_features(save(tmp_path / "mine.npz", query_players=QUERY[:, None])).query_players.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"query_players has shape \(1,\); it needs an entry a row"):
        load_features(save(tmp_path / "mine.npz", query_players=QUERY[:1]))


def test_a_hidden_split_is_left_out_with_a_warning_and_never_scored(tmp_path):
    save(tmp_path / "test.npz")
    save(tmp_path / "challenge.npz", query_players=np.array([-1, -1]), gallery_players=np.array([-1, -1, -1]))
    models = load_folder(tmp_path)
    with pytest.warns(UserWarning, match="all query players of challenge are unknown .-1., a hidden split: it is not"):
        assert list(scorable(models)) == ["test"]
    with pytest.raises(ValueError, match="hidden split: it is not scored; give a set with known players"):
        scorable({"challenge": models["challenge"]})
    with pytest.raises(ValueError, match="nothing to score"):
        score_features(models["challenge"])


def test_an_entry_is_the_fusion_of_means_over_seeds(tmp_path):
    for folder in ("a", "b"):
        for seed in (0, 1):
            (tmp_path / folder / f"seed{seed}").mkdir(parents=True)
            for name in ("test", "challenge") if (folder, seed) != ("b", 1) else ("test",):
                save(tmp_path / folder / f"seed{seed}" / f"{name}.npz")
    models = load_models({"first": tmp_path / "a", "second": tmp_path / "b"}, [0, 1])
    assert list(models) == ["test"] and [list(seed) for seed in models["test"]] == [["first", "second"]] * 2
    entries = write_entry(tmp_path, models, "none", "similarity")
    assert sorted(path.name for path in tmp_path.glob("*.csv")) == ["test.csv", "test_plain.csv"]
    sides = [(model.query, model.gallery) for seed in models["test"] for model in seed.values()]
    expected = np.mean([((query[:, None] - gallery[None]) ** 2).sum(axis=2) for query, gallery in sides], axis=0)
    np.testing.assert_allclose(entries["test"], expected, rtol=1e-5)


def _execute(notebook, features, folder, **parameters):
    """The values in results.json of notebook 03 or 04 on a folder of files."""
    done = str(folder / "done.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"{notebook}.ipynb", done]
    command += ["-p", "features", str(features), "-p", "out", str(folder / "out")]
    command += [text for name, value in parameters.items() for text in ("-p", name, value)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT / "notebooks", capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads((folder / "out" / "results" / notebook / "results.json").read_text())["values"]


@pytest.mark.parametrize("notebook", ["03_post_processing", "04_fusion"])
def test_the_smallest_folder_with_a_hidden_split_goes_through(tmp_path, notebook):
    features = tmp_path / "features"
    features.mkdir()
    for name in ("first", "second", "third"):
        save(features / f"{name}.npz")
    save(features / "challenge.npz", query_players=np.array([-1, -1]), gallery_players=np.array([-1, -1, -1]))
    values = _execute(notebook, features, tmp_path)
    assert not any("challenge" in line["row"] + line.get("group", "") for line in values["comparison"])


@pytest.mark.parametrize("notebook", ["03_post_processing", "04_fusion"])
def test_queries_of_a_group_are_one_draw_and_models_without_cameras_are_named(tmp_path, notebook):
    features = tmp_path / "features"
    features.mkdir()
    groups = np.repeat(np.arange(6), 4)
    players = np.arange(24) % 12
    sides = {"query_cameras": np.ones(24, int), "gallery_cameras": np.full(24, 2)}
    sides |= {"query_groups": groups, "gallery_groups": groups}
    save(features / "a.npz", players, players, **sides, query_images=np.arange(24), gallery_images=np.arange(24))
    write_distance_csv(features / "bare.csv", np.random.default_rng(1).random((24, 24)), players, players)
    plain = {"post_processing": "none"} if notebook == "04_fusion" else {}
    values = _execute(notebook, features, tmp_path, **plain)
    aps = score_features(load_features(features / "a.npz"))["aps"]
    low, high = mean_interval(aps, groups=groups)
    assert (low, high) != mean_interval(aps)
    (line,) = (of for of in values["comparison"] if (of["row"], of.get("group")) in (("none", "a"), ("a", None)))
    assert (line["low"], line["high"]) == pytest.approx((low, high))
    told = (tmp_path / "done.ipynb").read_text()
    assert ("own camera count: bare" in told) == (notebook == "03_post_processing")


KEYS = ("qf", "gf", "q_pids", "g_pids", "q_camids", "g_camids")
SIDES = (np.eye(2, 4), np.eye(3, 4), QUERY, GALLERY, np.array([1, 1]), np.array([2, 2, 1]))


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".pth", ".mat", ".npy"])
def test_the_forms_in_which_toolkits_keep_features_are_read_alike(tmp_path, suffix):
    path, named = tmp_path / f"model{suffix}", dict(zip(KEYS, SIDES, strict=True))
    if suffix == ".npz":
        np.savez(path, **named)
    elif suffix == ".mat":
        scipy.io.savemat(path, named)
    elif suffix == ".npy":
        np.save(path, np.vstack(SIDES[:2]))
        rows = {"role": ["query"] * 2 + ["gallery"] * 3, "player": [*QUERY, *GALLERY], "camera": [1, 1, 2, 2, 1]}
        pd.DataFrame(rows).assign(image_id=list("abcde")).to_csv(path.with_suffix(".csv"), index=False)
    else:  # bfloat16, with a gradient, and labels as plain lists
        torch.save({name: torch.tensor(of) if of.ndim == 2 else of.tolist() for name, of in named.items()}, path)
        content = torch.load(path)
        torch.save(content | {"qf": content["qf"].bfloat16().requires_grad_()}, path)
    (read,) = load_folder(tmp_path).values()
    found = (read.query, read.gallery, read.query_players, read.gallery_players)
    for side, expected in zip((*found, read.query_cameras, read.gallery_cameras), SIDES, strict=True):
        np.testing.assert_array_equal(side, expected)
    assert suffix != ".npy" or read.gallery_images.tolist() == ["c", "d", "e"]


def test_a_file_that_would_run_code_or_lacks_a_line_is_refused_by_name(tmp_path):
    torch.save({"qf": torch.ones(2, 2), "more": Path()}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is damaged or holds more than a dict of tensors"):
        load_features(tmp_path / "a.pt")
    np.save(tmp_path / "b.npy", np.ones((3, 4)))
    (tmp_path / "b.csv").write_text("role,player\nquery,1\ngallery,1\n")
    with pytest.raises(ValueError, match=r"b\.csv needs a column role and a line for each of the 3 rows of .*b\.npy"):
        load_features(tmp_path / "b.npy")


def test_a_matrix_as_pandas_writes_it_is_read(tmp_path):
    pd.DataFrame([[0.5, 1.0, 2.0], [1.5, 0.25, 3.0]], index=[7, 8], columns=[7, 8, 9]).to_csv(tmp_path / "d.csv")
    (model,) = load_folder(tmp_path).values()
    assert model.distances.tolist() == [[0.5, 1.0, 2.0], [1.5, 0.25, 3.0]]
    assert model.query_players.tolist() == [7, 8] and model.gallery_players.tolist() == [7, 8, 9]


def test_images_are_found_by_path_file_name_or_stem_and_two_of_one_name_are_refused(tmp_path):
    for number, name in enumerate(("query/a.png", "gallery/a.png", "gallery/b.png", "more/b.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 8), (number, 0, 0)).save(tmp_path / name)
    read = named_reader(tmp_path)
    asked = [
        ("query", "a"),
        ("gallery", "a.png"),
        ("gallery", "gallery/b.png"),
        ("gallery", "b"),
        ("query", "more/b.png"),
    ]
    assert [int(read(*image)[0, 0, 0]) for image in asked] == [0, 1, 2, 2, 3]
    for image, count in (("b", 0), ("c", 0)):
        with pytest.raises(ValueError, match=f"{count} images of .* are called {image}; name each by its path"):
            read("query", image)
