"""What every benchmark shares: the machine, a stopwatch and an atomic writer of results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
RESULTS = PROJECT / "benchmarks" / "results"
TABLES = PROJECT / "mde_utils" / "results"  # those that notebooks read
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")

if str(PROJECT) not in sys.path:  # `python benchmarks/x.py` works without an installation
    sys.path.insert(0, str(PROJECT))

from mde_utils.files import atomic  # noqa: E402


def real_data() -> Path:
    """The folder of real sample frames: $MDE_REAL_DATA, else `../shared/real`."""
    folder = Path(os.environ.get("MDE_REAL_DATA") or PROJECT.parent / "shared" / "real")
    if not folder.is_dir():  # the other benchmarks of `make bench` can do without
        print("SKIPPED: no real frames; set MDE_REAL_DATA to the folder that holds nyu/.")
        raise SystemExit(0)
    return folder


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict:
    """What a number depends on, and nothing that names this computer or its folders."""
    import torch

    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "system": platform.system(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": versions,
    }


def median(values) -> float:
    return float(statistics.median(values))


def ratio(slow: float, fast: float) -> float:
    """How many times `fast` goes into `slow`; infinite when the clock did not move."""
    return slow / fast if fast > 0 else float("inf")


def write_result(name: str, result: dict, markdown: str) -> Path:
    """Write `results/<name>.json` and `.md`, each whole or not at all. Returns the .json path.

    The machine is added under "machine" when `result` does not hold it.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"machine": machine(), **result}
    path = RESULTS / f"{name}.json"
    for name_, text in (
        (path, json.dumps(result, indent=2, ensure_ascii=False) + "\n"),
        (path.with_suffix(".md"), markdown.rstrip() + "\n"),
    ):
        with atomic(name_) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return path


def paired_times(
    first: Callable[[], object], second: Callable[[], object], *, repeats: int = 11
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of first / second over the pairs.

    The two take turns, so that a busy spell of a shared machine meets both.
    """
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(repeats + 1):
        for function, seconds in zip((first, second), times, strict=True):
            wait()
            start = time.perf_counter()
            function()
            wait()
            if round_:  # the first round warms up
                seconds.append(time.perf_counter() - start)
    pairs = [ratio(a, b) for a, b in zip(*times, strict=True)]
    return median(times[0]), median(times[1]), median(pairs)


def markdown_table(frame, digits: int = 3) -> str:
    """A pandas frame, index included, as a Markdown table."""

    def text(value) -> str:
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value)

    rows = [[frame.index.name or "", *frame.columns]]
    rows += [[index, *row] for index, row in zip(frame.index, frame.values.tolist(), strict=True)]
    lines = ["| " + " | ".join(map(text, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])
