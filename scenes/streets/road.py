"""The road: its surface and markings, what drives and parks on it, people."""

from __future__ import annotations

import math

from ..drawing import dim
from ..scene import Material
from . import roadside as things
from .roadside import MARKING, STONE


def ground(street):
    d = street.dice
    asphalt = street.asphalt.c0
    if street.kind == "country":
        half = street.edge[1] + 0.5
        street.slab(-30, 300, -250, 250, -0.05, street.grass, "grass")
        street.slab(-30, 300, -half, half, 0.0, street.asphalt, "road")
    else:
        street.slab(-30, 300, -250, 250, 0.0, street.asphalt, "road")
        for s in (1, -1):
            for x0, x1 in street.stretches(s):
                block(street, s, x0, x1)
    # Repairs, manholes, tyre marks.
    for _ in range(d.int(0, 5)):
        x, y = d(3, 30), d(-1, 1) * street.lane * street.lanes
        m = street.asphalt._replace(c0=dim(asphalt, d(0.6, 0.9)), c1=dim(asphalt, d(0.9, 1.2)))
        long, wide = d.pick(((d(1, 3), d(0.6, 1.6)), (d(6, 20), d(0.3, 0.8))))
        street.slab(x, x + long, y, y + wide, 0.0006, m, "road", 0.01)
    for _ in range(d.int(0, 3)):
        x, y = d(4, 25), d(-1, 1) * street.lane
        if street.seen(x, y, 0.4):
            iron = Material("mosaic", dim(asphalt, 0.6), dim(asphalt, 0.8), dim(asphalt, 0.4), 0.5)
            street.place(x, y).rod((0, 0, -0.01), (0.62, 0.0107), iron, "road", casts=False)


def block(street, s, x0, x1):
    """Kerb, verge, pavement and lots of one side between two side streets."""
    edge, walk, lot = street.edge[s], street.walk[s], street.lot[s]
    street.slab(x0, x1, s * edge, s * (edge + 0.16), 0.12, STONE, "pavement")
    if street.verge:
        street.slab(x0, x1, s * (edge + 0.16), s * walk, 0.11, street.grass, "grass")
        street.slab(x0, x1, s * walk, s * lot, 0.118, street.paving, "pavement")
    else:
        street.slab(x0, x1, s * (edge + 0.16), s * lot, 0.118, street.paving, "pavement")
    behind = street.paving if street.kind == "city" else street.grass
    label = "pavement" if street.kind == "city" else "grass"
    street.slab(x0 + 1.8, x1 - 1.8, s * lot, s * (lot + 160), 0.112, behind, label)
    for a, b in ((x0, x0 + 1.8), (x1 - 1.8, x1)):  # the side streets' pavements
        street.slab(a, b, s * lot, s * (lot + 40), 0.116, street.paving, "pavement")


def line(street, y, dash, gap, width=0.12, x0=-2.0, x1=75.0):
    x = x0 + (street.dice(0, dash + gap) if gap else 0)
    while x < x1 and street.space(40):
        free = all(x + dash < c - w / 2 - 3 or x > c + w / 2 + 3 for c, w, *_ in street.crossings)
        if free or abs(y) < 0.01:
            street.slab(
                x, min(x + dash, x1), y - width / 2, y + width / 2, 0.001, MARKING, "road", 0.01
            )
        x += dash + gap


def markings(street):
    d = street.dice
    half = street.lane * street.lanes
    marked = {"homes": 0.3, "city": 0.8}.get(street.kind, 1.0)
    if d.chance(marked):
        if street.lanes > 1 and d.chance(0.5):
            line(street, 0.1, 120, 0)
            line(street, -0.1, 120, 0)
        else:
            line(street, 0.0, *d.pick(((3, 6), (4, 8), (6, 3), (120, 0))))
        for k in range(1, street.lanes):
            for s in (1, -1):
                line(street, s * k * street.lane, *d.pick(((3, 6), (6, 12))))
    for s, i in ((1, 0), (-1, 1)):
        if street.parking[i] and d.chance(0.5):
            line(street, s * half, *d.pick(((1, 1), (120, 0))), x1=45.0)
        elif street.kind in ("country", "avenue"):
            line(street, s * (half - 0.15), 120, 0)
    # A zebra crossing, or a line to stop at.
    if street.crossings and street.kind != "homes" and d.chance(0.6):
        x = street.crossings[0][0] - street.crossings[0][1] / 2 - 4.5
        if x > 5:
            street.slab(x - 1.2, x - 0.8, -half + 0.1, -0.1, 0.001, MARKING, "road", 0.01)
            if d.chance(0.6):
                y = -half + 0.3
                while y < half - 0.3:
                    street.slab(x, x + 3.2, y, y + 0.5, 0.001, MARKING, "road", 0.01)
                    y += 1.0


