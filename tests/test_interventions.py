"""Interventions by hand; the remaining network alone against the whole one; curves and controls."""

import math
import random
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import items, net, one_thread

from mde_utils import interventions
from mde_utils.activations import evaluating, tap
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection, dissect
from mde_utils.edits import ablate, correct, mean_response
from mde_utils.evaluation import evaluate
from mde_utils.interventions import (
    MEASURES,
    Area,
    UnitEffects,
    ablation_curve,
    correction_effects,
)

pytestmark = pytest.mark.filterwarnings("ignore:Neither the data set nor the model")
threads = pytest.fixture(autouse=True, scope="module")(one_thread)


class Depths(list):
    depth_range = (0.75, 10.0)
    name = "toys"


SMALL = {key: value[:, ::2] for key, value in items(1)[0].items() if key != "name"}
DATA, BATCH = Depths(items(5)), torch.stack([item["image"] for item in items(5)])
DEPTH = torch.stack([item["depth"] for item in items(5)])


@pytest.fixture(scope="module")
def model():
    model = net().eval()
    model.wide[1].bias.data.fill_(0.7)  # no dead units
    model.out.weight.data.uniform_(-1, 1, generator=torch.Generator().manual_seed(4))
    return model


@pytest.fixture(scope="module")
def seen(model):
    return dissect(model, DATA, ["deep", "wide"])


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def run(model, image):
    with evaluating(model):
        return model(image)


# ------------------------------------------------------------------ ablate


def test_ablated_units_answer_nothing_or_their_mean(model, seen):
    with tap(model, ["wide"]) as acts:
        run(model, BATCH)
        before = acts["wide"]
    mean = seen.sums["wide"].sum(1) / seen.pixels["wide"].sum()
    for answer, value in (("zero", torch.zeros(8)), ("mean", mean.float())):
        change = ablate(model, {"wide": [1, 6]}, answer=answer, dissection=seen)
        with change, tap(model, ["wide"]) as acts:
            pred = run(model, BATCH)
        expected = before.clone()
        expected[:, [1, 6]] = value[[1, 6], None, None]
        assert torch.equal(acts["wide"], expected)
        assert torch.equal(pred, model.out(expected).detach() + 3)
    assert hooks(model) == 0


def test_mean_response_is_the_mean_of_measured_pixels(model, seen):
    total = 0
    with tap(model, ["deep"]) as acts:
        run(model, BATCH)
        total = F.interpolate(acts["deep"], DEPTH.shape[-2:], mode="bilinear").mean((0, 2, 3))
    assert (DEPTH > 0).all()
    torch.testing.assert_close(mean_response(seen, "deep").float(), total)


def test_gradients_pass_an_ablation(model):
    image = BATCH.clone().requires_grad_()
    with ablate(model, {"deep": list(range(8))}):
        model(image).sum().backward()
    assert image.grad.abs().sum() > 0


# ------------------------------------------------------------------ correct


def by_hand(seen, layer, act, depth, units, blend):
    """Pixel by pixel, as the paper says it."""
    out, (b, _, h, w) = act.clone(), act.shape
    counts, response, edges = seen.counts[layer], seen.response[layer], seen.bins[layer].edges
    for n in range(b):
        for i in range(h):
            for j in range(w):
                y, x = (int((i + 0.5) * depth.shape[2] / h), int((j + 0.5) * depth.shape[3] / w))
                d = depth[n, 0, y, x].item()
                d_bin = next((q for q in range(len(edges) - 1) if edges[q] < d <= edges[q + 1]), -1)
                if d > 0 and d_bin >= 0 and counts[d_bin] > 0:
                    for u in units:
                        own = act[n, u, i, j]
                        out[n, u, i, j] = own + blend * (response[u, d_bin].float() - own)
    return out


