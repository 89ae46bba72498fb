"""What stands and drives in rendered streets: houses, vehicles, people, plants, furniture.

Built from the same solids as the furniture of rooms. Sizes in metres.
"""

from __future__ import annotations

import math

from ..drawing import Frame, dim, hsv, mix
from ..scene import BOX, Material, Scene

LABELS = (
    "road", "pavement", "grass", "house", "wall", "tree", "hedge", "pole", "sign", "car", "truck",
    "person", "bicycle", "object", "sky",
)  # fmt: skip

NEAR, MIDDLE, FAR = 12.0, 28.0, 55.0  # metres up to which things have their details


class View(Scene):
    """A scene made for one camera."""

    eye = (0.0, 0.0)


class Place(Frame):
    """A `Frame` outdoors. Vehicles and people look along x; houses stand along x, y leads into
    the lot."""

    labels = {name: i for i, name in enumerate(LABELS)}

    def __init__(self, scene, x, y, z=0.0, yaw=0.0):
        super().__init__(scene, x, y, z, yaw)
        dx, dy = scene.eye[0] - x, scene.eye[1] - y
        self.away = math.hypot(dx, dy)
        # Where the camera is, seen from here: only what faces it needs details.
        self.eye = (self.cos * dx + self.sin * dy, self.cos * dy - self.sin * dx)
        self.side, self.end = (1 if e > 0 else -1 for e in (self.eye[1], self.eye[0]))

    def _sheared(self, centre, half, axes, inverse, material, label, **kw):
        """A box whose axes (columns of `axes`, in the frame's coordinates) are not at right
        angles."""
        c, s = self.cos, self.sin
        turned = tuple(
            tuple(
                c * m - s * n if i == 0 else s * m + c * n for m, n in zip(*axes[:2], strict=True)
            )
            for i in (0, 1)
        )
        back = tuple((c * r[0] - s * r[1], s * r[0] + c * r[1], r[2]) for r in inverse)
        rotation, place = (*turned, axes[2]), self.world(*centre)
        index = self.labels[label]
        self.scene.add(BOX, place, half, rotation, material, index, inverse=back, name=label, **kw)

    def lean(self, at, size, by, material, label, **options):
        """A box whose top is moved by `by` along x. `at` is the middle of its foot."""
        (x, y, z), (sx, sy, sz) = at, size
        k = by / sz
        self._sheared(
            (x + by / 2, y, z + sz / 2), (sx / 2, sy / 2, sz / 2),
            ((1.0, 0.0, k), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            ((1.0, 0.0, -k), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)),
            material, label, **options,
        )  # fmt: skip

    def ridge(self, at, size, material, label, **options):
        """A gable roof of `size` (along its ridge, the x axis; across; its rise above z). As much
        of it lies below z."""
        sx, sy, rise = size
        size = math.hypot(sy / 4, rise / 2)
        c, s = sy / 4 / size, rise / 2 / size
        self._sheared(
            at, (sx / 2, size, size),
            ((1.0, 0.0, 0.0), (0.0, c, -c), (0.0, s, s)),
            ((1.0, 0.0, 0.0), (0.0, 0.5 / c, 0.5 / s), (0.0, -0.5 / c, 0.5 / s)),
            material, label, **options,
        )  # fmt: skip


def plain(colour, gloss=0.05, texture="plain", period=1.0):
    return Material(texture, colour, dim(colour, 0.9), dim(colour, 0.6), period, gloss)


RUBBER = plain((0.012, 0.012, 0.013))
STEEL = plain((0.30, 0.31, 0.32), 0.3)
DARK = plain((0.03, 0.032, 0.034), 0.2)
GLASS = Material("plain", (0.012, 0.015, 0.018), (0.02, 0.024, 0.028), period=0.7, gloss=0.6)
WHITE = plain((0.68, 0.68, 0.66), 0.1)
RED = plain((0.5, 0.02, 0.02), 0.4)
BARK = Material("bark", (0.10, 0.07, 0.045), (0.055, 0.04, 0.028), (0.03, 0.022, 0.016), 1.0)
STONE = Material("speckle", (0.36, 0.35, 0.33), (0.30, 0.29, 0.28), (0.22, 0.21, 0.2), 0.9)
MARKING = Material("asphalt", (0.62, 0.62, 0.60), (0.48, 0.48, 0.46), (0.2, 0.2, 0.2), 1.3)
PLATE = plain((0.7, 0.7, 0.66), 0.3)


# --------------------------------------------------------------------------------------- vehicles


