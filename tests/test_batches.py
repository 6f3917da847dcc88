from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reid_utils.data.batches import EpochBatches, pk_batches, unique_player_batches
from reid_utils.data.images import (
    PARTS,
    augment,
    draw_cutout,
    draw_erasing,
    fill_boxes,
    normalise,
    parse_augmentation,
    sharpen,
)
from reid_utils.learning.loading import epoch_batches
from reid_utils.learning.training import Recipe

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def _players(counts):
    return np.repeat(np.arange(len(counts)), counts)


def _epoch(images, labels, augmentation, batches=None, **settings):
    if batches is None:
        batches = np.arange(len(images))[None]
    encoder = SimpleNamespace(mean=settings.pop("mean", MEAN), std=settings.pop("std", STD))
    recipe = SimpleNamespace(seed=3, augmentation=augmentation)
    return EpochBatches(images, labels, batches, recipe, encoder, **{"epoch": 1, **settings})


def _ready(data, b=0):
    return data.ready(data[b])


@pytest.mark.parametrize("counts", [[20] * 40, [3, 1, 9, 4, 4, 4, 7, 2], [1] * 5, [50, 2, 2, 2, 2]])
def test_no_player_twice_in_a_batch_and_no_image_twice_in_an_epoch(counts):
    players = _players(counts)
    batches = unique_player_batches(players, 4, seed=0, epoch=1)
    assert all(len(set(players[batch])) == 4 for batch in batches)
    assert len(np.unique(batches)) == batches.size


@pytest.mark.parametrize(
    ("counts", "expected"), [([20] * 40, 200), ([50, 2, 2, 2, 2], 2), ([5, 5, 5, 5], 5), ([1] * 7, 1)]
)
def test_as_many_full_batches_as_the_rule_allows(counts, expected):
    assert len(unique_player_batches(_players(counts), 4, 0, 1)) == expected


def test_order_is_fresh_each_epoch_and_equal_for_equal_seeds():
    players = _players([20] * 40)
    first, again, other = (unique_player_batches(players, 32, 0, epoch) for epoch in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    meetings = {tuple(sorted(players[batch])) for batch in first}
    assert len(meetings) == len(first)


def test_more_pairs_than_players_names_the_setting():
    with pytest.raises(ValueError, match="batch_pairs is 8 but there are 3"):
        unique_player_batches(_players([4, 4, 4]), 8, 0, 1)


def test_pk_batches_hold_as_many_images_of_each_player():
    players = _players([20, 2, 9, 11, 5])
    for batch in pk_batches(players, 3, 4, 0, 1):
        assert sorted(np.unique(players[batch], return_counts=True)[1]) == [4, 4, 4]


@pytest.mark.parametrize("loss", ["infonce", "id", "triplet", "id+triplet"])
def test_an_epoch_shows_equally_many_images_under_every_loss(loss):
    labels, encoder = _players([10] * 64), SimpleNamespace(mean=(0, 0, 0), std=(1, 1, 1))
    data = epoch_batches(np.zeros((640, 8, 4, 3), np.uint8), labels, encoder, Recipe(loss=loss), 1)
    assert sum(len(data[b][2]) for b in range(len(data))) == 1280


def test_partners_are_other_images_of_the_same_player_and_all_get_their_turn():
    images = np.arange(12, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 4, 3), np.uint8)
    labels = _players([4, 4, 4])
    seen = set()
    for epoch in range(40):
        batch, _ = _ready(_epoch(images, labels, "none", epoch=epoch, mean=(0, 0, 0), std=(1, 1, 1)))
        pixels = (batch[:, 0, 0, 0] * 255).round().int().numpy()
        query, partner = pixels[:12], pixels[12:]
        assert np.array_equal(query, np.arange(12)) and (labels[query] == labels[partner]).all()
        assert (query != partner).all()
        seen |= set(zip(query.tolist(), partner.tolist(), strict=True))
    assert len(seen) == 12 * 3


