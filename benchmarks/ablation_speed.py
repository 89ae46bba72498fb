"""How many times faster an ablation curve of the 128 units of D and MFF is than 128 full
evaluations, one with each number of removed units. 10 was hoped for; but one 5x5 convolution of 128
units behind both layers has to run anew at every step.

At 64×128 everything is run. At 228×304 one image takes seconds a forward pass on two cores: there
the curve is run whole, a few of the full evaluations are, and 128 times their median is taken.
"""

import sys
import time

import pandas as pd
import torch
from _common import markdown_table, median, ratio, write_result

from mde_utils.data import load_dataset
from mde_utils.dissection import dissect
from mde_utils.edits import ablate
from mde_utils.evaluation import evaluate
from mde_utils.interventions import ablation_curve
from mde_utils.models import build_model

LAYERS, UNITS, ROUNDS = ["D", "MFF"], 128, 3
CASES = {  # name → model, size, images, full evaluations that are run in each round
    "small": ("mff_resnet18", (64, 128), 8, UNITS),
    "full": ("mff_resnet50", (228, 304), 2, 4),
}


def timed(function):
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    result = function()
    wait()
    return time.perf_counter() - start, result


def measure(case: str) -> dict:
    name, size, images, evaluations = CASES[case]
    torch.manual_seed(0)
    data = load_dataset("rooms", "test", size=size, limit=images, fields=("image", "depth"))
    data = [data[i] for i in range(images)]  # rendered before the clock starts
    model = build_model(name).eval()
    model.R.conv2.bias.data.fill_(3)  # metres; untrained, it would predict about 0
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    seen = dissect(model, data, LAYERS)
    points = range(1, UNITS + 1)

    def curve():
        return ablation_curve(model, data, seen, LAYERS, orders="most", points=points)

    order = curve().units[0]  # and warm up
    measured = [round((k + 1) * UNITS / evaluations) for k in range(evaluations)]

    def full(removed: int) -> dict:
        units: dict[str, list[int]] = {}
        for layer, unit in order[:removed]:
            units.setdefault(layer, []).append(unit)
        with ablate(model, units):
            return evaluate(model, data)

    curves, fulls, apart = [], [], 0.0
    for _ in range(ROUNDS):
        seconds, found = timed(curve)
        curves.append(seconds)
        runs = [timed(lambda n=n: full(n)) for n in measured]
        each = [seconds for seconds, _ in runs]
        fulls.append(sum(each) if evaluations == UNITS else UNITS * median(each))
        frame = found.frame.set_index("removed")
        pairs = zip(measured, runs, strict=True)
        apart = max(apart, *(abs(frame.loc[n, "rms"] / r["rms"] - 1) for n, (_, r) in pairs))
    return {
        "model": name,
        "size": list(size),
        "images": images,
        "units": UNITS,
        "full_evaluations_run": evaluations,
        "full_evaluations_extrapolated": evaluations < UNITS,
        "curve_s": median(curves),
        "full_s": median(fulls),
        "ratio": median(ratio(slow, fast) for slow, fast in zip(fulls, curves, strict=True)),
        "largest_relative_difference_of_rms": apart,
    }


def main(cases):
    found = {case: measure(case) for case in cases}
    rows = [
        {
            "network": f"{r['model']}, {r['size'][0]}×{r['size'][1]}, {r['images']} images",
            "curve [s]": r["curve_s"],
            "128 evaluations [s]": r["full_s"],
            "of these run": r["full_evaluations_run"],
            "times faster": r["ratio"],
        }
        for r in found.values()
    ]
    apart = max(r["largest_relative_difference_of_rms"] for r in found.values())
    markdown = (
        "# An ablation curve against full evaluations\n\n"
        f"Units of D and MFF removed one after another, most selective first; medians of {ROUNDS} "
        "rounds, in which curve and full evaluations take turns. Where fewer than 128 evaluations "
        "were run, the time is 128 times their median.\n\n"
        f"{markdown_table(pd.DataFrame(rows).set_index('network'), 2)}\n\n"
        f"Largest relative difference of RMS between curve and full evaluation: {apart:.1e}."
    )
    write_result("ablation_speed", found, markdown)
    print(markdown)


if __name__ == "__main__":
    main(sys.argv[1:] or list(CASES))
