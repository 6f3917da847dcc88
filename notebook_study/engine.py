"""Running a study: a process a run, each after its inputs, on this machine's processors or on a Dask cluster's.

Both are executors of `concurrent.futures`; a cluster's comes from `distributed.Client.get_executor`.
"""

import asyncio
import functools
import logging
import os
import threading
import time
import uuid
import warnings
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import datetime
from graphlib import TopologicalSorter

from filelock import FileLock, Timeout

from notebook_study.folders import StudyFolders
from notebook_study.machine import visible_gpus
from notebook_study.study_file import StudyError
from notebook_study.worker import Outcome, outcome, start_worker
from reid_utils.files import read_json, write_json

LIMIT = 10  # seconds to wait for an answer of a cluster


@contextmanager
def hold(folders):
    """Hold a study's folder -> the name of this command. Raises StudyError naming the process that holds it already."""
    folders.holder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.lock())
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = read_json(folders.holder) or dict.fromkeys(("process", "host", "since"), "unknown")
        raise StudyError(
            f"{folders.root} is in use by process {who['process']} on {who['host']} since {who['since']}; "
            "wait for it, end it, or give another folder with --runs"
        ) from None
    with lock:
        who = {"process": os.getpid(), "host": os.uname().nodename, "command": uuid.uuid4().hex}
        write_json(folders.holder, who | {"since": datetime.now().isoformat(sep=" ", timespec="seconds")})
        yield who["command"]


# One run, in this process or in a Dask worker's


def run_job(job, wanted=None, pause=0.1):
    """Run a job in a process of its own -> Outcome; the process is killed where `wanted()` says no.

    wanted: by default whether the Dask worker that this is still is to do this task. Raises StudyError where the run
    is of another version, or the study's folder is not seen.
    """
    folders, began, wanted = StudyFolders(job["root"]), time.monotonic(), wanted or _task_wanted()
    if (read_json(folders.holder) or {}).get("command") != job["command"]:
        raise StudyError(
            f"{os.uname().nodename} does not see this study's folder {folders.root}; share it, at the same path "
            "on every machine"
        )
    gpus = [free_gpus().pop(0) for _ in range(job["gpus"]) if free_gpus()]
    try:
        with start_worker(job, gpus) as process:  # which waits for its end
            try:
                while process.poll() is None and wanted():
                    time.sleep(pause)
            finally:
                process.kill()
    finally:
        for gpu in gpus:
            free_gpus().append(gpu)
    return outcome(job, process.returncode, time.monotonic() - began)


@functools.cache
def free_gpus():
    """The GPUs of this process that no run has; who submits runs keeps them from asking for more."""
    return visible_gpus(os.environ)


def _task_wanted():
    """A function that tells whether this Dask worker's present task is neither cancelled nor its client gone."""
    from distributed import Reschedule, get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def wanted():
        task = worker.state.tasks.get(key)
        if not task or task.state in ("cancelled", "released") or worker.status.name not in ("running", "paused"):
            raise Reschedule
        return True

    return wanted


# Where runs are executed: functions submit(job, jobs that run) -> Future, or None where there is no room


