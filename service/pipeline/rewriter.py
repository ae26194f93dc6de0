"""One request, top to bottom: route, normalise, override, find candidates, filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from service.errors import UnknownVersion, VersionNotLoaded
from service.filtering.candidates import Selection
from service.overrides.live import Overrides
from service.pipeline.generations import GenerationResult, Generations, Patron
from service.pipeline.metrics import Metrics
from service.pipeline.single_flight import DisconnectWaiter
from service.resilience.admission import Kind
from service.resilience.deadline import Deadline
from service.routing.router import Assignment, Router
from service.telemetry.stopwatch import Stopwatch
from service.versions.registry import VersionRegistry
from service.versions.version import ModelVersion

Status = Literal["ok", "partial", "timeout", "none", "fallback"]
Source = Literal["engine", "memory", "redis", "coalesced", "override", "none"]

_NOTHING = Selection((), ())


@dataclass(slots=True)
class RewriteParams:
    """What a caller asks for; ``None`` leaves a choice to the version. Nothing changes it."""

    query: str
    deadline: Deadline
    max_rewrites: int | None = None
    min_relevance: float | None = None
    model_version: str | None = None
    unit_id: str | None = None
    request_id: str = ""
    may_generate: bool = True
    """Whether the engine may be asked: not for a query of a batch whose deadline has passed."""
    kind: Kind = Kind.SHOPPER
    gone: DisconnectWaiter | None = None
    """Returns when the caller has hung up; ``None`` if that cannot be told."""

    @property
    def patron(self) -> Patron:
        """Whom a generation would be for."""
        return Patron(self.deadline, self.kind, self.gone, self.may_generate)


@dataclass(slots=True)
class Answer:
    """What the caller gets. Nothing changes it."""

    query: str
    """In the version's normal form."""
    version: str
    selection: Selection
    status: Status
    source: Source


class AnswerObserver(Protocol):
    """Is told of every answer once it is built: experiments, shadow traffic."""

    def answered(self, ask: RewriteParams, assignment: Assignment, answer: Answer) -> None:
        """Take note; never waits and never raises."""


class Rewriter:
    """The pipeline.

    Args:
        router: which version serves a request.
        versions: the versions and their engines.
        overrides: what people have decided about queries and terms.
        generations: finds the candidates, in the cache or from an engine.
        metrics: where answers are recorded.
        witnesses: told of each answer.
    """

    def __init__(
        self,
        *,
        router: Router,
        versions: VersionRegistry,
        overrides: Overrides,
        generations: Generations,
        metrics: Metrics,
        witnesses: Sequence[AnswerObserver] = (),
    ) -> None:
        self._router = router
        self._versions = versions
        self._overrides = overrides
        self._generations = generations
        self._metrics = metrics
        self._witnesses = tuple(witnesses)

    async def rewrite(self, ask: RewriteParams, watch: Stopwatch) -> Answer:
        """Answer one request by its deadline, with whatever is ready then.

        Args:
            ask: the request.
            watch: started when the request came in; gets the time of each stage.

        Raises:
            UnknownVersion, VersionNotLoaded: the pinned version cannot serve.
            InvalidQuery, QueryTooLong: the query cannot be rewritten.
            Overloaded: the engine is full, and neither a person nor the cache has an answer.
            CallerLeft: the caller hung up first.
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
            EngineUnavailable, InvalidQuery, Overloaded, QueryTooLong: there can be no answer.
        """
        version = self._versions.serving(name)
        with version.serving():
            normal = version.normal_form(query)
            generation = await self._generations.preview(version, normal)
            judged = version.filter.judge(normal, generation.candidates)
            chosen = version.filter.select(judged, blocked=self._overrides.blocked)
        return tuple(one.text for one in chosen.accepted)

    def _serving(self, assignment: Assignment) -> ModelVersion:
        """The assigned version; where it is not ready, the default, unless the caller chose it."""
        try:
            return self._versions.serving(assignment.version)
        except (UnknownVersion, VersionNotLoaded):
            if assignment.why == "pin":
                raise
            self._metrics.fell_back(assignment.version)
            return self._versions.default

    def _off(self, assignment: Assignment, version: ModelVersion) -> bool:
        """Whether there are to be no rewrites at all.

        So it is too where the kill switch names a version that is not ready here: the default may
        be the very version that it is meant to stop.
        """
        return assignment.off or (assignment.why == "kill" and assignment.version != version.name)

    def _decided(
        self, ask: RewriteParams, assignment: Assignment, version: ModelVersion, query: str
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

    async def _generated(
        self, ask: RewriteParams, version: ModelVersion, query: str, watch: Stopwatch
    ) -> Answer:
        """The answer out of the cache or the engine."""
        found = await self._generations.find(version, query, ask.patron, watch)
        generation = found.generation
        if generation.judged is None:
            generation.judged = version.filter.judge(query, generation.candidates)
        if ask.max_rewrites is None and ask.min_relevance is None and not self._overrides.has_terms:
            # The same for all who leave the choice to the version, and most do.
            selection = generation.usual
            if selection is None:
                selection = generation.usual = version.filter.select(generation.judged)
        else:
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


def _status(found: GenerationResult, *, accepted: int) -> Status:
    if found.complete:
        return "ok" if accepted else "none"
    if accepted:
        return "partial"
    return "fallback" if found.engine_failed else "timeout"
