"""Depth from stereo pairs on rendered streets: what each of EPCDepth's four parts does, and which
units of a network that never saw a depth value are depth-selective.

The whole of it, without each part, and without all four, with RSU blocks and with a plain decoder;
the same network learning from true depth; both made selective, the self-supervised one by its own
depth, so without a label; the whole and the baselines over the publication's ResNet-18; over seeds.
On test pictures as they are, and moved up and down or with their halves swapped, so that height in
the picture misleads.

    python benchmarks/self_supervised.py              # tables and figure of what is trained
    python benchmarks/self_supervised.py --train 2    # train and measure what is missing

Takes two and a half hours on two cores. Runs live in runs/self_supervised and go on where they were
cut short.
"""

from dataclasses import replace
from functools import partial

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch.nn.functional as F
from _common import RESULTS, TABLES, markdown_table, write_result
from _trainings import SEEDS, Job, Study, about, datasets, selective

from mde_utils.data import load_dataset
from mde_utils.data.transforms import network_input
from mde_utils.dissection import dissect
from mde_utils.environment import seed_everything
from mde_utils.evaluation import evaluate, photometric, swapped_halves
from mde_utils.files import atomic
from mde_utils.models import build_model
from mde_utils.training import TrainConfig

SIZE, BASELINE, IMAGES, EPOCHS = (64, 208), 0.54, 400, 6
OPTIONS = {"size": list(SIZE), "baseline": BASELINE, "val": {"limit": 40}}
TRAINING = {"limit": IMAGES, "augment": "epc"}
HINTS = (128, 416)  # where pairs are matched; at the networks' size it is too coarse for far depth
MODEL = "epcdepth_test_resnet"
ALPHA = -3.0  # as in other_networks.md
OWN_ALPHA = -0.5  # the stereo loss is a fourth of the supervised one, and early depth a bad teacher
TRAINED_LAYERS = ("stage1d", "stage2d")
LAYERS = ("stage1d", "stage2d", "stage3d", "layer2")
ROOMS, ROOM_SIZE, ROOM_INPUT = 200, (96, 128), (64, 88)
WITHOUT = {  # the parts of the publication's table 4, and what switches each off
    "hints": {"hints": False},
    "grafting": {"graft": False},
    "full scale": {"scales": 5},
    "distillation": {"distillation": 0.0},
}
PLAIN = {key: value for part in WITHOUT.values() for key, value in part.items()}
STEREO = {
    "EPCDepth": {},
    **{f"without {part}": switch for part, switch in WITHOUT.items()},
    "none of the four": PLAIN,
}
SUPERVISED = "true depth"
OWN, TRUTH = "EPCDepth, selective by its own depth", "true depth, selective by it"
LONGER = 3  # times as many epochs: is it that grafting needs longer training?
LONG_GROUPS = [f"{name}, {LONGER * EPOCHS} epochs" for name in ("EPCDepth", "none of the four")]
PLAIN_DECODER = "none, and a plain decoder"  # monodepth2's
LARGE, LARGE_RATE, LARGE_HINTS = "epcdepth_resnet18", 5e-4, (192, 640)  # the publication's network
WITH_LARGE = ", ResNet-18"  # at the end of its groups' names
LARGE_GROUPS = [n + WITH_LARGE for n in ("EPCDepth", "none of the four", PLAIN_DECODER)]
MOVED = SIZE[0] // 8  # rows
RANDOM = "random weights"
LARGE_RANDOM = RANDOM + WITH_LARGE
PROTOCOL = "epc-kitti"


def jobs() -> list[Job]:
    found = []
    for seed in SEEDS:
        base = TrainConfig.recipe(
            "epc_paper",
            model=MODEL,
            model_options={"baseline": BASELINE},
            weights=None,
            dataset="streets",
            learning_rate=1e-3,
            schedule="cosine",
            num_epochs=EPOCHS,
            cfg_layers=TRAINED_LAYERS,
            seed=seed,
        )
        # Not through `recipe`, which adds to what it has: KITTI's options.
        base = replace(base, data_options={**OPTIONS, "train": TRAINING})
        hinted = replace(base, data_options={**OPTIONS, "train": TRAINING | {"hints": list(HINTS)}})
        configs = {
            name: replace(hinted if stereo.get("hints", True) else base, stereo=stereo)
            for name, stereo in STEREO.items()
        }
        plain = {key: value for key, value in PLAIN.items() if key != "scales"}  # it has four
        configs[PLAIN_DECODER] = replace(
            base, stereo=plain, model_options={**base.model_options, "decoder": "plain"}
        )
        for group in LARGE_GROUPS:
            small = configs[group.removesuffix(WITH_LARGE)]
            config = replace(small, model=LARGE, learning_rate=LARGE_RATE)
            own = config.data_options["train"]
            if "hints" in own:
                own = own | {"hints": list(LARGE_HINTS)}
            configs[group] = replace(config, data_options={**OPTIONS, "train": own})
        configs[SUPERVISED] = replace(base, depth_loss="silog_kitti")
        configs[OWN] = selective(hinted, OWN_ALPHA, imde_depth="own", imde_warmup=4.0)
        configs[TRUTH] = selective(configs[SUPERVISED], ALPHA)
        found += [Job(name, 300, config) for name, config in configs.items()]
    first = {job.group: job.config for job in found if job.config.seed == SEEDS[0]}
    for group in LONG_GROUPS:
        config = replace(first[group.split(",")[0]], num_epochs=LONGER * EPOCHS)
        found.append(Job(group, 300, config))
    return found


