"""Indoor scenes, seen by NYU Depth V2's camera."""

from .furniture import LABELS
from .rooms import ROOMS
from .sensor import KINECT

__all__ = ["KINECT", "LABELS", "ROOMS"]
