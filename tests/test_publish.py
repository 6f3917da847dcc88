"""Publishing a finished study and verifying it again: what moved is named, what is unclean is refused."""

import json
import shutil

import pandas as pd
import pytest

from reid_utils.files import read_json, write_json
from reid_utils.paper.results import REPOSITORY
from tools import publish as press
from tools.publish import (
    LAST,
    MARKERS,
    beside_section,
    headlines,
    in_page,
    main,
    moved_lines,
    people_section,
    publish,
    results_section,
    verdicts_beside,
)

FIGURES, RESULTS = REPOSITORY / "figures", REPOSITORY / "docs" / "results.md"
BEGIN, END = MARKERS["figures"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RUNS = {"02_training__a": [], "03_post_processing__a": ["02_training__a"]}
RUNS |= {LAST: list(RUNS)}
FILES = ["tables/T1.csv", "tables/T3.csv", "tables/findings.csv", "tables/findings.md"]
FILES += ["figures/06_paper_tables_forest.png", "figures/06_paper_tables_forest.svg", "figures/05_heavy.svg"]
FILES += ["figures/06_paper_tables_forest.pdf", "figures/05_heavy.pdf"]
FINDINGS = (
    "claim,compared,verdict,difference,diff low,diff high,rerun low,rerun high,p (Holm),smallest,regime\n"
    "flip helps,flip against none,supported,2.57,1.1,4.0,0.5,4.6,< 0.0002,2.1,"
    "outside the regime that the paper speaks of (56.8 mAP here)\n"
    "jitter helps,a,supported,1.5,1.0,2.0,0.5,2.5,0.001,1.0,\n"
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
        "tables": {"T1": {"question": "does it help?", "notebook": "02"}} if name == LAST else {},
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
    (folder / "figures" / "06_paper_tables_forest.pdf").write_bytes(b"%PDF")
    for kind in ("svg", "pdf"):
        (folder / "figures" / f"05_heavy.{kind}").write_bytes(b"x" * 300_001)
    (folder / "figures" / "05_of_a_former_plan.png").write_bytes(b"png")
    write_json(folder / "study.json", {"command": "python run_all.py quick", "options": {"data": None}})
    (figures / "00_old.png").write_bytes(b"old")
    (tmp_path / "README.md").write_text(f"# Study\n{BEGIN}\nold numbers\n{END}\nmore\n")
    return folder, figures, tmp_path / "README.md"


def test_publishing_leaves_the_studys_files_and_a_readme_made_from_them(study):
    folder, figures, readme = study
    (figures / "00_old.pdf").write_bytes(b"old")
    publish(folder, figures, readme)
    assert sorted(path.name for path in figures.iterdir()) == [
        *(f"06_paper_tables_forest.{kind}" for kind in ("pdf", "png", "svg")), "README.md", "study.json", "tables",
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
            "| [T1](../figures/",
        )
    )
    assert "| [T1](../figures/tables/T1.md) |" in text
    row = next(line for line in text.splitlines() if "flip helps" in line)
    assert [cell.strip() for cell in row.split("|")[3:7]] == [
        "supported †", "2.57 (1.10 to 4.00)", "0.50 to 4.60", "< 0.0002",
    ]  # fmt: skip
    assert "supported or contradicted if the corrected p is below 5 %" in text
    assert "†: the single models here reach 57 mAP; the paper's claims are about 95 and more." in text
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
        ({"dirty": True}, "02_training__a was made at commit 0123456789 with changes"),
        ({"commit": None, "dirty": None}, "02_training__a was made at commit None"),
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
        in_page("# no markers", "", MARKERS["figures"])


def test_a_picture_too_heavy_to_commit_is_named_and_nothing_is_touched(study):
    folder, figures, readme = study
    (folder / "figures" / "06_paper_tables_forest.png").write_bytes(b"x" * 300_001)
    with pytest.raises(ValueError, match=r"06_paper_tables_forest\.png has 300001 bytes"):
        publish(folder, figures, readme)
    assert [path.name for path in figures.iterdir()] == ["00_old.png"]


def test_tables_older_than_their_runs_and_overridden_studies_are_refused(study):
    folder, figures, readme = study
    given = {"command": "python run_all.py quick --set 'epochs=1'", "options": {"data": None}}
    write_json(folder / "study.json", given)
    with pytest.raises(ValueError, match="was run with --set"):
        publish(folder, figures, readme)
    record = read_json(folder / "state" / "02_training__a.json")
    write_json(folder / "state" / "02_training__a.json", {**record, "key": "another"})
    with pytest.raises(ValueError, match="02_training__a is not done, or was done anew after the tables"):
        publish(folder, figures, readme)
    assert [path.name for path in figures.iterdir()] == ["00_old.png"]


def test_lines_that_moved_are_shown(tmp_path):
    folders = [tmp_path / name for name in ("committed", "again")]
    for folder, frame in zip(folders, (T1, T1.assign(mAP=[56.76, 59.34])), strict=True):
        folder.mkdir()
        frame.to_csv(folder / "T1.csv", index=False)
    assert moved_lines(folders[0], folders[0]) == []
    (folders[0] / "._T1.csv").write_bytes(b"\0\5\x16\7")  # what a file manager left
    moved = moved_lines(*folders)
    assert len(moved) == 5 and moved[3].startswith("-2,flip,59.33") and moved[4].startswith("+2,flip,59.34")
    (folders[0] / "T2.csv").write_text("row\na\n")
    with pytest.raises(FileNotFoundError, match=r"T2\.csv"):
        moved_lines(*folders)


def test_findings_of_two_studies_beside_each_other_name_what_was_contradicted_lost_and_is_missing(tmp_path, capsys):
    supported, opposite, unknown = "supported", "contradicted", "open"
    told = {"a": [supported, supported], "b": [supported, unknown], "c": [unknown, opposite], "d": [opposite, None]}
    told |= {"e": [unknown, unknown], "f": [opposite, unknown]}
    for k, name in enumerate(("first", "second")):
        (tmp_path / name / "tables").mkdir(parents=True)
        lines = [("helps", key, verdicts[k]) for key, verdicts in told.items() if verdicts[k]]
        frame = pd.DataFrame(lines, columns=["claim", "compared", "verdict"])
        frame.to_csv(tmp_path / name / "tables" / "findings.csv", index=False)
    found = verdicts_beside(tmp_path / "first", tmp_path / "second").set_index("compared")["became"]
    assert found.to_dict() == {"a": "", "b": "lost", "c": "won", "d": "missing", "e": "", "f": "lost"}
    command = ["verdicts", str(tmp_path / "first"), str(tmp_path / "second")]
    assert main(command) == 0
    assert "0 contradicted, 1 missing, 2 lost, 1 won" in capsys.readouterr().out
    frame.assign(verdict=opposite).to_csv(tmp_path / "second" / "tables" / "findings.csv", index=False)
    assert main(command) == 1 and "2 contradicted, 1 missing, 0 lost" in capsys.readouterr().out
    assert main(command[:2]) == 2


def test_verify_wants_equal_tables_on_the_same_machine_and_the_verdicts_elsewhere(study, monkeypatch, capsys):
    folder, figures, readme = study
    publish(folder, figures, readme)
    monkeypatch.setattr(press, "REPOSITORY", figures.parent)
    command = ["verify", str(folder)]
    assert main(command) == 0 and "the same machine type: tables are equal" in capsys.readouterr().out
    T1.assign(mAP=[56.76, 61.0]).to_csv(folder / "tables" / "T1.csv", index=False)
    assert main(command) == 1
    out = capsys.readouterr().out
    assert all(part in out for part in ("-2,flip,59.33", "+2,flip,61.0", "tables differ"))
    there = json.loads((figures / "study.json").read_text())
    write_json(figures / "study.json", there | {"device": "cpu: Slide rule"})
    assert main(command) == 0 and "2 findings, 2 of them decided" in capsys.readouterr().out
    (folder / "tables" / "findings.csv").write_text(FINDINGS.replace("none,supported", "none,contradicted"))
    assert main(command) == 1 and "1 contradicted" in capsys.readouterr().out
    write_json(figures / "study.json", there)
    other = folder.rename(folder.with_name("quick100"))  # another study: other seeds
    assert main(["verify", str(other)]) == 1 and "numbers move, verdicts are compared" in capsys.readouterr().out


def test_a_table_of_a_run_beside_the_others_is_in_the_readmes_table_of_tables(study):
    folder, figures, readme = study
    write_run(folder, "07_regime_map", [], ["tables/T7.md"])
    result = read_json(folder / "results" / "07_regime_map" / "results.json")
    result["values"] = {"tables": {"T7": {"question": "at which accuracy?", "notebook": "07"}}}
    write_json(folder / "results" / "07_regime_map" / "results.json", result)
    (folder / "tables" / "T7.md").write_text("| T7 |\n")
    assert list(publish(folder, figures, readme)["tables"]) == ["T1", "T7"]
    text = " ".join(readme.read_text().split())
    assert "[T7](../figures/tables/T7.md) | at which accuracy? | 07 | `python run_all.py quick --only '07*'` |" in text
    assert "does it help? | 02 | `python run_all.py quick --only '06*'` |" in text


ABOUT = "Crops of 44 people (Some et al., licence CC BY-NC-SA 4.0)."
OF_PEOPLE = """\
claim,compared,verdict,difference,diff low,diff high,p (Holm),smallest,regime
InfoNCE beats the ID loss,lite,supported,5.0,2.0,8.0,< 0.0003,2.0,
InfoNCE beats the ID loss,lite from scratch,open,1.0,-2.0,4.0,0.5,2.0,
re-ranking with hard weights helps,lite: hard against none,open,1.0,-2.0,4.0,0.5,2.0,outside
pre-training helps,lite: id against lite from scratch: id,supported,9.0,7.0,11.0,0.01,2.0,
"""


def test_numbers_of_real_people_are_shown_with_the_sets_terms_and_without_its_images_or_place(study):
    folder, figures, readme = study
    begin, end = MARKERS["people"]
    readme.write_text(f"# Study\n{begin}\nold\n{end}\nmore\n")
    (folder / "tables" / "findings.csv").write_text(OF_PEOPLE)
    write_run(folder, "01_data", [], ["figures/01_crops.png"])
    (folder / "figures" / "01_crops.png").write_bytes(b"a photograph")
    (folder / "tables" / "findings.md").write_text("Row 1: `run_all.py people --data '/home/me/my crops' --only 'a'`\n")
    given = {"command": "run_all.py people --data '/home/me/my crops'", "options": {"data": "/home/me/my crops"}}
    write_json(folder / "study.json", given)
    publish(folder, figures / "people", readme, ABOUT)
    drawn = sorted(path.name for path in (figures / "people").rglob("*") if path.suffix in (".png", ".svg", ".pdf"))
    assert drawn == [f"06_paper_tables_forest.{kind}" for kind in ("pdf", "png", "svg")]  # not the photograph
    assert (figures / "people" / "tables" / "findings.csv").read_text() == OF_PEOPLE
    text = (figures / "people" / "tables" / "findings.md").read_text()
    assert text == "Row 1: `run_all.py people --data FOLDER --only 'a'`\n"
    text = readme.read_text()
    assert text == f"# Study\n{begin}\n{people_section(figures / 'people')}{end}\nmore\n"
    shown = [line for line in text.splitlines() if line.startswith(("| InfoNCE", "| re-ranking", "| pre-training"))]
    assert len(shown) == 4 and "< 0.0003" in shown[0] and "11.00" in shown[3]
    assert ABOUT in text and f"commit `{COMMIT[:10]}`" in text and "150 queries, 3 seeds" in text
    assert main(["people", str(folder)]) == 2  # nothing is said of the set


@pytest.mark.skipif(not (FIGURES / "people").exists(), reason="no study of real people is published yet")
def test_the_readme_shows_what_the_published_tables_of_real_people_hold():
    assert people_section(FIGURES / "people") in RESULTS.read_text(encoding="utf-8")
    about = read_json(FIGURES / "people" / "study.json")["about"].lower()
    assert "licence" in about or "cc by" in about


@pytest.mark.skipif(not (FIGURES / "study.json").exists(), reason="no study is published yet: make figures")
def test_the_readme_shows_what_the_committed_figures_hold():
    assert f"{BEGIN}\n{results_section(FIGURES)}{END}" in RESULTS.read_text(encoding="utf-8")
    begin, end = MARKERS["findings"]
    assert f"{begin}\n{headlines(FIGURES)}{end}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")
    begin, end = MARKERS["beside"]
    assert f"{begin}\n{beside_section(FIGURES)}{end}" in RESULTS.read_text(encoding="utf-8")


