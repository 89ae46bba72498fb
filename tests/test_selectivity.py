"""The formulas against plain loops, and the golden numbers of the two definitions."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.depth_bins import DepthBins
from mde_utils.selectivity import (
    SelectivityLoss,
    assigned_bins,
    average_response,
    depth_selectivity,
    fold_overflow,
    layer_bins,
    pool_by_bin,
    pool_layers,
    selectivity_floors,
)

NYU = (0.75, 10.0)


def plain_loop(activation, bins, num_bins):
    """What pool_by_bin computes, as the formula reads: upsample, mask, sum."""
    up = F.interpolate(activation, size=bins.shape[-2:], mode="bilinear", align_corners=False)
    sums = torch.zeros(activation.shape[1], num_bins, dtype=torch.float64)
    counts = torch.zeros(num_bins, dtype=torch.float64)
    for image, image_bins in zip(up, bins, strict=True):
        for b in range(num_bins):
            mask = image_bins == b
            sums[:, b] = sums[:, b] + (image.double() * mask).sum((1, 2))
            counts[b] += mask.sum()
    return sums, counts


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 9),
    st.integers(0, 2**31),
)
def test_pooling_is_the_plain_loop(b, k, small, large, n, seed):
    """Any sizes: enlarging, shrinking, equal, and by no whole factor."""
    generator = torch.Generator().manual_seed(seed)
    activation = torch.randn(b, k, *small, generator=generator)
    bins = torch.randint(-1, n, (b, *large), generator=generator)
    sums, counts = pool_by_bin(activation, bins, n)
    expected, expected_counts = plain_loop(activation, bins, n)
    assert sums.dtype == counts.dtype == torch.float64 and sums.shape == (k, n)
    torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-5 * large[0] * large[1])
    response, same_counts = average_response(activation, bins, n)  # equation 1
    expected_response = expected / (expected_counts + 1e-15)
    torch.testing.assert_close(response, expected_response, rtol=0, atol=1e-5)
    assert torch.equal(counts, expected_counts) and torch.equal(same_counts, counts)


def test_pooling_has_the_gradient_of_the_plain_loop():
    torch.manual_seed(0)
    bins = torch.randint(-1, 7, (2, 30, 41))
    weight = torch.randn(5, 7, dtype=torch.float64)
    grads = []
    for pool in (pool_by_bin, plain_loop):
        activation = torch.randn(2, 5, 7, 9, generator=torch.Generator().manual_seed(1))
        activation.requires_grad_()
        sums, counts = pool(activation, bins, 7)
        (sums / counts * weight).sum().backward()
        grads.append(activation.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_bins", [7, 300])  # more than eight bits hold
@pytest.mark.parametrize("size", [(15, 20), (30, 41)])
def test_pooling_at_the_size_of_the_bins(monkeypatch, layout, num_bins, size):
    """Sums are split into runs of pixels; the gradient has the memory format of the activation."""
    monkeypatch.setattr("mde_utils.selectivity._RUN", 17)
    generator = torch.Generator().manual_seed(0)
    bins = torch.randint(-1, num_bins, (2, 15, 20), generator=generator)
    bins[0, 3:6] = num_bins - 1
    weight = torch.randn(5, num_bins, dtype=torch.float64, generator=generator)
    values = torch.randn(2, 5, *size, generator=generator)
    found = []
    for pool in (pool_by_bin, plain_loop):
        activation = values.clone(memory_format=layout).requires_grad_()
        sums, counts = pool(activation, bins, num_bins)
        (gradient,) = torch.autograd.grad((sums * weight).sum(), activation)
        assert pool is plain_loop or gradient.is_contiguous(memory_format=layout)
        found.append((sums, counts, gradient))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_a_long_sum_keeps_its_digits():
    """One value on very many pixels: in float32 alone the sum would drift."""
    activation = torch.full((1, 2, 1024, 1024), 0.1)
    sums, _ = pool_by_bin(activation, torch.zeros(1, 1024, 1024, dtype=torch.long), 2)
    assert sums[:, 0].tolist() == pytest.approx([activation[0, 0, 0, 0].item() * 2**20] * 2, 5e-6)


def test_pooling_takes_the_table_in_parts(monkeypatch):
    """Memory is bounded by working on a few images at a time; the sums do not change."""
    activation, bins = torch.randn(5, 3, 4, 6), torch.randint(-1, 4, (5, 1, 16, 24))
    whole = pool_by_bin(activation, bins, 4)
    monkeypatch.setattr("mde_utils.selectivity._TABLE", 1)
    for a, b in zip(whole, pool_by_bin(activation, bins, 4), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_pooling_in_half_precision_and_channels_last():
    activation, bins = torch.randn(2, 4, 6, 8), torch.randint(0, 5, (2, 24, 32))
    exact, _ = pool_by_bin(activation.bfloat16().float(), bins, 5)
    with torch.autocast("cpu", torch.bfloat16):
        half = activation.bfloat16().contiguous(memory_format=torch.channels_last)
        sums, _ = pool_by_bin(half, bins, 5)
    torch.testing.assert_close(sums, exact, rtol=1e-5, atol=1e-5)


def test_layers_pooled_together_are_the_layers_pooled_alone():
    torch.manual_seed(0)
    depth = torch.rand(3, 1, 24, 32) * 12 - 1
    depth[0, 0, 0, :5] = float("nan")
    acts = {
        "a": torch.randn(3, 8, 6, 8),
        "b": torch.randn(3, 24, 6, 8),
        "c": torch.randn(3, 100, 24, 32),
        "d": torch.randn(3, 5, 3, 4),
    }
    bins = {k: layer_bins(a.shape[1], NYU) for k, a in acts.items()}
    bins["d"] = DepthBins.sid(5, 1.5, 6)  # another range beside the others
    pooled = pool_layers(acts, depth, bins)
    for name, a in acts.items():
        for overflow, definition in (("ignore", "paper"), ("first", "reference")):
            own = DepthBins(bins[name].edges, overflow)
            expected, counts = pool_by_bin(a, own.discretize(depth), own.num_bins)
            sums, n = fold_overflow(*pooled[name], definition)
            torch.testing.assert_close(sums, expected, rtol=1e-5, atol=1e-3)
            assert torch.equal(n, counts)


@pytest.mark.parametrize(
    "activation, bins, message",
    [
        ((2, 3, 4, 4), (1, 8, 8), "same images"),
        ((2, 3, 4), (2, 8, 8), "same images"),
        ((2, 3, 4, 4), (2, 2, 8, 8), "same images"),
        ((2, 3, 4, 4), (2, 0, 8), "at least one pixel"),
    ],
)
def test_pooling_refuses_shapes_that_do_not_belong_together(activation, bins, message):
    with pytest.raises(ValueError, match=message):
        pool_by_bin(torch.zeros(activation), torch.zeros(bins, dtype=torch.long), 4)


def test_pooling_refuses_bins_out_of_range():
    with pytest.raises(ValueError, match=r"-1 … 3 \(num_bins=4\); got 0 … 4"):
        pool_by_bin(torch.zeros(1, 1, 2, 2), torch.tensor([[[0, 4]]]), 4)


# ------------------------------------------------------------------ depth selectivity


@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_golden_selectivities(definition):
    one_hot = torch.eye(64, dtype=torch.float64)[:1]
    constant_zero = torch.zeros(1, 64)
    ramp64 = torch.arange(64.0)[None] + 1
    ramp32 = torch.arange(32.0)[None] + 1
    values = [
        depth_selectivity(r, torch.ones(r.shape[1]), definition=definition).item()
        for r in (one_hot, constant_zero, ramp64, ramp32, -ramp64)
    ]
    assert values[0] == pytest.approx(1) and values[1] == 0
    # Linear in the bin index, from 0: 0.3404 and 0.3478; see the next test for that start.
    assert values[2] == values[4]
    assert values[3] == pytest.approx((32 - 16) / (32 + 16))


def test_a_unit_linear_in_the_bin_index():
    for n, expected in ((64, 0.3404), (32, 0.3478)):
        ramp = torch.arange(n, dtype=torch.float64)[None]
        assert depth_selectivity(ramp).item() == pytest.approx(expected, abs=5e-5)


def test_monte_carlo_means_of_uniform_responses():
    torch.manual_seed(0)
    for n, expected in ((8, 0.3406), (16, 0.3367), (32, 0.3350), (48, 0.3344), (64, 0.3342)):
        values = depth_selectivity(torch.rand(100_000, n))
        assert values.mean().item() == pytest.approx(expected, abs=0.001)
    for n, expected in ((8, -0.087), (32, -0.097), (64, -0.099)):
        target = torch.zeros(100_000, dtype=torch.long)
        values = depth_selectivity(torch.rand(100_000, n), target=target)
        assert values.mean().item() == pytest.approx(expected, abs=0.004)


def test_gaussian_tuning_curves():
    bins = torch.arange(64, dtype=torch.float64)
    for sigma, expected in ((1, 0.953), (3, 0.812), (8, 0.536), (24, 0.133)):
        unit = torch.exp(-((bins - 32) ** 2) / (2 * sigma**2))[None]
        assert depth_selectivity(unit).item() == pytest.approx(expected, abs=0.005)


def test_empty_bins_inflate_the_reference_and_not_the_paper():
    """A flat unit that sees 10 of 64 bins."""
    counts = torch.zeros(64)
    counts[:10] = 5
    flat = (counts > 0).double().expand(64, -1)
    assert depth_selectivity(flat, counts, definition="paper").tolist() == [0] * 64
    reference = depth_selectivity(flat, counts, definition="reference")
    assert reference.tolist() == pytest.approx([0.75] * 64)

    target = assigned_bins(64, 64)
    reference = depth_selectivity(flat, counts, target, "reference")
    assert reference[:10].tolist() == pytest.approx([0.75] * 10) and not reference[10:].any()
    assert reference.mean().item() == pytest.approx(0.1171875)
    assert depth_selectivity(flat, None, target, "reference")[20].item() == pytest.approx(-1)
    paper = depth_selectivity(flat, counts, target, "paper")
    assert paper[:10].tolist() == [0] * 10 and paper[10:].isnan().all()


def test_paper_is_the_reference_where_all_bins_hold_pixels():
    response, counts = torch.randn(20, 16), torch.ones(16)
    for target in (None, torch.arange(20) % 16):
        a, b = (depth_selectivity(response, counts, target, d) for d in ("paper", "reference"))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=60)
@given(st.integers(2, 40), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_selectivity_is_bounded_and_free_of_scale_and_order(n, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    response = torch.randn(6, n, generator=generator, dtype=torch.float64)
    values = depth_selectivity(response)
    assert ((values >= 0) & (values <= 1)).all()
    shuffled = response[:, torch.randperm(n, generator=generator)] * -scale
    torch.testing.assert_close(depth_selectivity(shuffled), values)


def test_too_few_bins_with_pixels():
    response, counts = torch.rand(3, 5), torch.tensor([0, 0, 2, 0, 0])
    assert depth_selectivity(response, counts).isnan().all()
    assert depth_selectivity(response, counts * 0).isnan().all()


@pytest.mark.parametrize("k, n", [(64, 64), (128, 64), (256, 64), (160, 64), (80, 64), (24, 24)])
def test_assigned_bins(k, n):
    bins = assigned_bins(k, n)
    assert bins.tolist() == [math.floor(i / (k / n)) for i in range(k)]
    share = torch.bincount(bins, minlength=n)
    assert share.min() >= k // n and share.max() <= -(-k // n)


def test_assigned_bins_refuses_more_bins_than_units():
    with pytest.raises(ValueError, match="8 units cannot cover 64 bins"):
        assigned_bins(8, 64)
    with pytest.raises(ValueError, match="at least one"):
        assigned_bins(0, 0)


@pytest.mark.parametrize(
    "populated, bins, flat, uniform",
    [(4, 8, 0.400, 0.653), (10, 24, 0.438, 0.675), (25, 64, 0.448, 0.681), (64, 64, 0, 0.3342)],
)
def test_floors_of_the_reference(populated, bins, flat, uniform):
    counts = torch.cat([torch.ones(populated), torch.zeros(bins - populated)])
    floors = selectivity_floors(counts, "reference")
    assert floors["flat"] == pytest.approx(flat, abs=6e-4)
    assert floors["uniform"] == pytest.approx(uniform, abs=2e-3)
    assert (floors["populated"], floors["bins"]) == (populated, bins)


def test_floors_of_the_paper():
    counts = torch.cat([torch.ones(8), torch.zeros(56)])
    floors = selectivity_floors(counts, "paper")
    assert floors["flat"] == pytest.approx(0, abs=1e-12)
    assert floors["uniform"] == pytest.approx(0.3406, abs=3e-3)


# ------------------------------------------------------------------ losses


def reference_loss(acts, depth, method):
    """The released code's regulariser as spelled out in words: loops and all."""
    total = 0
    for a in acts.values():
        k = a.shape[1]
        n = min(k, 64)
        bins = DepthBins.sid(n, *NYU, overflow="first").discretize(depth)[:, 0]
        sums, counts = plain_loop(a.abs(), bins, n)
        response = sums / (counts + 1e-15)
        score = 0
        for unit in range(k):
            if method == "assign":
                target = math.floor(unit / (k / n))
                if counts[target] == 0:
                    continue
            else:
                target = int(response[unit].argmax())
            chosen = response[unit, target]
            rest = (response[unit].sum() - chosen) / (n - 1)
            score = score + (chosen - rest) / (chosen + rest + 1e-15)
        total = total + score / k
    return total


