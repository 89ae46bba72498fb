"""METER: a mobile vision transformer for monocular depth (Papa, Russo, Amerini, TCSVT 2023).

Written from the paper and the shapes of the published weights. Attribute names follow the keys of
those weights; where a name misleads (`depthwise` is a full convolution), a comment says so.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import unknown
from ..depth_bins import RANGES
from .base import IMAGENET_MEAN, IMAGENET_STD, DepthModel, check_size

HEADS, HEAD_DIM = 4, 8


class Convention(NamedTuple):
    """What a set of published weights expects and gives."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    metres_per_unit: float
    depth_range: tuple[float, float]


# The publication does not state these. They were found by measurement: rank correlation with
# depth, and the statistics in the first batch normalisation.
CONVENTIONS = {
    "nyu": Convention(IMAGENET_MEAN, IMAGENET_STD, 0.01, RANGES["nyu"]),  # centimetres
    "kitti": Convention((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 0.1, RANGES["kitti"]),  # decimetres
}


class Widths(NamedTuple):
    """The three sizes differ in these numbers alone."""

    channels: tuple[int, ...]  # c0 ... c10 of the encoder
    dims: tuple[int, int, int]  # token widths of the three transformers
    expansion: int  # of the inverted bottlenecks
    ups: tuple[int, int, int, int]  # decoder, coarse to fine


SIZES = {
    "meter_xxs": Widths(
        (16, 16, 24, 24, 48, 48, 64, 64, 80, 80, 160), (64, 80, 96), 2, (64, 32, 16, 8)
    ),
    "meter_xs": Widths(
        (16, 32, 48, 48, 64, 64, 80, 80, 96, 96, 192), (96, 120, 144), 4, (128, 64, 32, 16)
    ),
    "meter_s": Widths(
        (16, 32, 64, 64, 96, 96, 128, 128, 160, 160, 320), (144, 192, 240), 4, (128, 64, 32, 16)
    ),
}


class SeparableConv(nn.Module):
    """3x3 then 1x1 convolution. `depthwise` keeps its published name, but has groups=1."""

    def __init__(self, inp: int, out: int, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(inp, out, 3, stride, 1, bias=False)
        self.pointwise = nn.Conv2d(out, out, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


# No ReLU works in place: a tap on the layer before it must not see its output overwritten.
def conv_3x3(inp: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(SeparableConv(inp, out, stride), nn.BatchNorm2d(out), nn.ReLU())


def conv_1x1(inp: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inp, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU())


class InvertedBottleneck(nn.Module):
    """MobileNetV2 block: its output is linear, hence signed."""

    def __init__(self, inp: int, out: int, stride: int, expansion: int):
        super().__init__()
        mid = inp * expansion
        self.residual = stride == 1 and inp == out
        self.conv = nn.Sequential(
            nn.Conv2d(inp, mid, 1, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False),
            nn.BatchNorm2d(mid),
            nn.ReLU(),
            nn.Conv2d(mid, out, 1, bias=False),
            nn.BatchNorm2d(out),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class Attention(nn.Module):
    """Multi-head self-attention over the tokens of (n, tokens, dim)."""

    def __init__(self, dim: int):
        super().__init__()
        self.to_qkv = nn.Linear(dim, 3 * HEADS * HEAD_DIM, bias=False)
        self.to_out = nn.Sequential(nn.Linear(HEADS * HEAD_DIM, dim))

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.to_qkv(x).reshape(n, tokens, 3, HEADS, HEAD_DIM)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v)  # scale HEAD_DIM ** -0.5
        return self.to_out(mixed.transpose(1, 2).reshape(n, tokens, HEADS * HEAD_DIM))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        # The publication's dropout (rate 0) leaves its index, so that the keys agree.
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.ReLU(), nn.Identity(), nn.Linear(hidden, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PreNorm(nn.Module):
    """x + fn(norm(x))"""

    def __init__(self, dim: int, fn: nn.Module):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fn(self.norm(x))


class Transformer(nn.Module):
    """One layer of attention and feed-forward; no positional embedding, no final norm."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        layer = [PreNorm(dim, Attention(dim)), PreNorm(dim, FeedForward(dim, hidden))]
        self.layers = nn.ModuleList([nn.ModuleList(layer)])

    def forward(self, x: Tensor) -> Tensor:
        for attention, feed_forward in self.layers:
            x = feed_forward(attention(x))
        return x


class MobileViT(nn.Module):
    """Convolution, attention among 2x2 patches, fusion with the input (MobileViT block)."""

    def __init__(self, dim: int, channels: int, hidden: int):
        super().__init__()
        self.conv1 = conv_3x3(channels, channels)
        self.conv2 = conv_1x1(channels, dim)
        self.transformer = Transformer(dim, hidden)
        self.conv3 = conv_1x1(dim, channels)
        self.conv4 = conv_3x3(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        height, width = y.shape[-2:]
        if height % 2 or width % 2:  # the last row or column once more, and off again behind
            y = F.pad(y, (0, width % 2, 0, height % 2), mode="replicate")
        b, d, h, w = y.shape
        # Tokens are the patches; each of the four positions inside a patch attends by itself.
        y = y.reshape(b, d, h // 2, 2, w // 2, 2).permute(0, 3, 5, 2, 4, 1)
        y = self.transformer(y.reshape(b * 4, (h // 2) * (w // 2), d))
        y = y.reshape(b, 2, 2, h // 2, w // 2, d).permute(0, 5, 3, 1, 4, 2)
        y = self.conv3(y.reshape(b, d, h, w)[..., :height, :width])
        return self.conv4(torch.cat([y, x], dim=1))


class Encoder(nn.Module):
    def __init__(self, widths: Widths):
        super().__init__()
        c, dims, e = widths.channels, widths.dims, widths.expansion
        self.conv1 = conv_3x3(3, c[0], stride=2)
        self.mv2 = nn.ModuleList(
            [
                InvertedBottleneck(c[0], c[1], 1, e),
                InvertedBottleneck(c[1], c[2], 2, e),
                InvertedBottleneck(c[2], c[3], 1, e),
                InvertedBottleneck(c[2], c[3], 1, e),
                InvertedBottleneck(c[3], c[4], 2, e),
                InvertedBottleneck(c[5], c[6], 2, e),
                InvertedBottleneck(c[7], c[8], 2, e),
            ]
        )
        self.mvit = nn.ModuleList(
            [
                MobileViT(dims[0], c[5], 2 * dims[0]),
                MobileViT(dims[1], c[7], 4 * dims[1]),
                MobileViT(dims[2], c[9], 4 * dims[2]),
            ]
        )
        self.conv2 = conv_1x1(c[9], c[10])

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """-> features at 1/32, and the decoder's skips at 1/16, 1/8 and 1/4."""
        x = self.mv2[0](self.conv1(x))
        quarter = x = self.mv2[1](x)
        x = self.mv2[3](self.mv2[2](x))
        eighth = x = self.mv2[4](x)
        sixteenth = x = self.mv2[5](self.mvit[0](x))
        x = self.mvit[2](self.mv2[6](self.mvit[1](x)))
        return self.conv2(x), (sixteenth, eighth, quarter)


class Up(nn.Module):
    """Twice the resolution, fused with a skip."""

    def __init__(self, inp: int, skip: int, out: int):
        super().__init__()
        self.conv2d_transpose = nn.ConvTranspose2d(inp, out, 3, 2, 1, 1, bias=False)
        self.end_up_layer = nn.Sequential(SeparableConv(out + skip, out), nn.ReLU())

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.conv2d_transpose(x)
        # An odd width was rounded up on the way down: a zero column on the left makes up for it.
        skip = F.pad(skip, (x.shape[-1] - skip.shape[-1], 0))
        return self.end_up_layer(torch.cat([x, skip], dim=1))


class Decoder(nn.Module):
    def __init__(self, widths: Widths):
        super().__init__()
        c, ups = widths.channels, widths.ups
        self.conv2d_in = nn.Conv2d(c[10], ups[0], 1, bias=False)
        self.ups_block_1 = Up(ups[0], c[6], ups[1])
        self.ups_block_2 = Up(ups[1], c[4], ups[2])
        self.ups_block_3 = Up(ups[2], c[2], ups[3])
        self.conv2d_out = nn.Conv2d(ups[3], 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor, skips: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        x = self.ups_block_1(self.conv2d_in(x), skips[0])
        x = self.ups_block_2(x, skips[1])
        x = self.ups_block_3(x, skips[2])
        return self.conv2d_out(x)  # no activation: negative depth is possible


class METER(DepthModel):
    """METER in one of three sizes; depth at a quarter of the input's resolution.

    Args:
        name: `meter_xxs`, `meter_xs` or `meter_s`.
        dataset: whose convention the weights follow, `"nyu"` (input normalised as on ImageNet,
            output in centimetres; the suite's own training too) or `"kitti"` (input in [0, 1],
            output in decimetres).
    """

    loss_scale = 0.01  # the balanced loss is in the hundreds where others are about 1

    taps = {
        "enc_0": "encoder.conv1",
        "enc_1": "encoder.mv2.0",
        "enc_2": "encoder.mv2.1",
        "enc_3": "encoder.mv2.2",
        "enc_4": "encoder.mv2.3",
        "enc_5": "encoder.mv2.4",
        "enc_6": "encoder.mvit.0",
        "enc_7": "encoder.mv2.5",
        "enc_8": "encoder.mvit.1",
        "enc_9": "encoder.mv2.6",
        "enc_10": "encoder.mvit.2",
        "enc_output": "encoder.conv2",
        "dec_0": "decoder.conv2d_in",
        "dec_1": "decoder.ups_block_1",
        "dec_2": "decoder.ups_block_2",
        "dec_3": "decoder.ups_block_3",
    }

    def __init__(self, name: str = "meter_xxs", *, dataset: str = "nyu"):
        if dataset not in CONVENTIONS:
            raise ValueError(unknown(f"dataset of {name}", dataset, CONVENTIONS))
        super().__init__(
            name, self.taps, **CONVENTIONS[dataset]._asdict(), options={"dataset": dataset}
        )
        self.encoder = Encoder(SIZES[name])
        self.decoder = Decoder(SIZES[name])

    def forward_raw(self, x: Tensor) -> Tensor:
        """(b, 3, h, w) normalised -> (b, 1, ceil(h/4), ceil(w/4)) in cm (NYU) or dm (KITTI).

        Maps round their sizes up, so a side may fall short of a multiple of 32: by 7 columns, as
        the decoder pads the skips, or by 3 rows, as it does not pad those.
        """
        check_size(x, name=self.name, multiple=32, slack=(3, 7))
        return self.decoder(*self.encoder(x))
