"""Claim: training METER-XXS on a CPU takes in at least 1.25 times the images a second of the METER
notebook's plain loop, on the same real frames, at the same batch size, one process each in turn.

The plain loop decodes JPEG and PNG with PIL at every access and trains contiguous float32. `fit`
reads the cache, trains channels_last, keeps freed memory, and logs selectivity of two layers.
"""

import json
import subprocess
import sys
import time

import numpy as np
import torch
from _common import median, ratio, real_data, write_result
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

from mde_utils.data import load_dataset
from mde_utils.losses import balanced_loss
from mde_utils.models import build_model
from mde_utils.training import TrainConfig, fit

SIZE, STEPS, ROUNDS = (192, 256), 9, 3


class Frames(Dataset):
    """Decoded anew at every access, as in the METER notebook."""

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        image, depth = self.files[index]
        height, width = SIZE
        image = Image.open(image).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        depth = Image.open(depth).resize((width, height), Image.Resampling.NEAREST)
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return image, torch.from_numpy(np.array(depth)).float()[None] * (10 / 255)


def frames(count):
    return load_dataset("nyu", "train", root=real_data() / "nyu", size=SIZE, limit=count)


def plain(batch_size: int) -> float:
    """Images a second of the notebook's loop."""
    files = frames(batch_size * (STEPS + 1)).files
    loader = DataLoader(Frames(files), batch_size=batch_size, shuffle=True, drop_last=True)
    model = build_model("meter_xxs").train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-2)
    start = 0.0
    for step, (image, depth) in enumerate(loader):
        if step == 1:  # the first step warms up
            start = time.perf_counter()
        pred = model(image)
        target = nn.functional.interpolate(depth, pred.shape[-2:], mode="nearest")
        loss = 0.01 * balanced_loss(pred, target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return batch_size * STEPS / (time.perf_counter() - start)


def suite(batch_size: int) -> float:
    """Images a second of `fit`: its own number, of a second epoch, as the first one warms up."""
    data = frames(batch_size * STEPS)
    config = TrainConfig(cfg_layers=("dec_3", "enc_4"), num_epochs=2, batch_size=batch_size)
    validation = [data[0]]
    return fit(build_model("meter_xxs"), data, validation, config).frame.images_per_s.iloc[-1]


def main():
    if len(sys.argv) == 3:  # the process of one measurement
        print(json.dumps({"plain": plain, "suite": suite}[sys.argv[1]](int(sys.argv[2]))))
        return
    rows = []
    for batch_size in (16, 64):
        frames(batch_size * (STEPS + 1)), frames(batch_size * STEPS)  # decode, before the clock
        speeds = {"plain": [], "suite": []}
        for _ in range(ROUNDS):
            for name, values in speeds.items():
                command = [sys.executable, __file__, name, str(batch_size)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(json.loads(done.stdout.splitlines()[-1]))
        pairs = [ratio(a, b) for a, b in zip(speeds["suite"], speeds["plain"], strict=True)]
        rows.append(
            {
                "batch_size": batch_size,
                **{f"{name}_images_per_s": median(values) for name, values in speeds.items()},
                "ratio": median(pairs),
                "ratios": pairs,
            }
        )
    table = "\n".join(
        f"| {r['batch_size']} | {r['plain_images_per_s']:.0f} | {r['suite_images_per_s']:.0f} "
        f"| **{r['ratio']:.2f}** ({min(r['ratios']):.2f}–{max(r['ratios']):.2f}) |"
        for r in rows
    )
    markdown = (
        "# Training on a CPU\n\nMETER-XXS at 192×256 on real NYU frames, images a second. "
        "The plain "
        "loop of the METER notebook (PIL, contiguous float32, no selectivity) "
        "against `fit` (cache, channels_last, freed memory kept, selectivity of two layers "
        f"logged); a process each, {ROUNDS} rounds in turn, median (least to largest).\n\n"
        "| batch | plain loop | `fit` | ratio |\n|---|---|---|---|\n" + table
    )
    write_result("training_speed", {"rows": rows}, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