@pytest.mark.parametrize(("units", "blend"), [(None, 1), ([0, 5], 1), (None, 0.3)])
def test_correction_is_that_of_the_formula(model, seen, units, blend):
    generator = torch.Generator().manual_seed(1)
    depth = torch.rand(2, 1, 27, 35, generator=generator) * 13 - 1
    depth[0, 0, :9] = math.nan
    pixels = seen.pixels["wide"].clone()
    emptied = int(pixels[:-1].argmax())
    pixels[emptied] = 0
    sparse = replace(seen, pixels={**seen.pixels, "wide": pixels})
    with tap(model, ["wide"]) as acts:
        run(model, BATCH[:2])
        before = acts["wide"]
    named = None if units is None else {"wide": units}
    with (
        correct(model, sparse, depth, ["wide"], units=named, blend=blend),
        tap(model, ["wide"]) as acts,
    ):
        pred = run(model, BATCH[:2])
    expected = by_hand(sparse, "wide", before, depth, units or range(8), blend)
    torch.testing.assert_close(acts["wide"], expected)
    torch.testing.assert_close(pred, model.out(expected).detach() + 3)
    assert (acts["wide"] == before).any() and (acts["wide"] != before).any()
    assert hooks(model) == 0


@settings(max_examples=10, deadline=None)
@given(st.floats(0, 1))
def test_blend_is_linear(blend):
    # One layer, so that nothing between two corrections answers to the first.
    model, data = net().eval(), DATA
    seen = dissect(model, data, ["wide"])
    found = {}
    for b in (0, blend, 1):
        with correct(model, seen, DEPTH, ["wide"], blend=b):
            found[b] = run(model, BATCH)
    assert torch.equal(found[0], run(model, BATCH))
    torch.testing.assert_close(found[blend], torch.lerp(found[0], found[1], blend))


def test_corrected_units_are_perfectly_selective_where_the_map_has_the_depths_size():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 1)

        def forward(self, image):
            return self.layer(image).abs().mean(1, keepdim=True) + 1

    flat = Flat()
    seen = dissect(flat, DATA, ["layer"])
    with correct(flat, seen, DEPTH, ["layer"]):
        again = dissect(flat, [{"image": BATCH[i], "depth": DEPTH[i]} for i in range(5)], ["layer"],
                        bins=DATA.depth_range, batch_size=5)  # fmt: skip
    torch.testing.assert_close(
        again.response["layer"], seen.response["layer"], rtol=1e-5, atol=1e-6
    )


# ------------------------------------------------------------------ bad input


def shifted(seen, layer, **changes):
    return replace(seen, **{key: {**getattr(seen, key), layer: v} for key, v in changes.items()})


@pytest.mark.parametrize(
    ("units", "says"),
    [
        ({}, "named by layer"),
        ([3], "named by layer"),
        ({"wide": []}, "No units of layer 'wide'"),
        ({"wide": [-1]}, "whole numbers from 0 on"),
        ({"wide": [1.5]}, "whole numbers from 0 on"),
        ({"wide": [2, 2]}, r"more than once: \[2\]"),
        ({"wide": [0, 8]}, "'wide' has 8 units, 0 … 7; got unit 8"),
        ({"wied": [0]}, "Unknown layer 'wied'.*Close: wide"),
    ],
)
def test_bad_units(model, seen, units, says):
    with pytest.raises(ValueError, match=says), ablate(model, units):
        run(model, BATCH)
    if isinstance(units, dict) and "wide" in units:
        with pytest.raises(ValueError, match=says):
            with correct(model, seen, DEPTH, ["wide"], units=units):
                raise AssertionError("refused before anything runs")
    assert hooks(model) == 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(depth=DEPTH[:, 0]), r"\(B, 1, H, W\) in metres; got \(5, 32, 40\)"),
        (dict(depth=DEPTH.numpy()), "got ndarray"),
        (dict(depth=DEPTH * 0), "nothing to correct by"),
        (dict(depth=DEPTH * 1000), "nothing to correct by"),
        (dict(depth=DEPTH[:2]), "of 2 images, the batch holds 5"),
        (dict(blend=1.2), "0 … 1 .*got 1.2"),
        (dict(blend=math.nan), "0 … 1 .*got nan"),
        (dict(layers=[]), "at least one layer"),
        (dict(layers=["wide", "wide"]), "each once"),
        (dict(layers=["out"]), "'out' was not dissected. Known: deep, wide"),
        (dict(layers=["outt"]), "Unknown layer 'outt'"),
        (dict(units={"deep": [1]}), r"units names \['deep'\], the layers are \['wide'\]"),
    ],
)
def test_bad_corrections(model, seen, change, says):
    given = {"depth": DEPTH, "layers": ["wide"], **change}
    with pytest.raises(ValueError, match=says):
        with correct(model, seen, given.pop("depth"), given.pop("layers"), **given):
            run(model, BATCH)
    assert hooks(model) == 0


