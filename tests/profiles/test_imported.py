import json
from pathlib import Path
from typing import Any

import pytest

from spike_kit.base.errors import DataError
from spike_kit.base.storage import sha256_file, sha256_text
from spike_kit.data.dataset import SUBJECTS, Dataset
from spike_kit.experiments.run import RunConfig, describe_text, run
from spike_kit.profiles.encode import encode_profiles
from spike_kit.profiles.imported import import_profiles

Texts = dict[str, dict[str, Any]]


def texts_of(data: Dataset) -> Texts:
    """Profiles by source id, as CoLaKG's files hold them."""
    tables = {"item": data.items, "auxiliary": data.entities.iloc[len(data.items) :], "user": data.users}
    return {
        subject: {
            source_id: f"Theirs: {label} is a thing of note."
            for source_id, label in zip(table["source_id"], table["label"], strict=True)
        }
        for subject, table in tables.items()
    }


def write(folder: Path, texts: Texts) -> dict[str, Path]:
    files = {subject: folder / f"{subject}.json" for subject in texts}
    for subject, values in texts.items():
        files[subject].write_text(json.dumps(values), encoding="utf-8")
    return files


def test_profiles_by_source_id(data: Dataset, tmp_path: Path) -> None:
    texts = texts_of(data)
    texts["item"]["film:unknown"] = "Theirs: a film the data set does not have."
    texts["item"]["film:0"] = "<p>Comedy\x00 &amp; more,\r\n<b>loud</b>\u2028\u200b<script>alert(1)</script> a < b</p>"
    files = write(tmp_path, texts)
    assert import_profiles(data, "theirs", files) == data.profiles_path("theirs")
    profiles = data.profiles("theirs")
    labels = [*data.entities["label"], *data.users["label"]]
    assert profiles["text"][0] == "Comedy & more, loud a < b"
    assert profiles["text"].tolist()[1:] == [f"Theirs: {label} is a thing of note." for label in labels[1:]]
    assert set(profiles["model"]) == {"imported"}
    assert profiles["prompt_sha256"].tolist() == profiles["text"].map(sha256_text).tolist()
    provenance = data.provenance("theirs")
    assert (provenance["kind"], provenance["possibly_leaky"]) == ("imported", ["user"])
    assert provenance["imported"] == {"item": 48, "auxiliary": 20, "user": 56}
    assert provenance["files"]["item"] == {"name": "item.json", "sha256": sha256_file(files["item"])}


def test_profiles_by_other_ids_with_maps(data: Dataset, tmp_path: Path) -> None:
    texts, maps = texts_of(data), {subject: tmp_path / f"{subject}.txt" for subject in SUBJECTS}
    assert any(" " in source_id for source_id in texts["auxiliary"])
    import_profiles(data, "plain", write(tmp_path, texts))
    for subject, values in texts.items():
        lines = [f"{source_id}\t{1000 + place}" for place, source_id in enumerate(values)]
        maps[subject].write_text("\n".join([*lines, "", "unknown:thing 999999"]) + "\n", encoding="utf-8")
        texts[subject] = {str(1000 + place): text for place, text in enumerate(values.values())}
    files = write(tmp_path, texts)
    import_profiles(data, "mapped", files, maps)
    assert data.profiles("mapped")["text"].equals(data.profiles("plain")["text"])
    for some_maps, subject in (({}, "item"), ({"item": maps["item"]}, "auxiliary")):
        with pytest.raises(
            DataError, match=rf"(?s){subject}\.json has no profile for any {subject} of world.*--item-map"
        ):
            import_profiles(data, "unmapped", files, some_maps)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("film:0 1\nfilm:1\n", r"line 2 is not: source_id id"),
        ("film:0 1\nfilm:1 1\n", r"line 2: id 1 stands there for the second time"),
        (b"\xff\xfe", r"cannot be read as text in UTF-8"),
        (None, r"cannot be read"),
    ],
)
def test_a_broken_map_is_an_error(data: Dataset, tmp_path: Path, content: str | bytes | None, message: str) -> None:
    files, path = write(tmp_path, {"item": texts_of(data)["item"]}), tmp_path / "map.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"map\.txt.*{message}"):
        import_profiles(data, "theirs", files, {"item": path}, fill="template")


