"""Beside the road: kerbs, gardens, houses, fields, the horizon."""

from __future__ import annotations

import math

from ..drawing import dim, hsv
from ..scene import Material
from . import roadside as things
from .roadside import STEEL, STONE, WHITE
from .street import SHOWN


def kerbside(street, s):
    """Lamps, signs, trees, bins … between the kerb and the lots."""
    d = street.dice
    near = street.edge[s] + (street.verge / 2 if street.verge else 0.45)
    far = street.lot[s] - 0.35
    if street.kind == "country":
        near = street.edge[s] + d(1.3, 2.0)
    z = 0.0 if street.kind == "country" else 0.11
    yaw = 0.0 if s > 0 else math.pi
    leaf = things.foliage(d, 0.15)
    old = street.kind in ("city", "homes") and d.chance(0.4)
    lamps = (d.chance(0.85 if s < 0 else 0.5) and street.kind != "country") or d.chance(0.15)
    step, height = d(22, 34), d(5.5, 8.5)
    trees = d.chance({"city": 0.4, "homes": 0.35, "avenue": 0.85}.get(street.kind, 0.45))
    spacing, tall = d(7, 13), d(6, 11)
    for x0, x1 in street.stretches(s):
        x = x0 + d(2, step)
        while lamps and x < min(x1 - 1, 110):
            if old:
                street.put(things.old_lamp, x, s * near, h=4, r=0.4, z=z)
            else:
                street.put(things.street_lamp, x, s * near, height, h=height, r=2.0, z=z, yaw=yaw)
            x += step
        x = x0 + d(3, spacing)
        while trees and x < min(x1 - 2, 105):
            if d.chance(0.85) and x > 1.0:
                at = near if street.pavement > 2.2 or street.verge else street.lot[s] + 1.0
                if street.kind == "country":
                    at = near + 1.5
                t = tall * d(0.85, 1.15)
                low = min(t * 0.4, d(2.4, 3.2))
                street.put(things.tree, x, s * at, leaf, t, r=t * 0.3, h=t, z=z, bare=low)
            x += spacing * d(0.9, 1.1)
        if street.kind == "country":
            continue
        x = x0 + d(1.5, 12)
        while x < min(x1 - 1, 50):
            kerb_thing(street, s, x, s * far, yaw, z)
            x += d(4, 14)
    corners(street, s, z)


def kerb_thing(street, s, x, inner, yaw, z):
    """One thing at the kerb, or at the pavement's inner edge."""
    d = street.dice
    what = d.weighted(
        {"sign": 2.5, "bin": 1.5, "litter": 1, "bollards": 1, "box": 1, "bench": 0.5,
         "column": 0.2, "shelter": 0.4, "bicycle": 0.8, "plant": 0.5}
    )  # fmt: skip
    outer = s * (street.edge[s] + 0.35)
    if what == "sign":
        face = 0.0 if s < 0 or d.chance(0.3) else math.pi
        street.put(things.sign, x, outer, r=0.5, h=2.8, z=z, yaw=face)
    elif what == "bin" and street.kind != "avenue":
        for k in range(d.int(1, 3)):
            street.put(things.bin_, x + 0.65 * k, inner, r=0.5, h=1, z=z, yaw=yaw + d(-0.2, 0.2))
    elif what == "litter":
        street.put(things.litter_bin, x, outer, r=0.4, h=1, z=z)
    elif what == "bollards" and not street.parking[0 if s > 0 else 1]:
        for k in range(d.int(3, 7)):
            street.put(things.bollard, x + 1.6 * k, outer, r=0.3, h=1, z=z)
    elif what == "box":
        street.put(things.junction_box, x, inner, r=0.8, h=1.2, z=z, yaw=yaw)
    elif what == "bicycle":
        street.put(
            things.bicycle, x, inner, r=1.0, h=1, z=z, yaw=d(-0.15, 0.15), n=12, foot=(0.9, 0.3),
        )  # fmt: skip
    elif street.pavement > 2.4 and what == "bench":
        street.put(things.bench, x, inner - s * 0.3, r=1.2, h=1, z=z, yaw=yaw, foot=(0.9, 0.3))
    elif street.pavement > 3.0 and what == "column":
        street.put(things.column, x, inner - s * 0.8, r=1.0, h=3, z=z, foot=(0.8, 0.8))
    elif street.pavement > 3.2 and what == "shelter":
        street.put(things.shelter, x, inner - s, r=2.5, h=2.5, z=z, yaw=yaw, foot=(2.1, 1.0))
    elif what == "plant" and street.pavement > 2.4:
        street.put(things.bush, x, outer, things.foliage(d), 0.8, r=0.6, h=1, z=z + 0.1)


