import random
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from torch import nn
from torch.utils.data import Dataset, Subset
from toys import TRAIN, VAL, Net, RandomItems, assert_same, assert_same_frames, net, plain

from mde_utils.activations import tap
from mde_utils.checkpoints import load_weights, read_metadata
from mde_utils.evaluation import evaluate
from mde_utils.losses import balanced_loss
from mde_utils.models import build_model
from mde_utils.selectivity import SelectivityLoss, layer_bins
from mde_utils.training import LOSSES, TrainConfig, fit
from mde_utils.training.runs import BEST
from mde_utils.training.step import make_optimiser

one_thread = pytest.fixture(autouse=True)(toys.one_thread)


@pytest.fixture
def config():
    return TrainConfig(
        cfg_layers=["wide"], num_epochs=3, batch_size=4, learning_rate=0.03, schedule="cosine"
    )


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


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
    assert TrainConfig.load(history.run_dir / "config.json") == replace(config, model="Net")
    assert history.best_epoch == frame.epoch[frame.val_d1.idxmax()]
    best = net(5)
    load_weights(best, history.run_dir / BEST)
    torch.testing.assert_close(best.state_dict(), model.state_dict())
    metadata = read_metadata(history.run_dir / BEST)
    assert metadata["config"]["learning_rate"] == 0.03
    assert metadata["metrics"]["val_d1"] == history.best["val_d1"]


@pytest.mark.filterwarnings("ignore:The selectivity term is so strong")
@pytest.mark.parametrize("method", ["assign", "reg"])
def test_the_selectivity_term_raises_selectivity(config, method):
    config = replace(config, method=method, num_epochs=25)
    base = fit(net(), TRAIN, VAL, config)
    selective = fit(net(), TRAIN, VAL, replace(config, neuron_selective=True, imde_alpha=-100.0))
    last = selective.frame.iloc[-1]
    assert last.train_term_wide > base.frame.train_term_wide.iloc[-1] + 0.1
    expected = 0.01 * last.depth_loss - 100 * last.train_term_wide
    assert last.loss == pytest.approx(expected, abs=1e-3)


# ------------------------------------------------------------------ the optimisation


def test_decay_of_a_part_of_the_network_alone():
    model = net()
    model.deep[0].bias.requires_grad_(False)
    names = {id(p): name for name, p in model.named_parameters()}
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    for prefix, decaying in (("", trained), ("deep.", ["deep.0.weight", "deep.1.weight"])):
        config = TrainConfig(decay_prefix=prefix, weight_decay=0.3, adam_epsilon=1e-3)
        groups = make_optimiser(model, config).param_groups
        found = [[names[id(p)] for p in group["params"]] for group in groups]
        others = [name for name in trained if not name.startswith(prefix)]
        assert sorted(sum(found, [])) == sorted(trained)  # nothing frozen, nothing twice
        assert set(found[0]) >= set(decaying) and found[1:] == [others] * bool(prefix)
        assert [group["weight_decay"] for group in groups] == [0.3, 0.0][: len(groups)]
        assert {group["eps"] for group in groups} == {1e-3}
    group = make_optimiser(model, TrainConfig(optimizer="sgd", learning_rate=0.5)).param_groups[0]
    assert (group["lr"], group["momentum"], group["nesterov"]) == (0.5, 0.9, True)


def test_what_is_frozen_stays(config):
    model = net()
    model.deep.requires_grad_(False)
    before = {name: p.clone() for name, p in model.named_parameters()}
    for optimizer in ("adamw", "sgd"):
        fit(model, TRAIN, VAL, replace(config, optimizer=optimizer, weight_decay=0.5))
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("deep."), name
    with pytest.raises(ValueError, match="no parameter to train: all are frozen"):
        fit(model.requires_grad_(False), TRAIN, VAL, config)


