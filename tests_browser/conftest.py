"""A headless Chromium that reaches this machine alone, and a JupyterLab of this Python."""

import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import notebook_tools
import pytest
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SHOTS = ROOT / "outputs" / "browser"  # ignored by git; look at them after a run
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox",  # root has none, and only pages of our own are opened
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
expect.set_options(timeout=30_000)  # as long as all else is waited for
# The pages are watched from outside, so every cell has to be in them, seen or not.
LAB_SETTINGS = {
    "notebook-extension/tracker": '{"windowingMode": "none", "autoStartDefaultKernel": true}',
    "apputils-extension/notification": '{"fetchNews": "false", "checkForUpdates": false}',
}


@pytest.fixture(scope="session")
def shots() -> Path:
    SHOTS.mkdir(parents=True, exist_ok=True)
    return SHOTS


@pytest.fixture(scope="session")
def browser():
    named = os.environ.get("CHROMIUM")
    path = next(filter(None, map(shutil.which, [named] if named else CHROMIUM)), None)
    if path is None:
        tried = named or ", ".join(CHROMIUM)
        pytest.fail(
            f"No Chromium here (tried {tried}): install it (Debian: apt-get install chromium), or "
            "name one by the environment variable CHROMIUM."
        )
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """A fresh page; a script's error in it fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    errors = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    context.close()
    assert not errors


DONE = """cells => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
    const done = prompts.filter(prompt => /\\[\\d+\\]/.test(prompt.textContent)).length;
    const outputs = [...document.querySelectorAll('.jp-CodeCell .jp-OutputArea-output')];
    return done === cells || outputs.some(output => output.textContent.includes('Traceback'));
}"""


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab; `folder` is what it serves."""

    url: str
    token: str
    folder: Path

    def add(self, notebook: Path, *, parameters: str = "") -> None:
        """Serve a copy of `notebook` without its outputs, with other `parameters` if given."""
        nb = notebook_tools.read(notebook)
        for cell in nb.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        if parameters:
            notebook_tools.cell_tagged(nb, "parameters").source += f"\n{parameters}"
        (self.folder / notebook.name).write_text(notebook_tools.text_of(nb), encoding="utf-8")

    def run(self, page: Page, name: str, *, seconds: int = 300) -> None:
        """Open the notebook in `page`, run all of its cells by the menu, and wait for them."""
        nb = notebook_tools.read(self.folder / f"{name}.ipynb")
        cells = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in nb.cells)
        # In a workspace of its own: another would open the notebooks of before, too.
        page.goto(f"{self.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={self.token}")
        page.locator(".jp-CodeCell").first.wait_for(timeout=60_000)
        page.locator(".jp-KernelName:visible", has_text="Python 3").wait_for(timeout=60_000)
        page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=60_000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            page.wait_for_function(DONE, arg=cells, timeout=1000 * seconds)
        finally:
            page.screenshot(path=SHOTS / f"{name}_run.png")
        failed = page.locator(".jp-CodeCell .jp-OutputArea-output", has_text="Traceback")
        assert not failed.count(), failed.first.inner_text()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """JupyterLab with no one's settings, at a free port, serving an empty folder."""
    home, folder = tmp_path_factory.mktemp("jupyter"), tmp_path_factory.mktemp("notebooks")
    settings = home / "settings"
    for name, text in LAB_SETTINGS.items():
        path = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_hex(16)
    own = str(Path(sys.prefix) / "share" / "jupyter")  # its "python3" is this very Python
    environment = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | {
        "JUPYTER_PATH": own,
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "MDE_PROFILE": "demo",
        "TQDM_DISABLE": "1",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    command += [f"--ServerApp.root_dir={folder}", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    command += [f"--IdentityProvider.token={token}", "--LabApp.extension_manager=readonly"]
    log = home / "log.txt"
    with log.open("w") as output:
        server = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(120):
            if server.poll() is not None:
                break
            try:
                with urlopen(f"{url}/api?token={token}"):
                    yield Lab(url, token, folder)
                return
            except URLError:
                time.sleep(0.5)
        pytest.fail(f"JupyterLab did not start:\n{re.sub(token, '…', log.read_text())[-3000:]}")
    finally:
        server.terminate()  # which ends its kernels, too
        server.wait(30)
