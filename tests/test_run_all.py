"""run_all.py from the outside, on two-notebook studies with real kernels and no data."""

import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from tiny_study import (
    GIVEN,
    REPOSITORY,
    call,
    make_clone,
    processes_of,
    start,
    wait_until,
    write_images,
    write_notebook,
)

from notebook_study.folders import StudyFolders
from notebook_study.plan import Run, expand
from notebook_study.study_file import declared_in, read_study
from reid_utils.files import read_json, write_json

sys.path.append(str(REPOSITORY))
import run_all

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A clone whose study has been run once on a folder of images, what that said, its results, the option."""
    clone = make_clone(tmp_path_factory.mktemp("finished"))
    data = ["--data", str(write_images(clone / "crops"))]
    return clone, call(clone, "--jobs", "2", *data), clone / "runs" / "tiny-crops", data


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()
    }


def test_a_study_leaves_tables_figures_notebooks_and_a_summary(finished):
    clone, (status, out, err), root, _ = finished
    assert status == 0 and all(line.startswith("run_all: warning: ") for line in err.splitlines())
    assert (root / "tables" / "T1.csv").read_text() == "02_training__none,4\n02_training__flip,4\n"
    assert (root / "figures" / "02_training__flip_curve.svg").exists()
    ids = ["02_training__none", "02_training__flip", "06_paper_tables"]
    assert sorted(path.stem for path in (root / "notebooks").iterdir()) == sorted(ids)
    for run_id in ids:
        assert f"done    {run_id} in " in out
        record = read_json(root / "state" / f"{run_id}.json")
        assert 0 < record["kernel_seconds"] < record["seconds"]
    summary = out[out.index("run  ") :]
    assert [line.split()[:2] for line in summary.splitlines()[1:4]] == [[run_id, "done"] for run_id in ids]
    assert "OMP_NUM_THREADS=1" in (root / "logs" / "02_training__none.log").read_text()
    assert f'data = \\"{clone / "crops"}\\"' in (root / "notebooks" / "02_training__none.ipynb").read_text()


def test_what_is_done_is_not_done_again_and_a_change_says_why(finished):
    clone, _, root, data = finished
    before = files_of(root / "results")
    status, out, _ = call(clone, *data)
    assert status == 0 and out.splitlines()[-1] == f"all 3 runs are done; tables in {root / 'tables'}"
    status, out, _ = call(clone, "--dry-run", "--set", "steps=3", "--only", "*none", *data)
    assert status == 0 and "stale" in out and "02_training__none (parameter steps changed)" in out
    assert "1 of 3 runs to execute" in out
    image = clone / "crops" / "reid_training" / "1_1_00.jpeg"
    content = image.read_bytes()
    Image.new("RGB", (16, 32)).save(image)
    assert "02_training__none (data changed)" in call(clone, "--dry-run", *data)[1]
    image.write_bytes(content)
    assert "all 3 runs are done" in call(clone, "--dry-run", *data)[1]
    assert files_of(root / "results") == before


def test_mistakes_end_in_one_line_before_anything_runs(finished, tmp_path):
    clone = finished[0]
    for arguments, message in (
        (["--set", "stps=3"], "did you mean 'steps'"),
        (["--only", "07*"], "--only 07* matches no run; runs: 02_training__none, "),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--runs", os.fsdecode(b"/tmp/\xff")], "--runs /tmp/\\xdcff is no name in UTF-8: give another folder"),
        (["--features", str(tmp_path)], "no notebook that declares the parameter 'features'"),
    ):
        status, out, err = call(clone, *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1) and message in err
    broken = make_clone(tmp_path / "broken")
    study = (broken / "studies" / "tiny.yaml").read_text()
    (broken / "studies" / "tiny.yaml").write_text(study.replace("{steps: 2}", "{stepps: 2}"))
    status, out, err = call(broken)
    assert (status, out, err) == (2, "", "run_all: 02_training: parameter 'stepps' is unknown; did you mean 'steps'?\n")
    assert not (broken / "runs").exists()


def test_faulty_data_end_in_one_line_before_anything_runs(tmp_path):
    clone = make_clone(tmp_path / "clone")
    status, out, err = call(clone, "--data", "no/such/folder")
    assert (status, out, err.count("\n")) == (2, "", 1) and "no/such/folder" in err
    assert not (clone / "runs").exists()
    folder = write_images(tmp_path / "crops")
    image = folder / "reid_training" / "2_2_01.jpeg"
    image.write_bytes(image.read_bytes()[:200])
    status, _, err = call(clone, "--data", str(folder))
    assert status == 2 and err.splitlines()[-1].startswith(f"run_all: {image} cannot be decoded")
    assert not (clone / "runs" / "tiny-crops" / "results").exists()


@linux_only
def test_a_killed_study_leaves_no_process_and_goes_on_where_it_was(tmp_path):
    clone = make_clone(tmp_path / "a {b} c")  # braces and spaces are nothing special
    root = clone / "runs" / "tiny"
    slow = ["--set", "steps=80", "--set", "pause=0.1", "--only", "*flip"]
    process = start(clone, *slow)
    step = root / "results" / "02_training__flip" / "step.txt"
    wait_until(step.exists)
    status, _, err = call(clone, *slow)
    assert status == 2 and f"in use by process {process.pid} on" in err
    process.kill()
    process.communicate()
    wait_until(lambda: not processes_of(clone), seconds=15)
    assert "1 of 3 runs to execute" in call(clone, "--dry-run", *slow)[1]
    reached = int(step.read_text())
    assert call(clone, *slow)[0] == 0
    log = (root / "logs" / "02_training__flip.log").read_text()
    assert f"step {reached + 1}\n" in log and "step 1\n" not in log  # resumed, not begun anew
    assert not list((root / "notebooks").glob("*.running.ipynb"))
    assert (step.parent / "results.json").exists()


def test_interrupting_ends_the_workers_and_says_how_to_go_on(tmp_path):
    clone = make_clone(tmp_path)
    process = start(clone)
    wait_until((clone / "runs" / "tiny" / "results" / "02_training__none" / "key").exists)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "run_all: interrupted; the same command goes on where this one stopped\n"
    if sys.platform == "linux":
        wait_until(lambda: not processes_of(clone), seconds=15)


def test_failed_and_dead_notebooks_are_told_and_the_other_branches_go_on(tmp_path):
    clone = make_clone(tmp_path)
    own = 'augmentation = "none"\nsteps = 1\n'
    fault = "if augmentation == 'flip':\n    raise ValueError('no\\nluck')\nif augmentation == 'dead':\n    os._exit(9)"
    well = "Path(out, 'results', run_id, 'results.json').write_text('{}')"
    write_notebook(
        clone / "notebooks" / "02_training.ipynb", GIVEN + own, "import os\nfrom pathlib import Path", fault, well
    )
    study = (clone / "studies" / "tiny.yaml").read_text()
    (clone / "studies" / "tiny.yaml").write_text(study.replace("[none, flip]", "[flip, dead, none]"))
    status, out, _ = call(clone)
    notebooks = clone / "runs" / "tiny" / "notebooks"
    assert status == 1
    assert "cell 4 (In [4]): ValueError: no luck; see " + str(notebooks / "02_training__flip.failed.ipynb") in out
    assert "the kernel died in cell 4 (out of memory, or killed); see " in out
    assert "done    02_training__none in " in out and "not run 06_paper_tables" in out and "needs 02_training__" in out
    names = ["02_training__dead.failed.ipynb", "02_training__flip.failed.ipynb", "02_training__none.ipynb"]
    assert sorted(path.name for path in notebooks.iterdir()) == names
    assert "failed last time" in call(clone, "--dry-run")[1]


def test_a_moved_clone_keeps_what_is_done_and_sees_what_is_gone_or_forced(finished, tmp_path):
    clone = make_clone(tmp_path / "moved")
    shutil.copytree(finished[0] / "crops", clone / "crops")
    shutil.copytree(finished[0] / "runs", clone / "runs")
    dry = ["--dry-run", "--data", str(clone / "crops")]
    assert "all 3 runs are done" in call(clone, *dry)[1]
    assert "1 of 3 runs to execute" in call(clone, *dry, "--force", "--only", "*none")[1]
    (clone / "runs" / "tiny-crops" / "tables" / "T1.csv").unlink()
    assert "06_paper_tables (tables/T1.csv is gone)" in call(clone, *dry)[1]


def test_a_table_that_was_edited_is_made_again_and_the_edited_one_is_kept(finished, tmp_path):
    clone = make_clone(tmp_path / "moved")
    shutil.copytree(finished[0] / "crops", clone / "crops")
    shutil.copytree(finished[0] / "runs", clone / "runs")
    root, data = clone / "runs" / "tiny-crops", ["--data", str(clone / "crops")]
    (root / "tables" / "T1.csv").write_text("mine")
    (root / "notebooks" / "02_training__none.ipynb").write_text("{}")  # looked at and saved
    assert "06_paper_tables (tables/T1.csv was changed by hand)" in call(clone, "--dry-run", *data)[1]
    status, out, _ = call(clone, *data)
    assert status == 0 and "1 executed" in out
    assert (root / "tables" / "T1.csv").read_text() == "02_training__none,4\n02_training__flip,4\n"
    aside = root / "results" / "superseded" / "06_paper_tables"
    assert [path.read_text() for path in aside.rglob("T1.csv")] == ["mine"]


def test_pretrained_weights_count_by_what_the_file_holds_where_a_run_uses_them(tmp_path):
    (tmp_path / "test_resnet.safetensors").write_text("1")
    places = {"backbone": "test_resnet", "weights_dir": str(tmp_path)}

    def told(**parameters):
        run_all._hash_once.cache_clear()
        return run_all.pretrained_weights(Run("02", "02_training", "", places | parameters, (), 1.0))

    before = told(pretrained=True)
    (tmp_path / "test_resnet.safetensors").write_text("2")
    assert list(before) == list(told(pretrained=True)) == ["pretrained weights"] and before != told(pretrained=True)
    assert told() == told(pretrained=True, backbone="resnet50") == told(pretrained=True, start_weights="x") == {}


def test_results_from_a_processor_and_a_gpu_in_one_table_are_told(tmp_path):
    folders, runs = StudyFolders(tmp_path), [Run(name, "02_training", "", {}, (), 1.0) for name in "abc"]
    for name, device in (("a", "cpu: X"), ("b", "cpu: Y, AVX2")):
        write_json(folders.results(name) / "results.json", {"device": device})
    assert list(run_all.mixed(runs, folders)) == []
    write_json(folders.results("c") / "results.json", {"device": "cuda: H200"})
    (line,) = run_all.mixed(runs, folders)
    assert line.startswith("02_training ran on cpu and cuda")


FOREIGN = "raise SystemExit('foreign code was run')"


def test_nothing_is_run_that_lies_where_the_command_was_typed_or_on_the_paths_of_others(tmp_path):
    clone = make_clone(tmp_path / "clone")
    told = "import sys, queue\nprint('kernel', sys.executable, sys.flags.safe_path, queue.__file__)"
    write_notebook(clone / "notebooks" / "02_training.ipynb", GIVEN + 'augmentation = ""\nsteps = 1\n', told)
    other = tmp_path / "another checkout"
    for folder in (other, other / "reid_utils", other / "notebook_study", clone / "notebooks"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("queue", "worker", "__init__"):
            (folder / f"{name}.py").write_text(FOREIGN)
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    write_json(kernel, {"argv": ["/bin/false", "{connection_file}"], "display_name": "foreign", "language": "python"})
    paths = {"JUPYTER_PATH": str(tmp_path / "jupyter")}
    process = start(clone, "--only", "*none", cwd=other, **paths)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    log = (clone / "runs" / "tiny" / "logs" / "02_training__none.log").read_text()
    assert f"kernel {sys.executable} True {queue.__file__}" in log


def test_a_file_beside_run_all_stands_in_for_no_module_and_the_code_is_the_checkouts_own(tmp_path):
    tree = make_clone(tmp_path / "a {prefix} 'c")
    for name in ("run_all.py", "pyproject.toml", "notebook_study", "reid_utils", "rendered_players"):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        copy(REPOSITORY / name, tree / name)
    told = "import reid_utils, random\nprint('from', reid_utils.__file__)"
    write_notebook(tree / "notebooks" / "02_training.ipynb", GIVEN + 'augmentation = ""\nsteps = 1\n', told)
    for name in ("queue", "token", "random", "copy", "socket", "pickle", "types", "yaml", "papermill", "numpy"):
        (tree / f"{name}.py").write_text(FOREIGN)
    command = [sys.executable, "run_all.py", "tiny", "--only", "*none", "--data", str(write_images(tree / "crops"))]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    log = (tree / "runs" / "tiny-crops" / "logs" / "02_training__none.log").read_text()
    assert f"from {tree / 'reid_utils' / '__init__.py'}" in log


def test_a_failed_run_that_nothing_reads_stops_nothing(tmp_path):
    clone = make_clone(tmp_path)
    write_notebook(clone / "notebooks" / "05_embedding_analysis.ipynb", GIVEN, "raise OSError('picture too heavy')")
    study = clone / "studies" / "tiny.yaml"
    pictures = "  - {notebook: 05_embedding_analysis, after: 02_training}\n  - notebook: 06"
    study.write_text(
        study.read_text().replace("  - notebook: 06", pictures).replace("after: all", "after: 02_training")
    )
    status, out, _ = call(clone)
    assert status == 1 and "failed  05_embedding_analysis" in out and "done    06_paper_tables in " in out
    assert (clone / "runs" / "tiny" / "tables" / "T1.csv").exists()


@pytest.mark.parametrize("name", ["lab", "smoke", "quick", "micro", "paper"])
def test_the_tables_of_every_study_wait_for_what_they_read_and_not_for_pictures(name):
    study = read_study(REPOSITORY / "studies" / f"{name}.yaml")
    runs = {run.id: run for run in expand(study, declared_in(study, REPOSITORY / "notebooks"))}
    read = {run_id.partition("__")[0] for run_id in runs["06_paper_tables"].inputs}
    assert "02_training" in read
    assert read <= {"02_training", "03_post_processing", "04_fusion", "07_regime_map"}  # T7 is a table too


def test_options_are_recorded_and_the_command_is_one_for_a_shell(tmp_path):
    clone = make_clone(tmp_path)
    refused, _, err = call(clone, "--se", "steps=1")
    assert refused == 2 and "unrecognized arguments: --se" in err
    given = ["--set", "augmentation=[a 'b', \"c\"]", "--jobs", "1", "--only", "*b*", "--set=steps=1"]
    assert call(clone, *given)[0] == 0
    record = read_json(next(clone.glob("runs/tiny/study.json")))
    assert record["options"]["set"] == ["augmentation=[a 'b', \"c\"]", "steps=1"] and record["options"]["jobs"] == 1
    words = ["python", "run_all.py", "tiny", "--set", given[1], "--set", "steps=1"]
    assert shlex.split(record["command"]) == words


def test_the_plan_scales_its_minutes_with_the_training_images_that_they_stand_for(tmp_path):
    clone, crops = make_clone(tmp_path), write_images(tmp_path / "crops")  # four images in training
    study = clone / "studies" / "tiny.yaml"
    plain = study.read_text()
    for images, told in ((0, "6 s"), (1, "24 s"), (4, "6 s"), (8, "6 s")):
        study.write_text(plain.replace("data: rendered", f"data: rendered\nimages: {images}"))
        _, out, _ = call(clone, "--data", str(crops), "--dry-run")
        assert next(line.split()[2:4] for line in out.splitlines() if "to do" in line) == told.split(), out


def test_names_in_any_script_and_with_marks_of_terminals_stop_nothing(tmp_path):
    clone = make_clone(tmp_path / "прогон {x} $HOME %s")
    crops = write_images(clone / "игроки \x1b[31m &<b>")
    process = start(clone, "--data", str(crops), "--jobs", "2", PYTHONIOENCODING="ascii")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "\x1b" not in out + err
    root = next((clone / "runs").glob("tiny-*"))
    assert (root / "tables" / "T1.csv").exists() and root.name == f"tiny-{crops.name}"
    assert "all 3 runs are done" in call(clone, "--data", str(crops))[1]


def test_an_error_about_permissions_says_what_to_do(finished):
    """Two users of one group share runs/; the first made it with umask 022."""
    clone, _, root, data = finished
    if os.getuid() != 0:
        pytest.skip("only root can be another user")
    for folder in (clone, *clone.parents[:3]):
        folder.chmod(0o755)
    command = [sys.executable, str(clone / "driver.py"), "tiny", "--runs", str(clone / "runs"), "--force", *data]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"}
    other = ["setpriv", "--reuid=5002", "--clear-groups"]
    done = subprocess.run([*other, *command], capture_output=True, text=True, env=environment)
    told = f"run_all: {root}/locks/study.lock may not be read or written by you; "
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(told), done.stderr
    assert "chmod -R g+rwX" in done.stderr and "Errno" not in done.stderr


def test_libraries_of_the_users_home_stand_in_for_none():
    """An interpreter without a venv, as conda's, reads ~/.local first: run_all starts itself anew without it."""
    code = "import os, runpy, site, sys\nsite.ENABLE_USER_SITE = True\n"
    code += "os.execv = lambda program, words: sys.exit(repr(words[:2]))\n"
    code += "runpy.run_path('run_all.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == f"{[sys.executable, '-s']}\n"


