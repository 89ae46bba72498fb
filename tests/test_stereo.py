"""Two cameras against exact geometry: the renderer's depth, and real pairs with ground truth."""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from mde_utils.data.reading import decode, resize_image
from mde_utils.stereo import (
    GRAFT_RATIOS,
    check_pair,
    data_graft,
    disparity_to_depth,
    matched_disparity,
    photometric_error,
    stereo_transform,
    warp,
)
from scenes.rooms import ROOMS
from scenes.streets import STREETS
from scenes.world import render_scene

SCENES = {"room": (ROOMS, 0.1, (96, 128)), "street": (STREETS, 0.54, (64, 208))}


@pytest.fixture(scope="module", params=SCENES)
def pair(request):
    """A rendered pair without the camera's noise, as a batch of one; its sky is far away."""
    world, baseline, size = SCENES[request.param]
    item = render_scene(world, "test", 1, size=size, baseline=baseline, clean=True)
    batch = {name: value[None] for name, value in item.items()}
    batch["depth"] = torch.where(batch["depth"] > 0, batch["depth"], 1e4)
    return batch | {"baseline": torch.tensor([baseline])}


@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(1.5, 200))
def test_disparity_to_depth(sigma, near, far):
    sigma = torch.tensor(sigma, dtype=torch.float64)
    depth = disparity_to_depth(sigma, min_depth=near, max_depth=far)
    assert near * (1 - 1e-9) <= depth <= far * (1 + 1e-9)
    torch.testing.assert_close(1 / depth, (1 - sigma) / far + sigma / near)


def test_disparity_to_depth_as_published():
    sigma = torch.tensor([0.0, 0.5, 1.0])
    torch.testing.assert_close(disparity_to_depth(sigma), 1 / (0.01 + 9.99 * sigma))
    nyu = disparity_to_depth(sigma, max_depth=10)
    torch.testing.assert_close(nyu, torch.tensor([10, 1 / 5.05, 0.1]))
    with pytest.raises(ValueError, match="min_depth=10.*max_depth=1"):
        disparity_to_depth(sigma, min_depth=10, max_depth=1)


def focal(batch):
    return float(batch["intrinsics"][0, 0, 0])


def mirrored(batch):
    """The pair in a mirror: the other camera is on the other side, pictures stay in their places"""
    out = {k: v.flip(-1) if v.ndim == 4 else v for k, v in batch.items()}
    out["intrinsics"] = batch["intrinsics"].clone()
    out["intrinsics"][:, 0, 2] = batch["image"].shape[-1] - 1 - out["intrinsics"][:, 0, 2]
    return out | {"baseline": -batch["baseline"]}


def both_see(batch):
    """Where the surface is seen by both cameras and is no edge, from the exact depth: whatever is
    farther right but nearer must not come to lie before it."""
    depth = batch["depth"]
    at = torch.arange(depth.shape[-1]) - focal(batch) * batch["baseline"] / depth
    free = at.flip(-1).cummin(-1)[0].flip(-1) >= at - 0.35
    near, far = -F.max_pool2d(-depth, 3, 1, 1), F.max_pool2d(depth, 3, 1, 1)
    return free & (far < 1.05 * near) & (at >= 0)


def warped(batch, factor=1.0):
    transform = stereo_transform(batch["baseline"])
    return warp(batch["right"], factor * batch["depth"], batch["intrinsics"], transform)


# ---- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mirror", [False, True])
def test_true_depth_explains_the_picture_and_no_other_does(pair, mirror):
    seen = both_see(pair)
    batch = mirrored(pair) if mirror else pair
    seen = seen.flip(-1) if mirror else seen
    picture, inside = warped(batch)
    assert inside[seen].float().mean() > 0.99
    # The renderer's own anti-aliasing and the bilinear sampling leave some thousandths.
    assert (picture - batch["image"]).abs().mean(1, keepdim=True)[seen].median() < 0.003
    errors = {
        factor: float(photometric_error(warped(batch, factor)[0], batch["image"])[seen].mean())
        for factor in (0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.25)
    }
    assert min(errors, key=errors.get) == 1.0
    for factor, at_least in ((0.8, 1.5), (0.9, 1.2), (1.1, 1.2), (1.25, 1.5)):
        assert errors[factor] > at_least * errors[1.0], errors
    unmoved = photometric_error(batch["right"], batch["image"])[seen].mean()
    assert unmoved > 4 * errors[1.0]


