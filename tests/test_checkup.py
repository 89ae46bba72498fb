"""What the check finds on machines that lack something, and what it then says to do."""

import os
import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
import torch

from mde_utils import check_environment, checkup, environment

T4, P100 = (7, 5), (6, 0)
GB = 10**9
Room = namedtuple("Room", "total used free")
Memory = namedtuple("Memory", "total available")


@pytest.fixture(autouse=True)
def sound(monkeypatch, gpus, tmp_path):
    """A machine of one's own without a GPU, without data, and with room."""
    gpus()
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    monkeypatch.delenv("KITTI_ROOT", raising=False)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Room(100 * GB, 50 * GB, 50 * GB))
    monkeypatch.setattr(checkup.psutil, "virtual_memory", lambda: Memory(16 * GB, 8 * GB))


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages have these versions; None = absent."""
    real = metadata.version

    def pretend(**versions):
        versions = {name.replace("_", "-"): version for name, version in versions.items()}

        def version(name):
            if name in versions and versions[name] is None:
                raise metadata.PackageNotFoundError(name)
            return versions.get(name) or real(name)

        monkeypatch.setattr(metadata, "version", version)

    return pretend


def finding(what: str):
    """(found, state, remedy) of the one row `what`."""
    table = check_environment().set_index("what")
    assert table.index.is_unique
    return tuple(table.loc[what])


def test_a_sound_machine_has_nothing_to_fix():
    table = check_environment()
    assert list(table.columns) == ["what", "found", "state", "remedy"]
    assert set(table.state) == {"ok", "optional"}
    names = ["versions", "ipywidgets", "GPU", "memory", "disk", "trained networks"]
    assert list(table.what) == [*names, "NYU Depth V2", "KITTI"]
    assert (table[table.state != "ok"].remedy != "").all()
    assert (table[table.state == "ok"].remedy == "").all()
    assert f"torch {environment.versions()['torch']}" in finding("versions")[0]


def test_no_gpu_says_where_to_get_one(monkeypatch):
    found, state, remedy = finding("GPU")
    assert found.startswith("none: CPU") and state == "optional"
    assert "Kaggle and Colab" in remedy
    monkeypatch.setitem(environment.sys.modules, "google.colab", object())
    assert "T4 GPU" in finding("GPU")[2]
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "T4 x2" in finding("GPU")[2]


@pytest.mark.parametrize(("cuda", "words"), [(None, "install torch for CUDA"), ("12.8", "nvidia")])
def test_a_driver_without_a_gpu_for_torch(monkeypatch, cuda, words):
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    found, _, remedy = finding("GPU")
    assert "torch sees no GPU" in found and words in remedy


def test_a_gpu_without_code_for_it(monkeypatch, gpus):
    gpus(P100)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    found, state, remedy = finding("GPU")
    assert "GPU 0 (sm_60)" in found and "no code" in found
    assert (state, remedy) == ("optional", "Settings → Accelerator → GPU T4 x2")


def test_gpus_that_work_and_that_do_not(monkeypatch, gpus):
    gpus(T4, T4)
    monkeypatch.setattr(checkup, "_trouble", lambda device: "")
    assert finding("GPU") == ("GPU 0 + GPU 1, mixed precision in float16", "ok", "")
    monkeypatch.setattr(checkup, "_trouble", lambda device: "CUDA out of memory")
    found, state, remedy = finding("GPU")
    assert "it fails: CUDA out of memory" in found and state == "fix" and "restart" in remedy


def test_a_device_that_fails_is_tried_out(monkeypatch):
    assert checkup._trouble(torch.device("cpu")) == ""

    def broken(*shape, device):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(torch, "ones", broken)
    assert checkup._trouble(torch.device("cpu")) == "CUDA out of memory."


def test_versions_out_of_range(monkeypatch, installed):
    installed(torch="2.4.1", ipywidgets="9.0.0", timm=None)
    assert finding("torch") == (
        "2.4.1; the suite needs >=2.6",
        "fix",
        'pip install "torch>=2.6", then restart the kernel',
    )
    assert finding("timm")[:2] == ("absent; the suite needs >=1.0.10", "fix")
    found, state, remedy = finding("ipywidgets")
    assert found.startswith("9.0.0") and state == "fix" and "ipywidgets<9,>=7.7" in remedy
    # What a hosted image carries is not installed over.
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert "pip" not in finding("torch")[2] and "latest environment" in finding("torch")[2]


def test_versions_in_range(installed):
    installed(torch="2.7.0.dev20250301+cu128", ipywidgets="7.7.1")
    assert finding("ipywidgets") == ("7.7.1", "ok", "")
    assert "torch" not in set(check_environment().what)


def test_opencv_under_another_name(installed):
    installed(opencv_python_headless=None, opencv_python="4.10.0")
    assert "opencv-python-headless" not in set(check_environment().what)
    installed(opencv_python_headless=None, opencv_python=None, opencv_contrib_python=None)
    assert finding("opencv-python-headless")[1] == "fix"


def test_every_requirement_is_checked(installed):
    lines = checkup.requirements()
    names = [checkup.Requirement(line).name for line in lines]
    assert "torch" in names and len(names) == len(set(names)) > 15
    installed(
        **{name.replace("-", "_"): None for name in (*names, *sum(checkup.SAME.values(), ()))}
    )
    table = check_environment()
    assert set(names) <= set(table[table.state == "fix"].what)


def test_the_package_has_the_requirements_of_its_checkout():
    """So that a copy of the package alone knows them."""
    checkout = Path(checkup.__file__).resolve().parents[1]
    own, copy = (f / "requirements.txt" for f in (checkout, checkout / "mde_utils"))
    assert copy.read_text() == own.read_text(), f"cp {own} {copy}"


@pytest.mark.parametrize(
    ("free", "state"), [(1 * GB, "fix"), (5 * GB, "optional"), (50 * GB, "ok")]
)
def test_room_on_disk(monkeypatch, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Room(100 * GB, 0, free))
    found, said, remedy = finding("disk")
    assert said == state and f"{free // GB} GB free" in found
    assert ("MDE_CACHE" in remedy) == (state != "ok")


def test_a_cache_that_cannot_be_written_to(monkeypatch):
    monkeypatch.setattr(checkup.os, "access", lambda path, mode: False)
    found, state, remedy = finding("disk")
    assert "cannot be written to" in found and state == "fix" and "MDE_CACHE" in remedy


def test_without_a_home_caches_are_temporary(monkeypatch):
    """In containers with a user id that no one knows `Path.home` raises."""
    monkeypatch.delenv("MDE_CACHE", raising=False)
    monkeypatch.delenv("KAGGLEHUB_CACHE", raising=False)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")  # so not in the checkout
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    found, state, remedy = finding("disk")
    assert "~/.cache/mde_utils cannot be written" in found
    assert state == "optional" and "MDE_CACHE" in remedy


def test_little_memory(monkeypatch):
    assert finding("memory") == ("8 of 16 GB available", "ok", "")
    monkeypatch.setattr(checkup.psutil, "virtual_memory", lambda: Memory(16 * GB, 2 * GB))
    found, state, remedy = finding("memory")
    assert found.startswith("2 of 16") and state == "fix" and "batch_size" in remedy


def test_trained_networks_absent(monkeypatch, tmp_path):
    monkeypatch.setattr("mde_utils.models.WEIGHTS", tmp_path)
    found, state, remedy = finding("trained networks")
    assert str(tmp_path) in found and state == "fix" and "Copy the package" in remedy


@pytest.mark.parametrize(
    ("what", "variable"), [("NYU Depth V2", "NYU_ROOT"), ("KITTI", "KITTI_ROOT")]
)
def test_data_absent_named_wrongly_and_there(monkeypatch, tmp_path, what, variable):
    found, state, remedy = finding(what)
    assert "was not found. Tried:" in found and state == "optional"
    assert remedy.startswith("(1) on Kaggle, attach") and variable in remedy
    monkeypatch.setenv(variable, str(tmp_path / "nothing"))
    found, state, remedy = finding(what)
    assert "does not exist" in found and state == "fix" and remedy.startswith("(1)")
    for marker in ("nyu/data/nyu2_train.csv", "kitti/2011_09_26/any"):
        (tmp_path / marker).parent.mkdir(parents=True)
        (tmp_path / marker).touch()
    monkeypatch.setenv(variable, str(tmp_path / what.split()[0].lower()))
    found, state, remedy = finding(what)
    assert str(tmp_path) in found and (state, remedy) == ("ok", "")
