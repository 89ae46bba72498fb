"""The losses against plain transcriptions of their formulas, and their mask."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mde_utils.losses import (
    balanced_loss,
    balanced_loss_terms,
    l1_loss,
    mff_loss,
    photometric_error,
    post_process_disparity,
    silog_loss,
    smoothness,
    spp_distillation,
    stereo_loss_terms,
)
from mde_utils.stereo import disparity_to_depth, stereo_transform, warp
from scenes.rooms import ROOMS
from scenes.world import render_scene


def depth(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=dtype) * 9 + 0.7


def formula(p, y):
    """Papa et al. 2023, section III-C, pixel by pixel, on one (h, w) pair in centimetres."""
    h, w = p.shape
    kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]

    def gradient(x, i, j):
        dx = dy = 0.0
        for a in range(3):
            for b in range(3):
                r, c = i + a - 1, j + b - 1
                value = float(x[r, c]) if 0 <= r < h and 0 <= c < w else 0.0
                dx += kernel[a][b] * value
                dy += kernel[b][a] * value
        return dx, dy

    pixel = normal = grad_x = grad_y = 0.0
    for i in range(h):
        for j in range(w):
            (px, py), (yx, yy) = gradient(p, i, j), gradient(y, i, j)
            dot = px * yx + py * yy + 1
            norms = math.sqrt(px * px + py * py + 1) * math.sqrt(yx * yx + yy * yy + 1)
            normal += abs(1 - dot / norms)
            pixel += abs(float(p[i, j]) - float(y[i, j]))
            grad_x += abs(px - yx)
            grad_y += abs(py - yy)

    gauss = torch.exp(-((torch.arange(11).double() - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(gauss, gauss) / gauss.sum() ** 2
    similarity = []
    for i in range(h - 10):
        for j in range(w - 10):
            a, b = p[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va = (window * a * a).sum() - ma**2
            vb = (window * b * b).sum() - mb**2
            cov = (window * a * b).sum() - ma * mb
            similarity.append(
                (2 * ma * mb + 100) * (2 * cov + 900) / ((ma**2 + mb**2 + 100) * (va + vb + 900))
            )
    n = h * w
    return {
        "depth": pixel / n,
        "ssim": 100 * (1 - float(sum(similarity)) / len(similarity)),
        "normal": 100 * normal / n,
        "gradient": (grad_x / n + grad_y / n) / 0.5,
    }


@pytest.mark.parametrize("smooth", [False, True])
def test_equals_the_formula_where_all_is_valid(smooth):
    p, y = depth(1, 1, 13, 15), depth(1, 1, 13, 15, seed=1)
    if smooth:  # the region where SSIM and normals are sensitive
        p, y = 3 + p / 200, 3 + y / 200
    expected = formula(p[0, 0] * 100, y[0, 0] * 100)
    terms = balanced_loss_terms(p, y)
    assert list(terms) == ["depth", "ssim", "normal", "gradient"]
    for key, value in expected.items():
        assert terms[key].item() == pytest.approx(value, rel=1e-9), key
    assert balanced_loss(p, y).item() == pytest.approx(sum(expected.values()), rel=1e-9)
    # In float32 the squares of 1000 cm leave about five digits
    assert balanced_loss(p.float(), y.float()).item() == pytest.approx(
        sum(expected.values()), rel=1e-4
    )


def test_a_perfect_prediction_costs_nothing():
    y = depth(2, 1, 16, 16)
    assert balanced_loss(y, y).item() == pytest.approx(0, abs=1e-9)
    p = y.clone().requires_grad_()
    balanced_loss(p, y).backward()
    assert p.grad.isfinite().all()


def test_other_units():
    p, y = depth(1, 1, 12, 12), depth(1, 1, 12, 12, seed=1)
    torch.testing.assert_close(
        balanced_loss(p, y, units_per_metre=10), balanced_loss(p / 10, y / 10)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, -1.0, math.nan, math.inf]))
def test_nothing_under_the_mask_counts(seed, hole):
    generator = torch.Generator().manual_seed(seed)
    y = depth(2, 1, 24, 20, seed=seed)
    invalid = torch.rand(y.shape, generator=generator) < 0.01
    y = torch.where(invalid, hole, y)
    p = depth(2, 1, 24, 20, seed=seed + 1).requires_grad_()
    other = torch.where(invalid, math.nan, p.detach()).requires_grad_()
    one, two = balanced_loss_terms(p, y), balanced_loss_terms(other, y)
    for key in one:
        assert one[key].isfinite()
        assert torch.equal(one[key], two[key]), key
    sum(two.values()).backward()
    assert other.grad.isfinite().all()
    assert not other.grad[invalid].any()


def test_the_mask_leaves_what_the_formula_says_of_the_rest():
    """With holes in the right part, terms are means over kernels that see none of it."""
    p, y = depth(1, 1, 30, 40), depth(1, 1, 30, 40, seed=1)
    y[..., 25:] = 0
    terms = balanced_loss_terms(p, y)
    a, b = 100 * p[..., :25], 100 * y[..., :25]
    assert terms["depth"].item() == pytest.approx((a - b).abs().mean().item())
    crop = balanced_loss_terms(p[..., :25], y[..., :25])
    assert terms["ssim"].item() == pytest.approx(crop["ssim"].item())
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    kernels = torch.stack([sobel, sobel.T])[:, None]
    moved = F.conv2d(F.pad(a - b, (1, 1, 1, 1)), kernels)[..., :24].abs()  # column 24 sees 25
    assert terms["gradient"].item() == pytest.approx(2 * moved.sum(1).mean().item())


def test_unmasked_is_the_publications():
    p, y = depth(1, 1, 12, 12), depth(1, 1, 12, 12, seed=1)
    y[..., 5, 5] = 0
    expected = formula(p[0, 0] * 100, y[0, 0] * 100)
    assert balanced_loss(p, y, masked=False).item() == pytest.approx(sum(expected.values()))
    assert balanced_loss(p, y).item() != pytest.approx(sum(expected.values()))


def test_sparse_ground_truth_has_a_depth_term_only():
    p, y = depth(1, 1, 20, 20), torch.zeros(1, 1, 20, 20)
    y[..., 5::6, 5::6] = 2.0
    y[..., 0, 0] = 2.0
    terms = balanced_loss_terms(p, y)
    assert terms["depth"] > 0
    assert terms["ssim"] == terms["normal"] == terms["gradient"] == 0


def test_gradient_is_the_derivative():
    p, y = depth(1, 1, 12, 13), depth(1, 1, 12, 13, seed=1)
    assert torch.autograd.gradcheck(lambda x: balanced_loss(x, y), p.requires_grad_())
    y = F.pad(y, (0, 6))
    p = depth(1, 1, 12, 19).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: balanced_loss(x, y), p)


@pytest.mark.parametrize("constant", [0.0, -2.0, 5.0])
def test_flat_predictions_have_finite_gradients(constant):
    p = torch.full((1, 1, 12, 12), constant, requires_grad=True)
    balanced_loss(p, torch.full((1, 1, 12, 12), 5.0)).backward()
    assert p.grad.isfinite().all()


def test_runs_in_float32_under_autocast():
    p, y = depth(2, 1, 16, 16, dtype=torch.float32), depth(2, 1, 16, 16, seed=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = balanced_loss(p, y.float())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, balanced_loss(p, y.float()))
    assert balanced_loss(p.bfloat16(), y.float()).dtype == torch.float32


@pytest.mark.parametrize(
    "pred, target, says",
    [
        ((1, 1, 12, 12), (1, 1, 24, 24), "Resize the target"),
        ((1, 12, 12), (1, 12, 12), r"\(b, 1, h, w\)"),
        ((1, 2, 12, 12), (1, 2, 12, 12), r"\(b, 1, h, w\)"),
        ((1, 1, 10, 12), (1, 1, 10, 12), "at least 11x11"),
    ],
)
def test_wrong_shapes_are_refused(pred, target, says):
    with pytest.raises(ValueError, match=says):
        balanced_loss(torch.ones(pred), torch.ones(target))


def test_a_target_without_measurements_is_refused():
    with pytest.raises(ValueError, match="no valid pixel"):
        balanced_loss(torch.ones(1, 1, 12, 12), torch.zeros(1, 1, 12, 12))


# ---------------------------------------------------------------------------- MFF


def mff_formula(p, y):
    """Hu et al. 2019, section 3.3, pixel by pixel, on one (h, w) pair in metres."""
    h, w = p.shape
    kernel = [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]

    def gradient(x, i, j):
        cells = [
            (a, b, float(x[i + a - 1, j + b - 1]))
            for a in range(3)
            for b in range(3)
            if 0 <= i + a - 1 < h and 0 <= j + b - 1 < w
        ]
        dx = sum(kernel[a][b] * value for a, b, value in cells)
        return dx, sum(kernel[b][a] * value for a, b, value in cells)

    total = 0.0
    for i in range(h):
        for j in range(w):
            (px, py), (yx, yy) = gradient(p, i, j), gradient(y, i, j)
            cosine = (px * yx + py * yy + 1) / (math.hypot(px, py, 1) * math.hypot(yx, yy, 1))
            total += math.log(abs(float(p[i, j] - y[i, j])) + 0.5)
            total += math.log(abs(px - yx) + 0.5) + math.log(abs(py - yy) + 0.5)
            total += abs(1 - cosine)
    return total / (h * w)


def test_mff_by_hand():
    """One pixel: padding leaves no gradient, so both normals point at the camera."""
    one = mff_loss(torch.full((1, 1, 1, 1), 3.0), torch.full((1, 1, 1, 1), 2.0))
    assert one.item() == pytest.approx(math.log(1.5) + 2 * math.log(0.5))
    # Two pixels in a row: dx is twice the right one at the left, -2 x the left one at the right.
    p, y = torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[[1.0, 3.0]]]])
    depth = (math.log(0.5) + math.log(1.5)) / 2
    dx = (math.log(2 + 0.5) + math.log(0.5)) / 2  # 4 - 6, -2 - -2
    left = 1 - (4 * 6 + 1) / math.sqrt(17 * 37)
    expected = depth + dx + math.log(0.5) + left / 2
    assert mff_loss(p, y).item() == pytest.approx(expected)
    assert mff_formula(p[0, 0], y[0, 0]) == pytest.approx(expected)


def test_mff_equals_the_formula():
    p, y = depth(2, 1, 7, 9), depth(2, 1, 7, 9, seed=1)
    expected = (mff_formula(p[0, 0], y[0, 0]) + mff_formula(p[1, 0], y[1, 0])) / 2
    assert mff_loss(p, y).item() == pytest.approx(expected, rel=1e-9)
    y[0, 0, 3, 4] = 0
    unmasked = (mff_formula(p[0, 0], y[0, 0]) + mff_formula(p[1, 0], y[1, 0])) / 2
    assert mff_loss(p, y, masked=False).item() == pytest.approx(unmasked, rel=1e-9)
    assert mff_loss(p, y).item() != pytest.approx(unmasked)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 3))
def test_mff_is_least_for_the_perfect_prediction(seed, scale):
    y = depth(1, 1, 8, 9, seed=seed)
    least = mff_loss(y, y).item()
    assert least == pytest.approx(3 * math.log(0.5))
    assert mff_loss(y + scale * (depth(1, 1, 8, 9, seed=seed + 1) - 5), y).item() > least


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, -1.0, math.nan, math.inf]))
def test_mff_nothing_under_the_mask_counts(seed, hole):
    generator = torch.Generator().manual_seed(seed)
    invalid = torch.rand((2, 1, 16, 12), generator=generator) < 0.05
    y = torch.where(invalid, hole, depth(2, 1, 16, 12, seed=seed))
    p = depth(2, 1, 16, 12, seed=seed + 1)
    other = torch.where(invalid, math.nan, p).requires_grad_()
    loss = mff_loss(other, y)
    assert torch.equal(loss.detach(), mff_loss(p, y)) and loss.isfinite()
    loss.backward()
    assert other.grad.isfinite().all() and not other.grad[invalid].any()


def test_mff_mask_leaves_what_the_formula_says_of_the_rest():
    p, y = depth(1, 1, 9, 14), depth(1, 1, 9, 14, seed=1)
    p[..., 8:], y[..., 8:] = 1.0, 0.0
    error = (p - y)[..., :8].abs()
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    kernels = torch.stack([kernel, kernel.T])[:, None]
    seen = [F.conv2d(F.pad(x, (1, 1, 1, 1)), kernels)[..., :7] for x in (p, y)]  # column 7 sees 8
    normals = [torch.cat([-s, torch.ones(1, 1, 9, 7)], dim=1) for s in seen]
    expected = (
        (error + 0.5).log().mean()
        + ((seen[0] - seen[1]).abs() + 0.5).log().sum(1).mean()
        + (1 - F.cosine_similarity(*normals, dim=1)).mean()
    )
    assert mff_loss(p, y).item() == pytest.approx(expected.item())


def test_mff_gradient_is_the_derivative():
    p, y = depth(1, 1, 5, 6).requires_grad_(), depth(1, 1, 5, 6, seed=1)
    assert torch.autograd.gradcheck(lambda x: mff_loss(x, y), p)


def test_mff_runs_in_float32_under_autocast():
    p, y = depth(2, 1, 8, 8).float(), depth(2, 1, 8, 8, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mff_loss(p, y), mff_loss(p.float(), y))
    assert mff_loss(p.bfloat16(), y).dtype == torch.float32


def test_mff_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="Resize the target"):
        mff_loss(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 8, 8))
    with pytest.raises(ValueError, match="no valid pixel"):
        mff_loss(torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


# ---------------------------------------------------------------------------- BTS


def silog_formula(p, y, least, focus=0.85):
    """Lee et al. 2019, equation 4 and 5, as it is written, over all pixels beyond `least`."""
    g = [
        math.log(a) - math.log(b)
        for a, b in zip(p.flatten().tolist(), y.flatten().tolist(), strict=True)
        if b > least
    ]
    return 10 * math.sqrt(sum(v * v for v in g) / len(g) - focus * (sum(g) / len(g)) ** 2)


def test_silog_by_hand():
    """Two pixels, off by factors 2 and 4: mean square 2.5 ln² 2, mean 1.5 ln 2."""
    y = torch.tensor([1.0, 3.0, 0.05]).view(1, 1, 1, 3)
    p = torch.tensor([2.0, 12.0, 9.0]).view(1, 1, 1, 3)
    expected = 10 * math.log(2) * math.sqrt(2.5 - 0.85 * 2.25)
    assert silog_loss(p, y).item() == pytest.approx(expected)
    assert silog_loss(p, y, min_depth=1.0).item() == pytest.approx(  # 1 m is not above 1 m
        10 * math.log(4) * math.sqrt(0.15)
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.sampled_from([0.0, 0.1, 1.0]), st.floats(-2, 2))
def test_silog_is_the_formula_over_the_whole_batch(seed, focus, least, factor):
    p, y = depth(2, 1, 4, 5, seed=seed) * math.exp(factor), depth(2, 1, 4, 5, seed=seed + 1)
    y[0, 0, 0] = 0
    loss = silog_loss(p, y, min_depth=least, variance_focus=focus)
    assert loss.item() == pytest.approx(silog_formula(p, y, least, focus), rel=1e-6, abs=1e-6)


@given(st.floats(-3, 3))
def test_silog_of_one_factor_is_what_remains_of_scale(c):
    y = depth(1, 1, 6, 7)
    expected = 10 * abs(c) * math.sqrt(0.15)
    assert silog_loss(y * math.exp(c), y).item() == pytest.approx(expected, abs=1e-6)
    assert silog_loss(y * math.exp(c), y, variance_focus=1.0).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_silog_of_a_perfect_prediction_is_0_with_gradient_0(kind):
    y = depth(2, 1, 4, 4).to(kind)
    p = y.clone().requires_grad_()
    loss = silog_loss(p, y)
    loss.backward()
    assert loss.item() == 0 and not p.grad.any()


def test_silog_gradient_is_the_derivative():
    p, y = depth(1, 1, 5, 6).requires_grad_(), depth(1, 1, 5, 6, seed=1)
    assert torch.autograd.gradcheck(lambda x: silog_loss(x, y), p)
    y[0, 0, 2] = 0
    assert torch.autograd.gradcheck(lambda x: silog_loss(x, y), p)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.1, -1.0, math.nan, math.inf]))
def test_silog_nothing_under_the_mask_counts(seed, hole):
    generator = torch.Generator().manual_seed(seed)
    invalid = torch.rand((2, 1, 8, 6), generator=generator) < 0.2
    y = torch.where(invalid, hole, depth(2, 1, 8, 6, seed=seed))
    p = depth(2, 1, 8, 6, seed=seed + 1)
    other = torch.where(invalid, math.nan, p).requires_grad_()
    loss = silog_loss(other, y)
    assert torch.equal(loss.detach(), silog_loss(p, y)) and loss.isfinite()
    loss.backward()
    assert other.grad.isfinite().all() and not other.grad[invalid].any()


def test_silog_of_negative_depth_is_a_number():
    p = torch.tensor([-1.0, 0.0, 2.0]).view(1, 1, 1, 3).requires_grad_()
    loss = silog_loss(p, torch.full((1, 1, 1, 3), 2.0))
    loss.backward()
    assert loss.isfinite() and p.grad.isfinite().all()
    assert silog_loss(p.clamp(min=1e-3), torch.full((1, 1, 1, 3), 2.0)).item() == loss.item()


def test_silog_runs_in_float32_under_autocast():
    p, y = depth(2, 1, 8, 8).float(), depth(2, 1, 8, 8, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(silog_loss(p, y), silog_loss(p.float(), y))
    assert silog_loss(p.bfloat16(), y).dtype == torch.float32


@pytest.mark.parametrize(
    "target, options, says",
    [
        (torch.ones(1, 1, 8, 8), {}, "Resize the target"),
        (torch.full((1, 1, 4, 4), 0.1), {}, r"no valid pixel \(depth > 0.1\)"),
        (torch.ones(1, 1, 4, 4), {"min_depth": 1.0}, r"no valid pixel \(depth > 1\)"),
        (torch.ones(1, 1, 4, 4), {"variance_focus": 1.1}, "variance_focus from 0 to 1"),
        (torch.ones(1, 1, 4, 4), {"min_depth": -1.0}, "min_depth from 0"),
    ],
)
def test_silog_refuses_what_it_cannot_compare(target, options, says):
    with pytest.raises(ValueError, match=says):
        silog_loss(torch.ones(1, 1, 4, 4), target, **options)


# ---- CSPN -------------------------------------------------------------------------------------


@pytest.mark.parametrize("hole", [0.0, 1e-4, -1.0, math.nan, math.inf])
def test_l1_is_the_mean_error_where_there_is_depth(hole):
    y = torch.tensor([[[[2.0, hole], [2e-4, 5.0]]]])
    p = torch.tensor([[[[2.5, 7.0], [1.0, 3.0]]]], requires_grad=True)
    loss = l1_loss(p, y)
    assert loss.item() == pytest.approx((0.5 + (1 - 2e-4) + 2) / 3)
    loss.backward()
    assert p.grad.flatten().tolist() == pytest.approx([1 / 3, 0, 1 / 3, -1 / 3])


def test_l1_without_depth_or_of_other_sizes_is_refused():
    with pytest.raises(ValueError, match="no valid pixel"):
        l1_loss(torch.ones(1, 1, 3, 4), torch.zeros(1, 1, 3, 4))
    with pytest.raises(ValueError, match="one shape"):
        l1_loss(torch.ones(1, 1, 3, 4), torch.ones(1, 1, 6, 8))


# ---- stereo -----------------------------------------------------------------------------------

BASELINE = 0.2


def to_sigma(depth, baseline=BASELINE):
    """The network's disparity of a depth in metres, its cameras being 0.1 apart."""
    return (0.1 / (depth * 0.1 / baseline) - 0.001) / (1 - 0.001)


