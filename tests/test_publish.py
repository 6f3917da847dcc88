"""Publishing a finished study and verifying it again: what moved is named, what is unclean is refused."""

import json

import pandas as pd
import pytest

from reid_utils.files import read_json, write_json
from reid_utils.paper import publish as press
from reid_utils.paper.claims import verdicts_beside
from reid_utils.paper.publish import (
    BEGIN,
    END,
    LAST,
    in_readme,
    main,
    moved_cells,
    publish,
    results_section,
    tolerance,
)
from reid_utils.paper.results import REPOSITORY

FIGURES = REPOSITORY / "figures"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUNS = {"02_training__a": [], "03_post_processing__a": ["02_training__a"]}
RUNS |= {LAST: list(RUNS)}
FILES = ["tables/T1.csv", "tables/T3.csv", "tables/findings.csv", "tables/findings.md"]
FILES += ["figures/06_paper_tables_forest.png", "figures/06_paper_tables_forest.svg", "figures/05_heavy.svg"]
FINDINGS = (
    "claim,compared,verdict,difference,diff low,diff high,p (Holm),found again (%),smallest,regime\n"
    'flip helps,flip against none,"supported, holds over seeds and queries",2.57,1.1,4.0,< 0.0002,99,2.1,'
    "outside the regime that the paper speaks of (56.8 mAP here)\n"
    "it spreads,a,supported (9 of 9 pairs of seeds),,,,,,,\n"
)
T1 = pd.DataFrame(
    {
        "no.": [1, 2],
        "row": ["none", "flip"],
        "mAP": [56.76, 59.33],
        "mAP low": [50.0, 55.0],
        "mAP high": [60.0, 65.0],
        "seeds": [3, 3],
        "p (Holm)": ["", "< 0.0002"],
        "verdict": ["", "supported, holds over seeds and queries"],
    }
)


def write_run(folder, name, upstream, files=(), **git):
    values = {
        "note": "rendered data",
        "queries": 150,
        "tables": {"T1": {"question": "does it help?", "notebook": "02"}},
    }
    files = FILES if name == LAST else list(files)
    result = {"run": name, "files": files, "notebook": name.partition("__")[0], "values": values, "seeds": [0, 1, 2]}
    result |= {"device": "cpu: Abacus", "versions": {"numpy": "2"}, "git": {"commit": COMMIT, "dirty": False, **git}}
    write_json(folder / "results" / name / "results.json", result)
    record = {"key": f"key of {name}", "parts": {"upstream": {other: f"key of {other}" for other in upstream}}}
    write_json(folder / "state" / f"{name}.json", record)


@pytest.fixture
def study(tmp_path):
    """A finished study called quick, a folder for figures with an old one in it, a README."""
    folder, figures = tmp_path / "runs" / "quick", tmp_path / "figures"
    for name, upstream in RUNS.items():
        write_run(folder, name, upstream)
    for path in (folder / "tables", folder / "figures", figures):
        path.mkdir(parents=True)
    T1.to_csv(folder / "tables" / "T1.csv", index=False)
    (folder / "tables" / "T3.csv").write_text("\n")  # as a study without notebook 03 leaves it
    (folder / "tables" / "findings.csv").write_text(FINDINGS)
    (folder / "tables" / "findings.md").write_text("| flip helps | supported |\n\nDifferences are points of mAP.\n")
    (folder / "figures" / "06_paper_tables_forest.png").write_bytes(b"png")
    (folder / "figures" / "06_paper_tables_forest.svg").write_bytes(b"<svg/>")
    (folder / "figures" / "05_heavy.svg").write_bytes(b"x" * 300_001)
    (folder / "figures" / "05_of_a_former_plan.png").write_bytes(b"png")
    write_json(folder / "study.json", {"command": "python run_all.py quick"})
    (figures / "00_old.png").write_bytes(b"old")
    (tmp_path / "README.md").write_text(f"# Study\n{BEGIN}\nold numbers\n{END}\nmore\n")
    return folder, figures, tmp_path / "README.md"


