"""Profile sets that come with the kit: texts by a language model under the source ids of a data set, and their vectors.

A set is a folder ``profiles/<reader>/<name>`` beside the readers (`spike_kit.data.sources`): ``manifest.json`` with its
provenance and the sha256 of the other files, ``texts.jsonl.xz`` with one JSON object a line (subject, source_id, text),
and ``<encoder>.safetensors`` with the vectors of these texts, in their order and in half precision.
"""

import json
import lzma
from collections.abc import Collection, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from spike_kit.base import paths, storage
from spike_kit.base.errors import DataError
from spike_kit.data import sources
from spike_kit.data.dataset import TEMPLATE, Dataset, parts_of

ROOT = Path(sources.__file__).parent / "profiles"
"""Folder of all shipped sets."""

TEXTS = "texts.jsonl.xz"


def shipped_sets(data: Dataset) -> dict[str, Path]:
    """Folders of the profile sets that come with a data set's reader, by name."""
    folder = ROOT / str(data.manifest.build.get("source"))
    return {manifest.parent.name: manifest.parent for manifest in sorted(folder.glob(f"*/{paths.MANIFEST}"))}


@lru_cache(maxsize=4)
def read_shipped(folder: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """Manifest of a shipped set, and its texts: subject (item, auxiliary, user), source_id, text.

    Raises
    ------
    DataError
        If a file is missing or was changed.
    """
    manifest = storage.read_json(folder / paths.MANIFEST)
    for name, sha256 in manifest["files"].items():
        if not (folder / name).is_file() or storage.sha256_file(folder / name) != sha256:
            raise DataError(f"{folder / name} is missing or was changed", "install the package again")
    with lzma.open(folder / TEXTS, "rt", encoding="utf-8") as file:
        return manifest, pd.DataFrame(map(json.loads, file), columns=["subject", "source_id", "text"], dtype="str")


def shipped_vectors(encoder: str, keys: Collection[str]) -> dict[str, np.ndarray]:
    """Vectors ``[d_t]`` float32 by an encoder, by the sha256 of their text, for those of ``keys`` that are shipped."""
    found = {}
    for file in sorted(ROOT.glob(f"*/*/{_vectors_name(encoder)}")):
        keys_of_rows = _text_keys(file.parent)  # which checks all files of the set
        for key, row in zip(keys_of_rows, load_file(file)["vectors"], strict=True):
            if key in keys:
                found[key] = row.astype(np.float32)
    return found


@lru_cache(maxsize=4)
def _text_keys(folder: Path) -> list[str]:
    return [storage.sha256_text(text) for text in read_shipped(folder)[1]["text"]]


def usual_profiles(data: Dataset) -> dict[str, str]:
    """Give ``profiles`` and SPiKE's ``preset`` that did best on validation for a data set, as what ships with it says.

    The profile set may be a composed one. Of other data sets: ``template`` and ``recommended``. Where the task is new
    items: both kinds of profiles together, and ``new_items``.
    """
    usual = {"profiles": TEMPLATE, "preset": "recommended"}
    for folder in shipped_sets(data).values():
        told: dict[str, str] = read_shipped(folder)[0].get("usual", {})
        if told and set(parts_of(told["profiles"])) <= {TEMPLATE, *data.profile_sets()}:
            usual = dict(told)
    if data.task == "new-items":
        parts = dict.fromkeys([TEMPLATE, *parts_of(usual["profiles"])])
        usual = {"profiles": "+".join(parts), "preset": "new_items"}
    return usual


def told_of(data: Dataset, profiles: str) -> list[str]:
    """Sentences on how a profile set came about and what it leaves out, for whoever looks at it."""
    lines = []
    for part in parts_of(profiles):
        lines += data.provenance(part).get("about", [])
        reasons = pd.DataFrame(data.left_out(part), columns=["subject", "ids", "reason"])
        for (subject, reason), group in reasons.groupby(["subject", "reason"], sort=False):
            n = sum(len(ids) if isinstance(ids, list) else len(data.expected_ids(str(subject))) for ids in group["ids"])
            lines.append(f"{part} leaves out {n} {subject} profiles: {reason}.")
    return lines


def pack(
    folder: Path, texts: pd.DataFrame, vectors: Mapping[str, np.ndarray], provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a profile set as one that ships; equal content gives equal files. Returns its manifest.

    Parameters
    ----------
    folder
        ``ROOT / <reader> / <name>``.
    texts
        Columns subject, source_id, text.
    vectors
        Of these texts ``[n, d_t]``, by encoder.
    provenance
        ``about`` (sentences: who wrote the texts, from what, what is not known), ``model``, ``licence``; ``usual``: the
        ``profiles``, of this set and others, and SPiKE's ``preset`` for them that did best on validation;
        ``split_sha256`` (`Dataset.split_sha256`) of the split whose train part the user texts saw; ``left_out``:
        reasons by the source ids that have no text on purpose.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [storage.canonical_json(row) + "\n" for row in texts[["subject", "source_id", "text"]].to_dict("records")]
    packed = lzma.compress("".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    (folder / TEXTS).write_bytes(packed)
    for encoder, rows in vectors.items():
        save_file({"vectors": np.ascontiguousarray(rows, dtype=np.float16)}, folder / _vectors_name(encoder))
    files = sorted(file for file in folder.iterdir() if file.name != paths.MANIFEST)
    manifest = {**provenance, "files": {file.name: storage.sha256_file(file) for file in files}}
    storage.write_json(folder / paths.MANIFEST, manifest)
    return manifest


def _vectors_name(encoder: str) -> str:
    return f"{quote(encoder, safe='')}.safetensors"
