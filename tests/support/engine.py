"""An engine that says what it was told to, when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from service.engine.errors import EngineUnavailable
from service.engine.protocol import Candidate

Script = Sequence[tuple[str, float | None]]


def candidates(script: Script) -> list[Candidate]:
    """Candidates with these texts and relevances."""
    return [Candidate(text, tuple(range(len(text.split()))), p) for text, p in script]


class ScriptedEngine:
    """Implements ``service.engine.protocol.Engine``.

    Args:
        script: candidates for each query; ``default`` for queries that are not in it.
        held: if true, generation stops before the last candidate until :meth:`release`.
        held_from: number of candidates given before it stops (with ``held``).
        fault: raised before the candidate with index ``fault_at``.
    """

    def __init__(
        self,
        script: dict[str, Script] | None = None,
        *,
        default: Script = (("steel stake", 0.98), ("metal stake", 0.91)),
        held: bool = False,
        held_from: int = 1,
        fault: Exception | None = None,
        fault_at: int = 0,
        start_fault: Exception | None = None,
        tag: Callable[[str, str], float] = lambda _q, _r: 0.5,
    ) -> None:
        self.on_tokens: Callable[[int, int], None] | None = None
        self.script = script or {}
        self.default = default
        self.fault = fault
        self.fault_at = fault_at
        self.start_fault = start_fault
        self.held_from = held_from
        self.generated: list[str] = []
        """Queries generated for, in order."""
        self.tagged: list[tuple[str, str]] = []
        self.closed_streams = 0
        self.alive = True
        self.closed = False
        self.outstanding = 0
        self.progress = 0
        self.effort = 0.0
        self.matrices: str | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.reached_hold = asyncio.Event()
        self._may_go_on = asyncio.Event()
        self._tag = tag
        if not held:
            self._may_go_on.set()

    @property
    def healthy(self) -> bool:
        return self.alive and not self.closed

    def hold(self) -> None:
        """Hold generations again."""
        self._may_go_on.clear()

    def release(self) -> None:
        """Let held generations go on."""
        self._may_go_on.set()

    def die(self) -> None:
        """End as a killed engine core does: what is under way fails."""
        self.alive = False
        self._may_go_on.set()

    async def start(self) -> None:
        await self.may_start.wait()
        if self.start_fault is not None:
            raise self.start_fault

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        self.generated.append(query)
        self.outstanding += 1
        try:
            for i, candidate in enumerate(self._candidates(query)):
                if self.fault is not None and i == self.fault_at:
                    raise self.fault
                if i == self.held_from:
                    self.reached_hold.set()
                    await self._go_on()
                # Real candidates come in turns of the event loop of their own.
                await asyncio.sleep(0)
                self.progress += 1
                if self.on_tokens is not None:
                    self.on_tokens(3, len(candidate.token_ids) + 1)
                yield candidate
        finally:
            self.outstanding -= 1
            self.closed_streams += 1

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.tagged += pairs
        if self.fault is not None:
            raise self.fault
        self.outstanding += 1
        try:
            await self._go_on()
        finally:
            self.outstanding -= 1
        self.progress += 1
        return [self._tag(query, rewrite) for query, rewrite in pairs]

    async def close(self) -> None:
        self.closed = True
        self._may_go_on.set()

    async def _go_on(self) -> None:
        await self._may_go_on.wait()
        if not self.healthy:
            raise EngineUnavailable("the engine has stopped; try again shortly")

    def _candidates(self, query: str) -> Iterable[Candidate]:
        return candidates(self.script.get(query, self.default))