def test_a_dissection_of_another_model(model, seen):
    other = replace(seen, about={"model": "Other"})
    narrow = shifted(seen, "wide", sums=seen.sums["wide"][:6])
    for wrong, says in ((other, "for the model 'Other', this one is 'Net'"),
                        (narrow, "'wide' has 8 units, in the dissection 6")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            with ablate(model, {"wide": [0]}, answer="mean", dissection=wrong):
                run(model, BATCH)
        with pytest.raises(ValueError, match=says), correct(model, wrong, DEPTH, ["wide"]):
            run(model, BATCH)
        with pytest.raises(ValueError, match=says):
            ablation_curve(model, DATA, wrong, ["wide"], orders="most")
        with pytest.raises(ValueError, match=says):
            correction_effects(model, DATA, wrong, ["wide"])


def test_layers_without_a_map(seen):
    flat = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten())
    with pytest.raises(ValueError, match="Units are taken from a map"), ablate(flat, {"1": [0]}):
        run(flat, BATCH)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(orders="mots"), "Unknown order 'mots'.*Known: most, least, random"),
        (dict(orders=[]), "Unknown order None"),
        (dict(points=[9]), "in 0 … 8, the units of wide; got"),
        (dict(points=[-1, 2]), "in 0 … 8"),
        (dict(points=[]), "got none"),
        (dict(num_random=0), "num_random must be at least 1"),
        (dict(protocol="imdb"), "Unknown protocol 'imdb'"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(layers=["out"]), "'out' was not dissected"),
        (dict(dataset=Depths()), "data set is empty"),
    ],
)
def test_bad_curves(model, seen, change, says):
    given = {"dataset": DATA, "layers": ["wide"], **change}
    with pytest.raises(ValueError, match=says):
        ablation_curve(model, given.pop("dataset"), seen, given.pop("layers"), **given)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (dict(controls=["truht"]), "Unknown control 'truht'"),
        (dict(blends=[0, 2]), "blends must lie in 0 … 1; got 2"),
        (dict(dataset=Depths(DATA[:1])), "needs two images at least; got one"),
        (dict(dataset=Depths([*DATA, SMALL])), "images of one size"),
    ],
)  # fmt: skip
def test_bad_effects(model, seen, change, says):
    given = {"dataset": DATA, **change}
    with pytest.raises(ValueError, match=says):
        correction_effects(model, given.pop("dataset"), seen, ["wide"], **given)


def test_bins_of_another_range(model, seen):
    far = shifted(seen, "wide", bins=DepthBins.sid(8, 3, 80))
    with pytest.raises(ValueError, match="end at 80 m, this data set's depth at 10 m"):
        correction_effects(model, DATA, far, ["wide"])


def test_data_without_valid_depth(model, seen):
    empty = Depths({**item, "depth": item["depth"] * 0} for item in DATA)
    with pytest.raises(ValueError, match="None of 5 images has a valid pixel"):
        ablation_curve(model, empty, seen, ["wide"], orders="most", points=[0])
    with pytest.raises(ValueError, match="None of 5 images has a valid pixel"):
        correction_effects(model, empty, seen, ["wide"])
    some = Depths([*DATA, empty[0]])
    with pytest.warns(UserWarning, match="1 of 6 images have no valid pixel"):
        curve = ablation_curve(model, some, seen, ["wide"], orders="most", points=[0])
    assert curve.frame["n"].tolist() == [5]
    assert curve.frame["d1"][0] == pytest.approx(evaluate(model, DATA)["d1"])


# ------------------------------------------------------------------ curves


