"""Metrics by hand, protocols by their differences, and the published weights on real frames."""

import csv
import math
import warnings
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import nn

from mde_utils import evaluation
from mde_utils.data import SparseSamples
from mde_utils.evaluation import (
    boundary_metrics,
    completion_curve,
    compute_metrics,
    evaluate,
    image_metrics,
    photometric,
    swapped_halves,
)
from mde_utils.models import build_model
from mde_utils.protocols import PROTOCOLS, describe_protocol
from mde_utils.stereo import disparity_to_depth

KEYS = {"d1", "d2", "d3", "d1.02", "d1.05", "d1.10", "rms", "rms_log", "rel", "sq_rel", "log10"}


class Fixed(nn.Module):
    """Returns what the image's first channel says, in tenths: a prediction the test chooses."""

    input_names = ()

    def __init__(self, stride=1):
        super().__init__()
        self.stride = stride

    def forward(self, image):
        return image[:, :1, :: self.stride, :: self.stride] * 10


def item(pred, depth, **more):
    pred, depth = (torch.as_tensor(x, dtype=torch.float32) for x in (pred, depth))
    return {"image": pred.expand(3, *pred.shape[-2:]) / 10, "depth": depth[None], **more}


def test_metrics_by_hand():
    metrics = compute_metrics(torch.tensor([2.0, 3.0, 8.0]), torch.tensor([2.0, 2.0, 4.0]))
    logs = [0.0, math.log(1.5), math.log(2.0)]
    assert set(metrics) == KEYS
    assert metrics == pytest.approx(
        {
            "d1": 1 / 3, "d2": 2 / 3, "d3": 2 / 3, "d1.02": 1 / 3, "d1.05": 1 / 3, "d1.10": 1 / 3,
            "rms": math.sqrt((1 + 16) / 3),
            "rms_log": math.sqrt(sum(x * x for x in logs) / 3),
            "rel": (0.5 + 1.0) / 3,
            "sq_rel": (0.5 + 4.0) / 3,
            "log10": sum(logs) / 3 / math.log(10),
        }
    )  # fmt: skip
    assert all(type(value) is float for value in metrics.values())


def test_delta_at_its_threshold():
    pred, target = torch.tensor([5.0, 4.0]), torch.tensor([4.0, 5.0])
    assert compute_metrics(pred, target)["d1"] == 0
    assert compute_metrics(pred, target, strict=False)["d1"] == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.floats(0.5, 9.5)] * 2), min_size=1), st.floats(0.25, 4))
def test_metric_properties(pairs, scale):
    pred, target = torch.tensor(pairs).T.double()
    m = compute_metrics(pred, target)
    assert m["d1.02"] <= m["d1.05"] <= m["d1.10"] <= m["d1"] <= m["d2"] <= m["d3"] <= 1
    swapped = compute_metrics(target, pred)
    scaled = compute_metrics(pred * scale, target * scale)
    for key in ("rms", "rms_log", "log10"):
        assert swapped[key] == pytest.approx(m[key], rel=1e-5, abs=1e-6)
    assert scaled["rms"] == pytest.approx(m["rms"] * scale, rel=1e-5, abs=1e-5)
    assert scaled["rel"] == pytest.approx(m["rel"], rel=1e-5, abs=1e-5)
    assert compute_metrics(target, target)["rel"] == 0


@pytest.mark.parametrize(
    "pred, target, says",
    [
        ([], [], "no pixels"),
        ([1.0], [1.0, 2.0], "one length"),
        ([[1.0]], [[1.0]], "1-D"),
        ([1.0, -1.0], [1.0, 1.0], "pred has values from -1"),
        ([1.0, 1.0], [1.0, 0.0], "target has values from 0"),
        ([math.nan], [1.0], "finite"),
    ],
)
def test_metrics_refuse_what_is_not_masked(pred, target, says):
    with pytest.raises(ValueError, match=says):
        compute_metrics(torch.tensor(pred), torch.tensor(target))


def random_items(n, *, size=(6, 7), seed=0):
    generator = torch.Generator().manual_seed(seed)
    items = []
    for _ in range(n):
        pred = torch.rand(size, generator=generator) * 12 - 1
        depth = torch.rand(size, generator=generator) * 12 - 1
        items.append(item(pred, depth.clamp(min=0)))
    return items


