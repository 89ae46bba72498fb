"""Depth metrics under named protocols (`protocols`)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import SparseSamples
from .depth_bins import find_range
from .passes import MIN_DEPTH, check_not_empty, forward, input_names, name_of, sum_over
from .processes import rank_and_world
from .protocols import PROTOCOLS, Crop, Protocol, describe_protocol, find_protocol
from .stereo import photometric_error, stereo_transform, warp

THRESHOLDS = {
    "d1": 1.25,
    "d2": 1.25**2,
    "d3": 1.25**3,
    "d1.02": 1.02,
    "d1.05": 1.05,
    "d1.10": 1.10,
}
ERRORS = ("rms", "rms_log", "rel", "sq_rel", "log10")
BOUNDARY_THRESHOLDS = (0.25, 0.5, 1.0)  # of Sobel's magnitude, in metres (Hu et al., section 4.2)


def compute_metrics(pred: Tensor, target: Tensor, *, strict: bool = True) -> dict[str, float]:
    """The metrics of one set of pixels.

    Args:
        pred, target: (n,) depth in metres, already masked, both positive.
        strict: δ counts ratios below the threshold; else equal ones too.

    Returns:
        `d1`, `d2`, `d3` (ratio below 1.25, 1.25², 1.25³), `d1.02`, `d1.05`, `d1.10`; `rms` in m,
        `rms_log` (natural logarithm), `rel`, `sq_rel` in m, `log10`.
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


def boundary_metrics(
    pred: Tensor,
    target: Tensor,
    *,
    valid: Tensor | None = None,
    thresholds: Sequence[float] = BOUNDARY_THRESHOLDS,
) -> dict[str, Tensor]:
    """How well the boundaries of each depth map are found (Hu et al. 2019, section 4.2).

    A pixel is on a boundary where sqrt(dx² + dy²) > threshold, with Sobel's derivatives, not
    divided by 8: a step of s metres across a straight edge has the magnitude 4 s. Only pixels
    whose 3x3 neighbourhood lies in the image and is valid throughout are looked at; a padded
    border or a hole would else be a boundary in both maps and count as found.

    Args:
        pred: (b, 1, h, w) depth in metres.
        target: (b, 1, h, w) depth in metres; 0, negative or not finite = no measurement.
        valid: (b, 1, h, w) bool, further restricts what counts; None = every measured pixel.

    Returns:
        for each threshold t the (b,) float64 `boundary_precision_<t>`, `boundary_recall_<t>` and
        `boundary_f1_<t>`. NaN where the denominator is 0: precision without a boundary in the
        prediction, recall without one in the target, F1 = 2 TP / (predicted + true) only without
        one in either.
    """
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 1:
        raise ValueError(
            "boundary_metrics takes prediction and target of one shape (b, 1, h, w), got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}."
        )
    if min(pred.shape[-2:]) < 3:
        raise ValueError(
            f"Boundaries need depth maps of at least 3x3, Sobel's kernel; got "
            f"{tuple(pred.shape[-2:])}."
        )
    if not thresholds or not all(t > 0 for t in thresholds):
        raise ValueError(f"Boundary thresholds must be positive metres, got {thresholds!r}.")
    measured = target.isfinite() & (target > 0)
    valid = measured if valid is None else measured & valid
    inside = F.max_pool2d((~valid).float(), 3, stride=1) == 0
    magnitudes = [_sobel_magnitude(torch.where(valid, x, 0.0)) for x in (pred, target)]
    found = {}
    for threshold in thresholds:
        p, t = ((m > threshold) & inside for m in magnitudes)
        hits, predicted, true = (x.flatten(1).sum(1).double() for x in (p & t, p, t))
        found |= {
            f"boundary_precision_{threshold:g}": hits / predicted,
            f"boundary_recall_{threshold:g}": hits / true,
            f"boundary_f1_{threshold:g}": 2 * hits / (predicted + true),
        }
    return found


def _sobel_magnitude(x: Tensor) -> Tensor:
    """(b, 1, h, w) -> (b, 1, h - 2, w - 2). Sums of slices: a GPU may round a convolution's input
    to 10 bits (TF32), which at 10 m would move the magnitude by centimetres."""
    x = x.float()
    down = x[..., :-2, :] + 2 * x[..., 1:-1, :] + x[..., 2:, :]
    across = x[..., :-2] + 2 * x[..., 1:-1] + x[..., 2:]
    dx, dy = down[..., 2:] - down[..., :-2], across[..., 2:, :] - across[..., :-2, :]
    return (dx**2 + dy**2).sqrt()


