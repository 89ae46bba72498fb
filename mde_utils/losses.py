"""The depth losses of the publications, on metres, with invalid target pixels masked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian (Wang et al. 2004)
VALUE_RANGE = 1000.0  # METER: depth up to 10 m, in centimetres
C1, C2 = (0.01 * VALUE_RANGE) ** 2, (0.03 * VALUE_RANGE) ** 2


def balanced_loss(
    pred: Tensor, target: Tensor, *, masked: bool = True, units_per_metre: float = 100.0
) -> Tensor:
    """METER's loss, the sum of `balanced_loss_terms`; about 240 for the published XXS weights on
    NYU at a quarter of 192x256, about 760 for an untrained network.

    Args and Raises: as `balanced_loss_terms`.

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

    Raises:
        ValueError: shapes that differ, are not (b, 1, h, w), or are smaller than SSIM's window;
            a target without any valid pixel.
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

    Raises:
        ValueError: shapes that differ or are not (b, 1, h, w); a target without any valid pixel.
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


def _check(pred: Tensor, target: Tensor) -> None:
    if pred.shape != target.shape or pred.ndim != 4 or pred.shape[1] != 1:
        raise ValueError(
            "A depth loss takes prediction and target of one shape (b, 1, h, w), got "
            f"{tuple(pred.shape)} and {tuple(target.shape)}. Resize the target (nearest) to the "
            "prediction."
        )


def _without_holes(
    pred: Tensor, target: Tensor, masked: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Both maps with 0 where the target is invalid, and where it is valid (None: everywhere)."""
    dtype = torch.float64 if pred.dtype == torch.float64 else torch.float32
    p, y = pred.to(dtype), target.detach().to(dtype)
    if not masked:
        return p, y, None
    valid = (y > 0) & y.isfinite()
    count = int(valid.sum())
    if count == 0:
        raise ValueError(
            f"The target {tuple(target.shape)} has no valid pixel (depth > 0), so there is "
            "no loss. Is its depth in metres, and were augmentations kind to it?"
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
