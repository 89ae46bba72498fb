"""Any network as a `DepthModel`. What its numbers mean is said once; nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import unknown
from .base import DepthModel

OUTPUTS = ("depth", "inverse_depth", "disparity", "logits")
RELATIVE = ("up to scale", "up to scale and shift")
FARTHEST = 1e-3  # of an image's largest inverse depth: nothing is farther than its reciprocal


def adapt(
    module: nn.Module,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    output: str | None = None,
    unit: float | str | None = None,
    field: str | int | None = None,
    centres: Sequence[float] | None = None,
    size: tuple[int, int] | int | None = None,
    image_size: tuple[int, int] | None = None,
    taps: Mapping[str, str] | Iterable[str] = (),
    tokens: Mapping[str, int | tuple[int, int]] | None = None,
    depth_range: tuple[float, float] | None = None,
    name: str | None = None,
) -> Adapted:
    """Make a module that takes images and gives depth, in whatever form, a `DepthModel`.

    The module stays itself, as `net` of what is returned: its weights are shared and trained.

    Args:
        module: called with the normalised image (b, 3, h, w) alone.
        mean, std: of each channel, that the module wants taken off and divided by; (0, 0, 0) and
            (1, 1, 1) where it takes RGB in [0, 1] as it is.
        output: what its numbers are: `"depth"`; `"inverse_depth"` or `"disparity"`, two words for
            what goes with 1 / depth; `"logits"`, a channel a depth of `centres`, whose depth is
            the expected one.
        unit: the depth in metres where a number is 1. Of depth in millimetres 0.001; of inverse
            depth in 1/metres 1; of a disparity in pixels of the network's input the focal length
            in such pixels times the baseline in metres. Or, where nobody knows, `"up to scale"` or
            `"up to scale and shift"`: then depth comes in the module's own unit.
        field: which part of a dict (its key), an object (its attribute) or a tuple (its place).
        centres: depths of the logits' channels, in the unit.
        size: (h, w) where the module takes images of one size alone; a number where sides must be
            multiples of it. Images of other sizes are resized, bilinear and antialiased.
        image_size: (h, w) of the images that it was trained on, for what has to choose a size
            (`explain`, `export_onnx`): (518, 518) of Depth Anything, say. None: `size`, else
            192x256.
        taps: layers by their paths in the module; or names of yours -> paths.
        tokens: of layers that give tokens (b, n, c), named as in `taps`: the side of a patch in
            pixels of the network's input, or (prefix, side) with so many class and register
            tokens in front. They are maps (b, c, h, w) everywhere then.
        depth_range: (nearest, farthest) metres that it is meant for; None leaves that to the data.
        name: for titles and tables; the module's class by default.

    A number at or below 0 has no reciprocal: inverse depth is raised to 1/1000 of the image's
    largest.
    """
    if output not in OUTPUTS:
        raise ValueError(
            f"What does {type(module).__name__} give? Say output=, one of {', '.join(OUTPUTS)}"
            + ("." if output is None else f"; got {output!r}.")
        )
    if isinstance(unit, str) or unit is None:
        if unit not in RELATIVE:
            raise ValueError(
                f"Of what unit is the {output} of {type(module).__name__}? Say unit=: the metres "
                f"where a number is 1, or {' or '.join(map(repr, RELATIVE))}"
                + ("." if unit is None else f"; got {unit!r}.")
            )
    elif not 0 < unit < float("inf"):
        raise ValueError(f"unit is in metres, above 0; got {unit}.")
    if (output == "logits") != (centres is not None):
        raise ValueError("centres, the depths of the channels, belong to output='logits'.")
    if not isinstance(taps, Mapping):
        taps = {path: path for path in ([taps] if isinstance(taps, str) else taps)}
    paths = dict(module.named_modules())
    for path in taps.values():
        if path not in paths:
            kind = f"layer of {type(module).__name__}"
            raise ValueError(unknown(kind, path, (), among=paths) + " See module.named_modules().")
    tokens = {k: (0, v) if isinstance(v, int) else tuple(v) for k, v in (tokens or {}).items()}
    if stray := [layer for layer in tokens if layer not in taps]:
        raise ValueError(f"tokens names {stray[0]!r}, which taps lacks: {', '.join(taps)}.")
    if isinstance(size, int):
        size = (size,)
    return Adapted(
        module,
        name=name or type(module).__name__,
        taps=dict(taps),
        tokens=tokens,
        output=output,
        unit=unit,
        field=field,
        centres=centres,
        size=size,
        image_size=image_size,
        mean=tuple(mean),
        std=tuple(std),
        depth_range=depth_range,
    )


class Adapted(DepthModel):
    """What `adapt` returns; its arguments are explained there.

    Attributes:
        net: the module.
        grids: layer -> (prefix, h, w) of its tokens, for the latest image (see `tap`).
    """

    def __init__(
        self,
        module,
        *,
        name,
        taps,
        tokens,
        output,
        unit,
        field,
        centres,
        size,
        image_size,
        mean,
        std,
        **options,
    ):
        metric = not isinstance(unit, str)
        super().__init__(
            name,
            {layer: f"net.{path}" for layer, path in taps.items()},
            mean=mean,
            std=std,
            metres_per_unit=unit if metric else 1.0,
            **options,
        )
        self.net, self.output, self.field, self.tokens = module, output, field, tokens
        self.scale = "metric" if metric else unit
        self.grids: dict[str, tuple[int, int, int]] = {}
        self.multiple = 1 if size is None else size[0] if len(size) == 1 else 0
        if self.multiple == 0:
            self.image_size = tuple(size)
        elif image_size is not None:
            self.image_size = tuple(image_size)
        centres = torch.as_tensor(() if centres is None else centres, dtype=torch.float32)
        self.register_buffer("centres", centres.view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor, **inputs) -> Tensor:
        """As `DepthModel.forward`; in metres where `scale` is metric, else in the unit there is."""
        self._check(image, inputs)
        value = self.forward_raw((image - self.mean) / self.std).float()
        if self.output == "logits":
            value = (value.softmax(1) * self.centres).sum(1, keepdim=True)
        elif self.output != "depth":
            least = value.detach().amax((1, 2, 3), keepdim=True) * FARTHEST
            value = 1 / torch.maximum(value, least.clamp(min=1e-6))
        return value * self.metres_per_unit

    def forward_raw(self, x: Tensor) -> Tensor:
        """The module's own numbers (b, 1, h', w'), or its logits, of a normalised image."""
        h, w = x.shape[-2:]
        if self.multiple == 0:
            size = self.image_size
        else:
            size = tuple(max(1, round(n / self.multiple)) * self.multiple for n in (h, w))
        if size != (h, w):
            x = F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)
        for layer, (prefix, side) in self.tokens.items():
            grid = (prefix, size[0] // side, size[1] // side)
            self.grids[layer] = self.grids[self.taps[layer]] = grid
        channels = self.centres.shape[1] if self.output == "logits" else 1
        return read_output(self.net(x), self.field, channels=channels, of=self.name)


def read_output(
    output, field: str | int | None = None, *, channels: int = 1, of: str = "The network"
) -> Tensor:
    """The map (b, channels, h, w) in what a network returns; (b, h, w) is one of one channel."""
    if field is not None:
        try:
            inside = isinstance(output, Mapping) or isinstance(field, int)
            output = output[field] if inside else getattr(output, field)
        except (LookupError, TypeError, AttributeError):
            raise ValueError(
                f"{of} returns no field {field!r}, but {_seen(output)}. Give another field=."
            ) from None
    if not isinstance(output, Tensor):
        raise ValueError(
            f"{of} returns {_seen(output)}. Say which of them is the depth: "
            "adapt(module, field=…, output=…, unit=…)."
        )
    if output.ndim == 3:
        output = output[:, None]
    if output.ndim != 4 or output.shape[1] != channels:
        wanted = "(b, 1, h, w) or (b, h, w)" if channels == 1 else f"(b, {channels}, h, w)"
        many = output.ndim == 4 and output.shape[1] > 1
        raise ValueError(
            f"{of} returns {tuple(output.shape)}; depth is {wanted}."
            + (
                f" If its {output.shape[1]} channels are logits of depths, give adapt "
                "output='logits' and centres=, a depth for each; if they are features or classes, "
                "put a layer behind that makes one channel of them."
                if many
                else ""
            )
        )
    return output


def _seen(output) -> str:
    """In words, what a network returned: `a dict of 'out' (2, 21, 8, 8), 'aux' (2, 21, 8, 8)`."""

    def one(value) -> str:
        return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__

    if isinstance(output, Mapping):
        parts = [f"{key!r} {one(value)}" for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        parts = [f"{i} {one(value)}" for i, value in enumerate(output)]
    elif isinstance(output, Tensor):
        return f"a tensor {one(output)}"
    else:
        parts = (
            [f"{key!r} {one(value)}" for key, value in vars(output).items()]
            if hasattr(output, "__dict__")
            else []
        )
    return f"{type(output).__name__} of {', '.join(parts) or 'nothing'}"