def image_metrics(
    pred: Tensor,
    target: Tensor,
    *,
    protocol: str = "imde",
    cap: float | None = None,
    boundaries: bool = False,
    names: list[str] | None = None,
    frame: Tensor | None = None,
) -> dict[str, Tensor]:
    """The metrics of each image of a batch.

    Args:
        pred: (b, 1, h, w) metres, brought to the size of `target` as the protocol says.
        target: (b, 1, H, W) metres, 0 = no measurement.
        protocol: a key of `PROTOCOLS`.
        cap: farthest depth in metres that counts; a protocol that caps needs it.
        boundaries: add those of `boundary_metrics`, at the size of `target`.
        names: of the images, for errors.
        frame: (b, 4) top, left, height and width, in pixels of `target`: where in the full frame
            each image lies, height and width being the full frame's; None = they are full frames.

    Returns:
        metric → (b,) float64, NaN for an image without a valid pixel. `rms` and `rms_log` are
        still mean squares where the protocol takes their root over all images.
    """
    rules = find_protocol(protocol)
    if rules.capped and cap is None:
        raise ValueError(f"Protocol {protocol!r} needs cap, the farthest depth in metres.")
    target = target.float()
    names = names or [f"image {i}" for i in range(len(target))]
    pred = to_size(pred, target, names, rules)
    valid = target.isfinite() & (target > rules.above)
    if rules.capped:
        valid &= target < cap
    if rules.crop is not None:
        valid &= _crop_mask(rules.crop, target, frame, names)
    if rules.median_scaled:
        pred = _median_scaled(pred.clamp(min=MIN_DEPTH), target, valid)
    pred = pred.clamp(*(rules.clamp or (MIN_DEPTH, cap if rules.capped else None)))
    means = _image_means(*(x.flatten(1) for x in (pred, target, valid)), rules.strict)
    means = _finish(means, pooled_rms=rules.pooled_rms)
    return means | (boundary_metrics(pred, target, valid=valid) if boundaries else {})


def _crop_mask(crop: Crop, target: Tensor, frame: Tensor | None, names: list[str]) -> Tensor:
    """(b, 1, H, W) bool."""
    size = tuple(target.shape[-2:])
    frames = [(0, 0, *size)] * len(target) if frame is None else frame.tolist()
    mask = torch.zeros(target.shape, dtype=torch.bool)
    for name, where, place in zip(names, mask, frames, strict=True):
        near = 1e-3  # pixels: a frame is float32
        if any(
            not (at >= -near and at + n <= whole + near)
            for at, whole, n in zip(place[:2], place[2:], size, strict=True)
        ):
            raise ValueError(
                f"The frame of {name}, (top, left, height, width) = {tuple(place)}, does not hold "
                f"the item's {size[0]}x{size[1]} pixels."
            )
        rows, columns = crop.inside(place, size)
        where[:, rows, columns] = True
    return mask.to(target.device)


