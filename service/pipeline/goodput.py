"""What callers got: answers in time and not, and which arm they were assigned to.

Goodput is what the load tests call so too: answers that a search page can use, by their deadline.
"""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import CollectorRegistry

from service.pipeline.answer import Answer, Status
from service.pipeline.params import RewriteParams
from service.resilience.admission import Kind
from service.routing.router import Assignment, Why
from service.telemetry.fast_metrics import FastCounter, FastCounters

Result = Literal["in_time", "late", "timeout", "fallback"]

GRACE_S = 0.05
"""What an answer may come after its deadline and still be in time, in seconds."""
_USEFUL: frozenset[Status] = frozenset({"ok", "none", "partial"})
_KINDS = (Kind.SHOPPER, Kind.BATCH)
"""Who asks for answers; the other kinds are work of our own."""


class Goodput:
    """Counts every answer of /rewrite and /rewrite/batch: an ``AnswerObserver``.

    Args:
        registry: where the counters are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = FastCounters(
            "requery_answers",
            "Answers by whether the caller could use them: in_time, late (over the deadline by "
            f"more than {GRACE_S * 1000:.0f} ms), timeout (nothing by the deadline), fallback (no "
            "engine); what was turned away is in requery_shed_total",
            ["version", "kind", "result"],
            registry=registry,
        )
        self._assignments = FastCounters(
            "requery_assignments",
            "Answered requests by the version that they were assigned and why: unit (the arm of "
            "an experiment), pin, default, kill; another version may have answered",
            ["version", "why"],
            registry=registry,
        )
        self._answers_of: dict[tuple[str, str, str], FastCounter] = {}
        self._assignments_of: dict[tuple[str, str], FastCounter] = {}

    def watch(self, version: str) -> None:
        """Show ``version`` from the start, with zeros: a rate needs two values."""
        for kind in _KINDS:
            for result in get_args(Result):
                self._answer(version, kind, result)
        for why in get_args(Why):
            self._assignment(version, why)

    def answered(self, params: RewriteParams, assignment: Assignment, answer: Answer) -> None:
        """Count an answer that is about to be sent."""
        self._answer(answer.version, params.kind, _result(params, answer.status)).inc()
        self._assignment(assignment.version, assignment.why).inc()

    def _answer(self, version: str, kind: str, result: str) -> FastCounter:
        counter = self._answers_of.get((version, kind, result))
        if counter is None:
            counter = self._answers.labels(version, kind, result)
            self._answers_of[version, kind, result] = counter
        return counter

    def _assignment(self, version: str, why: str) -> FastCounter:
        counter = self._assignments_of.get((version, why))
        if counter is None:
            counter = self._assignments_of[version, why] = self._assignments.labels(version, why)
        return counter


def _result(params: RewriteParams, status: Status) -> Result:
    if status in _USEFUL:
        return "in_time" if params.deadline.overdue() <= GRACE_S else "late"
    return "timeout" if status == "timeout" else "fallback"