@pytest.fixture(scope="module")
def pairs():
    """A batch of two rendered pairs with exact depth and hints."""
    options = {"size": (96, 128), "baseline": BASELINE, "clean": True}
    items = [render_scene(ROOMS, "test", i, **options) for i in (1, 3)]
    batch = {name: torch.stack([item[name] for item in items]) for name in items[0]}
    focal = float(batch["intrinsics"][0, 0, 0])
    batch["hint"] = torch.stack(
        [toys.depth_hint(i["image"], i["right"], focal=focal, baseline=BASELINE) for i in items]
    )
    return batch | {"baseline": torch.full((2,), BASELINE)}


def transcribed(disparities, batch, *, hints, automask, noise):
    """The spec of EPCDepth's loss, one scale and one pixel after the other."""
    b, _, h, w = batch["image"].shape
    move = stereo_transform(0.1 * batch["baseline"].sign())
    total_error = total_hint = 0.0
    for scale, sigma in enumerate(disparities):
        sigma = F.interpolate(sigma, (h, w), mode="bilinear", align_corners=False)
        depth = 1 / (0.01 + (10 - 0.01) * sigma)
        warped = warp(batch["right"], depth, batch["intrinsics"], move)[0]
        error = photometric_error(warped, batch["image"])
        still = photometric_error(batch["right"], batch["image"])
        hint = batch["hint"] * 0.1 / batch["baseline"].abs().view(-1, 1, 1, 1)
        by_hint = warp(batch["right"], hint, batch["intrinsics"], move)[0]
        by_hint = photometric_error(by_hint, batch["image"])
        errors, logs = [], []
        for n in range(b):
            for i in range(h):
                for j in range(w):
                    at = (n, 0, i, j)
                    rivals = [float(error[at])]
                    rivals.append(float(still[at]) + 1e-5 * float(noise[scale][at]))
                    rivals.append(float(by_hint[at]) + (0 if hint[at] > 0 else 1000))
                    rivals[1] = rivals[1] if automask else math.inf
                    rivals[2] = rivals[2] if hints else math.inf
                    k = rivals.index(min(rivals))
                    if k != 1:
                        errors.append(rivals[0])
                    if k == 2:
                        logs.append(math.log(abs(float(hint[at] - depth[at])) + 1))
        total_error += sum(errors) / max(len(errors), 1)
        total_hint += sum(logs) / max(len(logs), 1)
    return total_error / len(disparities), total_hint / len(disparities)


