"""Images, depth and maps of units as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.depth_bins import DepthBins
from mde_utils.passes import predict

from .style import (
    CHANGE,
    DEPTH,
    GREY,
    PALETTE,
    RESPONSE,
    WIDTH,
    bare,
    depth_axis,
    farthest,
    grid,
    styled,
    titles,
)

FIELDS = {
    "image": "RGB",
    "right": "right view",
    "depth": "depth",
    "hint": "depth hints",
    "normal": "normals",
    "label": "labels",
    "sparse_depth": "sparse depth",
}
IN_METRES = ("depth", "hint", "sparse_depth")


def show_image(ax: Axes, image: Tensor) -> None:
    """RGB (3, H, W) in [0, 1]."""
    ax.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    bare(ax)


def show_depth(ax: Axes, depth: Tensor, *, vmin: float = 0, vmax: float = 10):
    """Depth (1, H, W) in metres; what has no measurement stays white. Returns the mappable."""
    values = depth.detach().squeeze(0).float().cpu().numpy()
    shown = ax.imshow(np.where(values > 0, values, np.nan), cmap=DEPTH, vmin=vmin, vmax=vmax)
    bare(ax)
    return shown


def show_known(ax: Axes, values: Tensor, **look):
    """(1, h, w), NaN = unknown; as dots where most is, for single pixels could not be seen. Returns
    the mappable."""
    values = values[0].cpu().numpy()
    known = np.isfinite(values)
    if known.mean() > 0.5:
        shown = ax.imshow(values, interpolation="nearest", **look)
    else:
        ax.imshow(np.ones((*values.shape, 3)))
        y, x = known.nonzero()
        shown = ax.scatter(x, y, 2, values[known], linewidths=0, **look)
    bare(ax)
    return shown


def show_map(ax: Axes, activation: Tensor, *, top: float | None = None):
    """One unit's |activation| (h, w), on its own scale or up to `top`. Returns the mappable."""
    values = activation.abs().float().cpu().numpy()
    # A few pixels at the border can be far above all others; but a few may be all there is.
    shown = ax.imshow(
        values, cmap=RESPONSE, vmin=0, vmax=top or np.quantile(values, 0.99) or values.max()
    )
    bare(ax)
    return shown


def show_mask(ax: Axes, where: Tensor, measured: Tensor | None = None) -> None:
    """(1, h, w) white where true, black where false, grey where it cannot be told."""
    shown = where.float() if measured is None else torch.where(measured, where.float(), 0.5)
    ax.imshow(shown.squeeze(0).cpu().numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(ax)
    ax.spines[:].set(visible=True, color=GREY, linewidth=0.8)  # white ends where the page begins


def show_difference(ax: Axes, values: Tensor, *, top: float | None = None):
    """(h, w), red where there is more, blue where there is less. Returns the mappable."""
    top = top or values.abs().max().item() or 1.0
    shown = ax.imshow(values.cpu().numpy(), cmap=CHANGE, vmin=-top, vmax=top)
    bare(ax)
    return shown


def show_over(ax: Axes, image: Tensor, activation: Tensor) -> None:
    """One unit's |activation| (h, w) over the image in grey, dark where it does not fire."""
    grey = 0.5 * image.clamp(0, 1).mean(0)
    values = activation.abs()[None, None]
    top = np.quantile(values.numpy(), 0.99) or values.max().item() or 1.0
    values = nn.functional.interpolate(values, grey.shape, mode="bilinear", align_corners=False)
    values = (values[0, 0] / top).clamp(0, 1)
    ax.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
    ax.imshow(values.numpy(), cmap=RESPONSE, vmin=0, vmax=1, alpha=values.numpy() ** 0.6)
    bare(ax)


def resized(depth: Tensor, size: Sequence[int]) -> Tensor:
    """(1, h, w) to (1, H, W), bilinear, as predictions are brought to the truth's size."""
    depth = depth[None].cpu().float()
    return nn.functional.interpolate(depth, tuple(size), mode="bilinear", align_corners=False)[0]


@styled
def plot_items(items: Sequence[Mapping], fields: Sequence[str] = ("image", "depth")) -> Figure:
    """A row of pictures a field, a column an item: image, right, depth, normal, label, …

    Depth of all kinds is on one scale, up to the largest of the items' depth (of what is drawn of
    items without).
    """
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(fields), len(items), WIDTH, shape[0] / shape[1])
    drawn = [field for field in fields if field in IN_METRES]
    top = farthest(*(item.get("depth", item[field]) for item in items for field in drawn))
    for row, field in zip(axes, fields, strict=True):
        for ax, item in zip(row, items, strict=True):
            shown = _show_field(ax, field, item[field], top)
        row[0].set_ylabel(FIELDS.get(field, field))
        if field in IN_METRES:
            fig.colorbar(shown, ax=row.tolist(), label="depth [m]", pad=0.01)
    return fig


