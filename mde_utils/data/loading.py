"""Batches of items for passes that look at every image once: dissection, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


def chunks(length: int, batch_size: int) -> list[range]:
    """The indices of a data set, ``batch_size`` at a time; the last may be shorter.

    Raises:
        ValueError: ``batch_size`` below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
    return [range(i, min(i + batch_size, length)) for i in range(0, length, batch_size)]


def batches(
    dataset,
    indices: Sequence[int],
    batch_size: int,
    fields: Iterable[str],
    *,
    optional: Iterable[str] = (),
) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Names and stacked fields of the items at ``indices``, in order.

    Any data set will do, a plain list too. A batch ends early where the sizes change, so images of
    mixed sizes are taken one size at a time. ``optional`` fields are in a batch where its items
    have them; it ends where they begin or cease to.

    Raises:
        ValueError: ``batch_size`` below 1, an item that lacks a field, or depth not (1, h, w).
    """
    fields, optional = tuple(fields), tuple(optional)
    fetch = getattr(dataset, "__getitems__", None) or (lambda ids: [dataset[i] for i in ids])
    for positions in chunks(len(indices), batch_size):
        chunk = list(indices[positions.start : positions.stop])
        items = fetch(chunk)
        names: list[str] = []
        run: list[dict[str, Tensor]] = []
        for index, item in zip(chunk, items, strict=True):
            name = str(item.get("name", f"image {index}"))
            if missing := [field for field in fields if field not in item]:
                raise ValueError(f"{name} has no {missing[0]!r}; it has {', '.join(item)}.")
            present = (*fields, *(field for field in optional if field in item))
            tensors = {field: torch.as_tensor(item[field]) for field in present}
            if "depth" in tensors and (tensors["depth"].ndim != 3 or len(tensors["depth"]) != 1):
                shape = tuple(tensors["depth"].shape)
                raise ValueError(f"The depth of {name} must be (1, h, w), got {shape}.")
            shapes = {field: value.shape for field, value in tensors.items()}
            if run and {field: value.shape for field, value in run[0].items()} != shapes:
                yield names, _stack(run, {})
                names, run = [], []
            names.append(name)
            run.append(tensors)
        # What a CachedDataset has read as one batch is one already.
        whole = (getattr(items, "stacked", None) or {}) if len(run) == len(items) else {}
        yield names, _stack(run, whole)


def _stack(run: list[dict[str, Tensor]], whole: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        field: whole[field] if field in whole else torch.stack([t[field] for t in run])
        for field in run[0]
    }