def test_curve_is_evaluation_under_ablation(model, seen):
    for protocol, answer in (("imde", "zero"), ("mff", "mean")):
        curve = ablation_curve(
            model, DATA, seen, ["deep", "wide"], num_random=2, points=[0, 3, 10, 24],
            answer=answer, protocol=protocol, batch_size=2,
        )  # fmt: skip
        frame = curve.frame
        assert curve.curves == [("most", 0), ("least", 0), ("random", 0), ("random", 1)]
        for number, curve_of in enumerate(curve.curves):
            for removed in curve.points:
                units = {}
                for layer, k in curve.units[number][:removed]:
                    units.setdefault(layer, []).append(k)
                with (
                    ablate(model, units, answer=answer, dissection=seen)
                    if units
                    else warnings.catch_warnings()
                ):
                    expected = evaluate(model, DATA, protocol=protocol)
                key = (*curve_of, removed)
                found = frame.set_index(["order", "repeat", "removed"]).loc[key].to_dict()
                assert {key: found[key] for key in expected} == pytest.approx(expected, rel=1e-5)
        assert curve.about["images"] == 5 and curve.about["model"] == "Net"
    assert hooks(model) == 0


def test_orders(model, seen):
    scores = {(layer, k): s for layer in ("deep", "wide")
              for k, s in enumerate(seen.selectivity[layer].tolist())}  # fmt: skip
    curve = ablation_curve(model, DATA, seen, ["deep", "wide"], num_random=3, points=[0])
    most, least, *others = curve.units
    found = [scores[unit] for unit in most]
    assert found == sorted(scores.values(), reverse=True) and least == most[::-1]
    assert all(sorted(order) == sorted(most) for order in others)
    assert len({tuple(order) for order in others}) == 3
    again = ablation_curve(model, DATA, seen, ["deep", "wide"], num_random=3, points=[0])
    other = ablation_curve(model, DATA, seen, ["deep", "wide"], num_random=3, points=[0], seed=1)
    assert again.units == curve.units and other.units[2:] != curve.units[2:]
    nothing = shifted(seen, "deep", pixels=torch.eye(17, dtype=torch.float64)[3])  # one bin only
    assert nothing.selectivity["deep"].isnan().all()
    placed = ablation_curve(model, DATA, nothing, ["deep", "wide"], orders="most", points=[0])
    assert [layer for layer, _ in placed.units[0]] == ["wide"] * 8 + ["deep"] * 16


def test_front_runs_once_for_all_curves(model, seen):
    calls = []
    handle = model.deep.register_forward_hook(lambda *_: calls.append(1))
    ablation_curve(model, DATA, seen, ["wide"], num_random=3, batch_size=2)
    correction_effects(model, DATA, seen, ["wide"], batch_size=2)
    handle.remove()
    assert len(calls) == 2 * (3 + 1)  # three batches each, and the comparison of the first


def a_curve(values, curves, points=None):
    values = torch.as_tensor(values, dtype=torch.float64)
    return interventions.AblationCurve(
        points=points or list(range(values.shape[1])),
        curves=curves,
        units=[],
        values={"d1": values, "rms": 1 / values, "rms_log": values},
        protocol="imde",
    )


def test_area_by_hand():
    both = [("most", 0), ("least", 0)]
    curve = a_curve([[[0.8] * 4, [0.2] * 4, [0] * 4], [[0.8] * 4, [0.6] * 4, [0] * 4]], both)
    assert curve.relative_drop()["most", 0].tolist() == pytest.approx([0, 0.75, 1])
    assert curve.relative_drop("rms")["least", 0][1] == pytest.approx(1 / 3)
    area = curve.area()
    assert area[:3] == pytest.approx((0.25, 0.25, 0.25)) and math.isnan(area.band_low)
    uneven = a_curve([[[0.8], [0.2], [0]], [[0.8], [0.6], [0]]], both, points=[0, 1, 4])
    assert uneven.area().area == pytest.approx((0.5 * 0.5 + 0.5 * 0.5 * 3) / 4)
    for wrong, says in ((a_curve([[[1.0], [0]]], both[:1]), "'most' and 'least'"),
                        (a_curve([[[1.0]], [[1.0]]], both), "1 points")):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            wrong.area()
    with pytest.raises(ValueError, match="Unknown metric 'd9'. Known: d1, rms"):
        curve.relative_drop("d9")
    with pytest.raises(ValueError, match="Put 0 among the points"):
        a_curve([[[1.0], [0]]], both[:1], points=[1, 2]).relative_drop()


