"""The cache in memory at a given size: memory of an entry, and cost of a call.

Run as ``python -m loadtests.bench.cache_fill <entries> <timed calls>``, in a process of its own,
so that its memory can be counted. Entries are like those of the service: four candidates of
usual length, with their verdicts.
"""

from __future__ import annotations

import gc
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import psutil
from prometheus_client import CollectorRegistry

from loadtests.summary import percentile
from model_store.manifest import FilterSpec
from service.cache.keys import cache_key
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.memory_tier import MemoryTier
from service.cache.metrics import CacheMetrics
from service.filtering.candidates import Scored
from service.filtering.filters import CandidateFilter
from service.filtering.generation import Generation

_DIGEST = "0" * 64
_WORDS = (
    "steel", "stake", "garden", "hose", "ceiling", "fan", "white", "oak", "vinyl", "plank", "deck",
    "screw", "shower", "head", "brushed", "nickel", "outdoor", "rug", "cordless", "drill",
)  # fmt: skip
NEEDED_BYTES = 10_000
"""Generous size of an entry; decides whether a machine has enough memory."""


def entries(count: int, seed: int = 0) -> Iterator[tuple[str, Entry]]:
    """Keys and entries, all different."""
    rng = random.Random(seed)
    lifetimes = Lifetimes(hard_s=86_400.0)
    filters = CandidateFilter(FilterSpec(), fold_case=True)
    for number in range(count):
        words = rng.choices(_WORDS, k=4)
        query = f"{' '.join(words)} {number}"
        scored = tuple(
            Scored(f"{' '.join(rng.sample(words, 4))} {rng.choice(_WORDS)} {number}", rng.random())
            for _ in range(4)
        )
        generation = Generation(scored, filters.judge(query, scored))
        key = cache_key(_DIGEST, query)
        yield key, lifetimes.entry(key, generation, empty=False)


def measure(count: int, calls: int) -> dict[str, Any]:
    """Fill a cache, then time its calls.

    Args:
        count: entries.
        calls: timed look-ups, and timed writes.
    """
    cache = MemoryTier(
        max_bytes=1 << 62,
        lifetimes=Lifetimes(hard_s=86_400.0),
        metrics=CacheMetrics(CollectorRegistry()),
    )
    rng = random.Random(1)
    keys: list[str] = []
    gc.collect()
    before = _resident()
    for key, entry in entries(count):
        cache.put(key, entry)
        if len(keys) < calls or rng.random() < 0.001:
            keys.append(key)
    gc.collect()
    # The keys kept for look-ups are the cache's own objects.
    bytes_each = (_resident() - before) / count
    estimated = cache.size_bytes / count
    asked = rng.choices(keys, k=calls)
    more = list(entries(calls, seed=2))
    collected = time.perf_counter()
    gc.collect()
    collected = time.perf_counter() - collected
    return {
        "entries": count,
        "bytes_per_entry": round(bytes_each),
        "estimated_bytes_per_entry": round(estimated),
        "get_us": _timed(lambda i: cache.get(asked[i]), calls),
        "put_us": _timed(lambda i: cache.put(*more[i]), calls),
        "collection_ms": round(1000 * collected, 2),
    }


def _timed(call: Callable[[int], object], count: int) -> dict[str, float]:
    """Microseconds of each of ``count`` calls."""
    times = []
    for number in range(count):
        begin = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - begin)
    return {
        f"p{percent:g}": round(1e6 * (percentile(times, percent) or 0.0), 3)
        for percent in (50.0, 99.0)
    }


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    _figures = measure(int(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(orjson.dumps(_figures).decode() + "\n")
