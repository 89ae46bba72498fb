"""What stands in each kind of room, and its lamps."""

from __future__ import annotations

import math

from ..drawing import dim, mix
from ..scene import Light, Material
from . import furniture as things
from .openings import walls_of

SMALL = {
    "chair": things.chair, "nightstand": things.nightstand, "stool": things.stool,
    "lamp": things.floor_lamp, "boxes": things.boxes, "toys": things.toys, "bin": things.bin_,
}  # fmt: skip
EXTRAS = (
    "bookshelf", "bookshelf", "dresser", "armchair", "chair", "chair", "wardrobe", "nightstand",
    "stool", "chest", "bench", "plant", "plant", "basket", "lamp", "boxes", "toys", "bin",
)  # fmt: skip
EXTRAS_WET = ("stool", "basket", "bin", "plant", "chair", "bench", "bookshelf")


def ceiling_lamp(room, x, y, power):
    d, p, h = room.dice, room.palette, room.h
    f = room.base.at(x, y)
    warm = d()
    colour = mix((1.0, 0.78, 0.52), (0.95, 0.98, 1.0), warm if room.kind != "office" else 0.8)
    on = power > 0
    m = p.glowing(colour, 2.6) if on else p.paint((0.7,) * 3)
    kind = d.pick(("dome", "pendant", "bulb", "panel", "spots"))
    if room.kind in ("office", "classroom", "corridor"):
        kind = "panel"
    z = h - 0.12
    if kind == "dome":
        f.ball((0, 0, h - 0.1), (0.38, 0.38, 0.16), m, "lamp", casts=False)
        f.rod((0, 0, h - 0.03), (0.3, 0.03), p.metal, "lamp", casts=False)
    elif kind == "pendant":
        drop = d(0.45, 0.75)
        z = h - drop - 0.05
        f.rod((0, 0, h - drop), (0.012, drop), p.dark, "lamp", casts=False)
        f.rod((0, 0, h - drop), (d(0.35, 0.5), 0.2), m, "lamp", top=d(0.3, 0.8), casts=False)
    elif kind == "bulb":
        drop = d(0.3, 0.6)
        z = h - drop
        f.rod((0, 0, h - drop), (0.012, drop), p.dark, "lamp", casts=False)
        r = d(0.16, 0.35)
        f.ball((0, 0, h - drop - r), (r, r, r), m, "lamp", casts=False)
        z -= r
    elif kind == "panel":
        f.box(
            (0, 0, h - 0.06), (*((1.2, 0.3) if d.chance(0.5) else (0.6, 0.6)), 0.07), m, "lamp",
            casts=False,
        )  # fmt: skip
    else:
        f.box((0, 0, h - 0.05), (0.9, 0.06, 0.05), p.metal, "lamp", casts=False)
        for k in (-0.3, 0, 0.3):
            f.rod((k, 0, h - 0.17), (0.1, 0.1), m, "lamp", top=0.6, casts=False)
    if on:
        room.lights.append(Light(
            (x, y, z), dim(colour, power), radius=0.5, focus=0.25, shadow=2.4, beyond=1.0,
            name=room.scene.current,
        ))  # fmt: skip


def furnish(room):
    d, p = room.dice, room.palette
    KINDS[room.kind](room)
    fill(room, d(0.25, 0.5))
    # Pictures, shelves and switches on what is left of the walls.
    for _ in range(d.int(2, 7)):
        w, h = d(0.3, 1.0), d(0.3, 0.75)
        z = d(1.25, 1.5)
        if room.kind == "bathroom":
            break
        room.put(things.framed, room.on_wall(w, z, z + h), w, h, z)
    if d.chance(0.3) and room.kind not in ("bathroom", "corridor"):
        f = room.on_wall(0.8, 1.3, 1.8)
        if f:
            m = p.lacquer()
            for z in (1.35, 1.7)[: d.int(1, 2)]:
                f.box((0, 0.11, z), (0.8, 0.22, 0.025), m, "shelf")
                room.put(things.fill_shelf, f.at(0, 0, z + 0.025), 0.76, 0.3, 0.22)
    for i in range(4):
        for _, b, z0, _ in room.openings[i]:
            if (
                z0 < 0
                and room.length(i) - b > 0.4
                and room.free_wall(i, b + 0.12, b + 0.2, 1.05, 1.2)
            ):
                room.wall(i, b + 0.17).box(
                    (0, 0.006, 1.08), (0.08, 0.012, 0.08), p.white, "object", casts=False
                )
    if d.chance(0.25):
        f = room.on_floor(0.5, 0.4, 0.4)
        if f:
            room.put(d.pick((things.boxes, things.toys, things.bin_, things.stool)), f)


