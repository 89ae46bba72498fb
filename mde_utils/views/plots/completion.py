"""Networks that are given sparse depth."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from torch import nn

from mde_utils.activations import tap
from mde_utils.dissection import Dissection
from mde_utils.views.plots.pictures import predict, show_depth, show_difference, show_image
from mde_utils.views.plots.style import PALETTE, RESPONSE, RUNS, bare, grid, key


def plot_completion(
    curves: pd.DataFrame | Mapping[str, pd.DataFrame], *, trained: int | None = None
) -> Figure:
    """How metrics fall with the number of sparse samples (`completion_curve`): δ, RMS and REL.

    Args:
        curves: one, or name → curve, of the same numbers: a colour each.
        trained: the number of samples in training, to be marked.
    """
    curves = {"": curves} if isinstance(curves, pd.DataFrame) else curves
    panels = (("d1.02", "d1.05", "d1.10", "d1"), ("rms",), ("rel",))
    fig, axes = plt.subplots(1, 3, figsize=(10, 3.4), layout="constrained")
    markers, dashes = ("o", "s", "^", "D"), ("-", "--", ":", "-.")
    for ax, metrics, title in zip(
        axes, panels, ("δ below a threshold [%]", "RMS [m]", "REL [%]"), strict=True
    ):
        for curve, colour in zip(curves.values(), cycle(RUNS)):
            places = np.arange(len(curve))
            for i, metric in enumerate(metrics):
                values = curve[metric] * (1 if metric == "rms" else 100)
                style = {"marker": markers[i], "ls": dashes[i], "color": colour, "ms": 4}
                ax.plot(places, values, lw=1.6, **style)
            numbers = curve["samples"].tolist()
        ax.set_xticks(places, numbers)
        if trained is not None:
            ax.axvline(np.interp(trained, numbers, places), color="0.6", lw=1, ls=":", zorder=0)
        ax.set(title=title, xlabel="sparse samples in an image")
        ax.tick_params(labelsize=8)
        ax.grid(axis="y", color="0.92")
        sns.despine(ax=ax)
    for ax in axes[1:]:
        ax.set_ylim(bottom=0)
    keys = [
        key(f"δ < {limit}", marker=m, ls=d, color="0.3")
        for limit, m, d in zip(("1.02", "1.05", "1.10", "1.25"), markers, dashes, strict=True)
    ]
    if trained is not None:
        keys.append(key(f"trained with {trained}", color="0.6", lw=1, ls=":"))
    named = zip(filter(None, curves), cycle(RUNS))
    keys += [key(name, color=colour, lw=3) for name, colour in named]
    fig.legend(handles=keys, loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    return fig


def plot_sparse_point(
    model: nn.Module,
    item: Mapping,
    dissection: Dissection,
    layer: str,
    *,
    point: tuple[int, int] | None = None,
    offset: float = 0.0,
    num_units: int = 4,
) -> Figure:
    """What one sparse measurement does to depth and to the units that answer to its depth.

    Rows: without the point, with it, and the difference; columns: the image and its depth, the
    predicted depth, and units. All other measurements stay.

    Args:
        item: with `sparse_depth`.
        dissection: of ``model``; says which units answer to which depth.
        point: (row, column) of a measurement; None = the one that the network, seeing the image
            alone, is farthest from.
        offset: metres added to the measurement: what if it lied?
        num_units: those whose best bin is nearest to the point's depth, the more selective first.

    Raises:
        ValueError: no measurement, or none at the point.
    """
    sparse = item["sparse_depth"]
    if point is None:
        if not (sparse > 0).any():
            raise ValueError("The item's sparse_depth holds no measurement.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no measurement
            alone = predict(model, {**item, "sparse_depth": torch.zeros_like(sparse)})
        gap = torch.where(sparse > 0, (alone - sparse).abs(), -1.0)[0]
        point = tuple(int(i) for i in np.unravel_index(int(gap.argmax()), gap.shape))
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
            depths.append(predict(model, {**item, "sparse_depth": given})[0])
            maps.append(acts[layer][0].float().cpu())

    frame = dissection.to_frame().query("layer == @layer")
    bins = dissection.bins[layer]
    target = bins.discretize(torch.tensor([measured + offset])).item()
    frame = frame.assign(away=(frame["best_bin"] - target).abs())
    frame = frame.sort_values(["away", "selectivity"], ascending=[True, False]).head(num_units)

    h, w = sparse.shape[-2:]
    fig, axes = grid(3, 2 + len(frame), 12, max(h / w, 0.4))  # room for words beside low images
    show_image(axes[0, 0], item["image"])
    ys, xs = (sparse[0] > 0).nonzero().T.tolist()
    axes[0, 0].scatter(xs, ys, 3, "w", linewidths=0)
    vmax = max(item["depth"].max().item(), *(d.max().item() for d in depths))
    shown = show_depth(axes[1, 0], item["depth"], vmax=vmax)
    axes[2, 0].set_axis_off()
    for ax, depth in zip(axes[:, 1], depths, strict=False):
        show_depth(ax, depth[None], vmax=vmax)
    change = show_difference(axes[2, 1], depths[1] - depths[0])
    for mappable, label, y in ((shown, "depth [m]", 0.85), (change, "change of depth [m]", -0.25)):
        place = axes[2, 0].inset_axes([0.05, y, 0.9, 0.12])
        bar = fig.colorbar(mappable, cax=place, orientation="horizontal")
        bar.set_label(label, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    for column_axes, unit in zip(axes[:, 2:].T, frame.itertuples(), strict=True):
        before, after = (m[unit.unit] for m in maps)
        top = torch.stack([before, after]).abs().quantile(0.99).item() or 1.0
        for ax, values in zip(column_axes, (before, after), strict=False):
            ax.imshow(values.abs().numpy(), cmap=RESPONSE, vmin=0, vmax=top)
            bare(ax)
        show_difference(column_axes[2], after - before)
        largest = (after - before).abs().max().item() / top
        column_axes[2].set_xlabel(f"at most {largest:.0%} of the\nresponse's scale", fontsize=8)
        column_axes[0].set_title(
            f"unit {unit.unit}\nmost at {unit.best_from_m:.2f}–{unit.best_to_m:.2f} m\n"
            f"selectivity {unit.selectivity:.2f}",
            fontsize=8,
        )
    for ax in (ax for ax in axes.flat if ax.images):
        y, x = ((n + 0.5) * m / of - 0.5 for n, m, of in zip(
            point, ax.images[0].get_size(), (h, w), strict=True
        ))  # fmt: skip
        ax.plot(x, y, "o", ms=9, mfc="none", mec=PALETTE[3], mew=1.4)
    axes[0, 0].set_title("image, sparse samples", fontsize=9)
    axes[1, 0].set_title("ground truth", fontsize=9)
    axes[0, 1].set_title("predicted depth", fontsize=9)
    for ax, words in zip(axes[:, 1], ("without\nthe point", "with it", "difference"), strict=True):
        ax.set_ylabel(words, fontsize=9, rotation=0, ha="right", va="center")
    words = f" moved by {offset:+g} m to {measured + offset:.2f} m" if offset else ""
    fig.suptitle(
        f"One measurement of {measured:.2f} m{words}, {len(xs) - 1} others stay · {layer}, "
        "each unit on its own scale",
        fontsize=10,
    )
    return fig
