"""How fast profiles are generated against a server that answers at once, beside a bare loop of the same client.

The server runs in a process of its own, so what is measured is the client: writing the prompt, the call, the checks,
and the commit of the answer to the store.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from tqdm.auto import tqdm

from benchmarks.common import GIB, Measured, Setup, alone, main
from spike_kit.base import paths
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
_RELATIONS = ["director", "writer", "cast", "company"]


class ProfilesSetup(Setup):
    """What `bench_profiles` measures."""

    profiles: int = Field(default=50_000, ge=1000)
    """Profiles to generate (50,000 take about two minutes), at least 1000: fewer tell nothing."""


def bench_profiles(setup: ProfilesSetup) -> Measured:
    """Generate profiles of a synthetic data set, and a tenth of them beside a bare loop of the same client.

    Each run has a process of its own, so that memory is its alone; everything is removed again.
    """
    root = paths.data_root()
    root.mkdir(parents=True, exist_ok=True)
    size = setup.profiles // 10
    with tempfile.TemporaryDirectory(prefix=".spike-kit-tmp-bench-", dir=root) as temporary:
        small, large, bare, ours = Path(temporary) / "small", Path(temporary) / "large", [], []
        with LoopbackProcess() as server, tqdm(total=2 * ROUNDS + 2, desc="bench profiles", unit="run") as bar:
            alone(synthetic_dataset, small, size)
            alone(synthetic_dataset, large, setup.profiles)
            for number in range(ROUNDS):
                bare.append(size / alone(_bare, small, size, server.base_url))
                bar.update()
                ours.append(size / alone(_generate, small, f"{number}", server.base_url)[0])
                bar.update()
            _, _, small_peak = alone(_generate, small, "peak", server.base_url)
            bar.update()
            _, seconds, peak = alone(_generate, large, "peak", server.base_url)
            bar.update()
    ratio = statistics.median(our / their for our, their in zip(ours, bare, strict=True))
    return {
        "profiles": (setup.profiles, "profiles of the large run"),
        "profiles_per_second": (round(statistics.median(ours), 1), "prompt, call, checks and commit (median)"),
        "bare_client_per_second": (round(statistics.median(bare), 1), "requests of a bare loop over AsyncOpenAI"),
        "client_ratio": (round(ratio, 3), "median over rounds of the first by the second"),
        "seconds": (round(seconds, 1), "time of the large run, the profiles table included"),
        "peak_rss_gib": (round(peak / GIB, 3), "largest resident memory of it in GiB, the interpreter included"),
        "small_peak_rss_gib": (round(small_peak / GIB, 3), "the same for a run of a tenth of the profiles"),
        "rss_growth_mib": (round((peak - small_peak) / 2**20, 1), "difference of the two in MiB"),
    }


def _generate(folder: Path, name: str, base_url: str) -> tuple[float, float, int]:
    """Seconds of asking, seconds with the table, and peak memory of one run."""
    llm = LLMConfig(model=MODEL, base_url=base_url, concurrency=_CONCURRENCY)
    answers = folder.with_name(f"{folder.name}-{name}.sqlite")
    generation = Generation(Dataset.open(folder), GenerationConfig(llm=llm), "bench", answers=answers)
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
    return asyncio.run(_loop(iter(list(islice(prompts, requests))), base_url))


async def _loop(waiting: Iterator[list[Message]], base_url: str) -> float:
    async with require("openai", "llm").AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0) as client:

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
    heads = np.repeat(np.arange(n_items), _TRIPLES_PER_ITEM)
    tails = n_items + (n_others * rng.random(len(heads)) ** 2).astype(np.int64)
    triples = pd.DataFrame({"head": heads, "relation": rng.integers(0, 4, len(heads)), "tail": tails})
    users = np.repeat(np.arange(n_users), _TRAIN_PER_USER)
    pairs = pd.DataFrame({"user": users, "item": (n_items * rng.random(len(users)) ** 1.5).astype(np.int64)})
    interactions = pairs.drop_duplicates().sort_values(["user", "item"], ignore_index=True)
    interactions = interactions.assign(split="train", rating=float("nan"), timestamp=None)
    labels = [f"Film {number} (19{number % 90 + 10})" for number in range(n_items)]
    entities = pd.DataFrame({"entity": range(n_items + n_others)})
    entities["source_id"] = [f"node:{number}" for number in entities["entity"]]
    entities["label"] = [*labels, *(f"Person {number}" for number in range(n_others))]
    entities["kind"] = ["item"] * n_items + ["person"] * n_others
    items = entities[:n_items].rename(columns={"entity": "item"}).drop(columns="kind")
    items["description"] = [f"A film of {80 + number % 70} minutes." for number in range(n_items)]
    people = pd.DataFrame({"user": range(n_users)})
    people["source_id"], people["label"] = [[f"{kind}{number}" for number in range(n_users)] for kind in ("u", "User ")]
    relations = pd.DataFrame({"relation": range(4), "source_id": _RELATIONS, "label": _RELATIONS})
    relations["template"] = [f"The {name} of {{head}} is {{tail}}." for name in _RELATIONS]
    tables = Tables(
        users=people,
        items=items,
        entities=entities,
        relations=relations,
        interactions=interactions.astype({"split": "str", "timestamp": "Int64"}),
        triples=triples.drop_duplicates(ignore_index=True),
    )
    source = SourceFile(name="synthetic", sha256="0" * 64, licence="none", origin="benchmarks.profiles")
    return create_dataset(path, "bench-profiles", tables, sources=[source], build={}, funnel=[])


if __name__ == "__main__":
    sys.exit(main(ProfilesSetup, bench_profiles))
