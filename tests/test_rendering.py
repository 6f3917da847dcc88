"""The rendered data set: layout, hidden identities, determinism, atomic writing, and its difficulty."""

import hashlib
import json
import re
from itertools import pairwise

import cv2
import numpy as np
import pandas as pd
import pytest

from reid_utils.data.difficulty import colour_distances
from reid_utils.data.manifest import load_manifest
from reid_utils.ranking import mean_average_precision
from rendered_players import dataset as rendering
from rendered_players.crops import render_crop
from rendered_players.dataset import render_dataset
from rendered_players.rosters import look_of

SMALL = {"train_players": 4, "test_players": 3, "challenge_players": 3, "frames": 3, "test_frames": 3, "height": 48}


def _files(folder, pattern="*.jpeg"):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(pattern)}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("rendered") / "data_reid"
    return render_dataset(out_dir, train_players=14, test_players=60, challenge_players=13, frames=4)


def _names(data_set, folder):
    names = [path.name for path in (data_set / folder).iterdir()]
    assert all(re.fullmatch(r"\d{3}_\d{3}_\d{2}\.jpeg", name) for name in names)
    return pd.DataFrame([name[:-5].split("_") for name in names], columns=["player", "sequence", "frame"])


def test_layout_is_synergys_with_players_disjoint_over_splits(data_set):
    training = _names(data_set, "reid_training")
    query, gallery = _names(data_set, "reid_test/query"), _names(data_set, "reid_test/gallery")
    assert (len(training), len(query), len(gallery)) == (14 * 4, 60, 60 * 19)
    assert set(query.frame) == {"00"} and "00" not in set(gallery.frame)
    assert set(query.player) == set(gallery.player)
    truth = pd.read_csv(data_set / "challenge_truth.csv", dtype=str)
    groups = [set(training.player), set(query.player), set(truth.player)]
    assert [len(group) for group in groups] == [14, 60, 13]
    assert len(set.union(*groups)) == 14 + 60 + 13
    assert not set(training.sequence) & set(query.sequence)


def test_a_sequence_holds_a_game_of_eight(data_set):
    query = _names(data_set, "reid_test/query")
    assert query.groupby("sequence").player.nunique().tolist() == [8] * 7 + [4]
    nuisances = pd.read_csv(data_set / "nuisances.csv", dtype={"sequence": str})
    first_frames = nuisances[nuisances.path.str.startswith("reid_test/query")]
    counts = first_frames.groupby("sequence").team.value_counts().unstack()
    assert (counts.iloc[:7][["A", "B", "coach", "referee"]] == [3, 3, 1, 1]).all(axis=None)


def test_challenge_hides_its_players_everywhere_but_in_the_truth(data_set):
    query = {path.stem for path in (data_set / "reid_challenge/query").iterdir()}
    gallery = {path.stem for path in (data_set / "reid_challenge/gallery").iterdir()}
    assert (len(query), len(gallery)) == (13, 13 * 19) and not query & gallery
    assert all(re.fullmatch(r"[1-9]\d{5}", image_id) for image_id in query | gallery)
    truth = pd.read_csv(data_set / "challenge_truth.csv", dtype=str)
    assert set(truth.image_id) == query | gallery
    assert truth.groupby("player").size().tolist() == [20] * 13
    assert truth.path.is_monotonic_increasing and not truth.player.is_monotonic_increasing
    nuisances = pd.read_csv(data_set / "nuisances.csv")
    hidden = nuisances[nuisances.path.str.startswith("reid_challenge")]
    assert hidden[["team", "sequence"]].isna().all(axis=None)


def test_bytes_depend_neither_on_workers_nor_on_the_other_images(tmp_path):
    alone = _files(render_dataset(tmp_path / "alone", seed=5, **SMALL))
    more = SMALL | {"train_players": 13, "frames": 4, "challenge_players": 1}
    many = _files(render_dataset(tmp_path / "many", seed=5, workers=2, **more))
    training = [name for name in alone if name.startswith("reid_training")]
    assert len(training) == 12
    assert all(alone[name] == many[name] for name in training)


