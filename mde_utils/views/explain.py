"""One call for a picture of your own: its depth, the units behind it, and what hangs on them."""

from __future__ import annotations

import base64
import html
import io
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

from mde_utils.activations import check_map, evaluating, find_layer, tap
from mde_utils.data import load_dataset
from mde_utils.data.folder import IMAGES as ENDINGS
from mde_utils.data.reading import as_rgb, check_options, open_picture
from mde_utils.dissection import Dissection, dissect
from mde_utils.edits import checked_layers, edits
from mde_utils.environment import progress
from mde_utils.evaluation import MIN_DEPTH
from mde_utils.files import atomic, download
from mde_utils.models.adapt import read_output
from mde_utils.models.base import DepthModel
from mde_utils.passes import device_of, name_of
from mde_utils.replay import Recorder
from mde_utils.views import plots

LONGEST = 2048  # pixels of a side of what is shown; larger pictures are resized, and it is said
SMALLEST = 32
SHAPE = 16  # times as long as wide, at most
BYTES = 2**28  # of a download
IMAGES = 32  # rendered scenes of a dissection that is made here
NEGATIVE = 0.05  # of a prediction's pixels may be no depth
FIRES = 0.5  # of the unit's strongest mean response: a pixel where it is above that fires
EVERYWHERE = 0.01  # of the picture: a unit that fires on less is passed over
FAILS = 1.25  # ratio of two depths from which one is wrong, as in δ1
TENTHS = 10


@dataclass(frozen=True, eq=False)
class Explanation:
    """What `explain` found.

    Attributes:
        name: of the picture.
        image: (3, H, W) RGB in [0, 1].
        depth: (1, H, W), metres where `scale` is `"metric"`, else the model's own unit.
        scale: `"metric"`, `"up to scale"`, `"up to scale and shift"` or `"unknown"`.
        units: a row a unit, the most selective first: `layer`, `unit`, `selectivity`,
            `best_from_m` and `best_to_m` (the depth that it answers to most in the dissection),
            `fires` (share of the picture where |response| is above half of its strongest mean
            response), `change` (mean |difference| of the depth if the unit is wrong), `fails`
            (share of the picture where the depths differ by a ratio of 1.25 or more), `worst_from`
            and `worst_to` (the predicted depth that changes most).
        together: `change` and `fails` if all of them are wrong at once.
        responses: of each unit, |response| (h, w).
        changes: (n, h, w) the depth if the unit is wrong, less the depth; of the last all of them.
        by_depth: a row a unit and bin of predicted depth: `layer`, `unit`, `from`, `to`, `share` of
            the picture, `change`.
        tuning: of each unit, |mean response| (N_b,) to the bins of its layer in the dissection, NaN
            in bins without a pixel, and the bins' edges.
        said: how the picture was taken, what scale its depth has, which units were looked at.
    """

    name: str
    image: Tensor
    depth: Tensor
    scale: str
    units: pd.DataFrame
    together: dict[str, float]
    responses: list[Tensor]
    changes: Tensor
    by_depth: pd.DataFrame
    tuning: list[tuple[Tensor, Tensor]]
    said: str

    def __str__(self) -> str:
        return self.said

    def figure(self) -> Figure:
        """See `plots.plot_explanation`."""
        return plots.plot_explanation(
            self.image,
            self.depth,
            self.units,
            responses=self.responses,
            changes=self.changes,
            by_depth=self.by_depth,
            tuning=self.tuning,
            metric=self.scale == "metric",
            title=f"{self.name} · depth: {self.scale}",
        )

    def save(self, folder: str | Path) -> Path:
        """Write `<name>.npy` (depth (H, W) float32), `.csv` (units) and `.png` (the figure).

        Each file is written whole or not at all. Returns the folder.
        """
        folder = Path(folder)
        figure = self.figure()
        with atomic(folder / f"{self.name}.png") as path:
            figure.savefig(path, dpi=100)
        plt.close(figure)
        with atomic(folder / f"{self.name}.npy") as path:
            np.save(path, self.depth[0].numpy())
        with atomic(folder / f"{self.name}.csv") as path:
            self.units.to_csv(path, index=False)
        return folder


