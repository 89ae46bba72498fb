"""What the data sets on disk share: finding folders, choosing rows, reading and resizing frames."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import get_worker_info

from ..checks import unknown

KAGGLE_INPUT = Path("/kaggle/input")
SEARCH_DEPTH = 5  # /kaggle/input/datasets/<owner>/<slug>/nyu_data/data


_said: set[str] = set()


# ---- options ------------------------------------------------------------------------------


def check_choices(of: str, **choices: tuple[str, tuple[str, ...]]) -> None:
    """Refuse an option, by name (given, known), that is none of those known."""
    for name, (given, known) in choices.items():
        if given not in known:
            raise ValueError(unknown(f"{name} of {of}", given, known))


def say_once(text: str) -> None:
    if text not in _said:
        _said.add(text)
        print(text)


def check_options(limit: int | None, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """`size` as a tuple of ints."""
    if limit is not None and limit < 1:
        raise ValueError(f"limit is a number of items, at least 1, or None; given {limit}")
    if size is not None and not (
        isinstance(size, tuple | list)
        and len(size) == 2
        and all(isinstance(n, int | np.integer) and n > 0 for n in size)
    ):
        raise ValueError(f"size is (height, width) in whole pixels above 0; given {size}")
    return None if size is None else tuple(int(n) for n in size)


def evenly(rows: list, limit: int | None) -> list:
    """At most `limit` rows, evenly spaced: the first ones would be one scene."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def hold_out(rows: list, split: str, scene: Callable[[object], str]) -> list | None:
    """Training rows without those of validation, or ("val") these alone.

    By scene: scenes in the order of a hash of their names, until they hold a tenth of the rows.
    The choice does not depend on the order of the rows nor on a random generator. With one scene
    alone "train" is everything and "val" None.
    """
    scenes: dict[str, int] = {}
    for row in rows:
        scenes[scene(row)] = scenes.get(scene(row), 0) + 1
    if len(scenes) < 2:
        return rows if split == "train" else None
    val, held = set(), 0
    for name in sorted(scenes, key=lambda name: hashlib.sha256(name.encode()).digest())[:-1]:
        if held * 10 >= len(rows):
            break
        val.add(name)
        held += scenes[name]
    return [row for row in rows if (scene(row) in val) == (split == "val")]


# ---- folders ------------------------------------------------------------------------------


def search(root: Path, wanted: Callable[[Path], bool]) -> Path | None:
    """The folder nearest to `root` that is wanted, level by level: a scene's thousands of frames
    are never listed where the marker lies above them."""
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        for folder in level:
            if wanted(folder):
                return folder
        level = [Path(e) for folder in level for e in sorted(folders(folder))]
    return None


def folders(folder: Path) -> Iterable[str]:
    try:
        with os.scandir(folder) as entries:
            return [entry.path for entry in entries if entry.is_dir()]
    except OSError:  # a folder that may not be read is none that we look for
        return []


def fingerprint(files: Iterable[str | Path], lines: Sequence[str], *, of: str, root: Path) -> str:
    """A digest of where the data lie, of the rows taken, and of each file's size and time."""
    files, lines, absent = list(files), list(lines), []
    for path in files:
        try:
            stat = os.stat(path)
            lines.append(f"{path} {stat.st_size} {stat.st_mtime_ns}")
        except OSError:
            absent.append(str(path))
    if absent:
        raise FileNotFoundError(
            f"{len(absent)} of {len(files)} files listed for {of} are absent, first "
            f"{', '.join(absent[:3])}. Complete {root}, or take out the rows that name them."
        )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# ---- frames -------------------------------------------------------------------------------


def decode(path: str | Path) -> Image.Image:
    """The image, read to its end."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"Cannot decode {path}, it is damaged or cut off: {error}") from error


def open_picture(source, of: str | Path) -> Image.Image:
    """A file's picture, of which the header alone is read."""
    try:
        return Image.open(source)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        stranger = isinstance(error, UnidentifiedImageError)
        why = "it is no image that Pillow knows, or is cut off" if stranger else error
        raise ValueError(
            f"Cannot read {of} as a picture: {why}. Mend it, or take it out."
        ) from error


def as_rgb(image: Image.Image, of: str | Path) -> Image.Image:
    """An opened picture as everything here takes it: RGB, 8 bits a channel.

    Turned as the camera says (EXIF). Grey in three equal channels, 16-bit grey with 65535 as white,
    as PNG and TIFF define it; CMYK by Pillow's rule, without a colour profile; what is transparent
    on white.
    """
    png = image.format == "PNG"  # of which older Pillows make mode I, and 16 bits are the most
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and png):
            image = Image.fromarray((np.asarray(image) // 257).astype("u1"))
        elif image.mode in ("I", "F"):
            raise ValueError(
                f"its pixels are 32-bit numbers (mode {image.mode}), and nothing says which is "
                "white; save it with 8 or 16 bits"
            )
        if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"Cannot decode {of}, it is damaged or no photograph: {error}") from error


def check_grey_png(path: str | Path, bits: int, of: str) -> None:
    """Refuse anything but a grey PNG of so many bits, which `of` has.

    By the header: signature, then at byte 24 bits per channel and colour type (0 grey).
    """
    with open(path, "rb") as file:
        head = file.read(26)
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n":
        raise ValueError(f"Cannot decode {path}, it is no PNG or is cut off.")
    if (head[24], head[25]) != (bits, 0):
        kind = "grey" if head[25] == 0 else f"colour type {head[25]}"
        raise ValueError(
            f"{path} is a {head[24]}-bit {kind} PNG; depth of {of} is {bits}-bit grey here. Is it "
            "of another release? Then its unit is another one too."
        )


def resize_image(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 (3, H, W), bilinear and antialiased."""
    h, w = size
    image = image if image.size == (w, h) else image.resize((w, h), Image.Resampling.BILINEAR)
    return np.asarray(image).transpose(2, 0, 1)


def resize_depth(depth: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) to (1, H, W), from the pixel nearest to each centre."""
    h, w = size
    ys = ((np.arange(h) + 0.5) * depth.shape[0] / h).astype(int)
    xs = ((np.arange(w) + 0.5) * depth.shape[1] / w).astype(int)
    return depth[np.ix_(ys, xs)][None]


def in_threads(make: Callable[[int], dict], indices: list[int]) -> Iterator[dict]:
    """`make` of each index, in order. libjpeg and zlib let other threads run; a DataLoader's
    worker does not gain."""
    if len(indices) < 2 or get_worker_info():
        yield from map(make, indices)
    else:
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as pool:
            yield from pool.map(make, indices)
