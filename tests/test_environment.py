import os
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
SEEN = ("3.12", "3.13")  # beside the 3.11 of everyday


def _name(requirement):
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def _pins():
    lock = (ROOT / "requirements.lock").read_text()
    return {_name(line): line for line in lock.splitlines() if re.match(r"[A-Za-z0-9]", line)}


def test_every_requirement_of_pyproject_is_pinned_within_its_bound():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = _pins()
    for requirement in [*project["dependencies"], *chain(*project["optional-dependencies"].values())]:
        bound = tuple(map(int, requirement.split(">=")[1].split(".")))
        pinned = re.search(r"==([0-9.]+)", pins[_name(requirement)])[1]
        assert tuple(map(int, pinned.strip(".").split("."))) >= bound, requirement


def test_every_pin_has_a_hash_and_no_address_is_written_down():
    lock = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[A-Za-z0-9])", lock.strip())
    assert len(entries) > 50 and all("--hash=sha256:" in entry for entry in entries)
    assert "://" not in lock and "index-url" not in lock


def test_conda_users_get_the_same_lock_and_a_python_that_the_project_takes():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = next(entry for entry in environment["dependencies"] if str(entry).startswith("python="))
    assert pip == ["-r requirements.lock"]
    assert python.removeprefix("python=") == project["requires-python"].removeprefix(">=")


def _uv(*arguments):
    environment = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("version", SEEN)
def test_the_lock_and_the_core_work_on_another_python(version, tmp_path):
    """Imports, ranking and data tests on each Python that `requires-python` is said to have been seen on."""
    if version not in os.environ.get("PYTHONS", "").split():
        pytest.skip("takes minutes and gigabytes: `make test-pythons`")
    made = _uv("venv", "--quiet", "--python", version, str(tmp_path / "env"))
    if made.returncode:
        pytest.skip(f"uv finds and fetches no Python {version}: {made.stderr.strip().splitlines()[-1]}")
    python = str(tmp_path / "env" / "bin" / "python")
    installed = _uv("pip", "install", "--quiet", "--python", python, "-r", "requirements.lock")
    assert installed.returncode == 0, installed.stderr[-2000:]
    assert _uv("pip", "install", "--quiet", "--python", python, "--no-deps", "-e", ".").returncode == 0
    tests = [f"tests/test_{name}.py" for name in ("metrics", "reranking", "distances", "fusion", "batches", "images")]
    done = subprocess.run([python, "-m", "pytest", "-x", *tests], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    modules = [f"reid_utils.{path.parent.name}.{path.stem}" for path in (ROOT / "reid_utils").glob("*/[!_]*.py")]
    modules += [f"notebook_study.{path.stem}" for path in (ROOT / "notebook_study").glob("[!_]*.py")]
    done = subprocess.run([python, "-c", f"import {', '.join(modules)}"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


CORE = """
import sys
import numpy as np
from reid_utils.ranking import cmc, mean_average_precision, rerank, rerank_distances, squared_euclidean
from reid_utils.ranking.fusion import two_stage_fusion
from reid_utils.ranking.statistics import compare_rows
from reid_utils.ranking.metrics import average_precisions

rng = np.random.default_rng(0)
players = rng.integers(0, 8, 80), np.arange(8)
centres = rng.normal(size=(8, 16))
query, gallery = (centres[ids] + rng.normal(size=(len(ids), 16)) for ids in players[::-1])
plain = squared_euclidean(query, gallery)
found = {variant: rerank(query, gallery, variant) for variant in ("hard", "gaussian", "kreciprocal")}
labels = players[1], players[0]
scores = {name: average_precisions(distances, *labels) for name, distances in {"none": plain, **found}.items()}
fused = two_stage_fusion([plain, *found.values()])
table = compare_rows(scores, "none", shared_weights=True)
assert 0 < mean_average_precision(fused, *labels) <= 1 and cmc(fused, *labels).shape == (100,) and len(table) == 4
print("core works", sorted({"torch", "sklearn", "matplotlib", "timm"} & set(sys.modules)))
"""


def test_the_core_alone_installs_in_an_empty_environment(tmp_path):
    """`pip install .` brings numpy, scipy, pandas and what the search needs; the rest is the extra `study`."""
    assert _uv("venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")).returncode == 0
    python = str(tmp_path / "env" / "bin" / "python")
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(
        "__pycache__", ".*", "runs", "build", "*.egg-info", "tests", "benchmarks", "weights"
    )
    shutil.copytree(ROOT, source, ignore=ignored)
    installed = _uv("pip", "install", "--quiet", "--python", python, str(source))
    if installed.returncode and re.search("error sending request|Failed to fetch|dns error|network", installed.stderr):
        pytest.skip(f"the package index is out of reach: {installed.stderr.strip().splitlines()[-1]}")
    assert installed.returncode == 0, installed.stderr[-2000:]
    names = {_name(line) for line in _uv("pip", "freeze", "--python", python).stdout.splitlines()}
    assert "numpy" in names and not names & {"torch", "timm", "scikit-learn", "jupyterlab", "papermill"}, names
    readme = (ROOT / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    printed = "".join(f"{re.escape(line)}\\n" for line in re.findall(r"\((0\.\d{3} 0\.\d{3})\)", readme))
    assert printed.count("\\n") == 3
    (tmp_path / "elsewhere").mkdir()
    for code, expected in ((CORE, r"core works \[\]\n"), (snippet, printed)):
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=tmp_path / "elsewhere")
        assert re.fullmatch(expected, done.stdout), done.stdout + done.stderr[-2000:]
