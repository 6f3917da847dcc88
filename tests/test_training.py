import json
import math
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file

from reid_utils import code
from reid_utils.data.images import load_images
from reid_utils.data.manifest import load_manifest, training_and_validation
from reid_utils.learning import features, loading, models, processes, seeds, training
from reid_utils.learning.checkpoints import save_checkpoint
from reid_utils.learning.features import extract_features
from reid_utils.learning.loading import RunBatches, batches_of_steps, epoch_batches
from reid_utils.learning.losses import Objective
from reid_utils.learning.models import build_encoder, load_weights, save_weights
from reid_utils.learning.seeds import check_seeds, choose_sets, load_pool, settings_in_extra, start_weights_file
from reid_utils.learning.training import (
    Recipe,
    build_optimiser,
    finite,
    fit_to_players,
    learning_rate_at,
    parameter_groups,
    set_rate,
    take_step,
    train,
)
from reid_utils.ranking import feature_files, methods
from reid_utils.ranking.feature_files import load_features
from reid_utils.ranking.methods import POST_PROCESSINGS, score, squared_euclidean
from rendered_players.dataset import render_dataset

HERE = str(Path(__file__).parent)
NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "02_training.ipynb"
SIZE = (48, 24)
ENCODER = {"backbone": "test_byobnet", "image_size": SIZE}
SCALER = torch.amp.GradScaler("cpu", enabled=False)
TINY = Recipe(augmentation="flip+erasing", epochs=2, batch_pairs=4, learning_rate=1e-2, check_steps=2)
OFTEN = replace(TINY, checkpoint_minutes=0)  # a checkpoint every two steps

# Trains as the tests do, in children that are killed: at given steps, then halfway through writing a checkpoint.
TRAIN = """
import os, signal, sys
from pathlib import Path
import numpy as np, timm, torch
from reid_utils.learning import loading, seeds, training
from reid_utils.learning.checkpoints import save_checkpoint
from test_training import OFTEN, constant, encoder, labels_of
folder, stops = Path(sys.argv[1]), [int(stop) for stop in sys.argv[2:]]
images, rate, save = np.load(folder.parent / "images.npy"), training.learning_rate_at, torch.save
torch.set_num_threads(1)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def run(stop=None):
    steps = iter(range(1, 1000))
    training.learning_rate_at = lambda *given: die() if next(steps) == stop else rate(*given)
    training.train(encoder(), images, labels_of(images), OFTEN, folder, constant, report=str)

def half(content, path):
    save(content, path)
    os.truncate(path, path.stat().st_size // 2)
    die()

def in_child(work, *given):
    child = os.fork()
    if not child:
        work(*given)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

for stop in stops:
    in_child(run, stop)
torch.save = half
in_child(run)
torch.save = save
run()
"""


def encoder(seed=0):
    torch.manual_seed(seed)
    return build_encoder(**ENCODER)


