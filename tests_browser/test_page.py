"""The page of results, as a file without network: tables are sorted, pictures enlarged."""

import base64
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import run_notebooks
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_tools import NOTEBOOKS, find_notebooks, text_of
from PIL import Image

TABLES = {
    "plain": pd.DataFrame(
        {
            "d": ["0.5", "−0.31", "", "1e3", "+0.4"],
            "pixels": ["12,627", "549", "1,304", "nan", "61381"],
            "share": ["9%", "62%", "100%", "", "13.5%"],
            "of": ["10 of 64", "9 of 64", "-", "0 of 64", "2 of 5"],
            "rms": [2.5, np.inf, -np.inf, 10.0, np.nan],
            "layer": ["dec_10", "dec_2", "enc_1", "Dec_3", ""],
            "size": ["192x256", "64x208", "64x128", "", "1,000x2"],
        },
        index=list("abcde"),
    ),
    "grouped": pd.DataFrame(
        {("δ1", "before"): [0.8, 0.7, 0.9, 0.6], ("δ1", "after"): [2, 1, 4, 3]},
        index=pd.MultiIndex.from_product(
            [["baseline", "selective"], ["truth", "shuffled"]], names=["network", "what"]
        ),
    ),
}

EVERY_COLUMN = """() => {
    const bodies = () => [...document.querySelectorAll('section tbody')];
    const shown = () => bodies().map(body => body.innerText).join();
    const before = shown();
    return [...document.querySelectorAll('section th[aria-sort]')].filter(head => {
        const orders = ['ascending', 'descending', 'none'].map(order => {
            head.querySelector('button').click();
            return head.getAttribute('aria-sort') === order;
        });
        return orders.includes(false) || shown() !== before;
    }).map(head => head.innerText);
}"""


def page_of(folder: Path, **tables: pd.DataFrame) -> str:
    for name, table in tables.items():
        outputs = [new_output("display_data", data={"text/html": table.to_html()})]
        nb = new_notebook(cells=[new_markdown_cell(f"# {name}"), new_code_cell(outputs=outputs)])
        (folder / f"{name}.ipynb").write_text(text_of(nb), encoding="utf-8")
    path = folder / "index.html"
    path.write_text(run_notebooks.index_page(list(tables), folder), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def crafted(page, tmp_path):
    page.context.set_offline(True)
    page.goto(page_of(tmp_path, **TABLES))
    return page


def column(page, section: str, number: int) -> list[str]:
    """The texts of a column, its rows as they are shown."""
    return page.locator(f"#{section} tbody tr").evaluate_all(
        "(rows, number) => rows.map(row => row.cells[number].textContent)", number
    )


@pytest.mark.parametrize(
    ("name", "up", "down"),
    [
        ("d", "beadc", "daebc"),  # c has no number: below, whichever way
        ("pixels", "bcaed", "eacbd"),
        ("share", "aebcd", "cbead"),
        ("of", "debac", "abedc"),
        ("rms", "cadbe", "bdace"),
        ("layer", "bdace", "cadbe"),
        ("size", "ecbad", "abced"),
    ],
)
def test_numbers_sort_as_numbers_words_as_words(crafted, name, up, down):
    head = crafted.locator("#plain th", has=crafted.get_by_role("button", name=name, exact=True))
    assert head.get_attribute("aria-sort") == "none"
    for order, rows in (("ascending", up), ("descending", down), ("none", "abcde")):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert "".join(column(crafted, "plain", 0)) == rows


def test_one_column_at_a_time_and_by_keyboard(crafted):
    crafted.locator("#plain th button").nth(1).focus()
    crafted.keyboard.press("Enter")
    crafted.keyboard.press("Tab")
    crafted.keyboard.press("Space")
    sorted_by = crafted.locator("#plain th:not([aria-sort=none])[aria-sort]")
    assert [sorted_by.count(), sorted_by.inner_text()] == [1, "pixels"]
    assert "".join(column(crafted, "plain", 0)) == "bcaed"


def test_rows_of_a_group_keep_their_label(crafted):
    assert column(crafted, "grouped", 0)[0] == "baseline"
    crafted.locator("#grouped").get_by_role("button", name="after").click()
    assert [column(crafted, "grouped", k) for k in (0, 1, 3)] == [
        ["baseline", "baseline", "selective", "selective"],
        ["shuffled", "truth", "shuffled", "truth"],
        ["1", "2", "3", "4"],
    ]
    crafted.locator("#grouped").get_by_role("button", name="what").click()
    assert column(crafted, "grouped", 1) == ["shuffled", "shuffled", "truth", "truth"]
    assert column(crafted, "grouped", 0) == ["baseline", "selective"] * 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_of_the_committed_notebooks(browser, shots, tmp_path, scheme):
    names = [path.stem for path in find_notebooks()]
    path = tmp_path / "index.html"
    path.write_text(run_notebooks.index_page(names, NOTEBOOKS), encoding="utf-8")
    context = browser.new_context(
        viewport={"width": 1100, "height": 900}, color_scheme=scheme, offline=True
    )
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.screenshot(path=shots / f"page_{scheme}.png", full_page=True)

    assert page.locator("nav a").count() == page.locator("section").count() == len(names)
    for link in page.locator("nav a").all():
        name = link.get_attribute("href").removeprefix("#")
        assert page.locator(f'[id="{name}"]').count() == 1
    heads = page.locator("section th[aria-sort]")
    assert heads.count() >= 2 * page.locator("section table").count() >= len(names)
    # Every column of every table can be sorted, and put back.
    assert page.evaluate(EVERY_COLUMN) == []

    picture = page.locator(".picture").first
    small = picture.locator("img").bounding_box()
    picture.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog img")
    assert large.bounding_box()["width"] > small["width"]
    assert large.get_attribute("src") == picture.locator("img").get_attribute("src")
    page.screenshot(path=shots / f"page_enlarged_{scheme}.png")
    page.keyboard.press("Escape")
    assert not large.is_visible()
    picture.click()
    assert large.is_visible()
    large.click()
    assert not large.is_visible()
    # Nothing but the file itself and the pictures in it.
    assert {url for url in asked if not url.startswith("data:")} == {path.as_uri()}

    paper = shots / "page.pdf"
    page.pdf(path=paper, format="A4")
    assert paper.stat().st_size > 50_000
    context.close()


def test_pictures_are_shown_whole(page, tmp_path):
    """A picture's pixels reach the screen: a red one is red, enlarged too."""
    png = tmp_path / "red.png"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(png)
    data = {"image/png": base64.b64encode(png.read_bytes()).decode()}
    cells = [
        new_markdown_cell("# Red"),
        new_code_cell(outputs=[new_output("display_data", data=data)]),
    ]
    (tmp_path / "red.ipynb").write_text(text_of(new_notebook(cells=cells)), encoding="utf-8")
    (tmp_path / "index.html").write_text(run_notebooks.index_page(["red"], tmp_path))
    page.goto((tmp_path / "index.html").as_uri())
    page.locator(".picture").click()
    page.screenshot(path=tmp_path / "shot.png")
    with Image.open(tmp_path / "shot.png") as shot:
        assert shot.convert("RGB").getpixel((640, 450)) == (255, 0, 0)
