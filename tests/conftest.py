"""Fixtures shared by all tests: a home of their own, devices, the tiny world."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from spike_kit.base import devices, paths
from spike_kit.data.dataset import Dataset
from spike_kit.data.workspace import Workspace, workspace
from spike_kit.experiments.run import Run, RunConfig, run
from spike_kit.profiles.encode import DEFAULT_ENCODER, vectors_metadata
from spike_kit.profiles.template import TEMPLATE, template_profiles
from tests.world import World, make_world, new_items_world, write_world

# How long an example takes says nothing: machines are busy.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own data/ and figures/."""
    monkeypatch.setenv(paths.HOME_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device of this machine."""
    return torch.device(request.param)


@pytest.fixture
def resized(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set how much passes at once on every device: fields of `spike_kit.base.devices.Chunks` by name."""

    def resize(**sizes: int) -> None:
        for kind, usual in devices.CHUNKS.items():
            monkeypatch.setitem(devices.CHUNKS, kind, usual._replace(**sizes))

    return resize


@pytest.fixture
def work(home: Path) -> Iterator[Workspace]:
    """An empty workspace that stops at bad rows."""
    with workspace() as opened:
        yield opened


@pytest.fixture(scope="session")
def world() -> World:
    return make_world()


@pytest.fixture(scope="session")
def built_world(tmp_path_factory: pytest.TempPathFactory, world: World) -> Path:
    """Folder of the tiny world with profiles and vectors, made once; tests work on copies."""
    written = write_world(tmp_path_factory.mktemp("built") / "world")
    written.write_profiles(TEMPLATE, template_profiles(written))
    metadata = vectors_metadata(written.profiles(), DEFAULT_ENCODER)
    world.vectors.save(written.embeddings_path(TEMPLATE, DEFAULT_ENCODER), metadata)
    return written.path


@pytest.fixture
def data(home: Path, built_world: Path) -> Dataset:
    """The tiny world as a data-set folder with profiles and vectors, found under the name ``world``."""
    shutil.copytree(built_world, paths.data_root() / "world")
    return Dataset.open("world")


@pytest.fixture(scope="session")
def new_world(world: World) -> World:
    """The tiny world as a task of new items."""
    return new_items_world(world)


@pytest.fixture
def new_data(home: Path, new_world: World) -> Dataset:
    """`new_world` as a data-set folder with profiles and vectors, found under the name ``new``."""
    written = write_world(home / "data" / "new", tables=new_world.tables, task="new-items")
    written.write_profiles(TEMPLATE, template_profiles(written))
    metadata = vectors_metadata(written.profiles(), DEFAULT_ENCODER)
    new_world.vectors.save(written.embeddings_path(TEMPLATE, DEFAULT_ENCODER), metadata)
    return written


@contextmanager
def at_home(home: Path) -> Iterator[Path]:
    """Work in a home of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(paths.HOME_VARIABLE, str(home))
        yield home


def until(happened: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.02)


SHORT = {"epochs": 2, "eval_every": 1}

RUNS: dict[str, list[dict[str, Any]]] = {
    "popularity": [{"model": "popularity"}],
    "lightgcn": [{"model": "lightgcn", "training": {"epochs": 12}, "seed": seed} for seed in (0, 1)],
    "bprmf": [{"model": "bprmf", "training": SHORT, "seed": seed} for seed in (0, 1)],
    "spike": [{"training": SHORT, "seed": seed} for seed in (0, 1)],
    "without matching": [{"training": SHORT, "seed": seed, "settings": {"matching": "off"}} for seed in (0, 1)],
    "low rho": [{"training": SHORT, "settings": {"rho": 0.25}}],
    "high rho": [{"training": SHORT, "settings": {"rho": 1.0}}],
}
"""Runs of the tiny world that tests of results share: settings of each, by what they are called there."""


@pytest.fixture(scope="session")
def finished_home(built_world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A home in which `RUNS` are finished, and the names of their folders."""
    with at_home(tmp_path_factory.mktemp("finished")) as home:
        shutil.copytree(built_world, paths.data_root() / "world")
        done = {
            name: [run(RunConfig(dataset="world", **one), progress=False).path.name for one in group]
            for name, group in RUNS.items()
        }
        return home, done


def several(runs: dict[str, list[Run]]) -> list[Run]:
    """All of `runs` in a row."""
    return [one for group in runs.values() for one in group]


@pytest.fixture
def runs(data: Dataset, home: Path, finished_home: tuple[Path, dict[str, list[str]]]) -> dict[str, list[Run]]:
    """Finished runs of the tiny world, `RUNS`."""
    origin, names = finished_home
    shutil.copytree(origin / "data", home / "data", dirs_exist_ok=True)
    return {name: [Run(paths.runs_root() / folder) for folder in group] for name, group in names.items()}
