"""Sparse depth samples for any data set: the input of depth completion."""

from __future__ import annotations

from numbers import Integral

import torch

from .loading import Wrapped
from .transforms import sparse_samples


class SparseSamples(Wrapped):
    """A data set whose items get `sparse_depth`: about `num_samples` pixels of their `depth`.

    See `sparse_samples` for the draw. It is made of the item as the data set gives it, so after its
    augmentation, and replaces a sparse depth that it has.

    Args:
        dataset: a length, and items by index; a plain list too.
        num_samples: an image, whatever its size: 500 are 0.7 % of 228x304 and 8 % of 64x96.
        seed: None draws anew at every access, from torch's generator, as augmentations do; a number
            fixes the samples of each index. Then the pixels of fewer samples are among those of
            more, so that numbers can be compared.
    """

    field = "sparse_depth"

    def __init__(self, dataset, num_samples: int = 500, *, seed: int | None = None):
        whole = isinstance(num_samples, Integral) and not isinstance(num_samples, bool)
        if not whole or num_samples < 0:
            raise ValueError(f"num_samples is a whole number, 0 or more; given {num_samples!r}.")
        super().__init__(dataset)
        self.num_samples, self.seed = num_samples, seed

    def values(self, items: list[dict], indices: list[int]) -> list[torch.Tensor]:
        return [self._draw(item["depth"], i) for item, i in zip(items, indices, strict=True)]

    def _draw(self, depth: torch.Tensor, index: int) -> torch.Tensor:
        generator = None
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index % len(self))
        return sparse_samples(depth, self.num_samples, generator=generator)
