"""A small ray caster in plain torch: analytic solids, textures, lights with shadows.

It knows nothing of rooms. `render` turns several scenes and cameras into images, z-depth, normals
and labels in one go, on whichever device it is told: `cast` finds what each pixel sees, `shade`
gives it its colour, and silhouettes are sampled three more times, against the solids met next to
them only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .cast import VIEW, Hits, Solids, Views, cast, cast_samples, stack_solids, stack_views
from .scene import MATERIAL
from .shade import Lighting, Sample, heaven, occlusion, pick, shade, stack_lighting, surface


def render(
    scenes, cameras, size, *, device="cpu", far=16.0, shadow_size=256, reach=1.0, smooth=True
):
    """Render every camera of every scene.

    Args:
        scenes: list of S scenes; all have a sky, or none.
        cameras: list of S lists of as many cameras each (n).
        reach: scale of the ambient occlusion.
        smooth: antialiased silhouettes; depth, normal and label are those of the pixel's centre
            in any case.

    Returns:
        linear `image` (S, n, 3, H, W), `depth` (S, n, H, W) metres, `normal` (S, n, 3, H, W) in
        the camera frame, `gloss` (S, n, H, W) and `label` (S, n, H, W) int64, −1 where a ray
        leaves the scene (its depth is then `far`).
    """
    device = torch.device(device)
    with torch.no_grad():
        solids = stack_solids(scenes, device)
        owner = [i for i, c in enumerate(cameras) for _ in c]
        views = stack_views([c for cs in cameras for c in cs], owner, device)
        lighting = stack_lighting(scenes, device, shadow_size, far, solids)
        hits = cast(solids, views, size, far=far)
        found = _picture(_Frames(solids, views, hits, lighting, len(scenes)), far, reach, smooth)
    group = (len(scenes), len(cameras[0]))
    return {name: x.reshape(*group, *x.shape[1:]) for name, x in found.items()}


@dataclass
class _Frames:
    """What is being rendered: V views of solids in their light, and what their pixels hit."""

    solids: Solids
    views: Views
    hits: Hits
    lighting: Lighting
    num_scenes: int

    def rays(self, view, px, py):
        """Rays (x, y, 1) in the camera's and (3, N) in world coordinates; the view's constants."""
        c = pick(self.views.table, view)
        x, y = (px - c[VIEW.cx]) / c[VIEW.fx], (py - c[VIEW.cy]) / c[VIEW.fy]
        r = c[VIEW.rotation]
        d = torch.stack([r[3 * i] * x + r[3 * i + 1] * y + r[3 * i + 2] for i in range(3)])
        return x, y, d, c

    def sky(self, view, px, py):
        *_, d, c = self.rays(view, px, py)
        return heaven(self.lighting.skies, c[VIEW.scene].long(), d * (d * d).sum(0).rsqrt())

    def sample(self, view, px, py, solid, pair, depth) -> tuple[Sample, torch.Tensor, torch.Tensor]:
        """What the pixels' rays meet, without occlusion and pixel size; the rays' x and y."""
        x, y, d, c = self.rays(view, px, py)
        world = c[VIEW.position] + depth * d
        s = surface(self.solids, self.hits, solid, pair, x, y, depth, world)
        k, r = s.normal, c[VIEW.rotation]
        normal = torch.stack(
            [r[3 * i] * k[0] + r[3 * i + 1] * k[1] + r[3 * i + 2] * k[2] for i in range(3)]
        )
        d = d * (d * d).sum(0).rsqrt()
        scene = self.views.scene[view] if self.num_scenes > 1 else view
        return Sample(scene, solid, s, world, normal, d, None, None), x, y

    def shade(self, sample, ao, pixel):
        return shade(self.solids, self.lighting, sample._replace(occlusion=ao, pixel=pixel))


def _picture(frames, far, reach, smooth) -> dict[str, torch.Tensor]:
    """All that `render` returns, of V views."""
    solids, hits, sky = frames.solids, frames.hits, frames.lighting.skies is not None
    shape = n_views, height, width = hits.solid.shape
    device = hits.solid.device
    view = torch.arange(n_views, device=device)[:, None, None].expand(shape).flatten()
    px = torch.arange(width, device=device, dtype=torch.float32).expand(shape).flatten()
    py = torch.arange(height, device=device, dtype=torch.float32)[:, None].expand(shape).flatten()

    solid = hits.solid.flatten()
    nothing, safe = solid < 0, solid.clamp(min=0)
    sample, x, y = frames.sample(view, px, py, safe, hits.pair.flatten(), hits.depth.flatten())
    depth = torch.where(nothing, far, sample.surface.depth)
    points = torch.stack([x * depth, y * depth, depth]).reshape(3, *shape).transpose(0, 1)
    normal = sample.surface.normal.reshape(3, *shape).transpose(0, 1)
    if sky:  # the same everywhere, lest there be an edge
        up = normal.new_tensor([0, 0, -1])[:, None, None]
        normal = torch.where(nothing.reshape(shape)[:, None], up, normal)
    ao = occlusion(points, normal, reach).flatten()
    pixel = (1 / pick(frames.views.table, view)[VIEW.fx]).expand_as(depth)
    colour = frames.shade(sample, ao, pixel) * ~nothing
    if sky:
        at = nothing.nonzero()[:, 0]
        colour[:, at] = frames.sky(view[at], px[at], py[at])
    image = colour.reshape(3, *shape)
    if smooth:
        image = image.clone()
        _antialias(image, frames, normal, ao, pixel)
    return {
        "image": image.transpose(0, 1),
        "depth": depth.reshape(shape),
        "normal": normal,
        "label": solids.label[safe].masked_fill(nothing, -1).reshape(shape),
        "gloss": solids.material[MATERIAL.gloss].index_select(0, safe).reshape(shape),
    }


_OFFSETS = ((-0.36, -0.14), (0.31, -0.28), (0.05, 0.4))  # beside the centre


def _edges(solid, normal):
    """Where there are edges (V, H, W), and two other solids next to each pixel: beside it, and
    above or below it."""
    bump = torch.zeros_like(solid, dtype=torch.bool)
    beside = []
    for axis in (2, 1):
        n = solid.shape[axis] - 1
        a, b = solid.narrow(axis, 0, n), solid.narrow(axis, 1, n)
        facing = (normal.narrow(axis + 1, 1, n) * normal.narrow(axis + 1, 0, n)).sum(1)
        other = a != b
        change = other | (facing < 0.75)
        bump.narrow(axis, 1, n).logical_or_(change)
        bump.narrow(axis, 0, n).logical_or_(change)
        near = solid.clone()
        near.narrow(axis, 1, n).copy_(a)
        near.narrow(axis, 0, n).copy_(torch.where(other, b, near.narrow(axis, 0, n)))
        beside.append(near)
    return bump, *beside


def _nearest(frames, options, start, x, y):
    """The nearest of some solids (a list of (N,)) along rays (m · N,): depth (inf for a miss), and
    the solid. `start`: what leads from a solid to its pair with the view."""
    n = len(x) // len(options[0])
    own = options[0].repeat(n)
    best, winner = torch.full_like(x, torch.inf), own.clone()
    base = torch.arange(len(x), device=x.device)
    rounds = []
    for i, option in enumerate(options):
        todo = option.repeat(n)
        fresh = todo >= 0
        if i:
            fresh &= todo != own
        rounds.append((base[fresh], todo[fresh]))
    sel, which = (torch.cat(column) for column in zip(*rounds, strict=True))
    met = cast_samples(frames.solids, frames.hits, which, which + start[sel], x[sel], y[sel])
    met = met.split([len(sel) for sel, _ in rounds])
    for (sel, which), t in zip(rounds, met, strict=True):
        better = t < best[sel]
        sel, t, which = sel[better], t[better], which[better]
        best[sel] = t
        winner[sel] = which
    return best, winner


def _antialias(image, frames, normal, ao, pixel):
    """Replace silhouette pixels of `image` (3, V, H, W), in place, by the mean of four samples,
    three of them taken against the solids at the pixel and beside it."""
    hits, views = frames.hits, frames.views
    h, w = hits.solid.shape[1:]
    bump, horizontal, vertical = _edges(hits.solid, normal)
    at = bump.flatten().nonzero()[:, 0]
    if not len(at):
        return
    view = torch.div(at, h * w, rounding_mode="floor")
    row, col = torch.div(at, w, rounding_mode="floor") % h, at % w
    options = [x.flatten()[at] for x in (hits.solid, horizontal, vertical)]
    n = len(_OFFSETS)
    off = torch.tensor(_OFFSETS, device=at.device)
    px = (col[None].float() + off[:, :1]).flatten()
    py = (row[None].float() + off[:, 1:]).flatten()
    view = view.repeat(n)
    start = (hits.first - frames.solids.start[views.scene])[view]
    c = pick(views.table, view)
    x, y = (px - c[VIEW.cx]) / c[VIEW.fx], (py - c[VIEW.cy]) / c[VIEW.fy]
    best, winner = _nearest(frames, options, start, x, y)
    # Missed by all of them (a gap between two): leave such a sample out.
    ok = (best < torch.inf).nonzero()[:, 0]
    at4 = at.repeat(n)
    sample, *_ = frames.sample(view[ok], px[ok], py[ok], winner[ok], (winner + start)[ok], best[ok])
    taken = [(ok, frames.shade(sample, ao[at4[ok]], pixel[at4[ok]] * 0.7))]
    if frames.lighting.skies is not None:  # missed by all, and one of them is the sky
        beside = torch.stack(options).amin(0).repeat(n) < 0
        ok = ((best == torch.inf) & beside).nonzero()[:, 0]
        taken.append((ok, frames.sky(view[ok], px[ok], py[ok])))
    flat = image.reshape(3, -1)
    sums = torch.zeros(4, flat.shape[1], device=image.device)
    sums[:3, at], sums[3, at] = flat[:, at].clamp(max=1.5), 1
    # Samples of one offset never share a pixel, so ordered sums are deterministic.
    for ok, colour in taken:
        bounds = torch.searchsorted(ok, torch.arange(n + 1, device=ok.device) * len(at)).tolist()
        for lo, hi in zip(bounds, bounds[1:], strict=False):
            sums[:3, at4[ok[lo:hi]]] += colour[:, lo:hi].clamp(max=1.5)
            sums[3, at4[ok[lo:hi]]] += 1
    flat[:, at] = sums[:3, at] / sums[3, at]
