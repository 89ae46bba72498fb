"""What a scene is: named solids of materials, lights, a sky, a camera. It can be made by hand or by
`rooms` and `streets`, changed, and rendered again.

World: x, y horizontal, z up, in metres. Camera: x right, y down, z forward. Pixel (u, v) has its
centre at integer coordinates: x = (u - cx) / fx.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from .textures import TEXTURES

BOX, ROUND, CONE, ELLIPSOID = range(4)
MAX_SOLIDS = 511  # the low 9 bits of a key; 511 itself stands for "nothing"


class Columns:
    """Names for the columns of a table: one wide is an index, a wider one a slice.

    With `LAMP = Columns(position=3, power=1)`, `LAMP.row(position=(1, 2, 3), power=4)` is a row to
    write and `table[LAMP.position]` reads its part.
    """

    def __init__(self, **widths):
        self.widths, at = widths, 0
        for name, width in widths.items():
            setattr(self, name, at if width == 1 else slice(at, at + width))
            at += width

    def row(self, **values) -> list:
        if values.keys() != self.widths.keys():
            raise TypeError(f"columns are {', '.join(self.widths)}; got {', '.join(values)}")
        row = []
        for name, width in self.widths.items():
            row += values[name] if width > 1 else (values[name],)
        return row


GEOMETRY = Columns(unit=9, centre=3, axes=9, half=3, extra=1)
MATERIAL = Columns(
    c0=3, c1=3, c2=3, texture=1, scale_u=1, scale_v=1, offset_u=1, offset_v=1, gloss=1, glow=1,
    longest=1, world_uv=1,
)  # fmt: skip


class Material(NamedTuple):
    """How a surface looks. `texture` is a name of `textures`; colours are linear RGB.

    The texture's two channels mix the colours: lerp(lerp(c0, c1, m), c2, d).
    """

    texture: str = "plain"
    c0: tuple = (0.7, 0.7, 0.7)
    c1: tuple = (0.6, 0.6, 0.6)
    c2: tuple = (0.3, 0.3, 0.3)
    period: float = 1.0  # metres per repeat of the texture
    gloss: float = 0.0  # 0 matt … 1 mirror-like varnish
    glow: float = 0.0  # emitted radiance, times the colour
    grain: bool = False  # turn the texture so that it runs along the solid's longest side


@dataclass
class Light:
    """A small area light. `axis` and `focus`: 0 shines everywhere alike, 1 as a flat panel.

    `shadow`: None, or the half-angle's tangent of the cone (around `axis`) in which it casts
    shadows; `beyond` is the light left outside that cone. `zone`: (lo, hi) corners outside which
    it does not reach.
    """

    position: tuple
    colour: tuple
    axis: tuple = (0.0, 0.0, -1.0)
    focus: float = 0.0
    radius: float = 0.3
    shadow: float | None = None
    beyond: float = 1.0
    zone: tuple = ((-1e3, -1e3, -1e3), (1e3, 1e3, 1e3))
    softness: float = 1.0  # of the shadow's rim, in texels of the shadow map
    fade: float = 0.2  # rim of the shadow's cone in which shadows fade, of its width
    name: str = ""  # of the thing that it belongs to


@dataclass
class Sky:
    """What rays meet that leave the scene, and the air before it. Colours are linear RGB.

    `sun`: unit vector towards it. `clouds`: 0 none … 1 closed. `haze`: metres of air after which
    1/e of a surface's own light is left and the rest is the horizon's.
    """

    zenith: tuple
    horizon: tuple
    sun: tuple
    glow: tuple = (0.0, 0.0, 0.0)
    clouds: float = 0.0
    cloud: tuple = (1.0, 1.0, 1.0)
    drift: tuple = (0.0, 0.0)
    haze: float = 1e4


@dataclass(eq=False)
class Solid:
    """One solid. Never changed in place: `dataclasses.replace` makes another.

    Args:
        half: half sizes (3,).
        rotation: 3 rows; the solid's axes in world coordinates are its columns.
        extra: rounding radius (ROUND), top/bottom radius (CONE).
        stretch: the texture covers the solid's x–z face once ("floor": its x–y face; a pair of
            numbers: so many times along x and z).
        inverse: that of `rotation`, where its columns are not at right angles (sheared solids).
        name: of the thing that it is a part of, "car 2".
    """

    kind: int
    centre: tuple
    half: tuple
    rotation: tuple
    material: Material
    label: int
    extra: float = 0.0
    casts: bool = True
    world_uv: bool = False
    stretch: bool | str | tuple = False
    inverse: tuple | None = None
    name: str = ""

    @cached_property
    def unit(self) -> list:
        """World → unit solid, 3 × 3 numbers (a rounded box keeps its size)."""
        scale = (1.0, 1.0, 1.0) if self.kind == ROUND else tuple(1 / h for h in self.half)
        back = self.inverse or tuple(zip(*self.rotation, strict=True))
        return [back[i][j] * scale[i] for i in range(3) for j in range(3)]

    @cached_property
    def geometry(self) -> list:
        """A row of GEOMETRY."""
        axes = [self.rotation[i][j] * self.half[j] for i in range(3) for j in range(3)]
        return GEOMETRY.row(
            unit=self.unit, centre=self.centre, axes=axes, half=self.half, extra=self.extra
        )

    @cached_property
    def surface(self) -> list:
        """A row of MATERIAL."""
        m, half = self.material, self.half
        nu = nv = 0
        if self.stretch:
            nu, nv = self.stretch if isinstance(self.stretch, tuple) else (1, 1)
            other = half[1] if self.stretch == "floor" else half[2]
        return MATERIAL.row(
            c0=m.c0, c1=m.c1, c2=m.c2, texture=TEXTURES.index(m.texture),
            scale_u=0.5 * nu / half[0] if nu else 1 / m.period,
            scale_v=0.5 * nv / other if nv else 1 / m.period, offset_u=0.5 * nu, offset_v=0.5 * nv,
            gloss=m.gloss, glow=m.glow,
            longest=max(range(3), key=lambda i: half[i]) if m.grain else -1,
            world_uv=float(self.world_uv),
        )  # fmt: skip


@dataclass
class Scene:
    """Solids, lights, ambient light."""

    solids: list[Solid] = field(default_factory=list)
    lights: list[Light] = field(default_factory=list)
    ambient_up: tuple = (0.3, 0.3, 0.3)  # light that falls on a surface facing up
    ambient_down: tuple = (0.2, 0.2, 0.2)
    sky: Sky | None = None  # without it, rays that leave the scene are black
    counts: dict = field(default_factory=dict)  # name → how many things are called so
    current: str = ""  # the thing that is being made

    def add(self, kind, centre, half, rotation, material, label, **options):
        """One solid; see `Solid`."""
        if len(self.solids) >= MAX_SOLIDS:
            raise ValueError(f"A scene holds at most {MAX_SOLIDS} solids.")
        if self.current:
            options["name"] = self.current
        self.solids.append(Solid(kind, centre, half, rotation, material, label, **options))

    def add_light(self, light):
        """A light that belongs to what is being made, and moves with it."""
        self.lights.append(replace(light, name=self.current))

    @contextmanager
    def thing(self, name):
        """Solids added within are one thing: "chair 1", the next one "chair 2". What is made while
        a thing is made is a part of that."""
        if self.current:
            yield
            return
        self.counts[name] = n = self.counts.get(name, 0) + 1
        self.current = f"{name} {n}"
        try:
            yield
        finally:
            self.current = ""

    # ---- changes, in place; `copy` first to keep what was

    def copy(self) -> Scene:
        lists = {"solids": [*self.solids], "lights": [*self.lights], "counts": {**self.counts}}
        return replace(self, **lists)

    @property
    def names(self) -> list[str]:
        """Of all things, in the order of their making."""
        return [*dict.fromkeys(solid.name for solid in self.solids if solid.name)]

    def _change(self, name, solid, light):
        """Map the solids and lights of a thing ("chair 2"), or of all of a kind ("chair")."""
        mine = {n for n in self.names if name in (n, n.rsplit(" ", 1)[0])}
        if not mine:
            raise KeyError(f"No thing {name!r}. There are: {', '.join(self.names) or 'none'}.")
        for parts, change in ((self.solids, solid), (self.lights, light)):
            parts[:] = (change(x) if x.name in mine else x for x in parts)

    def move(self, name, by):
        """Move a thing and its lights by metres (x, y, z) of the world."""

        def moved(p):
            return tuple(a + b for a, b in zip(p, by, strict=True))

        self._change(
            name,
            lambda solid: replace(solid, centre=moved(solid.centre)),
            lambda light: replace(light, position=moved(light.position)),
        )

    def remove(self, name):
        self._change(name, lambda solid: None, lambda light: None)
        for parts in (self.solids, self.lights):
            parts[:] = [x for x in parts if x is not None]

    def recolour(self, name, c0, c1=None, c2=None):
        """Give a thing's materials other colours; see `Material`."""
        colours = {"c0": c0, "c1": c1 or c0, "c2": c2 or c1 or c0}
        self._change(
            name,
            lambda solid: replace(solid, material=solid.material._replace(**colours)),
            lambda light: light,
        )

    def relight(self, factor):
        """Multiply all light, the sky's too, by a number or by (r, g, b)."""
        rgb = factor if isinstance(factor, tuple) else (factor,) * 3

        def lit(colour):
            return tuple(a * b for a, b in zip(colour, rgb, strict=True))

        self.lights[:] = (replace(light, colour=lit(light.colour)) for light in self.lights)
        self.ambient_up, self.ambient_down = lit(self.ambient_up), lit(self.ambient_down)
        if self.sky is not None:
            names = ("zenith", "horizon", "glow", "cloud")
            self.sky = replace(self.sky, **{n: lit(getattr(self.sky, n)) for n in names})


class Camera(NamedTuple):
    """position (3,); rotation: 3 rows, columns = camera axes (right, down, forward) in world;
    intrinsics (fx, fy, cx, cy) in pixels."""

    position: tuple
    rotation: tuple
    intrinsics: tuple

    def moved(self, right=0.0, down=0.0, ahead=0.0) -> Camera:
        """So many metres along its own axes."""
        position = tuple(
            p + right * r[0] + down * r[1] + ahead * r[2]
            for p, r in zip(self.position, self.rotation, strict=True)
        )
        return self._replace(position=position)

    @classmethod
    def towards(cls, position, target, intrinsics) -> Camera:
        """A level camera at one point of the world that looks at another."""
        dx, dy, dz = (b - a for a, b in zip(position, target, strict=True))
        pitch = math.atan2(dz, math.hypot(dx, dy))
        return cls(*pose(position, math.atan2(dy, dx), pitch, 0.0), intrinsics)


def pose(position, heading, pitch, roll):
    """A camera as held: heading in the horizontal plane, pitch up, roll clockwise; radians."""
    ca, sa, cp, sp = math.cos(heading), math.sin(heading), math.cos(pitch), math.sin(pitch)
    forward = (cp * ca, cp * sa, sp)
    right = (sa, -ca, 0.0)
    down = (ca * sp, sa * sp, -cp)
    c, s = math.cos(roll), math.sin(roll)
    right, down = (
        tuple(c * r + s * q for r, q in zip(right, down, strict=True)),
        tuple(c * q - s * r for r, q in zip(right, down, strict=True)),
    )
    return position, tuple(zip(right, down, forward, strict=True))
