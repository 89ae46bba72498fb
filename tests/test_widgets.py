"""The controls call the functions of `plots` with what they show."""

import matplotlib.pyplot as plt
import pytest
import torch

from mde_utils import plots, widgets

K = torch.tensor([[20.0, 0, 10], [0, 20, 6], [0, 0, 1]])
DEPTH = torch.linspace(2, 60, 12 * 20).view(1, 12, 20)


def test_the_view_turns(monkeypatch):
    seen = []
    monkeypatch.setattr(
        plots, "plot_point_cloud", lambda *tensors, **options: seen.append((tensors, options))
    )
    image = torch.rand(3, 12, 20)
    widget = widgets.turn_point_cloud(image, DEPTH, K, farthest=30, title="a street")
    turn, rise, farthest = widget.children[:3]
    widget.update()
    turn.value, rise.value, farthest.value = -20, 45, 50
    (first, *_, last) = [options for _, options in seen]
    assert (first["turn"], first["rise"], first["farthest"]) == (12, 14, 30)
    assert (last["turn"], last["rise"]) == (-20, 45) and abs(last["farthest"] - 50) <= 0.5
    assert first["title"] == "a street" and first["points"] == 20_000
    assert all(a is b for a, b in zip(seen[0][0], (image, DEPTH, K), strict=True))
    assert farthest.max == 60 and farthest.min > 2  # some point stays


def test_every_place_of_the_sliders_draws():
    widget = widgets.turn_point_cloud(torch.rand(3, 12, 20), DEPTH, K)
    turn, rise, farthest = widget.children[:3]
    for control in (turn, rise, farthest):
        for value in (control.min, control.max):
            control.value = value
            plots.plot_point_cloud(
                torch.rand(3, 12, 20),
                DEPTH,
                K,
                turn=turn.value,
                rise=rise.value,
                farthest=farthest.value,
            )
            plt.close("all")


def test_no_depth():
    with pytest.raises(ValueError, match="no point to draw"):
        widgets.turn_point_cloud(torch.rand(3, 12, 20), torch.zeros(1, 12, 20), K)
