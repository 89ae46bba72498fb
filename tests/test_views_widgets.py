"""The controls call the functions of `plots` with what they show."""

import re

import ipywidgets
import matplotlib.pyplot as plt
import pytest
import torch
from toys import items, net

from mde_utils import plots, widgets
from mde_utils.activations import find_layer
from mde_utils.dissection import dissect
from mde_utils.views.explorer import ORDERS, Explorer

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
    assert first["title"] == "a street" and first["points"] == widgets.POINTS
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


# ------------------------------------------------------------------ the explorer


class Depths(list):
    depth_range = (0.75, 10.0)
    name = "toys"


DATA, MODEL = Depths(items(4)), net().eval()
SEEN = dissect(MODEL, DATA, ["deep", "wide"])


@pytest.fixture
def panel():
    """Its controls by their labels, its two pictures and two texts."""
    box = widgets.explore(MODEL, DATA, SEEN, layer="wide", unit=2)
    yield Shown(box)
    assert not plt.get_fignums()


class Shown:
    def __init__(self, box):
        found = list(walk(box))
        self.control = {w.description: w for w in found if getattr(w, "description", "")}
        self.pictures = [w for w in found if isinstance(w, ipywidgets.Image)]
        self.texts = [w for w in found if isinstance(w, ipywidgets.HTML)]

    def set(self, **values):
        for name, value in values.items():
            self.control[name.replace("_", " ")].value = value

    def seen(self):
        """Each picture that is shown, and each text."""
        pictures = [bytes(p.value) if p.layout.display != "none" else None for p in self.pictures]
        return [*pictures, *(text.value for text in self.texts)]