def explain(
    image,
    model: nn.Module,
    *,
    dissection: Dissection | None = None,
    layers: Iterable[str] | None = None,
    num_units: int = 5,
    size: tuple[int, int] | None = None,
    verbose: bool = True,
) -> Explanation:
    """The depth of a picture, the most selective units that fire on it, and what hangs on them.

    "Wrong" is a unit that answers the same everywhere: its mean response over the dissection's
    data. Where the depth changes then, the prediction would fail if the unit did.

    Args:
        image: a path, an address (http, https), an array (H, W, 3), uint8 or float in [0, 1], a
            tensor (3, H, W) likewise, or a PIL image; any size from 32x32 on, turned by its EXIF
            mark and made RGB (see `as_rgb`). Sides above 2048 are resized. Or an item of a data
            set; it stays as it is where the model takes more of it than the image.
        model: maps images to depth; one that gives something else needs `adapt` first.
        dissection: of the model, on data like the picture. None: one is made here, on 32 rendered
            rooms (streets, for a model of more than 20 m), as a first impression.
        layers: of the dissection, whose units are looked at; None = all of a dissection that is
            given, else the last of the model's taps.
        num_units: how many at most.
        size: (h, w) at which the network is shown the picture. None: as many pixels as its
            `image_size` (192x256) has, in the picture's own shape, by `multiple`s.
        verbose: print what `Explanation.said` holds.
    """
    alone = not isinstance(image, Mapping)
    names, size = _checked_options(model, alone, num_units=num_units, size=size)
    name, picture, inputs, said = _read(image, names)
    h, w = picture.shape[-2:]
    shown = picture[None]
    if not inputs:
        fed = size or _fed(model, h, w)
        if fed != (h, w):
            shown = F.interpolate(
                shown, fed, mode="bilinear", antialias=True, align_corners=False
            ).clamp(0, 1)
            said += f"; the network is shown {fed[0]}x{fed[1]}"
    elif size is not None:
        raise ValueError("size is for a picture alone; an item stays as it is.")
    shown = shown.to(device_of(model))
    inputs = {k: v.to(shown.device) for k, v in inputs.items()}
    first = _first(model, shown, inputs, name)
    if dissection is None:
        dissection, made = _rendered(model, layers)
        said += f".\n{made}"
    layers = dissection.layers if layers is None else layers
    layers = checked_layers(model, dissection, layers)

    with evaluating(model):
        with tap(model, layers) as acts:
            read_output(model(shown, **inputs), of=name_of(model))
        chosen = _firing(dissection, layers, acts, num_units)
        rest = Recorder(model, layers)(shown, inputs)

        def run(units: Iterable[tuple[str, int]]) -> Tensor:
            by_layer: dict[str, list[int]] = {}
            for layer, unit in units:
                by_layer.setdefault(layer, []).append(unit)
            made = edits(by_layer, "mean", dissection=dissection) if by_layer else {}
            return read_output(rest.run(made)).float().cpu()

        scale = str(getattr(model, "scale", "unknown"))
        least = MIN_DEPTH if scale == "metric" else 1e-3 * first.median().item()
        depth = run([]).clamp(min=least)
        pairs = [*zip(chosen["layer"], chosen["unit"], strict=True)]
        sets = [*([pair] for pair in pairs), pairs] if pairs else []
        others = [run(units).clamp(min=least) for units in sets]
    measured = [_compare(depth, other) for other in others]
    if scale == "up to scale and shift":  # a ratio means nothing then
        measured = [{**one, "fails": math.nan} for one in measured]
    units, by_depth = chosen, []
    for (layer, unit), other in zip(pairs, others, strict=False):
        edges = dissection.bins[layer].edges if scale == "metric" else _tenths(depth)
        bins = _by_depth(depth, other, edges)
        by_depth.append(bins.assign(layer=layer, unit=unit))
    for key in ("change", "fails"):
        units[key] = [one[key] for one in measured[:-1]]
    worst = [bins.loc[bins["change"].idxmax()] for bins in by_depth]
    for key in ("from", "to"):
        units[f"worst_{key}"] = [row[key] for row in worst]
    said += f".\nDepth: {_scale_words(scale)}"
    said += f".\n{_units_words(units, measured[-1]['fails'] if pairs else math.nan, layers)}."
    if verbose:
        print(said)
    return Explanation(
        name=name,
        image=picture,
        depth=F.interpolate(depth, (h, w), mode="bilinear", align_corners=False)[0],
        scale=scale,
        units=units,
        together=measured[-1] if pairs else {"change": 0.0, "fails": 0.0},
        responses=[acts[layer][0, unit].abs().float().cpu() for layer, unit in pairs],
        changes=torch.stack([(other - depth)[0, 0] for other in others])
        if others
        else depth.new_zeros(0, *depth.shape[-2:]),
        by_depth=pd.concat(by_depth, ignore_index=True) if by_depth else pd.DataFrame(),
        tuning=[
            (
                torch.where(dissection.counts[k] > 0, dissection.response[k][u].abs(), torch.nan),
                dissection.bins[k].edges,
            )
            for k, u in pairs
        ],
        said=said,
    )


