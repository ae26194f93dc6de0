"""Counters and histograms of our own read like the library's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.telemetry.fast_metrics import FastCounters, FastHistograms

BOUNDS = (0.001, 0.01, 1.0, 2.5)


@given(st.lists(st.sampled_from([0.0, *BOUNDS, 3.0]) | st.floats(0, 5), max_size=30))
def test_a_histogram_reads_like_the_librarys(values: list[float]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    library = Histogram("h", "Help", ["a", "b"], registry=theirs, buckets=BOUNDS).labels("x", "y")
    own = FastHistograms("h", "Help", ["a", "b"], BOUNDS, registry=ours).labels("x", "y")
    for value in values:
        library.observe(value)
        own.observe(value)
    assert without_created(ours) == without_created(theirs)


@given(st.lists(st.sampled_from(["x", "y", 'q"\n']), max_size=20))
def test_a_counter_reads_like_the_librarys(values: list[str]) -> None:
    theirs, ours = CollectorRegistry(), CollectorRegistry()
    library = Counter("c", "Help", ["a"], registry=theirs)
    own = FastCounters("c", "Help", ["a"], registry=ours)
    for value in values:
        library.labels(value).inc()
        own.labels(value).inc()
    assert without_created(ours) == without_created(theirs)


def test_a_child_is_made_once_and_shown_from_then_on() -> None:
    registry = CollectorRegistry()
    counts = FastCounters("c", "Help", ["a"], registry=registry)
    assert counts.labels("x") is counts.labels("x")
    assert registry.get_sample_value("c_total", {"a": "x"}) == 0.0
    with pytest.raises(ValueError, match="labels a"):
        counts.labels("x", "y")


def test_a_name_is_taken_once() -> None:
    registry = CollectorRegistry()
    FastCounters("c", "Help", ["a"], registry=registry)
    with pytest.raises(ValueError, match="Duplicated"):
        FastCounters("c", "Help", ["a"], registry=registry)


def without_created(registry: CollectorRegistry) -> list[str]:
    return [
        line for line in generate_latest(registry).decode().splitlines() if "_created" not in line
    ]
