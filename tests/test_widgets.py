"""The controls call the functions of `plots` with what they show."""

import matplotlib.pyplot as plt
import pytest
import torch

from mde_utils import plots, widgets

K = torch.tensor([[20.0, 0, 10], [0, 20, 6], [0, 0, 1]])
DEPTH = torch.linspace(2, 60, 12 * 20).view(1, 12, 20)


def test_the_view_turns(monkeypatch):
    seen, plain = [], plots.plot_point_cloud

    def watched(*tensors, **options):
        seen.append((tensors, options))
        return plain(*tensors, **options)

    monkeypatch.setattr(plots, "plot_point_cloud", watched)
    image = torch.rand(3, 12, 20)
    turn, rise, farthest, picture = widgets.turn_point_cloud(
        image, DEPTH, K, farthest=30, title="a street"
    ).children
    before = bytes(picture.value)
    assert before.startswith(b"\x89PNG")
    turn.value, rise.value, farthest.value = -20, 45, 50
    assert bytes(picture.value) != before
    (first, *_, last) = [options for _, options in seen]
    assert (first["turn"], first["rise"], first["farthest"]) == (12, 14, 30)
    assert (last["turn"], last["rise"]) == (-20, 45) and abs(last["farthest"] - 50) <= 0.5
    assert first["title"] == "a street" and first["points"] == 20_000
    assert all(a is b for a, b in zip(seen[0][0], (image, DEPTH, K), strict=True))
    assert farthest.max == 60 and farthest.min > 2  # some point stays
    assert not plt.get_fignums()


def test_every_place_of_the_sliders_draws():
    *controls, picture = widgets.turn_point_cloud(torch.rand(3, 12, 20), DEPTH, K).children
    for control in controls:
        for value in (control.min, control.max):
            before = bytes(picture.value)
            control.value = value
            assert bytes(picture.value) != before


def test_no_depth():
    with pytest.raises(ValueError, match="no point to draw"):
        widgets.turn_point_cloud(torch.rand(3, 12, 20), torch.zeros(1, 12, 20), K)