def paint(d):
    """Cars are mostly grey, black, white; some blue, red, green."""
    kind = d.weighted({"grey": 5, "black": 3, "white": 3, "blue": 2, "red": 1.5, "other": 1})
    if kind == "grey":
        c = (d(0.12, 0.45),) * 3
        c = (c[0], c[1], c[2] * d(0.95, 1.1))
    elif kind == "black":
        c = (d(0.01, 0.03),) * 3
    elif kind == "white":
        c = (d(0.6, 0.75),) * 3
    elif kind == "blue":
        c = hsv(d(0.58, 0.66), d(0.5, 0.9), d(0.05, 0.3))
    elif kind == "red":
        c = hsv(d(0.97, 1.01) % 1, d(0.8, 0.95), d(0.15, 0.4))
    else:
        c = hsv(d(), d(0.3, 0.8), d(0.1, 0.4))
    return Material("plain", c, dim(c, 0.95), period=2.0, gloss=0.45)


def _wheels(f, length, width, r, label, inset):
    rim = Material("wheel", RUBBER.c0, (0.32, 0.32, 0.33), (0.03, 0.03, 0.03), gloss=0.2)
    turn = {"pitch": math.pi / 2}
    # Seen from behind or before, both sides show.
    sides = (-1, 1) if abs(f.eye[1]) < width / 2 + 0.6 else (f.side,)
    for x in (length / 2 - inset, -length / 2 + inset * 0.95):
        for side in sides:
            y = side * (width / 2 - 0.1)
            if f.away < NEAR and len(sides) == 1:
                f.rod((x, y + side * 0.005, r * 1.03 - 0.1), (2.25 * r, 0.2), RUBBER, label, **turn)
            f.rod(
                (x, y + side * 0.012, r - 0.1), (2 * r, 0.21), rim, label, stretch="floor", **turn
            )


def _lights(f, x, width, z, size, material, label):
    for side in (-1, 1):
        y = side * (width / 2 - size[1] / 2 - 0.05)
        f.soft((x, y, z), size, material, label, r=0.04, casts=False)


def car(f, d, *, lit=False):
    """4–4.7 m long, 1.8 m wide, 1.4–1.65 m high; looks along x, its middle at the frame."""
    body = paint(d)
    kind = d.weighted({"hatch": 4, "saloon": 3, "estate": 3, "suv": 2})
    length = {"hatch": d(3.8, 4.25), "suv": d(4.3, 4.7)}.get(kind, d(4.4, 4.8))
    width = d(1.72, 1.86)
    height = d(1.6, 1.72) if kind == "suv" else d(1.42, 1.52)
    low = d(0.26, 0.32) if kind == "suv" else d(0.2, 0.24)
    waist = height * d(0.62, 0.66)
    r = d(0.33, 0.37) if kind == "suv" else d(0.3, 0.33)
    front, back = length / 2, -length / 2
    nose = d(0.95, 1.15)  # from the front to the foot of the windscreen
    tail = {"saloon": d(0.75, 0.95)}.get(kind, d(0.02, 0.1))
    rear = {"saloon": 0.65, "hatch": d(0.4, 0.55), "estate": d(0.3, 0.4), "suv": 0.3}[kind]
    screen = d(0.7, 0.85)
    if f.away > MIDDLE:
        f.soft((0, 0, low), (length, width, waist - low), body, "car", r=0.16)
        long = length * 0.55
        f.soft((-0.3, 0, waist - 0.1), (long, width - 0.3, height - waist), GLASS, "car", r=0.2)
        f.box((-0.4, 0, height - 0.1), (long * 0.7, width - 0.3, 0.1), body, "car")
        f.box((0, 0, 0), (length * 0.75, width - 0.1, low + 0.05), RUBBER, "car")
        return
    # Underneath it is dark; the body ends above the ground.
    f.box((0, 0, 0.12), (length - 0.5, width - 0.3, 0.2), RUBBER, "car")
    f.soft((0, 0, low), (length, width, waist - low), body, "car", r=0.16)
    if f.away < NEAR:
        f.soft((0.02, 0, low + 0.02), (length + 0.05, width - 0.04, 0.24), body, "car", r=0.11)
    # The cabin: two leaning blocks make a trapezium.
    a, b = back + tail, front - nose
    h = height - 0.06 - waist + 0.05
    inner = width - 0.26
    half = (b - a) * 0.56
    f.lean((a + half / 2, 0, waist - 0.05), (half, inner, h), rear, GLASS, "car")
    f.lean((b - half / 2, 0, waist - 0.05), (half, inner, h), -screen, GLASS, "car")
    top = (b - a) - rear - screen
    middle = (a + rear + b - screen) / 2
    f.soft((middle, 0, height - 0.1), (top + 0.12, inner + 0.02, 0.1), body, "car", r=0.05)
    # Pillars in the body's colour, and the doors' upper edge.
    for side in (-1, 1) if abs(f.eye[1]) < 2 else (f.side,):
        y = side * (inner / 2 - 0.005)
        f.lean((a + 0.06, y, waist - 0.04), (0.13, 0.05, h - 0.02), rear, body, "car", casts=False)
        f.lean(
            (b - 0.04, y, waist - 0.04), (0.06, 0.05, h - 0.02), -screen, body, "car", casts=False
        )
        if f.away < NEAR:
            f.box((middle - 0.1, y, waist - 0.03), (0.09, 0.045, h - 0.02), DARK, "car")
    lamp = plain((0.75, 0.75, 0.72), 0.8)
    if lit:
        lamp = Material("plain", (1.0, 0.97, 0.9), (1.0, 0.97, 0.9), glow=1.6)
    if f.end > 0:
        _lights(f, front - 0.12, width, waist - 0.29, (0.28, 0.36, 0.15), lamp, "car")
    red = RED if not lit else Material("plain", (0.9, 0.05, 0.03), (0.9, 0.05, 0.03), glow=0.7)
    if f.end < 0:
        _lights(f, back + 0.1, width, waist - 0.3, (0.24, 0.3, 0.2), red, "car")
    if f.away < NEAR:
        x, z = (front + 0.045, low + 0.1) if f.end > 0 else (back - 0.012, low + 0.26)
        f.box((x, 0, z), (0.03, 0.52, 0.11), PLATE, "car", casts=False)
        if f.end > 0:
            f.box((front + 0.02, 0, low + 0.24), (0.04, 0.7, 0.12), DARK, "car", casts=False)
        sides = (-1, 1) if abs(f.eye[1]) < 2 else (f.side,)
        for side in sides:
            y = side * (width / 2 + 0.08)
            f.soft((b - 0.35, y, waist - 0.02), (0.12, 0.2, 0.13), body, "car", r=0.04)
            if len(sides) > 1:
                continue
            # The gap between the doors, and their handles.
            y = side * (width / 2 + 0.001)
            for x in (middle - 0.12, b - 0.25):
                f.box(
                    (x, y, low + 0.2), (0.014, 0.006, waist - low - 0.36), DARK, "car", casts=False
                )
            for x in (middle - 0.35, middle + 0.62):
                f.box((x, y, waist - 0.22), (0.18, 0.03, 0.03), body, "car", casts=False)
    _wheels(f, length, width, r, "car", d(0.75, 0.85))


