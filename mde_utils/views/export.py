"""A network as an ONNX file that still knows its units."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from mde_utils.activations import find_layer, tap
from mde_utils.data.reading import check_options
from mde_utils.dissection import Dissection
from mde_utils.edits import checked_layers
from mde_utils.files import atomic

NEEDS = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-3  # of the largest value of an output: how far onnxruntime may be from torch


class _Tapped(nn.Module):
    """Depth, then the layers' maps, as a tuple."""

    def __init__(self, model: nn.Module, layers: list[str]):
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if not self.layers:
            return (self.model(image),)
        with tap(self.model, self.layers) as acts:
            depth = self.model(image)
        return depth, *(acts[layer] for layer in self.layers)


def export_onnx(
    model: nn.Module,
    path: str | Path,
    *,
    dissection: Dissection | None = None,
    layers: Iterable[str] | None = None,
    size: tuple[int, int] | None = None,
) -> Path:
    """Write a network to an ONNX file, and check it against torch with onnxruntime.

    Its input is `image` (b, 3, h, w), RGB in [0, 1], of any number of images of one size. Its
    outputs are `depth`, as the model gives it, and each layer's map under its name. Its metadata
    hold `model`, `scale` and, with a dissection, `units/<layer>`: a JSON list of `to_frame`'s rows
    (unit, selectivity, best and assigned bin with their metres), and `dissection`: what it was made
    on. The model itself stays as it is.

    Args:
        dissection: of the model; its layers become outputs.
        layers: those that do; None = all of the dissection, or none.
        size: (h, w); None = the model's `image_size`.

    Raises:
        ModuleNotFoundError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: unknown layer, a dissection of another model; a model that takes more than the
            image, or a size that it does not take; onnxruntime gives something else than torch.
            Then no file is written.
    """
    if absent := [name for name in NEEDS if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"Export to ONNX needs {', '.join(absent)}, which is not installed: pip install "
            f"{' '.join(absent)}"
        )
    name = str(getattr(model, "name", type(model).__name__))
    if inputs := tuple(getattr(model, "input_names", ())):
        raise ValueError(
            f"{name} takes {', '.join(inputs)} beside the image; only networks of an image alone "
            "are exported."
        )
    if layers is None:
        layers = [] if dissection is None else dissection.layers
    layers = [layers] if isinstance(layers, str) else list(layers)
    if dissection is not None:
        checked_layers(model, dissection, layers)
    for layer in layers:
        find_layer(model, layer)
    size = check_options(None, size or getattr(model, "image_size", None))
    if size is None:
        raise ValueError(f"At which size? {name} says none: give size=(height, width).")

    net = _Tapped(copy.deepcopy(model).cpu().eval(), layers)
    images = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = net(images)  # refuses a size that it does not take
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            try:
                program = torch.onnx.export(
                    net,
                    (images[:2],),
                    input_names=["image"],
                    output_names=["depth", *layers],
                    dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                    dynamo=True,
                    verbose=False,
                )
            except Exception as error:  # of the exporter, onnxscript or onnx_ir, as versions go
                have = ", ".join(f"{what} {version(what)}" for what in ("torch", "onnxscript"))
                first = (str(error).splitlines() or [""])[0][:200]
                raise RuntimeError(
                    f"{name} could not be exported with {have} ({type(error).__name__}: {first}). "
                    "Export is known to work from torch 2.11 with onnxscript 0.7 on and known to "
                    "fail with torch 2.6: pip install --upgrade torch onnxscript, or go without."
                ) from error
    about = {"model": name, "scale": str(getattr(model, "scale", "unknown"))}
    if dissection is not None:
        about["dissection"] = json.dumps(
            {**dissection.about, "images": dissection.images, "definition": dissection.definition}
        )
        for layer, frame in dissection.to_frame().groupby("layer", sort=False):
            if layer in layers:
                about[f"units/{layer}"] = frame.drop(columns="layer").to_json(orient="records")
    program.model.metadata_props.update(about)
    with atomic(path) as temporary:
        program.save(str(temporary))
        _check(temporary, images, dict(zip(["depth", *layers], expected, strict=True)))
    return Path(path)


def _check(path: Path, images: Tensor, expected: dict[str, Tensor]) -> None:
    """Refuse a file that gives something else than torch, for one image or several."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for number in (1, len(images)):
        found = session.run(list(expected), {"image": images[:number].numpy()})
        for (name, value), given in zip(expected.items(), found, strict=True):
            value, given = value[:number], torch.from_numpy(given)
            near = CLOSE * value.abs().max()
            if given.shape != value.shape or not bool(((given - value).abs() <= near).all()):
                raise ValueError(
                    f"onnxruntime gives {name} {tuple(given.shape)} that differs from torch's "
                    f"{tuple(value.shape)} for {number} images by more than {CLOSE:g} of its "
                    "largest value: this network cannot be exported as it is."
                )
