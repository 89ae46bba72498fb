"""The units behind the depth of one image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..explorer import Answer, Edited, View
from .pictures import show_depth, show_difference, show_image, show_map, show_mask, show_over
from .style import (
    ASSIGNED,
    EDITS,
    PALETTE,
    WIDTH,
    depth_axis,
    farthest,
    key,
    provenance,
    styled,
    titles,
)

_HERE, _PIXEL = PALETTE[0], {"color": "0.35", "lw": 1, "ls": (0, (4, 3))}


@styled
def plot_unit(view: View, layer: str, unit: int, *, pixel: tuple[int, int] | None = None) -> Figure:
    """What a unit answers to, over the data set and on one image, and who answers at a pixel.

    Above: the image with the pixel, the predicted depth, the unit's |response| over the image
    (brightest at its 99th percentile), and the pixels whose predicted depth lies in the unit's
    assigned bin. Below: its mean response to each depth, with one standard deviation between
    images (grey), and on this image; the units with the largest share in the response to the
    depth predicted at the pixel.

    Args:
        view: from `Explorer.view`.
        pixel: (row, column); None = the middle of the image.
    """
    explorer = view.explorer
    number, near, far = explorer.assigned(layer, unit)
    h, w = view.image.shape[-2:]
    answer = view.ask(*(pixel or (h // 2, w // 2)), layer)
    fig, pictures, curve, bars = _board(h / w)
    _pictures(pictures, view, layer, unit, answer)
    _curve(curve, view, layer, unit, answer)
    _shares(bars, answer, unit)
    about = explorer.units.loc[layer, unit]
    words = "never answers"
    if about["best_response"]:
        words = f"answers most to {about['best_from_m']:.2f}–{about['best_to_m']:.2f} m"
    _heading(
        fig,
        f"{layer}, unit {unit}: {words}, assigned {near:.2f}–{far:.2f} m · selectivity "
        f"{about['selectivity']:.2f} · {provenance(explorer.dissection)}",
    )
    return fig


def _pictures(axes: Sequence[Axes], view: View, layer: str, unit: int, answer: Answer) -> None:
    image, depth, over, mask = axes
    show_image(image, view.image)
    for colour, width in (("k", 3), ("w", 1.4)):
        ring = {"ms": 9, "mfc": "none", "mec": colour, "mew": width}
        image.plot(answer.column, answer.row, "o", **ring)
    shown = show_depth(depth, view.depth, vmax=_scale(view))
    # A bar of its own, so that the picture keeps its place.
    depth.figure.colorbar(shown, cax=depth.inset_axes([1.03, 0, 0.045, 1]), label="depth [m]")
    activation, where = view.activations[layer][unit], view.where(layer, unit)
    show_over(over, view.image, activation)
    show_mask(mask, where)
    _, near, far = view.explorer.assigned(layer, unit)
    fires = "|response|" if activation.any() else "silent on this image"
    inside = f"predicted in {near:.2f}–{far:.2f} m: {where.float().mean():.0%}"
    titles(axes, (view.name, "predicted depth", f"unit {unit}: {fires}", inside))


def _curve(ax: Axes, view: View, layer: str, unit: int, answer: Answer) -> None:
    explorer = view.explorer
    bins, seen = explorer.bins(layer), explorer.dissection
    number, _, _ = explorer.assigned(layer, unit)
    places = np.arange(len(bins))
    mean = np.where(seen.counts[layer] > 0, seen.response[layer][unit], np.nan)
    spread = explorer.spread(layer)[unit].nan_to_num(0).numpy()
    ax.fill_between(places, mean - spread, mean + spread, step="mid", color="0.85", lw=0)
    ax.axvspan(number - 0.5, number + 0.5, color=ASSIGNED, alpha=0.35, lw=0)
    ax.plot(places, mean, "k", drawstyle="steps-mid")
    here = {"color": _HERE, "marker": "o", "ms": 3.5, "lw": 1}
    ax.plot(places, view.response(layer)[unit].numpy(), **here)
    if answer.bin is not None:
        ax.axvline(answer.bin, **_PIXEL)
    depth_axis(ax, bins)
    ax.set_xlim(-0.5, len(bins) - 0.5)
    ax.set_ylabel("mean response")
    keys = [
        key("all images", color="k"),
        key("± their spread", color="0.85", lw=6),
        key("this image", **here),
        key("assigned bin", color=(*ASSIGNED, 0.35), lw=6),
        key("pixel", **_PIXEL),
    ]
    look = {"columnspacing": 0.8, "handlelength": 1.4, "borderpad": 0.2}
    ax.legend(handles=keys, ncols=5, loc="lower left", bbox_to_anchor=(-0.01, 0.98), **look)


def _shares(ax: Axes, answer: Answer, unit: int) -> None:
    """Who answers at the pixel: the eight units with the largest share."""
    ranked = answer.units.head(8).iloc[::-1]
    shares, rows = 100 * ranked["share"].fillna(0), np.arange(len(ranked))
    ax.barh(rows, shares, color=[_HERE if best else "0.75" for best in ranked["strongest"]])
    ax.set_yticks(rows, [f"unit {k}" for k in ranked.index])
    for label, k in zip(ax.get_yticklabels(), ranked.index, strict=True):
        label.set_fontweight("bold" if k == unit else "normal")
    ax.set(xlim=(0, max(1.05 * shares.max(), 1)), xlabel="share in the response [%]")
    if answer.bin is None:
        words = f"pixel: {answer.depth:.2f} m, in no bin"
    else:
        words = f"pixel: {answer.depth:.2f} m. Who answers to\n"
        words += f"{answer.span[0]:.2f}–{answer.span[1]:.2f} m (blue: strongest here)"
    ax.set_title(words, loc="left", x=-0.26)


@styled
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
        answers.set(xticklabels=[], xlabel=None)
        needed.set_xlabel("true depth [m]")
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
    before, after = edited.mean("error_before"), edited.mean("error_after")
    _heading(
        fig,
        f"{chosen}: {EDITS[edited.answer].format(edited.factor)} · mean |change| "
        f"{edited.mean('change'):.3f} m, mean |error| {before:.3f} → {after:.3f} m",
    )
    return fig


def _by_hand(height: float) -> tuple[Figure, Callable[..., Axes]]:
    """A figure whose axes stay where they are put, so that controls redraw it fast and in place;
    and what puts them there, in inches from the left and from above."""
    fig = plt.figure(figsize=(WIDTH, height), layout="none")

    def place(x: float, y: float, w: float, h: float) -> Axes:
        return fig.add_axes((x / WIDTH, 1 - (y + h) / height, w / WIDTH, h / height))

    return fig, place


def _heading(fig: Figure, words: str) -> None:
    fig.suptitle(words, y=1 - 0.06 / fig.get_figheight(), va="top")


def _board(aspect: float) -> tuple[Figure, list[Axes], Axes, Axes]:
    """Four pictures in a row (low ones in two), below them two panels."""
    columns, wide = (4, 1.86) if aspect > 0.5 else (2, 3.8)
    high, panel = wide * aspect, 1.6
    gaps = [0.1, 0.7, 0.1]  # room for the colour bar of the second
    lines = 4 // columns
    total = 0.35 + lines * (high + 0.25) + 0.45 + panel + 0.5
    fig, place = _by_hand(total)
    pictures = []
    for i in range(4):
        row, column = divmod(i, columns)
        x = 0.07 + sum(wide + gap for gap in gaps[:column])
        pictures.append(place(x, 0.55 + row * (high + 0.25), wide, high))
    y = total - 0.5 - panel
    return fig, pictures, place(0.6, y, 4.75, panel), place(6.4, y, 2.0, panel)


def _blank_edit(view: View) -> Figure:
    """What `plot_edit` fills: depth, its bar, difference, its bar, and two panels of bins."""
    h, w = view.image.shape[-2:]
    wide = 1.85
    high = min(wide * h / w, 2.4)
    total = max(0.7 + high, 2.75)
    fig, place = _by_hand(total)
    y = 0.6 + (total - 0.7 - high) / 2
    depth, bar = place(0.08, y, wide, high), place(0.16 + wide, y, 0.09, high)
    difference, bar2 = place(0.7 + wide, y, wide, high), place(0.78 + 2 * wide, y, 0.09, high)
    shown = show_depth(depth, view.depth, vmax=_scale(view))
    changed = show_difference(difference, torch.zeros_like(view.depth[0]))
    for axes, mappable, label in ((bar, shown, "depth [m]"), (bar2, changed, "change [m]")):
        fig.colorbar(mappable, cax=axes)
        axes.set_title(label, loc="left")
    titles((depth, difference), ("edited depth", "difference"))
    half = (total - 1.2) / 2
    answers, needed = place(5.8, 0.42, 2.6, half), place(5.8, 0.7 + half, 2.6, half)
    answers.stairs([0], [0, 1], fill=True, color="0.6")
    answers.set(ylim=(0, 1.08), yticks=(0, 1), yticklabels=("0", "max"), ylabel="response")
    needed.stairs([0], [0, 1], fill=True, color=PALETTE[1], alpha=0.6, label="|change|")
    needed.plot([], [], color="k", label="|error| before")
    needed.plot([], [], color=_HERE, ls="--", label="after")
    look = {"columnspacing": 0.8, "handlelength": 1.4, "borderpad": 0.2}
    needed.legend(ncols=3, loc="lower left", bbox_to_anchor=(-0.02, 0.94), **look)
    needed.set_ylabel("effect [m]")
    return fig


def _scale(view: View) -> float:
    return max(farthest(view.truth, view.depth.quantile(0.999)), 1e-3)


def _some(units: Sequence[int]) -> str:
    names = ", ".join(map(str, units[:8])) + (f" and {len(units) - 8} more" * (len(units) > 8))
    return f"unit{'s' * (len(units) > 1)} {names}"


@styled
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
        depth: (1, H, W) metres; with `metric=False` of an unknown unit, and curves are drawn over
            tenths of the picture, near to far.
    """
    metre = "m" if metric else "model’s unit"
    aspect, n = image.shape[1] / image.shape[2], len(units)
    top, row = np.clip(2.8 * aspect, 1.3, 2.8), np.clip(2.8 * aspect, 1.3, 2.0)
    shape = {"squeeze": False, "gridspec_kw": {"height_ratios": [top, *[row] * n]}}
    fig, axes = plt.subplots(1 + n, 3, figsize=(WIDTH, top + n * row + 0.9), **shape)
    fig.suptitle(title)
    show_image(axes[0, 0], image)
    low, high = (_quantile(depth, q) for q in (0.01, 0.99))
    shown = show_depth(axes[0, 1], depth, vmin=0 if metric else low, vmax=high)
    fig.colorbar(shown, ax=axes[0, 1], label=f"depth [{metre}]", extend="max", pad=0.02)
    titles(axes[0, :2], ("RGB", "predicted depth"))
    if not n:
        axes[0, 2].axis("off")
        axes[0, 2].text(0.5, 0.5, "no unit fires on it", ha="center", va="center")
        return fig
    span = _quantile(changes.abs(), 0.99) or 1.0
    for ax, change in zip((*axes[1:, 1], axes[0, 2]), changes, strict=True):
        drawn = show_difference(ax, change, top=span)
        ax.set_aspect(aspect * change.shape[1] / change.shape[0])
    fig.colorbar(drawn, ax=axes[0, 2], label=f"change [{metre}]", extend="both", pad=0.02)
    highest = by_depth["change"].max() or 1.0
    for i, (_, about) in enumerate(units.iterrows()):
        _unit_words(axes[1 + i], about, metre)
        show_map(axes[1 + i, 0], responses[i])
        axes[1 + i, 0].set_aspect(aspect * responses[i].shape[1] / responses[i].shape[0])
        part = by_depth[(by_depth.layer == about["layer"]) & (by_depth.unit == about["unit"])]
        _changes(axes[1 + i, 2], part, tuning[i] if metric else None, highest)
        axes[1 + i, 2].set_ylabel(f"mean |change|\n[{metre}]")
    axes[0, 2].set_title("all units below wrong")
    titles(axes[1, :2], ("where it fires", "if it alone were wrong"))
    axes[1, 2].legend(loc="upper right")
    tenths = "tenths of the picture, near to far"
    axes[-1, 2].set_xlabel("depth [m]" if metric else tenths)
    return fig


