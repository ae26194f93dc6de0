"""What callers see when the engine has as much to do as it can."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import orjson
from starlette.types import Message

from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service
from tests.support.waiting import turns

ONE_AT_A_TIME: dict[str, Any] = {"admission_max_candidates": 1}
"""A generation weighs more than that: it is let in only while there is none."""


async def busy(serve: Serve, **options: Any) -> tuple[Service, asyncio.Task[dict[str, Any]]]:
    """A service whose engine is at work on the query 'first', and the request for it."""
    engine = ScriptedEngine(held=True)
    service = await serve(engine, **ONE_AT_A_TIME, **options)
    first = asyncio.create_task(service.rewrite("first"))
    await engine.reached_hold.wait()
    return service, first


async def test_one_request_too_many_is_refused_at_once(serve: Serve) -> None:
    service, first = await busy(serve, admission_max_waiting=0)
    response = await service.client.post("/rewrite", json={"query": "second"})
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:requery:problem:overloaded"
    labels = {"version": "test-1", "kind": "shopper"}
    assert await service.metric("requery_shed_total", **labels) == 1
    service.engine.release()
    assert (await first)["status"] == "ok"
    assert (await service.rewrite("second"))["status"] == "ok"


async def test_cached_and_decided_answers_are_served_all_the_same(serve: Serve) -> None:
    engine = ScriptedEngine()
    service = await serve(engine, **ONE_AT_A_TIME)
    await service.rewrite("known")
    added = await service.client.post(
        "/overrides",
        json={"kind": "pin", "query": "pinned", "rewrites": ["by hand"], "reason": "asked"},
    )
    assert added.status_code == 201, added.text
    await service.idle()
    engine.hold()
    engine.reached_hold.clear()
    first = asyncio.create_task(service.rewrite("first"))
    await engine.reached_hold.wait()
    assert (await service.rewrite("known"))["source"] == "memory"
    assert (await service.rewrite("pinned"))["source"] == "override"
    engine.release()
    await first


async def test_the_same_query_joins_what_is_under_way(serve: Serve) -> None:
    service, first = await busy(serve)
    again = asyncio.create_task(service.rewrite("first"))
    await asyncio.sleep(0)
    service.engine.release()
    assert {(await first)["source"], (await again)["source"]} == {"engine", "coalesced"}


async def test_a_generation_that_nobody_waits_for_gives_way(serve: Serve) -> None:
    engine = ScriptedEngine(held=True)
    service = await serve(engine, **ONE_AT_A_TIME)
    late = await service.rewrite("first", deadline_ms=1)
    assert late["status"] in ("partial", "timeout")
    second = asyncio.create_task(service.rewrite("second"))
    await service.until(lambda: _generated(engine, "second"))
    engine.release()
    assert (await second)["status"] == "ok"
    assert await service.metric("requery_generations_evicted_total", version="test-1") == 1


async def test_a_shopper_waits_in_line_until_there_is_room(serve: Serve) -> None:
    service, first = await busy(serve)
    second, same = (
        asyncio.create_task(service.rewrite("second", deadline_ms=30_000)) for _ in range(2)
    )
    await service.until(lambda: _waiting(service, 1))
    assert service.engine.generated == ["first"]
    service.engine.release()
    assert [(await one)["status"] for one in (first, second, same)] == ["ok"] * 3
    assert {(await second)["source"], (await same)["source"]} == {"engine", "coalesced"}
    assert service.engine.generated == ["first", "second"]


async def test_one_whose_deadline_passes_in_line_times_out_and_leaves_it(serve: Serve) -> None:
    service, first = await busy(serve)
    late = await service.rewrite("second", deadline_ms=20)
    assert (late["status"], late["source"]) == ("timeout", "none")
    assert await _waiting(service, 0)
    service.engine.release()
    assert (await first)["status"] == "ok"
    await service.idle()
    assert service.engine.generated == ["first"]


async def test_one_who_hangs_up_in_line_leaves_it(serve: Serve) -> None:
    service, first = await busy(serve)
    caller = Caller(service, "/rewrite", {"query": "second", "deadline_ms": 30_000})
    await service.until(lambda: _waiting(service, 1))
    caller.hangs_up.set()
    await caller.task
    await service.until(lambda: _waiting(service, 0))
    service.engine.release()
    assert (await first)["status"] == "ok"
    assert service.engine.generated == ["first"]
    assert await service.metric("requery_admission_in_use", version="test-1") == 0


async def _waiting(service: Service, number: int) -> bool:
    return await service.metric("requery_admission_waiting", version="test-1") == number


async def test_batches_wait_for_their_turn(serve: Serve) -> None:
    service, first = await busy(serve)
    batch = asyncio.create_task(
        service.client.post("/rewrite/batch", json={"queries": ["a", "b"], "deadline_ms": 30_000})
    )
    await turns()
    assert service.engine.generated == ["first"]
    service.engine.release()
    answers = (await batch).json()["answers"]
    assert [one["status"] for one in answers] == ["ok", "ok"]
    await first


async def test_tagging_gives_way_to_shoppers(serve: Serve) -> None:
    service, first = await busy(serve)
    pairs = {"pairs": [{"query": "a", "rewrite": "b"}]}
    response = await service.client.post("/relevance", json=pairs)
    assert (response.status_code, response.json()["type"]) == (
        503,
        "urn:requery:problem:overloaded",
    )
    service.engine.release()
    await first
    await service.idle()
    assert (await service.client.post("/relevance", json=pairs)).status_code == 200


async def _generated(engine: ScriptedEngine, query: str) -> bool:
    return query in engine.generated


class Caller:
    """Speaks ASGI to the application, and may hang up."""

    def __init__(self, service: Service, path: str, body: object) -> None:
        self._sent = False
        self._body = orjson.dumps(body)
        self.hangs_up = asyncio.Event()
        self.messages: list[Message] = []
        request = httpx.Request("POST", f"http://test{path}", json=body)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"",
            "root_path": "", "headers": [(k.lower(), v) for k, v in request.headers.raw],
            "client": ("127.0.0.1", 1), "server": ("test", 80),
        }  # fmt: skip
        self.task = asyncio.ensure_future(service.app(scope, self._receive, self._send))

    async def _receive(self) -> Message:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.hangs_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)


class TestHangingUp:
    async def test_a_shopper_who_leaves_frees_the_place(self, serve: Serve) -> None:
        engine = ScriptedEngine(held=True)
        service = await serve(engine, **ONE_AT_A_TIME)
        caller = Caller(service, "/rewrite", {"query": "first", "deadline_ms": 30_000})
        await engine.reached_hold.wait()
        caller.hangs_up.set()
        await caller.task
        await service.idle()
        assert engine.closed_streams == 1
        assert await service.metric("requery_hangups_total", version="test-1") == 1
        assert await service.metric("requery_admission_in_use", version="test-1") == 0
        engine.release()
        assert (await service.rewrite("first"))["source"] == "engine"

    async def test_the_answer_of_another_who_waits_for_the_same_is_not_lost(
        self, serve: Serve
    ) -> None:
        engine = ScriptedEngine(held=True)
        service = await serve(engine, **ONE_AT_A_TIME)
        caller = Caller(service, "/rewrite", {"query": "first", "deadline_ms": 30_000})
        await engine.reached_hold.wait()
        other = asyncio.create_task(service.rewrite("first"))
        await asyncio.sleep(0)
        caller.hangs_up.set()
        await caller.task
        engine.release()
        assert (await other)["status"] == "ok"

    async def test_a_batch_that_nobody_waits_for_ends(self, serve: Serve) -> None:
        engine = ScriptedEngine(held=True)
        service = await serve(engine)
        queries = [f"query {i}" for i in range(40)]
        caller = Caller(service, "/rewrite/batch", {"queries": queries, "deadline_ms": 30_000})
        await engine.reached_hold.wait()
        caller.hangs_up.set()
        await caller.task
        begun = len(engine.generated)
        engine.release()
        await service.idle()
        assert len(engine.generated) == begun < 40

    async def test_tags_that_nobody_waits_for_end(self, serve: Serve) -> None:
        engine = ScriptedEngine(held=True)
        service = await serve(engine)
        caller = Caller(service, "/relevance", {"pairs": [{"query": "a", "rewrite": "b"}]})
        await service.until(lambda: _tagged(engine))
        caller.hangs_up.set()
        await caller.task
        assert await service.metric("requery_admission_in_use", version="test-1") == 0


async def _tagged(engine: ScriptedEngine) -> bool:
    return bool(engine.tagged)


async def test_a_lost_engine_is_a_fallback_though_its_places_are_taken(serve: Serve) -> None:
    service, first = await busy(serve)
    service.engine.alive = False
    assert (await service.rewrite("second"))["status"] == "fallback"
    service.engine.alive = True
    service.engine.release()
    await first
