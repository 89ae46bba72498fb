"""Tables 6, 7 and 8 of You et al. 2021 on what two CPU cores can train: CSPN, which completes
sparse depth, and BTS; on rendered streets and rooms.

A baseline, and a training for each layer of the tables, over seeds.

    python benchmarks/other_networks.py              # table and figure of what is trained
    python benchmarks/other_networks.py --train 2    # train and measure what is missing

Takes an hour on two cores. Runs live in runs/other_networks and go on where they were cut short.
"""

from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from _common import RESULTS, TABLES, markdown_table, write_result
from _trainings import SEEDS, Job, Study, about, datasets, long_form, selective

from mde_utils.dissection import dissect
from mde_utils.evaluation import completion_curve, evaluate
from mde_utils.files import atomic
from mde_utils.training import TrainConfig

ALPHA = -3.0  # the paper's -0.1 does not act on runs this short: see meter_selectivity.md
BTS_LAYERS = ("iconv1", "upconv1", "upconv2", "upconv3")
CSPN_LAYERS = ("layer4", "layer3")
SIZES = {
    "bts, streets": (64, 224),
    "bts, rooms": (64, 96),
    "cspn, streets": (48, 160),
    "cspn, rooms": (48, 64),
}
IMAGES = {"bts": 600, "cspn": 400}
FOCAL = 721.5377 * 224 / 1242  # of the streets at this size
SAMPLES = 50  # 0.7 % of a street's pixels, as the publication's 500 of 228x304; 1.6 % of a room's
CURVE = (0, 10, 25, 50, 100, 200, 500)
GROUPS = {
    "bts, streets": "BTS with a MobileNetV3, streets",
    "bts, rooms": "BTS with a MobileNetV3, rooms",
    "cspn, streets": "CSPN with a ResNet-18, streets",
    "cspn, rooms": "CSPN with a ResNet-18, rooms",
}
PROTOCOLS = {"bts, streets": "kitti-garg", "bts, rooms": "imde"}  # completion: sparse-500


def jobs() -> list[Job]:
    found = []
    for group in GROUPS:
        network, dataset = group.split(", ")
        common = {"size": list(SIZES[group]), "fields": ["image", "depth"]}
        settings = {
            "model": "bts_mobilenetv3_small_100",
            "depth_loss": "silog",
            "cfg_layers": BTS_LAYERS,
            "learning_rate": 1e-3,
        }
        if network == "cspn":
            common["sparse_samples"] = SAMPLES
            settings |= {"model": "cspn_resnet18", "depth_loss": "l1", "cfg_layers": CSPN_LAYERS}
        elif dataset == "streets":
            options = {"dataset": "kitti", "focal_reference": round(FOCAL, 4)}
            settings |= {"model_options": options, "depth_loss": "silog_kitti"}
        base = TrainConfig(
            dataset=dataset,
            data_options={**common, "train": {"limit": IMAGES[network]}, "val": {"limit": 40}},
            num_epochs=4,
            batch_size=8,
            schedule="cosine",
            **settings,
        )
        for seed in SEEDS:
            config = replace(base, seed=seed)
            found.append(Job(group, 300, config))
            for layer in config.cfg_layers:
                one = selective(replace(config, cfg_layers=(layer,)), ALPHA)
                found.append(Job(group, 300, one))
    return found


STUDY = Study("other_networks", jobs())


def measure(job: Job) -> dict:
    sets = datasets(job.config, job.test_images)
    model, _ = STUDY.trained(job, sets)
    completes = job.group.startswith("cspn")
    layers = list(CSPN_LAYERS if completes else BTS_LAYERS)
    seen, test = (dissect(model, sets[split], layers) for split in ("seen", "test"))
    protocol = "sparse-500" if completes else PROTOCOLS[job.group]
    result = about(job, sets) | {
        "protocol": protocol,
        "metrics": evaluate(model, sets["test"], protocol=protocol),
        "layers": {
            layer: {
                "train": seen.mean(layer),
                "test": test.mean(layer),
                "uniform": test.floors(layer)["uniform"],
                "collapsed": int((test.sums[layer] == 0).all(1).sum()),
                "units": len(test.sums[layer]),
            }
            for layer in layers
        },
    }
    if completes:
        curve = completion_curve(model, sets["test"], samples=CURVE)
        result["completion"] = curve.to_dict("records")
    return result


# ------------------------------------------------------------------ the report

