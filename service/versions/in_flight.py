"""Who is using a version now, and how fast its answers have been."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import NamedTuple, Self

WINDOW = 1024
"""Latencies kept: enough for a 95th percentile of what a version does now."""


class Latency(NamedTuple):
    """Percentiles over the last answers, in seconds."""

    p50: float
    p95: float


class InFlightTracker:
    """Counts what is under way with a version; the version is not unloaded before that ends.

    It is a context manager, entered by each request and by each generation, which may outlive the
    request. It may be entered any number of times, also by one that has entered it already. Used
    in one event loop.

    Args:
        window: how many latencies are kept.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.requests = 0
        """Requests answered so far."""
        self.in_flight = 0
        """Requests and generations under way."""
        self._idle = asyncio.Event()
        self._idle.set()
        self._latencies: deque[float] = deque(maxlen=window)

    def __enter__(self) -> Self:
        """One more is under way."""
        if not self.in_flight:
            self._idle.clear()
        self.in_flight += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """It has ended, well or not."""
        self.in_flight -= 1
        if not self.in_flight:
            self._idle.set()

    async def drained(self) -> None:
        """Return when nothing is under way."""
        while self.in_flight:
            await self._idle.wait()

    def observed(self, seconds: float) -> None:
        """One request was answered after ``seconds``."""
        self.requests += 1
        self._latencies.append(seconds)

    def latency(self) -> Latency | None:
        """How fast the last answers were; ``None`` if there were none."""
        ordered = sorted(self._latencies)
        if not ordered:
            return None
        last = len(ordered) - 1
        return Latency(ordered[round(0.5 * last)], ordered[round(0.95 * last)])
