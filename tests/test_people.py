"""The study of real people: what its plan asks for, and how its numbers are shown."""

from pathlib import Path

import pytest
from test_publish import write_run

from notebook_study.plan import expand
from notebook_study.study_file import declared_parameters, read_study
from reid_utils.files import read_json, write_json
from reid_utils.paper.people import MARKERS, publish, section
from reid_utils.paper.publish import LAST

ROOT = Path(__file__).resolve().parents[1]


def test_every_fold_of_real_people_is_trained_with_the_rate_of_its_own_loss():
    study = read_study(ROOT / "studies" / "people.yaml")
    declared = {path.stem: declared_parameters(path) for path in (ROOT / "notebooks").glob("*.ipynb")}
    runs = {run.id: run for run in expand(study, declared)}
    folds = [run for run in runs.values() if run.group == "folds"]
    assert len(folds) == 2 * 2 * 3 * 4
    for run in folds:
        read = [runs[name].parameters for name in run.inputs]
        assert sorted(parameters["learning_rate"] for parameters in read) == [1e-3, 3e-3, 1e-2]
        kind = [run.parameters[name] for name in ("backbone", "pretrained", "loss")]
        assert all([parameters[name] for name in ("backbone", "pretrained", "loss")] == kind for parameters in read)
    assert {tuple(run.parameters["seeds"]) for run in folds} == {(0, 1, 2)}


ABOUT = "Crops of 44 people (Some et al., licence CC BY-NC-SA 4.0)."
FINDINGS = """\
claim,compared,verdict,difference,diff low,diff high,p (Holm),smallest,regime
InfoNCE beats the ID loss,lite,"supported, holds over seeds and queries",5.0,2.0,8.0,< 0.0003,2.0,
InfoNCE beats the ID loss,lite from scratch,cannot be told,1.0,-2.0,4.0,0.5,2.0,
re-ranking with hard weights helps,lite: hard against none,cannot be told,1.0,-2.0,4.0,0.5,2.0,outside
pre-training helps,lite: id against lite from scratch: id,"supported, holds over both",9.0,7.0,11.0,0.01,2.0,
"""


@pytest.fixture
def finished_study(tmp_path):
    """A finished study people, its trainings of another commit than its tables; a folder and a README to publish in."""
    folder, readme = tmp_path / "runs" / "people-crops", tmp_path / "README.md"
    write_run(folder, "02_training__a", [], ["figures/02_crops.png"], commit="a" * 40)
    write_run(folder, LAST, ["02_training__a"])
    for name in ("tables/T1.csv", "tables/T3.csv", "tables/findings.md", "figures/02_crops.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (folder / "tables" / "findings.csv").write_text(FINDINGS)
    (folder / "tables" / "findings.md").write_text("Row 1: `run_all.py people --data '/home/me/my crops' --only 'a'`\n")
    write_json(folder / "study.json", {"options": {"data": "/home/me/my crops"}})
    readme.write_text(f"# Study\n{MARKERS[0]}\nold\n{MARKERS[1]}\nmore\n")
    return folder, tmp_path / "figures" / "people", readme


def test_numbers_of_real_people_are_shown_with_the_sets_terms_and_without_its_images(finished_study):
    folder, figures, readme = finished_study
    publish(folder, figures, readme, ABOUT)
    assert not [path for path in figures.rglob("*") if path.suffix in (".png", ".svg")]
    assert (figures / "tables" / "findings.csv").read_text() == FINDINGS
    assert (figures / "tables" / "findings.md").read_text() == "Row 1: `run_all.py people --data FOLDER --only 'a'`\n"
    text = readme.read_text()
    assert text == f"# Study\n{MARKERS[0]}\n{section(figures)}{MARKERS[1]}\nmore\n"
    shown = [line for line in text.splitlines() if line.startswith(("| InfoNCE", "| re-ranking", "| pre-training"))]
    assert len(shown) == 2 and "< 0.0003" in shown[0] and "11.00" in shown[1]
    assert ABOUT in text and "commit `aaaaaaaaaa` (tables: `0123456789`)" in text and "150 queries, 3 seeds" in text


def test_a_study_of_real_people_with_changes_is_not_shown(finished_study):
    folder, figures, readme = finished_study
    write_run(folder, "02_training__a", [], dirty=True)
    with pytest.raises(ValueError, match="02_training__a was not made at a clean commit"):
        publish(folder, figures, readme, ABOUT)
    assert "old" in readme.read_text() and not figures.exists()


@pytest.mark.skipif(not (ROOT / "figures" / "people").exists(), reason="no study of real people is published yet")
def test_the_readme_shows_what_the_published_tables_of_real_people_hold():
    assert section(ROOT / "figures" / "people") in (ROOT / "README.md").read_text(encoding="utf-8")
    about = read_json(ROOT / "figures" / "people" / "study.json")["about"].lower()
    assert "licence" in about or "cc by" in about
