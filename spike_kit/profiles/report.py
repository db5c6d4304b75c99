"""What profile generation, batches and judges say: estimates before, counts, costs and failures after."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, LLMError
from spike_kit.profiles.batch import export_batch, import_batch
from spike_kit.profiles.cost import OWN_PRICES, prices
from spike_kit.profiles.generate import Estimate, Generation
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.judge import Judge, preference_table, score_table


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
        raise ConfigError(
            f"profiles called {generation.profiles} would be written by {model}",
            f"add --model {generation.profiles}, or choose another name",
        )
    progress = Progress()
    with _bar(progress) as watch:
        outcome = generation.run(progress, watch=watch)
    lines = [_summary(progress, model)]
    if progress.first_failures:
        lines += ["failed (the next run tries them again):", *(f"  {failure}" for failure in progress.first_failures)]
    if (more := progress.failed - len(progress.first_failures)) > 0:
        lines.append(f"  and {more} more: table failures of {paths.shown(generation.answers)}")
    if outcome.path is None:
        missing = ", ".join(f"{count} {subject}" for subject, count in outcome.missing.items())
        hint = "the same command goes on from here"
        if progress.failures["thoughts"]:
            hint = "leave the model room for its answer first: the same command would pay for the same again"
        if not progress.stopped:
            hint += "; or complete the table from the template profiles: --fill template"
        raise LLMError(
            "\n".join([*lines, f"the profiles are not complete, there is no answer yet for: {missing}"]), hint
        )
    return "\n".join([*lines, paths.shown(outcome.path)])


def exported(generation: Generation, file: Path) -> str:
    """Write the open questions into batch files and name them."""
    subject, files = export_batch(generation, file)
    return "\n".join(f"{subject}: {paths.shown(path)}" for path in files) or "every question is answered"


def imported(generation: Generation, files: Sequence[Path]) -> str:
    """Take in the answers of batches, and say in two lines what they brought."""
    found = import_batch(generation, files)
    parts = [f"{found.usable} usable answers", f"{found.already} imported before", f"{found.unknown} of other exports"]
    parts += [f"{n} {kind}" for kind, n in (*found.problems.items(), *found.errors.items())]
    used = _used(generation.config.llm.model, found.tokens_in, found.tokens_out, batch=True)
    return f"{', '.join(parts)}\n{used}"


def judged(judge: Judge, dry_run: bool = False) -> str:
    """Ask a judge, with a progress bar, and show its table; or, asking nothing, calls and costs."""
    if dry_run:
        calls, costs = judge.estimate()
        return f"{calls} calls to make\n\n{costs.to_string(index=False, na_rep='')}\n\nprices of {prices().as_of}"
    progress = Progress()
    with _bar(progress) as watch:
        verdicts = judge.run(progress, watch=watch)
    table = score_table(verdicts) if judge.config.mode == "single" else preference_table(verdicts)
    failed = [f"failed: {failure}" for failure in progress.first_failures]
    return "\n".join([table.round(3).to_string(index=False), _summary(progress, judge.config.llm.model), *failed])


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


def _summary(progress: Progress, model: str) -> str:
    """What a run did and used, in a line or two."""
    counts = {"problems": progress.problems, "failures": progress.failures}
    details = [
        f"{name}: {', '.join(f'{n} {kind}' for kind, n in found.items())}" for name, found in counts.items() if found
    ]
    if progress.unclear:
        details.append(f"{progress.unclear} calls may have been billed without an answer arriving")
    first = (
        f"{progress.found} answers from before, {progress.done} new, {progress.failed} failed; {progress.calls} calls"
    )
    return "\n".join([f"{first}, {_used(model, progress.tokens_in, progress.tokens_out)}", *details])


def _used(model: str, tokens_in: int, tokens_out: int, batch: bool = False) -> str:
    """Tokens and, where the price is known, their cost."""
    cost = prices().cost(model, tokens_in, tokens_out, batch=batch)
    price = "" if cost is None else f", about {cost:.2f} {prices().currency}{' as a batch' if batch else ''}"
    return f"{tokens_in:,} tokens in, {tokens_out:,} out{price}"
