"""Train as a JSON config says: `python -m mde_utils.training config.json`, or, on several GPUs,
`accelerate launch -m mde_utils.training config.json`."""

from __future__ import annotations

import sys
from dataclasses import replace

from mde_utils.data import load_dataset
from mde_utils.environment import seed_everything
from mde_utils.models import build_model
from mde_utils.processes import rank_and_world
from mde_utils.training.config import TrainConfig
from mde_utils.training.loop import fit


def main(arguments: list[str]) -> None:
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
    if rank_and_world()[0] == 0:
        if history.finished:
            wanted = ("val_d1", "val_rms", "val_rel", "val_photometric", "val_selectivity_")
            best = ", ".join(
                f"{k} {v:.4f}" for k, v in history.best.items() if k.startswith(wanted)
            )
            print(f"best epoch {history.best_epoch} by {config.best_by}: {best}")
        else:
            print("max_hours is over; the same command goes on from here.")
        print(f"the run is in {history.run_dir}")


if __name__ == "__main__":
    main(sys.argv[1:])
