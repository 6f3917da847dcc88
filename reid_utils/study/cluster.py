"""Runs on a Dask cluster over a shared folder: each task starts a run's worker process and returns its outcome."""

import asyncio
import logging
import os
import platform
import time
import uuid
import warnings
from collections import defaultdict
from concurrent.futures import CancelledError
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from reid_utils.files import read_json
from reid_utils.study.execution import Outcome, outcome, start_worker
from reid_utils.study.keys import PACKAGE
from reid_utils.study.study_file import StudyError

PINNED = ("dask", "distributed", "numpy", "papermill", "torch")  # what transport and results depend on most
CONNECT_LIMIT = 10  # seconds
LOOK_EVERY = 1.0  # seconds between two looks at the cluster's workers
MEND = "start scheduler and workers from the environment and the folder of this study"


@contextmanager
def connect(address):
    """Yield a Cluster for the Dask scheduler at `address` ("tcp://host:port"); what it still runs ends with the block.

    Raises StudyError in one line where nothing answers there, or where scheduler or workers are of other versions.
    """
    import distributed

    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # every fault is told here, in one line
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions are compared below
            asyncio.run(asyncio.wait_for(_knock(address), CONNECT_LIMIT))
            client = distributed.Client(address, timeout=CONNECT_LIMIT, set_as_default=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error) or f"no answer within {CONNECT_LIMIT} s"
        raise StudyError(
            f"no Dask scheduler can be reached at {address} ({reason}); start one (dask scheduler) or mend the address"
        ) from None
    with client:
        check_versions(client)
        yield Cluster(client)


async def _knock(address):
    """Shake hands with a scheduler: a Client would wait for ever where something else listens and says nothing."""
    from distributed.comm import connect

    comm = await connect(address)
    await comm.close()


def described():
    """What must be equal on every machine for equal results: versions, and where the study's code lies."""
    versions = {name: metadata.version(name) for name in PINNED}
    return {"python": platform.python_version(), **versions, "reid_utils": str(PACKAGE)}


def check_versions(client):
    """Raise StudyError naming the scheduler or the first worker that differs from this process."""
    expected = described()
    theirs = client.get_versions()["scheduler"]["packages"]["distributed"]
    if theirs != expected["distributed"]:
        raise StudyError(f"the scheduler has distributed {theirs}, this command {expected['distributed']}; {MEND}")
    for worker, its in sorted(client.run(described, on_error="return").items()):
        if isinstance(its, OSError):
            continue  # it is gone; whatever takes its place is checked by run_job
        if isinstance(its, Exception):
            raise StudyError(f"the Dask worker {worker} cannot run this study ({its}); {MEND}")
        _check_equal(its, expected, f"the Dask worker {worker}")


def _check_equal(found, expected, who):
    for name, value in expected.items():
        if found[name] != value:
            raise StudyError(f"{who} has {name} {found[name]}, this command {value}; {MEND}")


class Cluster:
    """A Dask cluster as the place of runs: what execution.execute asks for room and starts them in.

    client: distributed.Client. Runs are handed over one a free thread, so that the longest chain goes first; those that
    need GPUs ask for as much of the resource GPU.
    """

    def __init__(self, client):
        self.client, self.topic = client, f"reid-study-{uuid.uuid4().hex}"
        self.address, self.dashboard = client.scheduler.address, client.dashboard_link
        self.begun, self.told, self.scheduler, self.looked_at = defaultdict(list), set(), None, -LOOK_EVERY
        self._look()
        client.subscribe_topic(self.topic, self._note_begin)

    def _note_begin(self, event):
        run_id, worker = event[1]
        self.begun[run_id].append(worker)

    @property
    def slots(self):
        """Runs that the cluster's present workers can take at once, at least 1."""
        return max(1, sum(threads for threads, _ in self.workers))

    def room(self, job, running, show):
        """Whether a worker is free for a job beside the `running` ones; tells once what jobs wait for."""
        self._look()
        largest = max((gpus for _, gpus in self.workers), default=0)
        need = f"GPU={job['gpus']}"
        if not self.workers:
            self._tell(show, "waiting for Dask workers: the cluster has none at present")
        elif largest < job["gpus"]:
            self._tell(show, f"waiting for a Dask worker with {need} (dask worker {self.address} --resources {need})")
        threads = sum(threads for threads, _ in self.workers) - len(running)
        gpus = sum(gpus for _, gpus in self.workers) - sum(other["gpus"] for other in running)
        return threads > 0 and min(largest, gpus) >= job["gpus"]

    def start(self, job, show):
        """Hand a job to the cluster -> ClusterRun."""
        return ClusterRun(self, job, show)

    def _look(self):
        """Bring `workers`, a pair (threads, GPUs) each, up to date. Raises StudyError where the scheduler is lost."""
        if time.monotonic() - self.looked_at < LOOK_EVERY:
            return
        try:
            found = self.client.scheduler_info()
            workers = found["workers"].values()
        except (OSError, AttributeError, KeyError):  # what Dask's own client makes of a scheduler that dies just now
            raise self.lost() from None
        if self.client.status != "running" or self.scheduler not in (None, found["id"]):
            raise self.lost()
        self.workers = [(worker["nthreads"], worker["resources"].get("GPU", 0)) for worker in workers]
        self.scheduler, self.looked_at = found["id"], time.monotonic()

    def _tell(self, show, text):
        if text not in self.told:
            self.told.add(text)
            show.note(text)

    def lost(self):
        """The error for a scheduler that is gone."""
        return StudyError(
            f"the connection to the Dask scheduler at {self.address} is lost, and its runs end with it; "
            "the same command goes on where this one stopped"
        )


