"""The memory-mapped cache: what comes out, what survives, what is said when it cannot be."""

import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, default_collate

from mde_utils.data import CachedDataset, cache_root, collate
from mde_utils.data import cache as module

H, W = 6, 8


class Toy(CachedDataset):
    """Records computed from their index; `made` counts them."""

    depth_unit = 0.001
    fields = {
        "image": ("u1", (3, H, W)),
        "right": ("u1", (3, H, W)),
        "depth": ("f4", (1, H, W)),
        "sparse_depth": ("u2", (1, H, W)),
        "normal": ("i1", (3, H, W)),
        "label": ("u1", (H, W)),
        "flow": ("f4", (2, H, W)),
    }

    def __init__(self, length=10, *, version=0, **options):
        self.made = []
        super().__init__(
            key={"dataset": "toy", "split": "train", "version": version},
            fields=self.fields,
            length=length,
            **options,
        )

    def produce(self, indices):
        for index in indices:
            self.made.append(index)
            yield self.make(index)

    @staticmethod
    def make(index):
        draw = np.random.default_rng(index)
        return {
            "image": draw.integers(0, 256, (3, H, W), dtype="u1"),
            "right": draw.integers(0, 256, (3, H, W), dtype="u1"),
            "depth": draw.random((1, H, W), dtype="f4"),
            "sparse_depth": draw.integers(0, 65536, (1, H, W), dtype="u2"),
            "normal": draw.integers(-127, 128, (3, H, W), dtype="i1"),
            "label": draw.integers(0, 256, (H, W), dtype="u1"),
            "flow": draw.random((2, H, W), dtype="f4"),
        }

    def extras(self, index):
        return {"name": f"toy/{index}", "focal": float(index)}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "SHARD", 4)
    return tmp_path / "cache"


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


# ---- what comes out ---------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
def test_items_have_the_types_and_values_of_the_contract(cache):
    item, stored = Toy(cache=cache)[7], Toy.make(7)
    for name in ("image", "right"):
        assert torch.equal(item[name], torch.from_numpy(stored[name]).float() / 255)
    assert torch.equal(item["depth"], torch.from_numpy(stored["depth"]))
    millimetres = torch.from_numpy(stored["sparse_depth"].astype("f4"))
    assert torch.allclose(item["sparse_depth"], millimetres / 1000)
    normal = torch.from_numpy(stored["normal"]).float() / 127
    assert torch.allclose(item["normal"], normal / normal.norm(dim=0), atol=1e-6)
    assert item["label"].dtype == torch.int64
    assert torch.equal(item["label"], torch.from_numpy(stored["label"]).long())
    assert torch.equal(item["flow"], torch.from_numpy(stored["flow"]))
    assert item["name"] == "toy/7" and item["focal"] == 7
    for k in ("image", "right", "depth", "sparse_depth", "normal", "focal"):
        assert item[k].dtype == torch.float32


def test_zero_normals_stay_zero(monkeypatch):
    monkeypatch.setattr(Toy, "make", staticmethod(lambda i: _with(i, normal=0)))
    assert Toy(1)[0]["normal"].abs().max() == 0


def _with(index, **constants):
    record = _make(index)
    return record | {k: np.full_like(record[k], v) for k, v in constants.items()}


_make = Toy.make


def test_cached_and_direct_agree_in_any_order():
    cached, direct = Toy(10), Toy(10, cache=False)
    order = [9, 0, 4, 3, 0, -1, np.int64(5)]
    pairs = zip(cached.__getitems__(order), direct.__getitems__(order), order, strict=True)
    for a, b, index in pairs:
        assert same(a, b) and same(a, cached[int(index)])
    assert len([*cached]) == 10  # iteration ends


@pytest.mark.parametrize("index", [10, -11])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"{index} .* 10"):
        Toy(10)[index]


def test_items_do_not_alias():
    data = Toy(10)
    first, again = data.__getitems__([1, 1])
    before = data[1]["image"].clone()
    first["image"].zero_()
    first["flow"].zero_()
    assert torch.equal(again["image"], before) and torch.equal(data[1]["image"], before)
    assert same(data[1], Toy(10)[1])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("take", [lambda d: d, lambda d: Subset(d, [7, 2, 3, 9, 0])])
def test_collate_equals_default_collate(workers, take):
    data = take(Toy(10))
    options = dict(batch_size=3, num_workers=workers)
    for ours, theirs in zip(
        DataLoader(data, collate_fn=collate, **options), DataLoader(data, **options), strict=True
    ):
        assert same(ours, theirs)


def test_collate_takes_any_items():
    items = [
        {"image": torch.rand(3, 2, 2), "name": "a"},
        {"image": torch.rand(3, 2, 2), "name": "b"},
    ]
    assert same(collate(items), default_collate(items))


