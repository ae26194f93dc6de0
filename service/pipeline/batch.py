"""Many queries at a time: answered in order by one deadline, a few of them at once.

What the pipeline does for one query it does for each of these; equal ones share a generation. The
bound on how many are under way holds for all batches together, so that single requests, which
come with a shopper, find the engine free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import structlog

from service.errors import RequeryError
from service.pipeline.answer import Answer
from service.pipeline.params import RewriteParams
from service.telemetry.stopwatch import Stopwatch

_log = structlog.get_logger(component="batch")

MAX_BATCH = 256
"""Most queries of one batch."""

Rewrite = Callable[[RewriteParams, Stopwatch], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class Done:
    """An answer, and where its time went."""

    answer: Answer
    watch: Stopwatch


Outcome = Done | RequeryError
"""What became of one query of a batch."""


class Batches:
    """Answers batches.

    Args:
        rewrite: answers one query by its deadline.
        concurrency: queries of all batches under way at a time.
    """

    def __init__(self, rewrite: Rewrite, *, concurrency: int) -> None:
        self._rewrite = rewrite
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)

    async def answer(self, asks: Sequence[RewriteParams]) -> list[Outcome]:
        """The outcome of each query, in order; a fault of one harms no other.

        Args:
            asks: the queries, with the deadline that they share.
        """
        outcomes: dict[int, Outcome] = {}
        waiting = iter(range(len(asks)))

        async def work() -> None:
            for i in waiting:
                outcomes[i] = await self._one(asks[i])

        workers = min(self._concurrency, len(asks))
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(work())
        return [outcomes[i] for i in range(len(asks))]

    async def _one(self, ask: RewriteParams) -> Outcome:
        if not await self._turn(ask):
            # What a person or the cache has decided costs no turn.
            return await self._answered(replace(ask, may_generate=False))
        try:
            return await self._answered(ask)
        finally:
            self._slots.release()

    async def _answered(self, ask: RewriteParams) -> Outcome:
        watch = Stopwatch()
        try:
            return Done(await self._rewrite(ask, watch), watch)
        except RequeryError as error:
            return error
        except Exception:  # noqa: BLE001 - the others still have an answer
            _log.exception("unhandled_error")
            return RequeryError("the server failed on this query; its log has the details")

    async def _turn(self, ask: RewriteParams) -> bool:
        """Take a slot; whether one came free by the deadline."""
        left = ask.deadline.remaining()
        if not left:
            return False
        try:
            async with asyncio.timeout(left):
                await self._slots.acquire()
        except TimeoutError:
            return False
        return True
