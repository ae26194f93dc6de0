from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from service.engine.protocol import Candidate
from service.errors import ClientDisconnected, Overloaded
from service.pipeline.single_flight import Flight, SingleFlight
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
    engine, keep, flights = ScriptedEngine(), Kept(), SingleFlight(bound_s=FOREVER)
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
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=FOREVER)
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
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=0.01)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    await flight.wait(FOREVER)
    assert isinstance(flight.failure, TimeoutError)
    assert len(flight.candidates) == 1
    await flights.settle()
    assert keep.kept == []
    assert engine.closed_streams == 1


async def test_a_fault_ends_the_flight_and_the_next_one_starts_afresh() -> None:
    fault = RuntimeError("broken")
    engine, keep, flights = ScriptedEngine(fault=fault), Kept(), SingleFlight(bound_s=FOREVER)
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
    engine, flights = ScriptedEngine(), SingleFlight(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), Kept(OSError("full")))
    await flight.wait(FOREVER)
    assert flight.complete
    await flights.settle()
    assert len(flights) == 0


async def test_closing_stops_flights_and_frees_those_who_wait() -> None:
    engine, keep, flights = ScriptedEngine(held=True), Kept(), SingleFlight(bound_s=FOREVER)
    flight, _ = flights.join("a", lambda: engine.generate("a"), keep)
    await engine.reached_hold.wait()
    await flights.close()
    await flight.wait(FOREVER)
    assert not flight.complete
    assert engine.closed_streams == 1
    assert keep.kept == []


class Spot:
    """A place at the engine that remembers."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.evict: Callable[[], None] = lambda: None

    def release(self, *, whole: bool) -> None:
        self.told.append(whole)

    def idle(self, evict: Callable[[], None]) -> None:
        self.evict = evict
        self.told.append("idle")

    def wanted(self) -> None:
        self.told.append("wanted")


async def never() -> None:
    await asyncio.Event().wait()


async def at_once() -> None:
    pass


class TestPlaces:
    def start(
        self, engine: ScriptedEngine, flights: SingleFlight, place: Spot
    ) -> tuple[Flight, Kept]:
        keep = Kept()
        flight, _ = flights.join("a", lambda: engine.generate("a"), keep, lambda: place)
        return flight, keep

    async def test_a_flight_that_completes_gives_its_place_back_whole(self) -> None:
        place, flights = Spot(), SingleFlight(bound_s=FOREVER)
        flight, _ = self.start(ScriptedEngine(), flights, place)
        await flight.wait(FOREVER, never)
        assert place.told == ["wanted", True]

    async def test_a_refusal_begins_nothing(self) -> None:
        engine, flights = ScriptedEngine(), SingleFlight(bound_s=FOREVER)

        def refuse() -> Spot:
            raise Overloaded("full")

        with pytest.raises(Overloaded):
            flights.join("a", lambda: engine.generate("a"), Kept(), refuse)
        assert len(flights) == 0
        assert "a" not in flights

    async def test_when_the_last_deadline_passes_it_goes_on_and_may_be_evicted(self) -> None:
        engine, place, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight, keep = self.start(engine, flights, place)
        await engine.reached_hold.wait()
        await flight.wait(0.001)
        assert place.told == ["wanted", "idle"]
        place.evict()
        assert "a" not in flights  # nobody joins what is about to end
        await flights.settle()
        assert place.told == ["wanted", "idle", False]
        assert keep.kept == []
        assert engine.closed_streams == 1

    async def test_who_comes_back_to_it_makes_it_wanted_again(self) -> None:
        engine, place, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight, _ = self.start(engine, flights, place)
        await flight.wait(0.001)
        waiting = asyncio.create_task(flight.wait(FOREVER))
        await asyncio.sleep(0)
        engine.release()
        await waiting
        assert place.told == ["wanted", "idle", "wanted", True]

    async def test_the_only_caller_hangs_up_and_it_ends(self) -> None:
        engine, place, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight, keep = self.start(engine, flights, place)
        await engine.reached_hold.wait()
        with pytest.raises(ClientDisconnected):
            await flight.wait(FOREVER, at_once)
        await flights.settle()
        assert place.told == ["wanted", False]
        assert keep.kept == []

    async def test_one_caller_hangs_up_and_the_others_have_their_answer(self) -> None:
        engine, place, flights = ScriptedEngine(held=True), Spot(), SingleFlight(bound_s=FOREVER)
        flight, keep = self.start(engine, flights, place)
        other = asyncio.create_task(flight.wait(FOREVER))
        await engine.reached_hold.wait()
        with pytest.raises(ClientDisconnected):
            await flight.wait(FOREVER, at_once)
        engine.release()
        await other
        assert flight.complete
        await flights.settle()
        assert len(keep.kept) == 1

    async def test_one_that_ends_before_its_first_step_gives_its_place_back_too(self) -> None:
        place, flights = Spot(), SingleFlight(bound_s=FOREVER)
        flight, _ = self.start(ScriptedEngine(), flights, place)
        flight.nobody_waits()
        place.evict()
        await flights.settle()
        await asyncio.sleep(0)
        assert flight.done
        assert not flight.complete
        assert place.told == ["idle", False]
