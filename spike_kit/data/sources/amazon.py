"""Amazon reviews with metadata: the public releases of 2014, 2018 and 2023 (McAuley lab), any category.

The knowledge graph is made of the metadata (brand or author, categories; links between products on request), or is
Amazon-KG v2.0 (DBpedia; Wang et al., SIGIR 2024), which covers Books and Movies & TV. All join on the original ids:
``asin``, in 2023 ``parent_asin``.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from spike_kit.base.errors import DataError, some
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Field, JsonLines, check_readable, literal, open_text, quoted, unpacking
from spike_kit.data.recipes import UNFILTERED, Published, Recipe, Source
from spike_kit.data.sources import recbole
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace, review_view

LICENCE = "no licence stated; released for research, not for redistribution"

Generation = Literal["2014", "2018", "2023"]


class AmazonConfig(BuildConfig):
    """Settings of a build from Amazon reviews."""

    category: str = ""
    """Category as it stands in the file names (Gift_Cards, say); default: the only one in the folder."""
    generation: Literal["auto", "2014", "2018", "2023"] = "auto"
    """Release of the files; auto tells it from their names."""
    graph: Literal["metadata", "amazon-kg"] = "metadata"
    """Where the knowledge graph comes from: the metadata, or Amazon-KG v2.0 (which then gives the interactions too)."""


@dataclass(frozen=True)
class Release:
    """Names of the fields in one release.

    Attributes
    ----------
    reviews
        Columns of the reviews.
    item
        Id of a product in the metadata.
    maker
        Fields that may name brand, author or shop, best first.
    categories
        Field with the categories.
    links
        Field with links to other products, by relation; a dotted name lies inside of another field.
    """

    reviews: Mapping[str, Field]
    item: str
    maker: tuple[str, ...]
    categories: str
    links: Mapping[str, str]


_UNTIL_2018 = {
    "user": Field("reviewerID"),
    "item": Field("asin"),
    "rating": Field("overall", "number"),
    "timestamp": Field("unixReviewTime", "integer", required=False),
    "text": Field("reviewText", "text"),
}
_2023 = {
    "user": Field("user_id"),
    "item": Field("parent_asin"),
    "rating": Field("rating", "number"),
    "timestamp": Field("timestamp", "integer", required=False, scale=1000),
    "text": Field("text", "text"),
}

RELEASES: dict[str, Release] = {
    "2014": Release(
        _UNTIL_2018,
        "asin",
        ("brand",),
        "categories",
        {
            "also_buy": "related.also_bought",
            "also_view": "related.also_viewed",
            "bought_together": "related.bought_together",
            "buy_after_viewing": "related.buy_after_viewing",
        },
    ),
    "2018": Release(_UNTIL_2018, "asin", ("brand",), "category", {"also_buy": "also_buy", "also_view": "also_view"}),
    "2023": Release(
        _2023, "parent_asin", ("author.name", "store"), "categories", {"bought_together": "bought_together"}
    ),
}
"""Field names of every release."""

_NAMES: tuple[tuple[Generation, str], ...] = (
    ("2014", r"reviews_(?P<category>.+?)(?P<core>_5)?\.json(\.gz)?"),
    ("2023", r"(?!meta_)(?P<category>.+?)(?P<core>)\.jsonl(\.gz)?"),
    ("2018", r"(?!meta_)(?P<category>.+?)(?P<core>_5)?\.json(\.gz)?"),
)
"""File names of the reviews; the first pattern that matches tells the release."""

_TEMPLATES = {
    "author": "{head} was written by {tail}.",
    "brand": "{head} is a product of {tail}.",
    "category": "{head} belongs to the category {tail}.",
    "also_buy": "Buyers of {head} also bought {tail}.",
    "also_view": "Viewers of {head} also viewed {tail}.",
    "bought_together": "{head} is often bought together with {tail}.",
    "buy_after_viewing": "Viewers of {head} went on to buy {tail}.",
}

_SHOP_PAGE = re.compile(r"^Visit Amazon's (.*?) Page$")
_ROLE = re.compile(r"\s*\((?:Author|Editor|Artist|Actor|Director|Format)\).*$")
_BROKEN_TITLE = r"getTime\(|aPageStart|<style|<script"

_LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class Files:
    """Files of one category in a folder."""

    generation: Generation
    category: str
    reviews: Path | None
    metadata: Path | None


def parse(folder: Path, config: AmazonConfig, work: Workspace) -> None:
    """Parse reviews and metadata of one category.

    Raises
    ------
    DataError
        If a file is missing or damaged, the category is not clear, or a row is bad.
    """
    files = find_files(folder, config)
    if config.graph == "amazon-kg":
        _parse_amazon_kg(folder, files, config, work)
        return
    if files.reviews is None or files.metadata is None:
        missing = "reviews" if files.reviews is None else "metadata (meta_<category>)"
        raise DataError(f"{folder} holds no file of {missing}", "docs/datasets.md says where to get it")
    _read_reviews(files.reviews, files.generation, config, work)
    review_view(work)
    is_book = "book" in files.category.lower() or "kindle" in files.category.lower()
    maker = "author" if is_book else "brand"
    release = RELEASES[files.generation]
    links = tuple(release.links) if config.behavioural else ()
    _read_metadata(files.metadata, files.generation, work)
    _put_products(work, release, maker, links)
    relations = pd.DataFrame({"relation": [maker, "category", *links]})
    work.put(
        "relations",
        relations.assign(
            label=relations["relation"].str.replace("_", " "),
            template=relations["relation"].map(_TEMPLATES),
            behavioural=relations["relation"].isin(links),
        ),
    )


def find_files(folder: Path, config: AmazonConfig) -> Files:
    """Find the reviews and the metadata of the wanted category; the 5-core file is taken where both are there.

    Raises
    ------
    DataError
        If the folder does not exist, or holds several categories or releases of which none was chosen.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder", "name the folder of the raw files with --raw")
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found: dict[tuple[Generation, str], list[tuple[bool, str]]] = {}
    for name in names:
        for generation, pattern in _NAMES:
            if match := re.fullmatch(pattern, name):
                key = (generation, match["category"])
                found.setdefault(key, []).append((not match["core"], name))
                break
    wanted: list[tuple[Generation, str]] = [
        (generation, category)
        for generation, category in found
        if config.generation in ("auto", generation) and config.category in ("", category)
    ]
    if len(wanted) > 1:
        raise DataError(
            f"{folder} holds several categories or releases: {some(f'{c} ({g})' for g, c in wanted)}",
            "choose with --category and --generation",
        )
    if not wanted:
        if config.graph == "amazon-kg":
            release: Generation = "2018" if config.generation == "auto" else config.generation
            return Files(release, config.category, None, _metadata_file(names, folder, release, config.category))
        raise DataError(
            f"{folder} holds no reviews{' of ' + config.category if config.category else ''}: expected "
            "<category>_5.json.gz (2018), <category>.jsonl.gz (2023) or reviews_<category>.json.gz (2014)",
            "docs/datasets.md says where to get them",
        )
    generation, category = wanted[0]
    reviews = folder / min(found[wanted[0]])[1]
    return Files(generation, category, reviews, _metadata_file(names, folder, generation, category))


