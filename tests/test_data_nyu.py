"""NYU Depth V2: three layouts written small, and the real frames."""

import sys
import types

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from mde_utils.data import load_dataset, reading
from mde_utils.data import nyu as module
from mde_utils.data.nyu import NYU
from mde_utils.data.rendered import NYU_CAMERA

H, W = 48, 64
SCENES = ["basement_0001a", "basement_0001b", "bedroom_0002", "office_0003", "study_0008"]


@pytest.fixture(autouse=True)
def nothing_attached(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "KAGGLE_INPUT", tmp_path / "no-kaggle")
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "no-hub"))
    monkeypatch.setattr(reading, "_said", set())


def write_frame(image, depth, index, *, bits, size=(H, W)):
    """A smooth picture and a depth ramp: value = 10 * (index + 1) + column."""
    image.parent.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[: size[0], : size[1]]
    rgb = np.stack([2 * x, 2 * y, np.full_like(x, 5 * index)], -1).astype("u1")
    Image.fromarray(rgb).save(image, **({"quality": 95} if image.suffix == ".jpg" else {}))
    value = 10 * (index + 1) + x
    Image.fromarray(value.astype({8: "u1", 16: "u2"}[bits])).save(depth)


def write_kaggle(root, scenes=SCENES, frames=4, nested="nyu_data/data"):
    data = root / nested
    rows, n = [], 0
    for scene in scenes:
        for frame in range(1, frames + 1):
            stem = f"data/nyu2_train/{scene}_out/{frame}"
            write_frame(data.parent / f"{stem}.jpg", data.parent / f"{stem}.png", n % 18, bits=8)
            rows.append(f"{stem}.jpg,{stem}.png")
            n += 1
    (data / "nyu2_train.csv").write_text("\n".join(rows) + "\n")
    rows = []
    for n in range(3):
        stem = f"data/nyu2_test/{n:05d}"
        image, depth = f"{stem}_colors.png", f"{stem}_depth.png"
        write_frame(data.parent / image, data.parent / depth, n + 200, bits=16)
        rows.append(f"{image},{depth}")
    (data / "nyu2_test.csv").write_text("\n".join(rows) + "\n")
    return root


def write_bts(root, train="sync", test="official_splits/test"):
    for place in filter(None, (train, test)):
        for scene in SCENES[:4]:
            for n in range(3):
                folder = root / place / scene
                write_frame(
                    folder / f"rgb_{n:05d}.jpg", folder / f"sync_depth_{n:05d}.png", n, bits=16
                )
    return root


def write_labelled(root, *, depth=None, splits="7.3"):
    """10 frames of 5 scenes; test frames are 1, 2, 9 and 10 in MATLAB's counting."""
    root.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:H, :W]
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w") as file:
        image = np.stack([np.stack([x, y, np.full_like(x, n)]) for n in range(10)]).astype("u1")
        metres = np.stack([1 + n + 0.01 * x for n in range(10)]).astype("f4")
        raw = metres * (x % 2)
        if depth is not None:
            metres[4, 3, 5] = depth
        file["images"] = image.swapaxes(2, 3)  # (N, 3, W, H), as MATLAB writes it
        file["depths"] = metres.swapaxes(1, 2)
        file["rawDepths"] = raw.swapaxes(1, 2)
        cells = file.create_dataset("scenes", (1, 10), h5py.ref_dtype)
        for n in range(10):
            name = f"{'bath' if n % 2 else 'kitchen'}_{n // 2:04d}"
            file[f"#refs#/{n}"] = np.array([[ord(c)] for c in name], "u2")
            cells[0, n] = file[f"#refs#/{n}"].ref
    test = np.array([[1], [2], [9], [10]], "f8")
    train = np.array([[3], [4], [5], [6], [7], [8]], "f8")
    if splits == "7.3":
        with h5py.File(root / "splits.mat", "w") as file:
            file["testNdxs"], file["trainNdxs"] = test.T, train.T
    elif splits == "5":
        from scipy.io import savemat

        savemat(root / "splits.mat", {"testNdxs": test, "trainNdxs": train}, do_compression=True)
    return root


