"""Deployment handles without Ray: calls run in tasks of their own, as they do on a replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import aclosing
from typing import Any

from service.ray.host import EngineHost
from service.ray.wire import Item, Refusal


class ReplicaDied(Exception):
    """What a handle raises when the replica of a call is gone."""


class FakeStream:
    """A streaming call; cancelling it cancels the task on the replica's side."""

    def __init__(self, host: EngineHost, query: str) -> None:
        self._items: asyncio.Queue[Item | Refusal | BaseException | None] = asyncio.Queue()
        self._task = asyncio.create_task(self._run(host, query))

    async def _run(self, host: EngineHost, query: str) -> None:
        end: BaseException | None = None
        try:
            async with aclosing(host.generate(query)) as items:
                async for item in items:
                    self._items.put_nowait(item)
        except BaseException as error:
            end = error
            raise
        finally:
            self._items.put_nowait(
                ReplicaDied("cancelled") if isinstance(end, asyncio.CancelledError) else end
            )

    def die(self) -> None:
        """End as a replica does that was killed."""
        self._items.put_nowait(ReplicaDied("the actor died"))

    async def __aiter__(self) -> AsyncIterator[Item | Refusal]:
        while (item := await self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def cancel(self) -> None:
        self._task.cancel()


class FakeReply:
    """A call with one answer."""

    def __init__(self, work: Coroutine[Any, Any, Any]) -> None:
        self.task = asyncio.create_task(work)

    def __await__(self) -> Generator[Any, None, Any]:
        # As Ray does: waiting for the answer may be given up without giving up the call.
        return asyncio.shield(self.task).__await__()

    def cancel(self) -> None:
        self.task.cancel()


class FakeHandle:
    """Implements ``service.ray.remote.Calls`` on a host in this process."""

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self.streams: list[FakeStream] = []
        self.replies: list[FakeReply] = []
        self.running = 1
        self.fault: Exception | None = None
        self.counted = 0
        """How often it was asked how many replicas run."""

    def generate(self, query: str) -> FakeStream:
        self.streams.append(FakeStream(self._host, query))
        return self.streams[-1]

    def tag(self, pairs: Sequence[tuple[str, str]]) -> FakeReply:
        self.replies.append(FakeReply(self._host.tag(pairs)))
        return self.replies[-1]

    async def count(self) -> int:
        self.counted += 1
        if self.fault is not None:
            raise self.fault
        return self.running


Leave = Callable[[], None]
