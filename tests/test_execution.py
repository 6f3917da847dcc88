"""Keys, states, choice and order of runs, and the loop that executes them (with processes that are not notebooks)."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_study import GIVEN, write_notebook

from reid_utils.files import read_json, write_json, write_text
from reid_utils.study import execution, jobs, keys, progress
from reid_utils.study.plan import Run
from reid_utils.study.study_file import StudyError
from reid_utils.study.worker import prepare_folders

HOLDER = """
import sys
from reid_utils.study.execution import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    input()
"""


def run_of(name, inputs=(), minutes=1.0, **parameters):
    return Run(name, name.split("__")[0], "", parameters, tuple(inputs), minutes)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `reid_utils` of a few modules for imported_modules to read."""
    sources = {
        "__init__.py": "",
        "ranking/__init__.py": "from .distances import squared\n",
        "ranking/distances.py": "import numpy as np\n",
        "ranking/metrics.py": "def late():\n    from ..data import images\n",
        "data/__init__.py": "",
        "data/images.py": "x = 1\n",
        "learning/__init__.py": "",
        "learning/losses.py": "y = 1\n",
    }
    for name, source in sources.items():
        write_text(tmp_path / "reid_utils" / name, source)
    monkeypatch.setattr(keys, "PACKAGE", tmp_path / "reid_utils")
    keys.imported_modules.cache_clear()
    yield tmp_path
    keys.imported_modules.cache_clear()


def key_of(clone, source="from reid_utils.ranking import metrics", run=None, threads=1, data="f", upstream=None):
    write_notebook(clone / "n.ipynb", GIVEN, source)
    keys.imported_modules.cache_clear()
    run = run or run_of("n", seeds=[0])
    return keys.key_parts(run, clone / "n.ipynb", clone / "requirements.lock", threads, upstream or {}, data)


def test_modules_count_directly_through_others_in_functions_and_with_their_packages(package):
    modules = key_of(package)["modules"]
    assert set(modules) == {
        "reid_utils", "reid_utils.ranking", "reid_utils.ranking.distances", "reid_utils.ranking.metrics",
        "reid_utils.data", "reid_utils.data.images",
    }  # fmt: skip


def test_magics_are_no_obstacle_and_broken_cells_are_named(package):
    assert "reid_utils.learning.losses" in key_of(package, "%time\n!ls\nimport reid_utils.learning.losses")["modules"]
    with pytest.raises(StudyError, match=r"n\.ipynb: cell 3 has a syntax error in line 1"):
        key_of(package, "for")


def test_every_part_of_a_key_is_told_when_it_changes(package):
    before = key_of(package)
    assert keys.changes(before, key_of(package)) == []
    (package / "requirements.lock").write_text("numpy==3\n")
    assert keys.changes(before, key_of(package)) == ["requirements changed"]
    (package / "requirements.lock").unlink()
    write_text(package / "reid_utils" / "data" / "images.py", "x = 2\n")
    assert keys.changes(before, key_of(package)) == ["reid_utils.data.images changed"]
    write_text(package / "reid_utils" / "data" / "images.py", "x = 1\n")
    write_text(package / "reid_utils" / "learning" / "losses.py", "y = 2\n")  # not imported
    assert keys.changes(before, key_of(package)) == []
    assert keys.changes(before, key_of(package, run=run_of("n", seeds=[1]))) == ["parameter seeds changed"]
    assert keys.changes(before, key_of(package, threads=2)) == ["threads changed"]
    assert keys.changes(before, key_of(package, data="g")) == ["data changed"]
    assert keys.changes(before, key_of(package, upstream={"a": "k"})) == ["upstream a changed"]
    assert "notebook changed" in keys.changes(before, key_of(package, "from reid_utils.ranking import metrics  # x"))


def test_outputs_and_metadata_of_a_notebook_do_not_count(package):
    before = key_of(package)
    content = read_json(package / "n.ipynb")
    content["cells"][2] |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "x"}], "execution_count": 4}
    content["cells"][2]["metadata"] = {"scrolled": True}
    write_json(package / "n.ipynb", content)
    keys.imported_modules.cache_clear()
    parts = keys.key_parts(run_of("n", seeds=[0]), package / "n.ipynb", package / "requirements.lock", 1, {}, "f")
    assert parts == before


def test_keys_hold_no_path_so_a_moved_clone_keeps_its_runs(package):
    assert str(package) not in str(key_of(package))