def test_a_finished_study_can_be_read_where_nothing_can_be_written(finished):
    clone, _, root, data = finished
    locks = root / "locks"
    shutil.move(locks, root / "kept")  # stands in for a folder of another user: whoever would write fails
    locks.write_text("")
    try:
        status, out, _ = call(clone, *data)
    finally:
        locks.unlink()
        shutil.move(root / "kept", locks)
    assert status == 0 and "all 3 runs are done" in out


def test_a_home_that_is_no_folder_is_no_obstacle(tmp_path):
    clone = make_clone(tmp_path)
    for home in ("/dev/null", str(tmp_path / "missing" / "home")):
        process = start(clone, "--force", "--only", "*none", HOME=home)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, ""), out
    assert not (tmp_path / "missing").exists()


def test_a_dry_run_of_the_paper_study_needs_no_data_and_no_network_and_writes_nothing(tmp_path):
    command = [sys.executable, "run_all.py", "paper", "--dry-run", "--runs", str(tmp_path / "runs")]
    offline = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=offline)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    planned = [line for line in lines if line.startswith("  to do")]
    assert f"{len(planned)} of {len(planned)} runs to execute" in lines[-1] and len(planned) > 20
    assert not list(tmp_path.iterdir())


def test_faults_in_ones_own_features_end_in_one_line_before_any_kernel(tmp_path, capsys):
    def told(*arguments):
        assert run_all.main(["smoke", "--runs", str(tmp_path / "runs"), *map(str, arguments)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert not (tmp_path / "runs").exists()
        return line

    folder, arrays = tmp_path / "mine", {"query": np.eye(2), "gallery": np.eye(3, 2)}
    folder.mkdir()
    assert "holds no feature files" in told("--features", folder)
    np.savez(folder / "a.npz", **arrays)
    assert "a.npz: key 'query_players' is missing" in told("--features", folder)
    np.savez(folder / "a.npz", **arrays, query_players=[0, 1], gallery_players=[0, 1, 1])
    np.savez(folder / "b.npz", **arrays, query_players=[0, 2], gallery_players=[0, 1, 1])
    assert "models of other images need a folder of their own, or --only '03*'" in told("--features", folder)
    (folder / "b.npz").unlink()
    assert "names its images: add query_images" in told("--features", folder, "--images", folder)
    assert "--images must be a folder, and goes with --features" in told("--images", folder)
    np.savez(folder / "a.npz", **arrays, query_players=[0, 1], gallery_players=[0, 1, 1], query_images=["q", "r"])
    assert "0 images of" in told("--features", folder, "--images", folder)


def test_a_check_names_all_that_is_missing_and_starts_nothing(tmp_path, capsys, monkeypatch):
    def told(*arguments):
        status = run_all.main([*arguments, "--check", "--runs", str(tmp_path / "runs")])
        assert not (tmp_path / "runs").exists()
        return status, capsys.readouterr().out

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "resnet50.safetensors").write_text("1")
    status, out = told("paper", "--set", f"weights_dir={tmp_path}")
    weights, gpu = (
        next(line for line in out.splitlines() if line.startswith(f"missing: {what}")) for what in ("weights", "GPU")
    )
    assert "31 runs ask for one" in gpu and status == 1 and "missing: data: " in out and "GB needed" in out
    assert weights.count(".safetensors") == 6 and "eva_giant" in weights and "ViT-L-14-quickgelu_openai" in weights
    assert "resnet50" not in weights
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert "missing: GPU" not in told("paper", "--only", "02*beitv2*none")[1]
    status, out = told("micro")
    assert status == 0 and out.splitlines()[-1] == "nothing is missing"
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=10**6))
    status, out = told("micro")
    assert status == 1 and "missing: disk: about 0." in out
    assert "missing: data: data folder" in told("micro", "--data", str(tmp_path / "none"))[1]


def test_minutes_differ_with_and_without_a_gpu():
    study = read_study(REPOSITORY / "studies" / "paper.yaml")
    runs = [Run("a", "02_training", "", {}, (), 2.0, gpus=1), Run("b", "06_paper_tables", "", {}, (), 3.0)]
    assert [run.minutes for run in run_all.estimated(runs, study, None, has_gpu=True)] == [2.0, 3.0]
    assert [run.minutes for run in run_all.estimated(runs, study, None, has_gpu=False)] == [600.0, 3.0]


def test_only_hides_the_runs_that_nobody_asked_for(tmp_path):
    clone = make_clone(tmp_path)
    _, plan_shown, _ = call(clone, "--only", "*none", "--dry-run")
    _, said, _ = call(clone, "--only", "*none")
    for text in (plan_shown, said):
        assert "02_training__none" in text and "02_training__flip" not in text and "06_paper" not in text
    assert "1 of 3 runs to execute" in plan_shown
    assert re.search(r"^1 executed in \d+ s; the runs' own times add up to \d+ s, \d+ s of it starting", said, re.M)
    _, said, _ = call(clone, "--only", "06*")  # which reads all: what it needs is shown with it
    assert "02_training__flip" in said[said.index("run  ") :]
