"""CSPN: depth completion by convolutional spatial propagation (Cheng, Wang, Yang, ECCV 2018).

Written from the paper and the shapes of the published weights; attribute names follow their keys.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..checks import unknown
from .backbones import input_statistics, timm_model
from .base import DepthModel

ANCHORS = ("sparse", "coarse")
NORMALISATIONS = ("imagenet", "wrapped")
STEPS = 24

# The publication's backbone in timm's words, with the weights that it started from.
PUBLISHED_BACKBONES = {"resnet50": "resnet50.tv_in1k"}

# The guidance's channels belong to the neighbours (row, column) (1, 1), (1, 0), (1, -1), (0, 1),
# (0, -1), (-1, 1), (-1, 0), (-1, -1). From top left to bottom right, around the centre, they are
_CHANNELS = (7, 6, 5, 4, None, 3, 2, 1, 0)
_OPPOSITE = _CHANNELS[::-1]


# ---------------------------------------------------------------------------- propagation


def propagate(
    guidance: Tensor,
    coarse: Tensor,
    sparse: Tensor,
    *,
    steps: int = STEPS,
    anchor: str = "sparse",
    positive: bool = False,
) -> Tensor:
    """Refine depth by letting neighbours exchange it (ECCV 2018, section 3; 8 neighbours).

    With the guidance G, C the coarse depth and o_k the neighbours of a pixel p, from D = C on

        w_k(p) = G_k(p + o_k) / Σ_j |G_j(p + o_j)|       (0 outside the image)
        D(p)  <- Σ_k w_k(p) D(p + o_k) + (1 - Σ_k w_k(p)) C(p)
        D(p)  <- A(p) where p has a sparse measurement

    The centre takes the coarse depth, not the current one: so does the released code, and its
    authors own to the error in the paper's formula. Where all of a pixel's weights are 0 it keeps
    its coarse depth. The weights of a pixel sum to 1 in absolute value, so D stays bounded.

    A step is one product with a strided view of the neighbours and one sum. Forward and backward
    run without autograd's graph and keep one map of depth a step.

    Args:
        guidance: (b, 8, h, w), channel k belongs to the neighbour at (row, column) (1, 1), (1, 0),
            (1, -1), (0, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1), in this order.
        coarse: (b, 1, h, w) depth in metres.
        sparse: (b, 1, h, w) measured depth in metres, 0 = none.
        steps: at least 1.
        anchor: A, what measured pixels are set to at every step: `"sparse"`, their measurement, as
            the paper says, to the last digit; `"coarse"`, their coarse depth, as the released code
            does, so that measurements act through the network alone.
        positive: take |G| for G ("8sum_abs" of the released code): no negative weights, and the
            centre has none.

    Returns:
        (b, 1, h, w) metres, float32 (float64 if the coarse depth is).
    """
    _check_anchor(anchor)
    if steps < 1:
        raise ValueError(f"propagate needs at least 1 step, got {steps}.")
    b, _, h, w = guidance.shape if guidance.ndim == 4 else (0,) * 4
    if guidance.shape != (b, 8, h, w) or not coarse.shape == sparse.shape == (b, 1, h, w):
        raise ValueError(
            "propagate takes guidance (b, 8, h, w), coarse and sparse depth (b, 1, h, w); got "
            f"{tuple(guidance.shape)}, {tuple(coarse.shape)} and {tuple(sparse.shape)}."
        )
    dtype = torch.float64 if coarse.dtype == torch.float64 else torch.float32
    guidance, coarse, sparse = (x.to(dtype) for x in (guidance, coarse, sparse))
    fixed = sparse > 0
    given = (
        guidance.abs() if positive else guidance,
        coarse.squeeze(1),
        (sparse if anchor == "sparse" else coarse).squeeze(1),
        fixed.squeeze(1),
    )
    # Image by image what a step touches stays in a processor's cache; a GPU wants all at once.
    images = zip(*(x.split(1) for x in given), strict=True) if guidance.is_cpu else [given]
    return torch.cat([_Propagation.apply(*image, steps) for image in images])[:, None]


class _Grid:
    """Maps (h, w) as rows of w + 1, zeros between and around: every neighbour of every position
    is then a shift of the whole, and what is outside the image is read as 0 and stays 0."""

    def __init__(self, h: int, w: int):
        self.h, self.w, self.row = h, w, w + 1
        self.edge = self.row + 1
        self.positions = h * self.row
        self.size = self.positions + 2 * self.edge

    def flat(self, x: Tensor) -> Tensor:
        """(…, h, w) -> (…, positions)."""
        return F.pad(x, (0, 1)).flatten(-2)

    def fold(self, x: Tensor) -> Tensor:
        """(…, positions) -> (…, h, w)."""
        return x.unflatten(-1, (self.h, self.row))[..., : self.w]

    def inner(self, x: Tensor) -> Tensor:
        """(…, size) -> (…, positions), a view."""
        return x[..., self.edge : -self.edge]

    def put(self, x: Tensor, channels: tuple[int | None, ...], planes: Tensor) -> None:
        """The channels of x (b, 8, h, w), in this order, into zeros (b, 9, size)."""
        places = self.fold(self.inner(planes))
        for place, channel in enumerate(channels):
            if channel is not None:
                places[:, place] = x[:, channel]

    def around(self, x: Tensor) -> Tensor:
        """(b, size) -> (b, 3, 3, positions): each position's neighbours and itself; a view. Of
        (b, 9, size) the neighbour at each place is read in the plane of that place."""
        plane = x.stride(1) if x.ndim == 3 else 0
        return x.as_strided(
            (len(x), 3, 3, self.positions),
            (x.stride(0), 3 * plane + self.row, plane + 1, 1),
            x.storage_offset(),
        )


class _Propagation(torch.autograd.Function):
    """(guidance (b, 8, h, w), coarse, anchor, where it holds (b, h, w), steps) -> (b, h, w)."""

    @staticmethod
    def forward(ctx, guidance, coarse, anchor, fixed, steps):
        b = len(guidance)
        grid = _Grid(*guidance.shape[-2:])
        coarse, anchor, fixed = (grid.flat(x) for x in (coarse, anchor, fixed))
        buffer = guidance.new_zeros(b, 10, grid.size)
        grid.put(guidance, _CHANNELS, buffer[:, :9])
        weights = grid.around(buffer[:, :9]).contiguous()  # read at p + o_k, not yet divided
        terms = buffer[..., : grid.positions]  # from here on: 9 products, and the rest
        products = terms[:, :9].unflatten(1, (3, 3))
        signed = weights.sum((1, 2))
        total = torch.abs(weights, out=products).sum((1, 2))
        # A fixed pixel takes nothing of its neighbours.
        scale = torch.where(fixed | (total == 0), 0, 1 / total)
        rest = torch.where(fixed, anchor, (1 - scale * signed) * coarse)
        weights *= scale[:, None, None]
        terms[:, 9] = rest

        keep = any(ctx.needs_input_grad)
        depth = guidance.new_zeros(steps + 1 if keep else 2, b, grid.size)
        inner, around = ([view(x) for x in depth] for view in (grid.inner, grid.around))
        inner[0].copy_(coarse)
        for step in range(steps):
            now, then = (step, step + 1) if keep else (step % 2, (step + 1) % 2)
            torch.mul(around[now], weights, out=products)
            torch.sum(terms, 1, out=inner[then])
        if keep:
            ctx.grid = grid
            ctx.save_for_backward(guidance, depth, signed, total, scale, rest, fixed)
        return grid.fold(inner[then]).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        guidance, depth, signed, total, scale, rest, fixed = ctx.saved_tensors
        b, grid = len(guidance), ctx.grid
        # The step's transpose: neighbours the other way round, weights read where they are.
        buffer = guidance.new_zeros(b, 9, grid.size)
        grid.put(guidance, _OPPOSITE, buffer)
        weights = grid.inner(buffer).unflatten(1, (3, 3))
        passed = guidance.new_zeros(b, grid.size)
        inner, around = grid.inner(passed), grid.around(passed)
        of_weights = guidance.new_zeros(b, 3, 3, grid.positions)
        terms = torch.empty_like(of_weights)

        grad = grid.flat(grad)
        of_rest, of_scale = torch.zeros_like(grad), torch.zeros_like(grad)
        for step in reversed(range(len(depth) - 1)):
            of_rest += grad
            of_scale.addcmul_(grad, grid.inner(depth[step + 1]))
            torch.mul(grad, scale, out=inner)
            of_weights.addcmul_(around, grid.inner(depth[step])[:, None, None])
            torch.mul(around, weights, out=terms)
            torch.sum(terms, (1, 2), out=grad)
        of_scale -= of_rest * rest  # so far times the scale
        of_signed = -of_rest * grid.inner(depth[0]) * scale
        of_total = torch.where(scale != 0, -(of_scale + of_signed * signed) / total, 0)
        inner.copy_(of_signed)
        of_weights += around
        inner.copy_(of_total)
        of_weights.addcmul_(around, torch.sign(weights, out=terms))
        of_coarse = grad + of_rest * torch.where(fixed, 0, 1 - scale * signed)
        of_weights = grid.fold(of_weights.flatten(1, 2))
        of_guidance = torch.cat([of_weights[:, :4], of_weights[:, 5:]], dim=1)
        return of_guidance, grid.fold(of_coarse), grid.fold(of_rest * fixed), None, None


# ---------------------------------------------------------------------------- decoder


class UpConv2d(nn.Conv2d):
    """A convolution (odd kernel, zero padding, no bias) of its input unpooled by zeros: x(i, j) at
    (2i, 2j), cropped to a size of 2h or 2h - 1 by 2w or 2w - 1.

    Three quarters of what it would multiply are zeros: a transposed convolution spares them. Equal
    to rounding.
    """

    def __init__(self, inp: int, out: int, kernel: int):
        super().__init__(inp, out, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        extra = [n - (2 * m - 1) for n, m in zip(size, x.shape[-2:], strict=True)]
        weight = self.weight.flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(x, weight, stride=2, padding=self.padding, output_padding=extra)


class UpProj(nn.Module):
    """Unpooling to a given size, then a residual unit, which takes in the encoder's map of that
    size where there is one; out: (b, out, *size) after its ReLU."""

    def __init__(self, inp: int, out: int, skip: int = 0):
        super().__init__()
        self.conv1 = UpConv2d(inp, out, 5)
        self.bn1 = nn.BatchNorm2d(out)
        if skip:
            self.conv1_1 = nn.Conv2d(out + skip, out, 3, padding=1, bias=False)
            self.bn1_1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.sc_conv1 = UpConv2d(inp, out, 5)
        self.sc_bn1 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor, size: tuple[int, int], skip: Tensor | None = None) -> Tensor:
        branch = F.relu(self.bn1(self.conv1(x, size)))
        if skip is not None:
            branch = F.relu(self.bn1_1(self.conv1_1(torch.cat([branch, skip], dim=1))))
        return F.relu(self.bn2(self.conv2(branch)) + self.sc_bn1(self.sc_conv1(x, size)))


class Head(nn.Module):
    """Unpooling to a given size and a convolution; linear."""

    def __init__(self, inp: int, out: int):
        super().__init__()
        self.conv1 = UpConv2d(inp, out, 3)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        return self.conv1(x, size)


# ---------------------------------------------------------------------------- the network


class CSPN(DepthModel):
    """Dense depth in metres, at the image's size, from an image and sparse depth.

    The encoder is a ResNet on four channels, RGB and sparse metres. The decoder has the units of
    the encoder's maps: 1024, 512, 256, 64 over ResNet-50 as published, 256, 128, 64, 64 over
    ResNet-18. `gud_up_proj_layer5` gives the coarse depth, `gud_up_proj_layer6` the guidance, and
    `propagate` makes the result of them. Any image size will do: it is halved five times, rounding
    up, and unpooling crops to what was there.

    The original's second decoder, 37,956,352 parameters that nothing uses, is not built, which
    leaves 218,121,920. `load_weights` reports and ignores its keys (`dead_keys`).

    Args:
        name: `cspn_resnet50` (the publication's), or `cspn_<timm name>` for any ResNet of timm's.
        anchor, positive: of `propagate`.
        normalisation: of the image. `"imagenet"`, or `"wrapped"` for the original weights, whose
            images went through 8 bits after normalisation: 255 z is truncated and taken modulo
            256, so what is darker than the mean becomes bright. It has no gradient.
    """

    backbones = PUBLISHED_BACKBONES
    image_size = (228, 304)
    input_names = ("sparse_depth",)
    dead_keys = ("up_proj_layer", "conv3.", "post_process_layer.")
    # By the encoder's stage whose size they have.
    taps = {f"layer{i}": f"gud_up_proj_layer{i}" for i in (1, 2, 3, 4)}

    def __init__(
        self,
        name: str = "cspn_resnet50",
        *,
        anchor: str = "sparse",
        positive: bool = False,
        normalisation: str = "imagenet",
    ):
        _check_anchor(anchor)
        if normalisation not in NORMALISATIONS:
            raise ValueError(unknown("normalisation", normalisation, NORMALISATIONS))
        given = name.removeprefix("cspn_")
        backbone = PUBLISHED_BACKBONES.get(given, given)
        net = _resnet(backbone, name=name)
        options = {"anchor": anchor, "positive": positive, "normalisation": normalisation}
        super().__init__(name, self.taps, options=options, **input_statistics(net.pretrained_cfg))
        self.backbone = backbone
        self.anchor, self.positive, self.normalisation = anchor, positive, normalisation

        stem, *stages = (info["num_chs"] for info in net.feature_info)
        self.conv1_1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            net.layer1, net.layer2, net.layer3, net.layer4
        )  # fmt: skip
        self.conv2 = nn.Conv2d(stages[3], stages[3], 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(stages[3])
        self.gud_up_proj_layer1 = UpProj(stages[3], stages[2])
        self.gud_up_proj_layer2 = UpProj(stages[2], stages[1], stages[1])
        self.gud_up_proj_layer3 = UpProj(stages[1], stages[0], stages[0])
        self.gud_up_proj_layer4 = UpProj(stages[0], stem, stem)
        self.gud_up_proj_layer5 = Head(stem, 1)
        self.gud_up_proj_layer6 = Head(stem, 8)

    def load_imagenet(self) -> None:
        """As `DepthModel.load_imagenet`; the sparse depth's channel keeps its own."""
        filled = timm_model(self.backbone, name=self.name, pretrained=True).state_dict()
        own = self.state_dict()
        for key, value in filled.items():
            key = f"conv1_1{key.removeprefix('conv1')}" if key.startswith("conv1.") else key
            if key in own:  # all but the classifier
                fits = own[key].shape == value.shape
                (own[key] if fits else own[key][:, :3]).copy_(value)  # the first takes RGB

    def forward(self, image: Tensor, *, sparse_depth: Tensor | None = None) -> Tensor:
        """Dense depth.

        Args:
            image: (b, 3, h, w) RGB in [0, 1].
            sparse_depth: (b, 1, h, w) metres, 0 = no measurement. Without any measurement in an
                image the network still answers, by the image alone, and a call warns once.

        Returns:
            (b, 1, h, w) float32 depth in metres.
        """
        self._check(image, {})
        self._check_sparse(image, sparse_depth)
        z = (image - self.mean) / self.std
        if self.normalisation == "wrapped":
            z = (255 * z).trunc().remainder(256) / 255
        return self.forward_raw(torch.cat([z, sparse_depth.to(z)], dim=1)).float()

    def forward_raw(self, x: Tensor) -> Tensor:
        """(b, 4, h, w), normalised RGB and sparse metres -> (b, 1, h, w) metres."""
        sizes = [tuple(x.shape[-2:])]
        sparse = x[:, 3:]
        stem = self.conv1_1(x)
        x = self.maxpool(F.relu(self.bn1(stem)))
        skips = [stem]
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
            skips.append(x)
        sizes += [tuple(skip.shape[-2:]) for skip in skips]
        x = self.bn2(self.conv2(self.layer4(x)))
        x = self.gud_up_proj_layer1(x, sizes[4])
        x = self.gud_up_proj_layer2(x, sizes[3], skips[2])
        x = self.gud_up_proj_layer3(x, sizes[2], skips[1])
        x = self.gud_up_proj_layer4(x, sizes[1], skips[0])
        return propagate(
            self.gud_up_proj_layer6(x, sizes[0]),
            self.gud_up_proj_layer5(x, sizes[0]),
            sparse,
            anchor=self.anchor,
            positive=self.positive,
        )

    def _check_sparse(self, image: Tensor, sparse: Tensor | None) -> None:
        if not isinstance(sparse, Tensor) or not sparse.is_floating_point():
            given = sparse.dtype if isinstance(sparse, Tensor) else type(sparse).__name__
            raise TypeError(
                f"{self.name} takes sparse_depth beside the image, a float tensor in metres, got "
                f"{given}. Data sets give it with load_dataset(…, sparse_samples=500); zeros mean "
                "that nothing was measured."
            )
        wanted = (len(image), 1, *image.shape[-2:])
        if sparse.shape != wanted:
            raise ValueError(
                f"{self.name} takes sparse_depth of shape {wanted}, as the image has it, got "
                f"{tuple(sparse.shape)}. Do not interpolate it: measured and unmeasured pixels "
                "would mix. Draw the samples at the image's size (mde_utils.data.SparseSamples)."
            )
        if sparse.is_meta or torch.compiler.is_compiling():
            return
        flat = sparse.detach().flatten(1)
        # One look for all three, even if it makes a GPU wait: the result would be wrong in silence.
        wrong, empty = torch.stack(
            [(~(flat.isfinite() & (flat >= 0))).sum(), (~(flat > 0).any(1)).sum()]
        ).tolist()
        if wrong:
            raise ValueError(
                f"sparse_depth of {self.name} holds {wrong} negative, infinite or NaN values. It "
                "is in metres, and 0 where nothing was measured."
            )
        if empty:
            warnings.warn(
                f"{empty} of {len(flat)} images have no sparse depth at all: {self.name} answers "
                "by the image alone, which it was not trained for.",
                NoSparseDepth,
                stacklevel=3,
            )


class NoSparseDepth(UserWarning):
    """An image came without any measurement."""


def _resnet(backbone: str, *, name: str) -> ResNet:
    net = timm_model(backbone, name=name, in_chans=4)
    if not isinstance(net, ResNet):
        raise ValueError(
            f"{name!r}: CSPN's encoder is a ResNet, {backbone} is a {type(net).__name__}. Use for "
            "example cspn_resnet18 or cspn_resnet10t."
        )
    return net


def _check_anchor(anchor: str) -> None:
    if anchor not in ANCHORS:
        raise ValueError(unknown("anchor", anchor, ANCHORS))
