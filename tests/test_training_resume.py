"""A run may be killed at any moment and goes on to the same numbers, bit for bit."""

import io
import os
import random
import shutil
import stat
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
import toys
from safetensors.torch import load_file
from toys import (
    KILLED,
    TRAIN,
    VAL,
    RandomItems,
    RandomNet,
    assert_same,
    assert_same_frames,
    finish,
    in_child,
    kill_self,
    net,
    start,
)

from mde_utils.data import load_dataset
from mde_utils.models import build_model
from mde_utils.training import TrainConfig, fit
from mde_utils.training.runs import BEST, HISTORY, LAST, PREVIOUS

one_thread = pytest.fixture(autouse=True)(toys.one_thread)

# A moving weight, three generators in the data and in the network.
CONFIG = TrainConfig(
    cfg_layers=["wide"],
    num_epochs=3,
    batch_size=3,
    learning_rate=0.03,
    schedule="cosine",
    neuron_selective=True,
    imde_alpha=-1.0,
    imde_warmup=1.5,
    save_minutes=1e-9,  # after every step
)
STEPS = 9


def run(config, kill_at=0):
    model = net(kind=RandomNet)
    history = fit(model, RandomItems(TRAIN, kill_at), RandomItems(VAL), config)
    return history.finished, history.frame, model.state_dict()


def assert_same_folders(found, expected):
    states = (torch.load(path / LAST, weights_only=True) for path in (found, expected))
    assert_same(*states)
    assert_same(load_file(found / BEST), load_file(expected / BEST))
    frames = (pd.read_csv(path / HISTORY) for path in (found, expected))
    assert_same_frames(*frames)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing interrupts, and that saves after whole epochs only."""
    path = tmp_path_factory.mktemp("whole") / "run"
    in_child(run, replace(CONFIG, run_dir=str(path), save_minutes=0.0))
    return path


def checkpoints(folder):
    return sorted(folder.glob("[!.]*.pt"))


def leftovers(folder):
    return [path.name for path in folder.rglob(".*")]


# ------------------------------------------------------------------ killed


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_items(seed, whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path))
    draw, attempts, result = random.Random(seed), 0, KILLED
    while result == KILLED:
        result = in_child(run, config, draw.randint(4, 16))
        attempts += 1
    assert attempts >= 3 and result[0]
    assert_same_folders(tmp_path, whole)
    assert not leftovers(tmp_path)


def test_killed_after_random_times(whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path))
    draw, kills, result = random.Random(0), 0, KILLED
    while result == KILLED:
        child = start(run, config)
        child[1].poll(0.1 + draw.random() * 0.05 * 1.25**kills)  # ends on slow machines, too
        child[0].kill()
        result = finish(*child)
        kills += result == KILLED
    assert result[0]
    assert_same_folders(tmp_path, whole)
    assert not leftovers(tmp_path)


def killed_at_rename(config, number):
    rename, count = os.replace, 0

    def counted(*names):
        nonlocal count
        count += 1
        if count == number:
            kill_self()
        rename(*names)

    os.replace = counted
    return run(config)


def test_killed_at_every_rename(tmp_path):
    """Of the checkpoints (last to previous, new to last) and of all other files."""
    config = replace(CONFIG, num_epochs=1, batch_size=5, run_dir=str(tmp_path / "whole"))
    run(config)
    kills, result = 0, KILLED
    while result == KILLED:
        folder = tmp_path / str(kills)
        config = replace(config, run_dir=str(folder))
        result = in_child(killed_at_rename, config, kills + 1)
        if result == KILLED:
            kills += 1
            assert leftovers(folder)
            for path in checkpoints(folder):  # nothing unfinished under a final name
                torch.load(path, weights_only=True)
            assert run(config)[0] and not leftovers(folder)
        assert_same_folders(folder, tmp_path / "whole")
    assert kills >= 6


def killed_while_saving(config, number):
    save, count = torch.save, 0

    def half(state, file):
        nonlocal count
        count += 1
        if count < number:
            return save(state, file)
        whole = io.BytesIO()
        save(state, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        kill_self()

    torch.save = half
    return run(config)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_killed_in_the_middle_of_a_checkpoint(number, whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path))
    assert in_child(killed_while_saving, config, number) == KILLED
    assert [path.name for path in checkpoints(tmp_path)] == [LAST, PREVIOUS][: number - 1]
    for path in checkpoints(tmp_path):
        torch.load(path, weights_only=True)
    assert run(config)[0]
    assert_same_folders(tmp_path, whole)
    assert not leftovers(tmp_path)


# ------------------------------------------------------------------ stopped


def test_max_hours_stops_and_the_next_run_goes_on(whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path), save_minutes=0.0)
    stops = []
    while True:
        finished, frame, _ = in_process(config, max_hours=1e-9)
        if finished:
            break
        stops.append(len(frame))
    assert stops == [0] * 3 + [1] * 3 + [2] * 3  # one step, and the time is up
    assert_same_folders(tmp_path, whole)


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "polynomial", "decay_prefix": "deep.", "adam_epsilon": 1e-3},
        {"schedule": "plateau", "optimizer": "sgd", "decay_every": 1},
    ],
)
def test_rates_of_steps_and_of_plateaus_go_on(changes, tmp_path):
    config = replace(CONFIG, num_epochs=6, learning_rate=1e-3, save_minutes=0.0, **changes)
    _, frame, _ = in_process(config, run_dir=str(tmp_path / "whole"))
    assert frame.lr.nunique() > 1
    while not in_process(config, run_dir=str(tmp_path / "parts"), max_hours=1e-9)[0]:
        pass
    assert_same_folders(tmp_path / "parts", tmp_path / "whole")


def in_process(config, **changes):
    return run(replace(config, **changes))


def test_a_run_that_was_stopped_has_the_weights_of_its_best_epoch_so_far(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path), max_hours=1e-9)
    for _ in range(3):
        history = fit(net(kind=RandomNet), RandomItems(TRAIN), VAL, config)
        assert not history.finished and history.best_epoch == 0 and history.frame.empty
        with pytest.raises(ValueError, match="No epoch of this run is whole"):
            _ = history.best
    model = net(kind=RandomNet)
    history = fit(model, RandomItems(TRAIN), VAL, config)
    assert not history.finished and history.best_epoch == 1
    assert history.best["val_d1"] == history.frame.val_d1[0]
    assert_same(dict(model.state_dict()), load_file(tmp_path / BEST))


def test_the_number_of_workers_changes_nothing(whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path), num_workers=2, max_hours=1e-9)
    assert not run(config)[0]
    assert run(replace(config, max_hours=0.0))[0]  # from the middle of an epoch
    assert_same_folders(tmp_path, whole)


def test_a_callback_that_draws_changes_nothing(whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path))

    def draw(_history):
        random.random(), torch.rand(3), net(3)

    fit(net(kind=RandomNet), RandomItems(TRAIN), RandomItems(VAL), config, on_epoch=draw)
    assert_same_folders(tmp_path, whole)


# ------------------------------------------------------------------ resume_from


def test_a_former_output_is_copied_and_continued(whole, tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path / "former"))
    for _ in range(5):
        in_process(config, max_hours=1e-9)
    attached = tmp_path / "input" / "outputs" / "runs" / "former"
    shutil.copytree(tmp_path / "former", attached)
    for path in attached.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    attached.chmod(0o555)
    before = {path: path.stat().st_mtime_ns for path in attached.rglob("*")}
    wait_for_the_clock()

    new = replace(config, run_dir=str(tmp_path / "run"), resume_from=str(tmp_path / "input"))
    finished, frame, _ = in_process(new, max_hours=1e-9)
    assert not finished and len(frame) == 1
    assert stat.S_IMODE((tmp_path / "run" / LAST).stat().st_mode) & stat.S_IWUSR
    assert in_process(new)[0]  # now from run_dir, which resume_from does not overrule
    assert_same_folders(tmp_path / "run", whole)
    assert curves(tmp_path / "run")["val/d1"] == curves(whole)["val/d1"]
    assert {path: path.stat().st_mtime_ns for path in attached.rglob("*")} == before


def test_other_images_are_another_run(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path), num_epochs=1)
    run(config)
    with pytest.raises(ValueError, match="is on .* training and .* validation images, not 1 and"):
        fit(net(kind=RandomNet), TRAIN[:1], VAL, config)


def test_resume_from_without_such_a_run(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path / "a" / "other"), max_hours=1e-9, seed=5)
    run(config)
    new = replace(config, run_dir=str(tmp_path / "run"), seed=0)
    with pytest.warns(UserWarning, match=r"starts anew.*other \(seed: 0 here, 5 there\)"):
        run(replace(new, resume_from=str(tmp_path / "a"), run_dir=str(tmp_path / "second")))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.json").write_text("{}")  # not of a run
    for empty in (tmp_path / "b", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="There is no run at or below"):
            run(replace(new, resume_from=str(empty)))
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------ TensorBoard


def wait_for_the_clock():
    """TensorBoard reads event files in the order of their names, which hold the second."""
    time.sleep(1.1)


def curves(folder):
    """tag → [(epoch, value)] of the folder's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def test_curves_are_the_history(tmp_path):
    config = replace(CONFIG, run_dir=str(tmp_path))
    assert in_child(run, config, 24) == KILLED  # in epoch 3
    wait_for_the_clock()
    _, frame, _ = in_child(run, config)
    found = curves(tmp_path)
    for column in frame:
        group, _, rest = column.partition("_")
        tag = f"{group}/{rest}" if group in ("train", "val") else f"run/{column}"
        epochs, values = zip(*found.pop(tag), strict=True)
        assert epochs == (1, 2, 3)
        assert values == pytest.approx(frame[column].tolist(), rel=1e-6)
    assert not found


