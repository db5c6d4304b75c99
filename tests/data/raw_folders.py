"""Small folders of raw files in every format, all of one world: eight users with six of eight items each."""

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

N = 8
PAIRS = [(user, (user + step) % N) for user in range(N) for step in range(6)]
HELD = {user: [(user + step) % N for step in range(6)] for user in range(N)}
"""Items of each user; where a split is given, the first is for test."""


def lines_in(path: Path) -> list[str]:
    """Lines of a file, unpacked."""
    content = path.read_bytes()
    return (gzip.decompress(content) if path.suffix == ".gz" else content).decode().splitlines()


def write_lines(path: Path, lines: Iterable[str | bytes]) -> Path:
    """Write lines, packed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_table(path: Path, header: str, rows: Iterable[Sequence[object]], separator: str = "\t") -> None:
    """Write a header, whose names stand apart by blanks, and rows."""
    write_lines(path, [separator.join(header.split()), *(separator.join(map(str, row)) for row in rows)])


def _ids(*numbers: int) -> str:
    return " ".join(map(str, numbers))


# Amazon's three releases


def reviews_2018() -> list[dict[str, Any]]:
    """Everyone likes six of eight products; each text is unlike any other."""
    return [
        {
            "overall": 5.0,
            "verified": True,
            "reviewerID": f"A{user}",
            "asin": f"B{item}",
            "style": {"Format:": " Hardcover"},
            "reviewText": f"Reader {user} about book {item}",
            "summary": "Five Stars",
            "unixReviewTime": 1_500_000_000 + 1000 * user + (item - user) % N,
        }
        for user, item in PAIRS
    ]


def products_2018() -> list[dict[str, Any]]:
    """Two authors, four categories."""
    return [
        {
            "asin": f"B{item}",
            "title": f"Book {item} &amp; more",
            "description": ["First <b>part</b>.", "Second part."],
            "brand": "Visit Amazon's Ann Author Page" if item % 2 else "Bob Writer",
            "category": ["Books", "Fiction" if item < 4 else "History", "Ten &amp; under"],
            "also_buy": [f"B{(item + 1) % N}", "BUNKNOWN"],
            "also_view": [f"B{(item + 2) % N}"],
            "price": "$1.00",
        }
        for item in range(N)
    ]


def _product_2014(row: Mapping[str, Any]) -> dict[str, Any]:
    related = {"also_bought": row["also_buy"], "also_viewed": row["also_view"], "bought_together": []}
    return {
        **{"asin": row["asin"], "title": row["title"], "salesRank": {"Books": 7}, "related": related},
        "description": "First <b>part</b>. It's the 2nd.",
        "brand": "Ann Author" if row["brand"].startswith("Visit") else row["brand"],
        "categories": [row["category"][:2], ["Books", row["category"][2]]],
    }


def _review_2023(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{"rating": row["overall"], "title": row["summary"], "text": row["reviewText"], "images": []},
        **{"asin": f"variant of {row['asin']}", "parent_asin": row["asin"], "user_id": row["reviewerID"]},
        "timestamp": row["unixReviewTime"] * 1000 + 123,
    }


def _product_2023(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{"parent_asin": row["asin"], "title": row["title"], "description": row["description"]},
        "author": {"name": "Ann Author", "about": []} if row["brand"].startswith("Visit") else None,
        **{"store": "Bob Writer (Author)", "categories": row["category"], "bought_together": None},
    }


def write_release(folder: Path, release: str, category: str = "Books") -> Path:
    """Write reviews and metadata of a release into a folder."""
    suffix = "jsonl.gz" if release == "2023" else "json.gz"
    name = {"2014": f"reviews_{category}_5", "2018": f"{category}_5", "2023": category}[release]
    reviews, products = reviews_2018(), products_2018()
    if release == "2014":
        products = [_product_2014(row) for row in products]
    elif release == "2023":
        reviews, products = list(map(_review_2023, reviews)), list(map(_product_2023, products))
    write = repr if release == "2014" else json.dumps
    write_lines(folder / f"{name}.{suffix}", map(write, reviews))
    write_lines(folder / f"meta_{category}.{suffix}", map(write, products))
    return folder


def write_amazon_kg(folder: Path) -> Path:
    """Amazon-KG's three files for the same products."""
    name = folder / "Amazon-KG-5core-Books"
    pairs = [(f"A{user}", f"B{item}", 1) for user, item in PAIRS]
    write_table(name.with_suffix(".inter"), "user_id:token item_id:token rating:float", pairs)
    links = [(f"B{item}", f"res:Book_{item}_(novel)") for item in range(N)]
    write_table(name.with_suffix(".link"), "item_id:token entity_id:token", links)
    triples = [(entity, "dbo:author", "res:Ann_Author") for _, entity in links]
    triples.append(("res:Ann_Author", "dbo:birthPlace", "res:Lima"))
    write_table(name.with_suffix(".kg"), "head_id:token relation_id:token tail_id:token", triples)
    return folder