def van(f, d):
    """A delivery van: 5–6 m long, 2 m wide, 2.2–2.7 m high."""
    length, width, height = d(5.0, 6.0), d(1.95, 2.05), d(2.1, 2.7)
    body = paint(d) if d.chance(0.35) else plain((d(0.6, 0.75),) * 3, 0.4)
    front, back = length / 2, -length / 2
    waist, hood, screen = 1.15, 0.75, 0.75
    f.box((0, 0, 0.14), (length - 0.5, width - 0.3, 0.2), RUBBER, "truck")
    f.soft((0, 0, 0.26), (length, width, waist - 0.2), body, "truck", r=0.14)
    box = length - hood - screen
    f.soft((back + box / 2, 0, 0.35), (box, width - 0.02, height - 0.35), body, "truck", r=0.1)
    h = height * 0.8 - waist
    at = front - hood
    f.lean((at - 0.5, 0, waist - 0.05), (1.0, width - 0.16, h), -screen, GLASS, "truck")
    f.soft(
        (at - screen - 0.35, 0, waist + h - 0.1), (0.9, width - 0.1, height - waist - h + 0.05),
        body, "truck", r=0.08,
    )  # fmt: skip
    if f.away < MIDDLE:
        for side in (-1, 1):
            f.box(
                (at - 0.95, side * (width / 2 - 0.005), waist), (0.75, 0.012, 0.5), GLASS, "truck",
                casts=False,
            )  # fmt: skip
        f.box(
            (back - 0.004, 0, waist + 0.1), (0.012, 1.3, height * 0.22), GLASS, "truck", casts=False
        )
        lamp = plain((0.75, 0.75, 0.72), 0.8)
        _lights(f, front - 0.1, width, 0.75, (0.25, 0.32, 0.22), lamp, "truck")
        _lights(f, back + 0.06, width, 0.9, (0.16, 0.14, 0.5), RED, "truck")
        f.box((front, 0, 0.36), (0.06, width - 0.3, 0.18), DARK, "truck", casts=False)
        f.box((back - 0.02, 0, 0.55), (0.03, 0.52, 0.11), PLATE, "truck", casts=False)
    _wheels(f, length, width, 0.34, "truck", 0.9)


