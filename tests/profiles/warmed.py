"""A run that finds no server: imported by the process that clients are forked from, so that all is loaded once."""

import tempfile
from contextlib import suppress
from pathlib import Path

from spike_kit.base.errors import LLMError
from tests.profiles.llm_server import distinct_world, generation

with tempfile.TemporaryDirectory() as folder, suppress(LLMError):
    made = generation(distinct_world(Path(folder) / "world"), "http://127.0.0.1:9/v1", concurrency=1, attempts=1)
    made.answers = Path(folder) / "answers.sqlite"
    made.run()
