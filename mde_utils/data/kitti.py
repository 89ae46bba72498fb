"""KITTI (Geiger et al., IJRR 2013; CC BY-NC-SA 3.0, cite): raw drives, velodyne, calibration.

A folder as the data set's own downloads unpack it:

    <root>/2011_09_26/calib_cam_to_cam.txt, calib_velo_to_cam.txt
    <root>/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png   left; 03 = right
    <root>/2011_09_26/2011_09_26_drive_0001_sync/velodyne_points/data/0000000005.bin
    <drive>/proj_depth/groundtruth/image_02/0000000005.png   improved depth (Uhrig et al., 3DV 2017)

where the last lie in `root`, `root/train`, `root/val` or the like (`DEPTH_FOLDERS`). Which frames
make a split stands in a list; three kinds are read (`read_split`).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..checks import unknown
from .cache import CachedDataset
from .cameras import window_map
from .reading import (
    KAGGLE_INPUT,
    check_choices,
    check_grey_png,
    check_options,
    decode,
    evenly,
    fingerprint,
    folders,
    hold_out,
    in_threads,
    resize_depth,
    resize_image,
    say_once,
    search,
)
from .transforms import resolve_augmentation

SPLITS = ("train", "val", "test")
GROUND_TRUTHS = ("improved", "velodyne")
FORWARDS = ("camera", "velodyne")
BENCHMARK = (352, 1216)  # height, width of KITTI's depth benchmark
DEPTH_UNIT = 1 / 256  # metres per unit of the improved ground truth
ENCODINGS = {  # (ground truth, forward) → (stored as, words)
    ("improved", "camera"): ("u2", "16-bit PNG, value/256 m"),
    ("velodyne", "camera"): ("f4", "one lidar sweep, metres along the camera's axis"),
    ("velodyne", "velodyne"): ("f4", "one lidar sweep, metres along the lidar's axis"),
}

# The lists by their usual names, in the order they are tried: of BTS (which has none for
# validation), of Monodepth2, and any that lies there.
SPLIT_FILES = (
    "eigen_{}_files_with_gt.txt",
    "eigen_zhou/{}_files.txt",
    "eigen_full/{}_files.txt",
    "eigen/{}_files.txt",
    "{}_files.txt",
)
SPLIT_FOLDERS = ("", "splits", "train_test_inputs")
DEPTH_FOLDERS = (
    "",
    "train",
    "val",
    "data_depth_annotated",
    "data_depth_annotated/train",
    "data_depth_annotated/val",
)


# ---- calibration --------------------------------------------------------------------------


@dataclass(frozen=True)
class Calibration:
    """Cameras after rectification, and the lidar.

    Attributes:
        projections: camera → (3, 4) float64, rectified coordinates of camera 0 to pixels.
        rectify: (4, 4) float64, camera 0 to its rectified coordinates.
        velo_to_cam: (4, 4) float64, lidar to camera 0, metres; None where the file has none.
        sizes: camera → (height, width) of its rectified frames, where the file says them.
    """

    projections: Mapping[int, np.ndarray]
    rectify: np.ndarray
    velo_to_cam: np.ndarray | None
    sizes: Mapping[int, tuple[int, int]]

    def intrinsics(self, camera: int) -> np.ndarray:
        """(3, 3) float64, pixels of the whole frame."""
        return self._projection(camera)[:, :3].copy()

    def baseline(self, camera: int, other: int) -> float:
        """How far to the right of `camera` the other one stands, metres; negative = to the left."""
        x, there = (self._projection(c)[0, 3] / self._projection(c)[0, 0] for c in (camera, other))
        return float(x - there)

    def velo_to_image(self, camera: int) -> np.ndarray:
        """(3, 4) float64, lidar to homogeneous pixels; the third row is depth in metres."""
        if self.velo_to_cam is None:
            raise ValueError(
                "This calibration has no lidar: it needs Tr_velo_to_cam (or Tr) in the same file, "
                "or calib_velo_to_cam.txt beside calib_cam_to_cam.txt."
            )
        return self._projection(camera) @ self.rectify @ self.velo_to_cam

    def _projection(self, camera: int) -> np.ndarray:
        if camera not in self.projections:
            known = ", ".join(map(str, self.projections))
            raise ValueError(f"Camera {camera} is not in this calibration; it has {known}.")
        return self.projections[camera]


def read_calibration(path: str | Path) -> Calibration:
    """A calibration of KITTI, of any of its parts.

    path: the folder of a date (`calib_cam_to_cam.txt` and `calib_velo_to_cam.txt`, raw data), or
        one file: `calib_cam_to_cam.txt` alone (then without lidar), or `calib.txt` of the object
        and scene flow sets (`P0`–`P3`, `R0_rect`, `Tr_velo_to_cam`) or of odometry (`P0`–`P3`,
        `Tr`; or rows of 12 numbers without names, cameras 0, 1, …).
    """
    path, lidar = Path(path), {}
    if path.is_dir():
        lidar = _read_entries(path / "calib_velo_to_cam.txt")
        path = path / "calib_cam_to_cam.txt"
    entries = _read_entries(path)
    projections = {
        int(m[1]): _matrix(entries, key, (3, 4), path)
        for key in entries
        if (m := re.fullmatch(r"P(?:_rect_0)?(\d)", key))
    }
    if not projections:
        raise ValueError(
            f"{path} holds no projection: neither P0 … P3, P_rect_00 … P_rect_03 nor rows of 12 "
            f"numbers. It has {', '.join(entries) or 'nothing'}."
        )
    if lidar:
        place = path.with_name("calib_velo_to_cam.txt")
        turn, move = _matrix(lidar, "R", (3, 3), place), _matrix(lidar, "T", (3, 1), place)
        velo_to_cam = _homogeneous(np.hstack([turn, move]))
    else:
        tr = next((key for key in ("Tr_velo_to_cam", "Tr_velo_cam", "Tr") if key in entries), None)
        velo_to_cam = _homogeneous(_matrix(entries, tr, (3, 4), path)) if tr else None
    # Odometry's Tr leads into rectified coordinates already.
    turn = next((key for key in ("R_rect_00", "R0_rect", "R_rect") if key in entries), None)
    rectify = _homogeneous(_matrix(entries, turn, (3, 3), path)) if turn else np.eye(4)
    sizes = {
        c: tuple(int(n) for n in reversed(_matrix(entries, f"S_rect_0{c}", (2,), path)))
        for c in projections
        if f"S_rect_0{c}" in entries
    }
    return Calibration(projections, rectify, velo_to_cam, sizes)


def _read_entries(path: Path) -> dict[str, str]:
    """`name: numbers` by name; rows without one are P0, P1, …"""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"The calibration {path} is missing. KITTI offers it for each date, as "
            "<date>_calib.zip; unpack it so that it lies there."
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no calibration of KITTI, it is not text: {error}") from None
    entries = {}
    for line in filter(None, map(str.strip, lines)):
        name, colon, values = line.partition(":")
        entries.update({name: values} if colon else {f"P{len(entries)}": line})
    return entries


def _matrix(entries: Mapping[str, str], key: str, shape: tuple, path: Path) -> np.ndarray:
    words = entries.get(key)
    if words is None:
        raise ValueError(f"{path} lacks {key}; it has {', '.join(entries)}.")
    try:
        return np.array([float(word) for word in words.split()]).reshape(shape)
    except ValueError:
        count = int(np.prod(shape))
        raise ValueError(
            f"{path}: {key} must be {count} numbers, given {words.strip()!r}"
        ) from None


def _homogeneous(matrix: np.ndarray) -> np.ndarray:
    out = np.eye(4)
    out[:3, : matrix.shape[1]] = matrix
    return out


# ---- velodyne and depth -------------------------------------------------------------------


def read_velodyne(path: str | Path) -> Tensor:
    """(N, 4) float32: x forward, y left, z up in metres, and reflectance."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no velodyne file {path}.") from None
    if not data or len(data) % 16:
        raise ValueError(
            f"{path} has {len(data)} bytes; a velodyne file is whole points of 16 bytes (x, y, z, "
            "reflectance as float32). It is damaged or cut off, fetch it again."
        )
    return torch.from_numpy(np.frombuffer(data, "<f4").reshape(-1, 4).astype("f4"))


