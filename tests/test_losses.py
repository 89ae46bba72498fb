"""The losses against plain transcriptions of their formulas, and their mask."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.losses import balanced_loss, balanced_loss_terms, mff_loss


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
