"""What a run cannot be trained on or measured by, found before it begins; and what its numbers
say, where somebody might not look."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from mde_utils.activations import find_layer
from mde_utils.depth_bins import find_range
from mde_utils.models.base import DepthModel
from mde_utils.stereo import check_pairs
from mde_utils.training.config import TrainConfig

#: Outside this range of the gradients' ratio a run warns: the term does nothing, or depth has no
#: say.
GRADIENT_RATIO = (0.01, 10.0)
#: So many times the depth loss of the first epoch, and a run warns.
GROWN = 2.0
INDOORS = 10.0  # metres: 1000 cm, the range of SSIM in METER's loss


def check_run(
    model: nn.Module, train_set, val_set, config: TrainConfig
) -> tuple[TrainConfig, tuple[float, float], bool]:
    """The config, with the model's name; the range of depth; whether validation is by depth."""
    if val_set is None:
        raise ValueError(
            "fit needs a validation set: the best epoch is chosen on it. Give a part of the "
            "training images that is not trained on."
        )
    config, span = named(config, model), find_range(train_set, model)
    stereo = config.depth_loss == "stereo"
    check_losses(model, config, span)
    inputs = getattr(model, "input_names", ())
    otherwise = (
        " Without it the layers in cfg_layers can be watched by the network's own, "
        "imde_depth='own', or not at all, cfg_layers=()."
        if stereo
        else " Pairs need none, with depth_loss='stereo'."
    )
    watched = bool(config.cfg_layers) and config.imde_depth == "truth"
    needed = otherwise if watched or not stereo else None
    has_depth("training", train_set, span, inputs, otherwise=needed)
    if stereo:
        check_pairs("training", train_set, model, hints=config.stereo_settings().hints)
    by_pairs = config.best_by == "photometric"
    otherwise = " Pairs can be measured without, with best_by='photometric'."
    needed = None if by_pairs else otherwise
    by_depth = has_depth("validation", val_set, span, inputs, otherwise=needed)
    if by_pairs:
        check_pairs("validation", val_set, model, hints=False)
    for layer in config.cfg_layers:
        find_layer(model, layer)
    return config, span, by_depth


def named(config: TrainConfig, model: nn.Module) -> TrainConfig:
    """The config as it is recorded: of the network that is trained."""
    bare = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    if not isinstance(bare, DepthModel):
        name = type(bare).__name__
        return config if config.model == name else replace(config, model=name)
    if bare.name != config.model:
        raise ValueError(
            f"The config says model={config.model!r}, but the network to be trained is "
            f"{bare.name!r}: its run would be filed under another's name. Give the config "
            f"model={bare.name!r}."
        )
    return config


def check_losses(model: nn.Module, config: TrainConfig, span: tuple[float, float]) -> None:
    """Refuse losses that are not made for this network or this depth."""
    if config.depth_loss == "balanced" and span[1] > INDOORS:
        raise ValueError(
            f"depth_loss='balanced' is METER's for rooms, in centimetres: its terms are balanced "
            f"for depth up to {INDOORS:g} m, but this data set's ends at {span[1]:g} m. Take "
            "'balanced_kitti', METER's in decimetres."
        )
    if config.depth_loss != "stereo":
        if config.stereo or config.imde_depth == "own":
            raise ValueError(
                f"stereo={config.stereo} and imde_depth={config.imde_depth!r} are about learning "
                f"from pairs; with depth_loss={config.depth_loss!r} leave out both, or take "
                "'stereo'."
            )
        return
    if not hasattr(model, "disparities"):
        raise ValueError(
            f"depth_loss='stereo' trains a network by its disparities (epcdepth_resnet18, …); "
            f"{type(model).__name__} says depth alone."
        )
    scales, finest = config.stereo_settings().scales, getattr(model, "output_scale", 0)
    if scales is not None and scales <= (2 if finest == -1 else finest):
        raise ValueError(
            f"scales={scales} in stereo trains fewer disparities than the network's depth is "
            f"made of (output_scale={finest})."
        )


def has_depth(
    name: str, dataset, span: tuple[float, float], inputs: Iterable[str], *, otherwise: str | None
) -> bool:
    """Whether a data set has any depth that can be learned or measured. Refuse one without images,
    without one of the network's inputs, or, unless `otherwise` is None, without depth;
    `otherwise`: what can be done without it."""
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty.")
    for i in range(len(dataset)):
        item = dataset[i]
        if missing := [key for key in inputs if key not in item]:
            raise ValueError(
                f"The model takes {missing[0]!r} beside the image, which items of the {name} set "
                f"lack; they have {', '.join(item)}."
            )
        if "depth" not in item:
            break
        if ((item["depth"] > 0) & (item["depth"] < span[1])).any():
            return True
    if otherwise is not None:
        raise ValueError(
            f"The {name} set has no depth between 0 and {span[1]:g} m in any of its "
            f"{len(dataset)} images: is it in metres, and 0 only where there is no measurement?"
            f"{otherwise}"
        )
    return False


def blame(what: str, epoch: int, images: str, *, kept: bool) -> str:
    """What is not finite, where, and what can be done."""
    at = f", at the images {images}" if images else ""
    kept = "The last checkpoint is kept" if kept else "Nothing was saved"
    return (
        f"{what} in epoch {epoch}{at}. {kept}. Lower learning_rate or the magnitude of imde_alpha, "
        "or look at these images."
    )


def doubts(config: TrainConfig, rows: list[dict]) -> dict[str, str]:
    """What the numbers of the last epoch say, by kind."""
    row, found = rows[-1], {}
    epoch, alpha, ratio = row["epoch"], row["imde_alpha"], row.get("gradient_ratio")
    if config.neuron_selective and ratio is not None and alpha < 0:
        weak, strong = GRADIENT_RATIO
        measured = (
            f"its gradient is {ratio:.2g} times that of the depth loss in epoch {epoch} "
            f"(imde_alpha {alpha:g})"
        )
        if ratio < weak and epoch - 1 >= config.imde_warmup:
            found["weak"] = f"The selectivity term is too weak to matter: {measured}."
        if ratio > strong:
            found["strong"] = f"The selectivity term is so strong that depth suffers: {measured}."
    first, last = rows[0]["depth_loss"], row["depth_loss"]
    if last > GROWN * first:
        found["grown"] = (
            f"The depth loss has grown from {first:.4g} in epoch 1 to {last:.4g} in epoch {epoch}: "
            f"learning_rate ({config.learning_rate:g}) may be too high."
        )
    return found
