"""Train a depth network, with or without the selectivity loss.

    loss = loss_scale · depth_loss + imde_alpha · selectivity        (You et al. 2021, equation 3)

A run lives in a folder: ``config.json``, ``history.csv`` (a row an epoch), ``last.pt`` (all that
is needed to go on), ``best.safetensors`` (the epoch that is best by depth alone). From a shell:
``python -m mde_utils.training config.json``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mde_utils.activations import find_layer, tap
from mde_utils.checkpoints import load_weights, save_weights
from mde_utils.data import collate, load_dataset
from mde_utils.depth_bins import find_range
from mde_utils.dissection import dissect
from mde_utils.environment import amp_dtype, pick_device, progress, seed_everything
from mde_utils.evaluation import evaluate
from mde_utils.files import atomic
from mde_utils.losses import balanced_loss
from mde_utils.models import build_model
from mde_utils.selectivity import DEFINITIONS, METHODS, SelectivityLoss

#: Functions of (prediction, target) in metres, by the name that a config uses.
LOSSES = {"balanced": balanced_loss}
SCHEDULES = ("constant", "cosine")
#: What "best" may mean, and whether more of it is better: depth alone, never the selectivity term.
BEST_BY = {"d1": True, "rms": False, "rel": False}


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. The defaults are the METER notebook's recipe.

    Attributes:
        model, model_options, weights: arguments of ``build_model``; used by the command line, and
            recorded by ``fit``.
        dataset, data_options: arguments of ``load_dataset``; ``data_options`` may hold ``train``
            and ``val`` for what differs between the splits.
        neuron_selective: add the selectivity term to the loss. It is measured either way.
        imde_alpha: weight of the selectivity; negative trains for it.
        cfg_layers: layers that are watched, and trained for selectivity.
        method: ``"assign"`` gives each unit a bin, ``"reg"`` lets it choose (direct
            regularisation).
        definition: ``"paper"`` or ``"reference"``.
        depth_loss: a key of ``LOSSES``.
        num_epochs, batch_size, learning_rate, weight_decay, schedule: the optimisation, by AdamW.
        best_by: the validation metric that picks ``best.safetensors``: d1, rms or rel.
        seed: of weights (command line), shuffling and augmentation.
        num_workers: of the data loader; 0 is right for cached data.
        mixed_precision: on a GPU, where it is of use.
        run_dir: the run's folder; None writes nothing.
    """

    model: str = "meter_xxs"
    model_options: dict = field(default_factory=dict)
    weights: str | None = None
    dataset: str = "rooms"
    data_options: dict = field(default_factory=dict)
    neuron_selective: bool = False
    imde_alpha: float = -0.1
    cfg_layers: tuple[str, ...] = ("dec_3", "enc_4")
    method: str = "assign"
    definition: str = "paper"
    depth_loss: str = "balanced"
    num_epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    schedule: str = "constant"
    best_by: str = "d1"
    seed: int = 0
    num_workers: int = 0
    mixed_precision: bool = True
    run_dir: str | None = None

    def __post_init__(self):
        layers = (self.cfg_layers,) if isinstance(self.cfg_layers, str) else self.cfg_layers
        object.__setattr__(self, "cfg_layers", tuple(layers))
        for name, known in (
            ("method", METHODS),
            ("definition", DEFINITIONS),
            ("depth_loss", LOSSES),
            ("schedule", SCHEDULES),
            ("best_by", BEST_BY),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}. Known: {', '.join(known)}."
                )
        for name, low in (("num_epochs", 1), ("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be a whole number from {low} on; got {value!r}.")
        for name in ("learning_rate", "weight_decay", "imde_alpha"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} must be a finite number; got {getattr(self, name)!r}.")
        if self.learning_rate <= 0 or self.weight_decay < 0:
            raise ValueError("learning_rate must be positive and weight_decay not negative.")
        if self.neuron_selective and not self.cfg_layers:
            raise ValueError(
                "neuron_selective is on but cfg_layers is empty: name the layers to make "
                "selective, for example ('dec_3',), or switch neuron_selective off."
            )
        if self.neuron_selective and self.imde_alpha >= 0:
            warnings.warn(
                f"imde_alpha = {self.imde_alpha} does not train for selectivity: the loss is "
                "depth_loss + imde_alpha * selectivity, so the weight should be negative.",
                stacklevel=3,
            )

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """A config from plain values; an unknown key is an error that names near matches."""
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=2)
                raise ValueError(
                    f"Unknown key {key!r} in the config."
                    + (f" Did you mean {' or '.join(near)}?" if near else "")
                    + f" Known keys: {', '.join(known)}."
                )
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a JSON file.

        Raises:
            FileNotFoundError, ValueError: no such file, not JSON, or an unknown key.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No config {path}: save one with TrainConfig(...).save(path).")
        try:
            values = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from None
        return cls.from_dict(values)

    def save(self, path: str | Path) -> Path:
        """Write as JSON."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        return Path(path)

    def run_name(self) -> str:
        """A readable folder name that differs wherever two configs do."""
        how = f"{self.method}{self.imde_alpha:g}" if self.neuron_selective else "baseline"
        values = {k: v for k, v in asdict(self).items() if k != "run_dir"}
        text = json.dumps(values, sort_keys=True, default=str)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{self.model}-{self.dataset}-{how}-seed{self.seed}-{digest}"


@dataclass(frozen=True, eq=False)
class History:
    """What a run gave.

    Attributes:
        frame: a row an epoch; the columns of ``history.csv``.
        config: as it was run.
        best_epoch: the row of ``best.safetensors`` (counted from 1).
        run_dir: the run's folder, or None.
    """

    frame: pd.DataFrame
    config: TrainConfig
    best_epoch: int
    run_dir: Path | None = None

    @property
    def best(self) -> dict:
        """The row of the best epoch."""
        return self.frame.set_index("epoch").loc[self.best_epoch].to_dict()

    @property
    def best_weights(self) -> Path | None:
        return self.run_dir / "best.safetensors" if self.run_dir else None


def fit(model: nn.Module, train_set, val_set, config: TrainConfig) -> History:
    """Train ``model``; it ends with the weights of the best epoch.

    The target is resized (nearest) to the network's resolution, as the METER notebook does, for
    both terms. Selectivity of ``cfg_layers`` is measured in every run, selective or not. A run
    folder that holds the same config is continued after its last whole epoch, and a finished one
    is read, not run again; from a fresh model, and on a CPU, the outcome is the same bit for bit.

    Args:
        model: maps images to metres; an ``nn.Module`` without ``loss_scale`` has 1.
        train_set, val_set: items with ``image`` and ``depth``.

    Raises:
        ValueError: an empty data set, one without valid depth, unknown layers, a run folder of
            another config, or a batch without valid depth (naming its images).
        OSError: the run folder cannot be written; raised before the first epoch.
        FloatingPointError: the loss is not finite; the last whole epoch is kept.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise NotImplementedError(
            "fit runs in one process so far; start it without a launcher, or set WORLD_SIZE=1."
        )
    span = find_range(train_set, model)
    for name, dataset in (("training", train_set), ("validation", val_set)):
        _check_data(name, dataset, span)
    for layer in config.cfg_layers:
        find_layer(model, layer)
    run_dir = Path(config.run_dir) if config.run_dir else None
    if run_dir:
        _claim(run_dir, config)

    device = pick_device()
    dtype = amp_dtype(device) if config.mixed_precision else None
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    model = model.to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    loader = DataLoader(
        train_set,
        batch_size=config.batch_size,
        shuffle=True,
        generator=torch.Generator(),
        num_workers=config.num_workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        # A last batch of one image would put noise into batch normalisation.
        drop_last=len(train_set) > config.batch_size,
    )
    step = _Step(model, config, span, device, dtype)

    rows: list[dict] = []
    if run_dir and (run_dir / "last.pt").is_file():
        rows = _resume(run_dir, model, optimiser, scaler)
    if run_dir and len(rows) < config.num_epochs:
        config.save(run_dir / "config.json")  # where this cannot be written, nothing is lost yet
    best = _best(rows, config.best_by)
    best_state = None
    epochs = progress(
        range(len(rows) + 1, config.num_epochs + 1),
        initial=len(rows),
        total=config.num_epochs,
        desc=config.method if config.neuron_selective else "baseline",
    )
    for epoch in epochs:
        start = time.perf_counter()
        # Seeded per epoch, so that a run that goes on draws what it would have drawn.
        seed_everything((config.seed * 100_003 + epoch) % 2**32)
        loader.generator.manual_seed(config.seed * 100_003 + epoch)
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(config, epoch)
        row = {"epoch": epoch, "lr": _learning_rate(config, epoch)}
        row |= _epoch(model, loader, step, optimiser, scaler, epoch)
        row["seconds"] = time.perf_counter() - start
        row["images_per_s"] = row.pop("images") / row["seconds"]
        metrics = evaluate(model, val_set, cap=span[1])
        row |= {f"val_{k}": v for k, v in metrics.items()}
        if config.cfg_layers:
            seen = dissect(
                model, val_set, config.cfg_layers, bins=span, definition=config.definition
            )
            row |= {f"val_selectivity_{layer}": seen.mean(layer) for layer in config.cfg_layers}
        rows.append(row)
        epochs.set_postfix(d1=f"{row['val_d1']:.3f}", rms=f"{row['val_rms']:.3f} m")

        if (best := _best(rows, config.best_by)) == epoch:
            best_state = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if run_dir:
            if best == epoch:
                save_weights(model, run_dir / "best.safetensors", metadata=_about(config, row))
            with atomic(run_dir / "history.csv") as temporary:
                pd.DataFrame(rows).to_csv(temporary, index=False)
            _save(run_dir, model, optimiser, scaler, rows)

    if best_state is not None:
        model.load_state_dict(best_state)
    elif run_dir:
        load_weights(model, run_dir / "best.safetensors")
    return History(pd.DataFrame(rows), config, best, run_dir)


