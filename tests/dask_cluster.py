"""A Dask cluster of processes on this machine's loopback, for tests and fault campaigns."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed import Client

REPOSITORY = Path(__file__).resolve().parents[1]
LOOPBACK = ("--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
# Ends with the process that started it, whatever becomes of that one.
PROGRAM = "import os, sys; from notebook_study.worker import die_with; die_with(int(sys.argv.pop(1))); "
SCHEDULER = PROGRAM + "from distributed.cli.dask_scheduler import main; main()"
WORKER = PROGRAM + "from distributed.cli.dask_worker import main; main()"


def _launch(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, str(os.getpid()), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )


def start_scheduler(folder):
    """Start a scheduler on a free port of 127.0.0.1 -> (Popen, its address)."""
    file = Path(folder) / "scheduler.json"
    process = _launch(SCHEDULER, *LOOPBACK, "--port", "0", "--scheduler-file", str(file))
    end = time.monotonic() + 60
    while not file.exists() or not file.read_text():
        assert process.poll() is None and time.monotonic() < end, "the scheduler did not start"
        time.sleep(0.05)
    return process, json.loads(file.read_text())["address"]


def start_worker(address, *options, prelude=""):
    """Start a Dask worker of one thread, in one process, which runs the code `prelude` first -> Popen."""
    fixed = ("--nthreads", "1", "--no-nanny", "--death-timeout", "60", "--local-directory", tempfile.gettempdir())
    return _launch(prelude + WORKER, address, *LOOPBACK, *fixed, *options)


def stop(*processes):
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


@contextlib.contextmanager
def cluster(folder, workers=2):
    """Yield the address and the list of worker processes of a cluster that ends with the block."""
    scheduler, address = start_scheduler(folder)
    processes = [start_worker(address) for _ in range(workers)]
    try:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)
        yield address, processes
    finally:
        stop(scheduler, *processes)
