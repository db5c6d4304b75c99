"""What others made: profiles by their ids, and vectors."""

import dataclasses
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from spike_kit.base import paths
from spike_kit.base.errors import ConfigError, DataError
from spike_kit.base.storage import sha256_file, sha256_text
from spike_kit.data.dataset import SUBJECTS, Dataset, create_dataset
from spike_kit.data.vectors import ProfileVectors
from spike_kit.experiments.run import RunConfig, describe_text, run
from spike_kit.profiles.encode import check_fresh, encode_profiles, ensure_vectors
from spike_kit.profiles.imported import import_profiles, import_vectors

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
        with pytest.raises(DataError, match=rf"(?s){subject}\.json has no profile for any {subject}.*--item-map"):
            import_profiles(data, "unmapped", files, some_maps)


@pytest.mark.parametrize("which", [("maps",), ("texts",), ("maps", "texts")])
def test_byte_order_marks_and_line_ends_of_windows_change_nothing(
    data: Dataset, tmp_path: Path, which: tuple[str, ...]
) -> None:
    texts, maps = texts_of(data), {}
    for subject, values in texts.items():
        maps[subject] = tmp_path / f"{subject}.txt"
        lines = "".join(f"{source_id} {place}\r\n" for place, source_id in enumerate(values))
        maps[subject].write_bytes(lines.encode("utf-8-sig" if "maps" in which else "utf-8"))
        texts[subject] = {str(place): text for place, text in enumerate(values.values())}
    files = write(tmp_path, texts)
    if "texts" in which:
        for file in files.values():
            file.write_text(file.read_text(encoding="utf-8"), encoding="utf-8-sig")
    import_profiles(data, "theirs", files, maps)
    assert "template" not in set(data.profiles("theirs")["model"])


def test_profiles_of_other_things_under_the_same_ids_are_refused(data: Dataset, tmp_path: Path) -> None:
    texts = texts_of(data) | {"item": {f"film:{n}": f"Chapter {n} of a cookbook, on soups." for n in range(48)}}
    with pytest.raises(DataError, match=r"(?s)item\.json: only \d+ of \d+ profiles hold a word of the name.*map"):
        import_profiles(data, "theirs", write(tmp_path, texts))
    assert data.profile_sets() == ["template"]


def of_directors(data: Dataset) -> dict[str, str]:
    """Profiles that do not name their film, but the director, in capitals."""
    labels, told = data.entities["label"], data.triples[data.triples["relation"] == 1]
    return {
        f"film:{head}": f"By {labels[tail].upper()}, for the patient." for head, tail in told[["head", "tail"]].values
    }


def of_titles(data: Dataset) -> dict[str, str]:
    return {f"film:{n}": f"In {label} nobody is who they seem." for n, label in enumerate(data.items["label"])}


@pytest.fixture
def named(data: Dataset) -> Dataset:
    """The tiny world, where every film and every director has a name of its own."""
    letters = str.maketrans("0123456789", "abcdefghij")
    entities = data.entities.assign(label=[f"Mr Wick{n:04d}".translate(letters) for n in range(len(data.entities))])
    tables = dataclasses.replace(
        data.tables, entities=entities, items=data.items.assign(label=entities["label"][: len(data.items)])
    )
    return create_dataset(paths.data_root() / "named", "named", tables, sources=(), build={}, funnel=())


@pytest.mark.parametrize("texts_of_items", [of_directors, of_titles])
@pytest.mark.parametrize("order", ["right", "one on", "one back", "far on", "shuffled"])
def test_texts_must_fit_their_ids_better_than_others(
    named: Dataset,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    texts_of_items: Callable[[Dataset], dict[str, str]],
    order: str,
) -> None:
    ids, texts = zip(*texts_of_items(named).items(), strict=True)
    shuffled = random.Random(1).sample(texts, len(texts))
    steps = {"right": 0, "one on": 1, "one back": -1, "far on": 20}
    given = [*texts[steps[order] :], *texts[: steps[order]]] if order in steps else shuffled
    files = write(tmp_path, {"item": dict(zip(ids, given, strict=True))})
    if order != "right":
        with pytest.raises(DataError, match=r"(?s)only \d+ of 48 profiles .* \d+ the other way.*--item-map.*--insist"):
            import_profiles(named, "theirs", files, fill="template")
        assert "theirs" not in named.profile_sets()
    import_profiles(named, "theirs", files, fill="template", insist=order != "right")
    assert named.profiles("theirs")["text"].tolist()[:48] == given
    assert ("fit these ids no better than others" in caplog.text) == (order != "right")


