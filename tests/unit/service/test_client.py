from __future__ import annotations

import ast
import asyncio
import dataclasses
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import client as module
from service.client import (
    COOL_DOWN_S,
    LATE_IN_A_ROW,
    MAX_CHARS,
    Answer,
    AsyncRequery,
    Rejected,
    Requery,
    Rewrite,
    Unavailable,
)
from tests.support.waiting import turns, until

URL = "http://requery.test"
OK: dict[str, Any] = {
    "query": "steele stake",
    "rewrites": [{"text": "steel stake", "relevance": 0.9978}],
    "status": "ok",
    "source": "engine",
    "model_version": "sft-1",
    "request_id": "r-1",
}
ANSWER = Answer(
    "steele stake", (Rewrite("steel stake", 0.9978),), "ok", "engine", None, "sft-1", "r-1"
)

Handler = Callable[[httpx.Request], Coroutine[None, None, httpx.Response]]


def problem(status: int, slug: str, **more: Any) -> httpx.Response:
    body = {"type": f"urn:requery:problem:{slug}", "status": status, "detail": "so it is", **more}
    return httpx.Response(status, json=body)


def answering(*responses: httpx.Response, seen: list[httpx.Request] | None = None) -> Handler:
    """Answers in turn, the last one for good."""
    left = list(responses)

    async def handle(request: httpx.Request) -> httpx.Response:
        if seen is not None:
            seen.append(request)
        return left.pop(0) if len(left) > 1 else left[0]

    return handle


def raising(error: Exception) -> Handler:
    async def handle(_request: httpx.Request) -> httpx.Response:
        raise error

    return handle


async def _never(_request: httpx.Request) -> httpx.Response:
    await asyncio.Event().wait()
    raise AssertionError("nobody waits for this")


@asynccontextmanager
async def serving(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    """The port of a server, all of whose connections have ended at the end of the block."""
    open_ones = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_ones
        open_ones += 1
        try:
            await answer(reader, writer)
        finally:
            writer.transport.abort()
            await turns()
            open_ones -= 1

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]
        await until(lambda: not open_ones)