NOTE = f"""Mean over three seeds (least to largest). A baseline, and a network for each layer that
is trained to be selective (assignment, `imde_alpha` {ALPHA:g}, growing over the first third of the
epochs). Selectivity: definition `paper`, mean over the units of the layer named in the row, on test
images; *baseline*: of the same layer of the baselines; *random units*: what uniformly random
responses score. Depth: protocol `kitti-garg` (BTS, streets), `imde` (BTS, rooms), `sparse-500`
(CSPN, {SAMPLES} samples an image). From scratch, 4 epochs, AdamW 1e-3, cosine schedule, batch 8, no
augmentation: a minute or two on a CPU core, so read differences, not records. The config of every
run is in the JSON beside this page."""


def by_layer(found: list[tuple[Job, dict]]) -> pd.DataFrame:
    """A row a layer trained for and seed: the network's numbers beside its baseline's."""
    rows = []
    base = {j.config.seed: r for j, r in found if j.method == "baseline"}
    for job, result in found:
        if job.method == "baseline" or job.config.seed not in base:
            continue
        (layer,), before = job.config.cfg_layers, base[job.config.seed]
        rows.append(
            {
                "layer": layer,
                "seed": job.config.seed,
                "baseline": before["layers"][layer]["test"],
                "selectivity": result["layers"][layer]["test"],
                "uniform": result["layers"][layer]["uniform"],
                "collapsed": result["layers"][layer]["collapsed"],
                "units": result["layers"][layer]["units"],
                **{k: result["metrics"][k] for k in ("d1", "rms")},
                **{f"{k} baseline": before["metrics"][k] for k in ("d1", "rms")},
            }
        )
    return pd.DataFrame(rows)


def spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})"


def table(rows: pd.DataFrame) -> pd.DataFrame:
    out = {}
    for layer, part in rows.groupby("layer", sort=False):
        out[layer] = {
            "selectivity, baseline": spread(part.baseline),
            "selectivity, assign": spread(part.selectivity),
            "random units": f"{part.uniform.mean():.3f}",
            "higher in": f"{(part.selectivity > part.baseline).sum()} of {len(part)} seeds",
            "units without response": f"{part.collapsed.sum()} of {part.units.sum()}",
            "δ1": spread(part.d1),
            "RMS [m]": spread(part.rms),
        }
    first = rows[rows.layer == rows.layer.iloc[0]]
    out["none (baseline)"] = {"δ1": spread(first["d1 baseline"])} | {
        "RMS [m]": spread(first["rms baseline"])
    }
    return pd.DataFrame(out).T.fillna("").rename_axis("layer trained for")


def verdict(rows: pd.DataFrame) -> str:
    """The two claims, as they come out."""
    higher = (rows.selectivity > rows.baseline).groupby(rows.layer, sort=False).sum()
    first = rows[rows.layer == rows.layer.iloc[0]]
    low, high = first["d1 baseline"].min(), first["d1 baseline"].max()
    means = rows.groupby("layer", sort=False).d1.mean()
    inside = [layer for layer, value in means.items() if low <= value <= high]
    above = [layer for layer, value in means.items() if value > high]
    return (
        "- assign raises test selectivity: "
        + ", ".join(f"{layer} in **{n} of {len(SEEDS)}** seeds" for layer, n in higher.items())
        + f".\n- The mean δ1 lies within the baselines' spread ({low:.3f}–{high:.3f}) for "
        + f"**{len(inside)} of {len(means)}** layers"
        + (f" ({', '.join(inside)})" if inside else "")
        + f", above it for {len(above)}, below it for {len(means) - len(inside) - len(above)}."
    )


def completion(found: list[tuple[Job, dict]]) -> pd.DataFrame:
    """How accuracy falls with fewer samples, a row a number of samples."""
    rows = pd.concat(
        pd.DataFrame(result["completion"]).assign(
            trained="baseline" if job.method == "baseline" else job.config.cfg_layers[0]
        )
        for job, result in found
    )
    keys = {"d1.02": "δ 1.02", "rms": "RMS [m]"}
    out = {
        (word, name): part.groupby("samples")[key].agg(spread)
        for key, word in keys.items()
        for name, part in rows.groupby("trained", sort=False)
    }
    frame = pd.DataFrame(out)
    frame.columns = [f"{word}, {name}" for word, name in frame.columns]
    return frame


