"""Pictures say what they show: titles, units, colour bars in metres, the right bars and masks."""

import re
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from mde_utils import plots, predict
from mde_utils.attacks import Repair, fgsm, trace_errors
from mde_utils.depth_bins import DepthBins
from mde_utils.dissection import dissect
from mde_utils.interventions import ablation_curve, correction_effects
from mde_utils.paper import MEASURED, comparison
from mde_utils.views.explorer import Explorer
from mde_utils.views.plots.style import ASSIGNED, SHEET, colours, depth_axis, styled


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


# ------------------------------------------------------------------ style


def test_the_users_style_is_neither_changed_nor_taken_over(items):
    with plt.rc_context({"axes.spines.top": True, "xtick.labelsize": 30, "font.size": 30}):
        before = dict(plt.rcParams)
        figure = plots.plot_depth_histogram({"a": items[0]["depth"]}, DepthBins.sid(16, 0.75, 10))
        figure.draw_without_rendering()
        assert dict(plt.rcParams) == before
    (ax,) = figure.axes
    assert not ax.spines.top.get_visible()
    assert {label.get_fontsize() for label in ax.get_xticklabels()} == {8}
    with pytest.raises(ValueError, match="differ in size"):  # nor after an error
        plots.plot_projection(items[0]["image"], torch.ones(1, 2, 2))
    assert plt.rcParams["axes.spines.top"] and SHEET.is_file()


