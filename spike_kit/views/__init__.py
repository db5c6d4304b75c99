"""Looking at data sets, profiles and models: ``views.map(run).panel()`` and the like.

A view is a class in a module of its own, with a method ``panel``, and a line in `VIEWS`. Every name in it is an
attribute of this package: what makes the view, imported when it is asked for.
"""

import importlib
from typing import Any

from spike_kit.base.errors import Registry

VIEWS: Registry[Any] = Registry(
    "view",
    {
        "map": "spike_kit.views.embedding_map:EmbeddingMap.of",
        "profiles": "spike_kit.views.profile_browser:ProfileBrowser.of",
        "graph": "spike_kit.views.graph_view:GraphView.of",
        "why": "spike_kit.views.explanation:Explanation.of",
        "new_item": "spike_kit.views.item_explorer:NewItem",
        "ablation": "spike_kit.views.ablation_study:AblationStudy",
        "leaderboard": "spike_kit.views.overview:Overview",
        "generation": "spike_kit.views.generation_session:GenerationSession",
    },
)
"""What makes a view (a class, or a constructor of one) by the view's name.

Maps, graphs, reasons and new items are made of a run, profiles and graphs also of a data set, ablation and leaderboard
of a data set, a generation of a `spike_kit.profiles.generate.Generation`.
"""


def __getattr__(name: str) -> Any:
    if name in VIEWS:
        return VIEWS[name]
    if name == "tables":
        return importlib.import_module("spike_kit.views.tables")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *VIEWS, "tables"]
