"""What stands in rendered rooms, modelled from four solids."""

from __future__ import annotations

import math
from collections.abc import Callable

from ..drawing import WOODS, Frame, dim, hsv, mix
from ..scene import Light, Material

LABELS = (
    "wall", "floor", "ceiling", "window", "door", "bed", "sofa", "chair", "table", "cabinet",
    "shelf", "book", "lamp", "picture", "curtain", "rug", "plant", "appliance", "sanitary",
    "screen", "object",
)  # fmt: skip


class Indoors(Frame):
    """A `Frame` in a room."""

    labels = {name: i for i, name in enumerate(LABELS)}


# ------------------------------------------------------------------------------------- furniture
# Each takes (frame, palette, dice) with the frame at the middle of its back edge on the floor, and
# sizes where the room plans with them.


def drawers(f, w, h, z, y, rows, cols, front, knob, label="cabinet", gap=0.008):
    """Fronts with knobs on the face at depth y of a cabinet."""
    cw, ch = w / cols, h / rows
    for i in range(cols):
        for j in range(rows):
            x, zz = -w / 2 + (i + 0.5) * cw, z + j * ch
            f.box((x, y + 0.008, zz + gap / 2), (cw - gap, 0.016, ch - gap), front, label)
            if cw > ch:
                f.box(
                    (x, y + 0.028, zz + ch * 0.55), (min(0.14, cw * 0.4), 0.018, 0.012), knob, label
                )
            else:
                side = 1 if i % 2 == 0 else -1
                f.box(
                    (x + side * (cw / 2 - 0.05), y + 0.028, zz + ch * 0.45),
                    (0.012, 0.018, min(0.16, ch * 0.3)), knob, label,
                )  # fmt: skip


def bed(f, p, d, w, length=2.05):
    wood, sheet, cover = p.wood(), p.cloth((0.5, 0.8)), p.any_cloth()
    h = d(0.38, 0.52)
    f.box((0, 0.03, 0), (w + 0.06, 0.05, d(0.85, 1.2)), wood, "bed")
    f.box((0, length / 2, 0.08), (w, length, h - 0.24), wood, "bed")
    f.soft((0, length / 2 + 0.02, h - 0.17), (w - 0.02, length - 0.06, 0.2), sheet, "bed", r=0.06)
    reach = d(0.55, 0.75) * length
    f.soft((0, length - reach / 2 + 0.02, h - 0.22), (w + 0.05, reach, 0.29), cover, "bed", r=0.05)
    if d.chance(0.5):
        f.soft((0, length - reach + 0.12, h + 0.035), (w + 0.06, 0.3, 0.055), sheet, "bed", r=0.025)
    n = 1 if w < 1.2 else 2
    for i in range(n):
        x = (i - (n - 1) / 2) * w / n
        f.soft(
            (x, 0.27, h + 0.02), (min(0.62, w / n - 0.08), 0.42, 0.14),
            sheet if d.chance(0.6) else p.any_cloth(), "bed", r=0.065, pitch=d(0.15, 0.5),
            yaw=d(-0.1, 0.1),
        )  # fmt: skip
        if d.chance(0.4):
            f.soft(
                (x, 0.5, h + 0.03), (0.4, 0.36, 0.12), p.any_cloth(), "bed", r=0.055,
                pitch=d(0.5, 0.9), yaw=d(-0.2, 0.2),
            )  # fmt: skip
    for x in (-1, 1):
        f.box((x * (w / 2 - 0.05), length - 0.05, 0), (0.07, 0.07, 0.1), wood, "bed")


def nightstand(f, p, d):
    m, h = p.wood(), d(0.45, 0.6)
    f.box((0, 0.2, 0.04), (0.45, 0.4, h - 0.04), m, "cabinet")
    drawers(f, 0.43, h - 0.1, 0.07, 0.4, 2, 1, m, p.metal)
    if d.chance(0.75):
        table_lamp(f.at(d(-0.08, 0.08), 0.18, h), p, d)
    clutter(f.at(0, 0.27, h), p, d, 0.3, 0.16, 2)


def table_lamp(f, p, d, on=None):
    base = p.ceramic() if d.chance(0.6) else p.metal
    h = d(0.18, 0.3)
    f.rod((0, 0, 0), (0.14, 0.02), base, "lamp", casts=False)
    if d.chance(0.5):
        f.ball((0, 0, 0.01), (0.14, 0.14, h * 0.8), base, "lamp", casts=False)
    f.rod((0, 0, 0.01), (0.025, h), base, "lamp", casts=False)
    on = d.chance(0.6) if on is None else on
    colour = (1.0, d(0.72, 0.9), d(0.45, 0.7))
    shade = p.glowing(colour, d(1.2, 2.4)) if on else p.cloth((0.5, 0.8))
    f.rod((0, 0, h), (d(0.24, 0.34), d(0.18, 0.26)), shade, "lamp", top=d(0.5, 0.9), casts=False)
    if on:
        f.scene.add_light(Light(f.world(0, 0, h + 0.12), dim(colour, 0.55), radius=0.22))


def floor_lamp(f, p, d):
    m = p.metal if d.chance(0.5) else p.dark
    h = d(1.35, 1.6)
    f.rod((0, 0.2, 0), (0.3, 0.025), m, "lamp", casts=False)
    f.rod((0, 0.2, 0.02), (0.028, h), m, "lamp", casts=False)
    on = d.chance(0.6)
    colour = (1.0, d(0.75, 0.9), d(0.5, 0.7))
    shade = p.glowing(colour, d(1.2, 2.2)) if on else p.cloth((0.5, 0.8))
    f.rod((0, 0.2, h), (d(0.34, 0.46), d(0.24, 0.32)), shade, "lamp", top=d(0.5, 1.0), casts=False)
    if on:
        f.scene.add_light(Light(f.world(0, 0.2, h + 0.15), dim(colour, 0.9), radius=0.25))


