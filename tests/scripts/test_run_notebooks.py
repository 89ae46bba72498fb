import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import notebook_tools
import pytest
import run_notebooks
import strip
from nbformat.v4 import new_output
from sample import a_notebook, write_notebook

ROOT = notebook_tools.ROOT
PIXEL = (  # one red pixel, PNG
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)
SHOW = f"""
import os, sys
from base64 import b64decode
from IPython.display import HTML, Image, display
assert os.environ["MPLBACKEND"] != "Agg"  # or no figure would be shown
assert sys.prefix == {sys.prefix!r}
assert os.path.exists("first.ipynb")  # a notebook runs in its own folder
display(HTML("<table><tr><td>0.25</td></tr></table>"), Image(b64decode({PIXEL!r})))
display(HTML("<table><tr><td>0.75</td></tr></table>"))
"""


def command(folder: Path, *options: str) -> dict:
    """The runner on the notebooks of `folder`, where another "python3" is registered."""
    foreign = folder / "jupyter" / "kernels" / "python3"
    foreign.mkdir(parents=True, exist_ok=True)
    spec = {"argv": ["no-such-python"], "display_name": "Python 3", "language": "python"}
    (foreign / "kernel.json").write_text(json.dumps(spec))
    environment = os.environ | {
        "JUPYTER_PATH": str(folder / "jupyter"),
        "MPLBACKEND": "Agg",
        "MDE_PROFILE": "demo",
    }
    script = ROOT / "scripts" / "run_notebooks.py"
    where = ["--source", str(folder / "notebooks"), "--output", str(folder / "outputs")]
    return {
        "args": [sys.executable, str(script), *where, *options],
        "env": environment,
        "cwd": folder,
        "text": True,
    }


def run_script(folder: Path, *options: str):
    return subprocess.run(**command(folder, *options), capture_output=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    write_notebook(folder, "first", SHOW)
    write_notebook(folder, "second", "seed")
    return folder, run_script(folder)


def test_run_ends_by_naming_the_page(executed):
    folder, result = executed
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert sum(line.startswith(("first: done in", "second: done in")) for line in lines) == 2
    assert lines[-2:] == ["2 of 2 notebooks passed", str(folder / "outputs" / "index.html")]
    names = {"first.html", "first.ipynb", "second.html", "second.ipynb", "index.html"}
    assert contents(folder / "outputs").keys() == names


def test_page_shows_title_table_picture_and_links(executed):
    folder, _ = executed
    page = (folder / "outputs" / "index.html").read_text()
    assert "Title of first &amp; more" in page and "Title of second" in page
    assert "<td>0.75</td>" in page and "<td>0.25</td>" not in page
    assert page.count("data:image/png;base64,") == 1 and PIXEL[:40] in page
    assert 'href="first.html"' in page and 'href="second.html"' in page
    assert '<li><a href="#first">' in page and '<section id="first">' in page
    assert "http" not in page and " src=" not in page.replace(' src="data:', "")
    assert 'href="second.html"' in (folder / "outputs" / "first.html").read_text()


def test_page_says_what_stands_behind_a_number():
    nb = a_notebook("")
    table = "<table><caption>rooms/test, 64 images</caption><tr><td>0.75</td></tr></table>"
    outputs = [
        new_output("stream", text="protocol imde: depth < 10 m\n"),
        new_output("stream", name="stderr", text="a warning\n"),
        new_output("display_data", data={"text/html": table}),
    ]
    nb.cells[-1].outputs = outputs
    shown = run_notebooks.last_table(nb)
    assert table in shown and "protocol imde: depth &lt; 10 m" in shown
    assert "warning" not in shown and "no caption" not in shown
    outputs[-1].data["text/html"] = "<table><tr><td>0.75</td></tr></table>"
    assert "The notebook gives this table no caption." in run_notebooks.last_table(nb)


def test_page_names_what_was_not_executed(tmp_path):
    assert "unseen <span" in run_notebooks.index_page(["unseen"], tmp_path)


def test_failure_stops_no_other_and_leaves_former_results(executed):
    """A failure in the middle; then, mended, only what is not done yet runs."""
    folder, _ = executed
    outputs = folder / "outputs"
    former = contents(outputs)
    sound = (folder / "notebooks" / "first.ipynb").read_bytes()
    path = write_notebook(folder, "first", "x = 1", "1 / 0")
    write_notebook(folder, "third", "'the third ran'")
    result = run_script(folder)
    assert result.returncode == 1
    assert "first.ipynb failed in cell 4 (starting '1 / 0')" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "third: done in" in result.stdout and "2 of 3 notebooks passed" in result.stdout
    assert "second … " not in result.stdout and "second: as before" in result.stdout
    later = contents(outputs)
    assert b"ZeroDivisionError" in later["first.failed.ipynb"]
    assert all(later[name] == former[name] for name in former.keys() - {"index.html"})
    page = later["index.html"].decode()
    assert page.count("ZeroDivisionError: division by zero") == 1
    assert page.count(">failed</strong>") == 1 and 'href="first.failed.ipynb"' in page

    path.write_bytes(sound)  # what stands there from before the failure is not taken for done
    result = run_script(folder)
    assert result.returncode == 0, result.stderr
    assert "first: done in" in result.stdout and result.stdout.count(": as before") == 2
    assert "first.failed.ipynb" not in contents(outputs)
    assert "failed</strong>" not in (outputs / "index.html").read_text()
    result = run_script(folder, "--fresh", str(folder / "notebooks" / "second.ipynb"))
    assert "second: done in" in result.stdout and "as before" not in result.stdout


def test_what_a_result_depends_on(tmp_path, monkeypatch):
    package = tmp_path / "mde_utils"
    package.mkdir()
    (package / "losses.py").write_text("a = 1")
    monkeypatch.setattr(run_notebooks, "ROOT", tmp_path)
    source = write_notebook(tmp_path, "first", "1 + 1")

    def key():
        return run_notebooks.key_of(source, run_notebooks.fingerprint())

    seen = [key()]
    nb = notebook_tools.read(source)
    nb.cells[-1].outputs = [new_output("stream", text="2")]
    source.write_text(notebook_tools.text_of(nb), encoding="utf-8")
    (package / "losses.pyc").write_text("")
    assert key() == seen[0]
    write_notebook(tmp_path, "first", "1 + 2")
    seen.append(key())
    (package / "losses.py").write_text("a = 2")
    seen.append(key())
    monkeypatch.setenv("MDE_PROFILE", "full")
    seen.append(key())
    assert len(set(seen)) == 4


def test_silent_cell_is_given_up_and_named(tmp_path):
    path = write_notebook(tmp_path, "first", "import time\ntime.sleep(300)")
    write_notebook(tmp_path, "second", "1 + 1")
    before = path.read_bytes()
    result = run_script(tmp_path, "--silence", "3", "--in-place")
    assert result.returncode == 1
    assert "first.ipynb failed in cell 3 (starting 'import time')" in result.stderr
    assert "no output, no message and no processor time for" in result.stderr
    assert "second: done in" in result.stdout
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {"first.ipynb", "second.ipynb"}


def test_a_file_that_is_no_notebook_stops_no_other(tmp_path):
    path = write_notebook(tmp_path, "first", "1 + 1")
    write_notebook(tmp_path, "second", "2 + 2")
    path.write_text("<<<<<<< conflict")
    result = run_script(tmp_path)
    assert result.returncode == 1 and "first.ipynb failed outside its cells" in result.stderr
    assert "second: done in" in result.stdout and (tmp_path / "outputs" / "index.html").exists()


def test_working_cell_may_take_as_long_as_it_works(tmp_path):
    """One that computes, one whose child process does, one that says something now and then."""
    spin = "import time\nend = time.monotonic() + 8\nwhile time.monotonic() < end: pass"
    child = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}], check=True)"
    say = "import time\nfor i in range(16):\n    print(i)\n    time.sleep(0.5)"
    write_notebook(tmp_path, "first", spin, child)
    write_notebook(tmp_path, "second", say)
    result = run_script(tmp_path, "--silence", "5")
    assert result.returncode == 0, result.stderr


