"""NYU Depth V2 (Silberman et al., ECCV 2012; research use, cite), in the layouts people have.

| layout   | found by                            | train depth            | test depth      |
|----------|-------------------------------------|------------------------|-----------------|
| kaggle   | data/nyu2_train.csv, nyu2_test.csv  | 8-bit PNG, v/255*10 m  | 16-bit PNG, mm  |
| labelled | nyu_depth_v2_labeled.mat            | float32, metres        | float32, metres |
| bts      | rgb_*.jpg beside sync_depth_*.png   | 16-bit PNG, mm         | 16-bit PNG, mm  |

The layout decides the encoding, never the values; a file that contradicts it is an error.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from .cache import CachedDataset
from .reading import (
    KAGGLE_INPUT,
    check_choices,
    check_grey_png,
    check_options,
    decode,
    evenly,
    fingerprint,
    hold_out,
    in_threads,
    resize_depth,
    resize_image,
    say_once,
    search,
)
from .rendered import NYU_CAMERA
from .transforms import resolve_augmentation

KAGGLE_HANDLE = "soumikrakshit/nyu-depth-v2/versions/1"  # pinned: cached means no network
MARKER = "nyu2_train.csv"
LABELLED = "nyu_depth_v2_labeled.mat"

SPLITS = ("train", "val", "test")
LAYOUTS = ("kaggle", "labelled", "bts")
ENCODINGS = {  # (layout, test?) → (bits of the PNG, metres per unit, words)
    ("kaggle", False): (8, 10 / 255, "8-bit PNG, value × 10/255 m"),
    ("kaggle", True): (16, 1e-3, "16-bit PNG, millimetres"),
    ("bts", False): (16, 1e-3, "16-bit PNG, millimetres"),
    ("bts", True): (16, 1e-3, "16-bit PNG, millimetres"),
}


class NYU(CachedDataset):
    """NYU Depth V2. Items: image, depth, intrinsics, focal, name.

    split: "train", "val" or "test". "val" is about a tenth of the training rows, whole scenes
        (see `_split`), and is not in "train"; "test" is the official one.
    root: the folder, or the .mat file. Else `$NYU_ROOT`; else an attached Kaggle input; else what
        kagglehub holds already; else, with `download=True`, kagglehub fetches it (4 GB).
    size: (H, W). Image bilinear and antialiased, depth from the nearest pixel. None: as stored.
    limit: at most so many items, evenly spaced over the split (the first ones would be one scene).
    layout: "kaggle", "labelled" or "bts"; None takes the first of these that `root` holds.
    raw: the Kinect's own depth with its holes instead of the in-painted one ("labelled" only).
    val_by: "row" cuts the last tenth of the rows instead of scenes, for data of a single scene.
        Neighbouring rows show the same room, so its numbers are too good. Give it for both splits.

    Attributes: `layout`, `encoding` (in words, printed once), `size`, `files` (image, depth).

    Folders of "bts": training scenes below `sync`, `train` or `official_splits/train`, the first
    that exists; test below `official_splits/test` or `test`. Where none of the five exists, `root`
    itself is the training tree and there is no test split.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        size: tuple[int, int] | None = None,
        limit: int | None = None,
        augment: str | Callable[[dict], dict] | None = None,
        cache: bool = True,
        layout: str | None = None,
        raw: bool = False,
        val_by: str = "scene",
        download: bool = False,
    ):
        check_choices(
            "NYU",
            split=(split, SPLITS),
            layout=(layout or LAYOUTS[0], LAYOUTS),
            val_by=(val_by, ("scene", "row")),
        )
        size = check_options(limit, size)
        augment = resolve_augmentation(augment)  # a wrong name is an error before any work

        self.split, self.raw, self._as_stored, self._hdf = split, raw, size is None, None
        self.root, self.layout = find_nyu(root, layout=layout, download=download)
        if raw and self.layout != "labelled":
            raise ValueError(
                f"raw=True needs the layout 'labelled' ({LABELLED}); {self.root} is {self.layout!r}"
            )
        if self.layout == "labelled":
            kind = "raw, 0 = hole" if raw else "in-painted"
            self.encoding = f"float32 in HDF5, metres ({kind})"
            rows = _labelled_rows(self.root, split)
        else:
            self._bits, self.depth_unit, self.encoding = ENCODINGS[self.layout, split == "test"]
            list_rows = _kaggle_rows if self.layout == "kaggle" else _bts_rows
            rows = list_rows(self.root, split)
        if not rows:
            raise ValueError(f"The {split} split in {self.root} ({self.layout}) is empty.")
        rows = evenly(_split(rows, split, val_by), limit)
        self.files = [row[:2] for row in rows]  # labelled: index in the file, for both
        self.names = [row[3] for row in rows]

        source = self._fingerprint()
        self.size = size or self._native()
        self._intrinsics = NYU_CAMERA.matrix(self.size)
        say_once(f"NYU {split}: {self.layout} layout, depth {self.encoding}")
        kind = "f4" if self.layout == "labelled" else {8: "u1", 16: "u2"}[self._bits]
        super().__init__(
            key={"dataset": "nyu", "split": split, "size": size, "source": source, "raw": raw},
            fields={"image": ("u1", (3, *self.size)), "depth": (kind, (1, *self.size))},
            length=len(rows),
            cache=cache,
            augment=augment,
        )

    def extras(self, index: int) -> dict:
        k = self._intrinsics
        return {"intrinsics": k.clone(), "focal": k[0, 0].item(), "name": self.names[index]}

    def produce(self, indices: list[int]) -> Iterator[dict[str, np.ndarray]]:
        if self.layout == "labelled":  # HDF5 does not gain by threads
            yield from map(self._from_mat, indices)
        else:
            yield from in_threads(self._from_files, indices)

    def __getstate__(self):
        return super().__getstate__() | {"_hdf": None}

    # ---- one record -----------------------------------------------------------------------

    def _from_files(self, index: int) -> dict[str, np.ndarray]:
        image_path, depth_path = self.files[index]
        check_grey_png(depth_path, self._bits, f"the layout {self.layout!r}")
        image = decode(image_path)
        depth = np.asarray(decode(depth_path))
        return self._fit(image.convert("RGB"), depth.astype(f"u{self._bits // 8}"), index)

    def _from_mat(self, index: int) -> dict[str, np.ndarray]:
        if self._hdf is None:
            self._hdf = _open_mat(self.root)
        i = self.files[index][0]
        # MATLAB's columns come first: (3, W, H) and (W, H).
        image = Image.fromarray(self._hdf["images"][i].transpose(2, 1, 0))
        depth = self._hdf["rawDepths" if self.raw else "depths"][i].T.astype("f4")
        if not np.isfinite(depth).all() or (depth < 0).any():
            raise ValueError(
                f"{self.root}: frame {i + 1} has NaN, infinite or negative depth; the file is "
                "damaged, fetch it again (0 is the mark for no measurement)"
            )
        return self._fit(image, depth, index)

    def _fit(self, image: Image.Image, depth: np.ndarray, index: int) -> dict[str, np.ndarray]:
        """Both at `self.size`."""
        names = " and ".join(map(str, dict.fromkeys(self.files[index])))
        if image.size != depth.shape[::-1]:
            raise ValueError(
                f"Image and depth differ in size, {image.height}x{image.width} and "
                f"{depth.shape[0]}x{depth.shape[1]} (H x W): {names}"
            )
        h, w = self.size
        if self._as_stored and image.size != (w, h):
            raise ValueError(
                f"With size=None all frames must have one size, the first is {h}x{w}, another "
                f"{image.height}x{image.width} (H x W): {names}. Give a size."
            )
        return {
            "image": resize_image(image, self.size),
            "depth": resize_depth(depth, self.size),
        }

    # ---- the source -----------------------------------------------------------------------

    def _native(self) -> tuple[int, int]:
        if self.layout == "labelled":
            with _open_mat(self.root) as file:
                return file["images"].shape[:1:-1]  # (N, 3, W, H)
        with Image.open(self.files[0][0]) as image:
            return image.height, image.width

    def _fingerprint(self) -> str:
        if self.layout == "labelled":
            lines, files = [f"{i}" for i, _ in self.files], [self.root]
        else:
            lines, files = [], [path for pair in self.files for path in pair]
        return fingerprint(files, lines, of=f"NYU {self.split}", root=self.root)


