"""Profile, device, precision and seeds, on machines with and without a GPU."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mde_utils import environment

T4, P100, H200 = (7, 5), (6, 0), (9, 0)


@pytest.fixture(autouse=True)
def no_override(monkeypatch):
    monkeypatch.delenv("MDE_PROFILE", raising=False)


def test_profile_is_full_only_with_a_gpu_and_real_data(gpus):
    gpus(T4)
    assert environment.resolve_profile(real_data=True) == "full"
    assert environment.resolve_profile() == "demo"
    gpus()
    assert environment.resolve_profile(real_data=True) == "demo"
    assert environment.resolve_profile("full") == "full"


def test_profile_variable_overrides(monkeypatch, gpus):
    monkeypatch.setenv("MDE_PROFILE", "demo")
    gpus(H200)
    assert environment.resolve_profile("full", real_data=True) == "demo"
    monkeypatch.setenv("MDE_PROFILE", "")
    assert environment.resolve_profile("full") == "full"


@pytest.mark.parametrize("in_variable", [False, True])
def test_unknown_profile_names_the_known_ones(monkeypatch, in_variable):
    if in_variable:
        monkeypatch.setenv("MDE_PROFILE", "huge")
    with pytest.raises(ValueError, match="Unknown profile 'huge'.*auto, demo, full"):
        environment.resolve_profile("auto" if in_variable else "huge")


def test_device_is_the_first_usable(gpus):
    gpus()
    assert environment.pick_device() == torch.device("cpu")
    gpus(T4, T4)
    assert environment.pick_device() == torch.device("cuda", 0)
    gpus(P100, T4)
    assert environment.pick_device() == torch.device("cuda", 1)


def test_a_gpu_without_code_says_what_to_choose(gpus):
    gpus(P100)
    with pytest.warns(RuntimeWarning, match=r"GPU 0 \(sm_60\).*T4 x2"):
        assert environment.pick_device() == torch.device("cpu")


@pytest.mark.parametrize(
    ("capability", "arch", "runs"),
    [
        ((8, 9), "sm_86", True),
        ((8, 0), "sm_86", False),
        ((9, 0), "sm_86", False),
        ((9, 0), "compute_80", True),
        ((9, 0), "sm_90a", True),
        ((10, 3), "sm_100a", False),
        ((10, 3), "sm_100f", True),
        ((12, 0), "compute_100f", False),
        ((12, 1), "sm_120", True),
        ((9, 4), "gfx942", False),
    ],
)
def test_compatibility_of_code_and_gpu(capability, arch, runs):
    assert environment._runs_on(capability, [arch]) is runs


@pytest.mark.parametrize(("capability", "dtype"), [(T4, torch.float16), (H200, torch.bfloat16)])
def test_precision_by_capability(gpus, capability, dtype):
    gpus(capability)
    assert environment.amp_dtype("cuda") is dtype
    assert environment.amp_dtype(torch.device("cpu")) is None


@given(st.integers(0, 2**32 - 1))
def test_seed_repeats_every_generator(seed):
    def draw():
        environment.seed_everything(seed)
        return random.random(), np.random.rand(), torch.rand(()).item()

    assert draw() == draw()


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, True, "0", None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed must be an integer"):
        environment.seed_everything(seed)


def test_host(monkeypatch):
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)
    assert environment.host() == "own machine"
    monkeypatch.setitem(environment.sys.modules, "google.colab", object())
    assert environment.host() == "Colab"
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert environment.host() == "Kaggle"


def test_about_is_one_line_without_paths(gpus):
    gpus()
    line = environment.about()
    assert "\n" not in line and "/" not in line
    assert f"torch {environment.versions()['torch']}" in line and "CPU" in line
    gpus(T4, T4)
    assert "GPU 0 + GPU 1" in environment.about()