def test_publishing_leaves_the_studys_files_and_a_readme_made_from_them(study):
    folder, figures, readme = study
    publish(folder, figures, readme)
    assert sorted(path.name for path in figures.iterdir()) == [
        "06_paper_tables_forest.png", "06_paper_tables_forest.svg", "README.md", "study.json", "tables",
    ]  # fmt: skip
    assert (figures / "tables" / "T1.csv").read_bytes() == (folder / "tables" / "T1.csv").read_bytes()
    text = readme.read_text()
    assert "old numbers" not in text and text.startswith("# Study\n") and text.endswith(f"{END}\nmore\n")
    assert all(
        part in text
        for part in (
            COMMIT[:10],
            "3 seeds, 150 queries",
            "does it help?",
            "--only '06*'",
            "flip helps",
            "| [T1](figures/",
        )
    )
    assert "| [T1](figures/tables/T1.md) |" in text
    row = next(line for line in text.splitlines() if "flip helps" in line)
    assert [cell.strip() for cell in row.split("|")[3:6]] == [
        "supported, holds over seeds and queries †", "2.57 (1.10 to 4.00)", "< 0.0002",
    ]  # fmt: skip
    assert "†: outside the regime that the paper speaks of (single models of 56.8 mAP here)" in text
    assert results_section(figures) in text


def test_pictures_that_no_table_reads_are_shown_where_they_are_of_the_same_commit(study):
    folder, figures, readme = study
    write_run(folder, "01_data_exploration", [], ["figures/01_data.png"])
    write_run(folder, "05_of_a_former_plan", [], ["figures/05_of_a_former_plan.png"], commit="f" * 40)
    (folder / "figures" / "01_data.png").write_bytes(b"png")
    publish(folder, figures, readme)
    assert sorted(path.name for path in figures.glob("*.png")) == ["01_data.png", "06_paper_tables_forest.png"]


@pytest.mark.parametrize(
    ("git", "message"),
    [
        ({"dirty": True}, "02_training__a was not made at a clean commit"),
        ({"commit": None, "dirty": None}, "02_training__a was not made at a clean commit"),
        ({"commit": "f" * 40}, "02_training__a was made at commit ffffffffff, 06_paper_tables at 0123456789"),
    ],
)
def test_an_unclean_study_is_refused_and_nothing_is_touched(study, git, message):
    folder, figures, readme = study
    write_run(folder, "02_training__a", [], **git)
    with pytest.raises(ValueError, match=message):
        publish(folder, figures, readme)
    assert [path.name for path in figures.iterdir()] == ["00_old.png"] and "old numbers" in readme.read_text()


def test_an_unfinished_study_and_a_readme_without_markers_are_refused(study, tmp_path, capsys):
    folder, figures, readme = study
    assert main(["figures", str(tmp_path)]) == 2 and "holds no finished study" in capsys.readouterr().err
    (folder / "state" / "03_post_processing__a.json").unlink()
    with pytest.raises(ValueError, match="03_post_processing__a is not done"):
        publish(folder, figures, readme)
    with pytest.raises(ValueError, match="lacks the line"):
        in_readme("# no markers", "")


def test_a_picture_too_heavy_to_commit_is_named_and_nothing_is_touched(study):
    folder, figures, readme = study
    (folder / "figures" / "06_paper_tables_forest.png").write_bytes(b"x" * 300_001)
    with pytest.raises(ValueError, match=r"06_paper_tables_forest\.png has 300001 bytes"):
        publish(folder, figures, readme)
    assert [path.name for path in figures.iterdir()] == ["00_old.png"]


def test_tables_older_than_their_runs_and_overridden_studies_are_refused(study):
    folder, figures, readme = study
    write_json(folder / "study.json", {"command": "python run_all.py quick --set 'epochs=1'"})
    with pytest.raises(ValueError, match="was run with --set"):
        publish(folder, figures, readme)
    record = read_json(folder / "state" / "02_training__a.json")
    write_json(folder / "state" / "02_training__a.json", {**record, "key": "another"})
    with pytest.raises(ValueError, match="02_training__a was done anew after the tables were made"):
        publish(folder, figures, readme)
    assert [path.name for path in figures.iterdir()] == ["00_old.png"]


def two_folders(tmp_path, change):
    """Folders with table T1 as committed and as made again, the second after `change` of its frame."""
    for name, frame in (("committed", T1), ("again", change(T1.copy()))):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "T1.csv", index=False)
    return tmp_path / "committed", tmp_path / "again"