def cabinet(f, p, d, w, depth, h, rows, cols):
    m = p.lacquer()
    front = m if d.chance(0.7) else p.lacquer()
    f.box((0, depth / 2, 0.06), (w, depth, h - 0.06), m, "cabinet")
    f.box((0, depth / 2 - 0.02, 0), (w - 0.04, depth - 0.06, 0.06), p.dark, "cabinet")
    drawers(f, w - 0.01, h - 0.09, 0.075, depth, rows, cols, front, p.metal)


def dresser(f, p, d, w=1.0):
    h = d(0.75, 1.0)
    cabinet(f, p, d, w, 0.45, h, d.int(3, 4), 2 if w > 0.9 else 1)
    clutter(f.at(0, 0.22, h), p, d, w - 0.15, 0.3, d.int(2, 5), tall=0.45)


def wardrobe(f, p, d, w=1.2):
    cabinet(f, p, d, w, 0.6, d(1.9, 2.15), 1, max(2, round(w / 0.5)))


def bookshelf(f, p, d, w=0.9, h=1.9, depth=0.3):
    m = p.lacquer()
    t = 0.022
    for s in (-1, 1):
        f.box((s * (w / 2 - t / 2), depth / 2, 0), (t, depth, h), m, "shelf")
    f.box((0, 0.008, 0), (w - 2 * t, 0.012, h), m._replace(c0=dim(m.c0, 0.8)), "shelf")
    n = max(2, round(h / 0.36))
    gap = (h - t) / n
    for i in range(n + 1):
        z = i * gap
        f.box((0, depth / 2, z), (w - 2 * t, depth - 0.01, t), m, "shelf")
        if i < n:
            fill_shelf(f.at(0, 0, z + t), p, d, w - 2 * t - 0.01, gap - t, depth)


def fill_shelf(f, p, d, w, h, depth):
    x, end = -w / 2, w / 2
    style = d.weighted({"books": 5, "things": 2, "empty": 0.6})
    if style == "things":
        return clutter(
            f.at(0, depth * 0.55, 0), p, d, w - 0.1, depth * 0.4, d.int(1, 3), tall=h - 0.03
        )
    if style == "empty":
        return
    x += d(0, 0.08)
    end -= d(0, 0.5) * w
    tall = d(0.6, 0.88) * h
    if d.chance(0.25):  # one textured block instead of single books
        c = p.colour((0.3, 0.8), (0.1, 0.5))
        m = Material("spines", c, p.colour((0.1, 0.8), (0.3, 0.8)), (0.02, 0.02, 0.02), 0.7)
        f.box(
            ((x + end) / 2, depth * 0.45, 0), (end - x, depth * 0.66, tall), m, "book", stretch=True
        )
        return
    while x < end - 0.05:
        b = d(0.02, 0.06)
        c = hsv(d(), d(0.1, 0.85), d(0.04, 0.6))
        m = Material("plain", c, dim(c, 0.8), period=0.3, gloss=0.15)
        hh = min(tall * d(0.75, 1.1), h - 0.02)
        deep = depth * d(0.55, 0.75)
        f.box(
            (x + b / 2, 0.03 + deep / 2 + d(0, 0.03), 0), (b - 0.003, deep, hh), m, "book",
            casts=False,
        )  # fmt: skip
        x += b
        if d.chance(0.06):
            x += d(0.03, 0.15)


def book_pile(f, p, d, n=None):
    z = 0
    for _ in range(n or d.int(1, 4)):
        c = hsv(d(), d(0.1, 0.8), d(0.05, 0.7))
        m = Material("plain", c, dim(c, 0.8), period=0.3, gloss=0.2)
        t = d(0.015, 0.04)
        f.box((0, 0, z), (d(0.2, 0.27), d(0.14, 0.19), t), m, "book", yaw=d(-0.3, 0.3))
        z += t
    return z


def vase(f, p, d, h):
    m = p.ceramic()
    w = d(0.08, 0.16)
    f.ball((0, 0, 0), (w, w, h * 0.75), m, "object")
    f.rod((0, 0, h * 0.55), (w * 0.45, h * 0.45), m, "object", top=d(1.0, 1.5))
    f.rod((0, 0, 0), (w * 0.6, 0.03), m, "object")


def bowl(f, p, d):
    m, w = p.ceramic(), d(0.18, 0.28)
    f.rod((0, 0, 0), (w * 0.5, 0.07), m, "object", top=2.0)
    hue = d.pick((0.02, 0.08, 0.13, 0.28))
    for i in range(d.int(3, 5)):
        a, c = i * 2.4, hsv(hue + d(-0.02, 0.02), 0.8, d(0.35, 0.65))
        m = Material("plain", c, dim(c, 0.8), gloss=0.3)
        f.ball(
            (w * 0.22 * math.cos(a), w * 0.22 * math.sin(a), 0.05), (0.075, 0.075, 0.07), m,
            "object",
        )  # fmt: skip


def mug(f, p, d):
    m = p.ceramic()
    f.rod((0, 0, 0), (0.08, 0.095), m, "object", top=1.05)
    f.box((0.05, 0, 0.025), (0.03, 0.012, 0.045), m, "object")


