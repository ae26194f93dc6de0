"""Noticing that a caller has hung up, so that nothing goes on for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from service.errors import ClientDisconnected

T = TypeVar("T")


async def hung_up(request: Request) -> None:
    """Return when the caller has hung up; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` returns; it is cancelled when the caller hangs up.

    Raises:
        CallerLeft: the caller hung up first.
        Exception: whatever ``work`` raises.
    """
    task = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnected("the caller hung up before there was an answer")
    finally:
        for each in (task, leaving):
            each.cancel()
        await asyncio.gather(task, leaving, return_exceptions=True)
