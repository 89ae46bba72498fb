"""Your own images with depth: what is read, how it is split, and what is refused."""

import sys

import h5py
import numpy as np
import OpenEXR
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mde_utils.data import DATASETS, load_dataset
from mde_utils.data.reading import as_rgb
from mde_utils.dissection import dissect

H, W = 6, 8
MM = np.arange(H * W, dtype="u2").reshape(H, W) * 100  # millimetres; the first is no measurement


def write_depth(path, values=MM):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(values).save(path)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".exr":
        header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
        channels = values if isinstance(values, dict) else {"Z": values.astype("f4")}
        with OpenEXR.File(header, channels) as file:
            file.write(str(path))
    else:
        with h5py.File(path, "w") as file:
            for key, array in (values if isinstance(values, dict) else {"a/depth": values}).items():
                file[key] = array


def write_image(path, size=(H, W), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype="u1")
    Image.fromarray(pixels).save(path, **options)
    return pixels


def pairs(root, names="ab", ending=".png", values=MM):
    for name in names:
        write_image(root / "images" / f"{name}.png")
        write_depth(root / "depth" / f"{name}{ending}", values)
    return root


def load(root, split="all", **options):
    return load_dataset("folder", split, **{"root": root, "depth_unit": 1e-3, **options})


@pytest.mark.parametrize("cache", [False, True])
@pytest.mark.parametrize("ending", [".png", ".npy", ".exr", ".h5", ".hdf5"])
def test_metres_are_stored_numbers_times_the_unit(ending, cache, tmp_path):
    pixels = write_image(tmp_path / "images" / "x" / "a.png")
    write_depth(tmp_path / "depth" / "x" / f"a{ending}")
    (item,) = [*load(tmp_path, cache=cache, depth_range=(0.5, 5))]
    assert item["name"] == "x/a"
    assert torch.equal(item["image"], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    np.testing.assert_allclose(item["depth"][0], MM / 1000, rtol=1e-6)
    data = load(tmp_path, depth_range=(0.5, 5))
    assert data.name == f"{tmp_path.name}/all" and data.depth_range == (0.5, 5)
    other = load(tmp_path, depth_unit=1 / 5000, cache=cache)
    np.testing.assert_allclose(other[0]["depth"][0], MM / 5000, rtol=1e-6)


@pytest.mark.parametrize("ending", [".npy", ".exr", ".h5"])
def test_what_is_no_measurement_is_zero(ending, tmp_path):
    values = np.full((H, W), 2.5, "f4")
    values[0, :5] = [np.nan, np.inf, -np.inf, -1, 0]
    depth = load(pairs(tmp_path, "a", ending, values), depth_unit=1)[0]["depth"]
    assert (depth[0, 0, :5] == 0).all() and (depth.flatten()[5:] == 2.5).all()


def test_a_named_array_or_channel(tmp_path):
    both = {"depth": MM.astype("f4"), "other": MM.astype("f4") + 1}
    for ending, says in ((".h5", "holds depth, other: say which"), (".exr", "say which")):
        root = pairs(tmp_path / ending[1:], "a", ending, both)
        with pytest.raises(ValueError, match=says):
            load(root)
        with pytest.raises(ValueError, match="'none' is not there"):
            load(root, depth_key="none")
        found = load(root, depth_key="depth")[0]["depth"][0]
        np.testing.assert_allclose(found, MM / 1000, rtol=1e-6)
    planes = {"R": MM.astype("f4"), "Z": MM.astype("f4") * 2}
    found = load(pairs(tmp_path / "z", "a", ".exr", planes))[0]["depth"][0]
    np.testing.assert_allclose(found, MM / 500, rtol=1e-6)  # Z is what EXR calls depth


def test_sizes_and_depth_of_another_resolution(tmp_path):
    write_image(tmp_path / "images" / "a.jpg", (3 * H, 3 * W))
    write_depth(tmp_path / "depth" / "a.npy", MM[None])  # (1, H, W) will do
    item = load(tmp_path)[0]
    assert item["image"].shape == (3, 3 * H, 3 * W)
    np.testing.assert_allclose(item["depth"][0, 1::3, 1::3], MM / 1000, rtol=1e-6)
    item = load(tmp_path, size=(H, W))[0]
    assert item["image"].shape == (3, H, W)
    np.testing.assert_allclose(item["depth"][0], MM / 1000, rtol=1e-6)


def test_splits_by_folders(tmp_path):
    for split, names in (("train", "abc"), ("test", "de")):
        pairs(tmp_path / split, names)
    assert load(tmp_path, "train").names == ["a", "b", "c"]
    assert load(tmp_path, "all").names == ["train/a", "train/b", "train/c", "test/d", "test/e"]
    with pytest.raises(FileNotFoundError, match="has the splits train, test, but no folder val/"):
        load(tmp_path, "val")


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(nested=st.booleans(), count=st.integers(3, 30))
def test_splits_by_names(tmp_path_factory, nested, count):
    root = tmp_path_factory.mktemp("own")
    names = [f"room{i % max(3, count // 3)}/{i}" if nested else str(i) for i in range(count)]
    pairs(root, names)
    found = {s: load(root, s, cache=False).names for s in ("train", "val", "test", "all")}
    parts = [found[s] for s in ("train", "val", "test")]
    assert all(parts) and sorted(sum(parts, [])) == found["all"] == sorted(names)
    if nested:  # a room is in one split alone
        rooms = [{name.split("/")[0] for name in part} for part in parts]
        assert sum(map(len, rooms)) == len(set.union(*rooms))
    assert load(root, "val", cache=False).names == found["val"]
    assert len(load(root, "all", limit=2, cache=False)) == 2


def test_the_suite_takes_it(tmp_path):
    pairs(tmp_path, "abc")
    data = load(tmp_path, depth_range=(0.5, 5))
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1))
    found = dissect(net, data, ["0"])
    assert found.images == 3 and found.pixels["0"].sum() == 3 * (H * W - 1)
    assert found.bins["0"].edges[-1] == 5


