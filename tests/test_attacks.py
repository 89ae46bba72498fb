"""Attacks against captum's and by hand; errors traced to units whose part in them is known."""

import math
from dataclasses import replace

import captum.robust
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import TRAIN, net

from mde_utils import attacks
from mde_utils.attacks import Repair, fgsm, pgd, random_repair, repair, trace_errors
from mde_utils.data import load_dataset
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import Dissection, dissect
from mde_utils.losses import balanced_loss
from mde_utils.models import build_model

NYU = (0.75, 10.0)
LAYER = "tuned"
pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require:UserWarning")


def stack(items):
    batch = {k: torch.stack([i[k] for i in items]) for k in ("image", "depth")}
    return batch | {"name": [i.get("name", "?") for i in items]}


@pytest.fixture
def batch():
    return stack(TRAIN[:3])


@pytest.fixture(scope="module")
def rooms():
    """The shipped network that is trained by assignment, with one image pair of rooms."""
    torch.set_num_threads(1)
    model = build_model("meter_xxs", weights="rooms", variant="assign").eval()
    return model, stack(list(load_dataset("rooms", "test", size=(128, 192), limit=2)))


# ------------------------------------------------------------------ a network without secrets


class Bumps(nn.Module):
    """Unit k answers to depth around its own centre."""

    def __init__(self, centres, dead):
        super().__init__()
        self.register_buffer("centres", centres.log().float().view(1, -1, 1, 1))
        alive = [float(k not in dead) for k in range(len(centres))]
        self.register_buffer("alive", torch.tensor(alive).view(1, -1, 1, 1))

    def forward(self, depth):
        return (-((depth.log() - self.centres) ** 2) / 0.03).exp() * self.alive


class Tuned(nn.Module):
    """Depth from units that are tuned to the bins; a grey value g stands for 1 + 9 g metres."""

    depth_range = NYU

    def __init__(self, units=8, dead=()):
        super().__init__()
        edges = DepthBins.sid(units, *NYU).edges
        centres = (edges[1:] * edges[:-1].clamp(min=0.5)).sqrt()
        self.tuned = Bumps(centres, dead)
        self.register_buffer("centres", centres.float().view(1, -1, 1, 1))

    def forward(self, image):
        a = self.tuned(1 + 9 * image.mean(1, keepdim=True))
        return (a * self.centres).sum(1, keepdim=True) / (a.sum(1, keepdim=True) + 1e-6)


def shades(*depths, width=6):
    """Grey images of these depths, a column of pixels each, and the batch of them."""
    depth = torch.tensor(depths).view(-1, 1, 1, 1).expand(-1, 1, 4, width).contiguous()
    image = ((depth - 1) / 9).clamp(0, 1).expand(-1, 3, -1, -1).contiguous()
    return {"image": image, "depth": depth, "name": [f"{d:g} m" for d in depths]}


def moved(batch, *depths):
    """The attack that makes the images look as if they lay at these depths."""
    return shades(*depths, width=batch["image"].shape[-1])["image"]


@pytest.fixture(scope="module")
def tuned():
    model = Tuned()
    grey = torch.linspace(0, 1, 4000)
    image = grey.expand(3, 1, -1)
    seen = dissect(model, [{"image": image, "depth": 1 + 9 * grey[None, None]}], [LAYER])
    return model, seen


def bin_of(depth, units=8):
    return DepthBins.sid(units, *NYU).discretize(torch.tensor(depth)).item()


# ------------------------------------------------------------------ attacks


def summed(pred, target):
    target = nn.functional.interpolate(target, pred.shape[-2:], mode="nearest-exact")
    pairs = zip(pred.split(1), target.split(1), strict=True)
    return torch.stack([attacks.mean_absolute_error(p, y) for p, y in pairs])


def captums(kind, model):
    attack = kind(model, summed, lower_bound=0.0, upper_bound=1.0)
    getattr(attack, "fgsm", attack).zero_thresh = 0  # it leaves out gradients below 1e-6
    return attack


def with_gaps(batch):
    depth = batch["depth"].clone()
    depth[:, :, :8] = 0
    depth[:, :, 8:10] = math.nan
    return batch | {"depth": depth}


