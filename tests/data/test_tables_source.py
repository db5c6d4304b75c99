from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.cli import main
from spike_kit.data.build import build
from spike_kit.data.dataset import Dataset
from spike_kit.data.sources.tables import TablesConfig
from tests.data.amazon_files import write_lines
from tests.data.checks import add_line, facts_of, refused, refused_or_skipped, train_reviews

PAIRS = [(user, (user + step) % 8) for user in range(8) for step in range(6)]

CONFIG = TablesConfig(
    min_rating=4,
    interactions=Path("ratings.csv"),
    columns={"user": "who", "item": "film", "rating": "stars", "timestamp": "at"},
    items=Path("films.csv"),
    item_columns={"item": "id", "label": "title", "description": "plot"},
    facts={"genre": "genres", "director": "director"},
)


def write(folder: Path) -> None:
    """Ratings, and films with facts in their columns."""
    ratings = [f"u{user},f{film},5,{100 * user + film}" for user, film in PAIRS]
    write_lines(folder / "ratings.csv", ["who,film,stars,at", *ratings])
    films = [
        f'f{film},"Film, the {film}th","A ""plot""",Drama|{"War" if film < 4 else "Love"},{"Ann" if film % 2 else ""}'
        for film in range(8)
    ]
    write_lines(folder / "films.csv", ["id,title,plot,genres,director", *films])


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write(tmp_path / "raw [mine]*")
    return tmp_path / "raw [mine]*"


def built(raw: Path, config: TablesConfig = CONFIG, **changes: Any) -> Dataset:
    return build("tables", config.replace(**changes), name="mine", raw=raw)


def test_a_column_mapping_is_all_it_takes(raw: Path) -> None:
    data = built(raw)
    assert data.items["label"].iloc[1] == "Film, the 1th"
    assert data.items["description"].iloc[1] == 'A "plot"'
    assert facts_of(data, 1) == {("genre", "Drama"), ("genre", "War"), ("director", "Ann")}
    assert facts_of(data, 4) == {("genre", "Drama"), ("genre", "Love")}
    assert data.relations["template"].iloc[0] == "The genre of {head} is {tail}."
    assert len(data.interactions) == 48


def test_sentences_can_be_given(raw: Path) -> None:
    data = built(raw, templates={"director": "{tail} made {head}."})
    assert data.relations["template"].tolist() == ["The genre of {head} is {tail}.", "{tail} made {head}."]
    with pytest.raises(DataError, match="sentences for relations that do not exist: actor"):
        built(raw, templates={"actor": "{tail} in {head}."})


def in_format(raw: Path, suffix: str) -> TablesConfig:
    """Write the same tables in another format."""
    ratings, films = pd.read_csv(raw / "ratings.csv"), pd.read_csv(raw / "films.csv", keep_default_na=False)
    for name, frame in (("ratings", ratings), ("films", films)):
        target = raw / f"{name}{suffix}"
        if name == "films" and suffix != ".tsv":
            frame["genres"] = frame["genres"].str.split("|")
        if suffix == ".parquet":
            frame.to_parquet(target)
        elif suffix == ".tsv":
            frame.to_csv(target, sep="\t", index=False)
        elif suffix == ".json":
            target.write_text(json.dumps(frame.to_dict("records"), indent=2))
        else:
            write_lines(target, [json.dumps(row) for row in frame.to_dict("records")])
    return CONFIG.replace(interactions=Path(f"ratings{suffix}"), items=Path(f"films{suffix}"))


def write_as(folder: Path, suffix: str) -> TablesConfig:
    """Write the tables in this format only; returns the settings that read them."""
    write(folder)
    config = in_format(folder, suffix)
    for name in ("ratings.csv", "films.csv"):
        (folder / name).unlink()
    return config


@pytest.mark.parametrize("suffix", [".tsv", ".json", ".jsonl", ".jsonl.gz", ".parquet"])
def test_every_format_gives_the_same_tables(raw: Path, suffix: str) -> None:
    expected = built(raw).manifest.tables
    assert built(raw, in_format(raw, suffix)).manifest.tables == expected


def test_triples_of_files_join_through_links(raw: Path) -> None:
    write_lines(
        raw / "kg.tsv",
        ["h\tr\tt", *(f"http://kg/Film_{n}\tdbo:musicComposer\thttp://kg/Bob_%28b%29" for n in range(8))],
    )
    write_lines(raw / "links.tsv", [f"f{n}\tFilm {n}\thttp://kg/Film_{n}" for n in range(8)])
    write_lines(raw / "dbo_studio.edgelist", [f"http://kg/Film_{n} http://kg/Acme" for n in range(8)])
    data = built(
        raw,
        facts={},
        triples=(Path("kg.tsv"), Path("dbo_studio.edgelist")),
        triple_columns={"head": "h", "relation": "r", "tail": "t"},
        links=Path("links.tsv"),
        link_columns={"item": "1", "entity": "3"},
    )
    assert facts_of(data, 0) == {("music composer", "Bob (b)"), ("studio", "Acme")}
    assert data.entities["label"].tolist()[8:] == ["Acme", "Bob (b)"]


