"""The real server, in the test's own event loop, on a scripted engine."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import uvicorn
from fastapi import FastAPI

from model_store.manifest import Manifest
from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.server.connection import Connection, HttpState, Limits, protocol
from service.server.graceful import Server
from service.server.startup import Front
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine
from tests.support.raw_http import RawResponse, get
from tests.support.versions import make_manifest
from tests.support.waiting import turns, until


@dataclass
class Caller:
    """A connection of a caller to a :class:`Listening`."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        """Send at once, as far as the kernel takes it."""
        self.writer.write(data)

    async def ask(self, request: bytes) -> RawResponse:
        self.send(request)
        return await self.read()

    async def read(self) -> RawResponse:
        """The next answer; ``IncompleteReadError`` if the other side hangs up before it."""
        head = await self.read_head()
        body = await self.reader.readexactly(int(head.headers["content-length"]))
        return RawResponse(head.status, head.headers, body)

    async def read_head(self) -> RawResponse:
        """The next answer without its body, as ``HEAD`` is answered."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        return RawResponse(int(head[0].split()[1]), headers, b"")

    async def rest(self) -> bytes:
        """What comes until the other side hangs up; nothing if it resets the connection."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.close()


@dataclass
class Listening:
    """A server that listens, with what tests look at."""

    server: Server
    port: int
    engine: ScriptedEngine
    failures: list[Exception]
    ended: asyncio.Task[None]
    callers: list[Caller] = field(default_factory=list)

    @property
    def state(self) -> HttpState:
        return self.server.server_state

    async def call(self) -> Caller:
        """A new connection, accepted by the server."""
        before = set(self.state.connections)
        caller = await self.connect()
        await until(lambda: bool(set(self.state.connections) - before))
        return caller

    async def connect(self) -> Caller:
        """A new connection, as far as the kernel knows."""
        caller = Caller(*await asyncio.open_connection("127.0.0.1", self.port))
        self.callers.append(caller)
        return caller

    @property
    def connection(self) -> Connection:
        """The only connection."""
        (connection,) = self.state.connections
        assert isinstance(connection, Connection)
        return connection

    def refused(self, reason: str) -> float:
        """How often something was refused for this reason."""
        value = self.state.metrics.registry.get_sample_value(
            "requery_http_refusals_total", {"reason": reason}
        )
        assert value is not None
        return value

    async def until_ready(self) -> Self:
        caller = await self.connect()
        while (await caller.ask(get("/readyz"))).status != 200:
            await turns()
        caller.close()
        await until(lambda: not self.state.connections)
        return self


@asynccontextmanager
async def listening(
    engine: ScriptedEngine | None = None,
    *,
    make: Callable[[Settings], Awaitable[FastAPI]] | None = None,
    ready: bool = True,
    port: int = 0,
    **options: Any,
) -> AsyncIterator[Listening]:
    """A server, which is told to stop and has stopped at the end of the block.

    Args:
        engine: default answers at once.
        make: makes the application; default makes the real one.
        ready: whether to wait until the version is loaded.
        port: where to listen; 0 takes any free one.
        options: settings; the default is to wait for nothing when it is told to stop.
    """
    scripted = engine or ScriptedEngine()

    async def engines(_manifest: Manifest, on_tokens: OnTokens) -> Engine:
        scripted.on_tokens = on_tokens
        return scripted

    async def real(settings: Settings) -> FastAPI:
        dependencies = RuntimeDependencies(
            versions=[ModelVersion(make_manifest())], engines=engines
        )
        return create_app(settings, dependencies)

    settings = Settings(
        **(
            {"default_version": "test-1", "warm_queries": ";"}
            | {"shutdown_delay_s": 0, "shutdown_grace_s": 0}
            | options
        )
    )
    failures: list[Exception] = []
    front = Front(
        lambda: (make or real)(settings),
        on_failure=failures.append,
        cutting_off=lambda: server.cutting_off,
    )
    state = HttpState(Limits.of(settings))
    state.crowded = front.crowded
    config = uvicorn.Config(
        front,
        http=protocol(settings.http_protocol),
        ws="none",
        lifespan="on",
        log_config=None,
        server_header=False,
    )
    server = Server(
        config, state, delay_s=settings.shutdown_delay_s, grace_s=settings.shutdown_grace_s
    )
    listener = socket.create_server(("127.0.0.1", port))
    port = listener.getsockname()[1]
    # Without what it does to signals, which are the test runner's.
    ended = asyncio.create_task(server._serve([listener]))
    await until(lambda: server.started)
    running = Listening(server, port, scripted, failures, ended)
    try:
        if ready:
            await running.until_ready()
        yield running
    finally:
        scripted.release()
        for caller in running.callers:
            caller.close()
        server.should_exit = True
        await ended
