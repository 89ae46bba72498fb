"""Two cameras side by side: from one's picture to the other's, and depth from their pictures.

The second camera of a pair stands `baseline` metres to the right of the first along its x axis,
negative = to the left, both looking the same way; so a point at (x, y) and depth Z in the first
is at (x - focal · baseline / Z, y) in the second. Pixel centres lie at whole numbers. Grey pictures
are RGB with three equal channels: every function here takes them as it takes colour.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

TRAINED_BASELINE = 0.1  # the distance of the cameras in EPCDepth's unit of depth
NEAREST, FARTHEST = 0.1, 100.0  # in that unit

SSIM_WEIGHT = 0.85
C1, C2 = 0.01**2, 0.03**2  # SSIM's constants for a range of 1

# Depth hints: every block size with every search range, the ranges at the publication's width.
BLOCKS = (1, 2, 3)
RANGES, RANGES_WIDTH = (64, 96, 128, 160), 1024
MATCHING = {
    "P1": 36,
    "P2": 288,
    "preFilterCap": 63,
    "uniquenessRatio": 10,
    "speckleWindowSize": 100,
    "speckleRange": 16,
}
SUBPIXEL = 16  # OpenCV's disparities count sixteenths of a pixel
NO_MATCH = -1

GRAFT_RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8)
SAME_CAMERA = 0.05  # how far focal length and baseline of grafted items may differ, as a share

# How far the baseline of a pair may be from the network's, as a share of it: KITTI's cameras are
# 0.5327 to 0.537 m apart, and the publication's 5.4 takes them for 0.54.
SAME_BASELINE = 0.02

# ---- geometry -----------------------------------------------------------------------------


def disparity_to_depth(
    sigma: Tensor, *, min_depth: float = NEAREST, max_depth: float = FARTHEST
) -> Tensor:
    """Depth 1 / s of EPCDepth's disparity, s = 1/max + (1/min - 1/max) · sigma.

    Args:
        sigma: the network's sigmoid, any shape, in (0, 1).
        min_depth, max_depth: depth at 1 and at 0, in any unit. The publication trains with the
            defaults, where the cameras are 0.1 apart, and evaluates on NYU with `max_depth=10`:
            another curve, not another scale.
    """
    if not 0 < min_depth < max_depth:
        raise ValueError(
            f"Depth needs 0 < min_depth < max_depth; got min_depth={min_depth!r}, "
            f"max_depth={max_depth!r}."
        )
    far, near = 1 / max_depth, 1 / min_depth
    return 1 / (far + (near - far) * sigma)


def stereo_transform(baseline: Tensor) -> Tensor:
    """(b,) baselines -> (b, 4, 4), coordinates of the first camera to the second's."""
    out = torch.eye(4, dtype=baseline.dtype, device=baseline.device).repeat(len(baseline), 1, 1)
    out[:, 0, 3] = -baseline
    return out


def warp(
    other: Tensor, depth: Tensor, intrinsics: Tensor, transform: Tensor
) -> tuple[Tensor, Tensor]:
    """What a camera would see if the surface at `depth` had the colours of another's picture.

    Every pixel (u, v) is sampled bilinearly where K T (depth · K⁻¹ (u, v, 1)) falls in `other`, or
    at the nearest pixel of its border where that is outside. Where depth is 0, negative or not
    finite the colour means nothing.

    Args:
        other: (b, c, h, w) the other camera's picture.
        depth: (b, 1, h, w) of this camera, in the unit of `transform`.
        intrinsics: (b, 3, 3) K in pixels, of both cameras.
        transform: (b, 4, 4) T, this camera's coordinates to the other's.

    Returns:
        (b, c, h, w) the picture, differentiable in `other` and `depth`, float32 (float64 for
        float64 depth); and (b, 1, h, w) bool: where it was taken from inside `other`.
    """
    b, _, h, w = _four(other, "other")
    for what, given, wanted in (
        ("depth", depth, (b, 1, h, w)),
        ("intrinsics", intrinsics, (b, 3, 3)),
        ("transform", transform, (b, 4, 4)),
    ):
        if tuple(given.shape) != wanted:
            raise ValueError(
                f"warp of pictures {tuple(other.shape)} takes {what} of shape {wanted}; got "
                f"{tuple(given.shape)}."
            )
    with torch.autocast(depth.device.type, enabled=False):
        dtype = torch.float64 if depth.dtype == torch.float64 else torch.float32
        other, depth, k, t = (x.to(dtype) for x in (other, depth, intrinsics, transform))
        on = {"dtype": dtype, "device": depth.device}
        v, u = torch.meshgrid(torch.arange(h, **on), torch.arange(w, **on), indexing="ij")
        pixels = torch.stack([u, v, torch.ones_like(u)]).flatten(1)
        # K R K⁻¹ and K t first: three numbers a pixel are left to do.
        rotation = k @ t[:, :3, :3] @ torch.linalg.inv(k)
        x, y, z = ((rotation @ pixels) * depth.flatten(2) + k @ t[:, :3, 3:]).unbind(1)
        in_front = (z > 0) & z.isfinite() & (depth.flatten(1) > 0)
        z = torch.where(in_front, z, 1.0)
        x, y = (torch.where(in_front, c, -2.0) / z for c in (x, y))
        inside = in_front & (x > -0.5) & (x < w - 0.5) & (y > -0.5) & (y < h - 0.5)
        grid = torch.stack([2 * x / max(w - 1, 1) - 1, 2 * y / max(h - 1, 1) - 1], -1)
        picture = F.grid_sample(
            other,
            grid.view(b, h, w, 2),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,  # -1 and 1 are the centres of the outer pixels
        )
    return picture, inside.view(b, 1, h, w)