class Clock:
    """The monotonic clock as the client sees it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module, "time", self)

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
async def make() -> AsyncIterator[Callable[..., AsyncRequery]]:
    clients: list[AsyncRequery] = []

    def client(handler: Handler, **options: Any) -> AsyncRequery:
        clients.append(AsyncRequery(URL, transport=httpx.MockTransport(handler), **options))
        return clients[-1]

    yield client
    for one in clients:
        await one.aclose()


Make = Callable[..., AsyncRequery]


class TestRequests:
    async def test_a_query_goes_out_with_the_deadline_and_comes_back_typed(
        self, make: Make
    ) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(httpx.Response(200, json=OK), seen=seen), deadline_ms=150)
        assert await requery.rewrite("steele stake") == ANSWER
        (request,) = seen
        assert request.url == f"{URL}/rewrite"
        assert json.loads(request.content) == {"query": "steele stake", "deadline_ms": 150}
        assert request.headers["content-type"] == "application/json"
        assert "authorization" not in request.headers

    async def test_what_is_wished_for_goes_into_the_body_and_ids_into_headers(
        self, make: Make
    ) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(httpx.Response(200, json=OK), seen=seen), api_key="k" * 20)
        await requery.rewrite(
            "rug",
            deadline_ms=40,
            max_rewrites=2,
            min_relevance=0.5,
            model_version="sft-1",
            unit_id="u-1",
            request_id="abc",
            traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        )
        (request,) = seen
        assert json.loads(request.content) == {
            "query": "rug",
            "deadline_ms": 40,
            "max_rewrites": 2,
            "min_relevance": 0.5,
            "model_version": "sft-1",
            "unit_id": "u-1",
        }
        assert request.headers["authorization"] == "Bearer " + "k" * 20
        assert request.headers["x-request-id"] == "abc"
        assert request.headers["traceparent"].startswith("00-aaa")

    @pytest.mark.parametrize("bad", ["caf\u00e9", "a\r\nx-evil: 1", "a\nb"])
    async def test_an_id_that_cannot_be_a_header_is_left_out(self, make: Make, bad: str) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(httpx.Response(200, json=OK), seen=seen))
        assert await requery.rewrite("rug", request_id=bad, traceparent=bad) == ANSWER
        assert not {"x-request-id", "traceparent"} & set(seen[0].headers)

    async def test_text_that_is_no_unicode_can_be_sent(self, make: Make) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(httpx.Response(200, json=OK), seen=seen))
        await requery.rewrite("rug \ud800 \u20ac")
        assert json.loads(seen[0].content)["query"] == "rug ? \u20ac"

    async def test_no_more_of_a_long_text_is_sent_than_is_read(self, make: Make) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(problem(422, "invalid-query"), seen=seen))
        answer = await requery.rewrite("x" * 100_000)
        assert len(json.loads(seen[0].content)["query"]) == MAX_CHARS
        assert answer.query == "x" * 100_000


class TestSearchingWithout:
    """Whatever keeps rewrites away is an answer."""

    @pytest.mark.parametrize(
        ("handler", "status", "reason"),
        [
            (answering(problem(503, "overloaded")), "unavailable", "overloaded"),
            (answering(problem(429, "too-many-requests")), "unavailable", "too-many-requests"),
            (answering(problem(409, "version-not-loaded")), "unavailable", "version-not-loaded"),
            (answering(problem(500, "internal")), "unavailable", "internal"),
            (answering(problem(408, "request-timeout")), "unavailable", "request-timeout"),
            (answering(problem(422, "invalid-query")), "none", "invalid-query"),
            (answering(problem(422, "query-too-long")), "none", "query-too-long"),
            (answering(httpx.Response(502, text="<html>bad gateway")), "unavailable", "http-502"),
            (answering(httpx.Response(404, text="no such route")), "unavailable", "http-404"),
            (answering(httpx.Response(302, headers={"location": "/"})), "unavailable", "http-302"),
            (answering(httpx.Response(204)), "unavailable", "http-204"),
            (answering(httpx.Response(200, text="<html>")), "unavailable", "unreadable"),
            (answering(httpx.Response(200, content=b"\xff\xfe{")), "unavailable", "unreadable"),
            (answering(httpx.Response(200, json=[OK])), "unavailable", "unreadable"),
            (answering(httpx.Response(200, json={})), "unavailable", "unreadable"),
            (
                answering(httpx.Response(200, json=OK | {"rewrites": 1})),
                "unavailable",
                "unreadable",
            ),
            (
                answering(httpx.Response(200, json=OK | {"rewrites": [{"text": "a"}]})),
                "unavailable",
                "unreadable",
            ),
            (raising(httpx.ConnectError("refused")), "unavailable", "ConnectError"),
            (raising(httpx.ReadError("reset")), "unavailable", "ReadError"),
            (raising(httpx.RemoteProtocolError("cut off")), "unavailable", "RemoteProtocolError"),
            (_never, "timeout", "deadline"),
        ],
    )
    async def test_each_is_an_answer_that_says_why(
        self, make: Make, handler: Handler, status: str, reason: str
    ) -> None:
        requery = make(handler, deadline_ms=1)
        bare = Answer("rug", status=status, reason=reason)
        assert await requery.rewrite("rug") == bare
        if reason != "ConnectError":  # after which it is left alone for a while
            assert await requery.rewrite_batch(["rug"]) == (
                # What is said of one text is not said of a batch.
                (bare,) if reason != "unreadable" else (Answer("rug", reason="unreadable"),)
            )

    async def test_the_deadline_bounds_a_service_that_answers_byte_by_byte(self) -> None:
        async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n")
            try:
                while True:
                    writer.write(b"x: y\r\n")
                    await writer.drain()
                    await asyncio.sleep(0.002)
            except ConnectionError:
                pass

        async with (
            serving(trickle) as port,
            AsyncRequery(f"http://127.0.0.1:{port}", deadline_ms=20) as requery,
        ):
            for _ in range(3):
                assert (await requery.rewrite("rug")).reason == "deadline"

    async def test_the_deadline_bounds_connecting(self) -> None:
        # A listener whose queue is full lets nobody connect.
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            address = listener.getsockname()
            waiting = [socket.socket() for _ in range(4)]
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            async with AsyncRequery(f"http://127.0.0.1:{address[1]}", deadline_ms=20) as requery:
                assert await requery.rewrite("rug") == Answer(
                    "rug", status="timeout", reason="deadline"
                )
            for one in waiting:
                one.close()

    async def test_a_connection_given_up_is_not_lost_to_the_pool(self) -> None:
        held = True

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            if not held:
                body = json.dumps(OK).encode()
                head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n"
                writer.write(head.encode() + body)
                await writer.drain()
            else:
                await reader.read()

        async with serving(answer) as port:
            requery = AsyncRequery(f"http://127.0.0.1:{port}", deadline_ms=5, max_connections=1)
            async with requery:
                for _ in range(LATE_IN_A_ROW - 1):
                    assert (await requery.rewrite("rug")).status == "timeout"
                held = False
                assert (await requery.rewrite("rug", deadline_ms=60_000)).status == "ok"


class TestRejected:
    @pytest.mark.parametrize(
        ("response", "status", "slug"),
        [
            (problem(422, "invalid-request"), 422, "invalid-request"),
            (problem(400, "invalid-json"), 400, "invalid-json"),
            (problem(401, "unauthorized"), 401, "unauthorized"),
            (problem(403, "forbidden"), 403, "forbidden"),
            (problem(404, "unknown-version"), 404, "unknown-version"),
            (problem(413, "payload-too-large"), 413, "payload-too-large"),
            (httpx.Response(401, text="who are you"), 401, "http-401"),
            (httpx.Response(403, text="no"), 403, "http-403"),
        ],
    )
    async def test_a_mistake_of_the_program_raises(
        self, make: Make, response: httpx.Response, status: int, slug: str
    ) -> None:
        requery = make(answering(response))
        for call in (
            requery.rewrite("rug"),
            requery.rewrite_batch(["rug"]),
            requery.relevance([("rug", "carpet")]),
        ):
            with pytest.raises(Rejected, match=slug) as raised:
                await call
            assert (raised.value.status, raised.value.slug) == (status, slug)


class TestBatch:
    async def test_each_query_has_its_answer_or_its_reason(self, make: Make) -> None:
        busy = {"type": "urn:requery:problem:overloaded", "status": 503, "index": 1}
        empty = {"type": "urn:requery:problem:invalid-query", "status": 422, "index": 2}
        content = {"answers": [OK, busy, empty, {"status": "ok"}], "request_id": "r"}
        requery = make(answering(httpx.Response(200, json=content)))
        assert await requery.rewrite_batch(["steele stake", "b", "", "d"], max_rewrites=1) == (
            ANSWER,
            Answer("b", reason="overloaded"),
            Answer("", status="none", reason="invalid-query"),
            Answer("d", reason="unreadable"),
        )

    async def test_a_version_that_is_unknown_raises(self, make: Make) -> None:
        unknown = {"type": "urn:requery:problem:unknown-version", "status": 404, "index": 0}
        requery = make(answering(httpx.Response(200, json={"answers": [unknown]})))
        with pytest.raises(Rejected, match="unknown-version"):
            await requery.rewrite_batch(["rug"], model_version="none-such")

    async def test_too_few_answers_are_none(self, make: Make) -> None:
        requery = make(answering(httpx.Response(200, json={"answers": [OK]})))
        assert await requery.rewrite_batch(["a", "b"]) == (
            Answer("a", reason="unreadable"),
            Answer("b", reason="unreadable"),
        )


class TestRelevance:
    async def test_pairs_are_judged_in_order(self, make: Make) -> None:
        seen: list[httpx.Request] = []
        requery = make(answering(httpx.Response(200, json={"relevance": [0.9, 1]}), seen=seen))
        assert await requery.relevance([("a", "b"), ("a", "c")], deadline_ms=9) == (0.9, 1.0)
        assert json.loads(seen[0].content) == {
            "pairs": [{"query": "a", "rewrite": "b"}, {"query": "a", "rewrite": "c"}],
            "deadline_ms": 9,
        }

    @pytest.mark.parametrize(
        "response",
        [
            problem(503, "engine-unavailable"),
            problem(504, "deadline-exceeded"),
            httpx.Response(200, json={"relevance": [0.9]}),
            httpx.Response(200, json={"relevance": [0.9, "high"]}),
            httpx.Response(200, json={"relevance": [0.9, None]}),
        ],
    )
    async def test_there_is_nothing_to_fall_back_to(
        self, make: Make, response: httpx.Response
    ) -> None:
        with pytest.raises(Unavailable):
            await make(answering(response)).relevance([("a", "b"), ("a", "c")])


class TestCoolingDown:
    async def test_a_refused_connection_is_not_tried_again_for_a_while(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock, seen = Clock(monkeypatch), list[httpx.Request]()

        async def refuse(request: httpx.Request) -> httpx.Response:
            seen.append(request)
            raise httpx.ConnectError("refused")

        requery = make(refuse)
        reasons = [(await requery.rewrite("rug")).reason for _ in range(3)]
        assert reasons == ["ConnectError", "cooling-down", "cooling-down"]
        assert len(seen) == 1
        clock.now += COOL_DOWN_S
        assert (await requery.rewrite("rug")).reason == "ConnectError"

    async def test_nor_is_a_service_that_is_late_again_and_again(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clock = Clock(monkeypatch)
        requery = make(_never, deadline_ms=1)
        reasons = [(await requery.rewrite("rug")).reason for _ in range(LATE_IN_A_ROW + 1)]
        assert reasons == ["deadline"] * LATE_IN_A_ROW + ["cooling-down"]
        clock.now += COOL_DOWN_S
        assert (await requery.rewrite("rug")).reason == "deadline"

    async def test_any_answer_ends_the_row(self, make: Make) -> None:
        turn = 0

        async def sometimes(_request: httpx.Request) -> httpx.Response:
            nonlocal turn
            turn += 1
            return await _never(_request) if turn % 2 else problem(503, "overloaded")

        requery = make(sometimes, deadline_ms=1)
        reasons = [(await requery.rewrite("rug")).reason for _ in range(4 * LATE_IN_A_ROW)]
        assert set(reasons) == {"deadline", "overloaded"}


@pytest.fixture
def blocking() -> Iterator[Callable[..., Requery]]:
    clients: list[Requery] = []

    def client(handler: Handler, **options: Any) -> Requery:
        clients.append(Requery(URL, transport=httpx.MockTransport(handler), **options))
        return clients[-1]

    yield client
    for one in clients:
        one.close()


class TestWithoutAsync:
    def test_it_does_the_same(self, blocking: Callable[..., Requery]) -> None:
        requery = blocking(answering(httpx.Response(200, json=OK)))
        assert requery.rewrite("steele stake") == ANSWER
        batch = blocking(answering(httpx.Response(200, json={"answers": [OK, OK]})))
        assert batch.rewrite_batch(["steele stake"] * 2) == (ANSWER, ANSWER)
        judge = blocking(answering(httpx.Response(200, json={"relevance": [0.5]})))
        assert judge.relevance([("a", "b")]) == (0.5,)

    def test_it_raises_the_same(self, blocking: Callable[..., Requery]) -> None:
        with pytest.raises(Rejected, match="forbidden"):
            blocking(answering(problem(403, "forbidden"))).rewrite("rug")

    def test_it_gives_up_at_the_deadline(self, blocking: Callable[..., Requery]) -> None:
        assert blocking(_never, deadline_ms=1).rewrite("rug").reason == "deadline"

    def test_many_threads_share_one(self, blocking: Callable[..., Requery]) -> None:
        from concurrent.futures import ThreadPoolExecutor

        requery = blocking(answering(httpx.Response(200, json=OK)), deadline_ms=60_000)
        with ThreadPoolExecutor(16) as threads:
            answers = list(threads.map(requery.rewrite, ["steele stake"] * 64))
        assert answers == [ANSWER] * 64

    def test_it_can_be_closed_twice_and_used_again(self, blocking: Callable[..., Requery]) -> None:
        requery = blocking(answering(httpx.Response(200, json=OK)))
        requery.close()
        with requery:
            assert requery.rewrite("rug") == ANSWER
        requery.close()
        assert requery.rewrite("rug") == ANSWER

    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_it_goes_on_in_a_forked_process(self, blocking: Callable[..., Requery]) -> None:
        requery = blocking(answering(httpx.Response(200, json=OK)), deadline_ms=60_000)
        assert requery.rewrite("rug") == ANSWER
        child = os.fork()
        if child == 0:
            # Nothing of the test runner may go on here.
            try:
                os._exit(0 if requery.rewrite("rug") == ANSWER else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert requery.rewrite("rug") == ANSWER


class TestTheFile:
    path = Path(module.__file__)

    def test_it_imports_the_standard_library_and_httpx_alone(self) -> None:
        imported = set()
        for node in ast.walk(ast.parse(self.path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                imported.add(node.module or "")
        names = {name.partition(".")[0] for name in imported} - {"__future__"}
        assert "httpx" in names
        assert names - {"httpx"} <= sys.stdlib_module_names

    async def test_a_copy_of_it_works(self, tmp_path: Path) -> None:
        copy = tmp_path / "requery_client.py"
        copy.write_text(self.path.read_text())
        spec = spec_from_file_location("requery_client", copy)
        assert spec is not None
        assert spec.loader is not None
        copied = module_from_spec(spec)
        sys.modules["requery_client"] = copied
        try:
            spec.loader.exec_module(copied)
            transport = httpx.MockTransport(answering(httpx.Response(200, json=OK)))
            async with copied.AsyncRequery(URL, transport=transport) as requery:
                answer = await requery.rewrite("rug")
            assert dataclasses.astuple(answer) == dataclasses.astuple(ANSWER)
        finally:
            del sys.modules["requery_client"]
