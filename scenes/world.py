"""From scenes and cameras to pictures.

A `World` says how scenes are made and with which camera they are seen; `photograph` renders and
develops them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from contextlib import contextmanager
from typing import NamedTuple

import torch

from .drawing import Dice
from .render import render
from .scene import Camera, Scene


class Lens(NamedTuple):
    """The intrinsics of a camera in pixels, at its own size."""

    native: tuple[int, int]  # height, width
    fx: float
    fy: float
    cx: float
    cy: float

    def intrinsics(self, size) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels, of the full view resized to `size` (H, W).

        Pixel centres lie at whole numbers, so a centre c moves to (c + ½) · scale − ½.
        """
        sy, sx = size[0] / self.native[0], size[1] / self.native[1]
        return self.fx * sx, self.fy * sy, (self.cx + 0.5) * sx - 0.5, (self.cy + 0.5) * sy - 0.5

    def matrix(self, size) -> torch.Tensor:
        """`intrinsics` as a (3, 3) float32 matrix."""
        fx, fy, cx, cy = self.intrinsics(size)
        return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


class World(NamedTuple):
    """One kind of scenes.

    Args:
        make: (split, indices, device) → (scene, (position, rotation) of the camera) of every
            index, each a function of (split, index) alone.
        measure: (item, view, split, index, sensor) → the item as its sensors measure it: what
            follows from the exact depth. `view`: all that the renderer gives of the left picture.
        lengths: number of images a split. There is no end of them: `limit` may ask for more.
        fields: what items may have.
        far: metres, beyond anything in a scene and its lights.
        shadows: pixels along a shadow map, of the height of an image.
    """

    name: str
    version: int  # of the pictures: caches are keyed by it
    make: Callable
    lens: Lens
    measure: Callable
    lengths: dict[str, int]
    fields: tuple[str, ...]
    sensors: tuple[str, ...] = ()
    far: float = 16.0
    shadows: Callable[[int], int] = lambda height: 256
    reach: float = 1.0  # of ambient occlusion, see `render`
    contrast: tuple[float, float] = (0.95, 1.25)  # of the camera's picture, from … to
    grey: tuple[float, float] = (0.3, 0.9)  # how far its white balance makes the mean grey

    def scene(self, split, index, size, device="cpu") -> tuple[Scene, Camera]:
        """A scene, to be changed or looked at from elsewhere, and its camera for pictures of
        `size` (H, W)."""
        ((scene, (position, rotation)),) = self.make(split, [index], device)
        return scene, Camera(position, rotation, self.lens.intrinsics(size))

    def render(self, scenes, cameras, size, device="cpu"):
        """`render` with what suits this world."""
        options = {"far": self.far, "shadow_size": self.shadows(size[0]), "reach": self.reach}
        return render(scenes, cameras, size, device=device, **options)

    def look(self, scene, camera, size, device="cpu") -> dict[str, torch.Tensor]:
        """What one camera sees of a scene: linear `image` (3, H, W), `depth`, `label` (H, W), …"""
        found = self.render([scene], [[camera]], size, device)
        return {name: values[0, 0] for name, values in found.items()}


_NOISE = 1 << 20


@functools.lru_cache(maxsize=2)
def _noise_table(device):
    with torch.inference_mode(False):
        return torch.randn(_NOISE, generator=torch.Generator().manual_seed(7)).to(device)


def noise(dice, shape, device):
    """Standard normal noise, the same on every device."""
    n = math.prod(shape)
    table = _noise_table(str(device))
    at = dice.int(0, _NOISE - 1)
    while at + n > len(table):
        table = torch.cat([table, table.flip(0)])
    return table[at : at + n].reshape(shape)


def _develop(linear, dice, clean, contrast, grey):
    """Linear RGB (n, 3, H, W), the views of one scene → sRGB-like [0, 1] as a cheap camera gives:
    exposure and white balance (of the first view, for all), vignetting, softness, noise.
    `clean` leaves out the last three, which belong to the camera and not to the scene."""
    d = dice
    luma = linear[0].mean(0)
    # Exposed for the middle of the tones, in part (the camera's programme is not perfect).
    gain = 0.34 * 2 ** d(-0.6, 0.55) / luma.clamp(min=1e-3).log().mean().exp()
    warm, green = d(-0.09, 0.09), d(-0.03, 0.03)
    balance = torch.tensor([1 + warm, 1 + green, 1 - warm], device=linear.device)
    neutral = linear[0].mean((1, 2))
    auto = (neutral.mean() / neutral.clamp(min=1e-4)) ** d(*grey)
    contrast = d(*contrast)
    x = linear * (gain * balance * auto)[:, None, None]
    x = 1 - torch.exp(x.clamp_(min=0) * -1.15)
    x = x.clamp_(min=1e-5) ** (contrast / 2.2)
    if clean:
        return x
    soft, strength = d(0.05, 0.35), d(0.0, 0.12)
    sigma, chroma = d(0.003, 0.016), d(0.3, 0.8)
    h, w = x.shape[-2:]
    pad = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    row = pad[..., :, :-2] + pad[..., :, 2:] + 2 * pad[..., :, 1:-1]
    blur = (row[..., :-2, :] + row[..., 2:, :] + 2 * row[..., 1:-1, :]) / 16
    x = torch.lerp(x, blur, soft)
    u = torch.linspace(-1, 1, w, device=x.device)
    v = torch.linspace(-1, 1, h, device=x.device)
    x = x * (1 - strength * (u[None] ** 2 + v[:, None] ** 2))
    grain = noise(d, x.shape, x.device)
    dim = grain.mean(1, keepdim=True) * 1.7
    return (x + torch.lerp(dim, grain, chroma) * (sigma * (1.4 - 0.9 * x))).clamp_(0, 1)


@contextmanager
def one_thread():
    """Operations here are short: sharing each among threads costs more than it saves, and on a
    busy machine twenty times as much."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)


def photograph(
    world, split, indices, size, baseline=None, sensor=None, device="cpu", clean=False, made=None
) -> list[dict]:
    """Items (fields alone) of `indices`; see `render_scene` for the arguments. `made`: what
    `world.make` gave for them, where somebody else has made it."""
    made = made or world.make(split, indices, device)
    k = world.lens.intrinsics(size)
    cameras = []
    for _, (position, rotation) in made:
        cameras.append([Camera(position, rotation, k)])
        if baseline is not None:
            cameras[-1].append(cameras[-1][0].moved(right=baseline))
    out = world.render([scene for scene, _ in made], cameras, size, device)
    items = []
    for i, index in enumerate(indices):
        dice = Dice("photograph", split, index)
        image = _develop(out["image"][i], dice, clean, world.contrast, world.grey)
        view = {name: values[i, 0] for name, values in out.items()}
        item = {
            "image": image[0],
            "depth": out["depth"][i, :1],
            "normal": view["normal"],
            "label": view["label"],
        }
        if baseline is not None:
            item["right"] = image[1]
        items.append(world.measure(item, view, split, index, sensor))
    return items


def render_scene(
    world, split, index, *, size, baseline=None, sensor=None, device="cpu", clean=False
) -> dict:
    """Item `index` of a split with its `intrinsics`: the same scene and camera at every size, on
    every device. `clean` leaves out what a camera adds to the picture (vignetting, softness,
    noise), so that both views show the same colours.
    """
    with one_thread():
        item = photograph(world, split, [index], size, baseline, sensor, device, clean)[0]
    return item | {"intrinsics": world.lens.matrix(size).to(item["depth"].device)}
