"""Images, depth and maps of units as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.activations import evaluating
from mde_utils.depth_bins import DepthBins
from mde_utils.views.plots.style import (
    CHANGE,
    DEPTH,
    GREY,
    PALETTE,
    RESPONSE,
    bare,
    depth_axis,
    grid,
)


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


def plot_items(items: Sequence[Mapping], fields: Sequence[str] = ("image", "depth")) -> Figure:
    """A row of pictures a field, a column an item: image, right, depth, normal, label."""
    titles = {
        "image": "RGB",
        "right": "right view",
        "depth": "depth",
        "hint": "depth hints",
        "normal": "normals",
        "label": "labels",
        "sparse_depth": "sparse depth",
    }
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(fields), len(items), 9, shape[0] / shape[1])
    farthest = max(item["depth"].max().item() for item in items)
    for row, field in zip(axes, fields, strict=True):
        for ax, item in zip(row, items, strict=True):
            if field in ("depth", "hint"):
                shown = show_depth(ax, item[field], vmax=farthest)
            elif field == "sparse_depth":  # single pixels could not be seen
                _, y, x = item[field].nonzero().T.cpu().numpy()
                metres = item[field][0, y, x].cpu().numpy()
                show_depth(ax, torch.zeros_like(item[field]), vmax=farthest)
                shown = ax.scatter(x, y, 3, metres, cmap=DEPTH, vmin=0, vmax=farthest, linewidths=0)
            elif field == "normal":
                show_image(ax, item[field] / 2 + 0.5)
            elif field == "label":
                ax.imshow(item[field].numpy(), cmap="tab20", interpolation="nearest")
                bare(ax)
            else:
                show_image(ax, item[field])
        row[0].set_ylabel(titles.get(field, field))
        if field in ("depth", "hint", "sparse_depth"):
            fig.colorbar(shown, ax=row.tolist(), label="depth [m]", pad=0.01)
    return fig


def plot_projection(image: Tensor, depth: Tensor, *, vmax: float | None = None) -> Figure:
    """Sparse depth (1, H, W) in metres as dots over the image that it belongs to.

    Near dots lie above far ones. `vmax`: depth of the brightest colour, metres; None = farthest.

    Raises ValueError for depth of another size, or vmax that no depth is below.
    """
    h, w = image.shape[1:]
    if depth.shape != (1, h, w):
        raise ValueError(f"Image and depth differ in size, {h}x{w} and {tuple(depth.shape)}.")
    fig, axes = grid(1, 1, 10, h / w)
    ax = axes[0, 0]
    show_image(ax, 0.5 + 0.5 * image.mean(0).expand(3, -1, -1))  # the colours are the depth's
    y, x = np.nonzero(depth[0].cpu().numpy() > 0)
    metres = depth[0].cpu().numpy()[y, x]
    if vmax is not None and len(x) and not metres.min() < vmax:
        raise ValueError(f"vmax={vmax:g} m: the nearest point is {metres.min():.2f} m away.")
    order = metres.argsort()[::-1]
    norm = LogNorm(*((metres.min(), vmax or metres.max()) if len(x) else (1, 80)))
    dots = ax.scatter(x[order], y[order], 3.5, metres[order], cmap=DEPTH, norm=norm, linewidths=0)
    ax.set_xlabel(f"{len(x):,} points, {len(x) / (h * w):.1%} of the pixels", fontsize=9)
    ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 40, 80) if norm.vmin <= t <= norm.vmax]
    bar = fig.colorbar(dots, ax=ax, label="depth [m]", pad=0.01, ticks=ticks, format="%g")
    bar.minorticks_off()
    return fig


def plot_predictions(
    models: Mapping[str, nn.Module], items: Sequence[Mapping], *, vmax: float | None = None
) -> Figure:
    """A row an item: image, ground truth, and the depth that each model predicts, in metres."""
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(items), 2 + len(models), 11, shape[0] / shape[1])
    vmax = vmax or max(item["depth"].max().item() for item in items)
    for row, item in zip(axes, items, strict=True):
        show_image(row[0], item["image"])
        shown = show_depth(row[1], item["depth"], vmax=vmax)
        for ax, model in zip(row[2:], models.values(), strict=True):
            pred = predict(model, item)
            show_depth(ax, pred, vmax=vmax)
            error = _mean_error(pred, item["depth"])
            ax.set_xlabel(f"mean |error| {error:.2f} m", fontsize=8)
    for ax, title in zip(axes[0], ["RGB", "ground truth", *models], strict=True):
        ax.set_title(title)
    fig.colorbar(shown, ax=axes.ravel().tolist(), label="depth [m]", pad=0.01, shrink=0.8)
    return fig


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
        shown = ax.scatter(x, y, 1, values[known], linewidths=0, **look)
    bare(ax)
    return shown


def predict(model: nn.Module, item: Mapping) -> Tensor:
    """Depth (1, h, w) in metres, at the network's own resolution, of one item."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    names = getattr(model, "input_names", ())
    inputs = {k: torch.as_tensor(item[k])[None].to(device) for k in names}
    with evaluating(model):
        return model(item["image"][None].to(device), **inputs)[0].cpu()


