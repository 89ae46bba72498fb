"""Augmentations: image, depth and camera stay together, and values stay in their ranges."""

import functools
import math
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from mde_utils.data import AUGMENTATIONS, collate
from mde_utils.data import transforms as module
from mde_utils.data.transforms import (
    bts_augment,
    bts_kitti_augment,
    cspn_augment,
    epc_augment,
    epc_nyu,
    meter_augment,
    mff_augment,
    network_input,
    resolve_augmentation,
)
from mde_utils.protocols import EIGEN
from mde_utils.stereo import photometric_error, stereo_transform, warp
from scenes.streets import STREETS
from scenes.world import render_scene

STEPS = ("mirror", "channels", "crop", "shift")
NO_COLOUR = {
    "meter": functools.partial(meter_augment, channels=0, shift=0),
    "mff": lambda item: geometry(mff_augment, item),
    "bts": lambda item: geometry(bts_augment, item),
    "bts_kitti": lambda item: geometry(bts_kitti_augment, item),
}


def geometry(augment, item):
    """What an augmentation does to pixels' places alone."""
    off = {"_relight": lambda image, **_: image, "_jitter": lambda image: image}
    with mock.patch.multiple(module, _EIGENVALUES=torch.zeros(3), **off):
        return augment(item)


SIZES = st.tuples(st.integers(40, 70), st.integers(60, 90))


def ramp(h, w):
    """Every pixel says where it was: image (x/w, y/h), label x + w y, depth 1 + x + w y."""
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    return {
        "image": torch.stack([x / w, y / h, torch.full((h, w), 0.5)]),
        "depth": (1.0 + x + w * y)[None],
        "label": x + w * y,
        "normal": torch.nn.functional.normalize(torch.randn(3, h, w), dim=0),
        "intrinsics": torch.tensor([[1.1 * w, 0, 0.48 * w], [0, 1.12 * w, 0.53 * h], [0, 0, 1]]),
        "focal": torch.tensor(1.1 * w),
        "name": "ramp",
    }


def picture(h=40, w=60):
    depth = 0.5 + 9 * torch.rand(1, h, w)
    depth[torch.rand(1, h, w) < 0.2] = 0
    return {"image": torch.rand(3, h, w), "depth": depth}


def seeds(n=40):
    for seed in range(n):
        torch.manual_seed(seed)
        yield seed


# ---- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_COLOUR)
@settings(deadline=None, max_examples=40)
@given(size=SIZES, seed=st.integers(0, 10**6))
def test_image_depth_and_label_stay_aligned(name, size, seed):
    h, w = size
    item = ramp(h, w)
    torch.manual_seed(seed)
    out = NO_COLOUR[name](item)
    valid = out["depth"][0] > 0
    where = out["depth"][0].long() - 1
    assert torch.equal(out["label"][valid], where[valid])
    assert (out["label"][~valid] == -1).all()
    # Away from the borders, where bilinear interpolation meets what is outside.
    inner = torch.zeros_like(valid)
    inner[4:-4, 4:-4] = True
    inner &= valid
    x, y = where % w, where // w
    # Nearest is off by half a pixel of the source at most (and rounding of the image's ramp).
    assert (out["image"][0] * w - x)[inner].abs().max() <= 0.51
    assert (out["image"][1] * h - y)[inner].abs().max() <= 0.51