def test_stopped_by_hand_leaves_no_trace_and_goes_on(tmp_path):
    write_notebook(tmp_path, "first", "1 + 1")
    last = write_notebook(tmp_path, "second", "import time\ntime.sleep(300)")
    with subprocess.Popen(
        **command(tmp_path, "--at-once", "1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell's background jobs ignore it, and so would what they start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        for line in process.stdout:
            if line.startswith("second …"):
                break
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "goes on from here" in said
    assert contents(tmp_path / "outputs").keys() == {"first.html", "first.ipynb"}
    write_notebook(tmp_path, last.stem, "2 + 2")
    result = run_script(tmp_path)
    assert result.returncode == 0 and "first: as before" in result.stdout


def test_in_place_is_ready_to_commit(tmp_path):
    path = write_notebook(tmp_path, "first", f"print({str(ROOT)!r} + '/data')")
    result = run_script(tmp_path, "--in-place")
    assert result.returncode == 0, result.stderr
    nb = notebook_tools.read(path)
    assert [cell.execution_count for cell in nb.cells if cell.cell_type == "code"] == [1, 2]
    assert nb.cells[-1].outputs[0].text == "data\n"
    assert strip.strip(nb) == nb


def test_no_notebook_is_an_error(tmp_path):
    result = run_script(tmp_path)
    assert result.returncode == 2 and "no notebook at" in result.stderr


def test_final_picture_may_be_a_drawing():
    nb = a_notebook("")
    nb.cells[-1].outputs = [new_output("display_data", data={"image/svg+xml": "<svg/>"})]
    assert "data:image/svg+xml;base64,PHN2Zy8+" in run_notebooks.last_picture(nb)
    assert run_notebooks.last_table(nb) is None


def test_every_notebook_says_how_long_it_takes():
    assert run_notebooks.USUAL.keys() == {p.stem for p in notebook_tools.find_notebooks()}
