"""Amazon reviews with metadata: the public releases of 2014, 2018 and 2023 (McAuley lab), any category.

The knowledge graph is made of the metadata (brand or author, categories; links between products on request), or is
Amazon-KG v2.0 (DBpedia; Wang et al., SIGIR 2024), which covers Books and Movies & TV. All join on the original ids:
``asin``, in 2023 ``parent_asin``.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from spike_kit.base.errors import DataError, some
from spike_kit.data.pipeline import BuildConfig
from spike_kit.data.raw import Field, JsonLines, literal, open_text, unpacking
from spike_kit.data.reading import check_folder, interaction_fields, put_relations, read_reviews, registered
from spike_kit.data.recipes import UNFILTERED, Published, Recipe, Source
from spike_kit.data.sources import recbole
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace

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


_UNTIL_2018 = interaction_fields(
    {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime", "text": "reviewText"}
)
_2023 = interaction_fields(
    {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp", "text": "text"},
    time="milliseconds",
)

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


class Files(NamedTuple):
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
    is_book = "book" in files.category.lower() or "kindle" in files.category.lower()
    maker = "author" if is_book else "brand"
    release = RELEASES[files.generation]
    links = tuple(release.links) if config.behavioural else ()
    _read_metadata(files.metadata, files.generation, work)
    _put_products(work, release, maker, links)
    put_relations({name: _TEMPLATES[name] for name in (maker, "category", *links)}, work, behavioural=links)


def find_files(folder: Path, config: AmazonConfig) -> Files:
    """Find the reviews and the metadata of the wanted category; the 5-core file is taken where both are there.

    Raises
    ------
    DataError
        If the folder does not exist, or holds several categories or releases of which none was chosen.
    """
    check_folder(folder)
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    found: dict[tuple[Generation, str], str] = {}
    for name in sorted(names, key=lambda name: "_5.json" not in name):
        for generation, pattern in _NAMES:
            if match := re.fullmatch(pattern, name):
                found.setdefault((generation, match["category"]), name)
                break
    wanted: list[tuple[Generation, str]] = [
        (generation, category)
        for generation, category in sorted(found)
        if config.generation in ("auto", generation) and config.category in ("", category)
    ]
    if len(wanted) > 1:
        raise DataError(
            f"{folder} holds several categories or releases: {some(f'{c} ({g})' for g, c in wanted)}",
            "choose with --category and --generation",
        )
    if not wanted and config.graph != "amazon-kg":
        raise DataError(
            f"{folder} holds no reviews{' of ' + config.category if config.category else ''}: expected "
            "<category>_5.json.gz (2018), <category>.jsonl.gz (2023) or reviews_<category>.json.gz (2014)",
            "docs/datasets.md says where to get them",
        )
    chosen: Generation = "2018" if config.generation == "auto" else config.generation
    generation, category = wanted[0] if wanted else (chosen, config.category)
    metadata = f"meta_{category}.{'jsonl' if generation == '2023' else 'json'}"
    reviews = folder / found[wanted[0]] if wanted else None
    known = (folder / name for name in names if name in (metadata, f"{metadata}.gz"))
    return Files(generation, category, reviews, next(known, None))


def _read_reviews(
    path: Path, generation: Generation, config: AmazonConfig, work: Workspace, interactions: bool = True
) -> None:
    """Read the reviews, as interactions too unless told otherwise; texts that are no positive are not needed."""
    registered(path, LICENCE, f"Amazon reviews {generation} (McAuley lab)", work)
    fields = dict(RELEASES[generation].reviews)
    if config.min_rating is not None:
        positive = f"{fields['rating'].value()} >= {config.min_rating}"
        fields["text"] = replace(fields["text"], only_if=positive)
    read_reviews(_lines(path, generation, work), fields, work, interactions=interactions)


def _read_metadata(path: Path, generation: Generation, work: Workspace) -> None:
    """Read the metadata of the products that have an interaction into the table ``products``."""
    registered(path, LICENCE, f"Amazon product metadata {generation} (McAuley lab)", work)
    release = RELEASES[generation]
    outer = {name.split(".")[0] for name in (*release.maker, release.categories, *release.links.values())}
    fields = {name: Field(name, "text") for name in sorted(outer | {"title", "description"})}
    file = _lines(path, generation, work)
    work.read(file, "metadata.parquet", {"item": Field(release.item), **fields})
    work.origins["items"] = (file, release.item)
    place = literal(str(work.folder / "metadata.parquet"))
    work.db.execute(
        f"""CREATE TABLE products AS SELECT * EXCLUDE (fault) FROM read_parquet({place}, file_row_number=true)
            SEMI JOIN interactions USING (item) WHERE fault IS NULL"""
    )


def _lines(path: Path, generation: Generation, work: Workspace) -> JsonLines:
    """Lines of a file; those of 2014 are Python literals and rewritten as JSON, nothing in them is executed."""
    if generation != "2014":
        return JsonLines(path)
    strict = work.folder / f"strict-{path.name.split('.')[0]}.jsonl"
    with unpacking(path), open_text(path) as file, strict.open("w", encoding="utf-8") as out:
        out.writelines((_as_json(line) if line.strip() else "") + "\n" for line in file)
    return JsonLines(path, strict)


def _as_json(line: str) -> str:
    """One line as JSON; what is neither JSON nor a Python literal becomes a text, which is a bad row later."""
    for read in (json.loads, ast.literal_eval) if len(line) <= _LONGEST_LINE else ():
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json.dumps(read(line.strip()))
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
    cleaned = names["raw"].map(plain)
    names["label"] = cleaned.where(names["relation"] != maker, cleaned.map(_maker))
    names = names[names["label"] != ""].assign(entity=names["relation"] + ":" + names["label"], kind=names["relation"])
    work.put("entities", names.drop_duplicates("entity"))
    work.table("names", names)
    db.execute("INSERT INTO triples SELECT item, relation, entity FROM facts JOIN names USING (relation, raw)")
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


def _maker(name: str) -> str:
    match = _SHOP_PAGE.match(name)
    return _ROLE.sub("", match[1] if match else name).strip()


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
        _read_reviews(files.reviews, files.generation, config, work, interactions=False)
        work.db.execute(
            """UPDATE interactions SET "timestamp" = latest."timestamp", review = latest.review FROM (
                 SELECT "user", item, "timestamp", review FROM raw_reviews SEMI JOIN interactions USING ("user", item)
                 QUALIFY row_number() OVER (
                   PARTITION BY "user", item ORDER BY "timestamp" DESC NULLS LAST, review DESC) = 1) AS latest
               WHERE latest."user" = interactions."user" AND latest.item = interactions.item"""
        )


_PAPER = "Amazon-KG v2.0 (Wang et al., SIGIR 2024)"
_CORE = AmazonConfig(user_core=10, item_core=10)
_AMAZON_KG = AmazonConfig(graph="amazon-kg", **UNFILTERED)

SOURCE = Source(
    parse,
    {
        "amazon": Recipe(AmazonConfig(), "Amazon reviews of 2014, 2018 or 2023 with metadata, any category"),
        "amazon-books": Recipe(_CORE.replace(category="Books"), "Amazon Books, graph from metadata"),
        "amazon-movies-and-tv": Recipe(
            _CORE.replace(category="Movies_and_TV"), "Amazon Movies & TV, graph from metadata"
        ),
        "book": Recipe(
            _AMAZON_KG.replace(category="Books"),
            "Books of the paper: Amazon-KG v2.0 (DBpedia), titles and reviews of 2018",
            Published(_PAPER, 10_485, 8_696, 115_572, 35_995, 20, 80_684),
            ("Amazon-KG-5core-Books",),
        ),
        "movie": Recipe(
            _AMAZON_KG.replace(category="Movies_and_TV"),
            "Movies & TV of the paper: Amazon-KG v2.0 (DBpedia), titles and reviews of 2018",
            Published(_PAPER, 5_648, 4_896, 67_066, 53_096, 20, 151_515),
            ("Amazon-KG-5core-Movies_and_TV",),
        ),
    },
)
"""The reader, with Books and Movies & TV by name."""
