"""Can METER's units be made depth-selective, and what does it cost?

Trains METER on rendered rooms and on real NYU frames, baseline, direct regularisation ("reg") and
assignment ("assign"), over seeds; every row of the table has its whole config beside it.

    python benchmarks/meter_selectivity.py                  # tables and figures of what is trained
    python benchmarks/meter_selectivity.py --train 2        # train what is missing, 2 at a time
    python benchmarks/meter_selectivity.py --train 2 --groups main sizes

Takes hours on two cores. Runs live in runs/meter_selectivity and go on where they were cut short.
"""

import math
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import pandas as pd
import torch.nn.functional as F
from _common import RESULTS, TABLES, markdown_table, write_result
from _trainings import SEEDS, Job, Study, about, datasets, selective, variants
from torch import nn

from mde_utils import plots
from mde_utils.dissection import dissect
from mde_utils.evaluation import evaluate
from mde_utils.files import atomic
from mde_utils.training import TrainConfig

DECODER = ("dec_1", "dec_2", "dec_3")
NOTEBOOK = ("dec_3", "enc_4")  # what the METER notebook regularised
SETS = (DECODER, ("dec_3",), NOTEBOOK)
LARGE, MIDDLE, SMALL = (192, 256), (128, 192), (64, 128)
# Of the loss; the first is what the other groups have.
OPTIONS = ({}, {"imde_warmup": 0.0})


def rooms(size, images, **settings) -> TrainConfig:
    common = {"size": list(size), "fields": ["image", "depth"]}
    options = {**common, "train": {"limit": images, "augment": "meter"}, "val": {"limit": 64}}
    defaults = {"batch_size": 16, "learning_rate": 3e-3, "schedule": "cosine"}
    return TrainConfig(dataset="rooms", data_options=options, **{**defaults, **settings})


def nyu(size, **settings) -> TrainConfig:
    """The sample is of one scene, so rows are held out for validation, not scenes."""
    options = {"size": list(size), "val_by": "row", "train": {"augment": "meter"}}
    defaults = {"batch_size": 16, "schedule": "cosine", "cfg_layers": DECODER}
    return TrainConfig(dataset="nyu", data_options=options, **{**defaults, **settings})


def jobs() -> list[Job]:
    found = []

    def add(group: str, test_images: int, *configs: TrainConfig) -> None:
        found.extend(Job(group, test_images, config) for config in configs)

    small = rooms(SMALL, 1500, num_epochs=8)  # small images, so that there can be many trainings
    for seed in SEEDS:  # 1. Which method, which layers, which weight.
        config = replace(small, seed=seed)
        # Watching changes nothing in a baseline, so one serves all sets of layers.
        add("rooms", 654, replace(config, cfg_layers=(*DECODER, "enc_4")))
        for layers, method, alphas in (
            (DECODER, "assign", (-1.0, -3.0, -10.0)),
            (DECODER, "reg", (-1.0, -3.0)),
            (("dec_3",), "assign", (-3.0, -10.0)),
            (NOTEBOOK, "assign", (-0.1, -3.0)),
        ):
            for alpha in alphas:
                on = selective(replace(config, cfg_layers=layers), alpha, method=method)
                add("rooms", 654, on)
    for seed in SEEDS:  # 2. Real frames, the published weights fine-tuned.
        config = nyu(LARGE, weights="published", num_epochs=4, learning_rate=3e-4, seed=seed)
        add("real, fine-tuned", 120, *variants(config, -3.0), selective(config, -10.0))
    for seed in SEEDS:  # 3. Real frames, from scratch.
        config = nyu(MIDDLE, num_epochs=10, learning_rate=3e-3, seed=seed)
        add("real, from scratch", 120, *variants(config, -3.0))
    for model in ("meter_xxs", "meter_xs", "meter_s"):  # 4. A larger decoder.
        for seed in SEEDS:
            config = rooms(SMALL, 1000, num_epochs=4, cfg_layers=DECODER, seed=seed, model=model)
            add("sizes", 654, config, selective(config, -3.0))
    for seed in SEEDS:  # 5. What the options of the loss do; the first setting is group 1's.
        config = replace(small, seed=seed, cfg_layers=DECODER)
        for changes in OPTIONS:
            add("options", 654, selective(config, -3.0, **changes))
    return found


