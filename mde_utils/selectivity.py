"""How strongly a unit answers to one range of depth: average response, depth selectivity, and the
two losses that train for it (You et al. 2021, sections 3 and 4).

Two definitions, and every printed number should say which:

`"paper"`
    The formulas of the paper: |mean| in training and evaluation alike; bins that hold no pixel
    take part in neither the maximum nor the mean; a unit whose assigned bin is absent leaves the
    average; depth beyond the last edge is no measurement.
`"reference"`
    The released code to the last digit: bins without pixels count as zero responses; absent units
    score 0 and stay in the divisor; the *loss* takes |A| before the mean over a bin, the evaluation
    after; depth beyond the last edge falls into bin 0.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from mde_utils.depth_bins import MAX_BINS, DepthBins, depth_range
from mde_utils.processes import rank_and_world, sum_over_processes

DEFINITIONS = ("paper", "reference")
METHODS = ("assign", "reg")
EPS = 1e-15  # the paper's epsilon in the divisors

# Bounds the (images, bins, cells) table of one product, in elements: 64 MiB of float32.
_TABLE = 2**24
# Pixels whose activations are added up in float32 before the sum goes on in float64.
_RUN = 256


def check_definition(definition: str) -> str:
    """The definition itself, or a ValueError that names the known ones."""
    if definition not in DEFINITIONS:
        raise ValueError(f"Unknown definition {definition!r}. Known: {', '.join(DEFINITIONS)}.")
    return definition


# ------------------------------ average response, equation 1


def average_response(activation: Tensor, bins: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """Average response of each unit to each depth bin (You et al. 2021, equation 1): the mean of
    its activation, bilinearly upsampled to the bins' size, over the pixels of the bin.

    Args:
        activation: (B, K, h, w), any floating dtype; gradients flow through it.
        bins: (B, H, W) or (B, 1, H, W) integers, −1 = not in any bin.
        num_bins: N_b.

    Returns:
        response (K, N_b) float64 in the activation's unit, 0 where a bin is empty; and pixel counts
        (N_b,) float64.
    """
    sums, counts = pool_by_bin(activation, bins, num_bins)
    return mean_response(sums, counts), counts


def mean_response(sums: Tensor, counts: Tensor) -> Tensor:
    """Equation 1 from its sums (K, N_b), of however many batches, and counts (N_b,)."""
    return sums / (counts + EPS)


# ------------------------------ depth selectivity, equations 2 and 3


def depth_selectivity(
    response: Tensor,
    counts: Tensor | None = None,
    target: Tensor | None = None,
    definition: str = "paper",
) -> Tensor:
    """Depth selectivity DS = (max − rest) / (max + rest) of each unit, from its average responses.

    You et al. 2021, equation 2: `max` is the largest |response| over the bins, `rest` the mean
    of the others. With `target` (equation 5) the assigned bin stands in for the largest one, and
    DS reaches down to −1.

    Args:
        response: (K, N_b) average response per bin, any sign.
        counts: (N_b,) pixels per bin; None = every bin holds some.
        target: (K,) int64 assigned bins, or None for the largest.
        definition: `"paper"` or `"reference"` (see the module).

    Returns:
        (K,) in the dtype of `response`. `"paper"`: NaN for a unit that has no such number: its
        assigned bin holds no pixel, or fewer than two bins do. `"reference"`: 0 for a unit whose
        assigned bin holds no pixel.
    """
    check_definition(definition)
    if response.ndim != 2 or response.shape[1] < 2:
        raise ValueError(f"Responses must be (K, N_b >= 2); got {tuple(response.shape)}.")
    num_bins = response.shape[1]
    populated = torch.ones(num_bins, dtype=torch.bool, device=response.device)
    if counts is not None:
        if counts.shape != (num_bins,):
            raise ValueError(f"counts must be ({num_bins},); got {tuple(counts.shape)}.")
        populated = counts.to(response.device) > 0
    magnitude = torch.where(populated, response.abs(), 0)
    if target is None:
        chosen, present = magnitude.amax(1), populated.any()
    else:
        target = target.to(response.device)
        chosen = magnitude.gather(1, target[:, None])[:, 0]
        present = populated[target]
    # In the paper's definition the mean runs over bins with pixels; the code divides by N_b − 1.
    others = (populated.sum() - 1).clamp(min=1) if definition == "paper" else num_bins - 1
    rest = (magnitude.sum(1) - chosen) / others
    selectivity = (chosen - rest) / (chosen + rest + EPS)
    if definition == "paper":
        return torch.where(present & (populated.sum() > 1), selectivity, math.nan)
    return torch.where(present, selectivity, 0) if target is not None else selectivity


def selectivity_floors(counts: Tensor, definition: str = "paper", *, draws: int = 20_000) -> dict:
    """What says nothing: the selectivity of units without any tuning at this bin occupancy.

    The paper's equation 3 is the mean of a random unit, E[DS] = 1/3, where every bin holds pixels.
    Under `"reference"` empty bins alone make a unit look selective; under `"paper"` few bins
    still widen the spread of a random unit.

    Args:
        counts: (N_b,) pixels per bin.

    Returns:
        `flat`: a unit with the same response in every bin that holds pixels; `uniform`: the
        mean over units with independent uniform responses (equation 3, by Monte Carlo with a fixed
        seed); `populated` and `bins`.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64).cpu()
    random = torch.rand(draws, len(counts), generator=torch.Generator().manual_seed(0))
    random = random.double() * (counts > 0)
    flat = (counts > 0).double()[None]
    return {
        "flat": depth_selectivity(flat, counts, definition=definition).item(),
        "uniform": depth_selectivity(random, counts, definition=definition).mean().item(),
        "populated": int((counts > 0).sum()),
        "bins": len(counts),
    }


