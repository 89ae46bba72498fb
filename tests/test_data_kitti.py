"""KITTI: a tree written small with every kind of list, bad input, and the real frames."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from mde_utils.data import kitti as module
from mde_utils.data import load_dataset, reading
from mde_utils.data.kitti import (
    Calibration,
    project_velodyne,
    read_calibration,
    read_depth,
    read_split,
    read_velodyne,
)
from mde_utils.data.transforms import mff_augment, mff_crop
from mde_utils.depth_bins import find_range
from mde_utils.evaluation import evaluate
from mde_utils.protocols import PROTOCOLS

H, W = 375, 1242
FX, CX, CY = 721.5377, 609.5593, 172.854
FIRST, SECOND, OTHER = (
    "2011_09_26_drive_0001_sync",
    "2011_09_26_drive_0002_sync",
    "2011_09_28_drive_0001_sync",
)


@pytest.fixture(autouse=True)
def nothing_attached(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "KAGGLE_INPUT", tmp_path / "no-kaggle")
    monkeypatch.delenv("KITTI_ROOT", raising=False)
    monkeypatch.setattr(reading, "_said", set())


def write_calibration(folder, size=(H, W), focal=FX):
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["calib_time: 09-Jan-2012 13:57:47", "corner_dist: 9.950000e-02"]
    for camera, shift in enumerate((0.0, -387.5744, 44.85728, -339.5242)):
        lines += [
            f"S_0{camera}: 1.392000e+03 5.120000e+02",
            f"S_rect_0{camera}: {size[1]:e} {size[0]:e}",
            f"R_rect_0{camera}: 1 0 0 0 1 0 0 0 1",
            f"P_rect_0{camera}: {focal} 0 {CX} {shift} 0 {focal} {CY} 0 0 0 1 0",
        ]
    (folder / "calib_cam_to_cam.txt").write_text("\n".join(lines) + "\n")
    # The lidar looks along the camera's axis, 0.27 m behind it: x forward, y left, z up.
    velo = ["calib_time: 15-Mar-2012 11:37:16", "R: 0 -1 0 0 0 -1 1 0 0", "T: 0 0 -0.27"]
    (folder / "calib_velo_to_cam.txt").write_text("\n".join(velo) + "\n")


def picture(size, shift):
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([x * 255 // size[1], y * 255 // size[0], np.full_like(x, shift)], -1).astype(
        "u1"
    )


def write_frame(root, drive, number, *, size=(H, W), right=True, depth="", ending="png"):
    """Red is the column, green the row, blue 10 x camera; depth PNG: 256 x number + column."""
    for camera in (2, 3) if right else (2,):
        path = root / drive[:10] / drive / f"image_0{camera}" / "data" / f"{number:010d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(size, 10 * camera)).save(path)
        if depth is not None:
            folder = root / depth / drive / "proj_depth" / "groundtruth" / f"image_0{camera}"
            folder.mkdir(parents=True, exist_ok=True)
            value = 256 * number + np.mgrid[: size[0], : size[1]][1] % 1000
            Image.fromarray(value.astype("u2")).save(folder / f"{number:010d}.png")
    lidar = root / drive[:10] / drive / "velodyne_points" / "data" / f"{number:010d}.bin"
    lidar.parent.mkdir(parents=True, exist_ok=True)
    points = np.array([[10, 0, 0, 0.5], [20, 0, 0, 0.5], [-10, 0, 0, 0.5], [10, -1, -1, 0]], "<f4")
    lidar.write_bytes(points.tobytes())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two drives of a date and one of another; no list."""
    root = tmp_path_factory.mktemp("kitti")
    write_calibration(root / "2011_09_26")
    write_calibration(root / "2011_09_28", (370, 1224), 707.0493)
    for drive in (FIRST, SECOND):
        for number in (5, 6):
            write_frame(root, drive, number, depth="data_depth_annotated/train")
    write_frame(root, OTHER, 7, size=(370, 1224), depth="data_depth_annotated/val")
    return root


@pytest.fixture
def tree(written, tmp_path):
    return shutil.copytree(written, tmp_path / "above" / "kitti")


