"""Disparities saved: the numbers, the images, and what a folder may hold."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mde_utils.disparity import Pictures, coloured, save_disparities
from mde_utils.evaluation import predict


class Bright(nn.Module):
    """Brighter is nearer, and on the left more so than on the right."""

    def forward(self, image):
        tilt = torch.linspace(1, 2, image.shape[-1], device=image.device)
        return tilt / (0.1 + image.mean(1, keepdim=True))


def items(n=5, size=(20, 30), name="streets/val/{}"):
    generator = torch.Generator().manual_seed(0)
    return [
        {"image": torch.rand(3, *size, generator=generator), "name": name.format(i)}
        for i in range(n)
    ]


def save(folder, name, size=(20, 30), mode="RGB", **options):
    pixels = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype="u1")
    Image.fromarray(pixels).convert(mode).save(folder / name, **options)
    return pixels


@pytest.mark.parametrize("post_process", [False, True])
@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_rows_are_one_over_the_metres_in_order(batch_size, post_process, tmp_path):
    model, data = Bright().train(), items()
    path = save_disparities(
        model, data, tmp_path / "out", batch_size=batch_size, post_process=post_process
    )
    assert model.training
    found = np.load(path)
    assert path.name == "disparities.npy" and found.dtype == np.float32
    images = torch.stack([item["image"] for item in data])
    expected = 1 / predict(model, images, post_process=post_process)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    names = [f"streets_val_{i}.png" for i in range(5)]
    assert sorted(os.listdir(tmp_path / "out")) == ["disparities.npy", *names]
    for name, row in zip(names, found, strict=True):
        pixels = np.asarray(Image.open(tmp_path / "out" / name))
        np.testing.assert_array_equal(pixels, np.asarray(coloured(row)))


def test_the_nearest_pixels_do_not_darken_the_rest():
    disparity = np.linspace(1, 2, 100, dtype="f4").reshape(10, 10)
    first = np.asarray(coloured(disparity)).reshape(100, 3)
    disparity[-1, -3:] = 1e3
    second = np.asarray(coloured(disparity)).reshape(100, 3)
    assert np.abs(first[:94].astype(int) - second[:94]).max() < 8
    assert (second[-4:] == second[-1]).all()
    luma = second[:95].astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(luma) > -1).all() and luma[-1] - luma[0] > 200  # brighter is nearer
    assert (np.asarray(coloured(np.ones((3, 4)))) == np.asarray(coloured(np.ones((1, 1))))).all()


def test_a_folder_of_ones_own(tmp_path):
    source = tmp_path / "mine"
    (source / "below").mkdir(parents=True)
    pixels = save(source, "b.png")
    save(source, "a.JPG", size=(40, 60))
    save(source, "c.png", mode="L")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, as a telephone held upright writes it
    save(source, "d.jpeg", size=(60, 40), exif=exif)
    (source / "notes.txt").write_text("not a picture")
    data = Pictures(source)
    assert [data[i]["name"] for i in range(len(data))] == ["a", "b", "c", "d"]
    assert torch.equal(data[1]["image"], torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    assert (data[2]["image"] == data[2]["image"][:1]).all()
    assert data[3]["image"].shape == (3, 40, 60)
    found = np.load(save_disparities(Bright(), source, tmp_path / "out", size=(16, 24)))
    assert found.shape == (4, 16, 24)
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"a", "b", "c", "d"}
    with pytest.raises(ValueError, match="that of b is 20x30, and 40x60 before. Give a size"):
        save_disparities(Bright(), source, tmp_path / "other")
    assert not (tmp_path / "other" / "disparities.npy").exists()


def broken(folder):
    save(folder, "a.png")
    (folder / "b.png").write_bytes(b"no picture")


def cut_off(folder):
    save(folder, "a.png")
    data = (folder / "a.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])


def twins(folder):
    save(folder, "a.png")
    save(folder, "a.jpg")


@pytest.mark.parametrize(
    "fill, error, says",
    [
        (lambda folder: None, FileNotFoundError, "No picture lies in .*mine.*.png, .jpg"),
        (lambda folder: folder.rmdir(), FileNotFoundError, "There is no folder .*mine"),
        (broken, ValueError, "Cannot read .*b.png as a picture.*take it out"),
        (cut_off, ValueError, "Cannot decode .*b.png, it is damaged"),
        (twins, ValueError, "2 pictures would be saved as a.png.*Rename them"),
    ],
)
def test_what_a_folder_may_not_hold(fill, error, says, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    fill(source)
    with pytest.raises(error, match=says):
        save_disparities(Bright(), source, tmp_path / "out", batch_size=1)
    left = [p.name for p in (tmp_path / "out").glob("*")] if (tmp_path / "out").exists() else []
    assert left in ([], ["a.png"])  # nothing half written


class Broken(Bright):
    def forward(self, image):
        return super().forward(image) * float("nan")


@pytest.mark.parametrize(
    "model, data, options, says",
    [
        (Bright(), [], {}, "no pictures: the data set is empty"),
        (Bright(), items(), {"size": (8, 8)}, "size is for a folder"),
        (Bright(), items(2, name="same"), {}, "Two items are called same"),
        (Bright(), items(1) + items(1, size=(8, 8), name="b"), {}, "of b is 8x8, and 20x30 before"),
        (Broken(), items(1), {}, "prediction for streets/val/0 holds NaN"),
        (nn.Flatten(), items(1), {"post_process": False}, r"depth \(b, 1, h, w\).*\(1, 1800\)"),
    ],
)
def test_clear_errors(model, data, options, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        save_disparities(model, data, tmp_path, **options)
    assert not (tmp_path / "disparities.npy").exists()
