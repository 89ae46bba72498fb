"""Adversarial images, and the way back from wrong pixels to the units behind them.

FGSM (Goodfellow et al. 2015, arXiv:1412.6572) and PGD (Madry et al. 2018, arXiv:1706.06083), both
untargeted and in the maximum norm, on images in [0, 1]. An error is traced as in You et al. 2021,
figure 8: wrong pixels → the depth bins that their *predictions* fall in → the units of these bins →
what becomes of the errors when these units are set back.

What is called a batch here may be a data set, too: it is taken `BATCH` images at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce, wraps
from operator import add

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.activations import edit, evaluating, tap
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection
from mde_utils.edits import Units, checked_layers, edits
from mde_utils.evaluation import MIN_DEPTH
from mde_utils.passes import model_batches
from mde_utils.selectivity import EPS, assigned_bins, pool_by_bin

Loss = Callable[[Tensor, Tensor], Tensor]
VALUES = ("clean", "corrected")
UNIT_BINS = ("assigned", "best")
BATCH = 8  # images of a data set that are taken at a time


def _of_data_sets(of_batch: Callable) -> Callable:
    """`of_batch` for a data set too: what it gives of the batches, joined or added up."""

    @wraps(of_batch)
    def of_either(model: nn.Module, batch, *args, **options):
        if isinstance(batch, Mapping):
            return of_batch(model, batch, *args, **options)
        attacked, done, parts = options.pop("attacked", None), 0, []
        if attacked is not None and len(attacked) != len(batch):
            raise ValueError(f"{len(attacked)} attacked images, but {len(batch)} in the data set.")
        for names, part in model_batches(model, batch, batch_size=BATCH):
            own = {} if attacked is None else {"attacked": attacked[done : done + len(names)]}
            parts.append(of_batch(model, {"name": names, **part}, *args, **own, **options))
            done += len(names)
        if isinstance(parts[0], Tensor):
            return torch.cat(parts).cpu()
        if isinstance(parts[0], list):
            return [reduce(add, draws) for draws in zip(*parts, strict=True)]
        return reduce(add, parts)

    return of_either


# ------------------------------------------------------------------ attacks


def mean_absolute_error(pred: Tensor, target: Tensor) -> Tensor:
    """Mean of |pred − target| over the pixels with a measurement, in metres; scalar."""
    valid = (target > 0) & target.isfinite()
    return (pred - torch.where(valid, target, 0.0)).abs()[valid].mean()


@_of_data_sets
def fgsm(
    model: nn.Module, batch: Mapping, *, epsilon: float, loss: Loss = mean_absolute_error
) -> Tensor:
    """Fast gradient sign method: clip(image + ε · sign(∂ loss / ∂ image), 0, 1).

    The model runs in evaluation mode; its modes and its parameters' `.grad` stay as they are.

    Args:
        batch: `image` (B, 3, H, W) RGB in [0, 1], `depth` (B, 1, H', W') metres, 0 = no
            measurement, and what the model's `input_names` list; `name` serves messages.
        epsilon: in the pixel range, 0 … 1; the paper's figure 8 has 0.05.
        loss: `loss(pred, target) -> scalar`, both (1, 1, h, w) metres at the network's own
            resolution (the ground truth resized by nearest-exact). It is called image by image, so
            that images do not share an attack. The paper does not say which loss its figure 8
            takes; the default is the mean absolute error over measured pixels, in metres, the term
            that the training losses of the suite's systems have in common.

    Returns:
        the attacked images (B, 3, H, W) in [0, 1], where the batch's images are.
    """
    return _ascend(model, batch, epsilon, steps=1, step_size=epsilon, start=None, loss=loss)


@_of_data_sets
def pgd(
    model: nn.Module,
    batch: Mapping,
    *,
    epsilon: float,
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    seed: int = 0,
    loss: Loss = mean_absolute_error,
) -> Tensor:
    """Projected gradient descent: FGSM steps, after each of which the images are put back into the
    ball max |x − image| ≤ ε and into [0, 1]. The last step's images are returned.

    Args:
        model, batch, epsilon, loss: as `fgsm`.
        steps: at least 1.
        step_size: in the pixel range; None = 2.5 ε / steps (Madry et al.), which reaches the ball's
            border from anywhere in it.
        random_start: start at a uniformly random point of the ball; else at the image.
        seed: of that point.
    """
    _check_epsilon(epsilon)
    if int(steps) != steps or steps < 1:
        raise ValueError(f"PGD needs a whole number of steps, at least 1; got {steps}.")
    if step_size is None:
        step_size = 2.5 * epsilon / steps
    elif not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"The step size must be above 0, in the pixel range; got {step_size}.")
    start = torch.Generator().manual_seed(seed) if random_start else None
    return _ascend(model, batch, epsilon, steps=steps, step_size=step_size, start=start, loss=loss)


def _ascend(
    model: nn.Module,
    batch: Mapping,
    epsilon: float,
    *,
    steps: int,
    step_size: float,
    start: torch.Generator | None,
    loss: Loss,
) -> Tensor:
    _check_epsilon(epsilon)
    given = _read(model, batch)
    image = x = given.image
    if start is not None:  # drawn on the CPU: the same on every device
        noise = torch.rand(image.shape, generator=start) * (2 * epsilon) - epsilon
        x = (image + noise.to(image)).clamp(0, 1)
    for step in range(steps):
        with evaluating(model), torch.enable_grad():
            x = x.detach().requires_grad_()
            pred, target, _ = given.compare(model(x, **given.inputs))
            pairs = zip(pred.split(1), target.split(1), strict=True)
            total = torch.stack([loss(p, y) for p, y in pairs]).sum()
            gradient = None
            if total.requires_grad:
                (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "The loss has no gradient with respect to the image: somewhere the model or the "
                "loss detaches it (.detach(), torch.no_grad, numpy, argmax)."
            )
        flat = gradient.flatten(1)
        if bool((bad := ~flat.isfinite().all(1)).any()):
            raise ValueError(
                f"The gradient with respect to the image is not finite: {given.named(bad)}."
            )
        if step == 0 and bool((dead := ~flat.any(1)).any()):
            raise ValueError(
                f"The gradient with respect to the image is 0 everywhere: {given.named(dead)}. "
                "The loss does not depend on the image (dead units, a saturated activation), so "
                "there is nothing to climb."
            )
        x = x.detach() + step_size * gradient.sign()
        x = (image + (x - image).clamp(-epsilon, epsilon)).clamp(0, 1)
    return x.to(batch["image"].device)


def _check_epsilon(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and 0 <= epsilon <= 1):
        raise ValueError(
            f"epsilon is in the pixel range and must lie in [0, 1]; got {epsilon}. "
            "For 8-bit steps divide by 255."
        )


@dataclass(frozen=True)
class _Given:
    """A checked batch, where the model is."""

    image: Tensor
    depth: Tensor
    inputs: dict[str, Tensor]
    names: list[str]

    def named(self, which: Tensor) -> str:
        return ", ".join(self.names[i] for i in which.nonzero().flatten().tolist())

    def compare(self, pred) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, ground truth at its resolution, and where this is valid: (B, 1, h, w)."""
        if not isinstance(pred, Tensor) or pred.ndim != 4 or pred.shape[:2] != self.depth.shape[:2]:
            shape = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
            raise ValueError(
                f"The model must return depth (B, 1, h, w) in metres for a batch of "
                f"{len(self.image)}, got {shape}."
            )
        pred = pred.float()
        if bool((bad := ~pred.isfinite().flatten(1).all(1)).any()):
            raise ValueError(f"The prediction holds NaN or infinity: {self.named(bad)}.")
        target = F.interpolate(self.depth, pred.shape[-2:], mode="nearest-exact")
        valid = (target > 0) & target.isfinite()
        if bool((bad := ~valid.flatten(1).any(1)).any()):
            raise ValueError(
                f"No valid depth (above 0 m, finite) at the network's resolution "
                f"{tuple(pred.shape[-2:])}: {self.named(bad)}. Leave such images out."
            )
        return pred, target, valid