def test_fgsm_is_captums(rooms):
    model, batch = rooms
    for model, batch in (rooms, (net().eval(), with_gaps(stack(TRAIN[:3])))):
        theirs = captums(captum.robust.FGSM, model).perturb(
            batch["image"].clone(), 0.05, batch["depth"]
        )
        ours = fgsm(model, batch, epsilon=0.05)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert (ours - batch["image"]).abs().max() > 0.049


def test_pgd_is_captums(rooms):
    for model, batch in (rooms, (net().eval(), with_gaps(stack(TRAIN[:3])))):
        theirs = captums(captum.robust.PGD, model).perturb(
            batch["image"].clone(), 0.03, 0.01, 4, batch["depth"]
        )
        ours = pgd(model, batch, epsilon=0.03, steps=4, step_size=0.01, random_start=False)
        # A last bit of rounding may turn the sign of a gradient that is almost 0.
        assert ((ours - theirs).abs() < 1e-6).double().mean() > 0.999


def test_fgsm_by_hand():
    """Brighter is farther, and the error grows away from the truth."""
    model, batch = Tuned(), shades(3.0, 5.0)
    batch["depth"][0] += 0.5  # the prediction lies before the truth, so the image gets darker
    batch["depth"][1] -= 0.5
    step = fgsm(model, batch, epsilon=0.1) - batch["image"]
    torch.testing.assert_close(step[0], torch.full_like(step[0], -0.1))
    torch.testing.assert_close(step[1], torch.full_like(step[1], 0.1))


def test_pixels_without_depth_and_other_images_do_not_count(batch):
    model = net().eval()
    whole = fgsm(model, with_gaps(batch), epsilon=0.05)
    other = with_gaps(batch)
    other["depth"][:, :, :8] = -3
    assert torch.equal(fgsm(model, other, epsilon=0.05), whole)
    alone = [fgsm(model, stack([item]), epsilon=0.05) for item in TRAIN[:3]]
    together = fgsm(model, batch, epsilon=0.05)
    assert (torch.cat(alone) - together).abs().lt(1e-6).double().mean() > 0.999


@settings(max_examples=25, deadline=None)
@given(
    epsilon=st.floats(0, 1),
    steps=st.integers(1, 4),
    step_size=st.none() | st.floats(0.001, 2),
    random_start=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attacks_stay_in_the_ball(epsilon, steps, step_size, random_start, seed):
    model, batch = net().eval(), stack(TRAIN[:2])
    options = dict(steps=steps, step_size=step_size, random_start=random_start, seed=seed)
    for image in (
        fgsm(model, batch, epsilon=epsilon),
        pgd(model, batch, epsilon=epsilon, **options),
    ):
        assert image.min() >= 0 and image.max() <= 1
        assert (image - batch["image"]).abs().max() <= epsilon + 1e-6
        if epsilon == 0:
            assert torch.equal(image, batch["image"])


def test_attacks_raise_the_loss(rooms):
    model, batch = rooms
    loss = {}
    for name, image in {
        "clean": batch["image"],
        "fgsm": fgsm(model, batch, epsilon=0.02),
        "pgd": pgd(model, batch, epsilon=0.02, steps=8),
    }.items():
        with torch.no_grad():
            loss[name] = summed(model(image), batch["depth"]).sum().item()
    assert 1.2 * loss["clean"] < loss["fgsm"] < loss["pgd"]


def test_pgd_start_is_drawn_from_its_seed_alone(batch):
    model = net().eval()
    before = torch.get_rng_state()
    first, again, other = (pgd(model, batch, epsilon=0.05, steps=2, seed=s) for s in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_model_is_left_as_it_was(batch):
    model = net().train()
    model.wide.eval()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    image = batch["image"].clone()
    evaluated = fgsm(net().eval(), batch, epsilon=0.05)
    with torch.no_grad():  # as in a notebook that has no gradient elsewhere
        assert torch.equal(fgsm(model, batch, epsilon=0.05), evaluated)
    pgd(model, batch, epsilon=0.05, steps=2)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in model.parameters())
    assert torch.equal(batch["image"], image) and not batch["image"].requires_grad


def test_any_loss_of_pred_and_target():
    model, batch = net().eval(), stack(TRAIN[:2])
    shapes = []

    def loss(pred, target):
        shapes.append((tuple(pred.shape), tuple(target.shape)))
        return balanced_loss(pred, target)

    image = fgsm(model, batch, epsilon=0.05, loss=loss)
    assert shapes == [((1, 1, 16, 20), (1, 1, 16, 20))] * 2
    assert not torch.equal(image, fgsm(model, batch, epsilon=0.05))


def test_inputs_of_the_model_are_passed(batch):
    class Focal(nn.Module):
        input_names = ("focal",)

        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, image, focal):
            return self.net(image) * focal.view(-1, 1, 1, 1) / 500

    image = fgsm(Focal(), batch | {"focal": torch.tensor([500.0, 500.0, -500.0])}, epsilon=0.05)
    plain = fgsm(net(), batch, epsilon=0.05)
    assert torch.equal(image[:2], plain[:2]) and not torch.equal(image[2], plain[2])
    with pytest.raises(ValueError, match="batch has no 'focal'; it has image, depth, name"):
        fgsm(Focal(), batch, epsilon=0.05)


