"""The depth losses of the publications, on metres, with invalid target pixels masked."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .stereo import (
    TRAINED_BASELINE,
    disparity_to_depth,
    photometric_error,
    stereo_transform,
    warp,
)

__all__ = [
    "balanced_loss",
    "balanced_loss_terms",
    "l1_loss",
    "mff_loss",
    "photometric_error",
    "post_process_disparity",
    "silog_loss",
    "smoothness",
    "spp_distillation",
    "stereo_loss_terms",
]

DECODER_SCALES = 5  # of EPCDepth's disparities; the others are its encoder heads'
TIE_BREAK = 1e-5  # noise on the error of the unwarped picture
NO_HINT = 1000.0  # added to the error of a pixel without a hint

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian (Wang et al. 2004)
VALUE_RANGE = 1000.0  # METER: depth up to 10 m, in centimetres
C1, C2 = (0.01 * VALUE_RANGE) ** 2, (0.03 * VALUE_RANGE) ** 2


def balanced_loss(
    pred: Tensor, target: Tensor, *, masked: bool = True, units_per_metre: float = 100.0
) -> Tensor:
    """METER's loss, the sum of `balanced_loss_terms`; about 240 for the published XXS weights on
    NYU at a quarter of 192x256, about 760 for an untrained network.

    Args: as `balanced_loss_terms`.

    Returns:
        scalar float32, in the publication's own scale (`fit` applies the model's `loss_scale`).
    """
    terms = balanced_loss_terms(pred, target, masked=masked, units_per_metre=units_per_metre)
    return torch.stack(list(terms.values())).sum()


def balanced_loss_terms(
    pred: Tensor, target: Tensor, *, masked: bool = True, units_per_metre: float = 100.0
) -> dict[str, Tensor]:
    """The four terms of METER's balanced loss (Papa et al. 2023, section III-C), weighted.

    With p, y in centimetres, Sobel derivatives dx, dy (zero padding 1, not divided by 8) and
    normals n = (-dx, -dy, 1):

        depth     mean |p - y|
        ssim      100 (1 - SSIM(p, y)), 11x11 Gaussian windows inside the image, range 1000
        normal    100 mean |1 - cos(n_p, n_y)|
        gradient  (mean |dx_p - dx_y| + mean |dy_p - dy_y|) / 0.5

    An invalid target pixel (0, negative, NaN, infinite) takes part in no term: windows of SSIM
    and Sobel kernels that touch one leave the mean, and nothing of the prediction under it counts.
    Where all pixels are valid this is the publication's value. A term without any whole window is
    0 (sparse ground truth).

    Args:
        pred: (b, 1, h, w) depth in metres.
        target: (b, 1, h, w) depth in metres, 0 = no measurement.
        masked: False is the publication's: every pixel counts, 0 as a depth of 0.
        units_per_metre: 100 (centimetres, NYU); the KITTI weights work in decimetres, 10.

    Returns:
        scalars `depth`, `ssim`, `normal`, `gradient`, in float32 (float64 for float64 input).
    """
    _check(pred, target)
    if min(pred.shape[-2:]) < WINDOW:
        raise ValueError(
            f"The balanced loss needs depth maps of at least {WINDOW}x{WINDOW}, SSIM's window; "
            f"got {tuple(pred.shape[-2:])}."
        )
    with torch.autocast(pred.device.type, enabled=False):
        p, y, valid = _without_holes(pred, target, masked)
        p, y = p * units_per_metre, y * units_per_metre
        sobel_valid = None if valid is None else _untouched(valid, 3, padding=1)
        window_valid = None if valid is None else _untouched(valid, WINDOW)
        sobel_p, sobel_y = _sobel(p), _sobel(y)
        difference = (sobel_p - sobel_y).abs().sum(1, keepdim=True)
        return {
            "depth": _mean((p - y).abs(), valid),
            "ssim": 100 * _mean(1 - _ssim_map(p, y), window_valid),
            "normal": 100 * _mean((1 - _normal_cosine(sobel_p, sobel_y)).abs(), sobel_valid),
            "gradient": 2 * _mean(difference, sobel_valid),
        }


def mff_loss(pred: Tensor, target: Tensor, *, masked: bool = True) -> Tensor:
    """MFF's loss (Hu et al. 2019, section 3.3): depth, gradients and normals, equally weighted.

    With e = p - y in metres, Sobel derivatives dx, dy (zero padding 1, not divided by 8) and
    normals n = (-dx, -dy, 1):

        mean ln(|e| + .5) + mean ln(|dx e| + .5) + mean ln(|dy e| + .5) + mean |1 - cos(n_p, n_y)|

    A perfect prediction costs 3 ln .5 = -2.08; an untrained one 1 to 4. Invalid target pixels are
    masked as in `balanced_loss_terms`; the publication masks nothing.

    Args:
        pred: (b, 1, h, w) depth in metres.
        target: (b, 1, h, w) depth in metres, 0 = no measurement.
        masked: False is the publication's: every pixel counts, 0 as a depth of 0.

    Returns:
        scalar float32 (float64 for float64 input).
    """
    _check(pred, target)
    with torch.autocast(pred.device.type, enabled=False):
        p, y, valid = _without_holes(pred, target, masked)
        sobel_valid = None if valid is None else _untouched(valid, 3, padding=1)
        sobel_p, sobel_y = _sobel(p), _sobel(y)
        gradients = ((sobel_p - sobel_y).abs() + 0.5).log().sum(1, keepdim=True)
        return (
            _mean(((p - y).abs() + 0.5).log(), valid)
            + _mean(gradients, sobel_valid)
            + _mean((1 - _normal_cosine(sobel_p, sobel_y)).abs(), sobel_valid)
        )


def silog_loss(
    pred: Tensor, target: Tensor, *, min_depth: float = 0.1, variance_focus: float = 0.85
) -> Tensor:
    """BTS's loss (Lee et al. 2019, section 3.4), scale-invariant but for a remainder:

        10 sqrt(mean g² - variance_focus (mean g)²),    g = ln p - ln y,

    over all valid pixels of the batch together. A prediction that is off by one factor e^c costs
    10 |c| sqrt(1 - variance_focus) = 3.9 |c|; a perfect one 0, with gradient 0 (the root's own is
    infinite there). Predictions below 1 mm count as 1 mm.

    Args:
        pred: (b, 1, h, w) depth in metres.
        target: (b, 1, h, w) depth in metres; what is not above `min_depth` is no measurement.
        min_depth: 0.1 m for NYU, 1 m for KITTI.
        variance_focus: in [0, 1].

    Returns:
        scalar float32 (float64 for float64 input).
    """
    _check(pred, target)
    if min_depth < 0 or not 0 <= variance_focus <= 1:
        raise ValueError(
            "silog_loss takes min_depth from 0 m on and variance_focus from 0 to 1; got "
            f"{min_depth!r} and {variance_focus!r}."
        )
    with torch.autocast(pred.device.type, enabled=False):
        p, y, valid = _without_holes(pred, target, True, above=min_depth)
        if valid is not None:
            p, y = torch.where(valid, p, 1.0), torch.where(valid, y, 1.0)
        g = p.clamp(min=1e-3).log() - y.log()
        mean = _mean(g, valid)
        # The same by the variance, which no rounding makes negative.
        square = _mean((g - mean) ** 2, valid) + (1 - variance_focus) * mean**2
        return 10 * torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


def l1_loss(pred: Tensor, target: Tensor) -> Tensor:
    """CSPN's loss (Cheng et al. 2018, as released): mean |pred - target| in metres where the target
    is above 0.1 mm.

    Args:
        pred: (b, 1, h, w) depth in metres.
        target: (b, 1, h, w) depth in metres, 0 = no measurement.

    Returns:
        scalar float32 (float64 for float64 input).
    """
    _check(pred, target)
    p, y, valid = _without_holes(pred, target, True, above=1e-4)
    return _mean((p - y).abs(), valid)


# ---- from stereo pairs --------------------------------------------------------------------


def stereo_loss_terms(
    disparities: Sequence[Tensor],
    batch: dict,
    *,
    hints: bool = True,
    automask: bool = True,
    scales: int | None = None,
    distillation: float = 1.0,
    smooth: float = 0.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The terms of EPCDepth's loss (Peng et al. 2021, section 3), weighted; each a mean over the
    disparities. Their sum is 1 to 2 for an untrained network on streets, about .3 of it
    photometric; true depth has .07 of that.

    Each disparity, bilinearly enlarged to the image's size, is depth (`disparity_to_depth`), by
    which the other camera's picture is warped to this one's: error e_0 (`photometric_error`). Two
    rivals may explain a pixel better: the other picture as it is (automask; Godard et al. 2019),
    e_1, with noise of 1e-5 to break ties; and the other picture warped by the hint (Watson et al.
    2019), e_2, out of the race where there is none. With k the index of the least at a pixel:

        photometric  mean of e_0 where k is not 1
        hint         mean of ln(|hint - depth| + 1) where k is 2
        distillation `spp_distillation` of the disparities by e_0
        smoothness   `smoothness` of the disparities

    A mean over no pixel is 0. Depth and hints are compared as the network sees depth, with the
    cameras 0.1 apart; so nothing depends on the unit of the baseline.

    Args:
        disparities: each (b, 1, h', w') in (0, 1), of the picture; `EPCDepth.disparities`.
        batch: `image`, the network's picture, and `right`, the other camera's (b, 3, h, w) in
            [0, 1], their colours altered alike or not at all; `intrinsics` (b, 3, 3) in pixels,
            `baseline` (b,) in metres, negative where the other camera stands to the left; with
            `hints` also `hint` (b, 1, h, w) in metres, 0 = none.
        hints: off: no rival e_2, and no term `hint`.
        automask: off: no rival e_1.
        scales: use the first so many disparities alone; 5: no full-scale prediction. None: all.
        distillation, smooth: weights of these terms; one with weight 0 is not computed.
        generator: of the noise; None draws from torch's own.

    Returns:
        scalars `photometric` and, where switched on, `hint`, `distillation`, `smoothness`.
    """
    image, other, hint = _check_stereo(disparities, batch, hints, scales)
    with torch.autocast(image.device.type, enabled=False):
        size, k = image.shape[-2:], batch["intrinsics"]
        baseline = torch.as_tensor(batch["baseline"], device=image.device).float()
        transform = stereo_transform(TRAINED_BASELINE * baseline.sign())
        still = photometric_error(other, image) if automask else torch.inf
        by_hint = torch.inf
        if hints:
            units_per_metre = (TRAINED_BASELINE / baseline.abs()).view(-1, 1, 1, 1)
            hint = torch.where(hint > 0, hint, 0.0).float() * units_per_metre
            by_hint = photometric_error(warp(other, hint, k, transform)[0], image)
            by_hint = by_hint + NO_HINT * ~(hint > 0)
        full, errors, terms = [], [], {"photometric": [], "hint": []}
        for disparity in disparities[:scales]:
            full.append(
                F.interpolate(disparity.float(), size, mode="bilinear", align_corners=False)
            )
            depth = disparity_to_depth(full[-1])
            error = photometric_error(warp(other, depth, k, transform)[0], image)
            errors.append(error)
            value, unmoved = error.detach(), torch.inf
            if automask:
                where = generator.device if generator else error.device
                noise = torch.randn(error.shape, generator=generator, device=where)
                unmoved = still + TIE_BREAK * noise.to(error)
            masked = (unmoved < value) & (unmoved <= by_hint)
            terms["photometric"].append(_mean(error, ~masked))
            if hints:
                hinted = (by_hint < value) & (by_hint < unmoved)
                terms["hint"].append(_mean(((hint - depth).abs() + 1).log(), hinted))
        found = {name: torch.stack(values).mean() for name, values in terms.items() if values}
        if distillation:
            found["distillation"] = distillation * spp_distillation(full, errors)
        if smooth:
            values = [smoothness(disparity, image) for disparity in full]
            found["smoothness"] = smooth * torch.stack(values).mean()
        return found


