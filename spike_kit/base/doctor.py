"""What this machine has and what of the kit is installed; keys are present or absent, never shown."""

from __future__ import annotations

import os
import platform
import re
import shutil
from contextlib import suppress
from importlib import metadata

import psutil
import torch

from spike_kit import __version__
from spike_kit.base import paths
from spike_kit.base.devices import describe_device

_GIB = 2**30


def report() -> str:
    """Describe this machine and this installation, a line each."""
    memory, home = psutil.virtual_memory(), paths.home()
    disk = shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists()))
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [torch.device("cpu"), *(torch.device("cuda", number) for number in range(n_gpus))]
    facts = {
        "spike_kit": __version__,
        "python": f"{platform.python_version()} on {platform.platform()}",
        "devices": ", ".join(map(describe_device, devices)),
        "memory": f"{memory.available / _GIB:.1f} GiB free of {memory.total / _GIB:.1f} GiB",
        "disk": f"{disk.free / _GIB:.1f} GiB free of {disk.total / _GIB:.1f} GiB at {home}",
        **_packages(),
        **{key: "present" if os.environ.get(key) else "absent" for key in ("OPENAI_API_KEY", "HF_TOKEN")},
        "data sets": ", ".join(paths.known_datasets()) or "none yet: spike-kit fetch ml-100k, spike-kit build ml-100k",
    }
    return "\n".join(f"{what}: {said}" for what, said in facts.items())


def _packages() -> dict[str, str]:
    """Versions of the packages that the kit asks for, by extra; nothing in a checkout that is not installed."""
    found: dict[str, list[str]] = {}
    with suppress(metadata.PackageNotFoundError):
        for requirement in metadata.requires("spike_kit") or []:
            name, _, condition = requirement.partition(";")
            extra = condition.partition("== ")[2].strip("\"'")
            if extra not in ("all", "dev"):
                package = re.split(r"\W*[<>=]", name)[0]
                found.setdefault(f"[{extra}]" if extra else "packages", []).append(f"{package} {_version(package)}")
    return {group: ", ".join(packages) for group, packages in found.items()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