def _read(model: nn.Module, batch: Mapping) -> _Given:
    """Raises: ValueError, TypeError: what the batch lacks, or holds in another form."""
    keys = tuple(getattr(model, "input_names", ()))
    if missing := [k for k in ("image", "depth", *keys) if k not in batch]:
        raise ValueError(f"The batch has no {missing[0]!r}; it has {', '.join(batch)}.")
    image, depth = batch["image"], batch["depth"]
    _check_image(image, "image")
    if depth.ndim != 4 or depth.shape[:2] != (len(image), 1):
        raise ValueError(
            f"The batch's depth must be (B, 1, H, W) for {len(image)} images; "
            f"got {tuple(depth.shape)}."
        )
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return _Given(
        image=image.detach().to(device, torch.float32),
        depth=depth.detach().to(device, torch.float32),
        inputs={k: batch[k].to(device) for k in keys},
        names=[str(n) for n in batch.get("name", [f"image {i}" for i in range(len(image))])],
    )


def _check_image(image: Tensor, what: str) -> None:
    if not (isinstance(image, Tensor) and image.is_floating_point() and image.ndim == 4):
        given = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
        raise ValueError(f"The {what} must be a float tensor (B, 3, H, W) in [0, 1]; got {given}.")
    low, high = image.min().item(), image.max().item()
    if not (low >= 0 and high <= 1):  # NaN fails, too
        raise ValueError(
            f"The {what} must lie in [0, 1]; got values from {low:.4g} to {high:.4g}. The model "
            "normalises images itself."
        )


