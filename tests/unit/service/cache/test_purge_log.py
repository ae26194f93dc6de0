"""What was begun before a purge is not kept after it."""

from __future__ import annotations

from redis.exceptions import ConnectionError as RedisConnectionError

from service.cache.keys import cache_key, prefix_of, version_prefix
from service.cache.purge_log import PurgeLog
from service.cache.tiered import TieredCache
from tests.support.tiers import Tiers, generation

DIGEST = "ab" * 32
OTHER = "cd" * 32
KEY = cache_key(DIGEST, "a")


async def seen(cache: TieredCache, key: str) -> str | None:
    """The tier that has ``key``."""
    hit = await cache.get(key, budget_s=60)
    return None if hit is None else hit.tier


def test_only_what_is_purged_later_counts() -> None:
    purge_log = PurgeLog()
    purge_log.note(["a"])
    epoch = purge_log.epoch
    purge_log.note(["b"])
    assert purge_log.since(epoch, "b")
    assert purge_log.since(epoch, "x", "b")
    assert not purge_log.since(epoch, "a", "x")
    assert not purge_log.since(purge_log.epoch, "a", "b")
    purge_log.note(["a"])
    assert purge_log.since(epoch, "a")


def test_what_was_begun_before_a_purge_that_is_no_longer_known_counts_as_purged() -> None:
    purge_log = PurgeLog(remembered=2)
    before = purge_log.epoch
    for key in "abc":
        purge_log.note([key])
    assert purge_log.since(before, "never purged")
    assert not purge_log.since(before + 1, "never purged")
    assert purge_log.since(before + 1, "b")


def test_the_prefix_of_a_key_is_that_of_its_version() -> None:
    assert prefix_of(KEY) == version_prefix(DIGEST)


async def test_a_generation_begun_before_a_purge_of_its_query_is_not_kept() -> None:
    tiers = Tiers()
    epoch = tiers.cache.epoch
    await tiers.cache.purge_query([DIGEST], "a")
    for key in (KEY, cache_key(DIGEST, "b"), cache_key(OTHER, "a")):
        await tiers.cache.put(key, generation("x"), since=epoch)
    assert KEY not in tiers.redis.store
    assert await seen(tiers.cache, KEY) is None
    assert await seen(tiers.cache, cache_key(DIGEST, "b")) == "memory"
    assert await seen(tiers.cache, cache_key(OTHER, "a")) == "memory"
    await tiers.cache.put(KEY, generation("y"), since=tiers.cache.epoch)
    assert await seen(tiers.cache, KEY) == "memory"


async def test_a_generation_begun_before_a_purge_of_its_version_is_not_kept() -> None:
    tiers = Tiers()
    epoch = tiers.cache.epoch
    tiers.cache.forget_version(DIGEST)  # as a replica does on being told
    for key in (KEY, cache_key(OTHER, "a")):
        await tiers.cache.put(key, generation("x"), since=epoch)
    assert set(tiers.redis.store) == {cache_key(OTHER, "a")}
    assert await seen(tiers.cache, KEY) is None


async def test_a_replica_that_has_been_told_does_not_keep_what_it_had_begun() -> None:
    tiers = Tiers()
    epoch = tiers.cache.epoch
    tiers.cache.forget_keys([KEY])
    await tiers.cache.put(KEY, generation("x"), since=epoch)
    assert tiers.redis.store == {}


async def test_a_write_that_comes_after_the_purge_that_it_passed_is_taken_back() -> None:
    tiers = Tiers()

    async def purge() -> None:
        tiers.redis.before = None
        await tiers.cache.purge_query([DIGEST], "a")

    tiers.redis.before = purge
    await tiers.cache.put(KEY, generation("x"), since=tiers.cache.epoch)
    assert tiers.redis.sets, "it was written"
    assert tiers.redis.store == {}
    assert await seen(tiers.cache, KEY) is None


async def test_that_redis_cannot_take_it_back_breaks_nothing() -> None:
    tiers = Tiers()
    epoch = tiers.cache.epoch

    async def purge() -> None:
        tiers.redis.before = None
        tiers.cache.forget_keys([KEY])

        def broken(*, transaction: bool) -> None:
            raise RedisConnectionError("down")

        tiers.redis.pipeline = broken  # type: ignore[assignment]

    tiers.redis.before = purge
    await tiers.cache.put(KEY, generation("x"), since=epoch)
    assert tiers.count("redis", "purge", "error") == 1
