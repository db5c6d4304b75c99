from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from html import unescape
from typing import Any

import pytest

from spike_kit import views
from spike_kit.views.generation_session import GenerationSession
from tests.profiles.llm_server import ScriptedServer
from tests.profiles.tiny import generation, prose, served, tiny_study, tiny_tables

KEY = "sk-planted-secret"


def until(happened: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


class Slow:
    """Answers while it is open; the others wait."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def __call__(self, body: dict[str, Any]) -> str:
        assert self.open.wait(20)
        return prose(body)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def server(slow: Slow) -> Iterator[ScriptedServer]:
    with served(slow) as running:
        yield running
        slow.open.set()


def ran(session: GenerationSession) -> str:
    session.start()
    session.wait(30)
    return session.status


def texts_of(widget: Any) -> list[str]:
    own = [widget.value] if isinstance(getattr(widget, "value", None), str) else []
    return own + [text for child in getattr(widget, "children", ()) for text in texts_of(child)]


def test_start_stop_and_resume(server: ScriptedServer, slow: Slow) -> None:
    pytest.importorskip("ipywidgets")
    data = tiny_study()
    session = views.generation(generation(data, server.base_url, concurrency=1))
    box = session.panel()
    start, stop, bar, status = (box.parts[name] for name in ("start", "stop", "bar", "status"))
    assert (start.disabled, stop.disabled, bar.value) == (False, True, 0)
    assert status.value == "not started: 15 calls to make"
    assert box.children[2].titles == ("item 0", "auxiliary 6", "user 0")
    assert session.estimate.table["to ask"].tolist() == [6, 6, 3]
    shown = unescape(" ".join(texts_of(box)))
    assert all(text in shown for text in ("to ask", "gpt-4o-mini", "prices of 20", "BEGIN DATA"))
    session.stop()
    slow.open.clear()
    start.click()
    until(lambda: len(server.bodies) == 1)
    assert session.running
    assert (start.disabled, stop.disabled) == (True, False)
    assert session.status == "0 of 15 answered, 0 failed; 0 tokens in, 0 out"
    session.start()
    stop.click()
    slow.open.set()
    session.wait(20)
    until(lambda: not start.disabled)
    assert stop.disabled
    assert status.value.startswith("stopped; start goes on from here (1 of 15 answered, 0 failed; ")
    assert len(server.bodies) == 1
    assert 0 < session.share == bar.value < 0.1
    assert bar.bar_style == ""
    assert session.outcome is not None
    assert session.outcome.path is None
    start.click()
    until(lambda: not session.running and not start.disabled)
    assert stop.disabled
    assert status.value.startswith("complete: llm.parquet is written (15 of 15 answered, 0 failed; ")
    assert (bar.value, bar.bar_style) == (1, "success")
    assert (session.progress.found, session.progress.done) == (1, 14)
    assert len(data.profiles("llm")) == 16
    assert ran(session).startswith("complete: ")
    assert (session.progress.found, session.share) == (15, 1)
    again = GenerationSession(generation(data, server.base_url))
    assert (again.status, again.estimate.samples) == ("not started: 0 calls to make", ())
    assert "0 tokens in" in ran(again)
    assert len(server.bodies) == 15


def test_costs_and_gaps_are_shown(server: ScriptedServer) -> None:
    status = ran(GenerationSession(generation(tiny_study(), server.base_url, model="gpt-4o")))
    assert "out, about 0.0" in status
    assert "USD)" in status
    with served(lambda _: "I cannot.") as refusing:
        status = ran(GenerationSession(generation(tiny_study(), refusing.base_url)))
    assert status.startswith("ended with gaps; start goes on from here (0 of 15 answered, 6 failed; ")


def test_an_error_is_shown_without_the_key(monkeypatch: pytest.MonkeyPatch, server: ScriptedServer) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    session = GenerationSession(generation(tiny_study(), "", key_variable="MY_KEY"))
    assert ran(session).startswith("stopped by an error: the environment variable MY_KEY holds no key")
    assert session.outcome is None
    monkeypatch.setenv("MY_KEY", KEY)
    gone = generation(tiny_study(), f"{server.base_url.rsplit(':', 1)[0]}:9/v1", key_variable="MY_KEY", attempts=1)
    session = GenerationSession(gone)
    status = ran(session)
    assert "questions in a row failed" in status
    assert KEY not in status
    session.generation = generation(tiny_study(), server.base_url)
    assert ran(session).startswith("complete: ")
    assert session.error == ""


def test_the_panel_shows_errors_and_escapes_everything() -> None:
    pytest.importorskip("ipywidgets")
    hostile = "<img src=x onerror=alert(1)> & <b>Alien</b>"
    tables = tiny_tables(labels={0: hostile}, descriptions={0: "</pre><script>alert(1)</script>"})
    model = "<script>alert(2)</script>"
    asked = generation(tiny_study(tables=tables), "http://127.0.0.1:9/v1", model=model, attempts=1)
    box = GenerationSession(asked).panel()
    box.parts["start"].click()
    until(lambda: not box.view.running and not box.parts["start"].disabled, 40)
    assert box.parts["bar"].bar_style == "danger"
    assert "stopped by an error" in box.parts["status"].value
    shown = " ".join(texts_of(box))
    assert "&lt;img src=x onerror=alert(1)&gt; &amp; &lt;b&gt;Alien" in shown
    assert "&lt;script&gt;alert(2)" in shown
    assert not any(tag in shown for tag in ("<img", "<b>", "<script", "</script"))
    assert shown.count("</pre>") == len(box.view.estimate.samples)