# ---- finding ------------------------------------------------------------------------------


def find_nyu(
    root: str | Path | None = None, *, layout: str | None = None, download: bool = False
) -> tuple[Path, str]:
    """(place, layout): the folder that holds `nyu2_train.csv`, the .mat file, or BTS's folder.

    What was named, by `root` or `$NYU_ROOT`, is taken or is an error; nothing else is tried then.
    """
    tried = []
    for said, place in (("root", root), ("NYU_ROOT", os.environ.get("NYU_ROOT"))):
        if place:
            place = Path(place).expanduser()
            if not place.exists():
                raise FileNotFoundError(_no_nyu([f"{said}={place} (does not exist)"]))
            if found := _recognise(place, LAYOUTS if layout is None else (layout,)):
                return found
            raise FileNotFoundError(
                _no_nyu([f"{said}={place} (holds no {layout or 'known'} layout)"])
            )
        tried.append(f"{said} (not given)")
    hub = Path(os.path.expanduser(os.environ.get("KAGGLEHUB_CACHE") or "~/.cache/kagglehub"))
    hub = hub / "datasets" / KAGGLE_HANDLE
    # BTS's layout has no marker file to search among other people's data for: it is named.
    wanted = [name for name in ("kaggle", "labelled") if layout in (None, name)]
    for place in (KAGGLE_INPUT, hub):
        if place.is_dir() and (found := _recognise(place, wanted)):
            return found
        tried.append(f"{place} ({'no NYU below it' if place.is_dir() else 'does not exist'})")
    if download:
        import kagglehub

        place = Path(kagglehub.dataset_download(KAGGLE_HANDLE))
        if found := _recognise(place, wanted):
            return found
        tried.append(f"{place} (from kagglehub, but no {layout or 'known'} layout)")
    raise FileNotFoundError(_no_nyu(tried))


