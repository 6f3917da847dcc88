"""The comparison with other packages: what it says of those that are missing, and where its table goes."""

import numpy as np
import pytest

from benchmarks import peer_calls, peers


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return peers.write_inputs(tmp_path_factory.mktemp("inputs"), "20x90")


def test_a_peer_that_is_not_installed_is_told_and_passed_over(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "PEERS_PYTHON", tmp_path / "nothing")
    ours, theirs = peers.rows_of("21 nearest of every image", "20x90", inputs, tmp_path)
    assert ours[2] == "ours" and ours[4] == "1" and float(ours[3]) > 0, ours
    assert theirs[2:] == ["faiss-cpu", "–", "–", "–", "–", "FileNotFoundError"]


def test_a_result_that_differs_says_by_how_much(inputs, tmp_path, monkeypatch):
    def call(work, package, inputs, result):
        np.save(result, np.array([1.0, 2.0 if package == "ours" else 2.5]))
        return {"seconds": 1.0 if package == "ours" else 3.0, "megabytes": 10.0, "version": "7"}

    monkeypatch.setattr(peers, "one_call", call)
    lines = peers.rows_of("mAP and CMC of distances", "20x90", inputs, tmp_path)
    assert lines[1][2:] == [
        "torchreid 7",
        "3.000",
        "3.0",
        "10",
        "1.0",
        "50.000% of the values differ, by up to 5.0e-01",
    ]


def test_our_nearest_lists_are_those_of_the_whole_matrix(inputs):
    with np.load(inputs["features"]) as given:
        images = np.concatenate([given["query"], given["gallery"]])
        found = peer_calls.ours_nearest(given["query"], given["gallery"])
    whole = np.sort(peer_calls.squared_distances(images, images), axis=1)[:, : peer_calls.NEAREST]
    assert found == pytest.approx(whole, abs=1e-5)


def test_the_table_replaces_the_one_between_the_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"above\n{peers.START}old\n{peers.END}\nbelow\n")
    peers.put_into_readme("new\n", readme)
    assert readme.read_text() == f"above\n{peers.START}new\n{peers.END}\nbelow\n"
    readme.write_text("nothing")
    with pytest.raises(ValueError, match="lacks the lines"):
        peers.put_into_readme("new\n", readme)
    assert peers.START in (peers.HERE / "README.md").read_text()


def test_the_limit_is_half_the_multiply_adds_at_the_rate_of_the_product():
    lines = [["re-ranking", "100x900", "ours", "0.300", "1"], ["re-ranking", "100x900", "torchreid", "9", "30"]]
    assert peers.limits(lines, 1024 * 1e7) == ["re-ranking at 100x900: 3.00 times the limit of 0.10 s"]
