"""Figures of a paper: what they show, that they are written the same again, and that any name can be drawn."""

import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import ITEM_GROUPS
from spike_kit.experiments.ablation import ABLATIONS, PAPER_ROWS
from spike_kit.experiments.archive import read_archive, write_archive
from spike_kit.experiments.run import Run
from spike_kit.figures import charts, gallery, style
from spike_kit.figures.gallery import FIGURES, Recipe
from spike_kit.figures.names import short_names
from spike_kit.models import MODELS
from tests.conftest import several

Runs = dict[str, list[Run]]


def results_table(*means: float, dataset: str = "world") -> pd.DataFrame:
    """Means of NDCG@20 of SPiKE, "_b <i>" and "c", a tenth more of Recall@20, and no other metric of interest."""
    names = ("SPiKE (tuned)", "_b <i>", "c")
    rows = [
        {"dataset": dataset, "model": model, "split": "test", "metric": metric, "seeds": 1, "mean": mean + more}
        for model, mean in zip(names, means or (0.1, 0.2, 0.15), strict=True)
        for metric, more in (("recall@10", 0.3), ("recall@20", 0.1), ("ndcg@20", 0.0))
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["mean"] - 0.02, high=frame["mean"] + 0.01, interval="95 % over users")


def ablation_table(*names: str) -> pd.DataFrame:
    """The range of the study on ml-100k, where the labels of the differences once ran together."""
    numbers = {"difference": -0.0109, "low": -0.0164, "high": 0.0034, "mark": "**"}
    return pd.DataFrame({"model": list(names), "metric": "ndcg@20", "split": "test", **numbers})


def points(kinds: Sequence[str | None], **panels: float) -> pd.DataFrame:
    parts = [pd.DataFrame({"panel": name, "kind": kinds, "x": x, "y": 0.0}) for name, x in panels.items()]
    return pd.concat(parts, ignore_index=True)


