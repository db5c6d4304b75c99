"""Choice of the device, deterministic arithmetic, and what the machine has."""

from __future__ import annotations

import os
import re
import resource
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch

from spike_kit.base import distributed
from spike_kit.base.errors import DeviceError


def resolve_device(device: str = "auto", gpu: int | None = None) -> torch.device:
    """Turn what the user typed into a device that exists; under ``torchrun`` each process gets a GPU of its own.

    Parameters
    ----------
    device
        ``"auto"`` (CUDA where present, else CPU), ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    gpu
        Short for ``device="cuda:N"``; wins over ``device``.

    Raises
    ------
    DeviceError
        If the device is unknown or not present on this machine, or one GPU is asked for by several processes.
    """
    here = distributed.place()
    if gpu is not None:
        device = f"cuda:{gpu}"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,2})?", device):
        raise DeviceError(f"unknown device {device!r}", "use cpu, cuda, cuda:N or auto")
    chosen = torch.device(device)
    if chosen.type == "cuda":
        if here.size > 1 and chosen.index is not None:
            raise DeviceError(
                f"{here.size} processes of torchrun cannot all use {chosen}",
                "leave --gpu out: process N of a machine uses cuda:N",
            )
        chosen = torch.device("cuda", here.local_rank) if here.size > 1 else chosen
        _check_cuda(chosen)
    return chosen


def _check_cuda(device: torch.device) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        build = torch.version.cuda or "none, this is a CPU build of torch"
        raise DeviceError(
            f"there is no CUDA device here (CUDA of torch {torch.__version__}: {build})",
            "leave --gpu out to train on the CPU",
        )
    if (device.index or 0) >= count:
        raise DeviceError(
            f"there is no {device}: this machine has {count} CUDA device(s), cuda:0 to cuda:{count - 1}",
            "choose one of them with --gpu N",
        )


@contextmanager
def deterministic() -> Iterator[None]:
    """Ask torch for bit-stable kernels inside the block (cuBLAS gets the workspace it needs for that).

    New tensors are not filled with NaN first, as torch would do: that costs a tenth of a step and changes no result.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def describe_device(device: torch.device) -> str:
    """Name a device for the run folder, for example ``"cpu (2 threads)"``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def free_memory(device: torch.device) -> int:
    """Memory of a device that is free now, in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


_PROC = Path("/proc/self")
_RESET_PEAK = "5"
"""What Linux wants to read in ``clear_refs`` (proc(5)) to count the largest resident memory from now on."""


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
        (_PROC / "clear_refs").write_text(_RESET_PEAK, encoding="ascii")