@contextmanager
def here(jobs, gpus=()):
    """Yield `submit` for this machine: `jobs` runs at once, each of the GPUs (list) for one. No run outlives it."""
    ended = threading.Event()
    pool = ThreadPoolExecutor(jobs)

    def submit(job, running):
        taken = sum(other["gpus"] for other in running)
        room = len(running) < jobs and taken + job["gpus"] <= len(gpus)
        return pool.submit(run_job, job, lambda: not ended.is_set()) if room else None

    try:
        yield submit
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def connect(address, note=print):
    """Yield (`submit`, how many runs at once) for the Dask scheduler at `address` ("tcp://host:port").

    What it still runs ends with the block. `note` is called with what the cluster has and lacks. Raises StudyError in
    one line where nothing answers there.
    """
    from distributed import Client
    from distributed.versions import VersionMismatchWarning

    warnings.simplefilter("ignore", VersionMismatchWarning)  # every run refuses for itself, in one line
    for name in ("distributed", "distributed.client", "tornado", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # every fault is told here, in one line
    try:
        asyncio.run(asyncio.wait_for(_knock(address), LIMIT))
        client = Client(address, timeout=LIMIT, set_as_default=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        reason = str(error) or f"no answer within {LIMIT} s"
        raise StudyError(
            f"no Dask scheduler can be reached at {address} ({reason}); start one (dask scheduler) or give its address"
        ) from None
    executor = functools.cache(functools.partial(_executor, client, note))
    with client:
        threads = sum(client.nthreads().values())
        note(f"cluster: {threads} workers at {address}; dashboard: {client.dashboard_link}")
        yield (lambda job, running: executor(job["gpus"]).submit(run_job, job)), max(1, threads)


async def _knock(address):
    """Shake hands with a scheduler: a Client would wait for ever where something else listens and says nothing."""
    from distributed.comm import connect

    await (await connect(address)).close()


def _executor(client, note, gpus):
    """A client's executor for runs that ask for so many GPUs."""
    workers = client.scheduler_info()["workers"].values()
    if gpus and all(worker["resources"].get("GPU", 0) < gpus for worker in workers):
        address = client.scheduler.address
        note(f"waiting for a Dask worker with GPU={gpus} (dask worker {address} --resources GPU={gpus})")
    return client.get_executor(pure=False, resources={"GPU": gpus} if gpus else None)


# The whole study


def execute(jobs, submit, show, pause=0.5):
    """Run jobs, each after its inputs, the first of those that can begin first -> {run id: Outcome}.

    submit: as `here` and `connect` yield it. A failed run leaves those that read it "not run"; the others go on. show:
    object with started(run id), ended(Outcome), note(text) and tick(). Raises StudyError where a run is refused or the
    scheduler is lost.
    """
    ids = {job["run"] for job in jobs}
    order = TopologicalSorter({job["run"]: ids & {*job["inputs"]} for job in jobs})
    order.prepare()
    ready, running, places, outcomes = set(), {}, {}, {}

    def ended(result):
        outcomes[result.run] = result
        show.ended(result)
        order.done(result.run)

    while order.is_active():
        ready |= set(order.get_ready())
        for job in [job for job in jobs if job["run"] in ready]:
            bad = next((n for n in job["inputs"] if n in outcomes and outcomes[n].name != "done"), None)
            if bad:
                ended(Outcome(job["run"], "not run", message=f"needs {bad}"))
            elif future := submit(job, running.values()):
                running[future] = job
            else:
                continue
            ready.remove(job["run"])
        finished = wait(running, pause, FIRST_COMPLETED).done if running else ()
        _show_begun(running.values(), places, show)
        for future in finished:
            ended(_result(running.pop(future)["run"], future))
        show.tick()
    return outcomes


def _show_begun(jobs, places, show):
    """Show which runs have begun, as their processes' files say; `places` keeps where each began last."""
    for job in jobs:
        begun = read_json(StudyFolders(job["root"]).job(job["run"])) or {}
        place, former = (begun.get("host"), begun.get("parent")), places.get(job["run"])
        if begun.get("command") != job["command"] or former == place:
            continue
        if former:
            show.note(f"again   {job['run']} on {place[0]}: its worker was lost")
        else:
            show.started(job["run"])
        places[job["run"]] = place


def _result(run_id, future):
    """What an ended future came to -> Outcome."""
    try:
        return future.result()
    except (StudyError, PermissionError):  # nobody else's run would fare better in this folder
        raise
    except CancelledError:
        raise StudyError(
            "the connection to the Dask scheduler is lost, and its runs end with it; "
            "the same command goes on where this one stopped"
        ) from None
    except Exception as error:  # whatever Dask gave it up for
        return Outcome(run_id, "failed", message=" ".join(f"{type(error).__name__}: {error}".split()))
