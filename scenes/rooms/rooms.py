"""`rooms`: indoor scenes made up by rolling dice, and a camera in each that sees enough of it.

Each is a function of (split, index) alone. Nothing is read from disk.
"""

from __future__ import annotations

import itertools
import math

import torch

from ..cast import cast, stack_solids, stack_views
from ..drawing import Dice
from ..scene import ROUND, Camera, pose
from ..world import World
from .furniture import LABELS
from .kinds import build
from .sensor import KINECT, kinect
from .shell import Room

RENDERER_VERSION = 4  # raise it when pictures change: caches are keyed by it

MAX_DEPTH = 9.98

SIZES = {  # smallest and largest width × depth
    "bedroom": ((2.6, 3.1), (4.2, 4.8)),
    "living": ((3.2, 3.8), (5.2, 6.2)),
    "kitchen": ((2.2, 2.8), (3.8, 4.8)),
    "office": ((2.6, 3.0), (4.4, 5.5)),
    "bathroom": ((1.9, 2.3), (3.0, 3.6)),
    "classroom": ((5.0, 6.0), (6.5, 8.2)),
    "corridor": ((1.3, 5.5), (2.2, 12.5)),
    "hall": ((3.5, 6.0), (6.0, 12.0)),
}
_OFTEN = {
    "bedroom": 26, "living": 24, "kitchen": 15, "office": 14, "bathroom": 9, "classroom": 6,
    "corridor": 6, "hall": 5,
}  # fmt: skip


# ----------------------------------------------------------------------------------------- camera


_PREVIEW = (24, 32)


def furnished(dice) -> Room:
    kind = dice.weighted(_OFTEN)
    return build(Room(dice, kind, SIZES[kind]))


def _candidate(room, d):
    w, dd = room.w, room.d
    m = 0.35
    # People stand near walls and corners, and look into the room.
    x, y = d(m, w - m), d(m, dd - m)
    if d.chance(0.7):
        side = d.int(0, 3)
        near = d(m, 0.9)
        if side == 0:
            y = near
        elif side == 1:
            x = w - near
        elif side == 2:
            y = dd - near
        else:
            x = near
    z = min(d.pick((d(0.6, 1.8), d(1.2, 1.7))), room.h - 0.3)
    tx, ty = d(0.15, 0.85) * w, d(0.15, 0.85) * dd
    long = dd > 8 and d.chance(0.8)
    if long:  # along it
        y, ty = d.pick(((d(m, 1.2), d(0.9, 1.0) * dd), (dd - d(m, 1.2), d(0.0, 0.1) * dd)))
    heading = math.atan2(ty - y, tx - x) + d(-0.2, 0.2) * (0.4 if long else 1)
    reach = math.hypot(tx - x, ty - y)
    pitch = math.atan2(d(0.3, 1.2) - z, max(reach, 1.2)) * d(0.4, 1.0) + d(-0.06, 0.06)
    roll, slack = d(-0.07, 0.07), d(0.02, 0.15)
    found = pose((x, y, z), heading, pitch, roll)
    if long:  # as far back as the largest depth allows
        step = (_farthest(room, *found) - MAX_DEPTH + slack) / math.cos(pitch)
        x, y = x + step * math.cos(heading), y + step * math.sin(heading)
        found = pose((min(max(x, m), w - m), min(max(y, m), dd - m), z), heading, pitch, roll)
    return found


def _farthest(room, position, rotation):
    """No point that can be seen has a larger z-depth than this."""
    return max(
        sum((c - p) * r[2] for c, p, r in zip((x, y, z), position, rotation, strict=True))
        for lo, hi in room.spaces
        for x in (lo[0], hi[0])
        for y in (lo[1], hi[1])
        for z in (lo[2], hi[2])
    )


_BARE = [LABELS.index(name) for name in ("wall", "ceiling", "door")]


