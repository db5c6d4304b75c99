from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit import views
from spike_kit.base.errors import DataError
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.ranking import top_items
from spike_kit.experiments.run import Run
from spike_kit.models.spike import Spike, SpikeConfig
from spike_kit.models.spike_explainer import Removal, SpikeExplainer
from spike_kit.views.explanation import By, Explanation
from spike_kit.views.profile_browser import MARK
from spike_kit.views.tables import origin
from tests.views.conftest import harmless, written
from tests.world import World


@pytest.fixture
def view(data: Dataset, explainer: SpikeExplainer) -> Explanation:
    return Explanation(data, explainer, 3, k=5)


def test_the_list_is_that_of_the_evaluation(data: Dataset, view: Explanation) -> None:
    train = data.split("train")
    expected = top_items(view.explainer.model, 3, train.loc[train["user"] == 3, "item"].tolist(), 5)
    assert view.items == [item for item, _ in expected]
    assert view.table["score"].tolist() == pytest.approx([score for _, score in expected], abs=1e-5)
    assert view.table["item"].tolist() == data.items["label"].iloc[view.items].tolist()
    valid = data.split("valid")
    assert view.table["in valid"].tolist() == [
        item in set(valid.loc[valid["user"] == 3, "item"]) for item in view.items
    ]
    test = Explanation(data, view.explainer, 3, k=60, split="test")
    assert not set(test.items) & set(valid.loc[valid["user"] == 3, "item"])
    with pytest.raises(DataError, match=r"no (node|user)"):
        view.choose(10**6)


@pytest.mark.parametrize("by", ["origin", "layer"])
def test_parts_sum_to_the_scores_and_are_drawn(view: Explanation, by: By) -> None:
    view.by = by
    parts = view.parts()
    assert parts.sum(axis=1).tolist() == pytest.approx(view.table["score"].tolist())
    assert parts.shape == (5, 4)
    axes: Any = view.figure.axes[0]
    groups: list[Any] = list(axes.containers)
    assert [[bar.get_width() for bar in group] for group in groups] == pytest.approx(parts.T.to_numpy())
    for row, values in enumerate(parts.to_numpy()):
        ends = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in (group[row] for group in groups))
        assert min(min(pair) for pair in ends) == pytest.approx(values[values < 0].sum())
        assert max(max(pair) for pair in ends) == pytest.approx(values[values > 0].sum())
    assert axes.collections[0].get_offsets()[:, 0].tolist() == pytest.approx(view.table["score"].tolist())


def test_what_both_profiles_say_is_marked(data: Dataset, view: Explanation) -> None:
    profiles = data.profiles().set_index(["subject", "id"])["text"]
    own = view.train[0]
    shared = view.shared(own)
    assert len(shared) > 0
    for who, number in (("user", 3), ("item", own)):
        assert all(phrase in str(profiles[who][number]).lower() for phrase in shared)
    assert view.profiles_html(own).count(MARK) >= 2 * len(shared)
    other = next(item for item in range(len(data.items)) if not view.shared(item))
    assert "share no name" in view.profiles_html(other)


def test_what_if_is_recomputed(view: Explanation) -> None:
    item = view.items[0]
    removals = view.removals(item)
    assert {removal.kind for removal in removals} == {"profile", "triple", "interaction"}
    removal = next(removal for removal in removals if removal.kind == "interaction")
    row = view.what_if(removal).set_index("item").to_dict("index")[view.label(item)]
    assert row["new score"] == pytest.approx(float(view.explainer.without(removal).scores(3)[item]), abs=1e-6)
    assert row["rank"] == 1
    influence = view.influence(item).set_index("taken out")
    assert len(influence) == len(removals)
    same = influence.loc[view.removal_label(removal)]
    assert (same["change"], same["new rank"]) == (pytest.approx(row["change"], abs=1e-6), row["new rank"])
    assert influence["change"][influence.index.str.startswith("profile of Director")].to_numpy().all()
    with pytest.raises(DataError, match="no triple"):
        view.influence(item, [Removal("triple", (0, 0, 0))])


def test_parts_of_many_layers_look_different(data: Dataset, world: World) -> None:
    deep = Spike(SpikeConfig(dim=8, layers=3), world.graph, world.vectors, torch_generator(0, "init"))
    view = Explanation(data, SpikeExplainer(deep), 0, k=2)
    view.by = "layer"
    bars: list[Any] = [group[0] for group in view.figure.axes[0].containers]
    assert len(bars) == len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars}) == 16


def test_hostile_text_shows_as_text(hostile: Dataset, explainer: SpikeExplainer, tmp_path: Path) -> None:
    view = Explanation(hostile, explainer, 0, k=3)
    harmless(view, view.figure)
    written(view, tmp_path)
    assert "<img" in view.figure.axes[0].get_yticklabels()[0].get_text()


def test_the_panel_explains_another_user(view: Explanation, monkeypatch: pytest.MonkeyPatch) -> None:
    panel = view.panel().parts
    before, picture = panel["table"].value, panel["why"].value
    panel["user"].value = 40
    assert view.user == 40
    assert panel["table"].value != before
    assert panel["why"].value != picture
    assert [value for _, value in panel["item"].options] == view.items
    monkeypatch.setattr(view, "choose", lambda user: setattr(view, "user", user))
    monkeypatch.setattr(view, "profiles_html", lambda item: f"profiles of {view.user} and {item}")
    panel["user"].value = 41
    assert panel["profiles"].value == f"profiles of 41 and {view.items[0]}"
    picture = panel["why"].value
    panel["by"].value = "layer"
    assert panel["why"].value != picture
    panel["out"].index = (0, 1)
    panel["what_if"].click()
    assert "new rank" in panel["answer"].value
    panel["item"].value = view.items[1]
    assert panel["profiles"].value == f"profiles of 41 and {view.items[1]}"
    assert panel["answer"].value == ""


def test_an_export_holds_the_parts_that_are_drawn(spike_run: Run, tmp_path: Path) -> None:
    view = views.why(spike_run, user=3, device="cpu", k=4)
    view.by = "layer"
    pd.testing.assert_frame_equal(written(view, tmp_path), view.table, atol=1e-5, check_dtype=False)
    assert len(list(tmp_path.glob("a/why-world-user-3-layer-*.csv"))) == 1


def test_who_wrote_the_profiles_stands_below_them(data: Dataset) -> None:
    profiles = data.profiles()
    data.write_profiles("told", profiles, {"about": ["Written by <b>nobody</b>.", "In vain."]})
    assert origin(data, "told+template") == "<small>Written by &lt;b&gt;nobody&lt;/b&gt;.</small>"
    assert origin(data, "template") == ""
