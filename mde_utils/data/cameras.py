"""Where pixels go when an image is cut and resized. Their centres lie at whole numbers."""

from __future__ import annotations

import numpy as np


def window_map(window: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """(3, 3) float64: pixels of an image to those of its window, resized. Intrinsics K become T K.

    window: top, left, height, width in the image's pixels. size: (H, W) of the result.

    A pixel reaches half a pixel beyond its centre, so x' + ½ = (x - left + ½) s.
    """
    top, left, h, w = window
    sy, sx = size[0] / h, size[1] / w
    return np.array([[sx, 0, (0.5 - left) * sx - 0.5], [0, sy, (0.5 - top) * sy - 0.5], [0, 0, 1]])