def _metadata_file(names: Iterable[str], folder: Path, generation: Generation, category: str) -> Path | None:
    suffix = "jsonl" if generation == "2023" else "json"
    known = {f"meta_{category}.{suffix}", f"meta_{category}.{suffix}.gz"}
    return next((folder / name for name in names if name in known), None)


def _read_reviews(path: Path, generation: Generation, config: AmazonConfig, work: Workspace) -> None:
    """Read the reviews once, into ``reviews.parquet``; texts that are no positive are not needed."""
    work.register(path, LICENCE, f"Amazon reviews {generation} (McAuley lab)")
    fields = dict(RELEASES[generation].reviews)
    if config.min_rating is not None:
        positive = f"{fields['rating'].value()} >= {config.min_rating}"
        fields["text"] = replace(fields["text"], only_if=positive)
    content = f"hash(coalesce({quoted(fields['text'].source)}, ''))"
    work.read(_lines(path, generation, work), "reviews.parquet", fields, extra={"content": content})


def _read_metadata(path: Path, generation: Generation, work: Workspace) -> None:
    """Read the metadata of the products that have an interaction into the table ``products``."""
    work.register(path, LICENCE, f"Amazon product metadata {generation} (McAuley lab)")
    release = RELEASES[generation]
    outer = {name.split(".")[0] for name in (*release.maker, release.categories, *release.links.values())}
    fields = {name: Field(name, "text") for name in sorted(outer | {"title", "description"})}
    file = _lines(path, generation, work)
    work.read(file, "metadata.parquet", {"item": Field(release.item), **fields})
    work.located["items"] = (file, release.item)
    place = literal(str(work.folder / "metadata.parquet"))
    work.db.execute(
        f"""CREATE TABLE products AS SELECT * EXCLUDE (fault) FROM read_parquet({place}, file_row_number=true)
            SEMI JOIN interactions USING (item) WHERE fault IS NULL"""
    )


