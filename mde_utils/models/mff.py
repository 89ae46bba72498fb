"""MFF: multi-scale feature fusion over any backbone (Hu, Ozay, Zhang, Okatani, WACV 2019).

Written from the paper and the shapes of the published weights; attribute names follow their keys.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbones import input_statistics, timm_features, timm_model
from .base import DepthModel, Size, check_size

STRIDES = (4, 8, 16, 32)
SMALLEST = 32
FUSED = 16  # units of each of the four branches of the fusion

# The publication's backbones in timm's words, with the weights that it started from.
PUBLISHED_BACKBONES = {
    "resnet50": "resnet50.tv_in1k",
    "senet154": "legacy_senet154.in1k",
    "densenet161": "densenet161.tv_in1k",
}
# Old torchvision's names inside a dense layer, which torch has forbidden since. Keys are read
# with these replacements (`DepthModel.renamed_keys`).
DENSENET_DOTS = {f".{kind}.{i}.": f".{kind}{i}." for kind in ("norm", "conv") for i in (1, 2)}


# ---------------------------------------------------------------------------- encoders


class SENet(nn.Module):
    """timm's SENet, nested as the publication's: `base.0` is the stem, `base.1` … the stages."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.base = nn.Sequential(net.layer0, net.layer1, net.layer2, net.layer3, net.layer4)
        self.pool = net.pool0

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(self.base[0](x))
        blocks = []
        for stage in self.base[1:]:
            x = stage(x)
            blocks.append(x)
        return blocks


