"""Rooms and streets rendered a second: all cores as the data sets do it, one core, steps; a GPU if
any.

`python benchmarks/rendering.py` writes results/rendering.json and .md.
"""

from __future__ import annotations

import time

import torch
from _common import machine, median, write_result

from mde_utils.data import rendered
from scenes import render, shade
from scenes import world as camera
from scenes.rooms import ROOMS
from scenes.streets import STREETS

CASES = {"rooms": (ROOMS, (192, 256), 0.1), "streets": (STREETS, (64, 208), 0.54)}
BATCH = 32  # scenes per timed batch
REPEATS = 5
FIELDS = ("image", "depth", "normal", "label")
STEPS = {
    "make": "scene, camera",
    "cast": "nearest hits: picture and shadow maps",
    "surface": "normals, texture coordinates",
    "shade": "textures, light, shadows",
    "_antialias": "silhouettes (with their surface and shade)",
    "_develop": "exposure, noise",
}


def speed(world, size, device: str, threads: int, baseline: float | None = None) -> dict:
    wall, used = [], []
    fields = FIELDS if baseline is None else (*FIELDS, "right")
    for k in range(REPEATS + 1):  # the first warms up: textures, memory
        first = k * BATCH
        start, cpu = time.perf_counter(), time.process_time()
        records = rendered.produce(
            world,
            "train",
            range(first, first + BATCH),
            size,
            baseline,
            None,
            fields,
            threads=threads,
            device=device,
        )
        assert sum(1 for _ in records) == BATCH
        wall.append(time.perf_counter() - start)
        used.append(time.process_time() - cpu)
    return {
        "images_per_second": median([BATCH / t for t in wall[1:]]),
        "batches": [BATCH / t for t in wall[1:]],
        "cpu_milliseconds_per_image": median([t / BATCH * 1e3 for t in used[1:]]),
    }


def components(world, size) -> dict[str, float]:
    """Processor ms an image of each step, one thread; nested ones are part of their callers."""
    spent: dict[str, float] = {}

    def timed(name, plain):
        def wrapper(*args, **kwargs):
            start = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start

        return wrapper

    homes = {"_develop": [camera], "cast": [render, shade]}  # shade: for shadow maps
    kept = [
        (module, name, getattr(module, name))
        for name in STEPS.keys() - {"make"}
        for module in homes.get(name, [render])
    ]
    for module, name, plain in kept:
        setattr(module, name, timed(name, plain))
    try:
        watched = world._replace(make=timed("make", world.make))
        arguments = (watched, "train", range(BATCH), size, None, None, FIELDS)
        list(rendered.produce(*arguments, threads=1, device="cpu"))
    finally:
        for module, name, plain in kept:
            setattr(module, name, plain)
    return {name: spent[name] / BATCH * 1e3 for name in STEPS}


def main() -> None:
    here, found = machine(), {}
    threads = min(rendered._cores(), 8)
    lines = [
        "# Rendering rooms and streets",
        "",
        f"Image, depth, normals and labels, median of {REPEATS} batches of {BATCH} scenes; "
        f"{here['cpu']}, {here['cores']} cores, GPU: {here['gpu'] or 'none'}, "
        f"torch {here['versions']['torch']}.",
    ]
    for name, (world, size, baseline) in CASES.items():
        rows = {
            "one thread": speed(world, size, "cpu", 1),
            f"{threads} threads (the default)": speed(world, size, "cpu", threads),
            "the same with a right view": speed(world, size, "cpu", threads, baseline),
        }
        if torch.cuda.is_available():
            rows["GPU"] = speed(world, size, "cuda", 1)
        steps = components(world, size)
        found[name] = {
            "size": size,
            "renderer": world.version,
            "speed": rows,
            "components_ms": steps,
        }
        lines += [
            "",
            f"## {name}, {size[0]}x{size[1]}, version {world.version} of the pictures",
            "",
            "| | images a second | processor ms an image |",
            "|---|---|---|",
        ]
        for words, row in rows.items():
            lines.append(
                f"| {words} | {row['images_per_second']:.1f} | "
                f"{row['cpu_milliseconds_per_image']:.0f} |"
            )
        lines += ["", "| step | processor ms an image |", "|---|---|"]
        lines += [f"| {STEPS[step]} | {t:.1f} |" for step, t in steps.items()]
    print("\n".join(lines))
    write_result("rendering", {"batch": BATCH, "repeats": REPEATS, **found}, "\n".join(lines))


if __name__ == "__main__":
    main()