@pytest.mark.parametrize("epsilon", [-0.01, 1.01, 8, math.nan, math.inf])
def test_epsilon_outside_the_pixel_range(epsilon, batch):
    for attack in (fgsm, pgd):
        with pytest.raises(ValueError, match=r"epsilon .* \[0, 1\]; got"):
            attack(net(), batch, epsilon=epsilon)


def test_steps_that_lead_nowhere(batch):
    for steps in (0, -1, 2.5):
        with pytest.raises(ValueError, match="steps, at least 1; got"):
            pgd(net(), batch, epsilon=0.05, steps=steps)
    for size in (0, -0.1, math.nan):
        with pytest.raises(ValueError, match="step size must be above 0"):
            pgd(net(), batch, epsilon=0.05, step_size=size)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_images_without_valid_depth_are_named(batch, value, tuned):
    batch["depth"][1] = value
    with pytest.raises(ValueError, match=r"No valid depth .*\(16, 20\): i1\. Leave"):
        fgsm(net(), batch, epsilon=0.05)
    with pytest.raises(ValueError, match=r"No valid depth .*: i1\. Leave"):
        trace_errors(*(tuned[0], batch, tuned[1], [LAYER]), attacked=batch["image"])
    del batch["name"]
    with pytest.raises(ValueError, match="No valid depth .*: image 1"):
        pgd(net(), batch, epsilon=0.05)


def test_images_that_are_none(batch):
    for image, message in (
        (batch["image"] * 255, "Divide|normalises"),
        (batch["image"] * math.nan, "values from nan"),
        ((batch["image"] * 255).byte(), "float tensor"),
        (batch["image"][0], "float tensor"),
    ):
        with pytest.raises(ValueError, match=message):
            fgsm(net(), batch | {"image": image}, epsilon=0.05)
    with pytest.raises(ValueError, match=r"depth must be \(B, 1, H, W\) for 3 images"):
        fgsm(net(), batch | {"depth": batch["depth"][:2]}, epsilon=0.05)


def test_gradient_that_never_arrives(batch):
    class Odd(nn.Module):
        def __init__(self, change):
            super().__init__()
            self.net, self.change = net(), change

        def forward(self, image):
            return self.change(self.net(image))

    for change in (torch.detach, lambda x: torch.ones_like(x, requires_grad=True)):
        with pytest.raises(ValueError, match="no gradient with respect to the image"):
            fgsm(Odd(change), batch, epsilon=0.05)
    with pytest.raises(ValueError, match="is 0 everywhere: i0, i1, i2"):
        fgsm(Odd(lambda x: x * 0 + 3), batch, epsilon=0.05)
    with pytest.raises(ValueError, match="gradient .* is not finite: i0, i1, i2"):
        fgsm(Odd(lambda x: (x * 0).sqrt() + 3), batch, epsilon=0.05)
    with pytest.raises(ValueError, match="prediction holds NaN or infinity: i0"):
        fgsm(Odd(lambda x: x / 0), batch, epsilon=0.05)
    with pytest.raises(ValueError, match=r"must return depth \(B, 1, h, w\).*got \(3, 2, 16, 20\)"):
        fgsm(Odd(lambda x: torch.cat([x, x], 1)), batch, epsilon=0.05)