# By hand: ⌊6 · 45/480⌋ = 0, ⌊6 · 471/480⌋ = 5; ⌊7 · 41/640⌋ = 0, ⌊7 · 601/640⌋ = 6, and
# ⌊6 · .408⌋ = 2, ⌊6 · .9919⌋ = 5; ⌊7 · .036⌋ = 0, ⌊7 · .964⌋ = 6.
CROPS_OF_6x7 = {
    "bts-eigen": (..., slice(0, 5), slice(0, 6)),
    "kitti-garg": (..., slice(2, 5), slice(0, 6)),
    "imde-kitti": (..., slice(2, 5), slice(0, 6)),
    "epc-kitti": (..., slice(2, 5), slice(0, 6)),
    "epc-nyu": (..., slice(0, 5), slice(0, 6)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluate_is_the_mean_of_compute_metrics(protocol):
    items = random_items(7)
    result = evaluate(Fixed(), items, protocol=protocol, batch_size=3, cap=10.0)
    images = []
    for x in items:
        pred, depth = x["image"][:1] * 10, x["depth"]
        if protocol in ("mff", "sparse-500"):
            valid = depth > (1e-4 if protocol == "sparse-500" else 0)
            pred = pred.clamp(min=1e-3)
        elif protocol == "epc-nyu":
            valid = depth > 0
        else:
            valid = (depth > 1e-3) & (depth < 10)
            pred = pred.clamp(1e-3, 10)
        if protocol in CROPS_OF_6x7:
            inside = torch.zeros_like(valid)
            inside[CROPS_OF_6x7[protocol]] = True
            valid &= inside
        if protocol == "epc-nyu":
            pred = pred.clamp(min=1e-3)
            ratio = np.median(depth[valid].numpy()) / np.median(pred[valid].numpy())
            pred = (pred * ratio).clamp(0.1, 10)
        images.append(compute_metrics(pred[valid], depth[valid], strict=protocol != "mff"))
    expected = {key: np.mean([m[key] for m in images]) for key in KEYS}
    if protocol == "mff":
        for key in ("rms", "rms_log"):
            expected[key] = math.sqrt(np.mean([m[key] ** 2 for m in images]))
    assert result.pop("n") == 7
    assert result == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_predictions_are_brought_to_the_ground_truths_size(protocol):
    generator = torch.Generator().manual_seed(0)
    x = item(torch.rand(8, 8, generator=generator) * 8 + 1, torch.full((16, 12), 3.0))
    rules = PROTOCOLS[protocol]
    power = -1 if rules.in_disparity else 1
    pred = F.interpolate(
        (x["image"][None, :1, ::2, ::2] * 10) ** power,
        (16, 12),
        mode="bilinear",
        align_corners=rules.align_corners,
    )
    pred, crop = pred**power, rules.crop
    if crop is not None:
        rows, columns = crop.inside((0, 0, 16, 12), (16, 12))
        pred = pred[..., rows, columns]
    if rules.median_scaled:
        pred = (pred * 3 / np.median(pred.numpy())).clamp(*rules.clamp)
    expected = compute_metrics(pred.flatten(), torch.full((pred.numel(),), 3.0))
    assert evaluate(Fixed(2), [x], protocol=protocol, cap=10.0)["rms"] == pytest.approx(
        expected["rms"], rel=1e-5
    )


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9))
def test_batch_size_does_not_matter(batch_size):
    items = random_items(5) + random_items(3, size=(4, 9)) + random_items(1)
    result = evaluate(Fixed(), items, batch_size=batch_size, cap=10.0)
    assert result == pytest.approx(evaluate(Fixed(), items, batch_size=1, cap=10.0), rel=1e-12)


def test_items_may_come_in_one_fetch():
    class Batched(list):
        fetched = 0

        def __getitems__(self, indices):
            Batched.fetched += 1
            return [self[i] for i in indices]

    assert evaluate(Fixed(), Batched(random_items(5)), batch_size=2, cap=10.0)["n"] == 5
    assert Batched.fetched == 3


def test_images_without_valid_pixels_are_left_out():
    good, empty = item([[2.0]], [[1.0]]), item([[2.0]], [[0.0]])
    with pytest.warns(UserWarning, match="1 of 2 images"):
        result = evaluate(Fixed(), [empty, good], cap=10.0)
    assert (result["n"], result["rms"]) == (1, pytest.approx(1.0))


def test_nan_in_the_ground_truth_is_no_measurement():
    result = evaluate(Fixed(), [item([[2.0, 5.0]], [[1.0, math.nan]])], cap=10.0)
    assert result["rms"] == pytest.approx(1.0)


def test_the_cap_comes_from_the_data_then_the_model():
    class Data(list):
        depth_range = (3.0, 80.0)

    x = item([[2.0, 30.0]], [[2.0, 20.0]])
    half = torch.utils.data.Subset(Data([x, x]), [0])
    assert evaluate(Fixed(), half)["d1"] == 0.5
    assert evaluate(Fixed(), Data([x]), cap=10.0)["d1"] == 1.0
    model = Fixed()
    model.depth_range = (0.75, 10.0)
    assert evaluate(model, [x])["d1"] == 1.0
    with pytest.warns(UserWarning, match="taking NYU's"):
        evaluate(Fixed(), [x])
    assert evaluate(Fixed(), [x], protocol="mff")["d1"] == 0.5


def test_further_inputs_reach_the_model():
    class Focal(Fixed):
        input_names = ("focal",)

        def forward(self, image, focal):
            return super().forward(image) * focal.view(-1, 1, 1, 1)

    items = [item([[1.0]], [[3.0]], focal=3.0), item([[1.0]], [[2.0]], focal=2.0)]
    assert evaluate(Focal(), items, cap=10.0)["rms"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="has no 'focal'"):
        evaluate(Focal(), [item([[1.0]], [[3.0]], name="a.png")], cap=10.0)


def test_modes_are_put_back_and_nothing_is_learnt():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1), nn.Softplus())
    model.train()
    model[0].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    evaluate(model, random_items(3), cap=10.0)
    assert [m.training for m in model] == [False, True, True]
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    class Failing(nn.Sequential):
        def forward(self, image):
            raise RuntimeError("no")

    failing = Failing(nn.BatchNorm2d(3)).train()
    with pytest.raises(RuntimeError, match="no"):
        evaluate(failing, random_items(1), cap=10.0)
    assert failing.training and failing[0].training


