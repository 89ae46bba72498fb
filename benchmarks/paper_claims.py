"""Do the claims of the paper hold here? You et al. 2021, on what two CPU cores can train.

Trains a small MFF and METER-XXS on rendered rooms, and fine-tunes METER-XXS on real NYU frames:
baseline, direct regularisation ("reg") and assignment ("assign"), over seeds. Then measures, on
test images, selectivity, ablation, correction and attack.

    python benchmarks/paper_claims.py              # table and figure of what is trained
    python benchmarks/paper_claims.py --train 2    # train and measure what is missing, 2 at a time
    python benchmarks/paper_claims.py --train 2 --groups mff

Takes hours on two cores. Runs live in runs/paper_claims and go on where they were cut short.
"""

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from _common import RESULTS, TABLES, markdown_table, write_result
from _trainings import SEEDS, Job, Study, about, datasets, long_form, selective, variants
from meter_selectivity import DECODER, LARGE, SMALL, nyu, rooms

from mde_utils.attacks import fgsm, pgd, random_repair, repair, trace_errors
from mde_utils.dissection import dissect
from mde_utils.evaluation import evaluate
from mde_utils.files import atomic
from mde_utils.interventions import ablation_curve, correction_effects
from mde_utils.training import TrainConfig

TINY = (48, 64)
MFF = {"model": "mff_resnet18", "depth_loss": "mff", "cfg_layers": ("D", "MFF")}
OTHER_LAYERS = ("Rconv0", "Rconv1")
ALPHA = -3.0  # the paper's -0.1 does not act on runs this short: see meter_selectivity.md


def jobs() -> list[Job]:
    found = []

    def add(group: str, test_images: int, *configs: TrainConfig) -> None:
        found.extend(Job(group, test_images, config) for config in configs)

    for seed in SEEDS:
        config = rooms(SMALL, 1500, num_epochs=8, seed=seed, cfg_layers=DECODER)
        add("meter", 654, *variants(config, ALPHA))
    for seed in SEEDS:
        config = nyu(LARGE, weights="published", num_epochs=4, learning_rate=3e-4, seed=seed)
        add("real", 120, *variants(config, ALPHA))
    small = rooms(TINY, 800, num_epochs=5, batch_size=8, learning_rate=1e-3, **MFF)
    for seed in SEEDS:
        add("mff", 654, *variants(replace(small, seed=seed), ALPHA))
    for seed in SEEDS:
        for layer in OTHER_LAYERS:  # tables 4 and 5; their baseline is the one above
            config = replace(small, seed=seed, cfg_layers=(layer,))
            add("mff, other layers", 654, selective(config, ALPHA))
    return found


STUDY = Study("paper_claims", jobs())


# ------------------------------------------------------------------ measuring

EPSILON = 0.05
BLAMED = 8  # units set back
DRAWS = 20  # random orders, random sets of units
CONTROLS = ("truth", "shuffled", "wrong_bin", "predicted", "fixed_point")
# Test images of the experiments, each of which runs the network many times.
FEW = {"mff": 24, "real": 32, "meter": 64}


