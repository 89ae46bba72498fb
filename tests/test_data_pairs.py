"""Stereo pairs from disk: the layouts people have, and what is wrong with a folder."""

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from mde_utils.data.pairs import stereo_pairs

H, W, FOCAL, BASELINE = 40, 120, 100.0, 0.5
RNG = np.random.default_rng(0)
WIDE = RNG.integers(0, 255, (H, W + 60, 3), dtype="u1")
K = f"{FOCAL} 0 60 {{}} 0 {FOCAL} 20 0 0 0 1 0"
ROWS = f"{K.format(0)}\n{K.format(-FOCAL * BASELINE)}"


def save(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def pair(folder, one, other, shift=10):
    """A wall `shift` pixels of disparity away."""
    save(folder / one, WIDE[:, :W])
    save(folder / other, np.ascontiguousarray(WIDE[:, shift : W + shift]))


def odometry(folder, names=("image_l", "image_r"), count=3):
    for i in range(count):
        pair(folder, f"{names[0]}/{i:06}.png", f"{names[1]}/{i:06}.png")
    (folder / "calib.txt").write_text(ROWS)
    return folder


@pytest.mark.parametrize("names", [("image_l", "image_r"), ("image_0", "image_1")])
def test_odometry(tmp_path, names):
    items = stereo_pairs(odometry(tmp_path, names))
    assert [item["name"] for item in items] == [f"{names[0]}/{i:06}" for i in range(3)]
    item = items[0]
    assert "depth" not in item
    assert item["image"].shape == item["right"].shape == (3, H, W)
    assert torch.equal(item["image"], torch.from_numpy(WIDE[:, :W]).permute(2, 0, 1) / 255)
    assert item["baseline"] == pytest.approx(BASELINE) and item["focal"] == FOCAL
    assert len(stereo_pairs(tmp_path, limit=2)) == 2


def test_a_smaller_size_takes_the_calibration_with_it(tmp_path):
    item = stereo_pairs(odometry(tmp_path), size=(20, 40))[0]
    assert item["image"].shape == (3, 20, 40)
    expected = torch.tensor(
        [[FOCAL / 3, 0, 60.5 / 3 - 0.5], [0, FOCAL / 2, 20.5 / 2 - 0.5], [0, 0, 1]]
    )
    torch.testing.assert_close(item["intrinsics"], expected)
    assert item["focal"] == pytest.approx(FOCAL / 3) and item["baseline"] == pytest.approx(BASELINE)


def test_kitti_2015_with_and_without_folders(tmp_path):
    disparity = np.full((H, W), 10 * 256, "u2")
    disparity[:, :5] = 0
    for flat in (False, True):
        root, sep = tmp_path / str(flat), "_" if flat else "/"
        pair(root, f"image_2{sep}000046_10.png", f"image_3{sep}000046_10.png")
        save(root / f"disp_occ_0{sep}000046_10.png", disparity)
        (item,) = stereo_pairs(root, focal=FOCAL, baseline=BASELINE)
        assert (item["depth"][..., :5] == 0).all()
        torch.testing.assert_close(item["depth"][..., 5:], torch.full((1, H, W - 5), 5.0))
        hint = toys.depth_hint(item["image"], item["right"], focal=FOCAL, baseline=BASELINE)
        assert (hint[hint > 0] - 5).abs().median() < 0.05


def middlebury(folder, doffs=0.0, order="<"):
    pair(folder, "im0.png", "im1.png")
    k = f"[{FOCAL} 0 60; 0 {FOCAL} 20; 0 0 1]"
    (folder / "calib.txt").write_text(
        f"cam0={k}\ncam1={k}\ndoffs={doffs}\nbaseline=500\nwidth={W}\n"
    )
    values = np.full((H, W), 10 - doffs, order + "f4")
    values[0, 0] = np.inf
    head = f"Pf\n{W} {H}\n{'-' if order == '<' else ''}0.5\n".encode()  # the scale means nothing
    (folder / "disp0GT.pfm").write_bytes(head + values[::-1].tobytes())
    return folder


@pytest.mark.parametrize("doffs", [0.0, 4.0])
@pytest.mark.parametrize("order", ["<", ">"])
def test_middlebury(tmp_path, doffs, order):
    """Where the principal points differ, the right picture is moved: then disparity is depth's."""
    (item,) = stereo_pairs(middlebury(tmp_path, doffs, order), size=(20, 60))
    assert item["depth"].shape == (1, H, W) and item["depth"][0, 0, 0] == 0
    expected = torch.full((H * W - 1,), FOCAL * BASELINE / 10)
    torch.testing.assert_close(item["depth"].flatten()[1:], expected)
    (item,) = stereo_pairs(tmp_path)
    shift = 10 + int(doffs)
    same = item["image"][..., shift:] == item["right"][..., : W - shift]
    assert same.all() if doffs else same.float().mean() > 0.99


def test_one_calibrated_pair_with_lidar(tmp_path):
    pair(tmp_path, "left.png", "right.png")
    p2, p3 = ROWS.splitlines()
    turn = "0 -1 0 0 0 0 -1 0 1 0 0 0"  # the lidar's axes: forward, left, up
    (tmp_path / "calib.txt").write_text(
        f"P2: {p2}\nP3: {p3}\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam: {turn}\n"
    )
    points = np.array([[8, 0, 0, 1], [90, 1, 0, 1], [-5, 0, 0, 1]], "f4")
    points.tofile(tmp_path / "lidar.bin")
    (item,) = stereo_pairs(tmp_path)
    assert item["depth"][item["depth"] > 0].tolist() == [8.0]


# ------------------------------------------------------------------ what is wrong


def test_bad_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        stereo_pairs(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="image_2 and image_3.*im0 and im1"):
        stereo_pairs(tmp_path)
    odometry(tmp_path)
    (tmp_path / "image_r" / "000001.png").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 3 pairs lack their right.*image_r.000001"):
        stereo_pairs(tmp_path)


def test_no_calibration(tmp_path):
    odometry(tmp_path)
    (tmp_path / "calib.txt").unlink()
    for camera in ({}, {"focal": 100.0}, {"focal": 100.0, "baseline": 0.0}):
        with pytest.raises(FileNotFoundError, match=r"no calib.txt.*721.5 and 0.533"):
            stereo_pairs(tmp_path, **camera)
    (tmp_path / "calib.txt").write_text("cam0=[1 0 0; 0 1 0; 0 0 1]\nbaseline=5\n")
    with pytest.raises(ValueError, match="no calibration of Middlebury's: KeyError.'doffs'"):
        stereo_pairs(tmp_path)


def test_pictures_that_do_not_belong_together(tmp_path):
    odometry(tmp_path, count=1)
    save(tmp_path / "image_r/000000.png", WIDE[:, : W - 1])
    with pytest.raises(ValueError, match="has 120x40 pixels, .*119x40"):
        stereo_pairs(tmp_path)


@pytest.mark.parametrize(
    "written, message",
    [
        (b"PF\n120 40\n-1\n" + bytes(4 * H * W), "first line is b'PF'"),
        (b"Pf\n120 40\n-1\n" + bytes(99), "as a PFM"),
        (b"Pf\n", "as a PFM"),
        (b"Pf\n60 40\n-1\n" + bytes(2 * H * W), "disparity has 60x40 pixels"),
    ],
)
def test_a_damaged_disparity(tmp_path, written, message):
    (middlebury(tmp_path) / "disp0GT.pfm").write_bytes(written)
    with pytest.raises(ValueError, match=message):
        stereo_pairs(tmp_path)


# ------------------------------------------------------------------ real pairs


@pytest.mark.parametrize(
    "name, camera, share, within",
    [
        ("kitti/stereo_lidar", {}, (0.03, 0.05), 0.55),
        ("kitti/scene_flow_2015", {"focal": 721.54, "baseline": 0.533}, (0.1, 0.15), 0.65),
        ("stereo/motorcycle", {}, (0.95, 1), 0.8),
    ],
)
def test_real_pairs(real, name, camera, share, within):
    """Hints by matching agree with the depth that was read, within 5 %."""
    (item,) = stereo_pairs(real / name, **camera)
    assert share[0] < (item["depth"] > 0).float().mean() < share[1]
    options = {"focal": float(item["focal"]), "baseline": float(item["baseline"])}
    hint = toys.depth_hint(item["image"], item["right"], **options)
    both = (hint > 0) & (item["depth"] > 0)
    assert ((hint / item["depth"] - 1).abs() < 0.05)[both].float().mean() > within


def test_real_grey_pairs(real):
    items = stereo_pairs(real / "kitti" / "odometry_gray", size=(64, 208))
    assert len(items) == 51 and torch.equal(*items[0]["image"][:2])
    assert items[0]["baseline"] == pytest.approx(0.5372, abs=1e-4)


def test_kitti_2015_has_the_truth_of_every_other_picture(tmp_path):
    for n in ("10", "11"):
        pair(tmp_path, f"image_2/000046_{n}.png", f"image_3/000046_{n}.png")
    save(tmp_path / "disp_occ_0/000046_10.png", np.full((H, W), 10 * 256, "u2"))
    items = stereo_pairs(tmp_path, focal=FOCAL, baseline=BASELINE)
    assert [item["name"] for item in items] == ["image_2/000046_10"] and "depth" in items[0]


def test_pictures_of_16_bits(tmp_path):
    grey = RNG.integers(0, 2**16, (H, W), dtype="u2")
    for side in ("image_l", "image_r"):
        save(tmp_path / side / "0.png", grey)
    (tmp_path / "calib.txt").write_text(ROWS)
    (item,) = stereo_pairs(tmp_path)
    expected = torch.from_numpy(grey / 65535).float().expand(3, -1, -1)
    torch.testing.assert_close(item["image"], expected, atol=1 / 255, rtol=0)
