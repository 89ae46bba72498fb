"""Small notebooks for the tests of the scripts."""

from pathlib import Path

import nbformat
import notebook_tools
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook


def a_notebook(*code: str) -> nbformat.NotebookNode:
    parameters = new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# A title\n\nNeeds nothing."), parameters]
    return new_notebook(cells=[*cells, *map(new_code_cell, code)])


def write_notebook(folder: Path, name: str, *code: str) -> Path:
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nb = a_notebook(*code)
    nb.cells[0].source = f"# Title of *{name}* & more\n\nThe [next](second.ipynb)"
    path.write_text(notebook_tools.text_of(nb), encoding="utf-8")
    return path