def _score(solids, hits):
    """How bad each of the views is, 0 for good ones; and how much there is in it. Two lists."""
    depth = hits.depth.flatten(1)
    n = depth.shape[1]
    low, mid = depth.kthvalue(n // 20, 1)[0], depth.median(1)[0]
    label = solids.label[hits.solid.clamp(min=0)].flatten(1)
    bare = torch.isin(label, label.new_tensor(_BARE)).float().mean(1)
    share = torch.zeros(len(depth), len(LABELS), device=depth.device)
    share.scatter_add_(1, label, torch.ones_like(depth) / n)
    kinds = (share > 0.004).sum(1)
    blank = hits.solid.flatten(1)
    same = (blank == blank.mode(1)[0][:, None]).float().mean(1)
    lost = (hits.solid < 0).flatten(1).any(1)
    bad = (
        10 * lost
        + (0.5 - low).clamp(min=0) * 8
        + (1.25 - mid).clamp(min=0) * 4
        + (bare - 0.62).clamp(min=0) * 6
        + (same - 0.42).clamp(min=0) * 5
        + (6 - kinds).clamp(min=0) * 0.4
    )
    far = depth.amax(1, keepdim=True) > depth.new_tensor([9.3, 9.65])  # rare, and wanted
    return bad.tolist(), (kinds.clamp(max=7) + 2 * far.sum(1)).tolist()


def _blocked(room, position):
    """Is there a solid within 12 cm of the camera?"""
    for solid in room.scene.solids:
        unit, kind = solid.unit, solid.kind
        x, y, z = (p - c for p, c in zip(position, solid.centre, strict=True))
        for i, half in enumerate(solid.half):
            u = abs(unit[3 * i] * x + unit[3 * i + 1] * y + unit[3 * i + 2] * z)
            if (u if kind == ROUND else u * half) > half + 0.12:
                break
        else:
            return True
    return False


_CANDIDATES = 5
_ATTEMPTS = 6


def make_rooms(split, indices, device="cpu") -> list[tuple[Room, tuple]]:
    """(Room, camera pose (position, rotation)) of every index.

    What comes out depends on (split, index) alone. Of each room five views are tried in small;
    where none is good another room is made.
    """
    best = [None] * len(indices)
    todo = list(range(len(indices)))
    k = KINECT.intrinsics(_PREVIEW)
    for attempt in itertools.count():
        rooms, poses = [], []
        for i in todo:
            d = Dice("rooms", split, indices[i], attempt)
            room = furnished(d)
            tries = []
            for _ in range(60):
                pose_ = _candidate(room, d)
                if _farthest(room, *pose_) < MAX_DEPTH and not _blocked(room, pose_[0]):
                    tries.append(pose_)
                if len(tries) == _CANDIDATES:
                    break
            rooms.append(room)
            poses.append(tries)
        flat = [q for tries in poses for q in tries]
        if not flat:  # no place for a camera in any of them
            continue
        owner = [j for j, tries in enumerate(poses) for _ in tries]
        solids = stack_solids([r.scene for r in rooms], device)
        views = stack_views([Camera(*q, k) for q in flat], owner, device)
        hits = cast(solids, views, _PREVIEW)
        bad, variety = _score(solids, hits)
        for j, b, n, q in zip(owner, bad, variety, flat, strict=True):
            i = todo[j]
            # Good ones differ in how much they show.
            rank = (attempt if b <= 0 else _ATTEMPTS + b, -n)
            if best[i] is None or rank < best[i][0]:
                best[i] = (rank, rooms[j], q)
        todo = [i for i in todo if best[i] is None or best[i][0][0] >= _ATTEMPTS]
        if not todo or (attempt + 1 >= _ATTEMPTS and None not in best):
            break
    return [b[1:] for b in best]


# --------------------------------------------------------------------------------------- data set

FIELDS = ("image", "depth", "normal", "label")


def _make(split, indices, device):
    return [(room.scene, camera) for room, camera in make_rooms(split, indices, device)]


def _measure(item, view, split, index, sensor):
    if sensor == "kinect":
        item["depth"] = kinect(
            item["depth"], Dice("kinect", split, index), image=item["image"], normal=item["normal"],
            gloss=view["gloss"], focal=KINECT.intrinsics(item["label"].shape)[0],
        )  # fmt: skip
    return item


ROOMS = World(
    "rooms", RENDERER_VERSION, _make, KINECT, _measure,
    lengths={"train": 4000, "val": 400, "test": 654}, fields=FIELDS, sensors=("kinect",),
)  # fmt: skip