# "options" repeats a setting of "rooms", which is trained once.
STUDY = Study("meter_selectivity", jobs(), same={"options": "rooms"})


# ------------------------------------------------------------------ training


def measure(job: Job) -> dict:
    sets, config = datasets(job.config, job.test_images), job.config
    model, history = STUDY.trained(job, sets)
    metrics = evaluate(model, sets["test"])
    seen = dissect(model, sets["seen"], config.cfg_layers)
    every = dissect(model, sets["test"], list(model.taps))
    perfect = Ceiling(model, {layer: every.bins[layer] for layer in config.cfg_layers})
    ceiling = dissect(perfect, sets["test"], config.cfg_layers)
    units = every.to_frame().groupby("layer")
    return about(job, sets) | {
        "protocol": "imde",
        "metrics": metrics,
        "layers": {
            layer: {
                "train": seen.mean(layer),
                "test": every.mean(layer),
                "assigned": float(units.get_group(layer)["assigned_selectivity"].mean()),
                "collapsed": int((every.sums[layer] == 0).all(1).sum()),
                "units": len(every.sums[layer]),
                "ceiling": ceiling.mean(layer),
            }
            for layer in config.cfg_layers
        },
        "selectivity_of_all_layers": {layer: every.mean(layer) for layer in every.layers},
        "gradient_ratio": float(history.frame.gradient_ratio.iloc[-1]),
        "best_epoch": history.best_epoch,
    }


class Ceiling(nn.Module):
    """A network whose units are perfect, but for the prediction that they are made of: unit k of a
    layer answers 1 where the *predicted* depth lies in bin k, else 0."""

    def __init__(self, model, bins):
        super().__init__()
        self.model, self.bins, self.depth_range = model, bins, model.depth_range
        for layer in bins:
            self.add_module(layer, nn.Identity())

    def forward(self, image):
        pred = self.model(image)
        for layer, bins in self.bins.items():
            index = bins.discretize(pred.clamp(1e-3, float(bins.edges[-1])))[:, 0]
            getattr(self, layer)(F.one_hot(index, len(bins)).permute(0, 3, 1, 2).float())
        return pred


# ------------------------------------------------------------------ the report


def table() -> pd.DataFrame:
    """A row a finished training."""
    rows = []
    for job, result in STUDY.finished():
        config = result["config"]
        method = config["method"] if config["neuron_selective"] else "baseline"
        sets = [tuple(config["cfg_layers"])]
        if job.group == "rooms" and method == "baseline":
            sets = SETS  # it watches the layers of all
        for names in sets:
            layers = [result["layers"][name] for name in names]
            rows.append(
                {
                    "job": STUDY.jobs.index(job),
                    "group": job.group,
                    "model": config["model"],
                    "layers": "+".join(names),
                    "method": method,
                    "imde_alpha": config["imde_alpha"] if config["neuron_selective"] else 0.0,
                    "option": _option(job.config) if job.group == "options" else "",
                    "seed": config["seed"],
                    **{k: result["metrics"][k] for k in ("d1", "rms", "rel")},
                    "selectivity": _mean(layers, "test"),
                    "train_selectivity": _mean(layers, "train"),
                    "assigned": _mean(layers, "assigned"),
                    "ceiling": _mean(layers, "ceiling"),
                    "collapsed": sum(layer["collapsed"] for layer in layers),
                    "units": sum(layer["units"] for layer in layers),
                    "gradient_ratio": result["gradient_ratio"]
                    if method != "baseline"
                    else math.nan,
                    "test": result["test"],
                    "train_images": result["train_images"],
                    **{f"selectivity_{k}": v["test"] for k, v in result["layers"].items()},
                }
            )
    return pd.DataFrame(rows)


def _option(config: TrainConfig) -> str:
    return "warm-up" if config.imde_warmup else "none"


def _mean(layers, key: str) -> float:
    values = [layer[key] for layer in layers]
    return sum(values) / len(values)