def test_inside_is_where_the_point_falls_on_the_other_picture():
    other = torch.rand(1, 3, 4, 10)
    k = torch.tensor([[[20.0, 0, 4.5], [0, 20, 1.5], [0, 0, 1]]])
    depth = torch.full((1, 1, 4, 10), 2.0)  # disparity 20 * .3 / 2 = 3
    picture, inside = warp(other, depth, k, stereo_transform(torch.tensor([0.3])))
    torch.testing.assert_close(picture[..., 3:], other[..., :7], atol=1e-5, rtol=0)
    torch.testing.assert_close(picture[..., :3], other[..., :1].expand(1, 3, 4, 3))
    assert torch.equal(inside[0, 0, 0], torch.arange(10) >= 3)


def test_warp_by_a_turn():
    """Half a turn about the axis through the picture's centre: upside down, at any depth."""
    other, depth = torch.rand(1, 3, 5, 7), torch.rand(1, 1, 5, 7) + 1
    k = torch.tensor([[[6.0, 0, 3], [0, 6, 2], [0, 0, 1]]])
    turn = torch.diag(torch.tensor([-1.0, -1, 1, 1]))[None]
    picture, inside = warp(other, depth, k, turn)
    torch.testing.assert_close(picture, other.flip(-1, -2), atol=1e-5, rtol=0)
    assert inside.all()
    behind = torch.diag(torch.tensor([1.0, 1, -1, 1]))[None]
    assert not warp(other, depth, k, behind)[1].any()


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_no_depth_is_not_inside_and_harms_nothing(bad):
    depth = torch.full((1, 1, 4, 6), 2.0)
    depth[0, 0, 1, 3] = bad
    depth.requires_grad_()
    k = torch.tensor([[[5.0, 0, 2], [0, 5, 2], [0, 0, 1]]])
    picture, inside = warp(torch.rand(1, 3, 4, 6), depth, k, stereo_transform(torch.tensor([0.1])))
    assert picture.isfinite().all() and not inside[0, 0, 1, 3]
    picture.sum().backward()
    assert depth.grad.isfinite().all() and depth.grad[0, 0, 1, 3] == 0


def test_gradient_of_warp():
    generator = torch.Generator().manual_seed(3)
    other = torch.rand(2, 2, 5, 6, generator=generator, dtype=torch.float64).requires_grad_()
    depth = torch.rand(2, 1, 5, 6, generator=generator, dtype=torch.float64) + 1.5
    k = torch.tensor([[[5.0, 0, 2.3], [0, 5.0, 2.1], [0, 0, 1]]], dtype=torch.float64).repeat(
        2, 1, 1
    )
    move = stereo_transform(torch.tensor([0.21, -0.13], dtype=torch.float64))
    move[:, 1, 3], move[:, 2, 3] = 0.07, 0.05
    assert torch.autograd.gradcheck(
        lambda *x: warp(*x, k, move)[0], (other, depth.requires_grad_()), eps=1e-7
    )


def test_shapes_of_warp_are_named():
    k, t = torch.eye(3)[None], torch.eye(4)[None]
    with pytest.raises(
        ValueError, match=r"takes depth of shape \(1, 1, 4, 6\); got \(1, 1, 2, 3\)"
    ):
        warp(torch.rand(1, 3, 4, 6), torch.ones(1, 1, 2, 3), k, t)
    with pytest.raises(ValueError, match=r"takes transform of shape \(1, 4, 4\)"):
        warp(torch.rand(1, 3, 4, 6), torch.ones(1, 1, 4, 6), k, k)


# ---- photometric error ------------------------------------------------------------------------


def by_hand(x, y, i, j):
    """The formula at one pixel of two (c, h, w) pictures, window by window."""

    def at(n, size):
        n = abs(n)
        return 2 * (size - 1) - n if n >= size else n

    h, w = x.shape[-2:]
    total = 0.0
    for a, b in zip(x, y, strict=True):
        window = [(at(i + r, h), at(j + c, w)) for r in (-1, 0, 1) for c in (-1, 0, 1)]
        p, q = (np.array([float(z[place]) for place in window]) for z in (a, b))
        mp, mq = p.mean(), q.mean()
        ssim = (2 * mp * mq + 1e-4) * (2 * (p * q).mean() - 2 * mp * mq + 9e-4)
        ssim /= (mp**2 + mq**2 + 1e-4) * (p.var() + q.var() + 9e-4)
        total += 0.85 * min(max((1 - ssim) / 2, 0), 1) + 0.15 * abs(float(a[i, j] - b[i, j]))
    return total / len(x)


