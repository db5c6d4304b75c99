"""Choice of the device, deterministic arithmetic, and what the machine has."""

import os
import platform
import re
import resource
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor

from spike_kit import __version__
from spike_kit.base import distributed, launch, paths
from spike_kit.base.errors import DeviceError

_GIB = 2**30


def resolve_device(device: str = "auto") -> torch.device:
    """Turn what the user typed into a device that exists; under ``torchrun`` each process gets a GPU of its own.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA where present, else CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises
    ------
    DeviceError
        If the device is unknown or not present on this machine, or one GPU is asked for by several processes.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", device):
        raise DeviceError(f"unknown device {device!r}", "use cpu, cuda, cuda:N or auto")
    chosen, here = torch.device(device), launch.place()
    if chosen.type == "cpu":
        return chosen
    if here.size > 1:
        if chosen.index is not None:
            problem = f"{here.size} processes of torchrun cannot all use {chosen}"
            raise DeviceError(problem, "leave --gpu out: process N of a machine uses cuda:N")
        chosen = torch.device("cuda", here.local_rank)
    with warnings.catch_warnings(action="ignore"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (chosen.index or 0) >= count:
        build = torch.version.cuda or "none, this is a CPU build of torch"
        problem = f"there is no CUDA device here (CUDA of torch {torch.__version__}: {build})"
        if count:
            problem = f"there is no {chosen}: this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}"
        raise DeviceError(problem, "leave --gpu out and use --device auto to train on what there is")
    return chosen


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for bit-stable kernels inside the block (``spike_kit/__init__.py`` gives cuBLAS what they need).

    New tensors are not filled with NaN first, as torch would do: that costs a tenth of a step and changes no result.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def tf32(active: bool) -> Iterator[None]:
    """Let CUDA round the factors of float32 products to the 10 bits of TF32 inside the block, where asked for.

    Who has allowed it already, by whichever of torch's two switches, keeps it so.
    """
    matmul: Any = torch.backends.cuda.matmul
    allowed = matmul.fp32_precision == "tf32" if hasattr(matmul, "fp32_precision") else matmul.allow_tf32
    changes = active and not allowed
    if changes:
        matmul.allow_tf32 = True
    try:
        yield
    finally:
        if changes:
            matmul.allow_tf32 = False


def sent(x: Tensor, device: torch.device) -> Tensor:
    """Copy of a tensor in main memory on a device; a GPU is not waited for."""
    return (x.pin_memory() if device.type == "cuda" else x).to(device, non_blocking=True)


class Chunks(NamedTuple):
    """How much of something passes at once on a kind of device; a setting such as ``budget_mib`` may ask for less."""

    pair_bytes: int
    """Largest table of (relation, tail) pairs of `spike_kit.models.edges`, in bytes."""
    text_bytes: int
    """Largest piece of the text projection, in bytes."""
    loss_scores: int
    """Scores that the softmax losses hold at once."""
    ranked_scores: int
    """Scores that the evaluation holds at once (users of a chunk times items)."""
    bag_rows: int
    """Rows that a sparse product sums one after another; a longer sum is cut into pieces."""


CHUNKS = {
    "cpu": Chunks(2**23, 2**24, 2**20, 2_000_000, sys.maxsize),
    "cuda": Chunks(sys.maxsize, sys.maxsize, 2**23, 2**26, 256),
}
"""On a CPU what is larger leaves the cache: a step takes twice as long. A GPU pays for every piece that it starts, and
gives a sum to one warp, which walks it alone. These are no shares of the free memory: the last bits depend on them."""


def chunks(device: torch.device) -> Chunks:
    """Sizes for a device; where none are known, those of the CPU."""
    return CHUNKS.get(device.type, CHUNKS["cpu"])


def describe_device(device: torch.device) -> str:
    """Name a device for the run folder, for example ``"cpu (2 threads)"``."""
    what = distributed.device_model(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device} ({what})"


def free_memory(device: torch.device) -> int:
    """Memory of a device that is free now, in bytes; on CUDA with what torch holds of it and no tensor uses."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return psutil.virtual_memory().available


_PROC = Path("/proc/self")


def peak_bytes(device: torch.device | None = None) -> int:
    """Largest memory since `reset_peak`, or since the start: resident memory of this process, or tensors on CUDA.

    The interpreter and its libraries are included. Linux keeps the number in /proc; what getrusage tells there may be
    the peak of the process that started this one.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = _PROC / "status"
    found = re.search(r"VmHWM:\s*(\d+)", status.read_text(encoding="utf-8")) if status.is_file() else None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def reset_peak(device: torch.device | None = None) -> None:
    """Count `peak_bytes` from now on, where the system can (elsewhere it stays that of the whole process)."""
    if device is not None and device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        (_PROC / "clear_refs").write_text("5", encoding="ascii")  # proc(5): 5 resets the largest resident memory


def describe_machine() -> str:
    """Describe this machine and what of the kit is installed, a line each; keys are present or absent, never shown."""
    memory = psutil.virtual_memory()
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.device("cpu"), *(torch.device("cuda", number) for number in range(n_gpus))]
    facts = {
        "spike_kit": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "devices": ", ".join(map(describe_device, devices)),
        "memory": f"{memory.available / _GIB:.1f} GiB free of {memory.total / _GIB:.1f} GiB",
        "folder": str(paths.home()),
        **_packages(),
        **{key: "present" if os.environ.get(key) else "absent" for key in ("OPENAI_API_KEY", "HF_TOKEN")},
        "data sets": ", ".join(paths.known_datasets()) or "none yet: spike-kit fetch ml-100k, spike-kit build ml-100k",
    }
    return "\n".join(f"{what}: {said}" for what, said in facts.items())


def _packages() -> dict[str, str]:
    """Versions of the packages that the kit asks for, by extra; nothing in a checkout that is not installed."""
    found: dict[str, list[str]] = {}
    for requirement in next((kit.requires or [] for kit in metadata.distributions(name="spike_kit")), []):
        package, extra = re.split(r"[^\w-]", requirement)[0], requirement.partition("extra == ")[2].strip("\"'")
        version = next((one.version for one in metadata.distributions(name=package)), "absent")
        if extra not in ("all", "dev"):
            found.setdefault(f"[{extra}]" if extra else "packages", []).append(f"{package} {version}")
    return {group: ", ".join(packages) for group, packages in found.items()}
