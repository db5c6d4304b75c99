"""Stages of `benchmarks.gpu` that measure: waiting, kernels, steps, evaluation."""

import gc
import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import spike_kit
from benchmarks.common import GIB, seconds_of
from benchmarks.evaluation import synthetic_task
from benchmarks.gpu_checks import TOLERANCE, CheckError, Found, GpuSetup, build, each, inputs, moved, recommended
from benchmarks.train import timed_steps
from spike_kit.base import paths
from spike_kit.base.devices import deterministic, peak_bytes, reset_peak
from spike_kit.data.dataset import Dataset
from spike_kit.data.graph import Graph
from spike_kit.evaluation.ranking import evaluate
from spike_kit.models import find_model, find_preset
from spike_kit.models.base import FixedEmbeddings, TrainedRecommender

FLOORS = {
    "ml-100k-sized/spike/recommended": "0.2 to 0.3",
    "amazon-book/spike/recommended": "3 (softmax in TF32) to 9 (in float32)",
    "evaluation": "3",
}
"""Least times on one H200 in ms: estimates from bytes (4.3 TB/s) and products (45 TFLOP/s in float32), not measured."""

WAITING = {
    *("nonzero", "_local_scalar_dense", "_unique", "_unique2", "unique_dim", "unique_consecutive"),
    *("masked_select", "bincount", "equal", "is_nonzero"),
}
"""Operators whose result, or its size, the host waits for on a GPU."""

TIMED = (*(("spike", preset) for preset in find_model("spike").presets), ("lightgcn", "recommended"))
"""Models and presets whose steps are timed."""


def synchronisations(setup: GpuSetup) -> Found:
    """Count where one step makes the host wait for the GPU, by line of the kit; on the CPU: where it would."""

    def count(graph: str, model: str, preset: str) -> dict[str, int]:
        steps = _steps(setup, graph, model, preset)
        for _ in islice(steps, 2):
            pass
        counted: Counter[str] = Counter()
        with deterministic(), waits(torch.device(setup.device), counted):
            next(steps)
        return dict(counted.most_common())

    spike = [(size.name, "spike", "recommended") for size in (setup.small, setup.large)]
    forms = [*spike, *((setup.small.name, *form) for form in (*recommended(), *TIMED))]
    found = each(count, dict.fromkeys(forms))
    totals = {name: sum(lines.values()) for name, lines in found.items()}
    shown = ", ".join(f"{totals['/'.join(form)]} on {form[0]}" for form in spike)
    most = max(totals, key=lambda name: totals[name])
    said = f"a step of SPiKE, recommended: {shown}; most: {totals[most]} ({most})"
    return said, {name: {"total": totals[name], "lines": lines} for name, lines in found.items()}