def _first(model: nn.Module, shown: Tensor, inputs: dict[str, Tensor], name: str) -> Tensor:
    """The prediction; refuses what is no depth before any more work."""
    with evaluating(model):
        first = read_output(model(shown, **inputs), of=name_of(model))
    if not bool(first.isfinite().all()):
        raise ValueError(f"The prediction for {name} holds NaN or infinity.")
    if (none := (first <= 0).float().mean().item()) > NEGATIVE:
        raise ValueError(
            f"{none:.0%} of the prediction for {name} is 0 or below, which is no depth. What does "
            f"{name_of(model)} give? Say so: adapt(model, output=…, unit=…)."
        )
    return first


def _units_words(units: pd.DataFrame, fails: float, layers: Iterable[str]) -> str:
    if not len(units):
        return f"No unit of {', '.join(layers)} fires on this picture"
    words = f"{len(units)} units of {', '.join(dict.fromkeys(units['layer']))} fire on it, of the "
    words += "most selective ones"
    if not math.isnan(fails):
        words += f"; if all were wrong, {fails:.0%} of the picture would change by a ratio of 1.25 "
        words += "or more"
    return words


def explain_folder(
    source: str | Path,
    model: nn.Module,
    target: str | Path,
    *,
    dissection: Dissection | None = None,
    layers: Iterable[str] | None = None,
    **options,
) -> Path:
    """`explain` every picture of a folder, into a folder of results and one page of them all.

    The page, `index.html`, needs no other file and no network. Each picture also gets what
    `Explanation.save` writes. All pictures are decoded before the first is explained, and `target`
    appears when everything is written.

    Args:
        source: a folder; its PNG, JPEG, WebP, BMP and TIFF files are taken, folders below it are
            not looked into.
        target: a folder that is not there yet, or empty.
        dissection, layers, options: see `explain`; a dissection that it makes is made once.

    Returns:
        the page's path.
    """
    target = Path(target).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} holds something already: choose another, or empty it.")
    pictures = _pictures(source)
    for name, times in Counter(path.stem for path in pictures).items():
        if times > 1:
            raise ValueError(f"{times} pictures are called {name}, but for the ending. Rename.")
    _checked_options(model, True, **options)
    for path in pictures:
        _read(path, ())
    said = ""
    if dissection is None:
        dissection, said = _rendered(model, layers)
        layers = None
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        parts, rows = [], []
        for path in progress(pictures, desc="explain"):
            found = explain(
                path, model, dissection=dissection, layers=layers, verbose=False, **options
            )
            found.save(work)
            rows.append(_summary(found))
            parts.append(_section(found, work / f"{found.name}.png"))
        title = f"{name_of(model)}: {len(parts)} pictures of {Path(source).name}"
        page = _PAGE.format(
            title=html.escape(title),
            said=html.escape(f"Depth: {_scale_words(found.scale)}. {said}"),
            table=_table(pd.DataFrame(rows), escape=False),
            parts="\n".join(parts),
        )
        (work / "index.html").write_text(page, encoding="utf-8")
        work.chmod(0o755)  # mkdtemp makes it private
        if target.exists():
            target.rmdir()
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{len(parts)} pictures, depth {found.scale}: {target / 'index.html'}")
    return target / "index.html"


# ---- the picture ---------------------------------------------------------------------------


def _pictures(folder: str | Path) -> list[Path]:
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if not paths:
        raise FileNotFoundError(
            f"No picture lies in {folder}: it needs files that end in {', '.join(ENDINGS)}. "
            "Folders below it are not looked into."
        )
    return paths


def _checked_options(
    model: nn.Module,
    alone: bool,
    *,
    num_units: int = 5,
    size: tuple[int, int] | None = None,
) -> tuple[tuple[str, ...], tuple[int, int] | None]:
    """The model's further inputs, and the size; refuses before any work. `alone`: no item."""
    if num_units < 1:
        raise ValueError(f"num_units must be at least 1; got {num_units}.")
    names = tuple(getattr(model, "input_names", ()))
    if names and alone:
        raise ValueError(
            f"{name_of(model)} takes {', '.join(names)} beside the image: give an item of a data "
            "set that has them."
        )
    return names, check_options(None, size)


