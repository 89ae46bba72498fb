"""Notebooks in JupyterLab, as a person runs them: all cells, then the controls, one by one.

What the page then shows is compared with a twin: the same cells, run in this process.
"""

import base64
import io
import time

import ipywidgets
import matplotlib.pyplot as plt
import notebook_tools
import numpy as np
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from playwright.sync_api import expect

from mde_utils import widgets

CLOUD = """
import torch

from mde_utils import widgets

torch.manual_seed(0)
intrinsics = torch.tensor([[40.0, 0, 20], [0, 40, 12], [0, 0, 1]])
depth = torch.linspace(2, 60, 24 * 40).view(1, 24, 40)
view = widgets.turn_point_cloud(torch.rand(3, 24, 40), depth, intrinsics)
view
"""
SMALL = """
layers, image_to_show = ["dec_1", "dec_2"], 4
num_images, num_bootstrap = 16, 50
"""
BYTES = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ''));
}"""

# The text of HTML; what the page's text widgets and lists show.
PLAIN = """texts => texts.map(text => {
    const element = document.createElement('div');
    element.innerHTML = text;
    return element.textContent.trim();
}).filter(text => text)"""
SHOWN = """() => [
    [...document.querySelectorAll('.widget-html-content')].map(e => e.textContent.trim())
        .concat([...document.querySelectorAll('.widget-textarea textarea')].map(e => e.value))
        .filter(text => text),
    [...document.querySelectorAll('.widget-inline-hbox select')].map(
        e => [...e.selectedOptions].map(o => o.textContent.replaceAll('\u00a0', ' ')).join(', ')),
]"""
MOVED = (
    ipywidgets.IntSlider,
    ipywidgets.FloatSlider,
    ipywidgets.Dropdown,
    ipywidgets.SelectMultiple,
)


def twin_of(path, monkeypatch) -> dict:
    """The globals of a notebook after all of its code, run here with figures kept off screen."""
    monkeypatch.chdir(path.parent)
    monkeypatch.setenv("MDE_PROFILE", "demo")
    names = {"__name__": "__main__"}
    for cell in notebook_tools.read(path).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    plt.close("all")
    return names


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def pictures(page) -> list[bytes]:
    """The PNGs in the page's picture widgets, those that are seen."""
    images = [image for image in page.locator("img.widget-image").all() if image.is_visible()]
    return [base64.b64decode(image.evaluate(BYTES)) for image in images]


def same(one: bytes, other: bytes) -> bool:
    """Whether two PNGs show the same, but for what rounding may do to a few pixels."""
    a, b = pixels(one), pixels(other)
    return a.shape == b.shape and (np.abs(a - b).max(axis=2) > 8).mean() < 1e-3


def within(widget: ipywidgets.Widget):
    """The widget and all that it holds, in the order of the page."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from within(child)


class Twin:
    """Widgets of this process beside those of a page."""

    def __init__(self, page, box: ipywidgets.Widget):
        self.page, self.all = page, list(within(box))
        self.controls = {w.description: w for w in self.all if isinstance(w, MOVED)}

    def seen(self) -> tuple:
        """Pictures, texts and choices, as far as they are on the page."""

        def of(kind, name):
            there = (w for w in self.all if isinstance(w, kind))
            return [getattr(w, name) for w in there if w.layout.display != "none"]

        choices = [tuple(w.options) for w in self.controls.values() if hasattr(w, "options")]
        texts = of(ipywidgets.HTML, "value") + of(ipywidgets.Textarea, "value")
        return of(ipywidgets.Image, "value"), texts, choices

    def differs(self) -> str:
        """Where the page shows something else than what this process's functions made; or ""."""
        images, texts, _ = self.seen()
        there = pictures(self.page)
        if len(there) != len(images):
            return f"{len(there)} pictures, not {len(images)}"
        for k, (one, other) in enumerate(zip(there, images, strict=True)):
            if not same(one, other):
                return f"picture {k} is another"
        shown = self.page.evaluate(SHOWN)
        wanted = [self.page.evaluate(PLAIN, texts), self.values()]
        return "" if shown == wanted else f"shown {shown}, not {wanted}"

    def settle(self, *, seconds: int = 60) -> None:
        """Wait until the page shows what is shown here."""
        end = time.monotonic() + seconds
        while differs := self.differs():
            assert time.monotonic() < end, differs
            self.page.wait_for_timeout(200)

    def values(self) -> list[str]:
        """What the lists to choose from show as chosen."""
        lists = [w for w in self.controls.values() if hasattr(w, "options")]
        chosen = [w.label if isinstance(w.label, tuple) else (w.label,) for w in lists]
        return [", ".join(label) for label in chosen]

    def step(self, words: str, way: int = 1) -> None:
        """Move a slider by an arrow key, in the page, then here."""
        widget, before = self.controls[words], self.seen()
        readout = self.own(words).locator(".widget-readout")
        value = readout.inner_text()
        self.own(words).locator("[role=slider]").focus()
        self.page.keyboard.press("ArrowRight" if way > 0 else "ArrowLeft")
        expect(readout).not_to_have_text(value)
        widget.value = float(readout.inner_text().replace("−", "-"))
        assert self.seen() != before, f"{words} changes nothing"
        self.settle()

    def choose(self, words: str, *places: int) -> None:
        """Choose by place from a list, in the page, then here."""
        widget, before = self.controls[words], self.seen()
        self.own(words).locator("select").select_option(index=list(places))
        widget.index = places if isinstance(widget, ipywidgets.SelectMultiple) else places[0]
        assert self.seen() != before, f"{words} changes nothing"
        self.settle()

    def own(self, words: str):
        """The control in the page with this description."""
        label = self.page.get_by_text(words, exact=True)
        return self.page.locator(".widget-inline-hbox").filter(has=label)


