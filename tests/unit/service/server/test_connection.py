"""What a caller may take of the server, on real connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from service.server import connection as http
from tests.support.engine import ScriptedEngine
from tests.support.http_server import Caller, Listening, listening
from tests.support.raw_http import RawResponse, get, post, rewrite_request
from tests.support.waiting import turns, until

QUERY = rewrite_request("a stake")
LIMIT = 2048


@pytest.fixture
async def server() -> AsyncIterator[Listening]:
    async with listening(max_header_bytes=LIMIT, max_body_bytes=256) as running:
        yield running


def is_problem(answer: RawResponse, status: int, slug: str) -> bool:
    problem = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status, problem["status"]) == (status, status)
    assert problem["type"] == f"urn:requery:problem:{slug}"
    assert len(problem["request_id"]) == 32
    assert answer.last
    return True


class TestHead:
    async def test_one_below_the_limit_is_taken(self, server: Listening) -> None:
        caller = await server.call()
        assert (await caller.ask(get("/livez", f"x: {'y' * (LIMIT - 100)}"))).status == 200

    @pytest.mark.parametrize(
        "request_bytes",
        [
            pytest.param(get("/livez", f"x: {'y' * LIMIT}"), id="one long header"),
            pytest.param(get("/livez", *(f"x{i}: y" for i in range(400))), id="many headers"),
            pytest.param(get("/livez?" + "x" * LIMIT), id="a long target"),
            # Nothing may be kept of what has no end.
            pytest.param(b"GET /livez?" + b"x" * 3 * LIMIT, id="a target without an end"),
            pytest.param(get("/livez")[:-2] + b"x" * 3 * LIMIT, id="a name without an end"),
            pytest.param(get("/livez")[:-2] + b"x: " + b"y" * 3 * LIMIT, id="a value without one"),
        ],
    )
    async def test_a_longer_one_is_refused(self, server: Listening, request_bytes: bytes) -> None:
        caller = await server.call()
        for start in range(0, len(request_bytes), 500):
            caller.send(request_bytes[start : start + 500])
            await asyncio.sleep(0)
        assert is_problem(await caller.read(), 431, "headers-too-large")
        assert await caller.rest() == b""
        await until(lambda: not server.state.connections)
        assert server.refused("headers-too-large") == 1

    async def test_a_long_body_before_it_does_not_count(self, server: Listening) -> None:
        caller = await server.call()
        body = b'{"query":"a stake"' + b" " * 200 + b"}"
        caller.send(post("/rewrite", body) * 20 + get("/livez")[:20])
        await asyncio.sleep(0)
        caller.send(get("/livez")[20:])
        assert [(await caller.read()).status for _ in range(21)] == [200] * 21

    async def test_trailers_count_and_are_not_passed_on(self, server: Listening) -> None:
        head = QUERY.partition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
        body = b'{"query":"a stake"}'
        chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
        caller = await server.call()
        answer = await caller.ask(head + chunk + b"x-request-id: mine\r\n\r\n")
        assert answer.status == 200
        assert answer.headers["x-request-id"] != "mine"
        caller.send(head + chunk + b"x: " + b"y" * 2 * LIMIT + b"\r\n\r\n")
        assert is_problem(await caller.read(), 431, "headers-too-large")


class TestBody:
    async def test_chunks_with_more_around_them_than_in_them(self, server: Listening) -> None:
        head = QUERY.partition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
        caller = await server.call()
        caller.send(head)
        for _ in range(10):
            await asyncio.sleep(0)
            caller.send(b"1;" + b"x" * 600 + b"\r\n \r\n")
        assert is_problem(await caller.read(), 413, "payload-too-large")

    async def test_what_is_too_long_is_read_a_little_so_that_the_answer_arrives(
        self, server: Listening
    ) -> None:
        caller = await server.call()
        answer = await caller.ask(post("/rewrite", b"x" * 1000))
        assert answer.status == 413
        # The rest was dropped, and the connection goes on.
        assert (await caller.ask(QUERY)).status == 200

    async def test_what_goes_on_after_the_answer_is_not_read_for_ever(
        self, server: Listening
    ) -> None:
        caller = await server.call()
        caller.send(post("/rewrite", b"", declared=10**12))
        assert (await caller.read()).status == 413
        while server.state.connections:
            caller.send(b"x" * 1000)
            await asyncio.sleep(0.001)


class TestSlow:
    @pytest.fixture
    async def server(self) -> AsyncIterator[Listening]:
        async with listening(body_timeout_s=0.1) as running:
            yield running

    @pytest.mark.parametrize(
        "part",
        [
            pytest.param(QUERY[:20], id="in the target"),
            pytest.param(QUERY[:60], id="in the headers"),
            pytest.param(QUERY[:-3], id="in the body"),
        ],
    )
    async def test_a_request_that_never_completes(self, server: Listening, part: bytes) -> None:
        caller = await server.call()
        assert is_problem(await caller.ask(part), 408, "request-timeout")
        assert await caller.rest() == b""
        await until(lambda: not server.state.connections)
        assert server.refused("request-timeout") == 1

    async def test_one_byte_at_a_time(self, server: Listening) -> None:
        caller = await server.call()
        dripping = asyncio.create_task(_drip(caller))
        assert is_problem(await caller.read(), 408, "request-timeout")
        await until(lambda: not server.state.connections)
        dripping.cancel()

    async def test_a_slow_body_is_logged_and_counted_like_any_request(
        self, server: Listening
    ) -> None:
        caller = await server.call()
        await caller.ask(QUERY[:-3])
        metrics = (await (await server.call()).ask(get("/metrics"))).body.decode()
        assert 'requery_http_responses_total{code="408",route="/rewrite"} 1.0' in metrics
        assert 'requery_http_refusals_total{reason="request-timeout"} 1.0' in metrics

    async def test_an_idle_connection_is_closed_without_an_answer(self, server: Listening) -> None:
        caller = await server.call()
        assert await caller.rest() == b""

    async def test_a_caller_that_does_not_read_its_answers(self, server: Listening) -> None:
        caller = await server.call()
        caller.writer.transport.pause_reading()  # type: ignore[attr-defined] # it can
        while server.state.connections:
            caller.send(get("/openapi.json"))
            await asyncio.sleep(0.001)

    async def test_a_slow_answer_is_not_a_slow_request(self) -> None:
        async with listening(ScriptedEngine(held=True), body_timeout_s=0.05) as server:
            caller = await server.call()
            caller.send(QUERY)
            await server.engine.reached_hold.wait()
            # Another one comes and goes, by which time the first had its chance to be cut off.
            assert await (await server.call()).rest() == b""
            server.engine.release()
            assert (await caller.read()).status == 200


class TestIdle:
    async def test_a_connection_is_kept_for_a_while(
        self, server: Listening, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "KEEP_ALIVE_S", 0.05)
        caller = await server.call()
        assert not (await caller.ask(QUERY)).last
        assert await caller.rest() == b""

    async def test_and_for_a_shorter_one_where_there_is_a_crowd(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "_CROWDED_KEEP_ALIVE_S", 0.05)
        async with listening(max_connections=3) as server:
            callers = [await server.call(), await server.call()]
            await callers[0].ask(QUERY)
            assert await callers[0].rest() == b""

    async def test_a_request_that_is_there_when_the_time_is_over_is_answered(
        self, server: Listening
    ) -> None:
        caller = await server.call()
        await caller.ask(QUERY)
        # A busy event loop: it has come, and has not been read.
        caller.send(QUERY)
        server.connection.timeout_keep_alive_handler()
        assert (await caller.read()).status == 200


class TestCrowd:
    @pytest.fixture
    async def server(self) -> AsyncIterator[Listening]:
        async with listening(max_connections=2) as running:
            yield running

    async def test_over_the_limit_only_health_checks_are_answered(self, server: Listening) -> None:
        first, second, third = [await server.call() for _ in range(3)]
        answer = await third.ask(QUERY)
        assert is_problem(answer, 503, "too-many-connections")
        assert answer.headers["retry-after"] == "1"
        assert await third.rest() == b""
        await until(lambda: len(server.state.connections) == 2)
        health = await (await server.call()).ask(get("/livez"))
        assert (health.status, health.last) == (200, True)
        assert (await first.ask(QUERY)).status == 200
        assert (await second.ask(QUERY)).status == 200
        assert server.refused("too-many-connections") == 1
        first.close()
        await until(lambda: len(server.state.connections) == 1)
        assert (await (await server.call()).ask(QUERY)).status == 200

    async def test_far_over_the_limit_nothing_is_read(
        self, server: Listening, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(http, "_SPARE", 1)
        for _ in range(3):
            await server.call()
        assert is_problem(await (await server.connect()).read(), 503, "too-many-connections")


class TestParsing:
    @pytest.mark.parametrize(
        "data",
        [
            b"garbage\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET /livez HTTP/9.9\r\n\r\n",
            b"GET /livez HTTP/1.1\r\na b: c\r\n\r\n", b"GET http:// HTTP/1.1\r\n\r\n",
            b"POST /rewrite HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
            b"POST /rewrite HTTP/1.1\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        ],
    )  # fmt: skip
    async def test_what_is_no_request(self, server: Listening, data: bytes) -> None:
        caller = await server.call()
        assert is_problem(await caller.ask(data), 400, "malformed-request")
        assert await caller.rest() == b""
        assert server.refused("malformed-request") == 1

    async def test_a_body_that_breaks_off_in_the_middle(self, server: Listening) -> None:
        head = QUERY.partition(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
        caller = await server.call()
        caller.send(head + b"2\r\n{ \r\n")
        await until(lambda: server.connection.arriving)
        assert is_problem(await caller.ask(b"no length\r\n"), 400, "malformed-request")

    async def test_requests_in_one_piece_are_answered_in_order(self, server: Listening) -> None:
        caller = await server.call()
        caller.send(rewrite_request("one stake") + rewrite_request("another stake") + get("/nope"))
        answers = [await caller.read() for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 404]
        assert [answer.json()["query"] for answer in answers[:2]] == ["one stake", "another stake"]

    async def test_an_answer_under_way_goes_before_what_is_no_request(self) -> None:
        async with listening(ScriptedEngine(held=True)) as server:
            caller = await server.call()
            caller.send(QUERY)
            await server.engine.reached_hold.wait()
            caller.send(b"garbage\r\n\r\n")
            await until(lambda: server.refused("malformed-request") == 1)
            server.engine.release()
            answer = await caller.read()
            assert (answer.status, answer.last) == (200, True)
            assert await caller.rest() == b""

    async def test_a_head_comes_in_any_pieces(self, server: Listening) -> None:
        caller = await server.call()
        for byte in b"\r\n" + QUERY:
            caller.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await caller.read()).status == 200


def _offer(request: bytes, protocol: str, connection: str = "Upgrade") -> bytes:
    """``request`` with an offer to upgrade, as the first headers after the host."""
    offer = f"Connection: {connection}\r\nUpgrade: {protocol}\r\n".encode()
    return request.replace(b"host: test\r\n", b"host: test\r\n" + offer, 1)


class TestOffersToUpgrade:
    """RFC 9110, 7.8: an offer is ignored, and the request answered."""

    @pytest.fixture(
        params=[
            pytest.param(("h2c", "Upgrade, HTTP2-Settings"), id="h2c"),
            pytest.param(("websocket", "upgrade"), id="websocket"),
            pytest.param(("h2c, websocket", "keep-alive, Upgrade"), id="several"),
        ]
    )
    def request_bytes(self, request: pytest.FixtureRequest) -> bytes:
        return _offer(QUERY, *request.param)

    async def test_a_body_is_read(self, server: Listening, request_bytes: bytes) -> None:
        caller = await server.call()
        answer = await caller.ask(request_bytes)
        assert (answer.status, answer.json()["query"]) == (200, "a stake")
        # The connection stays one of HTTP/1.1.
        assert not answer.last
        assert (await caller.ask(request_bytes)).status == 200

    async def test_in_any_pieces(self, server: Listening, request_bytes: bytes) -> None:
        caller = await server.call()
        for cut in range(1, len(request_bytes), 7):
            caller.send(request_bytes[:cut])
            await turns()
            assert (await caller.ask(request_bytes[cut:])).status == 200, cut

    async def test_in_chunks(self, server: Listening) -> None:
        head, _, body = QUERY.partition(b"\r\n\r\n")
        head = head.rpartition(b"\r\n")[0] + b"\r\ntransfer-encoding: chunked\r\n\r\n"
        chunks = [b"5\r\n" + body[:5] + b"\r\n", b"%x\r\n" % len(body[5:]) + body[5:] + b"\r\n"]
        caller = await server.call()
        whole = _offer(head, "h2c") + b"".join(chunks) + b"0\r\n\r\n"
        assert (await caller.ask(whole)).status == 200
        for piece in (_offer(head, "h2c"), *chunks):
            caller.send(piece)
            await turns()
        assert (await caller.ask(b"0\r\n\r\n")).status == 200

    async def test_several_requests_in_one_piece(self, server: Listening) -> None:
        caller = await server.call()
        caller.send(QUERY + _offer(QUERY, "h2c") + _offer(get("/livez"), "websocket") + QUERY)
        answers = [await caller.read() for _ in range(4)]
        assert [answer.status for answer in answers] == [200] * 4
        assert answers[2].json() == {"status": "live"}

    async def test_with_an_end_of_the_connection(self, server: Listening) -> None:
        caller = await server.call()
        answer = await caller.ask(_offer(QUERY, "h2c", "Upgrade, close"))
        assert (answer.status, answer.last) == (200, True)
        assert await caller.rest() == b""

    async def test_limits_hold(self, server: Listening) -> None:
        head = await server.call()
        long = _offer(get("/livez", f"x: {'y' * (LIMIT - 120)}"), "h2c")
        assert (await head.ask(long)).status == 200  # its head counts once
        assert is_problem(
            await head.ask(_offer(get("/livez", f"x: {'y' * LIMIT}"), "h2c")),
            431,
            "headers-too-large",
        )
        body = await server.call()
        answer = await body.ask(_offer(rewrite_request("a" * 300), "h2c"))
        assert answer.status == 413

    async def test_a_tunnel_is_refused(self, server: Listening) -> None:
        caller = await server.call()
        answer = await caller.ask(b"CONNECT test:443 HTTP/1.1\r\nhost: test\r\n\r\n")
        assert (answer.status, answer.last) == (400, True)


class TestHeadRequests:
    @pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/versions", "/docs"])
    async def test_the_headers_of_the_get_and_no_body(self, server: Listening, path: str) -> None:
        caller = await server.call()
        whole = await caller.ask(get(path))
        # The answer to the second shows where that to the first ends.
        caller.send(get(path).replace(b"GET", b"HEAD", 1) + get("/livez"))
        head = await caller.read_head()
        assert (head.status, head.body) == (200, b"")
        assert head.headers.keys() == whole.headers.keys()
        assert head.headers["content-type"] == whole.headers["content-type"]
        if path != "/metrics":  # which have counted since
            assert head.headers["content-length"] == whole.headers["content-length"]
        assert (await caller.read()).json() == {"status": "live"}

    async def test_of_what_has_no_get(self, server: Listening) -> None:
        caller = await server.call()
        caller.send(get("/rewrite").replace(b"GET", b"HEAD", 1))
        assert (await caller.read_head()).status == 405


async def _drip(caller: Caller) -> None:
    for byte in b"\r\n" * 10 + QUERY + QUERY * 100:
        caller.send(bytes([byte]))
        await asyncio.sleep(0.01)


class TestUvicornsOwnProtocol:
    async def test_it_answers_counts_and_ends_in_order(self) -> None:
        engine = ScriptedEngine(held=True)
        async with listening(
            engine, http_protocol="uvicorn", max_header_bytes=LIMIT, shutdown_grace_s=60
        ) as server:
            idle, asking = await server.call(), await server.call()
            assert (await idle.ask(get("/livez", f"x: {'y' * LIMIT}"))).status == 200
            metrics = (await idle.ask(get("/metrics"))).body.decode()
            assert "requery_http_connections 2.0" in metrics
            asking.send(QUERY)
            await until(lambda: engine.outstanding > 0)
            server.server.should_exit = True
            # Idle connections are closed; what is asked is answered first.
            assert await idle.rest() == b""
            engine.release()
            answer = await asking.read()
            assert (answer.status, answer.last) == (200, True)
            await server.ended
