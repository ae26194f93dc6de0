from __future__ import annotations

import asyncio

import pytest

from service.versions.in_flight import InFlightTracker, Latency
from tests.support.waiting import turns


async def test_it_is_drained_once_the_last_one_has_left() -> None:
    tracker = InFlightTracker()
    await tracker.drained()
    with tracker:
        waiting = asyncio.ensure_future(tracker.drained())
        with tracker:  # a generation inside a request
            assert tracker.count == 2
        await turns()
        assert not waiting.done()
    await waiting
    assert tracker.count == 0


async def test_one_that_fails_leaves_too() -> None:
    tracker = InFlightTracker()
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError
    await tracker.drained()


async def test_one_that_comes_back_before_the_waiter_woke_is_waited_for() -> None:
    tracker = InFlightTracker()
    tracker.__enter__()
    waiting = asyncio.ensure_future(tracker.drained())
    await turns()
    tracker.__exit__(None, None, None)
    tracker.__enter__()
    await turns()
    assert not waiting.done()
    tracker.__exit__(None, None, None)
    await waiting


def test_without_answers_there_is_no_latency() -> None:
    assert InFlightTracker().latency() is None


def test_latency_is_of_the_last_answers() -> None:
    tracker = InFlightTracker(window=101)
    for _ in range(1000):
        tracker.observed(60.0)
    for i in range(101):
        tracker.observed(i / 1000)
    assert tracker.latency() == Latency(p50=0.050, p95=0.095)
    assert tracker.requests == 1101


def test_one_answer_is_all_percentiles() -> None:
    tracker = InFlightTracker()
    tracker.observed(0.25)
    assert tracker.latency() == Latency(0.25, 0.25)