def test_a_prefix_of_no_parameter(config):
    with pytest.raises(ValueError, match="decay_prefix 'encoder'.*with: deep., wide., out."):
        fit(net(), TRAIN, VAL, replace(config, decay_prefix="encoder"))


def test_a_network_with_an_input_that_items_lack(config):
    class Focal(Net):
        input_names = ("focal",)

        def forward(self, image, focal):
            return super().forward(image) * (focal / 500).view(-1, 1, 1, 1).float()

    with_focal = [item | {"focal": 500.0} for item in TRAIN]
    history = fit(net(kind=Focal), with_focal, with_focal, config)
    assert_same_frames(history.frame, fit(net(), TRAIN, TRAIN, config).frame)
    for sets, which in (((TRAIN, with_focal), "training"), ((with_focal, VAL), "validation")):
        with pytest.raises(ValueError, match=f"'focal'.*{which} set lack; they have image, depth"):
            fit(net(kind=Focal), *sets, config)


def test_the_polynomial_goes_down_with_every_step(config, monkeypatch):
    rates, step = [], torch.optim.AdamW.step

    def recording(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", recording)
    config = replace(config, schedule="polynomial", decay_factor=0.1, batch_size=3, num_epochs=2)
    frame = fit(net(), TRAIN, VAL, config).frame
    expected = [0.03 * (0.1 + 0.9 * (1 - t / 6) ** 0.9) for t in range(6)]
    assert rates == pytest.approx(expected)
    assert frame.lr.tolist() == [rates[2], rates[5]]


def test_the_rate_falls_on_a_plateau(config):
    config = replace(config, schedule="plateau", decay_every=1, num_epochs=12, best_by="rms")
    frame = fit(net(), TRAIN, VAL, replace(config, learning_rate=0.5)).frame
    past = frame.val_rms.tolist()
    expected = [replace(config, learning_rate=0.5).rate(e + 1, past[:e]) for e in range(12)]
    assert frame.lr.tolist() == expected and len(set(expected)) > 1


# ------------------------------------------------------------------ the history

OF_A_RUN = (
    "epoch lr imde_alpha depth_loss selectivity_term loss gradient_ratio seconds data_seconds "
    "images_per_s"
).split()
OF_A_LAYER = (
    "train_term train_selectivity train_coverage train_absent train_collapsed val_collapsed "
    "val_selectivity val_assigned"
).split()
OF_DEPTH = "d1 d2 d3 d1.02 d1.05 d1.10 rms rms_log rel sq_rel log10 n".split()


@pytest.mark.filterwarnings("ignore:The selectivity term is too weak")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"neuron_selective": True},
        {"neuron_selective": True, "method": "reg"},
        {"definition": "reference"},
    ],
)
def test_every_run_has_the_same_columns(config, changes):
    layers = ["wide", "deep.0"]
    frame = fit(net(), TRAIN, VAL, replace(config, cfg_layers=layers, **changes)).frame
    columns = [f"{column}_{layer}" for column in OF_A_LAYER for layer in layers]
    assert set(frame) == {*OF_A_RUN, *columns, *(f"val_{metric}" for metric in OF_DEPTH)}
    assert frame.notna().all(axis=None)
    terms = frame.train_term_wide + frame["train_term_deep.0"]
    assert frame.selectivity_term.tolist() == pytest.approx(terms.tolist())


def test_a_run_that_watches_no_layer(config):
    frame = fit(net(), TRAIN, VAL, replace(config, cfg_layers=[])).frame
    left_out = {"selectivity_term", "gradient_ratio"}
    assert set(frame) == {*OF_A_RUN, *(f"val_{metric}" for metric in OF_DEPTH)} - left_out


class Echo(nn.Module):
    """Three watched units that give the channels of the image, and one that is dead."""

    depth_range = (0.75, 10.0)

    def __init__(self):
        super().__init__()
        self.units = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
        self.out = nn.Conv2d(4, 1, 1)
        with torch.no_grad():
            self.units[0].weight.copy_(torch.eye(4, 3)[..., None, None])
            self.units[0].bias.copy_(torch.tensor([0.0, 0.0, 0.0, -1.0]))
            self.out.weight.fill_(0.3)
            self.out.bias.fill_(0.1)

    def forward(self, image):
        return self.out(self.units(image)) + 3


