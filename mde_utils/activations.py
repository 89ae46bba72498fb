"""Tap and edit named layers of any `nn.Module` by forward hooks.

A layer is a tap name that the model declares (`model.taps`, the publication's names) or any
module path (`"encoder.mv2.3"`). Both context managers remove their hooks whatever happens.

A model may say how the tokens of its transformer layers lie, `model.grids` (layer → grid, see
`tap`): then these layers are maps (B, C, h, w) wherever layers are tapped or edited.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The module behind a tap name or module path; an unknown one is refused with near matches."""
    taps: dict[str, str] = getattr(model, "taps", None) or {}
    paths = dict(model.named_modules())
    path = taps.get(layer, layer)
    if path and path in paths:
        return paths[path]
    near = difflib.get_close_matches(str(layer), [*taps, *filter(None, paths)], n=4)
    raise ValueError(
        f"Unknown layer {layer!r} of {type(model).__name__}."
        + (f" Close: {', '.join(near)}." if near else "")
        + (f" Known taps: {', '.join(taps)};" if taps else "")
        + " any module path works (see model.named_modules())."
    )


class Activations(dict):
    """Layer name → output (B, K, h, w) of the last forward."""

    def __missing__(self, layer):
        raise KeyError(
            f"No activation of layer {layer!r}: tapped are {sorted(self) or 'none so far'}. "
            "Run a forward inside `with tap(...)` first; a layer that the forward never calls "
            "stays empty."
        )


