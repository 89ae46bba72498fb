"""Rendered streets: repeatable, geometrically exact, of the promised range, with a lidar."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import torch
import toys
from torch.nn import functional as F

from scenes.drawing import Dice
from scenes.render import render
from scenes.scene import ELLIPSOID, GEOMETRY, Camera, Light, Material, pose
from scenes.streets import CAMERA, LABELS, STREETS
from scenes.streets.roadside import Place, View, car, foliage, house, lorry, person, tree, van
from scenes.streets.sensor import CAMERA_HEIGHT, MAX_DEPTH
from scenes.streets.street import sunlight
from scenes.streets.streets import SKY, make_streets
from scenes.world import photograph, render_scene

SMALL, MIDDLE = (32, 104), (94, 312)
FIELDS = ("image", "depth", "normal", "label", "sparse_depth")


# Some tests call what the data set guards itself; see `world.one_thread`.
one_thread = pytest.fixture(scope="module", autouse=True)(toys.one_thread)


@pytest.fixture(scope="module")
def street():
    """One street at a quarter of KITTI's size, both views, without what the camera adds."""
    return render_scene(STREETS, "train", 3, size=MIDDLE, baseline=0.54, clean=True)


@pytest.fixture(scope="module")
def many():
    """48 small streets of every split."""
    out = {}
    for split in ("train", "val", "test"):
        items = []
        for start in range(0, 48, 8):
            items += photograph(STREETS, split, list(range(start, start + 8)), SMALL)
        out[split] = {k: torch.stack([i[k] for i in items]) for k in items[0]}
    return out


def rays(size):
    """(3, H, W) camera rays with z = 1 of the pixels' centres."""
    v, u = torch.meshgrid(*(torch.arange(n).double() for n in size), indexing="ij")
    fx, fy, cx, cy = CAMERA.intrinsics(size)
    return torch.stack([(u - cx) / fx, (v - cy) / fy, torch.ones_like(u)])


# ------------------------------------------------------------------------------- repeatable


def test_same_arguments_same_street():
    first = render_scene(STREETS, "val", 7, size=SMALL, baseline=0.54)
    render_scene(STREETS, "val", 8, size=SMALL)
    with ThreadPoolExecutor(2) as pool:
        again = pool.map(
            lambda i: render_scene(STREETS, "val", i, size=SMALL, baseline=0.54), [7, 6, 7]
        )
        again = list(again)
    for name in first:
        assert torch.equal(first[name], again[0][name]), name
        assert torch.equal(first[name], again[2][name]), name
        assert name == "intrinsics" or not torch.equal(first[name], again[1][name]), name


def test_same_street_in_another_process():
    code = (
        "from scenes import streets, world; import hashlib;"
        "r = world.render_scene(streets.STREETS, 'val', 7, size=(32, 104));"
        "bits = b''.join(r[k].numpy().tobytes() for k in ('depth', 'image', 'sparse_depth'));"
        "print(hashlib.sha256(bits).hexdigest())"
    )
    command = [sys.executable, "-c", code]
    results = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    }
    assert len(results) == 1


def test_batches_make_the_same_streets_as_single_calls():
    batch = photograph(STREETS, "train", [1, 2, 5], SMALL)
    for index, item in zip([1, 2, 5], batch, strict=True):
        single = render_scene(STREETS, "train", index, size=SMALL)
        assert torch.equal(item["label"], single["label"])
        torch.testing.assert_close(item["depth"], single["depth"], rtol=1e-5, atol=1e-4)
        assert (item["image"] - single["image"]).abs().mean() < 1e-4


def test_splits_share_no_street(many):
    for a, b in pairwise(("train", "val", "test", "train")):
        differ = many[a]["depth"][:, None, 0, ::5, ::9] - many[b]["depth"][None, :, 0, ::5, ::9]
        assert differ.abs().flatten(2).amax(-1).min() > 0.1


def test_another_size_shows_the_same_view():
    small = render_scene(STREETS, "train", 3, size=MIDDLE, clean=True)
    large = render_scene(STREETS, "train", 3, size=(2 * MIDDLE[0], 2 * MIDDLE[1]), clean=True)
    blocks = large["label"].unfold(0, 2, 2).unfold(1, 2, 2).flatten(2)
    # Inverse depth is linear over a plane's pixels: 2×2 large pixels average to a small one.
    flat = (blocks == small["label"][..., None]).all(-1) & (small["depth"][0] > 0)
    flat &= F.avg_pool2d(large["normal"][None], 2)[0].norm(dim=0) > 0.99999
    mean = 1 / F.avg_pool2d(1 / large["depth"][None], 2)[0, 0]
    off = ((mean - small["depth"][0]).abs() / mean)[flat]
    assert flat.float().mean() > 0.5
    assert (off < 2e-3).float().mean() > 0.95  # the rest: two parallel planes in one block
    assert (F.avg_pool2d(large["image"][None], 2)[0] - small["image"]).abs().mean() < 0.04


