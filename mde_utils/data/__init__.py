"""Data sets under one contract.

A data set is anything with a length that yields items by index. An item is a dict: `image`
(3, H, W) RGB in [0, 1] and `depth` (1, H, W) in metres, always (0, as well as negative and NaN, =
no measurement); where the data set has them `right` (3, H, W), `intrinsics` (3, 3) in pixels,
`baseline` in metres, `focal` in pixels, `sparse_depth` (1, H, W), `normal` (3, H, W) unit vectors
in the camera frame, `label` (H, W) int64, and `name`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch.utils.data import Dataset

from .cache import CachedDataset, cache_root, collate
from .transforms import AUGMENTATIONS, unknown

__all__ = ["AUGMENTATIONS", "DATASETS", "CachedDataset", "cache_root", "collate", "load_dataset"]

# Name → module and class. Imported when asked for, so that one data set's needs are not another's.
DATASETS = {"rooms": ("rooms", "Rooms"), "nyu": ("nyu", "NYU")}


def load_dataset(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    augment: str | Callable[[dict], dict] | None = None,
    cache: bool = True,
    **options,
) -> Dataset:
    """A map-style data set of items as in this package's docstring.

    name: "rooms" (rendered, needs no data) or "nyu".
    split: "train", "val" or "test".
    root: the folder with the data, where there are any.
    size: (H, W); None is the data set's own size.
    limit: at most so many items; how they are chosen is said by the data set.
    augment: None, "meter", "mff" or a callable item → item. It is drawn anew at every access.
    cache: keep decoded records in `cache_root()`.
    options: the data set's own, for example `baseline` of "rooms" or `raw` of "nyu".

    Raises ValueError for an unknown data set or split and other bad arguments, TypeError for an
    unknown option, FileNotFoundError where there are no data.
    """
    if name not in DATASETS:
        raise ValueError(unknown("data set", name, DATASETS))
    module, kind = DATASETS[name]
    dataset = getattr(import_module(f".{module}", __package__), kind)
    arguments = {"root": root, "limit": limit, "augment": augment, "cache": cache, **options}
    if size is not None:
        arguments["size"] = size
    allowed = [*inspect.signature(dataset).parameters]
    for option in arguments:
        if option not in allowed or option == "split":
            raise TypeError(unknown(f"option of {name!r}", option, sorted({*allowed} - {"split"})))
    return dataset(split, **arguments)
