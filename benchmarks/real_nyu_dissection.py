"""The published METER-XXS weights on real frames of NYU Depth V2: accuracy, and selectivity of all
16 layers on training and test frames under both definitions, with the bins that hold pixels.

    MDE_METER_WEIGHTS=meter_xxs_nyu.pth python benchmarks/real_nyu_dissection.py
"""

import os

import matplotlib

matplotlib.use("Agg")
import pandas as pd
from _common import RESULTS, markdown_table, real_data, write_result

from mde_utils.data import load_dataset
from mde_utils.dissection import dissect
from mde_utils.evaluation import describe_protocol, evaluate
from mde_utils.models import build_model
from mde_utils.views.plots import plot_selectivity

# The original METER network and weights on the same frames, measured once outside this suite.
ORIGINAL = {"d1": 0.793, "d2": 0.957, "d3": 0.990, "rms": 0.531, "rel": 0.146, "log10": 0.062}
SCALE = (
    "The sample's metric scale was recovered from an 8-bit copy of the depth maps by the Kinect's "
    "quantisation steps: expect a scale error of 1–3 % on some images and steps of 6–39 mm."
)


def weights() -> str:
    """The authors' file: $MDE_METER_WEIGHTS, else beside the frames, else downloaded."""
    beside = real_data().parent / "weights" / "meter_xxs_nyu.pth"
    given = os.environ.get("MDE_METER_WEIGHTS")
    return str(given or (beside if beside.is_file() else "published"))


def main():
    model = build_model("meter_xxs", weights=weights())
    sets = {
        split: load_dataset("nyu", split, root=real_data() / "nyu", size=(192, 256))
        for split in ("train", "test")
    }
    metrics = {p: evaluate(model, sets["test"], protocol=p) for p in ("imde", "mff")}
    seen = {split: dissect(model, data, list(model.taps)) for split, data in sets.items()}
    columns = {}
    for split, dissection in seen.items():
        for definition in ("paper", "reference"):
            summary = dissection.under(definition).summary()
            columns[f"{split}, {definition}"] = summary.selectivity
            if definition == "reference":
                columns[f"{split}, flat floor (reference)"] = summary.flat
        columns[f"{split}, bins with pixels"] = summary.populated.astype(str).str.cat(
            summary.bins.astype(str), sep="/"
        )
        columns[f"{split}, uniform floor (paper)"] = dissection.summary().uniform
    table = pd.DataFrame(columns)
    table.insert(0, "units", seen["test"].summary().units)

    figure = plot_selectivity({f"{split} ({len(sets[split])})": seen[split] for split in sets})
    figure.savefig(RESULTS / "real_nyu_dissection.png", dpi=90)

    shown = ["d1", "d2", "d3", "rms", "rel", "log10"]
    accuracy = pd.DataFrame(
        {p: {k: m[k] for k in shown} for p, m in metrics.items()}
        | {"original network (imde)": ORIGINAL}
    ).T
    markdown = "\n\n".join(
        [
            "# Published METER-XXS on real NYU frames",
            f"{metrics['imde']['n']} test and {len(sets['train'])} training frames at 192×256. "
            + SCALE,
            "## Accuracy, test (RMS in metres)",
            markdown_table(accuracy),
            "\n".join(f"- {describe_protocol(p, cap=10)}" for p in metrics),
            "## Mean depth selectivity of each layer",
            markdown_table(table),
            "A floor is what units without any tuning score at these bins: flat = one response "
            "everywhere, uniform = random responses. Under `paper` a flat unit scores 0.",
            "![selectivity of every unit](real_nyu_dissection.png)",
        ]
    )
    result = {"metrics": metrics, "layers": table.reset_index().to_dict("records")}
    write_result("real_nyu_dissection", result, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