def spoil(what):
    def wrong(root):
        pairs(root)
        what(root)

    return wrong


def empty(root):
    write_image(root / "images" / "a.png")
    (root / "depth").mkdir()


def eight_bits(root):
    write_depth(root / "depth" / "b.png", (MM // 100).astype("u1"))


def colour(root):
    write_image(root / "depth" / "b.png")


def turned(root):
    exif = Image.Exif()
    exif[0x0112] = 6
    write_image(root / "images" / "b.png", exif=exif)


@pytest.mark.parametrize(
    "fill, error, says",
    [
        (lambda root: None, FileNotFoundError, "has no folder images/; its folders: none"),
        (lambda root: pairs(root, ""), FileNotFoundError, "no folder images/"),
        (empty, FileNotFoundError, "depth holds no file that ends in .png"),
        (spoil(lambda r: (r / "depth" / "b.png").unlink()), ValueError, "1 images have no depth"),
        (spoil(lambda r: (r / "images" / "a.png").unlink()), ValueError, "files of depth have no"),
        (spoil(lambda r: write_depth(r / "depth" / "b.npy")), ValueError, "Two files for one"),
        (spoil(lambda r: write_image(r / "images" / "b.png", (8, 6))), ValueError, "of one shape"),
        (spoil(lambda r: write_image(r / "images" / "b.png", (12, 16))), ValueError, "Give a size"),
        (spoil(turned), ValueError, "of one shape, 8x6 and 6x8.*EXIF"),
        (spoil(eight_bits), ValueError, "b.png is a 8-bit grey PNG.*16-bit grey"),
        (spoil(colour), ValueError, "b.png is a 8-bit colour type 2 PNG"),
        (spoil(lambda r: (r / "images" / "b.png").write_text("hi")), ValueError, "b.png as a pict"),
        (
            lambda r: pairs(r, ending=".npy", values=np.stack([MM] * 3)),
            ValueError,
            r"shape \(3, 6, 8\); depth is one number a pixel",
        ),
        (lambda r: pairs(r, ending=".npy", values=MM.astype("u1")), ValueError, "16 bits or more"),
    ],
)
def test_clear_errors_for_what_a_folder_holds(fill, error, says, tmp_path):
    fill(tmp_path)
    with pytest.raises(error, match=says):
        load(tmp_path)


@pytest.mark.parametrize("ending", [".npy", ".exr", ".h5"])
def test_damaged_depth_is_named(ending, tmp_path):
    (pairs(tmp_path) / "depth" / "b.png").unlink()
    (tmp_path / "depth" / f"b{ending}").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"Cannot read .*b{ending}"):
        load(tmp_path)


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"depth_unit": None}, ValueError, "Say depth_unit=.*0.001 for millimetres"),
        ({"depth_unit": 0}, ValueError, "Say depth_unit="),
        ({"root": None}, FileNotFoundError, "Say root="),
        ({"root": "nowhere"}, FileNotFoundError, "no folder nowhere"),
        ({"split": "valid"}, ValueError, "train, val, test, all"),
        ({"images": "rgb"}, FileNotFoundError, "its folders: depth, images"),
        ({"depth_range": (5, 1)}, ValueError, "0 < alpha < beta"),
        ({"raw": True}, TypeError, "raw"),
    ],
)
def test_clear_errors_for_options(options, error, says, tmp_path):
    pairs(tmp_path)
    with pytest.raises(error, match=says):
        load(**{"root": tmp_path, **options})
    with pytest.raises(ValueError, match="too few to be split"):
        load(tmp_path, "val")
    assert "folder" in DATASETS