def bottle(f, p, d):
    c = d.pick(((0.02, 0.09, 0.03), (0.12, 0.05, 0.01), (0.5, 0.55, 0.55), (0.03, 0.08, 0.25)))
    m = Material("plain", c, dim(c, 0.8), gloss=0.9)
    h = d(0.2, 0.3)
    f.rod((0, 0, 0), (0.075, h * 0.65), m, "object")
    f.rod((0, 0, h * 0.65), (0.075, h * 0.15), m, "object", top=0.4)
    f.rod((0, 0, h * 0.78), (0.03, h * 0.22), m, "object")
    f.rod((0, 0, h * 0.2), (0.077, h * 0.25), p.paint(p.colour((0, 0.6), (0.4, 0.8))), "object")


def photo(f, p, d):
    w, h = d(0.13, 0.2), d(0.16, 0.24)
    f.box((0, 0, 0), (w, 0.02, h), p.wood(), "picture", pitch=-0.18)
    f.box(
        (0, 0.011, 0.018), (w - 0.04, 0.004, h - 0.04), p.picture(), "picture", pitch=-0.18,
        stretch=True,
    )  # fmt: skip


def case(f, p, d):
    c = p.colour((0.1, 0.7), (0.1, 0.8))
    m = Material("plain", c, dim(c, 0.85), period=0.4, gloss=d(0, 0.3))
    f.box((0, 0, 0), (d(0.1, 0.26), d(0.1, 0.18), d(0.06, 0.18)), m, "object", yaw=d(-0.4, 0.4))


def globe(f, p, d):
    m = Material("marble", (0.05, 0.15, 0.4), (0.1, 0.3, 0.12), (0.6, 0.6, 0.5), 0.3, 0.5)
    f.rod((0, 0, 0), (0.12, 0.02), p.wood(), "object")
    f.rod((0, 0, 0.01), (0.02, 0.06), p.wood(), "object")
    f.ball((0, 0, 0.06), (0.2, 0.2, 0.2), m, "object")


def clock(f, p, d):
    f.box((0, 0, 0), (0.14, 0.05, 0.08), p.dark, "object")
    f.box((0, 0.026, 0.02), (0.11, 0.004, 0.045), p.glowing((0.7, 0.06, 0.03), 0.8), "object")


def small_plant(f, p, d):
    plant(f, p, d, d(0.18, 0.32), 0.12)


def candle(f, p, d):
    c = p.colour((0, 0.5), (0.4, 0.8))
    for x in (-0.05, 0.05)[: d.int(1, 2)]:
        f.rod((x, 0, 0), (0.05, d(0.06, 0.2)), p.paint(c), "object")


THINGS: tuple[tuple[Callable, float], ...] = (
    (book_pile, 0.16), (bowl, 0.13), (mug, 0.1), (bottle, 0.3), (photo, 0.24), (case, 0.18),
    (globe, 0.27), (clock, 0.09), (small_plant, 0.32), (candle, 0.2), (vase, 0.4),
)  # fmt: skip


def clutter(f, p, d, w, depth, n, tall=0.5, only=None):
    """n small things side by side on a surface of w × depth metres centred on the frame."""
    if n < 1 or w < 0.12:
        return
    slot = w / n
    for i in range(n):
        thing, h = d.pick(only or THINGS)
        if h > tall or slot < 0.14 and thing in (book_pile, bowl, case, photo):
            thing = mug
            if tall < 0.11:
                continue
        x = -w / 2 + (i + 0.5) * slot + d(-0.5, 0.5) * max(0.0, slot - 0.28)
        g = f.at(x, d(-0.5, 0.5) * max(0.0, depth - 0.2), 0, d(-0.3, 0.3))
        if thing is vase:
            vase(g, p, d, min(tall * 0.9, d(0.18, 0.36)))
        else:
            thing(g, p, d)


def plant(f, p, d, h, w):
    """Pot and leaves."""
    pot = p.ceramic() if d.chance(0.6) else Material("plain", (0.4, 0.17, 0.08), (0.33, 0.13, 0.06))
    ph = min(0.36 * h, 0.38)
    f.rod((0, 0, 0), (w * 0.75, ph), pot, "plant", top=1.3)
    f.rod(
        (0, 0, ph - 0.012), (w * 0.85, 0.014),
        Material("carpet", (0.05, 0.03, 0.02), (0.03, 0.02, 0.01)), "plant",
    )  # fmt: skip
    hue = d(0.24, 0.36)
    n = 12 if h < 0.5 else 22
    upright = d.chance(0.4)
    for i in range(n):
        a, up = i * 2.39996 + d(-0.3, 0.3), (i + 0.5) / n
        c = hsv(hue + d(-0.03, 0.03), d(0.6, 0.85), d(0.08, 0.3))
        m = Material("leaf", c, dim(c, 0.6), dim(c, 1.6), 0.3, 0.25)
        if upright:
            long, tilt = (h - ph) * d(0.7, 1.0), d(0.08, 0.45)
            z0 = ph - 0.02
        else:
            long, tilt = max(w, 0.3 * h) * d(0.5, 0.8), d(0.5, 1.35)
            z0 = ph + (h - ph) * 0.75 * up
        # A leaf grows from the stem along its own z, tilted outwards by `tilt` towards `a`.
        s, c = math.sin(tilt), math.cos(tilt)
        x, y = 0.5 * long * s * math.cos(a), 0.5 * long * s * math.sin(a)
        z = z0 + 0.5 * long * c
        f.ball(
            (x, y, z - long / 2),
            (long * 0.1 if upright else long * 0.42, long * 0.02 + 0.004, long), m, "plant",
            yaw=a - math.pi / 2, pitch=-tilt,
        )  # fmt: skip
    if not upright:
        f.rod(
            (0, 0, ph), (0.02 + 0.02 * h, (h - ph) * 0.85),
            Material("wood", (0.2, 0.13, 0.06), (0.1, 0.07, 0.03)), "plant", top=0.5,
        )  # fmt: skip


