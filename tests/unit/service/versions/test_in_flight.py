from __future__ import annotations

import asyncio

import pytest

from service.versions.in_flight import InFlightTracker, Latency
from tests.support.waiting import turns


async def test_it_is_drained_once_the_last_one_has_left() -> None:
    traffic = InFlightTracker()
    await traffic.drained()
    with traffic:
        waiting = asyncio.ensure_future(traffic.drained())
        with traffic:  # a generation inside a request
            assert traffic.in_flight == 2
        await turns()
        assert not waiting.done()
    await waiting
    assert traffic.in_flight == 0


async def test_one_that_fails_leaves_too() -> None:
    traffic = InFlightTracker()
    with pytest.raises(ZeroDivisionError), traffic:
        raise ZeroDivisionError
    await traffic.drained()


async def test_one_that_comes_back_before_the_waiter_woke_is_waited_for() -> None:
    traffic = InFlightTracker()
    traffic.__enter__()
    waiting = asyncio.ensure_future(traffic.drained())
    await turns()
    traffic.__exit__(None, None, None)
    traffic.__enter__()
    await turns()
    assert not waiting.done()
    traffic.__exit__(None, None, None)
    await waiting


def test_without_answers_there_is_no_latency() -> None:
    assert InFlightTracker().latency() is None


def test_latency_is_of_the_last_answers() -> None:
    traffic = InFlightTracker(window=101)
    for _ in range(1000):
        traffic.observed(60.0)
    for i in range(101):
        traffic.observed(i / 1000)
    assert traffic.latency() == Latency(p50=0.050, p95=0.095)
    assert traffic.requests == 1101


def test_one_answer_is_all_percentiles() -> None:
    traffic = InFlightTracker()
    traffic.observed(0.25)
    assert traffic.latency() == Latency(0.25, 0.25)
