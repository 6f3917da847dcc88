"""What notebooks leave behind: results.json, tables, arrays."""

import json
import math
import subprocess

import mistune
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from reid_utils.files import load_arrays, read_json, save_arrays, write_json
from reid_utils.paper import results
from reid_utils.paper.results import load_results, start_run, write_results

SETTINGS = {"backbone": "test_resnet", "seeds": [0, 1], "learning_rate": 4e-4}


def test_a_run_writes_where_run_all_says_and_in_the_lab_without_it(tmp_path, monkeypatch):
    run = start_run(str(tmp_path / "study"), "02_training__a", "02_training")
    assert run.folder == tmp_path / "study" / "results" / "02_training__a"
    assert run.folder.is_dir() and run.figures.is_dir() and run.tables == tmp_path / "study" / "tables"
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    lab = start_run("", "", "02_training")
    assert lab.folder == tmp_path / "runs" / "lab" / "results" / "02_training" and lab.run_id == "02_training"


def test_results_come_back_as_plain_values(tmp_path, monkeypatch):
    monkeypatch.setenv("REID_DATA_FINGERPRINT", "abc")
    run = start_run(tmp_path, "02__a", "02")
    write_results(run, SETTINGS, mAP=np.float32(0.5), ap=np.array([0.25, np.nan]), loss=math.inf, per={"a": (1, True)})
    content = load_results(run.folder)
    assert content["values"] == {"mAP": 0.5, "ap": [0.25, None], "loss": None, "per": {"a": [1, True]}}
    assert content["settings"] == SETTINGS and content["seeds"] == [0, 1]
    assert content["data_fingerprint"] == "abc" and content["run"] == "02__a"
    assert content["versions"]["numpy"] == np.__version__ and content["seconds"] >= 0
    assert content["peak_memory_mib"] > 10 and content["device"]
    json.loads((run.folder / "results.json").read_text(), parse_constant=pytest.fail)


def test_what_json_cannot_hold_is_named_and_nothing_is_written(tmp_path):
    run = start_run(tmp_path, "02__a", "02")
    with pytest.raises(TypeError, match="per holds a object"):
        write_results(run, SETTINGS, per={"model": object()})
    assert list(run.folder.iterdir()) == []


def test_a_missing_or_damaged_result_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"results\.json does not exist; execute the run 02__c first"):
        load_results(tmp_path / "results" / "02__c")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ValueError, match=r"results\.json is not readable JSON"):
        load_results(tmp_path)


def test_a_table_is_a_csv_and_a_markdown_table_with_its_notes(tmp_path):
    run = start_run(tmp_path, "06", "06")
    frame = pd.DataFrame(
        {"row": [1, 2], "what": ["none", "a|b"], "mAP": [64.126, math.nan], "p": [0.0041, 0.5], "n": ["+1.2", ""]}
    )
    results.write_table(run, "T1", frame, ["Row 1: `python run_all.py`", "compare rows 1 and 2"])
    assert (tmp_path / "tables" / "T1.csv").read_text() == (
        "row,what,mAP,p,n\n1,none,64.126,0.0041,+1.2\n2,a|b,,0.5,\n"
    )
    assert (tmp_path / "tables" / "T1.md").read_text() == (
        "|   row | what   |   mAP |      p | n    |\n"
        "|------:|:-------|------:|-------:|:-----|\n"
        "|     1 | none   | 64.13 | 0.0041 | +1.2 |\n"
        "|     2 | a\\|b   |       |   0.50 |      |\n"
        "\nRow 1: `python run_all.py`\n\ncompare rows 1 and 2\n"
    )


def test_a_comparison_in_latex_has_its_main_columns_the_best_in_bold_and_intervals_small(tmp_path):
    frame = pd.DataFrame({"no.": [1, 2], "row": ["a_b & c|d", "b"], "mAP": [9.5, 48.123], "rank-1": [70.0, 8.0]})
    frame["mAP low"], frame["mAP high"], frame["seeds"] = [8.0, 45.0], [10.0, 51.0], 3
    frame["difference"], frame["diff low"], frame["diff high"] = ([math.nan, value] for value in (-4.02, -5.7, 0.04))
    frame["p (Holm)"] = ["", "< 0.0009"]
    results.write_table(start_run(tmp_path, "06", "06"), "T1", frame)
    assert (tmp_path / "tables" / "T1.tex").read_text().splitlines()[1:-1] == [
        r"\toprule",
        r"no. & row & mAP & mAP (95 \%) & rank-1 & difference & difference (95 \%) & p (Holm) \\",
        r"\midrule",
        r"1 & a\_b \& c|d & 9.50 & {\small 8.00 to 10.00} & 70.00 &  & {\small } &  \\",
        r"2 & b & \textbf{48.12} & {\small 45.00 to 51.00} & 8.00 & $-$4.02 & {\small $-$5.70 to 0.04} & $<$ 0.0009 \\",
        r"\bottomrule",
    ]


