"""Executes the notebooks headless and writes a page that shows their results.

Each notebook runs in a fresh kernel of this very Python, in its own folder, two at a time, each on
its share of the cores. A cell may take as long as it works: only a kernel that is silent (no
output, no message, next to no processor time) is given up. A notebook that fails leaves its former
results as they were and does not stop the others; the page and the exit status say which failed.
What has run already, with the same source, package and profile, is not run again.

    python scripts/run_notebooks.py [--output outputs] [--silence 600] [--fresh] [notebook ...]
    python scripts/run_notebooks.py --in-place [notebook ...]
"""

import argparse
import asyncio
import base64
import hashlib
import html
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from importlib.metadata import distributions
from pathlib import Path
from string import Template

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
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
# Alone on two slow cores, nothing cached; in seconds.
USUAL = json.loads((ROOT / "scripts" / "usual_seconds.json").read_text(encoding="utf-8"))
# What a notebook's results depend on, besides its source.
SOURCES = ("mde_utils", "scenes")
IDLE = 0.02  # of a core: what a kernel uses that does nothing


def use_own_kernel(threads: int) -> None:
    """Makes the kernel name "python3" mean this interpreter, whatever is registered elsewhere."""
    own = str(Path(sys.prefix) / "share" / "jupyter")
    others = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = os.pathsep.join([own, others] if others else [own])
    # A backend chosen for scripts (Agg) would take the pictures out of the notebooks.
    os.environ.pop("MPLBACKEND", None)
    os.environ["TQDM_DISABLE"] = "1"  # a progress bar is for a person who waits
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))


def say(line: str) -> None:
    """Prints a line in one piece, whichever thread says what meanwhile."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def fingerprint() -> str:
    """Changes with the package, its networks and tables, the profile, and what is installed."""
    digest = hashlib.sha256(repr(os.environ.get("MDE_PROFILE")).encode())
    digest.update(sys.version.encode())
    digest.update(repr(sorted({(d.name, d.version) for d in distributions()})).encode())
    for path in sorted(path for name in SOURCES for path in (ROOT / name).rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def key_of(source: Path, package: str) -> str:
    """What a notebook's results depend on: its cells, and `package`, the `fingerprint`."""
    cells = [(cell.cell_type, cell.source) for cell in read(source).cells]
    return hashlib.sha256(repr((cells, package)).encode()).hexdigest()