def test_image_metrics_are_each_images_own():
    pred = torch.tensor([[2.0, 3.0], [2.0, 4.0], [1.0, 1.0]]).view(3, 1, 1, 2)
    target = torch.tensor([[2.0, 2.0], [4.0, 0.0], [0.0, math.nan]]).view(3, 1, 1, 2)
    result = image_metrics(pred, target, cap=10.0)
    assert result.keys() == KEYS
    for i, (p, t) in enumerate([([2.0, 3.0], [2.0, 2.0]), ([2.0], [4.0])]):
        expected = compute_metrics(torch.tensor(p), torch.tensor(t))
        assert {k: v[i].item() for k, v in result.items()} == pytest.approx(expected)
    assert all(value[2].isnan() for value in result.values())


# ------------------------------------------------------------------ several protocols


class Counting(Fixed):
    def forward(self, image):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(image)


@pytest.mark.parametrize("boundaries", [False, True])
def test_protocols_side_by_side_take_one_pass(boundaries):
    class Data(list):
        fetched = 0

        def __getitem__(self, index):
            self.fetched += 1
            return super().__getitem__(index)

    data, model = Data(random_items(7)), Counting(2)
    options = {"batch_size": 3, "cap": 10.0, "boundaries": boundaries}
    both = evaluate(model, data, protocol=["mff", "imde"], **options)
    assert (model.calls, data.fetched) == (3, 7)
    assert list(both) == ["mff", "imde"]
    assert both == {name: evaluate(model, data, protocol=name, **options) for name in both}
    assert both["mff"] != both["imde"]


def test_protocols_leave_out_their_own_images():
    beyond, good = item([[2.0]], [[20.0]]), item([[2.0]], [[1.0]])
    with pytest.warns(UserWarning, match="1 of 2 images .* protocol imde") as caught:
        both = evaluate(Fixed(), [beyond, good], protocol=("imde", "mff"), cap=10.0)
    assert len(caught) == 1
    assert (both["imde"]["n"], both["mff"]["n"]) == (1, 2)


# ------------------------------------------------------------------ boundaries


def step(column, *, height=1.0, size=(5, 6)):
    """(1, 1, h, w): 1 m, and `height` more from `column` on."""
    depth = torch.ones(size)
    depth[:, column:] += height
    return depth[None, None]


def boundaries_of(pred, target, **options):
    return {
        key.removeprefix("boundary_"): value.tolist()
        for key, value in boundary_metrics(pred, target, **options).items()
    }


def test_boundaries_by_hand():
    # Inside, 3 rows and columns 1 to 4. A step of s is 4 s in the two columns beside it.
    target = step(3).expand(3, -1, -1, -1)
    shifted, faint, flat = step(4), step(3, height=0.2), step(6)
    result = boundaries_of(torch.cat([shifted, faint, flat]), target)
    no = math.nan
    precision = {0.25: [1 / 2, 1, no], 0.5: [1 / 2, 1, no], 1: [1 / 2, no, no]}
    recall = {0.25: [1 / 2, 1, 0], 0.5: [1 / 2, 1, 0], 1: [1 / 2, 0, 0]}
    expected = {f"precision_{t:g}": value for t, value in precision.items()}
    for name in ("recall", "f1"):
        expected |= {f"{name}_{t:g}": value for t, value in recall.items()}
    assert result.keys() == expected.keys()
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, nan_ok=True), key
    # 4 s is not above 4 s.
    assert math.isnan(boundaries_of(step(3), step(3), thresholds=[4])["f1_4"][0])
    # All 6 are found, and 3 more.
    wider = step(3) + step(4) - 1
    assert boundaries_of(wider, step(3), thresholds=[2]) == {
        "precision_2": [6 / 9], "recall_2": [1], "f1_2": [12 / 15],
    }  # fmt: skip


def test_what_touches_a_hole_is_no_boundary():
    target, pred = step(3, size=(7, 6)), step(3, size=(7, 6))
    pred[..., 5, :] = 9.0  # false steps in rows 4 and 5
    for hole in (0.0, math.nan):
        target[..., 4, 2:4] = hole  # takes rows 3 to 5 of all inner columns with it
        assert set(sum(boundaries_of(pred, target).values(), [])) == {1.0}
    top = torch.ones_like(target, dtype=torch.bool)
    top[..., 4:, :] = False
    whole = step(3, size=(7, 6))
    assert boundaries_of(pred, whole, valid=top) == boundaries_of(whole, whole, valid=top)
    assert boundaries_of(pred, whole)["precision_1"][0] < 1


maps = st.integers(0, 2**16).map(
    lambda seed: (
        torch.randint(4, 80, (2, 2, 1, 7, 9), generator=torch.Generator().manual_seed(seed)) / 8
    )
)


