from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from service.errors import (
    EngineUnavailable,
    InsufficientMemory,
    UnknownVersion,
    VersionDraining,
    VersionInUse,
    VersionNotLoaded,
)
from service.versions.state import State
from tests.support.engine import ScriptedEngine
from tests.support.fleet import MIB, Fleet, memory
from tests.support.versions import Engines
from tests.support.waiting import turns, until


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    one = Fleet()
    yield one
    await one.loader.close()


def slow_engine() -> ScriptedEngine:
    """An engine that starts when the test says so."""
    engine = ScriptedEngine()
    engine.may_start.clear()
    return engine


async def test_versions_live_side_by_side(fleet: Fleet) -> None:
    for name in "ab":
        assert (await fleet.loader.load(name)).up
    assert fleet.engines.running == ["a", "b"]
    assert [c.text async for c in fleet["b"].engine.generate("x")] == ["b stake", "b post"]
    assert {name for name, _, _ in fleet.tokens} == {"b"}
    assert fleet.metric("requery_version_loads_total", version="b", result="ready") == 1
    assert fleet.metric("requery_version_state", version="b", state="ready") == 1
    assert fleet.metric("requery_version_state", version="c", state="available") == 1
    assert fleet.metric("requery_engine_matrices_info", version="b", matrices="float16") == 0
    await fleet.loader.unload("b")
    assert fleet.engines.running == ["a"]
    assert fleet.metric("requery_version_unloads_total", version="b", result="drained") == 1


async def test_asking_to_load_returns_while_it_is_under_way(fleet: Fleet) -> None:
    engine = fleet.engines.give("b", slow_engine())
    assert fleet.loader.begin_load("b").state is State.LOADING
    engine.may_start.set()
    await fleet.loader.finished("b")
    assert fleet["b"].up
    assert engine.generated == ["steel stake"]


async def test_two_who_load_the_same_version_get_one_engine(fleet: Fleet) -> None:
    engine = fleet.engines.give("b", slow_engine())
    loads = [asyncio.ensure_future(fleet.loader.load("b")) for _ in range(3)]
    await until(lambda: fleet.engines.count("b") == 1)
    await turns()
    engine.may_start.set()
    assert {version.up for version in await asyncio.gather(*loads)} == {True}
    await fleet.loader.load("b")
    assert fleet.engines.count("b") == 1


async def test_two_who_load_a_version_that_fails_are_both_told(fleet: Fleet) -> None:
    engine = fleet.engines.give("b", slow_engine())
    engine.start_fault = EngineUnavailable("no device")
    loads = [asyncio.ensure_future(fleet.loader.load("b")) for _ in range(2)]
    await turns()
    engine.may_start.set()
    told = await asyncio.gather(*loads, return_exceptions=True)
    assert [str(error) for error in told] == ["no device"] * 2
    assert fleet.engines.count("b") == 1
    assert fleet.metric("requery_version_loads_total", version="b", result="failed") == 1


async def test_one_who_stops_waiting_does_not_stop_the_load(fleet: Fleet) -> None:
    engine = fleet.engines.give("b", slow_engine())
    impatient = asyncio.ensure_future(fleet.loader.load("b"))
    await turns()
    impatient.cancel()
    await asyncio.gather(impatient, return_exceptions=True)
    await fleet.loader.finished("b", timeout_s=0.001)
    engine.may_start.set()
    await fleet.loader.finished("b")
    assert fleet["b"].up


async def test_engines_start_one_at_a_time(fleet: Fleet) -> None:
    first = fleet.engines.give("b", slow_engine())
    fleet.loader.begin_load("b")
    fleet.loader.begin_load("c")
    await turns()
    assert (fleet.engines.count("b"), fleet.engines.count("c")) == (1, 0)
    # One that waits for its turn says so, and its memory is reserved.
    assert fleet["c"].state is State.LOADING
    first.start_fault = EngineUnavailable("no device")
    first.may_start.set()
    await fleet.loader.finished("c")
    assert fleet.states == {"a": "available", "b": "failed", "c": "ready"}


