"""Several processes that train one model: started by ``torchrun``, one per device; without it, all of this is idle.

Messages between processes are tensors of numbers or of JSON bytes, never pickles.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.optim import Optimizer

from spike_kit.base.errors import DeviceError, SpikeKitError, TrainingError
from spike_kit.base.launch import place

TIMEOUT = timedelta(minutes=30)
"""Longest wait for another process (the first one validates meanwhile); after it, all of them end with an error."""

_LONGEST = 128
"""Bytes of a name that processes tell each other."""

Value = TypeVar("Value")
LossTerms = dict[str, Tensor]
LossFunction = Callable[[Any, Any], LossTerms]
"""Loss terms by name, of a batch and the draws of a step."""


def device_model(device: torch.device) -> str:
    """Model of a GPU, for example ``"NVIDIA H200"``; ``"cpu"`` for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def rank() -> int:
    """Number of this process in the group, from 0; 0 without a group."""
    return dist.get_rank() if size() > 1 else 0


def size() -> int:
    """Processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


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
    DeviceError
        If the processes have devices of several models.
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
        _check_models(device_model(device))
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or re.search("gloo|nccl", str(error), re.IGNORECASE)):
            raise
        hint = "see what the others say; the same command goes on from the last state on the disk"
        raise TrainingError(f"process {here.rank} of {here.size} lost the others: {error}", hint) from error
    dist.destroy_process_group()


def _check_models(own: str) -> None:
    """Refuse devices of several models: from equal seeds they draw other numbers, and nobody would notice.

    Raises
    ------
    DeviceError
        In every process, if not all of them have a device of the model ``own``.
    """
    said = torch.frombuffer(bytearray(own.encode()[:_LONGEST].ljust(_LONGEST)), dtype=torch.uint8)
    parts = [torch.empty_like(said) for _ in range(size())]
    dist.all_gather(parts, said)
    models = [part.numpy().tobytes().decode(errors="replace").strip() for part in parts]
    if len(set(models)) > 1:
        shown = ", ".join(f"{model} (process {number})" for number, model in enumerate(models))
        raise DeviceError(
            f"the processes of torchrun have devices of several models: {shown}",
            "they draw the same random numbers on equal devices only: choose equal ones (CUDA_VISIBLE_DEVICES)",
        )


def _cores() -> int:
    """Physical cores that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def mean(terms: LossTerms) -> LossTerms:
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
    return not any_of(tuple(on_first(lambda: numbers)) != numbers)[0]


def on_first(work: Callable[[], Value]) -> Value:
    """Do something in process 0 only and give its result, a JSON value, to all.

    Raises
    ------
    SpikeKitError
        What ``work`` raises, in process 0; in the others a `TrainingError` with the same message.
    """
    if size() == 1:
        return work()
    value, failure = None, None
    if rank() == 0:
        try:
            value = work()
        except SpikeKitError as error:
            failure = error
    answer = json.dumps([value, failure and [failure.message, failure.hint]]).encode()
    length = torch.tensor(len(answer))
    dist.broadcast(length, 0)
    payload = torch.empty(int(length), dtype=torch.uint8)
    if rank() == 0:
        payload = torch.frombuffer(bytearray(answer), dtype=torch.uint8)
    dist.broadcast(payload, 0)
    value, failed = json.loads(payload.numpy().tobytes())
    if failed:
        raise failure or TrainingError(*failed)
    return value


def shared(model: nn.Module, optimizer: Optimizer) -> LossFunction:
    """Return what computes a model's loss terms: the model itself, if it is alone.

    In a group of processes it gives those of this process's shard of the batch, scaled by the size of the shard so that
    their mean over the processes is the term of the batch. That is right for terms that do not look at the batch, too:
    they are the same in every process, and the scales have mean 1. A batch is a dataclass of tensors with equally many
    rows. A process without a row (fewer rows than processes) takes the first one and scales it by 0, because the mean
    over nothing has no gradient. The parameters become those of process 0, and the optimiser takes the mean of the
    gradients over the processes.
    """
    if size() == 1:
        return model

    def terms_of_shard(batch: Any, draws: Any) -> LossTerms:
        tensors: dict[str, Tensor] = {name: tensor for name, tensor in vars(batch).items() if tensor is not None}
        parts = {name: tensor.tensor_split(size())[rank()] for name, tensor in tensors.items()}
        n_rows, n_own = (len(next(iter(one.values()))) for one in (tensors, parts))
        if not n_own:
            parts = {name: tensor[:1] for name, tensor in tensors.items()}
        scale, terms = size() * n_own / n_rows, model(type(batch)(**parts), draws)
        return {name: scale * term for name, term in terms.items()}

    def average_gradients(*_: Any) -> None:
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= size()

    for parameter in model.parameters():
        dist.broadcast(parameter.detach(), 0)
    optimizer.register_step_pre_hook(average_gradients)
    return terms_of_shard
