"""Depth metrics under named protocols.

Numbers from different papers differ by resolution, cap, aggregation and strictness as much as by
method; so a protocol has a name, and `describe_protocol` prints what stands behind it.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .activations import evaluating
from .data.loading import batches, chunks
from .depth_bins import find_range
from .processes import add_in_order, rank_and_world

THRESHOLDS = {
    "d1": 1.25,
    "d2": 1.25**2,
    "d3": 1.25**3,
    "d1.02": 1.02,
    "d1.05": 1.05,
    "d1.10": 1.10,
}
ERRORS = ("rms", "rms_log", "rel", "sq_rel", "log10")
MIN_DEPTH = 1e-3  # metres; predictions are raised to it, as the logarithms need


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with ground truth.

    Attributes:
        source: whose protocol it is.
        align_corners: of the bilinear upsampling of predictions to the ground truth's size.
        capped: predictions are clamped to [1e-3, cap] and only 1e-3 < ground truth < cap counts;
            else every measured pixel counts, and predictions are only raised to 1e-3.
        strict: δ counts ratios < 1.25ⁿ; else <=.
        pooled_rms: root of the mean over images of the mean square, else mean over images of the
            root; `rms` and `rms_log`.
    """

    source: str
    align_corners: bool
    capped: bool
    strict: bool
    pooled_rms: bool


PROTOCOLS: dict[str, Protocol] = {
    "imde": Protocol(
        "You et al., ICCV 2021", align_corners=False, capped=True, strict=True, pooled_rms=False
    ),
    "mff": Protocol(
        "Hu et al., WACV 2019", align_corners=True, capped=False, strict=False, pooled_rms=True
    ),
}


def _protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"Unknown protocol {name!r}. Known protocols: {', '.join(PROTOCOLS)}.{hint}"
        )
    return PROTOCOLS[name]


def describe_protocol(name: str, *, cap: float | None = None) -> str:
    """One line to print beside numbers.

    Raises:
        ValueError: unknown protocol.
    """
    p = _protocol(name)
    limit = "cap" if cap is None else f"{cap:g} m"
    return (
        f"protocol {name} ({p.source}): prediction upsampled bilinearly "
        f"(align_corners={p.align_corners}), no crop, "
        + (f"0.001 m < depth < {limit}" if p.capped else "every measured pixel, no cap")
        + f", δ {'<' if p.strict else '≤'} 1.25ⁿ, "
        + ("RMS over all images" if p.pooled_rms else "RMS per image, then averaged")
    )


