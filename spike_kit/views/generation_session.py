"""Asking a language model from a notebook: what it will cost, three sample prompts, start, live progress, stop."""

import threading
from collections.abc import Callable
from typing import Any

from spike_kit.base.errors import SpikeKitError
from spike_kit.profiles.generate import Generation, Outcome
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.llm import prices
from spike_kit.views.safe import html_table, html_text
from spike_kit.views.widgets import Panel


class GenerationSession:
    """A run of a `Generation` in a thread of its own, so that the notebook stays usable.

    Parameters
    ----------
    generation
        What to ask.

    Attributes
    ----------
    estimate
        Calls, tokens and costs before the start.
    running
        Whether calls are being made.
    changed
        Called from the thread about twice a second and at the end.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation, self.estimate = generation, generation.estimate()
        self.progress = Progress(total=int(self.estimate.table[["answered", "to ask"]].to_numpy().sum()))
        self.outcome: Outcome | None = None
        self.error = ""
        self.running = False
        self.changed: Callable[[], None] = lambda: None
        self._stop, self._thread = threading.Event(), threading.Thread()

    def start(self) -> None:
        """Begin, or go on after a stop or an error; answers from before are not asked again."""
        if self.running:
            return
        self.progress, self.outcome, self.error = Progress(total=self.progress.total), None, ""
        self.running = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spike_kit generation", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Make no further calls; those in flight are awaited and kept."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for the end of the run."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        try:
            self.outcome = self.generation.run(self.progress, self._stop, lambda *_: self.changed())
        except SpikeKitError as error:
            self.error = str(error)
        finally:
            self.running = False
            self.changed()

    @property
    def share(self) -> float:
        """Share of the questions that have an answer, in [0, 1]."""
        return min(1.0, (self.progress.found + self.progress.done) / max(self.progress.total, 1))

    @property
    def status(self) -> str:
        """How far the run is, in one line."""
        seen = self.progress
        spent = prices().used(self.generation.config.llm.model, seen.tokens_in, seen.tokens_out)
        counts = f"{seen.found + seen.done:,} of {seen.total:,} answered, {seen.failed:,} failed; {spent}"
        if self.error:
            return f"stopped by an error: {self.error} ({counts})"
        if self.running:
            return counts
        if self.outcome is None:
            return f"not started: {self.estimate.calls:,} calls to make"
        if self.outcome.path is not None:
            return f"complete: {self.outcome.path.name} is written ({counts})"
        return f"{'stopped' if seen.stopped else 'ended with gaps'}; start goes on from here ({counts})"

    def panel(self) -> Any:
        """Estimate, costs, sample prompts, start, stop and progress."""
        panel = Panel(self)

        def refresh() -> None:
            panel["bar"].value = self.share
            panel["bar"].bar_style = "danger" if self.error else "success" if self.share == 1 else ""
            panel["status"].value = html_text(self.status)
            panel["start"].disabled, panel["stop"].disabled = self.running, not self.running

        def start(_: object) -> None:
            self.start()
            refresh()

        self.changed = refresh
        listed, costs, html = prices(), self.estimate.costs, panel.widgets.HTML
        known = html_table(costs.round(2).astype(object).where(costs.notna(), "?"))
        note = f"<p>prices of {listed.as_of}, from {html_text(listed.path.name)}; tokens are estimated</p>"
        samples = {f"{prompt.subject} {prompt.id}": html_text(prompt.text) for prompt in self.estimate.samples}
        texts = [html(f"<pre style='white-space: pre-wrap'>{text}</pre>") for text in samples.values()]
        prompts = panel.widgets.Accordion(texts, titles=tuple(samples))
        buttons = panel.row(
            panel.add("start", "Button", start, tooltip="Ask what has no answer yet"),
            panel.add("stop", "Button", lambda _: self.stop(), tooltip="Finish calls in flight and keep everything"),
            panel.add("bar", "FloatProgress", max=1.0),
        )
        tables = html(html_table(self.estimate.table)), html(known + note)
        box = panel.box(*tables, prompts, buttons, *panel.texts("status"))
        refresh()
        return box
