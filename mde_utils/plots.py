"""Pictures. Every function draws one figure and returns it; none reads or changes anything else.

Depth is drawn in metres on one map (viridis: dark = near), responses on another (magma), both
perceptually uniform; two networks are told apart by colours that all eyes can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox
from torch import Tensor, nn

from mde_utils.activations import evaluating, tap
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection
from mde_utils.selectivity import METHODS, assigned_bins

DEPTH, RESPONSE = "viridis", "magma"
PALETTE = sns.color_palette("colorblind")
_GREY = "0.6"
# Runs beside each other: those of the palette first that differ most, to all eyes.
_RUNS = [PALETTE[i] for i in (0, 1, 2, 4, 9, 3, 5, 7)]


# ------------------------------------------------------------------ images and depth


def show_image(ax: Axes, image: Tensor) -> None:
    """RGB (3, H, W) in [0, 1]."""
    ax.imshow(image.clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    _bare(ax)


def show_depth(ax: Axes, depth: Tensor, *, vmin: float = 0, vmax: float = 10):
    """Depth (1, H, W) in metres; what has no measurement stays white. Returns the mappable."""
    values = depth.detach().squeeze(0).float().cpu().numpy()
    shown = ax.imshow(np.where(values > 0, values, np.nan), cmap=DEPTH, vmin=vmin, vmax=vmax)
    _bare(ax)
    return shown


def plot_items(items: Sequence[Mapping], fields: Sequence[str] = ("image", "depth")) -> Figure:
    """A row of pictures a field, a column an item: image, right, depth, normal, label."""
    titles = {
        "image": "RGB",
        "right": "right view",
        "depth": "depth",
        "normal": "normals",
        "label": "labels",
        "sparse_depth": "sparse depth",
    }
    shape = items[0]["image"].shape[1:]
    fig, axes = _grid(len(fields), len(items), 9, shape[0] / shape[1])
    farthest = max(item["depth"].max().item() for item in items)
    for row, field in zip(axes, fields, strict=True):
        for ax, item in zip(row, items, strict=True):
            if field in ("depth", "sparse_depth"):
                shown = show_depth(ax, item[field], vmax=farthest)
            elif field == "normal":
                show_image(ax, item[field] / 2 + 0.5)
            elif field == "label":
                ax.imshow(item[field].numpy(), cmap="tab20", interpolation="nearest")
                _bare(ax)
            else:
                show_image(ax, item[field])
        row[0].set_ylabel(titles.get(field, field))
        if field in ("depth", "sparse_depth"):
            fig.colorbar(shown, ax=row.tolist(), label="depth [m]", pad=0.01)
    return fig


def plot_predictions(
    models: Mapping[str, nn.Module], items: Sequence[Mapping], *, vmax: float | None = None
) -> Figure:
    """A row an item: image, ground truth, and the depth that each model predicts, in metres."""
    shape = items[0]["image"].shape[1:]
    fig, axes = _grid(len(items), 2 + len(models), 11, shape[0] / shape[1])
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
    _metres(ax, bins)
    return fig


# ------------------------------------------------------------------ units


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
    fig, axes = _grid(rows, min(columns, len(units)), 11, 0.62, sharex=True)
    index = np.arange(len(bins))
    for ax, unit in zip(axes.ravel(), units, strict=False):
        values = np.where(counts > 0, response[unit], np.nan)
        colours = [PALETTE[3] if i == target[unit] else "0.45" for i in index]
        ax.bar(index, values, width=1.0, color=colours)
        ax.axhline(0, color="0.8", lw=0.6, zorder=0)
        ax.set_title(f"unit {unit} · DS {selectivity[unit]:.2f}", fontsize=7, pad=2)
        ax.set_yticks([])
        ax.margins(x=0)
        sns.despine(ax=ax, left=True)
    for ax in axes.ravel()[len(units) :]:
        ax.axis("off")
    for ax in axes[-1]:
        _metres(ax, bins, few=True)
    fig.suptitle(
        f"{layer}: mean response per depth bin; the assigned bin in orange.\n"
        f"Mean DS {dissection.mean(layer):.3f}; without tuning {floors['flat']:.3f} (flat) and "
        f"{floors['uniform']:.3f} (random units) · {_provenance(dissection)}",
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
    fig, ax = plt.subplots(figsize=(max(6, 0.75 * len(layers) + 2), 3.8), layout="constrained")
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
    ax.set(xlabel=None, ylabel=f"depth selectivity ({first.definition})", ylim=(-0.03, 1.15))
    ax.legend(title=None, frameon=False, fontsize=8, ncols=4, loc="upper center")
    seen = dict.fromkeys(_provenance(d) for d in dissections.values())
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
    fig, axes = _grid(len(units), 1 + 2 * len(names), 11, shape[0] / shape[1])
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
            _bare(row[1 + 2 * i])
            response = acts[unit].abs().float().numpy()
            # A few pixels at the border can be far above all others.
            row[2 + 2 * i].imshow(response, cmap=RESPONSE, vmin=0, vmax=np.quantile(response, 0.99))
            _bare(row[2 + 2 * i])
        row[0].set_ylabel(f"unit {unit}\n{near:.2f}–{far:.2f} m", fontsize=8)
    axes[0][0].set_title("RGB", fontsize=9)
    for i, name in enumerate(names):
        axes[0][1 + 2 * i].set_title(f"{name}: predicted\ndepth in its bin", fontsize=8)
        axes[0][2 + 2 * i].set_title(f"{name}:\n|response| of the unit", fontsize=8)
    return fig


# ------------------------------------------------------------------ training


class _Panel(NamedTuple):
    """What a panel of :func:`plot_training` shows: curves are (column, line style, marker)."""

    title: str
    curves: Sequence[tuple[str, str, str]]
    finish: Callable[[Axes], None] = lambda ax: None
    factor: float = 1


def plot_training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """How runs went, epoch by epoch: accuracy, selectivity, and the bins and units behind it.

    Three groups of panels, at most four a row: depth loss, δ1, RMS and gradient ratio; the
    selectivity of each watched layer, in validation (solid) and training (dashed); the share of
    depth bins that a batch holds, and the units whose bin is absent or that do not respond at all,
    with a marker a layer. A run has one colour in all panels.

    Args:
        histories: name of the run → its history, a row an epoch. Columns that are drawn, where at
            least one run has them: ``depth_loss``, ``val_d1``, ``val_rms``, ``gradient_ratio``
            (norm of the weighted selectivity's gradient ÷ norm of the depth loss's; of a run
            without the term, what it would be), and per layer L ``val_selectivity_L``,
            ``train_selectivity_L``, ``train_coverage_L`` (0 to 1), ``train_absent_L``,
            ``train_collapsed_L``, ``val_collapsed_L``. Without ``epoch``, rows are counted from 1.
            A panel without any column or value is left out; a figure without any panel says so.
            Nothing is raised.
    """
    runs = {name: _epochs(frame) for name, frame in histories.items()}
    sections = _training_sections(runs)
    if not sections:
        started = any(len(frame) for frame in runs.values())
        fig, ax = plt.subplots(figsize=(9, 1.5), layout="constrained")
        message = "no column that this figure draws" if started else "no epoch finished yet"
        ax.text(0.5, 0.5, message, ha="center", va="center", fontsize=11, color="0.3")
        ax.axis("off")
        return fig

    colours = {name: _RUNS[i % len(_RUNS)] for i, name in enumerate(runs)}
    shapes = [_shape(len(panels), 4) for _, panels, _, _ in sections]
    heights = [0.35 + 1.75 * rows for rows, _ in shapes]
    columns, lines = _legend_shape(runs, width=9)
    fig = plt.figure(figsize=(9, sum(heights) + 0.2 * lines), layout="constrained")
    fig.legend(
        [Line2D([], [], color=c, lw=2) for c in colours.values()],
        [name if len(frame) else f"{name} (no epoch yet)" for name, frame in runs.items()],
        loc="outside upper left",
        ncols=columns,
        fontsize=9,
        frameon=False,
    )
    parts = fig.subfigures(len(sections), 1, height_ratios=heights, squeeze=False).ravel()
    for part, (heading, panels, keys, same), shape in zip(parts, sections, shapes, strict=True):
        part.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
        if keys:
            part.legend(
                handles=keys,
                loc="outside upper right",
                ncols=len(keys),
                fontsize=8,
                frameon=False,
                handlelength=2.8,
            )
        axes = part.subplots(*shape, sharey=same, squeeze=False).ravel()
        for ax, panel in zip(axes, panels, strict=False):
            _draw_curves(ax, panel, runs, colours)
        for ax in axes[len(panels) :]:
            ax.remove()
    return fig


def _training_sections(runs: Mapping[str, pd.DataFrame]) -> list[tuple]:
    """What has values: (heading, panels, keys of styles and markers, whether they share y)."""
    filled = {c for frame in runs.values() for c in frame if frame[c].notna().any()}
    kinds = ("val_selectivity_", "train_selectivity_", "train_coverage_", "train_absent_")
    kinds += ("train_collapsed_", "val_collapsed_")
    layers = list(
        dict.fromkeys(
            column.removeprefix(kind)
            for frame in runs.values()
            for kind in kinds
            for column in frame
            if column.startswith(kind) and column in filled
        )
    )
    marks = dict(zip(layers, "os^Dvp*X" * len(layers), strict=False))

    def by_layer(prefix: str) -> list[tuple[str, str, str]]:
        return [(prefix + layer, "-", mark) for layer, mark in marks.items()]

    def losses(ax: Axes) -> None:
        low, high = ax.dataLim.intervaly
        if low > 0 and high > 10 * low:
            _log_scale(ax)

    accuracy = [
        _Panel("depth loss,\ntraining", [("depth_loss", "-", "o")], losses),
        _Panel("δ1,\nvalidation", [("val_d1", "-", "o")]),
        _Panel("RMS [m],\nvalidation", [("val_rms", "-", "o")]),
        _Panel("gradient ratio,\nselectivity ÷ depth", [("gradient_ratio", "-", "o")], _ratio),
    ]
    selectivity = [
        _Panel(
            layer,
            [(f"val_selectivity_{layer}", "-", "o"), (f"train_selectivity_{layer}", "--", "o")],
        )
        for layer in layers
    ]
    units = [
        _Panel("depth bins present\nin a batch [%]", by_layer("train_coverage_"), _percent, 100),
        _Panel(
            "units whose bin the batch\nlacks (mean of batches)", by_layer("train_absent_"), _count
        ),
        _Panel(
            "units without response\n(collapsed), training", by_layer("train_collapsed_"), _count
        ),
        _Panel(
            "units without response\n(collapsed), validation", by_layer("val_collapsed_"), _count
        ),
    ]
    # A history does not tell whether its run had the term, so the note is for whom it concerns.
    meaning = "ratio 1: equally strong gradients (of a run without the term: what they would be)"
    strong = [_key(meaning, lw=0.8, color=_GREY)] if "gradient_ratio" in filled else []
    how = [
        key
        for kind, key in (
            ("val_selectivity_", _key("validation", marker="o")),
            ("train_selectivity_", _key("training", ls="--", marker="o", mfc="white")),
        )
        if any(kind + layer in filled for layer in layers)
    ]
    which = [_key(layer, ls="", marker=mark) for layer, mark in marks.items()]
    sections = [
        ("Accuracy", accuracy, strong, False),
        ("Depth selectivity of the watched layers", selectivity, how, True),
        ("Depth bins and units", units, which, False),
    ]
    drawn = []
    for heading, panels, keys, same in sections:
        panels = [p._replace(curves=[c for c in p.curves if c[0] in filled]) for p in panels]
        if any(p.curves for p in panels):
            drawn.append((heading, [p for p in panels if p.curves], keys, same))
    return drawn


def _draw_curves(
    ax: Axes, panel: _Panel, runs: Mapping[str, pd.DataFrame], colours: Mapping[str, tuple]
) -> None:
    last = max(frame["epoch"].max() for frame in runs.values() if len(frame))
    first = min(frame["epoch"].min() for frame in runs.values() if len(frame))
    # Each epoch gets a marker while there is room, so that a run of one epoch shows.
    step = math.ceil((last - first + 1) / (10 if len(panel.curves) < 3 else 5))
    # Else markers of runs that coincide stand side by side, so that none is hidden.
    step = step if step == 1 else max(step, len(runs))
    # A single epoch leaves room to set the runs side by side.
    apart = min(0.1, 0.6 / len(runs)) if last == first else 0
    for i, (name, frame) in enumerate(runs.items()):
        for column, style, mark in panel.curves:
            if column not in frame:
                continue
            # What was not measured in an epoch is bridged, not a gap that hides its neighbours.
            shown = frame[["epoch", column]].dropna()
            every = max(1, min(step, len(shown)))
            ax.plot(
                shown["epoch"] + apart * (i - (len(runs) - 1) / 2),
                panel.factor * shown[column],
                color=colours[name],
                ls=style,
                lw=1.4,
                marker=mark,
                ms=4,
                mfc="white" if style == "--" else None,
                markevery=(i * every // len(runs), every),
                label=name,
            )
    ax.set_title(panel.title, fontsize=9)
    ax.set_xlabel("epoch", fontsize=8, labelpad=1)
    ax.tick_params(labelsize=8)
    room = 0.5 if last == first else 0.03 * (last - first)
    ax.set_xlim(first - room, last + room)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    panel.finish(ax)
    sns.despine(ax=ax)


def _key(text: str, **style) -> Line2D:
    """An entry of a legend about line styles and markers, in no run's colour."""
    return Line2D([], [], label=text, **{"color": "0.35", "lw": 1.4, "ms": 5, **style})