# ---- the layouts ------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", ["data", "nyu_data/data"])
@pytest.mark.parametrize("inside", [False, True])
def test_kaggle(tmp_path, nested, inside, capsys):
    root = write_kaggle(tmp_path, nested=nested)
    data = load_dataset("nyu", "train", root=root / nested if inside else root)
    assert data.layout == "kaggle" and data.encoding == "8-bit PNG, value × 10/255 m"
    assert data.size == (H, W)
    said = capsys.readouterr().out
    assert said.count("8-bit PNG") == 1 and "kaggle" in said

    item = data[0]
    assert item["image"].shape == (3, H, W) and item["depth"].shape == (1, H, W)
    column = torch.arange(W, dtype=torch.float32)
    first = 10 * round(item["depth"][0, 0, 0].item() * 25.5 / 10)
    assert torch.allclose(item["depth"], ((first + column) * 10 / 255).expand(1, H, W))
    assert (item["image"][0] - 2 * column / 255).abs().max() < 0.03
    assert item["focal"] == item["intrinsics"][0, 0]

    test = NYU("test", root=root)
    assert test.encoding == "16-bit PNG, millimetres" and len(test) == 3
    assert torch.allclose(test[0]["depth"][0, 0], (2010 + column) / 1000)
    assert [item["name"] for item in test] == [f"nyu2_test/{n:05d}_colors" for n in range(3)]

    capsys.readouterr()
    NYU("train", root=root)
    assert capsys.readouterr().out == ""  # said once


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("sync", "official_splits/test"),
        ("train", "test"),
        ("official_splits/train", None),
        ("", ""),
    ],
)
def test_bts(tmp_path, train, test):
    if train:
        write_bts(tmp_path, train, test)
    else:
        write_bts(tmp_path, ".", None)
    data = NYU("train", root=tmp_path)
    assert data.layout == "bts" and data.encoding == "16-bit PNG, millimetres"
    assert len(data) + len(NYU("val", root=tmp_path)) == 12
    assert data[0]["name"].endswith("/rgb_00000")
    assert torch.allclose(data[0]["depth"][0, 0], (10 + torch.arange(W)) / 1000)
    if test:
        assert len(NYU("test", root=tmp_path)) == 12
    else:
        with pytest.raises(FileNotFoundError, match="No test frames .* official_splits/test, test"):
            NYU("test", root=tmp_path)


def test_bts_with_test_frames_alone_has_no_training(tmp_path):
    write_bts(tmp_path, None)
    with pytest.raises(FileNotFoundError, match="No train frames .* sync, train"):
        NYU("train", root=tmp_path)


@pytest.mark.parametrize("splits", ["7.3", "5"])
@pytest.mark.parametrize("direct", [False, True])
def test_labelled(tmp_path, splits, direct):
    root = write_labelled(tmp_path, splits=splits)
    root = root / "nyu_depth_v2_labeled.mat" if direct else root
    test = NYU("test", root=root)
    assert test.layout == "labelled" and "float32" in test.encoding
    assert [item["name"] for item in test] == [
        "kitchen_0000/0", "bath_0000/1", "kitchen_0004/8", "bath_0004/9",
    ]  # fmt: skip
    train, val = NYU("train", root=root), NYU("val", root=root)
    names = {item["name"] for part in (train, val) for item in part}
    assert len(train) + len(val) == len(names) == 6
    item = test[2]
    assert torch.allclose(item["depth"][0], (9 + 0.01 * torch.arange(W)).expand(H, W))
    assert (item["image"][0] * 255).round()[5].tolist() == [*range(W)]
    assert (item["image"][1] * 255).round()[:, 5].tolist() == [*range(H)]


def test_labelled_raw_keeps_the_holes(tmp_path):
    root = write_labelled(tmp_path)
    raw = NYU("test", root=root, raw=True)
    assert "hole" in raw.encoding
    assert (raw[0]["depth"][0, :, ::2] == 0).all() and (raw[0]["depth"][0, :, 1::2] > 0).all()
    assert (NYU("test", root=root)[0]["depth"] > 0).all()  # another cache, too


def test_layout_can_be_chosen(tmp_path):
    write_kaggle(tmp_path)
    write_labelled(tmp_path)
    assert NYU("train", root=tmp_path).layout == "kaggle"
    assert NYU("train", root=tmp_path, layout="labelled").layout == "labelled"
    with pytest.raises(FileNotFoundError, match="holds no bts layout"):
        NYU("train", root=tmp_path, layout="bts")


# ---- splits, limits, sizes --------------------------------------------------------------------


def test_validation_is_cut_by_room_and_repeats(tmp_path):
    scenes = [f"kitchen_{n:04d}{part}" for n in range(20) for part in "ab"]
    root = write_kaggle(tmp_path, scenes, frames=2)
    train, val = (NYU(split, root=root, cache=False) for split in ("train", "val"))
    rooms = [{name[:12] for name in data.names} for data in (train, val)]
    assert not rooms[0] & rooms[1] and len(rooms[0] | rooms[1]) == 20
    assert len(train) + len(val) == 80 and len(val) == 8
    assert val.names == NYU("val", root=root, cache=False).names

    # The order of the rows changes nothing: a row is never what is chosen.
    path = root / "nyu_data/data/nyu2_train.csv"
    path.write_text("\n".join(reversed(path.read_text().split())))
    assert {*NYU("val", root=root, cache=False).names} == {*val.names}