def corners(street, s, z):
    """Traffic lights and street names at side streets."""
    d = street.dice
    for x, width, left, right in street.crossings[:2]:
        if not (left if s > 0 else right) and street.kind == "homes":
            continue
        if street.kind in ("city", "avenue") and d.chance(0.5):
            state = d.pick((0, 2, 2, 1))
            face = 0.0 if s < 0 else math.pi
            at = x - width / 2 - 1.0 if s < 0 else x + width / 2 + 1.0
            street.put(
                things.traffic_light, at, s * (street.edge[s] + 0.5), state, r=0.5, h=3, z=z,
                yaw=face,
            )  # fmt: skip
            if s > 0:  # and the one above the far side that the camera looks at
                street.put(
                    things.traffic_light, at, s * (street.edge[s] + 0.9), state, r=0.5, h=3, z=z
                )
        elif d.chance(0.5):
            at, yaw = x - width / 2 - 0.6, d.pick((0.0, math.pi / 2))
            street.put(things.street_name, at, s * (street.walk[s] + 0.5), r=0.5, h=3, z=z, yaw=yaw)


def boundary(street, s, x0, x1):
    """What divides a garden from the pavement."""
    d = street.dice
    y = s * (street.lot[s] + 0.3)
    x0, x1 = max(x0, -6.0), min(x1, 75.0)
    if x1 - x0 < 1.5 or not street.seen((x0 + x1) / 2, y, (x1 - x0) / 2, 1.5):
        return
    if not street.space():
        return
    kind = d.weighted({"hedge": 4, "wall": 2, "boards": 1.5, "rails": 1.5, "none": 1.5})
    f = street.place((x0 + x1) / 2, y, 0.0, 0.1)
    long = x1 - x0
    if kind == "hedge":
        h = d(0.8, 2.0)
        f.soft((0, s * 0.3, -0.1), (long, 0.8, h + 0.1), things.foliage(d), "hedge", r=0.2)
    elif kind == "wall":
        h, m = d(0.4, 1.6), things.wall_material(d, "homes")
        f.box((0, 0, -0.1), (long, 0.24, h + 0.1), m, "wall")
        f.box((0, 0, h), (long + 0.02, 0.32, 0.06), STONE, "wall")
    elif kind == "boards":
        c = d.pick(((0.16, 0.09, 0.05), (0.24, 0.2, 0.16), (0.5, 0.5, 0.48), (0.1, 0.12, 0.09)))
        m = Material("boards", c, dim(c, 0.7), dim(c, 0.2), 1.9)
        f.box((0, 0, 0.0), (long, 0.05, d(0.9, 1.8)), m, "wall")
    elif kind == "rails":
        f.box((0, 0, -0.1), (long, 0.2, d(0.3, 0.5)), STONE, "wall")
        m = things.plain((0.03, 0.04, 0.035), 0.2)
        for z in (0.55, 1.0):
            f.box((0, 0, z), (long, 0.04, 0.05), m, "wall")
        for k in range(1 + int(long / 2.2)):
            if f.away < 40:
                f.box((-long / 2 + 0.05 + 2.2 * k, 0, 0), (0.05, 0.05, 1.05), m, "wall")


def houses(street, s):
    d = street.dice
    yaw = 0.0 if s > 0 else math.pi
    city = street.kind == "city"
    style = {"city": "city", "homes": "homes"}.get(street.kind) or d.pick(("blocks", "city"))
    for x0, x1 in street.stretches(s):
        x = x0 + (0.3 if city else d(1.5, 4.0))
        end = min(x1, SHOWN) - (0.3 if city else 1.5)
        while x < end - 5:
            width = {"city": d(8, 17), "homes": d(8, 14)}.get(street.kind, d(12, 28))
            width = min(width, end - x)
            if width < 5:
                break
            depth = d(9, 12) if street.kind != "homes" else d(8, 10.5)
            back = street.front[s] + (0.0 if city else d(-0.8, 1.2))
            back = max(back, street.lot[s])
            middle = x + width / 2
            if street.space(25) and street.seen(
                middle, s * (back + depth / 2), max(width, depth) * 0.75, 9
            ):
                if d.chance(0.93 if city else 0.9):
                    put_house(street, s, middle, back, yaw, width, depth, style)
                elif not city:  # an open lot
                    grove(street, s, x, width, back)
            gap = 0.0
            if city:
                gap = 0.0 if d.chance(0.85) else d(3, 7)
            elif street.kind == "homes":
                gap = d(2.5, 7.0)
            else:
                gap = d(4, 14)
            if street.garden > 1.5:
                garden_of(street, s, x, x + width + gap, back, yaw)
            x += width + gap
    # What shows through the gaps.
    for _ in range(4):
        x, y = d(12, 110), s * (street.front[s] + d(18, 45))
        if (
            street.space(12)
            and street.seen(x, y, 8, 0)
            and all(abs(x - c) > w / 2 + 9 for c, w, *_ in street.crossings)
        ):
            if d.chance(0.5):
                t = d(7, 13)
                street.make(things.tree, street.place(x, y), things.foliage(d, 0.1), t, bare=2.5)
            else:
                street.make(
                    things.house, street.place(x, y, yaw), d(9, 15), 9, d.int(2, 3), "homes"
                )