def spp_distillation(disparities: Sequence[Tensor], errors: Sequence[Tensor]) -> Tensor:
    """EPCDepth's self-distillation (Peng et al. 2021, "selective post-processing"): per pixel the
    disparity with the lowest error teaches the others.

    The decoder's (the first five) and the encoder heads' (the rest) have a teacher each, which
    gets no gradient: mean over disparities d and pixels of ln(|teacher - d| + 1).

    Args:
        disparities: each (b, 1, h, w), of one size.
        errors: the `photometric_error` of each.
    """
    shapes = {tuple(x.shape) for x in (*disparities, *errors)}
    if len(disparities) != len(errors) or len(shapes) != 1:
        raise ValueError(
            "spp_distillation takes disparities and as many errors, all of one shape (b, 1, h, w); "
            f"got {len(disparities)} and {len(errors)} of {sorted(shapes)}."
        )
    total = 0.0
    for part in (slice(DECODER_SCALES), slice(DECODER_SCALES, None)):
        if not disparities[part]:
            continue
        pairs = [(d, e.detach()) for d, e in zip(disparities[part], errors[part], strict=True)]
        teacher, lowest = pairs[0][0].detach(), pairs[0][1]
        for disparity, error in pairs[1:]:
            teacher = torch.where(error < lowest, disparity.detach(), teacher)
            lowest = torch.minimum(error, lowest)
        for disparity, _ in pairs:
            total = total + ((teacher - disparity).abs() + 1).log().mean()
    return total / len(disparities)


