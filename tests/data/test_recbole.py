"""RecBole's atomic files: what stands for what, what can be chosen, and the way back."""

from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given

from spike_kit.base.errors import DataError
from spike_kit.data.build import export
from spike_kit.data.dataset import Dataset
from spike_kit.data.pipeline import reorganize
from spike_kit.data.recipes import UNFILTERED
from spike_kit.data.sources.recbole import MISSING, RecboleConfig, parse
from spike_kit.data.tables import SPLITS, Tables
from spike_kit.data.workspace import Workspace, workspace
from tests.data.checks import FEW
from tests.data.random_tables import ANY_IDS, in_memory, tables

AS_IS = RecboleConfig(**UNFILTERED, split="given", valid=0.0)
"""Load what is there, without any filter."""

INTER = "user_id:token item_id:token rating:float timestamp:float|ann 1 5 100.7|ann 2 3.5 _|bob 1 _ 200|bob 3 4 300"
KG = "head_id:token relation_id:token tail_id:token|"
LINK = "item_id:token entity_id:token|"
SHOP = {
    "inter": INTER,
    "item": 'item_id:token movie_title:token_seq price:float class:token_seq|2 The~"Big"~One 3.5 Drama~Sci-Fi'
    "|1 Tom,~Dick _ Drama|9 Unseen 1 _",
    "link": f"{LINK}1 res:Tom_%26_Dick|2 res:Big|3 res:Big|9 res:None_(film)",
    "kg": f"{KG}res:Tom_%26_Dick dbo:starring res:Ann_Lee_(actor)|res:Big dbo:sequel res:Tom_%26_Dick"
    "|res:Ann_Lee_(actor) dbo:spouse http://x.org/Cid",
    "user": "user_id:token age:float|bob 30|cid 20",
    "ent": "entity_id:token label:token_seq kind:token|http://x.org/Cid Cid~the~Kid person|alone Alone _",
    "rel": "relation_id:token label:token_seq template:token_seq|dbo:starring cast {tail}~plays~in~{head}.",
}
"""Files of a small shop: lines apart by ``|``, fields by blanks, ``~`` for a blank, `` _ `` for nothing."""

HEADER, *ROWS = INTER.split("|")
SPLIT = {"train.inter": "|".join([HEADER, *ROWS[:3]]), "valid.inter": HEADER, "test.inter": f"{HEADER}|{ROWS[3]}"}


def write(folder: Path, files: dict[str, str], name: str = "shop") -> Path:
    folder.mkdir(exist_ok=True)
    for suffix, text in files.items():
        lines = ("\t".join("" if cell == "_" else cell for cell in line.split(" ")) for line in text.split("|"))
        (folder / f"{name}.{suffix}").write_text("".join(f"{line}\n" for line in lines).replace("~", " "), "utf-8")
    return folder


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    return write(tmp_path / "raw", SHOP)


def rows(work: Workspace, query: str) -> list[list]:
    return work.frame(query).to_numpy().tolist()


def test_items_stand_for_their_entities_and_files_name_the_others(shop: Path, work: Workspace) -> None:
    parse(shop, RecboleConfig(), work)
    assert sorted(rows(work, "SELECT head, relation, tail FROM triples")) == [
        ["1", "dbo:starring", "res:Ann_Lee_(actor)"],
        ["2", "dbo:sequel", "1"],
        ["3", "dbo:sequel", "1"],
        ["res:Ann_Lee_(actor)", "dbo:spouse", "http://x.org/Cid"],
    ]
    items = rows(work, "SELECT item, label FROM items ORDER BY position")
    assert items == [["2", 'The "Big" One'], ["1", "Tom, Dick"], ["9", "Unseen"], ["3", "Big"]]
    assert rows(work, "SELECT entity, label, kind FROM entities ORDER BY position") == [
        ["http://x.org/Cid", "Cid the Kid", "person"],
        ["alone", "Alone", "entity"],
        ["res:Ann_Lee_(actor)", "Ann Lee (actor)", "entity"],
    ]
    assert rows(work, "SELECT relation, label, template FROM relations ORDER BY position") == [
        ["dbo:starring", "cast", "{tail} plays in {head}."],
        ["dbo:sequel", "sequel", "{head} is linked to {tail} by sequel."],
        ["dbo:spouse", "spouse", "{head} is linked to {tail} by spouse."],
    ]
    assert rows(work, 'SELECT "user" FROM users ORDER BY position') == [["bob"], ["cid"], ["ann"]]
    found = work.frame('SELECT "user", item, rating, "timestamp" FROM interactions ORDER BY ALL').astype(object)
    expected = [["ann", "1", 5.0, 101], ["ann", "2", 3.5, None], ["bob", "1", None, 200], ["bob", "3", 4.0, 300]]
    assert found.where(found.notna(), None).to_numpy().tolist() == expected
    assert len(work.sources) == len(SHOP)


