"""Finds the candidates for a query: in the cache, in a generation under way, or in a new one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from copy import copy
from functools import partial
from typing import Any, NamedTuple

from service.cache.keys import cache_key
from service.cache.protocol import Cache
from service.engine.protocol import Candidate
from service.errors import ClientDisconnected, Overloaded, QueryTooLong
from service.filtering.generation import Generation
from service.pipeline.answer import Source
from service.pipeline.metrics import PipelineMetrics
from service.pipeline.params import RewriteParams
from service.pipeline.single_flight import Flight, SingleFlight
from service.resilience.admission import Admission, Gate, Kind, Permit
from service.telemetry.stopwatch import Stopwatch
from service.versions.version import ModelVersion


class GenerationResult(NamedTuple):
    """The candidates that were found by the deadline."""

    generation: Generation
    source: Source
    complete: bool = True
    engine_failed: bool = False


class Generations:
    """Finds candidates in the cache or generates them.

    Args:
        cache: read before a generation, written after it.
        flights: generations under way.
        admission: limits the generations of each engine.
        metrics: records the generations.
        max_refreshing: a stale entry is refreshed only while fewer than this many generations are
            under way, so that refreshing stops first under load.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        flights: SingleFlight,
        admission: Admission,
        metrics: PipelineMetrics,
        max_refreshing: int = 1,
    ) -> None:
        self._cache = cache
        self._flights = flights
        self._admission = admission
        self._metrics = metrics
        self._max_refreshing = max_refreshing
        metrics.watch_generations(lambda: len(flights))

    async def find(
        self, version: ModelVersion, query: str, params: RewriteParams, watch: Stopwatch
    ) -> GenerationResult:
        """The candidates for ``query`` that are ready by the deadline.

        Args:
            version: generates the candidates.
            query: in the version's normal form.
            params: of the request.
            watch: records the time of each stage.

        Raises:
            Overloaded: the engine would not finish it by the deadline.
            QueryTooLong: the query has too many tokens.
            ClientDisconnected: the client disconnected first.
        """
        key = cache_key(version.digest, query)
        hit = await self._cache.get(key, budget_s=params.deadline.remaining())
        watch.lap("cache")
        if hit is not None:
            if hit.stale:
                self._refresh(key, version, query)
            return GenerationResult(hit.generation, hit.tier)
        if not params.may_generate:
            return _no_candidates()
        if not version.up:
            return _no_candidates(engine_failed=True)
        return await self._join_or_start(key, version, query, params, watch)

    async def preview(self, version: ModelVersion, query: str) -> Generation:
        """Generate with low priority and without the cache.

        Raises:
            Overloaded: the engine has no capacity to spare.
            EngineUnavailable, QueryTooLong: the engine cannot generate.
        """
        with self._gate(version).admit(weight_of(version), Kind.SHADOW):
            return Generation.of([c async for c in version.engine.generate(query)])

    async def _join_or_start(
        self,
        key: str,
        version: ModelVersion,
        query: str,
        params: RewriteParams,
        watch: Stopwatch,
    ) -> GenerationResult:
        """Wait for the generation under way or in line, or for a new one."""
        gate = self._gate(version)
        source: Source = "coalesced"
        # No await between this look-up and the start, or two generations could start.
        flight = self._flights.get(key)
        if flight is None:
            source = "engine"
            permit = gate.enter(weight_of(version), params.kind, params.deadline.remaining())
            flight = self._start(key, version, query, permit)
        try:
            await flight.wait(params.deadline.remaining(), params.disconnected, params.kind)
        except ClientDisconnected:
            gate.client_disconnected()
            raise
        if source == "engine" and (flight.queued or params.kind is Kind.BATCH):
            watch.lap("admit", until=flight.begun_at)
        watch.lap("generate")
        failure = flight.failure
        if isinstance(failure, QueryTooLong | Overloaded):
            # A new object, because requests that share the flight must not share a traceback.
            raise copy(failure)
        # A generation that exceeds its own time limit does not show that the engine has failed.
        failed = failure is not None and not isinstance(failure, TimeoutError)
        return GenerationResult(flight.generation, source, flight.complete, failed)

    def _refresh(self, key: str, version: ModelVersion, query: str) -> None:
        """Regenerate a stale entry in the background if the load is low."""
        if len(self._flights) >= self._max_refreshing or not version.up:
            self._metrics.refreshed("shed")
            return
        if key in self._flights:
            return
        try:
            permit = self._gate(version).admit(weight_of(version), Kind.REFRESH)
        except Overloaded:
            self._metrics.refreshed("shed")
            return
        self._start(key, version, query, permit).idle()
        self._metrics.refreshed("started")

    def _start(self, key: str, version: ModelVersion, query: str, permit: Permit) -> Flight:
        """Start the generation for ``key`` and keep its result in the cache."""
        begun = self._cache.epoch

        async def keep(generation: Generation) -> None:
            selection = generation.default_selection(query, version.filter)
            self._metrics.generated(version.name, selection)
            await self._cache.put(key, generation, empty=not selection.accepted, since=begun)

        return self._flights.start(key, partial(_generate, version, query), keep, permit)

    def _gate(self, version: ModelVersion) -> Gate:
        return self._admission.gate(version.name, weight_of(version))


def weight_of(version: ModelVersion) -> int:
    """Candidates of one generation."""
    return len(version.manifest.decoding.temperatures)


def _no_candidates(*, engine_failed: bool = False) -> GenerationResult:
    return GenerationResult(Generation(()), "none", complete=False, engine_failed=engine_failed)


async def _generate(version: ModelVersion, query: str) -> AsyncIterator[Candidate]:
    # The generation may outlast the request that started it.
    with version.serving():
        stream: Any = version.engine.generate(query)
        try:
            async with aclosing(stream):
                async for candidate in stream:
                    yield candidate
        except QueryTooLong:
            raise
        except Exception:
            version.generated(ok=False)
            raise
        version.generated(ok=True)
