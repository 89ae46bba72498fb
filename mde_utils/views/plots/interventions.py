"""What becomes of the depth when units are removed or corrected."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from mde_utils.dissection import Dissection
from mde_utils.evaluation import ERRORS, MIN_DEPTH, compute_metrics
from mde_utils.interventions import AblationCurve, UnitEffects

from .pictures import resized, show_depth, show_image
from .style import (
    CHANGE,
    EDITS,
    ERROR,
    PALETTE,
    RESPONSE,
    WIDTH,
    bare,
    colours,
    depth_axis,
    farthest,
    grid,
    key,
    provenance,
    styled,
    titles,
)

_METRICS = {"d1": "δ1", "d2": "δ2", "d3": "δ3", "rms": "RMS", "rel": "REL", "rms_log": "RMS log"}
_CONTROLS = {  # what units are corrected by
    "none": "before",
    "truth": "ground\ntruth",
    "shuffled": "that of\nanother\nimage",
    "wrong_bin": "truth,\nbins\nswapped",
    "predicted": "own\nprediction",
    "fixed_point": "repeated\nto a fixed\npoint",
}


@styled
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
    height = 0.8 + 3 * rows - 0.4 * rows * (columns > 2)
    shape = {"figsize": (WIDTH, height), "squeeze": False, "sharey": True}
    fig, axes = plt.subplots(rows, columns, **shape)
    keys = {}
    for ax, (name, curve) in zip(axes.flat, curves.items(), strict=False):
        _orders(ax, curve, 100 * curve.relative_drop(metric))
        ax.set_title("\n".join([name, *_areas(curve, metric, short=columns > 2)]))
        keys |= {line.get_label(): line for line in ax.lines if line.get_label()[0] != "_"}
    for ax in axes.flat[len(curves) :]:
        ax.remove()
    change = "increase" if metric in ERRORS else "drop"
    for ax in axes[:, 0]:
        ax.set_ylabel(f"relative {change} of {_METRICS.get(metric, metric)} [%]")
    fig.legend(keys.values(), keys.keys(), loc="outside lower center", ncols=3)
    layers = {" + ".join(curve.about["layers"]) for curve in curves.values()}
    units = f"units of {layers.pop()}" if len(layers) == 1 else "units"
    about = dict.fromkeys(
        f"{units} set to {curve.about['removed']} · {curve.about['dataset']}, "
        f"{curve.about['images']} images, protocol {curve.protocol}"
        for curve in curves.values()
    )
    fig.suptitle("; ".join(about) + " · intervals 95 %")
    return fig


def _orders(ax: Axes, curve: AblationCurve, drop: pd.DataFrame) -> None:
    orders = {order for order, _ in curve.curves}
    if "random" in orders:
        random = drop["random"]
        look = {"color": "0.45", "zorder": 1}
        ax.fill_between(
            drop.index, random.min(axis=1), random.max(axis=1), lw=0, alpha=0.25, **look
        )
        label = f"random order: mean and range of {random.shape[1]}"
        ax.plot(drop.index, random.mean(axis=1), ls="--", label=label, **look)
    for order, colour in (("most", PALETTE[3]), ("least", PALETTE[0])):
        if order in orders:
            label = f"{order} selective first"
            ax.plot(drop.index, drop[order, 0], color=colour, lw=2, label=label)
    ax.set(xlabel="removed units", xlim=drop.index[[0, -1]])
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.axhline(0, color="0.8", lw=0.8, zorder=0)


def _areas(curve: AblationCurve, metric: str, *, short: bool) -> list[str]:
    """The area between the orders in words, where both were measured."""
    orders = {order for order, _ in curve.curves}
    if not {"most", "least"} <= orders or len(curve.relative_drop(metric)) < 2:
        return []
    area = curve.area(metric)
    words = "area" if short else "area between the curves"
    lines = [f"{words} {100 * area.area:.1f} % [{100 * area.low:.1f}, {100 * area.high:.1f}]"]
    if "random" in orders:
        words = "random" if short else "random orders"
        lines.append(f"{words} [{100 * area.band_low:.1f}, {100 * area.band_high:.1f}]")
    return lines


@styled
def plot_areas(curves: Mapping[str, Mapping[str, AblationCurve]], metric: str = "d1") -> Figure:
    """The areas of ablation curves, with their intervals and bands (see `Area`): a panel a network.

    Args:
        curves: network → what was ablated → curve.
    """
    rows = list(dict.fromkeys(what for own in curves.values() for what in own))
    shape = {"figsize": (WIDTH, 1.1 + 0.35 * len(rows)), "squeeze": False, "sharex": True}
    fig, axes = plt.subplots(1, len(curves), sharey=True, **shape)
    for ax, (name, colour) in zip(axes[0], colours(curves).items(), strict=True):
        areas = pd.DataFrame([curve.area(metric) for curve in curves[name].values()]) * 100
        y = [rows.index(what) for what in curves[name]]
        ax.hlines(y, areas.band_low, areas.band_high, color="0.85", lw=12)
        ax.hlines(y, areas.low, areas.high, color=colour, lw=2)
        ax.plot(areas.area, y, "o", color=colour)
        ax.axvline(0, color="0.6", lw=0.8, zorder=0)
        ax.set_yticks(range(len(rows)), rows)
        ax.set(title=name, xlabel=f"area, relative loss of {_METRICS.get(metric, metric)} [%]")
        ax.set_ylim(len(rows) - 0.5, -0.5)
    keys = (
        key("area", marker="o", ls=""),
        key("interval over images (95 %)", lw=2),
        key("orders without knowledge", color="0.85", lw=8),
    )
    fig.legend(handles=keys, loc="outside lower center", ncols=3)
    return fig


@styled
def plot_correction(effects: pd.DataFrame | Mapping[str, pd.DataFrame]) -> Figure:
    """What correction does (table 3 of the paper): δ1 and RMS by dose, and beside its controls.

    Args:
        effects: what `correction_effects` returns, or name of the network → that.
    """
    if isinstance(effects, pd.DataFrame):
        effects = {effects.attrs["model"]: effects}
    if len({frame.attrs["protocol"] for frame in effects.values()}) > 1:
        raise ValueError("The networks were measured under different protocols.")
    shape = {"figsize": (WIDTH, 5.6), "gridspec_kw": {"width_ratios": [1, 3]}}
    fig, axes = plt.subplots(2, 2, **shape)
    full = {
        name: frame[(frame["blend"] == 1) | (frame["control"] == "none")].set_index("control")
        for name, frame in effects.items()
    }
    shown = [c for c in _CONTROLS if any(c in frame.index for frame in full.values())]
    palette, wide = colours(effects), 0.8 / len(effects)
    panels = (("d1", "δ1", "{:.3f}"), ("rms", "RMS [m]", "{:.2f}"))
    for (dose, bars), (metric, label, digits) in zip(axes, panels, strict=True):
        for i, (name, colour) in enumerate(palette.items()):
            before = full[name].at["none", metric]
            truth = effects[name].query("control == 'truth'").sort_values("blend")
            dose.plot(truth["blend"], truth[metric], "o-", color=colour)
            for ax in (dose, bars):
                ax.axhline(before, color=colour, ls=":", lw=1.2, zorder=3)
            at = [x + wide * (i - (len(effects) - 1) / 2) for x in range(len(shown))]
            values = full[name][metric].reindex(shown)
            drawn = bars.bar(at, values, wide, color=colour, label=name)
            several = {"rotation": 90} if len(effects) > 2 else {}
            bars.bar_label(drawn, fmt=digits, fontsize=8, padding=1, **several)
        bars.set_xticks(range(len(shown)), [_CONTROLS[c] for c in shown])
        bars.set_ylabel(label)
        bars.margins(y=0.12 if len(effects) < 3 else 0.3)
        dose.set(xlabel="share replaced (blend)", ylabel=label)
    titles(axes[0], ("by the ground truth", "corrected by"))
    if len(effects) > 1:
        fig.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=4)
    about = dict.fromkeys(
        f"units of {' + '.join(f.attrs['layers'])} · {f.attrs['dataset']}, {f.attrs['images']} "
        f"images, protocol {f.attrs['protocol']}"
        for f in effects.values()
    )
    fig.suptitle("Correction: " + "; ".join(about) + " · dotted: before")
    return fig


@styled
def plot_corrected(image: Tensor, before: Tensor, after: Tensor, truth: Tensor) -> Figure:
    """One image corrected (figure 7 of the paper), and where the errors were and are.

    Args:
        image: (3, H, W) RGB in [0, 1].
        before, after: (1, h, w) predictions in metres.
        truth: (1, H, W) metres, 0 = no measurement.
    """
    fig, axes = grid(2, 4, WIDTH, image.shape[1] / image.shape[2])
    measured = truth > 0
    upsampled = [resized(pred, truth.shape[-2:]) for pred in (before, after)]
    errors = [torch.where(measured, (pred - truth).abs(), torch.nan) for pred in upsampled]
    top = farthest(truth, *(pred.quantile(0.99) for pred in upsampled))
    worst = max(error.nanquantile(0.98).item() for error in errors)
    show_image(axes[0, 0], image)
    for ax, depth in zip(axes[0, 1:], (before, after, truth), strict=True):
        shown = show_depth(ax, depth, vmax=top)
    titles(axes[0], ("RGB", "prediction", "corrected", "ground truth"))
    for ax, pred, error in zip(axes[1, 1:3], upsampled, errors, strict=True):
        drawn = ax.imshow(error[0].numpy(), cmap=ERROR, vmin=0, vmax=worst)
        bare(ax)
        found = compute_metrics(pred[measured].clamp(min=MIN_DEPTH), truth[measured])
        ax.set_xlabel(f"δ1 {found['d1']:.3f} · RMS {found['rms']:.2f} m")
    axes[1, 1].set_ylabel("|error|")
    for ax in (axes[1, 0], axes[1, 3]):
        ax.axis("off")
    fig.colorbar(shown, ax=axes[0].tolist(), label="depth [m]", pad=0.01)
    fig.colorbar(drawn, ax=axes[1].tolist(), label="|error| [m]", pad=0.01, extend="max")
    return fig


@styled
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
    fig, axes = grid(1, 3, WIDTH, max(0.8, 0.045 * len(rows)), sharey=True)
    parts = {
        "|mean response|": (response, RESPONSE),
        "effect: |change of depth|": (change, RESPONSE),
        "effect: growth of |error|": (error, CHANGE),
    }
    for ax, (title, (values, look)) in zip(axes[0], parts.items(), strict=True):
        values = values[rows]
        largest = values.abs().nan_to_num(0).amax(1, keepdim=True)
        shown = ax.imshow(
            (values / largest).numpy(),
            cmap=plt.get_cmap(look).with_extremes(bad="0.75"),
            vmin=-1 if look == CHANGE else 0,
            vmax=1,
            aspect="auto",
            interpolation="nearest",
        )
        marks = {"ls": "none", "marker": "s", "mfc": "none", "ms": 7}
        ax.plot(best[rows], range(len(rows)), mec="c", mew=1.3, **marks)
        ax.set_title(title)
        depth_axis(ax, bins, few=True)
        bar = fig.colorbar(shown, ax=ax, pad=0.01)
    bar.set_label("÷ the unit's largest")
    axes[0][0].set_yticks(range(len(rows)), rows)
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.suptitle(
        f"Square: the depth that the unit answers to most · effect of a unit "
        f"{EDITS[effects.answer].format(effects.factor)}: {effects.images} images\nresponse: "
        f"{provenance(dissection)}"
    )
    return fig


@styled
def plot_matches(table: pd.DataFrame) -> Figure:
    """Are units needed where they answer? Rank correlations r with their intervals, and in grey
    where shuffled pairs lie: a panel a measure.

    Args:
        table: what `UnitEffects.match` returns, of several, below each other: the index tells the
            network, what else there is to tell, and the measure.
    """
    measures, palette = table.index.unique(-1), colours(table.index.unique(0))
    shape = {"figsize": (WIDTH, 0.9 + 0.24 * len(table) / len(measures)), "squeeze": False}
    fig, axes = plt.subplots(1, len(measures), sharex=True, sharey=True, **shape)
    for ax, measure in zip(axes[0], measures, strict=True):
        part = table.xs(measure, level=-1)
        look = {"color": [palette[name] for name in part.index.get_level_values(0)]}
        y = range(len(part))
        ax.hlines(y, -part.chance, part.chance, color="0.88", lw=8)
        ax.hlines(y, part.low, part.high, lw=2, **look)
        ax.scatter(part.r, y, 20, zorder=3, **look)
        ax.axvline(0, color="0.6", lw=0.8, zorder=0)
        ax.set_yticks(y, [" · ".join(row) for row in part.index])
        ax.set(title=measure, xlabel="r", xlim=(-1.05, 1.05), ylim=(len(part) - 0.5, -0.5))
    return fig