def fill(room, share):
    """More furniture along the walls until it covers a share of the floor."""
    d, p = room.dice, room.palette
    wet = room.kind in ("bathroom", "corridor")
    for _ in range(2 if wet else 12):
        covered = sum((c - a) * (e - b) for a, b, c, e, h in room.taken if h > 0)
        if covered > share * room.w * room.d or len(room.scene.solids) > 330:
            return
        name = d.pick(EXTRAS_WET if wet else EXTRAS)
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
        f = room.against_wall(w, depth, h, corner=0.5, tries=4)
        if not f:
            continue
        if name == "bookshelf":
            room.put(things.bookshelf, f, w, h)
            if h < 1.4:
                room.put(things.clutter, f.at(0, 0.15, h), w - 0.15, 0.15, d.int(1, 3), tall=0.4)
        elif name in ("dresser", "wardrobe"):
            room.put(things.dresser if name == "dresser" else things.wardrobe, f, w)
        elif name == "armchair":
            room.put(things.sofa, f, 1)
        elif name == "chest":
            m = p.lacquer()
            f.box((0, 0.24, 0), (w, 0.44, 0.4), m, "cabinet")
            f.box((0, 0.24, 0.4), (w + 0.02, 0.46, 0.05), m, "cabinet")
            room.put(things.clutter, f.at(0, 0.24, 0.45), w - 0.2, 0.2, d.int(0, 2), tall=0.35)
        elif name == "bench":
            room.put(things.table, f.at(0, 0.21), w, 0.38, 0.45, "chair")
        elif name == "plant":
            room.put(things.plant, f.at(0, 0.24), d(0.7, 1.5), d(0.28, 0.4))
        elif name == "basket":
            c = (d(0.3, 0.5), d(0.2, 0.35), d(0.1, 0.2))
            m = Material("weave", c, dim(c, 0.5), dim(c, 0.6), 0.5)
            f.rod((0, 0.22, 0), (0.34, d(0.3, 0.55)), m, "object", top=1.2)
            f.ball((0, 0.22, 0.3), (0.36, 0.36, 0.24), p.cloth(), "object")
        else:
            room.put(SMALL[name], f)


def rug(room, x, y, w, length, yaw=0.0):
    d, p = room.dice, room.palette
    kind = d.pick(("rug", "rug_bands", "carpet", "plaid", "rug"))
    m = Material(
        kind, p.colour((0.2, 0.8), (0.08, 0.5)), p.colour((0.1, 0.7), (0.2, 0.75)),
        p.colour((0.2, 0.8), (0.1, 0.6)), 0.8,
    )  # fmt: skip
    f = room.base.at(x, y, 0, yaw)
    if kind != "rug":
        f.box((0, 0, 0), (w, length, 0.012), m, "rug", casts=False)
    else:  # a texture that covers it once lies in the x–y plane here
        f.box((0, 0, 0), (w, length, 0.012), m, "rug", casts=False, stretch="floor")


def corner_things(room, n):
    d = room.dice
    for _ in range(n):
        kind = d.pick(("plant", "lamp", "bin", "boxes", "plant", "stool"))
        f = room.against_wall(0.45, 0.45, 1.2, corner=0.8)
        if not f:
            continue
        if kind == "plant":
            room.put(things.plant, f.at(0, 0.24), d(0.7, 1.5), d(0.28, 0.4))
        else:
            room.put(SMALL[kind], f)