# ------------------------------------------------------------------ errors and units


def test_errors_go_where_the_attack_sends_them(tuned):
    """1.5 m looks like 6 m, 2 m stays; so unit and bin of 6 m hold all errors."""
    batch = shades(1.5, 2.0)
    trace = trace_errors(*(tuned[0], batch, tuned[1], [LAYER]), attacked=moved(batch, 6.0, 2.0))
    near, far = bin_of(1.5), bin_of(6.0)
    assert trace.d1 == {"clean": 1.0, "attacked": 0.5}
    clean, attacked = (trace.transport[k][LAYER] for k in ("clean", "attacked"))
    assert clean[near, near] == 24 and clean.sum() == attacked.sum() == 48
    assert attacked[near, far] == 24 and attacked[bin_of(2.0), bin_of(2.0)] == 24
    assert trace.errors["clean"][LAYER].sum() == 0
    assert trace.errors["attacked"][LAYER].tolist() == [24 * (i == far) for i in range(9)]
    assert trace.missed[LAYER].tolist() == [24 * (i == near) for i in range(9)]
    units = trace.units.set_index("unit")
    assert units.loc[far, ["bin", "error_share", "missed_share"]].tolist() == [far, 1, 0]
    assert units.loc[near, ["bin", "error_share", "missed_share"]].tolist() == [near, 0, 1]
    assert units.loc[far, "from_m"] < 6 <= units.loc[far, "to_m"]
    assert set(trace.blamed(3, LAYER)[LAYER]) == {far, near}
    assert trace.blamed(3, score="excess") == {LAYER: [far]}
    rest = units.drop([near, far])
    assert (rest["blame"] == 0).all() and rest["repaired_clean"].isna().all()
    table = trace.concentration(LAYER)
    assert table.loc[("attacked", "errors"), "bins_half"] == 1
    assert table.loc[("attacked", "errors"), "entropy"] == 0
    assert table.loc[("attacked", "all"), "entropy"] == pytest.approx(math.log(2) / math.log(9))
    assert table.loc[("clean", "errors"), "count"] == 0
    assert math.isnan(table.loc[("clean", "errors"), "bins_half"])


def test_blame_is_excess_where_predicted_and_lack_where_true(tuned):
    model, seen = tuned
    batch = shades(1.5, 2.0, 2.0)
    attacked = moved(batch, 6.0, 3.0, 6.5)
    trace = trace_errors(model, batch, seen, [LAYER], attacked=attacked, num_units=0)
    with torch.no_grad():
        after, before = (model.tuned(1 + 9 * x[:, :1, :1, :1]) for x in (attacked, batch["image"]))
        change = (after - before)[:, :, 0, 0] / seen.response[LAYER].amax(1).mean()
        pred = model(attacked)[:, 0, 0, 0]
    bins = DepthBins.sid(8, *NYU)
    came, went = bins.discretize(batch["depth"][:, 0, 0, 0]), bins.discretize(pred)
    assert len(set(went.tolist())) > 1 and not set(went.tolist()) & set(came.tolist())
    for row in trace.units.itertuples():
        here, gone = went == row.bin, came == row.bin
        excess, lack = change[here, row.unit].sum() / 3, -change[gone, row.unit].sum() / 3
        assert (row.excess, row.lack) == pytest.approx((excess.item(), lack.item()), abs=1e-6)
        assert row.blame == pytest.approx(row.excess + row.lack)
        assert row.error_share == pytest.approx(here.double().mean().item())
        assert row.missed_share == pytest.approx(gone.double().mean().item())
    assert trace.units["blame"].is_monotonic_decreasing
    assert set(trace.blamed(9)[LAYER]) == set(went.tolist()) | set(came.tolist())
    assert set(trace.blamed(9, score="excess")[LAYER]) == set(went.tolist())
    measured = trace_errors(model, batch, seen, [LAYER], attacked=attacked)
    columns = ["layer", "unit", "blame"]
    pd.testing.assert_frame_equal(trace.units[columns], measured.units[columns])