@settings(max_examples=40, deadline=None)
@given(maps, st.sampled_from([0.25, 1.0, 8.0, 16.0]), st.sampled_from([0.5, 4.0]))
def test_boundary_properties(pair, threshold, scale):
    pred, target = pair
    keys = [f"{name}_{threshold:g}" for name in ("precision", "recall", "f1")]

    def scores(p, t, threshold=threshold):
        return np.array(list(boundaries_of(p, t, thresholds=[threshold]).values()))

    values = scores(pred, target)
    assert list(boundaries_of(pred, target, thresholds=[threshold])) == keys
    # Another implementation, and the definition by sets.
    for i in range(2):
        p, t = (
            np.hypot(*(ndimage.sobel(x[i, 0].numpy(), a) for a in (0, 1)))[1:-1, 1:-1] > threshold
            for x in (pred, target)
        )
        both = (p & t).sum()
        with np.errstate(invalid="ignore"):
            expected = [both / p.sum(), both / t.sum(), 2 * both / (p.sum() + t.sum())]
        np.testing.assert_allclose(values[:, i], expected)
    perfect = scores(target, target)
    assert ((perfect == 1) | np.isnan(perfect)).all()
    # Metres are the threshold's metres; an offset, a mirror or a transposition change nothing.
    same = np.testing.assert_array_equal
    same(scores(pred * scale, target * scale, threshold * scale), values)
    same(scores(pred + 2, target), values)
    same(scores(pred.flip(-1), target.flip(-1)), values)
    same(scores(pred.mT, target.mT), values)
    same(scores(target, pred), values[[1, 0, 2]])


def test_boundaries_are_averaged_where_they_are_defined():
    def as_item(pred, depth):
        return item(pred[0, 0], depth[0, 0])

    items = [
        as_item(step(4), step(3)),  # all are 1/2
        as_item(step(6), step(3)),  # no boundary predicted: precision is not defined
        as_item(step(3), step(6)),  # none there: recall is not defined
        as_item(step(6), step(6)),  # nothing is
    ]
    result = evaluate(Fixed(), items, cap=10.0, boundaries=True, batch_size=3)
    assert result["n"] == 4
    for threshold in ("0.25", "0.5", "1"):
        assert result[f"boundary_precision_{threshold}"] == pytest.approx((1 / 2 + 0) / 2)
        assert result[f"boundary_recall_{threshold}"] == pytest.approx((1 / 2 + 0) / 2)
        assert result[f"boundary_f1_{threshold}"] == pytest.approx((1 / 2 + 0 + 0) / 3)
    flat = evaluate(Fixed(), items[3:], cap=10.0, boundaries=True)
    assert flat["d1"] == 1 and math.isnan(flat["boundary_f1_1"])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_boundaries_follow_the_protocol(protocol):
    """At the ground truth's size, after the protocol's upsampling, among its pixels."""
    x = item(step(4, size=(8, 8))[0, 0], step(9, height=0.6, size=(16, 16))[0, 0])
    x["depth"][:, :, 13:] = 12.0  # beyond imde's cap
    rules = PROTOCOLS[protocol]
    power = -1 if rules.in_disparity else 1
    pred = F.interpolate(
        (x["image"][None, :1] * 10) ** power,
        (16, 16),
        mode="bilinear",
        align_corners=rules.align_corners,
    )
    pred, depth = pred**power, x["depth"][None].clone()
    if rules.capped:
        depth[depth > 10] = 0
    if rules.crop is not None:
        rows, columns = rules.crop.inside((0, 0, 16, 16), (16, 16))
        depth[..., rows, columns] *= -1
        depth = -depth.clamp(max=0)
    if rules.median_scaled:
        ratio = np.median(depth[depth > 0].numpy()) / np.median(pred[depth > 0].numpy())
        pred = (pred * ratio).clamp(*rules.clamp)
    expected = {key: value.item() for key, value in boundary_metrics(pred, depth).items()}
    result = evaluate(Fixed(), [x], protocol=protocol, cap=10.0, boundaries=True)
    assert {key: result[key] for key in expected} == expected
    assert 0 < expected["boundary_f1_1"] < 1


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: boundary_metrics(step(3), step(3)[0]), r"one shape \(b, 1, h, w\)"),
        (lambda: boundary_metrics(step(1, size=(2, 5)), step(1, size=(2, 5))), "at least 3x3"),
        (lambda: boundary_metrics(step(3), step(3), thresholds=[0.25, 0]), "positive metres"),
        (lambda: boundary_metrics(step(3), step(3), thresholds=[]), "positive metres"),
        (
            lambda: evaluate(Fixed(), [item([[1.0]], [[1.0]])], cap=9.0, boundaries=True),
            "at least 3x3",
        ),
        (lambda: image_metrics(step(3), step(3)), "'imde' needs cap"),
        (lambda: evaluate(Fixed(), random_items(1), protocol=[]), "No protocol.*imde, mff"),
        (
            lambda: evaluate(Fixed(), random_items(1), protocol=["mff", "imd"], cap=9.0),
            "Unknown protocol 'imd'",
        ),
    ],
)
def test_clear_errors_of_protocols_and_boundaries(call, says):
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize(
    "call, says",
    [
        (
            lambda: evaluate(Fixed(), random_items(1), protocol="imd"),
            "Did you mean .imde.*imde, mff",
        ),
        (lambda: describe_protocol("kitti"), "Unknown protocol 'kitti'"),
        (lambda: evaluate(Fixed(), [], cap=10.0), "empty"),
        (lambda: evaluate(Fixed(), random_items(1), batch_size=0, cap=1.0), "batch_size"),
        (lambda: evaluate(Fixed(), [item([[1.0]], [[0.0]])], cap=10.0), "None of 1 images"),
        (
            lambda: evaluate(
                Fixed(),
                [item([[1.0]], [[1.0]]), item([[math.nan]], [[1.0]], name="b.png")],
                cap=10.0,
            ),
            "prediction for b.png holds NaN",
        ),
        (lambda: evaluate(nn.Flatten(), random_items(2), cap=10.0), r"\(b, 1, h, w\)"),
        (lambda: evaluate(Fixed(), [{"image": torch.rand(3, 2, 2)}], cap=1.0), "no 'depth'"),
        (
            lambda: evaluate(
                Fixed(), [{"image": torch.rand(3, 2, 2), "depth": torch.rand(2, 2)}], cap=1.0
            ),
            r"\(1, h, w\)",
        ),
    ],
)
def test_clear_errors(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# Images, batch size, protocol: what does not divide, and less than there are processes.
SPLITS = [(n, size, p) for n, size in ((11, 2), (11, 3), (11, 16), (1, 2)) for p in PROTOCOLS]
BOTH = (11, 3, tuple(PROTOCOLS))


def mixed_items(n):
    """Images of two sizes; image 1 has no valid pixel."""
    items = (random_items(4) + random_items(3, size=(4, 9)) + random_items(4, seed=1))[:n]
    for x in items[1:2]:
        x["depth"].zero_()
    return items


def evaluate_split(split, **options):
    n, batch_size, protocol = split
    torch.manual_seed(0)
    # Convolutions, as their last digits depend on what else is in the batch.
    model = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 1, 3, 1, 1), nn.Softplus())
    return evaluate(
        model, mixed_items(n), batch_size=batch_size, protocol=protocol, cap=10.0, **options
    )


