"""Running a study with Dask, here or on a cluster: a process a run, each after its inputs, GPUs shared out."""

import asyncio
import functools
import logging
import os
import platform
import queue
import time
import uuid
import warnings
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from datetime import datetime
from importlib import metadata
from pathlib import Path

from filelock import FileLock, Timeout

from notebook_study.folders import StudyFolders
from notebook_study.keys import PACKAGE
from notebook_study.machine import visible_gpus
from notebook_study.study_file import StudyError
from notebook_study.worker import Outcome, outcome, start_worker
from reid_utils.files import read_json, write_json

PINNED = ("dask", "distributed", "numpy", "papermill", "torch")  # what transport and results depend on most
LOOK_EVERY = 1.0  # seconds between two looks at the cluster's workers
LIMIT = 10  # seconds to wait for an answer of a cluster
HOW_TO_FIX = "start scheduler and workers from the environment and the folder of this study"


def run_job(job, *inputs, pause=0.1):
    """On a Dask worker: run a job in a process of its own, unless one of its inputs (Outcomes) is not done -> Outcome.

    The process dies with the Dask worker, and is killed where that one closes or the task is no longer wanted. A task
    that the same command gave to another worker before goes on from what that one left. Raises StudyError where the
    machine differs.
    """
    from distributed import Reschedule, get_worker

    bad = next((given.run for given in inputs if given.name != "done"), None)
    if bad:
        return Outcome(job["run"], "not run", message=f"needs {bad}")
    worker, folders = get_worker(), StudyFolders(Path(job["root"]))
    host = f"the Dask worker {worker.address} on {os.uname().nodename}"
    _check_equal(described(), job["described"], host)
    if (read_json(folders.holder) or {}).get("command") != job["command"]:
        raise StudyError(
            f"{host} does not see this study's folder {folders.root}; share it, at the same path on every machine"
        )
    for status, path in ((0, folders.record(job["run"])), (1, folders.failure(job["run"]))):
        if (read_json(path) or {}).get("command") == job["command"]:
            return outcome(job, status, 0.0)  # it had ended, and then its Dask worker died
    worker.log_event(job["command"], (job["run"], worker.address))
    key, began = worker.get_current_task(), time.monotonic()
    with _gpus(job["gpus"]) as gpus:
        process = start_worker(job, gpus)
        try:
            while process.poll() is None:
                if not _wanted(worker, key):
                    raise Reschedule
                time.sleep(pause)
        finally:
            process.kill()
            process.wait()
    return outcome(job, process.returncode, time.monotonic() - began)


@functools.cache
def free_gpus():
    """The GPUs of this process that no run has; Dask's resource GPU keeps runs from asking for more."""
    return visible_gpus(os.environ)


@contextmanager
def _gpus(count):
    taken = [free_gpus().pop(0) for _ in range(min(count, len(free_gpus())))] if count else []
    try:
        yield taken
    finally:
        free_gpus().extend(taken) if taken else None


def _wanted(worker, key):
    """Whether a Dask worker still is to run a task: neither cancelled, nor its client gone, nor itself closing."""
    task, alive = worker.state.tasks.get(key), worker.status.name in ("running", "paused")
    return alive and task is not None and task.state not in ("cancelled", "released")


# Where runs are executed


@contextmanager
def here(jobs, gpus=()):
    """Yield a Dask Client whose only worker is this process: `jobs` runs at once, each of the GPUs (list) for one."""
    import dask
    from distributed import Client, LocalCluster

    _silence()
    settings = {"threads_per_worker": jobs, "resources": {"GPU": len(gpus)} if gpus else None}
    settings |= {"processes": False, "dashboard_address": None, "memory_limit": 0, "silence_logs": False}
    with ExitStack() as stack, dask.config.set({"distributed.scheduler.worker-ttl": None}):  # a laptop may sleep
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no network is no fault: nothing leaves this process
            cluster = stack.enter_context(LocalCluster(n_workers=1, **settings))
            client = stack.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextmanager
