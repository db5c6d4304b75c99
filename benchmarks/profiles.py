"""How fast profiles are generated against a server that answers at once, beside a bare loop of the same client.

The server runs in a process of its own, so what is measured is the client: writing the prompt, the call, the checks,
and the commit of the answer to the store.
"""

import asyncio
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from benchmarks.common import GIB, Measured, Setup, alone, in_turns, main, temporary_home
from spike_kit.base import paths
from spike_kit.base.devices import peak_bytes
from spike_kit.base.errors import require
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.build import dataset_from_frames
from spike_kit.data.dataset import SUBJECTS, Dataset
from spike_kit.data.recipes import UNFILTERED
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.llm import LLMConfig, Message
from spike_kit.profiles.loopback import MODEL, LoopbackProcess
from spike_kit.profiles.prompts import PromptWriter

ROUNDS = 3
"""Rounds in which the generation and the bare loop take turns."""

_CONCURRENCY = 32
_FACTS, _TRAIN_PER_USER = 5, 12
_RELATIONS = ["director", "writer", "cast", "company"]


class ProfilesSetup(Setup):
    """What `bench_profiles` measures."""

    profiles: int = Field(default=50_000, ge=1000)
    """Profiles to generate (50,000 take about two minutes), at least 1000: fewer tell nothing."""


def bench_profiles(setup: ProfilesSetup) -> Measured:
    """Generate profiles of a synthetic data set, and a tenth of them beside a bare loop of the same client.

    Each run has a process of its own, so that memory is its alone; everything is removed again.
    """
    size, small_peaks = setup.profiles // 10, []
    with temporary_home(), LoopbackProcess() as server:
        alone(synthetic_dataset, "small", size)
        alone(synthetic_dataset, "large", setup.profiles)

        def ours() -> float:
            asking_seconds, _, peak = alone(_generate, "small", server.base_url)
            small_peaks.append(peak)
            return asking_seconds

        ours_seconds, bare_seconds, ratio = in_turns(ours, lambda: alone(_bare, size, server.base_url), ROUNDS)
        _, seconds, peak = alone(_generate, "large", server.base_url)
    growth = peak - small_peaks[0]
    return {
        "profiles": (setup.profiles, "profiles of the large run"),
        "profiles_per_second": (round(size / ours_seconds, 1), "prompt, call, checks and commit (median)"),
        "bare_client_per_second": (round(size / bare_seconds, 1), "requests of a bare loop over AsyncOpenAI"),
        "client_ratio": (round(1 / ratio, 3), "median over rounds of the first by the second"),
        "seconds": (round(seconds, 1), "time of the large run, the profiles table included"),
        "peak_rss_gib": (round(peak / GIB, 3), "largest resident memory of it in GiB, the interpreter included"),
        "rss_growth_mib": (round(growth / 2**20, 1), "what that is more than a run of a tenth of the profiles took"),
    }


def _generate(dataset: str, base_url: str) -> tuple[float, float, int]:
    """Seconds of asking, seconds with the table, and peak memory of a run that begins without answers."""
    llm = LLMConfig(model=MODEL, base_url=base_url, concurrency=_CONCURRENCY)
    generation = Generation(Dataset.open(dataset), GenerationConfig(llm=llm), "bench")
    generation.answers = Path(tempfile.mkdtemp(dir=paths.home()), "answers.sqlite")
    require("openai", "llm")
    looks: deque[float] = deque(maxlen=1)
    started = time.perf_counter()
    generation.run(watch=lambda _: looks.append(time.perf_counter()))
    return looks[0] - started, time.perf_counter() - started, peak_bytes()


def _bare(requests: int, base_url: str) -> float:
    """Seconds of a loop over AsyncOpenAI that does nothing with the answers."""
    data = Dataset.open("small")
    texts = dict.fromkeys(data.expected_ids("item"), "profile " * 60)
    writer = PromptWriter(data)
    prompts = (prompt.messages for subject in SUBJECTS for prompt in writer.prompts(subject, lambda _: texts))
    return asyncio.run(_loop(iter(list(islice(prompts, requests))), base_url))


async def _loop(waiting: Iterator[list[Message]], base_url: str) -> float:
    async with require("openai", "llm").AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

        async def work() -> None:
            for messages in waiting:
                await client.chat.completions.create(model=MODEL, messages=messages, temperature=0.0, max_tokens=400)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))
        return time.perf_counter() - started


def synthetic_dataset(name: str, profiles: int, seed: int = 0, valid: float = 0, test: float = 0) -> Dataset:
    """Build a data set with about so many users, items and other entities together (a quarter, a quarter, a half).

    All interactions are train ones but for the shares ``valid`` and ``test``.
    """
    rng = numpy_generator(seed, "bench profiles")
    n_items, n_others = profiles // 4, profiles // 2
    films = [f"Film {number} (19{number % 90 + 10})" for number in range(n_items)]
    people = np.append(rng.permutation(n_others), (n_others * rng.random(n_items * _FACTS - n_others) ** 2).astype(int))
    triples = pd.DataFrame({"head": np.tile(films, _FACTS), "relation": rng.choice(_RELATIONS, len(people))})
    triples["tail"] = [f"Person {number}" for number in people]
    pairs = pd.DataFrame({"user": [f"User {number % n_items}" for number in range(n_items * _TRAIN_PER_USER)]})
    pairs["item"] = [films[int(n_items * share**1.5)] for share in rng.random(len(pairs))]
    items = pd.DataFrame({"item": films, "title": films})
    items["description"] = [f"A film of {80 + number % 70} minutes." for number in range(n_items)]
    frames = pairs.drop_duplicates(), items, triples.drop_duplicates()
    return dataset_from_frames(*frames, name=name, **UNFILTERED, valid=valid, test=test)


if __name__ == "__main__":
    sys.exit(main(ProfilesSetup, bench_profiles))
