"""The command line of run_all.py."""

import argparse
import os
import sys
from pathlib import Path

from reid_utils.study.plan import MANY, grid_size
from reid_utils.study.study_file import StudyError


def parse(arguments, description, runs):
    """The options of a command line (list of str, None for the process's own) -> argparse.Namespace.

    runs: where results go unless --runs says otherwise. Raises StudyError for a number of jobs below 1.
    """
    parser = argparse.ArgumentParser(prog="run_all.py", description=description)
    add = parser.add_argument
    add("study", nargs="?", default="quick", help="a name in studies/, or a yaml file (default: quick)")
    add("--data", help="rendered, synergy, or a folder in the Synergy layout")
    add("--features", type=Path, help="folder of your own features or distance CSVs: no training")
    add("--only", metavar="GLOB", help="only runs whose id matches, and what they need")
    add(
        "--set", action="append", default=[], metavar="key=value", help="override a parameter (or threads, rendering.…)"
    )
    add("--dry-run", action="store_true", help="print the plan and end")
    add("--force", action="store_true", help="redo runs that are done")
    add("--jobs", type=int, default=os.cpu_count(), help="runs at once on this machine (default: number of cores)")
    add("--scheduler", metavar="ADDRESS", help="run on this Dask cluster (tcp://host:port), over a shared folder")
    add("--yes", action="store_true", help=f"go on without asking where grids span more than {MANY} runs")
    add("--accept-md5", metavar="SUM", help="accept a downloaded zip with this MD5")
    add("--runs", default=runs, type=Path, help="where results go (default: runs/)")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        raise StudyError(f"--jobs must be at least 1, not {options.jobs}")
    return options


def confirm_size(study, yes):
    """Ask before a study of more than MANY runs, unless `yes`. Raises StudyError where that is not wanted."""
    size = grid_size(study)
    if yes or size <= MANY:
        return
    question = f"the grids of study {study.name} span {size:,} runs"
    if not sys.stdin.isatty():
        raise StudyError(f"{question}; make them smaller, or add --yes")
    print(f"{question}; go on? [y/N] ", end="", flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise StudyError("nothing was done")
