"""The published backbones at their true size, without weights; open_clip's towers; weights files by every path."""

import json
import math
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from notebook_study.study_file import read_study
from reid_utils.learning.models import build_encoder, count_gflops, count_parameters, weights_file_name

STUDY = read_study(Path(__file__).resolve().parents[1] / "studies" / "paper.yaml")
CLIP, BEIT = "ViT-L-14-quickgelu/openai", "beitv2_large_patch16_224.in1k_ft_in22k_in1k"
PUBLISHED = {  # width of the features, side of the images in pixels, mean of the first channel, millions, GFLOPs
    CLIP: (1024, 224, 0.4815, 303.2, 162.0),
    BEIT: (1024, 224, 0.485, 303.4, 123.1),
    "eva_large_patch14_336.in22k_ft_in22k_in1k": (1024, 336, 0.4815, 303.5, 381.9),
    "eva_giant_patch14_336.clip_ft_in1k": (1408, 336, 0.4815, 1011.6, 1240.6),
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": (1024, 448, 0.4815, 304.1, 723.5),
    "resnet50": (2048, 224, 0.485, 23.5, 8.17),
}
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


@pytest.fixture
def tiny_clip(tmp_path, monkeypatch):
    """open_clip models of toy size: "tiny" and "tiny-quickgelu", with weights "openai" and "plain"."""
    weights = {"hf_hub": "somewhere/tiny/", "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}
    known = {"openai": {**weights, "quick_gelu": True}, "plain": weights}
    for name, quick in (("tiny", False), ("tiny-quickgelu", True)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**TINY, "quick_gelu": quick}))
        open_clip.add_model_config(tmp_path / f"{name}.json")
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, known)


@pytest.fixture(autouse=True)
def quick_start(monkeypatch):
    """BEiT's 300 million weights are drawn from a normal distribution that is not cut: in a tenth of the seconds."""

    def draw(tensor, std=1.0):
        with torch.no_grad():
            return tensor.normal_(std=std)

    monkeypatch.setattr("timm.models.beit.trunc_normal_", draw)


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_published_backbones_have_their_true_size_and_costs(backbone):
    with torch.device("meta"):
        encoder = build_encoder(backbone)
    width, side, mean, millions, gflops = PUBLISHED[backbone]
    assert (encoder.dim, encoder.image_size) == (width, (side, side))
    assert encoder.mean[0] == pytest.approx(mean, abs=1e-4)
    assert math.exp(encoder.logit_scale) == pytest.approx(1 / 0.07), "without weights, CLIP's start"
    assert (count_parameters(encoder) / 1e6, count_gflops(encoder)) == pytest.approx((millions, gflops), rel=0.005)
    features = encoder.eval()(torch.zeros(2, 3, side, side, device="meta"))
    assert features.shape == (2, width)


def test_every_backbone_of_the_paper_study_has_its_own_size():
    entry = next(entry for entry in STUDY.entries if entry.notebook == "02_training")
    sizes = {block["backbone"]: (block["image_height"], block["image_width"]) for block in entry.grid}
    assert sizes == {name: (side, side) for name, (_, side, *_) in PUBLISHED.items()}


@pytest.mark.parametrize("backbone", [CLIP, BEIT])
def test_a_large_backbone_goes_forward_and_backward(backbone):
    encoder = build_encoder(backbone).train()
    features = encoder(torch.rand(1, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0)))
    features[0, 0].backward()
    assert features.shape == (1, 1024) and features.norm().item() == pytest.approx(1, abs=1e-5)
    gradients = [p.grad for p in encoder.parameters() if p.requires_grad]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert sum(gradient.abs().sum() for gradient in gradients) > 0


