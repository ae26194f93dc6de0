"""Metrics of answers, candidates and engines.

Version labels come from loaded manifests, never from a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.filtering.candidates import Selection, Verdict
from service.pipeline.answer import Answer
from service.telemetry.fast_metrics import LATENCY_BUCKETS_S, FastHistogram, FastHistograms

STAGE_BUCKETS_S = (0.0001, 0.0003, *LATENCY_BUCKETS_S)

STAGES = ("prepare", "cache", "admit", "generate", "filter")


class PipelineMetrics:
    """Answers of /rewrite, generations, and the state of engines.

    Args:
        registry: registers the metrics.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._latency = FastHistograms(
            "requery_request_duration_seconds",
            "Latency of /rewrite by version, source and status of the answer",
            ["version", "source", "status"],
            LATENCY_BUCKETS_S,
            registry=registry,
        )
        stages = FastHistograms(
            "requery_stage_duration_seconds",
            "Time in each stage of the pipeline",
            ["stage"],
            STAGE_BUCKETS_S,
            registry=registry,
        )
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        self._candidates = Counter(
            "requery_candidates",
            "Generated candidates by verdict, with the version's own thresholds",
            ["version", "verdict"],
            registry=registry,
        )
        self._relevance = FastHistograms(
            "requery_relevance",
            "Relevance of generated candidates",
            ["version"],
            tuple(i / 20 for i in range(1, 21)),
            registry=registry,
        )
        self._rewrites = FastHistograms(
            "requery_rewrites_per_answer",
            "Accepted rewrites in an answer",
            ["version"],
            (0, 1, 2, 3, 4, 6, 8, 16, 32),
            registry=registry,
        )
        refreshes = Counter(
            "requery_refreshes",
            "Stale cache entries served: refreshed in the background (started), or not (shed)",
            ["result"],
            registry=registry,
        )
        self._refreshes = {result: refreshes.labels(result) for result in ("started", "shed")}
        self._fallbacks = Counter(
            "requery_version_fallbacks",
            "Requests that the default answered because their assigned version was not ready",
            ["version"],
            registry=registry,
        )
        self._tokens = Counter(
            "requery_tokens",
            "Tokens of finished engine requests by kind: prompt, or generated (tags included)",
            ["version", "kind"],
            registry=registry,
        )
        self._engine_up = Gauge(
            "requery_engine_up",
            "1 if the version's engine can answer",
            ["version"],
            registry=registry,
        )
        self._generations = Gauge(
            "requery_generations_in_flight", "Generations in flight", registry=registry
        )
        self._known: dict[tuple[str, str, str], FastHistogram] = {}
        self._rewrites_of: dict[str, FastHistogram] = {}

    def watch_engine(self, version: str, up: Callable[[], bool]) -> None:
        """Read at every scrape whether the engine of ``version`` is up."""
        self._engine_up.labels(version).set_function(lambda: float(up()))
        self._rewrites_of[version] = self._rewrites.labels(version)
        for verdict in Verdict:
            self._candidates.labels(version, verdict.value)

    def watch_generations(self, in_flight: Callable[[], int]) -> None:
        """Read the number of generations in flight at every scrape."""
        self._generations.set_function(in_flight)

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
        """Count a stale entry that was served: ``started`` or ``shed``."""
        self._refreshes[result].inc()

    def fell_back(self, version: str) -> None:
        """Count a request that its assigned version could not serve."""
        self._fallbacks.labels(version).inc()

    def count_tokens(self, version: str) -> Callable[[int, int], None]:
        """A function to call with the prompt and generated tokens of each engine request."""
        prompt = self._tokens.labels(version, "prompt")
        generated = self._tokens.labels(version, "generated")

        def count(prompt_tokens: int, generated_tokens: int) -> None:
            prompt.inc(prompt_tokens)
            generated.inc(generated_tokens)

        return count
