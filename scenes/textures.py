"""Procedural textures for the renderer: small tileable pictures with two channels, mip-mapped.

Channel m mixes a material's first two colours, channel d its third. Each is made once per process
from a fixed seed.
"""

from __future__ import annotations

import functools
import math

import torch

SIZE = 256
LEVELS = 7  # 256 … 4


def _noise(gen, power=1.0, stretch=1.0, low=0.0):
    """Tileable noise in [0, 1], spectrum f^-power; `stretch` > 1 makes it long along u (width)."""
    f = torch.fft.fftfreq(SIZE) * SIZE
    fy, fx = f[:, None], f[None, :] * stretch
    r = (fx * fx + fy * fy).sqrt()
    gain = r.clamp(min=1.0) ** -power * (r > low)
    white = torch.randn(SIZE, SIZE, generator=gen)
    n = torch.fft.ifft2(torch.fft.fft2(white) * gain).real
    return (0.5 + (n - n.mean()) / (5 * n.std())).clamp(0, 1)


def _smooth(edge0, edge1, x):
    t = ((x - edge0) / (edge1 - edge0)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def _grid():
    t = (torch.arange(SIZE) + 0.5) / SIZE
    return t[None, :].expand(SIZE, SIZE), t[:, None].expand(SIZE, SIZE)  # u, v


def _cells(gen, rows, cols, offset=0.0, gap=0.03):
    """A brick pattern: a random tone per cell, the gaps' mask, the cell's own coordinates."""
    u, v = _grid()
    row = (v * rows).floor()
    shift = offset * (row % 2)
    cu = u * cols + shift
    col = cu.floor() % cols
    tone = torch.rand(rows, cols, generator=gen)[row.long(), col.long()]
    fu, fv = cu - cu.floor(), v * rows - row
    edge = torch.minimum(torch.minimum(fu, 1 - fu) / cols, torch.minimum(fv, 1 - fv) / rows)
    return tone, 1 - _smooth(gap / 2, gap, edge), fu, fv


def _box(u, v, x0, x1, y0, y1):
    return ((u > x0) & (u < x1) & (v > y0) & (v < y1)).float()


def _disc(u, v, x, y, r):
    return 1 - _smooth(r * 0.93, r, ((u - x) ** 2 + (v - y) ** 2).sqrt())


def plain(g):
    return 0.5 + (_noise(g, 0.8) - 0.5) * 0.5, torch.zeros(SIZE, SIZE)


def plaster(g):
    return _noise(g, 1.6), (_noise(g, 0.6) - 0.5).abs() * 0.2


def wood(g):
    u, v = _grid()
    wave = _noise(g, 2.0, stretch=6)
    rings = 0.5 + 0.5 * torch.sin(2 * math.pi * (7 * v + 5 * wave))
    pores = _noise(g, 0.5, stretch=16)
    return 0.6 * rings + 0.4 * _noise(g, 1.2, stretch=10), _smooth(0.6, 0.9, pores) * 0.5


def planks(g):
    u, v = _grid()
    rows = 10
    row = (v * rows).floor().long()
    shift = torch.rand(rows, generator=g)[row]
    seam = (u + shift) * 1.0
    board = torch.rand(rows, 2, generator=g)[row, ((seam * 2).floor() % 2).long()]
    fv = v * rows - row
    fu = seam * 2 - (seam * 2).floor()
    gap = torch.maximum((fv < 0.06).float(), (fu < 0.008).float())
    grain = _noise(g, 1.0, stretch=12)
    return (0.55 * board + 0.45 * grain).clamp(0, 1), 0.75 * gap


def parquet(g):
    u, v = _grid()
    n = 4
    flip = ((u * n).floor() + (v * n).floor()) % 2
    fu, fv = u * n - (u * n).floor(), v * n - (v * n).floor()
    across = torch.where(flip > 0, fu, fv)
    stave = (across * 4).floor()
    tone = torch.rand(n * n * 8, generator=g)
    index = ((u * n).floor() * n * 4 + (v * n).floor() * 4 + stave).long() % len(tone)
    f = across * 4 - stave
    gap = torch.maximum((f < 0.07).float(), (torch.minimum(fu, fv) < 0.02).float())
    long, tall = _noise(g, 1.0, stretch=10), _noise(g, 1.0, stretch=10).T
    return (0.6 * tone[index] + 0.4 * torch.where(flip > 0, tall, long)).clamp(0, 1), 0.6 * gap


def tile(g):
    tone, gap, *_ = _cells(g, 4, 4, gap=0.012)
    return (0.35 * tone + 0.5 * _noise(g, 1.4)).clamp(0, 1), gap


def tile_check(g):
    u, v = _grid()
    _, gap, *_ = _cells(g, 4, 4, gap=0.008)
    check = ((u * 4).floor() + (v * 4).floor()) % 2
    return (0.85 * check + 0.15 * _noise(g, 1.0)), gap * 0.6


def mosaic(g):
    tone, gap, *_ = _cells(g, 16, 16, gap=0.007)
    return tone, gap


def subway(g):
    tone, gap, *_ = _cells(g, 8, 4, offset=0.5, gap=0.008)
    return 0.3 * tone + 0.2 * _noise(g, 1.0), gap


def brick(g):
    tone, gap, *_ = _cells(g, 12, 4, offset=0.5, gap=0.014)
    return (0.6 * tone + 0.5 * (_noise(g, 0.6) - 0.2)).clamp(0, 1), gap


def weave(g):
    u, v = _grid()
    w = torch.sin(2 * math.pi * 48 * u) * torch.sin(2 * math.pi * 48 * v)
    return (0.5 + 0.25 * w + 0.5 * (_noise(g, 0.4) - 0.5)).clamp(0, 1), 0.3 * _noise(g, 1.5)


def carpet(g):
    return _noise(g, 0.25), _smooth(0.5, 0.9, _noise(g, 1.2)) * 0.5


def marble(g):
    n = (_noise(g, 1.9) - 0.5).abs() * 2
    fine = (_noise(g, 1.4) - 0.5).abs() * 2
    veins = (1 - n * 4).clamp(0, 1) + 0.5 * (1 - fine * 9).clamp(0, 1)
    return _noise(g, 1.8), veins.clamp(0, 1) * 0.7


def speckle(g):
    n = _noise(g, 0.05)
    return n, _smooth(0.72, 0.78, _noise(g, 0.2))


def stripes(g):
    u, v = _grid()
    s = 0.5 + 0.5 * torch.sin(2 * math.pi * 8 * u)
    thin = 0.5 + 0.5 * torch.sin(2 * math.pi * (8 * u + 0.25))
    return _smooth(0.4, 0.6, s), _smooth(0.97, 0.99, thin) * 0.6


def damask(g):
    u, v = _grid()
    u2, v2 = u * 4, v * 4
    off = 0.5 * (u2.floor() % 2)
    x, y = u2 - u2.floor() - 0.5, (v2 + off) - (v2 + off).floor() - 0.5
    r, a = (x * x + y * y).sqrt(), torch.atan2(y, x)
    petal = 0.28 + 0.1 * torch.cos(6 * a)
    flower = _smooth(0.02, -0.02, r - petal) - 0.7 * _smooth(0.02, -0.02, r - 0.1)
    return (0.9 * flower + 0.1 * _noise(g, 0.8)).clamp(0, 1), torch.zeros(SIZE, SIZE)


def plaid(g):
    u, v = _grid()
    a = _smooth(-0.1, 0.1, torch.sin(2 * math.pi * 4 * u))
    b = _smooth(-0.1, 0.1, torch.sin(2 * math.pi * 4 * v))
    line = _smooth(0.97, 0.99, torch.sin(2 * math.pi * (4 * u + 0.2)).abs())
    return 0.5 * a + 0.5 * b, 0.5 * line


def dots(g):
    u, v = _grid()
    x, y = u * 8, v * 8
    x = x + 0.5 * (y.floor() % 2)
    return _disc(x - x.floor(), y - y.floor(), 0.5, 0.5, 0.22), 0.2 * _noise(g, 1.0)


def rug(g):
    """Covers a face once: borders around a lattice."""
    u, v = _grid()
    e = torch.minimum(torch.minimum(u, 1 - u), torch.minimum(v, 1 - v))
    border = _box(e, e, 0.05, 0.14, 0.05, 0.14)
    lattice = torch.sin(2 * math.pi * 5 * (u + v)) * torch.sin(2 * math.pi * 5 * (u - v))
    middle = _smooth(0.1, 0.3, lattice.abs()) * (e > 0.17)
    medal = _disc(u, v, 0.5, 0.5, 0.2) - _disc(u, v, 0.5, 0.5, 0.12)
    noise = _noise(g, 0.3) - 0.5
    return (border + 0.7 * middle + 0.2 * noise).clamp(0, 1), (
        0.8 * medal.clamp(0, 1) + 0.8 * _box(e, e, 0.085, 0.105, 0.085, 0.105)
    ).clamp(0, 1)


def rug_bands(g):
    u, v = _grid()
    band = torch.rand(16, generator=g)[(v * 16).long()]
    zig = (torch.sin(2 * math.pi * 12 * u).asin() / math.pi + 8 * v) % 1
    return (band + 0.15 * (_noise(g, 0.3) - 0.5)).clamp(0, 1), 0.7 * (zig < 0.2).float()


def landscape(g):
    """A painting: sky, hills, foreground, sun. Row 0 is the bottom (v grows upwards)."""
    u, v = _grid()
    hills = 0.45 + 0.12 * torch.sin(2 * math.pi * u + 1) + 0.04 * torch.sin(2 * math.pi * 3 * u)
    near = 0.25 + 0.06 * torch.sin(2 * math.pi * 2 * u)
    m = v.clone() * 0.5 + 0.5 + 0.3 * (_noise(g, 1.6) - 0.5)
    m = torch.where(v < hills, 0.45 + 0.4 * (_noise(g, 1.0) - 0.5), m)
    m = torch.where(v < near, 0.15 + 0.4 * (_noise(g, 0.7) - 0.5), m)
    d = _disc(u, v, 0.7, 0.78, 0.07) + 0.5 * (v < near) * _noise(g, 0.6)
    return m.clamp(0, 1), d.clamp(0, 1)


def abstract(g):
    u, v = _grid()
    m, d = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    r = torch.rand(12, 4, generator=g)
    for i, (x, y, s, k) in enumerate(r.tolist()):
        shape = _disc(u, v, x, y, 0.08 + 0.25 * s) if i % 3 else _box(u, v, x, x + s, y, y + k)
        if i % 2:
            m = m + (k - m) * shape
        else:
            d = d + (k - d) * shape
    return m, d


def mondrian(g):
    u, v = _grid()
    m, line = torch.zeros(SIZE, SIZE), torch.zeros(SIZE, SIZE)
    cuts_u = sorted([0, 1, *torch.rand(4, generator=g).tolist()])
    cuts_v = sorted([0, 1, *torch.rand(4, generator=g).tolist()])
    for x0, x1 in zip(cuts_u, cuts_u[1:], strict=False):
        for y0, y1 in zip(cuts_v, cuts_v[1:], strict=False):
            m = m + _box(u, v, x0, x1, y0, y1) * torch.rand((), generator=g).round()
    for c in cuts_u:
        line = torch.maximum(line, _box(u, u, c - 0.012, c + 0.012, -1, 2))
    for c in cuts_v:
        line = torch.maximum(line, _box(v, v, c - 0.012, c + 0.012, -1, 2))
    return m, line


def portrait(g):
    u, v = _grid()
    head = _smooth(1.05, 0.95, ((u - 0.5) / 0.16) ** 2 + ((v - 0.62) / 0.21) ** 2)
    body = _smooth(1.05, 0.95, ((u - 0.5) / 0.38) ** 2 + ((v - 0.05) / 0.36) ** 2)
    hair = _smooth(1.05, 0.95, ((u - 0.5) / 0.19) ** 2 + ((v - 0.72) / 0.19) ** 2) * (v > 0.7)
    m = 0.15 + 0.25 * _noise(g, 1.6) + 0.3 * body
    m = m + (0.95 - m) * head
    return m.clamp(0, 1), torch.maximum(0.9 * hair, 0.5 * body * (1 - head))


def letters(g):
    """A poster with a headline, a picture and lines of print."""
    u, v = _grid()
    rows = (v * 24).floor()
    line = torch.rand(24, 48, generator=g)[rows.long(), (u * 48).long()] > 0.3
    text = line * _box(u, v, 0.1, 0.9, 0.06, 0.4) * ((v * 24 - rows) < 0.5)
    head = _box(u, v, 0.1, 0.9, 0.84, 0.93) * (torch.rand(16, generator=g)[(u * 16).long()] > 0.15)
    photo = _box(u, v, 0.1, 0.9, 0.45, 0.8)
    return (photo * (0.2 + 0.8 * _noise(g, 1.5))).clamp(0, 1), torch.maximum(text.float(), head)


def outside_trees(g):
    u, v = _grid()
    crown = 0.42 + 0.35 * (_noise(g, 1.7)[:1] - 0.5)
    leaf = _noise(g, 0.9)
    sky = 0.8 + 0.4 * (_noise(g, 1.8) - 0.5)
    tree = _smooth(0.03, -0.03, v - crown - 0.1 * (leaf - 0.5))
    return (sky * (1 - tree) + tree * 0.15 * leaf).clamp(0, 1), tree * (0.4 + 0.6 * leaf)


def outside_houses(g):
    u, v = _grid()
    tall = (0.25 + 0.5 * torch.rand(6, generator=g))[(u * 6).long()]
    house = (v < tall).float()
    win = _cells(g, 16, 18, gap=0.018)
    lit = (1 - win[1]) * 0.5
    return (1 - house) * (0.75 + 0.25 * v) + house * 0.25, house * (0.4 + lit * win[0])


def screen(g):
    u, v = _grid()
    m = 0.2 + 0.2 * v
    for x, y, w, h in (0.1 + 0.4 * torch.rand(3, 4, generator=g)).tolist():
        m = torch.maximum(m, 0.9 * _box(u, v, x, x + w, y, y + h))
    rows = (v * 40).floor()
    text = (torch.rand(40, 60, generator=g)[rows.long(), (u * 60).long()] > 0.5) * (m > 0.6)
    return m, text * ((v * 40 - rows) < 0.5) * 0.8


def panels(g):
    """A suspended ceiling."""
    tone, gap, *_ = _cells(g, 2, 2, gap=0.012)
    return 0.4 * tone + 0.3 * _noise(g, 0.2), gap


def slats(g):
    u, v = _grid()
    f = (v * 16) % 1
    return _smooth(0.0, 0.9, f), (f < 0.14).float()


def brushed(g):
    return _noise(g, 0.6, stretch=30), torch.zeros(SIZE, SIZE)


def leaf(g):
    u, v = _grid()
    vein = torch.sin(2 * math.pi * 8 * (u + (v - 0.5).abs()))
    return (0.5 + 0.2 * vein + 0.5 * (_noise(g, 1.0) - 0.5)).clamp(0, 1), (
        0.5 * _smooth(0.02, 0.01, (v - 0.5).abs())
    )


def keys(g):
    tone, gap, *_ = _cells(g, 5, 14, gap=0.012)
    return 0.5 * tone, gap


def spines(g):
    """A row of books, seen from afar."""
    u, v = _grid()
    cuts = torch.rand(28, generator=g) + 0.5
    edges = torch.cat([torch.zeros(1), cuts.cumsum(0) / cuts.sum()])
    book = torch.bucketize(u.contiguous(), edges) - 1
    tone = torch.rand(29, generator=g)[book]
    gap = ((u - edges[book.clamp(max=28)]) < 0.006).float()
    tall = 0.75 + 0.25 * torch.rand(29, generator=g)[book]
    label = (torch.rand(29, generator=g)[book] > 0.5) * _box(v, v, 0.55, 0.65, 0, 1)
    return tone, torch.maximum(torch.maximum(gap, (v > tall).float()), 0.5 * label)


# ---- outdoors


def asphalt(g):
    crack = (_noise(g, 1.5) - 0.5).abs()
    fine = _noise(g, 0.15)
    return (0.55 * fine + 0.45 * _noise(g, 1.5)).clamp(0, 1), 0.7 * (1 - crack * 90).clamp(0, 1)


def leaves(g):
    clump, fine = _noise(g, 1.1, low=6), _noise(g, 0.35, low=10)
    light = 0.45 + 1.6 * (clump - 0.5) + 1.8 * (fine - 0.5)
    return light.clamp(0, 1), _smooth(0.48, 0.28, 0.6 * clump + 0.4 * fine)


def grass(g):
    return (0.6 * _noise(g, 0.5) + 0.4 * _noise(g, 1.4)).clamp(0, 1), _smooth(
        0.6, 0.8, _noise(g, 1.2)
    ) * 0.5


def _windows(g, cols, rows, wide, tall, panes=2, extra=None):
    """Windows in a wall: m glass (curtains paler), d frames and sills. Row 0 is the bottom."""
    u, v = _grid()
    x, y = u * cols, v * rows
    col, row = x.floor().long(), y.floor().long()
    x, y = x - col, y - row
    inside = _box(x, y, 0.5 - wide / 2, 0.5 + wide / 2, 0.3, 0.3 + tall)
    edge = 0.045
    pane = _box(x, y, 0.5 - wide / 2 + edge, 0.5 + wide / 2 - edge, 0.3 + edge, 0.3 + tall - edge)
    s = (x - 0.5 + wide / 2) / wide * panes
    pane = pane * ((s - s.round()).abs() * wide / panes > 0.02).float()
    sill = _box(x, y, 0.5 - wide / 2 - 0.04, 0.5 + wide / 2 + 0.04, 0.25, 0.3)
    tone = torch.rand(rows, cols, 2, generator=g)[row, col]
    blind = (y > 0.3 + tall * (1 - 0.5 * tone[..., 1])) & (tone[..., 0] > 0.55)
    glass = pane * (0.8 + 0.2 * (y - 0.3) / tall - 0.45 * blind)
    wall = 0.12 * _noise(g, 1.3)
    frame = torch.maximum((inside - pane).clamp(min=0), sill)
    if extra is not None:
        frame = torch.maximum(frame, extra(x, y))
    return torch.where(pane > 0, glass, wall), frame


def windows(g):
    return _windows(g, 4, 4, 0.44, 0.52)


def windows_wide(g):
    return _windows(g, 3, 4, 0.66, 0.48, panes=3)


def windows_shutters(g):
    return _windows(
        g,
        4,
        4,
        0.34,
        0.52,
        extra=lambda x, y: _box((x - 0.5).abs(), y, 0.19, 0.34, 0.29, 0.83) * 0.85,
    )


def windows_office(g):
    return _windows(g, 4, 4, 0.93, 0.58, panes=2)


def balconies(g):
    return _windows(g, 3, 4, 0.6, 0.55, extra=lambda x, y: _box(x, y, 0.1, 0.9, 0.12, 0.4) * 0.7)


def shop(g):
    """A shop's front: two panes and a door under a sign."""
    u, v = _grid()
    glass = _box(u, v, 0.04, 0.40, 0.14, 0.70) + _box(u, v, 0.60, 0.96, 0.14, 0.70)
    door = _box(u, v, 0.43, 0.57, 0.02, 0.70)
    goods = 0.45 * _smooth(0.55, 0.75, _noise(g, 0.9)) * (v < 0.5)
    sign = _box(u, v, 0.03, 0.97, 0.76, 0.92)
    letter = torch.rand(40, generator=g)[(u * 40).long()] > 0.4
    text = letter * _box(u, v, 0.25, 0.75, 0.80, 0.88)
    m = glass * (0.95 - goods) + door * 0.9
    return m.clamp(0, 1), (sign * (1 - 0.9 * text)).clamp(0, 1)


def ground_floor(g):
    """A door with steps between two windows."""
    u, v = _grid()
    door = _box(u, v, 0.42, 0.58, 0.0, 0.72)
    leaf_ = _box(u, v, 0.435, 0.565, 0.02, 0.56) + _box(u, v, 0.435, 0.565, 0.59, 0.70)
    holes = _box((u - 0.5).abs(), v, 0.17, 0.40, 0.33, 0.80)
    pane = _box((u - 0.5).abs(), v, 0.185, 0.28, 0.36, 0.77)
    pane = pane + _box((u - 0.5).abs(), v, 0.29, 0.385, 0.36, 0.77)
    wall = 0.12 * _noise(g, 1.3)
    m = torch.where(pane > 0, 0.9 - 0.2 * v, torch.where(leaf_ > 0, torch.tensor(0.75), wall))
    return m, (door + holes - pane - leaf_).clamp(0, 1)


def roof_tiles(g):
    tone, gap, fu, fv = _cells(g, 16, 12, offset=0.5, gap=0.008)
    return (0.35 * tone + 0.4 * fv + 0.35 * _noise(g, 1.2)).clamp(0, 1), 0.8 * gap


def boards(g):
    u, v = _grid()
    n = 16
    tone = torch.rand(n, generator=g)[(u * n).long()]
    f = (u * n) % 1
    return (0.6 * tone + 0.4 * _noise(g, 1.0, stretch=8).T).clamp(0, 1), (f < 0.12).float()


def wheel(g):
    """Covers a disc once: tyre (first colour), rim, spokes."""
    u, v = _grid()
    x, y = u - 0.5, v - 0.5
    r, a = (x * x + y * y).sqrt(), torch.atan2(y, x)
    rim = 1 - _smooth(0.33, 0.35, r)
    hole = (torch.sin(5 * a) > -0.1) * _box(r, r, 0.1, 0.29, 0.1, 0.29)
    return rim, 0.9 * hole


def ring_sign(g):
    """Covers a disc once: a ring around a field with a mark."""
    u, v = _grid()
    r = ((u - 0.5) ** 2 + (v - 0.5) ** 2).sqrt()
    mark = _box(u, v, 0.34, 0.46, 0.32, 0.68) + _box(u, v, 0.54, 0.66, 0.32, 0.68)
    return _smooth(0.36, 0.38, r), mark * 0.95


def arrow_sign(g):
    u, v = _grid()
    shaft = _box((u - 0.5).abs(), v, -1, 0.06, 0.2, 0.6)
    head = ((u - 0.5).abs() < 0.9 * (0.82 - v) * 0.6) & (v > 0.55)
    return torch.zeros(SIZE, SIZE), torch.maximum(shaft, head.float())


def bark(g):
    return _noise(g, 1.0, stretch=10).T, _smooth(0.6, 0.8, _noise(g, 0.8, stretch=8).T) * 0.7


_MAKERS = (
    plain, plaster, wood, planks, parquet, tile, tile_check, mosaic, subway, brick, weave, carpet,
    marble, speckle, stripes, damask, plaid, dots, rug, rug_bands, landscape, abstract, mondrian,
    portrait, letters, outside_trees, outside_houses, screen, panels, slats, brushed, leaf, keys,
    spines, asphalt, leaves, grass, windows, windows_wide, windows_shutters, windows_office,
    balconies, shop, ground_floor, roof_tiles, boards, wheel, ring_sign, arrow_sign, bark,
)  # fmt: skip
TEXTURES = tuple(f.__name__ for f in _MAKERS)
TEXELS = sum((SIZE >> i) ** 2 for i in range(LEVELS))


@functools.lru_cache(maxsize=4)
def atlas(device: str) -> torch.Tensor:
    """(2, layers · TEXELS): all textures, each with its mip levels one after the other."""
    out = []
    for i, make in enumerate(_MAKERS):
        gen = torch.Generator().manual_seed(1000 + i)
        level = torch.stack([c.expand(SIZE, SIZE) for c in make(gen)])[None].float()
        for _ in range(LEVELS):
            out.append(level.flatten(2)[0])
            level = torch.nn.functional.avg_pool2d(level, 2)
    return torch.cat(out, 1).to(device)


def sample(layer, u, v, footprint, device) -> torch.Tensor:
    """Bilinear look-up → (2, N). u, v in repeats; `footprint`: texels covered by a pixel."""
    table = atlas(device)
    level = footprint.clamp(min=1.0).log2_().add_(0.3).clamp_(max=LEVELS - 1).to(torch.int32)
    size = torch.bitwise_right_shift(torch.full_like(level, SIZE), level)
    # Texels before this level: 256² (1 - 4^-level) · 4/3.
    before = ((SIZE * SIZE - size * size) * 4).div_(3, rounding_mode="floor")
    base = layer.to(torch.int32) * TEXELS + before
    mask = size - 1
    x, y = u * size - 0.5, v * size - 0.5
    xf, yf = x.floor(), y.floor()
    wx, wy = x - xf, y - yf
    x0, y0 = xf.to(torch.int32) & mask, yf.to(torch.int32) & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    row0, row1 = base + y0 * size, base + y1 * size
    t00, t01 = (table.index_select(1, i) for i in (row0 + x0, row0 + x1))
    t10, t11 = (table.index_select(1, i) for i in (row1 + x0, row1 + x1))
    return torch.lerp(torch.lerp(t00, t01, wx), torch.lerp(t10, t11, wx), wy)
