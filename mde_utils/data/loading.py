"""From items to batches: what data sets give, what wraps them, and passes over them share."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class Batch(list):
    """Items whose stored tensors are views of one batch, `stacked`: name → (n, …)."""

    stacked: dict[str, Tensor] | None = None


def collate(items: list[dict]) -> dict:
    """`default_collate`, but what a CachedDataset has read as one batch is not copied again.

    That second copy would take twice the time of reading. For any other list of items, from any
    data set, the result is that of `default_collate`. Use: `DataLoader(…, collate_fn=collate)`.
    """
    stacked = getattr(items, "stacked", None) or {}
    return stacked | default_collate(
        [{name: value for name, value in item.items() if name not in stacked} for item in items]
    )


def fetch(dataset, indices: Sequence[int]) -> list[dict]:
    """The items at `indices`, read as one batch where the data set can; a list will do."""
    together = getattr(dataset, "__getitems__", None)
    return together(indices) if together else [dataset[index] for index in indices]


class Wrapped(Dataset):
    """A data set whose items get a field more, or another one in its place.

    A subclass names the `field` and says what its `values` are. Any other attribute is the wrapped
    data set's (`name`, `depth_range`, `extras`, …).
    """

    field: str

    def __init__(self, dataset):
        self.dataset = dataset

    def values(self, items: list[dict], indices: list[int]) -> list[Tensor]:
        """The field of each item, all of one shape."""
        raise NotImplementedError(f"{type(self).__name__} must define values(items, indices)")

    def __getattr__(self, name: str):
        # Asked for before __init__, by pickle; the wrapped one's batches would lack the field.
        if name.startswith("__") or name in ("dataset", "seeded_batch"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices) -> list[dict]:
        indices = [operator.index(index) for index in indices]
        items = fetch(self.dataset, indices)
        values = self.values(items, indices)
        whole = getattr(items, "stacked", None)
        if whole is not None:
            whole = {**whole, self.field: torch.stack(values)}
            values = whole[self.field].unbind()
        batch = Batch(
            {**item, self.field: value} for item, value in zip(items, values, strict=True)
        )
        batch.stacked = whole
        return batch


def chunks(length: int, batch_size: int) -> list[range]:
    """The indices of a data set, `batch_size` at a time; the last may be shorter."""
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
    """Names and stacked fields of the items at `indices`, in order.

    Any data set will do, a plain list too. A batch ends early where the sizes change, so images of
    mixed sizes are taken one size at a time. `optional` fields are in a batch where its items have
    them; it ends where they begin or cease to.
    """
    fields, optional = tuple(fields), tuple(optional)
    for positions in chunks(len(indices), batch_size):
        chunk = list(indices[positions.start : positions.stop])
        items = fetch(dataset, chunk)
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
