"""The engine: runs in processes here and on a Dask cluster, and what becomes of them when parts of it die."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dask_cluster import cluster, start_scheduler, start_worker, stop
from distributed import Client
from tiny_study import GIVEN, REPOSITORY, call, make_clone, processes_of, start, wait_until, write_notebook

from notebook_study import engine, keys, progress, worker
from notebook_study.folders import StudyFolders
from notebook_study.plan import Run
from notebook_study.study_file import StudyError
from notebook_study.worker import make_job, prepare_folders
from reid_utils.files import read_json, write_json, write_text

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="processes are followed through /proc")
TABLE = "02_training__none,4\n02_training__flip,4\n"
SLOW = ["--set", "steps=100", "--set", "pause=0.1"]
HOLDER = """
import sys
from pathlib import Path
from notebook_study.engine import hold
from notebook_study.folders import StudyFolders
with hold(StudyFolders(Path(sys.argv[1]))):
    print("held", flush=True)
    input()
"""


def run_of(name, inputs=(), minutes=1.0, **parameters):
    return Run(name, name.split("__")[0], "", parameters, tuple(inputs), minutes)


def test_a_job_is_plain_values_with_absolute_paths_and_only_what_the_notebook_declares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook("nb/02.ipynb", GIVEN + "epochs = 1\n")
    write_notebook("nb/03.ipynb", GIVEN.replace('data = ""\n', "") + 'features = ""\n')
    folders, given = StudyFolders(tmp_path / "runs" / "s"), {"data": "/d", "features": "/mine"}
    runs = [run_of("02", epochs=2), run_of("03", ["02"])]
    training, post = (make_job(run, ("k", {}), folders, Path("nb"), given, command="c") for run in runs)
    out = {"out": str(tmp_path / "runs" / "s")}
    assert training["parameters"] == {"epochs": 2, "data": "/d", **out, "run_id": "02", "inputs": []}
    inputs = [str(tmp_path / "runs" / "s" / "results" / "02")]
    assert post["parameters"] == {**out, "run_id": "03", "inputs": inputs, "features": "/mine"}
    assert post["notebook"] == str(tmp_path / "nb" / "03.ipynb")
    write_json(tmp_path / "job.json", post)
    assert read_json(tmp_path / "job.json") == post


def environment_of(gpus=(), root="/r"):
    job = {"root": root, "entry": "", "parts": {"threads": 3, "data": "f"}, "environment": {"FINGERPRINT": "f"}}
    return worker.worker_environment(job, gpus)


def test_kernels_get_threads_gpus_and_no_foreign_folders_before_they_start(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("PYTHONSTARTUP", "/mine/startup.py")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    monkeypatch.setenv("PYTHONPATH", f":/mine::{keys.PACKAGE.parent}/")  # an empty entry is the current folder
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = environment_of()
    assert {environment[name] for name in worker.THREAD_VARIABLES} == {"3"}
    assert environment["OMP_WAIT_POLICY"] == "passive" and environment["PYTHONHASHSEED"] == "0"
    assert environment.keys().isdisjoint(set(worker.DROPPED) | {"CUDA_VISIBLE_DEVICES"})
    assert environment["PYTHONPATH"] == "/mine" and environment["PYTHONSAFEPATH"] == "1"
    assert environment["PYTHONNOUSERSITE"] == "1" and environment["FINGERPRINT"] == "f"
    assert environment_of(["2", "5"])["CUDA_VISIBLE_DEVICES"] == "2,5"


def test_what_a_file_manager_leaves_is_no_part_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_kernel_seconds", lambda saved: 0.0)
    folders = StudyFolders(tmp_path)
    for name in ("scores", ".DS_Store", "seed0/weights", "seed0/Thumbs.db"):
        write_text(folders.results("02__a") / name, "x")
    worker._record({"run": "02__a", "key": "k", "parts": {}, "command": "c"}, folders, folders.notebook("02__a"), 0.0)
    listed = read_json(folders.record("02__a"))["files"]
    assert listed == ["notebooks/02__a.ipynb", "results/02__a/scores", "results/02__a/seed0/weights"]


def test_a_changed_run_sets_aside_what_is_stale_and_leaves_weights_to_their_own_record(tmp_path):
    folders = StudyFolders(tmp_path)
    weights, scores = (folders.results("02__a") / name for name in ("seed0/weights", "scores"))
    figures = [folders.figures / name for name in ("02__a_curve.png", "02__a_b_curve.png")]

    def begin(key, fresh=False, command=""):
        prepare_folders(folders, "02__a", key, fresh, command)
        return weights.exists(), scores.exists()

    assert begin("k1") == (False, False)
    for path in (weights, scores, *figures):
        write_text(path, path.name)
    write_json(folders.record("02__a"), {"files": ["results/02__a/scores", "figures/02__a_curve.png"]})
    assert begin("k1") == (True, True) and figures[0].exists()
    assert not folders.record("02__a").exists()  # not done until it ends again
    write_json(folders.record("02__a"), {"files": ["results/02__a/scores", "figures/02__a_curve.png"]})
    assert begin("k2") == (True, False)
    assert [path.exists() for path in figures] == [False, True]  # the other is another run's
    aside = folders.superseded / "02__a" / "1"
    assert sorted(path.name for path in aside.iterdir()) == ["02__a_curve.png", "key", "scores"]
    write_text(scores, "new")
    assert begin("k3") == (True, False) and (folders.superseded / "02__a" / "2" / "scores").read_text() == "new"
    assert begin("k3", fresh=True, command="c") == (False, False) and not (folders.superseded / "02__a").exists()
    write_text(weights, "anew")
    assert begin("k3", fresh=True, command="c") == (True, False)  # the same command's second try goes on
    assert begin("k3", fresh=True, command="d") == (False, False)


class Show:
    """Notes what the loop tells it, and how many ran at once."""

    def __init__(self):
        self.events, self.now, self.most = [], 0, 0

    def started(self, run_id):
        self.now += 1
        self.most = max(self.most, self.now)
        self.events.append(f"+{run_id}")

    def ended(self, result):
        self.now -= result.name != "not run"
        self.events.append(f"-{result.run}")

    def note(self, text):
        self.events.append(text)

    def tick(self):
        pass


def script_jobs(tmp_path, monkeypatch, scripts, gpus=0):
    """Jobs {id: (inputs, python code)} whose workers run that code and write the record where it ends well."""
    folders, processes = StudyFolders(tmp_path), []

    def start(job, gpus):
        folders.log(job["run"]).parent.mkdir(exist_ok=True)
        write_json(folders.job(job["run"]), {**job, "host": "here", "parent": os.getpid()})
        done = f"\nfrom reid_utils.files import write_json\nwrite_json({str(folders.record(job['run']))!r}, "
        done += "{'kernel_seconds': 1.0})"
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
        with folders.log(job["run"]).open("w") as log:
            command = [sys.executable, "-c", scripts[job["run"]][1] + done]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return processes[-1]

    monkeypatch.setattr(engine, "start_worker", start)
    fixed = {"root": str(tmp_path), "notebook": "n.ipynb", "command": "c", "gpus": gpus}
    write_json(folders.holder, {"command": "c"})
    return [{"run": name, "inputs": inputs, **fixed} for name, (inputs, _) in scripts.items()], processes


def execute(jobs, slots, show=None, gpus=()):
    with engine.here(slots, gpus) as submit:
        return engine.execute(jobs, submit, show or Show(), pause=0.02)


def test_runs_wait_for_their_inputs_and_keep_the_limit_and_the_order(tmp_path, monkeypatch):
    nap = "import time; time.sleep(0.2)"
    scripts = {name: ([], nap) for name in "abcd"} | {"e": (["a", "b"], nap), "f": (["e", "done before"], nap)}
    show = Show()
    outcomes = execute(script_jobs(tmp_path, monkeypatch, scripts)[0], 2, show)
    assert {result.name for result in outcomes.values()} == {"done"} and set(outcomes) == set("abcdef")
    assert show.most == 2 and show.events.index("-b") < show.events.index("+e") and show.events[-1] == "-f"
    starts = [event for event in show.events if event in ("+a", "+b", "+c", "+d")]
    assert set(starts[:2]) == {"+a", "+b"} and set(starts[2:]) == {"+c", "+d"}


def test_runs_here_need_no_cluster_library():
    code = "import sys, run_all; print('distributed' in sys.modules)"
    environment = {**os.environ, "PYTHONSAFEPATH": ""}  # which run_all sets, and a test that calls it here
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    assert done.stdout == "False\n", done.stderr


def test_a_gpu_belongs_to_one_run_at_a_time(tmp_path, monkeypatch):
    used = f"""
