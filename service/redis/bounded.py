"""Waits for a command no longer than its budget, whatever becomes of the command.

``asyncio.timeout`` is not enough: it ends the wait by cancelling the command, and on Python 3.11
``asyncio.wait_for``, with which redis-py sends, drops a cancellation that arrives in the turn of
the event loop in which the sending ends. The command then goes on until the socket's own limit,
and the caller waits with it. Cancelling also discards work that is worth keeping: a connection that
is nearly open, TLS handshake included, or the map of a cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedCommands:
    """Runs commands concurrently, and waits for each within its budget.

    An abandoned command goes on, and counts as running, until it ends by itself: it must have a
    bound of its own.

    Args:
        at_once: most commands that run at a time; others wait, within their budgets.
    """

    def __init__(self, at_once: int) -> None:
        self._places = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Future[Any]] = set()

    async def run(self, command: Callable[[], Awaitable[T]], budget_s: float) -> T:
        """The command's answer; it is started once at most.

        Raises:
            TimeoutError: ``budget_s`` seconds are over, or this is being closed. The command may
                not have been started.
            Exception: whatever the command raises.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + budget_s
        async with asyncio.timeout_at(end):  # nothing here can drop a cancellation
            await self._places.acquire()
        task = asyncio.ensure_future(_awaited(command))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait((task,), timeout=max(0.0, end - loop.time()))
        if not task.done() or task.cancelled():
            raise TimeoutError("no answer in time")
        return task.result()

    async def close(self) -> None:
        """Stop all commands; returns when they have ended."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        self._places.release()
        if not task.cancelled():
            task.exception()  # its caller may have given up


async def _awaited(command: Callable[[], Awaitable[T]]) -> T:
    return await command()
