"""What ``/readyz`` says, and when."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import Request

from service.api.operations import OperationsApi
from service.errors import NotReady
from tests.support.auth import open_guard
from tests.support.engine import ScriptedEngine
from tests.support.fleet import Fleet
from tests.support.waiting import until


async def ready(fleet: Fleet) -> str:
    """What it complains of; nothing if it is ready."""
    api = OperationsApi(versions=fleet.versions, registry=CollectorRegistry(), guard=open_guard())
    try:
        response = await api.ready(Request({"type": "http", "path": "/readyz", "headers": []}))
    except NotReady as error:
        return str(error)
    assert response.status_code == 200
    return ""


async def test_it_follows_the_life_of_the_default_version() -> None:
    fleet = Fleet()
    assert await ready(fleet) == "version a is available"
    async with fleet.following():
        await until(lambda: fleet["a"].up)
        assert await ready(fleet) == ""
    assert await ready(fleet) == "version a is available"


async def test_while_it_loads() -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    fleet = Fleet()
    fleet.engines.give("a", engine)
    async with fleet.following():
        await until(lambda: fleet["a"].loading)
        assert await ready(fleet) == "version a is loading"
        engine.may_start.set()
        await until(lambda: fleet["a"].up)
        assert await ready(fleet) == ""


async def test_an_engine_that_died_or_hangs_will_be_replaced_without_anybody() -> None:
    fleet = Fleet()
    async with fleet.following():
        await until(lambda: fleet["a"].up)
        version = fleet["a"]
        version.suspect()
        assert await ready(fleet) == "the engine of version a does not answer; it will be replaced"
        version.clear()
        assert await ready(fleet) == ""
        fleet.engines["a"].die()
        assert await ready(fleet) == "the engine of version a has died; it will be replaced"
        version.begin_load()
        assert await ready(fleet) == "the engine of version a is being replaced"


@pytest.mark.parametrize("reason", ["no memory", "no device"])
async def test_what_could_not_be_loaded_says_why(reason: str) -> None:
    fleet = Fleet()
    fleet["a"].fail(NotReady(reason))
    assert await ready(fleet) == f"version a is failed: {reason}"
