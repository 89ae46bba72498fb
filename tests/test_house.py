"""The rules of the house: dependencies, and what may be committed."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import badges
import nbformat
import notebook_tools
import pytest
import strip

import mde_utils

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = notebook_tools.find_notebooks()
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

# ---------------------------------------------------------------------------------------------
# Dependencies

# Each may import its own layer and the ones before it (design: "dependencies point one way").
LAYERS = (
    {"checks", "data", "models", "depth_bins", "environment", "files", "processes", "stereo"},
    {"selectivity", "activations", "replay", "losses", "checkpoints", "passes"},
    {
        "training",
        "dissection",
        "edits",
        "interventions",
        "attacks",
        "evaluation",
        "networks",
        "paper",
        "protocols",
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


def test_scenes_stand_alone():
    """The renderer needs torch, and one module alone knows of it."""
    for path in sorted((ROOT / "scenes").rglob("*.py")):
        tops = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names)
        assert tops <= {"torch", "scenes"}, path.relative_to(ROOT)
    users = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "mde_utils").rglob("*.py")
        if any(name.split(".")[0] == "scenes" for name in imports_of(path))
    }
    assert users == {"mde_utils/data/rendered.py"}


def test_requirements_cover_the_imports():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    listed = {re.match(r"[\w.-]+", line)[0] for line in lines if line and line[0] != "#"}
    for part, names in package_imports().items():
        tops = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        tops -= {"mde_utils", "scenes"}
        tops -= OPTIONAL
        lacking = {top for top in tops if DISTRIBUTION.get(top, top) not in listed}
        assert not lacking, f"mde_utils/{part} imports {sorted(lacking)}, not in requirements.txt"
    used = {name.split(".")[0] for names in package_imports().values() for name in names}
    used |= {"tensorboard", "transformers"}  # torch imports the one, notebook 13 the other
    assert not listed - {DISTRIBUTION.get(top, top) for top in used}, "required, imported nowhere"
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


FOLDERS = ("mde_utils", "scenes", "tests", "tests_browser", "scripts", "notebooks", "benchmarks")


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


def test_pages_are_short_and_their_links_lead_somewhere():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "data" / "README.md"]:
        for link in re.findall(r"\]\((?!\w+:)([^)]+)", page.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name} links to {link}"
            if anchor:
                heads = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
                assert anchor in slugs, f"{page.name} links to {link}"