def _evaluate_in_one_of_two(rank, address, expected):
    # Sums depend on the number of threads in their last digits.
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=address, rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    for split in SPLITS:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert evaluate_split(split) == expected[split]
        says = [str(w.message) for w in caught if "valid pixel" in str(w.message)]
        assert len(says) == (rank == 0 and split[0] > 1)
        assert all(text.startswith("1 of 11 images") for text in says)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # As text, for one of them is NaN.
        assert repr(evaluate_split(BOTH, boundaries=True)) == repr(expected[BOTH])

    broken = [item([[x]], [[1.0]], name=f"{x}.png") for x in (1.0, 2.0, math.nan, 4.0)]
    error = ValueError if rank else RuntimeError
    says = "The prediction for nan.png holds NaN"
    with pytest.raises(error, match=f"^{says}" if rank else f"^Process 1 of 2 .*: {says}"):
        evaluate(Fixed(), broken, batch_size=2, cap=10.0)
    with pytest.raises(ValueError, match="None of 3 images"):
        evaluate(Fixed(), [item([[1.0]], [[0.0]])] * 3, batch_size=2, cap=10.0)
    torch.distributed.destroy_process_group()


def test_split_over_processes_to_the_last_bit(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.warns(UserWarning, match="1 of 11 images"):
            expected = {split: evaluate_split(split) for split in SPLITS}
            both = evaluate_split(BOTH, boundaries=True)
    finally:
        torch.set_num_threads(threads)
    each = len(PROTOCOLS)
    assert [result["n"] for result in expected.values()] == [10] * 3 * each + [1] * each
    for name, result in both.items():
        if PROTOCOLS[name].crop is None:  # else hardly a pixel has all its neighbours
            assert 0 < result["boundary_f1_0.5"] < 1
        assert expected[BOTH[:2] + (name,)].items() <= result.items()
    expected[BOTH] = both
    address = f"file://{tmp_path / 'meet'}"
    torch.multiprocessing.spawn(_evaluate_in_one_of_two, (address, expected), nprocs=2)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_says_what_it_does(name):
    line = describe_protocol(name, cap=10.0)
    assert "\n" not in line and name in line
    assert ("< 10 m" in line) == PROTOCOLS[name].capped
    assert line.endswith("median of each image" if PROTOCOLS[name].median_scaled else "metric")


# ------------------------------------------------------------------ crops


def window_of(pred, depth, frame):
    """An item that lies at (top, left) of a full frame (height, width)."""
    return item(pred, depth, frame=torch.tensor(frame, dtype=torch.float32))


def where_it_counts(protocol, x, cap=80.0):
    """Rows and columns that matter, found by a prediction that is wrong in one place."""
    rules = PROTOCOLS[protocol]
    assert rules.crop is not None
    size = tuple(x["depth"].shape[-2:])
    frame = x.get("frame")
    mask = evaluation._crop_mask(
        rules.crop, x["depth"][None], None if frame is None else frame[None], ["a"]
    )[0, 0]
    rows, columns = (mask.any(d).nonzero().flatten() for d in (1, 0))
    assert mask.sum() == len(rows) * len(columns)  # a rectangle
    corner = (rows[0].item(), columns[-1].item())
    target = torch.full((1, *size), 5.0)
    for place, counts in ((corner, True), ((rows[0].item() - 1, corner[1]), False)):
        if place[0] < 0:
            continue
        pred = torch.full(size, 5.0)
        pred[place] = 8.0
        y = item(pred, target[0]) | ({} if frame is None else {"frame": frame})
        assert (evaluate(Fixed(), [y], protocol=protocol, cap=cap)["rms"] > 1e-4) == counts
    return (rows[0].item(), rows[-1].item() + 1), (columns[0].item(), columns[-1].item() + 1)


def full(h, w):
    return item(torch.full((h, w), 5.0), torch.full((h, w), 5.0))


def test_order_of_cropping_by_hand():
    # .40810811 * 375 = 153.04, .99189189 * 375 = 371.96; .03594771 * 1242 = 44.65,
    # .96405229 * 1242 = 1197.35.
    whole = full(375, 1242)
    assert where_it_counts("kitti-garg", whole) == ((153, 371), (44, 1197))
    # The benchmark's window begins at row 375 - 352 = 23 and column (1242 - 1216) / 2 = 13.
    window = full(352, 1216) | {"frame": torch.tensor([23.0, 13.0, 375.0, 1242.0])}
    assert where_it_counts("kitti-garg", window) == ((130, 348), (31, 1184))
    # Of the window itself: .408 * 352 = 143.65, 349.15; .0359 * 1216 = 43.71, 1172.29.
    assert where_it_counts("imde-kitti", window) == ((143, 349), (43, 1172))
    # A window without a frame is a full one.
    assert where_it_counts("kitti-garg", full(352, 1216)) == ((143, 349), (43, 1172))
    # At half the size the window begins at row 11.5: .408 * 187.5 = 76.5, 185.98, and 76 - 11.5
    # = 64.5 is the edge between rows 64 and 65; columns ⌊22.3⌋ - 6.5 = 15.5, ⌊598.7⌋ - 6.5.
    half = full(176, 608) | {"frame": torch.tensor([11.5, 6.5, 187.5, 621.0])}
    assert where_it_counts("kitti-garg", half) == ((64, 173), (15, 591))


def test_epcdepths_crops_by_hand():
    assert where_it_counts("epc-kitti", full(375, 1242)) == ((153, 371), (44, 1197))
    assert where_it_counts("epc-nyu", full(480, 640)) == ((44, 471), (40, 601))


def test_eigen_crop_by_hand():
    assert where_it_counts("bts-eigen", full(480, 640), cap=10.0) == ((45, 471), (41, 601))
    # 240x320: 22.5, 235.5; 20.5, 300.5.
    assert where_it_counts("bts-eigen", full(240, 320), cap=10.0) == ((22, 235), (20, 300))


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["bts-eigen", "kitti-garg"]),
    st.tuples(st.integers(20, 90), st.integers(20, 90)),
    st.tuples(*[st.floats(0, 1)] * 4),
)
def test_a_window_counts_what_the_full_frame_counts_there(protocol, whole, cut):
    (h, w), crop = whole, PROTOCOLS[protocol].crop
    top, left = int(cut[0] * (h - 1)), int(cut[1] * (w - 1))
    height, width = 1 + int(cut[2] * (h - top - 1)), 1 + int(cut[3] * (w - left - 1))
    expected, mask = torch.zeros(h, w), torch.zeros(height, width)
    expected[crop.inside((0, 0, h, w), (h, w))] = 1
    mask[crop.inside((top, left, h, w), (height, width))] = 1
    assert torch.equal(mask, expected[top : top + height, left : left + width])


