"""What docs/extending.md shows works as it stands there."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from reid_utils.data import images, layouts
from reid_utils.data.manifest import load_manifest
from reid_utils.learning import losses
from reid_utils.ranking import fusion, methods
from reid_utils.ranking.feature_files import Features

TEXT = (Path(__file__).parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
RNG = np.random.default_rng(0)


@pytest.fixture
def added():
    """Runs the page's block of code that holds a word in a module, whose registries are as before afterwards."""
    before = []

    def add(word, module, *registries):
        (block,) = (each for each in re.findall(r"```python\n(.*?)```", TEXT, re.S) if word in each)
        before.extend((getattr(module, name), getattr(module, name).copy()) for name in registries)
        exec(block, module.__dict__)

    yield add
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


def test_a_loss_pulls_a_player_together_and_takes_part_in_sums(added):
    added("circle", losses, "LOSSES", "SEVERAL")
    objective = losses.Objective("circle+0.5*triplet", n_players=4, dim=3)
    labels = torch.arange(4).repeat_interleave(2)
    together = torch.nn.functional.normalize(torch.eye(4, 3).repeat_interleave(2, dim=0) + 0.01, dim=1)
    apart = together[torch.randperm(8, generator=torch.Generator().manual_seed(0))]
    assert not losses.takes_pairs("circle")
    assert objective(together, labels) < objective(apart, labels)


def test_an_augmentation_changes_some_crops(added, monkeypatch):
    added("fade", images, "CHANGES")
    monkeypatch.setattr(images, "PARTS", (*images.PARTS, "fade"))
    crop, parts = RNG.integers(0, 255, (16, 8, 3), np.uint8), images.parse_augmentation("flip+fade")
    made = [images.augment(crop, parts, np.random.default_rng(seed))[0] for seed in range(50)]
    changed = [image for image in made if not np.array_equal(image, crop)]
    assert 3 < len(changed) < 25 and changed[0].dtype == np.uint8
    assert np.ptp(changed[0].astype(int), axis=2).mean() < np.ptp(crop.astype(int), axis=2).mean()


def test_a_post_processing_and_a_fusion_rank(added):
    added("cosine", methods, "POST_PROCESSINGS")
    added("geometric", fusion, "FUSIONS")
    query, gallery = RNG.normal(size=(3, 5)).astype(np.float32), RNG.normal(size=(7, 5)).astype(np.float32)
    features = Features(query=query, gallery=gallery, query_players=np.arange(3), gallery_players=np.arange(7) % 3)
    distances = methods.distances_of(features, "cosine")
    np.testing.assert_allclose(distances, 1 - query @ gallery.T, rtol=1e-6)
    positive = distances - distances.min() + 1
    fused = methods.fuse([positive, 4 * positive], "geometric")
    np.testing.assert_allclose(fused, 2 * positive, rtol=1e-5)


def test_a_layout_is_found_and_read(tmp_path, monkeypatch):
    (row,) = re.findall(r'```python\n("VeRi-776".*?)```', TEXT, re.S)
    monkeypatch.setattr(layouts, "LAYOUTS", eval(f"{{{row}}}", layouts.__dict__) | layouts.LAYOUTS)
    monkeypatch.setattr("reid_utils.data.manifest.LAYOUTS", layouts.LAYOUTS)
    names = [f"image_train/000{p}_c00{c}_000{c}_0.jpg" for p in range(1, 5) for c in (1, 2)]
    names += ["image_query/0007_c001_0001_0.jpg", "image_test/0007_c002_0001_0.jpg", "image_test/0008_c002_0001_0.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), RNG.integers(0, 255, (16, 8, 3), np.uint8))
    assert layouts.find_layout(tmp_path)[0] == "VeRi-776"
    manifest = load_manifest(tmp_path)
    assert manifest.groupby(["split", "role"]).size().to_dict() == {
        ("test", "gallery"): 2, ("test", "query"): 1, ("train", "train"): 8,
    }  # fmt: skip
    assert set(manifest.loc[manifest["role"] == "query", "camera"]) == {1}
