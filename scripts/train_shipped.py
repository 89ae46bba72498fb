"""The queue of the networks that come with the suite: trains the next unfinished one.

    python scripts/train_shipped.py                       # how far each is, and what is left
    python scripts/train_shipped.py --hours 3             # train, in order, and stop in time
    python scripts/train_shipped.py bts_streets --hours 3 # only those whose name begins so
    python scripts/train_shipped.py --gpu 9.5 --out OUT   # one visit to a GPU, see `on_gpu.py`

Each network is trained in stages (`shipped_networks.py`), every stage a run in
`runs/shipped/NETWORK/STAGE` that goes on to the bit where it was cut. Several processes share the
queue, a network each: start one a core, each with `--threads 1`. A network that has gone through
its stages is measured on the whole test split and lands, with recipe, history and numbers, in the
folder of shipped weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from notebook_tools import ROOT, write_text
from shipped_networks import NETWORKS, RENDERER

from mde_utils import build_model, dissect, evaluate, load_dataset, save_weights
from mde_utils.environment import seed_everything, versions
from mde_utils.training import TrainConfig, fit

RUNS = ROOT / "runs" / "shipped"
WEIGHTS = ROOT / "mde_utils" / "weights"
TEST = {"rooms": 654, "streets": 652}
#: δ1 may change by so much where weights are kept in half precision.
SAME = 5e-4


def folder(name: str, stage: int) -> Path:
    return RUNS / name / str(stage)


def config_of(name: str, stage: int) -> TrainConfig:
    """The stage's config; a later one starts from the best weights of the one before."""
    values = dict(NETWORKS[name][stage])
    if stage:
        values["weights"] = folder(name, stage - 1).relative_to(ROOT).joinpath("best.safetensors")
        values["weights"] = values["weights"].as_posix()
    return replace(TrainConfig.from_dict(values), run_dir=str(folder(name, stage)))


def check_renderer(path: Path, dataset: str) -> None:
    """Refuse to go on with a run whose pictures were others; remember them for a new one."""
    file = path / "renderer.json"
    now = {"dataset": dataset, "version": RENDERER[dataset]}
    if not file.is_file():
        write_text(file, json.dumps(now) + "\n")
    elif (before := json.loads(file.read_text())) != now:
        raise SystemExit(
            f"{path.relative_to(ROOT)} was trained on {before['dataset']} of version "
            f"{before['version']} of the renderer, which is at {now['version']} today. Nothing was "
            "changed: remove that folder to train anew, or go back to what it began with."
        )


def progress_of(name: str) -> dict:
    """Stages, epochs and hours that are done and left."""
    done = left = 0.0
    at, unknown = "not begun", False
    for stage in range(len(NETWORKS[name])):
        config, history = config_of(name, stage), folder(name, stage) / "history.csv"
        frame = pd.read_csv(history) if history.is_file() else pd.DataFrame()
        epochs = config.num_epochs - len(frame)
        if len(frame):
            pace = frame["seconds"].iloc[-3:].mean() / 3600
            done, left = done + frame["seconds"].sum() / 3600, left + epochs * pace
            best = frame["val_" + config.best_by]
            best = best.max() if config.best_by == "d1" else best.min()
            at = f"stage {stage + 1}, epoch {len(frame)} of {config.num_epochs}, "
            at += f"{config.best_by} {best:.3f}, {frame['images_per_s'].iloc[-1]:.0f} images/s"
        else:
            unknown = True
    if is_done(name):
        at = "shipped"
    return {
        "network": name,
        "stages": len(NETWORKS[name]),
        "state": at,
        "hours": round(done, 1),
        "left": f"{left:.1f}" + (" and more" if unknown else ""),
    }


def shipped(name: str) -> Path:
    return WEIGHTS / f"{name}.json"


def is_done(name: str) -> bool:
    """Whether the weights there are those of these stages, on these pictures."""
    if not shipped(name).is_file():
        return False
    about = json.loads(shipped(name).read_text())
    if about.get("machine"):  # trained in one go on a GPU, as long as the time allowed
        return about["renderer"] == {
            NETWORKS[name][-1]["dataset"]: RENDERER[NETWORKS[name][-1]["dataset"]]
        }
    stages = [config_of(name, stage) for stage in range(len(NETWORKS[name]))]
    wanted = {stage.dataset: RENDERER[stage.dataset] for stage in stages}
    before = [TrainConfig.from_dict(stage) for stage in about.get("stages", [])]
    same = [stage.identity() for stage in before] == [stage.identity() for stage in stages]
    return same and about.get("renderer") == wanted


def load_split(config: TrainConfig, split: str, *, like: str = "", **changes):
    """A split with the options that the config has for it, or for the one it is `like`."""
    shared = {k: v for k, v in config.data_options.items() if k not in ("train", "val")}
    own = config.data_options.get(like or split, {})
    return load_dataset(config.dataset, split, **{**shared, **own, **changes})


