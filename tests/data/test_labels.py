import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spike_kit.data.text import plain, readable


@pytest.mark.parametrize(
    ("identifier", "label"),
    [
        ("res:The_Prophet_(book)", "The Prophet (book)"),
        ("http://dbpedia.org/resource/The_Prophet_%28book%29", "The Prophet (book)"),
        ("<http://dbpedia.org/ontology/writer>", "writer"),
        ("http://www.w3.org/1999/02/22-rdf-syntax-ns#type", "type"),
        ("http://dbpedia.org/resource/Am%C3%A9lie/", "Amélie"),
        ("http://dbpedia.org/resource/Tom_%26_Jerry", "Tom & Jerry"),
        ("http://rdf.freebase.com/ns/m.0_dl567", "m.0_dl567"),
        ("m.0dl567", "m.0dl567"),
        ("film.film.genre", "film.film.genre"),
        ("dbo:author", "author"),
        ("category:American_films", "American films"),
        ("Alien: Resurrection", "Alien: Resurrection"),
        ("2001:_A_Space_Odyssey", "2001: A Space Odyssey"),
        ("x:/y", "x:/y"),
        ("100%", "100%"),
        ("http://example.org", "example.org"),
        ("__", "__"),
        ("<>", "<>"),
        ("", ""),
    ],
)
def test_a_name_is_read_from_an_identifier(identifier: str, label: str) -> None:
    assert readable(identifier) == label


PIECES = st.sampled_from(
    ["http", "://", "/", "#", ":", "<", ">", "_", "%", "%C3", "%00", "m.", "a", "&amp;", " ", "\n"]
)


@given(st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=8).map("".join)))
@example("http://##")
@example("http://")
@settings(max_examples=400)
def test_any_identifier_gives_one_clean_line(identifier: str) -> None:
    label = readable(identifier)
    assert label == " ".join(label.split())
    assert label or not plain(identifier)
