"""Rendered rooms: repeatable, geometrically exact, of the promised range."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from mde_utils.data import load_dataset
from mde_utils.data.render import (
    BOX,
    CONE,
    ELLIPSOID,
    ROUND,
    Camera,
    Light,
    Material,
    Scene,
    render,
)
from mde_utils.data.rendered import photograph, produce
from mde_utils.data.rooms import (
    LABELS,
    RENDERER_VERSION,
    ROOMS,
    Rooms,
    make_rooms,
    render_room,
)

SMALL = (48, 64)
FIELDS = ("image", "depth", "normal", "label")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Some tests call what the data set guards itself; see `rendered._one_thread`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def room():
    """One room at half the default size, both views, without what the camera adds."""
    return render_room("train", 3, size=(96, 128), baseline=0.1, clean=True)


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


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MDE_CACHE", str(tmp_path))
    return tmp_path


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
    first = render_room("val", 7, size=SMALL, baseline=0.1)
    render_room("val", 8, size=SMALL)
    again = render_room("val", 7, size=SMALL, baseline=0.1)
    with ThreadPoolExecutor(2) as pool:
        threads = list(
            pool.map(lambda i: render_room("val", i, size=SMALL, baseline=0.1), [7, 6, 7])
        )
    for other in (again, threads[0], threads[2]):
        for name in first:
            assert torch.equal(first[name], other[name]), name


def test_same_room_in_another_process():
    code = (
        "from mde_utils.data.rooms import render_room; import hashlib;"
        "r = render_room('val', 7, size=(48, 64));"
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
        single = render_room("train", index, size=SMALL)
        assert torch.equal(item["label"], single["label"])
        torch.testing.assert_close(item["depth"], single["depth"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(item["image"], single["image"], rtol=0, atol=2e-3)


def test_threads_produce_the_records_in_order(two_threads):
    arguments = (ROOMS, "train", [4, 9, 2, 7], SMALL, 0.1, None, (*FIELDS, "right"))
    one = list(produce(*arguments, threads=1, device="cpu"))
    two = list(produce(*arguments, threads=2, device="cpu"))
    assert torch.get_num_threads() == 2
    for a, b in zip(one, two, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_stopping_half_way_leaves_nothing_behind(two_threads):
    records = produce(ROOMS, "train", range(6), SMALL, None, None, FIELDS, threads=2, device="cpu")
    next(records)
    records.close()
    assert torch.get_num_threads() == 2


def test_splits_share_no_room(many):
    for a, b in pairwise(("train", "val", "test", "train")):
        differ = (
            many[a]["depth"][:, None, 0, ::9, ::9] - many[b]["depth"][None, :, 0, ::9, ::9]
        ).abs()
        assert differ.flatten(2).amax(-1).min() > 0.01


def test_another_size_shows_the_same_view():
    """Inverse depth is linear over a plane's pixels: 2×2 large pixels average to a small one."""
    small = render_room("train", 3, size=(96, 128), clean=True)
    large = render_room("train", 3, size=(192, 256), clean=True)
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
        item = {"depth": split["depth"][0], "intrinsics": ROOMS.matrix((h, w))}
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
    left = render_room("train", 3, size=(96, 128), baseline=baseline, clean=True)
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


