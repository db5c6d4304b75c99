"""Several processes that train one model: started by ``torchrun``, one per device; without it, all of this is idle.

Messages between processes are tensors of numbers or of JSON bytes, never pickles.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from spike_kit.base.errors import SpikeKitError, TrainingError

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process (the first one validates meanwhile); after it, all of them end with an error."""

Value = TypeVar("Value")


@dataclass(frozen=True)
class Place:
    """Where ``torchrun`` put this process: its number, and its number on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """Place of this process; alone where ``torchrun`` did not start it."""
    if not dist.is_available() or not dist.is_torchelastic_launched():
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")))


def rank() -> int:
    """Number of this process in the group, from 0; 0 without a group."""
    return dist.get_rank() if _grouped() else 0


def size() -> int:
    """Processes in the group; 1 without a group."""
    return dist.get_world_size() if _grouped() else 1


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def group(device: torch.device, timeout: timedelta = TIMEOUT) -> Iterator[None]:
    """Join the processes that ``torchrun`` started; on the CPU they share the cores.

    Parameters
    ----------
    device
        Device of this process: CUDA tensors travel through NCCL, all others through gloo.
    timeout
        Longest wait for another process.

    Raises
    ------
    TrainingError
        If another process ends or is silent for too long.
    """
    here = place()
    if here.size == 1:
        yield
        return
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        else:
            torch.set_num_threads(max(1, _cores() // here.local_size))
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise TrainingError(
            f"process {here.rank} of {here.size} lost the others: {error}",
            "see what the others say; the same command goes on from the last state on the disk",
        ) from error
    dist.destroy_process_group()


def _cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def mean(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mean of scalars over the processes, by name; every process must give the same names in the same order."""
    if size() == 1:
        return terms
    values = torch.stack(list(terms.values())).double()
    dist.all_reduce(values)
    return dict(zip(terms, (values / size()).unbind(), strict=True))


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Whether any process has set each flag."""
    if size() == 1:
        return flags
    shared = torch.tensor(flags, dtype=torch.int64)
    dist.all_reduce(shared, dist.ReduceOp.MAX)
    return tuple(bool(flag) for flag in shared)


def agreed(*numbers: int) -> bool:
    """Whether every process gives the same numbers."""
    if size() == 1:
        return True
    both = torch.tensor([*numbers, *(-number for number in numbers)])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    highest, negated_lowest = both.chunk(2)
    return torch.equal(highest, -negated_lowest)


def on_first(work: Callable[[], Value]) -> Value:
    """Do something in process 0 only and give its result, a JSON value, to all.

    Raises
    ------
    SpikeKitError
        What ``work`` raises, in process 0; in the others a `TrainingError` with the same message.
    """
    if size() == 1:
        return work()
    answer: dict[str, Any] = {}
    failure: SpikeKitError | None = None
    if rank() == 0:
        try:
            answer = {"value": work()}
        except SpikeKitError as error:
            failure, answer = error, {"message": error.message, "hint": error.hint}
    answer = _told(answer)
    if failure is not None:
        raise failure
    if "message" in answer:
        raise TrainingError(answer["message"], answer["hint"])
    return answer["value"]


def _told(value: Any) -> Any:
    """What process 0 has here."""
    payload = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    length = torch.tensor(payload.numel())
    dist.broadcast(length, 0)
    if rank():
        payload = torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(payload, 0)
    return json.loads(payload.numpy().tobytes())


BatchT = TypeVar("BatchT")


def shard(batch: BatchT, rank: int, size: int) -> tuple[BatchT, float]:
    """Part of a batch that process ``rank`` of ``size`` computes, and its share of the rows.

    ``batch`` is a dataclass of tensors with equally many rows. A process without a row (fewer rows than processes) gets
    the first one with share 0, because the mean over nothing has no gradient.
    """
    tensors: dict[str, Tensor] = vars(batch)
    ids = next(iter(tensors.values()))
    rows = torch.arange(len(ids), device=ids.device).tensor_split(size)[rank]
    share = rows.numel() / len(ids)
    if not rows.numel():
        rows = rows.new_zeros(1)
    return type(batch)(**{name: tensor.index_select(0, rows) for name, tensor in tensors.items()}), share


class Shards(nn.Module):
    """Loss terms of this process's shard, scaled so that their mean over the processes is the term of the batch.

    Parameters
    ----------
    model
        The model, with the same parameters in every process; it gives loss terms by name for ``(batch, draws)``.
    global_terms
        Terms that do not look at the batch; they stay as they are.
    """

    def __init__(self, model: nn.Module, global_terms: Collection[str]) -> None:
        super().__init__()
        self.model, self.global_terms = model, global_terms

    def forward(self, batch: Any, draws: Any) -> dict[str, Tensor]:
        """Scaled terms of the shard of the whole ``batch``."""
        part, share = shard(batch, rank(), size())
        terms: dict[str, Tensor] = self.model(part, draws)
        return {name: term if name in self.global_terms else share * size() * term for name, term in terms.items()}


def replicated(model: nn.Module, global_terms: Collection[str]) -> nn.Module:
    """The model, or in a group of processes what averages the gradients of its `Shards` over them.

    Torch never lets go of a channel that `DistributedDataParallel` has used. A thread of that channel may then still
    hold the last message while the interpreter ends, which aborts the process; so messages have a channel of their own.
    """
    if size() == 1:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch has another name for broadcast_buffers
        return DistributedDataParallel(
            Shards(model, global_terms),
            process_group=dist.new_group(),
            broadcast_buffers=False,
            find_unused_parameters=True,
        )