# ------------------------------------------------------------------ setting units back


@dataclass(frozen=True)
class Repair:
    """What setting units back did to the errors of an attack. Batches can be added (`+`).

    Attributes:
        errors: pixels that are wrong under the attack.
        repaired: those of them that are right once the units are set back.
        caused: pixels that are right under the attack and wrong once the units are set back.
    """

    errors: int
    repaired: int
    caused: int

    @property
    def share(self) -> float:
        """Share of the errors that is repaired; NaN where there are none."""
        return self.repaired / self.errors if self.errors else math.nan

    @property
    def net(self) -> float:
        """The same less the errors newly caused."""
        return (self.repaired - self.caused) / self.errors if self.errors else math.nan

    def __add__(self, other: Repair) -> Repair:
        if not isinstance(other, Repair):
            return NotImplemented
        return Repair(
            self.errors + other.errors, self.repaired + other.repaired, self.caused + other.caused
        )


class _Case:
    """A batch, clean and attacked, through the network once each; the model is in evaluation mode
    as long as it lives (`with evaluating(model)`)."""

    def __init__(self, model, batch, dissection, layers, attacked, threshold):
        if not (math.isfinite(threshold) and threshold > 1):
            raise ValueError(f"The threshold is a ratio above 1 (1.25 for δ1); got {threshold}.")
        self.given = _read(model, batch)
        _check_image(attacked, "attacked image")
        if attacked.shape != self.given.image.shape:
            raise ValueError(
                f"The attacked image is {tuple(attacked.shape)}, the batch's "
                f"{tuple(self.given.image.shape)}: give the attack of this very batch."
            )
        layers = checked_layers(model, dissection, layers)
        self.model, self.dissection, self.layers = model, dissection, layers
        self.threshold = threshold
        self.attacked = attacked.detach().to(self.given.image)
        with tap(model, layers) as acts:
            clean = model(self.given.image, **self.given.inputs)
            self.acts = dict(acts)
            for layer in layers:
                units, known = self.acts[layer].shape[1], len(dissection.sums[layer])
                if units != known:
                    raise ValueError(
                        f"Layer {layer!r} has {units} units, in the dissection {known}: it was "
                        "made for another model. Dissect this one."
                    )
            self.clean, self.target, self.valid = self.given.compare(clean)
            self.pred = self.predict()
            self.attacked_acts = dict(acts)
        self.wrong = self.errors(self.pred)

    def predict(self) -> Tensor:
        """Depth (B, 1, h, w) of the attacked images, the network being edited as it is."""
        return self.given.compare(self.model(self.attacked, **self.given.inputs))[0]

    def errors(self, pred: Tensor) -> Tensor:
        return error_mask(pred, self.target, threshold=self.threshold)

    def set_back(self, units: Units, value: str) -> Repair:
        made = edits(
            units, value, dissection=self.dissection, depth=self.given.depth, clean=self.acts
        )
        with edit(self.model, made):
            wrong = self.errors(self.predict())
        return Repair(
            errors=int(self.wrong.sum()),
            repaired=int((self.wrong & ~wrong).sum()),
            caused=int((wrong & ~self.wrong).sum()),
        )


