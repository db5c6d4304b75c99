"""Titles that try to run something, in every view, in a real browser."""

from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from playwright.sync_api import BrowserContext

from spike_kit.base import paths
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import RunConfig, run
from spike_kit.profiles.encode import DEFAULT_ENCODER, vectors_metadata
from spike_kit.profiles.template import TEMPLATE, template_profiles
from tests.browser.lab import Lab, Notebook
from tests.views.conftest import changed
from tests.world import World

pytestmark = pytest.mark.browser

TAGS = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script></td></pre><b>bold</b>'
HOSTILE = f'{TAGS} [link](javascript:window.hacked=1) <a href="javascript:window.hacked=1">a</a> $\\alpha$'

CELLS = (
    """
import spike_kit as sk
data, tables = sk.load("changed"), sk.views.tables
done = sk.train("spike", data, profiles="template+told", epochs=2, eval_every=1)
done
""",
    "sk.views.map(done, k=3).panel()",
    "sk.views.profiles(done).panel()",
    "sk.views.graph(done).panel()",
    "sk.views.why(done).panel()",
    "sk.views.ablation(data).panel()",
    "sk.views.leaderboard(data).panel()",
    "tables.named_triples(data, 5)",
    "done.recommend(0)",
    "sk.table(done)",
    "tables.neighbours(data, done.model.node_embeddings()[1], 0)",
    "sk.views.map(done, k=3).morph()",
)


@pytest.fixture
def hostile(data: Dataset, world: World) -> Dataset:
    """The tiny world, with names that no browser should believe."""
    named = {
        name: frame.assign(label=[f"{HOSTILE} {number}" for number in range(len(frame))])
        for name, frame in (("users", data.users), ("items", data.items), ("entities", data.entities))
    }
    # Items are the first entities; both tables name them alike.
    made = changed(data, **named)
    profiles = template_profiles(made)
    profiles = profiles.assign(text=[f"{HOSTILE} {text}" for text in profiles["text"]])
    made.write_profiles(TEMPLATE, profiles)
    told = {"about": [HOSTILE], "left_out": [{"subject": "user", "reason": HOSTILE}]}
    made.write_profiles("told", profiles[profiles["subject"] != "user"], told)
    silent = replace(world.vectors, user=torch.zeros_like(world.vectors.user))
    for name, vectors, facts in ((TEMPLATE, world.vectors, {}), ("told", silent, {"left_out": HOSTILE})):
        facts = vectors_metadata(made.profiles(name), DEFAULT_ENCODER) | facts
        vectors.save(made.embeddings_path(name, DEFAULT_ENCODER), facts)
    config = RunConfig(dataset="changed", profiles="template+told", training={"epochs": 2, "eval_every": 1})
    run(config, progress=False)
    return made


def test_hostile_names_show_as_text_in_every_view(
    window: BrowserContext, lab: Lab, hostile: Dataset, home: Path
) -> None:
    first = f"import os\nos.environ[{paths.HOME_VARIABLE!r}] = {str(home)!r}"
    cells = [new_code_cell(source.strip()) for source in (first, *CELLS)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), lab.folder / "hostile.ipynb")
    notebook = Notebook(window.new_page(), lab, "hostile.ipynb")
    page = notebook.page
    notebook.run_all()
    chart = notebook.find("map")
    page.mouse.move(*notebook.point(chart, 0, 3))
    page.wait_for_selector(".hoverlayer .hovertext")
    assert "<img src=x" in (page.locator(".hoverlayer .hovertext").first.text_content() or "")
    page.mouse.click(*notebook.point(chart, 0, 3))
    notebook.until(lambda: notebook.find("results").locator("tbody tr").count() == 1)
    for name in ("results", "cards", "facts", "prompt", "paths"):
        assert name == "paths" or "<img src=x" in notebook.find(name).inner_text(), name
    assert notebook.find("cards").inner_text().count("<script>window.hacked=1</script>") >= 3
    notebook.choose(notebook.find("profile-search"), "alpha")
    page.wait_for_timeout(1000)
    notebook.shot("hostile")
    outputs = page.locator(".jp-OutputArea-output")
    assert outputs.locator('img[src="x"]').count() == 0
    assert outputs.locator('a[href^="javascript"]').count() == 0
    assert page.locator(".hoverlayer a, .js-plotly-plot svg a").count() == 0
    assert outputs.locator(".MathJax, mjx-container").count() == 0
    assert [frame.evaluate("window.hacked") for frame in page.frames] == [None] * len(page.frames)
