"""What profile generation, batches and judges say: estimates before, counts, costs and failures after."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, LLMError
from spike_kit.profiles.batch import export_batch, import_batch
from spike_kit.profiles.cost import OWN_PRICES, prices
from spike_kit.profiles.generate import Estimate, Generation
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.judge import Judge


def estimated(estimate: Estimate) -> str:
    """Calls, tokens, costs and sample prompts of a generation."""
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


def generated(generation: Generation) -> str:
    """Ask what is open, with a progress bar, and say how it ended.

    Raises
    ------
    ConfigError
        If the profile set is named after another model than the one that is asked.
    LLMError
        If profiles are missing at the end; what was answered is kept.
    """
    model = generation.config.llm.model
    if generation.profiles in prices().models and generation.profiles != model:
        hint = f"add --model {generation.profiles}, or choose another name"
        raise ConfigError(f"profiles called {generation.profiles} would be written by {model}", hint)
    with tqdm(unit="question") as bar:
        outcome = generation.run(watch=partial(_show, bar))
    summary = _summary(outcome.progress, generation)
    if outcome.path is not None:
        return f"{summary}\n{paths.shown(outcome.path)}"
    missing = ", ".join(f"{count} {subject}" for subject, count in outcome.missing.items())
    hint = "the same command goes on from here"
    if outcome.progress.failures["thoughts"]:
        hint = "leave the model room for its answer first: the same command would pay for the same again"
    if not outcome.progress.stopped:
        hint += "; or complete the table from the template profiles: --fill template"
    raise LLMError(f"{summary}\nthe profiles are not complete, there is no answer yet for: {missing}", hint)


def exported(generation: Generation, file: Path) -> str:
    """Write the open questions into batch files and name them."""
    subject, files = export_batch(generation, file)
    return "\n".join(f"{subject}: {paths.shown(path)}" for path in files) or "every question is answered"


def imported(generation: Generation, files: Sequence[Path]) -> str:
    """Take in the answers of batches, and say what they brought."""
    return _summary(import_batch(generation, files), generation, batch=True)


def judged(judge: Judge, dry_run: bool = False) -> str:
    """Ask a judge, with a progress bar, and show its table; or, asking nothing, calls and costs."""
    if dry_run:
        calls, costs = judge.estimate()
        return f"{calls} calls to make\n\n{costs.to_string(index=False, na_rep='')}\n\nprices of {prices().as_of}"
    progress = Progress()
    with tqdm(unit="question") as bar:
        verdicts = judge.run(progress, watch=partial(_show, bar))
    return f"{judge.table(verdicts).round(3).to_string(index=False)}\n{_summary(progress, judge)}"


def _show(bar: tqdm, progress: Progress) -> None:
    """Show progress on a bar of questions to a model."""
    bar.total = progress.total
    bar.set_description(f"ask about {progress.subject}", refresh=False)
    bar.set_postfix(failed=progress.failed, refresh=False)
    bar.update(progress.found + progress.done + progress.failed - bar.n)


def _summary(progress: Progress, asked: Generation | Judge, batch: bool = False) -> str:
    """What a run did and used, what was wrong, and the first failures."""
    counts = f"{progress.found} answers from before, {progress.done} new, {progress.failed} failed"
    used = prices().used(asked.config.llm.model, progress.tokens_in, progress.tokens_out, batch)
    lines = [f"{counts}; {progress.calls} calls, {used}"]
    for name, found in (("problems", progress.problems), ("failures", progress.failures)):
        lines += [f"{name}: {', '.join(f'{n} {kind}' for kind, n in found.items())}"] if found else []
    if progress.unclear:
        lines.append(f"{progress.unclear} calls may have been billed without an answer arriving")
    if progress.failed:
        lines += ["failed (asked again the next time):", *(f"  {failure}" for failure in progress.first_failures)]
    if more := progress.failed - len(progress.first_failures):
        lines.append(f"  and {more} more: table failures of {paths.shown(asked.answers)}")
    return "\n".join(lines)
