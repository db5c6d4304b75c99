"""One run: build the model, train it, choose on validation, open the test split once, write the run folder.

The run folder holds everything that one trained model leaves behind; it is written at once.
"""

import html
import logging
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from spike_kit.base import distributed, paths, storage
from spike_kit.base.config import Config, TrainingConfig
from spike_kit.base.devices import describe_device, free_memory, peak_bytes, reset_peak
from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.data.vectors import LEFT_OUT
from spike_kit.evaluation.beyond import listed_items
from spike_kit.evaluation.groups import by_train_interactions
from spike_kit.evaluation.ranking import (
    CUTOFFS,
    HEADLINE,
    RankingTask,
    evaluate,
    ranking_tasks,
    recommendations,
)
from spike_kit.experiments.ablation import effective
from spike_kit.experiments.remarks import remarks
from spike_kit.experiments.tuned import TUNED, find_tuned
from spike_kit.experiments.versions import declared_for, versions
from spike_kit.models import MODELS, find_model, find_preset
from spike_kit.models.base import ModelConfig, Preset, Recommender, TrainedConfig, TrainedRecommender
from spike_kit.models.footprint import Footprint, footprint, gib, leaner_settings
from spike_kit.profiles.encode import DEFAULT_ENCODER, check_fresh
from spike_kit.profiles.imported import possibly_leaky
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.loop import History, fit

logger = logging.getLogger(__name__)


CONFIG, ENVIRONMENT, METRICS = "config.json", "environment.json", "metrics.json"
HISTORY, PER_USER, MODEL = "history.parquet", "per_user.parquet", "model.safetensors"
STATE = "state"
"""Folder in which a run that is not finished keeps what it needs to go on; the finished run takes its place."""


class What(Config):
    """What is trained."""

    model: str = "spike"
    """Model; options that depend on it follow it, so give it first."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting that gives the defaults of the options below."""
    seed: int = 0
    """Seed of initialisation, batches, negatives, draws, and of what a search tries."""
    profiles: str = TEMPLATE
    """Profile set whose vectors a text model uses."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder of these vectors."""


class RunConfig(What):
    """What is run: a model with its settings on a data set, with one seed."""

    settings: dict[str, Any] = Field(default_factory=dict)
    """Model settings that differ from the preset."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings that differ from the preset."""

    def command(self) -> str:
        """Command line that trains with this configuration.

        Raises
        ------
        ConfigError
            If a setting is neither a number nor a text.
        """
        words = ["spike-kit", "train", "--model", self.model]
        chosen = self.model_dump(exclude={"model", "settings", "training"}, exclude_defaults=True)
        for name, value in {**chosen, **self.settings, **self.training}.items():
            option = name.replace("_", "-")
            if not isinstance(value, bool | int | float | str):
                raise ConfigError(f"setting {name} = {value!r} is no option of a command line", "give it in Python")
            words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        return shlex.join(words)

    def base(self) -> Preset:
        """Settings before the changes: those of the preset, or those that a search chose, for which ``tuned`` stands.

        Raises
        ------
        ConfigError
            If a name is unknown, or nothing was tuned for the data set.
        """
        if self.preset != TUNED:
            return find_preset(self.model, self.preset)
        found = find_tuned(self.dataset, self.model)
        if found is None:
            raise ConfigError(
                f"model {self.model} has no tuned settings for data set {self.dataset}",
                f"search for them: spike-kit search --model {self.model} --dataset {self.dataset} --save",
            )
        usual = find_preset(self.model, found.preset)
        return Preset(usual.model.replace(**found.settings), usual.training.replace(**found.training))

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """Copy with settings changed, those of the model and those of its training in one mapping.

        Raises
        ------
        ConfigError
            If neither has a setting of a name.
        """
        known = {**type(find_preset(self.model).model).model_fields, **TrainingConfig.model_fields}
        if unknown := [repr(name) for name in changes if name not in known]:
            raise ConfigError(
                f"neither model {self.model} nor its training has a setting named {some(unknown)}",
                f"known: {', '.join(known)}",
            )
        training = {name: value for name, value in changes.items() if name in TrainingConfig.model_fields}
        settings = {name: value for name, value in changes.items() if name not in training}
        return self.replace(settings=self.settings | settings, training=self.training | training)

    def resolved(self) -> tuple[ModelConfig, TrainingConfig]:
        """Settings of the model and of its training, preset and changes combined.

        Raises
        ------
        ConfigError
            If a name or a setting is unknown.
        """
        preset = self.base()
        return preset.model.replace(**self.settings), preset.training.replace(**self.training)

    def changes(self) -> dict[str, Any]:
        """Settings of the model and of its training whose values are not those of the preset."""
        preset = self.base()
        pairs = zip((preset.model, preset.training), self.resolved(), strict=True)
        return {name: value for usual, one in pairs for name, value in one if value != getattr(usual, name)}

    def used(self) -> Self:
        """Copy without changes that have no effect: they name no other run. A model without training has no epochs."""
        settings, training = self.resolved()
        plain = self.replace(settings=dict(effective(settings, self.base().model)), training=dict(training))
        changes = plain.changes() if isinstance(settings, TrainedConfig) else plain.replace(training={}).changes()
        return self.replace(settings={}, training={}).changed(changes)


