"""Where a training stands between two epochs, and the files that bring it back after an interruption."""

import hashlib
import json
import logging
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from spike_kit.base import distributed, storage
from spike_kit.base.config import TrainingConfig
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
        Every place where an interrupted training went on: the epoch, and the machine from there on.
    steps
        Steps of the optimiser over batches of interactions.
    """

    rows: list[EpochRow] = field(default_factory=list)
    best_epoch: int = 0
    earlier_seconds: float = 0.0
    resumed: list[dict[str, int | str]] = field(default_factory=list)
    steps: int = 0

    def frame(self) -> pd.DataFrame:
        """Return the rows as a table."""
        return pd.DataFrame(self.rows)


@dataclass
class TrainingState:
    """Everything the next epoch depends on, besides settings of the model and data; it counts time from its creation.

    Attributes
    ----------
    model, optimizer
        What is trained, and its Adam.
    batches, draws
        Generators of the batches and of the model's own draws.
    config
        Settings of the training.
    folder
        Where it is stored; none: nowhere.
    epoch
        The next epoch, from 1.
    history, best, waited
        Rows so far, best monitored metric, and validations since.
    kept
        Weights of the epoch that is kept.
    saved
        When a state was written, or this sitting began.
    """

    model: TrainedRecommender
    optimizer: torch.optim.Optimizer
    batches: torch.Generator
    draws: torch.Generator
    config: TrainingConfig
    folder: Path | None = None
    epoch: int = 1
    history: History = field(default_factory=History)
    best: float = -1.0
    waited: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)
    saved: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self._started = self.saved
        self._stored_best = 0

    @property
    def seconds(self) -> float:
        """Training time over all sittings."""
        return self.history.earlier_seconds + time.perf_counter() - self._started

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
        with storage.atomic_file(folder / LAST) as file:
            write_state(_on_cpu(self._tensors()), self._header(), file)
        for file in folder.iterdir():
            if file.name.startswith(("best-", ".")) and file != best_file(folder, self.history.best_epoch):
                storage.remove(file)

    def resume(self, folder: Path, seed: int) -> None:
        """Go on from a stored state, if there is one that fits; a warning names a file that does not.

        Parameters
        ----------
        folder
            Where `save` wrote.
        seed
            Seed of the draws on another kind of device, which cannot take over the generator's state.
        """
        found, file = None, folder / LAST
        if file.is_file():
            try:
                header, tensors = _read(file)
                mine, weights = self._header(), {name: tensors[f"model.{name}"] for name in self.model.tensors()}
                settings = TrainingConfig.model_validate(header["training"]).model_dump()
                same = header.keys() == mine.keys() and settings == self.config.model_dump()
                _expect(same and self._fits(weights), "it is of another training")
                best = header["history"]["best_epoch"]
                file = best_file(folder, best)
                kept = _loaded(file) if best else {}
                _expect(not best or self._fits(kept), "its tensors are not those of this model")
                found = header, tensors, kept
            except _UNUSABLE as error:
                logger.warning("%s cannot be used, training starts over: %s", file, " ".join(str(error).split()))
        if not distributed.agreed(found[0]["epoch"] if found else 0):
            logger.warning("not every process reads the same %s, training starts over", folder / LAST)
        elif found:
            self._take(*found, seed)

    def _header(self) -> dict[str, Any]:
        """What a state holds besides tensors."""
        return {
            "epoch": self.epoch,
            "history": asdict(self.history) | {"earlier_seconds": self.seconds},
            "best": self.best,
            "waited": self.waited,
            "machine": _machine(self.model.device),
            "training": dict(self.config),
        }

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{name}": tensor for name, tensor in self.model.tensors().items()}
        for name, parameter in self.model.named_parameters():
            moments = self.optimizer.state.get(parameter, {})
            found |= {f"adam.{key}.{name}": tensor for key, tensor in moments.items()}
        return found | {"generator.batches": self.batches.get_state(), "generator.draws": self.draws.get_state()}

    def _fits(self, tensors: dict[str, Tensor]) -> bool:
        """Whether tensors have the names, types and shapes of the model's."""
        one, other = (
            {name: (x.dtype, x.shape) for name, x in part.items()} for part in (tensors, self.model.tensors())
        )
        return one == other

    def _take(self, header: dict[str, Any], tensors: dict[str, Tensor], kept: dict[str, Tensor], seed: int) -> None:
        device, machine, before = self.model.device, _machine(self.model.device), header["machine"]
        self.model.load_tensors({name: tensors[f"model.{name}"].to(device) for name in self.model.tensors()})
        stored = {
            place: {key: tensors[f"adam.{key}.{name}"] for key in _MOMENTS}
            for place, (name, _) in enumerate(self.model.named_parameters())
            if f"adam.step.{name}" in tensors
        }
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": stored})
        self.epoch, self.best, self.waited = (header[name] for name in ("epoch", "best", "waited"))
        self.history = History(**header["history"])
        self.kept = {name: tensor.to(device) for name, tensor in kept.items()}
        self._stored_best = self.history.best_epoch
        self.batches.set_state(tensors["generator.batches"])
        if before["device"].partition(":")[0] == self.draws.device.type:
            self.draws.set_state(tensors["generator.draws"])
        else:
            fresh = torch_generator(seed, f"draws from epoch {self.epoch}", self.draws.device)
            self.draws.set_state(fresh.get_state())
        self.history.resumed.append({"epoch": self.epoch, **machine})
        self._started = time.perf_counter()
        logger.info("training goes on from epoch %d", self.epoch)
        changed = [f"{key} {before.get(key)} -> {now}" for key, now in machine.items() if before.get(key) != now]
        if changed:
            logger.warning("the last bits may differ from an uninterrupted run: %s", ", ".join(changed))


def best_file(folder: Path, epoch: int) -> Path:
    """File of the weights kept from an epoch."""
    return folder / f"best-{epoch}.safetensors"


def stored_rows(folder: Path) -> list[EpochRow]:
    """Rows of the epochs before the state that a training has stored last; none where there is no state."""
    try:
        with safe_open(folder / LAST, framework="pt") as opened:
            return json.loads(opened.metadata()[_KEY])["history"]["rows"]
    except _UNUSABLE:
        return []


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _machine(device: torch.device) -> dict[str, int | str]:
    """What the last bits of a training depend on."""
    on_gpu = device.type == "cuda"
    return {
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name(device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processes": distributed.size(),
    }


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


def _read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(file, framework="pt") as opened:
        metadata: dict[str, str] = opened.metadata() or {}
    tensors = _loaded(file)
    _expect(_KEY in metadata, "it says nothing of a training")
    _expect(_hash(tensors, metadata[_KEY]) == metadata.get(_SUM), "it is damaged, or of an earlier version")
    return json.loads(metadata[_KEY]), tensors


def _loaded(file: Path) -> dict[str, Tensor]:
    """Tensors of a file, in memory of their own: the file itself is soon replaced."""
    return {name: tensor.clone() for name, tensor in load_file(file).items()}


def _expect(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
