"""Batches of items for passes that look at every image once: dissection, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor


def batches(
    dataset, indices: Sequence[int], batch_size: int, fields: Iterable[str]
) -> Iterator[dict[str, Tensor]]:
    """Stacked fields of the items at ``indices``, in order.

    Any data set will do, a plain list too. Items of another size than the one before start a new
    batch, so images of mixed sizes are taken one size at a time.

    Raises:
        ValueError: ``batch_size`` below 1, or an item that lacks a field.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
    fields = tuple(fields)
    fetch = getattr(dataset, "__getitems__", lambda chunk: [dataset[i] for i in chunk])
    for start in range(0, len(indices), batch_size):
        chunk = list(indices[start : start + batch_size])
        run: list[dict] = []
        for index, item in zip(chunk, fetch(chunk), strict=True):
            if missing := [name for name in fields if name not in item]:
                raise ValueError(
                    f"Item {item.get('name', index)!r} has no {', '.join(missing)}; it has "
                    f"{', '.join(item)}."
                )
            if run and item["image"].shape != run[0]["image"].shape:
                yield _stack(run, fields)
                run = []
            run.append(item)
        yield _stack(run, fields)


def _stack(items: list[dict], fields: tuple[str, ...]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(i[name]) for i in items]) for name in fields}