def bts(drive, number, camera=2, depth="", focal=FX, ending="png"):
    image = f"{drive[:10]}/{drive}/image_0{camera}/data/{number:010d}.{ending}"
    depth = depth or f"{drive}/proj_depth/groundtruth/image_0{camera}/{number:010d}.png"
    return f"{image} {depth} {focal}"


def monodepth2(drive, number, side="l"):
    return f"{drive[:10]}/{drive} {number} {side}"


def write_list(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def load(tree, *lines, split="train", **options):
    path = write_list(tree / "list.txt", *lines)
    options = {"split_file": path, "cache": False} | options
    return load_dataset("kitti", split, root=tree, **options)


# ---- items ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [False, True])
def test_an_item_of_the_benchmark_window(tree, cache):
    data = load(tree, bts(FIRST, 5), bts(SECOND, 6), right=True, sparse_depth=True, cache=cache)
    assert len(data) == 2 and data.name == "kitti/train" and find_range(data) == (3, 80)
    item = data[1]
    assert item["image"].shape == item["right"].shape == (3, 352, 1216)
    assert item["depth"].shape == item["sparse_depth"].shape == (1, 352, 1216)
    whole = torch.from_numpy(picture((H, W), 20)).permute(2, 0, 1) / 255
    assert torch.equal(item["image"], whole[:, 23:, 13:1229])
    assert item["right"][2].unique().item() == pytest.approx(30 / 255)
    column = torch.arange(13, 1229) % 1000
    assert torch.equal(item["depth"], ((256 * 6 + column) / 256).expand(1, 352, 1216))
    k = torch.tensor([[FX, 0, CX - 13], [0, FX, CY - 23], [0, 0, 1]])
    torch.testing.assert_close(item["intrinsics"], k)
    torch.testing.assert_close(item["focal"], torch.tensor(FX))
    torch.testing.assert_close(item["baseline"], torch.tensor((44.85728 + 339.5242) / FX))
    assert item["frame"].tolist() == [23, 13, 375, 1242]
    assert item["name"] == f"{SECOND}/image_02/0000000006"
    # The point 9.73 m before the camera, straight ahead but for camera 2's 0.06 m, hides that at
    # 19.73 m one pixel away or not; nothing is behind.
    u, v = (FX * 0 + 44.85728) / 9.73 + CX, CY
    assert item["sparse_depth"][0, round(v) - 1 - 23, round(u) - 1 - 13] == pytest.approx(9.73)
    assert (item["sparse_depth"] > 0).sum() == 3


def test_a_resized_item_shows_the_same_points(tree):
    whole, small = (
        load(tree, bts(FIRST, 5), crop="none", size=size)[0] for size in (None, (150, 414))
    )
    assert small["image"].shape == (3, 150, 414) and whole["depth"].shape == (1, H, W)
    assert whole["frame"].tolist() == [0, 0, H, W]
    assert small["frame"].tolist() == pytest.approx([0, 0, 150, 414])
    sx, sy = 414 / W, 150 / H
    k = small["intrinsics"]
    assert small["focal"] == k[0, 0] == pytest.approx(FX * sx) and k[1, 1] == pytest.approx(FX * sy)
    assert k[0, 2] + 0.5 == pytest.approx((CX + 0.5) * sx)
    assert k[1, 2] + 0.5 == pytest.approx((CY + 0.5) * sy)
    assert set(small["depth"].unique().tolist()) <= set(whole["depth"].unique().tolist())
    smooth = F.interpolate(
        whole["image"][None], (150, 414), mode="bilinear", antialias=True, align_corners=False
    )
    assert (small["image"] - smooth[0]).abs().max() < 2 / 255
    cut = load(tree, bts(FIRST, 5), size=(176, 608))[0]
    assert cut["frame"].tolist() == [11.5, 6.5, 187.5, 621]
    assert cut["intrinsics"][0, 2] + 0.5 == pytest.approx((CX - 13 + 0.5) / 2)


def test_either_camera_and_the_sign_of_the_baseline(tree):
    left, right = load(
        tree, monodepth2(FIRST, 5, "l"), monodepth2(FIRST, 5, "r"), right=True, crop="none"
    )
    assert (left["image"][2] * 255).round().unique() == 20
    assert torch.equal(left["right"], right["image"]) and torch.equal(right["right"], left["image"])
    assert left["baseline"] == -right["baseline"] == pytest.approx(0.53273, abs=1e-4)
    assert right["name"].endswith("image_03/0000000005")


def test_jpg_frames_where_the_list_says_png(tree):
    write_frame(tree, FIRST, 9, depth="data_depth_annotated/train", ending="jpg")
    item = load(tree, bts(FIRST, 9), crop="none")[0]
    whole = torch.from_numpy(picture((H, W), 20)).permute(2, 0, 1) / 255
    assert (item["image"] - whole).abs().mean() < 0.02


def test_depth_from_the_lidar(tree):
    options = {"ground_truth": "velodyne", "crop": "none"}
    camera, lidar = (
        load(tree, bts(FIRST, 5), forward=f, **options) for f in ("camera", "velodyne")
    )
    # To the right and below by a metre: (10, -1, -1) of the lidar.
    u, v = (FX * 1 + 44.85728) / 9.73 + CX, FX / 9.73 + CY
    at = 0, round(v) - 1, round(u) - 1
    assert camera[0]["depth"][at] == pytest.approx(9.73)
    assert lidar[0]["depth"][at] == pytest.approx(10)
    assert torch.equal(camera[0]["depth"] > 0, lidar[0]["depth"] > 0)
    assert "along the camera's axis" in camera.describe()
    assert "along the lidar's axis" in lidar.describe()
    both = load(tree, bts(FIRST, 5), sparse_depth=True, forward="velodyne", **options)[0]
    assert both["sparse_depth"][at] == pytest.approx(9.73)


def test_frames_of_different_dates(tree):
    lines = bts(FIRST, 5), bts(OTHER, 7, focal=707.0493)
    data = load(tree, *lines)
    assert [x["image"].shape for x in data] == [(3, 352, 1216)] * 2
    assert data[1]["frame"].tolist() == [18, 4, 370, 1224]
    assert data[1]["focal"] == pytest.approx(707.0493)
    with pytest.raises(ValueError, match="differ in size: 370x1224, 375x1242.*Give a size"):
        load(tree, *lines, crop="none")
    assert len(load(tree, *lines, crop="none", size=(94, 310))) == 2


def test_the_frame_moves_with_augmentations(tree):
    data = load(tree, bts(FIRST, 5), size=(176, 608))
    item = data[0]
    cut = mff_crop(item)
    h, w = cut["image"].shape[-2:]
    top, left = (176 - h) // 2, (608 - w) // 2
    assert cut["frame"].tolist() == [11.5 + top, 6.5 + left, 187.5, 621]
    assert "frame" not in mff_augment(item)  # turned
    mirrored = module_mirror(item)
    # The window's right margin is now its left one.
    assert mirrored["frame"].tolist() == [11.5, 621 - 608 - 6.5, 187.5, 621]
    assert module_mirror(mirrored)["frame"].tolist() == item["frame"].tolist()


def module_mirror(item):
    from mde_utils.data.transforms import _mirror

    return _mirror(item)


def test_the_crop_of_the_full_frame_is_that_of_the_window(tree):
    class Wrong(torch.nn.Module):
        """Right where a full frame's Garg crop lets count, wrong elsewhere."""

        input_names = ("depth", "frame")

        def forward(self, image, depth, frame):
            pred = depth * 2
            top, left = int(frame[0, 0]), int(frame[0, 1])
            rows, columns = slice(153 - top, 371 - top), slice(44 - left, 1197 - left)
            pred[..., rows, columns] = depth[..., rows, columns]
            return pred

    for crop in ("benchmark", "none"):
        data = load(tree, bts(FIRST, 5), crop=crop)
        result = evaluate(Wrong(), data, protocol=["kitti-garg", "imde-kitti"], cap=80.0)
        assert result["kitti-garg"]["rms"] == 0
        assert (result["imde-kitti"]["rms"] > 0) == (crop == "benchmark")


# ---- lists ------------------------------------------------------------------------------------


def test_all_kinds_of_lines(tmp_path):
    image = bts(FIRST, 5).split()[0]
    path = write_list(
        tmp_path / "any.txt",
        bts(FIRST, 5),
        bts(FIRST, 6, depth="None"),
        "/" + bts(FIRST, 7, camera=3, ending="jpg"),
        "",
        f"{image} {image.replace('image_02', 'image_03')}",
        image,
        monodepth2(SECOND, "0000000069"),
        monodepth2(SECOND, 473, "r"),
    )
    frames = read_split(path)
    assert [(f.drive, f.camera, f.number) for f in frames] == [
        (FIRST, 2, 5), (FIRST, 2, 6), (FIRST, 3, 7), (FIRST, 2, 5), (FIRST, 2, 5),
        (SECOND, 2, 69), (SECOND, 3, 473),
    ]  # fmt: skip
    assert frames[0].depth.endswith("groundtruth/image_02/0000000005.png")
    assert [f.depth for f in frames[1:2] + frames[3:]] == ["", None, None, None, None]
    assert [f.focal for f in frames] == [FX, FX, FX, None, None, None, None]


@pytest.mark.parametrize(
    "line",
    [
        monodepth2(FIRST, 5, "m"),
        f"{FIRST[:10]}/{FIRST} 5",
        f"{FIRST[:10]}/{FIRST} five l",
        bts(FIRST, 5, camera=0),
        bts(FIRST, 5) + " 3",
        bts(FIRST, 5, focal="wide"),
        bts(FIRST, 5, depth="depth.tif"),
        "kitchen_0001/rgb_00001.jpg",
    ],
)
def test_a_line_of_no_kind_is_named(tmp_path, line):
    path = write_list(tmp_path / "bad.txt", bts(FIRST, 5), line)
    with pytest.raises(ValueError, match="bad.txt, line 2: expected 'image ground_truth focal'"):
        read_split(path)


def test_frames_without_ground_truth_are_counted(tree, capsys):
    write_frame(tree, FIRST, 8, depth=None)
    lines = bts(FIRST, 5), bts(FIRST, 8, depth="None"), monodepth2(FIRST, 8), monodepth2(FIRST, 6)
    data = load(tree, *lines, split="test")
    assert len(data) == 2 and data.listed == 4
    assert data.without == {"improved ground truth": 2}
    said = "KITTI test: 2 of 4 frames of list.txt, 2 without improved ground truth left out; "
    said += "ground truth improved, 16-bit PNG, value/256 m; benchmark crop 352x1216"
    assert data.describe() == said
    load(tree, *lines, split="test")
    assert capsys.readouterr().out.splitlines() == [said]
    lidar = load(tree, *lines, split="test", ground_truth="velodyne")
    assert (
        len(lidar) == 4 and "4 of 4 frames of list.txt; ground truth velodyne" in lidar.describe()
    )
    (tree / FIRST[:10] / FIRST / "velodyne_points/data/0000000006.bin").unlink()
    assert load(tree, *lines, sparse_depth=True).without == {
        "improved ground truth": 2,
        "velodyne": 1,
    }


def test_it_travels_to_workers(tree):
    data = load(tree, bts(FIRST, 5), bts(SECOND, 6), size=(88, 304))
    loader = torch.utils.data.DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    (batch,) = loader
    assert torch.equal(batch["depth"][1], data[1]["depth"])
    assert batch["frame"].shape == (2, 4)


def test_limit_is_spread_over_the_list(tree):
    lines = [bts(FIRST, 5), bts(FIRST, 6), bts(SECOND, 5), bts(SECOND, 6)]
    data = load(tree, *lines, limit=2)
    assert [f.drive for f in data.frames] == [FIRST, SECOND]
    assert "4 of 4 frames of list.txt, 2 of them taken" in data.describe()


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("splits/eigen_zhou/train_files.txt", "splits/eigen_zhou/val_files.txt",
         "splits/eigen/test_files.txt"),
        ("train_files.txt", "val_files.txt", "test_files.txt"),
    ],
)  # fmt: skip
def test_lists_found_by_their_usual_names(tree, train, val, test):
    write_list(tree / train, monodepth2(FIRST, 5), monodepth2(FIRST, 6))
    write_list(tree / val, monodepth2(SECOND, 5))
    write_list(tree / test, monodepth2(SECOND, 6))
    sets = {s: load_dataset("kitti", s, root=tree, cache=False) for s in ("train", "val", "test")}
    assert {s: len(d) for s, d in sets.items()} == {"train": 2, "val": 1, "test": 1}
    assert [sets[s].split_file for s in sets] == [tree / train, tree / val, tree / test]


