"""The front door: the verbs of ``import spike_kit as sk``. Each takes a data set or runs, and returns what it made."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, overload

import pandas as pd
import torch
from tqdm.auto import tqdm

from spike_kit import __version__
from spike_kit.base import paths
from spike_kit.base.config import TrainingConfig
from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.notebooks import NOTEBOOKS, execute_notebook
from spike_kit.data import build as builder
from spike_kit.data.dataset import Dataset, parts_of
from spike_kit.data.sources import find_recipe
from spike_kit.data.splits import Task
from spike_kit.data.vectors import ProfileVectors
from spike_kit.evaluation import Block, ranking
from spike_kit.evaluation.signal import signal_table
from spike_kit.experiments import run as experiment
from spike_kit.experiments import search as searching
from spike_kit.experiments.archive import known_runs
from spike_kit.experiments.run import Run
from spike_kit.experiments.tuned import TUNED, find_tuned
from spike_kit.figures import gallery
from spike_kit.models import find_model, find_preset
from spike_kit.models.base import TrainedRecommender
from spike_kit.profiles.encode import DEFAULT_ENCODER, ensure_vectors
from spike_kit.profiles.generate import Estimate, Generation, GenerationConfig
from spike_kit.profiles.imported import add_shipped, ensure_written
from spike_kit.profiles.judge import Judge, JudgeConfig
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.prompts import Prompt, PromptConfig, PromptWriter, prompt_texts
from spike_kit.profiles.quality import quality_table
from spike_kit.profiles.shipped import shipped_sets, usual_profiles
from spike_kit.profiles.template import TEMPLATE, WORD_LIMIT
from spike_kit.results.comparison import comparison_table
from spike_kit.results.frames import results_table
from spike_kit.results.tables import as_markdown, run_label
from spike_kit.views.ablation_study import AblationStudy

logger = logging.getLogger(__name__)

DEMO_MODELS = ("popularity", "bprmf", "lightgcn")
"""Models of the demo's results table; SPiKE follows without text, with templates, and with the usual profiles."""


class Runs(list[Run]):
    """Finished runs; in a notebook they show themselves as a table of their results on test, means over seeds."""

    def _repr_html_(self) -> str:
        return table(self).to_html(index=False, float_format="{:.4f}".format) if self else "no runs"


def load(dataset: str | Path = "ml-100k", *, task: Task = "known", **settings: Any) -> Dataset:
    """Open a data set by its name or path; one that is not there is fetched and built first, if its source can be.

    Parameters
    ----------
    dataset
        Name under data/, path of a data-set folder, or name of a reader or data set (`spike_kit.data.sources.RECIPES`).
    task
        ``new-items`` or ``few-interactions`` open ``<name>-<task>`` instead, built from the same raw files with the
        settings of ``dataset`` where it is not there (docs/datasets.md).
    settings
        Settings of the build that differ from the usual ones, where it is built now.

    Raises
    ------
    DataError
        If it is neither there nor can be built from what is there.
    """
    data = builder.open_or_build(str(dataset), **({} if task != "known" else settings))
    if task not in ("known", data.task):
        data = builder.for_task(data, task, **settings)
    for name in shipped_sets(data).keys() - set(data.profile_sets()):
        try:
            add_shipped(data, name)
        except DataError as error:
            logger.warning("profile set %s is left out of %s: %s", name, data.name, error)
    return data


def build(
    reader: str, raw: str | Path | None = None, *, name: str = "", overwrite: bool = False, **settings: Any
) -> Dataset:
    """Build a data set from raw files.

    Parameters
    ----------
    reader
        Reader, or data set with a reader of its own: ``spike-kit build --help`` lists them with their settings.
    raw
        Folder of the raw files; default: data/raw/<reader>.
    name
        Name of the data set; default: that of the reader.
    overwrite
        Replace a data set even if that deletes profiles that were paid for.
    settings
        Settings of the build that differ from the usual ones.

    Raises
    ------
    ConfigError, DataError
        If a setting is unknown, or a file is missing or holds a bad row.
    """
    recipe = find_recipe(reader).settings.replace(**settings)
    return builder.build(reader, recipe, name=name, raw=None if raw is None else Path(raw), overwrite=overwrite)


dataset = builder.dataset_from_frames


