"""The training step: forward, loss, backward, update."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.environment import amp_dtype
from mde_utils.losses import DECODER_SCALES
from mde_utils.processes import rank_and_world
from mde_utils.selectivity import EPS, SelectivityLoss
from mde_utils.stereo import check_baseline, data_graft
from mde_utils.training.config import LOSSES, TrainConfig


@dataclass
class Losses:
    """What the log wants of one step.

    Attributes:
        loss, depth: the whole, and the depth loss unscaled.
        term: selectivity, the unweighted sum of `terms` over layers; None without a pixel inside
            the bins.
        pooled: layer -> sums and pixel counts by bin.
        parts: of the depth loss, where it says them.
        ratio: of the two gradients, where it was asked for and is finite.
    """

    loss: Tensor
    depth: Tensor
    term: Tensor | None
    terms: dict[str, Tensor]
    pooled: dict[str, tuple[Tensor, Tensor]]
    parts: dict[str, Tensor]
    ratio: float | None


class Step:
    """One step of training; `model` is what a launcher's processes share, `bare` the network."""

    def __init__(self, bare: nn.Module, config: TrainConfig, span, device: torch.device):
        self.bare, self.config, self.device = bare, config, device
        self.world = rank_and_world()[1]
        self.dtype = amp_dtype(device) if config.mixed_precision else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype == torch.float16)
        self.optimiser = make_optimiser(bare, config)
        self.parameters = [p for p in bare.parameters() if p.requires_grad]
        self.selectivity = SelectivityLoss(span, config.method, config.definition)
        self.depth_loss = LOSSES[config.depth_loss]
        self.scale = getattr(bare, "loss_scale", 1.0)
        self.inputs = tuple(getattr(bare, "input_names", ()))
        self.stereo = asdict(config.stereo_settings())
        self.graft, scales = self.stereo.pop("graft"), None
        self.model, self.forward = bare, self.of_depth
        if config.depth_loss == "stereo":
            scales = self.stereo["scales"]
            self.model, self.forward = Disparities(bare, scales), self.of_pairs
        if self.world > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(
                self.model, device_ids=ids, find_unused_parameters=scales is not None
            )

    def __call__(
        self, batch: dict, acts: dict, *, rate: float, alpha: float, probe: bool = False
    ) -> Losses:
        """`rate` of learning; `alpha`, the weight of the selectivity of `acts`; `probe` asks for
        the ratio of the gradients, in any run."""
        config, scaler = self.config, self.scaler
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        depth, parts, target = self.forward(batch)
        with nullcontext() if config.neuron_selective or probe else torch.no_grad():
            pooled, terms = self.selectivity_of(acts, target)
        term = torch.stack([*terms.values()]).sum() if terms else None
        loss = self.scale * depth
        if config.neuron_selective and term is not None:
            loss = loss + alpha * term
        self.stop_if_not_finite(loss)
        self.optimiser.zero_grad(set_to_none=True)
        aside = self.gradient_of(alpha * term) if probe and term is not None else None
        scaler.scale(loss).backward()
        ratio = None if aside is None else self.ratio_of(aside)
        scaler.step(self.optimiser)
        scaler.update()
        if probe and scaler.is_enabled() and scaler.get_scale() < 1:
            raise FloatingPointError(
                "Gradients overflow float16 again and again, so that steps are skipped (not with "
                "mixed_precision=False)"
            )
        return Losses(loss, depth, term, terms, pooled, parts, ratio)

    # ---- forward

    def of_depth(self, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The depth loss, its parts, and the depth by which units become selective."""
        image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = batch["depth"].to(self.device, non_blocking=True)
        extra = {k: batch[k].to(self.device, non_blocking=True) for k in self.inputs}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            pred = self.model(image, **extra)
        target = F.interpolate(target, pred.shape[-2:], mode="nearest-exact")
        return self.depth_loss(pred.float(), target), {}, target

    def of_pairs(self, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """The same without ground truth."""
        check_baseline(batch["baseline"], self.bare)
        wanted = ("image", "right", "intrinsics", "baseline", "hint", "depth")
        batch = {k: batch[k].to(self.device, non_blocking=True) for k in wanted if k in batch}
        if self.graft:
            batch = data_graft(batch)
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            found = self.model(image)
        parts = self.depth_loss(found, batch, **self.stereo)
        depth = torch.stack(list(parts.values())).sum()
        size, target = image.shape[-2:], None
        if self.config.imde_depth == "own":
            target = self.bare.metres([x.detach() for x in found], size)
        elif "depth" in batch:
            target = F.interpolate(batch["depth"], size, mode="nearest-exact")
        return depth, parts, target

    def selectivity_of(self, acts: dict, target: Tensor | None) -> tuple[dict, dict]:
        """The pooled responses of the layers and their terms; none without a pixel in the bins."""
        pooled = self.selectivity.pool(acts, target) if acts else {}
        inside = all(counts.any() for _, counts in pooled.values())
        return pooled, self.selectivity.terms(pooled) if inside else {}

    # ---- what is looked at

    def stop_if_not_finite(self, loss: Tensor) -> None:
        finite = bool(loss.isfinite())
        if not everywhere(finite, self.device):
            who = "of another process is not finite" if finite else f"is {loss.item()}"
            raise FloatingPointError(f"The loss {who}")

    def gradient_of(self, term: Tensor) -> list[Tensor | None]:
        """By parameter, with the scaler's factor; None throughout where the layers are frozen."""
        if not term.requires_grad:
            return [None] * len(self.parameters)
        scaled = self.scaler.scale(term)
        return torch.autograd.grad(scaled, self.parameters, retain_graph=True, allow_unused=True)

    def ratio_of(self, aside: Iterable[Tensor | None]) -> float | None:
        """Of the term's gradient to that of the depth loss, which is what else is in `.grad`.

        None where they are not finite: the scaler has yet to find float16's range.
        """
        selective = self.flat(aside)
        whole = self.flat(p.grad for p in self.parameters)
        if self.world > 1:  # as DistributedDataParallel did with the others
            torch.distributed.all_reduce(selective)
            selective = selective / self.world
        depth = whole - selective if self.config.neuron_selective else whole
        above, below = selective.norm().item(), depth.norm().item()
        return above / max(below, EPS) if math.isfinite(above) and math.isfinite(below) else None

    def flat(self, gradients: Iterable[Tensor | None]) -> Tensor:
        """One vector; zeros for the parameters that a loss does not depend on."""
        pairs = zip(gradients, self.parameters, strict=True)
        return torch.cat(
            [(torch.zeros_like(p) if g is None else g.detach()).flatten().float() for g, p in pairs]
        )


class Disparities(nn.Module):
    """A network as the stereo loss calls it: DistributedDataParallel knows `forward` alone."""

    def __init__(self, net: nn.Module, scales: int | None):
        super().__init__()
        self.net, self.scales = net, scales
        self.full_scale = scales is None or scales > DECODER_SCALES

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.net.disparities(image, full_scale=self.full_scale)[: self.scales]


def make_optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Of the parameters that are not frozen; those that do not decay are a group of their own."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not named:
        raise ValueError("The model has no parameter to train: all are frozen (requires_grad).")
    decaying = [p for name, p in named if name.startswith(config.decay_prefix)]
    others = [p for name, p in named if not name.startswith(config.decay_prefix)]
    if not decaying:
        known = ", ".join(dict.fromkeys(f"{name.split('.')[0]}." for name, _ in named))
        raise ValueError(
            f"No parameter's name begins with decay_prefix {config.decay_prefix!r}. They begin "
            f"with: {known}"
        )
    groups = [{"params": decaying}]
    if others:
        groups.append({"params": others, "weight_decay": 0.0})
    kind = {
        "adamw": partial(torch.optim.AdamW, eps=config.adam_epsilon),
        "adam": partial(torch.optim.Adam, eps=config.adam_epsilon),
        "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    }[config.optimizer]
    return kind(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def everywhere(value: bool, device: torch.device) -> bool:
    """Whether it is true in all processes."""
    if rank_and_world()[1] > 1:
        flag = torch.tensor([value], dtype=torch.uint8, device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
        value = bool(flag)
    return value
