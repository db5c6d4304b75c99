"""Notebooks with widgets in a real JupyterLab in a real browser, and the panels as a reader uses them.

The others show tables and pictures alone; ``make notebooks`` runs them.
"""

import os

import pytest
from playwright.sync_api import BrowserContext

from tests.browser.lab import DATASET, ROOT, Lab, Notebook

NAMES = sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        not (ROOT / "data" / DATASET / "manifest.json").is_file() and os.environ.get("SPIKE_KIT_CI") != "1",
        reason="needs the small study: make pipeline",
    ),
]

CONTRAST = """() => {
    const bright = colour => {
        const [r, g, b, alpha = 1] = colour.match(/[\\d.]+/g).map(Number);
        return alpha > 0.5 ? 0.299 * r + 0.587 * g + 0.114 * b : undefined;
    };
    const behind = e => e ? bright(getComputedStyle(e).backgroundColor) ?? behind(e.parentElement) : 255;
    const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    const texts = document.querySelectorAll('.jp-OutputArea :is(.widget-html-content *, th, td)');
    return [...texts].filter(e => own(e) && e.getClientRects().length).map(e => [
        Math.abs(bright(getComputedStyle(e).color) - behind(e)), e.tagName + ': ' + e.textContent.trim().slice(0, 40)
    ]);
}"""
"""How much brighter or darker than what is behind it every text of our tables and widgets is, of 255."""

TITLES = """() => [...document.querySelectorAll('.spike-tabs .lm-TabBar-tabLabel')]
    .filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"""
"""Titles of tabs that are cut off."""


def opened(window: BrowserContext, lab: Lab, number: str) -> Notebook:
    """Open the notebook of a number and run it."""
    notebook = Notebook(window.new_page(), lab, next(name for name in NAMES if name.startswith(number)))
    notebook.run_all()
    notebook.shot(number)
    return notebook


def test_profiles_are_generated_and_runs_are_filtered(window: BrowserContext, lab: Lab) -> None:
    assert "complete: loopback.parquet is written" in opened(window, lab, "02").find("status").inner_text()
    notebook = opened(window, lab, "04")
    board = notebook.find("leaderboard")
    assert board.locator("tbody tr").count() > 2
    notebook.choose(notebook.find("text"), "lightgcn")
    notebook.until(lambda: "popularity" not in board.inner_text().lower())
    assert "lightgcn" in board.inner_text().lower()


def test_ablations_are_toggled_trained_and_drawn(window: BrowserContext, lab: Lab) -> None:
    notebook = opened(window, lab, "05")
    status, train, chart = notebook.find("status"), notebook.find("train"), notebook.find("chart")
    assert "full model" in status.inner_text()
    notebook.find("inject").locator("input").click()
    notebook.until(lambda: "inject=False" in status.inner_text())
    notebook.find("remove").locator("input").click()
    notebook.until(lambda: "w/o injection" in status.inner_text())
    before = chart.get_attribute("src")
    if train.is_enabled():
        train.click()
        notebook.until(lambda: "training" in status.inner_text() or "finished" in status.inner_text())
    else:
        notebook.find("compare").click()
    notebook.until(lambda: "finished" in status.inner_text(), 240)
    notebook.until(lambda: "w/o injection" in notebook.find("table").inner_text())
    notebook.until(lambda: chart.get_attribute("src") != before)
    assert chart.evaluate("picture => picture.naturalWidth") > 300
    notebook.shot("05_used")
    notebook.find("compare").click()
    notebook.until(lambda: "w/o injection" not in notebook.find("table").inner_text())


def test_the_map_the_profiles_the_graph_and_the_reasons(window: BrowserContext, lab: Lab) -> None:
    notebook = opened(window, lab, "06")
    page = notebook.page
    chart, found = notebook.find("map"), notebook.find("results")
    notebook.choose(page.locator(".spike-search input").first, "star")
    notebook.until(lambda: found.locator("tbody tr").count() > 0)
    assert "star" in found.inner_text().lower()
    page.mouse.move(*notebook.point(chart, 0, 3))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert len(page.locator(".hoverlayer .hovertext").first.text_content() or "") > 3
    notebook.find("colour").locator("select").select_option(index=1)
    page.mouse.click(*notebook.point(chart, 0, 5))
    notebook.until(lambda: found.locator("tbody tr").count() == 1)

    browser, profile = notebook.find("profile-search"), notebook.find("cards")
    before = profile.inner_text()
    notebook.choose(browser, "comedy")
    notebook.until(lambda: profile.inner_text() != before)

    shown, graph = notebook.find("shown"), notebook.find("graph")
    before = shown.inner_text()
    several = "plot => plot._fullData.findIndex(t => t.customdata && t.customdata.length > 3)"
    nodes = graph.locator(".js-plotly-plot").evaluate(several)
    page.mouse.click(*notebook.point(graph, nodes, 1))
    notebook.until(lambda: shown.inner_text() != before)
    assert " of " in shown.inner_text()

    answer = notebook.find("answer")
    page.locator(".lm-TabBar-tab", has_text="what if").click()
    notebook.find("out").locator("select").select_option(index=0)
    notebook.find("what_if").click()
    notebook.until(lambda: "new rank" in answer.inner_text())
    notebook.shot("06_used")
    assert page.evaluate(TITLES) == []

    notebook.command("apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_timeout(1000)
    notebook.shot("06_dark")
    contrasts = page.evaluate(CONTRAST)
    assert len(contrasts) > 50
    assert [text for text in contrasts if text[0] < 125] == []
