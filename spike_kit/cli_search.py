"""The command that searches for settings."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from tyro.conf import UseAppendAction

from spike_kit.base import paths
from spike_kit.cli_options import OnDevice
from spike_kit.experiments.run import RunConfig
from spike_kit.experiments.search import save_tuned, search
from spike_kit.experiments.search_space import parse_fixed, with_settings
from spike_kit.profiles.encode import DEFAULT_ENCODER
from spike_kit.profiles.template import TEMPLATE

SHOWN = 10
"""Trials in the printed table."""


@dataclass(frozen=True, kw_only=True)
class Search(OnDevice):
    """Search for settings on validation alone, by quality or, with --target, by time to a quality.

    Trials are kept in data/searches: whatever ends a search, the same command goes on and loses only the trial it was
    at. Prints the best trials and the command that trains with the best settings.
    """

    model: str = "spike"
    """Model to search for."""
    dataset: str = "ml-100k"
    """Data set: a name under data/ or the path of a data-set folder."""
    preset: str = "recommended"
    """Named setting that gives what is not searched."""
    trials: int = 30
    """Trials in all, those of earlier sittings included."""
    timeout: float | None = None
    """Seconds after which no further trial starts."""
    trial_seconds: float | None = None
    """Seconds after which a trial ends with what it reached."""
    target: float | None = None
    """Validation NDCG@20 to reach in the least time; default: search for the highest."""
    fix: UseAppendAction[tuple[str, ...]] = ()
    """A setting that is held fixed, as name=value; may be repeated, for example: --fix loss=bpr --fix epochs=50."""
    save: bool = False
    """Keep the best settings as the preset `tuned` of this model and data set."""
    seed: int = 0
    """Seed of the trials: initialisation, batches, negatives, draws, and what is tried."""
    profiles: str = TEMPLATE
    """Profile set whose vectors a text model uses."""
    encoder: str = DEFAULT_ENCODER
    """Text encoder of these vectors."""

    def __call__(self) -> None:
        """Search, or take up an earlier search, and print what was found."""
        device = self.chosen_device()
        config = RunConfig(
            model=self.model,
            dataset=self.dataset,
            preset=self.preset,
            seed=self.seed,
            profiles=self.profiles,
            encoder=self.encoder,
        )
        fixed = with_settings(config, parse_fixed(config, self.fix))
        result = search(
            fixed,
            self.trials,
            device=device,
            target=self.target,
            timeout=self.timeout,
            trial_seconds=self.trial_seconds,
        )
        shown = result.trials.head(SHOWN)
        print(shown.to_string(index=False, float_format=lambda number: f"{number:.4g}"))
        if len(result.trials) > len(shown):
            print(f"({len(shown)} best of {len(result.trials)} trials)")
        print(f"\n{train_command(result.config)}")
        if self.save:
            print(f"written    {paths.shown(save_tuned(fixed, result, self.trial_seconds))}")


def train_command(config: RunConfig) -> str:
    """Command line that trains with a configuration."""
    options = {"model": config.model, "preset": config.preset, "dataset": config.dataset}
    usual = RunConfig()
    options |= {
        name: str(getattr(config, name))
        for name in ("seed", "profiles", "encoder")
        if getattr(config, name) != getattr(usual, name)
    }
    words = ["spike-kit", "train", *(word for name, value in options.items() for word in (f"--{name}", value))]
    for name, value in {**config.settings, **config.training}.items():
        option = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return shlex.join(words)
