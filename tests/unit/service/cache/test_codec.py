from __future__ import annotations

import sys
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.cache import codec
from service.cache.codec import CorruptValue, decode, encode
from service.cache.keys import cache_key
from service.cache.lifetimes import Lifetimes
from service.cache.memory_tier import MemoryTier, estimated_bytes
from service.cache.metrics import CacheMetrics
from service.filtering.candidates import Judged, Scored
from service.filtering.filters import RULES, CandidateFilter
from service.filtering.generation import Generation
from tests.support.versions import make_manifest

DIGEST = "ab" * 32
scored = st.builds(Scored, st.text(max_size=30), st.none() | st.floats(0, 1), st.integers(1, 9))
generations = st.builds(
    lambda rows: Generation(tuple(rows)),
    st.lists(scored, max_size=6),
)


def generation(*texts: str) -> Generation:
    return Generation(tuple(Scored(text, 0.9) for text in texts))


class Memory:
    """A memory tier, by the second."""

    def __init__(self, max_bytes: int = 1 << 20, ttl_s: float = 60.0) -> None:
        self.now = 1000.0
        self.lifetimes = Lifetimes(hard_s=ttl_s, clock=lambda: self.now)
        self.cache = MemoryTier(
            max_bytes=max_bytes, lifetimes=self.lifetimes, metrics=CacheMetrics(CollectorRegistry())
        )

    def put(self, key: str, value: Generation) -> None:
        self.cache.put(key, self.lifetimes.entry(key, value))

    def get(self, key: str) -> Generation | None:
        entry = self.cache.get(key)
        return None if entry is None else entry.generation


LIFETIMES = Lifetimes(hard_s=100, soft_s=50, empty_s=10, jitter=0.5, clock=lambda: 1e9)


@given(generations, st.booleans(), st.integers(0, 10**12))
def test_what_is_written_is_read_to_the_last_bit(
    value: Generation, empty: bool, stored_ms: int
) -> None:
    entry = LIFETIMES.entry("k", value, empty=empty, stored_at=stored_ms / 1000)
    again = decode(encode(entry), "k", LIFETIMES)
    assert again.generation == value
    assert again.empty is empty
    assert abs(again.stored_at - entry.stored_at) < 0.002
    assert abs(again.gone_at - entry.gone_at) < 0.002


@given(
    st.lists(scored, max_size=6),
    st.text(min_size=1, max_size=30),
)
def test_a_judged_entry_is_answered_from_as_before(rows: list[Scored], query: str) -> None:
    chooser = CandidateFilter(make_manifest().filter, fold_case=True)
    value = Generation(tuple(rows), chooser.judge(query, rows))
    again = decode(encode(LIFETIMES.entry("k", value)), "k", LIFETIMES).generation

    def chosen(verdicts: Sequence[Judged] | None, most: int) -> list[list[Judged]]:
        assert verdicts is not None
        both = chooser.select(verdicts, max_rewrites=most)
        return [[one._replace(words=None) for one in part] for part in both]

    for most in (1, 2, 32):
        assert chosen(again.known_verdicts, most) == chosen(value.known_verdicts, most)


def test_verdicts_by_other_rules_are_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    value = Generation((Scored("steel stake", 0.9, 4), Scored("Steel stake", 0.8)))
    value.verdicts("steele stake", CandidateFilter(make_manifest().filter, fold_case=True))
    raw = encode(LIFETIMES.entry("k", value))
    assert decode(raw, "k", LIFETIMES).generation.known_verdicts is not None
    monkeypatch.setattr(codec, "RULES", RULES + 1)
    later = decode(raw, "k", LIFETIMES).generation
    assert [(one.relevance, one.votes) for one in later.candidates] == [(0.9, 4), (0.8, 1)]
    assert later.known_verdicts is None


def test_a_value_costs_little_more_than_its_texts() -> None:
    entry = LIFETIMES.entry("k", Generation((Scored("steel stake", 0.98), Scored("cut", None))))
    assert encode(entry) == (
        b'[4,1000000000000,0,0,"steel stake",0.98,1,null,0,"cut",null,1,null,0]'
    )


@pytest.mark.parametrize(
    "raw",
    [b"[4]", b"[4,5]", b"[4,5,0]", b"[3,5,0,0]", b"[5,5,0,0]", b"[4,-1,0,0]", b"[4,5.5,0,0]",
     b"[4,true,0,0]", b'[4,"5",0,0]', b"[4,5,2,0]", b"[4,5,null,0]", b"[4,5,0,null]",
     b'[4,5,0,0,"a"]', b'[4,5,0,0,"a",1.5,1,null,0]', b'[4,5,0,0,"a","x",1,null,0]',
     b'[4,5,0,0,"a",1,1,null,0]', b"[4,5,0,0,1,0.5,1,null,0]", b'[4,5,0,0,"a",0.5,1,null,0,"b"]',
     b'[4,5,0,0,"a",0.5,0,null,0]', b'[4,5,0,0,"a",0.5,true,null,0]',
     b'[4,5,0,RULES,"a",0.5,1,null,0]', b'[4,5,0,RULES,"a",0.5,1,"good",1]',
     b'[4,5,0,RULES,"a",0.5,1,"echo",0]', b'[4,5,0,RULES,"a",0.5,1,1,1]',
     b'[4,5,0,RULES,"a",null,1,"accepted",1]', b'[4,5,0,RULES,"a",0.5,1,"echo",true]',
     b"4", b"{}", b"[4,5,0,0" + b',"a",0.5,1,null,0' * 9000 + b"]"],
)  # fmt: skip
def test_values_of_another_shape_are_refused(raw: bytes) -> None:
    with pytest.raises(CorruptValue):
        decode(raw.replace(b"RULES", b"%d" % RULES), "k", LIFETIMES)


