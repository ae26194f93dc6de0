"""A request and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

GRACE_S = 0.05
"""How late an answer may be and still count as in time, in seconds.

A partial answer leaves the service at its deadline, never before it.
"""

USEFUL = frozenset({"ok", "none", "partial", ""})
"""Values of ``status`` in a 200 that a search page can use; routes without one have "".

``timeout`` and ``fallback`` mean that there was no answer in time.
"""


class Failure(StrEnum):
    """The reason why a request has no answer."""

    REFUSED = "refused"
    """No connection: the service never got the request."""
    DISCONNECTED = "disconnected"
    """The connection was closed before the answer began."""
    RESET = "reset"
    """The connection broke."""
    CUT = "cut"
    """The answer is incomplete."""
    UNANSWERED = "unanswered"
    """No answer came within the generator's own timeout."""
    LEFT = "left"
    """The caller hung up, as planned."""
    UNSENT = "unsent"
    """The generator had too many open requests."""


LOST = frozenset({Failure.DISCONNECTED, Failure.RESET, Failure.CUT, Failure.UNANSWERED})
"""The service may have got the request and did not answer it."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send.

    Attributes:
        kind: group of its figures: ``hit``, ``miss``, ``batch``.
        path: with the query string.
        body: JSON, or ``None``.
        deadline_s: of the answer; infinite by default.
        leave_after_s: when the caller hangs up.
    """

    kind: str
    path: str
    body: bytes | None = None
    method: str = "POST"
    headers: Mapping[str, str] = field(default_factory=dict)
    deadline_s: float = float("inf")
    leave_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer.

    Attributes:
        code: HTTP status.
        status: of the body; for an error the last part of its problem type, such as ``overloaded``.
        source: of the body.
        stages: seconds of each stage, by the header ``Server-Timing``.
    """

    code: int
    status: str = ""
    source: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


class NoReply(Exception):
    """A request got no answer.

    Args:
        failure: the reason.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


class Transport(Protocol):
    """Sends requests to a service."""

    async def send(self, request: Request) -> Reply:
        """Send a request; cancelling hangs up.

        Raises:
            NoReply: no answer came.
        """


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request; times are seconds since the start of the run.

    Attributes:
        due: when it should have been sent. Latency counts from here, so a stalled generator or
            service cannot improve its figures by sending later.
        sent: when it was sent.
        done: when its answer was complete, or it failed.
        failure: ``None`` if there is an answer.
    """

    phase: str
    kind: str
    due: float
    sent: float
    done: float
    deadline_s: float
    code: int = 0
    status: str = ""
    source: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)
    failure: Failure | None = None

    @property
    def latency(self) -> float:
        """Seconds from when it was due."""
        return self.done - self.due

    @property
    def lag(self) -> float:
        """Seconds that the generator was behind schedule."""
        return self.sent - self.due

    @property
    def over_deadline(self) -> float:
        """Seconds after the deadline, counted from when it was due; negative if before it."""
        return self.latency - self.deadline_s

    def late(self, grace_s: float = GRACE_S) -> bool:
        """Whether it came too late or never; false for callers that hung up."""
        return self.failure is not Failure.LEFT and self.over_deadline > grace_s

    def useful(self) -> bool:
        """Whether a search page can use the answer, however late."""
        return self.failure is None and self.code == 200 and self.status in USEFUL

    def good(self, grace_s: float = GRACE_S) -> bool:
        """Whether a useful answer came in time; goodput counts these."""
        return self.useful() and self.over_deadline <= grace_s
