"""Rendered rooms and streets as data sets: items, caches, arguments."""

import numpy as np
import pytest
import torch
import toys

from mde_utils.data import load_dataset
from mde_utils.data.rendered import Rooms, Streets, produce
from mde_utils.depth_bins import find_range
from scenes.rooms import ROOMS
from scenes.streets import LABELS, STREETS
from scenes.world import render_scene

SMALL, WIDE = (48, 64), (32, 104)
FIELDS = ("image", "depth", "normal", "label")
SKY = LABELS.index("sky")


# Some tests call what the data set guards itself; see `world.one_thread`.
one_thread = pytest.fixture(scope="module", autouse=True)(toys.one_thread)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    return tmp_path


def test_threads_produce_the_records_in_order(two_threads):
    arguments = (ROOMS, "train", [4, 9, 2, 7], SMALL, 0.1, None, (*FIELDS, "right"))
    one = list(produce(*arguments, threads=1, device="cpu"))
    two = list(produce(*arguments, threads=2, device="cpu"))
    assert torch.get_num_threads() == 2
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_stopping_half_way_leaves_nothing_behind(two_threads):
    records = produce(ROOMS, "train", range(6), SMALL, None, None, FIELDS, threads=2, device="cpu")
    next(records)
    records.close()
    assert torch.get_num_threads() == 2


def test_items_of_rooms(cache):
    data = load_dataset("rooms", "val", size=SMALL, limit=3, baseline=0.1)
    assert len(data) == 3
    item = data[2]
    assert item["name"] == "rooms/val/000002"
    assert item["image"].shape == item["right"].shape == item["normal"].shape == (3, *SMALL)
    assert item["depth"].shape == (1, *SMALL) and item["depth"].dtype == torch.float32
    assert item["label"].shape == SMALL and item["label"].dtype == torch.int64
    assert item["baseline"] == 0.1
    assert item["focal"] == pytest.approx(51.886)
    # (c + ½) · scale − ½ keeps the principal point at the same place of the picture.
    assert item["intrinsics"][0, 2] == pytest.approx((325.58 + 0.5) / 10 - 0.5, abs=1e-4)
    direct = render_scene(ROOMS, "val", 2, size=SMALL, baseline=0.1)
    assert torch.equal(item["depth"], direct["depth"])
    assert (item["image"] - direct["image"]).abs().max() <= 0.5 / 255 + 1e-6
    assert (item["normal"] * direct["normal"]).sum(0).min() > 0.9998
    assert torch.equal(item["label"], direct["label"])
    assert torch.equal(item["intrinsics"], direct["intrinsics"])


def test_items_of_streets(cache):
    data = load_dataset("streets", "val", size=WIDE, limit=3, baseline=0.54)
    assert len(data) == 3
    item = data[2]
    assert item["name"] == "streets/val/000002"
    assert item["image"].shape == item["right"].shape == item["normal"].shape == (3, *WIDE)
    for name in ("depth", "sparse_depth"):
        assert item[name].shape == (1, *WIDE) and item[name].dtype == torch.float32
    assert item["label"].shape == WIDE and item["label"].dtype == torch.int64
    assert item["baseline"] == pytest.approx(0.54)
    assert item["focal"] == pytest.approx(721.5377 * 104 / 1242)
    direct = render_scene(STREETS, "val", 2, size=WIDE, baseline=0.54)
    for name in ("depth", "sparse_depth", "label", "intrinsics"):
        assert torch.equal(item[name], direct[name]), name
    assert (item["image"] - direct["image"]).abs().max() <= 0.5 / 255 + 1e-6
    ground = direct["label"] != SKY
    assert (item["normal"] * direct["normal"]).sum(0)[ground].min() > 0.9998
    assert (item["normal"][:, ~ground] == 0).all()


def test_default_size_and_range(cache):
    data = load_dataset("streets", "test", cache=False)
    assert data.size == (128, 416) and len(data) == 652
    assert find_range(data) == (3.0, 80.0)


@pytest.mark.parametrize("kind, fields", [(Rooms, ()), (Streets, ("sparse_depth",))])
def test_cache_and_rendering_agree(cache, kind, fields):
    options = {"size": WIDE, "limit": 2, "fields": ("image", "depth", *fields)}
    stored, fresh = kind("test", **options), kind("test", cache=False, **options)
    assert {*stored[0]} == {"image", "depth", *fields, "intrinsics", "focal", "name"}
    for name in options["fields"]:
        assert torch.equal(stored[1][name], fresh[1][name])


