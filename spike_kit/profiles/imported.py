"""What others made, or what the kit ships: texts by id become a profile set, vectors become those of an encoder."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.base.storage import now, read_json, sha256_file, sha256_text
from spike_kit.data.dataset import FILLED, SUBJECTS, TEMPLATE, Dataset, parts_of
from spike_kit.data.sources.spike_release import read_vectors
from spike_kit.data.text import plain
from spike_kit.data.vectors import LEFT_OUT, ProfileVectors
from spike_kit.profiles.encode import parse_encoder
from spike_kit.profiles.shipped import read_shipped, shipped_sets
from spike_kit.profiles.template import ensure_profiles

_OTHER_IDS = "its ids are others: give files of lines 'source_id id' with --item-map, --user-map, --auxiliary-map"
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")

MODEL = "imported"
"""Model of a profile that others wrote."""


def import_profiles(
    data: Dataset,
    profiles: str,
    files: Mapping[str, Path],
    maps: Mapping[str, Path] | None = None,
    fill: Literal["", "template"] = "",
) -> Path:
    """Write a profile set from JSON files ``{id: text}``, one for each kind of subject (CoLaKG's, for example).

    Nobody knows what the authors' prompts held, so user profiles are flagged as possibly leaky (they may describe
    held-out interactions): use them for comparison, never for a reported gain.

    Parameters
    ----------
    data
        Data-set folder.
    profiles
        Name of the new profile set.
    files
        JSON files by subject: ``item``, ``auxiliary``, ``user``. Their ids are the source ids of the data set.
    maps
        Where the ids are others: files of lines ``source_id id``, by subject.
    fill
        ``template`` takes the template profile where the files have none; else a kind of subject without a file is left
        out, and a missing profile of the others is an error.

    Returns
    -------
    Path
        The profiles table.

    Raises
    ------
    DataError
        If a file is missing, is not of this form, or leaves a subject without a profile.
    """
    if not files or not set(files) <= set(SUBJECTS):
        raise DataError(
            f"profiles can be imported for {', '.join(SUBJECTS)}, not for {some(sorted(files)) or 'nothing'}"
        )
    if profiles == TEMPLATE:
        raise DataError(f"{profiles!r} names the template profiles", "choose another name")
    texts = {subject: _texts(data, subject, path, (maps or {}).get(subject)) for subject, path in files.items()}
    provenance = {
        "kind": MODEL,
        "files": {subject: {"name": path.name, "sha256": sha256_file(path)} for subject, path in files.items()},
        "imported": {subject: len(texts.get(subject, ())) for subject in SUBJECTS},
        "possibly_leaky": [subject for subject in ("user",) if subject in files],
    }
    absent = [{"subject": subject, "reason": "no file was given"} for subject in SUBJECTS if subject not in files]
    return _write(data, profiles, texts, absent, fill, MODEL, provenance)


def add_shipped(data: Dataset, profiles: str, fill: Literal["", "template"] = "") -> Path:
    """Write a profile set that comes with the data set's reader (`spike_kit.profiles.shipped`).

    Texts of users saw the train part of one split; with another split they are left out.

    Parameters
    ----------
    data
        Data-set folder.
    profiles
        Name of the shipped set.
    fill
        ``template`` takes the template profile where the set has none, or leaves one out.

    Returns
    -------
    Path
        The profiles table.

    Raises
    ------
    DataError
        If no such set is shipped with this data set, or it does not know a subject.
    """
    if not (folder := (known := shipped_sets(data)).get(profiles)):
        raise DataError(f"no profile set {profiles!r} comes with {data.name}", f"there are: {some(known) or 'none'}")
    manifest, packed = read_shipped(folder)
    texts: dict[str, dict[int, str]] = {}
    absent: list[dict[str, Any]] = []
    if manifest["split_sha256"] != data.split_sha256:
        absent.append({"subject": "user", "reason": "they were written for another split and would be a leak"})
    for subject, part in packed.groupby("subject"):
        table = data.users if subject == "user" else data.entities
        ours = dict(zip(table["source_id"], table.iloc[:, 0].tolist(), strict=True))
        if subject not in [one["subject"] for one in absent]:
            found = zip(part["source_id"].map(ours), part["text"], strict=True)
            texts[str(subject)] = {int(number): text for number, text in found if pd.notna(number)}
        for source_id, reason in manifest["left_out"].items():
            if (number := ours.get(source_id)) in data.expected_ids(str(subject)):
                absent.append({"subject": subject, "ids": [number], "reason": reason})
                texts[str(subject)].pop(number, None)
    provenance = {"kind": "shipped", "free": True, **{key: manifest[key] for key in ("about", "model", "licence")}}
    return _write(data, profiles, texts, absent, fill, manifest["model"], provenance)


def ensure_written(data: Dataset, profiles: str) -> None:
    """Write what costs nothing of a profile set, or of the parts of a composed one: the template, and what is shipped.

    Raises
    ------
    DataError
        If a shipped set does not know a subject.
    """
    for part in parts_of(profiles):
        if part == TEMPLATE:
            ensure_profiles(data)
        elif part not in data.profile_sets() and part in shipped_sets(data):
            add_shipped(data, part)


def _write(
    data: Dataset,
    profiles: str,
    texts: Mapping[str, Mapping[int, str]],
    absent: Sequence[Mapping[str, Any]],
    fill: Literal["", "template"],
    model: str,
    provenance: Mapping[str, Any],
) -> Path:
    """Write texts by subject and id as a profile set; what is neither there nor left out is filled, or an error."""
    columns = ["subject", "id", "text", "prompt_sha256", "model", "usage"]
    rows = [
        (subject, number, text, sha256_text(text), model, "{}")
        for subject in SUBJECTS
        for number, text in texts.get(subject, {}).items()
    ]
    frame = pd.DataFrame(rows, columns=columns)
    if fill:
        template = ensure_profiles(data)[columns].assign(usage=FILLED)
        frame, absent = pd.concat([frame, template]).drop_duplicates(["subject", "id"]), []
    return data.write_profiles(profiles, frame.assign(created=now()), {**provenance, LEFT_OUT: list(absent)})


def _texts(data: Dataset, subject: str, path: Path, ids: Path | None) -> dict[int, str]:
    """Texts by our ids; ids of the file that the data set does not have are passed over."""
    table = data.users if subject == "user" else data.entities
    ours = dict(zip(table["source_id"], table.iloc[:, 0].tolist(), strict=True))
    keys, wanted = ours if ids is None else _translated(ours, ids), data.expected_ids(subject)
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object of profiles by id", "expected {id: text, ...}")
    texts = {key: value for key, value in values.items() if keys.get(key) in wanted}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{path}: the profile of {key!r} is no text but {type(value).__name__}", "correct the file")
    cleaned = {keys[key]: text for key, value in texts.items() if (text := plain(value))}
    if not cleaned:
        example = next(iter(keys), "")
        raise DataError(f"{path} has no profile for any {subject} of {data.name} (an id: {example!r})", _OTHER_IDS)
    if subject != "user":
        _check_names(path, cleaned, table["label"].tolist())
    return cleaned


def _check_names(path: Path, texts: Mapping[int, str], labels: Sequence[str]) -> None:
    """Refuse texts about other things than our ids mean: most should hold a word of the label."""
    named = [(set(_LONG_WORD.findall(labels[number].casefold())), text.casefold()) for number, text in texts.items()]
    told = [any(word in text for word in words) for words, text in named if words]
    if told and 2 * sum(told) < len(told):
        raise DataError(
            f"{path}: only {sum(told)} of {len(told)} profiles hold a word of the name of what they should describe",
            _OTHER_IDS,
        )


def _translated(ours: Mapping[str, int], path: Path) -> dict[str, int]:
    """Ids of the file to ours, through lines ``source_id id``."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as text in UTF-8: {error}") from error
    keys: dict[str, int | None] = {}
    for number, line in enumerate(lines, start=1):
        match line.rsplit(maxsplit=1):
            case [source_id, key] if key not in keys:
                keys[key] = ours.get(source_id.strip())
            case [_, key]:
                raise DataError(f"{path} line {number}: id {key} stands there for the second time", "correct it")
            case [_]:
                raise DataError(f"{path} line {number} is not: source_id id", "correct it")
    return {key: own for key, own in keys.items() if own is not None}


