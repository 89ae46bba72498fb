"""The ray caster: solids, shadows and textures where they should be."""

import pytest
import torch

from scenes.render import render
from scenes.scene import (
    BOX,
    CONE,
    ELLIPSOID,
    ROUND,
    Camera,
    Columns,
    Light,
    Material,
    Scene,
)

SMALL = (48, 64)


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


def test_columns_are_read_and_written_by_name():
    columns = Columns(place=3, power=1, colour=2)
    row = columns.row(power=4, colour=(5, 6), place=(1, 2, 3))
    assert row == [1, 2, 3, 4, 5, 6]
    assert row[columns.place] == [1, 2, 3] and row[columns.power] == 4
    with pytest.raises(TypeError, match="place, power, colour; got place, gloss"):
        columns.row(place=(1, 2, 3), gloss=1)