def test_windows_and_full_frames_in_one_data_set():
    pred, depth = torch.full((352, 1216), 4.0), torch.full((352, 1216), 5.0)
    depth[:130] = 50.0  # would count if the crop were of the window
    items = [window_of(pred, depth, (23, 13, 375, 1242)), item(pred, depth)]
    items += [window_of(pred, depth, (24, 12, 376, 1241))]
    one = [evaluate(Fixed(), [x], protocol="kitti-garg", cap=80.0)["rms"] for x in items]
    assert one[0] == pytest.approx(1.0) and one[2] > 1 and one[1] == pytest.approx(1.0)
    every = evaluate(Fixed(), items, protocol="kitti-garg", cap=80.0, batch_size=3)
    assert every["rms"] == pytest.approx(sum(one) / 3)


def test_a_frame_that_does_not_hold_its_item_is_refused():
    x = window_of([[1.0] * 4] * 4, torch.ones(4, 4), (2, 0, 5, 4)) | {"name": "a.png"}
    with pytest.raises(ValueError, match=r"frame of a.png.*\(2.0, 0.0, 5.0, 4.0\).*4x4"):
        evaluate(Fixed(), [x], protocol="kitti-garg", cap=80.0)
    evaluate(Fixed(), [x], protocol="imde", cap=80.0)  # which has no crop


def test_a_protocol_says_how_it_crops():
    says = {name: describe_protocol(name, cap=80) for name in PROTOCOLS}
    assert all("no crop" in says[name] for name in ("imde", "mff", "sparse-500"))
    assert "480x640; at other sizes in proportion" in says["bts-eigen"]
    assert "Garg crop" in says["kitti-garg"] and "of the full frame" in says["kitti-garg"]
    assert "Garg crop" in says["imde-kitti"] and "of the item" in says["imde-kitti"]
    assert "to the ground truth, then" in says["kitti-garg"]  # the order
    assert "depth > 0.0001 m, no cap" in says["sparse-500"]