@dataclass(frozen=True)
class Run:
    """A finished run folder."""

    path: Path

    @cached_property
    def config(self) -> dict[str, Any]:
        """What was run: model, data set, settings, seed, and the hashes of everything that went in."""
        return storage.read_json(self.path / CONFIG)

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, device, number of processes, commit, and where an interrupted training went on (``resumed``)."""
        return storage.read_json(self.path / ENVIRONMENT)

    @property
    def device(self) -> str:
        """Model of the device it was trained on: ``NVIDIA H200``, ``cpu``; empty where the folder does not say."""
        kind, _, model = self.environment.get("device", "").partition(" (")
        return model.removesuffix(")") if kind.startswith("cuda") else kind

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """``valid`` and ``test`` metrics, ``best_epoch``, ``epochs``, ``seconds``, ``peak_gib``, users not ranked.

        Newer runs also have ``steps`` of the optimiser and ``listed`` (`spike_kit.evaluation.beyond.listed_items`).

        Where the task of the data set is new items, also ``valid_new``, ``valid_new_all`` and the same for test, if
        the model scores new items (`spike_kit.evaluation.ranking.ranking_tasks`). Where it is not that of known items,
        ``item_groups`` (`spike_kit.evaluation.groups.by_train_interactions`).

        ``peak_gib`` is the largest memory while training: of the whole process, or of tensors on a CUDA device.
        """
        return storage.read_json(self.path / METRICS)

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row per epoch (see `spike_kit.training.loop.History`); empty for a model without training."""
        return storage.read_parquet(self.path / HISTORY)

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Metrics of every ranked user: split, user, and one column per metric."""
        return storage.read_parquet(self.path / PER_USER)

    @property
    def valid(self) -> dict[str, float]:
        """Metrics on validation, by names such as ``ndcg@20``."""
        return self.metrics["valid"]

    @property
    def test(self) -> dict[str, float]:
        """Metrics on test."""
        return self.metrics["test"]

    @cached_property
    def data(self) -> Dataset:
        """The data set it was trained on, as it is built now."""
        return Dataset.open(self.config["dataset"])

    @cached_property
    def model(self) -> Recommender:
        """The trained model, on the CPU.

        Raises
        ------
        DataError
            If its weights are not kept here, or the data set was rebuilt since.
        """
        return load_model(self, self.data)

    def recommend(self, user: int, n: int = 10) -> pd.DataFrame:
        """Best n items for a user, without those of train and validation, by name; and which of them test holds."""
        return recommendations(self.data, self.model, user, n)

    def score_new(self, texts: Mapping[str, str], triples: Sequence[tuple[Any, ...]] = ()) -> pd.DataFrame:
        """Rank users for an item that came after the training, see `spike_kit.experiments.unseen.score_new`."""
        from spike_kit.experiments.unseen import score_new

        return score_new(self, texts, triples)

    def summary(self) -> str:
        """Folder, metrics, who could not be ranked, the device, and what speaks against the run, in a few lines."""
        lines, ranked = [paths.shown(self.path)], self.metrics["users_ranked"]
        width = max(map(len, ranked))
        for split, n_users in ranked.items():
            shown = "  ".join(f"{name} {self.metrics[split][name]:.4f}" for name in HEADLINE)
            lines.append(f"{split:{width}}  {shown}  ({n_users} users)")
        if without := self.metrics["users_without_train"]:
            lines.append(f"not ranked, because they have no train interaction: {without} users")
        if device := self.environment.get("device"):
            lines.append(f"trained on {device}")
        lines += [f"note: {remark}" for remark in remarks(self).values()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(self.summary())}</pre>"

    def tensors(self) -> dict[str, torch.Tensor]:
        """Stored tensors of the model.

        Raises
        ------
        DataError
            If the file is missing (an archive keeps no weights) or is not safetensors.
        """
        file = self.path / MODEL
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise DataError(f"the weights of {self.path.name} cannot be read: {error}", "train it again") from error


def run(config: RunConfig, device: torch.device | str = "cpu", progress: bool = True) -> Run:
    """Return the finished run of a configuration, training it only if it does not exist yet.

    A training that was interrupted goes on from its last state (docs/training.md). In a group of processes all of them
    call this; the first one alone writes.

    Raises
    ------
    ConfigError, DataError
        If a setting or the data is not as it must be, or another process trains this run.
    TrainingError
        If a loss term becomes NaN. Whatever stops a run, no run folder is left half-written.
    TrainingStoppedError
        After SIGTERM, once the state is written.
    """
    data, device = Dataset.open(config.dataset), torch.device(device)
    given, config = config.changes(), config.used()
    if given != (counted := config.changes()):
        shown = [some((f"{name}={value}" for name, value in one.items()), limit=20) for one in (given, counted)]
        logger.info("model %s with %s is the same as with %s", config.model, shown[0], shown[1] or "its preset")
    described = describe(config, data)
    path = run_path(described)
    with ExitStack() as stack:

        def is_done() -> bool:
            """Whether the run is there; if it is not, nobody else trains it from now on."""
            if find_run(described) is None:
                stack.enter_context(claimed(path))
            return find_run(described) is not None

        if distributed.on_first(is_done):
            logger.info("%s is done already", path.name)
            return find_run(described) or Run(path)
        if leaky := ", ".join(described.get("possibly_leaky", ())):
            warning = "profiles of %s may describe held-out interactions (%s): report no gain from them"
            logger.warning(warning, config.profiles, leaky)
        tasks = tasks_of(data, find_model(config.model), ("valid", "test"), device)
        for task in tasks.values():
            task.check()
        started = time.perf_counter()
        reset_peak(device)
        model, history = train(config, data, device, progress, state=path / STATE)
        seconds = history.earlier_seconds + time.perf_counter() - started
        peak = peak_bytes(device) / 2**30

        def write() -> None:
            """Evaluate, and put the run folder in the place of the training's state, all or nothing."""
            fixed = model.fixed()
            evaluated = {split: evaluate(fixed, task, CUTOFFS) for split, task in tasks.items()}
            metrics = {split: means for split, (means, _) in evaluated.items()} | {
                "best_epoch": history.best_epoch,
                "epochs": len(history.rows),
                "steps": history.steps,
                "listed": listed_items(fixed, tasks["valid"]),
                "seconds": seconds,
                "peak_gib": peak,
                "users_ranked": {split: task.users.numel() for split, task in tasks.items()},
                "users_without_train": tasks["test"].n_without_train,
            }
            if data.task != "known":
                metrics["item_groups"] = {
                    split: by_train_interactions(data, fixed, split) for split in ("valid", "test")
                }
            around = environment(device) | {"resumed": history.resumed}
            tensors = {name: tensor.cpu().contiguous() for name, tensor in model.tensors().items()}
            per_user = pd.concat({split: table for split, (_, table) in evaluated.items()}, names=["split"])
            with storage.atomic_folder(path, last=METRICS) as folder:
                storage.write_json(folder / CONFIG, described)
                storage.write_json(folder / ENVIRONMENT, around)
                history.frame().to_parquet(folder / HISTORY, index=False)
                per_user.reset_index("split").to_parquet(folder / PER_USER, index=False)
                save_file(tensors, folder / MODEL)
                storage.write_json(folder / METRICS, metrics)

        distributed.on_first(write)
    return Run(path)


