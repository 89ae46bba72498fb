"""Wrong pixels, and the units behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.activations import tap
from mde_utils.attacks import ErrorTrace, Repair, error_mask
from mde_utils.evaluation import MIN_DEPTH
from mde_utils.passes import predict

from .pictures import show_depth, show_image, show_map, show_mask
from .style import ERROR, GREY, PALETTE, WIDTH, colours, depth_axis, farthest, grid, key, styled


@styled
def plot_attack(
    model: nn.Module,
    items: Sequence[Mapping],
    trace: ErrorTrace,
    *,
    attacked: Tensor,
    index: int | None = None,
    layer: str | None = None,
    unit: int | None = None,
) -> Figure:
    """One attacked image, its errors and a unit behind them (figure 8 of the paper).

    Above the clean image, below the attacked one: image; ground truth and (below, amplified about
    grey) perturbation; predicted depth; errors; the pixels whose *predicted* depth lies in the
    unit's bin; the unit's feature map, on one scale for both.

    Args:
        items, attacked: the images that `trace` is of.
        index: which of them; None = the one with most errors predicted in the unit's bin.
        layer, unit: which unit; None = the most blamed (of the layer).
    """
    if not len(trace.clean) == len(items) == len(attacked):
        raise ValueError(
            f"The trace is of {len(trace.clean)} images, given are {len(items)}, attacked "
            f"{len(attacked)}: give the images that were traced, and their attack."
        )
    chosen = _blamed(trace, layer, unit)
    layer, unit = chosen["layer"], int(chosen["unit"])
    if index is None:
        index = _worst(trace, layer, chosen["bin"])
    item, target = items[index], trace.target[index]
    images = {"clean": item["image"], "attacked": attacked[index]}
    maps = {}
    for name, image in images.items():
        with tap(model, [layer]) as acts:
            predict(model, {**item, "image": image})
        maps[name] = acts[layer][0, unit].abs().float().cpu()
    # A unit that is silent in both stays dark, on a scale that can be read.
    brightest = torch.stack([*maps.values()]).quantile(0.99).item() or 1.0
    preds = {"clean": trace.clean[index], "attacked": trace.attacked[index]}
    top = farthest(target, *preds.values())

    shape = item["image"].shape[1:]
    fig, axes = grid(2, 6, WIDTH, shape[0] / shape[1], words=1.1)
    for row, (name, pred) in zip(axes, preds.items(), strict=True):
        show_image(row[0], images[name])
        row[0].set_ylabel(name)
        depth = show_depth(row[2], pred, vmax=top)
        inside = trace.bins[layer].discretize(pred.clamp(min=MIN_DEPTH)) == chosen["bin"]
        _wrong(row[3:5], pred, target, inside, trace.threshold)
        answer = show_map(row[5], maps[name], top=brightest)
    show_depth(axes[0][1], target, vmax=top)
    change = (images["attacked"] - images["clean"]).cpu()
    gain = 0.5 / max(change.abs().max().item(), 1e-12)
    show_image(axes[1][1], 0.5 + gain * change)
    axes[1][1].set_xlabel(f"perturbation × {gain:.0f}\n(at most {0.5 / gain:.3f})")
    axes[0][1].set_xlabel("ground truth")
    heads = {
        0: "RGB",
        2: "predicted depth",
        3: f"error:\nratio ≥ {trace.threshold:g}",
        4: f"predicted in\n{chosen['from_m']:.2f}–{chosen['to_m']:.2f} m",
        5: f"{layer}, unit {unit}:\n|response|",
    }
    for column, head in heads.items():
        axes[0][column].set_title(head)
    for shown, label in ((depth, "depth [m]"), (answer, "|response|")):
        fig.colorbar(shown, ax=axes.ravel().tolist(), label=label, pad=0.01, aspect=30)
    return fig


def _blamed(trace: ErrorTrace, layer: str | None, unit: int | None) -> pd.Series:
    if unit is not None and layer is None:
        raise ValueError(f"Unit {unit} of which layer? Give layer=, one of {trace.layers}.")
    units = trace.units
    if layer is not None:
        units = units[units.layer == trace._known(layer)]
    if unit is not None:
        units = units[units.unit == unit]
    if units.empty:
        raise ValueError(f"Layer {layer!r} has no unit {unit}.")
    return units.iloc[0]


def _worst(trace: ErrorTrace, layer: str, bin: int) -> int:
    """The image with most errors predicted in a bin."""
    errors = [
        error_mask(pred, target, threshold=trace.threshold)
        & (trace.bins[layer].locate(pred.clamp(min=MIN_DEPTH)) == bin)
        for pred, target in zip(trace.attacked, trace.target, strict=True)
    ]
    return int(np.argmax([where.sum() for where in errors]))


def _wrong(
    axes: list[Axes], pred: Tensor, target: Tensor, inside: Tensor, threshold: float
) -> None:
    """Which pixels are wrong, and which are predicted in the unit's bin."""
    wrong, measured = error_mask(pred, target, threshold=threshold), target > 0
    show_mask(axes[0], wrong, measured)
    axes[0].set_xlabel(f"{wrong.sum() / measured.sum():.0%} of the pixels")
    show_mask(axes[1], inside)
    bad = (wrong & inside).sum() / inside.sum() if inside.any() else 0.0
    axes[1].set_xlabel(f"{inside.float().mean():.0%} of the pixels,\n{bad:.0%} of them wrong")