def put_vehicle(street, x, y, yaw, long=False, **options):
    foot = (3.1 if long else 2.5, 1.0)
    street.put(things.vehicle, x, y, r=2.8, h=1.6, n=45, yaw=yaw, foot=foot, **options)


def traffic(street):
    """What drives: ahead in the own lane, and the other way."""
    d = street.dice
    lit = d.chance(0.3)
    lorries = {"avenue": 0.06, "country": 0.08}.get(street.kind, 0.02)
    for k in range(street.lanes):
        lane = -(k + 0.5) * street.lane
        own = abs(lane - street.eye[1]) < street.lane / 2
        x = d.pick((d(9, 20), d(15, 60), d(30, 90))) if own else d(5, 50)
        for _ in range(d.int(0, 3)):
            y = lane + d(-0.25, 0.25)
            put_vehicle(street, x, y, d(-0.02, 0.02), True, lit=lit, lorries=lorries)
            x += d(9, 30)
        x = d(5, 40)
        for _ in range(d.int(0, 3)):
            y = -lane + d(-0.25, 0.25)
            put_vehicle(street, x, y, math.pi + d(-0.02, 0.02), True, lit=lit, lorries=lorries)
            x += d(9, 35)
    for x, width, left, right in street.crossings[:2]:  # waiting in a side street
        s = 1 if left and (d.chance(0.5) or not right) else -1
        if d.chance(0.35):
            at = s * (street.edge[s] + d(3.5, 6))
            put_vehicle(street, x - s * width / 4, at, -s * math.pi / 2 + d(-0.1, 0.1), lit=lit)
        elif d.chance(0.25) and x > 14:  # crossing
            put_vehicle(street, x, d(-3, 3), d.pick((-1, 1)) * math.pi / 2 + d(-0.3, 0.3), lit=lit)
    if d.chance(0.3) and street.kind != "country":
        side = d.pick((-1, 1))
        y = side * (street.lane * street.lanes - d(0.5, 0.8))
        x = d(8, 35)
        street.put(things.cyclist, x, y, yaw=0 if side < 0 else math.pi, foot=(0.9, 0.35))


def parked(street, s):
    d = street.dice
    width = street.parking[0 if s > 0 else 1]
    on_kerb = street.kind == "homes" and not width and d.chance(0.35)
    if not width and not on_kerb:
        return
    y = street.edge[s] - width / 2 if width else street.edge[s] - 0.45
    full = d(0.35, 0.95)
    for x0, x1 in street.stretches(s):
        x = max(x0 + 4, 3.5 if s > 0 else 5.5) + d(0, 3)
        while x < min(x1 - 4, 65 if s > 0 else 50):
            is_van = d.chance(0.1)
            x += 0.6 * is_van
            if d.chance(full):
                yaw = (0.0 if (s < 0) ^ d.chance(0.12) else math.pi) + d(-0.025, 0.025)
                at = s * (y + d(-0.08, 0.08))
                put_vehicle(street, x, at, yaw, is_van, vans=float(is_van))
            x += d(5.4, 6.3) + 0.6 * is_van


def people(street):
    d = street.dice
    if street.kind == "country":
        return
    for s in (1, -1):
        wide = max(street.pavement - 0.8, 0.2)
        for _ in range(d.int(0, {"city": 5, "homes": 2}.get(street.kind, 3))):
            x = d(4, 12) if d.chance(0.3) else d(8, 55)
            y = street.walk[s] + 0.4 + d(0, wide)
            yaw = d.pick((0.0, math.pi)) + d(-0.3, 0.3)
            street.put(
                things.person, x, s * y, r=0.6, h=1.7, yaw=yaw, z=0.12, walking=d.chance(0.8)
            )
            if d.chance(0.3):
                street.put(
                    things.person, x + d(-0.3, 0.3), s * (y + 0.6), r=0.6, h=1.7, yaw=yaw, z=0.12
                )
    if d.chance(0.25):  # crossing the road
        yaw = d.pick((-1, 1)) * math.pi / 2
        street.put(
            things.person, d(12, 35), d(-1, 1) * street.lane, r=0.6, h=1.7, yaw=yaw + d(-0.2, 0.2)
        )
