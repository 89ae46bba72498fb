"""Your own images with depth: a folder of each, and a unit that is said.

    root/images/kitchen/0001.jpg        root/depth/kitchen/0001.png      one pair
    root/train/images/…                 root/train/depth/…               or a folder a split

A pair has the same path below the two folders, but for the ending. Images are what Pillow reads as
PNG, JPEG, WebP, BMP or TIFF. Depth is the distance along the camera's axis, one file an image:

| ending     | what is read                                                              |
|------------|---------------------------------------------------------------------------|
| .png       | 16-bit grey                                                               |
| .npy       | an array of real numbers                                                  |
| .h5, .hdf5 | the only array, or that of `depth_key`                                    |
| .exr       | the only channel, Z or Y of several, or that of `depth_key` (needs OpenEXR) |

Metres are the stored number times `depth_unit`. 0, negative numbers, NaN and infinity are no
measurement, and 0 in an item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..checks import unknown
from ..depth_bins import depth_range as checked_range
from .cache import CachedDataset
from .reading import (
    as_rgb,
    check_grey_png,
    check_options,
    decode,
    evenly,
    fingerprint,
    hold_out,
    in_threads,
    open_picture,
    resize_depth,
    resize_image,
)
from .transforms import resolve_augmentation

SPLITS = ("train", "val", "test", "all")
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEPTHS = (".png", ".npy", ".exr", ".h5", ".hdf5")
UNITS = (
    "0.001 for millimetres (most depth cameras), 1/256 for KITTI's PNG, 1/5000 for TUM's, 1 for "
    "metres"
)
SAME_ASPECT = 0.01  # how far the ratios of the sides of image and depth may differ


class Folder(CachedDataset):
    """Images and depth of your own. Items: image, depth, name.

    split: "train", "val", "test", or "all" of them. Where `root` has any of the folders train, val
        and test, these are the splits. Else about a tenth of the images is "test", and of the rest
        a tenth "val", chosen by a hash of names alone: whole folders below `images`, where there
        are any (neighbouring frames of one place belong together), else single images.
    root: the folder with both.
    depth_unit: metres in one stored unit of depth. It is never guessed.
    size: (H, W). Image bilinear and antialiased, depth from the nearest pixel. None: the image's
        own, which all must share.
    limit: at most so many items, evenly spaced over the split.
    images, depth: the names of the two folders.
    depth_key: of the array in an HDF5 file, or of the channel in an EXR file.
    depth_range: (alpha, beta) in metres of the depth bins; None leaves that to the model.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        depth_unit: float | None = None,
        size: tuple[int, int] | None = None,
        limit: int | None = None,
        augment: str | Callable[[dict], dict] | None = None,
        cache: bool = True,
        images: str = "images",
        depth: str = "depth",
        depth_key: str | None = None,
        depth_range: tuple[float, float] | None = None,
    ):
        if split not in SPLITS:
            raise ValueError(unknown("split of a folder", split, SPLITS))
        if depth_unit is None or not 0 < depth_unit < float("inf"):
            raise ValueError(
                f"Say depth_unit=, the metres in one stored unit of depth: {UNITS}. "
                f"Given: {depth_unit}."
            )
        size = check_options(limit, size)
        augment = resolve_augmentation(augment)
        span = None if depth_range is None else checked_range(depth_range)
        if root is None:
            raise FileNotFoundError(f"Say root=, the folder that holds {images}/ and {depth}/.")
        self.root = Path(root).expanduser()
        self.metres, self.depth_key, self._as_stored = float(depth_unit), depth_key, size is None
        rows = evenly(_rows(self.root, split, images, depth), limit)
        self.files = [(image, depth) for _, image, depth in rows]
        self.names = [name for name, *_ in rows]
        for endings in {path.suffix.lower() for _, path in self.files}:
            if endings == ".exr":
                _openexr()  # before any work
        source = fingerprint(
            [path for pair in self.files for path in pair], [], of=self.root.name, root=self.root
        )
        self.size = size or self._image(0).size[::-1]
        super().__init__(
            key={
                "dataset": "folder",
                "split": split,
                "size": size,
                "source": source,
                "unit": self.metres,
                "key": depth_key,
            },
            fields={"image": ("u1", (3, *self.size)), "depth": ("f4", (1, *self.size))},
            length=len(rows),
            cache=cache,
            augment=augment,
        )
        self.name, self.depth_range = f"{self.root.resolve().name}/{split}", span

    def extras(self, index: int) -> dict:
        return {"name": self.names[index]}

    def produce(self, indices: list[int]) -> Iterator[dict[str, np.ndarray]]:
        if any(self.files[i][1].suffix.lower() in (".h5", ".hdf5") for i in indices):
            yield from map(self._pair, indices)  # HDF5 does not gain by threads
        else:
            yield from in_threads(self._pair, indices)

    def _image(self, index: int):
        path = self.files[index][0]
        with open_picture(path, path) as image:
            return as_rgb(image, path)

    def _pair(self, index: int) -> dict[str, np.ndarray]:
        image, depth = self._image(index), read_depth(self.files[index][1], self.depth_key)
        names = " and ".join(map(str, self.files[index]))
        (w, h), (rows, columns) = image.size, depth.shape
        if abs(w * rows / (h * columns) - 1) > SAME_ASPECT:
            raise ValueError(
                f"Image and depth are not of one shape, {h}x{w} and {rows}x{columns} (H x W), so "
                f"one is not the other resized: {names}. A photograph may be turned by its EXIF "
                "mark where its depth is not."
            )
        if self._as_stored and (h, w) != self.size:
            raise ValueError(
                f"With size=None all images must have one size, the first is {self.size[0]}x"
                f"{self.size[1]}, another {h}x{w} (H x W): {names}. Give a size."
            )
        metres = depth.astype("f8") * self.metres
        metres = np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype("f4")
        return {"image": resize_image(image, self.size), "depth": resize_depth(metres, self.size)}


