"""Rectified stereo pairs as they lie on disk: KITTI's odometry and 2015 sets, Middlebury's scenes.

For a few pairs to look at, to fine-tune on or to evaluate with: all are read into memory. KITTI's
raw drives are `load_dataset("kitti", …, right=True)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .cameras import window_map
from .kitti import project_velodyne, read_calibration, read_velodyne
from .reading import (
    as_rgb,
    check_grey_png,
    check_options,
    decode,
    evenly,
    open_picture,
    resize_image,
)

# The left picture's folder or the beginning of its name, the right one's, and KITTI's cameras.
SIDES = (
    ("image_2", "image_3", (2, 3)),
    ("image_0", "image_1", (0, 1)),
    ("image_l", "image_r", (0, 1)),
    ("left", "right", (2, 3)),
    ("im0", "im1", None),
)
TRUE_PAIRS = {"image_2": "disp_occ_0", "image_0": "disp_occ"}  # 16-bit PNG, pixels · 256
FARTHEST = 80.0  # of lidar, metres, as KITTI's


def stereo_pairs(
    folder: str | Path,
    *,
    size: tuple[int, int] | None = None,
    limit: int | None = None,
    focal: float | None = None,
    baseline: float | None = None,
) -> list[dict]:
    """The pairs in a folder, with their calibration and, where there is any, their true depth.

    Pairs are `image_2` and `image_3` (or `image_0`/`image_1`, `image_l`/`image_r`, `left`/`right`,
    `im0`/`im1`): folders with equally named PNGs, or PNGs whose names begin so and end alike. The
    calibration is `calib.txt`, KITTI's or Middlebury's. Depth is, of what is there, that of
    `disp_occ_0` (KITTI 2015: 16-bit PNG, pixels times 256), `disp0GT.pfm` or `disp0.pfm`
    (Middlebury: pixels), or `lidar.bin` (KITTI's sweep, projected). Where some pairs have a file in
    `disp_occ_0`, only those are taken.

    Args:
        size: (H, W) to resize pictures to, bilinear and antialiased; depth stays as it is.
        limit: at most so many, evenly over the folder.
        focal, baseline: of pictures without `calib.txt`: pixels of the files, metres.

    Returns:
        items: `image` and `right` (3, H, W) RGB in [0, 1], grey ones in three equal channels, with
        the principal point of `image`: where `right` has another one (Middlebury's doffs), it is
        moved there; `intrinsics` (3, 3) and `focal` in pixels of these, `baseline` in metres,
        `name`, and perhaps `depth` (1, H', W') in metres, 0 = none.
    """
    folder = Path(folder).expanduser()
    size = check_options(limit, size)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    found = list(_pairs(folder))
    if not found:
        raise FileNotFoundError(
            f"No stereo pair lies in {folder}. It needs PNGs in two folders, or with two "
            f"beginnings of their names: {', '.join(f'{a} and {b}' for a, b, _ in SIDES)}."
        )
    if absent := [right for _, right, *_ in found if not right.is_file()]:
        raise FileNotFoundError(
            f"{len(absent)} of {len(found)} pairs lack their right picture, first {absent[0]}."
        )
    # KITTI 2015 has the disparity of every other picture alone.
    found = [pair for pair in found if pair[3].is_file()] or found
    camera = _camera(folder, found[0][2], focal, baseline)
    return [_item(folder, *pair, camera, size) for pair in evenly(found, limit)]


def _pairs(folder: Path) -> Iterator[tuple[Path, Path, tuple | None, Path]]:
    """Left and right picture, KITTI's cameras, and where KITTI 2015 has the disparity."""
    for one, other, cameras in SIDES:
        for left in sorted([*folder.glob(f"{one}/*.png"), *folder.glob(f"{one}*.png")]):
            place = str(left.relative_to(folder))
            truth = folder / (TRUE_PAIRS.get(one, "-") + place.removeprefix(one))
            yield left, folder / (other + place.removeprefix(one)), cameras, truth
        if any(folder.glob(f"{one}*")):
            return


def _camera(folder: Path, cameras: tuple | None, focal, baseline) -> tuple:
    """intrinsics (or the focal length alone), baseline, doffs, and KITTI's calibration if it is."""
    path = folder / "calib.txt"
    if not path.is_file():
        if not focal or not baseline or focal <= 0 or baseline <= 0:
            raise FileNotFoundError(
                f"{folder} has no calib.txt, and focal and baseline were not both given "
                f"(focal={focal!r}, baseline={baseline!r}). Pass them: pixels of the files, and "
                "metres. KITTI's are about 721.5 and 0.533."
            )
        return float(focal), float(baseline), 0.0, None
    text = path.read_text(encoding="utf-8", errors="replace")
    if "cam0=" in text:
        values = dict(re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE))
        try:
            k = np.array(
                [[float(x) for x in row.split()] for row in values["cam0"][1:-1].split(";")]
            )
            return k.reshape(3, 3), float(values["baseline"]) / 1000, float(values["doffs"]), None
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} is no calibration of Middlebury's: {error!r}.") from None
    calibration = read_calibration(path)
    one, other = cameras or (0, 1)
    return calibration.intrinsics(one), calibration.baseline(one, other), 0.0, calibration


