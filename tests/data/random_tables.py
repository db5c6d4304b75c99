"""Random small tables of a data set, for round trips."""

from pathlib import Path

import pandas as pd
from hypothesis import strategies as st

from spike_kit.data.dataset import Dataset, Manifest
from spike_kit.data.sources.spike_release import VECTORS
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.text import clean, plain
from spike_kit.data.vectors import ProfileVectors

_NASTY = st.sampled_from(
    [
        *('"quoted', '"', "nan", "NULL", "1", "1.0", "007", "&amp;lt;b&amp;gt;", "&amp;amp;", "<\u200bb>bold", "\\N"),
        *("e\u200b\u0301", "{head}", "#", "a,b;c|d", "日本 語", "\u200cx", "  a   b ", "\ufeffx", "'", "a<b & c>d"),
    ]
)
_CHARACTERS = st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])
_TEXT = st.one_of(_NASTY, st.text(_CHARACTERS, max_size=12), st.text('&<>b/;lt"amp ', max_size=12))
_LABEL = _TEXT.map(plain).filter(bool)
ANY_IDS = st.one_of(
    st.integers(0, 30).map(str),
    st.text(_CHARACTERS, min_size=1, max_size=6).map(str.strip).filter(bool),
    st.sampled_from(["1.0", 'a"b', "a  b"]),
)
"""Ids as a data set may have them: readers take off the blanks around them."""
BARE_IDS = (
    st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp", "Zs", "Cf", "Co", "Cn"]) | st.just(" "))
    .map(lambda text: " ".join(text.split())[:8].strip())
    .filter(bool)
) | st.sampled_from(["user:1", "user:0", "1 0", '"1" 2 3', "item:0", "entity:1", "relation:0", "0"])
"""Ids that neither begin nor end in a blank."""


@st.composite
def tables(draw: st.DrawFn, ids: st.SearchStrategy[str] = BARE_IDS) -> Tables:
    """Draw the tables of a small data set; some users, items, entities and relations have no interaction or triple."""
    n_users, n_items, n_other, n_relations = (draw(st.integers(low, 4)) for low in (1, 1, 0, 1))

    def texts(strategy: st.SearchStrategy[str], count: int, unique: bool = False) -> pd.Series:
        return pd.Series(draw(st.lists(strategy, min_size=count, max_size=count, unique=unique)), dtype="str")

    nodes, labels = texts(ids, n_items + n_other, unique=True), texts(_LABEL, n_items + n_other)
    kinds = texts(_TEXT.map(clean).filter(lambda kind: kind not in ("", "item")), n_other)
    pairs = st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1))
    chosen = pd.DataFrame(sorted(draw(st.sets(pairs, min_size=1, max_size=8))), columns=["user", "item"])
    n = len(chosen)
    split = texts(st.sampled_from(SPLITS), n).where(chosen["user"].duplicated(), "train")
    rating = draw(st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False), min_size=n, max_size=n))
    stamp = draw(st.lists(st.none() | st.integers(-(2**53), 2**53), min_size=n, max_size=n))
    node = st.integers(0, len(nodes) - 1)
    triples = draw(st.sets(st.tuples(node, st.integers(0, n_relations - 1), node), min_size=1, max_size=8))
    sources = texts(ids, n_users, unique=True), texts(ids, n_relations, unique=True)
    sentences = texts(_TEXT.map(lambda text: clean(f"{{head}} {text} {{tail}}")), n_relations)
    columns = {"entity": range(len(nodes)), "source_id": nodes, "label": labels}
    entities = pd.DataFrame({**columns, "kind": pd.Series(["item"] * n_items + kinds.tolist(), dtype="str")})
    items = entities[:n_items].rename(columns={"entity": "item"}).drop(columns="kind")
    relations = {"relation": range(n_relations), "source_id": sources[1], "label": texts(_LABEL, n_relations)}
    return Tables(
        users=pd.DataFrame({"user": range(n_users), "source_id": sources[0], "label": texts(_LABEL, n_users)}),
        items=items.assign(description=texts(_TEXT.map(plain), n_items)),
        entities=entities,
        relations=pd.DataFrame({**relations, "template": sentences}),
        interactions=chosen.assign(
            split=split, rating=pd.array(rating, dtype="float64"), timestamp=pd.array(stamp, dtype="Int64")
        ),
        triples=pd.DataFrame(sorted(triples), columns=["head", "relation", "tail"]),
    )


def in_memory(made: Tables, path: Path, vectors: ProfileVectors | None = None) -> Dataset:
    """A data set that is not written (but for its vectors): round trips by the hundred need no disk."""
    manifest = Manifest(schema_version=1, name=path.name, sources=(), build={}, funnel=(), counts={}, tables={})
    data = Dataset(path, manifest)
    data.__dict__["tables"] = made
    if vectors is not None:
        vectors.save(data.embeddings_path(*VECTORS), {})
    return data