def project_velodyne(
    points: Tensor,
    calibration: Calibration,
    *,
    size: tuple[int, int],
    camera: int = 2,
    forward: str = "camera",
) -> Tensor:
    """(1, H, W) depth in metres of the lidar's points in a camera, 0 where there is none.

    points: (N, 3 or more): x, y, z of the lidar, metres; what is behind the camera is left out.
    size: (H, W) of the camera's whole frame.
    forward: "camera": depth along the camera's axis. "velodyne": along the lidar's, as much of the
        literature evaluates (Eigen's protocol); it is measured from the lidar, 0.27 m behind.

    A point at (u, v) belongs to pixel (round(u) - 1, round(v) - 1), as in the data set's own
    toolbox, whose pixels count from 1; so the numbers are those of the literature. Where several
    fall into one pixel the nearest stays.
    """
    if forward not in FORWARDS:
        raise ValueError(unknown("forward of project_velodyne", forward, FORWARDS))
    if points.ndim != 2 or points.shape[1] < 3:
        raise ValueError(f"points are (N, 3 or more), x, y, z in metres; got {tuple(points.shape)}")
    h, w = size
    xyz = points[:, :3].double()
    matrix = torch.from_numpy(calibration.velo_to_image(camera)).to(xyz)
    u, v, z = (xyz @ matrix[:, :3].T + matrix[:, 3]).unbind(1)
    depth = z if forward == "camera" else xyz[:, 0]
    column, row = ((c / z).round() - 1 for c in (u, v))
    # Points behind the camera would come out mirrored.
    seen = (z > 0) & (depth > 0) & (column >= 0) & (column < w) & (row >= 0) & (row < h)
    place = (row * w + column)[seen].long()
    flat = torch.zeros(h * w, dtype=torch.float64, device=xyz.device)
    flat.scatter_reduce_(0, place, depth[seen], "amin", include_self=False)
    return flat.view(1, h, w).float()