# Yelp


def businesses() -> list[dict[str, Any]]:
    """Eight restaurants in two cities of one name; the first has no attributes and no categories."""
    attributes = {"WiFi": "u'free'", "RestaurantsDelivery": "False", "GoodForKids": "True", "Alcohol": "u'none'"}
    attributes["BusinessParking"] = "{'garage': False, 'street': True, 'lot': None}"
    return [
        {
            **{"business_id": f"b{number}", "name": f"Caf\u00e9 {number} &amp; Bar", "address": f"{number} Main St"},
            **{"city": "Springfield", "state": "IL" if number % 2 else "MO", "stars": 4.5, "is_open": 1},
            "attributes": attributes if number else None,
            "categories": "Mexican, Restaurants, Bars" if number else None,
        }
        for number in range(N)
    ]


def write_yelp(folder: Path) -> None:
    reviews = [
        {
            **{"review_id": f"r{user}{item}", "user_id": f"u{user}", "business_id": f"b{item}", "stars": 4.0},
            **{"text": f"User {user}\nvisit {item}", "date": f"2016-03-0{(item - user) % N + 1} 16:44:10", "useful": 0},
        }
        for user, item in PAIRS
    ]
    write_lines(folder / "yelp_academic_dataset_business.json", map(json.dumps, businesses()))
    write_lines(folder / "yelp_academic_dataset_review.json.gz", map(json.dumps, reviews))


# Lists: KGAT, the release of SPiKE, CoLaKG


def write_rows(folder: Path) -> None:
    """Rows in KGAT's format, without lists: 8 users, 8 items, 11 entities, 2 relations."""
    write_lines(folder / "train.txt", [_ids(user, *items[1:]) for user, items in HELD.items()])
    write_lines(folder / "test.txt", [_ids(user, items[0]) for user, items in HELD.items()])
    write_lines(folder / "kg_final.txt", [*(_ids(item, item % 2, N + item % 2) for item in range(N)), _ids(8, 1, 10)])


def write_kgat(folder: Path, header: str = "org_id remap_id") -> None:
    """The same folder with names; those of items hold a blank."""
    write_rows(folder)
    entities = [*(f"m.0{n} {n}" for n in range(N)), "http://rdf.freebase.com/ns/Jane_Austen 8", "m.0ab 9", "m.0cd 10"]
    write_lines(folder / "user_list.txt", ["org_id remap_id", *(f"A{n} {n}" for n in range(N))])
    items = (f"B {n} {n} m.0{n}" for n in range(N))
    write_lines(folder / "item_list.txt", ["org_id remap_id freebase_id", *items])
    write_lines(folder / "entity_list.txt", [header, *entities])
    write_lines(folder / "relation_list.txt", [header, "http://x/ns/book.author 0", "http://x/ns/genre 1"])


def vectors(ids: Any, seed: int = 0, dim: int = 4) -> dict[str, Any]:
    """Arrays of a vector file."""
    rows = np.random.default_rng(seed).normal(size=(len(ids), dim))
    return {"ids": np.asarray(ids), "embeddings": rows.astype(np.float32)}


def write_spike_release(folder: Path) -> None:
    """The rows with vectors; those of a file in any order."""
    write_rows(folder)
    np.savez(folder / "user_embeddings.npz", **vectors(np.arange(N)[::-1], 1))
    np.savez(folder / "item_embeddings.npz", **vectors(np.arange(N), 2))
    np.savez(folder / "entity_embeddings.npz", **vectors([10, 8, 9], 3))


def write_mapped_split(folder: Path, first_user: int, first_item: int) -> None:
    """Write the split in CoLaKG's format; raw ids count from a number each."""
    write_rows(folder)
    (folder / "kg_final.txt").unlink()
    write_lines(folder / "user_map.txt", [_ids(first_user + n, n) for n in range(N)])
    write_lines(folder / "item_map.txt", [_ids(first_item + n, n) for n in range(N)])


def write_lastfm(folder: Path) -> None:
    """The files of HetRec 2011, and CoLaKG's split of them (artist 51 + n is item n, user 2 + n is user n)."""
    listens = [(2 + user, 51 + item, 100 * user + item + 1) for user, item in PAIRS]
    write_table(folder / "user_artists.dat", "userID artistID weight", listens)
    artists = [(51 + n, f"Artist {n} \u2013 \u00e9", "http://x", "http://y") for n in range(N + 1)]
    write_table(folder / "artists.dat", "id name url pictureURL", artists)
    tags = "tagID\ttagValue\n1\tmetal\n2\tchanson fran\u00e7aise\n3\trare\n"
    (folder / "tags.dat").write_bytes(tags.encode("latin-1"))
    tagged = [(2 + user, 51 + n, 1 + n % 2, 1, 4, 2009) for n in range(N) for user in (0, 1)] + [(2, 51, 3, 1, 4, 2009)]
    write_table(folder / "user_taggedartists.dat", "userID artistID tagID day month year", tagged)
    write_mapped_split(folder, 2, 51)