def error_mask(pred: Tensor, target: Tensor, *, threshold: float = 1.25) -> Tensor:
    """Where max(pred / target, target / pred) is not below the threshold; False where the target
    has no measurement. Both one shape, metres; predictions are raised to 1 mm, as in evaluation."""
    valid = (target > 0) & target.isfinite()
    pred, target = pred.clamp(min=MIN_DEPTH), torch.where(valid, target, 1.0)
    return valid & ~(torch.maximum(pred / target, target / pred) < threshold)


@_of_data_sets
def repair(
    model: nn.Module,
    batch: Mapping,
    dissection: Dissection,
    layers: Iterable[str],
    units: Units,
    *,
    attacked: Tensor,
    value: str = "clean",
    threshold: float = 1.25,
) -> Repair:
    """What becomes of the errors of an attack when a set of units is set back, all together.

    Args:
        batch, dissection, layers, attacked, threshold: as `trace_errors`.
        units: layer → units, e.g. `trace.blamed(5)`.
        value: what the units get while the attacked images run: `"clean"`, their response to the
            clean images (activation patching), or `"corrected"`, their mean response to the
            ground truth's bin (`edits.correct`).
    """
    with evaluating(model):
        case = _Case(model, batch, dissection, layers, attacked, threshold)
        return case.set_back(_check_units(units, case), _check_value(value))


@_of_data_sets
def random_repair(
    model: nn.Module,
    batch: Mapping,
    dissection: Dissection,
    layers: Iterable[str],
    units: Units,
    *,
    attacked: Tensor,
    value: str = "clean",
    threshold: float = 1.25,
    num_draws: int = 20,
    seed: int = 0,
) -> list[Repair]:
    """The same for as many random units of each layer as `units` holds: what `repair` has
    to be compared with. A draw is the same for every batch, so draws can be added over batches.

    Args:
        num_draws: random sets; any unit of the layer may be drawn, `units` among them.
        seed: of the draws.
    """
    if num_draws < 1:
        raise ValueError(f"num_draws must be at least 1, got {num_draws}.")
    generator = torch.Generator().manual_seed(seed)
    with evaluating(model):
        case = _Case(model, batch, dissection, layers, attacked, threshold)
        units, value = _check_units(units, case), _check_value(value)
        draws = []
        for _ in range(num_draws):
            drawn = {
                k: torch.randperm(len(dissection.sums[k]), generator=generator)[: len(u)].tolist()
                for k, u in units.items()
            }
            draws.append(case.set_back(drawn, value))
    return draws


def _check_value(value: str) -> str:
    if value not in VALUES:
        raise ValueError(f"Unknown value {value!r}. Known: {', '.join(VALUES)}.")
    return value


def _check_units(units: Units, case: _Case) -> dict[str, list[int]]:
    units = {k: [int(u) for u in some] for k, some in units.items() if len(some)}
    if not units:
        raise ValueError("No units given: name at least one, {layer: [unit, …]}.")
    for layer, some in units.items():
        if layer not in case.layers:
            raise ValueError(f"Units of layer {layer!r}, but the layers are {case.layers}.")
        number = len(case.dissection.sums[layer])
        if wrong := [u for u in some if not 0 <= u < number]:
            raise ValueError(f"Layer {layer!r} has units 0 … {number - 1}; got {wrong}.")
        if len(set(some)) < len(some):
            raise ValueError(f"Units of layer {layer!r} are named more than once: {some}.")
    return units


# ------------------------------------------------------------------ from errors to units


