"""Rendered rooms: repeatable, geometrically exact, of the promised range."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
import toys
from torch.nn import functional as F

from scenes.render import render
from scenes.rooms import LABELS, ROOMS, rooms
from scenes.rooms.rooms import make_rooms
from scenes.scene import Camera
from scenes.world import photograph, render_scene

SMALL = (48, 64)
FIELDS = ("image", "depth", "normal", "label")


# Some tests call what the data set guards itself; see `world.one_thread`.
one_thread = pytest.fixture(scope="module", autouse=True)(toys.one_thread)


@pytest.fixture(scope="module")
def room():
    """One room at half the default size, both views, without what the camera adds."""
    return render_scene(ROOMS, "train", 3, size=(96, 128), baseline=0.1, clean=True)


@pytest.fixture(scope="module")
def many():
    """200 small rooms of every split: depth (n, H, W), label."""
    out = {}
    for split in ("train", "val", "test"):
        items = []
        for start in range(0, 200, 8):
            indices = list(range(start, start + 8))
            items += photograph(ROOMS, split, indices, (36, 48), None, None, "cpu", True)
        out[split] = {k: torch.stack([i[k] for i in items]) for k in ("depth", "label", "normal")}
    return out


def rays(item, y=None, x=None):
    """(3, H, W) camera rays with z = 1 of the pixels' centres."""
    h, w = item["depth"].shape[-2:]
    v, u = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    return (item["intrinsics"].double().inverse() @ torch.stack([u, v, u * 0 + 1]).flatten(1)).view(
        3, h, w
    )


def points(item):
    return rays(item) * item["depth"].double()


# ------------------------------------------------------------------------------- repeatable


def test_same_arguments_same_room():
    first = render_scene(ROOMS, "val", 7, size=SMALL, baseline=0.1)
    render_scene(ROOMS, "val", 8, size=SMALL)
    again = render_scene(ROOMS, "val", 7, size=SMALL, baseline=0.1)
    with ThreadPoolExecutor(2) as pool:
        threads = list(
            pool.map(lambda i: render_scene(ROOMS, "val", i, size=SMALL, baseline=0.1), [7, 6, 7])
        )
    for other in (again, threads[0], threads[2]):
        for name in first:
            assert torch.equal(first[name], other[name]), name


def test_same_room_in_another_process():
    code = (
        "from scenes import rooms, world; import hashlib;"
        "r = world.render_scene(rooms.ROOMS, 'val', 7, size=(48, 64));"
        "bits = b''.join(r[k].numpy().tobytes() for k in ('depth', 'image', 'label'));"
        "print(hashlib.sha256(bits).hexdigest())"
    )
    results = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(results) == 1


