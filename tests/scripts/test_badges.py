import subprocess
import sys
from pathlib import Path

import badges
import notebook_tools
import pytest
from sample import a_notebook

ADDRESS = "https://github.com/someone/suite"


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


def the_packages(folder: Path, names=("mde_utils", "scenes")) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("about = lambda: 'here at last'\n")
    return folder


@pytest.mark.parametrize("where", ["parent", "beside", "input", "owner", "clone"])
def test_bootstrap_finds_the_package(tmp_path, where):
    here = tmp_path / "checkout" / "notebooks"
    here.mkdir(parents=True)
    options = {"attached": tmp_path / "attached"}
    if where == "parent":
        the_packages(here.parent)
    elif where == "beside":
        the_packages(here)
    elif where == "input":
        the_packages(options["attached"] / "mde-suite")
    elif where == "owner":
        the_packages(options["attached"] / "datasets" / "someone" / "mde-suite" / "suite")
    else:
        origin = the_packages(tmp_path / "origin")
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
    assert "Open this notebook in its checkout" in result.stderr
    assert "attach a Kaggle data set that holds both" in result.stderr


def test_bootstrap_says_what_it_searched(tmp_path):
    """One package without the other, or the contents of a folder without the folder, is no find."""
    here, attached = tmp_path / "working", tmp_path / "input"
    the_packages(here, ["mde_utils"])
    the_packages(attached / "uploads", ["mde_utils"])
    (attached / "mde-suite").mkdir()
    (attached / "mde-suite" / "__init__.py").touch()
    result = run_bootstrap(here, attached=attached)
    assert result.returncode != 0
    for said in ("mde_utils and scenes", str(here), f"{attached} (mde-suite, uploads)"):
        assert said in result.stderr