def connect(address):
    """Yield a Client of the Dask scheduler at `address` ("tcp://host:port"); what it still runs ends with the block.

    Raises StudyError in one line where nothing answers there, or where scheduler or workers are of other versions.
    """
    from distributed import Client

    _silence()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # versions are compared below
            asyncio.run(asyncio.wait_for(_knock(address), LIMIT))
            client = Client(address, timeout=LIMIT, set_as_default=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error) or f"no answer within {LIMIT} s"
        raise StudyError(
            f"no Dask scheduler can be reached at {address} ({reason}); start one (dask scheduler) or give its address"
        ) from None
    with client:
        _check_versions(client)
        yield client


def _silence():
    for name in ("distributed", "distributed.client", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # every fault is told here, in one line


async def _knock(address):
    """Shake hands with a scheduler: a Client would wait for ever where something else listens and says nothing."""
    from distributed.comm import connect

    comm = await connect(address)
    await comm.close()


def slots(client):
    """Runs that a client's present workers take at once, at least 1."""
    return max(1, sum(client.nthreads().values()))


def described():
    """What must be equal on every machine for equal results: versions, and where the study's code lies."""
    versions = {name: metadata.version(name) for name in PINNED}
    return {"python": platform.python_version(), **versions, "notebook_study": str(PACKAGE)}


def _check_versions(client):
    """Raise StudyError naming the scheduler or the first worker that differs from this process."""
    expected = described()
    theirs = _answer(client, client.get_versions)["scheduler"]["packages"]["distributed"]
    if theirs != expected["distributed"]:
        raise StudyError(
            f"the scheduler has distributed {theirs}, this command {expected['distributed']}; {HOW_TO_FIX}"
        )
    found = _answer(client, client.run, described, on_error="return")
    for worker, its in sorted(found.items()):
        if isinstance(its, OSError):
            continue  # it is gone; whatever takes its place is checked by run_job
        if isinstance(its, Exception):
            raise StudyError(f"the Dask worker {worker} cannot run this study ({its}); {HOW_TO_FIX}")
        _check_equal(its, expected, f"the Dask worker {worker}")


def _answer(client, call, *arguments, **settings):
    """What a client's call returns; a stopped worker would be waited for without end. Raises StudyError."""
    try:
        return client.sync(call, *arguments, callback_timeout=LIMIT, **settings)
    except TimeoutError:
        workers = ", ".join(sorted(client.nthreads()))
        raise StudyError(f"a Dask worker does not answer within {LIMIT} s; end it (workers: {workers})") from None


def _check_equal(found, expected, who):
    for name, value in expected.items():
        if found[name] != value:
            raise StudyError(f"{who} has {name} {found[name]}, this command {value}; {HOW_TO_FIX}")


# The whole study


@contextmanager
def hold(folders):
    """Hold a study's folder -> the name of this command. Raises StudyError naming the process that holds it already."""
    folders.holder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.lock())
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(folders.holder) or {"process": "unknown", "host": "this or another machine", "since": "unknown"}
        raise StudyError(
            f"{folders.root} is in use by process {who['process']} on {who['host']} since {who['since']}; "
            "wait for it, end it, or give another folder with --runs"
        ) from None
    with lock:
        since, command = datetime.now().isoformat(sep=" ", timespec="seconds"), f"reid-study-{uuid.uuid4().hex}"
        who = {"process": os.getpid(), "host": os.uname().nodename, "since": since, "command": command}
        write_json(folders.holder, who)
        yield command


