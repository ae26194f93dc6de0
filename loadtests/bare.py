"""A minimal HTTP server: what it adds to an answer is next to nothing.

Run as ``python -m loadtests.bare <port>`` for a fixed answer, which measures the load generator
itself; :func:`serve` answers by a function.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import cast

import httptools
import uvloop

Answer = Callable[[bytes], bytes | Coroutine[None, None, bytes]]
"""From the body of a request to a whole response, as :func:`response` makes it."""


def response(body: bytes, code: int = 200) -> bytes:
    """A response on the wire."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (code, len(body)) + body


class _Connection(asyncio.Protocol):
    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""
        self._tasks: set[asyncio.Task[bytes]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        answer = self._answer(body)
        if isinstance(answer, bytes):
            self._transport.write(answer)
            return
        task = asyncio.get_running_loop().create_task(answer)
        self._tasks.add(task)
        task.add_done_callback(self._write)

    def _write(self, task: asyncio.Task[bytes]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._transport.write(task.result())


async def serve(port: int, answer: Answer) -> None:
    """Serve on the loopback until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(answer), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    _fixed = response(
        b'{"query":"steele stake","rewrites":[{"text":"steel stake","relevance":0.9941}],'
        b'"status":"ok","source":"memory","model_version":"none","request_id":"0"}'
    )
    uvloop.run(serve(int(sys.argv[1]), lambda _: _fixed))
