"""Writes the bootstrap cell and the badges of every notebook from one place.

The repository's address is `Repository` under [project.urls] in pyproject.toml. While there is
none, the bootstrap cell offers no clone and no badge is written: nothing invents a link.

    python scripts/badges.py [--check] [notebook ...]
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from notebook_tools import (
    ROOT,
    cell_tagged,
    find_notebooks,
    read,
    relative,
    text_of,
    title_cell,
    write_text,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BRANCH = "main"
TEMPLATE = ROOT / "scripts" / "bootstrap_cell.py"
REGION = re.compile(r"\n*<!-- badges -->.*?<!-- /badges -->\n*", re.DOTALL)


def repository_address(pyproject: Path = ROOT / "pyproject.toml") -> str:
    """The address in [project.urls], without a trailing slash; "" while there is none.

    Raises:
        ValueError: it is not https://github.com/<owner>/<repository>, which the badges need.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    address = project.get("urls", {}).get("Repository", "").rstrip("/").removesuffix(".git")
    if address and not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(
            f"[project.urls] Repository is {address!r}; Colab and Kaggle open notebooks from "
            "https://github.com/<owner>/<repository> only."
        )
    return address


def bootstrap_source(address: str) -> str:
    """The source of the bootstrap cell."""
    empty = 'REPOSITORY = ""'
    template = TEMPLATE.read_text(encoding="utf-8").strip()
    if template.count(empty) != 1:
        raise ValueError(f"{TEMPLATE.name} must hold the line {empty} once.")
    return template.replace(empty, f'REPOSITORY = "{address}"')


def badges_markdown(name: str, address: str) -> str:
    """The badges of the notebook file `name`."""
    page = f"{address.removeprefix('https://github.com/')}/blob/{BRANCH}/notebooks/{name}"
    colab = "https://colab.research.google.com"
    kaggle = "https://kaggle.com"
    return (
        f"[![Open in Colab]({colab}/assets/colab-badge.svg)]({colab}/github/{page})\n"
        f"[![Open in Kaggle]({kaggle}/static/images/open-in-kaggle.svg)]"
        f"({kaggle}/kernels/welcome?src=https://github.com/{page})"
    )


def update(nb: nbformat.NotebookNode, name: str, address: str) -> None:
    """Writes badges below the H1 and the bootstrap cell below the parameters, in place.

    Raises:
        ValueError: there is no H1, or no cell tagged `parameters`.
    """
    title, parameters = title_cell(nb), cell_tagged(nb, "parameters")
    if title is None or parameters is None:
        lacking = "H1 title" if title is None else "cell tagged 'parameters'"
        raise ValueError(f"{name} has no {lacking}.")

    title.source = REGION.sub("\n\n", title.source).rstrip("\n")
    if address:
        region = f"\n\n<!-- badges -->\n{badges_markdown(name, address)}\n<!-- /badges -->\n\n"
        title.source = re.sub(
            r"^(# .+)$\n*", lambda m: m[1] + region, title.source, count=1, flags=re.MULTILINE
        ).rstrip("\n")

    bootstrap = cell_tagged(nb, "bootstrap")
    if bootstrap is None:
        bootstrap = nbformat.v4.new_code_cell(metadata={"tags": ["bootstrap"]})
        nb.cells.insert(nb.cells.index(parameters) + 1, bootstrap)
    bootstrap.source = bootstrap_source(address)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of notebooks/")
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    arguments = parser.parse_args(argv)

    address = repository_address()
    stale = []
    for path in arguments.notebooks or find_notebooks():
        nb = read(path)
        update(nb, path.name, address)
        if text_of(nb) != path.read_text(encoding="utf-8"):
            stale.append(path)
            if not arguments.check:
                write_text(path, text_of(nb))
    for path in stale:
        print(f"{relative(path)}: {'run `make badges`' if arguments.check else 'written'}")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
