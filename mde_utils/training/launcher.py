"""A training in several processes, from a notebook."""

from __future__ import annotations

import collections
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from mde_utils.training.config import TrainConfig
from mde_utils.training.runs import RunFolder


def launch(config: TrainConfig, num_processes: int) -> bool:
    """Train as `config` says in several processes, a GPU each, and wait; `fit` with the same
    config then reads the finished run.

    It is `accelerate launch -m mde_utils.training config.json`. From a notebook this works where
    `notebook_launcher` does not: when the kernel has touched a GPU already.

    Returns:
        Whether the run is finished: not where `max_hours` ended it. Then the same call goes on.
    """
    if not config.run_dir or num_processes < 2:
        raise ValueError(
            f"launch needs a config with run_dir and two processes or more; got run_dir="
            f"{config.run_dir!r} and {num_processes}. For one process use fit."
        )
    home = Path(__file__).resolve().parents[2]
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    # On CPUs too: with --cpu it would start one process.
    options = f"--multi_gpu --num_processes {num_processes} --num_machines 1"
    options += f" --main_process_port {free_port()} --mixed_precision no --dynamo_backend no"
    said = collections.deque(maxlen=200)
    with tempfile.TemporaryDirectory() as folder:
        path = config.save(Path(folder) / "config.json")
        command = [sys.executable, "-m", "accelerate.commands.launch", *options.split()]
        process = subprocess.Popen(
            [*command, "-m", "mde_utils.training", str(path)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            for line in process.stdout:  # warnings and errors, as they come
                print(line, end="", flush=True)
                said.append(line)
    if process.returncode:
        # What follows is about the other processes and the launcher itself.
        words = re.split(r"\n.*torch/distributed/elastic", "".join(said))[0]
        raise RuntimeError(
            f"Training in {num_processes} processes failed. Its last words:\n{words[-2000:]}"
        )
    return RunFolder(config.run_dir, config).load()["epoch"] > config.num_epochs


def free_port() -> int:
    """One that nobody listens on; accelerate before 1.7 takes a 0 for the port itself."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
