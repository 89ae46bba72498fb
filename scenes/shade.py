"""What the rays meet: surfaces, textures, lights with shadows, the sky.

Lights see the scene as cameras do (shadow maps).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .cast import cast, stack_views
from .scene import CONE, ELLIPSOID, MATERIAL, ROUND, Camera, Columns, Light
from .textures import SIZE as TEXTURE_SIZE
from .textures import TEXTURES
from .textures import sample as texture


class Surface(NamedTuple):
    """Of N samples: z-depth (N,), normal in camera frame (3, N), texture coordinates, …"""

    depth: torch.Tensor
    normal: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor


def pick(table, index):
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
    longest = solids.material[MATERIAL.longest].index_select(0, solid)
    swap = longest == torch.where(face == 2, 1, 2)
    if world is not None:
        along = solids.material[MATERIAL.world_uv].index_select(0, solid) > 0
        metric = torch.where(along, world, metric)
        # The world's axis that a face of a turned solid looks along.
        turned = solids.axes.abs().argmax(1).flatten().index_select(0, 3 * solid + face)
        face = torch.where(along, turned, face)
    u = torch.where(face == 0, metric[1], metric[0])
    v = torch.where(face == 2, metric[1], metric[2])
    return Surface(depth, normal, torch.where(swap, v, u), torch.where(swap, u, v))


# --------------------------------------------------------------------------------------- shading

_NO_ZONE = 1e3


LAMP = Columns(
    position=3, colour=3, axis=3, focus=1, radius2=1, lo=3, hi=3, frame=9, tangent=1, beyond=1,
    softness=1, fade=1,
)  # fmt: skip
SKY = Columns(zenith=3, horizon=3, sun=3, glow=3, cloud=3, clouds=1, drift=2, haze=1)
AMBIENT = Columns(up=3, down=3)


class Lamps(NamedTuple):
    """Slot l of every scene's lights."""

    values: torch.Tensor  # (C, S) one column a scene, as in LAMP
    shadow: torch.Tensor  # (S,) index of the shadow map, −1 for none


class Lighting(NamedTuple):
    """All light of S scenes."""

    ambient: torch.Tensor  # (C, S) as in AMBIENT
    lamps: list[Lamps]
    maps: torch.Tensor | None  # all shadow maps, flat
    size: int  # of a shadow map
    skies: torch.Tensor | None  # (C, S) as in SKY


class Sample(NamedTuple):
    """N points to be shaded."""

    scene: torch.Tensor  # (N,)
    solid: torch.Tensor  # (N,)
    surface: Surface
    point: torch.Tensor  # (3, N) in the world
    normal: torch.Tensor  # (3, N) in the world
    view: torch.Tensor  # (3, N) unit direction of the ray
    occlusion: torch.Tensor | None  # (N,) ambient
    pixel: torch.Tensor | None  # (N,) a pixel's width at a metre


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


def stack_lamps(scenes, device, shadow_size):
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
            rows.append(LAMP.row(
                position=light.position, colour=light.colour, axis=[row[2] for row in frame],
                focus=light.focus, radius2=light.radius**2, lo=light.zone[0], hi=light.zone[1],
                frame=[x for r in frame for x in r], tangent=tangent, beyond=light.beyond,
                softness=light.softness, fade=1 / (light.fade * shadow_size),
            ))  # fmt: skip
        values = torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)
        slots.append(Lamps(values, torch.tensor(index).to(device)))
    return slots, cameras, owner


def _visible(values, shadow_map, slot, p, normal, cos, size):
    """How much of a light reaches points p (3, N): its shadow map, softly compared."""
    r, tangent, beyond = values[LAMP.frame], values[LAMP.tangent], values[LAMP.beyond]
    soft, fade, position = values[LAMP.softness], values[LAMP.fade], values[LAMP.position]
    q = [p[i] - position[i] for i in range(3)]
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


def stack_lighting(scenes, device, shadow_size, far, solids) -> Lighting:
    """Every light of the scenes, with its shadow map."""
    lamps, cameras, owner = stack_lamps(scenes, device, shadow_size)
    maps = skies = None
    if cameras:
        views = stack_views(cameras, owner, device)
        maps = cast(solids, views, (shadow_size,) * 2, far=far, shadow=True).depth.flatten()
    ambient = [AMBIENT.row(up=s.ambient_up, down=s.ambient_down) for s in scenes]
    ambient = torch.tensor(ambient).T.contiguous().to(device)
    if scenes[0].sky is not None:
        names = SKY.widths.keys() - {"haze"}
        rows = [
            SKY.row(haze=-1 / s.sky.haze, **{n: getattr(s.sky, n) for n in names}) for s in scenes
        ]
        skies = torch.tensor(rows, dtype=torch.float32).T.contiguous().to(device)
    return Lighting(ambient, lamps, maps, shadow_size, skies)


