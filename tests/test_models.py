import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from reid_utils.learning.features import extract_features
from reid_utils.learning.models import (
    build_encoder,
    count_gflops,
    count_parameters,
    load_weights,
    save_weights,
    weights_file_name,
)
from reid_utils.ranking.feature_files import features_of, load_features, load_folder, save

SIZE = (32, 16)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_byobnet", "test_efficientnet", "resnet18"])
def test_features_have_unit_length_and_the_stated_width(backbone):
    encoder = build_encoder(backbone, SIZE).eval()
    features = encoder(torch.rand(3, 3, *SIZE))
    assert features.shape == (3, encoder.dim) and count_parameters(encoder) > 9e4
    assert torch.allclose(features.norm(dim=1), torch.ones(3), atol=1e-5)


def test_a_vision_transformer_takes_crops_of_another_size():
    encoder = build_encoder("test_vit", (96, 64)).eval()
    assert encoder(torch.rand(2, 3, 96, 64)).shape == (2, encoder.dim)


def test_unknown_names_say_what_is_known():
    with pytest.raises(RuntimeError, match="Unknown model"):
        build_encoder("test_resnt")
    with pytest.raises(ValueError, match="open_clip has no weights 'laion2b' for ViT-X; known: none"):
        build_encoder("ViT-X/laion2b")


def test_local_weights_of_another_backbone_name_what_does_not_fit(tmp_path):
    import timm

    save_file(timm.create_model("test_byobnet").state_dict(), tmp_path / weights_file_name("test_resnet"))
    with pytest.raises(ValueError, match=r"test_resnet\.safetensors does not fit the backbone \(.*Missing key"):
        build_encoder("test_resnet", SIZE, pretrained=True, weights_dir=tmp_path)


def test_without_a_hub_the_error_says_which_file_to_put_where(monkeypatch):
    import timm

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", no_network)
    with pytest.raises(
        FileNotFoundError, match=r"as test_resnet\.safetensors into .* weights_dir, or set pretrained to"
    ):
        build_encoder("test_resnet", SIZE, pretrained=True)


def test_weights_file_has_equal_bytes_and_refuses_damage(tmp_path):
    encoder = build_encoder("test_byobnet", SIZE)
    for name in ("a", "b"):
        save_weights(tmp_path / f"{name}.safetensors", encoder, {"seed": 0, "epochs": 2})
    content = (tmp_path / "a.safetensors").read_bytes()
    assert content == (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.safetensors does not fit"):
        load_weights(tmp_path / "a.safetensors", encoder)
    with pytest.raises(ValueError, match="does not fit the encoder"):
        load_weights(tmp_path / "b.safetensors", build_encoder("test_resnet", SIZE))


def test_weights_can_be_read_by_whom_the_umask_says(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o027, 0o640)):
        former = os.umask(umask)
        try:
            save_weights(tmp_path / "a.safetensors", build_encoder("test_byobnet", SIZE), {})
        finally:
            os.umask(former)
        assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


def test_gflops_grow_with_the_number_of_pixels():
    with torch.device("meta"):
        small, large = (count_gflops(build_encoder("test_resnet", size)) for size in (SIZE, (64, 32)))
    assert small > 0 and large == pytest.approx(4 * small, rel=0.1)


def test_features_do_not_depend_on_the_batch_size_and_leave_the_mode_alone():
    encoder = build_encoder("test_resnet", SIZE).train()
    images = np.random.default_rng(0).integers(0, 255, (7, *SIZE, 3), dtype=np.uint8)
    whole, parts = extract_features(encoder, images), extract_features(encoder, images, batch_size=3)
    assert encoder.training and np.allclose(whole, parts, atol=1e-5)
    mirrored = extract_features(encoder, images[:, :, ::-1], flip=True)
    assert np.allclose(extract_features(encoder, images, flip=True), mirrored, atol=1e-5)


def test_features_of_half_precision_are_near_and_of_unit_length():
    encoder = build_encoder("test_resnet", SIZE)
    images = np.random.default_rng(0).integers(0, 255, (4, *SIZE, 3), dtype=np.uint8)
    whole, half = (extract_features(encoder, images, precision=name) for name in ("float32", "bf16"))
    assert half.dtype == np.float32 and np.allclose(np.linalg.norm(half, axis=1), 1, atol=1e-5)
    assert not np.array_equal(whole, half) and (whole * half).sum(axis=1).min() > 0.999


def test_saved_features_come_back_with_their_ids(tmp_path):
    import pandas as pd

    manifest = pd.DataFrame(
        {
            "role": ["query", "gallery", "gallery"],
            "player": [4, 4, 5],
            "camera": [0, 1, 1],
            "image_id": ["004_001_00", "004_001_01", "005_001_01"],
        }
    )
    features = np.eye(3, dtype=np.float32)
    save(tmp_path / "test.npz", features_of(manifest, features))
    read = load_features(tmp_path / "test.npz")
    assert np.array_equal(read.query, features[:1]) and np.array_equal(read.gallery, features[1:])
    assert read.gallery_players.tolist() == [4, 5] and read.gallery_images.tolist() == [
        "004_001_01",
        "005_001_01",
    ]
    assert list(load_folder(tmp_path)) == ["test"]


def _file(path, **changes):
    content = {"query": np.eye(2, 3), "gallery": np.ones((3, 3)), "query_players": [1, 2], "gallery_players": [1, 2, 2]}
    content = {name: value for name, value in {**content, **changes}.items() if value is not None}
    np.savez(path, **content)
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gallery_players": None}, "key 'gallery_players' is missing"),
        (
            {"query_players": [1]},
            r"query_players has shape \(1,\); it needs an entry a row of features, of shape \(2, 3\)",
        ),
        ({"query": np.full((2, 3), np.nan)}, "query row 0 holds NaN"),
        ({"gallery": np.ones((3, 4))}, "query has 3 columns, gallery 4"),
        ({"query": np.full((2, 3), "x")}, r"mine\.npz: query must hold numbers, not <U1"),
        (
            {"query_players": np.array([1, None])},
            r"mine\.npz is damaged or holds pickles .*Object arrays",
        ),
        ({"query_players": 7}, r"query_players has shape \(\)"),
        ({"query_cameras": [0, 1]}, "query_cameras only; give the cameras of both sides or of none"),
        ({"query_cameras": [0], "gallery_cameras": [0, 1, 1]}, r"query_cameras has shape \(1,\)"),
        ({"gallery_images": ["a", "b"]}, r"gallery_images has shape \(2,\)"),
    ],
)
def test_bad_feature_files_are_named_with_what_is_wrong(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_features(_file(tmp_path / "mine.npz", **changes))


def test_own_features_need_only_four_keys_and_an_empty_folder_is_an_error(tmp_path):
    read = load_features(_file(tmp_path / "mine.npz"))
    assert read.query.dtype == np.float32 and read.query_cameras is None and read.gallery_images is None
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no"):
        load_folder(tmp_path / "empty")