@pytest.mark.parametrize("hints", [True, False])
@pytest.mark.parametrize("automask", [True, False])
def test_stereo_loss_is_its_formula(pairs, hints, automask):
    small = {k: v[..., 20:44, 40:76] if v.ndim == 4 else v.clone() for k, v in pairs.items()}
    small["intrinsics"][:, :2, 2] -= torch.tensor([40.0, 20.0])
    sigma = to_sigma(small["depth"] * torch.tensor([0.8, 1.1]).view(2, 1, 1, 1))
    disparities = [F.interpolate(sigma, scale_factor=1 / s, mode="bilinear") for s in (1, 2, 4)]
    generator = torch.Generator().manual_seed(4)
    terms = stereo_loss_terms(
        disparities, small, hints=hints, automask=automask, distillation=0, generator=generator
    )
    generator.manual_seed(4)
    noise = [torch.randn(small["depth"].shape, generator=generator) for _ in disparities]
    error, log = transcribed(disparities, small, hints=hints, automask=automask, noise=noise)
    # Pixels where two rivals are equal but for rounding may go to either.
    assert float(terms["photometric"]) == pytest.approx(error, rel=1e-3) and error > 0
    assert terms.keys() == ({"photometric", "hint"} if hints else {"photometric"})
    if hints:
        assert float(terms["hint"]) == pytest.approx(log, rel=1e-3) and log > 0