def test_completion_counts_all_that_was_measured():
    x = item([[2.0, 60.0, 2.0, 9.0]], [[1.0, 50.0, 2e-4, 5e-5]])
    result = evaluate(Fixed(), [x], protocol="sparse-500")
    assert result["rms"] == pytest.approx(math.sqrt((1 + 100 + 4) / 3), rel=1e-3)


class Measured(nn.Module):
    """Gives back what was measured, and 4 m elsewhere."""

    input_names = ("sparse_depth",)

    def forward(self, image, *, sparse_depth):
        return torch.where(sparse_depth > 0, sparse_depth, 4.0)


def test_more_samples_complete_more():
    data = [item(torch.rand(20, 30), torch.rand(20, 30) + 1) for _ in range(4)]
    samples = (600, 0, 200, 50)
    curve = completion_curve(Measured(), data, samples=samples)
    assert curve["samples"].tolist() == [0, 50, 200, 600] and (curve["n"] == 4).all()
    assert curve["rms"].is_monotonic_decreasing and curve["rms"].iloc[-1] == 0
    assert curve["d1"].is_monotonic_increasing and curve["d1"].iloc[-1] == 1
    # Of 600 pixels 50 are kept: about a twelfth is right.
    assert curve["d1.02"][1] == pytest.approx(50 / 600, abs=0.03)
    # The data set's own samples play no part, and the draw is the seed's.
    own = SparseSamples(data, 7)
    assert completion_curve(Measured(), own, samples=samples).equals(curve)
    assert not completion_curve(Measured(), data, samples=samples, seed=1).equals(curve)


def test_a_completion_curve_says_what_it_cannot_do():
    data = [item(torch.rand(4, 5), torch.rand(4, 5) + 1)]
    with pytest.raises(TypeError, match="Fixed takes no sparse_depth"):
        completion_curve(Fixed(), data)
    for wrong in ({"samples": ()}, {"dataset": []}):
        with pytest.raises(ValueError, match="needs images, and numbers"):
            completion_curve(Measured(), **{"dataset": data, **wrong})

    class Never(Measured):
        def forward(self, image, **_):
            raise AssertionError("work before the check")

    with pytest.raises(ValueError, match="21 samples of 4x5"):
        completion_curve(Never(), data, samples=(0, 21))


def real_test_frames(root):
    """The 120 test pairs at 192x256 by PIL alone, independent of the suite's loaders."""
    from PIL import Image

    folder = root / "nyu" / "nyu_data"
    with open(folder / "data" / "nyu2_test.csv", newline="") as file:
        rows = list(csv.reader(file))
    for color, depth in rows:
        with Image.open(folder / color) as image, Image.open(folder / depth) as metres:
            image = image.convert("RGB").resize((256, 192), Image.Resampling.BILINEAR)
            metres = metres.resize((256, 192), Image.Resampling.NEAREST)
            yield {
                "image": torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255,
                "depth": torch.from_numpy(np.array(metres, dtype=np.float32))[None] / 1000,
                "name": color,
            }


def test_published_meter_on_real_frames(real):
    """The original network's numbers on these frames. Their metric scale was recovered from the
    sensor's quantisation, so 1-3 % of error in scale on some images is expected."""
    from mde_utils.models import build_model

    model = build_model("meter_xxs", weights=real.parent / "weights" / "meter_xxs_nyu.pth")
    result = evaluate(model, list(real_test_frames(real)), protocol="imde")
    assert result["n"] == 120
    original = {"d1": 0.793, "d2": 0.957, "d3": 0.990, "rms": 0.531, "rel": 0.146, "log10": 0.062}
    assert {key: result[key] for key in original} == pytest.approx(original, abs=0.002)


# ------------------------------------------------------------------ disparities


@pytest.fixture(scope="module")
def epcdepth():
    torch.manual_seed(0)
    model = build_model("epcdepth_test_resnet", width=32, baseline=0.54)
    with torch.no_grad():
        model.train()(torch.rand(2, 3, 64, 64))
        finest = model.depth_decoder.disps[-1][0]  # far and near things in every image
        finest.weight.mul_(40 / finest.weight.norm())
        finest.bias.sub_(3)
    return model.eval()