def labels_of(images):
    return np.repeat(np.arange(len(images) // 6), 6)


def constant(_):
    return {"mAP": 0.5, "aps": np.ones(2)}


def train_seed(sets, recipe, folder, start="", encoder_settings=ENCODER):
    """Seed 0 of a run in `folder`, trained and scored by the cells of notebook 02 -> (history, scores)."""
    cells = ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"]]
    names = {"experiment": seeds, "devices": processes, "processes": 1, "seeds": [0], "start": start, "pd": pd}
    names |= {
        "training": training,
        "loading": loading,
        "shapes": encoder(),
        "models": models,
        "features": features,
        "methods": methods,
    }
    names |= {"feature_files": feature_files, "encoder_settings": encoder_settings, "sets": sets, "crops": sets.images}
    names |= {"labels": sets.training[1], "recipe": recipe, "precision": "auto", "run": SimpleNamespace(folder=folder)}
    for mark in ("def train_seed", "loading.epoch_batches(*sets.training, shapes, recipe, 1"):
        (cell,) = (cell for cell in cells if cell.startswith(mark))
        exec(cell, names)
    return names["history"], names["scores"][0]


def train_in(folder, sets, recipe, encoder_settings, start=""):
    """Path of the weights that `train_seed` writes."""
    train_seed(sets, recipe, folder, start, encoder_settings)
    return folder / "seed0" / "weights.safetensors"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Small tensors are quicker so, and the bits depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def eight_players(tmp_path_factory):
    """Images and manifest of a rendered set with eight training players of six frames."""
    folder = render_dataset(
        tmp_path_factory.mktemp("data") / "set", seed=0, train_players=8, test_players=6, challenge_players=2, frames=6
    )
    manifest = load_manifest(folder)
    return manifest, load_images(folder, manifest["path"].tolist(), *SIZE, folder.parent / "cache", "eight")


def _bytes(folder):
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("loss", "slower"),
    [
        ("infonce", {"batch_pairs": 8}),
        ("id", {"batch_pairs": 8}),
        ("id-cosine", {"batch_pairs": 8, "epochs": 40, "learning_rate": 2e-2}),
        ("triplet", {"epochs": 30}),
        ("id+triplet", {}),
    ],
)
def test_each_loss_can_learn_eight_players_by_heart(eight_players, loss, slower, tmp_path):
    manifest, images = eight_players
    training = manifest[manifest["split"] == "train"]
    images = images[: len(training)]
    labels = np.unique(training["player"], return_inverse=True)[1]
    given = {"epochs": 20, "batch_pairs": 16, "learning_rate": 1e-2, "head_rate": 0.1, **slower}
    recipe = Recipe(loss, "none", **given)
    trained = encoder()
    train(trained, images, labels, recipe, tmp_path, constant, report=str)
    features, is_query = extract_features(trained, images), (training["frame"] == 0).to_numpy()
    distances = squared_euclidean(features[is_query], features[~is_query])
    assert score(distances, labels[is_query], labels[~is_query])["mAP"] > 0.99


def test_equal_seeds_and_any_number_of_workers_give_equal_bytes(eight_players, tmp_path):
    _, images = eight_players
    images = images[:48]
    for name, workers, seed in (("one", 0, 0), ("again", 0, 0), ("workers", 2, 0), ("other", 0, 1)):
        (tmp_path / name).mkdir()
        recipe = replace(TINY, workers=workers, seed=seed)
        train(encoder(seed), images, labels_of(images), recipe, tmp_path / name, constant, report=str)
    tensors = {name: load_weights(tmp_path / name / "weights.safetensors", encoder()) for name in ("one", "workers")}
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "again")
    assert _bytes(tmp_path / "one") != _bytes(tmp_path / "other")
    pairs = zip(tensors["one"].parameters(), tensors["workers"].parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_run_killed_again_and_again_ends_with_the_same_weights(eight_players, tmp_path):
    images = eight_players[1][:48]
    np.save(tmp_path / "images.npy", images)
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir()
    stops = np.random.default_rng().integers(1, 8, 3).astype(str).tolist()
    command = [sys.executable, "-c", TRAIN, str(tmp_path / "killed"), *stops]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": HERE})
    assert done.returncode == 0, done.stderr
    train(encoder(), images, labels_of(images), TINY, tmp_path / "whole", constant, report=str)
    assert _bytes(tmp_path / "whole") == _bytes(tmp_path / "killed"), f"killed at steps {stops}"


def test_an_interrupted_epoch_of_accumulated_steps_and_dropout_goes_on_to_the_same_bits(
    eight_players, tmp_path, monkeypatch
):
    images, recipe = eight_players[1][:48], replace(OFTEN, accumulation=5, check_steps=1, clip_norm=1.0)

    def dropping():
        whole = encoder()
        whole.trunk.conv_head = torch.nn.Dropout(0.5)
        return whole

    def interrupted(step, *given):
        if step == 4:
            raise KeyboardInterrupt
        return learning_rate_at(step, *given)

    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    train(dropping(), images, labels_of(images), recipe, tmp_path / "whole", constant, report=str)
    monkeypatch.setattr(training, "learning_rate_at", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(dropping(), images, labels_of(images), recipe, tmp_path / "cut", constant, report=str)
    monkeypatch.undo()
    torch.manual_seed(99)
    train(dropping(), images, labels_of(images), recipe, tmp_path / "cut", constant, report=str)
    assert _bytes(tmp_path / "whole") == _bytes(tmp_path / "cut")


def _flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage", [lambda content: content[:1000], _flip_a_bit, lambda content: b"", lambda content: b"nonsense"]
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before_it(eight_players, tmp_path, capsys, monkeypatch, damage):
    images = eight_players[1][:48]
    monkeypatch.setattr(training, "finish_checkpoint", lambda *_: None)  # as if it was killed just before
    train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=str)
    whole = _bytes(tmp_path)
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(damage(newest.read_bytes()))
    train(encoder(1), images, labels_of(images), TINY, tmp_path, constant, report=str)
    assert "checkpoint.pt is damaged" in capsys.readouterr().out
    assert _bytes(tmp_path) == whole


def test_a_checkpoint_of_other_settings_or_none_that_can_be_read_is_an_error(eight_players, tmp_path):
    images = eight_players[1][:48]
    train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=str)
    other = replace(TINY, learning_rate=1e-3)
    with pytest.raises(ValueError, match="belongs to other settings"):
        train(encoder(), images, labels_of(images), other, tmp_path, constant, report=str)
    for path in tmp_path.glob("checkpoint*.pt"):
        path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="delete checkpoint"):
        train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=str)


def _epochs(capsys):
    return capsys.readouterr().out.count("epoch ")


