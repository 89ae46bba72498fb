"""EPCDepth: depth learned from stereo pairs (Peng, Wang, Lai, Cao, ICCV 2021).

Written from the paper and the shapes of the published weights; attribute names follow their keys.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..checks import unknown
from ..depth_bins import depth_range as range_of
from ..stereo import FARTHEST, NEAREST, TRAINED_BASELINE, disparity_to_depth
from .backbones import probe, resnet_maps, timm_model
from .base import DepthModel, check_size

SMALLEST = 32
WIDTH = 256  # units of the decoder's first stage in the publication
DEMO_WIDTH = 64  # over other backbones, which are mostly small ones
STAGES = (5, 4, 3, 2, 1)  # stage n works at 1/2^(n-1) of the image

KITTI_BASELINE = 0.54  # metres
OUTPUT_SCALES = (0, 1, 2, -1)
DECODERS = ("rsu", "plain")

# The publication's backbones in timm's words, with the weights that it started from.
PUBLISHED_BACKBONES = {f"resnet{n}": f"resnet{n}.tv_in1k" for n in (18, 34, 50, 101, 152)}


# ---------------------------------------------------------------------------- encoder


class Encoder(nn.Module):
    """timm's ResNet; its maps are those behind the first ReLU (1/2) and the four stages."""

    def __init__(self, net: ResNet):
        super().__init__()
        self.encoder = net

    def forward(self, x: Tensor) -> list[Tensor]:
        return resnet_maps(self.encoder, x)


def make_encoder(
    backbone: str, *, name: str, classifier: bool = False, pretrained: bool = False
) -> tuple[Encoder, list[int]]:
    """timm's `backbone` as a module that gives maps at 1/2, 1/4, 1/8, 1/16 and 1/32.

    Args:
        classifier: keep ImageNet's, unused and not trained.

    Returns:
        the module, and the channels of its five maps.
    """
    kind = type(probe(backbone, name=name))
    if not issubclass(kind, ResNet):
        raise ValueError(
            f"{name!r}: EPCDepth takes the ResNets of timm.models.resnet (ResNet, ResNeXt, "
            f"SE-ResNet and their like), but {backbone} is a {kind.__name__}. Use one of those, "
            "for example epcdepth_resnet10t or epcdepth_resnet18."
        )
    options = {} if classifier else {"num_classes": 0}
    net = timm_model(backbone, name=name, pretrained=pretrained, **options)
    net.fc.requires_grad_(False)
    return Encoder(net), [level["num_chs"] for level in net.feature_info]


# ---------------------------------------------------------------------------- decoder


def mirrored(x: Tensor, pad: int) -> Tensor:
    """`x` continued by reflection without repeating the edge, by `pad` pixels on each side.

    A map of no more than `pad` pixels is reflected again and again, one of a single pixel repeated
    (`numpy.pad`'s "reflect"), so that images of any size pass.
    """
    height, width = x.shape[-2:]
    if min(height, width) > pad:
        return F.pad(x, (pad,) * 4, mode="reflect")
    rows, columns = (_reflection(size, pad, x.device) for size in (height, width))
    return x[..., rows, :][..., columns]


def _reflection(size: int, pad: int, device: torch.device) -> Tensor:
    period = max(2 * (size - 1), 1)
    i = torch.arange(-pad, size + pad, device=device).abs() % period
    return torch.minimum(i, period - i) if size > 1 else i


