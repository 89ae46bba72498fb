"""Interactive views: controls over functions of `plots`, for a running notebook.

Each picture stands in the notebook without them first: a widget is not seen on a page or in a file.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ipywidgets
import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure
from torch import Tensor, nn

from mde_utils.dissection import Dissection
from mde_utils.views import plots
from mde_utils.views.explorer import ORDERS, Answer, Edited, Explorer

COMPACT = 'style="line-height: 1.3; border-spacing: 1em 0"'  # widgets' lines are 28 pixels high
POINTS = 20_000  # of a cloud that turns: fewer than in a still picture, so that it turns at once
DEGREES = {"min": -60, "max": 60, "step": 5}
EDITS = {
    "nothing": None,
    "switch off": "zero",
    "scale": "factor",
    "set to mean response": "mean",
    "correct by true depth": "corrected",
}


def live(draw: Callable[..., Figure]) -> Callable[..., None]:
    """`draw` as a function whose figure takes the place of the one before it, here and now:
    `train_runs(…, show=live(plots.plot_training))`."""
    place = display(display_id=True)

    def show(*args) -> None:
        figure = draw(*args)
        place.update(figure)
        plt.close(figure)

    return show


def turn_point_cloud(
    image: Tensor,
    depth: Tensor,
    intrinsics: Tensor,
    *,
    farthest: float = 40.0,
    title: str | None = None,
) -> ipywidgets.VBox:
    """`plots.plot_point_cloud` with sliders for the view and for the farthest depth that is drawn.

    Args:
        image, depth, intrinsics, title: as there.
        farthest: where the slider begins, metres; it goes to the farthest depth.
    """
    known = depth[depth > 0]
    if not len(known):
        raise ValueError("No pixel has a depth: there is no point to draw.")
    near, far = known.min().item(), known.max().item()

    def slider(value: float, words: str, **options) -> ipywidgets.FloatSlider:
        # Drawn when the handle is let go: a picture takes longer than a move of the mouse.
        return ipywidgets.FloatSlider(
            value,
            description=words,
            continuous_update=False,
            style={"description_width": "initial"},
            **options,
        )

    controls = {
        "turn": slider(12, "turn [°]", **DEGREES),
        "rise": slider(14, "rise [°]", **DEGREES | {"min": 0, "max": 80}),
        "farthest": slider(min(farthest, far), "farthest [m]", min=1.01 * near, max=far, step=0.5),
    }
    # Not an Output widget: what it captures can leave a headless run waiting for good.
    picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})

    def draw(_change=None) -> None:
        view = {name: control.value for name, control in controls.items()}
        figure = plots.plot_point_cloud(
            image, depth, intrinsics, points=POINTS, title=title, **view
        )
        picture.value = _png(figure)

    for control in controls.values():
        control.observe(draw, "value")
    draw()
    return ipywidgets.VBox([*controls.values(), picture])


def explore(
    model: nn.Module,
    dataset,
    dissection: Dissection,
    *,
    image: int = 0,
    layer: str | None = None,
    unit: int | None = None,
    spread_images: int = 64,
    effect_images: int = 8,
) -> ipywidgets.VBox:
    """Ask a network about its units: `plots.plot_unit` and `plots.plot_edit` with controls.

    Choose an image, a layer, a unit and a pixel, and see what the unit answers to; edit units, and
    see what becomes of the depth. An edit is of the units marked in the list, or of the shown unit
    where none is marked. The code below makes the same depth.

    Args:
        model, dataset, dissection, spread_images, effect_images: see
            `Explorer`.
        image, layer, unit: what is shown first; by default the layer's most selective unit.
    """
    explorer = Explorer(
        model, dataset, dissection, spread_images=spread_images, effect_images=effect_images
    )
    layer = explorer.layers[-1] if layer is None else layer
    unit = explorer.order(layer)[0] if unit is None else unit
    explorer.assigned(layer, unit)  # refuses a unit that is not there
    explorer.view(image)
    return _Panel(explorer, image, layer, unit).box


class _Panel:
    """The controls of `explore` and what they do."""

    def __init__(self, explorer: Explorer, image: int, layer: str, unit: int):
        self.explorer, self.quiet, self.figure = explorer, False, None
        h, w = explorer.view(image).image.shape[-2:]
        wide = {"width": "31%", "min_width": "260px"}

        def control(kind, words: str, **options):
            style = {"description_width": "70px"}
            return kind(description=words, style=style, layout=wide, **options)

        def slider(words: str, value: int, most: int):
            # Drawn when the handle is let go: a picture takes longer than a move of the mouse.
            options = {"min": 0, "max": most, "continuous_update": False}
            return control(ipywidgets.IntSlider, words, value=value, **options)

        self.image = slider("image", image, len(explorer.dataset) - 1)
        self.layer = control(ipywidgets.Dropdown, "layer", options=explorer.layers, value=layer)
        self.order = control(ipywidgets.Dropdown, "order by", options=ORDERS)
        self.unit = control(ipywidgets.Dropdown, "unit", options=self.ranked(), value=unit)
        self.row, self.column = slider("row", h // 2, h - 1), slider("column", w // 2, w - 1)
        self.edit = control(ipywidgets.Dropdown, "edit", options=list(EDITS))
        self.factor = control(
            ipywidgets.FloatSlider,
            "factor",
            value=0.5,
            min=-2,
            max=4,
            step=0.1,
            continuous_update=False,
            disabled=True,
        )
        self.units = control(ipywidgets.SelectMultiple, "units", rows=5, options=self.numbers())
        self.bar = ipywidgets.FloatProgress(layout={"width": "95%", "display": "none"})
        self.picture = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.answer = ipywidgets.HTML()
        self.edited = ipywidgets.Image(format="png", layout={"max_width": "100%"})
        self.numbers_text = ipywidgets.HTML()
        self.code = ipywidgets.Textarea(
            description="copy as code",
            rows=4,
            style={"description_width": "initial"},
            layout={"width": "95%"},
        )
        rows = (
            (self.image, self.layer, self.order, self.unit, self.row, self.column),
            (self.edit, self.factor, self.units),
        )
        rows = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        self.box = ipywidgets.VBox(
            [
                rows[0],
                self.bar,
                self.picture,
                self.answer,
                rows[1],
                self.edited,
                self.numbers_text,
                self.code,
            ]
        )
        explorer.spread(layer)  # with a bar of its own: this one is not seen yet
        explorer.progress = self.progress
        for each in (self.unit, self.row, self.column):
            each.observe(self.on_view, "value")
        self.image.observe(self.on_image, "value")
        self.layer.observe(self.on_layer, "value")
        self.order.observe(self.on_order, "value")
        for each in (self.edit, self.factor, self.units):
            each.observe(self.on_edit, "value")
        self.draw()

    # What was chosen

    def view(self):
        return self.explorer.view(self.image.value)

    def ranked(self) -> list[tuple[str, int]]:
        """The layer's units in the order asked for."""
        frame = self.explorer.units.loc[self.layer.value]
        options = []
        for k in self.explorer.order(self.layer.value, self.order.value):
            at = frame.loc[k]
            words = f"{at.best_from_m:.2f}–{at.best_to_m:.2f} m, DS {at.selectivity:.2f}"
            options.append((f"{k}: {words if at.best_response else 'never answers'}", k))
        return options

    def numbers(self) -> list[tuple[str, int]]:
        count = len(self.explorer.dissection.sums[self.layer.value])
        return [(f"unit {k}", k) for k in range(count)]

    def change(self) -> dict:
        """Arguments of `View.edit` and `View.code`; no units where nothing is edited."""
        answer = EDITS[self.edit.value]
        if answer is None:
            return {"units": {}}
        chosen = list(self.units.value) or [self.unit.value]
        return {"units": {self.layer.value: chosen}, "answer": answer, "factor": self.factor.value}

    # What follows

    def on_view(self, _change) -> None:
        if not self.quiet:
            self.draw()

    def on_image(self, _change) -> None:
        self.figure = None
        self.draw()

    def on_layer(self, _change) -> None:
        with self.quietly():
            self.units.options, self.unit.options = self.numbers(), self.ranked()
            self.unit.value = self.unit.options[0][1]
        self.draw()

    def on_order(self, _change) -> None:
        with self.quietly():
            shown = self.unit.value
            try:
                self.unit.options = self.ranked()
            except ValueError as error:  # no depth to measure an effect by
                self.answer.value = html.escape(str(error))
                return
            self.unit.value = shown

    def on_edit(self, _change) -> None:
        if not self.quiet:
            self.draw_edit()

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """Controls that follow others are not drawn for each by itself."""
        self.quiet = True
        try:
            yield
        finally:
            self.quiet = False

    def draw(self) -> None:
        layer = self.layer.value
        try:
            view = self.view()
            view.prepare([layer])
        except ValueError as error:  # an item that is none: the last picture is not of it
            self.answer.value = html.escape(str(error))
            self.picture.value, self.edited.layout.display = b"", "none"
            self.numbers_text.value = self.code.value = ""
            return
        with self.quietly():  # images may be of several sizes
            self.row.max, self.column.max = (n - 1 for n in view.image.shape[-2:])
        pixel = self.row.value, self.column.value
        self.picture.value = _png(plots.plot_unit(view, layer, self.unit.value, pixel=pixel))
        self.answer.value = _answer(view.ask(*pixel, layer))
        self.draw_edit()

    def draw_edit(self) -> None:
        try:
            view, change = self.view(), self.change()
        except ValueError:  # said where the image was chosen
            return
        self.factor.disabled = change.get("answer") != "factor"
        self.code.value = view.code(**change)
        shown, words = "none", ""  # "none": not on the page
        if change["units"]:
            try:
                edited = view.edit(**change)
            except ValueError as error:  # an image without depth to correct by
                words = html.escape(str(error))
            else:
                self.figure = plots.plot_edit(edited, on=self.figure)
                self.edited.value, shown = _png(self.figure), None
                words = _edited(edited)
        self.numbers_text.value = words
        if self.edited.layout.display != shown:
            self.edited.layout.display = shown

    @contextmanager
    def progress(self, *, total: float, desc: str) -> Iterator[_Bar]:
        self.bar.value, self.bar.max, self.bar.description = 0, total, desc
        self.bar.layout.display = None
        try:
            yield _Bar(self.bar)
        finally:
            self.bar.layout.display = "none"


