from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest

from spike_kit.base.errors import DataError
from spike_kit.base.storage import sha256_text
from spike_kit.data.dataset import Dataset
from spike_kit.profiles.cost import estimate_tokens, prices
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.prompts import PromptConfig
from spike_kit.profiles.store import Store
from spike_kit.profiles.template import UNKNOWN_TASTE
from tests.profiles.tiny import generation, prose, served, tiny_study, tiny_tables

CALLS = {"item": 6, "auxiliary": 6, "user": 3}


def columns(asked: Generation, name: str) -> dict[str, int]:
    table = asked.estimate().table
    return dict(zip(table["subject"], table[name].tolist(), strict=True))


def test_estimate_before_while_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    data = tiny_study()
    with served() as server:
        asked = generation(data, server.base_url)
        before = asked.estimate()
        assert columns(asked, "to ask") == CALLS
        assert columns(asked, "answered") == dict.fromkeys(CALLS, 0)
        assert columns(asked, "without material") == {"item": 0, "auxiliary": 0, "user": 1}
        assert before.calls == 15
        items = sum(estimate_tokens(prompt.text) for prompt in asked.writer.prompts("item"))
        assert columns(asked, "tokens in")["item"] == items
        assert columns(asked, "tokens out") == {"item": 6 * 210, "auxiliary": 6 * 210, "user": 3 * 140}
        assert [prompt.subject for prompt in before.samples] == list(CALLS)
        assert not server.bodies
        progress = Progress()

        def first_six(body: dict[str, Any]) -> bool:
            return "film or series" in body["messages"][1]["content"]

        with monkeypatch.context() as patched:
            patched.setattr("spike_kit.profiles.generate.SUBJECTS", ("item",))
            with pytest.raises(DataError, match="no profile for auxiliary 6"):
                asked.run(progress)
        assert len(server.bodies) == 6
        assert all(map(first_six, server.bodies))
        between = generation(data, server.base_url).estimate()
        assert between.calls == 9
        assert between.tokens[0] < before.tokens[0]
        assert between.table["answered"].tolist() == [6, 0, 0]
        assert [prompt.subject for prompt in between.samples] == ["auxiliary", "user"]
        generation(data, server.base_url).run()
        after = generation(data, server.base_url).estimate()
    assert (after.calls, after.tokens, after.samples) == (0, (0, 0), ())
    assert after.table["answered"].tolist() == [6, 6, 3]


def test_estimated_costs_are_those_of_the_estimated_tokens() -> None:
    asked = generation(tiny_study(), "http://127.0.0.1:1/v1", model="gpt-4o")
    estimate = asked.estimate()
    assert estimate.costs["model"][0] == "gpt-4o"
    assert estimate.costs["cost (USD)"][0] == pytest.approx(prices().cost("gpt-4o", *estimate.tokens))


def test_estimated_tokens_are_close_to_those_used() -> None:
    with served(lambda _: "the film and the people of the sea " * 12) as server:
        asked = generation(tiny_study(), server.base_url)
        estimated = asked.estimate().tokens[0]
        assert asked.run().path is not None
        used = sum(estimate_tokens("\n\n".join(m["content"] for m in body["messages"])) for body in server.bodies)
    assert used <= estimated < 1.3 * used


def test_a_run_writes_a_table_that_covers_everyone() -> None:
    data = tiny_study()
    with served() as server:
        progress = Progress()
        asked = generation(data, server.base_url)
        outcome = asked.run(progress)
    assert outcome.path == data.profiles_path("llm")
    assert outcome.missing == {}
    assert (progress.total, progress.done, progress.found, progress.failed, progress.calls) == (15, 15, 0, 0, 15)
    profiles = data.profiles("llm")
    assert len(profiles) == 6 + 6 + 4
    assert set(profiles["model"]) == {"small-model", "none"}
    unknown = profiles[profiles["model"] == "none"]
    assert unknown[["subject", "id", "text"]].to_numpy().tolist() == [["user", 3, UNKNOWN_TASTE]]
    assert unknown["prompt_sha256"].tolist() == [sha256_text(UNKNOWN_TASTE)]
    written = profiles[profiles["model"] != "none"]
    assert written["text"].iloc[0].startswith("This is a profile of Alien")
    usage = pd.DataFrame(written["usage"].map(json.loads).tolist())
    assert usage["prompt_tokens"].sum() == progress.tokens_in > 0
    assert usage["completion_tokens"].sum() == progress.tokens_out > 0
    assert pd.to_datetime(written["created"], utc=True).notna().all()
    with Store(asked.answers) as store:
        texts = [store.prompt(sha256) for sha256 in written["prompt_sha256"]]
    quoting = dict(zip(data.items["item"], written["text"], strict=False))
    prompts = [p.text for subject in CALLS for p in asked.writer.prompts(subject, lambda _: quoting)]
    assert texts == prompts