async def test_a_failure_is_told_once_as_long_as_its_reason_stays(fleet: Fleet) -> None:
    with capture_logs() as logs:
        for reason in ("no device", "no device", "no memory"):
            fleet.engines.give("b", ScriptedEngine(start_fault=EngineUnavailable(reason)))
            with pytest.raises(EngineUnavailable):
                await fleet.loader.load("b")
        fleet.engines.give("b", ScriptedEngine(start_fault=ZeroDivisionError("a bug")))
        with pytest.raises(ZeroDivisionError):
            await fleet.loader.load("b")
    failures = [line for line in logs if line["event"] == "version_failed"]
    assert [line["reason"] for line in failures] == ["no device", "no memory", "a bug"]
    # Only what nobody thought of needs a stack trace.
    assert [bool(line["exc_info"]) for line in failures] == [False, False, True]
    assert fleet.metric("requery_version_loads_total", version="b", result="failed") == 4


async def test_unloading_lets_requests_finish_and_takes_no_new_ones(fleet: Fleet) -> None:
    await fleet.loader.load("b")
    with fleet.versions.serving("b").serving():
        assert fleet.loader.begin_unload("b").state is State.DRAINING
        with pytest.raises(VersionNotLoaded, match="unloaded"):
            fleet.versions.serving("b")
        await turns()
        assert fleet.engines.running == ["b"]
        assert fleet.metric("requery_version_in_flight", version="b") == 1
    await fleet.loader.finished("b")
    assert (fleet["b"].state, fleet.engines.running) == (State.AVAILABLE, [])


async def test_loading_while_it_drains_is_refused_with_advice(fleet: Fleet) -> None:
    await fleet.loader.load("b")
    with fleet["b"].serving():
        fleet.loader.begin_unload("b")
        with pytest.raises(VersionDraining, match="1 requests in flight; load it again once"):
            fleet.loader.begin_load("b")
        fleet.loader.begin_unload("b")  # it is under way already
    await fleet.loader.finished("b")
    await fleet.loader.load("b")
    assert fleet.engines.count("b") == 2


async def test_what_does_not_finish_in_time_is_broken_off() -> None:
    fleet = Fleet(drain_timeout_s=0.01)
    await fleet.loader.load("b")
    with fleet["b"].serving():
        await fleet.loader.unload("b")
        assert fleet.engines.running == []
    assert fleet.metric("requery_version_unloads_total", version="b", result="cut_off") == 1


@pytest.mark.parametrize("waits_for_its_turn", [False, True])
async def test_unloading_gives_a_load_up(fleet: Fleet, waits_for_its_turn: bool) -> None:
    other = fleet.engines.give("c", slow_engine())
    if waits_for_its_turn:
        fleet.loader.begin_load("c")
    engine = fleet.engines.give("b", slow_engine())
    loading = asyncio.ensure_future(fleet.loader.load("b"))
    await turns()
    assert fleet.engines.count("b") == int(not waits_for_its_turn)
    unloading = asyncio.ensure_future(fleet.loader.unload("b"))
    await turns(1)
    with pytest.raises(VersionDraining):
        fleet.loader.begin_load("b")
    await unloading
    with pytest.raises(VersionNotLoaded, match="unloaded before it was ready"):
        await loading
    assert fleet["b"].state is State.AVAILABLE
    assert engine.closed == (not waits_for_its_turn)
    assert fleet.metric("requery_version_loads_total", version="b", result="given_up") == 1
    for each in (other, engine):
        each.may_start.set()
    await fleet.loader.load("b")
    assert fleet["b"].up


async def test_unloading_what_failed_clears_its_reason(fleet: Fleet) -> None:
    fleet.engines.give("b", ScriptedEngine(start_fault=EngineUnavailable("no device")))
    with pytest.raises(EngineUnavailable):
        await fleet.loader.load("b")
    version = await fleet.loader.unload("b")
    assert (version.state, version.reason) == (State.AVAILABLE, None)
    await fleet.loader.unload("c")  # never loaded: nothing to do


async def test_what_requests_are_routed_to_is_not_unloaded(fleet: Fleet) -> None:
    for name in "abc":
        await fleet.loader.load(name)
    fleet.used = {"b"}
    fleet.versions.want_default("c")
    fleet.versions.want_default("z")  # not in the store yet
    assert fleet.loader.in_use() == {"b", "c", "z"}
    with pytest.raises(VersionInUse, match="routing document"):
        fleet.loader.begin_unload("b")
    with pytest.raises(VersionInUse, match="default"):
        fleet.loader.begin_unload("c")
    assert fleet.engines.running == ["a", "b", "c"]
    await fleet.loader.unload("a")