def bedroom(room):
    d = room.dice
    w = d.pick((0.95, 1.4, 1.65, 1.8))
    side = 0.55
    f = room.against_wall(w + 2 * side, 2.15, 0.95, front=0.4, corner=0.1, tries=14)
    if f:
        room.put(things.bed, f, w)
        for s in (-1, 1):
            if d.chance(0.8):
                room.put(things.nightstand, f.at(s * (w / 2 + 0.28), 0))
        if d.chance(0.5):
            x, y, _ = f.world(0, 1.7)
            rug(room, x, y, w + 1.2, 1.4, f.yaw)
        i, s, width = room.last
        if d.chance(0.6):
            h = d(0.4, 0.7)
            room.put(things.framed, room.wall(i, s + width / 2), d(0.6, 1.3), h, 1.35)
            room.walls[i].append((s + 0.2, s + width - 0.2, 1.3, 2.1))
    else:
        f = room.against_wall(1.0, 2.15, 0.95, tries=20)
        if f:
            room.put(things.bed, f, 0.95)
    ww = d(1.0, 2.0)
    room.put(things.wardrobe, room.against_wall(ww, 0.65, 2.15, front=0.4, tries=10), ww)
    if d.chance(0.7):
        f = room.against_wall(1.0, 0.5, 0.95, front=0.4)
        if f:
            room.put(things.dresser, f)
            if d.chance(0.4):
                room.put(things.television, f.at(0, 0.2, 0.97), 0.8)
    if d.chance(0.5):
        workplace(room)
    if d.chance(0.4):
        room.put(things.bookshelf, room.against_wall(0.9, 0.32, 1.9, front=0.3))
    corner_things(room, d.int(0, 2))


def workplace(room):
    d = room.dice
    w = d(1.1, 1.5)
    f = room.against_wall(w, 0.7, 0.76, front=0.75)
    if f:
        room.put(things.desk, f, w)
        i, s, _ = room.last
        g = room.facing(i, s + w / 2, 0.95, 0.5, 0.5, 1.0)
        if g:
            maker = things.office_chair if d.chance(0.6) else things.chair
            room.put(maker, g.at(0, 0.28, 0, math.pi + d(-0.5, 0.5)))


def living(room):
    d = room.dice
    seats = d.int(2, 3)
    w = seats * 0.7 + 0.42
    f = room.against_wall(w, 0.97, 0.85, front=1.2, corner=0.15, tries=14)
    if f:
        room.put(things.sofa, f, seats)
        i, s, _ = room.last
        room.put(things.coffee_table, room.facing(i, s + w / 2, 1.65, 1.2, 0.7, 0.45))
        if d.chance(0.65):
            x, y, _ = f.world(0, 1.6)
            rug(room, x, y, d(1.8, 2.4), d(1.3, 1.7), f.yaw)
        opposite = (i + 2) % 4
        f2 = room.against_wall(1.4, 0.45, 0.6, walls=[opposite], front=0.5, corner=0.1)
        if f2:
            room.put(things.tv_stand, f2)
            j, s2, ww = room.last
            room.walls[j].append((s2, s2 + ww, 0.6, 1.5))
        for side in (-1, 1):
            if d.chance(0.5):
                g = room.facing(i, s + w / 2 + side * (w / 2 + 0.25), 1.75, 1.05, 1.05, 0.85)
                if g:
                    a = side * (math.pi / 2 + d(-0.2, 0.2))
                    room.put(things.sofa, g.at(0, 0, 0, a).at(0, -0.46), 1)
    for _ in range(d.int(1, 2)):
        w = d(0.7, 1.2)
        f = room.against_wall(w, 0.34, 2.0, front=0.3)
        if f:
            room.put(things.bookshelf, f, w, d(1.2, min(2.1, room.h - 0.2)))
    if d.chance(0.45):
        room.put(things.dining, room.on_floor(2.3, 2.0, 0.75, margin=0.1))
    if d.chance(0.4):
        room.put(things.dresser, room.against_wall(1.1, 0.5, 1.0, front=0.3), 1.1)
    corner_things(room, d.int(1, 3))


