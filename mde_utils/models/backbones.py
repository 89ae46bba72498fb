"""timm's backbones as encoders of the publications' networks."""

from __future__ import annotations

import http.client
from collections.abc import Sequence

import timm
import torch
from timm.layers import Format
from timm.models.resnet import ResNet
from torch import Tensor, nn

from ..checks import unknown


def timm_model(backbone: str, *, name: str, pretrained: bool = False, **options) -> nn.Module:
    """timm's `backbone`, after a look at whether there is such a one.

    Args:
        backbone: a timm name, with or without the tag of its weights (`resnet50.tv_in1k`).
        name: of the network, `<family>_<timm name>`, for messages.
        options: of `timm.create_model`.

    Raises:
        ValueError: timm has no such backbone or weights.
        FileNotFoundError: the ImageNet weights are not in the cache and cannot be downloaded.
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
    try:
        return timm.create_model(backbone, pretrained=pretrained, **options)
    except (OSError, http.client.HTTPException) as error:
        raise FileNotFoundError(
            f"Could not get the ImageNet weights {backbone} ({type(error).__name__}: {error}). "
            "Without network: use weights=None (random) or a checkpoint's path, or put timm's "
            "file into its cache (HF_HOME, TORCH_HOME), for example from an attached data set."
        ) from None


def timm_features(
    backbone: str, strides: Sequence[int], *, name: str, pretrained: bool = False
) -> tuple[nn.Module, list[int], dict]:
    """timm's `backbone` as a module that gives its last map of each stride.

    Returns:
        the module, the channels of its maps, and timm's description of its weights.

    Raises:
        ValueError, FileNotFoundError: as `timm_model`; or the backbone has other strides, takes
            one size only, or gives maps that are not (b, c, h, w).
    """
    arch, family = backbone.split(".")[0], name.split("_")[0]
    with torch.device("meta"):
        probe = timm_model(backbone, name=name, features_only=True)
    info, layout = probe.feature_info, getattr(probe, "output_fmt", Format.NCHW)
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