def test_val_is_cut_by_drives_where_the_list_has_none(tree):
    path = tree / "train_test_inputs/eigen_train_files_with_gt.txt"
    write_list(path, bts(FIRST, 5), bts(FIRST, 6), bts(SECOND, 5), bts(OTHER, 7, focal=707.05))
    write_list(tree / "splits/eigen_zhou/val_files.txt", monodepth2(FIRST, 5))  # another author's
    train, val = (load_dataset("kitti", s, root=tree, cache=False) for s in ("train", "val"))
    drives = {f.drive for f in train.frames}, {f.drive for f in val.frames}
    assert not drives[0] & drives[1] and drives[0] | drives[1] == {FIRST, SECOND, OTHER}
    assert len(drives[1]) == 1 and len(train) + len(val) == 4
    assert "(2 drives, others held out for val)" in train.describe()
    assert "(1 drives, held out)" in val.describe()
    named = load_dataset("kitti", "train", root=tree, split_file=path, cache=False)
    assert len(named) == 4 and "held out" not in named.describe()


# ---- bad input --------------------------------------------------------------------------------


def test_no_data_names_the_places_and_the_remedies(tmp_path, monkeypatch):
    for options, says in (
        ({}, r"root \(not given\); KITTI_ROOT \(not given\)"),
        ({"root": tmp_path / "nowhere"}, r"root=.*nowhere \(does not exist\)"),
        ({"root": tmp_path}, "holds no folder of a date"),
    ):
        with pytest.raises(FileNotFoundError, match=f"{says}.*Three ways to provide it"):
            load_dataset("kitti", "test", **options)
    monkeypatch.setenv("KITTI_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="KITTI_ROOT=.*holds no folder of a date"):
        load_dataset("kitti", "test")


def test_the_dates_are_found_below_and_attached(tree, monkeypatch):
    path = write_list(tree / "list.txt", bts(FIRST, 5))
    options = {"split_file": path, "cache": False}
    assert load_dataset("kitti", "test", root=tree.parent, **options).root == tree
    monkeypatch.setattr(module, "KAGGLE_INPUT", tree.parent)
    assert load_dataset("kitti", "test", **options).root == tree


def test_no_list_says_which_were_looked_for(tree):
    for split in ("train", "val", "test"):
        with pytest.raises(FileNotFoundError) as caught:
            load_dataset("kitti", split, root=tree)
        for word in (f"eigen_{split}_files_with_gt.txt", f"{split}_files.txt", "split_file=…"):
            assert word in str(caught.value)
    write_list(tree / "train_files.txt", bts(FIRST, 5), bts(FIRST, 6))
    with pytest.raises(ValueError, match="All 2 frames of .* are of one drive.*split_file"):
        load_dataset("kitti", "val", root=tree)
    with pytest.raises(FileNotFoundError, match="There is no split file .*nowhere.txt"):
        load_dataset("kitti", "val", root=tree, split_file=tree / "nowhere.txt")
    with pytest.raises(ValueError, match="names no frame"):
        load(tree, "")


def remove(*parts):
    return lambda tree: os.remove(tree.joinpath(*parts))


def truncate(*parts, size):
    return lambda tree: os.truncate(tree.joinpath(*parts), size)


def rewrite(old, new, name="calib_cam_to_cam.txt"):
    def change(tree):
        path = tree / "2011_09_26" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return change


IMAGE = (FIRST[:10], FIRST, "image_02", "data", "0000000005.png")
OTHER_IMAGE = (FIRST[:10], FIRST, "image_03", "data", "0000000005.png")
LIDAR = (FIRST[:10], FIRST, "velodyne_points", "data", "0000000005.bin")
DEPTH = (
    "data_depth_annotated", "train", FIRST, "proj_depth", "groundtruth", "image_02",
    "0000000005.png",
)  # fmt: skip


def save(pixels, *parts):
    return lambda tree: Image.fromarray(pixels).save(tree.joinpath(*parts))


@pytest.mark.parametrize(
    "change, options, error, says",
    [
        (remove("2011_09_26", "calib_cam_to_cam.txt"), {}, FileNotFoundError,
         "calibration .*calib_cam_to_cam.txt is missing.*calib.zip"),
        (remove("2011_09_26", "calib_velo_to_cam.txt"), {}, FileNotFoundError,
         "calib_velo_to_cam.txt is missing"),
        (rewrite("P_rect_02", "P_rect_2"), {}, ValueError, "cam_to_cam.txt lacks P_rect_02"),
        (rewrite("P_rect_02: 721", "P_rect_02: x 721"), {}, ValueError,
         "P_rect_02 must be 12 numbers, given 'x 721"),
        (rewrite("S_rect_02", "S_rect_2"), {}, ValueError, "cam_to_cam.txt lacks S_rect_02"),
        (rewrite("T: ", "t: ", "calib_velo_to_cam.txt"), {}, ValueError, "to_cam.txt lacks T; it"),
        (rewrite("721.5377", "650.0"), {}, ValueError, "focal 721.538 for .*says 650.*other date"),
        (rewrite(f"{W:e}", f"{W + 1:e}"), {}, ValueError, "is 375x1242, the cal.*375x1243"),
        (rewrite(f"{H:e}", f"{300:e}"), {}, ValueError, "300x1242 are too small for the benchmark"),
        (remove(*IMAGE), {}, FileNotFoundError, "1 of .* files listed for KITTI test are absent"),
        (remove(*OTHER_IMAGE), {"right": True}, FileNotFoundError,
         "no image of the other camera, .*image_03.*right=False"),
        (remove(*DEPTH), {}, FileNotFoundError,
         "1 of 1 frames lack the improved ground truth that .*list.txt names.*data_depth_ann"),
        (truncate(*IMAGE, size=900), {}, ValueError, "Cannot decode .*0000000005.png"),
        (truncate(*LIDAR, size=50), {"sparse_depth": True}, ValueError,
         "has 50 bytes; .* 16 bytes"),
        (truncate(*LIDAR, size=0), {"ground_truth": "velodyne"}, ValueError, "has 0 bytes"),
        (remove(*LIDAR), {"sparse_depth": True}, FileNotFoundError,
         "No frame of .*list.txt is left: of 1, 1 lack velodyne"),
        (save(np.zeros((H, W), "u1"), *DEPTH), {}, ValueError, "is a 8-bit grey PNG; depth of"),
        (save(np.zeros((H, 99), "u2"), *DEPTH), {}, ValueError, "is 375x99, the calibration"),
    ],
)  # fmt: skip
def test_what_is_missing_or_damaged_is_named(tree, change, options, error, says):
    change(tree)
    with pytest.raises(error, match=says):
        load(tree, bts(FIRST, 5), split="test", **options)[0]


def test_an_unknown_drive_is_named(tree):
    line = monodepth2("2011_09_26_drive_0099_sync", 5)
    with pytest.raises(FileNotFoundError) as caught:
        load(tree, bts(FIRST, 5), line)
    says = str(caught.value)
    assert "1 of the 2 drives" in says and "2011_09_26_drive_0099_sync" in says
    assert "There are 3 drives" in says and "split_file=…" in says


def test_no_ground_truth_at_all(tree):
    write_frame(tree, FIRST, 8, depth=None)
    with pytest.raises(FileNotFoundError, match="is left: of 1, 1 lack improved.*data_depth_ann"):
        load(tree, monodepth2(FIRST, 8))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"split": "eval"}, "split of KITTI 'eval'. .*Known: train, val, test"),
        ({"ground_truth": "improve"}, "Did you mean 'improved'"),
        ({"ground_truth": "velodyne", "forward": "lidar"}, "Unknown forward of KITTI 'lidar'"),
        ({"forward": "velodyne"}, "Give ground_truth='velodyne' with it"),
        ({"crop": None}, "crop of KITTI None. .*Known: benchmark, none"),
        ({"limit": 0}, "limit is a number of items"),
        ({"size": (352,)}, "size is .height, width."),
        ({"augment": "meterr"}, "Unknown augmentation 'meterr'"),
    ],
)
def test_wrong_options(tree, options, says):
    with pytest.raises(ValueError, match=says):
        load(tree, bts(FIRST, 5), **options)


