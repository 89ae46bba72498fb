"""What the rooms are seen with: NYU Depth V2's Kinect."""

from __future__ import annotations

import torch

from ..world import Lens, noise

# Colour camera, undistorted, at 640x480 (camera_params.m of NYU Depth V2's official toolbox).
KINECT = Lens((480, 640), 518.86, 519.47, 325.58, 253.74)


def kinect(depth, dice, *, image, normal, gloss, focal):
    """z-depth (1, H, W) as a first Kinect measures it, 0 where it measures nothing.

    Holes in the projector's shadow (7.5 cm beside the camera), along depth edges, on dark or
    glossy things, at grazing angles and far away; z = 351.3 / (1092.5 − k) with integer k
    elsewhere (the NYU toolbox's formula).
    """
    z = depth[0]
    h, w = z.shape
    dev = z.device
    column = torch.arange(w, device=dev, dtype=torch.float32)
    # The projector stands to the right: nearer things to the right of a pixel may cover it.
    seen_at = column - focal * 0.075 / z
    rightmost = seen_at.flip(1).cummin(1)[0].flip(1)
    hole = rightmost < seen_at - 0.35

    # Patches of some pixels' size, not single ones.
    patch = noise(dice, (1, 1, -(-h // 4), -(-w // 4)), dev)
    patch = torch.nn.functional.interpolate(
        patch, size=(h, w), mode="bilinear", align_corners=False
    )[0, 0]
    grain = noise(dice, (h, w), dev)
    chance = 0.7 * patch + 0.5 * grain
    jump = torch.zeros_like(hole)
    for axis in (0, 1):
        a, b = z.narrow(axis, 1, z.shape[axis] - 1), z.narrow(axis, 0, z.shape[axis] - 1)
        edge = (a - b).abs() > 0.04 * torch.minimum(a, b)
        jump.narrow(axis, 1, z.shape[axis] - 1).logical_or_(edge)
        jump.narrow(axis, 0, z.shape[axis] - 1).logical_or_(edge)
    hole |= jump & (chance > -0.3)

    y = torch.arange(h, device=dev, dtype=torch.float32)
    fx, fy, cx, cy = KINECT.intrinsics((h, w))
    ray = torch.stack([((column - cx) / fx).expand(h, w), ((y - cy) / fy)[:, None].expand(h, w)])
    facing = -(normal[0] * ray[0] + normal[1] * ray[1] + normal[2])
    facing = facing * (1 + (ray * ray).sum(0)).rsqrt()
    luma = image.mean(0)
    weak = (
        2.2 * ((0.16 - luma) / 0.16).clamp(min=0)
        + 2.6 * (gloss - 0.45).clamp(min=0)
        + 6 * (0.25 - facing).clamp(min=0)
        + 1.2 * (z - 7.5).clamp(min=0)
        + 20 * (0.5 - z).clamp(min=0)
    )
    hole |= weak + 0.5 * chance > 1.15
    k = (1092.5 - 351.3 / z).round()
    return (351.3 / (1092.5 - k)).masked_fill(hole, 0.0)[None]
