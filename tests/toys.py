"""A network and data that train in a second, and other processes to train them in."""

import io
import math
import multiprocessing
import os
import random
import signal
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mde_utils.stereo import disparity_to_hint, matched_disparity

#: Columns of a history that measure time.
TIMES = ("seconds", "data_seconds", "images_per_s")
KILLED = "killed"


class Net(nn.Module):
    """A depth network with 8 watched units."""

    loss_scale = 0.01
    depth_range = (0.75, 10.0)

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.deep = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), norm(16), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 8, 1), norm(8), nn.ReLU())
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, image):
        return self.out(self.wide(self.deep(image))) + 3


class RandomNet(Net):
    """One that draws from all generators as it trains."""

    def forward(self, image):
        x = self.wide(self.deep(image))
        if self.training:
            gain = 0.9 + 0.1 * random.random() + 0.1 * np.random.rand()
            x = nn.functional.dropout(x, 0.2) * gain
        return self.out(x) + 3


def net(seed=0, kind=Net, **options):
    torch.manual_seed(seed)
    return kind(**options)


def plain(_channels):
    """Instead of batch normalisation, for a step that is a sum over images."""
    return nn.Identity()


def items(n, seed=0):
    """Brighter is nearer, so there is something to learn."""
    g = torch.Generator().manual_seed(seed)
    data = []
    for i in range(n):
        small = torch.rand(1, 1, 4, 5, generator=g)
        depth = 1 + 8 * nn.functional.interpolate(small, (32, 40), mode="bilinear")[0]
        data.append({"image": (1 - depth / 10).expand(3, -1, -1), "depth": depth, "name": f"i{i}"})
    return data


TRAIN, VAL = items(10), items(4, seed=1)


class RandomItems(list):
    """Items that draw from all generators. The process ends at the `kill_at`-th one."""

    def __init__(self, data, kill_at=0):
        super().__init__(data)
        self.kill_at, self.reads = kill_at, 0

    def __getitem__(self, i):
        self.reads += 1
        if self.reads == self.kill_at:
            kill_self()
        gain = 0.8 + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(())
        return {**super().__getitem__(i), "image": super().__getitem__(i)["image"] * gain}


def assert_same(found, expected, where="state"):
    """To the last bit, whatever it is made of; but for what measures time."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), where
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected:
            if key not in TIMES:
                assert_same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, (list, tuple)):
        assert len(found) == len(expected), where
        for i, pair in enumerate(zip(found, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif isinstance(expected, float) and math.isnan(expected):
        assert math.isnan(found), where
    else:
        assert found == expected, (where, found, expected)


def assert_same_frames(found, expected):
    assert_same(found.to_dict("list"), expected.to_dict("list"), "history")


def depth_hint(left, right, *, focal, baseline, offset=0.0):
    """The hint of one pair, as `WithHints` computes it."""
    found = matched_disparity(left, right, reverse=baseline < 0)
    return disparity_to_hint(found, focal=focal, baseline=baseline, offset=offset)


def one_thread():
    """Of a fixture: what is this small is slower with several, much so where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------ processes

# Imports once, then forks; and has never used the threads that may not be forked.
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["torch", "torchvision", "torch.utils.tensorboard", "pandas"])


def kill_self():
    os.kill(os.getpid(), signal.SIGKILL)


def start(function, *args):
    """A process that calls the function, and the end of a pipe for `finish`."""
    own, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_call, args=(its, function, args), daemon=True)
    process.start()
    its.close()
    return process, own


def finish(process, own, timeout=600):
    """What the function returned; KILLED where the process was.

    Raises:
        AssertionError: the exception that it raised, or it did not end.
    """
    result = KILLED
    if own.poll(timeout):
        try:
            result, error = torch.load(io.BytesIO(own.recv_bytes()), weights_only=False)
        except EOFError:
            error = None
        assert error is None, error
    else:
        process.kill()
        raise AssertionError("the process did not end")
    process.join()
    return result


def in_child(function, *args):
    """What the function returns in a process of its own, or KILLED."""
    return finish(*start(function, *args))


def in_two(function, *args):
    """The same in each of two processes of one gloo group: function(rank, …)."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"file://{Path(folder) / 'meet'}"
        pair = [start(_join, address, rank, function, args) for rank in (0, 1)]
        return [finish(*one) for one in pair]


def _call(pipe, function, args):
    torch.set_num_threads(1)
    answer = io.BytesIO()
    try:
        torch.save((function(*args), None), answer)
    except BaseException:
        torch.save((None, traceback.format_exc()), answer)
    pipe.send_bytes(answer.getvalue())


def _join(address, rank, function, args):
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    try:
        return function(rank, *args)
    finally:
        torch.distributed.destroy_process_group()
