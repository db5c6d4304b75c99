"""A device that no machine need have: values are computed on the CPU, but its tensors never meet those of the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

OTHER = torch.device("meta")
"""Name of the device: torch has no kernels for it, so nothing is computed there by mistake."""

MEETING = {"aten::_to_copy", "aten::copy_", "aten::index.Tensor", "aten::index_put_", "aten::_local_scalar_dense"}
"""What may see tensors of two devices on CUDA, too: copies, and indices on the CPU."""


class Elsewhere(torch.Tensor):
    """A tensor of the other device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "Elsewhere":  # noqa: ANN001
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype, device=OTHER
        )
        made.held = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(torch.tensor(index) if isinstance(index, list) else index, value)

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a tensor of another device is no numpy array: use .cpu() first")

    __array__ = numpy


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do an operation on the CPU and say that it was done elsewhere, if its tensors are there."""
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, torch.Tensor)]
    there = [isinstance(one, Elsewhere) for one in tensors]
    name = func._schema.name + (f".{func._overloadname}" if func._overloadname != "default" else "")
    if any(one.device == OTHER and not away for away, one in zip(there, tensors, strict=True)):
        raise RuntimeError(f"{name}: a tensor has lost its values")
    mixed = any(there) and any(not away and one.dim() for away, one in zip(there, tensors, strict=True))
    if mixed and not any(name.startswith(allowed) for allowed in MEETING):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    target = kwargs.get("device")
    goes = any(there) if target is None else torch.device(target) == OTHER
    if target is not None and goes:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if name.startswith("aten::copy_"):
        goes = there[0]
    inner_args, inner_kwargs = tree_map_only(Elsewhere, lambda one: one.held, (args, kwargs))
    found = func(*inner_args, **inner_kwargs)
    if func._schema.name.endswith("_") or "out" in kwargs:
        return kwargs.get("out", args[0])
    return tree_map_only(torch.Tensor, Elsewhere, found) if goes else found


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[torch.device]:
    """The device, inside the block."""
    make = torch.tensor

    def tensor(data: Any, dtype: torch.dtype | None = None, device: Any = "cpu") -> torch.Tensor:
        return make(data, dtype=dtype).to(device)

    with _Everywhere(), torch.no_grad(), patch.object(torch, "tensor", tensor):
        yield OTHER