def test_a_time_ahead_of_our_clock_is_now_so_that_no_entry_lives_for_ever() -> None:
    entry = decode(b"[4,99999999999999999,0,0]", "k", LIFETIMES)
    assert entry.stored_at == 1e9
    assert entry.gone_at <= 1e9 + 100


def test_whatever_changes_answers_changes_the_key() -> None:
    manifests = [
        make_manifest(),
        make_manifest(decoding={"temperatures": [0.0, 0.8, 0.8, 0.8], "top_p": 0.9}),
        make_manifest(decoding={"temperatures": [0.0]}),
        make_manifest(filter={"min_relevance": 0.7}),
    ]
    assert len({cache_key(m.digest, "steel stake") for m in manifests}) == len(manifests)
    renamed = manifests[0].model_copy(update={"name": "renamed"})
    assert cache_key(renamed.digest, "a") == cache_key(manifests[0].digest, "a")


def test_the_least_recently_used_makes_room() -> None:
    size = estimated_bytes("a", generation("x"))
    memory = Memory(max_bytes=2 * size)
    memory.put("a", generation("x"))
    memory.put("b", generation("y"))
    assert memory.get("a") == generation("x")
    memory.put("c", generation("z"))
    assert memory.get("b") is None
    assert memory.get("a") is not None
    assert memory.cache.size_bytes == 2 * size


def test_an_entry_expires_and_gives_its_bytes_back() -> None:
    memory = Memory(ttl_s=10)
    memory.put("a", generation("x"))
    memory.now += 9.9
    assert memory.get("a") is not None
    memory.now += 0.1
    assert memory.get("a") is None
    assert memory.cache.size_bytes == 0


def test_an_entry_larger_than_the_cache_is_not_kept_nor_what_it_would_have_replaced() -> None:
    size = estimated_bytes("a", generation("x"))
    memory = Memory(max_bytes=size)
    memory.put("a", generation("x"))
    memory.put("a", generation("too long"))
    assert memory.get("a") is None
    assert memory.cache.size_bytes == 0


def test_what_is_forgotten_is_counted_and_gives_its_bytes_back() -> None:
    memory = Memory()
    for key in ("a:1", "a:2", "b:1", "b:2", "b:3"):
        memory.put(key, generation("x"))
    assert memory.cache.forget(["a:1", "none", "a:1"]) == 1
    assert memory.cache.forget_prefix("b:") == 3
    assert memory.get("a:2") is not None
    assert memory.cache.size_bytes == estimated_bytes("a:2", generation("x"))


@given(st.lists(st.tuples(st.sampled_from("abcdef"), generations), max_size=30))
def test_bytes_are_bounded_and_add_up(puts: list[tuple[str, Generation]]) -> None:
    memory = Memory(max_bytes=6000)
    last: dict[str, Generation] = {}
    for key, value in puts:
        memory.put(key, value)
        last[key] = value
        assert memory.cache.size_bytes <= 6000
    kept = {k: v for k in last if (v := memory.get(k)) is not None}
    assert all(last[k] == v for k, v in kept.items())
    assert memory.cache.size_bytes == sum(estimated_bytes(k, v) for k, v in kept.items())


@pytest.mark.parametrize(
    "text",
    ["pipe", "steel stake in galvanized", "a b c d e f g h i j k l m n o p q r", "木の杭" * 9],
)
def test_the_estimate_covers_what_an_entry_really_costs(text: str) -> None:
    texts = [f"{text} {i}" for i in range(8)]
    value = generation(*texts)
    value.verdicts("a query", CandidateFilter(make_manifest().filter, fold_case=True))
    key = cache_key(DIGEST, "a query")
    entry = LIFETIMES.entry(key, value)
    assert _deep_size(entry, set()) + sys.getsizeof(key) <= estimated_bytes(key, value)


def _deep_size(thing: object, seen: set[int]) -> int:
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    size = sys.getsizeof(thing)
    if isinstance(thing, Generation):
        size += _deep_size(thing.candidates, seen) + _deep_size(thing.known_verdicts, seen)
    elif isinstance(thing, tuple | frozenset):
        size += sum(_deep_size(item, seen) for item in thing)
    return size
