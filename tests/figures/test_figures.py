from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.container import BarContainer
from spike_kit.figures.results import result_bars

from spike_kit.figures.maps import embedding_maps
from spike_kit.figures.style import FORMATS, TWO_COLUMNS, export


def table() -> pd.DataFrame:
    rows = [
        {"model": model, "split": "test", "metric": f"{name}@{k}", "seeds": 1, "mean": mean}
        for model, mean in (("a", 0.1), ("b <i>", 0.2))
        for name in ("recall", "ndcg")
        for k in (10, 20)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["mean"] - 0.02, high=frame["mean"] + 0.01, interval="95 % over users")


def test_bars_show_every_value(tmp_path: Path) -> None:
    figure = result_bars(table())
    groups = [group for axes in figure.axes for group in axes.containers if isinstance(group, BarContainer)]
    heights = [bar.get_height() for group in groups for bar in group]
    assert heights == pytest.approx([0.1, 0.1, 0.2, 0.2] * 2)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Recall (test)", "NDCG (test)"]
    assert figure.get_size_inches()[0] == TWO_COLUMNS
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b <i>"]


def test_hostile_labels_are_drawn_as_they_are(tmp_path: Path) -> None:
    points = pd.DataFrame(np.zeros((4, 2)), columns=["x", "y"])
    groups = pd.Series(["$$", "_hidden", "$x^{", "<script>"])
    files = export(embedding_maps({"$a_": points}, groups), "hostile", tmp_path)
    svg = files[1].read_text(encoding="utf-8")
    assert "<script" not in svg
    legend = embedding_maps({"a": points}, groups).legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [r"\$\$", "_hidden", r"\$x^{", "<script>"]


def test_exports_are_equal_to_the_byte_on_a_second_run(tmp_path: Path) -> None:
    points = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 2)), columns=["x", "y"])
    groups = pd.Series(["a", "b"] * 25)
    for name, draw in (
        ("bars", lambda: result_bars(table())),
        ("map", lambda: embedding_maps({"one": points, "two": points}, groups)),
    ):
        first = [file.read_bytes() for file in export(draw(), name, tmp_path / "first")]
        second = [file.read_bytes() for file in export(draw(), name, tmp_path / "second")]
        assert len(first) == len(FORMATS)
        assert first == second


def test_fonts_are_embedded_as_type_42_and_the_style_does_not_leak(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    (pdf, svg, png) = export(result_bars(table()), "bars", tmp_path)
    assert b"/FontType 42" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert b"/Type3" not in pdf.read_bytes()
    assert b"<svg" in svg.read_bytes()[:2000]
    assert png.read_bytes().startswith(b"\x89PNG")
    assert dict(mpl.rcParams) == before


def test_rare_groups_are_drawn_together(tmp_path: Path) -> None:
    groups = pd.Series([f"g{n}" for n in range(12) for _ in range(12 - n)])
    points = pd.DataFrame(np.zeros((len(groups), 2)), columns=["x", "y"])
    figure = embedding_maps({"one": points}, groups)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*(f"g{n}" for n in range(7)), "other"]
