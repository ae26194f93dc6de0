from __future__ import annotations

import asyncio

import pytest

from loadtests.bench.peer import PeerFailed, Turn, Work, closed_loop


async def test_each_query_is_asked_once_by_no_more_callers_than_said() -> None:
    asked: list[str] = []
    under_way = most = 0

    async def ask(query: str) -> None:
        nonlocal under_way, most
        asked.append(query)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1

    queries = [str(i) for i in range(20)]
    turn = await closed_loop(ask, queries, 3)
    assert sorted(asked) == sorted(queries)
    assert most == 3
    assert len(turn.latencies) == 20
    assert turn.failures == ()


async def test_what_fails_is_told_and_keeps_nobody_from_going_on() -> None:
    async def ask(query: str) -> None:
        if query == "bad":
            raise PeerFailed("no")

    turn = await closed_loop(ask, ["a", "bad", "b"], 1)
    assert len(turn.latencies) == 2
    assert turn.failures == ("no",)


async def test_latency_counts_from_a_callers_own_question() -> None:
    now = 0.0

    async def ask(_query: str) -> None:
        nonlocal now
        now += 2.0

    turn = await closed_loop(ask, ["a", "b"], 1, clock=lambda: now)
    assert turn.latencies == (2.0, 2.0)
    assert turn.seconds == 4.0
    assert turn.per_s == 0.5


def test_work_adds_up() -> None:
    assert Work(3, 4) + Work(1, 2) - Work(2, 2) == Work(2, 4)


def test_a_turn_without_time_has_no_rate() -> None:
    assert Turn(0.0, ()).per_s == 0.0


def test_a_failed_peer_says_why() -> None:
    with pytest.raises(PeerFailed, match="why"):
        raise PeerFailed("why")