@dataclass(frozen=True, eq=False)
class ErrorTrace:
    """Errors of an attack, the depth bins that they are predicted in, and the units of these bins.

    Everything is at the network's own resolution, with the ground truth resized by nearest-exact.
    An error is a pixel with a measurement whose ratio to it is not below `threshold`. Of a bin
    index, `N_b` stands for the overflow: depth beyond the last edge. Traces of several batches
    can be added (`+`).

    Attributes:
        names: of the images.
        target, clean, attacked: (1, h, w) of each image, metres: ground truth (0 = no measurement)
            and the depth predicted from the clean and from the attacked image.
        transport: `"clean"` and `"attacked"` → layer → (N_b + 1, N_b + 1) int64: pixels by bin
            of the ground truth (rows) and of the prediction (columns).
        errors: the same → (N_b + 1,) int64: errors by bin of the prediction.
        missed: layer → (N_b + 1,) int64: attacked errors by bin of the ground truth.
        changes: `"predicted"` and `"truth"` → layer → (K, N_b) float64: the change of each
            unit's (upsampled) response by the attack, attacked − clean, summed over the attacked
            errors that are predicted in a bin, or whose ground truth lies in it.
        repairs: `"clean"` and `"corrected"` → (layer, unit) → what setting back that unit alone
            did, for the units that it was measured for in every batch.
        dissection: whence bins and typical responses.
        threshold, by: as `trace_errors` got them.
    """

    names: list[str]
    target: list[Tensor]
    clean: list[Tensor]
    attacked: list[Tensor]
    transport: dict[str, dict[str, Tensor]]
    errors: dict[str, dict[str, Tensor]]
    missed: dict[str, Tensor]
    changes: dict[str, dict[str, Tensor]]
    repairs: dict[str, dict[tuple[str, int], Repair]]
    dissection: Dissection
    threshold: float = 1.25
    by: str = "assigned"

    @property
    def layers(self) -> list[str]:
        return list(self.missed)

    @property
    def bins(self) -> dict[str, DepthBins]:
        return {layer: self.dissection.bins[layer] for layer in self.layers}

    @property
    def d1(self) -> dict[str, float]:
        """Share of measured pixels below the threshold (δ1 for 1.25), `"clean"` and
        `"attacked"`; over the pixels of all images together."""
        layer = self.layers[0]
        return {
            k: 1 - self.errors[k][layer].sum().item() / self.transport[k][layer].sum().item()
            for k in self.transport
        }

    @property
    def unit_bins(self) -> dict[str, Tensor]:
        """Layer → (K,) the bin of each unit: the assigned one or that of its strongest response."""
        return {k: _unit_bins(self.dissection, k, self.by) for k in self.layers}

    def concentration(self, layer: str) -> pd.DataFrame:
        """How few predicted-depth bins hold the errors, beside all measured pixels of the same
        prediction (errors gather in few bins already where the predictions do).

        Returns:
            rows `(prediction, pixels)`: `("attacked", "errors")`, `("attacked", "all")`, …;
            columns `count`, `bins` (that hold any), `bins_half` (the fewest that hold half of
            them) and `entropy` of their distribution, 0 (one bin) … 1 (uniform over the N_b bins
            and the overflow); NaN where there is no pixel.
        """
        rows = {}
        for name in ("attacked", "clean"):
            counts = self.errors[name][self._known(layer)], self.transport[name][layer].sum(0)
            for pixels, count in zip(("errors", "all"), counts, strict=True):
                share = (count / count.sum()).sort(descending=True).values
                # Counts, so that no rounding decides.
                half = (2 * count.sort(descending=True).values.cumsum(0) < count.sum()).sum() + 1
                some = bool(count.any())
                rows[name, pixels] = {
                    "count": int(count.sum()),
                    "bins": int((count > 0).sum()),
                    "bins_half": float(half) if some else math.nan,
                    "entropy": (-torch.xlogy(share, share).sum() / math.log(len(share))).item(),
                }
        frame = pd.DataFrame.from_dict(rows, orient="index")
        return frame.rename_axis(["prediction", "pixels"])

    @property
    def units(self) -> pd.DataFrame:
        """All units, the most blamed first.

        An attack carries a pixel from the bin of its truth to the bin of its prediction. A unit is
        blamed for answering more at attacked errors that are *predicted* in its bin (`excess`)
        and less at those whose *truth* lies in its bin (`lack`): the change of its response by
        the attack (the other way round for `lack`), summed over these pixels, per attacked error
        of all, in multiples of the layer's scale (max |R| of a unit, averaged over the layer's
        units, R being mean responses); "more" is towards the sign of the unit's R at its bin.
        `blame = excess + lack`. Figure 8 of the paper looks at the first alone. No measured
        repair enters. Units that are dead, or whose bin the dissection has no pixel of, have a
        blame of 0.

        Columns: `layer`, `unit`, `bin` with `from_m` and `to_m`, `error_pixels` and
        `error_share` (attacked errors predicted in that bin), `missed_share` (with their truth
        in it), `excess`, `lack`, `blame`; and for each of `"clean"` and `"corrected"` the
        share of attacked errors that setting back this unit alone repairs, causes, and their
        difference, e.g. `repaired_clean`, `caused_clean`, `net_clean` (NaN where not
        measured).
        """
        frames = []
        for layer in self.layers:
            unit_bin, edges = self.unit_bins[layer], self.bins[layer].edges
            errors = self.errors["attacked"][layer]
            every = errors.sum().clamp(min=1)
            own, response = unit_bin[:, None], self.dissection.response[layer]
            scale = response.abs().amax(1).mean()  # of the layer: a dead unit's own would be 0
            unit = response.gather(1, own)[:, 0].sign() / scale.clamp(min=EPS)
            excess, lack = (
                change[layer].gather(1, own)[:, 0] * unit / every
                for change in (self.changes["predicted"], self.changes["truth"])
            )
            columns = {
                "unit": torch.arange(len(unit_bin)),
                "bin": unit_bin,
                "from_m": edges[unit_bin],
                "to_m": edges[unit_bin + 1],
                "error_pixels": errors[unit_bin],
                "error_share": errors[unit_bin] / every,
                "missed_share": self.missed[layer][unit_bin] / every,
                "excess": excess,
                "lack": -lack,
                "blame": excess - lack,
            }
            frame = pd.DataFrame({k: v.numpy() for k, v in columns.items()})
            frames.append(frame.assign(layer=layer))
        frame = pd.concat(frames, ignore_index=True)
        frame.insert(0, "layer", frame.pop("layer"))
        for value, measured in self.repairs.items():
            nothing = Repair(0, 0, 0)
            found = [
                measured.get(unit, nothing) for unit in zip(frame.layer, frame.unit, strict=True)
            ]
            frame[f"repaired_{value}"] = [r.share for r in found]
            frame[f"caused_{value}"] = [r.share - r.net for r in found]
            frame[f"net_{value}"] = [r.net for r in found]
        return frame.sort_values("blame", ascending=False, kind="stable", ignore_index=True)

    def blamed(
        self, num_units: int, layer: str | None = None, *, score: str = "blame"
    ) -> dict[str, list[int]]:
        """The most blamed units, of all layers or of one, as `repair` takes them; fewer where
        fewer have a score above 0. `score="excess"` blames as the paper's figure 8 does."""
        units = self.units.sort_values(score, ascending=False, kind="stable")
        units = units[units[score] > 0]
        if layer is not None:
            units = units[units.layer == self._known(layer)]
        top = units.head(num_units)
        return {k: part.unit.tolist() for k, part in top.groupby("layer", sort=False)}

    def __add__(self, other: ErrorTrace) -> ErrorTrace:
        """Both batches as one."""
        if not isinstance(other, ErrorTrace):
            return NotImplemented
        same = (self.layers, self.threshold, self.by) == (other.layers, other.threshold, other.by)
        if not same or any(
            self.bins[k] != other.bins[k]
            or not torch.equal(self.dissection.response[k], other.dissection.response[k])
            for k in self.layers
        ):
            raise ValueError(
                "Only traces by one dissection, with the same layers, threshold and `by`, can be "
                f"added; got {self.layers}, {self.threshold}, {self.by!r} and {other.layers}, "
                f"{other.threshold}, {other.by!r}."
            )
        return replace(
            self,
            **{k: getattr(self, k) + getattr(other, k) for k in _LISTS},
            **{k: _add(getattr(self, k), getattr(other, k)) for k in _SUMS},
        )

    def _known(self, layer: str) -> str:
        if layer not in self.missed:
            raise ValueError(f"Layer {layer!r} was not traced. Known: {', '.join(self.layers)}.")
        return layer