def test_the_readmes_findings_set_rendered_and_real_people_side_by_side(tmp_path):
    lines = {
        "": "helps,a: x against y,supported,2,1,3,s (50.4 mAP here)\n"
        "helps,b: x against y,open,1.5,-1,4,s (60.1 mAP here)\n"
        "helps,c: x against y,supported,3,2,4,s (55 mAP here)\n"
        "wins,a: p against q,open,-1,-2,0.5,s (55 mAP here)\nwins,a: p against r,open,0.5,0.2,2,s (55 mAP here)\n",
        "people": "helps,d: x against y,contradicted,-2,-3,-1,s (70.0 mAP here)\nwins,d: p against q,open,2,1,3,\n",
    }
    for name, text in lines.items():
        (tmp_path / name / "tables").mkdir(parents=True)
        write_json(tmp_path / name / "study.json", {})
        head = "claim,compared,verdict,difference,diff low,diff high,regime\n"
        (tmp_path / name / "tables" / "findings.csv").write_text(head + text)
    *head_lines, _, first, second, _, _, last = headlines(tmp_path).splitlines()
    told = " ".join(head_lines)
    assert "single models reach 50 to 60 mAP on rendered players and 70 to 95 and more mAP on real people" in told
    turned = "The intervals of rendered players and real people lie on opposite sides of zero for "
    assert f"{turned}*helps* (x against y)." in told and "at twice the length" in last
    assert first == (
        "- **Helps.** Rendered players: ✓ 2, ? 1 +2.0 (1.0 to 3.0; median of 3). Real people: ✗ −2.0 (−3.0 to −1.0)."
    )
    assert second == (
        "- **Wins.** Rendered players: a: p against q ? −1.0 (−2.0 to 0.5), a: p against r ? +0.5 (0.2 to 2.0). "
        "Real people: ? +2.0 (1.0 to 3.0)."
    )
    *_, helps, _ = beside_section(tmp_path).strip().splitlines()
    assert "supported in 2 of 3, open in 1 of 3 (median a: x against y: +2.0 (1.0 to 3.0))" in helps
    assert "d: x against y: contradicted, −2.0 (−3.0 to −1.0)" in helps
    # Of two comparisons each is held against its own.
    both = {"": ("2,1,3", "-4,-7,-1"), "people": ("-5,-8,-2", "1,0.3,2")}
    for name, (one, other) in both.items():
        text = f"helps,a: x against y,open,{one},s (50 mAP here)\nhelps,a: x against z,open,{other},s (50 mAP here)\n"
        (tmp_path / name / "tables" / "findings.csv").write_text(head + text)
    assert f"{turned}*helps* (x against y, x against z)." in headlines(tmp_path)
    (tmp_path / "people" / "tables" / "findings.csv").write_text(
        f"{head}wins,x: p against q,open,-2,-3,1,s (70 mAP here)\n"
    )
    assert turned not in headlines(tmp_path)
    for name in ("", "people"):
        (tmp_path / name / "tables" / "findings.csv").write_text(head)
    assert headlines(tmp_path) == "No claim of the paper is tested here.\n"