def test_setting_back_every_unit_gives_the_clean_prediction(rooms):
    model, batch = rooms
    seen = dissect(model, [dict(image=i, depth=d) for i, d in pairs(batch)], ["dec_3"])
    attacked = fgsm(model, batch, epsilon=0.03)
    trace = trace_errors(model, batch, seen, ["dec_3"], attacked=attacked, num_units=2)
    assert trace.d1["attacked"] < trace.d1["clean"]
    units = {"dec_3": range(len(seen.response["dec_3"]))}
    everything = repair(model, batch, seen, ["dec_3"], units, attacked=attacked)
    now, then = (trace.errors[k]["dec_3"].sum().item() for k in ("attacked", "clean"))
    assert everything.errors == now and now - everything.repaired + everything.caused == then
    for row in trace.units.head(2).itertuples():
        for value, share in (("clean", row.repaired_clean), ("corrected", row.repaired_corrected)):
            alone = {"dec_3": [row.unit]}
            one = repair(model, batch, seen, ["dec_3"], alone, attacked=attacked, value=value)
            assert one.share == share and one == trace.repairs[value]["dec_3", row.unit]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def pairs(batch):
    return zip(batch["image"], batch["depth"], strict=True)


def test_units_of_the_wrong_bin_repair_more_than_random_ones(tuned):
    """Where units are perfectly tuned: unit of the wrong bin off, unit of the right bin on."""
    model, seen = tuned
    batch = shades(1.5, 2.0, 4.0)
    attacked = moved(batch, 6.0, 6.0, 9.0)
    options = dict(attacked=attacked)
    far = {LAYER: [bin_of(6.0), bin_of(1.5), bin_of(2.0)]}
    for value in ("clean", "corrected"):
        blamed = repair(model, batch, seen, [LAYER], far, value=value, **options)
        assert blamed == Repair(72, 48, 0) and blamed.share == blamed.net == pytest.approx(2 / 3)
        draws = random_repair(
            *(model, batch, seen, [LAYER], far), value=value, num_draws=12, seed=1, **options
        )
        assert len(draws) == 12 and len(set(draws)) > 1
        assert sum(d.share for d in draws) / 12 < blamed.share / 2
        again = random_repair(
            *(model, batch, seen, [LAYER], far), value=value, num_draws=12, seed=1, **options
        )
        assert draws == again


def test_random_units_are_as_many_of_each_layer_and_alike_for_every_batch(tuned, monkeypatch):
    model, seen = tuned
    drawn = []

    def watch(case, units, value):
        drawn.append(units)
        return Repair(1, 0, 0)

    monkeypatch.setattr(attacks._Case, "set_back", watch)
    for depth in (2.0, 5.0):
        batch = shades(depth)
        units = {LAYER: [0, 5, 2]}
        random_repair(
            *(model, batch, seen, [LAYER], units), attacked=batch["image"], num_draws=4, seed=7
        )
    assert drawn[:4] == drawn[4:] and len({tuple(d[LAYER]) for d in drawn}) > 1
    assert all(len(set(d[LAYER])) == 3 and set(d[LAYER]) <= set(range(8)) for d in drawn)


def test_repairs_add_up():
    assert Repair(10, 4, 1) + Repair(10, 0, 2) == Repair(20, 4, 3)
    assert Repair(10, 4, 1).share == 0.4 and Repair(10, 4, 1).net == pytest.approx(0.3)
    assert math.isnan(Repair(0, 0, 0).share) and math.isnan(Repair(0, 0, 0).net)


