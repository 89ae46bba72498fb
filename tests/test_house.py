"""The rules of the house: dependencies, the scripts that run notebooks, what may be committed."""

import ast
import graphlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import badges
import nbformat
import notebook_tools
import pytest
import run_notebooks
import strip
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import mde_utils

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = notebook_tools.find_notebooks()
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# ---------------------------------------------------------------------------------------------
# Dependencies

# Each may import its own layer and the ones before it (design: "dependencies point one way").
LAYERS = (
    {"data", "models", "depth_bins", "environment", "files", "processes", "stereo"},
    {"selectivity", "activations", "replay", "losses", "checkpoints"},
    {
        "training",
        "dissection",
        "interventions",
        "attacks",
        "evaluation",
        "paper",
        "views",
        "checkup",
    },
)
# `build_model(weights=…)` reads weights. Checkpoints, in turn, know no model.
UPWARD = {("models", "checkpoints")}
# Asked for where one function alone needs them, with an error that says how to get them.
OPTIONAL = {"OpenEXR", "onnxruntime"}
DISTRIBUTION = {"PIL": "pillow", "cv2": "opencv-python-headless", "IPython": "ipywidgets"}


def imports_of(path: Path):
    """Each import anywhere in a file, as a dotted absolute name."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def package_imports() -> dict[str, set[str]]:
    """Top-level part of mde_utils ("data", "training", …) -> the dotted names it imports."""
    found = {}
    for path in sorted((ROOT / "mde_utils").rglob("*.py")):
        part = path.relative_to(ROOT / "mde_utils").parts[0].removesuffix(".py")
        if part != "__init__":
            found.setdefault(part, set()).update(imports_of(path))
    return found


def test_dependencies_point_one_way():
    rank = {part: number for number, layer in enumerate(LAYERS) for part in layer}
    graph = {}
    for part, names in package_imports().items():
        assert part in rank, f"mde_utils/{part} has no place in LAYERS"
        inner = {name.split(".")[1] for name in names if name.startswith("mde_utils.")}
        graph[part] = (inner & rank.keys()) - {part}
        upward = {p for p in graph[part] if rank[p] > rank[part] and (part, p) not in UPWARD}
        assert not upward, f"mde_utils/{part} imports from a layer above it: {sorted(upward)}"
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_requirements_cover_the_imports():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] != "#"}
    for part, names in package_imports().items():
        tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"mde_utils"}
        tops -= OPTIONAL
        lacking = {top for top in tops if DISTRIBUTION.get(top, top) not in listed}
        assert not lacking, f"mde_utils/{part} imports {sorted(lacking)}, not in requirements.txt"
    for_tests = (ROOT / "requirements-dev.txt").read_text().splitlines()
    assert {re.match(r"[\w.-]+", line)[0] for line in for_tests if line[0].isalpha()} >= OPTIONAL


def test_notebook_packages_only_in_views():
    for part, names in package_imports().items():
        tops = {name.split(".")[0] for name in names}
        assert part == "views" or not tops & {"IPython", "ipywidgets"}, part


def test_public_names_resolve_and_cost_nothing_before():
    for name in mde_utils.__all__:
        assert getattr(mde_utils, name) is not None
        assert name in dir(mde_utils)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mde_utils.nonsense
    command = "import sys, mde_utils; assert not {'torch', 'numpy', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", command], check=True, cwd=ROOT)


# ---------------------------------------------------------------------------------------------
# What may be committed


FOLDERS = ("mde_utils", "tests", "tests_browser", "scripts", "notebooks", "benchmarks")


def own_files(*endings: str):
    folders = [ROOT / name for name in FOLDERS]
    paths = [*ROOT.glob("*"), ROOT / "data" / "README.md"]
    paths += [path for folder in folders for path in folder.rglob("*")]
    for path in paths:
        hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        if path.is_file() and path.suffix in endings and not hidden:
            yield path


def test_no_path_of_one_machine():
    for path in own_files(".py", ".ipynb", ".md", ".toml"):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            text = re.sub(r'"image/[^"]*": "[^"]*"', "", text)
        found = strip.MACHINE_PATH.search(text)
        assert not found, f"{path.relative_to(ROOT)} holds a path of one machine: {found[0]}"


@by_name
def test_committed_notebook(path):
    assert path.stat().st_size < 2 * 2**20, "2 MB is the most that GitHub shows well"
    nb = notebook_tools.read(path)
    nbformat.validate(nb)
    assert notebook_tools.title_of(nb)
    assert notebook_tools.cell_tagged(nb, "parameters")

    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count is not None for cell in code), "a cell was not executed"
    outputs = [output for cell in code for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs), "no picture"
    assert "widgets" not in nb.metadata, "a widget's state breaks GitHub's view"

    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    links = re.findall(r"\]\((?!\w+:|#)([^)#]+)", text)
    assert all((path.parent / link).exists() for link in links), f"a dead link among {links}"


@by_name
def test_committed_notebook_is_as_the_scripts_write_it(path):
    nb = notebook_tools.read(path)
    assert strip.strip(nb) == nb, "run scripts/strip.py"
    written = notebook_tools.read(path)
    badges.update(written, path.name, badges.repository_address())
    assert written == nb, "run `make badges`"


def test_start_and_readme_name_every_notebook():
    start = notebook_tools.read(ROOT / "notebooks" / "00_start.ipynb")
    text = "\n".join(cell.source for cell in start.cells if cell.cell_type == "markdown")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert path.stem == "00_start" or f"| [{path.stem}]({path.name}) |" in text
        assert f"| [{path.stem}](notebooks/{path.name}) |" in readme


def test_ci_calls_make_test():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make test" in script.read_text()


# ---------------------------------------------------------------------------------------------
# Bootstrap cell and badges

ADDRESS = "https://github.com/someone/suite"


def a_notebook(*code: str) -> nbformat.NotebookNode:
    parameters = new_code_cell("seed: int = 0", metadata={"tags": ["parameters"]})
    cells = [new_markdown_cell("# A title\n\nNeeds nothing."), parameters]
    return new_notebook(cells=[*cells, *map(new_code_cell, code)])


def test_without_an_address_there_is_no_link():
    nb = a_notebook()
    badges.update(nb, "01_data.ipynb", "")
    assert nb.cells[0].source == "# A title\n\nNeeds nothing."
    assert 'REPOSITORY = ""\n' in nb.cells[2].source
    assert "http" not in notebook_tools.text_of(nb)


def test_badges_are_written_replaced_and_removed():
    nb = a_notebook()
    badges.update(nb, "01_data.ipynb", "")
    plain = notebook_tools.text_of(nb)
    badges.update(nb, "01_data.ipynb", ADDRESS)
    once = notebook_tools.text_of(nb)
    head = nb.cells[0].source
    assert head.startswith("# A title\n\n<!-- badges -->\n[![Open in Colab]")
    assert "/github/someone/suite/blob/main/notebooks/01_data.ipynb" in head
    assert f"src={ADDRESS}/blob/main/notebooks/01_data.ipynb" in head
    assert f'REPOSITORY = "{ADDRESS}"' in notebook_tools.cell_tagged(nb, "bootstrap").source
    badges.update(nb, "01_data.ipynb", ADDRESS)
    assert notebook_tools.text_of(nb) == once
    badges.update(nb, "01_data.ipynb", "")
    assert notebook_tools.text_of(nb) == plain


def test_badges_need_title_and_parameters():
    for lacking in (0, 1):
        nb = a_notebook()
        del nb.cells[lacking]
        with pytest.raises(ValueError, match="01_data.ipynb has no"):
            badges.update(nb, "01_data.ipynb", "")


def test_address_comes_from_pyproject(tmp_path):
    path = tmp_path / "pyproject.toml"
    path.write_text(f'[project.urls]\nRepository = "{ADDRESS}.git"\n')
    assert badges.repository_address(path) == ADDRESS
    path.write_text('[project.urls]\nRepository = "https://example.org/suite"\n')
    with pytest.raises(ValueError, match="github.com/<owner>/<repository>"):
        badges.repository_address(path)


def run_bootstrap(folder: Path, *, address: str = "", attached: Path | None = None):
    """Runs the bootstrap cell in `folder` with a Python that has no packages installed."""
    source = badges.bootstrap_source(address)
    assert source.count('"/kaggle/input"') == 1
    source = source.replace('"/kaggle/input"', repr(str(attached or folder / "nothing")))
    command = [sys.executable, "-I", "-S", "-c", source]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def a_package(folder: Path) -> Path:
    home = folder / "mde_utils"
    home.mkdir(parents=True)
    (home / "__init__.py").write_text("about = lambda: 'here at last'\n")
    return folder


@pytest.mark.parametrize("where", ["parent", "beside", "input", "owner", "clone"])
def test_bootstrap_finds_the_package(tmp_path, where):
    here = tmp_path / "checkout" / "notebooks"
    here.mkdir(parents=True)
    options = {"attached": tmp_path / "attached"}
    if where == "parent":
        a_package(here.parent)
    elif where == "beside":
        a_package(here)
    elif where == "input":
        a_package(options["attached"] / "mde-suite")
    elif where == "owner":
        a_package(options["attached"] / "datasets" / "someone" / "mde-suite" / "suite")
    else:
        origin = a_package(tmp_path / "origin")
        git = ["git", "-C", str(origin), "-c", "user.name=A", "-c", "user.email=a@b.c"]
        for step in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "-m", "Add"]):
            subprocess.run([*git, *step], check=True)
        options["address"] = origin.as_uri()
    for _ in range(2):  # the second time a clone is there already
        result = run_bootstrap(here, **options)
        assert result.stdout == "here at last\n", result.stderr


@pytest.mark.parametrize("address", ["", "file:///no/such/repository"])
def test_bootstrap_names_the_remedies(tmp_path, address):
    result = run_bootstrap(tmp_path, address=address)
    assert result.returncode != 0
    assert "open this notebook in its checkout" in result.stderr
    assert "attach it as a Kaggle input" in result.stderr


# ---------------------------------------------------------------------------------------------
# Stripping


def machine(*parts: str) -> str:
    return "/" + "/".join(parts)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"read {ROOT}/data/x.csv", "read data/x.csv"),
        (f"in {ROOT}, twice", "in ., twice"),
        (
            machine("root", "env", "site-packages", "torch", "nn.py:3"),
            "site-packages/torch/nn.py:3",
        ),
        (f"see {Path.home()}/.cache/mde_utils", "see ~/.cache/mde_utils"),
        (f"({machine('tmp', 'ipykernel_12', '345.py')}:1)", "(345.py:1)"),
        (
            "/kaggle/input/nyu and https://a.b/" + "home/x",
            "/kaggle/input/nyu and https://a.b/" + "home/x",
        ),
        ("δ1 0.79, 3/4 of home/work", "δ1 0.79, 3/4 of home/work"),
    ],
)
def test_machine_paths_become_relative(text, clean):
    assert strip.without_machine_paths(text) == clean


def test_strip_keeps_outputs_and_counts():
    nb = a_notebook("1 + 1")
    private = machine("tmp", "x", "picture")
    nb.metadata["papermill"] = {"input_path": private}
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    nb.metadata["kaggle"] = {"dataSources": []}
    nb.metadata["kernelspec"] = {"display_name": "mine", "name": "mine", "language": "python"}
    cell = nb.cells[-1]
    cell.execution_count = 3
    cell.metadata["papermill"] = {"duration": 1.0}
    cell.outputs = [
        new_output("stream", text=f"wrote {private}"),
        new_output("display_data", data={"image/png": private, "text/plain": private}),
    ]
    clean = strip.strip(nb)
    assert clean.cells[-1].execution_count == 3
    assert clean.cells[-1].outputs[0].text == "wrote picture"
    assert clean.cells[-1].outputs[1].data == {"image/png": private, "text/plain": "picture"}
    assert clean.metadata.keys() == {"kaggle", "kernelspec", "language_info"}
    assert clean.metadata.kernelspec.name == "python3"
    assert clean.cells[-1].metadata == {}
    assert strip.strip(clean) == clean


# ---------------------------------------------------------------------------------------------
# Running notebooks

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


def run_script(folder: Path, *options: str):
    """Runs the runner on the notebooks of `folder`, where another "python3" is registered."""
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
    command = [sys.executable, str(script), *where, *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)


def write_notebook(folder: Path, name: str, *code: str) -> Path:
    path = folder / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nb = a_notebook(*code)
    nb.cells[0].source = f"# Title of *{name}* & more\n\nThe [next](second.ipynb)"
    path.write_text(notebook_tools.text_of(nb), encoding="utf-8")
    return path


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
    assert re.fullmatch(r"\[1/2\] first … \d+ s", lines[0])
    assert lines[-1] == str(folder / "outputs" / "index.html")
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


def test_failed_notebook_leaves_former_results(executed):
    folder, _ = executed
    outputs = folder / "outputs"
    former = contents(outputs)
    sound = (folder / "notebooks" / "first.ipynb").read_bytes()
    path = write_notebook(folder, "first", "x = 1", "1 / 0")
    result = run_script(folder, "--timeout", "60")
    assert result.returncode == 1
    assert "first.ipynb failed in cell 4 (starting '1 / 0')" in result.stderr
    assert "ZeroDivisionError: division by zero" in result.stderr
    assert "second" not in result.stdout
    later = contents(outputs)
    assert b"ZeroDivisionError" in later.pop("first.failed.ipynb")
    assert later == former
    path.write_bytes(sound)


def test_endless_cell_is_stopped_and_named(tmp_path):
    path = write_notebook(tmp_path, "first", "while True:\n    pass")
    before = path.read_bytes()
    result = run_script(tmp_path, "--timeout", "2", "--in-place")
    assert result.returncode == 1
    assert "failed in cell 3 (starting 'while True:')" in result.stderr
    assert "CellTimeoutError" in result.stderr
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


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