def read_depth(path: str | Path) -> Tensor:
    """(1, H, W) metres of a depth PNG of KITTI: 16-bit grey, value/256 m, 0 = no measurement."""
    check_grey_png(path, 16, "KITTI's improved ground truth")
    stored = np.asarray(decode(path)).astype("u2")
    return torch.from_numpy(stored.astype("f4"))[None] * DEPTH_UNIT


# ---- lists --------------------------------------------------------------------------------


class Frame(NamedTuple):
    """A row of a list. `depth`: the improved ground truth's path as the list says it, "" = none,
    None = the list does not say. `focal` in pixels, None = not said."""

    drive: str
    camera: int
    number: int
    depth: str | None
    focal: float | None

    @property
    def date(self) -> str:
        return self.drive[:10]

    @property
    def name(self) -> str:
        return f"{self.drive}/image_0{self.camera}/{self.number:010d}"


_IMAGE = re.compile(
    r"(?:^|/)(\d{4}_\d\d_\d\d)/(\1_drive_\d{4}\w*)/image_0([23])/data/(\d+)\.(?:png|jpe?g)$"
)
_FOLDER = re.compile(r"(?:^|/)(\d{4}_\d\d_\d\d)/(\1_drive_\d{4}\w*)/?$")
_SIDES = {"l": 2, "r": 3}


