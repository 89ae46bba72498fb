"""The start of the notebooks that compare two networks."""

import pytest
import torch

from mde_utils.checkpoints import save_weights
from mde_utils.models import build_model
from mde_utils.networks import load_pair


def test_the_shipped_pair_at_the_size_it_learned_at():
    pair = load_pair("meter_xxs")
    assert [*pair.models] == ["baseline", "selective"] and pair.size == (192, 256)
    assert not any(model.training for model in pair.models.values())
    assert pair.about["baseline"].neuron_selective is False
    assert pair.about["selective"].neuron_selective is True and pair.about["selective"].seed == 0
    item, *rest = pair.data("test", 1)
    assert item["image"].shape == (3, 192, 256) and "depth" in item and not rest
    other = load_pair("meter_xxs", selective="reg", size=[64, 96])
    assert pair.models["selective"].taps == other.models["selective"].taps
    assert not torch.equal(
        *(p.models["selective"].decoder.conv2d_out.weight for p in (pair, other))
    )
    assert (
        other.data("train", 2)[1]["image"].shape == (3, 64, 96) and len(other.data("test", 3)) == 3
    )


def test_weights_of_ones_own_with_their_options(tmp_path):
    files = []
    for number in range(2):
        options = {"dataset": "kitti", "width": 64, "focal_reference": 99.0}
        model = build_model("bts_mobilenetv3_small_100", **options)
        config = {"dataset": "streets", "data_options": {"size": [64, 96]}, "seed": number}
        files.append(
            save_weights(model, tmp_path / f"{number}.safetensors", metadata={"config": config})
        )
    pair = load_pair(model.name, *files, data_set="streets")
    assert pair.size == (64, 96) and [*pair.about.loc["seed"]] == [0, 1]
    assert pair.models["baseline"].options["focal_reference"] == 99.0
    assert "focal" in pair.data("test", 1)[0]


def test_files_that_say_nothing_of_their_training(tmp_path):
    torch.save(build_model("meter_xxs").state_dict(), tmp_path / "theirs.pth")
    pair = load_pair("meter_xxs", tmp_path / "theirs.pth", tmp_path / "theirs.pth")
    assert pair.about.isna().all(axis=None) and pair.size == (192, 256)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="'meter_xxs_rooms_asign'.*meter_xxs_rooms_assign"):
        load_pair("meter_xxs", selective="asign")
    with pytest.raises(FileNotFoundError, match="best.safetensors"):
        load_pair("meter_xxs", tmp_path / "best.safetensors")


def test_a_variant_is_no_file_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "reg").mkdir()
    monkeypatch.chdir(tmp_path)
    pair = load_pair("meter_xxs", selective="reg")
    assert pair.about["selective"]["neuron_selective"]
