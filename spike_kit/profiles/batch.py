"""Batch files: the questions as JSON lines for OpenAI's Batch API or ``vllm run-batch``, and their answers back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.base.storage import canonical_json, sha256_text
from spike_kit.data.dataset import SUBJECTS
from spike_kit.profiles.generate import Generation
from spike_kit.profiles.jobs import Job, once_more
from spike_kit.profiles.llm import CONTENT, read_completion, storable
from spike_kit.profiles.store import Key, Statement, Store, answered, asked, exclusive, failed

MAX_REQUESTS = 50_000
"""Requests per file that OpenAI takes."""

MAX_BYTES = 190_000_000
"""Bytes per file; OpenAI takes 200 MB."""

_URL = "/v1/chat/completions"
_COMMIT_EVERY = 500


@dataclass
class Imported:
    """What came back.

    Attributes
    ----------
    usable, already
        Answers that were stored, and lines that had been imported before.
    tokens_in, tokens_out
        Tokens used, as the server counted them.
    problems
        Unusable answers by what was wrong; the next export asks for them once more.
    errors
        Requests that failed, by error code; the next export holds them again.
    unknown
        Lines whose custom_id belongs to no export of this study.
    """

    usable: int = 0
    already: int = 0
    unknown: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)


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
    store = Store(generation.answers)
    with exclusive(store), store:
        for subject in SUBJECTS:
            files: list[Path] = []
            open_jobs = (
                job
                for job in generation.jobs(subject, store)
                if not generation.found(job, store) and not generation.given_up(job, store)
            )
            lines = _lines(open_jobs, generation, store)
            first = next(lines, None)
            with ExitStack() as stack:
                while first is not None:
                    target = path if not files else path.with_stem(f"{path.stem}-{len(files) + 1}")
                    if target.exists():
                        raise DataError(f"{target} exists", "choose another name, or remove it")
                    temporary = stack.enter_context(storage.atomic_file(target))
                    with temporary.open("w", encoding="utf-8") as file:
                        first = _fill(file, first, lines)
                    files.append(target)
            if files:
                return subject, files
    return "", []


def _lines(jobs: Iterator[Job], generation: Generation, store: Store) -> Iterator[str]:
    """Lines of the open questions; their ids and prompts are in the store before they are in a file."""
    statements: list[Statement] = []
    request = generation.config.llm.request
    for job in jobs:
        earlier = store.rejected(job.key)
        messages = once_more(job, earlier[-1]) if earlier else job.messages
        mark = sha256_text(canonical_json([*job.key.values, len(earlier)]))[:16]
        custom_id = f"{job.key.subject}:{job.key.id}:{mark}"
        statements.append(("INSERT OR IGNORE INTO batched VALUES (?,?,?,?,?,?,0)", (custom_id, *job.key.values)))
        statements.append(asked(job.key.prompt_sha256, job.version, job.shown))
        if len(statements) >= _COMMIT_EVERY:
            store.write(statements)
            statements = []
        body = {**request, "messages": messages}
        yield json.dumps({"custom_id": custom_id, "method": "POST", "url": _URL, "body": body}, ensure_ascii=False)
    store.write(statements)


def _fill(file: TextIO, first: str, lines: Iterator[str]) -> str | None:
    """Write lines until a file is full; gives the first line of the next one."""
    line: str | None = first
    count = size = 0
    while line is not None:
        size += len(line.encode()) + 1
        count += 1
        if count > MAX_REQUESTS or size > MAX_BYTES:
            return line
        file.write(line + "\n")
        line = next(lines, None)
    return None


def import_batch(generation: Generation, files: Sequence[Path]) -> Imported:
    """Take in the output and error files of batches, in any order; a file may be imported again.

    Raises
    ------
    DataError
        If a file is missing, or a line is no JSON object with a custom_id (file and line are named). Lines before it
        are kept.
    """
    store, result = Store(generation.answers), Imported()
    with exclusive(store), store:
        for path in files:
            for number, values in _records(path):
                where = f"{path} line {number}"
                custom_id = values.get("custom_id")
                if not isinstance(custom_id, str):
                    raise DataError(f"{where} has no custom_id", "is it the output file of a batch?")
                custom_id = storable(custom_id)
                rows = store.run("SELECT * FROM batched WHERE custom_id=?", (custom_id,))
                if not rows:
                    result.unknown += 1
                elif rows[0][-1]:
                    result.already += 1
                else:
                    key = Key(*rows[0][1:6])
                    asked_before = bool(store.rejected(key))
                    store.write(_statements(generation, key, custom_id, values, asked_before, result))
    return result


def _statements(
    generation: Generation, key: Key, custom_id: str, values: dict[str, Any], asked_before: bool, result: Imported
) -> list[Statement]:
    """What one line of an output or error file means for the store."""
    response = values.get("response")
    status = response.get("status_code") if isinstance(response, dict) else None
    body = response.get("body") if isinstance(response, dict) else None
    if values.get("error") or status != 200:
        code, message = (storable(part) for part in _error(values, status, body))
        result.errors[code] += 1
        return [failed(key, "content" if CONTENT.search(code) else "batch", f"{code}: {message}")]
    try:
        answer = read_completion(body, 0.0)
    except ValueError as error:
        result.errors["garbage"] += 1
        return [failed(key, "garbage", str(error))]
    verdict = generation.judge(key.subject, answer)
    usable = verdict.usable and (not verdict.problem or asked_before)
    result.usable += usable
    result.tokens_in += answer.usage["prompt_tokens"]
    result.tokens_out += answer.usage["completion_tokens"]
    if verdict.problem:
        result.problems[verdict.problem] += 1
    statements = answered(key, answer, verdict.text, verdict.problem, usable=usable, attempts=1, server="batch")
    return [*statements, ("UPDATE batched SET imported=1 WHERE custom_id=?", (custom_id,))]


def _error(values: dict[str, Any], status: Any, body: Any) -> tuple[str, str]:
    """Code and message of a request that failed, wherever the server put them."""
    for place in (values.get("error"), body.get("error") if isinstance(body, dict) else None):
        if isinstance(place, dict):
            return str(place.get("code") or status or "error")[:60], " ".join(str(place.get("message")).split())[:300]
    return str(status or "error")[:60], "no message"


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with their line numbers; blank lines are passed over."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    values = json.loads(line)
                except (ValueError, RecursionError) as error:
                    raise DataError(
                        f"{path} line {number} is not JSON ({error})",
                        "was the download complete? Lines before it are kept",
                    ) from error
                if not isinstance(values, dict):
                    raise DataError(f"{path} line {number} is no JSON object", "is it the output file of a batch?")
                yield number, values
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}", "download it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
