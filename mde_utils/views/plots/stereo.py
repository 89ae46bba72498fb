"""Pairs of pictures, and the inverse depth that networks see in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.passes import predict
from mde_utils.stereo import photometric_error, stereo_transform, warp

from .pictures import resized, show_image, show_known
from .style import ERROR, GREY, PALETTE, RESPONSE, WIDTH, grid, styled, titles


@styled
def plot_pair(item: Mapping) -> Figure:
    """What a stereo pair says without any label: both pictures, the right one warped to the left by
    the item's depth, what is left of their difference, and that for wrong depths.

    Args:
        item: `image`, `right`, `depth`, `intrinsics` and `baseline`, of one size.
    """
    image, other, depth = (item[name][None].float() for name in ("image", "right", "depth"))

    def warped(factor: float) -> tuple[Tensor, Tensor, Tensor]:
        picture, inside = _warped(item, factor * depth)
        return picture, photometric_error(picture, image), inside & (depth > 0)

    picture, error, seen = warped(1.0)
    h, w = image.shape[-2:]
    fig = plt.figure(figsize=(WIDTH, WIDTH * h / w + 2.6))
    cells = fig.add_gridspec(3, 2, height_ratios=(1, 1, 2.1 / (0.5 * WIDTH * h / w)))
    axes = [fig.add_subplot(cells[i // 2, i % 2]) for i in range(4)]
    for ax, shown in zip(axes, (image, other, picture), strict=False):
        show_image(ax, shown[0])
    error = torch.where(seen, error, torch.nan)[0]
    shown = show_known(axes[3], error, cmap=ERROR, vmin=0, vmax=0.5)
    words = "photometric error of that (white: outside, or no depth)"
    titles(axes, ("left", "right", "right, warped by true depth", words))
    fig.colorbar(shown, ax=axes[3], pad=0.01)
    factors = np.geomspace(0.5, 2, 31)
    means = [e[s].mean().item() for _, e, s in map(warped, factors)]
    curve = fig.add_subplot(cells[2, :])
    curve.plot(factors, means, color=PALETTE[0])
    curve.axvline(1, color=GREY, lw=0.8, ls="--")
    curve.set_xscale("log")
    curve.set_xticks((0.5, 0.7, 1, 1.4, 2), ("0.5", "0.7", "1", "1.4", "2"))
    curve.minorticks_off()
    curve.set(xlabel="all depths times this", ylabel="mean photometric error")
    return fig


@styled
def plot_disparities(
    models: Mapping[str, nn.Module], items: Sequence[Mapping], *, median_scaled: bool = False
) -> Figure:
    """Inverse depth as each model predicts it, beside its error: for each item a row with the image
    and the truth (else the right picture), then a row a model.

    The error is relative to the true depth; for items without depth it is the photometric error of
    the right picture warped by the prediction.

    Args:
        median_scaled: predictions are first multiplied by the ratio of the medians, which is said.
    """
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(items) * (1 + len(models)), 2, WIDTH, shape[0] / shape[1])
    rows = iter(axes)
    for item in items:
        depth, predictions = item.get("depth"), {}
        for name, model in models.items():
            pred = resized(predict(model, item), (shape if depth is None else depth.shape[-2:]))
            if depth is not None and median_scaled:
                ratio = (depth[depth > 0].median() / pred[depth > 0].median()).item()
                pred, name = pred * ratio, f"{name}, times {ratio:.2f} by the medians"
            predictions[name] = pred
        _disparity_rows(fig, rows, item, predictions)
    return fig


def _disparity_rows(fig: Figure, rows, item: Mapping, predictions: Mapping[str, Tensor]) -> None:
    depth = item.get("depth")
    first = next(iter(predictions.values())) if depth is None else depth[depth > 0]
    look = {"cmap": RESPONSE, "vmin": 0, "vmax": np.quantile((1 / first).numpy(), 0.95)}
    top = next(rows)
    show_image(top[0], item["image"])
    if depth is None:
        show_image(top[1], item["right"])
    else:
        show_known(top[1], torch.where(depth > 0, 1 / depth.clamp(min=1e-3), torch.nan), **look)
    words = "right (no true depth)" if depth is None else "ground truth"
    titles(top, (str(item.get("name", "image")), words))
    for name, pred in predictions.items():
        left, right = next(rows)
        shown = show_known(left, 1 / pred, **look)
        fig.colorbar(shown, ax=left, label="1/depth [1/m]", pad=0.01)
        if depth is None:
            picture, _ = _warped(item, pred[None])
            error = photometric_error(picture, item["image"][None])[0]
            label, words, most = "photometric error", f"mean {error.mean():.3f}", 0.5
        else:
            error = torch.where(depth > 0, 100 * (pred / depth - 1).abs(), torch.nan)
            label, words, most = "relative error [%]", f"mean {error.nanmean():.0f} %", 50
        shown = show_known(right, error, cmap=ERROR, vmin=0, vmax=most)
        fig.colorbar(shown, ax=right, label=label, pad=0.01, extend="max")
        titles((left, right), (name, f"{label.removesuffix(' [%]')}, {words}"))


def _warped(item: Mapping, depth: Tensor) -> tuple[Tensor, Tensor]:
    transform = stereo_transform(torch.as_tensor(item["baseline"]).float().view(1))
    return warp(item["right"][None].float(), depth, item["intrinsics"][None], transform)
