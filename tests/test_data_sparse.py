"""Sparse samples: how many, where, when they are drawn anew, and on any data set."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mde_utils.data import SparseSamples, collate, load_dataset
from mde_utils.data.loading import batches
from mde_utils.data.transforms import sparse_samples
from mde_utils.depth_bins import find_range


def items(n=6, size=(20, 30)):
    return [
        {"image": torch.rand(3, *size), "depth": 1 + torch.rand(1, *size), "name": f"i{i}"}
        for i in range(n)
    ]


@pytest.fixture(scope="module")
def rooms():
    return load_dataset("rooms", "test", size=(18, 24), limit=5, cache=False)


@settings(deadline=None, max_examples=40)
@given(st.tuples(st.integers(1, 30), st.integers(1, 30)), st.floats(0, 1), st.integers(0, 10**6))
def test_samples_are_depth_and_fewer_are_among_more(size, share, seed):
    depth = 1 + torch.rand(1, *size)
    hole = torch.rand(1, *size) < 0.3
    depth = torch.where(hole, torch.tensor([0.0, -1.0, torch.nan, torch.inf])[seed % 4], depth)
    pixels = size[0] * size[1]
    few, more, every = (
        sparse_samples(depth, n, generator=torch.Generator().manual_seed(seed))
        for n in (int(share * pixels / 2), int(share * pixels), pixels)
    )
    assert torch.equal(every, torch.where(hole, 0.0, depth))
    assert torch.equal(more[more > 0], depth[more > 0]) and (more[hole] == 0).all()
    assert torch.equal(few[few > 0], more[few > 0])
    assert not sparse_samples(depth, 0).any()


def test_each_pixel_has_the_same_chance_and_holes_take_their_part():
    depth = torch.ones(400, 1, 12, 15)
    depth[..., :6, :] = 0
    kept = (sparse_samples(depth, 36) > 0).double()
    # 18 of 36 fall on holes; the number is binomial, so it varies.
    counts = kept.sum((1, 2, 3))
    assert abs(counts.mean() - 18) < 5 * (90 * 0.2 * 0.8 / 400) ** 0.5
    assert abs(counts.var() - 90 * 0.2 * 0.8) < 5
    assert kept.mean(0)[:, 6:].sub(0.2).abs().max() < 5 * (0.2 * 0.8 / 400) ** 0.5


@pytest.mark.parametrize("number", [-1, 601])
def test_more_samples_than_pixels_are_refused(number):
    with pytest.raises(ValueError, match=f"{number} samples of 20x30 = 600 pixels"):
        sparse_samples(torch.ones(1, 20, 30), number)


def test_a_seed_fixes_the_samples_of_an_index():
    data = items()
    fixed = SparseSamples(data, 60, seed=0)
    one = [fixed[i]["sparse_depth"] for i in range(6)]
    torch.manual_seed(5)
    again = [item["sparse_depth"] for item in fixed.__getitems__([3, 0, -1])]
    assert all(torch.equal(a, one[i]) for a, i in zip(again, (3, 0, 5), strict=True))
    where = {tuple((x > 0).flatten().tolist()) for x in one}
    assert len(where) == 6
    assert not torch.equal(SparseSamples(data, 60, seed=1)[0]["sparse_depth"], one[0])
    assert "sparse_depth" not in data[0]


def test_without_a_seed_torchs_generator_draws_anew():
    data = SparseSamples(items(), 60)
    torch.manual_seed(1)
    one, two = data[0]["sparse_depth"], data[0]["sparse_depth"]
    torch.manual_seed(1)
    assert torch.equal(data[0]["sparse_depth"], one) and not torch.equal(one, two)


def test_whatever_the_data_set_a_batch_is_what_its_items_are(rooms):
    for dataset in (items(5), rooms):
        drawn = SparseSamples(dataset, 50, seed=2)
        batch = next(iter(DataLoader(drawn, batch_size=4, collate_fn=collate)))
        _, found = next(batches(drawn, range(4), 4, ("image", "depth", "sparse_depth")))
        for i in range(4):
            assert torch.equal(batch["sparse_depth"][i], drawn[i]["sparse_depth"])
            assert torch.equal(found["sparse_depth"][i], drawn[i]["sparse_depth"])
            assert torch.equal(found["image"][i], dataset[i]["image"])
    stacked = drawn.__getitems__([0, 1]).stacked
    assert {"image", "depth", "sparse_depth"} <= stacked.keys()


def test_it_passes_for_the_data_set_that_it_wraps(rooms):
    drawn = SparseSamples(rooms, 10)
    assert (drawn.name, len(drawn)) == (rooms.name, 5)
    assert drawn.extras(3)["name"] == rooms.extras(3)["name"]
    assert find_range(drawn) == rooms.depth_range
    with pytest.raises(AttributeError, match="nonsense"):
        _ = drawn.nonsense
    with pytest.raises(IndexError):
        drawn[5]
    copy = pickle.loads(pickle.dumps(SparseSamples(rooms, 10, seed=3)))
    assert torch.equal(copy[1]["sparse_depth"], SparseSamples(rooms, 10, seed=3)[1]["sparse_depth"])


@pytest.mark.parametrize("number", [-1, 0.5, True, "50", None])
def test_a_number_of_samples_is_whole(number):
    with pytest.raises(ValueError, match=f"given {number!r}"):
        SparseSamples(items(), number)


def test_load_dataset_draws_anew_in_training_alone():
    size = {"size": (18, 24), "limit": 2, "cache": False, "sparse_samples": 60}
    train, val = (load_dataset("rooms", split, **size) for split in ("train", "val"))
    assert not torch.equal(train[0]["sparse_depth"], train[0]["sparse_depth"])
    assert torch.equal(val[0]["sparse_depth"], val[0]["sparse_depth"])

    def doubled(item):
        return {**item, "depth": 2 * item["depth"]}

    twice = load_dataset("rooms", "val", augment=doubled, **size)
    assert torch.equal(twice[0]["sparse_depth"], 2 * val[0]["sparse_depth"])


def test_a_pair_of_numbers_draws_each_images_density():
    data = SparseSamples(items(60, (40, 40)), (10, 400), seed=3)
    counts = torch.tensor([(item["sparse_depth"] > 0).sum().item() for item in data])
    assert counts.min() < 30 and counts.max() > 200
    assert 30 < counts.float().median() < 130  # evenly on a logarithmic scale: about 63
    assert torch.equal(data[7]["sparse_depth"], data[7]["sparse_depth"])


@pytest.mark.parametrize("pair", [(0, 5), (5, 2), (1, 2, 3), (1.0, 2), [True, 2]])
def test_a_pair_that_is_none_is_refused(pair):
    with pytest.raises(ValueError, match="pair"):
        SparseSamples(items(), pair)


def test_a_wrapped_data_sets_own_batches_are_not_taken():
    class OnDevice(list):
        def seeded_batch(self, indices, seed):
            return [self[i] for i in indices]

    assert hasattr(OnDevice(), "seeded_batch")
    assert not hasattr(SparseSamples(OnDevice(items())), "seeded_batch")
