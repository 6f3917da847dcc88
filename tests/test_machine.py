"""What the machine is found to offer: GPUs and processors."""

import os
import subprocess
import sys

import pytest

from notebook_study import machine
from notebook_study.plan import Run

PLAIN, ASKING = (Run("02", "02", "", {}, (), 1.0, gpus=gpus) for gpus in (0, 1))


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
