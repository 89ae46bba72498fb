"""Decode or render once, then read from memory-mapped files.

Two CPU cores decode about a hundred 640x480 frames a second, a GPU trains on thousands. So every
record is made once, stored as small integers where that is exact, and mapped into memory from
then on: the operating system's page cache is shared by all processes and is given back under
pressure.

On disk a data set is a folder of shards, `00000.npy`, `00001.npy`, …: structured arrays of up to
128 records. A shard appears under its name only when it is complete (temporary file, then
`os.replace`), so what exists can be read; what a killed writer left unfinished is made by the next
reader. One lock a shard, dropped by the operating system when its holder dies, lets processes that
start together share the work instead of repeating it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import operator
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn import functional as F
from torch.utils.data import Dataset

from ..depth_bins import RANGES
from ..environment import progress
from ..files import atomic, refusals
from .loading import Batch
from .transforms import resolve_augmentation

SHARD = 128  # records in a shard: what a killed writer loses at most
OPEN_SHARDS = 256  # mapped at a time; each holds a file descriptor, and 1024 is a usual limit
FORMAT = 1  # part of every key: raise it when the meaning of stored bytes changes

_REAL = ("image", "right", "depth", "sparse_depth", "normal")  # float32 in an item
_REMEDY = "Set MDE_CACHE to another folder, or pass cache=False to make every item anew."


def cache_root() -> Path:
    """The folder that holds all caches.

    `$MDE_CACHE`; else, of those that can be written, the first: `data/cache` of the checkout that
    this package lies in (not on Kaggle: what lies in the working folder is counted and saved with
    the notebook); `~/.cache/mde_utils`; with a warning, a folder for temporary files.
    """
    if os.environ.get("MDE_CACHE"):
        return Path(os.environ["MDE_CACHE"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    own = (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK)
    if own and not os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return checkout / "data" / "cache"
    home = Path(os.path.expanduser("~"))  # stays "~" where there is none; Path.home() would raise
    usual = home / ".cache" / "mde_utils"
    nearest = next((p for p in (usual, *usual.parents) if p.is_dir()), home)  # it may be a mount
    if home.is_dir() and os.access(nearest, os.W_OK):
        return usual
    place = Path(tempfile.gettempdir()) / f"mde_utils-{getattr(os, 'getuid', os.getpid)()}"
    warnings.warn(  # Python says it once
        f"Caches go to {place} and may be gone tomorrow, for {usual} cannot be written. Set "
        "MDE_CACHE to a folder that can.",
        RuntimeWarning,
        stacklevel=2,
    )
    return place


class CachedDataset(Dataset):
    """Map-style data set whose decoded records live in memory-mapped shards.

    A subclass says how to make records (`produce`) and what needs no storing (`extras`). It sets
    its own attributes first and calls `super().__init__` last, because that builds the cache.

    key: what the records depend on (data set, split, size, version of the renderer, fingerprint of
        the source, …), JSON-able. Not the length: a larger limit extends the same cache.
    fields: name → (dtype, shape) of the arrays of one record.
    length: number of records, at least 1.
    cache: False makes every record anew at each access.
    augment: None, the name of an augmentation, or a callable item → item.

    Stored → item, all (C, H, W) or (H, W):
        image, right: u1 → float32 / 255
        depth, sparse_depth: f4 in metres as it is; u1, u2 → float32 * `depth_unit`
        normal: i1 → float32, made unit vectors again (0 stays 0)
        label: u1 → int64
        anything else: as it is

    A cache that cannot be written is an error that names the folder and MDE_CACHE, and nothing
    unfinished stays behind. A complete cache needs no write permission.
    """

    depth_unit: float = 1.0  # metres per stored unit of an integer depth
    name: str  # "rooms/train", for titles and tables
    depth_range: tuple[float, float] | None  # (alpha, beta) in metres of its depth bins

    def __init__(
        self,
        *,
        key: dict,
        fields: dict[str, tuple[np.dtype | str, tuple[int, ...]]],
        length: int,
        cache: bool = True,
        augment: str | Callable[[dict], dict] | None = None,
    ):
        if length < 1:
            raise ValueError(f"{type(self).__name__}: an empty split, there is nothing to load.")
        self.augment = resolve_augmentation(augment)
        self.dtype = np.dtype([(name, *spec) for name, spec in fields.items()])
        self.cache_folder: Path | None = None
        self.name = "/".join(str(key[k]) for k in ("dataset", "split") if k in key)
        self.depth_range = RANGES.get(key.get("dataset"))
        self._length = length
        self._shards: dict[int, np.ndarray] = {}
        if cache:
            key = {"format": FORMAT, **key, "fields": np.lib.format.dtype_to_descr(self.dtype)}
            text = json.dumps(key, sort_keys=True, indent=1)
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            prefix = "-".join(str(key[k]) for k in ("dataset", "split") if k in key) or "cache"
            self.cache_folder = cache_root() / f"{prefix}-{digest}"
            self._build(text)

    # ---- for the subclass -----------------------------------------------------------------

    def produce(self, indices: list[int]) -> Iterable[dict[str, np.ndarray]]:
        """The records of `indices`, in this order, each with every field.

        Threads may help, forked processes may not: they would inherit a shard's lock and keep it
        when this process is killed.
        """
        raise NotImplementedError(f"{type(self).__name__} must define produce(indices)")

    def extras(self, index: int) -> dict:
        """What belongs to an item and is not stored: name, intrinsics, focal, …

        Floats become float32 tensors in the item, for collating makes float64 of them.
        """
        return {}

    # ---- reading --------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices) -> list[dict]:
        """Items of a batch; the DataLoader calls this. Their tensors are views of one batch."""
        indices = [operator.index(index) for index in indices]
        for index in indices:
            if not -self._length <= index < self._length:
                raise IndexError(f"index {index} of a data set of {self._length} items")
        indices = [index % self._length for index in indices]
        if self.cache_folder:
            rows = [self._open(index // SHARD)[index % SHARD] for index in indices]
        else:
            rows = [*self._records(indices)]
        batch = {name: self._gather(name, [row[name] for row in rows]) for name in self.dtype.names}
        columns = {name: values.unbind() for name, values in batch.items()}
        items = Batch(
            {name: column[i] for name, column in columns.items()}
            | {
                name: torch.tensor(value) if isinstance(value, float) else value
                for name, value in self.extras(index).items()
            }
            for i, index in enumerate(indices)
        )
        if self.augment is not None:
            return [self.augment(item) for item in items]
        items.stacked = batch
        return items

    def __getstate__(self):
        # Maps do not travel to a DataLoader worker: each process opens its own.
        return self.__dict__ | {"_shards": {}}

    def _gather(self, name: str, arrays: list[np.ndarray]) -> torch.Tensor:
        """(n, …) tensor of an item's type from n stored arrays.

        Row by row, so that a row is converted while it is still in the processor's cache; in
        memory from numpy, which asks for huge pages: together four times faster than one
        operation on the batch in torch's memory, where page faults take most of the time.
        """
        stored = arrays[0].dtype
        whole = stored.kind in "iu"
        kind = "i8" if name == "label" else "f4" if name in _REAL and whole else stored
        batch = torch.from_numpy(np.empty((len(arrays), *arrays[0].shape), kind))
        for row, array in zip(batch, arrays, strict=True):
            row.copy_(torch.from_numpy(array))
            if name in ("image", "right") and whole:
                row.div_(255)
            elif name in ("depth", "sparse_depth") and whole:
                row.mul_(self.depth_unit)
            elif name == "normal":
                F.normalize(row, dim=0, out=row)  # the scale of 127 cancels
        return batch

    # ---- the files ------------------------------------------------------------------------

    def _path(self, shard: int) -> Path:
        return self.cache_folder / f"{shard:05d}.npy"

    def _wanted(self, shard: int) -> int:
        return min(SHARD, self._length - shard * SHARD)

    def _open(self, shard: int) -> np.ndarray:
        if shard not in self._shards:
            if len(self._shards) >= OPEN_SHARDS:
                self._shards.pop(next(iter(self._shards)))
            # Copy-on-write, for torch warns about arrays that cannot be written.
            self._shards[shard] = np.asarray(np.load(self._path(shard), mmap_mode="c"))
        return self._shards[shard]

    def _stored(self, shard: int) -> np.ndarray | None:
        """The shard as it is on disk, None where there is none that can be read."""
        try:
            records = np.load(self._path(shard), mmap_mode="r")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, EOFError) as error:  # not ours: our files appear only when complete
            message = f"Damaged cache file {self._path(shard)} is made again: {error}"
            warnings.warn(message, stacklevel=2)
            return None
        return records if records.dtype == self.dtype else None

    def _missing(self, shard: int) -> int:
        records = self._stored(shard)
        return max(0, self._wanted(shard) - (0 if records is None else len(records)))

    def _build(self, key: str) -> None:
        """Complete the cache. Shards that another process is making are waited for last."""
        shards = range(-(-self._length // SHARD))
        missing = {shard: n for shard in shards if (n := self._missing(shard))}
        if not missing:
            return
        folder = self.cache_folder
        with refusals(folder / "key.json", _REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            needed = sum(missing.values()) * self.dtype.itemsize
            if needed > free:
                raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed")
        if not (folder / "key.json").exists():
            with atomic(folder / "key.json", _REMEDY) as temporary:
                temporary.write_text(key)
        with progress(total=sum(missing.values()), desc=folder.name) as bar:
            busy = [shard for shard in missing if not self._build_shard(shard, bar, wait=False)]
            for shard in busy:
                self._build_shard(shard, bar, wait=True)

    def _build_shard(self, shard: int, bar, *, wait: bool) -> bool:
        """Make or extend one shard; False when another process is at it and `wait` is off."""
        path = self._path(shard)
        lock = FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0)
        try:
            with refusals(path, _REMEDY):
                lock.acquire()
        except Timeout:
            return False
        try:
            for left in path.parent.glob(f".{path.name}.*"):  # by a writer that was killed
                left.unlink()
            if missing := self._missing(shard):  # else someone made it while we waited
                self._write(path, shard, self._wanted(shard) - missing, bar)
        finally:
            lock.release()
        return True

    def _write(self, path: Path, shard: int, have: int, bar) -> None:
        """The whole shard, of whose records the first `have` are there already.

        By plain writes, not a writable map: a full disk is an error in the first and kills the
        process (SIGBUS) in the second.
        """
        wanted, first = self._wanted(shard), shard * SHARD
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (wanted,),
        }
        with atomic(path, _REMEDY) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            if have:
                file.write(self._stored(shard)[:have].tobytes())
            for record in self._records([*range(first + have, first + wanted)]):
                file.write(record.tobytes())
                bar.update()
            file.flush()
            os.fsync(file.fileno())

    def _records(self, indices: list[int]) -> Iterator[np.ndarray]:
        """What `produce` makes, as structured records; what it does wrong is named."""
        made = 0
        for record in self.produce(indices):
            out = np.empty((), self.dtype)
            for name in self.dtype.names:
                array, field = np.asarray(record[name]), out[name]
                if array.shape != field.shape or array.dtype != field.dtype:
                    raise ValueError(
                        f"{type(self).__name__}.produce gave {name} as {array.dtype} "
                        f"{array.shape}, declared is {field.dtype} {field.shape}"
                    )
                field[...] = array
            made += 1
            yield out
        if made != len(indices):
            raise ValueError(
                f"{type(self).__name__}.produce gave {made} records, {len(indices)} were asked for"
            )
