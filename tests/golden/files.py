"""What files on the disk look like: names, keys, columns; hashes of tables by value."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet
from safetensors.torch import load_file

from spike_kit.cli import main

FILE = Path(__file__).with_name("files.json")
ROOT = Path(__file__).parents[2]
SMALL = Path(os.environ.get("SPIKE_KIT_HOME", ROOT)) / "data" / "ml-100k-small"
"""Data set that `make pipeline` builds (tests have homes of their own)."""
ANSWERS = Path(__file__).with_name("golden.sqlite")
"""Answers stored by version 0.1.0: the 23 of today's prompts, some to earlier prompts, refused and too long ones."""

N_USERS, N_ITEMS = 12, 12
BUILD = [
    *("build", "tables", "--name", "golden", "--raw", "raw", "--interactions", "ratings.csv"),
    *("--columns", "user", "who", "item", "film", "rating", "stars", "timestamp", "at", "text", "said"),
    *("--items", "films.csv", "--item-columns", "item", "id", "label", "title", "description", "plot"),
    *("--facts", "genre", "genres", "--triples", "crew.tsv", "--triple-columns", "head", "film", "tail", "person"),
    *("--time", "date", "--min-rating", "3", "--user-core", "4", "--item-core", "3"),
    *("--entities", "people.csv", "--draws", "rows"),
]
"""Build of the data set, in the folder where `write_raw` wrote."""
PAID = [
    "profile",
    "golden",
    "--profiles",
    "paid",
    "--model",
    "paid-model",
    "--base-url",
    "http://127.0.0.1:9/v1",
    "--wording",
    "1",
]
"""Profiles whose answers are in `ANSWERS`; at this address there is no server."""
MODELS = {"spike": ["--epochs", "2", "--eval-every", "1", "--batch-size", "20", "--dim", "4"], "popularity": []}
"""Options of the trainings."""
TRAIN = ["train", "--dataset", "golden", "--device", "cpu", "--encoder", "tfidf-8", "--seed", "3"]


def write_raw(folder: Path) -> None:
    """Write films, ratings with reviews, and facts."""
    folder.mkdir()
    rows = ["who,film,stars,at,said"]
    for user in range(N_USERS):
        for rank in range(9):
            film = (user + rank * (1 + user % 2)) % N_ITEMS
            said = f"Viewer {user} thinks that film {film} is <b>fine</b> &amp; long." if (user + film) % 3 else ""
            rows.append(f"u{user},f{film},{(user * film + rank) % 4 + 2},2015-0{1 + rank}-{1 + user},{said}")
    (folder / "ratings.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    films = ["id,title,plot,genres"]
    for film in range(N_ITEMS):
        plot = f'"A story of {film} ""friends"", in Köln."' if film % 2 else ""
        films.append(f'f{film},"Film &quot;{film}&quot;, The",{plot},{"Drama|War" if film % 3 else "Comédie|Drama"}')
    (folder / "films.csv").write_text("\n".join(films) + "\n", encoding="utf-8")
    crew = ["film\tperson", *(f"f{film}\tPerson_{film // 3}" for film in range(N_ITEMS))]
    (folder / "crew.tsv").write_text("\n".join(crew) + "\n", encoding="utf-8")
    people = ["entity,label,kind", *(f"Person_{number},Person {number},entity" for number in range(N_ITEMS // 3))]
    (folder / "people.csv").write_text("\n".join(people) + "\n", encoding="utf-8")


def everything() -> dict[str, Any]:
    """Make a data set, runs, and profiles from stored answers in the working folder, the home; say how they look."""
    write_raw(Path("raw"))
    for command in (BUILD, ["profile", "golden"], ["encode", "golden", "--encoder", "tfidf-8"]):
        assert main(command) == 0
    data = Path("data")
    found: dict[str, Any] = {"dataset": dataset(data / "golden"), "runs": {}}
    for model, options in MODELS.items():
        assert main([*TRAIN, "--model", model, *options]) == 0
        (folder,) = data.glob(f"runs/{model}-*")
        found["runs"][model] = run(folder)
    (data / "llm").mkdir()
    shutil.copy(ANSWERS, data / "llm")
    assert main(PAID) == 0
    return found | {"paid": digest(data / "golden" / "profiles" / "paid.parquet")}


def dataset(folder: Path) -> dict[str, Any]:
    """Files of a data-set folder, columns and contents of its tables, keys of its manifest."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return {
        "files": _files(folder),
        "columns": {name: columns(folder / name) for name in _files(folder) if name.endswith(".parquet")},
        "tables": tables(folder),
        "profiles": {file.stem: digest(file, ("created",)) for file in sorted(folder.glob("profiles/*.parquet"))},
        "vectors": {name: shapes(folder / name) for name in _files(folder) if name.endswith(".safetensors")},
        "manifest": sorted(manifest),
        "schema_version": manifest["schema_version"],
        "sources": [sorted(source) for source in manifest["sources"]],
        "funnel": manifest["funnel"],
        "counts": manifest["counts"],
        "hashed": sorted(manifest["tables"]),
    }


def run(folder: Path) -> dict[str, Any]:
    """Name and files of a run folder, keys of its JSON files, columns of its tables, its tensors."""
    values = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("config", "environment", "metrics")}
    return {
        "name": re.sub(r"-[0-9a-f]{12}-", "-<12 hex>-", folder.name),
        "files": _files(folder),
        **{name: sorted(value) for name, value in values.items()},
        "packages": sorted(values["environment"]["packages"]),
        "test": sorted(values["metrics"]["test"]),
        "users_ranked": values["metrics"]["users_ranked"],
        "history": columns(folder / "history.parquet"),
        "per_user": columns(folder / "per_user.parquet"),
        "model": shapes(folder / "model.safetensors"),
    }


def archive() -> dict[str, str]:
    """Hashes of the tables of docs/study by file."""
    folder = ROOT / "docs" / "study"
    return {f"{file.parent.name}/{file.name}": digest(file) for file in sorted(folder.rglob("*.parquet"))}


def tables(folder: Path) -> dict[str, str]:
    """Hashes of the tables of a data-set folder, without its profiles."""
    return {file.stem: digest(file) for file in sorted(folder.glob("*.parquet"))}


def digest(file: Path, without: tuple[str, ...] = ()) -> str:
    """Hash of a table's columns, types and values in their order; not of the bytes of its file."""
    frame = pd.read_parquet(file).drop(columns=[*without])
    kinds = {name: kind for name, kind in columns(file).items() if name not in without}
    text = json.dumps(kinds) + frame.to_csv(index=False, na_rep="<missing>", lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()


def columns(file: Path) -> dict[str, str]:
    """Columns of a parquet file and their types, in their order."""
    return {field.name: str(field.type).removeprefix("large_") for field in pyarrow.parquet.read_schema(file)}


def shapes(file: Path) -> dict[str, str]:
    """Tensors of a safetensors file: type and shape."""
    return {name: f"{tensor.dtype} {list(tensor.shape)}" for name, tensor in sorted(load_file(file).items())}


def _files(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def read() -> dict[str, Any]:
    """Recorded descriptions."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
