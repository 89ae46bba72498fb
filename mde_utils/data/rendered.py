"""What all rendered data sets share: from scenes and cameras to pictures, and from there to items.

A `World` says how scenes are made and with which camera they are seen; `photograph` renders and
develops them, `RenderedDataset` stores what comes out.
"""

from __future__ import annotations

import functools
import itertools
import math
import multiprocessing
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from ..checks import unknown
from .cache import CachedDataset
from .furniture import Dice
from .render import Camera, render
from .transforms import OF_PAIRS


class World(NamedTuple):
    """One kind of scenes.

    make: (split, indices, device) → (scene, (position, rotation) of the camera) of every index,
        each a function of (split, index) alone.
    intrinsics: size (H, W) → fx, fy, cx, cy in pixels.
    measure: (item, view, split, index, sensor) → the item as its sensors measure it: what follows
        from the exact depth. `view`: all that the renderer gives of the left picture.
    lengths: number of images a split. There is no end of them: `limit` may ask for more.
    fields: what items may have, of `STORED`.
    far: metres, beyond anything in a scene and its lights.
    shadows: pixels along a shadow map, of the height of an image.
    """

    name: str
    version: int  # of the pictures: caches are keyed by it
    make: Callable
    intrinsics: Callable
    measure: Callable
    lengths: dict[str, int]
    fields: tuple[str, ...]
    sensors: tuple[str, ...] = ()
    far: float = 16.0
    shadows: Callable[[int], int] = lambda height: 256
    reach: float = 1.0  # of ambient occlusion, see `render`
    contrast: tuple[float, float] = (0.95, 1.25)  # of the camera's picture, from … to
    grey: tuple[float, float] = (0.3, 0.9)  # how far its white balance makes the mean grey

    def matrix(self, size) -> torch.Tensor:
        """`intrinsics` as a (3, 3) float32 matrix."""
        fx, fy, cx, cy = self.intrinsics(size)
        return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def pose(position, heading, pitch, roll):
    """A camera as held: heading in the horizontal plane, pitch up, roll clockwise; radians."""
    ca, sa, cp, sp = math.cos(heading), math.sin(heading), math.cos(pitch), math.sin(pitch)
    forward = (cp * ca, cp * sa, sp)
    right = (sa, -ca, 0.0)
    down = (ca * sp, sa * sp, -cp)
    c, s = math.cos(roll), math.sin(roll)
    right, down = (
        tuple(c * r + s * q for r, q in zip(right, down, strict=True)),
        tuple(c * q - s * r for r, q in zip(right, down, strict=True)),
    )
    return position, tuple(zip(right, down, forward, strict=True))


_NOISE = 1 << 20


@functools.lru_cache(maxsize=2)
def _noise_table(device):
    with torch.inference_mode(False):
        return torch.randn(_NOISE, generator=torch.Generator().manual_seed(7)).to(device)


def noise(dice, shape, device):
    """Standard normal noise, the same on every device."""
    n = math.prod(shape)
    table = _noise_table(str(device))
    at = dice.int(0, _NOISE - 1)
    while at + n > len(table):
        table = torch.cat([table, table.flip(0)])
    return table[at : at + n].reshape(shape)


def _develop(linear, dice, clean, contrast, grey):
    """Linear RGB (n, 3, H, W), the views of one scene → sRGB-like [0, 1] as a cheap camera gives:
    exposure and white balance (of the first view, for all), vignetting, softness, noise.
    `clean` leaves out the last three, which belong to the camera and not to the scene."""
    d = dice
    luma = linear[0].mean(0)
    # Exposed for the middle of the tones, in part (the camera's programme is not perfect).
    gain = 0.34 * 2 ** d(-0.6, 0.55) / luma.clamp(min=1e-3).log().mean().exp()
    warm, green = d(-0.09, 0.09), d(-0.03, 0.03)
    balance = torch.tensor([1 + warm, 1 + green, 1 - warm], device=linear.device)
    neutral = linear[0].mean((1, 2))
    auto = (neutral.mean() / neutral.clamp(min=1e-4)) ** d(*grey)
    contrast = d(*contrast)
    x = linear * (gain * balance * auto)[:, None, None]
    x = 1 - torch.exp(x.clamp_(min=0) * -1.15)
    x = x.clamp_(min=1e-5) ** (contrast / 2.2)
    if clean:
        return x
    soft, strength = d(0.05, 0.35), d(0.0, 0.12)
    sigma, chroma = d(0.003, 0.016), d(0.3, 0.8)
    h, w = x.shape[-2:]
    pad = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    row = pad[..., :, :-2] + pad[..., :, 2:] + 2 * pad[..., :, 1:-1]
    blur = (row[..., :-2, :] + row[..., 2:, :] + 2 * row[..., 1:-1, :]) / 16
    x = torch.lerp(x, blur, soft)
    u = torch.linspace(-1, 1, w, device=x.device)
    v = torch.linspace(-1, 1, h, device=x.device)
    x = x * (1 - strength * (u[None] ** 2 + v[:, None] ** 2))
    grain = noise(d, x.shape, x.device)
    dim = grain.mean(1, keepdim=True) * 1.7
    return (x + torch.lerp(dim, grain, chroma) * (sigma * (1.4 - 0.9 * x))).clamp_(0, 1)