class DenseNet(nn.Module):
    """timm's DenseNet; a block's features are taken behind its transition's norm, ReLU and 1x1
    convolution, before the pooling, and the last block's behind the final norm and ReLU."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.features = net.features

    def forward(self, x: Tensor) -> list[Tensor]:
        blocks = []
        for name, layer in self.features.named_children():
            if name.startswith("transition"):
                x = layer.conv(layer.norm(x))
                blocks.append(x)
                x = layer.pool(x)
            else:
                x = layer(x)
        return [*blocks, x]


def make_encoder(
    backbone: str, *, name: str, pretrained: bool = False
) -> tuple[nn.Module, list[int], dict]:
    """timm's `backbone` as a module that gives maps at 1/4, 1/8, 1/16 and 1/32.

    Returns:
        the module, the channels of its four maps, and timm's description of its weights.
    """
    arch = backbone.split(".")[0]
    if arch == "legacy_senet154":
        net = timm_model(backbone, name=name, pretrained=pretrained)
        return SENet(net), [256, 512, 1024, 2048], net.pretrained_cfg
    if arch.startswith("densenet"):
        net = timm_model(backbone, name=name, pretrained=pretrained)
        layers = dict(net.features.named_children())
        channels = [t.conv.out_channels for key, t in layers.items() if "transition" in key]
        return DenseNet(net), [*channels, net.num_features], net.pretrained_cfg
    return timm_features(backbone, STRIDES, name=name, pretrained=pretrained)


# ---------------------------------------------------------------------------- decoder


class UpConv2d(nn.Conv2d):
    """A convolution (odd kernel, zero padding, no bias) of its input bilinearly upsampled to a
    size, without ever upsampling the input.

    Upsampling acts on positions, a kernel's tap on channels, so they commute: each tap is a 1x1
    convolution at the low resolution, and what the taps give is upsampled, shifted and summed by
    one product with a matrix per axis. At 228x304 that spares ResNet-50's fusion 95 % of its
    multiplications and the memory of 3840 upsampled channels. Equal to rounding.
    """

    def __init__(self, inp: int, out: int, kernel: int):
        super().__init__(inp, out, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        b, c, h, w = x.shape
        k, units = self.kernel_size[0], self.out_channels
        taps = self.weight.permute(0, 3, 2, 1).reshape(units * k * k, c, 1, 1)  # columns, rows
        z = F.conv2d(x.contiguous(), taps).reshape(b, units * k, k * h, w)
        z = _shifted_upsampling(h, size[0], k, z.device, z.dtype).T @ z
        z = z.reshape(b, units, k, size[0], w).transpose(2, 3).reshape(b, units, size[0], k * w)
        return z @ _shifted_upsampling(w, size[1], k, z.device, z.dtype)


@functools.lru_cache(maxsize=128)
def _shifted_upsampling(
    inp: int, out: int, kernel: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """(kernel * inp, out): rows i * inp … upsample an axis, seen through a kernel's tap i."""
    with torch.inference_mode(False), torch.autocast("cpu", enabled=False):
        eye = torch.eye(inp, device="cpu")[:, None]
        up = F.interpolate(eye, out, mode="linear", align_corners=False)[:, 0]
        up = F.pad(up, (kernel // 2, kernel // 2))
        return torch.cat([up[:, i : i + out] for i in range(kernel)]).to(device, dtype)


class UpProj(nn.Module):
    """Upsampling to a given size, then a residual unit; out: (b, out, *size) after its ReLU."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv1 = UpConv2d(inp, out, 5)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv1_2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn1_2 = nn.BatchNorm2d(out)
        self.conv2 = UpConv2d(inp, out, 5)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, size: Size) -> Tensor:
        branch = self.bn1_2(self.conv1_2(F.relu(self.bn1(self.conv1(x, size)))))
        return F.relu(branch + self.bn2(self.conv2(x, size)))


class Decoder(nn.Module):
    """From the coarsest map up to half the image's resolution."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.conv = nn.Conv2d(widths[0], widths[1], 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[1])
        self.up1 = UpProj(widths[1], widths[2])
        self.up2 = UpProj(widths[2], widths[3])
        self.up3 = UpProj(widths[3], widths[4])
        self.up4 = UpProj(widths[4], widths[5])

    def forward(self, x: Tensor, sizes: Sequence[Size]) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        for up, size in zip((self.up1, self.up2, self.up3, self.up4), sizes, strict=True):
            x = up(x, size)
        return x


class Fusion(nn.Module):
    """All four maps at half the image's resolution; out: (b, 64, *size) after its ReLU."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.up1, self.up2, self.up3, self.up4 = (UpProj(inp, FUSED) for inp in channels)
        self.conv = nn.Conv2d(4 * FUSED, 4 * FUSED, 5, padding=2, bias=False)
        self.bn = nn.BatchNorm2d(4 * FUSED)

    def forward(self, blocks: Sequence[Tensor], size: Size) -> Tensor:
        ups = (self.up1, self.up2, self.up3, self.up4)
        x = torch.cat([up(x, size) for up, x in zip(ups, blocks, strict=True)], dim=1)
        return F.relu(self.bn(self.conv(x)))


class Refinement(nn.Module):
    def __init__(self, units: int):
        super().__init__()
        self.conv0 = nn.Conv2d(units, units, 5, padding=2, bias=False)
        self.bn0 = nn.BatchNorm2d(units)
        self.relu0 = nn.ReLU()  # a module, to be tapped
        self.conv1 = nn.Conv2d(units, units, 5, padding=2, bias=False)
        self.bn1 = nn.BatchNorm2d(units)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(units, 1, 5, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu0(self.bn0(self.conv0(x)))
        x = self.relu1(self.bn1(self.conv1(x)))
        return self.conv2(x)  # linear: negative depth is possible


# ---------------------------------------------------------------------------- the network


class MFF(DepthModel):
    """Depth in metres at half the image's resolution (114x152 for 228x304).

    D, the decoder, halves the backbone's units five times, but not below 64: 2048 → 1024, 512,
    256, 128, 64 (ResNet-50, SENet-154) as published, 512 → 256, 128, 64, 64, 64. Upsampling is
    bilinear with `align_corners=False`, as in the interpretability paper's runs; MFF's own weights
    were trained with True, torch 0.3's only way.

    Args:
        name: `mff_resnet50`, `mff_senet154`, `mff_densenet161` (the publication's), or
            `mff_<timm name>` for any backbone with maps at 1/4, 1/8, 1/16 and 1/32.
    """

    backbones = PUBLISHED_BACKBONES
    image_size = (228, 304)
    taps = {"D": "D.up4", "MFF": "MFF", "Rconv0": "R.relu0", "Rconv1": "R.relu1"}

    def __init__(self, name: str = "mff_resnet50"):
        given = name.removeprefix("mff_")
        backbone = PUBLISHED_BACKBONES.get(given, given)
        encoder, channels, cfg = make_encoder(backbone, name=name)
        super().__init__(name, self.taps, **input_statistics(cfg))
        self.pretrained = "E", functools.partial(make_encoder, backbone, name=name)
        if isinstance(encoder, DenseNet):
            self.renamed_keys = DENSENET_DOTS
        widths = [channels[-1]]
        while len(widths) < 6:
            widths.append(max(widths[-1] // 2, 64))
        self.E = encoder
        self.D = Decoder(widths)
        self.MFF = Fusion(channels)
        self.R = Refinement(widths[-1] + 4 * FUSED)

    def forward_raw(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) normalised -> (b, 1, h/2, w/2) in metres."""
        check_size(x, name=self.name, multiple=4, smallest=SMALLEST)
        height, width = x.shape[-2:]
        half = height // 2, width // 2
        try:
            blocks = self.E(x)
        except (AssertionError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise ValueError(
                f"The backbone of {self.name} failed on images of {height}x{width}: {error}. If "
                "it asks for other sizes, try multiples of 32, or larger ones."
            ) from error
        sizes = [tuple(block.shape[-2:]) for block in blocks[-2::-1]]
        decoded = self.D(blocks[-1], [*sizes, half])
        fused = self.MFF(blocks, half)
        return self.R(torch.cat([decoded, fused], dim=1))