STUDY = Study("self_supervised", jobs())


def measure(job: Job) -> dict:
    sets = datasets(job.config, job.test_images)
    model, _ = STUDY.trained(job, sets)
    return about(job, sets) | measured(model, sets["test"])


def measured(model, test) -> dict:
    seen = dissect(model, test, list(LAYERS))
    with swapped_halves(model):
        swapped = evaluate(model, test, protocol=PROTOCOL)
    rooms = load_dataset(
        "rooms",
        "test",
        size=ROOM_SIZE,
        limit=ROOMS,
        augment=partial(network_input, size=ROOM_INPUT),
        fields=("image", "depth"),
    )
    return {
        "protocol": PROTOCOL,
        "metrics": evaluate(model, test, protocol=PROTOCOL),
        "post_processed": evaluate(model, test, protocol=PROTOCOL, post_process=True),
        "swapped": swapped,
        "moved": {rows: evaluate_moved(model, test, rows) for rows in (MOVED, -MOVED)},
        "photometric": photometric(model, test),
        "rooms": evaluate(model, rooms, protocol="epc-nyu"),
        "layers": {
            layer: {
                "test": seen.mean(layer),
                "uniform": seen.floors(layer)["uniform"],
                "collapsed": int((seen.sums[layer] == 0).all(1).sum()),
                "units": len(seen.sums[layer]),
            }
            for layer in LAYERS
        },
    }


def evaluate_moved(model, test, rows: int) -> dict[str, float]:
    """Each picture moved down by `rows` (up where below 0), its edge repeated, as by a camera that
    is tilted; the map is moved back, and what is still in sight is judged."""

    def move(x, rows):
        padded = F.pad(x, (0, 0, max(rows, 0), max(-rows, 0)), mode="replicate")
        return padded[..., : x.shape[-2], :] if rows > 0 else padded[..., -x.shape[-2] :, :]

    items = []
    for index in range(len(test)):
        item = dict(test[index])
        item["depth"] = item["depth"].clone()
        gone = slice(-rows, None) if rows > 0 else slice(0, -rows)
        item["depth"][:, gone] = 0
        items.append(item)
    hooks = (
        model.register_forward_pre_hook(lambda _, args: (move(args[0], rows), *args[1:])),
        model.register_forward_hook(lambda _, __, depth: move(depth, -rows)),
    )
    try:
        return evaluate(model, items, protocol=PROTOCOL, cap=test.depth_range[1])
    finally:
        for hook in hooks:
            hook.remove()


def untrained() -> list[dict]:
    """The networks as they begin, a seed each."""
    job = STUDY.jobs[0]
    test = datasets(job.config, job.test_images)["test"]
    rows = []
    for group, name in ((RANDOM, MODEL), (LARGE_RANDOM, LARGE)):
        for seed in SEEDS:
            seed_everything(seed)
            model = build_model(name, **job.config.model_options)
            rows.append({"group": group, "seed": seed, **measured(model, test)})
    return rows


# ------------------------------------------------------------------ the report

NOTE = f"""Mean over three seeds (least to largest). {MODEL} at {"×".join(map(str, SIZE))}, {IMAGES}
rendered pairs of streets, {EPOCHS} epochs, Adam 1e-3 with a cosine schedule, batch 8, from scratch,
weights after the last epoch: minutes on a CPU core, so read differences, not records. Test: 300
streets; depth under protocol `{PROTOCOL}`, in metres by the known baseline ({BASELINE} m), without
median scaling. *Moved*: when each picture is moved up or down by an eighth of its height, as by a
camera tilted by nearly 4 degrees (mean of the two; what is still in sight counts). *Swapped*: when
the lower half of each picture is shown above the upper one; training with grafting has shown it
pictures cut in such a way. *ResNet-18*: {LARGE}, the
publication's network, from scratch, Adam {LARGE_RATE:g} (no learning rate here was tuned), hints
matched at {"×".join(map(str, LARGE_HINTS))}, those of the small network at
{"×".join(map(str, HINTS))}. *Photometric*: mean error of the warped other picture, all pixels.
*Plain decoder*: monodepth2's instead of RSU blocks. *Rooms*: protocol
`epc-nyu` (median scaling) on {ROOMS} rooms, which no network has seen. The config of every run is
in the JSON beside this page."""


