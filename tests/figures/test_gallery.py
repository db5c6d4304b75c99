from __future__ import annotations

import dataclasses
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.ablation import ABLATIONS
from spike_kit.experiments.archive import ArchivedRun, read_archive, write_archive
from spike_kit.experiments.run import RunConfig, run
from spike_kit.experiments.run_folder import Run
from spike_kit.figures import comparisons
from spike_kit.figures.gallery import FIGURES, export_all
from spike_kit.figures.style import COLOURS, DASHES, FORMATS, HATCHES, MARKERS, legend_columns
from spike_kit.models import MODELS, find_preset
from spike_kit.results import frames
from spike_kit.results.comparison import ablation_frame
from spike_kit.results.frames import per_user_metric, results_frame
from spike_kit.results.latex import latex_table, latex_text
from spike_kit.results.significance import holm, paired_test
from spike_kit.results.tables import ablation_label

SHORT = {"epochs": 2, "eval_every": 1}


def made(model: str = "spike", seed: int = 0, training: dict[str, Any] | None = None, **settings: Any) -> Run:
    given = SHORT if training is None else training
    given = {} if model == "popularity" else given
    return run(RunConfig(model=model, dataset="world", training=given, settings=settings, seed=seed), progress=False)


@pytest.fixture
def runs(data: Dataset) -> list[Run]:
    full = [made(seed=seed) for seed in (0, 1)]
    off = [made(seed=seed, matching="off") for seed in (0, 1)]
    return [made("popularity"), made("lightgcn"), *full, *off, made(rho=0.25), made(rho=1.0)]


def test_every_figure_is_drawn_where_its_runs_exist(data: Dataset, runs: list[Run], home: Path) -> None:
    artefacts = export_all(data, runs, progress=False)
    assert [artefact.name for artefact in artefacts] == [*FIGURES, "table"]
    assert [artefact.missing for artefact in artefacts] == [""] * len(artefacts)
    for artefact in artefacts[:-1]:
        assert [file.suffix[1:] for file in artefact.files] == [*FORMATS, "csv"]
        assert all(file.is_file() and file.parent == home / "figures" for file in artefact.files)
        assert len(pd.read_csv(artefact.files[-1])) > 0
    assert (home / "figures" / "results-world.tex").read_text().count(r"\\") == 1 + 6


def test_what_was_not_run_is_named_and_not_drawn(data: Dataset, home: Path) -> None:
    artefacts = {artefact.name: artefact for artefact in export_all(data, [], progress=False)}
    drawn = {name for name, artefact in artefacts.items() if artefact.files}
    assert drawn == {"graph", "quality"}
    assert artefacts["ablation"].missing.startswith("the full model of spike was not run")
    assert {path.stem for path in (home / "figures").iterdir()} == {"graph-world", "quality-world"}


def test_a_second_process_writes_the_same_bytes(data: Dataset, runs: list[Run], tmp_path: Path) -> None:
    export_all(data, runs, tmp_path / "first", progress=False)
    script = (
        "import sys; from pathlib import Path; from spike_kit.data.dataset import Dataset\n"
        "from spike_kit.experiments.run_folder import Run\n"
        "from spike_kit.figures.gallery import export_all\n"
        "export_all(Dataset.open('world'), [Run(Path(p)) for p in sys.argv[2:]], Path(sys.argv[1]), progress=False)\n"
    )
    folders = [str(one.path) for one in runs]
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "second"), *folders],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        check=True,
    )
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("first", "second")
    )
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_results_have_intervals(data: Dataset, runs: list[Run]) -> None:
    frame = results_frame(runs[:4], split="valid")
    assert set(frame["interval"][frame["model"] == "Popularity"]) == {"95 % over users"}
    spike = frame[frame["model"].str.startswith("SPiKE") & (frame["metric"] == "ndcg@20")].to_dict("records")[0]
    values = [one.metrics["valid"]["ndcg@20"] for one in runs[2:4]]
    assert spike["interval"] == "sd over seeds"
    assert spike["high"] - spike["mean"] == pytest.approx(np.std(values, ddof=1))
    assert ((frame["low"] <= frame["mean"]) & (frame["mean"] <= frame["high"])).all()


