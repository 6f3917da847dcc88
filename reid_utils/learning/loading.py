"""From images to the batches of a step: a data set of all epochs, one loader, and what its worker processes send."""

import mmap
from types import SimpleNamespace

import numpy as np
import torch

from reid_utils.data.batches import EpochBatches, pk_batches, unique_player_batches
from reid_utils.learning.losses import takes_pairs
from reid_utils.learning.processes import process_count, process_index

LONGEST_WAIT = 60  # seconds for a batch from a worker process


def players_and_images(recipe):
    """Players of a batch without pairs, and images of each."""
    return max(2, recipe.batch_pairs // 4), 4


def epoch_batches(images, labels, encoder, recipe, epoch, share=(0, 1)):
    """The batches of one epoch: pairs of unique players, or players × images for triplet losses without InfoNCE.

    Images whose label is −1 are not trained on; pixels are normalised by the encoder's `mean` and `std`; `share` as
    `EpochBatches` takes it.
    """
    rows, pairs = np.flatnonzero(labels >= 0), takes_pairs(recipe.loss)
    if pairs:
        batches = unique_player_batches(labels[rows], recipe.batch_pairs, recipe.seed, epoch)
    else:
        batches = pk_batches(labels[rows], *players_and_images(recipe), recipe.seed, epoch)
    return EpochBatches(images, labels, rows[batches], recipe, encoder, epoch, pairs, share)


class RunBatches:
    """The batches of all epochs of a run, as a map-style data set: item (epoch, b) is batch b of that epoch.

    Items are those of `EpochBatches` as arrays, which pass between processes through a pipe; tensors would need shared
    memory, of which containers have little. A memory-mapped image array is opened again by whoever unpickles this.
    """

    def __init__(self, images, labels, encoder, recipe):
        self.images, self.labels, self.recipe = images, labels, recipe
        self.encoder = SimpleNamespace(mean=encoder.mean, std=encoder.std)
        self.share = process_index(), process_count()
        self.current = None

    def of_epoch(self, epoch):
        """The batches of one epoch (1-based); all epochs have as many."""
        if self.current is None or self.current.epoch != epoch:
            self.current = epoch_batches(self.images, self.labels, self.encoder, self.recipe, epoch, self.share)
        return self.current

    def __getitem__(self, place):
        epoch, b = place
        return tuple(tensor.numpy() for tensor in self.of_epoch(epoch)[b])

    def __getstate__(self):
        state = {**self.__dict__, "current": None}
        if isinstance(getattr(self.images, "base", None), mmap.mmap):  # not a slice of the cache
            state["images"] = self.images.filename
        return state

    def __setstate__(self, state):
        self.__dict__ |= state
        if not isinstance(self.images, np.ndarray):
            self.images = np.load(self.images, mmap_mode="r")


def batches_of_steps(batches, first_epoch, first_step, recipe, device):
    """Yield the batches of each step to the run's end: a list of `accumulation` (images, players).

    `batches`: RunBatches. They lie ready on the device until the next step's are asked for, which take their memory.
    An epoch's last step may have fewer. The same worker processes serve all epochs. Raises RuntimeError where one
    dies or they prepare nothing for a minute.
    """
    count, several = len(batches.of_epoch(first_epoch)), recipe.accumulation
    starts = [(epoch, b) for epoch in range(first_epoch, recipe.epochs + 1) for b in range(0, count, several)]
    steps = [[(epoch, b) for b in range(start, min(start + several, count))] for epoch, start in starts[first_step:]]
    # A generator of its own: the loader's draw must not move the one that dropout uses.
    loader = torch.utils.data.DataLoader(
        batches,
        batch_sampler=steps,
        collate_fn=list,  # which a step is: nothing is to be done
        num_workers=recipe.workers,
        timeout=LONGEST_WAIT if recipe.workers else 0,
        generator=torch.Generator(),
    )
    ready, memory = batches.of_epoch(first_epoch).ready, [None] * several
    for items in loader:
        taken = []
        for item, kept in zip(items, memory, strict=False):
            tensors = [torch.from_numpy(array) for array in item]
            tensors = [tensor.pin_memory() for tensor in tensors] if device.type == "cuda" else tensors
            taken.append(ready(tensors, device, kept))
        memory[: len(taken)] = [images for images, _ in taken]
        yield taken
