"""Generation from the first estimate to the table: what is asked, what is kept, and what happens at gaps."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from spike_kit.base import paths
from spike_kit.base.errors import DataError
from spike_kit.base.storage import sha256_text
from spike_kit.cli import main
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.llm import estimate_tokens, prices
from spike_kit.profiles.prompts import PromptConfig, PromptWriter
from spike_kit.profiles.store import Store, asking_store
from spike_kit.profiles.template import UNKNOWN_TASTE, Links, Names
from tests.profiles.llm_server import ids
from tests.profiles.tiny import NOWHERE, generation, in_memory, prose, served, tiny_study, tiny_tables

CALLS = {"item": 6, "auxiliary": 6, "user": 3}


def items_only(body: dict[str, Any]) -> str:
    """Answers about items, none about others."""
    return prose(body) if body["messages"][1]["content"].split("\n")[1].startswith("film or series: ") else ""


def test_estimate_before_while_and_after() -> None:
    data = tiny_study()
    with served(items_only) as server:
        made = generation(data, server.base_url)
        before = made.estimate()
        assert before.table["subject"].tolist() == [prompt.subject for prompt in before.samples] == list(CALLS)
        assert before.table["to ask"].tolist() == list(CALLS.values())
        assert before.table["without material"].tolist() == [0, 0, 1]
        assert before.table["tokens out"].tolist() == [6 * 210, 6 * 210, 3 * 140]
        assert "(its profile follows)" in before.samples[-1].text
        assert (before.calls, server.requests) == (15, 0)
        assert made.run().missing == {"auxiliary": 6, "user": 3}
        between = generation(data, server.base_url).estimate()
        assert (between.table["answered"].tolist(), between.calls) == ([6, 0, 0], 9)
        assert between.tokens[0] < before.tokens[0]
        assert [prompt.subject for prompt in between.samples] == ["auxiliary", "user"]
    with served() as server:
        generation(data, server.base_url).run()
        after = generation(data, server.base_url).estimate()
    assert (after.calls, after.tokens, after.samples) == (0, (0, 0), ())
    assert after.table["answered"].tolist() == [6, 6, 3]


def test_estimated_tokens_and_costs_are_close_to_those_used() -> None:
    with served(lambda _: "the film and the people of the sea " * 12) as server:
        asked = generation(tiny_study(), server.base_url, model="gpt-4o")
        estimate = asked.estimate()
        assert asked.run().path is not None
        used = sum(estimate_tokens("\n\n".join(m["content"] for m in body["messages"])) for body in server.bodies)
    assert used <= estimate.tokens[0] < 1.3 * used
    assert estimate.costs["model"][0] == "gpt-4o"
    assert estimate.costs["cost (USD)"][0] == pytest.approx(prices().cost("gpt-4o", *estimate.tokens))


def test_a_run_writes_a_table_that_covers_everyone_and_says_how_it_came_about() -> None:
    data, progress = tiny_study(), Progress()
    with served(lambda body: f"{prose(body)} It is a profile.") as server:
        config = PromptConfig(domain="books", user_items=2)
        asked = generation(data, server.base_url, prompts=config, max_tokens=99)
        outcome = asked.run(progress)
        prompts = [body["messages"][1]["content"] for body in server.bodies]
    assert (outcome.path, outcome.missing) == (data.profiles_path("llm"), {})
    assert (progress.total, progress.done, progress.found, progress.failed, progress.calls) == (15, 15, 0, 0, 15)
    assert not any("It is a profile." in prompt for prompt in prompts[:6])
    assert any("Alien: This is a profile of Alien" in prompt for prompt in prompts[12:])
    profiles = data.profiles("llm")
    assert len(profiles) == 6 + 6 + 4
    unknown, written = profiles[profiles["model"] == "none"], profiles[profiles["model"] == "small-model"]
    assert unknown[["subject", "id", "text"]].to_numpy().tolist() == [["user", 3, UNKNOWN_TASTE]]
    assert unknown["prompt_sha256"].tolist() == [sha256_text(UNKNOWN_TASTE)]
    assert written["text"].iloc[0].startswith("This is a profile of Alien")
    usage = pd.DataFrame(written["usage"].map(json.loads).tolist())
    assert usage["prompt_tokens"].sum() == progress.tokens_in > 0
    assert usage["completion_tokens"].sum() == progress.tokens_out > 0
    assert pd.to_datetime(written["created"], utc=True).notna().all()
    with Store(asked.answers) as store:
        texts = [store.prompt(sha256) for sha256 in written["prompt_sha256"]]
    quoting = dict(zip(data.items["item"], written["text"], strict=False))
    assert texts == [p.text for subject in CALLS for p in asked.writer.prompts(subject, lambda _: quoting)]
    said = data.provenance("llm")
    assert (said["kind"], said["model"], said["server"]) == ("llm", "small-model", asked.config.llm.base_url)
    assert (said["domain"], said["prompt_settings"]["user_items"]) == ("books", 2)
    assert json.loads(said["parameters"]) == {"temperature": 0.0, "max_tokens": 99}
    assert (said["possibly_leaky"], said["filled_from_template"], said["over_word_limit"]) == ([], 0, 0)


def test_a_profile_set_is_called_by_its_model_as_a_file_may_be_called() -> None:
    for model, profiles in {
        "gpt-4o-mini": "gpt-4o-mini",
        "meta-llama/Llama-3.1-8B": "meta-llama-Llama-3.1-8B",
        "/models//a b/": "models-a-b",
        "_x.gguf": "x.gguf",
        "modèle": "mod-le",
    }.items():
        assert generation(tiny_study(), NOWHERE, profiles="", model=model).profiles == profiles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "gpt-4o"], "profile set template asks no model"),
        (["--profiles", "gpt-4o"], "profiles called gpt-4o would be written by gpt-4o-mini"),
        (["--profiles", "../x", "--model", "x"], "cannot be the name of a profile set"),
        (["--profiles", "a--b", "--model", "x"], "cannot be the name of a profile set"),
    ],
)
def test_names_and_models_that_do_not_fit(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"(?s)names the template.*--profiles"):
        generation(tiny_study(), NOWHERE, profiles="template")
    assert main(["profile", "films", *options]) == 1
    assert message in capsys.readouterr().err


def run_again(data: Dataset, base_url: str, **settings: Any) -> Progress:
    outcome = generation(data, base_url, **settings).run()
    assert outcome.path is not None
    return outcome.progress


def test_nothing_is_asked_twice_and_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter(pd.date_range("2026-01-01", periods=100_000, freq="s").strftime("%Y-%m-%dT%H:%M:%S+00:00"))
    for module in ("generate", "store"):
        monkeypatch.setattr(f"spike_kit.profiles.{module}.now", lambda: next(times))
    data = tiny_study()
    with served() as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        assert run_again(data, "").calls == 15
        assert data.provenance("llm")["server"] == server.base_url
        first = data.profiles("llm")
        for change in ({"temperature": 1.0}, {"model": "other"}, {"max_tokens": 300}, {"extra": '{"seed": 1}'}):
            assert run_again(data, server.base_url, profiles="changed", **change).calls == 15
        elsewhere = {"concurrency": 1, "attempts": 2, "timeout": 60.0}
        for kept in ({}, {"model": "other"}, {"temperature": 1.0}, elsewhere, {"base_url": f"{server.base_url}/"}):
            assert run_again(data, **{"base_url": server.base_url, "profiles": "changed", **kept}).calls == 0
        assert server.requests == 5 * 15
    monkeypatch.delenv("OPENAI_BASE_URL")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    again = run_again(data, "")
    assert (again.calls, again.found, again.done) == (0, 15, 0), "a complete store needs no key and no server"
    assert data.profiles("llm").equals(first)


@pytest.mark.parametrize(
    ("word", "asked", "changed"),
    [("sea", 1, []), ("hills", 1 + 2, [("auxiliary", 6), ("item", 2), ("user", 0)])],
)
def test_a_changed_fact_asks_again_for_what_holds_it(word: str, asked: int, changed: list[tuple[str, int]]) -> None:
    data = tiny_study()
    with served() as server:
        run_again(data, server.base_url)
    before = data.profiles("llm").set_index(["subject", "id"])["text"]
    data = tiny_study(tables=tiny_tables(descriptions={2: "A film about Rome."}))
    assert generation(data, server.base_url).estimate().table["to ask"][0] == 1
    with served(lambda body: prose(body).replace("sea", word)) as server:
        assert run_again(data, server.base_url).calls == asked
        prompts = [body["messages"][1]["content"] for body in server.bodies]
    assert "A film about Rome." in prompts[0]
    assert all("Gladiator" in prompt for prompt in prompts)
    after = data.profiles("llm").set_index(["subject", "id"])["text"]
    assert sorted(before.index[before != after]) == changed


def empty_for_heat(body: dict[str, Any]) -> str:
    """No answer about one item, ever."""
    return "" if str(body["messages"][1]["content"]).split('"')[1] == "Heat" else prose(body)


def test_a_display_that_fails_loses_no_answer() -> None:
    def broken(progress: Progress) -> None:
        if progress.calls:
            raise BrokenPipeError("the terminal is gone")

    with served() as server:
        made = generation(tiny_study(), server.base_url)
        with pytest.raises(BrokenPipeError):
            made.run(watch=broken)
    assert len(ids(made, "answers")) == server.requests > 0


def test_two_runs_never_ask_for_one_data_set_at_once() -> None:
    made = generation(tiny_study(), NOWHERE)
    with asking_store(made.answers), pytest.raises(DataError, match="another process is asking a model for films"):
        made.run()


def test_an_incomplete_run_is_no_success_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    tiny_study()
    with served(empty_for_heat) as server:
        asks = ["profile", "films", "--profiles", "llm", "--model", "small", "--base-url", server.base_url]
        assert main(asks) == 1
        said = capsys.readouterr().err
        assert all(words in said for words in ("no answer yet for: 1 item", "item 4: empty: 2 answers, none usable"))
        assert "--fill template" in said
        assert main([*asks, "--fill", "template"]) == 0


def test_names_that_look_like_ids_stay_names() -> None:
    labels = ["PG-13", "U2", "1999", "B-52", "300", "m.0dl567"]
    others = [(label, label, "thing") for label in labels]
    tables = tiny_tables(others=others, triples=[(0, 2, 6 + place) for place in range(len(labels))])
    named = Names(tables, Links.of(tables)).labels[6:]
    assert named == [*labels[:-1], "award of Alien"]
    numbered = in_memory(tiny_tables(labels={place: f"film:{place}" for place in range(6)})).tables
    numbered.entities["label"] = numbered.entities["source_id"] = [str(place) for place in range(12)]
    assert set(Names(numbered, Links.of(numbered)).labels) == {"unnamed item", "unnamed entity"}


def test_prompts_can_be_written_before_the_data_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_study(reviews={(0, 0): "A review of the train split."})
    monkeypatch.setenv("SPIKE_KIT_HOME", str(tmp_path / "elsewhere"))
    assert "A review of the train split." in next(PromptWriter(data).prompts("item")).data


OWN = """
as_of = 2026-01-02
currency = "EUR"
batch_share = 0.25
[models]
"mine" = { input = 2, output = 8.5 }
"org/other:v1" = { input = 0, output = 1 }
"""


def own_prices(text: str | bytes) -> Path:
    path = paths.data_root() / "prices.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_tokens_follow_the_bytes() -> None:
    texts = {"": 0, "a": 1, "abcd": 1, "abcde": 2, "word " * 400: 500, "é" * 4: 2}
    assert {text: estimate_tokens(text) for text in texts} == texts


def test_the_list_of_the_kit_has_a_date_and_costs_are_what_one_gets_by_hand() -> None:
    listed = prices()
    assert {"gpt-4o-mini", "gpt-4o", "gpt-5-mini"} <= set(listed.models)
    assert date(2026, 1, 1) <= listed.as_of <= date.today()
    assert (listed.currency, listed.batch_share, listed.path.name) == ("USD", 0.5, "prices.toml")
    assert all(0 < price.input < price.output for price in listed.models.values())
    assert listed.cost("gpt-4o-mini", 2_000_000, 500_000) == pytest.approx(2 * 0.15 + 0.5 * 0.60)
    table = listed.table("gpt-4o", 1_000_000, 1_000_000)
    assert sorted(table["model"]) == sorted(listed.models)
    assert table.iloc[0].tolist() == ["gpt-4o", 12.5, 6.25]
    unknown = listed.table("my-own-model", 1_000_000, 1_000_000)
    assert len(unknown) == len(listed.models) + 1
    assert pd.isna(unknown.iloc[0]["cost (USD)"])
    assert not unknown.iloc[1:].isna().to_numpy().any()


def test_a_list_of_ones_own_takes_its_place() -> None:
    path = own_prices(OWN)
    listed = prices()
    assert (listed.path, listed.as_of, set(listed.models)) == (path, date(2026, 1, 2), {"mine", "org/other:v1"})
    assert listed.cost("mine", 1_000_000, 2_000_000, batch=True) == pytest.approx(4.75)
    assert listed.cost("org/other:v1", 5_000_000, 0) == 0
    assert list(listed.table("mine", 1, 1).columns) == ["model", "cost (EUR)", "as a batch"]
    own_prices(OWN.encode("utf-8-sig"))
    assert prices().currency == "EUR"
    path.unlink()
    assert prices().currency == "USD"


def test_a_broken_list_is_an_error_that_names_it() -> None:
    price = [OWN.replace("input = 2,", other) for other in ("input = -2,", 'input = "2",', "input = nan,", "")]
    lacking = [OWN.replace(line, "") for line in ("as_of = 2026-01-02", "batch_share = 0.25")]
    for text in (*price, *lacking, "not = toml = at all", ""):
        path = own_prices(text)
        with pytest.raises(DataError) as raised:
            prices()
        assert raised.value.message.startswith(f"{path} is not a price list"), text
        assert "remove it" in raised.value.hint
    path = own_prices(b"as_of = 2026-01-02\ncurrency = '\xa3'")
    with pytest.raises(DataError, match=rf"{path} line 2 is not text in UTF-8"):
        prices()