def loss_at(batch, factor, **options):
    options = {"generator": torch.Generator().manual_seed(0)} | options
    sigma = to_sigma(factor * batch["depth"])
    return float(sum(stereo_loss_terms([sigma] * 10, batch, **options).values()))


@pytest.mark.parametrize("hints", [True, False])
def test_true_depth_has_the_least_loss(pairs, hints):
    losses = {f: loss_at(pairs, f, hints=hints) for f in (0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.25)}
    assert min(losses, key=losses.get) == 1, losses
    assert losses[0.8] > losses[0.9] > losses[1] < losses[1.1] < losses[1.25]


def mirror(batch):
    out = {k: v.flip(-1) if v.ndim >= 3 and k != "intrinsics" else v for k, v in batch.items()}
    out["intrinsics"] = batch["intrinsics"].clone()
    out["intrinsics"][:, 0, 2] = batch["image"].shape[-1] - 1 - out["intrinsics"][:, 0, 2]
    return out | {"baseline": -batch["baseline"]}


def test_the_mirrored_pair_has_the_same_loss(pairs):
    # But for the noise, which is not mirrored and breaks the ties of even surfaces.
    assert loss_at(mirror(pairs), 1.05) == pytest.approx(loss_at(pairs, 1.05), rel=5e-3)
    wrong = mirror(pairs) | {"baseline": pairs["baseline"]}
    assert loss_at(wrong, 1.0, hints=False) > 1.5 * loss_at(pairs, 1.0, hints=False)


