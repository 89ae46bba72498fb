"""Depth hints for the pairs of any data set, computed once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..stereo import (
    BLOCKS,
    MATCHING,
    RANGES,
    RANGES_WIDTH,
    check_pair,
    disparity_to_hint,
    matched_disparity,
)
from .cache import CachedDataset
from .loading import Wrapped
from .reading import in_threads, resize_depth
from .transforms import resolve_augmentation

HINTS_VERSION = 1  # raise it when hints change


class WithHints(Wrapped):
    """A data set of pairs whose items get `hint` (1, H, W): depth in metres by
    `matched_disparity`, 0 = none.

    The hints of all items are computed before anything else, an item a thread, and kept as any
    cache is: a run that was stopped goes on where it was, processes share the work. They take two
    bytes a pixel.

    Args:
        dataset: items of one size with `image`, `right`, `focal` and `baseline`, the same at every
            access, so without augmentation; a plain list too.
        pairs: the same items in another size, to match in: at the publication's 320x1024 for
            images of 192x640, say. Small pictures are matched badly, for depth far away is less
            than a pixel of disparity. Their hints are brought to the items' size, from the pixel
            nearest to each centre. None: the items themselves.
        cache: False computes the hint of an item at each access.
        augment: as `load_dataset`'s, of items with their hint.
    """

    field = "hint"

    def __init__(
        self,
        dataset,
        *,
        pairs=None,
        cache: bool = True,
        augment: str | Callable[[dict], dict] | None = None,
    ):
        pairs = dataset if pairs is None else pairs
        if any(getattr(one, "augment", None) is not None for one in (dataset, pairs)):
            raise ValueError(
                "Hints are computed once, from pairs without augmentation. Load the data set with "
                "augment=None and give the augmentation to WithHints(…, augment=…)."
            )
        self.augment = resolve_augmentation(augment)
        super().__init__(dataset)
        first = pairs[0]
        if lacking := {"image", "right", "focal", "baseline"} - first.keys():
            raise ValueError(
                f"Depth hints need pairs with their calibration; {first.get('name', 'item 0')} has "
                f"no {', '.join(sorted(lacking))}, only {', '.join(first)}. Load 'rooms' or "
                "'streets' with baseline=0.54, 'kitti' with right=True."
            )
        check_pair(
            first["image"],
            first["right"],
            focal=first["focal"],
            baseline=first["baseline"],
            name=str(first.get("name", "item 0")),
        )
        if pairs is not dataset:
            own = dataset[0]
            names = [one.get("name") for one in (own, first)]
            if len(pairs) != len(dataset) or names[0] != names[1]:
                raise ValueError(
                    f"pairs must be the same items in another size; got {len(pairs)} beginning "
                    f"with {names[1]} for {len(dataset)} beginning with {names[0]}."
                )
            # Fields of view must agree: a hint is where its pixel is.
            views = [_view(one) for one in (own, first)]
            if (views[0] - views[1]).abs().max() > 0.02:
                own, other = ([round(x, 3) for x in view.tolist()] for view in views)
                raise ValueError(
                    "pairs show another part of the scene than the items: fx, cx, fy, cy are "
                    f"{other} of their width and height, the items' {own}. Load both without a "
                    "crop."
                )
        self._hints = _Disparities(pairs, tuple(first["image"].shape[-2:]), cache)

    def values(self, items: list[dict], indices: list[int]) -> list[Tensor]:
        found = self._hints.__getitems__(indices)
        return [_hint(item, x["disparity"]) for item, x in zip(items, found, strict=True)]

    def __getitems__(self, indices) -> list[dict]:
        items = super().__getitems__(indices)
        return items if self.augment is None else [self.augment(item) for item in items]


def _view(item: dict) -> Tensor:
    """fx and cx by the width, fy and cy by the height; without intrinsics the focal length by the
    width and the shape, for fy and cy."""
    h, w = item["image"].shape[-2:]
    if "intrinsics" not in item:
        return torch.tensor([float(item["focal"]) / w, 0.5, float(item["focal"]) / h, 0.5])
    k = item["intrinsics"]
    return torch.stack([k[0, 0] / w, k[0, 2] / w, k[1, 1] / h, k[1, 2] / h])


def _hint(item: dict, disparity: Tensor) -> Tensor:
    """(1, H, W) metres, at the item's size, of the disparity in pixels of any size."""
    h, w = item["image"].shape[-2:]
    focal = float(item["focal"]) * disparity.shape[-1] / w
    hint = disparity_to_hint(disparity, focal=focal, baseline=float(item["baseline"]))
    if hint.shape[-2:] == (h, w):
        return hint
    return torch.from_numpy(resize_depth(hint[0].numpy(), (h, w)))


class _Disparities(CachedDataset):
    """The disparity behind each hint, int16 in sixteenths of a pixel, -1 = none: exact, and half
    the size of depth."""

    def __init__(self, dataset, size: tuple[int, int], cache: bool):
        self._pairs = dataset
        super().__init__(
            key={
                "dataset": "hints",
                "version": HINTS_VERSION,
                "of": _identity(dataset) if cache else "",
                "matching": MATCHING | {"blocks": BLOCKS, "ranges": RANGES, "at": RANGES_WIDTH},
            },
            fields={"disparity": ("i2", (1, *size))},
            length=len(dataset),
            cache=cache,
        )

    def produce(self, indices: list[int]) -> Iterator[dict[str, np.ndarray]]:
        yield from in_threads(self._record_of, indices)

    def _record_of(self, index: int) -> dict[str, np.ndarray]:
        item = self._pairs[index]
        baseline = float(item["baseline"])
        if not 0 < abs(baseline) < math.inf or not 0 < float(item["focal"]) < math.inf:
            raise ValueError(
                f"{item.get('name', f'item {index}')} has baseline {baseline:g} and focal "
                f"{float(item['focal']):g}; both must be finite, the first not 0, the second "
                "above 0."
            )
        found = matched_disparity(item["image"], item["right"], reverse=baseline < 0)
        return {"disparity": found.numpy()}


def _identity(dataset) -> str:
    """What the pairs are: the cache that holds them, else their pixels and baselines."""
    folder = getattr(dataset, "cache_folder", None)
    if folder is not None:
        return folder.name
    digest = hashlib.sha256()
    for index in range(len(dataset)):
        item = dataset[index]
        for name in ("image", "right"):
            digest.update(np.ascontiguousarray(item[name].cpu()).tobytes())
        digest.update(repr(float(item["baseline"]) > 0).encode())
    return digest.hexdigest()
