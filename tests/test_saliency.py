"""Saliency of a match: it depends on the weights and on the pair, for CNNs and ViTs alike."""

import numpy as np
import pytest
import torch

from reid_utils.learning.models import build_encoder
from reid_utils.views.saliency import match_saliency

ENCODERS = {"test_byobnet": (64, 32), "test_vit": (64, 64)}


def encoder_of(name, seed):
    torch.manual_seed(seed)
    encoder = build_encoder(name, ENCODERS[name])
    with torch.no_grad():  # untrained norms and heads start alike; far from it they tell weights apart
        for parameter in encoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return encoder


def crops(size, seed=0):
    """Two crops with a bright patch in different corners."""
    images = np.random.default_rng(seed).integers(60, 90, (2, *size, 3), dtype=np.uint8)
    images[0, :24, :16], images[1, -24:, -16:] = 230, 230
    return images


@pytest.mark.parametrize("name", ENCODERS)
def test_a_map_a_crop_which_changes_when_the_weights_are_randomised(name):
    encoder, pair = encoder_of(name, 0), crops(ENCODERS[name])
    encoder.train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    *maps, similarity = match_saliency(encoder, *pair)
    assert encoder.training and all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    assert all(found.shape == ENCODERS[name] and found.min() >= 0 and found.max() in (0, 1) for found in maps)
    assert -1 <= similarity <= 1 and max(found.max() for found in maps) == 1
    other = match_saliency(encoder_of(name, 1), *pair)
    differences = [np.abs(found - random).mean() for found, random in zip(maps, other[:2], strict=True)]
    assert max(differences) > 0.05
    again = match_saliency(encoder, *pair)
    assert all(np.array_equal(found, same) for found, same in zip(maps, again[:2], strict=True))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_similarity_is_that_of_the_features_and_order_swaps_the_maps(name):
    encoder, (first, second) = encoder_of(name, 0).eval(), crops(ENCODERS[name])
    there, back = match_saliency(encoder, first, second), match_saliency(encoder, second, first)
    assert there[2] == pytest.approx(back[2], abs=1e-5)
    np.testing.assert_allclose(there[0], back[1], atol=1e-3)
    assert match_saliency(encoder, first, first)[2] == pytest.approx(1, abs=1e-5)


def test_a_map_shows_the_region_that_an_encoder_looks_at():
    class UpperHalf(torch.nn.Module):
        """Its features are the colours of the upper half alone."""

        mean, std = (0, 0, 0), (1, 1, 1)

        def __init__(self):
            super().__init__()
            self.trunk = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Conv2d(3, 3, 1), torch.nn.ReLU())
            torch.nn.init.eye_(self.trunk[1].weight[:, :, 0, 0])

        def forward(self, images):
            found = self.trunk(images)
            return torch.nn.functional.normalize(found[:, :, : found.shape[2] // 2].mean(dim=(2, 3)), dim=1)

    pair = np.zeros((2, 64, 32, 3), np.uint8)
    pair[:, :32, :, 0], pair[:, :32, :, 1] = 200, np.arange(0, 64, 2, dtype=np.uint8)
    pair[1, :32, :, 1] = 0
    encoder = UpperHalf()
    of_query, _, _ = match_saliency(encoder, *pair, layer=encoder.trunk)
    with pytest.raises(ValueError, match="name one as layer"):
        match_saliency(encoder, *pair)
    assert of_query[:32].mean() > 10 * of_query[36:].mean()
