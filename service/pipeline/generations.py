"""Generations under way: begun once for all who ask, let in up to a limit, kept in the cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from service.cache.keys import cache_key
from service.cache.protocol import Cache
from service.engine.protocol import Candidate
from service.errors import ClientDisconnected, Overloaded, QueryTooLong
from service.filtering.candidates import Generation
from service.pipeline.metrics import Metrics
from service.pipeline.single_flight import DisconnectWaiter, Flight, SingleFlight
from service.resilience.admission import Admission, Gate, Kind, Permit
from service.resilience.deadline import Deadline
from service.telemetry.stopwatch import Stopwatch
from service.versions.version import ModelVersion

Source = Literal["engine", "memory", "redis", "coalesced", "none"]


@dataclass(slots=True)
class GenerationResult:
    """What the cache or the engine had by the deadline. Nothing changes it."""

    generation: Generation
    source: Source
    complete: bool = True
    engine_failed: bool = False


_NOTHING_YET = GenerationResult(Generation(()), "none", complete=False)
_NO_ENGINE = GenerationResult(Generation(()), "none", complete=False, engine_failed=True)


@dataclass(slots=True)
class Patron:
    """Whom a generation is for. Nothing changes it.

    Attributes:
        deadline: when it is no longer waited for.
        kind: shoppers are turned away when the engine is full; batches wait for a place.
        gone: returns when the caller has hung up; ``None`` if that cannot be told.
        may_generate: whether the engine may be asked at all.
    """

    deadline: Deadline
    kind: Kind = Kind.SHOPPER
    gone: DisconnectWaiter | None = None
    may_generate: bool = True


class Generations:
    """Finds the candidates for a query: in the cache, else from the engine.

    Args:
        cache: asked before the engine, filled after it.
        flights: generations under way.
        admission: lets generations to the engines.
        metrics: where generations are recorded.
        max_refreshing: a stale entry is made anew only while fewer generations than this are under
            way, so that refreshing is the first thing to go when there is much to do.
    """

    def __init__(
        self,
        *,
        cache: Cache,
        flights: SingleFlight,
        admission: Admission,
        metrics: Metrics,
        max_refreshing: int = 1,
    ) -> None:
        self._cache = cache
        self._flights = flights
        self._admission = admission
        self._metrics = metrics
        self._max_refreshing = max_refreshing
        metrics.watch_generations(lambda: len(flights))

    async def find(
        self, version: ModelVersion, query: str, patron: Patron, watch: Stopwatch
    ) -> GenerationResult:
        """The candidates for ``query``, as far as they are there by the deadline.

        Args:
            version: whose candidates.
            query: in its normal form.
            patron: whom they are for.
            watch: gets the time of each stage.

        Raises:
            Overloaded: the engine is full.
            QueryTooLong: the query has too many tokens.
            CallerLeft: the caller hung up first.
        """
        key = cache_key(version.digest, query)
        hit = await self._cache.get(key, budget_s=patron.deadline.remaining())
        watch.lap("cache")
        if hit is not None:
            if hit.stale:
                self._refresh(key, version, query)
            return GenerationResult(hit.generation, "memory" if hit.tier == "memory" else "redis")
        if not patron.may_generate:
            return _NOTHING_YET
        if not version.up:
            # Not a matter of places: those of a lost engine may still be taken by who waits for it.
            return _NO_ENGINE
        permit = None
        if patron.kind is Kind.BATCH and key not in self._flights:
            permit = await self._gate(version).wait(
                weight_of(version), patron.kind, patron.deadline.remaining()
            )
            watch.lap("admit")
            if permit is None:
                return _NOTHING_YET
        return await self._generated(version, query, key, patron, permit, watch)

    async def _generated(
        self,
        version: ModelVersion,
        query: str,
        key: str,
        patron: Patron,
        permit: Permit | None,
        watch: Stopwatch,
    ) -> GenerationResult:
        """From the engine; ``permit`` is that of somebody who has waited for it."""
        gate = self._gate(version)
        admit = partial(gate.admit, weight_of(version), patron.kind)
        if permit is not None:
            # While we waited, another may have generated just this.
            hit = await self._cache.get(key, budget_s=0)
            if hit is not None or key in self._flights:
                permit.release(whole=False)
            if hit is not None:
                return GenerationResult(hit.generation, "memory")
            admit = partial(_taken, permit)
        # Nothing may wait between the look-up and joining, or two generations could start.
        flight, leads = self._join(key, version, query, admit)
        try:
            await flight.wait(patron.deadline.remaining(), patron.gone)
        except ClientDisconnected:
            gate.hung_up()
            raise
        watch.lap("generate")
        if isinstance(flight.failure, QueryTooLong):
            raise QueryTooLong(*flight.failure.args)
        return _landed(flight, "engine" if leads else "coalesced")

    async def preview(self, version: ModelVersion, query: str) -> Generation:
        """What a version generates now; nobody waits for it, and nothing is kept of it.

        Raises:
            Overloaded: the engine has enough to do for shoppers.
            EngineUnavailable, QueryTooLong: there can be none.
        """
        with self._gate(version).admit(weight_of(version), Kind.SHADOW):
            return Generation.of([c async for c in version.engine.generate(query)])

    def _gate(self, version: ModelVersion) -> Gate:
        return self._admission.gate(version.name, weight_of(version))

    def _refresh(self, key: str, version: ModelVersion, query: str) -> None:
        """Make a stale entry anew in the background, if there is little else to do."""
        if len(self._flights) >= self._max_refreshing or not version.up:
            self._metrics.refreshed("shed")
            return
        admit = partial(self._gate(version).admit, weight_of(version), Kind.REFRESH)
        try:
            flight, leads = self._join(key, version, query, admit)
        except Overloaded:
            self._metrics.refreshed("shed")
            return
        if leads:
            flight.nobody_waits()
            self._metrics.refreshed("started")

    def _join(
        self, key: str, version: ModelVersion, query: str, admit: Callable[[], Permit]
    ) -> tuple[Flight, bool]:
        """The generation under way for ``key``, begun if there was none, and whether it was."""
        return self._flights.join(
            key, partial(_generate, version, query), self._keeper(key, version, query), admit
        )

    def _keeper(
        self, key: str, version: ModelVersion, query: str
    ) -> Callable[[tuple[Candidate, ...]], Awaitable[None]]:
        epoch = self._cache.epoch

        async def keep(candidates: tuple[Candidate, ...]) -> None:
            generation = Generation.of(candidates)
            judged = generation.judged = version.filter.judge(query, generation.candidates)
            defaults = version.filter.select(judged)
            self._metrics.generated(
                version=version.name,
                candidates=candidates,
                verdicts=defaults.accepted + defaults.rejected,
            )
            await self._cache.put(key, generation, empty=not defaults.accepted, since=epoch)

        return keep


def weight_of(version: ModelVersion) -> int:
    """Candidates of one generation."""
    return len(version.manifest.decoding.temperatures)


def _taken(permit: Permit) -> Permit:
    return permit


async def _generate(version: ModelVersion, query: str) -> AsyncIterator[Candidate]:
    # The generation may outlive the request that began it.
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


def _landed(flight: Flight, source: Source) -> GenerationResult:
    return GenerationResult(
        Generation.of(flight.candidates),
        source,
        complete=flight.complete,
        # A generation that took too long even for its own bound says nothing about the engine.
        engine_failed=not isinstance(flight.failure, TimeoutError | None),
    )