def test_triples_with_an_entity_that_no_table_knows_are_named(raw: Path) -> None:
    write_lines(raw / "kg.csv", ["head,relation,tail", *(f"f{n},by,p1" for n in range(8)), "f0,by,p2"])
    write_lines(raw / "people.csv", ["entity,label,kind", "p1,Ann,person"])
    changes = {"facts": {}, "triples": (Path("kg.csv"),), "entities": Path("people.csv")}
    with pytest.raises(DataError, match=r"kg\.csv line 10: entity 'p2'.*neither in people\.csv nor an item"):
        built(raw, **changes)
    data = built(raw, **changes, on_error="skip")
    assert data.entities["kind"].tolist()[8:] == ["person"]
    assert data.manifest.funnel[0]["bad_rows"] == 1


def test_a_given_split_in_a_column_or_in_files(raw: Path) -> None:
    def part(user: int, film: int) -> str:
        return "test" if film == user else "train"

    rows = [f"u{user},f{film},5,1,{part(user, film)}" for user, film in PAIRS]
    write_lines(raw / "ratings.csv", ["who,film,stars,at,part", *rows])
    column = built(raw, columns={**CONFIG.columns, "split": "part"}, split="given")
    assert column.interactions["split"].value_counts().to_dict() == {"train": 32, "valid": 8, "test": 8}
    assert (column.split("test")["item"] == column.split("test")["user"]).all()
    for name in ("train", "test"):
        lines = [
            " ".join([str(user), *(str(film) for who, film in PAIRS if who == user and part(user, film) == name)])
            for user in range(8)
        ]
        write_lines(raw / f"{name}.txt", lines)
    write_lines(raw / "film_ids.txt", ["org_id remap_id", *(f"f{n} {n}" for n in range(8))])
    write_lines(raw / "user_ids.txt", [f"u{n} {n}" for n in range(8)])
    files = built(
        raw,
        interactions=None,
        min_rating=None,
        train_file=Path("train.txt"),
        test_file=Path("test.txt"),
        split="given",
        item_ids=Path("film_ids.txt"),
        user_ids=Path("user_ids.txt"),
    )
    same = ["user", "item", "split"]
    assert files.interactions[same].equals(column.interactions[same])
    assert files.users["source_id"].tolist() == [f"u{n}" for n in range(8)]


def test_reviews_come_from_a_text_column(raw: Path) -> None:
    rows = [f'u{user},f{film},5,1,"text {user} {film}"' for user, film in PAIRS]
    write_lines(raw / "ratings.csv", ["who,film,stars,at,words", *rows])
    data = built(raw, columns={**CONFIG.columns, "text": "words"})
    assert set(train_reviews(data)["text"]) <= {f"text {user} {film}" for user, film in PAIRS}
    assert len(train_reviews(data)) == len(data.split("train"))


def test_the_command_line_takes_a_mapping(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mapping = ["--columns", "user", "who", "item", "film", "rating", "stars", "--item-columns", "item", "id", "label"]
    options = [*mapping, "title", "--facts", "genre", "genres", "--interactions", "ratings.csv", "--items", "films.csv"]
    assert main(["build", "tables", "--name", "mine", "--raw", str(raw), "--min-rating", "4", *options]) == 0
    assert "8 users, 8 items" in capsys.readouterr().out
    assert facts_of(Dataset.open("mine"), 4) == {("genre", "Drama"), ("genre", "Love")}


BAD = {
    "rating": ("ratings.csv", "u1,f1,many,3", r"ratings\.csv line 50: 'stars' is not a number in 'u1,f1,many,3'"),
    "empty user": ("ratings.csv", ",f1,5,3", r"ratings\.csv line 50: 'who' is missing"),
    "too few columns": ("ratings.csv", "u1,f1", r"ratings\.csv cannot be read.*[Ll]ine: 50"),
    "two titles": ("films.csv", "f3,Another,,Drama,", r"films\.csv line 10: item 'f3'.*different labels"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named_or_skipped_and_counted(raw: Path, case: str) -> None:
    name, line, message = BAD[case]
    add_line(raw / name, line)
    assert len(refused_or_skipped("tables", raw, message, **CONFIG.model_dump()).interactions) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"columns": {"user": "who", "item": "movie"}}, r"ratings\.csv line 1: there is no column 'movie'; it has who"),
        ({"columns": {"user": "who"}}, "mapping of the interactions is not right .missing: item"),
        ({"columns": {"user": "who", "item": "film", "stars": "stars"}}, "unknown: stars"),
        ({"interactions": Path("gone.csv")}, r"gone\.csv does not exist"),
        ({"interactions": Path("films.xls")}, r"films\.xls does not exist"),
        ({"interactions": None}, "no interactions are named"),
        ({"user_core": 50}, "nothing is left after the step 'k-core"),
        ({"facts": {"genre": "genre"}}, r"films\.csv line 1: there is no column 'genre'; it has id, title"),
    ],
)
def test_wrong_settings_say_what_is_wrong(raw: Path, changes: dict[str, Any], message: str) -> None:
    refused("tables", raw, message, **CONFIG.model_dump() | changes)


def test_a_user_of_test_who_is_not_in_train_is_named_with_the_line(raw: Path) -> None:
    rows = [f"u{user},f{film},5,1,{'train' if user else 'test'}" for user, film in PAIRS]
    write_lines(raw / "ratings.csv", ["who,film,stars,at,part", *rows])
    changes = {"columns": {**CONFIG.columns, "split": "part"}, "split": "given", "item_core": 1}
    with pytest.raises(DataError, match=r"ratings\.csv line 7: user 'u0'.*held-out interactions and none in train"):
        built(raw, **changes)
    assert len(built(raw, **changes, on_error="skip").users) == 7
