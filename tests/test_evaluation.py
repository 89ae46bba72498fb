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
from torch import nn

from mde_utils.evaluation import PROTOCOLS, compute_metrics, describe_protocol, evaluate

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


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_evaluate_is_the_mean_of_compute_metrics(protocol):
    items = random_items(7)
    result = evaluate(Fixed(), items, protocol=protocol, batch_size=3, cap=10.0)
    images = []
    for x in items:
        pred, depth = x["image"][:1] * 10, x["depth"]
        if protocol == "imde":
            valid = (depth > 1e-3) & (depth < 10)
            pred = pred.clamp(1e-3, 10)
        else:
            valid = depth > 0
            pred = pred.clamp(min=1e-3)
        images.append(compute_metrics(pred[valid], depth[valid], strict=protocol == "imde"))
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
    aligned = PROTOCOLS[protocol].align_corners
    pred = F.interpolate(
        x["image"][None, :1, ::2, ::2] * 10, (16, 12), mode="bilinear", align_corners=aligned
    )
    expected = compute_metrics(pred.flatten(), torch.full((192,), 3.0))
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


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: evaluate(Fixed(), random_items(1), protocol="imd"), "imde, mff.*Did you mean"),
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
        (lambda: evaluate(Fixed(), random_items(1), distributed=True), "accelerate launch"),
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
    if rank == 1:
        with pytest.warns(UserWarning, match="1 of 11 images"):
            assert evaluate_split(SPLITS[0], distributed=False) == expected[SPLITS[0]]

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
    finally:
        torch.set_num_threads(threads)
    assert [result["n"] for result in expected.values()] == [10] * 6 + [1] * 2
    address = f"file://{tmp_path / 'meet'}"
    torch.multiprocessing.spawn(_evaluate_in_one_of_two, (address, expected), nprocs=2)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_says_what_it_does(name):
    line = describe_protocol(name, cap=10.0)
    assert "\n" not in line and name in line
    assert ("10 m" in line) == PROTOCOLS[name].capped


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