@contextmanager
def waits(device: torch.device, counted: Counter[str]) -> Iterator[None]:
    """Count what waits for a device inside the block, by line of the kit.

    CUDA says itself where it waits. Elsewhere operators are counted (`WAITING`), and masks as indices; what reads a
    whole tensor (``tolist``) is not seen there.
    """
    if device.type != "cuda":
        with _CountedOperators(counted):
            yield
        return

    def note(message: Warning | str, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            counted[_own_line()] += 1

    # With one thread the backward pass has the stack of the one who asked for it.
    with warnings.catch_warnings(), torch.autograd.set_multithreading_enabled(False):
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class _CountedOperators(TorchDispatchMode):
    def __init__(self, counted: Counter[str]) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = str(func).split(".")[1]
        masked = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in WAITING or masked or (str(func) == "aten.repeat_interleave.Tensor" and not kwargs):
            self.counted[f"{_own_line()} {name}"] += 1
        return func(*args, **kwargs)


def _own_line() -> str:
    """File and line of the kit that is innermost on the stack."""
    package = Path(spike_kit.__file__).parent
    for frame, line in traceback.walk_stack(None):
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(package):
            return f"{path.relative_to(package).as_posix()}:{line}"
    return "outside the kit"


def kernels(setup: GpuSetup) -> Found:
    """Profile one step: how many kernels, how long they keep the GPU busy, and which take longest."""
    on_gpu = torch.device(setup.device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def look(graph: str, model: str, preset: str) -> dict[str, Any]:
        steps = _steps(setup, graph, model, preset)
        for _ in islice(steps, 3):
            pass
        with deterministic(), profile(activities=activities) as profiler:
            seconds = next(steps)
        by_name, launched = Counter[str](), 0
        for event in profiler.events() or []:
            # Ranges that an optimiser marks are no kernels; on the CPU one operator holds others.
            if not on_gpu or (event.device_type.name == "CUDA" and not getattr(event, "is_user_annotation", False)):
                launched += 1
                busy = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
                by_name[event.name[:90]] += busy
        if not launched:
            raise CheckError("the profiler saw no kernel")
        return {
            "launched": launched,
            "busy_ms": _ms(sum(by_name.values()) / 1e6),
            "profiled_step_ms": _ms(seconds),
            "top_ms": {name: _ms(microseconds / 1e6) for name, microseconds in by_name.most_common(12)},
        }

    forms = [
        (size.name, model, "recommended") for size in (setup.small, setup.large) for model in ("spike", "lightgcn")
    ]
    found = each(look, forms)
    what = "kernels" if on_gpu else "operators"
    shown = (f"{name}: {row['launched']} {what}, {row['busy_ms']} ms busy" for name, row in found.items())
    return "; ".join(shown), found


def small_steps(setup: GpuSetup) -> Found:
    """Time steps on a graph of the size of ml-100k, and on ml-100k with its vectors where it is there."""
    real = [] if setup.quick or "ml-100k" not in paths.known_datasets() else ["ml-100k"]
    return _times(setup, [setup.small.name, *real])


def large_steps(setup: GpuSetup) -> Found:
    """Time steps on a graph of the size of amazon-book."""
    return _times(setup, [setup.large.name])


def _times(setup: GpuSetup, graphs: list[str]) -> Found:
    device, warm_up, n_steps = torch.device(setup.device), *((2, 3) if setup.quick else (5, 20))

    def measure(graph: str, model: str, preset: str) -> dict[str, Any]:
        shuffles: list[float] = []
        gc.collect()
        steps = _steps(setup, graph, model, preset, shuffles)
        reset_peak(device)
        with deterministic():
            for _ in islice(steps, warm_up):
                pass
            seconds = list(islice(steps, n_steps))
        return {
            "median_ms": _ms(statistics.median(seconds)),
            "min_ms": _ms(min(seconds)),
            "shuffle_ms": _ms(statistics.median(shuffles)),
            "peak_gib": _gib(device),
            "floor_ms_estimate": FLOORS.get(f"{graph}/{model}/{preset}"),
        }

    found = each(measure, [(graph, *form) for graph in graphs for form in TIMED])
    shown = (f"{found[f'{graph}/spike/recommended']['median_ms']} ms on {graph}" for graph in graphs)
    return f"a step of SPiKE, recommended: {', '.join(shown)}", found


def evaluation(setup: GpuSetup) -> Found:
    """Time the full ranking of 10,000 users by 25,000 items beside the bare products; its means must be the CPU's."""
    device, (users, items) = torch.device(setup.device), (500, 2000) if setup.quick else (10_000, 25_000)
    recommender, task = synthetic_task(users, items)
    expected, _ = evaluate(recommender, task)
    recommender = FixedEmbeddings(recommender.users.to(device), recommender.items.to(device))
    task = moved(task, device)
    found, _ = evaluate(recommender, task)
    apart = max(abs(found[name] - value) for name, value in expected.items())
    if not apart <= TOLERANCE:
        raise CheckError(f"a mean differs by {apart:.1e} from the CPU's, allowed are {TOLERANCE:.0e}")
    reset_peak(device)

    def products() -> None:
        for part in recommender.users.split(2048):
            torch.mm(part, recommender.items.T)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    ours = [seconds_of(lambda: evaluate(recommender, task)) for _ in range(5)]
    bare = [seconds_of(products) for _ in range(5)]
    numbers = {
        "users": users,
        "items": items,
        "median_ms": _ms(statistics.median(ours)),
        "min_ms": _ms(min(ours)),
        "bare_products_ms": _ms(statistics.median(bare)),
        "peak_gib": _gib(device),
        "floor_ms_estimate": None if setup.quick else FLOORS["evaluation"],
        "largest_difference": apart,
    }
    said = f"{users} users by {items} items: {numbers['median_ms']} ms, bare products {numbers['bare_products_ms']} ms"
    return said, numbers


def _steps(
    setup: GpuSetup, graph: str, model: str, preset: str, shuffles: list[float] | None = None
) -> Iterator[float]:
    """Steps without end on a graph of the settings or a data set, each with its seconds (see `timed_steps`)."""
    sizes = {size.name: size for size in (setup.small, setup.large)}
    if graph in sizes:
        given = inputs(sizes[graph])
    else:
        data = Dataset.open(graph)
        given = Graph.from_tables(data.tables), data.vectors()
    built = build(model, preset, given, setup.device)
    assert isinstance(built, TrainedRecommender)
    batch_size = find_preset(model, preset).training.batch_size
    return timed_steps(built, built.graph, batch_size, [] if shuffles is None else shuffles)


def _ms(seconds: float) -> float:
    return float(f"{1e3 * seconds:.4g}")


def _gib(device: torch.device) -> float | None:
    """Largest memory that tensors took on CUDA; none elsewhere."""
    return round(peak_bytes(device) / GIB, 3) if device.type == "cuda" else None
