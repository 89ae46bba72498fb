import subprocess
import sys
import zipfile

import bundle
from notebook_tools import find_notebooks

USE = """
from mde_utils import build_model, checkup, plots
build_model("meter_xxs", weights="rooms", variant="assign")
assert checkup.requirements()
print(plots.__file__)
"""


def test_bundle_serves_a_notebook_beside_it(tmp_path):
    bundle.main([str(tmp_path / "suite.zip")])
    with zipfile.ZipFile(tmp_path / "suite.zip") as packed:
        names = set(packed.namelist())
        packed.extractall(tmp_path / "here")
    assert {f"notebooks/{path.name}" for path in find_notebooks()} < names
    assert "requirements.txt" in names
    assert not [name for name in names if "__pycache__" in name or "/runs/" in name]
    command = [sys.executable, "-c", USE]
    done = subprocess.run(command, cwd=tmp_path / "here", capture_output=True, text=True)
    assert done.stdout.startswith(str(tmp_path / "here")), done.stderr
