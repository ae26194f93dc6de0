"""Batches simultaneous look-ups into one message to Redis.

A command costs redis-py some hundred microseconds of CPU, hardly more for many keys than for one.
Look-ups of the same turn of the event loop are therefore sent together, and so are those that come
while a message is under way, for two milliseconds at most. Without load each look-up is sent alone,
at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.exceptions import NoPermissionError

from service.redis.bounded import BoundedCommands
from service.redis.client import AnyRedis

MOST = 64
"""Most keys in one message, so that none takes long to build."""

HOLD_S = 0.002
"""Longest that a look-up waits for the message before it."""

Fetch = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]
"""The values of some keys, in their order; ``None`` where there is none."""


class _Waiting(NamedTuple):
    key: str
    end: float
    """When its caller gives up, by the loop's clock."""
    answer: asyncio.Future[Any]


class Lookups:
    """Fetches values; those of one turn in one message.

    Args:
        fetch: asks Redis.
        commands: bounds it; each message is one command.
    """

    def __init__(self, fetch: Fetch, commands: BoundedCommands) -> None:
        self._fetch = fetch
        self._commands = commands
        self._waiting: list[_Waiting] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._latest: asyncio.Task[None] | None = None
        """The message before whose answer the next one is not sent."""
        self._hold: asyncio.TimerHandle | None = None

    async def get(self, key: str, budget_s: float) -> Any:
        """The value under ``key``, or ``None``.

        Cancelling it, or running out of time, does not affect other look-ups.

        Raises:
            TimeoutError: ``budget_s`` seconds are over, or ``commands`` is being closed.
            Exception: an error of Redis or of the connection.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        end = loop.time() + budget_s
        if not self._waiting and self._latest is None:
            # The message is not part of the request that happens to be the first in it.
            loop.call_soon(self._send, context=Context())
        self._waiting.append(_Waiting(key, end, answer))
        timer = loop.call_at(end, _late, answer)
        try:
            return await answer
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Wait for the messages under way; close ``commands`` first."""
        if self._hold is not None:
            self._hold.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        for start in range(0, len(waiting), MOST):
            task = asyncio.ensure_future(self._exchange(waiting[start : start + MOST]))
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            self._latest = task
        if self._hold is not None:
            self._hold.cancel()
        loop = asyncio.get_running_loop()
        self._hold = loop.call_later(HOLD_S, self._let_go, context=Context())

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if task is self._latest:
            self._let_go()

    def _let_go(self) -> None:
        """Let the next message be sent."""
        self._latest = None
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if self._waiting:
            self._send()

    async def _exchange(self, asked: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        keys = list(dict.fromkeys(one.key for one in asked if not one.answer.done()))
        if not keys:
            return
        budget_s = max(one.end for one in asked) - loop.time()
        try:
            values = await self._commands.run(lambda: self._fetch(keys), budget_s)
            found = dict(zip(keys, values, strict=True))
        except Exception as error:  # noqa: BLE001 - raised for each caller
            for one in asked:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one in asked:
            if not one.answer.done():
                one.answer.set_result(found[one.key])


def one_message(client: AnyRedis) -> Fetch | None:
    """Fetches several values with one command; ``None`` for a cluster, whose keys are spread.

    If the login may use ``GET`` but not ``MGET``, they are fetched one by one.
    """
    if isinstance(client, RedisCluster):
        return None
    one_by_one = False

    async def fetch(keys: Sequence[str]) -> Sequence[Any]:
        nonlocal one_by_one
        if len(keys) > 1 and not one_by_one:
            try:
                values: list[Any] = await client.mget(keys)
            except NoPermissionError:
                one_by_one = True
            else:
                return values
        return [await client.get(key) for key in keys]

    return fetch


def _late(answer: asyncio.Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError("no answer in time"))