def _read(image, names: tuple[str, ...]) -> tuple[str, Tensor, dict[str, Tensor], str]:
    """Name, RGB (3, H, W) in [0, 1], the model's further inputs, and what was done, in words."""
    if isinstance(image, Mapping):
        if missing := [key for key in ("image", *names) if key not in image]:
            raise ValueError(f"The item has no {missing[0]!r}; it has {', '.join(image)}.")
        inputs = {key: torch.as_tensor(image[key])[None] for key in names}
        name = str(image.get("name", "image")).replace("/", "_")
        picture = _checked(torch.as_tensor(image["image"]))
        return name, picture, inputs, f"{name}: {_sides(picture)}"
    name = "image"
    if isinstance(image, (str, Path)):
        address = urlparse(str(image))
        if address.scheme in ("http", "https"):
            name = Path(address.path).stem or address.netloc
            image = _opened(_download(str(image)), image)
        else:
            path = Path(image).expanduser()
            if path.is_dir():
                raise ValueError(
                    f"{path} is a folder: explain_folder(folder, model, target) takes all its "
                    "pictures."
                )
            if not path.is_file():
                raise FileNotFoundError(f"There is no picture {path}.")
            name, image = path.stem, _opened(path, path)
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"An array of an image is (H, W, 3), uint8 or float in [0, 1]; got {image.shape}."
            )
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    elif isinstance(image, Image.Image):
        image = as_rgb(image, "the image")
    elif not isinstance(image, Tensor):
        raise TypeError(
            "An image is a path, an address, an array (H, W, 3), a tensor (3, H, W), a PIL image "
            f"or an item of a data set; got {type(image).__name__}."
        )
    if isinstance(image, Image.Image):
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    picture = _checked(image)
    said, longest = f"{name}: {_sides(picture)}", max(picture.shape)
    if longest > LONGEST:
        sides = [max(1, round(n * LONGEST / longest)) for n in picture.shape[-2:]]
        picture = F.interpolate(
            picture[None], sides, mode="bilinear", antialias=True, align_corners=False
        )[0].clamp(0, 1)
        said += f", resized to {_sides(picture)}"
    return name, picture, {}, said


def _checked(image: Tensor) -> Tensor:
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(
            f"A tensor of an image is (3, H, W), uint8 or float in [0, 1]; got "
            f"{tuple(image.shape)}."
        )
    if image.dtype == torch.uint8:
        image = image.float() / 255
    elif not image.is_floating_point():
        raise ValueError(f"An image is uint8, or float in [0, 1]; got {image.dtype}.")
    h, w = image.shape[1:]
    if min(h, w) < SMALLEST:
        raise ValueError(
            f"The image has {h}x{w} pixels, in which no depth can be seen: {SMALLEST}x{SMALLEST} "
            "are the least."
        )
    if max(h, w) > SHAPE * min(h, w):
        raise ValueError(
            f"The image has {h}x{w} pixels: one side may be at most {SHAPE} times the other, for "
            "networks have not seen such shapes. Cut it into parts."
        )
    image = image.detach().float().cpu()
    if not bool(image.isfinite().all()) or image.min() < 0 or image.max() > 1:
        raise ValueError(
            f"A float image lies in [0, 1]; got values from {image.min():.3g} to "
            f"{image.max():.3g}. Divide 8-bit values by 255."
        )
    return image


def _opened(source, of) -> Image.Image:
    with open_picture(source, of) as image:
        return as_rgb(image, of)


def _download(address: str) -> io.BytesIO:
    picture = io.BytesIO()
    try:
        download(address, picture, limit=BYTES, seconds=120)
    except (ConnectionError, ValueError) as error:
        raise type(error)(f"{error} Download the picture elsewhere and give its path.") from None
    picture.seek(0)
    return picture


def _fed(model: nn.Module, h: int, w: int) -> tuple[int, int]:
    """(h', w') that the network is shown, see `explain`."""
    says = hasattr(model, "image_size") and hasattr(model, "multiple")  # wrapped networks, too
    return DepthModel.fitting_size(model if says else DepthModel, h, w)


# ---- the units -----------------------------------------------------------------------------


def _rendered(model: nn.Module, layers: Iterable[str] | None) -> tuple[Dissection, str]:
    """A dissection on rendered scenes, for who has none, and that in words."""
    if layers is None:
        layers = [*(getattr(model, "taps", None) or {})][-1:]
        if not layers:
            raise ValueError(
                f"Which units? {name_of(model)} names no layers of its own: give layers=, paths "
                "from model.named_modules(), or a dissection."
            )
    layers = [layers] if isinstance(layers, str) else list(layers)
    for layer in layers:
        find_layer(model, layer)
    far = (getattr(model, "depth_range", None) or (0, 0))[1]
    scenes = "streets" if far > 20 else "rooms"
    data = load_dataset(
        scenes,
        "train",
        size=_fed(model, *getattr(model, "image_size", (192, 256))),
        limit=IMAGES,
        fields=["image", "depth"],
    )
    said = (
        f"Units are judged by {len(data)} rendered {scenes}; for more, give a dissection of data "
        "like the picture"
    )
    return dissect(model, data, layers), said


