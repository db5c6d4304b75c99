"""Tables as text: Markdown and LaTeX."""

import numpy as np
import pandas as pd

from spike_kit.results.tables import as_markdown, differences, latex_table, latex_text, markdown_table, metric_name

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
