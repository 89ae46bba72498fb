"""One streaming pass over a data set: what every unit of every layer answers to each depth.

You et al. 2021, section 3 (network dissection by depth). Sums and counts are all that is kept, so
memory does not depend on the number of images, and two dissections of one network can be added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from mde_utils.activations import check_map, evaluating, tap
from mde_utils.checkpoints import write_safetensors
from mde_utils.depth_bins import DepthBins, depth_range, find_range
from mde_utils.environment import progress
from mde_utils.passes import check_not_empty, forward, model_batches, name_of, sum_over
from mde_utils.selectivity import (
    assigned_bins,
    check_definition,
    depth_selectivity,
    fold_overflow,
    layer_bins,
    mean_response,
    pool_layers,
    selectivity_floors,
)


class _ByLayer(Mapping):
    """Layer → a tensor, computed when it is first asked for."""

    def __init__(self, layers: Iterable[str], compute: Callable[[str], Tensor]):
        self._found, self._compute = dict.fromkeys(layers), compute

    def __getitem__(self, layer: str) -> Tensor:
        if self._found[layer] is None:
            self._found[layer] = self._compute(layer)
        return self._found[layer]

    def __iter__(self):
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, eq=False)
class Dissection:
    """Average responses of units by depth bin, and what follows from them.

    Attributes:
        sums: layer → (K, N_b + 1) float64, sum of the upsampled activation over each bin's pixels;
            the last column holds depth beyond the last bin.
        pixels: layer → (N_b + 1,) float64, pixels of each bin, the same way.
        bins: layer → its depth bins.
        images: number of images seen.
        definition: `"paper"` or `"reference"` (see `selectivity`); both come
            from the same sums, see `under`.
        about: what was dissected, for titles and tables: model, data set.
    """

    sums: dict[str, Tensor]
    pixels: dict[str, Tensor]
    bins: dict[str, DepthBins]
    images: int
    definition: str = "paper"
    about: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        check_definition(self.definition)

    @property
    def layers(self) -> list[str]:
        return list(self.sums)

    @cached_property
    def response(self) -> Mapping[str, Tensor]:
        """Layer → (K, N_b) average response, in the activation's unit; 0 where a bin is empty."""
        return _ByLayer(self.sums, self._response)

    @cached_property
    def counts(self) -> Mapping[str, Tensor]:
        """Layer → (N_b,) pixels per bin."""
        return _ByLayer(self.sums, self._counts)

    @cached_property
    def selectivity(self) -> Mapping[str, Tensor]:
        """Layer → (K,) depth selectivity of each unit at its best bin."""
        return _ByLayer(self.sums, self._selectivity)

    def mean(self, layer: str) -> float:
        """The number that the paper's tables report: mean selectivity of a layer's units."""
        return self.selectivity[self._known(layer)].nanmean().item()

    def floors(self, layer: str) -> dict:
        """Selectivity of a flat and of a uniformly random unit at this layer's bin occupancy."""
        return selectivity_floors(self.counts[self._known(layer)], self.definition)

    def under(self, definition: str) -> Dissection:
        """The same pass read by the other definition."""
        return replace(self, definition=check_definition(definition))

    def summary(self) -> pd.DataFrame:
        """A row a layer: units, bins with pixels, mean selectivity, and its floors."""
        rows = []
        for layer, values in self.selectivity.items():
            floors = self.floors(layer)
            rows.append(
                {
                    "layer": layer,
                    "units": len(values),
                    "bins": floors["bins"],
                    "populated": floors["populated"],
                    "selectivity": values.nanmean().item(),
                    "flat": floors["flat"],
                    "uniform": floors["uniform"],
                    "definition": self.definition,
                    "images": self.images,
                }
            )
        return pd.DataFrame(rows).set_index("layer")

    def to_frame(self) -> pd.DataFrame:
        """A row a unit: selectivity, the bin it answers to most (with its depth range in metres),
        and its selectivity for the bin that the assignment loss would give it."""
        frames = []
        for layer, response in self.response.items():
            k, n = response.shape
            edges = self.bins[layer].edges
            best = response.abs().argmax(1)
            target = assigned_bins(k, n)
            at_target = depth_selectivity(response, self.counts[layer], target, self.definition)
            frames.append(
                pd.DataFrame(
                    {
                        "layer": layer,
                        "unit": range(k),
                        "selectivity": self.selectivity[layer].numpy(),
                        "best_bin": best.numpy(),
                        "best_from_m": edges[best].numpy(),
                        "best_to_m": edges[best + 1].numpy(),
                        "best_response": response.gather(1, best[:, None])[:, 0].numpy(),
                        "assigned_bin": target.numpy(),
                        "assigned_from_m": edges[target].numpy(),
                        "assigned_to_m": edges[target + 1].numpy(),
                        "assigned_selectivity": at_target.numpy(),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def telling_units(self, layer: str, number: int = 4) -> list[int]:
        """The most selective units of a layer, in order of their depth, among those loud enough to
        matter: the largest |response| at least a tenth of the layer's largest."""
        loudness = self.response[self._known(layer)].abs().amax(1)
        loud = (loudness > 0) & (loudness >= 0.1 * loudness.max())
        scores = torch.where(loud, self.selectivity[layer].nan_to_num(-1), -2)
        return sorted(scores.topk(min(number, int(loud.sum()))).indices.tolist())

    def __add__(self, other: Dissection) -> Dissection:
        """Both passes as one, e.g. two halves of a data set."""
        if not isinstance(other, Dissection):
            return NotImplemented
        if self.layers != other.layers or self.definition != other.definition:
            raise ValueError(
                "Only dissections of the same layers under one definition can be added; got "
                f"{self.layers} ({self.definition}) and {other.layers} ({other.definition})."
            )
        for layer in self.layers:
            if self.bins[layer] != other.bins[layer] or (
                self.sums[layer].shape != other.sums[layer].shape
            ):
                raise ValueError(f"Layer {layer!r} has other bins or units in the two dissections.")
        return replace(
            self,
            sums={k: v + other.sums[k] for k, v in self.sums.items()},
            pixels={k: v + other.pixels[k] for k, v in self.pixels.items()},
            images=self.images + other.images,
        )

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file, complete or not at all."""
        tensors = {}
        for layer in self.layers:
            tensors[f"sums/{layer}"] = self.sums[layer]
            tensors[f"pixels/{layer}"] = self.pixels[layer]
            tensors[f"edges/{layer}"] = self.bins[layer].edges
        about = {
            "layers": self.layers,
            "images": self.images,
            "definition": self.definition,
            "about": self.about,
        }
        return write_safetensors(path, tensors, {"dissection": json.dumps(about)})

    @classmethod
    def load(cls, path: str | Path) -> Dissection:
        """Read what `save` wrote."""
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No dissection at {path.name!r}: make one with dissect().save")
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads(file.metadata()["dissection"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path.name!r} holds no dissection ({error}).") from None
        layers = about.pop("layers")
        return cls(
            sums={k: tensors[f"sums/{k}"] for k in layers},
            pixels={k: tensors[f"pixels/{k}"] for k in layers},
            bins={k: DepthBins(tensors[f"edges/{k}"]) for k in layers},
            **about,
        )

    def _folded(self, layer: str) -> tuple[Tensor, Tensor]:
        return fold_overflow(self.sums[layer], self.pixels[layer], self.definition)

    def _response(self, layer: str) -> Tensor:
        return mean_response(*self._folded(layer))

    def _counts(self, layer: str) -> Tensor:
        return self._folded(layer)[1]

    def _selectivity(self, layer: str) -> Tensor:
        response, counts = self.response[layer], self.counts[layer]
        return depth_selectivity(response, counts, definition=self.definition)

    def _known(self, layer: str) -> str:
        if layer not in self.sums:
            raise ValueError(f"Layer {layer!r} was not dissected. Known: {', '.join(self.layers)}.")
        return layer


def dissect(
    model: nn.Module,
    dataset,
    layers: Iterable[str],
    *,
    bins=None,
    batch_size: int = 16,
    definition: str = "paper",
    grids: Mapping[str, tuple[int, ...]] | None = None,
) -> Dissection:
    """Average response of every unit of `layers` to each depth bin, over a data set.

    Any `nn.Module` that takes an image (B, 3, H, W) will do; its layers are named by tap or by
    module path. The model runs in evaluation mode where its parameters are; its mode is restored.

    Args:
        dataset: anything with a length that yields items with `image` and `depth`.
        layers: tap names or module paths.
        bins: (alpha, beta) in metres, a data set's name, or layer → `DepthBins`. None: the
            data set's own range, else the model's, else (with a warning) that of NYU.
        batch_size: images at a time; images of other sizes start a new batch.
        definition: `"paper"` or `"reference"`.
        grids: how the tokens of transformer layers lie (see `activations.tap`).

    """
    check_definition(definition)
    check_not_empty(dataset)
    layers = [layers] if isinstance(layers, str) else list(layers)
    given = dict(bins) if isinstance(bins, Mapping) else None
    if given is not None:
        if missing := [layer for layer in layers if layer not in given]:
            raise ValueError(f"bins names no bins for the layers {missing}.")
        if any(given[layer].overflow != "ignore" for layer in layers):
            raise ValueError(
                "Give bins without overflow='first': both definitions are read from one pass, and "
                "definition='reference' is what counts far depth to the first bin."
            )
    span = None
    if given is None:
        span = find_range(dataset, model) if bins is None else depth_range(bins)

    def bins_of(layer: str, units: int) -> DepthBins:
        return layer_bins(units, span) if given is None else given[layer]

    used: dict[str, DepthBins] = {}

    def pool(_, batch: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """A batch's sums and pixels, by what they are and layer."""
        forward(model, batch)
        for k in layers if not used else ():  # a first forward tells the numbers of units
            bins = bins_of(k, acts[k].shape[1])
            assigned_bins(acts[k].shape[1], len(bins))  # refuses more bins than units
            used[k] = bins
        pooled = pool_layers({k: acts[k] for k in layers}, batch["depth"], used)
        sums = {("sums", k): s for k, (s, _) in pooled.items()}
        return sums | {("pixels", k): n for k, (_, n) in pooled.items()}

    with tap(model, layers, grids=grids) as acts:
        totals = sum_over(model, dataset, pool, batch_size=batch_size, desc="dissect")
    sums = {k: totals["sums", k].cpu() for k in layers}
    result = Dissection(
        sums=sums,
        pixels={k: totals["pixels", k].cpu() for k in layers},
        bins={k: bins_of(k, len(sums[k])) for k in layers},  # also where there was no forward
        images=len(dataset),
        definition=definition,
        about={"model": name_of(model), "dataset": name_of(dataset)},
    )
    if not any(counts.any() for counts in result.counts.values()):
        raise ValueError(
            f"No pixel of the {len(dataset)} images has a depth inside the bins: is the depth in "
            "metres, and is this the range of the data set?"
        )
    return result


def response_spread(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    *,
    batch_size: int = 16,
    progress: Callable = progress,
) -> dict[str, Tensor]:
    """How much a unit's mean response to a depth differs from image to image.

    One pass; sums and sums of squares over images are all that is kept.

    Args:
        dissection: of this model; gives the layers, their bins and the definition.
        progress: called with `total` and `desc`, gives a bar with `update(n)`, as tqdm does.

    Returns:
        layer → (K, N_b) float64: the standard deviation, over the images that have pixels in the
        bin, of each image's mean response in it; NaN where there are fewer than two.
    """
    check_not_empty(dataset)
    totals = {k: torch.zeros(3, *sums[:, 1:].shape).double() for k, sums in dissection.sums.items()}
    bar = progress(total=len(dataset), desc="spread")
    with evaluating(model), tap(model, dissection.layers) as acts, bar:
        for _, batch in model_batches(model, dataset, batch_size=batch_size):
            forward(model, batch)
            for layer, sums in dissection.sums.items():
                check_map(layer, acts[layer], known=len(sums))
            for i, depth in enumerate(batch["depth"].split(1)):
                one = {k: act[i : i + 1] for k, act in acts.items()}
                for k, part in pool_layers(one, depth, dissection.bins).items():
                    sums, counts = fold_overflow(*part, dissection.definition)
                    mean = torch.where(counts > 0, sums / counts, 0)
                    there = (counts > 0).expand_as(mean)
                    totals[k] += torch.stack([there, mean, mean.square()]).cpu()
            bar.update(len(batch["depth"]))
    found = {}
    for layer, (n, total, squares) in totals.items():
        variance = (squares - total.square() / n) / (n - 1)
        found[layer] = torch.where(n > 1, variance.clamp(min=0).sqrt(), torch.nan)
    return found
