from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loadtests.bare import response
from loadtests.bench.pump import length
from loadtests.client import HttpTransport, NotThisMachine
from loadtests.exchange import Failure, NoReply, Reply
from tests.support.redis_server import free_port
from tests.unit.loadtests.outcomes import request


@asynccontextmanager
async def server(answer: bytes) -> AsyncIterator[str]:
    """Sends ``answer`` to whoever asks, and closes the connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(length(head))
        writer.write(answer)
        writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        await listening.wait_closed()


def http(code: int, body: bytes, headers: bytes = b"") -> bytes:
    return response(body, code).replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n", 1)


@pytest.mark.parametrize(
    ("answer", "reply"),
    [
        (
            http(
                200,
                b'{"status":"ok","source":"engine"}',
                b"server-timing: prepare;dur=0.50, cache;dur=12.50, total;dur=20.00\r\n",
            ),
            Reply(200, "ok", "engine", {"prepare": 0.0005, "cache": 0.0125, "total": 0.02}),
        ),
        (
            http(503, b'{"type":"urn:requery:problem:overloaded","status":503}'),
            Reply(503, "overloaded"),
        ),
        (http(200, b'{"answers":[]}'), Reply(200)),
        (http(200, b"# metrics"), Reply(200)),
        (http(200, b"[1]"), Reply(200)),
    ],
)
async def test_an_answer(answer: bytes, reply: Reply) -> None:
    async with server(answer) as url, HttpTransport(url) as transport:
        assert await transport.send(request(body=b"{}")) == reply


@pytest.mark.parametrize(
    ("answer", "failure"),
    [(b"", Failure.DISCONNECTED), (http(200, b"{}")[:-1], Failure.CUT)],
)
async def test_an_answer_that_is_not_whole(answer: bytes, failure: Failure) -> None:
    async with server(answer) as url, HttpTransport(url) as transport:
        with pytest.raises(NoReply, match=failure):
            await transport.send(request(body=b"{}"))
    async with HttpTransport(f"http://127.0.0.1:{free_port()}") as transport:
        with pytest.raises(NoReply, match=Failure.REFUSED):
            await transport.send(request(body=b"{}"))


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1:8000",
        "http://example.org",
        "http://0.0.0.0:8000",
        "https://127.0.0.1:8000",
        "http://127.0.0.1.example.org",
        "127.0.0.1:8000",
    ],
)
def test_other_machines_get_no_load(url: str) -> None:
    with pytest.raises(NotThisMachine):
        HttpTransport(url)
