"""Pictures. Every function draws one figure and returns it; none reads or changes anything else.

Depth is drawn in metres on one map (viridis: dark = near), responses on another (magma), both
perceptually uniform; two networks are told apart by colours that all eyes can tell apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from mde_utils.activations import evaluating, tap
from mde_utils.attacks import ErrorTrace, error_mask
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection
from mde_utils.evaluation import ERRORS, MIN_DEPTH, compute_metrics
from mde_utils.explorer import Edited, View
from mde_utils.interventions import AblationCurve, UnitEffects
from mde_utils.selectivity import assigned_bins
from mde_utils.stereo import photometric_error, stereo_transform, warp

DEPTH, RESPONSE, ERROR, CHANGE = "viridis", "magma", "rocket_r", "vlag"
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
        "hint": "depth hints",
        "normal": "normals",
        "label": "labels",
        "sparse_depth": "sparse depth",
    }
    shape = items[0]["image"].shape[1:]
    fig, axes = _grid(len(fields), len(items), 9, shape[0] / shape[1])
    farthest = max(item["depth"].max().item() for item in items)
    for row, field in zip(axes, fields, strict=True):
        for ax, item in zip(row, items, strict=True):
            if field in ("depth", "hint"):
                shown = show_depth(ax, item[field], vmax=farthest)
            elif field == "sparse_depth":  # single pixels could not be seen
                _, y, x = item[field].nonzero().T.cpu().numpy()
                metres = item[field][0, y, x].cpu().numpy()
                show_depth(ax, torch.zeros_like(item[field]), vmax=farthest)
                shown = ax.scatter(x, y, 3, metres, cmap=DEPTH, vmin=0, vmax=farthest, linewidths=0)
            elif field == "normal":
                show_image(ax, item[field] / 2 + 0.5)
            elif field == "label":
                ax.imshow(item[field].numpy(), cmap="tab20", interpolation="nearest")
                _bare(ax)
            else:
                show_image(ax, item[field])
        row[0].set_ylabel(titles.get(field, field))
        if field in ("depth", "hint", "sparse_depth"):
            fig.colorbar(shown, ax=row.tolist(), label="depth [m]", pad=0.01)
    return fig


def plot_projection(image: Tensor, depth: Tensor, *, vmax: float | None = None) -> Figure:
    """Sparse depth (1, H, W) in metres as dots over the image that it belongs to.

    Near dots lie above far ones. `vmax`: depth of the brightest colour, metres; None = farthest.

    Raises ValueError for depth of another size, or vmax that no depth is below.
    """
    h, w = image.shape[1:]
    if depth.shape != (1, h, w):
        raise ValueError(f"Image and depth differ in size, {h}x{w} and {tuple(depth.shape)}.")
    fig, axes = _grid(1, 1, 10, h / w)
    ax = axes[0, 0]
    show_image(ax, 0.5 + 0.5 * image.mean(0).expand(3, -1, -1))  # the colours are the depth's
    y, x = np.nonzero(depth[0].cpu().numpy() > 0)
    metres = depth[0].cpu().numpy()[y, x]
    if vmax is not None and len(x) and not metres.min() < vmax:
        raise ValueError(f"vmax={vmax:g} m: the nearest point is {metres.min():.2f} m away.")
    order = metres.argsort()[::-1]
    norm = LogNorm(*((metres.min(), vmax or metres.max()) if len(x) else (1, 80)))
    dots = ax.scatter(x[order], y[order], 3.5, metres[order], cmap=DEPTH, norm=norm, linewidths=0)
    ax.set_xlabel(f"{len(x):,} points, {len(x) / (h * w):.1%} of the pixels", fontsize=9)
    ticks = [t for t in (0.5, 1, 2, 3, 5, 10, 20, 40, 80) if norm.vmin <= t <= norm.vmax]
    bar = fig.colorbar(dots, ax=ax, label="depth [m]", pad=0.01, ticks=ticks, format="%g")
    bar.minorticks_off()
    return fig


def plot_point_cloud(
    image: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    *,
    farthest: float | None = None,
    turn: float = 12.0,
    rise: float = 14.0,
    points: int = 60_000,
    title: str | None = None,
) -> Figure:
    """Where the pixels of an image lie in space by their depth, in the colours of the image.

    Seen from behind and above the camera, over a grid in metres from it at the height of the
    lowest points.

    Args:
        image: RGB (3, H, W) in [0, 1].
        depth: (1, h, w) metres, of the image or a smaller copy of it; 0 = no measurement.
        intrinsics: (3, 3) in pixels of the image.
        farthest: leave out what is farther, metres.
        turn, rise: of the view, degrees: to the right (seen from above, the eye moves left) and
            up.
        points: about so many at most; else of a smaller copy, each of its nearest pixel.

    Raises:
        ValueError: no point to draw.
    """
    tall, wide = image.shape[-2:]
    depth = depth.detach().float().cpu().reshape(1, 1, *depth.shape[-2:])
    depth = torch.where(depth <= (farthest or np.inf), depth, 0.0)  # NaN too
    count = int((depth > 0).sum())
    if not count:
        limit = "" if farthest is None else f" up to {farthest:g} m"
        raise ValueError(f"No pixel has a depth{limit}: there is no point to draw.")
    if count > points:
        small = [max(1, round(n * (points / count) ** 0.5)) for n in depth.shape[-2:]]
        depth = nn.functional.interpolate(depth, small, mode="nearest-exact")
    h, w = depth.shape[-2:]
    rgb = image.detach().float().cpu()
    if (h, w) != (tall, wide):
        rgb = nn.functional.interpolate(rgb[None], (h, w), mode="bilinear", antialias=True)[0]
    z, keep = depth[0, 0].double(), depth[0, 0] > 0
    rgb = rgb.clamp(0, 1).permute(1, 2, 0)[keep].numpy()
    rows, columns = keep.nonzero().double().unbind(1)
    # Pixel centres of a copy of another size lie at (x + .5) W/w - .5 of the image.
    u, v = (columns + 0.5) * wide / w - 0.5, (rows + 0.5) * tall / h - 0.5
    rays = torch.linalg.solve(
        intrinsics.double().cpu(), torch.stack([u, v, torch.ones_like(u)])
    ).T.numpy()
    z = z[keep].numpy()
    xyz = rays * z[:, None]
    spacing = z * wide / w / intrinsics[0, 0].item()  # metres between neighbours
    spacing *= min(np.sqrt(h * w / len(xyz)), 3)  # wider where pixels have no depth

    middle = np.array([0.0, np.median(xyz[:, 1]), np.median(xyz[:, 2])])
    a, b = np.radians(turn), np.radians(rise)
    across = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    down = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    view = down @ across
    away = 1.3 * middle[2]

    def seen(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) metres to the picture's (n, 2), y up, and the distance from the eye."""
        p = (p - middle) @ view.T + (0, 0, away)
        distance = np.maximum(p[:, 2], 0.05 * away)
        return p[:, :2] / distance[:, None] * (1, -1), distance

    flat, distance = seen(xyz)
    low, high = np.quantile(flat, [0.003, 0.997], axis=0)
    span = np.maximum(1.08 * (high - low), 0.02)  # of a single point, too
    low, high = (low + high - span) / 2, (low + high + span) / 2
    width = 10.0
    height = float(np.clip(width * span[1] / span[0], 3, 8))
    fig, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    _bare(ax)
    ax.set_facecolor("0.97")
    _ground(ax, xyz, seen)
    order = distance.argsort()[::-1]
    per_unit = 72 * min(width / span[0], height / span[1])
    size = np.clip(1.4 * spacing / distance * per_unit, 0.8, 12) ** 2
    ax.scatter(*flat[order].T, size[order], rgb[order], marker="s", linewidths=0, zorder=2)
    words = f"{len(xyz):,} points, {z.min():.1f}–{z.max():.1f} m"
    ax.set_title(f"{title} · {words}" if title else words, fontsize=10)
    return fig


