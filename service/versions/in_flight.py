"""Requests and generations in flight with a version, and its latency."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

WINDOW = 1024
"""Latencies kept: enough for a 95th percentile."""


class Latency(NamedTuple):
    """Percentiles over the last answers, in seconds."""

    p50: float
    p95: float


class InFlightTracker:
    """Counts what is in flight with a version; an unload waits until the count is zero.

    A context manager that each request and each generation enters; a generation may outlive its
    request. It is re-entrant. Use it in one event loop.

    Args:
        window: how many latencies are kept.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.requests = 0
        """Requests answered."""
        self.count = 0
        """Requests and generations in flight."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._latencies: deque[float] = deque(maxlen=window)

    def __enter__(self) -> Self:
        """Count one more."""
        if not self.count:
            self._idle.clear()
        self.count += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Count one less, whether it succeeded or failed."""
        self.count -= 1
        if not self.count:
            self._idle.set()

    async def drained(self) -> None:
        """Return when nothing is in flight."""
        while self.count:
            await self._idle.wait()

    def observed(self, seconds: float) -> None:
        """Record that a request was answered after ``seconds``."""
        self.requests += 1
        self._latencies.append(seconds)

    def latency(self) -> Latency | None:
        """Percentiles of the last answers; ``None`` if there were none."""
        ordered = sorted(self._latencies)
        if not ordered:
            return None
        last = len(ordered) - 1
        return Latency(ordered[round(0.5 * last)], ordered[round(0.95 * last)])