def test_facts_of_the_items_are_the_graph_where_there_is_none(shop: Path, work: Workspace) -> None:
    (shop / "shop.kg").unlink()
    parse(shop, RecboleConfig(), work)
    facts = [["1", "class", "class:Drama"], ["2", "class", "class:Drama"], ["2", "class", "class:Sci-Fi"]]
    assert sorted(rows(work, "SELECT head, relation, tail FROM triples")) == facts
    assert rows(work, "SELECT entity, label, kind FROM entities ORDER BY position") == [
        ["class:Drama", "Drama", "class"],
        ["class:Sci-Fi", "Sci-Fi", "class"],
    ]


def test_fields_can_be_chosen(shop: Path, work: Workspace) -> None:
    parse(shop, RecboleConfig(label_field="class", description_field="movie_title", facts=("price",)), work)
    items = rows(work, "SELECT item, label, description FROM items ORDER BY position")
    assert items[0] == ["2", "Drama Sci-Fi", 'The "Big" One']
    prices = rows(work, "SELECT head, tail FROM triples WHERE relation = 'price'")
    assert sorted(prices) == [["2", "price:3.5"], ["9", "price:1"]]


@pytest.mark.parametrize(
    ("link", "kg", "triples", "entities"),
    [
        (f"{LINK}1 7|2 8", f"{KG}7 0 2|8 0 2", [["1", "entity:2"], ["2", "entity:2"]], [["entity:2", "2"]]),
        (None, f"{KG}1 by x", [["1", "x"]], [["x", "x"]]),
    ],
)
def test_an_entity_with_the_id_of_an_item_is_the_item_unless_links_say_otherwise(
    shop: Path, work: Workspace, link: str | None, kg: str, triples: list[list[str]], entities: list[list[str]]
) -> None:
    for suffix in ("link", "ent"):
        (shop / f"shop.{suffix}").unlink()
    parse(write(shop, {"kg": kg} if link is None else {"kg": kg, "link": link}), RecboleConfig(), work)
    assert sorted(rows(work, "SELECT head, tail FROM triples")) == triples
    assert rows(work, "SELECT entity, label FROM entities") == entities
    assert any("1 entities have ids that say nothing" in note for note in work.notes) == (link is not None)


@pytest.mark.parametrize(("split", "both"), [("random", False), ("random", True), ("given", True)])
def test_the_wanted_split_chooses_between_the_files(shop: Path, work: Workspace, split: str, both: bool) -> None:
    if not both:
        (shop / "shop.inter").unlink()
    parse(write(shop, SPLIT), RecboleConfig.parse({"split": split}), work)
    found = rows(work, "SELECT coalesce(split, ''), count(*) FROM interactions GROUP BY ALL ORDER BY 1")
    assert found == ([["", 4]] if both and split == "random" else [["test", 1], ["train", 3]])


def test_the_broken_links_of_ml_100k_are_noted(tmp_path: Path, work: Workspace) -> None:
    parse(write(tmp_path / "raw", SHOP | {"link": f"{LINK}1 m.0abc"}, "ml-100k"), RecboleConfig(), work)
    assert any("issue 130" in note for note in work.notes)


def test_what_is_missing_or_unclear_is_named(tmp_path: Path, work: Workspace) -> None:
    folder = write(tmp_path / "raw", {"test.inter": SPLIT["test.inter"]})
    for name, config, message in (
        ("raw", {"dataset": "third"}, r"holds no third\.inter .*it holds shop"),
        ("raw", {}, r"but no train\.inter"),
        ("alone", {"facts": ("price",)}, "no file of the items, which should hold price"),
        ("shop", {"label_field": "title"}, "shop.item line 1: there is no field 'title'; it has item_id, movie_title"),
        ("shop", {"facts": ("nope",)}, "shop.item line 1: there is no field 'nope'"),
    ):
        write(folder.with_name("alone"), {"inter": INTER})
        write(folder.with_name("shop"), SHOP)
        with pytest.raises(DataError, match=message), workspace() as another:
            parse(folder.with_name(name), RecboleConfig.parse(config), another)


IDS = ANY_IDS.filter(lambda text: not text.startswith('"') and text not in MISSING)


@given(tables(IDS))
@FEW
def test_what_is_exported_is_read_back_exactly_and_by_recbole(tmp_path: Path, made: Tables) -> None:
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


def test_the_files_are_those_that_recbole_reads(data: Dataset, tmp_path: Path) -> None:
    out = export(data, "recbole", tmp_path / "out")
    suffixes = (*(f"{split}.inter" for split in SPLITS), "item", "user", "kg", "link", "ent", "rel")
    assert {path.name for path in out.iterdir()} == {f"world.{suffix}" for suffix in suffixes}
    first = (out / "world.train.inter").read_text(encoding="utf-8").splitlines()[:2]
    assert first == ["user_id:token\titem_id:token\trating:float\ttimestamp:float", "u0\tfilm:1\t5.0\t1000001"]