def legend_of(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def dots(axes: Any) -> list[tuple[float, float]]:
    """Value and place of every dot of rows, from the top down, the filled ones first."""
    return [(x, y) for marks in axes.containers for x, y in marks[0].get_xydata().tolist()]


def rows_of(axes: Any) -> list[str]:
    return [label.get_text() for label in axes.get_yticklabels()]


def written_in(axes: Any) -> list[Text]:
    """Names and numbers in the axes that are not empty, without the lines that lead to them."""
    return [text for text in axes.texts if text.get_text()]


def boxes(texts: Sequence[Any]) -> list[Any]:
    """Where texts are drawn."""
    return [Text.get_window_extent(text) for text in texts]


def clear(texts: Sequence[Any]) -> bool:
    """Whether there are several texts and none overlaps another."""
    return len(texts) > 1 and not any(one.overlaps(other) for one, other in itertools.combinations(boxes(texts), 2))


def test_rows_show_every_mean_with_its_interval_the_best_on_top() -> None:
    figure = charts.result_dots(results_table())
    assert figure.get_size_inches()[0] == style.ONE_COLUMN
    assert [axes.get_xlabel() for axes in figure.axes] == ["Recall@20 (test)", "NDCG@20 (test)"]
    assert rows_of(figure.axes[0]) == ["_b <i>", "c", "SPiKE"]
    for axes, more in zip(figure.axes, (0.1, 0), strict=True):
        values, places = zip(*dots(axes), strict=True)
        assert values == pytest.approx([0.1 + more, 0.2 + more, 0.15 + more])
        assert np.argsort(places).tolist() == [0, 2, 1]
        ends = [line for marks in axes.containers for line in marks[2][0].get_segments()]
        assert [line[:, 0].tolist() for line in ends] == [pytest.approx([x - 0.02, x + 0.01]) for x in values]
    assert figure.get_supxlabel() == "intervals: 95 % over users"


def test_spike_stands_out_without_colour() -> None:
    figure = charts.result_dots(results_table())
    ours, others = (marks[0] for marks in figure.axes[1].containers)
    assert (len(ours.get_xdata()), len(others.get_xdata())) == (1, 2)
    assert (ours.get_markerfacecolor(), others.get_markerfacecolor()) == (ours.get_color(), "white")
    weights = {label.get_text(): label.get_fontweight() for label in figure.axes[0].get_yticklabels()}
    assert weights == {"_b <i>": "normal", "c": "normal", "SPiKE": "bold"}
    for draw, frame in (
        (charts.sparsity_slopes, measured(model=["SPiKE", "b"], group="1-2", users=3)),
        (charts.efficiency_points, measured(model=["SPiKE", "b"], quality=[0.1, 0.2], seconds=3.0)),
    ):
        axes: Any = draw(frame).axes[0]
        ours, others = axes.lines[:2]
        assert (ours.get_markerfacecolor(), others.get_markerfacecolor()) == (ours.get_color(), "white")
        assert [text.get_fontweight() for text in written_in(axes)] == ["bold", "normal"]


def test_a_far_off_mean_is_a_number_at_the_edge() -> None:
    axes: Any = charts.result_dots(results_table(0.4, 0.199, 0.21)).axes[1]
    assert [x for x, _ in dots(axes)] == pytest.approx([0.4, 0.21])
    (note,) = axes.texts
    assert note.get_text() == "0.199"
    assert note.xy[1] == min(axes.get_yticks())
    assert axes.get_xlim()[0] > 0.17


def test_every_data_set_has_a_panel_with_an_order_of_its_own() -> None:
    frame = pd.concat([results_table(dataset="$a_"), results_table(0.3, 0.2, 0.25), results_table(dataset="c")])
    figure = charts.result_dots(frame)
    assert figure.get_size_inches()[0] == style.TWO_COLUMNS
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in shown] == [r"\$a_", "world", "c"]
    assert {axes.get_xlabel() for axes in shown} == {"NDCG@20 (test)"}
    assert [rows_of(axes)[0] for axes in shown] == ["_b <i>", "SPiKE", "_b <i>"]


def test_every_figure_is_drawn_and_a_second_process_writes_the_same_bytes(
    data: Dataset, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Laying out takes long and is tested elsewhere; the second process finds the coordinates in the cache.
    monkeypatch.setattr("spike_kit.evaluation.maps._laid_out", lambda vectors, **_: vectors[:, :2])
    folder = tmp_path / "first"
    made = gallery.export(data, folder, several(runs), progress=False)
    assert made["figure"].tolist() == [*FIGURES, "table"]
    missing = made["figure"].isin(["worth", "tasks"])
    assert set(made["not run"][~missing]) == {""}
    assert set(made["files"][missing].map(len)) == {0}
    for files in made["files"][~missing][:-1]:
        assert [file.suffix[1:] for file in files] == [*style.FORMATS, "csv"]
        assert len(pd.read_csv(files[-1])) > 0
    assert (folder / "results-world.tex").read_text().count(r"\\") == 1 + len(runs)
    script = "import sys, spike_kit as sk; sk.figures.export(sk.load('world'), sys.argv[1], progress=False)"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "second")],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
    )
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_what_was_not_run_is_named_and_not_drawn(data: Dataset, home: Path) -> None:
    made = gallery.export(data, runs=[], progress=False).set_index("figure")
    assert set(made.index[made["files"].map(len) > 0]) == {"graph", "quality"}
    assert str(made["not run"]["ablation"]).startswith("the full model of spike was not run")
    assert made["not run"]["map"] == "no run of SPiKE with profiles has its weights here"
    assert {path.stem for path in (home / "figures").iterdir()} == {"graph-world", "quality-world"}


