"""Where the suite runs and what that allows: profile, device, precision, seeds."""

import ctypes
import os
import platform
import random
import re
import sys
import warnings
from importlib import metadata

import numpy as np
import torch
from tqdm.auto import tqdm

PROFILES = ("auto", "demo", "full")


def resolve_profile(profile: str = "auto", *, real_data: bool = False) -> str:
    """The size of a run: `"demo"` (two CPU cores, minutes) or `"full"` (the publication's).

    `"auto"` is full where a usable CUDA GPU and a real data set (`real_data`) are present. The
    environment variable `MDE_PROFILE` overrides the argument, which is how tests and headless
    runs stay small.

    Raises:
        ValueError: an unknown profile, in the argument or in `MDE_PROFILE`.
    """
    override = os.environ.get("MDE_PROFILE")
    for source, name in (("profile", profile), ("MDE_PROFILE", override or profile)):
        if name not in PROFILES:
            raise ValueError(f"Unknown profile {name!r} in {source}. Known: {', '.join(PROFILES)}.")
    if (override or profile) != "auto":
        return override or profile
    return "full" if real_data and pick_device().type == "cuda" else "demo"


def pick_device() -> torch.device:
    """The first CUDA GPU that this build of torch has code for, else the CPU.

    A GPU without it (Kaggle's P100) is reported by `torch.cuda.is_available`, then fails at the
    first kernel; here it gives a warning that says what to choose. Apple's GPU is passed over:
    it lacks float64, in which selectivity is accumulated.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    built_for = torch.cuda.get_arch_list()
    found = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if _runs_on(capability, built_for):
            return torch.device("cuda", index)
        found.append(f"{torch.cuda.get_device_name(index)} (sm_{capability[0]}{capability[1]})")
    warnings.warn(
        f"torch {torch.__version__} has no code for {', '.join(found)}, it was built for "
        f"{', '.join(built_for)}; using the CPU. On Kaggle choose the accelerator 'T4 x2'.",
        RuntimeWarning,
        stacklevel=2,
    )
    return torch.device("cpu")


def _runs_on(capability: tuple[int, int], built_for: list[str]) -> bool:
    """Whether code built for any of `built_for` ("sm_80", "compute_90", …) runs on `capability`.

    Machine code (sm) runs within its major version from its minor version on, with the suffix `a`
    on that very one only; intermediate code (compute) on everything later. CUDA C++ Programming
    Guide, section "Compute capabilities".
    """
    for arch in built_for:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        kind, suffix = match[1], match[4]
        built = int(match[2]), int(match[3])
        same_major = built[0] == capability[0]
        if suffix == "a":
            fits = capability == built
        else:
            fits = capability >= built and (same_major or (kind == "compute" and not suffix))
        if fits:
            return True
    return False


def amp_dtype(device: torch.device | str) -> torch.dtype | None:
    """The mixed-precision type for `device`: None (stay in float32) on anything but CUDA.

    float16, which needs a gradient scaler, below compute capability 8, bfloat16 from 8 on.
    `torch.cuda.is_bf16_supported` would not do: it is true on a T4, by slow emulation.
    """
    device = torch.device(device)
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices).

    Raises:
        ValueError: `seed` is not an integer in [0, 2**32), NumPy's range.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to {2**32 - 1}, got {seed!r}.")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for what comes next, for the rest of this process.

    By default it gives every block above 32 MiB back to the system at once and asks for it anew,
    page by page, at the next step. Training on a CPU at batch 64 spends half of its time on that.
    Does nothing where the C library is another one.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_threshold, trim_threshold = -3, -1  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
    libc.mallopt(mmap_threshold, 2**30)
    libc.mallopt(trim_threshold, 2**31 - 1)


def progress(iterable=None, **options):
    """tqdm's bar for a person who waits: gone when done, none without a terminal or notebook, none
    where the environment variable `TQDM_DISABLE` is set."""
    # tqdm's notebook bar takes `disable=None` for no, its terminal bar for "unless a terminal".
    return tqdm(
        iterable, leave=False, disable=bool(os.environ.get("TQDM_DISABLE")) or None, **options
    )


def host() -> str:
    """The kind of place: `"Kaggle"`, `"Colab"` or `"own machine"`."""
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return "Kaggle"
    return "Colab" if "google.colab" in sys.modules else "own machine"


def versions() -> dict[str, str]:
    """Version by package, of what decides a result; read without importing anything."""
    found = {"python": platform.python_version()}
    for package in ("torch", "torchvision", "timm", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def about() -> str:
    """One line for the top of a notebook: versions, place, device; no host name, no path."""
    from . import __version__

    device = pick_device()
    if device.type == "cuda":
        compute = " + ".join(
            torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
        )
    else:
        compute = f"CPU, {torch.get_num_threads()} threads"
    installed = [f"{package} {version}" for package, version in versions().items()]
    return " · ".join([f"mde_utils {__version__}", *installed, host(), compute])
