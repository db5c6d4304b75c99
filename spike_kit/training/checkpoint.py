"""Where a training stands, and the files that bring it back after an interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spike_kit.base import distributed, storage
from spike_kit.base.seeds import torch_generator
from spike_kit.models.base import TrainedRecommender

logger = logging.getLogger(__name__)

MONITOR = "ndcg@20"
"""Validation metric that chooses the weights."""

EpochRow = dict[str, int | float]
"""What `History` holds of an epoch."""

LAST = "last.safetensors"
"""The file of the state; the kept weights stand beside it."""

_KEY, _SUM = "state", "sha256"
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
_UNUSABLE = (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError)


@dataclass
class History:
    """What happened in each epoch, and which one was kept.

    Attributes
    ----------
    rows
        One per epoch: epoch, seconds of training up to its end (over all sittings), ``loss`` and every loss term
        (means over interactions), and ``valid_<metric>`` where the epoch was validated.
    best_epoch
        Epoch whose weights were kept, counted from 1.
    earlier_seconds
        Training time of the sittings before this one.
    resumed
        Every place where an interrupted training went on: epoch, steps done in it, and the machine from there on.
    """

    rows: list[EpochRow] = field(default_factory=list)
    best_epoch: int = 0
    earlier_seconds: float = 0.0
    resumed: list[dict[str, int | str]] = field(default_factory=list)

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return pd.DataFrame(self.rows)


class _Header(BaseModel):
    """What a state holds besides tensors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    epoch: int
    step: int
    rows: list[EpochRow]
    best: float
    waited: int
    best_epoch: int
    seconds: float
    machine: dict[str, int | str]
    resumed: list[dict[str, int | str]]
    epochs: int
    n_steps: int
    layout: dict[str, str]