def film(number: int, **cells: str) -> str:
    """A row of CoLaKG's table of films."""
    values = {
        **{"MovieID": str(100 + number), "Title": f'"Film {number}, The (199{number})"', "Year": f"199{number}"},
        "Genres": "Comedy|Drama" if number % 2 else "Comedy",
        "overview": f'"What happens, ""twice"",\nin film {number}."',
        **{"production_countries": "France", "original_language": "fr", "director": "A. Person"},
        **{"writer": "A. Person" if number % 2 else "", "actors": f"Actor {number}|Actor {number + 1}", **cells},
    }
    return ",".join(values.values())


def write_colakg(folder: Path) -> None:
    """Seven films in the table, and one that is not."""
    header = "MovieID,Title,Year,Genres,overview,production_countries,original_language,director,writer,actors"
    write_lines(folder / "ml1m_extended_movie.csv", [header, *(film(number) for number in range(N - 1))])
    write_mapped_split(folder, 2, 100)


# MovieLens, RecBole, tables


def write_movielens(folder: Path, suffix: str) -> Path:
    """The layout of 1M (dat: latin-1, two colons) or of 20M and later (csv: quoted, UTF-8, with tags)."""
    separator = "::" if suffix == "dat" else ","
    ratings = [(user + 1, item + 1, 4 + item % 2, 978_300_000 + 10 * user + item) for user, item in PAIRS]
    titles = ["Crow, The (1994)", "Amélie (2001)", *(f"Film {n} ({1990 + 5 * n})" for n in range(2, N)), "Untitled"]
    genres = ["Action|Drama", "Drama", *["Action"] * (N - 2), "(no genres listed)"]
    quote = '"' if suffix == "csv" else ""
    films = [(n, f"{quote}{title}{quote}", genres[n - 1]) for n, title in enumerate(titles, 1)]
    tables = {"ratings": ("userId movieId rating timestamp", ratings), "movies": ("movieId title genres", films)}
    if suffix == "csv":
        tags = ['1,1,"Dark, gothic",1', "2,1,dark,2", "3,1,DARK ,3", "1,2,dark,4", "2,2,Dark,5", "1,3,lonely,6"]
        write_lines(folder / "tags.csv", ["userId,movieId,tag,timestamp", *tags])
    for name, (header, rows) in tables.items():
        path = folder / f"{name}.{suffix}"
        write_table(path, header, rows, separator)
        if suffix == "dat":
            path.write_bytes("".join(f"{line}\n" for line in lines_in(path)[1:]).encode("latin-1"))
    return folder


def write_recbole(folder: Path) -> None:
    """Every kind of file."""
    pairs = [(f"u{user}", item, 5, 100 * user + item) for user, item in PAIRS]
    write_table(folder / "shop.inter", "user_id:token item_id:token rating:float timestamp:float", pairs)
    items = [(item, f'Film "{item}"', "Drama Sci-Fi" if item % 2 else "Drama") for item in range(N)]
    write_table(folder / "shop.item", "item_id:token movie_title:token_seq class:token_seq", items)
    write_table(folder / "shop.user", "user_id:token age:float", [(f"u{user}", 20 + user) for user in range(N)])
    write_table(folder / "shop.link", "item_id:token entity_id:token", [(n, f"res:Film_{n}") for n in range(N)])
    facts = [(f"res:Film_{n}", "dbo:starring", f"res:Ann_{n % 2}_(actor)") for n in range(N)]
    write_table(folder / "shop.kg", "head_id:token relation_id:token tail_id:token", facts)
    write_table(folder / "shop.ent", "entity_id:token label:token_seq kind:token", [("res:Ann_0_(actor)", "Ann", "a")])
    relations = [("dbo:starring", "cast", "{tail} plays in {head}.")]
    write_table(folder / "shop.rel", "relation_id:token label:token_seq template:token_seq", relations)


TABLES = {
    **{"min_rating": 4.0, "interactions": Path("ratings.csv"), "items": Path("films.csv")},
    "columns": {"user": "who", "item": "film", "rating": "stars", "timestamp": "at"},
    "item_columns": {"item": "id", "label": "title", "description": "plot"},
    "facts": {"genre": "genres", "director": "director"},
}
"""Settings with which `write_tables` is read."""


def write_tables(folder: Path) -> None:
    """Ratings, and films with facts in their columns."""
    ratings = [(f"u{user}", f"f{item}", 5, 100 * user + item) for user, item in PAIRS]
    write_table(folder / "ratings.csv", "who film stars at", ratings, ",")
    films = [
        f'f{n},"Film, the {n}th","A ""plot""",Drama|{"War" if n < 4 else "Love"},{"Ann" if n % 2 else ""}'
        for n in range(N)
    ]
    write_lines(folder / "films.csv", ["id,title,plot,genres,director", *films])