def test_flip_is_shared_within_a_pair_and_not_across_pairs():
    ramp = np.tile(np.arange(6, dtype=np.uint8)[None, None, :, None], (40, 8, 1, 3))
    batch, _ = _ready(_epoch(ramp, _players([2] * 20), "flip"))
    flipped = (batch[:, 0, 0, 0] > batch[:, 0, 0, -1]).numpy()
    assert np.array_equal(flipped[:40], flipped[40:])
    assert 5 < flipped[:40].sum() < 35


@pytest.mark.parametrize("pairs", [True, False])
def test_no_two_images_of_a_batch_share_an_erased_box(pairs):
    labels = _players([2] * 32)
    images = np.full((64, 224, 112, 3), 200, np.uint8)
    # Players of two images stand four times in a batch of players × images.
    batches = np.arange(64)[None] if pairs else pk_batches(labels, 16, 4, 0, 1)
    data = _epoch(images, labels, "erasing", batches, pairs=pairs)
    _, boxes, _ = data[0]
    assert boxes.shape == (len(data.batches[0]) * (2 if pairs else 1), 2, 4) and not boxes[:, 1].any()
    boxes = boxes[:, 0]
    erased = [tuple(box) for box in boxes.tolist() if any(box)]
    assert 0.3 * len(boxes) < len(erased) < 0.7 * len(boxes)
    assert len(set(erased)) == len(erased)
    blank = (_ready(data)[0] == 0).all(dim=1).sum(dim=(1, 2))
    assert blank.tolist() == [(bottom - top) * (right - left) for top, bottom, left, right in boxes.tolist()]


def test_an_images_draws_do_not_depend_on_the_batch_it_is_in():
    images = np.random.default_rng(0).integers(0, 255, (16, 32, 16, 3), dtype=np.uint8)
    labels, order = _players([2] * 8), np.random.default_rng(1).permutation(16)
    whole, _ = _ready(_epoch(images, labels, "flip+erasing+sharpen"))
    shuffled = _epoch(images, labels, "flip+erasing+sharpen", order.reshape(4, 4))
    for b in range(4):
        assert torch.equal(_ready(shuffled, b)[0], whole[np.concatenate([order[4 * b :][:4], 16 + order[4 * b :][:4]])])


@pytest.mark.parametrize("augmentation", ["none", "jitter", "flip+erasing+sharpen", "cutout"])
def test_any_number_of_workers_gives_the_same_tensors(augmentation):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 255, (24, 24, 12, 3), dtype=np.uint8), _players([4] * 6)
    data = _epoch(images, labels, augmentation, batches=unique_player_batches(labels, 4, 0, 1))
    alone, shared = (
        [data.ready(item)[0] for item in torch.utils.data.DataLoader(data, batch_size=None, num_workers=workers)]
        for workers in (0, 2)
    )
    assert len(alone) == 6
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_each_part_changes_about_half_of_the_images_and_never_its_input(part):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 255, (64, 32, 3), dtype=np.uint8)
    kept, changed = image.copy(), 0
    for k in range(200):
        draws = np.random.default_rng([1, k])
        result, boxes = augment(image, parse_augmentation(part), draws, flip=part == "flip" and k % 2 == 0)
        changed += bool(boxes) or not np.array_equal(result, image)
    assert np.array_equal(image, kept)
    assert 70 < changed < 130