# ---- depth --------------------------------------------------------------------------------


def read_depth(path: Path, key: str | None = None) -> np.ndarray:
    """The stored numbers (h, w) of a file of depth, whatever they mean (see this module)."""
    kind = path.suffix.lower()
    if kind == ".png":
        check_grey_png(path, 16, "a folder of your own")
        values = np.asarray(decode(path))
    elif kind == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise ValueError(f"Cannot read {path} as a NumPy array: {error}") from error
    else:
        arrays = _exr(path) if kind == ".exr" else _hdf5(path, key)
        if key is None and kind == ".exr" and len(arrays) > 1:
            key = next((name for name in ("Z", "Y") if name in arrays), None)
        key = next(iter(arrays)) if key is None and len(arrays) == 1 else key
        if key not in arrays:
            raise ValueError(
                f"{path} holds {', '.join(arrays) or 'no array'}: say which is the depth with "
                f"depth_key=…" + (f"; {key!r} is not there." if key else ".")
            )
        values = arrays[key]
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[-1]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.dtype.kind not in "uif" or values.dtype.itemsize < 2:
        raise ValueError(
            f"{path} holds {values.dtype} of shape {values.shape}; depth is one number a pixel, "
            "(H, W), with 16 bits or more."
        )
    return values


def _hdf5(path: Path, key: str | None) -> dict[str, np.ndarray]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            found: list[str] = []
            file.visititems(lambda name, x: found.append(name) if hasattr(x, "shape") else None)
            wanted = [key] if key in found else found if len(found) == 1 else []
            return {name: file[name][()] if name in wanted else None for name in found}
    except OSError as error:
        raise ValueError(f"Cannot read {path} as HDF5: {error}") from error


def _exr(path: Path) -> dict[str, np.ndarray]:
    try:
        with _openexr().File(str(path), separate_channels=True) as file:
            return {name: channel.pixels for name, channel in file.channels().items()}
    except RuntimeError as error:
        raise ValueError(f"Cannot read {path} as OpenEXR: {error}") from error


