"""One run in a process of its own: `python -m reid_utils.study.worker JOB.json`.

The job names the notebook, its parameters and its key. The run's record under state/ is written last, so that a run
killed at any moment counts as not done; its results folder keeps what a resuming run with the same key can use.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from reid_utils.files import read_json, write_json, write_text

LOCK_LIMIT = 60  # seconds; a lost machine's lock on a shared folder outlives it by some
KERNEL_START_LIMIT = 300  # seconds; a loaded machine may need more than papermill's 60
SOCKET_PATH_LIMIT = 80  # characters; a socket's whole path must stay below 104


def main(arguments):
    """Execute the job in a JSON file -> exit status: 0 done, 1 failed (the reason is in state/<run>.failed.json)."""
    job = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    die_with(job["parent"])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    root, run_id = Path(job["root"]), job["run"]
    lock = FileLock(root / "locks" / f"{run_id}.lock")
    try:
        lock.acquire(timeout=LOCK_LIMIT)
    except Timeout:
        return _fail(root, run_id, f"another process is still running {run_id}; wait for it or end it")
    with lock:
        prepare_folders(root, run_id, job["key"], job["fresh"], job["longer_ids"])
        return _execute(job, root, run_id)


def prepare_folders(root, run_id, key, fresh, longer_ids=()):
    """Make a run's results folder ready, keeping what is there only when it was begun with the same key.

    fresh: empty it in any case. The record of a former run goes first: from here on the run counts as not done.
    longer_ids: ids of other runs that begin with this one, whose figures stay.
    """
    folder = root / "results" / run_id
    for record in (f"{run_id}.json", f"{run_id}.failed.json"):
        (root / "state" / record).unlink(missing_ok=True)
    kept = folder / "key"
    if fresh or not kept.is_file() or kept.read_text(encoding="utf-8") != key:
        shutil.rmtree(folder, ignore_errors=True)
        for figure in own_figures(root, run_id, longer_ids):
            figure.unlink()
    for name in ("notebooks", "figures", "tables"):
        (root / name).mkdir(parents=True, exist_ok=True)
    write_text(kept, key)


def own_figures(root, run_id, longer_ids):
    """The figure files of a run, sorted: figures/<run id>_*, those of runs with a longer id left out."""
    figures = sorted((root / "figures").glob(f"{run_id}_*"))
    return [path for path in figures if not any(path.name.startswith(f"{other}_") for other in longer_ids)]


def _execute(job, root, run_id):
    """Run the notebook with papermill and record the outcome -> exit status."""
    began = time.time()
    import papermill  # 2.5 s
    from nbclient.exceptions import DeadKernelError

    saved = root / "notebooks" / f"{run_id}.ipynb"
    failed, unfinished = saved.with_suffix(".failed.ipynb"), saved.with_suffix(".running.ipynb")
    try:
        _run_notebook(job, unfinished)
    except papermill.PapermillExecutionError as error:
        unfinished.replace(failed)
        last = " ".join(f"{error.ename}: {error.evalue}".split())
        return _fail(root, run_id, f"cell {error.cell_index} (In [{error.exec_count}]): {last}; see {failed}")
    except DeadKernelError:
        unfinished.replace(failed)
        cell = _last_started(failed)
        return _fail(root, run_id, f"the kernel died in cell {cell} (out of memory, or killed); see {failed}")
    unfinished.replace(saved)
    failed.unlink(missing_ok=True)
    _record(job, root, run_id, saved, began)
    return 0


def _run_notebook(job, saved):
    """Execute a job's notebook, saving it after every cell.

    The kernel is reached through sockets in a private folder: network ports are chosen before the kernel takes them,
    so that kernels started at the same moment can choose the same ones.
    """
    import papermill
    from traitlets.config import Config

    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (job["notebook"], saved)]  # papermill formats
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        private = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        papermill.execute_notebook(
            *paths,
            parameters=job["parameters"],
            kernel_name="python3",
            cwd=job["cwd"],
            progress_bar=False,
            log_output=True,
            start_timeout=KERNEL_START_LIMIT,
            extra_arguments=[f"--IPKernelApp.exec_lines={IN_KERNEL}"],
            config=Config(KernelManager=private if len(folder) < SOCKET_PATH_LIMIT else {}),
        )


def _record(job, root, run_id, saved, began):
    """Write the record that makes the run count as done: key, files, seconds, seconds until the kernel answered."""
    made = [saved, *own_files(root / "results" / run_id), *own_figures(root, run_id, job["longer_ids"])]
    made += [path for path in own_files(root / "tables") if path.stat().st_mtime >= began]
    record = {
        "key": job["key"],
        "parts": job["parts"],
        "files": [path.relative_to(root).as_posix() for path in made],
        "seconds": round(time.time() - began, 1),
        "kernel_seconds": _kernel_seconds(saved),
    }
    write_json(root / "state" / f"{run_id}.json", record)


def own_files(folder):
    """The files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _kernel_seconds(saved):
    """Seconds from papermill's start to the first cell's start: the time a kernel needs to answer."""
    notebook = read_json(saved)
    first = notebook["cells"][0]["metadata"]["papermill"]["start_time"]
    start = datetime.fromisoformat(notebook["metadata"]["papermill"]["start_time"])
    return round((datetime.fromisoformat(first) - start).total_seconds(), 1)


def _last_started(saved):
    """Number (from 0) of the last cell that a saved notebook began."""
    cells = read_json(saved)["cells"]
    return max((n for n, cell in enumerate(cells) if cell["metadata"]["papermill"]["start_time"]), default=0)


def _fail(root, run_id, message):
    """Record why a run failed -> exit status 1."""
    write_json(root / "state" / f"{run_id}.failed.json", {"message": message})
    logging.error(message)
    return 1


PR_SET_PDEATHSIG = 1
IN_KERNEL = "__import__('reid_utils.study.worker', fromlist=['_']).die_with()"  # leaves no name behind


def die_with(parent=None):
    """Have the system kill this process (Linux) as soon as its parent ends; exit at once where that has happened.

    parent: process id, by default the one that Jupyter gives a kernel. A kernel's own watch over its parent waits for
    the interpreter lock, so that a long call in C would keep it alive.
    """
    parent = parent or int(os.environ["JPY_PARENT_PID"])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(f"the process {parent} that started this one is gone")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