@pytest.mark.parametrize(("n", "text"), [(1, "Of soups."), (29, "On {} of cookery."), (29, "Comedy {}")])
def test_too_few_texts_are_taken_with_a_warning(
    named: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture, n: int, text: str
) -> None:
    files = write(tmp_path, {"item": {f"film:{place}": text.format(place) for place in range(n)}})
    import_profiles(named, "theirs", files, fill="template")
    assert named.provenance("theirs")["imported"]["item"] == n
    assert "too few profiles" in caplog.text


def test_gaps_are_named_or_filled_and_marked(data: Dataset, tmp_path: Path) -> None:
    texts = texts_of(data)
    del texts["item"]["film:7"]
    texts["item"]["film:9"] = " \n<br/> "
    del texts["user"]
    files = write(tmp_path, texts)
    with pytest.raises(DataError, match=r"(?s)no profile for item 7, item 9.*--fill template"):
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
    ("file", "content", "message"),
    [
        ("item.json", b'{"film:5": null}', "the profile of 'film:5' is no text but NoneType"),
        ("item.json", b'"text"', "no JSON object of profiles by id"),
        ("item.json", b"\xff\xfe{}", "line 1 is not text in UTF-8"),
        ("item.json", None, "does not exist"),
        ("map.txt", b"film:0 1\nfilm:1\n", "line 2 is not: source_id id"),
        ("map.txt", b"film:0 1\nfilm:1 1\n", "line 2: id 1 stands there for the second time"),
        ("map.txt", b"film:0 1\nfilm:1 2\n\xe9 3\n", "line 3 is not text in UTF-8"),
        ("map.txt", None, "does not exist"),
    ],
)
def test_a_broken_file_is_named(data: Dataset, tmp_path: Path, file: str, content: bytes | None, message: str) -> None:
    files = write(tmp_path, {"item": texts_of(data)["item"]})
    if content is None:
        (tmp_path / file).unlink(missing_ok=True)
    else:
        (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=rf"{file}.*{message}"):
        import_profiles(data, "theirs", files, {"item": tmp_path / "map.txt"} if file == "map.txt" else {}, "template")


def test_other_subjects_and_names_of_no_profile_set_are_refused(data: Dataset, tmp_path: Path) -> None:
    files = write(tmp_path, texts_of(data))
    for name, chosen, message in (
        ("theirs", {}, "can be imported for item, auxiliary, user"),
        ("theirs", {"film": files["item"]}, "can be imported for item, auxiliary, user"),
        ("template", files, "'template' names the template profiles"),
        ("a/b", files, "cannot be the name of a profile set"),
    ):
        with pytest.raises(DataError, match=message):
            import_profiles(data, name, chosen)


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


def given_rows(data: Dataset, dim: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(len(data.users), dim)), rng.normal(size=(len(data.entities), dim))


def write_rows(path: Path, rows: np.ndarray) -> Path:
    """Write vectors in the format that the suffix says; .npz in another order."""
    if path.suffix == ".npy":
        np.save(path, rows)
    elif path.suffix == ".safetensors":
        save_file({"anything": rows}, path)
    else:
        order = np.random.default_rng(1).permutation(len(rows))
        np.savez(path, ids=order, embeddings=rows[order])
    return path


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".npy", "float16"), (".npz", "float32"), (".safetensors", "float32"), (".npy", "float64")]
)
def test_vectors_of_others_are_used_as_given(data: Dataset, tmp_path: Path, suffix: str, dtype: str) -> None:
    user, entity = (rows.astype(dtype) for rows in given_rows(data))
    files = write_rows(tmp_path / f"u{suffix}", user), write_rows(tmp_path / f"e{suffix}", entity)
    written = import_vectors(data, "template", "authors", *files)
    assert written == data.embeddings_path("template", "given:authors")
    data.write_profiles("template", data.profiles().assign(text="other texts do not matter"))
    vectors = ensure_vectors(data, "template", "given:authors")
    check_fresh(data, "template", "given:authors")
    assert torch.equal(vectors.user, torch.from_numpy(user.astype(np.float32)))
    assert torch.equal(vectors.entity, torch.from_numpy(entity.astype(np.float32)))
    assert encode_profiles(data, "template", "given:authors") == written
    assert ProfileVectors.metadata(written)["user_sha256"] == sha256_file(files[0])


