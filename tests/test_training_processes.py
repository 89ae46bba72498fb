"""Several processes train as one does: the same loss, gradients, weights and history."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import toys
from torch.nn.parallel import DistributedDataParallel
from toys import (
    TIMES,
    TRAIN,
    VAL,
    Net,
    RandomItems,
    RandomNet,
    assert_same,
    assert_same_frames,
    in_two,
    items,
    net,
    plain,
)

from mde_utils.activations import tap
from mde_utils.checkpoints import load_weights
from mde_utils.data import load_dataset
from mde_utils.evaluation import evaluate
from mde_utils.losses import balanced_loss
from mde_utils.models import build_model
from mde_utils.selectivity import SelectivityLoss
from mde_utils.training import TrainConfig, fit, launch
from mde_utils.training.runs import LAST

one_thread = pytest.fixture(autouse=True)(toys.one_thread)

CONFIG = TrainConfig(
    cfg_layers=["wide"],
    num_epochs=3,
    batch_size=4,
    learning_rate=0.003,
    schedule="cosine",
    neuron_selective=True,
    imde_alpha=-1.0,
)

# ------------------------------------------------------------------ gradients

LOSSES = {
    "assign": {},
    "reg": {"method": "reg"},
    "reference": {"definition": "reference"},
}


def batches(count):
    """Four images each: the first half lies in near bins, the second in far ones."""
    for seed in range(count):
        data = items(4, seed)
        image, depth = (torch.stack([item[k] for item in data]) for k in ("image", "depth"))
        depth[:2] = depth[:2] * 0.3
        depth[2:] = depth[2:] * 0.6 + 4
        yield image, depth


def gradients_of(model, bare, share, options, distributed):
    """Of three batches in a row, and the losses."""
    loss = SelectivityLoss(Net.depth_range, **options, distributed=distributed)
    found = []
    for image, depth in batches(3):
        bare.zero_grad()
        with tap(bare, ["wide", "deep"], detach=False) as acts:
            pred = model(image[share])
        target = torch.nn.functional.interpolate(
            depth[share], pred.shape[-2:], mode="nearest-exact"
        )
        term = loss(acts, target)
        (0.01 * balanced_loss(pred, target) - 10 * term).backward()
        found.append([term.detach(), torch.cat([p.grad.flatten() for p in bare.parameters()])])
    return found


def compare_gradients(rank):
    halves = slice(0, 2), slice(2, 4)
    found = {}
    for name, options in LOSSES.items():
        bare = net(norm=plain)
        shared = gradients_of(DistributedDataParallel(bare), bare, halves[rank], options, None)
        alone = net(norm=plain)
        found[name] = shared, gradients_of(alone, alone, slice(0, 4), options, False)
    return found


def test_halves_of_a_batch_give_the_gradient_of_the_whole():
    """Either half lacks bins that the other has."""
    for found in in_two(compare_gradients):
        for name, pair in found.items():
            for (value, gradient), (expected, whole) in zip(*pair, strict=True):
                assert value.item() == pytest.approx(expected.item(), rel=1e-5), name
                assert (gradient - whole).norm() < 1e-5 * whole.norm(), name
    parts = [
        gradients_of(m, m, slice(i, i + 2), {}, False) for i in (0, 2) for m in [net(norm=plain)]
    ]
    mean = (parts[0][0][1] + parts[1][0][1]) / 2
    whole = found["assign"][1][0][1]
    assert (mean - whole).norm() > 0.1 * whole.norm()  # it would tell


# ------------------------------------------------------------------ runs


def run(rank, config, *, model=None, train=TRAIN, val=VAL):
    model = model or net(norm=plain)
    history = fit(model, train, val, config)
    return history.finished, history.frame, dict(model.state_dict())


def test_two_processes_end_with_the_weights_of_one(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path / "two"))
    first, second = in_two(run, config)
    alone = run(0, replace(config, run_dir=str(tmp_path / "one")))
    assert_same(first[2], second[2])
    for key, value in alone[2].items():
        torch.testing.assert_close(first[2][key], value, rtol=1e-3, atol=1e-4)
    same = [column for column in alone[1] if column not in TIMES]
    pd.testing.assert_frame_equal(first[1][same], alone[1][same], rtol=1e-3, atol=1e-4)
    assert_same_frames(second[1], first[1])
    names = [sorted(p.name for p in (tmp_path / folder).iterdir()) for folder in ("two", "one")]
    assert names[0] == names[1]
    assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1


def run_in_parts(rank, config, hours):
    found = []
    for limit in hours:
        model, train = net(kind=RandomNet), RandomItems(TRAIN)
        found.append(run(rank, replace(config, max_hours=limit), model=model, train=train))
    return found


def test_a_run_of_two_processes_goes_on_bit_for_bit(tmp_path):
    """Stopped by the clock of the first process, in both; the generators of each go on."""
    config = replace(CONFIG, imde_warmup=1.5, save_minutes=1e-9)
    whole, parts = (replace(config, run_dir=str(tmp_path / name)) for name in ("whole", "parts"))
    expected = in_two(run_in_parts, whole, [0.0])
    found = in_two(run_in_parts, parts, [1e-9, 1e-9, 1e-9, 0.0])
    for rank in (0, 1):
        assert [finished for finished, *_ in found[rank]] == [False, False, False, True]
        assert_same_frames(found[rank][-1][1], expected[rank][0][1])
        assert_same(found[rank][-1][2], expected[rank][0][2])
    states = [torch.load(tmp_path / n / LAST, weights_only=True) for n in ("whole", "parts")]
    assert_same(*states)
    first, second = (part["random"]["torch"] for part in states[0]["processes"])
    assert not torch.equal(first, second)  # each process draws for itself


def test_one_process_goes_on_where_two_were_stopped_and_the_other_way_round(tmp_path):
    alone = run(0, CONFIG)
    for name, parts in (("2, 1", (in_two, run_alone)), ("1, 2", (run_alone, in_two))):
        config = replace(CONFIG, run_dir=str(tmp_path / name))
        parts[0](run, replace(config, max_hours=1e-9))  # in the middle of an epoch
        finished, frame, state = parts[1](run, config)[0]
        assert finished and frame.epoch.tolist() == [1, 2, 3]
        assert frame.loss.tolist() == pytest.approx(alone[1].loss.tolist(), rel=0.1)
        for key, value in alone[2].items():
            torch.testing.assert_close(state[key], value, rtol=1e-3, atol=1e-4)


def run_alone(function, *args):
    return [function(0, *args)]


def run_normalised(rank, config):
    val = items(20, seed=1)  # more than a batch, so that the second process measures, too
    _, frame, _ = run(rank, config, model=net(), val=val)
    model = net(5).to(memory_format=torch.channels_last)  # as in training, for the same rounding
    load_weights(model, Path(config.run_dir) / "best.safetensors")
    metrics = evaluate(model, val)
    return frame, {f"val_{key}": value for key, value in metrics.items()}


def test_what_is_measured_is_what_is_saved(tmp_path):
    """Each process's batch normalisation has seen its own images; one network is validated."""
    config = replace(CONFIG, run_dir=str(tmp_path), num_epochs=1, learning_rate=0.3)
    for frame, metrics in in_two(run_normalised, config):
        assert frame[list(metrics)].iloc[0].to_dict() == metrics