def photometric_error(warped: Tensor, target: Tensor) -> Tensor:
    """.85 (1 - SSIM) / 2 + .15 |warped - target| at every pixel, each averaged over channels
    (Godard et al. 2017; EPCDepth, Peng et al. 2021).

    SSIM over windows of 3x3 with equal weights, pictures continued by reflection; its distance is
    clamped to [0, 1]. From 0 (equal) to 1.

    Args:
        warped, target: (b, c, h, w) in [0, 1].

    Returns:
        (b, 1, h, w) float32 (float64 for float64 input).
    """
    shape = _four(warped, "warped")
    if target.shape != warped.shape or min(shape[-2:]) < 2:
        raise ValueError(
            "photometric_error takes two pictures of one size (b, c, h, w), 2x2 at least; got "
            f"{tuple(warped.shape)} and {tuple(target.shape)}."
        )
    with torch.autocast(warped.device.type, enabled=False):
        dtype = torch.float64 if warped.dtype == torch.float64 else torch.float32
        x, y = warped.to(dtype), target.to(dtype)
        px, py = (F.pad(image, (1, 1, 1, 1), mode="reflect") for image in (x, y))
        mx, my, xx, yy, xy = map(_mean_3x3, (px, py, px * px, py * py, px * py))
        mxx, myy, mxy = mx * mx, my * my, mx * my
        ssim = ((2 * mxy + C1) * (2 * (xy - mxy) + C2)) / (
            (mxx + myy + C1) * ((xx - mxx) + (yy - myy) + C2)
        )
        distance = ((1 - ssim) / 2).clamp(0, 1)
        error = SSIM_WEIGHT * distance + (1 - SSIM_WEIGHT) * (x - y).abs()
        return error.mean(1, keepdim=True)


def _mean_3x3(x: Tensor) -> Tensor:
    """Means of windows inside `x`; on the CPU ten times as fast as avg_pool2d."""
    x = x[..., :-2] + x[..., 1:-1] + x[..., 2:]
    return (x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]) / 9


def _four(x: Tensor, what: str) -> torch.Size:
    if x.ndim != 4:
        raise ValueError(f"{what} must be (b, c, h, w); got {tuple(x.shape)}.")
    return x.shape


# ---- depth hints --------------------------------------------------------------------------


