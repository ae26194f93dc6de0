"""The end of a server: what its callers see of it, and its sockets."""

from __future__ import annotations

import asyncio
import errno
import os
import select
import signal
import socket

import pytest

from service.server import graceful as module
from service.server.connection import has_input
from service.server.graceful import turn_away
from tests.support.engine import ScriptedEngine
from tests.support.http_server import listening
from tests.support.raw_http import get, rewrite_request
from tests.support.waiting import turns, until

QUERY = rewrite_request("a stake")
LONG_S = 1000.0
"""Longer than any test."""


class TestTurningAway:
    def test_nobody_new_connects_and_who_has_connected_is_heard(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            before = socket.create_connection(listener.getsockname())
            if not turn_away(listener):
                pytest.skip("this kernel allows no socket filters")
            new = socket.socket()
            new.setblocking(False)
            assert new.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            accepted, _ = listener.accept()
            # The filter goes with the accepted connection, and lets all through but beginnings.
            with before, accepted:
                before.sendall(b"a question")
                assert accepted.recv(100) == b"a question"
                accepted.sendall(b"an answer")
                assert before.recv(100) == b"an answer"
                assert not has_input(listener)
        with new:
            # The kernel asks again, and is refused now.
            select.select([], [new], [])
            assert new.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED

    def test_where_it_is_not_allowed_it_is_said(self) -> None:
        class Sandboxed(socket.socket):
            def setsockopt(self, *_: object) -> None:
                raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))

        with Sandboxed() as listener:
            assert not turn_away(listener)


class TestSignals:
    async def test_one_that_is_sent_twice_in_a_row_is_one(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_SAME_S", LONG_S)
        monkeypatch.setattr(os, "_exit", lambda _code: pytest.fail("ended at once"))
        async with listening(shutdown_delay_s=LONG_S) as server:
            server.server.handle_exit(signal.SIGTERM, None)
            server.server.handle_exit(signal.SIGTERM, None)
            assert (await (await server.call()).ask(QUERY)).status == 200
            server.server._taking_until = 0.0

    async def test_a_second_one_ends_at_once(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(module, "_SAME_S", 0.0)
        codes: list[int] = []
        monkeypatch.setattr(os, "_exit", codes.append)
        async with listening() as server:
            server.server.handle_exit(signal.SIGTERM, None)
            assert codes == []
            server.server.handle_exit(signal.SIGINT, None)
            assert codes == [128 + signal.SIGINT]
        assert "stopped at once" in capfd.readouterr().err

    async def test_only_sigterm_is_followed_by_a_delay(self) -> None:
        async with listening(shutdown_delay_s=LONG_S, shutdown_grace_s=LONG_S) as server:
            server.server.handle_exit(signal.SIGINT, None)
            await server.ended
        async with listening(shutdown_delay_s=LONG_S, shutdown_grace_s=LONG_S) as server:
            server.server.handle_exit(signal.SIGTERM, None)
            assert server.state.stopping
            for _ in range(3):
                assert not await server.server.on_tick(1)
                assert (await (await server.call()).ask(QUERY)).status == 200
            server.server._taking_until = 0.0


class TestStopping:
    async def test_readiness_goes_first(self) -> None:
        async with listening(shutdown_delay_s=LONG_S) as server:
            caller = await server.call()
            assert not (await caller.ask(get("/readyz"))).last
            server.server.handle_exit(signal.SIGTERM, None)
            answer = await caller.ask(get("/readyz"))
            assert (answer.status, answer.last) == (503, True)
            assert answer.json()["detail"] == "the service is stopping; ask another replica"
            assert (await (await server.call()).ask(get("/livez"))).status == 200
            server.server._taking_until = 0.0

    async def test_what_is_under_way_finishes_and_is_the_last_on_its_connection(self) -> None:
        async with listening(ScriptedEngine(held=True), shutdown_grace_s=LONG_S) as server:
            caller, arriving = await server.call(), await server.call()
            caller.send(QUERY)
            arriving.send(QUERY[:-1])
            await server.engine.reached_hold.wait()
            server.server.handle_exit(signal.SIGTERM, None)
            await until(lambda: not server.server.servers[0].is_serving())
            assert not server.ended.done()
            arriving.send(QUERY[-1:])
            server.engine.release()
            for one in (caller, arriving):
                answer = await one.read()
                assert (answer.json()["status"], answer.last) == ("ok", True)
                assert await one.rest() == b""
            await server.ended
            assert server.engine.closed

    async def test_idle_connections_are_closed_once_they_are_quiet(self) -> None:
        async with listening(shutdown_grace_s=LONG_S) as server:
            idle, silent = await server.call(), await server.call()
            await idle.ask(QUERY)
            server.server.handle_exit(signal.SIGTERM, None)
            assert await idle.rest() == b""
            assert await silent.rest() == b""
            await server.ended

    async def test_one_with_a_request_in_the_kernel_is_not_idle(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_QUIET_S", 0.0)
        async with listening(shutdown_grace_s=LONG_S) as server:
            caller = await server.call()
            await caller.ask(QUERY)
            assert server.connection.idle_for() is not None
            caller.send(QUERY)
            # It has come, and the event loop has not read it.
            assert server.connection.idle_for() is None
            server.server.handle_exit(signal.SIGTERM, None)
            assert (await caller.read()).last
            await server.ended

    async def test_after_the_grace_period_nobody_is_left_without_a_word(self) -> None:
        engine = ScriptedEngine(held=True)
        async with listening(engine, default_deadline_ms=30_000) as server:
            waiting, half = await server.call(), await server.call()
            waiting.send(QUERY)
            half.send(QUERY[:-1])
            await server.engine.reached_hold.wait()
            server.server.handle_exit(signal.SIGINT, None)
            for caller in (waiting, half):
                answer = await caller.read()
                assert (answer.status, answer.last) == (503, True)
                assert answer.json()["type"] == "urn:requery:problem:stopping"
                assert answer.headers["retry-after"] == "1"
            await server.ended
            # What went on in the background has ended too.
            assert engine.closed_streams == len(engine.generated) == 1

    async def test_a_handler_that_does_not_notice_is_cancelled(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(module, "_HANG_UP_S", 0.0)
        async with listening() as server:
            app = server.server.config.app._app  # type: ignore[union-attr] # it is a Front
            entered = asyncio.Event()

            async def stuck(request: object) -> None:
                entered.set()
                await asyncio.Event().wait()

            app.add_route("/stuck", stuck)
            caller = await server.call()
            caller.send(get("/stuck"))
            await entered.wait()
            server.server.handle_exit(signal.SIGINT, None)
            assert (await caller.read()).status == 503
            await server.ended
            await turns()
            assert not server.state.tasks
        assert [record for record in caplog.records if record.levelname == "ERROR"] == []

    async def test_whoever_connects_before_the_listener_closes_is_answered(self) -> None:
        async with listening(shutdown_grace_s=LONG_S) as server:
            # Connected for the kernel, and not yet accepted.
            late = socket.create_connection(("127.0.0.1", server.port))
            late.sendall(QUERY)
            server.server.handle_exit(signal.SIGINT, None)
            with late:
                head = await asyncio.to_thread(late.recv, 15)
                assert head == b"HTTP/1.1 200 OK"
                late.shutdown(socket.SHUT_RDWR)
            await server.ended
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", server.port))
