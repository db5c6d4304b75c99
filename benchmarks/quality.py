"""How long a preset trains until it is as good as another one ever gets, on validation."""

import sys
from operator import itemgetter
from typing import Any

from pydantic import Field

from benchmarks.common import Measured, Setup, alone, main
from spike_kit.base.devices import resolve_device
from spike_kit.data.dataset import Dataset
from spike_kit.experiments.run import RunConfig, train
from spike_kit.experiments.search import VALID
from spike_kit.models import find_preset
from spike_kit.training.checkpoint import EpochRow


class QualitySetup(Setup):
    """What `bench_quality` measures."""

    model: str = "spike"
    """Name of a model that is trained."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting that is timed."""
    plain: str = "released_code"
    """Named setting that is trained plainly, to the end."""
    plain_epochs: int = Field(default=40, ge=1)
    """Epochs of the plain run."""
    device: str = "auto"
    """Device: auto (CUDA where present), cpu, cuda or cuda:N."""
    seed: int = 0
    """Seed of both."""


def bench_quality(setup: QualitySetup) -> Measured:
    """Train two presets, and find when one is as good on validation as the other ever gets (released_code, 40 epochs).

    Each training has a process of its own; times include validation, not the reading of the data.
    """
    for preset in (setup.plain, setup.preset):
        find_preset(setup.model, preset)
    setup = setup.replace(device=str(resolve_device(setup.device)))
    training = {"epochs": setup.plain_epochs, "learning_rate": 1e-3, "batch_size": 1024}
    plain, ours = alone(_trained, setup, setup.plain, training), alone(_trained, setup, setup.preset, {})
    seconds = plain[-1]["seconds"]
    goal, best = (max((row for row in rows if VALID in row), key=itemgetter(VALID)) for rows in (plain, ours))
    reached = next((row for row in ours if row.get(VALID, 0) >= goal[VALID]), None)
    return {
        "dataset": (setup.dataset, "data set"),
        "plain": (setup.plain, "named setting that was trained plainly"),
        "plain_seconds": (round(seconds, 2), "time of its training"),
        "plain_best_ndcg": (round(goal[VALID], 4), "best NDCG@20 on validation it reached"),
        "plain_best_seconds": (round(goal["seconds"], 2), "when it reached it"),
        "preset": (setup.preset, "named setting that was timed"),
        "seconds": (reached and round(reached["seconds"], 2), "when it was at least as good; none if it never was"),
        "ratio": (reached and round(seconds / reached["seconds"], 2), "time of the plain run by that time"),
        "epochs": (reached and reached["epoch"], "epochs until then"),
        "best_ndcg": (round(best[VALID], 4), "best NDCG@20 on validation it reached in the end"),
        "best_seconds": (round(best["seconds"], 2), "when it reached that"),
    }


def _trained(setup: QualitySetup, preset: str, training: dict[str, Any]) -> list[EpochRow]:
    """What happened in each epoch of a training."""
    config = RunConfig(model=setup.model, dataset=setup.dataset, preset=preset, training=training, seed=setup.seed)
    return train(config, Dataset.open(setup.dataset), setup.device)[1].rows


if __name__ == "__main__":
    sys.exit(main(QualitySetup, bench_quality))