def test_augmentation_is_applied_to_every_item_and_collates():
    data = Toy(10, augment=lambda item: item | {"image": item["image"] * 0 + item["focal"]})
    batch = next(iter(DataLoader(data, batch_size=5, collate_fn=collate)))
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]


def test_spawned_workers_read_the_same():
    data = Toy(6)
    loader = DataLoader(data, batch_size=3, num_workers=1, multiprocessing_context="spawn")
    assert same(next(iter(loader)), default_collate([data[i] for i in range(3)]))


def test_pickle_leaves_the_maps_behind():
    data = Toy(6)
    data[0]
    copy = pickle.loads(pickle.dumps(data))
    assert not copy._shards and same(copy[5], data[5])


def test_few_shards_are_open_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "OPEN_SHARDS", 2)
    data = Toy(20)
    assert [data[i]["focal"].item() for i in range(20)] == [*range(20)]
    assert len(data._shards) == 2
    assert len(data.__getitems__([*range(20)])) == 20


# ---- what is kept -----------------------------------------------------------------------------


def test_second_construction_makes_nothing():
    assert Toy(10).made == [*range(10)]
    assert Toy(10).made == []
    assert Toy(3).made == []  # a part of it


def test_longer_extends_partial_shard():
    short = Toy(6)
    first = short[5]
    longer = Toy(11)
    assert longer.made == [6, 7, 8, 9, 10]
    assert same(longer[5], first)
    assert same(short[5], first)  # its map shows the replaced file


def test_key_separates():
    assert Toy(5).cache_folder != Toy(5, version=1).cache_folder
    assert Toy(5, cache=False).cache_folder is None
    assert Toy(7).cache_folder == Toy(5).cache_folder


def test_cache_root(monkeypatch, tmp_path):
    assert cache_root() == Path(os.environ["MDE_CACHE"])
    monkeypatch.delenv("MDE_CACHE")
    checkout = Path(module.__file__).resolve().parents[2]
    assert cache_root() == checkout / "data" / "cache"
    refused = {checkout}
    monkeypatch.setattr(module.os, "access", lambda place, _: place not in refused)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_root() == tmp_path / ".cache" / "mde_utils"
    refused.add(tmp_path)
    with pytest.warns(RuntimeWarning, match=f"{tmp_path}.*cannot be written.*MDE_CACHE"):
        fallback = cache_root()
    assert fallback.parent == Path(tempfile.gettempdir())


def test_a_cache_mounted_into_a_home_that_cannot_be_written_is_used(monkeypatch, tmp_path):
    monkeypatch.delenv("MDE_CACHE")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setenv("HOME", str(tmp_path))
    mounted = tmp_path / ".cache" / "mde_utils"
    mounted.mkdir(parents=True)
    monkeypatch.setattr(module.os, "access", lambda place, _: place == mounted)
    assert cache_root() == mounted


def test_without_a_home_caches_are_temporary(monkeypatch):
    """Containers run under user ids that no one knows, where `Path.home()` raises."""
    monkeypatch.delenv("MDE_CACHE")
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    monkeypatch.setattr(module.os.path, "expanduser", lambda path: path)
    with pytest.warns(RuntimeWarning, match="~.*cannot be written.*MDE_CACHE"):
        assert cache_root().parent == Path(tempfile.gettempdir())


def test_damaged_shard_is_made_again(own_folder):
    data = Toy(10)
    want = data[0]
    shard = data.cache_folder / "00000.npy"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.warns(UserWarning, match="00000.npy is made again"):
        again = Toy(10)
    assert again.made == [0, 1, 2, 3] and same(again[0], want)


