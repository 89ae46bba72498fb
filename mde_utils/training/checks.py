"""What a run cannot be trained on, found before it begins."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from mde_utils.stereo import check_pair

#: How far the baseline of a pair may be from the network's, as a share of it: KITTI's cameras are
#: 0.5327 to 0.537 m apart, and the publication's 5.4 takes them for 0.54.
SAME_BASELINE = 0.02


def check_data(
    name: str,
    dataset,
    span: tuple[float, float],
    inputs: Iterable[str],
    *,
    needed: bool = True,
    otherwise: str = "",
) -> bool:
    """Whether a data set has any depth that can be learned or measured. Refuse one without images,
    without one of the network's inputs, or without depth where that is needed; ``otherwise``: what
    can be done without it."""
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
    if needed:
        raise ValueError(
            f"The {name} set has no depth between 0 and {span[1]:g} m in any of its "
            f"{len(dataset)} images: is it in metres, and 0 only where there is no measurement?"
            f"{otherwise}"
        )
    return False


def check_pairs(name: str, dataset, model: nn.Module, *, hints: bool) -> None:
    """Refuse a data set whose first item is no pair for this network."""
    item = dataset[0]
    wanted = ("right", "intrinsics", "baseline", *(("hint",) if hints else ()))
    if missing := [key for key in wanted if key not in item]:
        remedy = (
            "Give load_dataset hints=True, or the config stereo={'hints': False}."
            if missing == ["hint"]
            else "Load 'rooms' or 'streets' with baseline=…, 'kitti' with right=True."
        )
        raise ValueError(
            f"Pairs need image, {', '.join(wanted)}; items of the {name} set lack "
            f"{', '.join(missing)}, they have {', '.join(item)}. {remedy}"
        )
    check_pair(
        item["image"],
        item["right"],
        focal=float(item["intrinsics"][0, 0]),
        baseline=float(item["baseline"]),
        hint=item["hint"] if hints else None,
        name=f"{item.get('name', 'item 0')} of the {name} set",
    )
    check_baseline(torch.tensor([float(item["baseline"])]), model)


def check_baseline(baselines: Tensor, model: nn.Module) -> None:
    """Refuse pairs that would teach the network another scale than it has."""
    own = getattr(model, "options", {}).get("baseline")
    if own is None:
        return
    wrong = (baselines.abs() - own).abs() > SAME_BASELINE * own
    if wrong.any():
        found = baselines[wrong][0].abs().item()
        raise ValueError(
            f"The network takes the cameras to be {own:g} m apart, but those of these pairs are "
            f"{found:.4g} m apart: its metres would be wrong. Build it with baseline={found:.4g}."
        )
