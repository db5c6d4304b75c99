"""Fixtures of the tests in a browser: Chromium, JupyterLab, a window whose requests are watched."""

import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from tests.browser.lab import ROOT, SHOTS, Lab, running_lab, watched

NAMES = ("chromium", "chromium-browser", "google-chrome")
_ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
"""The browser finds no other host."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    found = [os.environ.get("SPIKE_KIT_CHROMIUM", ""), *(shutil.which(name) or "" for name in NAMES)]
    executable = next((path for path in found if path), "")
    if not executable:
        reason = "needs chromium: make browser installs it where it can"
        assert os.environ.get("SPIKE_KIT_CI") != "1", reason
        pytest.skip(reason)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", _ALONE])
        yield started
        started.close()


@pytest.fixture(scope="session")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a copy of the notebooks."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "work", ignore=shutil.ignore_patterns(".*"))
    with running_lab(folder) as started:
        yield started


@pytest.fixture
def window(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    with watched(browser) as context:
        SHOTS.mkdir(exist_ok=True)
        yield context
        for page in context.pages:
            page.screenshot(path=SHOTS / f"last-{request.node.name}.png")
