"""`train_runs`: several configs, one deadline, and what is there after a cut."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import toys
from toys import TRAIN, VAL, assert_same, assert_same_frames, net

from mde_utils.training import TrainConfig, fit, several, train_runs

one_thread = pytest.fixture(autouse=True)(toys.one_thread)

BASE = TrainConfig(
    model="Net", cfg_layers=["wide"], num_epochs=2, batch_size=5, learning_rate=0.03, seed=3
)
CONFIGS = {
    "baseline": BASE,
    "selective": replace(BASE, neuron_selective=True, imde_alpha=-1.0),
}


def build(config):
    return toys.Net()  # of the generator, which the config's seed has set


def run(folder, configs=CONFIGS, **options):
    return train_runs(configs, TRAIN, VAL, run_folder=folder, build=build, **options)


def test_each_config_is_trained_from_its_seed_and_shown(tmp_path):
    seen = []
    runs = run(tmp_path, show=lambda frames: seen.append({k: len(f) for k, f in frames.items()}))
    assert list(runs) == list(runs.models) == list(runs.histories) == [*CONFIGS]
    alone = fit(net(3), TRAIN, VAL, CONFIGS["selective"])
    assert_same_frames(runs["selective"].frame, alone.frame)
    assert runs.histories["selective"] is runs["selective"].frame
    folders = {runs[name].run_dir.name for name in runs}
    assert folders == {path.name for path in tmp_path.iterdir()}
    assert folders == {config.run_name() for config in CONFIGS.values()}
    done = {"baseline": 2}
    assert seen == [
        {"baseline": 1}, {"baseline": 2}, done,
        done | {"selective": 1}, done | {"selective": 2}, done | {"selective": 2},
    ]  # fmt: skip
    again = run(tmp_path)  # is read
    states = [dict(r.models["selective"].state_dict()) for r in (again, runs)]
    assert_same(*states)
    moved = run(tmp_path / "new", resume_from=tmp_path)
    assert_same_frames(moved["baseline"].frame, runs["baseline"].frame)
    assert moved["baseline"].frame.seconds.tolist() == runs["baseline"].frame.seconds.tolist()


def test_a_cut_leaves_a_line_and_what_is_trained(tmp_path, capsys):
    runs = run(tmp_path, max_hours=1e-9)
    assert "max_hours is over before baseline: run this again" in capsys.readouterr().out
    assert not runs and not runs.models
    for where in (runs, runs.models):
        with pytest.raises(KeyError, match="'selective' has no whole epoch yet.*nothing.*goes on"):
            where["selective"]


def test_the_deadline_is_one_for_all(tmp_path, monkeypatch, capsys):
    """The second run has what the first left."""
    clock, limits = iter([0.0, 0.0, 3600.0, 7200.0]), []
    monkeypatch.setattr(several, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def stopped(model, train, val, config, **options):
        limits.append(config.max_hours)
        return fit(model, train, val, replace(config, max_hours=0.0), **options)

    monkeypatch.setattr(several, "fit", stopped)
    three = CONFIGS | {"third": replace(BASE, seed=4)}
    runs = run(tmp_path, three, max_hours=1.5)
    assert limits == [1.5, 0.5] and list(runs) == [*CONFIGS]
    assert "max_hours is over before third" in capsys.readouterr().out


def test_a_run_cut_short_has_the_weights_of_its_best_epoch_and_goes_on(tmp_path, monkeypatch):
    """Cut in its second epoch, after which the clock stands still."""
    late = False

    def show(frames):
        nonlocal late
        late = True

    now = time.monotonic
    monkeypatch.setattr("mde_utils.training.loop.time.monotonic", lambda: now() + 7200 * late)
    runs = run(tmp_path, max_hours=1, show=show)
    assert list(runs) == ["baseline"] and not runs["baseline"].finished
    assert runs["baseline"].best_epoch == 1 and len(runs["baseline"].frame) == 1
    monkeypatch.undo()
    runs = run(tmp_path)
    assert_same_frames(runs["baseline"].frame, fit(net(3), TRAIN, VAL, BASE).frame)
    assert list(runs) == [*CONFIGS]


def test_after_the_deadline_what_is_finished_is_read(tmp_path, monkeypatch, capsys):
    run(tmp_path, {"selective": CONFIGS["selective"]})
    clock = iter(range(10**9))
    monkeypatch.setattr(several.time, "monotonic", lambda: 3600.0 * next(clock))
    runs = run(tmp_path, max_hours=0.5)
    assert list(runs) == ["selective"] and runs["selective"].finished
    assert "before baseline" in capsys.readouterr().out


def test_two_processes_are_launched_and_a_cut_is_read(tmp_path, monkeypatch, capsys):
    launched = []

    def launch(config, number):
        launched.append((config.run_dir, number))
        limit = 1e-9 if len(launched) == 2 else 0.0
        return fit(net(3), TRAIN, VAL, replace(config, max_hours=limit)).finished

    monkeypatch.setattr(several, "launch", launch)
    monkeypatch.setattr(several, "build_model", lambda name, **options: net(7))
    runs = train_runs(CONFIGS, TRAIN, VAL, run_folder=tmp_path, num_processes=2)
    assert [number for _, number in launched] == [2, 2]
    assert list(runs) == ["baseline"] and runs["baseline"].finished  # no whole epoch of the other
    assert "max_hours is over in selective: run this again" in capsys.readouterr().out
    # Cut after a whole epoch: its weights are there.
    config = replace(CONFIGS["selective"], num_epochs=3)
    path = tmp_path / config.run_name()
    done = replace(config, run_dir=str(path))

    def cut(config, number):
        with pytest.raises(StopIteration):
            fit(net(3), TRAIN, VAL, done, on_epoch=lambda history: next(iter(())))
        return False

    monkeypatch.setattr(several, "launch", cut)
    runs = train_runs({"cut": config}, TRAIN, VAL, run_folder=tmp_path, num_processes=2)
    assert not runs["cut"].finished and runs["cut"].best_epoch == 1
    expected = fit(net(3), TRAIN, VAL, replace(config, num_epochs=1))
    assert runs["cut"].frame.loss[0] == expected.frame.loss[0]
    with pytest.raises(ValueError, match="leave build out"):
        run(tmp_path, num_processes=2)