def compute_metrics(pred: Tensor, target: Tensor, *, strict: bool = True) -> dict[str, float]:
    """The metrics of one set of pixels.

    Args:
        pred, target: (n,) depth in metres, already masked, both positive.
        strict: δ counts ratios below the threshold; else equal ones too.

    Returns:
        `d1`, `d2`, `d3` (ratio below 1.25, 1.25², 1.25³), `d1.02`, `d1.05`, `d1.10`; `rms` in m,
        `rms_log` (natural logarithm), `rel`, `sq_rel` in m, `log10`.

    Raises:
        ValueError: not two 1-D tensors of one length, none or non-positive or non-finite values.
    """
    if pred.ndim != 1 or pred.shape != target.shape:
        raise ValueError(
            "compute_metrics takes two masked 1-D tensors of one length, got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if not len(pred):
        raise ValueError("compute_metrics got no pixels: nothing is left after masking.")
    for name, values in (("pred", pred), ("target", target)):
        if not bool(((values > 0) & values.isfinite()).all()):
            raise ValueError(
                f"compute_metrics needs positive, finite depth; {name} has values from "
                f"{values.min().item():.4g} to {values.max().item():.4g}. Mask or clamp first."
            )
    valid = torch.ones_like(target, dtype=torch.bool)[None]
    means = {k: v.item() for k, v in _image_means(pred[None], target[None], valid, strict).items()}
    return _finish(means, pooled_rms=False)


def _image_means(pred: Tensor, target: Tensor, valid: Tensor, strict: bool) -> dict[str, Tensor]:
    """Per-image means over valid pixels: (b, n) each -> metric -> (b,) float64. `rms` and
    `rms_log` are still mean squares."""
    pred, target = (torch.where(valid, x, 1.0).float() for x in (pred, target))
    count = valid.sum(1)

    def mean(x: Tensor) -> Tensor:
        # Where invalid both depths are 1, so every error is 0 there.
        return x.sum(1, dtype=torch.float64) / count

    ratio = torch.maximum(pred / target, target / pred)
    below = torch.lt if strict else torch.le
    error, log_error = pred - target, pred.log() - target.log()
    means = {name: mean(below(ratio, limit) & valid) for name, limit in THRESHOLDS.items()}
    return means | {
        "rms": mean(error**2),
        "rms_log": mean(log_error**2),
        "rel": mean(error.abs() / target),
        "sq_rel": mean(error**2 / target),
        "log10": mean(log_error.abs()) / math.log(10),
    }


def _finish(means: dict, *, pooled_rms: bool) -> dict:
    root = {} if pooled_rms else {k: means[k] ** 0.5 for k in ("rms", "rms_log")}
    return means | root


def evaluate(
    model: nn.Module,
    dataset,
    *,
    protocol: str = "imde",
    batch_size: int = 16,
    device: torch.device | str | None = None,
    cap: float | None = None,
    distributed: bool | None = None,
) -> dict[str, float]:
    """Metrics of a model on a data set.

    Args:
        model: maps `image`, and what its `input_names` list, to metres (b, 1, h, w). It runs in
            evaluation mode; its modes are put back.
        dataset: a length, and items by index: `image` (3, h, w), `depth` (1, h', w') in metres.
            Sizes may differ between items.
        protocol: a key of `PROTOCOLS`.
        device: where to run; by default where the model is. The model is moved there.
        cap: farthest depth in metres that counts, where the protocol has a cap; by default the
            end of the data set's `depth_range`, else of the model's, else (with a warning) NYU's.
        distributed: split the batches over the processes of ``torch.distributed``; None = where it
            is initialised. Every process gets the whole result, the same as one process alone
            would.

    Returns:
        the metrics of `compute_metrics`, averaged over images, and `n`, the number of images
        used. Images without a valid pixel are left out, with a warning.

    Raises:
        ValueError: unknown protocol, empty data set, no valid pixel at all, a
            prediction that is not finite or not (b, 1, h, w); ``distributed=True`` without an
            initialised ``torch.distributed``.
        RuntimeError: another process failed; its message says which and why.
    """
    rules = _protocol(protocol)
    rank, _ = rank_and_world(distributed)
    if rules.capped and cap is None:
        cap = find_range(dataset, model)[1]
    if len(dataset) == 0:
        raise ValueError("The data set is empty: there is nothing to evaluate.")
    if device is None:
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
    else:
        model.to(device)

    inputs = tuple(getattr(model, "input_names", ()))

    def measure(chunk: range) -> Iterator[dict[str, Tensor]]:
        """A batch's sums over its images, and `n`, how many have a valid pixel."""
        for names, batch in batches(dataset, chunk, batch_size, ("image", "depth", *inputs)):
            batch = {key: value.to(device, non_blocking=True) for key, value in batch.items()}
            target = batch["depth"].float()
            pred = model(batch["image"], **{key: batch[key] for key in inputs})
            pred = _to_size(pred, target, names, align_corners=rules.align_corners)
            valid = target.isfinite() & (target > (MIN_DEPTH if rules.capped else 0))
            if rules.capped:
                valid &= target < cap
            pred = pred.clamp(MIN_DEPTH, cap if rules.capped else None)
            means = _image_means(*(x.flatten(1) for x in (pred, target, valid)), rules.strict)
            means = _finish(means, pooled_rms=rules.pooled_rms)
            some = valid.flatten(1).any(1)
            # Images without pixels are 0 / 0.
            sums = {key: torch.where(some, value, 0.0).sum() for key, value in means.items()}
            yield sums | {"n": some.sum()}

    with evaluating(model):
        totals = add_in_order(measure, chunks(len(dataset), batch_size), distributed=distributed)
    used = int(totals.pop("n"))
    if used == 0:
        raise ValueError(
            f"None of {len(dataset)} images has a valid pixel under {describe_protocol(protocol)}"
            f"{'' if cap is None else f' (cap {cap:g} m)'}. Is the depth in metres?"
        )
    if used < len(dataset) and rank == 0:
        warnings.warn(
            f"{len(dataset) - used} of {len(dataset)} images have no valid pixel and were left "
            "out; n counts the others.",
            stacklevel=2,
        )
    result = {key: float(value) / used for key, value in totals.items()}
    if rules.pooled_rms:
        result = _finish(result, pooled_rms=False)
    return {**result, "n": used}


def _to_size(pred: Tensor, target: Tensor, names: list, *, align_corners: bool) -> Tensor:
    if not isinstance(pred, Tensor) or pred.ndim != 4 or pred.shape[:2] != target.shape[:2]:
        given = tuple(pred.shape) if isinstance(pred, Tensor) else type(pred).__name__
        raise ValueError(
            f"The model must return depth (b, 1, h, w) in metres for a batch of {len(target)}, "
            f"got {given}."
        )
    finite = pred.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        name = names[finite.logical_not().nonzero()[0].item()]
        raise ValueError(
            f"The prediction for {name} holds NaN or infinity. Evaluate an earlier checkpoint, or "
            "train with a smaller learning rate."
        )
    pred = pred.float()
    if pred.shape[-2:] == target.shape[-2:]:
        return pred
    return F.interpolate(pred, target.shape[-2:], mode="bilinear", align_corners=align_corners)
