"""Whether this machine has what the notebooks need; each finding with its remedy."""

from __future__ import annotations

import os
import shutil
import warnings
from importlib import metadata
from pathlib import Path

import pandas as pd
import psutil
import torch
from packaging.requirements import Requirement

from mde_utils import environment
from mde_utils.data import cache_root
from mde_utils.data.kitti import find_kitti
from mde_utils.data.nyu import find_nyu
from mde_utils.models import shipped_weights

# What a hosted image carries fits together; installing over it breaks the session.
HOSTED = {
    "Kaggle": "choose the latest environment (Settings → Environment preferences)",
    "Colab": "choose the latest runtime version (Runtime → Change runtime type)",
}
GPU_REMEDY = {
    "Kaggle": "Settings → Accelerator → GPU T4 x2",
    "Colab": "Runtime → Change runtime type → T4 GPU",
}
# The same modules under another name.
SAME = {"opencv-python-headless": ("opencv-python", "opencv-contrib-python")}
GB = 1e9


def check_environment() -> pd.DataFrame:
    """What the notebooks find here: a row a finding.

    Columns: `what`; `found`; `state`: "ok", "optional" (all runs without it, smaller or on
    rendered scenes) or "fix" (some notebook will fail); `remedy`, "" where there is nothing to do.
    """
    rows = [
        *_packages(),
        _gpu(),
        _memory(),
        _disk(),
        _weights(),
        _data("NYU Depth V2", "NYU_ROOT", lambda: "{}, layout {}".format(*find_nyu())),
        _data("KITTI", "KITTI_ROOT", lambda: str(find_kitti())),
    ]
    return pd.DataFrame(rows, columns=["what", "found", "state", "remedy"])


def _packages() -> list[tuple]:
    """What decides a result or draws a control, in a row; and a row for each that does not fit."""
    shown = [f"{name} {version}" for name, version in environment.versions().items()]
    rows = [("versions", ", ".join(shown), "ok", "")]
    for line in requirements():
        wanted = Requirement(line)
        version = _version(wanted.name)
        fits = version != "absent" and wanted.specifier.contains(version, prereleases=True)
        if wanted.name == "ipywidgets" and fits:
            rows.append(("ipywidgets", version, "ok", ""))
        if not fits:
            found = f"{version}; the suite needs {wanted.specifier}"
            remedy = HOSTED.get(environment.host(), f'pip install "{wanted}"')
            rows.append((wanted.name, found, "fix", f"{remedy}, then restart the kernel"))
    return rows


def _version(package: str) -> str:
    for name in (package, *SAME.get(package, ())):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "absent"


def requirements() -> list[str]:
    """The run-time requirements, of the copy that lies in the package: wherever this code runs,
    these are its own."""
    lines = Path(__file__).with_name("requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def _gpu() -> tuple:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        device = environment.pick_device()
    host = environment.host()
    if device.type == "cuda":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        precision = str(environment.amp_dtype(device)).removeprefix("torch.")
        found = f"{' + '.join(names)}, mixed precision in {precision}"
        if trouble := _trouble(device):
            remedy = "restart the kernel; see by `nvidia-smi` whether another program holds the GPU"
            return "GPU", f"{found}, but it fails: {trouble}", "fix", remedy
        return "GPU", found, "ok", ""
    if said:  # there is one that this torch has no code for
        remedy = GPU_REMEDY.get(host, "install a build of torch for it (pytorch.org)")
        return "GPU", str(said[0].message), "optional", remedy
    found = f"none: CPU, {torch.get_num_threads()} threads"
    remedy = GPU_REMEDY.get(host, "the full size wants one; Kaggle and Colab lend some")
    if host not in GPU_REMEDY and shutil.which("nvidia-smi"):
        found += "; the driver is here, but torch sees no GPU"
        built = torch.version.cuda is not None
        remedy = "see what `nvidia-smi` says" if built else "install torch for CUDA (pytorch.org)"
    return "GPU", found, "optional", remedy


def _trouble(device: torch.device) -> str:
    """The first line of the error of a small computation on `device`; "" where it works."""
    try:
        torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)).sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _memory() -> tuple:
    memory = psutil.virtual_memory()
    found = f"{memory.available / GB:.0f} of {memory.total / GB:.0f} GB available"
    if memory.available >= 4 * GB:
        return "memory", found, "ok", ""
    remedy = "shut down other kernels; lower `batch_size` and `num_images`"
    return "memory", found, "fix", remedy


def _disk() -> tuple:
    """Room for the caches: about 1 GB for the rendered scenes, 10 GB for all of NYU."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        root = cache_root()
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    remedy = "set MDE_CACHE to a folder with room"
    if not os.access(there, os.W_OK):
        return "disk", f"{root} cannot be written to", "fix", remedy
    free = shutil.disk_usage(there).free
    found = f"{free / GB:.0f} GB free for caches in {root}"
    if free < 2 * GB:
        return "disk", found, "fix", remedy
    if said:  # neither the checkout nor the home folder can be written
        return "disk", f"{found}: {said[0].message}", "optional", remedy
    if free < 12 * GB:
        return "disk", f"{found}; all of NYU would take 10 GB", "optional", remedy
    return "disk", found, "ok", ""


def _weights() -> tuple:
    try:
        files = [shipped_weights("meter_xxs", variant) for variant in ("baseline", "assign")]
    except FileNotFoundError as error:
        found, _, remedy = str(error).partition(". ")
        return "trained networks", found, "fix", remedy
    return "trained networks", ", ".join(file.stem for file in files), "ok", ""


def _data(name: str, variable: str, find) -> tuple:
    try:
        return name, find(), "ok", ""
    except FileNotFoundError as error:
        found, _, remedy = str(error).partition(" Three ways to provide it: ")
        # What was named has to be there; what was not is not needed.
        return name, found, "fix" if os.environ.get(variable) else "optional", remedy
