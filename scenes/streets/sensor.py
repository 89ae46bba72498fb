"""What the streets are seen with: KITTI's left colour camera and lidar.

Geiger et al. 2013, "Vision meets Robotics": the camera's rectified picture, 1.65 m above the road,
0.54 m beside the right one; the lidar 0.27 m behind and 0.08 m above it.
"""

from __future__ import annotations

import math

import torch

from ..world import Lens, noise

CAMERA = Lens((375, 1242), 721.5377, 721.5377, 609.5593, 172.854)
CAMERA_HEIGHT = 1.65
MAX_DEPTH = 80.0
DEPTH_STEP = 1 / 256  # metres, of a measured depth: as in KITTI's files

_BEHIND, _ABOVE = 0.27, 0.08  # metres from the camera
_AZIMUTH = 0.18  # degrees between two shots of one beam, at full size
_NOISE = 0.02  # metres, one standard deviation


def lidar(depth, dice, *, image, normal, gloss):
    """Sparse z-depth (1, H, W) as a Velodyne HDL-64E sees it, 0 elsewhere.

    depth, normal, …: the camera's exact ones. 64 beams: 32 from +2° on in steps of ⅓°, 32 below
    them in steps of ½° down to −24.33°, each with a shot every 0.18°. In pictures smaller than
    KITTI's both are thinned out by the picture's scale, so that about as large a part of the
    pixels is met. A pixel is measured where a shot from the lidar passes its surface point; the
    value is its depth with 2 cm of noise, in steps of 1/256 m. Shots are lost on the dark, the
    glossy and the far, at grazing angles, and by chance.
    """
    z = depth[0]
    h, w = z.shape
    dev = z.device
    fx, fy, cx, cy = CAMERA.intrinsics((h, w))
    rx = (torch.arange(w, device=dev, dtype=torch.float32) - cx) / fx
    ry = ((torch.arange(h, device=dev, dtype=torch.float32) - cy) / fy)[:, None]
    # The point as seen from the lidar, in degrees.
    ahead, up = z + _BEHIND, -(ry * z) - _ABOVE
    side = rx * z
    flat = (ahead * ahead + side * side).sqrt()
    elevation = torch.atan2(up, flat).rad2deg()
    azimuth = torch.atan2(side, ahead).rad2deg()
    # In units of beams and shots.
    upper = (2.0 - elevation) * 3
    lower = 32 + (-8.83 - elevation) * 2
    beam = torch.where(upper < 31.25, upper, lower)
    keep = max(1, round(CAMERA.native[0] / h))  # every so many-th beam
    step = _AZIMUTH * max(1.0, CAMERA.native[1] / w)
    nearest = ((beam / keep).round() * keep).clamp_(0, 63 // keep * keep)
    phase = noise(dice, (64,), dev)[nearest.long()]
    shot = azimuth / step + phase
    # Half a pixel in the same units: tan a = x / z, so da = cos² a dx.
    cos2 = 1 / (1 + rx * rx)
    half_shot = 0.5 / fx * cos2 * (180 / math.pi) / step
    half_beam = 0.5 / fy * cos2.sqrt() / (1 + ry * ry * cos2) * (180 / math.pi)
    half_beam = half_beam * torch.where(upper < 31.25, 3.0, 2.0)
    met = ((beam - nearest).abs() <= half_beam) & ((shot - shot.round()).abs() <= half_shot)

    range_ = (flat * flat + up * up).sqrt()
    ray2 = 1 + rx * rx + ry * ry
    facing = -(normal[0] * rx + normal[1] * ry + normal[2]) * ray2.rsqrt()
    luma = image.mean(0)
    loss = (
        -2.0
        + 2.5 * (gloss - 0.45).clamp(min=0) / 0.15
        + 1.2 * ((0.15 - luma) / 0.15).clamp(min=0)
        + 1.5 * (0.08 - facing).clamp(min=0) / 0.08
        + (range_ - 50).clamp(min=0) / 30
    )
    lost = noise(dice, (h, w), dev) < loss
    measured = z + (noise(dice, (h, w), dev).clamp(-3, 3) * _NOISE) * z / range_.clamp(min=1e-3)
    measured = (measured / DEPTH_STEP).round() * DEPTH_STEP
    return torch.where(met & ~lost & (z > 0) & (range_ < MAX_DEPTH), measured, 0.0)[None]
