"""Walls around their doors and windows, what lies behind these, and the light they let in."""

from __future__ import annotations

import math

from ..drawing import dim, hsv, mix
from ..scene import Light, Material
from . import furniture as things


def add_wall(room, i):
    """Wall i in pieces around its openings."""
    f, n, t, h = room.wall(i, 0), room.length(i), room.thick, room.h
    m = room.surfaces.walls[i]
    lo, hi = -t, n + t
    for a, b in room.extend[i]:
        lo, hi = min(lo, a), max(hi, b)
    s = lo

    def piece(a, b, z0, z1):
        if b - a > 1e-4 and z1 - z0 > 1e-4:
            f.box(((a + b) / 2, -t / 2, z0), (b - a, t, z1 - z0), m, "wall", world_uv=True)

    for a, b, z0, z1 in sorted(room.openings[i]):
        piece(s, a, -0.05, h + 0.05)
        piece(a, b, -0.05, z0)
        piece(a, b, z1, h + 0.05)
        s = b
    piece(s, hi, -0.05, h + 0.05)
    # Skirting boards.
    if room.skirting is not None:
        s = 0.0
        gaps = sorted(o for o in room.openings[i] if o[2] < 0.05)
        for a, b, *_ in [*gaps, (n, n)]:
            if a - s > 0.02:
                f.box(
                    ((s + a) / 2, 0.006, 0), (a - s, 0.012, 0.075), room.skirting, "wall",
                    casts=False,
                )  # fmt: skip
            s = b


def walls_of(room):
    """Doors, windows, then the walls around them, floor and ceiling."""
    d = room.dice
    if room.kind != "bathroom" and d.chance(0.8):
        room.skirting = room.palette.white if d.chance(0.7) else room.palette.wood()
    door_wall = d.int(0, 3)
    if room.kind in ("corridor", "hall"):
        for i in (1, 3, *((0, 2) if d.chance(0.5) else ())):
            for _ in range(d.int(1, 3) if i % 2 else 1):
                door(room, i, d.chance(0.25) and room.second_wall is None)
    else:
        door(room, door_wall, d.chance(0.4))
        if d.chance(0.15):
            door(room, (door_wall + d.int(1, 3)) % 4, False)
    n = 0
    want = {"corridor": 0.2, "bathroom": 0.5, "hall": 0.4}.get(room.kind, 0.93)
    if d.chance(want):
        for i in d.shuffled(i for i in range(4) if i != room.second_wall):
            if n < 2 and (n == 0 or d.chance(0.3)):
                n += window(room, i)
    if room.kind not in ("corridor", "bathroom") and d.chance(0.3):
        block(room)
    for i in range(4):
        with room.scene.thing("wall"):
            add_wall(room, i)
    b = room.base
    t = room.thick
    # The floor reaches as far as the second space begins, the ceiling over the walls.
    b.box(
        (room.w / 2, room.d / 2, -0.1), (room.w + 2 * t, room.d + 2 * t, 0.1), room.surfaces.floor,
        "floor", world_uv=True,
    )  # fmt: skip
    b.box(
        (room.w / 2, room.d / 2, room.h), (room.w + 2 * t, room.d + 2 * t, 0.1),
        room.surfaces.ceiling, "ceiling", world_uv=True,
    )  # fmt: skip


def reveal(room, i, s0, s1, high):
    """The hole of an opening is part of what can be seen."""
    f = room.wall(i, 0)
    a, b = f.world(s0, 0), f.world(s1, -room.thick - 0.05)
    lo = (min(a[0], b[0]), min(a[1], b[1]), 0.0)
    room.spaces.append((lo, (max(a[0], b[0]), max(a[1], b[1]), high)))


def back(room, f, w, low, high, label):
    """A plate behind a closed opening, so that no gap ever looks out of the scene."""
    y, h = -room.thick - 0.02, high - low
    f.box((0, y, low - 0.1), (w + 0.2, 0.02, h + 0.2), room.palette.dark, label, casts=False)