def desk(f, p, d, w=1.3, depth=0.65):
    m, h = p.wood() if d.chance(0.6) else p.white, d(0.71, 0.76)
    f.box((0, depth / 2, h - 0.03), (w, depth, 0.03), m, "table")
    if d.chance(0.6):
        f.box((w / 2 - 0.22, depth / 2, 0.03), (0.42, depth - 0.06, h - 0.06), m, "table")
        drawers(f.at(w / 2 - 0.22, 0), 0.41, h - 0.1, 0.05, depth - 0.03, 3, 1, m, p.metal, "table")
        legs = (-1,)
    else:
        legs = (-1, 1)
    for s in legs:
        if d.chance(0.5):
            f.box((s * (w / 2 - 0.015), depth / 2, 0), (0.03, depth - 0.04, h - 0.03), m, "table")
        else:
            for y in (0.06, depth - 0.06):
                f.rod((s * (w / 2 - 0.06), y, 0), (0.045, h - 0.03), p.metal, "table")
    g = f.at(0, 0, h)
    if d.chance(0.75):
        computer(g.at(d(-0.15, 0.1), 0.2, 0, d(-0.2, 0.2)), p, d)
    if d.chance(0.4):
        table_lamp(g.at(-w / 2 + 0.18, 0.17), p, d)
    else:
        clutter(g.at(-w / 2 + 0.2, 0.2), p, d, 0.3, 0.2, 1)
    clutter(g.at(w / 2 - 0.22, depth * 0.4), p, d, 0.36, 0.3, d.int(1, 2))
    for _ in range(d.int(0, 3)):
        paper = p.paint((0.72, 0.72, 0.7))
        g.box(
            (d(-0.4, 0.4) * w, depth - d(0.12, 0.25), 0), (0.21, 0.297, d(0.001, 0.006)), paper,
            "object", yaw=d(-0.8, 0.8),
        )  # fmt: skip


def computer(f, p, d):
    glow = d(0.5, 1.1) if d.chance(0.6) else 0.0
    c = (0.02, 0.02, 0.025)
    m = Material(
        "screen", hsv(d(0.5, 0.7), d(0.2, 0.7), 0.3), (0.75,) * 3, (0.05,) * 3, gloss=0.3, glow=glow
    )
    if not glow:
        m = Material("plain", c, c, gloss=0.7)
    if d.chance(0.4):  # laptop
        body = p.metal if d.chance(0.5) else p.dark
        f.box((0, 0.14, 0), (0.34, 0.24, 0.018), body, "screen")
        f.box(
            (0, 0.14, 0.018), (0.3, 0.14, 0.002),
            Material("keys", (0.03,) * 3, (0.05,) * 3, (0.3,) * 3, 0.3), "screen",
        )  # fmt: skip
        f.box((0, -0.02, 0.015), (0.34, 0.012, 0.22), body, "screen", pitch=0.25)
        f.box((0, -0.012, 0.025), (0.315, 0.003, 0.195), m, "screen", pitch=0.25, stretch=True)
        return
    w = d(0.45, 0.62)
    h = w * 0.6
    f.box((0, 0, 0), (0.22, 0.16, 0.012), p.dark, "screen")
    f.box((0, -0.02, 0.01), (0.05, 0.03, 0.2), p.dark, "screen")
    f.box((0, 0.01, 0.1), (w, 0.03, h), p.dark, "screen")
    f.box((0, 0.027, 0.115), (w - 0.03, 0.005, h - 0.03), m, "screen", stretch=True)
    f.box(
        (0, 0.28, 0), (0.44, 0.14, 0.02),
        Material("keys", (0.03,) * 3, (0.06,) * 3, (0.2,) * 3, 0.45), "object", yaw=d(-0.1, 0.1),
    )  # fmt: skip
    f.ball((0.31, 0.28, -0.005), (0.06, 0.1, 0.035), p.dark, "object")


def chair(f, p, d):
    """Faces +y; its frame is the middle of its back edge."""
    m = p.wood() if d.chance(0.75) else p.metal
    seat = m if d.chance(0.5) else p.any_cloth()
    w, h, back = d(0.4, 0.46), d(0.43, 0.47), d(0.8, 1.0)
    for x in (-1, 1):
        f.box((x * (w / 2 - 0.02), 0.03, 0), (0.035, 0.035, back), m, "chair")
        f.box((x * (w / 2 - 0.02), 0.41, 0), (0.035, 0.035, h - 0.03), m, "chair")
        f.box((x * (w / 2 - 0.02), 0.22, 0.2), (0.02, 0.36, 0.025), m, "chair")
    f.soft((0, 0.22, h - 0.035), (w, 0.44, 0.05), seat, "chair", r=0.02)
    if d.chance(0.5):
        for i in range(3):
            f.box(
                (0, 0.03, h + 0.1 + i * (back - h - 0.14) / 3), (w - 0.05, 0.018, 0.06), m, "chair"
            )
    else:
        f.soft((0, 0.03, h + 0.12), (w - 0.04, 0.035, back - h - 0.14), seat, "chair", r=0.015)