import os, time
from pathlib import Path
place = Path({str(tmp_path)!r}) / ("gpu" + os.environ["CUDA_VISIBLE_DEVICES"])
place.mkdir()
time.sleep(0.3)
place.rmdir()
"""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    engine.free_gpus.cache_clear()
    jobs, _ = script_jobs(tmp_path, monkeypatch, {name: ([], used) for name in "abcd"}, gpus=1)
    show = Show()
    outcomes = execute(jobs, 4, show, gpus=["4", "6"])
    assert {name: result.message for name, result in outcomes.items()} == dict.fromkeys("abcd", "")
    assert show.most == 2 and sorted(engine.free_gpus()) == ["4", "6"]
    engine.free_gpus.cache_clear()


def test_a_failure_stops_its_dependents_only(tmp_path, monkeypatch):
    scripts = {
        "bad": ([], "raise OSError('No space left on device')"),
        "killed": ([], "import os; os.kill(os.getpid(), 9)"),
        "good": ([], ""),
        "after bad": (["bad"], ""),
        "after that": (["good", "after bad"], ""),
        "after good": (["good"], ""),
    }
    outcomes = execute(script_jobs(tmp_path, monkeypatch, scripts)[0], 2)
    assert {name: result.name for name, result in outcomes.items()} == {
        "bad": "failed", "killed": "failed", "good": "done",
        "after bad": "not run", "after that": "not run", "after good": "done",
    }  # fmt: skip
    assert "OSError: No space left on device" in outcomes["bad"].message
    assert "killed by signal 9" in outcomes["killed"].message
    assert outcomes["after that"].message == "needs after bad"


def test_no_worker_outlives_an_interrupted_loop(tmp_path, monkeypatch):
    class Interrupting(Show):
        def tick(self):
            if self.now == 2:
                raise KeyboardInterrupt

    scripts = {name: ([], "import time; time.sleep(60)") for name in "abc"}
    jobs, processes = script_jobs(tmp_path, monkeypatch, scripts)
    with pytest.raises(KeyboardInterrupt):
        execute(jobs, 2, Interrupting())
    assert [process.poll() for process in processes] == [-9, -9]


def test_a_held_study_tells_who_holds_it(tmp_path):
    folders = StudyFolders(tmp_path)
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with (
        pytest.raises(StudyError, match=rf"in use by process {process.pid} on .* since 2"),
        engine.hold(folders),
    ):
        pass
    process.kill()  # a killed holder leaves nothing to clean up
    process.communicate()
    with engine.hold(folders):
        pass


@linux_only
def test_a_process_ends_with_its_parent_even_inside_a_long_call():
    child = "import os; from notebook_study.worker import die_with; die_with(os.getppid()); "
    child += "print(os.getpid(), flush=True); sum(range(10**12))"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = parent.stdout.readline().strip()
    parent.kill()
    parent.wait()
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}/exe").exists()


def test_durations_and_summary_are_readable():
    assert [progress.duration(s) for s in (7.6, 65, 7260)] == ["8 s", "1 min 05 s", "2 h 01 min"]
    runs = [run_of(name) for name in ("02__a", "02__b", "03__a", "06")]
    states = {run.id: keys.State("done" if run.id == "02__a" else "to do", "", 60) for run in runs}
    outcomes = {
        "02__b": worker.Outcome("02__b", "done", 12.34, 1.5),
        "03__a": worker.Outcome("03__a", "failed", 3.0),
        "06": worker.Outcome("06", "not run", message="needs 03__a"),
    }
    lines = progress.summary_text(runs, states, outcomes, seconds=8.2).splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in lines[1:5]] == [
        ["02__a", "as before"], ["02__b", "done", "12 s"], ["03__a", "failed", "3 s"], ["06", "not run"],
    ]  # fmt: skip
    assert lines[-1] == "2 executed in 8 s; the runs' own times add up to 15 s, 2 s of it starting kernels"


class Terminal(list):
    """A stream that says it is a terminal and keeps what is written."""

    write = list.append

    def isatty(self):
        return True

    def flush(self):
        pass


def test_a_terminal_shows_each_running_run_with_what_is_left(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    screen = Terminal()
    runs = [run_of("a"), run_of("b", minutes=0.5)]
    states = {run.id: keys.State("to do", "", 60 * run.minutes) for run in runs}
    show = progress.Progress(runs, states, 2, screen)
    show.started("a")
    show.started("b")
    clock[0] += 40
    show.tick()
    assert screen[-1].splitlines() == [
        "  a  40 s, about 20 s left",
        "  b  40 s, late",
        "  0 of 2 ended, about 10 s left",
    ]
    show.ended(worker.Outcome("b", "done", 41.0))
    assert screen[-2] == "\x1b[3A\x1b[J" and screen[-1] == "done    b in 41 s [1/2]\n"


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


@linux_only
def test_a_run_whose_dask_worker_dies_goes_on_elsewhere_and_a_killed_command_ends_its_runs(workers, tmp_path):
    address, processes = workers
    clone = make_clone(tmp_path / "a {b} c")
    study = start(clone, "--scheduler", address, *SLOW)
    wait_until(lambda: all(steps_of(clone, f"02_training__{name}").exists() for name in ("none", "flip")))
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


@linux_only
def test_a_run_that_kills_its_dask_workers_fails_after_four(tmp_path):
    clone = make_clone(tmp_path)
    deadly = "import os, time; from notebook_study import engine; "
    deadly += "engine.start_worker = lambda job, gpus: time.sleep(0.5) or os._exit(9); "
    scheduler, address = start_scheduler(tmp_path)
    workers = [start_worker(address, prelude=deadly) for _ in range(4)]
    try:
        status, out, _ = call(clone, "--scheduler", address, "--only", "*flip")
    finally:
        stop(scheduler, *workers)
    assert status == 1 and "failed  02_training__flip [1/1]: KilledWorker: " in out and "4 different workers" in out


@linux_only
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


@linux_only
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
        "run_all: the connection to the Dask scheduler is lost, and its runs end with it; "
        "the same command goes on where this one stopped\n"
    )
    assert call(clone, *SLOW, "--only", "*none")[0] == 0
    assert "step 1\n" not in (clone / "runs" / "tiny" / "logs" / "02_training__none.log").read_text()


@linux_only
def test_clusters_that_cannot_serve_are_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "LIMIT", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for address in (f"tcp://127.0.0.1:{silent.getsockname()[1]}", "tcp://127.0.0.1:9", "nonsense://x"):
            with pytest.raises(StudyError, match=f"no Dask scheduler can be reached at {address} "):
                engine.connect(address).__enter__()
    clone = make_clone(tmp_path)
    scheduler, address = start_scheduler(tmp_path)
    (tmp_path / "old" / "numpy-0.1.dist-info").mkdir(parents=True)
    metadata = tmp_path / "old" / "numpy-0.1.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n")
    other = start_worker(address, path=tmp_path / "old")
    try:
        with Client(address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
        status, _, err = call(clone, "--scheduler", address)
    finally:
        stop(scheduler, other)
    assert (status, err.count("\n")) == (2, 1), err
    assert " has numpy 0.1, the command that started it 2." in err
    assert not list(clone.glob("runs/*/tables/*"))


def test_a_run_of_another_version_is_refused_and_nothing_is_made(tmp_path):
    clone = make_clone(tmp_path)
    (clone / "requirements.lock").write_text("PyYAML==6\n")
    elsewhere = "from notebook_study import keys\nkeys.installed_versions = lambda *names: {'pyyaml': '0.1'}\n"
    driver = (clone / "driver.py").read_text().replace("import run_all\n", f"import run_all\n{elsewhere}")
    (clone / "driver.py").write_text(driver)
    status, _, err = call(clone)
    assert (status, err.count("\n")) == (2, 1) and " has pyyaml 6" in err and "the command that started it 0.1;" in err
    assert not list(clone.glob("runs/*/tables/*"))
