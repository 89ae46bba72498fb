import pickle
from datetime import timedelta
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection, dissect
from mde_utils.selectivity import layer_bins, pool_by_bin

NYU = (0.75, 10.0)
pytestmark = pytest.mark.filterwarnings("ignore:Neither the data set nor the model")


class Net(nn.Module):
    """Two layers of two resolutions, one of them with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8))
        self.deep = nn.Conv2d(8, 70, 3, 2, 1)

    def forward(self, image):
        return self.deep(self.wide(image)).mean(1, keepdim=True)


def items(n, size=(24, 32), seed=0):
    g = torch.Generator().manual_seed(seed)
    return [
        {
            "image": torch.rand(3, *size, generator=g),
            "depth": torch.rand(1, *size, generator=g) * 12,
        }
        for _ in range(n)
    ]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def by_hand(net, data, layer, definition):
    """Upsample, mask, mean: the average response as the paper's formula reads."""
    net = net.eval()
    overflow = "first" if definition == "reference" else "ignore"
    total, count = 0, 0
    for item in data:
        with torch.no_grad():
            a = net.wide(item["image"][None])
            a = net.deep(a) if layer == "deep" else a
        k = a.shape[1]
        bins = DepthBins.sid(min(k, 64), *NYU, overflow=overflow).discretize(item["depth"][0])
        up = F.interpolate(a, bins.shape, mode="bilinear", align_corners=False)[0].double()
        masks = F.one_hot(bins + 1, min(k, 64) + 1)[..., 1:].double()
        total = total + torch.einsum("khw,hwn->kn", up, masks)
        count = count + masks.sum((0, 1))
    return total / (count + 1e-15), count


@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_responses_are_those_of_the_formula(net, definition):
    data = items(5)
    net.train()
    seen = dissect(net, data, ["wide", "deep"], definition=definition, batch_size=2)
    assert net.training and net.wide.training
    for layer in ("wide", "deep"):
        response, count = by_hand(net, data, layer, definition)
        torch.testing.assert_close(seen.response[layer], response, rtol=1e-4, atol=1e-5)
        assert torch.equal(seen.counts[layer], count)
        assert seen.under(definition).mean(layer) == seen.mean(layer)
    other = "paper" if definition == "reference" else "reference"
    direct = dissect(net, data, ["wide"], definition=other)
    torch.testing.assert_close(seen.under(other).selectivity["wide"], direct.selectivity["wide"])


def test_batches_do_not_matter(net):
    data = items(7)
    whole = dissect(net, data, ["wide", "deep"], batch_size=7)
    for batch_size in (1, 3):
        parts = dissect(net, data, ["wide", "deep"], batch_size=batch_size)
        for layer in whole.layers:
            torch.testing.assert_close(
                parts.response[layer], whole.response[layer], rtol=1e-5, atol=1e-6
            )


def test_images_of_mixed_sizes(net):
    data = items(2, (24, 32)) + items(2, (40, 20)) + items(1, (24, 32), seed=1)
    mixed = dissect(net, data, ["deep"])
    split = dissect(net, data[:2] + data[4:], ["deep"]) + dissect(net, data[2:4], ["deep"])
    torch.testing.assert_close(mixed.response["deep"], split.response["deep"])
    assert mixed.images == split.images == 5


def test_halves_add_up(net):
    data = items(6)
    whole = dissect(net, data, ["wide", "deep"])
    halves = dissect(net, data[:2], ["wide", "deep"]) + dissect(net, data[2:], ["wide", "deep"])
    torch.testing.assert_close(halves.selectivity, whole.selectivity)
    assert halves.images == 6
    with pytest.raises(ValueError, match="same layers"):
        whole + dissect(net, data, ["wide"])
    with pytest.raises(ValueError, match="other bins"):
        whole + dissect(net, data, ["wide", "deep"], bins="kitti")
    with pytest.raises(ValueError, match="same layers under one definition"):
        whole + whole.under("reference")


def test_saved_and_loaded(net, tmp_path):
    seen = dissect(net, items(2), ["wide", "deep"], definition="reference")
    path = seen.save(tmp_path / "new" / "a.safetensors")
    again = Dissection.load(path)
    assert (again.layers, again.images, again.definition, again.about) == (
        seen.layers,
        seen.images,
        seen.definition,
        seen.about,
    )
    torch.testing.assert_close(again.selectivity, seen.selectivity, rtol=0, atol=0)
    assert again.bins == seen.bins
    torch.testing.assert_close((again + seen).response, seen.response)
    with pytest.raises(FileNotFoundError, match="No dissection"):
        Dissection.load(tmp_path / "absent")
    (tmp_path / "b").write_text("not a dissection")
    with pytest.raises(ValueError, match="holds no dissection"):
        Dissection.load(tmp_path / "b")


