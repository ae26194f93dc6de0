"""An orderly end on SIGINT and SIGTERM."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):
    """A signal came before the work had begun."""


class Signals:
    """SIGINT and SIGTERM: the first requests an orderly end, the second cancels at once."""

    def __init__(self) -> None:
        self.first: int | None = None
        """Number of the first signal."""
        self.came = asyncio.Event()

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals for a block; a second one cancels the task that it runs in."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker

        def received(number: int) -> None:
            if self.first is not None:
                task.cancel()
                return
            self.first = number
            self.came.set()

        for number in _SIGNALS:
            loop.add_signal_handler(number, received, number)
        try:
            yield
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)

    async def unless(self, work: Awaitable[_T]) -> _T:
        """The result of ``work``, unless a signal comes first.

        Raises:
            Stopped: one did; ``work`` has been cancelled.
        """
        task = asyncio.ensure_future(work)
        came = asyncio.create_task(self.came.wait())
        try:
            await asyncio.wait((task, came), return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped
        finally:
            came.cancel()
            task.cancel()
            await asyncio.gather(came, task, return_exceptions=True)