def test_start(page, lab, shots):
    lab.add(notebook_tools.NOTEBOOKS / "00_start.ipynb", parameters="num_images = 16")
    lab.run(page, "00_start")
    table = page.locator(".jp-RenderedHTMLCommon table", has_text="remedy")
    table.scroll_into_view_if_needed()
    page.screenshot(path=shots / "00_check.png")
    states = {row.split("\t")[2] for row in table.inner_text().splitlines()[1:]}
    assert states <= {"ok", "optional"}
    picture = page.locator(".jp-RenderedImage img")
    assert picture.count() == 1 and picture.bounding_box()["width"] > 600
    picture.scroll_into_view_if_needed()
    page.screenshot(path=shots / "00_answer.png")
    links = page.locator(".jp-RenderedMarkdown table a").all_inner_texts()
    names = [path.stem for path in notebook_tools.find_notebooks()]
    assert set(names) - {"00_start"} <= set(links)


def test_point_cloud_turns(page, lab, shots, monkeypatch):
    path = lab.folder / "cloud.ipynb"
    nb = new_notebook(cells=[new_code_cell(CLOUD)])
    nb.metadata.kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.write_text(notebook_tools.text_of(nb), encoding="utf-8")
    lab.run(page, "cloud")
    twin = Twin(page, twin_of(path, monkeypatch)["view"])
    twin.settle()
    page.screenshot(path=shots / "cloud.png")
    for words, way in zip(twin.controls, (-1, 1, 1), strict=True):
        for _ in range(3):
            twin.step(words, way)
    page.screenshot(path=shots / "cloud_turned.png")


def test_every_control_of_the_explorer(page, lab, shots, monkeypatch):
    lab.add(notebook_tools.NOTEBOOKS / "12_explore.ipynb", parameters=SMALL)
    lab.run(page, "12_explore")
    boxes, explore = [], widgets.explore
    monkeypatch.setattr(widgets, "explore", lambda *a, **k: boxes.append(explore(*a, **k)))
    twin_of(lab.folder / "12_explore.ipynb", monkeypatch)
    twin = Twin(page, *boxes)
    page.locator("img.widget-image").first.scroll_into_view_if_needed()
    twin.settle()
    page.screenshot(path=shots / "12_first.png")
    for words in ("image", "row", "column"):
        twin.step(words)
    for words in ("layer", "order by", "unit"):
        control = twin.controls[words]
        twin.choose(words, (control.index + 1) % len(control.options))
    page.screenshot(path=shots / "12_other.png")
    edits = twin.controls["edit"].options
    twin.choose("edit", edits.index("scale"))
    twin.step("factor", -1)
    twin.choose("units", 0, 2)
    for k in range(1, len(edits)):
        twin.choose("edit", k)
        page.locator("img.widget-image").last.scroll_into_view_if_needed()
        page.screenshot(path=shots / f"12_edit_{k}.png")
    twin.choose("edit", 0)
    moved = {"image", "row", "column", "layer", "order by", "unit", "edit", "factor", "units"}
    assert twin.controls.keys() == moved
