"""What the units of a layer answer to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
from mde_utils.selectivity import assigned_bins
from mde_utils.views.plots.pictures import predict, show_image, show_map
from mde_utils.views.plots.style import PALETTE, RESPONSE, bare, depth_axis, grid, provenance


def plot_units(
    dissection: Dissection, layer: str, *, units: Sequence[int] | None = None, columns: int = 8
) -> Figure:
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
    rows = -(-len(units) // columns)
    fig, axes = grid(rows, min(columns, len(units)), 11, 0.62, sharex=True)
    for ax, unit in zip(axes.ravel(), units, strict=False):
        _bars(ax, response[unit], counts, target[unit])
        ax.set_title(f"unit {unit} · DS {selectivity[unit]:.2f}", fontsize=7, pad=2)
    for ax in axes.ravel()[len(units) :]:
        ax.axis("off")
    for ax in axes[-1]:
        depth_axis(ax, bins, few=True)
    fig.suptitle(
        f"{layer}: mean response per depth bin; the assigned bin in orange.\n"
        f"Mean DS {dissection.mean(layer):.3f}; without tuning {floors['flat']:.3f} (flat) and "
        f"{floors['uniform']:.3f} (random units) · {provenance(dissection)}",
        fontsize=9,
    )
    return fig


def plot_selectivity(
    dissections: Mapping[str, Dissection], layers: Sequence[str] | None = None
) -> Figure:
    """Depth selectivity of every unit, by layer, networks side by side, above what says nothing.

    A dot is a unit, a bar the layer's mean. The dashed line is the mean of units with random
    (uniform) responses at this layer's bin occupancy, the dotted one a flat unit.

    Raises:
        ValueError: dissections under different definitions, which do not compare.
    """
    first = next(iter(dissections.values()))
    if len({d.definition for d in dissections.values()}) > 1:
        raise ValueError("The dissections are under different definitions; use .under(...) first.")
    layers = list(layers or first.layers)
    frame = pd.concat(
        d.to_frame().assign(network=name) for name, d in dissections.items()
    ).reset_index(drop=True)
    frame = frame[frame.layer.isin(layers)]
    width = max(6, 0.75 * len(layers) + 2, 0.4 * len(layers) * len(dissections) + 1.5)
    fig, ax = plt.subplots(figsize=(width, 4), layout="constrained")
    shared = dict(x="layer", y="selectivity", hue="network", order=layers, dodge=True, ax=ax)
    palette = PALETTE[: len(dissections)]
    sns.stripplot(frame, size=2.5, alpha=0.45, jitter=0.25, palette=palette, legend=False, **shared)
    sns.pointplot(
        frame,
        errorbar=None,
        linestyle="none",
        marker="_",
        markersize=16,
        markeredgewidth=3,
        palette=palette,
        **{**shared, "dodge": 0.8 - 0.8 / len(dissections) if len(dissections) > 1 else False},
    )
    for i, layer in enumerate(layers):
        floors = [d.floors(layer) for d in dissections.values()]
        for kind, style in (("uniform", "--"), ("flat", ":")):
            ax.hlines(
                sorted({round(f[kind], 3) for f in floors}),
                i - 0.45,
                i + 0.45,
                ls=style,
                color="0.3",
                lw=1.2,
                label=f"{kind} unit (no tuning)" if i == 0 else None,
            )
    ax.set(xlabel=None, ylabel=f"depth selectivity ({first.definition})", ylim=(-0.03, 1.05))
    handles, labels = ax.get_legend_handles_labels()
    ax.get_legend().remove()
    fig.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
    seen = dict.fromkeys(provenance(d) for d in dissections.values())
    ax.set_title(" · ".join(seen), fontsize=9)
    ax.tick_params(axis="x", rotation=30 if len(layers) > 8 else 0)
    sns.despine(ax=ax)
    return fig


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
    brightest at its 99th percentile), in each network.
    """
    shape = items[0]["image"].shape[1:]
    names = list(models)
    aspect = shape[0] / shape[1]
    wide = aspect < 0.5  # too low for words beside it
    fig, axes = grid(len(units), 1 + 2 * len(names), 11, aspect + 0.09 * wide)
    bins = next(iter(dissections.values())).bins[layer]
    seen: dict = {name: [] for name in names}
    for name, model in models.items():
        for item in items:
            with tap(model, [layer]) as acts:
                seen[name].append((bins.discretize(predict(model, item))[0], acts[layer][0].cpu()))
    for row, unit in zip(axes, units, strict=True):
        target = assigned_bins(len(seen[names[0]][0][1]), len(bins))[unit]
        near, far = bins.edges[target].item(), bins.edges[target + 1].item()
        inside = [sum((seen[n][i][0] == target).sum() for n in names) for i in range(len(items))]
        best = int(np.argmax(inside))
        show_image(row[0], items[best]["image"])
        for i, name in enumerate(names):
            where, acts = seen[name][best]
            row[1 + 2 * i].imshow((where == target).numpy(), cmap="gray", vmin=0, vmax=1)
            bare(row[1 + 2 * i])
            show_map(row[2 + 2 * i], acts[unit])
        if wide:
            row[0].set_xlabel(f"unit {unit}: {near:.2f}–{far:.2f} m", fontsize=8)
        else:
            row[0].set_ylabel(f"unit {unit}\n{near:.2f}–{far:.2f} m", fontsize=8)
    axes[0][0].set_title("RGB", fontsize=9)
    for i, name in enumerate(names):
        axes[0][1 + 2 * i].set_title(f"{name}: predicted\ndepth in its bin", fontsize=8)
        axes[0][2 + 2 * i].set_title(f"{name}:\n|response| of the unit", fontsize=8)
    return fig


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
    shape = items[0]["image"].shape[1:]
    names = list(models)
    fig, axes = grid(len(units), 2 + 2 * len(names), 11, shape[0] / shape[1])
    first = dissections[names[0]]
    bins, targets = first.bins[layer], assigned_bins(*first.response[layer].shape)
    inside = [bins.discretize(item["depth"])[0] for item in items]
    parts = {n: (d.response[layer], d.counts[layer]) for n, d in dissections.items()}
    for row, unit in zip(axes, units, strict=True):
        target = targets[unit].item()
        best = int(np.argmax([(index == target).sum() for index in inside]))
        show_image(row[0], items[best]["image"])
        near, far = bins.edges[target].item(), bins.edges[target + 1].item()
        row[0].set_ylabel(f"unit {unit}\n{near:.2f}–{far:.2f} m", fontsize=8)
        row[1].imshow((inside[best] == target).numpy(), cmap="gray", vmin=0, vmax=1)
        bare(row[1])
        for i, (name, model) in enumerate(models.items()):
            bars, picture = row[2 + 2 * i : 4 + 2 * i]
            with tap(model, [layer]) as acts:
                predict(model, items[best])
            _bars(bars, parts[name][0][unit], parts[name][1], target)
            show_map(picture, acts[layer][0, unit].cpu())
            selectivity = dissections[name].selectivity[layer][unit]
            answers = bool(parts[name][0][unit].any())
            words = f"DS {selectivity:.2f}" if answers else "no response at all"
            bars.set_title(f"{name} · {words}", fontsize=8, pad=2)
            bars.set_xticks([])
    for bars in axes[-1][2::2]:
        depth_axis(bars, bins, few=True)
    axes[0][0].set_title("RGB", fontsize=8)
    axes[0][1].set_title("true depth in its bin", fontsize=8)
    for i, name in enumerate(names):
        axes[0][3 + 2 * i].set_title(f"{name}: |response|", fontsize=8)
    fig.suptitle(
        f"{layer}: mean response per depth bin (the assigned bin in orange) and feature map\n"
        f"{provenance(first)}",
        fontsize=9,
    )
    return fig


