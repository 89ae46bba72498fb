"""The networks, by name."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..checkpoints import Published, fetch, load_weights
from ..checks import unknown
from .adapt import adapt
from .base import DepthModel
from .bts import BTS
from .cspn import CSPN
from .epcdepth import EPCDepth
from .meter import METER, SIZES
from .mff import MFF

__all__ = ["MODELS", "DepthModel", "adapt", "build_model", "shipped_weights"]

#: Networks over any backbone, `<family>_<timm name>`; `backbones` are the publication's.
FAMILIES = {"mff": MFF, "bts": BTS, "cspn": CSPN, "epcdepth": EPCDepth}
#: By name. `build_model` takes `<family>_<timm name>` beside these.
MODELS: dict[str, Callable[..., DepthModel]] = {name: partial(METER, name) for name in SIZES} | {
    name: partial(network, name)
    for family, network in FAMILIES.items()
    for name in (f"{family}_{backbone}" for backbone in network.backbones)
}

#: The suite's own weights, `<model>_<data>_<variant>`, and the data that they learned from.
WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
SHIPPED = ("rooms", "streets")

METER_REPOSITORY = "https://raw.githubusercontent.com/lorenzopapa5/METER/HEAD/models"

# (model, dataset) -> the authors' file. The publication ships xs and s too, but no digest of
# those has been checked, so they are loaded from a path only.
PUBLISHED: dict[tuple[str, str], Published] = {
    ("meter_xxs", "nyu"): Published(
        f"{METER_REPOSITORY}/build_model_best_nyu_xxs",
        "327cddf3bfc85f4a13b8d18d2f13d8e40cdeb022ea397995c409ef1569bcbb53",
        "meter_xxs_nyu.pth",
    ),
    ("meter_xxs", "kitti"): Published(
        f"{METER_REPOSITORY}/build_model_best_kitti_xxs",
        "e55544ae36f9ad74237017fd5f8e761db4b258dbed44623c71ce305d44488bea",
        "meter_xxs_kitti.pth",
    ),
}


def build_model(
    name: str, *, weights: str | Path | None = None, variant: str | None = None, **options
) -> DepthModel:
    """Make a network, and fill it.

    Args:
        name: a key of `MODELS`, or `<family>_<timm name>` (a key of `FAMILIES`) for a network over
            another backbone of timm's, which must give maps of the publication's sizes
            (`mff_resnet18`, `mff_resnet18.a1_in1k`, `bts_mobilenetv3_small_100`).
        weights: None (random), `"imagenet"` (the backbone's: an installed package's,
            or through timm), `"published"` (the
            authors', downloaded once and checked), `"rooms"` or `"streets"` (the suite's own,
            in the package), or a path or URL of a checkpoint.
        variant: which of the suite's own; `"baseline"` by default.
        options: of the network; METER, BTS: `dataset="nyu" | "kitti"`, the convention of its
            weights; the others are those of the class.
    """
    make = MODELS.get(name)
    family = str(name).partition("_")[0]
    if make is None and family in FAMILIES and str(name) != family:
        make = partial(FAMILIES[family], name)  # which names near matches itself
    if make is None:
        known = [*MODELS, *(f"{family}_<timm name>" for family in FAMILIES)]
        raise ValueError(unknown("model", name, known))
    known = [key for key in inspect.signature(make).parameters if key != "name"]
    for key in options:
        if key not in known:
            raise TypeError(unknown(f"option of {name}", key, [*known, "weights", "variant"]))
    if variant is not None and weights not in SHIPPED:
        raise ValueError(
            f"variant={variant!r} picks shipped weights: it needs weights={' or '.join(SHIPPED)}."
        )

    model = make(**options)
    if weights is None:
        return model
    if weights == "imagenet":
        model.load_imagenet()
        return model
    if weights == "published":
        source = fetch(_published(model))
    elif weights in SHIPPED:
        source = shipped_weights(name, variant or "baseline", data=weights)
    elif not Path(weights).suffix and not Path(weights).parent.name and not Path(weights).exists():
        known = ("imagenet", "published", *SHIPPED, "a path", "a URL")
        raise ValueError(unknown(f"weights of {name}", weights, known))
    else:
        source = weights
        _refuse_other_convention(model, source)
    load_weights(model, source)
    return model


def _refuse_other_convention(model: DepthModel, source: str | Path) -> None:
    """The authors' files for NYU and KITTI have the same keys but other inputs and units."""
    path = Path(source)
    if not path.is_file() or path.stat().st_size > 2**26:
        return
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    for (name, dataset), file in PUBLISHED.items():
        if digest == file.sha256 and dataset != model.options.get("dataset"):
            raise ValueError(
                f"{path.name} holds the authors' weights for {dataset.upper()}, whose input and "
                f"unit differ: use build_model({name!r}, weights=…, dataset={dataset!r})."
            )


def shipped_weights(name: str, variant: str = "baseline", *, data: str = "rooms") -> Path:
    """The file with the suite's own weights of `name`, trained on the rendered `data`."""
    path = WEIGHTS / f"{name}_{data}_{variant}.safetensors"
    if not path.is_file():
        there = sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))
        raise FileNotFoundError(
            unknown("shipped weights", path.stem, there)
            if there
            else f"No shipped weights in {WEIGHTS}: this copy of mde_utils is not whole. Copy the "
            "package again with its folder weights, or pass a checkpoint's path as weights=."
        )
    return path


def _published(model: DepthModel) -> Published:
    key = (model.name, model.options.get("dataset", ""))
    if key not in PUBLISHED:
        known = ", ".join(f"{name} ({dataset})" for name, dataset in PUBLISHED)
        raise ValueError(
            f"No published weights of {' '.join(filter(None, key))} with a checked digest are "
            f"known. Known: {known}. Download the authors' file by hand and pass its path as "
            "weights=."
        )
    return PUBLISHED[key]
