"""A training step that CUDA records once and replays, so that nobody waits for Python to launch its kernels.

No GPU was at hand where this was written: see docs/training.md, "One GPU".
"""

from collections.abc import Callable

import torch

from spike_kit.base.distributed import LossTerms
from spike_kit.base.errors import TrainingError
from spike_kit.models.base import Batch

WARM_UP = 3
"""Steps that are taken one by one before one is recorded, because libraries set themselves up in the first ones."""


class RecordedStep:
    """Takes the same steps as the function that it is given; only batches of the first one's size are replayed.

    A batch is copied to where the first one stands, because a replay reads from there. Off CUDA nothing is recorded.

    Parameters
    ----------
    step
        Takes a step on a batch, the same work on the same places each time, and gives its loss terms.
    generator
        Source of all random numbers of a step, on its device.
    """

    def __init__(self, step: Callable[[Batch], LossTerms], generator: torch.Generator) -> None:
        self.step, self.generator = step, generator
        self.batch: Batch | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.terms: LossTerms = {}
        self.taken = 0

    def __call__(self, batch: Batch) -> LossTerms:
        """Take a step; the terms hold until the next one."""
        given = {name: x for name, x in vars(batch).items() if isinstance(x, torch.Tensor) and name != "host_users"}
        if self.batch is None:
            self.batch = Batch(**{name: ids.clone() for name, ids in given.items()})
        if batch.users.shape != self.batch.users.shape:
            return self.step(batch)
        for name, ids in given.items():
            getattr(self.batch, name).copy_(ids)
        if batch.users.device.type != "cuda":
            return self.step(self.batch)
        with torch.cuda.device(batch.users.device):
            return self._on_cuda(self.batch)

    def _on_cuda(self, batch: Batch) -> LossTerms:
        if self.graph is None and self.taken < WARM_UP:
            self.taken += 1
            stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                self.terms = self.step(batch)
            current.wait_stream(stream)
            return self.terms
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            self.graph.register_generator_state(self.generator)
            try:
                with torch.cuda.graph(self.graph):
                    self.terms = self.step(batch)
            except RuntimeError as error:
                hint = "without --cuda-graph every step is taken anew, which gives the same numbers"
                raise TrainingError(f"the training step cannot be recorded as a CUDA graph: {error}", hint) from error
        self.graph.replay()
        return self.terms
