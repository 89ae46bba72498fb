"""`.ci/run` with stand-ins for `make` and a browser: what does it call, what does it say?"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from notebook_tools import ROOT

BROWSER = ["-k test-widgets test-browser"]
NO_BROWSER = ["-k test-widgets"]


def ci(folder: Path, *, fails: str = "", chromium: bool = True):
    """Exit status, the arguments of each call of make, and what was printed."""
    tools, calls = folder / "bin", folder / "calls"
    tools.mkdir()
    stand_in = f'echo "$*" >> "{calls}"; echo "said by $1"; [ "$1" != "{fails}" ]\n'
    scripts = {"make": stand_in, "apt-get": "false\n"} | (
        {"chromium": "true\n"} if chromium else {}
    )
    for name, text in scripts.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}")
        (tools / name).chmod(0o755)
    for name in ("bash", "sh", "env", "dirname", "id", "timeout"):  # and no browser of this machine
        (tools / name).symlink_to(shutil.which(name))
    script = folder / "elsewhere" / ".ci" / "run"
    script.parent.mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", script)
    environment = {"PATH": str(tools), "HOME": str(folder)}
    done = subprocess.run(
        [script], env=environment, cwd=folder, capture_output=True, text=True, stdin=subprocess.PIPE
    )
    return done.returncode, calls.read_text().splitlines(), done.stdout


@pytest.mark.parametrize(
    ("fails", "chromium", "status", "before"),
    [
        ("", True, 0, BROWSER),
        ("", False, 0, NO_BROWSER),
        ("test", True, 1, BROWSER),
        ("-k", True, 1, BROWSER),
    ],
)
def test_make_test_is_called_last_and_decides(tmp_path, fails, chromium, status, before):
    returned, calls, said = ci(tmp_path, fails=fails, chromium=chromium)
    assert calls == [*before, "test"]
    assert returned == status
    assert said.splitlines()[-1] == "said by test"  # pytest's closing line, when it is make's last
    assert chromium or "Not tested in a browser" in said


def test_it_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
