"""The explorer's answers against the plain, slow way to each."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Net, items, net, one_thread

from mde_utils import predict
from mde_utils.activations import evaluating, tap
from mde_utils.dissection import dissect, response_spread
from mde_utils.edits import ANSWERS, ablate, correct, scale
from mde_utils.interventions import unit_effects
from mde_utils.selectivity import pool_by_bin
from mde_utils.views.explorer import ORDERS, Explorer

pytestmark = pytest.mark.filterwarnings("ignore:Neither the data set nor the model")
threads = pytest.fixture(autouse=True, scope="module")(one_thread)

LAYERS = ["deep", "wide"]


class Depths(list):
    depth_range = (0.75, 10.0)
    name = "toys"


DATA = Depths(items(5))
MODEL = net().eval()
SEEN = dissect(MODEL, DATA, LAYERS)
EXPLORER = Explorer(MODEL, DATA, SEEN)


def with_depth(change, index=0):
    """The data with one item's depth changed."""
    data = Depths(dict(item) for item in DATA)
    data[index]["depth"] = change(data[index]["depth"].clone())
    return data


def upsampled(depth, size):
    return nn.functional.interpolate(depth[None], size, mode="bilinear", align_corners=False)[0]


# ------------------------------------------------------------------ looking


def test_a_view_is_what_the_network_sees():
    view = EXPLORER.view(2)
    with evaluating(MODEL), tap(MODEL, LAYERS) as acts:
        depth = MODEL(DATA[2]["image"][None])[0]
    assert torch.equal(view.depth, depth) and view.name == "i2"
    assert torch.equal(view.activations["deep"], acts["deep"][0])
    alone = dissect(MODEL, Depths(DATA[2:3]), LAYERS, bins=SEEN.bins)
    for layer in LAYERS:
        known = (alone.counts[layer] > 0).expand_as(alone.response[layer])
        found = view.response(layer)
        torch.testing.assert_close(found[known], alone.response[layer][known])
        assert found[~known].isnan().all()
    assert EXPLORER.view(2) is view and EXPLORER.view(1) is not view
    number, near, far = EXPLORER.assigned("wide", 3)
    inside = (view.depth > near) & (view.depth <= far)
    assert number == 3 and torch.equal(view.where("wide", 3), inside)


def test_spread_is_the_standard_deviation_of_image_means():
    found = EXPLORER.spread("wide")
    bins = SEEN.bins["wide"]
    means = []
    for item in DATA:
        with evaluating(MODEL), tap(MODEL, ["wide"]) as acts:
            MODEL(item["image"][None])
        sums, counts = pool_by_bin(acts["wide"], bins.discretize(item["depth"])[None], len(bins))
        means.append(torch.where(counts > 0, sums / counts, math.nan))
    means = torch.stack(means)
    for b in range(len(bins)):
        there = means[~means[:, 0, b].isnan(), :, b]
        if len(there) > 1:
            torch.testing.assert_close(found[:, b], there.std(0), rtol=1e-5, atol=1e-7)
        else:
            assert found[:, b].isnan().all()
    assert found[:, 0].isnan().all()  # no toy is that near
    some = Explorer(MODEL, DATA, SEEN, spread_images=2)
    expected = response_spread(MODEL, Depths([DATA[0], DATA[2]]), SEEN)["wide"]
    torch.testing.assert_close(some.spread("wide"), expected, equal_nan=True)


def test_passes_over_images_are_made_once_and_say_how_far_they_are():
    class Bar:
        def __init__(self, total, desc):
            bars.append((desc, total, seen := []))
            self.update = seen.append

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    bars = []
    explorer = Explorer(MODEL, DATA, SEEN, effect_images=3, batch_size=2, progress=Bar)
    assert not bars
    for _ in range(2):
        explorer.spread("wide"), explorer.spread("deep"), explorer.effects("wide")
    assert [(desc, total) for desc, total, _ in bars] == [("spread", 5), ("units of wide", 8 * 3)]
    assert all(sum(seen) == total and len(seen) > 1 for _, total, seen in bars)


def test_orders():
    explorer = Explorer(MODEL, DATA, SEEN)
    for by in ORDERS:
        assert sorted(explorer.order("deep", by)) == list(range(16))
    ranked = SEEN.selectivity["deep"][explorer.order("deep")]
    assert ranked.tolist() == sorted(ranked.tolist(), reverse=True)
    assert explorer.order("deep", "assigned bin") == list(range(16))
    best = SEEN.response["deep"].abs().argmax(1)[explorer.order("deep", "strongest bin")]
    assert best.tolist() == sorted(best.tolist())
    total = explorer.effects("deep").total[explorer.order("deep", "causal effect")]
    assert total.tolist() == sorted(total.tolist(), reverse=True)
    with pytest.raises(ValueError, match="Unknown order 'size'. Known: selectivity"):
        explorer.order("deep", "size")