def test_frame_and_summary(net):
    seen = dissect(net, items(3), ["wide", "deep"])
    frame = seen.to_frame()
    assert len(frame) == 8 + 70 and set(frame.layer) == {"wide", "deep"}
    row = frame.iloc[3]
    edges = layer_bins(8, NYU).edges
    assert row.best_from_m == edges[row.best_bin] and row.best_to_m == edges[row.best_bin + 1]
    assert row.selectivity == pytest.approx(seen.selectivity["wide"][3].item())
    summary = seen.summary()
    assert summary.loc["deep", "bins"] == 64 and summary.loc["wide", "units"] == 8
    assert (summary.definition == "paper").all() and (summary.images == 3).all()


def test_telling_units_are_selective_and_loud():
    """Unit: (response to its bin, to the others); the most selective of all is too quiet."""
    units = {0: (9, 5), 1: (0.5, 0), 2: (10, 0), 3: (0, 0), 4: (-8, 2), 5: (1.1, 0.1)}
    response = torch.tensor([[best, rest, rest, 0] for best, rest in units.values()]).double()
    pixels = torch.tensor([5.0, 5, 5, 0]).double()
    seen = Dissection({"l": response * pixels}, {"l": pixels}, {"l": DepthBins.sid(3, *NYU)}, 1)
    assert seen.telling_units("l", 2) == [2, 5] and seen.telling_units("l") == [0, 2, 4, 5]
    dead = Dissection({"l": response * 0}, {"l": pixels}, {"l": DepthBins.sid(3, *NYU)}, 1)
    assert dead.telling_units("l") == []


def test_own_bins_and_the_data_sets_range(net):
    data = items(2)
    own = DepthBins.sid(5, 1, 6)
    seen = dissect(net, data, ["wide"], bins={"wide": own})
    assert seen.response["wide"].shape == (8, 5)

    class Far(list):
        depth_range = (3.0, 80.0)

    assert dissect(net, Far(data), ["wide"]).bins["wide"] == layer_bins(8, (3.0, 80.0))
    with pytest.warns(UserWarning, match="taking NYU's"):
        assert dissect(net, data, ["wide"]).bins["wide"] == layer_bins(8, NYU)
    net.depth_range = (1.0, 5.0)
    assert dissect(net, data, ["wide"]).bins["wide"] == layer_bins(8, (1.0, 5.0))


@pytest.mark.parametrize("name", ["timm", "torchvision"])
def test_any_network_by_module_path(name):
    torch.manual_seed(0)
    if name == "timm":
        import timm

        model, layer = timm.create_model("resnet18", num_classes=1), "layer2.1.conv2"
    else:
        import torchvision

        model, layer = torchvision.models.mobilenet_v3_small(), "features.4"
    data = items(2, (50, 70))
    seen = dissect(model, data, [layer], batch_size=1)
    keep = {}
    hook = model.get_submodule(layer).register_forward_hook(lambda m, i, o: keep.update(a=o))
    expected, counts = 0, 0
    bins = seen.bins[layer]
    for item in data:
        with torch.no_grad():
            model.eval()(item["image"][None])
        s, n = pool_by_bin(keep["a"], bins.discretize(item["depth"]), len(bins))
        expected, counts = expected + s, counts + n
    hook.remove()
    torch.testing.assert_close(
        seen.response[layer], expected / (counts + 1e-15), rtol=1e-5, atol=1e-6
    )


def test_tokens_of_a_vision_transformer():
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=1)
    data = items(2, (64, 64))
    seen = dissect(model, data, ["blocks.3"], grids={"blocks.3": (1, 4, 4)})
    assert seen.response["blocks.3"].shape == (192, 64)
    with pytest.raises(ValueError, match="say how its 17 tokens lie"):
        dissect(model, data, ["blocks.3"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"dataset": []}, "data set is empty"),
        ({"layers": ["wid"]}, "Unknown layer 'wid' of Net. Close: wide"),
        ({"layers": []}, "No layers given"),
        ({"definition": "papr"}, "Unknown definition 'papr'"),
        ({"bins": "mars"}, "Unknown depth range 'mars'"),
        ({"bins": {"other": None}}, r"no bins for the layers \['wide'\]"),
        ({"bins": {"wide": DepthBins.sid(9, 1, 6)}}, "8 units cannot cover 9 bins"),
        ({"bins": {"wide": DepthBins.sid(8, 1, 6, "first")}}, "without overflow='first'"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"dataset": [{"image": torch.rand(3, 8, 8)}]}, "image 0 has no 'depth'; it has image"),
    ],
)
def test_bad_arguments(net, arguments, message):
    arguments = {"dataset": items(1), "layers": ["wide"], **arguments}
    with pytest.raises(ValueError, match=message):
        dissect(net, arguments.pop("dataset"), arguments.pop("layers"), **arguments)