def _item(folder, left, right, cameras, truth, camera, size) -> dict:
    k, baseline, doffs, calibration = camera
    pictures = []
    for path in (left, right):
        with open_picture(path, path) as picture:
            pictures.append(as_rgb(picture, path))
    (w, h), other = (picture.size for picture in pictures)
    if other != (w, h):
        raise ValueError(f"{left} has {w}x{h} pixels, {right} {other[0]}x{other[1]}.")
    if isinstance(k, float):
        k = np.array([[k, 0, (w - 1) / 2], [0, k, (h - 1) / 2], [0, 0, 1]])
    images = [np.ascontiguousarray(np.asarray(picture)) for picture in pictures]
    if doffs:
        move = np.array([[1, 0, -doffs], [0, 1, 0]])
        images[1] = cv2.warpAffine(images[1], move, (w, h), borderMode=cv2.BORDER_REPLICATE)
    height, width = size or (h, w)
    scaled = torch.tensor(window_map((0, 0, h, w), (height, width)) @ k, dtype=torch.float32)
    item = {
        name: torch.from_numpy(resize_image(Image.fromarray(x), (height, width)).astype("f4") / 255)
        for name, x in zip(("image", "right"), images, strict=True)
    }
    item |= {
        "intrinsics": scaled,
        "focal": scaled[0, 0].clone(),
        "baseline": torch.tensor(baseline, dtype=torch.float32),
        "name": str(left.relative_to(folder).with_suffix("")),
    }
    depth = _depth(folder, truth, k[0, 0] * baseline, doffs, calibration, cameras, (h, w))
    return item if depth is None else item | {"depth": depth}


def _depth(folder, truth, unit, doffs, calibration, cameras, size) -> Tensor | None:
    """(1, h, w) metres = unit / (disparity + doffs)."""
    pfm = next((p for n in ("disp0GT", "disp0") if (p := folder / f"{n}.pfm").is_file()), None)
    if truth.is_file():
        check_grey_png(truth, 16, "disparity of KITTI 2015")
        disparity = np.asarray(decode(truth)).astype("f4") / 256
        seen = disparity > 0
    elif pfm is not None:
        disparity = _read_pfm(pfm)
        seen = np.isfinite(disparity)
    elif (folder / "lidar.bin").is_file() and calibration is not None:
        points = read_velodyne(folder / "lidar.bin")
        depth = project_velodyne(points, calibration, size=size, camera=cameras[0])
        return torch.where(depth <= FARTHEST, depth, 0.0)
    else:
        return None
    if disparity.shape != size:
        raise ValueError(
            f"{folder}: the disparity has {disparity.shape[1]}x{disparity.shape[0]} pixels, the "
            f"picture {size[1]}x{size[0]}."
        )
    total = np.where(seen, disparity + doffs, 0)
    depth = np.where(total > 0, unit / np.where(total > 0, total, 1), 0)
    return torch.from_numpy(depth.astype("f4"))[None]


def _read_pfm(path: Path) -> np.ndarray:
    """(h, w) float32. Not OpenCV, which multiplies by the header's scale; Middlebury's values are
    meant as they stand."""
    try:
        kind, size, scale, values = path.read_bytes().split(b"\n", 3)
        w, h = map(int, size.split())
        order = "<" if float(scale) < 0 else ">"
        if kind.strip() != b"Pf":
            raise ValueError(f"its first line is {kind[:20]!r}, not b'Pf'")
        return np.frombuffer(values, order + "f4", h * w).reshape(h, w)[::-1].astype("f4")
    except ValueError as error:
        raise ValueError(f"Cannot read {path} as a PFM of one channel: {error}.") from None