@pytest.mark.parametrize(("row", "column"), [(0, 0), (31, 39), (13, 22)])
def test_ask_a_pixel(row, column):
    view = EXPLORER.view(1)
    answer = view.ask(row, column, "deep")
    assert answer.depth == pytest.approx(upsampled(view.depth, (32, 40))[0, row, column].item())
    assert answer.truth == DATA[1]["depth"][0, row, column].item()
    assert answer.bin == SEEN.bins["deep"].discretize(torch.tensor(answer.depth)).item()
    assert answer.span[0] < answer.depth <= answer.span[1]
    units = answer.units
    response = SEEN.response["deep"][:, answer.bin].abs()
    assert units["share"].sum() == pytest.approx(1) and units["share"].is_monotonic_decreasing
    torch.testing.assert_close(
        torch.tensor(units["share"].to_numpy()), (response / response.sum())[units.index.tolist()]
    )
    here = upsampled(view.activations["deep"], (32, 40))[:, row, column]
    torch.testing.assert_close(torch.tensor(units["here"].to_numpy()), here[units.index.tolist()])
    strongest = SEEN.response["deep"].abs().argmax(1) == answer.bin
    assert units["strongest"].sort_index().tolist() == strongest.tolist()


def test_ask_where_the_dissection_knows_nothing():
    class Far(Net):
        def forward(self, image):
            return super().forward(image) * 0 + 50

    model = net(kind=Far)
    explorer = Explorer(model, DATA, dissect(model, DATA, LAYERS))
    answer = explorer.view(0).ask(3, 4, "wide")
    assert answer.bin is None and answer.depth == 50 and answer.units["share"].isna().all()
    near = Depths({**item, "depth": item["depth"].clamp(max=2)} for item in DATA)
    answer = Explorer(MODEL, DATA, dissect(MODEL, near, LAYERS)).view(0).ask(3, 4, "wide")
    assert answer.depth > 2 and answer.bin is not None and answer.units["share"].isna().all()


# ------------------------------------------------------------------ editing


def plain(units, answer, factor, index):
    """The depth by the contexts that a user has."""
    item = DATA[index]
    if answer == "corrected":
        context = correct(MODEL, SEEN, item["depth"][None], list(units), units=units)
    elif answer == "factor":
        context = scale(MODEL, units, factor=factor)
    else:
        context = ablate(MODEL, units, answer=answer, dissection=SEEN)
    with context:
        return predict(MODEL, item)


@pytest.mark.parametrize(
    "units", [{"wide": [3]}, {"deep": [0, 5, 7]}, {"deep": [1], "wide": [2, 4]}]
)
@pytest.mark.parametrize("answer", ANSWERS[:4])
def test_an_edit_is_what_the_whole_network_gives_and_its_code_too(units, answer):
    view = EXPLORER.view(3)
    edited = view.edit(units, answer=answer, factor=1.5)
    expected = plain(units, answer, 1.5, 3)
    torch.testing.assert_close(edited.depth, expected)
    assert not torch.equal(edited.depth, view.depth)
    names = {"model": MODEL, "dataset": DATA, "dissection": SEEN}
    code = view.code(units, answer=answer, factor=1.5)
    exec(code, names)
    torch.testing.assert_close(names["depth"], edited.depth)
    statement = code.split("\n\n")[1]
    assert len(statement.splitlines()) == 2
    assert not any(module._forward_hooks for module in MODEL.modules())


def test_the_code_without_an_edit():
    names = {"model": MODEL, "dataset": DATA}
    exec(EXPLORER.view(3).code(), names)
    assert torch.equal(names["depth"], EXPLORER.view(3).depth)


def test_numbers_by_depth_bin():
    view = EXPLORER.view(4)
    edited = view.edit({"wide": [2]})
    truth = DATA[4]["depth"]
    before, after = upsampled(view.depth, (32, 40)), upsampled(edited.depth, (32, 40))
    for row in edited.table.itertuples():
        inside = (truth > row.from_m) & (truth <= row.to_m)
        assert row.pixels == inside.sum()
        b, a, t = before[inside], after[inside], truth[inside]
        means = (a - b).abs(), a - b, (b - t).abs(), (a - t).abs()
        found = row.change, row.shift, row.error_before, row.error_after
        for value, mean in zip(found, means, strict=True):
            assert value == pytest.approx(mean.mean().item(), nan_ok=True, rel=1e-4, abs=1e-6)
    assert edited.table["pixels"].sum() == truth.numel()
    assert edited.mean("change") == pytest.approx((after - before).abs().mean().item(), rel=1e-4)
    assert torch.equal(edited.difference, edited.depth - view.depth)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(-3, 3), units=st.sets(st.integers(0, 7), min_size=1))
