"""A JupyterLab of these tests, and its notebooks in a real browser."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jupyter_server.serverapp import list_running_servers
from playwright.sync_api import Browser, BrowserContext, Locator, Page

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
    """A running JupyterLab: its address (it ends in /), its token, the folder of its notebooks."""

    url: str
    token: str
    folder: Path


@contextmanager
def running_lab(folder: Path) -> Iterator[Lab]:
    """Serve ``folder``/work on a free port of 127.0.0.1 until the end of the block."""
    for name, values in _SETTINGS.items():
        file = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values), encoding="utf-8")
    environment = {key: value for key, value in os.environ.items() if key != paths.HOME_VARIABLE}
    environment |= {"SPIKE_KIT_DATASET": DATASET, "JUPYTER_CONFIG_PATH": str(ROOT / ".jupyter")}
    own = ("JUPYTER_CONFIG_DIR", "config"), ("JUPYTER_DATA_DIR", "share"), ("JUPYTER_RUNTIME_DIR", "runtime")
    environment |= {name: str(folder / part) for name, part in (*own, ("IPYTHONDIR", "ipython"))}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder / 'work'}", "--LabApp.expose_app_in_browser=True"]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder) as server,
    ):
        try:
            until(lambda: server.poll() is not None or any(list_running_servers(str(folder / "runtime"))), time.sleep)
            assert server.poll() is None, (folder / "log").read_text(errors="replace")[-2000:]
            (told,) = list_running_servers(str(folder / "runtime"))
            yield Lab(told["url"], told["token"], folder / "work")
        finally:
            server.terminate()
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()


@contextmanager
def watched(browser: Browser) -> Iterator[BrowserContext]:
    """A browser window in which every request to another host fails the test at its end."""
    foreign: list[str] = []

    def watch(source: Any) -> None:
        parts = urlsplit(source.url)
        if parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1":
            foreign.append(source.url)

    context = browser.new_context(viewport={"width": 1400, "height": 4000})
    context.set_default_timeout(30_000)
    context.on("request", watch)
    context.on("page", lambda page: page.on("websocket", watch))
    try:
        yield context
    finally:
        context.close()
    assert foreign == []


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
        page.goto(f"{lab.url}lab/tree/{name}?reset&token={lab.token}")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        self.until(lambda: bool(page.evaluate(_READY)))

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
            return all(text.strip().strip("[]:").isdigit() for text in prompts.all_inner_texts())

        self.until(done, SECONDS)

    def shot(self, name: str) -> None:
        """Keep a picture."""
        self.page.screenshot(path=SHOTS / f"{name}.png")

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
                    const data = plot._fullData[trace], box = plot.getBoundingClientRect();
                    return ['x', 'y'].map(name => {
                        const axis = plot._fullLayout[data[name + 'axis'].replace(name, name + 'axis')];
                        return box[name] + axis._offset + axis.d2p(data[name][number] ?? data[name]);
                    });
                }""",
                [trace, number],
            )
        )

    def until(self, happened: Callable[[], bool], seconds: float = 60) -> None:
        """Wait until something has happened, while the page goes on."""
        until(happened, lambda pause: self.page.wait_for_timeout(1000 * pause), seconds)


def until(happened: Callable[[], bool], wait: Callable[[float], None], seconds: float = 60) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        wait(0.15)