def test_vectors_without_profiles_are_reduced_and_their_reduction_follows_them(data: Dataset, tmp_path: Path) -> None:
    user, entity = (write_rows(tmp_path / f"{n}.npy", rows) for n, rows in enumerate(given_rows(data)))
    import_vectors(data, "others", "authors", user, entity)
    before = ensure_vectors(data, "others", "given:authors@pca2w")
    assert before.dim == 2
    import_vectors(data, "others", "given:authors", write_rows(user, given_rows(data)[0] * [1, 2, 3]), entity)
    with pytest.raises(DataError, match="belong to other vectors"):
        check_fresh(data, "others", "given:authors@pca2w")
    assert not torch.equal(ensure_vectors(data, "others", "given:authors@pca2w").user, before.user)
    check_fresh(data, "others", "given:authors@pca2w")
    came = ProfileVectors(*(torch.from_numpy(rows).float() for rows in given_rows(data)))
    came.save(data.embeddings_path("release", "authors"), {"source": "release"})
    assert torch.equal(ensure_vectors(data, "release", "authors").user, came.user)
    assert ensure_vectors(data, "release", "authors@pca2").dim == 2


def test_names_without_vectors_are_errors(data: Dataset, tmp_path: Path) -> None:
    for call in (ensure_vectors, encode_profiles):
        with pytest.raises(DataError, match=r"(?s)no vectors given:authors of profile set 'template'.*import them"):
            call(data, "template", "given:authors@pca2")
    for name in ("", "a@b"):
        with pytest.raises(ConfigError):
            import_vectors(data, "template", name, tmp_path / "u.npy", tmp_path / "e.npy")


def save_pickle(path: Path) -> None:
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)


def with_ids(ids: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.savez(path, ids=ids, embeddings=np.ones((len(ids), 3)))


@pytest.mark.parametrize(
    ("file", "write", "message"),
    [
        ("u.npy", lambda path: np.save(path, np.ones((55, 3))), r"user has shape \[55, 3\], expected \[56, 3\]"),
        ("u.npy", lambda path: np.save(path, np.ones((56, 3), dtype=int)), "holds int64"),
        ("u.npy", lambda path: np.save(path, np.full((56, 3), np.nan)), "user holds NaN .* in row 0, 1"),
        ("u.npy", lambda path: np.save(path, np.ones((56, 2))), r"entity has shape \[\d+, 3\], expected \[\d+, 2\]"),
        ("u.npy", save_pickle, "not a readable .npy file without pickles"),
        ("u.npy", lambda path: path.write_bytes(b"damaged"), "not a readable .npy file"),
        ("u.safetensors", lambda path: path.write_bytes(b"damaged"), "not a readable .safetensors file"),
        ("u.safetensors", lambda path: save_file(dict.fromkeys("ab", np.ones(1)), path), "of one array"),
        ("u.npz", with_ids(np.delete(np.arange(56), [1, 3])), r"ids must be 0\.\.55, each once; missing 1, 3"),
        ("u.npz", with_ids(np.where(np.arange(56) == 2, 0, np.arange(56))), "missing 2; repeated 0"),
        ("u.npz", with_ids(np.arange(56) + 1), "missing 0; unknown 56"),
        ("u.txt", lambda path: path.write_text("1 2 3"), "of no known kind"),
        ("u.npy", lambda _: None, "does not exist"),
    ],
)
def test_files_that_hold_no_vectors_are_errors(
    data: Dataset, tmp_path: Path, file: str, write: Callable[[Path], object], message: str
) -> None:
    write(tmp_path / file)
    with pytest.raises(DataError, match=message):
        import_vectors(data, "template", "x", tmp_path / file, write_rows(tmp_path / "e.npy", given_rows(data)[1]))
    assert not data.embeddings_path("template", "given:x").exists()
