"""The supervisor on scripted engines. A look stands for one second; no test waits for time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from typing import Any

import pytest
from structlog.testing import capture_logs

from service.engine.protocol import Candidate
from service.errors import EngineUnavailable
from service.resilience.backoff import Backoff
from service.resilience.metrics import BreakerMetrics
from service.versions.metrics import SupervisorMetrics
from service.versions.state import State
from service.versions.supervisor import Supervisor
from service.versions.version import FAILURES_IN_A_ROW
from tests.support.engine import ScriptedEngine
from tests.support.fleet import Fleet, memory
from tests.support.waiting import turns, until

STALL_S = 10
SUSPECT_S = 2


class Ward:
    """A fleet under supervision, and the time."""

    def __init__(self, fleet: Fleet | None = None, **options: Any) -> None:
        self.fleet = fleet or Fleet()
        self.now = 0.0
        self.desired: Collection[str] = set("abc")
        self.supervisor = Supervisor(
            versions=self.fleet.versions,
            loader=self.fleet.loader,
            desired=lambda: self.desired,
            metrics=SupervisorMetrics(self.fleet.registry),
            breakers=BreakerMetrics(self.fleet.registry),
            backoff=Backoff(5.0, 20.0, lambda: self.now),
            clock=lambda: self.now,
            **({"stall_s": STALL_S, "interval_s": 1.0, "steady_s": 60.0} | options),
        )

    async def look(self, times: int = 1) -> None:
        """Let so many seconds pass, one look in each."""
        for _ in range(times):
            self.now += 1.0
            self.supervisor.check()
            await turns()

    def restarts(self, reason: str, version: str = "a") -> float | None:
        return self.fleet.metric("requery_engine_restarts_total", version=version, reason=reason)

    @property
    def breaker(self) -> str:
        """State of the breaker of ``a``."""
        registry = self.fleet.registry
        (one,) = (
            state
            for state in ("closed", "half_open", "open")
            if registry.get_sample_value(
                "requery_breaker_state", {"name": "engine:a", "state": state}
            )
        )
        return one

    def outage(self, version: str = "a") -> tuple[float | None, float | None]:
        """How many outages, and their seconds together."""
        name = "requery_engine_outage_seconds"
        return (
            self.fleet.metric(f"{name}_count", version=version),
            self.fleet.metric(f"{name}_sum", version=version),
        )


@pytest.fixture
async def ward() -> AsyncIterator[Ward]:
    """Version ``a`` is up and has been looked at."""
    one = Ward()
    await one.fleet.loader.load("a")
    await one.look()
    yield one
    await one.fleet.loader.close()


async def generated(engine: ScriptedEngine, query: str = "steele stake") -> list[Candidate]:
    return [candidate async for candidate in engine.generate(query)]


async def stuck(engine: ScriptedEngine) -> asyncio.Task[list[Candidate]]:
    """A generation that goes on when the engine is released."""
    engine.hold()
    engine.held_from = 0  # not even a first candidate: no progress at all
    engine.reached_hold.clear()
    call = asyncio.create_task(generated(engine))
    await engine.reached_hold.wait()
    return call


async def test_an_engine_that_died_is_replaced(ward: Ward) -> None:
    fleet, dead = ward.fleet, ward.fleet.engines["a"]
    dead.die()
    with capture_logs() as logs:
        await ward.look()
        await until(lambda: fleet["a"].up)
        await ward.look(2)
    assert dead.closed
    assert fleet.engines.count("a") == 2
    assert [ward.restarts(reason) for reason in ("died", "hung", "failing")] == [1, 0, 0]
    assert ward.outage() == (1, 1.0)
    told = [line for line in logs if line["event"].startswith("engine_")]
    assert [line["event"] for line in told] == ["engine_lost", "engine_back"]
    assert (told[0]["reason"], told[1]["seconds"]) == ("died", 1.0)


async def test_the_engines_breaker_shows_whether_requests_are_kept_from_it(ward: Ward) -> None:
    fleet = ward.fleet
    seen = [ward.breaker]
    call = await stuck(fleet.engines["a"])
    await ward.look(SUSPECT_S)
    seen.append(ward.breaker)
    await ward.look(STALL_S - SUSPECT_S)
    seen.append(ward.breaker)
    await until(lambda: fleet["a"].up)
    await ward.look()
    seen.append(ward.breaker)
    assert seen == ["closed", "half_open", "open", "closed"]
    await asyncio.gather(call, return_exceptions=True)
    # One that is not there is kept from nobody.
    fleet.engines["a"].die()
    ward.desired = ()
    await ward.look()
    assert ward.breaker == "open"
    fleet.versions.want_default("b")
    await fleet.loader.load("b")
    await fleet.loader.unload("a")
    await ward.look()
    assert ward.breaker == "closed"


async def test_an_engine_with_nothing_to_do_never_hangs(ward: Ward) -> None:
    await ward.look(100 * STALL_S)
    assert ward.fleet["a"].up
    assert ward.fleet.engines.count("a") == 1


async def test_one_that_is_silent_is_suspected_and_its_progress_clears_it(ward: Ward) -> None:
    version, engine = ward.fleet["a"], ward.fleet.engines["a"]
    call = await stuck(engine)
    await ward.look(SUSPECT_S - 1)
    assert version.up
    with capture_logs() as logs:
        await ward.look()
        assert not version.up
        assert ward.fleet.metric("requery_engine_suspected", version="a") == 1
        with pytest.raises(EngineUnavailable, match="not answering; try again shortly"):
            _ = version.engine
        await ward.look()
        engine.release()
        assert len(await call) == 2
        await ward.look()
    assert version.engine is engine
    assert ward.fleet.metric("requery_engine_suspected", version="a") == 0
    assert [line["event"] for line in logs] == ["engine_suspected", "engine_cleared"]
    # It counts from the start again.
    call = await stuck(engine)
    await ward.look(SUSPECT_S - 1)
    assert version.up
    engine.release()
    await call


async def test_one_that_hangs_is_replaced_and_what_waits_for_it_is_told_at_once(
    ward: Ward,
) -> None:
    version, hung = ward.fleet["a"], ward.fleet.engines["a"]
    call = await stuck(hung)
    next_one = ward.fleet.engines.give("a", ScriptedEngine())
    next_one.may_start.clear()
    await ward.look(STALL_S - 1)
    assert not call.done()
    await ward.look()
    with pytest.raises(EngineUnavailable):
        await call
    assert hung.closed
    with pytest.raises(EngineUnavailable, match="being replaced"):
        _ = version.engine
    await ward.look(7)
    next_one.may_start.set()
    await until(lambda: version.up)
    await ward.look()
    assert [ward.restarts(reason) for reason in ("died", "hung", "failing")] == [0, 1, 0]
    # From its last sign of life.
    assert ward.outage() == (1, STALL_S + 8)
    assert version.engine is next_one


async def test_a_suspected_engine_is_found_out_though_all_who_waited_have_given_up(
    ward: Ward,
) -> None:
    engine = ward.fleet.engines["a"]
    call = await stuck(engine)
    await ward.look(SUSPECT_S)
    call.cancel()
    await turns()
    assert engine.outstanding == 1
    await ward.look(STALL_S - SUSPECT_S)
    assert ward.restarts("hung") == 1


async def test_callers_who_never_wait_long_enough_show_that_it_hangs_all_the_same(
    ward: Ward,
) -> None:
    engine = ward.fleet.engines["a"]
    engine.hold()
    engine.held_from = 0
    for _ in range(SUSPECT_S):
        call = asyncio.create_task(engine.tag([("led", "led lamp")]))
        await turns()
        await ward.look()
        call.cancel()
        await turns()
        await ward.look()  # nothing is outstanding
    assert ward.fleet["a"].suspected
    await ward.look(STALL_S)
    assert ward.restarts("hung") == 1


async def test_and_do_it_no_harm_if_it_is_only_slow(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    for _ in range(STALL_S * SUSPECT_S):
        engine.hold()
        call = asyncio.create_task(engine.tag([("led", "led lamp")]))
        await turns()
        await ward.look()
        call.cancel()
        engine.release()
        await turns()
    await ward.look()
    assert ward.fleet["a"].up
    assert ward.restarts("hung") == 0


async def test_a_long_queue_that_moves_slowly_is_none_that_hangs(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    engine.outstanding = 256
    for _ in range(10):
        await ward.look(SUSPECT_S - 1)
        assert ward.fleet["a"].up
        engine.progress += 1
    assert ward.restarts("hung") == 0


async def test_a_step_that_takes_long_on_a_slow_machine_is_none_that_hangs(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    call = await stuck(engine)
    for _ in range(STALL_S):
        engine.effort += 0.15  # its share of a busy core
        await ward.look()
    assert ward.fleet["a"].up
    # If it stops computing, it counts as before.
    await ward.look(SUSPECT_S)
    assert ward.fleet["a"].suspected
    engine.release()
    await call


async def test_one_that_computes_for_ever_is_replaced_in_the_end(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    call = await stuck(engine)
    for _ in range(6 * STALL_S):
        assert ward.restarts("hung") == 0
        engine.effort += 1.0
        await ward.look()
    await ward.look()
    assert ward.restarts("hung") == 1
    await asyncio.gather(call, return_exceptions=True)


async def test_a_jump_of_the_clock_makes_nothing_hang(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    for jump in (1e9, -2e9, 1e9):
        call = await stuck(engine)
        ward.now += jump
        await ward.look(SUSPECT_S - 1)
        assert ward.fleet["a"].up
        engine.release()
        await call
        await ward.look()


async def test_what_nobody_wants_is_not_replaced(ward: Ward) -> None:
    ward.desired = {"b"}
    ward.fleet.engines["a"].die()
    await ward.look(3)
    assert ward.fleet.engines.count("a") == 1
    ward.desired = {"a"}
    await ward.look()
    await until(lambda: ward.fleet["a"].up)


async def test_what_is_being_unloaded_is_left_alone(ward: Ward) -> None:
    fleet = ward.fleet
    await fleet.loader.load("b")
    await ward.look()
    call = await stuck(fleet.engines["b"])
    with fleet["b"].serving():
        fleet.loader.begin_unload("b")
        await turns()
        await ward.look(2 * STALL_S)
        assert fleet["b"].state is State.DRAINING
        assert not fleet["b"].suspected
    await fleet.loader.finished("b")
    with pytest.raises(EngineUnavailable):
        await call
    assert (fleet["b"].state, fleet.engines.count("b")) == (State.AVAILABLE, 1)


async def test_an_outage_ends_when_the_version_is_unloaded(ward: Ward) -> None:
    fleet = ward.fleet
    await fleet.loader.load("b")
    await ward.look()
    ward.desired = {"a"}
    fleet.engines["b"].die()
    await ward.look()
    await fleet.loader.unload("b")
    await ward.look(100)
    await fleet.loader.load("b")
    await ward.look()
    assert ward.outage("b") == (0, 0)


async def test_one_that_dies_again_and_again_is_replaced_more_and_more_rarely(ward: Ward) -> None:
    fleet = ward.fleet
    waits = []
    for _ in range(5):
        fleet.engines["a"].die()
        made, start = fleet.engines.count("a"), ward.now
        while fleet.engines.count("a") == made:
            await ward.look()
        waits.append(ward.now - start - 1)
        await until(lambda: fleet["a"].up)
        await ward.look(3)
    assert waits == [0, 5, 10, 20, 20]
    # One that was steady meanwhile is replaced at once.
    await ward.look(60)
    fleet.engines["a"].die()
    await ward.look()
    await until(lambda: fleet["a"].up)


async def test_one_that_comes_to_itself_before_its_turn_is_kept(ward: Ward) -> None:
    fleet = ward.fleet
    fleet.engines["a"].die()
    await ward.look()
    await until(lambda: fleet["a"].up)
    await ward.look()
    engine = fleet.engines["a"]
    call = await stuck(engine)
    await ward.look(STALL_S)
    assert fleet["a"].suspected
    engine.release()
    await call
    await ward.look()
    assert fleet["a"].engine is engine
    assert ward.restarts("hung") == 0
    assert ward.outage() == (2, 1 + STALL_S + 1)


def fail_in_a_row(ward: Ward, times: int = FAILURES_IN_A_ROW) -> None:
    for _ in range(times):
        ward.fleet["a"].generated(ok=False)


async def test_one_that_fails_again_and_again_is_replaced(ward: Ward) -> None:
    version, engine = ward.fleet["a"], ward.fleet.engines["a"]
    fail_in_a_row(ward, FAILURES_IN_A_ROW - 1)
    await ward.look()
    assert version.up
    fail_in_a_row(ward, 1)
    assert not version.up  # from now on, not from the next look
    engine.fault = EngineUnavailable("the engine dropped the request")
    await ward.look(2)
    await until(lambda: version.up)
    await ward.look()
    assert [ward.restarts(reason) for reason in ("died", "hung", "failing")] == [0, 0, 1]
    assert engine.closed


async def test_queries_that_no_engine_can_answer_do_not_have_it_replaced(ward: Ward) -> None:
    version = ward.fleet["a"]
    for _ in range(3):
        fail_in_a_row(ward)
        await ward.look(2)
        assert version.up
    assert ward.fleet.engines.count("a") == 1
    # Nor do failures that have answers between them.
    for _ in range(FAILURES_IN_A_ROW):
        fail_in_a_row(ward, FAILURES_IN_A_ROW - 1)
        version.generated(ok=True)
    assert version.up


async def test_one_that_fails_and_then_hangs_is_replaced(ward: Ward) -> None:
    engine = ward.fleet.engines["a"]
    fail_in_a_row(ward)
    engine.hold()
    await ward.look(2 + STALL_S)
    assert ward.restarts("hung") == 1


async def test_failures_of_the_engine_before_are_not_those_of_the_next(ward: Ward) -> None:
    version, fleet = ward.fleet["a"], ward.fleet
    fleet.engines["a"].die()
    fail_in_a_row(ward)
    next_one = fleet.engines.give("a", ScriptedEngine())
    next_one.may_start.clear()
    await ward.look()
    fail_in_a_row(ward)
    next_one.may_start.set()
    await until(lambda: version.state is State.READY)
    assert version.up
    assert ward.restarts("died") == 1


async def test_two_are_replaced_one_after_the_other_and_nobody_waits_for_the_second(
    ward: Ward,
) -> None:
    fleet = ward.fleet
    await fleet.loader.load("b")
    await ward.look()
    calls = [await stuck(fleet.engines[name]) for name in "ab"]
    slow = {name: fleet.engines.give(name, ScriptedEngine()) for name in "ab"}
    for engine in slow.values():
        engine.may_start.clear()
    await ward.look(1 + STALL_S)
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, EngineUnavailable)
    assert (fleet.engines.count("a"), fleet.engines.count("b")) == (2, 1)
    assert fleet.versions.serving("b").replacing
    for engine in slow.values():
        engine.may_start.set()
    await until(lambda: fleet["a"].up and fleet["b"].up)


async def test_if_the_next_one_does_not_start_the_roster_goes_on() -> None:
    ward = Ward(Fleet(first_retry_s=0.001))
    async with ward.fleet.following() as fleet:
        ward.desired = fleet.reconciler.desired()
        await until(lambda: fleet["a"].up)
        await ward.look()
        fleet.engines["a"].die()
        fleet.engines.give("a", ScriptedEngine(start_fault=EngineUnavailable("no device")))
        await ward.look()
        await until(lambda: fleet["a"].up)
        await ward.look()
    assert fleet.engines.count("a") == 3
    assert ward.restarts("died") == 1
    assert ward.outage() == (1, 1.0)


async def test_one_that_does_not_fit_any_more_waits(ward: Ward) -> None:
    fleet = ward.fleet
    fleet.engines["a"].die()
    fleet.memory.limit_bytes = 1
    with capture_logs() as logs:
        await ward.look(3)
    assert [line["event"] for line in logs] == ["engine_lost", "engine_not_replaced"]
    assert ward.restarts("died") == 0
    fleet.memory.limit_bytes = memory(None).limit_bytes
    await ward.look(5)
    await until(lambda: fleet["a"].up)
    assert ward.restarts("died") == 1


async def test_a_fault_of_its_own_ends_neither_it_nor_the_watch_over_others(ward: Ward) -> None:
    fleet = ward.fleet
    await fleet.loader.load("b")
    await ward.look()
    broken = fleet.engines["a"]
    broken.outstanding = None  # type: ignore[assignment]
    del broken.progress
    fleet.engines["b"].die()
    with capture_logs() as logs:
        await ward.look()
    assert "engine_not_supervised" in {line["event"] for line in logs}
    await until(lambda: fleet["b"].up)


async def test_running_it_looks_again_and_again_and_leaves_nothing_behind() -> None:
    ward = Ward(interval_s=0.001, stall_s=3600.0)
    fleet = ward.fleet
    await fleet.loader.load("a")
    running = asyncio.create_task(ward.supervisor.run())
    fleet.engines["a"].die()
    await until(lambda: fleet.engines.count("a") == 2 and fleet["a"].up)
    engine = fleet.engines["a"]
    engine.hold()
    fail_in_a_row(ward)
    await until(lambda: engine.outstanding == 1)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert engine.outstanding == 0
    assert [task.get_name() for task in asyncio.all_tasks() if "probe" in task.get_name()] == []
    await fleet.loader.close()


@pytest.mark.parametrize(("stall_s", "after"), [(10.0, 2), (2.0, 1), (0.5, 1), (60.0, 12)])
async def test_it_is_suspected_after_a_fifth_and_at_least_a_second(
    stall_s: float, after: int
) -> None:
    ward = Ward(stall_s=stall_s, interval_s=0.5)
    await ward.fleet.loader.load("a")
    await ward.look()
    call = await stuck(ward.fleet.engines["a"])
    looks = 0
    while not ward.fleet["a"].suspected and ward.fleet.engines.count("a") == 1:
        await ward.look()
        looks += 1
    assert looks * 0.5 == min(after, stall_s)
    await ward.fleet.loader.close()
    await asyncio.gather(call, return_exceptions=True)
