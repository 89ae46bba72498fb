"""Depth hints over a data set: kept, resumed, merged into items."""

import pickle

import pytest
import torch
import toys
from torch.utils.data import DataLoader

from mde_utils.data import WithHints, collate, hints, load_dataset

SIZE = (48, 96)


def rooms(limit=4, **options):
    return load_dataset("rooms", "train", size=SIZE, limit=limit, baseline=0.1, **options)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def counted(monkeypatch):
    """Indices of the items that were matched."""
    made = []
    record = hints._Disparities._record_of

    def counting(self, index):
        made.append(index)
        return record(self, index)

    monkeypatch.setattr(hints._Disparities, "_record_of", counting)
    return made


def alone(item):
    focal, baseline = float(item["focal"]), float(item["baseline"])
    return toys.depth_hint(item["image"], item["right"], focal=focal, baseline=baseline)


@pytest.mark.parametrize("cache", [True, False])
def test_items_get_the_hint_of_their_pair(cache):
    source = rooms()
    data = WithHints(source, cache=cache)
    assert len(data) == 4 and data.name == source.name and data.depth_range == source.depth_range
    for item, plain in zip((data[i] for i in range(4)), (source[i] for i in range(4)), strict=True):
        assert item.keys() == plain.keys() | {"hint"}
        assert item["hint"].shape == (1, *SIZE) and item["hint"].dtype == torch.float32
        assert torch.equal(item["hint"], alone(plain)) and (item["hint"] > 0).any()
        assert torch.equal(item["image"], plain["image"])
    with pytest.raises(IndexError):
        data[4]


def test_hints_matched_in_larger_pictures_are_brought_to_the_items_size():
    large = tuple(2 * n for n in SIZE)
    pairs = load_dataset("rooms", "train", size=large, limit=4, baseline=0.1)
    expected = alone(pairs[1])[:, 1::2, 1::2]
    for data in (
        WithHints(rooms(), pairs=pairs),
        load_dataset("rooms", "train", size=SIZE, limit=4, baseline=0.1, hints=large),
        load_dataset("rooms", "train", size=SIZE, limit=4, baseline=0.1, hints=list(large)),
    ):
        item = data[1]
        assert item["image"].shape == (3, *SIZE)
        torch.testing.assert_close(item["hint"], expected)

    def error(data):
        both = (data[0]["hint"] > 0) & (data[0]["depth"] > 0)
        return (data[0]["hint"] / data[0]["depth"] - 1).abs()[both].median()

    assert error(WithHints(rooms(), pairs=pairs)) < error(WithHints(rooms()))


def test_pairs_that_are_not_of_the_items():
    with pytest.raises(ValueError, match="got 3 beginning with .* for 4 beginning"):
        WithHints(rooms(), pairs=rooms(3))
    part = [{**item, "image": item["image"][..., :48]} for item in rooms()]
    part = [{**item, "right": item["right"][..., :48]} for item in part]
    with pytest.raises(ValueError, match="another part of the scene.*Load both without a crop"):
        WithHints(rooms(), pairs=part)


def test_pairs_of_another_part_of_the_height():
    lower = [
        {**item, "image": item["image"][:, 16:], "right": item["right"][:, 16:]} for item in rooms()
    ]
    for item in lower:
        k = item["intrinsics"].clone()
        k[1, 2] -= 16
        item["intrinsics"] = k
    with pytest.raises(ValueError, match="another part of the scene"):
        WithHints(lower, pairs=rooms())


def test_batches_through_workers():
    data = WithHints(rooms())
    loader = DataLoader(data, batch_size=4, num_workers=1, collate_fn=collate)
    batch = next(iter(loader))
    for i in range(4):
        assert torch.equal(batch["hint"][i], alone(data[i]))
    assert len(pickle.loads(pickle.dumps(data))) == 4


def test_kept_and_extended(counted):
    WithHints(rooms(2))
    assert sorted(counted) == [0, 1]
    counted.clear()
    data = WithHints(rooms(2))
    data[0], data[1]
    assert counted == []
    more = WithHints(rooms(4))  # of rooms a larger limit goes on with the same ones
    assert sorted(counted) == [2, 3]
    assert torch.equal(more[1]["hint"], data[1]["hint"])
    counted.clear()
    WithHints(load_dataset("rooms", "train", size=SIZE, limit=2, baseline=0.2))
    assert sorted(counted) == [0, 1]  # another baseline is another data set


def test_a_stopped_run_goes_on(monkeypatch, counted):
    """Whole shards stay; the one that was being written is made again."""
    monkeypatch.setattr("mde_utils.data.cache.SHARD", 2)
    record = hints._Disparities._record_of

    def stopping(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return record(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(hints._Disparities, "_record_of", stopping)
        with pytest.raises(KeyboardInterrupt):
            WithHints(rooms())
    counted.clear()
    data = WithHints(rooms())
    assert sorted(counted) == [2, 3]
    assert torch.equal(data[3]["hint"], alone(data[3]))


def test_a_list_is_known_by_its_pixels(counted):
    items = [rooms(cache=False)[i] for i in range(2)]
    WithHints(items)
    WithHints([dict(item) for item in items])
    assert sorted(counted) == [0, 1]
    items[1] = items[1] | {"right": items[1]["right"].flip(0)}
    WithHints(items)
    assert sorted(counted) == [0, 0, 1, 1]


def test_the_other_camera_on_the_left():
    item = rooms(1, cache=False)[0]
    mirror = {k: v.flip(-1) if k in ("image", "right", "depth") else v for k, v in item.items()}
    mirror["baseline"] = -item["baseline"]
    data = WithHints([item, mirror], cache=False)
    assert torch.equal(data[0]["hint"], data[1]["hint"].flip(-1))


def test_augmentation_comes_after_the_hint():
    with pytest.raises(ValueError, match=r"give the augmentation to WithHints\(…, augment=…\)"):
        WithHints(rooms(augment=lambda item: item))
    data = WithHints(rooms(2), augment=lambda item: item | {"hint": 2 * item["hint"]})
    assert torch.equal(data[1]["hint"], 2 * WithHints(rooms(2))[1]["hint"])
    assert next(iter(DataLoader(data, batch_size=2, collate_fn=collate)))["hint"].shape[0] == 2


def test_what_is_no_pair_is_named_before_any_work(counted):
    with pytest.raises(ValueError, match="rooms/train/000000 has no baseline, right, only image"):
        WithHints(load_dataset("rooms", "train", size=SIZE, limit=2))
    items = [rooms(cache=False)[i] for i in range(2)]
    for change, message in (
        ({"baseline": 0.0}, "rooms/train/000000 .* baseline=0"),
        (
            {"right": items[0]["right"][:, :-1]},
            "rooms/train/000000 differ in size, 48x96 and 47x96",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            WithHints([items[0] | change, items[1]])
    assert counted == []
    with pytest.raises(ValueError, match="rooms/train/000001 has baseline 0 and focal"):
        WithHints([items[0], items[1] | {"baseline": 0.0}])


def test_load_dataset_gives_hints_and_then_augments():
    loaded = rooms(hints=True, augment="epc")
    expected = WithHints(rooms())
    turned = 0
    for i in range(4):
        torch.manual_seed(i)
        item, plain = loaded[i], expected[i]
        mirrored = item["baseline"] < 0
        turned += mirrored
        assert torch.equal(item["hint"], plain["hint"].flip(-1) if mirrored else plain["hint"])
    assert 0 < turned < 4
    with pytest.raises(ValueError, match="Depth hints need pairs.*baseline=0.54"):
        load_dataset("rooms", "train", size=SIZE, limit=2, hints=True)