def office_chair(f, p, d):
    m, cloth = p.dark, p.any_cloth() if d.chance(0.5) else p.dark
    for i in range(5):
        a = i * 2 * math.pi / 5
        f.box(
            (0.14 * math.cos(a), 0.25 + 0.14 * math.sin(a), 0.05), (0.28, 0.04, 0.035), m, "chair",
            yaw=a,
        )  # fmt: skip
        f.ball(
            (0.28 * math.cos(a), 0.25 + 0.28 * math.sin(a), 0), (0.055, 0.055, 0.055), m, "chair"
        )
    f.rod((0, 0.25, 0.06), (0.05, 0.36), p.metal, "chair")
    f.soft((0, 0.25, 0.42), (0.48, 0.46, 0.09), cloth, "chair", r=0.04)
    f.box((0, 0.0, 0.46), (0.06, 0.03, 0.25), m, "chair")
    f.soft((0, 0.02, 0.58), (0.44, 0.08, 0.5), cloth, "chair", r=0.035, pitch=0.1)
    for x in (-0.26, 0.26):
        f.soft((x, 0.25, 0.64), (0.06, 0.26, 0.035), m, "chair", r=0.015)
        f.box((x, 0.25, 0.47), (0.03, 0.05, 0.18), m, "chair")


def sofa(f, p, d, seats):
    cloth = p.any_cloth()
    w, depth, arm = seats * d(0.62, 0.7) + 0.4, d(0.85, 0.95), 0.2
    h = d(0.4, 0.46)
    f.soft((0, depth / 2, 0.07), (w - 0.06, depth - 0.04, h - 0.2), cloth, "sofa", r=0.03)
    f.soft((0, 0.13, 0.1), (w - 0.08, 0.24, d(0.66, 0.78)), cloth, "sofa", r=0.08)
    for s in (-1, 1):
        f.soft(
            (s * (w / 2 - arm / 2), depth / 2, 0.06), (arm, depth, d(0.54, 0.6)), cloth, "sofa",
            r=0.08,
        )  # fmt: skip
        for y in (0.08, depth - 0.08):
            f.rod((s * (w / 2 - 0.1), y, 0), (0.05, 0.09), p.dark, "sofa")
    sw = (w - 2 * arm) / seats
    for i in range(seats):
        x = -w / 2 + arm + (i + 0.5) * sw
        f.soft(
            (x, depth / 2 + 0.1, h - 0.15), (sw - 0.012, depth - 0.28, 0.17), cloth, "sofa", r=0.055
        )
        f.soft((x, 0.29, h + 0.01), (sw - 0.02, 0.17, 0.4), cloth, "sofa", r=0.07, pitch=0.2)
    for i in range(d.int(0, seats + 1)):
        x = (i / max(seats, 1) - 0.5) * (w - 2 * arm - 0.4)
        f.soft(
            (x, 0.45, h + 0.03), (0.4, 0.12, 0.38), p.any_cloth(), "sofa", r=0.055, pitch=0.35,
            yaw=d(-0.3, 0.3),
        )  # fmt: skip


def table(f, p, d, w, depth, h=0.74, label="table"):
    """Frame at its middle."""
    m = p.lacquer()
    f.box((0, 0, h - 0.035), (w, depth, 0.035), m, label)
    if d.chance(0.6):
        f.box((0, 0, h - 0.1), (w - 0.12, depth - 0.12, 0.065), m, label)
    t = d(0.045, 0.08)
    for x in (-1, 1):
        for y in (-1, 1):
            f.box(
                (x * (w / 2 - t / 2 - 0.02), y * (depth / 2 - t / 2 - 0.02), 0), (t, t, h - 0.035),
                m, label,
            )  # fmt: skip


def round_table(f, p, d, w, h=0.74):
    m = p.lacquer()
    f.rod((0, 0, h - 0.035), (w, 0.035), m, "table")
    f.rod((0, 0, 0.03), (0.09, h - 0.06), m, "table")
    f.rod((0, 0, 0), (w * 0.55, 0.04), m, "table", top=0.6)


def dining(f, p, d):
    """Table with chairs, frame at its middle. Returns nothing; about 2.2 × 1.9 m."""
    if d.chance(0.35):
        w = d(0.95, 1.2)
        round_table(f, p, d, w)
        n, a0 = d.int(3, 4), d(0, 6.28)
        for i in range(n):
            a = a0 + i * 2 * math.pi / n
            r = w / 2 + d(0.0, 0.2)
            chair(
                f.at(
                    r * math.sin(a) + 0.2 * math.sin(a), -r * math.cos(a) - 0.2 * math.cos(a), 0, a
                ),
                p,
                d,
            )
    else:
        w, depth = d(1.2, 1.7), d(0.8, 0.9)
        table(f, p, d, w, depth)
        n = 2 if w > 1.3 else 1
        for side in (0, 1):
            for i in range(n):
                x = (i - (n - 1) / 2) * 0.62
                g = f.at(0, 0, 0, math.pi * side)
                chair(g.at(x, -depth / 2 - d(0.08, 0.35), 0, d(-0.12, 0.12)), p, d)
    g = f.at(0, 0, 0.74)
    if d.chance(0.3):
        g.box((0, 0, 0), (0.4, 0.4, 0.003), p.any_cloth(), "object", yaw=d(0, 0.6))
    clutter(g, p, d, 0.7, 0.4, d.int(1, 3))