def train(
    config: RunConfig,
    data: Dataset,
    device: torch.device | str = "cpu",
    progress: bool = True,
    state: Path | None = None,
) -> tuple[Recommender, History]:
    """Build and train the model of a configuration; looks at train and validation only.

    ``state`` is passed on to `spike_kit.training.loop.fit`; without it nothing is written.
    """
    graph = Graph.from_tables(data.tables).to(device)
    model = build_model(config, data, graph, to_train=True)
    if not isinstance(model, TrainedRecommender):
        for tensor in model.tensors().values():  # what it computes once, which is its training; a GPU is waited for
            tensor.sum().item()
        return model, History()
    training = config.resolved()[1]
    validation, names = validation_task(data, type(model), training, device), data.users["source_id"].tolist()
    return model, fit(model, graph, validation, training, config.seed, progress, state=state, names=names)


def tasks_of(
    data: Dataset, model: type[Recommender], splits: Sequence[str], device: torch.device | str
) -> dict[str, RankingTask]:
    """Ranking tasks of some splits by name; those of new items only for a model that scores new items."""
    every = {name: task for split in splits for name, task in ranking_tasks(data, split, device).items()}
    return {name: task for name, task in every.items() if model.scores_new or name in splits}


def validation_task(
    data: Dataset, model: type[Recommender], training: TrainingConfig, device: torch.device | str
) -> RankingTask:
    """Task that stops a training and chooses weights and trials, see `TrainingConfig.stop_on`.

    Raises
    ------
    ConfigError
        If the data set has no such task, or the model cannot score new items.
    """
    tasks = tasks_of(data, model, ("valid",), device)
    usual = "valid_new" if "valid_new" in tasks else "valid"
    name = usual if training.stop_on == "usual" else training.stop_on
    if name not in tasks:
        why = "its items have all been met" if model.scores_new else f"{model.title} scores no new items"
        raise ConfigError(f"{data.name} has no validation {name} to stop on: {why}", f"there is: {some(tasks)}")
    return tasks[name]