def test_no_type_is_smaller_than_8_points_at_850_pixels(items):
    seen = dissect(Net(), items, ["layer"])
    explorer = explored(items)
    figures = [
        plots.plot_items(items, ("image", "depth", "normal", "label")),
        plots.plot_units(seen, "layer"),
        plots.plot_unit(explorer.view(0), "layer", 5),
        plots.plot_edit(explorer.view(0).edit({"layer": [1]})),
        plots.plot_effects(explorer.effects("layer"), explorer.dissection),
        plots.plot_training({"a": history()}),
        plots.plot_tradeoff(trainings()),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        assert figure.get_size_inches()[0] <= 8.5 and figure.dpi == 100
        said = [t for t in figure.findobj(plt.Text) if t.get_text() and t.get_visible()]
        assert min(t.get_fontsize() for t in said) >= 8


def test_a_notebook_shows_further_figures():
    @styled
    def first():
        plt.ion()  # as a kernel's backend does when it starts
        return plt.figure()

    with plt.ioff():
        first()
        assert plt.isinteractive()


def test_a_network_has_its_colour_wherever_it_stands():
    first = colours(["baseline", "assign"])
    assert first == colours(["assign", "baseline"])
    assert colours(["selective"])["selective"] == first["assign"]
    several = colours(["x", "assign −1", "assign −3", "baseline", "reg", "y"])
    assert several["baseline"] == first["baseline"] and len(set(several.values())) == 6


@given(
    far=st.floats(0.3, 300),
    ratio=st.floats(1.05, 100),
    number=st.integers(2, 64),
    few=st.booleans(),
)
def test_metres_stand_where_they_lie_among_the_bins(far, ratio, number, few):
    edges = DepthBins.sid(number, far / ratio, far).edges.numpy()
    _, ax = plt.subplots()
    depth_axis(ax, DepthBins.sid(number, far / ratio, far), few=few)
    places, words = ax.get_xticks(), [t.get_text() for t in ax.get_xticklabels()]
    plt.close()
    assert len(places) >= 2 and (np.diff(places) > 0).all()
    found = np.interp(places, np.arange(number + 1) - 0.5, edges)
    np.testing.assert_allclose([float(w) for w in words], found, rtol=0.006)
    assert edges[1] <= found.min() * 1.000001 and found.max() <= edges[-1] * 1.000001


# ------------------------------------------------------------------ pictures


def test_items_need_no_depth_that_is_not_asked_for(items):
    bare = [{k: v for k, v in item.items() if k != "depth"} for item in items]
    plots.plot_items(bare, ("image", "normal", "label"))
    item = stereo_item()
    figure = plots.plot_items([{"image": item["image"], "hint": item["depth"]}], ["image", "hint"])
    assert "depth hints" in texts(figure) and figure.axes[1].images[0].get_clim() == (0, 6)


def test_items_with_depth_that_is_nan(items):
    items[0]["depth"][0, :5], items[0]["depth"][0, 5:8] = torch.nan, 0
    figure = plots.plot_items(items)
    top = max(item["depth"].nan_to_num(0).max().item() for item in items)
    assert figure.axes[3].images[0].get_clim() == (0, pytest.approx(top))
    hidden = figure.axes[3].images[0].get_array().mask
    assert hidden[:8].all() and not hidden[8:].any()


def test_predictions_leave_the_model_as_it_was(items):
    net = Net().train()
    words = texts(plots.plot_predictions({"one": net, "two": net}, items))
    assert all(w in words for w in ("ground truth", "one", "two", "depth [m]", "mean |error|"))
    assert net.training and not net.layer._forward_hooks


def test_projection_draws_each_measured_pixel_near_ones_last():
    depth = torch.zeros(1, 24, 32)
    for (y, x), z in {(3, 5): 40.0, (4, 5): 4.0, (20, 30): 12.0}.items():
        depth[0, y, x] = z
    figure = plots.plot_projection(torch.rand(3, 24, 32), depth)
    (dots,) = figure.axes[0].collections
    assert dots.get_offsets().tolist() == [[5, 3], [30, 20], [5, 4]]
    assert dots.get_array().tolist() == [40, 12, 4] and dots.get_clim() == (4, 40)
    assert "depth [m]" in texts(figure) and "3 points, 0.4% of the pixels" in texts(figure)
    plots.plot_projection(torch.rand(3, 24, 32), torch.zeros(1, 24, 32))  # none is a picture too
    with pytest.raises(ValueError, match="24x32 and"):
        plots.plot_projection(torch.rand(3, 24, 32), torch.ones(1, 12, 16))


INTRINSICS = torch.tensor([[30.0, 0, 15.5], [0, 30.0, 11.5], [0, 0, 1]])


def cloud(figure):
    (dots,) = figure.axes[0].collections
    return dots.get_offsets(), dots.get_facecolors()[:, :3], dots.get_sizes()


def test_point_cloud_without_turning_is_the_image_again():
    """Seen along the camera's own axis a flat wall keeps its shape: rows, columns and colours."""
    image = torch.rand(3, 24, 32)
    options = {"turn": 0.0, "rise": 0.0}
    figure = plots.plot_point_cloud(image, torch.full((1, 24, 32), 4.0), INTRINSICS, **options)
    places, colours, _ = cloud(figure)
    order = sorted(range(len(places)), key=lambda i: (-round(places[i][1], 5), places[i][0]))
    shown = torch.from_numpy(colours[order]).float().view(24, 32, 3)
    assert torch.allclose(shown, image.permute(1, 2, 0), atol=1e-5)
    width, height = places.max(0) - places.min(0)
    assert width / height == pytest.approx(31 / 23)
    assert "768 points, 4.0–4.0 m" in texts(figure) and " m" in texts(figure)
    # A copy of a half of the size looks into the same space.
    small = plots.plot_point_cloud(image, torch.full((1, 12, 16), 4.0), INTRINSICS, **options)
    assert cloud(small)[0].mean(0).tolist() == pytest.approx(places.mean(0).tolist(), abs=1e-6)
    half = cloud(small)[0].max(0) - cloud(small)[0].min(0)
    assert half.tolist() == pytest.approx([width * 30 / 31, height * 22 / 23], rel=1e-6)


def test_point_cloud_draws_the_far_first_and_keeps_to_its_limits():
    depth = torch.linspace(2, 50, 24).view(1, 24, 1).expand(1, 24, 32).clone()
    depth[0, :, 0], depth[0, 0, 1] = 0, torch.nan
    image = (depth.nan_to_num() / 50).expand(3, -1, -1)
    options = {"farthest": 30.0, "title": "Ours", "turn": 0.0, "rise": 0.0}
    figure = plots.plot_point_cloud(image, depth, INTRINSICS, **options)
    places, colours, _ = cloud(figure)
    count = ((depth > 0) & (depth <= 30)).sum().item()
    assert len(places) == count and f"Ours · {count} points, 2.0–29.1 m" in texts(figure)
    assert (colours[:-1, 0] >= colours[1:, 0]).all() and colours[0, 0] > colours[-1, 0]
    few = plots.plot_point_cloud(torch.rand(3, 24, 32), depth, INTRINSICS, points=100)
    assert 70 < len(cloud(few)[0]) < 130
    with pytest.raises(ValueError, match="No pixel has a depth up to 1 m"):
        plots.plot_point_cloud(torch.rand(3, 24, 32), depth, INTRINSICS, farthest=1.0)


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
        marked = [i for i, b in enumerate(ax.patches) if b.get_facecolor()[:3] == ASSIGNED]
        assert marked == [unit]
    assert "depth [m]" in texts(figure) and "“paper”" in texts(figure)
    assert f"Mean DS {seen.mean('layer'):.3f}; without tuning 0.000 (flat)" in texts(figure)
    with pytest.raises(ValueError, match="'other' was not dissected. Known: layer"):
        plots.plot_units(seen, "other")


def test_selectivity_shows_units_and_floors(items):
    seen = dissect(Net(), items, ["layer"])
    assert "depth selectivity (paper)" in texts(plots.plot_selectivity({"a": seen, "b": seen}))
    other = replace(seen, about={"dataset": "elsewhere"}, images=7)
    words = texts(plots.plot_selectivity({"a": seen, "b": other}))
    assert "list, 3 images" in words and "elsewhere, 7 images" in words
    with pytest.raises(ValueError, match="different definitions"):
        plots.plot_selectivity({"a": seen, "b": seen.under("reference")})


def silenced(net: Net, unit: int) -> Net:
    with torch.no_grad():
        net.layer.weight[unit], net.layer.bias[unit] = 0, 0
    return net


def test_unit_pairs_show_the_same_unit_in_each_network(items):
    models = {"reg": silenced(Net(), 3), "assign": Net()}
    seen = {name: dissect(net, items, ["layer"]) for name, net in models.items()}
    figure = plots.plot_unit_pairs(models, seen, items=items, layer="layer", units=[3, 6])
    rows = [figure.axes[:6], figure.axes[6:]]
    bins = seen["reg"].bins["layer"]
    for row, unit in zip(rows, (3, 6), strict=True):
        inside = [bins.discretize(item["depth"])[0] == unit for item in items]
        best = max(range(len(items)), key=lambda i: inside[i].sum())
        image = items[best]["image"]
        assert torch.equal(torch.from_numpy(row[0].images[0].get_array()), image.permute(1, 2, 0))
        assert torch.equal(torch.from_numpy(row[1].images[0].get_array()) > 0, inside[best])
        for i, (name, net) in enumerate(models.items()):
            bars, picture = row[2 + 2 * i : 4 + 2 * i]
            heights = [bar.get_height() for bar in bars.patches]
            expected = seen[name].response["layer"][unit].tolist()
            assert heights == pytest.approx(expected, nan_ok=True)
            with torch.no_grad():
                shown = net.layer(image[None])[0, unit].abs()
            assert torch.allclose(torch.from_numpy(picture.images[0].get_array()), shown)
    assert "reg · silent" in texts(figure) and texts(figure).count("DS ") == 3


def test_tuning_has_a_row_a_unit_relative_to_its_largest(items):
    items = [item | {"depth": item["depth"].clamp(max=6)} for item in items]
    seen = dissect(silenced(Net(), 3), items, ["layer"])
    figure = plots.plot_tuning({"one": seen, "two": seen}, "layer")
    response, counts = seen.response["layer"].abs(), seen.counts["layer"]
    assert (counts == 0).any()
    for ax in figure.axes[:2]:
        shown = ax.images[0].get_array()
        assert shown.mask[3].all() and shown.mask[:, counts == 0].all()
        drawn = torch.from_numpy(shown.filled(0)).double()
        expected = response / response.amax(1, keepdim=True).clamp(min=1e-30)
        assert torch.allclose(drawn, expected)
        assert ax.lines[0].get_xdata().tolist() == list(range(8))
    words = texts(figure)
    assert f"one\nmean DS {seen.mean('layer'):.3f}" in words and "depth [m]" in words


def test_unit_maps_pick_the_image_with_most_pixels_in_the_bin(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    figure = plots.plot_unit_maps({"a": net}, {"a": seen}, items=items, layer="layer", units=[2, 3])
    assert len(figure.axes) == 2 * 3
    bins = seen.bins["layer"]
    inside = [(bins.discretize(predict(net, item)) == 2).sum() for item in items]
    best = items[int(torch.tensor(inside).argmax())]["image"].permute(1, 2, 0)
    torch.testing.assert_close(torch.from_numpy(figure.axes[0].images[0].get_array().data), best)
    mask = figure.axes[1].images[0].get_array()
    assert mask.sum() == max(inside)
    assert f"{bins.edges[2]:.2f}–{bins.edges[3]:.2f} m" in texts(figure)


def test_unit_maps_leave_out_depths_that_nobody_predicts(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    bins = seen.bins["layer"]
    drawn = torch.cat([bins.discretize(predict(net, item)).flatten() for item in items]).unique()
    empty = next(unit for unit in range(8) if unit not in drawn)
    chosen = {"items": items, "layer": "layer"}
    figure = plots.plot_unit_maps({"a": net}, {"a": seen}, **chosen, units=[empty, int(drawn[-1])])
    assert len(figure.axes) == 3 and f"unit {int(drawn[-1])}\n" in texts(figure)
    with pytest.raises(ValueError, match="No network predicts a depth in the bins of"):
        plots.plot_unit_maps({"a": net}, {"a": seen}, **chosen, units=[empty])


def history(epochs=3, layers=("dec_1", "dec_3"), **columns):
    rows = range(1, epochs + 1)
    frame = pd.DataFrame(
        {
            "epoch": rows,
            "depth_loss": [2 / e for e in rows],
            "val_d1": [0.5 + 0.1 * e / epochs for e in rows],
            "val_rms": [1 / e for e in rows],
            "gradient_ratio": [0.3 * e for e in rows],
        }
    )
    for layer in layers:
        for column, value in (
            ("train_selectivity", 0.5),
            ("val_selectivity", 0.4),
            ("train_coverage", 0.9),
            ("train_absent", 1.5),
            ("train_collapsed", 0),
            ("val_collapsed", 2),
        ):
            frame[f"{column}_{layer}"] = value
    return frame.assign(**columns)


def panel(figure, title):
    (found,) = (ax for ax in figure.axes if ax.get_title().replace("\n", " ").startswith(title))
    return found


@pytest.mark.parametrize("epochs", [1, 3, 200])
def test_training_draws_what_the_histories_say(epochs):
    names = [f"dec_{i}" for i in range(5)]
    runs = {name: history(epochs, names) for name in ("reg", "assign")}
    figure = plots.plot_training(runs)
    for i, (name, run) in enumerate(runs.items()):
        validation, training = panel(figure, "dec_3").lines[2 * i : 2 * i + 2]
        assert list(validation.get_ydata()) == [0.4] * epochs
        assert list(training.get_ydata()) == [0.5] * epochs
        d1 = panel(figure, "δ1").lines[i]
        assert list(d1.get_ydata()) == run["val_d1"].tolist()
        assert d1.get_color() == validation.get_color() == colours(runs)[name]
    assert panel(figure, "gradient ratio").get_yscale() == "log"
    figure.draw_without_rendering()
    assert all(t == int(t) for t in panel(figure, "δ1").get_xticks())


def test_training_leaves_out_what_is_not_there():
    whole = history()
    columns = {
        "gradient_ratio": "gradient ratio",
        "val_rms": "RMS [m]",
        "train_absent": "units whose",
    }
    for column, title in columns.items():
        old = whole.drop(columns=[c for c in whole if c.startswith(column)])
        assert title not in texts(plots.plot_training({"old": old})).replace("\n", " ")
        # One run that has the column is enough, and a column without any value is as none.
        assert len(panel(plots.plot_training({"old": old, "new": whole}), title).lines) > 0
    figure = plots.plot_training({"a": history(val_d1=[0.5, float("nan"), float("inf")])})
    assert list(panel(figure, "δ1").lines[0].get_xdata()) == [1]
    for nothing in ({}, {"a": pd.DataFrame()}, {"a": history().iloc[:0]}):
        assert "no epoch finished yet" in texts(plots.plot_training(nothing))
    assert "nothing to draw" in texts(plots.plot_training({"a": history()[["epoch"]]}))
    # A run keeps its colour when another gets its first epoch.
    figure = plots.plot_training({"a": pd.DataFrame(), "b": history()})
    assert panel(figure, "δ1").lines[0].get_color() == colours("ab")["b"]


def trainings(layers=("dec_3", "dec_1+dec_2"), seeds=3):
    rows = []
    for i, where in enumerate(layers):
        for seed in range(seeds):
            rows.append((where, "baseline", float("nan"), seed, 0.8 + 0.002 * seed, 0.3 + 0.1 * i))
            for j, method in enumerate(("reg", "assign")):
                for k, alpha in enumerate((-1.0, -0.01, -0.1)):
                    d1 = 0.79 - 0.01 * abs(alpha) + 0.003 * seed**2 - 0.02 * j
                    rows.append((where, method, alpha, seed, d1, 0.5 + 0.1 * k + 0.01 * seed))
    return pd.DataFrame(
        rows, columns=["layers", "method", "imde_alpha", "seed", "d1", "selectivity"]
    )


def in_order(rows):
    return pd.DataFrame(list(rows), columns=["a", "b"]).sort_values(["a", "b"]).to_numpy()


def test_tradeoff_bars_are_the_range_over_seeds_and_points_their_mean():
    table = trainings(["dec_3"])
    (ax,) = plots.plot_tradeoff(table).axes
    groups = table.fillna(0).groupby(["method", "imde_alpha"])
    bars = [s for c in ax.collections for s in c.get_segments()]
    for axis, column in enumerate(("d1", "selectivity")):
        along = [s[:, axis] for s in bars if s[0, axis] != s[1, axis]]
        expected = groups[column].agg(["min", "max"])
        # The baselines agree in their selectivity, so there is no bar to see.
        expected = expected[expected["min"] < expected["max"]].to_numpy()
        assert in_order(along) == pytest.approx(in_order(expected))
    drawn = [xy for line in ax.lines for xy in line.get_xydata()]
    means = groups[["d1", "selectivity"]].mean().to_numpy()
    assert in_order(drawn) == pytest.approx(in_order(means))
    joined = [line for line in ax.lines if line.get_ls() == "-"]
    assert len(joined) == 2
    for line in joined:  # by the weight: −.01, −.1, −1
        assert list(line.get_ydata()) == pytest.approx([0.61, 0.71, 0.51])
    at = {0.61: "−0.01", 0.71: "−0.1", 0.51: "−1"}
    assert [t.get_text() for t in ax.texts] == [at[round(t.xy[1], 2)] for t in ax.texts]
    (band,) = ax.patches
    extent = band.get_extents().transformed(ax.transData.inverted())
    assert (extent.x0, extent.x1) == pytest.approx((0.802 - 0.01, 0.802 + 0.01))
    assert not plots.plot_tradeoff(table[table.method != "baseline"]).axes[0].patches


def test_tradeoff_has_a_panel_a_set_of_layers():
    table = trainings()
    both = pd.concat([table.assign(model=m) for m in ("one", "two")])
    titles = [ax.get_title() for ax in plots.plot_tradeoff(both).axes]
    assert titles == ["one · dec_3", "one · dec_1+dec_2", "two · dec_3", "two · dec_1+dec_2"]
    assert "Mean over seeds (3)" in texts(plots.plot_tradeoff(table))
    table.loc[1, "d1"] = float("nan")  # a training without a value does not count
    assert "Mean over seeds (2–3)" in texts(plots.plot_tradeoff(table))


def test_tradeoff_refuses_what_it_cannot_draw():
    table = trainings()
    with pytest.raises(ValueError, match="The table lacks imde_alpha, d1"):
        plots.plot_tradeoff(table.drop(columns=["d1", "imde_alpha"]))
    with pytest.raises(ValueError, match="seed twice.*'method': 'reg', 'imde_alpha': -1.0"):
        plots.plot_tradeoff(table[table.method == "reg"].assign(seed=0))
    # A baseline has one setting, whatever stands for the weight that it has not.
    again = table[table.method == "baseline"].assign(imde_alpha=0.0)
    with pytest.raises(ValueError, match="seed twice.*baseline"):
        plots.plot_tradeoff(pd.concat([table, again]))


def test_ablation_shows_orders_band_and_area(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    curve = ablation_curve(net, items, seen, ["layer"], num_random=4)
    for metric, words in (("d1", "relative drop of δ1 [%]"), ("rms", "relative increase of RMS")):
        figure = plots.plot_ablation(curve, metric)
        (ax,) = figure.axes
        lines = {line.get_label(): line.get_ydata() for line in ax.lines}
        drop = 100 * curve.relative_drop(metric)
        assert lines["most selective first"] == pytest.approx(drop["most", 0].to_numpy())
        assert lines["least selective first"] == pytest.approx(drop["least", 0].to_numpy())
        mean = drop["random"].mean(axis=1).to_numpy()
        assert lines["random order: mean and range of 4"] == pytest.approx(mean)
        assert words in texts(figure) and len(ax.collections) == 1
        area = 100 * curve.area(metric).area
        assert f"area between the curves {area:.1f} %" in texts(figure)
    assert "units of layer set to zero · list, 3 images, protocol imde" in texts(figure)
    away = ablation_curve(net, items, seen, ["layer"], num_random=4, answer="mean")
    figure = plots.plot_ablation({"one": curve, "other": away, "third": curve}, columns=2)
    assert [ax.get_title().split("\n")[0] for ax in figure.axes] == ["one", "other", "third"]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1  # on one scale
    assert "set to zero" in texts(figure) and "set to mean response" in texts(figure)
    curve = ablation_curve(net, items, seen, ["layer"], orders="most")
    assert "area" not in texts(plots.plot_ablation(curve))


def test_areas_stand_beside_their_intervals_and_bands(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    curves = [ablation_curve(net, items, seen, ["layer"], num_random=4, seed=s) for s in (0, 1)]
    found = {"baseline": {"all": curves[0], "again": curves[1]}, "mine": {"all": curves[1]}}
    figure = plots.plot_areas(found, "rms")
    assert [ax.get_title() for ax in figure.axes] == ["baseline", "mine"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["all", "again"]
    areas = [curve.area("rms") for curve in curves]
    assert figure.axes[0].lines[0].get_xdata() == pytest.approx([100 * a.area for a in areas])
    band, interval = ([line[:, 0] for line in c.get_segments()] for c in figure.axes[0].collections)
    assert band == [pytest.approx([100 * a.band_low, 100 * a.band_high]) for a in areas]
    assert interval == [pytest.approx([100 * a.low, 100 * a.high]) for a in areas]
    assert "relative loss of RMS [%]" in texts(figure)


def test_correction_shows_dose_and_controls(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    frame = correction_effects(net, items, seen, ["layer"])
    figure = plots.plot_correction({"baseline": frame, "assign": frame})
    words = texts(figure)
    assert all(w in words for w in ("baseline", "assign", "δ1", "RMS [m]", "own\nprediction"))
    assert "units of layer · list, 3 images, protocol imde" in words
    dose, bars = figure.axes[:2]
    expected = frame[frame["control"] == "truth"]["d1"].tolist()
    assert [list(line.get_ydata()) for line in dose.lines[::2]] == [expected, expected]
    heights = [patch.get_height() for patch in bars.containers[0]]
    assert heights == pytest.approx(frame.query("control == 'none' or blend == 1")["d1"].tolist())
    some = correction_effects(net, items, seen, ["layer"], controls=["truth", "predicted"])
    assert "swapped" not in texts(plots.plot_correction(some))
    other = correction_effects(net, items, seen, ["layer"], controls="truth", protocol="mff")
    with pytest.raises(ValueError, match="different protocols"):
        plots.plot_correction({"a": frame, "b": other})


def test_corrected_shows_errors_where_there_is_truth(items):
    truth = items[0]["depth"].clone()
    truth[:, :5] = 0
    figure = plots.plot_corrected(items[0]["image"], truth[:, ::2, ::2] + 1, truth, truth)
    assert "δ1 1.000 · RMS 0.00 m" in texts(figure)
    maps = [ax.images[0].get_array() for ax in figure.axes[5:7]]
    assert all(m.mask[:5].all() and not m.mask[5:].any() for m in map(masked, maps))
    assert maps[1][5:].max() == 0 and maps[0][5:].max() > 0


def masked(values):
    return matplotlib.cbook.safe_masked_invalid(values)


# ------------------------------------------------------------------ attacks


@pytest.fixture
def traced(items):
    net = Net()
    seen = dissect(net, items, ["layer"])
    for item in items:
        item["depth"][:, :4] = 0
    attacked = fgsm(net, items, epsilon=0.1)
    trace = trace_errors(net, items, seen, ["layer"], attacked=attacked, num_units=2)
    return net, items, trace, attacked


def test_attack_shows_errors_and_the_unit(traced):
    net, items, trace, attacked = traced
    net.train()
    figure = plots.plot_attack(net, items, trace, attacked=attacked, index=1, layer="layer", unit=5)
    axes = figure.axes[:12]
    near, far = trace.bins["layer"].edges[5:7].tolist()
    pictures = [ax.images[0].get_array() for ax in axes]
    for row, (pred, image) in enumerate(
        ((trace.clean[1], items[1]["image"]), (trace.attacked[1], attacked[1]))
    ):
        target, errors = trace.target[1][0], torch.as_tensor(pictures[6 * row + 3])
        ratio = torch.maximum(pred[0] / target, target / pred[0])
        assert torch.equal(errors == 1, (ratio >= 1.25) & (target > 0))
        assert torch.equal(errors == 0.5, target == 0) and (errors == 0.5).any()
        inside = torch.as_tensor(pictures[6 * row + 4])
        assert torch.equal(inside == 1, (pred[0] > near) & (pred[0] <= far))
        response = net.layer(image[None])[0, 5].abs()
        torch.testing.assert_close(torch.as_tensor(pictures[6 * row + 5]), response.detach())
    assert axes[5].images[0].get_clim() == axes[11].images[0].get_clim()
    assert net.training and not net.layer._forward_hooks
    first = trace.units.iloc[0]
    figure = plots.plot_attack(net, items, trace, attacked=attacked)
    assert f"layer, unit {first.unit}" in texts(figure)
    wrong = []  # of each image, in the unit's bin: the one with most is shown
    for pred, target in zip(trace.attacked, trace.target, strict=True):
        ratio = torch.maximum(pred / target, target / pred)
        inside = trace.bins["layer"].discretize(pred) == first.bin
        wrong.append(((ratio >= 1.25) & (target > 0) & inside).sum())
    image = items[int(np.argmax(wrong))]["image"].permute(1, 2, 0)
    assert torch.equal(torch.as_tensor(figure.axes[0].images[0].get_array()), image)


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ({"layer": "other"}, "'other' was not traced. Known: layer"),
        ({"unit": 3}, "Unit 3 of which layer"),
        ({"layer": "layer", "unit": 8}, "'layer' has no unit 8"),
    ],
)
def test_attack_refuses_another_unit(which, says, traced):
    net, items, trace, attacked = traced
    with pytest.raises(ValueError, match=says):
        plots.plot_attack(net, items, trace, attacked=attacked, **which)
    with pytest.raises(ValueError, match="trace is of 3 images, given are 1, attacked 1"):
        plots.plot_attack(net, items[:1], trace, attacked=attacked[:1])


def test_transport_is_the_table_by_depth(traced):
    *_, trace, _ = traced
    figure = plots.plot_transport(trace)
    for ax, name in zip(figure.axes, ("clean", "attacked"), strict=False):
        drawn = ax.images[0].get_array()
        assert drawn.filled(0).tolist() == trace.transport[name]["layer"][:8, :8].tolist()
        assert f"{name}: δ {trace.d1[name]:.3f}" in texts(figure)
    trace.transport["clean"]["layer"][8, 2] = 5  # measured beyond the last edge
    figure = plots.plot_transport(trace, "layer")
    assert figure.axes[0].images[0].get_array()[8, 2] == 5 and ">10" in texts(figure)
    with pytest.raises(ValueError, match="'other' was not traced"):
        plots.plot_transport(trace, "other")


def test_repairs_stand_beside_random_ones():
    keys = [(name, value) for name in ("baseline", "mine") for value in ("clean", "corrected")]
    own = {key: Repair(100, 30 + i, 10) for i, key in enumerate(keys)}
    draws = {key: [Repair(100, 10, 0), Repair(100, 20, 5)] for key in keys}
    figure = plots.plot_repairs(own, draws)
    assert [ax.get_title() for ax in figure.axes] == ["baseline", "mine"]
    for i, ax in enumerate(figure.axes):
        lines = [line.get_xdata() for line in ax.lines[:6]]
        assert np.concatenate(lines) == pytest.approx(
            [10, 15, 12.5, 20 + 2 * i, 10, 15, 12.5, 21 + 2 * i]
        )
    assert "set back to the mean\nfor the true depth" in texts(figure)


def test_blame_bars_are_the_shares_in_percent(traced):
    *_, trace, _ = traced
    figure = plots.plot_blame(trace, 3)
    left, right = figure.axes
    units = trace.units.head(3).iloc[::-1]
    excess, lack = ([bar.get_width() for bar in c] for c in left.containers)
    assert excess == pytest.approx(units.excess.tolist())
    assert lack == pytest.approx(units.lack.tolist())
    widths = [[bar.get_width() for bar in c] for c in right.containers]
    columns = ("repaired_clean", "caused_clean", "repaired_corrected", "caused_corrected")
    for bars, column, sign in zip(widths, columns, (1, -1, 1, -1), strict=True):
        assert bars == pytest.approx((100 * sign * units[column]).tolist(), nan_ok=True)
    assert units.repaired_clean.isna().sum() == 1  # two units were set back


def test_published_and_measured_stand_apart():
    row = {
        "table": "1", "dataset": "rooms", "model": "meter_xxs", "layers": "dec_3", "protocol": "",
        "metric": "selectivity", "group": "mine", "size": "64x128", "seeds": 3, "images": 9,
        "definition": "paper",
    }  # fmt: skip
    values = {"baseline": (0.2, 0.1, 0.3), "assign": (0.6, 0.5, 0.65)}
    rows = [
        row | {"method": method, "mean": mean, "low": low, "high": high}
        for method, (mean, low, high) in values.items()
    ]
    names = {"selectivity": "test selectivity", "d1": "δ1"}

    def draw(measured):
        measured = pd.DataFrame(measured, columns=MEASURED)
        return plots.plot_published(pd.concat([comparison(t, measured) for t in (1, 2)]), names)

    selectivity, d1 = draw(rows).axes
    points = [line for line in selectivity.lines if line.get_marker() not in ("None", "", None)]
    at = {(round(p.get_ydata()[0]), p.get_xdata()[0]): p.get_mfc() for p in points}
    assert len(at) == 8
    assert {x for (y, x), face in at.items() if face == "white"} == {
        0.4286, 0.6039, 0.7529, 0.4691, 0.5694, 0.7693,
    }  # fmt: skip
    assert {(y, x) for (y, x), face in at.items() if face != "white"} == {(2, 0.2), (2, 0.6)}
    bars = [path.vertices[:, 0].tolist() for c in selectivity.collections for path in c.get_paths()]
    assert sorted(bars) == [[0.1, 0.3], [0.5, 0.65]]
    # A measurement of a published number has its own row below it; without any there are two.
    same = row | {"dataset": "nyu", "model": "mff_resnet50", "layers": "D+MFF", "method": "reg"}
    labels = draw([same | {"mean": 0.5, "low": 0.4, "high": 0.6}]).axes[0].get_yticklabels()
    ends = [label.get_text().split(" · ")[-1] for label in labels]
    assert ends == ["published", "64x128", "published"]
    assert len(draw([]).axes[0].get_yticklabels()) == 2
    with pytest.raises(ValueError, match="none of selectivity, d1"):
        plots.plot_published(comparison(1, pd.DataFrame(columns=MEASURED)).iloc[:0], names)


# ------------------------------------------------------------------ depth completion


class Completes(nn.Module):
    """Mixes the measurements around into depth, and two units that tell them by their depth."""

    depth_range = (0.75, 10.0)
    input_names = ("sparse_depth",)

    def __init__(self):
        super().__init__()
        self.near = nn.AvgPool2d(5, 2, 2)
        self.layer = nn.Identity()

    def forward(self, image, *, sparse_depth):
        shallow = self.near(sparse_depth * (sparse_depth < 3))
        units = self.layer(torch.cat([self.near(sparse_depth) - shallow, shallow], dim=1))
        return 2 + nn.functional.interpolate(units.sum(1, keepdim=True), image.shape[-2:])


@pytest.fixture
def measured(items):
    sparse = torch.zeros(1, 24, 32)
    sparse[0, 5, 7], sparse[0, 18, 25], sparse[0, 12, 20] = 2.0, 9.0, 2.1
    return [{**item, "sparse_depth": sparse} for item in items]


def test_a_sparse_point_is_shown_by_what_it_changes(measured):
    net = Completes()
    found = dissect(net, measured, ["layer"], bins=(2.5, 10.0))
    figure = plots.plot_sparse_point(net, measured[0], found, "layer")
    # The network alone says 2 m; the farthest from that is the point of 9 m, which stays out of
    # the shallow unit.
    said = texts(figure)
    assert "One measurement of 9.00 m, 2 others stay" in said and "change of depth [m]" in said
    axes = [ax for ax in figure.axes if ax.images]
    rings = [ax.lines[-1].get_xydata()[0].tolist() for ax in axes if ax.lines]
    assert rings.count([25, 18]) == 5  # image, truth, and three maps of depth
    difference = next(ax for ax in axes if ax.get_ylabel() == "difference").images[0]
    change = difference.get_array()
    assert change[18, 25] > 0 and change[5, 7] == 0 and difference.get_clim()[0] < 0

    shallow = plots.plot_sparse_point(net, measured[0], found, "layer", point=(5, 7), offset=-0.5)
    assert "2.00 m moved by -0.5 m to 1.50 m" in texts(shallow)
    with pytest.raises(ValueError, match=r"No measurement at \(0, 0\).*\[5, 7\]"):
        plots.plot_sparse_point(net, measured[0], found, "layer", point=(0, 0))
    for beyond in ((24, 0), (-19, 7)):  # the second is (5, 7) from the end
        with pytest.raises(ValueError, match="No measurement at"):
            plots.plot_sparse_point(net, measured[0], found, "layer", point=beyond)
    none = {**measured[0], "sparse_depth": torch.zeros(1, 24, 32)}
    with pytest.raises(ValueError, match="holds no measurement"):
        plots.plot_sparse_point(net, none, found, "layer")


def test_completion_curves_are_lines_of_the_numbers_given():
    curve = pd.DataFrame(
        {
            "samples": [0, 50, 500],
            "d1.02": [0.1, 0.3, 0.8], "d1.05": [0.2, 0.4, 0.85], "d1.10": [0.3, 0.5, 0.9],
            "d1": [0.4, 0.6, 0.95], "rms": [1.0, 0.5, 0.2], "rel": [0.3, 0.1, 0.05],
        }
    )  # fmt: skip
    figure = plots.plot_completion({"one": curve, "two": curve.assign(rms=[2, 1, 0.5])}, trained=50)
    delta, rms, rel = figure.axes
    assert [t.get_text() for t in rms.get_xticklabels()] == ["0", "50", "500"]
    lines = [list(line.get_ydata()) for line in rms.lines]
    assert [1.0, 0.5, 0.2] in lines and [2, 1, 0.5] in lines


def explored(items, **options):
    model = Net().eval()
    data = items * 2
    return Explorer(model, data, dissect(model, data, ["layer"], bins=(0.75, 10)), **options)


def test_a_unit_and_who_answers_at_a_pixel(items):
    explorer = explored(items)
    view = explorer.view(1)
    figure = plots.plot_unit(view, "layer", 5, pixel=(7, 20))
    image, depth, _, mask, curve, bars = figure.axes
    where = view.where("layer", 5)[0]
    assert torch.equal(torch.tensor(mask.images[0].get_array().data) == 1, where)
    assert torch.equal(torch.tensor(depth.images[0].get_array().data), view.depth[0])
    assert [tuple(xy) for xy in image.lines[0].get_xydata()] == [(20, 7)]
    mean, here = (line.get_ydata() for line in curve.lines[:2])
    seen = explorer.dissection
    assert mean[seen.counts["layer"] > 0] == pytest.approx(
        seen.response["layer"][5][seen.counts["layer"] > 0]
    )
    assert here == pytest.approx(view.response("layer")[5].numpy(), nan_ok=True)
    (band,) = curve.collections
    top = band.get_datalim(curve.transData).y1
    assert top == pytest.approx(np.nanmax(mean + explorer.spread("layer")[5].nan_to_num(0).numpy()))
    answer = view.ask(7, 20, "layer")
    assert [t.get_text() for t in bars.get_yticklabels()][::-1] == [
        f"unit {k}" for k in answer.units.index
    ]
    widths = [patch.get_width() for patch in bars.patches][::-1]
    assert widths == pytest.approx(100 * answer.units["share"])
    with pytest.raises(ValueError, match="8 units, 0 … 7; got unit 8"):
        plots.plot_unit(view, "layer", 8)


def drawn(figure):
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba()).copy()


def test_an_edit_and_the_same_figure_for_another(items):
    explorer = explored(items)
    view = explorer.view(0)
    first = view.edit({"layer": [1, 4]})
    figure = plots.plot_edit(first)
    depth, _, difference, _, answers, needed = figure.axes
    assert torch.equal(torch.tensor(depth.images[0].get_array().data), first.depth[0])
    assert torch.equal(torch.tensor(difference.images[0].get_array().data), first.difference[0])
    low, high = difference.images[0].get_clim()
    assert -low == high == pytest.approx(first.difference.abs().max().item())
    table = first.table
    assert needed.patches[0].get_data().values == pytest.approx(table["change"].fillna(0))
    for line, column in zip(needed.lines, ("error_before", "error_after"), strict=True):
        assert line.get_ydata() == pytest.approx(table[column], nan_ok=True)
    assert answers.patches[0].get_data().values.max() <= 1
    words = texts(figure)
    assert "layer units 1, 4: switched off" in words and "change [m]" in words
    assert f"{first.mean('error_before'):.3f} → {first.mean('error_after'):.3f} m" in words
    before = drawn(figure)
    for units, answer in (([2], "mean"), ([0, 1, 2], "factor")):
        other = view.edit({"layer": units}, answer=answer, factor=3)
        again = plots.plot_edit(other, on=figure)
        assert again is figure and not np.array_equal(drawn(figure), before)
        assert np.array_equal(drawn(figure), drawn(plots.plot_edit(other)))
    assert np.array_equal(drawn(plots.plot_edit(first, on=figure)), before)


@pytest.mark.filterwarnings("error", "ignore:np.find_common_type")  # pandas 2.0's own
def test_an_explorer_of_nothing_measured_and_a_silent_unit(items):
    silent = [{**item, "depth": torch.zeros(1, 24, 32)} for item in items]
    explorer = explored(items)
    with torch.no_grad():
        explorer.model.layer.weight[3], explorer.model.layer.bias[3] = 0, 0
    model = explorer.model
    explorer = Explorer(model, silent + items, dissect(model, items, ["layer"], bins=(0.75, 10)))
    figure = plots.plot_unit(explorer.view(0), "layer", 3)
    assert "never answers" in texts(figure) and "silent on this image" in texts(figure)
    figure = plots.plot_edit(explorer.view(0).edit({"layer": [2, 3]}))
    assert "mean |error| nan → nan m" in texts(figure)


def test_effects_beside_responses(items):
    explorer = explored(items)
    effects = explorer.effects("layer")
    figure = plots.plot_effects(effects, explorer.dissection)
    response, change, error = (ax.images[0].get_array() for ax in figure.axes[:3])
    rows = [int(t.get_text()) for t in figure.axes[0].get_yticklabels()]
    assert sorted(rows) == list(range(8))
    best = explorer.dissection.response["layer"].abs().argmax(1)[rows].tolist()
    assert best == sorted(best)
    assert figure.axes[1].lines[0].get_xydata().tolist() == [[b, i] for i, b in enumerate(best)]
    for shown, values in ((change, effects.change), (error, effects.error)):
        values = values[rows]
        expected = values / values.abs().nan_to_num(0).amax(1, keepdim=True)
        np.testing.assert_allclose(shown.filled(np.nan), expected)
    np.testing.assert_allclose(response.max(1), 1)
    assert "switched off: 6 images" in texts(figure)
    none = replace(effects, change=effects.change * 0)
    with pytest.raises(ValueError, match="No unit of 'layer' answers and changes the depth"):
        plots.plot_effects(none, explorer.dissection)


def test_matches_of_two_networks(items):
    explorer = explored(items)
    match = explorer.effects("layer").match(explorer.dissection, draws=50)
    table = pd.concat({("baseline", "layer"): match, ("assign", "layer"): match})
    figure = plots.plot_matches(table)
    assert [ax.get_title() for ax in figure.axes] == match.index.tolist()
    rows = [t.get_text() for t in figure.axes[0].get_yticklabels()]
    assert rows == ["baseline · layer", "assign · layer"]
    for ax, r in zip(figure.axes, match.r, strict=True):
        np.testing.assert_allclose(ax.collections[-1].get_offsets(), [[r, 0], [r, 1]])


# ------------------------------------------------------------------ stereo


def stereo_item(depth=6.0, **more):
    """A textured wall, focal 40, cameras 0.6 m apart: 4 pixels of disparity."""
    wide = torch.rand(3, 8, 30, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.interpolate(wide[None], (32, 120), mode="bicubic")[0].clamp(0, 1)
    return {
        "image": wide[..., :96],
        "right": wide[..., 4:100],
        "depth": torch.full((1, 32, 96), depth),
        "intrinsics": torch.tensor([[40.0, 0, 48], [0, 40, 16], [0, 0, 1]]),
        "baseline": 0.6,
        "name": "wall",
    } | more


def test_a_pair_agrees_at_its_true_depth_and_nowhere_else():
    figure = plots.plot_pair(stereo_item())
    curve = next(ax for ax in figure.axes if ax.get_xlabel() == "all depths times this").lines[0]
    x, y = curve.get_xdata(), curve.get_ydata()
    assert x[y.argmin()] == pytest.approx(1) and y.min() < 1e-3 < 0.1 * y.max()
    assert "right, warped by true depth" in texts(figure)
    wrong = plots.plot_pair(stereo_item(depth=12.0))
    curve = next(ax for ax in wrong.axes if ax.get_xlabel() == "all depths times this").lines[0]
    assert curve.get_xdata()[curve.get_ydata().argmin()] == pytest.approx(0.5)


class Constant(nn.Module):
    def __init__(self, metres):
        super().__init__()
        self.metres = metres

    def forward(self, image):
        return torch.full_like(image[:, :1, ::2, ::2], self.metres)


def test_disparities_stand_beside_their_error():
    sparse = stereo_item()
    sparse["depth"] = torch.zeros(1, 64, 192)
    sparse["depth"][0, 10, 20], sparse["depth"][0, 30, 40] = 5.0, 10.0
    models = {"right": Constant(6.0), "double": Constant(12.0)}
    figure = plots.plot_disparities(models, [stereo_item(), sparse])
    said = texts(figure)
    assert "relative error, mean 0 %" in said and "relative error, mean 100 %" in said
    assert "relative error, mean 30 %" in said  # of 5 and 10 m
    dots = [c for ax in figure.axes for c in ax.collections if len(c.get_offsets()) == 2]
    assert [sorted(d.get_array().round(2)) for d in dots[:2]] == [[0.1, 0.2], [20, 40]]
    figure = plots.plot_disparities(models, [stereo_item()], median_scaled=True)
    assert "double, times 0.50 by the medians" in texts(figure)
    assert texts(figure).count("relative error, mean 0 %") == 2


def test_disparities_of_pairs_without_depth_are_judged_by_the_pair():
    item = stereo_item()
    del item["depth"]
    said = texts(plots.plot_disparities({"right": Constant(6.0), "no": Constant(3.0)}, [item]))
    assert "right (no true depth)" in said
    found = [float(x) for x in re.findall(r"photometric error, mean ([\d.]+)", said)]
    assert len(found) == 2 and found[0] < 0.03 < 0.1 < found[1]