# ---- calibration and projection ---------------------------------------------------------------


def a_camera(*, shift=0.0):
    """Lidar and camera at one place: x of the lidar is the camera's depth."""
    turn = np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    projection = np.array([[10.0, 0, 8, shift], [0, 10, 4, 0], [0, 0, 1, 0]])
    return Calibration({2: projection}, np.eye(4), turn, {})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(-5, 40), st.floats(-20, 20), st.floats(-20, 20)),
        min_size=1,
        max_size=30,
    )
)
def test_projection_of_points_one_by_one(points):
    """Against a loop: the nearest point of each pixel, counted from 1, none from behind."""
    cloud = torch.tensor([[*p, 0.0] for p in points], dtype=torch.float32)
    expected = torch.zeros(8, 16)
    for x, y, z in cloud[:, :3].double().tolist():
        if x <= 0:
            continue
        column, row = (np.round(c) - 1 for c in (8 - 10 * y / x, 4 - 10 * z / x))
        if 0 <= column < 16 and 0 <= row < 8:
            column, row = int(column), int(row)
            if expected[row, column] == 0 or x < expected[row, column]:
                expected[row, column] = x
    found = project_velodyne(cloud, a_camera(), size=(8, 16))
    assert found.shape == (1, 8, 16) and torch.equal(found[0], expected)
    assert torch.equal(project_velodyne(cloud.flip(0), a_camera(), size=(8, 16)), found)


