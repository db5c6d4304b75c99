"""Profiles written by a language model: items, other entities, users; estimated before, resumable always."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from spike_kit.base.config import Config
from spike_kit.base.errors import DataError
from spike_kit.base.storage import now, sha256_text
from spike_kit.data.dataset import FILLED, SUBJECTS, TEMPLATE, Dataset, check_profiles_name, texts_by_subject
from spike_kit.profiles import loopback
from spike_kit.profiles.checks import find_problem, remedy, thoughts_advice, tidy
from spike_kit.profiles.cost import TOKENS_PER_WORD, estimate_tokens, prices
from spike_kit.profiles.jobs import TRIES, Asking, Job, Progress, Verdict, Watch, in_own_loop, unwatched
from spike_kit.profiles.llm import LLMConfig
from spike_kit.profiles.prompts import VERSION, Prompt, PromptConfig, PromptWriter, domain_name
from spike_kit.profiles.replies import Answer
from spike_kit.profiles.store import Key, Store, answers_path, exclusive
from spike_kit.profiles.template import UNKNOWN_TASTE, WORD_LIMIT, ensure_profiles

_CHUNK = 2000
_NOT_ASKED = "none"
_LONG = "profile " * WORD_LIMIT["item"]
"""As long as item profiles may be: stands in for them in the estimate."""
_LATER = "(its profile, once it is written)"
"""What a sample prompt shows where an item's profile will stand."""


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

    @property
    def calls(self) -> int:
        """Calls to be made."""
        return int(self.table["to ask"].sum())

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out."""
        return int(self.table["tokens in"].sum()), int(self.table["tokens out"].sum())


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
    answers
        File of the answers; default: that of the data set under data/llm.
    """

    def __init__(
        self, data: Dataset, config: GenerationConfig, profiles: str = "", answers: Path | None = None
    ) -> None:
        self.data = data
        self.config = config
        self.profiles = profiles or _set_name(config.llm.model)
        check_profiles_name(self.profiles)
        if self.profiles == TEMPLATE:
            raise DataError(f"{self.profiles!r} names the template profiles", "choose another name with --profiles")
        self.answers = answers or answers_path(data)
        self._parameters = config.llm.parameters
        self._rows = {subject: np.zeros(len(data.expected_ids(subject)), dtype=np.int64) for subject in SUBJECTS}

    @cached_property
    def writer(self) -> PromptWriter:
        """Writer of the prompts."""
        return PromptWriter(self.data, self.config.prompts)

    def estimate(self, samples: int = 1) -> Estimate:
        """Count calls and tokens without asking anything; ``samples`` prompts of each subject come with it.

        Profiles that do not exist yet are counted with the length they may have, so tokens are a little high.
        """
        rows: list[dict[str, Any]] = []
        shown: list[Prompt] = []
        with Store(self.answers) as store:
            for subject in SUBJECTS:
                earlier = sum(row["to ask"] for row in rows)
                quotes_known = earlier == 0 or bool(self.config.fill)
                rows.append(self._estimated(subject, store, quotes_known, shown, samples))
        table = pd.DataFrame(rows)
        totals = int(table["tokens in"].sum()), int(table["tokens out"].sum())
        return Estimate(table, prices().table(self.config.llm.model, *totals), tuple(shown))

    def _estimated(
        self, subject: str, store: Store, quotes_known: bool, shown: list[Prompt], samples: int
    ) -> dict[str, Any]:
        """Row of one subject; prompts that quote profiles not written yet stand in with their length."""
        answered = to_ask = tokens_in = 0
        texts = partial(self._item_texts, store) if quotes_known else partial(_alike, _LONG)
        for prompt in self.writer.prompts(subject, texts):
            if quotes_known and self.found(self._key(prompt), store):
                answered += 1
                continue
            if to_ask < samples:
                shown.append(
                    prompt if quotes_known else self.writer.prompt(subject, prompt.id, partial(_alike, _LATER))
                )
            to_ask += 1
            tokens_in += estimate_tokens(prompt.text)
        return {
            "subject": subject,
            "answered": answered,
            "to ask": to_ask,
            "without material": len(self.data.expected_ids(subject)) - answered - to_ask,
            "tokens in": tokens_in,
            "tokens out": round(to_ask * WORD_LIMIT[subject] * TOKENS_PER_WORD),
        }

    def run(
        self, progress: Progress | None = None, stop: threading.Event | None = None, watch: Watch = unwatched
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
        stop = stop or threading.Event()
        return in_own_loop(self._run(progress or Progress(), stop, watch), stop)

    async def _run(self, progress: Progress, stop: threading.Event, watch: Watch) -> Outcome:
        store = Store(self.answers)
        with exclusive(store), store:
            progress.total = sum(sum(self._has_material(subject)) for subject in SUBJECTS)
            started = time.perf_counter()
            for subject in SUBJECTS:
                jobs, showing = self.jobs(subject, store), partial(watch, subject, progress)
                await Asking(jobs, self.config.llm, store, progress, self._place, stop, showing).run()
                progress.asking_seconds = time.perf_counter() - started
                if stop.is_set() or (self._missing(subject) and not self.config.fill):
                    break
            missing = {subject: count for subject in SUBJECTS if (count := self._missing(subject))}
            path = None if stop.is_set() or (missing and not self.config.fill) else self.write(store)
            return Outcome(progress, missing, path)

    def jobs(self, subject: str, store: Store) -> Iterator[Job]:
        """Questions about all items, auxiliary entities or users, answered or not."""
        for prompt in self.writer.prompts(subject, partial(self._item_texts, store)):
            judge, again = partial(self.judge, subject), partial(remedy, WORD_LIMIT[subject])
            yield Job(self._key(prompt), prompt.messages, prompt.version, judge, again)

    def found(self, key: Key, store: Store) -> bool:
        """Whether a question has a usable answer, which later prompts then quote."""
        stored = store.answer(key)
        if stored is not None:
            self._place(key, stored.row)
        return stored is not None

    def given_up(self, job: Job, store: Store) -> bool:
        """Whether a question without an answer is left to the template: it was chosen, and asking again is no use."""
        return bool(self.config.fill) and (len(store.rejected(job.key)) >= TRIES or store.is_refused(job.key))

    @staticmethod
    def judge(subject: str, answer: Answer) -> Verdict:
        """Judge an answer about an item, an auxiliary entity or a user."""
        problem = find_problem(answer, WORD_LIMIT[subject])
        return Verdict(tidy(answer.text), problem, problem in ("", "too_long"), thoughts_advice(answer))

    def _key(self, prompt: Prompt) -> Key:
        return Key(prompt.subject, prompt.id, prompt.sha256, self.config.llm.model, self._parameters)

    def _place(self, key: Key, row: int) -> None:
        self._rows[key.subject][key.id - self.data.expected_ids(key.subject).start] = row

    def _has_material(self, subject: str) -> list[bool]:
        return [self.writer.has_material(subject, number) for number in self.data.expected_ids(subject)]

    def _missing(self, subject: str) -> int:
        return int((np.array(self._has_material(subject), dtype=bool) & (self._rows[subject] == 0)).sum())

    @cached_property
    def _template(self) -> Mapping[tuple[str, int], str]:
        return texts_by_subject(ensure_profiles(self.data))

    def _item_texts(self, store: Store, items: Collection[int]) -> dict[int, str]:
        """Finished profiles of items; where one is missing the template stands in, if that was chosen."""
        rows = {int(self._rows["item"][item]): item for item in items if self._rows["item"][item]}
        texts = {rows[row]: text for row, (text, *_) in store.details(list(rows)).items()}
        if self.config.fill:
            texts |= {item: self._template["item", item] for item in items if item not in texts}
        return texts

    def write(self, store: Store) -> Path:
        """Write the profiles table from the answers that were found."""
        filled = sum(self._missing(subject) for subject in SUBJECTS)
        provenance = self._provenance(filled, store.with_problem("too_long", self._used))
        return self.data.write_profiles(self.profiles, self._batches(store), provenance)

    @property
    def _used(self) -> list[int]:
        """Rows of the answers that the table is written from."""
        return [row for subject in SUBJECTS for row in self._rows[subject].tolist() if row]

    def _batches(self, store: Store) -> Iterator[pd.DataFrame]:
        """Rows of the profiles table; a stand-in is as old as the newest answer, so equal answers give equal tables."""
        newest = max(self._used, default=0)
        *_, created = store.details([newest])[newest] if newest else [now()]
        for subject in SUBJECTS:
            ids, rows = self.data.expected_ids(subject), self._rows[subject]
            for start in range(0, len(ids), _CHUNK):
                part = slice(start, start + _CHUNK)
                chunk = list(zip(ids[part], rows[part].tolist(), strict=True))
                details = store.details([row for _, row in chunk if row])
                values = [details[row] if row else self._stand_in(subject, number, created) for number, row in chunk]
                frame = pd.DataFrame(values, columns=["text", "prompt_sha256", "model", "usage", "created"])
                frame.insert(0, "subject", subject)
                frame.insert(1, "id", [number for number, _ in chunk])
                yield frame

    def _stand_in(self, subject: str, number: int, created: str) -> list[str]:
        """Row of a profile that the model did not write: the template's, or a fixed text where nothing is known."""
        if not self.writer.has_material(subject, number):
            return [UNKNOWN_TASTE, sha256_text(UNKNOWN_TASTE), _NOT_ASKED, "{}", created]
        text = self._template[subject, number]
        return [text, sha256_text(text), TEMPLATE, FILLED, created]

    def _provenance(self, filled: int, too_long: int) -> dict[str, Any]:
        return {
            "kind": "llm",
            "free": self.config.llm.model == loopback.MODEL,
            "model": self.config.llm.model,
            "parameters": self.config.llm.parameters,
            "server": self.config.llm.server or "OpenAI",
            "prompts": VERSION,
            "domain": domain_name(self.data, self.config.prompts.domain),
            "prompt_settings": self.config.prompts.model_dump(),
            "filled_from_template": int(filled),
            "over_word_limit": int(too_long),
            "possibly_leaky": [],
        }


def _alike(text: str, items: Collection[int]) -> dict[int, str]:
    return dict.fromkeys(items, text)


def _set_name(model: str) -> str:
    return re.sub(r"-+", "-", re.sub(r"[^A-Za-z0-9._]", "-", model)).strip("-._") or "llm"
