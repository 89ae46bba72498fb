"""What a unit answers instead: one vocabulary for ablation, correction and repair.

An `Edit` is a layer, some of its units and an answer, by one of five words:

- `"zero"`: nothing;
- `"factor"`: so many times what they answer;
- `"mean"`: their mean over the measured pixels of a dissection;
- `"corrected"`: their mean response, in a dissection, to each pixel's depth;
- `"clean"`: what they answered to another image.

You et al. 2021 ablate in section 5.1 (figure 2) and correct in section 5.2 (table 3, figure 7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.activations import check_map, check_units, edit, find_layer
from mde_utils.checks import unknown
from mde_utils.dissection import Dissection
from mde_utils.passes import name_of

ANSWERS = ("zero", "factor", "mean", "corrected", "clean")

Units = Mapping[str, Sequence[int] | None]


@dataclass(frozen=True, eq=False)
class Edit:
    """x ← x + blend · (answer − x) on some units of a layer; what `activations.edit` takes.

    Attributes:
        layer: whose.
        units: which; None = all.
        answer: x (B, K, h, w) → what its K units would answer, of a shape that broadcasts to x.
        blend: 0 leaves the units as they are, 1 replaces them.
        known: of how many units the dissection is that the answer comes from.
    """

    layer: str
    units: list[int] | None
    answer: Callable[[Tensor], Tensor]
    blend: float = 1.0
    known: int | None = None

    def __call__(self, x: Tensor) -> Tensor:
        check_map(self.layer, x, self.units or (), self.known)
        chosen = torch.full((x.shape[1], 1, 1), self.units is None)
        chosen[self.units or []] = True
        return torch.where(chosen.to(x.device), torch.lerp(x, self.answer(x), self.blend), x)


def edits(
    units: Units,
    answer: str = "zero",
    *,
    factor: float = 1.0,
    dissection: Dissection | None = None,
    depth: Tensor | None = None,
    clean: Mapping[str, Tensor] | None = None,
    blend: float = 1.0,
) -> dict[str, Edit]:
    """Layer → `Edit`, for `activations.edit`; checked as far as they can be without a forward.

    Args:
        units: layer → numbers of its units, None = all.
        answer: one of `ANSWERS`.
        factor: of `"factor"`.
        dissection: of `"mean"` and `"corrected"`.
        depth: (B, 1, H, W) metres, of `"corrected"`, see `correct`.
        clean: layer → (B, K, h, w), of `"clean"`.
        blend: 0 … 1.
    """
    if answer not in ANSWERS:
        raise ValueError(unknown("answer", answer, ANSWERS))
    if not 0 <= blend <= 1:
        raise ValueError(f"blend must lie in 0 … 1 (0 = as it is, 1 = replaced); got {blend}.")
    if not math.isfinite(factor):
        raise ValueError(f"Units are multiplied by a finite factor; got {factor}.")
    if answer == "corrected":
        _check_depth(depth)
    if answer in ("mean", "corrected") and dissection is None:
        raise ValueError(f"The answer {answer!r} is that of a dissection: give dissection=.")
    if answer == "clean" and clean is None:
        raise ValueError("The answer 'clean' is that to another image: give clean=.")
    made = {}
    for layer, chosen in checked_units(units).items():
        known = None if dissection is None else len(dissection.sums[dissection._known(layer)])
        if known is not None:
            check_units(layer, chosen or (), known)
        if answer == "zero":
            said = torch.zeros_like
        elif answer == "factor":
            said = partial(torch.mul, other=factor)
        elif answer == "mean":
            said = mean_response(dissection, layer)[:, None, None].to
        elif answer == "corrected":
            said = _corrected(dissection, layer, depth)
        else:
            said = clean[layer].to
        made[layer] = Edit(layer, chosen, said, blend, known)
    return made


def mean_response(dissection: Dissection, layer: str) -> Tensor:
    """(K,) mean over all measured pixels, those beyond the last bin too."""
    return dissection.sums[layer].sum(1) / dissection.pixels[layer].sum()


def _corrected(dissection: Dissection, layer: str, depth: Tensor) -> Callable[[Tensor], Tensor]:
    response = dissection.response[layer]

    def answer(x: Tensor) -> Tensor:
        if len(x) != len(depth):
            raise ValueError(
                f"The depth to correct by is of {len(depth)} images, the batch holds {len(x)}."
            )
        near = F.interpolate(depth.float(), x.shape[-2:], mode="nearest-exact")
        index = _known_bins(dissection, layer, near.to(x.device))
        value = response.to(x)[:, index.clamp(min=0)].transpose(0, 1)
        return torch.where((index >= 0)[:, None], value, x)

    return answer


def _known_bins(dissection: Dissection, layer: str, depth: Tensor) -> Tensor:
    """(B, 1, h, w) metres → (B, h, w) bins; −1 where there is none that the dissection knows."""
    depth = depth.detach()
    found = dissection.bins[layer].discretize(torch.where(depth > 0, depth, 0))[:, 0]
    empty = (dissection.counts[layer] == 0).to(found.device)
    return torch.where(empty[found.clamp(min=0)], -1, found)


# ------------------------------------------------------------------ contexts


@contextmanager
def ablate(
    model: nn.Module, units: Units, *, answer: str = "zero", dissection: Dissection | None = None
) -> Iterator[None]:
    """Take units out of a network: `with ablate(model, {"MFF": [3, 7]}): model(image)`.

    Args:
        units: layer → numbers of its units.
        answer: what they answer, `"zero"` or `"mean"`: their mean over the measured pixels of the
            `dissection`.
    """
    made = edits(units, answer, dissection=dissection)
    if dissection is not None:
        checked_layers(model, dissection, made)
    with edit(model, made):
        yield


@contextmanager
def scale(model: nn.Module, units: Units, *, factor: float) -> Iterator[None]:
    """Multiply units: `with scale(model, {"MFF": [3, 7]}, factor=0.5): model(image)`."""
    with edit(model, edits(units, "factor", factor=factor)):
        yield


@contextmanager
def correct(
    model: nn.Module,
    dissection: Dissection,
    depth: Tensor,
    layers: Iterable[str],
    *,
    units: Units | None = None,
    blend: float = 1.0,
) -> Iterator[None]:
    """Set units to their mean response, over the dissection's data, to each pixel's depth.

    `with correct(model, dissection, depth, ["MFF"]): model(image)` (section 5.2 of the paper):

        x_k(p) ← R_k(b(p)),  p a pixel of the map, b(p) the bin of its depth, R equation 1.

    The depth is resized to a layer's map by nearest neighbour (nearest-exact: of the pixel at the
    cell's centre). A unit keeps its own value where there is no measurement, where the depth is
    beyond the last bin, and in bins of which the dissection holds no pixel.

    Args:
        dissection: of this model, usually on the training set.
        depth: (B, 1, H, W) metres of the images that will be given, 0 = no measurement.
        layers: those to correct.
        units: layer → which of its units; None = all.
        blend: 0 leaves the values as they are, 1 replaces them; between, the weighted mean.
    """
    layers = checked_layers(model, dissection, layers)
    units = dict.fromkeys(layers) if units is None else units
    made = edits(units, "corrected", dissection=dissection, depth=depth, blend=blend)
    if set(made) != set(layers):
        raise ValueError(f"units names {sorted(made)}, the layers are {sorted(layers)}.")
    check_correctable(dissection, depth, layers)
    with edit(model, made):
        yield


# ------------------------------------------------------------------ checks


def checked_units(units: Units) -> dict[str, list[int] | None]:
    """Units by layer, whole numbers from 0 on, each once."""
    if not isinstance(units, Mapping) or not units:
        raise ValueError(f'Units are named by layer, {{"MFF": [3, 7]}}; got {units!r}.')
    found: dict[str, list[int] | None] = {}
    for layer, chosen in units.items():
        if chosen is None:
            found[layer] = None
            continue
        given = [chosen] if isinstance(chosen, int) else list(chosen)
        numbers = [int(k) for k in given]
        if not numbers:
            raise ValueError(f"No units of layer {layer!r} given.")
        if numbers != given or min(numbers) < 0:
            raise ValueError(f"Units of {layer!r} are whole numbers from 0 on; got {given}.")
        if twice := sorted({k for k in numbers if numbers.count(k) > 1}):
            raise ValueError(f"Units of {layer!r} named more than once: {twice}.")
        found[layer] = numbers
    return found


def checked_layers(
    model: nn.Module,
    dissection: Dissection,
    layers: Iterable[str],
    *,
    span: tuple[float, float] | None = None,
) -> list[str]:
    """Layers that the model has and the dissection, which is of this model, knows.

    Args:
        span: depth of the data, metres; the dissection's bins have to end where it does.
    """
    layers = [layers] if isinstance(layers, str) else list(layers)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"Name at least one layer, and each once; got {layers}.")
    own = name_of(model)
    if (of := dissection.about.get("model", own)) != own:
        raise ValueError(
            f"The dissection was made for the model {of!r}, this one is {own!r}. Dissect this one."
        )
    for layer in layers:
        find_layer(model, layer)
        end = dissection.bins[dissection._known(layer)].edges[-1].item()
        if span is not None and not math.isclose(end, span[1]):
            raise ValueError(
                f"The bins of {layer!r} in the dissection end at {end:g} m, this data set's depth "
                f"at {span[1]:g} m. Dissect on data of the same range (`bins=` says which)."
            )
    return layers


def check_correctable(dissection: Dissection, depth: Tensor, layers: Iterable[str]) -> None:
    """Refuse a depth map without a pixel in any bin that the dissection knows."""
    if not any((_known_bins(dissection, layer, depth) >= 0).any() for layer in layers):
        raise ValueError(
            "No pixel of the depth lies in a bin that the dissection holds pixels of: there is "
            "nothing to correct by. Is the depth in metres, and of the dissection's range?"
        )


def _check_depth(depth) -> None:
    if not isinstance(depth, Tensor) or depth.ndim != 4 or depth.shape[1] != 1:
        given = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(f"The depth must be (B, 1, H, W) in metres; got {given}.")
