"""Data sets under one contract.

A data set is anything with a length that yields items by index. An item is a dict: `image`
(3, H, W) RGB in [0, 1] and `depth` (1, H, W) in metres, always (0, as well as negative and NaN, =
no measurement); where the data set has them `right` (3, H, W), `intrinsics` (3, 3) in pixels,
`baseline` in metres, `focal` in pixels, `sparse_depth` (1, H, W), `normal` (3, H, W) unit vectors
in the camera frame, `label` (H, W) int64, `hint` (1, H, W) depth in metres by matching, 0 = none,
`frame` (4,), and `name`. `frame` is there where an item is a window of a larger frame: top, left,
height and width in the item's pixels, so that the item begins at (top, left) of a full frame of
this height and width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch.utils.data import Dataset

from ..checks import unknown
from .cache import CachedDataset, cache_root
from .hints import WithHints
from .loading import collate
from .sparse import SparseSamples
from .transforms import AUGMENTATIONS

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "CachedDataset",
    "SparseSamples",
    "WithHints",
    "cache_root",
    "collate",
    "load_dataset",
    "source_options",
]

# Name → module and class. Imported when asked for, so that one data set's needs are not another's.
DATASETS = {
    "rooms": ("rendered", "Rooms"),
    "streets": ("rendered", "Streets"),
    "nyu": ("nyu", "NYU"),
    "kitti": ("kitti", "KITTI"),
    "folder": ("folder", "Folder"),
}


def load_dataset(
    name: str,
    split: str,
    *,
    root: str | Path | None = None,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    augment: str | Callable[[dict], dict] | None = None,
    sparse_samples: int | tuple[int, int] | None = None,
    hints: bool | tuple[int, int] = False,
    cache: bool = True,
    **options,
) -> Dataset:
    """A map-style data set of items as in this package's docstring.

    name: "rooms", "streets" (rendered, need no data), "nyu", "kitti", or "folder" (your own).
    split: "train", "val" or "test".
    root: the folder with the data, where there are any.
    size: (H, W); None is the data set's own size.
    limit: at most so many items; how they are chosen is said by the data set.
    augment: None, a key of AUGMENTATIONS or a callable item → item. It is drawn anew at every
        access.
    sparse_samples: give items `sparse_depth`, about so many pixels of their (augmented) depth:
        drawn anew at every access in "train", else fixed (see `SparseSamples`).
    hints: give the items of pairs `hint` (see `WithHints`), matched at their own size, or, given
        (H, W), at that.
    cache: keep decoded records, and hints, in `cache_root()`.
    options: the data set's own, for example `raw` of "nyu", or `depth_unit` of "folder".

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
    if hints:
        loaded = dataset(split, **{**arguments, "augment": None})
        pairs = None
        if hints is not True:
            pairs = dataset(split, **{**arguments, "augment": None, "size": tuple(hints)})
        loaded = WithHints(loaded, pairs=pairs, cache=cache, augment=augment)
    else:
        loaded = dataset(split, **arguments)
    if sparse_samples is None:
        return loaded
    return SparseSamples(loaded, sparse_samples, seed=None if split == "train" else 0)


def source_options(name: str, root: str | Path | None = None, download: bool = False) -> dict:
    """Options of `load_dataset` for images and their depth: of rendered data no more than these;
    of others, where they lie (`root`), and for NYU whether to fetch them (`download`)."""
    if name in ("rooms", "streets"):
        return {"fields": ["image", "depth"]}
    return {"root": root or None} | ({"download": download} if name == "nyu" else {})
