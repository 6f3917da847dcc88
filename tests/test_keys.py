"""Keys of runs: what decides a result and what does not, and what they say of runs that are done."""

import os
import shutil

import pytest
from tiny_study import GIVEN, REPOSITORY, write_notebook

from notebook_study import keys
from notebook_study.folders import StudyFolders
from notebook_study.plan import Run
from notebook_study.study_file import StudyError
from reid_utils import code
from reid_utils.files import file_hash, folder_fingerprint, read_json, stamp, write_json, write_text


def run_of(name, inputs=(), minutes=1.0, **parameters):
    return Run(name, name.split("__")[0], "", parameters, tuple(inputs), minutes)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `reid_utils` of a few modules for imported_modules to read."""
    sources = {
        "__init__.py": "",
        "ranking/__init__.py": "from .distances import squared\n",
        "ranking/distances.py": "import numpy as np\n",
        "ranking/metrics.py": "def late():\n    from ..data import images\n",
        "data/__init__.py": "",
        "data/images.py": "x = 1\n",
        "learning/__init__.py": "",
        "learning/losses.py": "y = 1\n",
    }
    for name, source in sources.items():
        write_text(tmp_path / "reid_utils" / name, source)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    monkeypatch.setattr(keys, "PACKAGE", tmp_path / "notebook_study")
    forget()
    yield tmp_path
    forget()


def forget():
    """As a new process: what was read of notebooks and modules is read again."""
    for read in (keys.imported_modules, keys._notebook_imports, code._read_module, code.installed_versions):
        read.cache_clear()


def key_of(clone, source="from reid_utils.ranking import metrics", run=None, threads=1, data="f", upstream=None):
    write_notebook(clone / "n.ipynb", GIVEN, source)
    forget()
    run = run or run_of("n", seeds=[0])
    return keys.key_parts(run, clone / "n.ipynb", clone / "requirements.lock", threads, upstream or {}, data)


def test_magics_are_no_obstacle_and_broken_cells_are_named(package):
    assert "reid_utils.learning.losses" in key_of(package, "%time\n!ls\nimport reid_utils.learning.losses")["modules"]
    with pytest.raises(StudyError, match=r"n\.ipynb: cell 3 has a syntax error in line 1"):
        key_of(package, "for")


def test_every_part_of_a_key_is_told_when_it_changes(package):
    before = key_of(package)
    assert keys.changes(before, key_of(package)) == []
    write_text(package / "reid_utils" / "data" / "images.py", "x = 2\n")
    assert keys.changes(before, key_of(package)) == ["reid_utils.data.images changed"]
    write_text(package / "reid_utils" / "data" / "images.py", "x = 1\n")
    write_text(package / "reid_utils" / "learning" / "losses.py", "y = 2\n")  # not imported
    assert keys.changes(before, key_of(package)) == []
    assert keys.changes(before, key_of(package, run=run_of("n", seeds=[1]))) == ["parameter seeds changed"]
    assert keys.changes(before, key_of(package, threads=2)) == ["threads changed"]
    assert keys.changes(before, key_of(package, data="g")) == ["data changed"]
    assert keys.changes(before, key_of(package, upstream={"a": "k"})) == ["upstream a changed"]
    changed = key_of(package, "from reid_utils.ranking import metrics\nmetrics.late()")
    assert keys.changes(before, changed) == ["notebook changed"]


def test_installed_versions_count_and_not_how_the_lock_is_written(package, monkeypatch):
    lock = package / "requirements.lock"
    lock.write_bytes(b"PyYAML==6.0 \\\n    --hash=sha256:0\n    # via x\nnot-installed==1\n")
    before = key_of(package)
    assert set(before["packages"]) == {"pyyaml"}
    lock.write_bytes(lock.read_bytes().replace(b"\n", b"\r\n").replace(b"6.0", b"7.0").replace(b"PyYAML", b"pyyaml"))
    lock.write_bytes(b"\xef\xbb\xbf" + lock.read_bytes())  # a byte order mark, from an editor
    assert keys.changes(before, key_of(package)) == []
    added = key_of(package, "from reid_utils.ranking import metrics\nimport numpy")  # a library that no lock names
    assert set(added["packages"]) == {"pyyaml", "numpy"}
    write_text(package / "PyYAML-0.1.dist-info" / "METADATA", "Metadata-Version: 2.1\nName: PyYAML\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(package)
    assert keys.changes(before, key_of(package)) == ["package pyyaml changed"]


def test_a_file_that_a_parameter_names_counts_by_what_it_holds(package):
    run = run_of("n", start=str(package / "weights"), loss="x" * 300)
    write_text(package / "weights", "1")
    before = key_of(package, run=run)
    os.utime(package / "weights", (1, 1))
    assert keys.changes(before, key_of(package, run=run)) == []
    write_text(package / "weights", "2")
    assert keys.changes(before, key_of(package, run=run)) == ["content of start changed"]


def test_what_the_caller_says_a_run_reads_counts_by_its_content(package):
    given = [run_of("n")], package, "none", 1, "f"
    key_of(package)
    told = ({}, {"weights": "1"}, {"weights": "2"})
    plain, first, second = (keys.run_keys(*given, contents=lambda run, own=own: own)["n"] for own in told)
    assert keys.run_keys(*given)["n"] == plain
    for before, after in ((plain, first), (first, second)):
        assert before[0] != after[0] and keys.changes(before[1], after[1]) == ["content of weights changed"]


def test_outputs_and_metadata_of_a_notebook_do_not_count(package):
    before = key_of(package)
    content = read_json(package / "n.ipynb")
    content["cells"][2] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}], "execution_count": 4}
    content["cells"][2]["metadata"] = {"scrolled": True}
    write_json(package / "n.ipynb", content)
    forget()
    parts = keys.key_parts(run_of("n", seeds=[0]), package / "n.ipynb", package / "requirements.lock", 1, {}, "f")
    assert parts == before


def test_keys_hold_no_path_so_a_moved_clone_keeps_its_runs(package):
    assert str(package) not in str(key_of(package))


def test_folder_fingerprint_follows_content_and_names_only(tmp_path):
    write_text(tmp_path / "a" / "x.csv", "1")
    write_text(tmp_path / "b" / "x.csv", "1")
    os.utime(tmp_path / "b" / "x.csv", (1, 1))
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "__MACOSX/x.csv", "@eaDir/x.csv"):
        write_text(tmp_path / "b" / name, "a file manager was here")
    assert folder_fingerprint(tmp_path / "a") == folder_fingerprint(tmp_path / "b")
    write_text(tmp_path / "b" / "x.csv", "2")
    assert folder_fingerprint(tmp_path / "a") != folder_fingerprint(tmp_path / "b")
    write_text(tmp_path / "c" / "\udcff.csv", "1")  # a name that is no UTF-8
    assert folder_fingerprint(tmp_path / "c") != folder_fingerprint(tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        folder_fingerprint(tmp_path / "missing")


def record(root, run_id, key, parts=None, files=(), seconds=10.0):
    write_json(root / "state" / f"{run_id}.json",
               {"key": key, "parts": parts or {}, "files": list(files), "seconds": seconds})  # fmt: skip


def test_states_tell_done_stale_and_to_do(tmp_path):
    runs = [run_of(name) for name in "abcde"]
    write_text(tmp_path / "results" / "a" / "results.json", "{}")
    record(tmp_path, "a", "k", files=["results/a/results.json"])
    record(tmp_path, "b", "old", {"parameters": {"epochs": 1}})
    record(tmp_path, "c", "k", files=["tables/T1.csv"])
    write_json(tmp_path / "state" / "d.failed.json", {"message": "x"})
    key = {run.id: ("k", {"parameters": {"epochs": 2}}) for run in runs}
    states = keys.run_states(runs, StudyFolders(tmp_path), key)
    assert [(states[name].name, states[name].reason, states[name].seconds) for name in "abcde"] == [
        ("done", "", 10),
        ("stale", "parameter epochs changed", 10),
        ("stale", "tables/T1.csv is gone", 10),
        ("to do", "failed last time", 60),
        ("to do", "", 60),
    ]
    assert {state.name for state in keys.run_states(runs, StudyFolders(tmp_path), None).values()} == {"to do"}


def test_a_result_that_was_changed_by_hand_is_told_and_one_that_was_copied_is_not(tmp_path):
    path, run = tmp_path / "results" / "a" / "scores.csv", run_of("a")
    write_text(path, "0.71")
    kept = {"key": "k", "parts": {}, "seconds": 1, "files": ["results/a/scores.csv", "notebooks/a.ipynb"]}
    kept["contents"] = {"results/a/scores.csv": [*stamp(path), file_hash(path)]}
    write_json(tmp_path / "state" / "a.json", kept)
    write_text(tmp_path / "notebooks" / "a.ipynb", "looked at and saved")

    def state():
        found = keys.run_states([run], StudyFolders(tmp_path), {"a": ("k", {})})["a"]
        return found.name, found.reason

    assert state() == ("done", "")
    os.utime(path, (1, 1))
    assert state() == ("done", "")
    for content in ("0.91", "0.7", ""):
        write_text(path, content)
        assert state() == ("stale", "results/a/scores.csv was changed by hand")
    path.unlink()
    assert state() == ("stale", "results/a/scores.csv is gone")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A copy of the package and the notebooks whose keys are computed -> its folder."""
    for name in ("reid_utils", "rendered_players", "notebooks"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    monkeypatch.setattr(keys, "PACKAGE", tmp_path / "notebook_study")
    forget()
    yield tmp_path
    forget()


def parts_of(house):
    """{notebook: key parts} of every notebook as it stands now."""
    forget()
    paths = sorted((house / "notebooks").glob("*.ipynb"))
    return {path.stem[:2]: keys.key_parts(run_of("n"), path, "none", 1, {}, "f") for path in paths}


def changed_in(before, after):
    return {stem for stem in before if before[stem] != after[stem]}


def edit(house, module):
    """Change what a module says."""
    with (house / "reid_utils" / module).open("a") as file:
        file.write("\nANOTHER = 1\n")


def test_comments_docstrings_and_markdown_decide_nothing(house):
    before = parts_of(house)
    for path in [*(house / "reid_utils").rglob("*.py"), *(house / "rendered_players").rglob("*.py")]:
        path.write_text(path.read_text().replace('"""', '"""Now ', 1) + "\n\n# a comment more\n")
    for path in (house / "notebooks").glob("*.ipynb"):
        content = read_json(path)
        content["cells"] = [{"cell_type": "markdown", "metadata": {}, "source": ["new"]}, *content["cells"]]
        for cell in content["cells"]:
            cell["source"] = [*cell["source"], "\n# a remark" if cell["cell_type"] == "code" else " typo"]
        write_json(path, content)
    assert parts_of(house) == before


def test_a_colour_or_a_table_costs_no_training_and_a_loss_does(house):
    before = parts_of(house)
    edit(house, "views/style.py")
    after_colour = changed_in(before, parts_of(house))
    assert "02" not in after_colour and {"05", "06"} <= after_colour  # drawn anew, which costs seconds
    edit(house, "paper/tables.py")
    assert "02" not in changed_in(before, parts_of(house))
    edit(house, "learning/losses.py")
    after = parts_of(house)
    assert keys.changes(before["02"], after["02"]) == ["reid_utils.learning.losses changed"]


def test_portable_instructions_make_another_key(package):
    key_of(package)
    given = run_of("n"), package / "n.ipynb", "none", 1, {}, "f"
    assert keys.changes(keys.key_parts(*given), keys.key_parts(*given, portable=True)) == ["portable changed"]