@pytest.mark.parametrize(
    ("area", "says"),
    [
        (Area(0.3, 0.1, 0.5, -0.2, 0.2), "more"),
        (Area(-0.3, -0.5, -0.1, -0.2, 0.2), "less"),
        (Area(0.1, 0.05, 0.2, -0.2, 0.2), "not shown"),  # as an order without knowledge
        (Area(0.3, -0.1, 0.5, -0.2, 0.2), "not shown"),  # of these images alone
        (Area(0.3, 0.1, 0.5, math.nan, math.nan), "not shown"),
    ],
)
def test_what_an_area_says(area, says):
    assert area.says == says


def test_interval_covers_and_band_holds_reversed_pairs():
    """Orders that know nothing: the area lies inside the band, of units of unequal weight."""
    generator = np.random.default_rng(0)
    units, images, inside, covered, trials = 40, 60, 0, 0, 60
    for _ in range(trials):
        weight = generator.exponential(size=units)
        weight /= weight.sum()

        def drop(order, weight=weight):
            return 1 - np.concatenate([[0], np.cumsum(weight[order])])

        order = generator.permutation(units)
        orders = [order, order[::-1], *(generator.permutation(units) for _ in range(20))]
        mean = np.array([drop(o) for o in orders])[..., None]
        noise = 1 + 0.2 * generator.standard_normal((1, 1, images))
        each = 0.1 * generator.standard_normal((len(orders), 1, images)) * (1 - mean)
        names = [("most", 0), ("least", 0), *(("random", i) for i in range(20))]
        area = a_curve(mean * noise + each, names).area()
        true = torch.trapezoid(torch.as_tensor(mean[1, :, 0] - mean[0, :, 0])).item() / units
        inside += area.band_low <= area.area <= area.band_high
        covered += area.low <= true <= area.high
        assert area.low < area.area < area.high
    assert inside >= 0.85 * trials
    assert covered >= 0.85 * trials


# ------------------------------------------------------------------ controls


def row(frame, control, blend=1.0):
    (found,) = frame.query("control == @control and blend == @blend").to_dict("records")
    return found


METRICS = ("d1", "rms", "rms_log", "rel")


def matches(found, expected):
    assert [found[m] for m in METRICS] == pytest.approx([expected[m] for m in METRICS], rel=1e-5)


def test_effects_are_evaluations_under_correction(model, seen, monkeypatch):
    monkeypatch.setattr(interventions, "MAX_ITERATIONS", 2)
    monkeypatch.setattr(interventions, "TOLERANCE", 1e-12)
    frame = correction_effects(model, DATA, seen, ["deep", "wide"], protocol="mff", batch_size=5)
    assert frame["control"].tolist() == ["none", *["truth"] * 5, *interventions.CONTROLS[1:]]
    assert set(frame["n"]) == {5}

    def by(depth, blend=1.0):
        with correct(model, seen, depth, ["deep", "wide"], blend=blend):
            return evaluate(model, DATA, protocol="mff", batch_size=5), run(model, BATCH)

    matches(row(frame, "none", 0.0), evaluate(model, DATA, protocol="mff"))
    matches(row(frame, "truth", 0.0), row(frame, "none", 0.0))
    for blend in (0.5, 1.0):
        matches(row(frame, "truth", blend), by(DEPTH, blend)[0])
    other = interventions._derangement(5, random.Random(0))
    matches(row(frame, "shuffled"), by(DEPTH[other])[0])
    once, pred = by(run(model, BATCH))
    matches(row(frame, "predicted"), once)
    twice, last = by(pred)
    matches(row(frame, "fixed_point"), twice)
    moved = [
        (a - b).abs().flatten(1).mean(1) >= 1e-12
        for a, b in ((run(model, BATCH), pred), (pred, last))
    ]
    assert row(frame, "fixed_point")["iterations"] == 1 + moved[0].double().mean().item()
    assert row(frame, "fixed_point")["converged"] == 5 - moved[1].sum().item()
    assert moved[0].any()
    assert row(frame, "predicted")["iterations"] == 1 and row(frame, "none", 0.0)["iterations"] == 0
    assert frame.attrs["protocol"] == "mff" and frame.attrs["images"] == 5


