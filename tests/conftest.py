"""What several test files share: real sample frames, a private cache, no surprises from outside."""

import os
from pathlib import Path

import pytest
import torch

PROJECT = Path(__file__).resolve().parent.parent
TODAY = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.fixture(scope="session")
def real() -> Path:
    """The folder of real sample frames: `$MDE_REAL_DATA`, else `../shared/real`.

    Without it the test is skipped, but fails where CI is set: there it has to run.
    """
    folder = Path(os.environ.get("MDE_REAL_DATA") or PROJECT.parent / "shared" / "real")
    if not folder.is_dir():
        reason = "no real sample frames; set MDE_REAL_DATA to the folder that holds nyu/ and kitti/"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    return folder


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory, monkeypatch):
    """No test reads or fills the user's cache, or finds the user's NYU."""
    monkeypatch.setenv("MDE_CACHE", str(tmp_path_factory.getbasetemp() / "mde_cache"))
    monkeypatch.delenv("NYU_ROOT", raising=False)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def gpus(monkeypatch):
    """Pretends that the machine has GPUs of these capabilities, and a torch built for `arches`."""

    def pretend(*capabilities, arches=TODAY):
        def index(device):
            return device if isinstance(device, int) else torch.device(device).index or 0

        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(arches))
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda device: capabilities[index(device)]
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {index(device)}")

    return pretend
