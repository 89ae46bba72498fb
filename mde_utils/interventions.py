"""Change what units answer and see what becomes of the depth: experiments made of edits.

You et al. 2021, section 5: units set to zero one after another (figure 2), and units set to the
mean response that they had, in training, to a pixel's depth (table 3, figure 7).
"""

from __future__ import annotations

import math
import random
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.activations import check_map, evaluating
from mde_utils.checks import unknown
from mde_utils.data.loading import chunks
from mde_utils.depth_bins import DepthBins, find_range
from mde_utils.dissection import Dissection
from mde_utils.edits import ANSWERS, Edit, checked_layers, edits, mean_response
from mde_utils.environment import progress
from mde_utils.evaluation import (
    ERRORS,
    PROTOCOLS,
    check_metric,
    describe_protocol,
    image_metrics,
    to_size,
)
from mde_utils.passes import check_not_empty, inputs_of, model_batches, name_of
from mde_utils.replay import Recorder, Remainder, WholeNetwork

CONTROLS = ("truth", "shuffled", "wrong_bin", "predicted", "fixed_point")
ORDERS = ("most", "least", "random")
POOLED = ("rms", "rms_log")  # roots of means over images, where a protocol says so
# An image is at its fixed point where the mean |change| of its prediction is below, in metres.
MAX_ITERATIONS, TOLERANCE = 10, 1e-3
NUM_BOOTSTRAP, LEVEL = 1000, 0.95  # of intervals
# What an edit changes most, and where: attributes of `UnitEffects`.
MEASURES = {
    "change": "change of depth [m]",
    "relative": "change ÷ true depth",
    "error": "growth of error [m]",
}
RARE = 1e-3  # of the pixels: a bin with less is left out of a match


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
) -> pd.DataFrame:
    """What correction does to the metrics, beside controls that the paper (table 3) lacks.

    Controls: `"truth"` corrects by the ground truth, at every blend; the others with blend 1:
    `"shuffled"` by the ground truth of another image; `"wrong_bin"` by the ground truth, but
    each bin's pixels get the response to another one (a fixed random derangement of the bins with
    pixels); `"predicted"` by the model's own prediction, which needs no ground truth;
    `"fixed_point"` repeats that with the corrected prediction until it stays the same, at most
    `MAX_ITERATIONS` times.

    The part of the network before the layers runs once for all controls.

    Args:
        dissection: of this model, usually on the training set.
        seed: of the other images and bins.

    Returns:
        a row `"none"` (before) and a row a control and blend: `control`, `blend`, `iterations`
        (mean over images), `converged` (images that reached a fixed point), the metrics of
        `evaluate`, and `n`, the number of images. About the run, in `frame.attrs`: model, dataset,
        protocol, layers, images.
    """
    layers = checked_layers(model, dissection, layers)
    controls, blends = _known("control", controls, CONTROLS), [float(b) for b in blends]
    if wrong := [b for b in blends if not 0 <= b <= 1]:
        raise ValueError(f"blends must lie in 0 … 1; got {wrong[0]}.")
    run = _Run.prepare(model, dataset, layers, protocol=protocol, batch_size=batch_size)
    checked_layers(model, dissection, layers, span=run.span)
    if "shuffled" in controls and len(dataset) < 2:
        raise ValueError("A shuffled ground truth needs two images at least; got one.")
    other = _derangement(len(dataset), random.Random(seed))
    swapped = _swapped(dissection, layers, seed) if "wrong_bin" in controls else dissection
    parts: dict[tuple[str, float], list[dict[str, Tensor]]] = defaultdict(list)
    for positions, rest, batch, measure in run.batches():

        def by(depth: Tensor, seen: Dissection = dissection, blend: float = 1.0, rest=rest):
            units = dict.fromkeys(layers)
            return rest.run(edits(units, "corrected", dissection=seen, depth=depth, blend=blend))

        def note(control: str, blend: float, pred: Tensor, n=0, more=None, measure=measure):
            steps = n if isinstance(n, Tensor) else torch.full((len(pred),), float(n))
            parts[control, blend].append(measure(pred) | {"iterations": steps} | (more or {}))

        truth, before = batch["depth"], rest.run({})
        note("none", 0.0, before)
        for blend in blends if "truth" in controls else ():
            note("truth", blend, by(truth, blend=blend), 1)
        if "shuffled" in controls:
            note("shuffled", 1.0, by(_depths(dataset, [other[i] for i in positions], truth)), 1)
        if "wrong_bin" in controls:
            note("wrong_bin", 1.0, by(truth, swapped), 1)
        if {"predicted", "fixed_point"} & set(controls):
            first = by(before)
            if "predicted" in controls:
                note("predicted", 1.0, first, 1)
            if "fixed_point" in controls:
                pred, steps, settled = _fixed_point(by, before, first)
                note("fixed_point", 1.0, pred, steps, {"converged": settled})
    return run.frame(parts)


