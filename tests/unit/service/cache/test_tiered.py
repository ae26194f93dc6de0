"""The two tiers together, and the shared one alone, on a client that does as it is told."""

from __future__ import annotations

import math

import pytest
from prometheus_client import CollectorRegistry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from service.cache import codec
from service.cache.keys import cache_key
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.memory_tier import MemoryTier
from service.cache.metrics import CacheMetrics
from service.cache.occupancy import Occupancy, Reading, reading
from service.cache.protocol import Purged
from service.cache.tiered import TieredCache
from service.errors import CacheUnavailable
from tests.support.tiers import FakePipeline, Tiers, generation, seen

DIGEST = "ab" * 32


async def test_without_a_shared_tier_memory_is_all_there_is() -> None:
    lifetimes = Lifetimes(hard_s=60)
    memory = MemoryTier(
        max_bytes=1 << 20, lifetimes=lifetimes, metrics=CacheMetrics(CollectorRegistry())
    )
    cache = TieredCache(memory, lifetimes=lifetimes)
    assert await cache.get("a", budget_s=1) is None
    await cache.put("a", generation("x"))
    hit = await cache.get("a", budget_s=0)
    assert hit == (generation("x"), "memory", False)
    assert await cache.purge_query([DIGEST], "none") == Purged(0, 0)
    await cache.close()


async def test_both_tiers_agree_on_age_however_late_an_entry_is_copied() -> None:
    tiers = Tiers(jitter=0.5)
    await tiers.cache.put("k", generation("x"))
    entry = tiers.lifetimes.entry("k", generation("x"))
    assert tiers.redis.sets == [int((entry.gone_at - 1000) * 1000)]
    other = tiers.replica()
    tiers.now = entry.stale_at + 0.01
    assert await seen(other, "k") == ("redis", "x", True)
    assert await seen(other, "k") == ("memory", "x", True)
    assert await seen(tiers.cache, "k") == ("memory", "x", True)
    tiers.now = entry.gone_at + 0.01
    assert await seen(other, "k") is None
    assert await seen(tiers.replica(), "k") is None
    assert tiers.count("redis", "get", "hit") == 0


async def test_bytes_that_redis_still_has_are_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tiers = Tiers()
    decoded: list[str] = []
    decode = codec.decode

    def counted(raw: object, key: str, lifetimes: Lifetimes) -> Entry:
        decoded.append(key)
        return decode(raw, key, lifetimes)

    monkeypatch.setattr(codec, "decode", counted)
    shared = tiers.shared
    for key in ("k", "other"):
        await shared.put(key, tiers.lifetimes.entry(key, generation(key)))
    first = await shared.get("k", budget_s=60)
    tiers.redis.store["k"] = bytes(bytearray(tiers.redis.store["k"]))  # equal, not the same object
    assert await shared.get("k", budget_s=60) is first
    assert decoded == ["k"]

    tiers.now += 1
    await shared.put("k", tiers.lifetimes.entry("k", generation("anew")))
    again = await shared.get("k", budget_s=60)
    assert again is not None
    assert again.generation == generation("anew")
    tiers.redis.store["k"] = b"nonsense"
    assert await shared.get("k", budget_s=60) is None
    assert decoded == ["k", "k", "k"]

    monkeypatch.setattr("service.cache.redis_tier._RECENT", 1)
    assert await shared.get("other", budget_s=60) is not None
    await shared.put("k", tiers.lifetimes.entry("k", generation("anew")))
    assert await shared.get("k", budget_s=60) is not None
    assert decoded[3:] == ["other", "k"]
    assert len(shared._recent) == 1


async def test_empty_entries_live_shorter_in_both_tiers() -> None:
    tiers = Tiers(empty_s=10.0)
    await tiers.cache.put("k", generation("x"), empty=True)
    assert tiers.redis.sets == [10_000]
    other = tiers.replica()
    tiers.now += 9
    assert await seen(other, "k") == ("redis", "x", False)
    tiers.now += 1
    assert await seen(other, "k") is None
    assert await seen(tiers.cache, "k") is None


async def test_a_stale_entry_gives_way_to_what_another_replica_made_anew() -> None:
    tiers = Tiers()
    other = tiers.replica()
    await tiers.cache.put("k", generation("old"))
    assert await seen(other, "k") == ("redis", "old", False)
    tiers.now += 50
    assert await seen(other, "k") == ("memory", "old", True)
    await tiers.cache.put("k", generation("new"))
    assert await seen(other, "k") == ("redis", "new", False)
    assert await seen(other, "k") == ("memory", "new", False)


async def test_a_stale_entry_is_served_at_once_while_redis_is_down() -> None:
    tiers = Tiers()
    await tiers.cache.put("k", generation("x"))
    tiers.redis.fault = RedisConnectionError("down")
    assert await tiers.shared.ping() is False
    tiers.now += 50
    assert await seen(tiers.cache, "k") == ("memory", "x", True)
    assert tiers.count("redis", "get", "error") == 0


async def test_what_was_generated_during_a_look_up_is_not_generated_again() -> None:
    tiers = Tiers()

    async def generate() -> None:
        tiers.redis.before = None
        await tiers.cache.put("k", generation("x"))

    tiers.redis.before = generate
    assert await seen(tiers.cache, "k") == ("memory", "x", False)


