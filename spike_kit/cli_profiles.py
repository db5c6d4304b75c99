"""Commands of the stage that writes profiles: templates, language models, imports, judges, quality."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tqdm.auto import tqdm
from tyro.conf import OmitArgPrefixes, Positional

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, LLMError
from spike_kit.data.dataset import Dataset
from spike_kit.evaluation.signal import signal_table
from spike_kit.profiles.batch import Imported, export_batch, import_batch
from spike_kit.profiles.cost import OWN_PRICES, prices
from spike_kit.profiles.encode import DEFAULT_ENCODER, ensure_vectors
from spike_kit.profiles.generate import Estimate, Generation, GenerationConfig
from spike_kit.profiles.given import import_vectors
from spike_kit.profiles.imported import import_profiles
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.judge import Judge, JudgeConfig, preference_table, score_table
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.prompts import PromptConfig, prompt_texts
from spike_kit.profiles.quality import quality_table
from spike_kit.profiles.template import TEMPLATE, WORD_LIMIT, template_profiles


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Write the profile of every item, auxiliary entity and user of a data set, from templates or by a language model.

    Answers of a model are kept in data/llm/<data set>.sqlite as they arrive: whatever ends a run, the same command goes
    on from there. Look at --dry-run first.
    """

    llm: OmitArgPrefixes[LLMConfig] = field(default_factory=LLMConfig)
    """Model and server, for any profile set but template."""
    prompts: OmitArgPrefixes[PromptConfig] = field(default_factory=PromptConfig)
    """What the prompts are made of."""
    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: str = TEMPLATE
    """Name of the profiles; template: facts in sentences, no LLM. Any other name asks the model below."""
    fill: Literal["", "template"] = ""
    """Take the template profile where the model gave none (marked in the table); else the table waits."""
    dry_run: bool = False
    """Ask nothing: print calls, tokens, what they would cost, and the first prompt of each subject."""
    batch_export: Path | None = None
    """Ask nothing: write the open questions into a batch file (.jsonl) for OpenAI's Batch API or vllm run-batch."""
    batch_import: tuple[Path, ...] = ()
    """Take in output and error files of batches."""

    def __call__(self) -> None:
        """Write profiles/<profile set>.parquet, or say what is missing."""
        data = Dataset.open(self.dataset)
        if self.profiles == TEMPLATE:
            asks = self.dry_run or self.batch_export or self.batch_import or self.llm != LLMConfig()
            if asks:
                raise ConfigError(
                    "template profiles ask no model", f"name the profiles, for example: --profiles {self.llm.model}"
                )
            print(paths.shown(data.write_profiles(self.profiles, template_profiles(data))))
            return
        if self.profiles in prices().models and self.profiles != self.llm.model:
            raise ConfigError(
                f"profiles called {self.profiles} would be written by {self.llm.model}",
                f"add --model {self.profiles}, or choose another name",
            )
        config = GenerationConfig(llm=self.llm, prompts=self.prompts, fill=self.fill)
        generation = Generation(data, config, self.profiles)
        if self.batch_import:
            print(_imported(import_batch(generation, self.batch_import), self.llm.model))
        if self.batch_export:
            subject, files = export_batch(generation, self.batch_export)
            lines = [f"{subject}: {paths.shown(path)}" for path in files] or ["every question is answered"]
            print("\n".join(lines))
        elif self.dry_run:
            print(_estimated(generation.estimate()))
        elif not self.batch_import:
            print(_generated(generation))