def test_equal_settings_give_equal_files_and_another_seed_other_pictures(tmp_path):
    first, second = (render_dataset(tmp_path / name, seed=1, **SMALL) for name in ("first", "second"))
    assert _files(first, "*.*") == _files(second, "*.*")
    other = _files(render_dataset(tmp_path / "other", seed=2, **SMALL))
    assert not set(_files(first).values()) & set(other.values())
    assert len(set(other.values())) == len(other)


def test_a_finished_folder_is_kept_and_other_settings_are_refused(tmp_path):
    out_dir = render_dataset(tmp_path / "data", **SMALL)
    image = next(out_dir.rglob("*.jpeg"))
    image.write_bytes(b"touched")
    lock = out_dir.with_name(f".{out_dir.name}.lock")
    lock.unlink(missing_ok=True)
    lock.mkdir()  # stands in for a folder that cannot be written: whoever would lock it fails
    assert render_dataset(out_dir, **SMALL) == out_dir and image.read_bytes() == b"touched"
    with pytest.raises(ValueError, match=r"data was rendered with height 48, not 64"):
        render_dataset(out_dir, **(SMALL | {"height": 64}))


def test_a_folder_of_something_else_is_never_overwritten(tmp_path):
    (tmp_path / "holiday.jpeg").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"holds no rendering\.json"):
        render_dataset(tmp_path, **SMALL)
    assert (tmp_path / "holiday.jpeg").read_bytes() == b"mine"


def test_a_failed_run_leaves_nothing_and_what_a_killed_one_left_is_replaced(tmp_path, monkeypatch):
    left_over = tmp_path / ".data.partial"
    left_over.mkdir()
    (left_over / "half.jpeg").write_bytes(b"half")
    out_dir = render_dataset(tmp_path / "data", **SMALL)
    assert not left_over.exists() and not (out_dir / "half.jpeg").exists()

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr(rendering, "render_crop", full_disk)
    with pytest.raises(OSError, match="no space"):
        render_dataset(tmp_path / "second", **SMALL)
    assert not (tmp_path / "second").exists() and not (tmp_path / ".second.partial").exists()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("seed", -1),
        ("train_players", 0),
        ("frames", 1),
        ("test_frames", 101),
        ("height", 12.5),
        ("workers", 0),
        ("difficulty", 4),
    ],
)
def test_settings_out_of_range_are_named_before_anything_is_written(tmp_path, setting, value):
    with pytest.raises(ValueError, match=setting):
        render_dataset(tmp_path / "new" / "data", **(SMALL | {setting: value}))
    assert not (tmp_path / "new").exists()


def test_settings_file_records_what_was_asked(data_set):
    settings = json.loads((data_set / "rendering.json").read_text())
    assert settings["seed"] == 0 and settings["test_players"] == 60 and settings["frames"] == 4
    assert "workers" not in settings