def coffee_table(f, p, d):
    if d.chance(0.3):
        round_table(f, p, d, d(0.7, 0.95), 0.42)
    else:
        table(f, p, d, d(0.9, 1.2), d(0.5, 0.65), 0.42)
        if d.chance(0.5):
            f.box((0, 0, 0.12), (0.8, 0.42, 0.02), p.wood(), "table")
    clutter(f.at(0, 0, 0.42), p, d, 0.6, 0.3, d.int(1, 3), tall=0.35)


def television(f, p, d, w):
    on = d.chance(0.35)
    if on:
        m = Material(
            "landscape", hsv(d(), 0.6, 0.15), hsv(d(), 0.4, 0.9), hsv(d(), 0.7, 0.8),
            glow=d(0.6, 1.2),
        )  # fmt: skip
    else:
        m = Material("plain", (0.012,) * 3, (0.012,) * 3, gloss=0.8)
    h = w * 0.57
    f.box((0, 0, 0), (w * 0.4, 0.2, 0.015), p.dark, "screen")
    f.box((0, -0.01, 0), (0.08, 0.04, 0.1), p.dark, "screen")
    f.box((0, 0, 0.07), (w, 0.05, h), p.dark, "screen")
    f.box((0, 0.026, 0.085), (w - 0.03, 0.006, h - 0.03), m, "screen", stretch=True)


def tv_stand(f, p, d, w=1.4):
    h = d(0.45, 0.6)
    cabinet(f, p, d, w, 0.42, h, d.int(1, 2), 3)
    television(f.at(0, 0.2, h), p, d, d(0.8, min(1.2, w - 0.1)))
    if d.chance(0.5):
        clutter(f.at(-w / 2 + 0.15, 0.25, h), p, d, 0.2, 0.2, 1)


def radiator(f, p, d, w):
    for i in range(int(w / 0.09)):
        f.soft(
            (-w / 2 + (i + 0.5) * 0.09, 0.08, 0.12), (0.07, 0.1, 0.55), p.white, "object", r=0.03,
            casts=False,
        )  # fmt: skip
    f.box((0, 0.08, 0.15), (w - 0.05, 0.03, 0.03), p.white, "object")


def kitchen_run(f, p, d, w):
    """A counter of w metres with cabinets above and below."""
    m, h, depth = p.lacquer(), 0.9, 0.6
    kind = d.pick(("speckle", "marble", "wood", "plain"))
    c = d.pick(((0.5, 0.48, 0.45), (0.08, 0.08, 0.085), (0.3, 0.27, 0.25), (0.65, 0.63, 0.6)))
    if kind == "wood":
        c = d.pick(WOODS)
    top = Material(kind, c, dim(c, 0.7), dim(c, 1.5), 0.5, 0.5, grain=kind == "wood")
    f.box((0, depth / 2 - 0.03, 0), (w - 0.02, depth - 0.06, 0.1), p.dark, "cabinet")
    f.box((0, depth / 2, 0.1), (w, depth - 0.02, h - 0.14), m, "cabinet")
    f.box((0, depth / 2 + 0.01, h - 0.04), (w + 0.01, depth + 0.02, 0.04), top, "table")
    n = max(2, round(w / 0.5))
    drawers(f, w - 0.01, h - 0.16, 0.11, depth - 0.01, 1, n, m, p.metal)
    slot = w / n
    order = d.shuffled(range(n))
    sink = order[0]
    x = -w / 2 + (sink + 0.5) * slot
    g = f.at(x, 0, h)
    steel = p.metal
    g.box((0, 0.32, -0.01), (0.48, 0.4, 0.018), steel, "sanitary")
    g.box(
        (0, 0.32, 0.0085), (0.4, 0.32, 0.001),
        Material("plain", (0.09,) * 3, (0.07,) * 3, gloss=0.4), "sanitary",
    )  # fmt: skip
    g.rod((0, 0.08, 0), (0.035, 0.26), steel, "sanitary")
    g.rod((0, 0.16, 0.24), (0.024, 0.18), steel, "sanitary", pitch=-math.pi / 2 + 0.2)
    stove = None
    if n > 2:
        stove = next((i for i in order if abs(i - sink) > 1), None)
    if stove is not None:
        x = -w / 2 + (stove + 0.5) * slot
        g = f.at(x, 0, h)
        g.box(
            (0, 0.31, 0), (0.5, 0.48, 0.012),
            Material("plain", (0.012,) * 3, (0.012,) * 3, gloss=0.8), "appliance",
        )  # fmt: skip
        for bx in (-0.12, 0.12):
            for by in (0.2, 0.42):
                g.rod((bx, by, 0.012), (d(0.14, 0.19), 0.004), p.paint((0.035,) * 3), "appliance")
        g.box((0, depth + 0.008, -0.66), (min(slot, 0.58) - 0.02, 0.03, 0.52), p.dark, "appliance")
        g.box((0, depth + 0.045, -0.2), (0.4, 0.02, 0.02), steel, "appliance")
        if d.chance(0.6):
            pot = d.pick((steel, p.dark, p.ceramic()))
            g.rod((-0.12, 0.42, 0.016), (0.2, 0.13), pot, "object")
            g.rod((-0.12, 0.42, 0.146), (0.19, 0.03), pot, "object", top=0.2)
        if d.chance(0.8):
            g.box((0, 0.22, 0.62), (0.58, 0.44, 0.08), steel, "appliance")
            g.box((0, 0.16, 0.7), (0.26, 0.26, 0.7), steel, "appliance")
    for i in range(n):
        x = -w / 2 + (i + 0.5) * slot
        if i not in (sink, stove):
            clutter(f.at(x, 0.25, h), p, d, slot - 0.1, 0.25, d.int(1, 2), tall=0.45)
    return h