@dataclass(frozen=True, kw_only=True)
class ImportProfiles:
    """Make a profile set from JSON files {id: text} that others wrote (CoLaKG's, for example)."""

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: str = "imported"
    """Name of the new profile set."""
    items: Path | None = None
    """Profiles of the items."""
    auxiliary: Path | None = None
    """Profiles of the other entities."""
    users: Path | None = None
    """Profiles of the users; flagged as possibly leaky, since nobody knows whether they saw held-out items."""
    item_map: Path | None = None
    """Lines 'source_id id', where the ids of the items file are not the study's source ids."""
    auxiliary_map: Path | None = None
    """The same for the other entities."""
    user_map: Path | None = None
    """The same for the users."""
    fill: Literal["", "template"] = ""
    """Take the template profile where the files have none (marked in the table)."""

    def __call__(self) -> None:
        """Write profiles/<profile set>.parquet."""
        given = {"item": self.items, "auxiliary": self.auxiliary, "user": self.users}
        maps = {"item": self.item_map, "auxiliary": self.auxiliary_map, "user": self.user_map}
        data = Dataset.open(self.dataset)
        path = import_profiles(
            data,
            self.profiles,
            {subject: file for subject, file in given.items() if file},
            {subject: file for subject, file in maps.items() if file},
            self.fill,
        )
        print(paths.shown(path))
        print("imported: " + ", ".join(f"{n} {name}" for name, n in data.provenance(self.profiles)["imported"].items()))
        if self.users:
            print("user profiles are flagged as possibly leaky: report no gain from them")


@dataclass(frozen=True, kw_only=True)
class ImportVectors:
    """Take in vectors that others made, as they are: .npy, .npz (ids, embeddings) or .safetensors."""

    users: Path
    """Vectors of the users."""
    entities: Path
    """Vectors of all entities, items first."""
    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: str = TEMPLATE
    """Profile set they belong to."""
    name: str = "theirs"
    """They become the encoder given:<name>."""

    def __call__(self) -> None:
        """Write embeddings/<profile set>--given:<name>.safetensors."""
        data = Dataset.open(self.dataset)
        print(paths.shown(import_vectors(data, self.profiles, self.name, self.users, self.entities)))


@dataclass(frozen=True, kw_only=True)
class JudgeProfiles:
    """Let a language model judge profiles: scores from 1 to 5, or two profile sets compared; can be resumed."""

    llm: OmitArgPrefixes[LLMConfig] = field(default_factory=LLMConfig)
    """Model that judges, and its server."""
    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: tuple[str, ...] = (TEMPLATE,)
    """Profile sets to judge, on the same subjects."""
    mode: Literal["single", "pairwise"] = "single"
    """Scores for each profile, or which of two is better (shown in both orders)."""
    sample: int = 20
    """Items, auxiliary entities and users drawn at random: so many of each."""
    seed: int = 0
    """Seed of the draw."""
    dry_run: bool = False
    """Ask nothing: print calls and cost."""

    def __call__(self) -> None:
        """Print the table of scores or preferences."""
        config = JudgeConfig(llm=self.llm, mode=self.mode, sample=self.sample, seed=self.seed)
        judge = Judge(Dataset.open(self.dataset), self.profiles, config)
        if self.dry_run:
            calls, costs = judge.estimate()
            print(f"{calls} calls to make\n\n{costs.to_string(index=False, na_rep='')}\n\nprices of {prices().as_of}")
            return
        progress = Progress()
        with _bar(progress) as watch:
            verdicts = judge.run(progress, watch=watch)
        table = score_table(verdicts) if self.mode == "single" else preference_table(verdicts)
        print(table.round(3).to_string(index=False))
        print(_summary(progress, self.llm.model))
        print(*(f"failed: {failure}" for failure in progress.first_failures), sep="\n")


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Compare profile sets without an LLM: faithfulness, length, diversity, near-duplicates, spread, signal."""

    dataset: Positional[str] = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    profiles: tuple[str, ...] = (TEMPLATE,)
    """Profile sets to compare."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder for what is measured on vectors."""

    def __call__(self) -> None:
        """Print two tables."""
        data = Dataset.open(self.dataset)
        texts = {name: data.profiles(name) for name in self.profiles}
        vectors = {name: ensure_vectors(data, name, self.encoder) for name in self.profiles}
        prompts = {name: prompt_texts(data, name) for name in self.profiles}
        print(quality_table(texts, prompts, WORD_LIMIT, vectors).round(3).to_string(index=False))
        print("\nranking of the validation items by profile vectors alone:")
        print(signal_table(data, vectors).round(4).to_string(index=False))
        for name in self.profiles:
            if leaky := data.provenance(name).get("possibly_leaky"):
                print(f"{name}: profiles of {', '.join(leaky)} may describe held-out interactions; report no gain")