def _no_nyu(tried: list[str]) -> str:
    slug = KAGGLE_HANDLE.split("/versions")[0]
    return (
        "NYU Depth V2 was not found. Tried: " + "; ".join(tried) + ". Three ways to provide it: "
        f"(1) on Kaggle, attach the data set {slug} (Add Input); "
        "(2) with network, pass download=True, which lets kagglehub fetch it (4 GB); "
        "(3) pass root=… or set NYU_ROOT to a folder with data/nyu2_train.csv, with BTS's "
        f"rgb_*.jpg and sync_depth_*.png, or with {LABELLED}. "
        "The data set 'rooms' needs no data."
    )


def _recognise(place: Path, wanted: Iterable[str]) -> tuple[Path, str] | None:
    if place.is_file():
        return (place, "labelled") if place.suffix == ".mat" and "labelled" in wanted else None
    if "kaggle" in wanted and (found := search(place, lambda f: (f / MARKER).is_file())):
        return found, "kaggle"
    if "labelled" in wanted and (found := search(place, lambda f: (f / LABELLED).is_file())):
        return found / LABELLED, "labelled"
    if "bts" in wanted and next(place.rglob("sync_depth_*.png"), None):
        return place, "bts"
    return None


# ---- listing: rows of (image, depth, scene, name) -----------------------------------------


def _kaggle_rows(folder: Path, split: str) -> list[tuple]:
    """`nyu2_<split>.csv`: image, depth; no header; relative to the parent of the csv's folder."""
    path = folder / f"nyu2_{'test' if split == 'test' else 'train'}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"The Kaggle layout in {folder} has no {path.name}.")
    rows = []
    with open(path, newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.reader(file), 1):
            if not row:
                continue
            if len(row) != 2:
                raise ValueError(f"{path}, line {line}: expected image,depth; given {row}")
            image, depth = (folder.parent / cell.strip() for cell in row)
            name = f"{image.parent.name}/{image.stem}"
            rows.append((str(image), str(depth), image.parent.name, name))
    return rows