def lorry(f, d):
    """A cab and a box: 7–9 m long, 2.5 m wide, 3.2–3.8 m high."""
    length, width, height = d(7.0, 9.0), 2.45, d(3.2, 3.7)
    cab = Material("plain", *(hsv(d(), d(0, 0.9), d(0.2, 0.7)),) * 2, period=2.0, gloss=0.4)
    shell = plain((d(0.5, 0.72),) * 3, 0.1)
    front, back = length / 2, -length / 2
    f.box((-0.1, 0, 0.45), (length - 0.4, 1.0, 0.4), DARK, "truck")
    box = length - 2.2
    f.box((back + box / 2, 0, 0.9), (box, width, height - 0.9), shell, "truck")
    f.soft((front - 0.95, 0, 0.4), (1.9, width - 0.1, 2.35), cab, "truck", r=0.12)
    f.box((front + 0.002, 0, 1.55), (0.02, width - 0.35, 0.85), GLASS, "truck", casts=False)
    for side in (-1, 1):
        y = side * (width / 2 - 0.045)
        f.box((front - 0.75, y, 1.6), (0.9, 0.02, 0.75), GLASS, "truck", casts=False)
        if f.away < NEAR and d.chance(0.5):
            f.box(
                (back + box / 2, side * (width / 2 + 0.004), height * 0.5), (box * 0.6, 0.01, 0.7),
                plain(hsv(d(), 0.8, 0.3)), "truck", casts=False,
            )  # fmt: skip
    _lights(f, back + 0.02, width, 0.75, (0.08, 0.3, 0.16), RED, "truck")
    _lights(f, front - 0.05, width, 0.6, (0.14, 0.3, 0.2), PLATE, "truck")
    f.box((back - 0.03, 0, 0.5), (0.06, width - 0.1, 0.14), DARK, "truck")
    _wheels(f, length, width, 0.48, "truck", 1.1)


def vehicle(f, d, *, vans=0.12, lorries=0.0, lit=False):
    x = d()
    if x < lorries:
        lorry(f, d)
    elif x < lorries + vans:
        van(f, d)
    else:
        car(f, d, lit=lit)


# ----------------------------------------------------------------------------------------- people


def _cloth(d):
    c = hsv(d(), d(0, 0.8) * d(), 0.03 + 0.5 * d() ** 2)
    return plain(c)


def person(f, d, *, walking=True):
    """1.55–1.9 m high (children less), walking along x."""
    h = d(1.55, 1.9) if d.chance(0.9) else d(1.0, 1.35)
    k = h / 1.75
    coat, trousers = _cloth(d), _cloth(d)
    skin = plain(mix((0.50, 0.32, 0.23), (0.16, 0.08, 0.05), d() ** 2))
    swing = d(0.1, 0.42) * d.pick((-1, 1)) if walking else d(-0.05, 0.05)
    for side in (-1, 1):
        # A leg swings about the hip: pitch turns about y here, hence roll.
        f.rod(
            (-math.sin(side * swing) * 0.42 * k, side * 0.085 * k, 0.0), (0.15 * k, 0.86 * k),
            trousers, "person", top=1.25, roll=side * swing,
        )  # fmt: skip
        if f.away < NEAR:
            f.rod(
                (math.sin(side * swing) * 0.25 * k, side * 0.245 * k, 0.78 * k),
                (0.09 * k, 0.62 * k), coat, "person", roll=-side * swing * 0.9,
            )  # fmt: skip
            f.soft(
                (-math.sin(side * swing) * 0.84 * k + 0.05, side * 0.085 * k, 0.0),
                (0.27 * k, 0.1 * k, 0.09 * k), RUBBER, "person", r=0.04,
            )  # fmt: skip
    f.soft((0, 0, 0.78 * k), (0.24 * k, 0.42 * k, 0.68 * k), coat, "person", r=0.11 * k)
    f.ball((0.01 * k, 0, 1.5 * k), (0.2 * k, 0.17 * k, 0.25 * k), skin, "person")
    if f.away < MIDDLE:
        hair = plain(mix((0.015, 0.01, 0.008), (0.25, 0.18, 0.1), d() ** 2))
        f.ball((-0.025 * k, 0, 1.57 * k), (0.2 * k, 0.19 * k, 0.2 * k), hair, "person")
    if f.away < NEAR and d.chance(0.35):
        bag = _cloth(d)
        f.soft((-0.18 * k, 0, 1.0 * k), (0.16 * k, 0.3 * k, 0.4 * k), bag, "person", r=0.06)