def build_model(config: RunConfig, data: Dataset, graph: Graph, to_train: bool = False) -> Recommender:
    """Build the untrained model of a configuration on the device of the graph.

    Raises
    ------
    ConfigError
        If the model is to be trained and does not fit into memory.
    """
    cls, (settings, training) = find_model(config.model), config.resolved()
    vectors = data.vectors(config.profiles, config.encoder) if _wants_text(cls, settings) else None
    if to_train and isinstance(settings, TrainedConfig):
        needed = check_memory(settings, graph, vectors.dim if vectors else 0, training.batch_size, graph.device)
        logger.info("training takes about %s of memory, beside what Python and torch take", needed)
    return cls(settings, graph, vectors, torch_generator(config.seed, "init"))


def check_memory(
    settings: TrainedConfig, graph: Graph, text_dim: int, batch_size: int, device: torch.device
) -> Footprint:
    """Estimate what a training takes, beside what is free for this process.

    Raises
    ------
    ConfigError
        If it does not fit; the hint names settings that do, where there are any.
    """
    needed = footprint(settings, graph, text_dim, batch_size)
    free = free_memory(device) // (distributed.place().local_size if device.type == "cpu" else 1)
    if needed.total > free:
        fitting = ((how, footprint(leaner, graph, text_dim, batch_size)) for how, leaner in leaner_settings(settings))
        proposals = [f"{how} (about {gib(lean.total)})" for how, lean in fitting if lean.total <= free]
        if text_dim > 64:
            proposals.append("vectors of fewer dimensions (spike-kit encode --encoder <encoder>@pca64)")
        raise ConfigError(
            f"this training takes about {needed} of memory, but only {gib(free)} are free on {device}",
            f"try {', or '.join(proposals)}" if proposals else "try a smaller --dim, or another machine",
        )
    return needed


def load_model(run: Run, data: Dataset | None = None, device: torch.device | str = "cpu") -> Recommender:
    """Bring the model of a finished run back, on any device.

    Raises
    ------
    DataError
        If the data set was rebuilt, or its profiles encoded anew, since the run was trained.
    """
    stored = run.config
    data = data or Dataset.open(stored["dataset"])
    if other := _trained_on_other(run, data):
        raise DataError(f"{run.path.name} was trained {other}", "train it again, or build and encode it as it was")
    known = {name: stored[name] for name in ("model", "dataset", "seed", "profiles", "encoder") if name in stored}
    config = RunConfig.parse({**known, "settings": stored["model_settings"]})
    model = build_model(config, data, Graph.from_tables(data.tables).to(device))
    model.load_tensors({name: tensor.to(device) for name, tensor in run.tensors().items()})
    return model


def _trained_on_other(run: Run, data: Dataset) -> str:
    """Which data or vectors that the data set does not hold now a run was trained on; empty if it holds them."""
    stored = run.config
    if stored["data_sha256"] != data_version(data):
        return f"on another build of data set {data.name}"
    profiles, encoder = stored.get("profiles", ""), stored.get("encoder", "")
    if profiles and stored["vectors_sha256"] != data.vectors_sha256(profiles, encoder):
        return f"with other vectors of {profiles} by {encoder} than {data.path} holds now"
    return ""


def finished_runs(data: Dataset) -> list[Run]:
    """Finished runs of a data set as it is now built and encoded, of the present versions, oldest first."""
    return [
        run
        for run in list_runs(data.name)
        if run.config["model"] in MODELS
        and versions(run.config) == declared_for(run.config, data)
        and not _trained_on_other(run, data)
    ]


def data_version(data: Dataset) -> str:
    """sha256 of the manifest: equal for equal sources and build settings."""
    return storage.sha256_text(storage.canonical_json(data.manifest.model_dump(mode="json")))