def test_any_other_table_is_whole_in_latex_an_empty_one_too(tmp_path):
    run = start_run(tmp_path, "06", "06")
    results.write_table(run, "T6", pd.DataFrame({"entry_of": ["ours, 100 %"], "test mAP": [math.nan]}))
    results.write_table(run, "T3", pd.DataFrame())
    assert (
        "entry\\_of & test mAP \\\\\n\\midrule\nours, 100 \\% &  \\\\\n" in (tmp_path / "tables" / "T6.tex").read_text()
    )
    assert (tmp_path / "tables" / "T3.tex").exists()


@pytest.mark.parametrize("name", ["a|b", "a||b c_d", "игрок 选手 🏃 {0} %s"])
def test_names_stay_in_their_cell_and_as_they_are(tmp_path, name):
    run = start_run(tmp_path, "06", "06")
    results.write_table(run, "T", pd.DataFrame({"row": [name], name: [1.5]}), [f"of {name}"])
    shown = BeautifulSoup(mistune.html((tmp_path / "tables" / "T.md").read_text()), "html.parser")
    assert [tag.get_text() for tag in shown(["th", "td"])] == ["row", name, name, "1.50"]
    assert [tag.get_text() for tag in shown("p")] == [f"of {name}"]


def test_line_ends_and_what_is_no_utf_8_stop_no_table(tmp_path):
    run = start_run(tmp_path, "06", "06")
    results.write_table(run, "T", pd.DataFrame({"row": ["a\nb", "a\r\nb", "a\udcffb"]}))
    lines = (tmp_path / "tables" / "T.md").read_text().splitlines()[2:]
    assert [line.strip("| ") for line in lines] == ["a b", "a b", r"a\udcffb"]
    write_json(tmp_path / "x.json", {"folder": "a\udcffb"})
    assert read_json(tmp_path / "x.json") == {"folder": "a\udcffb"}


def test_results_say_which_entry_of_the_study_file_made_them(tmp_path, monkeypatch):
    run = start_run(tmp_path, "02__again_a", "02")
    for given, entry in ((None, ""), ("again", "again")):
        monkeypatch.setenv("STUDY_ENTRY", given) if given else monkeypatch.delenv("STUDY_ENTRY", raising=False)
        write_results(run, {})
        assert load_results(run.folder)["entry"] == entry


def test_two_runs_of_a_notebook_write_two_tables_and_each_lists_its_own(tmp_path):
    for name, value in (("05__losses", 1), ("05__again", 2)):
        run = start_run(tmp_path, name, "05")
        results.write_table(run, "robustness", pd.DataFrame({"level": [value]}))
        write_results(run, {})
    frames = [pd.read_csv(tmp_path / "tables" / f"robustness_{name}.csv") for name in ("losses", "again")]
    assert [frame["level"][0] for frame in frames] == [1, 2]
    files = load_results(tmp_path / "results" / "05__losses")["files"]
    assert files == [f"tables/robustness_losses.{kind}" for kind in ("csv", "md", "tex")]


def test_arrays_round_trip_with_equal_bytes_and_no_pickles(tmp_path):
    arrays = {"features": np.arange(6, dtype=np.float32).reshape(2, 3), "ids": np.array(["a", "b"])}
    for name in ("one.npz", "two.npz"):
        save_arrays(tmp_path / "new" / name, **arrays)
    assert (tmp_path / "new" / "one.npz").read_bytes() == (tmp_path / "new" / "two.npz").read_bytes()
    loaded = load_arrays(tmp_path / "new" / "one.npz")
    assert loaded["features"].dtype == np.float32 and loaded["ids"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(loaded["features"], arrays["features"])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.npz", "two.npz"]


def test_a_failed_write_leaves_the_former_arrays(tmp_path, monkeypatch):
    save_arrays(tmp_path / "a.npz", x=np.ones(2))
    with pytest.raises(ValueError, match=r"array 'x' for a\.npz holds Python objects"):
        save_arrays(tmp_path / "a.npz", x=np.array([{}], dtype=object))

    def full(file, **arrays):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_arrays(tmp_path / "a.npz", x=np.zeros(2))
    assert load_arrays(tmp_path / "a.npz")["x"].tolist() == [1, 1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_damaged_pickled_and_missing_arrays_are_named(tmp_path):
    save_arrays(tmp_path / "a.npz", x=np.ones(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty.npz").write_bytes(b"")
    for name in ("cut", "pickled", "text", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is damaged or holds pickles"):
            load_arrays(tmp_path / f"{name}.npz")
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path / "none.npz")


@pytest.mark.parametrize("program", ["sleep 60", "exit 1", None])
def test_a_git_that_cannot_answer_is_no_obstacle(tmp_path, monkeypatch, program):
    (tmp_path / "git").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "git").chmod(0o755 if program else 0o644)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if program else str(tmp_path))
    monkeypatch.setattr(results, "GIT_LIMIT", 0.5)
    assert results._git_state() == {"commit": None, "dirty": None}


def test_the_commit_is_known_in_a_checkout_of_another_user(tmp_path, monkeypatch):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(results, "REPOSITORY", tmp_path)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    commit = results._git_state()["commit"]
    assert commit and len(commit) == 40
