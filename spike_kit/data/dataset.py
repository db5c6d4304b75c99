"""The data-set folder: the contract between all stages.

``data/<name>/`` holds the tables (`spike_kit.data.tables`), ``manifest.json``, the profile sets and
the embeddings of every encoder. Every read is checked; every write is all or nothing.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, unquote

import pandas as pd
import pyarrow
import pyarrow.parquet
from pydantic import Field

from spike_kit.base import paths, storage
from spike_kit.base.config import Config
from spike_kit.base.errors import ConfigError, DataError, some
from spike_kit.data import TEMPLATE
from spike_kit.data.tables import SUBJECTS, Tables, check_frame, checked_reviews
from spike_kit.data.vectors import LEFT_OUT, ProfileVectors

SCHEMA_VERSION = 1
"""Version of the layout of data-set folders written by this code."""

FILLED = '{"filled": true}'
"""``usage`` of a profile that stands in for one that its set does not have."""


class SourceFile(Config):
    """A file that a data-set folder was built from."""

    name: str
    """File name, without its folder."""
    sha256: str
    """Hexadecimal sha256 of its bytes."""
    licence: str
    """Licence or terms of use."""
    origin: str
    """Where it comes from, in words or as an identifier."""


class Manifest(Config):
    """What a data-set folder is made of; equal inputs and settings give an equal manifest."""

    schema_version: int
    """Layout version, `SCHEMA_VERSION`."""
    name: str
    """Name of the data set."""
    sources: tuple[SourceFile, ...]
    """Files it was built from."""
    build: dict[str, Any]
    """Settings of the recipe."""
    funnel: tuple[dict[str, Any], ...]
    """Steps of the build in order; each has ``step`` and the row counts after it."""
    counts: dict[str, int]
    """Rows of the final tables, interactions per split too."""
    tables: dict[str, str]
    """sha256 of each table's file."""
    notes: tuple[str, ...] = ()
    """Warnings a reader must know (facts that may encode held-out behaviour, say)."""
    published: dict[str, int] = Field(default_factory=dict)
    """Counts that were published for the raw data, if it is a known data set; compare with the first row of the
    funnel."""
    published_in: str = ""
    """Where they were published."""