def matched_disparity(left: Tensor, right: Tensor, *, reverse: bool = False) -> Tensor:
    """Disparity by semi-global matching (Hirschmüller 2008, OpenCV), in twelve ways, fused: what
    depth hints are made of, by `disparity_to_hint`; `WithHints` gives them to a data set's items.

    Block sizes 1, 2, 3 with four search ranges: 64, 96, 128, 160 pixels at the publication's width
    of 1024, at others in proportion, rounded up to OpenCV's multiples of 16 (so narrow images have
    fewer). Each pixel takes the disparity of that run whose warped picture has the lowest
    `photometric_error` there (Watson et al. 2019; EPCDepth, Peng et al. 2021). A run finds nothing
    in as many columns at the border as its range is wide, and none finds what is nearer than
    6.4 focal · baseline / width: 2 m on KITTI, .5 m on rooms with cameras .1 m apart.

    Args:
        left: (3, h, w) RGB in [0, 1], the picture that gets the disparity.
        right: (3, h, w) of the other camera, to its right.
        reverse: the other camera stands to the left.

    Returns:
        (1, h, w) int16 in sixteenths of a pixel, -1 = none.
    """
    import cv2  # which the depth networks do without
    import numpy as np

    _check_pictures(left, right)
    height, width = left.shape[-2:]
    ranges = sorted({16 * math.ceil(n * width / RANGES_WIDTH / 16) for n in RANGES})
    # OpenCV needs more columns than the range and half a block.
    ranges = [n for n in ranges if width - n > max(BLOCKS)]
    if not ranges or height < 2:
        raise ValueError(
            f"Depth hints need images of at least 20 columns and 2 rows; got {height}x{width}."
        )
    if reverse:
        left, right = left.flip(-1), right.flip(-1)
    pictures = [
        np.ascontiguousarray((x.float() * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu())
        for x in (left, right)
    ]
    target, other = left[None].float().cpu(), right[None].float().cpu()
    one = torch.ones(1)
    best = torch.full((1, 1, height, width), math.inf)
    found = torch.full((1, 1, height, width), NO_MATCH, dtype=torch.int16)
    for block in BLOCKS:
        for count in ranges:
            matcher = cv2.StereoSGBM_create(
                minDisparity=0, numDisparities=count, blockSize=block, **MATCHING
            )
            disparity = torch.from_numpy(matcher.compute(*pictures))[None, None]
            # With K = 1 and a baseline of 1 depth is one over disparity.
            depth = SUBPIXEL / disparity.clamp(min=1e-3 * SUBPIXEL)
            warped, _ = warp(other, depth, torch.eye(3)[None], stereo_transform(one))
            error = photometric_error(warped, target)
            better = (disparity >= 0) & (error < best)
            best, found = torch.where(better, error, best), torch.where(better, disparity, found)
    found = found[0]
    return found.flip(-1) if reverse else found


def disparity_to_hint(
    disparity: Tensor, *, focal: float, baseline: float, offset: float = 0.0
) -> Tensor:
    """`matched_disparity` as depth in metres, float32, 0 = none.

    Args:
        focal: pixels.
        baseline: metres, negative where the other camera stands to the left.
        offset: principal point of the other picture minus that of this one, pixels, where the
            rectification left one (Middlebury's doffs).
    """
    pixels = disparity.float() / SUBPIXEL + math.copysign(1, baseline) * offset
    seen = (disparity >= 0) & (pixels > 0)
    return torch.where(seen, focal * abs(baseline) / torch.where(seen, pixels, 1.0), 0.0)


# ---- data grafting ------------------------------------------------------------------------


def data_graft(batch: dict, *, generator: torch.Generator | None = None) -> dict:
    """Every picture's lower part replaced by another's (EPCDepth, Peng et al. 2021).

    A ratio r of 0, .2, .4, .6, .8 is drawn for the batch, and one cyclic permutation of the items
    of each side (sign of `baseline`), so that every item meets another where its side has two.
    Rows from int(r · h) on become the other item's; with probability ½ the two strips then change
    places. So position in the picture says less about depth. All that is as large as `image` (h, w)
    is treated alike: the other picture, hints, depth, altered copies; the rest stays as it is.

    Args:
        batch: collated items: `image` (b, 3, h, w), `baseline` (b,), `intrinsics` (b, 3, 3), ….
        generator: on the CPU; None draws from torch's own.

    Returns:
        a new dict; tensors of `batch` are not changed.
    """
    _need(batch, ("image", "baseline", "intrinsics"), "data_graft")
    height, width = batch["image"].shape[-2:]
    b = len(batch["image"])
    baseline = torch.as_tensor(batch["baseline"]).cpu()
    focal = batch["intrinsics"][:, 0, 0].cpu()
    source = torch.arange(b)
    start = int(GRAFT_RATIOS[int(_randint(len(GRAFT_RATIOS), generator))] * height)
    exchange = bool(_randint(2, generator))
    for side in (baseline > 0, baseline < 0):
        (members,) = side.nonzero(as_tuple=True)
        if len(members) < 2:
            continue
        for what, values in (("baseline", baseline), ("focal length", focal)):
            low, high = values[members].abs().aminmax()
            if high > low * (1 + SAME_CAMERA):
                raise ValueError(
                    f"data_graft mixes pictures of one camera, but the {what} of this batch goes "
                    f"from {low:.4g} to {high:.4g}. Make batches of one camera, or leave it out."
                )
        order = members[torch.randperm(len(members), generator=generator)]
        source[order] = order.roll(1)

    def graft(x: Tensor) -> Tensor:
        lower = x[source.to(x.device), ..., start:, :]
        parts = [x[..., :start, :], lower]
        return torch.cat(parts[::-1] if exchange else parts, dim=-2)

    def spatial(x) -> bool:
        return isinstance(x, Tensor) and x.ndim >= 3 and x.shape[-2:] == (height, width)

    return {name: graft(x) if spatial(x) else x for name, x in batch.items()}


def _randint(high: int, generator: torch.Generator | None) -> Tensor:
    return torch.randint(high, (), generator=generator)


def _need(batch: dict, names: Sequence[str], of: str) -> None:
    if missing := [name for name in names if name not in batch]:
        raise ValueError(
            f"{of} needs {', '.join(names)}; this batch has no {', '.join(missing)}, only "
            f"{', '.join(batch)}. A stereo data set gives them: load_dataset('rooms' or 'streets', "
            "…, baseline=0.54), load_dataset('kitti', …, right=True)."
        )


# ---- is it a pair? ------------------------------------------------------------------------


def check_pair(
    left: Tensor,
    right: Tensor,
    *,
    focal: float | None,
    baseline: float | None,
    offset: float = 0.0,
    hint: Tensor | None = None,
    name: str = "this pair",
) -> None:
    """Refuse what is no pair of pictures with its calibration, as `matched_disparity` and
    `disparity_to_hint` take them. Whether a pair is rectified, and in which order, is not looked
    at.

    Args:
        hint: (1, h, w), to have its size checked.
        name: of the pair, for messages.
    """
    _check_pictures(left, right, name)
    _check_calibration(focal, baseline, offset, name)
    if hint is not None and tuple(hint.shape) != (1, *left.shape[-2:]):
        raise ValueError(
            f"The hint of {name} must be {(1, *left.shape[-2:])}, as large as its pictures; got "
            f"{tuple(hint.shape)}. Compute it from these pictures: a resized one mixes depths "
            "along edges."
        )
    if torch.equal(left, right):
        raise ValueError(f"Both pictures of {name} are the same: there is no disparity in them.")


def check_pairs(name: str, dataset, model, *, hints: bool) -> None:
    """Refuse a data set whose first item is no pair for this network.

    Args:
        name: of the set, for messages.
        hints: whether its items need a `hint`.
    """
    item = dataset[0]
    wanted = ("right", "intrinsics", "baseline", *(("hint",) if hints else ()))
    if missing := [key for key in wanted if key not in item]:
        remedy = (
            "Give load_dataset hints=True, or the config stereo={'hints': False}."
            if missing == ["hint"]
            else "Load 'rooms' or 'streets' with baseline=…, 'kitti' with right=True."
        )
        raise ValueError(
            f"Pairs need image, {', '.join(wanted)}; items of the {name} set lack "
            f"{', '.join(missing)}, they have {', '.join(item)}. {remedy}"
        )
    check_pair(
        item["image"],
        item["right"],
        focal=float(item["intrinsics"][0, 0]),
        baseline=float(item["baseline"]),
        hint=item["hint"] if hints else None,
        name=f"{item.get('name', 'item 0')} of the {name} set",
    )
    check_baseline(torch.tensor([float(item["baseline"])]), model)


def check_baseline(baselines: Tensor, model) -> None:
    """Refuse pairs that would teach the network another scale than it has."""
    own = getattr(model, "options", {}).get("baseline")
    if own is None:
        return
    wrong = (baselines.abs() - own).abs() > SAME_BASELINE * own
    if wrong.any():
        found = baselines[wrong][0].abs().item()
        raise ValueError(
            f"The network takes the cameras to be {own:g} m apart, but those of these pairs are "
            f"{found:.4g} m apart: its metres would be wrong. Build it with baseline={found:.4g}."
        )


def _check_pictures(left: Tensor, right: Tensor, name: str = "this pair") -> None:
    for x in (left, right):
        if x.ndim != 3 or x.shape[0] != 3:
            grey = " Repeat a grey one: x.expand(3, -1, -1)." if x.ndim == 3 else ""
            raise ValueError(
                f"The pictures of {name} must be (3, h, w) RGB in [0, 1]; got "
                f"{tuple(left.shape)} and {tuple(right.shape)}.{grey}"
            )
    if left.shape != right.shape:
        (h, w), (h2, w2) = left.shape[-2:], right.shape[-2:]
        raise ValueError(
            f"The pictures of {name} differ in size, {h}x{w} and {h2}x{w2}: they are no rectified "
            "pair. Crop or resize both alike, and the calibration with them."
        )


def _check_calibration(focal, baseline, offset, name: str = "this pair") -> None:
    if focal is None or baseline is None:
        raise ValueError(
            f"No calibration of {name}: focal={focal}, baseline={baseline}. Give the focal length "
            "in pixels and the distance of the cameras in metres."
        )
    focal, baseline, offset = float(focal), float(baseline), float(offset)
    if not 0 < focal < math.inf or not 0 < abs(baseline) < math.inf or not math.isfinite(offset):
        raise ValueError(
            f"The calibration of {name} needs a focal length above 0 (pixels) and a baseline other "
            "than 0 (metres; negative where the second camera stands to the left); got "
            f"focal={focal:g}, baseline={baseline:g}, offset={offset:g}."
        )
