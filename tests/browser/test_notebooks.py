"""Every notebook in a real JupyterLab in a real browser, and the panels as a reader uses them."""

from __future__ import annotations

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
    const numbers = text => text.match(/[\\d.]+/g).map(Number);
    const light = ([r, g, b]) => {
        const part = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
    };
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            const colour = numbers(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.5) return colour;
        }
        return [255, 255, 255];
    };
    const found = [];
    for (const e of document.querySelectorAll(
        '.jp-OutputArea .widget-html-content *, .jp-OutputArea th, .jp-OutputArea td'
    )) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.getClientRects().length) continue;
        const [a, b] = [light(numbers(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
        found.push([(a + 0.05) / (b + 0.05), e.tagName + ': ' + e.textContent.trim().slice(0, 40)]);
    }
    return found.sort((x, y) => x[0] - y[0]);
}"""
"""Contrast of every text of our tables and widgets with what is behind it, the lowest first."""


@pytest.mark.parametrize("name", [name for name in NAMES if name[:2] not in ("05", "06")])
def test_a_notebook_runs(window: BrowserContext, lab: Lab, name: str) -> None:
    notebook = Notebook(window.new_page(), lab, name)
    notebook.run_all()
    notebook.shot(name.removesuffix(".ipynb"))
    if name.startswith("04"):
        board = notebook.find("leaderboard")
        assert board.locator("tbody tr").count() > 2
        notebook.choose(notebook.find("text"), "lightgcn")
        notebook.until(lambda: "popularity" not in board.inner_text().lower())
        assert "lightgcn" in board.inner_text().lower()


def test_ablations_are_toggled_trained_and_drawn(window: BrowserContext, lab: Lab) -> None:
    notebook = Notebook(window.new_page(), lab, next(name for name in NAMES if name.startswith("05")))
    page = notebook.page
    notebook.run_all()
    status, train, chart = notebook.find("status"), notebook.find("train"), notebook.find("chart")
    assert "full model" in status.inner_text()
    page.locator("button.widget-toggle-button", has_text="inject").click()
    notebook.until(lambda: "inject=False" in status.inner_text())
    page.locator("button.widget-toggle-button", has_text="remove").click()
    notebook.until(lambda: "w/o injection" in status.inner_text())
    names = chart.locator(".ytick")
    before = names.count()
    if train.is_enabled():
        train.click()
        notebook.until(lambda: "training" in status.inner_text() or "finished" in status.inner_text())
    else:
        notebook.find("compare").click()
    notebook.until(lambda: "finished" in status.inner_text(), 240)
    notebook.until(lambda: names.count() == before + 1)
    assert "loss" not in (chart.text_content() or "").lower()
    notebook.until(lambda: "w/o injection" in notebook.find("table").inner_text())
    notebook.shot("05_ablation")
    notebook.find("compare").click()
    notebook.until(lambda: names.count() == before)


def test_the_map_the_profiles_the_graph_and_the_reasons(window: BrowserContext, lab: Lab) -> None:
    notebook = Notebook(window.new_page(), lab, next(name for name in NAMES if name.startswith("06")))
    page = notebook.page
    notebook.run_all()
    notebook.shot("06_explore")

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
    for number in range(1, 4):
        page.mouse.click(*notebook.point(graph, nodes, number))
        page.wait_for_timeout(1500)
        if shown.inner_text() != before:
            break
    assert shown.inner_text() != before
    assert " of " in shown.inner_text()

    answer = notebook.find("answer")
    page.locator(".lm-TabBar-tab", has_text="what if").click()
    takes = page.locator("select[multiple]").last
    takes.select_option(index=0)
    notebook.find("whatif").click()
    notebook.until(lambda: "new rank" in answer.inner_text())
    notebook.shot("06_explore_used")

    notebook.command("apputils:change-theme", theme="JupyterLab Dark")
    page.wait_for_selector('body[data-jp-theme-light="false"]', state="attached")
    page.wait_for_timeout(1000)
    notebook.shot("06_explore_dark")
    lowest = page.evaluate(CONTRAST)
    assert len(lowest) > 50
    assert [text for text in lowest if text[0] < 4.5] == []