def bicycle(f, d):
    frame = plain(hsv(d(), d(0.2, 0.9), d(0.05, 0.4)), 0.5)
    disc = Material("wheel", RUBBER.c0, (0.22, 0.22, 0.22), (0.16, 0.16, 0.16))
    for x in (-0.52, 0.52):
        f.rod(
            (x, 0, 0.33 - 0.012), (0.66, 0.024), disc, "bicycle", pitch=math.pi / 2, stretch="floor"
        )
    f.rod((-0.05, 0, 0.33), (0.04, 0.62), frame, "bicycle", roll=-0.28)
    f.rod((0.2, 0, 0.33), (0.035, 0.66), frame, "bicycle", roll=0.75)
    f.rod((0.02, 0, 0.64), (0.035, 0.62), frame, "bicycle", roll=math.pi / 2 - 0.05)
    f.rod((0.46, 0, 0.33), (0.035, 0.66), frame, "bicycle", roll=-0.25)
    f.soft((-0.15, 0, 0.93), (0.26, 0.16, 0.07), RUBBER, "bicycle", r=0.03)
    f.rod((0.4, 0, 0.74), (0.03, 0.56), DARK, "bicycle", pitch=math.pi / 2)


def cyclist(f, d):
    bicycle(f, d)
    coat, trousers = _cloth(d), _cloth(d)
    skin = plain(mix((0.50, 0.32, 0.23), (0.16, 0.08, 0.05), d() ** 2))
    f.soft((-0.02, 0, 0.95), (0.26, 0.4, 0.62), coat, "person", r=0.11, roll=0.45)
    f.ball((0.2, 0, 1.5), (0.22, 0.18, 0.25), skin, "person")
    f.ball((0.18, 0, 1.57), (0.25, 0.21, 0.2), _cloth(d), "person")
    for side in (-1, 1):
        f.rod((0.03, side * 0.1, 0.45), (0.14, 0.56), trousers, "person", roll=-0.55, top=1.2)
        f.rod((0.1, side * 0.1, 0.12), (0.12, 0.48), trousers, "person", roll=0.35)
        f.rod((0.28, side * 0.22, 0.92), (0.09, 0.56), coat, "person", roll=-0.85)


# ----------------------------------------------------------------------------------------- plants


def foliage(d, autumn=0.0):
    """Leaves of one tree."""
    c = hsv(d(0.2, 0.31), d(0.55, 0.8), d(0.09, 0.2))
    if d.chance(autumn):
        c = hsv(d(0.05, 0.14), d(0.7, 0.9), d(0.15, 0.3))
    return Material("leaves", dim(c, 0.6), dim(c, 1.5), dim(c, 0.25), d(1.8, 2.8))


def tree(f, d, leaf, height, *, bare=2.4):
    """A broad-leaved tree; `bare`: height of the lowest leaves."""
    spread = min(height * d(0.36, 0.5), 7.0)
    trunk = 0.05 * height * d(0.6, 0.9) + 0.08
    crown = height - bare
    f.rod((0, 0, -0.1), (trunk, bare + crown * 0.55), BARK, "tree", top=0.5)
    # Round masses of leaves on a big one, the more the nearer.
    f.ball((0, 0, bare + 0.12 * crown), (spread * 0.82, spread * 0.82, crown * 0.8), leaf, "tree")
    n = 8 if f.away < NEAR else 5 if f.away < MIDDLE else 3 if f.away < FAR else 1
    turn = d(0, 6.28)
    for i in range(n):
        a = turn + i * 2.4  # the golden angle
        level = (i + 0.5) / n
        out = spread * 0.3 * math.sin(math.pi * (0.18 + 0.72 * level))
        w = spread * d(0.36, 0.55)
        z = bare + crown * (0.06 + 0.62 * level)
        f.ball(
            (out * math.cos(a), out * math.sin(a), z), (w, w * d(0.85, 1.1), w * d(0.65, 0.9)),
            leaf, "tree",
        )  # fmt: skip


def conifer(f, d, leaf, height):
    wide = height * d(0.28, 0.4)
    f.rod((0, 0, -0.1), (0.03 * height + 0.06, height * 0.25), BARK, "tree")
    n = 4 if f.away < MIDDLE else 2
    for i in range(n):
        z = height * (0.1 + 0.8 * i / n)
        w = wide * (1 - 0.75 * i / n)
        f.rod(
            (0, 0, z), (w, height - z if i == n - 1 else height * 1.35 / n), leaf, "tree", top=0.12
        )


def cypress(f, d, leaf, height):
    f.ball((0, 0, 0.05), (height * 0.22, height * 0.22, height), leaf, "tree")


def bush(f, d, leaf, size):
    for _ in range(3 if f.away < NEAR else 1):
        w = size * d(0.7, 1.0)
        f.ball(
            (d(-0.35, 0.35) * size, d(-0.3, 0.3) * size, -0.1), (w, w, w * d(0.6, 0.95)), leaf,
            "hedge",
        )  # fmt: skip


# ------------------------------------------------------------------------------- street furniture


