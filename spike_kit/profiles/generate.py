"""Profiles written by a language model: items, other entities, users; estimated before, resumable always.

They are asked for one by one (`Generation`), or through batch files: the questions as JSON lines for OpenAI's Batch
API or ``vllm run-batch``, and their answers back (`export_batch`, `import_batch`).
"""

import json
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.errors import ConfigError, DataError, LLMError
from spike_kit.base.storage import atomic_file, canonical_json, now, sha256_text
from spike_kit.data.dataset import FILLED, SUBJECTS, TEMPLATE, Dataset, check_profiles_name, texts_by_subject
from spike_kit.profiles import loopback
from spike_kit.profiles.checks import find_problem, remedy, thoughts_advice, tidy
from spike_kit.profiles.jobs import LONGEST_MESSAGE, TRIES, Asking, CallError, Progress, Watch, chat, parsed, read_reply
from spike_kit.profiles.llm import OWN_PRICES, TOKENS_PER_WORD, LLMConfig, estimate_tokens, prices
from spike_kit.profiles.prompts import Prompt, PromptConfig, PromptWriter, domain_name
from spike_kit.profiles.store import Answer, Key, Store, Verdict, answers_path, asking_store
from spike_kit.profiles.template import UNKNOWN_TASTE, WORD_LIMIT, ensure_profiles

MAX_REQUESTS = 50_000
"""Requests per file that OpenAI takes."""

MAX_BYTES = 190_000_000
"""Bytes per file; OpenAI takes 200 MB."""