def frame_of(results: list[dict]) -> pd.DataFrame:
    rows = []
    for result in results:
        metrics, rooms = result["metrics"], result["rooms"]
        rows.append(
            {
                "group": result["group"],
                "seed": result["config"]["seed"] if "config" in result else result["seed"],
                "δ1": metrics["d1"],
                "REL": metrics["rel"],
                "RMS [m]": metrics["rms"],
                "REL, post-processed": result["post_processed"]["rel"],
                "REL, swapped": result["swapped"]["rel"],
                "REL, moved": sum(one["rel"] for one in result["moved"].values()) / 2,
                "photometric": result["photometric"],
                "δ1, rooms": rooms["d1"],
                "REL, rooms": rooms["rel"],
                **{layer: result["layers"][layer]["test"] for layer in LAYERS},
                **{f"{layer} uniform": result["layers"][layer]["uniform"] for layer in LAYERS},
                **{f"{layer} collapsed": result["layers"][layer]["collapsed"] for layer in LAYERS},
            }
        )
    return pd.DataFrame(rows)


def spread(values: pd.Series) -> str:
    return f"{values.mean():.3f} ({values.min():.3f}–{values.max():.3f})"


def table(frame: pd.DataFrame, groups, columns) -> pd.DataFrame:
    out = {g: {c: spread(frame[frame.group == g][c]) for c in columns} for g in groups}
    return pd.DataFrame(out).T.rename_axis("trained with")


def pairs(frame: pd.DataFrame, column: str, one: str, other: str) -> pd.Series:
    """one - other, a seed each."""
    by = frame.pivot(index="seed", columns="group", values=column)
    return by[one] - by[other]


def effects(frame: pd.DataFrame) -> str:
    """What becomes worse, and in how many seeds, when a part is left out."""
    left_out = [
        *((part, "EPCDepth", f"without {part}") for part in WITHOUT),
        ("all four: the plain photometric baseline", "EPCDepth", "none of the four"),
        ("the other three, grafting being out already", "without grafting", "none of the four"),
        ("all four, and the RSU decoder", "EPCDepth", PLAIN_DECODER),
        ("all four" + WITH_LARGE, "EPCDepth" + WITH_LARGE, "none of the four" + WITH_LARGE),
        (
            "all four, and the RSU decoder" + WITH_LARGE,
            "EPCDepth" + WITH_LARGE,
            PLAIN_DECODER + WITH_LARGE,
        ),
    ]
    rows = {}
    for words, whole, without in left_out:
        rows[words] = {}
        for column in ("REL", "REL, moved", "REL, swapped"):
            gap = pairs(frame, column, without, whole)
            rows[words][f"change of {column}"] = (
                f"{gap.mean():+.3f} ({gap.min():+.3f} to {gap.max():+.3f}), "
                f"worse in **{(gap > 0).sum()} of {gap.count()}**"
            )
    return markdown_table(pd.DataFrame(rows).T.rename_axis("left out"))


def selectivity_verdict(frame: pd.DataFrame) -> str:
    lines = []
    for one, other, words in (
        ("EPCDepth", RANDOM, "never saw depth, against random weights"),
        ("EPCDepth", SUPERVISED, "never saw depth, against true depth"),
        (LARGE_GROUPS[0], LARGE_RANDOM, "never saw depth, against random weights, ResNet-18"),
        (OWN, "EPCDepth", "made selective by its own depth, against not"),
        (TRUTH, SUPERVISED, "true depth, made selective, against not"),
    ):
        found = [
            f"{layer} {gap.mean():+.3f} (higher in {(gap > 0).sum()} of {gap.count()})"
            for layer in LAYERS
            for gap in [pairs(frame, layer, one, other)]
        ]
        lines.append(f"- {words}: " + ", ".join(found) + ".")
    return "\n".join(lines)