def test_intrinsics_are_kittis_at_any_size():
    k = STREETS.lens.matrix((375, 1242))
    assert k[0].tolist() == pytest.approx([721.5377, 0, 609.5593])
    assert k[1].tolist() == pytest.approx([0, 721.5377, 172.854])
    # (c + ½) · scale − ½ keeps the principal point at the same place of the picture.
    fx, fy, cx, cy = CAMERA.intrinsics((75, 621))
    assert (fx, fy) == pytest.approx((721.5377 / 2, 721.5377 / 5))
    assert (cx, cy) == pytest.approx(((609.5593 + 0.5) / 2 - 0.5, (172.854 + 0.5) / 5 - 0.5))


# ------------------------------------------------------------------------------- exact


@pytest.mark.parametrize("index", [0, 4])
def test_the_road_is_a_plane_under_a_level_camera(index):
    """z = h f / (v − c_y), Geiger et al.'s camera 1.65 m above the ground."""

    def level(split, indices, device):
        (made,) = make_streets(split, indices)
        return [(made.scene, pose((*made.eye, CAMERA_HEIGHT), 0.0, 0.0, 0.0))]

    (item,) = photograph(STREETS._replace(make=level), "train", [index], MIDDLE)
    road = (item["label"] == LABELS.index("road")) & (item["depth"][0] > 0)
    _, fy, _, cy = CAMERA.intrinsics(MIDDLE)
    row = torch.arange(MIDDLE[0]).double()[:, None].expand(MIDDLE)
    expected = CAMERA_HEIGHT * fy / (row - cy)
    assert road.float().mean() > 0.1
    # Markings are a millimetre of paint, patches and manholes less.
    error = (item["depth"][0].double() / expected - 1)[road]
    assert error.abs().max() < 0.0012
    assert error.abs().median() < 1e-5


def test_normals_are_unit_vectors_that_face_the_camera(many):
    for split in many.values():
        sky = split["label"] == SKY
        length = split["normal"].norm(dim=1)
        assert torch.allclose(length[~sky], torch.ones(()), atol=1e-4)
        assert (length[sky] == 0).all()
        towards = (split["normal"].double() * rays(SMALL)).sum(1)
        assert (towards <= 1e-3).all()


def test_the_road_faces_up(street):
    road = street["label"] == LABELS.index("road")
    up = street["normal"][:, road]
    assert (up - up.mean(1, keepdim=True)).abs().quantile(0.99) < 1e-3
    assert up[1].mean() < -0.99


def test_right_view_sees_the_same_points(street):
    """Left points moved by the baseline land on right pixels of the same depth and colour."""

    def moved(split, indices, device):
        (made,) = make_streets(split, indices)
        position, rotation = made.camera
        right = tuple(p + 0.54 * r[0] for p, r in zip(position, rotation, strict=True))
        return [(made.scene, (right, rotation))]

    (other,) = photograph(STREETS._replace(make=moved), "train", [3], MIDDLE)
    z, (h, w) = street["depth"][0], MIDDLE
    seen = z > 0
    target = torch.arange(w) - CAMERA.intrinsics(MIDDLE)[0] * 0.54 / z.clamp(min=0.1)
    down = ((torch.arange(h) + 0.5) * 2 / h - 1)[:, None].expand(h, w)
    grid = torch.stack([(target + 0.5) * 2 / w - 1, down], -1)[None]

    def warp(x):
        return F.grid_sample(x[None], grid, align_corners=False)[0]

    inside = seen & (target > 0) & (target < w - 1)
    there = 1 / warp(1 / other["depth"].clamp(min=0.1))[0]
    same = inside & ((there - z).abs() < 0.004 * z)
    assert same.sum() / inside.sum() > 0.75  # the others are hidden from one camera, or at edges
    colour = (warp(street["right"]) - street["image"]).abs().mean(0)[same]
    assert colour.median() < 0.02
    wrong = F.grid_sample(street["right"][None], grid.roll(16, 2), align_corners=False)[0]
    assert (wrong - street["image"]).abs().mean(0)[same].mean() > 2 * colour.mean()


