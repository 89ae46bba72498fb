import json
import subprocess
import sys
from dataclasses import asdict, replace

import pandas as pd
import pytest
import torch
from torch import nn

from mde_utils.checkpoints import load_weights, read_metadata
from mde_utils.training import TrainConfig, fit


class Net(nn.Module):
    """A depth network with 8 watched units, small enough to be trained in a second."""

    loss_scale = 0.01
    depth_range = (0.75, 10.0)

    def __init__(self):
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, image):
        return self.out(self.wide(self.deep(image))) + 3


def items(n, seed=0):
    """Brighter is nearer, so there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    data = []
    for i in range(n):
        small = torch.rand(1, 1, 4, 5, generator=g)
        depth = 1 + 8 * nn.functional.interpolate(small, (32, 40), mode="bilinear")[0]
        data.append({"image": (1 - depth / 10).expand(3, -1, -1), "depth": depth, "name": f"i{i}"})
    return data


def net(seed=0):
    torch.manual_seed(seed)
    return Net()


@pytest.fixture
def config():
    return TrainConfig(
        cfg_layers=["wide"], num_epochs=3, batch_size=4, learning_rate=0.03, schedule="cosine"
    )


TRAIN, VAL = items(10), items(4, seed=1)


def test_a_run_learns_and_leaves_a_folder(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path / "run"), num_epochs=20)
    model = net()
    history = fit(model, TRAIN, VAL, config)
    frame = history.frame
    assert frame.epoch.tolist() == list(range(1, 21))
    assert frame.depth_loss.iloc[-1] < 0.3 * frame.depth_loss.iloc[0]
    assert {"val_d1", "val_rms", "val_n", "train_term_wide", "val_selectivity_wide"} < set(frame)
    # Without the selectivity term the loss is the scaled depth loss alone.
    assert (frame.loss - 0.01 * frame.depth_loss).abs().max() < 1e-5

    assert {p.name for p in history.run_dir.iterdir()} == {
        "config.json",
        "history.csv",
        "last.pt",
        "previous.pt",
        "best.safetensors",
        "tensorboard",
    }
    pd.testing.assert_frame_equal(pd.read_csv(history.run_dir / "history.csv"), frame)
    assert TrainConfig.load(history.run_dir / "config.json") == config
    assert history.best_epoch == frame.epoch[frame.val_d1.idxmax()]
    best = net(5)
    load_weights(best, history.best_weights)
    torch.testing.assert_close(best.state_dict(), model.state_dict())
    metadata = read_metadata(history.best_weights)
    assert metadata["config"]["learning_rate"] == 0.03
    assert metadata["metrics"]["val_d1"] == history.best["val_d1"]


@pytest.mark.parametrize("method", ["assign", "reg"])
def test_the_selectivity_term_raises_selectivity(config, method):
    config = replace(config, method=method, num_epochs=25)
    base = fit(net(), TRAIN, VAL, config)
    selective = fit(net(), TRAIN, VAL, replace(config, neuron_selective=True, imde_alpha=-100.0))
    last = selective.frame.iloc[-1]
    assert last.train_term_wide > base.frame.train_term_wide.iloc[-1] + 0.1
    expected = 0.01 * last.depth_loss - 100 * last.train_term_wide
    assert last.loss == pytest.approx(expected, abs=1e-3)


def test_seeds_decide(config):
    runs = [fit(net(), TRAIN, VAL, replace(config, seed=seed)) for seed in (0, 0, 1)]
    deterministic = ["loss", "val_d1", "val_rms", "val_selectivity_wide"]
    first, again, other = (run.frame[deterministic] for run in runs)
    pd.testing.assert_frame_equal(first, again, check_exact=True)
    assert not first.equals(other)


def test_a_stopped_run_goes_on_bit_for_bit(config, tmp_path):
    whole = net()
    expected = fit(whole, TRAIN, VAL, config)
    config = replace(config, run_dir=str(tmp_path))

    class Stop(Exception):
        pass

    class StopsInEpoch2(list):
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            if self.reads > 13:
                raise Stop
            return super().__getitem__(i)

    with pytest.raises(Stop):
        fit(net(), StopsInEpoch2(TRAIN), VAL, config)
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1
    model = net()
    history = fit(model, TRAIN, VAL, config)
    torch.testing.assert_close(model.state_dict(), whole.state_dict(), rtol=0, atol=0)
    same = ["epoch", "loss", "val_d1", "val_selectivity_wide"]
    pd.testing.assert_frame_equal(history.frame[same], expected.frame[same], check_exact=True)


def test_a_finished_run_is_read_not_run_again(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path))
    model, again = net(), net(7)
    first = fit(model, TRAIN, VAL, config)
    second = fit(again, TRAIN, VAL, config)
    pd.testing.assert_frame_equal(first.frame, second.frame)
    torch.testing.assert_close(model.state_dict(), again.state_dict())


def test_another_configs_folder_is_left_alone(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path), num_epochs=1)
    fit(net(), TRAIN, VAL, config)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=r"another config \(seed: 0 there, 3 here\)"):
        fit(net(), TRAIN, VAL, replace(config, seed=3))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_loss_that_is_not_finite_stops_and_names_the_images(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path), num_epochs=1, batch_size=10)
    fit(net(), TRAIN, VAL, config)
    before = (tmp_path / "best.safetensors").read_bytes()
    bad = [dict(item) for item in TRAIN]
    bad[3]["image"] = bad[3]["image"] * float("nan")
    config = replace(config, num_epochs=2)
    config.save(tmp_path / "config.json")  # one more epoch of the same run
    with pytest.raises(FloatingPointError, match=r"in epoch 2, at the images .*i3.*whole epoch"):
        fit(net(), bad, VAL, config)
    assert (tmp_path / "best.safetensors").read_bytes() == before
    assert len(pd.read_csv(tmp_path / "history.csv")) == 1


def test_no_hook_is_left_on_the_model(config):
    model = net()
    fit(model, TRAIN, VAL, replace(config, num_epochs=1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_best_by_rms(config):
    history = fit(net(), TRAIN, VAL, replace(config, best_by="rms"))
    assert history.best_epoch == history.frame.epoch[history.frame.val_rms.idxmin()]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"neuron_selective": True, "cfg_layers": []}, "cfg_layers is empty"),
        ({"method": "asign"}, "Unknown method 'asign'. Known: assign, reg"),
        ({"definition": "x"}, "Unknown definition 'x'. Known: paper, reference"),
        ({"depth_loss": "x"}, "Unknown depth_loss 'x'. Known: balanced"),
        ({"schedule": "x"}, "Unknown schedule 'x'"),
        ({"best_by": "loss"}, "Unknown best_by 'loss'. Known: d1, rms, rel"),
        ({"num_epochs": 0}, "num_epochs must be a whole number from 1 on; got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"imde_alpha": float("nan")}, "imde_alpha must be a finite number"),
    ],
)
def test_bad_configs(changes, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)


def test_a_positive_weight_is_warned_of():
    with pytest.warns(UserWarning, match="should be negative"):
        TrainConfig(neuron_selective=True, imde_alpha=0.1)


def test_a_run_folder_that_cannot_be_written_is_found_at_once(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    seen = []

    class Data(list):
        def __getitem__(self, i):
            seen.append(i)
            return super().__getitem__(i)

    with pytest.raises(OSError, match="Cannot write 'config.json' into the folder"):
        fit(net(), Data(TRAIN), VAL, replace(config, run_dir=str(tmp_path / "file" / "run")))
    assert len(seen) == 1  # a look at the data, no epoch


def test_a_mistake_does_not_lock_the_folder(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path / "run"), num_epochs=1)
    with pytest.raises(ValueError, match="Unknown layer"):
        fit(net(), TRAIN, VAL, replace(config, cfg_layers=["wid"]))
    assert not (tmp_path / "run").exists()
    fit(net(), TRAIN, VAL, config)


def test_a_batch_without_valid_depth_names_its_images(config):
    bad = [dict(item) for item in TRAIN]
    for item in bad[1:]:
        item["depth"] = item["depth"] * 0
    with pytest.raises(ValueError, match="In epoch 1, at the images i.*no valid pixel"):
        fit(net(), bad, VAL, config)


def test_depth_beyond_the_bins_trains_without_the_selectivity_term(config):
    far = [{**item, "depth": item["depth"] + 20} for item in TRAIN[1:]] + TRAIN[:1]
    frame = fit(net(), far, VAL, replace(config, batch_size=1, num_epochs=1)).frame
    assert frame.depth_loss.notna().all() and frame.train_term_wide.notna().all()


def test_only_one_process_so_far(config, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(NotImplementedError, match="one process"):
        fit(net(), TRAIN, VAL, config)


def test_bad_data_and_layers(config):
    blind = [{**item, "depth": -item["depth"]} for item in VAL]
    with pytest.raises(ValueError, match="validation set has no depth between 0 and 10 m"):
        fit(net(), TRAIN, blind, config)
    with pytest.raises(ValueError, match="training set is empty"):
        fit(net(), [], VAL, config)
    with pytest.raises(ValueError, match="validation set is empty"):
        fit(net(), TRAIN, [], config)
    with pytest.raises(ValueError, match="Unknown layer 'dec_3' of Net"):
        fit(net(), TRAIN, VAL, replace(config, cfg_layers=["dec_3"]))


def test_config_files(tmp_path):
    config = TrainConfig(seed=4, data_options={"size": [64, 64]})
    assert TrainConfig.load(config.save(tmp_path / "c.json")) == config
    assert TrainConfig(cfg_layers="dec_3").cfg_layers == ("dec_3",)
    assert config.run_name() == replace(config, run_dir="elsewhere").run_name()
    assert config.run_name() != replace(config, batch_size=63).run_name()
    values = {**asdict(config), "imde_alfa": -1}
    (tmp_path / "c.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="Unknown key 'imde_alfa'.*Did you mean imde_alpha"):
        TrainConfig.load(tmp_path / "c.json")
    (tmp_path / "c.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        TrainConfig.load(tmp_path / "c.json")
    with pytest.raises(FileNotFoundError, match="No config"):
        TrainConfig.load(tmp_path / "d.json")


def test_command_line(tmp_path):
    config = TrainConfig(
        num_epochs=1,
        batch_size=2,
        neuron_selective=True,
        data_options={"size": [64, 64], "fields": ["image", "depth"], "limit": 2, "cache": False},
        run_dir=str(tmp_path / "run"),
    )
    path = config.save(tmp_path / "config.json")
    command = [sys.executable, "-m", "mde_utils.training", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "best epoch 1 by d1" in done.stdout
    assert (tmp_path / "run" / "best.safetensors").is_file()