class Notebook(NotebookClient):
    """One notebook while it runs: which cell, and when its kernel last showed a sign of life."""

    def __init__(self, source: Path):
        super().__init__(
            read(source),
            timeout=None,
            iopub_timeout=24 * 3600,  # large pictures may come late; silence ends it
            startup_timeout=600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": str(source.parent)}},
            extra_arguments=["--log-level=CRITICAL"],  # of the kernel: else a warning about TCP
            on_cell_start=self.begin,
        )
        self.log.setLevel("CRITICAL")  # errors are told once, below
        self.source, self.index, self.silent = source, None, 0.0
        self.began = self.alive = self.looked = time.monotonic()
        self.used = 0.0

    def begin(self, *, cell, cell_index: int) -> None:
        self.index = cell_index

    def process_message(self, *args):
        self.alive = time.monotonic()
        return super().process_message(*args)

    def processes(self) -> list[psutil.Process]:
        """The kernel and what it started."""
        try:
            kernel = psutil.Process(self.km.provisioner.pid)
            return [kernel, *kernel.children(recursive=True)]
        except (AttributeError, TypeError, psutil.Error):  # not yet there, or no longer
            return []

    def watch(self, silence: float) -> None:
        """Ends the kernel if it has been silent for `silence` seconds; to be called often."""
        now, used, processes = time.monotonic(), 0.0, self.processes()
        for process in processes:
            try:
                times = process.cpu_times()
                used += times.user + times.system
            except psutil.Error:
                continue
        # Starting has a limit of its own. A child that ended takes its time with it: that is work
        # as well. Clocks tick in 10 ms.
        if self.index is None or abs(used - self.used) > IDLE * (now - self.looked) + 0.02:
            self.alive = now
        self.used, self.looked = used, now
        if now - self.alive > silence:
            self.silent = now - self.alive
            self.kill()

    def kill(self) -> None:
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue

    def run(self) -> str | None:
        """Executes all cells into `self.nb`; None, or what went wrong and where."""
        self.began = self.alive = time.monotonic()
        for cell in self.nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        try:
            asyncio.run(self.async_execute())
            return None
        except CellExecutionError as error:
            what = f"{error.ename}: {error.evalue}"
        except Exception as error:  # the kernel died or did not start
            what = f"{type(error).__name__}: {error}"
        if self.silent:
            what = f"no output, no message and no processor time for {self.silent:.0f} s"
        what = re.sub(r"\x1b\[[0-9;]*m", "", what).strip()
        if self.index is None:
            return f"failed before its first cell\n  {what}"
        lines = self.nb.cells[self.index].source.strip().splitlines() or [""]
        return f"failed in cell {self.index + 1} (starting {lines[0]!r})\n  {what}"


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
        executed, failed = output / f"{name}.ipynb", output / f"{name}{FAILED}"
        lines, mark = [], ""
        nb = next((read(path) for path in (executed, failed) if path.exists()), None)
        if nb is None:
            contents.append(f'<li>{name} <span class="note">not executed</span></li>')
            continue
        title = html.escape(title_of(nb) or name)
        if failed.exists():
            mark = ' <strong class="failed">failed</strong>'
            error = html.escape(read(failed).metadata.get("suite", {}).get("error", ""))
            below = "; below are the results of a former run" if executed.exists() else ""
            lines.append(
                f'<div class="failed"><pre>{error}</pre>What it held by then: '
                f'<a href="{failed.name}">{failed.name}</a>{below}.</div>'
            )
        link = title
        if executed.exists():
            link = f'<a href="{name}.html">{title}</a>'
            seconds = nb.metadata.get("suite", {}).get("seconds")
            took = f"; executed in {seconds:.0f} s" if seconds else ""
            about = html.escape(printed(cell_tagged(nb, "bootstrap")).strip())
            lines += [last_table(nb) or "", last_picture(nb) or ""]
            lines.append(
                f'<p>The executed notebook <a href="{name}.html">{name}</a> '
                f'(<a href="{name}.ipynb">ipynb</a>){took}. <span class="note">{about}</span></p>'
            )
        contents.append(f'<li><a href="#{name}">{title}</a>{mark}</li>')
        body = "\n".join(lines)
        sections.append(f'<section id="{name}"><h2>{link}</h2>\n{body}</section>')
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        profile=html.escape(os.environ.get("MDE_PROFILE") or "auto"),
        contents="\n".join(contents),
        sections="\n".join(sections),
    )


