import subprocess
import sys

import pytest

from spike_kit import views
from spike_kit.base.errors import ConfigError
from spike_kit.data.dataset import Dataset
from spike_kit.views.widgets import Panel
from tests.views.conftest import whole


def test_every_view_is_an_attribute_and_has_a_panel() -> None:
    for name in views.VIEWS:
        maker = getattr(views, name)
        made = getattr(maker, "__self__", maker)
        assert callable(made.panel)
        assert getattr(views, name) == maker
        assert name in dir(views)
    with pytest.raises(AttributeError, match="nothing"):
        _ = views.nothing
    with pytest.raises(ConfigError, match=r"(?s)no view named 'nothing'.*leaderboard"):
        _ = views.VIEWS["nothing"]


def test_importing_the_views_is_quick() -> None:
    code = "import sys, spike_kit.views; sys.exit('torch' in sys.modules or 'plotly' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("names", [("facts", "what_if"), ("facts_that_were_used", "nearest_neighbours", "a" * 60)])
def test_titles_of_tabs_are_whole(names: tuple[str, ...]) -> None:
    panel = Panel(None)
    tabs = panel.tabs(**dict.fromkeys(names, panel.widgets.HTML("text")))
    assert tabs.titles == tuple(name.replace("_", " ") for name in names)
    whole(panel.box(panel.row(), tabs))
    assert len(Panel(None).box(panel.row()).children) == 1


@pytest.mark.parametrize("name", ["profiles", "leaderboard"])
def test_panels_with_tabs_show_their_titles_whole(data: Dataset, name: str) -> None:
    whole(getattr(views, name)(data).panel())