def test_sheared_solids_are_where_they_should_be():
    """A roof seen from the side: its outline is a triangle as wide as it was asked for."""
    scene = View()
    Place(scene, 10.0, 0.0, 2.0).ridge((0, 0, 0), (4.0, 6.0, 1.5), Material(), "house")
    Place(scene, 30.0, 0.0, -9.0).lean((0, 0, 0), (2.0, 40.0, 30.0), 6.0, Material(), "wall")
    scene.lights.append(Light((0.0, 0.0, 0.0), (1.0,) * 3))
    camera = pose((0.0, 0.0, 2.0), 0.0, 0.0, 0.0)
    k = (400.0, 400.0, 127.5, 63.5)
    out = render([scene], [[Camera(*camera, k)]], (128, 256), far=100.0)
    z, label = out["depth"][0, 0].double(), out["label"][0, 0]
    v, u = torch.meshgrid(torch.arange(128).double(), torch.arange(256).double(), indexing="ij")
    y, up = -(u - 127.5) / 400, -(v - 63.5) / 400  # at a metre's distance
    roof = label == LABELS.index("house")
    assert z[roof] == pytest.approx(torch.full((int(roof.sum()),), 8.0).double(), abs=1e-4)
    inside = (8 * up).abs() / 1.5 + (8 * y).abs() / 3 < 1
    assert (inside != roof).float().mean() < 0.01
    wall = label == LABELS.index("wall")
    height = z * up + 2.0 + 9.0
    assert wall.sum() > 1000
    assert (z - (29.0 + height * 0.2))[wall].abs().max() < 2e-3
    n = out["normal"][0, 0].double()[:, wall].mean(1)  # it leans away from the camera
    assert n.tolist() == pytest.approx([0, -0.2 / 1.04**0.5, -1 / 1.04**0.5], abs=1e-4)


@pytest.mark.parametrize(
    ("make", "arguments", "long", "wide", "high"),
    [
        (car, (), (3.8, 4.9), (1.7, 2.15), (1.4, 1.75)),
        (van, (), (4.9, 6.1), (1.9, 2.2), (2.0, 2.75)),
        (lorry, (), (6.9, 9.2), (2.4, 2.6), (3.1, 3.75)),
        (person, (), (0.2, 1.2), (0.35, 0.75), (1.0, 1.95)),
    ],
)
def test_things_have_their_sizes(make, arguments, long, wide, high):
    for seed in range(20):
        scene = View()
        scene.eye = (8.0, 5.0)
        make(Place(scene, 0, 0), Dice(make.__name__, seed), *arguments)
        lo, hi = extent(scene)
        assert long[0] < hi[0] - lo[0] < long[1]
        assert wide[0] < hi[1] - lo[1] < wide[1]
        assert high[0] < hi[2] < high[1]
        assert -0.1 < lo[2] < 0.06  # it stands on the ground


def test_houses_and_trees_have_their_sizes():
    for seed in range(20):
        scene, dice = View(), Dice("house", seed)
        top = house(Place(scene, 20, 0), dice, 10.0, 9.0, 2, "homes", gable=seed % 2 == 0)
        lo, hi = extent(scene)
        assert 6.0 < top < 12 and top <= hi[2] < top + 1.5
        assert hi[0] - lo[0] < 11.2 and lo[2] < 0
        scene = View()
        tree(Place(scene, 20, 0), dice, foliage(dice), 9.0)
        lo, hi = extent(scene)
        assert 6.5 < hi[2] < 10.5 and lo[2] < 0
        assert hi[0] - lo[0] < 7


def extent(scene):
    """Lower and upper corner of what bounds a scene's solids."""
    centre = torch.tensor([solid.centre for solid in scene.solids]).double()
    axes = torch.tensor([s.geometry[GEOMETRY.axes] for s in scene.solids]).double()
    axes = axes.reshape(-1, 3, 3)
    # A rounded thing's extent along an axis is at most that of its axes together.
    is_ball = torch.tensor([solid.kind == ELLIPSOID for solid in scene.solids])
    reach = torch.where(is_ball[:, None], axes.norm(dim=2), axes.abs().sum(2))
    return (centre - reach).amin(0).tolist(), (centre + reach).amax(0).tolist()


def test_the_sun_casts_shadows_where_it_should():
    """A wall under a sun at 45° from the left: its shadow is as long as it is high, to the right;
    and nowhere does a shadow map darken what nothing hides."""

    def ground(x, y, with_wall):
        scene = View(ambient_up=(0.1,) * 3, ambient_down=(0.1,) * 3)
        scene.lights += sunlight((0.0, 0.5**0.5, 0.5**0.5), (1.0,) * 3)  # from the left (+y)
        base = Place(scene, 0, 0)
        base.box((50, 0, -1), (200, 200, 1), Material(), "road", casts=False)
        if with_wall:
            base.box((x, 0, 0), (4.0, 1.0, 4.0), Material(), "pole")
        k = (150.0, 150.0, 103.5, 10.0)
        out = render(
            [scene], [[Camera(*pose((0.0, 0.0, 6.0), 0.0, 0.0, 0.0), k)]], (128, 208), far=500.0,
            shadow_size=256,
        )  # fmt: skip
        return out["image"][0, 0].mean(0)[round(10 + 150 * 6 / x), round(103.5 - 150 * y / x)]

    for x in (12.0, 17.0, 40.0):  # in either shadow map
        lit = ground(x, -2.5, False)
        assert ground(x, -2.5, True) < 0.5 * lit
        assert ground(x, 2.5, True) == pytest.approx(float(lit), rel=0.1)
        assert ground(x, -6.0, True) == pytest.approx(float(lit), rel=0.1)