def walk(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from walk(child)


def png(figure):
    return widgets._png(figure)


def test_the_explorer_shows_what_the_functions_draw(panel):
    assert set(panel.control) == {
        *("image", "layer", "order by", "unit", "row", "column"),
        *("edit", "factor", "units", "copy as code"),
    }
    explorer = Explorer(MODEL, DATA, SEEN)
    picture, edited, answer, numbers = panel.seen()
    assert picture == png(plots.plot_unit(explorer.view(0), "wide", 2, pixel=(16, 20)))
    assert edited is None and numbers == ""
    steps = [
        {"image": 3},
        {"layer": "deep"},
        {"unit": 7},
        {"row": 2, "column": 33},
    ]
    for step in steps:
        before = panel.seen()[0]
        panel.set(**step)
        assert panel.seen()[0] != before, step
    view = explorer.view(3)
    assert panel.seen()[0] == png(plots.plot_unit(view, "deep", 7, pixel=(2, 33)))
    asked = view.ask(2, 33, "deep")
    assert f"predicted {asked.depth:.2f} m, true depth {asked.truth:.2f} m" in panel.seen()[2]
    first = re.search(r"<tr><td>(\d+)</td><td>([\d.]+) %", panel.seen()[2])
    assert int(first[1]) == asked.units.index[0]
    assert float(first[2]) == pytest.approx(100 * asked.units["share"].iloc[0], abs=0.06)


def test_an_edit_is_drawn_told_and_written_as_code(panel):
    explorer = Explorer(MODEL, DATA, SEEN)
    view = explorer.view(0)
    steps = [
        ({"edit": "switch off"}, {"units": {"wide": [2]}, "answer": "zero"}),
        ({"units": (3, 4)}, {"units": {"wide": [3, 4]}, "answer": "zero"}),
        ({"edit": "scale"}, {"units": {"wide": [3, 4]}, "answer": "factor", "factor": 0.5}),
        ({"factor": 2.0}, {"units": {"wide": [3, 4]}, "answer": "factor", "factor": 2.0}),
        ({"edit": "set to mean response"}, {"units": {"wide": [3, 4]}, "answer": "mean"}),
        ({"edit": "correct by true depth"}, {"units": {"wide": [3, 4]}, "answer": "corrected"}),
    ]
    pictures, unit = [], panel.seen()[0]
    for step, change in steps:
        panel.set(**step)
        edited = view.edit(**change)
        picture, shown, _, numbers = panel.seen()
        assert picture == unit  # the unit's own picture stays
        assert shown == png(plots.plot_edit(edited)) and shown not in pictures
        pictures.append(shown)
        before, after = edited.mean("error_before"), edited.mean("error_after")
        assert f"Mean |error| {before:.3f} m before, {after:.3f} m after" in numbers
        assert panel.control["factor"].disabled == (change["answer"] != "factor")
        names = {"model": MODEL, "dataset": DATA, "dissection": SEEN}
        exec(panel.control["copy as code"].value, names)
        torch.testing.assert_close(names["depth"], edited.depth)
    # Another layer has other units, and none of them is marked; the shown one is edited.
    panel.set(edit="switch off", layer="deep")
    assert panel.control["units"].value == () and len(panel.control["units"].options) == 16
    chosen = panel.control["unit"].value
    assert panel.seen()[1] == png(plots.plot_edit(view.edit({"deep": [chosen]})))
    panel.set(edit="nothing")
    assert panel.seen()[1] is None and panel.seen()[3] == ""
    assert "ablate" not in panel.control["copy as code"].value


def test_the_order_of_units(panel):
    explorer = Explorer(MODEL, DATA, SEEN)
    for order in ORDERS[::-1]:
        panel.set(order_by=order)
        options = panel.control["unit"].options
        assert [k for _, k in options] == explorer.order("wide", order)
        assert panel.control["unit"].value == 2  # still the shown one
    best = explorer.units.loc["wide", 2]
    words = f"2: {best.best_from_m:.2f}–{best.best_to_m:.2f} m, DS {best.selectivity:.2f}"
    assert words in [text for text, _ in options]


def test_every_place_of_the_explorers_sliders(panel):
    for name in ("image", "row", "column", "factor"):
        control = panel.control[name]
        assert control.continuous_update is False
        panel.set(edit="scale")
        for value in (control.min, control.max):
            panel.set(**{name: value})
            assert all(p is None or p.startswith(b"\x89PNG") for p in panel.seen()[:2])
    assert panel.control["row"].max == 31 and panel.control["column"].max == 39


def test_images_of_several_sizes_without_depth_and_broken():
    data = Depths(dict(item) for item in DATA)
    data[1] = {"image": DATA[1]["image"][:, :16, :20], "depth": DATA[1]["depth"][:, :16, :20]}
    data[2]["depth"] = torch.zeros(1, 32, 40)
    del data[3]["depth"]
    shown = Shown(widgets.explore(MODEL, data, SEEN, spread_images=1, effect_images=1))
    shown.set(edit="correct by true depth", row=31, column=39)
    assert shown.seen()[1] is not None
    shown.set(image=1)
    assert (shown.control["row"].value, shown.control["column"].value) == (15, 19)
    assert shown.seen()[1] is not None
    shown.set(image=2)
    assert shown.seen()[1] is None and "nothing to correct by" in shown.seen()[3]
    shown.set(edit="switch off")
    assert shown.seen()[1] is not None and "no numbers" in shown.seen()[3]
    shown.set(image=3)
    assert shown.seen()[:2] == [b"", None] and "i3 has no &#x27;depth&#x27;" in shown.seen()[2]
    shown.set(edit="scale", factor=0.1)  # of an image that is none nothing is edited, or raised
    assert shown.seen()[:2] == [b"", None] and "i3 has no &#x27;depth&#x27;" in shown.seen()[2]
    shown.set(image=0)
    assert shown.seen()[0].startswith(b"\x89PNG") and shown.seen()[1] is not None


def test_where_the_explorer_cannot_start():
    with pytest.raises(ValueError, match="data set is empty"):
        widgets.explore(MODEL, [], SEEN)
    with pytest.raises(ValueError, match="8 units, 0 … 7; got unit 8"):
        widgets.explore(MODEL, DATA, SEEN, layer="wide", unit=8)
    with pytest.raises(ValueError, match="images are 0 … 3; got 4"):
        widgets.explore(MODEL, DATA, SEEN, image=4)
    with pytest.raises(ValueError, match="'out' was not dissected"):
        widgets.explore(MODEL, DATA, SEEN, layer="out")
    assert not find_layer(MODEL, "wide")._forward_hooks and not plt.get_fignums()


def test_a_live_picture_takes_the_place_of_the_one_before(monkeypatch):
    class Place:
        shown = []
        update = shown.append

    monkeypatch.setattr(widgets, "display", lambda display_id: Place)
    show = widgets.live(lambda title: plt.figure(num=title))
    for title in ("first", "second"):
        assert show(title) is None
    assert len(Place.shown) == 2
    assert not plt.get_fignums()  # or the notebook would show them again below
