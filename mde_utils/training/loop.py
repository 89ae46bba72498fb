"""Train a depth network, with or without the selectivity loss.

    loss = loss_scale · depth_loss + imde_alpha · selectivity        (You et al. 2021, equation 3)

The depth loss compares with ground truth, or, "stereo", explains one picture of a pair by the other
(:func:`mde_utils.losses.stereo_loss_terms`) and needs none.

A run lives in a folder (:mod:`mde_utils.runs`) and may be killed at any moment: it goes on from its
last checkpoint, inside an epoch too, and on a CPU ends with the same weights bit for bit. From a
shell: ``python -m mde_utils.training config.json``; on several GPUs
``accelerate launch -m mde_utils.training config.json``.
"""

from __future__ import annotations

import math
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mde_utils.activations import find_layer, tap
from mde_utils.checkpoints import load_weights, save_weights
from mde_utils.data import collate
from mde_utils.depth_bins import find_range
from mde_utils.dissection import dissect
from mde_utils.environment import (
    amp_dtype,
    keep_freed_memory,
    pick_device,
    progress,
    seed_everything,
)
from mde_utils.evaluation import evaluate, photometric
from mde_utils.processes import gather, rank_and_world
from mde_utils.selectivity import EPS
from mde_utils.training.checks import check_data, check_pairs
from mde_utils.training.config import BEST_BY, STEREO, TrainConfig
from mde_utils.training.log import Tally, merged
from mde_utils.training.order import Batches, Items
from mde_utils.training.runs import BEST, CURVES, RunFolder
from mde_utils.training.step import Disparities, Losses, Step

#: Steps between measurements of the gradients' ratio; the first step of an epoch is one of them.
PROBE_EVERY = 100
#: Outside this range of that ratio a run warns: the term does nothing, or depth has no say.
GRADIENT_RATIO = (0.01, 10.0)
#: So many times the depth loss of the first epoch, and a run warns.
GROWN = 2.0


@dataclass(frozen=True, eq=False)
class History:
    """What a run gave.

    Attributes:
        frame: a row an epoch; the columns of ``history.csv`` (see :func:`fit`).
        config: as it was run.
        best_epoch: the row of ``best.safetensors``, counted from 1; 0 before the first whole epoch.
        run_dir: the run's folder, or None.
        finished: False where ``max_hours`` ended the run before its last epoch.
    """

    frame: pd.DataFrame
    config: TrainConfig
    best_epoch: int
    run_dir: Path | None = None
    finished: bool = True

    @property
    def best(self) -> dict:
        """The row of the best epoch.

        Raises:
            ValueError: no epoch is whole yet.
        """
        if not self.best_epoch:
            raise ValueError(
                "No epoch of this run is whole yet: run it again with more max_hours, and it goes "
                "on."
            )
        return self.frame.set_index("epoch").loc[self.best_epoch].to_dict()

    @property
    def best_weights(self) -> Path | None:
        return self.run_dir / "best.safetensors" if self.run_dir else None