def test_later_prompts_quote_the_profiles_of_the_items() -> None:
    with served(lambda body: f"{prose(body)} It is a profile.") as server:
        generation(tiny_study(), server.base_url).run()
        asked = [body["messages"][1]["content"] for body in server.bodies]
    assert not any("It is a profile." in prompt for prompt in asked[:6])
    assert all("Alien: This is a profile of Alien" in prompt for prompt in asked[12:])


def test_provenance_says_how_the_texts_came_about() -> None:
    data = tiny_study()
    with served() as server:
        config = PromptConfig(domain="books", user_items=2)
        generation(data, server.base_url, prompts=config, max_tokens=99).run()
        base_url = server.base_url
    provenance = data.provenance("llm")
    assert provenance["kind"] == "llm"
    assert provenance["model"] == "small-model"
    assert provenance["server"] == base_url
    assert provenance["domain"] == "books"
    assert provenance["prompt_settings"]["user_items"] == 2
    assert json.loads(provenance["parameters"]) == {"temperature": 0.0, "max_tokens": 99}
    assert provenance["possibly_leaky"] == []
    assert (provenance["filled_from_template"], provenance["over_word_limit"]) == (0, 0)


@pytest.mark.parametrize(
    ("model", "profiles"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("meta-llama/Llama-3.1-8B", "meta-llama-Llama-3.1-8B"),
        ("qwen2.5:0.5b", "qwen2.5-0.5b"),
        ("/models//a b/", "models-a-b"),
        ("a--b", "a-b"),
        ("_x.gguf", "x.gguf"),
        ("modèle", "mod-le"),
    ],
)
def test_a_profile_set_is_called_by_its_model_as_a_file_may_be_called(model: str, profiles: str) -> None:
    data = tiny_study()
    with served() as server:
        asked = generation(data, server.base_url, profiles="", model=model)
        assert asked.profiles == profiles
        assert asked.run().path == data.profiles_path(profiles)
        assert {body["model"] for body in server.bodies} == {model}
    assert data.profile_sets() == [profiles]


def test_the_name_of_the_templates_is_taken() -> None:
    for profiles, model in (("template", "small-model"), ("", "template")):
        with pytest.raises(DataError, match=r"(?s)'template' names the template profiles.*--profiles"):
            Generation(tiny_study(), GenerationConfig(llm=LLMConfig(model=model)), profiles)


@pytest.mark.parametrize("profiles", ["a--b", "../x", "a b"])
def test_a_profile_set_no_file_can_be_called_is_refused_before_anything_is_paid_for(profiles: str) -> None:
    with served() as server:
        with pytest.raises(DataError, match="cannot be the name of a profile set"):
            generation(tiny_study(), server.base_url, profiles=profiles).run()
        assert server.bodies == []


class Clock:
    """A time that is a second later at every look."""

    def __init__(self) -> None:
        self.seconds = 0

    def __call__(self) -> str:
        self.seconds += 1
        return f"2026-01-01T{self.seconds // 3600:02}:{self.seconds // 60 % 60:02}:{self.seconds % 60:02}+00:00"


def run_again(data: Dataset, base_url: str, **settings: Any) -> Progress:
    progress = Progress()
    outcome = generation(data, base_url, **settings).run(progress)
    assert outcome.path is not None
    return progress


def test_nothing_is_asked_twice_and_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for module in ("generate", "store"):
        monkeypatch.setattr(f"spike_kit.profiles.{module}.now", clock)
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
        assert len(server.bodies) == 5 * 15
    with served() as server:
        assert run_again(data, server.base_url).calls == 0


def test_a_changed_description_asks_exactly_the_changed_prompts_anew() -> None:
    with served() as server:
        run_again(tiny_study(), server.base_url)
        before = len(server.bodies)
        changed = tiny_study(tables=tiny_tables(descriptions={2: "A film about Rome."}))
        assert generation(changed, server.base_url).estimate().table["to ask"].tolist()[0] == 1
        assert run_again(changed, server.base_url).calls == 1
        (body,) = server.bodies[before:]
        assert "A film about Rome." in body["messages"][1]["content"]
        assert run_again(tiny_study(), server.base_url).calls == 0


def test_a_changed_answer_asks_those_anew_that_quote_it() -> None:
    data = tiny_study()
    with served() as server:
        run_again(data, server.base_url)
        texts = data.profiles("llm").set_index(["subject", "id"])["text"]
        before = len(server.bodies)
        server.bodies.clear()
    with served(lambda body: prose(body).replace("sea", "hills")) as server:
        changed = tiny_study(tables=tiny_tables(descriptions={2: "A film about Rome."}))
        assert run_again(changed, server.base_url).calls == 1 + 2
        holding = [body["messages"][1]["content"] for body in server.bodies]
    assert before == 15
    assert all("Gladiator" in prompt for prompt in holding)
    after = changed.profiles("llm").set_index(["subject", "id"])["text"]
    assert sorted(texts.index[texts != after]) == [("auxiliary", 6), ("item", 2), ("user", 0)]
