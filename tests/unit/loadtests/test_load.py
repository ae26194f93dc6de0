from __future__ import annotations

import asyncio

import pytest

from loadtests.arrivals import Arrival
from loadtests.exchange import Failure, NoReply, Reply, Request
from loadtests.load import Mix, OpenLoop
from tests.support.waiting import until
from tests.unit.loadtests.outcomes import Scripted, Time, request

PLAN = [Arrival(0.5, "a"), Arrival(1.0, "a"), Arrival(1.25, "b")]


def loop_of(transport: object, time: Time, **options: object) -> OpenLoop:
    return OpenLoop(PLAN, request, transport, clock=time, sleep=time.sleep, **options)  # type: ignore[arg-type]  # doubles and bounds of a test


async def test_each_request_is_sent_when_it_is_due() -> None:
    transport = Scripted(lambda _: Reply(200, "none", "redis", {"cache": 0.002}))
    outcomes = await loop_of(transport, Time()).run()
    assert [o.sent for o in outcomes] == [0.5, 1.0, 1.25]
    assert [o.due for o in outcomes] == [0.5, 1.0, 1.25]
    assert [o.phase for o in outcomes] == ["a", "a", "b"]
    for one in outcomes:
        assert (one.code, one.status, one.source) == (200, "none", "redis")
        assert one.stages == {"cache": 0.002}


async def test_waiting_for_one_answer_does_not_hold_up_the_next() -> None:
    answer = asyncio.Event()

    class Held:
        sent = 0

        async def send(self, _: Request) -> Reply:
            self.sent += 1
            await answer.wait()
            return Reply(200, "ok")

    held = Held()
    running = asyncio.create_task(loop_of(held, Time()).run())
    await until(lambda: held.sent == 3)
    assert not running.done()
    answer.set()
    assert len(await running) == 3


async def test_a_held_up_generator_shows_in_the_latencies() -> None:
    """No coordinated omission: what was due while nothing could be sent was waiting."""
    time = Time()

    def stall(_: Request) -> Reply:
        if len(transport.sent) == 1:
            time.now += 10.0
        return Reply(200, "ok")

    transport = Scripted(stall)
    outcomes = await loop_of(transport, time).run()
    assert all(o.latency > 9.0 for o in outcomes)
    assert not any(o.good() for o in outcomes)
    assert [o.lag > 9.0 for o in outcomes] == [False, True, True]


async def test_a_failure_is_an_outcome() -> None:
    def fail(_: Request) -> Reply:
        raise NoReply(Failure.RESET)

    outcomes = await loop_of(Scripted(fail), Time()).run()
    assert [o.failure for o in outcomes] == [Failure.RESET] * 3
    assert [o.code for o in outcomes] == [0] * 3


async def test_a_caller_that_hangs_up_cancels_its_request() -> None:
    never, time = Never(), Time()
    loop = OpenLoop(PLAN, lambda: request(leave_after_s=0.01), never, clock=time, sleep=time.sleep)
    outcomes = await loop.run()
    assert [o.failure for o in outcomes] == [Failure.LEFT] * 3
    assert never.cancelled == 3


@pytest.mark.parametrize(("most", "unsent"), [(1, 2), (3, 0)])
async def test_unanswered_requests_end_and_those_beyond_the_bound_are_unsent(
    most: int, unsent: int
) -> None:
    outcomes = await loop_of(Never(), Time(), patience_s=0.01, max_open=most).run()
    failures = [o.failure for o in outcomes]
    assert failures.count(Failure.UNSENT) == unsent
    assert failures.count(Failure.UNANSWERED) == 3 - unsent


async def test_stopped_it_sends_nothing_more_and_keeps_what_was_sent() -> None:
    def stop(_: Request) -> Reply:
        loop.stop()
        return Reply(200, "ok")

    transport = Scripted(stop)
    loop = loop_of(transport, Time())
    outcomes = await loop.run()
    assert 1 <= len(outcomes) == len(transport.sent) < 3


def test_a_mix_draws_by_weight_and_is_the_same_for_the_same_seed() -> None:
    def drawn(seed: int) -> list[str]:
        mix = Mix([(3.0, lambda: request(kind="a")), (1.0, lambda: request(kind="b"))], seed=seed)
        assert mix.rate == 4.0
        return [mix().kind for _ in range(4000)]

    assert drawn(1) == drawn(1)
    assert drawn(1).count("a") == pytest.approx(3000, rel=0.1)


class Never:
    """Never answers."""

    def __init__(self) -> None:
        self.cancelled = 0

    async def send(self, _: Request) -> Reply:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        raise AssertionError
