"""Ask a trained network questions about one image at a time: the engine of `widgets.explore`.

Which depth does this unit answer to, who answers at this pixel, and what becomes of the depth
without them? What lies before an edited layer has run already, so the answer is there at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Subset

from mde_utils.activations import check_map, check_units, evaluating, tap
from mde_utils.data.loading import batches
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection, response_spread
from mde_utils.edits import Units, check_correctable, checked_layers, edits
from mde_utils.environment import progress
from mde_utils.evaluation import check_metric, to_size
from mde_utils.interventions import UnitEffects, unit_effects
from mde_utils.replay import Recorder
from mde_utils.selectivity import assigned_bins, pool_layers

ORDERS = ("selectivity", "assigned bin", "strongest bin", "causal effect")


class Explorer:
    """A network, images and a dissection, ready to be asked.

    What takes a pass over images (`spread`, `effects`) is done when first asked for, and kept.

    Args:
        dataset: the images; any that `evaluate` takes.
        dissection: of `model`, its layers are those that can be explored.
        spread_images, effect_images: at most so many images, evenly spread over the data set, tell
            the spread of responses and the causal effects of all units.
        batch_size: of both passes.
        progress: their bar, see `unit_effects`.

    Raises:
        ValueError: an empty data set; a dissection of another model or of layers it does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        dataset,
        dissection: Dissection,
        *,
        spread_images: int = 64,
        effect_images: int = 8,
        batch_size: int = 8,
        progress: Callable = progress,
    ):
        if len(dataset) == 0:
            raise ValueError("The data set is empty: there is nothing to explore.")
        self.layers = checked_layers(model, dissection, dissection.layers)
        check_metric(model)  # bins and masks are of metres
        self.model, self.dataset, self.dissection = model, dataset, dissection
        self.batch_size, self.progress = batch_size, progress
        self.spread_images = _evenly(dataset, spread_images)
        self.effect_images = _evenly(dataset, effect_images)
        self.units = dissection.to_frame().set_index(["layer", "unit"])
        self._recorders: dict[tuple[str, ...], Recorder] = {}
        self._effects: dict[tuple, UnitEffects] = {}
        self._view: View | None = None

    def view(self, index: int) -> View:
        """One image of the data set; the last one is kept.

        Raises:
            ValueError: no such image, or the network does not give depth for it.
        """
        if not 0 <= index < len(self.dataset):
            raise ValueError(f"The images are 0 … {len(self.dataset) - 1}; got {index}.")
        if self._view is None or self._view.index != index:
            self._view = View(self, index)
        return self._view

    @cached_property
    def _spread(self) -> dict[str, Tensor]:
        return response_spread(
            self.model,
            self.spread_images,
            self.dissection,
            batch_size=self.batch_size,
            progress=self.progress,
        )

    def spread(self, layer: str) -> Tensor:
        """(K, N_b) see `response_spread`."""
        return self._spread[self._known(layer)]

    def effects(self, layer: str, answer: str = "zero") -> UnitEffects:
        """What each unit alone does to the depth of `effect_images`."""
        key = self._known(layer), answer
        if key not in self._effects:
            self._effects[key] = unit_effects(
                self.model,
                self.effect_images,
                self.dissection,
                layer,
                answer=answer,
                batch_size=self.batch_size,
                progress=self.progress,
            )
        return self._effects[key]

    def order(self, layer: str, by: str = "selectivity") -> list[int]:
        """The units of a layer.

        Args:
            by: `"selectivity"`, the largest first, NaN last; `"assigned bin"` or
                `"strongest bin"` (of the largest |mean response|), near ones first;
                `"causal effect"` on the depth when switched off, the largest first.
        """
        if by not in ORDERS:
            raise ValueError(f"Unknown order {by!r}. Known: {', '.join(ORDERS)}.")
        frame = self.units.loc[self._known(layer)]
        if by == "causal effect":
            value = -self.effects(layer).total.numpy()
        elif by == "selectivity":
            value = -frame["selectivity"]
        else:
            value = frame["best_bin" if by == "strongest bin" else "assigned_bin"]
        return np.argsort(np.asarray(value), kind="stable").tolist()

    def assigned(self, layer: str, unit: int) -> tuple[int, float, float]:
        """A unit's assigned bin: its number, from and to, metres."""
        bins = self.bins(layer)
        check_units(layer, [unit], len(self.dissection.sums[layer]))
        number = assigned_bins(len(self.dissection.sums[layer]), len(bins))[unit].item()
        return number, bins.edges[number].item(), bins.edges[number + 1].item()

    def bins(self, layer: str) -> DepthBins:
        return self.dissection.bins[self._known(layer)]

    def recorder(self, layers: tuple[str, ...]) -> Recorder:
        if layers not in self._recorders:
            self._recorders[layers] = Recorder(self.model, layers)
        return self._recorders[layers]

    def _known(self, layer: str) -> str:
        return self.dissection._known(layer)


