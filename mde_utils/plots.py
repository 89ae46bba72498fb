"""Pictures. Every function draws one figure and returns it; none reads or changes anything else.

Depth is drawn in metres on one map (viridis: dark = near), responses on another (magma), both
perceptually uniform; two networks are told apart by colours that all eyes can tell apart.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mde_utils.activations import evaluating, tap
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection
from mde_utils.selectivity import assigned_bins

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

_ACCURACY, _UNITS = "Accuracy", "Depth bins and units"
_SELECTIVITY = "Depth selectivity of the watched layers"
_RATIO = "gradient ratio,\nselectivity ÷ depth"
_TRAINING = {"ls": "--", "mfc": "white"}


def plot_training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """How runs went: accuracy, selectivity of the layers, and the bins and units behind it.

    Args:
        histories: name of the run → its history as of :func:`~mde_utils.training.fit`, a row an
            epoch. A panel whose columns no run has is left out.
    """
    runs = {
        name: frame.set_index("epoch").replace([np.inf, -np.inf], np.nan)
        for name, frame in histories.items()
        if len(frame)
    }
    filled = {c for frame in runs.values() for c in frame.dropna(axis="columns", how="all")}
    curves, marks = _curves(filled)
    if curves.empty:
        fig = plt.figure(figsize=(9, 1.5))
        fig.text(0.5, 0.5, "nothing to draw" if runs else "no epoch finished yet", ha="center")
        return fig

    colours = dict(zip(histories, cycle(_RUNS), strict=False))
    sections = list(curves.groupby("section", sort=False))
    rows = [-(-part["panel"].nunique() // 4) for _, part in sections]
    heights = [0.35 + 1.75 * n for n in rows]
    abreast = max(1, 120 // (7 + max(map(len, histories))))  # names in a line of the legend
    height = sum(heights) + 0.2 * -(-len(histories) // abreast)
    fig = plt.figure(figsize=(9, height), layout="constrained")
    fig.legend(
        handles=[_key(name, color=colour, lw=2) for name, colour in colours.items()],
        loc="outside upper left",
        ncols=abreast,
        fontsize=9,
        frameon=False,
    )
    same = "ratio 1: equally strong gradients (of a run without the term: what they would be)"
    keys = {
        _ACCURACY: [_key(same, color=_GREY, lw=0.8)] if "gradient_ratio" in filled else [],
        _SELECTIVITY: [_key("validation", marker="o"), _key("training", marker="o", **_TRAINING)],
        _UNITS: [_key(layer, ls="", marker=mark) for layer, mark in marks.items()],
    }
    parts = fig.subfigures(len(sections), 1, height_ratios=heights, squeeze=False).ravel()
    for fig_part, n, (heading, part) in zip(parts, rows, sections, strict=True):
        fig_part.suptitle(heading, x=0.01, ha="left", fontsize=10, fontweight="bold")
        if keys[heading]:
            fig_part.legend(
                handles=keys[heading],
                loc="outside upper right",
                ncols=len(keys[heading]),
                fontsize=8,
                frameon=False,
                handlelength=2.8,
            )
        panels = list(part.groupby("panel", sort=False))
        shape = n, min(4, len(panels))
        axes = fig_part.subplots(*shape, sharey=heading == _SELECTIVITY, squeeze=False).ravel()
        for ax, (title, inside) in zip(axes, panels, strict=False):
            for name, frame in runs.items():
                for column, look in zip(inside["column"], inside["look"], strict=True):
                    if column in frame:
                        shown = frame[column].dropna()
                        look = {"marker": "o", "ms": 4, "lw": 1.4, **look}
                        look["markevery"] = max(1, len(shown) // 6)
                        ax.plot(shown.index, shown, color=colours[name], **look)
            ax.set_title(title, fontsize=9)
            ax.set_xlabel("epoch", fontsize=8, labelpad=1)
            ax.tick_params(labelsize=8)
            ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
            sns.despine(ax=ax)
            if title == _RATIO:
                ax.axhline(1, color=_GREY, lw=0.8, zorder=0)
                ax.set_yscale("log")
                ax.yaxis.set_major_formatter("{x:g}")
            if title == _RATIO or heading == _UNITS:
                low, high = ax.get_ylim()
                least, most = (0.08, 12) if title == _RATIO else (-0.05, 1.05)
                ax.set_ylim(min(low, least), max(high, most))
        for ax in axes[len(panels) :]:
            ax.remove()
    return fig


def _curves(filled: Collection[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What to draw of the columns that have values, a row a curve, and a marker a layer."""
    layers = sorted({c.split("_selectivity_")[1] for c in filled if "_selectivity_" in c})
    marks = dict(zip(layers, cycle("os^Dvp*X"), strict=False))
    curves = [
        (_ACCURACY, "depth loss,\ntraining", "depth_loss", {}),
        (_ACCURACY, "δ1,\nvalidation", "val_d1", {}),
        (_ACCURACY, "RMS [m],\nvalidation", "val_rms", {}),
        (_ACCURACY, _RATIO, "gradient_ratio", {}),
    ]
    for layer, mark in marks.items():
        look = {"marker": mark}
        absent = "units whose bin the batch\nlacks (mean of batches)"
        collapsed = "units without response\n(collapsed), "
        curves += [
            (_SELECTIVITY, layer, f"val_selectivity_{layer}", {}),
            (_SELECTIVITY, layer, f"train_selectivity_{layer}", _TRAINING),
            (_UNITS, "share of depth bins\nin a batch", f"train_coverage_{layer}", look),
            (_UNITS, absent, f"train_absent_{layer}", look),
            (_UNITS, collapsed + "training", f"train_collapsed_{layer}", look),
            (_UNITS, collapsed + "validation", f"val_collapsed_{layer}", look),
        ]
    curves = pd.DataFrame(curves, columns=["section", "panel", "column", "look"])
    return curves[curves["column"].isin(filled)], marks