def import_vectors(data: Dataset, profiles: str, name: str, user_file: Path, entity_file: Path) -> Path:
    """Write vectors that others made into the data-set folder, as encoder ``given:<name>``.

    Parameters
    ----------
    data
        Data-set folder they belong to.
    profiles
        Profile set they were made from; the data set need not hold its texts.
    name
        Name to give them.
    user_file, entity_file
        Vectors of all users and of all entities (items first): .npy or .safetensors (one array, [n, d_t], rows in
        the order of ids), or .npz with the arrays ``ids [n]`` and ``embeddings [n, d_t]`` in any order.

    Returns
    -------
    Path
        The safetensors file: user [U, d_t] and entity [E, d_t].

    Raises
    ------
    ConfigError
        If the name is not usable.
    DataError
        If a file is missing or damaged, lacks or repeats an id, or holds NaN or infinity, or the two files have
        different dimensions.
    """
    encoder = f"given:{name.removeprefix('given:')}"
    if parse_encoder(encoder).reduction:
        raise ConfigError(f"{name!r} cannot be the name of given vectors", "leave @pca away")
    n_users, n_entities = len(data.users), len(data.entities)
    vectors = ProfileVectors(_read_rows(user_file, n_users), _read_rows(entity_file, n_entities))
    where, hint = f"{user_file} and {entity_file}", "both need one row per id, in the order of ids, from one encoder"
    vectors.check(n_users, n_entities, where, hint)
    facts = {"user_file": user_file.name, "user_sha256": sha256_file(user_file)}
    facts |= {"entity_file": entity_file.name, "entity_sha256": sha256_file(entity_file)}
    target = data.embeddings_path(profiles, encoder)
    vectors.save(target, {"source": profiles, "encoder": encoder, **facts})
    return target