def fit(
    model: nn.Module,
    train_set,
    val_set,
    config: TrainConfig,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train ``model``; it ends with the weights of the best epoch.

    The target is resized (nearest) to the network's resolution, as the METER notebook does, for
    both terms. A run folder that holds the same config is continued from its last checkpoint, and
    a finished one is read, not run again. Order and augmentation of the images depend on the seed,
    the epoch and the image alone, so neither an interruption nor the number of workers or
    processes changes what is trained on.

    With ``depth_loss="stereo"`` the network (its ``disparities``) learns from pairs: items with
    ``right``, ``intrinsics``, ``baseline`` and, unless switched off, ``hint``. Their depth is not
    looked at, but by the selectivity, unless that goes by the network's own (``imde_depth``). Its
    metres are right if ``baseline`` of the model is that of the pairs. Validation is by depth
    where the validation set has any. One of pairs without it is validated by their photometric
    error, which takes ``best_by="photometric"`` and says nothing about metres; then the history
    has no ``val_selectivity_`` and its like, which need depth.

    Columns of the history, a row an epoch, whether the run is selective or not:
        ``depth_loss`` (unscaled), ``selectivity_term`` (the sum over layers in the loss), ``loss``:
        means over images;
        ``gradient_ratio``: ‖imde_alpha · ∇ selectivity‖ / ‖loss_scale · ∇ depth loss‖ over all
        parameters, mean over every 100th step; of a run without the term, what it would be;
        per layer: ``train_term_`` (its part of the term), ``train_selectivity_`` (selectivity of
        the average responses over the epoch's batches), ``train_coverage_`` (share of the bins
        that a batch has pixels of), ``train_absent_`` (units whose assigned bin a batch lacks),
        ``train_collapsed_`` and ``val_collapsed_`` (units without any response in the epoch),
        ``val_selectivity_`` and ``val_assigned_`` (at the best bin, at the assigned one);
        ``train_`` and a term of the stereo loss: its mean over images;
        ``val_`` and a metric: protocol ``imde``; ``val_photometric`` where it is asked for;
        ``lr`` of the epoch's last step, ``imde_alpha`` at
        its end;
        ``seconds`` and ``images_per_s`` of training, ``data_seconds`` of it waiting for images.

    Under ``torch.distributed`` (``accelerate launch``, ``notebook_launcher``) each process takes
    its share of every batch: selectivity is that of the whole batch, gradients are averaged; batch
    normalisation and the mean of the depth loss are of the process's own share; validation is
    split, and is the same to the last digit. The first process writes.

    Args:
        model: maps images to metres; an ``nn.Module`` without ``loss_scale`` has 1.
        train_set, val_set: items with ``image`` and ``depth``, or pairs.
        on_epoch: called with the history so far after every epoch, for live plots.

    Raises:
        ValueError: an empty data set, one without valid depth, no validation set, unknown layers, a
            run folder of another config, checkpoints none of which can be read, a batch that the
            processes cannot share, or one without valid depth (naming its images); a model that is
            frozen throughout, or takes an input that items lack; pairs that are none (see
            ``check_pair``, made of the first item), lack what the stereo loss takes, or whose
            baseline is not the network's; a network without ``disparities``.
        FileNotFoundError: ``resume_from`` holds no run.
        OSError: the run folder cannot be written (raised before the first epoch) or is full; the
            last checkpoint stands.
        FloatingPointError: the loss or the weights are not finite, naming the images; the last
            checkpoint stands.
    """
    trainer = _Trainer(model, train_set, val_set, config)
    with trainer:
        return trainer.run(on_epoch)


class _Trainer:
    """One run: checks first, then epochs. Use as a context, which ends what it started."""

    def __init__(self, model, train_set, val_set, config: TrainConfig):
        self.started = time.monotonic()
        self.config, self.train_set, self.val_set = config, train_set, val_set
        self.device = _join()
        self.rank, self.world = rank_and_world()
        self.lead = self.rank == 0
        if val_set is None:
            raise ValueError(
                "fit needs a validation set: the best epoch is chosen on it. Give a part of the "
                "training images that is not trained on."
            )
        self.span, self.bare = find_range(train_set, model), model
        self._check_sets()
        for layer in config.cfg_layers:
            find_layer(model, layer)
        self.batches = Batches(len(train_set), config, self.rank, self.world)
        self.folder = RunFolder(config.run_dir, config) if config.run_dir else None

        if self.device.type == "cpu":
            keep_freed_memory()
        self.bare = model.to(self.device, memory_format=torch.channels_last)
        dtype = amp_dtype(self.device) if config.mixed_precision else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        self.parameters = [p for p in self.bare.parameters() if p.requires_grad]
        self.optimiser = _optimiser(self.bare, config)
        self.model, scales = self.bare, None
        if config.depth_loss == "stereo":
            scales = config.stereo.get("scales")
            self.model = Disparities(self.bare, scales)
        if self.world > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.model = nn.parallel.DistributedDataParallel(
                self.model, device_ids=ids, find_unused_parameters=scales is not None
            )
        self.loader = DataLoader(
            Items(train_set, config.seed),
            batch_sampler=self.batches,
            collate_fn=collate,
            generator=torch.Generator(),  # or the loader would draw from the global one
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=self.device.type == "cuda" and not hasattr(train_set, "batch"),
        )
        self.step = Step(self.model, self.bare, config, self.span, self.device, dtype)

        self.rows: list[dict] = []
        self.epoch, self.position, self.tally = 1, 0, Tally()
        self.best_state = None
        self.warned: set[str] = set()
        self.previous_names = ""
        self.writer = None
        self._go_on()

    def _check_sets(self) -> None:
        """Refuse what this run cannot be trained on or measured by, before it begins."""
        config, model = self.config, self.bare
        stereo, inputs = config.depth_loss == "stereo", getattr(model, "input_names", ())
        if not stereo and (config.stereo or config.imde_depth == "own"):
            raise ValueError(
                f"stereo={config.stereo} and imde_depth={config.imde_depth!r} are about learning "
                f"from pairs; with depth_loss={config.depth_loss!r} leave out both, or take "
                "'stereo'."
            )
        if stereo and not hasattr(model, "disparities"):
            raise ValueError(
                f"depth_loss='stereo' trains a network by its disparities (epcdepth_resnet18, …); "
                f"{type(model).__name__} says depth alone."
            )
        settings = STEREO | config.stereo
        scales, finest = settings["scales"], getattr(model, "output_scale", 0)
        if stereo and scales is not None and scales <= (2 if finest == -1 else finest):
            raise ValueError(
                f"scales={scales} in stereo trains fewer disparities than the network's depth is "
                f"made of (output_scale={finest})."
            )
        watched = bool(config.cfg_layers) and config.imde_depth == "truth"
        otherwise = (
            " Without it the layers in cfg_layers can be watched by the network's own, "
            "imde_depth='own', or not at all, cfg_layers=()."
            if stereo
            else " Pairs need none, with depth_loss='stereo'."
        )
        check_data(
            "training",
            self.train_set,
            self.span,
            inputs,
            needed=not stereo or watched,
            otherwise=otherwise,
        )
        if stereo:
            check_pairs("training", self.train_set, model, hints=settings["hints"])
        self.by_depth = check_data(
            "validation",
            self.val_set,
            self.span,
            inputs,
            needed=config.best_by != "photometric",
            otherwise=" Pairs can be measured without, with best_by='photometric'.",
        )
        if config.best_by == "photometric":
            check_pairs("validation", self.val_set, model, hints=False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.writer is not None:
            with suppress(OSError):  # of a full disk, which has been said
                self.writer.close()

    # ---- the run

    def run(self, on_epoch) -> History:
        config = self.config
        if self.folder and self.lead and self.epoch <= config.num_epochs:
            self.folder.open()
        self.saved = time.monotonic()
        epochs = range(self.epoch, config.num_epochs + 1)
        if self.lead:
            title = config.method if config.neuron_selective else "baseline"
            epochs = progress(epochs, initial=self.epoch - 1, total=config.num_epochs, desc=title)
        for self.epoch in epochs:
            if not self._epoch():
                return self._history(finished=False)
            self._settle()
            row = self._row()
            self.rows.append(row)
            if self.lead:
                shown = [k for k in ("d1", "rms", "photometric") if f"val_{k}" in row]
                epochs.set_postfix(
                    {k: f"{row[f'val_{k}']:.3f}{' m' * (k == 'rms')}" for k in shown}
                )
                self._warn(row)
            if _best(self.rows, config.best_by) == self.epoch:
                state = self.bare.state_dict()
                self.best_state = {k: v.detach().clone() for k, v in state.items()}
                if self.folder and self.lead:  # before the checkpoint that counts it as done
                    about = {"config": config.identity(), "metrics": row}
                    with self.folder.writing(BEST):
                        save_weights(self.bare, self.folder.best, metadata=about)
            if self.folder and self.lead:  # likewise
                self.folder.write_history(self.rows)
                with self.folder.writing(CURVES):
                    self._curves(row)
            self.position, self.tally = 0, Tally()
            self._save(epoch=self.epoch + 1)
            if self.lead and on_epoch is not None:
                on_epoch(self._history(finished=self.epoch == config.num_epochs))
        self._load_best()
        return self._history(finished=True)

    def _epoch(self) -> bool:
        """The rest of an epoch; False where the time was up before its end."""
        config, steps = self.config, len(self.batches)
        if self.position == 0:
            # Seeded per epoch, so that a run that goes on draws what it would have drawn.
            seed_everything((config.seed * 100_003 + self.epoch + 7919 * self.rank) % 2**32)
        past = [row[f"val_{config.best_by}"] for row in self.rows]
        self.batches.epoch, self.batches.position = self.epoch, self.position
        self.model.train()
        watch = nullcontext({})
        if config.cfg_layers:
            watch = tap(self.bare, config.cfg_layers, detach=False)
        loader = iter(self.loader)
        bar = range(self.position, steps)
        if self.lead:
            bar = progress(bar, initial=self.position, total=steps, desc=f"epoch {self.epoch}")
        with watch as acts:
            for position in bar:
                start = time.perf_counter()
                batch = next(loader)
                self.tally.clock["data_seconds"] += time.perf_counter() - start
                for group in self.optimiser.param_groups:
                    group["lr"] = config.rate(self.epoch + position / steps, past)
                self._train_on(batch, acts, position)
                self.position = position + 1
                self.tally.clock["seconds"] += time.perf_counter() - start
                stop, save = self._due()
                if stop or save:
                    self._save(epoch=self.epoch)
                if stop:
                    return False
        return True

    def _train_on(self, batch: dict, acts, position: int) -> None:
        config = self.config
        names = ", ".join(map(str, batch.get("name", ["(without names)"])))
        alpha = config.alpha(self.epoch - 1 + (position + 1) / len(self.batches))
        probe = bool(config.cfg_layers) and position % PROBE_EVERY == 0
        try:
            losses = self.step(batch, acts, alpha=alpha, probe=probe)
        except ValueError as error:
            raise ValueError(f"In epoch {self.epoch}, at the images {names}: {error}") from error
        finite = bool(losses.loss.isfinite())
        if not self._all(finite):
            raise FloatingPointError(self._blame(losses, finite, names))
        self.optimiser.zero_grad(set_to_none=True)
        aside = None
        if probe and losses.term is not None:
            aside = [None] * len(self.parameters)
            if losses.term.requires_grad:  # not where the layers are frozen
                aside = torch.autograd.grad(
                    self.scaler.scale(alpha * losses.term),
                    self.parameters,
                    retain_graph=True,
                    allow_unused=True,
                )
        self.scaler.scale(losses.loss).backward()
        images = len(batch["image"])
        if aside is not None:
            ratio = self._gradient_ratio(aside)
            if ratio is not None:
                self.tally.add("gradient_ratio", ratio, 1)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        if probe and self.scaler.is_enabled() and self.scaler.get_scale() < 1:
            raise FloatingPointError(
                f"Gradients overflow float16 again and again in epoch {self.epoch}, at last at the "
                f"images {names}, so that steps are skipped. {self._remedy()} Or train with "
                "mixed_precision=False."
            )
        self.tally.add_step(losses, images)
        self.previous_names = names

    def _gradient_ratio(self, aside) -> float | None:
        """Of the term's gradient to that of the depth loss, which is what else is in ``.grad``.

        None where they are not finite: the scaler has yet to find float16's range.
        """
        selective = _flat(aside, self.parameters)
        whole = _flat([p.grad for p in self.parameters], self.parameters)
        if self.world > 1:  # as DistributedDataParallel did with the others
            torch.distributed.all_reduce(selective)
            selective = selective / self.world
        depth = whole - selective if self.config.neuron_selective else whole
        above, below = selective.norm().item(), depth.norm().item()
        finite = math.isfinite(above) and math.isfinite(below)
        return above / max(below, EPS) if finite else None

    def _blame(self, losses: Losses, finite: bool, names: str) -> str:
        if finite:
            what = f"The loss of another process is not finite in epoch {self.epoch}"
        elif not _finite(self.bare.parameters()) and self.previous_names:
            what = self._broken()
        else:
            what = f"The loss is {losses.loss.item()} in epoch {self.epoch}, at the images {names}"
        return f"{what}. {self._remedy()}"

    def _broken(self) -> str:
        return (
            f"The weights are not finite since the step in epoch {self.epoch} at the images "
            f"{self.previous_names}"
        )

    def _remedy(self) -> str:
        kept = "The last checkpoint is kept" if self.folder else "Nothing was saved"
        return (
            f"{kept}. Lower learning_rate or the magnitude of imde_alpha, or look at these images."
        )

    def _check_weights(self) -> None:
        if not self._all(_finite(self.bare.state_dict().values())):
            raise FloatingPointError(f"{self._broken()}. {self._remedy()}")

    def _settle(self) -> None:
        """Before validation: the same network in all processes, and a finite one."""
        if self.world > 1:  # running statistics were those of each process's own last images
            for buffer in self.bare.buffers():
                torch.distributed.broadcast(buffer, 0)
        self._check_weights()

    def _row(self) -> dict:
        """Of the epoch that has just been trained; validates."""
        config = self.config
        clock = self.tally.clock
        row = {
            "epoch": self.epoch,
            "lr": self.optimiser.param_groups[0]["lr"],
            "imde_alpha": config.alpha(self.epoch),
            **self.tally.row(config.definition),
            **clock,
        }
        images = len(self.batches) * min(config.batch_size, self.batches.images)
        row["images_per_s"] = images / max(clock["seconds"], 1e-9)
        metrics = evaluate(self.bare, self.val_set, cap=self.span[1]) if self.by_depth else {}
        if config.best_by == "photometric":
            metrics["photometric"] = photometric(self.bare, self.val_set)
        row |= {f"val_{k}": v for k, v in metrics.items()}
        if config.cfg_layers:
            terms = [f"train_term_{layer}" for layer in config.cfg_layers]
            for name in ("selectivity_term", "gradient_ratio", *terms):
                row.setdefault(name, math.nan)  # where no batch had one
        if config.cfg_layers and self.by_depth:
            seen = dissect(
                self.bare,
                self.val_set,
                config.cfg_layers,
                bins=self.span,
                definition=config.definition,
            )
            units = seen.to_frame().groupby("layer")
            for layer in config.cfg_layers:
                row[f"val_selectivity_{layer}"] = seen.mean(layer)
                at_target = units.get_group(layer)["assigned_selectivity"]
                row[f"val_assigned_{layer}"] = float(at_target.mean())
                row[f"val_collapsed_{layer}"] = int((seen.sums[layer] == 0).all(1).sum())
        return row

    def _warn(self, row: dict) -> None:
        """Say once what the numbers say, where somebody might not look."""
        weak, strong = GRADIENT_RATIO
        ratio = row.get("gradient_ratio")
        said = {}
        if self.config.neuron_selective and ratio is not None and row["imde_alpha"] < 0:
            measured = (
                f"its gradient is {ratio:.2g} times that of the depth loss in epoch "
                f"{row['epoch']} (imde_alpha {row['imde_alpha']:g})"
            )
            full = row["epoch"] - 1 >= self.config.imde_warmup
            if ratio < weak and full:
                said["weak"] = f"The selectivity term is too weak to matter: {measured}."
            if ratio > strong:
                said["strong"] = (
                    f"The selectivity term is so strong that depth suffers: {measured}."
                )
        first = self.rows[0]["depth_loss"]
        if row["depth_loss"] > GROWN * first:
            said["grown"] = (
                f"The depth loss has grown from {first:.4g} in epoch 1 to "
                f"{row['depth_loss']:.4g} in epoch {row['epoch']}: learning_rate "
                f"({self.config.learning_rate:g}) may be too high."
            )
        for kind, text in said.items():
            if kind not in self.warned:
                self.warned.add(kind)
                warnings.warn(text, stacklevel=4)

    # ---- checkpoints

    def _go_on(self) -> None:
        """Put everything back as it was at the last checkpoint, if there is one."""
        if not self.folder:
            return
        if self.lead and self.config.resume_from:
            self.folder.adopt(self.config.resume_from)
        gather(None)  # the others wait until it is there
        state = self.folder.load()
        if state is None:
            return
        images = [len(self.train_set), len(self.val_set)]
        if state["images"] != images:
            raise ValueError(
                f"The run in {self.folder.path} is on {state['images'][0]} training and "
                f"{state['images'][1]} validation images, not {images[0]} and {images[1]}. Nothing "
                "was overwritten: give it the same images, or choose another run_dir."
            )
        self.bare.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # empty from a run without float16
            self.scaler.load_state_dict(state["scaler"])
        self.step.selectivity.state = {
            layer: tuple(value.to(self.device) for value in values)
            for layer, values in state["carried"].items()
        }
        self.rows, self.epoch, self.position = state["rows"], state["epoch"], state["position"]
        parts = state["processes"]
        if len(parts) == self.world:
            self.tally = Tally(parts[self.rank]["tally"])
            _set_random(parts[self.rank]["random"])
        elif self.position:  # another number of processes: what was logged counts once
            self.tally = Tally(merged([part["tally"] for part in parts]) if self.lead else None)
            seed_everything((self.config.seed + 7919 * self.rank) % 2**32)
        if self.lead and self.rows and self.epoch <= self.config.num_epochs:
            self.folder.write_history(self.rows)  # it may be one epoch ahead of the checkpoint

    def _due(self) -> tuple[bool, bool]:
        """Whether to stop, and whether to save, as the first process's clock says."""
        hours, minutes = self.config.max_hours, self.config.save_minutes
        now = time.monotonic()
        stop = bool(hours) and now - self.started > hours * 3600
        save = bool(minutes) and self.folder is not None and now - self.saved > minutes * 60
        if self.world > 1 and (hours or minutes):
            flags = torch.tensor([stop, save], dtype=torch.uint8, device=self.device)
            torch.distributed.broadcast(flags, 0)
            stop, save = map(bool, flags.tolist())
        return stop, save

    def _all(self, value: bool) -> bool:
        if self.world > 1:
            flag = torch.tensor([value], dtype=torch.uint8, device=self.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MIN)
            value = bool(flag)
        return value

    def _save(self, *, epoch: int) -> None:
        if not self.folder:
            return
        self._check_weights()
        parts = gather({"tally": self.tally.state_dict(), "random": _get_random(self.device)})
        if self.lead:
            self.folder.save(
                {
                    "model": self.bare.state_dict(),
                    "optimiser": self.optimiser.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "carried": self.step.selectivity.state,
                    "rows": self.rows,
                    "epoch": epoch,
                    "position": self.position,
                    "images": [len(self.train_set), len(self.val_set)],
                    "processes": parts,
                }
            )
        self.saved = time.monotonic()

    def _load_best(self) -> None:
        if self.best_state is not None:
            self.bare.load_state_dict(self.best_state)
        elif self.folder and self.rows:
            gather(None)  # the first process has written it
            load_weights(self.bare, self.folder.best)

    def _history(self, *, finished: bool) -> History:
        if not finished and self.rows and self.position:
            self._load_best()
        best = _best(self.rows, self.config.best_by)
        run_dir = self.folder.path if self.folder else None
        return History(pd.DataFrame(self.rows), self.config, best, run_dir, finished)

    def _curves(self, row: dict) -> None:
        """The row for TensorBoard."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            # What a killed process logged after its last checkpoint is overwritten.
            self.writer = SummaryWriter(str(self.folder.path / CURVES), purge_step=row["epoch"])
        for name, value in row.items():
            group, _, rest = name.partition("_")
            tag = f"{group}/{rest}" if group in ("train", "val") else f"run/{name}"
            self.writer.add_scalar(tag, value, row["epoch"])
        self.writer.flush()


def _optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
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


def _join() -> torch.device:
    """This process's device; joins the others where a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        # Left to itself it would start no group where there is no GPU.
        return PartialState(cpu=pick_device().type == "cpu").device
    return pick_device()


def _flat(gradients, parameters) -> Tensor:
    """One vector; zeros for the parameters that a loss does not depend on."""
    return torch.cat(
        [
            torch.zeros_like(p).flatten() if g is None else g.detach().flatten().float()
            for g, p in zip(gradients, parameters, strict=True)
        ]
    )


def _finite(values: Iterable[Tensor]) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


def _best(rows: list[dict], key: str) -> int:
    """The best epoch so far, 0 if there is none."""
    pick = max if BEST_BY[key] else min
    return pick(rows, key=lambda row: row[f"val_{key}"])["epoch"] if rows else 0


def _get_random(device: torch.device) -> dict:
    """The states of all random generators, in what a checkpoint may hold."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def _set_random(state: dict) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