def _quantile(values: Tensor, q: float) -> float:
    values = values.flatten()
    return values[:: max(1, len(values) // 100_000)].quantile(q).item()


def _unit_words(axes: Sequence[Axes], about: pd.Series, metre: str) -> None:
    axes[0].set_ylabel(
        f"{about['layer']}, unit {about['unit']}\nDS {about['selectivity']:.2f}\n"
        f"{about['best_from_m']:.2f}–{about['best_to_m']:.2f} m"
    )
    axes[0].set_xlabel(f"fires on {about['fires']:.0%}")
    words = f"mean |change| {about['change']:.2g} {metre}"
    if about["fails"] >= 0:  # NaN where a ratio means nothing
        words += f"\nratio ≥ 1.25 on {about['fails']:.0%}"
    axes[1].set_xlabel(words)


def _changes(ax: Axes, part: pd.DataFrame, tuning, highest: float) -> None:
    """At which depths a unit answers (with its tuning curve) and changes the depth."""
    if tuning is None:
        middle = np.arange(len(part)) + 0.5
        ax.set_xlim(0, len(part))
    else:
        mean, edges = (x.numpy() for x in tuning)
        filled = np.nan_to_num(mean / np.nanmax(mean)) * highest
        ax.stairs(filled, edges, fill=True, color="0.85", label="answers to (data)")
        middle = (part["from"] + part["to"]) / 2
        ax.set_xlim(0, edges[-1])
    look = {"color": _HERE, "ms": 2.5, "lw": 1, "label": "changes (here)"}
    ax.plot(middle, part["change"], "o-", **look)
    ax.set_ylim(0, 1.08 * highest)
