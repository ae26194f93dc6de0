"""One request, top to bottom: route, normalise, cache, coalesce, generate, filter, answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from service.cache.keys import cache_key
from service.cache.protocol import Cache
from service.candidates import Generation
from service.coalesce import Coalescer, Flight
from service.deadline import Deadline, Stopwatch
from service.engine.protocol import Candidate
from service.errors import QueryTooLong
from service.filters import Selection
from service.metrics import Metrics
from service.versions import Version, Versions

Status = Literal["ok", "partial", "timeout", "none", "fallback"]
Source = Literal["engine", "memory", "redis", "coalesced", "override", "none"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for; ``None`` leaves a choice to the version."""

    query: str
    deadline: Deadline
    max_rewrites: int | None = None
    min_relevance: float | None = None
    model_version: str | None = None
    unit_id: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets."""

    query: str
    """In the version's normal form."""
    version: str
    selection: Selection
    status: Status
    source: Source


@dataclass(frozen=True, slots=True)
class _Found:
    """What the cache or the engine had by the deadline."""

    generation: Generation
    source: Source
    complete: bool = True
    engine_failed: bool = False


class Rewriter:
    """The pipeline.

    Args:
        versions: where requests are routed to.
        cache: asked before the engine, filled after it.
        flights: generations under way.
        metrics: where answers and generations are recorded.
    """

    def __init__(
        self, *, versions: Versions, cache: Cache, flights: Coalescer, metrics: Metrics
    ) -> None:
        self._versions = versions
        self._cache = cache
        self._flights = flights
        self._metrics = metrics
        metrics.watch_generations(lambda: len(flights))

    async def rewrite(self, ask: Ask, watch: Stopwatch) -> Answer:
        """Answer one request by its deadline, with whatever is ready then.

        Args:
            ask: the request.
            watch: started when the request came in; gets the time of each stage.

        Raises:
            UnknownVersion, VersionNotLoaded: the pinned version cannot serve.
            InvalidQuery, QueryTooLong: the query cannot be rewritten.
        """
        # The version decides on the normal form, so it is chosen first.
        version = self._versions.route(ask.model_version)
        query = version.normal_form(ask.query)
        watch.lap("prepare")
        found = await self._find(version, query, ask.deadline, watch)
        generation = found.generation
        if generation.judged is None:
            generation.judged = version.filter.judge(query, generation.candidates)
        selection = version.filter.select(
            generation.judged, max_rewrites=ask.max_rewrites, min_relevance=ask.min_relevance
        )
        watch.lap("filter")
        status = _status(found, accepted=len(selection.accepted))
        source = "none" if status in ("timeout", "fallback") else found.source
        answer = Answer(query, version.name, selection, status, source)
        self._metrics.answered(
            version=version.name,
            source=source,
            status=status,
            seconds=watch.elapsed(),
            stages=watch.stages,
            rewrites=len(selection.accepted),
        )
        return answer

    async def _find(
        self, version: Version, query: str, deadline: Deadline, watch: Stopwatch
    ) -> _Found:
        """The candidates for ``query``: cached, else generated, by the deadline."""
        key = cache_key(version.digest, query)
        hit = await self._cache.get(key, budget_s=deadline.remaining())
        watch.lap("cache")
        if hit is not None:
            return _Found(hit.generation, "memory" if hit.tier == "memory" else "redis")
        # Nothing may wait between the look-up and joining, or two generations could start.
        flight, leads = self._flights.join(
            key, _starter(version, query), self._keeper(key, version, query)
        )
        await flight.wait(deadline.remaining())
        watch.lap("generate")
        if isinstance(flight.failure, QueryTooLong):
            raise QueryTooLong(*flight.failure.args)
        return _landed(flight, "engine" if leads else "coalesced")

    def _keeper(
        self, key: str, version: Version, query: str
    ) -> Callable[[tuple[Candidate, ...]], Awaitable[None]]:
        async def keep(candidates: tuple[Candidate, ...]) -> None:
            generation = Generation.of(candidates)
            judged = generation.judged = version.filter.judge(query, generation.candidates)
            defaults = version.filter.select(judged)
            self._metrics.generated(
                version=version.name,
                candidates=candidates,
                verdicts=defaults.accepted + defaults.rejected,
            )
            await self._cache.put(key, generation)

        return keep


def _starter(version: Version, query: str) -> Callable[[], AsyncIterator[Candidate]]:
    return lambda: version.engine.generate(query)


def _landed(flight: Flight, source: Source) -> _Found:
    return _Found(
        Generation.of(flight.candidates),
        source,
        complete=flight.complete,
        # A generation that took too long even for its own bound says nothing about the engine.
        engine_failed=not isinstance(flight.failure, TimeoutError | None),
    )


def _status(found: _Found, *, accepted: int) -> Status:
    if found.complete:
        return "ok" if accepted else "none"
    if accepted:
        return "partial"
    return "fallback" if found.engine_failed else "timeout"
