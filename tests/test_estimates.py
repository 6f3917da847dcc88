"""What a dry run estimates, by hand for one run, and what it says of the paper study."""

import subprocess
import sys
from pathlib import Path

import pytest

from reid_utils.study.estimates import check_costs, estimate
from reid_utils.study.study_file import StudyError, read_study

ROOT = Path(__file__).resolve().parents[1]
COSTS = {
    "notebook": "02_training",
    "teraflops": 100,
    "training_images": 1000,
    "other_images": 100,
    "final_images": 300,
    "backbones": {"vit": {"parameters": 300.0, "gflops": 100.0, "activations": 100.0}},
}
SETTINGS = {"backbone": "vit", "seeds": [0, 1], "epochs": 4, "batch_pairs": 32}


def test_hours_and_memory_of_one_run_by_hand():
    told = estimate(SETTINGS, COSTS)
    passes = 2 * 1000 * 4 * 3 + (100 * 5 + 300) * 8  # training: both sides, forward and backward; features in float32
    assert told.hours == pytest.approx(2 * passes * 100e9 / 100e12 / 3600)
    assert told.gib == pytest.approx((300e6 * 18 + 64 * 100e6 * 2) / 2**30)


def test_checkpointing_trades_memory_for_hours_and_processes_share_the_activations():
    plain, again, shared = (
        estimate({**SETTINGS, **more}, COSTS) for more in ({}, {"gradient_checkpointing": True}, {"processes": 4})
    )
    assert plain.hours < again.hours < 4 / 3 * plain.hours and again.gib < plain.gib / 2
    assert shared.hours == plain.hours and shared.gib < plain.gib / 2 and str(shared).endswith("GiB on each GPU")
    assert estimate({**SETTINGS, "backbone": "another"}, COSTS) is None


def test_a_study_file_whose_costs_are_incomplete_is_refused(tmp_path):
    text = (ROOT / "studies" / "paper.yaml").read_text()
    for old, new, message in (
        ("gflops: 162.0, ", "", "ViT-L-14-quickgelu/openai lacks the key 'gflops'"),
        ("teraflops: 120", "terraflops: 120", "did you mean 'teraflops'"),
    ):
        (tmp_path / "mine.yaml").write_text(text.replace(old, new))
        with pytest.raises(StudyError, match=message):
            check_costs(read_study(tmp_path / "mine.yaml").estimate)


def test_a_dry_run_of_the_paper_study_needs_no_data_and_tells_hours_and_memory(tmp_path):
    command = [sys.executable, "run_all.py", "paper", "--dry-run", "--runs", str(tmp_path), "--set", "processes=4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    runs = [line for line in lines if "  02_training__" in line and "reads" not in line]
    told = [line for line in lines if line.lstrip().startswith("estimate: ")]
    assert len(runs) == len(told) == 15 and all("GiB on each GPU" in line for line in told)
    assert "estimates, not measurements" in lines[-1] and "25 of 25 runs to execute" in done.stdout
    assert not list(tmp_path.iterdir())