def test_photometric_error_is_its_formula():
    x, y = torch.rand(2, 2, 3, 4, 5, dtype=torch.float64)
    error = photometric_error(x, y)
    assert error.shape == (2, 1, 4, 5)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                assert float(error[b, 0, i, j]) == pytest.approx(by_hand(x[b], y[b], i, j))


pictures = arrays(np.float64, (2, 1, 3, 4, 5), elements=st.floats(0, 1, width=16))


@settings(deadline=None)
@given(pictures)
def test_properties_of_photometric_error(two):
    x, y = torch.from_numpy(two)
    error = photometric_error(x, y)
    assert error.shape == (1, 1, 4, 5) and (error >= 0).all() and (error <= 1).all()
    torch.testing.assert_close(error, photometric_error(y, x))
    assert (photometric_error(x, x) == 0).all()
    differs = (x != y).any(1, keepdim=True)
    assert (error[differs] > 0).all()
    far = F.max_pool2d(differs.double(), 3, 1, 1) == 0
    assert (error[far].abs() < 1e-12).all()
    for axis in (-1, -2):
        flipped = photometric_error(x.flip(axis), y.flip(axis)).flip(axis)
        torch.testing.assert_close(flipped, error)


def test_grey_pictures_have_the_error_of_one_channel():
    x, y = torch.rand(2, 1, 1, 6, 7)
    grey = photometric_error(x.expand(1, 3, 6, 7), y.expand(1, 3, 6, 7))
    torch.testing.assert_close(grey, photometric_error(x, y))


def test_photometric_error_of_different_sizes():
    with pytest.raises(ValueError, match=r"\(1, 3, 4, 5\) and \(1, 3, 4, 6\)"):
        photometric_error(torch.rand(1, 3, 4, 5), torch.rand(1, 3, 4, 6))


# ---- depth hints ------------------------------------------------------------------------------


def within_5_percent(hint, truth):
    both = (hint > 0) & (truth > 0)
    return float(((hint - truth).abs() < 0.05 * truth)[both].float().mean())


def read(path, size=None):
    image = decode(path).convert("RGB")
    return torch.from_numpy(
        resize_image(image, size or (image.height, image.width)) / 255.0
    ).float()


def test_hints_of_a_real_pair(real):
    """Middlebury's motorcycle: 90.6 % at its full size of 497x741, 90.1 % at half of it."""
    folder = real / "stereo" / "motorcycle"
    with open(folder / "disp0GT.pfm", "rb") as file:
        assert file.readline() == b"Pf\n"
        width, height = map(int, file.readline().split())
        assert float(file.readline()) < 0  # little-endian
        disparity = np.frombuffer(file.read(), "<f4").reshape(height, width)[::-1].copy()
    h, w = height // 2, width // 2
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in ((h, height), (w, width))
    )
    d = torch.from_numpy(disparity[np.ix_(rows, columns)])[None]
    truth = torch.where(d.isfinite(), 0.193001 * 999.421 / (d + 32.778), 0.0)
    left, right = (read(folder / f"im{n}.png", (h, w)) for n in (0, 1))
    options = {"focal": 999.421 * w / width, "offset": 32.778 * w / width, "baseline": 0.193001}
    hint = toys.depth_hint(left, right, **options)
    assert hint.shape == (1, h, w) and hint.dtype == torch.float32
    assert (hint > 0).float().mean() > 0.85
    assert within_5_percent(hint, truth) > 0.85
    check_pair(left, right, **options)
    # In the mirror the other camera stands to the left.
    mirror = options | {"baseline": -options["baseline"], "offset": -options["offset"]}
    again = toys.depth_hint(left.flip(-1), right.flip(-1), **mirror).flip(-1)
    torch.testing.assert_close(again, hint, atol=1e-4, rtol=1e-5)


