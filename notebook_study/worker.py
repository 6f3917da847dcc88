"""One run in a process of its own: how it is started, what it does with its job (a JSON file), what it came to.

The job names the notebook, its parameters and its key. The run's record under state/ is written last, so that a run
killed at any moment counts as not done; its results folder keeps what a resuming run with the same key can use.
"""

import ctypes
import itertools
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from notebook_study.folders import StudyFolders
from notebook_study.keys import PACKAGE
from notebook_study.study_file import StudyError, declared_parameters
from reid_utils.code import installed_versions
from reid_utils.files import altered, file_hash, is_clutter, read_json, stamp, write_json, write_text

RUN = "from notebook_study.worker import main; sys.exit(main(sys.argv[1:]))"
KERNEL = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
# Instruction sets that every x86-64 processor of the last ten years has, set before a kernel starts because libraries
# choose their code as they load. MKL's COMPATIBLE is its only setting that holds on Intel's and AMD's processors alike.
PORTABLE = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_CBWR": "COMPATIBLE",
    "OPENBLAS_CORETYPE": "Haswell",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",
}
# Of the user's environment, what would run code of theirs in a kernel, or change numbers or figures behind its key.
DROPPED = ("PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "PYTHONOPTIMIZE", "MPLBACKEND", "MATPLOTLIBRC", *PORTABLE)
PUBLISHED = "1698537600"  # 2023-10-29, when what is reproduced was published: the date that reproducible files carry
REFUSED = 3  # exit status of a process that differs from the command that made its job
LOCK_LIMIT = 60  # seconds; a lost machine's lock on a shared folder outlives it by some
KERNEL_START_LIMIT = 300  # seconds; a loaded machine may need more than papermill's 60
SOCKET_PATH_LIMIT = 80  # characters; a socket's whole path must stay below 104


@dataclass(frozen=True)
class Outcome:
    """What a run came to: name "done", "failed" or "not run", with seconds and the message to show."""

    run: str
    name: str
    seconds: float = 0.0
    kernel_seconds: float = 0.0
    message: str = ""


def make_job(run, key, folders, notebooks, given, *, command, environment=None, gpus=None, fresh=False):
    """The job of a run, as plain values that a worker reads from JSON; every path in it is absolute.

    key: (key, parts) of the run; notebooks: their folder; given: {name: value} of what the engine passes to notebooks
    that declare it; command: as engine.hold yields it; environment: {variable: text} for the run; gpus: how many there
    are at most (None: any number); fresh: start from nothing.
    """
    notebook = Path(notebooks).resolve() / f"{run.notebook}.ipynb"
    declared = declared_parameters(notebook)
    inputs = [str(folders.results(name)) for name in run.inputs]
    given = {**given, "out": str(folders.root), "run_id": run.id, "inputs": inputs}
    return {
        "run": run.id,
        "entry": run.group,
        "inputs": list(run.inputs),
        "notebook": str(notebook),
        "root": str(folders.root),
        "parameters": {**run.parameters, **{name: value for name, value in given.items() if name in declared}},
        "key": key[0],
        "parts": key[1],
        "gpus": run.gpus if gpus is None else min(run.gpus, gpus),
        "fresh": fresh,
        "command": command,
        "environment": environment or {},
        "made by": made_by(),
    }


def made_by():
    """What must be equal in a command and its runs beside the versions of packages: {name: text}."""
    return {"Python": platform.python_version(), PACKAGE.name: str(PACKAGE)}


def worker_environment(job, gpus=()):
    """The environment of a run's process and its kernel: threads, determinism, GPUs, places for caches."""
    environment = {name: value for name, value in os.environ.items() if name not in DROPPED}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(job["parts"]["threads"])) | job["environment"]
    environment |= PORTABLE if job["parts"].get("portable") else {}
    environment |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    given = environment.get("PYTHONPATH", "").split(os.pathsep)
    return environment | {
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(place for place in given if place and Path(place).resolve() != PACKAGE.parent),
        "PYTHONSAFEPATH": "1",  # nothing is imported from the folder where the command was typed
        "PYTHONNOUSERSITE": "1",  # nor from ~/.local
        "SOURCE_DATE_EPOCH": PUBLISHED,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "STUDY_ENTRY": job["entry"],  # results say which entry of the study file made them
    }


