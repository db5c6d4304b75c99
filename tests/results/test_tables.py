"""Tables as text: Markdown and LaTeX."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit.base.config import TrainingConfig
from spike_kit.experiments.remarks import remarks
from spike_kit.results.tables import (
    as_markdown,
    differences,
    group_remarks,
    latex_table,
    latex_text,
    markdown_table,
    metric_name,
)

TABLE = pd.DataFrame({"model": ["a", "b_c|", "d"], "seeds": [1, 2, 1], "ndcg@20": [0.1, 0.3, 0.2]}).assign(
    **{"ndcg@20 sd": [0.01, np.nan, np.nan]}
)


def test_markdown_marks_the_best_of_each_column() -> None:
    lines = as_markdown(TABLE.assign(x=[0.3, 0.1, 0.2], **{"x sd": np.nan}), ("ndcg@20", "x"), digits=2).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert cells[2] == ["a", "1", "0.10 ± 0.01", "**0.30**"]
    assert cells[3] == [r"b_c\|", "2", "**0.30**", "0.10"]
    assert len({len(line) for line in lines}) == 1
    assert markdown_table([("a", ["x|y"]), ("b", [""])]) == "| a | b |\n| --- | --- |\n| x\\|y |  |"
    row = {"difference": 0.01, "low": -0.001, "high": 0.02, "mark": "*"}
    reference = dict.fromkeys(row, np.nan) | {"mark": ""}
    assert differences(pd.DataFrame([row, reference])) == ["+0.0100∗", ""]
    assert differences(pd.DataFrame([row]), interval=True) == ["+0.0100 [-0.0010, +0.0200]∗"]


def a_run(model: str = "lightgcn", curve: list[float] | None = None, **facts: Any) -> Any:
    """A run folder's remarks come from its configuration, metrics and history alone."""
    training = TrainingConfig().model_dump() | {name: facts.pop(name) for name in ("keep", "patience") if name in facts}
    metrics = {"epochs": 120, "best_epoch": 100, "steps": 1320} | facts
    history = pd.DataFrame({"epoch": range(1, len(curve) + 1), "valid_ndcg@20": curve}) if curve else pd.DataFrame()
    return SimpleNamespace(
        config={"model": model, "training_settings": training}, metrics=metrics, history=history, path=Path("run")
    )


RISING = [epoch / 1000 for epoch in range(300)]


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (a_run(), {}),
        (a_run(epochs=300, best_epoch=300), {"limit": "best epoch 300 of at most 300"}),
        (a_run(epochs=300, best_epoch=281), {"limit": "best epoch 281 of at most 300"}),
        (a_run(epochs=300, best_epoch=25), {}),
        (a_run(epochs=300, best_epoch=200, patience=0), {}),
        (a_run(epochs=300, best_epoch=290, patience=0), {"limit": "best epoch 290 of at most 300"}),
        (a_run(epochs=300, best_epoch=300, keep="last"), {}),
        (a_run(epochs=300, best_epoch=300, keep="last", curve=RISING), {"limit": "best epoch 300 of at most 300"}),
        (a_run(epochs=300, best_epoch=300, keep="last", curve=RISING[::-1]), {}),
        (a_run(epochs=75, steps=75), {"steps": "few steps (75)"}),
        (a_run(epochs=0, best_epoch=0, steps=0), {}),
        (a_run(listed={"items": 27, "of": 346}), {"lists": "lists hold 27 of 346 items"}),
        (a_run(listed={"items": 35, "of": 346}), {}),
        (a_run("popularity", epochs=0, best_epoch=0, listed={"items": 27, "of": 346}), {}),
        (a_run("ease", epochs=0, best_epoch=0, listed={"items": 2, "of": 30}), {"lists": "lists hold 2 of 30 items"}),
    ],
)
def test_a_run_that_failed_in_silence_is_remarked_upon(run: Any, expected: dict[str, str]) -> None:
    assert remarks(run) == expected


def test_a_run_of_an_earlier_version_says_less() -> None:
    old = a_run(epochs=20)
    del old.metrics["steps"]
    assert remarks(old) == {}


def test_remarks_of_seeds_are_counted_and_stand_in_the_row() -> None:
    good, limit, few = a_run(), a_run(epochs=300, best_epoch=300), a_run(epochs=300, best_epoch=295, steps=60)
    assert group_remarks([good]) == group_remarks([good, good]) == ""
    assert group_remarks([few]) == "best epoch 295 of at most 300, few steps (60)"
    said = group_remarks([good, limit, few])
    assert said == "best epoch 300 of at most 300 (2 of 3 runs), few steps (60) (1 of 3 runs)"
    assert said in as_markdown(TABLE.assign(remarks=["", said, ""]), ["ndcg@20"]).splitlines()[3]
    assert "remarks" not in as_markdown(TABLE.assign(remarks=""), ["ndcg@20"])


def test_latex_prints_what_stands_there() -> None:
    assert latex_text("a_b & 50% $x$ {y} \\input{z}\n~^") == (
        r"a\_b \& 50\% \$x\$ \{y\} \textbackslash{}input\{z\} \textasciitilde{}\textasciicircum{}"
    )
    text = latex_table(TABLE.assign(**{"ndcg@20 mark": ["", "", "**"]}), ["ndcg@20"])
    assert r"a & 0.1000 {\scriptsize $\pm$ 0.0100} \\" in text
    assert r"b\_c| & \textbf{0.3000} \\" in text
    assert r"d & \underline{0.2000}\textsuperscript{**} \\" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert [metric_name(name) for name in ("ndcg@20", "hit_rate@5", "mrr")] == ["NDCG@20", "Hit rate@5", "MRR"]
