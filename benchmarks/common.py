"""What the benchmarks share: a command line over a class of settings, a process of its own, rounds, a table or JSON."""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pandas as pd
import tyro
from tqdm.auto import tqdm

from spike_kit.base import paths, storage
from spike_kit.base.config import Config
from spike_kit.base.errors import SpikeKitError
from spike_kit.base.processes import fresh_process

GIB = 2**30

Measured = dict[str, tuple[Any, str]]
"""What was measured: value and meaning of each number by its name."""
Result = TypeVar("Result")
SetupT = TypeVar("SetupT", bound="Setup")


class Setup(Config):
    """Settings of a benchmark; each is an option of its command line."""

    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False
    """Print JSON instead of a table: one object, or a list of them where the table has several rows."""


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Run a function in a fresh process, whose memory is its alone."""
    with fresh_process() as pool:
        return pool.submit(function, *arguments).result()


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds that something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def in_turns(ours: Callable[[], float], floor: Callable[[], float], rounds: int = 5) -> tuple[float, float, float]:
    """Let two things take turns that say their seconds; returns the median of each, and of the ratios in a round."""
    seconds = [(ours(), floor()) for _ in tqdm(range(rounds), desc="bench", unit="round")]
    median = statistics.median
    return (
        median(our for our, _ in seconds),
        median(low for _, low in seconds),
        median(our / low for our, low in seconds),
    )


@contextmanager
def temporary_home() -> Iterator[Path]:
    """Make a temporary folder the home of data/, for fresh processes too; it lies on the same disk and is removed."""
    before = os.environ.get(paths.HOME_VARIABLE)
    with storage.scratch_folder(paths.data_root()) as folder:
        os.environ[paths.HOME_VARIABLE] = str(folder)
        try:
            yield folder
        finally:
            del os.environ[paths.HOME_VARIABLE]
            os.environ.update({} if before is None else {paths.HOME_VARIABLE: before})


def main(
    setup_class: type[SetupT],
    bench: Callable[[SetupT], Measured | list[Measured]],
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the settings, measure and print; returns the exit code."""
    try:
        setup = tyro.cli(setup_class, args=arguments, prog=f"python -m {bench.__module__}", description=bench.__doc__)
        measured = bench(setup)
    except SpikeKitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    several = isinstance(measured, list)
    rows = [{name: value for name, (value, _) in row.items()} for row in (measured if several else [measured])]
    if setup.as_json:
        print(json.dumps(rows if several else rows[0]))
    elif several:
        print(pd.DataFrame(rows).to_string(index=False))
    else:
        for name, (value, meaning) in measured.items():
            print(f"{name:22} {value!s:<12} {meaning}")
    return 0
