"""`rooms`: indoor scenes made up and rendered by the suite itself.

Three steps, each a function of (split, index) alone: a `Room` is furnished by rolling dice, a
camera is found that sees enough of it, and `render` takes the picture. Nothing is read from disk.
"""

from __future__ import annotations

import itertools
import math

import torch

from ..drawing import WOODS, Dice, Palette, dim, hsv, mix
from ..render import ROUND, Camera, Light, Material, Scene, cast, stack_solids, stack_views
from ..world import World, pose
from .furniture import (
    LABELS,
    Indoors,
    bathtub,
    bed,
    bin_,
    blackboard,
    bookshelf,
    boxes,
    cabinet,
    chair,
    clutter,
    coats,
    coffee_table,
    desk,
    dining,
    drape,
    dresser,
    fill_shelf,
    floor_lamp,
    framed,
    fridge,
    kitchen_run,
    nightstand,
    office_chair,
    oven_tower,
    plant,
    radiator,
    round_table,
    sofa,
    stool,
    student_desk,
    table,
    television,
    toilet,
    towel,
    toys,
    tv_stand,
    wall_cabinets,
    wardrobe,
    washstand,
)
from .sensor import KINECT, kinect

RENDERER_VERSION = 4  # raise it when pictures change: caches are keyed by it

MAX_DEPTH = 9.98


# ------------------------------------------------------------------------------------------ rooms