async def test_no_budget_is_no_look_up() -> None:
    tiers = Tiers()
    await tiers.cache.put("k", generation("x"))
    assert await tiers.replica().get("k", budget_s=0) is None


@pytest.mark.parametrize(
    ("fault", "result"),
    [
        (RedisTimeoutError("Timeout reading"), "timeout"),
        (TimeoutError("late"), "timeout"),
        (RedisConnectionError("refused"), "error"),
        (OSError("no route"), "error"),
        (AttributeError("a fault of the client's own"), "error"),
    ],
)
async def test_a_fault_is_a_counted_miss_and_fails_nothing(fault: Exception, result: str) -> None:
    tiers = Tiers()
    tiers.redis.fault = fault
    assert await tiers.cache.get("k", budget_s=60) is None
    await tiers.cache.put("k", generation("x"))
    assert tiers.count("redis", "get", result) == 1
    assert tiers.count("redis", "put", result) == 1
    assert tiers.count("redis", "put", "ok") == 0
    assert await seen(tiers.cache, "k") == ("memory", "x", False)


async def test_a_purged_query_is_gone_from_both_tiers_for_the_versions_named() -> None:
    tiers = Tiers()
    digests = [DIGEST, "cd" * 32, "ef" * 32]
    for digest in digests:
        for query in ("a", "b"):
            await tiers.cache.put(cache_key(digest, query), generation("x"))
    assert await tiers.cache.purge_query(digests[:2], "a") == Purged(2, 2)
    left = [[await seen(tiers.cache, cache_key(d, q)) is not None for d in digests] for q in "ab"]
    assert left == [[False, False, True], [True, True, True]]
    assert await tiers.cache.purge_query(digests[:2], "a") == Purged(0, 0)


async def test_what_a_look_up_brings_back_during_a_purge_does_not_stay() -> None:
    tiers = Tiers()
    key = cache_key(DIGEST, "a")
    await tiers.cache.put(key, generation("x"))
    other = tiers.replica()

    async def purge() -> None:
        tiers.redis.before = None
        await other.purge_query([DIGEST], "a")

    tiers.redis.before = purge
    assert await seen(other, key) == ("redis", "x", False)
    assert await seen(other, key) is None


async def test_a_purge_that_redis_does_not_answer_is_an_error_and_memory_is_purged() -> None:
    tiers = Tiers()
    key = cache_key(DIGEST, "a")
    await tiers.cache.put(key, generation("x"))
    tiers.redis.store.clear()

    def broken(*, transaction: bool) -> FakePipeline:
        raise RedisConnectionError("down")

    tiers.redis.pipeline = broken  # type: ignore[method-assign]
    with pytest.raises(CacheUnavailable):
        await tiers.cache.purge_query([DIGEST], "a")
    assert tiers.count("redis", "purge", "error") == 1
    assert await seen(tiers.cache, key) is None


async def test_other_replicas_forget_on_being_told() -> None:
    tiers = Tiers()
    keys = [cache_key(DIGEST, "a"), cache_key(DIGEST, "b"), cache_key("cd" * 32, "a")]
    for key in keys:
        await tiers.cache.put(key, generation("x"))
    tiers.redis.store.clear()
    assert tiers.cache.forget_query([DIGEST, "ef" * 32], "a") == 1
    assert tiers.cache.forget_version(DIGEST) == 1
    assert [await seen(tiers.cache, key) is None for key in keys] == [True, True, False]


async def test_hit_ratios_and_sizes_are_visible() -> None:
    tiers = Tiers()

    def sample(name: str, **labels: str) -> float | None:
        return tiers.registry.get_sample_value(name, labels)

    assert math.isnan(sample("requery_cache_hit_ratio", tier="memory") or 0)
    assert math.isnan(sample("requery_cache_redis_bytes") or 0)
    await tiers.cache.put("k", generation("x"))
    for key in ("k", "k", "k", "none"):
        await tiers.cache.get(key, budget_s=60)
    assert sample("requery_cache_hit_ratio", tier="memory") == 0.75
    assert sample("requery_cache_hit_ratio", tier="redis") == 0
    assert sample("requery_cache_memory_entries") == 1
    assert (sample("requery_cache_memory_bytes") or 0) > 0


def test_writes_stop_at_the_bound_and_begin_again_well_below_it() -> None:
    occupancy = Occupancy(1000)
    occupancy.wrote(5000)
    assert not occupancy.full, "nothing is known yet"
    occupancy.read(_used(700))
    occupancy.wrote(10)
    assert not occupancy.full
    occupancy.wrote(200)
    assert occupancy.full, "what was written since the reading counts"
    occupancy.read(_used(960))
    assert occupancy.full
    occupancy.read(_used(940))
    assert not occupancy.full


def test_no_bound_is_never_full() -> None:
    occupancy = Occupancy(None)
    occupancy.read(_used(10**15))
    assert not occupancy.full


def test_readings_of_all_masters_add_up() -> None:
    bounded = {"used_memory": 10, "maxmemory": 100, "maxmemory_policy": "allkeys-lru"}
    unbounded = {"used_memory": 5}
    assert reading([(bounded, 3), (bounded, 4)]) == Reading(20, 7, bounded=True, evicts=True)
    assert reading([(bounded, 3), (unbounded, 1)]) == Reading(15, 4, bounded=False, evicts=False)


def _used(size: int) -> Reading:
    return Reading(size, 1, bounded=False, evicts=False)
