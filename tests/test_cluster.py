"""Studies on a Dask cluster of two worker processes: the same tables, and what becomes of runs when parts of it die."""

import socket
import sys
from pathlib import Path

import pytest
from dask_cluster import cluster, start_scheduler, start_worker, stop
from distributed import Client
from tiny_study import GIVEN, call, make_clone, processes_of, start, wait_until, write_notebook

from reid_utils.study import cluster as connection
from reid_utils.study import keys, notebooks
from reid_utils.study.plan import expand
from reid_utils.study.study_file import StudyError, read_study

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are followed through /proc")
TABLE = "02_training__none,4\n02_training__flip,4\n"
SLOW = ["--set", "steps=100", "--set", "pause=0.1"]


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """The address of a cluster and its two worker processes."""
    with cluster(tmp_path_factory.mktemp("dask")) as (address, processes):
        yield address, processes


def steps_of(clone, run_id="02_training__flip"):
    return clone / "runs" / "tiny" / "results" / run_id / "step.txt"


def parent_of(pid):
    """The id of the parent of a process; none where it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_run_whose_dask_worker_dies_goes_on_elsewhere_and_a_killed_command_ends_its_runs(workers, tmp_path):
    address, processes = workers
    clone = make_clone(tmp_path / "a {b} c")
    study = start(clone, "--scheduler", address, *SLOW)
    wait_until(steps_of(clone).exists)
    victim = processes.pop(0)
    orphans = [pid for pid in processes_of(clone) if parent_of(pid) == victim.pid]
    victim.kill()
    victim.wait()
    wait_until(lambda: not set(orphans) & set(processes_of(clone)), seconds=8)  # less than they had left to do
    processes.append(start_worker(address))
    assert len(orphans) == 1 and int(steps_of(clone).read_text()) < 100
    study.kill()
    study.communicate()
    wait_until(lambda: not processes_of(clone))
    status, out, err = call(clone, "--scheduler", address, *SLOW)
    assert (status, err) == (0, "") and f" workers at {address}; dashboard: http" in out
    root = clone / "runs" / "tiny"
    assert (root / "tables" / "T1.csv").read_text() == TABLE
    for run_id in ("02_training__none", "02_training__flip"):
        assert "step 1\n" not in (root / "logs" / f"{run_id}.log").read_text()  # resumed, not begun anew
    assert not list((root / "notebooks").glob("*.running.ipynb"))


def test_a_run_that_kills_its_dask_workers_fails_after_four(tmp_path):
    clone = make_clone(tmp_path)
    deadly = "import os, time; from reid_utils.study import cluster; "
    deadly += "cluster.start_worker = lambda job: time.sleep(0.5) or os._exit(9); "
    scheduler, address = start_scheduler(tmp_path)
    workers = [start_worker(address, prelude=deadly) for _ in range(4)]
    try:
        status, out, _ = call(clone, "--scheduler", address, "--only", "*flip")
    finally:
        stop(scheduler, *workers)
    assert status == 1 and out.count("again   02_training__flip on tcp://127.0.0.1:") == 3
    assert "failed  02_training__flip [1/1]: 4 Dask workers died while running it (out of memory?); see " in out


def test_runs_wait_for_gpus_and_a_notebook_error_is_not_retried(workers, tmp_path):
    address, processes = workers
    clone = make_clone(tmp_path)
    fault = "from pathlib import Path\nif augmentation == 'flip':\n    with Path(out, 'tries').open('a') as file:\n"
    fault += "        file.write('x')\n    raise ValueError('no luck')"
    well = "Path(out, 'results', run_id, 'results.json').write_text('{}')"
    write_notebook(clone / "notebooks" / "02_training.ipynb", GIVEN + 'augmentation = "none"\nsteps = 1\n', fault, well)
    study = clone / "studies" / "tiny.yaml"
    study.write_text(study.read_text().replace("    minutes: 0.1\n", "    minutes: 0.1\n    gpus: 1\n"))
    running = start(clone, "--scheduler", address)
    lines = iter(running.stdout.readline, "")
    waits = next(line for line in lines if line.startswith("waiting"))
    assert waits == f"waiting for a Dask worker with GPU=1 (dask worker {address} --resources GPU=1)\n"
    processes.append(start_worker(address, "--resources", "GPU=1"))
    out, err = running.communicate(timeout=120)
    root = clone / "runs" / "tiny"
    assert (running.returncode, err, (root / "tries").read_text()) == (1, "", "x")
    assert "cell 3 (In [3]): ValueError: no luck; see " in out and "done    02_training__none in " in out
    assert "not run 06_paper_tables" in out and "waiting" not in out


def test_a_lost_scheduler_costs_one_line_and_no_result(tmp_path):
    clone = make_clone(tmp_path)
    scheduler, address = start_scheduler(tmp_path)
    worker = start_worker(address)
    try:
        study = start(clone, "--scheduler", address, *SLOW)
        wait_until(steps_of(clone, "02_training__none").exists)
        scheduler.kill()
        _, err = study.communicate(timeout=60)
        wait_until(lambda: not processes_of(clone))
    finally:
        stop(scheduler, worker)
    assert study.returncode == 2 and err == (
        f"run_all: the connection to the Dask scheduler at {address} is lost, and its runs end with it; "
        "the same command goes on where this one stopped\n"
    )
    assert call(clone, *SLOW, "--only", "*none")[0] == 0
    assert "step 1\n" not in (clone / "runs" / "tiny" / "logs" / "02_training__none.log").read_text()


def test_clusters_that_cannot_serve_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "CONNECT_LIMIT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address in (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "tcp://127.0.0.1:9", "nonsense://x"):
            with pytest.raises(StudyError, match=f"no Dask scheduler can be reached at {address} "):
                connection.connect(address).__enter__()
    clone = make_clone(tmp_path)
    scheduler, address = start_scheduler(tmp_path)
    other = start_worker(address, prelude="import platform; platform.python_version = lambda: '3.0.0'; ")
    try:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        status, _, err = call(clone, "--scheduler", address)
    finally:
        stop(scheduler, other)
    assert (status, err.count("\n")) == (2, 1) and "has python 3.0.0, this command 3." in err
    assert not (clone / "runs").exists()


def test_gpus_are_checked_and_reach_the_job_but_not_the_key(tmp_path):
    clone = make_clone(tmp_path)
    path = clone / "studies" / "tiny.yaml"
    declared = notebooks.declared_in(read_study(path), clone / "notebooks")
    before = expand(read_study(path), declared)
    path.write_text(path.read_text().replace("minutes: 0.1", "gpus: 2"))
    after = expand(read_study(path), declared)
    assert [run.gpus for run in (*before, *after)] == [0, 0, 0, 2, 2, 0]
    lock = clone / "requirements.lock"
    assert len({str(keys.run_keys(runs, clone / "notebooks", lock, 1, "f")) for runs in (before, after)}) == 1
    path.write_text(path.read_text().replace("gpus: 2", "gpus: -1"))
    with pytest.raises(StudyError, match="gpus must be at least 0, not -1"):
        read_study(path)
