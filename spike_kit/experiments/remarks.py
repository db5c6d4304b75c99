"""What speaks against taking the numbers of a finished run as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spike_kit.training.checkpoint import MONITOR

if TYPE_CHECKING:
    from spike_kit.experiments.run import Run

FEW_STEPS = 100
"""Steps of the optimiser below which a training is remarked upon."""
FEW_ITEMS = 0.1
"""Share of the items that could be in some list; below it, lists count as collapsed."""

_VALID = f"valid_{MONITOR}"


def remarks(run: Run) -> dict[str, str]:
    """What a run folder says against taking its numbers as they are: a short text each, by kind.

    limit: the training ended at its largest number of epochs, before patience could end it or with the best epoch
    among the last tenth. steps: it had fewer than `FEW_STEPS`. lists: those of all users hold less than `FEW_ITEMS` of
    the items that they could. What a folder or an archive does not hold (steps, lists, curve) is not remarked upon.
    """
    training, metrics, found = run.config["training_settings"], run.metrics, dict[str, str]()
    epochs, limit, best = metrics["epochs"], training["epochs"], metrics["best_epoch"]
    if training["keep"] == "last":
        curve = run.history.dropna(subset=[_VALID]) if _VALID in run.history else run.history
        best = int(curve["epoch"].iloc[curve[_VALID].argmax()]) if len(curve) else 0
    if epochs == limit and best > limit - max(training["patience"] * training["eval_every"], limit / 10):
        found["limit"] = f"best epoch {best} of at most {limit}"
    if epochs and metrics.get("steps", FEW_STEPS) < FEW_STEPS:
        found["steps"] = f"few steps ({metrics['steps']})"
    listed = metrics.get("listed")
    if listed and run.config["model"] != "popularity" and listed["items"] < FEW_ITEMS * listed["of"]:
        found["lists"] = f"lists hold {listed['items']} of {listed['of']} items"
    return found
