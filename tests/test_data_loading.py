import pytest
import torch

from mde_utils.data.loading import batches, chunks


def items(*sizes):
    return [
        {"image": torch.full((3, *s), float(i)), "depth": torch.ones(1, *s), "other": "text"}
        for i, s in enumerate(sizes)
    ]


def test_chunks_cover_every_index_once():
    assert [list(chunk) for chunk in chunks(5, 2)] == [[0, 1], [2, 3], [4]]
    assert (chunks(0, 2), chunks(1, 2)) == ([], [range(1)])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        chunks(5, 0)


def test_a_chunk_alone_is_the_same_batches():
    data = items((4, 6), (4, 6), (8, 6), (4, 6), (4, 6))
    whole = [names for names, _ in batches(data, range(5), 3, ["image"])]
    parts = [names for c in chunks(5, 3) for names, _ in batches(data, c, 3, ["image"])]
    assert parts == whole == [["image 0", "image 1"], ["image 2"], ["image 3", "image 4"]]


def test_order_names_and_the_last_short_batch():
    data = items(*[(4, 6)] * 5)
    data[3]["name"] = "fourth"
    got = list(batches(data, range(5), 2, ("image", "depth")))
    assert [names for names, _ in got] == [
        ["image 0", "image 1"],
        ["image 2", "fourth"],
        ["image 4"],
    ]
    assert torch.cat([b["image"][:, 0, 0, 0] for _, b in got]).tolist() == [0, 1, 2, 3, 4]
    assert set(got[0][1]) == {"image", "depth"}


def test_a_batch_ends_where_sizes_change():
    data = items((4, 6), (4, 6), (8, 6), (4, 6))
    shapes = [b["image"].shape for _, b in batches(data, range(4), 4, ["image"])]
    assert shapes == [(2, 3, 4, 6), (1, 3, 8, 6), (1, 3, 4, 6)]


def test_what_was_read_as_one_batch_is_not_stacked_again():
    class Read(list):
        stacked = None

    whole = {"image": torch.rand(2, 3, 4, 6), "depth": torch.rand(2, 1, 4, 6)}

    class Data:
        def __getitems__(self, indices):
            read = Read({k: v[i] for k, v in whole.items()} for i in indices)
            read.stacked = whole
            return read

    ((_, batch),) = batches(Data(), range(2), 2, ["image"])
    assert batch["image"] is whole["image"] and set(batch) == {"image"}


def test_optional_fields_where_items_have_them():
    data = items(*[(4, 6)] * 5)
    for i in (1, 2, 4):
        data[i]["frame"] = torch.full((4,), float(i))
    got = [batch for _, batch in batches(data, range(5), 5, ["image"], optional=["frame"])]
    assert [len(b["image"]) for b in got] == [1, 2, 1, 1]
    assert ["frame" in b for b in got] == [False, True, False, True]
    assert got[1]["frame"][:, 0].tolist() == [1, 2]
    assert [len(b["image"]) for _, b in batches(data, range(5), 5, ["image"])] == [5]


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d[1].pop("depth"), "image 1 has no 'depth'; it has image, other"),
        (lambda d: d[1].update(depth=torch.ones(4, 6)), r"depth of image 1 must be \(1, h, w\)"),
    ],
)
def test_bad_items_are_named(change, message):
    data = items((4, 6), (4, 6))
    change(data)
    with pytest.raises(ValueError, match=message):
        list(batches(data, range(2), 2, ["image", "depth"]))