def test_a_median_is_that_of_what_counts():
    """A wrong scale is forgiven, and what the crop or a hole hides has no say in it."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(30, 40, generator=generator) * 4 + 2
    pred = 0.2 * depth
    pred[:2] = 500.0  # outside of the crop
    depth[10:14] = 0.0
    pred[10:14] = 0.01
    result = evaluate(Fixed(), [item(pred, depth)], protocol="epc-nyu")
    assert result["rel"] == pytest.approx(0, abs=1e-5) and result["d1.02"] == 1
    assert evaluate(Fixed(), [item(pred, depth)], cap=80.0)["rel"] > 0.7
    # An image without valid pixels is left out, as ever.
    with pytest.warns(UserWarning, match="1 of 2 images have no valid pixel"):
        both = evaluate(Fixed(), [item(pred, depth), item(pred, 0 * depth)], protocol="epc-nyu")
    assert both == result


@torch.no_grad()
def test_nyu_reads_disparities_on_another_curve(epcdepth):
    image, depth = torch.rand(1, 3, 64, 96), torch.rand(1, 1, 64, 96) * 5 + 1
    x = {"image": image[0], "depth": depth[0]}
    read = disparity_to_depth(epcdepth.disparities(image)[0], max_depth=10)
    expected = image_metrics(read, depth, protocol="epc-nyu")
    results = evaluate(epcdepth, [x], protocol=["epc-nyu", "imde"], cap=10.0)
    assert results["epc-nyu"]["rel"] == pytest.approx(expected["rel"].item(), rel=1e-4)
    plain = image_metrics(epcdepth(image), depth, protocol="epc-nyu")["rel"].item()
    assert results["epc-nyu"]["rel"] != pytest.approx(plain, rel=1e-3)
    plain = image_metrics(epcdepth(image), depth, cap=10.0)["rel"].item()
    assert results["imde"]["rel"] == pytest.approx(plain, rel=1e-5)


@torch.no_grad()
def test_kittis_metres_are_the_baselines(epcdepth):
    image, depth = torch.rand(1, 3, 64, 96), torch.rand(1, 1, 64, 96) * 5 + 1
    x = {"image": image[0], "depth": depth[0]}
    sigma = epcdepth.disparities(image)[0]
    expected = image_metrics(5.4 / (0.01 + 9.99 * sigma), depth, protocol="epc-kitti", cap=80.0)
    found = evaluate(epcdepth, [x], protocol="epc-kitti", cap=80.0)
    assert found["rms"] == pytest.approx(expected["rms"].item(), rel=1e-5)


class Metres(nn.Module):
    """Says the same depth everywhere, at half the size."""

    def __init__(self, depth):
        super().__init__()
        self.depth = depth

    def forward(self, image):
        return torch.full_like(image[:, :1, ::2, ::2], self.depth)


class ByRow(nn.Module):
    """Depth is the row's number from 1 on, whatever the picture, plus a map of its own."""

    input_names = ("map",)

    def forward(self, image, map):  # noqa: A002
        rows = torch.arange(1.0, image.shape[-2] + 1)
        return rows[:, None].expand_as(image[:, :1]) + map


@pytest.mark.parametrize("height", [4, 5])
def test_with_its_halves_swapped_a_picture_is_read_by_looks_alone(height):
    looks, rows = torch.rand(1, height, 6) + 0.1, torch.arange(1.0, height + 1)[:, None]
    by_looks = [item(looks, looks[0])]
    by_rows = [{**item(looks, rows.expand(-1, 6)), "map": torch.zeros_like(looks)}]
    fixed, by_row = Fixed(), ByRow()
    with swapped_halves(fixed, by_row):
        assert evaluate(fixed, by_looks, cap=80)["rel"] == pytest.approx(0, abs=1e-6)
        image, extra = torch.rand(1, 3, height, 6), torch.rand(1, 1, height, 6)
        moved = by_row(image, map=extra) - extra
        wrong = evaluate(by_row, by_rows, cap=80)["rel"]
    half = height // 2
    assert torch.allclose(moved[0, 0], rows.roll(-half, 0).expand(-1, 6))
    assert wrong > 0.5
    assert evaluate(by_row, by_rows, cap=80)["rel"] == 0  # the hooks are gone


def test_halves_are_put_back_when_an_error_ends_it():
    model, image, none = ByRow(), torch.rand(1, 3, 4, 6), torch.zeros(1, 1, 4, 6)
    with swapped_halves(model):
        assert model(image, map=none)[0, 0, :, 0].tolist() == [3, 4, 1, 2]
        with pytest.raises(ValueError, match="swapped already"), swapped_halves(model):
            pass
    with pytest.raises(RuntimeError, match="stop"), swapped_halves(model):
        raise RuntimeError("stop")
    assert model(image, map=none)[0, 0, :, 0].tolist() == [1, 2, 3, 4]


def test_halves_are_swapped_only_where_they_can_be_put_back():
    image = torch.rand(1, 3, 8, 6)
    half_size = Fixed(stride=2)
    with swapped_halves(half_size):
        assert torch.equal(half_size(image), image[:, :1, ::2, ::2] * 10)
        with pytest.raises(ValueError, match=r"pictures of 6 rows the model made \[1, 1, 3, 3\]"):
            half_size(image[..., :6, :])
    named = nn.Identity()
    named.forward = lambda image: {"depth": image[:, :1]}
    with swapped_halves(named), pytest.raises(ValueError, match="made dict"):
        named(image)


def test_pairs_are_explained_by_the_right_depth_alone():
    wide = torch.rand(3, 20, 60)
    k = torch.tensor([[50.0, 0, 24], [0, 50, 10], [0, 0, 1]])
    # 50 px * 0.4 m / 5 m = 4 px; to the left of the first camera in the second pair.
    pairs = [
        {"image": wide[..., 4:52], "right": wide[..., 8:56], "intrinsics": k, "baseline": 0.4},
        {"image": wide[..., 4:52], "right": wide[..., :48], "intrinsics": k, "baseline": -0.4},
    ]
    errors = {d: photometric(Metres(d), pairs, batch_size=1) for d in (4.0, 5.0, 6.5)}
    assert errors[5.0] < 0.1 * min(errors[4.0], errors[6.5])
    assert photometric(Metres(5.0), pairs) == pytest.approx(errors[5.0])
    for broken, says in (
        ([], "data set is empty"),
        ([{"image": wide}], "image 0 has no 'right'; it has image"),
    ):
        with pytest.raises(ValueError, match=says):
            photometric(Metres(5.0), broken)