# ------------------------------------------------------------------------------- range


def test_depth_is_within_the_range_and_the_sky_has_none(many):
    for split in many.values():
        depth, label = split["depth"][:, 0], split["label"]
        there = depth > 0
        assert depth[there].min() > 1.0  # nothing blocks the camera
        assert depth.max() <= MAX_DEPTH
        assert (depth[label == SKY] == 0).all()
        # What has no depth is the sky or far away: the road's end, the horizon.
        assert (~there & (label != SKY)).float().mean() < 0.2
        assert label.min() >= 0 and label.max() < len(LABELS)
        # The sky is above: the lowest rows have none.
        assert (label[:, -4:] != SKY).all()
        assert 0.02 < (label == SKY).float().mean() < 0.3


def test_depths_are_those_of_streets(many):
    """Of KITTI's measured pixels, half lie within 13 to 14 m, a twentieth beyond 45 m."""
    for split in many.values():
        depth = split["depth"]
        valid = depth[depth > 0]
        assert 9 < valid.median() < 16
        assert 4.5 < valid.quantile(0.05) < 7.5
        assert 36 < valid.quantile(0.95) < 60
        middle = torch.stack([d[d > 0].median() for d in depth])
        assert ((middle > 6) & (middle < 25)).float().mean() > 0.95


def test_everything_occurs_in_every_split(many):
    for split in many.values():
        share = split["label"].flatten().bincount(minlength=len(LABELS)) / split["label"].numel()
        assert (share > 0).all(), [n for n, s in zip(LABELS, share, strict=True) if s == 0]
        share = dict(zip(LABELS, share.tolist(), strict=True))
        assert 0.2 < share["road"] < 0.5
        assert share["house"] > 0.1 and share["car"] > 0.03 and share["person"] > 0.001


def test_pictures_are_exposed(many):
    for split in many.values():
        means, spread = split["image"].mean((1, 2, 3)), split["image"].std((1, 2, 3))
        assert (means > 0.12).all() and (means < 0.85).all()
        assert (spread > 0.05).all()


# ------------------------------------------------------------------------------- lidar


def test_lidar_measures_the_depth_of_its_pixels(many):
    for split in many.values():
        sparse, depth = split["sparse_depth"], split["depth"]
        hit = sparse > 0
        error = (sparse - depth)[hit]
        assert (depth[hit] > 0).all() and sparse.max() <= MAX_DEPTH + 0.1
        assert error.abs().max() < 0.065  # three standard deviations and half a step
        assert 0.015 < error.std() < 0.025 and error.mean().abs() < 1e-3
        assert torch.equal(sparse * 256, (sparse * 256).round())


@pytest.mark.parametrize("size", [(64, 208), (128, 416), (375, 1242)])
def test_lidar_is_as_sparse_as_kittis_at_every_size(size):
    part = [
        (item["sparse_depth"] > 0).float().mean()
        for item in photograph(STREETS, "val", [1, 2], size)
    ]
    assert all(0.025 < p < 0.06 for p in part), part


def test_lidar_hits_lie_on_its_beams():
    size = (375, 1242)
    item = render_scene(STREETS, "val", 2, size=size)
    z = item["sparse_depth"][0].double()
    hit = z > 0
    x, y, _ = rays(size)
    p = torch.stack([z + 0.27, -x * z, -y * z - 0.08])[:, hit]  # from the lidar: ahead, left, up
    elevation = torch.atan2(p[2], p[:2].norm(dim=0)).rad2deg()
    beams = torch.cat([2 - torch.arange(32) / 3, -8.83 - torch.arange(32) / 2]).double()
    off, beam = (elevation[:, None] - beams).abs().min(1)
    assert off.max() < 0.06  # half a pixel is 0.04°; the noise adds to it
    used = beam.unique()
    assert used.min() == 0 and 38 < len(used) < 50  # the lowest look below the picture
    # A beam's hits keep their distance: 0.18° are 2.3 pixels.
    azimuth = torch.atan2(p[1], p[0]).rad2deg()
    near = azimuth[beam == 20].sort()[0].diff()
    near = near[near > 0.05]
    assert near.median() == pytest.approx(0.18, abs=0.05)
    assert elevation.max() < 2.1  # nothing of the upper half