def test_nuisances_describe_the_images(data_set):
    nuisances = pd.read_csv(data_set / "nuisances.csv")
    assert set(nuisances.path) == set(_files(data_set))
    test = nuisances[nuisances.path.str.startswith("reid_test")]
    images = [cv2.imread(str(data_set / path), cv2.IMREAD_GRAYSCALE) for path in test.path]
    assert np.allclose([image.shape[0] / 128 for image in images], test.scale, atol=1e-3)
    aspects = np.array([image.shape[1] / image.shape[0] for image in images])
    assert 0.35 <= aspects.min() < aspects.max() <= 0.63
    sharpness = np.array([np.log(cv2.Laplacian(image, cv2.CV_64F).var()) for image in images])
    assert sharpness[test.blur < 0.5].mean() > sharpness[test.blur > 2.5].mean() + 0.5
    assert 0.05 < (test.occluded > 0.2).mean() < 0.4 and test.occluded.between(0, 1).all()
    views = (test.view // 90).groupby(test.path.str.extract(r"/(\d+)_", expand=False)).nunique()
    assert views.mean() > 2


def test_occluded_share_is_what_the_passer_in_front_hides(monkeypatch):
    shares = {frame: render_crop(0, "test", 3, frame, 64)[1]["occluded"] for frame in range(20)}
    frame = max(shares, key=shares.get)
    assert shares[frame] > 0.2
    monkeypatch.setattr("rendered_players.crops._draw_passer", lambda *_: None)
    assert render_crop(0, "test", 3, frame, 64)[1]["occluded"] == 0


def test_team_mates_share_the_kit_and_differ_in_themselves():
    looks = [look_of(0, "test", player) for player in range(8)]
    home, away = ([look for look in looks if look.team == team] for team in "AB")
    for team in (home, away):
        assert len({(look.top, look.bottom, look.trim) for look in team}) == 1
        assert len({look.number for look in team}) == 3
        assert len({(look.skin, look.hair, look.shoes) for look in team}) == 3
    assert home[0].top != away[0].top
    assert looks[6].number is None and looks[7].number is None


def histogram_bound(data_dir):
    """The mAP of the test split ranked by colour alone, as notebook 01 has it."""
    manifest = load_manifest(data_dir)
    test = manifest[manifest["split"] == "test"]
    query, gallery = (test[test["role"] == role] for role in ("query", "gallery"))
    labels = query["player"], gallery["player"], query["camera"], gallery["camera"]
    return max(mean_average_precision(found, *labels) for found in colour_distances(data_dir, manifest).values())


def test_colour_histograms_find_some_players_but_not_most(data_set):
    assert 0.15 < histogram_bound(data_set) <= 0.60


def test_difficulty_levels_are_ordered_by_what_colour_alone_finds(tmp_path):
    sizes = SMALL | {"train_players": 1, "test_players": 24, "challenge_players": 1, "test_frames": 6}
    bounds = [histogram_bound(render_dataset(tmp_path / str(k), difficulty=k, **sizes)) for k in range(4)]
    assert bounds[0] > 0.9 and bounds == sorted(bounds, reverse=True)
    assert min(easier - harder for easier, harder in pairwise(bounds)) > 0.04


def test_the_default_difficulty_is_the_set_before_there_were_levels(tmp_path):
    before = render_dataset(tmp_path / "before", **SMALL)
    table = (before / "nuisances.csv").read_bytes()
    assert hashlib.sha256(table).hexdigest().startswith("b2533b03603508f7")
    assert "difficulty" not in json.loads((before / "rendering.json").read_text())
    assert render_dataset(before, difficulty=2, **SMALL) == before
    with pytest.raises(ValueError, match="was rendered with difficulty 2, not 0"):
        render_dataset(before, difficulty=0, **SMALL)
    easy = render_dataset(tmp_path / "easy", difficulty=0, **SMALL)
    assert not set(_files(easy).values()) & set(_files(before).values())


def _paint(folder, name, colour):
    folder.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(folder / name), np.full((24, 12, 3), colour, np.uint8))


def test_histogram_bound_by_hand(tmp_path):
    query, gallery = tmp_path / "reid_test/query", tmp_path / "reid_test/gallery"
    for name in ("005_000_00.jpeg", "005_000_01.jpeg"):
        _paint(tmp_path / "reid_training", name, (0, 0, 0))
    _paint(query, "001_000_00.jpeg", (0, 0, 250))
    _paint(query, "002_000_00.jpeg", (250, 0, 0))
    _paint(gallery, "001_000_01.jpeg", (0, 0, 250))
    _paint(gallery, "002_000_01.jpeg", (250, 0, 0))
    assert histogram_bound(tmp_path) == 1.0
    # Player 001 in blue ties with player 002's own image, for either query: 1 of 1, then 2 of 3; 1 of 2.
    _paint(gallery, "001_000_02.jpeg", (250, 0, 0))
    assert histogram_bound(tmp_path) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    (gallery / "002_000_01.jpeg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"002_000_01\.jpeg"):
        histogram_bound(tmp_path)


def test_histogram_bound_names_a_missing_split_and_takes_the_folder_around_data_reid(tmp_path, data_set):
    assert histogram_bound(data_set.parent) == histogram_bound(data_set)
    for name in ("005_000_00.jpeg", "005_000_01.jpeg"):
        _paint(tmp_path / "reid_training", name, (0, 0, 0))
    with pytest.raises(FileNotFoundError, match="reid_test/query"):
        histogram_bound(tmp_path)