def test_batches_make_the_same_rooms_as_single_calls():
    batch = photograph(ROOMS, "train", [1, 2, 5], SMALL, None, None, "cpu")
    for index, item in zip([1, 2, 5], batch, strict=True):
        single = render_scene(ROOMS, "train", index, size=SMALL)
        assert torch.equal(item["label"], single["label"])
        torch.testing.assert_close(item["depth"], single["depth"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(item["image"], single["image"], rtol=0, atol=2e-3)


def test_splits_share_no_room(many):
    for a, b in pairwise(("train", "val", "test", "train")):
        differ = (
            many[a]["depth"][:, None, 0, ::9, ::9] - many[b]["depth"][None, :, 0, ::9, ::9]
        ).abs()
        assert differ.flatten(2).amax(-1).min() > 0.01


def test_another_size_shows_the_same_view():
    """Inverse depth is linear over a plane's pixels: 2×2 large pixels average to a small one."""
    small = render_scene(ROOMS, "train", 3, size=(96, 128), clean=True)
    large = render_scene(ROOMS, "train", 3, size=(192, 256), clean=True)
    blocks = large["label"].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    normal = F.normalize(F.avg_pool2d(large["normal"][None], 2)[0], dim=0)
    flat = F.avg_pool2d(large["normal"][None], 2)[0].norm(dim=0) > 0.99999
    flat &= (blocks == small["label"][..., None]).all(-1)
    flat &= (normal * small["normal"]).sum(0) > 0.9999
    mean = 1 / F.avg_pool2d(1 / large["depth"][None], 2)[0, 0]
    off = ((mean - small["depth"][0]).abs() / mean)[flat]
    assert flat.float().mean() > 0.6
    assert (off < 1e-3).float().mean() > 0.97  # the rest: two parallel planes in one block
    close = (F.avg_pool2d(large["image"][None], 2)[0] - small["image"]).abs().mean()
    assert close < 0.03


# ------------------------------------------------------------------------------- exact


def test_normals_are_unit_vectors_that_face_the_camera(many):
    for split in many.values():
        assert torch.allclose(split["normal"].norm(dim=1), torch.ones(()), atol=1e-4)
        h, w = split["depth"].shape[-2:]
        item = {"depth": split["depth"][0], "intrinsics": ROOMS.lens.matrix((h, w))}
        assert ((split["normal"].double() * rays(item)).sum(1) <= 1e-3).all()


def test_normals_agree_with_depth(room):
    """Where the neighbours lie on the same plane, their difference is at right angles to it."""
    p, n = points(room), room["normal"].double()
    dx, dy = p[:, 1:-1, 2:] - p[:, 1:-1, :-2], p[:, 2:, 1:-1] - p[:, :-2, 1:-1]
    measured = F.normalize(torch.linalg.cross(dy, dx, dim=0), dim=0)
    m = n[:, 1:-1, 1:-1]
    flat = torch.ones(m.shape[1:], dtype=torch.bool)
    for sy, sx in ((0, 1), (2, 1), (1, 0), (1, 2)):
        near = n[:, sy : sy + m.shape[1], sx : sx + m.shape[2]]
        flat &= (near * m).sum(0) > 0.99999
        offset = p[:, sy : sy + m.shape[1], sx : sx + m.shape[2]] - p[:, 1:-1, 1:-1]
        flat &= (offset * m).sum(0).abs() < 2e-3  # the same plane, not a parallel one
    assert flat.float().mean() > 0.5
    angle = (measured * m).sum(0)[flat].clamp(-1, 1).acos().rad2deg()
    assert angle.max() < 1.0


def test_planes_are_planes_to_a_tenth_of_a_millimetre(room):
    p, n = points(room), room["normal"].double()
    floor = room["label"] == LABELS.index("floor")
    assert floor.sum() > 100
    up = n[:, floor].mean(1)
    height = (p[:, floor] * up[:, None]).sum(0)
    assert height.std() < 1e-4


def test_right_view_sees_the_same_points():
    """Left points moved by the baseline land on right pixels of the same depth and colour."""
    baseline = 0.12
    left = render_scene(ROOMS, "train", 3, size=(96, 128), baseline=baseline, clean=True)
    (scene, (position, rotation)) = make_rooms("train", [3])[0]
    moved = tuple(p + baseline * r[0] for p, r in zip(position, rotation, strict=True))
    k = left["intrinsics"]
    camera = Camera(moved, rotation, (*k.diagonal()[:2].tolist(), *k[:2, 2].tolist()))
    right = render([scene.scene], [[camera]], (96, 128))["depth"][0, 0]
    z = left["depth"][0]
    h, w = z.shape
    target = torch.arange(w) - k[0, 0] * baseline / z
    grid = torch.stack(
        [(target + 0.5) * 2 / w - 1, ((torch.arange(h) + 0.5) * 2 / h - 1)[:, None].expand(h, w)],
        -1,
    )[None]

    def warp(x):
        return F.grid_sample(x[None], grid, align_corners=False)[0]

    inside = (target > 0) & (target < w - 1)
    there = 1 / warp(1 / right[None])[0]
    same = inside & ((there - z).abs() < 0.003 * z)
    assert same.sum() / inside.sum() > 0.85  # the others are hidden from one of the cameras
    # Nothing that the right camera sees lies behind what the left one sees there, but for edges.
    colour = (warp(left["right"]) - left["image"]).abs().mean(0)[same]
    assert colour.median() < 0.01
    assert colour.mean() < 0.03
    wrong = (
        F.grid_sample(left["right"][None], grid.roll(20, 2), align_corners=False)[0] - left["image"]
    ).abs()
    assert wrong.mean(0)[same].mean() > 2 * colour.mean()


# ------------------------------------------------------------------------------- range


def test_depth_is_positive_and_within_the_range(many):
    for split in many.values():
        assert split["depth"].min() > 0.05
        assert split["depth"].max() < 10
        assert split["label"].min() >= 0
        assert split["label"].max() < len(LABELS)


def test_every_bin_occurs_in_every_split(many):
    i = torch.arange(1, 63)
    edges = torch.cat([torch.tensor([0, 0.75]), 10.25 ** (i / 63) - 0.25, torch.tensor([10.0])])
    assert len(edges) == 65
    for name, split in many.items():
        counts = torch.bucketize(split["depth"].flatten(), edges).bincount(minlength=65)[1:]
        assert (counts > 0).all(), (name, (counts == 0).nonzero()[:, 0].tolist())


def test_depths_are_those_of_rooms(many):
    for split in many.values():
        middle = split["depth"].flatten(1).median(1)[0]
        assert 2.3 < split["depth"].mean() < 3.4
        assert ((middle > 1.5) & (middle < 4.5)).float().mean() > 0.85
        assert split["label"].unique().numel() == len(LABELS)


def test_pictures_are_exposed():
    items = photograph(ROOMS, "test", list(range(12)), SMALL, None, None, "cpu")
    means = torch.stack([i["image"].mean() for i in items])
    spread = torch.stack([i["image"].std() for i in items])
    assert (means > 0.15).all() and (means < 0.85).all()
    assert (spread > 0.05).all()


# ------------------------------------------------------------------------------- sensor


def test_kinect_depth_has_its_steps_and_holes():
    holes = []
    for index in range(6):
        exact = render_scene(ROOMS, "train", index, size=(96, 128))["depth"]
        depth = render_scene(ROOMS, "train", index, size=(96, 128), sensor="kinect")["depth"]
        seen = depth > 0
        k = 1092.5 - 351.3 / depth[seen].double()
        assert (k - k.round()).abs().max() < 1e-3
        step = exact[seen] ** 2 / 351.3
        assert ((depth - exact)[seen].abs() <= 0.6 * step + 1e-3).all()
        holes.append(1 - seen.float().mean().item())
    assert 0.01 < np.mean(holes) < 0.4


def test_a_room_without_place_for_a_camera_is_made_anew(monkeypatch):
    asked = []

    def blocked(*_):
        asked.append(1)
        return len(asked) <= 60  # all tries of the first room

    expected = render_scene(ROOMS, "val", 2, size=(16, 20), clean=True)
    monkeypatch.setattr(rooms, "_blocked", blocked)
    other = render_scene(ROOMS, "val", 2, size=(16, 20), clean=True)
    assert len(asked) > 60 and not torch.equal(other["depth"], expected["depth"])
