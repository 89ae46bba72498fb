"""The camera of NYU Depth V2, which the rendered rooms share."""

from __future__ import annotations

import torch
from torch import Tensor

NATIVE = (480, 640)  # height, width
# Colour camera, undistorted, at 640x480 (camera_params.m of the data set's official toolbox).
FX, FY, CX, CY = 518.86, 519.47, 325.58, 253.74


def intrinsics(size: tuple[int, int]) -> tuple[float, float, float, float]:
    """fx, fy, cx, cy in pixels, of the full view resized to ``size`` (H, W).

    Pixel centres lie at whole numbers, so a centre c moves to (c + ½) · scale − ½.
    """
    sy, sx = size[0] / NATIVE[0], size[1] / NATIVE[1]
    return FX * sx, FY * sy, (CX + 0.5) * sx - 0.5, (CY + 0.5) * sy - 0.5


def intrinsics_matrix(size: tuple[int, int]) -> Tensor:
    """:func:`intrinsics` as a (3, 3) float32 matrix."""
    fx, fy, cx, cy = intrinsics(size)
    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])