def python(statement):
    """The command line of a process of this interpreter that finds this very package, and runs a statement.

    The package's folder is looked at last: a file of the user's there must not stand in for a library's module.
    """
    place = ascii(str(PACKAGE.parent)).replace("{", r"\x7b")  # Jupyter formats a kernel's command line
    return [sys.executable, "-c", f"import sys; sys.path.append({place}); {statement}"]


def start_worker(job, gpus=()):
    """Start a job in a process of its own -> Popen. Its output goes to logs/<run id>.log."""
    folders = StudyFolders(job["root"])
    write_json(folders.job(job["run"]), {**job, "parent": os.getpid(), "host": os.uname().nodename})
    log = folders.log(job["run"])
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        return subprocess.Popen(
            [*python(RUN), str(folders.job(job["run"]))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=worker_environment(job, gpus),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its workers
        )


def outcome(job, status, seconds):
    """What an ended worker's exit status means -> Outcome. Raises StudyError for a worker of another version."""
    folders, run_id = StudyFolders(job["root"]), job["run"]
    record, failed = read_json(folders.record(run_id)), read_json(folders.failure(run_id))
    if status == 0 and record:
        return Outcome(run_id, "done", seconds, record["kernel_seconds"])
    message = failed["message"] if failed else _ending(status, folders.log(run_id))
    if status == REFUSED:
        raise StudyError(message)
    return Outcome(run_id, "failed", seconds, message=message)


def _ending(status, log):
    """What an exit status means, in words, where a run's process has written down no reason."""
    if status < 0:
        return f"its process was killed by signal {-status} (out of memory?); see {log}"
    last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    full = (
        f" (the disk of {log} is full)" if shutil.disk_usage(log).free < 2**20 else ""
    )  # less than 1 MB: nothing was logged
    return f"its process ended with status {status}: {''.join(last)}{full}; see {log}"


def main(arguments):
    """Execute the job in a JSON file -> exit status: 0 done, 1 failed (the reason is in state/<run>.failed.json)."""
    job = read_json(arguments[0])
    die_with(job["parent"])
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(message)s")
    folders = StudyFolders(job["root"])
    packages = job["parts"]["packages"]
    here, there = made_by() | installed_versions(*packages), job["made by"] | packages
    differs = next((name for name in there if here.get(name) != there[name]), None)
    if differs:
        who = f"{sys.executable} on {os.uname().nodename} has {differs} {here.get(differs)}"
        _fail(job, folders, f"{who}, the command that started it {there[differs]}; make them equal")
        return REFUSED
    lock = FileLock(folders.lock(job["run"]))
    try:
        lock.acquire(timeout=LOCK_LIMIT)
    except Timeout:
        return _fail(job, folders, f"another process is still running {job['run']}; wait for it or end it")
    with lock:
        prepare_folders(folders, job["run"], job["key"], job["fresh"], job["command"])
        return _execute(job, folders)


def prepare_folders(folders, run_id, key, fresh=False, command=""):
    """Make a run's results folder ready: what was begun with the same key stays, anything else makes way.

    What another key left, or somebody changed by hand, moves to results/superseded/<run id>/; of another key not the
    folders of seeds: their own record decides whether their weights are taken up again. fresh: everything that the run
    ever made is deleted, unless the same `command` has begun it anew before. The record of a former run goes first:
    from here on the run counts as not done.
    """
    folder, aside = folders.results(run_id), folders.superseded / run_id
    kept = folder / "key"
    former = read_json(folders.record(run_id)) or {"files": []}
    drawn = [folders.root / name for name in former["files"] if name.startswith(("figures/", "tables/"))]
    for name in altered(folders.root, former.get("contents", {})):
        _set_aside([folders.root / name], aside)
    folders.record(run_id).unlink(missing_ok=True)
    folders.failure(run_id).unlink(missing_ok=True)
    began, _, by = (kept.read_text(encoding="utf-8") if kept.is_file() else "").partition("\n")
    if fresh and by != command:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)
        for path in drawn:
            path.unlink(missing_ok=True)
    elif began != key:
        stale = [path for path in sorted(folder.glob("*")) if not path.name.startswith("seed")]
        _set_aside([*stale, *drawn], aside)
    for place in (folders.notebook(run_id).parent, folders.figures, folders.tables):
        place.mkdir(parents=True, exist_ok=True)
    write_text(kept, f"{key}\n{command}")


