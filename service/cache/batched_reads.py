"""Look-ups that happen together travel to Redis as one message.

A command costs redis-py some hundred microseconds of this process, of which very little is the
key's own. What is asked for in the same turn of the event loop is therefore asked for together, and
so is what comes while a message is under way, for two milliseconds at most. With little to do each
look-up goes alone, at once.
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
"""Keys in one message, so that none is long in the making."""

HOLD_S = 0.002
"""Longest that a look-up waits for the message before it: one that is slower holds nobody up."""

Fetch = Callable[[Sequence[str]], Awaitable[Sequence[Any]]]
"""The values of some keys, in their order; ``None`` where there is none."""


class _Waiting(NamedTuple):
    key: str
    end: float
    """When nobody waits for it any longer, by the loop's clock."""
    answer: asyncio.Future[Any]


class Lookups:
    """Fetches values, those of one turn together.

    Args:
        fetch: asks Redis.
        commands: runs it; each message takes one of its places.
    """

    def __init__(self, fetch: Fetch, commands: BoundedCommands) -> None:
        self._fetch = fetch
        self._commands = commands
        self._waiting: list[_Waiting] = []
        self._under_way: set[asyncio.Task[None]] = set()
        self._latest: asyncio.Task[None] | None = None
        """The message that is waited for before the next one is sent."""
        self._hold: asyncio.TimerHandle | None = None

    async def get(self, key: str, budget_s: float) -> Any:
        """The value under ``key``, or ``None``.

        Cancelling it, or running out of time, changes nothing for the others.

        Raises:
            TimeoutError: ``budget_s`` seconds are over, or the places are being closed.
            Exception: whatever Redis or the connection to it runs into.
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
        """Return when no message is under way; those of ``commands`` have been stopped before."""
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
        """The next message need not wait any longer."""
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
        except Exception as error:  # noqa: BLE001 - each caller gets it
            for one in asked:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        for one in asked:
            if not one.answer.done():
                one.answer.set_result(found[one.key])


def one_message(client: AnyRedis) -> Fetch | None:
    """What fetches several values with one command; ``None`` of a cluster, where keys live apart.

    Where the login may use ``GET`` and not ``MGET``, they are fetched one by one.
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
