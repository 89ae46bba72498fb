"""The queue of shipped networks: it goes on, refuses what has changed, and ships what is done."""

import json
from dataclasses import replace

import pytest
import train_shipped

from mde_utils import build_model, load_dataset
from mde_utils.checkpoints import read_metadata

SIZE = [64, 64]


def stage(**settings):
    return {
        "model": "meter_xxs",
        "dataset": "rooms",
        "data_options": {
            "size": SIZE,
            "fields": ["image", "depth"],
            "train": {"limit": 8},
            "val": {"limit": 2},
        },
        "cfg_layers": ["dec_3"],
        "batch_size": 4,
        "num_epochs": 1,
        **settings,
    }


@pytest.fixture
def queue(monkeypatch, tmp_path):
    """Two stages of one small network, in folders of their own."""
    monkeypatch.setattr(train_shipped, "ROOT", tmp_path)
    monkeypatch.setattr(train_shipped, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(train_shipped, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(train_shipped, "TEST", {"rooms": 4})
    networks = {"small": [stage(), stage(num_epochs=2)]}
    monkeypatch.setattr(train_shipped, "NETWORKS", networks)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["train_shipped.py", *arguments])
        train_shipped.main()

    return run


def test_it_trains_all_stages_and_ships(queue, tmp_path, capsys):
    queue("--hours", "1")
    said = capsys.readouterr().out
    assert "small, stage 2, epoch 2" in said and "small is shipped" in said
    path = tmp_path / "weights" / "small.safetensors"
    about = json.loads(path.with_suffix(".json").read_text())
    assert about == {k: v for k, v in read_metadata(path).items() if k in about}
    assert about["test"]["metrics"]["n"] == 4 and len(about["history"]) == 2
    assert len(about["history"][1]["epoch"]) == 2
    assert about["stages"][1]["weights"] == "runs/small/0/best.safetensors"
    build_model("meter_xxs", weights=path)  # in half precision, if that changed nothing
    assert path.stat().st_size < 1.6e6
    queue("--hours", "1")
    assert "shipped" in capsys.readouterr().out  # and nothing was trained again
    queue()
    assert "shipped" in capsys.readouterr().out


def test_a_network_that_takes_sparse_depth_is_measured_with_it(queue, monkeypatch, tmp_path):
    completion = stage(model="cspn_test_resnet", depth_loss="l1", cfg_layers=["layer4"])
    for split, points in (("train", [10, 100]), ("val", 50)):
        completion["data_options"][split]["sparse_samples"] = points
    monkeypatch.setattr(train_shipped, "NETWORKS", {"small": [completion]})
    queue("--hours", "1")
    about = json.loads((tmp_path / "weights" / "small.json").read_text())
    assert about["test"]["metrics"]["n"] == 4 and "layer4" in about["test"]["selectivity"]


def test_out_of_time_it_says_how_far_it_is_and_goes_on(queue, monkeypatch, capsys):
    clock = iter(range(10**6))
    monkeypatch.setattr(train_shipped.time, "monotonic", lambda: next(clock) * 2000.0)
    queue("--hours", "2.5")  # over after the first stage: the clock is far on at the second
    said = capsys.readouterr().out
    assert "small" in said and "shipped" not in said


def test_other_pictures_or_another_config_are_refused(queue, monkeypatch):
    queue("--hours", "1")
    monkeypatch.setattr(train_shipped, "RENDERER", {"rooms": 99})
    with pytest.raises(SystemExit, match="version .* 99"):
        queue("--hours", "1")
    monkeypatch.undo()


def test_another_config_is_refused_with_the_difference(queue, monkeypatch, tmp_path):
    queue("--hours", "1")
    (tmp_path / "weights" / "small.json").unlink()
    changed = {"small": [stage(learning_rate=0.5), stage(num_epochs=2)]}
    monkeypatch.setattr(train_shipped, "NETWORKS", changed)
    with pytest.raises(ValueError, match="learning_rate.*0.5"):
        queue("--hours", "1")


def test_unknown_names_are_refused(queue):
    with pytest.raises(SystemExit, match="small"):
        queue("nonsense")


def test_every_config_of_the_queue_is_one(monkeypatch):
    for name in train_shipped.NETWORKS:
        for number in range(len(train_shipped.NETWORKS[name])):
            config = train_shipped.config_of(name, number)
            assert replace(config, run_dir=None).identity()
            options = dict(config.data_options)
            options |= options.pop("val")
            options.pop("train")
            assert len(load_dataset(config.dataset, "val", **options | {"cache": False})) > 0


def test_a_cpu_stands_in_for_the_gpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["x", "--gpu", "2", "--cut", "--out", str(tmp_path)])
    train_shipped.main()
    table = json.loads((tmp_path / "gpu.json").read_text())
    assert table["outside_network"] < 1 and table["pool_times_faster"] > 0
    for variant in ("baseline", "assign", "reg"):
        about = json.loads((tmp_path / f"meter_xxs_rooms_{variant}.json").read_text())
        assert about["config"]["neuron_selective"] == (variant != "baseline")
        build_model("meter_xxs", weights=tmp_path / f"meter_xxs_rooms_{variant}.safetensors")
    assert len(list(tmp_path.iterdir())) <= 8  # as many as come back