_LISTS = ("names", "target", "clean", "attacked")
_SUMS = ("transport", "errors", "missed", "changes", "repairs")


def _add(one, two):
    """Sums of nested dicts, over the keys that both have."""
    if isinstance(one, dict):
        return {k: _add(v, two[k]) for k, v in one.items() if k in two}
    return one + two


def trace_errors(
    model: nn.Module,
    batch: Mapping,
    dissection: Dissection,
    layers: Iterable[str],
    *,
    attacked: Tensor,
    threshold: float = 1.25,
    by: str = "assigned",
    num_units: int = 8,
    units: Units | None = None,
) -> ErrorTrace:
    """From the wrong pixels of attacked images to the units behind them.

    Two forwards, as many again to know the most blamed units, and two for each that is set back.

    Args:
        batch: as `fgsm`.
        dissection: of this model on training data, with `layers`.
        attacked: (B, 3, H, W) in [0, 1], the attacked images of this batch.
        threshold: of an error, max(pred / target, target / pred); 1.25 as in the paper.
        by: the bin of a unit: `"assigned"`, what the assignment loss gives it (for networks
            trained so), or `"best"`, the one that it answers to most.
        num_units: how many of the most blamed units are set back, one at a time.
        units: layer → units: set back these instead.
    """
    if by not in UNIT_BINS:
        raise ValueError(f"Unknown by={by!r}. Known: {', '.join(UNIT_BINS)}.")
    if num_units < 0:
        raise ValueError(f"num_units must not be negative, got {num_units}.")
    options = {"attacked": attacked, "threshold": threshold, "by": by}
    if units is None:
        trace = _trace(model, batch, dissection, layers, None, **options)
        units = trace.blamed(num_units)
        if not units:
            return trace
    return _trace(model, batch, dissection, layers, units, **options)