def _read_rows(path: Path, n: int) -> torch.Tensor:
    """Vectors of one file as float32, in the order of ids 0..n-1."""
    if path.suffix == ".npz":
        ids, rows = read_vectors(path)
        found = {
            "missing": np.setdiff1d(np.arange(n), ids),
            "unknown": np.setdiff1d(ids, np.arange(n)),
            "repeated": np.unique(ids[1:][np.diff(ids) == 0]),
        }
        if wrong := [f"{problem} {some(which)}" for problem, which in found.items() if len(which)]:
            raise DataError(
                f"{path}: the ids must be 0..{n - 1}, each once; {'; '.join(wrong)}",
                "each user and each entity of the data set needs exactly one vector",
            )
    else:
        rows = _read_array(path)
    if rows.dtype.kind != "f":
        raise DataError(f"{path} holds {rows.dtype}, expected floats", "make the file again")
    with np.errstate(over="ignore"):
        return torch.from_numpy(rows.astype(np.float32))


def _read_array(path: Path) -> np.ndarray:
    """The one array of a .npy or .safetensors file; nothing that such a file may hold is executed."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
        if path.suffix == ".safetensors":
            (tensor,) = load_file(path).values()
            return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (ValueError, OSError, SyntaxError, TypeError, MemoryError, OverflowError, SafetensorError) as error:
        wanted = f"a readable {path.suffix} file without pickles, of one array"
        raise DataError(f"{path} is not {wanted}: {error}") from error
    raise DataError(f"{path} is of no known kind", "give .npy, .npz or .safetensors")


def possibly_leaky(encoder: str) -> list[str]:
    """Kinds of subjects whose vectors may come from held-out interactions: users, where others made the vectors."""
    return ["user"] if parse_encoder(encoder).kind == "given" else []
