"""Outcomes and transports that tests make up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loadtests.exchange import Outcome, Reply, Request
from tests.support.waiting import turns


class Time:
    """A clock that only moves when something waits on it, or is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await turns()  # what can be done now is done now
        self.now += seconds


class Scripted:
    """Answers each request at once, as it is told."""

    def __init__(self, answer: Callable[[Request], Reply] | None = None) -> None:
        self.sent: list[Request] = []
        self._answer = answer or (lambda _: Reply(200, "ok", "memory"))

    async def send(self, request: Request) -> Reply:
        self.sent.append(request)
        return self._answer(request)


def outcome(due: float = 0.0, latency: float = 0.1, **fields: Any) -> Outcome:
    """A useful answer, unless ``fields`` say otherwise."""
    told: dict[str, Any] = {
        "phase": "p",
        "kind": "k",
        "deadline_s": 1.0,
        "code": 200,
        "status": "ok",
        **fields,
    }
    return Outcome(due=due, sent=told.pop("sent", due), done=due + latency, **told)


def request(**fields: Any) -> Request:
    told: dict[str, Any] = {"kind": "k", "path": "/rewrite", "deadline_s": 1.0, **fields}
    return Request(**told)
