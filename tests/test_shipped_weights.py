"""The small networks that come with the suite do what their papers say."""

import json
from pathlib import Path

import pytest

import mde_utils
from mde_utils.checkpoints import read_metadata
from mde_utils.data import load_dataset
from mde_utils.dissection import dissect
from mde_utils.evaluation import evaluate
from mde_utils.models import build_model, shipped_weights

VARIANTS = ("baseline", "reg", "assign")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return load_dataset("rooms", "test", limit=24, fields=("image", "depth"), cache=False)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_come_with_their_config_and_numbers(variant):
    path = shipped_weights("meter_xxs", variant)
    about = json.loads(path.with_suffix(".json").read_text())
    header = read_metadata(path)
    assert header["model"] == "meter_xxs" and {k: header[k] for k in about} == about
    assert about["config"]["neuron_selective"] == (variant != "baseline")
    assert variant in ("baseline", about["config"]["method"])
    assert about["test"]["metrics"]["n"] == 654 and path.stat().st_size < 4e6


def test_they_predict_depth_and_one_is_selective(rooms):
    selectivity = {}
    for variant in VARIANTS:
        model = build_model("meter_xxs", weights="rooms", variant=variant)
        stored = json.loads(shipped_weights("meter_xxs", variant).with_suffix(".json").read_text())
        # 24 of the 654 rooms: near the stored number, and by far not what chance gives.
        assert evaluate(model, rooms)["d1"] == pytest.approx(
            stored["test"]["metrics"]["d1"], abs=0.12
        )
        selectivity[variant] = dissect(model, rooms, ["dec_2"]).mean("dec_2")
    assert selectivity["assign"] > selectivity["baseline"] + 0.1


def test_a_copy_of_the_package_without_them_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("mde_utils.models.WEIGHTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="not whole.*weights=") as refusal:
        build_model("meter_xxs", weights="rooms")
    assert str(tmp_path) in str(refusal.value)


def test_they_lie_in_the_package():
    package = Path(mde_utils.__file__).parent
    assert shipped_weights("meter_xxs").is_relative_to(package)
    assert '"weights/*"' in (package.parent / "pyproject.toml").read_text()