def _depths(dataset, indices: Sequence[int], like: Tensor) -> Tensor:
    depths = [torch.as_tensor(dataset[i]["depth"]) for i in indices]
    if len({d.shape for d in depths} | {like.shape[1:]}) > 1:
        raise ValueError(
            "A shuffled ground truth needs images of one size; this data set has "
            f"{tuple(like.shape[2:])} and others. Leave out the control 'shuffled'."
        )
    return torch.stack(depths).to(like)


def _fixed_point(by: Callable, before: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Correct by the corrected prediction, each image until it stays the same.

    Returns:
        depth (B, 1, h, w); (B,) steps taken, and whether the last one changed nothing.
    """
    pred, new, steps = before, first, torch.zeros(len(before))
    moving = torch.ones(len(before), dtype=torch.bool, device=before.device)
    for step in range(MAX_ITERATIONS):
        new = by(pred) if step else first
        new = torch.where(moving[:, None, None, None], new, pred)
        steps += moving.cpu()
        moving = (new - pred).abs().flatten(1).mean(1) >= TOLERANCE
        pred = new
        if not moving.any():
            break
    return pred, steps, moving.logical_not().cpu().float()


def _swapped(dissection: Dissection, layers: Iterable[str], seed: int) -> Dissection:
    """One in which each bin with pixels has the responses to another one."""
    sums, pixels = dict(dissection.sums), dict(dissection.pixels)
    for layer in layers:
        known = dissection.counts[layer].nonzero()[:, 0]
        wrong = known[_derangement(len(known), random.Random(seed))]
        pixels[layer] = F.pad(dissection.counts[layer], (0, 1))
        sums[layer] = torch.zeros_like(sums[layer])
        sums[layer][:, known] = dissection.response[layer][:, wrong] * pixels[layer][known]
    return replace(dissection, sums=sums, pixels=pixels)


def _derangement(n: int, generator: random.Random) -> list[int]:
    """A random permutation that leaves nothing in its place: one cycle (Sattolo)."""
    order = list(range(n))
    for i in range(n - 1, 0, -1):
        j = generator.randrange(i)
        order[i], order[j] = order[j], order[i]
    return order


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

    @property
    def says(self) -> str:
        """Which loss hurts more: an area with its interval on one side of 0, outside the band."""
        if self.low > 0 and self.area > self.band_high:
            return "more"
        return "less" if self.high < 0 and self.area < self.band_low else "not shown"


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

    def area(self, metric: str = "d1") -> Area:
        """How much more it hurts to remove selective units first than last.

        The interval is that of a bootstrap over images. The band is what the order alone can do:
        "least first" is "most first" backwards, and the area of a random order less that of its
        reverse strays at most twice as far as the area of one random order from their mean.
        """
        if not {("most", 0), ("least", 0)} <= set(self.curves) or len(self.points) < 2:
            raise ValueError(
                "The area lies between the orders 'most' and 'least', over two points at least; "
                f"got {sorted({order for order, _ in self.curves})} and {len(self.points)} points."
            )
        images = self._images
        draws = np.random.default_rng(0).multinomial(
            images, np.full(images, 1 / images), size=NUM_BOOTSTRAP
        )
        weights = torch.cat([torch.ones(1, images), torch.from_numpy(draws)]).double()
        under = torch.trapezoid(self._drop(metric, weights), torch.tensor(self.points), dim=1)
        under = under / (self.points[-1] - self.points[0])  # (curves, draws)
        areas = under[self.curves.index(("most", 0))] - under[self.curves.index(("least", 0))]
        tails = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
        low, high = areas[1:].quantile(tails).tolist()
        reach = math.nan
        if some := [i for i, (order, _) in enumerate(self.curves) if order == "random"]:
            # Of both signs alike, as an order and its reverse may change places.
            reach = 2 * (under[some, 0] - under[some, 0].mean()).abs().quantile(LEVEL).item()
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
    answer: str = "zero",
    protocol: str = "imde",
    batch_size: int = 16,
    seed: int = 0,
) -> AblationCurve:
    """Remove the units of `layers` one after another, and measure (figure 2 of the paper).

    The units of all the layers are pooled and ordered by their selectivity; one without a number
    (NaN) counts as the least selective, ties go by layer and number. "least" is the reverse of
    "most". The part of the network before the layers runs once for all curves; behind it, a
    convolution that the removed units enter directly is updated by what they gave to it.

    Args:
        dissection: of this model; gives the order and the mean responses.
        orders: of `"most"` (selective first), `"least"` and `"random"`.
        num_random: number of random orders.
        points: numbers of removed units to measure at; None = 0, 1, … all.
        answer: of removed units, `"zero"` or `"mean"` (see `edits`).
        seed: of the random orders.
    """
    layers = checked_layers(model, dissection, layers)
    orders = _known("order", orders, ORDERS)
    (answer,) = _known("answer", answer, ("zero", "mean"))
    if "random" in orders and num_random < 1:
        raise ValueError(f"num_random must be at least 1, got {num_random}.")
    ranked = _by_selectivity(dissection, layers)
    points = list(range(len(ranked) + 1)) if points is None else sorted({int(p) for p in points})
    if not points or points[0] < 0 or points[-1] > len(ranked):
        raise ValueError(
            f"points must be numbers of removed units in 0 … {len(ranked)}, the units of "
            f"{', '.join(layers)}; got {points or 'none'}."
        )
    curves, sequences = _sequences(ranked, orders, num_random, seed)
    fills = {layer: mean_response(dissection, layer) * (answer == "mean") for layer in layers}
    run = _Run.prepare(model, dataset, layers, protocol=protocol, batch_size=batch_size)
    values: dict[str, list[Tensor]] = defaultdict(list)  # metric → a batch (curves, points, b)
    # The first recording is compared with the whole network, every other unit removed.
    for _, rest, _, measure in run.batches(lambda rest: _Removal(rest, fills)(ranked[::2])):
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
    about = {"removed": "mean response" if answer == "mean" else "zero"}
    about |= run.about(int(kept.sum())) | {"definition": dissection.definition}
    values = {key: value[..., kept] for key, value in whole.items()}
    return AblationCurve(points, curves, sequences, values, protocol, about)


def _by_selectivity(dissection: Dissection, layers: list[str]) -> list[tuple[str, int]]:
    """(layer, unit), the most selective first."""
    scores = {
        (layer, k): -math.inf if math.isnan(score) else score
        for layer in layers
        for k, score in enumerate(dissection.selectivity[layer].tolist())
    }
    return sorted(scores, key=scores.get, reverse=True)


def _sequences(ranked: list, orders: list[str], num_random: int, seed: int) -> tuple[list, list]:
    """(order, repeat), and the units of each in the order of their removal."""
    shuffle = random.Random(seed)
    curves = [(o, i) for o in orders for i in range(num_random if o == "random" else 1)]
    ways = {
        "most": lambda: list(ranked),
        "least": lambda: ranked[::-1],
        "random": lambda: shuffle.sample(ranked, len(ranked)),
    }
    return curves, [ways[order]() for order, _ in curves]


class _Removal:
    """Predictions as more and more units of one recording answer `fills`, layer → (K,)."""

    def __init__(self, rest: Remainder | WholeNetwork, fills: Mapping[str, Tensor]):
        for layer, raw in rest.raw.items():
            check_map(layer, raw, known=len(fills[layer]))
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
        made = {
            layer: Edit(layer, gone, self.fills[layer][:, None, None].to)
            for layer, gone in self.gone.items()
        }
        return self.rest.run(made, self.given)

    def _change(self, layer: str, unit: int) -> Tensor:
        raw = self.rest.raw[layer][:, unit : unit + 1]
        return self.fills[layer][unit].to(raw) - raw


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
        layer, bins, images, answer, factor: of what.
    """

    change: Tensor
    relative: Tensor
    error: Tensor
    counts: Tensor
    layer: str
    bins: DepthBins
    images: int
    answer: str
    factor: float

    @property
    def total(self) -> Tensor:
        """(K,) mean |change| over all pixels, metres."""
        return self.change.nan_to_num(0) @ self.counts / self.counts.sum()

    def match(
        self, dissection: Dissection, *, draws: int = NUM_BOOTSTRAP, seed: int = 0
    ) -> pd.DataFrame:
        """Are units needed where they answer? Of every unit two depths: the one that it answers to
        most, and the one where its edit changes most; and their rank correlation over the units.

        Rare bins, and units without response or effect, are left out.

        Args:
            dissection: of the same model.
            draws, seed: of units, for the interval, and of shuffled pairs.

        Returns:
            a row for each of `MEASURES`: `units`; `depths`, how many they answer to; `r`; `low`
            and `high`, its bootstrap interval (95 %); `chance`, above 95 % of the |r| of shuffled
            pairs; `yes`: an interval above 0 and an r above chance. NaN where all depths are one.
        """
        known = torch.stack([self.counts, dissection.counts[self.layer]])
        known = (known > RARE * known.sum(1, keepdim=True)).all(0)
        response = dissection.response[self.layer].abs()[:, known]
        kept = response.any(1) & (self.change[:, known].sum(1) > 0)
        answers = response[kept].argmax(1).numpy()
        draw, n, rows = np.random.default_rng(seed), len(answers), {}
        for measure, words in MEASURES.items():
            needed = getattr(self, measure)[kept][:, known].argmax(1).numpy()
            some = (n * draw.random((draws, n))).astype(int)
            shuffled = draw.permuted(np.tile(needed, (draws, 1)), axis=1)
            r = _rank_correlation(answers[None], needed[None])[0]
            found = _rank_correlation(answers[some], needed[some])
            low, high = found.quantile([(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            chance = _rank_correlation(np.tile(answers, (draws, 1)), shuffled).abs().quantile(LEVEL)
            yes = bool(low > 0 and r > chance)
            rows[words] = (n, len(set(answers.tolist())), r, low, high, chance, yes)
        names = ["units", "depths", "r", "low", "high", "chance", "yes"]
        return pd.DataFrame.from_dict(rows, orient="index", columns=names)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> pd.Series:
    """Spearman's, of each row of `a` with that of `b`; NaN where one is constant."""
    ranks = [pd.DataFrame(x).rank(axis=1) for x in (a, b)]
    a, b = (x.sub(x.mean(axis=1), axis=0) for x in ranks)
    return (a * b).sum(axis=1) / ((a * a).sum(axis=1) * (b * b).sum(axis=1)) ** 0.5


def unit_effects(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    layer: str,
    *,
    answer: str = "zero",
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
        answer, factor: of the unit, see `edits`; `"corrected"` by the ground truth.
        progress: called with `total` and `desc`, gives a bar with `update(n)`, as tqdm does.
    """
    checked_layers(model, dissection, layer)
    _known("answer", answer, ANSWERS[:4])
    check_metric(model)
    units, bins = len(dissection.sums[layer]), dissection.bins[layer]
    n = len(bins)
    sums = torch.zeros(3, units, n + 1, dtype=torch.float64)
    counts = torch.zeros(n + 1, dtype=torch.float64)
    with progress(total=units * len(dataset), desc=f"units of {layer}") as bar:
        for names, batch, rest in _recordings(model, dataset, [layer], batch_size):
            truth = batch["depth"].float()
            index = bins.discretize(truth).flatten() + 1  # 0 takes what is in no bin
            if not index.any():
                bar.update(units * len(names))
                continue
            before = to_size(rest.run({}), truth, names)
            counts += torch.bincount(index, minlength=n + 1).cpu()
            for k in range(units):
                made = edits(
                    {layer: [k]}, answer, factor=factor, dissection=dissection, depth=truth
                )
                after = to_size(rest.run(made), truth, names)
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
    return UnitEffects(*means, counts, layer, bins, len(dataset), answer, factor)


# ------------------------------------------------------------------ a pass over a data set


def _recordings(
    model: nn.Module, dataset, layers: list[str], batch_size: int, probe: Callable | None = None
) -> Iterator[tuple[list[str], dict[str, Tensor], Remainder | WholeNetwork]]:
    """Names, batch and the network behind `layers`; in evaluation mode, without gradient."""
    check_not_empty(dataset)
    record = Recorder(model, layers)
    with evaluating(model):
        found = model_batches(model, dataset, batch_size=batch_size, optional=["frame"])
        for names, batch in found:
            yield names, batch, record(batch["image"], inputs_of(model, batch), probe)


@dataclass(eq=False)
class _Run:
    """A model and a data set, ready to be gone through batch by batch and measured."""

    model: nn.Module
    dataset: object
    layers: list[str]
    protocol: str
    batch_size: int
    span: tuple[float, float]

    @classmethod
    def prepare(cls, model, dataset, layers, *, protocol, batch_size):
        describe_protocol(protocol)  # refuses an unknown one
        chunks(1, batch_size)  # and a batch size below 1
        check_not_empty(dataset)
        check_metric(model, [protocol])
        return cls(model, dataset, layers, protocol, batch_size, find_range(dataset, model))

    def batches(
        self, probe: Callable | None = None
    ) -> Iterator[tuple[list[int], Remainder | WholeNetwork, dict[str, Tensor], Callable]]:
        """Indices, the remaining network, the batch, and what measures a prediction."""
        position = 0
        found = _recordings(self.model, self.dataset, self.layers, self.batch_size, probe)
        for names, batch, rest in found:
            measure = partial(
                image_metrics,
                target=batch["depth"],
                protocol=self.protocol,
                cap=self.span[1],
                names=names,
                frame=batch.get("frame"),
            )
            yield list(range(position, position + len(names))), rest, batch, measure
            position += len(names)

    def frame(self, parts: Mapping[tuple[str, float], list[dict[str, Tensor]]]) -> pd.DataFrame:
        """A row a control and blend, of each image's metrics, iterations and `converged`."""
        rows = []
        for (control, blend), found in parts.items():
            values = {key: torch.cat([part[key].cpu() for part in found]) for key in found[0]}
            kept = values["rms"].isnan().logical_not()
            n = int(kept.sum())
            values = {key: value[kept].double() for key, value in values.items()}
            row = {"control": control, "blend": blend, "iterations": math.nan}
            row["iterations"] = values.pop("iterations").mean().item()
            row["converged"] = values.pop("converged", torch.tensor(math.nan)).sum().item()
            means = _over_images(values, self.protocol).items()
            rows.append(row | {key: value.item() for key, value in means} | {"n": n})
        frame = pd.DataFrame(rows)
        frame.attrs = self.about(int(frame["n"].max()))
        return frame

    def about(self, used: int) -> dict:
        if not used:
            raise ValueError(
                f"None of {len(self.dataset)} images has a valid pixel under "
                f"{describe_protocol(self.protocol)} (cap {self.span[1]:g} m). "
                "Is the depth in metres?"
            )
        if used < len(self.dataset):
            warnings.warn(
                f"{len(self.dataset) - used} of {len(self.dataset)} images have no valid pixel and "
                "were left out; n counts the others.",
                stacklevel=3,
            )
        return {
            "model": name_of(self.model),
            "dataset": name_of(self.dataset),
            "protocol": self.protocol,
            "layers": list(self.layers),
            "images": used,
        }


def _over_images(values: Mapping[str, Tensor], protocol: str) -> dict[str, Tensor]:
    """Metric → (…, images) to metric → (…)."""
    pooled = POOLED if PROTOCOLS[protocol].pooled_rms else ()
    means = {key: value.mean(-1) for key, value in values.items()}
    return {key: mean.sqrt() if key in pooled else mean for key, mean in means.items()}


def _known(kind: str, given: Iterable[str], allowed: Sequence[str]) -> list[str]:
    given = [given] if isinstance(given, str) else list(dict.fromkeys(given))
    if not given or (wrong := [name for name in given if name not in allowed]):
        raise ValueError(unknown(kind, wrong[0] if given else None, allowed))
    return given