def test_mixed_precision_does_not_reach_the_pictures(pairs):
    with torch.autocast("cpu", torch.bfloat16):
        mixed = loss_at(pairs, 1.1)
    assert mixed == loss_at(pairs, 1.1)


def test_only_the_ratio_of_hint_and_baseline_matters(pairs):
    sigma = [to_sigma(pairs["depth"])]
    doubled = pairs | {"hint": 2 * pairs["hint"], "baseline": 2 * pairs["baseline"]}
    first, second = (
        stereo_loss_terms(sigma, batch, generator=torch.Generator().manual_seed(1))
        for batch in (pairs, doubled)
    )
    for name in first:
        torch.testing.assert_close(first[name], second[name])


def test_what_does_not_move_is_masked(pairs):
    """With twice the same picture no depth explains it better than none."""
    still = pairs | {"right": pairs["image"], "hint": torch.zeros_like(pairs["hint"])}
    terms = stereo_loss_terms([to_sigma(pairs["depth"])], still)
    assert terms["photometric"] == 0 and terms["hint"] == 0
    assert (
        stereo_loss_terms([to_sigma(pairs["depth"])], still, automask=False)["photometric"] > 0.05
    )


def test_without_a_hint_the_switch_changes_nothing(pairs):
    for nothing in (0.0, -1.0, math.nan):
        batch = pairs | {"hint": torch.full_like(pairs["hint"], nothing)}
        sigma = to_sigma(pairs["depth"]).requires_grad_()
        draws = [torch.Generator().manual_seed(2) for _ in range(2)]
        terms = stereo_loss_terms([sigma], batch, generator=draws[0])
        without = stereo_loss_terms([sigma], batch, hints=False, generator=draws[1])
        assert terms["hint"] == 0
        assert terms["photometric"] == without["photometric"]
        terms["hint"].backward(retain_graph=True)
        assert (sigma.grad == 0).all()


