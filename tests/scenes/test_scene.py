"""Scenes made by hand, changed and rendered again."""

import pytest
import torch

from scenes.rooms import LABELS, ROOMS
from scenes.scene import BOX, Camera, Light, Material, Scene
from scenes.streets import STREETS

SIZE = (48, 64)
UPRIGHT = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
K = (60.0, 60.0, 31.5, 23.5)
MIDDLE = (23, 31)


@pytest.fixture
def scene():
    """A box three metres ahead (along y), its lamp, and a wall at five."""
    scene = Scene()
    with scene.thing("box"):
        scene.add(BOX, (0.0, 3.25, 1.0), (0.25, 0.25, 0.25), UPRIGHT, Material(), 1)
        scene.add_light(Light((0.0, 2.0, 2.0), (0.6, 0.6, 0.6)))
    scene.add(BOX, (0.0, 5.5, 1.0), (5.0, 0.5, 5.0), UPRIGHT, Material(), 0, name="wall")
    return scene


@pytest.fixture
def camera():
    return Camera.towards((0.0, 0.0, 1.0), (0.0, 4.0, 1.0), K)


def look(scene, camera):
    return ROOMS.look(scene, camera, SIZE)


def depth_ahead(scene, camera):
    return float(look(scene, camera)["depth"][MIDDLE])


def test_a_scene_by_hand(scene, camera):
    found = look(scene, camera)
    assert scene.names == ["box 1", "wall"]
    assert found["depth"][MIDDLE] == pytest.approx(3.0, abs=1e-4)
    assert found["label"][MIDDLE] == 1 and found["label"][0, 0] == 0
    assert found["depth"][0, 0] == pytest.approx(5.0, abs=1e-4)


def test_a_thing_moved_by_a_metre_is_a_metre_farther(scene, camera):
    scene.move("box 1", (0.0, 1.0, 0.0))
    assert depth_ahead(scene, camera) == pytest.approx(4.0, abs=1e-4)
    assert scene.lights[0].position == (0.0, 3.0, 2.0)  # its lamp goes with it


def test_a_thing_removed_shows_what_is_behind(scene, camera):
    kept = scene.copy()
    scene.remove("box")
    assert depth_ahead(scene, camera) == pytest.approx(5.0, abs=1e-4)
    assert not scene.lights and len(kept.lights) == 1
    assert depth_ahead(kept, camera) == pytest.approx(3.0, abs=1e-4)


def test_a_thing_recoloured_keeps_its_depth(scene, camera):
    before = look(scene, camera)
    scene.recolour("box", (0.9, 0.1, 0.1))
    after = look(scene, camera)
    for name in ("depth", "normal", "label"):
        assert torch.equal(before[name], after[name])
    red, green, _ = after["image"][:, 23, 31]
    assert red > 4 * green
    assert torch.equal(before["image"][:, 0, 0], after["image"][:, 0, 0])


def test_twice_the_light_makes_matt_things_twice_as_bright(scene, camera):
    before = look(scene, camera)
    scene.relight(2.0)
    after = look(scene, camera)
    torch.testing.assert_close(after["image"], 2 * before["image"])
    assert torch.equal(before["depth"], after["depth"])
    scene.relight((1.0, 0.0, 0.0))
    assert look(scene, camera)["image"][1:].max() == 0


def test_another_camera(scene, camera):
    assert depth_ahead(scene, camera.moved(ahead=0.5)) == pytest.approx(2.5, abs=1e-4)
    assert depth_ahead(scene, camera.moved(right=1.0)) == pytest.approx(5.0, abs=1e-4)
    assert camera.moved(right=1.0).position == pytest.approx((1.0, 0.0, 1.0))
    assert camera.moved(down=1.0).position == pytest.approx((0.0, 0.0, 0.0))
    above = Camera.towards((0.0, 3.25, 3.0), (0.0, 3.2501, 1.0), K)
    assert depth_ahead(scene, above) == pytest.approx(1.75, abs=1e-3)


def test_an_unknown_thing_is_refused(scene):
    with pytest.raises(KeyError, match="No thing 'chair'. There are: box 1, wall"):
        scene.move("chair", (0, 0, 1))


def test_a_room_can_be_changed():
    scene, camera = ROOMS.scene("train", 3, SIZE)
    before = ROOMS.look(scene, camera, SIZE)
    assert {"wall 1", "wall 4", "floor", "ceiling", "ceiling lamp 1"} <= {*scene.names}
    scene.relight(0.5)
    scene.recolour("floor", (0.2, 0.6, 0.2))
    after = ROOMS.look(scene, camera, SIZE)
    assert torch.equal(before["depth"], after["depth"])
    scene.remove("ceiling")
    gone = ROOMS.look(scene, camera, SIZE)["label"]
    ceiling = LABELS.index("ceiling")
    assert (gone != ceiling).all() and (before["label"] == ceiling).any()


def test_a_street_can_be_changed():
    size = (32, 104)
    scene, camera = STREETS.scene("train", 3, size)
    cars = [name for name in scene.names if name.startswith("vehicle")]
    before = STREETS.look(scene, camera, size)
    assert cars
    scene.remove("vehicle")
    after = STREETS.look(scene, camera, size)
    assert (after["depth"] >= before["depth"] - 1e-3).all()
    assert (after["depth"] > before["depth"] + 1).any()