def _key(text: str, **style) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=text, **{"color": "0.35", "lw": 1.4, "ms": 5, **style})


# ------------------------------------------------------------------ many trainings

_METHODS = {  # colour, look, side of the point on which its weight is written, in words
    "baseline": ("0.1", "D", 0, "baseline (no selectivity term)"),
    "assign": (PALETTE[0], "o-", 1, "assign (each unit is given a bin)"),
    "reg": (PALETTE[1], "s-", -1, "reg (each unit's own best bin)"),
}


def plot_tradeoff(table: pd.DataFrame) -> Figure:
    """What selectivity costs in accuracy: a point a setting, its ``imde_alpha`` beside it.

    Points are means over seeds, bars reach from the smallest to the largest; the weights of a
    method are joined. A panel a set of layers (and a model, where there are several).

    Args:
        table: a row a training, with ``layers``, ``method`` (``"baseline"``, ``"assign"`` or
            ``"reg"``), ``imde_alpha`` (of a baseline it does not matter), ``seed``, ``d1``,
            ``selectivity`` and perhaps ``model``. Rows without δ1 or selectivity are left out.

    Raises:
        ValueError: columns are missing, or a setting holds a seed twice.
    """
    needed = ["layers", "method", "imde_alpha", "seed", "d1", "selectivity"]
    if missing := [c for c in needed if c not in table]:
        raise ValueError(f"The table lacks {', '.join(missing)}.")
    table = table.dropna(subset=["d1", "selectivity"])
    baseline = table["method"] == "baseline"
    table = table.assign(imde_alpha=table["imde_alpha"].astype(float).mask(baseline, 0))
    facets = ["layers"]
    if "model" in table and table["model"].nunique() > 1:
        facets = ["model", "layers"]
    setting = [*facets, "method", "imde_alpha"]
    twice = table.loc[table.duplicated([*setting, "seed"]), [*setting, "seed"]]
    if len(twice):
        raise ValueError(f"A setting holds a seed twice: {twice.iloc[0].to_dict()}.")
    points = table.groupby(setting, sort=False, dropna=False, as_index=False).agg(
        seeds=("seed", "size"),
        **{f"x{k}": ("d1", k) for k in ("mean", "min", "max")},
        **{f"y{k}": ("selectivity", k) for k in ("mean", "min", "max")},
    )
    panels = list(points.groupby(facets, sort=False))
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    fig, axes = _grid(rows, columns, 9 if columns > 1 else 5.5, 1, sharex=True, sharey=True)
    keys = {}
    for ax, (names, part) in zip(axes.flat, panels, strict=False):
        for method, p in part.groupby("method", sort=False):
            colour, look, side, words = _METHODS[method]
            p = p.sort_values("imde_alpha", ascending=False)
            ax.hlines(p.ymean, p.xmin, p.xmax, color=colour, lw=1.2, alpha=0.7)
            ax.vlines(p.xmean, p.ymin, p.ymax, color=colour, lw=1.2, alpha=0.7)
            (keys[words],) = ax.plot(p.xmean, p.ymean, look, color=colour, mec="white", lw=1.2)
            if method == "baseline":
                d1 = p.xmean.item()
                band = ax.axvspan(d1 - 0.01, d1 + 0.01, color="0.92", lw=0, zorder=0)
                keys["δ1 within .01 of the baseline"] = band
                continue
            for x, y, weight in zip(p.xmean, p.ymean, p.imde_alpha, strict=True):
                ax.annotate(
                    f"{weight:g}".replace("-", "−"),
                    (x, y),
                    xytext=(5 * side, side),
                    textcoords="offset points",
                    ha="left" if side > 0 else "right",
                    va="bottom" if side > 0 else "top",
                    fontsize=8,
                    color=np.multiply(colour, 0.7),
                    path_effects=[withStroke(linewidth=3, foreground="white")],
                )
        ax.set_title(" · ".join(map(str, names)), fontsize=9)
        ax.tick_params(labelsize=8, labelbottom=True)
        ax.margins(0.12)
        sns.despine(ax=ax)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    fig.supxlabel("δ1 on the test images", fontsize=9)
    for ax in axes[:, 0]:
        ax.set_ylabel("test selectivity of the layers", fontsize=9)
    few, many = points["seeds"].min(), points["seeds"].max()
    seeds = few if few == many else f"{few}–{many}"
    fig.legend(
        keys.values(),
        keys.keys(),
        loc="outside upper left",
        ncols=2,
        fontsize=9,
        frameon=False,
        title=f"Mean over seeds ({seeds}); bars: smallest to largest; number: imde_alpha.",
        title_fontsize=8.5,
        alignment="left",
    )
    return fig


# ------------------------------------------------------------------ helpers


def _grid(rows: int, columns: int, width: float, aspect: float, **options):
    """Figure and a (rows, columns) array of axes, each ``aspect`` times as high as wide."""
    height = rows * (width / columns) * aspect + 0.5
    fig, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )
    return fig, axes


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