def test_hints_pull_where_they_explain_more(pairs):
    """A good hint beside a wrong depth: the term's gradient leads to the hint."""
    sigma = to_sigma(1.3 * pairs["depth"]).requires_grad_()
    batch = pairs | {"hint": pairs["depth"]}
    stereo_loss_terms([sigma], batch)["hint"].backward()
    assert (sigma.grad <= 0).all() and (sigma.grad < 0).float().mean() > 0.4  # nearer


def test_scales_are_the_first_and_terms_are_weighted(pairs):
    sigma = to_sigma(pairs["depth"])
    ten = [F.interpolate(sigma * s, scale_factor=1 / s, mode="bilinear") for s in (1, 2, 4, 8, 16)]
    ten = ten + ten[::-1]

    def terms(disparities, **options):
        options = {"generator": torch.Generator().manual_seed(3)} | options
        return stereo_loss_terms(disparities, pairs, **options)

    for name, value in terms(ten, scales=5).items():
        assert value == terms(ten[:5])[name]
    assert terms(ten)["photometric"] != terms(ten[:5])["photometric"]
    one, three = terms(ten, smooth=1.0), terms(ten, smooth=3.0, distillation=0.5)
    assert [*one] == ["photometric", "hint", "distillation", "smoothness"]
    assert float(three["smoothness"]) == pytest.approx(3 * float(one["smoothness"]))
    assert float(three["distillation"]) == pytest.approx(0.5 * float(one["distillation"]))
    assert "distillation" not in terms(ten, distillation=0)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"hint": None}, {}, "no hint, only .* Wrap the data set in WithHints"),
        ({"baseline": None, "intrinsics": None}, {}, "no intrinsics, baseline, only image"),
        ({"right": torch.rand(2, 3, 96, 127)}, {}, r"takes right of shape \(2, 3, 96, 128\); got"),
        (
            {"hint": torch.ones(2, 1, 48, 64)},
            {},
            r"hint of shape \(2, 1, 96, 128\); got \(2, 1, 48",
        ),
        ({"baseline": torch.tensor([0.2, 0.0])}, {}, "baselines other than 0"),
        ({"baseline": torch.tensor([0.2, math.nan])}, {}, "baselines other than 0"),
        ({"baseline": torch.tensor(0.2)}, {}, r"baseline of shape \(2,\)"),
        ({}, {"scales": 3}, "from 1 to the number of disparities, 2; got 3"),
        ({}, {"scales": 0}, "got 0"),
    ],
)
def test_stereo_loss_refuses(pairs, change, options, message):
    batch = {k: v for k, v in (pairs | change).items() if v is not None}
    with pytest.raises(ValueError, match=message):
        stereo_loss_terms([to_sigma(pairs["depth"])] * 2, batch, **options)


