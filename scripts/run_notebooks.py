"""Executes the notebooks headless, in order, and writes a page that shows their results.

Each notebook runs in a fresh kernel of this very Python, in its own folder, into a temporary file
that takes its place only when every cell has passed: a failed run never touches former outputs.
The first failure stops the run.

    python scripts/run_notebooks.py [--output outputs] [--timeout 900] [notebook ...]
    python scripts/run_notebooks.py --in-place [notebook ...]
"""

import argparse
import base64
import html
import os
import re
import sys
import time
from pathlib import Path
from string import Template

import nbformat
from notebook_tools import (
    NOTEBOOKS,
    ROOT,
    cell_tagged,
    find_notebooks,
    read,
    relative,
    text_of,
    title_of,
    write_text,
)
from strip import strip

FAILED = ".failed.ipynb"
TEMPLATE = ROOT / "scripts" / "results.html"


class NotebookFailed(Exception):
    """A cell of a notebook raised, ran out of time, or killed its kernel."""


def use_own_kernel() -> None:
    """Makes the kernel name "python3" mean this interpreter, whatever is registered elsewhere."""
    own = str(Path(sys.prefix) / "share" / "jupyter")
    others = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join([own, others] if others else [own])
    # A backend chosen for scripts (Agg) would take the pictures out of the notebooks.
    os.environ.pop("MPLBACKEND", None)
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar is for a person who waits


def execute(source: Path, partial: Path, timeout: int) -> nbformat.NotebookNode:
    """Runs `source` into the file `partial` and returns what it holds.

    Raises:
        NotebookFailed: naming the notebook, the cell and its error.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    try:
        papermill.execute_notebook(
            source,
            partial.absolute(),
            kernel_name="python3",
            cwd=source.parent,
            progress_bar=False,
            execution_timeout=timeout,
            extra_arguments=["--log-level=ERROR"],  # of the kernel: else a warning about TCP
        )
    except PapermillExecutionError as error:
        where, what = error.cell_index, f"{error.ename}: {error.evalue}"
    except Exception as error:  # the kernel died or did not start, or a cell ran out of time
        where, what = _interrupted_cell(partial), f"{type(error).__name__}: {error}"
    else:
        return read(partial)

    what = re.sub(r"\x1b\[[0-9;]*m", "", what).strip()
    if where is None:
        raise NotebookFailed(f"{relative(source)} failed before its first cell\n  {what}")
    lines = read(source).cells[where].source.strip().splitlines() or [""]
    raise NotebookFailed(
        f"{relative(source)} failed in cell {where + 1} (starting {lines[0]!r})\n  {what}"
    )


def _interrupted_cell(partial: Path) -> int | None:
    """The last cell that was started; papermill calls one that ran out of time completed."""
    if not partial.exists():
        return None
    cells = read(partial).cells
    started = (i for i, cell in enumerate(cells) if cell.metadata.papermill.start_time)
    return max(started, default=None)


def to_html(nb: nbformat.NotebookNode, names: list[str]) -> str:
    """The notebook as one page; links to the notebooks called `names` lead to their pages."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(
        nb, resources={"metadata": {"name": title_of(nb) or "Notebook"}}
    )
    for name in names:
        page = page.replace(f'href="{name}.ipynb"', f'href="{name}.html"')
    return page


def last_table(nb: nbformat.NotebookNode) -> str | None:
    """The HTML of the last output that holds a table, and below it what its cell printed."""
    for cell, kind, data in _outputs_from_the_end(nb):
        if kind == "text/html" and "<table" in data:
            said = "" if "<caption" in data else "The notebook gives this table no caption.\n"
            said += printed(cell)
            note = f'<div class="note"><pre>{html.escape(said)}</pre></div>' if said else ""
            return f'<div class="table">{data}</div>\n{note}'
    return None