@contextmanager
def _one_thread():
    """Operations here are short: sharing each among threads costs more than it saves, and on a
    busy machine twenty times as much."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def photograph(
    world, split, indices, size, baseline=None, sensor=None, device="cpu", clean=False
) -> list[dict]:
    """Items (fields alone) of `indices`; see `render_one` for the arguments."""
    made = world.make(split, indices, device)
    k = world.intrinsics(size)
    cameras = []
    for _, (position, rotation) in made:
        cameras.append([Camera(position, rotation, k)])
        if baseline is not None:
            # Along the camera's own x axis, the first column.
            right = tuple(p + baseline * r[0] for p, r in zip(position, rotation, strict=True))
            cameras[-1].append(Camera(right, rotation, k))
    out = render(
        [scene for scene, _ in made],
        cameras,
        size,
        device=device,
        far=world.far,
        shadow_size=world.shadows(size[0]),
        reach=world.reach,
    )
    items = []
    for i, index in enumerate(indices):
        dice = Dice("photograph", split, index)
        image = _develop(out["image"][i], dice, clean, world.contrast, world.grey)
        view = {name: values[i, 0] for name, values in out.items()}
        item = {
            "image": image[0],
            "depth": out["depth"][i, :1],
            "normal": view["normal"],
            "label": view["label"],
        }
        if baseline is not None:
            item["right"] = image[1]
        items.append(world.measure(item, view, split, index, sensor))
    return items


def render_one(world, split, index, *, size, baseline, sensor=None, device="cpu", clean=False):
    """Item `index` of a split with its `intrinsics`: the same scene and camera at every size, on
    every device. `clean` leaves out what a camera adds to the picture (vignetting, softness,
    noise), so that both views show the same colours.

    Raises ValueError for arguments out of range.
    """
    size, index = check(world, split, size, baseline, sensor), operator.index(index)
    with _one_thread():
        item = photograph(world, split, [index], size, baseline, sensor, device, clean)[0]
    return item | {"intrinsics": world.matrix(size).to(item["depth"].device)}


# --------------------------------------------------------------------------------------- data set


def check(world, split, size, baseline, sensor=None):
    """The size as two ints. Raises ValueError for what cannot be rendered."""
    if split not in world.lengths:
        raise ValueError(unknown("split", split, world.lengths))
    if sensor is not None and sensor not in world.sensors:
        raise ValueError(unknown("sensor", sensor, map(str, (*world.sensors, None))))
    try:
        height, width = (operator.index(n) for n in size)
    except (TypeError, ValueError):
        raise ValueError(f"size must be two whole numbers (H, W); got {size!r}.") from None
    if min(height, width) < 16:
        raise ValueError(f"size must be at least (16, 16); got {(height, width)}.")
    if baseline is not None and not (
        isinstance(baseline, (int, float)) and 0 < baseline < math.inf
    ):
        raise ValueError(f"baseline must be a positive number of metres or None; got {baseline!r}.")
    return height, width


# Name → type and channels (None: no such axis) of an array as stored.
STORED = {
    "image": ("u1", 3),
    "depth": ("f4", 1),
    "normal": ("i1", 3),
    "label": ("u1", None),
    "sparse_depth": ("u2", 1),
}
DEPTH_UNIT = 1 / 256  # metres per unit of a stored sparse depth, as in KITTI's files


class RenderedDataset(CachedDataset):
    """Rendered scenes: nothing to download, exact depth. A subclass sets `world`.

    Raises ValueError for arguments out of range.
    """

    world: World
    depth_unit = DEPTH_UNIT

    def __init__(
        self, split, *, root, size, limit, augment, cache, fields, baseline, sensor=None, key=()
    ):
        """key: what else the records depend on."""
        world = self.world
        if root is not None:
            raise ValueError(
                f"{world.name} are rendered, not read: root must be None, got {str(root)!r}. "
                'For data of your own use "nyu" or "kitti".'
            )
        self.split, self.size = split, check(world, split, size, baseline, sensor)
        self.baseline, self.sensor = baseline, sensor
        wanted = [fields] if isinstance(fields, str) else list(fields)
        for name in wanted:
            if name not in world.fields:
                raise ValueError(unknown("field", name, world.fields))
        if absent := {"image", "depth"} - {*wanted}:
            raise ValueError(f"fields must name image and depth; got no {', '.join(absent)}.")
        alone = isinstance(augment, str) and augment not in OF_PAIRS
        if baseline is not None and alone:
            raise ValueError(
                f"augment={augment!r} changes one view, and baseline={baseline} adds a second: "
                f"leave one of them out, take {' or '.join(OF_PAIRS)}, or pass a function of your "
                "own."
            )
        length = world.lengths[split]
        if limit is not None:
            if not isinstance(limit, int) or limit < 1:
                raise ValueError(f"limit must be a whole number from 1 on; got {limit!r}.")
            length = limit
        h, w = self.size
        shapes = {n: (kind, (c, h, w) if c else (h, w)) for n, (kind, c) in STORED.items()}
        stored = {name: shapes[name] for name in world.fields if name in wanted}
        if baseline is not None:
            stored["right"] = shapes["image"]
        self._stored_fields = tuple(stored)
        self._intrinsics = world.matrix(self.size)
        super().__init__(
            key={
                "dataset": world.name,
                "renderer": world.version,
                "split": split,
                "size": [h, w],
                "baseline": baseline,
                **dict(key),
            },
            fields=stored,
            length=length,
            cache=cache,
            augment=augment,
        )

    def extras(self, index: int) -> dict:
        item = {
            "intrinsics": self._intrinsics.clone(),
            "focal": float(self._intrinsics[0, 0]),
            "name": f"{self.world.name}/{self.split}/{index:06d}",
        }
        if self.baseline is not None:
            item["baseline"] = float(self.baseline)
        return item

    def produce(self, indices: list[int]) -> Iterator[dict[str, np.ndarray]]:
        """Records in order: in batches on a GPU, else one scene a thread."""
        arguments = (self.size, self.baseline, self.sensor)
        yield from produce(self.world, self.split, list(indices), *arguments, self._stored_fields)


@_one_thread()
def _records(world, split, indices, size, baseline, sensor, device, fields) -> list[dict]:
    """Scenes as stored: bytes for image and label, normals in 127ths."""
    out = []
    for item in photograph(world, split, indices, size, baseline, sensor, device):
        record = {}
        for name in fields:
            x = item[name]
            if name in ("image", "right"):
                x = (x * 255).round_().to(torch.uint8)
            elif name == "normal":
                x = (x * 127).round_().to(torch.int8)
            elif name == "label":
                x = x.to(torch.uint8)
            elif name == "sparse_depth":  # not every device knows uint16
                x = (x / DEPTH_UNIT).round_().to(torch.int32)
            record[name] = x
        out.append({name: x.cpu().numpy() for name, x in record.items()})
    return [
        {n: x.astype("u2") if n == "sparse_depth" else x for n, x in record.items()}
        for record in out
    ]


def _device():
    """A GPU where there is one, but not in worker processes: CUDA does not survive a fork, and
    the main process has it in use."""
    worker = torch.utils.data.get_worker_info() or multiprocessing.parent_process()
    return "cuda" if worker is None and torch.cuda.is_available() else "cpu"


def _cores():
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def produce(world, split, indices, size, baseline, sensor, fields, *, threads=None, device=None):
    """Yield the records of `indices` in order.

    On a CPU scenes are rendered one a thread: torch's operations leave Python's lock, and unlike
    worker processes threads start at once and need nothing of the caller (no main guard).
    """
    device = device or _device()
    if device != "cpu":
        for start in range(0, len(indices), 16):
            yield from _records(
                world, split, indices[start : start + 16], size, baseline, sensor, device, fields
            )
        return
    inside_worker = torch.utils.data.get_worker_info() is not None
    threads = threads or (1 if inside_worker else min(_cores(), 8))
    if threads == 1 or len(indices) < 2:
        for index in indices:
            yield from _records(world, split, [index], size, baseline, sensor, device, fields)
        return
    before = torch.get_num_threads()

    def submit(index):
        arguments = (world, split, [index], size, baseline, sensor, device, fields)
        return pool.submit(_records, *arguments)

    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque = deque()
        todo = iter(indices)
        for index in itertools.islice(todo, 2 * threads):
            waiting.append(submit(index))
        while waiting:
            done = waiting.popleft().result()
            for index in itertools.islice(todo, 1):
                waiting.append(submit(index))
            yield from done
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # the setting is shared with threads started later