def stripes(*bins):
    """Depth in these bins of four. The channels are 1 in bin 0, everywhere, and in bins 0 and 1."""
    edges = layer_bins(4, Echo.depth_range).edges
    of_row = torch.tensor(bins).repeat_interleave(32 // len(bins))
    depth = ((edges[1:] + edges[:-1]) / 2).float()[of_row]
    image = torch.stack([of_row == 0, of_row >= 0, of_row < 2]).float()
    return {
        "image": image[..., None].expand(-1, -1, 40),
        "depth": depth[None, :, None].expand(-1, -1, 40),
    }


@pytest.mark.filterwarnings("ignore:The selectivity term is too weak")
def test_the_columns_of_a_case_by_hand():
    train, val = [stripes(0, 1), stripes(0, 1, 2, 3)], [stripes(0, 1, 2, 3)]
    config = TrainConfig(
        cfg_layers=["units"], num_epochs=1, batch_size=1, learning_rate=1e-30, seed=2
    )
    expected = {
        "train_coverage_units": 3 / 4,  # half of the bins, then all
        "train_absent_units": 1,  # units 2 and 3 in the first image
        "train_collapsed_units": 1,
        "val_collapsed_units": 1,
        # At the assigned bin: units 0 and 1 in the first image, all in the second.
        "train_term_units": ((1 + 0) / 2 + (1 + 0 - 1 + 0) / 4) / 2,
        "val_assigned_units": (1 + 0 - 1 + 0) / 4,
        # At the best bin, of the responses to both images.
        "train_selectivity_units": (1 + 0 + 1 / 2 + 0) / 4,
        "val_selectivity_units": (1 + 0 + 1 / 2 + 0) / 4,
        "val_n": 1,
        "lr": 1e-30,
        "imde_alpha": -0.1,
    }
    model = Echo()
    with torch.no_grad():
        losses = [balanced_loss(model(i["image"][None]), i["depth"][None]) for i in train]
    expected["depth_loss"] = sum(losses).item() / 2
    for selective in (False, True):
        history = fit(Echo(), train, val, replace(config, neuron_selective=selective))
        row = history.frame.iloc[0].to_dict()
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert row["selectivity_term"] == row["train_term_units"]
        alpha = -0.1 if selective else 0
        assert row["loss"] == pytest.approx(row["depth_loss"] + alpha * row["selectivity_term"])
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"])
        assert 0 < row["data_seconds"] < row["seconds"]
        assert {f"val_{k}": v for k, v in evaluate(Echo(), val).items()}.items() <= row.items()


def ratio_of(model, batch, weight):
    """‖weight · ∇ selectivity‖ / ‖∇ scaled depth loss‖, each by a forward of its own."""
    image, depth = (torch.stack([item[k] for item in batch]) for k in ("image", "depth"))
    norms = []
    for term in ("selectivity", "depth"):
        model.zero_grad()
        with tap(model, ["wide"], detach=False) as acts:
            pred = model(image)
        target = nn.functional.interpolate(depth, pred.shape[-2:], mode="nearest-exact")
        if term == "selectivity":
            (weight * SelectivityLoss(Net.depth_range)(acts, target)).backward()
        else:
            (Net.loss_scale * balanced_loss(pred, target)).backward()
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        norms.append(torch.cat(grads).norm().item())
    return norms[0] / norms[1]


@pytest.mark.parametrize("selective", [False, True])
def test_the_gradient_ratio_is_that_of_two_backward_passes(config, selective):
    config = replace(config, num_epochs=1, batch_size=10, neuron_selective=selective)
    frame = fit(net(), TRAIN, VAL, replace(config, imde_alpha=-3.0)).frame
    assert frame.gradient_ratio[0] == pytest.approx(ratio_of(net(), TRAIN, -3.0), rel=1e-4)


class Recording(list):
    def __init__(self, data):
        super().__init__(data)
        self.read = []

    def __getitem__(self, i):
        self.read.append(i)
        return super().__getitem__(i)


def order_of(config, data=TRAIN):
    """Indices in the order of training; the first is the look before it."""
    data = Recording(data)
    fit(net(), data, VAL, replace(config, run_dir=None))
    return data.read[1:]


def test_the_gradient_ratio_is_a_mean_over_every_nth_step(config, monkeypatch):
    monkeypatch.setattr("mde_utils.training.loop.PROBE_EVERY", 2)
    config = replace(config, num_epochs=1, batch_size=2, learning_rate=1e-30)
    probed = [order_of(config)[i : i + 2] for i in (0, 4, 8)]
    ratios = [ratio_of(net(), [TRAIN[i] for i in batch], -0.1) for batch in probed]
    frame = fit(net(), TRAIN, VAL, config).frame
    assert frame.gradient_ratio[0] == pytest.approx(sum(ratios) / 3, rel=1e-4)


def test_the_weight_grows_step_by_step(config):
    config = replace(
        config, batch_size=1, learning_rate=1e-30, neuron_selective=True, imde_warmup=2.0
    )
    frame = fit(net(), TRAIN[:1] * 2, VAL, replace(config, imde_alpha=-8.0)).frame
    assert frame.imde_alpha.tolist() == [-4.0, -8.0, -8.0]
    weights = (frame.loss - 0.01 * frame.depth_loss) / frame.selectivity_term
    assert weights.tolist() == pytest.approx([-(2 + 4) / 2, -(6 + 8) / 2, -8], rel=1e-4)


def test_frozen_layers_can_be_watched(config):
    model = net()
    model.deep.requires_grad_(False)
    frame = fit(model, TRAIN, VAL, replace(config, cfg_layers=["deep"])).frame
    assert (frame.gradient_ratio == 0).all() and frame.depth_loss[2] < frame.depth_loss[0]


def test_an_epoch_without_depth_inside_the_bins_has_no_term(config):
    far = [{**item, "depth": item["depth"] + 20} for item in TRAIN]
    far[0]["depth"][0, 0, 0] = 5  # a pixel that is lost at the network's resolution
    frame = fit(net(), far, VAL, replace(config, neuron_selective=True)).frame
    for column in ("selectivity_term", "gradient_ratio", "train_term_wide"):
        assert frame[column].isna().all()
    assert (frame.train_coverage_wide == 0).all() and (frame.train_absent_wide == 8).all()
    assert frame.loss.tolist() == pytest.approx((0.01 * frame.depth_loss).tolist())


# ------------------------------------------------------------------ what decides a run


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
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    data = Recording(TRAIN)
    second = fit(again, data, VAL, replace(config, max_hours=1e-9))
    assert second.finished and len(data.read) == 1  # a look at the data, no epoch
    pd.testing.assert_frame_equal(first.frame, second.frame)
    assert_same(dict(model.state_dict()), dict(again.state_dict()))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_another_configs_folder_is_left_alone(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path), num_epochs=1)
    fit(net(), TRAIN, VAL, config)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"another config \(seed: 3 here, 0 there\)"):
        fit(net(), TRAIN, VAL, replace(config, seed=3))
    assert contents(tmp_path) == before