def test_hints_of_a_real_street(real):
    """KITTI scene flow: 93.8 % within its own measure, 3 pixels or 5 % of the disparity."""
    folder = real / "kitti" / "scene_flow_2015"
    name = "000046_10.png"
    left, right = (read(folder / f"image_{n}_{name}") for n in (2, 3))
    stored = np.asarray(Image.open(folder / f"disp_occ_0_{name}")).astype("f4")
    truth = torch.from_numpy(stored / 256)[None]
    left, right, truth = (x[:, 100:300, :700] for x in (left, right, truth))
    found = matched_disparity(left, right).float() / 16
    both = (found > 0) & (truth > 0)
    error = (found - truth).abs()
    assert both.sum() > 5000
    assert ((error < 3) | (error < 0.05 * truth))[both].float().mean() > 0.9


def test_hints_do_not_lean_to_one_side(pair):
    """Half a pixel off would be a mistake of pixel centres; 2 to 5 pixels are 5 % in a fourth."""
    hint = toys.depth_hint(
        pair["image"][0], pair["right"][0], focal=focal(pair), baseline=float(pair["baseline"])
    )[None]
    both = (hint > 0) & both_see(pair) & (pair["depth"] < 80)
    assert both.float().mean() > 0.25
    per_depth = focal(pair) * pair["baseline"]
    error = (per_depth / hint - per_depth / pair["depth"])[both]
    assert error.median().abs() < 0.15
    assert error.abs().median() < 0.35


def test_hints_take_the_ranges_in_proportion_to_the_width(monkeypatch):
    asked = []

    def create(**options):
        asked.append((options["blockSize"], options["numDisparities"]))
        assert (options["P1"], options["P2"], options["uniquenessRatio"]) == (36, 288, 10)
        return made(**options)

    made = cv2.StereoSGBM_create
    monkeypatch.setattr(cv2, "StereoSGBM_create", create)
    published = [(block, count) for block in (1, 2, 3) for count in (64, 96, 128, 160)]
    toys.depth_hint(*torch.rand(2, 3, 16, 1024), focal=600, baseline=0.5)
    assert asked == published
    asked.clear()
    toys.depth_hint(*torch.rand(2, 3, 16, 256), focal=150, baseline=0.5)
    assert asked == [(block, count) for block in (1, 2, 3) for count in (16, 32, 48)]


def test_no_disparity_is_no_hint():
    """Points at infinity, a picture paired with itself, are not a depth."""
    picture = torch.rand(3, 32, 64)
    found = matched_disparity(picture, picture)
    assert ((found == 0) | (found == -1)).float().mean() > 0.95 and (found == 0).any()
    hint = toys.depth_hint(picture, picture, focal=50, baseline=0.1)
    assert (hint[found <= 0] == 0).all() and (hint[found > 0] > 0).all()
    # With an offset of the principal points it is one: 50 * .1 / 2.
    shifted = toys.depth_hint(picture, picture, focal=50, baseline=0.1, offset=2.0)
    assert torch.equal(shifted[found == 0], torch.full_like(shifted[found == 0], 2.5))
    assert (shifted[found == -1] == 0).all()


def test_too_narrow_for_hints():
    with pytest.raises(ValueError, match="at least 20 columns and 2 rows; got 16x19"):
        toys.depth_hint(*torch.rand(2, 3, 16, 19), focal=50, baseline=0.1)


# ---- grafting ---------------------------------------------------------------------------------


