"""Batches: many queries answered in order by one deadline, a few of them at once.

Each query goes through the pipeline; equal ones share a generation. All batches share one limit on
concurrent queries, so that shoppers' requests find the engine free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import structlog

from service.errors import RequeryError
from service.pipeline.answer import Answer
from service.pipeline.params import RewriteParams
from service.telemetry.stopwatch import Stopwatch

_log = structlog.get_logger(component="batch")

MAX_BATCH = 256
"""Most queries in one batch."""

Rewrite = Callable[[RewriteParams, Stopwatch], Awaitable[Answer]]


class Done(NamedTuple):
    """An answer and the time of its stages."""

    answer: Answer
    watch: Stopwatch


Outcome = Done | RequeryError
"""Of one query of a batch."""


class Batches:
    """Answers batches.

    Args:
        rewrite: answers one query by its deadline.
        concurrency: concurrent queries of all batches.
    """

    def __init__(self, rewrite: Rewrite, *, concurrency: int) -> None:
        self._rewrite = rewrite
        self._concurrency = concurrency
        self._slots = asyncio.Semaphore(concurrency)

    async def answer(self, queries: Sequence[RewriteParams]) -> list[Outcome]:
        """The outcome of each query, in order; the failure of one does not affect the others.

        Args:
            queries: with the deadline that they share.
        """
        outcomes: dict[int, Outcome] = {}
        waiting = iter(range(len(queries)))

        async def work() -> None:
            for i in waiting:
                outcomes[i] = await self._one(queries[i])

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._concurrency, len(queries))):
                group.create_task(work())
        return [outcomes[i] for i in range(len(queries))]

    async def _one(self, params: RewriteParams) -> Outcome:
        if not await self._slot(params):
            # Overrides and cache hits need no slot.
            return await self._answered(params._replace(may_generate=False))
        try:
            return await self._answered(params)
        finally:
            self._slots.release()

    async def _answered(self, params: RewriteParams) -> Outcome:
        watch = Stopwatch()
        try:
            return Done(await self._rewrite(params, watch), watch)
        except RequeryError as error:
            return error
        except Exception:  # noqa: BLE001 - the other queries still get an answer
            _log.exception("unhandled_error")
            return RequeryError("the server failed on this query; its log has the details")

    async def _slot(self, params: RewriteParams) -> bool:
        """Take a slot; ``False`` if none became free by the deadline."""
        left = params.deadline.remaining()
        if not left:
            return False
        try:
            async with asyncio.timeout(left):
                await self._slots.acquire()
        except TimeoutError:
            return False
        return True