@dataclass
class TrainingState:
    """Everything the next step depends on, besides settings and data; it counts time from its creation.

    Attributes
    ----------
    model, optimizer
        What is trained, and its Adam.
    batches, draws
        Generators of the batches and of the model's own draws.
    epochs, n_steps
        Most epochs of the training, and steps in each.
    epoch, step
        Epoch that is trained, from 1, and the steps done in it.
    epoch_start
        State of ``batches`` before the batches of this epoch were drawn.
    totals
        Sums of the loss terms over the interactions of this epoch so far.
    history, best, waited
        Rows so far, best monitored metric, and validations since.
    kept
        Weights of the epoch that is kept.
    """

    model: TrainedRecommender
    optimizer: torch.optim.Optimizer
    batches: torch.Generator
    draws: torch.Generator
    epochs: int
    n_steps: int
    epoch: int = 1
    step: int = 0
    totals: dict[str, Tensor] = field(default_factory=dict)
    history: History = field(default_factory=History)
    best: float = -1.0
    waited: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.epoch_start = self.batches.get_state()
        self._started = time.perf_counter()
        self._stored_best = 0
        self._saved = self._started

    @property
    def seconds(self) -> float:
        """Training time over all sittings."""
        return self.history.earlier_seconds + time.perf_counter() - self._started

    def saved(self) -> None:
        """Note that the state was written now, by this process or for it."""
        self._saved = time.perf_counter()

    @property
    def unsaved_seconds(self) -> float:
        """Time since a state was written, or since this sitting began."""
        return time.perf_counter() - self._saved

    def next_epoch(self) -> None:
        """Stand before the first step of the next epoch."""
        self.epoch, self.step, self.totals = self.epoch + 1, 0, {}
        self.epoch_start = self.batches.get_state()

    def keep(self) -> None:
        """Keep the weights as they are now, as those of this epoch."""
        self.kept = {name: tensor.clone() for name, tensor in self.model.tensors().items()}
        self.history.best_epoch = self.epoch

    def save_best(self, folder: Path) -> None:
        """Write the kept weights, if they are not on the disk already.

        Raises
        ------
        StorageError
            If they could not be written.
        """
        best = self.history.best_epoch
        if best != self._stored_best:
            with storage.atomic_file(best_file(folder, best)) as file:
                save_file(_on_cpu(self.kept), file)
            self._stored_best = best

    def save(self, folder: Path) -> None:
        """Write the state; whatever happens meanwhile, the folder holds this state or the one before, whole.

        Raises
        ------
        StorageError
            If it could not be written.
        """
        self.save_best(folder)
        best = self.history.best_epoch
        tensors = _on_cpu(self._tensors())
        header = _Header(
            epoch=self.epoch,
            step=self.step,
            rows=self.history.rows,
            best=self.best,
            waited=self.waited,
            best_epoch=best,
            seconds=self.seconds,
            machine=_machine(self.model.device),
            resumed=self.history.resumed,
            epochs=self.epochs,
            n_steps=self.n_steps,
            layout=_layout(self.model.tensors()),
        )
        with storage.atomic_file(folder / LAST) as file:
            write_state(tensors, header.model_dump(), file)
        for file in folder.iterdir():
            if file.name.startswith(("best-", ".")) and file != best_file(folder, best):
                file.unlink()

    def resume(self, folder: Path, seed: int) -> None:
        """Go on from a stored state, if there is one that fits; a warning names a file that does not.

        Parameters
        ----------
        folder
            Where `save` wrote.
        seed
            Seed of the draws on another kind of device, which cannot take over the generator's state.
        """
        found = None
        file = folder / LAST
        if file.is_file():
            try:
                header, tensors = _read(file)
                same = (header.epochs, header.n_steps) == (self.epochs, self.n_steps)
                _expect(same and header.layout == _layout(self.model.tensors()), "it is of another training")
                file = best_file(folder, header.best_epoch)
                found = header, tensors, self._read_kept(file) if header.best_epoch else {}
            except _UNUSABLE as error:
                logger.warning("%s cannot be used, training starts over: %s", file, " ".join(str(error).split()))
        place = (found[0].epoch, found[0].step) if found else (0, 0)
        if not distributed.agreed(*place):
            logger.warning("not every process reads the same %s, training starts over", folder / LAST)
        elif found:
            self._take(*found, seed)

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{name}": tensor for name, tensor in self.model.tensors().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"adam.{key}.{name}": tensor for key, tensor in moments.items()}
        found |= {f"total.{name}": total for name, total in self.totals.items()}
        return found | {"generator.batches": self.epoch_start, "generator.draws": self.draws.get_state()}

    def _read_kept(self, file: Path) -> dict[str, Tensor]:
        kept = _loaded(file)
        _expect(_layout(kept) == _layout(self.model.tensors()), "its tensors are not those of this model")
        return {name: tensor.to(self.model.device) for name, tensor in kept.items()}

    def _take(self, header: _Header, tensors: dict[str, Tensor], kept: dict[str, Tensor], seed: int) -> None:
        device, machine = self.model.device, _machine(self.model.device)
        self.model.load_tensors({name: tensors[f"model.{name}"].to(device) for name in self.model.tensors()})
        stored = {
            place: {key: tensors[f"adam.{key}.{name}"] for key in _MOMENTS}
            for place, (name, _) in enumerate(self.model.named_parameters())
            if f"adam.step.{name}" in tensors
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": stored})
        self.epoch, self.step, self.best, self.waited = header.epoch, header.step, header.best, header.waited
        self.totals = {
            name.removeprefix("total."): total.to(device)
            for name, total in tensors.items()
            if name.startswith("total.")
        }
        self.kept, self._stored_best = kept, header.best_epoch
        self.epoch_start = tensors["generator.batches"]
        self.batches.set_state(self.epoch_start)
        if _kind(header.machine) == self.draws.device.type:
            self.draws.set_state(tensors["generator.draws"])
        else:
            fresh = torch_generator(seed, f"draws from epoch {header.epoch}, step {header.step}", self.draws.device)
            self.draws.set_state(fresh.get_state())
        place: dict[str, int | str] = {"epoch": header.epoch, "step": header.step}
        self.history = History(header.rows, header.best_epoch, header.seconds, [*header.resumed, place | machine])
        self._started = time.perf_counter()
        logger.info("training goes on from epoch %d, step %d", header.epoch, header.step)
        before = header.machine
        changed = [f"{key} {before.get(key)} -> {now}" for key, now in machine.items() if before.get(key) != now]
        if changed:
            logger.warning("the last bits may differ from an uninterrupted run: %s", ", ".join(changed))


def best_file(folder: Path, epoch: int) -> Path:
    """File of the weights kept from an epoch."""
    return folder / f"best-{epoch}.safetensors"


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _cpu_kernels() -> str:
    """Instruction set that torch's kernels use here, for example ``"AVX512"``."""
    return torch.backends.cpu.get_cpu_capability()


def _machine(device: torch.device) -> dict[str, int | str]:
    """What the last bits of a training depend on."""
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_kernels(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processes": distributed.size(),
    }


def _kind(machine: dict[str, int | str]) -> str:
    return str(machine["device"]).partition(":")[0]


def _layout(tensors: dict[str, Tensor]) -> dict[str, str]:
    """Type and shape of tensors by name."""
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(tensors.items())}


def write_state(tensors: dict[str, Tensor], header: dict[str, Any], file: Path) -> None:
    """Write what `save` keeps, with a hash over all of it: a file that was damaged is never taken for a state."""
    text = json.dumps(header)
    save_file(tensors, file, {_KEY: text, _SUM: _hash(tensors, text)})


def _hash(tensors: dict[str, Tensor], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _read(file: Path) -> tuple[_Header, dict[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    tensors = _loaded(file)
    _expect(_KEY in metadata, "it says nothing of a training")
    _expect(_hash(tensors, metadata[_KEY]) == metadata.get(_SUM), "it is damaged, or of an earlier version")
    return _Header.model_validate(json.loads(metadata[_KEY])), tensors


def _loaded(file: Path) -> dict[str, Tensor]:
    """Tensors of a file, in memory of their own: the file itself is soon replaced."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