def change_of(row, column, value):
    def change(frame):
        frame.loc[frame["row"] == row, column] = value
        return frame

    return change


@pytest.mark.parametrize(
    ("change", "same", "elsewhere"),
    [
        (lambda frame: frame, [], []),
        (change_of("flip", "mAP", 59.34), [False], [True]),
        (change_of("flip", "mAP", 66.3), [False], [True]),  # an interval of 10 points allows √2 · 5
        (change_of("flip", "mAP", 66.5), [False], [False]),
        (change_of("flip", "seeds", 2), [False], [False]),
        (change_of("flip", "p (Holm)", "0.03"), [False], [True]),
        (change_of("flip", "verdict", "supported, holds for these networks"), [False], [True]),
        (change_of("flip", "verdict", "not supported, the opposite holds over seeds and queries"), [False], [False]),
        (change_of("flip", "verdict", "cannot be told (would need about 9 seeds)"), [False], [False]),
        (change_of("flip", "mAP", None), [False], [False]),
        (lambda frame: frame.iloc[:1], [False] * 7, [False] * 7),
        (lambda frame: frame.iloc[::-1], [], []),
    ],
)
def test_cells_that_moved_are_named_and_held_to_the_tolerance(tmp_path, change, same, elsewhere):
    folders = two_folders(tmp_path, change)
    (folders[0] / "._T1.csv").write_bytes(b"\0\5\x16\7")  # what a file manager left
    for expected, same_machine in ((same, True), (elsewhere, False)):
        count, moved = moved_cells(*folders, same_machine)
        assert count == 14 and list(moved["within"]) == expected
        assert moved.empty or set(moved["row"]) == {"flip"}


def test_elsewhere_a_number_is_held_to_the_interval_of_its_row_and_to_points_where_it_has_none():
    line = {"mAP low": "50.0", "mAP high": "60.0", "diff low": "-1.0", "diff high": "3.0"}
    columns = {"queries": 0, "rank-1": 7.07, "difference": 2.83, "queries low": 2.83, "dispersion": 0.3}
    columns |= {"seed sd": None, "p (Holm)": None}
    assert {column: tolerance(column, line, same_machine=False) for column in columns} == columns
    assert {tolerance(column, line, same_machine=True) for column in columns} == {0}
    of_map = {"diff low": "-1.0", "diff high": "3.0", "sets": "4"}
    assert tolerance("diff low", of_map, False) is None and tolerance("difference", of_map, False) == 2.83
    assert tolerance("diff low", {**of_map, "sets": "5"}, False) == 2.83
    bare = {"mAP": 6, "first seed mAP": 12, "rendered data challenge mAP": 12}
    assert {column: tolerance(column, {}, same_machine=False) for column in bare} == bare


def test_a_weak_verdict_may_be_lost_elsewhere_but_not_turn_into_its_opposite(tmp_path):
    weak = T1.assign(verdict=["", "suggested, a rerun may not find it"])
    for name, frame in (("committed", weak), ("again", change_of("flip", "verdict", "cannot be told")(weak.copy()))):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "findings.csv", index=False)
    assert list(moved_cells(tmp_path / "committed", tmp_path / "again", same_machine=False)[1]["within"]) == [True]


def test_findings_of_two_studies_beside_each_other_name_what_was_contradicted_lost_and_is_missing(tmp_path, capsys):
    supported, opposite = "supported, holds over seeds and queries", "not supported, the opposite holds"
    suggested, unknown = "suggested, a rerun may not find it", "cannot be told"
    told = {"a": [supported, supported], "b": [supported, unknown], "c": [unknown, opposite], "d": [opposite, None]}
    told |= {"e": [suggested, unknown], "f": [supported, suggested]}
    for k, name in enumerate(("first", "second")):
        (tmp_path / name / "tables").mkdir(parents=True)
        lines = [("helps", key, verdicts[k]) for key, verdicts in told.items() if verdicts[k]]
        frame = pd.DataFrame(lines, columns=["claim", "compared", "verdict"])
        frame.to_csv(tmp_path / name / "tables" / "findings.csv", index=False)
    found = verdicts_beside(tmp_path / "first", tmp_path / "second").set_index("compared")["became"]
    assert found.to_dict() == {"a": "", "b": "lost", "c": "stronger", "d": "missing", "e": "weaker", "f": "weaker"}
    command = ["verdicts", str(tmp_path / "first"), str(tmp_path / "second")]
    assert main(command) == 0
    assert "0 contradicted, 1 lost, 2 weaker, 1 stronger, 1 missing" in capsys.readouterr().out
    frame.assign(verdict=opposite).to_csv(tmp_path / "second" / "tables" / "findings.csv", index=False)
    assert main(command) == 1 and "4 contradicted, 0 lost" in capsys.readouterr().out
    assert main(command[:2]) == 2