def put_house(street, s, x, back, yaw, width, depth, style):
    d = street.dice
    f = street.place(x, s * back, yaw, 0.1)
    if street.kind == "city":
        storeys = d.int(3, 5) if d.chance(0.8) else d.int(2, 3)
        street.make(
            things.house, f, width, depth, storeys, style, shop=d.chance(0.5), flat=d.chance(0.15),
            gable=width < 9 and d.chance(0.3),
        )  # fmt: skip
    elif street.kind == "homes":
        storeys = d.weighted({2: 6, 1: 2, 3: 1})
        street.make(
            things.house, f, width, depth, storeys, style, gable=d.chance(0.35), flat=d.chance(0.07)
        )
    else:
        street.make(
            things.house, f, width, depth, d.int(3, 5), style, shop=d.chance(0.2),
            flat=style == "blocks" and d.chance(0.75),
        )  # fmt: skip


def garden_of(street, s, x0, x1, back, yaw):
    d = street.dice
    if d.chance(0.8) and street.kind != "avenue":
        boundary(street, s, x0 + d(0, 1.5), x1 - d(1.0, 3.5))
    room = back - street.lot[s]
    for _ in range(d.int(0, 3)):
        x, y = d(x0, x1), street.lot[s] + 1.0 + d(0, max(room - 2.0, 0.3))
        leaf, x_ = things.foliage(d, 0.1), d()
        if x_ < 0.45 or room < 3:
            street.put(things.bush, x, s * y, leaf, d(0.7, 1.6), r=1.2, h=1.2, z=0.1, n=8)
        elif x_ < 0.7:
            t = d(3.5, 7)
            street.put(things.tree, x, s * y, leaf, t, r=t * 0.3, h=t, z=0.1, n=14, bare=t * 0.25)
        elif x_ < 0.9:
            t = d(4, 9)
            street.put(things.conifer, x, s * y, leaf, t, r=t * 0.2, h=t, z=0.1, n=8)
        else:
            street.put(things.cypress, x, s * y, leaf, d(2, 5), r=0.8, h=4, z=0.1, n=8)
    if street.kind == "homes" and d.chance(0.35):  # a garage beside the house
        size, options = (3.1, 6.0, d(2.4, 2.8)), {"r": 4, "h": 2.6, "z": 0.1, "n": 8}
        at = s * (back + 2.0)
        street.put(things.shed, x1 - 3.2, at, *size, yaw=yaw, foot=(0.0, 0.0), **options)
        street.slab(
            x1 - 4.7, x1 - 1.7, s * street.lot[s], s * (back + 2.0), 0.116, street.paving,
            "pavement",
        )  # fmt: skip
        if d.chance(0.4) and room > 4.8:
            street.put(
                things.car, x1 - 3.2, s * (back - 0.6), r=2.5, h=1.5, z=0.11,
                yaw=s * d.pick((-1, 1)) * math.pi / 2, n=30,
            )  # fmt: skip


def grove(street, s, x, width, back):
    d = street.dice
    leaf = things.foliage(d, 0.1)
    for _ in range(d.int(2, 4)):
        t = d(6, 12)
        at = s * (back + d(1, 9))
        street.put(things.tree, x + d(0, width), at, leaf, t, r=t * 0.3, h=t, z=0.1, n=14)


def fields(street, s):
    """Country: guard rails, posts, bushes, woods, a farm."""
    d = street.dice
    edge = street.edge[s]
    if d.chance(0.35):
        f = street.place(35, s * (edge + 1.1))
        rail = things.plain((0.42, 0.43, 0.44), 0.35)
        f.box((0, 0, 0.45), (90, 0.08, 0.31), rail, "wall")
        for k in range(16):
            street.place(-4 + 4.0 * k, s * (edge + 1.18)).box(
                (0, 0, -0.1), (0.1, 0.06, 0.8), STEEL, "pole"
            )
    elif d.chance(0.7):
        for k in range(5):  # delineators
            x = 6 + 16.0 * k + d(-0.5, 0.5)
            f = street.place(x, s * (edge + 1.0))
            if street.seen(x, s * (edge + 1.0), 0.3):
                f.box((0, 0, -0.1), (0.12, 0.12, 1.1), WHITE, "pole")
                f.box(
                    (0, 0, 0.72), (0.126, 0.126, 0.18), things.plain((0.02,) * 3), "pole",
                    casts=False,
                )  # fmt: skip
    for x in (d(10, 30), d(30, 70)):
        if d.chance(0.4):
            face = 0.0 if s < 0 else math.pi
            street.put(things.sign, x, s * (edge + 1.6), r=0.5, h=2.8, yaw=face)
    beyond(street, s, edge)


