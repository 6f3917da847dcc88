"""Which images meet in a batch, and the batch itself; everything follows from (seed, epoch, image)."""

import numpy as np

from reid_utils.data.images import augment, normalise, parse_augmentation

# Keeps the generators of the order and of the images apart.
_ORDER, _IMAGE = 1, 2


def _images_of(players):
    """The images of each player: int64 indices, an array each."""
    return [np.flatnonzero(players == player) for player in np.unique(players)]


def unique_player_batches(players, batch_pairs, seed, epoch):
    """Batches of query images in which no player occurs twice, in a fresh order each epoch.

    `players` (N,) int, one an image. Returns an (n_batches, batch_pairs) int64 array of image indices: as many full
    batches as the rule allows, no image twice. Raises ValueError with fewer players than `batch_pairs`.
    Source: the published code's sampler (every training image a query once an epoch, last batch dropped).
    """
    rng = np.random.default_rng([_ORDER, seed, epoch])
    members = _images_of(players)
    if len(members) < batch_pairs:
        raise ValueError(
            f"batch_pairs is {batch_pairs} but there are {len(members)} training players; lower batch_pairs"
        )
    pools = [rng.permutation(images) for images in members]
    left = np.array([len(pool) for pool in pools])
    n_batches = _most_full_batches(left, batch_pairs)
    left = _drop_surplus(np.minimum(left, n_batches), n_batches * batch_pairs, rng)
    batches = np.empty((n_batches, batch_pairs), np.int64)
    for b in range(n_batches):
        chosen = _draw_players(left, batch_pairs, must=left == n_batches - b, rng=rng)
        left[chosen] -= 1
        batches[b] = [pools[p][left[p]] for p in chosen]
    return batches


def _most_full_batches(counts, batch_pairs):
    # B batches can be filled exactly when the players, giving at most B images each, have B · batch_pairs images.
    candidates = np.arange(counts.sum() // batch_pairs + 1)
    supply = np.minimum(counts[None, :], candidates[:, None]).sum(axis=1)
    return int(candidates[supply >= candidates * batch_pairs].max())


def _drop_surplus(counts, wanted, rng):
    owners = np.repeat(np.arange(len(counts)), counts)
    kept = rng.permutation(owners)[:wanted]
    return np.bincount(kept, minlength=len(counts))


def _draw_players(left, size, must, rng):
    # Weighted by what is left of each player; those that need a place in every remaining batch come first.
    keys = np.where(left > 0, rng.random(len(left)) ** (1 / np.maximum(left, 1)), -1.0)
    keys[must & (left > 0)] = 2.0
    return np.argsort(-keys, kind="stable")[:size]


def pk_batches(players, n_players, n_images, seed, epoch):
    """Batches of `n_players` players with `n_images` images each, for the triplet loss.

    Returns an (n_batches, n_players · n_images) int64 array; a player with too few images repeats some. An epoch shows
    as many images as one of pairs does, about two for each that there is, so that equal epochs are equal work for every
    loss. Raises ValueError with fewer players than `n_players`.
    """
    rng = np.random.default_rng([_ORDER, seed, epoch])
    members = _images_of(players)
    if len(members) < n_players:
        raise ValueError(f"triplet batches need {n_players} players but there are {len(members)}; lower n_players")
    batches = []
    for _ in range(max(1, 2 * len(players) // (n_players * n_images))):
        drawn = (members[p] for p in rng.choice(len(members), n_players, replace=False))
        batches.append([rng.choice(images, n_images, replace=len(images) < n_images) for images in drawn])
    return np.reshape(batches, (-1, n_players * n_images))


class EpochBatches:
    """The batches of one epoch, as a map-style data set: item b is what batch b is made of.

    `images` (N, h, w, 3) uint8, `labels` (N,) int64; of `recipe` seed and augmentation are taken, of `encoder` mean and
    std. An item holds tensors: images (n, h, w, 3) uint8, boxes to fill (n, 2, 4) int64 (zeros for none) and labels
    (n,) int64; bytes pass quickly between processes, and `ready` turns them
    into what an encoder takes. With `pairs` the queries come first, then their partners in the same order; without, the
    images of `batches` alone. `share` (k, n): the images of part k of n of each batch alone, and the labels of all of
    it. Every draw follows from (seed, epoch, image index), with the place in the epoch where an image may recur, so any
    number of workers gives the same tensors.
    """

    def __init__(self, images, labels, batches, recipe, encoder, epoch, pairs=True, share=(0, 1)):
        self.images, self.labels, self.batches, self.recipe, self.encoder = images, labels, batches, recipe, encoder
        self.epoch, self.pairs, self.share = epoch, pairs, share
        if batches.shape[1] % share[1]:
            raise ValueError(f"{batches.shape[1]} draws a batch cannot be shared by {share[1]} processes alike")

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, b):
        import torch

        batch, (part, parts) = self.batches[b], self.share
        places = np.split(np.arange(len(batch)), parts)[part]
        drawn = [self._draw(int(batch[k]), () if self.pairs else (b, k)) for k in places]
        images, boxes = zip(*(member for side in zip(*drawn, strict=True) for member in side), strict=True)
        boxes = np.array([(of_image + [(0, 0, 0, 0)] * 2)[:2] for of_image in boxes])
        labels = np.tile(self.labels[batch], 2 if self.pairs else 1)
        return tuple(map(torch.from_numpy, (np.stack(images), boxes, labels)))

    def ready(self, item, device="cpu", out=None):
        """(images (n, 3, h, w) float32, labels (n,)) of an item, normalised and erased on a device; `out` as there."""
        images, boxes, labels = item
        images = images.to(device, non_blocking=True)
        return normalise(images, self.encoder.mean, self.encoder.std, boxes, out), labels.to(device, non_blocking=True)

    def _draw(self, index, where):
        rng = np.random.default_rng([_IMAGE, self.recipe.seed, self.epoch, index, *where])
        others = np.flatnonzero(self.labels == self.labels[index])
        partner = others[(np.searchsorted(others, index) + 1 + rng.integers(max(1, len(others) - 1))) % len(others)]
        parts = parse_augmentation(self.recipe.augmentation)
        flip = "flip" in parts and rng.random() < 0.5
        return [augment(self.images[i], parts, rng, flip) for i in ((index, partner) if self.pairs else (index,))]