def plot_tuning(dissections: Mapping[str, Dissection], layer: str) -> Figure:
    """Which depth each unit of a layer answers to: a row of pixels a unit, a column a depth bin.

    Colour: |mean response| as a part of the unit's largest. Units that follow their assignment lie
    on the diagonal (dashed); grey: units without any response, and bins without pixels.
    """
    fig, axes = grid(1, len(dissections), 3.1 * len(dissections) + 0.6, 1.0, sharey=True)
    colours = plt.get_cmap(RESPONSE).with_extremes(bad="0.75")
    for ax, (name, seen) in zip(axes[0], dissections.items(), strict=True):
        response, counts = seen.response[layer].abs(), seen.counts[layer]
        largest = response.amax(1, keepdim=True)
        values = torch.where((counts > 0) & (largest > 0), response / largest, torch.nan)
        shown = ax.imshow(
            values.numpy(), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        target = assigned_bins(*response.shape)
        ax.plot(target, range(len(target)), color="white", lw=1, ls=(0, (2, 4)))
        ax.set_title(f"{name} · mean DS {seen.mean(layer):.3f}", fontsize=9)
        depth_axis(ax, seen.bins[layer], few=True)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.colorbar(shown, ax=axes[0].tolist(), label="|response| ÷ the unit's largest", pad=0.01)
    seen = dict.fromkeys(provenance(d) for d in dissections.values())
    fig.suptitle(" · ".join(seen), fontsize=9)
    return fig


def _bars(ax: Axes, response: Tensor, counts: Tensor, target: int) -> None:
    """One unit's mean response (N_b,) by depth bin; its assigned bin in colour."""
    index = np.arange(len(response))
    colours = [PALETTE[3] if i == target else "0.45" for i in index]
    ax.bar(index, np.where(counts > 0, response, np.nan), width=1.0, color=colours)
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.set_yticks([])
    ax.margins(x=0)
    sns.despine(ax=ax, left=True)
