"""One run: build the model, train it, choose on validation, open the test split once, write the run folder."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from safetensors.torch import save_file

from spike_kit.base import distributed, storage
from spike_kit.base.config import Config, TrainingConfig
from spike_kit.base.devices import free_memory, peak_bytes, reset_peak
from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.base.seeds import torch_generator
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import GRAPH_VERSION, Graph
from spike_kit.evaluation.ranking import CUTOFFS, PROTOCOL_VERSION, RankingTask, evaluate
from spike_kit.experiments import run_folder
from spike_kit.experiments.run_folder import Run, find_run, run_path
from spike_kit.experiments.tuned import TUNED, read_tuned
from spike_kit.models import MODELS, find_model, find_preset
from spike_kit.models.base import ModelConfig, Preset, Recommender, TrainedConfig, TrainedRecommender
from spike_kit.models.footprint import Footprint, footprint, gib, leaner_settings
from spike_kit.profiles.encode import DEFAULT_ENCODER, check_fresh
from spike_kit.profiles.imported import possibly_leaky
from spike_kit.profiles.template import TEMPLATE
from spike_kit.training.checkpoint import EpochRow
from spike_kit.training.loop import TRAINING_VERSION, History, fit

logger = logging.getLogger(__name__)


class RunConfig(Config):
    """What is run: a model with its settings on a data set, with one seed."""

    model: str = "spike"
    """Name of the model, a key of `spike_kit.models.MODELS`."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting the run starts from."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Model settings that differ from the preset."""
    training: dict[str, Any] = Field(default_factory=dict)
    """Training settings that differ from the preset."""
    seed: int = 0
    """Seed of initialisation, batches, negatives and draws."""
    profiles: str = TEMPLATE
    """Profile set whose vectors a text model uses."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder of these vectors."""

    def command(self) -> str:
        """Command line that trains with this configuration."""
        words = ["spike-kit", "train", "--model", self.model]
        chosen = self.model_dump(exclude={"model", "settings", "training"}, exclude_defaults=True)
        for name, value in {**chosen, **self.settings, **self.training}.items():
            option = name.replace("_", "-")
            words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
        return shlex.join(words)

    def base(self) -> Preset:
        """Settings before the changes: those of the preset, or of the files that ``tuned`` stands for.

        Raises
        ------
        ConfigError
            If a name is unknown, or nothing was tuned for the data set.
        """
        if self.preset != TUNED:
            return find_preset(self.model, self.preset)
        found = read_tuned(Path(self.dataset).name, self.model)
        usual = find_preset(self.model, found.preset)
        return Preset(usual.model.replace(**found.settings), usual.training.replace(**found.training))

    def changed(self, changes: Mapping[str, Any]) -> RunConfig:
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
                f"known: {some(known, limit=40)}",
            )
        parts = {"settings": dict(self.settings), "training": dict(self.training)}
        for name, value in changes.items():
            parts["training" if name in TrainingConfig.model_fields else "settings"][name] = value
        return self.replace(**parts)

    def resolved(self) -> tuple[ModelConfig, TrainingConfig]:
        """Settings of the model and of its training, preset and changes combined.

        Raises
        ------
        ConfigError
            If a name or a setting is unknown.
        """
        preset = self.base()
        return preset.model.replace(**self.settings), preset.training.replace(**self.training)


def run(
    config: RunConfig,
    device: torch.device | str = "cpu",
    progress: bool = True,
    report: Callable[[EpochRow], None] | None = None,
) -> Run:
    """Return the finished run of a configuration, training it only if it does not exist yet.

    A training that was interrupted goes on from its last state (docs/training.md); ``report`` is told of every epoch.
    In a group of processes all of them call this; the first one alone writes.

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
    described = describe(config, data)
    path = run_path(described)
    with ExitStack() as stack:

        def is_done() -> bool:
            """Whether the run is there; if it is not, nobody else trains it from now on."""
            if find_run(described) is None:
                stack.enter_context(run_folder.claimed(path))
            return find_run(described) is not None

        if distributed.on_first(is_done):
            logger.info("%s is done already", path.name)
            return find_run(described) or Run(path)
        if leaky := ", ".join(described.get("possibly_leaky", ())):
            warning = "profiles of %s may describe held-out interactions (%s): report no gain from them"
            logger.warning(warning, config.profiles, leaky)
        tasks = {split: RankingTask.from_tables(data.tables, split, device) for split in ("valid", "test")}
        for task in tasks.values():
            task.check()
        started = time.perf_counter()
        reset_peak(device)
        model, history = train(config, data, device, progress, report, state=path / run_folder.STATE)
        seconds = history.earlier_seconds + time.perf_counter() - started
        peak = peak_bytes(device) / 2**30

        def write() -> None:
            """Evaluate, and put the run folder in the place of the training's state, all or nothing."""
            evaluated = {split: evaluate(model, task, CUTOFFS) for split, task in tasks.items()}
            metrics = {split: means for split, (means, _) in evaluated.items()} | {
                "best_epoch": history.best_epoch,
                "epochs": len(history.rows),
                "seconds": seconds,
                "peak_gib": peak,
                "users_ranked": {split: task.users.numel() for split, task in tasks.items()},
                "users_without_train": tasks["test"].n_without_train,
            }
            environment = run_folder.environment(device) | {"resumed": history.resumed}
            tensors = {name: tensor.cpu().contiguous() for name, tensor in model.tensors().items()}
            per_user = pd.concat({split: table for split, (_, table) in evaluated.items()}, names=["split"])
            with storage.atomic_folder(path, last=run_folder.METRICS) as folder:
                storage.write_json(folder / run_folder.CONFIG, described)
                storage.write_json(folder / run_folder.ENVIRONMENT, environment)
                history.frame().to_parquet(folder / run_folder.HISTORY, index=False)
                per_user.reset_index("split").to_parquet(folder / run_folder.PER_USER, index=False)
                save_file(tensors, folder / run_folder.MODEL)
                storage.write_json(folder / run_folder.METRICS, metrics)

        distributed.on_first(write)
    return Run(path)