def _openexr():
    try:
        import OpenEXR
    except ImportError:
        raise FileNotFoundError(
            "Depth in .exr files is read by the package OpenEXR, which is not installed: "
            "pip install OpenEXR. Or convert them to .npy."
        ) from None
    return OpenEXR


# ---- pairs --------------------------------------------------------------------------------


def _rows(root: Path, split: str, images: str, depth: str) -> list[tuple[str, Path, Path]]:
    """(name, image, depth) of a split, sorted by name."""
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    own = [name for name in SPLITS[:3] if (root / name).is_dir()]
    if own:
        if split not in (*own, "all"):
            raise FileNotFoundError(
                f"{root} has the splits {', '.join(own)}, but no folder {split}/."
            )
        wanted = own if split == "all" else [split]
        tagged = [(f"{name}/", _pairs(root / name, images, depth)) for name in wanted]
        return [
            (prefix * (split == "all") + stem, *pair)
            for prefix, found in tagged
            for stem, pair in found
        ]
    rows = [(stem, *pair) for stem, pair in _pairs(root, images, depth)]
    tops = {name.partition("/")[0] for name, *_ in rows}
    if own := [name for name in SPLITS[:3] if name in tops]:  # images/train/…, depth/train/…
        if stray := sorted(tops - {*own}):
            raise ValueError(
                f"{root / images} has the splits {', '.join(own)} and, beside them, "
                f"{', '.join(stray[:3])}: of which split is that? Move it into one."
            )
        if split == "all":
            return rows
        if split not in own:
            raise FileNotFoundError(
                f"{root / images} has the splits {', '.join(own)}, but no folder {split}/."
            )
        return [(n.removeprefix(f"{split}/"), *p) for n, *p in rows if n.startswith(f"{split}/")]
    if split == "all":
        return rows
    nested = any("/" in name for name, *_ in rows)

    def place(row) -> str:
        return row[0].rpartition("/")[0] if nested else row[0]

    def halves(rows: list) -> tuple[list, list]:
        held = hold_out(rows, "val", place)
        if held is None:
            kind = f"folder below {images}/" if nested else "image"
            raise ValueError(
                f"{root} has too few to be split: of its {len(rows)} images one {kind} would have "
                "to be in several splits. Take split='all', or say the splits by folders train/, "
                "val/ and test/."
            )
        return hold_out(rows, "train", place), held

    rest, test = halves(rows)
    if split == "test":
        return test
    train, val = halves(rest)
    return train if split == "train" else val


def _pairs(root: Path, images: str, depth: str) -> list[tuple[str, tuple[Path, Path]]]:
    found = []
    for name, endings in ((images, IMAGES), (depth, DEPTHS)):
        folder = root / name
        if not folder.is_dir():
            have = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())) or "none"
            raise FileNotFoundError(
                f"{root} has no folder {name}/; its folders: {have}. Images lie in {images}/ and "
                f"their depth in {depth}/; other names are said by images= and depth=."
            )
        files: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in endings or not path.is_file():
                continue
            stem = path.relative_to(folder).with_suffix("").as_posix()
            if stem in files:
                raise ValueError(
                    f"Two files for one in {folder}: {files[stem].name} and {path.name}. Take one "
                    "out."
                )
            files[stem] = path
        if not files:
            raise FileNotFoundError(f"{folder} holds no file that ends in {', '.join(endings)}.")
        found.append(files)
    pictures, depths = found
    for lacking, what, without in (
        (sorted(pictures.keys() - depths.keys()), "images", f"depth in {root / depth}"),
        (sorted(depths.keys() - pictures.keys()), "files of depth", f"image in {root / images}"),
    ):
        if lacking:
            raise ValueError(
                f"{len(lacking)} {what} have no {without}: {', '.join(lacking[:3])}"
                f"{', …' if len(lacking) > 3 else ''}. A pair has one name, but for the ending."
            )
    return [(stem, (pictures[stem], depths[stem])) for stem in sorted(pictures)]