# ------------------------------------------------------------------ what goes wrong


def errors_of(rank, folder):
    """The errors of several trainings: their kind and message, or None."""
    broken = [dict(item) for item in TRAIN]
    broken[7]["image"] = broken[7]["image"] * float("nan")
    blind = [dict(item) for item in TRAIN]
    blind[7]["depth"] = blind[7]["depth"] * 0
    base = replace(CONFIG, neuron_selective=False)
    found = {}
    for name, train, config in (
        ("not finite", broken, replace(base, run_dir=str(folder / "a"), save_minutes=1e-9)),
        ("small batch", TRAIN, replace(base, batch_size=1)),
        ("few images", TRAIN[:1], base),
        ("uneven batch", TRAIN, replace(base, batch_size=3, num_epochs=1)),
        ("validation", TRAIN, replace(base, run_dir=str(folder / "a"), seed=3)),
    ):
        try:
            run(rank, config, train=train)
            found[name] = None
        except Exception as error:
            found[name] = type(error).__name__, str(error)
    return found


def test_a_failure_of_one_process_stops_both(tmp_path):
    pair = in_two(errors_of, tmp_path)
    kinds, messages = zip(*(found["not finite"] for found in pair), strict=True)
    assert kinds == ("FloatingPointError",) * 2
    own, other = sorted(messages, key=lambda text: "another process" in text)
    assert re.match(r"The loss is nan in epoch \d, at the images .*i7", own)
    assert re.match(r"The loss of another process is not finite in epoch \d. The last", other)
    state = torch.load(tmp_path / "a" / LAST, weights_only=True)
    assert all(value.isfinite().all() for value in state["model"].values())
    for found in pair:  # and the processes are still in step
        assert found["uneven batch"] is None
        assert found["validation"][0] == "ValueError" and "another config" in found["validation"][1]
        for name in ("small batch", "few images"):
            kind, message = found[name]
            assert kind == "ValueError"
            assert "A batch of 1 images cannot be shared by 2 processes: raise batch" in message


