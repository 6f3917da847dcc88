"""What a notebook reads when it is opened on its own: a finished study's runs, or small ones made now in runs/lab."""

import subprocess
import sys
from pathlib import Path

from reid_utils.study.folders import StudyFolders
from reid_utils.study.notebooks import declared_in
from reid_utils.study.plan import expand
from reid_utils.study.study_file import read_study

ROOT = Path(__file__).resolve().parents[2]


def find_inputs(notebook, only, root=ROOT, report=print):
    """Result folders that `notebook` (its stem) reads, as texts.

    Those of the `quick` study where it has finished them; else of the `lab` study, whose runs matching the glob `only`
    are made first (about a minute, once). Raises RuntimeError naming the logs when one of them fails.
    """
    for study in ("quick", "lab"):
        folders = _inputs_of(notebook, study, root)
        if all(StudyFolders(root / "runs" / study).record(folder.name).exists() for folder in folders):
            break
    else:
        report(f"no finished study has what {notebook} reads: making the small runs of the lab study, about a minute")
        command = [sys.executable, "run_all.py", "lab", "--only", only]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True)
        if done.returncode:
            told = (done.stderr or done.stdout).strip().splitlines()[-1]
            raise RuntimeError(f"the lab study did not end well: {told} (logs: {root}/runs/lab/logs)")
    report(f"reading {len(folders)} run(s) of the {study} study")
    return [str(folder) for folder in folders]


def _inputs_of(notebook, study, root):
    plan = read_study(root / "studies" / f"{study}.yaml")
    run = next(run for run in expand(plan, declared_in(plan, root / "notebooks")) if run.notebook == notebook)
    return [StudyFolders(root / "runs" / study).results(upstream) for upstream in run.inputs]
