import subprocess
import sys

import pytest

from spike_kit import views
from spike_kit.base.errors import ConfigError


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
