"""Golden values: the table of thresholds that the paper's released code prints."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mde_utils.depth_bins import RANGES, DepthBins, depth_range

GOLDEN = {  # data set, bins: first six and last thresholds
    ("nyu", 64): ([0, 0.75, 0.7876, 0.8267, 0.8672, 0.9092], [8.592, 8.9247, 9.27, 9.6283, 10]),
    ("nyu", 32): ([0, 0.75, 0.8280, 0.9120, 1.0026, 1.1003], [7.3412, 7.933, 8.571, 9.2587, 10]),
    ("kitti", 64): (
        [0, 3, 3.0716, 3.1483, 3.2306, 3.3187],
        [61.1509, 65.3862, 69.9248, 74.7883, 80],
    ),
    ("kitti", 32): (
        [0, 3, 3.1509, 3.3246, 3.5244, 3.7545],
        [46.4584, 53.1668, 60.8876, 69.7734, 80],
    ),
}


@pytest.mark.parametrize("name, n", GOLDEN)
def test_thresholds_are_those_of_the_released_code(name, n):
    edges = DepthBins.sid(n, *RANGES[name]).edges
    first, last = GOLDEN[name, n]
    assert edges.shape == (n + 1,)
    torch.testing.assert_close(edges[:6], torch.tensor(first).double(), atol=5e-5, rtol=0)
    torch.testing.assert_close(edges[-5:], torch.tensor(last).double(), atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    "depth, expected",
    [
        (0.75, 0),
        (0.7500001, 1),
        (10.0, 63),
        (0.0, -1),
        (-1.0, -1),
        (1e-6, 0),
        (10.0001, -1),
        (float("nan"), -1),
        (float("inf"), -1),
        (-float("inf"), -1),
    ],
)
def test_discretize_edge_cases(depth, expected):
    assert DepthBins.sid(64, 0.75, 10).discretize(torch.tensor([depth])).item() == expected


def test_overflow_first_is_what_the_released_code_does():
    depth = torch.tensor([80.0, 80.01, 200.0, float("nan"), 0.0])
    assert DepthBins.sid(64, 3, 80, "first").discretize(depth).tolist() == [63, 0, 0, 0, -1]
    assert DepthBins.sid(64, 3, 80).discretize(depth).tolist() == [63, -1, -1, -1, -1]


def test_shape_and_dtype_are_kept():
    bins = DepthBins.sid(8, 0.75, 10).discretize(torch.rand(2, 1, 3, 4) * 12)
    assert bins.shape == (2, 1, 3, 4) and bins.dtype == torch.int64


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 128),
    st.floats(0.05, 5),
    st.floats(0.5, 100),
    st.lists(st.floats(1e-3, 120), min_size=1, max_size=30),
)
def test_every_depth_lies_within_its_bin(n, alpha, width, depths):
    bins = DepthBins.sid(n, alpha, alpha + width)
    assert (bins.edges.diff() > 0).all() and len(bins) == n
    depth = torch.tensor(depths, dtype=torch.float64)
    for d, i in zip(depth, bins.discretize(depth), strict=True):
        if i >= 0:
            assert bins.edges[i] < d <= bins.edges[i + 1]
        else:
            assert d > bins.edges[-1]


@pytest.mark.parametrize("n, alpha, beta", [(1, 1, 10), (64, 0, 10), (64, 10, 1), (2.5, 1, 2)])
def test_bad_bins_are_refused(n, alpha, beta):
    with pytest.raises(ValueError, match="bins|alpha"):
        DepthBins.sid(n, alpha, beta)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Known: ignore, first"):
        DepthBins.sid(8, 1, 2, "last")
    with pytest.raises(ValueError, match="Unknown depth range 'nyu3'. Known ranges: rooms, nyu"):
        depth_range("nyu3")
    with pytest.raises(ValueError, match="pair"):
        depth_range(3.0)
