"""What scenes are drawn with: dice, colours, palettes of materials, frames to model in."""

from __future__ import annotations

import math
import random

from .scene import BOX, CONE, ELLIPSOID, ROUND, Material


class Dice:
    """Random choices built on `random.Random.random` alone, whose stream Python guarantees."""

    def __init__(self, *seed):
        self.random = random.Random("/".join(map(str, seed))).random

    def __call__(self, lo=0.0, hi=1.0):
        return lo + (hi - lo) * self.random()

    def int(self, lo, hi):
        """lo … hi, both included."""
        return lo + int((hi - lo + 1) * self.random())

    def chance(self, p):
        return self.random() < p

    def pick(self, items):
        return items[int(len(items) * self.random())]

    def weighted(self, table):
        x = self.random() * sum(table.values())
        for name, weight in table.items():
            x -= weight
            if x < 0:
                return name
        return next(iter(table))  # only by rounding

    def shuffled(self, items):
        items = list(items)
        for i in range(len(items) - 1, 0, -1):
            j = self.int(0, i)
            items[i], items[j] = items[j], items[i]
        return items


# ------------------------------------------------------------------------------------- materials


def hsv(h, s, v):
    """Linear RGB from hue in turns, saturation, value."""
    f = [abs((h * 6 + k) % 6 - 3) - 1 for k in (0, 4, 2)]
    return tuple(v * (1 - s + s * min(max(x, 0.0), 1.0)) for x in f)


def dim(colour, k):
    return tuple(c * k for c in colour)


def mix(a, b, t):
    return tuple(x + (y - x) * t for x, y in zip(a, b, strict=True))


WOODS = (
    (0.42, 0.24, 0.11), (0.30, 0.15, 0.065), (0.55, 0.36, 0.19), (0.16, 0.075, 0.035),
    (0.62, 0.47, 0.30), (0.09, 0.05, 0.03), (0.36, 0.17, 0.08), (0.48, 0.38, 0.28),
)  # fmt: skip


class Palette:
    """Materials of one room, so that its furniture goes together."""

    def __init__(self, dice):
        self.dice = d = dice
        self.hue = d.pick((d(), d(0.02, 0.14), d(0.5, 0.65)))
        self.woods = [self._wood(d.pick(WOODS)) for _ in range(2)]
        self.white = self.paint((d(0.7, 0.82),) * 2 + (d(0.62, 0.8),), gloss=0.25)
        self.metal = Material("brushed", (0.42,) * 3, (0.3,) * 3, period=0.4, gloss=0.7, grain=True)
        self.dark = self.paint((d(0.015, 0.04),) * 3, gloss=d(0.2, 0.6))
        self.cloths = [self.cloth() for _ in range(4)]

    def _wood(self, colour):
        d = self.dice
        c = dim(colour, d(0.75, 1.2))
        return Material(
            "wood", c, dim(c, d(0.55, 0.8)), dim(c, 0.5), d(0.5, 1.0), d(0.05, 0.4), grain=True
        )

    def wood(self):
        return self.dice.pick(self.woods)

    def colour(self, s=(0.1, 0.6), v=(0.15, 0.7)):
        d = self.dice
        hue = self.hue + d.pick((0, 0, 0.08, -0.08, 0.5, 0.33)) + d(-0.03, 0.03)
        # Squared: greyish and dark things outnumber bright ones.
        return hsv(hue % 1, s[0] + (s[1] - s[0]) * d() ** 1.6, v[0] + (v[1] - v[0]) * d() ** 1.3)

    def paint(self, colour, gloss=0.1):
        return Material("plain", colour, dim(colour, 0.9), period=0.8, gloss=gloss)

    def lacquer(self):
        """Of painted furniture: mostly white or wood."""
        d = self.dice
        if d.chance(0.45):
            return self.wood()
        if d.chance(0.6):
            return self.white
        return self.paint(self.colour((0.05, 0.5), (0.1, 0.6)), d(0.1, 0.5))

    def cloth(self, light=None):
        d = self.dice
        c = self.colour((0.1, 0.75), light or (0.06, 0.7))
        if d.chance(0.25):
            c = (c[1],) * 3
        kind = d.weighted(
            {"weave": 6, "carpet": 1, "stripes": 1, "plaid": 1, "dots": 0.5, "damask": 0.7}
        )
        other = dim(c, 0.72)
        if kind not in ("weave", "carpet"):
            other = mix(c, self.colour((0, 0.5), (0.3, 0.8)), d(0.4, 0.9))
        period = {"weave": d(0.3, 0.6), "carpet": 0.6}.get(kind, d(0.35, 0.9))
        return Material(kind, c, other, dim(c, 0.65), period)

    def any_cloth(self):
        return self.dice.pick(self.cloths)

    def ceramic(self):
        d = self.dice
        c = self.colour((0, 0.7), (0.2, 0.85)) if d.chance(0.6) else (0.75, 0.73, 0.7)
        return Material("plain", c, dim(c, 0.93), period=0.3, gloss=d(0.4, 0.9))

    def glowing(self, colour=(1.0, 0.86, 0.66), power=2.2):
        return Material("plain", colour, dim(colour, 0.96), glow=power)

    def picture(self):
        d = self.dice
        kind = d.pick(("landscape", "landscape", "abstract", "mondrian", "portrait", "letters"))
        c0 = hsv(d(), d(0.2, 0.8), d(0.05, 0.4))
        c1 = hsv(d(), d(0.0, 0.4), d(0.5, 0.9))
        if kind == "landscape":
            c0, c1 = hsv(d(0.2, 0.45), 0.6, d(0.05, 0.2)), hsv(d(0.52, 0.62), d(0.1, 0.5), 0.8)
        if kind == "portrait":
            c0, c1 = hsv(d(), 0.4, d(0.04, 0.3)), (0.62, 0.40, 0.29)
        if kind == "letters":
            c0 = (0.75, 0.75, 0.72)
        return Material(kind, c0, c1, hsv(d(), d(0, 0.8), d(0.02, 0.5)), gloss=d(0, 0.4))


