"""What only a GPU shows: `make test-gpu`. Everywhere else these tests are skipped."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import gpu
from reid_utils.data.images import fill_boxes
from reid_utils.learning.features import extract_features
from reid_utils.learning.models import build_encoder, load_weights
from reid_utils.learning.training import Recipe, prepare, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: make test-gpu")

ROOT = Path(__file__).resolve().parents[1]
DEVICE = torch.device("cuda")
IMAGES = np.random.default_rng(0).integers(0, 255, (64, 32, 32, 3), dtype=np.uint8)
LABELS = np.repeat(np.arange(16), 4)
RECIPE = Recipe(augmentation="flip+erasing+sharpen", epochs=2, batch_pairs=8, learning_rate=1e-3, check_steps=1)

# Trains with equal bits asked for, in an interpreter of its own, since cuBLAS is told before its first use.
TRAIN = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
import torch
from reid_utils.learning import training
from test_gpu import DEVICE, RECIPE, fit

recipe = replace(RECIPE, deterministic=True, precision=sys.argv[3], loss=sys.argv[4], checkpoint_minutes=0)
folder, taken, finite = Path(sys.argv[5]), [], training.finite

def counted(*given):
    taken.append(given)
    if len(taken) == 11:
        raise KeyboardInterrupt
    return finite(*given)

fit(sys.argv[6], replace(recipe, workers=2), folder / "one")
fit(sys.argv[6], recipe, folder / "two")
training.finite = counted
try:
    fit(sys.argv[6], recipe, folder / "cut")
except KeyboardInterrupt:
    training.finite = finite
    torch.rand(1, device=DEVICE)  # what goes on must not depend on it
    fit(sys.argv[6], recipe, folder / "cut")
one, two, cut = ((folder / name / "weights.safetensors").read_bytes() for name in ("one", "two", "cut"))
assert one == two, "two trainings differ"
assert one == cut, "the run that was cut off differs"
assert len(taken) == 11
"""


def fit(backbone, recipe, folder, tell=print):
    """Train a small encoder with dropout where it is a transformer -> (encoder, history)."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    encoder = build_encoder(backbone, (32, 32))
    if backbone == "test_vit":
        encoder.trunk.norm_pre = torch.nn.Dropout(0.2)
    encoder = encoder.to(DEVICE)
    scores = {"mAP": 0.5, "aps": np.ones(2)}
    return encoder, train(encoder, IMAGES, LABELS, recipe, folder, lambda _: scores, tell)


@pytest.mark.parametrize("backbone", ["test_vit", "test_byobnet", "test_resnet"])
@pytest.mark.parametrize(
    ("precision", "loss"), [("fp16", "infonce"), ("bf16", "id+triplet"), ("float32", "id-cosine+0.5*infonce")]
)
def test_deterministic_trainings_end_with_equal_bytes_also_where_one_was_cut_off(backbone, precision, loss, tmp_path):
    command = [sys.executable, "-c", TRAIN, str(ROOT), str(ROOT / "tests"), precision, loss, str(tmp_path), backbone]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_an_overflow_of_fp16_names_the_precision_to_set(tmp_path):
    torch.manual_seed(0)
    encoder = build_encoder("test_vit", (32, 32)).to(DEVICE)
    encoder.trunk.patch_embed.proj.weight.data.mul_(1e6)
    given = IMAGES, LABELS, replace(RECIPE, precision="fp16"), tmp_path, lambda _: {"mAP": 0.5, "aps": np.ones(2)}
    with pytest.raises(FloatingPointError, match=r"step 1 of epoch 1; fp16 may have overflowed: set precision to bf16"):
        train(encoder, *given)


def test_auto_is_fp16_with_a_scaler_and_seconds_and_memory_are_told(tmp_path):
    told, recipe = [], replace(RECIPE, epochs=4)
    parts, _, half = prepare(build_encoder("test_byobnet", (32, 32)).to(DEVICE), recipe, 16)
    assert half is torch.float16 and parts["scaler"].is_enabled()
    _, history = fit("test_byobnet", recipe, tmp_path, told.append)
    assert history[-1]["loss"] < history[1]["loss"]
    line = told[-1]
    assert "ms a step" in line and 0 < float(line.rpartition(" GiB")[0].split()[-1]) < 20


def test_a_compiled_training_writes_weights_that_an_encoder_takes(tmp_path):
    encoder, _ = fit("test_byobnet", replace(RECIPE, compile=True, cudnn_benchmark=True), tmp_path)
    other = load_weights(tmp_path / "weights.safetensors", build_encoder("test_byobnet", (32, 32)))
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name].cpu()), name


@pytest.mark.parametrize("backbone", ["test_vit", "test_byobnet"])
def test_features_are_those_of_the_cpu_and_half_precision_is_near(backbone):
    torch.manual_seed(0)
    encoder = build_encoder(backbone, (32, 32))
    expected = extract_features(encoder, IMAGES)
    encoder = encoder.to(DEVICE)
    np.testing.assert_allclose(extract_features(encoder, IMAGES), expected, atol=2e-5)  # TF32 is 2e-4 off
    for precision in ("bf16", "fp16"):
        half = extract_features(encoder, IMAGES, precision=precision)
        assert half.dtype == np.float32
        cosines = np.sum(half * expected, axis=1)
        assert 0.99 < cosines.min() < 1 - 1e-9, precision


def test_boxes_are_filled_at_once_as_in_turn():
    boxes = torch.tensor([[[0, 5, 2, 9], [3, 8, 0, 4]], [[0, 0, 0, 0], [30, 32, 30, 32]]])
    one = torch.rand(2, 32, 32, 3, device=DEVICE)
    other = one.clone()
    fill_boxes(one, boxes, at_once=True)
    fill_boxes(other, boxes, at_once=False)
    assert torch.equal(one, other) and (one == 0).any()


def test_the_benchmark_goes_through_its_tables(capsys):
    assert gpu.main(["--tiny", "--steps", "5", "--rounds", "1", "--workers", "2"]) == 0
    assert torch.cuda.get_device_name() in capsys.readouterr().out


def test_a_study_gives_each_run_a_gpu_of_its_own(tmp_path):
    text = (ROOT / "studies" / "micro.yaml").read_text()
    study = tmp_path / "one_gpu.yaml"
    study.write_text(text.replace("    parameters:", "    gpus: 1\n    parameters:"))
    command = [sys.executable, "run_all.py", str(study), "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    count = torch.cuda.device_count()
    assert f"with {count} at once" in done.stdout
    assert list((tmp_path / "runs").rglob("tables/T2*.csv"))
