"""Sparse depth samples for any data set: the input of depth completion."""

from __future__ import annotations

import operator
from numbers import Integral

import torch
from torch.utils.data import Dataset

from .cache import Batch
from .transforms import sparse_samples


class SparseSamples(Dataset):
    """A data set whose items get `sparse_depth`: about `num_samples` pixels of their `depth`.

    See `sparse_samples` for the draw. It is made of the item as the data set gives it, so after its
    augmentation, and replaces a sparse depth that it has.

    Args:
        dataset: a length, and items by index; a plain list too.
        num_samples: an image, whatever its size: 500 are 0.7 % of 228x304 and 8 % of 64x96.
        seed: None draws anew at every access, from torch's generator, as augmentations do; a number
            fixes the samples of each index. Then the pixels of fewer samples are among those of
            more, so that numbers can be compared.

    Any other attribute is the data set's (`name`, `depth_range`, `extras`, …).
    """

    def __init__(self, dataset, num_samples: int = 500, *, seed: int | None = None):
        whole = isinstance(num_samples, Integral) and not isinstance(num_samples, bool)
        if not whole or num_samples < 0:
            raise ValueError(f"num_samples is a whole number, 0 or more; given {num_samples!r}.")
        self.dataset, self.num_samples, self.seed = dataset, num_samples, seed

    def __getattr__(self, name: str):
        if name.startswith("__") or name == "dataset":  # asked for before __init__, by pickle
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index) -> dict:
        item = self.dataset[index]
        return {**item, "sparse_depth": self._draw(item["depth"], index)}

    def __getitems__(self, indices) -> list[dict]:
        fetch = getattr(self.dataset, "__getitems__", None)
        items = fetch(indices) if fetch else [self.dataset[index] for index in indices]
        drawn = [self._draw(item["depth"], i) for item, i in zip(items, indices, strict=True)]
        whole = getattr(items, "stacked", None)
        if whole is not None:
            whole = {**whole, "sparse_depth": torch.stack(drawn)}
            drawn = whole["sparse_depth"].unbind()
        batch = Batch(
            {**item, "sparse_depth": sparse} for item, sparse in zip(items, drawn, strict=True)
        )
        batch.stacked = whole
        return batch

    def _draw(self, depth: torch.Tensor, index) -> torch.Tensor:
        generator = None
        if self.seed is not None:
            place = operator.index(index) % len(self)
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        return sparse_samples(depth, self.num_samples, generator=generator)