def smoothness(disparity: Tensor, image: Tensor) -> Tensor:
    """Edge-aware smoothness (Godard et al. 2019, equation 3), with d divided by its mean over each
    image: mean |dx d| exp(-|dx I|) + mean |dy d| exp(-|dy I|), differences of neighbouring pixels,
    those of the image I averaged over its channels.

    Args:
        disparity: (b, 1, h, w) above 0.
        image: (b, c, h, w) in [0, 1].
    """
    if disparity.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"smoothness takes disparity and image of one size; got {tuple(disparity.shape)} and "
            f"{tuple(image.shape)}. Enlarge the disparity to the image's size."
        )
    d = disparity / disparity.mean((-2, -1), keepdim=True).clamp(min=1e-7)
    total = 0.0
    for axis in (-1, -2):
        edge = image.diff(dim=axis).abs().mean(1, keepdim=True)
        total = total + (d.diff(dim=axis).abs() * (-edge).exp()).mean()
    return total


def post_process_disparity(left: Tensor, flipped: Tensor) -> Tensor:
    """The mean of a disparity and the mirrored picture's (Godard et al. 2017).

    At the left border, where the other camera's picture lacks what is seen there, it is the
    mirrored one alone, at the right border the direct one: over 5 % of the width, fading to the
    mean over the next 5 %. With l from 0 to 1 across the picture the left ramp is
    1 - clip(20 (l - .05), 0, 1).

    Args:
        left: (…, h, w) disparity of the picture.
        flipped: the same of the mirrored picture, mirrored back.
    """
    if left.shape != flipped.shape:
        raise ValueError(
            "post_process_disparity takes two disparities of one shape; got "
            f"{tuple(left.shape)} and {tuple(flipped.shape)}."
        )
    at = torch.linspace(0, 1, left.shape[-1], dtype=left.dtype, device=left.device)
    ramp = 1 - (20 * (at - 0.05)).clamp(0, 1)
    # The mean, tilted by half a ramp: exact where both are equal.
    return torch.lerp(left, flipped, 0.5 + (ramp - ramp.flip(0)) / 2)


