"""The units behind the depth of one image."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from mde_utils.views.explorer import Edited, View
from mde_utils.views.plots.pictures import (
    bar_beside,
    show_depth,
    show_difference,
    show_image,
    show_map,
    show_mask,
    show_over,
)
from mde_utils.views.plots.style import CHANGE, EDITS, PALETTE, bare, depth_axis, key, provenance


def plot_unit(
    view: View, layer: str, unit: int, *, pixel: tuple[int, int] | None = None, num_units: int = 8
) -> Figure:
    """What a unit answers to, over the data set and on one image, and who answers at a pixel.

    Above: the image with the pixel, the predicted depth, the unit's |response| over the image
    (brightest at its 99th percentile), and the pixels whose predicted depth lies in the unit's
    assigned bin. Below: its mean response to each depth, with one standard deviation between
    images (grey), and on this image; the units with the largest share in the response to the
    depth predicted at the pixel.

    Args:
        view: from :meth:`Explorer.view`.
        pixel: (row, column); None = the middle of the image.

    Raises:
        ValueError: unknown layer, no such unit, or a pixel outside the image.
    """
    explorer, bins = view.explorer, view.explorer.bins(layer)
    number, near, far = explorer.assigned(layer, unit)
    h, w = view.image.shape[-2:]
    answer = view.ask(*(pixel or (h // 2, w // 2)), layer)
    about = explorer.units.loc[layer, unit]
    fig, pictures, (curve, bars) = _board(h / w, 1.55, (5.1, 2.15))

    image, depth, over, mask = pictures
    show_image(image, view.image)
    image.plot(answer.column, answer.row, "o", ms=9, mfc="none", mec="k", mew=3)
    image.plot(answer.column, answer.row, "o", ms=9, mfc="none", mec="w", mew=1.4)
    shown = show_depth(depth, view.depth, vmax=_farthest(view))
    bar_beside(depth, shown, "depth [m]")
    show_over(over, view.image, view.activations[layer][unit])
    where = view.where(layer, unit)
    show_mask(mask, where, torch.ones_like(where))
    fires = bool(view.activations[layer][unit].any())
    titles = {
        image: view.name,
        depth: "predicted depth",
        over: f"unit {unit}: |response|" if fires else f"unit {unit}: silent on this image",
        mask: f"predicted in {near:.2f}–{far:.2f} m: {where.float().mean():.0%}",
    }
    for ax, title in titles.items():
        ax.set_title(title, fontsize=9)

    places, counts = np.arange(len(bins)), explorer.dissection.counts[layer]
    mean = np.where(counts > 0, explorer.dissection.response[layer][unit], np.nan)
    spread = explorer.spread(layer)[unit].nan_to_num(0).numpy()
    curve.fill_between(places, mean - spread, mean + spread, step="mid", color="0.85", lw=0)
    curve.axvspan(number - 0.5, number + 0.5, color=PALETTE[1], alpha=0.35, lw=0)
    curve.plot(places, mean, "k", lw=1.4, drawstyle="steps-mid")
    curve.plot(places, view.response(layer)[unit].numpy(), "o-", color=PALETTE[0], ms=3.5, lw=1)
    if answer.bin is not None:
        curve.axvline(answer.bin, color="0.35", lw=1, ls=(0, (4, 3)))
    depth_axis(curve, bins)
    curve.set_xlim(-0.5, len(bins) - 0.5)
    curve.set_ylabel("mean response", fontsize=8)
    keys = [
        key("all images", color="k", lw=1.4),
        key("± their spread", color="0.85", lw=6),
        key("this image", color=PALETTE[0], marker="o", ms=3.5, lw=1),
        key("assigned bin", color=(*PALETTE[1], 0.35), lw=6),
        key("pixel", color="0.35", lw=1, ls=(0, (4, 3))),
    ]
    curve.legend(
        handles=keys,
        ncols=5,
        fontsize=7.5,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.98),
        columnspacing=1.0,
        handlelength=1.6,
        borderpad=0.2,
    )

    ranked = answer.units.head(num_units).iloc[::-1]
    shares = 100 * ranked["share"].fillna(0)
    colours = [PALETTE[0] if strongest else "0.75" for strongest in ranked["strongest"]]
    rows = np.arange(len(ranked))
    bars.barh(rows, shares, color=colours)
    bars.set_yticks(rows, [f"unit {k}" for k in ranked.index], fontsize=7.5)
    for label, k in zip(bars.get_yticklabels(), ranked.index, strict=True):
        label.set_fontweight("bold" if k == unit else "normal")
    bars.set_xlim(0, max(1.05 * shares.max(), 1))
    bars.set_xlabel("share in the response [%]", fontsize=8)
    if answer.bin is None:
        words = f"pixel: {answer.depth:.2f} m, in no bin"
    else:
        words = f"pixel: {answer.depth:.2f} m. Who answers to\n"
        words += f"{answer.span[0]:.2f}–{answer.span[1]:.2f} m (blue: strongest here)"
    bars.set_title(words, fontsize=8, loc="left", x=-0.22)
    for ax in (curve, bars):
        ax.tick_params(labelsize=7.5)
        sns.despine(ax=ax)
    curve.set_xlabel("depth [m]", fontsize=8)
    if about["best_response"]:
        words = f"answers most to {about['best_from_m']:.2f}–{about['best_to_m']:.2f} m"
    else:
        words = "never answers"
    fig.suptitle(
        f"{layer}, unit {unit}: {words}, assigned {near:.2f}–{far:.2f} m · selectivity "
        f"{about['selectivity']:.2f} · {provenance(explorer.dissection)}",
        fontsize=9,
        y=1 - 0.06 / fig.get_figheight(),
        va="top",
    )
    return fig


def plot_edit(edited: Edited, *, on: Figure | None = None) -> Figure:
    """What becomes of the depth with units changed, and at which depths.

    The edited depth on the scale of the unedited; the difference; below each other the edited
    units' mean response to each true depth over the data set (the mean of each one's part of its
    largest), and what the edit does there on this image: the mean |change| of the depth, which is
    the units' causal effect, and the mean |error| before and after.

    Args:
        on: a figure of this function's for the same image, drawn anew in a fraction of the time.
    """
    view, layer, table = edited.view, edited.layer, edited.table
    explorer, bins = view.explorer, view.explorer.bins(layer)
    places = np.arange(len(bins) + 1) - 0.5
    fig = on or _blank_edit(view)
    depth, _, difference, _, answers, needed = fig.axes
    if answers.get_label() != f"{layer} of {len(bins)}":
        answers.set_label(f"{layer} of {len(bins)}")
        for ax in (answers, needed):
            depth_axis(ax, bins)
            ax.set_xlim(places[0], places[-1])
            ax.tick_params(labelsize=7.5)
        answers.set(xticklabels=[], xlabel=None)
        needed.set_xlabel("true depth [m]", fontsize=8)

    values = edited.depth[0].numpy()
    depth.images[0].set_data(np.where(values > 0, values, np.nan))
    top = edited.difference.abs().max().item() or 1.0
    difference.images[0].set(data=edited.difference[0].numpy(), clim=(-top, top))
    response = explorer.dissection.response[layer][edited.units[layer]].abs()
    share = (response / response.amax(1, keepdim=True).clamp(min=1e-12)).mean(0).numpy()
    answers.patches[0].set_data(share, places, 0)
    change = table["change"].fillna(0).to_numpy()
    needed.patches[0].set_data(change, places, 0)
    for line, column in zip(needed.lines, ("error_before", "error_after"), strict=True):
        line.set_data(places[:-1] + 0.5, table[column].to_numpy())
    highest = np.nanmax([1e-3, *change, *table["error_before"], *table["error_after"]])
    needed.set_ylim(0, 1.08 * highest)
    chosen = " and ".join(f"{k} {_some(v)}" for k, v in edited.units.items())
    words = EDITS[edited.mode].format(edited.factor)
    before, after = edited.mean("error_before"), edited.mean("error_after")
    fig.suptitle(
        f"{chosen}: {words} · mean |change| {edited.mean('change'):.3f} m, mean |error| "
        f"{before:.3f} → {after:.3f} m",
        fontsize=9,
        y=1 - 0.06 / fig.get_figheight(),
        va="top",
    )
    return fig


def _board(aspect: float, height: float, widths: tuple[float, float]):
    """Figure, axes of four pictures, and of two panels below that are so high and wide, inches."""
    columns, wide = (4, 1.98) if aspect > 0.5 else (2, 4.05)
    high = wide * aspect
    gaps = [0.1, 0.7, 0.1]  # room for the colour bar of the second
    lines = 4 // columns
    total = 0.35 + lines * (high + 0.25) + 0.45 + height + 0.5
    fig = plt.figure(figsize=(9, total))

    def place(x: float, y: float, w: float, h: float) -> Axes:  # inches, from above
        return fig.add_axes((x / 9, 1 - (y + h) / total, w / 9, h / total))

    pictures = []
    for i in range(4):
        row, column = divmod(i, columns)
        x = 0.07 + sum(wide + gap for gap in gaps[:column])
        pictures.append(place(x, 0.55 + row * (high + 0.25), wide, high))
    y = total - 0.5 - height
    return fig, pictures, [place(0.6, y, widths[0], height), place(6.75, y, widths[1], height)]


def _blank_edit(view: View) -> Figure:
    """What `plot_edit` fills: depth, its bar, difference, its bar, and two panels of bins."""
    h, w = view.image.shape[-2:]
    wide = 2.0
    high = min(wide * h / w, 2.4)
    total = max(0.7 + high, 2.75)
    fig = plt.figure(figsize=(9, total))

    def place(x: float, y: float, w: float, h: float) -> Axes:  # inches, from above
        return fig.add_axes((x / 9, 1 - (y + h) / total, w / 9, h / total))

    top = 0.6 + (total - 0.7 - high) / 2
    depth, bar = place(0.08, top, wide, high), place(0.16 + wide, top, 0.09, high)
    difference, bar2 = place(0.75 + wide, top, wide, high), place(0.83 + 2 * wide, top, 0.09, high)
    shown = show_depth(depth, view.depth, vmax=_farthest(view))
    changed = show_difference(difference, torch.zeros_like(view.depth[0]))
    for axes, mappable, label in ((bar, shown, "depth [m]"), (bar2, changed, "change [m]")):
        fig.colorbar(mappable, cax=axes)
        axes.tick_params(labelsize=7.5)
        axes.set_title(label, fontsize=7.5, loc="left")
    depth.set_title("edited depth", fontsize=9)
    difference.set_title("difference", fontsize=9)
    half = (total - 1.2) / 2
    answers, needed = place(5.92, 0.42, 3, half), place(5.92, 0.7 + half, 3, half)
    answers.stairs([0], [0, 1], fill=True, color="0.6")
    answers.set(ylim=(0, 1.08), yticks=(0, 1), yticklabels=("0", "max"))
    answers.set_ylabel("response", fontsize=8)
    needed.stairs([0], [0, 1], fill=True, color=PALETTE[1], alpha=0.6, label="|change|")
    needed.plot([], [], color="k", lw=1.4, label="|error| before")
    needed.plot([], [], color=PALETTE[0], lw=1.4, ls="--", label="after")
    needed.legend(
        ncols=3, fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.94)
    )
    needed.set_ylabel("effect [m]", fontsize=8)
    for ax in (answers, needed):
        ax.tick_params(labelsize=7.5)
        sns.despine(ax=ax)
    return fig


def _farthest(view: View) -> float:
    return max(view.truth.max().item(), view.depth.quantile(0.999).item(), 1e-3)


def _some(units: Sequence[int]) -> str:
    names = ", ".join(map(str, units[:8])) + (f" and {len(units) - 8} more" * (len(units) > 8))
    return f"unit{'s' * (len(units) > 1)} {names}"


def plot_explanation(
    image: Tensor,
    depth: Tensor,
    units: pd.DataFrame,
    *,
    responses: Sequence[Tensor],
    changes: Tensor,
    by_depth: pd.DataFrame,
    tuning: Sequence[tuple[Tensor, Tensor]],
    metric: bool = True,
    title: str = "",
) -> Figure:
    """A picture, its depth, the units that fire on it, and what becomes of the depth without each.

    A row a unit: where it fires (|response|, on its own scale); how the depth changes if it is
    wrong (one scale for all); and at which depths: filled, the |mean response| of its tuning curve,
    scaled to the axis; the line, the mean |change|. The arguments are what `explain` found.

    Args:
        depth: (1, H, W) metres; with ``metric=False`` of an unknown unit, and curves are drawn over
            tenths of the picture, near to far.
    """
    unit = "m" if metric else "model’s unit"
    aspect = image.shape[1] / image.shape[2]
    n = len(units)
    top, row = np.clip(3.6 * aspect, 1.5, 3.4), np.clip(3.6 * aspect, 1.3, 2.1)
    fig = plt.figure(figsize=(11, top + n * row + 0.9), layout="constrained")
    axes = fig.subplots(1 + n, 3, squeeze=False, gridspec_kw={"height_ratios": [top, *[row] * n]})
    show_image(axes[0, 0], image)
    low, high = (
        depth.flatten()[:: max(1, depth.numel() // 100_000)].quantile(q) for q in (0.01, 0.99)
    )
    shown = show_depth(axes[0, 1], depth, vmin=0 if metric else low.item(), vmax=high.item())
    fig.colorbar(shown, ax=axes[0, 1], label=f"depth [{unit}]", extend="max", pad=0.02)
    axes[0, 0].set_title("RGB", fontsize=10)
    axes[0, 1].set_title("predicted depth", fontsize=10)
    fig.suptitle(title, fontsize=11)
    if not n:
        axes[0, 2].axis("off")
        axes[0, 2].text(0.5, 0.5, "no unit fires on it", ha="center", va="center")
        return fig
    span = changes.abs().flatten()
    span = span[:: max(1, len(span) // 1_000_000)].quantile(0.99).item() or 1.0
    for ax, change in zip((*axes[1:, 1], axes[0, 2]), changes, strict=True):
        drawn = ax.imshow(change.numpy(), cmap=CHANGE, vmin=-span, vmax=span)
        ax.set_aspect(aspect * change.shape[1] / change.shape[0])
        bare(ax)
    axes[0, 2].set_title("all units below wrong", fontsize=10)
    fig.colorbar(drawn, ax=axes[0, 2], label=f"change [{unit}]", extend="both", pad=0.02)
    highest = by_depth["change"].max() or 1.0
    for i, (_, about) in enumerate(units.iterrows()):
        response, ax = responses[i], axes[1 + i, 2]
        show_map(axes[1 + i, 0], response)
        axes[1 + i, 0].set_aspect(aspect * response.shape[1] / response.shape[0])
        axes[1 + i, 0].set_ylabel(
            f"{about['layer']}, unit {about['unit']}\nDS {about['selectivity']:.2f}\n"
            f"{about['best_from_m']:.2f}–{about['best_to_m']:.2f} m",
            fontsize=8,
        )
        axes[1 + i, 0].set_xlabel(f"fires on {about['fires']:.0%}", fontsize=8)
        axes[1 + i, 1].set_xlabel(
            f"mean |change| {about['change']:.2g} {unit}"
            + (f" · ratio ≥ 1.25 on {about['fails']:.0%}" if about["fails"] >= 0 else ""),
            fontsize=8,
        )
        part = by_depth[(by_depth.layer == about["layer"]) & (by_depth.unit == about["unit"])]
        if metric:
            mean, edges = (x.numpy() for x in tuning[i])
            filled = np.nan_to_num(mean / np.nanmax(mean)) * highest
            ax.stairs(filled, edges, fill=True, color="0.85", label="answers to (data)")
            middle = (part["from"] + part["to"]) / 2
            ax.set_xlim(0, edges[-1])
        else:
            middle = np.arange(len(part)) + 0.5
            ax.set_xlim(0, len(part))
        line = {"color": PALETTE[0], "ms": 2.5, "lw": 1, "label": "changes (here)"}
        ax.plot(middle, part["change"], "o-", **line)
        ax.set_ylim(0, 1.08 * highest)
        ax.set_ylabel(f"mean |change|\n[{unit}]", fontsize=8)
        ax.tick_params(labelsize=7)
        sns.despine(ax=ax)
    axes[1, 0].set_title("where it fires", fontsize=9)
    axes[1, 1].set_title("if it alone were wrong", fontsize=9)
    axes[1, 2].legend(fontsize=7, frameon=False, loc="upper right")
    axes[-1, 2].set_xlabel(
        "depth [m]" if metric else "tenths of the picture, near to far", fontsize=8
    )
    return fig
