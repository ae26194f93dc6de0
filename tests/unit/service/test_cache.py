from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text import normalise
from service.cache.codec import CorruptValue, decode, encode
from service.cache.keys import cache_key
from service.cache.memory import MemoryCache, estimated_bytes
from service.cache.tiered import TieredCache
from service.candidates import Generation, Scored
from service.filters import CandidateFilter
from service.metrics import Metrics
from tests.support.versions import make_manifest

DIGEST = "ab" * 32
generations = st.builds(
    lambda rows: Generation(tuple(rows)),
    st.lists(st.builds(Scored, st.text(max_size=30), st.none() | st.floats(0, 1)), max_size=6),
)


def generation(*texts: str) -> Generation:
    return Generation(tuple(Scored(text, 0.9) for text in texts))


def memory(max_bytes: int = 1 << 20, ttl_s: float = 60.0) -> tuple[MemoryCache, list[float]]:
    clock = [0.0]
    cache = MemoryCache(
        max_bytes=max_bytes,
        ttl_s=ttl_s,
        metrics=Metrics(release="test").cache,
        clock=lambda: clock[0],
    )
    return cache, clock


@given(generations)
def test_what_is_written_is_read_to_the_last_bit(value: Generation) -> None:
    assert decode(encode(value)) == value


@given(st.binary(max_size=60) | st.none() | st.integers())
def test_nonsense_is_refused_not_believed(raw: object) -> None:
    with pytest.raises(CorruptValue):
        decode(raw)


@pytest.mark.parametrize(
    "raw",
    [b"[1]", b"[2,[]]", b"[1,[[1,0.5]]]", b'[1,[["a",1.5]]]', b'[1,[["a","x"]]]', b'[1,[["a"]]]',
     b"[1,5]", b"{}", b"[1,[" + b'["a",0.5],' * 9000 + b'["a",0.5]]]'],
)  # fmt: skip
def test_values_of_another_shape_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode(raw)


@given(st.text(max_size=60), st.text(max_size=60))
def test_keys_are_equal_just_for_equal_normal_forms(left: str, right: str) -> None:
    left, right = (normalise(t, fold_case=True) for t in (left, right))
    assert (cache_key(DIGEST, left) == cache_key(DIGEST, right)) == (left == right)


@given(st.text(min_size=4, max_size=60))
def test_keys_are_short_plain_and_hide_the_query(query: str) -> None:
    key = cache_key(DIGEST, query)
    assert key.isascii()
    assert len(key) == 75
    assert query not in key


def test_whatever_changes_answers_changes_the_key() -> None:
    manifests = [
        make_manifest(),
        make_manifest(decoding={"temperatures": [0.0, 0.8, 0.8, 0.8], "top_p": 0.9}),
        make_manifest(decoding={"temperatures": [0.0]}),
        make_manifest(filter={"min_relevance": 0.7}),
    ]
    assert len({cache_key(m.digest, "steel stake") for m in manifests}) == len(manifests)
    assert cache_key(make_manifest("renamed").digest, "a") == cache_key(manifests[0].digest, "a")


def test_the_least_recently_used_makes_room() -> None:
    size = estimated_bytes("a", generation("x"))
    cache, _ = memory(max_bytes=2 * size)
    cache.put("a", generation("x"))
    cache.put("b", generation("y"))
    assert cache.get("a") == generation("x")
    cache.put("c", generation("z"))
    assert cache.get("b") is None
    assert cache.get("a") is not None
    assert cache.size_bytes == 2 * size


def test_an_entry_expires_and_gives_its_bytes_back() -> None:
    cache, clock = memory(ttl_s=10)
    cache.put("a", generation("x"))
    clock[0] = 9.9
    assert cache.get("a") is not None
    clock[0] = 10.0
    assert cache.get("a") is None
    assert cache.size_bytes == 0


def test_an_entry_larger_than_the_cache_is_not_kept() -> None:
    cache, _ = memory(max_bytes=0)
    cache.put("a", generation("x"))
    assert cache.get("a") is None
    assert cache.size_bytes == 0


@given(st.lists(st.tuples(st.sampled_from("abcdef"), generations), max_size=30))
def test_bytes_are_bounded_and_add_up(puts: list[tuple[str, Generation]]) -> None:
    cache, _ = memory(max_bytes=6000)
    last: dict[str, Generation] = {}
    for key, value in puts:
        cache.put(key, value)
        last[key] = value
        assert cache.size_bytes <= 6000
    kept = {k: v for k in last if (v := cache.peek(k)) is not None}
    assert all(last[k] == v for k, v in kept.items())
    assert cache.size_bytes == sum(estimated_bytes(k, v) for k, v in kept.items())


@pytest.mark.parametrize(
    "text",
    ["pipe", "steel stake in galvanized", "a b c d e f g h i j k l m n o p q r", "木の杭" * 9],
)
def test_the_estimate_covers_what_an_entry_really_costs(text: str) -> None:
    texts = [f"{text} {i}" for i in range(8)]
    value = generation(*texts)
    filter_ = CandidateFilter(make_manifest().filter, fold_case=True)
    value.judged = filter_.judge("a query", value.candidates)
    key = cache_key(DIGEST, "a query")
    assert _deep_size(value, set()) + sys.getsizeof(key) <= estimated_bytes(key, value)


async def test_tiers_without_redis_are_memory_alone() -> None:
    tiers = TieredCache(memory()[0])
    assert await tiers.get("a", budget_s=1) is None
    await tiers.put("a", generation("x"))
    hit = await tiers.get("a", budget_s=0)
    assert hit is not None
    assert (hit.tier, hit.generation) == ("memory", generation("x"))
    await tiers.close()


def _deep_size(thing: object, seen: set[int]) -> int:
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, Generation):
        size += _deep_size(thing.candidates, seen) + _deep_size(thing.judged, seen)
    elif isinstance(thing, tuple | frozenset):
        size += sum(_deep_size(item, seen) for item in thing)
    return size
