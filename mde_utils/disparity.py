"""Disparities of many pictures, saved: numbers and images to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from .activations import evaluating
from .data.loading import batches
from .data.reading import as_rgb, check_options, open_picture, resize_image
from .environment import progress
from .evaluation import MIN_DEPTH, predict
from .files import atomic

COLOURS = "magma"
BRIGHTEST = 0.95  # of the pixels' disparities: the nearest few do not darken the rest


class Pictures:
    """The pictures of a folder as items, `image` and `name`: what Pillow reads as PNG, JPEG, WebP,
    BMP or TIFF; others are passed over. Turned as the camera says and made RGB (see `as_rgb`).

    Args:
        folder: not those below it.
        size: (H, W) to resize to, bilinear and antialiased; None = as they are.

    Raises:
        FileNotFoundError: no such folder, or no picture in it.
        ValueError: a file that is no picture in spite of its name, or damaged.
    """

    endings = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

    def __init__(self, folder: str | Path, *, size: tuple[int, int] | None = None):
        folder = Path(folder).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(f"There is no folder {folder}.")
        self.size = check_options(None, size)
        self.paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in self.endings)
        if not self.paths:
            raise FileNotFoundError(
                f"No picture lies in {folder}: it needs files that end in "
                f"{', '.join(self.endings)}. Folders below it are not looked into."
            )
        for path in self.paths:  # the headers alone, before any work
            open_picture(path, path).close()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict:
        path = self.paths[index]
        with open_picture(path, path) as image:
            image = as_rgb(image, path)
        pixels = resize_image(image, self.size or (image.height, image.width))
        return {"image": torch.from_numpy(pixels.astype("f4")) / 255, "name": path.stem}


def save_disparities(
    model: nn.Module,
    pictures,
    folder: str | Path,
    *,
    size: tuple[int, int] | None = None,
    batch_size: int = 8,
    post_process: bool = True,
    device: torch.device | str | None = None,
) -> Path:
    """Write `disparities.npy`, (N, H, W) float32 in 1/metres, and a coloured PNG of each.

    Depth in metres is one over the numbers. In the images dark is far, and the brightest of the
    colours stands for the 95th percentile of the image's disparities and all above it. They are
    named as the pictures are, a "/" being "_". `disparities.npy` appears when it is whole, its rows
    in the order of the pictures; an image as soon as its batch is done.

    Args:
        model: maps images to metres.
        pictures: a folder of your own (see `Pictures`), or a data set: items with `image`, perhaps
            `name`, and what the model's `input_names` list.
        folder: made where it is not there.
        size: (H, W) of the network's input and the disparities, for a folder; 192x640 say. None:
            as the pictures are.
        post_process: see `predict`.
        device: where to run; by default where the model is.

    Returns:
        the path of `disparities.npy`.

    Raises:
        FileNotFoundError, ValueError: as `Pictures`; no items, names that are not unique, pictures
            of different size, a prediction that is not finite or not (b, 1, h, w).
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    if isinstance(pictures, (str, Path)):
        pictures = Pictures(pictures, size=size)
        names = [path.stem for path in pictures.paths]
    elif size is not None:
        raise ValueError("size is for a folder of pictures; load the data set with it instead.")
    else:
        names = None
    if len(pictures) == 0:
        raise ValueError("There are no pictures: the data set is empty.")
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(
                f"{times} pictures would be saved as {name}.png, for their names differ by the "
                "ending alone. Rename them."
            )
    if device is not None:
        model.to(device)
    target, stored, done = folder / "disparities.npy", None, set()
    with atomic(target) as temporary, evaluating(model), progress(total=len(pictures)) as bar:
        for names, disparities in _predicted(model, pictures, batch_size, post_process):
            if stored is None:
                shape = (len(pictures), *disparities.shape[1:])
                stored = np.lib.format.open_memmap(temporary, "w+", "f4", shape)
            if disparities.shape[1:] != stored.shape[1:]:
                sizes = ["{}x{}".format(*x.shape[1:]) for x in (stored, disparities)]
                raise ValueError(
                    f"Disparities of one file are of one size, but that of {names[0]} is "
                    f"{sizes[1]}, and {sizes[0]} before. Give a size, (H, W), to bring a folder's "
                    "pictures to, (192, 640) say."
                )
            for name, disparity in zip(names, disparities, strict=True):
                name = name.replace("/", "_")
                if name in done:
                    raise ValueError(f"Two items are called {name}: no image would be left of one.")
                stored[len(done)] = disparity
                done.add(name)
                with atomic(folder / f"{name}.png") as image:
                    coloured(disparity).save(image)
                bar.update()
        stored.flush()
    return target


def _predicted(
    model: nn.Module, pictures, batch_size: int, post_process: bool
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Names and disparities (b, h, w), a batch at a time."""
    inputs = tuple(getattr(model, "input_names", ()))
    parameter = next(model.parameters(), torch.empty(0))
    fields = ("image", *inputs)
    for names, batch in batches(pictures, range(len(pictures)), batch_size, fields):
        batch = {key: value.to(parameter.device) for key, value in batch.items()}
        depth = predict(model, batch.pop("image"), post_process=post_process, **batch)
        if not isinstance(depth, Tensor) or depth.ndim != 4 or depth.shape[1] != 1:
            given = tuple(depth.shape) if isinstance(depth, Tensor) else type(depth).__name__
            raise ValueError(f"The model must return depth (b, 1, h, w) in metres, got {given}.")
        if not bool(depth.isfinite().all()):
            raise ValueError(f"The prediction for {', '.join(names)} holds NaN or infinity.")
        yield names, (1 / depth[:, 0].float().clamp(min=MIN_DEPTH)).cpu().numpy()


def coloured(disparity: np.ndarray) -> Image.Image:
    """(h, w), any unit, as `save_disparities` draws it: magma from the smallest disparity to the
    95th percentile."""
    low, high = float(disparity.min()), float(np.quantile(disparity, BRIGHTEST))
    scaled = (disparity - low) / max(high - low, np.finfo("f4").tiny)
    return Image.fromarray(matplotlib.colormaps[COLOURS](scaled, bytes=True)[..., :3])
