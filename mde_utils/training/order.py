"""In which order a training reads its items, and what they draw, by the seed alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Dataset

from mde_utils.data import CachedDataset
from mde_utils.training.config import TrainConfig


class Items(Dataset):
    """Items by (epoch, index), whose random augmentation depends on these and the seed alone.

    So it is the same in whichever process or worker, and after whatever interruption, an item is
    made; and the global generators are left as they were.
    """

    def __init__(self, dataset, seed: int):
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, keys: list[tuple[int, int]]) -> list[dict]:
        if hasattr(self.dataset, "seeded_batch"):  # one that augments a batch at once
            seed = self._seed(*keys[0])
            return self.dataset.seeded_batch([index for _, index in keys], seed=seed)
        if isinstance(self.dataset, CachedDataset) and self.dataset.augment is None:
            # Nothing is drawn, and a batch is one read.
            return self.dataset.__getitems__([index for _, index in keys])
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            return [self._seeded(*key) for key in keys]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def _seed(self, epoch: int, index: int) -> int:
        return ((self.seed * 1_000_003 + epoch) * 1_000_003 + index) % 2**32

    def _seeded(self, epoch: int, index: int) -> dict:
        seed = self._seed(epoch, index)
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU's too
        return self.dataset[index]


class Batches:
    """Sampler: the lists of (epoch, index) that one process takes of an epoch's batches."""

    def __init__(self, images: int, config: TrainConfig, rank: int, world: int):
        self.images, self.size, self.seed = images, config.batch_size, config.seed
        self.rank, self.world = rank, world
        self.epoch = self.position = 0
        if min(images, self.size) < world:
            raise ValueError(
                f"A batch of {min(images, self.size)} images cannot be shared by {world} "
                "processes: raise batch_size (it counts all processes together), or start fewer."
            )

    def __len__(self) -> int:
        # A last batch of a few images would put noise into batch normalisation.
        return max(1, self.images // self.size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        generator = torch.Generator().manual_seed(self.seed * 100_003 + self.epoch)
        order = torch.randperm(self.images, generator=generator).tolist()
        for k in range(self.position, len(self)):
            batch = order[k * self.size : (k + 1) * self.size]
            yield [(self.epoch, index) for index in batch[self.rank :: self.world]]
