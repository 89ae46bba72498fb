"""`fit`: the loop over epochs and steps, and what it keeps.

A run lives in a folder (`mde_utils.training.runs`) and may be killed at any moment: it goes on from
its last checkpoint, inside an epoch too, and on a CPU, with as many threads, ends with the same
weights bit for bit.
"""

from __future__ import annotations

import math
import os
import random
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from mde_utils.activations import tap
from mde_utils.checkpoints import load_weights, save_weights
from mde_utils.data import collate
from mde_utils.dissection import dissect
from mde_utils.environment import keep_freed_memory, pick_device, progress, seed_everything
from mde_utils.evaluation import evaluate, photometric
from mde_utils.processes import gather, rank_and_world
from mde_utils.training.checks import blame, check_run, doubts
from mde_utils.training.config import BEST_BY, TrainConfig
from mde_utils.training.log import Tally, merged
from mde_utils.training.order import Batches, Items
from mde_utils.training.runs import BEST, CURVES, RunFolder, held
from mde_utils.training.step import Step, everywhere

#: Steps between measurements of the gradients' ratio; the first step of an epoch is one of them.
PROBE_EVERY = 100


@dataclass(frozen=True, eq=False)
class History:
    """What a run gave.

    Attributes:
        frame: a row an epoch; the columns of `history.csv` (see `fit`).
        config: as it was run.
        best_epoch: the row of `best.safetensors`, counted from 1; 0 before the first whole epoch.
        run_dir: the run's folder, or None.
        finished: False where `max_hours` ended the run before its last epoch.
    """

    frame: pd.DataFrame
    config: TrainConfig
    best_epoch: int
    run_dir: Path | None = None
    finished: bool = True

    @property
    def best(self) -> dict:
        """The row of the best epoch."""
        if not self.best_epoch:
            raise ValueError(
                "No epoch of this run is whole yet: run it again with more max_hours, and it goes "
                "on."
            )
        return self.frame.set_index("epoch").loc[self.best_epoch].to_dict()