# ------------------------------ losses, equations 4 and 5


class SelectivityLoss:
    """Selectivity of a batch, to be added to a depth loss with a negative weight:
    `loss = depth_loss + imde_alpha * selectivity(acts, depth)` with imde_alpha = −0.1.

    You et al. 2021, equations 4 (`"reg"`, the largest bin of each unit) and 5 (`"assign"`, the
    bin assigned to it); the sum over layers of the mean over units.

    Under `torch.distributed` sums and counts are added over processes before the ratio, so that
    processes with a part of the batch each have the selectivity of the whole batch, and, with
    gradients averaged over processes, its gradient.

    Args:
        bins_range: (alpha, beta) in metres, or a data set's name.
        method: `"assign"` or `"reg"`.
        definition: `"paper"` or `"reference"` (see the module).
        distributed: None = where `torch.distributed` is initialised.
    """

    def __init__(
        self,
        bins_range,
        method: str = "assign",
        definition: str = "paper",
        *,
        distributed: bool | None = None,
    ):
        if method not in METHODS:
            raise ValueError(f"Unknown method {method!r}. Known: {', '.join(METHODS)}.")
        self.range = depth_range(bins_range)
        self.method = method
        self.definition = check_definition(definition)
        self.distributed = distributed

    def __call__(self, acts: Mapping[str, Tensor], depth: Tensor) -> Tensor:
        """Scalar float32, larger = more selective.

        Args:
            acts: layer → (B, K, h, w), as `tap(..., detach=False)` gives them.
            depth: (B, 1, H, W) metres, 0 = no measurement.
        """
        return torch.stack(list(self.layers(acts, depth).values())).sum()

    def layers(self, acts: Mapping[str, Tensor], depth: Tensor) -> dict[str, Tensor]:
        """The terms of the sum: layer → mean selectivity of its units in this batch."""
        return self.terms(self.pool(acts, depth))

    def pool(self, acts: Mapping[str, Tensor], depth: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """layer → sums (K, N_b) and pixel counts (N_b,) of the batch, over all processes."""
        bins = {name: layer_bins(a.shape[1], self.range) for name, a in acts.items()}
        if self.definition == "reference":
            acts = {name: a.abs() for name, a in acts.items()}
        pooled = {
            name: fold_overflow(*parts, self.definition)
            for name, parts in pool_layers(acts, depth, bins).items()
        }
        if rank_and_world(self.distributed)[1] > 1:
            whole = iter(sum_over_processes([part for pair in pooled.values() for part in pair]))
            pooled = {name: (next(whole), next(whole)) for name in pooled}
        return pooled

    def terms(self, pooled: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """What `layers` returns, from what `pool` returned."""
        return {name: self._mean(name, *parts).float() for name, parts in pooled.items()}

    def _mean(self, name: str, sums: Tensor, counts: Tensor) -> Tensor:
        if not counts.any():
            raise ValueError(
                f"No pixel of the batch has a depth within {self.range} metres, so layer {name!r} "
                "has no selectivity. Leave such images out, or give the range of the data set."
            )
        response = mean_response(sums, counts)
        target = None
        if self.method == "assign":
            target = assigned_bins(*response.shape).to(response.device)
        values = depth_selectivity(response, counts, target, self.definition)
        if self.definition == "reference":
            return values.mean()
        present = ~values.detach().isnan()  # absent units are left out, and have no gradient
        return torch.where(present, values, 0).sum() / present.sum().clamp(min=1)


# ------------------------------ who answers for which depth, equation 6


def assigned_bins(num_units: int, num_bins: int) -> Tensor:
    """The bin d_k = floor(k · N_b / K) that the assignment loss gives to each unit; int64 (K,).

    You et al. 2021, equation 6: units in order, as evenly as their number allows.
    """
    if num_units < 1 or num_bins < 1:
        raise ValueError(f"Need at least one unit and one bin; got {num_units} and {num_bins}.")
    if num_bins > num_units:
        raise ValueError(
            f"{num_units} units cannot cover {num_bins} bins: some bins would have no unit. "
            f"Use at most {num_units} bins, or a layer with more units."
        )
    return torch.arange(num_units) * num_bins // num_units


@lru_cache(maxsize=64)
def layer_bins(num_units: int, bins_range: tuple[float, float]) -> DepthBins:
    """The bins of a layer: SID with N_b = min(units, 64) (You et al. 2021, section 4)."""
    if num_units < 2:
        raise ValueError(f"A layer of {num_units} unit has no bins to tell apart; it needs 2.")
    return DepthBins.sid(min(num_units, MAX_BINS), *depth_range(bins_range))


# ------------------------------ the sums behind equation 1


def pool_by_bin(activation: Tensor, bins: Tensor, num_bins: int) -> tuple[Tensor, Tensor]:
    """The sums of equation 1: of the bilinearly upsampled activation over each bin's pixels.

    The upsampling U is linear, so sum_p (U a)_p m_p = a · (Uᵀ m): the feature maps are never
    upsampled. Each labelled pixel's four bilinear weights are scattered once into Uᵀm (bins × cells
    of the feature map), which all units share; the rest is one matrix product an image.

    Args: as `average_response`.

    Returns:
        sums (K, N_b) float64 over all B images, and pixel counts (N_b,) float64.
    """
    bins = _bin_maps(activation, bins)
    low, high = int(bins.min()), int(bins.max())
    if low < -1 or high >= num_bins:
        raise ValueError(
            f"Bins must lie in -1 … {num_bins - 1} (num_bins={num_bins}); got {low} … {high}."
        )
    bins = bins + 1  # row 0 takes what is in no bin
    (sums,) = _pool([activation], bins, num_bins + 1)
    counts = torch.bincount(bins.flatten(), minlength=num_bins + 1).double()
    return sums[:, 1:], counts[1:]


def pool_layers(
    acts: Mapping[str, Tensor], depth: Tensor, bins: Mapping[str, DepthBins]
) -> dict[str, tuple[Tensor, Tensor]]:
    """`pool_by_bin` for several layers, sharing all that can be shared.

    Layers of one resolution share one scatter, over the union of their bins' edges; each layer's
    bins are then sums of columns of the product.

    Args:
        acts: layer → (B, K, h, w).
        depth: (B, 1, H, W) metres.
        bins: layer → its depth bins.

    Returns:
        layer → sums (K, N_b + 1) and counts (N_b + 1,), float64. The last column is the overflow:
        depth beyond the last edge, or NaN.
    """
    if not acts:
        raise ValueError("No activations to pool: tap at least one layer.")
    of = {layer: tuple(bins[layer].edges.tolist()) for layer in acts}
    edges = _union(of.values())  # the finest intervals that any layer tells apart
    _bin_maps(next(iter(acts.values())), depth)
    every = DepthBins(torch.tensor(edges, dtype=torch.float64)).locate(depth)[:, 0] + 1
    counts = torch.bincount(every.flatten(), minlength=len(edges) + 1)[1:].double()
    by_size = defaultdict(list)
    for layer, activation in acts.items():
        by_size[activation.shape[-2:]].append(layer)

    result = {}
    for layers in by_size.values():
        here = _union(of[layer] for layer in layers)
        index = every  # row 0 takes what has no measurement
        if here != edges:
            coarser = torch.nn.functional.pad(_contains(here, edges, depth.device)[0] + 1, (1, 0))
            index = coarser.index_select(0, every.flatten()).view_as(every)
        sums = _pool([acts[layer] for layer in layers], index, len(here) + 1)
        for layer, part in zip(layers, sums, strict=True):
            of_sums, of_counts = (
                _contains(of[layer], fine, depth.device)[1] for fine in (here, edges)
            )
            result[layer] = part[:, 1:] @ of_sums, counts @ of_counts
    return {layer: result[layer] for layer in acts}


def fold_overflow(sums: Tensor, counts: Tensor, definition: str) -> tuple[Tensor, Tensor]:
    """(K, N_b + 1) → (K, N_b) and (N_b + 1,) → (N_b,): the overflow of `pool_layers` is
    dropped (`"paper"`) or goes into bin 0 (`"reference"`)."""
    inside = sums[..., :-1], counts[..., :-1]
    if definition == "paper":
        return inside
    first = torch.zeros(counts.shape[-1] - 1, dtype=sums.dtype, device=sums.device)
    first[0] = 1
    return inside[0] + sums[..., -1:] * first, inside[1] + counts[..., -1:] * first


def _union(edges: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(sorted(set().union(*edges)))


@lru_cache(maxsize=256)
def _contains(
    coarse: tuple[float, ...], fine: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """The interval of `coarse` that holds each interval of `fine`, of which the last lies
    beyond the last edge, as does number len(coarse) − 1: as an index, and as the matrix (fine,
    coarse) that adds up columns."""
    ends = torch.tensor([*fine[1:], math.inf], dtype=torch.float64)
    index = torch.bucketize(ends, torch.tensor(coarse, dtype=torch.float64)) - 1
    table = torch.nn.functional.one_hot(index, len(coarse)).double()
    return index.to(device), table.to(device)


def _bin_maps(activation: Tensor, bins: Tensor) -> Tensor:
    if bins.ndim == 4 and bins.shape[1] == 1:
        bins = bins[:, 0]
    if activation.ndim != 4 or bins.ndim != 3 or len(activation) != len(bins):
        raise ValueError(
            "Pooling needs an activation (B, K, h, w) and depth or bins (B, 1, H, W) of the same "
            f"images; got {tuple(activation.shape)} and {tuple(bins.shape)}."
        )
    if bins.numel() == 0:
        raise ValueError(f"Pooling needs at least one pixel; got bins of {tuple(bins.shape)}.")
    return bins


def _pool(activations: list[Tensor], bins: Tensor, num_bins: int) -> list[Tensor]:
    """Sums (K, num_bins) of activations of one resolution; every bin in 0 … num_bins − 1."""
    h, w = activations[0].shape[-2:]
    if bins.shape[1:] == (h, w):  # U is the identity
        sorted_bins = _sort(bins.flatten(), num_bins)
        return [_SumByBin.apply(a.float(), bins, *sorted_bins).mT for a in activations]
    step = max(1, _TABLE // (num_bins * (h + 1) * (w + 1)))  # images at a time
    sums: list = [0] * len(activations)
    # Under autocast the products would run in half precision.
    with torch.autocast(bins.device.type, enabled=False):
        for some, *parts in zip(
            bins.split(step), *(a.split(step) for a in activations), strict=True
        ):
            table = _bin_table(some, num_bins, h, w)
            for k, part in enumerate(parts):
                part = part.float()
                # A gradient of another memory format than the activation's would slow down the
                # rest of the backward pass.
                if part.stride(1) == 1:  # channels last
                    products = (table @ part.permute(0, 2, 3, 1).flatten(1, 2)).mT
                else:
                    products = part.flatten(2) @ table.mT
                sums[k] = sums[k] + products.double().sum(0)
    return sums


def _sort(bins: Tensor, num_bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (P,) in the order of their bins, where each bag of them begins, and the bags of each
    bin as a matrix (num_bins, bags): a bag has at most `_RUN` pixels of one bin, or none."""
    # Few bits are sorted faster.
    order = bins.to(torch.uint8 if num_bins <= 256 else torch.int32).sort(stable=True).indices
    sizes = torch.bincount(bins, minlength=num_bins)
    ends = sizes.cumsum(0)
    runs = torch.arange(0, len(bins), _RUN, device=bins.device)
    bags = torch.cat([ends - sizes, runs]).sort().values
    owner = torch.searchsorted(ends, bags, right=True).clamp(max=num_bins - 1)
    return order, bags, torch.nn.functional.one_hot(owner, num_bins).double().mT


class _SumByBin(torch.autograd.Function):
    """Sums (num_bins, K) float64 of an activation (B, K, h, w) over the pixels of each bin.

    What a product with a one-hot table (pixels, num_bins) would give, at a fraction of its cost:
    the pixels of a bin are added up in float32, a bag at a time, and the bags in float64; and the
    gradient of a pixel is that of its bin.
    """

    @staticmethod
    def forward(ctx, activation, bins, order, bags, of_bin) -> Tensor:
        ctx.save_for_backward(bins)
        ctx.last = activation.stride(1) == 1
        rows = activation.detach().permute(0, 2, 3, 1).flatten(0, 2).contiguous()
        return of_bin @ torch.nn.functional.embedding_bag(order, rows, bags, mode="sum").double()

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (bins,) = ctx.saved_tensors
        rows = gradient.float().contiguous().index_select(0, bins.flatten())
        image = rows.unflatten(0, bins.shape).permute(0, 3, 1, 2)
        # In another memory format than the activation's it would slow down the rest of the pass.
        return image if ctx.last else image.contiguous(), None, None, None, None


@torch.no_grad()
def _bin_table(bins: Tensor, num_bins: int, h: int, w: int) -> Tensor:
    """Uᵀm: (B, num_bins, h·w), how much each cell's value counts in each bin's sum."""
    b, height, width = bins.shape
    cell, weights = _taps(height, width, h, w, bins.device)
    # One cell of margin right and below, so that the four taps lie at fixed offsets of the first.
    margin = (h + 1) * (w + 1)
    index = torch.add(cell, bins.reshape(b, -1), alpha=margin)
    size = num_bins * margin
    table = torch.zeros(b, size + w + 2, device=bins.device)
    for offset, weight in zip((0, 1, w + 1, w + 2), weights, strict=True):
        table.narrow(1, offset, size).scatter_add_(1, index, weight.expand(b, -1))
    table = table[:, :size].view(b, num_bins, h + 1, w + 1)
    table[..., h - 1, :] += table[..., h, :]
    table[..., w - 1] += table[..., w]
    return table[..., :h, :w].reshape(b, num_bins, h * w)


@lru_cache(maxsize=32)
def _taps(height: int, width: int, h: int, w: int, device: torch.device):
    """First cell (H·W,) and the four weights (4, H·W) of bilinear upsampling (h, w) → (H, W),
    align_corners=False, on a grid with a margin of one cell right and below."""

    def axis(n: int, small: int) -> tuple[Tensor, Tensor]:
        x = (torch.arange(n, dtype=torch.float64) + 0.5) * (small / n) - 0.5
        x = x.clamp(0, small - 1)
        first = x.floor()
        return first.long(), x - first

    (i, v), (j, u) = axis(height, h), axis(width, w)
    cell = i[:, None] * (w + 1) + j
    corners = [(1 - v, 1 - u), (1 - v, u), (v, 1 - u), (v, u)]
    weights = torch.stack([(a[:, None] * b).flatten() for a, b in corners])
    return cell.flatten().to(device), weights.float().to(device)
