"""What every depth network of the suite has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

from ..checks import unknown

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Size = tuple[int, int]


class DepthModel(nn.Module):
    """A network that maps RGB in [0, 1] to depth in metres.

    A subclass implements `forward_raw` and declares `taps` beside its layers. The normalisation
    constants are non-persistent buffers, so that a state dict holds the publication's keys only.

    Attributes:
        name: the name under which `build_model` knows the network.
        taps: the publication's layer names -> module paths, from input to output.
        input_names: further inputs of `forward` (`focal`, `sparse_depth`), () for an image alone.
        dead_keys: prefixes of keys in published checkpoints that no layer uses.
        renamed_keys: parts of keys in published checkpoints -> this network's.
        loss_scale: factor of the depth loss in training, so that `imde_alpha` means the same for
            every model.
        metres_per_unit: metres in one unit of `forward_raw`.
        depth_range: (nearest, farthest) depth in metres that the network is meant for.
        options: what decides how the weights are to be read (a convention, a baseline, a width that
            the file must match), not how they are trained: stored beside them by `save_weights`,
            compared by `load_weights`.
        pretrained: the path of timm's encoder in it, and what makes that anew as a tuple's first
            (`make(pretrained=True)`); None = no ImageNet weights.
        scale: what is known of its depth: `"metric"`, or a weaker word of `adapt`'s.
        image_size: (h, w) of the images that it was made for; a larger or smaller picture of
            the same view looks to it like another camera's.
        multiple: the sides of its images are multiples of this; 0 = `image_size` alone.
    """

    input_names: tuple[str, ...] = ()
    dead_keys: tuple[str, ...] = ()
    renamed_keys: Mapping[str, str] = MappingProxyType({})
    loss_scale: float = 1.0
    scale: str = "metric"
    image_size: tuple[int, int] = (192, 256)
    multiple: int = 32
    pretrained: tuple[str, Callable[..., tuple]] | None = None

    def __init__(
        self,
        name: str,
        taps: dict[str, str],
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        metres_per_unit: float = 1.0,
        depth_range: tuple[float, float] = (0.75, 10.0),
        options: dict | None = None,
    ):
        super().__init__()
        self.name = name
        self.taps = dict(taps)
        self.metres_per_unit = metres_per_unit
        self.depth_range = depth_range
        self.options = dict(options or {})
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, image: Tensor, **inputs) -> Tensor:
        """Depth of `image`.

        Args:
            image: (b, 3, h, w) RGB in [0, 1].
            inputs: what `input_names` lists, and nothing else.

        Returns:
            (b, 1, h', w') float32 depth in metres, at the network's own resolution.
        """
        self._check(image, inputs)
        raw = self.forward_raw((image - self.mean) / self.std, **inputs)
        return raw.float() * self.metres_per_unit

    def forward_raw(self, x: Tensor, **inputs) -> Tensor:
        """The bare network of the publication: normalised input, output in its own unit."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward_raw.")

    def load_imagenet(self) -> None:
        """Fill the encoder with weights learned on ImageNet, where the network has such."""
        if self.pretrained is None:
            raise ValueError(
                f"{self.name} has no ImageNet weights. Use None, 'published', 'rooms', a path."
            )
        path, make = self.pretrained
        self.get_submodule(path).load_state_dict(make(pretrained=True)[0].state_dict())

    def fitting_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) at which to show the network a picture of `height` x `width`: about as many pixels
        as `image_size` has, in the picture's own shape, by `multiple`s."""
        if not self.multiple:
            return tuple(self.image_size)
        factor = math.sqrt(math.prod(self.image_size) / (height * width)) / self.multiple
        return tuple(max(1, round(n * factor)) * self.multiple for n in (height, width))

    def _check(self, image: Tensor, inputs: dict) -> None:
        for key in inputs:
            if key not in self.input_names:
                known = self.input_names or ["none, it takes the image alone"]
                raise TypeError(unknown(f"input of {self.name}", key, known))
        if not isinstance(image, Tensor) or not image.is_floating_point():
            given = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"{self.name} takes a float image in [0, 1], got {given}. "
                "Divide 8-bit images by 255."
            )
        if image.ndim != 4 or image.shape[1] != 3:
            raise ValueError(
                f"{self.name} takes images of shape (b, 3, h, w), got {tuple(image.shape)}. "
                "Add the batch dimension with image[None]."
            )
        # The values are looked at only where that needs no synchronisation with a GPU. The
        # margin lets noise and attacks pass and stops 0-255 and already normalised images.
        if image.device.type == "cpu" and image.numel() and not torch.compiler.is_compiling():
            low, high = (value.item() for value in image.detach().aminmax())
            if low < -0.5 or high > 1.5:
                raise ValueError(
                    f"{self.name} takes images in [0, 1] and normalises them itself, got values "
                    f"from {low:.3g} to {high:.3g}. Divide 8-bit images by 255; pass normalised "
                    "ones to forward_raw."
                )


def check_size(
    x: Tensor, *, name: str, multiple: int, smallest: int | None = None, slack: Size = (0, 0)
) -> None:
    """Refuse images of sizes that a network cannot take; name the nearest that it can.

    Args:
        x: (…, h, w), the images.
        smallest: side; `multiple` where nothing is said.
        slack: how much the height and the width may fall short of a multiple.
    """
    smallest, wrong = smallest or multiple, []
    for what, size, short in zip(("height", "width"), x.shape[-2:], slack, strict=True):
        above = max(-(-size // multiple) * multiple, smallest)
        if size < above - short:
            near = [n for n in (above - multiple, above - short) if n >= smallest - short]
            wrong.append(f"{what} {size} (nearest: {' or '.join(map(str, near))})")
    if wrong:
        rule = "Any size" if multiple == 1 else f"Multiples of {multiple}"
        raise ValueError(
            f"{name} cannot take images of {x.shape[-2]}x{x.shape[-1]}: impossible "
            f"{' and '.join(wrong)}. {rule} from {smallest} on always work."
        )