@_of_data_sets
def _trace(model, batch, dissection, layers, units, *, attacked, threshold, by) -> ErrorTrace:
    with evaluating(model):
        case = _Case(model, batch, dissection, layers, attacked, threshold)
        predictions = {"clean": case.clean, "attacked": case.pred}
        transport: dict = {name: {} for name in predictions}
        errors: dict = {name: {} for name in predictions}
        missed, changes = {}, {"predicted": {}, "truth": {}}
        for layer in case.layers:
            bins = dissection.bins[layer]
            n = len(bins)
            truth = bins.locate(case.target)
            for name, pred in predictions.items():
                own = bins.locate(pred.clamp(min=MIN_DEPTH))
                wrong = case.errors(pred)
                table = (truth * (n + 1) + own)[case.valid].bincount(minlength=(n + 1) ** 2)
                transport[name][layer] = table.view(n + 1, n + 1).cpu()
                errors[name][layer] = own[wrong].bincount(minlength=n + 1).cpu()
            missed[layer] = truth[case.wrong].bincount(minlength=n + 1).cpu()
            change = case.attacked_acts[layer] - case.acts[layer]
            for name, at in (("predicted", own), ("truth", truth)):  # `own`: of the attacked images
                at = at.masked_fill(~case.wrong | (at == n), -1)  # no unit stands for the overflow
                changes[name][layer] = pool_by_bin(change, at, n)[0].cpu()
        trace = ErrorTrace(
            names=case.given.names,
            target=list(torch.where(case.valid, case.target, 0.0).cpu()),
            clean=list(case.clean.cpu()),
            attacked=list(case.pred.cpu()),
            transport=transport,
            errors=errors,
            missed=missed,
            changes=changes,
            repairs={value: {} for value in VALUES},
            dissection=dissection,
            threshold=threshold,
            by=by,
        )
        units = {} if units is None else _check_units(units, case)
        for value in VALUES:
            for layer, some in units.items():
                for unit in some:
                    trace.repairs[value][layer, unit] = case.set_back({layer: [unit]}, value)
    return trace


def _unit_bins(dissection: Dissection, layer: str, by: str) -> Tensor:
    response = dissection.response[layer]
    return assigned_bins(*response.shape) if by == "assigned" else response.abs().argmax(1)
