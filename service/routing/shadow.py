"""Shadow traffic: a candidate version answers some requests too, in the background.

The candidate's rewrites are compared with those that were served, in metrics and one log line each,
and discarded. It never slows an answer: a request is offered once its answer is built, and only put
into a small queue. A candidate's generation begins only while few generations for shoppers are in
flight, and is cancelled as soon as there are more. What does not fit is dropped and counted because
shadow traffic is a sample anyway.

A candidate that shares its device with the serving version runs in the gaps only; on a device that
is never idle, raise ``REQUERY_SHADOW_MAX_FOREGROUND``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import structlog

from service.routing.document import ShadowTraffic
from service.routing.metrics import Comparison, ShadowMetrics

_log = structlog.get_logger(component="shadow")


class Generate(Protocol):
    """Answers a query with a given version, as it would be served."""

    def __call__(self, version: str, query: str) -> Coroutine[Any, Any, Sequence[str]]:
        """The texts of the rewrites that would be accepted; raises if it cannot generate.

        It joins no generation of a shopper and fills no cache. Cancelling it stops the engine's
        work.
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
        wanted: the shadow traffic that is configured now, if any
            (:meth:`service.routing.router.Router.shadow`).
        generate: answers with the candidate.
        foreground: counts the generations in flight for shoppers.
        metrics: count results.
        max_foreground: limit on those while a shadow generation runs.
        concurrency: limit on shadow generations at a time.
        max_queued: limit on queued requests.
        timeout_s: limit on one shadow generation.
        check_s: interval at which the foreground is checked during a shadow generation.
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
        """Queue an answered request, if it is sampled; never blocks and never raises.

        Args:
            query: as the client sent it, because the candidate may have another normal form.
            served: texts of the rewrites in the answer.
            version: the version that served it. A candidate is not compared with itself.
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
        """Cancel everything, engine requests included; idempotent."""
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
        generation = asyncio.create_task(self._generate(offer.candidate, offer.query))
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

    async def _watched(
        self, generation: asyncio.Task[Sequence[str]], *, until: float
    ) -> str | None:
        """Wait for ``generation``; the result to count if it must not be waited for."""
        while not generation.done():
            await asyncio.wait((generation,), timeout=self._check_s)
            if generation.done():
                break
            if self._busy():
                return "broken_off"
            if time.monotonic() >= until:
                return "timeout"
        return None
