"""What all figures share: the style sheet, colours, axes in metres, entries of legends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection

SHEET = Path(__file__).with_name("mde.mplstyle")
WIDTH = 8.5  # inches of the widest figure: a page shows it without making its type smaller

DEPTH, RESPONSE, ERROR, CHANGE = "viridis", "magma", "rocket_r", "vlag"
PALETTE = sns.color_palette("colorblind")
GREY = "0.6"
ASSIGNED = PALETTE[3]  # a unit's assigned bin, wherever it is drawn
# Networks and runs, told apart by all eyes: those of the paper always in the same colour, others in
# the order of the rest.
NETWORKS = {"baseline": "#7d8fab", "assign": PALETTE[2], "reg": PALETTE[1]}
OTHERS = [PALETTE[i] for i in (0, 4, 9, 5, 7, 6)]
EDITS = {
    "zero": "switched off",
    "factor": "times {:g}",
    "mean": "at the mean response",
    "corrected": "at the mean response to the true depth",
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """`draw` under the style sheet, whatever the user's own; theirs stays as it is."""

    @wraps(draw)
    def drawn(*args, **kwargs) -> Figure:
        with plt.style.context(["default", SHEET]):
            figure = draw(*args, **kwargs)
            for ax in figure.findobj(Axes):
                # Ticks are made when a figure is shown, under the user's style again.
                for name in ("xtick", "ytick"):
                    ax.tick_params(name[0], labelsize=plt.rcParams[f"{name}.labelsize"])
            interactive = plt.isinteractive()
        # A kernel's first figure starts its backend, which turns this on: without it a notebook
        # would show no further figure.
        plt.rcParams["interactive"] = interactive
        return figure

    return drawn


def colours(names: Iterable[str]) -> dict[str, object]:
    """Name → colour; a name that holds that of a network of the paper has its colour."""
    known = {**NETWORKS, "selective": NETWORKS["assign"], "random": "0.45"}
    found, rest = {}, cycle(OTHERS)
    for name in names:
        own = next((colour for word, colour in known.items() if word in str(name)), None)
        found[name] = next(rest) if own is None or own in found.values() else own
    return found


def grid(rows: int, columns: int, width: float, aspect: float, *, words: float = 0.5, **options):
    """Figure and a (rows, columns) array of axes, each `aspect` times as high as wide; `words`:
    inches for titles and labels."""
    height = rows * (width / columns) * aspect + words
    return plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **options)


def bare(ax: Axes) -> None:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def titles(axes: Iterable[Axes], words: Iterable[str]) -> None:
    for ax, title in zip(axes, words, strict=True):
        ax.set_title(title)


def key(text: str, **style) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], label=text, **{"color": "0.35", "ms": 5, **style})


def depth_axis(ax: Axes, bins: DepthBins, few: bool = False) -> None:
    """Label an axis of bin numbers with depths, where they lie among the bins' edges."""
    edges = bins.edges.numpy()
    near = edges[1]  # the first bin begins at the camera
    round_ones = [m * 10.0**e for e in range(-3, 5) for m in (1, 1.5, 2, 3, 4, 6, 8)]
    inside = [c for c in round_ones if near <= c <= edges[-1]]
    if len(inside) < 2:
        inside = [float(near), float(edges[-1])]
    if few and len(inside) > 3:
        inside = [inside[0], inside[len(inside) // 2], inside[-1]]
    places = np.interp(inside, edges, np.arange(len(edges)) - 0.5)
    ax.set_xticks(places, [f"{c:.3g}" for c in inside])
    ax.set_xlabel("depth [m]")


def farthest(*maps: Tensor) -> float:
    """The largest finite depth of maps in metres; 1 where there is none."""
    tops = [m[m.isfinite()].max().item() for m in maps if m.isfinite().any()]
    return max(tops, default=0) or 1.0


def provenance(dissection: Dissection) -> str:
    return (
        f"{dissection.about.get('dataset', 'data')}, {dissection.images} images, "
        f"definition “{dissection.definition}”"
    )
