"""One training on two processes beside the same on one; each comparison runs in an interpreter that may fork."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from reid_utils.learning.processes import half_precision, launch

HERE = Path(__file__).parent
COMMON = """
import sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from reid_utils.learning import training
from reid_utils.learning.processes import distribute, from_all, gather_features, launch, process_count, process_index
from reid_utils.learning.losses import Objective
from reid_utils.learning.models import build_encoder
from reid_utils.learning.loading import epoch_batches
from reid_utils.learning.training import Recipe, train

torch.set_num_threads(1)
folder, dropping = Path(sys.argv[1]), False
IMAGES = np.random.default_rng(0).integers(0, 255, (32, 32, 32, 3), dtype=np.uint8)
LABELS = np.repeat(np.arange(8), 4)
RECIPE = Recipe(augmentation="flip+erasing", epochs=2, batch_pairs=8, learning_rate=1e-3, check_steps=1,
                checkpoint_minutes=0, warmup_epochs=0.5)

def encoder(backbone="test_vit"):
    torch.manual_seed(0)
    built = build_encoder(backbone, (32, 32))
    if backbone == "test_vit":
        built.trunk.norm_pre = torch.nn.Dropout(0.2 if dropping else 0.0)
    return built

def fit(backbone, name, stop=0):
    (folder / name).mkdir(exist_ok=True)
    rate, taken = training.learning_rate_at, []
    def counted(*given):
        taken.append(given)
        if len(taken) == stop:
            raise KeyboardInterrupt
        return rate(*given)
    training.learning_rate_at = counted
    history = train(encoder(backbone), IMAGES, LABELS, RECIPE, folder / name, lambda e: {"mAP": 0.5, "aps": np.ones(2)})
    return [row["loss"] for row in history], len(taken), from_all(torch.rand(1).item())
"""
GRADIENTS = (
    COMMON
    + """
def gradients(loss):
    model, recipe = encoder().train(), replace(RECIPE, loss=loss)
    objective = Objective(loss, 8, model.dim)
    for name, value in objective.named_parameters():
        if name == "logit_scale":
            value.data.fill_(2.0)
        elif name != "neck.weight":
            value.data.normal_(generator=torch.Generator().manual_seed(1))
    batches = epoch_batches(IMAGES, LABELS, model, recipe, 1, (process_index(), process_count()))
    images, players = batches.ready(batches[0])
    shared = distribute(model)  # averages gradients for as long as it lives
    value = objective(gather_features(shared(images), objective.sides), players)
    value.backward()
    parts = {**dict(model.named_parameters()), **dict(objective.named_parameters())}
    return len(images), value.item(), {name: p.grad for name, p in parts.items() if p.grad is not None}

for loss in ("infonce", "id", "id-cosine", "id+triplet", "infonce+0.5*triplet+0.3*id"):
    n, one, alone = launch(gradients, (loss,), 1)
    half, two, shared = launch(gradients, (loss,), 2)
    assert n == 2 * half, "each process encodes half of the batch"
    assert abs(one - two) < 1e-5 * abs(one), (loss, one, two)
    assert alone.keys() == shared.keys() and len(alone) > 30
    worst = max((alone[name] - shared[name]).abs().max().item() for name in alone)
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    assert worst < 1e-5 and largest > 1e-2, (loss, worst, largest)
"""
)
RESUME = (
    COMMON
    + """
one, steps, _ = launch(fit, ("test_vit", "one"), 1)
two, _, draws = launch(fit, ("test_vit", "together"), 2)
assert steps == 8 and np.allclose(one[1:], two[1:], rtol=1e-4), (one, two)
assert draws[0] != draws[1], "each process draws dropout masks of its own"
dropping = True
launch(fit, ("test_vit", "two"), 2)
try:
    launch(fit, ("test_vit", "cut", 3), 2)
except BaseException as error:
    print("stopped by", type(error).__name__)
assert not (folder / "cut" / "weights.safetensors").exists()
assert launch(fit, ("test_vit", "cut"), 2)[1] == 6, "the steps that were done are not done again"
whole, cut = ((folder / name / "weights.safetensors").read_bytes() for name in ("two", "cut"))
assert whole == cut
launch(fit, ("test_resnet", "norm"), 2)
"""
)


def _run(source, folder):
    command = [sys.executable, "-c", source, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_two_processes_give_the_loss_and_gradients_of_one_under_every_loss(tmp_path):
    _run(GRADIENTS, tmp_path)


def test_two_processes_train_as_one_and_go_on_after_an_interruption_to_the_same_bytes(tmp_path):
    _run(RESUME, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_outlives_the_session_that_launched_it(tmp_path):
    source = (
        COMMON + "import os, time\nlaunch(lambda: (os.write(1, f'{os.getpid()}\\n'.encode()), time.sleep(60)), (), 2)\n"
    )
    command = [sys.executable, "-c", source, str(tmp_path)]
    started = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE)
    children = []
    while len(children) < 2:
        line = started.stdout.readline().strip()
        assert started.poll() is None
        children += [int(line)] if line.isdecimal() else []
    started.kill()
    started.wait()
    end = time.monotonic() + 30
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end, "a process is still there"
        time.sleep(0.1)


def test_where_one_process_dies_the_others_do_not_wait_for_it():
    source = """
import contextlib, os, signal, torch
from reid_utils.learning.processes import from_all, launch, process_index
def work():
    from_all(1)  # they have met
    if process_index() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with contextlib.suppress(RuntimeError):  # a lost connection would end this one first, and be named instead
        torch.distributed.all_reduce(torch.ones(1))
    signal.pause()
launch(work, (), 2)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "signal 9 (SIGKILL)" in done.stderr.lower().replace("sigkill", "SIGKILL")


def test_a_batch_that_cannot_be_shared_alike_is_an_error():
    import numpy as np

    from reid_utils.data.batches import EpochBatches

    recipe, encoder = SimpleNamespace(seed=0, augmentation="none"), SimpleNamespace(mean=(0, 0, 0), std=(1, 1, 1))
    images, labels = np.zeros((6, 8, 8, 3), np.uint8), np.repeat(np.arange(3), 2)
    with pytest.raises(ValueError, match="3 draws a batch cannot be shared by 2 processes"):
        EpochBatches(images, labels, np.array([[0, 2, 4]]), recipe, encoder, 1, share=(0, 2))


def test_one_process_is_a_plain_call_and_a_used_gpu_is_refused(monkeypatch):
    assert launch(os.getpid, ()) == os.getpid()
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(RuntimeError, match="restart the kernel"):
        launch(os.getpid, (), 2)
    assert signal.getsignal(signal.SIGINT) is not None


def test_precision_by_name():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert half_precision("auto", cpu) is None and half_precision("auto", gpu) is torch.float16
    assert half_precision("bf16", cpu) is torch.bfloat16 and half_precision("float32", gpu) is None
    with pytest.raises(ValueError, match="fp16 needs a GPU; set precision to float32 or bf16"):
        half_precision("fp16", cpu)
    with pytest.raises(ValueError, match="known: auto, float32, bf16, fp16"):
        half_precision("half", gpu)