def _epochs(frame: pd.DataFrame) -> pd.DataFrame:
    """The history with an ``epoch`` in each row, and without values that no axis has."""
    if "epoch" not in frame:
        frame = frame.assign(epoch=np.arange(1, len(frame) + 1))
    frame = frame.replace([np.inf, -np.inf], np.nan)
    if "gradient_ratio" in frame:
        # An epoch whose weight is 0, as at the start of a warm-up, has no place on a log axis.
        frame["gradient_ratio"] = frame["gradient_ratio"].where(frame["gradient_ratio"] > 0)
    return frame


def _ratio(ax: Axes) -> None:
    _log_scale(ax)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, 0.5), max(high, 2))
    ax.axhline(1, color=_GREY, lw=0.8, zorder=0)


def _percent(ax: Axes) -> None:
    ax.set_ylim(0, 105)


def _count(ax: Axes) -> None:
    top = max(1, ax.dataLim.y1)
    ax.set_ylim(-0.08 * top, 1.08 * top)
    ax.yaxis.set_major_locator(MaxNLocator(4, integer=True, min_n_ticks=1))


def _log_scale(ax: Axes) -> None:
    """Logarithmic y axis with plain numbers, at least two of them."""
    ax.set_yscale("log")
    low, high = ax.dataLim.intervaly
    few = high > 100 * low
    ax.yaxis.set_major_locator(LogLocator(subs=(1,) if few else (1, 2, 5), numticks=6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------------ many trainings


_TRADEOFF = {
    "d1": "δ1 on the test images",
    "rms": "RMS [m] on the test images",
    "rel": "mean relative error on the test images",
    "selectivity": "test selectivity of the layers",
    "baseline": "baseline (no selectivity term)",
    "assign": "assign (each unit is given a bin)",
    "reg": "reg (each unit's own best bin)",
}


def plot_tradeoff(
    table: pd.DataFrame,
    *,
    x: str = "d1",
    y: str = "selectivity",
    colour: str = "method",
    label: str | None = "imde_alpha",
    line: str | None = "layers",
) -> Figure:
    """What selectivity costs in accuracy: a point a setting, averaged over seeds.

    A panel a set of layers (and a model, where there are several), on the same axes, at most three
    a row. Bars reach from the smallest to the largest value over the seeds. Settings that differ
    in their weight alone are joined, by its magnitude. The baseline is a black diamond; where
    ``x`` is δ1, a light band marks what is within .01 of it.

    Args:
        table: a row a training. Columns: ``method`` (``"baseline"`` or how it was trained), ``x``,
            ``y``, ``colour``, ``label`` and ``line``; and, where there, ``layers``, ``model``,
            ``imde_alpha`` (what it is for a baseline does not matter) and ``seed``. A setting is
            what agrees in all of these but ``x``, ``y`` and ``seed``. Rows without a value of
            ``x`` or ``y`` are left out, and the figure says how many.
        x, y: columns of the axes.
        colour: column that colours and marks the points.
        label: column that is written beside each point but the baseline; None = nothing.
        line: column whose values are joined apart; None = points are not joined.

    Raises:
        ValueError: columns are missing (named); a training without method, layers, model,
            ``colour``, ``label`` or ``line``; no row with ``x`` and ``y``; or a setting that holds
            the same seed twice, so that it is not one setting.
    """
    needed = [c for c in (x, y, colour, label, line, "method") if c is not None]
    missing = [c for c in dict.fromkeys(needed) if c not in table]
    if missing:
        raise ValueError(
            f"The table lacks {', '.join(map(repr, missing))}; it has "
            f"{', '.join(map(repr, table.columns)) or 'no columns'}."
        )
    trained = table["method"] != "baseline"
    for column in ("method", "model", "layers", colour, label, line):
        # What a baseline has no use for may be empty in its rows.
        rows = table if column in ("method", "model", "layers") else table[trained]
        if column in rows and rows[column].isna().any():
            raise ValueError(f"Column {column!r} has rows without a value, which have no place.")
    settings = _settings(table, x, y, colour, label, line)
    several = "model" in settings and settings["model"].nunique() > 1
    facets = [c for c, use in (("model", several), ("layers", "layers" in settings)) if use]
    panels = list(settings.groupby(facets, sort=False)) if facets else [((), settings)]
    rows, columns = _shape(len(panels), 3)
    width = 9 if columns > 1 else 6.5
    fig, axes = plt.subplots(
        rows,
        columns,
        figsize=(width, 1.3 + 2.5 * rows if columns > 1 else 4.6),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    trained = settings.loc[settings["method"] != "baseline"]
    values = list(trained[colour].drop_duplicates().sort_values())
    # A method keeps its colour in a table that has only one of them.
    order = list(dict.fromkeys([*(METHODS if colour == "method" else ()), *values]))
    look = {v: (_RUNS[order.index(v) % len(_RUNS)], "osv^Pp"[order.index(v) % 6]) for v in values}
    # Panels tell the values of `line` apart already if it is what they are made by.
    apart = (
        []
        if line is None or line in facets
        else list(trained[line].drop_duplicates().sort_values())
    )
    dashes = dict(zip(apart, ("-", "--", ":", "-.") * len(apart), strict=False))
    dashes = dashes if len(apart) > 1 else {}

    for ax, (key, part) in zip(axes.ravel(), panels, strict=False):
        base = part[part["method"] == "baseline"]
        if x == "d1":
            for centre in base["x"].unique():
                ax.axvspan(centre - 0.01, centre + 0.01, color="0.92", lw=0, zorder=0)
        _draw_settings(ax, base, "0.1", "D", size=7)
        part = part[part["method"] != "baseline"]
        for value, (tint, mark) in look.items():
            chosen = part[part[colour] == value]
            if line is not None:
                for which, joined in chosen.groupby(line, sort=False):
                    joined = joined.sort_values("strength")
                    style = dashes.get(which, "-")
                    ax.plot(joined["x"], joined["y"], color=tint, lw=1.2, ls=style, zorder=2)
            _draw_settings(ax, chosen, tint, mark)
        ax.set_title(" · ".join(map(str, key)), fontsize=9)
        ax.tick_params(labelsize=8)
        ax.margins(0.12)
        sns.despine(ax=ax)
    for i, ax in enumerate(axes.ravel()):
        if i >= len(panels):
            ax.axis("off")
            continue
        if i % columns == 0:
            ax.set_ylabel(_TRADEOFF.get(y, y), fontsize=9)
        if i + columns >= len(panels):  # nothing below it that bears the numbers
            ax.set_xlabel(_TRADEOFF.get(x, x), fontsize=9)
            ax.tick_params(labelbottom=True)
    _tradeoff_legend(fig, settings, look, dashes, x, colour, label, line)
    if label is not None:
        fig.draw_without_rendering()  # settles where the axes are
        # Letters are thin: on white they need a darker tint than lines and markers.
        tints = {value: tuple(0.7 * part for part in tint) for value, (tint, _) in look.items()}
        for ax, (_, part) in zip(axes.ravel(), panels, strict=False):
            part = part[part["method"] != "baseline"]
            _write_beside(ax, part, _texts(part[label]), part[colour].map(tints))
    return fig


def _settings(
    table: pd.DataFrame, x: str, y: str, colour: str, label: str | None, line: str | None
) -> pd.DataFrame:
    """A row a setting: its columns, ``x`` and ``y`` with their ranges, n, what was left out."""
    keys = ["model", "layers", "method", "imde_alpha", colour, label, line]
    keys = [k for k in dict.fromkeys(keys) if k in table]
    rows = table.copy()
    if "imde_alpha" in rows:
        # Some write 0 for a baseline and some nothing; both are the same setting.
        rows["imde_alpha"] = (
            rows["imde_alpha"].astype(float).mask(rows["method"] == "baseline", 0.0)
        )
    known = rows[[x, y]].notna().all(axis=1)
    if not known.any():
        raise ValueError(f"No row of the table has both {x!r} and {y!r}.")
    found = []
    for key, part in rows[known].groupby(keys, sort=False, dropna=False):
        if "seed" in part and part["seed"].duplicated().any():
            which = ", ".join(f"{k}={v}" for k, v in zip(keys, key, strict=True))
            raise ValueError(
                f"{which} holds a seed twice: the rows differ in more than their seed. Keep a row "
                f"a training, or name what they differ in as colour, label or line."
            )
        row = dict(zip(keys, key, strict=True), n=len(part))
        for axis, column in (("x", x), ("y", y)):
            values = part[column]
            row |= {axis: values.mean(), axis + "_min": values.min(), axis + "_max": values.max()}
        found.append(row)
    settings = pd.DataFrame(found)
    weight = settings["imde_alpha"] if "imde_alpha" in settings else settings["x"]
    settings["strength"] = weight.abs()
    settings.attrs["left_out"] = int((~known).sum())
    return settings


def _draw_settings(ax: Axes, part: pd.DataFrame, tint, mark: str, size: float = 6) -> None:
    style = dict(color=tint, lw=1.2, alpha=0.7, zorder=2)
    ax.hlines(part["y"], part["x_min"], part["x_max"], **style)
    ax.vlines(part["x"], part["y_min"], part["y_max"], **style)
    ax.plot(part["x"], part["y"], ls="", marker=mark, color=tint, mec="white", ms=size, zorder=3)


def _tradeoff_legend(
    fig: Figure,
    settings: pd.DataFrame,
    look: Mapping,
    dashes: Mapping,
    x: str,
    colour: str,
    label: str | None,
    line: str | None,
) -> None:
    handles, names = [], []
    if (settings["method"] == "baseline").any():
        handles.append(Line2D([], [], ls="", marker="D", color="0.1", mec="white", ms=7))
        names.append(_TRADEOFF["baseline"])
        if x == "d1":
            handles.append(Patch(color="0.9"))
            names.append("δ1 within .01 of the baseline")
    for value, (tint, mark) in look.items():
        handles.append(Line2D([], [], color=tint, lw=1.2, marker=mark, mec="white", ms=6.5))
        handles[-1].set_linestyle("" if line is None else "-")
        names.append(
            _TRADEOFF.get(value, str(value)) if colour == "method" else f"{colour} {value}"
        )
    for value, style in dashes.items():
        handles.append(Line2D([], [], color="0.4", lw=1.2, ls=style))
        names.append(f"{line} {value}")
    few, many = settings["n"].min(), settings["n"].max()
    seeds = f"{few}" if few == many else f"{few}–{many}"
    note = [
        f"Point: mean over {seeds} seeds; bars: their range, smallest to largest."
        if many > 1
        else "One seed a point."
    ]
    if label is not None:
        note.append(f"Number beside a point: {label}.")
    if gone := settings.attrs["left_out"]:
        note.append(f"{gone} training{'s' * (gone > 1)} without a value left out.")
    fig.legend(
        handles,
        names,
        loc="outside upper left",
        ncols=2 if max(map(len, names)) > 22 else 3,
        fontsize=9,
        frameon=False,
        title=" ".join(note),
        title_fontsize=8.5,
        alignment="left",
    )


def _texts(values: pd.Series) -> list[str]:
    numbers = pd.api.types.is_numeric_dtype(values)
    return [f"{v:g}".replace("-", "−") if numbers else str(v) for v in values]


def _write_beside(ax: Axes, part: pd.DataFrame, texts: Sequence[str], tints: Sequence) -> None:
    """Write a text beside each point, where it covers least of points, texts, lines and bars."""
    size, pixel = 8, ax.figure.dpi / 72
    centres = ax.transData.transform(part[["x", "y"]].to_numpy(float))
    # Obstacles are small squares with a cost: markers, and spots along all lines of the panel.
    solid = [(_square(c, 4 * pixel), 10) for c in centres]
    for curve in ax.lines:
        spots = ax.transData.transform(curve.get_xydata())
        if curve.get_linestyle() == "None":
            solid += [(_square(spot, 4 * pixel), 10) for spot in spots]
        else:
            solid += [(_square(spot, pixel), 0.5) for spot in _along(spots, 3 * pixel)]
    for bars in ax.collections:
        for ends in bars.get_segments():
            spots = ax.transData.transform(ends)
            solid += [(_square(spot, pixel), 0.3) for spot in _along(spots, 3 * pixel)]
    angles = np.deg2rad(np.arange(0, 360, 30))
    places = [(r * np.cos(a), r * np.sin(a)) for r in (8, 13, 19) for a in angles]
    for centre, text, tint, (x, y) in zip(
        centres, texts, tints, part[["x", "y"]].to_numpy(float), strict=True
    ):
        # Wide texts stand off by their nearer end, not by their middle.
        half = np.array([0.3 * size * len(text), 0.4 * size]) * pixel

        def box(place, centre=centre, half=half):
            middle = centre + np.array(place) * pixel + half * np.sign(np.round(place)) * (1, 0.3)
            return Bbox([middle - half, middle + half])

        def cost(place):
            here = box(place)
            outside = 0 if ax.bbox.containsx(here.x1) and ax.bbox.containsx(here.x0) else 20
            return (
                outside
                + np.hypot(*place) / 10
                + sum(price for other, price in solid if here.overlaps(other))
            )

        best = box(min(places, key=cost))
        solid.append((best, 10))
        middle = (np.array([best.x0 + best.x1, best.y0 + best.y1]) / 2 - centre) / pixel
        written = ax.annotate(
            text,
            (x, y),
            xytext=middle,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=tint,
            zorder=4,
        )
        written.set_in_layout(False)


def _square(centre, half: float) -> Bbox:
    return Bbox([np.asarray(centre) - half, np.asarray(centre) + half])


def _along(spots: np.ndarray, step: float) -> np.ndarray:
    """Spots at most ``step`` apart on the line through ``spots``."""
    parts = [spots[:1]]
    for start, end in zip(spots[:-1], spots[1:], strict=True):
        count = max(1, math.ceil(np.hypot(*(end - start)) / step))
        parts.append(start + (end - start) * np.linspace(0, 1, count + 1)[1:, None])
    return np.concatenate(parts)


# ------------------------------------------------------------------ helpers


def _grid(rows: int, columns: int, width: float, aspect: float, **options):
    """Figure and a (rows, columns) array of axes, each ``aspect`` times as high as wide."""
    height = rows * (width / columns) * aspect + 0.5
    fig, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )
    return fig, axes


def _shape(number: int, most: int) -> tuple[int, int]:
    """Rows and columns of a grid of panels, as even as can be."""
    rows = math.ceil(number / most)
    return rows, math.ceil(number / rows)


def _legend_shape(names: Sequence[str], width: float) -> tuple[int, int]:
    """Columns and lines of a legend in one figure of so many inches."""
    each = 0.5 + 0.075 * max(map(len, names))
    columns = max(1, min(len(names), int(width / each)))
    return columns, math.ceil(len(names) / columns)


def _bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def _metres(ax: Axes, bins: DepthBins, few: bool = False) -> None:
    """Label an axis of bin numbers with the depths where they end."""
    candidates = (1, 3, 10) if few else (0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    if bins.edges[-1] > 20:
        candidates = (3, 10, 80) if few else (3, 4, 6, 10, 15, 20, 30, 40, 60, 80)
    places = np.interp(candidates, bins.edges.numpy(), np.arange(len(bins) + 1) - 0.5)
    ax.set_xticks(places, [f"{c:g}" for c in candidates], fontsize=7 if few else None)
    ax.set_xlabel("depth [m]", fontsize=7 if few else None)


def _mean_error(pred: Tensor, depth: Tensor) -> float:
    pred = nn.functional.interpolate(
        pred[None], depth.shape[-2:], mode="bilinear", align_corners=False
    )[0]
    return (pred - depth).abs()[depth > 0].mean().item()


def _provenance(dissection: Dissection) -> str:
    return (
        f"{dissection.about.get('dataset', 'data')}, {dissection.images} images, "
        f"definition “{dissection.definition}”"
    )
