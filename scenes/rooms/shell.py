"""The shell of a room: walls with what hangs on them and stands before them, floor, ceiling."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..drawing import WOODS, Palette, dim, hsv, mix
from ..scene import Material, Scene
from .furniture import Indoors


class Room:
    """A rectangular room [0, w] × [0, d] × [0, h] and what stands in it."""

    def __init__(self, dice, kind, size):
        """`size`: smallest and largest width × depth."""
        self.dice, self.kind, self.scene = dice, kind, Scene()
        d = dice
        lo, hi = size
        self.w, self.d = d(lo[0], hi[0]), d(lo[1], hi[1])
        if kind not in ("corridor", "hall") and d.chance(0.5):
            self.w, self.d = self.d, self.w
        self.h = d(2.35, 2.8) if kind != "classroom" else d(2.7, 3.2)
        self.palette = Palette(d)
        self.thick = d(0.12, 0.28)
        self.taken = []  # floor: (x0, y0, x1, y1, height)
        self.walls = [[] for _ in range(4)]  # per wall: (s0, s1, z0, z1) of what hangs there
        self.openings = [[] for _ in range(4)]
        self.extend = [[] for _ in range(4)]  # per wall: (s0, s1) of a second space behind it
        self.second_wall = None  # the wall that it lies behind
        self.spaces = [((0.0, 0.0, 0.0), (self.w, self.d, self.h))]
        self.base = Indoors(self.scene, 0, 0)
        self.last = None  # (wall, s, width) of what was put against a wall last
        self.skirting = None
        self.day = d.chance(0.62)
        self.sun = self.day and d.chance(0.4)
        self.sunlit = False
        self.lights, self.extra_lights = [], []  # of windows and ceiling, of the second space
        self.surfaces = surfaces(d, kind)

    def put(self, make, frame, *arguments, **options):
        """A piece of furniture where the frame is, if there is one."""
        if frame is not None:
            with self.scene.thing(make.__name__.strip("_").replace("_", " ")):
                make(frame, self.palette, self.dice, *arguments, **options)

    # Walls, anticlockwise from y = 0; s runs along a wall, to the right when facing away from it.
    def length(self, i):
        return self.w if i % 2 == 0 else self.d

    def wall(self, i, s):
        x, y = ((s, 0), (self.w, s), (self.w - s, self.d), (0, self.d - s))[i]
        return Indoors(self.scene, x, y, 0, i * math.pi / 2)

    def free_wall(self, i, s0, s1, z0, z1, gap=0.03):
        return all(
            s1 + gap <= a or b + gap <= s0 or z1 <= c or e <= z0
            for a, b, c, e in self.walls[i] + self.openings[i]
        )

    def footprint(self, i, s0, s1, depth):
        (x0, y0, _), (x1, y1, _) = self.wall(i, s0).world(0, 0), self.wall(i, s1).world(0, depth)
        return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)

    def free_floor(self, box, gap=0.04):
        x0, y0, x1, y1 = box
        return (
            x0 > -0.01
            and y0 > -0.01
            and x1 < self.w + 0.01
            and y1 < self.d + 0.01
            and all(
                x1 + gap <= a or c + gap <= x0 or y1 + gap <= b or e + gap <= y0
                for a, b, c, e, _ in self.taken
            )
        )

    def against_wall(self, width, depth, height, *, walls=None, front=0.0, corner=0.3, tries=8):
        """A frame at a free stretch of wall, or None. `front`: free floor kept before it."""
        d = self.dice
        for _ in range(tries):
            i = d.pick(walls or range(4))
            room = self.length(i) - width
            if room < 0:
                continue
            x = d()
            s = 0.0 if x < corner / 2 else room if x < corner else d(0, room)
            if not self.free_wall(i, s, s + width, 0.02, height):
                continue
            box = self.footprint(i, s, s + width, depth + front)
            if not self.free_floor(box):
                continue
            self.taken.append((*self.footprint(i, s, s + width, depth), height))
            self.walls[i].append((s, s + width, 0.0, height))
            self.last = (i, s, width)
            return self.wall(i, s + width / 2).at(0, 0.012)
        return None

    def on_wall(self, width, z0, z1, *, walls=None, tries=6):
        d = self.dice
        for _ in range(tries):
            i = d.pick(walls or range(4))
            if self.length(i) < width + 0.2:
                continue
            s = d(0.1, self.length(i) - width - 0.1)
            if self.free_wall(i, s, s + width, z0, z1, 0.08):
                self.walls[i].append((s, s + width, z0, z1))
                return self.wall(i, s + width / 2)
        return None

    def on_floor(self, width, depth, height, *, margin=0.35, tries=8, centre=False):
        """A frame in the middle of a free rectangle away from the walls, or None."""
        d = self.dice
        for k in range(tries):
            if self.w < width + 2 * margin or self.d < depth + 2 * margin:
                return None
            x = d(margin + width / 2, self.w - margin - width / 2)
            y = d(margin + depth / 2, self.d - margin - depth / 2)
            if centre and k < 2:
                x, y = self.w / 2 + d(-0.3, 0.3), self.d / 2 + d(-0.3, 0.3)
            box = (x - width / 2, y - depth / 2, x + width / 2, y + depth / 2)
            if self.free_floor(box, 0.25):
                self.taken.append((*box, height))
                return Indoors(self.scene, x, y)
        return None

    def facing(self, i, s, distance, width, depth, height):
        """A frame before wall position s, at a distance, if the floor is free there."""
        f = self.wall(i, s).at(0, distance)
        (ax, ay, _), (bx, by, _) = f.world(-width / 2, -depth / 2), f.world(width / 2, depth / 2)
        box = (min(ax, bx), min(ay, by), max(ax, bx), max(ay, by))
        if not self.free_floor(box, 0.1):
            return None
        self.taken.append((*box, height))
        return f


class Surfaces(NamedTuple):
    """The materials of a room."""

    floor: Material
    walls: list  # of the four
    paint: Material  # of most of them
    ceiling: Material


def surfaces(d, kind) -> Surfaces:
    wet = kind in ("bathroom", "kitchen")
    floors = {
        "planks": 5,
        "parquet": 1.5,
        "tile": 1,
        "carpet": 2.5,
        "plain": 0.3,
        "marble": 0.3,
    }
    if wet:
        floors = {"tile": 5, "tile_check": 1.2, "mosaic": 0.8, "planks": 1.5, "marble": 0.6}
    if kind in ("classroom", "office", "corridor"):
        floors = {"speckle": 2, "carpet": 2, "planks": 2, "tile": 2, "plain": 1}
    t = d.weighted(floors)
    if t in ("planks", "parquet"):
        c = dim(d.pick(WOODS[:5] + WOODS[6:]), d(0.8, 1.3))
        floor = Material(
            t, c, dim(c, d(0.5, 0.75)), dim(c, 0.2), d(1.3, 2.0) if t == "planks" else d(0.9, 1.4),
            d(0.05, 0.45),
        )  # fmt: skip
    elif t == "carpet":
        c = hsv(d(), d(0.05, 0.4), d(0.12, 0.5))
        floor = Material(t, c, dim(c, 0.65), dim(c, 0.8), 0.7)
    else:
        c = hsv(d(0.05, 0.15), d(0, 0.3), d(0.25, 0.7))
        dark = hsv(d(), d(0, 0.4), d(0.04, 0.2)) if t == "tile_check" else dim(c, d(0.7, 0.85))
        period = {"tile": d(1.2, 2.2), "tile_check": d(1.0, 1.6), "mosaic": 0.8}.get(t, 0.9)
        floor = Material(t, c, dark, dim(c, d(0.35, 1.2)), period, d(0.1, 0.7))
    # Walls: mostly pale paint, one accent now and then.
    s = d.pick((d(0.0, 0.08), d(0.05, 0.25), d(0.05, 0.25), d(0.15, 0.45)))
    hue = d(0.06, 0.15) if s < 0.12 or d.chance(0.45) else d.pick((d(), d(0.5, 0.64), d(0.2, 0.4)))
    c = hsv(hue, s, d(0.5, 0.82))
    paint = Material("plaster", c, dim(c, 0.93), dim(c, 0.85), d(1.5, 3.0), 0.02)
    other = paint
    x = d()
    if x < 0.16 and not wet:
        k = d.pick(("stripes", "damask", "damask"))
        other = Material(
            k, c, mix(c, hsv(d(), d(0, 0.5), d(0.3, 0.8)), d(0.15, 0.5)), dim(c, 0.8), d(0.7, 1.6),
        )  # fmt: skip
    elif x < 0.22 and not wet:
        b = d.pick(((0.35, 0.12, 0.07), (0.5, 0.45, 0.4), (0.65, 0.63, 0.6)))
        other = Material("brick", b, dim(b, 0.6), (0.45, 0.43, 0.4), d(0.9, 1.1))
    elif x < 0.45:
        b = hsv(d(), d(0.15, 0.6), d(0.15, 0.6))
        other = Material("plaster", b, dim(b, 0.92), dim(b, 0.85), 2.0, 0.02)
    if kind == "bathroom" or (kind == "kitchen" and d.chance(0.2)):
        t = d.pick(("tile", "subway", "tile", "mosaic"))
        c2 = hsv(d(), d(0, 0.3), d(0.5, 0.8))
        paint = Material(t, c2, dim(c2, 0.9), dim(c2, d(0.5, 0.8)), d(0.7, 1.2), 0.35)
        other = paint if d.chance(0.7) else other
    accent = d.int(0, 3)
    everywhere = d.chance(0.45)
    walls = [other if everywhere or i == accent else paint for i in range(4)]
    white = (d(0.72, 0.84),) * 3
    ceiling = Material("plaster", white, dim(white, 0.95), dim(white, 0.9), 3.0)
    if kind in ("classroom", "office", "corridor") and d.chance(0.6):
        ceiling = Material("panels", white, dim(white, 0.9), dim(white, 0.6), 1.2)
    return Surfaces(floor, walls, paint, ceiling)
