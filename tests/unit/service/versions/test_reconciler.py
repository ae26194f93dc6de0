from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from service.control.store import LocalDocumentStore
from service.errors import (
    EngineUnavailable,
    InsufficientMemory,
    UnknownVersion,
    VersionInUse,
)
from service.versions.state import State
from tests.support.engine import ScriptedEngine
from tests.support.fleet import Fleet, memory
from tests.support.waiting import turns, until


def failing(reason: str = "no device") -> ScriptedEngine:
    return ScriptedEngine(start_fault=EngineUnavailable(reason))


async def test_at_first_only_the_default_is_loaded() -> None:
    async with Fleet().following() as fleet:
        await until(lambda: fleet["a"].up)
        await turns()
        assert fleet.states == {"a": "ready", "b": "available", "c": "available"}
        assert fleet.metric("requery_roster_missing") == 0


async def test_what_is_asked_for_is_loaded_and_noted_with_its_author() -> None:
    async with Fleet().following() as fleet:
        version = await fleet.reconciler.load("b", author="ada")
        assert version.loading or version.up
        await until(lambda: fleet["b"].up)
        assert fleet.desired.document.value == {"a", "b"}
        (entry,) = await fleet.document_store.notes(10)
        assert (entry["author"], entry["action"]) == ("ada", "version.load")
        # Asking again changes nothing and is no change to note.
        await fleet.reconciler.load("b", author="ada")
        assert len(await fleet.document_store.notes(10)) == 1
        assert fleet.engines.count("b") == 1


async def test_another_replica_gives_a_load_up_that_is_no_longer_wanted() -> None:
    document_store = LocalDocumentStore()
    one, other = Fleet(document_store=document_store), Fleet(document_store=document_store)
    slow = other.engines.give("b", ScriptedEngine())
    slow.may_start.clear()
    async with one.following(), other.following():
        await one.reconciler.load("b", author="ada")
        await until(lambda: other.engines.count("b") == 1)
        await one.reconciler.unload("b", author="ada")
        await until(lambda: slow.closed)
        await until(lambda: other["b"].state is State.AVAILABLE)


async def test_versions_are_loaded_one_at_a_time_the_default_first() -> None:
    fleet = Fleet()
    slow = {name: fleet.engines.give(name, ScriptedEngine()) for name in "abc"}
    for engine in slow.values():
        engine.may_start.clear()
    await fleet.document_store.write("roster", {"versions": ["a", "b", "c"]}, schema=1, expected=0)
    fleet.used = {"c"}
    order: list[str] = []
    async with fleet.following():
        for _ in "abc":
            (name,) = await started(fleet, set(order))
            order.append(name)
            slow[name].may_start.set()
        await until(lambda: fleet.engines.running == ["a", "b", "c"])
    assert order == ["a", "c", "b"]


async def started(fleet: Fleet, before: set[str]) -> set[str]:
    """Names of versions whose engine has been made since, once there is one."""
    await until(lambda: set(fleet.engines.made) > before)
    await turns()
    return set(fleet.engines.made) - before


async def test_what_the_routing_document_uses_is_loaded_though_nobody_asked() -> None:
    async with Fleet().following() as fleet:
        fleet.used = {"b"}
        await until(lambda: fleet["b"].up)
        with pytest.raises(VersionInUse):
            await fleet.reconciler.unload("b", author="ada")
        fleet.used = set()
        await until(lambda: fleet["b"].state is State.AVAILABLE)


async def test_the_default_that_routing_wants_is_loaded_and_the_old_one_stays() -> None:
    async with Fleet().following() as fleet:
        await until(lambda: fleet["a"].up)
        fleet.versions.want_default("b")
        await until(lambda: fleet.versions.default.name == "b")
        await turns()
        # The configured default is in the roster until somebody takes it out: back at once.
        assert fleet["a"].up
        await fleet.reconciler.unload("a", author="ada")
        await until(lambda: fleet.engines.running == ["b"])
        with pytest.raises(VersionInUse):
            await fleet.reconciler.unload("b", author="ada")


async def test_what_still_serves_is_kept_until_the_wanted_default_is_there() -> None:
    document_store = LocalDocumentStore()
    fleet = Fleet(document_store=document_store)
    slow = fleet.engines.give("b", ScriptedEngine())
    slow.may_start.clear()
    async with fleet.following():
        await until(lambda: fleet["a"].up)
        fleet.versions.want_default("b")
        # Another replica, which has switched already, unloads the old default.
        await document_store.write("roster", {"versions": []}, schema=1, expected=0)
        await until(lambda: fleet["b"].loading)
        await turns()
        assert fleet["a"].up
        slow.may_start.set()
        await until(lambda: fleet.engines.running == ["b"])


async def test_a_version_that_fails_is_tried_again() -> None:
    fleet = Fleet(first_retry_s=0.01)
    fleet.engines.give("b", failing())
    async with fleet.following():
        with capture_logs() as logs:
            await fleet.reconciler.load("b", author="ada")
            await until(lambda: fleet["b"].up)
    assert fleet.engines.count("b") == 2
    assert [line["event"] for line in logs].count("version_failed") == 1


async def test_a_version_that_failed_waits_for_its_time_and_others_do_not_wait_for_it() -> None:
    fleet = Fleet(first_retry_s=3600)
    fleet.engines.give("b", failing())
    async with fleet.following():
        await until(lambda: fleet["a"].up)
        await fleet.reconciler.load("b", author="ada")
        await fleet.reconciler.load("c", author="ada")
        await until(lambda: fleet["c"].up)
        await turns()
        assert (fleet["b"].state, fleet["b"].reason) == (State.FAILED, "no device")
        assert fleet.engines.count("b") == 1
        assert fleet.metric("requery_roster_missing") == 1
        # A person who asks again does not wait.
        await fleet.reconciler.load("b", author="ada")
        await until(lambda: fleet["b"].up)


