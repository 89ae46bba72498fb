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
        num_samples: an image, whatever its size: 500 are 0.7 % of 228x304 and 8 % of 64x96. A pair
            (low, high) draws each image's number between them, evenly on a logarithmic scale: for a
            network that is to take any density.
        seed: None draws anew at every access, from torch's generator, as augmentations do; a number
            fixes the samples of each index. Then the pixels of fewer samples are among those of
            more, so that numbers can be compared.
    """

    field = "sparse_depth"

    def __init__(
        self, dataset, num_samples: int | tuple[int, int] = 500, *, seed: int | None = None
    ):
        span = num_samples if isinstance(num_samples, (tuple, list)) else (num_samples,) * 2
        whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in span)
        ranged = span is num_samples
        if len(span) != 2 or not whole or not int(ranged) <= span[0] <= span[1]:
            raise ValueError(
                "num_samples is a whole number, 0 or more, or a pair (low, high) of them, 1 or "
                f"more; given {num_samples!r}."
            )
        super().__init__(dataset)
        self.num_samples, self.seed = (tuple(span) if ranged else num_samples), seed

    def values(self, items: list[dict], indices: list[int]) -> list[torch.Tensor]:
        return [self._draw(item["depth"], i) for item, i in zip(items, indices, strict=True)]

    def _draw(self, depth: torch.Tensor, index: int) -> torch.Tensor:
        generator = None
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + index % len(self))
        count = self.num_samples
        if isinstance(count, tuple):
            low, high = count
            count = round(low * (high / low) ** torch.rand((), generator=generator).item())
        return sparse_samples(depth, count, generator=generator)