def _ground(ax: Axes, xyz: np.ndarray, seen) -> None:
    """A grid under the points, named by its distance from the camera in metres."""
    floor = np.quantile(xyz[:, 1], 0.98)
    end = np.quantile(xyz[:, 2], 0.99)
    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, np.inf) if end / s < 9)
    side = step * np.ceil(np.abs(np.quantile(xyz[:, 0], [0.02, 0.98])).max() / step)
    far = step * np.ceil(end / step)
    line = {"color": "0.75", "lw": 0.8, "zorder": 1}
    right = ax.get_xlim()[1]
    for d in np.arange(0, far + step / 2, step):
        (start, end), _ = seen(np.array([[-side, floor, d], [side, floor, d]]))
        ax.plot(*np.array([start, end]).T, **line)
        # Named where it leaves the picture, for the points lie over the rest.
        x = min(end[0], right)
        y = np.interp(x, [start[0], end[0]], [start[1], end[1]])
        if ax.get_ylim()[0] <= y <= ax.get_ylim()[1]:
            words = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            halo = [withStroke(linewidth=2, foreground="w")]
            ax.annotate(f"{d:g} m", (x, y), **words, fontsize=8, zorder=3, path_effects=halo)
    for x in np.arange(-side, side + step / 2, step):
        ends, _ = seen(np.array([[x, floor, 0], [x, floor, far]]))
        ax.plot(*ends.T, **line)


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