# ------------------------------------------------------------------------------------- modelling


class Frame:
    """A place in the scene: furniture is modelled in its own coordinates (x along the wall,
    y away from it, z up; metres) and put where the frame is."""

    labels: dict[str, int]  # name → index; a subclass has those of its world

    def __init__(self, scene, x, y, z=0.0, yaw=0.0):
        self.scene, self.x, self.y, self.z, self.yaw = scene, x, y, z, yaw
        self.cos, self.sin = math.cos(yaw), math.sin(yaw)

    def world(self, x, y, z=0.0):
        return (
            self.x + self.cos * x - self.sin * y,
            self.y + self.sin * x + self.cos * y,
            self.z + z,
        )

    def at(self, x, y, z=0.0, yaw=0.0):
        return type(self)(self.scene, *self.world(x, y, z), self.yaw + yaw)

    def _add(self, kind, centre, size, material, label, yaw=0.0, pitch=0.0, roll=0.0, **options):
        """yaw about z; then pitch about the solid's x axis, roll about its y axis."""
        a = self.yaw + yaw
        ca, sa = math.cos(a), math.sin(a)
        if pitch or roll:
            cp, sp, cr, sr = math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
            # Rz(a) · Rx(pitch) · Ry(roll)
            m = ((cr, 0.0, sr), (sp * sr, cp, -sp * cr), (-cp * sr, sp, cp * cr))
            rotation = (
                tuple(ca * m[0][j] - sa * m[1][j] for j in range(3)),
                tuple(sa * m[0][j] + ca * m[1][j] for j in range(3)),
                m[2],
            )
        else:
            rotation = ((ca, -sa, 0.0), (sa, ca, 0.0), (0.0, 0.0, 1.0))
        half = tuple(max(s / 2, 5e-4) for s in size)
        options |= {"name": label}  # unless a thing is made that has one
        at = self.world(*centre)
        self.scene.add(kind, at, half, rotation, material, self.labels[label], **options)

    # Each takes (x, y) of its centre and z of its *bottom* (as if not turned), and full sizes.

    def box(self, at, size, material, label, **options):
        x, y, z = at
        self._add(BOX, (x, y, z + size[2] / 2), size, material, label, **options)

    def soft(self, at, size, material, label, *, r=0.05, **options):
        """A rounded box."""
        (x, y, z), (sx, sy, sz) = at, size
        r = min(r, sx * 0.499, sy * 0.499, sz * 0.499)
        self._add(ROUND, (x, y, z + sz / 2), size, material, label, extra=r, **options)

    def rod(self, at, size, material, label, *, top=1.0, deep=None, **options):
        """A cylinder of `size` (diameter, height), or a cone with `top` times the diameter at its
        top; `deep`: its y size."""
        (x, y, z), (wide, high) = at, size
        size = (wide, deep or wide, high)
        self._add(CONE, (x, y, z + high / 2), size, material, label, extra=top, **options)

    def ball(self, at, size, material, label, **options):
        """An ellipsoid."""
        x, y, z = at
        self._add(ELLIPSOID, (x, y, z + size[2] / 2), size, material, label, **options)