def _lines(path: Path, generation: Generation, work: Workspace) -> JsonLines:
    return JsonLines(path, _strict(path, work) if generation == "2014" else None)


def _strict(path: Path, work: Workspace) -> Path:
    """Rewrite a file whose lines are Python literals (2014) as JSON, line by line; nothing in it is executed."""
    check_readable(path)
    target = work.folder / f"strict-{path.name.split('.')[0]}.jsonl"
    with unpacking(path), open_text(path) as file, target.open("w", encoding="utf-8") as out:
        out.writelines((_as_json(line) if line.strip() else "") + "\n" for line in file)
    return target


def _as_json(line: str) -> str:
    """One line as JSON; what is neither becomes a text, which is a bad row later."""
    if len(line) > _LONGEST_LINE:
        return json.dumps(line[:200])
    try:
        return json.dumps(json.loads(line))
    except (ValueError, RecursionError):
        pass
    try:
        return json.dumps(ast.literal_eval(line.strip()))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return json.dumps(line[:200])


def _put_products(work: Workspace, release: Release, maker: str, links: tuple[str, ...]) -> None:
    """Turn the table ``products`` into items, entities and triples; names are cleaned once each."""
    db = work.db
    db.execute(f"INSERT INTO items SELECT file_row_number, item, {_TITLE}, {_DESCRIPTION} FROM products")
    makers = ", ".join(f"nullif(trim({_inside(field)}), '')" for field in release.maker)
    db.execute(
        f"""CREATE TABLE facts AS
            SELECT item, '{maker}' AS relation, coalesce({makers}) AS raw FROM products
            UNION ALL SELECT item, 'category', unnest({_texts(_inside(release.categories))}) FROM products"""
    )
    names = work.frame("SELECT DISTINCT relation, raw FROM facts WHERE raw IS NOT NULL ORDER BY 1, 2")
    makes = names["relation"] == maker
    names["name"] = [(_maker if is_maker else plain)(raw) for is_maker, raw in zip(makes, names["raw"], strict=True)]
    names = names[names["name"] != ""]
    names["entity"] = names["relation"] + ":" + names["name"]
    work.put(
        "entities",
        names.drop_duplicates("entity").rename(columns={"name": "label", "relation": "kind"}),
    )
    db.register("names", names[["relation", "raw", "entity"]])
    db.execute(
        """INSERT INTO triples SELECT DISTINCT item, relation, entity FROM facts JOIN names USING (relation, raw)"""
    )
    db.unregister("names")
    for relation in links:
        others = _texts(_inside(release.links[relation]))
        db.execute(f"INSERT INTO triples SELECT item, '{relation}', unnest({others}) FROM products")


def _inside(field: str) -> str:
    """SQL expression of a field of the metadata as text; ``outer.inner`` looks into a JSON object."""
    outer, _, inner = field.partition(".")
    if not inner:
        return f'"{outer}"'
    found = f"""coalesce(json_extract_string("{outer}", '$.{inner}'), '')"""
    return f"""CASE WHEN json_valid("{outer}") THEN {found} ELSE '' END"""


def _texts(value: str) -> str:
    """SQL expression of the list of texts in a field: a text, a JSON list of texts, or a list of such lists."""
    return f"""CASE WHEN {value} = '' THEN CAST([] AS VARCHAR[])
                    WHEN NOT starts_with({value}, '[') THEN [{value}]
                    WHEN NOT json_valid({value}) THEN CAST([] AS VARCHAR[])
                    WHEN starts_with({value}, '[[') THEN json_extract_string({value}, '$[*][*]')
                    ELSE json_extract_string({value}, '$[*]') END"""