def test_profiles_of_other_things_under_the_same_ids_are_refused(data: Dataset, tmp_path: Path) -> None:
    texts = texts_of(data) | {"item": {f"film:{n}": f"Chapter {n} of a cookbook, on soups." for n in range(48)}}
    with pytest.raises(DataError, match=r"(?s)item\.json: only \d+ of \d+ profiles hold a word of the name.*map"):
        import_profiles(data, "theirs", write(tmp_path, texts))
    assert data.profile_sets() == ["template"]


def test_gaps_are_named_or_filled_and_marked(data: Dataset, tmp_path: Path) -> None:
    texts = texts_of(data)
    del texts["item"]["film:7"]
    texts["item"]["film:9"] = " \n<br/> "
    del texts["user"]
    files = write(tmp_path, texts)
    with pytest.raises(
        DataError, match=r"(?s)item\.json leaves 2 of 48 item profiles open: item 7, 9.*--fill template"
    ):
        import_profiles(data, "theirs", files)
    files = write(tmp_path, texts)
    del files["auxiliary"]
    import_profiles(data, "theirs", files, fill="template")
    profiles, template = data.profiles("theirs"), data.profiles("template")
    filled, columns = profiles["model"] == "template", ["text", "prompt_sha256"]
    assert filled.sum() == 2 + 20 + 56
    assert profiles.loc[filled, columns].equals(template.loc[filled, columns])
    assert set(profiles.loc[filled, "usage"]) == {'{"filled": true}'}
    assert set(profiles.loc[~filled, "usage"]) == {"{}"}
    assert data.provenance("theirs")["imported"] == {"item": 46, "auxiliary": 0, "user": 0}
    assert data.provenance("theirs")["possibly_leaky"] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"film:5": null}', "the profile of 'film:5' is no text but NoneType"),
        (b'{"film:5": ["text"]}', "the profile of 'film:5' is no text but list"),
        (b'"text"', "no JSON object of profiles by id"),
        (b"not json", "not valid JSON"),
        (b"\xff\xfe{}", "not valid JSON"),
        (None, "does not exist"),
    ],
)
def test_a_file_of_another_form_is_named(data: Dataset, tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "item.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=rf"item\.json.*{message}"):
        import_profiles(data, "theirs", {"item": path}, fill="template")


def test_other_subjects_and_the_name_of_the_templates_are_refused(data: Dataset, tmp_path: Path) -> None:
    files = write(tmp_path, texts_of(data))
    for wrong in ({}, {"film": files["item"]}):
        with pytest.raises(DataError, match="can be imported for item, auxiliary, user"):
            import_profiles(data, "theirs", wrong)
    with pytest.raises(DataError, match="'template' names the template profiles"):
        import_profiles(data, "template", files)
    with pytest.raises(DataError, match="cannot be the name of a profile set"):
        import_profiles(data, "a/b", files)


def test_a_run_on_imported_user_profiles_says_that_they_may_leak(data: Dataset, tmp_path: Path) -> None:
    files = write(tmp_path, texts_of(data))
    import_profiles(data, "theirs", files)
    import_profiles(data, "careful", {s: files[s] for s in SUBJECTS[:2]}, fill="template")
    for name in ("careful", "theirs"):
        encode_profiles(data, name, "tfidf-8", progress=False)
    assert "possibly_leaky" not in describe_text(data, "careful", "tfidf-8")
    training = {"epochs": 1, "batch_size": 512}
    config = RunConfig(dataset="world", model="rlmrec_con", profiles="theirs", encoder="tfidf-8", training=training)
    assert run(config, progress=False).config["possibly_leaky"] == ["user"]
