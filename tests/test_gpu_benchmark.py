"""The GPU benchmark's code, as far as a CPU goes."""

import json

import pytest
import torch

from benchmarks import gpu


def test_the_tiny_benchmark_goes_through_all_its_tables(capsys):
    torch.set_num_threads(1)
    given = ["--tiny", "--steps", "2", "--rounds", "1", "--workers", "0", "--settings", "deterministic"]
    assert gpu.main(given) == 0
    torch.use_deterministic_algorithms(False)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()]
    for start in (["float32", "–"], ["bf16", "–"], ["float32", "deterministic"], ["test_byobnet", "32×16"]):
        (number,) = (k for k, row in enumerate(rows) if row[:2] == start)
        head = next(row for row in reversed(rows[:number]) if "peak GiB" in row)
        measured = {name: float(cell) for name, cell in zip(head[2:], rows[number][2:], strict=True)}
        assert measured.pop("peak GiB") >= 0  # a GPU's, 0 on a CPU
        assert all(value > 0 for value in measured.values())


def test_half_precision_features_of_trained_weights_are_scored(small_study, capsys):
    weights = next(small_study.glob("results/02_training__test-byobnet*/seed0/weights.safetensors"))
    data = json.loads((small_study / "study.json").read_text())["data folder"]
    given = ["--tiny", "--only", "--weights", str(weights), "--data", data]
    assert gpu.main(given) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if "02_training" in line]
    full, half = (float(row[2]) for row in rows)
    assert [row[1].strip() for row in rows] == ["float32", "bf16"] and full > 10 and abs(full - half) < 2
    with pytest.raises(SystemExit):
        gpu.main(["--tiny", "--weights", str(weights)])


def test_the_encoders_are_those_of_the_paper_study():
    found = {(shape["backbone"].split(".")[0], shape["size"], shape["pairs"]) for shape in gpu.encoders_of("paper")}
    assert ("eva_giant_patch14_336", (336, 336), 32) in found and ("resnet50", (224, 224), 64) in found
    assert len(found) == 7


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().err
