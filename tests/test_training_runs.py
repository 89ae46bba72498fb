"""What a run's folder survives: damaged checkpoints, foreign files, a full disk."""

import json
import os
import pickle
import re
import resource
import shutil
import socket
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
import toys
from torch.utils.tensorboard import SummaryWriter
from toys import TIMES, TRAIN, VAL, assert_same, finish, in_child, net, start

from mde_utils.checkpoints import save_weights
from mde_utils.training import TrainConfig, fit
from mde_utils.training.runs import (
    BEST,
    CONFIG,
    CURVES,
    HISTORY,
    LAST,
    LOCK,
    OWNER,
    PREVIOUS,
    RunFolder,
    held,
)

one_thread = pytest.fixture(autouse=True)(toys.one_thread)

CONFIG_A = TrainConfig(
    model="Net",
    cfg_layers=["wide"],
    num_epochs=3,
    batch_size=5,
    learning_rate=0.03,
    save_minutes=1e-9,
)


def state(number):
    return {"epoch": number, "position": 0, "model": {"w": torch.full((500,), float(number))}}


@pytest.fixture
def folder(tmp_path):
    """With checkpoints of the epochs 2 and, before it, 1."""
    folder = RunFolder(tmp_path / "run", CONFIG_A)
    folder.open()
    for number in (1, 2):
        folder.save(state(number))
    return folder


def read(path):
    """A checkpoint without the config that it is of."""
    found = torch.load(path, weights_only=True)
    assert found.pop("config") == CONFIG_A.settings()
    return found


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}


# ------------------------------------------------------------------ checkpoints


def test_the_last_two_checkpoints_are_kept(folder):
    for number in (3, 4):
        folder.save(state(number))
        assert_same(folder.load(), state(number))
        assert_same(read(folder.path / PREVIOUS), state(number - 1))
    assert {p.name for p in folder.path.iterdir()} == {CONFIG, LAST, PREVIOUS}


def test_a_new_folder_holds_nothing(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG_A)
    assert folder.load() is None and folder.checkpoints() == []
    assert not folder.path.exists()


