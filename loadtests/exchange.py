"""One request and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

GRACE_S = 0.05
"""What an answer may come after its deadline and still count as in time.

An answer that is partial leaves the service when the deadline is over, never before it.
"""

USEFUL = frozenset({"ok", "none", "partial", ""})
"""Values of ``status`` in a 200 that a search page can use; a route without one has "".

``timeout`` and ``fallback`` say that there was no answer in time.
"""


class Failure(StrEnum):
    """Why a request has no answer."""

    REFUSED = "refused"
    """No connection could be made: the service never had the request."""
    DISCONNECTED = "disconnected"
    """The connection was closed before a byte of the answer."""
    RESET = "reset"
    """The connection broke."""
    CUT = "cut"
    """Only a part of the answer came."""
    UNANSWERED = "unanswered"
    """Nothing came for as long as the generator was willing to wait."""
    LEFT = "left"
    """The caller hung up, as planned."""
    UNSENT = "unsent"
    """The generator had too many requests open already."""


LOST = frozenset({Failure.DISCONNECTED, Failure.RESET, Failure.CUT, Failure.UNANSWERED})
"""The service had (or could have had) the request, and did not answer it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent.

    Attributes:
        kind: what figures are grouped by: ``hit``, ``miss``, ``batch``.
        path: with the query string.
        body: JSON; ``None`` sends none.
        deadline_s: when the answer has to be there; infinite if nobody said.
        leave_after_s: the caller hangs up after so long.
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
    """What came back.

    Attributes:
        code: of HTTP.
        status: of the body; of an error the end of its problem type, such as ``overloaded``.
        source: of the body.
        cache_s: time that the service spent on looking into its cache, by its own account.
    """

    code: int
    status: str = ""
    source: str = ""
    cache_s: float | None = None


class NoReply(Exception):
    """A request that got no answer.

    Args:
        failure: why.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.value)
        self.failure = failure


class Transport(Protocol):
    """Carries requests to a service."""

    async def send(self, request: Request) -> Reply:
        """The answer; cancelling hangs up.

        Raises:
            NoReply: there is none.
        """


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request; times are seconds since the start of the run.

    Attributes:
        due: when it should have been sent. Latency counts from here: a generator or a service
            that is held up must not make its own figures better by sending later.
        sent: when it was sent.
        done: when its answer was complete, or it had failed.
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
    cache_s: float | None = None
    failure: Failure | None = None

    @property
    def latency(self) -> float:
        """Seconds from when it was due."""
        return self.done - self.due

    @property
    def lag(self) -> float:
        """Seconds that the generator was behind its plan."""
        return self.sent - self.due

    @property
    def over_deadline(self) -> float:
        """Seconds after the deadline, counted from when it was due; negative: before it."""
        return self.latency - self.deadline_s

    def late(self, grace_s: float = GRACE_S) -> bool:
        """Whether it came after its deadline, or not at all; not of callers that hung up."""
        return self.failure is not Failure.LEFT and self.over_deadline > grace_s

    def useful(self) -> bool:
        """Whether it brought what a search page can use, however late."""
        return self.failure is None and self.code == 200 and self.status in USEFUL

    def good(self, grace_s: float = GRACE_S) -> bool:
        """Whether it brought that in time: the answers that goodput counts."""
        return self.useful() and self.over_deadline <= grace_s
