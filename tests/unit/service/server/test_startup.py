"""Before there is an application, and when it cannot be made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send

from service.config.settings import Settings
from service.server.startup import Front
from tests.support.http_server import listening
from tests.support.raw_http import get, rewrite_request
from tests.support.waiting import until


async def test_until_it_is_made_the_process_lives_and_is_not_ready() -> None:
    may_be_made = asyncio.Event()

    async def late(_settings: Settings) -> FastAPI:
        await may_be_made.wait()
        return FastAPI()

    async with listening(make=late, ready=False) as server:
        caller = await server.call()
        live = await caller.ask(get("/livez"))
        assert (live.status, live.json()) == (200, {"status": "live"})
        for request in (get("/readyz"), get("/metrics"), rewrite_request("a stake")):
            answer = await caller.ask(request)
            problem = answer.json()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert problem["type"] == "urn:requery:problem:not-ready"
            assert "model store" in problem["detail"]
            assert problem["request_id"] == answer.headers["x-request-id"]
        may_be_made.set()
        while (await caller.ask(get("/openapi.json"))).status == 503:
            pass
        assert (await caller.ask(get("/livez"))).status == 404


async def test_a_failure_to_build_the_application_is_reported() -> None:
    async def broken(_settings: Settings) -> FastAPI:
        raise ValueError("no such model")

    async with listening(make=broken, ready=False) as server:
        await until(lambda: bool(server.failures))
        assert [str(failure) for failure in server.failures] == ["no such model"]
        assert (await (await server.call()).ask(get("/livez"))).status == 200


@pytest.mark.parametrize("when", ["starting", "stopping"])
async def test_a_failure_of_the_lifespan_is_reported(when: str) -> None:
    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        if when == "starting":
            raise OSError("no device")
        yield
        raise OSError("no device")

    async def make(_settings: Settings) -> FastAPI:
        return FastAPI(lifespan=life)

    async with listening(make=make, ready=False) as server:
        caller = await server.call()
        if when == "stopping":
            while (await caller.ask(get("/openapi.json"))).status == 503:
                pass
            assert server.failures == []
        server.server.should_exit = True
        await server.ended
        assert [str(failure) for failure in server.failures] == ["no device"]


async def test_a_stop_cancels_the_build_of_the_application() -> None:
    given_up = asyncio.Event()

    async def never(_settings: Settings) -> FastAPI:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    async with listening(make=never, ready=False) as server:
        server.server.should_exit = True
        await server.ended
        assert given_up.is_set()
        assert server.failures == []


async def test_a_cancellation_is_suppressed_only_after_a_problem_was_sent() -> None:
    cutting_off = False

    async def make() -> FastAPI:
        raise AssertionError

    front = Front(make, on_failure=lambda _error: None, cutting_off=lambda: cutting_off)

    async def stuck(scope: Scope, receive: Receive, send: Send) -> None:
        await asyncio.Event().wait()

    async def receive() -> dict[str, str]:
        raise AssertionError

    async def send(_message: object) -> None: ...

    front._app = stuck
    for kept in (False, True):
        cutting_off = kept
        task = asyncio.ensure_future(front({"type": "http"}, receive, send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        assert task.cancelled() != kept
