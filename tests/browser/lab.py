"""A JupyterLab of these tests, and its notebooks in a real browser."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, Route

from spike_kit.base import paths

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / ".browser"
"""Screenshots, for people to look at; not in git."""

DATASET = os.environ.get("SPIKE_KIT_DATASET", "ml-100k-small")
_READY = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    return panel && panel.context && panel.context.isReady && panel.sessionContext.isReady
        && panel.sessionContext.session?.kernel?.status === "idle"
        && window.jupyterapp.commands.isEnabled("notebook:run-all-cells");
}"""
"""Whether the notebook in front has a kernel that waits for work."""

SECONDS = 300
"""Longest wait for a notebook."""

_SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none", "autoStartDefaultKernel": True},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab: its address, its token, the folder of its notebooks."""

    url: str
    token: str
    folder: Path


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """Serve ``folder``/work on a free port of 127.0.0.1 until the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, settings = secrets.token_hex(16), folder / "settings"
    for name, values in _SETTINGS.items():
        file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    (folder / "work").mkdir(exist_ok=True)
    environment = {key: value for key, value in os.environ.items() if key != paths.HOME_VARIABLE}
    environment |= {
        "SPIKE_KIT_DATASET": DATASET,
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_CONFIG_PATH": str(ROOT / ".jupyter"),
        "JUPYTER_DATA_DIR": str(folder / "share"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "IPYTHONDIR": str(folder / "ipython"),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}"]
    command += [f"--ServerApp.root_dir={folder / 'work'}", "--allow-root", "--LabApp.expose_app_in_browser=True"]
    command += [f"--LabApp.user_settings_dir={settings}", f"--LabApp.workspaces_dir={folder / 'workspaces'}"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
        try:
            _wait(f"http://127.0.0.1:{port}/api?token={token}", server, folder / "log")
            yield Lab(f"http://127.0.0.1:{port}", token, folder / "work")
        finally:
            server.terminate()
            try:
                server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait(timeout=30)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    pytest.fail(f"JupyterLab does not answer: {log.read_text(errors='replace')[-2000:]}")


@contextmanager
def watched(browser: Browser) -> Iterator[BrowserContext]:
    """A browser window in which every request to another host is refused, and fails the test at its end."""
    foreign: list[str] = []

    def checked(route: Route) -> None:
        url = route.request.url
        if _is_foreign(url):
            foreign.append(url)
            route.abort()
        else:
            route.continue_()

    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    context.set_default_timeout(30_000)
    context.route("**/*", checked)
    context.on(
        "page",
        lambda page: page.on(
            "websocket", lambda socket: foreign.append(socket.url) if _is_foreign(socket.url) else None
        ),
    )
    try:
        yield context
    finally:
        context.close()
    assert foreign == []


def _is_foreign(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


class Notebook:
    """A notebook in a page of its own.

    Parameters
    ----------
    page
        An empty page.
    lab
        The server.
    name
        File name of the notebook.
    """

    def __init__(self, page: Page, lab: Lab, name: str) -> None:
        self.page, self.name = page, name
        page.goto(f"{lab.url}/lab/tree/{name}?reset&token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        until(page, lambda: bool(page.evaluate(_READY)), 60)

    def command(self, name: str, **arguments: Any) -> None:
        """Start a command of JupyterLab; it fails where JupyterLab would ignore it."""
        assert self.page.evaluate("name => window.jupyterapp.commands.isEnabled(name)", name), name
        self.page.evaluate("([name, args]) => { window.jupyterapp.commands.execute(name, args); }", [name, arguments])

    def run_all(self) -> None:
        """Run all cells and wait for the last one; fails where a cell fails."""
        self.command("notebook:run-all-cells")
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt")
        errors = self.page.locator('.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]')

        def done() -> bool:
            assert errors.count() == 0, errors.first.inner_text()
            texts = [text.strip() for text in prompts.all_inner_texts()]
            return all(text.strip("[]:").isdigit() for text in texts)

        until(self.page, done, SECONDS)
        assert errors.count() == 0

    def shot(self, name: str) -> None:
        """Keep a picture of the whole notebook."""
        SHOTS.mkdir(exist_ok=True)
        height = self.page.evaluate(
            "Math.max(...[...document.querySelectorAll('.jp-WindowedPanel-outer')].map(e => e.scrollHeight))"
        )
        self.page.set_viewport_size({"width": 1400, "height": min(int(height) + 120, 14_000)})
        self.page.evaluate("document.querySelectorAll('.jp-WindowedPanel-outer').forEach(e => { e.scrollTop = 0; })")
        self.page.wait_for_timeout(1500)
        self.page.screenshot(path=SHOTS / f"{name}.png")
        self.page.set_viewport_size({"width": 1400, "height": 1000})

    def find(self, name: str) -> Locator:
        """The part of a panel with a class of the kit."""
        return self.page.locator(f".spike-{name}").first

    def choose(self, box: Locator, text: str) -> None:
        """Type into a text field and press Enter."""
        field = box.locator("input[type=text]").first if box.locator("input").count() else box
        field.fill(text)
        field.press("Enter")

    def point(self, chart: Locator, trace: int, number: int) -> tuple[float, float]:
        """Where on the page a point of a chart is drawn, after scrolling there."""
        chart.scroll_into_view_if_needed()
        plot = chart.locator(".js-plotly-plot").first
        self.until(lambda: plot.evaluate("(plot, trace) => (plot._fullData || []).length > trace", trace))
        self.page.wait_for_timeout(500)
        return tuple(
            plot.evaluate(
                """(plot, [trace, number]) => {
                    const data = plot._fullData[trace], layout = plot._fullLayout;
                    const axis = name => layout[name.replace(/^([xy])/, '$1axis')];
                    const [x, y] = [axis(data.xaxis), axis(data.yaxis)];
                    const box = plot.getBoundingClientRect();
                    const value = (list, i) => list.length === undefined ? list : list[i];
                    return [
                        box.left + x._offset + x.d2p(value(data.x, number)),
                        box.top + y._offset + y.d2p(value(data.y, number)),
                    ];
                }""",
                [trace, number],
            )
        )

    def until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something has happened."""
        until(self.page, happened, seconds)


def until(page: Page, happened: Callable[[], bool], seconds: float) -> None:
    """Wait until something has happened, while the page goes on."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        page.wait_for_timeout(150)