def test_every_figure_of_results_is_drawn_from_the_archive(data: Dataset, runs: list[Run], tmp_path: Path) -> None:
    write_archive(runs, data, tmp_path / "archive")
    archived = read_archive(data.name, tmp_path / "archive")
    frame = results_frame(archived)
    without = frame[frame["model"] == "Popularity"]
    assert set(without["interval"]) == {""}
    assert (without["low"] == without["mean"]).all()
    assert (without["high"] == without["mean"]).all()
    names = ("results", "ablation", "sensitivity", "sparsity", "efficiency")
    assert not [one.missing for one in export_all(data, archived, tmp_path, names=names, progress=False) if one.missing]


def test_many_series_differ_in_colour_or_form() -> None:
    for codes in (HATCHES, MARKERS, DASHES):
        assert len({(number % len(COLOURS), number % len(codes)) for number in range(len(MODELS))}) == len(MODELS)


def test_models_keep_their_order(runs: list[Run]) -> None:
    for given in (runs, runs[::-1]):
        models = dict.fromkeys(one.config["model"] for one in frames.main_runs(given))
        assert list(models) == ["popularity", "lightgcn", "spike"]


def test_ablations_are_compared_with_the_full_model(data: Dataset, runs: list[Run]) -> None:
    full, others = frames.full_model(runs)
    assert full == runs[2:4]
    assert others == runs[4:]
    frame = ablation_frame(full, others, split="valid")
    assert frame[["model", "seeds"]].to_dict("list") == {
        "model": ["w/o matching", "rho=0.25", "rho=1.0"],
        "seeds": [2, 1, 1],
    }
    assert frame["model"][0] in ABLATIONS
    config = full[0].config | {"profiles": "gpt", "encoder": "e5"}
    elsewhere = ArchivedRun.of(full[0].path, {"config": config}, full[0].per_user)
    assert ablation_label(elsewhere) == "profiles from gpt, encoded by e5"
    pairs = ((runs[4:6], full), ([runs[6]], [runs[2]]), ([runs[7]], [runs[2]]))
    tests = [paired_test(*(per_user_metric(group, "ndcg@20", "valid") for group in pair)) for pair in pairs]
    assert frame["difference"].tolist() == pytest.approx([test.difference for test in tests])
    assert frame["p"].tolist() == holm([test.p_permutation for test in tests]).tolist()
    assert ablation_frame(full[1:], runs[6:]).empty
    with pytest.raises(DataError, match="was not run"):
        frames.full_model(runs[4:])


def test_recommended_training_is_preferred(data: Dataset, runs: list[Run]) -> None:
    usual = dataclasses.replace(runs[2])
    preset = find_preset("spike").training.model_dump(mode="json")
    usual.__dict__["config"] = runs[2].config | {"training_settings": preset}
    assert frames.main_runs([*runs, usual]) == [*runs[:2], usual]
    assert frames.main_runs(runs) == runs[:4]


def test_tuned_runs_are_preferred_and_their_ablations_have_names(runs: list[Run]) -> None:
    config = runs[2].config
    base = {
        "model_settings": config["model_settings"] | {"rho": 0.7},
        "training_settings": config["training_settings"],
    }
    tuned, without = (dataclasses.replace(runs[2], path=runs[2].path.with_name(name)) for name in ("tuned", "without"))
    tuned.__dict__["per_user"] = without.__dict__["per_user"] = runs[2].per_user
    tuned.__dict__["metrics"] = without.__dict__["metrics"] = runs[2].metrics
    tuned.__dict__["config"] = config | {"preset": "tuned", "base": base, **base}
    settings = base["model_settings"] | {"matching": "off"}
    without.__dict__["config"] = tuned.config | {"model_settings": settings}
    known = [*runs, tuned, without]
    assert frames.main_runs(known) == [*runs[:2], tuned]
    full, others = frames.full_model(known)
    assert (full, others) == ([tuned], [without])
    assert ablation_frame(full, others)["model"].tolist() == ["w/o matching"]


