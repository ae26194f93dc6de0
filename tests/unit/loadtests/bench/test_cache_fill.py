from __future__ import annotations

from loadtests.bench.cache_fill import entries, measure


def test_entries_are_what_the_service_keeps() -> None:
    found = dict(entries(50))
    assert len(found) == 50
    for entry in found.values():
        assert len(entry.generation.candidates) == 4
        assert len(entry.generation.known_verdicts or ()) == 4


def test_a_filled_cache_is_measured() -> None:
    told = measure(300, 40)
    assert told["entries"] == 300
    # Our own estimate is what bounds the cache: it is made of the same entries.
    assert 1000 < told["estimated_bytes_per_entry"] < 20_000
    assert told["get_us"]["p99"] >= told["get_us"]["p50"] > 0
    assert told["put_us"]["p99"] >= told["put_us"]["p50"] > 0
