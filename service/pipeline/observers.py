"""Observers of answers: experiments and shadow traffic."""

from __future__ import annotations

from typing import Protocol

from service.pipeline.answer import Answer
from service.pipeline.params import RewriteParams
from service.routing.exposures import Exposures
from service.routing.router import Assignment
from service.routing.shadow import Shadow


class AnswerObserver(Protocol):
    """Receives every answer before it is sent."""

    def answered(self, params: RewriteParams, assignment: Assignment, answer: Answer) -> None:
        """Record the answer; must not block or raise."""


class Experiments:
    """Passes answers on to exposures and shadow traffic; an :class:`AnswerObserver`.

    Args:
        exposures: records each answer to a unit that is assigned to an arm.
        shadow: samples the answers that a version gave.
    """

    def __init__(self, exposures: Exposures, shadow: Shadow) -> None:
        self._exposures = exposures
        self._shadow = shadow

    def answered(self, params: RewriteParams, assignment: Assignment, answer: Answer) -> None:
        """Record the answer; takes a few microseconds."""
        if assignment.arm is not None and params.unit_id:
            self._exposures.record(
                request_id=params.request_id,
                unit_id=params.unit_id,
                salt=assignment.salt,
                revision=assignment.revision,
                arm=assignment.arm,
                version=answer.version,
                status=answer.status,
                source=answer.source,
                rewrites=len(answer.selection.accepted),
            )
        if answer.source not in ("override", "none"):
            self._shadow.offer(
                query=params.query,
                served=[one.text for one in answer.selection.accepted],
                version=answer.version,
                request_id=params.request_id,
            )
