"""Rooms rendered a second: all cores as the data set does it, one core, steps; a GPU if any.

`python benchmarks/rooms_rendering.py` writes results/rooms_rendering.json and .md.
"""

from __future__ import annotations

import time

from _common import machine, median, write_result

SIZE = (192, 256)
BATCH = 32  # rooms per timed batch
REPEATS = 5
FIELDS = ("image", "depth", "normal", "label")


def main() -> None:
    import torch

    from mde_utils.data import render, rooms

    def speed(device: str, threads: int, baseline: float | None = None) -> dict:
        wall, used = [], []
        options = {"threads": threads, "device": device}
        fields = FIELDS if baseline is None else (*FIELDS, "right")
        for k in range(REPEATS + 1):  # the first warms up: textures, memory
            first = k * BATCH
            start, cpu = time.perf_counter(), time.process_time()
            records = rooms.produce(
                "train", range(first, first + BATCH), SIZE, baseline, None, fields, **options
            )
            assert sum(1 for _ in records) == BATCH
            wall.append(time.perf_counter() - start)
            used.append(time.process_time() - cpu)
        return {
            "images_per_second": median([BATCH / t for t in wall[1:]]),
            "batches": [BATCH / t for t in wall[1:]],
            "cpu_milliseconds_per_image": median([t / BATCH * 1e3 for t in used[1:]]),
        }

    cores = rooms._cores()
    rows = {
        "one thread": speed("cpu", 1),
        f"{min(cores, 8)} threads (the default)": speed("cpu", min(cores, 8)),
        "the same with a right view": speed("cpu", min(cores, 8), 0.1),
    }
    if torch.cuda.is_available():
        rows["GPU"] = speed("cuda", 1)

    # Processor time of the steps, one thread; nested ones are part of their callers.
    spent: dict[str, float] = {}

    def timed(module, name):
        plain = getattr(module, name)

        def wrapper(*args, **kwargs):
            start = time.process_time()
            try:
                return plain(*args, **kwargs)
            finally:
                spent[name] = spent.get(name, 0.0) + time.process_time() - start

        setattr(module, name, wrapper)
        return plain

    steps = {
        "make_rooms": (rooms, "furnishing, camera"),
        "cast": (render, "nearest hits: picture and shadow maps"),
        "surface": (render, "normals, texture coordinates"),
        "shade": (render, "textures, light, shadows"),
        "_antialias": (render, "silhouettes (with their surface and shade)"),
        "_develop": (rooms, "exposure, noise"),
    }
    kept = {name: timed(module, name) for name, (module, _) in steps.items()}
    list(rooms.produce("train", range(BATCH), SIZE, None, None, FIELDS, threads=1, device="cpu"))
    for name, (module, _) in steps.items():
        setattr(module, name, kept[name])
    components = {name: seconds / BATCH * 1e3 for name, seconds in spent.items()}

    here = machine()
    lines = [
        "# Rendering rooms",
        "",
        f"Image, depth, normals and labels at {SIZE[0]}x{SIZE[1]}, median of {REPEATS} batches of "
        f"{BATCH} rooms; {here['cpu']}, {here['cores']} cores, GPU: {here['gpu'] or 'none'}, "
        f"torch {here['versions']['torch']}, renderer version {rooms.RENDERER_VERSION}.",
        "",
        "| | images a second | processor ms an image |",
        "|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['images_per_second']:.1f} | {row['cpu_milliseconds_per_image']:.0f} |"
        )
    lines += ["", "| step | processor ms an image |", "|---|---|"]
    lines += [f"| {steps[name][1]} | {t:.1f} |" for name, t in components.items()]
    print("\n".join(lines))
    result = {
        "machine": here,
        "renderer": rooms.RENDERER_VERSION,
        "size": SIZE,
        "batch": BATCH,
        "repeats": REPEATS,
        "speed": rows,
        "components_ms": components,
    }
    write_result("rooms_rendering", result, "\n".join(lines))


if __name__ == "__main__":
    main()
