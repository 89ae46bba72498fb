"""Depth as points in space."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from .style import WIDTH, bare, styled


@styled
def plot_point_cloud(
    image: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    *,
    farthest: float | None = None,
    turn: float = 12.0,
    rise: float = 14.0,
    points: int = 60_000,
    title: str | None = None,
) -> Figure:
    """Where the pixels of an image lie in space by their depth, in the colours of the image.

    Seen from behind and above the camera, over a grid in metres from it at the height of the
    lowest points.

    Args:
        image: RGB (3, H, W) in [0, 1].
        depth: (1, h, w) metres, of the image or a smaller copy of it; 0 = no measurement.
        intrinsics: (3, 3) in pixels of the image.
        farthest: leave out what is farther, metres.
        turn, rise: of the view, degrees: to the right (seen from above, the eye moves left) and
            up.
        points: about so many at most; else of a smaller copy, each of its nearest pixel.
    """
    depth = depth.detach().float().cpu().reshape(1, 1, *depth.shape[-2:])
    depth = torch.where(depth <= (farthest or np.inf), depth, 0.0)  # NaN too
    count = int((depth > 0).sum())
    if not count:
        limit = "" if farthest is None else f" up to {farthest:g} m"
        raise ValueError(f"No pixel has a depth{limit}: there is no point to draw.")
    if count > points:
        small = [max(1, round(n * (points / count) ** 0.5)) for n in depth.shape[-2:]]
        depth = nn.functional.interpolate(depth, small, mode="nearest-exact")
    xyz, rgb, spacing = _in_space(image.detach().float().cpu(), depth[0, 0], intrinsics)
    seen = _eye(xyz, turn, rise)
    flat, distance = seen(xyz)
    low, high = np.quantile(flat, [0.003, 0.997], axis=0)
    span = np.maximum(1.08 * (high - low), 0.02)  # of a single point, too
    low, high = (low + high - span) / 2, (low + high + span) / 2
    height = float(np.clip(WIDTH * span[1] / span[0], 2.5, 7))
    fig, ax = plt.subplots(figsize=(WIDTH, height))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    bare(ax)
    ax.set_facecolor("0.97")
    _ground(ax, xyz, seen)
    order = distance.argsort()[::-1]
    per_unit = 72 * min(WIDTH / span[0], height / span[1])
    size = np.clip(1.4 * spacing / distance * per_unit, 0.8, 12) ** 2
    ax.scatter(*flat[order].T, size[order], rgb[order], marker="s", linewidths=0, zorder=2)
    words = f"{len(xyz):,} points, {xyz[:, 2].min():.1f}–{xyz[:, 2].max():.1f} m"
    ax.set_title(f"{title} · {words}" if title else words)
    return fig


def _in_space(image: Tensor, depth: Tensor, intrinsics: Tensor):
    """Of each pixel with a depth (h, w): place (n, 3) in metres, colour (n, 3), and the metres
    between neighbours there (n,)."""
    (tall, wide), (h, w) = image.shape[-2:], depth.shape
    if (h, w) != (tall, wide):
        image = nn.functional.interpolate(image[None], (h, w), mode="bilinear", antialias=True)[0]
    keep = depth > 0
    rows, columns = keep.nonzero().double().unbind(1)
    # Pixel centres of a copy of another size lie at (x + .5) W/w - .5 of the image.
    u, v = (columns + 0.5) * wide / w - 0.5, (rows + 0.5) * tall / h - 0.5
    rays = torch.linalg.solve(intrinsics.double().cpu(), torch.stack([u, v, torch.ones_like(u)])).T
    z = depth[keep].double()
    spacing = z * wide / w / intrinsics[0, 0].item()
    spacing *= min(np.sqrt(h * w / len(z)), 3)  # wider where pixels have no depth
    rgb = image.clamp(0, 1).permute(1, 2, 0)[keep]
    return (rays * z[:, None]).numpy(), rgb.numpy(), spacing.numpy()


def _eye(xyz: np.ndarray, turn: float, rise: float):
    """A function of (n, 3) metres: where in the picture (n, 2), y up, and how far from the eye."""
    middle = np.array([0.0, np.median(xyz[:, 1]), np.median(xyz[:, 2])])
    a, b = np.radians(turn), np.radians(rise)
    across = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    down = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    view = down @ across
    away = 1.3 * middle[2]

    def seen(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = (p - middle) @ view.T + (0, 0, away)
        distance = np.maximum(p[:, 2], 0.05 * away)
        return p[:, :2] / distance[:, None] * (1, -1), distance

    return seen


def _ground(ax: Axes, xyz: np.ndarray, seen) -> None:
    """A grid under the points, named by its distance from the camera in metres."""
    floor = np.quantile(xyz[:, 1], 0.98)
    end = np.quantile(xyz[:, 2], 0.99)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, np.inf) if end / s < 9)
    side = step * np.ceil(np.abs(np.quantile(xyz[:, 0], [0.02, 0.98])).max() / step)
    far = step * np.ceil(end / step)
    line = {"color": "0.75", "lw": 0.8, "zorder": 1}
    right = ax.get_xlim()[1]
    for d in np.arange(0, far + step / 2, step):
        (start, end), _ = seen(np.array([[-side, floor, d], [side, floor, d]]))
        ax.plot(*np.array([start, end]).T, **line)
        # Named where it leaves the picture, for the points lie over the rest.
        x = min(end[0], right)
        y = np.interp(x, [start[0], end[0]], [start[1], end[1]])
        if ax.get_ylim()[0] <= y <= ax.get_ylim()[1]:
            words = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            halo = [withStroke(linewidth=2, foreground="w")]
            ax.annotate(f"{d:g} m", (x, y), **words, zorder=3, path_effects=halo)
    for x in np.arange(-side, side + step / 2, step):
        ends, _ = seen(np.array([[x, floor, 0], [x, floor, far]]))
        ax.plot(*ends.T, **line)
