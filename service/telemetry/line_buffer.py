"""Things that are kept until the end of the event loop's turn, to be dealt with together."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class LineBuffer:
    """Collects texts in one thread, whose event loop hands them over once in each turn.

    Args:
        done: gets the texts in order, never none.
    """

    def __init__(self, done: Callable[[Sequence[str]], None]) -> None:
        self._done = done
        self._kept: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # Reentrant: a signal may come in between, and its handler may flush.
        self._lock = threading.RLock()

    @contextmanager
    def batched_writes(self) -> Iterator[None]:
        """Keep texts while this is open; to be entered in the event loop."""
        before = self._loop, self._thread
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            yield
        finally:
            self._loop, self._thread = before
            self.flush()

    def keep(self, text: str) -> bool:
        """Whether ``text`` is kept; else the caller has to see to it, since nothing else will."""
        if self._loop is None or self._thread != threading.get_ident():
            return False
        with self._lock:
            self._kept.append(text)
            first = len(self._kept) == 1
        if first:
            self._loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        """Hand over what is kept; from any thread."""
        if not self._kept:
            return
        with self._lock:
            kept, self._kept = self._kept, []
            if kept:
                self._done(kept)