def test_sensitivity_holds_everything_else_equal(data: Dataset, runs: list[Run]) -> None:
    frame = frames.sensitivity_frame(runs)
    assert set(frame["setting"]) == {"rho", "matching"}
    rho = frame[frame["setting"] == "rho"]
    assert rho["value"].tolist() == [0.25, 0.5, 1.0]
    assert rho["seeds"].tolist() == [1, 2, 1]
    assert rho["mean"].iloc[1] == pytest.approx(np.mean([one.metrics["valid"]["ndcg@20"] for one in runs[2:4]]))
    assert frames.sensitivity_frame(runs[:2]).empty


def test_efficiency_shows_memory_where_it_is_known(data: Dataset, runs: list[Run]) -> None:
    frame = frames.efficiency_frame(runs[1:4])
    assert (frame["seconds"] > 0).all()
    assert (frame["peak_gib"] > 0.05).all()
    assert len(comparisons.efficiency_points(frame).axes) == 2
    assert len(comparisons.efficiency_points(frame.assign(peak_gib=np.nan)).axes) == 1


@pytest.mark.parametrize("names", [tuple(ABLATIONS), ("w/o matching", "a name that is long " * 4, "another " * 8)])
def test_labels_of_ablations_do_not_overlap(data: Dataset, runs: list[Run], names: tuple[str, ...]) -> None:
    frame = ablation_frame(runs[2:4], runs[4:6])
    rows = pd.concat([frame.assign(model=name) for name in names])
    # The range of the study on ml-100k, where the labels of the differences once ran together.
    figure = comparisons.ablation_bars(rows.assign(difference=-0.0109, low=-0.0164, high=0.0034, mark="**"))
    figure.savefig(io.BytesIO())
    axes = figure.axes[0]
    for labels in (axes.get_yticklabels(), axes.get_xticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert len(boxes) > 1
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_degrees_are_those_of_the_graph(data: Dataset) -> None:
    rows = {row["of"]: row for row in frames.degree_frame(data).to_dict("records")}
    users = {"of": "users, interactions", "degree": 10, "nodes": len(data.users), "share": 1.0}
    assert rows["users, interactions"] == users
    assert rows["items, triples"]["degree"] == 2
    assert frames.relation_frame(data)["triples"].tolist() == [48, 48]


def hostile(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return frame.assign(**{column: [f"$\\frac{{x^_{n}$ <script>%" for n in range(len(frame))] for column in columns})


@pytest.mark.parametrize(
    "draw",
    [
        lambda runs: comparisons.ablation_bars(hostile(ablation_frame(runs[2:4], runs[4:6]), "model")),
        lambda runs: comparisons.sensitivity_lines(hostile(frames.sensitivity_frame(runs), "value")),
        lambda runs: comparisons.efficiency_points(hostile(frames.efficiency_frame(runs), "model")),
        lambda runs: comparisons.curve_lines(hostile(frames.curves_frame(runs[1:2]), "model")),
    ],
)
def test_hostile_names_are_drawn(data: Dataset, runs: list[Run], draw: Callable[[list[Run]], Any]) -> None:
    figure = draw(runs)
    figure.savefig(io.BytesIO())


def test_latex_prints_what_stands_there() -> None:
    assert latex_text("a_b & 50% $x$ {y} \\input{z}\n~^") == (
        r"a\_b \& 50\% \$x\$ \{y\} \textbackslash{}input\{z\} \textasciitilde{}\textasciicircum{}"
    )
    table = pd.DataFrame({"model": ["a", "b_c", "d"], "ndcg@20": [0.1, 0.3, 0.2], "ndcg@20 sd": [0.01, np.nan, np.nan]})
    text = latex_table(table, ["ndcg@20"])
    assert r"a & 0.1000 {\scriptsize $\pm$ 0.0100} \\" in text
    assert r"b\_c & \textbf{0.3000} \\" in text
    assert r"d & \underline{0.2000} \\" in text
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1


def test_legends_fit() -> None:
    assert legend_columns(["a", "b", "c"], 7.0) == 3
    assert legend_columns(["a long name of a model with settings"] * 4, 3.33) == 1
    assert legend_columns([], 3.0) == 1


def test_the_command_lists_what_it_wrote(data: Dataset, runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["figures", "world", "--only", "results", "map", "--folder", str(paths.home() / "paper")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "results-world.pdf" in lines[0]
    assert "map-world.pdf" in lines[1]
    assert "results-world.tex" in lines[2]
    assert main(["figures", "world", "--only", "nope"]) == 1
