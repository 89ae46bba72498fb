"""One visit to a GPU: rooms and streets rendered on the card and kept there, the METERs trained by
their recipe, and what all that costs, measured. Called by `train_shipped.py --gpu MINUTES`.

Everything is planned for a deadline: as many epochs as fit are trained, weights are written as soon
as they are there, and the measured table (`gpu.json`, `gpu.md`) comes before the trainings.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
from notebook_tools import write_text
from shipped_networks import NETWORKS
from torch import nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tvf

from mde_utils import build_model, dissect, pool_by_bin, tap
from mde_utils.data.loading import Batch
from mde_utils.depth_bins import RANGES, DepthBins
from mde_utils.environment import amp_dtype, pick_device, seed_everything
from mde_utils.losses import balanced_loss
from mde_utils.passes import model_batches
from mde_utils.selectivity import SelectivityLoss
from mde_utils.training import TrainConfig, fit
from scenes.rooms import ROOMS
from scenes.streets import STREETS
from scenes.world import photograph

WORLDS = {"rooms": ROOMS, "streets": STREETS}
TOGETHER = 16  # scenes a launch of the renderer


class OnDevice(Dataset):
    """Rendered items that stay on the card; a batch is gathered, mirrored and recoloured there."""

    def __init__(self, world, split: str, image, depth, *, augment: bool):
        self.name, self.depth_range = f"{world.name}/{split}", RANGES[world.name]
        self.image, self.depth, self.augment = image, depth, augment

    def __len__(self):
        return len(self.image)

    def __getitem__(self, index):
        image = self.image[index].float() / 255
        return {"image": image, "depth": self.depth[index], "name": f"{self.name}/{index:06d}"}

    def seeded_batch(self, indices, seed: int) -> Batch:
        """Items at `indices`, augmented as `epc_augment` does, by one draw for the whole batch but
        for the mirror, which is each picture's own."""
        at = torch.tensor(indices, device=self.image.device)
        image, depth = self.image[at].float() / 255, self.depth[at]
        if self.augment:
            draw = torch.Generator().manual_seed(seed)
            turned = (torch.rand(len(at), generator=draw) < 0.5).to(at.device).view(-1, 1, 1, 1)
            image = torch.where(turned, image.flip(-1), image)
            depth = torch.where(turned, depth.flip(-1), depth)
            if torch.rand((), generator=draw) < 0.5:
                gains = (0.8 + 0.4 * torch.rand(3, generator=draw)).tolist()
                image = tvf.adjust_brightness(image, gains[0])
                image = tvf.adjust_contrast(image, gains[1])
                image = tvf.adjust_saturation(image, gains[2])
                image = tvf.adjust_hue(image, 0.2 * torch.rand((), generator=draw).item() - 0.1)
        items = Batch({"name": f"{self.name}/{index:06d}"} for index in indices)
        items.stacked = {"image": image, "depth": depth}
        return items


def _make(arguments):
    """In a worker: the scenes and cameras of some indices; they cost as much as the pictures."""
    torch.set_num_threads(1)
    world, split, indices = arguments
    return indices, WORLDS[world].make(split, indices, "cpu")


def rendered(pool, name: str, split: str, count: int, size, device, *, augment=False):
    """The data set, and the images a second."""
    world, start = WORLDS[name], time.perf_counter()
    image = torch.empty(count, 3, *size, dtype=torch.uint8, device=device)
    depth = torch.empty(count, 1, *size, device=device)
    todo = [(name, split, [*range(i, min(i + TOGETHER, count))]) for i in range(0, count, TOGETHER)]
    for indices, made in pool.imap_unordered(_make, todo):
        for index, item in zip(
            indices, photograph(world, split, indices, size, device=device, made=made), strict=True
        ):
            image[index] = (item["image"] * 255).round_().to(torch.uint8)
            depth[index] = item["depth"]
    wait(device)
    found = OnDevice(world, split, image, depth, augment=augment)
    return found, count / (time.perf_counter() - start)