def changed(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "truncated": lambda data: data[: len(data) // 2],
    "the end is lost": lambda data: data[:-30],
    "garbage": lambda data: bytes(range(256)) * 10,
    "text": lambda data: b"<html>404</html>",
    "one byte of a weight": changed,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over(folder, how):
    last = folder.path / LAST
    last.write_bytes(DAMAGES[how](last.read_bytes()))
    folder = RunFolder(folder.path, CONFIG_A)
    message = r"last\.pt is damaged .*Going on from previous\.pt, at epoch 1, batch 0"
    with pytest.warns(UserWarning, match=message):
        assert_same(folder.load(), state(1))
    # Its place is taken, not that of the one that can be read.
    folder.save(state(5))
    assert_same(folder.load(), state(5))
    assert_same(read(folder.path / PREVIOUS), state(1))
    folder.save(state(6))
    assert_same(read(folder.path / PREVIOUS), state(5))


@pytest.mark.parametrize("content", [{"weights": 1}, ["text"], {}])
def test_a_file_that_holds_something_else_is_damaged(folder, content):
    torch.save(content, folder.path / LAST)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged"):
        assert_same(folder.load(), state(1))


def test_two_damaged_checkpoints_stop_the_run_and_stay(tmp_path):
    config = replace(CONFIG_A, run_dir=str(tmp_path))
    fit(net(), TRAIN, VAL, config)
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"garbage")
    folder = RunFolder(tmp_path, config)
    before = contents(folder)
    message = r"last\.pt is damaged \(7 bytes.*previous\.pt is damaged.*Nothing was overwritten.*"
    with pytest.raises(ValueError, match=message + r"best\.safetensors holds the best weights"):
        fit(net(), TRAIN, VAL, config)
    assert contents(folder) == before
    (tmp_path / BEST).unlink()
    with pytest.raises(ValueError, match=r"Remove them to train anew\.$"):
        folder.load()


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_code_in_a_checkpoint_is_not_run(folder, tmp_path, write):
    evil = {**state(9), "more": Malice(tmp_path / "executed")}
    write(evil, folder.path / LAST)
    with pytest.warns(UserWarning, match=r"last\.pt is damaged"):
        assert_same(folder.load(), state(1))
    write(evil, folder.path / PREVIOUS)
    with pytest.raises(ValueError, match="Nothing was overwritten"):
        folder.load()
    assert not (tmp_path / "executed").exists()


# ------------------------------------------------------------------ whose it is


def test_a_folder_of_another_config_is_refused(folder):
    before = contents(folder)
    with pytest.raises(ValueError, match=r"another config \(seed: 3 here, 0 there\)"):
        RunFolder(folder.path, replace(CONFIG_A, seed=3))
    with pytest.raises(ValueError, match="batch_size: 6 here, 5 there; seed: 3 here, 0 there"):
        RunFolder(folder.path, replace(CONFIG_A, seed=3, batch_size=6))
    assert contents(folder) == before
    for changes in ({"max_hours": 3.0}, {"num_workers": 2}, {"save_minutes": 0.0}):
        RunFolder(folder.path, replace(CONFIG_A, **changes))
    (folder.path / LAST).unlink()  # the one before it still says whose it is
    with pytest.raises(ValueError, match="another config"):
        RunFolder(folder.path, replace(CONFIG_A, seed=3))


def test_a_folder_without_checkpoints_is_free(tmp_path):
    RunFolder(tmp_path, CONFIG_A).open()
    other = RunFolder(tmp_path, replace(CONFIG_A, seed=3))
    other.open()
    assert TrainConfig.load(tmp_path / CONFIG).seed == 3


def test_what_a_killed_process_left_is_removed(folder):
    names = {path.name for path in folder.path.iterdir()}
    for name in (f".{LAST}.abc.pt", f".{BEST}.x1.safetensors", f".{HISTORY}.y.csv"):
        (folder.path / name).write_bytes(b"half")
    kept = {".keep", "notes.txt", ".other.pt"}
    for name in kept:
        (folder.path / name).write_text("the user's")
    folder.open()
    assert {path.name for path in folder.path.iterdir()} == names | kept


def test_a_checkpoint_says_whose_it_is(folder):
    """Where two runs have been mixed: the config of one, the checkpoint of the other."""
    (folder.path / CONFIG).write_text(json.dumps({"model": "Net", "seed": 3}))
    other = TrainConfig(model="Net", seed=3)
    with pytest.raises(ValueError, match="belongs to another config.*num_epochs: 20 here, 3 there"):
        RunFolder(folder.path, other).load()
    state = torch.load(folder.path / LAST, weights_only=True)
    del state["config"]  # of a former version
    torch.save(state, folder.path / LAST)
    assert RunFolder(folder.path, other).load()["epoch"] == 2


def test_a_newer_checkpoint_of_another_process_is_not_replaced(folder):
    slow = RunFolder(folder.path, CONFIG_A)
    slow.load()
    folder.save(state(9))
    before = contents(folder)
    with pytest.raises(RuntimeError, match="Another process has written .*last.pt.*further on"):
        slow.save(state(3))
    assert contents(folder) == before


def test_a_checkpoint_that_may_not_be_read_is_not_called_damaged(folder, monkeypatch):
    """The advice to remove it would cost the run."""

    def denied(*args, **options):
        raise PermissionError(13, "Permission denied", str(folder.path / LAST))

    monkeypatch.setattr("mde_utils.training.runs.zipfile.ZipFile", denied)
    with pytest.raises(PermissionError, match="Permission denied"):
        RunFolder(folder.path, CONFIG_A).load()


# ------------------------------------------------------------------ one process at a time


def hold_until_killed(path, pipe_file):
    with held(path):
        pipe_file.write_text(str(os.getpid()))
        time.sleep(600)


def test_a_folder_in_use_is_refused_and_taken_over_from_a_killed_process(tmp_path):
    path, sign = tmp_path / "run", tmp_path / "pid"
    child = start(hold_until_killed, path, sign)
    while not sign.is_file() or not sign.read_text():
        time.sleep(0.05)
    config = replace(CONFIG_A, run_dir=str(path), num_epochs=1)
    words = f"in use by process {sign.read_text()} on {socket.gethostname()}.*another run_dir"
    with pytest.raises(RuntimeError, match=words):
        fit(net(), TRAIN, VAL, config)
    assert not (path / CONFIG).exists()
    child[0].kill()
    finish(*child)
    assert {p.name for p in path.iterdir()} == {LOCK, OWNER}
    assert fit(net(), TRAIN, VAL, config).finished
    assert not list(path.glob(".*"))


def test_a_folder_is_free_after_a_failure_and_empty_ones_go(tmp_path):
    with pytest.raises(ZeroDivisionError), held(tmp_path / "run"):
        assert {p.name for p in (tmp_path / "run").iterdir()} == {LOCK, OWNER}
        _ = 1 / 0
    assert not (tmp_path / "run").exists()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch):
    def cannot(self, *args, **options):
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr("mde_utils.training.runs.FileLock.acquire", cannot)
    config = replace(CONFIG_A, run_dir=str(tmp_path / "run"), num_epochs=1)
    with pytest.warns(UserWarning, match="has no locks.*no other process"):
        assert fit(net(), TRAIN, VAL, config).finished