def test_projection_refuses():
    with pytest.raises(ValueError, match="'lidar'. Known: camera, velodyne"):
        project_velodyne(torch.rand(2, 4), a_camera(), size=(4, 4), forward="lidar")
    with pytest.raises(ValueError, match=r"points are .* got \(4,\)"):
        project_velodyne(torch.rand(4), a_camera(), size=(4, 4))
    with pytest.raises(ValueError, match="Camera 3 is not in this calibration; it has 2"):
        project_velodyne(torch.rand(2, 4), a_camera(), size=(4, 4), camera=3)
    blind = Calibration(a_camera().projections, np.eye(4), None, {})
    with pytest.raises(ValueError, match="no lidar.*calib_velo_to_cam"):
        project_velodyne(torch.rand(2, 4), blind, size=(4, 4))


def test_no_points_in_view_is_an_empty_map():
    behind = torch.tensor([[-3.0, 0, 0, 1], [math.nan, 0, 0, 1]])
    assert not project_velodyne(behind, a_camera(), size=(4, 4)).any()


def test_calibrations_of_all_parts_agree(tmp_path):
    write_calibration(tmp_path)
    raw = read_calibration(tmp_path)
    rows = {c: " ".join(f"{x!r}" for x in raw.projections[c].ravel().tolist()) for c in range(4)}
    lines = [f"P{c}: {row}" for c, row in rows.items()]
    tr = "0 -1 0 0 0 0 -1 0 1 0 0 -0.27"
    object_set = tmp_path / "000000.txt"
    object_set.write_text(
        "\n".join([*lines, "R0_rect: 1 0 0 0 1 0 0 0 1", f"Tr_velo_to_cam: {tr}"])
    )
    odometry = tmp_path / "calib.txt"
    odometry.write_text("\n".join([*lines, f"Tr: {tr}"]))
    bare = tmp_path / "bare.txt"
    bare.write_text(f"{rows[0]}\n{rows[1]}")
    for path in (object_set, odometry):
        other = read_calibration(path)
        np.testing.assert_allclose(other.velo_to_image(2), raw.velo_to_image(2))
        assert other.baseline(2, 3) == raw.baseline(2, 3) and other.sizes == {}
    assert raw.sizes == dict.fromkeys(range(4), (H, W))
    grey = read_calibration(bare)
    assert grey.baseline(0, 1) == raw.baseline(0, 1) == pytest.approx(0.53715, abs=1e-5)
    assert read_calibration(tmp_path / "calib_cam_to_cam.txt").velo_to_cam is None
    empty = tmp_path / "empty.txt"
    empty.write_text("calib_time: 09-Jan-2012\n")
    with pytest.raises(ValueError, match="holds no projection.*It has calib_time"):
        read_calibration(empty)


