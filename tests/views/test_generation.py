from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest

from spike_kit import views
from spike_kit.views.generation_session import GenerationSession
from tests.conftest import until
from tests.profiles.llm_server import Gate, ScriptedServer, says
from tests.profiles.tiny import generation, tiny_study, tiny_tables
from tests.views.conftest import HOSTILE, safe

KEY = "sk-planted-secret"
ENOUGH = 1000
"""Answers; no test asks for so many."""


@pytest.fixture
def gate() -> Gate:
    return Gate(ENOUGH)


@pytest.fixture
def server(gate: Gate) -> Iterator[ScriptedServer]:
    with ScriptedServer(gate) as running:
        yield running


def ran(session: GenerationSession) -> str:
    session.start()
    session.wait(30)
    return session.status


def texts_of(widget: Any) -> list[str]:
    own = [widget.value] if isinstance(getattr(widget, "value", None), str) else []
    return own + [text for child in getattr(widget, "children", ()) for text in texts_of(child)]


def test_start_stop_and_resume(server: ScriptedServer, gate: Gate) -> None:
    pytest.importorskip("ipywidgets")
    data = tiny_study()
    session = views.generation(generation(data, server.base_url, concurrency=1))
    box = session.panel()
    start, stop, bar, status = (box.parts[name] for name in ("start", "stop", "bar", "status"))
    assert (start.disabled, stop.disabled, bar.value) == (False, True, 0)
    assert status.value == "not started: 15 calls to make"
    assert box.children[2].titles == ("item 0", "auxiliary 6", "user 0")
    shown = unescape(" ".join(texts_of(box)))
    assert all(text in shown for text in ("to ask", "gpt-4o-mini", "prices of 20", "BEGIN DATA"))
    session.stop()
    gate.left = 0
    start.click()
    until(lambda: len(server.bodies) == 1)
    assert (session.running, start.disabled, stop.disabled) == (True, True, False)
    assert session.status == "0 of 15 answered, 0 failed; 0 tokens in, 0 out"
    session.start()
    stop.click()
    gate.left = ENOUGH
    until(lambda: not start.disabled)
    assert stop.disabled
    assert status.value.startswith("stopped; start goes on from here (1 of 15 answered, 0 failed; ")
    assert len(server.bodies) == 1
    assert 0 < session.share == bar.value < 0.1
    assert (bar.bar_style, session.outcome.path) == ("", None)
    start.click()
    until(lambda: not session.running and not start.disabled)
    assert stop.disabled
    assert status.value.startswith("complete: llm.parquet is written (15 of 15 answered, 0 failed; ")
    assert (bar.value, bar.bar_style) == (1, "success")
    assert (session.progress.found, session.progress.done) == (1, 14)
    assert len(data.profiles("llm")) == 16
    again = GenerationSession(generation(data, server.base_url))
    assert (again.status, again.estimate.samples) == ("not started: 0 calls to make", ())
    assert "0 tokens in" in ran(again)
    assert (again.progress.found, again.share, len(server.bodies)) == (15, 1, 15)


def test_costs_and_gaps_are_shown(server: ScriptedServer) -> None:
    status = ran(GenerationSession(generation(tiny_study(), server.base_url, model="gpt-4o")))
    assert "out, about 0.0" in status
    assert "USD)" in status
    server.script = lambda _: says("I cannot.")
    status = ran(GenerationSession(generation(tiny_study(), server.base_url)))
    assert status.startswith("ended with gaps; start goes on from here (0 of 15 answered, 6 failed; ")


def test_an_error_is_shown_without_the_key(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    session = GenerationSession(generation(tiny_study(), "", key_variable="MY_KEY"))
    assert ran(session).startswith("stopped by an error: the environment variable MY_KEY holds no key")
    monkeypatch.setenv("MY_KEY", KEY)
    session.generation = generation(tiny_study(), "http://127.0.0.1:9/v1", key_variable="MY_KEY", attempts=1)
    status = ran(session)
    assert "questions in a row failed" in status
    assert KEY not in status
    session.generation = generation(tiny_study(), server.base_url)
    assert ran(session).startswith("complete: ")
    assert session.error == ""


def test_the_panel_shows_errors_and_escapes_everything() -> None:
    pytest.importorskip("ipywidgets")
    tables = tiny_tables(labels={0: HOSTILE}, descriptions={0: "</pre><script>alert(1)</script>"})
    asked = generation(tiny_study(tables=tables), "http://127.0.0.1:9/v1", model=HOSTILE, attempts=1)
    box = GenerationSession(asked).panel()
    box.parts["start"].click()
    until(lambda: not box.view.running and not box.parts["start"].disabled)
    assert box.parts["bar"].bar_style == "danger"
    assert "stopped by an error" in box.parts["status"].value
    shown = " ".join(texts_of(box))
    safe(shown)
    assert shown.count("&lt;img src=x onerror=") > 1
    assert shown.count("</pre>") == len(box.view.estimate.samples)