def test_curves_of_a_run_that_went_back_have_each_epoch_once(tmp_path):
    """The newest checkpoint is lost; what was logged after the one before it counts no more."""
    config = replace(CONFIG, run_dir=str(tmp_path), save_minutes=0.0)
    run(config)
    (tmp_path / LAST).unlink()
    wait_for_the_clock()
    run(config)
    assert [epoch for epoch, _ in curves(tmp_path)["run/loss"]] == [1, 2, 3]


# ------------------------------------------------------------------ METER


def test_meter_goes_on_bit_for_bit(tmp_path):
    sets = [
        load_dataset("rooms", split, size=(64, 64), fields=("image", "depth"), **options)
        for split, options in (
            ("train", {"limit": 6, "augment": "meter"}), ("val", {"limit": 2}),
        )
    ]  # fmt: skip
    config = TrainConfig.recipe(
        "meter_paper", num_epochs=2, batch_size=2, neuron_selective=True, seed=1
    )

    def meter(name, **changes):
        torch.manual_seed(0)
        model = build_model("meter_xxs")
        return fit(model, *sets, replace(config, run_dir=str(tmp_path / name), **changes))

    meter("whole")
    for _ in range(2):
        assert not meter("parts", max_hours=1e-9).finished
    assert meter("parts").finished
    assert_same_folders(tmp_path / "parts", tmp_path / "whole")