def plot_pair(item: Mapping) -> Figure:
    """What a stereo pair says without any label: both pictures, the right one warped to the left by
    the item's depth, what is left of their difference, and that for wrong depths.

    item: `image`, `right`, `depth`, `intrinsics` and `baseline`, of one size.
    """
    image, other, depth = (item[name][None].float() for name in ("image", "right", "depth"))

    def warped(factor: float) -> tuple[Tensor, Tensor, Tensor]:
        picture, inside = _warped(item, factor * depth)
        return picture, photometric_error(picture, image), inside & (depth > 0)

    picture, error, seen = warped(1.0)
    h, w = image.shape[-2:]
    fig = plt.figure(figsize=(10, 10 * h / w + 2.6), layout="constrained")
    grid = fig.add_gridspec(3, 2, height_ratios=(1, 1, 2.1 / (5 * h / w)))
    axes = [fig.add_subplot(grid[i // 2, i % 2]) for i in range(4)]
    for ax, shown, title in zip(
        axes,
        (image, other, picture),
        ("left", "right", "right, warped by true depth"),
        strict=False,
    ):
        show_image(ax, shown[0])
        ax.set_title(title, fontsize=9)
    shown = _known(axes[3], torch.where(seen, error, torch.nan)[0], cmap=ERROR, vmin=0, vmax=0.5)
    axes[3].set_title("photometric error of that (white: outside, or no depth)", fontsize=9)
    fig.colorbar(shown, ax=axes[3], pad=0.01)
    factors = np.geomspace(0.5, 2, 31)
    means = [e[s].mean().item() for _, e, s in map(warped, factors)]
    curve = fig.add_subplot(grid[2, :])
    curve.plot(factors, means, color=PALETTE[0])
    curve.axvline(1, color="0.6", lw=0.8, ls="--")
    curve.set_xscale("log")
    curve.set_xticks((0.5, 0.7, 1, 1.4, 2), ("0.5", "0.7", "1", "1.4", "2"))
    curve.minorticks_off()
    curve.set_xlabel("all depths times this")
    curve.set_ylabel("mean photometric error")
    sns.despine(ax=curve)
    return fig


def plot_disparities(
    models: Mapping[str, nn.Module], items: Sequence[Mapping], *, median_scaled: bool = False
) -> Figure:
    """Inverse depth as each model predicts it, beside its error: for each item a row with the image
    and the truth (else the right picture), then a row a model.

    The error is relative to the true depth; for items without depth it is the photometric error of
    the right picture warped by the prediction. median_scaled: predictions are first multiplied by
    the ratio of the medians, which is said.
    """
    shape = items[0]["image"].shape[1:]
    fig, axes = _grid(len(items) * (1 + len(models)), 2, 10, shape[0] / shape[1])
    rows = iter(axes)
    for item in items:
        depth, predictions = item.get("depth"), {}
        for name, model in models.items():
            size = shape if depth is None else depth.shape[-2:]
            pred = nn.functional.interpolate(predict(model, item)[None], size, mode="bilinear")[0]
            if depth is not None and median_scaled:
                factor = (depth[depth > 0].median() / pred[depth > 0].median()).item()
                name, pred = f"{name}, times {factor:.2f} by the medians", pred * factor
            predictions[name] = pred
        first = next(iter(predictions.values())) if depth is None else depth[depth > 0]
        look = {"cmap": RESPONSE, "vmin": 0, "vmax": np.quantile((1 / first).numpy(), 0.95)}
        top = next(rows)
        show_image(top[0], item["image"])
        top[0].set_title(str(item.get("name", "image")), fontsize=9)
        if depth is None:
            show_image(top[1], item["right"])
        else:
            _known(top[1], torch.where(depth > 0, 1 / depth.clamp(min=1e-3), torch.nan), **look)
        top[1].set_title("right (no true depth)" if depth is None else "ground truth", fontsize=9)
        for name, pred in predictions.items():
            left, right = next(rows)
            shown = _known(left, 1 / pred, **look)
            left.set_title(name, fontsize=9)
            fig.colorbar(shown, ax=left, label="1/depth [1/m]", pad=0.01)
            if depth is None:
                picture, _ = _warped(item, pred[None])
                error = photometric_error(picture, item["image"][None])[0]
                label, words, most = "photometric error", f"mean {error.mean():.3f}", 0.5
            else:
                error = torch.where(depth > 0, 100 * (pred / depth - 1).abs(), torch.nan)
                label, words, most = "relative error [%]", f"mean {error.nanmean():.0f} %", 50
            shown = _known(right, error, cmap=ERROR, vmin=0, vmax=most)
            right.set_title(f"{label.removesuffix(' [%]')}, {words}", fontsize=9)
            fig.colorbar(shown, ax=right, label=label, pad=0.01, extend="max")
    return fig


def _warped(item: Mapping, depth: Tensor) -> tuple[Tensor, Tensor]:
    transform = stereo_transform(torch.as_tensor(item["baseline"]).float().view(1))
    return warp(item["right"][None].float(), depth, item["intrinsics"][None], transform)


def _known(ax: Axes, values: Tensor, **look):
    """(1, h, w), NaN = unknown; as dots where most is, for single pixels could not be seen. Returns
    the mappable."""
    values = values[0].cpu().numpy()
    known = np.isfinite(values)
    if known.mean() > 0.5:
        shown = ax.imshow(values, interpolation="nearest", **look)
    else:
        ax.imshow(np.ones((*values.shape, 3)))
        y, x = known.nonzero()
        shown = ax.scatter(x, y, 1, values[known], linewidths=0, **look)
    _bare(ax)
    return shown


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
    for ax, unit in zip(axes.ravel(), units, strict=False):
        _bars(ax, response[unit], counts, target[unit])
        ax.set_title(f"unit {unit} · DS {selectivity[unit]:.2f}", fontsize=7, pad=2)
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
    width = max(6, 0.75 * len(layers) + 2, 0.4 * len(layers) * len(dissections) + 1.5)
    fig, ax = plt.subplots(figsize=(width, 4), layout="constrained")
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
    ax.set(xlabel=None, ylabel=f"depth selectivity ({first.definition})", ylim=(-0.03, 1.05))
    handles, labels = ax.get_legend_handles_labels()
    ax.get_legend().remove()
    fig.legend(handles, labels, frameon=False, fontsize=8, ncols=3, loc="outside lower center")
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
    aspect = shape[0] / shape[1]
    wide = aspect < 0.5  # too low for words beside it
    fig, axes = _grid(len(units), 1 + 2 * len(names), 11, aspect + 0.09 * wide)
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
            _map(row[2 + 2 * i], acts[unit])
        if wide:
            row[0].set_xlabel(f"unit {unit}: {near:.2f}–{far:.2f} m", fontsize=8)
        else:
            row[0].set_ylabel(f"unit {unit}\n{near:.2f}–{far:.2f} m", fontsize=8)
    axes[0][0].set_title("RGB", fontsize=9)
    for i, name in enumerate(names):
        axes[0][1 + 2 * i].set_title(f"{name}: predicted\ndepth in its bin", fontsize=8)
        axes[0][2 + 2 * i].set_title(f"{name}:\n|response| of the unit", fontsize=8)
    return fig


def plot_unit_pairs(
    models: Mapping[str, nn.Module],
    dissections: Mapping[str, Dissection],
    *,
    items: Sequence[Mapping],
    layer: str,
    units: Sequence[int],
) -> Figure:
    """The same units of several networks beside each other (figure 4 of the paper).

    A row a unit: of the items the image with most pixels at the depth of the unit's assigned bin,
    these pixels, and in each network the unit's mean response to each depth bin and its feature
    map (each on its own scale, brightest at its 99th percentile).
    """
    shape = items[0]["image"].shape[1:]
    names = list(models)
    fig, axes = _grid(len(units), 2 + 2 * len(names), 11, shape[0] / shape[1])
    first = dissections[names[0]]
    bins, targets = first.bins[layer], assigned_bins(*first.response[layer].shape)
    inside = [bins.discretize(item["depth"])[0] for item in items]
    parts = {n: (d.response[layer], d.counts[layer]) for n, d in dissections.items()}
    for row, unit in zip(axes, units, strict=True):
        target = targets[unit].item()
        best = int(np.argmax([(index == target).sum() for index in inside]))
        show_image(row[0], items[best]["image"])
        near, far = bins.edges[target].item(), bins.edges[target + 1].item()
        row[0].set_ylabel(f"unit {unit}\n{near:.2f}–{far:.2f} m", fontsize=8)
        row[1].imshow((inside[best] == target).numpy(), cmap="gray", vmin=0, vmax=1)
        _bare(row[1])
        for i, (name, model) in enumerate(models.items()):
            bars, picture = row[2 + 2 * i : 4 + 2 * i]
            with tap(model, [layer]) as acts:
                predict(model, items[best])
            _bars(bars, parts[name][0][unit], parts[name][1], target)
            _map(picture, acts[layer][0, unit].cpu())
            selectivity = dissections[name].selectivity[layer][unit]
            answers = bool(parts[name][0][unit].any())
            words = f"DS {selectivity:.2f}" if answers else "no response at all"
            bars.set_title(f"{name} · {words}", fontsize=8, pad=2)
            bars.set_xticks([])
    for bars in axes[-1][2::2]:
        _metres(bars, bins, few=True)
    axes[0][0].set_title("RGB", fontsize=8)
    axes[0][1].set_title("true depth in its bin", fontsize=8)
    for i, name in enumerate(names):
        axes[0][3 + 2 * i].set_title(f"{name}: |response|", fontsize=8)
    fig.suptitle(
        f"{layer}: mean response per depth bin (the assigned bin in orange) and feature map\n"
        f"{_provenance(first)}",
        fontsize=9,
    )
    return fig


def plot_tuning(dissections: Mapping[str, Dissection], layer: str) -> Figure:
    """Which depth each unit of a layer answers to: a row of pixels a unit, a column a depth bin.

    Colour: |mean response| as a part of the unit's largest. Units that follow their assignment lie
    on the diagonal (dashed); grey: units without any response, and bins without pixels.
    """
    fig, axes = _grid(1, len(dissections), 3.1 * len(dissections) + 0.6, 1.0, sharey=True)
    colours = plt.get_cmap(RESPONSE).with_extremes(bad="0.75")
    for ax, (name, seen) in zip(axes[0], dissections.items(), strict=True):
        response, counts = seen.response[layer].abs(), seen.counts[layer]
        largest = response.amax(1, keepdim=True)
        values = torch.where((counts > 0) & (largest > 0), response / largest, torch.nan)
        shown = ax.imshow(
            values.numpy(), cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="nearest"
        )
        target = assigned_bins(*response.shape)
        ax.plot(target, range(len(target)), color="white", lw=1, ls=(0, (2, 4)))
        ax.set_title(f"{name} · mean DS {seen.mean(layer):.3f}", fontsize=9)
        _metres(ax, seen.bins[layer], few=True)
        ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.colorbar(shown, ax=axes[0].tolist(), label="|response| ÷ the unit's largest", pad=0.01)
    seen = dict.fromkeys(_provenance(d) for d in dissections.values())
    fig.suptitle(" · ".join(seen), fontsize=9)
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


def plot_published(table: pd.DataFrame, metrics: Mapping[str, str]) -> Figure:
    """What the loss does to networks: published (hollow) beside measured (filled, with its range).

    A row a network and layers, a panel a metric.

    Args:
        table: rows of ``paper.comparison``, of one table or more.
        metrics: metric → its name in words.

    Raises:
        ValueError: the table holds none of these metrics.
    """
    table = table[table["metric"].isin(list(metrics)) & table["method"].isin(list(_METHODS))]
    if not len(table):
        raise ValueError(f"The table holds none of {', '.join(metrics)}.")
    # A published number stands in a row of its own, above the runs that measured the same.
    own = ["model", "layers", "dataset"]
    published = table.dropna(subset="published").drop_duplicates([*own, "method", "metric"])
    published = published.assign(value=published["published"], group="", size="published")
    measured = table.dropna(subset="mean").rename(columns={"mean": "value"})
    points = pd.concat([frame for frame in (published, measured) if len(frame)])
    row = [*own, "group", "size"]
    points[row] = points[row].fillna("")
    ranks = {model: rank for rank, model in enumerate(points["model"].unique())}
    rows = sorted(points.groupby(row, sort=False).groups, key=lambda names: ranks[names[0]])
    fig, axes = plt.subplots(
        1,
        len(metrics),
        figsize=(9, 0.42 * len(rows) + 1.5),
        squeeze=False,
        sharey=True,
        layout="constrained",
    )
    keys = {}
    for ax, (metric, words) in zip(axes[0], metrics.items(), strict=True):
        for y, names in enumerate(rows):
            own_row = (points[row] == pd.Series(names, row)).all(axis=1)
            part = points[own_row & (points["metric"] == metric)]
            for point in part.itertuples():
                colour, look, _, name = _METHODS[point.method]
                at = y + 0.2 * (["baseline", "reg", "assign"].index(point.method) - 1)
                hollow = point.size == "published"
                if not hollow:
                    ax.hlines(at, point.low, point.high, color=colour, lw=2, alpha=0.6)
                style = {"marker": look[0], "mfc": "white" if hollow else colour, "mec": colour}
                ax.plot(point.value, at, ls="", ms=5, mew=1.3, **style)
                keys.setdefault(name, _key(name, **style | {"mfc": colour}, ls=""))
        if "selectivity" in metric:
            ax.axvline(1 / 3, color=_GREY, lw=1, ls="--", zorder=0)
            keys["units with random responses"] = _key("units with random responses", ls="--")
        ax.set_xlabel(words, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.grid(axis="y", color="0.93", lw=0.8)
        ax.set_axisbelow(True)
        sns.despine(ax=ax, left=True)
    labels = [" · ".join(filter(None, (m, la, d, size))) for m, la, d, _, size in rows]
    axes[0, 0].set_yticks(range(len(rows)), labels, fontsize=8)
    axes[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    fig.legend(
        handles=keys.values(),
        loc="outside upper left",
        ncols=2,
        fontsize=8.5,
        frameon=False,
        title="Hollow: published. Filled: measured, mean over seeds; bars: smallest to largest.",
        title_fontsize=8.5,
        alignment="left",
    )
    return fig


# ------------------------------------------------------------------ interventions

_METRICS = {"d1": "δ1", "d2": "δ2", "d3": "δ3", "rms": "RMS", "rel": "REL", "rms_log": "RMS log"}
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
        ax.set_ylabel(f"relative {change} of {_METRICS.get(metric, metric)} [%]")
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
    palette = dict(zip(effects, cycle(_RUNS), strict=False))
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
    fig, axes = _grid(2, 4, 11, image.shape[1] / image.shape[2])
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
        _bare(ax)
        found = compute_metrics(pred[measured].clamp(min=MIN_DEPTH), truth[measured])
        ax.set_xlabel(f"δ1 {found['d1']:.3f} · RMS {found['rms']:.2f} m", fontsize=9)
    axes[1, 1].set_ylabel("|error|")
    for ax in (axes[1, 0], axes[1, 3]):
        ax.axis("off")
    fig.colorbar(shown, ax=axes[0].tolist(), label="depth [m]", pad=0.01)
    fig.colorbar(drawn, ax=axes[1].tolist(), label="|error| [m]", pad=0.01, extend="max")
    return fig


# ------------------------------------------------------------------ attacks


def plot_attack(
    model: nn.Module,
    batch: Mapping,
    trace: ErrorTrace,
    *,
    attacked: Tensor,
    index: int = 0,
    layer: str | None = None,
    unit: int | None = None,
) -> Figure:
    """One attacked image, its errors and a unit behind them (figure 8 of the paper).

    Above the clean image, below the attacked one: image; ground truth and (below, amplified about
    grey) perturbation; predicted depth; errors; the pixels whose *predicted* depth lies in the
    unit's bin; the unit's feature map, on one scale for both.

    Args:
        batch, attacked: the images that ``trace`` is of.
        index: which of them.
        layer, unit: which unit; None = the most blamed (of the layer).

    Raises:
        ValueError: the trace is of other images, an unknown layer, a unit without its layer.
    """
    if len(trace.clean) != len(batch["image"]) or attacked.shape != batch["image"].shape:
        raise ValueError(
            f"The trace is of {len(trace.clean)} images, the batch holds {len(batch['image'])}, "
            f"attacked are {len(attacked)}: give the batch that was traced, and its attack."
        )
    if unit is not None and layer is None:
        raise ValueError(f"Unit {unit} of which layer? Give layer=, one of {trace.layers}.")
    units = trace.units
    if layer is not None:
        units = units[units.layer == trace._known(layer)]
    if unit is not None:
        units = units[units.unit == unit]
    if units.empty:
        raise ValueError(f"Layer {layer!r} has no unit {unit}.")
    chosen = units.iloc[0]
    layer, unit = chosen["layer"], int(chosen["unit"])
    bins, target = trace.bins[layer], trace.target[index]
    names = getattr(model, "input_names", ())
    item = {k: batch[k][index] for k in ("image", *names)}
    images = {"clean": item["image"], "attacked": attacked[index]}
    maps = {}
    for name, image in images.items():
        with tap(model, [layer]) as acts:
            predict(model, {**item, "image": image})
        maps[name] = acts[layer][0, unit].abs().float().cpu().numpy()
    # A unit that is silent in both stays dark, on a scale that can be read.
    brightest = np.quantile(np.stack(list(maps.values())), 0.99) or 1.0
    preds = {"clean": trace.clean[index], "attacked": trace.attacked[index]}
    farthest = max(x.max().item() for x in (target, *preds.values()))

    shape = item["image"].shape[1:]
    fig, axes = _grid(2, 6, 12, shape[0] / shape[1])
    fig.set_figheight(fig.get_figheight() + 0.6)  # for captions
    for row, (name, pred) in zip(axes, preds.items(), strict=True):
        show_image(row[0], images[name])
        row[0].set_ylabel(name)
        depth = show_depth(row[2], pred, vmax=farthest)
        wrong = error_mask(pred, target, threshold=trace.threshold)
        measured = target > 0
        _mask(row[3], wrong, measured)
        share = (wrong.sum() / measured.sum()).item()
        row[3].set_xlabel(f"{share:.0%} of the pixels", fontsize=8)
        inside = bins.discretize(pred.clamp(min=MIN_DEPTH)) == chosen["bin"]
        _mask(row[4], inside, torch.ones_like(inside))
        bad = (wrong & inside).sum() / inside.sum() if inside.any() else 0.0
        row[4].set_xlabel(
            f"{inside.float().mean():.0%} of the pixels,\n{bad:.0%} of them wrong", fontsize=8
        )
        answer = row[5].imshow(maps[name], cmap=RESPONSE, vmin=0, vmax=brightest)
        _bare(row[5])
    show_depth(axes[0][1], target, vmax=farthest)
    change = (images["attacked"] - images["clean"]).cpu()
    gain = 0.5 / max(change.abs().max().item(), 1e-12)
    show_image(axes[1][1], 0.5 + gain * change)
    axes[1][1].set_xlabel(f"perturbation × {gain:.0f}\n(at most {0.5 / gain:.3f})", fontsize=8)
    axes[0][1].set_xlabel("ground truth", fontsize=8)
    titles = {
        0: "RGB",
        2: "predicted depth",
        3: f"error: ratio ≥ {trace.threshold:g}",
        4: f"predicted depth in\n{chosen['from_m']:.2f}–{chosen['to_m']:.2f} m",
        5: f"{layer}, unit {unit}:\n|response|",
    }
    for column, title in titles.items():
        axes[0][column].set_title(title, fontsize=9)
    for shown, label in ((depth, "depth [m]"), (answer, "|response|")):
        fig.colorbar(shown, ax=axes.ravel().tolist(), label=label, pad=0.01, aspect=30)
    return fig


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
    fig, axes = _grid(1, 2, 10, 0.95, sharex=True, sharey=True)
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        shown = ax.imshow(
            np.ma.masked_equal(table[:end, :end], 0),
            cmap=ERROR,
            norm=LogNorm(1, max(most, 2)),
            origin="lower",
            interpolation="nearest",
        )
        ax.axline((0, 0), slope=1, color="0.4", lw=0.8, ls=":")
        _metres(ax, bins)
        ticks, labels = list(ax.get_xticks()), [t.get_text() for t in ax.get_xticklabels()]
        if beyond:
            ticks, labels = [*ticks[:-1], n], [*labels[:-1], f">{bins.edges[-1]:g}"]
            ax.set_xticks(ticks, labels)
        ax.set_yticks(ticks, labels)
        ax.set(xlim=(-0.5, end - 0.5), ylim=(-0.5, end - 0.5), xlabel="predicted depth [m]")
        ax.set_title(f"{name}: δ {trace.d1[name]:.3f} (ratio < {trace.threshold:g})", fontsize=10)
    axes[0][0].set_ylabel("true depth [m]")
    fig.colorbar(shown, ax=axes.ravel().tolist(), label="pixels", pad=0.01)
    fig.suptitle(f"{len(trace.clean)} images · the {n} depth bins of {layer}", fontsize=9)
    return fig


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
    fig, (left, right) = plt.subplots(
        1, 2, figsize=(9, 1.4 + 0.36 * len(units)), layout="constrained", sharey=True
    )
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
        ax.legend(
            title=title,
            title_fontsize=9,
            alignment="left",
            frameon=False,
            fontsize=8,
            loc="lower left",
            bbox_to_anchor=(0, 1),
        )
        sns.despine(ax=ax)
    return fig


# ------------------------------------------------------------------ depth completion


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
        for curve, colour in zip(curves.values(), cycle(_RUNS)):
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
        _key(f"δ < {limit}", marker=m, ls=d, color="0.3")
        for limit, m, d in zip(("1.02", "1.05", "1.10", "1.25"), markers, dashes, strict=True)
    ]
    if trained is not None:
        keys.append(_key(f"trained with {trained}", color="0.6", lw=1, ls=":"))
    named = zip(filter(None, curves), cycle(_RUNS))
    keys += [_key(name, color=colour, lw=3) for name, colour in named]
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
    fig, axes = _grid(3, 2 + len(frame), 12, max(h / w, 0.4))  # room for words beside low images
    show_image(axes[0, 0], item["image"])
    ys, xs = (sparse[0] > 0).nonzero().T.tolist()
    axes[0, 0].scatter(xs, ys, 3, "w", linewidths=0)
    vmax = max(item["depth"].max().item(), *(d.max().item() for d in depths))
    shown = show_depth(axes[1, 0], item["depth"], vmax=vmax)
    axes[2, 0].set_axis_off()
    for ax, depth in zip(axes[:, 1], depths, strict=False):
        show_depth(ax, depth[None], vmax=vmax)
    change = _difference(axes[2, 1], depths[1] - depths[0])
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
            _bare(ax)
        _difference(column_axes[2], after - before)
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


def _difference(ax: Axes, values: Tensor):
    """(h, w), red where there is more, blue where there is less. Returns the mappable."""
    top = values.abs().max().item() or 1.0
    shown = ax.imshow(values.numpy(), cmap=CHANGE, vmin=-top, vmax=top)
    _bare(ax)
    return shown


# ------------------------------------------------------------------ the explorer


_EDITS = {
    "off": "switched off",
    "scale": "times {:g}",
    "mean": "at the mean response",
    "correct": "at the mean response to the true depth",
}


def plot_unit(
    view: View, layer: str, unit: int, *, pixel: tuple[int, int] | None = None, num_units: int = 8
) -> Figure:
    """What a unit answers to, over the data set and on one image, and who answers at a pixel.

    Above: the image with the pixel, the predicted depth, the unit's |response| over the image
    (brightest at its 99th percentile), and the pixels whose predicted depth lies in the unit's
    assigned bin. Below: its mean response to each depth, with one standard deviation between
    images (grey), and on this image; the units with the largest share in the response to the
    depth predicted at the pixel.

    Args:
        view: from :meth:`Explorer.view`.
        pixel: (row, column); None = the middle of the image.

    Raises:
        ValueError: unknown layer, no such unit, or a pixel outside the image.
    """
    explorer, bins = view.explorer, view.explorer.bins(layer)
    number, near, far = explorer.assigned(layer, unit)
    h, w = view.image.shape[-2:]
    answer = view.ask(*(pixel or (h // 2, w // 2)), layer)
    about = explorer.units.loc[layer, unit]
    fig, pictures, (curve, bars) = _board(h / w, 1.55, (5.1, 2.15))

    image, depth, over, mask = pictures
    show_image(image, view.image)
    image.plot(answer.column, answer.row, "o", ms=9, mfc="none", mec="k", mew=3)
    image.plot(answer.column, answer.row, "o", ms=9, mfc="none", mec="w", mew=1.4)
    shown = show_depth(depth, view.depth, vmax=_farthest(view))
    _bar_beside(depth, shown, "depth [m]")
    _over(over, view.image, view.activations[layer][unit])
    where = view.where(layer, unit)
    _mask(mask, where, torch.ones_like(where))
    fires = bool(view.activations[layer][unit].any())
    titles = {
        image: view.name,
        depth: "predicted depth",
        over: f"unit {unit}: |response|" if fires else f"unit {unit}: silent on this image",
        mask: f"predicted in {near:.2f}–{far:.2f} m: {where.float().mean():.0%}",
    }
    for ax, title in titles.items():
        ax.set_title(title, fontsize=9)

    places, counts = np.arange(len(bins)), explorer.dissection.counts[layer]
    mean = np.where(counts > 0, explorer.dissection.response[layer][unit], np.nan)
    spread = explorer.spread(layer)[unit].nan_to_num(0).numpy()
    curve.fill_between(places, mean - spread, mean + spread, step="mid", color="0.85", lw=0)
    curve.axvspan(number - 0.5, number + 0.5, color=PALETTE[1], alpha=0.35, lw=0)
    curve.plot(places, mean, "k", lw=1.4, drawstyle="steps-mid")
    curve.plot(places, view.response(layer)[unit].numpy(), "o-", color=PALETTE[0], ms=3.5, lw=1)
    if answer.bin is not None:
        curve.axvline(answer.bin, color="0.35", lw=1, ls=(0, (4, 3)))
    _metres(curve, bins)
    curve.set_xlim(-0.5, len(bins) - 0.5)
    curve.set_ylabel("mean response", fontsize=8)
    keys = [
        _key("all images", color="k", lw=1.4),
        _key("± their spread", color="0.85", lw=6),
        _key("this image", color=PALETTE[0], marker="o", ms=3.5, lw=1),
        _key("assigned bin", color=(*PALETTE[1], 0.35), lw=6),
        _key("pixel", color="0.35", lw=1, ls=(0, (4, 3))),
    ]
    curve.legend(
        handles=keys,
        ncols=5,
        fontsize=7.5,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.98),
        columnspacing=1.0,
        handlelength=1.6,
        borderpad=0.2,
    )

    ranked = answer.units.head(num_units).iloc[::-1]
    shares = 100 * ranked["share"].fillna(0)
    colours = [PALETTE[0] if strongest else "0.75" for strongest in ranked["strongest"]]
    rows = np.arange(len(ranked))
    bars.barh(rows, shares, color=colours)
    bars.set_yticks(rows, [f"unit {k}" for k in ranked.index], fontsize=7.5)
    for label, k in zip(bars.get_yticklabels(), ranked.index, strict=True):
        label.set_fontweight("bold" if k == unit else "normal")
    bars.set_xlim(0, max(1.05 * shares.max(), 1))
    bars.set_xlabel("share in the response [%]", fontsize=8)
    if answer.bin is None:
        words = f"pixel: {answer.depth:.2f} m, in no bin"
    else:
        words = f"pixel: {answer.depth:.2f} m. Who answers to\n"
        words += f"{answer.span[0]:.2f}–{answer.span[1]:.2f} m (blue: strongest here)"
    bars.set_title(words, fontsize=8, loc="left", x=-0.22)
    for ax in (curve, bars):
        ax.tick_params(labelsize=7.5)
        sns.despine(ax=ax)
    curve.set_xlabel("depth [m]", fontsize=8)
    if about["best_response"]:
        words = f"answers most to {about['best_from_m']:.2f}–{about['best_to_m']:.2f} m"
    else:
        words = "never answers"
    fig.suptitle(
        f"{layer}, unit {unit}: {words}, assigned {near:.2f}–{far:.2f} m · selectivity "
        f"{about['selectivity']:.2f} · {_provenance(explorer.dissection)}",
        fontsize=9,
        y=1 - 0.06 / fig.get_figheight(),
        va="top",
    )
    return fig


def plot_edit(edited: Edited, *, on: Figure | None = None) -> Figure:
    """What becomes of the depth with units changed, and at which depths.

    The edited depth on the scale of the unedited; the difference; below each other the edited
    units' mean response to each true depth over the data set (the mean of each one's part of its
    largest), and what the edit does there on this image: the mean |change| of the depth, which is
    the units' causal effect, and the mean |error| before and after.

    Args:
        on: a figure of this function's for the same image, drawn anew in a fraction of the time.
    """
    view, layer, table = edited.view, edited.layer, edited.table
    explorer, bins = view.explorer, view.explorer.bins(layer)
    places = np.arange(len(bins) + 1) - 0.5
    fig = on or _blank_edit(view)
    depth, _, difference, _, answers, needed = fig.axes
    if answers.get_label() != f"{layer} of {len(bins)}":
        answers.set_label(f"{layer} of {len(bins)}")
        for ax in (answers, needed):
            _metres(ax, bins)
            ax.set_xlim(places[0], places[-1])
            ax.tick_params(labelsize=7.5)
        answers.set(xticklabels=[], xlabel=None)
        needed.set_xlabel("true depth [m]", fontsize=8)

    values = edited.depth[0].numpy()
    depth.images[0].set_data(np.where(values > 0, values, np.nan))
    top = edited.difference.abs().max().item() or 1.0
    difference.images[0].set(data=edited.difference[0].numpy(), clim=(-top, top))
    response = explorer.dissection.response[layer][edited.units[layer]].abs()
    share = (response / response.amax(1, keepdim=True).clamp(min=1e-12)).mean(0).numpy()
    answers.patches[0].set_data(share, places, 0)
    change = table["change"].fillna(0).to_numpy()
    needed.patches[0].set_data(change, places, 0)
    for line, column in zip(needed.lines, ("error_before", "error_after"), strict=True):
        line.set_data(places[:-1] + 0.5, table[column].to_numpy())
    highest = np.nanmax([1e-3, *change, *table["error_before"], *table["error_after"]])
    needed.set_ylim(0, 1.08 * highest)
    chosen = " and ".join(f"{k} {_some(v)}" for k, v in edited.units.items())
    words = _EDITS[edited.mode].format(edited.factor)
    before, after = edited.mean("error_before"), edited.mean("error_after")
    fig.suptitle(
        f"{chosen}: {words} · mean |change| {edited.mean('change'):.3f} m, mean |error| "
        f"{before:.3f} → {after:.3f} m",
        fontsize=9,
        y=1 - 0.06 / fig.get_figheight(),
        va="top",
    )
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
    fig, axes = _grid(1, 3, 10, max(0.8, 0.03 * len(rows)), sharey=True)
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
        _metres(ax, bins, few=True)
        bar = fig.colorbar(shown, ax=ax, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    bar.set_label("÷ the unit's largest", fontsize=8)
    axes[0][0].set_yticks(range(len(rows)), rows, fontsize=7)
    axes[0][0].set_ylabel(f"unit of {layer}")
    fig.suptitle(
        f"Square: the depth that the unit answers to most · effect of a unit "
        f"{_EDITS[effects.mode].format(effects.factor)}: {effects.images} images · response: "
        f"{_provenance(dissection)}",
        fontsize=9,
    )
    return fig


def _board(aspect: float, height: float, widths: tuple[float, float]):
    """Figure, axes of four pictures, and of two panels below that are so high and wide, inches."""
    columns, wide = (4, 1.98) if aspect > 0.5 else (2, 4.05)
    high = wide * aspect
    gaps = [0.1, 0.7, 0.1]  # room for the colour bar of the second
    lines = 4 // columns
    total = 0.35 + lines * (high + 0.25) + 0.45 + height + 0.5
    fig = plt.figure(figsize=(9, total))

    def place(x: float, y: float, w: float, h: float) -> Axes:  # inches, from above
        return fig.add_axes((x / 9, 1 - (y + h) / total, w / 9, h / total))

    pictures = []
    for i in range(4):
        row, column = divmod(i, columns)
        x = 0.07 + sum(wide + gap for gap in gaps[:column])
        pictures.append(place(x, 0.55 + row * (high + 0.25), wide, high))
    y = total - 0.5 - height
    return fig, pictures, [place(0.6, y, widths[0], height), place(6.75, y, widths[1], height)]


def _blank_edit(view: View) -> Figure:
    """What `plot_edit` fills: depth, its bar, difference, its bar, and two panels of bins."""
    h, w = view.image.shape[-2:]
    wide = 2.0
    high = min(wide * h / w, 2.4)
    total = max(0.7 + high, 2.75)
    fig = plt.figure(figsize=(9, total))

    def place(x: float, y: float, w: float, h: float) -> Axes:  # inches, from above
        return fig.add_axes((x / 9, 1 - (y + h) / total, w / 9, h / total))

    top = 0.6 + (total - 0.7 - high) / 2
    depth, bar = place(0.08, top, wide, high), place(0.16 + wide, top, 0.09, high)
    difference, bar2 = place(0.75 + wide, top, wide, high), place(0.83 + 2 * wide, top, 0.09, high)
    shown = show_depth(depth, view.depth, vmax=_farthest(view))
    changed = _difference(difference, torch.zeros_like(view.depth[0]))
    for axes, mappable, label in ((bar, shown, "depth [m]"), (bar2, changed, "change [m]")):
        fig.colorbar(mappable, cax=axes)
        axes.tick_params(labelsize=7.5)
        axes.set_title(label, fontsize=7.5, loc="left")
    depth.set_title("edited depth", fontsize=9)
    difference.set_title("difference", fontsize=9)
    half = (total - 1.2) / 2
    answers, needed = place(5.92, 0.42, 3, half), place(5.92, 0.7 + half, 3, half)
    answers.stairs([0], [0, 1], fill=True, color="0.6")
    answers.set(ylim=(0, 1.08), yticks=(0, 1), yticklabels=("0", "max"))
    answers.set_ylabel("response", fontsize=8)
    needed.stairs([0], [0, 1], fill=True, color=PALETTE[1], alpha=0.6, label="|change|")
    needed.plot([], [], color="k", lw=1.4, label="|error| before")
    needed.plot([], [], color=PALETTE[0], lw=1.4, ls="--", label="after")
    needed.legend(
        ncols=3, fontsize=7, frameon=False, loc="lower left", bbox_to_anchor=(-0.02, 0.94)
    )
    needed.set_ylabel("effect [m]", fontsize=8)
    for ax in (answers, needed):
        ax.tick_params(labelsize=7.5)
        sns.despine(ax=ax)
    return fig


def _farthest(view: View) -> float:
    return max(view.truth.max().item(), view.depth.quantile(0.999).item(), 1e-3)


def _some(units: Sequence[int]) -> str:
    names = ", ".join(map(str, units[:8])) + (f" and {len(units) - 8} more" * (len(units) > 8))
    return f"unit{'s' * (len(units) > 1)} {names}"


def _bar_beside(ax: Axes, mappable, label: str) -> None:
    """A colour bar to the right of a picture that keeps its place."""
    bar = ax.figure.colorbar(mappable, cax=ax.inset_axes([1.03, 0, 0.045, 1]))
    bar.ax.tick_params(labelsize=7.5)
    bar.set_label(label, fontsize=8)


def _over(ax: Axes, image: Tensor, activation: Tensor) -> None:
    """One unit's |activation| (h, w) over the image in grey, dark where it does not fire."""
    grey = 0.5 * image.clamp(0, 1).mean(0)
    values = activation.abs()[None, None]
    top = np.quantile(values.numpy(), 0.99) or values.max().item() or 1.0
    values = nn.functional.interpolate(values, grey.shape, mode="bilinear", align_corners=False)
    values = (values[0, 0] / top).clamp(0, 1)
    ax.imshow(grey.numpy(), cmap="gray", vmin=0, vmax=1)
    ax.imshow(values.numpy(), cmap=RESPONSE, vmin=0, vmax=1, alpha=values.numpy() ** 0.6)
    _bare(ax)


# ------------------------------------------------------------------ a picture of one's own


def plot_explanation(
    image: Tensor,
    depth: Tensor,
    units: pd.DataFrame,
    *,
    responses: Sequence[Tensor],
    changes: Tensor,
    by_depth: pd.DataFrame,
    tuning: Sequence[tuple[Tensor, Tensor]],
    metric: bool = True,
    title: str = "",
) -> Figure:
    """A picture, its depth, the units that fire on it, and what becomes of the depth without each.

    A row a unit: where it fires (|response|, on its own scale); how the depth changes if it is
    wrong (one scale for all); and at which depths: filled, the |mean response| of its tuning curve,
    scaled to the axis; the line, the mean |change|. The arguments are what `explain` found.

    Args:
        depth: (1, H, W) metres; with ``metric=False`` of an unknown unit, and curves are drawn over
            tenths of the picture, near to far.
    """
    unit = "m" if metric else "model’s unit"
    aspect = image.shape[1] / image.shape[2]
    n = len(units)
    top, row = np.clip(3.6 * aspect, 1.5, 3.4), np.clip(3.6 * aspect, 1.3, 2.1)
    fig = plt.figure(figsize=(11, top + n * row + 0.9), layout="constrained")
    axes = fig.subplots(1 + n, 3, squeeze=False, gridspec_kw={"height_ratios": [top, *[row] * n]})
    show_image(axes[0, 0], image)
    low, high = (
        depth.flatten()[:: max(1, depth.numel() // 100_000)].quantile(q) for q in (0.01, 0.99)
    )
    shown = show_depth(axes[0, 1], depth, vmin=0 if metric else low.item(), vmax=high.item())
    fig.colorbar(shown, ax=axes[0, 1], label=f"depth [{unit}]", extend="max", pad=0.02)
    axes[0, 0].set_title("RGB", fontsize=10)
    axes[0, 1].set_title("predicted depth", fontsize=10)
    fig.suptitle(title, fontsize=11)
    if not n:
        axes[0, 2].axis("off")
        axes[0, 2].text(0.5, 0.5, "no unit fires on it", ha="center", va="center")
        return fig
    span = changes.abs().flatten()
    span = span[:: max(1, len(span) // 1_000_000)].quantile(0.99).item() or 1.0
    for ax, change in zip((*axes[1:, 1], axes[0, 2]), changes, strict=True):
        drawn = ax.imshow(change.numpy(), cmap=CHANGE, vmin=-span, vmax=span)
        ax.set_aspect(aspect * change.shape[1] / change.shape[0])
        _bare(ax)
    axes[0, 2].set_title("all units below wrong", fontsize=10)
    fig.colorbar(drawn, ax=axes[0, 2], label=f"change [{unit}]", extend="both", pad=0.02)
    highest = by_depth["change"].max() or 1.0
    for i, (_, about) in enumerate(units.iterrows()):
        response, ax = responses[i], axes[1 + i, 2]
        _map(axes[1 + i, 0], response)
        axes[1 + i, 0].set_aspect(aspect * response.shape[1] / response.shape[0])
        axes[1 + i, 0].set_ylabel(
            f"{about['layer']}, unit {about['unit']}\nDS {about['selectivity']:.2f}\n"
            f"{about['best_from_m']:.2f}–{about['best_to_m']:.2f} m",
            fontsize=8,
        )
        axes[1 + i, 0].set_xlabel(f"fires on {about['fires']:.0%}", fontsize=8)
        axes[1 + i, 1].set_xlabel(
            f"mean |change| {about['change']:.2g} {unit}"
            + (f" · ratio ≥ 1.25 on {about['fails']:.0%}" if about["fails"] >= 0 else ""),
            fontsize=8,
        )
        part = by_depth[(by_depth.layer == about["layer"]) & (by_depth.unit == about["unit"])]
        if metric:
            mean, edges = (x.numpy() for x in tuning[i])
            filled = np.nan_to_num(mean / np.nanmax(mean)) * highest
            ax.stairs(filled, edges, fill=True, color="0.85", label="answers to (data)")
            middle = (part["from"] + part["to"]) / 2
            ax.set_xlim(0, edges[-1])
        else:
            middle = np.arange(len(part)) + 0.5
            ax.set_xlim(0, len(part))
        line = {"color": PALETTE[0], "ms": 2.5, "lw": 1, "label": "changes (here)"}
        ax.plot(middle, part["change"], "o-", **line)
        ax.set_ylim(0, 1.08 * highest)
        ax.set_ylabel(f"mean |change|\n[{unit}]", fontsize=8)
        ax.tick_params(labelsize=7)
        sns.despine(ax=ax)
    axes[1, 0].set_title("where it fires", fontsize=9)
    axes[1, 1].set_title("if it alone were wrong", fontsize=9)
    axes[1, 2].legend(fontsize=7, frameon=False, loc="upper right")
    axes[-1, 2].set_xlabel(
        "depth [m]" if metric else "tenths of the picture, near to far", fontsize=8
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


def _bars(ax: Axes, response: Tensor, counts: Tensor, target: int) -> None:
    """One unit's mean response (N_b,) by depth bin; its assigned bin in colour."""
    index = np.arange(len(response))
    colours = [PALETTE[3] if i == target else "0.45" for i in index]
    ax.bar(index, np.where(counts > 0, response, np.nan), width=1.0, color=colours)
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.set_yticks([])
    ax.margins(x=0)
    sns.despine(ax=ax, left=True)


def _map(ax: Axes, activation: Tensor) -> None:
    """One unit's |activation| (h, w), on its own scale."""
    values = activation.abs().float().numpy()
    # A few pixels at the border can be far above all others; but a few may be all there is.
    top = np.quantile(values, 0.99) or values.max()
    ax.imshow(values, cmap=RESPONSE, vmin=0, vmax=top)
    _bare(ax)


def _mask(ax: Axes, where: Tensor, measured: Tensor) -> None:
    """(1, h, w) white where true, black where false, grey where it cannot be told."""
    shown = torch.where(measured, where.float(), 0.5).squeeze(0).cpu().numpy()
    ax.imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(ax)
    ax.spines[:].set(visible=True, color=_GREY, linewidth=0.8)  # white ends where the page begins


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