def test_traces_of_batches_add_up(tuned):
    model, seen = tuned
    one, two = shades(1.5, 2.0), shades(3.0, width=9)
    both = shades(1.5, 2.0, 3.0)
    goals = (6.0, 6.5), (8.0,)
    traces = [
        trace_errors(model, b, seen, [LAYER], attacked=moved(b, *g), units={LAYER: [5, 6, 7]})
        for b, g in zip((one, shades(3.0)), goals, strict=True)
    ]
    whole = trace_errors(
        model,
        both,
        seen,
        [LAYER],
        attacked=moved(both, *goals[0], *goals[1]),
        units={LAYER: [7, 6]},
    )
    total = traces[0] + traces[1]
    assert total.names == whole.names and total.d1 == whole.d1
    for k in ("clean", "attacked"):
        assert torch.equal(total.transport[k][LAYER], whole.transport[k][LAYER])
        assert torch.equal(total.errors[k][LAYER], whole.errors[k][LAYER])
    columns = ["layer", "unit", "error_pixels", "blame"]
    pd.testing.assert_frame_equal(total.units[columns], whole.units[columns])
    assert total.repairs["clean"].keys() == {(LAYER, 5), (LAYER, 6), (LAYER, 7)}
    for unit in (6, 7):
        assert total.repairs["clean"][LAYER, unit] == whole.repairs["clean"][LAYER, unit]
    # Measured for one batch only: not a number for both.
    assert (total + whole).repairs["clean"].keys() == {(LAYER, 6), (LAYER, 7)}
    # Another size is no obstacle.
    other = trace_errors(model, two, seen, [LAYER], attacked=two["image"])
    assert len((total + other).clean) == 4

    best = trace_errors(model, one, seen, [LAYER], attacked=one["image"], by="best")
    with pytest.raises(ValueError, match="Only traces by one dissection"):
        total + best


def test_a_data_set_is_its_batches(rooms, monkeypatch):
    """In batches of 3, the last one smaller: the same as all at once."""
    model, batch = rooms
    items = [{k: batch[k][i % 2] for k in ("image", "depth")} for i in range(5)]
    seen = dissect(model, items, ["dec_3"])
    whole = {k: torch.stack([item[k] for item in items]) for k in ("image", "depth")}
    monkeypatch.setattr(attacks, "BATCH", 3)
    attacked = fgsm(model, items, epsilon=0.05)
    assert attacked.shape == whole["image"].shape
    assert (attacked == fgsm(model, whole, epsilon=0.05)).float().mean() > 0.999
    given = (model, items, seen, ["dec_3"]), (model, whole, seen, ["dec_3"])
    ours, theirs = (trace_errors(*g, attacked=attacked, num_units=2) for g in given)
    columns = ["unit", "error_pixels", "blame", "repaired_clean", "caused_corrected"]
    pd.testing.assert_frame_equal(ours.units[columns], theirs.units[columns], atol=1e-4)
    units = ours.blamed(2)
    assert ours.names[-1] == "image 4" and ours.units["repaired_clean"].notna().sum() == 2
    for together, of_all in (
        [repair(*g, units, attacked=attacked) for g in given],
        *zip(
            *(random_repair(*g, units, attacked=attacked, num_draws=2) for g in given), strict=True
        ),
    ):
        assert (together.errors, together.repaired) == pytest.approx(
            (of_all.errors, of_all.repaired), abs=3
        )
    with pytest.raises(ValueError, match="4 attacked images, but 5 in the data set"):
        repair(*given[0], units, attacked=attacked[:4])


def test_no_error_no_blame(tuned):
    batch = shades(2.0, 5.0)
    trace = trace_errors(*(tuned[0], batch, tuned[1], [LAYER]), attacked=batch["image"])
    assert trace.d1 == {"clean": 1.0, "attacked": 1.0}
    assert trace.blamed(8) == {} and (trace.units["blame"] == 0).all()
    assert (trace.units["error_share"] == 0).all() and trace.units["repaired_clean"].isna().all()
    assert math.isnan(trace.concentration(LAYER).loc[("attacked", "errors"), "entropy"])


