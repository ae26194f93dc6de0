"""One request, top to bottom: route, normalise, override, find candidates, select, observe."""

from __future__ import annotations

from collections.abc import Sequence

from service.errors import UnknownVersion, VersionNotLoaded
from service.filtering.candidates import Selection
from service.filtering.generation import Generation
from service.overrides.live import Overrides
from service.pipeline.answer import Answer, Status
from service.pipeline.generations import GenerationResult, Generations
from service.pipeline.metrics import PipelineMetrics
from service.pipeline.observers import AnswerObserver
from service.pipeline.params import RewriteParams
from service.routing.router import Assignment, Router
from service.telemetry.stopwatch import Stopwatch
from service.versions.registry import VersionRegistry
from service.versions.version import ModelVersion


class Rewriter:
    """The pipeline.

    Args:
        router: assigns a version to each request.
        versions: the versions and their engines.
        overrides: blocked and pinned queries, and blocked terms.
        generations: finds candidates in the cache or generates them.
        metrics: records the answers.
        observers: receive each answer.
    """

    def __init__(
        self,
        *,
        router: Router,
        versions: VersionRegistry,
        overrides: Overrides,
        generations: Generations,
        metrics: PipelineMetrics,
        observers: Sequence[AnswerObserver] = (),
    ) -> None:
        self._router = router
        self._versions = versions
        self._overrides = overrides
        self._generations = generations
        self._metrics = metrics
        self._observers = tuple(observers)

    async def rewrite(self, params: RewriteParams, watch: Stopwatch) -> Answer:
        """Answer one request by its deadline, with the candidates that are ready by then.

        Args:
            params: of the request.
            watch: started when the request arrived; records the time of each stage.

        Raises:
            UnknownVersion, VersionNotLoaded: the pinned version cannot serve.
            InvalidQuery, QueryTooLong: the query cannot be rewritten.
            Overloaded: the engine is full, and no override or cache entry has the answer.
            ClientDisconnected: the client disconnected first.
        """
        assignment = self._router.assign(pin=params.model_version, unit_id=params.unit_id)
        version = self._serving(assignment)
        with version.serving():
            query = version.normal_form(params.query)
            watch.lap("prepare")
            answer = self._overridden(assignment, version, query, params)
            if answer is None:
                found = await self._generations.find(version, query, params, watch)
                answer = self._answer(version, query, found, params)
                watch.lap("filter")
            seconds = watch.elapsed()
            version.observed(seconds)
        self._metrics.answered(answer, seconds=seconds, stages=watch.stages)
        for observer in self._observers:
            observer.answered(params, assignment, answer)
        return answer

    def _serving(self, assignment: Assignment) -> ModelVersion:
        """The assigned version; if that is not ready and not pinned, the default version."""
        try:
            return self._versions.serving(assignment.version)
        except (UnknownVersion, VersionNotLoaded):
            if assignment.why == "pin":
                raise
            self._metrics.fell_back(assignment.version)
            return self._versions.default

    def _overridden(
        self, assignment: Assignment, version: ModelVersion, query: str, params: RewriteParams
    ) -> Answer | None:
        """The answer of the kill switch or of an override, if one applies."""
        # If the kill switch names a version that is not ready, this is the default. It must not
        # answer, because it may be the version to stop.
        target_not_ready = assignment.why == "kill" and assignment.version != version.name
        if assignment.off or target_not_ready:
            nothing = Selection((), ())
            return Answer(query, version.name, nothing, status="none", source="none")
        override = self._overrides.of(query)
        if override is None:
            return None
        selection = version.filter.pinned(
            override.rewrites, max_rewrites=params.max_rewrites, blocked=self._overrides.blocked
        )
        status: Status = "ok" if selection.accepted else "none"
        return Answer(query, version.name, selection, status, "override")

    def _answer(
        self, version: ModelVersion, query: str, found: GenerationResult, params: RewriteParams
    ) -> Answer:
        """The answer from the candidates that were found."""
        selection = self._select(version, query, found.generation, params)
        status = _status(found, accepted=len(selection.accepted))
        # No rewrite came from anywhere, whatever the request waited for.
        source = "none" if status in ("timeout", "fallback") else found.source
        return Answer(query, version.name, selection, status, source)

    def _select(
        self, version: ModelVersion, query: str, generation: Generation, params: RewriteParams
    ) -> Selection:
        if (
            params.max_rewrites is None
            and params.min_relevance is None
            and not self._overrides.has_terms
        ):
            return generation.default_selection(query, version.filter)
        return version.filter.select(
            generation.verdicts(query, version.filter),
            max_rewrites=params.max_rewrites,
            min_relevance=params.min_relevance,
            blocked=self._overrides.blocked,
        )


def _status(found: GenerationResult, *, accepted: int) -> Status:
    if found.complete:
        return "ok" if accepted else "none"
    if accepted:
        return "partial"
    return "fallback" if found.engine_failed else "timeout"