def execute(jobs, client, show, pause=0.1):
    """Run jobs on a Dask client's workers, each after its inputs, in the order given -> {run id: Outcome}.

    A failed run leaves those that read it "not run"; the others go on. show: object with started(run id),
    ended(Outcome), note(text) and tick(). Whatever ends this call, no run outlives it. Raises StudyError where the
    scheduler is lost.
    """
    address, expected, look_for_workers = client.scheduler.address, described(), _looker(client, show)
    begun, workers, futures, outcomes = queue.SimpleQueue(), {}, {}, {}
    client.subscribe_topic(jobs[0]["command"], lambda event: begun.put(event[1]))
    try:
        for rank, job in enumerate(jobs):
            inputs = [futures[name] for name in job["inputs"] if name in futures]
            futures[job["run"]] = _submit(client, {**job, "described": expected}, inputs, -rank)
        while waiting := [job for job in jobs if job["run"] not in outcomes]:
            if client.status != "running" or any(future.cancelled() for future in futures.values()):
                raise _lost(address)
            look_for_workers(waiting)
            events = [begun.get() for _ in range(begun.qsize())]
            known = workers.keys() | {run_id for run_id, _ in events}
            found = [result for job in waiting if (result := _result(job, futures, outcomes))]
            ended = {result.run: result for result in found if result.run in known or not result.seconds}
            _tell_begun([event for event in events if event[0] in ended], workers, show)
            for result in ended.values():
                show.ended(result)
            _tell_begun([event for event in events if event[0] not in ended], workers, show)
            outcomes |= ended
            show.tick()
            time.sleep(pause)
    finally:
        client.cancel(list(futures.values()), force=True)
    return outcomes


def _submit(client, job, inputs, priority):
    """Hand a job to Dask -> Future. Jobs of one notebook make a group, so that the scheduler keeps them in order."""
    key = f"{Path(job['notebook']).stem}-{job['command']}", job["run"]
    return client.submit(
        run_job, job, *inputs, key=key, priority=priority, resources={"GPU": job["gpus"]} if job["gpus"] else None
    )


def _looker(client, show):
    """A function that tells, once each, what waiting jobs need and no worker of a cluster has, once a second."""
    address, told, looked_at = client.scheduler.address, set(), -LOOK_EVERY

    def look(waiting):
        nonlocal looked_at
        if client.cluster or time.monotonic() - looked_at < LOOK_EVERY:
            return  # here the one worker is this process, whose GPUs are known
        looked_at = time.monotonic()
        try:
            workers = client.scheduler_info()["workers"].values()
        except (OSError, AttributeError, KeyError):  # what Dask's own client makes of a scheduler that dies just now
            raise _lost(address) from None
        largest = max((worker["resources"].get("GPU", 0) for worker in workers), default=0)
        need = max((job["gpus"] for job in waiting if job["gpus"] > largest), default=0)
        text = f"a Dask worker with GPU={need} (dask worker {address} --resources GPU={need})" if need else ""
        text = text if workers else "Dask workers: the cluster has none at present"
        if text and text not in told:
            told.add(text)
            show.note(f"waiting for {text}")

    return look


def _tell_begun(events, workers, show):
    """Show pairs (run id, Dask worker) of runs that began; `workers` keeps the last worker of each."""
    for run_id, worker in events:
        if run_id in workers:
            show.note(f"again   {run_id} on {worker}: {workers[run_id]} was lost")
        else:
            show.started(run_id)
        workers[run_id] = worker


def _result(job, futures, outcomes):
    """What a job came to, None while that is not known."""
    future = futures[job["run"]]
    if future.status == "error":
        needed = [name for name in job["inputs"] if name in futures]
        if any(name not in outcomes for name in needed):
            return None
        bad = next((name for name in needed if outcomes[name].name != "done"), None)
        if bad:
            return Outcome(job["run"], "not run", message=f"needs {bad}")
        return Outcome(job["run"], "failed", message=_reason(job, future.exception()))
    if future.status != "finished":
        return None
    try:
        return future.result(timeout=LIMIT)
    except (TimeoutError, CancelledError):  # the worker that held it, or the scheduler, died at this very moment
        return None


def _reason(job, error):
    """Why Dask gave a job up, in words."""
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        log = StudyFolders(Path(job["root"])).log(job["run"])
        return f"{error.allowed_failures + 1} Dask workers died while running it (out of memory?); see {log}"
    return " ".join((str(error) if isinstance(error, StudyError) else f"{type(error).__name__}: {error}").split())


def _lost(address):
    """The error for a scheduler that is gone."""
    return StudyError(
        f"the connection to the Dask scheduler at {address} is lost, and its runs end with it; "
        "the same command goes on where this one stopped"
    )