def test_dead_units_and_depth_beyond_the_bins():
    far = bin_of(6.0)
    model = Tuned(dead=[far])
    grey = torch.linspace(0, 1, 2000)
    item = {"image": grey.expand(3, 1, -1), "depth": 1 + 9 * grey[None, None]}
    seen = dissect(model, [item], [LAYER])
    batch = shades(1.5, 2.0)
    batch["depth"][1] = 40.0  # measured, and beyond the last edge
    trace = trace_errors(model, batch, seen, [LAYER], attacked=moved(batch, 6.0, 2.0))
    units = trace.units.set_index("unit")
    assert units.loc[far, "blame"] == 0 and units["blame"].notna().all()
    assert trace.transport["clean"][LAYER][8].sum() == 24  # the overflow has its own row
    assert trace.d1["clean"] == 0.5


def test_bin_of_a_unit(tuned):
    _, seen = tuned
    flipped = Dissection(
        sums={LAYER: seen.sums[LAYER].flip(0)}, pixels=seen.pixels, bins=seen.bins, images=1
    )
    batch = shades(2.0)
    for by, last in (("assigned", 7), ("best", seen.response[LAYER][0].argmax().item())):
        trace = trace_errors(
            *(tuned[0], batch, flipped, [LAYER]), attacked=batch["image"], by=by, num_units=0
        )
        assert trace.unit_bins[LAYER][7] == last
    with pytest.raises(ValueError, match="Unknown by='first'. Known: assigned, best"):
        trace_errors(*(tuned[0], batch, flipped, [LAYER]), attacked=batch["image"], by="first")


def test_bad_input_is_named(tuned):
    model, seen = Tuned(), tuned[1]
    batch = shades(1.5, 2.0)
    image = batch["image"]
    case = (model, batch, seen, [LAYER])
    for attacked, message in (
        (image[:1], r"attacked image is \(1, 3, 4, 6\), the batch's \(2, 3, 4, 6\)"),
        (image + 1, r"attacked image must lie in \[0, 1\]; got values from 1\.0"),
        (image - 0.5, r"attacked image must lie in \[0, 1\]"),
        (image * math.nan, "attacked image must lie in"),
        (None, r"attacked image must be a float tensor.*NoneType"),
    ):
        with pytest.raises(ValueError, match=message):
            trace_errors(*case, attacked=attacked)
        with pytest.raises(ValueError, match=message):
            repair(*case, {LAYER: [0]}, attacked=attacked)
    with pytest.raises(ValueError, match="Unknown layer 'other' of Tuned"):
        trace_errors(model, batch, seen, ["other"], attacked=image)
    model.spare = nn.Identity()
    with pytest.raises(ValueError, match="'spare' was not dissected. Known: tuned"):
        trace_errors(model, batch, seen, [LAYER, "spare"], attacked=image)
    other = replace(seen, about={"model": "mff_resnet50"})
    with pytest.raises(ValueError, match="made for the model 'mff_resnet50', this one is 'Tuned'"):
        trace_errors(model, batch, other, [LAYER], attacked=image)
    with pytest.raises(ValueError, match="has 16 units, in the dissection 8"):
        trace_errors(Tuned(16), batch, seen, [LAYER], attacked=image)
    for threshold in (1, 0.5, math.nan):
        with pytest.raises(ValueError, match="threshold is a ratio above 1"):
            trace_errors(*case, attacked=image, threshold=threshold)
    with pytest.raises(ValueError, match="num_units must not be negative"):
        trace_errors(*case, attacked=image, num_units=-1)
    with pytest.raises(ValueError, match="Unknown value 'right'. Known: clean, corrected"):
        repair(*case, {LAYER: [0]}, attacked=image, value="right")
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        random_repair(*case, {LAYER: [0]}, attacked=image, num_draws=0)
    for units, message in (
        ({}, "No units given"),
        ({LAYER: []}, "No units given"),
        ({LAYER: [8]}, r"has units 0 … 7; got \[8\]"),
        ({LAYER: [-1]}, r"has units 0 … 7; got \[-1\]"),
        ({LAYER: [1, 1]}, "more than once"),
        ({"other": [1]}, "Units of layer 'other', but the layers are"),
    ):
        for function in (repair, random_repair):
            with pytest.raises(ValueError, match=message):
                function(*case, units, attacked=image)
    trace = trace_errors(*case, attacked=image, num_units=0)
    with pytest.raises(ValueError, match="'other' was not traced. Known: tuned"):
        trace.concentration("other")
