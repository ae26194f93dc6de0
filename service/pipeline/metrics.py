"""Prometheus metrics in a registry of our own, all named ``requery_*``.

vLLM's collectors live in the global registry, where a second engine unregisters the first's: that
registry is left alone. Version labels come from loaded manifests only, never from a request.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from service.cache.metrics import CacheMetrics
from service.filtering.candidates import Selection, Verdict
from service.pipeline.answer import Answer
from service.telemetry.fast_metrics import (
    LATENCY_BUCKETS_S,
    FastCounter,
    FastCounters,
    FastHistogram,
    FastHistograms,
)

STAGE_BUCKETS_S = (0.0001, 0.0003, *LATENCY_BUCKETS_S)

STAGES = ("prepare", "cache", "admit", "generate", "filter")


class Metrics:
    """Everything that the service counts.

    Args:
        release: version of this program, for ``requery_build_info``.
    """

    def __init__(self, *, release: str) -> None:
        # Doubles the series, and says nothing that a counter's reset does not.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.cache = CacheMetrics(self.registry)
        self._latency = self._histogram(
            "requery_request_duration_seconds",
            "Latency of /rewrite by version, source and status of the answer",
            ["version", "source", "status"],
        )
        self._stage = self._histogram(
            "requery_stage_duration_seconds",
            "Time in each stage of the pipeline",
            ["stage"],
            STAGE_BUCKETS_S,
        )
        self._stages = {stage: self._stage.labels(stage) for stage in STAGES}
        self._responses = FastCounters(
            "requery_http_responses",
            "HTTP responses by route (as in the OpenAPI document) and status code",
            ["route", "code"],
            registry=self.registry,
        )
        self._candidates = Counter(
            "requery_candidates",
            "Generated candidates by verdict, with the version's own thresholds",
            ["version", "verdict"],
            registry=self.registry,
        )
        self._relevance = self._histogram(
            "requery_relevance",
            "Relevance of generated candidates",
            ["version"],
            tuple(i / 20 for i in range(1, 21)),
        )
        self._rewrites = self._histogram(
            "requery_rewrites_per_answer",
            "Accepted rewrites in an answer",
            ["version"],
            (0, 1, 2, 3, 4, 6, 8, 16, 32),
        )
        refreshes = Counter(
            "requery_refreshes",
            "Stale cache entries met: made anew in the background (started), or not (shed)",
            ["result"],
            registry=self.registry,
        )
        self._refreshes = {result: refreshes.labels(result) for result in ("started", "shed")}
        self._fallbacks = Counter(
            "requery_version_fallbacks",
            "Requests that the default answered since their assigned version was not ready here",
            ["version"],
            registry=self.registry,
        )
        self._tokens = Counter(
            "requery_tokens",
            "Tokens of finished engine requests by kind: prompt, or generated (tags included)",
            ["version", "kind"],
            registry=self.registry,
        )
        self._engine_up = Gauge(
            "requery_engine_up",
            "1 if the version's engine can answer",
            ["version"],
            registry=self.registry,
        )
        self._generations = Gauge(
            "requery_generations_in_flight", "Generations under way", registry=self.registry
        )
        self.in_flight = 0
        """HTTP requests under way."""
        Gauge(
            "requery_requests_in_flight", "HTTP requests under way", registry=self.registry
        ).set_function(lambda: self.in_flight)
        # A scrape happens in the event loop, so these are its tasks.
        Gauge(
            "requery_asyncio_tasks", "Tasks of the event loop", registry=self.registry
        ).set_function(lambda: len(asyncio.all_tasks()))
        Gauge(
            "requery_build_info",
            "Always 1; what is running",
            ["release", "python"],
            registry=self.registry,
        ).labels(release, platform.python_version()).set(1)
        ProcessCollector(namespace="requery", registry=self.registry)
        self._known: dict[tuple[str, str, str], FastHistogram] = {}
        self._rewrites_of: dict[str, FastHistogram] = {}
        self._responses_of: dict[tuple[str, int], FastCounter] = {}

    def watch_engine(self, version: str, up: Callable[[], bool]) -> None:
        """Read at every scrape whether the engine of ``version`` is up."""
        self._engine_up.labels(version).set_function(lambda: float(up()))
        self._rewrites_of[version] = self._rewrites.labels(version)
        for verdict in Verdict:
            self._candidates.labels(version, verdict.value)

    def watch_generations(self, under_way: Callable[[], int]) -> None:
        """Read at every scrape how many generations are under way."""
        self._generations.set_function(under_way)

    def answered(self, answer: Answer, *, seconds: float, stages: Mapping[str, float]) -> None:
        """Record one answer of /rewrite and the seconds of its stages."""
        labels = (answer.version, answer.source, answer.status)
        latency = self._known.get(labels)
        if latency is None:
            latency = self._known[labels] = self._latency.labels(*labels)
        latency.observe(seconds)
        for stage, spent in stages.items():
            self._stages[stage].observe(spent)
        self._rewrites_of[answer.version].observe(len(answer.selection.accepted))

    def generated(self, version: str, selection: Selection) -> None:
        """Record one complete generation by the version's default selection."""
        for one in selection.accepted + selection.rejected:
            if one.relevance is not None:
                self._relevance.labels(version).observe(one.relevance)
            self._candidates.labels(version, one.verdict.value).inc()

    def refreshed(self, result: str) -> None:
        """Count a stale entry that was met: ``started`` or ``shed``."""
        self._refreshes[result].inc()

    def fell_back(self, version: str) -> None:
        """Count a request that its assigned version could not serve; the name is a document's."""
        self._fallbacks.labels(version).inc()

    def count_tokens(self, version: str) -> Callable[[int, int], None]:
        """What to tell of the prompt and generated tokens of each engine request."""
        prompt = self._tokens.labels(version, "prompt")
        generated = self._tokens.labels(version, "generated")

        def count(prompt_tokens: int, generated_tokens: int) -> None:
            prompt.inc(prompt_tokens)
            generated.inc(generated_tokens)

        return count

    def responded(self, *, route: str, code: int) -> None:
        """Count one HTTP response; ``route`` is a template, never a raw path."""
        counter = self._responses_of.get((route, code))
        if counter is None:
            counter = self._responses_of[route, code] = self._responses.labels(route, str(code))
        counter.inc()

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as text, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def _histogram(
        self,
        name: str,
        text: str,
        labels: list[str],
        buckets: tuple[float, ...] = LATENCY_BUCKETS_S,
    ) -> FastHistograms:
        return FastHistograms(name, text, labels, buckets, registry=self.registry)
