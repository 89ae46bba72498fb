"""Which solid each pixel sees, and how far away: nothing loops over pixels or solids.

- Every solid is an affine image of a unit solid, so one camera ray (x, y, 1) becomes
  o + t (a_x x + a_y y + a_z) in the unit frame and t *is* the z-depth.
- The image is cut into tiles of 8×8 pixels. Only the pairs (tile, solid) whose solid may be seen
  in the tile are intersected, all of one kind in a few vectorised operations.
- The nearest hit is a minimum over integer keys (depth in the high bits, solid in the low ones),
  which does not depend on the order in which they are met.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .scene import BOX, CONE, ELLIPSOID, GEOMETRY, Columns

TILE = 8
_KEY_STEPS = 4_177_000  # depth steps of a key; beyond, the key's bits would be those of a NaN
_CHUNK = 1024  # tiles intersected at a time on a CPU: 64k rays, so that temporaries stay in cache


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
        rows = [getattr(solid, name) for scene in scenes for solid in scene.solids]
        return torch.tensor(rows, dtype=dtype).to(device)

    g = table("geometry")
    count = torch.tensor([len(s.solids) for s in scenes])
    return Solids(
        g[:, GEOMETRY.unit].reshape(-1, 3, 3),
        g[:, GEOMETRY.centre],
        g[:, GEOMETRY.axes].reshape(-1, 3, 3),
        g[:, GEOMETRY.half],
        g[:, GEOMETRY.extra],
        table("surface").T.contiguous(),
        table("label", torch.int64),
        table("kind", torch.int64),
        table("casts", torch.bool),
        (count.cumsum(0) - count).to(device),
        count.to(device),
    )


VIEW = Columns(fx=1, fy=1, cx=1, cy=1, position=3, rotation=9, scene=1)


class Views(NamedTuple):
    """V cameras of one image size."""

    scene: torch.Tensor  # (V,) index of the scene looked at
    position: torch.Tensor  # (V, 3)
    rotation: torch.Tensor  # (V, 3, 3)
    fx: torch.Tensor  # (V,) …
    fy: torch.Tensor
    cx: torch.Tensor
    cy: torch.Tensor
    table: torch.Tensor  # (C, V) all of this, columns as in VIEW


def stack_views(cameras, scene, device) -> Views:
    """`scene`: the index of each camera's scene."""
    names = ("fx", "fy", "cx", "cy")
    rows = [
        VIEW.row(
            **dict(zip(names, c.intrinsics, strict=True)),
            position=c.position,
            rotation=[x for r in c.rotation for x in r],
            scene=i,
        )
        for c, i in zip(cameras, scene, strict=True)
    ]
    table = torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)
    position, rotation = table[VIEW.position].T, table[VIEW.rotation].T.reshape(-1, 3, 3)
    pixels = (table[getattr(VIEW, name)] for name in names)
    return Views(torch.tensor(scene).to(device), position, rotation, *pixels, table)


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


def _hit(kind, o, d, half, extra):
    if kind == BOX:
        return _hit_box(o, d)
    if kind == ELLIPSOID:
        return _hit_ellipsoid(o, d)
    if kind == CONE:
        return _hit_cone(o, d, extra)
    return _hit_round(o, d, half, extra)


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
            t, ok = _hit(k, oo, d, half[pr][..., None].unbind(1), extra[pr][:, None])
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


def cast_samples(solids, hits, solid, pair, x, y):
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
        tk, ok = _hit(k, o, d, list(solids.half[sk].T), solids.extra[sk])
        t[n] = tk.masked_fill(~(ok & (tk > 0.05)), torch.inf)
    return t
