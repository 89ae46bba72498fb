"""Indoor scenes, seen by NYU Depth V2's camera."""

from .furniture import LABELS
from .sensor import KINECT
from .shell import ROOMS

__all__ = ["KINECT", "LABELS", "ROOMS"]
