"""BTS: local planar guidance over any backbone (Lee, Han, Ko, Suh, arXiv 1907.10326, 2019).

Written from the paper and the shapes of the published weights; attribute names follow their keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..checks import unknown
from .backbones import input_statistics, resnet_maps, timm_features, timm_model
from .base import DepthModel, check_size

STRIDES = (2, 4, 8, 16, 32)
SMALLEST = 32
WIDTH = 512  # units of the decoder's first stage in the publication
DEMO_WIDTH = 128  # over other backbones, which are mostly small ones

FOCAL = 715.0873  # pixels; what the publication divides KITTI's focal lengths by
FARTHEST_FOCAL = 1.5  # an item's may be so many times the reference, or the inverse

# The publication's backbones in timm's words, with the weights that it started from.
PUBLISHED_BACKBONES = {"densenet161": "densenet161.tv_in1k", "resnet50": "resnet50.tv_in1k"}

# dataset -> depth range in metres; the far end is the largest depth that the network can say.
RANGES = {"nyu": (0.75, 10.0), "kitti": (3.0, 80.0)}

NORMS = (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)  # and their kind in timm

# A denominator of the guidance below this (only the corners of the steepest planes of an 8x8 patch
# reach it) would make depth, or its gradient, infinite.
FLATTEST = 1e-3


# ---------------------------------------------------------------------------- encoder


class DenseNet(nn.Module):
    """timm's DenseNet without its nesting; its maps are those before and after the first pooling,
    behind the first two transitions' pooling, and behind the last norm."""

    def __init__(self, net: nn.Module):
        super().__init__()
        for name, layer in net.features.named_children():
            self.add_module(name, layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for name, layer in self.named_children():
            if name == "pool0":
                maps.append(x)
            x = layer(x)
            if name in ("pool0", "transition1", "transition2"):
                maps.append(x)
        return [*maps, x]


def make_encoder(
    backbone: str, *, name: str, pretrained: bool = False
) -> tuple[nn.Module, list[int], dict]:
    """timm's `backbone` as a module that gives maps at 1/2, 1/4, 1/8, 1/16 and 1/32.

    Returns:
        the module, the channels of its five maps, and timm's description of its weights.
    """
    whole = backbone in PUBLISHED_BACKBONES.values()
    if not (whole or backbone.startswith("densenet")):
        return timm_features(backbone, STRIDES, name=name, pretrained=pretrained)
    net = timm_model(backbone, name=name, pretrained=pretrained)
    if isinstance(net, ResNet):  # with its classifier, as published: unused, and not trained
        net.fc.requires_grad_(False)
        return net, [level["num_chs"] for level in net.feature_info], net.pretrained_cfg
    layers = dict(net.features.named_children())
    first = [m for key, m in layers.items() if key.startswith("conv")][-1].out_channels
    after = [layers[f"transition{i}"].conv.out_channels for i in (1, 2)]
    return DenseNet(net), [first, first, *after, net.num_features], net.pretrained_cfg


class Encoder(nn.Module):
    def __init__(self, base_model: nn.Module):
        super().__init__()
        self.base_model = base_model

    def forward(self, x: Tensor) -> list[Tensor]:
        whole = isinstance(self.base_model, ResNet)
        return resnet_maps(self.base_model, x) if whole else self.base_model(x)


# ---------------------------------------------------------------------------- guidance


def plane_of(parameters: Tensor) -> Tensor:
    """Planes from the network's three numbers each (section 3.3).

    Args:
        parameters: (b, 3, h, w) any float; their sigmoids are the polar angle in parts of π/3, the
            azimuth in parts of 2π and the distance in parts of the largest depth.

    Returns:
        (b, 4, h, w) float32: the unit normal n₁, n₂, n₃, and the distance in (0, 1).
    """
    polar, azimuth, distance = parameters.float().sigmoid().unbind(1)
    polar, azimuth = polar * (math.pi / 3), azimuth * (2 * math.pi)
    across = polar.sin()
    return torch.stack(
        [across * azimuth.cos(), across * azimuth.sin(), polar.cos(), distance], dim=1
    )


def local_planar_guidance(plane: Tensor, size: int) -> Tensor:
    """Depth of the plane that each cell holds, at each of the cell's size x size pixels:

        depth(u, v) = n₄ / (n₁ u + n₂ v + n₃)                        (equation 2)

    with u to the right and v down in parts of the cell, 0 at its centre.

    Args:
        plane: (b, 4, h, w) n₁, n₂, n₃ and the distance n₄.

    Returns:
        (b, 1, h · size, w · size) in the unit of n₄. Not bounded, as published: the steepest planes
        lie behind the camera at a corner. Denominators within ±0.001 are moved to it.
    """
    b, _, h, w = plane.shape
    offset = (torch.arange(size, device=plane.device, dtype=plane.dtype) - (size - 1) / 2) / size
    n1, n2, n3, n4 = plane.reshape(b, 4, h, 1, w, 1).unbind(1)
    denominator = n1 * offset + n2 * offset[:, None, None] + n3
    away = torch.full_like(denominator, FLATTEST).copysign(denominator.detach())
    denominator = torch.where(denominator.abs() < FLATTEST, away, denominator)
    return (n4 / denominator).reshape(b, 1, h * size, w * size)


# ---------------------------------------------------------------------------- decoder


def conv(inp: int, out: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inp, out, kernel, padding=kernel // 2, bias=False)


def conv_elu(inp: int, out: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(conv(inp, out, kernel), nn.ELU())


def norm(units: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(units, momentum=0.01, eps=1.1e-5)


class UpConv(nn.Module):
    """Twice the size (nearest), convolution, ELU."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.conv = conv(inp, out)
        self.elu = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.elu(self.conv(self.up(x)))


class AtrousConv(nn.Sequential):
    """A branch of the dense ASPP: inp → 2 · out → out units, dilated by `rate`."""

    def __init__(self, inp: int, out: int, rate: int, *, first_norm: bool = True):
        super().__init__()
        if first_norm:
            self.add_module("first_bn", norm(inp))
        dilated = nn.Conv2d(2 * out, out, 3, padding=rate, dilation=rate, bias=False)
        self.add_module(
            "aconv_sequence",
            nn.Sequential(nn.ReLU(), conv(inp, 2 * out, 1), norm(2 * out), nn.ReLU(), dilated),
        )


class ASPPBranch(nn.Module):
    def __init__(self, inp: int, out: int, rate: int, *, first_norm: bool = True):
        super().__init__()
        self.atrous_conv = AtrousConv(inp, out, rate, first_norm=first_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.atrous_conv(x)


class Reduction(nn.Module):
    """1x1 convolutions that halve the units, down to 8, then to a plane's parameters or, `final`,
    to one map of depth in (0, 1)."""

    def __init__(self, inp: int, out: int, *, final: bool = False):
        super().__init__()
        self.reduc = nn.Sequential()
        while out >= 8:
            self.reduc.add_module(f"inter_{inp}_{out}", conv_elu(inp, out, 1))
            inp, out = out, out // 2
        if final:
            self.reduc.add_module("final", nn.Sequential(conv(inp, 1, 1), nn.Sigmoid()))
        else:
            self.reduc.add_module("plane_params", conv(inp, 3, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.reduc(x)


class Decoder(nn.Module):
    """From the five maps up to the image's size; out: (b, 1, h, w) float32 in (0, 1).

    Args:
        channels: of the five maps, the finest first.
        width: units of the first stage; the others follow from it.
    """

    def __init__(self, channels: Sequence[int], width: int):
        super().__init__()
        c0, c1, c2, c3, c4 = channels
        half, quarter, eighth, last = width // 2, width // 4, width // 8, width // 16
        self.relu = nn.ReLU()
        self.upconv5 = UpConv(c4, width)
        self.bn5 = norm(width)
        self.conv5 = conv_elu(width + c3, width)
        self.upconv4 = UpConv(width, half)
        self.bn4 = norm(half)
        self.conv4 = conv_elu(half + c2, half)
        self.bn4_2 = norm(half)
        self.daspp_3 = ASPPBranch(half, quarter, 3, first_norm=False)
        dense = half + c2
        for rate in (6, 12, 18, 24):
            dense += quarter
            self.add_module(f"daspp_{rate}", ASPPBranch(dense, quarter, rate))
        self.daspp_conv = conv_elu(half + 5 * quarter, quarter)
        self.reduc8x8 = Reduction(quarter, quarter)
        self.upconv3 = UpConv(quarter, quarter)
        self.bn3 = norm(quarter)
        self.conv3 = conv_elu(quarter + c1 + 1, quarter)
        self.reduc4x4 = Reduction(quarter, eighth)
        self.upconv2 = UpConv(quarter, eighth)
        self.bn2 = norm(eighth)
        self.conv2 = conv_elu(eighth + c0 + 1, eighth)
        self.reduc2x2 = Reduction(eighth, last)
        self.upconv1 = UpConv(eighth, last)
        self.reduc1x1 = Reduction(last, last // 2, final=True)
        self.conv1 = conv_elu(last + 4, last)
        self.get_depth = nn.Sequential(conv(last, 1))  # its sigmoid is taken in float32
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        skip0, skip1, skip2, skip3, x = maps
        x = self.bn5(self.upconv5(self.relu(x)))
        x = self.conv5(torch.cat([x, skip3], dim=1))
        dense = torch.cat([self.bn4(self.upconv4(x)), skip2], dim=1)
        x = self.bn4_2(self.conv4(dense))

        branches = [self.daspp_3(x)]
        for branch in (self.daspp_6, self.daspp_12, self.daspp_18, self.daspp_24):
            dense = torch.cat([dense, branches[-1]], dim=1)
            branches.append(branch(dense))
        x = self.daspp_conv(torch.cat([x, *branches], dim=1))

        def guide(reduction: Reduction, size: int) -> Tensor:
            return local_planar_guidance(plane_of(reduction(x)), size).to(x.dtype)

        # A step through the guidance, nearest, is its first pixel.
        depth8 = guide(self.reduc8x8, 8)
        x = torch.cat([self.bn3(self.upconv3(x)), skip1, depth8[..., ::4, ::4]], dim=1)
        x = self.conv3(x)
        depth4 = guide(self.reduc4x4, 4)
        x = torch.cat([self.bn2(self.upconv2(x)), skip0, depth4[..., ::2, ::2]], dim=1)
        x = self.conv2(x)
        depth2 = guide(self.reduc2x2, 2)
        x = self.upconv1(x)
        depth1 = self.reduc1x1(x)
        x = self.conv1(torch.cat([x, depth1, depth2, depth4, depth8], dim=1))  # as equation 3
        return self.get_depth(x).float().sigmoid()


# ---------------------------------------------------------------------------- the network


class BTS(DepthModel):
    """Depth in metres at the image's resolution, up to 10 m (NYU) or 80 m (KITTI).

    Its tapped layers are signed: ELU, and batch normalisation behind it. The 49,530,968 parameters
    of `bts_resnet50` count ImageNet's classifier (2,049,000), which nothing uses.

    For KITTI depth is also proportional to the camera's focal length, which every image brings
    along as `focal` in its own pixels:

        depth = 80 m · network · focal / focal_reference

    The publication's reference is 715.0873 pixels, for images at the camera's resolution, cropped
    or not. An image that is resized by s has s times the focal length, and depth is to stay: so
    `focal_reference` is the focal length, in pixels of the images that the network is trained on,
    at which it is to say what it sees; 715.0873 s for KITTI resized by s. Then the factor, 0.99 to
    1.01 for KITTI's cameras, is the same at every size. A factor beyond 1.5 or below 1/1.5 is
    taken for a mistake and refused.

    Args:
        name: `bts_densenet161`, `bts_resnet50` (the publication's), or `bts_<timm name>` for any
            backbone with maps at 1/2, 1/4, 1/8, 1/16 and 1/32.
        dataset: `"nyu"` or `"kitti"`, whose range of depth; streets are KITTI's.
        focal_reference: in pixels, for KITTI; None is the publication's.
        width: units of the decoder's first stage, a multiple of 64; iconv1 has a 16th. None is the
            publication's 512 over its own backbones, 128 over others.
        freeze: keep the encoder's first convolution and the weights of all its norms as they are in
            training, as published. Running statistics go on.
    """

    backbones = PUBLISHED_BACKBONES
    image_size = (416, 544)
    taps = {
        "upconv3": "decoder.bn3",
        "upconv2": "decoder.bn2",
        "iconv2": "decoder.conv2",
        "upconv1": "decoder.upconv1",
        "iconv1": "decoder.conv1",
    }

    def __init__(
        self,
        name: str = "bts_densenet161",
        *,
        dataset: str = "nyu",
        focal_reference: float | None = None,
        width: int | None = None,
        freeze: bool = False,
    ):
        if dataset not in RANGES:
            raise ValueError(unknown(f"dataset of {name}", dataset, RANGES))
        if focal_reference is not None and (dataset != "kitti" or not focal_reference > 0):
            raise ValueError(
                f"focal_reference={focal_reference!r} of {name} with dataset={dataset!r}: it is a "
                "positive number of pixels, with dataset='kitti' alone."
            )
        given = name.removeprefix("bts_")
        # Without `freeze`: it decides how weights are trained, not what they mean.
        options = {"dataset": dataset} | ({} if width is None else {"width": width})
        if width is None:
            width = WIDTH if given in PUBLISHED_BACKBONES else DEMO_WIDTH
        if width < 64 or width % 64:
            raise ValueError(f"width of {name} must be a multiple of 64 from 64 on; got {width}.")
        make = functools.partial(make_encoder, PUBLISHED_BACKBONES.get(given, given), name=name)
        base_model, channels, cfg = make()
        if dataset == "kitti":
            options["focal_reference"] = float(focal_reference or FOCAL)
        super().__init__(
            name,
            self.taps,
            **input_statistics(cfg),
            depth_range=RANGES[dataset],
            options=options,
        )
        self.pretrained = "encoder.base_model", make
        self.input_names = ("focal",) if dataset == "kitti" else ()
        self.encoder = Encoder(base_model)
        self.decoder = Decoder(channels, width)
        if freeze:
            self._freeze()

    def _freeze(self) -> None:
        modules = list(self.encoder.modules())
        first = next(m for m in modules if isinstance(m, nn.Conv2d))
        norms = [m for m in modules if isinstance(m, NORMS)]
        for module in (first, *norms):
            module.requires_grad_(False)

    def forward_raw(self, x: Tensor, focal: Tensor | float | None = None) -> Tensor:
        """(b, 3, h, w) normalised -> (b, 1, h, w) in metres.

        Args:
            focal: (b,) or one number, in pixels of `x`. Needed for KITTI, else unused.
        """
        check_size(x, name=self.name, multiple=32)
        if self.input_names:
            focal = self._checked(focal, x)
        depth = self.decoder(self.encoder(x)) * self.depth_range[1]
        if self.input_names:
            depth = depth * focal / self.options["focal_reference"]
        return depth

    def _checked(self, focal: Tensor | float | None, x: Tensor) -> Tensor:
        """The focal lengths as (b or 1, 1, 1, 1) float32 beside `x`."""
        reference = self.options["focal_reference"]
        if focal is None:
            raise TypeError(
                f"{self.name} with dataset='kitti' needs the focal length: model(image, focal=…), "
                "(b,) in pixels of the images; items of streets and kitti have it as 'focal'."
            )
        focal = torch.as_tensor(focal, device=x.device).float()
        if focal.shape not in ((), (len(x),)):
            raise ValueError(
                f"{self.name} takes focal of shape ({len(x)},), one number an image, or a single "
                f"number; got {tuple(focal.shape)}."
            )
        # One small synchronisation with a GPU, against depth that is wrong throughout.
        if not (torch.compiler.is_compiling() or focal.is_meta):
            low, high = (value.item() for value in focal.detach().aminmax())
            if not reference / FARTHEST_FOCAL <= low <= high <= reference * FARTHEST_FOCAL:
                wrong = low if low < reference / FARTHEST_FOCAL else high
                raise ValueError(
                    f"{self.name} got a focal length of {wrong:.6g} pixels, for a reference of "
                    f"{reference:.6g}: all depth would be {wrong / reference:.3g} times what the "
                    "network says. Give it in pixels of the images as they are; for a network that "
                    f"is trained on resized images use build_model({self.name!r}, dataset='kitti', "
                    "focal_reference=<their focal length>)."
                )
        return focal.reshape(-1, 1, 1, 1)