# ------------------------------------------------------------------ what goes wrong


class Poison(torch.autograd.Function):
    """Passes on; where asked to, the gradient becomes infinite."""

    @staticmethod
    def forward(ctx, x, active):
        ctx.active = active
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (float("inf") if ctx.active else 1), None


class Poisoned(Net):
    """Its step at a batch with a black image is a broken one, though its loss is finite."""

    def forward(self, image):
        black = (image == 0).flatten(1).all(1).any()
        return Poison.apply(super().forward(image), bool(self.training and black))


Poisoned.__name__ = "Net"  # to its run it is the same network


@pytest.fixture
def started(config, tmp_path):
    """A config of which one epoch has been trained, with 5 steps of 2 images; and their order."""
    config = replace(config, run_dir=str(tmp_path / "run"), batch_size=2, save_minutes=0.0)
    order = order_of(config)
    assert len(order) == 30
    fit(net(), TRAIN, VAL, replace(config, max_hours=1e-9))
    return config, [order[i : i + 2] for i in range(0, 30, 2)]


def with_image(index, change):
    data = [dict(item) for item in TRAIN]
    data[index]["image"] = change(data[index]["image"])
    return data


@pytest.mark.parametrize("step", [1, 4])
def test_a_loss_that_is_not_finite_names_its_images(started, step):
    config, batches = started
    checkpoint = Path(config.run_dir) / "last.pt"
    before = checkpoint.read_bytes()
    bad = with_image(batches[step][0], lambda image: image * float("nan"))
    names = ", ".join(f"i{i}" for i in batches[step])
    message = f"The loss is nan in epoch 1, at the images {names}. The last checkpoint is kept. "
    with pytest.raises(FloatingPointError, match=message + "Lower learning_rate"):
        fit(net(), bad, VAL, config)
    assert checkpoint.read_bytes() == before
    with pytest.raises(FloatingPointError, match="Nothing was saved. Lower"):
        fit(net(), bad, VAL, replace(config, run_dir=None))


