"""What experiments see of an answer: the exposure of a unit to its arm, and shadow traffic."""

from __future__ import annotations

from service.pipeline.rewriter import Answer, RewriteParams
from service.routing.exposures import Exposures
from service.routing.router import Assignment
from service.routing.shadow import Shadow


class Experiments:
    """Passes answers on; a :class:`service.pipeline.rewriter.AnswerObserver`.

    Args:
        exposures: gets each answer to a unit that was assigned to an arm.
        shadow: gets each answer that a version gave.
    """

    def __init__(self, exposures: Exposures, shadow: Shadow) -> None:
        self._exposures = exposures
        self._shadow = shadow

    def answered(self, ask: RewriteParams, assignment: Assignment, answer: Answer) -> None:
        """Take note; a few microseconds."""
        if assignment.arm is not None and ask.unit_id:
            self._exposures.record(
                request_id=ask.request_id,
                unit_id=ask.unit_id,
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
                query=ask.query,
                served=[one.text for one in answer.selection.accepted],
                version=answer.version,
                request_id=ask.request_id,
            )
