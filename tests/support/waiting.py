"""Waiting for what has no event of its own. The test's own timeout bounds every wait."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

import httpx


async def until(holds: Callable[[], bool | Awaitable[bool]], *, poll_s: float = 0.001) -> None:
    """Let the event loop turn until ``holds()``, which may be a coroutine function."""
    while True:
        held = holds()
        if await held if inspect.isawaitable(held) else held:
            return
        await asyncio.sleep(poll_s)


def wait_until(
    holds: Callable[[], bool], *, alive: Callable[[], bool] = lambda: True, poll_s: float = 0.02
) -> None:
    """Block this thread until ``holds()``.

    Raises:
        AssertionError: ``alive()`` is false, so that it never will.
    """
    while not holds():
        assert alive(), "the process has ended"
        time.sleep(poll_s)


def is_up(client: httpx.Client, path: str = "/readyz") -> bool:
    """Whether a server that may not listen yet answers ``path`` with 200."""
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


async def turns(n: int = 20) -> None:
    """Let the event loop turn ``n`` times: whatever was about to happen has happened."""
    for _ in range(n):
        await asyncio.sleep(0)