def heaven(skies, scene, d):
    """Linear RGB (3, N) of the sky in directions d (3, N), unit vectors."""
    c = pick(skies, scene)
    drift, sun = c[SKY.drift], c[SKY.sun]
    up = d[2].clamp(min=0)
    t = 1 - (1 - up).clamp_(min=0) ** 6
    colour = torch.lerp(c[SKY.horizon], c[SKY.zenith], t)
    # Clouds lie on a plane; towards the horizon they close up and pale.
    inv = 0.11 / (up + 0.09)
    u, v = d[0] * inv + drift[0], d[1] * inv + drift[1]
    layer = torch.full_like(u, TEXTURES.index("plaster"))
    foot = torch.full_like(u, 1.0)
    m = texture(layer, u, v, foot, str(d.device))[0]
    m = 0.72 * m + 0.28 * texture(layer, u * 3.7, v * 3.7, foot, str(d.device))[0]
    cover = ((m - (0.78 - 0.56 * c[SKY.clouds])) * 5).clamp_(0, 1) * (c[SKY.clouds] > 0)
    cover = cover * cover * (3 - 2 * cover)
    body = c[SKY.cloud] * (1.06 - 0.45 * (m - 0.5))
    colour = torch.lerp(colour, body, cover * (0.25 + 0.75 * (up * 5).clamp(max=1)))
    to_sun = (d[0] * sun[0] + d[1] * sun[1] + d[2] * sun[2]).clamp(min=0)
    for _ in range(3):
        to_sun = to_sun * to_sun
    return colour + c[SKY.glow] * (to_sun + 2 * to_sun**8)


def shade(solids, lighting, sample) -> torch.Tensor:
    """Linear RGB (3, N) of surface samples."""
    scene, solid, surf, p, normal, view, ao, pixel = sample
    m = solids.material.index_select(1, solid)
    facing = -(normal * view).sum(0)
    su, sv = m[MATERIAL.scale_u], m[MATERIAL.scale_v]
    foot = pixel * surf.depth * (su.abs() + 1e-9) * TEXTURE_SIZE / facing.clamp(min=0.15).sqrt()
    u, v = surf.u * su + m[MATERIAL.offset_u], surf.v * sv + m[MATERIAL.offset_v]
    tex = texture(m[MATERIAL.texture], u, v, foot, str(p.device))
    albedo = torch.lerp(torch.lerp(m[MATERIAL.c0], m[MATERIAL.c1], tex[0]), m[MATERIAL.c2], tex[1])
    gloss, glow = m[MATERIAL.gloss], m[MATERIAL.glow]

    up = normal[2] * 0.5 + 0.5
    ambient = pick(lighting.ambient, scene)
    ambient_up, ambient_down = ambient[AMBIENT.up], ambient[AMBIENT.down]
    light = torch.lerp(ambient_down, ambient_up, up) * ao
    shine = torch.zeros_like(light)
    for lamp in lighting.lamps:
        diffuse, mirrored = _lamp_light(lamp, lighting, sample)
        light, shine = light + diffuse, shine + mirrored
    fresnel = gloss * (0.15 + 0.85 * (1 - facing.clamp(0, 1)) ** 3)
    # What glossy things mirror beside the lights: the ambient light from where they look.
    mirror_up = view[2] + 2 * facing * normal[2]
    env = torch.lerp(ambient_down, ambient_up, mirror_up * -0.5 + 0.5)
    colour = albedo * light + fresnel * (env * ao) * 0.7 + gloss * shine * 1.2
    colour = colour * (1 - glow.clamp(max=1)) + albedo * glow
    if lighting.skies is None:
        return colour
    sky = pick(lighting.skies, scene)
    return torch.lerp(sky[SKY.horizon], colour, (surf.depth * sky[SKY.haze]).exp())


def _lamp_light(lamp, lighting, sample):
    """What one lamp gives to matt and to glossy surfaces, two times (3, N)."""
    p, normal, view, ao = sample.point, sample.normal, sample.view, sample.occlusion
    v = pick(lamp.values, sample.scene)
    position, pointing, focus = v[LAMP.position], v[LAMP.axis], v[LAMP.focus]
    to = [position[i] - p[i] for i in range(3)]
    dist2 = to[0] * to[0] + to[1] * to[1] + to[2] * to[2]
    inv = dist2.rsqrt()
    to = [t * inv for t in to]
    cos = to[0] * normal[0] + to[1] * normal[1] + to[2] * normal[2]
    # Area lights wrap a little around the terminator.
    wrap = 0.12
    diffuse = ((cos + wrap) / (1 + wrap)).clamp(min=0)
    axis = -(to[0] * pointing[0] + to[1] * pointing[1] + to[2] * pointing[2])
    power = (1 - focus + focus * axis.clamp(min=0)) / (dist2 + v[LAMP.radius2])
    lo, hi = v[LAMP.lo], v[LAMP.hi]
    if v.shape[1] > 1 or abs(float(lo[0, 0])) < _NO_ZONE:
        inside = None
        for i in range(3):
            ok = (p[i] > lo[i]) & (p[i] < hi[i])
            inside = ok if inside is None else inside & ok
        power = power * inside
    slot = pick(lamp.shadow[None], sample.scene)[0]
    if lighting.maps is not None and (slot >= 0).any():
        at = slot.clamp(min=0).int()
        lit = _visible(v, lighting.maps, at, p, normal, cos, lighting.size)
        power = power * (lit if slot.shape[0] == 1 else torch.where(slot >= 0, lit, 1.0))
    half = [t - w for t, w in zip(to, view, strict=True)]
    hn = (half[0] * normal[0] + half[1] * normal[1] + half[2] * normal[2]) * (
        half[0] * half[0] + half[1] * half[1] + half[2] * half[2]
    ).rsqrt()
    hn = hn.clamp(0, 1)
    for _ in range(5):
        hn = hn * hn
    colour = v[LAMP.colour]
    return colour * (power * diffuse * (0.65 + 0.35 * ao)), colour * (power * hn * (cos > 0))


_AROUND = [(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)]


def occlusion(points, normal, scale=1.0):
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
        for dx, dy in _AROUND:
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