async def test_a_failure_is_this_replicas_own() -> None:
    document_store = LocalDocumentStore()
    one, other = Fleet(document_store=document_store), Fleet(document_store=document_store)
    other.engines.give("b", failing())
    async with one.following(), other.following():
        await one.reconciler.load("b", author="ada")
        await until(lambda: one["b"].up and other["b"].state is State.FAILED)
        assert one.desired.document.value == {"a", "b"}


async def test_what_does_not_fit_is_refused_and_nobody_else_is_told_to_load_it() -> None:
    async with Fleet(budget=memory(150)).following() as fleet:
        await until(lambda: fleet["a"].up)
        with pytest.raises(InsufficientMemory):
            await fleet.reconciler.load("b", author="ada")
        assert fleet.desired.document.value == {"a"}
        assert fleet["b"].state is State.AVAILABLE


async def test_what_does_not_fit_on_a_following_replica_fails_there_with_the_reason() -> None:
    document_store = LocalDocumentStore()
    large, small = (
        Fleet(document_store=document_store),
        Fleet(document_store=document_store, budget=memory(150), first_retry_s=0.01),
    )
    async with large.following(), small.following():
        await until(lambda: large["a"].up and small["a"].up)
        await large.reconciler.load("b", author="ada")
        await until(lambda: large["b"].up and small["b"].state is State.FAILED)
        assert "needs about 100 MiB" in (small["b"].reason or "")
        assert small.engines.count("b") == 0
        # It takes the room that is made later.
        small.memory.limit_bytes = None
        await until(lambda: small["b"].up)


async def test_one_version_takes_the_place_of_another_that_still_drains() -> None:
    document_store = LocalDocumentStore()
    async with Fleet(document_store=document_store, budget=memory(200)).following() as fleet:
        await fleet.reconciler.load("b", author="ada")
        await until(lambda: fleet["a"].up and fleet["b"].up)
        with fleet["b"].serving():
            await document_store.write("roster", {"versions": ["a", "c"]}, schema=1, expected=1)
            await until(lambda: fleet["b"].state is State.DRAINING)
            await turns()
            # Not a failure: soon there will be room.
            assert fleet["c"].state is State.AVAILABLE
        await until(lambda: fleet.engines.running == ["a", "c"])


async def test_an_edit_made_at_the_same_time_elsewhere_is_kept() -> None:
    document_store = LocalDocumentStore()
    async with Fleet(document_store=document_store).following() as fleet:
        await until(lambda: fleet["a"].up)
        # Written by a replica whose message has not come yet.
        document_store._subscribers.notify = lambda *_: None  # type: ignore[method-assign]
        await document_store.write("roster", {"versions": ["a", "c"]}, schema=1, expected=0)
        del document_store._subscribers.notify
        await fleet.reconciler.load("b", author="ada")
        assert fleet.desired.document.value == {"a", "b", "c"}


async def test_a_version_that_came_into_the_store_later_is_found() -> None:
    document_store = LocalDocumentStore()
    one, other = (
        Fleet(document_store=document_store, store="d"),
        Fleet(document_store=document_store, store="", first_retry_s=0.01),
    )
    async with one.following(), other.following():
        await one.reconciler.load("d", author="ada")
        await until(lambda: one["d"].up)
        assert one.metric("requery_version_state", version="d", state="ready") == 1
        # The store of the other replica gets it a little later.
        assert other.metric("requery_roster_missing") == 1
        assert other.store is not None
        other.store.add("d")
        await until(lambda: "d" in other.versions and other["d"].up)


async def test_a_version_that_is_nowhere_is_unknown_and_does_not_get_into_the_roster() -> None:
    for fleet in (Fleet(store=""), Fleet()):
        async with fleet.following():
            with pytest.raises(UnknownVersion):
                await fleet.reconciler.load("d", author="ada")
            with pytest.raises(UnknownVersion):
                await fleet.reconciler.unload("d", author="ada")
            assert fleet.desired.document.value == {"a"}


async def test_an_unknown_version_in_the_roster_is_told_once_and_can_be_taken_out() -> None:
    fleet = Fleet(first_retry_s=0.001)
    await fleet.document_store.write(
        "roster", {"versions": ["a", "b", "gone"]}, schema=1, expected=0
    )
    with capture_logs() as logs:
        async with fleet.following():
            await until(lambda: fleet["b"].up)  # the others do not suffer
            await turns(200)
            assert fleet.metric("requery_roster_missing") == 1
            assert await fleet.reconciler.unload("gone", author="ada") is None
            assert fleet.desired.document.value == {"a", "b"}
            assert fleet.metric("requery_roster_missing") == 0
    assert [line["event"] for line in logs].count("version_not_found") == 1


@pytest.mark.parametrize("body", [{}, {"versions": "a"}, {"versions": [1]}])
async def test_a_roster_that_is_none_is_not_taken(body: dict[str, object]) -> None:
    async with Fleet().following() as fleet:
        await until(lambda: fleet["a"].up)
        await fleet.document_store.write("roster", body, schema=1, expected=0)
        await turns()
        assert fleet.desired.document.value == {"a"}
        assert fleet["a"].up