def _check_stereo(
    disparities: Sequence[Tensor], batch: dict, hints: bool, scales: int | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    needed = ("image", "right", "intrinsics", "baseline", *(("hint",) if hints else ()))
    if missing := [name for name in needed if name not in batch]:
        remedy = (
            " Wrap the data set in WithHints, or pass hints=False." if "hint" in missing else ""
        )
        raise ValueError(
            f"The stereo loss needs {', '.join(needed)}; this batch has no {', '.join(missing)}, "
            f"only {', '.join(batch)}. Pairs have all of it: 'rooms' or 'streets' with "
            f"baseline=…, 'kitti' with right=True.{remedy}"
        )
    if not disparities or (scales is not None and not 1 <= scales <= len(disparities)):
        raise ValueError(
            f"scales must be from 1 to the number of disparities, {len(disparities)}; got {scales}."
        )
    image, other, hint = batch["image"], batch["right"], batch.get("hint")
    b, size = len(image), image.shape[-2:]
    expected = {
        "right": (other, tuple(image.shape)),
        "intrinsics": (batch["intrinsics"], (b, 3, 3)),
        "baseline": (torch.as_tensor(batch["baseline"]), (b,)),
    }
    if hints:
        expected["hint"] = (hint, (b, 1, *size))
    for what, (value, shape) in expected.items():
        if tuple(value.shape) != shape:
            raise ValueError(
                f"With images {tuple(image.shape)} the stereo loss takes {what} of shape {shape}; "
                f"got {tuple(value.shape)}."
            )
    for disparity in disparities:
        if disparity.ndim != 4 or disparity.shape[:2] != (b, 1):
            raise ValueError(
                f"Disparities of {b} images are ({b}, 1, h, w); got {tuple(disparity.shape)}."
            )
    baseline = expected["baseline"][0]
    if not bool((baseline.isfinite() & (baseline != 0)).all()):
        raise ValueError(
            "The stereo loss needs baselines other than 0, in metres, negative where the other "
            f"camera stands to the left; got {baseline.tolist()}."
        )
    return image, other, hint


# -------------------------------------------------------------------------------------------


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 1:
        raise ValueError(
            "A depth loss takes prediction and target of one shape (b, 1, h, w), got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}. Resize the target (nearest) to the "
            "prediction."
        )


def _without_holes(
    pred: Tensor, target: Tensor, masked: bool, *, above: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both maps with 0 where the target is invalid (not above `above` metres, or not finite), and
    where it is valid (None: everywhere)."""
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    p, y = pred.to(dtype), target.detach().to(dtype)
    if not masked:
        return p, y, None
    valid = (y > above) & y.isfinite()
    count = int(valid.sum())
    if count == 0:
        raise ValueError(
            f"The target {tuple(target.shape)} has no valid pixel (depth > {above:g}), so there "
            "is no loss. Is its depth in metres, and were augmentations kind to it?"
        )
    if count == valid.numel():
        return p, y, None
    # torch.where stops values and gradients alike, so a NaN under the mask is harmless.
    return torch.where(valid, p, 0.0), torch.where(valid, y, 0.0), valid


def _mean(x: Tensor, valid: Tensor | None) -> Tensor:
    """Mean where `valid`, everywhere if None, 0 if nowhere."""
    if valid is None:
        return x.mean()
    return torch.where(valid, x, 0.0).sum() / valid.sum().clamp(min=1)


def _untouched(valid: Tensor, size: int, *, padding: int = 0) -> Tensor:
    """Which size x size windows hold valid pixels only (outside the image counts as valid)."""
    hole = (~valid).float()
    hole = F.max_pool2d(hole, (size, 1), 1, (padding, 0))
    return F.max_pool2d(hole, (1, size), 1, (0, padding)) == 0


def _sobel(x: Tensor) -> Tensor:
    """(b, 1, h, w) -> (b, 2, h, w): d/dx, d/dy with Sobel's kernels, zero padding."""
    dx = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    return F.conv2d(x, torch.stack([dx, dx.T])[:, None], padding=1)


def _normal_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between (-dx, -dy, 1) of two gradient maps; no norm is below 1."""
    dot = (a * b).sum(1, keepdim=True) + 1
    norms = ((a * a).sum(1, keepdim=True) + 1) * ((b * b).sum(1, keepdim=True) + 1)
    return dot * norms.rsqrt()


def _ssim_map(p: Tensor, y: Tensor) -> Tensor:
    """SSIM of every window that lies inside the image: (b, 1, h, w) -> (b, 1, h - 10, w - 10)."""
    maps = torch.cat([p, y, p * p, y * y, p * y], dim=1)
    mu_p, mu_y, pp, yy, py = _blur(maps).unbind(1)
    mu_pp, mu_yy, mu_py = mu_p * mu_p, mu_y * mu_y, mu_p * mu_y
    luminance = (2 * mu_py + C1) / (mu_pp + mu_yy + C1)
    structure = (2 * (py - mu_py) + C2) / ((pp - mu_pp) + (yy - mu_yy) + C2)
    return (luminance * structure)[:, None]


def _blur(x: Tensor) -> Tensor:
    """Gaussian windows without padding. A separable filter is a product with a banded matrix from
    either side; on the CPU and at these sizes that outruns a grouped convolution, backward too."""
    rows, columns = (_bands(size, x) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _bands(size: int, like: Tensor) -> Tensor:
    """(size - 10, size): the Gaussian in row i begins at column i."""
    on = {"dtype": torch.float64, "device": like.device}
    kernel = torch.exp(-((torch.arange(WINDOW, **on) - WINDOW // 2) ** 2) / (2 * SIGMA**2))
    out = size - WINDOW + 1
    index = torch.arange(size, device=like.device).unfold(0, WINDOW, 1)
    values = (kernel / kernel.sum()).expand(out, WINDOW)
    return torch.zeros(out, size, **on).scatter_(1, index, values).to(like.dtype)
