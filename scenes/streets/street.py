"""`streets`: drives made up and rendered by the suite itself, seen by KITTI's camera and lidar.

As in `rooms`, a picture is a function of (split, index) alone: a `Street` is laid out by rolling
dice around a car that drives in its right lane, and only what that car's camera can see (or what
casts shadows there) is built.

World: x along the street, y to the left, z up; the road's surface is z = 0.
"""

from __future__ import annotations

import math

from ..drawing import Dice, dim, hsv, mix
from ..render import MAX_SOLIDS, Light, Material, Sky
from ..world import World, pose
from .roadside import (
    LABELS,
    MARKING,
    STEEL,
    STONE,
    WHITE,
    Place,
    View,
    bench,
    bicycle,
    bin_,
    bollard,
    bush,
    car,
    column,
    conifer,
    cyclist,
    cypress,
    foliage,
    house,
    junction_box,
    litter_bin,
    old_lamp,
    person,
    plain,
    shed,
    shelter,
    sign,
    street_lamp,
    street_name,
    traffic_light,
    tree,
    vehicle,
    wall_material,
)
from .sensor import CAMERA, CAMERA_HEIGHT, MAX_DEPTH, lidar

RENDERER_VERSION = 2  # raise it when pictures change: caches are keyed by it

SKY = LABELS.index("sky")

_FAR = 500.0  # beyond the ground's end and the sun
_SUN = 400.0  # its distance; the shadow maps' cones are as good as parallel
_SPLIT = 14.0  # metres ahead up to which the first, finer shadow map reaches
_SHOWN = 130.0  # metres ahead up to which the street is laid out


# ---------------------------------------------------------------------------------------- streets

_OFTEN = {"homes": 4, "city": 3.2, "avenue": 1.6, "country": 1.4}


def sunlight(towards, colour) -> list[Light]:
    """The sun, a unit vector away, as two lights from one place: what is near the camera needs a
    finer shadow map than what is far."""
    position = tuple(c + _SUN * x for c, x in zip((25.0, 0.0, 0.0), towards, strict=True))
    # So large a radius that the light hardly falls off with distance.
    radius = 10 * _SUN
    lights = []
    for centre, wide, lo, hi in (
        ((6.5, 0.0, 0.5), 14.0, -_SUN, _SPLIT),
        ((43.0, 0.0, 3.0), 33.0, _SPLIT, _SUN),
    ):
        axis = tuple(c - p for c, p in zip(centre, position, strict=True))
        lights.append(
            Light(
                position,
                dim(colour, _SUN**2 + radius**2),
                axis=axis,
                radius=radius,
                shadow=wide / math.hypot(*axis),
                zone=((lo, -_SUN, -_SUN), (hi, _SUN, _SUN)),
                fade=0.04,
            )
        )
    return lights