def numbered(b=6, h=10, w=4, baselines=None):
    """Every pixel says its item and row: 100 · item + row."""
    x = 100.0 * torch.arange(b).view(b, 1, 1, 1) + torch.arange(h).view(1, 1, h, 1)
    image = x.expand(b, 3, h, w)
    return {
        "image": image,
        "right": image + 0.25,
        "hint": image[:, :1] + 0.5,
        "label": image[:, 0].long(),
        "name": [f"item {i}" for i in range(b)],
        "intrinsics": torch.eye(3).repeat(b, 1, 1),
        "baseline": torch.tensor(baselines or [0.5] * b),
    }


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from([0.5, -0.5]), min_size=1, max_size=7), st.integers(0, 2**31))
def test_properties_of_grafting(baselines, seed):
    b, h = len(baselines), 10
    batch = numbered(b, h, baselines=baselines)
    before = batch["image"].clone()
    out = data_graft(batch, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(batch["image"], before)
    for untouched in ("name", "intrinsics", "baseline"):
        assert out[untouched] is batch[untouched]
    values = out["image"][:, 0, :, 0]
    assert torch.equal(out["image"], values[:, None, :, None].expand_as(before))
    assert torch.equal(out["right"], out["image"] + 0.25)
    assert torch.equal(out["hint"], out["image"][:, :1] + 0.5)
    assert torch.equal(out["label"], out["image"][:, 0].long())
    source, row = values.long() // 100, values.long() % 100
    starts = set()
    for i in range(b):
        assert sorted(row[i].tolist()) == list(range(h))  # every row once
        (jump,) = (row[i].diff() != 1).nonzero(as_tuple=True)
        assert len(jump) <= 1  # two strips at most, each in one piece
        if len(jump):  # exchanged: the lower strip comes first
            starts.add(h - 1 - int(jump))
        for owner in source[i].unique().tolist():
            assert baselines[owner] == baselines[i]
        start = {int(r) for r in row[i][source[i] != i]}
        if start:
            assert start == set(range(min(start), h))  # the other's are the lower rows
            starts.add(min(start))
        elif baselines.count(baselines[i]) > 1:
            pytest.fail("an item did not meet another of its side")
    assert len(starts - {0}) <= 1
    assert starts <= {int(r * h) for r in GRAFT_RATIOS}
    for r in range(h):  # nothing is lost: each row of each item is somewhere
        assert sorted(source[row == r].tolist()) == list(range(b))


def test_grafting_draws_every_ratio_and_order():
    generator = torch.Generator().manual_seed(0)
    drawn = {
        tuple((data_graft(numbered(2), generator=generator)["image"][0, 0, :, 0]).long().tolist())
        for _ in range(200)
    }
    expected = set()
    for start in (0, 2, 4, 6, 8):
        upper, lower = list(range(start)), [100 + r for r in range(start, 10)]
        expected |= {tuple(upper + lower), tuple(lower + upper)}
    assert drawn == expected


def test_graft_of_different_cameras_is_refused():
    batch = numbered(3, baselines=[0.5, 0.6, -0.5])
    with pytest.raises(ValueError, match=r"the baseline of this batch goes from 0.5 to 0.6"):
        data_graft(batch)
    batch = numbered(2)
    batch["intrinsics"][1, 0, 0] = 1.02  # KITTI's dates differ by so much
    data_graft(batch)
    batch["intrinsics"][1, 0, 0] = 1.1
    with pytest.raises(ValueError, match="the focal length of this batch goes from 1 to 1.1"):
        data_graft(batch)


def test_graft_needs_calibration():
    batch = numbered()
    del batch["baseline"]
    with pytest.raises(ValueError, match="this batch has no baseline, only image, right, hint"):
        data_graft(batch)


# ---- is it a pair? ----------------------------------------------------------------------------


def check(batch, **options):
    options = {"focal": focal(batch), "baseline": float(batch["baseline"])} | options
    check_pair(batch["image"][0], batch["right"][0], **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": torch.rand(3, 30, 47)}, "differ in size, 30x48 and 30x47"),
        ({"left": torch.rand(1, 30, 48)}, r"got \(1, 30, 48\) and .* Repeat a grey one: x.expand"),
        ({"baseline": 0.0}, "baseline other than 0 .* got focal=40, baseline=0"),
        ({"baseline": math.nan}, "baseline=nan"),
        ({"focal": -40.0}, "focal length above 0 .* got focal=-40"),
        ({"baseline": None}, "No calibration of this pair: focal=40.0, baseline=None"),
        ({"focal": None}, "No calibration"),
    ],
)
def test_what_is_no_pair(change, message):
    arguments = {"left": torch.rand(3, 30, 48), "right": torch.rand(3, 30, 48)}
    arguments |= {"focal": 40.0, "baseline": 0.1} | change
    left, right = arguments.pop("left"), arguments.pop("right")
    with pytest.raises(ValueError, match=message):
        check_pair(left, right, **arguments)


def test_hint_of_another_size_and_the_same_picture_twice(pair):
    with pytest.raises(ValueError, match=r"must be \(1, \d+, \d+\), as large as its pictures; got"):
        check(pair, hint=torch.ones(1, 4, 4))
    check(pair, hint=torch.ones_like(pair["depth"][0]))
    with pytest.raises(ValueError, match="Both pictures of this pair are the same"):
        check(pair | {"right": pair["image"]})