def test_scaling(factor, units):
    view, units = EXPLORER.view(0), {"wide": sorted(units)}
    found = view.edit(units, answer="factor", factor=factor)
    # Behind `wide` the network is linear, so a part of the edit does a part of the change.
    off = view.edit(units, answer="zero")
    torch.testing.assert_close(
        found.difference, (1 - factor) * off.difference, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("answer", ANSWERS[:4])
def test_effects_of_all_units(answer):
    effects = unit_effects(MODEL, DATA, SEEN, "wide", answer=answer, factor=0.5, batch_size=2)
    sums = torch.zeros(3, 8, 8, dtype=torch.float64)
    for index, item in enumerate(DATA):
        truth = item["depth"]
        before = upsampled(predict(MODEL, item), truth.shape[1:])
        where = SEEN.bins["wide"].discretize(truth)
        for k in range(8):
            after = upsampled(plain({"wide": [k]}, answer, 0.5, index), truth.shape[1:])
            change, worse = (after - before).abs(), (after - truth).abs() - (before - truth).abs()
            for row, value in zip(sums, (change, change / truth, worse), strict=True):
                for b in range(8):
                    row[k, b] += value[where == b].double().sum()
    assert torch.equal(effects.counts, SEEN.counts["wide"]) and effects.images == 5
    known = effects.counts > 0
    for found, expected in zip(
        (effects.change, effects.relative, effects.error), sums, strict=True
    ):
        expected = expected[:, known] / effects.counts[known]
        torch.testing.assert_close(found[:, known], expected, rtol=1e-3, atol=1e-6)
        assert found[:, ~known].isnan().all()
    torch.testing.assert_close(
        effects.total, sums[0].sum(1) / effects.counts.sum(), rtol=1e-3, atol=1e-6
    )


def test_what_cannot_be_recorded_runs_whole():
    class Decides(Net):
        def forward(self, image):
            x = self.wide(self.deep(image))
            return self.out(x) + (3 if x.mean() > 0 else 4)

    model = net(kind=Decides)
    explorer = Explorer(model, DATA, dissect(model, DATA, ["wide"]))
    with pytest.warns(UserWarning, match="Decides behind wide cannot be run alone"):
        found = explorer.view(0).edit({"wide": [1]})
    with ablate(model, {"wide": [1]}):
        torch.testing.assert_close(found.depth, predict(model, DATA[0]))


def test_further_inputs():
    class Scaled(Net):
        input_names = ("focal",)

        def forward(self, image, focal):
            return super().forward(image) * focal.view(-1, 1, 1, 1)

    model = net(kind=Scaled)
    data = Depths({**item, "focal": 1 + 0.1 * i} for i, item in enumerate(DATA))
    explorer = Explorer(model, data, dissect(model, data, ["wide"]))
    view = explorer.view(3)
    with ablate(model, {"wide": [0, 2]}):
        expected = predict(model, data[3])
    torch.testing.assert_close(view.edit({"wide": [0, 2]}).depth, expected)
    assert explorer.effects("wide").total.shape == (8,)
    with pytest.raises(ValueError, match="i0 has no 'focal'"):
        Explorer(model, DATA, explorer.dissection).view(0)


# ------------------------------------------------------------------ bad input


def test_nothing_to_explore():
    for pass_ in (Explorer, lambda *args: unit_effects(*args, "wide"), response_spread):
        with pytest.raises(ValueError, match="data set is empty"):
            pass_(MODEL, [], SEEN)
    with pytest.raises(ValueError, match="At least one image is needed; got 0"):
        Explorer(MODEL, DATA, SEEN, spread_images=0)
    for index in (5, -1):
        with pytest.raises(ValueError, match=f"images are 0 … 4; got {index}"):
            EXPLORER.view(index)


def test_a_dissection_of_another_model():
    class Other(Net):
        pass

    with pytest.raises(ValueError, match="made for the model 'Net', this one is 'Other'"):
        Explorer(net(kind=Other), DATA, SEEN)
    bare = nn.Conv2d(3, 1, 3)
    bare.name = "Net"
    with pytest.raises(ValueError, match="Unknown layer 'deep' of Conv2d"):
        Explorer(bare, DATA, SEEN)
    wider = net()
    wider.wide[0] = nn.Conv2d(16, 12, 1)
    wider.wide[1], wider.out = nn.BatchNorm2d(12), nn.Conv2d(12, 1, 1)
    words = "'wide' has 12 units, in the dissection 8: it was made for another model"
    with pytest.raises(ValueError, match=words):
        Explorer(wider, DATA, SEEN).view(0)
    with pytest.raises(ValueError, match=words):
        unit_effects(wider, DATA, SEEN, "wide")
    with pytest.raises(ValueError, match=words):
        response_spread(wider, DATA, SEEN)


def test_a_layer_or_unit_or_answer_that_is_not_there():
    view = EXPLORER.view(0)
    with pytest.raises(ValueError, match="'wide' has 8 units, 0 … 7; got unit 8"):
        view.edit({"wide": [2, 8]})
    with pytest.raises(ValueError, match="whole numbers from 0 on; got \\[-1\\]"):
        view.edit({"wide": [-1]})
    with pytest.raises(ValueError, match="more than once: \\[2\\]"):
        view.edit({"wide": [2, 2]})
    with pytest.raises(ValueError, match="Layer 'out' was not dissected. Known: deep, wide"):
        view.edit({"out": [0]})
    with pytest.raises(ValueError, match="Name the units to edit by layer.*got none"):
        view.edit({})
    with pytest.raises(ValueError, match="Unknown answer .on.. Known: zero, factor"):
        view.edit({"wide": [1]}, answer="on")
    with pytest.raises(ValueError, match="finite factor; got nan"):
        view.edit({"wide": [1]}, answer="factor", factor=math.nan)
    with pytest.raises(ValueError, match="8 units, 0 … 7; got unit 9"):
        EXPLORER.assigned("wide", 9)
    with pytest.raises(ValueError, match="Layer 'MFF' was not dissected"):
        EXPLORER.order("MFF")


@pytest.mark.parametrize("pixel", [(32, 0), (0, 40), (-1, 3), (3, -1)])
def test_a_pixel_outside_the_image(pixel):
    words = f"row {pixel[0]}, column {pixel[1]}.*outside the image: rows 0 … 31, columns 0 … 39"
    with pytest.raises(ValueError, match=words):
        EXPLORER.view(0).ask(*pixel, "wide")


def test_depth_that_is_not_measured():
    """NaN, below 0 or 0: the same, and counted nowhere."""

    def holes(value):
        def change(depth):
            depth[:, :10] = value
            return depth

        return with_depth(change)

    tables, totals, spreads = [], [], []
    for value in (0.0, math.nan, -1.0):
        data = holes(value)
        explorer = Explorer(MODEL, data, SEEN)
        view = explorer.view(0)
        assert (view.truth[:, :10] == 0).all() and view.ask(3, 3, "wide").truth == 0
        edited = view.edit({"wide": [2, 3, 4]}, answer="corrected")
        tables.append(torch.tensor(edited.table.to_numpy()))
        totals.append(explorer.effects("wide").total)
        spreads.append(explorer.spread("wide"))
    for found in (tables, totals, spreads):
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], equal_nan=True)
    assert tables[0][:, 2].sum() == 22 * 40 and totals[0].isfinite().all()


