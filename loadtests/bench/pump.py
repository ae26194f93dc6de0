"""A closed-loop HTTP client that costs little: as many connections as are wanted, kept busy.

Run as ``python -m loadtests.bench.pump <url> <bodies> <connections> <seconds>``, where ``bodies``
is a file with one JSON body a line; prints what it did as JSON. Used where ``wrk`` is not there.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import orjson
import uvloop

from loadtests.client import loopback
from loadtests.summary import milliseconds


class _Connection(asyncio.Protocol):
    """Sends the next request as soon as it has an answer."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._parser = httptools.HttpResponseParser(self)
        self._sent = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._pump.answered(self._parser.get_status_code(), time.perf_counter() - self._sent)
        self._parser = httptools.HttpResponseParser(self)
        if self._pump.over:
            self._transport.close()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's
        if not self._pump.over:
            self._pump.failures += 1
        if not self.ended.done():
            self.ended.set_result(None)

    def _send(self) -> None:
        self._sent = time.perf_counter()
        self._transport.write(next(self._pump.requests))


class Pump:
    """One run.

    Args:
        url: with its path.
        bodies: sent in turn, again and again.
    """

    def __init__(self, url: str, bodies: list[bytes]) -> None:
        parts = urlsplit(url)
        loopback(url)
        self._address = parts.hostname or "", parts.port or 80
        self.requests: Iterator[bytes] = itertools.cycle(
            [request(parts.path, parts.netloc, body) for body in bodies]
        )
        self.failures = 0
        self.over = False
        self._latencies: list[float] = []
        self._measured_from = 0.0

    def answered(self, code: int, seconds: float) -> None:
        """One answer."""
        if code != 200:
            self.failures += 1
        elif not self.over:
            self._latencies.append(seconds)

    async def run(self, connections: int, seconds: float) -> dict[str, object]:
        """Keep the connections busy for that long; what was done."""
        loop = asyncio.get_running_loop()
        begin = time.perf_counter()
        opened = [
            (await loop.create_connection(lambda: _Connection(self), *self._address))[1]
            for _ in range(connections)
        ]
        await asyncio.sleep(seconds)
        self.over = True
        took = time.perf_counter() - begin
        await asyncio.wait([one.ended for one in opened], timeout=5.0)
        return {
            "requests": len(self._latencies),
            "seconds": took,
            "failures": self.failures,
            "latency_ms": milliseconds(self._latencies),
        }


def request(path: str, host: str, body: bytes) -> bytes:
    """A whole request on the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main(url: str, bodies: Path, connections: int, seconds: float) -> None:
    """Run once, and print what was done."""
    pump = Pump(url, bodies.read_bytes().splitlines())
    done = uvloop.run(pump.run(connections, seconds))
    sys.stdout.write(orjson.dumps(done).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