def wait(device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds(function, device, repeats: int = 10) -> float:
    """Of one call, once it is warm."""
    for _ in range(3):
        function()
    wait(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    wait(device)
    return (time.perf_counter() - start) / repeats


def network_alone(data: OnDevice, config: TrainConfig, device, *, selective: bool) -> float:
    """Seconds of a step on one batch that is there already: no data, no log."""
    model = build_model(config.model).to(device, memory_format=torch.channels_last).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = data.seeded_batch([*range(min(config.batch_size, len(data)))], seed=0).stacked
    image = batch["image"].contiguous(memory_format=torch.channels_last)
    selectivity, dtype = SelectivityLoss(data.depth_range, "assign"), amp_dtype(device)

    def step():
        with tap(model, config.cfg_layers, detach=False) as acts:
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                pred = model(image)
            target = nn.functional.interpolate(
                batch["depth"], pred.shape[-2:], mode="nearest-exact"
            )
            loss = 0.01 * balanced_loss(pred.float(), target)
            if selective:
                loss = loss - selectivity(acts, target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    return seconds(step, device)


def dissection_cost(data: OnDevice, device, images: int) -> dict:
    """All layers of METER-XXS against the plain forward passes, images a second."""
    model = build_model("meter_xxs").to(device).eval()
    items = [data[i] for i in range(min(images, len(data)))]

    def forward():
        with torch.no_grad():
            for _, batch in model_batches(model, items, batch_size=16):
                model(batch["image"])

    plain = seconds(forward, device, 3)
    full = seconds(lambda: dissect(model, items, list(model.taps)), device, 3)
    return {
        "forward_images_per_s": len(items) / plain,
        "dissect_images_per_s": len(items) / full,
        "dissect_over_forward": full / plain,
    }


def pooling(device, cut: bool) -> dict:
    """`pool_by_bin` against the released loop over images and bins, at MFF's size."""
    images, units, bins = (2, 8, 8) if cut else (8, 64, 64)
    activation = torch.randn(images, units, 114, 152, device=device)
    depth = 0.8 + 9 * torch.rand(images, 1, 228, 304, device=device)
    index = DepthBins.sid(bins, 0.75, 10).discretize(depth)[:, 0]

    def loop():
        up = nn.functional.interpolate(activation, (228, 304), mode="bilinear")
        for image, own in zip(up, index, strict=True):
            for b in range(bins):
                (image * (own == b)).sum((1, 2))

    slow = seconds(loop, device, 2)
    fast = seconds(lambda: pool_by_bin(activation, index, bins), device)
    return {"pool_loop_ms": 1e3 * slow, "pool_ms": 1e3 * fast, "pool_times_faster": slow / fast}


def table(train: OnDevice, config: TrainConfig, device, cut: bool) -> dict:
    """What the card does, but for rendering."""
    own = network_alone(train, config, device, selective=False)
    selective = network_alone(train, config, device, selective=True)
    steps = max(2, len(train) // config.batch_size)
    brief = replace(config, num_epochs=2, neuron_selective=False, run_dir=None, imde_warmup=0.0)
    short = OnDevice(WORLDS["rooms"], "train", train.image, train.depth, augment=True)
    if steps > 40:  # two epochs of 40 steps are enough to be measured
        n = 40 * config.batch_size
        short.image, short.depth = train.image[:n], train.depth[:n]
    history = fit(build_model(config.model), short, [train[0]], brief).frame.iloc[-1]
    return {
        "fit_images_per_s": float(history.images_per_s),
        "network_images_per_s": config.batch_size / own,
        "outside_network": 1 - float(history.images_per_s) / (config.batch_size / own),
        "selectivity_loss_over_step": selective / own,
        "memory_GiB": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
        **dissection_cost(train, device, 32 if cut else 512),
        **pooling(device, cut),
    }


def visit(minutes: float, out: Path, table_only: bool, cut: bool) -> None:
    from train_shipped import ship  # it has called us

    until = time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("fork")  # before the card is touched
    pool = context.Pool(max(1, (os.cpu_count() or 2) - 1))
    device = pick_device()
    card = torch.cuda.get_device_name() if device.type == "cuda" else "no GPU: a CPU stands in"
    size, streets_size = ((64, 128), (64, 208)) if cut else ((192, 256), (96, 320))
    many = 32 if cut else 2_000 if table_only else 20_000
    numbers = {"card": card, "torch": torch.__version__}

    def report():
        write_text(out / "gpu.json", json.dumps(numbers, indent=1) + "\n")
        print(json.dumps(numbers), flush=True)

    out.mkdir(parents=True, exist_ok=True)
    train, numbers["rooms_per_s"] = rendered(
        pool, "rooms", "train", many, size, device, augment=True
    )
    val, _ = rendered(pool, "rooms", "val", 8 if cut else 200, size, device)
    report()
    recipe = dict(NETWORKS["meter_xxs_rooms_baseline"][-1])
    options = recipe["data_options"] | {"size": list(size)}
    options["train"] = options["train"] | {"limit": many}
    config = TrainConfig.from_dict(
        recipe
        | {"data_options": options, "batch_size": 8 if cut else 64, "learning_rate": 2e-3}
        | {"weights": None, "save_minutes": 0.0}
    )
    numbers |= table(train, config, device, cut)
    report()
    if table_only:
        _, numbers["streets_per_s"] = rendered(
            pool, "streets", "train", many // 2, streets_size, device
        )
        return report()
    test, _ = rendered(pool, "rooms", "test", 8 if cut else 654, size, device)
    names = [n for n in NETWORKS if n.startswith("meter_xxs_rooms")]
    for place, name in enumerate(names):
        # An equal share of what is left, less what measuring and writing take.
        share = (until - time.monotonic()) / (len(names) - place) - (2 if cut else 15)
        epochs = int(share * numbers["fit_images_per_s"] / many / 1.1)
        if epochs < 1:
            print(f"No time is left for {name}.", flush=True)
            break
        own = {k: NETWORKS[name][0][k] for k in ("neuron_selective", "method", "imde_alpha")
               if k in NETWORKS[name][0]}  # fmt: skip
        own["imde_warmup"] = round(epochs / 6, 2) if own else 0.0
        now = replace(config, num_epochs=min(epochs, 2 if cut else 60), **own)
        seed_everything(now.seed)
        model = build_model(now.model)
        history = fit(model, train, val, replace(now, max_hours=1.3 * share / 3600 + 0.01))
        about = ship(
            name, model, to=out, stages=[now], frames=[history.frame], test=test, machine=card
        )
        numbers[name] = about["test"]["metrics"]["d1"]
        report()
    left = until - time.monotonic()
    if left > 60 or cut:  # what streets cost, for the next visit's plan
        count = 16 if cut else min(10_000, int(left * 50))
        _, numbers["streets_per_s"] = rendered(
            pool, "streets", "train", count, streets_size, device
        )
        report()
