"""What the machine is found to offer: GPUs, processors, places for caches."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from notebook_study import machine
from notebook_study.plan import Run

PLAIN, ASKING = (Run("02", "02", "", {}, (), 1.0, gpus=gpus) for gpus in (0, 1))


def test_caches_move_where_home_cannot_be_written(monkeypatch, tmp_path):
    (tmp_path / "home").mkdir()
    for name in machine.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert machine.cache_folders() == {}
    monkeypatch.setenv("HOME", "/dev/null")
    found = machine.cache_folders()
    assert found.keys() == machine.CACHES.keys() and all(os.access(Path(f).parent, os.W_OK) for f in found.values())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "XDG_CACHE_HOME" not in machine.cache_folders()


@pytest.mark.parametrize(
    ("visible", "listed", "gpus"),
    [
        ("0,2", "", ["0", "2"]),
        ("GPU-a, MIG-b", "", ["GPU-a", "MIG-b"]),
        ("1,-1,3", "", ["1"]),
        ("", "GPU 0: H100 (UUID: GPU-a)", []),
        (None, "GPU 0: H100 (UUID: GPU-a)\nGPU 1: H100 (UUID: GPU-b)", ["0", "1"]),
        (None, "GPU 0: H100 (UUID: GPU-a)\n  MIG 3g.40gb Device  0: (UUID: MIG-x)\n", ["MIG-x"]),
        (None, "", []),
    ],
)
def test_gpus_are_counted_without_torch(monkeypatch, tmp_path, visible, listed, gpus):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "DRIVER", tmp_path / "none")
    assert machine.visible_gpus({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}) == gpus


def test_as_many_runs_at_once_as_gpus_where_asked_for_else_as_processors_in_force():
    assert machine.default_jobs([PLAIN, ASKING], ["0", "1", "2"]) == 3
    assert machine.default_jobs([PLAIN], ["0", "1", "2"]) == machine.default_jobs([ASKING], [])
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); "
    code += "from notebook_study.machine import default_jobs; print(default_jobs((), ()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "1\n"


@pytest.mark.parametrize(
    ("own", "files", "found"),
    [
        ("0::/a/b", {"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 1),
        ("0::/", {"cpu.max": "250000 100000"}, 2),
        ("0::/host/path", {"cpu.max": "50000 100000"}, 1),
        ("3:cpu,cpuacct:/x\n0::/", {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000",
                                    "cpu,cpuacct/x/cpu.cfs_period_us": "100000"}, 3),
        ("4:cpuset:/x\n2:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, 64),
    ],
)  # fmt: skip
def test_a_containers_quota_counts(tmp_path, monkeypatch, own, files, found):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert machine.processors(tmp_path / "groups", tmp_path / "own") == found
