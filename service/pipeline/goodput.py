"""Goodput: answers that a search page can use, by their deadline; and assignments to versions."""

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
"""Seconds after the deadline in which an answer still counts as in time."""
_USEFUL: frozenset[Status] = frozenset({"ok", "none", "partial"})
_KINDS = (Kind.SHOPPER, Kind.BATCH)
"""Kinds of clients' requests; the others are internal work."""


class Goodput:
    """Counts every answer of /rewrite and /rewrite/batch: an ``AnswerObserver``.

    Args:
        registry: registers the counters.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._answers = FastCounters(
            "requery_answers",
            "Answers by usefulness: in_time, late (over the deadline by more than "
            f"{GRACE_S * 1000:.0f} ms), timeout (nothing by the deadline), fallback (no engine); "
            "requery_shed_total counts rejected requests",
            ["version", "kind", "result"],
            registry=registry,
        )
        self._assignments = FastCounters(
            "requery_assignments",
            "Answered requests by assigned version and reason: unit (the arm of an experiment), "
            "pin, default, kill; another version may have answered",
            ["version", "why"],
            registry=registry,
        )
        self._answers_of: dict[tuple[str, str, str], FastCounter] = {}
        self._assignments_of: dict[tuple[str, str], FastCounter] = {}

    def watch(self, version: str) -> None:
        """Show ``version`` with zeros from the start, because a rate needs two values."""
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