def _set_aside(paths, place):
    """Move files and folders that exist into the next numbered folder below `place`."""
    paths = [path for path in paths if path.exists()]
    if paths:
        target = next(place / str(n) for n in itertools.count(1) if not (place / str(n)).exists())
        target.mkdir(parents=True)
        for path in paths:
            path.replace(target / path.name)


def _execute(job, folders):
    """Run the notebook with papermill and record the outcome -> exit status."""
    began = time.time()
    import papermill  # 2.5 s
    from nbclient.exceptions import DeadKernelError

    saved = folders.notebook(job["run"])
    failed, unfinished = saved.with_suffix(".failed.ipynb"), saved.with_suffix(".running.ipynb")
    try:
        _run_notebook(job, unfinished)
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        unfinished.replace(failed)
        return _fail(job, folders, f"{_reason(error, failed)}; see {failed}")
    unfinished.replace(saved)
    failed.unlink(missing_ok=True)
    _record(job, folders, saved, began)
    return 0


def _run_notebook(job, saved):
    """Execute a job's notebook, saving it after every cell.

    The kernel is this very interpreter, whatever kernels Jupyter knows on this machine. It is reached through sockets
    in a private folder: network ports are chosen before the kernel takes them, so that kernels started at the same
    moment can choose the same ones.
    """
    import papermill
    from traitlets.config import Config

    paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (job["notebook"], saved)]  # papermill formats
    with tempfile.TemporaryDirectory(prefix="kernel-") as folder:
        private = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        kernel = {"argv": [*python(KERNEL), "-f", "{connection_file}"], "language": "python"}
        write_json(Path(folder) / "kernels" / "python3" / "kernel.json", {**kernel, "display_name": "Python 3"})
        os.environ.update({"JUPYTER_PATH": folder, "JUPYTER_RUNTIME_DIR": folder, "IPYTHONDIR": folder})
        papermill.execute_notebook(
            *paths,
            parameters=job["parameters"],
            kernel_name="python3",  # whatever name the notebook was saved with
            language="python",
            cwd=str(Path(job["notebook"]).parent),
            progress_bar=False,
            log_output=True,
            start_timeout=KERNEL_START_LIMIT,
            extra_arguments=[f"--IPKernelApp.exec_lines={IN_KERNEL}", "--IPKernelApp.ignore_cwd=True"],
            config=Config(KernelManager=private if len(folder) < SOCKET_PATH_LIMIT else {}),
        )


def _record(job, folders, saved, began):
    """Write the record that makes the run count as done: key, files, seconds, seconds until the kernel answered."""
    folder = folders.results(job["run"])
    made = [path for path in sorted(folder.rglob("*")) if path.is_file() and not is_clutter(path.name)]
    made += [folders.root / name for name in (read_json(folder / "results.json") or {}).get("files", [])]
    names = {path.relative_to(folders.root).as_posix(): path for path in made}
    record = {
        "key": job["key"],
        "parts": job["parts"],
        "command": job["command"],
        "files": [saved.relative_to(folders.root).as_posix(), *names],  # the notebook may be looked at and saved
        "contents": {name: [*stamp(path), file_hash(path)] for name, path in names.items() if path.is_file()},
        "seconds": round(time.time() - began, 1),
        "kernel_seconds": _kernel_seconds(saved),
    }
    write_json(folders.record(job["run"]), record)


def _kernel_seconds(saved):
    """Seconds from papermill's start to the first cell's start: the time a kernel needs to answer."""
    notebook = read_json(saved)
    timed = notebook["cells"][0], notebook
    first, start = (datetime.fromisoformat(part["metadata"]["papermill"]["start_time"]) for part in timed)
    return round((first - start).total_seconds(), 1)


def _reason(error, saved):
    """Why a notebook that was saved ended early, in one line."""
    if hasattr(error, "ename"):
        return " ".join(f"cell {error.cell_index} (In [{error.exec_count}]): {error.ename}: {error.evalue}".split())
    cells = read_json(saved)["cells"]
    last = max((n for n, cell in enumerate(cells) if cell["metadata"]["papermill"]["start_time"]), default=0)
    return f"the kernel died in cell {last} (out of memory, or killed)"


def _fail(job, folders, message):
    """Record why a run failed -> exit status 1."""
    write_json(folders.failure(job["run"]), {"message": message, "command": job["command"]})
    logging.error(message)
    return 1


PR_SET_PDEATHSIG = 1
IN_KERNEL = "__import__('notebook_study.worker', fromlist=['_']).die_with()"  # leaves no name behind


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