def test_disparities_of_another_batch_are_refused(pairs):
    with pytest.raises(ValueError, match=r"Disparities of 2 images are \(2, 1, h, w\); got \(1, 1"):
        stereo_loss_terms([to_sigma(pairs["depth"])[:1]], pairs)


def test_the_networks_depth_is_the_one_of_the_loss():
    sigma = torch.rand(1, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(disparity_to_depth(sigma), 1 / (0.01 + 9.99 * sigma))
    depth = torch.rand(1, 1, 3, 4, dtype=torch.float64) + 1
    torch.testing.assert_close(disparity_to_depth(to_sigma(depth)) * BASELINE / 0.1, depth)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 10), st.integers(0, 2**31))
def test_distillation_is_its_formula(count, seed):
    generator = torch.Generator().manual_seed(seed)
    disparities = torch.rand(count, 2, 1, 3, 4, generator=generator, dtype=torch.float64)
    errors = torch.rand(count, 2, 1, 3, 4, generator=generator, dtype=torch.float64)
    disparities.requires_grad_()
    loss = spp_distillation(list(disparities), list(errors))
    values = disparities.detach()
    total, teacher = 0.0, torch.zeros_like(disparities, dtype=torch.bool)
    for start, stop in ((0, min(5, count)), (5, count)):
        for at in itertools.product(range(2), range(1), range(3), range(4)):
            if start < stop:
                best = min(range(start, stop), key=lambda s: float(errors[(s, *at)]))
                teacher[(best, *at)] = True
                for s in range(start, stop):
                    gap = abs(float(values[(best, *at)] - values[(s, *at)]))
                    total += math.log(gap + 1)
    assert loss.item() == pytest.approx(total / disparities.numel())
    loss.backward()
    assert (disparities.grad[teacher] == 0).all()  # who teaches does not learn
    if count not in (1, 6) and not teacher.all():
        assert (disparities.grad[~teacher] != 0).all()