def plot_depth_histogram(depths: Mapping[str, Tensor], bins: DepthBins) -> Figure:
    """Share of labelled pixels in each depth bin, a line a data set.

    Args:
        depths: name → any number of depth values, metres, 0 = no measurement.
    """
    fig, ax = plt.subplots(figsize=(9, 3.4), layout="constrained")
    rows = []
    for name, depth in depths.items():
        index = bins.discretize(depth.flatten())
        share = torch.bincount(index[index >= 0], minlength=len(bins)).double()
        inside = (index >= 0).sum() / (depth > 0).sum().clamp(min=1)
        label = f"{name} ({int((share > 0).sum())} of {len(bins)} bins, {inside:.0%} of pixels)"
        rows += [(label, i, s) for i, s in enumerate((100 * share / share.sum()).tolist())]
    frame = pd.DataFrame(rows, columns=["data", "bin", "share"])
    sns.lineplot(
        frame,
        x="bin",
        y="share",
        hue="data",
        drawstyle="steps-mid",
        palette=PALETTE[: len(depths)],
        ax=ax,
    )
    ax.set(ylabel="labelled pixels [%]", ylim=(0, None))
    sns.move_legend(ax, "lower left", bbox_to_anchor=(0, 1), title=None, frameon=False)
    depth_axis(ax, bins)
    return fig


def show_difference(ax: Axes, values: Tensor):
    """(h, w), red where there is more, blue where there is less. Returns the mappable."""
    top = values.abs().max().item() or 1.0
    shown = ax.imshow(values.numpy(), cmap=CHANGE, vmin=-top, vmax=top)
    bare(ax)
    return shown


def bar_beside(ax: Axes, mappable, label: str) -> None:
    """A colour bar to the right of a picture that keeps its place."""
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes([1.03, 0, 0.045, 1]))
    bar.ax.tick_params(labelsize=7.5)
    bar.set_label(label, fontsize=8)


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


def show_map(ax: Axes, activation: Tensor) -> None:
    """One unit's |activation| (h, w), on its own scale."""
    values = activation.abs().float().numpy()
    # A few pixels at the border can be far above all others; but a few may be all there is.
    top = np.quantile(values, 0.99) or values.max()
    ax.imshow(values, cmap=RESPONSE, vmin=0, vmax=top)
    bare(ax)


def show_mask(ax: Axes, where: Tensor, measured: Tensor) -> None:
    """(1, h, w) white where true, black where false, grey where it cannot be told."""
    shown = torch.where(measured, where.float(), 0.5).squeeze(0).cpu().numpy()
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    bare(ax)
    ax.spines[:].set(visible=True, color=GREY, linewidth=0.8)  # white ends where the page begins


def _mean_error(pred: Tensor, depth: Tensor) -> float:
    pred = nn.functional.interpolate(
        pred[None], depth.shape[-2:], mode="bilinear", align_corners=False
    )[0]
    return (pred - depth).abs()[depth > 0].mean().item()
