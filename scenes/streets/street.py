"""`streets`: drives made up by rolling dice, seen by KITTI's camera and lidar.

As in `rooms`, a picture is a function of (split, index) alone: a `Street` is laid out around a car
that drives in its right lane, and only what that car's camera can see (or what casts shadows
there) is built.

World: x along the street, y to the left, z up; the road's surface is z = 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..drawing import dim, hsv, mix
from ..scene import MAX_SOLIDS, Light, Material, Sky, pose
from .roadside import Place, View
from .sensor import CAMERA_HEIGHT

SHOWN = 130.0  # metres ahead up to which the street is laid out
_SUN = 400.0  # its distance; the shadow maps' cones are as good as parallel
_SPLIT = 14.0  # metres ahead up to which the first, finer shadow map reaches
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
        lights.append(Light(
            position, dim(colour, _SUN**2 + radius**2), axis=axis, radius=radius,
            shadow=wide / math.hypot(*axis), zone=((lo, -_SUN, -_SUN), (hi, _SUN, _SUN)), fade=0.04,
        ))  # fmt: skip
    return lights


class Weather(NamedTuple):
    sky: Sky
    ambient: tuple  # light that falls on surfaces facing up, down
    shade: tuple  # where the shadow of something falls, (x, y) per metre of its height
    lights: list


def weather(d) -> Weather:
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
        sky = Sky(
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
        sky = Sky(zenith, horizon, sun, glow, clouds, (1.15, 1.15, 1.15), (d(0, 5), d(0, 5)), haze)
    k = min(math.cos(height) / math.sin(height), 4.0)
    shade = (-k * math.cos(azimuth), -k * math.sin(azimuth))
    return Weather(sky, (up, down), shade, sunlight(sun, dim(colour, power)))


def widths(d, kind):
    """Of the parts of a street, from its middle outwards; and how many lanes a side has."""
    lanes = 1
    parking = (0.0, 0.0)  # width of the parking lanes, left and right
    if kind == "homes":
        lane = d(3.0, 3.3)
        parking = tuple(d(1.9, 2.1) if d.chance(0.6) else 0.0 for _ in range(2))
        pavement, garden = d(1.5, 2.4), d(2.5, 7.0)
    elif kind == "city":
        lane = d(3.0, 3.5)
        lanes = 2 if d.chance(0.2) else 1
        parking = tuple(d(2.0, 2.3) if d.chance(0.75) else 0.0 for _ in range(2))
        pavement, garden = d(2.4, 4.5), d.pick((0.0, 0.0, d(0.5, 2.5)))
    elif kind == "avenue":
        lane, lanes = d(3.25, 3.6), 2
        parking = tuple(d(2.1, 2.3) if d.chance(0.35) else 0.0 for _ in range(2))
        pavement, garden = d(2.5, 4.0), d(3.0, 12.0)
    else:
        lane = d(3.25, 3.75)
        pavement, garden = 0.0, d(6.0, 20.0)
    # A strip of grass with trees between the road and the pavement.
    verge = 0.0
    if kind in ("avenue", "homes") and d.chance(0.6 if kind == "avenue" else 0.2):
        verge = d(1.6, 2.8)
    return lanes, lane, parking, verge, pavement, garden


def crossings_of(d, kind):
    """Side streets: (middle, width, to the left, to the right)."""
    crossings = []
    x = d(8.0, 60.0)
    while x < SHOWN and kind != "country":
        both = d.chance(0.5)
        left = both or d.chance(0.5)
        crossings.append((x, d(5.5, 8.0), left, both or not left))
        x += d(35.0, 80.0)
    return crossings


def materials(d) -> tuple[Material, Material, Material]:
    """Asphalt, grass, paving."""
    tone = d(0.055, 0.15)
    c = (tone, tone, tone * d(0.97, 1.06))
    asphalt = Material("asphalt", c, dim(c, d(1.3, 1.7)), dim(c, 0.45), d(2.5, 4.0), 0.04)
    c = hsv(d(0.2, 0.29), d(0.5, 0.75), d(0.1, 0.22))
    grass = Material("grass", dim(c, 0.6), c, mix(c, (0.2, 0.16, 0.07), 0.6), 2.5)
    c = (d(0.2, 0.34),) * 3
    c = mix(c, (0.32, 0.22, 0.17), d(0, 0.5))
    paving = d.weighted({"tile": 4, "subway": 2, "speckle": 1, "mosaic": 1})
    period = {"tile": d(1.2, 2.0), "subway": 1.6, "mosaic": 1.8}.get(paving, 1.5)
    paving = Material(paving, c, dim(c, 0.8), dim(c, 0.55), period)
    return asphalt, grass, paving


class Street:
    """A straight street, its camera at x = 0, and what can be seen from there."""

    def __init__(self, dice):
        self.dice = d = dice
        self.kind = d.weighted(_OFTEN)
        self.lanes, self.lane, self.parking, self.verge, self.pavement, self.garden = widths(
            d, self.kind
        )
        half = self.lane * self.lanes
        self.edge = {1: half + self.parking[0], -1: half + self.parking[1]}  # the kerb's |y|
        self.walk = {s: e + self.verge for s, e in self.edge.items()}
        self.lot = {s: e + self.pavement for s, e in self.walk.items()}
        self.front = {s: e + self.garden for s, e in self.lot.items()}
        self.crossings = crossings_of(d, self.kind)
        y = -self.lane * (0.5 if self.lanes == 1 else d.pick((0.5, 1.5))) + d(-0.35, 0.35)
        self.eye = (0.0, y)
        self.taken = [(0.0, y, 4.0, 1.0)]  # (x, y, half sizes) on the ground; first the own car
        self.heading = d(-0.03, 0.03) if d.chance(0.8) else d(-0.12, 0.12)
        high = CAMERA_HEIGHT + d(-0.03, 0.03)
        self.camera = pose((0.0, y, high), self.heading, d(-0.02, 0.012), d(-0.015, 0.015))
        sky, ambient, self.shade, lights = weather(d)
        self.scene = View([], lights, *ambient, sky)
        self.scene.eye = self.eye
        self.asphalt, self.grass, self.paving = materials(d)

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
        return len(self.scene.solids) + n < MAX_SOLIDS

    def place(self, x, y, yaw=0.0, z=0.0):
        return Place(self.scene, x, y, z, yaw)

    def make(self, thing, place, *arguments, **options):
        """A thing at a place, under its name."""
        with self.scene.thing(thing.__name__.strip("_").replace("_", " ")):
            thing(place, self.dice, *arguments, **options)

    def put(
        self,
        thing,
        x,
        y,
        *arguments,
        r=1.0,
        h=2.0,
        yaw=0.0,
        z=0.0,
        n=30,
        foot=(0.3, 0.3),
        **options,
    ):
        """A thing there, if it is seen, nothing else stands there (`foot`: half its
        footprint) and there is room for n more solids."""
        c, s = abs(math.cos(yaw)), abs(math.sin(yaw))
        a, b = c * foot[0] + s * foot[1], s * foot[0] + c * foot[1]
        if not (self.space(n) and self.seen(x, y, r, h)):
            return
        if any(abs(x - p) < a + q and abs(y - u) < b + v for p, u, q, v in self.taken):
            return
        self.taken.append((x, y, a, b))
        self.make(thing, self.place(x, y, yaw, z), *arguments, **options)

    def slab(self, x0, x1, y0, y1, top, material, label, thick=0.2, world_uv=True):
        """A flat piece of ground."""
        if x1 - x0 < 0.02 or not self.seen(
            (x0 + x1) / 2, (y0 + y1) / 2, math.hypot(x1 - x0, y1 - y0) / 2
        ):
            return
        self.place((x0 + x1) / 2, (y0 + y1) / 2).box(
            (0, 0, top - thick), (x1 - x0, abs(y1 - y0), thick), material, label, world_uv=world_uv,
            casts=False,
        )  # fmt: skip

    def stretches(self, s):
        """Intervals of x between the side streets of one side."""
        at = -16.0
        for x, width, left, right in self.crossings:
            if left if s > 0 else right:
                yield at, x - width / 2
                at = x + width / 2
        yield at, SHOWN + 20
