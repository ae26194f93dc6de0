"""An HTTP client for thousands of requests a second, which adds little latency of its own.

Run as ``python -m loadtests.bench.pump <url> <bodies> <connections> <rate> <warm-up seconds>
<seconds> <seed>``, where ``bodies`` is a file with one JSON body per line; prints its figures as
JSON. Rate 0 keeps all connections busy (closed loop).

At another rate (open loop), requests are due at the times of a Poisson process, fixed in advance,
and latency counts from then. There is no event loop, because its timers count in milliseconds: one
thread sends what is due, reads what has come, and sleeps otherwise. It does not spin, because two
cores may be two halves of one, and the server would pay for it.
"""

from __future__ import annotations

import gc
import itertools
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from loadtests.arrivals import Arrival, Phase, poisson
from loadtests.client import loopback
from loadtests.summary import milliseconds

MEASURED = "load"
"""Name of the phase that counts."""
PATIENCE_S = 10.0
"""Time to wait for answers after the last arrival."""
_READ_BYTES = 65536
_LENGTH = b"content-length:"


class Line:
    """One connection.

    Args:
        address: host and port.
    """

    __slots__ = ("arrival", "channel", "got")

    def __init__(self, address: tuple[str, int]) -> None:
        self.channel = socket.create_connection(address)
        self.channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.channel.setblocking(False)
        self.arrival: Arrival | None = None
        """The request under way."""
        self.got = b""

    def read(self) -> int | None:
        """Code of a complete answer; 0 if the server has hung up; else ``None``."""
        try:
            piece = self.channel.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        if not piece:
            return 0
        self.got += piece
        head, end, body = self.got.partition(b"\r\n\r\n")
        if not end or len(body) < length(head):
            return None
        self.got = b""
        return int(head[9:12])


class Pump:
    """One run.

    Args:
        url: with its path.
        bodies: sent in turn, again and again.
        connections: open from the start; in the open loop, requests wait if all are busy, and this
            time counts as latency.
    """

    def __init__(self, url: str, bodies: Sequence[bytes], connections: int) -> None:
        loopback(url)
        parts = urlsplit(url)
        self._requests = itertools.cycle([request(parts.path, parts.netloc, b) for b in bodies])
        address = parts.hostname or "", parts.port or 80
        self._free = [Line(address) for _ in range(connections)]
        self._lines = {line.channel.fileno(): line for line in self._free}
        self._poll = select.epoll()
        for number in self._lines:
            self._poll.register(number, select.EPOLLIN)
        self._failures = 0
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._begin = time.perf_counter()

    def run(self, arrivals: Sequence[Arrival]) -> dict[str, Any]:
        """Open loop: send all requests when due and wait for the answers.

        Only the phase :data:`MEASURED` counts.
        """
        coming, left = deque(arrivals), len(arrivals)
        last = arrivals[-1].due if arrivals else 0.0
        self._start()
        while left and (now := self._now()) <= last + PATIENCE_S and self._lines:
            while coming and coming[0].due <= now and self._free:
                self._send(self._free.pop(), coming.popleft())
            wait = (coming[0].due if coming and self._free else last + PATIENCE_S) - now
            for _, counts in self._answers(wait):
                left -= counts
        measured = sum(one.phase == MEASURED for one in arrivals)
        unanswered = measured - len(self._latencies) - self._failures
        self._failures += max(0, unanswered)
        return self._end() | {"generator_lag_ms": milliseconds(self._lags)}

    def saturate(self, seconds: float) -> dict[str, Any]:
        """Closed loop: keep all connections busy."""
        self._start()
        while self._lines and (now := self._now()) < seconds:
            while self._free:
                self._send(self._free.pop(), Arrival(self._now(), MEASURED))
            for _ in self._answers(seconds - now):
                pass
        return self._end() | {"seconds": self._now()}

    def _now(self) -> float:
        return time.perf_counter() - self._begin

    def _start(self) -> None:
        gc.collect()
        gc.disable()  # a collection would delay some requests
        self._begin = time.perf_counter()

    def _end(self) -> dict[str, Any]:
        gc.enable()
        for line in self._lines.values():
            line.channel.close()
        return {
            "requests": len(self._latencies),
            "failures": self._failures,
            "latency_ms": milliseconds(self._latencies),
        }

    def _send(self, line: Line, arrival: Arrival) -> None:
        line.arrival = arrival
        if arrival.phase == MEASURED:
            self._lags.append(self._now() - arrival.due)
        line.channel.send(next(self._requests))  # far less than a socket's buffer

    def _answers(self, wait: float) -> Iterator[tuple[int, bool]]:
        """Read what comes within ``wait`` seconds; code, and whether it ends a request."""
        # select() waits on the epoll set, because it alone takes less than a millisecond.
        select.select((self._poll,), (), (), max(0.0, wait))
        for number, _ in self._poll.poll(0):
            line = self._lines[number]
            code = line.read()
            if code is None:
                continue
            arrival, line.arrival = line.arrival, None
            if not code:  # the server has hung up
                del self._lines[number]
                line.channel.close()
                if arrival is None:
                    self._free.remove(line)
            else:
                self._free.append(line)
            if arrival is not None and arrival.phase == MEASURED:
                if code == 200:
                    self._latencies.append(self._now() - arrival.due)
                else:
                    self._failures += 1
            yield code, arrival is not None


def request(path: str, host: str, body: bytes) -> bytes:
    """A request on the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def length(head: bytes) -> int:
    """Bytes of the body, by the headers of an answer."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(_LENGTH):
            return int(line[len(_LENGTH) :])
    return 0


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Run once; the figures."""
    url, bodies, connections, *numbers, seed = arguments
    rate, warm_s, seconds = map(float, numbers)
    pump = Pump(url, Path(bodies).read_bytes().splitlines(), int(connections))
    if not rate:
        return pump.saturate(seconds)
    phases = [Phase("warm", rate, warm_s), Phase(MEASURED, rate, seconds)]
    return pump.run(list(poisson(phases, seed=int(seed))))


if __name__ == "__main__":
    sys.stdout.write(orjson.dumps(main(sys.argv[1:])).decode() + "\n")