def _show_field(ax: Axes, field: str, values: Tensor, top: float):
    if field == "sparse_depth":
        known = torch.where(values > 0, values, torch.nan)
        return show_known(ax, known, cmap=DEPTH, vmin=0, vmax=top)
    if field in IN_METRES:
        return show_depth(ax, values, vmax=top)
    if field == "label":
        ax.imshow(values.cpu().numpy(), cmap="tab20", interpolation="nearest")
        return bare(ax)
    return show_image(ax, values / 2 + 0.5 if field == "normal" else values)


@styled
def plot_projection(image: Tensor, depth: Tensor) -> Figure:
    """Sparse depth (1, H, W) in metres as dots over the image that it belongs to.

    Near dots lie above far ones.
    """
    h, w = image.shape[1:]
    if depth.shape != (1, h, w):
        raise ValueError(f"Image and depth differ in size, {h}x{w} and {tuple(depth.shape)}.")
    fig, axes = grid(1, 1, WIDTH, h / w)
    ax = axes[0, 0]
    show_image(ax, 0.5 + 0.5 * image.mean(0).expand(3, -1, -1))  # the colours are the depth's
    y, x = np.nonzero(depth[0].cpu().numpy() > 0)
    metres = depth[0].cpu().numpy()[y, x]
    order = metres.argsort()[::-1]
    norm = LogNorm(*((metres.min(), metres.max()) if len(x) else (1, 80)))
    size = min(max(3.5, (0.5 * 72 * WIDTH / w) ** 2), 60)  # half a pixel of a small image
    dots = ax.scatter(x[order], y[order], size, metres[order], cmap=DEPTH, norm=norm, linewidths=0)
    ax.set_xlabel(f"{len(x):,} points, {len(x) / (h * w):.1%} of the pixels")
    ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 40, 80) if norm.vmin <= t <= norm.vmax]
    bar = fig.colorbar(dots, ax=ax, label="depth [m]", pad=0.01, ticks=ticks, format="%g")
    bar.minorticks_off()
    return fig


@styled
def plot_predictions(models: Mapping[str, nn.Module], items: Sequence[Mapping]) -> Figure:
    """A row an item: image, ground truth, and the depth that each model predicts, in metres."""
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(items), 2 + len(models), WIDTH, shape[0] / shape[1])
    top = farthest(*(item["depth"] for item in items))
    for row, item in zip(axes, items, strict=True):
        show_image(row[0], item["image"])
        truth = item["depth"]
        shown = show_depth(row[1], truth, vmax=top)
        for ax, model in zip(row[2:], models.values(), strict=True):
            pred = predict(model, item)
            show_depth(ax, pred, vmax=top)
            error = (resized(pred, truth.shape[-2:]) - truth).abs()[truth > 0].mean()
            ax.set_xlabel(f"mean |error| {error:.2f} m")
    titles(axes[0], ["RGB", "ground truth", *models])
    fig.colorbar(shown, ax=axes.ravel().tolist(), label="depth [m]", pad=0.01, shrink=0.8)
    return fig


@styled
def plot_depth_histogram(depths: Mapping[str, Tensor], bins: DepthBins) -> Figure:
    """Share of labelled pixels in each depth bin, a line a data set.

    Args:
        depths: name → any number of depth values, metres, 0 = no measurement.
    """
    fig, ax = plt.subplots(figsize=(WIDTH, 3.2))
    for (name, depth), colour in zip(depths.items(), PALETTE, strict=False):
        index = bins.discretize(depth.flatten())
        share = torch.bincount(index[index >= 0], minlength=len(bins)).double()
        inside = (index >= 0).sum() / (depth > 0).sum().clamp(min=1)
        label = f"{name} ({int((share > 0).sum())} of {len(bins)} bins, {inside:.0%} of pixels)"
        ax.step(range(len(bins)), 100 * share / share.sum(), where="mid", color=colour, label=label)
    ax.set(ylabel="labelled pixels [%]", ylim=(0, None))
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1))
    depth_axis(ax, bins)
    return fig