def beyond(street, s, edge):
    """A field, woods, a hedge or a village."""
    d = street.dice
    wood = d.weighted({"open": 3, "wood": 3, "hedge": 2, "village": 2})
    c = hsv(d(0.11, 0.22), d(0.4, 0.75), d(0.14, 0.32))
    if wood in ("open", "village"):  # a field of another colour
        field = Material("grass", c, dim(c, 0.8), dim(c, 0.6), 5.0)
        street.slab(-20, 300, s * (edge + d(4, 8)), s * 240, -0.02, field, "grass", 0.02)
    leaf = things.foliage(d, 0.1)
    if wood == "wood":
        x = d(1, 5)
        y = edge + d(4.5, 9)
        while x < 120 and street.space(60):
            t = d(8, 15)
            w = things.foliage(d, 0.08) if d.chance(0.4) else leaf
            kind = things.conifer if d.chance(0.2) else things.tree
            street.put(kind, x, s * (y + d(0, 4)), w, t, r=t * 0.3, h=t, n=60)
            street.put(things.bush, x + 2, s * (y - d(0, 1.5)), w, d(1.5, 2.8), r=2, h=2, n=60)
            x += d(3.5, 6) * (1 + x / 60)
        f = street.place(60, s * (y + 12))
        dark = leaf._replace(c0=dim(leaf.c0, 0.5), c1=dim(leaf.c1, 0.5))
        f.soft((0, 0, -1), (150, 8, 9), dark, "tree", r=3.0)  # its depth
    elif wood == "hedge":
        f = street.place(45, s * (edge + d(2.5, 5)))
        f.soft((0, 0, -0.2), (110, 1.2, d(1.2, 2.4)), leaf, "hedge", r=0.4)
    elif wood == "village":
        yaw = 0.0 if s > 0 else math.pi
        for _ in range(d.int(2, 4)):
            x, y = d(20, 100), s * (edge + d(10, 30))
            if street.space(30) and street.seen(x, y, 9):
                street.make(
                    things.house, street.place(x, y, yaw), d(10, 16), d(8, 11), d.int(1, 2),
                    "homes", gable=d.chance(0.4),
                )  # fmt: skip
    for _ in range(d.int(1, 6)):
        t = d(5, 12)
        x, y = d(6, 100), edge + d(6, 40)
        if wood != "wood":
            street.put(
                things.tree, x, s * y, things.foliage(d, 0.1), t, r=t * 0.3, h=t, n=40,
                bare=t * 0.25,
            )  # fmt: skip


def distance(street):
    """The street's end and the horizon."""
    d = street.dice
    leaf = things.foliage(d, 0.05)
    leaf = leaf._replace(texture="leaves", period=6.0)
    span = 40 if street.kind == "city" else 150
    n = 14
    for k in range(n):
        y = (k + 0.5) / n * 2 * span - span + d(-6, 6)
        x = d(140, 200)
        w, h = d(14, 30), d(7, 14)
        if street.seen(x, y, w / 2) and street.space(2):
            street.place(x, y).ball((0, 0, -h * 0.4), (w, w, h * 1.4), leaf, "tree", casts=False)
    if d.chance(0.5) or street.kind == "country":  # hills
        for _ in range(3):
            w, h = d(250, 450), d(14, 45)  # only their tops show
            x, y = d(300, 330), d(-260, 260)
            hill = leaf._replace(period=25.0)
            if street.space(1):
                street.place(x, y).ball((0, 0, -2 * h), (150, w, 3 * h), hill, "tree", casts=False)
    if street.kind != "country" and d.chance(0.6):  # the street bends, or ends at a house
        for k in range(2):
            x, y = 128 + 14 * k, d(-8, 8) if k == 0 else d(-14, 14)
            if street.space(14):
                street.make(
                    things.house, street.place(x, y, -math.pi / 2), d(14, 22), 10, d.int(2, 4),
                    "city" if street.kind == "city" else "homes",
                )  # fmt: skip
