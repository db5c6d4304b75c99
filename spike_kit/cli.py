"""The command line: one function per command, ``spike-kit <command> --help`` explains every option."""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, UseAppendAction, arg

import spike_kit as sk
from spike_kit.base import launch, paths
from spike_kit.base.errors import ConfigError, SpikeKitError, TrainingError, TrainingStoppedError, lookup, path_errors
from spike_kit.data import TEMPLATE
from spike_kit.evaluation import Block
from spike_kit.models import MODELS
from spike_kit.profiles import DEFAULT_ENCODER

if TYPE_CHECKING:
    import torch

Options = OmitArgPrefixes[Any]
"""Settings whose type and defaults are known when the command runs: see `_defaults`."""
Data = Annotated[Positional[str], arg(help="Data set: a name under data/ or the path of a data-set folder.")]
Profiles = Annotated[str, arg(help="Profile set whose vectors a text model uses; template+claude: several, composed.")]
ProfileSets = Annotated[tuple[str, ...], arg(help="Profile sets to compare, composed ones too.")]
Encoder = Annotated[
    str,
    arg(
        help="Text encoder: all-MiniLM-L6-v2 (weights from the package index), a Hugging Face id, a folder, "
        "openai:<model>, tfidf-<d>, or given:<name>; any of them with @pca<d> or @pca<d>w."
    ),
]
Split = Annotated[Literal["test", "valid"], arg(help="Split of the results.")]
OfSplit = Annotated[
    Block, arg(help="Split of the results; _new and _new_all: its new items, among themselves and among all.")
]


@dataclass(frozen=True)
class Place:
    """Where a command computes."""

    device: str = "auto"
    """Device: auto (CUDA where present), cpu, cuda or cuda:N."""
    gpu: int | None = None
    """Short for --device cuda:N."""

    def resolve(self) -> torch.device:
        """Device that is meant, if it exists; else a `DeviceError`."""
        from spike_kit.base.devices import resolve_device

        return resolve_device(self.device if self.gpu is None else f"cuda:{self.gpu}")


On = OmitArgPrefixes[Place]
ANYWHERE = Place()
Fill = Annotated[Literal["", "template"], arg(help="Take the template profile (marked as such) where there is none.")]


def doctor() -> None:
    """Print versions, devices, free memory, and which optional parts are present."""
    from spike_kit.base.devices import describe_machine

    print(describe_machine())


def fetch(dataset: Data = "ml-100k") -> None:
    """Download the raw files of a data set into data/raw; files that are there and intact are not fetched again."""
    from spike_kit.data.build import fetch

    if not (files := fetch(dataset)):
        raise ConfigError(f"{dataset} is on no package index", "docs/datasets.md says where to get its files by hand")
    print("\n".join(map(paths.shown, files)))