def test_depth_that_is_no_depth_counts_as_no_measurement(net):
    clean, dirty = items(2), items(2)
    clean[0]["depth"][0, :3] = 0
    dirty[0]["depth"][0, :3] = torch.tensor([-1.0, float("nan"), -float("inf"), 0.0]).repeat(8)
    seen = [dissect(net, data, ["wide"]) for data in (clean, dirty)]
    torch.testing.assert_close(seen[0].response, seen[1].response)


def test_no_valid_depth_at_all(net):
    blind = [{"image": torch.rand(3, 8, 8), "depth": torch.zeros(1, 8, 8)}]
    with pytest.raises(ValueError, match="has a depth inside the bins"):
        dissect(net, blind, ["wide"])


def test_mode_and_hooks_after_an_error(net):
    net.train()
    bad = items(1) + [{"image": torch.rand(4, 8, 8), "depth": torch.ones(1, 8, 8)}]
    with pytest.raises(RuntimeError):
        dissect(net, bad, ["wide"])
    assert net.training and not any(m._forward_hooks for m in net.modules())


def mixed_items(n):
    """Images of two sizes; image 1 has no valid depth."""
    data = (items(4) + items(3, (40, 20)) + items(4, seed=1))[:n]
    for item in data[1:2]:
        item["depth"].zero_()
    return data


SPLITS = [(11, 2), (11, 3), (11, 16), (1, 2)]  # images, batch size; the last are one process's


def dissect_split(split):
    n, batch_size = split
    torch.manual_seed(0)
    return dissect(Net(), mixed_items(n), ["wide", "deep"], batch_size=batch_size)


def assert_same(seen, expected):
    assert (seen.images, seen.bins) == (expected.images, expected.bins)
    for name in ("sums", "pixels"):
        found, wanted = getattr(seen, name), getattr(expected, name)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[layer], wanted[layer]) for layer in wanted)


def _dissect_in_one_of_two(rank, address, expected):
    # Sums depend on the number of threads in their last digits.
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    for split in SPLITS:
        assert_same(dissect_split(split), expected[split])
    net = Net().train()
    own = {"wide": DepthBins.sid(5, 1, 6)}
    assert dissect(net, items(1), ["wide"], bins=own).bins == own  # in the idle process too

    broken = items(4)
    del broken[2]["depth"]
    error, says = (ValueError, "^image 2 has") if rank else (RuntimeError, "^Process 1 .*: image 2")
    with pytest.raises(error, match=says):
        dissect(net, broken, ["wide"], batch_size=2)
    assert net.training and not any(m._forward_hooks for m in net.modules())
    with pytest.raises(ValueError, match="has a depth inside the bins"):
        dissect(net, mixed_items(2)[1:], ["wide"])
    torch.distributed.destroy_process_group()


def test_split_over_processes_to_the_last_bit(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = {split: dissect_split(split) for split in SPLITS}
    finally:
        torch.set_num_threads(threads)
    address = f"file://{tmp_path / 'meet'}"
    torch.multiprocessing.spawn(_dissect_in_one_of_two, (address, expected), nprocs=2)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(["wide", "deep"]), max_size=3), st.sampled_from(["wide", "deep"]))
def test_a_layer_is_read_without_the_others(before, layer):
    """And once: what was computed is kept."""
    torch.manual_seed(0)
    seen, read, folded = dissect(Net(), items(2), ["wide", "deep"]), [], Dissection._folded
    with patch.object(Dissection, "_folded", lambda self, k: read.append(k) or folded(self, k)):
        for name in before:
            seen.mean(name)
        read.clear()
        value = seen.mean(layer)
        assert set(read) == ({layer} - set(before))
        assert seen.mean(layer) == value and seen.selectivity[layer] is seen.selectivity[layer]
        assert list(seen.selectivity) == ["wide", "deep"] and set(read) == ({layer} - set(before))
    assert pickle.loads(pickle.dumps(seen)).mean(layer) == value
