"""A data set of six films in which every rule of the prompts can be seen, and a server in a thread for its tests."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pandas as pd

from spike_kit.base import paths
from spike_kit.base.storage import sha256_text
from spike_kit.data.dataset import Dataset, SourceFile, create_dataset
from spike_kit.data.tables import Tables
from tests.profiles import llm_server
from tests.profiles.llm_server import ScriptedServer, says

FILMS = ("Alien", "Aliens", "Gladiator", "Thelma", "Heat", "Brazil")
OTHERS = (
    ("person:scott", "Ridley Scott", "person"),
    ("genre:horror", "horror", "genre"),
    ("m.0dl567", "m.0dl567", "thing"),
    ("120415", "120415", "thing"),
    ("number:12", "12", "number"),
    ("m.0alone", "m.0alone", "thing"),
)
RELATIONS = (
    ("director", "{head} was directed by {tail}."),
    ("genre", "{head} is a {tail} film."),
    ("award", "{head} won {tail}."),
)
SCOTT, HORROR, FREEBASE, NUMBER, NAMED_NUMBER, ALONE = range(6, 12)
TRIPLES = (
    *((film, 0, SCOTT) for film in (0, 2, 3)),
    *((film, 1, HORROR) for film in (0, 1)),
    *((film, 2, FREEBASE) for film in (0, 1)),
    (4, 2, NUMBER),
    (4, 2, NAMED_NUMBER),
)
PAIRS = {
    "train": ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1), (2, 0)),
    "valid": ((0, 4), (2, 3), (3, 1)),
    "test": ((0, 5), (1, 2), (3, 2)),
}
INTERACTIONS = sorted((user, film, split) for split, pairs in PAIRS.items() for user, film in pairs)
"""Train interactions of the films: Alien 3, Aliens 2, Gladiator and Thelma 1, the others none; user 3 has none."""


def tiny_tables(
    labels: Mapping[int, str] | None = None,
    descriptions: Mapping[int, str] | None = None,
    triples: Sequence[tuple[int, int, int]] = TRIPLES,
    others: Sequence[tuple[str, str, str]] = OTHERS,
) -> Tables:
    """Tables of the data set; ``labels`` and ``descriptions`` take the place of some, by id."""
    nodes = [*((f"film:{number}", title, "item") for number, title in enumerate(FILMS)), *others]
    entities = pd.DataFrame(nodes, columns=["source_id", "label", "kind"]).rename_axis("entity").reset_index()
    entities["label"] = [(labels or {}).get(number, label) for number, label in enumerate(entities["label"])]
    items = entities[: len(FILMS)].rename(columns={"entity": "item"}).drop(columns="kind")
    users = range(1 + max(user for user, _, _ in INTERACTIONS))
    interactions = pd.DataFrame(INTERACTIONS, columns=["user", "item", "split"]).assign(rating=5.0, timestamp=None)
    return Tables(
        users=pd.DataFrame([(u, f"u{u}", f"User {u}") for u in users], columns=["user", "source_id", "label"]),
        items=items.assign(description=[(descriptions or {}).get(number, "") for number in items["item"]]),
        entities=entities,
        relations=pd.DataFrame(
            [(number, name, name, template) for number, (name, template) in enumerate(RELATIONS)],
            columns=["relation", "source_id", "label", "template"],
        ),
        interactions=interactions.astype({"timestamp": "Int64"}),
        triples=pd.DataFrame(triples, columns=["head", "relation", "tail"]),
    )


def tiny_study(
    name: str = "films",
    *,
    reviews: Mapping[tuple[int, int], str] | None = None,
    build: Mapping[str, Any] | None = None,
    tables: Tables | None = None,
) -> Dataset:
    """Write the data set under data/; ``reviews`` are texts by user and item, of any split."""
    splits = {(user, item): split for user, item, split in INTERACTIONS}
    rows = [(*pair, text, None, splits[pair]) for pair, text in sorted((reviews or {}).items())]
    frame = pd.DataFrame(rows, columns=["user", "item", "text", "timestamp", "split"]).astype({"timestamp": "Int64"})
    source = SourceFile(name="tiny.py", sha256="0" * 64, licence="MIT", origin="made by tests")
    return create_dataset(
        paths.data_root() / name,
        name,
        tables or tiny_tables(),
        sources=(source,),
        build=dict(build or {}),
        funnel=(),
        reviews=[frame] if rows else [],
        overwrite=True,
    )


def in_memory(tables: Tables) -> Dataset:
    """A data set that is on no disk, so that its tables may hold what no data-set folder would take."""
    if not (paths.data_root() / "template" / paths.MANIFEST).is_file():
        tiny_study("template")
    data = Dataset(paths.data_root() / "nowhere", Dataset.open("template").manifest)
    data.__dict__["tables"] = tables
    return data


def inside(user: str) -> list[str]:
    """Lines between the two fences of a prompt, which nothing but these lines could have named."""
    lines = user.splitlines()
    assert lines[0].startswith("BEGIN ")
    (end,) = [place for place, line in enumerate(lines) if line.startswith("END ")]
    fence = f"DATA {sha256_text(chr(10).join(lines[1:end]))[:12]}"
    assert (lines[0], lines[end], lines[end + 1 : -1]) == (f"BEGIN {fence}", f"END {fence}", [""])
    assert not any(line.startswith("BEGIN ") for line in lines[1:])
    return lines[1:end]


def prose(body: dict[str, Any]) -> str:
    """A harmless profile that names what the prompt is about."""
    quoted = [part for part in str(body["messages"][1]["content"]).split('"') if part][1]
    return f"This is a profile of {quoted}, which is liked by those who care for the sea and for the people in it."


@contextmanager
def served(answer: Callable[[dict[str, Any]], str] = prose) -> Iterator[ScriptedServer]:
    """Run a server in a thread; ``answer`` makes the text of an answer from the body of a request."""
    with ScriptedServer(lambda _: says(lambda asked: answer(asked.body))) as server:
        yield server


NOWHERE = "http://127.0.0.1:9/v1"
"""Address at which no server is."""

generation = partial(llm_server.generation, profiles="llm", model="small-model")
"""A generation that asks a server of these tests."""