def wall_cabinets(f, p, d, w):
    m = p.lacquer()
    f.box((0, 0.17, 1.45), (w, 0.34, 0.7), m, "cabinet")
    drawers(f, w, 0.7, 1.45, 0.34, 1, max(1, round(w / 0.45)), m, p.metal)


def fridge(f, p, d):
    m = d.pick((p.white, p.metal, p.metal._replace(grain=False, period=0.8), p.dark))
    h, w = d(1.6, 1.9), 0.65
    cut = d(0.3, 0.65) * h
    f.soft((0, 0.3, 0.03), (w, 0.58, h - 0.03), m, "appliance", r=0.015)
    f.soft((0, 0.615, 0.06), (w, 0.05, cut - 0.06), m, "appliance", r=0.02)
    f.soft((0, 0.615, cut + 0.008), (w, 0.05, h - cut - 0.01), m, "appliance", r=0.02)
    for z, s in ((cut - 0.36, 0.3), (cut + 0.06, 0.3)):
        f.rod((-w / 2 + 0.06, 0.665, z), (0.022, s), p.metal, "appliance")
    if d.chance(0.5):
        for _ in range(3):
            f.box(
                (d(-0.1, 0.22), 0.642, d(cut + 0.1, h - 0.3)), (d(0.07, 0.15), 0.003, d(0.07, 0.2)),
                p.picture(), "picture", stretch=True,
            )  # fmt: skip


def oven_tower(f, p, d):
    cabinet(f, p, d, 0.6, 0.6, 2.0, 4, 1)
    f.box((0, 0.6, 0.75), (0.56, 0.05, 0.5), p.dark, "appliance")
    f.box((0, 0.64, 1.18), (0.44, 0.025, 0.02), p.metal, "appliance")


def toilet(f, p, d):
    m = Material("plain", (0.78,) * 3, (0.75,) * 3, gloss=0.8)
    f.soft((0, 0.11, 0.36), (0.4, 0.2, 0.4), m, "sanitary", r=0.04)
    f.rod((0, 0.4, 0), (0.24, 0.26), m, "sanitary", top=1.1, deep=0.36)
    f.ball((0, 0.43, 0.14), (0.38, 0.52, 0.34), m, "sanitary")
    f.rod((0, 0.42, 0.38), (0.39, 0.05), m, "sanitary", deep=0.5)
    f.soft((0, 0.21, 0.42), (0.37, 0.05, 0.4), m, "sanitary", r=0.02, pitch=0.12)
    f.rod((0, 0.11, 0.76), (0.04, 0.012), p.metal, "sanitary")


def washstand(f, p, d, w=0.8):
    m = Material("plain", (0.78,) * 3, (0.75,) * 3, gloss=0.8)
    if d.chance(0.6):
        cabinet(f, p, d, w, 0.46, 0.78, 1, 2)
        f.soft((0, 0.24, 0.78), (w + 0.02, 0.49, 0.07), m, "sanitary", r=0.02)
        f.rod((0, 0.27, 0.845), (0.44, 0.006), m, "sanitary", deep=0.3)
        f.rod(
            (0, 0.27, 0.8505), (0.38, 0.001), Material("plain", (0.5,) * 3, (0.45,) * 3),
            "sanitary", deep=0.25,
        )  # fmt: skip
    else:
        f.rod((0, 0.2, 0), (0.2, 0.7), m, "sanitary", top=0.8)
        f.rod((0, 0.24, 0.66), (0.34, 0.17), m, "sanitary", top=1.6, deep=0.27)
        f.rod(
            (0, 0.25, 0.831), (0.44, 0.002), Material("plain", (0.5,) * 3, (0.45,) * 3), "sanitary",
            deep=0.33,
        )  # fmt: skip
    f.rod((0, 0.06, 0.83), (0.03, 0.14), p.metal, "sanitary")
    f.rod((0, 0.11, 0.95), (0.02, 0.12), p.metal, "sanitary", pitch=-math.pi / 2)
    mw = d(0.45, 0.7)
    mirror = Material("plaster", (0.32, 0.34, 0.35), (0.4, 0.41, 0.42), (0.4, 0.42, 0.42), 3.0, 0.9)
    f.box((0, 0.012, 1.15), (mw + 0.05, 0.02, 0.75), p.metal, "picture")
    f.box((0, 0.024, 1.175), (mw, 0.008, 0.7), mirror, "picture")
    clutter(f.at(w / 2 - 0.1, 0.12, 0.845), p, d, 0.14, 0.1, 1, tall=0.2)


def bathtub(f, p, d, length=1.7):
    m = Material("plain", (0.78,) * 3, (0.75,) * 3, gloss=0.8)
    w, h, t = 0.75, 0.55, 0.06
    f.soft((0, t / 2, 0), (length, t, h), m, "sanitary", r=0.02)
    f.soft((0, w - t / 2, 0), (length, t, h), m, "sanitary", r=0.02)
    for s in (-1, 1):
        f.soft((s * (length / 2 - t), w / 2, 0), (2 * t, w, h), m, "sanitary", r=0.02)
    f.box((0, w / 2, 0), (length - 0.1, w - 0.04, 0.14), m, "sanitary")
    f.rod((length / 2 - 0.06, w / 2, h - 0.01), (0.03, 0.12), p.metal, "sanitary")
    f.rod(
        (length / 2 - 0.12, w / 2, h + 0.09), (0.025, 0.14), p.metal, "sanitary", roll=-math.pi / 2
    )
    if d.chance(0.6):  # a shower curtain, half drawn
        c = p.cloth((0.4, 0.8))
        f.rod((0, w - 0.02, 2.0), (0.025, length), p.metal, "curtain", roll=math.pi / 2)
        drape(f.at(-length / 2 + 0.35, w - 0.02), p, d, c, 0.6, 0.35, 1.65)