def test_what_will_not_do_is_said_before_an_epoch_is_spent(tmp_path, monkeypatch):
    class Data(list):
        reads = 0

        def __getitem__(self, i):
            Data.reads += 1
            return super().__getitem__(i)

    part = "p" * 200
    parts, rest = divmod(4020 - len(str(tmp_path)), len(part) + 1)  # TensorBoard's file is too long
    long = tmp_path.joinpath(*[part] * parts, "q" * (rest - 1))
    config = replace(CONFIG_A, run_dir=str(long))
    with pytest.raises(OSError, match="(?s)too long.*another run_dir"):
        fit(net(), Data(TRAIN), VAL, config)
    config = replace(CONFIG_A, run_dir=str(tmp_path / "run"))
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr("mde_utils.training.runs.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No room to write 'last.pt'.*a checkpoint and the best"):
        fit(net(), Data(TRAIN), VAL, config)
    assert Data.reads == 2  # a look at the data each, no epoch


# ------------------------------------------------------------------ a full disk


def limited(limit, function, *args):
    """The function where no file may grow beyond so many bytes: the error it ends with."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__, str(error)


def full_save(path, number):
    RunFolder(path, CONFIG_A).save(state(number))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_checkpoint_that_does_not_fit_leaves_the_former_ones(folder, part):
    before = contents(folder)
    limit = int(part * len(before[LAST]))
    kind, message = in_child(limited, limit, full_save, folder.path, 3)
    assert kind == "OSError"
    assert re.search(
        rf"No room to write '{LAST}' .*{folder.path} \(File too large; .* free", message
    )
    assert re.search("As before: last.pt and previous.pt. Make room.* start again", message)
    assert contents(folder) == before  # nothing unfinished either
    folder.save(state(3))
    assert_same(folder.load(), state(3))


@pytest.mark.parametrize("write", ["history", "best"])
def test_a_file_that_does_not_fit_leaves_the_former_one(folder, write):
    function = {"history": write_history, "best": write_best}[write]
    function(folder.path, 10)
    before = contents(folder)
    assert {"history": HISTORY, "best": BEST}[write] in before
    kind, message = in_child(limited, 100, function, folder.path, 20)
    assert kind == "OSError" and "ake room" in message
    assert contents(folder) == before


def write_history(path, epochs):
    RunFolder(path, CONFIG_A).write_history([{"epoch": i, "loss": 1 / 3} for i in range(epochs)])


def write_best(path, seed):
    folder = RunFolder(path, CONFIG_A)
    with folder.writing(BEST):
        save_weights(net(seed), folder.best)


def train(config):
    return fit(net(), TRAIN, VAL, config).frame


def train_with_little_room_for_curves(config):
    add = SummaryWriter.add_scalar

    def limited_add(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        add(*args)

    SummaryWriter.add_scalar = limited_add
    return limited(10**6, train, config)


def test_a_run_goes_on_when_there_is_room_again(tmp_path):
    """Whichever file it is that does not fit."""
    frame = in_child(train, replace(CONFIG_A, run_dir=str(tmp_path / "whole")))
    size = (tmp_path / "whole" / CONFIG).stat().st_size
    config = replace(CONFIG_A, run_dir=str(tmp_path / "part"))
    fit(net(), TRAIN, VAL, replace(config, max_hours=1e-9))
    folder = RunFolder(config.run_dir, config)
    before = contents(folder)[LAST]
    epochs = replace(config, save_minutes=0.0)  # no checkpoint before the first epoch's end
    for name, *call in (
        (CONFIG, limited, 0, train, config),
        (LAST, limited, size, train, config),
        (BEST, limited, size, train, epochs),
        (CURVES, train_with_little_room_for_curves, epochs),
    ):
        kind, message = in_child(*call)
        assert kind == "OSError"
        assert re.search(rf"No room to write '{name}' into the folder {folder.path} ", message)
        assert re.search(
            "As before: last.pt. Make room.* start again, and the run goes on", message
        )
        assert contents(folder)[LAST] == before and not list(folder.path.glob(".*"))
    resumed = in_child(train, config)
    same = [c for c in frame if c not in TIMES]
    pd.testing.assert_frame_equal(resumed[same], frame[same], check_exact=True)