def test_wrong_bins(model, seen):
    frame = correction_effects(model, DATA, seen, ["wide"], controls="wrong_bin", seed=3)
    known = seen.counts["wide"].nonzero()[:, 0]
    wrong = known[interventions._derangement(len(known), random.Random(3))]
    sums, pixels = torch.zeros_like(seen.sums["wide"]), seen.pixels["wide"]
    sums[:, known] = seen.response["wide"][:, wrong] * pixels[known]
    with correct(model, shifted(seen, "wide", sums=sums), DEPTH, ["wide"]):
        matches(row(frame, "wrong_bin"), evaluate(model, DATA))


def test_fixed_points_are_fixed(model, seen, monkeypatch):
    monkeypatch.setattr(interventions, "MAX_ITERATIONS", 50)
    frame = correction_effects(model, DATA, seen, ["wide"], controls="fixed_point", batch_size=2)
    found = row(frame, "fixed_point")
    assert found["converged"] == 5 and 1 < found["iterations"] < 50
    pred = run(model, BATCH)
    for _ in range(50):
        with correct(model, seen, pred, ["wide"]):
            pred = run(model, BATCH)
    with correct(model, seen, pred, ["wide"]):
        matches(found, evaluate(model, DATA, batch_size=5))


def asked(answers, needed):
    """A layer whose units answer most to one bin of 13, and are needed most in another; a pixel a
    bin in 100, but one in the last bin."""
    bins, units = DepthBins.sid(13, 0.75, 10), range(len(answers))
    tuning, change = torch.rand(2, len(answers), 13, generator=torch.Generator().manual_seed(0))
    tuning[units, answers] = change[units, needed] = 2
    tuning[:, 12] = change[:, 12] = 9  # of a single pixel: not looked at
    counts = torch.full((13,), 1200.0).double()
    counts[12] = 1
    pixels = F.pad(counts, (0, 1))
    known = Dissection(
        {"layer": F.pad(tuning, (0, 1)) * pixels}, {"layer": pixels}, {"layer": bins}, 1
    )
    return UnitEffects(change, change / 2, -change, counts, "layer", bins, 1, "zero", 0.0), known


def test_units_that_are_needed_where_they_answer():
    order = random.Random(1).sample(range(12), 12)
    for needed, r in ((order, 1), ([11 - k for k in order], -1)):
        effects, known = asked(order, needed)
        found = effects.match(known, draws=200)
        assert list(found.index) == list(MEASURES.values())
        assert (found.units == 12).all() and (found.depths == 12).all()
        first = found.iloc[0]
        assert [first.r, first.low, first.high] == pytest.approx([r] * 3) and first.yes == (r > 0)
        assert 0.3 < first.chance < 0.8
        assert found.r.iloc[1] == pytest.approx(r)  # of half the change
    needed = [order[0], *order[:-1]]  # ties, and nothing that goes together
    effects, known = asked(order, needed)
    found = effects.match(known, draws=200).iloc[0]
    assert found.r == pytest.approx(pd.Series(order).rank().corr(pd.Series(needed).rank()))
    assert found.low < found.r < found.high and found.yes == (
        found.low > 0 and found.r > found.chance
    )


@pytest.mark.parametrize("silent", (False, True))
def test_units_of_one_depth_match_nothing(silent):
    effects, known = asked([3] * 5, [1, 2, 3, 4, 5])
    if silent:
        known = replace(known, sums={"layer": 0 * known.sums["layer"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = effects.match(known, draws=50)
    assert (found.units == (0 if silent else 5)).all() and not found.yes.any()
    assert found[["r", "low", "high", "chance"]].isna().all(axis=None)


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 40), st.integers(0, 1000))
def test_derangement(n, seed):
    order = interventions._derangement(n, random.Random(seed))
    assert sorted(order) == list(range(n))
    assert all(i != k for i, k in enumerate(order))


def test_public_names():
    import mde_utils

    for name in ("ablation_curve", "correction_effects", "unit_effects"):
        assert getattr(mde_utils, name) is getattr(interventions, name)