@dataclass(frozen=True)
class Dataset:
    """An existing data-set folder; tables are read and checked on first use.

    Use `Dataset.open` with a data set's name or a path, or `create_dataset` to write a new one.
    """

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, dataset: str | Path) -> Self:
        """Open the data-set folder of a data set's name (under data/) or at a path.

        Raises
        ------
        DataError
            If the folder does not exist, or its manifest is broken or of another layout version.
        """
        path = paths.find_dataset(dataset)
        values = storage.read_json(path / paths.MANIFEST)
        version = values.get("schema_version") if isinstance(values, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"{path / paths.MANIFEST} has schema version {version!r}, this code reads {SCHEMA_VERSION}",
                "build the data set again with this version",
            )
        try:
            return cls(path, Manifest.parse(values))
        except ConfigError as error:
            raise DataError(
                f"{path / paths.MANIFEST} is damaged: {error.message}", "build the data set again"
            ) from error

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.manifest.name

    @property
    def task(self) -> str:
        """Task it was built for: ``known``, ``new-items`` or ``few-interactions`` (docs/datasets.md)."""
        return str(self.manifest.build.get("task", "known"))

    @cached_property
    def tables(self) -> Tables:
        """All tables, checked (see `spike_kit.data.tables.SCHEMAS`).

        Raises
        ------
        DataError
            If a table is missing, changed since the build, or breaks a rule.
        """
        files = {field.name: self.path / f"{field.name}.parquet" for field in fields(Tables)}
        tables = Tables(**{name: storage.read_parquet(file) for name, file in files.items()})
        for file in files.values():
            self._check_unchanged(file)
        tables.check(self.path)
        return tables

    @property
    def users(self) -> pd.DataFrame:
        """Users: user, source_id, label."""
        return self.tables.users

    @property
    def items(self) -> pd.DataFrame:
        """Items: item, source_id, label, description."""
        return self.tables.items

    @property
    def entities(self) -> pd.DataFrame:
        """Entities (items first): entity, source_id, label, kind."""
        return self.tables.entities

    @property
    def relations(self) -> pd.DataFrame:
        """Relations: relation, source_id, label, template."""
        return self.tables.relations

    @property
    def interactions(self) -> pd.DataFrame:
        """Interactions: user, item, split, rating, timestamp."""
        return self.tables.interactions

    @property
    def triples(self) -> pd.DataFrame:
        """Triples without inverses: head, relation, tail."""
        return self.tables.triples

    def _check_unchanged(self, file: Path) -> None:
        if file_sha256(file) != self.manifest.tables.get(file.stem):
            raise DataError(f"{file} was changed after the build (its sha256 differs)", "build the data set again")

    @property
    def has_reviews(self) -> bool:
        """Whether the data set has reviews."""
        return "reviews" in self.manifest.tables

    @cached_property
    def reviews_file(self) -> Path:
        """File of the reviews of all splits; `spike_kit.data.workspace` gives those of train.

        Raises
        ------
        DataError
            If the data set has no reviews, or their file is missing or was changed.
        """
        file = self.path / "reviews.parquet"
        if not file.is_file():
            problem = f"data set {self.name} has no reviews: {file} does not exist"
            raise DataError(problem, "build it again, from a source that has them")
        self._check_unchanged(file)
        return file

    def split(self, name: str) -> pd.DataFrame:
        """Interactions of one split (train, valid or test)."""
        return self.interactions[self.interactions["split"] == name]

    @property
    def split_sha256(self) -> str:
        """Hexadecimal sha256 of who met what in which split, by source ids: the same however the files are written."""
        users, items = (table["source_id"].to_numpy() for table in (self.users, self.items))
        told = self.interactions
        rows = zip(users[told["user"]], items[told["item"]], told["split"], strict=True)
        return storage.sha256_text(storage.canonical_json(sorted(rows)))

    def expected_ids(self, subject: str) -> range:
        """Return the ids that need a profile: user ids, item ids, or the ids of the other entities."""
        n_items = len(self.items)
        return {
            "item": range(n_items),
            "auxiliary": range(n_items, len(self.entities)),
            "user": range(len(self.users)),
        }[subject]

    def profiles_path(self, name: str) -> Path:
        """File of the profiles of a set."""
        return self.path / "profiles" / f"{name}.parquet"

    def profile_sets(self) -> list[str]:
        """Names of the profile sets that exist; any of them, joined by ``+``, name a composed one (`parts_of`)."""
        return sorted(path.stem for path in (self.path / "profiles").glob(f"{paths.VISIBLE}.parquet"))

    def profiles(self, name: str = "template") -> pd.DataFrame:
        """Profiles of a set: one row for every item, auxiliary entity and user, in this order, ids ascending.

        Subjects that the set leaves out by declaration (`left_out`) have no row. A row of a composed set holds the
        texts of its parts, one after the other.

        Raises
        ------
        DataError
            If there is no such set, or a subject has no profile (its ids are named).
        """
        if len(parts := parts_of(name)) > 1:
            every = pd.concat([self.profiles(part) for part in parts])
            joined = every.groupby(["subject", "id"], sort=False).agg({"text": " ".join}).reset_index()
            joined = joined.assign(prompt_sha256="", model=name, usage="{}", created="")
            return joined.sort_values(["subject", "id"], key=_in_order, ignore_index=True)
        file = self.profiles_path(name)
        if not file.is_file():
            raise DataError(
                f"data set {self.name} has no profile set {name!r} ({file} does not exist)",
                f"known here: {some(self.profile_sets()) or 'none'}; write them with: spike-kit profile {self.name}",
            )
        return self._checked_profiles(storage.read_parquet(file), str(file), self.left_out(name))

    def write_profiles(
        self, name: str, profiles: pd.DataFrame | Iterable[pd.DataFrame], provenance: dict[str, Any] | None = None
    ) -> Path:
        """Write the profiles of a set (columns: `spike_kit.data.tables.SCHEMAS`); all or nothing.

        Parameters
        ----------
        profiles
            All of them, checked as on reading; or batches of rows in the order of `profiles`, checked when read.
        provenance
            Plain values (how the texts came about, for whom they may leak held-out behaviour) that the file keeps;
            ``left_out`` declares subjects without a profile, see `left_out`.

        Raises
        ------
        DataError
            If a row is missing or wrong, or the name of the set is not usable.
        """
        check_profiles_name(name)
        file, absent = self.profiles_path(name), (provenance or {}).get(LEFT_OUT, [])
        if isinstance(profiles, pd.DataFrame):
            profiles = [self._checked_profiles(profiles, f"profile set {name}", absent)]
        with storage.atomic_file(file) as temporary:
            rows = _write_batches(temporary, profiles, {"provenance": provenance or {}})
            if rows != (due := len(self._due(absent))):
                raise DataError(f"profile set {name}: {rows} profiles, expected {due}", "write the profiles again")
        return file

    def provenance(self, name: str) -> dict[str, Any]:
        """How the profiles of a set came about; empty if the file does not say or does not exist.

        Of a composed set: its ``parts``, and for whom any of them may leak held-out behaviour.
        """
        if len(parts := parts_of(name)) == 1:
            return _provenance(self.profiles_path(name))
        found = {part: self.provenance(part) for part in parts}
        leaky = sorted({who for told in found.values() for who in told.get("possibly_leaky", ())})
        return {"parts": found, "possibly_leaky": leaky}

    def left_out(self, name: str) -> list[dict[str, Any]]:
        """Subjects that a profile set declares to leave out.

        Returns
        -------
        list
            subject (item, auxiliary, user), ids (none: all of this kind), reason; of a composed set also its part.
        """
        if len(parts := parts_of(name)) == 1:
            return self.provenance(name).get(LEFT_OUT, [])
        return [{"part": part, **absent} for part in parts for absent in self.left_out(part)]

    def _due(self, absent: Sequence[Mapping[str, Any]]) -> pd.MultiIndex:
        """Subjects and ids that need a profile, in order."""
        every = pd.MultiIndex.from_tuples((kind, number) for kind in SUBJECTS for number in self.expected_ids(kind))
        gone = [(one["subject"], i) for one in absent for i in one.get("ids") or self.expected_ids(one["subject"])]
        return every.difference(pd.MultiIndex.from_tuples(gone), sort=False) if gone else every

    def _checked_profiles(self, frame: pd.DataFrame, where: str, absent: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        check_frame("profiles", frame, where)
        due = self._due(absent)
        found = pd.MultiIndex.from_frame(frame[["subject", "id"]])
        for problem, wrong in (("no profile for", due.difference(found)), ("unknown", found.difference(due))):
            if len(wrong):
                raise DataError(
                    f"{where}: {problem} {some(f'{subject} {number}' for subject, number in wrong)}; every item, "
                    "auxiliary entity and user of the data set needs exactly one row",
                    "write the profiles again, or complete them with --fill template (marked in the table)",
                )
        return frame.set_index(found).loc[due].reset_index(drop=True)

    def embeddings_path(self, profiles: str, encoder: str) -> Path:
        """File of the vectors of a profile set, not of a composed one, under an encoder."""
        return self.path / "embeddings" / _vectors_name(profiles, encoder)

    def encoded(self) -> list[tuple[str, str]]:
        """Pairs of profile set and encoder whose vectors exist."""
        files = sorted((self.path / "embeddings").glob(f"{paths.VISIBLE}--*.safetensors"))
        pairs = (file.stem.split("--", 1) for file in files)
        return [(name, unquote(encoder)) for name, encoder in pairs]

    def vectors(self, profiles: str = "template", encoder: str = "all-MiniLM-L6-v2") -> ProfileVectors:
        """Vectors of all profiles of a set under an encoder; a process loads and checks the same files once.

        Those of a composed set are the vectors of its parts side by side. What a part leaves out is zero there.

        Raises
        ------
        DataError
            If the file is missing, has another number of rows than the data set, or holds NaN or infinity.
        """
        states = []
        for part in parts_of(profiles):
            file = self.embeddings_path(part, encoder)
            if not file.is_file():
                raise DataError(
                    f"data set {self.name} has no embeddings of profile set {part!r} by encoder {encoder!r} "
                    f"({file} does not exist)",
                    f"make them with: spike-kit encode {self.name} --profiles {part} --encoder {encoder}",
                )
            states.append(_state(file))
        return _load_vectors(tuple(states), len(self.users), len(self.entities))

    def vectors_sha256(self, profiles: str, encoder: str) -> str:
        """Hexadecimal sha256 of the file of `vectors`, empty if there is none; a process hashes the same file once.

        Of a composed set: that of the hashes of its parts.
        """
        files = [self.embeddings_path(part, encoder) for part in parts_of(profiles)]
        if not all(file.is_file() for file in files):
            return ""
        hashes = [file_sha256(file) for file in files]
        return hashes[0] if len(hashes) == 1 else storage.sha256_text(storage.canonical_json(hashes))


def _in_order(column: pd.Series) -> pd.Series:
    """Values by which subjects, and ids, are sorted."""
    return column.map(SUBJECTS.index) if column.name == "subject" else column


State = tuple[Path, int, int, int]


def _state(file: Path) -> State:
    """What tells whether a file is still the same, without reading it."""
    stat = file.stat()
    return file, stat.st_ino, stat.st_mtime_ns, stat.st_size


def file_sha256(file: Path) -> str:
    """Hexadecimal sha256 of a file's bytes; a process reads the same file once."""
    return _sha256(_state(file))


@lru_cache(maxsize=1024)
def _sha256(state: State) -> str:
    return storage.sha256_file(state[0])


@lru_cache(maxsize=2)
def _load_vectors(states: tuple[State, ...], n_users: int, n_entities: int) -> ProfileVectors:
    parts = []
    for file, *_ in states:
        parts.append(ProfileVectors.load(file))
        parts[-1].check(n_users, n_entities, str(file))
    return ProfileVectors.beside(parts)


def _vectors_name(profiles: str, encoder: str) -> str:
    return f"{profiles}--{quote(encoder, safe='')}.safetensors"


def create_dataset(
    path: Path,
    name: str,
    tables: Tables,
    *,
    reviews: Iterable[pd.DataFrame] = (),
    embeddings: dict[tuple[str, str], ProfileVectors] | None = None,
    overwrite: bool = False,
    **facts: Any,
) -> Dataset:
    """Write a data-set folder: all tables checked, then the whole folder put in place at once.

    An existing data-set folder at ``path`` is replaced as a whole; its profiles and embeddings belong to the old ids
    and go with it. Profiles that the kit cannot write again at no cost are lost only with ``overwrite``.

    Parameters
    ----------
    path, name, tables
        The folder, the name of the data set, and its tables.
    reviews
        Batches; each is checked and written before the next is asked for.
    embeddings
        Vectors that came with the source, by (profile set, encoder).
    overwrite
        Replace a data-set folder even if that deletes profiles that cost something.
    facts
        Other fields of the `Manifest`: sources, build, funnel (read after the last of the reviews), notes, published.

    Raises
    ------
    DataError
        If a table breaks a rule, or ``path`` may not be replaced; nothing is written then.
    StorageError
        If the disk is full; what stood at ``path`` before is untouched.
    """
    tables.check()
    check_replaceable(path, overwrite)
    with storage.atomic_folder(path) as folder:
        counts = tables.counts()
        for table, frame in tables.named().items():
            frame.to_parquet(folder / f"{table}.parquet", index=False, compression="zstd")
        checked = checked_reviews(reviews, tables.interactions)
        if n_reviews := _write_batches(folder / "reviews.parquet", checked, use_dictionary=False):
            counts["reviews"] = n_reviews
        hashes = {file.stem: storage.sha256_file(file) for file in sorted(folder.glob("*.parquet"))}
        for (profiles, encoder), vectors in (embeddings or {}).items():
            vectors.check(len(tables.users), len(tables.entities), f"embeddings of {profiles}")
            target = folder / "embeddings" / _vectors_name(profiles, encoder)
            vectors.save(target, {"source": profiles, "encoder": encoder})
        manifest = Manifest(schema_version=SCHEMA_VERSION, name=name, counts=counts, tables=hashes, **facts)
        storage.write_json(folder / paths.MANIFEST, manifest.model_dump(mode="json"))
    return Dataset.open(path)


def _write_batches(
    file: Path, batches: Iterable[pd.DataFrame], attributes: dict[Any, Any] | None = None, **options: Any
) -> int:
    """Write batches of rows as one Parquet file; without any there is no file. Returns the number of rows."""
    rows = 0
    with ExitStack() as stack:
        writer: pyarrow.parquet.ParquetWriter | None = None
        for batch in batches:
            batch.attrs = attributes or {}
            table = pyarrow.Table.from_pandas(batch, preserve_index=False)
            if writer is None:
                writer = pyarrow.parquet.ParquetWriter(file, table.schema, compression="zstd", **options)
                stack.enter_context(writer)
            writer.write_table(table)
            rows += len(batch)
    return rows


def _provenance(file: Path) -> dict[str, Any]:
    """What `Dataset.write_profiles` kept in a profiles table."""
    try:
        metadata = pyarrow.parquet.read_schema(file).metadata or {}
        return dict(json.loads(metadata[b"pandas"])["attributes"]["provenance"])
    except (OSError, KeyError, ValueError, TypeError, pyarrow.ArrowException):
        return {}


def texts_by_subject(profiles: pd.DataFrame) -> dict[tuple[str, int], str]:
    """Texts of a profiles table by subject and id."""
    pairs = zip(profiles["subject"], profiles["id"].tolist(), strict=True)
    return dict(zip(pairs, profiles["text"], strict=True))


def parts_of(profiles: str) -> list[str]:
    """Profile sets of which a composed one (``template+claude``) is made; a plain one is its only part.

    Raises
    ------
    DataError
        If a part has no usable name, or stands there twice.
    """
    parts = profiles.split("+")
    for part in parts:
        check_profiles_name(part)
    if len(set(parts)) < len(parts):
        raise DataError(f"{profiles!r} names a profile set twice", "name each part once")
    return parts


def check_profiles_name(name: str) -> None:
    """Check that a name can be that of a profile set.

    Raises
    ------
    DataError
        If it cannot stand in a file name, or holds the ``--`` that separates it from the encoder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or "--" in name:
        raise DataError(
            f"{name!r} cannot be the name of a profile set",
            "use letters, digits, '.', '_' and single '-', and begin with a letter or digit",
        )


def check_replaceable(path: Path, overwrite: bool) -> None:
    """Check that a new data set may take the place of what stands at ``path``.

    Raises
    ------
    DataError
        If that is no data-set folder, or holds profiles that cost something (unless ``overwrite``).
    """
    if not path.exists():
        return
    if not (path / paths.MANIFEST).is_file():
        raise DataError(f"{path} exists and is no data-set folder; it is not replaced", "choose another name")
    kept = sorted(file.stem for file in (path / "profiles").glob(f"{paths.VISIBLE}.parquet"))
    precious = [
        name for name in kept if name != TEMPLATE and not _provenance(path / "profiles" / f"{name}.parquet").get("free")
    ]
    if precious and not overwrite:
        raise DataError(
            f"{path} holds profiles of {some(precious)}, which a new build would delete",
            "build under another name, move them away, or build with --overwrite",
        )