def block(room):
    """A corner of the room taken by another one: an L-shaped room."""
    d = room.dice
    a, b = d(0.25, 0.45) * room.w, d(0.2, 0.42) * room.d
    if min(room.w - a, room.d - b) < 1.9:
        return
    left, low = d.chance(0.5), d.chance(0.5)
    x0, y0 = (0 if left else room.w - a), (0 if low else room.d - b)
    sides = []
    for i, hit in ((0, low), (1, not left), (2, not low), (3, left)):
        if hit:
            n = room.length(i)
            size = a if i % 2 == 0 else b
            at_start = {0: left, 1: low, 2: not left, 3: not low}[i]
            s = (0, size) if at_start else (n - size, n)
            if not room.free_wall(i, s[0], s[1], 0, room.h, 0.12):
                return
            sides.append((i, s))
    for i, s in sides:
        room.walls[i].append((*s, 0.0, room.h))
    room.taken.append((x0, y0, x0 + a, y0 + b, room.h))
    room.base.box(
        (x0 + a / 2, y0 + b / 2, 0), (a, b, room.h + 0.02), room.surfaces.paint, "wall",
        world_uv=True,
    )  # fmt: skip


def door(room, i, opened):
    d, p, t = room.dice, room.palette, room.thick
    w, h = d(0.78, 0.95), d(1.98, 2.1)
    n = room.length(i)
    if n < w + 0.4:
        return
    s = None
    for _ in range(6):
        x = d(0.15, n - w - 0.15)
        if room.free_wall(i, x, x + w, 0, h, 0.15):
            s = x
            break
    if s is None:
        return
    room.openings[i].append((s, s + w, -0.05, h))
    reveal(room, i, s, s + w, h)
    room.taken.append((*room.footprint(i, s, s + w, 0.85), 0.0))
    f = room.wall(i, s + w / 2)
    m = p.white if d.chance(0.55) else p.wood()
    frame = m if d.chance(0.6) else p.white
    for x in (-1, 1):
        f.box(
            (x * (w / 2 + 0.02), -t / 2, 0), (0.07, t + 0.03, h + 0.03), frame, "door", casts=False,
        )  # fmt: skip
    f.box((0, -t / 2, h - 0.012), (w + 0.11, t + 0.03, 0.06), frame, "door", casts=False)
    leaf_w = w - 0.03
    if opened and room.second_wall is None:
        beyond(room, i, s, w)
        side = d.pick((-1, 1))
        angle = d(1.2, 1.9)
        # Hinged at the far edge of the opening, swung into the space behind.
        g = f.at(side * leaf_w / 2, -t, 0, side * angle)
        leaf(room, g.at(-side * leaf_w / 2, 0), leaf_w, h, m, side)
    else:
        back(room, f, w, 0.0, h, "door")
        leaf(room, f.at(0, -t * d(0.2, 0.7)), leaf_w, h, m, d.pick((-1, 1)))


def leaf(room, f, w, h, m, side):
    d, p = room.dice, room.palette
    # Tight in its frame: nothing may be seen through the gaps.
    f.box((0, 0, -0.02), (w + 0.03, 0.04, h + 0.025), m, "door")
    style = d.int(0, 2)
    if style:
        rows = ((0.12, 0.75), (1.0, h - 1.14)) if style == 1 else ((0.12, h - 0.28),)
        for z, hh in rows:
            for y in (-0.022, 0.022):
                f.box(
                    (0, y, z), (w - 0.26, 0.008, hh),
                    m._replace(c0=dim(m.c0, 0.93), c1=dim(m.c1, 0.9)), "door",
                )  # fmt: skip
    x = -side * (w / 2 - 0.07)
    for y in (-0.05, 0.05):
        if d.chance(0.5):
            f.ball((x, y, 1.0), (0.055, 0.055, 0.055), p.metal, "door", casts=False)
        else:
            f.box((x + side * 0.04, y, 1.02), (0.13, 0.016, 0.02), p.metal, "door", casts=False)