@pytest.mark.parametrize("name", NO_COLOUR)
@settings(deadline=None, max_examples=40)
@given(size=SIZES, seed=st.integers(0, 10**6))
def test_camera_and_normals_follow(name, size, seed):
    """A pixel's point and normal, in the new camera, are the old ones turned by one map."""
    h, w = size
    item = ramp(h, w)
    torch.manual_seed(seed)
    out = NO_COLOUR[name](item)
    y, x = torch.nonzero(out["depth"][0] > 0, as_tuple=True)
    where = out["depth"][0, y, x].long() - 1

    def rays(k, u, v):
        pixels = torch.stack([u, v, torch.ones_like(u)]).double()
        return torch.linalg.inv(k.double()) @ pixels

    before = rays(item["intrinsics"], where % w, where // w)
    after = rays(out["intrinsics"], x, y)
    n_before = item["normal"][:, where // w, where % w].double()
    n_after = out["normal"][:, y, x].double()
    m = n_after @ torch.linalg.pinv(n_before)
    assert torch.allclose(m @ m.T, torch.eye(3).double(), atol=1e-5)  # no shear, no scale
    assert torch.allclose(m[2], torch.tensor([0, 0, 1.0]).double(), atol=1e-5)  # z stays z
    # Half a pixel of the source, in either direction, at the focal length of about 1.1 w.
    assert (m @ before - after).abs().max() * 1.1 * w <= 0.75


def test_mirror_is_its_own_inverse_and_turns_normals():
    item = ramp(10, 14)
    once = module._mirror(item)
    assert torch.equal(once["image"], item["image"].flip(-1))
    assert torch.equal(once["normal"][0], -item["normal"][0].flip(-1))
    assert once["intrinsics"][0, 2].item() == pytest.approx(13 - 0.48 * 14)
    twice = module._mirror(once)
    for name in ("image", "depth", "label", "normal", "focal"):
        assert torch.equal(twice[name], item[name])
    assert torch.allclose(twice["intrinsics"], item["intrinsics"])


def test_zoom_scales_the_focal_length():
    item = ramp(20, 30)
    out = module._window(item, 2, 3, 10, 15, size=(20, 30))
    assert out["focal"].item() == pytest.approx(2 * item["focal"].item())
    assert out["intrinsics"][0, 0].item() == pytest.approx(2 * item["intrinsics"][0, 0].item())


def test_mff_sizes_are_those_of_the_paper():
    out = mff_augment(picture(240, 320))
    assert out["image"].shape == (3, 228, 304) and out["depth"].shape == (1, 228, 304)


def test_mffs_test_view_is_the_centre_of_its_training_view():
    item = picture(240, 320)
    out = AUGMENTATIONS["mff_crop"](item)
    for key in ("image", "depth"):
        assert torch.equal(out[key], item[key][:, 6:234, 8:312])


def test_meter_keeps_the_size():
    for _ in seeds(10):
        out = meter_augment(picture(41, 53), crop=1, smallest=0.3)
        assert out["image"].shape == (3, 41, 53) and out["depth"].shape == (1, 41, 53)


def test_rotation_marks_filled_corners_as_no_measurement():
    item = picture(40, 60) | {"depth": torch.full((1, 40, 60), 3.0)}
    out = module._rotate(item, 5.0)
    corners = out["depth"][0, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).all() and {*out["depth"].unique().tolist()} == {0.0, 3.0}
    filled = (out["depth"] == 0).float().mean().item()
    assert 0.02 < filled < 0.1


@pytest.mark.parametrize("degrees", [-5.0, 0.0, 5.0])
def test_rotation_moves_the_principal_point_with_the_image(degrees):
    item = ramp(40, 60)
    k = module._rotate(item, degrees)["intrinsics"]
    # Counter-clockwise on a screen whose y points down, about the centre of the image.
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = 0.48 * 60 - 29.5, 0.53 * 40 - 19.5
    assert k[:2, 2].tolist() == pytest.approx([29.5 + c * dx + s * dy, 19.5 - s * dx + c * dy])


@pytest.mark.parametrize(
    "augment, size, cropped",
    [
        (bts_augment, (480, 640), (416, 544)),
        (bts_augment, (240, 320), (192, 256)),
        (bts_augment, (96, 128), (64, 96)),
        (bts_kitti_augment, (352, 1216), (352, 704)),
        (bts_kitti_augment, (375, 1242), (352, 704)),
        (bts_kitti_augment, (64, 224), (64, 128)),
    ],
)
def test_btss_crops_are_those_of_the_paper_and_in_proportion(augment, size, cropped):
    for _ in seeds(3):
        out = augment(picture(*size))
        assert out["image"].shape == (3, *cropped) and out["depth"].shape == (1, *cropped)


def test_bts_never_shows_nyus_border():
    """Of 480x640 rows 45:472 and columns 43:608; what rotation fills is 0 and no border."""
    item = picture(480, 640) | {"depth": torch.full((1, 480, 640), 9.0)}
    item["depth"][:, 45:472, 43:608] = 1.0
    seen = set()
    for _ in seeds(8):
        seen |= {*bts_augment(item)["depth"].unique().tolist()}
    assert seen == {0.0, 1.0}


@pytest.mark.parametrize(
    "augment, size, rows, columns",
    [
        (bts_augment, (96, 128), (9, 94 - 64), (9, 122 - 96)),
        (bts_kitti_augment, (32, 64), (0, 0), (0, 32)),
    ],
)
def test_btss_crops_lie_anywhere_inside(augment, size, rows, columns, monkeypatch):
    monkeypatch.setattr(module, "_angle", lambda degrees: 0.0)
    monkeypatch.setattr(module, "_happens", lambda probability: False)  # no mirror
    item = ramp(*size)
    corners = [augment(item)["label"][0, 0].item() for _ in seeds(300)]
    found = [{corner // size[1] for corner in corners}, {corner % size[1] for corner in corners}]
    assert [(min(f), max(f)) for f in found] == [rows, columns]


@pytest.mark.parametrize("augment, most", [(bts_augment, 2.5), (bts_kitti_augment, 1.0)])
def test_bts_always_rotates_a_little(augment, most, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, "_rotate", lambda item, degrees: drawn.append(degrees) or item)
    for _ in seeds(300):
        augment(picture())
    assert -most <= min(drawn) < -0.95 * most and 0.95 * most < max(drawn) <= most


@pytest.mark.parametrize(
    "augment, size, least",
    [(bts_augment, (30, 90), "37x38"), (bts_kitti_augment, (64, 50), "32x56")],
)
def test_bts_says_which_sizes_it_can_crop(augment, size, least):
    with pytest.raises(ValueError, match=f"of {size[0]}x{size[1]} no 32x32.*at least {least}"):
        augment(picture(*size))
    h, w = map(int, least.split("x"))
    assert augment(picture(h, w))["image"].shape == (3, 32, 32)


# ---- values -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_ranges_hold_and_the_given_item_is_untouched(name):
    for _ in seeds():
        item = picture()
        copy = {k: v.clone() for k, v in item.items()}
        out = AUGMENTATIONS[name](item)
        assert out["image"].dtype == out["depth"].dtype == torch.float32
        assert 0 <= out["image"].min() and out["image"].max() <= 1
        assert (out["depth"] >= 0).all() and out["depth"].isfinite().all()
        assert all(torch.equal(item[k], copy[k]) for k in copy)


@pytest.mark.parametrize("image", [torch.zeros(3, 40, 60), torch.ones(3, 40, 60)])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_black_and_white_stay_numbers(name, image):
    for _ in seeds(10):
        out = AUGMENTATIONS[name]({"image": image, "depth": torch.zeros(1, 40, 60)})
        assert out["image"].isfinite().all() and (out["depth"] == 0).all()


def test_shift_moves_measurements_alike_and_nothing_else():
    shifts = set()
    for _ in seeds(200):
        item = picture()
        out = meter_augment(item, mirror=0, channels=0, crop=0, shift=1)
        valid = item["depth"] > 0
        assert (out["depth"][~valid] == 0).all()
        moved = (out["depth"] - item["depth"])[valid]
        assert moved.max() - moved.min() < 1e-5
        shifts.add(round(moved.mean().item() * 100))
    assert shifts == {*range(-10, 11)}


def test_shift_leaves_nearby_depth_positive():
    near = {"image": torch.rand(3, 8, 8), "depth": torch.full((1, 8, 8), 0.03)}
    for _ in seeds():
        assert meter_augment(near, shift=1)["depth"].min() >= 0.01 - 1e-9


def test_sparse_depth_shifts_with_depth():
    item = picture()
    item["sparse_depth"] = torch.where(torch.rand_like(item["depth"]) < 0.1, item["depth"], 0)
    for _ in seeds(10):
        out = meter_augment(item)
        sparse = out["sparse_depth"] > 0
        assert torch.equal(out["sparse_depth"][sparse], out["depth"][sparse])


def test_gamma_is_gentle():
    """On [0, 1] the recipe's gamma, brightness and gains move a mid grey by a quarter at most."""
    grey = {"image": torch.full((3, 8, 8), 0.5), "depth": torch.ones(1, 8, 8)}
    values = [meter_augment(grey, shift=1)["image"].mean((1, 2)) for _ in seeds()]
    assert 0.37 < torch.stack(values).min() and torch.stack(values).max() < 0.66
    assert torch.stack(values).std() > 0.02


def test_channels_are_permuted_never_repeated():
    item = {"image": torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1).expand(3, 8, 8)}
    item["depth"] = torch.ones(1, 8, 8)
    seen = set()
    for _ in seeds(100):
        out = meter_augment(item, mirror=0, channels=1, crop=0, shift=0)
        seen.add(tuple(round(v, 1) for v in out["image"][:, 0, 0].tolist()))
    assert len(seen) == 6 and all(sorted(order) == [0.1, 0.5, 0.9] for order in seen)


def test_crops_reach_every_border():
    """The original swaps the limits of width and height and stops half way."""
    item = ramp(30, 50)
    reached = set()
    for _ in seeds(300):
        out = meter_augment(item, mirror=0, channels=0, crop=1, shift=0, smallest=0.5)
        rows, columns = (out["label"] // 50).unique(), (out["label"] % 50).unique()
        reached |= {("top", rows[0] == 0), ("bottom", rows[-1] == 29)}
        reached |= {("left", columns[0] == 0), ("right", columns[-1] == 49)}
    sides = {(side, bool(at)) for side, at in reached}
    assert sides == {(s, at) for s in ("top", "bottom", "left", "right") for at in (True, False)}


@pytest.mark.parametrize("step", STEPS)
def test_probabilities(step):
    off = dict.fromkeys(STEPS, 0.0)
    item = ramp(24, 32)
    for _ in seeds(5):
        out = meter_augment(item, **off)
        assert all(torch.equal(out[k], item[k]) for k in ("image", "depth", "normal"))
    changed = 0
    for _ in seeds(200):
        out = meter_augment(item, **{**off, step: 0.5})
        changed += not torch.equal(out["image"], item["image"])
    assert 50 < changed < 135  # one permutation in six is the identity


# ---- chance, errors ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meter", "mff", "bts", "bts_kitti", "cspn"])
def test_torch_seed_decides(name):
    item, augment = picture(), AUGMENTATIONS[name]
    torch.manual_seed(3)
    first = augment(item)
    second = augment(item)
    torch.manual_seed(3)
    again = augment(item)
    assert torch.equal(first["image"], again["image"])
    assert not torch.equal(first["image"], second["image"])


@pytest.mark.parametrize("augment, brightness", [(bts_augment, 0.25), (bts_kitti_augment, 0.1)])
def test_bts_relights_half_of_the_images_within_its_bounds(augment, brightness, monkeypatch):
    monkeypatch.setattr(module, "_angle", lambda degrees: 0.0)  # which would fill corners
    grey, gains, moved = 0.5, [], 0
    item = {"image": torch.full((3, 64, 96), grey), "depth": torch.ones(1, 64, 96)}
    for _ in seeds(300):
        out = augment(item)["image"]
        assert (out == out[:, :1, :1]).all()  # a flat image stays flat
        gains.append((out[:, 0, 0] / grey).tolist())
        moved += out[0, 0, 0].item() != grey
    assert 110 < moved < 190
    # Gamma .9 or 1.1 of .5 is .536 or .467, brightness and a channel's gain come on top.
    low, high = min(map(min, gains)), max(map(max, gains))
    assert 0.5**0.1 * (1 - brightness) * 0.9 <= low < 1 - brightness * 0.8
    assert 1 + brightness * 0.8 < high <= 0.5**-0.1 * (1 + brightness) * 1.1 + 1e-6


class Same(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        torch_only = {"image": torch.full((3, 24, 32), 0.4), "depth": torch.ones(1, 24, 32)}
        return meter_augment(torch_only, shift=1)


def test_workers_draw_differently_and_repeatably():
    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(Same(), batch_size=1, num_workers=2, generator=generator)
        return torch.cat([batch["image"].mean((1, 2, 3)) for batch in loader])

    first = draw(0)
    assert len(first.unique()) > 6 and torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS.keys() - module.OF_PAIRS))
def test_a_stereo_pair_is_refused(name):
    item = picture()
    with pytest.raises(ValueError, match=f"'{name}'.*right view.*baseline=None"):
        AUGMENTATIONS[name](item | {"right": item["image"]})


def test_resolve():
    assert resolve_augmentation(None) is None
    assert resolve_augmentation("mff") is mff_augment
    own = functools.partial(meter_augment, shift=0)
    assert resolve_augmentation(own) is own
    with pytest.raises(ValueError, match="Unknown augmentation 'meters'. Did you mean 'meter'?"):
        resolve_augmentation("meters")
    with pytest.raises(TypeError, match="not list"):
        resolve_augmentation([])


# ---- EPCDepth --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def street():
    item = render_scene(STREETS, "test", 1, size=(48, 160), baseline=0.54, clean=True)
    depth = torch.where(item["depth"] > 0, item["depth"], 1e4)  # the sky
    return item | {"depth": depth, "hint": depth.clone(), "baseline": 0.54, "focal": 1.0}


def error_of(item):
    """How well the other picture, warped by depth, explains the picture."""
    batch = collate([item])
    transform = stereo_transform(batch["baseline"].float())
    picture, _ = warp(batch["right"], batch["depth"], batch["intrinsics"], transform)
    return photometric_error(picture, batch["image"]).mean().item()


def test_a_pair_in_a_mirror_is_one_with_the_cameras_exchanged(street):
    out = epc_augment(street, mirror=1, colour=0)
    assert out["baseline"] == -0.54 and street["baseline"] == 0.54
    for name in ("image", "right", "depth", "hint"):  # each picture keeps its place
        assert torch.equal(out[name], street[name].flip(-1))
    cx = street["intrinsics"][0, 2]
    assert out["intrinsics"][0, 2] == 159 - cx and out["intrinsics"][0, 0] > 0
    assert error_of(out) == pytest.approx(error_of(street), rel=0.02)
    assert error_of(out | {"baseline": 0.54}) > 1.5 * error_of(out)
    again = epc_augment(out, mirror=1, colour=0)
    assert again["baseline"] == 0.54 and torch.equal(again["image"], street["image"])


def test_both_pictures_change_their_colours_alike(street):
    seen = set()
    for _ in seeds(8):
        twice = epc_augment(street | {"right": street["image"]}, mirror=0, colour=1)
        assert torch.equal(twice["image"], twice["right"])
        out = epc_augment(street, mirror=0, colour=1)
        assert error_of(out) == pytest.approx(error_of(street), rel=0.5)
        assert torch.equal(out["depth"], street["depth"]) and out["baseline"] == 0.54
        seen.add(out["image"].mean().item())
    assert len(seen) == 8
    # Half of the pairs are mirrored, half are coloured, and each is drawn by itself.
    draws = [epc_augment(street) for _ in seeds(200)]
    mirrored = [item["baseline"] < 0 for item in draws]
    coloured = [
        item["image"].mean().sub(street["image"].mean()).abs().item() > 1e-5 for item in draws
    ]
    for drawn in (mirrored, coloured, [a == b for a, b in zip(mirrored, coloured, strict=True)]):
        assert 70 < sum(drawn) < 130


def test_an_image_alone_is_augmented_too():
    out = epc_augment(ramp(40, 60), mirror=1, colour=0)
    assert torch.equal(out["label"], ramp(40, 60)["label"].flip(-1)) and "baseline" not in out


def test_the_network_may_see_another_size_than_is_compared():
    out = network_input(ramp(60, 90), size=(20, 30))
    assert out["image"].shape == (3, 20, 30) and out["depth"].shape == (1, 60, 90)
    torch.testing.assert_close(out["image"][0, 0, 5:25] * 90, 3 * torch.arange(5.0, 25) + 1)


def test_what_epcdepth_sees_of_nyu():
    item = ramp(480, 640)
    out = epc_nyu(item)
    assert out["image"].shape == (3, 288, 384)
    assert torch.equal(out["label"], item["label"][44:471, 40:601])
    assert out["frame"].tolist() == [44, 40, 480, 640] and "frame" not in item
    assert epc_nyu(ramp(240, 320))["depth"].shape == (1, 235 - 22, 300 - 20)


# ---- CSPN -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(size=SIZES, seed=st.integers(0, 10**6))
def test_cspn_enlarges_and_brings_nearer_alike(size, seed):
    """By one factor, which the focal length tells; image, depth and label stay together."""
    h, w = size
    item = ramp(h, w)
    torch.manual_seed(seed)
    out = cspn_augment(item, jitter=0)
    assert all(out[k].shape == item[k].shape for k in ("image", "depth", "label"))
    scale = (out["focal"] / item["focal"]).item()
    assert 0.97 < scale < 1.55
    valid = out["depth"][0] > 0
    where = (out["depth"][0] * scale).round().long() - 1
    assert torch.equal(out["label"][valid], where[valid])
    inner = torch.zeros_like(valid)
    inner[4:-4, 4:-4] = True
    inner &= valid & (torch.nn.functional.max_pool2d((~valid).float()[None], 5, 1, 2)[0] == 0)
    # Two resamplings from the nearest pixel, half a pixel each.
    assert (out["image"][0] * w - where % w)[inner].abs().max() <= 1.1
    assert (out["image"][1] * h - where // w)[inner].abs().max() <= 1.1
    assert (out["normal"].norm(dim=0)[valid] - 1).abs().max() < 1e-5


def test_cspn_draws_every_scale_and_is_the_identity_without():
    item = picture(60, 80)
    same = cspn_augment(item, mirror=0, degrees=0, zoom=1, jitter=0)
    assert all(torch.equal(same[k], item[k]) for k in item)
    flat = {"image": torch.rand(3, 60, 80), "depth": torch.full((1, 60, 80), 6.0)}
    flat["sparse_depth"] = flat["depth"].clone()
    scales = []
    for _ in seeds(60):
        out = cspn_augment(flat)
        assert torch.equal(out["depth"], out["sparse_depth"])
        scales.append(6 / out["depth"].max().item())
    assert min(scales) < 1.05 and max(scales) > 1.45 and max(scales) < 1.52


def test_the_view_says_where_in_the_frame_it_lies():
    item = {"image": torch.rand(3, 480, 640), "depth": torch.ones(1, 480, 640), "baseline": 0.1}
    out = AUGMENTATIONS["mff_crop"](item)
    assert out["frame"].tolist() == [12, 16, 480, 640] and out["image"].shape == (3, 456, 608)
    rows, columns = EIGEN.inside(out["frame"].tolist(), (456, 608))
    assert (rows, columns) == (slice(33, 456), slice(25, 585))  # 45:471 and 41:601 of the frame
    assert "baseline" not in out and "baseline" in item  # of no use without the other view
