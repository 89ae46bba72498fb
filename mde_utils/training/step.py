"""The loss of one batch and its parts."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mde_utils.losses import DECODER_SCALES
from mde_utils.selectivity import SelectivityLoss
from mde_utils.stereo import data_graft
from mde_utils.training.checks import check_baseline
from mde_utils.training.config import LOSSES, STEREO, TrainConfig


@dataclass
class Losses:
    """Of one batch: the loss, its two parts, and what the log wants."""

    loss: Tensor
    depth: Tensor  # unscaled
    term: Tensor | None  # unweighted sum over layers; None without a pixel inside the bins
    terms: dict[str, Tensor]
    pooled: dict[str, tuple[Tensor, Tensor]]
    parts: dict[str, Tensor]  # of the depth loss, where it says them


class Disparities(nn.Module):
    """A network as the stereo loss calls it: DistributedDataParallel knows ``forward`` alone."""

    def __init__(self, net: nn.Module, scales: int | None):
        super().__init__()
        self.net, self.scales = net, scales
        self.full_scale = scales is None or scales > DECODER_SCALES

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.net.disparities(image, full_scale=self.full_scale)[: self.scales]


class Step:
    """The loss of one batch and its parts."""

    def __init__(self, model, bare, config: TrainConfig, span, device, dtype):
        self.model, self.bare = model, bare
        self.config, self.device, self.dtype = config, device, dtype
        self.depth_loss = LOSSES[config.depth_loss]
        self.of = self._of_pairs if config.depth_loss == "stereo" else self._of_depth
        self.stereo = STEREO | config.stereo
        self.graft = self.stereo.pop("graft")
        self.scale = getattr(bare, "loss_scale", 1.0)
        self.inputs = tuple(getattr(bare, "input_names", ()))
        self.selectivity = SelectivityLoss(
            span,
            config.method,
            config.definition,
            ema=config.imde_ema,
            coverage=config.imde_coverage,
        )

    def __call__(self, batch: dict, acts, *, alpha: float, probe: bool = False) -> Losses:
        """Without a pixel inside the bins the batch has no selectivity: the term is left out.

        ``alpha`` is the weight of the term; ``probe`` asks for its gradient in any run.
        """
        depth, parts, target = self.of(batch)
        loss, term, terms, pooled = self.scale * depth, None, {}, {}
        if acts:
            wanted = self.config.neuron_selective
            with nullcontext() if wanted or probe else torch.no_grad():
                pooled = self.selectivity.pool(acts, target)
                if all(counts.any() for _, counts in pooled.values()):
                    terms = self.selectivity.terms(pooled)
                    term = torch.stack(list(terms.values())).sum()
            if wanted and term is not None:
                loss = loss + alpha * term
        return Losses(loss, depth, term, terms, pooled, parts)

    def _of_depth(self, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The depth loss, its parts, and the depth by which units become selective."""
        image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = batch["depth"].to(self.device, non_blocking=True)
        extra = {k: batch[k].to(self.device, non_blocking=True) for k in self.inputs}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            pred = self.model(image, **extra)
        target = F.interpolate(target, pred.shape[-2:], mode="nearest-exact")
        return self.depth_loss(pred.float(), target), {}, target

    def _of_pairs(self, batch: dict) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
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
