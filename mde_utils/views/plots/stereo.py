"""Pairs of pictures, and the disparity that networks see in one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.stereo import photometric_error, stereo_transform, warp
from mde_utils.views.plots.pictures import predict, show_image, show_known
from mde_utils.views.plots.style import ERROR, PALETTE, RESPONSE, grid


def plot_pair(item: Mapping) -> Figure:
    """What a stereo pair says without any label: both pictures, the right one warped to the left by
    the item's depth, what is left of their difference, and that for wrong depths.

    item: `image`, `right`, `depth`, `intrinsics` and `baseline`, of one size.
    """
    image, other, depth = (item[name][None].float() for name in ("image", "right", "depth"))

    def warped(factor: float) -> tuple[Tensor, Tensor, Tensor]:
        picture, inside = _warped(item, factor * depth)
        return picture, photometric_error(picture, image), inside & (depth > 0)

    picture, error, seen = warped(1.0)
    h, w = image.shape[-2:]
    fig = plt.figure(figsize=(10, 10 * h / w + 2.6), layout="constrained")
    grid = fig.add_gridspec(3, 2, height_ratios=(1, 1, 2.1 / (5 * h / w)))
    axes = [fig.add_subplot(grid[i // 2, i % 2]) for i in range(4)]
    for ax, shown, title in zip(
        axes,
        (image, other, picture),
        ("left", "right", "right, warped by true depth"),
        strict=False,
    ):
        show_image(ax, shown[0])
        ax.set_title(title, fontsize=9)
    shown = show_known(
        axes[3], torch.where(seen, error, torch.nan)[0], cmap=ERROR, vmin=0, vmax=0.5
    )
    axes[3].set_title("photometric error of that (white: outside, or no depth)", fontsize=9)
    fig.colorbar(shown, ax=axes[3], pad=0.01)
    factors = np.geomspace(0.5, 2, 31)
    means = [e[s].mean().item() for _, e, s in map(warped, factors)]
    curve = fig.add_subplot(grid[2, :])
    curve.plot(factors, means, color=PALETTE[0])
    curve.axvline(1, color="0.6", lw=0.8, ls="--")
    curve.set_xscale("log")
    curve.set_xticks((0.5, 0.7, 1, 1.4, 2), ("0.5", "0.7", "1", "1.4", "2"))
    curve.minorticks_off()
    curve.set_xlabel("all depths times this")
    curve.set_ylabel("mean photometric error")
    sns.despine(ax=curve)
    return fig


def plot_disparities(
    models: Mapping[str, nn.Module], items: Sequence[Mapping], *, median_scaled: bool = False
) -> Figure:
    """Inverse depth as each model predicts it, beside its error: for each item a row with the image
    and the truth (else the right picture), then a row a model.

    The error is relative to the true depth; for items without depth it is the photometric error of
    the right picture warped by the prediction. median_scaled: predictions are first multiplied by
    the ratio of the medians, which is said.
    """
    shape = items[0]["image"].shape[1:]
    fig, axes = grid(len(items) * (1 + len(models)), 2, 10, shape[0] / shape[1])
    rows = iter(axes)
    for item in items:
        depth, predictions = item.get("depth"), {}
        for name, model in models.items():
            size = shape if depth is None else depth.shape[-2:]
            pred = nn.functional.interpolate(predict(model, item)[None], size, mode="bilinear")[0]
            if depth is not None and median_scaled:
                factor = (depth[depth > 0].median() / pred[depth > 0].median()).item()
                name, pred = f"{name}, times {factor:.2f} by the medians", pred * factor
            predictions[name] = pred
        first = next(iter(predictions.values())) if depth is None else depth[depth > 0]
        look = {"cmap": RESPONSE, "vmin": 0, "vmax": np.quantile((1 / first).numpy(), 0.95)}
        top = next(rows)
        show_image(top[0], item["image"])
        top[0].set_title(str(item.get("name", "image")), fontsize=9)
        if depth is None:
            show_image(top[1], item["right"])
        else:
            show_known(top[1], torch.where(depth > 0, 1 / depth.clamp(min=1e-3), torch.nan), **look)
        top[1].set_title("right (no true depth)" if depth is None else "ground truth", fontsize=9)
        for name, pred in predictions.items():
            left, right = next(rows)
            shown = show_known(left, 1 / pred, **look)
            left.set_title(name, fontsize=9)
            fig.colorbar(shown, ax=left, label="1/depth [1/m]", pad=0.01)
            if depth is None:
                picture, _ = _warped(item, pred[None])
                error = photometric_error(picture, item["image"][None])[0]
                label, words, most = "photometric error", f"mean {error.mean():.3f}", 0.5
            else:
                error = torch.where(depth > 0, 100 * (pred / depth - 1).abs(), torch.nan)
                label, words, most = "relative error [%]", f"mean {error.nanmean():.0f} %", 50
            shown = show_known(right, error, cmap=ERROR, vmin=0, vmax=most)
            right.set_title(f"{label.removesuffix(' [%]')}, {words}", fontsize=9)
            fig.colorbar(shown, ax=right, label=label, pad=0.01, extend="max")
    return fig


def _warped(item: Mapping, depth: Tensor) -> tuple[Tensor, Tensor]:
    transform = stereo_transform(torch.as_tensor(item["baseline"]).float().view(1))
    return warp(item["right"][None].float(), depth, item["intrinsics"][None], transform)