@pytest.mark.parametrize("kind", [BOX, ROUND, CONE, ELLIPSOID])
def test_solids_have_their_analytic_depth(kind):
    """A solid seen along its axis, and a plane behind it."""
    scene = Scene()
    eye = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    half, extra = (0.4, 0.3, 0.5), {ROUND: 0.1, CONE: 0.5}.get(kind, 0.0)
    scene.add(kind, (0.0, 0.0, 3.0), half, eye, Material(), 1, extra=extra)
    scene.add(BOX, (0.0, 0.0, 5.0), (9.0, 9.0, 0.5), eye, Material(), 0)
    scene.lights.append(Light((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    camera = Camera((0.0, 0.0, 0.0), eye, (80.0, 80.0, 31.5, 23.5))
    out = render([scene], [[camera]], SMALL)
    z, label, normal = out["depth"][0, 0].double(), out["label"][0, 0], out["normal"][0, 0].double()
    assert torch.allclose(z[label == 0], torch.tensor(4.5).double(), atol=1e-5)
    v, u = torch.meshgrid(torch.arange(48).double(), torch.arange(64).double(), indexing="ij")
    x, y = (u - 31.5) / 80, (v - 23.5) / 80
    p = torch.stack([x * z, y * z, z - 3.0])[:, label == 1]
    if kind == ELLIPSOID:
        distance = (p / torch.tensor(half)[:, None].double()).norm(dim=0) - 1
    elif kind == CONE:  # it narrows away from the camera, so its near cap hides its side
        distance = p[2] + 0.5
    else:
        q = (p.abs() - torch.tensor(half)[:, None].double() + extra).clamp(min=0)
        distance = q.norm(dim=0) - extra if kind == ROUND else p[2] + 0.5
    assert label.sum() > 100
    assert distance.abs().max() < 1e-4
    centre = normal[:, 23, 31]
    assert centre[2] < -0.98


def test_shadows_fall_where_the_light_is_blocked():
    scene = Scene(ambient_up=(0.1,) * 3, ambient_down=(0.1,) * 3)
    eye = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    scene.add(BOX, (0, 0, -0.5), (5, 5, 0.5), eye, Material(), 0)
    scene.add(BOX, (0, 0, 1.0), (0.5, 0.5, 0.02), eye, Material(), 1)
    scene.lights.append(Light((0.0, 0.0, 2.0), (5.0,) * 3, shadow=2.0))
    # Looks down from the side, so that the floor under the plate is seen.
    camera = Camera((0, -3, 0.9), ((1, 0, 0), (0, 0, 1), (0, -1, 0)), (60.0, 60.0, 31.5, 10.0))
    image = render([scene], [[camera]], SMALL)["image"][0, 0].mean(0)
    depth, column = 3.0, 31
    row = round(10 + 0.9 / depth * 60)
    assert image[row, column] < 0.5 * image[row, 2]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("texture", ["tile", "brick"])
def test_a_wall_in_pieces_shows_the_picture_of_one(texture, turned):
    """`world_uv`: a texture goes on across solids that lie side by side, along either axis."""
    wall = Material(texture, (0.8, 0.2, 0.1), (0.1, 0.3, 0.8), (0.1, 0.1, 0.1), period=0.7)
    # The wall runs along x and is seen along y, or, turned, the other way round.
    rotation = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)) if turned else (
        (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
    )  # fmt: skip
    place = (lambda x, y, z: (-y, x, z)) if turned else (lambda x, y, z: (x, y, z))
    columns = [place(1, 0, 0), (0, 0, -1), place(0, 1, 0)]  # right, down, forward
    view = tuple(zip(*columns, strict=True))
    camera = Camera(place(0.1, -3, 1.2), view, (60.0, 60.0, 31.5, 23.5))
    views = []
    for pieces in (((-4.0, 4.0),), ((-4.0, -0.35), (-0.35, 1.0), (1.0, 4.0))):
        scene = Scene(ambient_up=(0.5,) * 3, ambient_down=(0.5,) * 3)
        for a, b in pieces:
            half = ((b - a) / 2, 0.1, 1.6)
            centre = place((a + b) / 2, 0.1, 1.3)
            scene.add(BOX, centre, half, rotation, wall, 0, world_uv=True)
        views.append(render([scene], [[camera]], SMALL, smooth=False)["image"][0, 0])
    for axis in (1, 2):  # a pattern both ways
        assert views[0].diff(dim=axis).abs().mean() > 0.005
    torch.testing.assert_close(views[1], views[0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("long", [0, 2])
def test_grain_runs_along_the_longest_side(long):
    eye = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    half = [0.5, 0.02, 0.5]
    half[long] = 1.0
    camera = Camera((0, -2, 0), ((1, 0, 0), (0, 0, 1), (0, -1, 0)), (60.0, 60.0, 31.5, 23.5))
    scene = Scene(ambient_up=(0.5,) * 3, ambient_down=(0.5,) * 3)
    plank = Material("wood", (0.8, 0.5, 0.3), (0.2, 0.1, 0.05), (0.1,) * 3, period=0.4, grain=True)
    scene.add(BOX, (0, 0, 0), half, eye, plank, 0)
    picture = render([scene], [[camera]], SMALL, smooth=False)["image"][0, 0].mean(0)
    face = picture[12:36, 20:44]  # well inside the plank, whichever side is long
    across, along = face.diff(dim=1).abs().mean(), face.diff(dim=0).abs().mean()
    assert (across < along) == (long == 0)


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
        exact = render_room("train", index, size=(96, 128))["depth"]
        depth = render_room("train", index, size=(96, 128), sensor="kinect")["depth"]
        seen = depth > 0
        k = 1092.5 - 351.3 / depth[seen].double()
        assert (k - k.round()).abs().max() < 1e-3
        step = exact[seen] ** 2 / 351.3
        assert ((depth - exact)[seen].abs() <= 0.6 * step + 1e-3).all()
        holes.append(1 - seen.float().mean().item())
    assert 0.01 < np.mean(holes) < 0.4


# ------------------------------------------------------------------------------- data set


def test_items(cache):
    data = load_dataset("rooms", "val", size=SMALL, limit=3, baseline=0.1)
    assert len(data) == 3
    item = data[2]
    assert item["name"] == "rooms/val/000002"
    assert item["image"].shape == item["right"].shape == item["normal"].shape == (3, *SMALL)
    assert item["depth"].shape == (1, *SMALL) and item["depth"].dtype == torch.float32
    assert item["label"].shape == SMALL and item["label"].dtype == torch.int64
    assert item["baseline"] == 0.1
    assert item["focal"] == pytest.approx(51.886)
    # (c + ½) · scale − ½ keeps the principal point at the same place of the picture.
    assert item["intrinsics"][0, 2] == pytest.approx((325.58 + 0.5) / 10 - 0.5, abs=1e-4)
    direct = render_room("val", 2, size=SMALL, baseline=0.1)
    assert torch.equal(item["depth"], direct["depth"])
    assert (item["image"] - direct["image"]).abs().max() <= 0.5 / 255 + 1e-6
    assert (item["normal"] * direct["normal"]).sum(0).min() > 0.9998
    assert torch.equal(item["label"], direct["label"])
    assert torch.equal(item["intrinsics"], direct["intrinsics"])


def test_cache_and_rendering_agree(cache):
    options = {"size": SMALL, "limit": 2, "fields": ("image", "depth")}
    stored, fresh = Rooms("test", **options), Rooms("test", cache=False, **options)
    assert set(stored[0]) == {"image", "depth", "intrinsics", "focal", "name"}
    assert torch.equal(stored[1]["depth"], fresh[1]["depth"])


def test_version_and_arguments_are_part_of_the_key(cache):
    folders = {
        Rooms("val", limit=1, **options).cache_folder
        for options in (
            {"size": (16, 20)},
            {"size": (16, 24)},
            {"size": (16, 20), "sensor": "kinect"},
            {"size": (16, 20), "baseline": 0.1},
            {"size": (16, 20), "fields": ("image", "depth")},
        )
    }
    assert len(folders) == 5
    assert f'"renderer": {RENDERER_VERSION}' in (folders.pop() / "key.json").read_text()


def test_in_a_loader_with_workers():
    data = Rooms("val", size=(16, 24), limit=2, cache=False)
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1)
    batch = next(iter(loader))
    assert torch.equal(batch["depth"][1], data[1]["depth"])


# ------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "trian"},
            "Unknown split 'trian'. Did you mean 'train'. Known: train, val, test",
        ),
        ({"size": (8, 64)}, "size must be at least"),
        ({"size": 192}, "two whole numbers"),
        ({"size": (192, 256, 3)}, "two whole numbers"),
        ({"size": (48.5, 64)}, "two whole numbers"),
        ({"limit": -1}, "limit must be a whole number from 1 on; got -1"),
        ({"limit": 0}, "limit must be a whole number from 1 on; got 0"),
        ({"limit": 1.5}, "limit must be a whole number"),
        ({"baseline": 0.1, "augment": "meter"}, "leave one of them out"),
        ({"baseline": 0}, "baseline must be a positive number"),
        ({"baseline": -0.1}, "baseline must be a positive number"),
        ({"baseline": float("nan")}, "baseline must be a positive number"),
        ({"sensor": "kinetc"}, "Unknown sensor 'kinetc'. Did you mean 'kinect'"),
        ({"fields": ("image", "dpeth")}, "Unknown field 'dpeth'.*depth"),
        ({"fields": ("image",)}, "must name image and depth; got no depth"),
        ({"root": "/data"}, "root must be None"),
    ],
)
def test_bad_arguments(cache, options, message):
    options = {"split": "train", "size": (16, 16), **options}
    with pytest.raises(ValueError, match=message):
        Rooms(options.pop("split"), **options)
    assert not list(cache.iterdir())


def test_a_room_without_place_for_a_camera_is_made_anew(monkeypatch):
    import mde_utils.data.rooms as rooms

    asked = []

    def blocked(*_):
        asked.append(1)
        return len(asked) <= 60  # all tries of the first room

    expected = render_room("val", 2, size=(16, 20), clean=True)
    monkeypatch.setattr(rooms, "_blocked", blocked)
    other = render_room("val", 2, size=(16, 20), clean=True)
    assert len(asked) > 60 and not torch.equal(other["depth"], expected["depth"])
