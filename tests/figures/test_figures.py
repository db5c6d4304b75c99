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
from matplotlib.container import BarContainer

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.groups import ITEM_GROUPS
from spike_kit.experiments.ablation import ABLATIONS
from spike_kit.experiments.archive import read_archive, write_archive
from spike_kit.experiments.run import Run
from spike_kit.figures import charts, gallery, style
from spike_kit.figures.gallery import FIGURES, Recipe
from spike_kit.models import MODELS
from tests.conftest import several

Runs = dict[str, list[Run]]


def results_table() -> pd.DataFrame:
    rows = [
        {"model": model, "split": "test", "metric": f"{name}@{k}", "seeds": 1, "mean": mean}
        for model, mean in (("a", 0.1), ("_b <i>", 0.2))
        for name in ("recall", "ndcg")
        for k in (10, 20)
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


def test_bars_show_every_value_and_the_legend_every_name() -> None:
    figure = charts.result_bars(results_table())
    groups = [group for axes in figure.axes for group in axes.containers if isinstance(group, BarContainer)]
    assert [bar.get_height() for group in groups for bar in group] == pytest.approx([0.1, 0.1, 0.2, 0.2] * 2)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Recall (test)", "NDCG (test)"]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["@10", "@20"]
    assert figure.get_size_inches()[0] == style.TWO_COLUMNS
    assert legend_of(figure) == ["a", "_b <i>"]


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
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_legends_stand_outside_the_axes(data: Dataset, runs: Runs) -> None:
    for name in ("results", "sparsity", "efficiency", "curves", "graph", "quality"):
        figure = gallery.draw(data, name, several(runs))
        assert not any(axes.get_legend() for axes in figure.axes)
        assert figure.legends


def test_memory_has_a_panel_where_it_is_known() -> None:
    frame = measured(model=["a", "b"], quality=0.1, seconds=3.0)
    assert len(charts.efficiency_points(frame.assign(peak_gib=0.5)).axes) == 2
    assert len(charts.efficiency_points(frame.assign(peak_gib=np.nan)).axes) == 1


@pytest.mark.parametrize("names", [tuple(ABLATIONS), ("w/o matching", "a name that is long " * 4, "another " * 8)])
def test_labels_of_ablations_do_not_overlap(names: tuple[str, ...]) -> None:
    figure = charts.ablation_bars(ablation_table(*names))
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) > 1
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


HOSTILE = [f"$\\frac{{x^_{n}$ <script>%" for n in range(3)]


def measured(**columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"metric": "ndcg@20", "split": "test", "mean": 0.2, "low": 0.1, "high": 0.3} | columns)


@pytest.mark.parametrize(
    ("draw", "frame"),
    [
        (charts.ablation_bars, ablation_table(*HOSTILE)),
        (charts.result_bars, results_table().replace({"a": HOSTILE[0]})),
        (charts.sensitivity_lines, measured(model="m", setting="s", value=HOSTILE, sd=np.nan)),
        (charts.sparsity_bars, measured(model=HOSTILE, group="1-2", users=3)),
        (charts.efficiency_points, measured(model=HOSTILE, quality=0.1, seconds=1.0, peak_gib=0.2)),
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
    (pdf, svg, png) = style.export(charts.result_bars(results_table()), "bars", tmp_path)
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
