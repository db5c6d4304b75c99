"""Tables as other people have them: separators, ids, lists, missing values, repeated rows, ids that do not match."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.data.pipeline import reorganize
from spike_kit.data.raw import quoted
from spike_kit.data.recipes import UNFILTERED, BuildConfig
from spike_kit.data.sources import tables, yelp
from spike_kit.data.workspace import Workspace
from tests.data.raw_folders import write_lines

FREE = BuildConfig().replace(**UNFILTERED)
LOOSE = FREE.replace(linked_only=True)


def parsed(work: Workspace, folder: Path, **settings: Any) -> Workspace:
    """Parse tables; the interactions stand in r.csv unless the settings say otherwise."""
    given: dict[str, Any] = {} if "train_file" in settings else {"interactions": Path("r.csv")}
    tables.parse(folder, tables.TablesConfig(min_rating=None, **given | settings), work)
    return work


def column(work: Workspace, table: str, *names: str) -> list[Any]:
    """Rows of a table, sorted; plain values if one column is asked for."""
    rows = work.db.execute(f"SELECT {', '.join(map(quoted, names))} FROM {table} ORDER BY ALL").fetchall()
    return [row[0] for row in rows] if len(names) == 1 else rows


def write(folder: Path, **files: str) -> None:
    """Write files: r_csv is r.csv."""
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text, "utf-8")


@pytest.mark.parametrize(
    ("name", "text", "columns"),
    [
        ("r.csv", "user;item\nu1;i1\nu2;i,2\n", {}),
        ("r.csv", "user\titem\nu1\ti1\nu2\ti,2\n", {}),
        ("r.tsv", 'user,item\nu1,i1\nu2,"i,2"\n', {}),
        ("r.txt", "user|item\nu1|i1\nu2|i,2\n", {}),
        ("r.dat", "u1::i1::5\nu2::i,2::4\n", {"user": "1", "item": "2", "rating": "3"}),
        ("r.dat", "u1 i1 5\nu2 i,2 4\n", {"user": "1", "item": "2", "rating": "3"}),
        ("r.csv.gz", "when;user;item\n1;u1;i1\n1;u2;i,2\n", {"user": "user", "item": "item"}),
    ],
)
def test_the_separator_is_found_by_the_first_line(
    work: Workspace, tmp_path: Path, name: str, text: str, columns: dict[str, str]
) -> None:
    (tmp_path / name).write_text(text)
    parsed(work, tmp_path, interactions=Path(name), columns=columns)
    assert column(work, "interactions", "user", "item") == [("u1", "i1"), ("u2", "i,2")]


def test_a_column_that_no_separator_gives_is_named(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user;thing\nu1;i1\n")
    with pytest.raises(DataError, match="there is no column 'user'; it has user;thing"):
        parsed(work, tmp_path)


@pytest.mark.parametrize("items", [("007", "7", "07"), ("0001713353", "1713353"), ("76561190000000479", "x.1/2")])
def test_ids_in_lists_stay_as_they_are_written(work: Workspace, tmp_path: Path, items: tuple[str, ...]) -> None:
    write(tmp_path, train_txt=f"76561190000000480  {' '.join(items)}\r\n00 {items[0]}\t{items[1]}\n", test_txt="00 9\n")
    parsed(work, tmp_path, train_file=Path("train.txt"), test_file=Path("test.txt"))
    assert column(work, "interactions", "user", "item") == sorted(
        [("76561190000000480", item) for item in items] + [("00", item) for item in (*items[:2], "9")]
    )


ITEMS = "item,label,g\ni1,A,{}\ni2,B,X\n"


@pytest.mark.parametrize(
    ("cell", "names"),
    [
        ("\"['X', 'Y']\"", ["X", "Y"]),
        ('"[{""id"": 1, ""name"": ""Y""}]"', ["X", "Y"]),
        ("Unknown", ["X"]),
        ("nan|Z", ["X", "Z"]),
    ],
)
def test_facts_are_taken_from_lists_and_never_from_missing_values(
    work: Workspace, tmp_path: Path, cell: str, names: list[str]
) -> None:
    write(tmp_path, r_csv="user,item\nu1,i1\n", i_csv=ITEMS.format(cell))
    parsed(work, tmp_path, items=Path("i.csv"), facts={"genre": "g"}, missing=("Unknown", "nan"))
    assert sorted(set(column(work, "entities", "label"))) == names


def test_a_cell_that_looks_like_a_list_and_is_none_is_named_or_counted(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item\nu1,i1\n", i_csv=ITEMS.format("\"['X', 'Y\""))
    settings = {"items": Path("i.csv"), "facts": {"genre": "g"}}
    with pytest.raises(
        DataError, match=r"i\.csv line 2: 'g' looks like a list that cannot be read, as in \"\['X', 'Y\""
    ):
        parsed(work, tmp_path, **settings)
    work.on_error = "skip"
    for table in ("interactions", "items", "entities", "triples"):
        work.db.execute(f"DELETE FROM {table}")
    work.db.execute("DROP VIEW raw_items; DROP VIEW raw_interactions")
    assert column(parsed(work, tmp_path, **settings), "triples", "head") == ["i2"]
    assert work.extra["bad_rows"] == 1


@pytest.mark.parametrize("names", ["*.csv", "k?.csv"])
def test_files_of_triples_may_be_a_pattern(work: Workspace, tmp_path: Path, names: str) -> None:
    write(tmp_path, r_tsv="user\titem\nu1\ti1\n", k1_csv="head,relation,tail\ni1,by,p\n", k2_csv="head,tail\ni1,q\n")
    parsed(work, tmp_path, interactions=Path("r.tsv"), triples=(Path(names),))
    assert column(work, "triples", "relation", "tail") == [("by", "p"), ("k2", "q")]


def test_a_pattern_without_a_file_is_an_error(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item\nu1,i1\n")
    with pytest.raises(DataError, match=r"holds no file 'z\*\.csv'"):
        parsed(work, tmp_path, triples=(Path("z*.csv"),))


def test_entities_of_triples_are_of_the_kind_of_their_relation(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item\nu1,i1\n", dbo_illustrator_edgelist="")
    write_lines(tmp_path / "dbo_author.edgelist", ["i1 res:Ann", "i2 res:Ann", "res:Ann res:Peru"])
    write_lines(tmp_path / "dbo_editor.edgelist", ["i1 res:Ann", "i1 res:Bob", "res:Root i1"])
    parsed(work, tmp_path, triples=(Path("dbo_*or.edgelist"),))
    kinds = dict(column(work, "entities", "label", "kind"))
    assert kinds == {"Ann": "author", "Peru": "author", "Bob": "editor", "i2": "entity", "Root": "entity"}


def test_several_labels_of_an_id_are_an_error_or_the_first_is_kept(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item\nu1,i1\n", i_csv="item,label,g\ni1,A,X\ni1,B,X\ni1,A,Y\n")
    settings: dict[str, Any] = {"items": Path("i.csv"), "facts": {"genre": "g"}}
    parsed(work, tmp_path, **settings)
    with pytest.raises(DataError, match=r"different labels: 'A' and 'B'(.|\n)*--keep-first"):
        reorganize(work, LOOSE)
    work.keep_first = True
    made = reorganize(work, LOOSE)
    assert made.items["label"].tolist() == ["A"]
    assert work.funnel[0]["rows_of_a_known_id"] == 2
    assert "the first is kept, 2 rows are not" in work.notes[-1]


def test_pairs_of_ids_the_wrong_way_round_say_so(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item\nu1,7\n", ids_txt="7 i7\n")
    with pytest.raises(DataError, match=r"no item id for '7'(.|\n)*must stand second, as 'i7' does"):
        parsed(work, tmp_path, item_ids=Path("ids.txt"))


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (
            ["1.0", "2.0"],
            r"2 of 2 item ids of the interactions .*, such as '1.0', '2.0'; only there: '1', '2'",
        ),
        (["TT1", "TT2"], r"such as 'TT1', 'TT2'; only there: '1', '2'"),
    ],
)
def test_ids_that_are_written_in_two_ways_are_shown(work: Workspace, theirs: list[str], message: str) -> None:
    work.put("interactions", pd.DataFrame({"user": "u", "item": theirs}))
    work.put("items", pd.DataFrame({"item": ["1", "2"], "label": ["A", "B"]}))
    work.put("triples", pd.DataFrame({"head": ["1", "2"], "relation": "r", "tail": "e"}))
    with pytest.raises(DataError, match=message):
        reorganize(work, LOOSE)


def filled(work: Workspace, ids: list[str], ends: list[str]) -> Workspace:
    """Three users who like all items, of which ``ends`` have a triple."""
    pairs = [(f"u{user}", item) for user in range(3) for item in ids]
    work.put("interactions", pd.DataFrame(pairs, columns=["user", "item"]))
    work.put("triples", pd.DataFrame({"head": ends, "relation": "r", "tail": "e"}))
    work.put("entities", pd.DataFrame({"entity": ["e"], "label": ["E"]}))
    work.put("relations", pd.DataFrame({"relation": ["r"], "template": ["{head} {tail}"]}))
    return work


def test_items_that_no_triple_names_are_noted(work: Workspace) -> None:
    made = reorganize(filled(work, ["1", "2", "3"], ["1", "2", "03"]), LOOSE)
    assert len(made.items) == 2
    assert any("1 of 3 item ids of the items" in note and "'3'; only there: '03'" in note for note in work.notes)
    work.notes.clear()


def test_nothing_to_link_is_an_error_that_shows_both_sides(work: Workspace) -> None:
    with pytest.raises(DataError, match=r"of the triples, such as '1', '2'; only there: 'e', 'm.1', 'm.2'"):
        reorganize(filled(work, ["1", "2"], ["m.1", "m.2"]), LOOSE)


@pytest.mark.parametrize("changes", [{}, UNFILTERED])
def test_without_a_graph_the_message_asks_for_one(work: Workspace, changes: dict[str, Any]) -> None:
    work.put("interactions", pd.DataFrame({"user": ["u"], "item": ["i"]}))
    with pytest.raises(DataError, match=r"no triples(.|\n)*--triples, --facts"):
        reorganize(work, BuildConfig().replace(**changes))


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"user_core": 9}, "user_core 9$"), ({"user_core": 9, "min_entity_items": 1}, "user_core 9, min_entity_items 1$")],
)
def test_only_filters_that_are_on_are_to_be_loosened(work: Workspace, changes: dict[str, Any], hint: str) -> None:
    with pytest.raises(DataError) as caught:
        reorganize(filled(work, ["1", "2"], ["1", "2"]), FREE.replace(**changes))
    assert caught.value.hint.endswith(hint.removesuffix("$"))


def test_items_are_dropped_that_lose_their_last_triple_to_a_filter(work: Workspace) -> None:
    filled(work, ["1", "2", "3", "4"], ["1", "2", "3"])
    work.put("triples", pd.DataFrame({"head": ["4"], "relation": "r", "tail": "rare"}))
    work.put("entities", pd.DataFrame({"entity": ["rare"], "label": ["Rare"]}))
    made = reorganize(work, FREE.replace(linked_only=True, min_entity_items=2, user_core=3))
    assert made.items["source_id"].tolist() == ["1", "2", "3"]
    assert {*range(3)} == {*made.triples["head"]}
    assert any(row["step"] == "items that still have a triple" for row in work.funnel)


@pytest.mark.parametrize(
    ("identifier", "label"),
    [("http://dbpedia.org/resource/The_Prophet_(book)", "The Prophet (book)"), ("B00_1", "B00 1")],
)
def test_items_without_a_name_are_called_by_readable_ids(work: Workspace, identifier: str, label: str) -> None:
    made = reorganize(filled(work, [identifier, "x"], [identifier, "x"]), LOOSE)
    assert sorted(made.items["label"]) == sorted([label, "x"])
    assert sorted(made.items["source_id"]) == sorted([identifier, "x"])


def test_dislikes_that_count_as_positives_are_noted(work: Workspace, tmp_path: Path) -> None:
    write(tmp_path, r_csv="user,item,like\n" + "".join(f"u{u},i{i},{i != 1}\n" for u in range(3) for i in range(3)))
    write(tmp_path, i_csv="item,label,g\n" + "".join(f"i{i},A{i},X\n" for i in range(3)))
    columns = {"user": "user", "item": "item", "rating": "like"}
    parsed(work, tmp_path, columns=columns, items=Path("i.csv"), facts={"g": "g"})
    made = reorganize(work, LOOSE)
    assert sorted(made.interactions["rating"].tolist()) == [0.0] * 3 + [1.0] * 6
    assert any("3 interactions have a rating of 0 or less" in note for note in work.notes)


@pytest.mark.parametrize(
    ("categories", "attributes", "found"),
    [
        ("Bars, Food", {"WiFi": "u'free'"}, {"Bars", "Food", "WiFi: free"}),
        (["Bars", "Food"], ["WiFi: free", "GoodForKids: True"], {"Bars", "Food", "WiFi: free", "GoodForKids"}),
        (["Bars"], ["Parking: garage", "Parking: lot", "Loud"], {"Bars", "Parking: garage", "Parking: lot", "Loud"}),
        (None, [], set()),
    ],
)
def test_both_layouts_of_yelp_are_read(categories: Any, attributes: Any, found: set[str]) -> None:
    given = {"categories": categories or "", "attributes": attributes}
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    facts = yelp.facts_of({"item": "b", "city": "Reno", "state": "NV", **texts}, with_attributes=True)
    assert {label for _, relation, _, label, _ in facts if relation in ("category", "attribute")} == found


@pytest.mark.parametrize("row", [{"categories": "['Bars'", "attributes": ""}, {"categories": "", "attributes": "5"}])
def test_another_layout_of_yelp_is_refused(row: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"list|5"):
        yelp.facts_of({"item": "b", "city": "", "state": "", **row}, with_attributes=True)