class _Bar:
    def __init__(self, bar: ipywidgets.FloatProgress):
        self.bar = bar

    def update(self, n: float) -> None:
        self.bar.value += n


def _png(figure: Figure) -> bytes:
    """The figure as PNG, closed: it is no figure of the notebook's any more."""
    with io.BytesIO() as png:
        figure.savefig(png, format="png", dpi=100, pil_kwargs={"compress_level": 3})
        plt.close(figure)
        return png.getvalue()


def _answer(answer: Answer) -> str:
    """What stands below the unit: the pixel, and a row a unit that answers to its depth."""
    truth = f"{answer.truth:.2f} m" if answer.truth else "not measured"
    words = f"Pixel (row {answer.row}, column {answer.column}): predicted {answer.depth:.2f} m, "
    words += f"true depth {truth}. "
    if answer.bin is None:
        return f"{words}The prediction lies in no bin of {html.escape(answer.layer)}."
    words += f"Who answers to its bin, {answer.span[0]:.2f}–{answer.span[1]:.2f} m:"
    if answer.units["share"].isna().all():
        return f"{words} not known, the dissection holds no pixel of this depth."
    rows = [
        f"<tr><td>{k}</td><td>{100 * u.share:.1f} %</td><td>{u.here:.3g}</td>"
        f"<td>{u.best_from_m:.2f}–{u.best_to_m:.2f} m</td><td>{u.selectivity:.2f}</td></tr>"
        for k, u in answer.units.head(8).iterrows()
        if u.share > 0
    ]
    head = "<th>unit</th><th>share</th><th>response at the pixel</th><th>answers most to</th>"
    table = f"<table {COMPACT}><tr>{head}<th>DS (selectivity)</th></tr>{''.join(rows)}</table>"
    return words + table


def _edited(edited: Edited) -> str:
    """What stands below an edit: its numbers, by depth bin on demand."""
    table = edited.table[edited.table["pixels"] > 0]
    if not len(table):
        return "No pixel of this image has a true depth in a bin: there are no numbers."
    most = table.loc[table["change"].idxmax()]
    words = (
        f"Mean |error| {edited.mean('error_before'):.3f} m before, "
        f"{edited.mean('error_after'):.3f} m after. The depth changes most at "
        f"{most.from_m:.2f}–{most.to_m:.2f} m: by {most.change:.3f} m on average."
    )
    numbers = table.to_html(index=False, float_format="{:.3f}".format, border=0)
    return f"{words}<details><summary>numbers by depth bin</summary>{numbers}</details>"