def test_an_image_without_any_measured_depth():
    explorer = Explorer(MODEL, with_depth(torch.zeros_like), SEEN)
    view = explorer.view(0)
    assert view.response("wide").isnan().all()
    edited = view.edit({"wide": [2, 3, 4]})
    assert edited.table["change"].isna().all() and math.isnan(edited.mean("change"))
    assert edited.difference.abs().max() > 0
    with pytest.raises(ValueError, match="nothing to correct by"):
        view.edit({"wide": [1]}, answer="corrected")
    nowhere = Depths({**item, "depth": torch.zeros(1, 32, 40)} for item in DATA)
    with pytest.raises(ValueError, match="No pixel of the 5 images has a depth inside the bins"):
        unit_effects(MODEL, nowhere, SEEN, "wide")


def test_a_layer_that_never_fires():
    model = net()
    with torch.no_grad():
        model.wide[1].bias.fill_(-100)
    seen = dissect(model, DATA, LAYERS)
    explorer = Explorer(model, DATA, seen)
    view = explorer.view(0)
    assert not view.activations["wide"].any()
    assert (explorer.units.loc["wide"]["selectivity"] == 0).all()
    assert explorer.order("wide", "causal effect") == list(range(8))
    assert (view.ask(3, 4, "wide").units["share"] == 0).all()
    assert not view.edit({"wide": [1, 2]}).difference.any()
    assert not explorer.spread("wide").nan_to_num(0).any()
    assert not explorer.effects("wide").total.any()


def test_what_gives_no_depth():
    class Pair(Net):
        def forward(self, image):
            return super().forward(image), 1

    with pytest.raises(ValueError, match="must return depth \\(b, 1, h, w\\) in metres.*got tuple"):
        Explorer(net(kind=Pair), DATA, _named(SEEN, "Pair")).view(0)
    item = {**DATA[0]}
    del item["depth"]
    with pytest.raises(ValueError, match="i0 has no 'depth'; it has image, name"):
        Explorer(MODEL, Depths([item]), SEEN).view(0)


def _named(dissection, model):
    return replace(dissection, about={"model": model})
