"""The one loop that runs a model over a data set, and what it has to know of either.

Any `nn.Module` will do that maps `image` (b, 3, h, w), and what its `input_names` list, to depth
(b, 1, h, w) in metres; and any data set with a length that gives items by index, a list too. Models
run where they are, and get their modes back.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from .activations import evaluating
from .data.loading import batches, chunks
from .losses import post_process_disparity
from .processes import add_in_order

MIN_DEPTH = 1e-3  # metres; predictions are raised to it where one over them is taken


def device_of(model: nn.Module) -> torch.device:
    """Where a model is; the CPU for one without parameters."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def input_names(model: nn.Module) -> tuple[str, ...]:
    """What a model takes besides `image`."""
    return tuple(getattr(model, "input_names", ()))


def name_of(thing) -> str:
    """A model's or a data set's name, for titles and tables; of a `Subset` that of the whole."""
    while not hasattr(thing, "name") and hasattr(thing, "dataset"):
        thing = thing.dataset
    return str(getattr(thing, "name", type(thing).__name__))


def check_not_empty(dataset) -> None:
    if len(dataset) == 0:
        raise ValueError("The data set is empty: there is nothing to run the model on.")


def model_batches(
    model: nn.Module,
    dataset,
    *,
    batch_size: int = 16,
    fields: Iterable[str] = ("depth",),
    optional: Iterable[str] = (),
    indices: Sequence[int] | None = None,
) -> Iterator[tuple[list[str], dict[str, Tensor]]]:
    """Names and fields of a data set's items, of one size a batch, on the model's device.

    Args:
        fields: needed besides `image` and the model's own inputs.
        optional: in a batch where its items have them.
        indices: of the items; None = all.
    """
    indices = range(len(dataset)) if indices is None else indices
    fields = ("image", *fields, *input_names(model))
    device = device_of(model)
    for names, batch in batches(dataset, indices, batch_size, fields, optional=optional):
        yield names, {key: value.to(device, non_blocking=True) for key, value in batch.items()}


def inputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model takes of a batch besides `image`."""
    return {name: batch[name] for name in input_names(model)}


def forward(model: nn.Module, batch: Mapping[str, Tensor], *, post_process: bool = False) -> Tensor:
    """Depth (b, 1, h, w) of a batch, in the mode that the model is in.

    Args:
        post_process: run the mirrored batch too, and take `post_process_disparity` of both
            disparities, 1 / depth. Predictions below 1 mm count as 1 mm then.
    """
    inputs = inputs_of(model, batch)
    depth = model(batch["image"], **inputs)
    if not post_process:
        return depth
    inputs = {name: x.flip(-1) if x.ndim == 4 else x for name, x in inputs.items()}
    mirrored = model(batch["image"].flip(-1), **inputs).flip(-1)
    depth, mirrored = (x.clamp(min=MIN_DEPTH) for x in (depth, mirrored))
    return 1 / post_process_disparity(1 / depth, 1 / mirrored)


def predict(
    model: nn.Module, items, *, batch_size: int = 16, post_process: bool = False
) -> Tensor | list[Tensor]:
    """Depth (1, h, w) in metres, at the model's own resolution, of an item; of a data set a list.

    Args:
        items: an item, a dict with `image` (3, h, w), or a data set of such.
        post_process: as in `forward`.

    Returns:
        float32 on the CPU.
    """
    if isinstance(items, Mapping):
        return predict(model, [items], post_process=post_process)[0]
    with evaluating(model):
        return [
            depth
            for _, batch in model_batches(model, items, batch_size=batch_size, fields=())
            for depth in forward(model, batch, post_process=post_process).float().cpu()
        ]


def sum_over(
    model: nn.Module,
    dataset,
    measure: Callable[[list[str], dict[str, Tensor]], Mapping[Hashable, Tensor]],
    *,
    batch_size: int = 16,
    fields: Iterable[str] = ("depth",),
    optional: Iterable[str] = (),
    desc: str | None = None,
) -> dict[Hashable, Tensor]:
    """What `measure(names, batch)` gives of all batches, added up by key, in evaluation mode.

    Where `torch.distributed` is initialised its processes share the batches, and each gets the
    whole result, the same as one process alone would. One that fails tells the others.

    Args:
        measure: of one batch of `model_batches`; it runs the model itself, see `forward`.
        fields, optional: as in `model_batches`.
        desc: title of a progress bar; None = no bar.
    """
    check_not_empty(dataset)

    def work(chunk: range) -> Iterator[Mapping[Hashable, Tensor]]:
        options = {"fields": fields, "optional": optional, "indices": chunk}
        for names, batch in model_batches(model, dataset, batch_size=batch_size, **options):
            yield measure(names, batch)

    with evaluating(model):
        return add_in_order(work, chunks(len(dataset), batch_size), desc=desc)