def fit(
    model: nn.Module,
    train_set,
    val_set,
    config: TrainConfig,
    *,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train `model`; it ends with the weights of the best epoch.

    The target is resized (nearest) to the network's resolution, as the METER notebook does, for
    both terms. A run folder that holds the same config is continued from its last checkpoint, and
    a finished one is read, not run again. Order and augmentation of the images depend on the seed,
    the epoch and the image alone, so neither an interruption nor the number of workers or
    processes changes what is trained on.

    With `depth_loss="stereo"` the network (its `disparities`) learns from pairs: items with
    `right`, `intrinsics`, `baseline` and, unless switched off, `hint`. Their depth is not
    looked at, but by the selectivity, unless that goes by the network's own (`imde_depth`). Its
    metres are right if `baseline` of the model is that of the pairs. Validation is by depth
    where the validation set has any. One of pairs without it is validated by their photometric
    error, which takes `best_by="photometric"` and says nothing about metres; then the history
    has no `val_selectivity_` and its like, which need depth.

    Columns of the history, a row an epoch, whether the run is selective or not:
        `depth_loss` (unscaled), `selectivity_term` (the sum over layers in the loss), `loss`:
        means over images;
        `gradient_ratio`: ‖imde_alpha · ∇ selectivity‖ / ‖loss_scale · ∇ depth loss‖ over all
        parameters, mean over every 100th step; of a run without the term, what it would be;
        per layer: `train_term_` (its part of the term), `train_selectivity_` (selectivity of
        the average responses over the epoch's batches), `train_coverage_` (share of the bins
        that a batch has pixels of), `train_absent_` (units whose assigned bin a batch lacks),
        `train_collapsed_` and `val_collapsed_` (units without any response in the epoch),
        `val_selectivity_` and `val_assigned_` (at the best bin, at the assigned one);
        `train_` and a term of the stereo loss: its mean over images;
        `val_` and a metric: protocol `imde`; `val_photometric` where it is asked for;
        `lr` of the epoch's last step, `imde_alpha` at its end;
        `seconds` and `images_per_s` of training, `data_seconds` of it waiting for images.

    Under `torch.distributed` (`accelerate launch`, `notebook_launcher`) each process takes
    its share of every batch: selectivity is that of the whole batch, gradients are averaged; batch
    normalisation and the mean of the depth loss are of the process's own share; validation is
    split, and is the same to the last digit. The first process writes.

    Args:
        model: maps images to metres; an `nn.Module` without `loss_scale` has 1.
        train_set, val_set: items with `image` and `depth`, or pairs.
        on_epoch: called with the history so far after every epoch, for live plots. Of several
            processes the first one alone calls it, so it must not share work with the others
            (`evaluate`, `dissect`).
    """
    clock = Clock(config)
    device = join()
    lead = rank_and_world()[0] == 0
    config, span, by_depth = check_run(model, train_set, val_set, config)
    batches = Batches(len(train_set), config, *rank_and_world())
    with held(config.run_dir) if config.run_dir and lead else nullcontext():
        folder = RunFolder(config.run_dir, config) if config.run_dir else None
        run = _Run(model, train_set, val_set, config, span, by_depth, device, batches, folder)
        try:
            return _loop(run, clock, on_epoch)
        finally:
            run.close()


def _loop(run: _Run, clock: Clock, on_epoch: Callable[[History], None] | None) -> History:
    """Epochs of steps, from where the run was left."""
    config, step, steps = run.config, run.step, len(run.batches)
    rows, start, position, tally = run.resume()
    run.open(start)
    clock.saved = time.monotonic()
    warned: set[str] = set()
    title = config.method if config.neuron_selective else "baseline"
    epochs = range(start, config.num_epochs + 1)
    shown = run.bar(epochs, initial=start - 1, total=config.num_epochs, desc=title)
    for epoch in shown:
        if position == 0:
            # Seeded per epoch, so that a run that goes on draws what it would have drawn.
            seed_everything((config.seed * 100_003 + epoch + 7919 * run.rank) % 2**32)
        past = [row[f"val_{config.best_by}"] for row in rows]
        loader = run.load(epoch, position)
        todo = run.bar(range(position, steps), initial=position, total=steps, desc=f"epoch {epoch}")
        step.model.train()
        with run.watch() as acts:
            for position in todo:
                began = time.perf_counter()
                batch = next(loader)
                tally.clock["data_seconds"] += time.perf_counter() - began
                with run.blaming(epoch, batch):
                    losses = step(
                        batch,
                        acts,
                        rate=config.rate(epoch + position / steps, past),
                        alpha=config.alpha(epoch - 1 + (position + 1) / steps),
                        probe=bool(config.cfg_layers) and position % PROBE_EVERY == 0,
                    )
                tally.add_step(losses, len(batch["image"]))
                tally.clock["seconds"] += time.perf_counter() - began
                stop, save = clock.due(run.device)
                if stop or save:
                    run.save(rows, epoch, position + 1, tally)
                    clock.saved = time.monotonic()
                if stop:
                    return run.history(rows, finished=False)
        rows.append(run.measure(epoch, tally))
        run.keep(rows)
        if run.lead:
            shown.set_postfix(shortly(rows[-1]))
        position, tally = 0, Tally()
        run.save(rows, epoch + 1, position, tally)
        clock.saved = time.monotonic()
        if run.lead:
            for kind, text in doubts(config, rows).items():
                if kind not in warned:
                    warned.add(kind)
                    warnings.warn(text, stacklevel=3)
            if on_epoch is not None:
                on_epoch(run.history(rows, finished=epoch == config.num_epochs, reload=False))
    return run.history(rows, finished=True)


class _Run:
    """What stays the same from a run's first step to its last, and how it is kept."""

    def __init__(self, model, train_set, val_set, config, span, by_depth, device, batches, folder):
        self.config, self.span, self.by_depth = config, span, by_depth
        self.device, self.batches, self.folder = device, batches, folder
        self.val_set, self.images = val_set, [len(train_set), len(val_set)]
        self.rank, self.world = rank_and_world()
        self.lead = self.rank == 0
        if device.type == "cpu":
            keep_freed_memory()
        self.model = model.to(device, memory_format=torch.channels_last)
        self.step = Step(self.model, config, span, device)
        self.loader = DataLoader(
            Items(train_set, config.seed),
            batch_sampler=batches,
            collate_fn=collate,
            generator=torch.Generator(),  # or the loader would draw from the global one
            num_workers=config.num_workers,
            persistent_workers=config.num_workers > 0,
            pin_memory=device.type == "cuda" and not hasattr(train_set, "seeded_batch"),
        )
        self.best_state = None
        self.before = ""  # the images of the last step
        self.writer = None

    def close(self) -> None:
        if self.writer is not None:
            with suppress(OSError):  # of a full disk, which has been said
                self.writer.close()

    def open(self, epoch: int) -> None:
        """See that the folder can be written, before an epoch is spent."""
        if self.folder and self.lead and epoch <= self.config.num_epochs:
            weights = sum(x.nbytes for x in self.model.state_dict().values())
            moments = 1 if self.config.optimizer == "sgd" else 2
            self.folder.open(room=weights * (2 + moments))  # a checkpoint, and the best weights

    def bar(self, numbers: range, **options):
        return progress(numbers, **options) if self.lead else numbers

    def load(self, epoch: int, position: int):
        """The batches that are left of an epoch."""
        self.batches.epoch, self.batches.position = epoch, position
        return iter(self.loader)

    def watch(self):
        layers = self.config.cfg_layers
        return tap(self.model, layers, detach=False) if layers else nullcontext({})

    # ---- what goes wrong

    @contextmanager
    def blaming(self, epoch: int, batch: dict):
        """Say at which images a step went wrong."""
        names = ", ".join(map(str, batch.get("name", ["(without names)"])))
        try:
            yield
        except ValueError as error:
            raise ValueError(f"In epoch {epoch}, at the images {names}: {error}") from error
        except FloatingPointError as error:
            if "another process" in str(error):
                names = ""
            elif self.before and not _finite(self.model.parameters()):
                self.stop(epoch)
            raise FloatingPointError(
                blame(str(error), epoch, names, kept=self.folder is not None)
            ) from None
        self.before = names

    def stop(self, epoch: int):
        what = "The weights are not finite since the step"
        raise FloatingPointError(blame(what, epoch, self.before, kept=self.folder is not None))

    def check_weights(self, epoch: int) -> None:
        if not everywhere(_finite(self.model.state_dict().values()), self.device):
            self.stop(epoch)

    # ---- after an epoch

    def measure(self, epoch: int, tally: Tally) -> dict:
        """Its row: what was logged in training, and validation."""
        if self.world > 1:  # running statistics were those of each process's own last images
            for buffer in self.model.buffers():
                torch.distributed.broadcast(buffer, 0)
        self.check_weights(epoch)
        config, layers = self.config, self.config.cfg_layers
        row = {
            "epoch": epoch,
            "lr": self.step.optimiser.param_groups[0]["lr"],
            "imde_alpha": config.alpha(epoch),
            **tally.row(config.definition),
            **tally.clock,
        }
        images = len(self.batches) * min(config.batch_size, self.batches.images)
        row["images_per_s"] = images / max(tally.clock["seconds"], 1e-9)
        metrics = evaluate(self.model, self.val_set, cap=self.span[1]) if self.by_depth else {}
        if config.best_by == "photometric":
            metrics["photometric"] = photometric(self.model, self.val_set)
        row |= {f"val_{k}": v for k, v in metrics.items()}
        if layers:
            terms = [f"train_term_{layer}" for layer in layers]
            for name in ("selectivity_term", "gradient_ratio", *terms):
                row.setdefault(name, math.nan)  # where no batch had one
        if layers and self.by_depth:
            how = {"bins": self.span, "definition": config.definition}
            seen = dissect(self.model, self.val_set, layers, **how)
            selectivity, units = seen.selectivity, seen.to_frame().groupby("layer")
            for layer in layers:
                row[f"val_selectivity_{layer}"] = selectivity[layer].nanmean().item()
                at_target = units.get_group(layer)["assigned_selectivity"]
                row[f"val_assigned_{layer}"] = float(at_target.mean())
                row[f"val_collapsed_{layer}"] = int((seen.sums[layer] == 0).all(1).sum())
        return row

    def keep(self, rows: list[dict]) -> None:
        """The history, and the weights if they are the best; before the checkpoint that counts
        the epoch as done."""
        if best_epoch(rows, self.config.best_by) == rows[-1]["epoch"]:
            state = self.model.state_dict()
            self.best_state = {k: v.detach().clone() for k, v in state.items()}
            if self.folder and self.lead:
                about = {"config": self.config.settings(), "metrics": rows[-1]}
                with self.folder.writing(BEST):
                    save_weights(self.model, self.folder.best, metadata=about)
        if self.folder and self.lead:
            self.folder.write_history(rows)
            with self.folder.writing(CURVES):
                self.curves(rows[-1])

    def curves(self, row: dict) -> None:
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

    # ---- checkpoints

    def resume(self) -> tuple[list[dict], int, int, Tally]:
        """Rows, epoch, position in it and tally, with everything put back as it was at the last
        checkpoint, if there is one."""
        fresh = [], 1, 0, Tally()
        if not self.folder:
            return fresh
        if self.lead and self.config.resume_from:
            self.folder.adopt(self.config.resume_from)
        gather(None)  # the others wait until it is there
        state = self.folder.load()
        if state is None:
            return fresh
        if state["images"] != self.images:
            raise ValueError(
                f"The run in {self.folder.path} is on {state['images'][0]} training and "
                f"{state['images'][1]} validation images, not {self.images[0]} and "
                f"{self.images[1]}. Nothing was overwritten: give it the same images, or choose "
                "another run_dir."
            )
        self.model.load_state_dict(state["model"])
        self.step.optimiser.load_state_dict(state["optimiser"])
        if state["scaler"]:  # empty from a run without float16
            self.step.scaler.load_state_dict(state["scaler"])
        rows, epoch, position = state["rows"], state["epoch"], state["position"]
        parts, tally = state["processes"], Tally()
        if len(parts) == self.world:
            tally = Tally(parts[self.rank]["tally"])
            _set_random(parts[self.rank]["random"])
        elif position:  # another number of processes: what was logged counts once
            tally = Tally(merged([part["tally"] for part in parts]) if self.lead else None)
            seed_everything((self.config.seed + 7919 * self.rank) % 2**32)
        if self.lead and rows and epoch <= self.config.num_epochs:
            self.folder.write_history(rows)  # it may be one epoch ahead of the checkpoint
        return rows, epoch, position, tally

    def save(self, rows: list[dict], epoch: int, position: int, tally: Tally) -> None:
        if not self.folder:
            return
        self.check_weights(epoch)
        parts = gather({"tally": tally.state_dict(), "random": _get_random(self.device)})
        if self.lead:
            self.folder.save(
                {
                    "model": self.model.state_dict(),
                    "optimiser": self.step.optimiser.state_dict(),
                    "scaler": self.step.scaler.state_dict(),
                    "rows": rows,
                    "epoch": epoch,
                    "position": position,
                    "images": self.images,
                    "processes": parts,
                }
            )

    def history(self, rows: list[dict], *, finished: bool, reload: bool = True) -> History:
        """With `reload` the model gets the weights of its best epoch."""
        if reload and self.best_state is not None:
            self.model.load_state_dict(self.best_state)
        elif reload and self.folder and rows:
            gather(None)  # the first process has written it
            load_weights(self.model, self.folder.best)
        path = self.folder.path if self.folder else None
        best = best_epoch(rows, self.config.best_by)
        return History(pd.DataFrame(rows), self.config, best, path, finished)


class Clock:
    """When to stop and when to save, as the first process's clock says."""

    def __init__(self, config: TrainConfig):
        self.hours, self.minutes = config.max_hours, config.save_minutes
        self.keeps = config.run_dir is not None
        self.started = self.saved = time.monotonic()

    def due(self, device: torch.device) -> tuple[bool, bool]:
        """Whether to stop, and whether to save."""
        now = time.monotonic()
        stop = bool(self.hours) and now - self.started > self.hours * 3600
        save = bool(self.minutes) and self.keeps and now - self.saved > self.minutes * 60
        if rank_and_world()[1] > 1 and (self.hours or self.minutes):
            flags = torch.tensor([stop, save], dtype=torch.uint8, device=device)
            torch.distributed.broadcast(flags, 0)
            stop, save = map(bool, flags.tolist())
        return stop, save


def join() -> torch.device:
    """This process's device; joins the others where a launcher has started several."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        # Left to itself it would start no group where there is no GPU.
        return PartialState(cpu=pick_device().type == "cpu").device
    return pick_device()


def best_epoch(rows: list[dict], key: str) -> int:
    """The best epoch so far, 0 if there is none."""
    pick = max if BEST_BY[key] else min
    return pick(rows, key=lambda row: row[f"val_{key}"])["epoch"] if rows else 0


def shortly(row: dict) -> dict[str, str]:
    """What a progress bar shows of an epoch."""
    names = [name for name in ("d1", "rms", "photometric") if f"val_{name}" in row]
    return {name: f"{row[f'val_{name}']:.3f}{' m' * (name == 'rms')}" for name in names}


def _finite(values) -> bool:
    return all(bool(value.isfinite().all()) for value in values)


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