@pytest.mark.parametrize("backbone", ["test_vit", "tiny/plain"])
def test_gradient_checkpointing_keeps_less_and_gives_the_same_gradients(backbone, tiny_clip):
    kept, gradients = [], []
    for again in (False, True):
        torch.manual_seed(0)
        encoder = build_encoder(backbone, gradient_checkpointing=again).train()
        sizes = []

        def keep(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features = encoder(torch.rand(2, 3, *encoder.image_size, generator=torch.Generator().manual_seed(0)))
        features[:, 0].sum().backward()
        kept.append(sum(sizes))
        gradients.append(torch.cat([p.grad.flatten() for p in encoder.parameters() if p.grad is not None]))
    assert kept[1] < 0.7 * kept[0]
    assert torch.allclose(*gradients, atol=1e-7)


def _downloaded(model, path):
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_vit", "eva02_tiny_patch14_224", "beit_base_patch16_224"])
def test_a_local_file_loads_as_a_downloaded_one_and_position_tables_take_another_size(backbone, tmp_path):
    own = timm.create_model(backbone).eval()
    path = tmp_path / weights_file_name(backbone)
    _downloaded(own, path)
    same = build_encoder(backbone, pretrained=True, weights_dir=tmp_path).eval()
    images = torch.rand(1, 3, *same.image_size)
    expected = own.forward_head(own.forward_features(images), pre_logits=True)
    assert torch.allclose(same.trunk(images), expected, atol=1e-5)
    smaller = tuple(side // 2 for side in same.image_size)
    other = build_encoder(backbone, smaller, pretrained=True, weights_dir=tmp_path).eval()
    assert other(torch.rand(1, 3, *smaller)).shape == (1, other.dim)
    if backbone in ("test_vit", "eva02_tiny_patch14_224"):  # small enough to write twice
        _downloaded(timm.create_model(backbone, img_size=smaller), path)
        assert build_encoder(backbone, pretrained=True, weights_dir=tmp_path).eval()(images).shape == (1, other.dim)


def test_pixels_are_normalised_as_the_weights_were_trained_or_as_published():
    backbone = "eva_large_patch14_336.in22k_ft_in22k_in1k"
    with torch.device("meta"):
        own, published = (build_encoder(backbone, normalisation=name) for name in ("weights", "imagenet"))
        with pytest.raises(ValueError, match="normalisation 'clip' is unknown; known: weights, imagenet"):
            build_encoder(backbone, normalisation="clip")
    assert own.mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert (published.mean, published.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_tower_has_the_activation_that_its_weights_were_trained_with(tiny_clip):
    with torch.device("meta"):
        for name in ("tiny", "tiny-quickgelu"):
            assert "QuickGELU" in repr(build_encoder(f"{name}/openai").trunk)
            assert "QuickGELU" not in repr(build_encoder(f"{name}/plain").trunk)
    with pytest.raises(ValueError, match="no weights 'mine' for tiny; known: openai, plain"):
        build_encoder("tiny/mine")


def test_an_open_clip_file_loads_with_and_without_projection_and_at_another_size(tiny_clip, tmp_path):
    clip = open_clip.create_model("tiny-quickgelu")
    clip.logit_scale.data.fill_(math.log(100))
    _downloaded(clip, tmp_path / "tiny_openai.safetensors")
    settings = {"backbone": "tiny/openai", "pretrained": True, "weights_dir": tmp_path}
    images = torch.rand(2, 3, 32, 32)
    wide, narrow = build_encoder(**settings).eval(), build_encoder(**settings, projection=True).eval()
    assert (wide.dim, narrow.dim, wide.mean) == (64, 16, (0.1, 0.2, 0.3))
    assert math.exp(wide.logit_scale) == pytest.approx(100, rel=1e-5)
    assert math.exp(build_encoder("tiny/openai").logit_scale) == pytest.approx(1 / 0.07, rel=1e-5)
    assert build_encoder(**settings, normalisation="imagenet").mean == (0.1, 0.2, 0.3)
    assert torch.allclose(narrow(images), clip.eval().encode_image(images, normalize=True), atol=1e-6)
    assert wide(images).shape == (2, 64)
    # 64 × 16 pixels make as many patches as 32 × 32 do, in another grid
    tall = build_encoder(**settings, image_size=(64, 16)).eval()
    assert tall(torch.rand(2, 3, 64, 16)).shape == (2, 64)
    table, resampled = wide.trunk.positional_embedding, tall.trunk.positional_embedding
    assert torch.equal(table[0], resampled[0]) and not torch.allclose(table, resampled)


def test_an_open_clip_file_of_another_model_is_refused(tiny_clip, tmp_path):
    _downloaded(timm.create_model("test_vit"), tmp_path / "tiny_plain.safetensors")
    with pytest.raises(ValueError, match=r"tiny_plain\.safetensors does not fit the backbone"):
        build_encoder("tiny/plain", pretrained=True, weights_dir=tmp_path)


def test_other_towers_of_open_clip_say_where_their_like_is():
    for backbone in ("convnext_base/laion400m_s13b_b51k", "RN50/openai"):
        with pytest.raises(ValueError, match=r"no vision transformer of open_clip; name timm's, such as resnet50_clip"):
            build_encoder(backbone)


def test_without_a_hub_an_open_clip_pair_says_which_file_to_put_where(tiny_clip, monkeypatch):
    def no_network(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(open_clip, "download_pretrained", no_network)
    with pytest.raises(FileNotFoundError, match=r"somewhere/tiny as tiny_openai\.safetensors into"):
        build_encoder("tiny/openai", pretrained=True)
