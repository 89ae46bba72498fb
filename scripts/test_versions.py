"""The unit tests at both ends of the versions that the requirements admit.

    python scripts/test_versions.py [lowest] [newest] [-- arguments of pytest]

Makes an environment for each below .versions/ (some 6 GB with a CUDA build of torch), and changes
it when the requirements change: the lowest versions that requirements.txt admits, on Python 3.10,
and the newest that the package index has, on Python 3.13. The Pythons are those that PYTHON310 and
PYTHON313 name, else `python3.10` and `python3.13` of the PATH or of pyenv; where one is not to be
had, that is said and the Python that runs this takes its place.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = {"lowest": "3.10", "newest": "3.13"}
# `name>=x` becomes `name==x`; these have no release of just that number.
EXACT = {"opencv-python-headless": "4.8.0.74"}
# Of requirements-dev.txt, what only people, notebooks and browsers need.
NOT_FOR_UNIT_TESTS = ("ruff", "jupyterlab", "playwright")


def main(arguments: list[str]) -> int:
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    wanted, options = arguments[:cut] or [*PYTHONS], arguments[cut + 1 :]
    if unknown := {*wanted} - {*PYTHONS}:
        print(f"Unknown: {', '.join(sorted(unknown))}. Known: {', '.join(PYTHONS)}.")
        return 2
    results = {}
    for end in wanted:
        python = make(end)
        show = "import sys, torch; print(sys.version.split()[0], torch.__version__)"
        version, torch = subprocess.check_output([python, "-c", show], text=True).split()
        print(f"== {end}: Python {version}, torch {torch}", flush=True)
        command = [python, "-m", "pytest", "-q", "-n", os.environ.get("TEST_JOBS", "2"), *options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        results[f"{end} (Python {version}, torch {torch})"] = code
    for end, code in results.items():
        print(f"{end}: {'passed' if code == 0 else f'FAILED, pytest says {code}'}")
    return int(any(results.values()))


def make(end: str) -> Path:
    """The environment's Python, with everything installed."""
    folder = ROOT / ".versions" / end
    python, done = folder / "bin" / "python", folder / "requirements.txt"
    interpreter = find_python(PYTHONS[end])
    lines = requirements("requirements.txt")
    lines = [lowest(line) if end == "lowest" else line for line in lines]
    for_tests = requirements("requirements-dev.txt")
    lines += [line for line in for_tests if not line.startswith(NOT_FOR_UNIT_TESTS)]
    content = "\n".join([f"# {interpreter}", *lines, ""])
    if done.is_file() and done.read_text() == content:
        return python
    print(f"== {end}: {folder.relative_to(ROOT)} with {interpreter}", flush=True)
    subprocess.run([interpreter, "-m", "venv", folder], check=True)
    partial = folder / "requirements.partial"  # it gets its name when all is installed
    partial.write_text(content)
    install = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--upgrade"]
    subprocess.run([*install, "-r", partial], check=True)
    partial.rename(done)
    return python


def find_python(version: str) -> str:
    variable = f"PYTHON{version.replace('.', '')}"
    if named := os.environ.get(variable):
        return named
    pyenv = Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"))
    candidates = [
        shutil.which(f"python{version}"),
        *sorted(pyenv.glob(f"versions/{version}.*/bin/python")),
    ]
    for candidate in filter(None, candidates):  # pyenv's shims are there without a Python behind
        if subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return str(candidate)
    print(
        f"Python {version} was not found: install it, or name it with {variable}=…. In its place: "
        f"{sys.version.split()[0]}."
    )
    return sys.executable


def requirements(file: str) -> list[str]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "-r"))]


def lowest(line: str) -> str:
    """`name>=1.2,<3; marker` → `name==1.2; marker`"""
    name, version, _, marker = re.fullmatch(r"([\w.-]+)>=([\w.]+)(,[^;]*)?(;.*)?", line).groups("")
    return f"{name}=={EXACT.get(name, version)}{marker}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