def test_folder_fingerprint_follows_content_and_names_only(tmp_path):
    write_text(tmp_path / "a" / "x.csv", "1")
    write_text(tmp_path / "b" / "x.csv", "1")
    os.utime(tmp_path / "b" / "x.csv", (1, 1))
    assert keys.folder_fingerprint(tmp_path / "a") == keys.folder_fingerprint(tmp_path / "b")
    write_text(tmp_path / "b" / "x.csv", "2")
    assert keys.folder_fingerprint(tmp_path / "a") != keys.folder_fingerprint(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        keys.folder_fingerprint(tmp_path / "missing")


def record(root, run_id, key, parts=None, files=(), seconds=10.0):
    write_json(root / "state" / f"{run_id}.json",
               {"key": key, "parts": parts or {}, "files": list(files), "seconds": seconds})  # fmt: skip


def test_states_tell_done_stale_and_to_do(tmp_path):
    runs = [run_of(name) for name in "abcde"]
    write_text(tmp_path / "results" / "a" / "results.json", "{}")
    record(tmp_path, "a", "k", files=["results/a/results.json"])
    record(tmp_path, "b", "old", {"parameters": {"epochs": 1}})
    record(tmp_path, "c", "k", files=["tables/T1.csv"])
    write_json(tmp_path / "state" / "d.failed.json", {"message": "x"})
    key = {run.id: ("k", {"parameters": {"epochs": 2}}) for run in runs}
    states = jobs.run_states(runs, tmp_path, key)
    assert [(states[name].name, states[name].reason, states[name].seconds) for name in "abcde"] == [
        ("done", "", 10),
        ("stale", "parameter epochs changed", 10),
        ("stale", "tables/T1.csv is gone", 10),
        ("to do", "failed last time", 60),
        ("to do", "", 60),
    ]
    assert {state.name for state in jobs.run_states(runs, tmp_path, None).values()} == {"to do"}


def chain(done=()):
    runs = [run_of("02__a"), run_of("02__b"), run_of("03__a", ["02__a"]), run_of("06", ["02__a", "02__b", "03__a"])]
    return runs, {run.id: jobs.State("done" if run.id in done else "to do", "", 60 * run.minutes) for run in runs}


def test_only_brings_what_is_needed_and_not_done():
    runs, states = chain()
    assert [run.id for run in jobs.choose(runs, states, jobs.pick(runs, "03*"))[0]] == ["02__a", "03__a"]
    runs, states = chain(done={"02__a"})
    assert [run.id for run in jobs.choose(runs, states, jobs.pick(runs, "03*"))[0]] == ["03__a"]
    assert [run.id for run in jobs.choose(runs, states, jobs.pick(runs))[0]] == ["02__b", "03__a", "06"]
    with pytest.raises(StudyError, match="--only 3 matches no run; runs: 02__a, 02__b, 03__a, 06"):
        jobs.pick(runs, "3")


def test_force_redoes_the_picked_runs_afresh_and_no_others():
    runs, states = chain(done={"02__a", "02__b", "03__a", "06"})
    assert jobs.choose(runs, states, jobs.pick(runs)) == ([], set())
    chosen, fresh = jobs.choose(runs, states, {"03__a"}, force=True)
    assert [run.id for run in chosen] == ["03__a"] and fresh == {"03__a"}


def test_the_longest_chain_starts_first():
    runs = [run_of("short"), run_of("long", minutes=5), run_of("first"), run_of("second", ["first"], minutes=9)]
    states = {run.id: jobs.State("to do", "", 60 * run.minutes) for run in runs}
    assert [run.id for run in jobs.in_order(runs, states)] == ["first", "second", "long", "short"]
    assert progress.total_seconds(runs, states, 2) == 600  # the chain; the work halved would be 480
    assert progress.total_seconds(runs, states, 1) == 960


def test_a_job_is_plain_values_with_absolute_paths_and_features_only_where_declared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_notebook("nb/02.ipynb", GIVEN + "epochs = 1\n")
    write_notebook("nb/03.ipynb", GIVEN + 'features = ""\n')
    runs = [run_of("02", epochs=2), run_of("03", ["02"])]
    key = {"02": ("k2", {}), "03": ("k3", {})}
    places = {"root": Path("runs/s"), "notebooks": Path("nb"), "data": "/d", "features": Path("mine")}
    training, post = (jobs.make_job(run, runs, key, **places) for run in runs)
    root = tmp_path / "runs" / "s"
    given = {"data": "/d", "out": str(root)}
    assert training["parameters"] == {"epochs": 2, **given, "run_id": "02", "inputs": []}
    inputs = [str(root / "results" / "02")]
    assert post["parameters"] == {**given, "run_id": "03", "inputs": inputs, "features": str(tmp_path / "mine")}
    write_json(tmp_path / "job.json", post)
    assert read_json(tmp_path / "job.json") == post


def test_kernels_get_their_threads_before_they_start(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    environment = execution.worker_environment({"root": str(tmp_path), "parts": {"threads": 3, "data": "f"}})
    assert {environment[name] for name in execution.THREAD_VARIABLES} == {"3"}
    assert environment["OMP_WAIT_POLICY"] == "passive" and environment["PYTHONHASHSEED"] == "0"
    assert "PYTHONDONTWRITEBYTECODE" not in environment and "MPLBACKEND" not in environment


def test_a_run_keeps_what_its_own_key_began_and_empties_the_rest(tmp_path):
    def begin(key, fresh=False):
        prepare_folders(tmp_path, "02__a", key, fresh, ["02__a_b"])
        kept = checkpoint.exists()
        write_text(checkpoint, "weights")
        return kept

    checkpoint = tmp_path / "results" / "02__a" / "checkpoint"
    assert not begin("k1")
    write_text(tmp_path / "figures" / "02__a_curve.png", "own")
    write_text(tmp_path / "figures" / "02__a_b_curve.png", "another run's")
    record(tmp_path, "02__a", "k1")
    assert begin("k1")
    assert not (tmp_path / "state" / "02__a.json").exists()  # not done until it ends again
    assert (tmp_path / "figures" / "02__a_curve.png").exists()
    assert not begin("k2")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["02__a_b_curve.png"]
    assert begin("k2") and not begin("k2", fresh=True)


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

    def tick(self):
        pass


def script_jobs(tmp_path, monkeypatch, scripts):
    """Jobs {id: (inputs, python code)} whose workers run that code and write the record where it ends well."""

    def start(job):
        (tmp_path / "logs").mkdir(exist_ok=True)
        code = scripts[job["run"]][1]
        state = tmp_path / "state" / f"{job['run']}.json"
        done = f"\nfrom reid_utils.files import write_json\nwrite_json({str(state)!r}, {{'kernel_seconds': 1.0}})"
        with (tmp_path / "logs" / f"{job['run']}.log").open("w") as log:
            return subprocess.Popen([sys.executable, "-c", code + done], stdout=log, stderr=log)

    monkeypatch.setattr(execution, "start_worker", start)
    return [{"run": name, "inputs": inputs, "root": str(tmp_path)} for name, (inputs, _) in scripts.items()]


def test_runs_wait_for_their_inputs_and_keep_the_limit(tmp_path, monkeypatch):
    nap = "import time; time.sleep(0.2)"
    scripts = {name: ([], nap) for name in "abcd"} | {"e": (["a", "b"], nap), "f": (["e", "done before"], nap)}
    show = Show()
    outcomes = execution.execute(script_jobs(tmp_path, monkeypatch, scripts), execution.Local(2), show, pause=0.02)
    assert {result.name for result in outcomes.values()} == {"done"} and set(outcomes) == set("abcdef")
    assert show.most == 2 and show.events.index("-b") < show.events.index("+e") and show.events[-1] == "-f"


def test_a_failure_stops_its_dependents_only(tmp_path, monkeypatch):
    scripts = {
        "bad": ([], "raise OSError('No space left on device')"),
        "killed": ([], "import os; os.kill(os.getpid(), 9)"),
        "good": ([], ""),
        "after bad": (["bad"], ""),
        "after that": (["good", "after bad"], ""),
        "after good": (["good"], ""),
    }
    outcomes = execution.execute(script_jobs(tmp_path, monkeypatch, scripts), execution.Local(2), Show(), pause=0.02)
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

    processes = []
    work = script_jobs(tmp_path, monkeypatch, {name: ([], "import time; time.sleep(60)") for name in "ab"})
    start = execution.start_worker
    monkeypatch.setattr(execution, "start_worker", lambda job: processes.append(start(job)) or processes[-1])
    with pytest.raises(KeyboardInterrupt):
        execution.execute(work, execution.Local(2), Interrupting(), pause=0.02)
    assert [process.poll() for process in processes] == [-9, -9]


def test_a_held_study_tells_who_holds_it(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(StudyError, match=rf"in use by process {process.pid} on .* since 2"), execution.hold(tmp_path):
        pass
    process.kill()  # a killed holder leaves nothing to clean up
    process.communicate()
    with execution.hold(tmp_path):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="the system ends orphans on Linux only")
def test_a_process_ends_with_its_parent_even_inside_a_long_call():
    child = "import os; from reid_utils.study.worker import die_with; die_with(os.getppid()); "
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
    runs, states = chain(done={"02__a"})
    outcomes = {
        "02__b": execution.Outcome("02__b", "done", 12.34, 1.5),
        "03__a": execution.Outcome("03__a", "failed", 3.0),
        "06": execution.Outcome("06", "not run", message="needs 03__a"),
    }
    lines = progress.summary_text(runs, states, outcomes).splitlines()
    assert [re.split(r"\s{2,}", line.strip()) for line in lines[1:5]] == [
        ["02__a", "as before"], ["02__b", "done", "12.3", "1.5"], ["03__a", "failed", "3.0"], ["06", "not run"],
    ]  # fmt: skip
    assert lines[-1] == "2 executed, 15 s in all, 2 s of it starting kernels"


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
    states = {run.id: jobs.State("to do", "", 60 * run.minutes) for run in runs}
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
    show.ended(execution.Outcome("b", "done", 41.0))
    assert screen[-2] == "\x1b[3A\x1b[J" and screen[-1] == "done    b in 41 s [1/2]\n"