def _firing(
    dissection: Dissection, layers: list[str], acts: Mapping[str, Tensor], num_units: int
) -> pd.DataFrame:
    """The most selective units that fire on the picture."""
    frame = dissection.to_frame().query("layer in @layers").reset_index(drop=True)
    fires = []
    for layer, part in frame.groupby("layer", sort=False):
        strongest = dissection.response[layer].abs().amax(1)
        check_map(layer, acts[layer], known=len(strongest))
        above = acts[layer][0].abs() > FIRES * strongest.to(acts[layer])[:, None, None]
        share = above.flatten(1).float().mean(1).cpu() * (strongest > 0)
        fires.append(pd.Series(share.numpy(), part.index))
    frame["fires"] = pd.concat(fires)
    frame = frame[(frame["fires"] >= EVERYWHERE) & frame["selectivity"].notna()]
    frame = frame.sort_values("selectivity", ascending=False, kind="stable").head(num_units)
    columns = ["layer", "unit", "selectivity", "best_from_m", "best_to_m", "fires"]
    return frame[columns].reset_index(drop=True)


def _compare(depth: Tensor, other: Tensor) -> dict[str, float]:
    ratio = torch.maximum(depth / other, other / depth)
    fails = (ratio >= FAILS).float().mean().item()
    return {"change": (other - depth).abs().mean().item(), "fails": fails}


def _tenths(depth: Tensor) -> Tensor:
    """Edges that divide the pixels of a depth without metres into tenths, near to far."""
    steps = torch.linspace(0, 1, TENTHS + 1, dtype=torch.float64)
    edges = torch.quantile(depth.double().flatten(), steps)
    edges[0] = 0
    return edges.unique()


def _by_depth(depth: Tensor, other: Tensor, edges: Tensor) -> pd.DataFrame:
    """Mean |change| by bin of the depth; the last bin takes what is beyond, too."""
    number = len(edges) - 1
    index = torch.bucketize(depth.double().flatten(), edges) - 1
    index = index.clamp(0, number - 1)
    change = (other - depth).abs().double().flatten()
    pixels = torch.bincount(index, minlength=number)
    mean = torch.bincount(index, change, minlength=number) / pixels
    frame = pd.DataFrame(
        {"from": edges[:-1], "to": edges[1:], "share": pixels / len(index), "change": mean}
    )
    return frame[frame["share"] > 0].reset_index(drop=True)


def _scale_words(scale: str) -> str:
    return {
        "metric": "metric, metres as the network learned them; another camera or another kind of "
        "scene may be off by a factor",
        "up to scale": "up to an unknown scale, ratios alone mean something",
        "up to scale and shift": "up to an unknown scale and shift, order alone means something",
    }.get(scale, "of unknown scale: the model does not say (adapt(module, unit=…) does)")


def _sides(image: Tensor) -> str:
    return "x".join(map(str, image.shape[-2:]))


# ---- the page ------------------------------------------------------------------------------

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: auto; padding: 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }}
th, td {{ padding: .2rem .7rem; border-bottom: 1px solid #ddd; text-align: right }}
th:first-child, td:first-child {{ text-align: left }}
img {{ max-width: 100% }}
pre {{ white-space: pre-wrap; color: #444 }}
</style></head><body>
<h1>{title}</h1>
<p>{said}</p>
{table}
{parts}
</body></html>
"""


def _summary(found: Explanation) -> dict:
    low, middle, high = found.depth.flatten().quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    unit = " [m]" if found.scale == "metric" else ""
    return {
        "picture": f'<a href="#{html.escape(found.name)}">{html.escape(found.name)}</a>',
        f"5 % nearest{unit}": low,
        f"median{unit}": middle,
        f"5 % farthest{unit}": high,
        "units that fire": len(found.units),
        "fails if all are wrong": f"{found.together['fails']:.0%}".replace("nan%", "unknown"),
    }


def _table(frame: pd.DataFrame, *, escape: bool = True) -> str:
    return frame.to_html(index=False, escape=escape, float_format="{:.2f}".format, border=0)


def _section(found: Explanation, picture: Path) -> str:
    name = html.escape(found.name)
    data = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<h2 id="{name}">{name}</h2>\n<pre>{html.escape(found.said)}</pre>\n'
        f'<img alt="{name}" src="data:image/png;base64,{data}">\n{_table(found.units)}'
    )
