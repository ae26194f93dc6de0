"""Cache keys and values."""

from __future__ import annotations

import json
import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.cache.codec import CorruptValue, decode, encode
from service.cache.keys import cache_key, version_prefix
from service.cache.lifetimes import Lifetimes
from service.filtering.candidates import Scored
from service.filtering.generation import Generation
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import json_values, texts
from tests.support.versions import make_manifest

LIFETIMES = Lifetimes(hard_s=100, soft_s=50, empty_s=10, jitter=0.5, clock=lambda: 1e9)
WRITTEN = encode(
    LIFETIMES.entry("k", Generation((Scored("steel stake", 0.98), Scored("cut \u202e", None))))
)

digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@fuzzed
@given(st.lists(st.tuples(digests, texts), max_size=12, unique=True))
def test_versions_and_queries_never_share_a_key(pairs: list[tuple[str, str]]) -> None:
    keys = [cache_key(digest, query) for digest, query in pairs]
    assert len(set(keys)) == len({(digest[:32], query) for digest, query in pairs})
    assert keys == [cache_key(digest, query) for digest, query in pairs]
    for (digest, _), key in zip(pairs, keys, strict=True):
        assert key.startswith(version_prefix(digest))
        # Printable, no glob and no hash tag: purges match prefixes, clusters spread the keys.
        assert re.fullmatch(r"requery:\d+:[0-9a-f]{32}:[0-9a-f]{32}", key)


def test_keys_stay_what_they_are() -> None:
    """Entries of the release before are found by this one; a new schema makes new keys."""
    assert cache_key("ab" * 32, "steel stake") == (
        "requery:4:abababababababababababababababab:8c8490c11c8b2d7680586680ef3fe647"
    )


@fuzzed
@given(
    st.lists(st.floats(0, 2), min_size=1, max_size=4),
    st.lists(st.floats(0, 2), min_size=1, max_size=4),
    st.integers(2, 128),
)
def test_another_way_to_decode_is_another_key(
    left: list[float], right: list[float], tokens: int
) -> None:
    one = make_manifest(decoding={"temperatures": left})
    other = make_manifest(decoding={"temperatures": right, "max_tokens": tokens})
    same = left == right and tokens == one.decoding.max_tokens
    assert (cache_key(one.digest, "a") == cache_key(other.digest, "a")) == same


def _read(raw: Any) -> Generation | None:
    try:
        entry = decode(raw, "k", LIFETIMES)
    except CorruptValue:
        return None
    assert entry.stored_at <= LIFETIMES.entry("k", entry.generation).stored_at
    for candidate in entry.generation.candidates:
        assert candidate.relevance is None or 0 <= candidate.relevance <= 1
    return entry.generation


@fuzzed
@given(st.data())
def test_a_damaged_value_is_refused_or_still_a_value(data: st.DataObject) -> None:
    damaged = bytearray(WRITTEN)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged)))
        length = data.draw(st.integers(0, 4))
        damaged[at : at + length] = data.draw(st.binary(max_size=4) | st.sampled_from([b",", b"]"]))
    _read(bytes(damaged))


@fuzzed
@given(st.lists(json_values, max_size=5), st.booleans(), st.sampled_from([0, 1, 2]))
def test_any_json_is_refused_or_a_value(values: list[Any], ours: bool, rules: int) -> None:
    head = [3, 5, 0, rules] if ours else []
    _read(json.dumps([*head, *values]).encode())


@fuzzed
@given(st.none() | st.integers() | st.text() | st.lists(st.binary()) | st.binary(max_size=300))
def test_whatever_redis_answers(raw: object) -> None:
    assert _read(raw) is None
