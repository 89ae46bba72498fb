"""Several trainings, one after another, under one deadline: what a notebook calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
from torch import nn

from mde_utils.checkpoints import load_weights
from mde_utils.environment import seed_everything
from mde_utils.models import build_model
from mde_utils.training.config import TrainConfig
from mde_utils.training.launcher import launch
from mde_utils.training.loop import History, best_epoch, fit
from mde_utils.training.runs import RunFolder

Frames = dict[str, pd.DataFrame]


class Trained(dict):
    """By the name of the run; says why one is missing."""

    def __missing__(self, name):
        raise KeyError(
            f"{name!r} has no whole epoch yet; trained so far: {', '.join(self) or 'nothing'}. Run "
            "this notebook again, or with more max_hours, and it goes on."
        )


class Runs(Trained):
    """name -> `History`, of the runs that have a whole epoch; `models`: name -> the network with
    the weights of its best one; `histories`: name -> frame, as `plots.plot_training` takes it."""

    def __init__(self):
        super().__init__()
        self.models: dict[str, nn.Module] = Trained()

    @property
    def histories(self) -> Frames:
        return {name: history.frame for name, history in self.items()}


def train_runs(
    configs: Mapping[str, TrainConfig],
    train_set,
    val_set,
    *,
    run_folder: str | Path,
    resume_from: str | Path | None = None,
    max_hours: float = 0,
    num_processes: int = 1,
    show: Callable[[Frames], object] | None = None,
    build: Callable[[TrainConfig], nn.Module] | None = None,
) -> Runs:
    """Build and train a network for each config, or read what was trained before.

    A run that was cut short goes on from its last checkpoint; where time is up this says so in a
    line, and what has a whole epoch is there.

    Args:
        configs: by name; each run has a folder of its own below `run_folder`.
        train_set, val_set: as `fit`.
        resume_from: a folder with former outputs, such as an attached input.
        max_hours: for all together; 0 = no limit.
        num_processes: more than one: a GPU each, by `launch`, which loads the data that the config
            names.
        show: called with the histories so far, by name, after every epoch.
        build: what makes the network; `build_model`, as the config says, by default.
    """
    if build and num_processes > 1:
        raise ValueError("Other processes build the network from its config: leave build out.")
    runs, started = Runs(), time.monotonic()

    def showing(name: str) -> Callable[[History], None]:
        return lambda history: show and show({**runs.histories, name: history.frame})

    for name, config in configs.items():
        path = Path(run_folder) / config.run_name()
        left = max_hours - (time.monotonic() - started) / 3600
        config = replace(
            config, run_dir=path, resume_from=resume_from or None, max_hours=max(left, 0.0)
        )
        # What is finished is read, which takes no time.
        if max_hours and left <= 0 and not _finished(config):
            print(f"max_hours is over before {name}: run this again, and it goes on.")
            continue
        seed_everything(config.seed)
        model = (build or _built)(config)
        # A GPU each; `fit` then reads what they did.
        if num_processes > 1 and not launch(config, num_processes):
            history = _so_far(model, config)
        else:
            history = fit(model, train_set, val_set, config, on_epoch=showing(name))
        if history.best_epoch:
            runs[name], runs.models[name] = history, model
        showing(name)(history)
        if not history.finished:
            print(f"max_hours is over in {name}: run this again, and it goes on.")
    return runs


def _built(config: TrainConfig) -> nn.Module:
    return build_model(config.model, weights=config.weights, **config.model_options)


def _finished(config: TrainConfig) -> bool:
    folder = RunFolder(config.run_dir, config)
    return bool(folder.checkpoints()) and folder.load()["epoch"] > config.num_epochs


def _so_far(model: nn.Module, config: TrainConfig) -> History:
    """Of a run that was cut short; the model gets the weights of its best epoch."""
    folder = RunFolder(config.run_dir, config)
    rows = folder.load()["rows"]
    if rows:
        load_weights(model, folder.best)
    best = best_epoch(rows, config.best_by)
    return History(pd.DataFrame(rows), config, best, folder.path, finished=False)