def test_a_finished_seed_is_read_and_one_of_other_settings_redone(eight_players, tmp_path, capsys):
    sets, folder = choose_sets(*eight_players, "data"), tmp_path / "results" / "run"
    first = train_seed(sets, TINY, folder)
    weights = _bytes(folder / "seed0")
    assert _epochs(capsys) == TINY.epochs
    again = train_seed(sets, TINY, folder)
    assert _epochs(capsys) == 0
    assert np.array_equal(first[1]["hard"]["aps"], again[1]["hard"]["aps"])
    assert not (tmp_path / "results" / "superseded").exists()
    train_seed(sets, replace(TINY, epochs=1), folder)
    assert _epochs(capsys) == 1 and _bytes(folder / "seed0") != weights
    assert {"test.npz", "challenge.npz", "weights.safetensors"} <= {path.name for path in (folder / "seed0").iterdir()}
    assert _bytes(tmp_path / "results" / "superseded" / "run" / "seed0.1") == weights
    others = replace(sets, training=(sets.images, np.where(sets.training[1] == 7, -1, sets.training[1])))
    train_seed(others, replace(TINY, epochs=1), folder)
    assert _epochs(capsys) == 1, "other players are another training"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package that stands for the code in force."""
    copy = tmp_path / "package" / "reid_utils"
    shutil.copytree(seeds.PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(seeds, "PACKAGE", copy)
    return copy


def _edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    code._read_module.cache_clear()


def test_code_that_says_the_same_trains_nothing_and_another_loss_moves_the_old_weights_aside(
    eight_players, tmp_path, package, capsys
):
    sets, recipe, folder = choose_sets(*eight_players, "data"), replace(TINY, epochs=1), tmp_path / "results" / "run"
    train_seed(sets, recipe, folder)
    losses = package / "learning" / "losses.py"
    _edit(losses, '"""Symmetric InfoNCE of', '"""The InfoNCE of')
    _edit(package / "views" / "style.py", "def use_style", "def other_style")
    assert _epochs(capsys) == 1
    train_seed(sets, recipe, folder)
    assert _epochs(capsys) == 0
    _edit(losses, "(forth + back) / 2", "forth + back")
    train_seed(sets, recipe, folder)
    told = capsys.readouterr().out
    assert told.count("epoch ") == 1 and "other code; it was moved to" in told
    assert (tmp_path / "results" / "superseded" / "run" / "seed0.1" / "weights.safetensors").exists()


@pytest.mark.parametrize("keep_epochs", [False, True])
def test_an_edit_of_the_metric_moves_every_score_together_and_trains_nothing(
    eight_players, tmp_path, package, monkeypatch, capsys, keep_epochs
):
    sets, folder = choose_sets(*eight_players, "data"), tmp_path / "results" / "run"
    recipe = replace(TINY, epochs=3, keep_epochs=keep_epochs)
    history, scores = train_seed(sets, recipe, folder)
    weights = _bytes(folder / "seed0")

    def halved(*given):
        found = score(*given)
        return found | {"mAP": found["mAP"] / 2, "aps": found["aps"] / 2}

    _edit(package / "ranking" / "metrics.py", "import numpy as np", "import numpy as np\n\nEDITED = True")
    monkeypatch.setattr(methods, "score", halved)
    capsys.readouterr()
    anew, now = train_seed(sets, recipe, folder)
    assert _epochs(capsys) == 0 and _bytes(folder / "seed0") == weights
    for name in (*POST_PROCESSINGS, "untrained", "best"):
        assert now[name]["mAP"] == scores[name]["mAP"] / 2, name
        assert np.array_equal(now[name]["aps"], scores[name]["aps"] / 2, equal_nan=True), name
    scored = [row["epoch"] for row in anew if "mAP" in row]
    assert all(row["mAP"] == history[row["epoch"]]["mAP"] / 2 for row in anew if "mAP" in row)
    best = max(history[1:], key=lambda row: row["mAP"])["epoch"]
    assert scored == ([0, 1, 2, 3] if keep_epochs else sorted({0, best, 3}))
    assert [row["loss"] for row in anew][1:] == [row["loss"] for row in history][1:]


def test_a_training_cut_off_before_an_edit_of_the_metric_goes_on_with_its_scores_made_anew(
    eight_players, tmp_path, monkeypatch
):
    images, recipe = eight_players[1][:48], replace(TINY, epochs=3, keep_epochs=True)
    scale, steps = {"by": 1.0}, iter(range(1000))

    def validate(current):
        return {"mAP": scale["by"] * next(current.parameters()).abs().mean().item(), "aps": np.ones(2)}

    def stopped(*given):
        if next(steps) == 12:
            raise KeyboardInterrupt
        return take_step(*given)

    whole = train(encoder(), images, labels_of(images), recipe, tmp_path / "whole", validate, report=str)
    monkeypatch.setattr(training, "take_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(encoder(), images, labels_of(images), recipe, tmp_path / "cut", validate, str, scored_by="old")
    monkeypatch.undo()
    scale["by"] = 0.5
    cut = train(encoder(), images, labels_of(images), recipe, tmp_path / "cut", validate, str, scored_by="new")
    assert [row["mAP"] for row in cut] == [row["mAP"] / 2 for row in whole]
    assert _bytes(tmp_path / "whole") == _bytes(tmp_path / "cut")


def test_a_training_cut_off_before_its_first_validation_goes_on_after_an_edit_of_the_metric(
    eight_players, tmp_path, monkeypatch
):
    images, recipe, steps = eight_players[1][:48], replace(TINY, epochs=3, validate_every=9), iter(range(1000))

    def stopped(*given):
        if next(steps) == 12:
            raise KeyboardInterrupt
        return take_step(*given)

    monkeypatch.setattr(training, "take_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(encoder(), images, labels_of(images), recipe, tmp_path, constant, str, scored_by="old")
    monkeypatch.undo()
    history = train(encoder(), images, labels_of(images), recipe, tmp_path, constant, str, scored_by="new")
    assert [row["epoch"] for row in history if "mAP" in row] == [0, 3]


def test_validation_ranks_within_groups_as_the_features_that_are_written_do(eight_players, tmp_path):
    manifest, images = eight_players
    sets = choose_sets(manifest.assign(group=manifest["player"] % 3 + 1), images, "data")
    history, scores = train_seed(sets, replace(TINY, epochs=1), tmp_path / "grouped")
    _, alone = train_seed(choose_sets(manifest, images, "data"), replace(TINY, epochs=1), tmp_path / "alone")
    assert history[-1]["mAP"] == scores["best"]["mAP"] == scores["none"]["mAP"] > alone["none"]["mAP"]


def test_what_is_trained_on_and_validated(eight_players):
    manifest, images = eight_players
    players = {split: set(manifest.loc[manifest["split"] == split, "player"]) for split in ("train", "test")}

    def trained_and_validated(train_on):
        sets = choose_sets(manifest, images, "data", train_on)
        trained = sets.training[1] >= 0
        assert len(set(sets.training[1][trained])) == manifest.loc[trained, "player"].nunique()
        return set(manifest.loc[trained, "player"]), sets.evaluated["test"]

    assert trained_and_validated("train")[0] == players["train"]
    both, validation = trained_and_validated("train+test")
    assert both == players["train"] | players["test"] and set(validation["player"]) == players["test"]
    with pytest.raises(ValueError, match="use the test split instead"):
        trained_and_validated("fold 1")
    folded = manifest.assign(fold=manifest["player"].where(manifest["split"] == "train", 2) % 2)
    labels, validation = training_and_validation(folded, "fold 1")
    assert set(folded.loc[labels >= 0, "player"]) == {player for player in players["train"] if player % 2 == 0}
    assert set(validation["player"]) == {player for player in players["train"] if player % 2}
    assert ((validation["frame"] == 0) == (validation["role"] == "query")).all()
    with pytest.raises(ValueError, match=r"train_on is 'all'.*fold 0"):
        trained_and_validated("all")


def test_a_pool_is_trained_on_in_place_of_the_training_players(eight_players, tmp_path):
    rendering = {"train_players": 5, "test_players": 1, "challenge_players": 1, "frames": 3}
    pool = load_pool(rendering, SIZE, tmp_path)
    sets = choose_sets(*eight_players, "data", pool=pool)
    images, labels = sets.training
    assert images.shape[1:] == (*SIZE, 3) and sorted(set(labels[labels >= 0])) == [0, 1, 2, 3, 4]
    assert sets.described["pool"] and len(sets.evaluated["test"]) == 6 * 20
    with pytest.raises(ValueError, match=r"train_on is 'train.test' with a pool"):
        choose_sets(*eight_players, "data", "train+test", pool)


def test_no_epochs_evaluate_the_start_and_a_start_is_another_runs_end(eight_players, tmp_path):
    sets, zero = choose_sets(*eight_players, "data"), replace(TINY, epochs=0)
    history, scores = train_seed(sets, zero, tmp_path / "first")
    weights = tmp_path / "first" / "seed0" / "weights.safetensors"
    for start in (tmp_path / "first", weights):
        begun, same = train_seed(sets, zero, tmp_path / "zero", str(start))
        assert len(begun) == 1 and same["hard"]["mAP"] == scores["hard"]["mAP"]
        assert begun[0]["mAP"] == history[-1]["mAP"] == same["none"]["mAP"]


@pytest.mark.parametrize("form", ["safetensors", "bare", "module", "model", "torchreid", "fastreid"])
def test_a_start_may_be_what_a_library_or_another_toolkit_wrote(tmp_path, form):
    state = timm.create_model("test_byobnet").state_dict()
    other = {**state, "head.fc.weight": torch.ones(7, 256), "head.fc.bias": torch.ones(7), "neck.weight": torch.ones(9)}
    moved = {f"module.{name}": tensor for name, tensor in other.items()}
    contents = {
        "bare": state,
        "module": {"state_dict": moved},
        "model": {"model": {f"model.{name}": tensor for name, tensor in state.items()}, "epoch": 3},
        "torchreid": {"state_dict": moved, "rank1": np.float64(0.5), "optimizer": {"param_groups": [{"lr": 0.1}]}},
        "fastreid": {"model": {f"backbone.{name}": t for name, t in state.items()} | {"heads.weight": torch.ones(3)}},
    }
    path = tmp_path / ("start.safetensors" if form == "safetensors" else "start.pth.tar")
    save_file(state, path) if form == "safetensors" else torch.save(contents[form], path)
    found = models.starting_encoder(ENCODER, 0, path).state_dict()
    assert all(torch.equal(value, found[f"trunk.{name}"]) for name, value in state.items() if "head.fc" not in name)


def test_epochs_can_be_validated_under_every_post_processing_and_with_mirrored_images(eight_players, tmp_path):
    sets = choose_sets(*eight_players, "data")
    recipe = replace(TINY, epochs=1, flip_features=True, every_post_processing=True)
    history, scores = train_seed(sets, recipe, tmp_path / "all")
    names = [name for name in POST_PROCESSINGS if name != "none"]
    assert all(history[1][f"mAP {name}"] == scores[name]["mAP"] for name in names)
    folder = tmp_path / "all" / "seed0"
    trained = load_weights(folder / "weights.safetensors", encoder(1))
    rows = sets.evaluated["test"].query("role == 'query'").index.to_numpy()
    mirrored = extract_features(trained, sets.images[:, :, ::-1], flip=True, rows=rows)
    assert np.allclose(load_features(folder / "test.npz").query, mirrored, atol=1e-5)


def test_start_weights_that_are_missing_or_of_another_backbone_are_named(tmp_path):
    (tmp_path / "seed0").mkdir()
    with pytest.raises(FileNotFoundError, match=r"seed1/weights.safetensors is missing; .* trained seed 1"):
        start_weights_file(tmp_path, 1)
    weights = tmp_path / "seed0" / "weights.safetensors"
    save_weights(weights, build_encoder("test_resnet", SIZE), {})
    bare = timm.create_model("test_byobnet").state_dict()
    larger = bare | {"stages.9.conv.weight": torch.ones(3)}  # of a deeper network of the family
    torch.save({"state_dict": larger}, tmp_path / "larger.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pth")
    save_file(dict(list(bare.items())[:9]), tmp_path / "part.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"cut")
    for path, reason in (
        (weights, "does not fit the encoder .*Missing key"),
        (tmp_path / "larger.pth", "does not fit the backbone .*stages.9"),
        (
            tmp_path / "whole.pth",
            "is damaged or holds Python objects; write it again where it was made, with torch.save",
        ),
        (tmp_path / "part.safetensors", "does not fit the backbone .*Missing key"),
        (tmp_path / "cut.safetensors", "is damaged"),
    ):
        with pytest.raises(ValueError, match=rf"{path.name} {reason}"):
            models.starting_encoder(ENCODER, 0, start_weights_file(str(path), 0))


def test_learning_rate_warms_up_then_falls_to_the_end_value():
    recipe = Recipe(learning_rate=4e-5, final_learning_rate=1e-5)
    rates = [learning_rate_at(step, 100, 10, recipe) for step in range(100)]
    assert rates[0] == 0 and rates[9] == pytest.approx(3.6e-5) and rates[10] == pytest.approx(4e-5)
    assert rates[55] == pytest.approx(1e-5 + 3e-5 * 0.25)
    assert rates[-1] == pytest.approx(1e-5, rel=1e-3) and rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[:10] == pytest.approx([k / 10 * 4e-5 for k in range(10)])


@pytest.mark.parametrize(("schedule", "middle"), [("cosine", 0.5), ("linear", 0.5), ("constant", 1.0)])
def test_other_schedules_at_half_way(schedule, middle):
    recipe = Recipe(learning_rate=1.0, final_learning_rate=0.0, schedule=schedule)
    assert learning_rate_at(50, 100, 0, recipe) == pytest.approx(middle)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"schedule": "step"}, "known: polynomial, cosine"),
        ({"loss": "arcface"}, "known: infonce, id"),
        ({"augmentation": "blur"}, "known: none, flip"),
        ({"accumulation": 0}, "accumulation is 0; give a whole number of at least 1"),
        ({"clip_norm": float("nan")}, "clip_norm is nan"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; give a number of at least 0"),
        ({"epochs": True}, "epochs is True; give a whole number"),
        ({"batch_pairs": 2.5}, "batch_pairs is 2.5; give a whole number"),
        ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'; give a number"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_before_anything_runs(settings, told):
    with pytest.raises(ValueError, match=told):
        Recipe(**settings)


def test_any_other_setting_goes_through_extra_and_an_unknown_one_is_named():
    assert settings_in_extra({"clip_norm": 1.0, "projection": True}) == ({"clip_norm": 1.0}, {"projection": True})
    with pytest.raises(ValueError, match=r"extra: unknown setting 'clipnorm'; known: accumulation, .*clip_norm"):
        settings_in_extra({"clipnorm": 1.0})


def _flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _tiny_step(clip_norm=0.0, batches=1, fill=None):
    """(change of the parameters, loss) of a step with plain gradient descent of rate 1 on random images."""
    trained = encoder()
    objective = Objective("infonce", 4, trained.dim)
    groups = parameter_groups(trained, objective, replace(TINY, weight_decay=0.0))
    optimiser = torch.optim.SGD(groups, lr=1.0)
    images = torch.randn(batches, 8, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    images = images if fill is None else torch.full_like(images, fill)
    before = _flat(trained.parameters())
    loss = take_step([(i, torch.arange(8) % 4) for i in images], trained, objective, optimiser, SCALER, clip_norm)
    return _flat(trained.parameters()) - before, loss.item()


def test_accumulated_batches_average_and_clipping_bounds_the_whole_step():
    images = torch.randn(2, 8, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    trained, objective = encoder(), Objective("infonce", 4, encoder().dim)
    losses = [objective(trained(part), torch.arange(8) % 4) for part in images]
    (sum(losses) / 2).backward()
    gradient = _flat(p.grad for p in trained.parameters())
    change, loss = _tiny_step(batches=2)
    assert torch.allclose(change, -gradient, atol=1e-5) and loss == pytest.approx(sum(losses).item() / 2)
    assert change.norm() > 0.1
    assert _tiny_step(clip_norm=0.05)[0].norm() == pytest.approx(0.05, rel=0.05)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_first_such_step(eight_players, tmp_path, monkeypatch):
    steps = iter(range(1, 100))

    def spoilt(*given):
        return take_step(*given) * (math.nan if next(steps) >= 8 else 1)

    monkeypatch.setattr(training, "take_step", spoilt)
    images = eight_players[1][:48]
    with pytest.raises(FloatingPointError, match=r"became nan at step 8 of epoch 1; lower learning_rate"):
        train(encoder(), images, labels_of(images), replace(TINY, check_steps=5), tmp_path, constant, report=str)
    with pytest.raises(
        FloatingPointError, match=r"became inf at step 3 .*fp16 may have overflowed: set precision to bf16"
    ):
        finite([torch.tensor(1.0), torch.tensor(math.inf)], 2, 3, torch.float16)


def test_parameter_groups_hold_every_parameter_once_and_decay_as_asked():
    trained, objective = encoder(), Objective("infonce+id-cosine", 4, 256)
    every = [*trained.parameters(), *objective.parameters()]
    (whole,) = parameter_groups(trained, objective, TINY)
    assert whole["weight_decay"] == TINY.weight_decay and list(map(id, whole["params"])) == list(map(id, every))
    groups = parameter_groups(trained, objective, replace(TINY, decay_all=False))
    decayed, kept = sorted(groups, key=lambda group: -group["weight_decay"])
    assert kept["weight_decay"] == 0 and any(p is objective.logit_scale for p in kept["params"])
    assert all(p.ndim <= 1 for p in kept["params"]) and all(p.ndim > 1 for p in decayed["params"])
    assert len(kept["params"]) + len(decayed["params"]) == len(every)


@pytest.mark.parametrize(("loss", "pairs"), [("infonce+0.5*triplet", True), ("id", True), ("id+triplet", False)])
def test_a_triplet_without_infonce_gets_players_times_images(loss, pairs):
    labels = np.array([-1, -1, *np.repeat(np.arange(8), 5)])
    images = np.zeros((len(labels), 8, 4, 3), np.uint8)
    batches = epoch_batches(images, labels, encoder(), replace(TINY, loss=loss, batch_pairs=8), 1)
    assert batches.pairs == pairs and batches.batches.min() >= 2
    _, counts = np.unique(batches[0][2], return_counts=True)
    assert set(counts) == {2 if pairs else 4}


def test_the_classifier_learns_at_its_own_multiple_of_the_rate():
    objective = Objective("id+triplet", 4, 256)
    optimiser = build_optimiser(encoder(), objective, replace(TINY, head_rate=7.0))
    assert set_rate(optimiser, 0.5) == 0.5
    rates = {id(p): group["lr"] for group in optimiser.param_groups for p in group["params"]}
    assert rates[id(objective.classifier.weight)] == rates[id(objective.neck.weight)] == 3.5
    assert sorted(set(rates.values())) == [0.5, 3.5] and len(rates) == len(list(encoder().parameters())) + 2


@pytest.mark.parametrize("loss", ["id", "id+triplet"])
def test_the_classifier_and_its_neck_go_on_where_they_were(eight_players, tmp_path, monkeypatch, loss):
    images, recipe = eight_players[1][:48], replace(OFTEN, loss=loss, head_rate=1.0, check_steps=1)
    stops = {"whole": 0, "cut": 5}

    def step_or_stop(*given):
        stops["cut"] -= 1
        if stops["cut"] == 0:
            raise KeyboardInterrupt
        return take_step(*given)

    train(encoder(), images, labels_of(images), recipe, tmp_path / "whole", constant, report=str)
    monkeypatch.setattr(training, "take_step", step_or_stop)
    with pytest.raises(KeyboardInterrupt):
        train(encoder(), images, labels_of(images), recipe, tmp_path / "cut", constant, report=str)
    train(encoder(1), images, labels_of(images), recipe, tmp_path / "cut", constant, report=str)
    assert _bytes(tmp_path / "whole") == _bytes(tmp_path / "cut")


def test_players_may_be_retrieved_after_the_neck_and_nothing_else_changes(eight_players, tmp_path):
    manifest, images = eight_players
    sets, recipe = choose_sets(manifest, images, "eight"), replace(TINY, loss="id")
    plain = load_weights(train_in(tmp_path / "plain", sets, recipe, ENCODER), encoder()).eval()
    path = train_in(tmp_path / "necked", sets, recipe, {**ENCODER, "neck": True})
    necked = load_weights(path, build_encoder(**ENCODER, neck=True)).eval()
    batch = torch.randn(6, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain(batch), necked(batch)
    assert all(torch.equal(necked.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
    neck = necked.neck
    assert neck.num_batches_tracked > 0 and not torch.equal(neck.weight, torch.ones_like(neck.weight))
    by_hand = (before - neck.running_mean) / (neck.running_var + neck.eps).sqrt() * neck.weight + neck.bias
    torch.testing.assert_close(after, by_hand / by_hand.norm(dim=1, keepdim=True))
    # The start of a further run keeps it, and the written features are those after it.
    again = train_in(tmp_path / "again", sets, replace(recipe, epochs=0), {**ENCODER, "neck": True}, start=path)
    assert torch.equal(load_weights(again, build_encoder(**ENCODER, neck=True)).neck.weight, neck.weight)
    test = sets.evaluated["test"].query("role == 'query'").index.to_numpy()
    written = load_features(path.parent / "test.npz").query
    np.testing.assert_allclose(written, extract_features(necked, images, rows=test), atol=1e-6)


def test_a_neck_where_the_loss_has_none_is_refused(eight_players, tmp_path):
    images = eight_players[1][:48]
    with pytest.raises(ValueError, match="neck is true, but the loss 'infonce' has no neck: take id"):
        train(build_encoder(**ENCODER, neck=True), images, labels_of(images), TINY, tmp_path, constant, report=str)


def test_checkpoints_go_by_the_clock_and_a_finished_run_keeps_weights_and_history_alone(
    eight_players, tmp_path, monkeypatch
):
    images, saved = eight_players[1][:48], []

    def noted(folder, described, parts, state):
        saved.append((state["epoch"], state["step"]))
        save_checkpoint(folder, described, parts, state)
        assert (folder / "checkpoint.pt").stat().st_size > 1e6

    monkeypatch.setattr(training, "save_checkpoint", noted)
    history = train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=str)
    assert saved == [(2, 0), (3, 0)], "none within an epoch of less than ten minutes"
    train(encoder(), images, labels_of(images), replace(OFTEN, epochs=1), tmp_path / "often", constant, report=str)
    assert saved[2:6] == [(1, 2), (1, 4), (1, 6), (1, 8)]
    files = {path.name: path.stat().st_size for path in tmp_path.iterdir() if path.is_file()}
    assert files["checkpoint.pt"] < 10_000 and files["checkpoint.previous.pt"] < 10_000
    assert files["weights.safetensors"] > 700_000
    again = train(encoder(1), images, labels_of(images), TINY, tmp_path, constant, report=str)
    assert [row["loss"] for row in again][1:] == [row["loss"] for row in history][1:]
    whole = _bytes(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=str)
    assert _bytes(tmp_path) == whole


def test_epochs_between_can_go_unvalidated_and_each_can_be_kept(eight_players, tmp_path):
    images, validated = eight_players[1][:48], []
    recipe = replace(TINY, epochs=3, validate_every=2, keep_epochs=True)

    def validate(_):
        validated.append(len(list(tmp_path.glob("epoch*"))))
        return {"mAP": 0.5, "aps": np.ones(2)}

    start = {name: value.clone() for name, value in encoder().state_dict().items()}
    history = train(encoder(), images, labels_of(images), recipe, tmp_path, validate, report=str)
    assert validated == [0, 2, 3] and ["mAP" in row for row in history] == [True, False, True, True]
    assert sorted(path.name for path in tmp_path.glob("epoch*")) == [f"epoch{k}.safetensors" for k in range(4)]
    kept = [load_weights(tmp_path / f"epoch{k}.safetensors", encoder(1)).state_dict() for k in (0, 2, 3)]
    assert all(torch.equal(value, start[name]) for name, value in kept[0].items())
    assert not torch.equal(kept[1]["trunk.stem.conv.weight"], kept[2]["trunk.stem.conv.weight"])
    last = load_weights(tmp_path / "weights.safetensors", encoder(1)).state_dict()
    assert all(torch.equal(value, last[name]) for name, value in kept[2].items())


def test_compiled_and_deterministic_are_what_torch_is_told(eight_players, tmp_path, monkeypatch):
    images, compiled = eight_players[1][:48], []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    recipe = replace(TINY, epochs=1, compile=True, deterministic=True)

    def validate(_):
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        return constant(_)

    train(encoder(), images, labels_of(images), recipe, tmp_path, validate, report=str)
    assert len(compiled) == 1
    train(encoder(), images, labels_of(images), replace(TINY, epochs=0), tmp_path / "plain", constant, report=str)
    assert len(compiled) == 1 and not torch.are_deterministic_algorithms_enabled()


def test_a_seed_given_twice_or_none_is_refused():
    assert check_seeds([3, 0]) == [3, 0]
    for given in ([0, 0], [], [-1], [True]):
        with pytest.raises(ValueError, match=r"seeds is \[.*\]; give whole numbers from 0 on, each once"):
            check_seeds(given)


def test_few_players_lower_the_batch_and_one_is_an_error():
    labels = np.array([-1, 0, 0, 1, 1, 2, 2])
    for loss, most in (("infonce", 3), ("id+triplet", 12)):
        recipe = Recipe(loss=loss, batch_pairs=32)
        with pytest.warns(UserWarning, match=f"batch_pairs is {most} instead of 32: 3 training players"):
            lowered = fit_to_players(recipe, labels)
        assert len(epoch_batches(np.zeros((7, 8, 4, 3), np.uint8), labels, encoder(), lowered, 1))
    assert fit_to_players(replace(recipe, batch_pairs=8), labels).batch_pairs == 8
    with pytest.raises(ValueError, match="1 training players; a loss needs at least 2"):
        fit_to_players(recipe, np.zeros(4, int))


def test_worker_processes_open_the_image_cache_themselves_and_serve_all_epochs(eight_players, tmp_path):
    images = eight_players[1]
    assert isinstance(images, np.memmap)
    labels = np.append(labels_of(images[:48]), np.full(len(images) - 48, -1))
    batches = RunBatches(images, labels, encoder(), TINY)
    content = pickle.dumps(batches)
    assert len(content) < 20_000 < images.nbytes
    for ours, theirs in zip(batches[2, 1], pickle.loads(content)[2, 1], strict=True):
        assert np.array_equal(ours, theirs)
    loaded = batches_of_steps(batches, 1, 0, replace(TINY, workers=1), torch.device("cpu"))
    helpers = [{child.pid for child in multiprocessing.active_children()} for _ in loaded]
    assert len(helpers) == 2 * len(batches.of_epoch(1)) and len(set.union(*helpers)) == 1


SMALL_MEMORY = """
import numpy as np, torch
from types import SimpleNamespace
from reid_utils.learning.loading import RunBatches, batches_of_steps
from reid_utils.learning.training import Recipe
recipe = Recipe(augmentation="none", batch_pairs=16, epochs=1, workers=1)
encoder = SimpleNamespace(mean=(0, 0, 0), std=(1, 1, 1))
batches = RunBatches(np.zeros((64, 200, 200, 3), np.uint8), np.arange(64) // 2, encoder, recipe)
print(sum(1 for _ in batches_of_steps(batches, 1, 0, recipe, torch.device("cpu"))))
"""


def test_batches_pass_between_processes_where_shared_memory_is_small():
    mount = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=2m tmpfs /dev/shm && exec "$@"', "sh"]
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no mount namespace of one's own")
    done = subprocess.run([*mount, sys.executable, "-c", SMALL_MEMORY], capture_output=True, text=True, timeout=100)
    assert done.stdout == "4\n", done.stderr


def test_a_worker_process_that_dies_or_hangs_is_an_error(eight_players, monkeypatch):
    images, recipe = eight_players[1][:48], replace(TINY, workers=1)

    class Dying(RunBatches):
        def __getitem__(self, place):
            os._exit(1)

    class Hanging(RunBatches):
        def __getitem__(self, place):
            time.sleep(30)

    monkeypatch.setattr(loading, "LONGEST_WAIT", 1)
    for kind, told in ((Dying, "exited unexpectedly"), (Hanging, "timed out after 1 seconds")):
        with pytest.raises(RuntimeError, match=told):
            next(
                batches_of_steps(kind(images, labels_of(images), encoder(), recipe), 1, 0, recipe, torch.device("cpu"))
            )


def test_each_epoch_tells_its_loss_steps_memory_and_what_is_left(eight_players, tmp_path):
    images, told = eight_players[1][:48], []
    train(encoder(), images, labels_of(images), TINY, tmp_path, constant, report=told.append)
    pattern = (
        r"seed 0  epoch \d/2  loss \d.\d{3}  mAP 0.500  \d+ ms a step  \d+\.\d minutes to go  \d+\.\d GiB on a GPU"
    )
    assert len(told) == 2 and all(re.fullmatch(pattern, line) for line in told)


def test_best_weights_are_those_of_the_best_epoch(eight_players, tmp_path):
    images = eight_players[1][:48]
    maps = iter([0.9, 0.3, 0.8, 0.4])
    kept = {}

    def validate(current):
        kept[len(kept)] = {name: value.clone() for name, value in current.state_dict().items()}
        return {"mAP": next(maps), "aps": np.ones(2)}

    recipe = replace(TINY, epochs=3)
    history = train(encoder(), images, labels_of(images), recipe, tmp_path, validate, report=str)
    best = load_weights(tmp_path / "best.safetensors", encoder(1)).state_dict()
    assert pd.DataFrame(history)["mAP"].tolist() == [0.9, 0.3, 0.8, 0.4]
    assert all(torch.equal(best[name], value) for name, value in kept[2].items())