async def test_unknown_versions_are_refused(fleet: Fleet) -> None:
    for ask in (fleet.loader.begin_load, fleet.loader.begin_unload):
        with pytest.raises(UnknownVersion):
            ask("nobody")


async def test_what_does_not_fit_is_not_started() -> None:
    fleet = Fleet(budget=memory(250))
    await fleet.loader.load("a")
    slow = fleet.engines.give("b", slow_engine())
    fleet.loader.begin_load("b")
    # One that is still loading takes its memory too.
    with pytest.raises(InsufficientMemory, match=r"engines for: a, b\b"):
        fleet.loader.begin_load("c")
    assert fleet.metric("requery_engine_memory_bytes", kind="reserved") == 200 * MIB
    assert fleet.metric("requery_engine_memory_bytes", kind="limit") == 250 * MIB
    slow.may_start.set()
    await fleet.loader.finished("b")
    with fleet["b"].serving():
        fleet.loader.begin_unload("b")
        with pytest.raises(InsufficientMemory):  # and so does one that drains
            fleet.loader.begin_load("c")
    await fleet.loader.finished("b")
    assert (fleet["c"].state, fleet.engines.count("c")) == (State.AVAILABLE, 0)
    await fleet.loader.load("c")
    assert fleet.engines.running == ["a", "c"]


async def test_a_failed_load_frees_its_memory() -> None:
    fleet = Fleet(budget=memory(150))
    fleet.engines.give("b", ScriptedEngine(start_fault=EngineUnavailable("no device")))
    with pytest.raises(EngineUnavailable):
        await fleet.loader.load("b")
    await fleet.loader.load("c")


async def test_a_version_whose_engine_died_is_loaded_again_in_its_own_memory() -> None:
    fleet = Fleet(budget=memory(100))
    await fleet.loader.load("a")
    fleet.engines["a"].alive = False
    await fleet.loader.load("a")
    assert fleet["a"].up
    assert fleet.engines.running == ["a"]


async def test_an_engine_to_be_replaced_goes_before_its_turn_has_come(fleet: Fleet) -> None:
    await fleet.loader.load("b")
    before = fleet.engines["b"]
    slow = fleet.engines.give("c", slow_engine())
    fleet.loader.begin_load("c")
    fleet["b"].suspect()
    fleet.loader.begin_load("b")
    await until(lambda: before.closed)
    assert (fleet["b"].replacing, fleet.engines.count("b")) == (True, 1)
    slow.may_start.set()
    await fleet.loader.finished("b")
    assert fleet["b"].up


async def test_unloading_ends_a_replacement(fleet: Fleet) -> None:
    await fleet.loader.load("b")
    slow = fleet.engines.give("b", slow_engine())
    fleet["b"].suspect()
    fleet.loader.begin_load("b")
    await until(lambda: fleet.engines.count("b") == 2)
    await fleet.loader.unload("b")
    assert (fleet["b"].state, fleet["b"].replacing, slow.closed) == (State.AVAILABLE, False, True)
    assert fleet.engines.running == []


async def test_the_wanted_default_takes_over_when_it_has_been_loaded(fleet: Fleet) -> None:
    await fleet.loader.load("a")
    fleet.versions.want_default("b")
    await fleet.loader.load("b")
    assert fleet.versions.default.name == "b"


async def test_listeners_hear_of_every_end(fleet: Fleet) -> None:
    heard: list[tuple[str, str]] = []
    fleet.loader.on_change(lambda version: heard.append((version.name, version.state.value)))
    fleet.engines.give("b", ScriptedEngine(start_fault=EngineUnavailable("no device")))
    with pytest.raises(EngineUnavailable):
        await fleet.loader.load("b")
    await fleet.loader.load("b")
    await fleet.loader.unload("b")
    assert heard == [("b", "failed"), ("b", "ready"), ("b", "available")]


async def test_closing_ends_loads_drains_and_engines() -> None:
    engines = Engines(b=slow_engine())
    fleet = Fleet(engines=engines)
    await fleet.loader.load("a")
    await fleet.loader.load("c")
    fleet.loader.begin_load("b")
    with fleet["c"].serving():
        fleet.loader.begin_unload("c")
        await until(lambda: engines.count("b") == 1)
        await fleet.loader.close()
    assert engines.running == []
    assert set(fleet.states.values()) == {"available"}
