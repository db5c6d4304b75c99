"""Profiles that others wrote: JSON files of texts by id become a profile set, marked as imported."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.base.storage import now, read_json, sha256_file, sha256_text
from spike_kit.data.dataset import FILLED, SUBJECTS, TEMPLATE, Dataset
from spike_kit.data.text import clean, without_markup
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
        JSON files by subject: ``item``, ``auxiliary``, ``user``. Their ids are the source ids of the study.
    maps
        Where the ids are others: files of lines ``source_id id``, by subject.
    fill
        ``template`` takes the template profile where the files have none; else a missing profile is an error.

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
    maps = maps or {}
    if unmapped := sorted(set(files) - set(maps)) if maps else []:
        raise DataError(
            f"the ids of some files are translated, those of {some(unmapped)} are not",
            "give a file of lines 'source_id id' for each of them",
        )
    if profiles == TEMPLATE:
        raise DataError(f"{profiles!r} names the template profiles", "choose another name")
    template = ensure_profiles(data) if fill else None
    created, parts, counts = now(), [], {}
    for subject in SUBJECTS:
        texts = _texts(data, subject, files[subject], maps.get(subject)) if subject in files else {}
        ids = list(data.expected_ids(subject))
        missing = [number for number in ids if number not in texts]
        if missing and template is None:
            raise DataError(
                f"{files.get(subject, 'no file')} leaves {len(missing)} of {len(ids)} {subject} profiles open: "
                f"{subject} {some(missing)}",
                "complete them from the template profiles with --fill template (marked in the table)",
            )
        counts[subject] = len(ids) - len(missing)
        frame = pd.DataFrame({"subject": subject, "id": ids, "text": [texts.get(number, "") for number in ids]})
        hashes = frame["text"].map(sha256_text)
        frame = frame.assign(prompt_sha256=hashes, model=MODEL, usage="{}", created=created)
        if template is not None and missing:
            own = template[template["subject"] == subject].set_index("id")
            gaps = frame["id"].isin(missing)
            for column in ("text", "prompt_sha256"):
                frame.loc[gaps, column] = own.loc[missing, column].to_numpy()
            frame.loc[gaps, "model"] = TEMPLATE
            frame.loc[gaps, "usage"] = FILLED
        parts.append(frame)
    provenance = {
        "kind": MODEL,
        "files": {subject: {"name": path.name, "sha256": sha256_file(path)} for subject, path in files.items()},
        "imported": counts,
        "possibly_leaky": [subject for subject in ("user",) if subject in files],
    }
    return data.write_profiles(profiles, pd.concat(parts, ignore_index=True), provenance)


def _texts(data: Dataset, subject: str, path: Path, ids: Path | None) -> dict[int, str]:
    """Texts by our ids; ids of the file that the study does not have are passed over."""
    table = data.users if subject == "user" else data.entities
    numbers = table["user" if subject == "user" else "entity"]
    ours = dict(zip(table["source_id"], numbers.tolist(), strict=True))
    wanted = data.expected_ids(subject)
    keys = ours if ids is None else _translated(ours, ids)
    texts: dict[int, str] = {}
    for key, value in _pairs(path).items():
        number = keys.get(key)
        if number is None or number not in wanted:
            continue
        if not isinstance(value, str):
            raise DataError(f"{path}: the profile of {key!r} is no text but {type(value).__name__}", "correct the file")
        if text := clean(without_markup(value)):
            texts[number] = text
    if not texts:
        example = next(iter(keys), "")
        raise DataError(
            f"{path} has no profile for any {subject} of {data.name} (an id here is {example!r})",
            _OTHER_IDS,
        )
    if subject != "user":
        _check_names(path, texts, table["label"].tolist())
    return texts


def _check_names(path: Path, texts: Mapping[int, str], labels: Sequence[str]) -> None:
    """Refuse texts that speak of other things than the study's ids mean: most should hold a word of the label."""
    named = [(set(_LONG_WORD.findall(labels[number].casefold())), text.casefold()) for number, text in texts.items()]
    told = [any(word in text for word in words) for words, text in named if words]
    if told and 2 * sum(told) < len(told):
        raise DataError(
            f"{path}: only {sum(told)} of {len(told)} profiles hold a word of the name of what they should describe",
            _OTHER_IDS,
        )


def _pairs(path: Path) -> dict[str, Any]:
    values = read_json(path)
    if not isinstance(values, dict):
        raise DataError(f"{path} is no JSON object of profiles by id", "expected {id: text, ...}")
    return values


def _translated(ours: Mapping[str, int], path: Path) -> dict[str, int]:
    """Ids of the file to ours, through lines ``source_id id``."""
    keys: dict[str, int] = {}
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            parts = line.rsplit(maxsplit=1)
            if not parts:
                continue
            if len(parts) != 2:
                raise DataError(f"{path} line {number} is not: source_id id", "correct it")
            if parts[1] in keys:
                raise DataError(f"{path} line {number}: id {parts[1]} stands there for the second time", "correct it")
            if (source_id := parts[0].strip()) in ours:
                keys[parts[1]] = ours[source_id]
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return keys