def test_one_scene_has_no_validation_unless_asked_by_row(tmp_path):
    root = write_kaggle(tmp_path, ["labelled"], frames=20)
    assert len(NYU("train", root=root)) == 20
    with pytest.raises(ValueError, match='one scene .*val_by="row"'):
        NYU("val", root=root)
    train, val = (NYU(split, root=root, val_by="row") for split in ("train", "val"))
    assert len(train) == 18 and val.names == ["labelled_out/19", "labelled_out/20"]


@pytest.mark.parametrize("limit", [1, 3, 19, 500])
def test_limit_is_spread_over_the_split(tmp_path, limit):
    root = write_kaggle(tmp_path)
    names = NYU("train", root=root, cache=False).names
    few = NYU("train", root=root, limit=limit, cache=False).names
    assert len(few) == min(limit, len(names)) == len({*few})
    where = [names.index(name) for name in few]
    gaps = np.diff([*where, len(names)])
    assert where == sorted(where) and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("size", [(48, 64), (24, 32), (80, 192), (96, 128)])
def test_sizes_match_pil(tmp_path, size):
    """At sizes whose pixel centres never lie between two pixels: there Pillows differ."""
    root = write_kaggle(tmp_path)
    item = NYU("test", root=root, size=size)[1]
    folder = root / "nyu_data/data/nyu2_test"
    image = Image.open(folder / "00001_colors.png").resize(size[::-1], Image.Resampling.BILINEAR)
    depth = Image.open(folder / "00001_depth.png").resize(size[::-1], Image.Resampling.NEAREST)
    assert torch.equal(
        (item["image"] * 255).round(), torch.tensor(np.array(image)).permute(2, 0, 1)
    )
    assert torch.allclose(item["depth"][0], torch.tensor(np.array(depth).astype("f4")) / 1000)


def test_intrinsics_scale_with_pixel_centres():
    assert torch.equal(
        NYU_CAMERA.matrix((480, 640)),
        torch.tensor([[518.86, 0, 325.58], [0, 519.47, 253.74], [0, 0, 1]]),
    )
    half = NYU_CAMERA.matrix((240, 320))
    # The ray through the corner of the image is the same at any size.
    for k, (h, w) in ((NYU_CAMERA.matrix((480, 640)), (480, 640)), (half, (240, 320))):
        corner = torch.linalg.inv(k.double()) @ torch.tensor([w - 0.5, h - 0.5, 1.0]).double()
        assert corner[:2].tolist() == pytest.approx([313.92 / 518.86, 225.76 / 519.47])


def test_a_changed_source_is_read_again(tmp_path):
    root = write_kaggle(tmp_path)
    before = NYU("test", root=root)[0]["depth"]
    path = root / "nyu_data/data/nyu2_test/00000_depth.png"
    Image.fromarray(np.full((H, W), 777, "u2")).save(path)
    after = NYU("test", root=root)[0]["depth"]
    assert (after - 0.777).abs().max() < 1e-6 and not torch.equal(before, after)


# ---- finding ----------------------------------------------------------------------------------