@pytest.mark.parametrize("save_minutes", [0.0, 1e-9])
@pytest.mark.parametrize("step", [1, 4])
def test_a_step_that_breaks_the_weights_is_blamed_and_never_saved(started, step, save_minutes):
    """Found at the next loss, before a checkpoint, or, after the last step, before validation."""
    config, batches = started
    config = replace(config, save_minutes=save_minutes)
    bad = with_image(batches[step][1], torch.zeros_like)
    names = ", ".join(f"i{i}" for i in batches[step])
    message = f"weights are not finite since the step in epoch 1, at the images {names}. The last"
    with pytest.raises(FloatingPointError, match=message):
        fit(net(kind=Poisoned), bad, VAL, config)
    folder = Path(config.run_dir)
    assert not (folder / "best.safetensors").exists()
    for path in folder.glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert state["position"] <= step
        assert all(value.isfinite().all() for value in state["model"].values())
    # Without the image the run goes on.
    assert fit(net(kind=Poisoned), TRAIN, VAL, config).finished


def test_a_learning_rate_that_diverges_is_said(config, recwarn):
    config = replace(config, schedule="constant", batch_size=10, num_epochs=4)
    said = warned_of(replace(config, learning_rate=10.0), recwarn, model=net(norm=plain))
    assert len(said) == 1
    assert said[0].startswith("The depth loss has grown from 1988 in epoch 1 to ")
    assert said[0].endswith(" in epoch 2: learning_rate (10) may be too high.")
    with pytest.raises(FloatingPointError, match="Lower learning_rate"):
        fit(net(norm=plain), TRAIN, VAL, replace(config, learning_rate=1e8))


def warned_of(config, recwarn, train=TRAIN, model=None):
    recwarn.clear()
    fit(model or net(), train, VAL, config)
    assert all(w.filename == __file__ for w in recwarn)
    return [str(w.message) for w in recwarn]


