"""Claims: dissecting all 16 layers of METER-XXS costs about 1.25 times the plain forward passes
over the same loader, and the four layers of MFF at most 1.10 times; memory does not grow from 100
to 5,000 images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import torch
from _common import paired_times, write_result

from mde_utils.data import load_dataset
from mde_utils.data.loading import batches
from mde_utils.dissection import dissect
from mde_utils.models import build_model

CASES = [  # model, images, size, repeats
    ("meter_xxs", 128, (192, 256), 15),
    ("mff_resnet18", 16, (228, 304), 5),
]
BATCH = 16


class Repeated:
    """A data set of any length that costs no memory: the same few items again and again."""

    depth_range = (0.75, 10.0)

    def __init__(self, items, length):
        self.items, self.length = items, length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        return self.items[i % len(self.items)]


def peak_memory(images: int) -> float:
    """MiB, of a process of its own that dissects so many images."""
    done = subprocess.run(
        [sys.executable, __file__, str(images)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure_memory(images: int) -> None:
    torch.manual_seed(0)
    items = [
        {"image": torch.rand(3, 61, 64), "depth": torch.rand(1, 61, 64) * 10} for _ in range(8)
    ]
    model = build_model("meter_xxs")
    dissect(model, Repeated(items, images), list(model.taps))
    # Not getrusage: its peak counts what the parent held when it started this process.
    status = Path("/proc/self/status").read_text()
    print(json.dumps(int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 1024))


def measure_time(name: str, images: int, size: tuple[int, int], repeats: int) -> dict:
    data = load_dataset("rooms", "test", size=size, limit=images, fields=("image", "depth"))
    model = build_model(name).eval()
    layers = list(model.taps)

    def forward():
        with torch.no_grad():
            for _, batch in batches(data, range(len(data)), BATCH, ("image", "depth")):
                model(batch["image"])

    dissected, plain, ratio = paired_times(
        lambda: dissect(model, data, layers, batch_size=BATCH), forward, repeats=repeats
    )
    return {
        "model": name,
        "layers": layers,
        "images": len(data),
        "size": size,
        "forward_s": plain,
        "dissect_s": dissected,
        "ratio": ratio,
    }


def main():
    rows = [measure_time(*case) for case in CASES]
    memory = {n: peak_memory(n) for n in (100, 1000, 5000)}
    peaks = " · ".join(f"{n:,} images: {mib:.0f} MiB" for n, mib in memory.items())
    table = "\n".join(
        f"| {r['model']} at {r['size'][0]}×{r['size'][1]}, all {len(r['layers'])} layers "
        f"| {r['images']} | {r['forward_s']:.2f} s | {r['dissect_s']:.2f} s "
        f"| **{r['ratio']:.2f}** |"
        for r in rows
    )
    markdown = (
        f"# The cost of a dissection\n\nRooms in batches of {BATCH}; plain forward passes and "
        "dissection take turns, the median over pairs.\n\n"
        "| network, layers | images | forward passes | dissection | ratio |\n"
        "|---|---|---|---|---|\n" + table + "\n\n"
        f"Peak memory of the process (METER-XXS, 61×64 images, all layers): {peaks}."
    )
    write_result("dissection_cost", {"rows": rows, "peak_memory_MiB": memory}, markdown)
    print(markdown)


if __name__ == "__main__":
    measure_memory(int(sys.argv[1])) if len(sys.argv) > 1 else main()