def train(name: str, until: float) -> bool:
    """Whether all stages are through; False where the time was up."""
    for stage in range(len(NETWORKS[name])):
        left = (until - time.monotonic()) / 3600
        if left <= 0:
            return False
        config = replace(config_of(name, stage), max_hours=left)
        check_renderer(folder(name, stage), config.dataset)
        train_set, val_set = (load_split(config, split) for split in ("train", "val"))
        seed_everything(config.seed)
        weights = ROOT / config.weights if stage else config.weights
        model = build_model(config.model, weights=weights, **config.model_options)
        history = fit(
            model, train_set, val_set, config, on_epoch=lambda h, n=name, s=stage: say(n, s, h)
        )
        if not history.finished:
            return False
    ship(name, model)
    return True


def say(name: str, stage: int, history) -> None:
    row = history.frame.iloc[-1]
    numbers = [f"{row.images_per_s:.0f} images/s", f"loss {row.loss:.3f}"]
    numbers += [
        f"{k.removeprefix('val_')} {row[k]:.3f}" for k in row.index if k in ("val_d1", "val_rel")
    ]
    numbers += [
        f"{k.removeprefix('val_selectivity_')} {row[k]:.3f}"
        for k in row.index
        if k.startswith("val_selectivity_")
    ]
    print(f"{name}, stage {stage + 1}, epoch {row.epoch:.0f}: {', '.join(numbers)}", flush=True)


def ship(
    name: str, model, *, to: Path | None = None, stages=None, frames=None, test=None, machine=None
) -> dict:
    """Measure on the whole test split and write the weights, in half precision where that changes
    nothing, with what is known of them beside. Of a run elsewhere than in the queue `stages` (its
    configs), `frames` (their histories) and `test` (the images) are given."""
    numbers = range(len(NETWORKS[name]))
    frames = frames or [pd.read_csv(folder(name, s) / "history.csv") for s in numbers]
    stages = stages or [config_of(name, s) for s in numbers]
    last = stages[-1]
    if test is None:
        test = load_split(last, "test", like="val", limit=TEST[last.dataset])
    metrics, state = evaluate(model, test), {k: v.clone() for k, v in model.state_dict().items()}
    halved = {k: v.half().to(v.dtype) if v.is_floating_point() else v for k, v in state.items()}
    model.load_state_dict(halved)
    half = evaluate(model, test)
    if abs(half["d1"] - metrics["d1"]) > SAME:
        model.load_state_dict(state)
        half = None
    seen = dissect(model, test, list(model.taps))
    size = "x".join(map(str, last.data_options["size"]))
    about = {
        "config": last.settings(),
        "stages": [stage.settings() for stage in stages],
        "renderer": {last.dataset: RENDERER[last.dataset]},
        "test": {
            "data": f"{test.name}, {len(test)} images, {size}",
            "protocol": "imde",
            "metrics": {k: round(v, 4) for k, v in (half or metrics).items()},
            "definition": "paper",
            "selectivity": {layer: round(seen.mean(layer), 4) for layer in seen.layers},
        },
        "history": [
            {k: [round(x, 5) for x in column] for k, column in frame.to_dict("list").items()}
            for frame in frames
        ],
        "versions": versions(),
    }
    if machine:
        about["machine"] = machine
    path = (to or WEIGHTS) / f"{name}.safetensors"
    save_weights(copy.deepcopy(model).half() if half else model, path, metadata=about)
    write_text(path.with_suffix(".json"), json.dumps(about, indent=1, ensure_ascii=False) + "\n")
    print(f"{name} is shipped: {json.dumps(about['test']['metrics'])}", flush=True)
    return about


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="beginnings of names; none = all")
    parser.add_argument(
        "--hours", type=float, default=0.0, help="train for so long; 0 = only report"
    )
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = its own choice")
    parser.add_argument("--gpu", type=float, default=0.0, metavar="MINUTES", help="on a GPU")
    parser.add_argument("--out", type=Path, help="with --gpu: where the results go")
    parser.add_argument("--table", action="store_true", help="with --gpu: measure, train nothing")
    parser.add_argument("--cut", action="store_true", help="with --gpu: a CPU stands in, sizes cut")
    arguments = parser.parse_args()
    if arguments.gpu:
        import on_gpu

        return on_gpu.visit(
            arguments.gpu, arguments.out or RUNS / "gpu", arguments.table, arguments.cut
        )
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    names = [n for n in NETWORKS if not arguments.names or n.startswith(tuple(arguments.names))]
    if not names:
        raise SystemExit(f"No network is named so. There are: {', '.join(NETWORKS)}.")
    until = time.monotonic() + arguments.hours * 3600
    RUNS.mkdir(parents=True, exist_ok=True)
    for name in names:
        if is_done(name) or time.monotonic() >= until:
            continue
        try:
            with FileLock(RUNS / f"{name}.lock", timeout=0):
                train(name, until)
        except Timeout:
            print(f"{name} is in training elsewhere.", flush=True)
    print(pd.DataFrame([progress_of(name) for name in names]).to_string(index=False))


if __name__ == "__main__":
    main()
