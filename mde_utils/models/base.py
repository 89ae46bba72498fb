"""What every depth network of the suite has in common."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
        options: the options that `build_model` made it with.
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
    multiple: int = 64

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

        Raises:
            TypeError: the image is not a float tensor, or an input is unknown.
            ValueError: wrong shape or range.
        """
        self._check(image, inputs)
        raw = self.forward_raw((image - self.mean) / self.std, **inputs)
        return raw.float() * self.metres_per_unit

    def forward_raw(self, x: Tensor, **inputs) -> Tensor:
        """The bare network of the publication: normalised input, output in its own unit."""
        raise NotImplementedError(f"{type(self).__name__} does not define forward_raw.")

    def load_imagenet(self) -> None:
        """Fill the encoder with weights learned on ImageNet, where the network has such."""
        raise ValueError(
            f"{self.name} has no ImageNet weights. Use None, 'published', 'rooms', a path."
        )

    def _check(self, image: Tensor, inputs: dict) -> None:
        unknown = [key for key in inputs if key not in self.input_names]
        if unknown:
            known = ", ".join(self.input_names) or "none, it takes the image alone"
            raise TypeError(f"Unknown input {unknown[0]!r} of {self.name}. Known inputs: {known}.")
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