def beyond(room, i, s, w):
    """A second space behind the opening s … s + w of wall i."""
    d, p, t = room.dice, room.palette, room.thick
    depth = d(1.3, 4.2)
    a = max(-t + 0.02, s - d(0.3, 2.0)) if d.chance(0.7) else s - d(0.3, 1.5)
    b = s + w + d(0.3, 2.0)
    room.second_wall = i
    room.extend[i].append((a - 0.2, b + 0.2))
    h = room.h
    f = room.wall(i, 0)
    c = hsv(d(0.05, 0.15), d(0, 0.3), d(0.4, 0.8))
    m = Material("plaster", c, dim(c, 0.92), dim(c, 0.85), 2.0)
    floor = (
        room.surfaces.floor
        if d.chance(0.6)
        else p.wood()._replace(texture="planks", period=1.6, grain=False)
    )
    mid = (a + b) / 2
    u = 0.15
    f.box((mid, -t - depth - u / 2, -0.05), (b - a + 2 * u, u, h + 0.1), m, "wall", world_uv=True)
    for x, sg in ((a, -1), (b, 1)):
        f.box(
            (x + sg * u / 2, -t - depth / 2, -0.05), (u, depth + 2 * u, h + 0.1), m, "wall",
            world_uv=True,
        )  # fmt: skip
    f.box(
        (mid, -t - depth / 2 - u / 2, -0.1), (b - a + 2 * u, depth + u, 0.1), floor, "floor",
        world_uv=True,
    )  # fmt: skip
    f.box(
        (mid, -t - depth / 2 - u / 2, h), (b - a + 2 * u, depth + u, 0.1), room.surfaces.ceiling,
        "ceiling", world_uv=True,
    )  # fmt: skip
    g = f.at(mid, -t - depth, 0)
    x0, y0, z0 = f.world(a, -t - depth, -0.2)
    x1, y1, z1 = f.world(b, -t * 0.3, h + 0.2)
    lo, hi = (min(x0, x1), min(y0, y1), z0), (max(x0, x1), max(y0, y1), z1)
    room.spaces.append(((*lo[:2], 0.0), (*hi[:2], h)))
    zone = (tuple(x - 0.05 for x in lo), tuple(x + 0.05 for x in hi))
    warm = (1.0, d(0.8, 0.95), d(0.6, 0.9))
    room.extra_lights.append(
        Light(g.world(0, depth / 2, h - 0.25), dim(warm, d(0.3, 1.6)), radius=0.4, zone=zone)
    )
    across = f.at(s + w / 2, -t - depth)  # opposite to the opening
    x = d()
    if x < 0.3 and depth > 1.6:
        room.put(things.dresser, across, 0.8)
        room.put(things.framed, across, 0.5, 0.6, 1.35)
    elif x < 0.5:
        room.put(things.framed, across, d(0.4, 0.8), d(0.4, 0.7), 1.2)
    elif x < 0.65 and depth > 1.6:
        room.put(things.bookshelf, across)
    elif x < 0.8:
        leaf(room, across.at(0, 0.02), 0.8, 2.0, p.white, 1)
    if depth > 2 and d.chance(0.4):
        room.put(things.plant, across.at(0.6, 0.3), 1.0, 0.3)


def outside(d, day):
    """What is seen through a window, and the colour of the light that falls in."""
    kind = d.pick(("outside_trees", "outside_trees", "outside_houses"))
    sky = mix((0.75, 0.87, 1.0), (1.0, 0.95, 0.88), d())
    view = Material(
        kind, hsv(d(0.2, 0.4), 0.3, 0.12), sky, hsv(d(0.2, 0.32), d(0.4, 0.7), d(0.15, 0.4)),
        gloss=0.7, glow=d(1.0, 2.6),
    )  # fmt: skip
    if kind == "outside_houses":
        view = view._replace(
            c0=hsv(d(), d(0.1, 0.4), d(0.1, 0.4)), c2=hsv(d(), d(0, 0.4), d(0.1, 0.5))
        )
    if not day:
        view = view._replace(
            c0=(0.01,) * 3, c1=(0.02, 0.025, 0.05), c2=(0.06, 0.05, 0.03), glow=0.5, gloss=0.8
        )
    return view, sky


def sash(room, f, w, low, high):
    """Frame, bars and sill of a window."""
    d, p, t, h = room.dice, room.palette, room.thick, high - low
    m = p.white if d.chance(0.75) else p.wood()
    b, y = 0.06, -t * 0.72
    for x in (-1, 1):
        f.box((x * (w / 2 - b / 2), y, low), (b, 0.06, h), m, "window")
    for z in (low, high - b):
        f.box((0, y, z), (w, 0.06, b), m, "window")
    bars = 0 if w < 0.8 else d.int(1, 2)
    for k in range(bars):
        f.box((-w / 2 + (k + 1) * w / (bars + 1), y, low), (b * 0.8, 0.05, h), m, "window")
    if d.chance(0.4):
        f.box((0, y, low + h * d.pick((0.5, 0.7))), (w, 0.045, 0.05), m, "window")
    f.box((0, -t / 2 + 0.06, low - 0.025), (w + 0.1, t + 0.14, 0.03), m, "window", casts=False)


