"""One request, top to bottom: route, normalise, override, cache, coalesce, generate, filter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.cache.keys import cache_key
from service.cache.protocol import Cache
from service.candidates import Generation
from service.coalesce import Coalescer, Flight
from service.deadline import Deadline, Stopwatch
from service.engine.protocol import Candidate
from service.errors import QueryTooLong, UnknownVersion, VersionNotLoaded
from service.filters import Selection
from service.metrics import Metrics
from service.overrides.live import Overrides
from service.routing import Assignment, Router
from service.versions import Version, Versions

Status = Literal["ok", "partial", "timeout", "none", "fallback"]
Source = Literal["engine", "memory", "redis", "coalesced", "override", "none"]

_NOTHING = Selection((), ())


@dataclass(frozen=True, slots=True)
class Ask:
    """What a caller asks for; ``None`` leaves a choice to the version."""

    query: str
    deadline: Deadline
    max_rewrites: int | None = None
    min_relevance: float | None = None
    model_version: str | None = None
    unit_id: str | None = None
    request_id: str = ""
    may_generate: bool = True
    """Whether the engine may be asked: not for a query of a batch whose deadline has passed."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the caller gets."""

    query: str
    """In the version's normal form."""
    version: str
    selection: Selection
    status: Status
    source: Source


class Witness(Protocol):
    """Is told of every answer once it is built: experiments, shadow traffic."""

    def answered(self, ask: Ask, assignment: Assignment, answer: Answer) -> None:
        """Take note; never waits and never raises."""


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
        router: which version serves a request.
        versions: the versions and their engines.
        overrides: what people have decided about queries and terms.
        cache: asked before the engine, filled after it.
        flights: generations under way.
        metrics: where answers and generations are recorded.
        witnesses: told of each answer.
        max_refreshing: a stale entry is made anew only while fewer generations than this are under
            way, so that refreshing is the first thing to go when there is much to do.
    """

    def __init__(
        self,
        *,
        router: Router,
        versions: Versions,
        overrides: Overrides,
        cache: Cache,
        flights: Coalescer,
        metrics: Metrics,
        witnesses: Sequence[Witness] = (),
        max_refreshing: int = 1,
    ) -> None:
        self._router = router
        self._versions = versions
        self._overrides = overrides
        self._cache = cache
        self._flights = flights
        self._metrics = metrics
        self._witnesses = tuple(witnesses)
        self._max_refreshing = max_refreshing
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
        assignment = self._router.assign(pin=ask.model_version, unit_id=ask.unit_id)
        version = self._serving(assignment)
        with version.serving():
            # The version decides on the normal form, so it is chosen first.
            query = version.normal_form(ask.query)
            watch.lap("prepare")
            answer = self._decided(ask, assignment, version, query)
            if answer is None:
                answer = await self._generated(ask, version, query, watch)
            seconds = watch.elapsed()
            version.observed(seconds)
        self._metrics.answered(
            version=version.name,
            source=answer.source,
            status=answer.status,
            seconds=seconds,
            stages=watch.stages,
            rewrites=len(answer.selection.accepted),
        )
        for witness in self._witnesses:
            witness.answered(ask, assignment, answer)
        return answer

    async def preview(self, name: str, query: str) -> tuple[str, ...]:
        """What a version would answer with now; nobody waits for it, and nothing is kept of it.

        Raises:
            UnknownVersion, VersionNotLoaded: the version cannot serve.
            EngineUnavailable, InvalidQuery, QueryTooLong: there can be no answer.
        """
        version = self._versions.serving(name)
        with version.serving():
            normal = version.normal_form(query)
            generation = Generation.of([c async for c in version.engine.generate(normal)])
            judged = version.filter.judge(normal, generation.candidates)
            chosen = version.filter.select(judged, blocked=self._overrides.blocked)
        return tuple(one.text for one in chosen.accepted)

    def _serving(self, assignment: Assignment) -> Version:
        """The assigned version; where it is not ready, the default, unless the caller chose it."""
        try:
            return self._versions.serving(assignment.version)
        except (UnknownVersion, VersionNotLoaded):
            if assignment.why == "pin":
                raise
            self._metrics.fell_back(assignment.version)
            return self._versions.default

    def _off(self, assignment: Assignment, version: Version) -> bool:
        """Whether there are to be no rewrites at all.

        So it is too where the kill switch names a version that is not ready here: the default may
        be the very version that it is meant to stop.
        """
        return assignment.off or (assignment.why == "kill" and assignment.version != version.name)

    def _decided(
        self, ask: Ask, assignment: Assignment, version: Version, query: str
    ) -> Answer | None:
        """The answer where a person has decided on it already."""
        if self._off(assignment, version):
            return Answer(query, version.name, _NOTHING, "none", "none")
        override = self._overrides.of(query)
        if override is None:
            return None
        selection = version.filter.pinned(
            override.rewrites, max_rewrites=ask.max_rewrites, blocked=self._overrides.blocked
        )
        status: Status = "ok" if selection.accepted else "none"
        return Answer(query, version.name, selection, status, "override")

    async def _generated(self, ask: Ask, version: Version, query: str, watch: Stopwatch) -> Answer:
        """The answer out of the cache or the engine."""
        found = await self._find(version, query, ask, watch)
        generation = found.generation
        if generation.judged is None:
            generation.judged = version.filter.judge(query, generation.candidates)
        selection = version.filter.select(
            generation.judged,
            max_rewrites=ask.max_rewrites,
            min_relevance=ask.min_relevance,
            blocked=self._overrides.blocked,
        )
        watch.lap("filter")
        status = _status(found, accepted=len(selection.accepted))
        source = "none" if status in ("timeout", "fallback") else found.source
        return Answer(query, version.name, selection, status, source)

    async def _find(self, version: Version, query: str, ask: Ask, watch: Stopwatch) -> _Found:
        """The candidates for ``query``: cached, else generated, by the deadline."""
        key = cache_key(version.digest, query)
        hit = await self._cache.get(key, budget_s=ask.deadline.remaining())
        watch.lap("cache")
        if hit is not None:
            if hit.stale:
                self._refresh(key, version, query)
            return _Found(hit.generation, "memory" if hit.tier == "memory" else "redis")
        if not ask.may_generate:
            return _Found(Generation(()), "none", complete=False)
        # Nothing may wait between the look-up and joining, or two generations could start.
        flight, leads = self._join(key, version, query)
        await flight.wait(ask.deadline.remaining())
        watch.lap("generate")
        if isinstance(flight.failure, QueryTooLong):
            raise QueryTooLong(*flight.failure.args)
        return _landed(flight, "engine" if leads else "coalesced")

    def _refresh(self, key: str, version: Version, query: str) -> None:
        """Make a stale entry anew in the background, if there is little else to do."""
        if len(self._flights) >= self._max_refreshing or not version.up:
            self._metrics.refreshed("shed")
            return
        _, leads = self._join(key, version, query)
        if leads:
            self._metrics.refreshed("started")

    def _join(self, key: str, version: Version, query: str) -> tuple[Flight, bool]:
        """The generation under way for ``key``, begun if there was none, and whether it was."""
        return self._flights.join(key, _starter(version, query), self._keeper(key, version, query))

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
            await self._cache.put(key, generation, empty=not defaults.accepted)

        return keep


def _starter(version: Version, query: str) -> Callable[[], AsyncIterator[Candidate]]:
    async def generate() -> AsyncIterator[Candidate]:
        # The generation may outlive the request that began it.
        with version.serving():
            stream = version.engine.generate(query)
            try:
                async for candidate in stream:
                    yield candidate
            finally:
                close = getattr(stream, "aclose", None)
                if close is not None:
                    await close()

    return generate


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