def test_the_archive_is_enough_for_the_figures_of_results(data: Dataset, runs: Runs, tmp_path: Path) -> None:
    write_archive(several(runs), data, tmp_path / "archive")
    archived = read_archive(data.name, tmp_path / "archive")
    for name in ("results", "ablation", "sensitivity", "sparsity", "efficiency"):
        assert gallery.draw(data, name, archived).axes


def test_a_figure_of_ones_own_is_a_function_and_a_line(
    data: Dataset, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Recipe(lambda of: pd.DataFrame({"runs": [len(of.runs)]}), lambda _: style.blank_figure(2, 1), "")
    monkeypatch.setitem(FIGURES, "own", counted)
    files = gallery.export(data, runs=several(runs), names=["own"], progress=False)["files"][0]
    assert pd.read_csv(files[-1])["runs"].tolist() == [len(several(runs))]
    with pytest.raises(ConfigError, match="no figure named 'nope'"):
        gallery.export(data, runs=[], names=["nope"], progress=False)


@pytest.mark.parametrize("n", [9, len(MODELS)])
def test_many_models_share_no_colour_and_later_ones_differ_in_form(n: int) -> None:
    assert len({charts.bar_look(number)["facecolor"] for number in range(n)}) == n
    assert len({style.line_look(number)["color"] for number in range(n)}) == n
    assert len({(bar["facecolor"], bar["hatch"]) for bar in map(charts.bar_look, range(5 * n))}) == 5 * n
    for form in ("marker", "linestyle"):
        assert len({(look["color"], look[form]) for look in map(style.line_look, range(5 * n))}) == 5 * n


@pytest.mark.parametrize("n", [2, 10])
def test_every_text_has_its_line(n: int) -> None:
    names = [f"text {number}" for number in range(n)]
    rows = [(rule, name, group) for rule in ("among", "all") for name in names for group in ITEM_GROUPS]
    frame = pd.DataFrame(rows, columns=["candidates", "model", "group"]).assign(mean=0.2, low=0.1, high=0.3)
    figure = charts.worth_lines(frame.assign(metric="ndcg@20", split="test"))
    assert figure.get_size_inches()[0] == style.ONE_COLUMN
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_legends_stand_outside_the_axes(data: Dataset, runs: Runs) -> None:
    for name in ("curves", "graph", "quality"):
        figure = gallery.draw(data, name, several(runs))
        assert not any(axes.get_legend() for axes in figure.axes)
        assert figure.legends


NAMES = ("SPiKE (tuned)", "RLMRec-Con (tuned) profiles=claude", "KGAT", "a name $of_ many words", *"bcdefghijkl")


@pytest.mark.parametrize("spread", [0.0, 0.002, 0.3])
def test_names_stand_beside_their_points_and_apart(spread: float) -> None:
    random = np.random.default_rng(3)
    quality, seconds = 0.3 + spread * random.normal(size=len(NAMES)), 10 ** random.normal(size=len(NAMES))
    figure = charts.efficiency_points(measured(model=NAMES, quality=quality, seconds=seconds))
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    assert len(figure.axes) == 1
    assert [text.get_text() for text in written_in(axes)][:3] == ["SPiKE", "RLMRec-Con", "KGAT"]
    assert clear(written_in(axes))
    frame = axes.get_window_extent()
    for box in boxes(written_in(axes)):
        assert frame.contains(*box.min)
        assert frame.contains(*box.max)
        assert not any(box.contains(*place) for place in axes.transData.transform(np.c_[seconds, quality]))


@pytest.mark.parametrize("value", ["mean", "difference"])
@pytest.mark.parametrize("n", [1, 5, 8, len(NAMES)])
def test_names_at_the_ends_of_slopes_stand_apart_in_the_order_of_the_lines(n: int, value: str) -> None:
    groups = ("1-2", "3-4", "5-9")
    rows = [(name, group, 0.2 + 0.001 * (number % 4)) for number, name in enumerate(NAMES[:n]) for group in groups]
    frame = pd.DataFrame(rows, columns=["model", "group", value])
    frame = frame.assign(metric="ndcg@20", split="test", users=3, low=0.1, high=0.3)
    figure = charts.sparsity_slopes(frame, value)
    figure.savefig(io.BytesIO())
    axes: Any = figure.axes[0]
    names = written_in(axes)
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1-2\n(3)", "3-4\n(3)", "5-9\n(3)"]
    assert names[0].get_text() == ("SPiKE" if value == "mean" else "SPiKE (tuned)")
    assert [line.get_ydata().tolist() for line in axes.lines[:n]] == frame[value].to_numpy().reshape(n, -1).tolist()
    assert not figure.legends
    if n > 1:
        assert clear(names)
    heights = [box.y0 + box.y1 for box in boxes(names)]
    ends = [0.001 * (number % 4) for number in range(n)]
    assert all(heights[i] < heights[j] for i in range(n) for j in range(n) if ends[i] < ends[j])
    whole = figure.get_window_extent()
    assert all(whole.contains(*box.min) and whole.contains(*box.max) for box in boxes(names))


def test_a_line_that_ends_early_has_its_name() -> None:
    frame = measured(model=["a", "a", "b"], group=["1-2", "3-4", "1-2"], users=3)
    assert [text.get_text() for text in charts.sparsity_slopes(frame).axes[0].texts] == ["a", "b"]


def test_names_are_short_where_that_still_tells_them_apart() -> None:
    labels = ["SPiKE (tuned)", "SPiKE (tuned) profiles=a", "CoLaKG (tuned) profiles=a, encoder=b", "KGAT layers=2"]
    assert [*short_names(labels).values()] == [labels[0], labels[1], "CoLaKG", "KGAT layers=2"]
    assert [*short_names(labels[1:]).values()] == ["SPiKE", "CoLaKG", "KGAT layers=2"]


def test_rows_of_the_paper_come_first_and_are_filled() -> None:
    figure = charts.ablation_forest(ablation_table("text as it is", "w/o removal", "mine", "w/o user profiles"))
    axes: Any = figure.axes[0]
    assert rows_of(axes) == [f"{name} **" for name in ("w/o user profiles", "w/o removal", "text as it is", "mine")]
    paper, others = (marks[0] for marks in axes.containers)
    assert (len(paper.get_xdata()), len(others.get_xdata())) == (2, 2)
    assert (paper.get_markerfacecolor(), others.get_markerfacecolor()) == (paper.get_color(), "white")
    assert legend_of(figure) == ["rows of the paper", "others"]
    assert set(PAPER_ROWS) < set(ABLATIONS)
    assert not charts.ablation_forest(ablation_table("w/o removal", "w/o matching")).legends


def test_far_off_differences_are_numbers_at_their_edge() -> None:
    frame = ablation_table("w/o removal", "w/o matching", "w/o injection", "BPR", "better")
    frame["difference"] = [-0.01, 0.002, np.nan, -0.3, 0.2]
    axes: Any = charts.ablation_forest(frame).axes[0]
    assert [x for x, _ in dots(axes) if x == x] == [-0.01, 0.002]
    assert [(text.get_text(), text.xy[0]) for text in axes.texts] == [("\N{MINUS SIGN}0.300", 0), ("0.200", 1)]
    assert max(map(abs, axes.get_xlim())) < 0.03


def test_tasks_stand_side_by_side() -> None:
    tasks, texts = ("new items", "known", "few interactions"), ("w/o any text", "claude")
    frame = pd.DataFrame([(task, text) for task in tasks for text in texts], columns=["group", "model"])
    figure = charts.task_dots(frame.assign(metric="ndcg@20", split="test", mean=0.2, low=0.1, high=0.3))
    axes: Any = figure.axes[0]
    assert figure.get_size_inches()[0] == style.ONE_COLUMN
    assert [label.get_text() for label in axes.get_xticklabels()] == ["known", "few interactions", "new items"]
    assert legend_of(figure) == list(texts)
    places = [x for marks in axes.containers for x in marks[0].get_xdata()]
    assert len(set(places)) == 6
    assert {marks[0].get_marker() for marks in axes.containers} == {"o", "s"}


@pytest.mark.parametrize("names", [tuple(ABLATIONS), ("w/o matching", "a name that is long " * 4, "another " * 8)])
def test_labels_of_ablations_do_not_overlap(names: tuple[str, ...]) -> None:
    figure = charts.ablation_forest(ablation_table(*names))
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        assert clear(labels)


HOSTILE = [f"$\\frac{{x^_{n}$ <script>%" for n in range(3)]


def measured(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"metric": "ndcg@20", "split": "test", "mean": 0.2, "low": 0.1, "high": 0.3} | columns)


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (charts.ablation_forest, ablation_table(*HOSTILE)),
        (charts.result_dots, results_table().replace({"c": HOSTILE[0], "world": HOSTILE[1]})),
        (charts.result_dots, pd.concat([results_table(dataset=name) for name in HOSTILE])),
        (charts.sensitivity_lines, measured(model="m", setting="s", value=HOSTILE, sd=np.nan)),
        (charts.sparsity_slopes, measured(model=HOSTILE, group="1-2", users=3)),
        (charts.efficiency_points, measured(model=HOSTILE, quality=0.1, seconds=1.0, peak_gib=0.2)),
        (charts.task_dots, measured(model=HOSTILE, group="known")),
        (charts.worth_lines, measured(model=HOSTILE, group="0", candidates="all")),
        (charts.curve_lines, measured(model=HOSTILE, seed=0, epoch=1, seconds=0.1, value=0.1)),
        (charts.node_maps, points(HOSTILE, **{"$a_": 0.0})),
        (
            charts.graph_statistics,
            pd.DataFrame({"of": ["users", *HOSTILE], "degree": [1, *[np.nan] * 3], "nodes": 2, "share": 1}),
        ),
    ],
)
def test_hostile_names_are_drawn_as_they_are(
    draw: Callable[[pd.DataFrame], Any], frame: pd.DataFrame, tmp_path: Path
) -> None:
    files = style.export(draw(frame), "hostile", tmp_path)
    assert "<script" not in files[1].read_text(encoding="utf-8")