class Room:
    """A rectangular room [0, w] × [0, d] × [0, h] and what stands in it."""

    def __init__(self, dice, kind):
        self.dice, self.kind, self.scene = dice, kind, Scene()
        d = dice
        lo, hi = SIZES[kind]
        self.w, self.d = d(lo[0], hi[0]), d(lo[1], hi[1])
        if kind not in ("corridor", "hall") and d.chance(0.5):
            self.w, self.d = self.d, self.w
        self.h = d(2.35, 2.8) if kind != "classroom" else d(2.7, 3.2)
        self.palette = Palette(d)
        self.thick = d(0.12, 0.28)
        self.taken = []  # floor: (x0, y0, x1, y1, height)
        self.walls = [[] for _ in range(4)]  # per wall: (s0, s1, z0, z1) of what hangs there
        self.openings = [[] for _ in range(4)]
        self.spaces = [((0.0, 0.0, 0.0), (self.w, self.d, self.h))]
        self.base = Indoors(self.scene, 0, 0)

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

    # ------------------------------------------------------------------ shell

    def surfaces(self):
        d = self.dice
        kind = self.kind
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
            self.floor = Material(
                t,
                c,
                dim(c, d(0.5, 0.75)),
                dim(c, 0.2),
                d(1.3, 2.0) if t == "planks" else d(0.9, 1.4),
                d(0.05, 0.45),
            )
        elif t == "carpet":
            c = hsv(d(), d(0.05, 0.4), d(0.12, 0.5))
            self.floor = Material(t, c, dim(c, 0.65), dim(c, 0.8), 0.7)
        else:
            c = hsv(d(0.05, 0.15), d(0, 0.3), d(0.25, 0.7))
            dark = hsv(d(), d(0, 0.4), d(0.04, 0.2)) if t == "tile_check" else dim(c, d(0.7, 0.85))
            period = {"tile": d(1.2, 2.2), "tile_check": d(1.0, 1.6), "mosaic": 0.8}.get(t, 0.9)
            self.floor = Material(t, c, dark, dim(c, d(0.35, 1.2)), period, d(0.1, 0.7))
        # Walls: mostly pale paint, one accent now and then.
        s = d.pick((d(0.0, 0.08), d(0.05, 0.25), d(0.05, 0.25), d(0.15, 0.45)))
        hue = (
            d(0.06, 0.15)
            if s < 0.12 or d.chance(0.45)
            else d.pick((d(), d(0.5, 0.64), d(0.2, 0.4)))
        )
        c = hsv(hue, s, d(0.5, 0.82))
        self.paint = Material("plaster", c, dim(c, 0.93), dim(c, 0.85), d(1.5, 3.0), 0.02)
        other = self.paint
        x = d()
        if x < 0.16 and not wet:
            k = d.pick(("stripes", "damask", "damask"))
            other = Material(
                k,
                c,
                mix(c, hsv(d(), d(0, 0.5), d(0.3, 0.8)), d(0.15, 0.5)),
                dim(c, 0.8),
                d(0.7, 1.6),
            )
        elif x < 0.22 and not wet:
            b = d.pick(((0.35, 0.12, 0.07), (0.5, 0.45, 0.4), (0.65, 0.63, 0.6)))
            other = Material("brick", b, dim(b, 0.6), (0.45, 0.43, 0.4), d(0.9, 1.1))
        elif x < 0.45:
            b = hsv(d(), d(0.15, 0.6), d(0.15, 0.6))
            other = Material("plaster", b, dim(b, 0.92), dim(b, 0.85), 2.0, 0.02)
        if kind == "bathroom" or (kind == "kitchen" and d.chance(0.2)):
            t = d.pick(("tile", "subway", "tile", "mosaic"))
            c2 = hsv(d(), d(0, 0.3), d(0.5, 0.8))
            self.paint = Material(t, c2, dim(c2, 0.9), dim(c2, d(0.5, 0.8)), d(0.7, 1.2), 0.35)
            other = self.paint if d.chance(0.7) else other
        accent = d.int(0, 3)
        everywhere = d.chance(0.45)
        self.wall_materials = [other if everywhere or i == accent else self.paint for i in range(4)]
        white = (d(0.72, 0.84),) * 3
        self.ceiling = Material("plaster", white, dim(white, 0.95), dim(white, 0.9), 3.0)
        if kind in ("classroom", "office", "corridor") and d.chance(0.6):
            self.ceiling = Material("panels", white, dim(white, 0.9), dim(white, 0.6), 1.2)

    def add_wall(self, i):
        """Wall i in pieces around its openings."""
        f, n, t, h = self.wall(i, 0), self.length(i), self.thick, self.h
        m = self.wall_materials[i]
        lo, hi = -t, n + t
        for a, b in self.extend[i]:
            lo, hi = min(lo, a), max(hi, b)
        s = lo

        def piece(a, b, z0, z1):
            if b - a > 1e-4 and z1 - z0 > 1e-4:
                f.box((a + b) / 2, -t / 2, z0, b - a, t, z1 - z0, m, "wall", world_uv=True)

        for a, b, z0, z1 in sorted(self.openings[i]):
            piece(s, a, -0.05, h + 0.05)
            piece(a, b, -0.05, z0)
            piece(a, b, z1, h + 0.05)
            s = b
        piece(s, hi, -0.05, h + 0.05)
        # Skirting boards.
        if self.skirting is not None:
            s = 0.0
            gaps = sorted(o for o in self.openings[i] if o[2] < 0.05)
            for a, b, *_ in [*gaps, (n, n)]:
                if a - s > 0.02:
                    f.box(
                        (s + a) / 2,
                        0.006,
                        0,
                        a - s,
                        0.012,
                        0.075,
                        self.skirting,
                        "wall",
                        casts=False,
                    )
                s = b

    def shell(self):
        d = self.dice
        self.extend = [[] for _ in range(4)]
        self.skirting = None
        if self.kind != "bathroom" and d.chance(0.8):
            self.skirting = self.palette.white if d.chance(0.7) else self.palette.wood()
        door_wall = d.int(0, 3)
        if self.kind in ("corridor", "hall"):
            for i in (1, 3, *((0, 2) if d.chance(0.5) else ())):
                for _ in range(d.int(1, 3) if i % 2 else 1):
                    self.door(i, d.chance(0.25) and not self.second)
        else:
            self.door(door_wall, d.chance(0.4))
            if d.chance(0.15):
                self.door((door_wall + d.int(1, 3)) % 4, False)
        n = 0
        want = {"corridor": 0.2, "bathroom": 0.5, "hall": 0.4}.get(self.kind, 0.93)
        if d.chance(want):
            for i in d.shuffled(i for i in range(4) if i != self.second_wall):
                if n < 2 and (n == 0 or d.chance(0.3)):
                    n += self.window(i)
        if self.kind not in ("corridor", "bathroom") and d.chance(0.3):
            self.block()
        for i in range(4):
            self.add_wall(i)
        b = self.base
        t = self.thick
        # The floor reaches as far as the second space begins, the ceiling over the walls.
        b.box(
            self.w / 2,
            self.d / 2,
            -0.1,
            self.w + 2 * t,
            self.d + 2 * t,
            0.1,
            self.floor,
            "floor",
            world_uv=True,
        )
        b.box(
            self.w / 2,
            self.d / 2,
            self.h,
            self.w + 2 * t,
            self.d + 2 * t,
            0.1,
            self.ceiling,
            "ceiling",
            world_uv=True,
        )

    second = False
    second_wall = None

    def reveal(self, i, s0, s1, high):
        """The hole of an opening is part of what can be seen."""
        f = self.wall(i, 0)
        a, b = f.world(s0, 0), f.world(s1, -self.thick - 0.05)
        lo = (min(a[0], b[0]), min(a[1], b[1]), 0.0)
        self.spaces.append((lo, (max(a[0], b[0]), max(a[1], b[1]), high)))

    def back(self, f, w, low, high, label):
        """A plate behind a closed opening, so that no gap ever looks out of the scene."""
        y, h = -self.thick - 0.02, high - low
        f.box(0, y, low - 0.1, w + 0.2, 0.02, h + 0.2, self.palette.dark, label, casts=False)

    def block(self):
        """A corner of the room taken by another one: an L-shaped room."""
        d = self.dice
        a, b = d(0.25, 0.45) * self.w, d(0.2, 0.42) * self.d
        if min(self.w - a, self.d - b) < 1.9:
            return
        left, low = d.chance(0.5), d.chance(0.5)
        x0, y0 = (0 if left else self.w - a), (0 if low else self.d - b)
        sides = []
        for i, hit in ((0, low), (1, not left), (2, not low), (3, left)):
            if hit:
                n = self.length(i)
                size = a if i % 2 == 0 else b
                at_start = {0: left, 1: low, 2: not left, 3: not low}[i]
                s = (0, size) if at_start else (n - size, n)
                if not self.free_wall(i, s[0], s[1], 0, self.h, 0.12):
                    return
                sides.append((i, s))
        for i, s in sides:
            self.walls[i].append((*s, 0.0, self.h))
        self.taken.append((x0, y0, x0 + a, y0 + b, self.h))
        self.base.box(
            x0 + a / 2, y0 + b / 2, 0, a, b, self.h + 0.02, self.paint, "wall", world_uv=True
        )

    def door(self, i, opened):
        d, p, t = self.dice, self.palette, self.thick
        w, h = d(0.78, 0.95), d(1.98, 2.1)
        n = self.length(i)
        if n < w + 0.4:
            return
        s = None
        for _ in range(6):
            x = d(0.15, n - w - 0.15)
            if self.free_wall(i, x, x + w, 0, h, 0.15):
                s = x
                break
        if s is None:
            return
        self.openings[i].append((s, s + w, -0.05, h))
        self.reveal(i, s, s + w, h)
        self.taken.append((*self.footprint(i, s, s + w, 0.85), 0.0))
        f = self.wall(i, s + w / 2)
        m = p.white if d.chance(0.55) else p.wood()
        frame = m if d.chance(0.6) else p.white
        for x in (-1, 1):
            f.box(
                x * (w / 2 + 0.02), -t / 2, 0, 0.07, t + 0.03, h + 0.03, frame, "door", casts=False
            )
        f.box(0, -t / 2, h - 0.012, w + 0.11, t + 0.03, 0.06, frame, "door", casts=False)
        leaf_w = w - 0.03
        if opened and not self.second and self.beyond(i, s, w):
            side = d.pick((-1, 1))
            angle = d(1.2, 1.9)
            # Hinged at the far edge of the opening, swung into the space behind.
            g = f.at(side * leaf_w / 2, -t, 0, side * angle)
            self.leaf(g.at(-side * leaf_w / 2, 0), leaf_w, h, m, side)
        else:
            self.back(f, w, 0.0, h, "door")
            self.leaf(f.at(0, -t * d(0.2, 0.7)), leaf_w, h, m, d.pick((-1, 1)))

    def leaf(self, f, w, h, m, side):
        d, p = self.dice, self.palette
        # Tight in its frame: nothing may be seen through the gaps.
        f.box(0, 0, -0.02, w + 0.03, 0.04, h + 0.025, m, "door")
        style = d.int(0, 2)
        if style:
            rows = ((0.12, 0.75), (1.0, h - 1.14)) if style == 1 else ((0.12, h - 0.28),)
            for z, hh in rows:
                for y in (-0.022, 0.022):
                    f.box(
                        0,
                        y,
                        z,
                        w - 0.26,
                        0.008,
                        hh,
                        m._replace(c0=dim(m.c0, 0.93), c1=dim(m.c1, 0.9)),
                        "door",
                    )
        x = -side * (w / 2 - 0.07)
        for y in (-0.05, 0.05):
            if d.chance(0.5):
                f.ball(x, y, 1.0, 0.055, 0.055, 0.055, p.metal, "door", casts=False)
            else:
                f.box(x + side * 0.04, y, 1.02, 0.13, 0.016, 0.02, p.metal, "door", casts=False)

    def beyond(self, i, s, w):
        """A second space behind the opening s … s + w of wall i. False where there is no room."""
        d, p, t = self.dice, self.palette, self.thick
        depth = d(1.3, 4.2)
        a = max(-t + 0.02, s - d(0.3, 2.0)) if d.chance(0.7) else s - d(0.3, 1.5)
        b = s + w + d(0.3, 2.0)
        self.second, self.second_wall = True, i
        self.extend[i].append((a - 0.2, b + 0.2))
        h = self.h
        f = self.wall(i, 0)
        c = hsv(d(0.05, 0.15), d(0, 0.3), d(0.4, 0.8))
        m = Material("plaster", c, dim(c, 0.92), dim(c, 0.85), 2.0)
        floor = (
            self.floor
            if d.chance(0.6)
            else p.wood()._replace(texture="planks", period=1.6, grain=False)
        )
        mid = (a + b) / 2
        u = 0.15
        f.box(mid, -t - depth - u / 2, -0.05, b - a + 2 * u, u, h + 0.1, m, "wall", world_uv=True)
        for x, sg in ((a, -1), (b, 1)):
            f.box(
                x + sg * u / 2,
                -t - depth / 2,
                -0.05,
                u,
                depth + 2 * u,
                h + 0.1,
                m,
                "wall",
                world_uv=True,
            )
        f.box(
            mid,
            -t - depth / 2 - u / 2,
            -0.1,
            b - a + 2 * u,
            depth + u,
            0.1,
            floor,
            "floor",
            world_uv=True,
        )
        f.box(
            mid,
            -t - depth / 2 - u / 2,
            h,
            b - a + 2 * u,
            depth + u,
            0.1,
            self.ceiling,
            "ceiling",
            world_uv=True,
        )
        g = f.at(mid, -t - depth, 0)
        x0, y0, z0 = f.world(a, -t - depth, -0.2)
        x1, y1, z1 = f.world(b, -t * 0.3, h + 0.2)
        lo, hi = (min(x0, x1), min(y0, y1), z0), (max(x0, x1), max(y0, y1), z1)
        self.spaces.append(((*lo[:2], 0.0), (*hi[:2], h)))
        zone = (tuple(x - 0.05 for x in lo), tuple(x + 0.05 for x in hi))
        warm = (1.0, d(0.8, 0.95), d(0.6, 0.9))
        self.extra_lights.append(
            Light(g.world(0, depth / 2, h - 0.25), dim(warm, d(0.3, 1.6)), radius=0.4, zone=zone)
        )
        across = f.at(s + w / 2, -t - depth)  # opposite to the opening
        x = d()
        if x < 0.3 and depth > 1.6:
            dresser(across, p, d, 0.8)
            framed(across, p, d, 0.5, 0.6, 1.35)
        elif x < 0.5:
            framed(across, p, d, d(0.4, 0.8), d(0.4, 0.7), 1.2)
        elif x < 0.65 and depth > 1.6:
            bookshelf(across, p, d)
        elif x < 0.8:
            self.leaf(across.at(0, 0.02), 0.8, 2.0, p.white, 1)
        if depth > 2 and d.chance(0.4):
            plant(across.at(0.6, 0.3), p, d, 1.0, 0.3)
        return True

    def window(self, i):
        """A window in wall i. Returns whether there was room."""
        d, p, t = self.dice, self.palette, self.thick
        n = self.length(i)
        w = min(d(0.9, 2.0), n - 0.6)
        if w < 0.5:
            return False
        low = 1.2 if self.kind == "bathroom" else d.pick((0.85, 0.95, 0.5))
        high = min(self.h - 0.2, d(2.0, 2.3))
        for _ in range(5):
            s = d(0.25, n - w - 0.25)
            if self.free_wall(i, s, s + w, 0.0, high, 0.25):
                break
        else:
            return False
        self.openings[i].append((s, s + w, low, high))
        self.reveal(i, s, s + w, high)
        f = self.wall(i, s + w / 2)
        h = high - low
        day = self.day
        kind = d.pick(("outside_trees", "outside_trees", "outside_houses"))
        sky = mix((0.75, 0.87, 1.0), (1.0, 0.95, 0.88), d())
        view = Material(
            kind,
            hsv(d(0.2, 0.4), 0.3, 0.12),
            sky,
            hsv(d(0.2, 0.32), d(0.4, 0.7), d(0.15, 0.4)),
            gloss=0.7,
            glow=d(1.0, 2.6),
        )
        if kind == "outside_houses":
            view = view._replace(
                c0=hsv(d(), d(0.1, 0.4), d(0.1, 0.4)), c2=hsv(d(), d(0, 0.4), d(0.1, 0.5))
            )
        if not day:
            view = view._replace(
                c0=(0.01,) * 3, c1=(0.02, 0.025, 0.05), c2=(0.06, 0.05, 0.03), glow=0.5, gloss=0.8
            )
        blind = d.chance(0.18)
        self.back(f, w, low, high, "window")
        f.box(
            0,
            -t * 0.8,
            low - 0.02,
            w + 0.04,
            0.02,
            h + 0.04,
            view,
            "window",
            casts=False,
            stretch=True,
        )
        if blind:
            c = (d(0.5, 0.8),) * 3
            glow = 0.9 if day else 0.0
            m = Material("slats", c, dim(c, 0.6), dim(c, 0.35), 0.8, 0, glow)
            cut = d(0.0, 0.6) * h
            f.box(0, -t * 0.35, low + cut, w - 0.01, 0.02, h - cut, m, "curtain", casts=False)
        m = p.white if d.chance(0.75) else p.wood()
        b, y = 0.06, -t * 0.72
        for x in (-1, 1):
            f.box(x * (w / 2 - b / 2), y, low, b, 0.06, h, m, "window")
        for z in (low, high - b):
            f.box(0, y, z, w, 0.06, b, m, "window")
        bars = 0 if w < 0.8 else d.int(1, 2)
        for k in range(bars):
            f.box(-w / 2 + (k + 1) * w / (bars + 1), y, low, b * 0.8, 0.05, h, m, "window")
        if d.chance(0.4):
            f.box(0, y, low + h * d.pick((0.5, 0.7)), w, 0.045, 0.05, m, "window")
        f.box(0, -t / 2 + 0.06, low - 0.025, w + 0.1, t + 0.14, 0.03, m, "window", casts=False)
        if low > 0.7 and d.chance(0.4) and t > 0.15:
            clutter(f.at(0, -t * 0.1, low + 0.006), p, d, w - 0.3, 0.05, d.int(1, 3), tall=0.4)
        if not blind and d.chance(0.6) and self.kind not in ("bathroom",):
            c = p.cloth()
            z0 = 0.03 if d.chance(0.6) else low - 0.15
            top = min(high + 0.15, self.h - 0.08)
            reach = d(0.25, 0.4) * w
            for x in (-1, 1):
                xx = x * (w / 2 + 0.12 - reach / 2 + 0.1)
                drape(f.at(xx, 0.11), p, d, c, reach, z0, top - z0)
            f.rod(0, 0.11, top - (w + 0.5) / 2, 0.03, w + 0.5, p.metal, "curtain", roll=math.pi / 2)
            self.walls[i].append((s - 0.3, s + w + 0.3, z0, top + 0.1))
            self.taken.append(
                (*self.footprint(i, max(0, s - 0.25), min(n, s + w + 0.25), 0.2), 0.0)
            )
        else:
            self.walls[i].append((s - 0.08, s + w + 0.08, low - 0.08, high))
            if low > 0.8 and self.kind != "bathroom" and d.chance(0.5):
                radiator(f, p, d, w * 0.8)
                self.walls[i].append((s, s + w, 0.0, low))
                self.taken.append((*self.footprint(i, s, s + w, 0.2), 0.8))
        if day:
            self.daylight(f, i, s, w, low, h, sky)
        return True

    def daylight(self, f, i, s, w, low, h, sky):
        d, t = self.dice, self.thick
        area = w * h
        centre = f.world(0, 0.05, low + h / 2)
        inward = (-f.sin, f.cos, -0.25)
        self.lights.append(
            Light(
                centre,
                dim(sky, 1.5 * area * d(0.7, 1.2)),
                inward,
                1.0,
                0.5,
                shadow=2.2,
                beyond=0.5,
                softness=2.0,
            )
        )
        if self.sun and not self.has_sun:
            self.has_sun = True
            a, e = d(-0.9, 0.9), d(0.45, 0.95)
            far = 7.0
            src = f.world(
                far * math.sin(a) * math.cos(e),
                -far * math.cos(a) * math.cos(e),
                low + h / 2 + far * math.sin(e),
            )
            axis = tuple(c - q for c, q in zip(f.world(0, -t, low + h / 2), src, strict=True))
            tan = 0.85 * math.hypot(w, h) / far
            self.lights.append(
                Light(
                    src,
                    dim((1.0, 0.9, 0.75), d(2.5, 5.0) * 500),
                    axis,
                    0.0,
                    math.sqrt(500 - far * far),
                    shadow=tan,
                    beyond=0.0,
                    softness=0.2,
                )
            )

    # ------------------------------------------------------------------ furnishing

    def ceiling_lamp(self, x, y, power):
        d, p, h = self.dice, self.palette, self.h
        f = self.base.at(x, y)
        warm = d()
        colour = mix((1.0, 0.78, 0.52), (0.95, 0.98, 1.0), warm if self.kind != "office" else 0.8)
        on = power > 0
        m = p.glowing(colour, 2.6) if on else p.paint((0.7,) * 3)
        kind = d.pick(("dome", "pendant", "bulb", "panel", "spots"))
        if self.kind in ("office", "classroom", "corridor"):
            kind = "panel"
        z = h - 0.12
        if kind == "dome":
            f.ball(0, 0, h - 0.1, 0.38, 0.38, 0.16, m, "lamp", casts=False)
            f.rod(0, 0, h - 0.03, 0.3, 0.03, p.metal, "lamp", casts=False)
        elif kind == "pendant":
            drop = d(0.45, 0.75)
            z = h - drop - 0.05
            f.rod(0, 0, h - drop, 0.012, drop, p.dark, "lamp", casts=False)
            f.rod(0, 0, h - drop, d(0.35, 0.5), 0.2, m, "lamp", top=d(0.3, 0.8), casts=False)
        elif kind == "bulb":
            drop = d(0.3, 0.6)
            z = h - drop
            f.rod(0, 0, h - drop, 0.012, drop, p.dark, "lamp", casts=False)
            r = d(0.16, 0.35)
            f.ball(0, 0, h - drop - r, r, r, r, m, "lamp", casts=False)
            z -= r
        elif kind == "panel":
            f.box(
                0,
                0,
                h - 0.06,
                *((1.2, 0.3) if d.chance(0.5) else (0.6, 0.6)),
                0.07,
                m,
                "lamp",
                casts=False,
            )
        else:
            f.box(0, 0, h - 0.05, 0.9, 0.06, 0.05, p.metal, "lamp", casts=False)
            for k in (-0.3, 0, 0.3):
                f.rod(k, 0, h - 0.17, 0.1, 0.1, m, "lamp", top=0.6, casts=False)
        if on:
            self.lights.append(
                Light(
                    (x, y, z),
                    dim(colour, power),
                    radius=0.5,
                    focus=0.25,
                    shadow=2.4,
                    beyond=1.0,
                    softness=1.0,
                )
            )

    def furnish(self):
        d, p = self.dice, self.palette
        getattr(self, "_" + self.kind)()
        self.fill(d(0.25, 0.5))
        # Pictures, shelves and switches on what is left of the walls.
        for _ in range(d.int(2, 7)):
            w, h = d(0.3, 1.0), d(0.3, 0.75)
            z = d(1.25, 1.5)
            if self.kind == "bathroom":
                break
            f = self.on_wall(w, z, z + h)
            if f:
                framed(f, p, d, w, h, z)
        if d.chance(0.3) and self.kind not in ("bathroom", "corridor"):
            f = self.on_wall(0.8, 1.3, 1.8)
            if f:
                m = p.lacquer()
                for z in (1.35, 1.7)[: d.int(1, 2)]:
                    f.box(0, 0.11, z, 0.8, 0.22, 0.025, m, "shelf")
                    fill_shelf(f.at(0, 0, z + 0.025), p, d, 0.76, 0.3, 0.22)
        for i in range(4):
            for _, b, z0, _ in self.openings[i]:
                if (
                    z0 < 0
                    and self.length(i) - b > 0.4
                    and self.free_wall(i, b + 0.12, b + 0.2, 1.05, 1.2)
                ):
                    self.wall(i, b + 0.17).box(
                        0, 0.006, 1.08, 0.08, 0.012, 0.08, p.white, "object", casts=False
                    )
        if d.chance(0.25):
            f = self.on_floor(0.5, 0.4, 0.4)
            if f:
                d.pick((boxes, toys, bin_, stool))(f, p, d)

    def fill(self, share):
        """More furniture along the walls until it covers a share of the floor."""
        d, p = self.dice, self.palette
        wet = self.kind in ("bathroom", "corridor")
        for _ in range(2 if wet else 12):
            covered = sum((c - a) * (e - b) for a, b, c, e, h in self.taken if h > 0)
            if covered > share * self.w * self.d or len(self.scene.kind) > 330:
                return
            name = d.pick(_EXTRAS_WET if wet else _EXTRAS)
            w, depth, h = {
                "bookshelf": (d(0.6, 1.1), 0.34, d.pick((0.8, 1.2, 1.9))),
                "dresser": (d(0.8, 1.2), 0.5, 1.0),
                "armchair": (1.1, 0.97, 0.8),
                "chair": (0.5, 0.5, 1.0),
                "wardrobe": (d(0.8, 1.2), 0.65, 2.15),
                "nightstand": (0.5, 0.45, 0.6),
                "stool": (0.55, 0.5, 0.45),
                "chest": (d(0.7, 1.1), 0.5, 0.5),
                "bench": (d(0.9, 1.3), 0.42, 0.45),
            }.get(name, (0.5, 0.45, 0.6))
            f = self.against_wall(w, depth, h, corner=0.5, tries=4)
            if not f:
                continue
            if name == "bookshelf":
                bookshelf(f, p, d, w, h)
                if h < 1.4:
                    clutter(f.at(0, 0.15, h), p, d, w - 0.15, 0.15, d.int(1, 3), tall=0.4)
            elif name in ("dresser", "wardrobe"):
                (dresser if name == "dresser" else wardrobe)(f, p, d, w)
            elif name == "armchair":
                sofa(f, p, d, 1)
            elif name == "chest":
                m = p.lacquer()
                f.box(0, 0.24, 0, w, 0.44, 0.4, m, "cabinet")
                f.box(0, 0.24, 0.4, w + 0.02, 0.46, 0.05, m, "cabinet")
                clutter(f.at(0, 0.24, 0.45), p, d, w - 0.2, 0.2, d.int(0, 2), tall=0.35)
            elif name == "bench":
                table(f.at(0, 0.21), p, d, w, 0.38, 0.45, "chair")
            elif name == "plant":
                plant(f.at(0, 0.24), p, d, d(0.7, 1.5), d(0.28, 0.4))
            elif name == "basket":
                c = (d(0.3, 0.5), d(0.2, 0.35), d(0.1, 0.2))
                m = Material("weave", c, dim(c, 0.5), dim(c, 0.6), 0.5)
                f.rod(0, 0.22, 0, 0.34, d(0.3, 0.55), m, "object", top=1.2)
                f.ball(0, 0.22, 0.3, 0.36, 0.36, 0.24, p.cloth(), "object")
            else:
                makers = {
                    "chair": chair,
                    "nightstand": nightstand,
                    "stool": stool,
                    "lamp": floor_lamp,
                }
                makers |= {"boxes": boxes, "toys": toys, "bin": bin_}
                makers[name](f, p, d)

    def rug(self, x, y, w, length, yaw=0.0):
        d, p = self.dice, self.palette
        kind = d.pick(("rug", "rug_bands", "carpet", "plaid", "rug"))
        m = Material(
            kind,
            p.colour((0.2, 0.8), (0.08, 0.5)),
            p.colour((0.1, 0.7), (0.2, 0.75)),
            p.colour((0.2, 0.8), (0.1, 0.6)),
            0.8,
        )
        f = self.base.at(x, y, 0, yaw)
        if kind != "rug":
            f.box(0, 0, 0, w, length, 0.012, m, "rug", casts=False)
        else:  # a texture that covers it once lies in the x–y plane here
            f.box(0, 0, 0, w, length, 0.012, m, "rug", casts=False, stretch="floor")

    def corner_things(self, n):
        d, p = self.dice, self.palette
        for _ in range(n):
            kind = d.pick(("plant", "lamp", "bin", "boxes", "plant", "stool"))
            f = self.against_wall(0.45, 0.45, 1.2, corner=0.8)
            if not f:
                continue
            if kind == "plant":
                plant(f.at(0, 0.24), p, d, d(0.7, 1.5), d(0.28, 0.4))
            elif kind == "lamp":
                floor_lamp(f, p, d)
            else:
                {"bin": bin_, "boxes": boxes, "stool": stool}[kind](f, p, d)

    def _bedroom(self):
        d, p = self.dice, self.palette
        w = d.pick((0.95, 1.4, 1.65, 1.8))
        side = 0.55
        f = self.against_wall(w + 2 * side, 2.15, 0.95, front=0.4, corner=0.1, tries=14)
        if f:
            bed(f, p, d, w)
            for s in (-1, 1):
                if d.chance(0.8):
                    nightstand(f.at(s * (w / 2 + 0.28), 0), p, d)
            if d.chance(0.5):
                x, y, _ = f.world(0, 1.7)
                self.rug(x, y, w + 1.2, 1.4, f.yaw)
            i, s, width = self.last
            if d.chance(0.6):
                h = d(0.4, 0.7)
                framed(self.wall(i, s + width / 2), p, d, d(0.6, 1.3), h, 1.35)
                self.walls[i].append((s + 0.2, s + width - 0.2, 1.3, 2.1))
        else:
            f = self.against_wall(1.0, 2.15, 0.95, tries=20)
            if f:
                bed(f, p, d, 0.95)
        ww = d(1.0, 2.0)
        f = self.against_wall(ww, 0.65, 2.15, front=0.4, tries=10)
        if f:
            wardrobe(f, p, d, ww)
        if d.chance(0.7):
            f = self.against_wall(1.0, 0.5, 0.95, front=0.4)
            if f:
                dresser(f, p, d)
                if d.chance(0.4):
                    television(f.at(0, 0.2, 0.97), p, d, 0.8)
        if d.chance(0.5):
            self.workplace()
        if d.chance(0.4):
            f = self.against_wall(0.9, 0.32, 1.9, front=0.3)
            if f:
                bookshelf(f, p, d)
        self.corner_things(d.int(0, 2))

    def workplace(self):
        d, p = self.dice, self.palette
        w = d(1.1, 1.5)
        f = self.against_wall(w, 0.7, 0.76, front=0.75)
        if f:
            desk(f, p, d, w)
            i, s, _ = self.last
            g = self.facing(i, s + w / 2, 0.95, 0.5, 0.5, 1.0)
            if g:
                maker = office_chair if d.chance(0.6) else chair
                maker(g.at(0, 0.28, 0, math.pi + d(-0.5, 0.5)), p, d)
        return f

    def _living(self):
        d, p = self.dice, self.palette
        seats = d.int(2, 3)
        w = seats * 0.7 + 0.42
        f = self.against_wall(w, 0.97, 0.85, front=1.2, corner=0.15, tries=14)
        if f:
            sofa(f, p, d, seats)
            i, s, _ = self.last
            g = self.facing(i, s + w / 2, 1.65, 1.2, 0.7, 0.45)
            if g:
                coffee_table(g, p, d)
            if d.chance(0.65):
                x, y, _ = f.world(0, 1.6)
                self.rug(x, y, d(1.8, 2.4), d(1.3, 1.7), f.yaw)
            opposite = (i + 2) % 4
            f2 = self.against_wall(1.4, 0.45, 0.6, walls=[opposite], front=0.5, corner=0.1)
            if f2:
                tv_stand(f2, p, d)
                j, s2, ww = self.last
                self.walls[j].append((s2, s2 + ww, 0.6, 1.5))
            for side in (-1, 1):
                if d.chance(0.5):
                    g = self.facing(i, s + w / 2 + side * (w / 2 + 0.25), 1.75, 1.05, 1.05, 0.85)
                    if g:
                        a = side * (math.pi / 2 + d(-0.2, 0.2))
                        sofa(g.at(0, 0, 0, a).at(0, -0.46), p, d, 1)
        for _ in range(d.int(1, 2)):
            w = d(0.7, 1.2)
            f = self.against_wall(w, 0.34, 2.0, front=0.3)
            if f:
                bookshelf(f, p, d, w, d(1.2, min(2.1, self.h - 0.2)))
        if d.chance(0.45):
            f = self.on_floor(2.3, 2.0, 0.75, margin=0.1)
            if f:
                dining(f, p, d)
        if d.chance(0.4):
            f = self.against_wall(1.1, 0.5, 1.0, front=0.3)
            if f:
                dresser(f, p, d, 1.1)
        self.corner_things(d.int(1, 3))

    def _kitchen(self):
        d, p = self.dice, self.palette
        i = d.pick([k for k in range(4) if self.length(k) > 2.2] or [0])
        for _ in range(5):
            w = min(d(1.8, 3.4), self.length(i) - 0.05)
            f = self.against_wall(w, 0.63, 0.95, walls=[i], front=0.6, corner=1.0, tries=3)
            if f:
                kitchen_run(f, p, d, w)
                j, s, _ = self.last
                if self.free_wall(j, s, s + w, 1.4, 2.2):
                    if d.chance(0.8):
                        part = w if d.chance(0.3) else w * d(0.3, 0.6)
                        wall_cabinets(self.wall(j, s + part / 2).at(0, 0.012), p, d, part)
                    self.walls[j].append((s, s + w, 1.0, 2.2))
                break
            i = (i + 1) % 4
        f = self.against_wall(0.7, 0.7, 1.95, front=0.5, corner=0.6, tries=12)
        if f:
            fridge(f, p, d)
        if d.chance(0.4):
            f = self.against_wall(0.62, 0.66, 2.05, front=0.5, corner=0.6)
            if f:
                oven_tower(f, p, d)
        if d.chance(0.75):
            f = self.on_floor(2.2, 1.9, 0.75, margin=0.1, tries=12)
            if f:
                dining(f, p, d)
            else:
                f = self.on_floor(1.0, 1.0, 0.75, margin=0.1, tries=12)
                if f:
                    round_table(f, p, d, 0.8)
                    clutter(f.at(0, 0, 0.74), p, d, 0.4, 0.3, 2)
        f = self.against_wall(1.0, 0.45, 0.95, front=0.3)
        if f and d.chance(0.6):
            dresser(f, p, d)
        self.corner_things(d.int(0, 2))

    def _office(self):
        d, p = self.dice, self.palette
        for _ in range(d.int(1, 3)):
            self.workplace()
        for _ in range(d.int(1, 3)):
            w = d(0.8, 1.0)
            h = d.pick((1.0, 1.9))
            f = self.against_wall(w, 0.36, h, front=0.4)
            if f:
                if d.chance(0.65):
                    bookshelf(f, p, d, w, h)
                else:
                    cabinet(f, p, d, w, 0.36, h, 4, 1)
        if d.chance(0.4):
            f = self.on_floor(2.0, 1.9, 0.75, margin=0.2)
            if f:
                dining(f, p, d)
        if d.chance(0.35):
            f = self.on_wall(1.6, 0.85, 2.1)
            if f:
                blackboard(f, p, d, 1.5)
        self.corner_things(d.int(1, 2))

    def _bathroom(self):
        d, p = self.dice, self.palette
        f = self.against_wall(1.7, 0.78, 0.6, corner=1.0, tries=16)
        if f:
            bathtub(f, p, d)
        f = self.against_wall(0.85, 0.5, 1.95, front=0.4, tries=16)
        if f:
            washstand(f, p, d)
        f = self.against_wall(0.55, 0.72, 0.8, front=0.3, tries=16)
        if f:
            toilet(f, p, d)
        f = self.on_wall(0.6, 0.7, 1.3)
        if f:
            towel(f, p, d)
        f = self.against_wall(0.5, 0.35, 1.7)
        if f and d.chance(0.6):
            bookshelf(f, p, d, 0.5, 1.5, 0.3)
        if d.chance(0.6):
            f = self.on_floor(0.9, 0.6, 0.0, margin=0.2)
            if f:
                self.rug(f.x, f.y, 0.8, 0.5)
                self.taken.pop()
        self.corner_things(d.int(0, 1))

    def _classroom(self):
        d, p = self.dice, self.palette
        w = d(2.2, 3.2)
        f = self.on_wall(w, 0.85, 2.1, walls=[0], tries=10) or self.on_wall(2.0, 0.85, 2.1)
        if f:
            blackboard(f, p, d, w if f.yaw == 0 else 2.0)
        g = self.on_floor(1.5, 0.8, 0.76, margin=0.9, tries=4)
        if g:
            desk(g.at(0, -0.35), p, d, 1.4)
        y = 2.4
        while y < self.d - 0.9:
            n = int((self.w - 0.8) / 1.15)
            for k in range(n):
                x = self.w / 2 + (k - (n - 1) / 2) * 1.15
                box = (x - 0.4, y - 0.35, x + 0.4, y + 0.6)
                if d.chance(0.92) and self.free_floor(box, 0.0) and len(self.scene.kind) < 380:
                    self.taken.append((*box, 0.8))
                    student_desk(
                        Indoors(
                            self.scene, x + d(-0.05, 0.05), y + d(-0.05, 0.05), 0, d(-0.06, 0.06)
                        ),
                        p,
                        d,
                    )
            y += d(1.25, 1.5)
        f = self.against_wall(1.0, 0.36, 1.9, front=0.3)
        if f:
            bookshelf(f, p, d, 1.0)
        self.corner_things(d.int(0, 2))

    def _corridor(self):
        d, p = self.dice, self.palette
        if d.chance(0.6):
            self.rug(self.w / 2, self.d / 2, min(0.9, self.w * 0.5), self.d * d(0.4, 0.8))
        if self.w > 1.5:
            for _ in range(d.int(0, 3)):
                kind = d.pick(("console", "shelf", "chair", "plant"))
                f = self.against_wall(0.9, 0.34, 1.0, walls=[1, 3], front=0.6)
                if f and kind == "console":
                    cabinet(f, p, d, 0.85, 0.32, 0.8, 2, 2)
                    clutter(f.at(0, 0.16, 0.8), p, d, 0.6, 0.15, 2)
                elif f and kind == "shelf":
                    bookshelf(f, p, d, 0.85, 1.0, 0.3)
                elif f and kind == "chair":
                    stool(f, p, d)
                elif f:
                    plant(f.at(0, 0.2), p, d, 1.2, 0.3)
        if d.chance(0.5):
            f = self.on_wall(1.0, 0.6, 1.8, walls=[1, 3])
            if f:
                coats(f, p, d, 0.9)

    def _hall(self):
        d, p = self.dice, self.palette
        for _ in range(d.int(1, 3)):
            f = self.on_floor(1.3, 1.3, 0.5, margin=0.5)
            if f:
                d.pick(
                    (
                        coffee_table,
                        lambda f, p, d: sofa(f.at(0, -0.4), p, d, 1),
                        lambda f, p, d: plant(f, p, d, 1.5, 0.4),
                    )
                )(f, p, d)
        f = self.against_wall(2.0, 0.95, 0.85, front=0.5)
        if f:
            sofa(f, p, d, 2)
        f = self.against_wall(1.0, 0.36, 1.9, front=0.3)
        if f:
            bookshelf(f, p, d, 1.0)
        if d.chance(0.5):
            self.rug(self.w / 2, self.d / 2, 2.0, 2.8)
        f = self.against_wall(1.1, 0.5, 1.0, front=0.4)
        if f:
            dresser(f, p, d, 1.1)
        f = self.on_wall(1.0, 0.6, 1.8)
        if f:
            coats(f, p, d, 0.9)
        self.corner_things(d.int(1, 3))

    def build(self):
        d = self.dice
        self.day = d.chance(0.62)
        self.sun = self.day and d.chance(0.4)
        self.has_sun = False
        self.lights, self.extra_lights = [], []
        self.surfaces()
        self.shell()
        daylit = bool(self.lights)
        power = d(2.2, 3.6) * (self.w * self.d / 14) ** 0.5
        if daylit and d.chance(0.6):
            power *= d(0.15, 0.5)
        if daylit and d.chance(0.25):
            power = 0.0
        n = max(1, round(max(self.w, self.d) / 4.5))
        tall = self.d > self.w
        for k in range(n):
            f = (k + 0.5) / n
            x, y = (self.w / 2, f * self.d) if tall else (f * self.w, self.d / 2)
            self.ceiling_lamp(
                x + d(-0.3, 0.3) * (n == 1), y + d(-0.3, 0.3) * (n == 1), power / n**0.7
            )
        self.furnish()
        lamps = self.scene.lights[:3]  # those of table and floor lamps
        self.scene.lights = self.lights[:4] + self.extra_lights + lamps
        # Light that has bounced: tinted by floor and walls.
        total = sum(
            sum(q.colour) / 3 * (0.001 if q.colour[0] > 50 else 1) for q in self.scene.lights
        )
        size = self.w * self.d
        level = 0.04 + d(0.26, 0.42) * total / (size + 6)
        if daylit:
            level *= 1.15
        floor, wall = self.floor.c0, self.paint.c0
        self.scene.ambient_up = tuple(level * x for x in mix(wall, (0.8, 0.8, 0.8), 0.5))
        self.scene.ambient_down = tuple(
            0.85 * level * x for x in mix(mix(floor, wall, 0.4), (0.5,) * 3, 0.3)
        )
        return self


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