def _check_data(name: str, dataset, span: tuple[float, float]) -> None:
    """Refuse a data set without images, or without any depth that can be learned or measured."""
    if len(dataset) == 0:
        raise ValueError(f"The {name} set is empty.")
    depths = (dataset[i]["depth"] for i in range(len(dataset)))
    if not any(((depth > 0) & (depth < span[1])).any() for depth in depths):
        raise ValueError(
            f"The {name} set has no depth between 0 and {span[1]:g} m in any of its "
            f"{len(dataset)} images: is it in metres, and 0 only where there is no measurement?"
        )


class _Step:
    """The loss of one batch and its parts."""

    def __init__(self, model, config: TrainConfig, span, device, dtype):
        self.model, self.config, self.device, self.dtype = model, config, device, dtype
        self.depth_loss = LOSSES[config.depth_loss]
        self.scale = getattr(model, "loss_scale", 1.0)
        self.selectivity = SelectivityLoss(span, config.method, config.definition)
        self.inputs = tuple(getattr(model, "input_names", ()))

    def __call__(self, batch: dict, acts) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss, and what to log.

        Without a pixel inside the bins the batch has no selectivity, and the term is left out.
        """
        image = batch["image"].to(self.device, memory_format=torch.channels_last, non_blocking=True)
        target = batch["depth"].to(self.device, non_blocking=True)
        extra = {k: batch[k].to(self.device, non_blocking=True) for k in self.inputs}
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            pred = self.model(image, **extra)
        target = F.interpolate(target, pred.shape[-2:], mode="nearest-exact")
        depth = self.depth_loss(pred.float(), target)
        loss = self.scale * depth
        parts = {"depth_loss": depth.detach()}
        if acts and ((target > 0) & (target <= self.selectivity.range[1])).any():
            wanted = self.config.neuron_selective
            with nullcontext() if wanted else torch.no_grad():
                terms = self.selectivity.layers(acts, target)
            if wanted:
                loss = loss + self.config.imde_alpha * torch.stack(list(terms.values())).sum()
            parts |= {f"train_term_{layer}": value.detach() for layer, value in terms.items()}
        parts["loss"] = loss.detach()
        return loss, parts


def _epoch(model, loader, step: _Step, optimiser, scaler, epoch: int) -> dict:
    """One pass over the training set: mean of every part of the loss, and the images seen."""
    model.train()
    config = step.config
    sums: dict[str, Tensor] = {}
    weights: dict[str, int] = {}
    images = 0
    watch = tap(model, config.cfg_layers, detach=False) if config.cfg_layers else nullcontext({})
    with watch as acts:
        for batch in progress(loader, desc=f"epoch {epoch}"):
            names = ", ".join(map(str, batch.get("name", ["(without names)"])))
            try:
                loss, parts = step(batch, acts)
            except ValueError as error:
                raise ValueError(f"In epoch {epoch}, at the images {names}: {error}") from error
            if not loss.isfinite():
                raise FloatingPointError(
                    f"The loss is {loss.item()} in epoch {epoch}, at the images {names}. The last "
                    "whole epoch is kept. Lower learning_rate or the magnitude of imde_alpha, or "
                    "look at these images."
                )
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            n = len(batch["image"])
            images += n
            for key, value in parts.items():
                sums[key] = sums.get(key, 0) + value * n
                weights[key] = weights.get(key, 0) + n
    return {key: float(value) / weights[key] for key, value in sums.items()} | {"images": images}


def _learning_rate(config: TrainConfig, epoch: int) -> float:
    if config.schedule == "cosine":
        # Half a cosine that is not yet at zero in the last epoch.
        turn = math.pi * (epoch - 1) / config.num_epochs
        return config.learning_rate * 0.5 * (1 + math.cos(turn))
    return config.learning_rate


def _best(rows: list[dict], key: str) -> int:
    """The best epoch so far, 0 if there is none."""
    pick = max if BEST_BY[key] else min
    return pick(rows, key=lambda row: row[f"val_{key}"])["epoch"] if rows else 0


def _about(config: TrainConfig, row: dict) -> dict:
    return {"config": {**asdict(config), "run_dir": None}, "metrics": row}


# ------------------------------------------------------------------ the run folder


def _claim(run_dir: Path, config: TrainConfig) -> None:
    """See that the folder is this config's own, or holds no run yet.

    Raises:
        ValueError: it belongs to another config; the message shows the difference.
    """
    path = run_dir / "config.json"
    if path.is_file() and (run_dir / "last.pt").is_file():
        there, own = asdict(TrainConfig.load(path)), asdict(config)
        other = [k for k in own if k != "run_dir" and _plain(there[k]) != _plain(own[k])]
        if other:
            difference = "; ".join(f"{k}: {there[k]!r} there, {own[k]!r} here" for k in other)
            raise ValueError(
                f"The run folder {run_dir} belongs to another config ({difference}). Nothing was "
                "overwritten: choose another run_dir, or remove that one."
            )


def _plain(value):
    return json.loads(json.dumps(value, default=str))


def _save(run_dir: Path, model, optimiser, scaler, rows: list[dict]) -> None:
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "scaler": scaler.state_dict(),
        "rows": rows,
    }
    with atomic(run_dir / "last.pt") as temporary:
        torch.save(state, temporary)


def _resume(run_dir: Path, model, optimiser, scaler) -> list[dict]:
    """Put everything back as it was after the last whole epoch; the rows of the history."""
    state = torch.load(run_dir / "last.pt", map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    if state["scaler"]:  # empty from a run without float16
        scaler.load_state_dict(state["scaler"])
    return state["rows"]


def main(arguments: list[str]) -> None:
    """Train as a JSON config says: ``python -m mde_utils.training config.json``."""
    if len(arguments) != 1:
        raise SystemExit("usage: python -m mde_utils.training config.json")
    config = TrainConfig.load(arguments[0])
    config = replace(config, run_dir=config.run_dir or f"runs/{config.run_name()}")
    options = dict(config.data_options)
    own = {split: options.pop(split, {}) for split in ("train", "val")}
    sets = [
        load_dataset(config.dataset, split, **{**options, **own[split]})
        for split in ("train", "val")
    ]
    seed_everything(config.seed)
    model = build_model(config.model, weights=config.weights, **config.model_options)
    history = fit(model, *sets, config)
    print(f"best epoch {history.best_epoch} by {config.best_by}: {history.best}")
    print(f"the run is in {history.run_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
