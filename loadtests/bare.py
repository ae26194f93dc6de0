"""A server that does nothing but answer: what is slower than this is not the server.

Run as ``python -m loadtests.bare``; prints its port, and answers until it is told to stop or its
standard input is closed.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import httptools
import uvloop

_BODY = (
    b'{"query":"steele stake","rewrites":[{"text":"steel stake","relevance":0.9941}],'
    b'"status":"ok","source":"memory","model_version":"none","request_id":"0"}'
)
_ANSWER = b"".join(
    [
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n",
        b"server-timing: prepare;dur=0.02, cache;dur=0.01, filter;dur=0.02, total;dur=0.10\r\n",
        b"content-length: %d\r\n\r\n" % len(_BODY),
        _BODY,
    ]
)


class _Bare(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(_ANSWER)


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Bare, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    # Whoever started it holds the other end, and closes it at the latest by ending.
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(_serve())