def fail_in_one(rank, config):
    """Of what only the first process does, or only one meets; the other must not wait forever."""
    train = [dict(item) for item in TRAIN]
    train[7]["depth"] = train[7]["depth"] * 0
    try:
        run(rank, config, train=train)
    except Exception as error:
        return type(error).__name__, str(error)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"run_dir": "file/run"}, "Cannot write 'config.json'"),
        ({"run_dir": "run", "resume_from": "nowhere"}, "There is no run at or below"),
        ({"batch_size": 2}, "i7: The target .* has no valid pixel"),
    ],
)
def test_the_other_process_ends_too(changes, message, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for key in ("run_dir", "resume_from"):
        if key in changes:
            changes = {**changes, key: str(tmp_path / changes[key])}
    found = [f"{kind}: {text}" for kind, text in in_two(fail_in_one, replace(CONFIG, **changes))]
    assert any(re.search(message, text) for text in found)


# ------------------------------------------------------------------ accelerate launch

METER = TrainConfig(
    num_epochs=2,
    batch_size=2,
    neuron_selective=True,
    imde_alpha=-5.0,
    data_options={"size": [64, 64], "fields": ["image", "depth"], "limit": 4},
)


def test_launch_trains_in_two_processes(tmp_path, capfd):
    config = replace(METER, run_dir=str(tmp_path / "run"))
    launch(config, 2)
    printed = capfd.readouterr().out
    assert printed.count("best epoch") == printed.count("the run is in") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "run"]
    state = torch.load(tmp_path / "run" / LAST, weights_only=True)
    assert len(state["processes"]) == 2
    sets = [load_dataset("rooms", split, **config.data_options) for split in ("train", "val")]
    history = fit(build_model("meter_xxs"), *sets, config)  # reads it
    assert history.finished and len(history.frame) == 2


def test_launch_tells_why_it_failed(tmp_path):
    with pytest.raises(RuntimeError, match="(?s)2 processes failed.*Unknown data set 'room'"):
        launch(replace(METER, dataset="room", run_dir=str(tmp_path)), 2)
    for config, number in ((METER, 2), (replace(METER, run_dir=str(tmp_path)), 1)):
        with pytest.raises(ValueError, match="launch needs a config with run_dir and two proc"):
            launch(config, number)


def test_launch_chooses_its_port(tmp_path, monkeypatch):
    """accelerate before 1.7 takes a 0 for the port itself, and waits for ever."""
    commands = []

    def popen(command, **options):
        commands.append(command)
        raise InterruptedError

    monkeypatch.setattr("mde_utils.training.launcher.subprocess.Popen", popen)
    with pytest.raises(InterruptedError):
        launch(replace(METER, run_dir=str(tmp_path)), 2)
    port = int(commands[0][commands[0].index("--main_process_port") + 1])
    assert 1024 <= port < 65536
