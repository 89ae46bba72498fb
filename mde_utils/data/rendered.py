"""`rooms` and `streets` as data sets: what the package `scenes` renders, stored and as items."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import operator
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from scenes.rooms import KINECT, ROOMS
from scenes.streets import DEPTH_STEP, STREETS
from scenes.world import World, one_thread, photograph

from ..checks import unknown
from .cache import CachedDataset
from .transforms import OF_PAIRS

NYU_CAMERA = KINECT  # rooms are seen by NYU's camera


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


class RenderedDataset(CachedDataset):
    """Rendered scenes: nothing to download, exact depth. A subclass sets `world`."""

    world: World
    depth_unit = DEPTH_STEP

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
        self._intrinsics = world.lens.matrix(self.size)
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


@one_thread()
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
                x = (x / DEPTH_STEP).round_().to(torch.int32)
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


class Rooms(RenderedDataset):
    """Rendered rooms: nothing to download, exact depth.

    Args:
        split: "train", "val" or "test" (4000, 400 and 654 rooms; `limit` may ask for more: there is
            no end of them). No room belongs to two splits.
        size: (H, W); the cameras are NYU's Kinect resized to it.
        fields: what to store and return, of "image", "depth", "normal", "label".
        baseline: metres; adds `right`, the view of a second camera so far to the right, and
            `baseline`.
        sensor: None for exact depth, "kinect" for that of a depth camera.

    Items also have `intrinsics` (3, 3), `focal` in pixels (float) and `name`.
    """

    world = ROOMS

    def __init__(
        self,
        split: str,
        *,
        root=None,
        size: tuple[int, int] = (192, 256),
        limit: int | None = None,
        augment: str | Callable[[dict], dict] | None = None,
        cache: bool = True,
        fields: Iterable[str] = ROOMS.fields,
        baseline: float | None = None,
        sensor: str | None = None,
    ):
        super().__init__(
            split,
            root=root,
            size=size,
            limit=limit,
            augment=augment,
            cache=cache,
            fields=fields,
            baseline=baseline,
            sensor=sensor,
            key={"sensor": sensor},
        )


class Streets(RenderedDataset):
    """Rendered drives: nothing to download, exact depth up to 80 m.

    Args:
        split: "train", "val" or "test" (4000, 400 and 652 streets; `limit` may ask for more:
            there is no end of them). No street belongs to two splits.
        size: (H, W); the camera is KITTI's resized to it. The default is a third of KITTI's frame.
        fields: what to store and return, of "image", "depth", "normal", "label", "sparse_depth".
        baseline: metres (KITTI's is 0.54); adds `right`, the view of a second camera so far to the
            right, and `baseline`.

    Items also have `intrinsics` (3, 3), `focal` in pixels (float) and `name`.
    """

    world = STREETS

    def __init__(
        self,
        split: str,
        *,
        root=None,
        size: tuple[int, int] = (128, 416),
        limit: int | None = None,
        augment: str | Callable[[dict], dict] | None = None,
        cache: bool = True,
        fields: Iterable[str] = STREETS.fields,
        baseline: float | None = None,
    ):
        super().__init__(
            split,
            root=root,
            size=size,
            limit=limit,
            augment=augment,
            cache=cache,
            fields=fields,
            baseline=baseline,
        )
