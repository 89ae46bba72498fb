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
import io
import json
import operator
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.nn import functional as F
from torch.utils.data import Dataset, default_collate

from ..depth_bins import RANGES
from ..environment import progress
from .transforms import resolve_augmentation

SHARD = 128  # records in a shard: what a killed writer loses at most
OPEN_SHARDS = 256  # mapped at a time; each holds a file descriptor, and 1024 is a usual limit
FORMAT = 1  # part of every key: raise it when the meaning of stored bytes changes

_REAL = ("image", "right", "depth", "sparse_depth", "normal")  # float32 in an item
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_root() -> Path:
    """The folder that holds all caches.

    `$MDE_CACHE`; else `data/cache` of the checkout that this package lies in, if it is writable;
    else `~/.cache/mde_utils`. On Kaggle always the last: what lies in the working folder is counted
    and saved with the notebook.
    """
    if os.environ.get("MDE_CACHE"):
        return Path(os.environ["MDE_CACHE"]).expanduser()
    checkout = Path(__file__).resolve().parents[2]
    own = (checkout / "pyproject.toml").is_file() and os.access(checkout, os.W_OK)
    if own and not os.environ.get("KAGGLE_KERNEL_RUN_TYPE"):
        return checkout / "data" / "cache"
    return Path.home() / ".cache" / "mde_utils"


class Batch(list):
    """Items whose stored tensors are views of one batch, `stacked`: name → (n, …)."""

    stacked: dict[str, torch.Tensor] | None = None


def collate(items: list[dict]) -> dict:
    """`default_collate`, but what a CachedDataset has read as one batch is not copied again.

    That second copy would take twice the time of reading. For any other list of items, from any
    data set, the result is that of `default_collate`. Use: `DataLoader(…, collate_fn=collate)`.
    """
    stacked = getattr(items, "stacked", None) or {}
    return stacked | default_collate(
        [{name: value for name, value in item.items() if name not in stacked} for item in items]
    )


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

    Raises PermissionError or OSError that name the folder and MDE_CACHE when the cache cannot be
    written; nothing unfinished stays behind. A complete cache needs no write permission.
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
        indices = [self._check(index) for index in indices]
        batch = self._read(indices) if self.cache_folder else self._make(indices)
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

    def _check(self, index) -> int:
        i = operator.index(index)
        if not -self._length <= i < self._length:
            raise IndexError(f"index {i} of a data set of {self._length} items")
        return i % self._length

    def _read(self, indices: list[int]) -> dict[str, torch.Tensor]:
        by_shard: dict[int, list[int]] = {}
        for position, index in enumerate(indices):
            by_shard.setdefault(index // SHARD, []).append(position)
        rows: list = [None] * len(indices)
        for shard, positions in by_shard.items():
            records = self._open(shard)
            for position in positions:
                rows[position] = records[indices[position] % SHARD]
        return {name: self._gather(name, [row[name] for row in rows]) for name in self.dtype.names}

    def _make(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = [self._record(record) for record in self.produce(indices)]
        self._expect(len(rows), len(indices))
        return {name: self._gather(name, [row[name] for row in rows]) for name in self.dtype.names}

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
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "key.json").exists():
                _replace(folder / "key.json", [key.encode()])
            free = shutil.disk_usage(folder).free
            needed = sum(missing.values()) * self.dtype.itemsize
            if needed > free:
                raise OSError(errno.ENOSPC, f"{needed / 1e9:.2f} GB needed, {free / 1e9:.2f} free")
        with progress(total=sum(missing.values()), desc=folder.name) as bar:
            busy = [shard for shard in missing if not self._build_shard(shard, bar, wait=False)]
            for shard in busy:
                self._build_shard(shard, bar, wait=True)

    def _build_shard(self, shard: int, bar, *, wait: bool) -> bool:
        """Make or extend one shard; False when another process is at it and `wait` is off."""
        path, wanted = self._path(shard), self._wanted(shard)
        lock = FileLock(path.with_suffix(".lock"), timeout=-1 if wait else 0)
        try:
            with _writing(path.parent):
                lock.acquire()
        except Timeout:
            return False
        try:
            for left in path.parent.glob(f"{path.name}.*.tmp"):  # by a writer that was killed
                left.unlink()
            if missing := self._missing(shard):  # else someone made it while we waited
                self._write(shard, wanted - missing, wanted, bar)
        finally:
            lock.release()
        return True

    def _write(self, shard: int, have: int, wanted: int, bar) -> None:
        def chunks():
            yield _header(self.dtype, wanted)
            if have:
                yield self._stored(shard)[:have].tobytes()
            first, made = shard * SHARD, have
            for record in self.produce([*range(first + have, first + wanted)]):
                yield self._record(record).tobytes()
                made += 1
                bar.update()
            self._expect(made, wanted)

        _replace(self._path(shard), chunks())

    def _record(self, record: dict[str, np.ndarray]) -> np.ndarray:
        """One structured record; a wrong shape or type is the subclass's mistake and is named."""
        out = np.empty((), self.dtype)
        for name in self.dtype.names:
            array, field = np.asarray(record[name]), out[name]
            if array.shape != field.shape or array.dtype != field.dtype:
                raise ValueError(
                    f"{type(self).__name__}.produce gave {name} as {array.dtype} {array.shape}, "
                    f"declared is {field.dtype} {field.shape}"
                )
            field[...] = array
        return out

    def _expect(self, given: int, wanted: int) -> None:
        if given != wanted:
            raise ValueError(
                f"{type(self).__name__}.produce gave {given} records, {wanted} were asked for"
            )


def _header(dtype: np.dtype, length: int) -> bytes:
    buffer = io.BytesIO()
    spec = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False}
    np.lib.format.write_array_header_1_0(buffer, spec | {"shape": (length,)})
    return buffer.getvalue()


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Write `path` whole or not at all.

    Plain writes, not a writable map: a full disk is an error in the first and kills the process
    (SIGBUS) in the second. Errors of the iterable itself pass through as they are.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with _writing(path.parent):
            file = open(temporary, "wb", buffering=0)
        with file:
            for chunk in chunks:
                rest = memoryview(chunk)
                with _writing(path.parent):
                    while rest:
                        rest = rest[file.write(rest) :]
            with _writing(path.parent):
                os.fsync(file.fileno())
        with _writing(path.parent):
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _writing(folder: Path):
    """Errors of the file system, said in words that help."""
    remedy = "Set MDE_CACHE to another folder, or pass cache=False to make every item anew."
    try:
        yield
    except OSError as error:
        if error.errno in _DENIED:
            message = f"Cannot write the cache folder {folder} ({error.strerror}). {remedy}"
            raise PermissionError(error.errno, message) from error
        if error.errno in _FULL:
            message = f"No room for the cache in {folder} ({error.strerror}). {remedy}"
            raise OSError(error.errno, message) from error
        raise