def measure(job: Job) -> dict:
    """All experiments."""
    sets = datasets(job.config, job.test_images)
    model, _ = STUDY.trained(job, sets)
    layers = list(job.config.cfg_layers)
    named = list(dict.fromkeys([*layers, *(OTHER_LAYERS if "mff" in job.group else ())]))
    seen, test = (dissect(model, sets[split], named) for split in ("seen", "test"))
    result = about(job, sets) | {
        "protocol": "imde",
        "metrics": evaluate(model, sets["test"]),
        "layers": {
            layer: {
                "train": seen.mean(layer),
                "test": test.mean(layer),
                "uniform": test.floors(layer)["uniform"],
                "collapsed": int((test.sums[layer] == 0).all(1).sum()),
                "units": len(test.sums[layer]),
            }
            for layer in named
        },
    }
    if job.group != "mff, other layers":
        number = len(sets["test"])
        few = min(FEW[job.group], number)
        few = torch.utils.data.Subset(sets["test"], [number * k // few for k in range(few)])
        result["few"] = len(few)
        result["ablation"] = ablation(model, few, seen, layers)
        # Layers apart: pooled, a layer near the output may pass for its units' selectivity.
        result["ablation_by_layer"] = {
            k: ablation(model, few, seen, [k], orders=("most", "least"))["area"] for k in layers
        }
        corrected = correction_effects(model, few, seen, layers, controls=CONTROLS)
        result["correction"] = corrected.to_dict("records")
        by = "assigned" if job.method == "assign" else "best"
        result["attack"] = attack(model, few, seen, layers, by=by)
    return result


def ablation(model, dataset, seen, layers, *, orders=("most", "least", "random")) -> dict:
    units = sum(len(seen.sums[layer]) for layer in layers)
    points = sorted({*range(0, units, max(1, units // 16)), units})
    curve = ablation_curve(
        model, dataset, seen, layers, orders=orders, points=points, num_random=DRAWS
    )
    return {
        "area": {metric: curve.area(metric)._asdict() for metric in ("d1", "rms")},
        "curves": curve.frame[["order", "repeat", "removed", "d1", "rms"]].to_dict("list"),
    }


def attack(model, dataset, seen, layers, *, by: str) -> dict:
    """FGSM and PGD over the data set, and what setting units back repairs of FGSM's errors."""
    images, given = fgsm(model, dataset, epsilon=EPSILON), (model, dataset, seen, layers)
    options = {"by": by, "num_units": 0}
    traced = trace_errors(*given, attacked=images, **options)
    strong = trace_errors(*given, attacked=pgd(model, dataset, epsilon=EPSILON), **options)
    blamed = traced.blamed(BLAMED)
    repairs = {}
    for value in ("clean", "corrected"):
        options = {"attacked": images, "value": value}
        own = repair(*given, blamed, **options)
        draws = random_repair(*given, blamed, num_draws=DRAWS, **options)
        repairs[value] = {
            "blamed": own.share,
            "net": own.net,
            "random": [one.share for one in draws],
            "random_net": [one.net for one in draws],
        }
    return {
        "epsilon": EPSILON,
        "d1": {**traced.d1, "pgd": strong.d1["attacked"]},
        "by": by,
        "blamed": blamed,
        "concentration": {
            layer: {
                " ".join(row): values
                for row, values in traced.concentration(layer).to_dict("index").items()
            }
            for layer in layers
        },
        "repairs": repairs,
    }


# ------------------------------------------------------------------ the report

GROUPS = {
    "mff": "MFF with a ResNet-18, rooms, 48×64, from scratch, 5 epochs",
    "meter": "METER-XXS, rooms, 64×128, from scratch, 8 epochs",
    "real": "METER-XXS, real NYU frames, 192×256, the published weights fine-tuned, 4 epochs",
}
METHODS = ("baseline", "reg", "assign")


def quantities(result: dict) -> dict[str, float]:
    """The numbers of one training that the claims are about."""
    layers = [result["layers"][k] for k in result["config"]["cfg_layers"]]

    def mean(key: str) -> float:
        return sum(layer[key] for layer in layers) / len(layers)

    row = {
        "d1": result["metrics"]["d1"],
        "rms": result["metrics"]["rms"],
        "rel": result["metrics"]["rel"],
        "log10": result["metrics"]["log10"],
        "train selectivity": mean("train"),
        "test selectivity": mean("test"),
        "uniform floor": mean("uniform"),
        "units without response": sum(layer["collapsed"] for layer in layers),
    }
    if "ablation" not in result:
        return row
    area = result["ablation"]["area"]["d1"]
    row |= {"area": area["area"], "area low": area["low"], "band high": area["band_high"]}
    parts = [area["d1"] for area in result["ablation_by_layer"].values()]
    row["area by layer"] = sum(part["area"] for part in parts) / len(parts)
    steps = {(c["control"], c["blend"]): c for c in result["correction"]}
    before = steps["none", 0.0]
    row |= {"d1 before": before["d1"], "rms before": before["rms"]}
    for control in CONTROLS:
        row[f"d1 {control}"] = steps[control, 1.0]["d1"]
        row[f"gain {control}"] = steps[control, 1.0]["d1"] - before["d1"]
    row["rms truth"] = steps["truth", 1.0]["rms"]
    row["gain truth, half"] = steps["truth", 0.5]["d1"] - before["d1"]
    found = result["attack"]
    row |= {f"d1 {k}": v for k, v in found["d1"].items()}
    entropy = {
        kind: [layer[f"attacked {kind}"]["entropy"] for layer in found["concentration"].values()]
        for kind in ("errors", "all")
    }
    row["entropy errors"], row["entropy all"] = (sum(v) / len(v) for v in entropy.values())
    for value, repaired in found["repairs"].items():
        random = torch.tensor(repaired["random_net"])
        row[f"repair {value}"] = repaired["net"]
        row[f"repair {value}, random"] = random.mean().item()
        row[f"repair {value}, random high"] = random.quantile(0.95).item()
    return row


def claims(rows: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Claim -> seed -> whether it holds. `rows`: one group, indexed by (method, seed)."""
    base, reg, assign = (rows.loc[method] for method in METHODS)
    every = [rows.loc[method] for method in METHODS]

    def most(values) -> pd.Series:
        return pd.concat(list(values), axis=1).all(axis=1)

    return [
        (
            "1. The baseline's selectivity is above that of units with uniformly random responses",
            base["test selectivity"] > base["uniform floor"],
        ),
        (
            "2a. assign is more selective than reg",
            assign["test selectivity"] > reg["test selectivity"],
        ),
        (
            "2b. reg is more selective than the baseline",
            reg["test selectivity"] > base["test selectivity"],
        ),
        (
            "2c. assign is more selective than the baseline",
            assign["test selectivity"] > base["test selectivity"],
        ),
        ("2d. assign's δ1 is within .01 of the baseline's", (assign.d1 - base.d1).abs() <= 0.01),
        ("2e. reg's δ1 is within .01 of the baseline's", (reg.d1 - base.d1).abs() <= 0.01),
        (
            "3a. Baseline: removing selective units first hurts more, beyond the random band",
            base["area"] > base["band high"],
        ),
        ("3b. assign: the same", assign["area"] > assign["band high"]),
        ("4a. assign: correction raises δ1", assign["gain truth"] > 0),
        ("4b. It helps assign more than the baseline", assign["gain truth"] > base["gain truth"]),
        (
            "4c. A shuffled ground truth does not help, in any of the three",
            most(one["gain shuffled"] <= 0 for one in every),
        ),
        (
            "5a. Attacked errors lie in fewer predicted-depth bins than all pixels, in all three",
            most(one["entropy errors"] < one["entropy all"] for one in every),
        ),
        (
            f"5b. assign: {BLAMED} blamed units set back repair more than 95 % of random sets",
            assign["repair clean"] > assign["repair clean, random high"],
        ),
        (
            "5c. Baseline: the same",
            base["repair clean"] > base["repair clean, random high"],
        ),
    ]


SHOWN = {
    "δ1": "d1",
    "RMS [m]": "rms",
    "selectivity, train": "train selectivity",
    "selectivity, test": "test selectivity",
    "… of uniformly random units": "uniform floor",
    "units without response": "units without response",
    "ablation: area (most − least selective first)": "area",
    "… what a random order reaches": "band high",
    "… mean of the layers, each apart": "area by layer",
    "correction: δ1 before": "d1 before",
    "… by the ground truth": "d1 truth",
    "… half way (blend .5), gain": "gain truth, half",
    "… shuffled ground truth": "d1 shuffled",
    "… wrong bins": "d1 wrong_bin",
    "… predicted depth": "d1 predicted",
    "… its fixed point": "d1 fixed_point",
    "attack: δ1 before": "d1 clean",
    "… FGSM": "d1 attacked",
    "… PGD": "d1 pgd",
    "… entropy of the errors over predicted bins": "entropy errors",
    "… of all pixels": "entropy all",
    "errors repaired (net), blamed units set back to clean": "repair clean",
    "… random units": "repair clean, random",
    "… blamed units corrected": "repair corrected",
    "… random units corrected": "repair corrected, random",
}
NOTE = f"""Mean over three seeds (least to largest). δ1, RMS: protocol `imde`. Selectivity:
definition `paper`, mean over the layers of the mean over their units. assign, reg: `imde_alpha`
{ALPHA:g}, growing over the first third of the epochs; D and MFF of MFF, dec_1, dec_2, dec_3 of
METER. Ablation, correction and attack use evenly spaced test images (number in the headings), the
training set's responses (up to 300 images), and the layers together. *Area*: mean over the numbers
of removed units of the relative drop of δ1, most selective first less least selective first; *what
a random order reaches*: the upper end of its 95 % band. Attack: FGSM and PGD (10 steps),
ε = {EPSILON} of the pixel range, on the mean absolute error; the {BLAMED} units most blamed of all
layers are set back to what they answered to the clean image, or corrected by the ground truth;
*net*: repaired less newly caused errors, as a share of the attacked errors; random: {DRAWS} draws
of as many units of the same layers. Entropy: 0 = all in one bin, 1 = uniform. Trained for minutes
on two CPU cores: read differences, not records; the config of every run is in the JSON beside this
page."""


def measured(found: list[tuple[Job, dict]]) -> pd.DataFrame:
    """The paper's tables 1 to 5 in the long form that `mde_utils.paper` reads."""
    rows = []
    for job, result in found:
        config, values = result["config"], quantities(result)
        own = "+".join(config["cfg_layers"])
        common = {
            "dataset": config["dataset"],
            "model": config["model"],
            "method": job.method,
            "group": f"paper_claims, {config['num_epochs']} epochs",
            "size": "x".join(map(str, config["data_options"]["size"])),
            "definition": "paper",
            "seed": config["seed"],
        }

        def put(table, layers, images, common=common, **metrics):
            for metric, value in metrics.items():
                protocol = "" if "selectivity" in metric else "imde"
                row = {"table": table, "layers": layers, "metric": metric, "protocol": protocol}
                rows.append({**common, **row, "value": value, "images": images})

        images = result["metrics"]["n"]
        depth = {k: result["metrics"][k] for k in ("d1", "d2", "d3", "rms", "rel", "log10")}
        both = {
            "train_selectivity": values["train selectivity"],
            "selectivity": values["test selectivity"],
        }
        if job.group != "mff, other layers":
            put(1, own, images, **both)
            put(2, own, images, **depth)
            put(3, own, result["few"], d1=values["d1 before"], rms=values["rms before"])
            put(3, own, result["few"], d1_corrected=values["d1 truth"])
            put(3, own, result["few"], rms_corrected=values["rms truth"])
        if job.group.startswith("mff") and job.method != "reg":
            put(4, own, images, **both)
            if job.method == "baseline":
                for layer in OTHER_LAYERS:
                    one = result["layers"][layer]
                    put(4, layer, images, train_selectivity=one["train"], selectivity=one["test"])
            layers = "" if job.method == "baseline" else own
            put(5, layers, images, **{k: depth[k] for k in ("d1", "rms", "rel", "log10")})
    return long_form(rows)


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a quantity, a column a method."""
    columns = {}
    for method in METHODS:
        part = rows.loc[method]
        columns[method] = [
            f"{part[name].mean():.3f} ({part[name].min():.3f}–{part[name].max():.3f})"
            for name in SHOWN.values()
        ]
    return pd.DataFrame(columns, index=pd.Index(SHOWN, name="mean (least–largest)"))


def picture(frames: dict[str, pd.DataFrame]):
    """A row a group: what the claims are about, a dot a seed."""
    panels = {
        "selectivity, test images": ["test selectivity"],
        "ablation: area of δ1 drop": ["area"],
        "correction: gain in δ1": ["gain truth", "gain shuffled", "gain predicted"],
        f"{BLAMED} units set back: errors repaired": ["repair clean", "repair clean, random"],
    }
    names = {
        "gain truth": "true\ndepth",
        "gain shuffled": "another\nimage's",
        "gain predicted": "own\nprediction",
        "repair clean": "blamed\nunits",
        "repair clean, random": "random\nunits",
    }
    # Paul Tol's bright scheme: told apart by people who confuse red and green, and in grey by mark.
    looks = {"baseline": ("o", "#4477AA"), "reg": ("s", "#CCBB44"), "assign": ("D", "#EE6677")}
    figure, axes = plt.subplots(
        len(frames), 4, figsize=(13, 2.6 * len(frames) + 0.6), layout="constrained", squeeze=False
    )
    for row, (group, rows) in zip(axes, frames.items(), strict=True):
        for ax, (title, quantities_) in zip(row, panels.items(), strict=True):
            for i, quantity in enumerate(quantities_):
                for k, (method, (mark, colour)) in enumerate(looks.items()):
                    values = rows.loc[method, quantity]
                    x = [i + 0.22 * (k - 1)] * len(values)
                    ax.plot(x, values, mark, color=colour, mec="white", ms=7, label=method)
            if title.startswith("selectivity"):
                floor = rows["uniform floor"].mean()
                ax.axhline(floor, color="0.5", ls="--", lw=1)
                ax.annotate(
                    "random units",
                    (0.02, floor),
                    (0, 2),
                    fontsize=7,
                    color="0.4",
                    xycoords=("axes fraction", "data"),
                    textcoords="offset points",
                )
            elif title.startswith("ablation"):
                band = rows["band high"].mean()
                ax.axhspan(-band, band, color="0.92", lw=0, zorder=0)
                ax.axhline(0, color="0.5", lw=0.8)
            else:
                ax.axhline(0, color="0.5", lw=0.8)
            ax.set_xticks(range(len(quantities_)), [names.get(q, "") for q in quantities_])
            ax.set_xlim(-0.6, len(quantities_) - 0.4)
            ax.set_title(title, fontsize=9)
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(
            GROUPS[group].split(",")[0] + "\n" + GROUPS[group].split(", ")[1], fontsize=9
        )
    handles = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        fontsize=9,
        title="a dot a seed; grey band: what random orders of ablation reach",
        title_fontsize=8,
    )
    return figure


def report() -> None:
    found = STUDY.finished()
    parts, frames = ["# What the paper claims, measured", NOTE], {}
    for group, title in GROUPS.items():
        own = [(job, result) for job, result in found if job.group == group]
        rows = pd.DataFrame(
            {(job.method, job.config.seed): quantities(result) for job, result in own}
        ).T
        # A setting without all its seeds is no result yet.
        if len(rows) < len(METHODS) * len(SEEDS):
            continue
        rows.index.names = ["method", "seed"]
        frames[group] = rows
        test, few = own[0][1]["test"], own[0][1]["few"]
        parts += [
            f"## {title}",
            f"Test: {test}; ablation, correction and attack: {few} of them. "
            f"{own[0][1]['train_images']:,} training images.",
            "\n".join(
                f"- {claim}: **{held.sum()} of {len(held)}** seeds." for claim, held in claims(rows)
            ),
            markdown_table(table(rows)),
        ]
    if frames:
        parts.insert(
            2, "![Selectivity, ablation, correction and repair by method](paper_claims.png)"
        )
        with atomic(RESULTS / "paper_claims.png") as temporary:
            picture(frames).savefig(temporary, dpi=100)
    with atomic(TABLES / "paper_claims.csv") as temporary:
        measured(found).to_csv(temporary, index=False)
    for _, result in found:
        result.get("ablation", {}).pop("curves", None)  # too long to commit; in the run's folder
    write_result("paper_claims", {"rows": [result for _, result in found]}, "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    STUDY.main(measure, report, __doc__)