def test_distillation_refuses():
    x = torch.rand(1, 1, 4, 4)
    with pytest.raises(ValueError, match="got 2 and 1 of"):
        spp_distillation([x, x], [x])
    with pytest.raises(ValueError, match="one shape"):
        spp_distillation([x, x[..., :2]], [x, x])
    with pytest.raises(ValueError, match="got 0 and 0"):
        spp_distillation([], [])


def test_smoothness_is_its_formula():
    image = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    disparity = torch.rand(2, 1, 4, 5, dtype=torch.float64) + 0.1
    across, down = [], []
    for n in range(2):
        d, picture = disparity[n, 0] / disparity[n].mean(), image[n]
        for i in range(4):
            for j in range(5):
                for into, (r, c) in ((across, (i, j + 1)), (down, (i + 1, j))):
                    if r < 4 and c < 5:
                        edge = (picture[:, r, c] - picture[:, i, j]).abs().mean()
                        into.append(float((d[r, c] - d[i, j]).abs() * torch.exp(-edge)))
    expected = sum(across) / len(across) + sum(down) / len(down)
    assert smoothness(disparity, image).item() == pytest.approx(expected)
    torch.testing.assert_close(smoothness(7 * disparity, image), smoothness(disparity, image))
    assert smoothness(torch.full((2, 1, 4, 5), 0.3), image) < 1e-6
    with pytest.raises(ValueError, match="one size"):
        smoothness(disparity[..., :2], image)


disparity_maps = arrays(np.float64, (2, 1, 2, 41), elements=st.floats(0, 1))


@settings(deadline=None)
@given(disparity_maps)
def test_properties_of_post_processing(two):
    a, b = torch.from_numpy(two)
    out = post_process_disparity(a, b)
    torch.testing.assert_close(post_process_disparity(a, a), a, atol=1e-15, rtol=0)
    slack = 1e-12
    assert (out <= torch.maximum(a, b) + slack).all() and (out >= torch.minimum(a, b) - slack).all()
    # In the mirror the two change places.
    torch.testing.assert_close(post_process_disparity(b.flip(-1), a.flip(-1)).flip(-1), out)


def test_post_processing_is_its_formula():
    a, b = torch.rand(2, 3, 1, 2, 101, dtype=torch.float64)
    out = post_process_disparity(a, b)
    for j in range(101):
        place = j / 100
        left = 1 - min(max(20 * (place - 0.05), 0), 1)
        right = 1 - min(max(20 * (1 - place - 0.05), 0), 1)
        x, y = a[..., j], b[..., j]
        expected = left * y + right * x + (1 - left - right) * (x + y) / 2
        torch.testing.assert_close(out[..., j], expected)
    assert torch.equal(out[..., :6], b[..., :6])  # what the other camera does not see
    with pytest.raises(ValueError, match="one shape"):
        post_process_disparity(a, b[..., :3])