def test_rare_kinds_of_a_map_are_drawn_together() -> None:
    kinds = [None, *(f"g{n}" for n in range(12) for _ in range(12 - n))]
    figure = charts.node_maps(points(kinds, one=0.0, two=1.0))
    assert legend_of(figure) == [*(f"g{n}" for n in range(7)), "other"]
    assert [axes.get_title() for axes in figure.axes] == ["one", "two"]
    assert legend_of(charts.node_maps(points(["$$", "_hidden"], a=0.0))) == [r"\$\$", "_hidden"]


def test_fonts_are_embedded_as_type_42_and_the_style_does_not_leak(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    (pdf, svg, png) = style.export(charts.result_dots(results_table()), "dots", tmp_path)
    assert b"/FontType 42" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    assert b"<svg" in svg.read_bytes()[:2000]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_legends_fit() -> None:
    assert style.legend_columns(["a", "b", "c"], 7.0) == 3
    assert style.legend_columns(["a long name of a model with settings"] * 4, 3.33) == 1
    assert style.legend_columns([], 3.0) == 1


def test_the_command_lists_what_it_wrote(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    folder = paths.home() / "paper"
    assert main(["figures", "world", "--only", "results", "curves", "--folder", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "results-world.pdf" in lines[0]
    assert "curves-world.pdf" in lines[1]
    assert "results-world.tex" in lines[2]
    before = sorted(folder.iterdir())
    assert main(["figures", "world", "--only", "sparsity", "nope", "--folder", str(folder)]) == 1
    assert sorted(folder.iterdir()) == before