def kitchen(room):
    d = room.dice
    i = d.pick([k for k in range(4) if room.length(k) > 2.2] or [0])
    for _ in range(5):
        w = min(d(1.8, 3.4), room.length(i) - 0.05)
        f = room.against_wall(w, 0.63, 0.95, walls=[i], front=0.6, corner=1.0, tries=3)
        if f:
            room.put(things.kitchen_run, f, w)
            j, s, _ = room.last
            if room.free_wall(j, s, s + w, 1.4, 2.2):
                if d.chance(0.8):
                    part = w if d.chance(0.3) else w * d(0.3, 0.6)
                    room.put(things.wall_cabinets, room.wall(j, s + part / 2).at(0, 0.012), part)
                room.walls[j].append((s, s + w, 1.0, 2.2))
            break
        i = (i + 1) % 4
    room.put(things.fridge, room.against_wall(0.7, 0.7, 1.95, front=0.5, corner=0.6, tries=12))
    if d.chance(0.4):
        room.put(things.oven_tower, room.against_wall(0.62, 0.66, 2.05, front=0.5, corner=0.6))
    if d.chance(0.75):
        f = room.on_floor(2.2, 1.9, 0.75, margin=0.1, tries=12)
        if f:
            room.put(things.dining, f)
        else:
            f = room.on_floor(1.0, 1.0, 0.75, margin=0.1, tries=12)
            if f:
                room.put(things.round_table, f, 0.8)
                room.put(things.clutter, f.at(0, 0, 0.74), 0.4, 0.3, 2)
    f = room.against_wall(1.0, 0.45, 0.95, front=0.3)
    if f and d.chance(0.6):
        room.put(things.dresser, f)
    corner_things(room, d.int(0, 2))


def office(room):
    d = room.dice
    for _ in range(d.int(1, 3)):
        workplace(room)
    for _ in range(d.int(1, 3)):
        w = d(0.8, 1.0)
        h = d.pick((1.0, 1.9))
        f = room.against_wall(w, 0.36, h, front=0.4)
        if f:
            if d.chance(0.65):
                room.put(things.bookshelf, f, w, h)
            else:
                room.put(things.cabinet, f, w, 0.36, h, 4, 1)
    if d.chance(0.4):
        room.put(things.dining, room.on_floor(2.0, 1.9, 0.75, margin=0.2))
    if d.chance(0.35):
        room.put(things.blackboard, room.on_wall(1.6, 0.85, 2.1), 1.5)
    corner_things(room, d.int(1, 2))


def bathroom(room):
    d = room.dice
    room.put(things.bathtub, room.against_wall(1.7, 0.78, 0.6, corner=1.0, tries=16))
    room.put(things.washstand, room.against_wall(0.85, 0.5, 1.95, front=0.4, tries=16))
    room.put(things.toilet, room.against_wall(0.55, 0.72, 0.8, front=0.3, tries=16))
    room.put(things.towel, room.on_wall(0.6, 0.7, 1.3))
    f = room.against_wall(0.5, 0.35, 1.7)
    if f and d.chance(0.6):
        room.put(things.bookshelf, f, 0.5, 1.5, 0.3)
    if d.chance(0.6):
        f = room.on_floor(0.9, 0.6, 0.0, margin=0.2)
        if f:
            rug(room, f.x, f.y, 0.8, 0.5)
            room.taken.pop()
    corner_things(room, d.int(0, 1))


def classroom(room):
    d = room.dice
    w = d(2.2, 3.2)
    f = room.on_wall(w, 0.85, 2.1, walls=[0], tries=10) or room.on_wall(2.0, 0.85, 2.1)
    if f:
        room.put(things.blackboard, f, w if f.yaw == 0 else 2.0)
    g = room.on_floor(1.5, 0.8, 0.76, margin=0.9, tries=4)
    if g:
        room.put(things.desk, g.at(0, -0.35), 1.4)
    y = 2.4
    while y < room.d - 0.9:
        n = int((room.w - 0.8) / 1.15)
        for k in range(n):
            x = room.w / 2 + (k - (n - 1) / 2) * 1.15
            box = (x - 0.4, y - 0.35, x + 0.4, y + 0.6)
            if d.chance(0.92) and room.free_floor(box, 0.0) and len(room.scene.solids) < 380:
                room.taken.append((*box, 0.8))
                at = room.base.at(x + d(-0.05, 0.05), y + d(-0.05, 0.05), 0, d(-0.06, 0.06))
                room.put(things.student_desk, at)
        y += d(1.25, 1.5)
    room.put(things.bookshelf, room.against_wall(1.0, 0.36, 1.9, front=0.3), 1.0)
    corner_things(room, d.int(0, 2))