def _median_scaled(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    def median(x: Tensor) -> Tensor:  # of an even number the mean of the middle two, as NumPy's
        return x.sort().values[[(len(x) - 1) // 2, len(x) // 2]].mean()

    ratios = [
        median(t[v]) / median(p[v]) if v.any() else p.new_ones(())
        for p, t, v in zip(pred, target, valid, strict=True)
    ]
    return pred * torch.stack(ratios).view(-1, 1, 1, 1)


@contextmanager
def swapped_halves(*models: nn.Module) -> Iterator[None]:
    """Within it, models are shown the lower half of each picture above the upper one, and their map
    is put back in order: so `evaluate` judges the same pixels. (Not for `dissect`: what units
    answer is not put back.)

    What a model reads from height in the picture, networks' first cue on streets (van Dijk and de
    Croon 2019), is wrong then; what it reads from looks still holds, but at the cut and the new
    seam. Networks trained with `data_graft` have seen pictures cut in such a way, others have not:
    this says whether grafting does what it is for, not how robust a network is in general.
    Further maps (b, c, h, w) that the model is given change places with the picture.
    """
    if any(_swap in model._forward_pre_hooks.values() for model in models):
        raise ValueError("The halves are swapped already: twice would be not at all.")
    hooks = [model.register_forward_pre_hook(_swap, with_kwargs=True) for model in models]
    hooks += [model.register_forward_hook(_put_back, with_kwargs=True) for model in models]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _swap(_, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    def roll(x):
        is_map = isinstance(x, Tensor) and x.ndim == 4
        return x.roll(x.shape[-2] // 2, -2) if is_map else x

    return tuple(roll(x) for x in args), {name: roll(x) for name, x in kwargs.items()}


def _put_back(_, args: tuple, kwargs: dict, depth) -> Tensor:
    shown = next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.ndim == 4)
    height = shown.shape[-2]
    if not isinstance(depth, Tensor) or depth.ndim != 4 or height // 2 * depth.shape[-2] % height:
        what = list(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
        raise ValueError(
            f"Of pictures of {height} rows the model made {what}; the halves can be put back in a "
            "map (b, c, h, w) whose rows are as many, or divide half the picture's."
        )
    return depth.roll(-(height // 2 * depth.shape[-2] // height), -2)


def evaluate(
    model: nn.Module,
    dataset,
    *,
    protocol: str | Sequence[str] = "imde",
    batch_size: int = 16,
    cap: float | None = None,
    boundaries: bool = False,
    post_process: bool = False,
) -> dict[str, float] | dict[str, dict[str, float]]:
    """Metrics of a model on a data set.

    Args:
        model: maps `image`, and what its `input_names` list, to metres (b, 1, h, w).
        dataset: a length, and items by index: `image` (3, h, w), `depth` (1, h', w') in metres.
            Sizes may differ between items. Where an item is a window of a larger frame, its
            `frame` says which (see `image_metrics`): some protocols crop the full frame.
        protocol: a key of `PROTOCOLS`, or several, all on the same predictions.
        cap: farthest depth in metres that counts, where the protocol has a cap; by default the
            end of the data set's `depth_range`, else of the model's, else (with a warning) NYU's.
        boundaries: add boundary precision, recall and F1 (`boundary_metrics`), at the ground
            truth's size. Each is the mean over the images where it is defined, NaN if none is: so
            precision leaves out images in which no boundary is predicted; F1 counts them as 0.
        post_process: see `passes.forward`.

    Returns:
        the metrics of `compute_metrics`, averaged over images, and `n`, the number of images
        used. Images without a valid pixel are left out, with a warning. For several protocols:
        name → that.
    """
    protocols = [protocol] if isinstance(protocol, str) else list(dict.fromkeys(protocol))
    if not protocols:
        raise ValueError(f"No protocol was given. Known protocols: {', '.join(PROTOCOLS)}.")
    capped = [name for name in protocols if find_protocol(name).capped]
    check_not_empty(dataset)
    check_metric(model, protocols)
    if capped and cap is None:
        cap = find_range(dataset, model)[1]

    def measure(names: list[str], batch: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """(protocol, metric) → its sum over a batch's images, and over how many it is defined."""
        pred = forward(model, batch, post_process=post_process)
        options = {"cap": cap, "boundaries": boundaries, "frame": batch.get("frame")}
        sums = {}
        for name in protocols:
            read = pred
            if PROTOCOLS[name].max_depth and hasattr(model, "remapped"):
                read = model.remapped(pred, max_depth=PROTOCOLS[name].max_depth)
            means = image_metrics(read, batch["depth"], protocol=name, names=names, **options)
            for key, value in means.items():
                defined = value.isnan().logical_not()
                total = torch.where(defined, value, 0.0).sum()
                sums[name, key] = torch.stack([total, defined.sum().to(total)])
        return sums

    totals = sum_over(model, dataset, measure, batch_size=batch_size, optional=["frame"])
    results = {}
    for name in protocols:
        sums = {key: value.tolist() for (p, key), value in totals.items() if p == name}
        used = int(sums["d1"][1])
        if used == 0:
            raise ValueError(
                f"None of {len(dataset)} images has a valid pixel under {describe_protocol(name)}"
                f"{'' if cap is None else f' (cap {cap:g} m)'}. Is the depth in metres?"
            )
        if used < len(dataset) and rank_and_world()[0] == 0:
            warnings.warn(
                f"{len(dataset) - used} of {len(dataset)} images have no valid pixel under "
                f"protocol {name} and were left out; n counts the others.",
                stacklevel=2,
            )
        result = {key: total / n if n else math.nan for key, (total, n) in sums.items()}
        if PROTOCOLS[name].pooled_rms:
            result = _finish(result, pooled_rms=False)
        results[name] = {**result, "n": used}
    return results[protocol] if isinstance(protocol, str) else results


def photometric(model: nn.Module, dataset, *, batch_size: int = 16) -> float:
    """How well a model explains pairs: the mean `photometric_error` of the other picture, warped
    by the model's metres, over all pixels and images. Lower is better. No ground truth is needed;
    nor is this a measure of depth: where nothing has texture all depths explain the picture, and
    what one camera alone sees none does.

    Args:
        dataset: items with `image` and `right` (3, h, w), `intrinsics`, `baseline`.
    """
    check_metric(model)

    def measure(names: list[str], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image, transform = batch["image"], stereo_transform(batch["baseline"].float())
        pred = to_size(forward(model, batch), image[:, :1], names)
        picture, _ = warp(batch["right"], pred, batch["intrinsics"], transform)
        error = photometric_error(picture, image).mean((1, 2, 3))
        return {"error": error.double().sum()}

    fields = ("right", "intrinsics", "baseline")
    total = sum_over(model, dataset, measure, batch_size=batch_size, fields=fields)
    return total["error"].item() / len(dataset)


def completion_curve(
    model: nn.Module,
    dataset,
    *,
    samples: Sequence[int] = (0, 50, 100, 200, 500, 1000),
    protocol: str = "sparse-500",
    seed: int = 0,
    **options,
) -> pd.DataFrame:
    """How the metrics of a completion network fall with the number of sparse samples.

    Each image's samples are among those of every larger number, so that numbers differ by what was
    added alone.

    Args:
        model: takes `sparse_depth`.
        dataset: as in `evaluate`, with dense depth; its own sparse depth is not used.
        samples: an image, before holes in the depth take their part (see `SparseSamples`).
        seed: of the draw.
        options: of `evaluate`.

    Returns:
        a row a number, ascending: `samples`, then the metrics of `evaluate`.
    """
    from .models.cspn import NoSparseDepth  # brings timm, which nothing else here needs

    if "sparse_depth" not in input_names(model):
        raise TypeError(f"{type(model).__name__} takes no sparse_depth (see its input_names).")
    if not samples or len(dataset) == 0:
        raise ValueError("completion_curve needs images, and numbers of samples.")
    if isinstance(dataset, SparseSamples):
        dataset = dataset.dataset
    SparseSamples(dataset, max(samples), seed=seed)[0]  # too many are refused before any work
    rows = []
    for number in sorted(set(samples)):
        drawn = SparseSamples(dataset, number, seed=seed)
        with warnings.catch_warnings():
            if number == 0:
                warnings.simplefilter("ignore", NoSparseDepth)
            metrics = evaluate(model, drawn, protocol=protocol, **options)
        rows.append({"samples": number, **metrics})
    return pd.DataFrame(rows)


def check_metric(model: nn.Module, protocols: Sequence[str] = ()) -> None:
    """Refuse a model whose depth is not in metres (see `adapt`), where it is compared with them."""
    scale = getattr(model, "scale", "metric")
    scaled = bool(protocols) and all(PROTOCOLS[name].median_scaled for name in protocols)
    if scale == "metric" or (scale == "up to scale" and scaled):
        return
    raise ValueError(
        f"The depth of {name_of(model)} is known {scale}, not in "
        "metres, and cannot be compared with metres. Give adapt the unit if you know it"
        + (
            "; or choose a protocol that scales by the median, epc-nyu."
            if scale == "up to scale"
            else "."
        )
    )


def to_size(
    pred: Tensor, target: Tensor, names: Sequence[str], rules: Protocol = PROTOCOLS["imde"]
) -> Tensor:
    """A prediction brought to the height and width of `target` (b, 1, H, W), as `rules` say."""
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
    way = {"mode": "bilinear", "align_corners": rules.align_corners}
    if rules.in_disparity:
        return 1 / F.interpolate(1 / pred.clamp(min=MIN_DEPTH), target.shape[-2:], **way)
    return F.interpolate(pred, target.shape[-2:], **way)