class Runner:
    """Executes notebooks and puts each result in its place as soon as it is there."""

    def __init__(self, *, output: Path, in_place: bool, fresh: bool, names: list[str]):
        self.output, self.in_place, self.names = output, in_place, names
        self.fresh = fresh or in_place
        self.package = fingerprint()
        self.running: list[Notebook] = []
        self.stopped = False

    def former(self, source: Path) -> dict:
        """Key and seconds of the last successful run."""
        path = self.output / source.name
        return dict(read(path).metadata.get("suite", {})) if path.exists() else {}

    def is_done(self, source: Path) -> bool:
        failed = (self.output / f"{source.stem}{FAILED}").exists()
        same = self.former(source).get("key") == key_of(source, self.package)
        return same and not failed and not self.fresh

    def execute(self, source: Path) -> str | None:
        """None, or what went wrong."""
        try:
            return self._execute(source)
        except Exception as error:  # its file is no notebook, its page cannot be made or written
            say(f"{source.stem}: FAILED")
            return f"{relative(source)} failed outside its cells\n  {type(error).__name__}: {error}"

    def _execute(self, source: Path) -> str | None:
        usual, here = USUAL.get(source.stem), self.former(source).get("seconds")
        known = [f"usually {usual} s alone on two slow cores"] if usual else []
        known += [f"{here:.0f} s here the last time"] if here else []
        say(f"{source.stem} … {'; '.join(known)}")
        notebook = Notebook(source)
        key = key_of(source, self.package)
        self.running.append(notebook)
        error = notebook.run()
        self.running.remove(notebook)
        if self.stopped:
            return error
        seconds = time.monotonic() - notebook.began
        failed = self.output / f"{source.stem}{FAILED}"
        if error:
            error = f"{relative(source)} {error}"
            notebook.nb.metadata["suite"] = {"error": error}
            write_text(failed, text_of(notebook.nb))  # to look at, under a name of its own
            error += f"\n  what it held by then: {relative(failed)}"
        elif self.in_place:
            write_text(source, text_of(strip(notebook.nb)))
        else:
            notebook.nb.metadata["suite"] = {"key": key, "seconds": round(seconds, 1)}
            write_text(self.output / f"{source.stem}.html", to_html(notebook.nb, self.names))
            write_text(self.output / source.name, text_of(notebook.nb))
        if not error:
            failed.unlink(missing_ok=True)
        say(f"{source.stem}: {'FAILED' if error else 'done'} in {seconds:.0f} s")
        return error

    def all(self, sources: Iterable[Path], *, at_once: int, silence: float) -> list[str]:
        """What went wrong, an entry a notebook that failed. The longest start first."""
        todo = []
        for source in sources:
            done = False
            with suppress(ValueError):  # what is no notebook says so when its turn comes
                done = self.is_done(source)
            if done:
                say(f"{source.stem}: as before, nothing it depends on has changed")
            else:
                todo.append(source)
        todo.sort(key=lambda source: -USUAL.get(source.stem, 0))
        pool = ThreadPoolExecutor(at_once)
        jobs = [pool.submit(self.execute, source) for source in todo]
        try:
            while wait(jobs, timeout=min(5.0, silence / 8)).not_done:
                for notebook in list(self.running):
                    notebook.watch(silence)
        except BaseException:  # Ctrl-C
            self.stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            for notebook in list(self.running):
                notebook.kill()
            raise
        return [error for job in jobs if (error := job.result())]


def main(argv: list[str] | None = None) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: all of --source")
    parser.add_argument("--source", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    parser.add_argument("--output", type=Path, default=ROOT / "outputs", help="where results go")
    parser.add_argument("--silence", type=float, default=600, help="seconds without sign of life")
    parser.add_argument("--at-once", type=int, default=min(2, cores), help="how many at a time")
    parser.add_argument("--fresh", action="store_true", help="execute what is done already, too")
    parser.add_argument("--in-place", action="store_true", help="ready the sources for a commit")
    arguments = parser.parse_args(argv)

    sources = arguments.notebooks or find_notebooks(arguments.source)
    missing = [str(path) for path in sources if not path.is_file()]
    if missing or not sources:
        parser.error(f"no notebook at {', '.join(missing) or arguments.source}")

    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in find_notebooks(arguments.source)]
    use_own_kernel(max(1, cores // arguments.at_once))
    runner = Runner(output=output, in_place=arguments.in_place, fresh=arguments.fresh, names=names)
    try:
        errors = runner.all(sources, at_once=arguments.at_once, silence=arguments.silence)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    for error in errors:
        print(error, file=sys.stderr)
    sys.stderr.flush()
    print(f"{len(sources) - len(errors)} of {len(sources)} notebooks passed")
    if not arguments.in_place:
        write_text(output / "index.html", index_page(names, output))
        print(output / "index.html")
    return int(bool(errors))


if __name__ == "__main__":
    sys.exit(main())