_TITLE = f"CASE WHEN regexp_matches(title, {literal(_BROKEN_TITLE)}) THEN '' ELSE title END"
_DESCRIPTION = f"array_to_string({_texts('description')}, ' ')"


def _maker(text: str) -> str:
    name = plain(text)
    if match := _SHOP_PAGE.match(name):
        name = match[1]
    return _ROLE.sub("", name).strip()


def _parse_amazon_kg(folder: Path, files: Files, config: AmazonConfig, work: Workspace) -> None:
    """Take interactions and graph from Amazon-KG; titles and reviews join on the original ids where they are there."""
    names = sorted(path.stem for path in folder.glob("*.inter") if config.category in path.name)
    if len(names) != 1:
        problem = f"several: {some(names)}" if names else "none"
        raise DataError(
            f"{folder} must hold one Amazon-KG data set (<name>.inter, .kg, .link), found {problem}",
            "docs/datasets.md says where to get it; choose with --category",
        )
    recbole.parse(folder, recbole.RecboleConfig(dataset=names[0]), work)
    if files.metadata is not None:
        _read_metadata(files.metadata, files.generation, work)
        work.db.execute(
            f"""UPDATE items SET label = coalesce(nullif(title, ''), label), description = found.description
                FROM (SELECT item, max({_TITLE}) AS title, max({_DESCRIPTION}) AS description FROM products
                      GROUP BY item) AS found WHERE found.item = items.item"""
        )
    if files.reviews is not None:
        _read_reviews(files.reviews, files.generation, config, work)
        review_view(work, interactions=False)
        work.db.execute(
            """CREATE TABLE latest AS SELECT "user", item, "timestamp", review FROM raw_reviews
               SEMI JOIN interactions USING ("user", item)
               QUALIFY row_number() OVER (
                 PARTITION BY "user", item ORDER BY "timestamp" DESC NULLS LAST, review DESC) = 1"""
        )
        work.db.execute(
            """UPDATE interactions SET "timestamp" = latest."timestamp", review = latest.review FROM latest
               WHERE latest."user" = interactions."user" AND latest.item = interactions.item"""
        )


_AMAZON_KG = AmazonConfig(graph="amazon-kg", **UNFILTERED)

SOURCE = Source(
    parse,
    {
        "amazon": Recipe("amazon", AmazonConfig(), "Amazon reviews of 2014, 2018 or 2023 with metadata, any category"),
        "amazon-books": Recipe(
            "amazon", AmazonConfig(category="Books", user_core=10, item_core=10), "Amazon Books, graph from metadata"
        ),
        "amazon-movies-and-tv": Recipe(
            "amazon",
            AmazonConfig(category="Movies_and_TV", user_core=10, item_core=10),
            "Amazon Movies & TV, graph from metadata",
        ),
        "book": Recipe(
            "amazon",
            _AMAZON_KG.replace(category="Books"),
            "Books of the paper: Amazon-KG v2.0 (DBpedia), titles and reviews of 2018",
            ("Amazon-KG-5core-Books",),
            Published(
                {
                    "users": 10_485,
                    "items": 8_696,
                    "interactions": 115_572,
                    "entities": 35_995,
                    "relations": 20,
                    "triples": 80_684,
                },
                "Amazon-KG v2.0 (Wang et al., SIGIR 2024)",
            ),
        ),
        "movie": Recipe(
            "amazon",
            _AMAZON_KG.replace(category="Movies_and_TV"),
            "Movies & TV of the paper: Amazon-KG v2.0 (DBpedia), titles and reviews of 2018",
            ("Amazon-KG-5core-Movies_and_TV",),
            Published(
                {
                    "users": 5_648,
                    "items": 4_896,
                    "interactions": 67_066,
                    "entities": 53_096,
                    "relations": 20,
                    "triples": 151_515,
                },
                "Amazon-KG v2.0 (Wang et al., SIGIR 2024)",
            ),
        ),
    },
)
"""The source, with Books and Movies & TV by name."""
