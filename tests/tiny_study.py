"""A two-notebook study in a folder of its own, whose notebooks need no data (unless given) and no heavy library."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
GIVEN = 'data = ""\nout = ""\nrun_id = ""\ninputs = []\n'
TRAIN = """\
import json, os, time
from pathlib import Path
from reid_utils.files import write_text
folder = Path(out) / "results" / run_id
step = folder / "step.txt"
for number in range(int(step.read_text()) if step.exists() else 0, steps):
    time.sleep(pause)
    write_text(step, str(number + 1))
    print("step", number + 1)
print(*sorted(f"{name}={value}" for name, value in os.environ.items() if name.endswith("_NUM_THREADS")))
write_text(Path(out) / "figures" / f"{run_id}_curve.svg", "<svg/>")
files = [f"figures/{run_id}_curve.svg"]
write_text(folder / "results.json", json.dumps({"score": len(augmentation), "files": files}))
"""
TABLE = """\
import json
from pathlib import Path
from reid_utils.files import write_text
rows = [f"{Path(folder).name},{json.loads((Path(folder) / 'results.json').read_text())['score']}" for folder in inputs]
write_text(Path(out) / "tables" / "T1.csv", "\\n".join(rows) + "\\n")
write_text(Path(out) / "results" / run_id / "results.json", '{"files": ["tables/T1.csv"]}')
"""
STUDY = """\
study: tiny
data: rendered
notebooks:
  - notebook: 02_training
    minutes: 0.1
    parameters: {steps: 2}
    grid:
      - {augmentation: [none, flip]}
  - notebook: 06_paper_tables
    after: all
"""
DRIVER = """\
import sys
from pathlib import Path
sys.path.insert(0, {repository!r})
import run_all
run_all.ROOT = Path({clone!r})
run_all.NOTEBOOKS = run_all.ROOT / "notebooks"
if "--data" not in sys.argv:
    run_all.data_folder = lambda args, study: ("/data", "fingerprint")
    run_all.check_images = lambda *a: None
sys.exit(run_all.main())
"""


def write_notebook(path, parameters, *sources, kernel="python3"):
    """Write a notebook: a markdown title, a tagged parameters cell (left out where None), code cells."""
    book = nbformat.v4.new_notebook(
        metadata={"kernelspec": {"name": kernel, "display_name": "x", "language": "python"}}
    )
    book.cells = [nbformat.v4.new_markdown_cell(f"# {Path(path).stem}")]
    if parameters is not None:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(source) for source in sources]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


def make_clone(folder):
    """Write the tiny study's notebooks, study file, lock and a driver that stands in for run_all.py -> folder."""
    folder = Path(folder)
    own = 'augmentation = "none"\nsteps = 1\npause = 0.0\n'
    write_notebook(folder / "notebooks" / "02_training.ipynb", GIVEN + own, TRAIN)
    write_notebook(folder / "notebooks" / "06_paper_tables.ipynb", GIVEN, TABLE)
    (folder / "studies").mkdir()
    (folder / "studies" / "tiny.yaml").write_text(STUDY)
    (folder / "requirements.lock").write_text("numpy==2\n")
    (folder / "driver.py").write_text(DRIVER.format(repository=str(REPOSITORY), clone=str(folder)))
    return folder


def start(clone, *arguments, cwd=None, **environment):
    """Start the driver with `tiny` and more arguments, in a folder, with more variables -> Popen with piped output."""
    return subprocess.Popen(
        [sys.executable, str(clone / "driver.py"), "tiny", "--runs", str(clone / "runs"), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
    )


def call(clone, *arguments):
    """Run the driver to its end -> (status, stdout, stderr)."""
    process = start(clone, *arguments)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def write_images(folder, colour=80):
    """Write a Synergy-layout folder of plain crops -> folder."""
    names = [f"reid_training/{player}_{player}_0{frame}.jpeg" for player in (1, 2) for frame in (0, 1)]
    for name in [*names, "reid_test/query/3_3_00.jpeg", "reid_test/gallery/3_3_01.jpeg"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 32), (len(name), colour, 160)).save(folder / name)
    return folder


def processes_of(clone):
    """The ids of the processes that work in a clone: workers by their job file, kernels by their working directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(clone) in (entry / "cmdline").read_text() or str(clone) in str((entry / "cwd").readlink()):
                found.append(int(entry.name))
        except OSError:
            continue  # ended while we looked
    return found


def wait_until(condition, seconds=60):
    """Wait for a condition; assert that it comes true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