def summary(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean over seeds, and the range from the least to the largest."""

    def cell(values: pd.Series) -> str:
        return f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})"

    columns = {
        "δ1": "d1",
        "RMS [m]": "rms",
        "REL": "rel",
        "selectivity, test": "selectivity",
        "train": "train_selectivity",
        "at the assigned bin": "assigned",
        "perfect code": "ceiling",
    }
    groups = frame.groupby(by, sort=False)
    result = pd.DataFrame({title: groups[name].agg(cell) for title, name in columns.items()})
    result["collapsed"] = groups.apply(
        lambda g: f"{g.collapsed.mean():.1f} of {g.units.iloc[0]}", include_groups=False
    )
    result["gradients"] = groups.gradient_ratio.mean().map("{:.2g}".format).replace("nan", "–")
    result["seeds"] = groups.seed.nunique()
    result = result.reset_index()
    return result.set_index(by[0])


GROUPS = {
    "rooms": "METER-XXS on rooms, 64×128, 8 epochs: which method, which layers, which weight",
    "real, fine-tuned": "Real NYU frames, 192×256: published METER-XXS fine-tuned, 4 epochs",
    "real, from scratch": "Real NYU frames, 128×192: METER-XXS from scratch, 10 epochs",
    "options": "Options of the loss: METER-XXS on rooms, 64×128, 8 epochs, assign −3, dec_1..dec_3",
    "sizes": "A larger decoder: METER-XXS, XS and S on rooms, 64×128, 4 epochs",
}
NOTE = """Mean over seeds (least to largest). δ1, RMS, REL: protocol `imde`. Selectivity: definition
`paper`, mean over layers of the mean over their units (in a baseline: of the same layers), on test
images and on training images; *at the assigned bin* uses the bin that the assignment gives a unit
instead of its best. *Perfect code*: what units would score that answer 1 where the network's own
predicted depth lies in their bin and 0 elsewhere: the measure counts errors of the prediction
against the units. *Collapsed*: units without any response. *Gradients*: ‖imde_alpha ∇ selectivity‖
/ ‖∇ depth loss‖ in the last epoch. All trainings: AdamW, cosine schedule, batch 16, METER's
augmentation, the weights after the last epoch; the term's weight grows
over the first third of the epochs; the whole config of every row is in the JSON beside this page.
Trained for minutes on two CPU cores: read differences, not records."""


def report() -> None:
    frame = table()
    parts = ["# Training METER for depth selectivity", NOTE]
    for group, title in GROUPS.items():
        part = frame[frame.group == group]
        if part.empty:
            continue
        by = {
            "rooms": ["layers", "method", "imde_alpha"],
            "sizes": ["model", "method"],
            "options": ["option"],
        }.get(group, ["method", "imde_alpha"])
        # A setting without all its seeds is no result yet.
        part = part.groupby(by, sort=False).filter(lambda g: g.seed.nunique() == len(SEEDS))
        if part.empty:
            continue
        tests = ", ".join(part.test.unique())
        part = part.assign(imde_alpha=part.imde_alpha.map("{:g}".format))
        parts += [f"## {title}", f"Test: {tests}. {part.train_images.iloc[0]:,} training images."]
        parts.append(markdown_table(summary(part, by)))
        if group == "rooms":
            parts.append("![Selectivity against δ1](meter_selectivity_tradeoff.png)")
    results = [{**result, "job": STUDY.jobs.index(job)} for job, result in STUDY.finished()]
    with atomic(TABLES / "meter_selectivity.csv") as temporary:
        frame.round(4).to_csv(temporary, index=False)
    write_result("meter_selectivity", {"rows": results}, "\n\n".join(parts))
    tradeoff = frame[frame.group == "rooms"]
    if not tradeoff.empty:
        figure = plots.plot_tradeoff(tradeoff)
        with atomic(RESULTS / "meter_selectivity_tradeoff.png") as temporary:
            figure.savefig(temporary, dpi=100)
    print("\n\n".join(parts))


if __name__ == "__main__":
    STUDY.main(measure, report, __doc__)
