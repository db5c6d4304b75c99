"""What others made, or what the kit ships: texts by id become a profile set, vectors become those of an encoder."""

import logging
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.base.storage import now, read_json, read_text, sha256_file, sha256_text
from spike_kit.data.dataset import FILLED, SUBJECTS, TEMPLATE, Dataset, parts_of
from spike_kit.data.sources.spike_release import read_vectors
from spike_kit.data.text import plain
from spike_kit.data.vectors import LEFT_OUT, ProfileVectors
from spike_kit.profiles.encode import parse_encoder
from spike_kit.profiles.shipped import read_shipped, shipped_sets
from spike_kit.profiles.template import ensure_profiles

_OTHER_IDS = "its ids are others: give files of lines 'source_id id' with --item-map, --user-map, --auxiliary-map"
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")

logger = logging.getLogger(__name__)

MODEL = "imported"
"""Model of a profile that others wrote."""

_ENOUGH, _CLEAR = 30, 3.0
"""Texts that can tell whether they fit, at least, and from how many standard deviations a sign test is clear."""

_LINKS = 50
"""Most links of an entity whose names count as words of it."""


def import_profiles(
    data: Dataset,
    profiles: str,
    files: Mapping[str, Path],
    maps: Mapping[str, Path] | None = None,
    fill: Literal["", "template"] = "",
    insist: bool = False,
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
    insist
        Only warn of texts that fit these ids no better than others.

    Returns
    -------
    Path
        The profiles table.

    Raises
    ------
    DataError
        If a file is missing, is not of this form, fits other ids as well, or leaves a subject without a profile.
    """
    if not files or not set(files) <= set(SUBJECTS):
        raise DataError(
            f"profiles can be imported for {', '.join(SUBJECTS)}, not for {some(sorted(files)) or 'nothing'}"
        )
    if profiles == TEMPLATE:
        raise DataError(f"{profiles!r} names the template profiles", "choose another name")
    texts = {subject: _texts(data, subject, path, (maps or {}).get(subject)) for subject, path in files.items()}
    for subject in sorted(texts.keys() - {"user"}):
        _check_fit(data, files[subject], texts[subject], insist)
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
    is_leak = manifest["split_sha256"] != data.split_sha256
    absent: list[dict[str, Any]] = []
    if is_leak:
        absent.append({"subject": "user", "reason": "they were written for another split and would be a leak"})
    texts = {}
    for subject, part in packed.groupby("subject"):
        ids = _ids(data, str(subject))
        unsaid = {ids[source_id]: reason for source_id, reason in manifest["left_out"].items() if source_id in ids}
        absent += [{"subject": subject, "ids": [number], "reason": reason} for number, reason in unsaid.items()]
        if subject != "user" or not is_leak:
            told = dict(zip(part["source_id"], part["text"], strict=True))
            texts[subject] = {n: told[who] for who, n in ids.items() if who in told and n not in unsaid}
    provenance = {"kind": "shipped", "free": True, **{key: manifest[key] for key in ("about", "model", "licence")}}
    return _write(data, profiles, texts, absent, fill, manifest["model"], provenance)


def _ids(data: Dataset, subject: str) -> dict[str, int]:
    """Ids of the subjects of one kind by their source ids."""
    table = data.users if subject == "user" else data.entities
    wanted = data.expected_ids(subject)
    return dict(zip(table["source_id"].iloc[wanted.start : wanted.stop], wanted, strict=True))


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
    ours = _ids(data, subject)
    keys, values = ours if ids is None else _translated(ours, ids), read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object of profiles by id", "expected {id: text, ...}")
    texts = {key: value for key, value in values.items() if key in keys}
    for key, value in texts.items():
        if not isinstance(value, str):
            raise DataError(f"{path}: the profile of {key!r} is no text but {type(value).__name__}", "correct the file")
    cleaned = {keys[key]: text for key, value in texts.items() if (text := plain(value))}
    if not cleaned:
        example = next(iter(keys), "")
        raise DataError(f"{path} has no profile for any {subject} of {data.name} (an id: {example!r})", _OTHER_IDS)
    return cleaned


def _check_fit(data: Dataset, path: Path, texts: Mapping[int, str], insist: bool) -> None:
    """Refuse texts that fit their ids no better than those of others, or warn of them.

    They are compared with the ids next to theirs, before and after (in an alphabet those share words), and with ids far
    away: a sign test each, over the texts whose two ids have different words.
    """
    words, own = _words(data, sorted(texts)), [texts[number].casefold() for number in sorted(texts)]
    tests = [_compared(own, words, step) for step in (1, -1, len(own) // 3)]
    judged = [test for test in tests if test[0] >= _ENOUGH]
    if not judged:
        logger.warning("%s has too few profiles of different names to tell whether they belong to these ids", path)
        return
    able, wins, losses = min(judged, key=_sigmas)
    if _sigmas((able, wins, losses)) > _CLEAR:
        return
    error = DataError(
        f"{path}: only {wins} of {able} profiles hold a word of the names at their id (its own and those of its links) "
        f"rather than at another id, {losses} the other way round: they fit these ids no better than others",
        f"{_OTHER_IDS}; if they are right, take them all the same with --insist",
    )
    if not insist:
        raise error
    logger.warning("%s", error)


def _words(data: Dataset, numbers: Sequence[int]) -> list[set[str]]:
    """Long words of the labels of some entities and of what they are directly linked to."""
    labels = [set(_LONG_WORD.findall(label.casefold())) for label in data.entities["label"]]
    words = {number: set(labels[number]) for number in numbers}
    ends = data.triples[["head", "tail"]].to_numpy()
    links = pd.DataFrame(np.concatenate([ends, ends[:, ::-1]]), columns=["one", "other"])
    links = links[links["one"].isin(numbers)].groupby("one").head(_LINKS)
    for one, other in links.to_numpy().tolist():
        words[one] |= labels[other]
    return list(words.values())


def _compared(texts: Sequence[str], words: Sequence[set[str]], step: int) -> tuple[int, int, int]:
    """Texts whose own words differ from those some steps on, texts that share more with theirs, and with the others.

    The fewer things a word stands at, the more it counts.
    """
    weights = {word: math.log(len(words) / n) for word, n in Counter(word for own in words for word in own).items()}
    able, wins, losses = 0, 0, 0
    for place, (text, own) in enumerate(zip(texts, words, strict=True)):
        other = words[(place + step) % len(words)]
        # fsum: the order of a set, which changes from run to run, must not matter.
        here, there = (math.fsum(weights[word] for word in side if word in text) for side in (own - other, other - own))
        able += own != other
        wins += here > there
        losses += there > here
    return able, wins, losses


def _sigmas(test: tuple[int, int, int]) -> float:
    """How clear a sign test is, in standard deviations."""
    _, wins, losses = test
    return (wins - losses) / math.sqrt(max(wins + losses, 1))


def _translated(ours: Mapping[str, int], path: Path) -> dict[str, int]:
    """Ids of the file to ours, through lines ``source_id id``."""
    keys: dict[str, int | None] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
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
