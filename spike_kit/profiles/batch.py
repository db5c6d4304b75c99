"""Batch files: the questions as JSON lines for OpenAI's Batch API or ``vllm run-batch``, and their answers back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from spike_kit.base import storage
from spike_kit.base.errors import DataError
from spike_kit.base.storage import canonical_json, sha256_text
from spike_kit.data.dataset import SUBJECTS
from spike_kit.profiles.generate import Generation
from spike_kit.profiles.jobs import once_more
from spike_kit.profiles.replies import LONGEST_MESSAGE, is_about_content, read_completion, storable, words_of
from spike_kit.profiles.store import Key, Store, exclusive

MAX_REQUESTS = 50_000
"""Requests per file that OpenAI takes."""

MAX_BYTES = 190_000_000
"""Bytes per file; OpenAI takes 200 MB."""

_URL = "/v1/chat/completions"


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
        Lines whose custom_id belongs to no export of this data set.
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
    with exclusive(store), store, ExitStack() as stack:
        for subject in SUBJECTS:
            written: list[Path] = []
            count = size = 0
            file: TextIO | None = None
            for line in stack.enter_context(closing(_lines(subject, generation, store))):
                count, size = count + 1, size + len(line.encode()) + 1
                if file is None or count > MAX_REQUESTS or size > MAX_BYTES:
                    target = path.with_stem(f"{path.stem}-{len(written) + 1}") if written else path
                    if target.exists():
                        raise DataError(f"{target} exists", "choose another name, or remove it")
                    temporary = stack.enter_context(storage.atomic_file(target))
                    file = stack.enter_context(temporary.open("w", encoding="utf-8"))
                    count, size = 1, len(line.encode()) + 1
                    written.append(target)
                file.write(line + "\n")
            if written:
                return subject, written
    return "", []


def _lines(subject: str, generation: Generation, store: Store) -> Generator[str]:
    """Lines of the open questions; their ids and prompts are on the disk before the file is in its place."""
    with store.transaction():
        for job in generation.jobs(subject, store):
            if generation.found(job.key, store) or generation.given_up(job, store):
                continue
            earlier = store.rejected(job.key)
            messages = once_more(job, earlier[-1]) if earlier else job.messages
            key = astuple(job.key)
            mark = sha256_text(canonical_json([*key, len(earlier)]))[:16]
            custom_id = f"{job.key.subject}:{job.key.id}:{mark}"
            store.run("INSERT OR IGNORE INTO batched VALUES (?,?,?,?,?,?,0)", (custom_id, *key))
            store.keep_prompt(job.key.prompt_sha256, job.version, job.shown)
            body = {**generation.config.llm.request, "messages": messages}
            yield json.dumps({"custom_id": custom_id, "method": "POST", "url": _URL, "body": body}, ensure_ascii=False)


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
                custom_id = values.get("custom_id")
                if not isinstance(custom_id, str):
                    raise DataError(f"{path} line {number} has no custom_id", "is it the output file of a batch?")
                rows = store.run("SELECT * FROM batched WHERE custom_id=?", (storable(custom_id),))
                if not rows:
                    result.unknown += 1
                elif rows[0][-1]:
                    result.already += 1
                else:
                    with store.transaction():
                        _take_in(generation, store, Key(*rows[0][1:6]), values, result)
    return result


def _take_in(generation: Generation, store: Store, key: Key, values: dict[str, Any], result: Imported) -> None:
    """Store what one line of an output or error file says of a question."""
    response = values.get("response")
    status, body = (response.get("status_code"), response.get("body")) if isinstance(response, dict) else (None, None)
    if values.get("error") or status != 200:
        said = values.get("error") or body
        place = said.get("error", said) if isinstance(said, dict) else None
        code = str((place.get("code") if isinstance(place, dict) else None) or status or "error")
        code = storable(code)[:60]
        result.errors[code] += 1
        words = storable(words_of(said))[:LONGEST_MESSAGE] or "no message"
        store.fail(key, "content" if is_about_content(code, words) else "batch", f"{code}: {words}")
        return
    try:
        answer = read_completion(body)
    except ValueError as error:
        result.errors["garbage"] += 1
        store.fail(key, "garbage", str(error))
        return
    verdict = generation.judge(key.subject, answer)
    usable = verdict.usable and (not verdict.problem or bool(store.rejected(key)))
    result.usable += usable
    result.tokens_in += answer.usage["prompt_tokens"]
    result.tokens_out += answer.usage["completion_tokens"]
    if verdict.problem:
        result.problems[verdict.problem] += 1
    store.keep(key, answer, verdict.text, verdict.problem, usable=usable, attempts=1, server="batch")
    store.run("UPDATE batched SET imported=1 WHERE custom_id=?", (storable(values["custom_id"]),))


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file of JSON lines with their line numbers; blank lines are passed over."""
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise DataError(f"{path} line {number} is no JSON object", "is it the output file of a batch?")
                yield number, values
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not text in UTF-8: {error}", "download it again") from error
    except (ValueError, RecursionError) as error:
        hint = "was the download complete? Lines before it are kept"
        raise DataError(f"{path} line {number} is not JSON ({error})", hint) from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