@styled
def plot_transport(trace: ErrorTrace, layer: str | None = None) -> Figure:
    """Where depth goes: pixels by bin of the ground truth and of the prediction.

    Clean beside attacked. Counts on a logarithmic scale; pairs without a pixel stay white. Right
    predictions lie near the diagonal. Depth beyond the last edge is drawn, where there is any, in a
    last row or column.

    Args:
        layer: whose bins; None = those of the layer with most.
    """
    layer = trace._known(layer or max(trace.layers, key=lambda name: len(trace.bins[name])))
    bins = trace.bins[layer]
    tables = {name: trace.transport[name][layer].numpy() for name in ("clean", "attacked")}
    n = len(bins)
    beyond = any(t[n].any() or t[:, n].any() for t in tables.values())
    end = n + beyond
    most = max(t.max() for t in tables.values())
    fig, axes = grid(1, 2, WIDTH, 0.95, sharex=True, sharey=True)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        shown = ax.imshow(
            np.ma.masked_equal(table[:end, :end], 0),
            cmap=ERROR,
            norm=LogNorm(1, max(most, 2)),
            origin="lower",
            interpolation="nearest",
        )
        ax.axline((0, 0), slope=1, color="0.4", lw=0.8, ls=":")
        depth_axis(ax, bins)
        ticks, labels = list(ax.get_xticks()), [t.get_text() for t in ax.get_xticklabels()]
        if beyond:
            kept = [(at, words) for at, words in zip(ticks, labels, strict=True) if at < n - 1.5]
            ticks, labels = zip(*kept, (n, f">{bins.edges[-1]:g}"), strict=True)
            ax.set_xticks(ticks, labels)
        ax.set_yticks(ticks, labels)
        ax.set(xlim=(-0.5, end - 0.5), ylim=(-0.5, end - 0.5), xlabel="predicted depth [m]")
        ax.set_title(f"{name}: δ {trace.d1[name]:.3f} (ratio < {trace.threshold:g})")
    axes[0][0].set_ylabel("true depth [m]")
    fig.colorbar(shown, ax=axes.ravel().tolist(), label="pixels", pad=0.01)
    fig.suptitle(f"{len(trace.clean)} images · the {n} depth bins of {layer}")
    return fig


@styled
def plot_blame(trace: ErrorTrace, num_units: int = 10) -> Figure:
    """The most blamed units, and what setting back each alone does to the errors of the attack.

    Left the blame, of its two parts; right the shares of the attacked errors that are repaired and,
    to the left of 0, newly caused. A unit that was not set back has no bar there.
    """
    units = trace.units.head(num_units).iloc[::-1]
    labels = [
        f"{u.layer}, unit {u.unit}: {u.from_m:.2f}–{u.to_m:.2f} m" for u in units.itertuples()
    ]
    places = np.arange(len(units))
    fig, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 1.4 + 0.36 * len(units)), sharey=True)
    parts = {
        "excess": ("too much where its depth is predicted", PALETTE[3]),
        "lack": ("too little where its depth is true", PALETTE[9]),
    }
    for (part, (words, colour)), shift in zip(parts.items(), (0.2, -0.2), strict=True):
        left.barh(places + shift, units[part], 0.38, color=colour, label=words)
    left.plot(units["blame"], places, "k|", ms=13, mew=2, label="sum: blame")
    left.set_yticks(places, labels)
    left.set_xlabel("change of response per error\n[mean of the layer's strongest responses]")
    values = {"clean": PALETTE[0], "corrected": PALETTE[2]}
    for (value, colour), shift in zip(values.items(), (0.2, -0.2), strict=True):
        repaired, caused = (100 * units[f"{k}_{value}"] for k in ("repaired", "caused"))
        words = {"clean": "its clean response", "corrected": "its mean response to the truth"}
        right.barh(places + shift, repaired, 0.38, color=colour, label=words[value])
        right.barh(places + shift, -caused, 0.38, color=colour, alpha=0.35)
    right.set_xlabel("errors repaired [%]; pale: newly caused")
    for ax, title in ((left, "blame"), (right, "set back alone to")):
        ax.axvline(0, color="0.3", lw=0.8)
        ax.legend(title=title, alignment="left", loc="lower left", bbox_to_anchor=(0, 1))
    return fig


@styled
def plot_repairs(
    repairs: Mapping[tuple[str, str], Repair], draws: Mapping[tuple[str, str], Sequence[Repair]]
) -> Figure:
    """What setting units back repairs, less what it newly spoils, beside random units.

    Args:
        repairs: (network, `"clean"` or `"corrected"`) → of the blamed units.
        draws: the same → of as many random ones.
    """
    words = {"clean": "the\nclean response", "corrected": "the mean\nfor the true depth"}
    palette = colours(dict.fromkeys(name for name, _ in repairs))
    fig, axes = grid(1, len(palette), WIDTH, 0.35, words=1.0, sharex=True, sharey=True)
    for ax, (name, colour) in zip(axes[0], palette.items(), strict=True):
        for y, value in enumerate(words):
            random = [100 * draw.net for draw in draws[name, value]]
            ax.plot(random, [y] * len(random), "o", color=GREY, ms=6, alpha=0.6, mew=0)
            ax.plot(np.mean(random), y, "|", color="0.2", ms=18, mew=1.5)
            ax.plot(100 * repairs[name, value].net, y - 0.25, "D", color=colour, ms=9)
        ax.axvline(0, color=GREY, lw=0.8, zorder=0)
        ax.set_yticks(range(2), [f"set back to {word}" for word in words.values()])
        ax.set(ylim=(1.5, -0.6), title=name, xlabel="errors repaired less newly caused [%]")
    keys = (
        key("blamed units", ls="", marker="D", ms=8),
        key("as many random units", ls="", marker="o", color=GREY),
        key("their mean", ls="", marker="|", ms=14),
    )
    fig.legend(handles=keys, loc="outside lower center", ncols=3)
    return fig
