"""A study on a Dask cluster of this machine against the same study in local processes: `python -m benchmarks.cluster`

Runs the smoke study (or another) with --jobs 1, with --jobs N and on a cluster of N worker processes, each into a
folder of its own over the same data, compares the tables byte for byte and prints the times side by side.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from distributed import LocalCluster

from notebook_study.study_file import read_study
from reid_utils.data.sources import prepare_data

REPOSITORY = Path(__file__).resolve().parents[1]


@contextmanager
def workers(count):
    """Yield the address of a cluster of `count` single-threaded worker processes on this machine's loopback."""
    with LocalCluster(
        n_workers=count, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster.scheduler_address


def run(study, runs, *options):
    """Run a study into the folder `runs` -> (seconds, {table's name: bytes}). Raises CalledProcessError."""
    began = time.perf_counter()
    command = [sys.executable, "run_all.py", study, "--runs", str(runs), *options]
    subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    tables = sorted((runs / study / "tables").iterdir())
    return time.perf_counter() - began, {path.name: path.read_bytes() for path in tables}


def main():
    """Measure and print -> exit status: 0 where all tables are equal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="smoke")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, workers(options.workers) as address:
        data = Path(folder) / "data"
        count = str(options.workers)
        places = {
            "--jobs 1": ("--jobs", "1"),
            f"Dask, {count} workers": ("--scheduler", address),
            f"--jobs {count}": ("--jobs", count),
        }
        found = {}
        study = read_study(REPOSITORY / "studies" / f"{options.study}.yaml")
        prepare_data(study.data, data, study.rendering)  # before any clock
        for name, arguments in places.items():
            runs = Path(folder) / name.replace(" ", "_").strip("-")
            runs.mkdir()
            (runs / "data").symlink_to(data)
            found[name] = run(options.study, runs, *arguments)
            (seconds, tables), first = found[name], found["--jobs 1"]
            equal = "equal" if tables == first[1] else "DIFFERENT"
            print(f"{name:<16} {seconds:7.1f} s  ×{first[0] / seconds:.2f}  {len(tables)} tables {equal}", flush=True)
    return int(any(tables != first[1] for _, tables in found.values()))


if __name__ == "__main__":
    sys.exit(main())