@pytest.mark.parametrize(
    "name, options",
    [
        ("rooms-val-22acc1cdf412ea84", {}),
        ("rooms-val-b2a025d5c4aa29db", {"baseline": 0.1, "sensor": "kinect"}),
        ("streets-val-9a55b4b51a0748d1", {}),
        ("streets-val-da8be7a9303d7ba0", {"baseline": 0.54}),
    ],
)
def test_caches_made_before_stay_valid(cache, name, options):
    """What is part of the key, and how it is written, decides whether a cache is found again."""
    kind, size = (Rooms, (16, 20)) if name.startswith("rooms") else (Streets, (16, 52))
    assert kind("val", size=size, limit=1, **options).cache_folder.name == name


@pytest.mark.parametrize("kind", [Rooms, Streets])
def test_version_and_arguments_are_part_of_the_key(cache, kind):
    chosen = [
        {"size": (16, 20)},
        {"size": (16, 24)},
        {"size": (16, 20), "baseline": 0.1},
        {"size": (16, 20), "fields": ("image", "depth")},
        *([{"size": (16, 20), "sensor": "kinect"}] if kind is Rooms else []),
    ]
    folders = {kind("val", limit=1, **options).cache_folder for options in chosen}
    assert len(folders) == len(chosen)
    assert f'"renderer": {kind.world.version}' in (folders.pop() / "key.json").read_text()


def test_in_a_loader_with_workers():
    data = Rooms("val", size=(16, 24), limit=2, cache=False)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1)
    batch = next(iter(loader))
    assert torch.equal(batch["depth"][1], data[1]["depth"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "trian"},
            "Unknown split 'trian'. Did you mean 'train'. Known: train, val, test",
        ),
        ({"size": (8, 64)}, "size must be at least"),
        ({"size": 192}, "two whole numbers"),
        ({"size": (192, 256, 3)}, "two whole numbers"),
        ({"size": (48.5, 64)}, "two whole numbers"),
        ({"limit": -1}, "limit must be a whole number from 1 on; got -1"),
        ({"limit": 0}, "limit must be a whole number from 1 on; got 0"),
        ({"limit": 1.5}, "limit must be a whole number"),
        ({"baseline": 0.1, "augment": "meter"}, "leave one of them out"),
        ({"baseline": 0}, "baseline must be a positive number"),
        ({"baseline": -0.1}, "baseline must be a positive number"),
        ({"baseline": float("nan")}, "baseline must be a positive number"),
        ({"sensor": "kinetc"}, "Unknown sensor 'kinetc'. Did you mean 'kinect'"),
        ({"fields": ("image", "dpeth")}, "Unknown field 'dpeth'.*depth"),
        ({"fields": ("image",)}, "must name image and depth; got no depth"),
        ({"root": "/data"}, "root must be None"),
    ],
)
def test_bad_arguments_of_rooms(cache, options, message):
    options = {"split": "train", "size": (16, 16), **options}
    with pytest.raises(ValueError, match=message):
        Rooms(options.pop("split"), **options)
    assert not list(cache.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trian"}, "Unknown split 'trian'. Did you mean 'train'"),
        ({"size": (8, 64)}, "size must be at least"),
        ({"limit": 0}, "limit must be a whole number from 1 on; got 0"),
        ({"baseline": -0.1}, "baseline must be a positive number"),
        ({"baseline": 0.54, "augment": "meter"}, "leave one of them out"),
        ({"fields": ("image", "depth", "sparse")}, "Unknown field 'sparse'.*sparse_depth"),
        ({"fields": ("depth",)}, "must name image and depth; got no image"),
        ({"root": "/data"}, "streets are rendered, not read: root must be None"),
    ],
)
def test_bad_arguments_of_streets(cache, options, message):
    options = {"split": "train", "size": (16, 16), **options}
    with pytest.raises(ValueError, match=message):
        Streets(options.pop("split"), **options)
    assert not list(cache.iterdir())


def test_rooms_have_no_lidar():
    with pytest.raises(ValueError, match="Unknown field 'sparse_depth'"):
        load_dataset("rooms", "val", fields=("image", "depth", "sparse_depth"))
    with pytest.raises(TypeError, match="sensor"):
        load_dataset("streets", "val", sensor="kinect")