def corridor(room):
    d = room.dice
    if d.chance(0.6):
        rug(room, room.w / 2, room.d / 2, min(0.9, room.w * 0.5), room.d * d(0.4, 0.8))
    if room.w > 1.5:
        for _ in range(d.int(0, 3)):
            kind = d.pick(("console", "shelf", "chair", "plant"))
            f = room.against_wall(0.9, 0.34, 1.0, walls=[1, 3], front=0.6)
            if f and kind == "console":
                room.put(things.cabinet, f, 0.85, 0.32, 0.8, 2, 2)
                room.put(things.clutter, f.at(0, 0.16, 0.8), 0.6, 0.15, 2)
            elif f and kind == "shelf":
                room.put(things.bookshelf, f, 0.85, 1.0, 0.3)
            elif f and kind == "chair":
                room.put(things.stool, f)
            elif f:
                room.put(things.plant, f.at(0, 0.2), 1.2, 0.3)
    if d.chance(0.5):
        room.put(things.coats, room.on_wall(1.0, 0.6, 1.8, walls=[1, 3]), 0.9)


def hall(room):
    d = room.dice
    for _ in range(d.int(1, 3)):
        f = room.on_floor(1.3, 1.3, 0.5, margin=0.5)
        if f:
            what = d.pick(("table", "sofa", "plant"))
            if what == "table":
                room.put(things.coffee_table, f)
            elif what == "sofa":
                room.put(things.sofa, f.at(0, -0.4), 1)
            else:
                room.put(things.plant, f, 1.5, 0.4)
    room.put(things.sofa, room.against_wall(2.0, 0.95, 0.85, front=0.5), 2)
    room.put(things.bookshelf, room.against_wall(1.0, 0.36, 1.9, front=0.3), 1.0)
    if d.chance(0.5):
        rug(room, room.w / 2, room.d / 2, 2.0, 2.8)
    room.put(things.dresser, room.against_wall(1.1, 0.5, 1.0, front=0.4), 1.1)
    room.put(things.coats, room.on_wall(1.0, 0.6, 1.8), 0.9)
    corner_things(room, d.int(1, 3))


KINDS = {
    "bedroom": bedroom,
    "living": living,
    "kitchen": kitchen,
    "office": office,
    "bathroom": bathroom,
    "classroom": classroom,
    "corridor": corridor,
    "hall": hall,
}


def build(room):
    d = room.dice
    walls_of(room)
    daylit = bool(room.lights)
    power = d(2.2, 3.6) * (room.w * room.d / 14) ** 0.5
    if daylit and d.chance(0.6):
        power *= d(0.15, 0.5)
    if daylit and d.chance(0.25):
        power = 0.0
    n = max(1, round(max(room.w, room.d) / 4.5))
    tall = room.d > room.w
    for k in range(n):
        f = (k + 0.5) / n
        x, y = (room.w / 2, f * room.d) if tall else (f * room.w, room.d / 2)
        with room.scene.thing("ceiling lamp"):
            ceiling_lamp(
                room, x + d(-0.3, 0.3) * (n == 1), y + d(-0.3, 0.3) * (n == 1), power / n**0.7
            )
    furnish(room)
    lamps = room.scene.lights[:3]  # those of table and floor lamps
    room.scene.lights = room.lights[:4] + room.extra_lights + lamps
    # Light that has bounced: tinted by floor and walls.
    total = sum(sum(q.colour) / 3 * (0.001 if q.colour[0] > 50 else 1) for q in room.scene.lights)
    size = room.w * room.d
    level = 0.04 + d(0.26, 0.42) * total / (size + 6)
    if daylit:
        level *= 1.15
    floor, wall = room.surfaces.floor.c0, room.surfaces.paint.c0
    room.scene.ambient_up = tuple(level * x for x in mix(wall, (0.8, 0.8, 0.8), 0.5))
    room.scene.ambient_down = tuple(
        0.85 * level * x for x in mix(mix(floor, wall, 0.4), (0.5,) * 3, 0.3)
    )
    return room
