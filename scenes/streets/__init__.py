"""Drives through streets, seen by KITTI's camera and lidar."""

from .roadside import LABELS
from .sensor import CAMERA, DEPTH_STEP
from .streets import STREETS

__all__ = ["CAMERA", "DEPTH_STEP", "LABELS", "STREETS"]