def drape(f, p, d, cloth, w, z, h):
    """Folds of cloth, hanging."""
    n = max(3, round(w / 0.09))
    for i in range(n):
        x = -w / 2 + (i + 0.5) * w / n
        f.rod(
            (x, 0.035 * (-1) ** i, z), (w / n * 1.75, h), cloth, "curtain", deep=d(0.06, 0.09),
            casts=i % 2 == 0,
        )  # fmt: skip


def towel(f, p, d):
    f.rod((0, 0.06, 1.2), (0.02, 0.6), p.metal, "object", roll=math.pi / 2)
    f.soft(
        (d(-0.05, 0.05), 0.06, 0.78), (0.45, 0.045, 0.74), p.cloth((0.3, 0.8)), "curtain", r=0.015
    )


def framed(f, p, d, w, h, z):
    """A picture on a wall."""
    frame = d.pick((p.dark, p.white, p.wood(), p.metal))
    f.box((0, 0.012, z), (w, 0.024, h), frame, "picture")
    if d.chance(0.5):
        f.box(
            (0, 0.025, z + 0.025), (w - 0.05, 0.004, h - 0.05), p.paint((0.75, 0.74, 0.7)),
            "picture",
        )  # fmt: skip
        w, h, z = w - 0.1, h - 0.1, z + 0.05
    f.box((0, 0.026, z + 0.03), (w - 0.06, 0.007, h - 0.06), p.picture(), "picture", stretch=True)


def blackboard(f, p, d, w):
    white = d.chance(0.5)
    c = (0.75, 0.76, 0.77) if white else d.pick(((0.02, 0.06, 0.04), (0.03, 0.03, 0.03)))
    m = Material(
        "letters", c, mix(c, (0.5, 0.5, 0.5), 0.12), (0.1, 0.1, 0.4) if white else (0.5,) * 3,
        gloss=0.2,
    )  # fmt: skip
    f.box((0, 0.015, 0.9), (w, 0.03, 1.15), p.metal if white else p.wood(), "picture")
    f.box((0, 0.032, 0.94), (w - 0.08, 0.006, 1.07), m, "picture", stretch=True)
    f.box((0, 0.06, 0.88), (w, 0.09, 0.02), p.metal, "picture")


def student_desk(f, p, d):
    """Desk and chair, the pupil looks towards −y of the frame."""
    m = p.woods[0]
    f.box((0, 0, 0.7), (0.65, 0.48, 0.025), m, "table")
    for x in (-0.29, 0.29):
        for y in (-0.2, 0.2):
            f.rod((x, y, 0), (0.03, 0.7), p.metal, "table")
    f.box((0, 0, 0.56), (0.58, 0.4, 0.015), p.metal, "table")
    if d.chance(0.5):
        clutter(f.at(0, 0, 0.725), p, d, 0.5, 0.2, 1, tall=0.2)
    chair(f.at(d(-0.05, 0.05), d(0.55, 0.7), 0, math.pi + d(-0.2, 0.2)), p, d)


def coats(f, p, d, w):
    f.box((0, 0.012, 1.55), (w, 0.024, 0.12), p.wood(), "shelf")
    for i in range(int(w / 0.22)):
        x = -w / 2 + 0.11 + i * 0.22
        f.rod((x, 0.05, 1.56), (0.016, 0.07), p.metal, "shelf", pitch=-1.2)
        if d.chance(0.6):
            f.soft(
                (x, 0.11, 1.58 - d(0.7, 1.0)), (d(0.24, 0.36), d(0.1, 0.18), d(0.75, 0.95)),
                p.cloth(), "object", r=0.07,
            )  # fmt: skip


def stool(f, p, d):
    f.soft((0, 0.25, 0.2), (0.5, 0.45, 0.24), p.any_cloth(), "chair", r=0.08)
    for x in (-0.18, 0.18):
        for y in (0.1, 0.4):
            f.rod((x, y, 0), (0.04, 0.22), p.dark, "chair")


def bin_(f, p, d):
    f.rod((0, 0.16, 0), (0.24, 0.3), d.pick((p.dark, p.metal, p.white)), "object", top=1.2)


def boxes(f, p, d):
    c = (0.36, 0.24, 0.13)
    m = Material("plain", c, dim(c, 0.8), period=0.4)
    s = d(0.35, 0.5)
    f.box((0, 0.25, 0), (s, 0.4, d(0.25, 0.4)), m, "object", yaw=d(-0.2, 0.2))


def toys(f, p, d):
    for i in range(d.int(2, 4)):
        c = hsv(d(), 0.8, d(0.3, 0.7))
        m = Material(
            "dots" if d.chance(0.4) else "plain", c, hsv(d(), 0.5, 0.7), period=0.3, gloss=0.3
        )
        r = d(0.1, 0.24)
        f.ball((d(-0.25, 0.25), 0.15 + 0.2 * i, 0), (r, r, r), m, "object")
