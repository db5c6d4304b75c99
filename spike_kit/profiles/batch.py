"""Batch files: the questions as JSON lines for OpenAI's Batch API or ``vllm run-batch``, and their answers back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.base.storage import canonical_json, sha256_text
from spike_kit.data.dataset import SUBJECTS
from spike_kit.profiles.checks import remedy
from spike_kit.profiles.client import LONGEST_MESSAGE, CallError, parsed, read_reply
from spike_kit.profiles.generate import Generation, judged
from spike_kit.profiles.jobs import Progress, chat
from spike_kit.profiles.store import Key, Store, asking_store
from spike_kit.profiles.template import WORD_LIMIT

MAX_REQUESTS = 50_000
"""Requests per file that OpenAI takes."""

MAX_BYTES = 190_000_000
"""Bytes per file; OpenAI takes 200 MB."""


def export_batch(generation: Generation, path: Path) -> tuple[str, list[Path]]:
    """Write the open questions about items or, once these are answered, auxiliary entities, and then users.

    The later ones quote the answers of the earlier ones, so each needs an export, a batch and an import of its own.

    Parameters
    ----------
    generation
        Source of profiles.
    path
        File to write; more than 50,000 questions or 190 MB go into ``<name>-2.jsonl``, ``<name>-3.jsonl``, ...

    Returns
    -------
    subject, files
        What was written; no file if every question has its answer.

    Raises
    ------
    DataError
        If a file exists.
    """
    with asking_store(generation.answers) as store, ExitStack() as stack:
        for subject in SUBJECTS:
            written: list[Path] = []
            file: BinaryIO | None = None
            count = size = 0
            with store.transaction():  # ids and prompts are on the disk before the files are in their place
                for line in _lines(subject, generation, store):
                    count, size = count + 1, size + len(line)
                    if file is None or count > MAX_REQUESTS or size > MAX_BYTES:
                        written.append(path.with_stem(f"{path.stem}-{len(written) + 1}") if written else path)
                        if written[-1].exists():
                            raise DataError(f"{written[-1]} exists", "choose another name, or remove it")
                        temporary = stack.enter_context(storage.atomic_file(written[-1]))
                        file = stack.enter_context(temporary.open("wb"))
                        count, size = 1, len(line)
                    file.write(line)
            if written:
                return subject, written
    return "", []


def _lines(subject: str, generation: Generation, store: Store) -> Iterator[bytes]:
    """Lines of the open questions; their ids and prompts are stored."""
    for prompt in generation.prompts(subject, store):
        key = Key.of(prompt, generation.config.llm)
        if generation.found(store, key) or generation.given_up(store, key):
            continue
        earlier = store.rejected(key)
        mark = sha256_text(canonical_json([*key, len(earlier)]))[:16]
        custom_id = f"{subject}:{prompt.id}:{mark}"
        store.run("INSERT OR IGNORE INTO batched VALUES (?,?,?,?,?,?,0)", (custom_id, *key))
        store.keep_prompt(prompt)
        messages = chat(prompt, earlier, partial(remedy, WORD_LIMIT[subject]))
        body = {**generation.config.llm.request, "messages": messages}
        request = {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}
        yield json.dumps(request, ensure_ascii=False).encode() + b"\n"


def import_batch(generation: Generation, files: Sequence[Path]) -> Progress:
    """Take in the output and error files of batches, in any order; a file may be imported again.

    Returns
    -------
    Progress
        Usable answers (``done``) and lines that had been imported before (``found``); failed requests and unusable
        answers, which the next export holds again; lines that belong to no export of this data set (``unknown``).

    Raises
    ------
    DataError
        If a file is missing, or a line is no JSON object with a custom_id (file and line are named). Lines before it
        are kept.
    """
    progress = Progress()
    with asking_store(generation.answers) as store:
        for path in files:
            for number, values in _records(path):
                name = values.get("custom_id") if isinstance(values, dict) else None
                if not isinstance(name, str):
                    raise DataError(f"{path} line {number} has no custom_id", "is it the output file of a batch?")
                rows = store.run("SELECT * FROM batched WHERE custom_id=?", (name,))
                if not rows:
                    progress.fail(f"{path.name} line {number}", "unknown", "no export of this data set has asked this")
                elif rows[0][-1]:
                    progress.found += 1
                else:
                    with store.transaction():
                        _take_in(store, Key(*rows[0][1:6]), values, progress)
    return progress


def _take_in(store: Store, key: Key, values: dict[str, Any], progress: Progress) -> None:
    """Store what one line of an output or error file says of a question."""
    response, error = values.get("response"), values.get("error")
    response = response if isinstance(response, dict) else {}
    status = response.get("status_code")
    body = {"error": error} if error else response.get("body")
    try:
        answer = read_reply(200 if error else status if type(status) is int else 500, json.dumps(body), {})
    except CallError as failure:
        store.fail(key, failure.kind, failure.message[:LONGEST_MESSAGE])
        progress.fail(values["custom_id"], failure.kind, failure.message[:LONGEST_MESSAGE])
        return
    verdict = judged(WORD_LIMIT[key.subject], answer)
    usable = store.keep(key, answer, verdict, attempts=1, server="batch")
    progress.count(answer, verdict.problem, usable)
    store.run("UPDATE batched SET imported=1 WHERE custom_id=?", (values["custom_id"],))


def _records(path: Path) -> Iterator[tuple[int, Any]]:
    """Values of a file of JSON lines with their line numbers; blank lines are passed over."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parsed(line)
    except (ValueError, RecursionError) as error:
        hint = "was the download complete? Lines before it are kept"
        raise DataError(f"{path} line {number} is not JSON in UTF-8 ({error})", hint) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
