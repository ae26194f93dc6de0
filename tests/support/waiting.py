"""Waiting for what has no event of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(holds: Callable[[], bool]) -> None:
    """Let the event loop turn until ``holds()``; the test's own timeout bounds it."""
    while not holds():  # noqa: ASYNC110 - what is waited for has no event
        await asyncio.sleep(0.001)


async def turns(n: int = 20) -> None:
    """Let the event loop turn ``n`` times: whatever was about to happen has happened."""
    for _ in range(n):
        await asyncio.sleep(0)