def read_split(path: str | Path) -> list[Frame]:
    """The frames that a list names. A line is one of

    - `image ground_truth focal` (BTS; ground truth `None` where there is none, focal optional),
    - `image other_image` or `image` alone (monodepth),
    - `date/drive number side`, side `l` or `r` (Monodepth2),

    with image as `2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png`; a list may
    say .png where .jpg files lie.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no split file {path}.")
    frames = []
    for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = text.split()
        if not words:
            continue
        try:
            frames.append(_parse(words))
        except ValueError:
            raise ValueError(
                f"{path}, line {line}: expected 'image ground_truth focal' or 'date/drive number "
                f"side' (l or r), as 2011_09_26/2011_09_26_drive_0001_sync/image_02/data/"
                f"0000000005.png or 2011_09_26/2011_09_26_drive_0001_sync 5 l; given {text!r}"
            ) from None
    if not frames:
        raise ValueError(f"The split file {path} names no frame.")
    return frames


def _parse(words: list[str]) -> Frame:
    """Raises ValueError for what is no row."""
    if (image := _IMAGE.search(words[0])) and len(words) <= 3:
        depth = None
        if len(words) > 1 and not _IMAGE.search(words[1]):  # else monodepth's other image
            depth = "" if words[1] == "None" else words[1].lstrip("/")
            if depth and not depth.endswith(".png"):
                raise ValueError
        focal = float(words[2]) if len(words) == 3 else None
        return Frame(image[2], int(image[3]), int(image[4]), depth, focal)
    folder = _FOLDER.search(words[0])
    if folder and len(words) == 3 and words[2] in _SIDES and words[1].isdecimal():
        return Frame(folder[2], _SIDES[words[2]], int(words[1]), None, None)
    raise ValueError


# ---- the data set -------------------------------------------------------------------------


class KITTI(CachedDataset):
    """KITTI's raw drives. Items: image, depth, intrinsics, focal, baseline, frame, name; `right`
    and `sparse_depth` where asked for.

    split: "train", "val" or "test".
    root: the folder that holds the dates (2011_09_26, …), or one above it. Else `$KITTI_ROOT`;
        else an attached Kaggle input.
    size: (H, W) after the crop. Image bilinear and antialiased, depth from the nearest pixel.
    limit: at most so many items, evenly spaced over the split.
    split_file: the list of the split's frames, all of them, in one of the forms of `read_split`.
        None: the first of `SPLIT_FILES` below `root`; where "val" has none, it is about a tenth of
        the rows of "train", whole drives, and is then not in "train".
    ground_truth: "improved", the PNGs of the depth benchmark; or "velodyne", the frame's own lidar
        sweep by the calibration. Listed frames that lack it are left out and counted
        (`describe`): of Eigen's 697 test frames 652 have the improved one.
    forward: of ground truth "velodyne", see `project_velodyne`; "camera" or "velodyne".
    crop: "benchmark", the lower 352 rows and the central 1216 columns; or "none", the whole frame
        (frames of different dates differ in size: give a `size`).
    right: add the other camera's image.
    sparse_depth: add the frame's lidar sweep, along the camera's axis; a frame without is left
        out and counted. A `size` keeps the share of pixels with a measurement, not their number.

    The image is that of the camera which the list names, left (02) or right (03). `right` is always
    the other one's, and `baseline` is signed: how far to the right it stands, in metres, negative
    for an item of the right camera; so `focal * baseline / depth` is the disparity x - x'.
    `frame` (4,) is top, left, height and width in the item's pixels: where in the full frame
    the item lies, height and width being the full frame's. `intrinsics` are those of the window.

    Attributes: `encoding` (in words), `size`, `frames` (rows of the list), `listed`, `without`
    (what is lacking → number of frames left out for it), `split_file`.
    """

    depth_unit = DEPTH_UNIT

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        size: tuple[int, int] | None = None,
        limit: int | None = None,
        augment: str | Callable[[dict], dict] | None = None,
        cache: bool = True,
        split_file: str | Path | None = None,
        ground_truth: str = "improved",
        forward: str = "camera",
        crop: str = "benchmark",
        right: bool = False,
        sparse_depth: bool = False,
    ):
        check_choices(
            "KITTI",
            split=(split, SPLITS),
            ground_truth=(ground_truth, GROUND_TRUTHS),
            forward=(forward, FORWARDS),
            crop=(crop, ("benchmark", "none")),
        )
        if ground_truth == "improved" and forward != "camera":
            raise ValueError(
                "forward='velodyne' is a way to project lidar points; the improved ground truth is "
                "along the camera's axis already. Give ground_truth='velodyne' with it."
            )
        size = check_options(limit, size)
        augment = resolve_augmentation(augment)  # a wrong name is an error before any work

        self.split, self.ground_truth, self.forward, self.crop = split, ground_truth, forward, crop
        self._right, self._sparse = right, sparse_depth
        self.root = find_kitti(root)
        kind, self.encoding = ENCODINGS[ground_truth, forward]
        source = self._list(split_file, limit)
        self.size = size or self._native()
        say_once(self.describe())
        shapes = {"image": ("u1", 3), "depth": (kind, 1)}
        shapes |= {"right": ("u1", 3)} if right else {}
        shapes |= {"sparse_depth": ("f4", 1)} if sparse_depth else {}
        key = {"dataset": "kitti", "split": split, "size": size, "source": source}
        super().__init__(
            key=key | {"crop": crop, "ground_truth": ground_truth, "forward": forward},
            fields={name: (kind, (c, *self.size)) for name, (kind, c) in shapes.items()},
            length=len(self.frames),
            cache=cache,
            augment=augment,
        )

    def _list(self, split_file: str | Path | None, limit: int | None) -> str:
        """Frames, calibrations and paths of what there is; their fingerprint."""
        self.split_file, rows, self._held_out = _split_rows(self.root, self.split, split_file)
        self.listed = len(rows)
        self._names = _Names()
        self._check_drives(rows)
        self.frames = evenly(self._with_measurements(rows), limit)
        self._calibrations = {
            date: read_calibration(self.root / date)
            for date in dict.fromkeys(frame.date for frame in self.frames)
        }
        for frame in self.frames:
            self._check_calibration(frame)
        self._paths = [self._locate(frame) for frame in self.frames]
        calibration = [
            self.root / date / f"calib_{kind}_to_cam.txt"
            for date in self._calibrations
            for kind in ("cam", "velo")
        ]
        del self._names  # may have hundreds of thousands
        files = [*calibration, *(path for paths in self._paths for path in paths.values())]
        return fingerprint(files, [], of=f"KITTI {self.split}", root=self.root)

    def describe(self) -> str:
        """One line to print beside numbers: how many frames of which list, which ground truth."""
        used = self.listed - sum(self.without.values())
        without = "".join(f", {n} without {what} left out" for what, n in self.without.items())
        taken = f", {len(self.frames)} of them taken" if len(self.frames) < used else ""
        crop = "benchmark crop 352x1216" if self.crop == "benchmark" else "no crop"
        return (
            f"KITTI {self.split}: {used} of {self.listed} frames of {self.split_file.name}"
            f"{self._held_out}{without}{taken}; ground truth {self.ground_truth}, {self.encoding}; "
            f"{crop}"
        )

    def extras(self, index: int) -> dict:
        frame = self.frames[index]
        calibration = self._calibrations[frame.date]
        window = top, left, h, w = self._window(frame)
        sy, sx = self.size[0] / h, self.size[1] / w
        height, width = calibration.sizes[frame.camera]
        k = window_map(window, self.size) @ calibration.intrinsics(frame.camera)
        return {
            "intrinsics": torch.from_numpy(k).float(),
            "focal": float(k[0, 0]),
            "baseline": calibration.baseline(frame.camera, 5 - frame.camera),
            "frame": torch.tensor([top * sy, left * sx, height * sy, width * sx]),
            "name": frame.name,
        }

    def produce(self, indices: list[int]) -> Iterator[dict[str, np.ndarray]]:
        yield from in_threads(self._record_of, indices)

    # ---- one record -----------------------------------------------------------------------

    def _record_of(self, index: int) -> dict[str, np.ndarray]:
        frame, paths = self.frames[index], self._paths[index]
        top, left, h, w = self._window(frame)
        whole = self._calibrations[frame.date].sizes[frame.camera]

        def image(path: Path) -> np.ndarray:
            picture = decode(path).convert("RGB")
            _same_size((picture.height, picture.width), whole, path, frame.date)
            return resize_image(picture.crop((left, top, left + w, top + h)), self.size)

        def depth(values: np.ndarray) -> np.ndarray:
            return resize_depth(values[top : top + h, left : left + w], self.size)

        def sweep(forward: str) -> np.ndarray:
            options = {"size": whole, "camera": frame.camera, "forward": forward}
            calibration = self._calibrations[frame.date]
            return project_velodyne(points, calibration, **options)[0].numpy()

        points = read_velodyne(paths["velodyne"]) if "velodyne" in paths else None
        record = {"image": image(paths["image"])}
        if self.ground_truth == "improved":
            check_grey_png(paths["depth"], 16, "KITTI's improved ground truth")
            stored = np.asarray(decode(paths["depth"])).astype("u2")
            _same_size(stored.shape, whole, paths["depth"], frame.date)
            record["depth"] = depth(stored)
        else:
            record["depth"] = depth(sweep(self.forward))
        if self._right:
            record["right"] = image(paths["right"])
        if self._sparse:
            record["sparse_depth"] = depth(sweep("camera"))
        return record

    def _window(self, frame: Frame) -> tuple[int, int, int, int]:
        """Top, left, height and width of what is kept of the frame, in its pixels."""
        height, width = self._calibrations[frame.date].sizes[frame.camera]
        if self.crop == "none":
            return 0, 0, height, width
        h, w = BENCHMARK
        return height - h, (width - w) // 2, h, w

    def _native(self) -> tuple[int, int]:
        sizes = {self._window(frame)[2:] for frame in self.frames}
        if len(sizes) > 1:
            listed = ", ".join(f"{h}x{w}" for h, w in sorted(sizes))
            raise ValueError(
                f"With crop='none' the frames differ in size: {listed} (H x W). Give a size, or "
                "crop='benchmark'."
            )
        return sizes.pop()

    # ---- what is there --------------------------------------------------------------------

    def _check_drives(self, rows: list[Frame]) -> None:
        wanted = dict.fromkeys((row.date, row.drive) for row in rows)
        absent = [drive for date, drive in wanted if not (self.root / date / drive).is_dir()]
        if absent:
            present = [
                Path(drive).name
                for date in folders(self.root)
                for drive in folders(Path(date))
                if _FOLDER.search(drive)
            ]
            raise FileNotFoundError(
                f"{len(absent)} of the {len(wanted)} drives in {self.split_file} are not in "
                f"{self.root}, first {', '.join(absent[:3])}. There are {len(present)} drives"
                f"{f', first {min(present)}' if present else ''}. Add what is missing as "
                f"<date>/<drive>, or pass split_file=… with a list of the drives that are there."
            )

    def _with_measurements(self, rows: list[Frame]) -> list[Frame]:
        """The rows that have all that is asked for; `without` counts the others by what lacks."""
        lacks: list[str | None] = [None] * len(rows)
        if self.ground_truth == "velodyne" or self._sparse:
            lacks = [None if self._velodyne_path(row) else "velodyne" for row in rows]
        where = "Unpack velodyne_points/data into each drive."
        if self.ground_truth == "improved":
            places = "; ".join(str(self.root / folder) for folder in DEPTH_FOLDERS)
            where = (
                "It was looked for as <drive>/proj_depth/groundtruth/image_02/NNNNNNNNNN.png in "
                f"{places}. Unpack KITTI's data_depth_annotated there, or take "
                "ground_truth='velodyne'."
            )
            no_depth = [self._depth_path(row) is None for row in rows]
            lost = [row.depth for row, no in zip(rows, no_depth, strict=True) if no and row.depth]
            if lost:
                raise FileNotFoundError(
                    f"{len(lost)} of {len(rows)} frames lack the improved ground truth that "
                    f"{self.split_file} names for them, first {lost[0]}. {where}"
                )
            what = "improved ground truth"
            lacks = [what if no else lack for no, lack in zip(no_depth, lacks, strict=True)]
        self.without = dict(Counter(filter(None, lacks)))
        kept = [row for row, lack in zip(rows, lacks, strict=True) if lack is None]
        if not kept:
            without = ", ".join(f"{n} lack {what}" for what, n in self.without.items())
            raise FileNotFoundError(
                f"No frame of {self.split_file} is left: of {len(rows)}, {without}. {where}"
            )
        return kept

    def _depth_path(self, frame: Frame) -> Path | None:
        if frame.depth == "":
            return None
        parts = Path(frame.depth or f"{frame.drive}/proj_depth/groundtruth/image_0{frame.camera}/x")
        name = parts.name if frame.depth else f"{frame.number:010d}.png"
        for folder in DEPTH_FOLDERS:
            root = self.root / folder
            if name in self._names[root / parts.parent]:
                return root / parts.parent / name
        return None

    def _velodyne_path(self, frame: Frame) -> Path | None:
        folder = self.root / frame.date / frame.drive / "velodyne_points" / "data"
        name = f"{frame.number:010d}.bin"
        return folder / name if name in self._names[folder] else None

    def _image_path(self, frame: Frame, camera: int) -> Path:
        folder = self.root / frame.date / frame.drive / f"image_0{camera}" / "data"
        names = [f"{frame.number:010d}{ending}" for ending in (".png", ".jpg", ".jpeg")]
        return folder / next((n for n in names if n in self._names[folder]), names[0])

    def _check_calibration(self, frame: Frame) -> None:
        calibration = self._calibrations[frame.date]
        file = self.root / frame.date / "calib_cam_to_cam.txt"
        for camera in (2, 3):  # both: an item knows its baseline
            for key, known in (("P", calibration.projections), ("S", calibration.sizes)):
                if camera not in known:
                    raise ValueError(f"{file} lacks {key}_rect_0{camera}; fetch it again.")
        focal = calibration.intrinsics(frame.camera)[0, 0]
        if frame.focal is not None and abs(frame.focal - focal) > 0.5:
            raise ValueError(
                f"{self.split_file} says focal {frame.focal:g} for {frame.name}, {file} says "
                f"{focal:g}. Is it the calibration of another date?"
            )
        size = calibration.sizes[frame.camera]
        if self.crop == "benchmark" and (size[0] < BENCHMARK[0] or size[1] < BENCHMARK[1]):
            raise ValueError(
                f"{file}: frames of {size[0]}x{size[1]} are too small for the benchmark crop of "
                f"{BENCHMARK[0]}x{BENCHMARK[1]}; pass crop='none'."
            )

    def _locate(self, frame: Frame) -> dict[str, Path]:
        paths = {"image": self._image_path(frame, frame.camera)}
        if self.ground_truth == "improved":
            paths["depth"] = self._depth_path(frame)
        if self.ground_truth == "velodyne" or self._sparse:
            paths["velodyne"] = self._velodyne_path(frame)
        if self._right:
            paths["right"] = self._image_path(frame, 5 - frame.camera)
            if not paths["right"].is_file():
                raise FileNotFoundError(
                    f"{frame.name} has no image of the other camera, {paths['right']}. Add "
                    f"image_0{5 - frame.camera} of its drive, or pass right=False."
                )
        return paths


class _Names(dict):
    """Folder → names in it, listed once: it holds hundreds of the files that are asked for."""

    def __missing__(self, folder: Path) -> set[str]:
        try:
            self[folder] = set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            self[folder] = set()
        return self[folder]


def _same_size(given: tuple, wanted: tuple, path: Path, date: str) -> None:
    if tuple(given) != tuple(wanted):
        raise ValueError(
            f"{path} is {given[0]}x{given[1]}, the calibration of {date} is for frames of "
            f"{wanted[0]}x{wanted[1]} (H x W). Take the frames as KITTI has them; size=… resizes."
        )


# ---- finding ------------------------------------------------------------------------------


def find_kitti(root: str | Path | None = None) -> Path:
    """The folder that holds the dates: `root` or `$KITTI_ROOT`, or the nearest one below it.

    What was named is taken or is an error; else an attached Kaggle input is looked for.
    """

    def dates(folder: Path) -> bool:
        return any(re.fullmatch(r"\d{4}_\d\d_\d\d", Path(f).name) for f in folders(folder))

    tried = []
    for said, place in (("root", root), ("KITTI_ROOT", os.environ.get("KITTI_ROOT"))):
        if place:
            place = Path(place).expanduser()
            if found := search(place, dates):
                return found
            why = "holds no folder of a date" if place.exists() else "does not exist"
            raise FileNotFoundError(_no_kitti([f"{said}={place} ({why})"]))
        tried.append(f"{said} (not given)")
    if found := search(KAGGLE_INPUT, dates):
        return found
    raise FileNotFoundError(_no_kitti([*tried, f"{KAGGLE_INPUT} (no folder of a date)"]))


def _no_kitti(tried: list[str]) -> str:
    return (
        "KITTI was not found. Tried: " + "; ".join(tried) + ". Three ways to provide it: "
        "(1) on Kaggle, attach a data set with the raw drives (Add Input); (2) download them "
        "(KITTI's raw_data_downloader, after registering) and pass root=… or (3) set KITTI_ROOT to "
        "the folder that holds 2011_09_26 and the other dates. The data set 'streets' needs no "
        "data."
    )


def _split_rows(root: Path, split: str, named: str | Path | None) -> tuple[Path, list[Frame], str]:
    """The list, its frames that belong to the split, and in words what was left to "val"."""
    if named is not None:
        return Path(named), read_split(named), ""

    def find(kind: str, split: str) -> Path | None:
        places = (root / folder / kind.format(split) for folder in SPLIT_FOLDERS)
        return next((place for place in places if place.is_file()), None)

    if split == "test":
        found = next(filter(None, (find(kind, "test") for kind in SPLIT_FILES)), None)
        train = val = None
    else:
        # Both of one kind: the lists of different authors share frames.
        pairs = [(find(kind, "train"), find(kind, "val")) for kind in SPLIT_FILES]
        pairs.sort(key=lambda pair: pair[0] is None)  # stable
        train, val = next((pair for pair in pairs if any(pair)), (None, None))
        found = train if split == "train" else val
    if found and (split != "train" or val):
        return found, read_split(found), ""
    if not train:
        looked = ", ".join(kind.format(split) for kind in SPLIT_FILES)
        raise FileNotFoundError(
            f"No list of KITTI's {split} frames in {root}. Looked for {looked}, there and in "
            f"{' and '.join(f'{folder}/' for folder in SPLIT_FOLDERS[1:])}. Put the list of BTS or "
            "Monodepth2 there under its usual name, or pass split_file=…: a text file with lines "
            "such as '2011_09_26/2011_09_26_drive_0001_sync 5 l' (drive, frame, left or right "
            "camera) for the frames that you have."
        )
    rows = read_split(train)
    kept = hold_out(rows, split, lambda frame: frame.drive)
    if kept is None:
        raise ValueError(
            f"All {len(rows)} frames of {train} are of one drive, so none can be kept for 'val'. "
            "Pass split_file=… for it, with frames of another drive."
        )
    count = len({frame.drive for frame in kept})
    which = "held out" if split == "val" else "others held out for val"
    return train, kept, f" ({count} drives, {which})"