def test_a_study_with_other_seeds_is_held_to_its_intervals_on_the_same_machine_too(study, monkeypatch, capsys):
    folder, figures, readme = study
    publish(folder, figures, readme)
    monkeypatch.setattr(press, "REPOSITORY", figures.parent)
    other = folder.rename(folder.with_name("quick100"))
    change_of("flip", "mAP", 61.0)(T1.copy()).to_csv(other / "tables" / "T1.csv", index=False)
    assert main(["verify", str(other)]) == 0
    assert "(another study: within the intervals, verdicts held), 1 moved, 0 outside" in capsys.readouterr().out


def test_verify_compares_a_given_study_and_ends_with_1_where_a_cell_is_outside(study, monkeypatch, capsys):
    folder, figures, readme = study
    publish(folder, figures, readme)
    monkeypatch.setattr(press, "REPOSITORY", figures.parent)
    command = ["verify", str(folder)]
    assert main(command) == 0
    assert "(the same machine type: exact), 0 moved, 0 outside" in capsys.readouterr().out
    change_of("flip", "mAP", 61.0)(T1.copy()).to_csv(folder / "tables" / "T1.csv", index=False)
    assert main(command) == 1
    out = capsys.readouterr().out
    assert all(part in out for part in ("flip", "mAP", "59.33", "61.0", "1 moved, 1 outside"))
    there = json.loads((figures / "study.json").read_text()) | {"device": "cpu: Slide rule"}
    write_json(figures / "study.json", there)
    assert main(command) == 0 and "1 moved, 0 outside" in capsys.readouterr().out


def test_a_table_of_a_run_beside_the_others_is_in_the_readmes_table_of_tables(study):
    folder, figures, readme = study
    write_run(folder, "07_regime_map", [], ["tables/T7.md"])
    result = read_json(folder / "results" / "07_regime_map" / "results.json")
    result["values"] = {"tables": {"T7": {"question": "at which accuracy?", "notebook": "07"}}}
    write_json(folder / "results" / "07_regime_map" / "results.json", result)
    (folder / "tables" / "T7.md").write_text("| T7 |\n")
    assert list(publish(folder, figures, readme)["tables"]) == ["T1", "T7"]
    assert "[T7](figures/tables/T7.md) | at which accuracy? | 07" in " ".join(readme.read_text().split())


def test_elsewhere_a_line_of_the_regime_map_may_turn_blank_but_its_numbers_are_held(tmp_path):
    t7 = pd.DataFrame({"claim": ["hard − none"] * 2, "single mAP": [30.0, 40.0], "regime": ["", ""]})
    t7 = t7.assign(**{"difference": [1.0, 2.0], "diff low": [0.5, 1.5], "diff high": [1.5, 2.5], "sets": [3, 4]})
    blank, far = t7.copy(), t7.copy()
    blank.loc[0, ["difference", "diff low", "diff high", "sets"]] = [None, None, None, 2]
    far.loc[1, "difference"] = 5.0
    for name, frame in (("committed", t7), ("blank", blank), ("far", far)):
        (tmp_path / name).mkdir()
        frame.to_csv(tmp_path / name / "T7.csv", index=False)
    for again, same, elsewhere in (("blank", [False] * 4, [True] * 4), ("far", [False], [False])):
        for expected, same_machine in ((same, True), (elsewhere, False)):
            moved = moved_cells(tmp_path / "committed", tmp_path / again, same_machine)[1]
            assert list(moved["within"]) == expected


@pytest.mark.skipif(not (FIGURES / "study.json").exists(), reason="no study is published yet: make figures")
def test_the_readme_shows_what_the_committed_figures_hold():
    assert f"{BEGIN}\n{results_section(FIGURES)}{END}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