def profile(data: Dataset, model: str = "", *, dry_run: bool = False, **options: Any) -> pd.DataFrame | Estimate:
    """Write a profile for every user, item and entity: from templates, or by a language model.

    Answers of a model are stored as they arrive, so the same call goes on after whatever ended it.

    Parameters
    ----------
    data
        Data set.
    model
        Language model; without one the profiles are template sentences, or those of ``profiles`` that the kit ships.
    dry_run
        Ask nothing; return the estimate of calls, tokens and cost.
    options
        ``profiles``, ``fill`` and settings, as in `generation`.

    Returns
    -------
    DataFrame or Estimate
        The profiles; or, with ``dry_run``, what they would cost.

    Raises
    ------
    LLMError
        If the model, its key or its server fail, or profiles are missing at the end; what was answered is kept.
    """
    if not model:
        ensure_written(data, name := options.get("profiles", TEMPLATE))
        return data.profiles(name)
    generated = generation(data, model, **options)
    estimate = generated.estimate()
    if dry_run:
        return estimate
    logger.info("%s calls, about %s tokens in and %s out", estimate.calls, *estimate.tokens)
    logger.info(generated.complete())
    return data.profiles(generated.profiles)


def generation(
    data: Dataset, model: str, *, profiles: str = "", fill: Literal["", "template"] = "", **settings: Any
) -> Generation:
    """Prepare profiles by a language model, to look at before asking: ``sk.views.generation`` shows it as a panel.

    Parameters
    ----------
    data, model
        Data set and language model.
    profiles
        Name of the profile set; default: that of the model.
    fill
        What stands in for profiles that the model did not write: nothing (then they are an error), or the template.
    settings
        Settings of `LLMConfig` (``base_url``, ``concurrency``, ...) and of `PromptConfig`.
    """
    llm = {name: settings.pop(name) for name in settings.keys() & LLMConfig.model_fields.keys()}
    config = LLMConfig.parse({"model": model, **llm})
    return Generation(data, GenerationConfig(llm=config, prompts=PromptConfig.parse(settings), fill=fill), profiles)


def prompt(data: Dataset, subject: Literal["item", "auxiliary", "user"], number: int, **settings: Any) -> Prompt:
    """Show the prompt that asks a language model for one profile; it sees train interactions only."""
    return PromptWriter(data, PromptConfig.parse(settings)).prompt(subject, number)


def encode(
    data: Dataset, encoder: str = DEFAULT_ENCODER, *, profiles: str = TEMPLATE, device: str = "auto"
) -> ProfileVectors:
    """Turn the profiles of a profile set into vectors; a text is never encoded twice."""
    ensure_written(data, profiles)
    return ensure_vectors(data, profiles, encoder, resolve_device(device))