def test_velodyne_files(tmp_path):
    path = tmp_path / "a.bin"
    points = torch.rand(5, 4)
    path.write_bytes(points.numpy().astype("<f4").tobytes())
    assert torch.equal(read_velodyne(path), points)
    for size in (79, 0):
        os.truncate(path, size)
        with pytest.raises(ValueError, match=f"a.bin has {size} bytes; .* points of 16 bytes"):
            read_velodyne(path)
    with pytest.raises(FileNotFoundError, match="no velodyne file .*b.bin"):
        read_velodyne(tmp_path / "b.bin")


# ---- real frames ------------------------------------------------------------------------------


def grey(path):
    return torch.from_numpy(np.array(Image.open(path).convert("L"), "f8")) / 255


def test_real_lidar_lands_on_the_same_things_in_both_views(real):
    """A point's two pixels look alike, and less so if its depth were 5 % off either way."""
    folder = real / "kitti" / "stereo_lidar"
    calibration = read_calibration(folder / "calib.txt")
    assert calibration.baseline(2, 3) == pytest.approx(0.5327, abs=1e-4)
    points = read_velodyne(folder / "lidar.bin")
    left, right = grey(folder / "left.png"), grey(folder / "right.png")
    depth = project_velodyne(points, calibration, size=left.shape)[0].double()
    assert 0.03 < (depth > 0).double().mean() < 0.05 and 79 < depth.max() < 80
    rows, columns = ((depth > 0) & (depth < 25)).nonzero().unbind(1)
    at = depth[rows, columns]
    k = calibration.intrinsics(2)

    def difference(scale):
        x = columns - k[0, 0] * calibration.baseline(2, 3) / (at * scale)
        grid = torch.stack([2 * x / (W - 1) - 1, 2 * rows / (H - 1) - 1], -1)
        seen = F.grid_sample(right[None, None], grid[None, None], align_corners=True)[0, 0, 0]
        return (seen - left[rows, columns])[x > 0].abs().mean().item()

    assert difference(1) < 0.93 * min(difference(0.95), difference(1.05))
    other = project_velodyne(points, calibration, size=right.shape, camera=3)[0]
    assert (other > 0).sum().item() == pytest.approx((depth > 0).sum().item(), rel=0.02)
    # The lidar measures from 0.27 m behind the camera.
    along = project_velodyne(points, calibration, size=left.shape, forward="velodyne")[0]
    near = (along - depth)[rows, columns].median().item()
    assert near == pytest.approx(0.27, abs=0.1)


