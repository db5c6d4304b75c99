import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from spike_kit import api
from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, NotebookError
from spike_kit.base.notebooks import execute_notebook
from spike_kit.data.build import open_or_build
from spike_kit.data.dataset import Dataset
from spike_kit.experiments import archive
from spike_kit.experiments.run import RunConfig, run


def notebook(folder: Path, *cells: str) -> Path:
    source = folder / "01_test.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells]), source)
    return source


def test_a_notebook_is_executed_on_the_data_set_once(tmp_path: Path) -> None:
    target = tmp_path / "out.ipynb"
    source = notebook(tmp_path, "import os, time", "print(os.environ['SPIKE_KIT_DATASET'])")
    execute_notebook(source, target, "world", "1")
    assert nbformat.read(target, as_version=4).cells[1].outputs[0].text == "world\n"
    stamp = target.stat().st_mtime_ns
    execute_notebook(source, target, "world", "1")
    assert target.stat().st_mtime_ns == stamp
    execute_notebook(source, target, "other", "2")
    assert nbformat.read(target, as_version=4).cells[1].outputs[0].text == "other\n"


def test_a_failing_cell_is_an_error_and_the_copy_so_far_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out.ipynb"
    with pytest.raises(NotebookError, match=r"01_test.ipynb failed: ZeroDivisionError"):
        execute_notebook(notebook(tmp_path, "1 / 0"), target, "world", "1")
    assert not target.exists()
    assert target.with_suffix(".failed.ipynb").is_file()


def test_a_second_demo_trains_nothing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "DEMO_MODELS", ("popularity", "bprmf"))
    first = api.demo("world", seeds=2, epochs=2, notebooks=False, device="cpu")
    runs = sorted(paths.runs_root().iterdir())
    assert len(runs) == 3 + 4
    monkeypatch.setattr("spike_kit.experiments.run.train", lambda *_: pytest.fail("trained twice"))
    second = api.demo("world", seeds=2, epochs=2, notebooks=False, device="cpu")
    for text in (first, second):
        words = ("| Popularity", "recall@10", "make lab", "results-world.pdf", *(run.name for run in runs))
        assert [word for word in words if word not in text] == []
    assert sorted(paths.runs_root().iterdir()) == runs


def test_figures_show_what_the_archive_keeps(
    data: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: Path
) -> None:
    monkeypatch.setattr(archive, "ROOT", tmp_path / "study")
    monkeypatch.setattr(api, "DEMO_MODELS", ("popularity",))
    kept = run(RunConfig(model="itemknn", dataset="world"), progress=False)
    archive.write_archive([kept], data)
    shutil.rmtree(kept.path)
    text = api.demo("world", epochs=1, notebooks=False, device="cpu")
    assert "Item-kNN" not in text
    models = pd.read_csv(home / "figures" / "results-world.csv")["model"]
    assert set(models) == {"Popularity", "Item-kNN", "SPiKE epochs=1"}


def test_an_existing_data_set_is_never_rebuilt_and_an_unknown_one_is_an_error(
    data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_or_build("world", "ml-100k", max_users=3).manifest == data.manifest
    assert "exists with other build settings and is kept as it is" in caplog.text
    with pytest.raises(ConfigError, match=r"(?s)no source or data set named 'mine'.*known: ml-100k"):
        open_or_build("mine")