def picture(frame: pd.DataFrame):
    """Left, the error of each ablation; right, selectivity by layer. A mark a seed."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9.6, 5.6), layout="constrained", width_ratios=(1, 1.2)
    )
    groups = [*STEREO, PLAIN_DECODER, SUPERVISED, *LARGE_GROUPS]
    marks = (
        ("REL", "as they are", "#4477AA"),
        ("REL, moved", "moved up or down by ⅛", "#009988"),
        ("REL, swapped", "halves swapped", "#EE7733"),
    )
    for (column, label, colour), row in zip(marks, (-0.25, 0, 0.25), strict=True):
        for i, group in enumerate(groups):
            values = frame[frame.group == group][column]
            y = [i + row] * len(values)
            left.plot(values, y, "o", color=colour, mec="white", ms=6, label=label)
            left.plot(values.median(), i + row, "|", color="black", ms=7)
            label = None
    left.axhline(len(groups) - len(LARGE_GROUPS) - 0.5, color="0.8", lw=1)
    left.set_yticks(range(len(groups)), groups)
    left.invert_yaxis()
    left.set_xlabel("relative error on test streets (left is better)")
    left.legend(fontsize=8, title="test pictures", title_fontsize=8)
    looks = {
        RANDOM: ("s", "0.55"),
        "EPCDepth": ("o", "#4477AA"),
        OWN: ("D", "#EE6677"),
        SUPERVISED: ("v", "#228833"),
        TRUTH: ("^", "#CCBB44"),
    }
    for j, (group, (mark, colour)) in enumerate(looks.items()):
        own = frame[frame.group == group]
        for i, layer in enumerate(LAYERS):
            x = i + 0.15 * (j - 2) + 0.03 * (own.seed - 1)
            label = group if i == 0 else None
            right.plot(x, own[layer], mark, color=colour, mec="white", ms=7, label=label)
    for i, layer in enumerate(LAYERS):
        floor = frame[f"{layer} uniform"].mean()
        label = "uniformly random responses" if i == 0 else None
        right.plot([i - 0.42, i + 0.42], [floor, floor], "--", color="0.4", lw=1, label=label)
    right.set_xticks(range(len(LAYERS)), LAYERS)
    right.set_ylim(0, 1)
    right.set_ylabel("selectivity on test streets")
    right.set_xlabel("layer (made selective: stage1d, stage2d)")
    for ax in (left, right):
        ax.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *right.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        title="left: a mark a seed, a line the median; right: a mark a seed",
    )
    return figure


def report() -> None:
    found = STUDY.finished()
    if len(found) < len(STUDY.jobs):
        print(f"{len(found)} of {len(STUDY.jobs)} trainings are done: no report yet.")
        return
    results = [result for _, result in found]
    frame = frame_of(results + untrained())
    depth = [
        "REL",
        "RMS [m]",
        "δ1",
        "REL, moved",
        "REL, swapped",
        "REL, post-processed",
        "photometric",
    ]
    selective_groups = [RANDOM, "EPCDepth", OWN, SUPERVISED, TRUTH, LARGE_RANDOM, LARGE_GROUPS[0]]
    rooms = [*selective_groups, *list(STEREO)[1:], PLAIN_DECODER, *LARGE_GROUPS[1:]]
    floors = ", ".join(f"{layer} {frame[f'{layer} uniform'].mean():.3f}" for layer in LAYERS)
    trained = frame[~frame.group.isin([RANDOM, LARGE_RANDOM])]
    failed = [f"{row.group}, seed {row.seed}" for row in trained[trained["δ1"] < 0.1].itertuples()]
    dead = int(trained[[f"{layer} collapsed" for layer in LAYERS]].to_numpy().sum())
    parts = [
        "# EPCDepth on streets: its four parts, and its units",
        NOTE,
        "![Error by part, selectivity by training](self_supervised.png)",
        "## The four parts",
        "Each row leaves parts out: above 0, depth is worse without them; bold, in how many seeds.",
        effects(frame),
        f"Trainings that did not learn at all (δ1 below 0.1), yet are in all means and counts: "
        f"{'; '.join(failed) or 'none'}.",
        markdown_table(table(frame, [*STEREO, PLAIN_DECODER, *LARGE_GROUPS, SUPERVISED], depth)),
        f"With {LONGER * EPOCHS} epochs, one seed (an anecdote, no comparison):",
        markdown_table(table(frame, LONG_GROUPS, depth)),
        "## Are the units of a network that never saw depth depth-selective?",
        f"Definition `paper`, mean over a layer's units. Uniformly random responses: {floors}. "
        f"Units without response, all trained networks together: {dead}.",
        selectivity_verdict(frame),
        markdown_table(table(frame, selective_groups, [*LAYERS, "REL"])),
        "## Rooms, never seen",
        markdown_table(table(frame, rooms, ["REL, rooms", "δ1, rooms"])),
    ]
    with atomic(RESULTS / "self_supervised.png") as temporary:
        picture(frame).savefig(temporary, dpi=100)
    with atomic(TABLES / "self_supervised.csv") as temporary:
        frame.round(4).to_csv(temporary, index=False)
    write_result("self_supervised", {"rows": results}, "\n\n".join(parts))
    print("\n\n".join(parts))


if __name__ == "__main__":
    STUDY.main(measure, report, __doc__)