def _bts_rows(root: Path, split: str) -> list[tuple]:
    known = {
        "train": [root / "sync", root / "train", root / "official_splits" / "train"],
        "test": [root / "official_splits" / "test", root / "test"],
    }
    wanted = known["test" if split == "test" else "train"]
    places = [place for place in wanted if place.is_dir()]
    if not places and (split == "test" or any(place.is_dir() for place in known["test"])):
        looked = ", ".join(place.relative_to(root).as_posix() for place in wanted)
        raise FileNotFoundError(f"No {split} frames in {root} (BTS layout); looked for {looked}.")
    tree = places[0] if places else root
    rows = []
    for image in sorted(tree.rglob("rgb_*.jpg")):
        scene = image.parent.relative_to(tree).as_posix()
        depth = image.with_name(f"sync_depth_{image.stem.removeprefix('rgb_')}.png")
        rows.append((str(image), str(depth), scene, f"{scene}/{image.stem}"))
    return rows


def _labelled_rows(path: Path, split: str) -> list[tuple]:
    """The official 795/654 frames; which is which stands in `splits.mat`, not in the file."""
    splits = path.with_name("splits.mat")
    if not splits.is_file():
        raise FileNotFoundError(
            f"{splits} is missing. {path.name} does not say which frames are training and which "
            "test; put the official splits.mat beside it (published with the data set, as "
            "indoor_seg_sup/splits.mat)."
        )
    key = "testNdxs" if split == "test" else "trainNdxs"
    chosen = _read_mat(splits, key).astype(int).ravel() - 1
    with _open_mat(path) as file:
        if absent := {"images", "depths", "rawDepths", "scenes"} - {*file}:
            raise ValueError(f"{path} lacks {', '.join(sorted(absent))}.")
        count = len(file["images"])
        if chosen.size and not 0 <= chosen.min() <= chosen.max() < count:
            raise ValueError(f"{splits}: {key} goes beyond the {count} frames of {path.name}.")
        cells = file["scenes"][()].ravel()
        scenes = ["".join(map(chr, file[cells[i]][()].ravel())) for i in chosen]
    return [(int(i), int(i), s, f"{s}/{i}") for i, s in zip(chosen, scenes, strict=True)]


def _open_mat(path: Path):
    import h5py  # late: only this layout needs it

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"Cannot read {path}, it is no HDF5 or is cut off: {error}") from error


def _read_mat(path: Path, key: str) -> np.ndarray:
    import h5py

    if h5py.is_hdf5(path):  # MATLAB 7.3
        with _open_mat(path) as file:
            values = dict(file.items()).get(key)
            values = None if values is None else values[()]
    else:
        from scipy.io import loadmat

        values = loadmat(path).get(key)
    if values is None:
        raise ValueError(f"{path} has no {key}; the official file has trainNdxs and testNdxs.")
    return values


def _split(rows: list[tuple], split: str, val_by: str) -> list[tuple]:
    """Training rows without those of validation, or these alone (see `hold_out`).

    The parts of one recording (`basement_0001a`, `basement_0001b`) are one room.
    """
    if split == "test":
        return rows
    if val_by == "row":
        cut = len(rows) - max(1, len(rows) // 10)
        return rows[:cut] if split == "train" else rows[cut:]
    kept = hold_out(rows, split, lambda row: _room(row[2]))
    if kept is None:
        raise ValueError(
            f"All {len(rows)} training rows are of one scene ({_room(rows[0][2])!r}), so none can "
            'be kept for "val". Pass val_by="row" for "train" and "val" to cut by row (its numbers '
            "are too good, for neighbouring rows show the same room), or validate on other data."
        )
    return kept


def _room(scene: str) -> str:
    return re.sub(r"(?<=_\d{4})[a-z]$", "", scene.removesuffix("_out"))
