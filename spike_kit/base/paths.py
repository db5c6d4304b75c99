"""Where things live: data-set folders, downloads, runs, figures."""

import os
import re
from pathlib import Path

from spike_kit.base.errors import DataError, some

HOME_VARIABLE = "SPIKE_KIT_HOME"
"""Environment variable that moves data/ and figures/ elsewhere (tests use it)."""

VISIBLE = "[!.]*"
"""Glob pattern of finished files and folders; temporary ones begin with a dot."""

MANIFEST = "manifest.json"
"""The file that makes a folder a data-set folder."""


def home() -> Path:
    """Folder that holds data/ and figures/: ``$SPIKE_KIT_HOME``, else the checkout, else the working folder."""
    if value := os.environ.get(HOME_VARIABLE):
        return Path(value).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def data_root() -> Path:
    """Folder of the data-set folders."""
    return home() / "data"


def raw_root() -> Path:
    """Folder of downloaded raw files."""
    return data_root() / "raw"


def cache_root() -> Path:
    """Folder of recomputable things: text vectors, map coordinates."""
    return data_root() / "cache"


def runs_root() -> Path:
    """Folder of the run folders."""
    return data_root() / "runs"


def figures_root() -> Path:
    """Folder the figures are exported to."""
    return home() / "figures"


def shown(path: Path) -> str:
    """Path as a reader wants it: relative to the working folder where that is shorter."""
    here, resolved = Path.cwd(), path.resolve()
    return str(resolved.relative_to(here) if resolved.is_relative_to(here) else path)


ALIASES = (("book", "amazon-book_kg"), ("movie", "amazon-movie_kg"), ("yelp", "yelp_kg"))
"""The data sets of the paper: their names, and the folder names of the authors' code; either finds the other."""


def also_called(dataset: str) -> tuple[str, ...]:
    """Return a data set's name and the other name it goes by."""
    return (dataset, *(other for pair in ALIASES if dataset in pair for other in pair if other != dataset))


RESERVED = frozenset({"raw", "cache", "runs", "searches", "tuned", "archive", "notebooks", "exports", "llm"})
"""Folders under data/ that are no data-set folders."""


def new_dataset_path(name: str) -> Path:
    """Folder of a data set to be built.

    Raises
    ------
    DataError
        If the name is not a plain folder name, or is reserved.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name in RESERVED:
        raise DataError(
            f"{name!r} cannot be the name of a data set",
            f"use letters, digits, '.', '-' and '_', at most 100, and none of: {some(sorted(RESERVED))}",
        )
    return data_root() / name


def dataset_folder(dataset: str | Path) -> Path | None:
    """Folder of a data set given by name (under data/) or by path, if there is one."""
    folders = [*(data_root() / name for name in also_called(str(dataset))), Path(dataset).expanduser()]
    return next((folder.resolve() for folder in folders if (folder / MANIFEST).is_file()), None)


def known_datasets() -> list[str]:
    """Names of the data-set folders under data/."""
    return sorted(path.parent.name for path in data_root().glob(f"{VISIBLE}/{MANIFEST}"))


def find_dataset(dataset: str | Path) -> Path:
    """Folder of a data set given by name (under data/) or by path.

    Raises
    ------
    DataError
        If there is no such data-set folder; the message lists those that exist.
    """
    if folder := dataset_folder(dataset):
        return folder
    known = some(known_datasets())
    raise DataError(
        f"no data-set folder for data set {str(dataset)!r}: neither {shown(data_root() / dataset)} nor "
        f"{dataset} holds a {MANIFEST}",
        f"known here: {known}" if known else "build one first, for example: spike-kit build ml-100k",
    )
