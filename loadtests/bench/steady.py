"""An open-loop HTTP client for thousands of requests a second, which adds little of its own.

Run as ``python -m loadtests.bench.steady <url> <bodies> <rate> <warm seconds> <seconds> <seed>``,
where ``bodies`` is a file with one JSON body a line; prints what it did as JSON.

Requests are due at the times of a Poisson process, fixed before the first one is sent, and latency
counts from then. There is no event loop, whose timers count in milliseconds: one thread sends what
is due, reads what has come, and sleeps until there is more of either. It does not spin: two cores
may be two halves of one, and the server would pay for it.
"""

from __future__ import annotations

import gc
import itertools
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import orjson

from loadtests.arrivals import Arrival, Phase, poisson
from loadtests.bench.pump import request
from loadtests.client import loopback
from loadtests.summary import milliseconds

CONNECTIONS = 64
"""Open from the start; a request that finds all of them busy waits for one, which is counted."""
MEASURED = "load"
"""Name of the phase that counts."""
PATIENCE_S = 10.0
"""After the last arrival."""
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
        """Whose answer it waits for."""
        self.got = b""

    def read(self) -> int | None:
        """Code of the answer, once it is whole; 0 if the other side has hung up."""
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


class Steady:
    """One run.

    Args:
        url: with its path.
        bodies: sent in turn, again and again.
        connections: open from the start.
    """

    def __init__(self, url: str, bodies: Sequence[bytes], connections: int = CONNECTIONS) -> None:
        loopback(url)
        parts = urlsplit(url)
        address = parts.hostname or "", parts.port or 80
        self._requests = itertools.cycle([request(parts.path, parts.netloc, b) for b in bodies])
        self._lines = [Line(address) for _ in range(connections)]
        self._free = list(self._lines)
        self._poll = select.epoll()
        self._by_number = {line.channel.fileno(): line for line in self._lines}
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)
        self._failures = 0
        self._latencies: list[float] = []
        self._lags: list[float] = []
        self._begin = 0.0

    def run(self, arrivals: Sequence[Arrival]) -> dict[str, object]:
        """Send everything when it is due, wait for the answers; what was done.

        Only the phase :data:`MEASURED` counts.
        """
        coming, left = deque(arrivals), len(arrivals)
        last = arrivals[-1].due if arrivals else 0.0
        gc.collect()
        gc.disable()  # a collection would be a pause of some requests
        self._begin = time.perf_counter()
        try:
            while left:
                now = time.perf_counter() - self._begin
                while coming and coming[0].due <= now and self._free:
                    self._send(coming.popleft())
                if self._free:
                    wait = (coming[0].due if coming else last + PATIENCE_S) - now
                else:
                    wait = PATIENCE_S
                # On the set of all channels, since only select() takes less than a millisecond.
                select.select((self._poll,), (), (), max(0.0, wait))
                for number, _ in self._poll.poll(0):
                    left -= self._look(self._by_number[number])
                if now > last + PATIENCE_S or not self._lines:
                    break
        finally:
            gc.enable()
            for line in self._lines:
                line.channel.close()
        measured = sum(one.phase == MEASURED for one in arrivals)
        unanswered = measured - len(self._latencies) - self._failures
        return {
            "requests": len(self._latencies),
            "failures": self._failures + max(0, unanswered),
            "latency_ms": milliseconds(self._latencies),
            "generator_lag_ms": milliseconds(self._lags),
        }

    def _send(self, arrival: Arrival) -> None:
        line = self._free.pop()
        line.arrival = arrival
        if arrival.phase == MEASURED:
            self._lags.append(time.perf_counter() - self._begin - arrival.due)
        line.channel.send(next(self._requests))  # far less than a socket's buffer

    def _look(self, line: Line) -> int:
        """Read what there is; how many answers that makes."""
        code = line.read()
        if code is None:
            return 0
        arrival, line.arrival = line.arrival, None
        if code:
            self._free.append(line)
        else:
            self._drop(line)
        if arrival is None:
            return 0
        if arrival.phase == MEASURED:
            if code == 200:
                self._latencies.append(time.perf_counter() - self._begin - arrival.due)
            else:
                self._failures += 1
        return 1

    def _drop(self, line: Line) -> None:
        """The other side has hung up."""
        del self._by_number[line.channel.fileno()]
        self._lines.remove(line)
        if line in self._free:
            self._free.remove(line)
        line.channel.close()


def length(head: bytes) -> int:
    """Bytes of the body, as the headers of an answer say."""
    for line in head.lower().split(b"\r\n"):
        if line.startswith(_LENGTH):
            return int(line[len(_LENGTH) :])
    return 0


def main(
    url: str, bodies: Path, rate: float, warm_s: float, seconds: float, seed: int
) -> dict[str, object]:
    """Run once; what was done."""
    phases = [Phase("warm", rate, warm_s), Phase(MEASURED, rate, seconds)]
    arrivals = list(poisson(phases, seed=seed))
    done = Steady(url, bodies.read_bytes().splitlines()).run(arrivals)
    return {**done, "rate_per_s": rate, "seconds": seconds}


if __name__ == "__main__":
    _url, _bodies, *_numbers, _seed = sys.argv[1:]
    _rate, _warm_s, _seconds = map(float, _numbers)
    told = main(_url, Path(_bodies), _rate, _warm_s, _seconds, int(_seed))
    sys.stdout.write(orjson.dumps(told).decode() + "\n")
