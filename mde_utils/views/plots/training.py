"""How runs went, and what they came to beside each other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from .style import GREY, NETWORKS, WIDTH, colours, grid, key, styled

_ACCURACY, _UNITS = "Accuracy", "Depth bins and units"
_SELECTIVITY = "Depth selectivity of the watched layers"
_RATIO = "gradient ratio,\nselectivity ÷ depth"
_TRAINING = {"ls": "--", "mfc": "white"}
METHODS = {  # marker, side of the point on which its weight is written, in words
    "baseline": ("D", 0, "baseline (no selectivity term)"),
    "assign": ("o", 1, "assign (each unit is given a bin)"),
    "reg": ("s", -1, "reg (each unit's own best bin)"),
}


@styled
def plot_training(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """How runs went: accuracy, selectivity of the layers, and the bins and units behind it.

    Args:
        histories: name of the run → its history as of `training.fit`, a row an epoch. A panel whose
            columns no run has is left out.
    """
    runs = {
        name: frame.set_index("epoch").replace([np.inf, -np.inf], np.nan)
        for name, frame in histories.items()
        if len(frame)
    }
    filled = {c for frame in runs.values() for c in frame.dropna(axis="columns", how="all")}
    curves, marks = _curves(filled)
    if curves.empty:
        fig = plt.figure(figsize=(WIDTH, 1.5))
        fig.text(0.5, 0.5, "nothing to draw" if runs else "no epoch finished yet", ha="center")
        return fig
    palette = colours(histories)
    sections = list(curves.groupby("section", sort=False))
    heights = [0.35 + 1.75 * -(-part["panel"].nunique() // 4) for _, part in sections]
    abreast = max(1, 120 // (7 + max(map(len, histories))))  # names in a line of the legend
    fig = plt.figure(figsize=(WIDTH, sum(heights) + 0.2 * -(-len(histories) // abreast)))
    names = [key(name, color=colour, lw=2) for name, colour in palette.items()]
    fig.legend(handles=names, loc="outside upper left", ncols=abreast)
    same = "ratio 1: equally strong gradients (of a run without the term: what they would be)"
    keys = {
        _ACCURACY: [key(same, color=GREY, lw=0.8)] if "gradient_ratio" in filled else [],
        _SELECTIVITY: [key("validation", marker="o"), key("training", marker="o", **_TRAINING)],
        _UNITS: [key(layer, ls="", marker=mark) for layer, mark in marks.items()],
    }
    parts = fig.subfigures(len(sections), 1, height_ratios=heights, squeeze=False).ravel()
    for fig_part, (heading, part) in zip(parts, sections, strict=True):
        fig_part.suptitle(heading, x=0.01, ha="left", fontweight="bold")
        if handles := keys[heading]:
            where = {"loc": "outside upper right", "ncols": len(handles), "handlelength": 2.8}
            fig_part.legend(handles=handles, **where)
        panels = list(part.groupby("panel", sort=False))
        shape = -(-len(panels) // 4), min(4, len(panels))
        axes = fig_part.subplots(*shape, sharey=heading == _SELECTIVITY, squeeze=False).ravel()
        for ax, (title, inside) in zip(axes, panels, strict=False):
            _panel(ax, runs, inside, palette)
            ax.set_title(title)
        for ax in axes[len(panels) :]:
            ax.remove()
    return fig


def _panel(ax: Axes, runs: Mapping[str, pd.DataFrame], inside: pd.DataFrame, palette) -> None:
    """The curves of one panel, of all runs."""
    (title,), (heading,) = inside["panel"].unique(), inside["section"].unique()
    for name, frame in runs.items():
        for column, look in zip(inside["column"], inside["look"], strict=True):
            if column in frame:
                shown = frame[column].dropna()
                if title == _RATIO:  # on a logarithmic axis
                    shown = shown[shown > 0]
                look = {"marker": "o", "markevery": max(1, len(shown) // 6), **look}
                ax.plot(shown.index, shown, color=palette[name], **look)
    ax.set_xlabel("epoch", labelpad=1)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if title == _RATIO:
        ax.axhline(1, color=GREY, lw=0.8, zorder=0)
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter("{x:g}")
    if title == _RATIO or heading == _UNITS:
        low, high = ax.get_ylim()
        least, most = (0.08, 12) if title == _RATIO else (-0.05, 1.05)
        # The margin of a curve far above is that of its own small range.
        high = high if title == _RATIO else 1.06 * high
        ax.set_ylim(min(low, least), max(high, most))


def _curves(filled: Collection[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What to draw of the columns that have values, a row a curve, and a marker a layer."""
    layers = sorted({c.split("_selectivity_")[1] for c in filled if "_selectivity_" in c})
    marks = dict(zip(layers, cycle("os^Dvp*X"), strict=False))
    curves = [
        (_ACCURACY, "depth loss,\ntraining", "depth_loss", {}),
        (_ACCURACY, "δ1,\nvalidation", "val_d1", {}),
        (_ACCURACY, "RMS [m],\nvalidation", "val_rms", {}),
        (_ACCURACY, "photometric error,\nvalidation", "val_photometric", {}),
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


@styled
def plot_tradeoff(table: pd.DataFrame) -> Figure:
    """What selectivity costs in accuracy: a point a setting, its `imde_alpha` beside it.

    Points are means over seeds, bars reach from the smallest to the largest; the weights of a
    method are joined. A panel a set of layers (and a model, where there are several).

    Args:
        table: a row a training, with `layers`, `method` (`"baseline"`, `"assign"` or `"reg"`),
            `imde_alpha` (of a baseline it does not matter), `seed`, `d1`, `selectivity` and perhaps
            `model`. Rows without δ1 or selectivity are left out.
    """
    points, facets = _settings(table)
    panels = list(points.groupby(facets, sort=False))
    rows, columns = -(-len(panels) // 3), min(3, len(panels))
    fig, axes = grid(rows, columns, WIDTH if columns > 1 else 5.5, 1, sharex=True, sharey=True)
    keys = {}
    for ax, (names, part) in zip(axes.flat, panels, strict=False):
        for method, p in part.groupby("method", sort=False):
            _method(ax, method, p.sort_values("imde_alpha", ascending=False), keys)
        ax.set_title(" · ".join(map(str, names)))
        ax.tick_params(labelbottom=True)
        ax.margins(0.12)
    for ax in axes.flat[len(panels) :]:
        ax.remove()
    fig.supxlabel("δ1 on the test images", fontsize="medium")
    for ax in axes[:, 0]:
        ax.set_ylabel("test selectivity of the layers")
    few, many = points["seeds"].min(), points["seeds"].max()
    seeds = few if few == many else f"{few}–{many}"
    title = f"Mean over seeds ({seeds}); bars: smallest to largest; number: imde_alpha."
    look = {"loc": "outside upper left", "ncols": 2, "title": title, "alignment": "left"}
    fig.legend(keys.values(), keys.keys(), **look)
    return fig


def _settings(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """A row a setting, with mean, least and most over its seeds, and the columns of a panel."""
    needed = ["layers", "method", "imde_alpha", "seed", "d1", "selectivity"]
    if missing := [c for c in needed if c not in table]:
        raise ValueError(f"The table lacks {', '.join(missing)}.")
    table = table.dropna(subset=["d1", "selectivity"])
    baseline = table["method"] == "baseline"
    table = table.assign(imde_alpha=table["imde_alpha"].astype(float).mask(baseline, 0))
    several = "model" in table and table["model"].nunique() > 1
    facets = ["model", "layers"] if several else ["layers"]
    setting = [*facets, "method", "imde_alpha"]
    twice = table.loc[table.duplicated([*setting, "seed"]), [*setting, "seed"]]
    if len(twice):
        raise ValueError(f"A setting holds a seed twice: {twice.iloc[0].to_dict()}.")
    points = table.groupby(setting, sort=False, dropna=False, as_index=False).agg(
        seeds=("seed", "size"),
        **{f"x{k}": ("d1", k) for k in ("mean", "min", "max")},
        **{f"y{k}": ("selectivity", k) for k in ("mean", "min", "max")},
    )
    return points, facets


def _method(ax: Axes, method: str, points: pd.DataFrame, keys: dict) -> None:
    """The settings of a method, joined by their weights; adds what a legend needs to `keys`."""
    p, colour, (marker, side, words) = points, NETWORKS[method], METHODS[method]
    ax.hlines(p.ymean, p.xmin, p.xmax, color=colour, lw=1.2, alpha=0.7)
    ax.vlines(p.xmean, p.ymin, p.ymax, color=colour, lw=1.2, alpha=0.7)
    look = {"color": colour, "mec": "white", "ms": 6, "lw": 1.2, "ls": "-" if side else ""}
    (keys[words],) = ax.plot(p.xmean, p.ymean, marker=marker, **look)
    if method == "baseline":
        d1 = p.xmean.item()
        band = ax.axvspan(d1 - 0.01, d1 + 0.01, color="0.92", lw=0, zorder=0)
        keys["δ1 within .01 of the baseline"] = band
        return
    words = {
        "xytext": (5 * side, side),
        "textcoords": "offset points",
        "ha": "left" if side > 0 else "right",
        "va": "bottom" if side > 0 else "top",
        "color": np.multiply(to_rgb(colour), 0.7),
        "path_effects": [withStroke(linewidth=3, foreground="white")],
    }
    for x, y, weight in zip(p.xmean, p.ymean, p.imde_alpha, strict=True):
        ax.annotate(f"{weight:g}".replace("-", "−"), (x, y), **words)


@styled
def plot_published(table: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """What the loss does to networks: published (hollow) beside measured (filled, with its range).

    A row a network and layers, a panel a metric.

    Args:
        table: rows of `paper.comparison`, of one table or more.
        metrics: metric → its name in words.
    """
    table = table[table["metric"].isin(list(metrics)) & table["method"].isin(list(METHODS))]
    if not len(table):
        raise ValueError(f"The table holds none of {', '.join(metrics)}.")
    # A published number stands in a row of its own, above the runs that measured the same.
    own = ["model", "layers", "dataset"]
    published = table.dropna(subset="published").drop_duplicates([*own, "method", "metric"])
    published = published.assign(value=published["published"], group="", size="published")
    measured = table.dropna(subset="mean").rename(columns={"mean": "value"})
    points = pd.concat([frame for frame in (published, measured) if len(frame)])
    row = [*own, "group", "size"]
    points[row] = points[row].astype(object).fillna("")
    ranks = {model: rank for rank, model in enumerate(points["model"].unique())}
    rows = sorted(points.groupby(row, sort=False).groups, key=lambda names: ranks[names[0]])
    points["row"] = [rows.index(names) for names in points[row].itertuples(index=False, name=None)]
    fig, axes = plt.subplots(
        1, len(metrics), figsize=(WIDTH, 0.42 * len(rows) + 1.5), squeeze=False, sharey=True
    )
    keys = {}
    for ax, (metric, words) in zip(axes[0], metrics.items(), strict=True):
        for point in points[points["metric"] == metric].itertuples():
            colour, (marker, _, name) = NETWORKS[point.method], METHODS[point.method]
            at = point.row + 0.2 * (["baseline", "reg", "assign"].index(point.method) - 1)
            hollow = point.size == "published"
            if not hollow:
                ax.hlines(at, point.low, point.high, color=colour, lw=2, alpha=0.6)
            style = {"marker": marker, "mfc": "white" if hollow else colour, "mec": colour}
            ax.plot(point.value, at, ls="", ms=5, mew=1.3, **style)
            keys.setdefault(name, key(name, **style | {"mfc": colour}, ls=""))
        if "selectivity" in metric:
            ax.axvline(1 / 3, color=GREY, lw=1, ls="--", zorder=0)
            keys["units with random responses"] = key("units with random responses", ls="--")
        ax.set_xlabel(words)
        ax.grid(axis="y")
        ax.spines.left.set_visible(False)
    labels = [" · ".join(filter(None, (m, la, d, size))) for m, la, d, _, size in rows]
    axes[0, 0].set_yticks(range(len(rows)), labels)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    title = "Hollow: published. Filled: measured, mean over seeds; bars: smallest to largest."
    look = {"loc": "outside upper left", "ncols": 2, "title": title, "alignment": "left"}
    fig.legend(handles=keys.values(), **look)
    return fig
