from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given

from spike_kit.base.errors import DataError
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.export import export
from spike_kit.data.pipeline import reorganize
from spike_kit.data.recipes import UNFILTERED
from spike_kit.data.sources.recbole import MAX_TIMESTAMP, MISSING, RecboleConfig, parse
from spike_kit.data.tables import Tables
from spike_kit.data.workspace import Workspace, workspace
from tests.data.checks import FEW
from tests.data.random_tables import ANY_IDS, in_memory, tables

AS_IS = RecboleConfig(**UNFILTERED, split="given", valid=0.0)
"""Load what is there, without any filter."""

FILES = {
    "shop.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    "ann\t1\t5\t100.7\nann\t2\t3.5\t\nbob\t1\t\t200\nbob\t3\t4\t300\n",
    "shop.item": "item_id:token\tmovie_title:token_seq\tprice:float\tclass:token_seq\n"
    '2\tThe "Big" One\t3.5\tDrama Sci-Fi\n1\tTom, Dick\t\tDrama\n9\tUnseen\t1\t\n',
    "shop.link": "item_id:token\tentity_id:token\n1\tres:Tom_%26_Dick\n2\tres:Big\n3\tres:Big\n9\tres:None_(film)\n",
    "shop.kg": "head_id:token\trelation_id:token\ttail_id:token\n"
    "res:Tom_%26_Dick\tdbo:starring\tres:Ann_Lee_(actor)\nres:Big\tdbo:sequel\tres:Tom_%26_Dick\n"
    "res:Ann_Lee_(actor)\tdbo:spouse\thttp://x.org/Cid\n",
    "shop.user": "user_id:token\tage:float\nbob\t30\ncid\t20\n",
}


def write(folder: Path, files: dict[str, str] | None = None, **changes: str | None) -> Path:
    """Write the small shop; changes name a file by its suffix (``kg``), None leaves it out."""
    folder.mkdir(exist_ok=True, parents=True)
    content = dict(FILES if files is None else files)
    content.update({f"shop.{suffix.replace('_', '.')}": text or "" for suffix, text in changes.items()})
    for name, text in content.items():
        if text:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


ENT = "entity_id:token\tlabel:token_seq\tkind:token\nhttp://x.org/Cid\tCid the Kid\tperson\nalone\tAlone\t\n"
REL = "relation_id:token\tlabel:token_seq\ttemplate:token_seq\ndbo:starring\tcast\t{tail} plays in {head}.\n"


def write_all(folder: Path) -> RecboleConfig:
    """Write the shop with every kind of file; returns settings that filter nothing."""
    write(folder, ent=ENT, rel=REL)
    return AS_IS.replace(split="random")


def rows(work: Workspace, query: str) -> list[list]:
    return work.frame(query).to_numpy().tolist()


