"""What an epoch logs."""

from __future__ import annotations

from torch import Tensor

from mde_utils.processes import gather
from mde_utils.selectivity import assigned_bins, depth_selectivity, mean_response
from mde_utils.training.step import Losses


class Tally:
    """Running sums of what an epoch logs; they travel with a checkpoint."""

    def __init__(self, state: dict | None = None):
        state = state or {}
        self.sums: dict[str, Tensor] = state.get("sums", {})
        self.weights: dict[str, float] = state.get("weights", {})
        self.layers: dict[str, list[Tensor]] = state.get("layers", {})
        self.clock: dict[str, float] = state.get("clock", {"seconds": 0.0, "data_seconds": 0.0})

    def state_dict(self) -> dict:
        def cpu(value):
            return value.cpu() if isinstance(value, Tensor) else value

        return {
            "sums": {k: cpu(v) for k, v in self.sums.items()},
            "weights": dict(self.weights),
            "layers": {k: [cpu(v) for v in values] for k, values in self.layers.items()},
            "clock": dict(self.clock),
        }

    def add(self, name: str, value, weight: float) -> None:
        """One more value of a mean. Tensors stay where they are: reading them would wait."""
        value = value.detach().double() if isinstance(value, Tensor) else value
        self.sums[name] = _to(self.sums.get(name, 0.0), value) + value * weight
        self.weights[name] = self.weights.get(name, 0.0) + weight

    def add_step(self, losses: Losses, images: int) -> None:
        self.add("depth_loss", losses.depth, images)
        self.add("loss", losses.loss, images)
        for name, value in losses.parts.items():
            self.add(f"train_{name}", value, images)
        if losses.term is not None:
            self.add("selectivity_term", losses.term, images)
        if losses.ratio is not None:
            self.add("gradient_ratio", losses.ratio, 1)
        for layer, (sums, counts) in losses.pooled.items():
            sums, present = sums.detach(), counts > 0
            if layer in losses.terms:
                self.add(f"train_term_{layer}", losses.terms[layer], images)
            target = assigned_bins(*sums.shape).to(sums.device)
            self.add(f"train_coverage_{layer}", present.double().mean(), images)
            self.add(f"train_absent_{layer}", (~present[target]).sum(), images)
            responds = (sums != 0).any(1)
            if layer in self.layers:
                former = [_to(value, sums) for value in self.layers[layer]]
                self.layers[layer] = [
                    former[0] + sums, former[1] + counts, former[2] | responds
                ]  # fmt: skip
            else:
                self.layers[layer] = [sums, counts, responds]

    def row(self, definition: str) -> dict[str, float]:
        """The means, over all processes; per layer the selectivity of the epoch's responses."""
        every = gather(({k: float(v) for k, v in self.sums.items()}, self.weights))
        row = {
            name: sum(sums.get(name, 0.0) for sums, _ in every)
            / sum(weights.get(name, 0.0) for _, weights in every)
            for name in every[0][0]
        }
        for layer, (sums, counts, responds) in self.layers.items():
            response = mean_response(sums, counts)
            values = depth_selectivity(response, counts, definition=definition)
            row[f"train_selectivity_{layer}"] = values.nanmean().item()
            row[f"train_collapsed_{layer}"] = int((~responds).sum())
        return row


def merged(states: list[dict]) -> dict:
    """The tallies of several processes as one; what is of the whole batch is in each of them."""
    total = dict(states[0])
    for kind in ("sums", "weights"):
        names = {name for state in states for name in state[kind]}
        total[kind] = {k: sum(state[kind].get(k, 0.0) for state in states) for k in names}
    return total


def _to(value, other):
    """What a checkpoint brought back to the CPU, where its like is now."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return value.to(other.device)
    return value