@contextmanager
def tap(
    model: nn.Module,
    layers: Iterable[str],
    *,
    detach: bool = True,
    grids: Mapping[str, tuple[int, ...]] | None = None,
) -> Iterator[Activations]:
    """Collect the outputs of layers: `with tap(model, ["dec_3"]) as acts: model(x)`.

    Args:
        layers: tap names or module paths.
        detach: cut the autograd graph; False for a loss on activations.
        grids: for layers that give tokens (B, N, C): the grid `(h, w)` that they lie on, row by
            row, or `(prefix, h, w)` where the first `prefix` tokens are class or register
            tokens, which are dropped. Such layers come out as (B, C, h, w). What `model.grids`
            says need not be said again.

    Yields:
        A dict that every forward empties and fills again: layer → (B, K, h, w).

    Refused are a layer that runs twice in one forward, one whose output is neither such a map
    nor tokens with a grid, and (`detach=False`) one that a later layer overwrites in place.
    """
    layers = _names(layers)
    grids = dict(grids or {})
    if stray := [name for name in grids if name not in layers]:
        raise ValueError(f"grids names layers that are not tapped: {stray}. Tapped: {layers}.")
    modules = {layer: find_layer(model, layer) for layer in layers}
    acts = Activations()
    versions: dict[str, int] = {}
    running = False  # inside a forward of `model` itself (not of a part that the user calls)

    def start(*_):
        nonlocal running
        running = True
        acts.clear()
        versions.clear()

    def stop(*_):
        nonlocal running
        running = False
        for layer, version in versions.items():
            if acts[layer]._version != version:
                raise ValueError(
                    f"Layer {layer!r} is overwritten in place by a later one (an in-place ReLU or "
                    "addition), so a loss cannot use its activation. Tap that later layer."
                )

    def keep(layer: str) -> Callable:
        def hook(_module, _inputs, output):
            if running and layer in acts:
                raise ValueError(
                    f"Layer {layer!r} runs more than once in a forward, so its activation is "
                    "ambiguous. Tap a module that runs once."
                )
            value = as_map(output, layer, grids.get(layer) or _declared(model, layer))
            # A copy: many networks go on to change a layer's output in place.
            acts[layer] = value.detach().clone() if detach else value
            if not detach:
                versions[layer] = value._version

        return hook

    handles = [model.register_forward_pre_hook(start)]
    try:
        handles += [m.register_forward_hook(keep(layer)) for layer, m in modules.items()]
        handles.append(model.register_forward_hook(stop))
        yield acts
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def edit(model: nn.Module, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Replace a layer's output by `fn(output)`: `with edit(model, {"dec_3": fn}): model(x)`.

    Of a layer in `model.grids`, `fn` takes and gives the map (B, C, h, w); class and register
    tokens stay as they are. Edits of one layer act in the order of their contexts, and before
    whatever else looks at the layer's output, `tap` too.
    """
    modules = {layer: find_layer(model, layer) for layer in _names(edits)}

    def replace(layer: str, fn: Callable) -> Callable:
        def hook(_module, _inputs, output):
            grid = _declared(model, layer)
            old = output if grid is None else as_map(output, layer, grid)
            new = fn(old)
            if getattr(new, "shape", None) != getattr(old, "shape", None):
                raise ValueError(
                    f"The edit of layer {layer!r} must keep the shape {_shape(old)}; "
                    f"it gave {_shape(new)}."
                )
            if grid is None:
                return new
            tokens = new.flatten(2).transpose(1, 2)
            return torch.cat([output[:, : output.shape[1] - tokens.shape[1]], tokens], 1)

        return hook

    handles = []
    try:
        for layer, module in modules.items():
            hook = replace(layer, edits[layer])
            hook.edits = True
            handles.append(module.register_forward_hook(hook))
            # Behind earlier edits but before all else: networks of transformers collect their
            # features by hooks of their own, which would keep the output as it was.
            for key, other in [*module._forward_hooks.items()]:
                if not getattr(other, "edits", False):
                    module._forward_hooks.move_to_end(key)
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; every module gets its own mode back (frozen ones too)."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def as_map(output, layer: str, grid: tuple[int, ...] | None = None) -> Tensor:
    """A layer's output as a feature map (B, K, h, w); tokens (B, N, C) by their grid."""
    if isinstance(output, Tensor) and output.ndim == 4:
        if grid is not None:
            raise ValueError(f"Layer {layer!r} gives {_shape(output)}; a grid is for tokens.")
        return output
    if not (isinstance(output, Tensor) and output.ndim == 3):
        raise ValueError(
            f"Layer {layer!r} gives {_shape(output)}. A unit needs a map: choose a layer that "
            "gives (B, K, h, w), or tokens (B, N, C) with grids={layer: (h, w)}."
        )
    n = output.shape[1]
    if grid is None:
        raise ValueError(
            f"Layer {layer!r} gives tokens {_shape(output)}; say how its {n} tokens lie: "
            f"grids={{{layer!r}: (h, w)}}, or (prefix, h, w) with class tokens in front."
        )
    prefix, h, w = grid if len(grid) == 3 else (0, *grid)
    if n != prefix + h * w:
        extra = n - h * w
        raise ValueError(
            f"Layer {layer!r} gives {n} tokens, but the grid {tuple(grid)} holds {prefix + h * w}."
            + (
                f" If the first {extra} are class or register tokens, give ({extra}, {h}, {w})."
                if 0 < extra < h * w
                else ""
            )
        )
    return output[:, prefix:].transpose(1, 2).unflatten(2, (h, w))


def check_map(layer: str, act, chosen: Sequence[int] = (), known: int | None = None) -> None:
    """An activation that units can be told apart in, as many as a dissection has (`known`), the
    chosen ones among them."""
    if not isinstance(act, Tensor) or act.ndim != 4:
        raise ValueError(
            f"Layer {layer!r} gives {_shape(act)}. Units are taken from a map: choose a layer that "
            "gives (B, K, h, w)."
        )
    if known not in (None, act.shape[1]):
        raise ValueError(
            f"Layer {layer!r} has {act.shape[1]} units, in the dissection {known}: it was made for "
            "another model. Dissect this one."
        )
    check_units(layer, chosen, act.shape[1])


def check_units(layer: str, chosen: Sequence[int], units: int) -> None:
    if beyond := [k for k in chosen if k >= units]:
        raise ValueError(
            f"Layer {layer!r} has {units} units, 0 … {units - 1}; got unit {beyond[0]}."
        )


def _declared(model: nn.Module, layer: str) -> tuple[int, ...] | None:
    return (getattr(model, "grids", None) or {}).get(layer)


def _names(layers: Iterable[str]) -> list[str]:
    names = [layers] if isinstance(layers, str) else list(layers)
    if not names:
        raise ValueError("No layers given: name at least one tap or module path.")
    if repeated := sorted({n for n in names if names.count(n) > 1}):
        raise ValueError(f"Layers named more than once: {', '.join(repeated)}.")
    return names


def _shape(x) -> str:
    return str(tuple(x.shape)) if hasattr(x, "shape") else type(x).__name__
