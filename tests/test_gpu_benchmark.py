"""The GPU benchmark's code, as far as a CPU goes."""

import pytest
import torch

from benchmarks import gpu


def test_the_tiny_benchmark_goes_through_training_and_search_and_the_search_agrees(capsys):
    torch.set_num_threads(1)
    assert gpu.main(["--tiny", "--steps", "2", "--rounds", "1", "--workers", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for precision in gpu.TINY["precisions"]:
        (row,) = (line for line in lines if line.startswith(f"| {precision} |"))
        assert all(float(cell) > 0 for cell in row.split("|")[2:5])
    assert lines[-1].startswith("| 20×200 | ") and float(lines[-1].split("|")[3]) > 0.99


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 1
    assert "needs a CUDA GPU" in capsys.readouterr().err