def window(room, i):
    """A window in wall i. Returns whether there was room."""
    d, p, t = room.dice, room.palette, room.thick
    n = room.length(i)
    w = min(d(0.9, 2.0), n - 0.6)
    if w < 0.5:
        return False
    low = 1.2 if room.kind == "bathroom" else d.pick((0.85, 0.95, 0.5))
    high = min(room.h - 0.2, d(2.0, 2.3))
    for _ in range(5):
        s = d(0.25, n - w - 0.25)
        if room.free_wall(i, s, s + w, 0.0, high, 0.25):
            break
    else:
        return False
    room.openings[i].append((s, s + w, low, high))
    reveal(room, i, s, s + w, high)
    f = room.wall(i, s + w / 2)
    h = high - low
    view, sky = outside(d, room.day)
    blind = d.chance(0.18)
    back(room, f, w, low, high, "window")
    f.box(
        (0, -t * 0.8, low - 0.02), (w + 0.04, 0.02, h + 0.04), view, "window", casts=False,
        stretch=True,
    )  # fmt: skip
    if blind:
        c = (d(0.5, 0.8),) * 3
        glow = 0.9 if room.day else 0.0
        m = Material("slats", c, dim(c, 0.6), dim(c, 0.35), 0.8, 0, glow)
        cut = d(0.0, 0.6) * h
        f.box((0, -t * 0.35, low + cut), (w - 0.01, 0.02, h - cut), m, "curtain", casts=False)
    sash(room, f, w, low, high)
    if low > 0.7 and d.chance(0.4) and t > 0.15:
        room.put(
            things.clutter, f.at(0, -t * 0.1, low + 0.006), w - 0.3, 0.05, d.int(1, 3), tall=0.4
        )
    if not blind and d.chance(0.6) and room.kind not in ("bathroom",):
        c = p.cloth()
        z0 = 0.03 if d.chance(0.6) else low - 0.15
        top = min(high + 0.15, room.h - 0.08)
        reach = d(0.25, 0.4) * w
        for x in (-1, 1):
            xx = x * (w / 2 + 0.12 - reach / 2 + 0.1)
            room.put(things.drape, f.at(xx, 0.11), c, reach, z0, top - z0)
        f.rod(
            (0, 0.11, top - (w + 0.5) / 2), (0.03, w + 0.5), p.metal, "curtain", roll=math.pi / 2,
        )  # fmt: skip
        room.walls[i].append((s - 0.3, s + w + 0.3, z0, top + 0.1))
        room.taken.append((*room.footprint(i, max(0, s - 0.25), min(n, s + w + 0.25), 0.2), 0.0))
    else:
        room.walls[i].append((s - 0.08, s + w + 0.08, low - 0.08, high))
        if low > 0.8 and room.kind != "bathroom" and d.chance(0.5):
            room.put(things.radiator, f, w * 0.8)
            room.walls[i].append((s, s + w, 0.0, low))
            room.taken.append((*room.footprint(i, s, s + w, 0.2), 0.8))
    if room.day:
        daylight(room, f, w, low, h, sky)
    return True


def daylight(room, f, w, low, h, sky):
    """The light that a window lets in."""
    d, t = room.dice, room.thick
    area = w * h
    centre = f.world(0, 0.05, low + h / 2)
    inward = (-f.sin, f.cos, -0.25)
    room.lights.append(Light(
        centre, dim(sky, 1.5 * area * d(0.7, 1.2)), inward, 1.0, 0.5, shadow=2.2, beyond=0.5,
        softness=2.0,
    ))  # fmt: skip
    if room.sun and not room.sunlit:
        room.sunlit = True
        a, e = d(-0.9, 0.9), d(0.45, 0.95)
        far = 7.0
        src = f.world(
            far * math.sin(a) * math.cos(e),
            -far * math.cos(a) * math.cos(e),
            low + h / 2 + far * math.sin(e),
        )
        axis = tuple(c - q for c, q in zip(f.world(0, -t, low + h / 2), src, strict=True))
        tan = 0.85 * math.hypot(w, h) / far
        room.lights.append(Light(
            src, dim((1.0, 0.9, 0.75), d(2.5, 5.0) * 500), axis, 0.0, math.sqrt(500 - far * far),
            shadow=tan, beyond=0.0, softness=0.2,
        ))  # fmt: skip
