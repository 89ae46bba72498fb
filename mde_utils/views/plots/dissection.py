"""What the units of a layer answer to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mde_utils.activations import tap
from mde_utils.dissection import Dissection
from mde_utils.passes import predict
from mde_utils.selectivity import assigned_bins

from .pictures import show_image, show_map, show_mask
from .style import ASSIGNED, RESPONSE, WIDTH, colours, depth_axis, grid, provenance, styled

COLUMNS = 6


def _bars(ax: Axes, response: Tensor, counts: Tensor, target: int) -> None:
    """One unit's mean response (N_b,) by depth bin; its assigned bin in colour."""
    index = np.arange(len(response))
    look = [ASSIGNED if i == target else "0.45" for i in index]
    ax.bar(index, np.where(counts > 0, response, np.nan), width=1.0, color=look)
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.set_yticks([])
    ax.margins(x=0)
    ax.spines.left.set_visible(False)


@styled
def plot_units(dissection: Dissection, layer: str, *, units: Sequence[int] | None = None) -> Figure:
    """Average response of each unit to each depth bin (figure 3 of the paper).

    The bin that the unit is assigned is drawn in colour; bins that hold no pixel are left out.

    Args:
        units: which; None = all, in order.
    """
    floors = dissection.floors(layer)
    response, counts = dissection.response[layer], dissection.counts[layer]
    selectivity, bins = dissection.selectivity[layer], dissection.bins[layer]
    target = assigned_bins(*response.shape)
    units = range(len(response)) if units is None else units
    columns = min(len(units), 4 if len(units) <= 8 else COLUMNS)
    fig, axes = grid(-(-len(units) // columns), columns, WIDTH, 0.62, sharex=True)
    for ax, unit in zip(axes.ravel(), units, strict=False):
        _bars(ax, response[unit], counts, target[unit])
        ax.set_title(f"unit {unit} · DS {selectivity[unit]:.2f}", pad=2)
    for ax in axes.ravel()[len(units) :]:
        ax.axis("off")
    for ax in axes[-1]:
        depth_axis(ax, bins, few=True)
    fig.suptitle(
        f"{layer}: mean response per depth bin; the assigned bin in orange.\n"
        f"Mean DS {dissection.mean(layer):.3f}; without tuning {floors['flat']:.3f} (flat) and "
        f"{floors['uniform']:.3f} (random units) · {provenance(dissection)}"
    )
    return fig


@styled
def plot_selectivity(
    dissections: Mapping[str, Dissection], layers: Sequence[str] | None = None
) -> Figure:
    """Depth selectivity of every unit, by layer, networks side by side, above what says nothing.

    A dot is a unit, a bar the layer's mean. The dashed line is the mean of units with random
    (uniform) responses at this layer's bin occupancy, the dotted one a flat unit.
    """
    first = next(iter(dissections.values()))
    if len({d.definition for d in dissections.values()}) > 1:
        raise ValueError("The dissections are under different definitions; use .under(...) first.")
    layers = list(layers or first.layers)
    frame = pd.concat(
        d.to_frame().assign(network=name) for name, d in dissections.items()
    ).reset_index(drop=True)
    frame = frame[frame.layer.isin(layers)]
    fig, ax = plt.subplots(figsize=(WIDTH, 3.8))
    shared = dict(x="layer", y="selectivity", hue="network", order=layers, dodge=True, ax=ax)
    shared["palette"] = colours(dissections)
    sns.stripplot(frame, size=3, alpha=0.6, jitter=0.25, legend=False, **shared)
    shared["dodge"] = 0.8 - 0.8 / len(dissections) if len(dissections) > 1 else False
    mean = {"marker": "_", "markersize": min(16, 240 / len(layers) / len(dissections))}
    sns.pointplot(frame, errorbar=None, linestyle="none", markeredgewidth=3, **mean, **shared)
    for i, layer in enumerate(layers):
        floors = [d.floors(layer) for d in dissections.values()]
        for kind, style in (("uniform", "--"), ("flat", ":")):
            values = sorted({round(f[kind], 3) for f in floors})
            label = f"{kind} unit (no tuning)" if i == 0 else None
            ax.hlines(values, i - 0.45, i + 0.45, ls=style, color="0.3", lw=1.2, label=label)
    ax.set(xlabel=None, ylabel=f"depth selectivity ({first.definition})", ylim=(-0.03, 1.05))
    keys = ax.get_legend_handles_labels()
    ax.get_legend().remove()
    fig.legend(*keys, ncols=3, loc="outside lower center")
    ax.set_title(_of(dissections.values()))
    ax.tick_params(axis="x", rotation=30 if len(layers) > 8 else 0)
    return fig


@styled
def plot_unit_maps(
    models: Mapping[str, nn.Module],
    dissections: Mapping[str, Dissection],
    *,
    items: Sequence[Mapping],
    layer: str,
    units: Sequence[int],
) -> Figure:
    """Where a unit fires beside where its depth is (figures 1 and 5 of the paper).

    A row a unit: of the items the image with most pixels in the unit's assigned bin; the pixels
    whose *predicted* depth lies in that bin, and the unit's feature map (each on its own scale,
    brightest at its 99th percentile), in each network. A unit with less than a hundredth of any
    image in its bin is left out.
    """
    names = list(models)
    first = dissections[names[0]]
    bins, targets = first.bins[layer], assigned_bins(*first.response[layer].shape)
    maps: dict = {name: [] for name in names}
    inside: dict = {name: [] for name in names}
    for name, model in models.items():
        for item in items:
            with tap(model, [layer]) as acts:
                inside[name].append(bins.discretize(predict(model, item))[0])
            maps[name].append(acts[layer][0].cpu())
    share = {}  # of each image's pixels in the unit's bin, in all networks
    for unit in units:
        masks = [[m == targets[unit] for m in same] for same in zip(*inside.values(), strict=True)]
        share[unit] = [sum(m.double().mean().item() for m in same) for same in masks]
    units = [unit for unit in units if max(share[unit]) >= 0.01]
    if not units:
        raise ValueError(f"No network predicts a depth in the bins of these units of {layer!r}.")
    fig, axes = _unit_grid(items, len(units), 1 + 2 * len(names), 0.6)
    for row, unit in zip(axes, units, strict=True):
        target, best = targets[unit].item(), int(np.argmax(share[unit]))
        _head(row[0], items[best], unit, bins.edges[target : target + 2])
        for i, name in enumerate(names):
            show_mask(row[1 + 2 * i], inside[name][best] == target)
            show_map(row[2 + 2 * i], maps[name][best][unit])
    axes[0][0].set_title("RGB")
    for i, name in enumerate(names):
        axes[0][1 + 2 * i].set_title(f"{name}: predicted\ndepth in its bin")
        axes[0][2 + 2 * i].set_title(f"{name}:\n|response|")
    return fig


@styled
def plot_unit_pairs(
    models: Mapping[str, nn.Module],
    dissections: Mapping[str, Dissection],
    *,
    items: Sequence[Mapping],
    layer: str,
    units: Sequence[int],
) -> Figure:
    """The same units of several networks beside each other (figure 4 of the paper).

    A row a unit: of the items the image with most pixels at the depth of the unit's assigned bin,
    these pixels, and in each network the unit's mean response to each depth bin and its feature
    map (each on its own scale, brightest at its 99th percentile).
    """
    first = next(iter(dissections.values()))
    bins, targets = first.bins[layer], assigned_bins(*first.response[layer].shape)
    inside = [bins.discretize(item["depth"])[0] for item in items]
    fig, axes = _unit_grid(items, len(units), 2 + 2 * len(models), 1.1)
    for row, unit in zip(axes, units, strict=True):
        target = targets[unit].item()
        best = int(np.argmax([(index == target).sum() for index in inside]))
        _head(row[0], items[best], unit, bins.edges[target : target + 2])
        show_mask(row[1], inside[best] == target)
        for i, (name, model) in enumerate(models.items()):
            bars, picture = row[2 + 2 * i : 4 + 2 * i]
            with tap(model, [layer]) as acts:
                predict(model, items[best])
            show_map(picture, acts[layer][0, unit])
            seen = dissections[name]
            response = seen.response[layer][unit]
            _bars(bars, response, seen.counts[layer], target)
            bars.set_xticks([])
            answers = f"DS {seen.selectivity[layer][unit]:.2f}" if response.any() else "silent"
            bars.set_title(f"{name} · {answers}" if len(models) < 3 else answers, pad=2)
    for bars in axes[-1][2::2]:
        depth_axis(bars, bins, few=True)
    axes[0][0].set_title("RGB")
    axes[0][1].set_title("true depth\nin its bin")
    for i, name in enumerate(models):
        axes[0][3 + 2 * i].set_title(f"{name}:\n|response|")
    fig.suptitle(
        f"{layer}: mean response per depth bin (the assigned bin in orange) and feature map\n"
        f"{provenance(first)}"
    )
    return fig


def _unit_grid(items: Sequence[Mapping], rows: int, columns: int, words: float):
    h, w = items[0]["image"].shape[1:]
    return grid(rows, columns, WIDTH, h / w + 0.09 * (h < w / 2), words=words)  # low: words below


def _head(ax: Axes, item: Mapping, unit: int, span: Tensor) -> None:
    """The image that a row is of, and the unit with its assigned bin, metres."""
    show_image(ax, item["image"])
    h, w = item["image"].shape[1:]
    ends = f"{span[0]:.2f}–{span[1]:.2f} m"
    if h < w / 2:  # too low for words beside it
        ax.set_xlabel(f"unit {unit}: {ends}")
    else:
        ax.set_ylabel(f"unit {unit}\n{ends}")


@styled
def plot_tuning(dissections: Mapping[str, Dissection], layer: str) -> Figure:
    """Which depth each unit of a layer answers to: a row of pixels a unit, a column a depth bin.

    Colour: |mean response| as a part of the unit's largest. Units that follow their assignment lie
    on the diagonal (dashed); grey: units without any response, and bins without pixels.
    """
    width = min(WIDTH, 3.1 * len(dissections) + 0.6)
    fig, axes = grid(1, len(dissections), width, 1.0, sharey=True)
    look = plt.get_cmap(RESPONSE).with_extremes(bad="0.75")
    for ax, (name, seen) in zip(axes[0], dissections.items(), strict=True):
        response, counts = seen.response[layer].abs(), seen.counts[layer]
        largest = response.amax(1, keepdim=True)
        values = torch.where((counts > 0) & (largest > 0), response / largest, torch.nan)
        shown = ax.imshow(
            values.numpy(), cmap=look, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        target = assigned_bins(*response.shape)
        ax.plot(target, range(len(target)), color="white", lw=1, ls=(0, (2, 4)))
        ax.set_title(f"{name}\nmean DS {seen.mean(layer):.3f}")
        depth_axis(ax, seen.bins[layer], few=True)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.colorbar(shown, ax=axes[0].tolist(), label="|response| ÷ the unit's largest", pad=0.01)
    fig.suptitle(_of(dissections.values()))
    return fig


def _of(dissections: Iterable[Dissection]) -> str:
    return " · ".join(dict.fromkeys(map(provenance, dissections)))