def test_nothing_found_lists_places_and_ways(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        load_dataset("nyu", "train")
    for word in ["NYU_ROOT", "no-kaggle", "no-hub", "attach", "kagglehub", "root=", "rooms"]:
        assert word in str(caught.value)


def test_missing_root_is_not_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("NYU_ROOT", str(write_kaggle(tmp_path / "here")))
    with pytest.raises(FileNotFoundError, match=r"gone \(does not exist\)"):
        NYU("train", root=tmp_path / "gone")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty \(holds no known layout\)"):
        NYU("train", root=tmp_path / "empty")
    monkeypatch.setenv("NYU_ROOT", str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match=r"NYU_ROOT=.*gone \(does not exist\)"):
        NYU("train")


def test_found_by_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NYU_ROOT", str(write_kaggle(tmp_path)))
    assert len(NYU("test")) == 3


@pytest.mark.parametrize("mount", ["nyu-depth-v2", "datasets/owner/nyu-depth-v2"])
def test_found_where_kaggle_attaches_it(tmp_path, monkeypatch, mount):
    (tmp_path / "input" / "another").mkdir(parents=True)
    write_kaggle(tmp_path / "input" / mount)
    monkeypatch.setattr(module, "KAGGLE_INPUT", tmp_path / "input")
    assert len(NYU("test")) == 3


def test_found_in_the_cache_of_kagglehub_without_network(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setitem(sys.modules, "kagglehub", None)  # importing it would fail
    write_kaggle(tmp_path / "hub" / "datasets" / module.KAGGLE_HANDLE)
    assert len(NYU("test")) == 3


def test_kagglehub_is_asked_on_request_only(tmp_path, monkeypatch):
    asked = []

    def dataset_download(handle):
        asked.append(handle)
        return str(write_kaggle(tmp_path / "fetched"))

    fake = types.SimpleNamespace(dataset_download=dataset_download)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    with pytest.raises(FileNotFoundError):
        NYU("test")
    assert not asked
    assert len(NYU("test", download=True)) == 3
    assert asked == ["soumikrakshit/nyu-depth-v2/versions/1"]


# ---- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(limit=0), "limit .* at least 1.* 0"),
        (dict(limit=-3), "limit .* -3"),
        (dict(size=(0, 64)), r"size .*\(0, 64\)"),
        (dict(size=(48, 64, 3)), r"size .*\(48, 64, 3\)"),
        (dict(size=(48, 6.5)), r"size .*6\.5"),
        (dict(size=48), "size .* 48"),
        (dict(layout="hdf5"), "Unknown layout of NYU 'hdf5'.*labelled"),
        (dict(val_by="frame"), "Unknown val_by of NYU 'frame'.*scene, row"),
        (dict(raw=True), "raw=True needs the layout 'labelled'"),
    ],
)
def test_bad_arguments(tmp_path, options, words):
    root = write_kaggle(tmp_path)
    with pytest.raises(ValueError, match=words):
        NYU("train", root=root, **options)


def test_unknown_split(tmp_path):
    with pytest.raises(ValueError, match="Unknown split of NYU 'valid'.*Did you mean 'val'"):
        NYU("valid", root=tmp_path)


def test_listed_files_are_absent(tmp_path, monkeypatch):
    root = write_kaggle(tmp_path)
    scene = root / "nyu_data/data/nyu2_train/bedroom_0002_out"
    for n in (1, 2, 3):
        (scene / f"{n}.jpg").unlink()
    monkeypatch.setattr(NYU, "produce", lambda *_: pytest.fail("decoded before the check"))
    with pytest.raises(FileNotFoundError) as caught:
        NYU("train", root=root, val_by="row")
    assert "3 of 36 files" in str(caught.value) and str(scene / "1.jpg") in str(caught.value)


def test_bts_image_without_depth(tmp_path):
    write_bts(tmp_path)
    (tmp_path / "sync" / SCENES[0] / "sync_depth_00001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 22 files .*sync_depth_00001.png"):
        NYU("train", root=tmp_path, val_by="row")


@pytest.mark.parametrize("rows", ["", "\n\n"])
def test_empty_split(tmp_path, rows):
    root = write_kaggle(tmp_path)
    (root / "nyu_data/data/nyu2_test.csv").write_text(rows)
    with pytest.raises(ValueError, match="The test split in .* is empty"):
        NYU("test", root=root)


def test_csv_of_another_shape(tmp_path):
    root = write_kaggle(tmp_path)
    (root / "nyu_data/data/nyu2_test.csv").write_text("a.png,b.png\na.png;b.png\n")
    with pytest.raises(ValueError, match="nyu2_test.csv, line 2: expected image,depth"):
        NYU("test", root=root)


def test_csv_of_the_split_is_missing(tmp_path):
    root = write_kaggle(tmp_path)
    (root / "nyu_data/data/nyu2_test.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no nyu2_test.csv"):
        NYU("test", root=root)


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("name", ["3.jpg", "3.png"])
@pytest.mark.parametrize("keep", [0.5, 0.0])
def test_truncated_file_is_named(tmp_path, cache, name, keep):
    root = write_kaggle(tmp_path, ["labelled"], frames=6)
    path = root / "nyu_data/data/nyu2_train/labelled_out" / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(ValueError, match=f"Cannot decode .*labelled_out/{name}"):
        NYU("train", root=root, cache=cache)[2]


@pytest.mark.parametrize(
    ("split", "array", "words"),
    [
        ("train", np.full((H, W), 3000, "u2"), "16-bit grey PNG; .*'kaggle' is 8-bit"),
        ("test", np.full((H, W), 30, "u1"), "8-bit grey PNG; .*'kaggle' is 16-bit"),
        ("train", np.full((H, W, 3), 30, "u1"), "8-bit colour type 2 PNG"),
    ],
)
def test_wrong_bit_depth(tmp_path, split, array, words):
    root = write_kaggle(tmp_path, ["labelled"])
    name = "nyu2_train/labelled_out/2.png" if split == "train" else "nyu2_test/00001_depth.png"
    Image.fromarray(array).save(root / "nyu_data/data" / name)
    with pytest.raises(ValueError, match=words) as caught:
        NYU(split, root=root)
    assert name in str(caught.value)


