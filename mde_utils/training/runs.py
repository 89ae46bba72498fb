"""The folder of a training run: what is in it, whose it is, and how to go on from it.

`config.json`, `history.csv` (a row an epoch), `tensorboard/` (the same as curves), `last.pt` and
`previous.pt` (the last two checkpoints, each with all that is needed to go on),
`best.safetensors` (the weights of the epoch that is best by depth alone). Each file is written
beside its name and then renamed, so that a killed process leaves the former one.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from mde_utils.files import atomic, refusals
from mde_utils.training.config import TrainConfig

LAST, PREVIOUS = "last.pt", "previous.pt"
BEST, CONFIG, HISTORY, CURVES = "best.safetensors", "config.json", "history.csv", "tensorboard"
LOCK, OWNER = ".lock", ".owner"  # there while a process is at the run
LONGEST = 100  # characters of the longest name in the folder, TensorBoard's with the host's name


@contextmanager
def held(path: str | Path) -> Iterator[None]:
    """The folder for this process alone; refused while another one has it. The system frees the
    lock of a killed process."""
    path = Path(path)
    lock, owner = FileLock(path / LOCK, timeout=0), path / OWNER
    with suppress(OSError):  # what cannot be written says so when it is
        path.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except (Timeout, NotImplementedError):
            who = owner.read_text() if owner.is_file() else ""
            if who:
                raise RuntimeError(
                    f"The run folder {path} is in use by {who}: two trainings would spoil each "
                    "other's files. Wait for its end, stop it, or choose another run_dir."
                ) from None
            warnings.warn(
                f"The file system of {path} has no locks: see that no other process trains there.",
                stacklevel=4,
            )
        else:
            owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    try:
        yield
    finally:
        if lock.is_locked:
            for name in (OWNER, LOCK):
                (path / name).unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):  # not empty, as a rule
                path.rmdir()


class RunFolder:
    """One run's folder; nothing is written before `open`. Refuses that of another config."""

    def __init__(self, path: str | Path, config: TrainConfig):
        self.path, self.config = Path(path), config
        self.damaged = False  # last.pt cannot be read: it must not become previous.pt
        self.known = self._stamp()
        if self.checkpoints():
            self._must_be_own(TrainConfig.load(self.path / CONFIG))

    def _must_be_own(self, there: TrainConfig) -> None:
        if difference := self.config.difference(there):
            raise ValueError(
                f"The run folder {self.path} belongs to another config "
                f"({'; '.join(difference)}). Nothing was overwritten: choose another run_dir, or "
                "remove that one."
            )

    def _stamp(self) -> tuple | None:
        """What tells this last.pt from another process's."""
        try:
            found = (self.path / LAST).stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @property
    def best(self) -> Path:
        return self.path / BEST

    def checkpoints(self) -> list[Path]:
        """Those that are there, the newest first."""
        return [p for p in (self.path / LAST, self.path / PREVIOUS) if os.path.isfile(p)]

    def adopt(self, source: str | Path) -> None:
        """Copy a former output of this config, found at or below `source`, unless this folder
        holds a run already. Where there are runs of other configs only (the first of two was cut
        short, and this is the second), this one starts anew, with a warning that names them."""
        if self.checkpoints():
            return
        found = list(_runs(Path(source)))
        for folder in found:
            if not self.config.difference(TrainConfig.load(folder / CONFIG)):
                # The checkpoints last: with one of them the folder counts as a run.
                curves = [f"{CURVES}/{path.name}" for path in sorted((folder / CURVES).glob("*"))]
                for name in (CONFIG, BEST, HISTORY, *curves, PREVIOUS, LAST):
                    if (folder / name).is_file():
                        with atomic(self.path / name) as temporary:
                            shutil.copyfile(folder / name, temporary)
                return
        if not found:
            raise FileNotFoundError(
                f"There is no run at or below {source}: give the folder of a former output, or "
                "leave resume_from empty."
            )
        configs = {folder.name: TrainConfig.load(folder / CONFIG) for folder in found[:3]}
        others = "; ".join(
            f"{name} ({', '.join(self.config.difference(there))})"
            for name, there in configs.items()
        )
        warnings.warn(
            f"No run of this config at or below {source}, so this one starts anew. There is: "
            f"{others}.",
            stacklevel=3,
        )

    def open(self, room: int = 0) -> None:
        """See, before an epoch is spent, that the folder can be written and has `room` bytes; leave
        the config in it.

        Removes what killed processes left of the files that they were writing.
        """
        with self.writing(CURVES), suppress(FileNotFoundError, NotADirectoryError):
            (self.path / CURVES / ("e" * LONGEST)).stat()  # too long a path?
        with self.writing(CONFIG):
            self.config.save(self.path / CONFIG)
        for name in (LAST, PREVIOUS, BEST, HISTORY, CONFIG):
            for unfinished in self.path.glob(f".{name}.*"):
                unfinished.unlink(missing_ok=True)
        with self.writing(LAST):
            if shutil.disk_usage(self.path).free < room:
                needed = f"a checkpoint and the best weights take {room / 1e6:,.0f} MB"
                raise OSError(errno.ENOSPC, needed)

    def load(self) -> dict | None:
        """The newest checkpoint that can be read; None in a new folder. A damaged one is passed
        over for the one before it, with a warning."""
        self.known = self._stamp()
        damaged = []
        for path in self.checkpoints():
            try:
                with zipfile.ZipFile(path) as archive:
                    if part := archive.testzip():  # torch.load checks no sums
                        raise ValueError(f"{part} has changed since it was written")
                state = torch.load(path, map_location="cpu", weights_only=True)
                where = f"epoch {state['epoch']}, batch {state['position']}"
            except (PermissionError, MemoryError):  # says nothing of the file
                raise
            except Exception as error:  # whatever a damaged archive leads to
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
                damaged.append(f"{path.name} is damaged ({path.stat().st_size:,} bytes: {reason})")
                continue
            if damaged:
                warnings.warn(
                    f"In {self.path}: {damaged[0]}. Going on from {path.name}, at {where}.",
                    stacklevel=3,
                )
                self.damaged = True
            if config := state.pop("config", None):  # none in those of former versions
                self._must_be_own(TrainConfig.from_dict(config))
            return state
        if damaged:
            raise ValueError(
                f"In {self.path}: {'; '.join(damaged)}. Nothing was overwritten. Remove them to "
                f"train anew"
                + (f"; {BEST} holds the best weights so far." if self.best.is_file() else ".")
            )
        return None

    def save(self, state: dict) -> None:
        """Write `last.pt`; the former one becomes `previous.pt`. Where the disk is full the
        checkpoints are as they were."""
        last = self.path / LAST
        if self._stamp() != self.known:
            raise RuntimeError(
                f"Another process has written {last} since this one did: it may be further on, so "
                "nothing was overwritten. Start again, and the run goes on from there."
            )
        with self.writing(LAST), atomic(last) as temporary:
            with temporary.open("wb") as file:  # given a name, torch hides the system's error
                torch.save(state | {"config": self.config.settings()}, file)
            if last.is_file() and not self.damaged:
                last.replace(self.path / PREVIOUS)
        self.damaged, self.known = False, self._stamp()

    def write_history(self, rows: list[dict]) -> None:
        with self.writing(HISTORY), atomic(self.path / HISTORY) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Say what it means for the run that one of its files cannot be written."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own
            cause = error.__cause__ or error  # `atomic` has said it in its own words
            while not isinstance(cause, OSError) and cause.__context__ is not None:
                cause = cause.__context__
            kept = " and ".join(path.name for path in self.checkpoints())
            before, after = (f"As before: {kept}. ", ", and the run goes on") if kept else ("", "")
            remedy = f"{before}Make room, or choose another run_dir, and start again{after}."
            with refusals(self.path / name, remedy):
                raise cause from None


def _runs(root: Path) -> Iterator[Path]:
    """Run folders at or below `root`."""
    for path in sorted(root.rglob(CONFIG)):
        if any((path.parent / name).is_file() for name in (LAST, PREVIOUS)):
            try:
                TrainConfig.load(path)
            except ValueError:  # another program's config.json
                continue
            yield path.parent
