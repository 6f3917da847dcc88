"""What make does on machines that differ: mirrors set for pip, linked environments, root."""

import os
import shutil
import subprocess
import sys

import pytest
from tiny_study import REPOSITORY

# Stands in for every python: makes .venv of itself, tells pip's settings, notes what uv and JupyterLab are given.
PYTHON = """\
#!/bin/sh
case "$*" in
*"-m venv --clear"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
*"pip config list"*) cat settings ;;
*"-m uv"*) echo "$UV_DEFAULT_INDEX $SSL_CERT_FILE" >> uv.log ;;
*tools/lab.py*) mkdir -p lab ;;
*tools/report.py*) echo "$*" > report.log ;;
*jupyterlab*) echo "$*" "$JUPYTER_PATH" > lab.log ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """A folder with the Makefile, the files it looks at and a python that only notes what it is asked."""
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "settings").write_text("")
    return tmp_path


def make(tree, target, **environment):
    command = ["make", f"PYTHON={tree / 'python'}", target]
    clean = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(tree)}
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, env=clean | environment)


def test_make_alone_says_what_can_be_typed_and_does_nothing(tree):
    lines = make(tree, "--no-print-directory").stdout.splitlines()
    told = {line.split()[1]: line.split(maxsplit=2)[2] for line in lines}
    assert {
        "env",
        "smoke",
        "study",
        "test",
        "lint",
        "lab",
        "bench",
        "report",
        "verify",
        "weights",
        "clean",
    } <= told.keys()
    assert not (tree / ".venv").exists()


def test_a_mirror_and_a_certificate_set_for_pip_reach_uv(tree):
    settings = {":env:.index-url": "https://a.example/simple", "global.cert": "/c.pem"}
    settings |= {"global.extra-index-url": "https://x.example", "global.index-url": "https://b.example"}
    (tree / "settings").write_text("".join(f"{name}='{value}'\n" for name, value in settings.items()))
    assert make(tree, "env").returncode == 0
    assert (tree / "uv.log").read_text() == 2 * "https://a.example/simple /c.pem\n"
    (tree / "settings").write_text("")
    shutil.rmtree(tree / ".venv")
    assert make(tree, "env").returncode == 0
    assert (tree / "uv.log").read_text().splitlines()[2:] == [" ", " "]


def test_an_environment_behind_a_link_is_never_emptied(tree, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "precious").write_text("x")
    (tree / ".venv").symlink_to(other)
    done = make(tree, "env")
    assert done.returncode == 2 and (other / "precious").exists()
    assert done.stderr.splitlines()[0].startswith(f"make: .venv is a link to {other}")


def test_the_lab_has_the_environments_kernel_and_root_may_open_it(tree):
    assert make(tree, "lab", JUPYTER_PATH="/others").returncode == 0
    assert (tree / "lab").is_dir()
    assert (tree / "lab.log").read_text().endswith(f" {tree}/.venv/share/jupyter:/others\n")
    root = subprocess.check_output(["id", "-u"], text=True) == "0\n"
    assert ("--allow-root" in (tree / "lab.log").read_text()) == root


def test_the_report_is_of_the_study_finished_last_or_of_the_one_that_is_named(tree):
    def reported(**environment):
        assert make(tree, "report", **environment).returncode == 0
        return (tree / "report.log").read_text().split()[-1]

    assert reported() == "quick"
    for number, name in enumerate(("smoke", "people")):
        book = tree / "runs" / name / "notebooks" / "06_paper_tables.ipynb"
        book.parent.mkdir(parents=True)
        book.touch()
        os.utime(book, (10 - number, 10 - number))
    assert reported() == "smoke" and reported(STUDY="people") == "people"


def test_the_address_of_the_lab_leads_to_the_way_through_the_notebooks():
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": str(REPOSITORY / ".jupyter")}
    code = "import sys; from jupyterlab.labapp import LabApp; app = LabApp(); app.load_config_file(); "
    code += "print(app.default_url)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    address = done.stdout.strip()
    assert address == "/lab/tree/lab/README.md", done  # which tools/lab.py copies from notebooks/


def test_superseded_results_go_and_nothing_else(tree):
    results = tree / "runs" / "quick" / "results"
    kept, *stale = (results / name for name in ("02__a/key", "superseded/02__a/1/key", "02__a/superseded/seed0/x"))
    for path in (kept, *stale):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert make(tree, "clean-superseded").returncode == 0
    assert [path for path in (tree / "runs").rglob("*") if path.is_file()] == [kept]