def street_lamp(f, d, height, *, arm=1.5):
    """Its arm leads along −y."""
    m = STEEL if d.chance(0.7) else plain((0.03, 0.05, 0.045), 0.2)
    f.rod((0, 0, 0), (0.16, height), m, "pole", top=0.55)
    f.rod((0, -arm / 2, height - arm / 2 - 0.05), (0.07, arm), m, "pole", pitch=math.pi / 2)
    f.soft((0, -arm - 0.15, height - 0.12), (0.22, 0.7, 0.12), STEEL, "pole", r=0.05)


def old_lamp(f, d):
    m = plain((0.02, 0.03, 0.028), 0.3)
    f.rod((0, 0, 0), (0.14, 3.6), m, "pole", top=0.6)
    f.rod((0, 0, 0), (0.24, 0.7), m, "pole", top=0.6)
    f.rod((0, 0, 3.6), (0.24, 0.42), plain((0.7, 0.7, 0.66), 0.6), "pole", top=1.6)
    f.rod((0, 0, 4.02), (0.46, 0.16), m, "pole", top=0.1)


def sign(f, d):
    """A traffic sign that faces along −x."""
    kind = d.weighted({"ring": 3, "priority": 1.5, "blue": 2, "yield": 1, "name": 1, "warning": 1})
    z, blue = d(2.1, 2.4), (0.01, 0.06, 0.35)
    f.rod((0, 0, 0), (0.065, z + 0.65), STEEL, "pole")
    turn = {"pitch": 0.0, "roll": -math.pi / 2}
    if kind == "ring":
        m = Material("ring_sign", (0.75,) * 3, (0.55, 0.02, 0.03), (0.02,) * 3)
        f.rod((-0.05, 0, z + 0.28), (0.62, 0.02), m, "sign", stretch="floor", **turn)
    elif kind == "blue":
        m = Material("arrow_sign", blue, blue, (0.75,) * 3)
        f.rod((-0.05, 0, z + 0.28), (0.62, 0.02), m, "sign", stretch="floor", **turn)
    elif kind in ("priority", "warning", "yield"):
        edge = (0.7,) * 3 if kind == "priority" else (0.55, 0.02, 0.03)
        field = (0.75, 0.5, 0.02) if kind == "priority" else (0.72,) * 3
        for x, size, c in ((-0.045, 0.5, edge), (-0.06, 0.36, field)):
            f.box(
                (x, 0, z + 0.3 - size / 2), (0.015, size, size), plain(c), "sign", pitch=math.pi / 4
            )
    else:
        f.box(
            (-0.05, 0, z + 0.2), (0.02, 0.62, 0.42), plain(blue if d.chance(0.5) else WHITE.c0),
            "sign",
        )  # fmt: skip


def street_name(f, d):
    f.rod((0, 0, 0), (0.06, 2.9), STEEL, "pole")
    f.box(
        (0, 0, 2.6), (0.9, 0.02, 0.18), plain((0.02, 0.05, 0.3) if d.chance(0.5) else WHITE.c0),
        "sign",
    )  # fmt: skip


def traffic_light(f, d, state):
    """Faces along −x. `state`: 0 red, 1 amber, 2 green."""
    f.rod((0, 0, 0), (0.11, 3.3), STEEL, "pole")
    f.box((-0.06, 0, 2.25), (0.22, 0.3, 0.95), DARK, "sign")
    for i, c in enumerate(((1.0, 0.03, 0.02), (1.0, 0.45, 0.02), (0.02, 0.9, 0.35))):
        on = i == state
        m = Material("plain", c, c, glow=2.2) if on else plain(dim(c, 0.06), 0.5)
        f.rod((-0.17, 0, 2.93 - 0.3 * i), (0.2, 0.03), m, "sign", roll=-math.pi / 2, casts=False)


def bin_(f, d):
    """A wheeled bin."""
    c = d.pick(((0.03, 0.035, 0.035), (0.02, 0.06, 0.2), (0.3, 0.22, 0.02), (0.03, 0.1, 0.04)))
    m = plain(c, 0.15)
    f.box((0, 0, 0.06), (0.52, 0.55, 0.9), m, "object")
    f.soft((0, 0, 0.96), (0.56, 0.62, 0.1), m, "object", r=0.04)


def litter_bin(f, d):
    m = plain(d.pick(((0.35, 0.08, 0.01), (0.03, 0.07, 0.05), (0.08, 0.08, 0.08))), 0.2)
    f.rod((0, 0, 0.35), (0.4, 0.6), m, "object", top=1.05)
    f.rod((0, 0, 0), (0.07, 0.5), STEEL, "object")


def bollard(f, d):
    f.rod((0, 0, 0), (0.11, 0.95), DARK, "object", top=0.9)
    f.rod((0, 0, 0.72), (0.118, 0.1), WHITE, "object", casts=False)


