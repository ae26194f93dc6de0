"""What is compared, and the closed loop that it is compared in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol


class PeerFailed(RuntimeError):
    """A peer could not be started, or did not answer as it should."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a model has done, in tokens; adds up over requests.

    Attributes:
        prompt: tokens of the prompts, once for each sequence that was begun with them.
        generated: tokens of the candidates, each with the one that ends it. Equal work is this one
            being equal.
        tagged: candidates that were tagged in a pass of their own.
    """

    prompt: int = 0
    generated: int = 0
    tagged: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.prompt + other.prompt,
            self.generated + other.generated,
            self.tagged + other.tagged,
        )

    def __sub__(self, other: Work) -> Work:
        return Work(
            self.prompt - other.prompt,
            self.generated - other.generated,
            self.tagged - other.tagged,
        )


class Peer(Protocol):
    """One way to get tagged rewrites out of the same weights."""

    @property
    def name(self) -> str:
        """What figures are called by."""

    @property
    def setup(self) -> dict[str, Any]:
        """How it is configured, for the report."""

    async def start(self) -> None:
        """Load it; returns when it answers.

        Raises:
            PeerFailed: it cannot be started.
        """

    async def ask(self, query: str) -> None:
        """Have the candidates of a query generated and tagged, all of them.

        Raises:
            PeerFailed: it did not answer, or not with all of them.
        """

    async def work(self) -> Work:
        """What it has done since it was started."""

    def freeze(self) -> None:
        """Stop its processes, so that it takes no CPU time from another."""

    def thaw(self) -> None:
        """Let them go on."""

    async def close(self) -> None:
        """End what was started; idempotent."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of closed-loop load.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of the requests that were answered, in seconds.
        failures: what was said of the others, in order.
    """

    seconds: float
    latencies: tuple[float, ...]
    failures: tuple[str, ...] = field(default=())

    @property
    def per_s(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


async def closed_loop(
    ask: Callable[[str], Awaitable[None]],
    queries: Iterable[str],
    callers: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """Have ``callers`` ask all ``queries``, each its next one as soon as it has an answer."""
    rest = iter(queries)
    latencies: list[float] = []
    failures: list[str] = []

    async def caller() -> None:
        for query in rest:
            begin = clock()
            try:
                await ask(query)
            except PeerFailed as error:
                failures.append(str(error))
            else:
                latencies.append(clock() - begin)

    begin = clock()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Turn(clock() - begin, tuple(latencies), tuple(failures))