@pytest.mark.parametrize("colour", [0, 255])
def test_cutout_fills_with_the_mean_colour(colour):
    """Zero after normalisation, as published; black or white before it would be another colour."""
    images = np.full((40, 64, 32, 3), colour, np.uint8)
    batch, _ = _ready(_epoch(images, _players([2] * 20), "cutout"))
    holes = (batch == 0).all(dim=1).sum(dim=(1, 2))
    assert 20 < (holes > 0).sum() < 60 and holes.max() == 256
    expected = (torch.tensor(float(colour)) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    assert torch.allclose(batch[holes == 0][0, :, 0, 0], expected, atol=1e-5)


def test_unknown_augmentation_names_the_part():
    with pytest.raises(ValueError, match=r"unknown part 'blur'.*known: none, flip"):
        parse_augmentation("flip+blur")


def test_erased_boxes_keep_torchvisions_bounds():
    rng = np.random.default_rng(0)
    boxes = [box for _ in range(2000) if (box := draw_erasing(rng, 100, 60))]
    areas = np.array([(bottom - top) * (right - left) / 6000 for top, bottom, left, right in boxes])
    assert 850 < len(boxes) < 1050
    assert areas.min() > 0.015 and 0.25 < areas.max() < 0.345
    assert all(0 <= top < bottom <= 100 and 0 <= left < right <= 60 for top, bottom, left, right in boxes)


def test_holes_are_sixteen_pixels_at_most():
    rng = np.random.default_rng(0)
    holes = [hole for _ in range(300) if (hole := draw_cutout(rng, 64, 32))]
    sizes = {(bottom - top, right - left) for top, bottom, left, right in holes}
    assert max(sizes) == (16, 16) and min(min(size) for size in sizes) < 16


def test_sharpening_leaves_the_mean_of_a_flat_area_brightened_by_lightness():
    flat = np.full((9, 9, 3), 100, np.uint8)
    # Kernel sum: (1 − alpha) + alpha · lightness.
    assert np.array_equal(sharpen(flat, 0.4, 1.0), flat)
    assert np.array_equal(sharpen(flat, 0.4, 0.5), np.full_like(flat, 80))


def test_normalisation_by_hand_and_zero_in_the_box():
    image = np.full((1, 4, 2, 3), 51, np.uint8)
    pixels = normalise(image, MEAN, STD, np.array([[(0, 2, 0, 1), (3, 4, 0, 1)]]))
    assert torch.allclose(pixels[0, :, 3, 1], torch.tensor([(0.2 - m) / s for m, s in zip(MEAN, STD, strict=True)]))
    assert (pixels[0, :, :2, 0] == 0).all() and (pixels[0, :, :2, 1] != 0).all()
    assert (pixels[0, :, 3, 0] == 0).all() and (pixels[0, :, 2, 0] != 0).all()


def test_boxes_filled_at_once_are_those_filled_in_turn():
    rng = np.random.default_rng(0)
    boxes = [[draw_erasing(rng, 16, 8) or (0,) * 4, draw_cutout(rng, 16, 8) or (0,) * 4] for _ in range(40)]
    at_once = torch.from_numpy(rng.random((40, 16, 8, 3)))
    in_turn = at_once.clone()
    fill_boxes(at_once, torch.tensor(boxes), at_once=True)
    fill_boxes(in_turn, torch.tensor(boxes), at_once=False)
    assert torch.equal(at_once, in_turn) and 0 < (at_once == 0).double().mean() < 0.5


def test_normalisation_into_a_former_result_leaves_no_trace_of_it():
    rng = np.random.default_rng(0)
    former, image = rng.integers(0, 255, (2, 3, 6, 4, 3), dtype=np.uint8)
    out = normalise(former, MEAN, STD, np.array([[(0, 6, 0, 4)]] * 3))
    boxes = np.array([[(0, 0, 0, 0)], [(1, 2, 1, 3)], [(0, 0, 0, 0)]])
    again = normalise(image, MEAN, STD, boxes, out=out)
    assert torch.equal(again, normalise(image, MEAN, STD, boxes))
    untouched = normalise(image, MEAN, STD)
    assert torch.equal(again[0], untouched[0]) and (again[1, :, 1, 1:3] == 0).all()
    assert torch.equal(again[1, :, 2:], untouched[1, :, 2:]) and torch.equal(again[1, :, 1, 0], untouched[1, :, 1, 0])
    assert again.data_ptr() == out.data_ptr()