def test_exr_without_its_reader(tmp_path, monkeypatch):
    pairs(tmp_path, ending=".exr")
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(FileNotFoundError, match="pip install OpenEXR"):
        load(tmp_path)


def test_every_kind_of_picture_becomes_rgb():
    grey = np.arange(0, 65536, 257, dtype="u2").reshape(16, 16)
    level = (grey // 257).astype("u1")
    for image in (Image.fromarray(grey), Image.fromarray(level), Image.fromarray(level, "L")):
        found = np.asarray(as_rgb(image, "a"))
        assert found.shape == (16, 16, 3) and (found == level[..., None]).all()
    red = Image.new("CMYK", (4, 4), (0, 255, 255, 0))
    assert as_rgb(red, "a").getpixel((0, 0)) == (255, 0, 0)
    for mode, colour in (("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))):
        assert as_rgb(Image.new(mode, (4, 4), colour), "a").getpixel((0, 0)) == (255, 255, 255)
    half = as_rgb(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "a").getpixel((0, 0))
    assert abs(half[0] - 127) <= 1
    with pytest.raises(ValueError, match="nothing says which is white"):
        as_rgb(Image.new("F", (4, 4)), "a")


def test_splits_by_folders_below_images(tmp_path):
    splits = {"train": 1, "val": 2, "test": 3}
    for split, value in splits.items():
        pairs(tmp_path, [f"{split}/{i}" for i in range(2)], values=MM * 0 + 1000 * value)
    for split, value in splits.items():
        data = load(tmp_path, split)
        assert [(data[i]["name"], data[i]["depth"].max().item()) for i in range(2)] == [
            ("0", value), ("1", value)
        ]  # fmt: skip
    assert len(load(tmp_path)) == 6
    pairs(tmp_path, ["kitchen/1"])
    with pytest.raises(ValueError, match="the splits train, val, test and, beside them, kitchen"):
        load(tmp_path, "train")


def test_a_split_that_is_not_below_images(tmp_path):
    pairs(tmp_path, ["train/1", "test/1"])
    with pytest.raises(FileNotFoundError, match="has the splits train, test, but no folder val"):
        load(tmp_path, "val")
