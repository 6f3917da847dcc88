import cv2
import numpy as np
import pytest

from reid_utils.data.difficulty import DEGRADATIONS, blur, compress, downscale, occlude

LEVELS = {blur: (2, 5), occlude: (10, 40), downscale: (50, 85), compress: (70, 95)}


@pytest.fixture
def crop():
    rng = np.random.default_rng(3)
    return cv2.resize(rng.integers(0, 256, (20, 9, 3), np.uint8), (47, 111), interpolation=cv2.INTER_CUBIC)


def _damage(image, crop):
    return float(np.mean((image.astype(float) - crop) ** 2))


@pytest.mark.parametrize("degrade", DEGRADATIONS.values(), ids=lambda function: function.__name__)
def test_damage_grows_with_the_level_and_nothing_else_changes(degrade, crop):
    before = crop.copy()
    some, much = (degrade(crop, level) for level in LEVELS[degrade])
    assert np.array_equal(degrade(crop, 0), crop)
    assert 0 < _damage(some, crop) < _damage(much, crop)
    assert some.shape == crop.shape and some.dtype == np.uint8
    assert np.array_equal(degrade(crop, LEVELS[degrade][1]), much)
    assert np.array_equal(crop, before)


def test_the_occluded_share_is_the_level_and_the_place_follows_the_seed(crop):
    for seed in range(20):
        covered = np.all(occlude(crop, 25, seed) != crop, axis=2)
        assert abs(np.all(occlude(crop, 25, seed) == 127, axis=2).mean() - 0.25) < 0.02
        assert covered.any()
    assert not np.array_equal(occlude(crop, 25, 0), occlude(crop, 25, 1))
    assert np.all(occlude(crop, 100) == 127)
