"""What a network computes behind some of its layers, recorded once and run alone from then on.

Ablation, correction and the explorer ask a network for the same image again and again, with other
values in one layer each time. Here the part before that layer runs once.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from mde_utils.activations import check_map, edit

Edits = Mapping[str, Callable[[Tensor], Tensor]]


class Unrecordable(RuntimeError):
    """The network does what cannot be run again without its Python code."""


class _Slot(NamedTuple):
    """A value of the recording that depends on the edited layers."""

    number: int


@dataclass(eq=False)
class _Step:
    """One operation: what it takes (values or slots, flattened) and the slots that it fills."""

    function: Callable | str  # of torch, or the layer whose edit this is
    inputs: list
    spec: object
    outputs: list[int | None]
    writes: bool = False  # changes an input in place
    value: Tensor | None = None  # what it gave without edits, of an updatable convolution


class Remainder(TorchDispatchMode):
    """What a network computes behind edited layers, recorded in one forward and run alone after.

    Every operation of torch that takes a value depending on a layer's output is recorded; all the
    others have run, and only those of their results that a recorded operation takes are kept. So
    for any network, and for layers that feed each other, `run(edits)` is what the network gives
    inside `edit(model, edits)`, by the same operations in the same order.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str], image: Tensor, inputs: Mapping):
        super().__init__()
        self.steps: list[_Step] = []
        self.slots: dict[int, int] = {}  # id of a tensor → its slot
        self.alive: list[Tensor] = []  # so that no id or storage is used twice
        self.versions: list[tuple[Tensor, int]] = []
        self.changed: set[int] = set()  # storages written to in place
        self.raw: dict[str, Tensor] = {}  # layer → its output, where no other edit is before it
        self.count = 0
        self.paused = False
        seen: list[str] = []

        def source(layer: str, act: Tensor) -> Tensor:
            if layer in seen:
                raise ValueError(
                    f"Layer {layer!r} runs more than once in a forward; choose a module that runs "
                    "once."
                )
            check_map(layer, act)
            seen.append(layer)
            self.paused = True
            out = act.clone()
            self.paused = False
            if id(act) not in self.slots:
                self.raw[layer] = act
            self._note(layer, (act,), {}, (out,))
            return out

        with edit(model, {layer: partial(source, layer) for layer in layers}), self:
            pred = model(image, **inputs)
        if missing := [layer for layer in layers if layer not in seen]:
            raise ValueError(f"Layer {missing[0]!r} is never called in a forward of the model.")
        if not isinstance(pred, Tensor) or id(pred) not in self.slots:
            raise Unrecordable("its output is no tensor that depends on the layers")
        if any(tensor._version != version for tensor, version in self.versions):
            raise Unrecordable("it changes in place what the rest of it needs")
        self.out = self.slots[id(pred)]
        self.convolutions = self._updatable()
        self.plans: dict[frozenset, list] = {}
        outputs = {k for step, *_ in self.convolutions for k in step.outputs}
        for step in self.steps:
            if not outputs.intersection(step.outputs):
                step.value = None
        self.slots, self.alive, self.versions = {}, [], []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        flat, _ = tree_flatten((args, kwargs))
        if not self.paused and any(isinstance(x, Tensor) and id(x) in self.slots for x in flat):
            if {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(
                function.tags
            ):
                raise Unrecordable(f"it decides by values ({function})")
            self._note(function, args, kwargs, result)
        return result

    def _note(self, function, args, kwargs, result) -> None:
        flat, spec = tree_flatten((args, kwargs))
        step = _Step(function, [], spec, [])
        if not isinstance(function, str):
            for written in _written(function, args, kwargs):
                if id(written) not in self.slots:
                    raise Unrecordable(f"it writes into a fixed tensor ({function})")
                step.writes = True
                self.changed.add(_storage(written))
        for x in flat:
            if isinstance(x, Tensor) and id(x) in self.slots:
                step.inputs.append(_Slot(self.slots[id(x)]))
                continue
            if isinstance(x, Tensor):
                self.versions.append((x, x._version))
            step.inputs.append(x)
        for x in tree_flatten(result)[0]:
            if isinstance(x, Tensor):
                self.slots[id(x)] = self.count
                step.outputs.append(self.count)
                self.alive.append(x)
                self.count += 1
                step.value = x
            elif x is None:
                step.outputs.append(None)
            else:
                raise Unrecordable(f"it decides by values ({function})")
        self.steps.append(step)

    def run(self, edits: Edits, given: Mapping[int, Tensor] | None = None) -> Tensor:
        """The network's output with edits; `given` has values of slots that need no computing."""
        given = given or {}
        values: dict[int, Tensor] = dict(given)
        key = frozenset(given)
        if key not in self.plans:
            self.plans[key] = self._plan(key)
        # Casts were recorded as the operations that they are.
        with torch.no_grad(), torch.autocast(self._device_type(), enabled=False):
            for step, last in self.plans[key]:
                inputs = [values[x.number] if isinstance(x, _Slot) else x for x in step.inputs]
                args, kwargs = tree_unflatten(inputs, step.spec)
                if isinstance(step.function, str):
                    fn = edits.get(step.function)
                    # A copy, as in the recording: operations in place may follow.
                    result = args[0].clone() if fn is None else fn(args[0])
                else:
                    result = step.function(*args, **kwargs)
                for number, x in zip(step.outputs, tree_flatten(result)[0], strict=True):
                    if number is not None:
                        values[number] = x
                del inputs, args, kwargs, result
                for number in last:
                    values.pop(number, None)
        return values[self.out]

    def _device_type(self) -> str:
        return next(iter(self.raw.values())).device.type

    def _plan(self, given: frozenset[int]) -> list[tuple[_Step, list[int]]]:
        """The steps that the output needs, and after each the slots of which it was the last."""
        needed, plan, used = {self.out}, [], {self.out}
        for step in reversed(self.steps):
            if not (step.writes or needed.intersection(step.outputs) - given):
                continue
            takes = {x.number for x in step.inputs if isinstance(x, _Slot)}
            needed |= takes
            touched = takes | {k for k in step.outputs if k is not None}
            plan.append((step, list(touched - used)))
            used |= touched
        return plan[::-1]

    def _updatable(self) -> list[tuple[_Step, dict[tuple[str, int], list[int]], list]]:
        """Convolutions that edited units enter directly, or through a concatenation of channels.

        They are linear: what a removed unit gave can be subtracted. A step, (layer, unit) → its
        input channels, and the convolution's arguments.
        """
        source: dict[int, list] = {}  # slot → for each channel (layer, unit) or None
        found = []
        for step in self.steps:
            if step.writes or len(step.outputs) != 1:
                continue
            out = step.outputs[0]
            if _storage(step.value) in self.changed:
                continue
            args, kwargs = tree_unflatten(step.inputs, step.spec)
            if isinstance(step.function, str):
                if step.function in self.raw:
                    source[out] = [(step.function, k) for k in range(step.value.shape[1])]
            elif step.function is torch.ops.aten.cat.default:
                dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
                parts = [
                    source.get(x.number) if isinstance(x, _Slot) else [None] * x.shape[1]
                    for x in (args[0] if dim in (1, -3) and step.value.ndim == 4 else ())
                ]
                if parts and all(part is not None for part in parts):
                    source[out] = [channel for part in parts for channel in part]
            elif step.function is torch.ops.aten.convolution.default:
                x, weight, _, *_, transposed, _, groups = args
                fixed = not any(isinstance(arg, _Slot) for arg in args[1:])
                exact = step.value.dtype in (torch.float32, torch.float64)
                if not (isinstance(x, _Slot) and x.number in source):
                    continue
                if fixed and exact and not transposed and groups == 1:
                    channels = defaultdict(list)
                    for c, unit in enumerate(source[x.number]):
                        if unit is not None:
                            channels[unit].append(c)
                    found.append((step, dict(channels), args))
        return found


class WholeNetwork:
    """In place of a `Remainder` where a network cannot be recorded: all of it runs."""

    convolutions = ()

    def __init__(self, model: nn.Module, image: Tensor, inputs: Mapping):
        self.model, self.image, self.inputs = model, image, inputs
        self.raw: dict[str, Tensor] = {}

    def run(self, edits: Edits, given: Mapping | None = None) -> Tensor:
        if not edits:
            return self.model(self.image, **self.inputs)
        with edit(self.model, edits):
            return self.model(self.image, **self.inputs)


class Recorder:
    """Records one network behind the same layers for one image after another.

    The first recording is compared with the whole network, edited. Where a network cannot be
    recorded, or its recording gives something else, that is said once and all of it runs.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str]):
        self.model, self.layers = model, list(layers)
        self.checked, self.usable = False, True

    def __call__(
        self,
        image: Tensor,
        inputs: Mapping,
        probe: Callable[[Remainder | WholeNetwork], Tensor] | None = None,
    ) -> Remainder | WholeNetwork:
        """What the network computes behind the layers for a batch; in evaluation mode, without
        gradient. `probe`: what is compared; by default the output with the layers halved."""
        whole = WholeNetwork(self.model, image, inputs)
        if not self.usable:
            return whole
        try:
            rest = Remainder(self.model, self.layers, image, inputs)
        except Unrecordable as reason:
            return self._give_up(whole, str(reason))
        if self.checked:
            return rest
        self.checked = True
        probe = probe or (lambda rest: rest.run({k: lambda act: act * 0.5 for k in self.layers}))
        found, expected = probe(rest), probe(whole)
        # Reduced-precision products (TF32) stay within this; a part that was missed does not.
        near = 1e-3 * expected.abs().max()
        if found.shape == expected.shape and bool(((found - expected).abs() <= near).all()):
            return rest
        return self._give_up(whole, "run alone, the recorded part gives something else")

    def _give_up(self, whole: WholeNetwork, reason: str) -> WholeNetwork:
        self.usable = False
        warnings.warn(
            f"The part of {type(self.model).__name__} behind {', '.join(self.layers)} cannot be "
            f"run alone: {reason}. The whole network runs at every step, with the same result, "
            "but slower.",
            stacklevel=3,
        )
        return whole


def _written(function, args, kwargs) -> Iterator[Tensor]:
    """The arguments that an operation changes in place."""
    for i, argument in enumerate(function._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from (x for x in tree_flatten(value)[0] if isinstance(x, Tensor))


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata
