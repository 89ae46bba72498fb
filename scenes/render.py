"""A small ray caster in plain torch: analytic solids, textures, lights with shadows.

It knows nothing of rooms. A `Scene` is a list of solids (boxes, rounded boxes, cones, ellipsoids)
with materials, and a list of lights; `render` turns several scenes and cameras into images,
z-depth, normals and labels in one go, on whichever device it is told. Nothing loops over pixels or
solids:

- Every solid is an affine image of a unit solid, so one camera ray (x, y, 1) becomes
  o + t (a_x x + a_y y + a_z) in the unit frame and t *is* the z-depth.
- The image is cut into tiles of 8×8 pixels. Only the pairs (tile, solid) whose solid may be seen
  in the tile are intersected, all of one kind in a few vectorised operations.
- The nearest hit is a minimum over integer keys (depth in the high bits, solid in the low ones),
  which does not depend on the order in which they are met.
- Lights see the scene through the same function (shadow maps).
- Silhouettes are sampled four more times, against the solids met next to them only.

Frames: world x, y horizontal, z up, in metres. Camera x right, y down, z forward.
Pixel (u, v) has its centre at integer coordinates: x = (u - cx) / fx.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from .textures import SIZE as TEXTURE_SIZE
from .textures import TEXTURES
from .textures import sample as texture

BOX, ROUND, CONE, ELLIPSOID = range(4)
TILE = 8
MAX_SOLIDS = 511  # the low 9 bits of a key; 511 itself stands for "nothing"
_KEY_STEPS = 4_177_000  # depth steps of a key; beyond, the key's bits would be those of a NaN
_CHUNK = 1024  # tiles intersected at a time on a CPU: 64k rays, so that temporaries stay in cache


# --------------------------------------------------------------------------------------- scenes


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


@dataclass
class Scene:
    """Solids, lights, ambient light. Rows are plain lists until `render` stacks them."""

    geometry: list = field(default_factory=list)
    material: list = field(default_factory=list)
    label: list = field(default_factory=list)
    kind: list = field(default_factory=list)
    casts: list = field(default_factory=list)
    lights: list = field(default_factory=list)
    ambient_up: tuple = (0.3, 0.3, 0.3)  # light that falls on a surface facing up
    ambient_down: tuple = (0.2, 0.2, 0.2)
    sky: Sky | None = None  # without it, rays that leave the scene are black

    def add(
        self,
        kind,
        centre,
        half,
        rotation,
        material,
        label,
        *,
        extra=0.0,
        casts=True,
        world_uv=False,
        stretch=False,
        offset=(0.0, 0.0),
        inverse=None,
    ):
        """One solid. `half`: half sizes (3,). `rotation`: 3 rows, the solid's axes in world
        coordinates are its columns. `extra`: rounding radius (ROUND), top/bottom radius (CONE).
        `stretch`: the texture covers the solid's x–z face once ("floor": its x–y face; a pair of
        numbers: so many times along x and z). `inverse`: that of `rotation`, where its columns
        are not at right angles (sheared solids)."""
        if len(self.kind) >= MAX_SOLIDS:
            raise ValueError(f"A scene holds at most {MAX_SOLIDS} solids.")
        r = rotation
        scale = (1.0, 1.0, 1.0) if kind == ROUND else tuple(1 / h for h in half)
        back = inverse or tuple(zip(*r, strict=True))
        row = [back[i][j] * scale[i] for i in range(3) for j in range(3)]  # world → unit
        row += centre
        row += [r[i][j] * half[j] for i in range(3) for j in range(3)]  # unit → world extents
        row += half
        row.append(extra)
        self.geometry.append(row)
        m = material
        if stretch:
            other = half[1] if stretch == "floor" else half[2]
            nu, nv = stretch if isinstance(stretch, tuple) else (1, 1)
            uv = (0.5 * nu / half[0], 0.5 * nv / other, 0.5 * nu, 0.5 * nv)
        else:
            uv = (1 / m.period, 1 / m.period, *offset)
        longest = max(range(3), key=lambda i: half[i]) if m.grain else -1
        self.material.append(
            [*m.c0, *m.c1, *m.c2, TEXTURES.index(m.texture), *uv, m.gloss, m.glow, longest]
            + [float(world_uv)]
        )
        self.label.append(label)
        self.kind.append(kind)
        self.casts.append(casts)


class Camera(NamedTuple):
    """position (3,); rotation: 3 rows, columns = camera axes (right, down, forward) in world;
    intrinsics (fx, fy, cx, cy) in pixels."""

    position: tuple
    rotation: tuple
    intrinsics: tuple


class Solids(NamedTuple):
    """The solids of several scenes in one table."""

    unit: torch.Tensor  # (P, 3, 3) world → unit frame
    centre: torch.Tensor  # (P, 3)
    axes: torch.Tensor  # (P, 3, 3) columns: half extents in world
    half: torch.Tensor  # (P, 3)
    extra: torch.Tensor  # (P,)
    material: torch.Tensor  # (C, P)
    label: torch.Tensor  # (P,)
    kind: torch.Tensor  # (P,)
    casts: torch.Tensor  # (P,) bool
    start: torch.Tensor  # (S,) first solid of each scene
    count: torch.Tensor  # (S,)


def stack_solids(scenes, device) -> Solids:
    def table(name, dtype=torch.float32):
        rows = [row for s in scenes for row in getattr(s, name)]
        return torch.tensor(rows, dtype=dtype).to(device)

    g = table("geometry")
    count = torch.tensor([len(s.kind) for s in scenes])
    return Solids(
        g[:, :9].reshape(-1, 3, 3),
        g[:, 9:12],
        g[:, 12:21].reshape(-1, 3, 3),
        g[:, 21:24],
        g[:, 24],
        table("material").T.contiguous(),
        table("label", torch.int64),
        table("kind", torch.int64),
        table("casts", torch.bool),
        (count.cumsum(0) - count).to(device),
        count.to(device),
    )


class Views(NamedTuple):
    """V cameras of one image size."""

    scene: torch.Tensor  # (V,) index of the scene looked at
    position: torch.Tensor  # (V, 3)
    rotation: torch.Tensor  # (V, 3, 3)
    fx: torch.Tensor  # (V,) …
    fy: torch.Tensor
    cx: torch.Tensor
    cy: torch.Tensor


def stack_views(cameras, scene, device) -> Views:
    rows = [[*c.position, *(x for r in c.rotation for x in r), *c.intrinsics] for c in cameras]
    t = torch.tensor(rows, dtype=torch.float32).to(device)
    scene = torch.tensor(scene).to(device)
    return Views(scene, t[:, :3], t[:, 3:12].reshape(-1, 3, 3), *t[:, 12:16].unbind(1))


# ---------------------------------------------------------------------------------- intersection


def _hit_box(o, d):
    """Entry distance of o + t d into the cube [-1, 1]³ (per axis lists), and whether it hits."""
    near = far = None
    for oi, di in zip(o, d, strict=True):
        inv = di.reciprocal()
        mid = inv * -oi
        ext = inv.abs()
        lo, hi = mid - ext, mid.add_(ext)
        near = lo if near is None else torch.maximum(near, lo, out=near)
        far = hi if far is None else torch.minimum(far, hi, out=far)
    return near, near < far


def _hit_ellipsoid(o, d):
    # From the point nearest to the centre: the usual b² - ac loses all digits for small spheres.
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    nearest = (d[0] * o[0] + d[1] * o[1] + d[2] * o[2]) / -a
    p = [nearest * di + oi for oi, di in zip(o, d, strict=True)]
    rest = 1 - (p[0] * p[0] + p[1] * p[1] + p[2] * p[2])
    return nearest - (rest.clamp(min=0) / a).sqrt_(), rest > 0


def _hit_cone(o, d, ratio):
    """Truncated cone around z: radius 1 at z = -1, `ratio` at z = 1."""
    a = d[0] * d[0] + d[1] * d[1] + d[2] * d[2]
    nearest = (d[0] * o[0] + d[1] * o[1] + d[2] * o[2]) / -a
    px, py, pz = (nearest * di + oi for oi, di in zip(o, d, strict=True))
    slope = (ratio - 1) / 2
    radius = slope * pz + (ratio + 1) / 2
    sd = slope * d[2]
    a = d[0] * d[0] + d[1] * d[1] - sd * sd
    a = a + (a.abs() < 1e-9) * 1e-9
    b = d[0] * px + d[1] * py - sd * radius
    c = px * px + py * py - radius * radius
    disc = b * b - a * c
    root = disc.clamp(min=0).sqrt_()
    real = disc > 0
    cap = (-d[2].sign() - pz) / d[2]  # the cap that faces the ray
    x, y = px + cap * d[0], py + cap * d[1]
    top = slope * -d[2].sign() + (ratio + 1) / 2
    best = cap.masked_fill(x * x + y * y > top * top * 1.00001, torch.inf)
    for t in ((-b - root) / a, (root - b) / a):
        z = pz + t * d[2]
        ok = real & (z.abs() <= 1) & (slope * z + (ratio + 1) / 2 >= 0)
        best = torch.minimum(best, t.masked_fill(~ok, torch.inf))
    return nearest + best, best < torch.inf


def _hit_round(o, d, half, radius):
    """Rounded box (a box grown by a sphere): Newton on its signed distance, convex along a ray,
    hence it converges from the entry into the bounding box without overshooting."""
    near = far = None
    for oi, di, h in zip(o, d, half, strict=True):
        inv = di.reciprocal()
        mid, ext = inv * -oi, inv.abs() * h
        near = mid - ext if near is None else torch.maximum(near, mid - ext)
        far = mid + ext if far is None else torch.minimum(far, mid + ext)
    t, inside = near, near < far
    for _ in range(5):
        p = [t * di + oi for oi, di in zip(o, d, strict=True)]
        q = [(pi.abs() - (h - radius)).clamp_(min=0) for pi, h in zip(p, half, strict=True)]
        dist = (q[0] * q[0] + q[1] * q[1] + q[2] * q[2]).sqrt_() + 1e-9
        slope = sum(qi * pi.sign() * di for qi, pi, di in zip(q, p, d, strict=True)) / dist
        gap = dist - radius
        # Moving away from the solid: a miss. The step is then meaningless but harmless.
        t = t - gap / slope.clamp(max=-1e-6)
    return t, inside & (gap < 1e-3) & (t <= far)


# ------------------------------------------------------------------------------------------ cast

_SIGNS = torch.tensor([[sx, sy, sz] for sx in (-1, 1) for sy in (-1, 1) for sz in (-1, 1)]).float()
_EDGES = [(a, b) for a in range(8) for b in range(a) if (a ^ b) in (1, 2, 4)]
_EDGE_A, _EDGE_B = (torch.tensor(e) for e in zip(*_EDGES, strict=True))


class Hits(NamedTuple):
    solid: torch.Tensor  # (V, H, W) row of Solids, −1 where nothing is met
    depth: torch.Tensor  # (V, H, W) z-depth to 1e-6 of the range; `far` where nothing is met
    pair: torch.Tensor  # (V, H, W) row of o and a
    o: torch.Tensor  # (3, pairs) the camera's position in the solid's unit frame
    a: torch.Tensor  # (9, pairs) camera ray → unit frame
    first: torch.Tensor  # (V,) first pair of each view


def cast(solids, views, size, *, far=16.0, shadow=False, near=0.05) -> Hits:
    """What each pixel of each view sees. `shadow`: only solids that cast shadows."""
    dev = solids.unit.device
    height, width = size
    th, tw = -(-height // TILE), -(-width // TILE)
    n_views = len(views.scene)

    # All pairs (view, solid of its scene).
    count = solids.count[views.scene]
    v = torch.repeat_interleave(torch.arange(n_views, device=dev), count)
    first = count.cumsum(0) - count
    local = torch.arange(len(v), device=dev) - first[v]
    s = solids.start[views.scene][v] + local
    rot, pos = views.rotation[v], views.position[v]
    shift = pos - solids.centre[s]
    a = solids.unit[s] @ rot
    o = (solids.unit[s] @ shift[..., None])[..., 0]

    # The tiles that the solid's bounding box can touch; edges are clipped at the near plane.
    back = rot.mT
    corners = (back @ solids.axes[s]) @ _SIGNS.to(dev).T - back @ shift[..., None]
    p, q = corners[..., _EDGE_A.to(dev)], corners[..., _EDGE_B.to(dev)]
    w = (near - p[:, 2:]) / (q - p)[:, 2:]
    crossing = (w > 0) & (w < 1)
    points = torch.cat([corners, p + w * (q - p)], -1)
    seen = torch.cat([corners[:, 2] >= near, crossing[:, 0]], -1)
    box = []
    for i, f, c, n in ((0, views.fx, views.cx, tw), (1, views.fy, views.cy, th)):
        u = points[:, i] / points[:, 2].clamp(min=near * 0.5) * f[v][:, None] + c[v][:, None]
        lo = u.masked_fill(~seen, torch.inf).amin(-1)
        hi = u.masked_fill(~seen, -torch.inf).amax(-1)
        lo = ((lo - 0.01) / TILE).floor().clamp(0, n)
        hi = ((hi + 0.01) / TILE).floor().clamp(-1, n - 1)
        box += [lo.long(), (hi - lo + 1).clamp(min=0).long()]
    x0, nx, y0, ny = box
    tiles = nx * ny
    if shadow:
        tiles = tiles * solids.casts[s]

    best = torch.full((n_views * th * tw, TILE * TILE), torch.inf, device=dev)
    scale = _KEY_STEPS / far
    step = torch.arange(TILE, device=dev, dtype=torch.float32)
    kind = solids.kind[s]
    half, extra = solids.half[s], solids.extra[s]
    chunk = _CHUNK if dev.type == "cpu" else 1 << 16
    for k in range(4):
        sel = ((kind == k) & (tiles > 0)).nonzero()[:, 0]
        if not len(sel):
            continue
        n = tiles[sel]
        pair = torch.repeat_interleave(sel, n)
        rank = torch.arange(len(pair), device=dev) - torch.repeat_interleave(n.cumsum(0) - n, n)
        row = torch.div(rank, nx[pair], rounding_mode="floor")
        tx, ty = x0[pair] + rank - row * nx[pair], y0[pair] + row
        tile = (v[pair] * th + ty) * tw + tx
        for pr, tx_, ty_, tl in zip(*(z.split(chunk) for z in (pair, tx, ty, tile)), strict=True):
            vv = v[pr]
            x = ((tx_ * TILE - views.cx[vv])[:, None] + step) / views.fx[vv][:, None]
            y = ((ty_ * TILE - views.cy[vv])[:, None] + step) / views.fy[vv][:, None]
            ap, op = a[pr], o[pr]
            d = [
                (ap[:, i, 0, None] * x)[:, None, :]
                + (ap[:, i, 1, None] * y + ap[:, i, 2, None])[:, :, None]
                for i in range(3)
            ]
            d = [di.flatten(1) for di in d]
            oo = list(op[..., None].unbind(1))
            if k == BOX:
                t, ok = _hit_box(oo, d)
            elif k == ELLIPSOID:
                t, ok = _hit_ellipsoid(oo, d)
            elif k == CONE:
                t, ok = _hit_cone(oo, d, extra[pr][:, None])
            else:
                t, ok = _hit_round(oo, d, half[pr][..., None].unbind(1), extra[pr][:, None])
            t = t.masked_fill_(~(ok & (t > near)), far).clamp_(max=far)
            key = (t.mul_(scale) + 0.5).to(torch.int32)
            key = key.mul_(512).add_(local[pr][:, None].int()).view(torch.float32)
            best.scatter_reduce_(0, tl[:, None].expand_as(key), key, "amin")

    best = best.reshape(n_views, th, tw, TILE, TILE).transpose(2, 3).contiguous()
    best = best.reshape(n_views, th * TILE, tw * TILE)[:, :height, :width].contiguous()
    bits = best.view(torch.int32)
    ident = (bits & 511).long()
    depth = (bits >> 9).float().div_(scale).clamp_(max=far)
    nothing = bits >= _KEY_STEPS * 512
    ident = ident.masked_fill(nothing, 0)
    pair = ident + first[:, None, None]
    solid = (ident + solids.start[views.scene][:, None, None]).masked_fill_(nothing, -1)
    return Hits(solid, depth, pair, o.T.contiguous(), a.flatten(1).T.contiguous(), first)


# --------------------------------------------------------------------------------------- surface


class Surface(NamedTuple):
    """Of N samples: z-depth (N,), normal in camera frame (3, N), texture coordinates, …"""

    depth: torch.Tensor
    normal: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor


def _pick(table, index):
    """Columns of a (C, n) table; a single column broadcasts instead (most CPU calls)."""
    return table if table.shape[1] == 1 else table.index_select(1, index)


def _largest(x):
    """`x.argmax(0)` of (3, N), which takes ten times as long."""
    first = torch.where(x[1] > x[0], 1, 0)
    return first.masked_fill_(x[2] > torch.maximum(x[0], x[1]), 2)


def surface(solids, hits, solid, pair, x, y, depth, world=None) -> Surface:
    """Exact depth (one Newton step from the quantised one), normal and texture coordinates."""
    o, a = hits.o.index_select(1, pair), hits.a.index_select(1, pair)
    d = [a[3 * i] * x + a[3 * i + 1] * y + a[3 * i + 2] for i in range(3)]
    p = [o[i] + depth * d[i] for i in range(3)]
    kind = solids.kind.index_select(0, solid)
    half = solids.half.T.contiguous().index_select(1, solid)

    # As if all were boxes; the few others are overwritten below.
    # Faces turned away cannot have been hit, though rounding may put an edge's hit on them.
    size = [pi.abs() - 2.0 * (pi * di > 0) for pi, di in zip(p, d, strict=True)]
    first = size[0] >= size[1]
    value = torch.maximum(size[0], size[1])
    third = size[2] > value
    face = torch.where(first, 0, 1).masked_fill_(third, 2)
    value = torch.maximum(value, size[2]).sub_(1)
    first, second = first & ~third, ~(first | third)
    p = torch.stack(p)
    grad = p.sign() * torch.stack([first, second, third])
    metric = p * half

    for k in (ROUND, CONE, ELLIPSOID):
        n = (kind == k).nonzero()[:, 0]
        if not len(n):
            continue
        pk, hk = p.index_select(1, n), half.index_select(1, n)
        if k == ELLIPSOID:
            g, f = pk, ((pk * pk).sum(0) - 1) / 2
            near_face = _largest((pk / hk).abs())
        elif k == ROUND:
            r = solids.extra[solid[n]]
            q = (pk.abs() - (hk - r)).clamp_(min=0)
            dist = (q * q).sum(0).sqrt() + 1e-9
            g, f = q / dist * pk.sign(), dist - r
            near_face = _largest(g.abs())
            metric[:, n] = pk
        else:
            ratio = solids.extra[solid[n]]
            slope, mid = (ratio - 1) / 2, (ratio + 1) / 2
            rho = (pk[0] ** 2 + pk[1] ** 2).sqrt() + 1e-9
            side, cap = rho - (slope * pk[2] + mid), pk[2].abs() - 1
            zero = torch.zeros_like(rho)
            g = torch.stack([pk[0] / rho, pk[1] / rho, -slope])
            dk = [di.index_select(0, n) for di in d]
            away = g[0] * dk[0] + g[1] * dk[1] + g[2] * dk[2] >= 0
            is_cap = ((cap > side) | away) & (pk[2] * dk[2] < 0)
            g = torch.where(is_cap, torch.stack([zero, zero, pk[2].sign()]), g)
            f = torch.where(is_cap, cap, side)
            near_face = torch.where(is_cap, 2, 1)
            around = torch.atan2(pk[1], pk[0]) * hk[0]
            metric[0, n] = torch.where(is_cap, pk[0] * hk[0], around)
        grad[:, n], value[n], face[n] = g, f, near_face

    slope = grad[0] * d[0] + grad[1] * d[1] + grad[2] * d[2]
    # The key's depth is within 1e-6 of the range; more would mean a grazing ray.
    fix = (value / slope.clamp(max=-1e-6)).clamp(-1e-4, 1e-4)
    depth = depth - fix
    normal = torch.stack(
        [a[i] * grad[0] + a[3 + i] * grad[1] + a[6 + i] * grad[2] for i in (0, 1, 2)]
    )
    # At silhouettes rounding may turn a normal away from the camera by a hair.
    turned = (normal[0] * x + normal[1] * y + normal[2]).clamp_(min=0) / (x * x + y * y + 1)
    normal = normal - turned * torch.stack([x, y, torch.ones_like(x)])
    normal = normal * (normal * normal).sum(0).rsqrt()
    longest = solids.material[16].index_select(0, solid)
    swap = longest == torch.where(face == 2, 1, 2)
    if world is not None:
        along = solids.material[17].index_select(0, solid) > 0
        metric = torch.where(along, world, metric)
        # The world's axis that a face of a turned solid looks along.
        turned = solids.axes.abs().argmax(1).flatten().index_select(0, 3 * solid + face)
        face = torch.where(along, turned, face)
    u = torch.where(face == 0, metric[1], metric[0])
    v = torch.where(face == 2, metric[1], metric[2])
    return Surface(depth, normal, torch.where(swap, v, u), torch.where(swap, u, v))


# --------------------------------------------------------------------------------------- shading

_NO_ZONE = 1e3


class Lamps(NamedTuple):
    """Slot l of every scene's lights, one column a scene: (C, S). `maps`: their shadow maps."""

    values: torch.Tensor
    shadow: torch.Tensor  # (S,) index of the shadow map, −1 for none


def _light_frame(axis):
    """Rows of a rotation whose third column is `axis`."""

    def unit(v):
        n = math.sqrt(sum(x * x for x in v))
        return [x / n for x in v]

    def cross(a, b):
        return [a[i - 2] * b[i - 1] - a[i - 1] * b[i - 2] for i in range(3)]

    ahead = unit(axis)
    right = unit(cross((0, 1, 0) if abs(ahead[2]) > 0.9 else (0, 0, 1), ahead))
    return list(zip(right, cross(ahead, right), ahead, strict=True))


def _stack_lamps(scenes, device, shadow_size):
    """The lights of all scenes in slots, and the cameras of those that cast shadows."""
    slots, cameras, owner = [], [], []
    for k in range(max((len(s.lights) for s in scenes), default=0)):
        rows, index = [], []
        for i, s in enumerate(scenes):
            light = s.lights[k] if k < len(s.lights) else Light((0, 0, 0), (0, 0, 0))
            frame = _light_frame(light.axis)
            tangent = light.shadow or 1.0
            index.append(len(cameras) if light.shadow else -1)
            if light.shadow:
                f, c = shadow_size / 2 / tangent, (shadow_size - 1) / 2
                cameras.append(Camera(light.position, frame, (f, f, c, c)))
                owner.append(i)
            axis = [row[2] for row in frame]
            rows.append(
                [*light.position, *light.colour, *axis, light.focus, light.radius**2]
                + [*light.zone[0], *light.zone[1], *(x for r in frame for x in r), tangent]
                + [light.beyond, light.softness, 1 / (light.fade * shadow_size)]
            )
        values = torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)
        slots.append(Lamps(values, torch.tensor(index).to(device)))
    return slots, cameras, owner


def _visible(values, shadow_map, slot, p, normal, cos, size):
    """How much of a light reaches points p (3, N): its shadow map, softly compared."""
    r = values[17:26]
    tangent, beyond, soft, fade = values[26], values[27], values[28], values[29]
    q = [p[i] - values[i] for i in range(3)]
    # Step off the surface by a texel or so, lest it shadow itself.
    z = r[2] * q[0] + r[5] * q[1] + r[8] * q[2]
    off = z.clamp(min=0.1) * (tangent * (2.2 / size)) * (0.6 + 0.6 * soft)
    q = [q[i] + off * normal[i] for i in range(3)]
    x, y, z = (r[i] * q[0] + r[3 + i] * q[1] + r[6 + i] * q[2] for i in range(3))
    inv = 1 / z.clamp(min=1e-3)
    f = size / 2 / tangent
    u, v = x * inv * f + (size - 1) / 2, y * inv * f + (size - 1) / 2
    # Fades out towards the rim of the cone.
    rim = torch.maximum((u - (size - 1) / 2).abs_(), (v - (size - 1) / 2).abs_())
    inside = ((size / 2 - 2 - rim) * fade).clamp_(0, 1) * (z > 0.05)
    near = z - 0.004 - off * (0.2 + 0.12 / cos.clamp(min=0.08))
    u0, v0 = (x.clamp_(1, size - 3).floor() for x in (u, v))
    fu, fv = u - u0, v - v0
    index = (v0 * size + u0).to(torch.int32) + slot * (size * size)
    # A box of three texels, slid smoothly: the rim of the shadow.
    lit = 0
    for j, wv in enumerate([1 - fv, 1, 1, fv]):
        row = 0
        for i, wu in enumerate([1 - fu, 1, 1, fu]):
            met = shadow_map.index_select(0, index + ((j - 1) * size + i - 1))
            row = row + wu * met.sub_(near).mul_(60.0).clamp_(0, 1)
        lit = lit + wv * row
    lit = lit * (1 / 9)
    return beyond + (lit - beyond) * inside


def _stack_skies(scenes, device):
    """(C, S) table, or None where no scene has a sky."""
    if scenes[0].sky is None:
        return None
    rows = []
    for s in (scene.sky for scene in scenes):
        rows.append([*s.zenith, *s.horizon, *s.sun, *s.glow, *s.cloud, s.clouds, *s.drift])
        rows[-1].append(-1 / s.haze)
    return torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)


def heaven(skies, scene, d):
    """Linear RGB (3, N) of the sky in directions d (3, N), unit vectors."""
    c = _pick(skies, scene)
    up = d[2].clamp(min=0)
    t = 1 - (1 - up).clamp_(min=0) ** 6
    colour = torch.lerp(c[3:6], c[0:3], t)
    # Clouds lie on a plane; towards the horizon they close up and pale.
    inv = 0.11 / (up + 0.09)
    u, v = d[0] * inv + c[16], d[1] * inv + c[17]
    layer = torch.full_like(u, TEXTURES.index("plaster"))
    foot = torch.full_like(u, 1.0)
    m = texture(layer, u, v, foot, str(d.device))[0]
    m = 0.72 * m + 0.28 * texture(layer, u * 3.7, v * 3.7, foot, str(d.device))[0]
    cover = ((m - (0.78 - 0.56 * c[15])) * 5).clamp_(0, 1) * (c[15] > 0)
    cover = cover * cover * (3 - 2 * cover)
    body = c[12:15] * (1.06 - 0.45 * (m - 0.5))
    colour = torch.lerp(colour, body, cover * (0.25 + 0.75 * (up * 5).clamp(max=1)))
    to_sun = (d[0] * c[6] + d[1] * c[7] + d[2] * c[8]).clamp(min=0)
    for _ in range(3):
        to_sun = to_sun * to_sun
    return colour + c[9:12] * (to_sun + 2 * to_sun**8)


def shade(solids, scenes_light, lamps, maps, shadow_size, skies, sample):
    """Linear RGB (3, N) of surface samples."""
    scene, solid, surf, p, normal, view, ao, pixel = sample
    m = solids.material.index_select(1, solid)
    facing = -(normal * view).sum(0)
    foot = pixel * surf.depth * (m[10].abs() + 1e-9) * TEXTURE_SIZE / facing.clamp(min=0.15).sqrt()
    tex = texture(m[9], surf.u * m[10] + m[12], surf.v * m[11] + m[13], foot, str(p.device))
    albedo = torch.lerp(torch.lerp(m[0:3], m[3:6], tex[0]), m[6:9], tex[1])
    gloss, glow = m[14], m[15]

    up = normal[2] * 0.5 + 0.5
    ambient = _pick(scenes_light, scene)
    light = torch.lerp(ambient[3:6], ambient[0:3], up) * ao
    shine = torch.zeros_like(light)
    for lamp in lamps:
        v = _pick(lamp.values, scene)
        to = [v[i] - p[i] for i in range(3)]
        dist2 = to[0] * to[0] + to[1] * to[1] + to[2] * to[2]
        inv = dist2.rsqrt()
        to = [t * inv for t in to]
        cos = to[0] * normal[0] + to[1] * normal[1] + to[2] * normal[2]
        # Area lights wrap a little around the terminator.
        wrap = 0.12
        diffuse = ((cos + wrap) / (1 + wrap)).clamp(min=0)
        axis = -(to[0] * v[6] + to[1] * v[7] + to[2] * v[8])
        power = (1 - v[9] + v[9] * axis.clamp(min=0)) / (dist2 + v[10])
        inside = None
        if v.shape[1] > 1 or abs(float(v[11, 0])) < _NO_ZONE:
            for i in range(3):
                ok = (p[i] > v[11 + i]) & (p[i] < v[14 + i])
                inside = ok if inside is None else inside & ok
            power = power * inside
        slot = _pick(lamp.shadow[None], scene)[0]
        if maps is not None and (slot >= 0).any():
            lit = _visible(v, maps, slot.clamp(min=0).int(), p, normal, cos, shadow_size)
            power = power * (lit if slot.shape[0] == 1 else torch.where(slot >= 0, lit, 1.0))
        light = light + v[3:6] * (power * diffuse * (0.65 + 0.35 * ao))
        half = [t - w for t, w in zip(to, view, strict=True)]
        hn = (half[0] * normal[0] + half[1] * normal[1] + half[2] * normal[2]) * (
            half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
        ).rsqrt()
        hn = hn.clamp(0, 1)
        for _ in range(5):
            hn = hn * hn
        shine = shine + v[3:6] * (power * hn * (cos > 0))
    fresnel = gloss * (0.15 + 0.85 * (1 - facing.clamp(0, 1)) ** 3)
    # What glossy things mirror beside the lights: the ambient light from where they look.
    mirror_up = view[2] + 2 * facing * normal[2]
    env = torch.lerp(ambient[3:6], ambient[0:3], mirror_up * -0.5 + 0.5)
    colour = albedo * light + fresnel * (env * ao) * 0.7 + gloss * shine * 1.2
    colour = colour * (1 - glow.clamp(max=1)) + albedo * glow
    if skies is None:
        return colour
    sky = _pick(skies, scene)
    return torch.lerp(sky[3:6], colour, (surf.depth * sky[18]).exp())


def occlusion(points, normal, fx, scale=1.0):
    """Ambient occlusion (V, H, W) from what is near in the image: points, normal (V, 3, H, W);
    `scale` 1 suits furniture."""
    p = torch.nn.functional.avg_pool2d(points, 1, 2)
    n = normal[..., ::2, ::2]
    h, w = p.shape[-2:]
    total = torch.zeros_like(p[:, 0])
    count = 0
    for radius, reach in ((2, 0.12), (5, 0.3), (11, 0.7)):
        reach *= scale
        step = max(1, round(radius * w / 128))
        pad = torch.nn.functional.pad(p, (step,) * 4, mode="replicate")
        for dx, dy in (
            (1, 0),
            (-1, 0),
            (0, 1),
            (0, -1),
            (0.7, 0.7),
            (-0.7, 0.7),
            (0.7, -0.7),
            (-0.7, -0.7),
        ):
            dx, dy = step + round(dx * step), step + round(dy * step)
            diff = pad[..., dy : dy + h, dx : dx + w] - p
            d2 = (diff * diff).sum(1) + 1e-6
            rise = (diff * n).sum(1) * d2.rsqrt()
            total += (rise - 0.12).clamp_(min=0) / (1 + d2 * (1 / reach**2))
            count += 1
    ao = (1 - 1.9 * total / count).clamp(min=0.25)
    return torch.nn.functional.interpolate(
        ao[:, None], size=points.shape[-2:], mode="bilinear", align_corners=False
    )[:, 0]


def render(
    scenes, cameras, size, *, device="cpu", far=16.0, shadow_size=256, reach=1.0, smooth=True
):
    """Render every camera of every scene.

    scenes: list of S scenes. cameras: list of S lists of as many cameras each (n).
    Returns linear `image` (S, n, 3, H, W), `depth` (S, n, H, W) metres, `normal` (S, n, 3, H, W)
    in the camera frame, `gloss` (S, n, H, W) and `label` (S, n, H, W) int64, −1
    where a ray leaves the scene (its depth is then `far`). `reach`: scale of the ambient
    occlusion. `smooth`: antialiased silhouettes; depth, normal and label are those of the pixel's
    centre in any case. All scenes have a sky, or none.
    """
    device = torch.device(device)
    with torch.no_grad():
        return _render(scenes, cameras, size, device, far, shadow_size, reach, smooth)


def _render(scenes, cameras, size, device, far, shadow_size, reach, smooth):
    height, width = size
    solids = stack_solids(scenes, device)
    n = len(cameras[0])
    owner = [i for i, c in enumerate(cameras) for _ in c]
    views = stack_views([c for cs in cameras for c in cs], owner, device)
    n_views = len(owner)

    lamps, light_cameras, light_owner = _stack_lamps(scenes, device, shadow_size)
    maps = None
    if light_cameras:
        light_views = stack_views(light_cameras, light_owner, device)
        maps = cast(solids, light_views, (shadow_size,) * 2, far=far, shadow=True).depth.flatten()
    ambient = torch.tensor([[*s.ambient_up, *s.ambient_down] for s in scenes]).T.contiguous()
    ambient = ambient.to(device)
    skies = _stack_skies(scenes, device)

    hits = cast(solids, views, size, far=far)
    view = torch.arange(n_views, device=device)[:, None, None].expand(n_views, height, width)
    gx = torch.arange(width, device=device, dtype=torch.float32)
    gy = torch.arange(height, device=device, dtype=torch.float32)
    gx, gy = gx.expand(height, width), gy[:, None].expand(height, width)

    constants = torch.cat(
        [
            torch.stack([views.fx, views.fy, views.cx, views.cy]),
            views.position.T,
            views.rotation.flatten(1).T,
            views.scene[None].float(),
        ]
    ).contiguous()  # (17, V)

    def rays(view, px, py):
        """Constants of the views, and rays in camera and in world coordinates."""
        c = _pick(constants, view)
        x, y = (px - c[2]) / c[0], (py - c[3]) / c[1]
        r = c[7:16]
        d = torch.stack([r[3 * i] * x + r[3 * i + 1] * y + r[3 * i + 2] for i in range(3)])
        return c, r, x, y, d

    def open_sky(view, px, py):
        *_, d = rays(view, px, py)
        return heaven(skies, _pick(constants, view)[16].long(), d * (d * d).sum(0).rsqrt())

    def samples(view, px, py, solid, pair, depth):
        """Flat samples → (surface, world point, world normal, ray direction)."""
        c, r, x, y, d = rays(view, px, py)
        world = c[4:7] + depth * d
        s = surface(solids, hits, solid, pair, x, y, depth, world)
        k = s.normal
        normal = torch.stack(
            [r[3 * i] * k[0] + r[3 * i + 1] * k[1] + r[3 * i + 2] * k[2] for i in range(3)]
        )
        d = d * (d * d).sum(0).rsqrt()
        return s, world, normal, d, x, y

    solid = hits.solid.flatten()
    safe = solid.clamp(min=0)
    flat_view = view.flatten()
    px, py = (g.expand(n_views, height, width).flatten() for g in (gx, gy))
    s, world, normal, d, x, y = samples(
        flat_view, px, py, safe, hits.pair.flatten(), hits.depth.flatten()
    )
    depth = torch.where(solid < 0, far, s.depth)
    shape = (n_views, height, width)
    points = torch.stack([x * depth, y * depth, depth]).reshape(3, *shape).transpose(0, 1)
    normal_image = s.normal.reshape(3, *shape).transpose(0, 1)
    if skies is not None:  # the same everywhere, lest there be an edge
        above = (solid < 0).reshape(shape)[:, None]
        normal_image = torch.where(
            above, normal_image.new_tensor([0, 0, -1])[:, None, None], normal_image
        )
    ao = occlusion(points, normal_image, views.fx, reach).flatten()
    scene = views.scene[flat_view] if len(scenes) > 1 else flat_view
    pixel = (1 / _pick(constants, flat_view)[0]).expand_as(depth)
    args = (solids, ambient, lamps, maps, shadow_size, skies)
    colour = shade(*args, (scene, safe, s, world, normal, d, ao, pixel))
    colour = colour * (solid >= 0)
    if skies is not None:
        at = (solid < 0).nonzero()[:, 0]
        colour[:, at] = open_sky(flat_view[at], px[at], py[at])
    image = colour.reshape(3, *shape)
    if smooth:
        image = image.clone()
        _antialias(
            image,
            hits,
            solids,
            normal_image,
            samples,
            args,
            views,
            ao.reshape(shape),
            pixel,
            constants,
            open_sky if skies is not None else None,
        )
    label = solids.label[safe].masked_fill(solid < 0, -1).reshape(shape)
    group = (len(scenes), n)
    return {
        "image": image.transpose(0, 1).reshape(*group, 3, height, width),
        "depth": depth.reshape(*group, height, width),
        "normal": normal_image.reshape(*group, 3, height, width),
        "label": label.reshape(*group, height, width),
        "gloss": solids.material[14].index_select(0, safe).reshape(*group, height, width),
    }


_OFFSETS = ((-0.36, -0.14), (0.31, -0.28), (0.05, 0.4))  # beside the centre


def _antialias(image, hits, solids, normal, samples, args, views, ao, pixel, constants, sky):
    """Replace silhouette pixels by the mean of four samples, three of them taken
    against the solids at the pixel and beside it. `image`: (3, V, H, W), changed in place.
    `sky`: (view, px, py) → colour, or None."""
    solid = hits.solid
    h, w = solid.shape[1:]
    bump = torch.zeros_like(solid, dtype=torch.bool)
    horizontal = solid.clone()
    vertical = solid.clone()
    bent = (normal[..., :, 1:] * normal[..., :, :-1]).sum(1) < 0.75
    other = solid[:, :, 1:] != solid[:, :, :-1]
    change = other | bent
    bump[:, :, 1:] |= change
    bump[:, :, :-1] |= change
    horizontal[:, :, 1:] = solid[:, :, :-1]
    keep = solid[:, :, :-1]
    horizontal[:, :, :-1] = torch.where(
        other,
        solid[:, :, 1:],
        torch.where(horizontal[:, :, :-1] != keep, horizontal[:, :, :-1], keep),
    )
    bent = (normal[..., 1:, :] * normal[..., :-1, :]).sum(1) < 0.75
    other = solid[:, 1:] != solid[:, :-1]
    change = other | bent
    bump[:, 1:] |= change
    bump[:, :-1] |= change
    vertical[:, 1:] = solid[:, :-1]
    keep = solid[:, :-1]
    vertical[:, :-1] = torch.where(
        other, solid[:, 1:], torch.where(vertical[:, :-1] != keep, vertical[:, :-1], keep)
    )

    at = bump.flatten().nonzero()[:, 0]
    if not len(at):
        return
    view = torch.div(at, h * w, rounding_mode="floor")
    row = torch.div(at, w, rounding_mode="floor") % h
    col = at % w
    own = solid.flatten()[at]
    options = [own, horizontal.flatten()[at], vertical.flatten()[at]]
    start = (hits.first - solids.start[views.scene])[view]
    n = len(_OFFSETS)
    off = torch.tensor(_OFFSETS, device=at.device)
    px = (col[None].float() + off[:, :1]).flatten()
    py = (row[None].float() + off[:, 1:]).flatten()
    v4, start4, own4 = view.repeat(n), start.repeat(n), own.repeat(n)
    c = _pick(constants, v4)
    x, y = (px - c[2]) / c[0], (py - c[3]) / c[1]
    best = torch.full_like(x, torch.inf)
    winner = own4.clone()
    base = torch.arange(len(x), device=at.device)
    rounds = []
    for i, option in enumerate(options):
        todo = option.repeat(n)
        fresh = todo >= 0
        if i:
            fresh &= todo != own4
        rounds.append((base[fresh], todo[fresh]))
    sel, which = (torch.cat(column) for column in zip(*rounds, strict=True))
    met = _hit_samples(solids, hits, which, which + start4[sel], x[sel], y[sel])
    met = met.split([len(sel) for sel, _ in rounds])
    for (sel, which), t in zip(rounds, met, strict=True):
        better = t < best[sel]
        sel, t, which = sel[better], t[better], which[better]
        best[sel] = t
        winner[sel] = which
    # Missed by all of them (a gap between two): leave such a sample out.
    ok = (best < torch.inf).nonzero()[:, 0]
    solid4, v, pair = winner[ok], v4[ok], (winner + start4)[ok]
    s, world, nrm, d, *_ = samples(v, px[ok], py[ok], solid4, pair, best[ok])
    scene = views.scene[v] if args[1].shape[1] > 1 else v
    at4 = at.repeat(n)[ok]
    colour = shade(*args, (scene, solid4, s, world, nrm, d, ao.flatten()[at4], pixel[at4] * 0.7))
    flat = image.reshape(3, -1)
    sums = torch.zeros(4, flat.shape[1], device=image.device)
    sums[:3, at], sums[3, at] = flat[:, at].clamp(max=1.5), 1
    taken = [(ok, at4, colour)]
    if sky is not None:  # missed by all, and one of them is the sky
        beside = torch.stack(options).amin(0).repeat(n) < 0
        ok = ((best == torch.inf) & beside).nonzero()[:, 0]
        taken.append((ok, at.repeat(n)[ok], sky(v4[ok], px[ok], py[ok])))
    # Samples of one offset never share a pixel, so ordered sums are deterministic.
    for ok, at4, colour in taken:
        bounds = torch.searchsorted(ok, torch.arange(n + 1, device=ok.device) * len(at)).tolist()
        for lo, hi in zip(bounds, bounds[1:], strict=False):
            sums[:3, at4[lo:hi]] += colour[:, lo:hi].clamp(max=1.5)
            sums[3, at4[lo:hi]] += 1
    flat[:, at] = sums[:3, at] / sums[3, at]


def _hit_samples(solids, hits, solid, pair, x, y):
    """Depth at which single rays meet single solids, inf for a miss."""
    t = torch.full_like(x, torch.inf)
    kind = solids.kind[solid]
    for k in range(4):
        n = (kind == k).nonzero()[:, 0]
        if not len(n):
            continue
        a, o = hits.a.index_select(1, pair[n]), hits.o.index_select(1, pair[n])
        xk, yk, sk = x[n], y[n], solid[n]
        d = [a[3 * i] * xk + a[3 * i + 1] * yk + a[3 * i + 2] for i in range(3)]
        o = list(o)
        if k == BOX:
            tk, ok = _hit_box(o, d)
        elif k == ELLIPSOID:
            tk, ok = _hit_ellipsoid(o, d)
        elif k == CONE:
            tk, ok = _hit_cone(o, d, solids.extra[sk])
        else:
            tk, ok = _hit_round(o, d, list(solids.half[sk].T), solids.extra[sk])
        t[n] = tk.masked_fill(~(ok & (tk > 0.05)), torch.inf)
    return t