def train(
    config: RunConfig,
    data: Dataset,
    device: torch.device | str = "cpu",
    progress: bool = True,
    report: Callable[[EpochRow], None] | None = None,
    *,
    state: Path | None = None,
) -> tuple[Recommender, History]:
    """Build and train the model of a configuration; looks at train and validation only.

    ``report`` and ``state`` are passed on to `spike_kit.training.loop.fit`; without ``state`` nothing is written.
    """
    graph = Graph.from_tables(data.tables).to(device)
    model = build_model(config, data, graph, to_train=True)
    if not isinstance(model, TrainedRecommender):
        return model, History()
    training, validation = config.resolved()[1], RankingTask.from_tables(data.tables, "valid", device)
    return model, fit(model, graph, validation, training, config.seed, progress, report, state=state)


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
        batch_size = min(training.batch_size, graph.n_interactions)
        needed = check_memory(settings, graph, vectors.dim if vectors else 0, batch_size, graph.device)
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
    if stored["data_sha256"] != data_version(data):
        raise DataError(
            f"{run.path.name} was trained on another build of data set {data.name}",
            "train it again, or build the data set as it was",
        )
    if not _same_vectors(run, data):
        raise DataError(
            f"{run.path.name} was trained with other vectors of {stored['profiles']} by {stored['encoder']} than "
            f"{data.path} holds now",
            "train it again, or encode the profiles it was trained with",
        )
    known = {name: stored[name] for name in ("model", "dataset", "seed", "profiles", "encoder") if name in stored}
    config = RunConfig.parse({**known, "settings": stored["model_settings"]})
    model = build_model(config, data, Graph.from_tables(data.tables).to(device))
    model.load_tensors({name: tensor.to(device) for name, tensor in run.tensors().items()})
    return model


def finished_runs(data: Dataset) -> list[Run]:
    """Finished runs of a data set as it is now built and encoded, of the present versions, oldest first."""
    version = data_version(data)
    return [
        run
        for run in run_folder.list_runs(data.name)
        if run.config["data_sha256"] == version
        and run.config["model"] in MODELS
        and run_folder.versions(run.config) == declared_versions(run.config["model"])
        and _same_vectors(run, data)
    ]


def _same_vectors(run: Run, data: Dataset) -> bool:
    """Whether the vectors a run was trained with are those the data set holds now (true for a run without text)."""
    stored = run.config
    if "vectors_sha256" not in stored:
        return True
    return data.vectors_sha256(stored["profiles"], stored["encoder"]) == stored["vectors_sha256"]


def declared_versions(model: str) -> dict[str, int]:
    """Versions of everything that decides the numbers of a model's run (`run_folder.VERSIONS`)."""
    return {
        "model": find_model(model).version,
        "graph": GRAPH_VERSION,
        "training": TRAINING_VERSION,
        "protocol": PROTOCOL_VERSION,
    }


def data_version(data: Dataset) -> str:
    """sha256 of the manifest: equal for equal sources and build settings."""
    return storage.sha256_text(storage.canonical_json(data.manifest.model_dump(mode="json")))


def describe(config: RunConfig, data: Dataset) -> dict[str, Any]:
    """Everything that decides the result of a run, as JSON values; `run_folder.run_path` hashes it."""
    settings, training = config.resolved()
    described: dict[str, Any] = {
        "model": config.model,
        "dataset": data.name,
        "preset": config.preset,
        "seed": config.seed,
        **settings_of(settings, training),
        "data_sha256": data_version(data),
        "versions": declared_versions(config.model),
    }
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
    return described | ({"possibly_leaky": leaky} if leaky else {})


def _wants_text(cls: type[Recommender], settings: ModelConfig) -> bool:
    return cls.uses_text and getattr(settings, "uses_text", True)
