"""Reading and writing the suite's notebooks; shared by the scripts beside it."""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the scripts run without an installation too

from mde_utils.files import atomic  # noqa: E402

NOTEBOOKS = ROOT / "notebooks"
H1 = re.compile(r"^# (.+)$", re.MULTILINE)


def find_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks of `folder` in reading order, which their numbers give."""
    return sorted(folder.glob("[!.]*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def text_of(nb: nbformat.NotebookNode) -> str:
    return nbformat.writes(nb) + "\n"


def cell_tagged(nb: nbformat.NotebookNode, tag: str) -> nbformat.NotebookNode | None:
    return next((c for c in nb.cells if tag in c.metadata.get("tags", [])), None)


def title_cell(nb: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """The markdown cell that holds the H1."""
    return next((c for c in nb.cells if c.cell_type == "markdown" and H1.search(c.source)), None)


def title_of(nb: nbformat.NotebookNode) -> str | None:
    """The notebook's H1, as plain text."""
    cell = title_cell(nb)
    return H1.search(cell.source)[1].strip().replace("`", "").replace("*", "") if cell else None


def relative(path: Path) -> str:
    """`path` as a reader of the output types it: relative to here where it lies below."""
    try:
        return str(path.resolve().relative_to(Path.cwd().resolve()))
    except ValueError:
        return str(path)