def test_complete_cache_needs_no_writing(monkeypatch):
    Toy(10)

    def refuse(*_, **__):
        raise AssertionError("written")

    monkeypatch.setattr(module, "atomic", refuse)
    monkeypatch.setattr(module, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert Toy(10)[9]["focal"] == 9


# ---- what is said -----------------------------------------------------------------------------


def test_no_write_permission(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(PermissionError, match="MDE_CACHE") as caught:
        Toy(3)
    assert str(tmp_path / "file" / "below") in str(caught.value)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_write_refused_later(monkeypatch, code):
    def refuse(*_, **__):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(module.os, "replace", refuse)
    with pytest.raises(PermissionError, match="toy-train.*MDE_CACHE"):
        Toy(3)


def test_disk_full_is_foreseen(monkeypatch):
    usage = module.shutil.disk_usage("/")._replace(free=100)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    data = Toy(3, cache=False)
    with pytest.raises(OSError, match="No room .*GB needed.*MDE_CACHE"):
        Toy(3)
    assert data[0]


def test_disk_full_while_writing(own_folder):
    """A real refusal by the system: no file of this process may grow beyond 3000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
    try:
        with pytest.raises(OSError, match="No room .*MDE_CACHE") as caught:
            Toy(10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not [*own_folder.rglob(".*")] and not [*own_folder.rglob("*.npy")]
    assert Toy(10)[9]["focal"] == 9


def test_error_of_the_source_passes_and_loses_nothing(monkeypatch, own_folder):
    def make(index):
        if index == 6:
            raise OSError(errno.EACCES, "source is locked")
        return _make(index)

    monkeypatch.setattr(Toy, "make", staticmethod(make))
    with pytest.raises(OSError, match="source is locked") as caught:
        Toy(10)
    assert "MDE_CACHE" not in str(caught.value)
    assert [path.name for path in sorted(own_folder.rglob("*.npy"))] == ["00000.npy"]
    assert not [*own_folder.rglob(".*")]
    monkeypatch.setattr(Toy, "make", staticmethod(_make))
    assert Toy(10).made == [*range(4, 10)]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (lambda r: r | {"depth": r["depth"].astype("f8")}, "depth as float64"),
        (lambda r: r | {"label": r["label"][:-1]}, r"label as uint8 \(5, 8\)"),
    ],
)
@pytest.mark.parametrize("cache", [True, False])
def test_wrong_record_is_named(monkeypatch, record, words, cache):
    monkeypatch.setattr(Toy, "make", staticmethod(lambda i: record(_make(i))))
    with pytest.raises(ValueError, match=words):
        Toy(3, cache=cache)[0]


@pytest.mark.parametrize("cache", [True, False])
def test_too_few_records_are_noticed(monkeypatch, cache):
    monkeypatch.setattr(Toy, "produce", lambda self, indices: iter([]))
    with pytest.raises(ValueError, match="gave 0 records"):
        Toy(3, cache=cache)[0]


def test_empty_split():
    with pytest.raises(ValueError, match="empty split"):
        Toy(0)


# ---- several processes ------------------------------------------------------------------------

CHILD = """
import sys, time
sys.path[:0] = {paths!r}
import mde_utils.data.cache as module
from test_data_cache import Toy
module.SHARD = 4

class Slow(Toy):
    def produce(self, indices):
        for record in super().produce(indices):
            print("made", self.made[-1], flush=True)
            time.sleep({pause})
            yield record

print("start", flush=True)
data = Slow({length})
print("sum", sum(float(item["depth"].double().sum()) for item in data), flush=True)
"""


def start(length=24, pause=0.0):
    here = Path(__file__).resolve().parent
    code = CHILD.format(paths=[str(here), str(here.parent)], pause=pause, length=length)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    )


def lines(text, word):
    return [line.split()[1] for line in text.splitlines() if line.startswith(word)]


def expected_sum(length):
    return sum(float(torch.from_numpy(_make(i)["depth"]).double().sum()) for i in range(length))


def test_processes_that_start_together_share_the_work():
    outputs = [child.communicate(timeout=300)[0] for child in [start(pause=0.02) for _ in range(2)]]
    made = [int(n) for output in outputs for n in lines(output, "made")]
    assert sorted(made) == [*range(24)]  # nobody made what another had made
    for output in outputs:
        assert float(lines(output, "sum")[0]) == pytest.approx(expected_sum(24))


def test_killed_writer_is_completed(own_folder):
    writer = start(pause=0.05)
    for line in writer.stdout:
        if line.strip() == "made 5":  # in the second shard, a temporary file is open
            break
    assert [*own_folder.rglob(".00001.npy.*")]
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert [*own_folder.rglob(".00001.npy.*")]  # it had no chance to tidy up
    assert not [*own_folder.rglob("00001.npy")]

    data = Toy(24)
    assert data.made == [*range(4, 24)]  # the complete shard was kept, the other not believed
    for index in (0, 4, 5, 23):
        assert torch.equal(data[index]["depth"], torch.from_numpy(_make(index)["depth"]))
    assert not [*own_folder.rglob(".*")]


def test_reader_that_waits_for_a_killed_writer_takes_over():
    writer = start(length=4, pause=100)  # one shard: the reader has nothing else to do
    assert [next(writer.stdout).strip() for _ in range(2)] == ["start", "made 0"]
    reader = start(length=4)
    assert next(reader.stdout).strip() == "start"
    time.sleep(0.5)
    assert reader.poll() is None  # it waits for the lock
    writer.send_signal(signal.SIGKILL)
    output = reader.communicate(timeout=300)[0]
    writer.communicate()
    assert lines(output, "made") == ["0", "1", "2", "3"]
    assert float(lines(output, "sum")[0]) == pytest.approx(expected_sum(4))
