"""What reports on trainings share: jobs over seeds, a process each, kept once done."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import torch
from _common import PROJECT, RESULTS, machine, real_data
from real_nyu_dissection import weights

from mde_utils.data import SparseSamples, load_dataset
from mde_utils.environment import seed_everything
from mde_utils.files import atomic
from mde_utils.models import build_model
from mde_utils.paper import MEASURED
from mde_utils.training import History, TrainConfig, fit
from mde_utils.training.runs import LAST

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """One training: its group in the report, how many test images, and its config."""

    group: str
    test_images: int
    config: TrainConfig

    @property
    def method(self) -> str:
        return self.config.method if self.config.neuron_selective else "baseline"


def selective(config: TrainConfig, alpha: float, **changes) -> TrainConfig:
    """With the term, its weight growing over the first third of the epochs."""
    settings = {"neuron_selective": True, "imde_warmup": round(config.num_epochs / 3, 2)}
    return replace(config, imde_alpha=alpha, **{**settings, **changes})


def variants(config: TrainConfig, alpha: float) -> Iterator[TrainConfig]:
    """Baseline, direct regularisation, assignment."""
    yield config
    for method in ("reg", "assign"):
        yield selective(config, alpha, method=method)


def datasets(config: TrainConfig, test_images: int) -> dict:
    """train (augmented), val, seen (of the training images, as they are) and test."""
    options = dict(config.data_options)
    own = {split: options.pop(split, {}) for split in ("train", "val")}
    if config.dataset == "nyu":
        options["root"] = real_data() / "nyu"
    sets = {s: load_dataset(config.dataset, s, **options, **own[s]) for s in ("train", "val")}
    plain = {k: v for k, v in own["train"].items() if k not in ("augment", "hints")}
    limit = min(300, len(sets["train"]))
    # Training draws its sparse points anew at every access; to be measured they have to stay.
    points = options.get("sparse_samples")
    fixed = {k: v for k, v in options.items() if k != "sparse_samples"}
    seen = load_dataset(config.dataset, "train", **fixed, **plain | {"limit": limit})
    sets["seen"] = SparseSamples(seen, points, seed=0) if points else seen
    sets["test"] = load_dataset(config.dataset, "test", **options, limit=test_images)
    return sets


def about(job: Job, sets: dict) -> dict:
    """What every result says of itself."""
    return {
        "group": job.group,
        "config": job.config.settings(),
        "test": f"{sets['test'].name}, {len(sets['test'])} images",
        "train_images": len(sets["train"]),
        "definition": "paper",
        "machine": {**machine(), "torch_threads": torch.get_num_threads()},
    }


class Study:
    """Jobs, their run folders under `runs/<name>`, and what is known of them.

    Args:
        same: group -> the group whose trainings it repeats.
    """

    def __init__(self, name: str, jobs: list[Job], *, same: Mapping[str, str] | None = None):
        self.name, self.jobs, self.same = name, jobs, dict(same or {})

    def folder(self, job: Job) -> Path:
        return PROJECT / "runs" / self.name / job.config.run_name()

    def trained(self, job: Job, sets: dict) -> tuple[torch.nn.Module, History]:
        """The network after its last epoch; it is trained if it is not yet."""
        config = replace(job.config, run_dir=str(self.folder(job)))
        seed_everything(config.seed)
        model = build_model(
            config.model, weights=weights() if config.weights else None, **config.model_options
        )
        history = fit(model, sets["train"], sets["val"], config)
        # The same budget for all: the epoch best by depth may be one before the term acts.
        model.load_state_dict(torch.load(self.folder(job) / LAST, weights_only=True)["model"])
        return model, history

    def finished(self) -> list[tuple[Job, dict]]:
        """Jobs and their results, from the run folders, else from the committed results."""
        path, committed = RESULTS / f"{self.name}.json", {}
        if path.is_file():
            for row in json.loads(path.read_text())["rows"]:
                with suppress(ValueError):  # an option that is no more: the row is history
                    config = TrainConfig.from_dict(row["config"])
                    committed[self._key(row["group"], config)] = row
        found = []
        for job in self.jobs:
            path, key = self.folder(job) / "result.json", self._key(job.group, job.config)
            if path.is_file():
                found.append((job, json.loads(path.read_text())))
            elif key in committed:
                found.append((job, committed[key]))
        return found

    def _key(self, group: str, config: TrainConfig) -> str:
        return self.same.get(group, group) + json.dumps(config.identity(), sort_keys=True)

    def main(self, measure: Callable[[Job], dict], report: Callable[[], None], about: str) -> None:
        """The command line: train and measure what is missing, if asked to, and report."""
        groups = list(dict.fromkeys(job.group for job in self.jobs))
        parser = argparse.ArgumentParser(description=about.splitlines()[0])
        parser.add_argument("--train", type=int, default=0, metavar="N", help="train, N at a time")
        parser.add_argument("--groups", nargs="*", choices=groups, help="only these")
        parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
        arguments = parser.parse_args()
        if arguments.one is not None:
            job = self.jobs[arguments.one]
            result = measure(job)
            with atomic(self.folder(job) / "result.json") as temporary:
                temporary.write_text(json.dumps(result))
            return
        if arguments.train:
            done = [job for job, _ in self.finished()]
            todo = [
                number
                for number, job in enumerate(self.jobs)
                if job not in done and (not arguments.groups or job.group in arguments.groups)
            ]
            _in_processes(sys.argv[0], todo, arguments.train)
        if not self.finished():
            raise SystemExit("Nothing is trained yet: start with --train 2.")
        report()


def long_form(rows: list[dict]) -> pd.DataFrame:
    """Numbers with their `seed` and `value` to their mean and spread, as `mde_utils.paper` reads
    them."""
    frame = pd.DataFrame(rows)
    keys = [c for c in frame.columns if c not in ("seed", "value")]
    groups = frame.groupby(keys, sort=False)
    long = groups.value.agg(mean="mean", low="min", high="max").join(
        groups.seed.nunique().rename("seeds")
    )
    return long.reset_index()[MEASURED].round(4)


def _in_processes(script: str, numbers: list[int], workers: int) -> None:
    """`script --one` for each number, in a process with its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // workers))}
    running: list[subprocess.Popen] = []
    print(f"{len(numbers)} trainings to do, {workers} at a time", flush=True)
    for number in numbers:
        while len(running) >= workers:
            running = _finished(running)
        print(f"{script} --one {number}", flush=True)
        running.append(
            subprocess.Popen([sys.executable, script, "--one", str(number)], env=environment)
        )
    while running:
        running = _finished(running)


def _finished(running):
    try:
        running[0].wait(timeout=1)
    except subprocess.TimeoutExpired:
        pass
    for process in running:
        if process.poll() not in (None, 0):
            raise SystemExit("A training failed; see above. The others can be gone on with.")
    return [process for process in running if process.poll() is None]
