"""Pictures say what they show: titles, units, colour bars in metres, the right bars and masks."""

from dataclasses import replace

import matplotlib
import pandas as pd
import pytest
import torch
from torch import nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mde_utils import plots
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import dissect


class Net(nn.Module):
    depth_range = (0.75, 10.0)

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, 2, 1)

    def forward(self, image):
        return self.layer(image).abs().mean(1, keepdim=True) * 5 + 1


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture
def items():
    g = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.rand(3, 24, 32, generator=g),
            "depth": torch.rand(1, 24, 32, generator=g) * 9 + 0.5,
            "normal": nn.functional.normalize(torch.rand(3, 24, 32, generator=g) - 0.5, dim=0),
            "label": torch.randint(0, 5, (24, 32), generator=g),
        }
        for _ in range(3)
    ]


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(plt.Text))


def test_items(items):
    figure = plots.plot_items(items, ("image", "depth", "normal", "label"))
    assert len(figure.axes) == 4 * 3 + 1 and "depth [m]" in texts(figure)


def test_depth_without_measurement_is_not_drawn(items):
    items[0]["depth"][0, :5] = 0
    fig, ax = plt.subplots()
    shown = plots.show_depth(ax, items[0]["depth"])
    assert shown.get_array().mask[:5].all() and not shown.get_array().mask[5:].any()


def test_predictions(items):
    net = Net().train()
    figure = plots.plot_predictions({"one": net, "two": net}, items)
    words = texts(figure)
    assert all(w in words for w in ("ground truth", "one", "two", "depth [m]", "mean |error|"))
    assert net.training and not net.layer._forward_hooks


def test_histogram_counts_what_lies_in_the_bins(items):
    bins = DepthBins.sid(16, 0.75, 10)
    depth = torch.tensor([0.0, 0.5, 5.0, 5.0, 20.0])
    figure = plots.plot_depth_histogram({"a": depth}, bins)
    line = figure.axes[0].lines[0].get_ydata()
    assert line.sum() == pytest.approx(100) and line[0] == pytest.approx(100 / 3)
    assert "a (2 of 16 bins, 75% of pixels)" in texts(figure)


def test_units_have_a_bar_a_bin_and_mark_the_assigned_one(items):
    seen = dissect(Net(), items, ["layer"])
    figure = plots.plot_units(seen, "layer", units=[0, 3])
    for ax, unit in zip(figure.axes, (0, 3), strict=False):
        heights = [bar.get_height() for bar in ax.patches]
        assert heights == pytest.approx(seen.response["layer"][unit].tolist(), nan_ok=True)
        marked = [i for i, b in enumerate(ax.patches) if b.get_facecolor()[:3] == plots.PALETTE[3]]
        assert marked == [unit]
    assert "depth [m]" in texts(figure) and "“paper”" in texts(figure)
    assert f"Mean DS {seen.mean('layer'):.3f}; without tuning 0.000 (flat)" in texts(figure)
    with pytest.raises(ValueError, match="'other' was not dissected. Known: layer"):
        plots.plot_units(seen, "other")


def test_selectivity_shows_units_and_floors(items):
    seen = dissect(Net(), items, ["layer"])
    figure = plots.plot_selectivity({"a": seen, "b": seen})
    words = texts(figure)
    assert "depth selectivity (paper)" in words and "uniform unit" in words and "a" in words
    dots = sum(
        len(c.get_offsets()) for c in figure.axes[0].collections if hasattr(c, "get_offsets")
    )
    assert dots >= 16
    other = replace(seen, about={"dataset": "elsewhere"}, images=7)
    words = texts(plots.plot_selectivity({"a": seen, "b": other}))
    assert "list, 3 images" in words and "elsewhere, 7 images" in words
    with pytest.raises(ValueError, match="different definitions"):
        plots.plot_selectivity({"a": seen, "b": seen.under("reference")})


def test_unit_maps_pick_the_image_with_most_pixels_in_the_bin(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    figure = plots.plot_unit_maps({"a": net}, {"a": seen}, items=items, layer="layer", units=[2, 5])
    assert len(figure.axes) == 2 * 3
    bins = seen.bins["layer"]
    inside = [(bins.discretize(plots.predict(net, item)) == 2).sum() for item in items]
    best = items[int(torch.tensor(inside).argmax())]["image"].permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(figure.axes[0].images[0].get_array().data), best)
    mask = figure.axes[1].images[0].get_array()
    assert mask.sum() == max(inside)
    assert f"{bins.edges[2]:.2f}–{bins.edges[3]:.2f} m" in texts(figure)


def test_training_curves():
    frame = pd.DataFrame(
        {
            "epoch": [1, 2],
            "depth_loss": [3.0, 2.0],
            "val_d1": [0.3, 0.4],
            "val_rms": [2.0, 1.0],
            "val_selectivity_dec_3": [0.2, 0.3],
        }
    )
    figure = plots.plot_training({"baseline": frame, "selective": frame})
    words = texts(figure)
    assert len(figure.axes) == 4 and "selectivity of dec_3" in words and "RMS [m]" in words
