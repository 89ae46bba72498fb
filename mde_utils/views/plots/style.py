"""What all figures share: colours, axes in metres, keys of legends."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection

DEPTH, RESPONSE, ERROR, CHANGE = "viridis", "magma", "rocket_r", "vlag"
PALETTE = sns.color_palette("colorblind")
GREY = "0.6"
# Runs beside each other: those of the palette first that differ most, to all eyes.
RUNS = [PALETTE[i] for i in (0, 1, 2, 4, 9, 3, 5, 7)]


def key(text: str, **style) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=text, **{"color": "0.35", "lw": 1.4, "ms": 5, **style})


METHODS = {  # colour, look, side of the point on which its weight is written, in words
    "baseline": ("0.1", "D", 0, "baseline (no selectivity term)"),
    "assign": (PALETTE[0], "o-", 1, "assign (each unit is given a bin)"),
    "reg": (PALETTE[1], "s-", -1, "reg (each unit's own best bin)"),
}
METRICS = {"d1": "δ1", "d2": "δ2", "d3": "δ3", "rms": "RMS", "rel": "REL", "rms_log": "RMS log"}
EDITS = {
    "off": "switched off",
    "scale": "times {:g}",
    "mean": "at the mean response",
    "correct": "at the mean response to the true depth",
}


def grid(rows: int, columns: int, width: float, aspect: float, **options):
    """Figure and a (rows, columns) array of axes, each ``aspect`` times as high as wide."""
    height = rows * (width / columns) * aspect + 0.5
    fig, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
    )
    return fig, axes


def bare(ax: Axes) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(False)


def depth_axis(ax: Axes, bins: DepthBins, few: bool = False) -> None:
    """Label an axis of bin numbers with the depths where they end."""
    candidates = (1, 3, 10) if few else (0.75, 1, 1.5, 2, 3, 4, 5, 6, 8, 10)
    if bins.edges[-1] > 20:
        candidates = (3, 10, 80) if few else (3, 4, 6, 10, 15, 20, 30, 40, 60, 80)
    places = np.interp(candidates, bins.edges.numpy(), np.arange(len(bins) + 1) - 0.5)
    ax.set_xticks(places, [f"{c:g}" for c in candidates], fontsize=7 if few else None)
    ax.set_xlabel("depth [m]", fontsize=7 if few else None)


def provenance(dissection: Dissection) -> str:
    return (
        f"{dissection.about.get('dataset', 'data')}, {dissection.images} images, "
        f"definition “{dissection.definition}”"
    )