def test_what_the_ratio_says_is_said_once(config, recwarn):
    selective = replace(config, neuron_selective=True, num_epochs=4)
    weak = warned_of(replace(selective, imde_alpha=-1e-6), recwarn)
    assert len(weak) == 1 and weak[0].startswith("The selectivity term is too weak to matter: its")
    assert "in epoch 1 (imde_alpha -1e-06)" in weak[0]
    strong = warned_of(replace(selective, imde_alpha=-1e4), recwarn)
    text = "The selectivity term is so strong that depth suffers: its gradient is"
    assert [message[: len(text)] for message in strong].count(text) == 1
    assert len(strong) == len(set(strong)) <= 2  # depth may suffer indeed
    assert warned_of(replace(selective, imde_alpha=-1.0), recwarn) == []
    baseline = replace(config, imde_alpha=-1e-6, num_epochs=2)
    assert warned_of(baseline, recwarn) == []


def test_a_weight_that_still_grows_is_not_too_weak(config, recwarn):
    config = replace(config, neuron_selective=True, imde_alpha=-1.0, num_epochs=2)
    assert warned_of(replace(config, imde_warmup=2000.0), recwarn) == []
    assert warned_of(config, recwarn) == []


@pytest.mark.parametrize("train", [TRAIN, with_image(3, lambda image: image / 0)])
def test_no_hook_is_left_on_the_model(config, train):
    model = net()
    with nullcontext() if train is TRAIN else pytest.raises(FloatingPointError):
        fit(model, train, VAL, replace(config, num_epochs=1))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_optimizers_differ_in_what_weight_decay_is(config, recwarn):
    """Without a gradient, AdamW shrinks a weight by lr x decay; Adam takes the decay for one."""
    ends = {}
    for optimizer in ("adamw", "adam"):
        model = net()
        model.idle = nn.Parameter(torch.tensor([2.0]))
        model.register_forward_hook(lambda m, _, out: out + 0 * m.idle)
        changes = {"optimizer": optimizer, "schedule": "constant", "learning_rate": 0.01}
        fit(model, TRAIN[:4], VAL, replace(config, weight_decay=0.1, num_epochs=1, **changes))
        ends[optimizer] = model.idle.item()
    assert ends["adamw"] == pytest.approx(2 * (1 - 0.01 * 0.1))
    assert ends["adam"] == pytest.approx(2 - 0.01, abs=1e-4)


def test_meters_loss_for_rooms_is_not_for_streets(config):
    far = [{**item, "depth": item["depth"] * 7} for item in TRAIN]
    model = net()
    model.depth_range = (3.0, 80.0)
    with pytest.raises(ValueError, match="'balanced'.* 10 m.* 80 m.*'balanced_kitti'"):
        fit(model, far, far, config)
    frame = fit(model, far, far, replace(config, depth_loss="balanced_kitti", num_epochs=1)).frame
    assert frame.depth_loss.notna().all()
    pred, target = far[0]["depth"][None], far[1]["depth"][None]
    found = LOSSES["balanced_kitti"](pred, target)  # in decimetres, as METER's KITTI weights
    assert found.item() == pytest.approx(balanced_loss(pred, target, units_per_metre=10).item())


def test_what_is_recorded_is_what_is_trained(config, tmp_path):
    """A network of the suite by the name that the config must have; another one by its class."""
    history = fit(net(), TRAIN, VAL, replace(config, num_epochs=1, run_dir=str(tmp_path)))
    assert history.config.model == TrainConfig.load(tmp_path / "config.json").model == "Net"
    model = build_model("meter_xxs")
    with pytest.raises(ValueError, match="model='mff_resnet50'.*is 'meter_xxs'.*model='meter_xxs'"):
        fit(model, TRAIN, VAL, replace(config, model="mff_resnet50", cfg_layers=()))


def test_best_by_rms(config):
    history = fit(net(), TRAIN, VAL, replace(config, best_by="rms"))
    assert history.best_epoch == history.frame.epoch[history.frame.val_rms.idxmin()]


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


