"""Where a study's data come from."""

import threading
from pathlib import Path

import pytest

from reid_utils.data import sources
from rendered_players import dataset as rendering

TINY = {"train_players": 2, "test_players": 2, "challenge_players": 1, "frames": 2, "test_frames": 2, "height": 32}


def test_rendered_data_lie_where_planned_and_are_made_once(tmp_path):
    planned = sources.planned_data_dir("rendered", tmp_path, TINY)
    assert not any(tmp_path.iterdir())
    assert sources.prepare_data("rendered", tmp_path, TINY) == planned
    record = planned / "rendering.json"
    made = record.stat().st_mtime_ns
    assert sources.prepare_data("rendered", tmp_path, TINY) == planned and record.stat().st_mtime_ns == made


def test_rendered_folder_is_named_after_what_changes_the_images(tmp_path):
    def name(**rendering):
        return sources.planned_data_dir("rendered", tmp_path, rendering).name

    assert name(seed=0, workers=2) == name() == name(seed=0)
    assert len({name(), name(seed=1), name(frames=4), name(height=64), name(difficulty=1)}) == 5
    # Sets rendered before there was a difficulty are found again.
    assert name(frames=4) == name(frames=4, difficulty=2) == "rendered-e8184d856b"
    with pytest.raises(ValueError, match="no setting frame: it has seed"):
        name(frame=4)


def test_a_new_renderer_never_meets_an_old_folder(tmp_path, monkeypatch):
    before = sources.planned_data_dir("rendered", tmp_path)
    monkeypatch.setattr(rendering, "RENDERER_VERSION", -1)
    assert sources.planned_data_dir("rendered", tmp_path) != before


def test_concurrent_callers_render_once(tmp_path, monkeypatch):
    written = []
    write = rendering._write_data_set
    monkeypatch.setattr(rendering, "_write_data_set", lambda *args: (written.append(1), write(*args)))
    folders = []
    callers = [
        threading.Thread(target=lambda: folders.append(sources.prepare_data("rendered", tmp_path, TINY)))
        for _ in range(3)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(written) == 1 and len(folders) == 3 and len(set(folders)) == 1


def test_a_folder_of_the_users_is_found_and_made_absolute(tmp_path, monkeypatch):
    (tmp_path / "mine" / "data_reid" / "reid_training").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for find in (sources.prepare_data, sources.planned_data_dir):
        assert find("mine") == find(Path("mine/data_reid")) == tmp_path / "mine" / "data_reid"


@pytest.mark.parametrize("find", [sources.prepare_data, sources.planned_data_dir])
def test_a_missing_or_foreign_folder_is_named(tmp_path, find):
    with pytest.raises(FileNotFoundError, match="nowhere is missing: give rendered, synergy or a folder"):
        find(tmp_path / "nowhere")
    (tmp_path / "0001_a.jpg").touch()
    with pytest.raises(FileNotFoundError, match=r"holds no reid_training.*: a study needs crops to train on"):
        find(tmp_path)


def test_synergy_downloads_under_the_root(tmp_path, monkeypatch):
    def fake(target_dir, accept_md5):
        (target_dir / "data_reid" / "reid_training").mkdir(parents=True)
        assert accept_md5 == "0" * 32

    planned = sources.planned_data_dir("synergy", tmp_path)
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(sources, "download_synergy", fake)
    assert sources.prepare_data("synergy", tmp_path, accept_md5="0" * 32) == planned == tmp_path / "synergy/data_reid"
