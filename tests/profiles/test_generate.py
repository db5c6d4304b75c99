from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.base.storage import sha256_text
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.cost import estimate_tokens, prices
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.prompts import PromptConfig
from spike_kit.profiles.store import Store
from spike_kit.profiles.template import UNKNOWN_TASTE
from tests.profiles.tiny import generation, prose, served, tiny_study, tiny_tables

CALLS = {"item": 6, "auxiliary": 6, "user": 3}


def items_only(body: dict[str, Any]) -> str:
    """Answers about items, none about others."""
    return prose(body) if body["messages"][1]["content"].split("\n")[1].startswith("film or series: ") else ""


def test_estimate_before_while_and_after() -> None:
    data = tiny_study()
    with served(items_only) as server:
        before = generation(data, server.base_url).estimate()
        table = before.table.set_index("subject")
        assert table["to ask"].to_dict() == CALLS
        assert table["without material"].to_dict() == {"item": 0, "auxiliary": 0, "user": 1}
        assert table["tokens out"].to_dict() == {"item": 6 * 210, "auxiliary": 6 * 210, "user": 3 * 140}
        assert [prompt.subject for prompt in before.samples] == list(CALLS)
        assert "(its profile follows)" in before.samples[-1].text
        assert (before.calls, server.requests) == (15, 0)
        assert generation(data, server.base_url).run().missing == {"auxiliary": 6, "user": 3}
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


@pytest.mark.parametrize(
    ("model", "profiles"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("meta-llama/Llama-3.1-8B", "meta-llama-Llama-3.1-8B"),
        ("/models//a b/", "models-a-b"),
        ("_x.gguf", "x.gguf"),
        ("modèle", "mod-le"),
    ],
)
def test_a_profile_set_is_called_by_its_model_as_a_file_may_be_called(model: str, profiles: str) -> None:
    data = tiny_study()
    with served() as server:
        assert generation(data, server.base_url, profiles="", model=model).run().path == data.profiles_path(profiles)
        assert {body["model"] for body in server.bodies} == {model}
    assert data.profile_sets() == [profiles]


@pytest.mark.parametrize("profiles", ["a--b", "../x", "template"])
def test_a_name_that_no_profile_set_can_have_is_refused(profiles: str) -> None:
    with pytest.raises(DataError, match=r"(?s)cannot be the name of a profile set|names the template.*--profiles"):
        generation(tiny_study(), "http://127.0.0.1:9/v1", profiles=profiles)


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
        assert run_again(data, server.base_url).calls == 15
        first = data.profiles("llm")
        again = run_again(data, server.base_url)
        assert (again.calls, again.found, again.done) == (0, 15, 0)
        assert data.profiles("llm").equals(first)
        for change in ({"temperature": 1.0}, {"model": "other"}, {"max_tokens": 300}, {"extra": '{"seed": 1}'}):
            assert run_again(data, server.base_url, profiles="changed", **change).calls == 15
        elsewhere = {"concurrency": 1, "attempts": 2, "timeout": 60.0}
        for kept in ({}, {"model": "other"}, {"temperature": 1.0}, elsewhere, {"base_url": f"{server.base_url}/"}):
            assert run_again(data, **{"base_url": server.base_url, "profiles": "changed", **kept}).calls == 0
        assert server.requests == 5 * 15


@pytest.mark.parametrize(
    ("word", "asked", "changed"),
    [("sea", 1, []), ("hills", 1 + 2, [("auxiliary", 6), ("item", 2), ("user", 0)])],
)
def test_a_changed_fact_asks_for_its_profile_and_for_those_that_quote_it_if_it_changed(
    word: str, asked: int, changed: list[tuple[str, int]]
) -> None:
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
