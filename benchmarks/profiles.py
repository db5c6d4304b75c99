"""How fast profiles are generated against a server that answers at once, beside a bare loop of the same client.

The server runs in a process of its own, so what is measured is the client: writing the prompt, the call, the checks,
and the commit of the answer to the store.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from benchmarks.measure import alone
from spike_kit.base import paths
from spike_kit.base.config import Config
from spike_kit.base.devices import peak_bytes
from spike_kit.base.errors import require
from spike_kit.base.seeds import numpy_generator
from spike_kit.data.dataset import SUBJECTS, Dataset, SourceFile, create_dataset
from spike_kit.data.tables import Tables
from spike_kit.profiles.generate import Generation, GenerationConfig
from spike_kit.profiles.jobs import Progress
from spike_kit.profiles.llm import LLMConfig, Message
from spike_kit.profiles.loopback import MODEL, LoopbackProcess
from spike_kit.profiles.prompts import PromptWriter

ROUNDS = 3
"""Rounds in which the bare loop and the generation take turns."""

_CONCURRENCY = 32
_TRIPLES_PER_ITEM, _TRAIN_PER_USER = 5, 12
_KEY = "no-key-needed"


class ProfileBenchmark(Config):
    """What `bench_profiles` measured."""

    profiles: int
    """Profiles of the large run."""
    profiles_per_second: float
    """Profiles per second: prompt, call, checks and commit (median over rounds)."""
    bare_client_per_second: float
    """Requests per second of a bare loop over AsyncOpenAI with the same prompts and concurrency (median)."""
    client_ratio: float
    """Median over rounds of the first by the second."""
    seconds: float
    """Time of the large run, the profiles table included."""
    peak_rss_gib: float
    """Largest resident memory of the large run in GiB, the interpreter and its libraries included."""
    small_peak_rss_gib: float
    """The same for a run of a tenth of the profiles."""
    rss_growth_mib: float
    """Difference of the two in MiB."""


def bench_profiles(profiles: int, seed: int = 0) -> ProfileBenchmark:
    """Generate so many profiles of a synthetic study, and a tenth of them; everything is removed again.

    Each run has a process of its own, so that memory is its alone.

    Parameters
    ----------
    profiles
        Profiles of the large run.
    seed
        Seed of the synthetic study.
    """
    root = paths.data_root()
    root.mkdir(parents=True, exist_ok=True)
    small = max(profiles // 10, 100)
    with tempfile.TemporaryDirectory(prefix=".spike-kit-tmp-bench-", dir=root) as temporary:
        folder = Path(temporary)
        bare, ours = [], []
        with LoopbackProcess() as server, tqdm(total=2 * ROUNDS + 2, desc="bench profiles", unit="run") as bar:
            for name, size in (("small", small), ("large", profiles)):
                alone(synthetic_dataset, folder / name, size, seed)
            for number in range(ROUNDS):
                bare.append(small / alone(_bare, folder / "small", small, server.base_url))
                bar.update()
                ours.append(small / alone(_generate, folder / "small", f"{number}", server.base_url)[0])
                bar.update()
            _, _, small_peak = alone(_generate, folder / "small", "peak", server.base_url)
            bar.update()
            _, seconds, peak = alone(_generate, folder / "large", "peak", server.base_url)
            bar.update()
    return ProfileBenchmark(
        profiles=profiles,
        profiles_per_second=round(statistics.median(ours), 1),
        bare_client_per_second=round(statistics.median(bare), 1),
        client_ratio=round(statistics.median(our / their for our, their in zip(ours, bare, strict=True)), 3),
        seconds=round(seconds, 1),
        peak_rss_gib=round(peak / 2**30, 3),
        small_peak_rss_gib=round(small_peak / 2**30, 3),
        rss_growth_mib=round((peak - small_peak) / 2**20, 1),
    )


def _generate(folder: Path, name: str, base_url: str) -> tuple[float, float, int]:
    """Seconds of asking, seconds with the table, and peak memory of one run."""
    data = Dataset.open(folder)
    llm = LLMConfig(model=MODEL, base_url=base_url, concurrency=_CONCURRENCY)
    generation = Generation(
        data, GenerationConfig(llm=llm), "bench", answers=folder.with_name(f"{folder.name}-{name}.sqlite")
    )
    progress = Progress()
    require("openai", "llm")
    started = time.perf_counter()
    outcome = generation.run(progress)
    seconds = time.perf_counter() - started
    assert outcome.path is not None
    return progress.asking_seconds, seconds, peak_bytes()


def _bare(folder: Path, requests: int, base_url: str) -> float:
    """Seconds of a loop over AsyncOpenAI that does nothing with the answers."""
    data = Dataset.open(folder)
    texts = dict.fromkeys(data.expected_ids("item"), "profile " * 60)
    writer = PromptWriter(data)
    prompts = (prompt.messages for subject in SUBJECTS for prompt in writer.prompts(subject, lambda _: texts))
    return asyncio.run(_loop(list(islice(prompts, requests)), base_url))


async def _loop(chats: list[list[Message]], base_url: str) -> float:
    waiting: Iterator[list[Message]] = iter(chats)
    async with require("openai", "llm").AsyncOpenAI(base_url=base_url, api_key=_KEY, max_retries=0) as client:

        async def work() -> None:
            for messages in waiting:
                await client.chat.completions.create(model=MODEL, messages=messages, temperature=0.0, max_tokens=400)

        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))
        return time.perf_counter() - started


def synthetic_dataset(path: Path, profiles: int, seed: int = 0) -> Dataset:
    """Write a data set with about so many users, items and other entities together (a quarter, a quarter, a half)."""
    rng = numpy_generator(seed, "bench profiles")
    n_users = n_items = max(profiles // 4, 10)
    n_others = max(profiles - n_users - n_items, 10)
    labels = [f"Film {number} (19{number % 90 + 10})" for number in range(n_items)]
    others = [f"Person {number}" for number in range(n_others)]
    ids = [f"node:{number}" for number in range(n_items + n_others)]
    heads = np.repeat(np.arange(n_items), _TRIPLES_PER_ITEM)
    tails = n_items + (n_others * rng.random(len(heads)) ** 2).astype(np.int64)
    triples = pd.DataFrame({"head": heads, "relation": rng.integers(0, 4, len(heads)), "tail": tails}).drop_duplicates()
    pairs = pd.DataFrame(
        {
            "user": np.repeat(np.arange(n_users), _TRAIN_PER_USER),
            "item": (n_items * rng.random(n_users * _TRAIN_PER_USER) ** 1.5).astype(np.int64),
        }
    ).drop_duplicates()
    pairs = pairs.sort_values(["user", "item"], ignore_index=True)
    names = ["director", "writer", "cast", "company"]
    tables = Tables(
        users=pd.DataFrame(
            {
                "user": range(n_users),
                "source_id": [f"u{number}" for number in range(n_users)],
                "label": [f"User {number}" for number in range(n_users)],
            }
        ),
        items=pd.DataFrame(
            {
                "item": range(n_items),
                "source_id": ids[:n_items],
                "label": labels,
                "description": [f"A film of {80 + number % 70} minutes." for number in range(n_items)],
            }
        ),
        entities=pd.DataFrame(
            {
                "entity": range(n_items + n_others),
                "source_id": ids,
                "label": [*labels, *others],
                "kind": ["item"] * n_items + ["person"] * n_others,
            }
        ),
        relations=pd.DataFrame(
            {
                "relation": range(len(names)),
                "source_id": names,
                "label": names,
                "template": [f"The {name} of {{head}} is {{tail}}." for name in names],
            }
        ),
        interactions=pairs.assign(split="train", rating=float("nan"), timestamp=None).astype(
            {"split": "str", "timestamp": "Int64"}
        ),
        triples=triples.reset_index(drop=True),
    )
    source = SourceFile(name="synthetic", sha256="0" * 64, licence="none", origin="benchmarks.profiles")
    return create_dataset(path, "bench-profiles", tables, sources=[source], build={}, funnel=[])