def bench(f, d):
    wood = plain((0.22, 0.12, 0.05))
    f.box((0, 0, 0.42), (1.7, 0.45, 0.06), wood, "object")
    f.box((0, 0.24, 0.55), (1.7, 0.05, 0.35), wood, "object", pitch=-0.2)
    for x in (-0.7, 0.7):
        f.box((x, 0.05, 0), (0.06, 0.45, 0.44), DARK, "object")


def junction_box(f, d):
    c = plain((d(0.25, 0.5),) * 3)
    f.box((0, 0, 0), (d(0.7, 1.2), 0.35, d(0.9, 1.3)), c, "object")


def column(f, d):
    """An advertising column."""
    poster = Material(
        "mondrian", hsv(d(), 0.6, 0.4), hsv(d(), 0.4, 0.6), (0.7, 0.7, 0.65), period=2.2
    )
    f.rod((0, 0, 0), (1.3, 0.5), STONE, "object")
    f.rod((0, 0, 0.5), (1.25, 2.3), poster, "object")
    f.rod((0, 0, 2.8), (1.45, 0.2), plain((0.04, 0.07, 0.06)), "object")


def shelter(f, d):
    """A bus stop; open towards −y."""
    f.box((0, 0.1, 2.35), (4.0, 1.7, 0.1), DARK, "object")
    pane = plain((0.20, 0.24, 0.25), 0.7)
    f.box((0, 0.85, 0.25), (3.9, 0.03, 2.0), pane, "object")
    for x in (-1.9, 1.9):
        f.box((x, 0.8, 0), (0.08, 0.08, 2.4), DARK, "pole")
        f.box((x, -0.5, 0), (0.08, 0.08, 2.4), DARK, "pole")
    poster = Material("letters", hsv(d(), 0.5, 0.6), hsv(d(), 0.6, 0.2), (0.02,) * 3)
    f.box((1.9, 0.15, 0.4), (0.12, 1.25, 1.8), poster, "object")
    f.box((-0.4, 0.6, 0.45), (2.2, 0.35, 0.05), plain((0.2, 0.12, 0.06)), "object")


# ----------------------------------------------------------------------------------------- houses

FACADES = {
    "city": ("windows", "windows", "windows_shutters", "windows_wide", "balconies"),
    "homes": ("windows", "windows_shutters", "windows_wide"),
    "blocks": ("windows_office", "balconies", "windows_wide"),
}
_CELLS = {"windows_wide": 3, "balconies": 3}  # windows of a texture's width; all have 4 storeys


def wall_material(d, kind):
    if d.chance(0.16):
        c = d.pick(((0.30, 0.11, 0.06), (0.36, 0.17, 0.1), (0.42, 0.33, 0.22)))
        return Material("brick", c, dim(c, 0.7), (0.40, 0.37, 0.34), 1.0)
    hue, s = d.pick(((d(0.07, 0.14), d(0.05, 0.4)), (d(), d(0, 0.18)), (d(0.02, 0.1), d(0.2, 0.5))))
    c = hsv(hue, s, d(0.38, 0.74))
    return Material("plaster", c, dim(c, 0.9), dim(c, 0.8), 4.0)


def roof_material(d):
    c = d.pick(
        ((0.27, 0.085, 0.045), (0.22, 0.08, 0.05), (0.07, 0.065, 0.065), (0.14, 0.075, 0.05))
    )
    c = dim(c, d(0.8, 1.3))
    return Material("roof_tiles", c, dim(c, 0.65), dim(c, 0.3), 4.0)


def _front(d, wall, texture):
    """The same wall with windows."""
    trim = hsv(d(), d(0, 0.6), d(0.06, 0.3)) if "shutters" in texture else (d(0.5, 0.74),) * 3
    if texture == "windows_office":
        trim = dim(wall.c0, 0.6)
    return Material(texture, wall.c0, (0.025, 0.032, 0.04), trim, gloss=0.12)


