"""Running jobs: a process a run, so many at once, each after its inputs; what each came to."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from reid_utils.files import read_json, write_json
from reid_utils.study.keys import PACKAGE
from reid_utils.study.study_file import StudyError

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "NUMBA_NUM_THREADS",
)
PUBLISHED = "1698537600"  # 2023-10-29, the paper's day: the date that reproducible files carry


@dataclass(frozen=True)
class Outcome:
    """What a run came to: name "done", "failed" or "not run", with seconds and the message to show."""

    run: str
    name: str
    seconds: float = 0.0
    kernel_seconds: float | None = None
    message: str = ""


def worker_environment(job):
    """The environment of a run's process and its kernel: threads, determinism, the same package as this one."""
    threads = str(job["parts"]["threads"])
    dropped = ("PYTHONDONTWRITEBYTECODE", "MPLBACKEND")  # bytecode halves a kernel's start; the kernel draws inline
    environment = {name: value for name, value in os.environ.items() if name not in dropped}
    environment |= dict.fromkeys(THREAD_VARIABLES, threads)
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), environment.get("PYTHONPATH")]))
    return environment | {
        "OMP_WAIT_POLICY": "passive",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": path,
        "SOURCE_DATE_EPOCH": PUBLISHED,
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(Path(job["root"]) / "locks" / "ipython"),
        "REID_DATA_FINGERPRINT": job["parts"]["data"],
    }


def start_worker(job):
    """Start a job in a process of its own -> Popen. Its output goes to logs/<run id>.log."""
    root = Path(job["root"])
    path = root / "state" / f"{job['run']}.job.json"
    write_json(path, {**job, "parent": os.getpid()})
    log = root / "logs" / f"{job['run']}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "reid_utils.study.worker", str(path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=worker_environment(job),
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends its workers
        )


def outcome(job, status, seconds):
    """What an ended worker's exit status means -> Outcome."""
    root, run_id = Path(job["root"]), job["run"]
    record = read_json(root / "state" / f"{run_id}.json")
    if status == 0 and record:
        return Outcome(run_id, "done", seconds, record["kernel_seconds"])
    failed = read_json(root / "state" / f"{run_id}.failed.json")
    log = root / "logs" / f"{run_id}.log"
    if failed:
        message = failed["message"]
    elif status < 0:
        message = f"its process was killed by signal {-status} (out of memory?); see {log}"
    else:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        message = f"its process ended with status {status}: {''.join(last)}{_if_full(root)}; see {log}"
    return Outcome(run_id, "failed", seconds, message=message)


def _if_full(folder):
    """What a full disk keeps from being logged, in words; empty where at least 1 MB is left."""
    return f" (the disk of {folder} is full)" if shutil.disk_usage(folder).free < 2**20 else ""


class Local:
    """This machine as the place of runs: a process each, at most `slots` at once."""

    def __init__(self, slots):
        self.slots = slots

    def room(self, job, running, show):
        """Whether a job may start beside the `running` ones."""
        return len(running) < self.slots

    def start(self, job, show):
        """Start a job -> LocalRun."""
        return LocalRun(job, show)


class LocalRun:
    """A run in a process of this machine."""

    def __init__(self, job, show):
        self.job, self.process, self.began = job, start_worker(job), time.monotonic()
        show.started(job["run"])

    def poll(self):
        """The run's Outcome, None while it is running."""
        status = self.process.poll()
        return None if status is None else outcome(self.job, status, time.monotonic() - self.began)

    def kill(self):
        """End the run's process."""
        self.process.kill()
        self.process.wait()


def execute(jobs, place, show, pause=0.1):
    """Run jobs in a place (Local, or a cluster), each after its inputs, in the order given -> {run id: Outcome}.

    A failed run leaves those that read it "not run"; the others go on. show: object with started(run id),
    ended(Outcome), note(text) and tick(). Whatever ends this call, no worker outlives it.
    """
    waiting, running, outcomes = list(jobs), {}, {}
    ids = {job["run"] for job in jobs}
    try:
        while waiting or running:
            for job in _blocked(waiting, outcomes):
                waiting.remove(job)
                needed = next(name for name in job["inputs"] if name in outcomes and outcomes[name].name != "done")
                _note(outcomes, Outcome(job["run"], "not run", message=f"needs {needed}"), show)
            for job in [job for job in waiting if _ready(job, ids, outcomes)]:
                if place.room(job, [run.job for run in running.values()], show):
                    waiting.remove(job)
                    running[job["run"]] = place.start(job, show)
            for run_id, run in list(running.items()):
                result = run.poll()
                if result is not None:
                    del running[run_id]
                    _note(outcomes, result, show)
            show.tick()
            time.sleep(pause)
    finally:
        for run in running.values():
            run.kill()
    return outcomes


def _note(outcomes, result, show):
    outcomes[result.run] = result
    show.ended(result)


def _blocked(waiting, outcomes):
    """The waiting jobs of which an input failed or was not run."""
    bad = {name for name, result in outcomes.items() if result.name != "done"}
    return [job for job in waiting if bad.intersection(job["inputs"])]


def _ready(job, ids, outcomes):
    """Whether every input of a job that is executed by this command is done."""
    return all(name in outcomes and outcomes[name].name == "done" for name in job["inputs"] if name in ids)


@contextmanager
def hold(root):
    """Hold a study's folder for this process. Raises StudyError naming the process that holds it already."""
    root = Path(root)
    (root / "locks").mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(root / "locks" / "study.lock"), root / "locks" / "study.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(holder) or {"process": "unknown", "host": "this or another machine", "since": "unknown"}
        raise StudyError(
            f"{root} is in use by process {who['process']} on {who['host']} since {who['since']}; "
            "wait for it, end it, or give another folder with --runs"
        ) from None
    with lock:
        since = datetime.now().isoformat(sep=" ", timespec="seconds")
        write_json(holder, {"process": os.getpid(), "host": os.uname().nodename, "since": since})
        yield