def describe(config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON values; `run_path` hashes it."""
    config = config.used()
    settings, training = config.resolved()
    described: dict[str, Any] = {
        "model": config.model,
        "dataset": data.name,
        "preset": config.preset,
        "seed": config.seed,
        **settings_of(settings, training),
        "data_sha256": data_version(data),
    }
    described["versions"] = declared_for(described, data)
    if unmet := len(data.items) - data.split("train")["item"].nunique():
        described["items_without_train"] = unmet
    if config.preset == TUNED:
        base = config.base()
        described["base"] = settings_of(base.model, base.training)
    if _wants_text(find_model(config.model), settings):
        described |= describe_text(data, config.profiles, config.encoder)
    return described


def settings_of(model: ModelConfig, training: TrainingConfig) -> dict[str, dict[str, Any]]:
    """Settings as JSON values, under the names that a run folder has for them."""
    return {"model_settings": model.model_dump(mode="json"), "training_settings": training.model_dump(mode="json")}


def describe_text(data: Dataset, profiles: str, encoder: str) -> dict[str, Any]:
    """What identifies the vectors of a profile set by an encoder, as part of `describe`.

    Raises
    ------
    DataError
        If there are none, or they are older than the profiles.
    """
    data.vectors(profiles, encoder)
    check_fresh(data, profiles, encoder)
    sha256 = data.vectors_sha256(profiles, encoder)
    described: dict[str, Any] = {"profiles": profiles, "encoder": encoder, "vectors_sha256": sha256}
    leaky = data.provenance(profiles).get("possibly_leaky") or possibly_leaky(encoder)
    facts = {"possibly_leaky": leaky, LEFT_OUT: data.left_out(profiles)}
    return described | {name: fact for name, fact in facts.items() if fact}


def _wants_text(cls: type[Recommender], settings: ModelConfig) -> bool:
    return cls.uses_text and getattr(settings, "uses_text", True)


def run_path(config: dict[str, Any]) -> Path:
    """Folder of a run: ``<model>-<dataset>-<hash>-s<seed>``; equal settings, data, vectors and versions, equal hash."""
    identity = storage.sha256_text(storage.canonical_json(config))[:12]
    return paths.runs_root() / f"{config['model']}-{config['dataset']}-{identity}-s{config['seed']}"


def find_run(config: dict[str, Any]) -> Run | None:
    """Return the finished run with exactly this configuration, if there is one."""
    path = run_path(config)
    if (path / METRICS).is_file():
        return Run(path)
    # Before versions were declared, a hash over the source files was part of the name.
    for file in sorted(paths.runs_root().glob(f"{config['model']}-{config['dataset']}-*-s{config['seed']}/{METRICS}")):
        old = dict(Run(file.parent).config)
        if old.pop("code_sha256", None) and old | {"versions": versions(old)} == config:
            return Run(file.parent)
    return None


def list_runs(dataset: str | None = None) -> list[Run]:
    """All finished runs, oldest first; of one data set if given. A run that is deleted meanwhile is left out."""
    found = {}
    for file in paths.runs_root().glob(f"{paths.VISIBLE}/{METRICS}"):
        run = Run(file.parent)
        try:
            if dataset is None or run.config["dataset"] == dataset:
                found[file.stat().st_mtime, file] = run
        except (DataError, FileNotFoundError):
            if file.exists():
                raise
    return [found[key] for key in sorted(found)]


@contextmanager
def claimed(path: Path) -> Iterator[None]:
    """Keep other processes from training the run at ``path`` meanwhile; released with the process, however it ends.

    The lock stands beside the folder and goes once the run is there, so whoever takes it must look for the run again.

    Raises
    ------
    DataError
        If another process holds it.
    """
    lock = path.with_name(f".{path.name}.lock")
    with storage.exclusive(lock, f"another process is training {path.name}"):
        try:
            yield
        finally:
            for folder in (path / STATE, path):
                with suppress(OSError):
                    folder.rmdir()
        with suppress(OSError):
            lock.unlink()


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device, threads, commit and date (UTC) of this process, and how many train together."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: metadata.version(name) for name in ("spike_kit", "torch", "numpy", "pandas", "pyarrow")},
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "world_size": distributed.size(),
        "commit": commit(),
        "date": storage.now()[:10],
    }


def commit() -> str | None:
    """Commit of the checkout this package runs from, ``+`` if the package differs from it; none outside a checkout."""
    package = Path(__file__).resolve().parents[1]
    if not (package.parent / ".git").exists():
        return None
    git = ["git", "--no-optional-locks", "-C", str(package)]
    try:
        head, differences = (
            subprocess.run([*git, *words], capture_output=True, text=True, timeout=20, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", "."))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{head}+" if differences else head
