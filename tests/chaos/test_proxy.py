"""The fault kit's proxy does to connections what it says, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.chaos.proxy import (
    BlackHole,
    Corrupt,
    Delay,
    Fault,
    FaultProxy,
    HalfOpen,
    Pass,
    Refuse,
    Reset,
    Throttle,
)
from tests.support.waiting import turns, until

HOURS = 10_000.0
"""What is held this long comes within no test."""
SENT = b"0123456789"


class EchoServer:
    """Sends back what it gets, and knows what that was."""

    def __init__(self) -> None:
        self.port = 0
        self.received = b""
        self.ended = 0
        """Clients that have closed their direction."""
        self.resets = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            while chunk := await reader.read(1000):
                self.received += chunk
                writer.write(chunk)
                await writer.drain()
            self.ended += 1
        except ConnectionError:
            self.resets += 1
        finally:
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[EchoServer]:
    echo = EchoServer()
    tasks: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.create_task(echo.serve(reader, writer)))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    yield echo
    server.close()
    await server.wait_closed()
    await asyncio.gather(*tasks)


@pytest.fixture
async def proxy(echo: EchoServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(echo.port) as proxy:
        yield proxy


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self, data: bytes) -> bytes:
        """What comes back for ``data``, of its length."""
        self.send(data)
        return await self.reader.readexactly(len(data))

    async def rest(self) -> tuple[bytes, str]:
        """What comes until the other side ends, and how it does."""
        got = b""
        try:
            while chunk := await self.reader.read(1000):
                got += chunk
        except ConnectionResetError:
            return got, "reset"
        return got, "closed"

    @property
    def here(self) -> bytes:
        """What has arrived, and was not read."""
        return bytes(self.reader._buffer)  # type: ignore[attr-defined]


@asynccontextmanager
async def connected(proxy: FaultProxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    try:
        yield client
    finally:
        client.writer.transport.abort()
        await turns()


async def test_what_passes_is_whole_both_ways_and_counted(
    proxy: FaultProxy, echo: EchoServer
) -> None:
    sent = bytes(range(256)) * 2000
    async with connected(proxy) as client:
        assert await client.answer(sent) == sent
        assert proxy.open == 1
        client.writer.write_eof()
        assert await client.reader.read() == b""
        await until(lambda: proxy.open == 0)
    assert echo.received == sent
    stats = proxy.stats
    assert (stats.connections, stats.resets) == (1, 0)
    assert (stats.requests, stats.answers, stats.delivered) == (len(sent),) * 3


async def test_refusing_resets_what_is_open_and_keeps_the_port(proxy: FaultProxy) -> None:
    async with connected(proxy) as client:
        assert await client.answer(b"a") == b"a"
        await proxy.switch(Refuse())
        with pytest.raises(ConnectionResetError):
            await client.reader.read()
    port = proxy.port
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(("127.0.0.1", port))
    await proxy.switch(Pass())
    assert proxy.port == port
    async with connected(proxy) as client:
        assert await client.answer(b"b") == b"b"


BROKEN = {
    "refused": (Refuse(), b"", "reset"),
    "reset": (Reset(), b"", "reset"),
    "reset in the middle of an answer": (Reset(after_bytes=5), SENT[:5], "reset"),
    "half-open": (HalfOpen(), b"", "closed"),
}


@pytest.mark.parametrize(("fault", "got", "end"), BROKEN.values(), ids=BROKEN)
async def test_an_open_connection_is_broken_off(
    proxy: FaultProxy, fault: Fault, got: bytes, end: str
) -> None:
    async with connected(proxy) as client:
        await client.answer(b"a")
        await proxy.switch(fault)
        client.send(SENT)
        assert await client.rest() == (got, end)
        await proxy.switch(Pass())
        await until(lambda: proxy.open == 0)
    async with connected(proxy) as client:
        assert await client.answer(b"b") == b"b"


HELD = {
    "delayed": (Delay(HOURS), SENT, True),
    "throttled": (Throttle(1 / HOURS), b"", True),
    # An answer to what comes next would be taken for one to what was swallowed.
    "black-holed": (BlackHole(), b"", False),
}


@pytest.mark.parametrize(("fault", "received", "comes"), HELD.values(), ids=HELD)
async def test_an_answer_is_held_until_the_fault_ends(
    proxy: FaultProxy, echo: EchoServer, fault: Fault, received: bytes, comes: bool
) -> None:
    async with connected(proxy) as client:
        await client.answer(b"a")
        await proxy.switch(fault)
        client.send(SENT)
        await until(lambda: proxy.stats.requests == 1 + len(SENT))
        await until(lambda: echo.received == b"a" + received)
        await turns()
        assert (client.here, proxy.stats.delivered) == (b"", 1)
        await proxy.switch(Pass())
        if comes:
            assert await client.reader.readexactly(len(SENT)) == SENT
        else:
            assert await client.rest() == (b"", "reset")


async def test_a_black_hole_swallows_connections_made_during_it(
    proxy: FaultProxy, echo: EchoServer
) -> None:
    async with connected(proxy) as before:
        await before.answer(b"a")
        await proxy.switch(BlackHole())
        async with connected(proxy) as during:
            during.send(b"ccc")
            await until(lambda: proxy.stats.requests == 4)
            await proxy.switch(Pass())
            assert await during.rest() == (b"", "reset")
        # One that sent nothing into it survives.
        assert await before.answer(b"b") == b"b"
    assert echo.received == b"ab"


async def test_delays_keep_the_order(proxy: FaultProxy) -> None:
    await proxy.switch(Delay(0.001, jitter_s=0.01))
    async with connected(proxy) as client:
        for i in range(20):
            client.send(bytes([i]))
            await until(lambda i=i: proxy.stats.answers == i + 1)  # type: ignore[misc]
        assert await client.reader.readexactly(20) == bytes(range(20))


async def test_a_throttled_answer_comes_in_pieces(proxy: FaultProxy) -> None:
    sent = bytes(range(200))
    await proxy.switch(Throttle(2000))
    async with connected(proxy) as client:
        client.send(sent)
        first = await client.reader.read(1000)
        assert first == sent[: len(first)]
        assert len(first) < len(sent)
        assert await client.reader.readexactly(200 - len(first)) == sent[len(first) :]


async def test_half_open_the_server_hears_that_the_client_is_done(
    proxy: FaultProxy, echo: EchoServer
) -> None:
    async with connected(proxy) as client:
        await client.answer(b"a")
        await proxy.switch(HalfOpen(closed="requests"))
        await until(lambda: echo.ended == 1)
        assert await client.reader.read() == b""


async def test_flipped_bits_leave_the_length(proxy: FaultProxy) -> None:
    sent = bytes(1000)
    await proxy.switch(Corrupt(every=10))
    async with connected(proxy) as client:
        got = await client.answer(sent)
    wrong = [byte for byte in got if byte]
    assert 20 < len(wrong) < 300
    assert all(byte.bit_count() == 1 for byte in wrong)