def last_picture(nb: nbformat.NotebookNode) -> str | None:
    """The last picture, as an HTML element that needs no other file."""
    for _, kind, data in _outputs_from_the_end(nb):
        if kind in ("image/png", "image/jpeg"):
            data = "".join(data.split())
        elif kind == "image/svg+xml":
            data = base64.b64encode(data.encode()).decode()
        else:
            continue
        alt = html.escape(f"final picture of: {title_of(nb)}")
        image = f'<img alt="{alt}" src="data:{kind};base64,{data}">'
        return f'<button type="button" class="picture">{image}</button>'
    return None


def printed(cell: nbformat.NotebookNode | None) -> str:
    """What a code cell printed, such as the protocol of its numbers; not its warnings."""
    outputs = cell.get("outputs", []) if cell else []
    return "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")


def _outputs_from_the_end(nb: nbformat.NotebookNode):
    for cell in reversed(nb.cells):
        for output in reversed(cell.get("outputs", [])):
            for kind, data in output.get("data", {}).items():
                yield cell, kind, data


def index_page(names: list[str], output: Path) -> str:
    """The page of results: for each notebook its title, final table and picture, and its link."""
    contents, sections = [], []
    for name in names:
        if not (output / f"{name}.ipynb").exists():
            contents.append(f'<li>{name} <span class="note">not executed</span></li>')
            continue
        nb = read(output / f"{name}.ipynb")
        title = html.escape(title_of(nb) or name)
        seconds = nb.metadata.get("papermill", {}).get("duration")
        took = f"; executed in {seconds:.0f} s" if seconds else ""
        about = html.escape(printed(cell_tagged(nb, "bootstrap")).strip())
        contents.append(f'<li><a href="#{name}">{title}</a></li>')
        sections.append(
            f'<section id="{name}"><h2><a href="{name}.html">{title}</a></h2>\n'
            f"{last_table(nb) or ''}\n{last_picture(nb) or ''}\n"
            f'<p>The executed notebook <a href="{name}.html">{name}</a> '
            f'(<a href="{name}.ipynb">ipynb</a>){took}. <span class="note">{about}</span></p>'
            "</section>"
        )
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        profile=html.escape(os.environ.get("MDE_PROFILE") or "auto"),
        contents="\n".join(contents),
        sections="\n".join(sections),
    )


def run(
    sources: list[Path], *, output: Path, in_place: bool, timeout: int, names: list[str]
) -> None:
    """Executes `sources` one after another; each result is in place before the next one starts."""
    for number, source in enumerate(sources, 1):
        print(f"[{number}/{len(sources)}] {source.stem} …", end=" ", flush=True)
        start = time.monotonic()
        folder = source.parent if in_place else output
        partial = folder / f".{source.stem}.partial.ipynb"
        failed = output / f"{source.stem}{FAILED}"
        try:
            nb = execute(source, partial, timeout)
            if in_place:
                write_text(source, text_of(strip(nb)))
            else:
                page = to_html(nb, names)
                os.replace(partial, output / source.name)
                write_text(output / f"{source.stem}.html", page)
            failed.unlink(missing_ok=True)
        except NotebookFailed as error:
            print("failed", flush=True)
            if partial.exists():  # kept to look at, under a name of its own
                os.replace(partial, failed)
                error = NotebookFailed(f"{error}\n  what it held by then: {relative(failed)}")
            raise error from None
        finally:
            partial.unlink(missing_ok=True)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of --source")
    parser.add_argument("--source", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", help="where results go")
    parser.add_argument("--timeout", type=int, default=900, help="seconds a cell may take")
    parser.add_argument("--in-place", action="store_true", help="ready the sources for a commit")
    arguments = parser.parse_args(argv)

    sources = arguments.notebooks or find_notebooks(arguments.source)
    missing = [str(path) for path in sources if not path.is_file()]
    if missing or not sources:
        parser.error(f"no notebook at {', '.join(missing) or arguments.source}")

    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in find_notebooks(arguments.source)]
    use_own_kernel()
    try:
        run(
            sources,
            output=output,
            in_place=arguments.in_place,
            timeout=arguments.timeout,
            names=names,
        )
    except NotebookFailed as error:
        print(error, file=sys.stderr)
        return 1
    if not arguments.in_place:
        write_text(output / "index.html", index_page(names, output))
        print(output / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