def test_image_and_depth_of_different_sizes(tmp_path):
    root = write_kaggle(tmp_path, ["labelled"])
    path = root / "nyu_data/data/nyu2_train/labelled_out/2.png"
    Image.fromarray(np.full((H // 2, W), 30, "u1")).save(path)
    with pytest.raises(ValueError, match="differ in size, 48x64 and 24x64 .*2.jpg and .*2.png"):
        NYU("train", root=root, size=(24, 32))


def test_frames_of_several_sizes_need_a_size(tmp_path):
    root = write_kaggle(tmp_path, ["labelled"])
    folder = root / "nyu_data/data/nyu2_train/labelled_out"
    write_frame(folder / "2.jpg", folder / "2.png", 0, bits=8, size=(24, 32))
    with pytest.raises(ValueError, match="first is 48x64, another 24x32 .*2.jpg.*Give a size"):
        NYU("train", root=root)
    assert len(NYU("train", root=root, size=(24, 32))) == 4


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf])
def test_labelled_with_impossible_depth(tmp_path, value):
    root = write_labelled(tmp_path, depth=value)
    with pytest.raises(ValueError, match="labeled.mat: frame 5 has NaN, infinite or negative"):
        NYU("train", root=root, val_by="row")
    assert len(NYU("test", root=root)) == 4  # other frames are as good as before


def test_labelled_without_splits(tmp_path):
    root = write_labelled(tmp_path, splits=None)
    with pytest.raises(FileNotFoundError, match="splits.mat is missing.*beside it"):
        NYU("train", root=root)


def test_labelled_cut_off(tmp_path):
    root = write_labelled(tmp_path)
    path = root / "nyu_depth_v2_labeled.mat"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="Cannot read .*labeled.mat"):
        NYU("train", root=root)


def test_labelled_split_beyond_the_file(tmp_path):
    root = write_labelled(tmp_path)
    with h5py.File(root / "splits.mat", "w") as file:
        file["trainNdxs"] = np.array([[1, 11]])
    with pytest.raises(ValueError, match="trainNdxs goes beyond the 10 frames"):
        NYU("train", root=root)
    with pytest.raises(ValueError, match="has no testNdxs"):
        NYU("test", root=root)


def test_no_write_permission_for_the_cache(tmp_path, monkeypatch):
    root = write_kaggle(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MDE_CACHE", str(tmp_path / "file"))
    with pytest.raises(PermissionError, match="file/nyu-test-.*MDE_CACHE"):
        NYU("test", root=root)
    assert len(NYU("test", root=root, cache=False)) == 3


# ---- real frames ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(real, tmp_path_factory):
    """Both splits at a small size, decoded once for this file."""
    return {s: NYU(s, root=real / "nyu", size=(48, 64)) for s in ("train", "test")}


def test_real_frames(frames):
    train, test = frames["train"], frames["test"]
    assert (len(train), len(test)) == (599, 120)
    assert train.encoding.startswith("8-bit") and test.encoding.startswith("16-bit")
    means = {}
    for split, data in frames.items():
        depth = torch.stack([item["depth"] for item in data])
        assert (depth > 0).all()  # in-painted: no holes
        assert 0.5 < depth.min() and depth.max() <= 10
        means[split] = depth.mean().item()
    assert means["train"] == pytest.approx(means["test"], rel=0.2)
    assert means["train"] == pytest.approx(2.9, abs=0.5)
    assert train[0]["name"] == "labelled_out/2" and test[0]["name"] == "nyu2_test/00015_colors"
    assert not {n.split("/")[1] for n in train.names} & {str(int(n[10:15])) for n in test.names}


def test_real_frames_look_like_pictures(frames):
    for data in frames.values():
        image = torch.stack([data[i]["image"] for i in range(0, len(data), 10)])
        assert 0.2 < image.mean() < 0.7 and image.std() > 0.15
        # Depth lies upside down in no frame: the floor is near, so rows differ from top to bottom.
        assert image.min() >= 0 and image.max() <= 1


def test_real_native_size(real):
    item = NYU("test", root=real / "nyu", limit=1, cache=False)[0]
    assert item["image"].shape == (3, 480, 640) and item["focal"].item() == pytest.approx(518.86)
