"""What only a GPU can tell of the kit, in under ten minutes: whether it computes the same there, and how fast.

Needs no network and no data set. Stages run one after the other in a process beside this one: a stage that raises, ends
its process or hangs is reported, and the next begins in a fresh process. Prints a table in Markdown, a row as soon as a
stage ends, and writes all numbers to a JSON file.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import tyro

from benchmarks import gpu_checks, gpu_speed
from benchmarks.gpu_checks import Found, GpuSetup, SkippedError
from spike_kit.base import storage
from spike_kit.base.devices import resolve_device
from spike_kit.base.errors import DeviceError, SpikeKitError

PASSED, FAILED, SKIPPED = "passed", "FAILED", "skipped"

Outcome = dict[str, Any]
"""Of one stage: ``status``, ``seconds``, what it ``said`` in a sentence, its numbers (``found``), a ``traceback``."""


class Stage(NamedTuple):
    """What is done, and for how many seconds at most."""

    work: Callable[[GpuSetup], Found]
    seconds: float = 120


STAGES: dict[str, Stage] = {
    "machine": Stage(gpu_checks.machine),
    "first product": Stage(gpu_checks.first_product),
    "parity": Stage(gpu_checks.parity),
    "determinism": Stage(gpu_checks.determinism, 180),
    "resume": Stage(gpu_checks.resume),
    "synchronisations": Stage(gpu_speed.synchronisations),
    "kernels": Stage(gpu_speed.kernels),
    "steps, ml-100k": Stage(gpu_speed.small_steps),
    "steps, amazon-book": Stage(gpu_speed.large_steps, 240),
    "evaluation": Stage(gpu_speed.evaluation),
    "beyond": Stage(gpu_checks.beyond),
    "processes": Stage(gpu_checks.processes, 200),
}
"""Every stage, in their order."""


class Worker:
    """A process that does one stage after the other."""

    def __init__(self, setup: GpuSetup) -> None:
        context = get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, setup))
        self.process.start()
        other.close()
        self.pipe.recv()

    def do(self, stage: Stage, seconds: float) -> Outcome:
        """Outcome of a stage, which fails if the process ends, or after so many seconds."""
        self.pipe.send(stage.work)
        if not self.pipe.poll(seconds):
            self.process.kill()
            return _failure(f"it took more than {seconds:.0f} seconds")
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            return _failure(f"its process ended with exit code {self.process.exitcode}")

    def end(self) -> None:
        """End the process, which has little time to do so by itself."""
        self.pipe.close()
        self.process.join(5)
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, setup: GpuSetup) -> None:
    """Do what is sent until nobody sends any more."""
    pipe.send("ready")
    while True:
        try:
            work = pipe.recv()
        except EOFError:
            return
        pipe.send(_outcome(work, setup))


def _outcome(work: Callable[[GpuSetup], Found], setup: GpuSetup) -> Outcome:
    try:
        said, found = work(setup)
    except SkippedError as reason:
        return {"status": SKIPPED, "said": str(reason), "found": {}, "traceback": ""}
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        return _failure(said, getattr(error, "found", {}), traceback.format_exc())
    return {"status": PASSED, "said": said, "found": found, "traceback": ""}


def _failure(said: str, found: dict[str, Any] | None = None, trace: str = "") -> Outcome:
    return {"status": FAILED, "said": said, "found": found or {}, "traceback": trace}


def report(setup: GpuSetup, stages: Mapping[str, Stage]) -> bool:
    """Do all stages, print and write what they found; returns whether none failed."""
    started, outcomes, worker = time.perf_counter(), dict[str, Outcome](), None
    print(_row("stage", "result", "seconds", "what was found"), _row(*["---"] * 4), sep="\n", flush=True)
    try:
        for name, stage in stages.items():
            worker = worker or Worker(setup)
            begun = time.perf_counter()
            left = 60 * setup.minutes - (begun - started)
            outcome = worker.do(stage, min(stage.seconds, left)) if left > 0 else _failure("there was no time left")
            if outcome["status"] == FAILED:
                worker.end()
                worker = None
            outcome["seconds"] = round(time.perf_counter() - begun, 1)
            outcomes[name] = outcome
            said = " ".join(outcome["said"].split())[:400]
            print(_row(name, outcome["status"], outcome["seconds"], said), flush=True)
            _write(setup, outcomes, time.perf_counter() - started)
    finally:
        if worker is not None:
            worker.end()
    print(_steps_table(outcomes), f"all numbers: {setup.out}", sep="\n")
    return all(outcome["status"] != FAILED for outcome in outcomes.values())


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _steps_table(outcomes: Mapping[str, Outcome]) -> str:
    """Times of all steps that were measured, in Markdown; empty where there are none."""
    columns = {"median_ms": "ms, median", "min_ms": "ms, min", "peak_gib": "peak, GiB"}
    columns |= {"floor_ms_estimate": "floor on an H200, ms (estimate)"}
    found = [pair for outcome in outcomes.values() for pair in outcome["found"].items()]
    rows = {name: row for name, row in found if isinstance(row, dict) and columns.keys() <= row.keys()}
    if not rows:
        return ""
    cells = (_row(name, *("-" if row[key] is None else row[key] for key in columns)) for name, row in rows.items())
    return "\n".join(["", _row("step", *columns.values()), _row(*["---"] * (1 + len(columns))), *cells, ""])


def _write(setup: GpuSetup, outcomes: dict[str, Outcome], seconds: float) -> None:
    settings = {"device": setup.device, "quick": setup.quick, "made": storage.now(), "seconds": round(seconds, 1)}
    with storage.atomic_file(setup.out) as file:
        file.write_text(json.dumps({**settings, "stages": outcomes}, indent=1, default=str) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the settings and do all stages; returns the exit code, 1 if a stage failed or there is no such device."""
    setup = tyro.cli(GpuSetup, args=arguments, prog="python -m benchmarks.gpu", description=__doc__)
    try:
        setup = setup.replace(device=str(resolve_device(setup.device)))
        return 0 if report(setup, STAGES) else 1
    except DeviceError as error:
        print(
            f"error: {error.message}\n  -> to see without a GPU that all stages run: make gpu DEVICE=cpu",
            file=sys.stderr,
        )
    except SpikeKitError as error:
        print(f"error: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