class View:
    """One image, as the network sees it; from `Explorer.view`.

    Attributes:
        index, name: of the item of the data set.
        image: (3, H, W) RGB in [0, 1].
        truth: (1, H', W') metres, 0 = no measurement (NaN and what is below 0 in the item, too).
        depth: (1, h, w) metres, predicted, at the network's own resolution.
        activations: layer → (K, h, w).
    """

    def __init__(self, explorer: Explorer, index: int):
        self.explorer, self.index = explorer, int(index)
        names = ("image", "depth", *getattr(explorer.model, "input_names", ()))
        ((self.name,), batch) = next(batches(explorer.dataset, [self.index], 1, names))
        self.image, truth = batch["image"][0], batch.pop("depth")[0].float()
        self.truth = torch.where(truth.isfinite() & (truth > 0), truth, 0)
        device = next((p.device for p in explorer.model.parameters()), torch.device("cpu"))
        self._inputs = {k: x.to(device) for k, x in batch.items()}
        self._image = image = self._inputs.pop("image")
        with evaluating(explorer.model), tap(explorer.model, explorer.layers) as acts:
            pred = explorer.model(image, **self._inputs)
        to_size(pred, truth[None], [self.name])  # refuses what is no depth
        self.depth = pred[0].float().cpu()
        self.activations = {k: acts[k][0].float().cpu() for k in explorer.layers}
        for layer, sums in explorer.dissection.sums.items():
            check_map(layer, self.activations[layer][None], known=len(sums))
        self._rest: tuple = ((), None)

    @cached_property
    def dissection(self) -> Dissection:
        """Of this image alone: its responses by true depth, in the dissection's bins."""
        of = self.explorer.dissection
        acts = {k: act[None] for k, act in self.activations.items()}
        pooled = pool_layers(acts, self.truth[None], of.bins)
        sums, pixels = ({k: part[i] for k, part in pooled.items()} for i in (0, 1))
        return Dissection(sums, pixels, of.bins, 1, of.definition, of.about)

    def response(self, layer: str) -> Tensor:
        """(K, N_b) mean response on this image to each true depth; NaN in bins without a pixel."""
        seen = self.dissection
        return torch.where(seen.counts[layer] > 0, seen.response[layer], math.nan)

    def where(self, layer: str, unit: int) -> Tensor:
        """(1, h, w) bool: the pixels whose predicted depth lies in the unit's assigned bin."""
        number, _, _ = self.explorer.assigned(layer, unit)
        return self.explorer.bins(layer).discretize(self.depth) == number

    def ask(self, row: int, column: int, layer: str) -> Answer:
        """Who answers at a pixel of the image?

        Raises:
            ValueError: unknown layer, or a pixel outside the image.
        """
        h, w = self.image.shape[-2:]
        if not (0 <= row < h and 0 <= column < w):
            raise ValueError(
                f"The pixel (row {row}, column {column}) lies outside the image: rows 0 … {h - 1}, "
                f"columns 0 … {w - 1}."
            )
        bins, seen = self.explorer.bins(layer), self.explorer.dissection
        depth = _resize(self.depth, (h, w))[0, row, column]
        truth = self.truth[0, row * self.truth.shape[1] // h, column * self.truth.shape[2] // w]
        number = bins.discretize(depth).item()
        number = None if number < 0 else number
        at = torch.tensor([(2 * column + 1) / w - 1, (2 * row + 1) / h - 1]).view(1, 1, 1, 2)
        here = F.grid_sample(  # as if upsampled bilinearly
            self.activations[layer][None], at, padding_mode="border", align_corners=False
        ).flatten()
        share = torch.full((len(here),), math.nan, dtype=torch.float64)
        if number is not None and seen.counts[layer][number] > 0:
            size = seen.response[layer][:, number].abs()
            share = size / size.sum() if size.any() else size
        known = self.explorer.units.loc[layer]
        frame = known[["selectivity", "best_from_m", "best_to_m"]].assign(
            share=share.numpy(), here=here.numpy(), strongest=known["best_bin"] == number
        )
        frame = frame.sort_values("share", ascending=False, kind="stable")
        edges = bins.edges.tolist()
        span = (math.nan, math.nan) if number is None else (edges[number], edges[number + 1])
        return Answer(int(row), int(column), layer, depth.item(), truth.item(), number, span, frame)

    def prepare(self, layers: Sequence[str]) -> None:
        """Run what lies before these layers, so that the first edit of them is as fast as any."""
        self._remainder(tuple(layers))

    def edit(self, units: Units, *, answer: str = "zero", factor: float = 0.0) -> Edited:
        """The depth with units changed.

        Args:
            units: layer → numbers of its units.
            answer, factor: see `edits`; `"corrected"` by the item's own depth.
        """
        if not units:
            raise ValueError('Name the units to edit by layer, {"dec_2": [3, 7]}; got none.')
        truth = self.truth[None].to(self._image.device)
        seen = self.explorer.dissection
        made = edits(units, answer, factor=factor, dissection=seen, depth=truth)
        if answer == "corrected":
            check_correctable(seen, truth, made)
        rest = self._remainder(tuple(made))
        with evaluating(self.explorer.model):
            depth = rest.run(made)[0].float().cpu()
        return Edited(self, {k: list(v) for k, v in units.items()}, answer, factor, depth)

    def code(self, units: Units | None = None, *, answer: str = "zero", factor: float = 0.0) -> str:
        """Two lines (and their import) that give the depth of `edit`, or of no edit, from
        `model`, `dataset` and `dissection`."""
        line = f"depth = predict(model, dataset[{self.index}])"
        if not units:
            return f"from mde_utils import predict\n\n{line}"
        units = {k: [int(u) for u in v] for k, v in units.items()}
        if answer == "corrected":
            name, truth = "correct", f'dataset[{self.index}]["depth"][None]'
            call = f"correct(model, dissection, {truth}, {list(units)}, units={units})"
        elif answer == "factor":
            name, call = "scale", f"scale(model, {units}, factor={factor:g})"
        else:
            mean = ', answer="mean", dissection=dissection' * (answer == "mean")
            name, call = "ablate", f"ablate(model, {units}{mean})"
        call = call.replace("'", '"')
        names = ", ".join(sorted([name, "predict"]))
        return f"from mde_utils import {names}\n\nwith {call}:\n    {line}"

    def _remainder(self, layers: tuple[str, ...]):
        if self._rest[0] != layers:
            record = self.explorer.recorder(layers)
            with evaluating(self.explorer.model):
                self._rest = layers, record(self._image, self._inputs)
        return self._rest[1]


@dataclass(frozen=True, eq=False)
class Answer:
    """A pixel, and the units that answer to the depth predicted there.

    Attributes:
        row, column: of the image.
        layer: of the units.
        depth: predicted there, metres.
        truth: measured there, metres; 0 = no measurement.
        bin: of `depth`; None where it lies in no bin.
        span: its ends, metres.
        units: a row a unit, the largest share first: `share` (of the layer's |mean response| to
            this bin over the dissection's data; NaN where it knows no pixel of it), `here`
            (the response at the pixel), `strongest` (this bin is the unit's strongest),
            `selectivity`, `best_from_m`, `best_to_m`.
    """

    row: int
    column: int
    layer: str
    depth: float
    truth: float
    bin: int | None
    span: tuple[float, float]
    units: pd.DataFrame


@dataclass(frozen=True, eq=False)
class Edited:
    """A view with units changed.

    Attributes:
        units, answer, factor: what was done, see `View.edit`.
        depth: (1, h, w) metres, at the network's own resolution.
    """

    view: View
    units: dict[str, list[int]]
    answer: str
    factor: float
    depth: Tensor

    @property
    def layer(self) -> str:
        """Whose bins the numbers are in: the first of the edited ones."""
        return next(iter(self.units))

    @property
    def difference(self) -> Tensor:
        """(1, h, w) metres, above 0 where the edited depth is farther."""
        return self.depth - self.view.depth

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row a depth bin of the truth: `from_m`, `to_m`, `pixels`; means over its pixels,
        in metres, NaN without: `change` (|difference|: the units' causal effect), `shift`
        (difference), `error_before`, `error_after` (|prediction − truth|)."""
        bins, truth = self.view.explorer.bins(self.layer), self.view.truth
        before, after = (_resize(d, truth.shape[-2:]) for d in (self.view.depth, self.depth))
        index = bins.discretize(truth).flatten() + 1  # 0 takes what is in no bin
        n = len(bins) + 1
        pixels = torch.bincount(index, minlength=n)
        values = {
            "change": (after - before).abs(),
            "shift": after - before,
            "error_before": (before - truth).abs(),
            "error_after": (after - truth).abs(),
        }
        means = {
            k: (torch.bincount(index, v.flatten().double(), n) / pixels)[1:].numpy()
            for k, v in values.items()
        }
        ends = {"from_m": bins.edges[:-1].numpy(), "to_m": bins.edges[1:].numpy()}
        return pd.DataFrame(ends | {"pixels": pixels[1:].numpy()} | means)

    def mean(self, column: str) -> float:
        """Of a column of `table`, over all pixels in a bin; NaN where there is none."""
        known = self.table[self.table["pixels"] > 0]
        total = known["pixels"].sum()
        return (known[column] * known["pixels"]).sum() / total if total else math.nan


def _evenly(dataset, number: int):
    if number < 1:
        raise ValueError(f"At least one image is needed; got {number}.")
    if number >= len(dataset):
        return dataset
    return Subset(dataset, [len(dataset) * i // number for i in range(number)])


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(K, h, w) to (K, H, W), bilinear, as predictions are brought to the truth's size."""
    return F.interpolate(maps[None], tuple(size), mode="bilinear", align_corners=False)[0]
