"""Space-increasing discretisation (SID) of depth.

You et al. 2021, section 3, after Fu et al. 2018 (DORN): thresholds grow with depth, so that a
bin a metre away is centimetres wide and one at the far end decimetres.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

#: (alpha, beta) in metres per data set: the depths that the bins divide.
RANGES = {
    "rooms": (0.75, 10.0),
    "nyu": (0.75, 10.0),
    "streets": (3.0, 80.0),
    "kitti": (3.0, 80.0),
}
OVERFLOWS = ("ignore", "first")
MAX_BINS = 64  # N_b = min(units, 64): You et al. 2021, section 4


def depth_range(where) -> tuple[float, float]:
    """(alpha, beta) in metres of a data set's name, of a data set, or of a pair.

    Raises:
        ValueError: unknown name, or a pair that is not 0 < alpha < beta.
    """
    if isinstance(where, str):
        if where not in RANGES:
            raise ValueError(
                f"Unknown depth range {where!r}. Known ranges: {', '.join(RANGES)}; "
                "or give (alpha, beta) in metres."
            )
        return RANGES[where]
    where = getattr(where, "depth_range", where)
    try:
        alpha, beta = (float(x) for x in where)
    except (TypeError, ValueError):
        raise ValueError(
            f"A depth range is a pair (alpha, beta) in metres or one of {', '.join(RANGES)}; "
            f"got {where!r}."
        ) from None
    if not 0 < alpha < beta < float("inf"):
        raise ValueError(f"A depth range needs 0 < alpha < beta; got ({alpha}, {beta}) metres.")
    return alpha, beta


def find_range(dataset, model=None) -> tuple[float, float]:
    """(alpha, beta) in metres that a data set is made for: its own `depth_range` (or that of the
    data set inside a `Subset`), else the model's, else, with a warning, that of NYU."""
    while dataset is not None:
        if getattr(dataset, "depth_range", None) is not None:
            return depth_range(dataset)
        dataset = getattr(dataset, "dataset", None)
    if getattr(model, "depth_range", None) is not None:
        return depth_range(model)
    warnings.warn(
        f"Neither the data set nor the model has a depth_range; taking NYU's, {RANGES['nyu']} "
        "metres. Set dataset.depth_range = (alpha, beta) for another.",
        stacklevel=3,
    )
    return RANGES["nyu"]


@dataclass(frozen=True, eq=False)
class DepthBins:
    """Depth bins `(edges[i], edges[i + 1]]`, i = 0 … num_bins − 1.

    Attributes:
        edges: (num_bins + 1,) float64, metres, ascending, `edges[0] == 0`.
        overflow: what becomes of depth beyond `edges[-1]` and of NaN: `"ignore"` gives −1,
            `"first"` gives bin 0 as the paper's released code does, where far pixels become the
            *nearest* ones.
    """

    edges: Tensor
    overflow: str = "ignore"

    def __post_init__(self):
        if self.overflow not in OVERFLOWS:
            raise ValueError(f"Unknown overflow {self.overflow!r}. Known: {', '.join(OVERFLOWS)}.")

    @classmethod
    def sid(cls, num_bins: int, alpha: float, beta: float, overflow: str = "ignore") -> DepthBins:
        """The thresholds of the paper's released code.

        t[0] = 0, t[1] = alpha, t[i + 1] = (beta + 1 − alpha)^(i / (num_bins − 1)) − (1 − alpha),
        t[num_bins] = beta. The first bin is thus (0, alpha] and the SID law holds on the others.

        Raises:
            ValueError: fewer than two bins, or not 0 < alpha < beta.
        """
        if num_bins < 2 or int(num_bins) != num_bins:
            raise ValueError(f"SID needs a whole number of bins, at least 2; got {num_bins}.")
        alpha, beta = depth_range((alpha, beta))
        base, shift = beta + 1 - alpha, 1 - alpha
        inner = [base ** (i / (num_bins - 1)) - shift for i in range(1, num_bins - 1)]
        return cls(torch.tensor([0.0, alpha, *inner, beta], dtype=torch.float64), overflow)

    @property
    def num_bins(self) -> int:
        return len(self.edges) - 1

    def __len__(self) -> int:
        return self.num_bins

    def __eq__(self, other) -> bool:
        return (
            isinstance(other, DepthBins)
            and self.overflow == other.overflow
            and torch.equal(self.edges, other.edges)
        )

    def discretize(self, depth: Tensor) -> Tensor:
        """Bin of every depth value.

        Args:
            depth: any shape, metres, ≤ 0 = no measurement.

        Returns:
            int64, the shape of `depth`: the bin, or −1 for no measurement (and for depth beyond
            the last edge and NaN, unless `overflow="first"`).
        """
        bins = self.locate(depth)
        outside = 0 if self.overflow == "first" else -1
        return bins.masked_fill_(bins == self.num_bins, outside)

    def locate(self, depth: Tensor) -> Tensor:
        """As `discretize`, with `num_bins` for depth beyond the last edge and for NaN, so
        that both treatments of overflow can be had from one pass."""
        depth = depth.detach()
        # In the dtype of the depth, as a comparison with Python floats would be: float32 depth of
        # exactly 10 m must lie within a last bin that ends at 10 m.
        edges = self.edges.to(depth.device, depth.dtype if depth.is_floating_point() else None)
        # right=False: edges[i - 1] < d <= edges[i]. NaN sorts behind everything.
        return torch.bucketize(depth.contiguous(), edges) - 1
