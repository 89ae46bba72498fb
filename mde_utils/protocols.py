"""How predictions are compared with ground truth: protocols by name.

Numbers from different papers differ by resolution, cap, aggregation and strictness as much as by
method; so a protocol has a name, and `describe_protocol` prints what stands behind it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from .checks import unknown
from .passes import MIN_DEPTH


@dataclass(frozen=True)
class Crop:
    """The rows and columns that count, as parts of a height and a width.

    Attributes:
        words: what it is called.
        rows, columns: (from, to), of the height and of the width; pixel r counts where
            ⌊from · height⌋ <= r < ⌊to · height⌋. Exact, so that 471/480 of 480 is 471.
        of_item: of the item's own window; else of the full frame, of which the item is a window
            where it has a `frame`.
    """

    words: str
    rows: tuple[Fraction, Fraction]
    columns: tuple[Fraction, Fraction]
    of_item: bool = False

    def inside(self, frame: Sequence[float], size: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of an item (h, w) that lies at `frame`, (top, left, height, width)."""
        top, left, height, width = (0, 0, *size) if self.of_item else frame
        return (
            _span(self.rows, top, height, size[0]),
            _span(self.columns, left, width, size[1]),
        )


def _span(parts: tuple[Fraction, Fraction], at: float, whole: float, n: int) -> slice:
    """What of an item's n pixels, which begin at `at`, lies within these parts of the frame's
    `whole`. A pixel's centre decides: of an item that was resized, the window may begin inside."""
    first, last = (math.ceil(math.floor(part * Fraction(whole)) - at - 0.5) for part in parts)
    return slice(min(max(first, 0), n), min(max(last, 0), n))


_GARG = (  # Garg et al., ECCV 2016, as released
    (Fraction("0.40810811"), Fraction("0.99189189")),
    (Fraction("0.03594771"), Fraction("0.96405229")),
)
EIGEN = Crop(
    "Eigen crop (rows 45–470, columns 41–600 of 480x640; at other sizes in proportion)",
    (Fraction(45, 480), Fraction(471, 480)),
    (Fraction(41, 640), Fraction(601, 640)),
)
EPC_NYU = Crop(
    "EPCDepth's crop (rows 44–470, columns 40–600 of 480x640; at other sizes in proportion)",
    (Fraction(44, 480), Fraction(471, 480)),
    (Fraction(40, 640), Fraction(601, 640)),
)
GARG = Crop("Garg crop (rows .408–.992, columns .036–.964)", *_GARG)
GARG_OF_ITEM = Crop(GARG.words, *_GARG, of_item=True)


@dataclass(frozen=True)
class Protocol:
    """How predictions are compared with ground truth.

    In this order: predictions are upsampled to the ground truth's size, scaled, clamped, compared
    where ground truth counts, and of these pixels where the crop lets them.

    Attributes:
        source: whose protocol it is.
        align_corners: of the bilinear upsampling of predictions to the ground truth's size.
        capped: predictions are clamped to [1e-3, cap] and only ground truth < cap counts; else
            predictions are only raised to 1e-3.
        strict: δ counts ratios < 1.25ⁿ; else <=.
        pooled_rms: root of the mean over images of the mean square, else mean over images of the
            root; `rms` and `rms_log`.
        above: only ground truth above this many metres counts.
        crop: what of the image counts; None = all.
        in_disparity: upsampled is 1 / depth.
        max_depth: with which disparity networks are read, see `disparity_to_depth`; None = as the
            model has it.
        median_scaled: each image's prediction is multiplied by the ratio of the medians of ground
            truth and prediction over what counts: of a scale that is not known, or not trusted.
        clamp: (nearest, farthest) metres of predictions, in place of what `capped` says.
    """

    source: str
    align_corners: bool
    capped: bool
    strict: bool
    pooled_rms: bool
    above: float
    crop: Crop | None = None
    in_disparity: bool = False
    max_depth: float | None = None
    median_scaled: bool = False
    clamp: tuple[float, float] | None = None


_EACH = {"align_corners": False, "strict": True, "pooled_rms": False}
PROTOCOLS: dict[str, Protocol] = {
    "imde": Protocol("You et al., ICCV 2021", capped=True, above=MIN_DEPTH, **_EACH),
    "mff": Protocol(
        "Hu et al., WACV 2019",
        align_corners=True,
        capped=False,
        strict=False,
        pooled_rms=True,
        above=0.0,
    ),
    "imde-kitti": Protocol(
        "You et al., ICCV 2021, as released",
        capped=True,
        above=MIN_DEPTH,
        crop=GARG_OF_ITEM,
        **_EACH,
    ),
    "bts-eigen": Protocol(
        "Lee et al. 2019, on NYU", capped=True, above=MIN_DEPTH, crop=EIGEN, **_EACH
    ),
    "kitti-garg": Protocol(
        "Lee et al. 2019, on KITTI", capped=True, above=MIN_DEPTH, crop=GARG, **_EACH
    ),
    "epc-kitti": Protocol(
        "Peng et al., ICCV 2021, on KITTI",
        capped=True,
        above=MIN_DEPTH,
        crop=GARG,
        in_disparity=True,
        **_EACH,
    ),
    "epc-nyu": Protocol(
        "Peng et al., ICCV 2021, on NYU, as released",
        capped=False,
        above=0.0,
        crop=EPC_NYU,
        max_depth=10.0,
        median_scaled=True,
        clamp=(0.1, 10.0),
        **_EACH,
    ),
    "sparse-500": Protocol("Cheng et al., ECCV 2018", capped=False, above=1e-4, **_EACH),
}


def find_protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise ValueError(unknown("protocol", name, PROTOCOLS))
    return PROTOCOLS[name]


def describe_protocol(name: str, *, cap: float | None = None) -> str:
    """One line to print beside numbers; it ends with what is known of the scale."""
    p = find_protocol(name)
    limit = "cap" if cap is None else f"{cap:g} m"
    if p.capped:
        counts = f"{p.above:g} m < depth < {limit}"
    else:
        counts = f"{f'depth > {p.above:g} m' if p.above else 'every measured pixel'}, no cap"
    if p.crop is None:
        crop = "no crop"
    else:
        crop = f"{p.crop.words} of the {'item' if p.crop.of_item else 'full frame'}"
    read = f"disparity networks read with max_depth={p.max_depth:g}, " if p.max_depth else ""
    what = "disparity" if p.in_disparity else "prediction"
    clamped = "" if p.clamp is None else ", clamped to {:g}–{:g} m".format(*p.clamp)
    return (
        f"protocol {name} ({p.source}): {read}{what} upsampled bilinearly "
        f"(align_corners={p.align_corners}) to the ground truth, then {crop}, {counts}{clamped}"
        f", δ {'<' if p.strict else '≤'} 1.25ⁿ, "
        + ("RMS over all images" if p.pooled_rms else "RMS per image, then averaged")
        + f"; scale: {'median of each image' if p.median_scaled else 'metric'}"
    )
