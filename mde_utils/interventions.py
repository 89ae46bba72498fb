"""Change what units answer and see what becomes of the depth: ablation and correction.

You et al. 2021, section 5: units set to zero one after another (figure 2), and units set to the
mean response that they had, in training, to a pixel's depth (table 3, figure 7).
"""

from __future__ import annotations

import math
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.activations import edit, evaluating, find_layer
from mde_utils.data.loading import batches, chunks
from mde_utils.depth_bins import DepthBins, find_range
from mde_utils.dissection import Dissection
from mde_utils.environment import progress
from mde_utils.evaluation import (
    ERRORS,
    PROTOCOLS,
    check_metric,
    describe_protocol,
    image_metrics,
    to_size,
)
from mde_utils.replay import (
    Edits,
    Recorder,
    Remainder,
    WholeNetwork,
    check_map,
    check_units,
)

CONTROLS = ("truth", "shuffled", "wrong_bin", "predicted", "fixed_point")
ORDERS = ("most", "least", "random")
MODES = ("off", "scale", "mean", "correct")
POOLED = ("rms", "rms_log")  # roots of means over images, where a protocol says so

Units = Mapping[str, Sequence[int]]


# ------------------------------------------------------------------ contexts


@contextmanager
def ablate(model: nn.Module, units: Units, *, mean: Dissection | None = None) -> Iterator[None]:
    """Take units out of a network: ``with ablate(model, {"MFF": [3, 7]}): model(image)``.

    Args:
        units: layer → numbers of its units; they answer 0 everywhere.
        mean: a dissection; the units answer their mean over all measured pixels of its data
            instead.

    Raises:
        ValueError: unknown layer, no units, a number repeated, negative or too large, or a
            dissection of another model or without the layer.
    """
    units = {layer: _units(layer, chosen) for layer, chosen in _named(units).items()}
    if mean is not None:
        _check_dissection(model, mean, units)
    edits = {
        layer: _removing(layer, chosen, None if mean is None else _mean_response(mean, layer))
        for layer, chosen in units.items()
    }
    with edit(model, edits):
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

    ``with correct(model, dissection, depth, ["MFF"]): model(image)`` (section 5.2 of the paper).
    The depth is resized to a layer's map by nearest neighbour (nearest-exact: of the pixel at the
    cell's centre). A unit keeps its own value where there is no measurement, where the depth is
    beyond the last bin, and in bins of which the dissection holds no pixel.

    Args:
        dissection: of this model, usually on the training set.
        depth: (B, 1, H, W) metres of the images that will be given, 0 = no measurement.
        layers: those to correct.
        units: layer → which of its units; None = all.
        blend: 0 leaves the values as they are, 1 replaces them; between, the weighted mean.

    Raises:
        ValueError: unknown layer, a dissection of another model or without the layer, units as in
            :func:`ablate`, ``blend`` outside 0 … 1, depth of another shape or number of images, or
            without a pixel in any bin that the dissection knows.
    """
    layers = checked_layers(model, dissection, layers)
    if not 0 <= blend <= 1:
        raise ValueError(f"blend must lie in 0 … 1 (0 = as it is, 1 = replaced); got {blend}.")
    if units is not None:
        units = {layer: _units(layer, chosen) for layer, chosen in _named(units).items()}
        if set(units) != set(layers):
            raise ValueError(f"units names {sorted(units)}, the layers are {sorted(layers)}.")
        for layer, chosen in units.items():
            check_units(layer, chosen, len(dissection.sums[layer]))
    tables = {layer: _Table.of(dissection, layer) for layer in layers}
    _check_correctable(tables.values(), depth)
    edits = {
        layer: table.edit(depth, blend=blend, units=None if units is None else units[layer])
        for layer, table in tables.items()
    }
    with edit(model, edits):
        yield


def scale(units: Sequence[int], factor: float) -> Callable[[Tensor], Tensor]:
    """An edit that multiplies units: ``with edit(model, {"MFF": scale([3, 7], 0.5)}): …``.

    Raises:
        ValueError: units as in :func:`ablate`, or a factor that is not finite.
    """
    units, factor = _units("the edit", units), float(factor)
    if not math.isfinite(factor):
        raise ValueError(f"Units are multiplied by a finite factor; got {factor}.")

    def multiply(act: Tensor) -> Tensor:
        check_map("the edit", act, units, None)
        gain = torch.ones(act.shape[1])
        gain[units] = factor
        return act * gain.to(act)[:, None, None]

    return multiply


def unit_edit(
    dissection: Dissection,
    layer: str,
    units: Sequence[int],
    *,
    mode: str = "off",
    factor: float = 0.0,
    depth: Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    """What :func:`ablate`, :func:`scale` or :func:`correct` do to one layer, as an edit of it.

    Args:
        mode: ``"off"``: the units answer 0; ``"scale"``: ``factor`` times as much; ``"mean"``:
            their mean over the dissection's pixels; ``"correct"``: their mean response to each
            pixel's depth.
        depth: (B, 1, H, W) metres, for ``"correct"``.

    Raises:
        ValueError: unknown mode or layer, a unit that is not there, a factor that is not finite,
            or a depth that says nothing to correct by; later, a layer of another number of units.
    """
    _known("mode", mode, MODES)
    units, sums = _units(layer, units), dissection.sums[dissection._known(layer)]
    check_units(layer, units, len(sums))
    if mode == "scale":
        change = scale(units, factor)
    elif mode == "correct":
        table = _Table.of(dissection, layer)
        _check_correctable([table], depth)
        change = table.edit(depth, units=units)
    else:
        change = _removing(layer, units, _mean_response(dissection, layer) * (mode == "mean"))

    def replace(act: Tensor) -> Tensor:
        check_map(layer, act, (), sums)
        return change(act)

    return replace


@dataclass(frozen=True, eq=False)
class _Table:
    """Mean responses of a layer by depth bin, to look values up in.

    Attributes:
        response: (K, N_b).
        bins: the edges, see :class:`~mde_utils.depth_bins.DepthBins`.
        reads: (N_b + 1,) the bin to read for each bin, −1 = keep the value; the last for none.
    """

    layer: str
    response: Tensor
    bins: object
    reads: Tensor

    @classmethod
    def of(cls, dissection: Dissection, layer: str, *, wrong: random.Random | None = None):
        """``wrong``: read another bin instead, by a derangement of the bins with pixels."""
        reads = torch.full((len(dissection.bins[layer]) + 1,), -1)
        known = dissection.counts[layer].nonzero()[:, 0]
        source = known if wrong is None else known[_derangement(len(known), wrong)]
        reads[known] = source
        return cls(layer, dissection.response[layer], dissection.bins[layer], reads)

    def bins_at(self, depth: Tensor) -> Tensor:
        """(B, 1, H, W) metres → (B, H, W) the bin to read, −1 = keep."""
        depth = depth.detach()
        found = self.bins.discretize(torch.where(depth > 0, depth, 0))[:, 0]
        return self.reads.to(depth.device)[found]

    def edit(
        self, depth: Tensor, *, blend: float = 1.0, units: list[int] | None = None
    ) -> Callable[[Tensor], Tensor]:
        def replace(act: Tensor) -> Tensor:
            check_map(self.layer, act, (), self.response[:, 0])
            if len(act) != len(depth):
                raise ValueError(
                    f"The depth to correct by is of {len(depth)} images, the batch holds "
                    f"{len(act)}."
                )
            near = F.interpolate(depth.float(), act.shape[-2:], mode="nearest-exact")
            index = self.bins_at(near.to(act.device))
            table = self.response.to(act)
            value = table[:, index.clamp(min=0)].transpose(0, 1)
            where = (index >= 0)[:, None]
            if units is not None:
                chosen = torch.zeros(act.shape[1], dtype=torch.bool, device=act.device)
                chosen[units] = True
                where = where & chosen[:, None, None]
            return torch.where(where, torch.lerp(act, value, blend), act)

        return replace


def _check_correctable(tables: Iterable[_Table], depth: Tensor) -> None:
    if not isinstance(depth, Tensor) or depth.ndim != 4 or depth.shape[1] != 1:
        given = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(f"The depth must be (B, 1, H, W) in metres; got {given}.")
    if not any((table.bins_at(depth) >= 0).any() for table in tables):
        raise ValueError(
            "No pixel of the depth lies in a bin that the dissection holds pixels of: there is "
            "nothing to correct by. Is the depth in metres, and of the dissection's range?"
        )


# ------------------------------------------------------------------ correction, with controls


def correction_effects(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    layers: Iterable[str],
    *,
    controls: Iterable[str] = CONTROLS,
    blends: Iterable[float] = (0, 0.25, 0.5, 0.75, 1),
    protocol: str = "imde",
    batch_size: int = 16,
    seed: int = 0,
    max_iterations: int = 10,
    tolerance: float = 1e-3,
) -> pd.DataFrame:
    """What correction does to the metrics, beside controls that the paper (table 3) lacks.

    Controls: ``"truth"`` corrects by the ground truth, at every blend; the others with blend 1:
    ``"shuffled"`` by the ground truth of another image; ``"wrong_bin"`` by the ground truth, but
    each bin's pixels get the response to another one (a fixed random derangement of the bins with
    pixels); ``"predicted"`` by the model's own prediction, which needs no ground truth;
    ``"fixed_point"`` repeats that with the corrected prediction until it stays the same.

    The part of the network before the layers runs once for all controls.

    Args:
        dissection: of this model, usually on the training set.
        seed: of the other images and bins.
        max_iterations: of ``"fixed_point"``, for each image.
        tolerance: an image is at its fixed point where the mean |change| of its prediction is
            below this, in metres.

    Returns:
        a row ``"none"`` (before) and a row a control and blend: ``control``, ``blend``,
        ``iterations`` (mean over images), ``converged`` (images that reached a fixed point), the
        metrics of :func:`~mde_utils.evaluation.evaluate`, and ``n``, the number of images. About
        the run, in ``frame.attrs``: model, dataset, protocol, layers, images.

    Raises:
        ValueError: unknown layer, control or protocol; a dissection of another model, layer or
            range of depth; a blend outside 0 … 1; an empty data set or one without valid depth;
            ``"shuffled"`` on one image or on images of several sizes.
    """
    layers = checked_layers(model, dissection, layers)
    controls = _known("control", controls, CONTROLS)
    blends = [float(b) for b in blends]
    if wrong := [b for b in blends if not 0 <= b <= 1]:
        raise ValueError(f"blends must lie in 0 … 1; got {wrong[0]}.")
    if max_iterations < 1 or not tolerance > 0:
        raise ValueError(
            "A fixed point needs max_iterations >= 1 and a tolerance above 0 metres; got "
            f"{max_iterations} and {tolerance}."
        )
    run = _Run.prepare(model, dataset, layers, protocol=protocol, batch_size=batch_size)
    _check_span(dissection, layers, run.span)
    other = None
    if "shuffled" in controls:
        if len(dataset) < 2:
            raise ValueError("A shuffled ground truth needs two images at least; got one.")
        other = _derangement(len(dataset), random.Random(seed))
    tables = {layer: _Table.of(dissection, layer) for layer in layers}
    wrong_tables = {
        layer: _Table.of(dissection, layer, wrong=random.Random(seed))
        for layer in layers
        if "wrong_bin" in controls
    }
    parts: dict[tuple[str, float], list[dict[str, Tensor]]] = defaultdict(list)

    def by(depth: Tensor, *, blend: float = 1.0, tables: Mapping[str, _Table] = tables) -> Edits:
        return {layer: table.edit(depth, blend=blend) for layer, table in tables.items()}

    for positions, rest, batch, measure in run.batches():
        truth, before = batch["depth"], rest.run({})

        def note(control: str, blend: float, pred: Tensor, n: int = 0, measure=measure, **more):
            more = {"iterations": torch.full((len(pred),), float(n)), **more}
            parts[control, blend].append(measure(pred) | more)

        note("none", 0.0, before)
        for blend in blends if "truth" in controls else ():
            note("truth", blend, rest.run(by(truth, blend=blend)), 1)
        if "shuffled" in controls:
            depths = [torch.as_tensor(dataset[other[i]]["depth"]) for i in positions]
            if len({d.shape for d in depths} | {truth.shape[1:]}) > 1:
                raise ValueError(
                    "A shuffled ground truth needs images of one size; this data set has "
                    f"{tuple(truth.shape[2:])} and others. Leave out the control 'shuffled'."
                )
            depth = torch.stack(depths).to(truth)
            note("shuffled", 1.0, rest.run(by(depth)), 1)
        if "wrong_bin" in controls:
            note("wrong_bin", 1.0, rest.run(by(truth, tables=wrong_tables)), 1)
        if {"predicted", "fixed_point"} & set(controls):
            pred, steps = before, torch.zeros(len(before))
            moving = torch.ones(len(before), dtype=torch.bool, device=before.device)
            for step in range(max_iterations if "fixed_point" in controls else 1):
                new = rest.run(by(pred))
                if step == 0 and "predicted" in controls:
                    note("predicted", 1.0, new, 1)
                new = torch.where(moving[:, None, None, None], new, pred)
                steps += moving.cpu()
                moving = (new - pred).abs().flatten(1).mean(1) >= tolerance
                pred = new
                if not moving.any():
                    break
            if "fixed_point" in controls:
                settled = moving.logical_not().cpu().float()
                note("fixed_point", 1.0, pred, iterations=steps, converged=settled)

    rows = []
    for (control, blend), found in parts.items():
        values = {key: torch.cat([part[key].cpu() for part in found]) for key in found[0]}
        kept = values["rms"].isnan().logical_not()
        run.check_valid(int(kept.sum()))
        values = {key: value[kept].double() for key, value in values.items()}
        iterations = values.pop("iterations").mean().item()
        converged = values.pop("converged").sum().item() if "converged" in values else math.nan
        means = {key: value.item() for key, value in _over_images(values, protocol).items()}
        rows.append(
            {
                "control": control,
                "blend": blend,
                "iterations": iterations,
                "converged": converged,
                **means,
                "n": int(kept.sum()),
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs = run.about(int(frame["n"].max()))
    return frame


# ------------------------------------------------------------------ ablation curves


class Area(NamedTuple):
    """The area between two ablation curves, in units of relative change.

    Attributes:
        area: mean over the numbers of removed units of (most first − least first).
        low, high: its bootstrap interval over images.
        band_low, band_high: what an order that knows nothing would give; NaN without random orders.
    """

    area: float
    low: float
    high: float
    band_low: float
    band_high: float


@dataclass(frozen=True, eq=False)
class AblationCurve:
    """Metrics of a network as its units are removed one after another.

    Attributes:
        points: numbers of removed units.
        curves: (order, repeat), one a curve.
        units: the units of each curve in the order of their removal, as (layer, unit).
        values: metric → (curves, points, images) float64, each image's value.
        protocol: of the metrics.
        about: model, dataset, layers, images, what removed units answer, for titles.
    """

    points: list[int]
    curves: list[tuple[str, int]]
    units: list[list[tuple[str, int]]]
    values: dict[str, Tensor]
    protocol: str
    about: dict = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """A row a curve and point: order, repeat, removed, the metrics over all images, n."""
        keys = [(*curve, removed) for curve in self.curves for removed in self.points]
        frame = pd.DataFrame(keys, columns=["order", "repeat", "removed"])
        for metric, mean in _over_images(self.values, self.protocol).items():
            frame[metric] = mean.flatten().numpy()
        return frame.assign(n=self._images)

    def relative_drop(self, metric: str = "d1") -> pd.DataFrame:
        """Relative change for the worse: (m₀ − m) / m₀ of an accuracy, (m − m₀) / m₀ of an error.

        Returns:
            a row a number of removed units, a column (order, repeat).
        """
        drop = self._drop(metric, torch.ones(1, self._images, dtype=torch.float64))[..., 0]
        names = pd.MultiIndex.from_tuples(self.curves, names=["order", "repeat"])
        index = pd.Index(self.points, name="removed")
        return pd.DataFrame(drop.T.numpy(), index=index, columns=names)

    def area(
        self,
        metric: str = "d1",
        *,
        num_bootstrap: int = 1000,
        level: float = 0.95,
        seed: int = 0,
    ) -> Area:
        """How much more it hurts to remove selective units first than last.

        The interval is that of a bootstrap over images. The band is what the order alone can do:
        "least first" is "most first" backwards, and the area of a random order less that of its
        reverse strays at most twice as far as the area of one random order from their mean.

        Raises:
            ValueError: curves without both orders, one point only, unknown metric.
        """
        if not {("most", 0), ("least", 0)} <= set(self.curves) or len(self.points) < 2:
            raise ValueError(
                "The area lies between the orders 'most' and 'least', over two points at least; "
                f"got {sorted({order for order, _ in self.curves})} and {len(self.points)} points."
            )
        images = self._images
        draws = np.random.default_rng(seed).multinomial(
            images, np.full(images, 1 / images), size=num_bootstrap
        )
        weights = torch.cat([torch.ones(1, images), torch.from_numpy(draws)]).double()
        under = torch.trapezoid(self._drop(metric, weights), torch.tensor(self.points), dim=1)
        under = under / (self.points[-1] - self.points[0])  # (curves, draws)
        areas = under[self.curves.index(("most", 0))] - under[self.curves.index(("least", 0))]
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        low, high = areas[1:].quantile(tails).tolist()
        reach = math.nan
        if some := [i for i, (order, _) in enumerate(self.curves) if order == "random"]:
            # Of both signs alike, as an order and its reverse may change places.
            reach = 2 * (under[some, 0] - under[some, 0].mean()).abs().quantile(level).item()
        return Area(areas[0].item(), low, high, -reach, reach)

    @property
    def _images(self) -> int:
        return next(iter(self.values.values())).shape[-1]

    def _drop(self, metric: str, weights: Tensor) -> Tensor:
        """(draws, images) weights → (curves, points, draws) relative change for the worse."""
        if metric not in self.values:
            raise ValueError(f"Unknown metric {metric!r}. Known: {', '.join(self.values)}.")
        if self.points[0] != 0:
            raise ValueError(
                f"A relative drop starts from the whole network; the points start at "
                f"{self.points[0]} removed units. Put 0 among the points."
            )
        mean = self.values[metric] @ weights.T / weights.sum(1)
        if PROTOCOLS[self.protocol].pooled_rms and metric in POOLED:
            mean = mean.sqrt()
        worse = (mean - mean[:, :1]) / mean[:, :1]
        return worse if metric in ERRORS else -worse


def ablation_curve(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    layers: Iterable[str],
    *,
    orders: Iterable[str] = ORDERS,
    num_random: int = 20,
    points: Iterable[int] | None = None,
    mean: bool = False,
    protocol: str = "imde",
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> AblationCurve:
    """Remove the units of ``layers`` one after another, and measure (figure 2 of the paper).

    The units of all the layers are pooled and ordered by their selectivity; one without a number
    (NaN) counts as the least selective, ties go by layer and number. "least" is the reverse of
    "most". The part of the network before the layers runs once for all curves; behind it, a
    convolution that the removed units enter directly is updated by what they gave to it.

    Args:
        dissection: of this model; gives the order and, for ``mean``, the values.
        orders: of ``"most"`` (selective first), ``"least"`` and ``"random"``.
        num_random: number of random orders.
        points: numbers of removed units to measure at; None = 0, 1, … all.
        mean: removed units answer their mean over the dissection's pixels, else 0.
        seed: of the random orders.
        device: where to run; by default where the model is. The model is moved there.

    Raises:
        ValueError: unknown layer, order or protocol; a dissection of another model or layer; points
            outside 0 … number of units; an empty data set or one without valid depth.
    """
    layers = checked_layers(model, dissection, layers)
    orders = _known("order", orders, ORDERS)
    if "random" in orders and num_random < 1:
        raise ValueError(f"num_random must be at least 1, got {num_random}.")
    ranked = _by_selectivity(dissection, layers)
    points = list(range(len(ranked) + 1)) if points is None else sorted({int(p) for p in points})
    if not points or points[0] < 0 or points[-1] > len(ranked):
        raise ValueError(
            f"points must be numbers of removed units in 0 … {len(ranked)}, the units of "
            f"{', '.join(layers)}; got {points or 'none'}."
        )
    shuffle = random.Random(seed)
    curves, sequences = [], []
    for order in orders:
        for repeat in range(num_random if order == "random" else 1):
            curves.append((order, repeat))
            sequences.append(
                shuffle.sample(ranked, len(ranked))
                if order == "random"
                else ranked[:: -1 if order == "least" else 1]
            )
    fills = {
        layer: _mean_response(dissection, layer)
        if mean
        else torch.zeros(len(dissection.sums[layer]), dtype=torch.float64)
        for layer in layers
    }
    run = _Run.prepare(
        model, dataset, layers, protocol=protocol, batch_size=batch_size, device=device
    )
    probe = ranked[::2]
    values: dict[str, list[Tensor]] = defaultdict(list)  # metric → a batch (curves, points, b)
    for _, rest, _, measure in run.batches(fills=fills, probe=probe):
        same: dict[int, dict[str, Tensor]] = {}  # of no and of all units: the same in any order
        rows: dict[str, list[Tensor]] = defaultdict(list)
        for sequence in sequences:
            removal = _Removal(rest, fills)
            for p in points:
                if (found := same.get(p)) is None:
                    found = {key: v.cpu() for key, v in measure(removal(sequence[:p])).items()}
                    if p in (0, len(ranked)):
                        same[p] = found
                for key, value in found.items():
                    rows[key].append(value)
        for key, row in rows.items():
            values[key].append(torch.stack(row).unflatten(0, (len(curves), len(points))))
    whole = {key: torch.cat(parts, 2) for key, parts in values.items()}
    kept = whole["rms"][0, 0].isnan().logical_not()
    run.check_valid(int(kept.sum()))
    return AblationCurve(
        points=points,
        curves=curves,
        units=sequences,
        values={key: value[..., kept] for key, value in whole.items()},
        protocol=protocol,
        about=run.about(int(kept.sum()))
        | {"removed": "mean response" if mean else "zero", "definition": dissection.definition},
    )


def _by_selectivity(dissection: Dissection, layers: list[str]) -> list[tuple[str, int]]:
    """(layer, unit), the most selective first."""
    scores = {
        (layer, k): -math.inf if math.isnan(score) else score
        for layer in layers
        for k, score in enumerate(dissection.selectivity[layer].tolist())
    }
    return sorted(scores, key=scores.get, reverse=True)


# ------------------------------------------------------------------ one unit at a time


@dataclass(frozen=True, eq=False)
class UnitEffects:
    """What editing each unit of a layer, alone, does to the depth: its causal effect.

    Attributes:
        change: (K, N_b) mean |change| of the predicted depth over the pixels whose true depth lies
            in the bin, metres; NaN in bins without a pixel.
        relative: (K, N_b) the same, each pixel's change divided by its true depth.
        error: (K, N_b) mean growth of |prediction − truth|, metres; below 0 it got better.
        counts: (N_b,) pixels.
        layer, bins, images, mode, factor: of what.
    """

    change: Tensor
    relative: Tensor
    error: Tensor
    counts: Tensor
    layer: str
    bins: DepthBins
    images: int
    mode: str
    factor: float

    @property
    def total(self) -> Tensor:
        """(K,) mean |change| over all pixels, metres."""
        return self.change.nan_to_num(0) @ self.counts / self.counts.sum()


def unit_effects(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    layer: str,
    *,
    mode: str = "off",
    factor: float = 0.0,
    batch_size: int = 8,
    progress: Callable = progress,
) -> UnitEffects:
    """Edit every unit of a layer alone, and see at which depths the prediction changes.

    The part of the network before the layer runs once for all units. Predictions are brought to the
    size of the ground truth (bilinearly). What is not measured, NaN or beyond the last bin counts
    nowhere.

    Args:
        dissection: of this model; gives the bins and the mean responses.
        mode, factor: as in :func:`unit_edit`.
        progress: called with ``total`` and ``desc``, gives a bar with ``update(n)``, as tqdm does.

    Raises:
        ValueError: as :func:`unit_edit`; a dissection of another model; an empty data set, or one
            without a pixel in any bin.
    """
    checked_layers(model, dissection, layer)
    check_metric(model)
    if len(dataset) == 0:
        raise ValueError("The data set is empty: there is nothing to measure.")
    units, bins = len(dissection.sums[layer]), dissection.bins[layer]
    n, names_of = len(bins), tuple(getattr(model, "input_names", ()))
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    record = Recorder(model, [layer])
    sums = torch.zeros(3, units, n + 1, dtype=torch.float64)
    counts = torch.zeros(n + 1, dtype=torch.float64)
    fields, total = ("image", "depth", *names_of), units * len(dataset)
    with evaluating(model), progress(total=total, desc=f"units of {layer}") as bar:
        for names, batch in (
            found
            for chunk in chunks(len(dataset), batch_size)
            for found in batches(dataset, chunk, batch_size, fields)
        ):
            batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
            truth = batch["depth"].float()
            index = bins.discretize(truth).flatten() + 1  # 0 takes what is in no bin
            if not index.any():
                bar.update(units * len(names))
                continue
            rest = record(batch["image"], {k: batch[k] for k in names_of})
            before = to_size(rest.run({}), truth, names)
            counts += torch.bincount(index, minlength=n + 1).cpu()
            for k in range(units):
                fn = unit_edit(dissection, layer, [k], mode=mode, factor=factor, depth=truth)
                after = to_size(rest.run({layer: fn}), truth, names)
                change = (after - before).abs()
                worse = (after - truth).abs() - (before - truth).abs()
                # What lies in no bin may be divided by 0: its sum is dropped below.
                for row, value in zip(sums, (change, change / truth, worse), strict=True):
                    weights = value.flatten().double()
                    row[k] += torch.bincount(index, weights, n + 1).cpu()
                bar.update(len(names))
    sums, counts = sums[..., 1:], counts[1:]
    if not counts.any():
        raise ValueError(
            f"No pixel of the {len(dataset)} images has a depth inside the bins of {layer!r}: is "
            "the depth in metres, and of the dissection's range?"
        )
    means = torch.where(counts > 0, sums / counts, math.nan)
    return UnitEffects(*means, counts, layer, bins, len(dataset), mode, factor)


# ------------------------------------------------------------------ removing units


class _Removal:
    """Predictions as more and more units of one recording are removed."""

    def __init__(self, rest: Remainder | WholeNetwork, fills: Mapping[str, Tensor]):
        for layer, raw in rest.raw.items():
            check_map(layer, raw, (), fills[layer])
        self.rest, self.fills = rest, fills
        self.gone: dict[str, list[int]] = {layer: [] for layer in fills}
        self.given = {step.outputs[0]: step.value.clone() for step, *_ in rest.convolutions}

    def __call__(self, units: Iterable[tuple[str, int]]) -> Tensor:
        """Without these units, of which all that were removed before are part."""
        new = set(units) - {(layer, k) for layer, gone in self.gone.items() for k in gone}
        for step, channels, args in self.rest.convolutions:
            _, weight, _, *rest = args
            if some := [(unit, c) for unit in new for c in channels.get(unit, ())]:
                change = torch.cat([self._change(*unit) for unit, _ in some], 1)
                weight = weight[:, [c for _, c in some]]
                self.given[step.outputs[0]] += torch.ops.aten.convolution.default(
                    change, weight, None, *rest
                )
        for layer, k in new:
            self.gone[layer].append(k)
        edits = {
            layer: _removing(layer, gone, self.fills[layer]) for layer, gone in self.gone.items()
        }
        return self.rest.run(edits, self.given)

    def _change(self, layer: str, unit: int) -> Tensor:
        raw = self.rest.raw[layer][:, unit : unit + 1]
        return self.fills[layer][unit].to(raw) - raw


# ------------------------------------------------------------------ a pass over a data set


@dataclass(eq=False)
class _Run:
    """A model and a data set, ready to be gone through batch by batch."""

    model: nn.Module
    dataset: object
    layers: list[str]
    protocol: str
    batch_size: int
    device: torch.device
    span: tuple[float, float]

    @classmethod
    def prepare(cls, model, dataset, layers, *, protocol, batch_size, device=None):
        describe_protocol(protocol)  # refuses an unknown one
        chunks(1, batch_size)  # and a batch size below 1
        if len(dataset) == 0:
            raise ValueError("The data set is empty: there is nothing to measure.")
        check_metric(model, [protocol])
        if device is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
        else:
            model.to(device)
        span = find_range(dataset, model)
        return cls(model, dataset, layers, protocol, batch_size, torch.device(device), span)

    def batches(
        self, *, fills: Mapping[str, Tensor] | None = None, probe: Sequence = ()
    ) -> Iterator[tuple[list[int], Remainder | WholeNetwork, dict[str, Tensor], Callable]]:
        """Indices, the remaining network, the batch, and what measures a prediction.

        The first recording is compared with the whole network, with the units ``probe`` removed.
        """
        names_of = tuple(getattr(self.model, "input_names", ()))
        fields, position = ("image", "depth", *names_of), 0
        record = Recorder(self.model, self.layers)
        compared = None if fills is None else (lambda rest: _Removal(rest, fills)(probe))
        with evaluating(self.model):
            for chunk in chunks(len(self.dataset), self.batch_size):
                found = batches(self.dataset, chunk, self.batch_size, fields, optional=["frame"])
                for names, batch in found:
                    frame = batch.get("frame")
                    batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
                    inputs = {k: batch[k] for k in names_of}
                    rest = record(batch["image"], inputs, compared)
                    measure = partial(
                        image_metrics,
                        target=batch["depth"],
                        protocol=self.protocol,
                        cap=self.span[1],
                        names=names,
                        frame=frame,
                    )
                    yield list(range(position, position + len(names))), rest, batch, measure
                    position += len(names)

    def check_valid(self, used: int) -> None:
        if not used:
            raise ValueError(
                f"None of {len(self.dataset)} images has a valid pixel under "
                f"{describe_protocol(self.protocol)} (cap {self.span[1]:g} m). "
                "Is the depth in metres?"
            )

    def about(self, used: int) -> dict:
        if used < len(self.dataset):
            warnings.warn(
                f"{len(self.dataset) - used} of {len(self.dataset)} images have no valid pixel and "
                "were left out; n counts the others.",
                stacklevel=3,
            )
        return {
            "model": _name(self.model),
            "dataset": str(getattr(self.dataset, "name", type(self.dataset).__name__)),
            "protocol": self.protocol,
            "layers": list(self.layers),
            "images": used,
        }


def _over_images(values: Mapping[str, Tensor], protocol: str) -> dict[str, Tensor]:
    """Metric → (…, images) to metric → (…)."""
    pooled = POOLED if PROTOCOLS[protocol].pooled_rms else ()
    means = {key: value.mean(-1) for key, value in values.items()}
    return {key: mean.sqrt() if key in pooled else mean for key, mean in means.items()}


# ------------------------------------------------------------------ checks and helpers


def _removing(layer: str, units: Sequence[int], fill: Tensor | None) -> Callable:
    """The edit that sets units to their value in ``fill`` (K,), or to 0."""

    def remove(act: Tensor) -> Tensor:
        check_map(layer, act, units, fill)
        gone = torch.zeros(act.shape[1], dtype=torch.bool)
        gone[list(units)] = True
        value = act.new_zeros(()) if fill is None else fill.to(act)[:, None, None]
        return torch.where(gone.to(act.device)[:, None, None], value, act)

    return remove


def _mean_response(dissection: Dissection, layer: str) -> Tensor:
    """(K,) mean over all measured pixels, those beyond the last bin too."""
    return dissection.sums[layer].sum(1) / dissection.pixels[layer].sum()


def _derangement(n: int, generator: random.Random) -> list[int]:
    """A random permutation that leaves nothing in its place: one cycle (Sattolo)."""
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = generator.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


def _named(units: Units) -> dict[str, Sequence[int]]:
    if not isinstance(units, Mapping) or not units:
        raise ValueError(f'Units are named by layer, {{"MFF": [3, 7]}}; got {units!r}.')
    return dict(units)


def _units(layer: str, chosen: Sequence[int]) -> list[int]:
    given = [chosen] if isinstance(chosen, int) else list(chosen)
    numbers = [int(k) for k in given]
    if not numbers:
        raise ValueError(f"No units of layer {layer!r} given.")
    if numbers != given or min(numbers) < 0:
        raise ValueError(f"Units of {layer!r} are whole numbers from 0 on; got {given}.")
    if twice := sorted({k for k in numbers if numbers.count(k) > 1}):
        raise ValueError(f"Units of {layer!r} named more than once: {twice}.")
    return numbers


def _name(model: nn.Module) -> str:
    return str(getattr(model, "name", type(model).__name__))


def _check_dissection(model: nn.Module, dissection: Dissection, layers: Iterable[str]) -> None:
    of = dissection.about.get("model", _name(model))
    if of != _name(model):
        raise ValueError(
            f"The dissection was made for the model {of!r}, this one is {_name(model)!r}. Dissect "
            "this one."
        )
    for layer in layers:
        find_layer(model, layer)
        dissection._known(layer)


def checked_layers(model: nn.Module, dissection: Dissection, layers: Iterable[str]) -> list[str]:
    layers = [layers] if isinstance(layers, str) else list(layers)
    if not layers or len(set(layers)) < len(layers):
        raise ValueError(f"Name at least one layer, and each once; got {layers}.")
    _check_dissection(model, dissection, layers)
    return layers


def _check_span(dissection: Dissection, layers: Iterable[str], span: tuple[float, float]) -> None:
    for layer in layers:
        end = dissection.bins[layer].edges[-1].item()
        if not math.isclose(end, span[1]):
            raise ValueError(
                f"The bins of {layer!r} in the dissection end at {end:g} m, this data set's depth "
                f"at {span[1]:g} m. Dissect on data of the same range (`bins=` says which)."
            )


def _known(kind: str, given: Iterable[str], allowed: Sequence[str]) -> list[str]:
    given = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    if not given or (unknown := [name for name in given if name not in allowed]):
        what = repr(unknown[0]) if given else "none"
        raise ValueError(f"Unknown {kind} {what}. Known: {', '.join(allowed)}.")
    return given
