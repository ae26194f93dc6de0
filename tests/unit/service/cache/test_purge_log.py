"""What was begun before a purge is not kept after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
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


async def purge_query(cache: TieredCache) -> None:
    await cache.purge_query([DIGEST], "a")


async def hear_of_a_version(cache: TieredCache) -> None:
    cache.forget_version(DIGEST)


async def hear_of_keys(cache: TieredCache) -> None:
    cache.forget_keys([KEY])


@pytest.mark.parametrize("purge", [purge_query, hear_of_a_version, hear_of_keys])
async def test_a_generation_begun_before_a_purge_is_not_kept_and_others_are(
    purge: Callable[[TieredCache], Awaitable[None]],
) -> None:
    tiers = Tiers()
    epoch = tiers.cache.epoch
    await purge(tiers.cache)
    others = {cache_key(OTHER, "a")}
    if purge is not hear_of_a_version:
        others.add(cache_key(DIGEST, "b"))
    for key in (KEY, *others):
        await tiers.cache.put(key, generation("x"), since=epoch)
    assert set(tiers.redis.store) == others
    assert await seen(tiers.cache, KEY) is None
    assert {await seen(tiers.cache, key) for key in others} == {"memory"}
    await tiers.cache.put(KEY, generation("y"), since=tiers.cache.epoch)
    assert await seen(tiers.cache, KEY) == "memory"


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
