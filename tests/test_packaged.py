"""ImageNet weights out of packages, and weights files without a classifier."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import save_file

from reid_utils.files import file_hash
from reid_utils.learning import models
from reid_utils.learning.models import build_encoder, save_weights
from tools import packaged_weights as packaged

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def toy_package(tmp_path, monkeypatch):
    """An installed package that carries test_byobnet's trunk under other names -> (its file, timm's tensors)."""
    state = timm.create_model("test_byobnet", num_classes=0).state_dict()
    path = tmp_path / "toy.pth"
    torch.save({f"layer{number}": tensor for number, tensor in enumerate(state.values())}, path)
    entry = packaged.Packaged("toy", "toy.pth", file_hash(path), 0, "MIT")
    monkeypatch.setattr(packaged, "PACKAGED", {"test_byobnet": entry})
    monkeypatch.setattr(packaged, "distribution", lambda _: SimpleNamespace(locate_file=lambda name: tmp_path / name))
    return path, state


def test_what_a_package_carries_is_found_without_naming_a_folder(toy_package, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "WEIGHTS", tmp_path / "weights")
    assert packaged.write_weights(tmp_path / "weights", report=lambda _: None)
    found = build_encoder("test_byobnet", (32, 16), pretrained=True).trunk.state_dict()
    assert found.keys() == toy_package[1].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in toy_package[1].items())


def test_a_file_that_changed_upstream_is_refused(toy_package, tmp_path):
    torch.save({"layer0": torch.zeros(3)}, toy_package[0])
    with pytest.raises(ValueError, match=r"toy\.pth is not the known file .* install toy as pinned"):
        packaged.write_weights(tmp_path / "weights")
    assert not (tmp_path / "weights").exists()


def test_without_the_packages_the_error_says_what_to_run(monkeypatch, tmp_path):
    entry = packaged.Packaged("no-such-package", "x.pth", "", 0, "MIT")
    monkeypatch.setattr(packaged, "PACKAGED", {"test_byobnet": entry})
    with pytest.raises(FileNotFoundError, match="run `make weights`"):
        packaged.write_weights(tmp_path)


def test_without_a_hub_the_error_names_the_command_that_needs_none(monkeypatch, tmp_path):
    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(models, "WEIGHTS", tmp_path)
    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(FileNotFoundError, match=r"\(no route to host\); run `make weights` .*or put"):
        build_encoder("tf_efficientnet_lite0", pretrained=True)


def test_every_package_is_pinned_by_hash_and_has_a_licence():
    pins = re.findall(
        r"^(\S+)==\S+ \\\n +--hash=sha256:[0-9a-f]{64}$", (ROOT / "requirements-weights.txt").read_text(), re.M
    )
    assert sorted(pins) == sorted(source.package for source in packaged.PACKAGED.values())
    assert {source.licence for source in packaged.PACKAGED.values()} == {"Apache-2.0", "MIT"}


@pytest.mark.parametrize("backbone", ["test_byobnet", "test_vit"])
def test_a_trunk_without_its_classifier_loads_and_one_that_lacks_more_does_not(backbone, tmp_path):
    trunk = timm.create_model(backbone, num_classes=0)
    state = {name: tensor.contiguous() for name, tensor in trunk.state_dict().items()}
    save_file(state, tmp_path / f"{backbone}.safetensors")
    encoder = build_encoder(backbone, pretrained=True, weights_dir=tmp_path)
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.trunk.state_dict().items())
    assert "state_dict" not in encoder.trunk.pretrained_cfg
    del state[next(name for name in reversed(state) if name.endswith("weight"))]
    save_file(state, tmp_path / f"{backbone}.safetensors")
    with pytest.raises(ValueError, match="does not fit the backbone"):
        build_encoder(backbone, pretrained=True, weights_dir=tmp_path)


def test_weights_of_a_training_load_from_a_folder_too(tmp_path):
    encoder = build_encoder("test_resnet", (32, 16))
    save_weights(tmp_path / "test_resnet.safetensors", encoder, {})
    again = build_encoder("test_resnet", (32, 16), pretrained=True, weights_dir=tmp_path)
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in again.state_dict().items())


def _photos(size, mean, std):
    """Three overlapping views each of a palace and of a flower, (6, 3, size, size) normalised."""
    from sklearn.datasets import load_sample_image

    views = []
    for name in ("china.jpg", "flower.jpg"):
        photo = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1).float() / 255
        cut = torch.stack([photo[:, :, left : left + 427] for left in (0, 106, 212)])
        views.append(torch.nn.functional.interpolate(cut, size=size, mode="bicubic", antialias=True))
    return (torch.cat(views) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _needs(backbone):
    path = models.find_weights(backbone, None)
    if path is None:
        pytest.skip(f"weights/{backbone}.safetensors is missing: run `make weights`")
    return path


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_packaged_weights_know_a_palace(backbone):
    from timm.data import ImageNetInfo

    overlay = {"file": str(_needs(backbone))}
    model = timm.create_model(backbone, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    config = model.pretrained_cfg
    with torch.inference_mode():
        logits = model(_photos(config["input_size"][1:], config["mean"], config["std"])[1:2])
    best = [ImageNetInfo().index_to_description(int(index)) for index in logits[0].topk(5).indices]
    assert best[0] == "palace" and {"castle", "monastery"} & set(best)


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "mobilenetv2_100"])
def test_packaged_trunks_tell_photos_apart(backbone):
    _needs(backbone)
    encoder = build_encoder(backbone, pretrained=True).eval()
    with torch.inference_mode():
        features = encoder(_photos(encoder.image_size, encoder.mean, encoder.std))
    alike = features @ features.T
    assert alike[:3, :3].min() > 0.8 and alike[:3, 3:].max() < 0.6
