"""Networks that are given sparse depth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mde_utils.activations import tap
from mde_utils.dissection import Dissection
from mde_utils.passes import predict

from .pictures import show_depth, show_difference, show_image, show_map
from .style import GREY, PALETTE, WIDTH, colours, farthest, grid, key, styled

_MARKS = (("o", "-", "1.02"), ("s", "--", "1.05"), ("^", ":", "1.10"), ("D", "-.", "1.25"))
_UNITS = 4  # of `plot_sparse_point`


@styled
def plot_completion(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame], *, trained: int | None = None
) -> Figure:
    """How metrics fall with the number of sparse samples (`completion_curve`): δ, RMS and REL.

    Args:
        curves: one, or name → curve, of the same numbers: a colour each.
        trained: the number of samples in training, to be marked.
    """
    curves = {"": curves} if isinstance(curves, pd.DataFrame) else curves
    palette = colours(curves)
    panels = {
        "δ below a threshold [%]": ("d1.02", "d1.05", "d1.10", "d1"),
        "RMS [m]": ("rms",),
        "REL [%]": ("rel",),
    }
    fig, axes = plt.subplots(1, 3, figsize=(WIDTH, 3.2))
    for ax, (title, metrics) in zip(axes, panels.items(), strict=True):
        for name, curve in curves.items():
            places, numbers = np.arange(len(curve)), curve["samples"].tolist()
            for metric, (marker, dash, _) in zip(metrics, _MARKS, strict=False):
                values = curve[metric] * (1 if metric == "rms" else 100)
                ax.plot(places, values, marker=marker, ls=dash, color=palette[name])
        ax.set_xticks(places, numbers)
        if trained is not None:
            ax.axvline(np.interp(trained, numbers, places), color=GREY, lw=1, ls=":", zorder=0)
        ax.set(title=title, xlabel="sparse samples in an image")
        ax.grid(axis="y")
    for ax in axes[1:]:
        ax.set_ylim(bottom=0)
    keys = [key(f"δ < {limit}", marker=m, ls=d, color="0.3") for m, d, limit in _MARKS]
    if trained is not None:
        keys.append(key(f"trained with {trained}", color=GREY, lw=1, ls=":"))
    keys += [key(name, color=colour, lw=3) for name, colour in palette.items() if name]
    fig.legend(handles=keys, loc="outside lower center", ncols=5)
    return fig


@styled
def plot_sparse_point(
    model: nn.Module,
    item: Mapping,
    dissection: Dissection,
    layer: str,
    *,
    point: tuple[int, int] | None = None,
    offset: float = 0.0,
) -> Figure:
    """What one sparse measurement does to depth and to the units that answer to its depth.

    Rows: without the point, with it, and the difference; columns: the image and its depth, the
    predicted depth, and the units whose best bin is nearest to the point's depth, the more
    selective first. All other measurements stay.

    Args:
        item: with `sparse_depth`.
        dissection: of `model`; says which units answer to which depth.
        point: (row, column) of a measurement; None = the one that the network, seeing the image
            alone, is farthest from.
        offset: metres added to the measurement: what if it lied?
    """
    sparse = item["sparse_depth"]
    point = _farthest_off(model, item) if point is None else point
    row, column = point
    inside = 0 <= row < sparse.shape[1] and 0 <= column < sparse.shape[2]
    measured = sparse[0, row, column].item() if inside else 0.0
    if not measured > 0:
        at = (sparse[0] > 0).nonzero()[:5].tolist()
        raise ValueError(f"No measurement at {point}. There are some at {at}.")
    depths, maps = [], []
    for value in (0.0, measured + offset):
        given = sparse.clone()
        given[0, row, column] = value
        with tap(model, [layer]) as acts:
            depths.append(predict(model, {**item, "sparse_depth": given}))
            maps.append(acts[layer][0].float().cpu())
    target = dissection.bins[layer].discretize(torch.tensor([measured + offset])).item()
    units = dissection.to_frame().query("layer == @layer")
    units = units.assign(away=(units["best_bin"] - target).abs())
    units = units.sort_values(["away", "selectivity"], ascending=[True, False]).head(_UNITS)

    h, w = sparse.shape[-2:]
    fig, axes = grid(3, 2 + len(units), WIDTH, max(h / w, 0.4), words=1.4)
    _depths(axes[:, :2], item, depths)
    for column_axes, unit in zip(axes[:, 2:].T, units.itertuples(), strict=True):
        _responses(column_axes, unit, *(m[unit.unit] for m in maps))
    for ax in (ax for ax in axes.flat if ax.images):
        size = ax.images[0].get_size()
        y, x = ((n + 0.5) * m / of - 0.5 for n, m, of in zip(point, size, (h, w), strict=True))
        ax.plot(x, y, "o", ms=9, mfc="none", mec=PALETTE[3], mew=1.4)
    words = f" moved by {offset:+g} m to {measured + offset:.2f} m" if offset else ""
    others = int((sparse > 0).sum()) - 1
    fig.suptitle(
        f"One measurement of {measured:.2f} m{words}, {others} others stay · {layer}, "
        "each unit on its own scale"
    )
    return fig


def _farthest_off(model: nn.Module, item: Mapping) -> tuple[int, int]:
    """The measurement that the network, seeing the image alone, is farthest from."""
    sparse = item["sparse_depth"]
    if not (sparse > 0).any():
        raise ValueError("The item's sparse_depth holds no measurement.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no measurement
        alone = predict(model, {**item, "sparse_depth": torch.zeros_like(sparse)})
    gap = torch.where(sparse > 0, (alone - sparse).abs(), -1.0)[0]
    return tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))


def _depths(axes: np.ndarray, item: Mapping, depths: list[Tensor]) -> None:
    """The first two columns: the image and its depth, what is predicted, and the bars of both."""
    show_image(axes[0, 0], item["image"])
    ys, xs = (item["sparse_depth"][0] > 0).nonzero().T.tolist()
    axes[0, 0].scatter(xs, ys, 3, "w", linewidths=0)
    top = farthest(item["depth"], *depths)
    shown = show_depth(axes[1, 0], item["depth"], vmax=top)
    for ax, depth in zip(axes[:, 1], depths, strict=False):
        show_depth(ax, depth, vmax=top)
    change = show_difference(axes[2, 1], (depths[1] - depths[0])[0])
    axes[2, 0].set_axis_off()
    for mappable, label, y in ((shown, "depth [m]", 0.85), (change, "change of depth [m]", 0.2)):
        place = axes[2, 0].inset_axes([0.0, y, 0.75, 0.12])
        options = {"orientation": "horizontal", "label": label, "ticks": MaxNLocator(2)}
        axes[0, 0].figure.colorbar(mappable, cax=place, **options)
    axes[0, 0].set_title("image,\nsparse samples")
    axes[1, 0].set_title("ground truth")
    axes[0, 1].set_title("predicted depth")
    for ax, words in zip(axes[:, 1], ("without\nthe point", "with it", "difference"), strict=True):
        ax.set_ylabel(words, rotation=0, ha="right", va="center")


def _responses(axes: np.ndarray, unit, before: Tensor, after: Tensor) -> None:
    """The column of one unit."""
    top = torch.stack([before, after]).abs().quantile(0.99).item() or 1.0
    show_map(axes[0], before, top=top)
    show_map(axes[1], after, top=top)
    show_difference(axes[2], after - before)
    largest = (after - before).abs().max().item() / top
    axes[2].set_xlabel(f"at most {largest:.0%} of\nthe response's scale")
    axes[0].set_title(
        f"unit {unit.unit}, most at\n{unit.best_from_m:.2f}–{unit.best_to_m:.2f} m\n"
        f"selectivity {unit.selectivity:.2f}"
    )