def test_real_improved_ground_truth(real):
    folder = real / "kitti" / "gt_depth"
    about = json.loads((folder / "annotations.json").read_text())["files"]
    for entry in about:
        stem = entry["depth"].rsplit("/", 1)[1].removesuffix(".png")
        depth = read_depth(folder / f"{stem}_depth_x256.png")
        measured = depth[depth > 0]
        assert depth.shape == (1, H, W) and 0.15 < len(measured) / depth.numel() < 0.25
        assert 4 < measured.min() < 6 and 80 < measured.max() < 86
        # The Garg crop leaves out less than a half of it.
        rows, columns = PROTOCOLS["kitti-garg"].crop.inside((0, 0, H, W), (H, W))
        assert (depth[:, rows, columns] > 0).sum() > 0.5 * len(measured)
        # The road lies where the camera's height above it, 1.65 m, says.
        fy, cy = entry["cam_in"][1], entry["cam_in"][3]
        y, x = (depth[0, 300:, 560:680] > 0).nonzero().unbind(1)
        height = (y + 300 - cy) * depth[0, y + 300, x + 560] / fy
        assert height.median().item() == pytest.approx(1.65, abs=0.15)


def test_real_grey_pair(real):
    folder = real / "kitti" / "odometry_gray"
    calibration = read_calibration(folder / "calib.txt")
    assert calibration.baseline(0, 1) == pytest.approx(0.5372, abs=1e-4)
    assert calibration.intrinsics(0)[0, 0] == pytest.approx(707.0912)
    with pytest.raises(ValueError, match="no lidar"):
        calibration.velo_to_image(0)