@pytest.mark.parametrize("method", ["assign", "reg"])
def test_loss_is_the_reference(method):
    torch.manual_seed(0)
    depth = torch.rand(2, 1, 16, 20) * 11
    depth[:, :, 3] = 0
    for size in ((4, 5), (16, 20)):
        acts = {
            name: torch.randn(2, k, *size, requires_grad=True) for name, k in (("x", 8), ("y", 80))
        }
        loss = SelectivityLoss("nyu", method, "reference")(acts, depth)
        expected = reference_loss(acts, depth, method)
        assert loss.dtype == torch.float32 and loss.shape == ()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        for a, b in zip(
            torch.autograd.grad(loss, list(acts.values())),
            torch.autograd.grad(expected.float(), list(acts.values())),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def test_definitions_part_on_signed_layers():
    """A zero-mean unit with an offset in one bin: |mean| sees it, mean |.| hardly does."""
    torch.manual_seed(0)
    depth = torch.full((1, 1, 64, 64), 5.0)
    depth[..., :32] = 1.0
    activation = torch.randn(1, 8, 64, 64)
    activation[..., :32] += 0.5
    paper = SelectivityLoss("nyu", "reg", "paper")({"x": activation}, depth)
    reference = SelectivityLoss("nyu", "reg", "reference")({"x": activation}, depth)
    assert paper > 0.8
    # Two bins of eight hold pixels: the reference scores them near its flat floor of 0.75.
    assert reference == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("definition", ["paper", "reference"])
@pytest.mark.parametrize("method", ["assign", "reg"])
def test_ascending_the_loss_makes_units_selective(method, definition):
    torch.manual_seed(0)
    depth = torch.rand(2, 1, 24, 24) * 9.5 + 0.5
    free = torch.randn(2, 16, 24, 24, requires_grad=True)
    loss = SelectivityLoss("nyu", method, definition)
    optimiser = torch.optim.Adam([free], lr=0.1)
    before = loss({"x": free.relu()}, depth).item()
    for _ in range(60):
        optimiser.zero_grad()
        (-loss({"x": free.relu()}, depth)).backward()
        assert free.grad.isfinite().all()
        optimiser.step()
    after = loss({"x": free.relu()}, depth).item()
    assert after > max(0.6, before + 0.3)


def test_absent_units_get_no_gradient_under_the_paper():
    depth = torch.full((1, 1, 8, 8), 0.5)
    depth[..., 4:] = 9.9
    activation = torch.randn(1, 8, 8, 8, requires_grad=True)
    SelectivityLoss("nyu")({"x": activation}, depth).backward()
    touched = activation.grad.abs().sum((0, 2, 3)) > 0
    assert touched.tolist() == [True] + [False] * 6 + [True]


def test_a_batch_where_no_unit_has_its_bin():
    """One populated bin only: no selectivity can be had, and no gradient, but no NaN either."""
    activation = torch.randn(1, 8, 4, 4, requires_grad=True)
    loss = SelectivityLoss("nyu")({"x": activation}, torch.full((1, 1, 4, 4), 5.0))
    loss.backward()
    assert loss.item() == 0 and not activation.grad.any()


def test_the_loss_sums_over_layers():
    acts = {"x": torch.rand(1, 8, 8, 8), "y": torch.rand(1, 16, 4, 4)}
    depth = torch.rand(1, 1, 8, 8) * 9 + 0.5
    loss = SelectivityLoss("rooms")
    total = sum(v.item() for v in loss.layers(acts, depth).values())
    assert loss(acts, depth).item() == pytest.approx(total)
    assert set(loss.layers(acts, depth)) == {"x", "y"}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nyu", "asign"), "Unknown method 'asign'. Known: assign, reg"),
        (("nyu", "reg", "papers"), "Unknown definition 'papers'. Known: paper, reference"),
        (("mars",), "Unknown depth range 'mars'"),
        (((10, 1),), "alpha < beta"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SelectivityLoss(*arguments)


def test_bad_batches():
    loss = SelectivityLoss("nyu")
    with pytest.raises(ValueError, match="No pixel of the batch has a depth"):
        loss({"x": torch.rand(1, 8, 4, 4)}, torch.zeros(1, 1, 4, 4))
    with pytest.raises(ValueError, match="No activations"):
        loss({}, torch.ones(1, 1, 4, 4))
    with pytest.raises(ValueError, match="A layer of 1 unit"):
        loss({"x": torch.rand(1, 1, 4, 4)}, torch.ones(1, 1, 4, 4))


# ------------------------------------------------------------------ options of the losses


def stripe(*bins, values=None, units=4):
    """Activations and depth of an image whose columns lie in these bins of ``units``. Each unit's
    response is a row of ``values`` over the columns, else random."""
    edges = layer_bins(units, NYU).edges
    depth = ((edges[1:] + edges[:-1]) / 2).float()[list(bins)]
    if values is None:
        values = torch.rand(units, len(bins))
    values = torch.as_tensor(values, dtype=torch.float32)
    activation = values[None, :, None].expand(-1, -1, 3, -1).clone()
    return {"x": activation.requires_grad_()}, depth[None, None, None].expand(-1, -1, 3, -1)


def value_and_gradient(loss, acts, depth):
    value = loss(acts, depth)
    (gradient,) = torch.autograd.grad(value, acts["x"])
    return value.item(), gradient


@pytest.mark.parametrize("method", ["assign", "reg"])
@pytest.mark.parametrize("definition", ["paper", "reference"])
def test_the_loss_is_the_selectivity_of_the_batch(method, definition):
    acts, depth = stripe(0, 0, 1, 3)
    value, gradient = value_and_gradient(SelectivityLoss(NYU, method, definition), acts, depth)
    alone = SelectivityLoss(NYU, method, definition, distributed=False)
    again, same = value_and_gradient(alone, acts, depth)
    assert value == again and torch.equal(gradient, same)
    sums, counts = pool_by_bin(acts["x"].detach(), layer_bins(4, NYU).discretize(depth), 4)
    target = assigned_bins(4, 4) if method == "assign" else None
    units = depth_selectivity(sums / (counts + 1e-15), counts, target, definition)
    assert value == pytest.approx(units.nanmean().item(), rel=1e-6)


@pytest.mark.parametrize("method", ["assign", "reg"])
def test_one_bin_alone_gives_no_selectivity_and_no_gradient(method):
    value, gradient = value_and_gradient(SelectivityLoss(NYU, method), *stripe(2, 2))
    assert value == 0 and not gradient.any()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["assign", "reg"]),
    st.lists(st.integers(0, 3), min_size=1, max_size=12),
    st.floats(1e-3, 1e3),
    st.integers(0, 2**31),
)
def test_it_is_bounded_and_free_of_scale(method, bins, scale, seed):
    """Whichever bins the batch covers."""
    torch.manual_seed(seed)
    loss = SelectivityLoss(NYU, method)
    acts, depth = stripe(*bins, values=torch.randn(4, len(bins)))
    value, gradient = value_and_gradient(loss, acts, depth)
    assert -1 - 1e-6 <= value <= 1 + 1e-6 and gradient.isfinite().all()
    assert method == "assign" or value >= -1e-6
    assert loss({"x": acts["x"] * -scale}, depth).item() == pytest.approx(value, abs=1e-4)


def test_bad_options():
    with pytest.raises(ValueError, match="distributed=True needs an initialised"):
        SelectivityLoss(NYU, distributed=True)(*stripe(0, 1))
