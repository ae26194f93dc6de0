"""Shadow traffic: a candidate version answers some requests too, and nobody waits for it.

The candidate's rewrites are compared with those that were served, as metrics and one line of the
log each, and thrown away. It never slows an answer: a request is offered once its own answer is
built, offering does nothing but put it into a small queue, and a candidate's generation begins only
while few enough requests are being generated for shoppers, and is broken off as soon as there are
more. What does not fit in is dropped and counted: shadow traffic is a sample anyway.

A candidate that shares its device with what serves gets its turn in the gaps only; on a device that
is never idle, raise ``REQUERY_SHADOW_MAX_FOREGROUND`` to see it at all.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram

from service.routing.document import ShadowTraffic
from service.telemetry.fast_metrics import LATENCY_BUCKETS_S

_log = structlog.get_logger(component="shadow")

RESULTS = ("compared", "dropped_busy", "dropped_full", "broken_off", "timeout", "failed")
"""What can become of a request that was sampled."""


class Comparison(NamedTuple):
    """Two sets of rewrites of one query."""

    served: int
    candidate: int
    common: int

    @classmethod
    def of(cls, served: Sequence[str], candidate: Sequence[str]) -> Comparison:
        """Compare the texts."""
        left, right = set(served), set(candidate)
        return cls(len(left), len(right), len(left & right))

    @property
    def overlap(self) -> float:
        """Rewrites in common, as a share of those that either gave; 1 if neither gave any."""
        union = self.served + self.candidate - self.common
        return self.common / union if union else 1.0


class ShadowMetrics:
    """What became of shadow traffic, and how the candidate compares.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._results = Counter(
            "requery_shadow",
            "Requests sampled for a candidate version, by what became of them",
            ["version", "result"],
            registry=registry,
        )
        self._rewrites = Counter(
            "requery_shadow_rewrites",
            "Accepted rewrites of compared requests: served, from the candidate, in common",
            ["version", "side"],
            registry=registry,
        )
        self._overlap = Histogram(
            "requery_shadow_overlap",
            "Rewrites in common, as a share of those that either version gave",
            ["version"],
            buckets=tuple(i / 10 for i in range(11)),
            registry=registry,
        )
        self._seconds = Histogram(
            "requery_shadow_duration_seconds",
            "Time that the candidate took for a compared request",
            ["version"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )

    def count(self, version: str, result: str) -> None:
        """Count one of :data:`RESULTS`."""
        self._results.labels(version, result).inc()

    def compared(self, version: str, comparison: Comparison, *, seconds: float) -> None:
        """Record a comparison."""
        self.count(version, "compared")
        for side, n in (
            ("served", comparison.served),
            ("candidate", comparison.candidate),
            ("common", comparison.common),
        ):
            self._rewrites.labels(version, side).inc(n)
        self._overlap.labels(version).observe(comparison.overlap)
        self._seconds.labels(version).observe(seconds)


class Generate(Protocol):
    """Answers a query with a given version, as it would be served."""

    async def __call__(self, version: str, query: str) -> Sequence[str]:
        """The texts of the rewrites that would be accepted; raises if there can be none.

        It takes no permit, joins no generation and fills no cache that serves shoppers. It can be
        cancelled at any time, and lets go of the engine then.
        """


class _Offer(NamedTuple):
    candidate: str
    query: str
    served: tuple[str, ...]
    version: str
    request_id: str


class Shadow:
    """Runs shadow traffic in the background.

    Args:
        wanted: the shadow traffic of the routing document, if there is any
            (:attr:`service.routing.router.Router.shadow`).
        generate: answers with the candidate.
        foreground: generations under way for shoppers.
        metrics: where results are counted.
        max_foreground: shadow generations run only while there are at most this many.
        concurrency: shadow generations at a time.
        max_queued: most requests that wait for their turn.
        timeout_s: bound on one shadow generation.
        check_s: between two looks at the foreground during a shadow generation.
        query_fields: log fields for a query.
        draw: a uniform number in [0, 1) for sampling.
    """

    def __init__(
        self,
        *,
        wanted: Callable[[], ShadowTraffic | None],
        generate: Generate,
        foreground: Callable[[], int],
        metrics: ShadowMetrics,
        max_foreground: int = 0,
        concurrency: int = 1,
        max_queued: int = 8,
        timeout_s: float = 30.0,
        check_s: float = 0.01,
        query_fields: Callable[[str], Mapping[str, str]] = lambda _query: {},
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._wanted = wanted
        self._generate = generate
        self._foreground = foreground
        self._metrics = metrics
        self._max_foreground = max_foreground
        self._concurrency = concurrency
        self._timeout_s = timeout_s
        self._check_s = check_s
        self._query_fields = query_fields
        self._draw = draw
        self._queue: asyncio.Queue[_Offer] = asyncio.Queue(max_queued)
        self._tasks: tuple[asyncio.Task[None], ...] = ()

    def offer(self, *, query: str, served: Sequence[str], version: str, request_id: str) -> None:
        """Take a request that has its answer, if it is sampled; never waits and never raises.

        Args:
            query: as the caller sent it: the candidate may have another normal form.
            served: texts of the rewrites in the answer.
            version: that served it. A candidate is not compared with itself.
            request_id: of the answer.
        """
        wanted = self._wanted()
        if wanted is None or wanted.version == version or self._draw() >= wanted.share:
            return
        if self._busy():
            self._metrics.count(wanted.version, "dropped_busy")
            return
        try:
            self._queue.put_nowait(
                _Offer(wanted.version, query, tuple(served), version, request_id)
            )
        except asyncio.QueueFull:
            self._metrics.count(wanted.version, "dropped_full")

    def start(self) -> None:
        """Begin to generate."""
        if not self._tasks:
            self._tasks = tuple(asyncio.create_task(self._work()) for _ in range(self._concurrency))

    async def close(self) -> None:
        """Stop, engine requests included; idempotent."""
        tasks, self._tasks = self._tasks, ()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _busy(self) -> bool:
        return self._foreground() > self._max_foreground

    async def _work(self) -> None:
        while True:
            offer = await self._queue.get()
            if self._busy():
                self._metrics.count(offer.candidate, "dropped_busy")
                continue
            try:
                await self._compare(offer)
            except Exception as error:  # noqa: BLE001 - a candidate may break in any way
                self._metrics.count(offer.candidate, "failed")
                _log.debug("shadow_failed", version=offer.candidate, reason=repr(error))

    async def _compare(self, offer: _Offer) -> None:
        started = time.monotonic()
        generation = asyncio.create_task(self._generated(offer))
        try:
            result = await self._watched(generation, until=started + self._timeout_s)
        finally:
            generation.cancel()
            await asyncio.gather(generation, return_exceptions=True)
        if result is not None:
            self._metrics.count(offer.candidate, result)
            return
        seconds = time.monotonic() - started
        comparison = Comparison.of(offer.served, generation.result())
        self._metrics.compared(offer.candidate, comparison, seconds=seconds)
        _log.info(
            "shadow",
            request_id=offer.request_id,
            version=offer.version,
            candidate=offer.candidate,
            rewrites=comparison.served,
            candidate_rewrites=comparison.candidate,
            common=comparison.common,
            ms=round(seconds * 1000, 1),
            **self._query_fields(offer.query),
        )

    async def _generated(self, offer: _Offer) -> Sequence[str]:
        return await self._generate(offer.candidate, offer.query)

    async def _watched(
        self, generation: asyncio.Task[Sequence[str]], *, until: float
    ) -> str | None:
        """Wait for ``generation``; what to count instead if it was not to be waited for."""
        while not generation.done():
            await asyncio.wait((generation,), timeout=self._check_s)
            if generation.done():
                break
            if self._busy():
                return "broken_off"
            if time.monotonic() >= until:
                return "timeout"
        return None
