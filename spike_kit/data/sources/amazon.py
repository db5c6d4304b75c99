"""Amazon reviews with metadata: the public releases of 2014, 2018 and 2023 (McAuley lab), any category.

The knowledge graph is made of the metadata (brand or author, categories; links between products on request), or is
Amazon-KG v2.0 (DBpedia; Wang et al., SIGIR 2024), which covers Books and Movies & TV. All join on the original ids:
``asin``, in 2023 ``parent_asin``.
"""

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from spike_kit.base.errors import DataError, some
from spike_kit.data.files import opened
from spike_kit.data.raw import Field, JsonLines, fields, literal
from spike_kit.data.recipes import UNFILTERED, BuildConfig, Published, Recipe, Source
from spike_kit.data.sources import recbole
from spike_kit.data.text import plain
from spike_kit.data.workspace import Workspace

LICENCE = "no licence stated; released for research, not for redistribution"


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
        Columns of the reviews; a product has the same id in the metadata.
    maker
        Fields that may name brand, author or shop, best first.
    categories
        Field with the categories.
    links
        Field with links to other products, by relation; a dotted name lies inside of another field.
    """

    reviews: Mapping[str, Field]
    maker: tuple[str, ...]
    categories: str
    links: Mapping[str, str]


_UNTIL_2018 = fields(
    {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime", "text": "reviewText"}
)
_2023 = fields(
    {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp", "text": "text"},
    time="milliseconds",
)
_RELATED = {"also_buy": "related.also_bought", "also_view": "related.also_viewed"}
_RELATED |= {name: f"related.{name}" for name in ("bought_together", "buy_after_viewing")}
_ALSO, _TOGETHER = {name: name for name in ("also_buy", "also_view")}, {"bought_together": "bought_together"}

RELEASES: dict[str, Release] = {
    "2014": Release(_UNTIL_2018, ("brand",), "categories", _RELATED),
    "2018": Release(_UNTIL_2018, ("brand",), "category", _ALSO),
    "2023": Release(_2023, ("author.name", "store"), "categories", _TOGETHER),
}
"""Field names of every release."""

_NAMES = (
    ("2014", r"reviews_(?P<category>.+?)(_5)?\.json(\.gz)?"),
    ("2023", r"(?!meta_)(?P<category>.+?)\.jsonl(\.gz)?"),
    ("2018", r"(?!meta_)(?P<category>.+?)(_5)?\.json(\.gz)?"),
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

    release: str
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
    _read_reviews(files.reviews, files.release, work)
    is_book = "book" in files.category.lower() or "kindle" in files.category.lower()
    maker = "author" if is_book else "brand"
    release = RELEASES[files.release]
    links = tuple(release.links) if config.behavioural else ()
    _read_metadata(files.metadata, files.release, work)
    _put_products(work, release, maker, links)
    work.put_relations({name: _TEMPLATES[name] for name in (maker, "category", *links)}, behavioural=links)


def find_files(folder: Path, config: AmazonConfig) -> Files:
    """Find the reviews and the metadata of the wanted category; the 5-core file is taken where both are there.

    Raises
    ------
    DataError
        If the folder holds several categories or releases of which none was chosen.
    """
    names = sorted((path.name for path in folder.iterdir() if path.is_file()), key=lambda name: "_5.json" not in name)
    found: dict[tuple[str, str], Path] = {}
    for name in names:
        matches = ((release, re.fullmatch(pattern, name)) for release, pattern in _NAMES)
        release, category = next(((release, match["category"]) for release, match in matches if match), ("", ""))
        if release and config.generation in ("auto", release) and config.category in ("", category):
            found.setdefault((release, category), folder / name)
    if len(found) > 1:
        held = some(f"{category} ({release})" for release, category in sorted(found))
        problem = f"{folder} holds several categories or releases: {held}"
        raise DataError(problem, "choose with --category and --generation")
    if not found and config.graph != "amazon-kg":
        raise DataError(
            f"{folder} holds no reviews{' of ' + config.category if config.category else ''}: expected "
            "<category>_5.json.gz (2018), <category>.jsonl.gz (2023) or reviews_<category>.json.gz (2014)",
            "docs/datasets.md says where to get them",
        )
    chosen = "2018" if config.generation == "auto" else config.generation
    (release, category), reviews = next(iter(found.items()), ((chosen, config.category), None))
    metadata = folder / f"meta_{category}.{'jsonl' if release == '2023' else 'json'}"
    known = (path for path in (metadata, metadata.with_name(f"{metadata.name}.gz")) if path.is_file())
    return Files(release, category, reviews, next(known, None))


def _read_reviews(path: Path, release: str, work: Workspace, keep: bool = True) -> None:
    """Read the reviews, as interactions too unless told otherwise."""
    work.terms = LICENCE, f"Amazon reviews {release} (McAuley lab)"
    work.read_interactions(_lines(path, release, work), RELEASES[release].reviews, keep=keep)


def _read_metadata(path: Path, release: str, work: Workspace) -> None:
    """Read the metadata of the products that have an interaction into the table ``products``."""
    work.terms = LICENCE, f"Amazon product metadata {release} (McAuley lab)"
    columns = RELEASES[release]
    outer = {name.split(".")[0] for name in (*columns.maker, columns.categories, *columns.links.values())}
    texts = {name: Field(name, "text") for name in sorted(outer | {"title", "description"})}
    item = Field(columns.reviews["item"].source)
    work.read(_lines(path, release, work), "raw_items_metadata", {"item": item, **texts})
    work.db.execute("CREATE TABLE products AS SELECT * FROM raw_items_metadata SEMI JOIN interactions USING (item)")


def _lines(path: Path, release: str, work: Workspace) -> JsonLines:
    """Lines of a file; those of 2014 are Python literals and rewritten as JSON, nothing in them is executed."""
    work.register(path)
    if release != "2014":
        return JsonLines(path)
    strict = work.folder / f"strict-{path.name.split('.')[0]}.jsonl"
    with opened(path) as file, strict.open("w", encoding="utf-8") as out:
        out.writelines((_as_json(line) if line.strip() else "") + "\n" for line in file)
    return JsonLines(path, rewritten=strict)


def _as_json(line: str) -> str:
    """One line as JSON; what is neither JSON nor a Python literal becomes a text, which is a bad row later."""
    for read in (json.loads, ast.literal_eval) if len(line) <= _LONGEST_LINE else ():
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return json.dumps(read(line.strip()))
    return json.dumps(line[:200])


def _put_products(work: Workspace, release: Release, maker: str, links: tuple[str, ...]) -> None:
    """Turn the table ``products`` into items, entities and triples; names are cleaned once each."""
    db = work.db
    db.execute(f"INSERT INTO items SELECT place, item, {_TITLE}, {_DESCRIPTION} FROM products")
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
        _read_metadata(files.metadata, files.release, work)
        work.db.execute(
            f"""UPDATE items SET label = coalesce(nullif(title, ''), label), description = found.description
                FROM (SELECT item, max({_TITLE}) AS title, max({_DESCRIPTION}) AS description FROM products
                      GROUP BY item) AS found WHERE found.item = items.item"""
        )
    if files.reviews is not None:
        _read_reviews(files.reviews, files.release, work, keep=False)
        work.db.execute(
            """UPDATE interactions SET "timestamp" = latest."timestamp", review = place FROM (
                 SELECT "user", item, "timestamp", place FROM raw_reviews SEMI JOIN interactions USING ("user", item)
                 QUALIFY row_number() OVER (
                   PARTITION BY "user", item ORDER BY "timestamp" DESC NULLS LAST, place DESC) = 1) AS latest
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
