"""Copies of the notebooks in lab/: made fresh, kept where somebody changed them, and no business of git's."""

import json
import os
import shutil
import subprocess
import sys

import nbformat
from conftest import ROOT

from tools.lab import renew


def _write(folder, name, *sources):
    folder.mkdir(exist_ok=True)
    (folder / "README.md").write_text("# The way")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(book, folder / name)


def _read(path):
    return [cell["source"] for cell in nbformat.read(path, as_version=4).cells]


def test_copies_are_renewed_unless_somebody_changed_them(tmp_path):
    notebooks, lab = tmp_path / "notebooks", tmp_path / "lab"
    for name in ("run.ipynb", "changed.ipynb"):
        _write(notebooks, name, "epochs = 1")
    assert renew(notebooks, lab) == [] and (lab / "README.md").exists()
    ran = nbformat.read(lab / "run.ipynb", as_version=4)
    ran.cells[0]["outputs"] = [nbformat.v4.new_output("stream", text="done")]
    nbformat.write(ran, lab / "run.ipynb")
    _write(lab, "changed.ipynb", "epochs = 9")
    assert renew(notebooks, lab) == []
    assert "done" in (lab / "run.ipynb").read_text()  # outputs stay until there is something new
    for name in ("run.ipynb", "changed.ipynb"):
        _write(notebooks, name, "epochs = 2")
    assert renew(notebooks, lab) == ["changed.ipynb"]
    assert _read(lab / "run.ipynb") == ["epochs = 2"] and _read(lab / "changed.ipynb") == ["epochs = 9"]
    (lab / "changed.ipynb").unlink()
    assert renew(notebooks, lab) == [] and _read(lab / "changed.ipynb") == ["epochs = 2"]


def test_git_sees_nothing_of_a_notebook_that_was_run_in_the_lab(tmp_path):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    tracked = subprocess.check_output(["git", "-C", ROOT, "ls-files", "-z", "--", "*.py", "notebooks", "*.toml", ".*"])
    for name in filter(None, os.fsdecode(tracked).split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    git("init", "--quiet")
    git("add", "--all")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "--message=all")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    execute = ["-m", "papermill", "--no-progress-bar", "01_data_exploration.ipynb", "01_data_exploration.ipynb"]
    for command, place in ((["tools/lab.py"], tmp_path), (execute, tmp_path / "lab")):
        done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    book = json.loads((tmp_path / "lab" / "01_data_exploration.ipynb").read_text())
    outputs = [output for cell in book["cells"] for output in cell.get("outputs", [])]
    assert any("colour histograms: mAP 60.1%" in "".join(output.get("text", "")) for output in outputs)  # docs/data.md
    assert not [output for output in outputs if output.get("name") == "stderr"]  # no red box on a first look
    assert (tmp_path / "runs" / "lab" / "results" / "01_data_exploration" / "results.json").exists()
    assert git("status", "--porcelain") == ""