def house(f, d, width, depth, storeys, kind, *, shop=False, gable=False, flat=False):
    """Its front stands along x at y = 0; eaves at 3 m a storey. Returns its height."""
    wall, roof = wall_material(d, kind), roof_material(d)
    storey = d(2.8, 3.2) if kind != "city" else d(3.0, 3.5)
    ground = storey * (1.15 if shop else 1.0)
    h = ground + storey * (storeys - 1)
    f.box((0, depth / 2, -0.3), (width, depth, h + 0.3), wall, "house")
    texture = d.pick(FACADES[kind])
    front = _front(d, wall, texture)
    cells, pitch = _CELLS.get(texture, 4), d(2.3, 3.0) * (1.3 if texture in _CELLS else 1.0)
    plate = {"casts": False}
    if storeys > 1:
        n = max(1, round((width - 0.4) / pitch))
        up = (storeys - 1) * storey
        f.box(
            (0, 0, ground), (width - 0.02, 0.06, up), front, "house",
            stretch=(n / cells, up / storey / 4), **plate,
        )  # fmt: skip
    if shop:
        c = hsv(d(), d(0.1, 0.8), d(0.03, 0.5))
        m = Material("shop", dim(wall.c0, d(0.5, 1)), (0.03, 0.035, 0.04), c, gloss=0.15)
        n = max(1, round(width / 7))
        f.box((0, 0, -0.1), (width - 0.02, 0.08, ground + 0.1), m, "house", stretch=(n, 1), **plate)
        if f.away < MIDDLE and d.chance(0.35):
            awning = Material("stripes", c, (0.6, 0.6, 0.58), dim(c, 0.8), 1.6)
            f.box((0, -0.55, ground * 0.72), (width * 0.6, 1.25, 0.06), awning, "house", pitch=0.3)
    else:
        n = max(1, round(width / 8))
        m = front._replace(texture="ground_floor", c2=(d(0.4, 0.7),) * 3)
        f.box((0, 0, -0.1), (width - 0.02, 0.06, ground + 0.1), m, "house", stretch=(n, 1), **plate)
    # Sides that can be seen have fewer windows.
    if f.away < FAR and d.chance(0.6) and storeys > 1:
        n = max(1, round(depth / 4.5))
        for x in (-width / 2, width / 2):
            if x * f.eye[0] < 0:
                continue
            side = f.at(x, depth / 2, 0, math.pi / 2)
            m = front._replace(texture="windows")
            side.box(
                (0, 0, ground * 0.15), (depth - 1.6, 0.06, h * 0.93 - ground * 0.15), m, "house",
                stretch=(n / 4, storeys / 4), **plate,
            )  # fmt: skip
    if flat:
        edge = plain(dim(wall.c0, 0.7))
        f.box((0, depth / 2, h), (width + 0.2, depth + 0.2, d(0.3, 0.6)), edge, "house")
        return h + 0.5
    over = d(0.25, 0.5)
    if gable:  # the gable faces the street
        g = f.at(0, depth / 2, 0, math.pi / 2)
        across, along = width, depth
    else:
        g = f.at(0, depth / 2)
        across, along = depth, width
    rise = across / 2 * d(0.55, 0.95)
    g.ridge((0, 0, h), (along - 0.02, across, rise), wall, "house")
    # The roof proper, a hand's breadth above and shorter at the gables than its eaves are wide.
    lift = 0.28
    g.ridge(
        (0, 0, h - over * rise / across * 2 + lift),
        (along - (0.12 if not gable else 0.3), across + 2 * over, rise + over * rise / across * 2),
        roof, "house",
    )  # fmt: skip
    if gable and f.away < MIDDLE:
        f.box(
            (0, 0, h + 0.1), (width * 0.3, 0.06, rise * 0.42), front._replace(texture="windows"),
            "house", stretch=(0.5, 0.25), **plate,
        )  # fmt: skip
    if not gable and f.away < FAR:
        f.box(
            (0, -over + 0.02, h - over * rise / across * 2 + lift - 0.08), (width, 0.12, 0.12),
            WHITE, "house", **plate,
        )  # fmt: skip
        slope = rise / (across / 2)
        n = d.int(1, max(1, int(width / 4.5))) if d.chance(0.35) else 0
        for i in range(n):  # dormers
            x = (i + 0.5) / n * width - width / 2
            y = depth * 0.17
            z = h + y * slope
            f.box((x, y + 0.9, z - 0.2), (1.3, 2.0, 1.5), wall, "house")
            f.box(
                (x, y - 0.1, z + 0.05), (1.2, 0.04, 1.15), front._replace(texture="windows"),
                "house", stretch=(0.25, 0.25), **plate,
            )  # fmt: skip
            f.box((x, y + 0.85, z + 1.3), (1.6, 2.3, 0.12), roof, "house")
    if f.away < FAR and d.chance(0.75):
        stack = plain((0.25, 0.12, 0.08), texture="brick")
        x, up = along * d(-0.35, 0.35), rise * 0.45 + d(0.5, 1.0)
        g.box((x, across * 0.12, h + rise * 0.55), (0.6, 0.6, up), stack, "house")
    return h + rise


def shed(f, d, width, depth, height):
    """A garage."""
    wall = wall_material(d, "homes")
    f.box((0, depth / 2, -0.3), (width, depth, height + 0.3), wall, "house")
    f.box(
        (0, depth / 2, height), (width + 0.3, depth + 0.3, 0.18), plain((0.2, 0.19, 0.18)), "house"
    )
    door = Material("slats", (0.5,) * 3, (0.42,) * 3, (0.3,) * 3, 2.4)
    f.box((0, 0, 0), (width - 0.7, 0.06, height - 0.35), door, "house", casts=False)
