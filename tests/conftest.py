"""Settings of the test process, made before anything imports a numeric library, and what several files share."""

import os

# One quiet thread, as studies run: spinning pools of several processes slow each other down many times over.
os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "MPLBACKEND": "agg"})

# The suite's byte-for-byte comparisons are of CPUs; `make test-gpu` runs what is about a GPU.
if "TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


POOL = """\
  - notebook: 02_training
    name: pool
    parameters: &small {seeds: [0, 1], epochs: 1, image_height: 64, image_width: 32, batch_pairs: 16}
    grid:
      - pool: {seed: 1, train_players: 36, test_players: 4, challenge_players: 2, frames: 6}
    named_by: [backbone]
  - notebook: 02_training
    name: pretrained
    parameters: *small
    each: {notebook: 02_training, name: pool}
  - notebook: 02_training
    name: longer
    parameters: {<<: *small, epochs: 2, learning_rate: 4.0e-3, head_rate: 0.1}
    grid:
      - {backbone: test_byobnet, loss: [infonce, id], augmentation: erasing+sharpen}
    named_by: [loss]
"""


def _open_alone(tree, stem):
    """Execute a notebook with its own parameters, as JupyterLab would, in a copy of the repository."""
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", f"{stem}.ipynb", str(tree / f"{stem}.ipynb")]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree / "notebooks", capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="session")
def small_study(tmp_path_factory):
    """runs/lab of a copy of the repository in which 06, 01 and 02 were opened on their own; 06 makes the rest."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("notebooks", "notebook_study", "reid_utils", "studies", ".jupyter"):
        shutil.copytree(ROOT / name, tree / name)
    for name in ("run_all.py", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tree / name)
    lab = tree / "studies" / "lab.yaml"
    text = lab.read_text().replace("seeds: [0], epochs: 8", "seeds: [0, 1], epochs: 1")
    lab.write_text(text.replace("  - notebook: 03_post_processing\n", f"{POOL}  - notebook: 03_post_processing\n"))
    for stem in ("06_paper_tables", "01_data_exploration", "02_training"):
        _open_alone(tree, stem)
    return tree / "runs" / "lab"


@pytest.fixture(scope="session")
def chromium():
    """A headless Chromium, Debian's; tests that need one are skipped where it is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def pytest_collection_modifyitems(items):
    """Keep a file's tests in one process, and all files that share the small study: it takes minutes to make."""
    sharing = {item.path for item in items if "small_study" in getattr(item, "fixturenames", ())}
    for item in items:
        group = "small study" if item.path in sharing else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
