"""What becomes of the depth when units are removed or corrected."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mde_utils.dissection import Dissection
from mde_utils.evaluation import ERRORS, MIN_DEPTH, compute_metrics
from mde_utils.interventions import AblationCurve, UnitEffects
from mde_utils.views.plots.pictures import show_depth, show_image
from mde_utils.views.plots.style import (
    CHANGE,
    EDITS,
    ERROR,
    METRICS,
    PALETTE,
    RESPONSE,
    RUNS,
    bare,
    depth_axis,
    grid,
    provenance,
)

_CONTROLS = {  # what units are corrected by
    "none": "before",
    "truth": "ground\ntruth",
    "shuffled": "that of\nanother\nimage",
    "wrong_bin": "truth,\nbins\nswapped",
    "predicted": "own\nprediction",
    "fixed_point": "repeated\nto a fixed\npoint",
}


def plot_ablation(
    curves: AblationCurve | Mapping[str, AblationCurve], metric: str = "d1", *, columns: int = 2
) -> Figure:
    """What removing units one after another costs (figure 2 of the paper).

    The relative change of a metric for the worse, in percent, with the most selective units first,
    with the least selective first, and the mean and range of the random orders.

    Args:
        curves: one, or name → curve: a panel each, on one scale.
        columns: panels side by side.
    """
    if isinstance(curves, AblationCurve):
        curves = {curves.about["model"]: curves}
    columns = min(columns, len(curves))
    rows = -(-len(curves) // columns)
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(8 if columns == 1 else 10, 0.8 + 3.2 * rows - 0.4 * rows * (columns > 2)),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    words = {"most": "most selective first", "least": "least selective first"}
    change = "increase" if metric in ERRORS else "drop"
    keys = {}
    for ax, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        drop = 100 * curve.relative_drop(metric)
        orders = {order for order, _ in curve.curves}
        if "random" in orders:
            random = drop["random"]
            style = {"color": "0.45", "zorder": 1}
            ax.fill_between(
                drop.index, random.min(axis=1), random.max(axis=1), lw=0, alpha=0.25, **style
            )
            label = f"random order: mean and range of {random.shape[1]}"
            ax.plot(drop.index, random.mean(axis=1), ls="--", lw=1.4, label=label, **style)
        for order, colour in zip(words, (PALETTE[3], PALETTE[0]), strict=True):
            if order in orders:
                ax.plot(drop.index, drop[order, 0], color=colour, lw=2, label=words[order])
        ax.set(xlabel="removed units", xlim=drop.index[[0, -1]])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.tick_params(labelsize=8)
        ax.axhline(0, color="0.8", lw=0.8, zorder=0)
        title = name
        if {"most", "least"} <= orders and len(drop) > 1:
            area = curve.area(metric)
            title += (
                f"\narea between the curves {100 * area.area:.1f} % "
                f"[{100 * area.low:.1f}, {100 * area.high:.1f}]"
            )
            if "random" in orders:
                band = f"[{100 * area.band_low:.1f}, {100 * area.band_high:.1f}]"
                title += f"\nrandom orders {band}"
        ax.set_title(title, fontsize=9 if columns < 3 else 8)
        keys |= {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
        sns.despine(ax=ax)
    for ax in axes.flat[len(curves) :]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(f"relative {change} of {METRICS.get(metric, metric)} [%]")
    fig.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=3, frameon=False)
    layers = {" + ".join(curve.about["layers"]) for curve in curves.values()}
    units = f"units of {layers.pop()}" if len(layers) == 1 else "units"
    about = dict.fromkeys(
        f"{units} set to {curve.about['removed']} · {curve.about['dataset']}, "
        f"{curve.about['images']} images, protocol {curve.protocol}"
        for curve in curves.values()
    )
    fig.suptitle("; ".join(about) + " · intervals 95 %", fontsize=9)
    return fig


def plot_correction(effects: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """What correction does (table 3 of the paper): δ1 and RMS by dose, and beside its controls.

    Args:
        effects: what :func:`~mde_utils.interventions.correction_effects` returns, or name of the
            network → that.

    Raises:
        ValueError: networks that were measured under different protocols.
    """
    if isinstance(effects, pd.DataFrame):
        effects = {effects.attrs["model"]: effects}
    if len({frame.attrs["protocol"] for frame in effects.values()}) > 1:
        raise ValueError("The networks were measured under different protocols.")
    fig, axes = plt.subplots(
        2, 2, figsize=(10, 6), layout="constrained", gridspec_kw={"width_ratios": [1, 2]}
    )
    frame = pd.concat([f.assign(network=name) for name, f in effects.items()], ignore_index=True)
    full = frame[(frame["blend"] == 1) | (frame["control"] == "none")]
    shown = [control for control in _CONTROLS if control in set(full["control"])]
    palette = dict(zip(effects, cycle(RUNS), strict=False))
    for (dose, bars), (metric, label) in zip(
        axes, {"d1": "δ1", "rms": "RMS [m]"}.items(), strict=True
    ):
        for name, colour in palette.items():
            own = frame[frame["network"] == name]
            before = own.loc[own["control"] == "none", metric].item()
            truth = own[own["control"] == "truth"].sort_values("blend")
            dose.plot(truth["blend"], truth[metric], "o-", ms=4, color=colour)
            for ax in (dose, bars):
                ax.axhline(before, color=colour, ls=":", lw=1.2, zorder=3)
        sns.barplot(
            full, x="control", y=metric, hue="network", order=shown, palette=palette, ax=bars,
            legend=metric == "d1",
        )  # fmt: skip
        for container in bars.containers:
            bars.bar_label(container, fmt="%.3f", fontsize=7 if len(effects) < 3 else 5, padding=1)
        bars.set_xticks(range(len(shown)), [_CONTROLS[c] for c in shown], fontsize=8)
        bars.set(xlabel=None, ylabel=label)
        bars.margins(y=0.12)
        dose.set(xlabel="share replaced (blend)", ylabel=label)
        for ax in (dose, bars):
            sns.despine(ax=ax)
    axes[0, 0].set_title("corrected by the ground truth", fontsize=9)
    axes[0, 1].set_title("corrected by", fontsize=9)
    sns.move_legend(
        axes[0, 1], "lower right", bbox_to_anchor=(1, 1), ncols=3, title=None, frameon=False,
        fontsize=8,
    )  # fmt: skip
    about = dict.fromkeys(
        f"units of {' + '.join(f.attrs['layers'])} · {f.attrs['dataset']}, {f.attrs['images']} "
        f"images, protocol {f.attrs['protocol']}"
        for f in effects.values()
    )
    fig.suptitle("Correction: " + "; ".join(about) + " · dotted: before", fontsize=9)
    return fig


def plot_corrected(image: Tensor, before: Tensor, after: Tensor, truth: Tensor) -> Figure:
    """One image corrected (figure 7 of the paper), and where the errors were and are.

    Args:
        image: (3, H, W) RGB in [0, 1].
        before, after: (1, h, w) predictions in metres.
        truth: (1, H, W) metres, 0 = no measurement.
    """
    fig, axes = grid(2, 4, 11, image.shape[1] / image.shape[2])
    measured = truth > 0
    upsampled = [
        nn.functional.interpolate(
            pred[None].cpu().float(), truth.shape[-2:], mode="bilinear", align_corners=False
        )[0]
        for pred in (before, after)
    ]
    errors = [torch.where(measured, (pred - truth).abs(), torch.nan) for pred in upsampled]
    farthest = max(truth.max().item(), *(pred.quantile(0.99).item() for pred in upsampled))
    worst = max(error.nanquantile(0.98).item() for error in errors)
    show_image(axes[0, 0], image)
    for ax, depth in zip(axes[0, 1:], (before, after, truth), strict=True):
        shown = show_depth(ax, depth, vmax=farthest)
    for ax, title in zip(axes[0], ("RGB", "prediction", "corrected", "ground truth"), strict=True):
        ax.set_title(title, fontsize=10)
    for ax, pred, error in zip(axes[1, 1:3], upsampled, errors, strict=True):
        drawn = ax.imshow(error[0].numpy(), cmap=ERROR, vmin=0, vmax=worst)
        bare(ax)
        found = compute_metrics(pred[measured].clamp(min=MIN_DEPTH), truth[measured])
        ax.set_xlabel(f"δ1 {found['d1']:.3f} · RMS {found['rms']:.2f} m", fontsize=9)
    axes[1, 1].set_ylabel("|error|")
    for ax in (axes[1, 0], axes[1, 3]):
        ax.axis("off")
    fig.colorbar(shown, ax=axes[0].tolist(), label="depth [m]", pad=0.01)
    fig.colorbar(drawn, ax=axes[1].tolist(), label="|error| [m]", pad=0.01, extend="max")
    return fig


def plot_effects(effects: UnitEffects, dissection: Dissection) -> Figure:
    """Is a unit needed where it answers? Response and causal effect of a layer's units by depth.

    A row a unit, ordered by the depth that it answers to most (its mark in all three). Left its
    |mean response|, in the middle what the depth changes without it, right how much the error
    grows; each as a part of the unit's largest. Units without response or effect are left out.
    """
    layer, bins = effects.layer, effects.bins
    response = dissection.response[layer].abs()
    known = (dissection.counts[layer] > 0) & (effects.counts > 0)
    response, change, error = (
        torch.where(known, x, torch.nan) for x in (response, effects.change, effects.error)
    )
    kept = [k for k in range(len(response)) if response[k].nansum() > 0 < change[k].nansum()]
    best = response.nan_to_num(0).argmax(1)
    rows = sorted(kept, key=lambda k: best[k].item())
    if not rows:
        raise ValueError(f"No unit of {layer!r} answers and changes the depth.")
    fig, axes = grid(1, 3, 10, max(0.8, 0.03 * len(rows)), sharey=True)
    parts = {
        "|mean response|": (response, RESPONSE),
        "effect: |change of depth|": (change, RESPONSE),
        "effect: growth of |error|": (error, CHANGE),
    }
    for ax, (title, (values, colours)) in zip(axes[0], parts.items(), strict=True):
        values = values[rows]
        largest = values.abs().nan_to_num(0).amax(1, keepdim=True)
        shown = ax.imshow(
            (values / largest).numpy(),
            cmap=plt.get_cmap(colours).with_extremes(bad="0.75"),
            vmin=-1 if colours == CHANGE else 0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        marks = {"ls": "none", "marker": "s", "mfc": "none", "ms": 7}
        ax.plot(best[rows], range(len(rows)), mec="c", mew=1.3, **marks)
        ax.set_title(title, fontsize=9)
        depth_axis(ax, bins, few=True)
        bar = fig.colorbar(shown, ax=ax, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    bar.set_label("÷ the unit's largest", fontsize=8)
    axes[0][0].set_yticks(range(len(rows)), rows, fontsize=7)
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.suptitle(
        f"Square: the depth that the unit answers to most · effect of a unit "
        f"{EDITS[effects.mode].format(effects.factor)}: {effects.images} images · response: "
        f"{provenance(dissection)}",
        fontsize=9,
    )
    return fig