_EXTRAS = (
    "bookshelf", "bookshelf", "dresser", "armchair", "chair", "chair", "wardrobe", "nightstand",
    "stool", "chest", "bench", "plant", "plant", "basket", "lamp", "boxes", "toys", "bin",
)  # fmt: skip
_EXTRAS_WET = ("stool", "basket", "bin", "plant", "chair", "bench", "bookshelf")


# ----------------------------------------------------------------------------------------- camera


_PREVIEW = (24, 32)


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


def _score(solids, hits):
    """How bad each of the views is, 0 for good ones; and how much there is in it. Two lists."""
    depth = hits.depth.flatten(1)
    n = depth.shape[1]
    low, mid = depth.kthvalue(n // 20, 1)[0], depth.median(1)[0]
    label = solids.label[hits.solid.clamp(min=0)].flatten(1)
    wall = ((label == 0) | (label == 2) | (label == 4)).float().mean(1)
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
        + (wall - 0.62).clamp(min=0) * 6
        + (same - 0.42).clamp(min=0) * 5
        + (6 - kinds).clamp(min=0) * 0.4
    )
    far = depth.amax(1, keepdim=True) > depth.new_tensor([9.3, 9.65])  # rare, and wanted
    return bad.tolist(), (kinds.clamp(max=7) + 2 * far.sum(1)).tolist()


def _blocked(room, position):
    """Is there a solid within 12 cm of the camera?"""
    s = room.scene
    for row, kind in zip(s.geometry, s.kind, strict=True):
        x, y, z = (p - c for p, c in zip(position, row[9:12], strict=True))
        for i in range(3):
            half = row[21 + i]
            u = abs(row[3 * i] * x + row[3 * i + 1] * y + row[3 * i + 2] * z)
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
            room = Room(d, d.weighted(_OFTEN)).build()
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
            item["depth"],
            Dice("kinect", split, index),
            image=item["image"],
            normal=item["normal"],
            gloss=view["gloss"],
            focal=KINECT.intrinsics(item["label"].shape)[0],
        )
    return item


ROOMS = World(
    "rooms",
    RENDERER_VERSION,
    _make,
    KINECT,
    _measure,
    lengths={"train": 4000, "val": 400, "test": 654},
    fields=FIELDS,
    sensors=("kinect",),
)