def test_a_study_that_chose_settings_is_shown_in_a_folder_of_its_own(study, monkeypatch):
    folder, figures, _ = study
    monkeypatch.setattr(press, "REPOSITORY", figures.parent)
    assert main(["tuning", str(folder)]) == 0
    assert {"study.json", "06_paper_tables_forest.png"} <= {path.name for path in (figures / "quick").iterdir()}
    assert (figures / "00_old.png").exists()


def test_quick_and_full_are_compared_where_both_are_finished(study, monkeypatch, capsys):
    folder, figures, readme = study
    monkeypatch.setattr(press, "REPOSITORY", figures.parent)
    (figures.parent / "docs").mkdir()
    page = f"{BEGIN}\n{END}\n" + "\n".join(MARKERS["beside"]) + "\n"
    (figures.parent / "docs" / "results.md").write_text(page)
    readme.write_text("\n".join(MARKERS["findings"]) + "\n")
    shutil.copytree(folder, folder.with_name("full"))
    assert main(["figures"]) == 0
    assert read_json(figures / "study.json")["study"] == "full"
    assert "in " + str(folder) + ": 0 contradicted" in capsys.readouterr().out
    (folder / "tables" / "findings.csv").write_text(FINDINGS.replace("none,supported", "none,contradicted"))
    assert main(["figures"]) == 1 and "1 contradicted" in capsys.readouterr().out