_CHUNK = 2000
_COLUMNS = ["subject", "id", "text", "prompt_sha256", "model", "usage", "created"]
_NOT_ASKED = "none"
_LATER = "(its profile follows) " * (WORD_LIMIT["item"] // 3)
"""As long as item profiles may be: stands in for them in the estimate and its sample prompts."""


class GenerationConfig(Config):
    """LLM profiles of a data set: which model, which prompts, and what to do with gaps."""

    llm: LLMConfig = LLMConfig()
    """Model and server."""
    prompts: PromptConfig = PromptConfig()
    """What the prompts are made of."""
    fill: Literal["", "template"] = ""
    """What stands in for profiles that the model did not write: nothing (the table waits until it is complete), or the
    template profile, marked as such in the table."""


@dataclass(frozen=True)
class Estimate:
    """What a run would do: one row per subject (subject, answered, to ask, without material, tokens in and out)."""

    table: pd.DataFrame
    costs: pd.DataFrame
    samples: tuple[Prompt, ...]
    calls: int
    """Calls to be made."""
    tokens: tuple[int, int]
    """Tokens in and out."""

    def __str__(self) -> str:
        """Calls, tokens, costs and sample prompts."""
        tokens_in, tokens_out = self.tokens
        listed, own = prices(), paths.shown(paths.data_root() / OWN_PRICES)
        parts = [
            self.table.to_string(index=False),
            f"{self.calls} calls, about {tokens_in:,} tokens in and {tokens_out:,} out if none is asked for twice",
            self.costs.round(2).to_string(index=False, na_rep="?"),
            f"prices of {listed.as_of}, from {paths.shown(listed.path)}; a copy as {own} takes its place",
        ]
        shown = [f"--- prompt of {prompt.subject} {prompt.id}\n{prompt.text}" for prompt in self.samples]
        return "\n\n".join([*parts, *shown])


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes
    ----------
    progress
        Counts of this run.
    missing
        Subjects without a usable answer: number by kind of subject.
    path
        Profiles table, if it could be written.
    """

    progress: Progress
    missing: dict[str, int]
    path: Path | None


class Generation:
    """Profiles of one data set by one model.

    Parameters
    ----------
    data
        Data-set folder.
    config
        Model, prompts, gaps.
    profiles
        Name of the profile set; default: the name of the model, with ``-`` for what a file name may not hold.

    Attributes
    ----------
    answers
        File of the answers: that of the data set under data/llm.
    """

    def __init__(self, data: Dataset, config: GenerationConfig, profiles: str = "") -> None:
        self.data = data
        self.config = config
        self.profiles = profiles or re.sub(r"[^A-Za-z0-9._]+", "-", config.llm.model).strip("-._") or "llm"
        check_profiles_name(self.profiles)
        if self.profiles == TEMPLATE:
            raise DataError(f"{self.profiles!r} names the template profiles", "choose another name with --profiles")
        self.answers = answers_path(data)
        self._rows = {subject: np.zeros(data.expected_ids(subject).stop, dtype=np.int64) for subject in SUBJECTS}

    @cached_property
    def writer(self) -> PromptWriter:
        """Writer of the prompts."""
        return PromptWriter(self.data, self.config.prompts)

    def estimate(self) -> Estimate:
        """Count calls and tokens without asking anything; the first open prompt of each subject comes with it.

        Profiles that do not exist yet are counted with the length they may have, so tokens are a little high.
        """
        rows, samples = [], []
        with Store(self.answers) as store:
            for subject in SUBJECTS:
                known = bool(self.config.fill) or not samples
                texts = partial(self._item_texts, store) if known else lambda items: dict.fromkeys(items, _LATER)
                to_ask = tokens_in = 0
                for prompt in self.writer.prompts(subject, texts):
                    if known and self.found(store, Key.of(prompt, self.config.llm)):
                        continue
                    if not to_ask:
                        samples.append(prompt)
                    to_ask, tokens_in = to_ask + 1, tokens_in + estimate_tokens(prompt.text)
                due = len(self.writer.due(subject))
                row = {"subject": subject, "answered": due - to_ask, "to ask": to_ask}
                row |= {"without material": len(self.data.expected_ids(subject)) - due, "tokens in": tokens_in}
                rows.append(row | {"tokens out": round(to_ask * WORD_LIMIT[subject] * TOKENS_PER_WORD)})
        table = pd.DataFrame(rows)
        calls, *tokens = table[["to ask", "tokens in", "tokens out"]].sum().tolist()
        return Estimate(table, prices().table(self.config.llm.model, *tokens), tuple(samples), calls, tuple(tokens))

    def run(
        self, progress: Progress | None = None, stop: threading.Event | None = None, watch: Watch = lambda _: None
    ) -> Outcome:
        """Ask what has no answer yet and write the profiles table once nothing is missing.

        A run may end at any time, by ``stop``, a signal, an error or a crash: answers that arrived are kept, and the
        next run goes on from them. In the main thread SIGINT and SIGTERM set ``stop``: calls in flight are awaited.

        Raises
        ------
        LLMError
            If the model cannot be asked (no key, no quota, no such model, no server).
        DataError
            If another process is at work on the same data set.
        StorageError
            If an answer or the table cannot be written.
        """
        progress, stop = progress or Progress(), stop or threading.Event()
        with asking_store(self.answers) as store:
            progress.total = sum(len(self.writer.due(subject)) for subject in SUBJECTS)
            for subject in SUBJECTS:
                progress.subject, limit = subject, WORD_LIMIT[subject]
                rules = partial(judged, limit), partial(remedy, limit), partial(self.found, store)
                prompts = self.prompts(subject, store)
                Asking(prompts, *rules, self.config.llm, store, progress, stop, watch).run()
                if stop.is_set() or (self._missing(subject) and not self.config.fill):
                    break
            missing = {subject: count for subject in SUBJECTS if (count := self._missing(subject))}
            path = None if stop.is_set() or (missing and not self.config.fill) else self.write(store)
            return Outcome(progress, missing, path)

    def complete(self) -> str:
        """Ask what is open, with a progress bar, and say how it ended.

        Raises
        ------
        ConfigError
            If the profile set is named after another model than the one that is asked.
        LLMError
            If profiles are missing at the end; what was answered is kept.
        """
        model = self.config.llm.model
        if self.profiles in prices().models and self.profiles != model:
            hint = f"add --model {self.profiles}, or choose another name"
            raise ConfigError(f"profiles called {self.profiles} would be written by {model}", hint)
        with tqdm(unit="question") as bar:
            outcome = self.run(watch=lambda progress: progress.show(bar))
        summary = outcome.progress.summary(model, self.answers)
        if outcome.path is not None:
            return f"{summary}\n{paths.shown(outcome.path)}"
        missing = ", ".join(f"{count} {subject}" for subject, count in outcome.missing.items())
        hint = "the same command goes on from here"
        if outcome.progress.failures["thoughts"]:
            hint = "leave the model room for its answer first: the same command would pay for the same again"
        if not outcome.progress.stopped:
            hint += "; or complete the table from the template profiles: --fill template"
        raise LLMError(f"{summary}\nthe profiles are not complete, there is no answer yet for: {missing}", hint)

    def prompts(self, subject: str, store: Store) -> Iterator[Prompt]:
        """Questions about all items, auxiliary entities or users, answered or not."""
        return self.writer.prompts(subject, partial(self._item_texts, store))

    def found(self, store: Store, key: Key) -> bool:
        """Whether a question has a usable answer, which later prompts then quote."""
        stored = store.answer(key)
        self._rows[key.subject][key.id] = stored.row if stored else 0
        return stored is not None

    def given_up(self, store: Store, key: Key) -> bool:
        """Whether a question without an answer is left to the template: it was chosen, and asking again is no use."""
        return bool(self.config.fill) and (len(store.rejected(key)) >= TRIES or store.is_refused(key))

    def _missing(self, subject: str) -> int:
        return sum(not self._rows[subject][number] for number in self.writer.due(subject))

    @cached_property
    def _template(self) -> Mapping[tuple[str, int], str]:
        return texts_by_subject(ensure_profiles(self.data))

    def _item_texts(self, store: Store, items: Collection[int]) -> dict[int, str]:
        """Finished profiles of items; where one is missing the template stands in, if that was chosen."""
        rows = {row: item for item in items if (row := int(self._rows["item"][item]))}
        texts = {rows[row]: text for row, (text, *_) in store.details(list(rows)).items()}
        if self.config.fill:
            texts |= {item: self._template["item", item] for item in items if item not in texts}
        return texts

    def write(self, store: Store) -> Path:
        """Write the profiles table from the answers that were found."""
        used = [row for rows in self._rows.values() for row in rows.tolist() if row]
        return self.data.write_profiles(self.profiles, self._batches(store, used), self._provenance(store, used))

    def _batches(self, store: Store, used: list[int]) -> Iterator[pd.DataFrame]:
        """Rows of the profiles table; a stand-in is as old as the newest answer, so equal answers give equal tables."""
        newest = max(used, default=0)
        *_, created = store.details([newest])[newest] if newest else [now()]
        for subject in SUBJECTS:
            ids = self.data.expected_ids(subject)
            for start in range(0, len(ids), _CHUNK):
                part = ids[start : start + _CHUNK]
                rows = self._rows[subject][part].tolist()
                details = store.details(rows)
                values = [
                    [subject, number, *(details[row] if row else self._stand_in(subject, number, created))]
                    for number, row in zip(part, rows, strict=True)
                ]
                yield pd.DataFrame(values, columns=_COLUMNS)

    def _stand_in(self, subject: str, number: int, created: str) -> list[str]:
        """Row of a profile that the model did not write: the template's, or a fixed text where nothing is known."""
        if not self.writer.has_material(subject, number):
            return [UNKNOWN_TASTE, sha256_text(UNKNOWN_TASTE), _NOT_ASKED, "{}", created]
        text = self._template[subject, number]
        return [text, sha256_text(text), TEMPLATE, FILLED, created]

    def _provenance(self, store: Store, used: list[int]) -> dict[str, Any]:
        return {
            "kind": "llm",
            "free": self.config.llm.model == loopback.MODEL,
            "model": self.config.llm.model,
            "parameters": self.config.llm.parameters,
            "server": self.config.llm.server or "OpenAI",
            "prompts": f"profiles {self.config.prompts.wording}",
            "domain": domain_name(self.data, self.config.prompts.domain),
            "prompt_settings": self.config.prompts.model_dump(),
            "filled_from_template": sum(self._missing(subject) for subject in SUBJECTS),
            "over_word_limit": store.with_problem("too_long", used),
            "possibly_leaky": [],
        }


def judged(limit: int, answer: Answer) -> Verdict:
    """Judge an answer that should be a profile of at most ``limit`` words."""
    problem = find_problem(answer, limit)
    return Verdict(tidy(answer.text), problem, problem in ("", "too_long"), thoughts_advice(answer))


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
                        temporary = stack.enter_context(atomic_file(written[-1]))
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