class ClusterRun:
    """A run handed to a cluster; where its Dask worker dies, Dask gives it to another one, four times in all."""

    def __init__(self, cluster, job, show):
        self.cluster, self.job, self.show, self.told = cluster, job, show, 0
        needs = {"GPU": job["gpus"]} if job["gpus"] else None
        command = read_json(Path(job["root"]) / "locks" / "study.json")
        task = {**job, "command": command, "topic": cluster.topic}
        key = f"{job['run']}-{uuid.uuid4().hex}"
        self.future = cluster.client.submit(run_job, task, described(), key=key, resources=needs)

    def poll(self):
        """The run's Outcome, None while it is waiting or running. Raises StudyError where the scheduler is lost."""
        if self.cluster.client.status != "running" or self.future.cancelled():
            raise self.cluster.lost()
        self._tell_begin()
        if self.future.status == "error":
            return Outcome(self.job["run"], "failed", message=self._reason(self.future.exception()))
        if self.future.status != "finished":
            return None
        try:
            return self.future.result(timeout=CONNECT_LIMIT)
        except (TimeoutError, CancelledError):  # the worker that held it, or the scheduler, died at this very moment
            return None

    def _tell_begin(self):
        workers = self.cluster.begun[self.job["run"]]
        for number in range(self.told, len(workers)):
            if number:
                self.show.note(f"again   {self.job['run']} on {workers[number]}: {workers[number - 1]} was lost")
            else:
                self.show.started(self.job["run"])
        self.told = len(workers)

    def _reason(self, error):
        from distributed import KilledWorker

        if isinstance(error, KilledWorker):
            log = Path(self.job["root"]) / "logs" / f"{self.job['run']}.log"
            return f"{error.allowed_failures + 1} Dask workers died while running it (out of memory?); see {log}"
        return " ".join(f"{type(error).__name__}: {error}".split())

    def kill(self):
        """End the run: its Dask worker kills the process that it started."""
        self.future.cancel(force=True)


def run_job(task, expected, pause=0.2):
    """On a Dask worker: run a job in a process of its own -> Outcome.

    The process dies with the Dask worker, and is killed where that one closes or the task is no longer wanted. A task
    that the same command gave to another worker before goes on from what that one left. Raises StudyError where the
    machine differs.
    """
    from distributed import Reschedule, get_worker

    worker = get_worker()
    root, run_id, host = Path(task["root"]), task["run"], f"the Dask worker {worker.address} on {os.uname().nodename}"
    _check_equal(described(), expected, host)
    if read_json(root / "locks" / "study.json") != task["command"]:
        raise StudyError(f"{host} does not see this study's folder {root}; share it, at the same path on every machine")
    worker.log_event(task["topic"], (run_id, worker.address))
    begun, since = root / "state" / f"{run_id}.job.json", float("inf")
    if (read_json(begun) or {}).get("command") == task["command"]:
        since = begun.stat().st_mtime_ns  # this command's last try
    if _changed(root / "state" / f"{run_id}.json", since):
        return outcome(task, 0, 0.0)  # it had ended well, and then its Dask worker died
    resumes = _changed(root / "results" / run_id / "key", since)
    key, began = worker.get_current_task(), time.monotonic()
    process = start_worker({**task, "fresh": task["fresh"] and not resumes})
    try:
        while process.poll() is None:
            if not _wanted(worker, key):
                raise Reschedule
            time.sleep(pause)
    finally:
        process.kill()
        process.wait()
    return outcome(task, process.returncode, time.monotonic() - began)


def _changed(path, since):
    """Whether a file was written after a time (mtime in nanoseconds)."""
    return path.exists() and path.stat().st_mtime_ns >= since


def _wanted(worker, key):
    """Whether a Dask worker still is to run a task: neither cancelled, nor its client gone, nor itself closing."""
    task, alive = worker.state.tasks.get(key), worker.status.name in ("running", "paused")
    return alive and task is not None and task.state not in ("cancelled", "released")