def build(
    source: Positional[str] = "ml-100k",
    *,
    recipe: Options = None,
    name: str = "",
    raw: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Build a data set from raw files; prints the funnel, and published counts beside ours where they are known.

    Parameters
    ----------
    source
        Reader or data set to build from; the options below are those of this one, so give it first.
    recipe
        Settings of the build.
    name
        Name of the data-set folder under data/; default: the name of the source.
    raw
        Folder of the raw files; default: data/raw/<source>.
    overwrite
        Replace a data-set folder even if that deletes profiles that were paid for.
    """
    from spike_kit.data.build import build, compared
    from spike_kit.views.tables import funnel_table

    data = build(source, recipe, name=name, raw=raw, overwrite=overwrite)
    funnel = funnel_table(data)
    print(funnel.drop(columns="also").to_string(index=False))
    for step, also in funnel.loc[funnel["also"] != "", ["step", "also"]].itertuples(index=False):
        print(f"{step}: {also}")
    if data.manifest.published:
        print(f"\npublished in {data.manifest.published_in}:\n{compared(data.manifest).to_string(index=False)}\n")
    for note in data.manifest.notes:
        print(f"note: {note}")
    print(f"{paths.shown(data.path)}: " + ", ".join(f"{n} {name}" for name, n in data.manifest.counts.items()))


def export(
    dataset: Data = "ml-100k",
    *,
    format: Literal["kgat", "recbole", "spike-release"] = "kgat",
    to: Path | None = None,
    merge_valid: bool = False,
    profiles: Profiles = TEMPLATE,
    encoder: Encoder = DEFAULT_ENCODER,
    overwrite: bool = False,
) -> None:
    """Write a data set in the format of another code: kgat (also SSLRec, KGRec), recbole, spike-release.

    Parameters
    ----------
    dataset, profiles, encoder
        Data set, and the vectors that are written (spike-release).
    format
        Format of the files.
    to
        Folder to write; default: data/exports/<data set>-<format>.
    merge_valid
        Put the validation part into train, for codes that know two files only (kgat and spike-release).
    overwrite
        Replace a folder that is not empty.
    """
    from spike_kit.data.build import export

    data = sk.Dataset.open(dataset)
    folder = to or paths.data_root() / "exports" / f"{data.name}-{format}"
    files = export(data, format, folder, merge_valid=merge_valid, vectors=(profiles, encoder), overwrite=overwrite)
    print(paths.shown(files))


def profile(
    dataset: Data = "ml-100k",
    *,
    llm: Options = None,
    prompts: Options = None,
    profiles: str = TEMPLATE,
    fill: Fill = "",
    dry_run: bool = False,
    batch_export: Path | None = None,
    batch_import: tuple[Path, ...] = (),
) -> None:
    """Write the profile of every item, auxiliary entity and user of a data set, from templates or by a language model.

    Answers of a model are kept in data/llm/<data set>.sqlite as they arrive: whatever ends a run, the same command goes
    on from there. Look at --dry-run first.

    Parameters
    ----------
    dataset, fill
        Data set, and what fills gaps.
    llm
        Model and server, for any profile set but template.
    prompts
        What the prompts are made of.
    profiles
        Name of the profile set. template: facts in sentences, no LLM; claude: what the kit ships with ml-100k. Any
        other name asks the model below.
    dry_run
        Ask nothing: print calls, tokens, what they would cost, and the first prompt of each subject.
    batch_export
        Ask nothing: write the open questions into a batch file (.jsonl) for OpenAI's Batch API or vllm run-batch.
    batch_import
        Take in output and error files of batches.
    """
    from spike_kit.profiles.generate import Generation, GenerationConfig, export_batch, import_batch
    from spike_kit.profiles.imported import add_shipped
    from spike_kit.profiles.shipped import shipped_sets, told_of
    from spike_kit.profiles.template import template_profiles

    data = sk.Dataset.open(dataset)
    if profiles == TEMPLATE or profiles in shipped_sets(data):
        if dry_run or batch_export or batch_import or llm != type(llm)():
            hint = f"choose another name of the profile set, for example: --profiles {llm.model}"
            raise ConfigError(f"profile set {profiles} asks no model", hint)
        written = profiles == TEMPLATE and data.write_profiles(profiles, template_profiles(data))
        print(paths.shown(written or add_shipped(data, profiles, fill)))
        print("\n".join(told_of(data, profiles)))
        return
    generation = Generation(data, GenerationConfig(llm=llm, prompts=prompts, fill=fill), profiles)
    if batch_import:
        print(import_batch(generation, batch_import).summary(llm.model, generation.answers, batch=True))
    if batch_export:
        subject, files = export_batch(generation, batch_export)
        print("\n".join(f"{subject}: {paths.shown(file)}" for file in files) or "every question is answered")
    elif dry_run:
        print(generation.estimate())
    elif not batch_import:
        print(generation.complete())


def import_profiles(
    dataset: Data = "ml-100k",
    *,
    profiles: str = "imported",
    items: Path | None = None,
    auxiliary: Path | None = None,
    users: Path | None = None,
    item_map: Path | None = None,
    auxiliary_map: Path | None = None,
    user_map: Path | None = None,
    fill: Fill = "",
    insist: bool = False,
) -> None:
    """Make a profile set from JSON files {id: text} that others wrote (CoLaKG's, for example).

    Parameters
    ----------
    dataset, fill
        Data set, and what fills gaps.
    profiles
        Name of the new profile set.
    items
        Profiles of the items.
    auxiliary
        Profiles of the other entities.
    users
        Profiles of the users; flagged as possibly leaky, since nobody knows whether they saw held-out items.
    item_map
        Lines 'source_id id', where the ids of the items file are not the data set's source ids.
    auxiliary_map
        The same for the other entities.
    user_map
        The same for the users.
    insist
        Take texts that fit these ids no better than others, with a warning.
    """
    from spike_kit.profiles.imported import import_profiles
    from spike_kit.profiles.shipped import told_of

    data = sk.Dataset.open(dataset)
    given = {"item": items, "auxiliary": auxiliary, "user": users}
    maps = {"item": item_map, "auxiliary": auxiliary_map, "user": user_map}
    files, ids = ({subject: file for subject, file in each.items() if file} for each in (given, maps))
    print(paths.shown(import_profiles(data, profiles, files, ids, fill, insist)))
    print("imported: " + ", ".join(f"{n} {name}" for name, n in data.provenance(profiles)["imported"].items()))
    print("\n".join(told_of(data, profiles)))
    if users:
        print("user profiles are flagged as possibly leaky: report no gain from them")


def import_vectors(
    dataset: Data = "ml-100k", *, users: Path, entities: Path, profiles: str = TEMPLATE, name: str = "theirs"
) -> None:
    """Take in vectors that others made, as they are: .npy, .npz (ids, embeddings) or .safetensors.

    Parameters
    ----------
    dataset
        Data set.
    users
        Vectors of the users.
    entities
        Vectors of all entities, items first.
    profiles
        Profile set they belong to.
    name
        They become the encoder given:<name>.
    """
    from spike_kit.profiles.imported import import_vectors

    print(paths.shown(import_vectors(sk.Dataset.open(dataset), profiles, name, users, entities)))


def judge(
    dataset: Data = "ml-100k",
    *,
    llm: Options = None,
    profiles: ProfileSets = (TEMPLATE,),
    mode: Literal["single", "pairwise"] = "single",
    sample: int = 20,
    seed: int = 0,
    dry_run: bool = False,
) -> None:
    """Let a language model judge profiles: scores from 1 to 5, or profile sets in pairs; resumable.

    Parameters
    ----------
    dataset, profiles
        Data set, and its profile sets to judge, on the same subjects.
    llm
        Model that judges, and its server.
    mode
        Scores for each profile, or which of two is better (shown in both orders).
    sample
        Items, auxiliary entities and users drawn at random: so many of each.
    seed
        Seed of the draw.
    dry_run
        Ask nothing: print calls and cost.
    """
    from spike_kit.profiles.judge import Judge, JudgeConfig

    config = JudgeConfig(llm=llm, mode=mode, sample=sample, seed=seed)
    print(Judge(sk.Dataset.open(dataset), profiles, config).report(dry_run))


def quality(
    dataset: Data = "ml-100k", *, profiles: ProfileSets = (TEMPLATE,), encoder: Encoder = DEFAULT_ENCODER
) -> None:
    """Compare profile sets without an LLM: faithfulness, length, diversity, near-duplicates, spread, signal."""
    measured, signal = sk.quality(sk.Dataset.open(dataset), profiles, encoder)
    print(measured.round(3).to_string(index=False))
    print("\nranking of the validation items by profile vectors alone:")
    print(signal.round(4).to_string(index=False))


def encode(
    dataset: Data = "ml-100k",
    *,
    profiles: Profiles = TEMPLATE,
    encoder: Encoder = DEFAULT_ENCODER,
    batch_size: int | None = None,
    on: On = ANYWHERE,
) -> None:
    """Turn profiles into vectors with a frozen text encoder; texts encoded before are not encoded again.

    Parameters
    ----------
    dataset, profiles, encoder, on
        What is encoded, and where.
    batch_size
        Texts per batch; default: 32 for an encoder that runs here, full requests for OpenAI.
    """
    from spike_kit.data.dataset import parts_of
    from spike_kit.profiles.encode import encode_profiles
    from spike_kit.profiles.imported import ensure_written

    data = sk.Dataset.open(dataset)
    ensure_written(data, profiles)
    for part in parts_of(profiles):
        print(paths.shown(encode_profiles(data, part, encoder, device=on.resolve(), batch_size=batch_size)))


def train(
    *,
    what: Options = None,
    settings: Options = None,
    training: Options = None,
    on: On = ANYWHERE,
) -> None:
    """Train a model, choose its weights on validation, open the test split once, and write a run folder.

    A training that was interrupted goes on from its last state. To use several devices: torchrun --nproc-per-node N -m
    spike_kit train ...

    Parameters
    ----------
    what, on
        What is trained, and where.
    settings
        Settings of the model.
    training
        Settings of its training.
    """
    from spike_kit.base import distributed
    from spike_kit.experiments.run import RunConfig, run

    place = on.resolve()
    config = RunConfig(**dict(what), settings=dict(settings), training=dict(training))
    with distributed.group(place):
        finished = run(config, place)
        if distributed.rank() == 0:
            print(finished.summary())


def search(
    *,
    what: Options = None,
    trials: int = 30,
    timeout: float | None = None,
    trial_seconds: float | None = None,
    fix: UseAppendAction[tuple[str, ...]] = (),
    save: bool = False,
    on: On = ANYWHERE,
) -> None:
    """Search for settings on validation alone.

    Trials are kept in data/searches: whatever ends a search, the same command goes on and loses only the trial it was
    at. Prints the best trials and the command that trains with the best settings.

    Parameters
    ----------
    what, on
        What is searched for, and where.
    trials
        Trials in all, those of earlier sittings included.
    timeout
        Seconds after which no further trial starts.
    trial_seconds
        Seconds after which a trial ends with what it reached.
    fix
        A setting that is held fixed, as name=value; may be repeated, for example: --fix loss=bpr --fix epochs=50.
    save
        Keep the best settings as the preset `tuned` of this model and data set.
    """
    from spike_kit.experiments.run import RunConfig
    from spike_kit.experiments.search import parse_fixed, save_tuned, search

    config = RunConfig(**dict(what))
    fixed = config.changed(parse_fixed(config, fix))
    result = search(fixed, trials, device=on.resolve(), timeout=timeout, trial_seconds=trial_seconds)
    shown = result.trials.head(10)
    print(shown.to_string(index=False, float_format=lambda number: f"{number:.4g}"))
    if len(result.trials) > len(shown):
        print(f"({len(shown)} best of {len(result.trials)} trials)")
    print(f"\n{result.config.command()}")
    if save:
        print(f"written    {paths.shown(save_tuned(fixed, result, trial_seconds))}")


def evaluate(
    dataset: Data = "ml-100k",
    *,
    split: OfSplit = "test",
    metrics: tuple[str, ...] = ("recall", "ndcg"),
    cutoffs: tuple[int, ...] = (10, 20, 40),
    beyond: int | None = None,
    on: On = ANYWHERE,
) -> None:
    """Print the results of finished runs, averaged over seeds, the best first, with validation and seconds of training.

    Other cut-offs than the stored ones are ranked anew from stored weights.

    Parameters
    ----------
    dataset, split, on
        Whose runs, which split, and where they are ranked anew.
    metrics
        Metrics: recall, ndcg, precision, mrr, hit_rate.
    cutoffs
        Ranks k at which to measure.
    beyond
        Length of lists whose coverage, novelty, diversity, calibration, popularity and item groups are shown instead.
    """
    from spike_kit.experiments.run import finished_runs
    from spike_kit.results.report import lists_markdown, ranked_table

    data = sk.Dataset.open(dataset)
    if not (finished := finished_runs(data)):
        hint = f"train one: spike-kit train --dataset {dataset}"
        raise ConfigError(f"there is no finished run of {data.name} as it is built now", hint)
    if beyond is None:
        print(ranked_table(data, finished, split, metrics, cutoffs, on.resolve()))
    else:
        print(lists_markdown(data, finished, split, beyond, on.resolve()))


def grid(
    file: Positional[Path | None] = None,
    *,
    threads: int = 1,
    jobs: int = 2,
    cluster: str | None = None,
    only: UseAppendAction[tuple[str, ...]] = (),
    archive: Path | None = None,
    keep: bool = False,
    look: bool = False,
    on: On = ANYWHERE,
) -> None:
    """Carry out a grid of profiles, searches and runs from a TOML file; what is finished stays, the rest goes on.

    Prints one row per cell at the end. A cell that fails does not stop the others, but the command then fails.

    Parameters
    ----------
    file
        The grid (docs/experiments.md); default: the study behind docs/results.md.
    threads
        Threads of a cell on the CPU.
    jobs
        Cells at a time, each in a process of its own.
    cluster
        Address of a Ray cluster (extra: cluster), "auto" for this machine's, "local" to start Ray here.
    only
        Only cells with this word in their name, a data set or a model for example; if repeated, with all of them.
    archive
        Keep the tables of finished runs in this folder, and take what is found there for done; default: nowhere.
    keep
        The same with the folder data/archive.
    look
        Only look how far it is, and how much training is left.
    on
        Where cells compute.
    """
    from spike_kit.experiments.archive import own_root
    from spike_kit.experiments.grid import STUDY, Grid, GridRun, workers

    if keep and archive is None:
        archive = own_root()
        print(f"note: --keep now means --archive {paths.shown(archive)}, no longer docs/study", file=sys.stderr)
    progress = GridRun(Grid.read(file or STUDY), only, archive)
    if look:
        progress.look()
    else:
        progress.do(workers(cluster, jobs, str(on.resolve()), threads), jobs)
    print(progress.table.to_string(index=False, float_format=lambda number: f"{number:.4g}", na_rep=""))
    if look:
        print(progress.forecast)
    if failed := [cell.name for cell, outcome in progress.cells.items() if outcome.state == "failed"]:
        raise TrainingError(f"{len(failed)} of {len(progress.cells)} cells failed: {failed[0]}", "see the table")


def compare(
    runs: Positional[tuple[str, ...]] = ("ml-100k",),
    *,
    metric: str = "ndcg@20",
    split: OfSplit = "test",
    quarter: Literal[1, 2, 3, 4] | None = None,
    reference: str = "",
    folder: Path | None = None,
) -> None:
    """Compare finished runs with one of them: paired tests, effect sizes, intervals; as text, CSV, Markdown, LaTeX.

    Nothing is trained. Runs that differ in the seed only count as one model.

    Parameters
    ----------
    runs
        Run folders, by name or path; or one data set, for all of its finished runs.
    metric
        Metric of the tests.
    split
        Split of the results.
    quarter
        Only this quarter of the users by their train interactions; 1 are those with the fewest. Default: all users.
    reference
        Label of the model to compare with, as the table shows it; default: the best on validation.
    folder
        Where the files are written; default: figures/.
    """
    from spike_kit.experiments.archive import find_runs
    from spike_kit.results.report import write_comparison

    text, files = write_comparison(find_runs(runs), metric, split, quarter, reference, folder)
    print("\n".join([text, *(f"written    {paths.shown(file)}" for file in files)]))


def results(
    datasets: Positional[tuple[str, ...]] = (),
    *,
    reference: str = "spike",
    into: Path | None = None,
) -> None:
    """Print the tables of data sets in Markdown: models, groups of users, ablations, searches, what each cost.

    Of more than one data set an overview stands before them. Runs of this machine come first; what was not run here is
    taken from docs/study, without the data set if need be. Item splits NAME-new-0, NAME-new-1, ... share one table.

    Parameters
    ----------
    datasets
        Data sets; default: all of docs/study.
    reference
        Model that all others are compared with.
    into
        Folder that takes in the tables of docs/study, a Markdown file for each data set and one for all.
    """
    from spike_kit.results.report import tables_of

    tables = tables_of(datasets, reference, into)
    if into is None:
        print("\n\n".join(tables.values()))


def figures(
    dataset: Data = "ml-100k", *, folder: Path | None = None, split: Split = "test", only: tuple[str, ...] = ()
) -> None:
    """Draw the figures and tables of a paper from the finished runs: PDF, SVG, PNG, CSV, LaTeX.

    Nothing is trained; a figure whose runs do not exist is listed as not run.

    Parameters
    ----------
    dataset, split
        Whose runs, and which split.
    folder
        Where to write; default: figures/.
    only
        Names of the figures to draw; default: all.
    """
    from spike_kit.figures.gallery import export

    drawn = export(sk.Dataset.open(dataset), folder, split=split, names=only)
    for name, files, missing in drawn.itertuples(index=False):
        print(f"{name:12} {', '.join(map(paths.shown, files)) or f'not run: {missing}'}")


def demo(
    dataset: Positional[str] = "ml-100k",
    *,
    max_users: int | None = None,
    seeds: int = 1,
    epochs: int | None = None,
    notebooks: bool = True,
    on: On = ANYWHERE,
) -> None:
    """Run the whole pipeline: fetch, build, profile, encode, train, evaluate, figures, notebooks.

    Parameters
    ----------
    dataset
        Name of the data-set folder to build or reuse.
    max_users
        Build a small cut with this many users instead of the full data set.
    seeds
        Seeds per model, counted from 0.
    epochs
        Cap on the epochs of every model; default: what the presets say.
    notebooks
        Execute the notebooks and keep the executed copies.
    on
        Where encoder and training compute.
    """
    from spike_kit import api

    place = on.resolve()
    print(api.demo(dataset, max_users=max_users, seeds=seeds, epochs=epochs, notebooks=notebooks, device=place))


def bench() -> None:
    """Say where the benchmarks went: they are scripts of a checkout now."""
    raise ConfigError(
        "the benchmarks are no part of the package any more",
        "in a checkout: python -m benchmarks.train (or data, profiles, quality, evaluation) --help",
    )


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (
        *(doctor, fetch, build, export, profile, import_profiles, import_vectors, judge, quality, encode),
        *(train, search, evaluate, grid, compare, results, figures, demo),
    )
}
"""Every command by its name."""

RENAMED = {"--source": "--profiles", "--sources": "--profiles"}
"""Old names of options that still work for one release."""

INTERRUPTED = "interrupted: nothing half-written was left; the same command goes on from the last epoch or profile"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    It is 0, or 1 for an error that is explained, 130 after Ctrl-C, 143 after SIGTERM in a training, 141 where nobody
    reads what is printed any more (``| head``).
    """
    try:
        try:
            return _guarded(list(sys.argv[1:] if arguments is None else arguments))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        from spike_kit.base.processes import leave_closed_outputs

        if not leave_closed_outputs():
            raise
        return 141


def _guarded(given: list[str]) -> int:
    """Run one command, its errors explained; returns the exit code."""
    if not given or given[0] in ("-h", "--help"):
        print(_overview())
        return 0
    here = launch.place()
    logging.basicConfig(level=logging.ERROR if here.rank else logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpx2", "openai", "sentence_transformers", "fontTools"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if here.size > 1 and given[0] != "train":
            raise ConfigError(f"several processes of torchrun cannot share {given[0]!r}", "only train can be shared")
        with path_errors():
            _run(given[0], list(map(_renamed, given[1:])))
    except TrainingStoppedError as error:
        print(error, file=sys.stderr)
        return 143
    except SpikeKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{INTERRUPTED}", file=sys.stderr)
        return 130
    return 0


def _run(name: str, arguments: list[str]) -> None:
    """Parse the arguments of a command and run it."""
    import tyro

    command = bench if name == "bench" else lookup(COMMANDS, name, "command")
    description = inspect.cleandoc((command.__doc__ or "").split("    Parameters\n")[0])
    if command is build:
        from spike_kit.data.sources import RECIPES

        known = (f"- {name}: {recipe.about}" for name, recipe in RECIPES.items())
        description = "\n\n".join([description, "Sources and data sets:", *known])
    command = partial(command, **_defaults(command, arguments))
    tyro.cli(command, args=arguments, prog=f"spike-kit {name}", description=description)


def _defaults(command: Callable[..., None], arguments: list[str]) -> dict[str, Any]:
    """Settings that a command offers as options: for some, they depend on the model or the reader that is named."""
    if command in (profile, judge):
        from spike_kit.profiles.llm import LLMConfig
        from spike_kit.profiles.prompt_config import PromptConfig

        return {"llm": LLMConfig(), **({"prompts": PromptConfig()} if command is profile else {})}
    if command is build:
        from spike_kit.data.sources import RECIPES, find_recipe

        source = next((argument for argument in arguments if argument in RECIPES), "ml-100k")
        return {"recipe": find_recipe(source).settings}
    if command in (train, search):
        from spike_kit.experiments.run import RunConfig, What

        if command is search:
            return {"what": What()}
        early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for name in ("model", "preset", "dataset"):
            early.add_argument(f"--{name}")
        base = RunConfig(**vars(early.parse_known_args(arguments)[0])).base()
        return {"what": What(), "settings": base.model, "training": base.training}
    return {}


def _renamed(word: str) -> str:
    """Present name of an option that was renamed, with a notice."""
    old, equals, value = word.partition("=")
    if old not in RENAMED:
        return word
    print(f"note: {old} is now {RENAMED[old]}; the old name goes with the next release", file=sys.stderr)
    return f"{RENAMED[old]}{equals}{value}"


def _overview() -> str:
    lines = [f"  {name:17}{(command.__doc__ or '').splitlines()[0]}" for name, command in COMMANDS.items()]
    lines += ["", f"models: {', '.join(MODELS)}", "spike-kit <command> --help"]
    return "\n".join(["usage: spike-kit <command> [options]", "", *lines])