def quality(
    data: Dataset, profiles: Sequence[str] = (TEMPLATE,), encoder: str = DEFAULT_ENCODER
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Measure profile sets without a language model.

    Returns
    -------
    tuple
        Faithfulness, length, diversity, near-duplicates and spread of each set, of a composed one of each part; and
        how well the vectors of each alone rank the validation items.
    """
    for name in profiles:
        if leaky := data.provenance(name).get("possibly_leaky"):
            shown = ", ".join(leaky)
            logger.warning("%s: profiles of %s may describe held-out interactions; report no gain", name, shown)
    vectors = {name: encode(data, encoder, profiles=name) for name in profiles}
    parts = list(dict.fromkeys(part for name in profiles for part in parts_of(name)))
    texts = {name: data.profiles(name) for name in parts}
    prompts = {name: prompt_texts(data, name) for name in parts}
    own = {name: data.vectors(name, encoder) for name in parts}
    return quality_table(texts, prompts, WORD_LIMIT, own), signal_table(data, vectors)


def judge(
    data: Dataset,
    profiles: Sequence[str],
    model: str,
    *,
    mode: Literal["single", "pairwise"] = "single",
    sample: int = 20,
    dry_run: bool = False,
    **settings: Any,
) -> pd.DataFrame | tuple[int, pd.DataFrame]:
    """Let a language model judge profiles: scores from 1 to 5, or which of two profile sets is better.

    Parameters
    ----------
    data, profiles
        Data set, and its profile sets to judge on the same subjects.
    model, settings
        Model that judges, and settings of `LLMConfig`.
    mode
        Scores of each profile, or pairs in both orders.
    sample
        Items, auxiliary entities and users drawn at random: so many of each.
    dry_run
        Ask nothing; return the number of calls and what they would cost.

    Returns
    -------
    DataFrame, or calls and costs
        Scores or preferences.
    """
    llm = LLMConfig.parse({"model": model, **settings})
    asked = Judge(data, profiles, JudgeConfig(llm=llm, mode=mode, sample=sample))
    if dry_run:
        return asked.estimate()
    return asked.table(asked.run())


@overload
def train(model: str, data: Dataset, *, seed: int = 0, **options: Any) -> Run: ...
@overload
def train(model: str, data: Dataset, *, seeds: int | Sequence[int], **options: Any) -> Runs: ...
@overload
def train(model: Sequence[str], data: Dataset, *, seeds: int | Sequence[int] = 1, **options: Any) -> Runs: ...


def train(
    model: str | Sequence[str],
    data: Dataset,
    *,
    seed: int = 0,
    seeds: int | Sequence[int] | None = None,
    preset: str = "recommended",
    profiles: str = TEMPLATE,
    encoder: str = DEFAULT_ENCODER,
    device: str | torch.device = "auto",
    progress: bool = True,
    **settings: Any,
) -> Run | Runs:
    """Find finished runs, or train them: weights are chosen on validation, the test split is opened once per run.

    Parameters
    ----------
    model
        A model, or several (`spike_kit.models.MODELS`).
    data
        Data set; template profiles and vectors that a model needs are made if they are missing.
    seed, seeds
        One seed; or how many, or which ones. A model without training is run once.
    preset
        Named setting the run starts from.
    profiles, encoder
        Profile set and text encoder of a model that uses text.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    progress
        Show a progress bar.
    settings
        Settings of the model or its training that differ from the preset, ``inject=False, epochs=60`` for example;
        those of training are left out where a model is not trained.

    Returns
    -------
    Run or Runs
        One run for one model and one seed; else all of them.

    Raises
    ------
    ConfigError, DataError
        If a name or a setting is unknown, or profiles or vectors are missing.
    """
    many = seeds is not None or not isinstance(model, str)
    numbers = [seed] if seeds is None else list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    place = resolve_device(device) if isinstance(device, str) else device
    found = Runs()
    for name in [model] if isinstance(model, str) else model:
        cls = find_model(name)
        if cls.uses_text:
            ensure_written(data, profiles)
            ensure_vectors(data, profiles, encoder, place)
        trained = issubclass(cls, TrainedRecommender)
        chosen = {key: value for key, value in settings.items() if trained or key not in TrainingConfig.model_fields}
        config = experiment.RunConfig(model=name, dataset=str(data.path), preset=preset).changed(chosen)
        config = config.replace(profiles=profiles, encoder=encoder)
        for number in numbers if trained else numbers[:1]:
            found.append(experiment.run(config.replace(seed=number), place, progress))
    return found if many else found[0]


def runs(data: Dataset) -> Runs:
    """All finished runs of a data set as it is built now; what was not run here is taken from the shipped archive."""
    return Runs(known_runs(data))


def settings(model: str, data: Dataset | None = None) -> pd.DataFrame:
    """Settings of a model and its training, a column per preset; with a data set also ``tuned``, where there is one."""
    found = {name: find_preset(model, name) for name in find_model(model).presets}
    if data is not None and find_tuned(data.name, model):
        found[TUNED] = experiment.RunConfig(model=model, dataset=str(data.path), preset=TUNED).base()
    return pd.DataFrame({name: dict(one.model) | dict(one.training) for name, one in found.items()})


def table(runs: Run | Sequence[Run], split: Block = "test", metrics: Sequence[str] = ranking.HEADLINE) -> pd.DataFrame:
    """Results of runs, means over seeds: model, seeds, a column per metric, and what speaks against them (``remarks``).

    Where the runs are of several devices, these stand in a column ``device``. NaN: the model scores no new item.
    """
    found = results_table([runs] if isinstance(runs, Run) else runs, split, metrics)
    return found[["model", "seeds", *metrics, *(["device"] if found["device"].any() else []), "remarks"]]


def evaluate(
    run: Run, split: Block = "test", cutoffs: Sequence[int] = ranking.CUTOFFS, device: str = "auto"
) -> dict[str, float]:
    """Rank all unseen items anew with the stored weights of a run; every metric at every cut-off."""
    data, place = run.data, resolve_device(device)
    task = ranking.ranking_task(data, split, place)
    return ranking.evaluate(experiment.load_model(run, data, place), task, cutoffs)[0]


def compare(
    runs: Sequence[Run],
    reference: str = "",
    *,
    metric: str = "ndcg@20",
    split: Block = "test",
    users: pd.Index | None = None,
) -> pd.DataFrame:
    """Compare every model with a reference by paired tests over users and over seeds.

    Parameters
    ----------
    runs
        Finished runs of one data set; those that differ in the seed only count as one model.
    reference
        Name of a model, ``"spike"`` for example, or a label as `table` shows it; default: the best on validation.
    metric, split
        What is compared.
    users
        Only these users; default: all.

    Returns
    -------
    DataFrame
        One row per model (`spike_kit.results.comparison.comparison_table`).
    """
    labels = dict.fromkeys(run_label(run) for run in runs if run.config["model"] == reference)
    if len(labels) > 1:
        raise ConfigError(f"{len(labels)} runs are of model {reference!r}", f"name one of: {', '.join(labels)}")
    return comparison_table(runs, metric, split, next(iter(labels), reference), users)


def ablate(data: Dataset, model: str = "spike", **options: Any) -> AblationStudy:
    """Ablations of SPiKE: every switch of it, trained on demand; ``.panel()`` shows toggles, ``.table`` the numbers.

    Raises
    ------
    ConfigError
        If another model is asked for; SPiKE alone has these switches.
    """
    if model != "spike":
        raise ConfigError(f"model {model!r} has no ablation panel", "only spike has switches to flip")
    return AblationStudy(data, **options)


def search(
    model: str, data: Dataset, trials: int = 30, *, preset: str = "recommended", device: str = "auto", **options: Any
) -> searching.SearchResult:
    """Search for settings of a model on validation alone (`spike_kit.experiments.search.search`)."""
    config = experiment.RunConfig(model=model, dataset=str(data.path), preset=preset)
    return searching.search(config, trials, device=resolve_device(device), **options)


def demo(
    name: str = "ml-100k",
    *,
    max_users: int | None = None,
    seeds: int = 1,
    epochs: int | None = None,
    notebooks: bool = True,
    device: str | torch.device = "auto",
) -> str:
    """Run the whole pipeline, as far as it is not done: data, profiles, vectors, four models, figures, notebooks.

    Parameters
    ----------
    name
        Name of the data set to build or reuse.
    max_users
        Build a small cut with this many users; default: everyone.
    seeds
        Seeds per model.
    epochs
        Cap on the epochs of every model; default: what the presets say.
    notebooks
        Execute the notebooks and keep the executed copies.
    device
        Device of encoder and training.

    Returns
    -------
    str
        Results table, paths of all artefacts, and how to go on.
    """
    started = time.perf_counter()
    data = builder.open_or_build(name, "ml-100k", max_users=max_users)
    data, cap = load(data.path), {} if epochs is None else {"epochs": epochs}
    how: dict[str, Any] = {"seeds": seeds, "device": device, **cap}
    finished = train(DEMO_MODELS, data, **how)
    finished += train("spike", data, **how, text=False)
    finished += train("spike", data, **how)
    if (usual := usual_profiles(data))["profiles"] != TEMPLATE:
        how |= usual
        finished += train("spike", data, **how)
    drawn = gallery.export(data)
    executed = []
    if notebooks:
        logging.getLogger("traitlets").setLevel(logging.WARNING)
        for source in tqdm(sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")), desc="notebooks", unit="notebook"):
            executed.append(paths.data_root() / "notebooks" / data.name / source.name)
            execute_notebook(source, executed[-1], name, experiment.data_version(data) + __version__)
    figures = [file for files in drawn["files"] for file in files if file.suffix != ".csv"]
    made = {"data set": [data.path], "run": [one.path for one in finished], "figure": figures, "notebook": executed}
    return "\n".join(
        [
            f"\n{data.name}: test split, weights chosen on validation\n\n{as_markdown(results_table(finished))}\n",
            *(f"{what:10} {paths.shown(path)}" for what, files in made.items() for path in files),
            *(f"not run    {name}: {why}" for name, why in zip(drawn["figure"], drawn["not run"], strict=True) if why),
            f"\nfinished in {time.perf_counter() - started:.0f} s; open the notebooks in JupyterLab with: make lab",
        ]
    )