def test_items_stand_for_their_entities(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw"), RecboleConfig(), work)
    assert sorted(rows(work, "SELECT head, relation, tail FROM triples")) == [
        ["1", "dbo:starring", "res:Ann_Lee_(actor)"],
        ["2", "dbo:sequel", "1"],
        ["3", "dbo:sequel", "1"],
        ["res:Ann_Lee_(actor)", "dbo:spouse", "http://x.org/Cid"],
    ]
    items = rows(work, "SELECT item, label FROM items ORDER BY position")
    assert items == [["2", 'The "Big" One'], ["1", "Tom, Dick"], ["9", "Unseen"], ["3", "Big"]]
    assert rows(work, "SELECT entity, label, kind FROM entities ORDER BY position") == [
        ["http://x.org/Cid", "Cid", "entity"],
        ["res:Ann_Lee_(actor)", "Ann Lee (actor)", "entity"],
    ]
    relations = rows(work, "SELECT relation, label, template FROM relations ORDER BY position")
    assert relations[0] == ["dbo:sequel", "sequel", "{head} is linked to {tail} by sequel."]
    assert rows(work, 'SELECT "user" FROM users WHERE label IS NULL ORDER BY position') == [["bob"], ["cid"], ["ann"]]
    assert rows(work, 'SELECT "user", item, rating FROM interactions WHERE rating IS NOT NULL ORDER BY ALL') == [
        ["ann", "1", 5.0],
        ["ann", "2", 3.5],
        ["bob", "3", 4.0],
    ]
    stamps = rows(work, 'SELECT "timestamp" FROM interactions WHERE "timestamp" IS NOT NULL ORDER BY 1')
    assert stamps == [[101], [200], [300]]
    assert len(work.sources) == len(FILES)


def test_names_come_from_the_files_of_entities_and_relations(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw", ent=ENT, rel=REL), RecboleConfig(), work)
    assert rows(work, "SELECT entity, label, kind FROM entities ORDER BY position") == [
        ["http://x.org/Cid", "Cid the Kid", "person"],
        ["alone", "Alone", "entity"],
        ["res:Ann_Lee_(actor)", "Ann Lee (actor)", "entity"],
    ]
    assert rows(work, "SELECT relation, template FROM relations ORDER BY position") == [
        ["dbo:starring", "{tail} plays in {head}."],
        ["dbo:sequel", "{head} is linked to {tail} by sequel."],
        ["dbo:spouse", "{head} is linked to {tail} by spouse."],
    ]


def test_facts_of_the_items_are_the_graph_where_there_is_none(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw", kg=None, link=None), RecboleConfig(), work)
    assert sorted(rows(work, "SELECT head, relation, tail FROM triples")) == [
        ["1", "class", "class:Drama"],
        ["2", "class", "class:Drama"],
        ["2", "class", "class:Sci-Fi"],
    ]
    assert rows(work, "SELECT entity, label, kind FROM entities ORDER BY position") == [
        ["class:Drama", "Drama", "class"],
        ["class:Sci-Fi", "Sci-Fi", "class"],
    ]


def test_fields_can_be_chosen(tmp_path: Path, work: Workspace) -> None:
    config = RecboleConfig(label_field="class", description_field="movie_title", facts=("price",))
    parse(write(tmp_path / "raw"), config, work)
    items = rows(work, "SELECT item, label, description FROM items ORDER BY position")
    assert items[0] == ["2", "Drama Sci-Fi", 'The "Big" One']
    prices = rows(work, "SELECT head, tail FROM triples WHERE relation = 'price'")
    assert sorted(prices) == [["2", "price:3.5"], ["9", "price:1"]]


def test_entities_that_share_an_id_with_an_item_get_their_own(tmp_path: Path, work: Workspace) -> None:
    link = "item_id:token\tentity_id:token\n1\t7\n2\t8\n"
    kg = "head_id:token\trelation_id:token\ttail_id:token\n7\t0\t2\n8\t0\t2\n"
    parse(write(tmp_path / "raw", link=link, kg=kg), RecboleConfig(), work)
    assert sorted(rows(work, "SELECT head, tail FROM triples")) == [["1", "entity:2"], ["2", "entity:2"]]
    assert rows(work, "SELECT entity, label FROM entities") == [["entity:2", "2"]]
    assert "1 entities have ids that say nothing" in work.notes[0]


def test_without_links_an_item_is_the_entity_of_its_id(tmp_path: Path, work: Workspace) -> None:
    kg = "head_id:token\trelation_id:token\ttail_id:token\n1\tby\tx\n"
    parse(write(tmp_path / "raw", kg=kg, link=None), RecboleConfig(), work)
    assert rows(work, "SELECT head, tail FROM triples") == [["1", "x"]]
    assert rows(work, "SELECT entity FROM entities") == [["x"]]


def split_files() -> dict[str, str]:
    header, *lines = FILES["shop.inter"].splitlines(keepends=True)
    files = {name: text for name, text in FILES.items() if name != "shop.inter"}
    return files | {
        "shop.train.inter": header + "".join(lines[:3]),
        "shop.valid.inter": header,
        "shop.test.inter": header + lines[3],
    }


def test_benchmark_files_give_the_split(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw", split_files()), RecboleConfig(), work)
    assert rows(work, 'SELECT "user", item, split FROM interactions ORDER BY ALL') == [
        ["ann", "1", "train"],
        ["ann", "2", "train"],
        ["bob", "1", "train"],
        ["bob", "3", "test"],
    ]


@pytest.mark.parametrize(("split", "given"), [("random", False), ("given", True)])
def test_where_both_are_there_the_wanted_split_chooses(
    tmp_path: Path, work: Workspace, split: str, given: bool
) -> None:
    parse(write(tmp_path / "raw", FILES | split_files()), RecboleConfig.parse({"split": split}), work)
    assert work.value("SELECT count(split) FROM interactions") == (4 if given else 0)
    assert work.count("interactions") == 4


def test_one_of_several_data_sets_is_chosen(tmp_path: Path, work: Workspace) -> None:
    folder = write(tmp_path / "raw")
    (folder / "other.train.inter").write_text(FILES["shop.inter"], encoding="utf-8")
    with pytest.raises(DataError, match="several data sets: other, shop"):
        parse(folder, RecboleConfig(), work)
    with pytest.raises(DataError, match=r"holds no third\.inter .*it holds other, shop"):
        parse(folder, RecboleConfig(dataset="third"), work)
    parse(folder, RecboleConfig(dataset="shop"), work)
    assert work.count("items") == 4


def test_the_broken_links_of_ml_100k_are_noted(tmp_path: Path, work: Workspace) -> None:
    link = "item_id:token\tentity_id:token\n1\tm.0abc\n"
    folder = write(tmp_path / "raw", link=link)
    for path in list(folder.iterdir()):
        path.rename(path.with_name(path.name.replace("shop", "ml-100k")))
    parse(folder, RecboleConfig(), work)
    assert any("issue 130" in note for note in work.notes)


def test_a_build_goes_through_with_the_default_recipe(tmp_path: Path) -> None:
    lines = [f"u{user}\ti{(user + step) % 8}" for user in range(8) for step in range(6)]
    kg = [f"i{item}\tclass\tc{item % 2}" for item in range(8)]
    files = {
        "shop.inter": "\n".join(["user_id:token\titem_id:token", *lines]),
        "shop.kg": "\n".join(["head_id:token\trelation_id:token\ttail_id:token", *kg]) + "\n",
    }
    data = build("recbole", raw=write(tmp_path / "raw", files), name="shop")
    assert len(data.items) == 8
    assert data.users["label"].iloc[0] == "User u0"
    assert len(data.triples) == 8


BAD = [
    (
        {"inter": "user_id:token\titem_id:token\trating:float\na\t1\t5\nb\t2\tgood\n"},
        {},
        "shop.inter line 3: 'rating' is not",
    ),
    ({"inter": "user_id:token\titem_id:token\na\t1\n\t2\n"}, {}, "shop.inter line 3: 'user_id' is missing"),
    ({"inter": "user_id:token\titem_id:token\na\x85\t1\nb\t1\n"}, {}, "shop.inter line 2: 'user_id' holds a control"),
    ({"inter": "user_id:token\na\n"}, {}, "shop.inter line 1: there is no column 'item_id'; it has user_id"),
    ({"inter": "user_id:token\titem_id:token\n"}, {}, "shop.inter holds no usable row"),
    ({"inter": "user_id:token\tuser_id:token\na\tb\n"}, {}, "shop.inter line 1: column names are empty or repeated"),
    ({"kg": "head_id:token\trelation_id:token\ttail_id:token\na\tb\n"}, {}, "shop.kg"),
    (
        {"kg": "head_id:token\trelation_id:token\ttail_id:token\na\t\tb\n"},
        {},
        "shop.kg line 2: 'relation_id' is missing",
    ),
    (
        {"rel": "relation_id:token\tlabel:token_seq\ttemplate:token_seq\nx\ty\t{head}\n"},
        {},
        "shop.rel line 2: the template",
    ),
    ({"ent": "entity_id:token\tlabel:token_seq\tkind:token\nx\ty\titem\n"}, {}, "shop.ent line 2: the kind 'item'"),
    ({}, {"label_field": "title"}, "shop.item line 1: there is no field 'title'; it has item_id, movie_title"),
    ({}, {"facts": ("nope",)}, "shop.item line 1: there is no field 'nope'"),
]


@pytest.mark.parametrize(("changes", "config", "message"), BAD)
def test_bad_files_are_an_error_with_file_and_line(
    tmp_path: Path, work: Workspace, changes: dict[str, Any], config: dict, message: str
) -> None:
    with pytest.raises(DataError) as caught:
        parse(write(tmp_path / "raw", **changes), RecboleConfig(**config), work)
    assert message in str(caught.value)


def test_an_item_with_two_names_is_an_error_with_its_line(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw", item=FILES["shop.item"] + "2\tOther\t\t\n"), RecboleConfig(), work)
    with pytest.raises(DataError, match=r"shop\.item line 5: item '2': it has different labels"):
        reorganize(work, AS_IS)


def test_missing_folders_and_parts_are_errors(tmp_path: Path, work: Workspace) -> None:
    with pytest.raises(DataError, match="is no folder"):
        parse(tmp_path / "none", RecboleConfig(), work)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no <name>.inter"):
        parse(tmp_path / "empty", RecboleConfig(), work)
    files = {name: text for name, text in split_files().items() if "train" not in name}
    with pytest.raises(DataError, match=r"but no train\.inter"):
        parse(write(tmp_path / "raw", files), RecboleConfig(), work)
    folder = write(tmp_path / "alone", {"shop.inter": FILES["shop.inter"]})
    with pytest.raises(DataError, match="no file of the items, which should hold price"):
        parse(folder, RecboleConfig(facts=("price",)), work)


def test_bad_rows_are_counted_when_they_are_skipped(tmp_path: Path) -> None:
    inter = FILES["shop.inter"] + "cid\t1\tgood\t5\n\t1\t5\t5\n"
    with workspace("skip") as work:
        parse(write(tmp_path / "raw", inter=inter), RecboleConfig(), work)
        assert work.count("interactions") == 4
        assert work.extra["bad_rows"] == 2


IDS = ANY_IDS.filter(lambda text: not text.startswith('"') and text not in MISSING)


@given(tables(IDS))
@FEW
def test_what_is_exported_is_read_back_exactly(tmp_path: Path, made: Tables) -> None:
    made.check()
    folder = export(in_memory(made, tmp_path / "made"), "recbole", tmp_path / "out", overwrite=True)
    with workspace() as work:
        parse(folder, AS_IS, work)
        again = reorganize(work, AS_IS)
    as_recbole_reads = {
        path.suffix: pd.read_csv(path, delimiter="\t", dtype="str", engine="python", encoding="utf-8")
        for path in folder.iterdir()
    }
    for name, frame in made.named().items():
        pd.testing.assert_frame_equal(getattr(again, name), frame, obj=name, check_exact=True)
    assert as_recbole_reads[".item"]["item_id:token"].tolist() == made.items["source_id"].tolist()
    assert as_recbole_reads[".user"]["user_id:token"].tolist() == made.users["source_id"].tolist()
    assert len(as_recbole_reads[".kg"]) == len(made.triples)


@pytest.mark.parametrize(
    ("table", "column", "value", "message"),
    [
        ("users", "source_id", "NA", "RecBole takes the id 'NA' for a missing value"),
        ("entities", "source_id", '"x', "for the start of a quoted value"),
        ("relations", "source_id", "null", "for a missing value"),
        ("items", "label", "two  blanks", "label of 'film:0' is no clean line"),
        ("items", "description", "a\tb", "description of 'film:0' is no clean line"),
        ("relations", "template", "{head}\n{tail}", "template of 'genre' is no clean line"),
        ("interactions", "rating", float("inf"), "row 0: the rating is infinite"),
        ("interactions", "timestamp", MAX_TIMESTAMP + 1, "is too large for a float"),
    ],
)
def test_what_the_format_cannot_hold_is_an_error_and_nothing_is_written(
    data: Dataset, tmp_path: Path, table: str, column: str, value: Any, message: str
) -> None:
    frames = data.tables.named()
    frames[table] = frames[table].copy()
    frames[table].loc[0, column] = value
    with pytest.raises(DataError, match=message):
        export(in_memory(Tables(**frames), tmp_path / "made"), "recbole", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_files_are_those_that_recbole_reads(data: Dataset, tmp_path: Path) -> None:
    out = export(data, "recbole", tmp_path / "out")
    suffixes = ("train.inter", "valid.inter", "test.inter", "item", "user", "kg", "link", "ent", "rel")
    assert {path.name for path in out.iterdir()} == {f"world.{suffix}" for suffix in suffixes}
    first = (out / "world.train.inter").read_text(encoding="utf-8").splitlines()[:2]
    assert first == ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "u0\tfilm:1\t5.0\t1000001"]
    with (out / "world.item").open(encoding="utf-8") as file:
        assert len(list(csv.reader(file, delimiter="\t"))) == len(data.items) + 1