def _estimated(estimate: Estimate) -> str:
    """Calls, tokens, costs and sample prompts."""
    tokens_in, tokens_out = estimate.tokens
    listed, own = prices(), paths.shown(paths.data_root() / OWN_PRICES)
    parts = [
        estimate.table.to_string(index=False),
        f"{estimate.calls} calls, about {tokens_in:,} tokens in and {tokens_out:,} out if none is asked for twice",
        estimate.costs.round(2).to_string(index=False, na_rep="?"),
        f"prices of {listed.as_of}, from {paths.shown(listed.path)}; a copy as {own} takes its place",
    ]
    shown = [f"--- prompt of {prompt.subject} {prompt.id}\n{prompt.text}" for prompt in estimate.samples]
    return "\n\n".join([*parts, *shown])


def _generated(generation: Generation) -> str:
    """Ask what is open, with a progress bar; says how it ended."""
    progress = Progress()
    with _bar(progress) as watch:
        outcome = generation.run(progress, watch=watch)
    lines = [_summary(progress, generation.config.llm.model)]
    if progress.first_failures:
        lines += ["failed (the next run tries them again):", *(f"  {failure}" for failure in progress.first_failures)]
    if (more := progress.failed - len(progress.first_failures)) > 0:
        lines.append(f"  and {more} more: table failures of {paths.shown(generation.answers)}")
    if outcome.path is None:
        print("\n".join(lines))
        missing = ", ".join(f"{count} {subject}" for subject, count in outcome.missing.items())
        raise LLMError(
            f"the profiles are not complete, there is no answer yet for: {missing}",
            "the same command goes on from here"
            + ("" if progress.stopped else "; or complete the table from the template profiles: --fill template"),
        )
    return "\n".join([*lines, paths.shown(outcome.path)])


@contextmanager
def _bar(progress: Progress) -> Iterator[Callable[[str, Progress], None]]:
    """Progress bar of questions to a model."""
    with tqdm(total=progress.total, unit="question") as bar:

        def watch(subject: str, seen: Progress) -> None:
            bar.total = seen.total
            bar.set_description(f"ask about {subject}", refresh=False)
            bar.set_postfix(failed=seen.failed, refresh=False)
            bar.update(seen.found + seen.done + seen.failed - bar.n)

        yield watch


def _summary(progress: Progress, model: str = "") -> str:
    """What a run did and used, in a line or two."""
    used = f"{progress.tokens_in:,} tokens in, {progress.tokens_out:,} out"
    cost = prices().cost(model, progress.tokens_in, progress.tokens_out)
    price = "" if cost is None else f", about {cost:.2f} {prices().currency}"
    counts = {"problems": progress.problems, "failures": progress.failures}
    details = [
        f"{name}: {', '.join(f'{n} {kind}' for kind, n in found.items())}" for name, found in counts.items() if found
    ]
    if progress.unclear:
        details.append(f"{progress.unclear} calls may have been billed without an answer arriving")
    first = (
        f"{progress.found} answers from before, {progress.done} new, {progress.failed} failed; {progress.calls} calls"
    )
    return "\n".join([f"{first}, {used}{price}", *details])


def _imported(found: Imported, model: str) -> str:
    """What a batch brought, in a line or two."""
    parts = [f"{found.usable} usable answers", f"{found.already} imported before", f"{found.unknown} of other exports"]
    parts += [f"{n} {kind}" for kind, n in (*found.problems.items(), *found.errors.items())]
    cost = prices().cost(model, found.tokens_in, found.tokens_out, batch=True)
    price = "" if cost is None else f", about {cost:.2f} {prices().currency} as a batch"
    return f"{', '.join(parts)}\n{found.tokens_in:,} tokens in, {found.tokens_out:,} out{price}"
