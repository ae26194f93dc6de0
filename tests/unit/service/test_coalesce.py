from __future__ import annotations

import asyncio

from service.coalesce import Coalescer
from service.engine.protocol import Candidate
from tests.support.engine import ScriptedEngine

FOREVER = 60.0


class Kept:
    """A ``finish`` that remembers."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.kept: list[tuple[Candidate, ...]] = []
        self._fault = fault

    async def __call__(self, candidates: tuple[Candidate, ...]) -> None:
        self.kept.append(candidates)
        if self._fault is not None:
            raise self._fault


async def test_one_flight_for_one_key_and_another_for_another() -> None:
    engine, keep, flights = ScriptedEngine(), Kept(), Coalescer(bound_s=FOREVER)
    first, leads = flights.join("a", lambda: engine.generate("a"), keep)
    again, leads_again = flights.join("a", lambda: engine.generate("a"), keep)
    other, leads_other = flights.join("b", lambda: engine.generate("b"), keep)
    assert first is again is not other
    assert (leads, leads_again, leads_other) == (True, False, True)
    await asyncio.gather(first.wait(FOREVER), again.wait(FOREVER), other.wait(FOREVER))
    assert first.complete
    assert len(first.candidates) == 2
    await flights.settle()
    assert sorted(engine.generated) == ["a", "b"]
    assert len(keep.kept) == 2
    assert len(flights) == 0


async def test_one_who_gives_up_or_is_cancelled_leaves_the_flight_alone() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), Coalescer(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    waiting = asyncio.create_task(flight.wait(FOREVER))
    await engine.reached_hold.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await flight.wait(0.001)
    assert not flight.done
    assert [c.text for c in flight.candidates] == ["steel stake"]
    engine.release()
    await flight.wait(FOREVER)
    assert flight.complete
    await flights.settle()
    assert [len(c) for c in keep.kept] == [2]


async def test_a_flight_over_its_bound_ends_is_not_kept_and_lets_the_engine_go() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), Coalescer(bound_s=0.01)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    await flight.wait(FOREVER)
    assert isinstance(flight.failure, TimeoutError)
    assert len(flight.candidates) == 1
    await flights.settle()
    assert keep.kept == []
    assert engine.closed_streams == 1


async def test_a_fault_ends_the_flight_and_the_next_one_starts_afresh() -> None:
    fault = RuntimeError("broken")
    engine, keep, flights = ScriptedEngine(fault=fault), Kept(), Coalescer(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    await flight.wait(FOREVER)
    assert flight.failure is fault
    await flights.settle()
    engine.fault = None
    again, leads = flights.join("a", lambda: engine.generate("a"), keep)
    assert leads
    await again.wait(FOREVER)
    assert again.complete


async def test_a_result_that_cannot_be_kept_is_still_given() -> None:
    engine, flights = ScriptedEngine(), Coalescer(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), Kept(OSError("full")))
    await flight.wait(FOREVER)
    assert flight.complete
    await flights.settle()
    assert len(flights) == 0


async def test_closing_stops_flights_and_frees_those_who_wait() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), Coalescer(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    await engine.reached_hold.wait()
    await flights.close()
    await flight.wait(FOREVER)
    assert not flight.complete
    assert engine.closed_streams == 1
    assert keep.kept == []