class Street:
    """A straight street, its camera at x = 0, and what can be seen from there."""

    def __init__(self, dice):
        self.dice = d = dice
        self.kind = d.weighted(_OFTEN)
        self.scene = View()
        self.layout()
        y = -self.lane * (0.5 if self.lanes == 1 else d.pick((0.5, 1.5))) + d(-0.35, 0.35)
        self.eye = (0.0, y)
        self.scene.eye = self.eye
        self.taken = [(0.0, y, 4.0, 1.0)]  # (x, y, half sizes) on the ground; first the own car
        self.heading = d(-0.03, 0.03) if d.chance(0.8) else d(-0.12, 0.12)
        self.camera = pose(
            (0.0, y, CAMERA_HEIGHT + d(-0.03, 0.03)),
            self.heading,
            d(-0.02, 0.012),
            d(-0.015, 0.015),
        )
        self.weather()

    # ------------------------------------------------------------------ what is seen

    def seen(self, x, y, r, h=0.0):
        """May something at (x, y) of radius r and height h be seen, or its shadow?"""
        ca, sa = math.cos(self.heading), math.sin(self.heading)
        reach = min(h, 12.0)
        for k in (0.0, 0.5, 1.0) if h and self.shade else (0.0,):
            dx = x + k * reach * self.shade[0] - self.eye[0] if k else x - self.eye[0]
            dy = y + k * reach * self.shade[1] - self.eye[1] if k else y - self.eye[1]
            ahead, aside = dx * ca + dy * sa, abs(dy * ca - dx * sa)
            if ahead > -r and aside < 0.9 * max(ahead, 0) + 1.4 * r + 1.0:
                if k == 0 or ahead < 60:
                    return True
        return False

    def space(self, n=30):
        return len(self.scene.kind) + n < MAX_SOLIDS

    def place(self, x, y, yaw=0.0, z=0.0):
        return Place(self.scene, x, y, z, yaw)

    def put(
        self, make, x, y, *arguments, r=1.0, h=2.0, yaw=0.0, z=0.0, n=30, foot=(0.3, 0.3), **options
    ):
        """`make` something there, if it is seen, nothing else stands there (`foot`: half its
        footprint) and there is room for n more solids."""
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        a, b = c * foot[0] + s * foot[1], s * foot[0] + c * foot[1]
        if not (self.space(n) and self.seen(x, y, r, h)):
            return
        if any(abs(x - p) < a + q and abs(y - u) < b + v for p, u, q, v in self.taken):
            return
        self.taken.append((x, y, a, b))
        make(self.place(x, y, yaw, z), self.dice, *arguments, **options)

    def slab(self, x0, x1, y0, y1, top, material, label, thick=0.2, world_uv=True):
        """A flat piece of ground."""
        if x1 - x0 < 0.02 or not self.seen(
            (x0 + x1) / 2, (y0 + y1) / 2, math.hypot(x1 - x0, y1 - y0) / 2
        ):
            return
        self.place((x0 + x1) / 2, (y0 + y1) / 2).box(
            0, 0, top - thick, x1 - x0, abs(y1 - y0), thick, material, label,
            world_uv=world_uv, casts=False,
        )  # fmt: skip

    # ------------------------------------------------------------------ plan

    def layout(self):
        d = self.dice
        kind = self.kind
        self.lanes = 1
        self.parking = (0.0, 0.0)  # width of the parking lanes, left and right
        if kind == "homes":
            self.lane = d(3.0, 3.3)
            self.parking = tuple(d(1.9, 2.1) if d.chance(0.6) else 0.0 for _ in range(2))
            self.pavement, self.garden = d(1.5, 2.4), d(2.5, 7.0)
        elif kind == "city":
            self.lane = d(3.0, 3.5)
            self.lanes = 2 if d.chance(0.2) else 1
            self.parking = tuple(d(2.0, 2.3) if d.chance(0.75) else 0.0 for _ in range(2))
            self.pavement, self.garden = d(2.4, 4.5), d.pick((0.0, 0.0, d(0.5, 2.5)))
        elif kind == "avenue":
            self.lane, self.lanes = d(3.25, 3.6), 2
            self.parking = tuple(d(2.1, 2.3) if d.chance(0.35) else 0.0 for _ in range(2))
            self.pavement, self.garden = d(2.5, 4.0), d(3.0, 12.0)
        else:
            self.lane = d(3.25, 3.75)
            self.pavement, self.garden = 0.0, d(6.0, 20.0)
        # A strip of grass with trees between the road and the pavement.
        self.verge = 0.0
        if kind in ("avenue", "homes") and d.chance(0.6 if kind == "avenue" else 0.2):
            self.verge = d(1.6, 2.8)
        half = self.lane * self.lanes
        self.edge = {1: half + self.parking[0], -1: half + self.parking[1]}  # the kerb's |y|
        self.walk = {s: e + self.verge for s, e in self.edge.items()}
        self.lot = {s: e + self.pavement for s, e in self.walk.items()}
        self.front = {s: e + self.garden for s, e in self.lot.items()}
        # Side streets: (middle, width, to the left, to the right).
        self.crossings = []
        x = d(8.0, 60.0)
        while x < _SHOWN and kind != "country":
            both = d.chance(0.5)
            left = both or d.chance(0.5)
            self.crossings.append((x, d(5.5, 8.0), left, both or not left))
            x += d(35.0, 80.0)

    def stretches(self, s):
        """Intervals of x between the side streets of one side."""
        at = -16.0
        for x, width, left, right in self.crossings:
            if left if s > 0 else right:
                yield at, x - width / 2
                at = x + width / 2
        yield at, _SHOWN + 20

    # ------------------------------------------------------------------ weather

    def weather(self):
        d = self.dice
        s = self.scene
        kind = d.weighted({"sunny": 5, "fair": 3, "overcast": 3, "low": 1.5})
        azimuth = d(-math.pi, math.pi)
        height = {"low": d(0.16, 0.35), "overcast": 1.35}.get(kind, d(0.4, 1.05))
        sun = (
            math.cos(height) * math.cos(azimuth),
            math.cos(height) * math.sin(azimuth),
            math.sin(height),
        )
        haze = d(500.0, 2500.0) if kind != "overcast" else d(250.0, 900.0)
        warm = 1 - min(1.0, height / 0.5)  # the lower, the redder
        if kind == "overcast":
            g = d(0.75, 1.05)
            power, colour = d(0.35, 0.75), (1.0, 1.0, 1.0)
            up, down = (g * 0.95, g, g * 1.06), (g * 0.4,) * 3
            s.sky = Sky(
                (g * 0.85, g * 0.9, g * 0.97), (g * 1.15,) * 3, sun, (0.0,) * 3, d(0.5, 1.0),
                (g * 1.05,) * 3, (d(0, 5), d(0, 5)), haze,
            )  # fmt: skip
        else:
            power = {"sunny": d(2.3, 3.0), "fair": d(1.5, 2.6), "low": d(1.6, 2.3)}[kind]
            colour = (1.0, 0.95 - 0.28 * warm, 0.86 - 0.5 * warm)
            g = d(0.26, 0.42)
            up, down = (g * 0.85, g, g * 1.25), (g * 0.62, g * 0.58, g * 0.52)
            blue = d(0.5, 1.0)
            clouds = d(0.35, 0.75) if kind == "fair" else d(0.0, 0.4)
            zenith = (0.52 - 0.36 * blue, 0.72 - 0.28 * blue, 1.0 - 0.1 * blue)
            horizon = mix((0.85, 0.95, 1.08), (1.15, 0.9, 0.7), warm)
            glow = dim((1.0, 0.85, 0.65), d(0.5, 1.2))
            s.sky = Sky(
                zenith, horizon, sun, glow, clouds, (1.15, 1.15, 1.15), (d(0, 5), d(0, 5)), haze
            )
        s.ambient_up, s.ambient_down = up, down
        # Where the shadow of something falls, per metre of its height.
        k = min(math.cos(height) / math.sin(height), 4.0)
        self.shade = (-k * math.cos(azimuth), -k * math.sin(azimuth))
        s.lights += sunlight(sun, dim(colour, power))

    # ------------------------------------------------------------------ build

    def build(self):
        self.ground()
        self.markings()
        self.traffic()
        for s in (1, -1):
            self.parked(s)
        self.people()
        for s in (1, -1):
            if self.kind == "country":
                self.fields(s)
            else:
                self.houses(s)
        self.distance()
        for s in (1, -1):
            self.kerbside(s)
        return self

    def ground(self):
        d = self.dice
        tone = d(0.055, 0.15)
        asphalt = (tone, tone, tone * d(0.97, 1.06))
        self.asphalt = Material(
            "asphalt", asphalt, dim(asphalt, d(1.3, 1.7)), dim(asphalt, 0.45), d(2.5, 4.0), 0.04
        )
        c = hsv(d(0.2, 0.29), d(0.5, 0.75), d(0.1, 0.22))
        self.grass = Material("grass", dim(c, 0.6), c, mix(c, (0.2, 0.16, 0.07), 0.6), 2.5)
        c = (d(0.2, 0.34),) * 3
        c = mix(c, (0.32, 0.22, 0.17), d(0, 0.5))
        paving = d.weighted({"tile": 4, "subway": 2, "speckle": 1, "mosaic": 1})
        period = {"tile": d(1.2, 2.0), "subway": 1.6, "mosaic": 1.8}.get(paving, 1.5)
        self.paving = Material(paving, c, dim(c, 0.8), dim(c, 0.55), period)
        if self.kind == "country":
            half = self.edge[1] + 0.5
            self.slab(-30, 300, -250, 250, -0.05, self.grass, "grass")
            self.slab(-30, 300, -half, half, 0.0, self.asphalt, "road")
        else:
            self.slab(-30, 300, -250, 250, 0.0, self.asphalt, "road")
            for s in (1, -1):
                for x0, x1 in self.stretches(s):
                    self.block(s, x0, x1)
        # Repairs, manholes, tyre marks.
        for _ in range(d.int(0, 5)):
            x, y = d(3, 30), d(-1, 1) * self.lane * self.lanes
            m = self.asphalt._replace(c0=dim(asphalt, d(0.6, 0.9)), c1=dim(asphalt, d(0.9, 1.2)))
            long, wide = d.pick(((d(1, 3), d(0.6, 1.6)), (d(6, 20), d(0.3, 0.8))))
            self.slab(x, x + long, y, y + wide, 0.0006, m, "road", 0.01)
        for _ in range(d.int(0, 3)):
            x, y = d(4, 25), d(-1, 1) * self.lane
            if self.seen(x, y, 0.4):
                iron = Material(
                    "mosaic", dim(asphalt, 0.6), dim(asphalt, 0.8), dim(asphalt, 0.4), 0.5
                )
                self.place(x, y).rod(0, 0, -0.01, 0.62, 0.0107, iron, "road", casts=False)

    def block(self, s, x0, x1):
        """Kerb, verge, pavement and lots of one side between two side streets."""
        edge, walk, lot = self.edge[s], self.walk[s], self.lot[s]
        self.slab(x0, x1, s * edge, s * (edge + 0.16), 0.12, STONE, "pavement")
        if self.verge:
            self.slab(x0, x1, s * (edge + 0.16), s * walk, 0.11, self.grass, "grass")
            self.slab(x0, x1, s * walk, s * lot, 0.118, self.paving, "pavement")
        else:
            self.slab(x0, x1, s * (edge + 0.16), s * lot, 0.118, self.paving, "pavement")
        behind = self.paving if self.kind == "city" else self.grass
        label = "pavement" if self.kind == "city" else "grass"
        self.slab(x0 + 1.8, x1 - 1.8, s * lot, s * (lot + 160), 0.112, behind, label)
        for a, b in ((x0, x0 + 1.8), (x1 - 1.8, x1)):  # the side streets' pavements
            self.slab(a, b, s * lot, s * (lot + 40), 0.116, self.paving, "pavement")

    # ------------------------------------------------------------------ on the road

    def line(self, y, dash, gap, width=0.12, x0=-2.0, x1=75.0):
        x = x0 + (self.dice(0, dash + gap) if gap else 0)
        while x < x1 and self.space(40):
            free = all(x + dash < c - w / 2 - 3 or x > c + w / 2 + 3 for c, w, *_ in self.crossings)
            if free or abs(y) < 0.01:
                self.slab(
                    x, min(x + dash, x1), y - width / 2, y + width / 2, 0.001, MARKING, "road", 0.01
                )
            x += dash + gap

    def markings(self):
        d = self.dice
        half = self.lane * self.lanes
        marked = {"homes": 0.3, "city": 0.8}.get(self.kind, 1.0)
        if d.chance(marked):
            if self.lanes > 1 and d.chance(0.5):
                self.line(0.1, 120, 0)
                self.line(-0.1, 120, 0)
            else:
                self.line(0.0, *d.pick(((3, 6), (4, 8), (6, 3), (120, 0))))
            for k in range(1, self.lanes):
                for s in (1, -1):
                    self.line(s * k * self.lane, *d.pick(((3, 6), (6, 12))))
        for s, i in ((1, 0), (-1, 1)):
            if self.parking[i] and d.chance(0.5):
                self.line(s * half, *d.pick(((1, 1), (120, 0))), x1=45.0)
            elif self.kind in ("country", "avenue"):
                self.line(s * (half - 0.15), 120, 0)
        # A zebra crossing, or a line to stop at.
        if self.crossings and self.kind != "homes" and d.chance(0.6):
            x = self.crossings[0][0] - self.crossings[0][1] / 2 - 4.5
            if x > 5:
                self.slab(x - 1.2, x - 0.8, -half + 0.1, -0.1, 0.001, MARKING, "road", 0.01)
                if d.chance(0.6):
                    y = -half + 0.3
                    while y < half - 0.3:
                        self.slab(x, x + 3.2, y, y + 0.5, 0.001, MARKING, "road", 0.01)
                        y += 1.0

    def vehicle(self, x, y, yaw, long=False, **options):
        foot = (3.1 if long else 2.5, 1.0)
        self.put(vehicle, x, y, r=2.8, h=1.6, n=45, yaw=yaw, foot=foot, **options)

    def traffic(self):
        """What drives: ahead in the own lane, and the other way."""
        d = self.dice
        lit = d.chance(0.3)
        lorries = {"avenue": 0.06, "country": 0.08}.get(self.kind, 0.02)
        for k in range(self.lanes):
            lane = -(k + 0.5) * self.lane
            own = abs(lane - self.eye[1]) < self.lane / 2
            x = d.pick((d(9, 20), d(15, 60), d(30, 90))) if own else d(5, 50)
            for _ in range(d.int(0, 3)):
                y = lane + d(-0.25, 0.25)
                self.vehicle(x, y, d(-0.02, 0.02), True, lit=lit, lorries=lorries)
                x += d(9, 30)
            x = d(5, 40)
            for _ in range(d.int(0, 3)):
                y = -lane + d(-0.25, 0.25)
                self.vehicle(x, y, math.pi + d(-0.02, 0.02), True, lit=lit, lorries=lorries)
                x += d(9, 35)
        for x, width, left, right in self.crossings[:2]:  # waiting in a side street
            s = 1 if left and (d.chance(0.5) or not right) else -1
            if d.chance(0.35):
                at = s * (self.edge[s] + d(3.5, 6))
                self.vehicle(x - s * width / 4, at, -s * math.pi / 2 + d(-0.1, 0.1), lit=lit)
            elif d.chance(0.25) and x > 14:  # crossing
                self.vehicle(x, d(-3, 3), d.pick((-1, 1)) * math.pi / 2 + d(-0.3, 0.3), lit=lit)
        if d.chance(0.3) and self.kind != "country":
            side = d.pick((-1, 1))
            y = side * (self.lane * self.lanes - d(0.5, 0.8))
            x = d(8, 35)
            self.put(cyclist, x, y, yaw=0 if side < 0 else math.pi, foot=(0.9, 0.35))

    def parked(self, s):
        d = self.dice
        width = self.parking[0 if s > 0 else 1]
        on_kerb = self.kind == "homes" and not width and d.chance(0.35)
        if not width and not on_kerb:
            return
        y = self.edge[s] - width / 2 if width else self.edge[s] - 0.45
        full = d(0.35, 0.95)
        for x0, x1 in self.stretches(s):
            x = max(x0 + 4, 3.5 if s > 0 else 5.5) + d(0, 3)
            while x < min(x1 - 4, 65 if s > 0 else 50):
                is_van = d.chance(0.1)
                x += 0.6 * is_van
                if d.chance(full):
                    yaw = (0.0 if (s < 0) ^ d.chance(0.12) else math.pi) + d(-0.025, 0.025)
                    at = s * (y + d(-0.08, 0.08))
                    self.vehicle(x, at, yaw, is_van, vans=float(is_van))
                x += d(5.4, 6.3) + 0.6 * is_van

    def people(self):
        d = self.dice
        if self.kind == "country":
            return
        for s in (1, -1):
            wide = max(self.pavement - 0.8, 0.2)
            for _ in range(d.int(0, {"city": 5, "homes": 2}.get(self.kind, 3))):
                x = d(4, 12) if d.chance(0.3) else d(8, 55)
                y = self.walk[s] + 0.4 + d(0, wide)
                yaw = d.pick((0.0, math.pi)) + d(-0.3, 0.3)
                self.put(person, x, s * y, r=0.6, h=1.7, yaw=yaw, z=0.12, walking=d.chance(0.8))
                if d.chance(0.3):
                    self.put(person, x + d(-0.3, 0.3), s * (y + 0.6), r=0.6, h=1.7, yaw=yaw, z=0.12)
        if d.chance(0.25):  # crossing the road
            yaw = d.pick((-1, 1)) * math.pi / 2
            self.put(person, d(12, 35), d(-1, 1) * self.lane, r=0.6, h=1.7, yaw=yaw + d(-0.2, 0.2))

    # ------------------------------------------------------------------ beside the road

    def kerbside(self, s):
        """Lamps, signs, trees, bins … between the kerb and the lots."""
        d = self.dice
        near = self.edge[s] + (self.verge / 2 if self.verge else 0.45)
        far = self.lot[s] - 0.35
        if self.kind == "country":
            near = self.edge[s] + d(1.3, 2.0)
        z = 0.0 if self.kind == "country" else 0.11
        yaw = 0.0 if s > 0 else math.pi
        leaf = foliage(d, 0.15)
        old = self.kind in ("city", "homes") and d.chance(0.4)
        lamps = (d.chance(0.85 if s < 0 else 0.5) and self.kind != "country") or d.chance(0.15)
        step, height = d(22, 34), d(5.5, 8.5)
        trees = d.chance({"city": 0.4, "homes": 0.35, "avenue": 0.85}.get(self.kind, 0.45))
        spacing, tall = d(7, 13), d(6, 11)
        for x0, x1 in self.stretches(s):
            x = x0 + d(2, step)
            while lamps and x < min(x1 - 1, 110):
                if old:
                    self.put(old_lamp, x, s * near, h=4, r=0.4, z=z)
                else:
                    self.put(street_lamp, x, s * near, height, h=height, r=2.0, z=z, yaw=yaw)
                x += step
            x = x0 + d(3, spacing)
            while trees and x < min(x1 - 2, 105):
                if d.chance(0.85) and x > 1.0:
                    at = near if self.pavement > 2.2 or self.verge else self.lot[s] + 1.0
                    if self.kind == "country":
                        at = near + 1.5
                    t = tall * d(0.85, 1.15)
                    low = min(t * 0.4, d(2.4, 3.2))
                    self.put(tree, x, s * at, leaf, t, r=t * 0.3, h=t, z=z, bare=low)
                x += spacing * d(0.9, 1.1)
            if self.kind == "country":
                continue
            x = x0 + d(1.5, 12)
            while x < min(x1 - 1, 50):
                what = d.weighted(
                    {"sign": 2.5, "bin": 1.5, "litter": 1, "bollards": 1, "box": 1, "bench": 0.5,
                     "column": 0.2, "shelter": 0.4, "bicycle": 0.8, "plant": 0.5}
                )  # fmt: skip
                outer, inner = s * (self.edge[s] + 0.35), s * far
                if what == "sign":
                    face = 0.0 if s < 0 or d.chance(0.3) else math.pi
                    self.put(sign, x, outer, r=0.5, h=2.8, z=z, yaw=face)
                elif what == "bin" and self.kind != "avenue":
                    for k in range(d.int(1, 3)):
                        self.put(bin_, x + 0.65 * k, inner, r=0.5, h=1, z=z, yaw=yaw + d(-0.2, 0.2))
                elif what == "litter":
                    self.put(litter_bin, x, outer, r=0.4, h=1, z=z)
                elif what == "bollards" and not self.parking[0 if s > 0 else 1]:
                    for k in range(d.int(3, 7)):
                        self.put(bollard, x + 1.6 * k, outer, r=0.3, h=1, z=z)
                elif what == "box":
                    self.put(junction_box, x, inner, r=0.8, h=1.2, z=z, yaw=yaw)
                elif what == "bicycle":
                    self.put(
                        bicycle,
                        x,
                        inner,
                        r=1.0,
                        h=1,
                        z=z,
                        yaw=d(-0.15, 0.15),
                        n=12,
                        foot=(0.9, 0.3),
                    )
                elif self.pavement > 2.4 and what == "bench":
                    self.put(bench, x, inner - s * 0.3, r=1.2, h=1, z=z, yaw=yaw, foot=(0.9, 0.3))
                elif self.pavement > 3.0 and what == "column":
                    self.put(column, x, inner - s * 0.8, r=1.0, h=3, z=z, foot=(0.8, 0.8))
                elif self.pavement > 3.2 and what == "shelter":
                    self.put(shelter, x, inner - s, r=2.5, h=2.5, z=z, yaw=yaw, foot=(2.1, 1.0))
                elif what == "plant" and self.pavement > 2.4:
                    self.put(bush, x, outer, foliage(d), 0.8, r=0.6, h=1, z=z + 0.1)
                x += d(4, 14)
        # At side streets.
        for x, width, left, right in self.crossings[:2]:
            if not (left if s > 0 else right) and self.kind == "homes":
                continue
            if self.kind in ("city", "avenue") and d.chance(0.5):
                state = d.pick((0, 2, 2, 1))
                face = 0.0 if s < 0 else math.pi
                at = x - width / 2 - 1.0 if s < 0 else x + width / 2 + 1.0
                self.put(
                    traffic_light, at, s * (self.edge[s] + 0.5), state, r=0.5, h=3, z=z, yaw=face
                )
                if s > 0:  # and the one above the far side that the camera looks at
                    self.put(traffic_light, at, s * (self.edge[s] + 0.9), state, r=0.5, h=3, z=z)
            elif d.chance(0.5):
                self.put(
                    street_name, x - width / 2 - 0.6, s * (self.walk[s] + 0.5), r=0.5, h=3, z=z,
                    yaw=d.pick((0.0, math.pi / 2)),
                )  # fmt: skip

    def boundary(self, s, x0, x1):
        """What divides a garden from the pavement."""
        d = self.dice
        y = s * (self.lot[s] + 0.3)
        x0, x1 = max(x0, -6.0), min(x1, 75.0)
        if x1 - x0 < 1.5 or not self.seen((x0 + x1) / 2, y, (x1 - x0) / 2, 1.5):
            return
        if not self.space():
            return
        kind = d.weighted({"hedge": 4, "wall": 2, "boards": 1.5, "rails": 1.5, "none": 1.5})
        f = self.place((x0 + x1) / 2, y, 0.0, 0.1)
        long = x1 - x0
        if kind == "hedge":
            h = d(0.8, 2.0)
            f.soft(0, s * 0.3, -0.1, long, 0.8, h + 0.1, foliage(d), "hedge", r=0.2)
        elif kind == "wall":
            h, m = d(0.4, 1.6), wall_material(d, "homes")
            f.box(0, 0, -0.1, long, 0.24, h + 0.1, m, "wall")
            f.box(0, 0, h, long + 0.02, 0.32, 0.06, STONE, "wall")
        elif kind == "boards":
            c = d.pick(((0.16, 0.09, 0.05), (0.24, 0.2, 0.16), (0.5, 0.5, 0.48), (0.1, 0.12, 0.09)))
            m = Material("boards", c, dim(c, 0.7), dim(c, 0.2), 1.9)
            f.box(0, 0, 0.0, long, 0.05, d(0.9, 1.8), m, "wall")
        elif kind == "rails":
            f.box(0, 0, -0.1, long, 0.2, d(0.3, 0.5), STONE, "wall")
            m = plain((0.03, 0.04, 0.035), 0.2)
            for z in (0.55, 1.0):
                f.box(0, 0, z, long, 0.04, 0.05, m, "wall")
            for k in range(1 + int(long / 2.2)):
                if f.away < 40:
                    f.box(-long / 2 + 0.05 + 2.2 * k, 0, 0, 0.05, 0.05, 1.05, m, "wall")

    def houses(self, s):
        d = self.dice
        yaw = 0.0 if s > 0 else math.pi
        city = self.kind == "city"
        style = {"city": "city", "homes": "homes"}.get(self.kind) or d.pick(("blocks", "city"))
        for x0, x1 in self.stretches(s):
            x = x0 + (0.3 if city else d(1.5, 4.0))
            end = min(x1, _SHOWN) - (0.3 if city else 1.5)
            while x < end - 5:
                width = {"city": d(8, 17), "homes": d(8, 14)}.get(self.kind, d(12, 28))
                width = min(width, end - x)
                if width < 5:
                    break
                depth = d(9, 12) if self.kind != "homes" else d(8, 10.5)
                back = self.front[s] + (0.0 if city else d(-0.8, 1.2))
                back = max(back, self.lot[s])
                middle = x + width / 2
                if self.space(25) and self.seen(
                    middle, s * (back + depth / 2), max(width, depth) * 0.75, 9
                ):
                    if d.chance(0.93 if city else 0.9):
                        self.house(s, middle, back, yaw, width, depth, style)
                    elif not city:  # an open lot
                        self.grove(s, x, width, back)
                gap = 0.0
                if city:
                    gap = 0.0 if d.chance(0.85) else d(3, 7)
                elif self.kind == "homes":
                    gap = d(2.5, 7.0)
                else:
                    gap = d(4, 14)
                if self.garden > 1.5:
                    self.garden_of(s, x, x + width + gap, back, yaw)
                x += width + gap
        # What shows through the gaps.
        for _ in range(4):
            x, y = d(12, 110), s * (self.front[s] + d(18, 45))
            if (
                self.space(12)
                and self.seen(x, y, 8, 0)
                and all(abs(x - c) > w / 2 + 9 for c, w, *_ in self.crossings)
            ):
                if d.chance(0.5):
                    t = d(7, 13)
                    tree(self.place(x, y), d, foliage(d, 0.1), t, bare=2.5)
                else:
                    house(self.place(x, y, yaw), d, d(9, 15), 9, d.int(2, 3), "homes")

    def house(self, s, x, back, yaw, width, depth, style):
        d = self.dice
        f = self.place(x, s * back, yaw, 0.1)
        if self.kind == "city":
            storeys = d.int(3, 5) if d.chance(0.8) else d.int(2, 3)
            house(
                f, d, width, depth, storeys, style, shop=d.chance(0.5), flat=d.chance(0.15),
                gable=width < 9 and d.chance(0.3),
            )  # fmt: skip
        elif self.kind == "homes":
            storeys = d.weighted({2: 6, 1: 2, 3: 1})
            house(f, d, width, depth, storeys, style, gable=d.chance(0.35), flat=d.chance(0.07))
        else:
            house(
                f, d, width, depth, d.int(3, 5), style, shop=d.chance(0.2),
                flat=style == "blocks" and d.chance(0.75),
            )  # fmt: skip

    def garden_of(self, s, x0, x1, back, yaw):
        d = self.dice
        if d.chance(0.8) and self.kind != "avenue":
            self.boundary(s, x0 + d(0, 1.5), x1 - d(1.0, 3.5))
        room = back - self.lot[s]
        for _ in range(d.int(0, 3)):
            x, y = d(x0, x1), self.lot[s] + 1.0 + d(0, max(room - 2.0, 0.3))
            leaf, x_ = foliage(d, 0.1), d()
            if x_ < 0.45 or room < 3:
                self.put(bush, x, s * y, leaf, d(0.7, 1.6), r=1.2, h=1.2, z=0.1, n=8)
            elif x_ < 0.7:
                t = d(3.5, 7)
                self.put(tree, x, s * y, leaf, t, r=t * 0.3, h=t, z=0.1, n=14, bare=t * 0.25)
            elif x_ < 0.9:
                t = d(4, 9)
                self.put(conifer, x, s * y, leaf, t, r=t * 0.2, h=t, z=0.1, n=8)
            else:
                self.put(cypress, x, s * y, leaf, d(2, 5), r=0.8, h=4, z=0.1, n=8)
        if self.kind == "homes" and d.chance(0.35):  # a garage beside the house
            self.put(
                shed, x1 - 3.2, s * (back + 2.0), 3.1, 6.0, d(2.4, 2.8), r=4, h=2.6, yaw=yaw, z=0.1,
                n=8, foot=(0.0, 0.0),
            )  # fmt: skip
            self.slab(
                x1 - 4.7,
                x1 - 1.7,
                s * self.lot[s],
                s * (back + 2.0),
                0.116,
                self.paving,
                "pavement",
            )
            if d.chance(0.4) and room > 4.8:
                self.put(
                    car, x1 - 3.2, s * (back - 0.6), r=2.5, h=1.5, z=0.11,
                    yaw=s * d.pick((-1, 1)) * math.pi / 2, n=30,
                )  # fmt: skip

    def grove(self, s, x, width, back):
        d = self.dice
        leaf = foliage(d, 0.1)
        for _ in range(d.int(2, 4)):
            t = d(6, 12)
            at = s * (back + d(1, 9))
            self.put(tree, x + d(0, width), at, leaf, t, r=t * 0.3, h=t, z=0.1, n=14)

    def fields(self, s):
        """Country: guard rails, posts, bushes, woods, a farm."""
        d = self.dice
        edge = self.edge[s]
        if d.chance(0.35):
            f = self.place(35, s * (edge + 1.1))
            rail = plain((0.42, 0.43, 0.44), 0.35)
            f.box(0, 0, 0.45, 90, 0.08, 0.31, rail, "wall")
            for k in range(16):
                self.place(-4 + 4.0 * k, s * (edge + 1.18)).box(
                    0, 0, -0.1, 0.1, 0.06, 0.8, STEEL, "pole"
                )
        elif d.chance(0.7):
            for k in range(5):  # delineators
                x = 6 + 16.0 * k + d(-0.5, 0.5)
                f = self.place(x, s * (edge + 1.0))
                if self.seen(x, s * (edge + 1.0), 0.3):
                    f.box(0, 0, -0.1, 0.12, 0.12, 1.1, WHITE, "pole")
                    f.box(0, 0, 0.72, 0.126, 0.126, 0.18, plain((0.02,) * 3), "pole", casts=False)
        for x in (d(10, 30), d(30, 70)):
            if d.chance(0.4):
                face = 0.0 if s < 0 else math.pi
                self.put(sign, x, s * (edge + 1.6), r=0.5, h=2.8, yaw=face)
        wood = d.weighted({"open": 3, "wood": 3, "hedge": 2, "village": 2})
        c = hsv(d(0.11, 0.22), d(0.4, 0.75), d(0.14, 0.32))
        if wood in ("open", "village"):  # a field of another colour
            field = Material("grass", c, dim(c, 0.8), dim(c, 0.6), 5.0)
            self.slab(-20, 300, s * (edge + d(4, 8)), s * 240, -0.02, field, "grass", 0.02)
        leaf = foliage(d, 0.1)
        if wood == "wood":
            x = d(1, 5)
            y = edge + d(4.5, 9)
            while x < 120 and self.space(60):
                t = d(8, 15)
                w = foliage(d, 0.08) if d.chance(0.4) else leaf
                self.put(
                    conifer if d.chance(0.2) else tree, x, s * (y + d(0, 4)), w, t, r=t * 0.3, h=t,
                    n=60,
                )  # fmt: skip
                self.put(bush, x + 2, s * (y - d(0, 1.5)), w, d(1.5, 2.8), r=2, h=2, n=60)
                x += d(3.5, 6) * (1 + x / 60)
            f = self.place(60, s * (y + 12))
            dark = leaf._replace(c0=dim(leaf.c0, 0.5), c1=dim(leaf.c1, 0.5))
            f.soft(0, 0, -1, 150, 8, 9, dark, "tree", r=3.0)  # its depth
        elif wood == "hedge":
            f = self.place(45, s * (edge + d(2.5, 5)))
            f.soft(0, 0, -0.2, 110, 1.2, d(1.2, 2.4), leaf, "hedge", r=0.4)
        elif wood == "village":
            yaw = 0.0 if s > 0 else math.pi
            for _ in range(d.int(2, 4)):
                x, y = d(20, 100), s * (edge + d(10, 30))
                if self.space(30) and self.seen(x, y, 9):
                    house(
                        self.place(x, y, yaw), d, d(10, 16), d(8, 11), d.int(1, 2), "homes",
                        gable=d.chance(0.4),
                    )  # fmt: skip
        for _ in range(d.int(1, 6)):
            t = d(5, 12)
            x, y = d(6, 100), edge + d(6, 40)
            if wood != "wood":
                self.put(tree, x, s * y, foliage(d, 0.1), t, r=t * 0.3, h=t, n=40, bare=t * 0.25)

    def distance(self):
        """The street's end and the horizon."""
        d = self.dice
        leaf = foliage(d, 0.05)
        leaf = leaf._replace(texture="leaves", period=6.0)
        span = 40 if self.kind == "city" else 150
        n = 14
        for k in range(n):
            y = (k + 0.5) / n * 2 * span - span + d(-6, 6)
            x = d(140, 200)
            w, h = d(14, 30), d(7, 14)
            if self.seen(x, y, w / 2) and self.space(2):
                self.place(x, y).ball(0, 0, -h * 0.4, w, w, h * 1.4, leaf, "tree", casts=False)
        if d.chance(0.5) or self.kind == "country":  # hills
            for _ in range(3):
                w, h = d(250, 450), d(14, 45)  # only their tops show
                x, y = d(300, 330), d(-260, 260)
                hill = leaf._replace(period=25.0)
                if self.space(1):
                    self.place(x, y).ball(0, 0, -2 * h, 150, w, 3 * h, hill, "tree", casts=False)
        if self.kind != "country" and d.chance(0.6):  # the street bends, or ends at a house
            for k in range(2):
                x, y = 128 + 14 * k, d(-8, 8) if k == 0 else d(-14, 14)
                if self.space(14):
                    house(
                        self.place(x, y, -math.pi / 2), d, d(14, 22), 10, d.int(2, 4),
                        "city" if self.kind == "city" else "homes",
                    )  # fmt: skip


def make_streets(split, indices) -> list[Street]:
    return [Street(Dice("streets", split, index)).build() for index in indices]


# --------------------------------------------------------------------------------------- data set

FIELDS = ("image", "depth", "normal", "label", "sparse_depth")


def _make(split, indices, device):
    return [(street.scene, street.camera) for street in make_streets(split, indices)]


def _measure(item, view, split, index, sensor):
    sky = item["label"] < 0
    item["label"] = item["label"].masked_fill(sky, SKY)
    item["normal"] = item["normal"].masked_fill(sky, 0.0)
    item["depth"] = item["depth"].masked_fill(sky | (item["depth"] > MAX_DEPTH), 0.0)
    item["sparse_depth"] = lidar(
        item["depth"],
        Dice("lidar", split, index),
        image=item["image"],
        normal=item["normal"],
        gloss=view["gloss"],
    )
    return item


STREETS = World(
    "streets",
    RENDERER_VERSION,
    _make,
    CAMERA,
    _measure,
    lengths={"train": 4000, "val": 400, "test": 652},
    fields=FIELDS,
    far=_FAR,
    shadows=lambda height: min(max(128, 2 * height), 768),
    reach=4.0,
    contrast=(1.2, 1.6),
    grey=(0.0, 0.5),
)