def measured(found: list[tuple[Job, dict]]) -> pd.DataFrame:
    """Tables 6 to 8 in the long form that `mde_utils.paper` reads."""
    rows = []
    for job, result in found:
        config = result["config"]
        completes = job.group.startswith("cspn")
        own = "" if job.method == "baseline" else "+".join(config["cfg_layers"])
        common = {
            "dataset": config["dataset"],
            "model": config["model"],
            "method": job.method,
            "group": f"other_networks, {config['num_epochs']} epochs",
            "size": "x".join(map(str, config["data_options"]["size"])),
            "definition": "paper",
            "seed": config["seed"],
            "images": result["metrics"]["n"],
        }

        def put(table, layers, common=common, protocol=result["protocol"], **metrics):
            for metric, value in metrics.items():
                scored = "" if "selectivity" in metric else protocol
                row = {"table": table, "layers": layers, "metric": metric, "protocol": scored}
                rows.append({**common, **row, "value": value})

        for layer in [own] if own else list(result["layers"]):
            one = result["layers"][layer]
            both = {"train_selectivity": one["train"], "selectivity": one["test"]}
            put(6 if completes else 7, layer, **both)
        keys = ("d1", "rms", "rel", "log10")
        if completes:
            keys = ("d1.02", "d1.05", "d1.10", "d1", "d2", "d3", "rms", "rel")
        put(6 if completes else 8, own, **{k: result["metrics"][k] for k in keys})
    return long_form(rows)


def picture(frames: dict[str, pd.DataFrame]):
    """Selectivity by layer, baseline against assign, a line a seed; δ1 below."""
    figure, axes = plt.subplots(
        2, len(frames), figsize=(3.1 * len(frames) + 0.4, 5.4), layout="constrained", squeeze=False
    )
    looks = {"baseline": ("o", "#4477AA"), "assign": ("D", "#EE6677")}
    for (upper, lower), (group, rows) in zip(axes.T, frames.items(), strict=True):
        layers = list(dict.fromkeys(rows.layer))
        for ax, columns in (
            (upper, {"baseline": "baseline", "assign": "selectivity"}),
            (lower, {"baseline": "d1 baseline", "assign": "d1"}),
        ):
            for method, column in columns.items():
                mark, colour = looks[method]
                shift = -0.12 if method == "baseline" else 0.12
                x = rows.layer.map(layers.index) + shift + 0.06 * (rows.seed - 1)
                ax.plot(x, rows[column], mark, color=colour, mec="white", ms=7, label=method)
            ax.set_xticks(range(len(layers)), layers)
            ax.set_xlim(-0.5, len(layers) - 0.5)
            ax.tick_params(labelsize=8)
            ax.spines[["top", "right"]].set_visible(False)
        upper.set_ylim(0, 1)
        for i, layer in enumerate(layers):
            floor = rows[rows.layer == layer].uniform.mean()
            upper.plot([i - 0.35, i + 0.35], [floor, floor], "--", color="0.5", lw=1)
        upper.set_title(group.replace("bts", "BTS").replace("cspn", "CSPN"), fontsize=10)
        lower.set_xlabel("layer trained to be selective", fontsize=8)
    axes[0, 0].set_ylabel("test selectivity of that layer", fontsize=9)
    axes[1, 0].set_ylabel("δ1 on test images", fontsize=9)
    handles = dict(zip(*axes[0, 0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=2,
        fontsize=9,
        title="a mark a seed; dashed: uniformly random units",
        title_fontsize=8,
    )
    return figure


def report() -> None:
    found = STUDY.finished()
    parts, frames, complete = ["# Tables 6, 7 and 8: BTS and CSPN", NOTE], {}, []
    for group, title in GROUPS.items():
        own = [(job, result) for job, result in found if job.group == group]
        # A setting without all its seeds is no result yet.
        if len(own) < sum(job.group == group for job in STUDY.jobs):
            continue
        complete += own
        rows = by_layer(own)
        frames[group] = rows
        test, protocol = own[0][1]["test"], own[0][1]["protocol"]
        parts += [
            f"## {title}",
            f"{'×'.join(map(str, SIZES[group]))}, {own[0][1]['train_images']:,} training images. "
            f"Test: {test}; protocol `{protocol}`.",
            verdict(rows),
            markdown_table(table(rows)),
        ]
        if group.startswith("cspn"):
            parts += ["With fewer and more samples:", markdown_table(completion(own))]
    if frames:
        parts.insert(2, "![Selectivity and δ1 by layer](other_networks.png)")
        with atomic(RESULTS / "other_networks.png") as temporary:
            picture(frames).savefig(temporary, dpi=100)
        with atomic(TABLES / "other_networks.csv") as temporary:
            measured(complete).to_csv(temporary, index=False)
    write_result("other_networks", {"rows": [result for _, result in found]}, "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    STUDY.main(measure, report, __doc__)
