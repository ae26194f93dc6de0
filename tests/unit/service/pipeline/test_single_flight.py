from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.errors import ClientDisconnected
from service.filtering.generation import Generation
from service.pipeline.single_flight import Flight, SingleFlight
from service.resilience.admission import Kind, Permit
from tests.support.engine import ScriptedEngine

FOREVER = 60.0


class Kept:
    """A ``keep`` that remembers the number of candidates of each generation."""

    def __init__(self, fault: Exception | None = None) -> None:
        self.kept: list[int] = []
        self._fault = fault

    async def __call__(self, generation: Generation) -> None:
        self.kept.append(len(generation.candidates))
        if self._fault is not None:
            raise self._fault


class Spot(Permit):
    """A permit that records what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.turn = None
        self.evict: Callable[[], None] = lambda: None

    def release(self, *, completed: bool) -> None:
        self.told.append(completed)

    def idle(self, evict: Callable[[], None]) -> None:
        self.evict = evict
        self.told.append("idle")

    def wanted(self, _timeout_s: float, _kind: Kind) -> None:
        self.told.append("wanted")


def start(
    flights: SingleFlight, engine: ScriptedEngine, keep: Kept | None = None, *, key: str = "a",
    permit: Permit | None = None,
) -> Flight:  # fmt: skip
    return flights.start(key, lambda: engine.generate(key), keep or Kept(), permit or Spot())


async def test_a_flight_is_found_by_its_key_until_it_has_ended() -> None:
    engine, keep, flights = ScriptedEngine(), Kept(), SingleFlight(bound_s=FOREVER)
    first, other = (start(flights, engine, keep, key=key) for key in "ab")
    assert (flights.get("a"), flights.get("b"), flights.get("c")) == (first, other, None)
    await asyncio.gather(first.wait(FOREVER), first.wait(FOREVER), other.wait(FOREVER))
    assert first.complete
    assert len(first.generation.candidates) == 2
    assert first.generation is first.generation
    await flights.settle()
    assert sorted(engine.generated) == ["a", "b"]
    assert keep.kept == [2, 2]
    assert len(flights) == 0


async def test_one_who_gives_up_or_is_cancelled_leaves_the_flight_alone() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=FOREVER)
    flight = start(flights, engine, keep)
    waiting = asyncio.create_task(flight.wait(FOREVER))
    await engine.reached_hold.wait()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await flight.wait(0.001)
    assert not flight.done
    assert [c.text for c in flight.generation.candidates] == ["steel stake"]
    engine.release()
    await flight.wait(FOREVER)
    assert flight.complete
    await flights.settle()
    assert keep.kept == [2]


async def test_a_flight_over_its_bound_ends_is_not_kept_and_lets_the_engine_go() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=0.01)
    flight = start(flights, engine, keep)
    await flight.wait(FOREVER)
    assert isinstance(flight.failure, TimeoutError)
    assert len(flight.generation.candidates) == 1
    await flights.settle()
    assert keep.kept == []
    assert engine.closed_streams == 1


async def test_a_fault_ends_the_flight_and_the_next_one_starts_afresh() -> None:
    fault = RuntimeError("broken")
    engine, keep, flights = ScriptedEngine(fault=fault), Kept(), SingleFlight(bound_s=FOREVER)
    flight = start(flights, engine, keep)
    await flight.wait(FOREVER)
    assert flight.failure is fault
    await flights.settle()
    engine.fault = None
    again = start(flights, engine, keep)
    await again.wait(FOREVER)
    assert again.complete


async def test_a_result_that_cannot_be_kept_is_still_given() -> None:
    engine, flights = ScriptedEngine(), SingleFlight(bound_s=FOREVER)
    flight = start(flights, engine, Kept(OSError("full")))
    await flight.wait(FOREVER)
    assert flight.complete
    await flights.settle()
    assert len(flights) == 0


async def test_closing_stops_flights_and_frees_those_who_wait() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=FOREVER)
    flight = start(flights, engine, keep)
    await engine.reached_hold.wait()
    await flights.close()
    await flight.wait(FOREVER)
    assert not flight.complete
    assert engine.closed_streams == 1
    assert keep.kept == []


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    pass


class TestPermits:
    async def test_a_flight_that_completes_releases_its_permit_as_completed(self) -> None:
        permit, flights = Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, ScriptedEngine(), permit=permit)
        await flight.wait(FOREVER, never)
        assert permit.told == ["wanted", True]

    async def test_when_the_last_deadline_passes_it_goes_on_and_may_be_evicted(self) -> None:
        engine, permit, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, engine, keep := Kept(), permit=permit)
        await engine.reached_hold.wait()
        await flight.wait(0.001)
        assert permit.told == ["wanted", "idle"]
        permit.evict()
        assert "a" not in flights  # nobody joins what is about to end
        await flights.settle()
        assert permit.told == ["wanted", "idle", False]
        assert keep.kept == []
        assert engine.closed_streams == 1

    async def test_who_comes_back_to_it_makes_it_wanted_again(self) -> None:
        engine, permit, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, engine, permit=permit)
        await flight.wait(0.001)
        waiting = asyncio.create_task(flight.wait(FOREVER))
        await asyncio.sleep(0)
        engine.release()
        await waiting
        assert permit.told == ["wanted", "idle", "wanted", True]

    async def test_the_only_caller_hangs_up_and_it_ends(self) -> None:
        engine, permit, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, engine, keep := Kept(), permit=permit)
        await engine.reached_hold.wait()
        with pytest.raises(ClientDisconnected):
            await flight.wait(FOREVER, at_once)
        await flights.settle()
        assert permit.told == ["wanted", False]
        assert keep.kept == []

    async def test_one_caller_hangs_up_and_the_others_have_their_answer(self) -> None:
        engine, permit, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, engine, keep := Kept(), permit=permit)
        other = asyncio.create_task(flight.wait(FOREVER))
        await engine.reached_hold.wait()
        with pytest.raises(ClientDisconnected):
            await flight.wait(FOREVER, at_once)
        engine.release()
        await other
        assert flight.complete
        await flights.settle()
        assert keep.kept == [2]

    async def test_one_that_ends_before_its_first_step_releases_its_permit_too(self) -> None:
        permit, flights = Spot(), SingleFlight(bound_s=FOREVER)
        flight = start(flights, ScriptedEngine(), permit=permit)
        flight.idle()
        permit.evict()
        await flights.settle()
        await asyncio.sleep(0)
        assert flight.done
        assert not flight.complete
        assert permit.told == ["idle", False]