class ReflectConv(nn.Conv2d):
    """A 3x3 convolution of the mirrored map."""

    def __init__(self, inp: int, out: int, *, dilation: int = 1):
        super().__init__(inp, out, 3, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(mirrored(x, self.dilation[0]))


class ConvElu(nn.Module):
    def __init__(self, inp: int, out: int, *, dilation: int = 1):
        super().__init__()
        self.conv_s1 = ReflectConv(inp, out, dilation=dilation)
        self.elu = nn.ELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.elu(self.conv_s1(x))


class RSU(nn.Module):
    """Residual U-block with ELU for norm and ReLU (Qin et al. 2020, figure 2).

    Convolutions 1 … depth - 1 go down, with a pooling between two (2x2, rounded up); the last one
    is dilated instead; as many come up, bilinearly, each taking what its like on the way down
    left. The first convolution's output is added to theirs: (b, out, h, w), signed.

    Args:
        depth: the L of RSU-L, from 2 on.
    """

    def __init__(self, depth: int, inp: int, mid: int, out: int):
        super().__init__()
        self.rebnconvin = ConvElu(inp, out)
        for i in range(1, depth):
            self.add_module(f"rebnconv{i}", ConvElu(out if i == 1 else mid, mid))
        self.add_module(f"rebnconv{depth}", ConvElu(mid, mid, dilation=2))
        for i in range(depth - 1, 0, -1):
            self.add_module(f"rebnconv{i}d", ConvElu(2 * mid, out if i == 1 else mid))
        self.depth = depth

    def forward(self, x: Tensor) -> Tensor:
        first = x = self.rebnconvin(x)
        down = []
        for i in range(1, self.depth):
            if i > 1:
                x = F.max_pool2d(x, 2, ceil_mode=True)
            x = getattr(self, f"rebnconv{i}")(x)
            down.append(x)
        x = getattr(self, f"rebnconv{self.depth}")(x)
        for i in range(self.depth - 1, 0, -1):
            skip = down.pop()
            x = torch.cat([_bilinear(x, skip.shape[-2:]), skip], dim=1)
            x = getattr(self, f"rebnconv{i}d")(x)
        return x + first


def _bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    if x.shape[-2:] == size:
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def head(inp: int) -> nn.Sequential:
    return nn.Sequential(ReflectConv(inp, 1))  # its sigmoid is taken in float32


class EncoderHead(nn.Module):
    """Disparity from a map of the encoder's."""

    def __init__(self, depth: int, inp: int, mid: int, out: int):
        super().__init__()
        self.bottleneck = RSU(depth, inp, mid, out)
        self.disp = head(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.disp(self.bottleneck(x))


class Decoder(nn.Module):
    """From the five maps up to the image's size, with a disparity at each stage.

    Stage n has max(width / 2^(5-n), 16) units: 256, 128, 64, 32, 16 as published. It is an RSU of
    depth 8 - n with a quarter of the units inside, or, `plain`, a convolution and ELU behind
    another one that reduces the units before upsampling (monodepth2's decoder, whose stage 5 has
    no disparity). The encoder's heads are RSUs of the same depths; over map n they have
    max(2 · width / 2^(5-n), width / 4) units, half of that inside.

    Args:
        channels: of the five maps, the finest first.
        heads: build the encoder's.
    """

    def __init__(self, channels: Sequence[int], *, width: int, plain: bool, heads: bool):
        super().__init__()
        inp = channels[-1]
        self.plain = plain
        self.disps = nn.ModuleList()
        for n in STAGES:
            out = max(width >> (5 - n), 16)
            skip = channels[n - 2] if n > 1 else 0
            if plain:
                self.add_module(f"reduce{n}d", ConvElu(inp, out))
                stage = ConvElu(out + skip, out)
            else:
                stage = RSU(8 - n, inp + skip, max(out // 4, 4), out)
            self.add_module(f"stage{n}d", stage)
            if n < 5 or not plain:
                self.disps.append(head(out))
            inp = out
        self.encoder_disps = nn.ModuleList()
        if heads:
            for n, units in enumerate(channels, start=1):
                out = max(2 * width >> (5 - n), width // 4)
                self.encoder_disps.append(EncoderHead(8 - n, units, out // 2, out))

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> list[Tensor]:
        """Disparities of the stages, the finest first; `size`: (h, w) of the image."""
        *skips, x = maps
        found = []
        for n in STAGES:
            if self.plain:
                x = getattr(self, f"reduce{n}d")(x)
            skip = skips[n - 2] if n > 1 else None
            to = tuple(size if skip is None else skip.shape[-2:])
            x = F.interpolate(x, to, mode="nearest")
            x = getattr(self, f"stage{n}d")(x if skip is None else torch.cat([x, skip], 1))
            found.append(x)
        pairs = zip(found[-len(self.disps) :], self.disps, strict=True)
        return [layer(x).float().sigmoid() for x, layer in pairs][::-1]

    def from_encoder(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Disparities of the encoder's heads, the coarsest first; [] where there are none."""
        pairs = list(zip(maps, self.encoder_disps, strict=False))
        return [layer(x).float().sigmoid() for x, layer in reversed(pairs)]


# ---------------------------------------------------------------------------- the network


class EPCDepth(DepthModel):
    """Depth in metres at the image's resolution, of images of any size from 32x32 on; learned from
    stereo pairs, without ground truth.

    The network says disparity. In training the cameras of every pair are taken to be 0.1 apart,
    whatever they are; so its depth (`disparity_to_depth`) has no unit, and `forward` gives

        depth in metres = depth · baseline / 0.1

    with the true distance in metres: 5.4 times the network's for KITTI's 0.54 m. `baseline` belongs
    to the weights, being that of the pairs that they were learned from. Depth is also bound to the
    field of view of those pairs, as that of every network that sees one image.

    Parameters are the publication's, 26,861,058 over ResNet-18 and 55,990,274 over ResNet-50. These
    numbers count the classifier that came with the encoder (`encoder.encoder.fc`, 513,000 and
    2,049,000), which nothing uses, and the heads on the encoder's maps, which training alone uses
    (full-scale prediction). `inference=True` has neither: 14,380,629 and 32,573,525. Both kinds
    read the same files.

    The tapped stages are signed (ELU); the encoder's layers are behind their ReLU.

    Args:
        name: `epcdepth_resnet18`, 34, 50, 101 or 152, or `epcdepth_<timm name>` for any other
            network of timm.models.resnet, `epcdepth_resnet10t` say; those have no classifier.
        baseline: distance in metres of the two cameras that the weights were or will be learned
            from. The publication's KITTI by default.
        output_scale: which disparity `forward` takes: 0, the finest, 1 at half the image's size, 2
            at a quarter, bilinearly brought to the image's size, or -1, the mean of the three.
        inference: build only what `forward` needs.
        decoder: `"rsu"`, or `"plain"`, monodepth2's, with four disparities and no heads on the
            encoder.
        width: units of the decoder's first stage, a multiple of 32; the others follow. None is the
            publication's 256 over its own backbones, 64 over others.
        depth_range: (nearest, farthest) depth in metres for depth bins, or the name of a data set.
    """

    backbones = PUBLISHED_BACKBONES
    image_size = (192, 640)
    dead_keys = ("encoder.encoder.fc.", "depth_decoder.encoder_disps.")  # with inference=True
    taps = {
        "relu": "encoder.encoder.act1",
        **{f"layer{n}": f"encoder.encoder.layer{n}" for n in (1, 2, 3, 4)},
        **{f"stage{n}d": f"depth_decoder.stage{n}d" for n in STAGES},
    }

    def __init__(
        self,
        name: str = "epcdepth_resnet18",
        *,
        baseline: float = KITTI_BASELINE,
        output_scale: int = 0,
        inference: bool = False,
        decoder: str = "rsu",
        width: int | None = None,
        depth_range: str | Sequence[float] = "kitti",
    ):
        if decoder not in DECODERS:
            raise ValueError(unknown(f"decoder of {name}", decoder, DECODERS))
        if output_scale not in OUTPUT_SCALES:
            raise ValueError(
                f"output_scale of {name} is 0, 1 or 2, or -1 for their mean; got {output_scale!r}."
            )
        if not isinstance(baseline, (int, float)) or not 0 < baseline < math.inf:
            raise ValueError(
                f"baseline of {name} is the distance of the two cameras in metres, a positive "
                f"number ({KITTI_BASELINE} for KITTI); got {baseline!r}."
            )
        given = name.removeprefix("epcdepth_")
        published = given in PUBLISHED_BACKBONES
        if width is None:
            width = WIDTH if published else DEMO_WIDTH
        if width < 32 or width % 32:
            raise ValueError(f"width of {name} must be a multiple of 32 from 32 on; got {width}.")
        backbone, classifier = PUBLISHED_BACKBONES.get(given, given), published and not inference
        make = functools.partial(make_encoder, backbone, name=name, classifier=classifier)
        encoder, channels = make()
        super().__init__(
            name,
            self.taps,
            mean=(0.45,) * 3,
            std=(0.225,) * 3,
            metres_per_unit=baseline / TRAINED_BASELINE,
            depth_range=range_of(depth_range),
            options={"baseline": float(baseline)},  # the others do not change what weights mean
        )
        self.pretrained, self.output_scale = ("encoder", make), output_scale
        self.encoder = encoder
        plain = decoder == "plain"
        self.depth_decoder = Decoder(
            channels, width=width, plain=plain, heads=not (plain or inference)
        )

    def forward(self, image: Tensor, **inputs) -> Tensor:
        """Depth of `image`, without running the encoder's heads.

        Args:
            image: (b, 3, h, w) RGB in [0, 1].

        Returns:
            (b, 1, h, w) float32 depth in metres, from 1 to 1000 baselines.
        """
        self._check(image, inputs)
        return self.metres(self.disparities(image, full_scale=False), image.shape[-2:])

    def disparities(self, image: Tensor, *, full_scale: bool = True) -> list[Tensor]:
        """`forward_raw` of an image: what training compares at all scales.

        Args:
            image: (b, 3, h, w) RGB in [0, 1].
            full_scale: False leaves out the encoder's heads.
        """
        self._check(image, {})
        x = (image - self.mean) / self.std
        if full_scale:
            return self.forward_raw(x)
        return self.depth_decoder(self._maps(x), x.shape[-2:])

    def metres(self, disparities: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """What `forward` makes of `disparities`, as `output_scale` says: (b, 1, *size) metres."""
        scales = (0, 1, 2) if self.output_scale == -1 else (self.output_scale,)
        sigma = torch.stack([_bilinear(disparities[scale], size) for scale in scales]).mean(0)
        return disparity_to_depth(sigma) * self.metres_per_unit

    def remapped(self, depth: Tensor, *, max_depth: float) -> Tensor:
        """The depth of `forward` as it would be with this `max_depth` of `disparity_to_depth`."""
        far, near = 1 / FARTHEST, 1 / NEAREST
        sigma = (self.metres_per_unit / depth - far) / (near - far)
        return disparity_to_depth(sigma, max_depth=max_depth) * self.metres_per_unit

    def forward_raw(self, x: Tensor) -> list[Tensor]:
        """(b, 3, h, w) normalised -> disparities in (0, 1), float32, each (b, 1, h', w').

        The decoder's at 1, 1/2, 1/4, 1/8, 1/16 of the image, then the encoder heads' at 1/32, 1/16,
        1/8, 1/4, 1/2, sizes rounded up: ten; the first five with `inference=True`; the first four
        with `decoder="plain"`.
        """
        maps = self._maps(x)
        return self.depth_decoder(maps, x.shape[-2:]) + self.depth_decoder.from_encoder(maps)

    def _maps(self, x: Tensor) -> list[Tensor]:
        check_size(x, name=self.name, multiple=1, smallest=SMALLEST)
        return self.encoder(x)
