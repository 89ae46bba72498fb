"""load_dataset: names, options and errors before any work."""

import subprocess
import sys

import pytest

from mde_utils.data import AUGMENTATIONS, DATASETS, load_dataset


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (dict(name="nyo", split="train"), ValueError, ["'nyo'", "rooms, streets", "mean 'nyu'"]),
        (dict(name="nyu", split="trian"), ValueError, ["'trian'", "train, val, test"]),
        (dict(name="nyu", split="train", bits=8), TypeError, ["'bits'", "'nyu'", "layout", "raw"]),
        (dict(name="nyu", split="train", augment="mef"), ValueError, ["'mef'", "meter, mff"]),
        (dict(name="nyu", split="train", augment=3), TypeError, ["int", "meter"]),
    ],
)
def test_unknown_names(arguments, error, words):
    with pytest.raises(error) as caught:
        load_dataset(**arguments)
    for word in words:
        assert word in str(caught.value)


def test_registries_name_what_exists():
    from importlib import import_module

    assert {"rooms", "streets", "nyu", "kitti"} <= {*DATASETS}
    known = {"meter", "mff", "mff_crop", "bts", "bts_kitti", "cspn", "epc", "epc_nyu"}
    assert {*AUGMENTATIONS} == known
    assert hasattr(import_module("mde_utils.data.nyu"), DATASETS["nyu"][1])


def test_importing_data_imports_no_data_set():
    """A data set's needs (h5py, kagglehub, a renderer) load with the data set."""
    code = (
        "import sys, mde_utils.data\n"
        "late = {'mde_utils.data.nyu', 'scenes', 'h5py', 'kagglehub'}\n"
        "sys.exit(', '.join(late & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