def test_bad_data_and_layers(config):
    blind = [{**item, "depth": -item["depth"]} for item in VAL]
    with pytest.raises(ValueError, match="validation set has no depth between 0 and 10 m"):
        fit(net(), TRAIN, blind, config)
    with pytest.raises(ValueError, match="training set is empty"):
        fit(net(), [], VAL, config)
    with pytest.raises(ValueError, match="validation set is empty"):
        fit(net(), TRAIN, [], config)
    with pytest.raises(ValueError, match="fit needs a validation set"):
        fit(net(), TRAIN, None, config)
    with pytest.raises(ValueError, match="Unknown layer 'dec_3' of Net"):
        fit(net(), TRAIN, VAL, replace(config, cfg_layers=["dec_3"]))


# ------------------------------------------------------------------ data sets


class Own(Dataset):
    """As somebody writes one: no batches in one read, a switch for the augmentation."""

    augment = None

    def __len__(self):
        return len(TRAIN)

    def __getitem__(self, i):
        return TRAIN[i]


def test_any_data_set_will_do(config):
    expected = fit(net(), TRAIN, VAL, config).frame
    for data in (Own(), tuple(TRAIN), Subset(Own(), range(10))):
        assert_same_frames(fit(net(), data, VAL, config).frame, expected)


def test_the_generators_of_the_caller_are_not_what_decides(config):
    frames = []
    for seed in (1, 2):
        model = net()
        torch.manual_seed(seed), random.seed(seed), np.random.seed(seed)
        frames.append(fit(model, RandomItems(TRAIN), VAL, config).frame)
    assert_same_frames(*frames)


def test_items_are_augmented_anew_in_every_epoch(config):
    class Drawing(RandomItems):
        seen = []

        def __getitem__(self, i):
            item = super().__getitem__(i)
            self.seen.append((i, item["image"].mean().item()))
            return item

    data = Drawing(TRAIN)
    fit(net(), data, VAL, replace(config, batch_size=5, num_epochs=2))
    assert len({index for index, _ in data.seen[1:]}) == 10
    assert len(set(data.seen[1:])) == len(data.seen[1:]) == 20


def test_only_a_data_set_with_seeded_batches_is_read_by_the_batch(config):
    class Own(list):
        batch = 16  # an attribute of its own says nothing

    class Whole(Own):
        asked = []

        def seeded_batch(self, indices, seed):
            self.asked.append(seed)
            return [self[index] for index in indices]

    expected = fit(net(), TRAIN, VAL, config).frame
    assert_same_frames(fit(net(), Own(TRAIN), VAL, config).frame, expected)
    assert_same_frames(fit(net(), Whole(TRAIN), VAL, config).frame, expected)
    assert len(set(Whole.asked)) == len(Whole.asked) > 1


# ------------------------------------------------------------------ callback, precision, shell


def test_the_callback_sees_every_epoch(config, tmp_path):
    config = replace(config, run_dir=str(tmp_path))
    seen = []
    history = fit(net(), TRAIN, VAL, config, on_epoch=seen.append)
    assert [len(part.frame) for part in seen] == [1, 2, 3]
    assert [part.finished for part in seen] == [False, False, True]
    assert_same_frames(seen[-1].frame, history.frame)
    assert all(part.best_epoch <= len(part.frame) for part in seen)


def test_half_precision_scales_gradients_and_goes_on(config, tmp_path, monkeypatch, recwarn):
    """As on a GPU that has float16 alone. The first steps only find the scale."""
    monkeypatch.setattr("mde_utils.training.step.amp_dtype", lambda device: torch.float16)
    config = replace(config, neuron_selective=True, imde_alpha=-1.0)
    whole, parts = (replace(config, run_dir=str(tmp_path / name)) for name in ("a", "b"))
    frame = fit(net(), TRAIN, VAL, whole).frame
    assert frame.gradient_ratio.isna()[0] and frame.gradient_ratio[2] > 0
    while not fit(net(), TRAIN, VAL, replace(parts, max_hours=1e-9)).finished:
        pass
    states = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("a", "b")]
    assert states[0]["scaler"]["scale"] < 65536
    assert_same(*states)
    assert not [w for w in recwarn if "selectivity" in str(w.message)]


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
