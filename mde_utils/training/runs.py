"""The folder of a training run: what is in it, whose it is, and how to go on from it.

``config.json``, ``history.csv`` (a row an epoch), ``tensorboard/`` (the same as curves),
``last.pt`` and ``previous.pt`` (the last two checkpoints, each with all that is needed to go on),
``best.safetensors`` (the weights of the epoch that is best by depth alone). Each file is written
beside its name and then renamed, so that a killed process leaves the former one.
"""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError

from mde_utils.files import atomic
from mde_utils.training.config import TrainConfig

LAST, PREVIOUS = "last.pt", "previous.pt"
BEST, CONFIG, HISTORY, CURVES = "best.safetensors", "config.json", "history.csv", "tensorboard"


class RunFolder:
    """One run's folder; nothing is written before :meth:`open`.

    Raises:
        ValueError: the folder belongs to another config; the message shows the difference.
    """

    def __init__(self, path: str | Path, config: TrainConfig):
        self.path, self.config = Path(path), config
        self.damaged = False  # last.pt cannot be read: it must not become previous.pt
        if self.checkpoints():
            there = TrainConfig.load(self.path / CONFIG)
            if difference := config.difference(there):
                raise ValueError(
                    f"The run folder {self.path} belongs to another config "
                    f"({'; '.join(difference)}). Nothing was overwritten: choose another run_dir, "
                    "or remove that one."
                )

    @property
    def best(self) -> Path:
        return self.path / BEST

    def checkpoints(self) -> list[Path]:
        """Those that are there, the newest first."""
        return [p for p in (self.path / LAST, self.path / PREVIOUS) if p.is_file()]

    def adopt(self, source: str | Path) -> None:
        """Copy a former output of this config, found at or below ``source``, unless this folder
        holds a run already. Where there are runs of other configs only (the first of two was cut
        short, and this is the second), this one starts anew, with a warning that names them.

        Raises:
            FileNotFoundError: no run at all there.
        """
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

    def open(self) -> None:
        """See, before an epoch is spent, that the folder can be written; leave the config in it.

        Removes what killed processes left of the files that they were writing.
        """
        with self.writing(CONFIG):
            self.config.save(self.path / CONFIG)
        for name in (LAST, PREVIOUS, BEST, HISTORY, CONFIG):
            for unfinished in self.path.glob(f".{name}.*"):
                unfinished.unlink(missing_ok=True)

    def load(self) -> dict | None:
        """The newest checkpoint that can be read; None in a new folder.

        A damaged one is passed over for the one before it, with a warning.

        Raises:
            ValueError: there are checkpoints, and none of them can be read.
        """
        damaged = []
        for path in self.checkpoints():
            try:
                with zipfile.ZipFile(path) as archive:
                    if part := archive.testzip():  # torch.load checks no sums
                        raise ValueError(f"{part} has changed since it was written")
                state = torch.load(path, map_location="cpu", weights_only=True)
                where = f"epoch {state['epoch']}, batch {state['position']}"
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
            return state
        if damaged:
            raise ValueError(
                f"In {self.path}: {'; '.join(damaged)}. Nothing was overwritten. Remove them to "
                f"train anew"
                + (f"; {BEST} holds the best weights so far." if self.best.is_file() else ".")
            )
        return None

    def save(self, state: dict) -> None:
        """Write ``last.pt``; the former one becomes ``previous.pt``.

        Raises:
            OSError: no room, or no permission; the checkpoints are as they were.
        """
        last = self.path / LAST
        with self.writing(LAST), atomic(last) as temporary:
            with temporary.open("wb") as file:  # given a name, torch hides the system's error
                torch.save(state, file)
            if last.is_file() and not self.damaged:
                last.replace(self.path / PREVIOUS)
        self.damaged = False

    def write_history(self, rows: list[dict]) -> None:
        with self.writing(HISTORY), atomic(self.path / HISTORY) as temporary:
            pd.DataFrame(rows).to_csv(temporary, index=False)

    @contextmanager
    def writing(self, name: str) -> Iterator[None]:
        """Say what it means for the run that one of its files cannot be written.

        Raises:
            OSError: no room, or no permission.
        """
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:  # each library has its own
            if "Cannot write" in str(error):  # `atomic` has said it
                raise
            cause = error.__cause__ or error
            while not isinstance(cause, OSError) and cause.__context__ is not None:
                cause = cause.__context__
            reason = getattr(cause, "strerror", None) or str(cause).partition("\n")[0]
            kept = " and ".join(path.name for path in self.checkpoints())
            room = shutil.disk_usage(self.path).free / 2**20 if self.path.is_dir() else 0
            message = (
                f"Cannot write {self.path / name} ({reason}; {room:,.0f} MiB free). "
                + (f"As before: {kept}. " if kept else "")
                + f"Make room and start again{', and the run goes on' if kept else ''}."
            )
            number = getattr(cause, "errno", None)
            raise (OSError(message) if number is None else OSError(number, message)) from error


def _runs(root: Path) -> Iterator[Path]:
    """Run folders at or below ``root``."""
    for path in sorted(root.rglob(CONFIG)):
        if any((path.parent / name).is_file() for name in (LAST, PREVIOUS)):
            try:
                TrainConfig.load(path)
            except ValueError:  # another program's config.json
                continue
            yield path.parent
