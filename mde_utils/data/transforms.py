"""Augmentations: functions of an item that change image, depth and camera together.

All draw from torch's generator, so seeds and the DataLoader's workers govern them, and give back a
new item: image in [0, 1], depth in metres with 0 (no measurement) still 0. Images are resampled
bilinearly and antialiased, everything that must not be mixed (depth, normals, labels) from the
nearest pixel centre. That choice is written out at each call instead of left to the type of the
tensor, because torchvision's default for masks is off by up to half a pixel.

An image-plane map T (3, 3) goes with a map M (3, 3) of the camera frame: `intrinsics` become
T K M⁻¹ and `normal` becomes M n, so that what a pixel sees stays the same point, seen by the new
camera. z-depth is untouched by every M used here. `frame`, where in the full frame the item lies,
moves along; a rotated item has none.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tvf

from ..checks import unknown
from .cameras import window_map

_SMOOTH = ("image", "right")
_NEAREST = ("depth", "hint", "sparse_depth", "normal", "label")

# Eigenvalues and eigenvectors (columns) of ImageNet's colour covariance, RGB in [0, 1]
# (Krizhevsky et al., NeurIPS 2012, section 4.1; digits as in fb.resnet.torch).
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = torch.tensor(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
)


def meter_augment(
    item: dict,
    *,
    mirror: float = 0.5,
    channels: float = 0.5,
    crop: float = 0.5,
    shift: float = 0.5,
    smallest: float = 0.8,
) -> dict:
    """METER's recipe (Papa et al., TCSVT 2023; released `augmentation.py`), mended.

    mirror, channels, crop, shift: probability of each step.
    smallest: side of the smallest crop as a part of the image's side.

    1. Mirror left-right. (The original's second, vertical flip does nothing: its step is +1.)
    2. A permutation of the channels, all six equally likely. The original's 27 index triples may
       take a channel twice and lose another.
    3. A random window of the image's shape, anywhere in it, resized back. The original cuts
       192x256 of a larger image, 0.4 of NYU's sides, with the limits of width and height swapped
       and at most half the slack. Images here are stored small and depth stays in metres while
       objects grow, hence the gentler `smallest`.
    4. Shifting strategy: gamma, brightness and a gain per channel, each U(.9, 1.1), and depth
       moved by a whole number of centimetres in -10 … 10. Gamma acts on [0, 1] (on the original's
       0-255 it halves or saturates the image), and depth that is no measurement is not moved;
       none falls below 1 cm.
    """
    item = _check(item, "meter")
    h, w = item["image"].shape[-2:]
    if _happens(mirror):
        item = _mirror(item)
    if _happens(channels):
        item["image"] = item["image"][torch.randperm(3)]
    if _happens(crop):
        side = smallest + (1 - smallest) * torch.rand(()).item()
        ch, cw = max(1, round(h * side)), max(1, round(w * side))
        top, left = _integer(0, h - ch), _integer(0, w - cw)
        item = _window(item, top, left, ch, cw, size=(h, w))
    if _happens(shift):
        item["image"] = _relight(item["image"])
        metres = _integer(-10, 10) / 100
        for name in {"depth", "sparse_depth"} & item.keys():
            depth = item[name]
            item[name] = torch.where(depth > 0, (depth + metres).clamp_min(0.01), depth)
    return item


def mff_augment(item: dict) -> dict:
    """The recipe of MFF (Hu et al., WACV 2019, section 4).

    Mirror by chance, rotate by U(-5, 5) degrees, keep the centre of 95 % of the sides (240x320 →
    228x304, not resized), noise of deviation 0.1 along ImageNet's colour axes, and brightness,
    contrast and saturation by U(.6, 1.4) in random order.

    Rotation is bilinear for the image and nearest for depth; the corners that it fills are black
    and have depth 0, no measurement. (The original interpolates depth by splines, which mixes
    the two sides of an edge and rings.)
    """
    item = _check(item, "mff")
    if _happens(0.5):
        item = _mirror(item)
    item = _centre(_rotate(item, _angle(5.0)))
    colour = _EIGENVECTORS @ (torch.randn(3) * 0.1 * _EIGENVALUES)
    item["image"] = _jitter((item["image"] + colour.view(3, 1, 1)).clamp(0, 1))
    return item


def mff_crop(item: dict) -> dict:
    """The centre of the image, 95 % of the sides in whole pixels: what MFF is tested on, and so no
    augmentation but a view."""
    item = _check(item, "mff_crop")
    h, w = item["image"].shape[-2:]
    item.setdefault("frame", torch.tensor([0.0, 0.0, h, w]))  # protocols may crop the full frame
    return _centre(item)


def _centre(item: dict) -> dict:
    h, w = item["image"].shape[-2:]
    ch, cw = max(1, round(h * 0.95)), max(1, round(w * 0.95))
    return _window(item, (h - ch) // 2, (w - cw) // 2, ch, cw)


def bts_augment(item: dict) -> dict:
    """BTS's recipe for NYU (Lee et al., arXiv 1907.10326, section 4.1, with released constants).

    Without the border, rotate by U(-2.5, 2.5) degrees, crop at random; mirror by chance; and by
    chance relight: gamma and a gain per channel, each U(.9, 1.1), and brightness by U(.75, 1.25).
    Rotation is bilinear for the image, nearest for depth, 0 (no measurement) in the corners that
    it fills.

    Of 480x640, rows 45:472 and columns 43:608 are kept, and of these a random 416x544. Of images
    of another size the same parts, the crop rounded down to multiples of 32, which BTS takes.
    """
    item = _check(item, "bts")
    h, w = item["image"].shape[-2:]
    top, left, bottom, right = (round(n * s / of) for n, s, of in zip(
        (45, 43, 472, 608), (h, w, h, w), (480, 640, 480, 640), strict=True
    ))  # fmt: skip
    crop = _multiples_of_32("bts", h, w, crop=(416, 544), of=(480, 640))
    item = _window(item, top, left, bottom - top, right - left)
    return _bts(item, crop, degrees=2.5, brightness=0.25)


def bts_kitti_augment(item: dict) -> dict:
    """BTS's recipe for KITTI: as `bts_augment`, but turned by U(-1, 1) degrees, brightness by
    U(.9, 1.1), without a border, and a random 352x704 of the benchmark's window of 352x1216 (at
    other sizes in proportion, as there)."""
    item = _check(item, "bts_kitti")
    h, w = item["image"].shape[-2:]
    crop = _multiples_of_32("bts_kitti", h, w, crop=(352, 704), of=(352, 1216))
    return _bts(item, crop, degrees=1.0, brightness=0.1)


def _bts(item: dict, crop: tuple[int, int], *, degrees: float, brightness: float) -> dict:
    item = _rotate(item, _angle(degrees))
    h, w = item["image"].shape[-2:]
    item = _window(item, _integer(0, h - crop[0]), _integer(0, w - crop[1]), *crop)
    if _happens(0.5):
        item = _mirror(item)
    if _happens(0.5):
        item["image"] = _relight(item["image"], brightness=brightness)
    return item


def _multiples_of_32(name: str, h: int, w: int, *, crop, of) -> tuple[int, int]:
    """The part `crop` / `of` of h x w, rounded down to multiples of 32."""
    sides = tuple(side * c // o // 32 * 32 for side, c, o in zip((h, w), crop, of, strict=True))
    if not min(sides):
        least = "x".join(str(-(-32 * o // c)) for c, o in zip(crop, of, strict=True))
        raise ValueError(
            f"Augmentation {name!r} crops images to multiples of 32, and of {h}x{w} no 32x32 "
            f"would be left. Give images of at least {least}."
        )
    return sides


def cspn_augment(
    item: dict,
    *,
    mirror: float = 0.5,
    degrees: float = 5.0,
    zoom: float = 1.5,
    jitter: float = 0.4,
) -> dict:
    """CSPN's recipe (Cheng et al., ECCV 2018): enlarge, rotate, crop the centre, mirror, colour.

    mirror: probability. degrees: rotation by U(-degrees, degrees), always drawn.
    zoom: the scale s is U(1, zoom), and depth is divided by it: what is s times as large is taken
        to be s times as near. Intrinsics follow the pixels, so that points in space shrink by s.
    jitter: brightness, contrast and saturation by U(1 - jitter, 1 + jitter), in random order.

    The image keeps its size: of it the centre, 1 / s of the sides, is shown. (The original resizes
    to 240 s and crops 228x304.) Resampling is that of all augmentations here; the original's is
    bilinear for depth too, so that holes bleed into what surrounds them. Sparse samples belong on
    top of this, as `SparseSamples` draws them.
    """
    item = _check(item, "cspn")
    h, w = item["image"].shape[-2:]
    item = _rotate(item, _angle(degrees))
    s = 1 + (zoom - 1) * torch.rand(()).item()
    ch, cw = max(1, round(h / s)), max(1, round(w / s))
    item = _window(item, (h - ch) // 2, (w - cw) // 2, ch, cw, size=(h, w))
    for name in {"depth", "sparse_depth"} & item.keys():
        item[name] = item[name] / math.sqrt(h * w / (ch * cw))  # s in whole pixels
    if _happens(mirror):
        item = _mirror(item)
    item["image"] = _jitter(item["image"], jitter)
    return item


def epc_augment(item: dict, *, mirror: float = 0.5, colour: float = 0.5) -> dict:
    """EPCDepth's recipe (Peng et al., ICCV 2021): mirror, colour; of pairs, and of images alone.

    mirror, colour: probabilities.

    1. Mirror left-right. Each picture stays in its place: `image` is still the one whose depth and
       hint the item has. In a mirror, though, the other camera stands on the other side, so
       `baseline` changes its sign, and the principal point its side.
    2. Brightness, contrast and saturation by U(.8, 1.2), hue by U(-.1, .1) of a turn, in random
       order, alike in both pictures.
    """
    item = dict(item)
    if _happens(mirror):
        item = _mirror(item)
        if "baseline" in item:
            item["baseline"] = -item["baseline"]
    if _happens(colour):
        names = [name for name in ("image", "right") if name in item]
        # As one picture, for contrast is about its mean.
        joined = torch.cat([item[name] for name in names], dim=-1)
        joined = v2.ColorJitter(0.2, 0.2, 0.2, 0.1)(joined).clamp(0, 1)
        item.update(zip(names, joined.chunk(len(names), dim=-1), strict=True))
    return item


def network_input(item: dict, *, size: tuple[int, int]) -> dict:
    """The image alone resized, for a network that is evaluated at the ground truth's size; with
    `functools.partial` a view of a data set as any augmentation."""
    image = tvf.resize(
        item["image"], list(size), interpolation=InterpolationMode.BILINEAR, antialias=True
    )
    return item | {"image": image}


def epc_nyu(item: dict) -> dict:
    """What EPCDepth is tested on: rows 44-470 and columns 40-600 of NYU's 480x640 (at other sizes
    in proportion), the image resized to 288x384; `frame` says where they lie."""
    item = _check(item, "epc_nyu")
    h, w = item["depth"].shape[-2:]
    item.setdefault("frame", torch.tensor([0.0, 0.0, h, w]))
    top, bottom, left, right = 44 * h // 480, 471 * h // 480, 40 * w // 640, 601 * w // 640
    return network_input(_window(item, top, left, bottom - top, right - left), size=(288, 384))


def sparse_samples(
    depth: torch.Tensor, num_samples: int, *, generator: torch.Generator | None = None
) -> torch.Tensor:
    """About `num_samples` pixels of a depth map, 0 elsewhere (CSPN, ECCV 2018).

    Each pixel is kept with the probability num_samples / (H W), whether it has a depth or not. So
    their number varies, and holes (0, negative, not finite) stay 0: where a part of the map has no
    depth, that part of the samples is missing.

    depth: (…, H, W) in metres. generator: None is torch's own.
    """
    h, w = depth.shape[-2:]
    if not 0 <= num_samples <= h * w:
        raise ValueError(f"{num_samples} samples of {h}x{w} = {h * w} pixels: give 0 to {h * w}.")
    kept = torch.rand(depth.shape, generator=generator) * (h * w) < num_samples
    return torch.where(kept.to(depth.device) & (depth > 0) & depth.isfinite(), depth, 0.0)


AUGMENTATIONS: dict[str, Callable[[dict], dict]] = {
    "meter": meter_augment,
    "mff": mff_augment,
    "mff_crop": mff_crop,
    "bts": bts_augment,
    "bts_kitti": bts_kitti_augment,
    "cspn": cspn_augment,
    "epc": epc_augment,
    "epc_nyu": epc_nyu,
}
#: Those that know what a second picture means.
OF_PAIRS = ("epc",)


def resolve_augmentation(augment: str | Callable | None) -> Callable[[dict], dict] | None:
    """None and callables as they are, a name from AUGMENTATIONS; options by `functools.partial`."""
    if augment is None or callable(augment):
        return augment
    if not isinstance(augment, str):
        raise TypeError(
            f"augment is a name ({', '.join(AUGMENTATIONS)}), a function item → item or None, "
            f"not {type(augment).__name__}"
        )
    if augment not in AUGMENTATIONS:
        raise ValueError(unknown("augmentation", augment, AUGMENTATIONS))
    return AUGMENTATIONS[augment]


def _check(item: dict, name: str) -> dict:
    """A shallow copy of the item. One view of a stereo pair cannot be mirrored or rotated alone:
    the mirrored left view is a right one, and depth belongs to the left."""
    if "right" in item:
        raise ValueError(
            f"Augmentation {name!r} mirrors and crops one view, this item has a right view too. "
            "Load the data set without it (rooms: baseline=None), or pass a function of your own."
        )
    item = dict(item)
    item.pop("baseline", None)  # of no use without that view, and its sign and scale would change
    return item


def _happens(probability: float) -> bool:
    return torch.rand(()).item() < probability


def _integer(low: int, high: int) -> int:
    """Uniform in low … high, both included."""
    return int(torch.randint(low, high + 1, ()))


def _angle(degrees: float) -> float:
    """Uniform within so many degrees to either side."""
    return (2 * torch.rand(()).item() - 1) * degrees


def _jitter(image: torch.Tensor, amount: float = 0.4) -> torch.Tensor:
    """Brightness, contrast and saturation by U(1 ± amount), in random order."""
    return v2.ColorJitter(amount, amount, amount)(image).clamp(0, 1)


def _relight(image: torch.Tensor, *, brightness: float = 0.1) -> torch.Tensor:
    """Gamma and a gain per channel, each U(.9, 1.1), and brightness by U(1 ± brightness)."""
    draw = torch.rand(5)
    gamma, _, *gains = (0.9 + 0.2 * draw).tolist()
    gain = ((1 - brightness) + 2 * brightness * draw[1]).item()
    return (image.pow(gamma) * (gain * torch.tensor(gains).view(3, 1, 1))).clamp(0, 1)


def _apply(item: dict, function: Callable, t: torch.Tensor, m: torch.Tensor | None = None) -> dict:
    """`function(tensor (C, H, W), interpolation)` on every map, T and M on camera and normals."""
    out = dict(item)
    for name in (*_SMOOTH, *_NEAREST):
        if name in item:
            value = item[name]
            smooth = name in _SMOOTH
            mode = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST_EXACT
            out[name] = function(value, mode) if value.ndim == 3 else function(value[None], mode)[0]
    m = torch.eye(3, dtype=torch.float64) if m is None else m
    if "normal" in out:
        out["normal"] = torch.einsum("ij,jhw->ihw", m.to(out["normal"]), out["normal"])
    if "intrinsics" in out:
        k = out["intrinsics"]
        out["intrinsics"] = (t @ k.double() @ torch.linalg.inv(m)).to(k.dtype)
    if "focal" in out:
        out["focal"] = out["focal"] * t[:2, :2].det().abs().sqrt().item()
    if "frame" in out:
        top, left, height, width = out["frame"].tolist()
        # The full frame's corners; pixels end half a pixel from their centres.
        corners = [[-left, width - left], [-top, height - top]]
        corners = torch.tensor(corners, dtype=torch.float64) - 0.5
        if t[0, 1] or t[1, 0]:
            del out["frame"]  # turned, it is no rectangle any more
        else:
            corners = (t[:2, :2] @ corners + t[:2, 2:] + 0.5).sort(1).values
            (left, right), (top, bottom) = corners.tolist()
            frame = [-top, -left, bottom - top, right - left]
            out["frame"] = torch.tensor(frame, dtype=out["frame"].dtype)
    return out


def _mirror(item: dict) -> dict:
    t = torch.eye(3, dtype=torch.float64)
    t[0, 0], t[0, 2] = -1, item["image"].shape[-1] - 1
    m = torch.diag(torch.tensor([-1, 1, 1], dtype=torch.float64))
    return _apply(item, lambda x, _: tvf.horizontal_flip(x), t, m)


def _window(item: dict, top: int, left: int, h: int, w: int, size=None) -> dict:
    """The window (h, w) at (top, left), resized to `size` where that is given."""
    size = (h, w) if size is None else size

    def cut(x, mode):
        x = x[:, top : top + h, left : left + w]
        return tvf.resize(x, size, interpolation=mode, antialias=True) if size != (h, w) else x

    return _apply(item, cut, torch.from_numpy(window_map((top, left, h, w), size)))


def _rotate(item: dict, degrees: float) -> dict:
    """Counter-clockwise about the image's centre; what comes from outside is 0."""
    h, w = item["image"].shape[-2:]
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x, y = (w - 1) / 2, (h - 1) / 2
    m = torch.tensor([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=torch.float64)  # y points down
    t = m.clone()
    t[0, 2], t[1, 2] = x - c * x - s * y, y + s * x - c * y

    def turn(value, mode):
        mode = InterpolationMode.NEAREST if mode == InterpolationMode.NEAREST_EXACT else mode
        fill = 0 if value.is_floating_point() else -1  # labels: no class
        return tvf.rotate(value, degrees, interpolation=mode, expand=False, fill=fill)

    return _apply(item, turn, t, m)
